//! How packets leave: the links of the accounts that this shard owns.
//!
//! An account with an ILP-over-HTTP URL gets its packets there, over a pool of kept-alive connections with one request
//! in flight on each; otherwise over its BTP session, whichever side dialled it.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::ledger::account::place_in;
use crate::ledger::{Account, AccountId};
use crate::link::http::{HttpClient, RequestTemplate, is_misconfigured, reject_code_for_status};
use crate::net::{SocketId, dial};
use crate::pipeline::in_flight::{ReplyTo, RequestId};
use crate::pipeline::outgoing::LinkState;
use crate::pipeline::reject::RejectReason;
use crate::wire::btp::FRAME_BYTES_MAX;
use crate::wire::packet::{ErrorCode, PACKET_BYTES_MAX};
use crate::wire::timestamp::Timestamp;

use super::connections::{Connection, HttpRequesting, Link};
use super::dialing::{Dialer, Endpoint};
use super::packets::Response;
use super::{Shard, UNSENT_BYTES_MAX};

/// Connections to one peer's HTTP endpoint.
const HTTP_CONNECTIONS_MAX: usize = 512;
/// Prepares that may wait for one of them.
const HTTP_QUEUE_MAX: usize = 4_096;
/// An idle connection older than this is not used again: servers close theirs after 5 s and more (Node.js 5 s), and a
/// request that crosses the closing on its way is lost.
const HTTP_IDLE_MS_MAX: u64 = 4_000;
/// How long a connection attempt may take.
const CONNECT_MS_MAX: u64 = 10_000;

/// The links of one account.
#[derive(Default)]
pub struct Peer {
    /// The newest authenticated BTP session.
    pub btp: Option<SocketId>,
    /// Our own attempts to have one.
    pub dialer: Option<Box<Dialer>>,
    pub http: Option<Box<HttpPool>>,
}

impl Peer {
    fn is_unused(&self) -> bool {
        self.btp.is_none() && self.dialer.is_none() && self.http.is_none()
    }
}

/// Kept-alive connections to one endpoint.
pub struct HttpPool {
    /// Tells its connections from those of a pool that the account had before.
    number: u64,
    pub endpoint: Endpoint,
    template: RequestTemplate,
    pub address: Address,
    /// Connected and without a request, the one used last at the end; with the time at which it became idle.
    idle: Vec<(SocketId, u64)>,
    /// All connections: idle, busy and being made.
    open: usize,
    connecting: usize,
    waiting: VecDeque<WaitingPrepare>,
    /// When a connection was last tried it could not be made, or ended before it brought an answer; and there was no
    /// other. In front of a peer may stand a proxy that is up when the peer is not.
    unreachable: bool,
}

/// Where the endpoint's name leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    Unknown,
    Resolving,
    /// Good until then, monotonic milliseconds.
    Known(SocketAddr, u64),
}

struct WaitingPrepare {
    id: RequestId,
    packet: Box<[u8]>,
    amount: u64,
    expires_at: Timestamp,
}

impl HttpPool {
    pub fn new(number: u64, endpoint: Endpoint, template: RequestTemplate) -> Self {
        let address = endpoint
            .literal_address()
            .map_or(Address::Unknown, |address| Address::Known(address, u64::MAX));
        Self {
            number,
            endpoint,
            template,
            address,
            idle: Vec::new(),
            open: 0,
            connecting: 0,
            waiting: VecDeque::new(),
            unreachable: false,
        }
    }

    /// Whether the link counts as up. Packets are sent over it in any case.
    pub fn is_reachable(&self) -> bool {
        !self.unreachable
    }
}

/// The links of all accounts of a shard, by account.
pub struct Peers {
    shards: u32,
    peers: Vec<Option<Box<Peer>>>,
}

impl Peers {
    pub fn new(shards: u32) -> Self {
        Self {
            shards,
            peers: Vec::new(),
        }
    }

    pub fn get(&self, id: AccountId) -> Option<&Peer> {
        self.peers.get((id.get() / self.shards) as usize)?.as_deref()
    }

    pub fn get_mut(&mut self, id: AccountId) -> Option<&mut Peer> {
        self.peers.get_mut((id.get() / self.shards) as usize)?.as_deref_mut()
    }

