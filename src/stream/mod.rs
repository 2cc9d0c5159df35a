//! STREAM (RFC 29): money sent in packets between two ends that share a secret.
//!
//! Owns both ends. [`secret`] makes the addresses and secrets that a receiver hands out, [`receiver`] answers what is
//! addressed to them, [`sender`] is a payment or a quote; [`frame`], [`crypto`], [`receipt`] and [`ratio`] are what they
//! are made of. Leaves the books and the way of a Prepare to its caller: whoever can send a Prepare and waits for its
//! answer can be the one end, and whoever can book an amount the other.
//!
//! Pure: no sockets, no clock; time and randomness are arguments.

pub mod crypto;
pub mod frame;
pub mod ratio;
pub mod receipt;
pub mod receiver;
pub mod secret;
pub mod sender;

/// Fills bytes with what nobody can guess. Nonces come from it, so a sequence must never be repeated.
pub type RandomSource<'a> = dyn FnMut(&mut [u8]) + 'a;
