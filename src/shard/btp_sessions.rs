//! BTP sessions over their sockets: authentication, packets in both directions, signs of life.

use crate::ledger::directory::secrets_equal;
use crate::ledger::{AccountId, Directory};
use crate::link::btp::{Event, Failure, look_ahead};
use crate::net::SocketId;
use crate::pipeline::Pipeline;
use crate::pipeline::in_flight::{ReplyTo, RequestId};
use crate::pipeline::reject::RejectReason;
use crate::routing::forwarding::AHEAD_MAX;
use crate::wire::websocket::CloseCode;

use super::Shard;
use super::connections::{BtpPhase, Link};
use super::packets::Response;

/// A peer must authenticate within this time, and a server must answer our authentication.
pub const AUTHENTICATION_MS_MAX: u64 = 10_000;
/// How often we ask a peer for a sign of life.
const PING_MS: u64 = 20_000;
/// A peer from which nothing has come for so long is gone.
const SILENCE_MS_MAX: u64 = 45_000;
/// How long a session that is over may take to close.
const GOODBYE_MS_MAX: u64 = 2_000;
/// How long a replaced session may go on answering.
const REPLACED_MS_MAX: u64 = 30_000;
const REPLACED_LOOK_AGAIN_MS: u64 = 1_000;

/// An event without its borrow, so that the session is free again while it is handled.
enum Step {
    Auth {
        request_id: u32,
        account: Option<AccountId>,
    },
    Authenticated,
    Refused(String),
    Prepare {
        request_id: u32,
        packet: Bytes,
    },
    Reply {
        request_id: u32,
        packet: Bytes,
    },
    Failed {
        request_id: u32,
        failure: Failure,
    },
}

/// Bytes within those received, or put together from fragments.
enum Bytes {
    Within(std::ops::Range<usize>),
    Apart(Box<[u8]>),
}

impl Bytes {
    /// `start` and `end` are the addresses of the bytes received.
    fn new(packet: &[u8], start: usize, end: usize) -> Self {
        let at = packet.as_ptr() as usize;
        if at >= start && at + packet.len() <= end {
            Self::Within(at - start..at - start + packet.len())
        } else {
            Self::Apart(packet.into())
        }
    }

    fn of<'a>(&'a self, received: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Within(range) => &received[range.clone()],
            Self::Apart(bytes) => bytes,
        }
    }
}

