//! One BTP session over one WebSocket (RFC 23 over RFC 6455), after the upgrade.
//!
//! Owns the order of things: who must mask, putting fragments together, authentication, which frame
//! is a request and which a reply, pings, errors and the closing of both layers. Leaves to others
//! the bytes of a frame (`wire`), whether a token is right, which Prepare waits under which request
//! id, and every timer: 10 s to authenticate, a ping every 20 s, and the end of a link that was
//! silent for 45 s belong to the caller, who sees each byte arrive.
//!
//! Two dialects are spoken in the field. RFC 23 puts a Prepare into a Message and its Fulfill or
//! Reject into a Response; one widely used node does it the other way round. So what a frame is
//! gets decided by the ILP packet in it, never by the frame's type, and what we send is always the
//! RFC's form, which everybody takes.
//!
//! Always: nothing a peer sends panics or makes a buffer grow beyond its limit; a reply is never
//! answered; a request never completes one of ours, even under the same id.

mod fragments;
mod session;

use crate::wire::btp::{self, ErrorBody, FrameKind};
use crate::wire::packet;
use crate::wire::timestamp::Timestamp;
use crate::wire::websocket::{self, CloseCode, Opcode};
use fragments::Reassembly;
use session::{Session, State};

/// The longest message, in one frame or in fragments; above it the link closes with 1009.
pub const MESSAGE_BYTES_MAX: usize = btp::FRAME_BYTES_MAX;

/// The longest message a server takes before its peer has authenticated: user name and token with
/// room to spare. A stranger costs us no more memory than that.
pub const AUTH_MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// What a receive buffer must be able to hold, so that every frame we accept can be complete in it.
pub const FRAME_BYTES_MAX: usize = websocket::HEAD_BYTES_MAX + MESSAGE_BYTES_MAX;

/// Unreadable BTP frames in a row before the link closes. RFC 23 ignores them; a peer that sends
/// nothing else is none.
pub const UNREADABLE_IN_A_ROW_MAX: u8 = 10;

/// Beyond this many bytes in `out` the link stops answering by itself (pongs, errors, empty
/// responses): a peer that only asks and never reads would otherwise make us collect answers for
/// it. Room for several of the largest replies, so that a peer that reads never misses an answer.
pub const OWN_ANSWERS_OUT_MAX: usize = 256 * 1024;

/// How much of a masked frame is looked at ahead: some 80 bytes come before a Prepare's destination, and most destinations
/// are shorter than the rest.
const LOOK_AHEAD_BYTES: usize = 192;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The peer connected to us and authenticates; its frames are masked, ours are not.
    Server,
    /// We connected and authenticate; our frames are masked, the peer's are not.
    Client,
}

/// What came of the bytes received, as far as it concerns anybody else. Borrows from them.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The peer wants to be let in (server only, once). Answer with [`BtpLink::accept`] or
    /// [`BtpLink::refuse`]; until then the link takes no further bytes. An empty user name is given
    /// as `None`.
    Auth {
        request_id: u32,
        username: Option<&'a str>,
        token: &'a str,
    },
    /// The server accepted us (client only, once).
    Authenticated,
    /// The server refused us (client only); it will close.
    AuthRefused { reason: String },
    /// A request to forward a packet, to be answered by [`BtpLink::send_reply`] with the same id.
    /// Only the choice to treat it as a request was made: a packet that is malformed, or no Prepare
    /// at all, comes out here too, and is answered with a Reject F01 like any other, by those who
    /// know our address.
    Prepare { request_id: u32, packet: &'a mut [u8] },
    /// A Fulfill or Reject, by its first byte, for our Prepare of this id. Drop it if there is
    /// none.
    Reply { request_id: u32, packet: &'a [u8] },
    /// No usable reply will come for our request of this id. Ignore it if there is none.
    Failed { request_id: u32, failure: Failure },
}

/// Why a Prepare of ours got no Fulfill and no Reject, by what the Reject we send upstream must
/// say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer reports something temporary (Error T..): T01.
    Unreachable,
    /// The peer says that its balance does not suffice (Error F08): T04.
    InsufficientLiquidity,
    /// Any other Error, an empty Response, or one with something else than a reply in it: T00.
    Garbage,
}

impl Failure {
    fn from_error(error: &ErrorBody<'_>) -> Self {
        match &error.code {
            [b'T', ..] => Self::Unreachable,
            b"F08" => Self::InsufficientLiquidity,
            _ => Self::Garbage,
        }
    }
}

/// The session is over. Our close frame is in `out`, unless it went out before: send that, then
/// close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Close {
    #[error("the peer closed the session with code {code:?}")]
    ByPeer { code: Option<u16> },
    #[error("the peer broke the WebSocket protocol: {0:?}")]
    Violation(CloseCode),
    #[error("the peer sent {UNREADABLE_IN_A_ROW_MAX} unreadable frames in a row")]
    Unreadable,
    #[error("the peer sent something else before it authenticated")]
    NotAuthenticated,
}

/// One session, without its socket. Idle it owns no memory beyond its own fields.
///
/// Hand the received bytes to [`Self::next`] until it consumes none; it answers what needs no
/// decision into `out` and returns the rest as events. The commands (`accept`, `refuse`, `send_*`)
/// append whole frames to `out`; after a close frame they append nothing, since RFC 6455 forbids
/// frames after it: ask [`Self::is_closing`] before a Prepare is counted as sent.
#[derive(Debug)]
pub struct BtpLink {
    session: Session,
    reassembly: Reassembly,
}

impl BtpLink {
    /// The session of a peer that connected to us.
    pub fn server() -> Self {
        Self::new(Role::Server, 0)
    }

    /// The session of a peer that we connected to. `mask_seed` should differ from one connection to
    /// the next.
    pub fn client(mask_seed: u64) -> Self {
        Self::new(Role::Client, mask_seed)
    }

