//! STREAM (RFC 29): money sent in packets between two ends that share a secret.
//!
//! Owns what both ends know without asking anybody: [`secret`] makes the addresses and secrets that a receiver hands
//! out. Pure: no sockets, no clock; randomness is an argument.

pub mod secret;
