//! BTP 2.0 frames (RFC 23): the body of one binary WebSocket message.
//!
//! Owns the bytes of Response, Error, Message and Transfer and of the protocol data they carry.
//! Leaves to others the WebSocket frame around them (`wire::websocket`) and what a frame means in a
//! session (`link::btp`).
//!
//! Always: a [`Frame`] has been walked to its last entry, so its accessors cannot fail and nothing
//! is checked twice; parsing borrows and never allocates; bytes after the last entry, and after the
//! frame, are ignored and never written. Almost every frame carries one entry named `ilp`, so that
//! one is found while parsing.

use crate::wire::oer::{self, OerError, Reader};
use crate::wire::timestamp::Timestamp;
use std::ops::Range;

/// The longest frame we take or send: the largest ILP packet is 41,997 bytes, and no peer in use
/// takes more than this.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// RFC 23: an Error's data is not longer.
pub const ERROR_DATA_BYTES_MAX: usize = 8192;

/// `application/octet-stream`: the content type of an ILP packet.
pub const OCTET_STREAM: u8 = 0;
/// `text/plain; charset=utf-8`: the content type of a user name or token.
pub const TEXT_PLAIN: u8 = 1;
/// `application/json`.
pub const JSON: u8 = 2;

/// Name, content type and data of one entry take at least one byte each.
const ENTRY_BYTES_MIN: usize = 3;

/// Type and request id, the part before the body's length.
const HEAD_BYTES: usize = 1 + 4;

/// Protocol data that consists of one entry named `ilp`, up to the length of its data.
const ILP_ONLY: &[u8; 7] = b"\x01\x01\x03ilp\x00";

const ILP: &[u8] = b"ilp";

/// A frame's first byte. 3, 4 and 5 were Prepare, Fulfill and Reject of BTP 1; a frame of those is
/// unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Answers a Message or Transfer.
    Response = 1,
    /// Refuses a Message or Transfer.
    Error = 2,
    /// Asks for something: authentication, or a Prepare to be forwarded.
    Message = 6,
    /// Claims a settlement.
    Transfer = 7,
}

/// The frame breaks RFC 23, so it has no request id to answer: it is ignored and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("unknown frame type {0}")]
    Kind(u8),
    #[error("malformed frame: {0}")]
    Oer(#[from] OerError),
}

/// One entry of protocol data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub name: &'a [u8],
    /// [`OCTET_STREAM`], [`TEXT_PLAIN`], [`JSON`] or anything else: receivers go by the name.
    pub content_type: u8,
    pub data: &'a [u8],
}

/// The part of an Error before its protocol data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorBody<'a> {
    /// `F00`, `T00` and so on; whatever three bytes the peer sent.
    pub code: [u8; 3],
    /// Should be a name of RFC 23's list; peers write free text.
    pub name: &'a [u8],
    /// `None` if the peer's time is not one. That never makes the frame unreadable.
    pub triggered_at: Option<Timestamp>,
    pub data: &'a [u8],
}

/// What stands between a frame's head and its protocol data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preamble<'a> {
    None,
    Error(ErrorBody<'a>),
    Transfer(u64),
}

/// A frame that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    kind: FrameKind,
    request_id: u32,
    preamble: Preamble<'a>,
    entry_count: usize,
    /// The entries' bytes, and possibly bytes after them that mean nothing.
    entries: &'a [u8],
    ilp: Option<&'a [u8]>,
    /// Where `ilp` lies in the bytes that were parsed.
    ilp_start: usize,
}

