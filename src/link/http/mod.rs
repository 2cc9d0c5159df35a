//! ILP-over-HTTP (RFC 35, synchronous): one connection, as server and as client, without sockets.
//!
//! Owns the order of messages on a connection: where each begins and ends, that a head which comes
//! again is not parsed again, which answer may go out now and how much of it, and what a peer's
//! status means for our packet. Leaves the bytes of a
//! message to `wire::http`, who may do what to `api` and `shard`, and deadlines to the caller.
//!
//! Both ends work alike. The caller keeps received bytes until they are reported as used, and calls
//! `next` until it answers `(0, None)`: read more. Of what came, only bodies that are chunked or longer
//! than a packet are copied.
//!
//! Always: what `next` reports does not depend on how the bytes were split; a message that trickles
//! in is looked at once per line of its head, not once per read; memory of one connection is bounded
//! by a head and a body.

mod answers;
mod client;
mod server;

pub use answers::{Answers, Asked, LongBody, Next, PIECE_BYTES};
pub use client::{Answer, Broken, HttpClient, RequestTemplate, Unsendable};
pub use server::{HttpServer, Incoming, Refused};

use crate::wire::http::HEAD_BYTES_MAX;
use crate::wire::packet::ErrorCode;

/// Heads longer than this are not kept for comparison: an idle connection should be small, and
/// peers' heads have 200 bytes.
const REPEATED_HEAD_BYTES_MAX: usize = 1024;

/// What a peer's answer other than 200 with a packet means for the Prepare we sent: the code of the
/// Reject that goes back. The peer may still have taken the Prepare; it is never sent again.
///
/// Passing trouble of the peer is T03. What looks like a wrong address, token or a broken peer is
/// T01: no packet will pass until somebody mends it. All else, including a 200 that holds no packet
/// and a 202 whose answer would come by callback, is T00.
pub fn reject_code_for_status(status: u16) -> ErrorCode {
    match status {
        429 | 503 => ErrorCode::T03_CONNECTOR_BUSY,
        401 | 403 | 404 | 405 | 500..=599 => ErrorCode::T01_PEER_UNREACHABLE,
        _ => ErrorCode::T00_INTERNAL_ERROR,
    }
}

/// Whether that status says that our configuration for the peer is wrong (token, path), so that an
/// operator should hear of it.
pub fn is_misconfigured(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 405)
}

/// How far an unfinished message has been looked at, so that reads which cannot complete it cost
/// nothing.
#[derive(Debug, Default)]
struct Progress {
    /// Fewer bytes than this cannot be enough.
    needed: usize,
    /// Bytes of an unfinished head that have been parsed; 0 if the next look is the first, or comes
    /// when the whole body is there.
    parsed: usize,
}

impl Progress {
    /// Whether a look at `bytes`, all of the message so far, may find more than the last one. A head
    /// is worth another look when a line has ended: a fault within a line is found by then, and the
    /// number of lines is bounded, so one byte at a time cannot make us work in squares.
    fn is_worth_a_look(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() < self.needed {
            return false;
        }
        let news = bytes.get(self.parsed..).unwrap_or_default();
        if self.parsed == 0 || news.contains(&b'\n') || bytes.len() >= HEAD_BYTES_MAX {
            return true;
        }
        self.head_unfinished(bytes.len());
        false
    }

    fn head_unfinished(&mut self, parsed: usize) {
        *self = Self {
            needed: parsed + 1,
            parsed,
        };
    }

    fn wait_for(&mut self, message_bytes: usize) {
        *self = Self {
            needed: message_bytes,
            parsed: 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Connections for the properties of either end: pieces in any order, each as often as its weight says.
    pub(super) fn connections(pieces: Vec<(u32, String)>) -> impl Strategy<Value = Vec<u8>> {
        let weighted = pieces.into_iter().map(|(weight, piece)| (weight, Just(piece)));
        let piece = prop::strategy::Union::new_weighted(weighted.collect());
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat().into_bytes())
    }

    /// Lengths of what is read at once.
    pub(super) fn cuts() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(1..60_usize, 1..8)
    }

    /// Hands `bytes` on in pieces of these lengths, over and over.
    pub(super) fn read_in_pieces(mut bytes: &[u8], cuts: &[usize], mut read: impl FnMut(&[u8])) {
        for &cut in cuts.iter().cycle() {
            let (piece, rest) = bytes.split_at(cut.min(bytes.len()));
            if piece.is_empty() {
                break;
            }
            read(piece);
            bytes = rest;
        }
    }

    #[test]
    fn a_trickled_head_is_looked_at_once_per_line() {
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(5000));
        let (mut progress, mut looks) = (Progress::default(), 0);
        for end in 1..=head.len() {
            if progress.is_worth_a_look(&head.as_bytes()[..end]) {
                looks += 1;
                progress.head_unfinished(end);
            }
            assert_eq!(progress.needed, end + 1, "one byte more may be enough");
        }
        assert_eq!(looks, 1 + 4, "the first byte and four lines");
    }

    #[test]
    fn a_body_is_looked_at_when_it_is_whole() {
        let mut progress = Progress::default();
        progress.wait_for(100);
        assert!(!progress.is_worth_a_look(&[b'\n'; 99]));
        assert!(progress.is_worth_a_look(&[b'x'; 100]));
    }

    #[test]
    fn codes_for_statuses() {
        let table = [
            (200, "T00", false),
            (202, "T00", false),
            (302, "T00", false),
            (400, "T00", false),
            (401, "T01", true),
            (404, "T01", true),
            (405, "T01", true),
            (411, "T00", false),
            (413, "T00", false),
            (429, "T03", false),
            (500, "T01", false),
            (502, "T01", false),
            (503, "T03", false),
            (599, "T01", false),
            (999, "T00", false),
        ];
        for (status, code, misconfigured) in table {
            assert_eq!(reject_code_for_status(status).as_str(), code, "{status}");
            assert_eq!(is_misconfigured(status), misconfigured, "{status}");
        }
    }
}
