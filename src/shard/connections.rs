//! Which socket, which link, which account: the connections of one shard, and when each must have said something.

use std::sync::Arc;

use crate::ledger::{Account, AccountId};
use crate::link::btp::BtpLink;
use crate::link::http::{Answers, HttpClient, HttpServer};
use crate::link::subscriber::Subscriber;
use crate::net::SocketId;
use crate::pipeline::in_flight::RequestId;
use crate::wire::websocket::ClientHandshake;

use super::control::{BodySource, Port, Subscription};

/// One connection of this shard.
pub struct Connection {
    pub link: Link,
    /// Bytes received and not consumed yet: the beginning of something, or what waits for its turn.
    pub inbox: Vec<u8>,
    /// It has moved once; it does not move again.
    pub moved: bool,
    /// It moves to this shard as soon as everything is sent.
    pub moving_to: Option<u16>,
    /// Reception is paused, because the peer does not read what we send.
    pub paused: bool,
    /// The peer has said everything it will say.
    pub finished: bool,
}

impl Connection {
    pub fn new(link: Link) -> Self {
        Self {
            link,
            inbox: Vec::new(),
            moved: false,
            moving_to: None,
            paused: false,
            finished: false,
        }
    }
}

/// What speaks over a connection.
pub enum Link {
    /// A peer's or operator's HTTP requests.
    HttpServer(HttpServing),
    /// BTP, in either role, from the end of the WebSocket handshake on.
    Btp(BtpSession),
    /// Our WebSocket handshake with a peer.
    BtpHandshake {
        account: AccountId,
        handshake: Box<ClientHandshake>,
    },
    /// Our requests to a peer's ILP-over-HTTP endpoint.
    HttpClient(HttpRequesting),
    /// One who wants to know what accounts receive.
    Subscriber(Box<Subscribing>),
}

/// The server side of HTTP: requests are answered in the order in which they came (RFC 9112, section 9.3.2).
#[derive(Default)]
pub struct HttpServing {
    /// Where it came in, which decides what it may ask for.
    pub port: Port,
    pub server: HttpServer,
    /// Requests that are not answered yet.
    pub answers: Answers<Box<dyn BodySource>>,
    /// The number of the next request on this connection.
    pub next_request: u32,
    /// Whose packets the previous head brought, if the next one is the same.
    pub repeating: Option<Arc<Account>>,
    /// No further request is read: the last reply closes.
    pub closing: bool,
    /// Requests lie in the inbox until the client has read more of its answers.
    pub held_back: bool,
    /// Milliseconds at which the request that is incomplete began; 0: none is.
    pub request_since_ms: u64,
}

pub struct BtpSession {
    pub link: BtpLink,
    pub phase: BtpPhase,
    /// Monotonic milliseconds of the last bytes received.
    pub heard_ms: u64,
    /// When the last ping was sent.
    pub pinged_ms: u64,
    /// Prepares received on this session that are not answered, and sent on it without an answer yet.
    pub owed: u32,
    pub awaited: u32,
    /// Until when a session that a newer one has replaced may go on answering.
    pub replaced_until_ms: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BtpPhase {
    /// A server waits for the auth frame; the path may have named the account.
    Unauthenticated {
        named: Option<AccountId>,
        name_given: bool,
    },
    /// The token was right; the connection moves to its account's shard, which answers this request.
    Accepted {
        account: AccountId,
        request_id: u32,
    },
    /// A client waits for the answer to its auth frame.
    Authenticating {
        account: AccountId,
    },
    Open {
        account: AccountId,
    },
}

impl BtpSession {
    pub fn new(link: BtpLink, phase: BtpPhase, now_ms: u64) -> Self {
        Self {
            link,
            phase,
            heard_ms: now_ms,
            pinged_ms: now_ms,
            owed: 0,
            awaited: 0,
            replaced_until_ms: None,
        }
    }