impl<'a> Frame<'a> {
    /// Reads the frame at the start of `bytes`, which is one whole WebSocket message.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(bytes);
        let kind = match reader.read_u8()? {
            1 => FrameKind::Response,
            2 => FrameKind::Error,
            6 => FrameKind::Message,
            7 => FrameKind::Transfer,
            other => return Err(Unreadable::Kind(other)),
        };
        let request_id = reader.read_u32()?;
        let body = reader.read_var_octets()?;
        let body_start = reader.position() - body.len();
        if matches!(kind, FrameKind::Message | FrameKind::Response)
            && let Some(data) = body.strip_prefix(ILP_ONLY)
        {
            let mut reader = Reader::new(data);
            let ilp = reader.read_var_octets()?;
            return Ok(Self {
                kind,
                request_id,
                preamble: Preamble::None,
                entry_count: 1,
                entries: &body[2..],
                ilp: Some(ilp),
                ilp_start: body_start + ILP_ONLY.len() + reader.position() - ilp.len(),
            });
        }
        Self::parse_body(kind, request_id, body, body_start)
    }

    /// The ILP packet of a frame with that one entry, as far as `bytes` go: they may be only the beginning of the frame,
    /// and are not checked. Good for a guess at what [`Self::parse`] will find.
    #[inline]
    pub fn peek_ilp(bytes: &'a [u8]) -> Option<&'a [u8]> {
        let mut reader = Reader::new(bytes.get(HEAD_BYTES..)?);
        reader.read_length().ok()?;
        let mut reader = Reader::new(reader.remaining().strip_prefix(ILP_ONLY)?);
        reader.read_length().ok()?;
        Some(reader.remaining())
    }

    /// The general case: any kind, any entries.
    fn parse_body(kind: FrameKind, request_id: u32, body: &'a [u8], body_start: usize) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(body);
        let preamble = match kind {
            FrameKind::Message | FrameKind::Response => Preamble::None,
            FrameKind::Error => Preamble::Error(ErrorBody {
                code: *reader.read_array()?,
                name: reader.read_var_octets()?,
                triggered_at: Timestamp::parse_generalized(reader.read_var_octets()?),
                data: reader.read_var_octets()?,
            }),
            FrameKind::Transfer => Preamble::Transfer(reader.read_u64()?),
        };
        let entry_count = reader.read_count(ENTRY_BYTES_MIN)?;
        let entries = reader.remaining();
        let mut ilp = None;
        let mut ilp_start = 0;
        for _ in 0..entry_count {
            let entry = read_entry(&mut reader)?;
            if ilp.is_none() && entry.name == ILP {
                ilp = Some(entry.data);
                ilp_start = body_start + reader.position() - entry.data.len();
            }
        }
        Ok(Self {
            kind,
            request_id,
            preamble,
            entry_count,
            entries,
            ilp,
            ilp_start,
        })
    }

    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Chosen by whoever sent the request; the two directions are separate number spaces.
    pub fn request_id(&self) -> u32 {
        self.request_id
    }

    /// The data of the first entry named `ilp`, wherever it stands; may be empty.
    pub fn ilp(&self) -> Option<&'a [u8]> {
        self.ilp
    }

    /// Where [`Self::ilp`] lies in the bytes that were parsed, for whoever wants to patch it there.
    pub fn ilp_range(&self) -> Option<Range<usize>> {
        self.ilp.map(|ilp| self.ilp_start..self.ilp_start + ilp.len())
    }

    /// The data of the first entry of this name.
    pub fn entry(&self, name: &str) -> Option<&'a [u8]> {
        self.entries()
            .find(|entry| entry.name == name.as_bytes())
            .map(|entry| entry.data)
    }

    /// All entries, in the peer's order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        let mut reader = Reader::new(self.entries);
        // `parse` walked them already, so this does not end early.
        (0..self.entry_count).map_while(move |_| read_entry(&mut reader).ok())
    }

    /// What an Error says; `None` for other kinds.
    pub fn error(&self) -> Option<ErrorBody<'a>> {
        match self.preamble {
            Preamble::Error(error) => Some(error),
            _ => None,
        }
    }

    /// What a Transfer claims to have settled, in a unit agreed out of band; `None` for other
    /// kinds.
    pub fn amount(&self) -> Option<u64> {
        match self.preamble {
            Preamble::Transfer(amount) => Some(amount),
            _ => None,
        }
    }
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Result<Entry<'a>, OerError> {
    Ok(Entry {
        name: reader.read_var_octets()?,
        content_type: reader.read_u8()?,
        data: reader.read_var_octets()?,
    })
}

/// Bytes of the frame that carries an ILP packet of `packet_len` bytes, without the WebSocket head.
pub const fn ilp_frame_size(packet_len: usize) -> usize {
    let body_len = ilp_body_size(packet_len);
    HEAD_BYTES + oer::length_size(body_len) + body_len
}

