//! What one BTP session does with each message, and how it sends: the rules of RFC 23 and of its
//! two dialects.
//!
//! Owns the state from the first frame to the last. Leaves to [`super::BtpLink`] the WebSocket
//! frames that carry the messages, to `fragments` those that come in pieces, and to the caller
//! every decision about a token or a packet.
//! Always: nothing is sent after our close frame; a reply is never answered; a request never
//! completes one of ours.

use super::{AUTH_MESSAGE_BYTES_MAX, Close, Event, Failure, MESSAGE_BYTES_MAX};
use super::{OWN_ANSWERS_OUT_MAX, Role, UNREADABLE_IN_A_ROW_MAX};
use crate::wire::btp::{self, ErrorBody, Frame, FrameKind};
use crate::wire::packet::{self, PacketType};
use crate::wire::timestamp::Timestamp;
use crate::wire::websocket::{self, CloseCode, Opcode};

/// What we keep of a peer's reason to refuse us, for a log line.
const REFUSAL_BYTES_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Server: the first frame must authenticate. Client: the answer to our authentication is due.
    Unauthenticated,
    /// Server: the caller has been asked whether the token is right.
    Deciding,
    Open,
    /// Nothing is read any more.
    Over,
}

/// Everything but the fragments, which an event may borrow while the session goes on.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) role: Role,
    pub(super) state: State,
    pub(super) close_sent: bool,
    unreadable_in_a_row: u8,
    /// Client: the request id of our authentication, taken at random so that no Prepare's id meets
    /// it.
    pub(super) auth_id: u32,
    masks: MaskKeys,
}

impl Session {
    /// A session at its beginning. `mask_seed` is not used by a server.
    pub(super) fn new(role: Role, mask_seed: u64) -> Self {
        let mut masks = MaskKeys(mask_seed);
        Self {
            role,
            state: State::Unauthenticated,
            close_sent: false,
            unreadable_in_a_row: 0,
            auth_id: u32::from_be_bytes(masks.draw()),
            masks,
        }
    }