    pub fn account(&self) -> Option<AccountId> {
        match self.phase {
            BtpPhase::Open { account } => Some(account),
            _ => None,
        }
    }
}

pub struct HttpRequesting {
    pub client: HttpClient,
    pub account: AccountId,
    /// The pool it belongs to; the account may have got another since.
    pub pool: u64,
    /// The Prepare whose response is due; none: the connection is idle.
    pub request: Option<RequestId>,
    /// The connection is up.
    pub connected: bool,
    /// It has brought an answer.
    pub answered: bool,
}

/// A connection whose client is told what accounts receive.
pub struct Subscribing {
    pub subscriber: Subscriber,
    pub subscription: Subscription,
    /// How many shards do not know of it yet; the upgrade is answered when all do. `None`: it is a WebSocket.
    pub opening: Option<u16>,
}

/// The connections of one shard, by the index of their sockets.
#[derive(Default)]
pub struct Connections {
    slots: Vec<Option<(SocketId, Box<Connection>)>>,
    /// Seconds of the monotonic clock by which each must have done something, apart from the rest so that looking
    /// through all of them once a second touches little memory.
    deadlines_s: Vec<u32>,
    /// How many of them are set.
    deadlines: usize,
}

const NEVER: u32 = u32::MAX;

impl Connections {
    pub fn insert(&mut self, socket: SocketId, connection: Box<Connection>) {
        let index = socket.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
            self.deadlines_s.resize(index + 1, NEVER);
        }
        assert!(self.slots[index].is_none(), "a socket has one connection");
        self.slots[index] = Some((socket, connection));
    }

    pub fn get_mut(&mut self, socket: SocketId) -> Option<&mut Connection> {
        let (id, connection) = self.slots.get_mut(socket.index())?.as_mut()?;
        (*id == socket).then_some(&mut **connection)
    }

    pub fn get(&self, socket: SocketId) -> Option<&Connection> {
        let (id, connection) = self.slots.get(socket.index())?.as_ref()?;
        (*id == socket).then_some(&**connection)
    }

    pub fn remove(&mut self, socket: SocketId) -> Option<Box<Connection>> {
        self.get(socket)?;
        self.put_deadline(socket, NEVER);
        self.slots[socket.index()].take().map(|(_, connection)| connection)
    }

    /// It must have done something by then; monotonic milliseconds, rounded up to a second.
    pub fn set_deadline(&mut self, socket: SocketId, at_ms: u64) {
        self.put_deadline(socket, u32::try_from(at_ms.div_ceil(1_000)).unwrap_or(NEVER - 1));
    }

    pub fn clear_deadline(&mut self, socket: SocketId) {
        self.put_deadline(socket, NEVER);
    }

    fn put_deadline(&mut self, socket: SocketId, at_s: u32) {
        if self.get(socket).is_some() {
            let before = std::mem::replace(&mut self.deadlines_s[socket.index()], at_s);
            self.deadlines += usize::from(at_s != NEVER);
            self.deadlines -= usize::from(before != NEVER);
        }
    }

    /// Whether anything is to be looked at once a second.
    pub fn has_deadlines(&self) -> bool {
        self.deadlines > 0
    }

    /// Those whose deadline is past; it is cleared.
    pub fn overdue(&mut self, now_ms: u64) -> Vec<SocketId> {
        let now_s = u32::try_from(now_ms / 1_000).unwrap_or(NEVER - 1);
        let mut overdue = Vec::new();
        for (deadline, slot) in self.deadlines_s.iter_mut().zip(&self.slots) {
            if *deadline <= now_s {
                *deadline = NEVER;
                self.deadlines -= 1;
                overdue.extend(slot.as_ref().map(|(socket, _)| *socket));
            }
        }
        overdue
    }

    pub fn sockets(&self) -> impl Iterator<Item = SocketId> {
        self.slots.iter().flatten().map(|(socket, _)| *socket)
    }
}