const fn ilp_body_size(packet_len: usize) -> usize {
    ILP_ONLY.len() + oer::length_size(packet_len) + packet_len
}

/// Appends a frame with the one entry `ilp`: a Message for a Prepare, a Response for a Fulfill or
/// Reject.
#[inline]
pub fn write_ilp(out: &mut Vec<u8>, kind: FrameKind, request_id: u32, packet: &[u8]) {
    debug_assert!(matches!(kind, FrameKind::Message | FrameKind::Response));
    out.reserve(ilp_frame_size(packet.len()));
    write_frame_head(out, kind, request_id, ilp_body_size(packet.len()));
    out.extend_from_slice(ILP_ONLY);
    oer::write_var_octets(out, packet);
}

/// Appends a Response without entries: the request was understood, or at least not minded.
pub fn write_empty_response(out: &mut Vec<u8>, request_id: u32) {
    write_entries(out, FrameKind::Response, request_id, &[]);
}

/// Appends the frame that opens a client's session. A server that goes by the token alone ignores
/// `username`.
pub fn write_auth(out: &mut Vec<u8>, request_id: u32, username: Option<&str>, token: &str) {
    let text = |name: &'static str, data| Entry {
        name: name.as_bytes(),
        content_type: TEXT_PLAIN,
        data,
    };
    // RFC 23: the entry `auth` comes first and is empty.
    let auth = Entry {
        name: b"auth",
        content_type: OCTET_STREAM,
        data: b"",
    };
    let token = text("auth_token", token.as_bytes());
    match username {
        Some(username) => {
            let username = text("auth_username", username.as_bytes());
            write_entries(out, FrameKind::Message, request_id, &[auth, username, token]);
        }
        None => write_entries(out, FrameKind::Message, request_id, &[auth, token]),
    }
}

/// Appends an Error without entries. Never the answer to a Prepare: some peers would wait for its
/// expiry; a Prepare is refused with a Reject. `code` is three ASCII bytes such as `F00`; `data` at
/// most [`ERROR_DATA_BYTES_MAX`].
pub fn write_error(out: &mut Vec<u8>, request_id: u32, code: &[u8; 3], name: &str, data: &str, at: Timestamp) {
    debug_assert!(data.len() <= ERROR_DATA_BYTES_MAX);
    let triggered_at = at.to_generalized();
    let no_entries = [1, 0];
    let body_len = code.len()
        + var_octets_size(name.as_bytes())
        + var_octets_size(&triggered_at)
        + var_octets_size(data.as_bytes())
        + no_entries.len();
    write_frame_head(out, FrameKind::Error, request_id, body_len);
    out.extend_from_slice(code);
    oer::write_var_octets(out, name.as_bytes());
    oer::write_var_octets(out, &triggered_at);
    oer::write_var_octets(out, data.as_bytes());
    out.extend_from_slice(&no_entries);
}

