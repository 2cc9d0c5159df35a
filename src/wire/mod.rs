//! Bytes and messages: every format that crosses a socket, without sockets.
//!
//! What every codec here promises: it borrows from the bytes it is given and allocates nothing from a length it has not
//! verified; incomplete input is "not yet", never an error; malformed input is an error value, never a panic; what it
//! accepts is described in its file with the RFC, and where it is stricter or more liberal than that, why.

pub mod address;
pub mod base64;
pub mod btp;
pub mod ccp;
pub mod error_code;
pub mod http;
pub mod ildcp;
pub mod oer;
pub mod packet;
pub mod peer;
pub mod timestamp;
pub mod websocket;

/// The bytes that a test vector writes as hex digits.
#[cfg(test)]
pub(crate) fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}