    /// The links of an account, made when it gets its first: most accounts of a large hub have none.
    pub fn entry(&mut self, id: AccountId) -> &mut Peer {
        let index = (id.get() / self.shards) as usize;
        place_in(&mut self.peers, index).get_or_insert_default()
    }

    /// Frees the memory of links that are not there.
    pub fn tidy(&mut self, id: AccountId) {
        if let Some(place) = self.peers.get_mut((id.get() / self.shards) as usize)
            && place.as_ref().is_some_and(|peer| peer.is_unused())
        {
            *place = None;
        }
    }

    pub fn remove(&mut self, id: AccountId) -> Option<Box<Peer>> {
        self.peers.get_mut((id.get() / self.shards) as usize)?.take()
    }
}

impl Shard {
    /// Whether a packet of `packet_bytes` can go to the account now.
    pub(super) fn link_state(&self, to: AccountId, packet_bytes: usize) -> LinkState {
        let Some(peer) = self.peers.get(to) else {
            return LinkState::Down;
        };
        if let Some(pool) = &peer.http {
            return if packet_bytes > PACKET_BYTES_MAX {
                LinkState::TooLong
            } else if pool.waiting.len() >= HTTP_QUEUE_MAX {
                LinkState::Busy
            } else {
                LinkState::Up { carrier: 0 }
            };
        }
        let Some(socket) = peer.btp.filter(|socket| self.ring.is_open(*socket)) else {
            return LinkState::Down;
        };
        if crate::wire::btp::ilp_frame_size(packet_bytes) > FRAME_BYTES_MAX {
            LinkState::TooLong
        } else if self.ring.unsent(socket) > UNSENT_BYTES_MAX {
            LinkState::Busy
        } else {
            LinkState::Up { carrier: 0 }
        }
    }

    /// Sends a Prepare that the pipeline has noted in flight, with its outgoing amount and expiry.
    pub(super) fn send_prepare(
        &mut self,
        to: AccountId,
        id: RequestId,
        packet: &[u8],
        amount: u64,
        expires_at: Timestamp,
    ) {
        let Some(peer) = self.peers.get_mut(to) else { return };
        if peer.http.is_some() {
            self.send_over_http(to, id, packet, amount, expires_at);
            return;
        }
        let sent = peer.btp.is_some_and(|socket| {
            let Some(connection) = self.connections.get_mut(socket) else {
                return false;
            };
            let Link::Btp(session) = &mut connection.link else {
                return false;
            };
            let Some(out) = self.ring.output(socket) else {
                return false;
            };
            session.link.send_prepare(id.0, packet, (amount, expires_at), out);
            session.awaited += 1;
            !session.link.is_closing()
        });
        if !sent {
            self.responded(to, id, Response::None(RejectReason::LinkDown));
        }
    }

    /// Hands a response to the connection of this shard that the Prepare came on, or to who made the Prepare here.
    pub(super) fn reply_here(&mut self, from: AccountId, reply_to: ReplyTo, packet: &[u8]) {
        if let Some(number) = reply_to.payment() {
            return self.payment_replied(number, reply_to.request, packet);
        }
        if let Some(question) = reply_to.question() {
            return self.question_ended(question, Some(packet));
        }
        let socket = SocketId::from_u64(reply_to.connection);
        match self.connections.get(socket).map(|connection| &connection.link) {
            Some(Link::HttpServer(_)) => self.reply_over_http(reply_to, packet),
            Some(Link::Btp(_)) => self.reply_over_btp(socket, reply_to.request, packet),
            // The session was replaced meanwhile: the answer takes the newest one of the account.
            _ => {
                if let Some(socket) = self.peers.get(from).and_then(|peer| peer.btp) {
                    self.reply_over_btp(socket, reply_to.request, packet);
                }
            }
        }
    }

    fn reply_over_btp(&mut self, socket: SocketId, request_id: u32, packet: &[u8]) {
        if let Some(connection) = self.connections.get_mut(socket)
            && let Link::Btp(session) = &mut connection.link
            && let Some(out) = self.ring.output(socket)
        {
            session.link.send_reply(request_id, packet, out);
            session.owed = session.owed.saturating_sub(1);
            self.adjust_reception(socket);
        }
    }