    fn new(role: Role, mask_seed: u64) -> Self {
        Self {
            session: Session::new(role, mask_seed),
            reassembly: Reassembly::default(),
        }
    }

    pub fn role(&self) -> Role {
        self.session.role
    }

    /// Whether the server's side has let the client's in.
    pub fn is_authenticated(&self) -> bool {
        self.session.state == State::Open
    }

    /// Whether our close frame is out, so that commands have no effect any more.
    pub fn is_closing(&self) -> bool {
        self.session.close_sent
    }

    /// Takes the next frame from `bytes`, which are received and not yet consumed, and unmasks it
    /// in place. Returns how many bytes were consumed, and an event if the frame was one.
    ///
    /// Consumed 0: there is no complete frame (or [`Event::Auth`] is undecided); call again with
    /// more bytes behind these. Consumed and no event: the frame meant nothing to the caller; call
    /// again with the rest, even if that is empty. `now` dates the errors we send. `Err`: send
    /// `out`, then close.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        now: Timestamp,
        bytes: &'a mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Event<'a>>), Close> {
        let Self { session, reassembly } = self;
        match session.state {
            State::Deciding => return Ok((0, None)),
            State::Over => return Ok((bytes.len(), None)),
            State::Unauthenticated | State::Open => {}
        }
        reassembly.release();
        let message_bytes_max = session.message_bytes_max();
        let head = match websocket::parse_head(bytes, message_bytes_max) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok((0, None)),
            Err(code) => return Err(session.violation(code, out)),
        };
        if head.mask.is_some() != (session.role == Role::Server) {
            return Err(session.violation(CloseCode::ProtocolError, out));
        }
        let consumed = head.head_len + head.payload_len;
        // Only a complete frame is touched: a mask that was removed twice would be back.
        let Some(payload) = bytes.get_mut(head.head_len..consumed) else {
            return Ok((0, None));
        };
        if let Some(key) = head.mask {
            websocket::unmask(payload, key);
        }
        let message = if head.opcode == Opcode::Binary && head.fin && reassembly.is_idle() {
            payload
        } else if head.opcode.is_control() {
            session.handle_control(head.opcode, payload, out)?;
            return Ok((consumed, None));
        } else {
            match reassembly.add(&head, payload, message_bytes_max) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok((consumed, None)),
                Err(code) => return Err(session.violation(code, out)),
            }
        };
        let event = session.handle_message(now, message, out)?;
        Ok((consumed, event))
    }

    /// Server: lets the peer in. From now on its Prepares are events; some peers send the first
    /// ones without waiting, so hand the bytes that are left to [`Self::next`] at once.
    pub fn accept(&mut self, request_id: u32, out: &mut Vec<u8>) {
        if self.session.close_sent {
            return;
        }
        debug_assert_eq!(self.session.state, State::Deciding, "accept answers Event::Auth");
        self.session.state = State::Open;
        self.session.send(out, |out| btp::write_empty_response(out, request_id));
    }

    /// Server: turns the peer away and closes. The same words for every reason, so that names
    /// cannot be probed.
    pub fn refuse(&mut self, request_id: u32, out: &mut Vec<u8>, now: Timestamp) {
        self.session.refuse(request_id, "invalid auth_token", now, out);
    }

    /// Client: authenticates, as the first thing on the link. `username` is for servers that choose
    /// the account by it.
    pub fn send_auth(&mut self, username: Option<&str>, token: &str, out: &mut Vec<u8>) {
        debug_assert_eq!(self.session.role, Role::Client);
        let request_id = self.session.auth_id;
        self.session
            .send(out, |out| btp::write_auth(out, request_id, username, token));
    }

    /// Sends a Prepare with the amount and expiry given, whatever it carried before. `packet` is an
    /// envelope that [`packet::Prepare`] parsed; `request_id` must not be in flight on this
    /// account.
    #[inline]
    pub fn send_prepare(
        &mut self,
        request_id: u32,
        packet: &[u8],
        (amount, expires_at): (u64, Timestamp),
        out: &mut Vec<u8>,
    ) {
        self.session
            .send_ilp(FrameKind::Message, request_id, packet, out, |sent| {
                packet::patch_prepare(sent, amount, expires_at);
            });
    }

    /// Answers the Prepare of this id with a Fulfill or Reject.
    #[inline]
    pub fn send_reply(&mut self, request_id: u32, packet: &[u8], out: &mut Vec<u8>) {
        self.session
            .send_ilp(FrameKind::Response, request_id, packet, out, |_| {});
    }

    /// Asks for a sign of life.
    pub fn send_ping(&mut self, out: &mut Vec<u8>) {
        self.session.send_control(Opcode::Ping, b"", out);
    }

    /// Says goodbye. Replies to our Prepares still come out as events until the peer closes too;
    /// its own Prepares do not, since we may no longer answer.
    pub fn send_close(&mut self, code: CloseCode, out: &mut Vec<u8>) {
        self.session.send_close(code, out);
    }
}

/// Shows `look` where the Prepares go that are in the next `frames_max` frames of `bytes`, which are received and not
/// yet consumed. Returns how many bytes those frames are. Nothing is checked, changed or remembered, and what
/// [`BtpLink::next`] will say of them is undecided: a destination may be cut off, and some are not shown.
#[inline]
pub fn look_ahead(bytes: &[u8], frames_max: usize, mut look: impl FnMut(&[u8])) -> usize {
    let mut seen = 0;
    for _ in 0..frames_max {
        let rest = &bytes[seen..];
        let Ok(Some(head)) = websocket::parse_head(rest, MESSAGE_BYTES_MAX) else {
            break;
        };
        let Some(payload) = rest.get(head.head_len..head.head_len + head.payload_len) else {
            break;
        };
        seen += head.head_len + head.payload_len;
        let Some(key) = head.mask else {
            look_at(payload, &mut look);
            continue;
        };
        // A copy is unmasked, because the frame itself stays as it is until it is taken.
        let mut plain = [0; LOOK_AHEAD_BYTES];
        let length = payload.len().min(LOOK_AHEAD_BYTES);
        plain[..length].copy_from_slice(&payload[..length]);
        websocket::unmask(&mut plain, key);
        look_at(&plain[..length], &mut look);
    }
    seen
}