    /// One whole BTP frame. The first byte of its ILP packet decides what it is.
    #[inline]
    pub(super) fn handle_message<'a>(
        &mut self,
        now: Timestamp,
        message: &'a mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Close> {
        let (kind, request_id, ilp) = match Frame::parse(message) {
            Ok(frame) => (frame.kind(), frame.request_id(), frame.ilp_range()),
            Err(_) => return self.handle_unreadable(out).map(|()| None),
        };
        self.unreadable_in_a_row = 0;
        let is_for_packets = matches!(kind, FrameKind::Message | FrameKind::Response) && self.takes_packets();
        let Some(ilp) = ilp.filter(|ilp| is_for_packets && !ilp.is_empty()) else {
            return self.handle_other(now, message, out);
        };
        let packet = &mut message[ilp];
        Ok(match (packet::packet_type(packet), kind) {
            (Some(PacketType::Fulfill | PacketType::Reject), _) => Some(Event::Reply { request_id, packet }),
            (Some(PacketType::Prepare), _) | (None, FrameKind::Message) => {
                // After our close frame nobody could be told what became of it.
                (!self.close_sent).then_some(Event::Prepare { request_id, packet })
            }
            (None, _) => Some(Event::Failed {
                request_id,
                failure: Failure::Garbage,
            }),
        })
    }

    /// A frame that carries no packet we want.
    #[cold]
    fn handle_other<'a>(
        &mut self,
        now: Timestamp,
        message: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Close> {
        // Read once more rather than handed over: the borrow of a packet to be patched forbids a
        // second one, and this is not the path of packets.
        let Ok(frame) = Frame::parse(message) else {
            return self.handle_unreadable(out).map(|()| None);
        };
        if self.role == Role::Server && self.state == State::Unauthenticated {
            return self.handle_auth(now, &frame, out);
        }
        let request_id = frame.request_id();
        let answers_auth = self.state == State::Unauthenticated && !self.close_sent && request_id == self.auth_id;
        Ok(match (frame.kind(), frame.error()) {
            // A sub-protocol we do not know. The request wants an answer, and there is nothing to
            // say.
            (FrameKind::Message, _) => {
                self.answer(out, |out| btp::write_empty_response(out, request_id));
                None
            }
            // A settlement claimed on the link: this node settles elsewhere.
            (FrameKind::Transfer, _) => {
                self.answer(out, |out| {
                    write_not_accepted(out, request_id, "transfers are not accepted", now)
                });
                None
            }
            (FrameKind::Error, Some(error)) if answers_auth => Some(Event::AuthRefused {
                reason: describe(&error),
            }),
            (FrameKind::Error, Some(error)) => Some(Event::Failed {
                request_id,
                failure: Failure::from_error(&error),
            }),
            (FrameKind::Response, _) if answers_auth => {
                self.state = State::Open;
                Some(Event::Authenticated)
            }
            (FrameKind::Response | FrameKind::Error, _) => Some(Event::Failed {
                request_id,
                failure: Failure::Garbage,
            }),
        })
    }

    /// The server's first frame. RFC 23 wants the entry `auth` first; only the token is needed, so
    /// only that is asked.
    fn handle_auth<'a>(
        &mut self,
        now: Timestamp,
        frame: &Frame<'a>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Close> {
        if self.close_sent {
            return Ok(None);
        }
        let request_id = frame.request_id();
        let text = |name| frame.entry(name).map(std::str::from_utf8);
        let auth = match (
            frame.kind(),
            text("auth_token"),
            text("auth_username").unwrap_or(Ok("")),
        ) {
            (FrameKind::Message, Some(Ok(token)), Ok(username)) => Some((username, token)),
            _ => None,
        };
        let Some((username, token)) = auth else {
            self.refuse(request_id, "the first frame must authenticate", now, out);
            return Err(Close::NotAuthenticated);
        };
        self.state = State::Deciding;
        Ok(Some(Event::Auth {
            request_id,
            username: Some(username).filter(|username| !username.is_empty()),
            token,
        }))
    }

    /// RFC 23 ignores what cannot be read: without a request id there is nobody to answer.
    #[cold]
    fn handle_unreadable(&mut self, out: &mut Vec<u8>) -> Result<(), Close> {
        self.unreadable_in_a_row += 1;
        if self.unreadable_in_a_row < UNREADABLE_IN_A_ROW_MAX {
            return Ok(());
        }
        self.end(CloseCode::ProtocolError, out);
        Err(Close::Unreadable)
    }

    pub(super) fn handle_control(&mut self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Close> {
        match opcode {
            Opcode::Ping if out.len() <= OWN_ANSWERS_OUT_MAX => self.send_control(Opcode::Pong, payload, out),
            Opcode::Close => {
                let code = websocket::parse_close(payload).map_err(|code| self.violation(code, out))?;
                // RFC 6455, section 5.5.1: the same code back, unless ours went out first.
                self.send_control(Opcode::Close, &payload[..payload.len().min(2)], out);
                self.close_sent = true;
                self.state = State::Over;
                return Err(Close::ByPeer { code });
            }
            // That a pong came is all it says, and the caller saw the bytes arrive.
            _ => {}
        }
        Ok(())
    }

    /// The longest message we take now.
    #[inline]
    pub(super) fn message_bytes_max(&self) -> usize {
        if self.takes_packets() {
            MESSAGE_BYTES_MAX
        } else {
            AUTH_MESSAGE_BYTES_MAX
        }
    }

    /// Whether an ILP packet may be an event. A server's word counts from the start: we chose whom
    /// to call.
    fn takes_packets(&self) -> bool {
        self.state == State::Open || self.role == Role::Client
    }

    pub(super) fn refuse(&mut self, request_id: u32, reason: &str, now: Timestamp, out: &mut Vec<u8>) {
        self.send(out, |out| write_not_accepted(out, request_id, reason, now));
        self.end(CloseCode::PolicyViolation, out);
    }

    #[cold]
    pub(super) fn violation(&mut self, code: CloseCode, out: &mut Vec<u8>) -> Close {
        self.end(code, out);
        Close::Violation(code)
    }

    /// Closes from our side without waiting for anything more.
    fn end(&mut self, code: CloseCode, out: &mut Vec<u8>) {
        self.send_close(code, out);
        self.state = State::Over;
    }

    pub(super) fn send_close(&mut self, code: CloseCode, out: &mut Vec<u8>) {
        self.send_control(Opcode::Close, &(code as u16).to_be_bytes(), out);
        self.close_sent = true;
        if self.state == State::Deciding {
            // The question is moot; read on, for the peer's close frame.
            self.state = State::Unauthenticated;
        }
    }

    pub(super) fn send_control(&mut self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
        if !self.close_sent {
            websocket::write_control(out, opcode, payload, self.next_mask());
        }
    }

    /// Sends what answers a peer's request without anybody's decision, as long as the peer reads
    /// its answers.
    fn answer(&mut self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if out.len() <= OWN_ANSWERS_OUT_MAX {
            self.send(out, write);
        }
    }

    /// Sends the BTP frame that `write` appends.
    pub(super) fn send(&mut self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.close_sent {
            return;
        }
        let mut frame = Vec::new();
        write(&mut frame);
        let mask = self.next_mask();
        websocket::write_head(out, Opcode::Binary, frame.len(), mask);
        if let Some(key) = mask {
            websocket::unmask(&mut frame, key);
        }
        out.extend_from_slice(&frame);
    }

    /// The same for the frames that matter: no buffer between, `patch` sees the packet before it is
    /// masked.
    #[inline]
    pub(super) fn send_ilp(
        &mut self,
        kind: FrameKind,
        request_id: u32,
        packet: &[u8],
        out: &mut Vec<u8>,
        patch: impl FnOnce(&mut [u8]),
    ) {
        if self.close_sent {
            return;
        }
        debug_assert!(self.takes_packets(), "nothing is sent to a stranger");
        let mask = self.next_mask();
        let frame_len = btp::ilp_frame_size(packet.len());
        out.reserve(websocket::HEAD_BYTES_MAX + frame_len);
        websocket::write_head(out, Opcode::Binary, frame_len, mask);
        let start = out.len();
        btp::write_ilp(out, kind, request_id, packet);
        let frame = &mut out[start..];
        patch(&mut frame[frame_len - packet.len()..]);
        if let Some(key) = mask {
            websocket::unmask(frame, key);
        }
    }

    #[inline]
    fn next_mask(&mut self) -> Option<[u8; 4]> {
        (self.role == Role::Client).then(|| self.masks.draw())
    }
}

/// An Error that refuses a request, in the RFC's words.
fn write_not_accepted(out: &mut Vec<u8>, request_id: u32, reason: &str, now: Timestamp) {
    btp::write_error(out, request_id, b"F00", "NotAcceptedError", reason, now);
}

/// A peer's Error as one line of text.
fn describe(error: &ErrorBody<'_>) -> String {
    let text = |bytes: &[u8]| {
        let kept = &bytes[..bytes.len().min(REFUSAL_BYTES_MAX)];
        String::from_utf8_lossy(kept).replace(char::is_control, " ")
    };
    format!("{} {}: {}", text(&error.code), text(error.name), text(error.data))
}

/// SplitMix64. RFC 6455 asks for unpredictable keys so that scripts in a browser cannot choose the
/// bytes on the wire; we run no scripts, so different keys are enough, and drawing one must cost
/// nothing.
#[derive(Debug)]
struct MaskKeys(u64);

impl MaskKeys {
    #[inline]
    fn draw(&mut self) -> [u8; 4] {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed >> 32) as u32).to_be_bytes()
    }
}