impl Shard {
    /// Handles the complete frames in `bytes`; returns how much they were.
    pub(super) fn consume_btp(&mut self, socket: SocketId, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        // Up to where the ways of the packets have been fetched.
        let mut looked_at = 0;
        let (start, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
        loop {
            let Some(connection) = self.connections.get_mut(socket) else {
                return bytes.len();
            };
            let moving = connection.moving_to.is_some();
            let Link::Btp(session) = &mut connection.link else {
                return bytes.len();
            };
            if moving {
                return used;
            }
            session.heard_ms = self.now.monotonic_ms;
            let account = session.account();
            let phase = session.phase;
            let Some(out) = self.ring.output(socket) else {
                return bytes.len();
            };
            if used >= looked_at && account.is_some() {
                looked_at = used + fetch_ways(&self.pipeline, &bytes[used..]);
            }
            let step = match session.link.next(self.now.wall, &mut bytes[used..], out) {
                Ok((0, None)) => break,
                Ok((taken, None)) => {
                    used += taken;
                    continue;
                }
                Ok((taken, Some(event))) => {
                    used += taken;
                    match event {
                        Event::Auth {
                            request_id,
                            username,
                            token,
                        } => Step::Auth {
                            request_id,
                            account: authenticate(self.pipeline.directory(), phase, username, token),
                        },
                        Event::Authenticated => Step::Authenticated,
                        Event::AuthRefused { reason } => Step::Refused(reason),
                        Event::Prepare { request_id, packet } => Step::Prepare {
                            request_id,
                            packet: Bytes::new(packet, start, end),
                        },
                        Event::Reply { request_id, packet } => Step::Reply {
                            request_id,
                            packet: Bytes::new(packet, start, end),
                        },
                        Event::Failed { request_id, failure } => Step::Failed { request_id, failure },
                    }
                }
                Err(close) => {
                    tracing::debug!(target: "btp", %close, "session over");
                    self.end_session(socket);
                    return bytes.len();
                }
            };
            match (step, account) {
                (Step::Prepare { request_id, packet }, Some(from)) => {
                    session.owed += 1;
                    let reply_to = ReplyTo {
                        shard: self.id,
                        connection: socket.to_u64(),
                        request: request_id,
                    };
                    self.prepare_arrived(from, reply_to, packet.of(bytes));
                }
                (Step::Reply { request_id, packet }, Some(from)) => {
                    session.awaited = session.awaited.saturating_sub(1);
                    self.responded(from, RequestId(request_id), Response::Packet(packet.of(bytes)));
                }
                (Step::Failed { request_id, failure }, Some(from)) => {
                    session.awaited = session.awaited.saturating_sub(1);
                    let reason = match failure {
                        Failure::Unreachable => RejectReason::LinkFailed,
                        Failure::InsufficientLiquidity => RejectReason::PeerLiquidity,
                        Failure::Garbage => RejectReason::GarbageResponse,
                    };
                    self.responded(from, RequestId(request_id), Response::None(reason));
                }
                (Step::Auth { request_id, account }, _) => self.authenticated(socket, request_id, account),
                (Step::Authenticated, _) => self.let_in(socket),
                (Step::Refused(reason), _) => {
                    tracing::warn!(target: "btp", %reason, "the peer refused our token");
                    self.end_session(socket);
                    return bytes.len();
                }
                // The link gives no packets before authentication.
                (Step::Prepare { .. } | Step::Reply { .. } | Step::Failed { .. }, None) => {}
            }
        }
        self.adjust_reception(socket);
        used
    }

    /// The token of a peer that has connected to us was looked at.
    fn authenticated(&mut self, socket: SocketId, request_id: u32, account: Option<AccountId>) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::Btp(session) = &mut connection.link else {
            return;
        };
        let peer = self.ring.peer_address(socket).map(|peer| peer.ip());
        let blocked = peer.is_some_and(|peer| self.failures.is_blocked(peer, now.monotonic_ms));
        let Some(account) = account.filter(|_| !blocked) else {
            if let Some(peer) = peer.filter(|_| !blocked) {
                self.failures.note(peer, now.monotonic_ms);
            }
            if let Some(out) = self.ring.output(socket) {
                session.link.refuse(request_id, out, now.wall);
            }
            self.end_session(socket);
            return;
        };
        session.phase = BtpPhase::Accepted { account, request_id };
        let owner = self.pipeline.owner_of(account);
        if owner == self.id {
            self.btp_handed_over(socket);
        } else {
            connection.moving_to = Some(owner);
            self.move_if_ready(socket);
        }
    }

    /// A session whose token was right is on the shard of its account now, and is told so.
    pub(super) fn btp_handed_over(&mut self, socket: SocketId) {
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::Btp(session) = &mut connection.link else {
            return;
        };
        let BtpPhase::Accepted { account, request_id } = session.phase else {
            return;
        };
        // The account may have gone, or its token changed, while the connection moved.
        if self.pipeline.state_of(account).is_none() {
            self.ring.close(socket);
            return;
        }
        if let Some(out) = self.ring.output(socket) {
            session.link.accept(request_id, out);
        }
        session.phase = BtpPhase::Open { account };
        self.opened(socket, account);
    }

    /// The peer has accepted our token.
    fn let_in(&mut self, socket: SocketId) {
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::Btp(session) = &mut connection.link else {
            return;
        };
        let BtpPhase::Authenticating { account } = session.phase else {
            return;
        };
        session.phase = BtpPhase::Open { account };
        self.dial_succeeded(account, socket);
        self.opened(socket, account);
    }

    /// The session carries packets from now on. An earlier one of the account answers what it was asked, and closes.
    fn opened(&mut self, socket: SocketId, account: AccountId) {
        tracing::info!(target: "btp", %account, "connected");
        self.connections.set_deadline(socket, self.now.monotonic_ms + PING_MS);
        let replaced = self.peers.entry(account).btp.replace(socket);
        self.link_changed(account);
        if let Some(replaced) = replaced.filter(|replaced| *replaced != socket) {
            let now_ms = self.now.monotonic_ms;
            if let Some(connection) = self.connections.get_mut(replaced)
                && let Link::Btp(session) = &mut connection.link
            {
                session.replaced_until_ms = Some(now_ms + REPLACED_MS_MAX);
            }
            self.connections.set_deadline(replaced, now_ms);
        }
    }

    /// Nothing more is read; what is written goes out, then the connection closes.
    fn end_session(&mut self, socket: SocketId) {
        self.forget_session(socket);
        self.ring.drain(socket);
        self.connections
            .set_deadline(socket, self.now.monotonic_ms + GOODBYE_MS_MAX);
    }

    /// No new packets go over this session.
    fn forget_session(&mut self, socket: SocketId) {
        if let Some(Link::Btp(session)) = self.connections.get(socket).map(|connection| &connection.link)
            && let Some(account) = session.account()
            && let Some(peer) = self.peers.get_mut(account)
            && peer.btp == Some(socket)
        {
            peer.btp = None;
            self.link_changed(account);
        }
    }

