//! BTP 2.0 (RFC 23) in WebSocket frames (RFC 6455), as much of both as a load needs: one frame per
//! message, ILP packets in the entry `ilp`, authentication, pings.
//! Owns the bytes; leaves sockets and the meaning of packets to others. A peer that fragments its
//! messages is an error here: no peer of a load test does, and reassembly would be paid per packet.

use crate::packet::{push_length, take_octets};

pub const RESPONSE: u8 = 1;
pub const ERROR: u8 = 2;
pub const MESSAGE: u8 = 6;

pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Largest payload taken: no ILP packet in a BTP frame is longer.
pub const PAYLOAD_BYTES_MAX: usize = 65_536;

/// A WebSocket frame whose payload is at `payload` in the bytes given, unmasked.
pub struct Frame {
    pub opcode: u8,
    pub payload: std::ops::Range<usize>,
}

/// Reads a frame off the front and unmasks it in place. `Ok(None)`: the rest has not arrived.
pub fn read_frame(bytes: &mut [u8]) -> Result<Option<Frame>, &'static str> {
    let [first, second, ..] = *bytes else {
        return Ok(None);
    };
    if first & 0xf0 != 0x80 {
        return Err("a fragmented or extended WebSocket frame");
    }
    let (length, mut start) = match second & 0x7f {
        126 => match bytes.get(2..4) {
            Some(digits) => (usize::from(digits[0]) << 8 | usize::from(digits[1]), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10) {
            Some([0, 0, 0, 0, 0, digits @ ..]) => {
                (digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit)), 10)
            }
            Some(_) => return Err("a WebSocket frame of more than 16 MiB"),
            None => return Ok(None),
        },
        length => (usize::from(length), 2),
    };
    if length > PAYLOAD_BYTES_MAX {
        return Err("a WebSocket frame that is too long");
    }
    let key = if second & 0x80 == 0 {
        None
    } else {
        let Some(key) = bytes.get(start..start + 4) else {
            return Ok(None);
        };
        start += 4;
        key.first_chunk().copied()
    };
    let Some(payload) = bytes.get_mut(start..start + length) else {
        return Ok(None);
    };
    if let Some(key) = key {
        mask(payload, key);
    }
    Ok(Some(Frame {
        opcode: first & 0x0f,
        payload: start..start + length,
    }))
}

/// Applies a mask, or takes it off again. Eight bytes at a time: a frame is masked per packet.
fn mask(payload: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends a frame; `key` is the mask every frame of a client must have, and no frame of a server.
pub fn push_frame(out: &mut Vec<u8>, opcode: u8, key: Option<[u8; 4]>, length: usize, fill: impl FnOnce(&mut Vec<u8>)) {
    let masked = if key.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    if length < 126 {
        out.push(masked | length as u8);
    } else {
        assert!(length < 0x1_0000, "a message of our own fits one frame");
        out.extend_from_slice(&[masked | 126, (length >> 8) as u8, length as u8]);
    }
    out.extend_from_slice(key.as_ref().map_or(&[], |key| key.as_slice()));
    let start = out.len();
    fill(out);
    assert_eq!(out.len() - start, length, "a frame holds what it declares");
    if let Some(key) = key {
        mask(&mut out[start..], key);
    }
}

/// Appends a BTP message holding one ILP packet of `packet_bytes`, written by `fill`.
pub fn push_packet(
    out: &mut Vec<u8>,
    key: Option<[u8; 4]>,
    kind: u8,
    request_id: u32,
    packet_bytes: usize,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    const ENTRY: &[u8] = b"\x01\x01\x03ilp\x00"; // one entry, its name, application/octet-stream
    let body = ENTRY.len() + length_bytes(packet_bytes) + packet_bytes;
    push_frame(out, BINARY, key, 5 + length_bytes(body) + body, |out| {
        out.push(kind);
        out.extend_from_slice(&request_id.to_be_bytes());
        push_length(out, body);
        out.extend_from_slice(ENTRY);
        push_length(out, packet_bytes);
        fill(out);
    });
}

/// Appends the first message of a client: who it is.
pub fn push_auth(out: &mut Vec<u8>, key: [u8; 4], request_id: u32, token: &str) {
    let mut body = b"\x01\x02\x04auth\x00\x00\x0aauth_token\x01".to_vec();
    push_length(&mut body, token.len());
    body.extend_from_slice(token.as_bytes());
    let length = 5 + length_bytes(body.len()) + body.len();
    push_frame(out, BINARY, Some(key), length, |out| {
        out.push(MESSAGE);
        out.extend_from_slice(&request_id.to_be_bytes());
        push_length(out, body.len());
        out.extend_from_slice(&body);
    });
}

/// Appends a server's consent to a request: a RESPONSE without entries.
pub fn push_accepted(out: &mut Vec<u8>, request_id: u32) {
    push_frame(out, BINARY, None, 8, |out| {
        out.push(RESPONSE);
        out.extend_from_slice(&request_id.to_be_bytes());
        out.extend_from_slice(&[2, 1, 0]);
    });
}

fn length_bytes(length: usize) -> usize {
    match length {
        0..0x80 => 1,
        0x80..0x100 => 2,
        _ => 3,
    }
}

/// A BTP message: its type, its number, and the ILP packet in it, if any.
pub struct Message<'a> {
    pub kind: u8,
    pub request_id: u32,
    pub packet: Option<&'a [u8]>,
}