/// Appends a Message or Response with any entries.
pub fn write_entries(out: &mut Vec<u8>, kind: FrameKind, request_id: u32, entries: &[Entry<'_>]) {
    debug_assert!(matches!(kind, FrameKind::Message | FrameKind::Response));
    debug_assert!(entries.len() <= usize::from(u8::MAX), "a count of one byte");
    let count_size = 2;
    let entries_size: usize = entries
        .iter()
        .map(|entry| var_octets_size(entry.name) + 1 + var_octets_size(entry.data))
        .sum();
    write_frame_head(out, kind, request_id, count_size + entries_size);
    oer::write_var_uint(out, entries.len() as u64);
    for entry in entries {
        oer::write_var_octets(out, entry.name);
        out.push(entry.content_type);
        oer::write_var_octets(out, entry.data);
    }
}

fn var_octets_size(bytes: &[u8]) -> usize {
    oer::length_size(bytes.len()) + bytes.len()
}

#[inline]
fn write_frame_head(out: &mut Vec<u8>, kind: FrameKind, request_id: u32, body_len: usize) {
    let [a, b, c, d] = request_id.to_be_bytes();
    out.extend_from_slice(&[kind as u8, a, b, c, d]);
    oer::write_length(out, body_len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hex;
    use proptest::prelude::*;

    /// (name, content type, data)
    type Entries = &'static [(&'static str, u8, &'static [u8])];

    fn check_entries(frame: &Frame<'_>, expected: Entries) {
        let entries: Vec<_> = frame
            .entries()
            .map(|entry| (std::str::from_utf8(entry.name).unwrap(), entry.content_type, entry.data))
            .collect();
        assert_eq!(entries, expected);
        for (name, _, data) in expected {
            assert_eq!(frame.entry(name), Some(*data));
        }
        assert_eq!(frame.entry("absent"), None);
    }

    const FOUR: Entries = &[
        ("ilp", 0, b""),
        ("foo", 0, b"bar"),
        ("beep", 1, b"boop"),
        ("json", 2, b"{}"),
    ];

    const FOUR_HEX: &str = "010403696c70000003666f6f000362617204626565700104626f6f70046a736f6e02027b7d";

    const ILDCP_REQUEST: &str = "0c460000000000000000323033303031303230333034303536373866687aad\
                                 f862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f29250b7065\
                                 65722e636f6e66696700";

    const FULFILL: &str = "0d21000000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn messages_and_responses() {
        let vectors: [(&str, FrameKind, u32, Entries); 6] = [
            (
                "060000000217010204746573740002ffff0474657874010568656c6c6f",
                FrameKind::Message,
                2,
                &[("test", 0, b"\xff\xff"), ("text", 1, b"hello")],
            ),
            (
                "01000000811b010113736f6d65206f746865722070726f746f636f6c0003aaaaaa",
                FrameKind::Response,
                129,
                &[("some other protocol", 0, b"\xaa\xaa\xaa")],
            ),
            (
                "0600000001360103046175746800000d617574685f757365726e616d6501000a617574\
                 685f746f6b656e01107368685f6974735f615f736563726574",
                FrameKind::Message,
                1,
                &[
                    ("auth", 0, b""),
                    ("auth_username", 1, b""),
                    ("auth_token", 1, b"shh_its_a_secret"),
                ],
            ),
            (
                "0600000001260102046175746800000a617574685f746f6b656e01107368685f697473\
                 5f615f736563726574",
                FrameKind::Message,
                1,
                &[("auth", 0, b""), ("auth_token", 1, b"shh_its_a_secret")],
            ),
            ("0100000001020100", FrameKind::Response, 1, &[]),
            (
                "060000010106010100fd0100",
                FrameKind::Message,
                257,
                &[("", 253, b"\x00")],
            ),
        ];
        for (text, kind, request_id, entries) in vectors {
            let bytes = hex(text);
            let frame = Frame::parse(&bytes).unwrap();
            assert_eq!((frame.kind(), frame.request_id()), (kind, request_id));
            check_entries(&frame, entries);
            assert_eq!((frame.ilp(), frame.ilp_range()), (None, None));
            assert_eq!((frame.error(), frame.amount()), (None, None));
            let mut written = Vec::new();
            write_entries(&mut written, kind, request_id, &frame.entries().collect::<Vec<_>>());
            assert_eq!(written, bytes);
        }
        for (kind, first) in [(FrameKind::Response, "01"), (FrameKind::Message, "06")] {
            let bytes = hex(&format!("{first}0000000125{FOUR_HEX}"));
            let frame = Frame::parse(&bytes).unwrap();
            assert_eq!((frame.kind(), frame.request_id()), (kind, 1));
            check_entries(&frame, FOUR);
            assert_eq!(frame.ilp(), Some(&b""[..]));
        }
    }

    #[test]
    fn errors() {
        let bytes = hex("02000001f52f54303010556e726561636861626c654572726f72133230313830383331\
             3032353332342e3839395a046f6f70730100");
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.kind(), frame.request_id()), (FrameKind::Error, 501));
        let error = frame.error().unwrap();
        assert_eq!(
            (&error.code, error.name, error.data),
            (b"T00", &b"UnreachableError"[..], &b"oops"[..])
        );
        assert_eq!(error.triggered_at.unwrap().to_rfc3339(), "2018-08-31T02:53:24.899Z");
        check_entries(&frame, &[]);
        let mut written = Vec::new();
        write_error(
            &mut written,
            501,
            b"T00",
            "UnreachableError",
            "oops",
            error.triggered_at.unwrap(),
        );
        assert_eq!(written, bytes);

        let head = "02000000014a4c3133096572726f724e616d651332303137303832383138333230302e\
                    3030305a03626f6f";
        let bytes = hex(&format!("{head}{FOUR_HEX}"));
        let frame = Frame::parse(&bytes).unwrap();
        let error = frame.error().unwrap();
        assert_eq!(
            (&error.code, error.name, error.data),
            (b"L13", &b"errorName"[..], &b"boo"[..])
        );
        assert_eq!(error.triggered_at.unwrap().to_rfc3339(), "2017-08-28T18:32:00.000Z");
        check_entries(&frame, FOUR);
        assert_eq!(&bytes[frame.ilp_range().unwrap()], b"");

        // A time that is none leaves the rest readable.
        let bytes = hex("020000000114543030054572726f7203626164046f6f70730100");
        let error = Frame::parse(&bytes).unwrap().error().unwrap();
        assert_eq!((error.triggered_at, error.data), (None, &b"oops"[..]));
    }

    #[test]
    fn transfers() {
        let bytes = hex(&format!("07000000012d0000000000000064{FOUR_HEX}"));
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(
            (frame.kind(), frame.request_id(), frame.amount()),
            (FrameKind::Transfer, 1, Some(100))
        );
        check_entries(&frame, FOUR);
    }

    #[test]
    fn authentication() {
        let mut out = Vec::new();
        write_auth(&mut out, 1, Some(""), "shh_its_a_secret");
        assert_eq!(
            out,
            hex("0600000001360103046175746800000d617574685f757365726e616d6501000a617574\
                 685f746f6b656e01107368685f6974735f615f736563726574")
        );
        out.clear();
        write_auth(&mut out, 1, None, "shh_its_a_secret");
        assert_eq!(
            out,
            hex("0600000001260102046175746800000a617574685f746f6b656e01107368685f697473\
                 5f615f736563726574")
        );
        out.clear();
        write_empty_response(&mut out, 1);
        assert_eq!(out, hex("0100000001020100"));
        out.clear();
        let at = Timestamp::from_millis(1_893_553_445_678);
        write_error(&mut out, 1, b"F00", "NotAcceptedError", "invalid auth_token", at);
        assert_eq!(
            out,
            hex("02000000013d463030104e6f7441636365707465644572726f72133230333030313032\
                 3033303430352e3637385a12696e76616c696420617574685f746f6b656e0100")
        );
    }

    #[test]
    fn packets() {
        for (kind, first, head, packet) in [
            (FrameKind::Message, "06", "0102030450010103696c700048", ILDCP_REQUEST),
            (FrameKind::Response, "01", "0102030450010103696c700048", ILDCP_REQUEST),
            (FrameKind::Response, "01", "010203042b010103696c700023", FULFILL),
            (FrameKind::Message, "06", "010203042b010103696c700023", FULFILL),
        ] {
            let packet = hex(packet);
            let bytes = [hex(first), hex(head), packet.clone()].concat();
            let frame = Frame::parse(&bytes).unwrap();
            assert_eq!((frame.kind(), frame.request_id()), (kind, 0x0102_0304));
            assert_eq!(frame.ilp(), Some(&packet[..]));
            assert_eq!(&bytes[frame.ilp_range().unwrap()], packet);
            assert_eq!(frame.entry("ilp"), Some(&packet[..]));
            let mut written = Vec::new();
            write_ilp(&mut written, kind, 0x0102_0304, &packet);
            assert_eq!(written, bytes);
            assert_eq!(ilp_frame_size(packet.len()), bytes.len());
        }
    }

    #[test]
    fn the_first_ilp_counts_wherever_it_stands() {
        let entry = |name: &'static str, data: &'static [u8]| Entry {
            name: name.as_bytes(),
            content_type: 0,
            data,
        };
        let mut bytes = Vec::new();
        let entries = [entry("custom", b"{}"), entry("ilp", b"first"), entry("ilp", b"second")];
        write_entries(&mut bytes, FrameKind::Message, 3, &entries);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.ilp(), Some(&b"first"[..]));
        assert_eq!(&bytes[frame.ilp_range().unwrap()], b"first");
    }

    #[test]
    fn unreadable() {
        for text in [
            "",
            "0600000001",
            "0600000001012d",
            "060000000100012d",
            "01010000040400",
            "0100000200020000fa86",
            "01010006018484005bff32",
            "06000001010781010101060100",
            "0300000001020100",
            "0400000001020100",
            "0500000001020100",
            "0800000001020100",
            "060000000103010103",
            // The one entry of a packet ends before its data does.
            "060000000109010103696c7000020d",
            "0600000001810200",
        ] {
            assert!(Frame::parse(&hex(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn extra_bytes_and_a_long_count_are_read_but_not_written() {
        let bytes = hex("060000000006020001000100");
        let frame = Frame::parse(&bytes).unwrap();
        check_entries(&frame, &[("", 1, b"")]);
        let mut written = Vec::new();
        write_entries(
            &mut written,
            FrameKind::Message,
            0,
            &frame.entries().collect::<Vec<_>>(),
        );
        assert_eq!(written, hex("0600000000050101000100"));

        // After the frame, after the last entry, and after the only entry.
        for text in [
            "0100000001020100ff",
            "0100000001040100ffff",
            "010000000109010103696c70000141ff",
        ] {
            let bytes = hex(text);
            assert_eq!(Frame::parse(&bytes).unwrap().request_id(), 1);
        }
        assert_eq!(
            Frame::parse(&hex("010000000109010103696c70000141ff")).unwrap().ilp(),
            Some(&b"A"[..])
        );
    }

    proptest! {
        #[test]
        fn round_trip(
            request_id in any::<u32>(),
            is_message in any::<bool>(),
            entries in proptest::collection::vec(
                (
                    "(ilp|auth|[a-z]{0,6})",
                    any::<u8>(),
                    proptest::collection::vec(any::<u8>(), 0..300),
                ),
                0..6,
            ),
        ) {
            let kind = if is_message { FrameKind::Message } else { FrameKind::Response };
            let entries: Vec<_> = entries
                .iter()
                .map(|(name, content_type, data)| Entry {
                    name: name.as_bytes(),
                    content_type: *content_type,
                    data,
                })
                .collect();
            let mut bytes = Vec::new();
            write_entries(&mut bytes, kind, request_id, &entries);
            let frame = Frame::parse(&bytes).unwrap();
            prop_assert_eq!((frame.kind(), frame.request_id()), (kind, request_id));
            prop_assert_eq!(frame.entries().collect::<Vec<_>>(), &entries[..]);
            prop_assert_eq!(frame.ilp(), frame.entry("ilp"));
            if let Some(range) = frame.ilp_range() {
                prop_assert_eq!(&bytes[range], frame.ilp().unwrap());
            }
            for end in 0..bytes.len() {
                prop_assert!(Frame::parse(&bytes[..end]).is_err(), "cut at {}", end);
            }
        }

        #[test]
        fn packets_of_every_size(request_id in any::<u32>(), len in 0..50_000usize) {
            let packet = vec![0x5a; len];
            let mut bytes = Vec::new();
            write_ilp(&mut bytes, FrameKind::Message, request_id, &packet);
            prop_assert_eq!(bytes.len(), ilp_frame_size(len));
            let frame = Frame::parse(&bytes).unwrap();
            prop_assert_eq!(frame.request_id(), request_id);
            prop_assert_eq!(&bytes[frame.ilp_range().unwrap()], &packet[..]);
        }

        #[test]
        fn no_bytes_panic(
            kind in 0..9u8,
            body in proptest::collection::vec(any::<u8>(), 0..60),
            framed in any::<bool>(),
        ) {
            let mut bytes = vec![kind, 0, 0, 0, 1];
            if framed {
                oer::write_length(&mut bytes, body.len());
            }
            bytes.extend_from_slice(&body);
            if let Ok(frame) = Frame::parse(&bytes) {
                prop_assert!(frame.entries().all(|entry| entry.data.len() < bytes.len()));
                prop_assert_eq!(frame.ilp(), frame.ilp_range().map(|range| &bytes[range]));
            }
        }
    }
}
