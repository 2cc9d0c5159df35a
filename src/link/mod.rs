//! Links: what carries packets between two neighbours, and news of them to a subscriber, as state machines over bytes. No
//! sockets, no clock.

pub mod btp;
pub mod http;
pub mod subscriber;
