//! WebSocket without sockets (RFC 6455): frame heads, masks, and both sides of the upgrade
//! handshake.
//!
//! Owns the bytes of a frame and what makes a head a violation. Leaves to others: which messages
//! mean what, putting fragments together and closing (`link`), and reading the client's
//! upgrade request (`wire::http`). No extension is ever negotiated, so a reserved bit is always a
//! violation.
//!
//! Always: a head is checked before anyone waits for its payload, so no peer can announce more than
//! `payload_max`; "not yet" is `Ok(None)` and "wrong" is `Err`; nothing here panics on what a peer
//! sent.

use crate::wire::base64;
use ring::digest;

/// The longest frame head: two bytes, eight of length, four of mask.
pub const HEAD_BYTES_MAX: usize = 14;

/// RFC 6455, section 5.5: a control frame carries at most this many bytes.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// The longest head of a response to our upgrade request. Servers send some 200 bytes; the rest is
/// for proxies that add headers of their own.
pub const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;

/// Header lines in that head.
const RESPONSE_HEADERS_MAX: usize = 64;

/// RFC 6455, section 1.3: appended to the client's key before hashing.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7f;
const LENGTH_IS_U16: u8 = 126;
const LENGTH_IS_U64: u8 = 127;

/// What a frame carries (RFC 6455, section 5.2). The other ten values are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Close, Ping and Pong: short, never fragmented, allowed between the fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Why we close a connection, as the close frame says it (RFC 6455, section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    Normal = 1000,
    GoingAway = 1001,
    ProtocolError = 1002,
    UnsupportedData = 1003,
    InvalidPayload = 1007,
    PolicyViolation = 1008,
    MessageTooBig = 1009,
    InternalError = 1011,
    TryAgainLater = 1013,
}

/// One frame's head. The payload is the `payload_len` bytes after the first `head_len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// This frame ends its message.
    pub fin: bool,
    pub opcode: Opcode,
    /// The key to pass to [`unmask`]; `None` if the payload is plain.
    pub mask: Option<[u8; 4]>,
    pub head_len: usize,
    pub payload_len: usize,
}