    fn send_over_http(&mut self, to: AccountId, id: RequestId, packet: &[u8], amount: u64, expires_at: Timestamp) {
        let now_ms = self.now.monotonic_ms;
        loop {
            let Some(pool) = self.pool(to) else { return };
            let Some((socket, since_ms)) = pool.idle.pop() else {
                break;
            };
            if now_ms >= since_ms + HTTP_IDLE_MS_MAX || !self.ring.is_open(socket) {
                self.ring.close(socket);
                continue;
            }
            self.request_on(socket, to, id, packet, amount, expires_at);
            return;
        }
        let Some(pool) = self.pool(to) else { return };
        pool.waiting.push_back(WaitingPrepare {
            id,
            packet: packet.into(),
            amount,
            expires_at,
        });
        self.open_http_connections(to);
    }

    fn request_on(
        &mut self,
        socket: SocketId,
        to: AccountId,
        id: RequestId,
        packet: &[u8],
        amount: u64,
        expires_at: Timestamp,
    ) {
        let Some(peer) = self.peers.get_mut(to) else { return };
        let Some(pool) = &peer.http else { return };
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::HttpClient(requesting) = &mut connection.link else {
            return;
        };
        let Some(out) = self.ring.output(socket) else { return };
        pool.template.write_request(packet, (amount, expires_at), out);
        requesting.request = Some(id);
        self.pipeline.set_carrier(id, socket.to_u64());
        self.connections.clear_deadline(socket);
    }

    /// Opens connections for the Prepares that wait for one.
    fn open_http_connections(&mut self, to: AccountId) {
        let now_ms = self.now.monotonic_ms;
        while let Some(pool) = self.pool(to)
            && pool.connecting < pool.waiting.len()
            && pool.open < HTTP_CONNECTIONS_MAX
        {
            let address = match pool.address {
                Address::Known(address, until_ms) if now_ms < until_ms => address,
                Address::Resolving => return,
                Address::Known(..) | Address::Unknown => {
                    pool.address = Address::Resolving;
                    let endpoint = pool.endpoint.clone();
                    if !self.look_up(to, &endpoint, false) {
                        if let Some(pool) = self.pool(to) {
                            pool.address = Address::Unknown;
                        }
                        self.fail_waiting(to);
                    }
                    return;
                }
            };
            let requesting = HttpRequesting {
                client: HttpClient::new(),
                account: to,
                pool: pool.number,
                request: None,
                connected: false,
                answered: false,
            };
            let socket = match dial::socket_for(address) {
                Ok(socket) => self.ring.connect(socket, address),
                Err(error) => {
                    tracing::warn!(target: "http", account = %to, %error, "no socket for a connection");
                    self.fail_waiting(to);
                    return;
                }
            };
            self.connect_to(socket, Connection::new(Link::HttpClient(requesting)));
            self.connections.set_deadline(socket, now_ms + CONNECT_MS_MAX);
            let pool = self.pool(to).expect("looked at above");
            pool.open += 1;
            pool.connecting += 1;
        }
    }

    /// A connection to a peer's endpoint is free: the next Prepare that waits goes out, or it rests.
    fn http_connection_free(&mut self, socket: SocketId, to: AccountId, pool_number: u64) {
        let now_ms = self.now.monotonic_ms;
        loop {
            let Some(pool) = self.numbered_pool(to, pool_number) else {
                self.ring.close(socket);
                return;
            };
            let Some(next) = pool.waiting.pop_front() else {
                pool.idle.push((socket, now_ms));
                self.connections.set_deadline(socket, now_ms + HTTP_IDLE_MS_MAX);
                return;
            };
            // It may have expired while it waited.
            if self.pipeline.in_flight().get(next.id).is_some() {
                self.request_on(socket, to, next.id, &next.packet, next.amount, next.expires_at);
                return;
            }
        }
    }

    pub(super) fn http_connected(&mut self, socket: SocketId) {
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::HttpClient(requesting) = &mut connection.link else {
            return;
        };
        requesting.connected = true;
        let (account, pool_number) = (requesting.account, requesting.pool);
        if let Some(pool) = self.numbered_pool(account, pool_number) {
            pool.connecting -= 1;
        }
        self.http_connection_free(socket, account, pool_number);
    }

    /// A connection has brought its first answer.
    fn http_answered(&mut self, account: AccountId, pool_number: u64) {
        if let Some(pool) = self.numbered_pool(account, pool_number)
            && std::mem::take(&mut pool.unreachable)
        {
            self.link_changed(account);
        }
    }

