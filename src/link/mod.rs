//! Links: what carries packets between two neighbours, as state machines over bytes. No sockets, no clock.

pub mod btp;
pub mod http;