/// Reads the head at the start of `bytes`. The payload need not be there yet.
///
/// `Ok(None)`: the head is not complete, read more. `Err`: the peer broke the protocol; close with
/// this code. Violations are a reserved bit or opcode, a fragmented or long control frame, and a
/// length that is not in its shortest form; a payload above `payload_max` is
/// [`CloseCode::MessageTooBig`]. Whether a mask must be there depends on the role and is left to
/// the caller.
#[inline]
pub fn parse_head(bytes: &[u8], payload_max: usize) -> Result<Option<FrameHead>, CloseCode> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & RESERVED_BITS != 0 {
        return Err(CloseCode::ProtocolError);
    }
    let fin = first & FIN != 0;
    let opcode = Opcode::from_bits(first & OPCODE_BITS).ok_or(CloseCode::ProtocolError)?;
    let length = second & LENGTH_BITS;
    if opcode.is_control() && (!fin || usize::from(length) > CONTROL_PAYLOAD_BYTES_MAX) {
        return Err(CloseCode::ProtocolError);
    }
    let (payload_len, rest) = match length {
        LENGTH_IS_U16 => {
            let Some((length, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            let length = u64::from(u16::from_be_bytes(*length));
            if length < u64::from(LENGTH_IS_U16) {
                return Err(CloseCode::ProtocolError);
            }
            (length, rest)
        }
        LENGTH_IS_U64 => {
            let Some((length, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            let length = u64::from_be_bytes(*length);
            if length <= u64::from(u16::MAX) || length > i64::MAX as u64 {
                return Err(CloseCode::ProtocolError);
            }
            (length, rest)
        }
        length => (u64::from(length), rest),
    };
    let payload_len = usize::try_from(payload_len)
        .ok()
        .filter(|payload_len| *payload_len <= payload_max)
        .ok_or(CloseCode::MessageTooBig)?;
    let (mask, rest) = if second & MASKED == 0 {
        (None, rest)
    } else {
        match rest.split_first_chunk() {
            Some((key, rest)) => (Some(*key), rest),
            None => return Ok(None),
        }
    };
    Ok(Some(FrameHead {
        fin,
        opcode,
        mask,
        head_len: bytes.len() - rest.len(),
        payload_len,
    }))
}

/// Removes the mask in place, or applies it: the operation is its own inverse (RFC 6455, section
/// 5.3). `payload` begins where the frame's payload begins, so the first byte meets the first byte
/// of the key.
#[inline]
pub fn unmask(payload: &mut [u8], key: [u8; 4]) {
    // Eight bytes at a time; the compiler makes wider steps of them where the machine has any.
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    // The words before ended at a multiple of the key's length, so the key starts over here.
    for (byte, key) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
}

/// Appends the head of an unfragmented frame; its payload follows. With a `mask` the caller applies
/// it to the payload.
#[inline]
pub fn write_head(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize, mask: Option<[u8; 4]>) {
    debug_assert!(!opcode.is_control() || payload_len <= CONTROL_PAYLOAD_BYTES_MAX);
    let mask_bit = if mask.is_some() { MASKED } else { 0 };
    out.push(FIN | opcode as u8);
    if payload_len < usize::from(LENGTH_IS_U16) {
        out.push(mask_bit | payload_len as u8);
    } else if let Ok(length) = u16::try_from(payload_len) {
        let [high, low] = length.to_be_bytes();
        out.extend_from_slice(&[mask_bit | LENGTH_IS_U16, high, low]);
    } else {
        out.push(mask_bit | LENGTH_IS_U64);
        out.extend_from_slice(&(payload_len as u64).to_be_bytes());
    }
    if let Some(key) = mask {
        out.extend_from_slice(&key);
    }
}

/// Appends a whole control frame.
pub fn write_control(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) {
    debug_assert!(opcode.is_control());
    write_head(out, opcode, payload.len(), mask);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        unmask(&mut out[start..], key);
    }
}

/// Appends a close frame without a reason text: peers show the code alone, and a text would tell a
/// stranger more than we want to.
pub fn write_close(out: &mut Vec<u8>, code: CloseCode, mask: Option<[u8; 4]>) {
    write_control(out, Opcode::Close, &(code as u16).to_be_bytes(), mask);
}

/// Reads a close frame's payload: the code, or `None` if it is empty.
///
/// `Err` for one byte, for a code nobody may send and for a reason that is not UTF-8
/// (RFC 6455, sections 5.5.1 and 7.4).
pub fn parse_close(payload: &[u8]) -> Result<Option<u16>, CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(CloseCode::ProtocolError)
        };
    };
    let code = u16::from_be_bytes(*code);
    // 1004 is undefined; 1005, 1006 and 1015 report what no frame said; below 1000 and 1016..=2999
    // are unassigned.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(CloseCode::ProtocolError);
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(CloseCode::InvalidPayload);
    }
    Ok(Some(code))
}

/// The `Sec-WebSocket-Accept` that answers `key` (RFC 6455, section 4.2.2).
pub fn accept_key(key: &str) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(ACCEPT_GUID);
    base64::encode(hash.finish().as_ref())
}

/// Whether a client's `Sec-WebSocket-Key` will do: base64 of 1 to 16 bytes.
///
/// RFC 6455 asks for exactly 16, and says the server need not look. The key that many curl examples
/// carry, base64 of `Hello, world!`, has 13; it proves as much as any other.
pub fn is_valid_key(key: &str) -> bool {
    key.len() <= 24 && base64::decode(key).is_some_and(|bytes| matches!(bytes.len(), 1..=16))
}