    /// Says goodbye and closes, because the operator changed or removed the account, or the node stops.
    pub(super) fn close_session(&mut self, socket: SocketId, code: CloseCode) {
        if let Some(connection) = self.connections.get_mut(socket)
            && let Link::Btp(session) = &mut connection.link
            && let Some(out) = self.ring.output(socket)
        {
            session.link.send_close(code, out);
        }
        self.end_session(socket);
    }

    pub(super) fn btp_overdue(&mut self, socket: SocketId) {
        let now_ms = self.now.monotonic_ms;
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::Btp(session) = &mut connection.link else {
            return;
        };
        let Some(account) = session.account() else {
            // It did not authenticate in time.
            self.close_session(socket, CloseCode::ProtocolError);
            return;
        };
        if let Some(until_ms) = session.replaced_until_ms {
            // It says and hears the answers that are due on it, and goes.
            if now_ms >= until_ms || (session.owed == 0 && session.awaited == 0) {
                self.close_session(socket, CloseCode::Normal);
            } else {
                self.connections.set_deadline(socket, now_ms + REPLACED_LOOK_AGAIN_MS);
            }
            return;
        }
        if now_ms >= session.heard_ms + SILENCE_MS_MAX {
            tracing::warn!(target: "btp", %account, "the peer is silent; connection closed");
            self.forget_session(socket);
            self.ring.close(socket);
            return;
        }
        if now_ms >= session.pinged_ms + PING_MS - 1_000 {
            session.pinged_ms = now_ms;
            if let Some(out) = self.ring.output(socket) {
                session.link.send_ping(out);
            }
        }
        let silent_at = session.heard_ms + SILENCE_MS_MAX;
        let next_ping = session.pinged_ms + PING_MS;
        self.connections.set_deadline(socket, silent_at.min(next_ping));
    }

    pub(super) fn btp_closed(
        &mut self,
        socket: SocketId,
        session: &super::connections::BtpSession,
        error: Option<std::io::Error>,
    ) {
        match session.phase {
            BtpPhase::Open { account } => {
                if let Some(error) = error {
                    tracing::info!(target: "btp", %account, %error, "connection lost");
                }
                if let Some(peer) = self.peers.get_mut(account)
                    && peer.btp == Some(socket)
                {
                    peer.btp = None;
                    self.link_changed(account);
                }
                self.end_questions_over(socket);
                self.dialed_connection_ended(account, socket);
            }
            BtpPhase::Authenticating { account } => self.dial_failed(account, socket, error),
            BtpPhase::Unauthenticated { .. } | BtpPhase::Accepted { .. } => {}
        }
    }
}

/// While the first of the packets in `bytes` are handled, what the next ones will be looked up in comes near. Returns how
/// many bytes that is good for. Apart from its caller, which most tables leave it to find small.
#[inline(never)]
fn fetch_ways(pipeline: &Pipeline, bytes: &[u8]) -> usize {
    let Some(mut ahead) = pipeline.ahead() else {
        return bytes.len();
    };
    let looked_at = look_ahead(bytes, AHEAD_MAX, |destination| ahead.expect(destination));
    ahead.fetch();
    looked_at
}

/// The account that a peer has proved to be (protocols.md 5.3, http-api.md 7.2).
fn authenticate(directory: &Directory, phase: BtpPhase, username: Option<&str>, token: &str) -> Option<AccountId> {
    let BtpPhase::Unauthenticated { named, name_given } = phase else {
        return None;
    };
    // `token` may be the token, or `username:token`.
    let (token_user, token_rest) = match token.split_once(':') {
        Some((user, rest)) => (Some(user), Some(rest)),
        None => (None, None),
    };
    let account = if name_given {
        named.and_then(|id| directory.get(id))
    } else {
        directory.find(username.or(token_user)?)
    };
    let names_it =
        |name: &str| account.is_some_and(|account| directory.find(name).is_some_and(|other| other.id == account.id));
    let name_agrees = username.is_none_or(names_it);
    let secret = account.and_then(|account| account.links.btp_incoming_token());
    // The same work whether or not there is such an account.
    let stored = secret.unwrap_or_default().as_bytes();
    let whole = secrets_equal(token.as_bytes(), stored);
    let rest = secrets_equal(token_rest.unwrap_or_default().as_bytes(), stored) && token_user.is_some_and(names_it);
    (secret.is_some() && name_agrees && (whole || rest))
        .then(|| account.map(|account| account.id))
        .flatten()
}
