//! A WebSocket client that can break every rule of RFC 6455: the caller chooses each byte.

use super::btp_peer::Frame;
use super::http::Connection;
use super::node::Node;

/// What asks for a WebSocket. The key is that of RFC 6455, section 1.3.
pub const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A WebSocket whose bytes we write ourselves.
pub struct RawWebSocket(pub Connection);

impl RawWebSocket {
    /// Upgraded, not authenticated.
    pub fn open(node: &Node) -> Self {
        let mut connection = node.connection();
        let answer = connection.request("GET", "/ilp/btp", &UPGRADE, b"").expect("an answer");
        assert_eq!(answer.status, 101);
        Self(connection)
    }

    /// Authenticated as the account `mallory`.
    pub fn authenticated(node: &Node) -> Self {
        let mut socket = Self::open(node);
        socket.send_frame(0x82, &Frame::auth(1, Some("mallory"), "mallory-btp").encode());
        assert_eq!(socket.frame().map(|(first, _)| first), Some(0x82));
        socket
    }

    /// A masked frame with any first byte, its length as short as it may be.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..=125 => bytes.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let key = [0x5a, 0x01, 0xff, 0x33];
        bytes.extend_from_slice(&key);
        bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        self.send(&bytes);
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // The node may have closed already, which the reading side finds out.
        let _ = self.0.send(bytes);
    }

    /// First byte and payload of the node's next frame; `None` when the connection has ended.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let head = self.0.take(2).ok()?;
        let length = match head[1] {
            length @ 0..=125 => usize::from(length),
            126 => usize::from(u16::from_be_bytes(self.0.take(2).ok()?.try_into().ok()?)),
            _ => panic!("the node masks its frames or sends more than a packet needs: {head:02x?}"),
        };
        Some((head[0], self.0.take(length).ok()?))
    }

    /// The code of the close frame that comes next; 0 if the connection ends without.
    pub fn close_code(&mut self) -> u16 {
        match self.frame() {
            Some((0x88, payload)) if payload.len() >= 2 => u16::from_be_bytes([payload[0], payload[1]]),
            Some((first, payload)) => {
                panic!("a frame {first:02x} {payload:02x?} instead of a close")
            }
            None => 0,
        }
    }
}