/// Appends the answer to an upgrade request whose key [`is_valid_key`]. `subprotocol` is one that
/// the client offered.
pub fn write_server_handshake(out: &mut Vec<u8>, key: &str, subprotocol: Option<&str>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept_key(key).as_bytes());
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Why a server's answer to our upgrade request does not open a WebSocket. None of these is worth
/// the same connection again; a status of 5xx or 429 may be worth a later one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeRefused {
    #[error("the server answered the upgrade with status {status}")]
    Status { status: u16 },
    #[error("the server's answer to the upgrade is not HTTP/1.1")]
    Malformed,
    #[error("the head of the server's answer is longer than {RESPONSE_HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    #[error("the server's answer lacks a fitting {header} header")]
    Missing { header: &'static str },
    #[error("the server chose something in {header} that we did not offer")]
    NotOffered { header: &'static str },
}

/// The client's side of the upgrade: one request, one response head.
///
/// Call `write_request` once, then `check_response` with all that has been received so far until it
/// says more than "not yet".
#[derive(Debug)]
pub struct ClientHandshake {
    key: String,
    /// Bytes of the response in which its end was searched for in vain: they are not searched
    /// again.
    searched: usize,
}

impl ClientHandshake {
    /// `random` must differ from connection to connection, so that no cache can answer for the
    /// server.
    pub fn new(random: [u8; 16]) -> Self {
        Self {
            key: base64::encode(&random),
            searched: 0,
        }
    }

    /// Appends the request. `host` is the authority (`name` or `name:port`), `path` the path and
    /// query; both come from a parsed URL, so they hold no space and no line end.
    ///
    /// No subprotocol is offered: of the BTP servers in use some know `btp`, some none, and all
    /// take a client without.
    pub fn write_request(&self, out: &mut Vec<u8>, host: &str, path: &str) {
        debug_assert!(
            [host, path]
                .iter()
                .all(|part| part.bytes().all(|byte| byte.is_ascii_graphic()))
        );
        let path = if path.is_empty() { "/" } else { path };
        for part in [
            "GET ",
            path,
            " HTTP/1.1\r\nHost: ",
            host,
            "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ",
            &self.key,
            "\r\n\r\n",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    /// Looks at all bytes received so far. `Ok(None)`: the head is not complete. `Ok(Some(n))`: the
    /// connection is a WebSocket, whose first frame begins at byte `n`. `Err`: it is none; close
    /// it.
    pub fn check_response(&mut self, bytes: &[u8]) -> Result<Option<usize>, HandshakeRefused> {
        const END: &[u8] = b"\r\n\r\n";
        let searchable = &bytes[..bytes.len().min(RESPONSE_HEAD_BYTES_MAX)];
        // The end may lie across the border of what was searched before.
        let start = self.searched.saturating_sub(END.len() - 1).min(searchable.len());
        let Some(end) = searchable[start..].windows(END.len()).position(|window| window == END) else {
            self.searched = searchable.len();
            return if bytes.len() < RESPONSE_HEAD_BYTES_MAX {
                Ok(None)
            } else {
                Err(HandshakeRefused::HeadTooLong)
            };
        };
        let head = &searchable[..start + end + END.len()];
        let mut headers = [httparse::EMPTY_HEADER; RESPONSE_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(head) {
            // A head that ends earlier ended with bare line feeds.
            Ok(httparse::Status::Complete(consumed)) if consumed == head.len() => {}
            _ => return Err(HandshakeRefused::Malformed),
        }
        self.check_head(&response)?;
        Ok(Some(head.len()))
    }

    /// RFC 6455, section 4.1, the list after "validate the server's response".
    fn check_head(&self, response: &httparse::Response<'_, '_>) -> Result<(), HandshakeRefused> {
        let status = response.code.unwrap_or_default();
        if status != 101 {
            return Err(HandshakeRefused::Status { status });
        }
        if response.version != Some(1) {
            return Err(HandshakeRefused::Malformed);
        }
        let values = |name: &'static str| {
            response
                .headers
                .iter()
                .filter(move |header| header.name.eq_ignore_ascii_case(name))
                .filter_map(|header| std::str::from_utf8(header.value).ok())
        };
        let lists = |name, token: &str| {
            values(name)
                .flat_map(|value| value.split(','))
                .any(|item| item.trim().eq_ignore_ascii_case(token))
        };
        if !lists("Upgrade", "websocket") {
            return Err(HandshakeRefused::Missing { header: "Upgrade" });
        }
        if !lists("Connection", "upgrade") {
            return Err(HandshakeRefused::Missing { header: "Connection" });
        }
        let mut accepts = values("Sec-WebSocket-Accept");
        if accepts.next().map(str::trim) != Some(accept_key(&self.key).as_str()) || accepts.next().is_some() {
            return Err(HandshakeRefused::Missing {
                header: "Sec-WebSocket-Accept",
            });
        }
        for header in ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"] {
            if values(header).any(|value| !value.trim().is_empty()) {
                return Err(HandshakeRefused::NotOffered { header });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Cursor, Read, Write};
    use std::os::unix::net::UnixStream;
    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::OpCode as OracleOpcode;

    const PAYLOAD_MAX: usize = 65_536;

    fn head(bytes: &[u8]) -> Result<Option<FrameHead>, CloseCode> {
        parse_head(bytes, PAYLOAD_MAX)
    }

    #[test]
    fn heads() {
        // RFC 6455, section 5.7, and the borders of the length forms.
        for (bytes, fin, opcode, masked, payload_len) in [
            (&[0x81, 0x05][..], true, Opcode::Text, false, 5),
            (&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d], true, Opcode::Text, true, 5),
            (&[0x01, 0x03], false, Opcode::Text, false, 3),
            (&[0x80, 0x02], true, Opcode::Continuation, false, 2),
            (&[0x89, 0x05], true, Opcode::Ping, false, 5),
            (&[0x8a, 0x85, 1, 2, 3, 4], true, Opcode::Pong, true, 5),
            (&[0x88, 0x7d], true, Opcode::Close, false, 125),
            (&[0x82, 0x7d], true, Opcode::Binary, false, 125),
            (&[0x82, 0x7e, 0x00, 0x7e], true, Opcode::Binary, false, 126),
            (&[0x82, 0x7e, 0xff, 0xff], true, Opcode::Binary, false, 65_535),
            (
                &[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4],
                true,
                Opcode::Binary,
                true,
                65_536,
            ),
        ] {
            let parsed = head(bytes).unwrap().unwrap();
            assert_eq!(
                (parsed.fin, parsed.opcode, parsed.payload_len),
                (fin, opcode, payload_len)
            );
            assert_eq!((parsed.mask.is_some(), parsed.head_len), (masked, bytes.len()));
            for end in 0..bytes.len() {
                assert_eq!(head(&bytes[..end]), Ok(None), "{:02x?}", &bytes[..end]);
            }
            if fin {
                let mut written = Vec::new();
                write_head(&mut written, opcode, payload_len, parsed.mask);
                assert_eq!(written, bytes);
            }
        }
    }

    #[test]
    fn violations() {
        for (bytes, code) in [
            (&[0xc2, 0x00][..], CloseCode::ProtocolError),
            (&[0xa2, 0x00], CloseCode::ProtocolError),
            (&[0x92, 0x00], CloseCode::ProtocolError),
            (&[0x83, 0x00], CloseCode::ProtocolError),
            (&[0x87, 0x00], CloseCode::ProtocolError),
            (&[0x8b, 0x00], CloseCode::ProtocolError),
            (&[0x8f, 0x00], CloseCode::ProtocolError),
            (&[0x09, 0x00], CloseCode::ProtocolError),
            (&[0x08, 0x00], CloseCode::ProtocolError),
            (&[0x89, 0x7e], CloseCode::ProtocolError),
            (&[0x88, 0xff], CloseCode::ProtocolError),
            (&[0x82, 0x7e, 0x00, 0x7d], CloseCode::ProtocolError),
            (&[0x82, 0x7f, 0, 0, 0, 0, 0, 0, 0xff, 0xff], CloseCode::ProtocolError),
            (&[0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0], CloseCode::ProtocolError),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1], CloseCode::MessageTooBig),
            (
                &[0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                CloseCode::MessageTooBig,
            ),
        ] {
            assert_eq!(head(bytes), Err(code), "{bytes:02x?}");
        }
    }

    #[test]
    fn close_frames() {
        let mut out = Vec::new();
        write_close(&mut out, CloseCode::ProtocolError, None);
        assert_eq!(out, [0x88, 0x02, 0x03, 0xea]);
        out.clear();
        write_close(&mut out, CloseCode::ProtocolError, Some([0xff, 0, 0, 0]));
        assert_eq!(out, [0x88, 0x82, 0xff, 0, 0, 0, 0xfc, 0xea]);

        assert_eq!(parse_close(b""), Ok(None));
        assert_eq!(parse_close(b"\x03\xe8"), Ok(Some(1000)));
        assert_eq!(parse_close(b"\x0b\xb8bye"), Ok(Some(3000)));
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
            assert_eq!(
                parse_close(&code.to_be_bytes()),
                Err(CloseCode::ProtocolError),
                "{code}"
            );
        }
        assert_eq!(parse_close(b"\x03"), Err(CloseCode::ProtocolError));
        assert_eq!(parse_close(b"\x03\xe8\xc3"), Err(CloseCode::InvalidPayload));
    }

    #[test]
    fn keys() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for key in ["dGhlIHNhbXBsZSBub25jZQ==", "SGVsbG8sIHdvcmxkIQ=="] {
            assert!(is_valid_key(key), "{key}");
        }
        for key in ["", "no base64", "dGhlIHNhbXBsZSBub25jZTE=", &"A".repeat(5_000)] {
            assert!(!is_valid_key(key), "{key}");
        }
    }

    fn answer_to(handshake: &ClientHandshake, head: &str) -> String {
        head.replace("ACCEPT", &accept_key(&handshake.key))
            .replace('\n', "\r\n")
    }

    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\nUpgrade: WebSocket\n\
                        Connection: keep-alive, UPGRADE\n\
                        Sec-WebSocket-Accept: ACCEPT\n\n";

    #[test]
    fn responses_to_our_upgrade() {
        let missing = |header| Err(HandshakeRefused::Missing { header });
        let long = GOOD.replace(
            "Upgrade:",
            &format!("X: {}\nUpgrade:", "x".repeat(RESPONSE_HEAD_BYTES_MAX)),
        );
        let other_key = GOOD.replace("ACCEPT", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let cases = [
            (GOOD.to_owned(), Ok(Some(()))),
            (
                GOOD.replace("HTTP/1.1 101", "HTTP/1.1 401"),
                Err(HandshakeRefused::Status { status: 401 }),
            ),
            (GOOD.replace("HTTP/1.1", "HTTP/1.0"), Err(HandshakeRefused::Malformed)),
            (GOOD.replace("HTTP/1.1", "SSH-2.0"), Err(HandshakeRefused::Malformed)),
            (GOOD.replace("Upgrade: WebSocket\n", ""), missing("Upgrade")),
            (GOOD.replace("WebSocket\n", "h2c\n"), missing("Upgrade")),
            (GOOD.replace("UPGRADE", "close"), missing("Connection")),
            (other_key, missing("Sec-WebSocket-Accept")),
            (
                GOOD.replace("Sec-WebSocket-Accept: ACCEPT\n", ""),
                missing("Sec-WebSocket-Accept"),
            ),
            (
                GOOD.replace("Upgrade:", "Sec-WebSocket-Extensions: permessage-deflate\nUpgrade:"),
                Err(HandshakeRefused::NotOffered {
                    header: "Sec-WebSocket-Extensions",
                }),
            ),
            (
                GOOD.replace("Upgrade:", "Sec-WebSocket-Protocol: chat\nUpgrade:"),
                Err(HandshakeRefused::NotOffered {
                    header: "Sec-WebSocket-Protocol",
                }),
            ),
            (long, Err(HandshakeRefused::HeadTooLong)),
        ];
        for (head, expected) in cases {
            let mut handshake = ClientHandshake::new([7; 16]);
            let head = answer_to(&handshake, &head);
            // Byte by byte, with the first frame behind it.
            let bytes = [head.as_bytes(), b"\x82\x01x"].concat();
            let answer = (0..=bytes.len())
                .map(|end| handshake.check_response(&bytes[..end]))
                .find(|a| *a != Ok(None));
            let expected = expected.map(|accepted: Option<()>| accepted.map(|()| head.len()));
            assert_eq!(answer, Some(expected), "{head}");
            // And all at once.
            let mut handshake = ClientHandshake::new([7; 16]);
            assert_eq!(Some(handshake.check_response(&bytes)), answer);
        }
        let mut handshake = ClientHandshake::new([7; 16]);
        let bare = answer_to(&handshake, GOOD).replace("\r\n\r\n", "\n\n") + "\r\n\r\n";
        assert_eq!(
            handshake.check_response(bare.as_bytes()),
            Err(HandshakeRefused::Malformed)
        );
    }

    /// A connection whose other end we play ourselves, one step at a time.
    struct Script {
        received: Cursor<Vec<u8>>,
        sent: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.received.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.sent.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn another_implementation_accepts_our_request() {
        let mut handshake = ClientHandshake::new(*b"0123456789abcdef");
        let mut request = Vec::new();
        handshake.write_request(&mut request, "127.0.0.1:7768", "/accounts/bob/ilp/btp?x=1");
        assert!(request.starts_with(b"GET /accounts/bob/ilp/btp?x=1 HTTP/1.1\r\nHost: 127.0.0.1:7768\r\n"));
        let script = Script {
            received: Cursor::new(request),
            sent: Vec::new(),
        };
        let server = tungstenite::accept(script).unwrap();
        let response = &server.get_ref().sent;
        assert_eq!(handshake.check_response(response), Ok(Some(response.len())));
    }

    #[test]
    fn another_implementation_accepts_our_response() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let client = std::thread::spawn(move || {
            tungstenite::client("ws://hub.example/ilp/btp", theirs)
                .map(drop)
                .is_ok()
        });
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            ours.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap();
        let (_, rest) = request.split_once("Sec-WebSocket-Key: ").unwrap();
        let (key, _) = rest.split_once("\r\n").unwrap();
        assert!(is_valid_key(key));
        let mut response = Vec::new();
        write_server_handshake(&mut response, key, None);
        ours.write_all(&response).unwrap();
        assert!(client.join().unwrap());

        response.clear();
        write_server_handshake(&mut response, key, Some("btp"));
        assert!(response.ends_with(b"=\r\nSec-WebSocket-Protocol: btp\r\n\r\n"));
    }

    fn opcode_bits(opcode: OracleOpcode) -> u8 {
        opcode.into()
    }

    proptest! {
        #[test]
        fn masking_is_byte_by_byte(
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            key in any::<[u8; 4]>(),
        ) {
            let mut masked = payload.clone();
            unmask(&mut masked, key);
            for (at, byte) in masked.iter().enumerate() {
                prop_assert_eq!(*byte, payload[at] ^ key[at % 4]);
            }
            unmask(&mut masked, key);
            prop_assert_eq!(masked, payload);
        }

        #[test]
        fn another_implementation_reads_the_same_head(
            first in any::<u8>(),
            second in any::<u8>(),
            rest in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..14),
        ) {
            let bytes = [&[first, second][..], &rest].concat();
            let theirs = FrameHeader::parse(&mut Cursor::new(&bytes));
            match head(&bytes) {
                Ok(Some(ours)) => {
                    let (theirs, payload_len) = theirs.unwrap().expect("a whole head");
                    prop_assert_eq!(ours.fin, theirs.is_final);
                    prop_assert_eq!(ours.opcode as u8, opcode_bits(theirs.opcode));
                    prop_assert_eq!(ours.mask, theirs.mask);
                    prop_assert_eq!(ours.payload_len as u64, payload_len);
                    prop_assert_eq!(ours.head_len, theirs.len(payload_len));
                }
                Ok(None) => prop_assert!(matches!(theirs, Ok(None))),
                // They leave most checks to a later step.
                Err(_) => {}
            }
        }

        #[test]
        fn no_response_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut handshake = ClientHandshake::new([7; 16]);
            prop_assert!(!matches!(handshake.check_response(&bytes), Ok(Some(_))));
            let close = parse_close(&bytes);
            prop_assert!(close.is_err() || bytes.len() != 1);
        }
    }
}