    /// Handles the complete answers in `bytes`; returns how much they were.
    pub(super) fn consume_http_answers(&mut self, socket: SocketId, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        loop {
            let Some(connection) = self.connections.get_mut(socket) else {
                return bytes.len();
            };
            let Link::HttpClient(requesting) = &mut connection.link else {
                return bytes.len();
            };
            let (account, pool_number) = (requesting.account, requesting.pool);
            match requesting.client.next(&bytes[used..]) {
                Ok((0, None)) => return used,
                Ok((taken, None)) => used += taken,
                Ok((taken, Some(answer))) => {
                    used += taken;
                    let (status, keep_alive) = (answer.status, answer.keep_alive);
                    let is_first = !std::mem::replace(&mut requesting.answered, true);
                    // An answer to nothing: the peer and we disagree about what is whose.
                    let Some(id) = requesting.request.take() else {
                        self.ring.close(socket);
                        return bytes.len();
                    };
                    if status == 200 {
                        let body: Box<[u8]>;
                        let received = bytes.as_ptr_range();
                        // Mostly the body lies in the bytes received; a chunked one lies in the link.
                        let packet = if received.contains(&answer.body.as_ptr()) {
                            let start = answer.body.as_ptr() as usize - received.start as usize;
                            &bytes[start..start + answer.body.len()]
                        } else {
                            body = answer.body.into();
                            &body
                        };
                        self.responded(account, id, Response::Packet(packet));
                    } else {
                        self.http_refused(account, id, status);
                    }
                    if is_first {
                        self.http_answered(account, pool_number);
                    }
                    if keep_alive {
                        self.http_connection_free(socket, account, pool_number);
                    } else {
                        self.ring.close(socket);
                    }
                }
                Err(broken) => {
                    tracing::debug!(target: "http", %account, %broken, "connection given up");
                    if let Some(id) = requesting.request.take() {
                        self.responded(account, id, Response::None(RejectReason::GarbageResponse));
                    }
                    self.ring.close(socket);
                    return bytes.len();
                }
            }
        }
    }

    fn http_refused(&mut self, account: AccountId, id: RequestId, status: u16) {
        if is_misconfigured(status) {
            tracing::warn!(target: "http", %account, status, "the peer refuses our packets: see to its URL and token");
        }
        let code = reject_code_for_status(status);
        let reason = if code == ErrorCode::T03_CONNECTOR_BUSY {
            RejectReason::LinkOverloaded
        } else if code == ErrorCode::T01_PEER_UNREACHABLE {
            RejectReason::LinkFailed
        } else {
            RejectReason::GarbageResponse
        };
        self.responded(account, id, Response::None(reason));
    }

    /// The peer has closed its side: the end of the connection may be the end of an answer.
    pub(super) fn http_answers_ended(&mut self, socket: SocketId) {
        if let Some(connection) = self.connections.get_mut(socket)
            && let Link::HttpClient(requesting) = &mut connection.link
            && let Some(id) = requesting.request
            && let Ok(Some(answer)) = requesting.client.finish(&connection.inbox)
        {
            requesting.request = None;
            requesting.answered = true;
            let (account, pool_number, status) = (requesting.account, requesting.pool, answer.status);
            let body: Box<[u8]> = answer.body.into();
            if status == 200 {
                self.responded(account, id, Response::Packet(&body));
            } else {
                self.http_refused(account, id, status);
            }
            self.http_answered(account, pool_number);
        }
        self.ring.close(socket);
    }

    pub(super) fn http_client_closed(
        &mut self,
        socket: SocketId,
        requesting: &HttpRequesting,
        error: Option<std::io::Error>,
    ) {
        let account = requesting.account;
        let current = self.numbered_pool(account, requesting.pool);
        let belongs = current.is_some();
        if let Some(pool) = current {
            pool.open -= 1;
            pool.idle.retain(|(idle, _)| *idle != socket);
            if !requesting.connected {
                pool.connecting -= 1;
                // Perhaps the name leads elsewhere now.
                if pool.endpoint.literal_address().is_none() {
                    pool.address = Address::Unknown;
                }
            }
        }
        if let Some(id) = requesting.request {
            // Whether the peer took the Prepare is unknown; it is never sent again.
            self.responded(account, id, Response::None(RejectReason::LinkFailed));
        }
        if !belongs {
            return;
        }
        if !requesting.connected {
            let reason = error.map_or_else(|| "no answer in time".to_owned(), |error| error.to_string());
            tracing::warn!(target: "http", %account, reason, "the peer's endpoint cannot be reached");
            self.http_unreachable(account);
            self.fail_waiting(account);
        } else {
            if requesting.request.is_some() && !requesting.answered {
                self.http_unreachable(account);
            }
            self.open_http_connections(account);
        }
    }

