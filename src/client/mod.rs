//! What we ask of other services: one question, one answer, one deadline.
//!
//! Owns the conversation with servers that are not peers: [`spsp`] asks where to pay, [`rates`] what assets are worth,
//! [`engine`] asks a settlement engine to pay. Every call blocks, so all of this runs on threads that may wait. What such
//! a server answers is untrusted: it is bounded, checked, and never shown to a caller as it came.

mod agent;
pub mod engine;
pub mod rates;
pub mod spsp;