/// Shows `look` the destination of the Prepare in a message, if there is one.
#[inline]
fn look_at(message: &[u8], look: &mut impl FnMut(&[u8])) {
    if let Some(destination) = btp::Frame::peek_ilp(message).and_then(packet::Prepare::peek_destination) {
        look(destination);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::btp::Frame;
    use crate::wire::hex;
    use crate::wire::packet::PrepareBuilder;
    use proptest::prelude::*;
    use tungstenite::protocol::{Role as OracleRole, WebSocket, WebSocketConfig};

    const NOW: Timestamp = Timestamp::from_millis(1_893_553_445_678); // 2030-01-02T03:04:05.678Z

    const FULFILL: &[u8] = &[0x0d, 0x21, 0x66, 0x66, 0x66, 0x66];
    const REJECT: &[u8] = &[0x0e, 0x08];

    /// What an event says, without its borrow.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Seen {
        Auth(u32, Option<String>, String),
        Authenticated,
        AuthRefused(String),
        Prepare(u32, Vec<u8>),
        Reply(u32, Vec<u8>),
        Failed(u32, Failure),
        Closed(Close),
    }

    fn seen(event: Event<'_>) -> Seen {
        match event {
            Event::Auth {
                request_id,
                username,
                token,
            } => Seen::Auth(request_id, username.map(str::to_owned), token.to_owned()),
            Event::Authenticated => Seen::Authenticated,
            Event::AuthRefused { reason } => Seen::AuthRefused(reason),
            Event::Prepare { request_id, packet } => Seen::Prepare(request_id, packet.to_vec()),
            Event::Reply { request_id, packet } => Seen::Reply(request_id, packet.to_vec()),
            Event::Failed { request_id, failure } => Seen::Failed(request_id, failure),
        }
    }

    /// One end of a connection, with its receive buffer.
    struct End {
        link: BtpLink,
        received: Vec<u8>,
        out: Vec<u8>,
        seen: Vec<Seen>,
    }

    impl End {
        fn new(link: BtpLink) -> Self {
            Self {
                link,
                received: Vec::new(),
                out: Vec::new(),
                seen: Vec::new(),
            }
        }

        /// A server that let its peer in.
        fn open_server() -> Self {
            let mut server = Self::new(BtpLink::server());
            let mut client = BtpLink::client(1);
            let mut auth = Vec::new();
            client.send_auth(None, "token", &mut auth);
            server.receive(&auth);
            let [Seen::Auth(request_id, ..)] = server.seen[..] else {
                panic!("{:?}", server.seen);
            };
            server.link.accept(request_id, &mut server.out);
            server.seen.clear();
            server.out.clear();
            server
        }

        /// A client whose authentication is undecided.
        fn client(seed: u64) -> Self {
            let mut client = Self::new(BtpLink::client(seed));
            client.link.send_auth(Some("alice"), "secret", &mut client.out);
            client
        }

        /// The caller's loop.
        fn receive(&mut self, bytes: &[u8]) {
            self.received.extend_from_slice(bytes);
            let mut start = 0;
            loop {
                match self.link.next(NOW, &mut self.received[start..], &mut self.out) {
                    Ok((0, None)) => break,
                    Ok((consumed, event)) => {
                        start += consumed;
                        self.seen.extend(event.map(seen));
                    }
                    Err(close) => {
                        self.seen.push(Seen::Closed(close));
                        start = self.received.len();
                        break;
                    }
                }
            }
            self.received.drain(..start);
        }

        /// What the link wants to send: every frame's opcode and plain payload.
        fn sent(&mut self) -> Vec<(Opcode, Vec<u8>)> {
            frames(&std::mem::take(&mut self.out), self.link.role() == Role::Client)
        }

        /// The same if all of it is BTP.
        fn sent_btp(&mut self) -> Vec<Vec<u8>> {
            let sent = self.sent();
            assert!(sent.iter().all(|(opcode, _)| *opcode == Opcode::Binary), "{sent:?}");
            sent.into_iter().map(|(_, payload)| payload).collect()
        }
    }

    fn frames(mut bytes: &[u8], masked: bool) -> Vec<(Opcode, Vec<u8>)> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let head = websocket::parse_head(bytes, MESSAGE_BYTES_MAX)
                .unwrap()
                .expect("whole frames");
            assert!(head.fin);
            assert_eq!(head.mask.is_some(), masked);
            let end = head.head_len + head.payload_len;
            let mut payload = bytes[head.head_len..end].to_vec();
            if let Some(key) = head.mask {
                websocket::unmask(&mut payload, key);
            }
            frames.push((head.opcode, payload));
            bytes = &bytes[end..];
        }
        frames
    }

    /// A frame as a client sends it (masked), with any first byte.
    fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let key = [0x9a, 0x01, 0xff, 0x5c];
        let mut frame = Vec::new();
        websocket::write_head(&mut frame, Opcode::Binary, payload.len(), Some(key));
        frame[0] = first;
        let start = frame.len();
        frame.extend_from_slice(payload);
        websocket::unmask(&mut frame[start..], key);
        frame
    }

    fn client_message(payload: &[u8]) -> Vec<u8> {
        client_frame(0x82, payload)
    }

    fn server_message(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        websocket::write_head(&mut frame, Opcode::Binary, payload.len(), None);
        frame.extend_from_slice(payload);
        frame
    }

    fn ilp_frame(kind: FrameKind, request_id: u32, packet: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        btp::write_ilp(&mut frame, kind, request_id, packet);
        frame
    }

    fn prepare(data_len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        PrepareBuilder {
            amount: 107,
            expires_at: NOW.plus_ms(30_000),
            execution_condition: &[0x5a; 32],
            destination: crate::wire::address::Address::parse(b"test.acme.bob").unwrap(),
            data: &vec![0xd7; data_len],
        }
        .encode(&mut packet);
        packet
    }

    fn error_frame(request_id: u32, code: &[u8; 3]) -> Vec<u8> {
        let mut frame = Vec::new();
        btp::write_error(&mut frame, request_id, code, "SomeError", "{\"message\":\"no\"}", NOW);
        frame
    }

    #[test]
    fn an_idle_link_is_small() {
        assert!(size_of::<BtpLink>() <= 64, "{}", size_of::<BtpLink>());
    }

    #[test]
    fn auth_as_two_javascript_and_rust_peers_send_it() {
        let with_username = "0600000001360103046175746800000d617574685f757365726e616d6501000a61\
                             7574685f746f6b656e01107368685f6974735f615f736563726574";
        let without = "0600000001260102046175746800000a617574685f746f6b656e01107368685f697473\
                       5f615f736563726574";
        for auth in [with_username, without] {
            let mut server = End::new(BtpLink::server());
            server.receive(&client_message(&hex(auth)));
            assert_eq!(server.seen, [Seen::Auth(1, None, "shh_its_a_secret".to_owned())]);
            assert!(!server.link.is_authenticated());
            server.link.accept(1, &mut server.out);
            assert!(server.link.is_authenticated());
            assert_eq!(server.sent_btp(), [hex("0100000001020100")]);
        }
    }

    #[test]
    fn refusal_is_an_error_and_a_close() {
        let mut server = End::new(BtpLink::server());
        server.receive(&client_message(&hex("06000000011001010a617574685f746f6b656e010178")));
        assert_eq!(server.seen, [Seen::Auth(1, None, "x".to_owned())]);
        server.link.refuse(1, &mut server.out, NOW);
        let error = "02000000013d463030104e6f7441636365707465644572726f72133230333030313032\
                     3033303430352e3637385a12696e76616c696420617574685f746f6b656e0100";
        assert_eq!(
            server.sent(),
            [(Opcode::Binary, hex(error)), (Opcode::Close, vec![0x03, 0xf0])]
        );
        // What comes after is thrown away, and nothing is said any more.
        server.receive(&client_message(&ilp_frame(FrameKind::Message, 9, &prepare(0))));
        server.link.send_reply(9, REJECT, &mut server.out);
        server.link.send_ping(&mut server.out);
        assert_eq!((server.seen.len(), server.received.len(), server.out.len()), (1, 0, 0));
    }

    #[test]
    fn both_ends_meet() {
        let mut client = End::client(7);
        let mut server = End::new(BtpLink::server());
        // The first Prepare follows the authentication at once and waits until it is decided.
        let prepare = prepare(300);
        let (amount, expires_at) = (99, NOW.plus_ms(29_000));
        client
            .link
            .send_prepare(5, &prepare, (amount, expires_at), &mut client.out);
        server.receive(&std::mem::take(&mut client.out));
        let [Seen::Auth(auth_id, username, token)] = &server.seen[..] else {
            panic!("{:?}", server.seen);
        };
        assert_eq!((username.as_deref(), token.as_str()), (Some("alice"), "secret"));
        server.link.accept(*auth_id, &mut server.out);
        server.seen.clear();
        server.receive(b"");
        let mut patched = prepare;
        packet::patch_prepare(&mut patched, amount, expires_at);
        assert_eq!(server.seen, [Seen::Prepare(5, patched)]);
        server.link.send_reply(5, FULFILL, &mut server.out);
        client.receive(&std::mem::take(&mut server.out));
        assert_eq!(client.seen, [Seen::Authenticated, Seen::Reply(5, FULFILL.to_vec())]);
        assert!(client.link.is_authenticated());
    }

    #[test]
    fn a_client_hears_why_it_was_refused() {
        let mut client = End::client(7);
        let mut server = End::new(BtpLink::server());
        server.receive(&std::mem::take(&mut client.out));
        let Seen::Auth(auth_id, ..) = server.seen[0] else {
            panic!("{:?}", server.seen);
        };
        server.link.refuse(auth_id, &mut server.out, NOW);
        client.receive(&server.out);
        assert_eq!(
            client.seen,
            [
                Seen::AuthRefused("F00 NotAcceptedError: invalid auth_token".to_owned()),
                Seen::Closed(Close::ByPeer { code: Some(1008) }),
            ]
        );
        assert_eq!(client.sent(), [(Opcode::Close, vec![0x03, 0xf0])]);
    }

    #[test]
    fn the_first_frame_must_authenticate() {
        let no_token = hex("060000000109010104617574680000");
        let not_text = hex("06000000011001010a617574685f746f6b656e0101ff");
        let in_response = hex("01000000011001010a617574685f746f6b656e010178");
        let packet = ilp_frame(FrameKind::Message, 1, &prepare(0));
        let reply = ilp_frame(FrameKind::Response, 1, FULFILL);
        for frame in [no_token, not_text, in_response, packet, reply, error_frame(1, b"F00")] {
            let mut server = End::new(BtpLink::server());
            server.receive(&client_message(&frame));
            assert_eq!(server.seen, [Seen::Closed(Close::NotAuthenticated)], "{frame:02x?}");
            let sent = server.sent();
            let [(Opcode::Binary, error), (Opcode::Close, code)] = &sent[..] else {
                panic!("{sent:?}");
            };
            let error = Frame::parse(error).unwrap();
            assert_eq!((error.request_id(), error.error().unwrap().code), (1, *b"F00"));
            assert_eq!(code[..], [0x03, 0xf0]);
        }
    }

    #[test]
    fn pings_are_answered_before_authentication() {
        let mut server = End::new(BtpLink::server());
        server.receive(&client_frame(0x89, b"abc"));
        assert_eq!(server.sent(), [(Opcode::Pong, b"abc".to_vec())]);
        server.receive(&client_frame(0x8a, b""));
        assert_eq!((server.seen.len(), server.out.len()), (0, 0));
    }

    /// Both dialects: the type of the BTP frame and what the `ilp` entry holds -> the event and our
    /// answer.
    #[test]
    fn what_a_frame_is_gets_decided_by_its_packet() {
        let prepare = prepare(10);
        let (message, response) = (FrameKind::Message, FrameKind::Response);
        let empty_response = hex("0100000007020100");
        let failed = |failure| Some(Seen::Failed(7, failure));
        let no_entries = |kind| {
            let mut frame = Vec::new();
            btp::write_entries(&mut frame, kind, 7, &[]);
            frame
        };
        type Case = (&'static str, Vec<u8>, Option<Seen>, Option<Vec<u8>>);
        let cases: Vec<Case> = vec![
            (
                "Prepare, RFC",
                ilp_frame(message, 7, &prepare),
                Some(Seen::Prepare(7, prepare.clone())),
                None,
            ),
            (
                "Prepare, inverted",
                ilp_frame(response, 7, &prepare),
                Some(Seen::Prepare(7, prepare.clone())),
                None,
            ),
            (
                "Fulfill, RFC",
                ilp_frame(response, 7, FULFILL),
                Some(Seen::Reply(7, FULFILL.to_vec())),
                None,
            ),
            (
                "Fulfill, inverted",
                ilp_frame(message, 7, FULFILL),
                Some(Seen::Reply(7, FULFILL.to_vec())),
                None,
            ),
            (
                "Reject, RFC",
                ilp_frame(response, 7, REJECT),
                Some(Seen::Reply(7, REJECT.to_vec())),
                None,
            ),
            (
                "Reject, inverted",
                ilp_frame(message, 7, REJECT),
                Some(Seen::Reply(7, REJECT.to_vec())),
                None,
            ),
            (
                "no packet, Response",
                no_entries(response),
                failed(Failure::Garbage),
                None,
            ),
            (
                "empty packet, Response",
                ilp_frame(response, 7, b""),
                failed(Failure::Garbage),
                None,
            ),
            (
                "other packet, Response",
                ilp_frame(response, 7, b"hello"),
                failed(Failure::Garbage),
                None,
            ),
            (
                "no packet, Message",
                no_entries(message),
                None,
                Some(empty_response.clone()),
            ),
            (
                "empty packet, Message",
                ilp_frame(message, 7, b""),
                None,
                Some(empty_response),
            ),
            (
                "other packet, Message",
                ilp_frame(message, 7, b"hello"),
                Some(Seen::Prepare(7, b"hello".to_vec())),
                None,
            ),
            ("Error T", error_frame(7, b"T00"), failed(Failure::Unreachable), None),
            (
                "Error F08",
                error_frame(7, b"F08"),
                failed(Failure::InsufficientLiquidity),
                None,
            ),
            ("Error F", error_frame(7, b"F00"), failed(Failure::Garbage), None),
            (
                "Error of no class",
                error_frame(7, b"L13"),
                failed(Failure::Garbage),
                None,
            ),
        ];
        for (name, frame, expected, answer) in cases {
            let mut server = End::open_server();
            server.receive(&client_message(&frame));
            assert_eq!(server.seen, Vec::from_iter(expected.clone()), "{name}, as server");
            assert_eq!(server.sent_btp(), Vec::from_iter(answer.clone()), "{name}, as server");

            let mut client = End::client(3);
            client.sent();
            client.receive(&server_message(&frame));
            assert_eq!(client.seen, Vec::from_iter(expected), "{name}, as client");
            assert_eq!(client.sent_btp(), Vec::from_iter(answer), "{name}, as client");
        }
    }

    #[test]
    fn a_request_never_answers_our_authentication() {
        let mut client = End::client(7);
        let auth_id = Frame::parse(&client.sent_btp()[0]).unwrap().request_id();
        let prepare = prepare(0);
        client.receive(&server_message(&ilp_frame(FrameKind::Response, auth_id, &prepare)));
        assert_eq!(client.seen, [Seen::Prepare(auth_id, prepare)]);
        assert!(!client.link.is_authenticated());
    }

    #[test]
    fn transfers_are_refused() {
        let mut server = End::open_server();
        server.receive(&client_message(&hex("070000000a0a00000000000000640100")));
        assert_eq!(server.seen, []);
        let sent = server.sent_btp();
        let error = Frame::parse(&sent[0]).unwrap();
        let body = error.error().unwrap();
        assert_eq!(
            (error.request_id(), body.code, body.name),
            (10, *b"F00", &b"NotAcceptedError"[..])
        );
    }

    #[test]
    fn unreadable_frames_are_ignored_up_to_ten_in_a_row() {
        let mut server = End::open_server();
        let unreadable = client_message(&hex("0600000001012d"));
        let unreadable = [
            unreadable,
            client_message(b""),
            client_message(&hex("0300000001020100")),
        ]
        .concat();
        server.receive(&unreadable.repeat(3));
        server.receive(&client_message(&ilp_frame(FrameKind::Response, 7, FULFILL)));
        server.receive(&unreadable.repeat(3));
        assert_eq!(server.seen, [Seen::Reply(7, FULFILL.to_vec())]);
        assert!(server.out.is_empty());
        server.receive(&client_message(b""));
        assert_eq!(server.seen[1..], [Seen::Closed(Close::Unreadable)]);
        assert_eq!(server.sent(), [(Opcode::Close, vec![0x03, 0xea])]);
    }

    /// The first byte, whether masked, the payload's length -> the code we close a server's
    /// connection with.
    #[test]
    fn violations_close() {
        let protocol = CloseCode::ProtocolError;
        let continuation_of_nothing = client_frame(0x80, b"x");
        let message_in_message = [client_frame(0x02, b"x"), client_message(b"y")].concat();
        let text_in_message = [client_frame(0x02, b"x"), client_frame(0x81, b"y")].concat();
        let too_big = vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1];
        let fragments_too_big = [
            client_frame(0x02, &[0; 40_000]),
            client_frame(0x00, &[0; 25_536]),
            client_frame(0x80, b"x"),
        ]
        .concat();
        let text_too_big = [client_frame(0x01, &[0; 40_000]), client_frame(0x80, &[0; 25_537])].concat();
        for (bytes, code) in [
            (server_message(b"x"), protocol),
            (client_frame(0xc2, b"x"), protocol),
            (client_frame(0x83, b"x"), protocol),
            (client_frame(0x09, b"x"), protocol),
            (client_frame(0x88, b"x"), protocol),
            (client_frame(0x88, &1005u16.to_be_bytes()), protocol),
            (client_frame(0x88, b"\x03\xe8\xff"), CloseCode::InvalidPayload),
            (continuation_of_nothing, protocol),
            (message_in_message, protocol),
            (text_in_message, protocol),
            (too_big, CloseCode::MessageTooBig),
            (fragments_too_big, CloseCode::MessageTooBig),
            (text_too_big, CloseCode::MessageTooBig),
        ] {
            let mut server = End::open_server();
            server.receive(&bytes);
            assert_eq!(
                server.seen,
                [Seen::Closed(Close::Violation(code))],
                "{:02x?}",
                &bytes[..2]
            );
            assert_eq!(server.sent(), [(Opcode::Close, (code as u16).to_be_bytes().to_vec())]);
        }
        let mut stranger = End::new(BtpLink::server());
        stranger.receive(&client_message(&[0; AUTH_MESSAGE_BYTES_MAX]));
        assert_eq!(stranger.seen, []);
        stranger.receive(&client_message(&[0; AUTH_MESSAGE_BYTES_MAX + 1]));
        assert_eq!(
            stranger.seen,
            [Seen::Closed(Close::Violation(CloseCode::MessageTooBig))]
        );
        let mut client = End::client(1);
        client.sent();
        client.receive(&client_message(b"x"));
        assert_eq!(client.seen, [Seen::Closed(Close::Violation(protocol))]);
    }

    #[test]
    fn text_is_ignored() {
        let mut server = End::open_server();
        server.receive(&client_frame(0x81, b"hello"));
        server.receive(&client_frame(0x01, b"hel"));
        server.receive(&client_frame(0x89, b"ping between fragments"));
        server.receive(&client_frame(0x00, b"lo"));
        server.receive(&client_frame(0x80, b""));
        server.receive(&client_message(&ilp_frame(FrameKind::Response, 7, FULFILL)));
        assert_eq!(server.seen, [Seen::Reply(7, FULFILL.to_vec())]);
        assert_eq!(server.sent(), [(Opcode::Pong, b"ping between fragments".to_vec())]);
    }

    #[test]
    fn fragments_are_put_together_and_their_memory_given_back() {
        let mut server = End::open_server();
        let prepare = prepare(2_000);
        let frame = ilp_frame(FrameKind::Message, 7, &prepare);
        server.receive(&client_frame(0x02, &frame[..3]));
        server.receive(&client_frame(0x00, b""));
        server.receive(&client_frame(0x89, b"ping"));
        server.receive(&client_frame(0x00, &frame[3..500]));
        assert_eq!(server.seen, []);
        server.receive(&client_frame(0x80, &frame[500..]));
        assert_eq!(server.seen, [Seen::Prepare(7, prepare)]);
        assert_eq!(server.link.reassembly.bytes_held(), 0);
    }

    #[test]
    fn the_longest_message_fits() {
        let mut server = End::open_server();
        let mut frame = ilp_frame(FrameKind::Response, 7, FULFILL);
        frame.resize(MESSAGE_BYTES_MAX, 0);
        let frame = client_message(&frame);
        assert_eq!(frame.len(), FRAME_BYTES_MAX);
        server.receive(&frame);
        assert_eq!(server.seen, [Seen::Reply(7, FULFILL.to_vec())]);
    }

    #[test]
    fn a_flood_of_questions_does_not_grow_the_answers() {
        let mut server = End::open_server();
        let ping = client_frame(0x89, &[b'x'; 125]);
        let message = client_message(&hex("0600000001020100"));
        let transfer = client_message(&hex("070000000a0a00000000000000640100"));
        let flood = [ping, message, transfer].concat();
        for _ in 0..10_000 {
            server.receive(&flood);
        }
        assert_eq!(server.seen, []);
        assert!(server.out.len() <= OWN_ANSWERS_OUT_MAX + 200, "{}", server.out.len());
        server.sent();
        server.receive(&flood);
        assert_eq!(server.sent().len(), 3);
    }

    #[test]
    fn close_is_echoed_once() {
        for (payload, code) in [
            (&b""[..], None),
            (b"\x03\xe8", Some(1000)),
            (b"\x0f\xa0bye", Some(4000)),
        ] {
            let mut server = End::open_server();
            server.receive(&client_frame(0x88, payload));
            assert_eq!(server.seen, [Seen::Closed(Close::ByPeer { code })]);
            assert_eq!(
                server.sent(),
                [(Opcode::Close, payload[..payload.len().min(2)].to_vec())]
            );
        }
        // Ours went out first: replies still count, requests do not, and the peer's close is not
        // answered again.
        let mut server = End::open_server();
        server.link.send_close(CloseCode::GoingAway, &mut server.out);
        assert!(server.link.is_closing());
        assert_eq!(server.sent(), [(Opcode::Close, vec![0x03, 0xe9])]);
        server.receive(&client_message(&ilp_frame(FrameKind::Response, 7, FULFILL)));
        server.receive(&client_message(&ilp_frame(FrameKind::Message, 8, &prepare(0))));
        server.receive(&client_frame(0x89, b"ping"));
        server.receive(&client_frame(0x88, b"\x03\xe9"));
        assert_eq!(
            server.seen,
            [
                Seen::Reply(7, FULFILL.to_vec()),
                Seen::Closed(Close::ByPeer { code: Some(1001) })
            ]
        );
        assert!(server.out.is_empty());
    }

    #[test]
    fn an_authentication_that_took_too_long_stays_closed() {
        let mut server = End::new(BtpLink::server());
        let auth = client_message(&hex("06000000011001010a617574685f746f6b656e010178"));
        server.receive(&auth);
        server.link.send_close(CloseCode::PolicyViolation, &mut server.out);
        server.link.accept(1, &mut server.out);
        assert!(!server.link.is_authenticated());
        server.receive(&auth);
        server.receive(&client_frame(0x88, b""));
        assert_eq!(
            server.seen,
            [
                Seen::Auth(1, None, "x".to_owned()),
                Seen::Closed(Close::ByPeer { code: None })
            ]
        );
        assert_eq!(server.sent(), [(Opcode::Close, vec![0x03, 0xf0])]);

        let mut client = End::client(7);
        let auth_id = Frame::parse(&client.sent_btp()[0]).unwrap().request_id();
        client.link.send_close(CloseCode::PolicyViolation, &mut client.out);
        let mut accepted = Vec::new();
        btp::write_empty_response(&mut accepted, auth_id);
        client.receive(&server_message(&accepted));
        assert!(!client.link.is_authenticated());
        assert!(!client.seen.contains(&Seen::Authenticated));
    }

    /// Tungstenite's end of a connection, in memory.
    struct Oracle {
        received: std::io::Cursor<Vec<u8>>,
        sent: Vec<u8>,
    }

    impl std::io::Read for Oracle {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.received.read(buffer)? {
                0 => Err(std::io::ErrorKind::WouldBlock.into()),
                read => Ok(read),
            }
        }
    }

    impl std::io::Write for Oracle {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.sent.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn oracle(role: OracleRole, received: Vec<u8>) -> WebSocket<Oracle> {
        let stream = Oracle {
            received: std::io::Cursor::new(received),
            sent: Vec::new(),
        };
        WebSocket::from_raw_socket(stream, role, Some(WebSocketConfig::default()))
    }

    /// What a client may send: messages in one piece or several, and what stands between them.
    fn client_traffic() -> impl Strategy<Value = (Vec<u8>, Vec<Seen>)> {
        let message = (
            any::<u32>(),
            any::<bool>(),
            0..400usize,
            0..3u8,
            any::<[prop::sample::Index; 2]>(),
        );
        proptest::collection::vec(message, 1..8).prop_map(|messages| {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (request_id, is_request, data_len, between, cuts) in messages {
                let (kind, packet) = if is_request {
                    (FrameKind::Message, prepare(data_len))
                } else {
                    (FrameKind::Response, [&[0x0e, 0x08][..], &vec![0x20; data_len]].concat())
                };
                let frame = ilp_frame(kind, request_id, &packet);
                let mut cuts = cuts.map(|cut| cut.index(frame.len()));
                cuts.sort_unstable();
                match between {
                    0 => bytes.extend(client_message(&frame)),
                    1 => {
                        bytes.extend(client_frame(0x02, &frame[..cuts[0]]));
                        bytes.extend(client_frame(0x89, b"still there?"));
                        bytes.extend(client_frame(0x00, &frame[cuts[0]..cuts[1]]));
                        bytes.extend(client_frame(0x80, &frame[cuts[1]..]));
                    }
                    _ => {
                        bytes.extend(client_frame(0x81, b"text"));
                        bytes.extend(client_message(&frame));
                    }
                }
                expected.push(match is_request {
                    true => Seen::Prepare(request_id, packet),
                    false => Seen::Reply(request_id, packet),
                });
            }
            (bytes, expected)
        })
    }

    /// What a look at the next frames of `bytes` shows, and how much of them it was.
    fn looked_ahead(bytes: &[u8], frames_max: usize) -> (usize, Vec<Vec<u8>>) {
        let mut shown = Vec::new();
        let seen = look_ahead(bytes, frames_max, |destination| shown.push(destination.to_vec()));
        (seen, shown)
    }

    #[test]
    fn a_look_ahead_shows_where_the_next_prepares_go_and_changes_nothing() {
        let to_bob = b"test.acme.bob".to_vec();
        let inverted = ilp_frame(FrameKind::Response, 7, &prepare(0));
        let prepare = ilp_frame(FrameKind::Message, 7, &prepare(300));
        let reply = ilp_frame(FrameKind::Response, 7, FULFILL);
        for frame in [client_message, server_message] {
            let messages = [&prepare, &reply, &error_frame(7, b"F00"), &inverted, &prepare];
            let frames: Vec<Vec<u8>> = messages.iter().map(|message| frame(message)).collect();
            let bytes = frames.concat();
            let end_of = |count: usize| frames[..count].iter().map(Vec::len).sum::<usize>();
            for (frames_max, prepares) in [(0, 0), (1, 1), (3, 1), (4, 2), (5, 3), (6, 3)] {
                let expected = (end_of(frames_max.min(5)), vec![to_bob.clone(); prepares]);
                assert_eq!(looked_ahead(&bytes, frames_max), expected);
            }
            // What is not complete is not shown.
            let shown = looked_ahead(&bytes[..bytes.len() - 1], 16);
            assert_eq!(shown, (end_of(4), vec![to_bob.clone(); 2]));
        }
        // Nor is what is no frame.
        assert_eq!(looked_ahead(b"\xff\xff", 16), (0, vec![]));
    }

    #[test]
    fn a_look_ahead_shows_at_least_100_bytes_of_a_masked_destination() {
        let destination = format!("test.{}", "_".repeat(200));
        let mut packet = Vec::new();
        PrepareBuilder {
            amount: 107,
            expires_at: NOW.plus_ms(30_000),
            execution_condition: &[0x5a; 32],
            destination: crate::wire::address::Address::parse(destination.as_bytes()).unwrap(),
            data: &[0xd7; 20_000],
        }
        .encode(&mut packet);
        let message = ilp_frame(FrameKind::Message, 7, &packet);
        let (_, shown) = looked_ahead(&client_message(&message), 1);
        assert!(shown[0].len() >= 100 && destination.as_bytes().starts_with(&shown[0]));
        let (_, shown) = looked_ahead(&server_message(&message), 1);
        assert_eq!(shown, [destination.as_bytes()]);
    }

    proptest! {
        #[test]
        fn a_look_ahead_at_anything_ends_within_it(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            is_frame in any::<bool>(),
        ) {
            let bytes = if is_frame { client_message(&bytes) } else { bytes };
            let (seen, _) = looked_ahead(&bytes, 16);
            prop_assert!(seen <= bytes.len() && (!is_frame || seen == bytes.len()));
        }

        #[test]
        fn the_cuts_of_the_byte_stream_change_nothing(
            (bytes, expected) in client_traffic(),
            cuts in proptest::collection::vec(1..200usize, 1..20),
        ) {
            let mut whole = End::open_server();
            whole.receive(&bytes);
            prop_assert_eq!(&whole.seen, &expected);

            let mut pieces = End::open_server();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.receive(piece);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(&pieces.seen, &expected);
            prop_assert_eq!(&pieces.out, &whole.out);
            prop_assert_eq!(pieces.received.len(), 0);
        }

        #[test]
        fn another_implementation_reads_what_we_send(
            as_client in any::<bool>(),
            seed in any::<u64>(),
            packets in proptest::collection::vec((any::<u32>(), 0..33_000usize), 1..6),
        ) {
            let mut end = if as_client { End::client(seed) } else { End::open_server() };
            end.out.clear();
            let mut expected = Vec::new();
            for (request_id, data_len) in packets {
                let packet = prepare(data_len.min(packet::DATA_BYTES_MAX));
                let mut patched = packet.clone();
                packet::patch_prepare(&mut patched, 5, NOW);
                end.link.send_prepare(request_id, &packet, (5, NOW), &mut end.out);
                end.link.send_ping(&mut end.out);
                end.link.send_reply(request_id, &packet, &mut end.out);
                expected.push(ilp_frame(FrameKind::Message, request_id, &patched));
                expected.push(ilp_frame(FrameKind::Response, request_id, &packet));
            }
            let role = if as_client { OracleRole::Server } else { OracleRole::Client };
            let mut oracle = oracle(role, std::mem::take(&mut end.out));
            let mut read = Vec::new();
            while let Ok(message) = oracle.read() {
                if message.is_binary() {
                    read.push(message.into_data().to_vec());
                } else {
                    prop_assert!(message.is_ping());
                }
            }
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn we_read_what_another_implementation_sends(
            as_client in any::<bool>(),
            packets in proptest::collection::vec((any::<u32>(), 0..33_000usize), 1..6),
        ) {
            let role = if as_client { OracleRole::Server } else { OracleRole::Client };
            let mut oracle = oracle(role, Vec::new());
            let mut expected = Vec::new();
            for (request_id, data_len) in packets {
                let packet = [&[0x0d, 0x20][..], &vec![0x3c; data_len]].concat();
                let frame = ilp_frame(FrameKind::Response, request_id, &packet);
                oracle.send(tungstenite::Message::binary(frame)).unwrap();
                oracle.send(tungstenite::Message::text("ignored")).unwrap();
                expected.push(Seen::Reply(request_id, packet));
            }
            oracle.close(None).unwrap();
            expected.push(Seen::Closed(Close::ByPeer { code: None }));
            let mut end = if as_client { End::client(1) } else { End::open_server() };
            end.receive(&oracle.get_ref().sent);
            prop_assert_eq!(end.seen, expected);
        }

        #[test]
        fn no_bytes_panic(
            as_client in any::<bool>(),
            authenticated in any::<bool>(),
            frames in proptest::collection::vec(
                (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..80), any::<bool>()),
                0..20,
            ),
        ) {
            let mut end = match (as_client, authenticated) {
                (true, _) => End::client(1),
                (false, true) => End::open_server(),
                (false, false) => End::new(BtpLink::server()),
            };
            for (first, payload, is_plausible) in frames {
                if is_plausible {
                    let payload = ilp_frame(FrameKind::Message, 1, &payload);
                    let message = if as_client { server_message } else { client_message };
                    end.receive(&message(&payload));
                } else {
                    end.receive(&client_frame(first, &payload));
                }
            }
            prop_assert!(end.received.len() <= FRAME_BYTES_MAX);
        }
    }
}