    /// Rejects the Prepares that wait for a connection that cannot be had.
    pub(super) fn fail_waiting(&mut self, account: AccountId) {
        let Some(pool) = self.pool(account) else { return };
        for waiting in std::mem::take(&mut pool.waiting) {
            self.responded(account, waiting.id, Response::None(RejectReason::LinkFailed));
        }
    }

    pub(super) fn http_resolved(&mut self, account: AccountId, endpoint: &Endpoint, address: Option<SocketAddr>) {
        const KNOWN_MS: u64 = 60_000;
        let until_ms = self.now.monotonic_ms + KNOWN_MS;
        let Some(pool) = self.pool(account).filter(|pool| pool.endpoint == *endpoint) else {
            return;
        };
        match address {
            Some(address) => {
                pool.address = Address::Known(address, until_ms);
                self.open_http_connections(account);
            }
            None => {
                pool.address = Address::Unknown;
                self.http_unreachable(account);
                self.fail_waiting(account);
            }
        }
    }

    /// A connection could not be made, or brought nothing. While others are up, the peer is only busy.
    fn http_unreachable(&mut self, account: AccountId) {
        if let Some(pool) = self.pool(account)
            && pool.open == pool.connecting
            && !std::mem::replace(&mut pool.unreachable, true)
        {
            self.link_changed(account);
        }
    }

    /// A Prepare has expired. If its answer is due on a connection of its own, that connection is of no use any more.
    pub(super) fn carrier_overdue(&mut self, to: AccountId, carrier: u64) {
        if carrier == 0 {
            return;
        }
        let socket = SocketId::from_u64(carrier);
        if let Some(connection) = self.connections.get_mut(socket)
            && let Link::HttpClient(requesting) = &mut connection.link
            && requesting.account == to
        {
            requesting.request = None;
            self.ring.close(socket);
        }
    }

    fn pool(&mut self, account: AccountId) -> Option<&mut HttpPool> {
        self.peers.get_mut(account)?.http.as_deref_mut()
    }

    /// The account's pool, if it is still the one with this number.
    fn numbered_pool(&mut self, account: AccountId, number: u64) -> Option<&mut HttpPool> {
        self.pool(account).filter(|pool| pool.number == number)
    }

    /// Opens, closes or replaces the links of an account of this shard after a change of its settings.
    pub(super) fn relink(&mut self, account: &Account) {
        let id = account.id;
        let wanted = account.links.http_url().and_then(|url| {
            let endpoint = Endpoint::from_http_url(url)
                .inspect_err(|error| tracing::warn!(target: "http", account = %id, %error, "the URL is not used"))
                .ok()?;
            let token = Some(account.links.http_outgoing_token().unwrap_or_default());
            let token = token.filter(|token| !token.is_empty());
            let template = RequestTemplate::new(&endpoint.host_header(), &endpoint.path, token)
                .inspect_err(|error| tracing::warn!(target: "http", account = %id, %error, "the URL is not used"))
                .ok()?;
            Some((endpoint, template))
        });
        match (self.pool(id), wanted) {
            (Some(pool), Some((endpoint, template))) if pool.endpoint == endpoint => pool.template = template,
            (_, wanted) => {
                self.close_pool(id);
                if let Some((endpoint, template)) = wanted {
                    self.pools_made += 1;
                    let pool = HttpPool::new(self.pools_made, endpoint, template);
                    self.peers.entry(id).http = Some(Box::new(pool));
                }
            }
        }
        self.redial(account);
        self.peers.tidy(id);
    }

    /// Gives up the connections to an endpoint that is not the account's any more.
    pub(super) fn close_pool(&mut self, account: AccountId) {
        self.fail_waiting(account);
        let Some(pool) = self.peers.get_mut(account).and_then(|peer| peer.http.take()) else {
            return;
        };
        for (socket, _) in pool.idle {
            self.ring.close(socket);
        }
        // Busy ones find no pool when their answer has come, and close.
    }
}
