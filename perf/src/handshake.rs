//! How two BTP ends come together before a load: TCP, the WebSocket upgrade, the auth message.
//! The receiver either connects to the connector as another account, or listens, so that a plain TCP
//! relay can stand in the middle and sender and receiver speak with each other through it.
//! Everything here blocks, for a bounded time, and is over before the clock of a run matters.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use ring::digest;

use crate::btp;
use crate::http::{self, field};
use crate::packet::next_random;
use crate::stream::Stream;

/// Input of one connection. Large: everything that is there comes with one read.
const INPUT_BYTES: usize = 512 * 1024;

/// A BTP server to connect to.
pub struct Server {
    pub address: SocketAddr,
    pub path: String,
    pub token: String,
}

/// How the receiver takes part.
pub enum Receiver {
    /// As a client of the connector under test.
    Connects(Server),
    /// As a server, dialled by the relay under test.
    Listens(SocketAddr),
}

/// One end: a connection, and the masks it must use if it is a client.
pub struct End {
    pub stream: Stream,
    /// The source of masks; `None` for a server, which sends none.
    pub dice: Option<u64>,
}

impl End {
    /// The mask of the next frame. Takes the source alone, so that the stream can be borrowed beside it.
    pub fn key(dice: &mut Option<u64>) -> Option<[u8; 4]> {
        let dice = dice.as_mut()?;
        Some((next_random(dice) as u32).to_ne_bytes())
    }
}

/// Connects and authenticates both ends, blocking; sender first in the answer. Errors say which end.
pub fn open(target: &Server, receiver: &Receiver) -> Result<(End, End), String> {
    let dial = |server: &Server| connect(server).map_err(|error| format!("BTP to {}: {error}", server.address));
    match receiver {
        Receiver::Connects(server) => Ok((dial(target)?, dial(server)?)),
        Receiver::Listens(address) => {
            let listener = TcpListener::bind(address).map_err(|error| format!("receiver on {address}: {error}"))?;
            // Through a relay each handshake waits for the other.
            std::thread::scope(|scope| {
                let accepted = scope.spawn(|| take(&listener));
                let sender = dial(target);
                // Wakes the other thread up if nobody has reached it, or is one too many.
                drop(TcpStream::connect(address));
                let receiver = match accepted.join() {
                    Ok(receiver) => receiver.map_err(|error| format!("receiver: {error}")),
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                Ok((sender?, receiver?))
            })
        }
    }
}

/// Connects and authenticates, blocking.
fn connect(server: &Server) -> io::Result<End> {
    let mut stream = Stream::new(TcpStream::connect(server.address)?, INPUT_BYTES)?;
    stream.output().extend_from_slice(
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ==\r\n\
             Sec-WebSocket-Protocol: btp\r\n\r\n",
            server.path, server.address
        )
        .as_bytes(),
    );
    stream.flush()?;
    let (status, head) = read_head(&mut stream)?;
    if status != 101 {
        return Err(io::Error::other(format!("refused with HTTP status {status}")));
    }
    stream.consume(head);
    btp::push_auth(stream.output(), [0x5a, 0xc3, 0x3c, 0xa5], 1, &server.token);
    stream.flush()?;
    let (opcode, payload) = read_frame(&mut stream)?;
    let accepted = btp::parse(&payload).is_some_and(|message| message.kind == btp::RESPONSE && message.request_id == 1);
    if opcode != btp::BINARY || !accepted {
        return Err(io::Error::other("the token was refused"));
    }
    Ok(End {
        stream,
        dice: Some(0x2545_f491_4f6c_dd1d),
    })
}

/// Accepts one connection that upgrades and authenticates, with any token, blocking.
fn take(listener: &TcpListener) -> io::Result<End> {
    let (socket, _) = listener.accept()?;
    let mut stream = Stream::new(socket, INPUT_BYTES)?;
    let (_, head) = read_head(&mut stream)?;
    let key = stream.input()[..head]
        .split(|&byte| byte == b'\n')
        .find_map(|line| field(line, b"sec-websocket-key"))
        .ok_or_else(|| io::Error::other("no WebSocket upgrade"))?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: btp\r\n\r\n",
        accept_key(key)
    );
    stream.consume(head);
    stream.output().extend_from_slice(answer.as_bytes());
    stream.flush()?;
    let (_, payload) = read_frame(&mut stream)?;
    let message = btp::parse(&payload).ok_or_else(|| io::Error::other("not BTP"))?;
    btp::push_accepted(stream.output(), message.request_id);
    stream.flush()?;
    Ok(End { stream, dice: None })
}

/// Blocks until an HTTP head is there: its status, and where it ends.
fn read_head(stream: &mut Stream) -> io::Result<(u16, usize)> {
    loop {
        if let Some(message) = http::head(stream.input()).map_err(io::Error::other)? {
            return Ok((message.status, message.body_start));
        }
        stream.fill()?;
    }
}

/// Blocks until a frame is there: its opcode and payload.
fn read_frame(stream: &mut Stream) -> io::Result<(u8, Vec<u8>)> {
    loop {
        let (input, _) = stream.both();
        if let Some(frame) = btp::read_frame(input).map_err(io::Error::other)? {
            let payload = input[frame.payload.clone()].to_vec();
            stream.consume(frame.payload.end);
            return Ok((frame.opcode, payload));
        }
        stream.fill()?;
    }
}

/// The answer to a `Sec-WebSocket-Key` (RFC 6455, section 4.2.2).
fn accept_key(key: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut text = String::new();
    for group in context.finish().as_ref().chunks(3) {
        let bits = group
            .iter()
            .chain([&0; 2])
            .take(3)
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        for at in 0..4 {
            match at <= group.len() {
                true => text.push(char::from(ALPHABET[bits >> (18 - 6 * at) & 63])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upgrade_is_confirmed_as_in_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