/// Reads a whole message. `None` if it is malformed. The entries of an ERROR are not looked at.
pub fn parse(payload: &[u8]) -> Option<Message<'_>> {
    let (head, body) = payload.split_at_checked(5)?;
    let request_id = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let (body, _) = take_octets(body)?;
    let mut message = Message {
        kind: head[0],
        request_id,
        packet: None,
    };
    if message.kind == ERROR {
        return Some(message);
    }
    let (count, mut entries) = take_octets(body)?;
    let &[count] = count else { return None };
    for _ in 0..count {
        let (name, rest) = take_octets(entries)?;
        let (_content_type, rest) = rest.split_first()?;
        let (data, rest) = take_octets(rest)?;
        if name == b"ilp" && message.packet.is_none() {
            message.packet = Some(data);
        }
        entries = rest;
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_way_there_and_back() {
        for (key, length) in [
            (None, 35),
            (Some([1, 2, 3, 4]), 105),
            (Some([9, 8, 7, 6]), 150),
            (None, 300),
        ] {
            let packet: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut wire = Vec::new();
            push_packet(&mut wire, key, MESSAGE, 0x0102_0304, packet.len(), |out| {
                out.extend_from_slice(&packet)
            });
            for cut in 0..wire.len() {
                assert!(read_frame(&mut wire[..cut].to_vec()).unwrap().is_none(), "{cut}");
            }
            let frame = read_frame(&mut wire).unwrap().unwrap();
            assert_eq!((frame.opcode, frame.payload.end), (BINARY, wire.len()));
            let message = parse(&wire[frame.payload]).unwrap();
            assert_eq!((message.kind, message.request_id), (MESSAGE, 0x0102_0304));
            assert_eq!(message.packet, Some(&packet[..]));
        }
    }

    #[test]
    fn authentication_has_the_bytes_other_clients_send() {
        let mut wire = Vec::new();
        push_auth(&mut wire, [5; 4], 1, "shh_its_a_secret");
        let frame = read_frame(&mut wire).unwrap().unwrap();
        assert_eq!(
            &wire[frame.payload],
            b"\x06\0\0\0\x01\x26\x01\x02\x04auth\0\0\x0aauth_token\x01\x10shh_its_a_secret"
        );
        let mut wire = Vec::new();
        push_accepted(&mut wire, 1);
        let frame = read_frame(&mut wire).unwrap().unwrap();
        let message = parse(&wire[frame.payload]).unwrap();
        assert_eq!((message.kind, message.request_id), (RESPONSE, 1));
        assert!(message.packet.is_none());
    }

    #[test]
    fn an_error_and_a_broken_message() {
        let error = b"\x02\0\0\x01\xf5\x2fT00\x10UnreachableError\x1320180831025324.899Z\x04oops\x01\0";
        assert_eq!(parse(error).unwrap().kind, ERROR);
        assert!(parse(b"\x06\0\0\0\x01\0\x01\x2d").is_none());
        assert!(parse(b"\x01\x01\0\0\x04\x04\0").is_none());
        assert!(read_frame(&mut [0x02, 0x01, 0x00]).is_err());
        assert!(read_frame(&mut [0x82, 0x7f, 0, 0, 0, 0, 1, 0, 0, 0]).is_err());
    }
}
