//! HTTP requests of peers, operators and settlement engines: packets are handled here, WebSocket upgrades begin here,
//! everything else goes to the API threads, as does everything that came in on the engines' port. Answers leave in the
//! order of the requests.

use std::cell::Cell;
use std::sync::Arc;

use crate::ledger::directory::{normalize_username, secrets_equal};
use crate::ledger::{Account, AccountId, Directory};
use crate::link::btp::BtpLink;
use crate::link::http::{Asked, Incoming, LongBody, Next, PIECE_BYTES, Refused};
use crate::net::SocketId;
use crate::pipeline::in_flight::ReplyTo;
use crate::wire::http::authorization::{Credentials, parse_authorization};
use crate::wire::http::write::{write_ok_packet, write_response, write_response_head};
use crate::wire::http::{Method, RequestHead, WebSocketUpgrade};
use crate::wire::packet::{PACKET_BYTES_MAX, Prepare};
use crate::wire::timestamp::HTTP_DATE_BYTES;
use crate::wire::websocket;

use super::btp_sessions::AUTHENTICATION_MS_MAX;
use super::connections::{BtpPhase, BtpSession, Connection, HttpServing, Link};
use super::control::{ApiRequest, ApiResponse, Body, BodySource, Pending, Piece, Port};
use super::mesh::{Cold, Message};
use super::paths::{Target, classify, is_settlement_message};
use super::problem::Problem;
use super::{Shard, UNSENT_BYTES_MAX};

/// A connection on which no request comes is closed after this long. Peers keep theirs busier than that.
pub const IDLE_MS_MAX: u64 = 600_000;
/// The head of a request must be complete this long after its first byte, and its body this long after that: a sender
/// that takes longer is broken or means us harm.
pub const REQUEST_MS_MAX: u64 = 10_000;
/// A client that has taken nothing of a long answer for so long is gone, or means us harm. Not less: the system takes more
/// from us only when a slow client has emptied a good part of what it keeps for it, which may be megabytes.
const UNREAD_MS_MAX: u64 = 60_000;
/// How long a closing connection may take to read our last answer.
const LINGER_MS_MAX: u64 = 2_000;

/// Requests of one connection that may wait for their answers; further ones stay unread.
const PIPELINED_MAX: usize = 256;

/// Bodies of API calls; and those that carry whole tables, which only the admin may send, or messages between settlement
/// engines, which only an engine may.
pub const BODY_BYTES_MAX: usize = PACKET_BYTES_MAX;
pub const LARGE_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The secrets of those who may send large bodies.
#[derive(Clone)]
pub struct Tokens {
    pub admin: Arc<str>,
    /// Of settlement engines; `None`: whoever reaches their port is one.
    pub settlement: Option<Arc<str>>,
}

/// What is to be done with a request, concluded from its head and body while they are borrowed.
enum Decision {
    Packet {
        account: Arc<Account>,
        packet: Packet,
    },
    Upgrade {
        named: Option<AccountId>,
        name_given: bool,
        key: String,
        btp: bool,
    },
    Api(Box<ApiRequest>),
    /// Which methods there are, and nothing else.
    Methods(&'static str),
    Problem(Problem),
}

/// What can be done to the paths that shards serve themselves.
const PACKET_METHODS: &str = "POST, OPTIONS";
const BTP_METHODS: &str = "GET, HEAD, OPTIONS";

/// A packet within the bytes received, or out of a chunked body.
enum Packet {
    Within(std::ops::Range<usize>),
    Apart(Box<[u8]>),
}

impl Shard {
    /// Handles the complete requests in `bytes`; returns how much they were.
    pub(super) fn consume_http(&mut self, socket: SocketId, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        loop {
            let Some(connection) = self.connections.get_mut(socket) else {
                return bytes.len();
            };
            let Link::HttpServer(serving) = &mut connection.link else {
                // The connection has become a WebSocket: what follows is BTP.
                return used + self.consume_btp(socket, &mut bytes[used..]);
            };
            if serving.closing {
                return bytes.len();
            }
            if serving.answers.len() >= PIPELINED_MAX || serving.answers.holds_up() || connection.moving_to.is_some() {
                break;
            }
            let Some(out) = self.ring.output(socket) else {
                return bytes.len();
            };
            serving.held_back = out.len() > UNSENT_BYTES_MAX;
            if serving.held_back {
                break;
            }
            let rest = &bytes[used..];
            let mut body_range = None;
            let (port, tokens) = (serving.port, &self.tokens);
            let guess = Cell::new(None);
            let mut result = serving
                .server
                .next(rest, |head| body_max(head, port, tokens, &guess), out);
            // Whoever guesses too fast does not learn of a hit either.
            if let Some(is_hit) = guess.get()
                && let Some(peer) = self.ring.peer_address(socket)
            {
                if self.failures.is_blocked(peer.ip(), self.now.monotonic_ms) {
                    result = Err(Refused::BodyTooLarge);
                } else if !is_hit {
                    self.failures.note(peer.ip(), self.now.monotonic_ms);
                }
            }
            let (taken, mut decision, asked) = match result {
                Ok((0, None)) => break,
                Ok((taken, None)) => {
                    used += taken;
                    continue;
                }
                Ok((taken, Some(Incoming::Repeat { body }))) => {
                    // The account as it was when the head was first seen; any change makes another of it.
                    let known = serving.repeating.as_ref().filter(|account| {
                        self.pipeline
                            .directory()
                            .get(account.id)
                            .is_some_and(|now| Arc::ptr_eq(now, account))
                    });
                    let Some(account) = known.cloned() else {
                        serving.server.forget();
                        continue;
                    };
                    let packet = Packet::Within(range_of(body, rest, used));
                    (taken, Decision::Packet { account, packet }, Asked::PACKET)
                }
                Ok((taken, Some(Incoming::Request { head, body }))) => {
                    serving.repeating = None;
                    let within = within(body, rest);
                    body_range = within.then(|| range_of(body, rest, used));
                    // Who asks is looked up only if anybody has failed lately.
                    let blocked = !self.failures.is_empty()
                        && head.header("authorization").is_some()
                        && self
                            .ring
                            .peer_address(socket)
                            .is_some_and(|peer| self.failures.is_blocked(peer.ip(), self.now.monotonic_ms));
                    let decision = decide(&head, port, self.pipeline.directory(), blocked, || {
                        if within {
                            Packet::Within(range_of(body, rest, used))
                        } else {
                            Packet::Apart(body.into())
                        }
                    });
                    let asked = Asked {
                        keep_alive: head.keep_alive(),
                        head_only: head.method == Method::Head,
                        reads_chunks: head.version_minor >= 1,
                        // Calls may change what the next request finds (RFC 9112, section 9.3.2), and what is to be
                        // kept for a client is one answer, not hundreds.
                        alone: matches!(decision, Decision::Api(_)),
                        ..Asked::PACKET
                    };
                    (taken, decision, asked)
                }
                Err(refused) => {
                    let asked = Asked {
                        keep_alive: false,
                        ..Asked::PACKET
                    };
                    (rest.len(), Decision::Problem(refused.into()), asked)
                }
            };
            if let Decision::Api(request) = &mut decision {
                request.body = match body_range {
                    Some(range) => bytes[range].to_vec(),
                    None => serving.server.take_body().unwrap_or_default(),
                };
            }
            if let Decision::Packet {
                account,
                packet: Packet::Within(_),
            } = &decision
            {
                let owner = self.pipeline.owner_of(account.id);
                if owner != self.id && !connection.moved && serving.answers.is_empty() && !connection.finished {
                    // It begins again there, with this request.
                    *serving = HttpServing::default();
                    connection.moving_to = Some(owner);
                    self.move_if_ready(socket);
                    return used;
                }
                if asked.keep_alive && serving.repeating.is_none() {
                    serving.server.remember();
                    serving.repeating = Some(account.clone());
                }
            }
            let decision = match decision {
                // Behind it there is no HTTP any more, and these answers are still to come.
                Decision::Upgrade { .. } if !serving.answers.is_empty() => Decision::Problem(Problem::bad_request(
                    "a WebSocket begins when all earlier requests are answered",
                )),
                other => other,
            };
            let request = serving.next_request;
            serving.next_request = request.wrapping_add(1);
            serving.closing = !asked.keep_alive;
            if !matches!(decision, Decision::Upgrade { .. }) {
                serving.answers.push(Asked { request, ..asked });
            }
            self.carry_out(socket, request, decision, bytes);
            used += taken;
        }
        self.watch_request(socket, used < bytes.len());
        used
    }

    fn carry_out(&mut self, socket: SocketId, request: u32, decision: Decision, bytes: &mut [u8]) {
        let reply_to = ReplyTo {
            shard: self.id,
            connection: socket.to_u64(),
            request,
        };
        match decision {
            Decision::Packet { account, packet } => {
                let packet = match &packet {
                    Packet::Within(range) => &bytes[range.clone()],
                    Packet::Apart(packet) => packet,
                };
                // Whatever is no Prepare is refused by HTTP's own means (protocols.md 2.6).
                if let Err(invalid) = Prepare::parse(packet) {
                    self.answer_problem(reply_to, &Problem::invalid_packet(invalid));
                } else {
                    self.prepare_arrived(account.id, reply_to, packet);
                }
            }
            Decision::Methods(allow) => {
                self.answer_http(reply_to, |out, date, asked| {
                    write_response(
                        out,
                        date,
                        204,
                        &[("allow", allow)],
                        b"",
                        asked.keep_alive,
                        asked.head_only,
                    );
                    asked.keep_alive
                });
            }
            Decision::Problem(problem) => {
                if problem.is_failed_attempt()
                    && let Some(peer) = self.ring.peer_address(socket)
                {
                    self.failures.note(peer.ip(), self.now.monotonic_ms);
                }
                self.answer_problem(reply_to, &problem);
            }
            Decision::Api(request) => self.ask_api(socket, reply_to, *request),
            Decision::Upgrade {
                named,
                name_given,
                key,
                btp,
            } => {
                self.upgrade(socket, named, name_given, &key, btp);
            }
        }
    }

    /// A request that is incomplete has until then; a connection without one may rest longer.
    fn watch_request(&mut self, socket: SocketId, incomplete: bool) {
        let now_ms = self.now.monotonic_ms;
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::HttpServer(serving) = &mut connection.link else {
            return;
        };
        let waiting_for_us = !serving.answers.is_empty();
        let incomplete = incomplete || serving.server.is_collecting();
        if !incomplete {
            let before = std::mem::take(&mut serving.request_since_ms);
            // The idle time is long; that it begins at the last change is exact enough.
            if before != 0 {
                self.connections.set_deadline(socket, now_ms + IDLE_MS_MAX);
            }
        } else if serving.request_since_ms == 0 && !waiting_for_us {
            serving.request_since_ms = now_ms;
            self.connections.set_deadline(socket, now_ms + REQUEST_MS_MAX);
        }
    }

    pub(super) fn http_overdue(&mut self, socket: SocketId) {
        let now_ms = self.now.monotonic_ms;
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::HttpServer(serving) = &mut connection.link else {
            return;
        };
        let is_long = serving.answers.is_long();
        if (serving.closing && serving.answers.is_empty()) || serving.answers.awaits_client() {
            self.ring.close(socket);
        } else if !serving.answers.is_empty() {
            // It waits for us, not we for it.
            let wait_ms = if is_long { UNREAD_MS_MAX } else { IDLE_MS_MAX };
            self.connections.set_deadline(socket, now_ms + wait_ms);
        } else if serving.request_since_ms != 0 {
            let body_is_coming = serving.server.is_collecting() || serving.server.needed() > connection.inbox.len() + 1;
            if body_is_coming && now_ms < serving.request_since_ms + 3 * REQUEST_MS_MAX {
                let body_deadline_ms = serving.request_since_ms + 3 * REQUEST_MS_MAX;
                self.connections.set_deadline(socket, body_deadline_ms);
                return;
            }
            serving.closing = true;
            let request = serving.next_request;
            serving.answers.push(Asked {
                request,
                keep_alive: false,
                ..Asked::PACKET
            });
            let reply_to = ReplyTo {
                shard: self.id,
                connection: socket.to_u64(),
                request,
            };
            let problem = Problem::new(408, "request_timeout", "the request took too long to arrive");
            self.answer_problem(reply_to, &problem);
        } else {
            self.ring.close(socket);
        }
    }

    fn ask_api(&mut self, socket: SocketId, reply_to: ReplyTo, mut request: ApiRequest) {
        if let Some(peer) = self.ring.peer_address(socket) {
            request.peer = peer.ip();
        }
        let mailboxes = self.mesh.mailboxes().clone();
        let me = usize::from(self.id);
        let respond = Box::new(move |response| {
            mailboxes[me].send(Message::Cold(Cold::ApiResponse { reply_to, response }));
        });
        let port = request.port;
        if self.api.try_send(Pending::Call { request, respond }).is_err() {
            if port == Port::Settlement {
                // As [`Body::Silence`] says.
                return self.ring.close(socket);
            }
            let problem = Problem::new(503, "not_ready", "too many API calls are waiting");
            self.answer_problem(reply_to, &problem.with_header("retry-after", "1"));
        }
    }

    /// Has the next piece of a long answer made. Its client is not asked to wait longer than others: if there are too many
    /// of them, it is cut off, and sees that.
    fn ask_for_piece(&mut self, reply_to: ReplyTo, source: Box<dyn BodySource>) {
        let mailboxes = self.mesh.mailboxes().clone();
        let me = usize::from(self.id);
        let respond = Box::new(move |piece| {
            mailboxes[me].send(Message::Cold(Cold::ApiPiece { reply_to, piece }));
        });
        if self.api.try_send(Pending::Piece { source, respond }).is_err() {
            self.ring.close(SocketId::from_u64(reply_to.connection));
        }
    }

    pub(super) fn api_responded(&mut self, reply_to: ReplyTo, response: ApiResponse) {
        let ApiResponse {
            status,
            headers,
            body,
            close,
        } = response;
        let body = match body {
            Body::WebSocket(subscription) => return self.subscribe(reply_to, *subscription),
            Body::Silence => return self.ring.close(SocketId::from_u64(reply_to.connection)),
            body => body,
        };
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let long = match body {
            Body::Whole(body) if body.len() <= PIECE_BYTES => {
                self.answer_http(reply_to, |out, date, asked| {
                    let keep_alive = asked.keep_alive && !close;
                    write_response(out, date, status, &headers, &body, keep_alive, asked.head_only);
                    keep_alive
                });
                return;
            }
            Body::Whole(body) => LongBody::Bytes(body),
            Body::Made(source) => LongBody::Made(source),
            Body::WebSocket(_) | Body::Silence => unreachable!("they were handled above"),
        };
        let date = *self.http_date.at(self.now.wall);
        self.go_on_answering(reply_to, |serving, out| {
            serving
                .answers
                .answer_long(reply_to.request, long, out, |out, asked, end| {
                    let keep_alive = asked.keep_alive && !close;
                    write_response_head(out, &date, status, &headers, end, keep_alive);
                    keep_alive
                })
        });
    }

    pub(super) fn api_made(&mut self, reply_to: ReplyTo, piece: Piece) {
        match piece {
            Piece::Made(bytes, source) => self.go_on_answering(reply_to, |serving, out| {
                serving.answers.handle_piece(reply_to.request, &bytes, source, out)
            }),
            Piece::Failed => self.ring.close(SocketId::from_u64(reply_to.connection)),
        }
    }

    /// Everything written to the connection has been sent: a long answer goes on, and so do requests that waited for it.
    pub(super) fn http_flushed(&mut self, socket: SocketId) {
        let Some(Link::HttpServer(serving)) = self.connections.get_mut(socket).map(|connection| &mut connection.link)
        else {
            return;
        };
        if serving.answers.is_long() {
            let reply_to = ReplyTo {
                shard: self.id,
                connection: socket.to_u64(),
                request: 0, // whichever is first
            };
            self.go_on_answering(reply_to, |serving, out| serving.answers.handle_drained(out));
        } else if std::mem::take(&mut serving.held_back) {
            self.process_inbox(socket);
        }
    }

    /// The client of a connection has said everything it will say. It gets its answers, also to what has not been looked at
    /// yet; then the connection ends.
    pub(super) fn http_finished(&mut self, socket: SocketId) {
        let now_ms = self.now.monotonic_ms;
        let Some(Link::HttpServer(serving)) = self.connections.get_mut(socket).map(|connection| &mut connection.link)
        else {
            return;
        };
        if serving.answers.is_empty() && !serving.held_back && !serving.closing {
            serving.closing = true;
            self.ring.drain(socket);
            self.connections.set_deadline(socket, now_ms + UNREAD_MS_MAX);
        }
    }

    pub(super) fn answer_problem(&mut self, reply_to: ReplyTo, problem: &Problem) {
        let body = problem.body(self.now.wall);
        let mut headers = vec![("content-type", "application/problem+json")];
        headers.extend_from_slice(problem.headers());
        self.answer_http(reply_to, |out, date, asked| {
            let (keep_alive, head_only) = (asked.keep_alive, asked.head_only);
            write_response(out, date, problem.status(), &headers, &body, keep_alive, head_only);
            keep_alive
        });
    }

    pub(super) fn reply_over_http(&mut self, reply_to: ReplyTo, packet: &[u8]) {
        self.answer_http(reply_to, |out, date, asked| {
            write_ok_packet(out, date, packet, asked.keep_alive);
            asked.keep_alive
        });
    }

    /// Writes the answer to a request, now or when those before it have been answered. `write` gets where to, the text
    /// for `Date`, and what the client asked; it says whether the connection stays.
    fn answer_http(
        &mut self,
        reply_to: ReplyTo,
        write: impl FnOnce(&mut Vec<u8>, &[u8; HTTP_DATE_BYTES], Asked) -> bool,
    ) {
        let date = *self.http_date.at(self.now.wall);
        self.go_on_answering(reply_to, |serving, out| {
            serving
                .answers
                .answer(reply_to.request, out, |out, asked| write(out, &date, asked))
        });
    }

    /// Lets `write` write to a connection, if it is still there, and does what that says is to be done next.
    fn go_on_answering(
        &mut self,
        reply_to: ReplyTo,
        write: impl FnOnce(&mut HttpServing, &mut Vec<u8>) -> Next<Box<dyn BodySource>>,
    ) {
        let socket = SocketId::from_u64(reply_to.connection);
        let now_ms = self.now.monotonic_ms;
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let Link::HttpServer(serving) = &mut connection.link else {
            return;
        };
        let Some(out) = self.ring.output(socket) else { return };
        let was_long = serving.answers.is_long();
        let next = write(serving, out);
        if let Next::Close = next {
            serving.closing = true;
            serving.answers.clear();
            self.ring.drain(socket);
            // The end of a long answer may still be here, if the client is slow.
            let wait_ms = if was_long { UNREAD_MS_MAX } else { LINGER_MS_MAX };
            self.connections.set_deadline(socket, now_ms + wait_ms);
            return;
        }
        // What waited for its turn, or for room among the answers, goes on; the latter when there is plenty again. If
        // nothing waits and nothing will come, the connection ends.
        let may_go_on = serving.answers.len() <= PIPELINED_MAX / 2 && !serving.answers.holds_up();
        let is_to_go_on = connection.finished || !connection.inbox.is_empty();
        if is_to_go_on && may_go_on && !self.resume.contains(&socket) {
            self.resume.push(socket);
        }
        let is_long = serving.answers.is_long();
        if was_long || is_long {
            let wait_ms = if is_long { UNREAD_MS_MAX } else { IDLE_MS_MAX };
            self.connections.set_deadline(socket, now_ms + wait_ms);
        }
        if let Next::Make(request, source) = next {
            self.ask_for_piece(ReplyTo { request, ..reply_to }, source);
        }
        self.adjust_reception(socket);
    }

    fn upgrade(&mut self, socket: SocketId, named: Option<AccountId>, name_given: bool, key: &str, btp: bool) {
        let Some(out) = self.ring.output(socket) else { return };
        websocket::write_server_handshake(out, key, btp.then_some("btp"));
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let phase = BtpPhase::Unauthenticated { named, name_given };
        let session = BtpSession::new(BtpLink::server(), phase, self.now.monotonic_ms);
        *connection = Connection {
            link: Link::Btp(session),
            ..Connection::new(Link::HttpServer(HttpServing::default()))
        };
        self.connections
            .set_deadline(socket, self.now.monotonic_ms + AUTHENTICATION_MS_MAX);
    }
}

/// How long the body of a request may be. A stranger cannot make us collect more than a packet's worth.
/// `guess` is told whether a token was right, if one was given and looked at: who names none guesses none.
fn body_max(head: &RequestHead<'_>, port: Port, tokens: &Tokens, guess: &Cell<Option<bool>>) -> usize {
    let is_right = |token: &str| {
        let is_hit = is_bearer_of(head, token);
        guess.set(head.header("authorization").map(|_| is_hit));
        is_hit
    };
    let may_be_large = match port {
        Port::Api => {
            let path = head.path();
            let mut tables = ["/rates", "/routes", "/settlement"].into_iter();
            tables.any(|table| path.starts_with(table)) && is_large(head) && is_right(&tokens.admin)
        }
        Port::Settlement => {
            let is_engine = |token: &Arc<str>| is_large(head) && is_right(token);
            is_settlement_message(head.path()) && tokens.settlement.as_ref().is_none_or(is_engine)
        }
    };
    if may_be_large {
        LARGE_BODY_BYTES_MAX
    } else {
        BODY_BYTES_MAX
    }
}

/// Whether the body is longer than anybody's may be, or may turn out to be. Of others no token is looked at here: it may
/// be another's, and right where it is checked.
fn is_large(head: &RequestHead<'_>) -> bool {
    let length = head
        .header("content-length")
        .and_then(|value| std::str::from_utf8(value).ok());
    match length.and_then(|length| length.trim().parse::<usize>().ok()) {
        Some(bytes) => bytes > BODY_BYTES_MAX,
        None => head.header("transfer-encoding").is_some(),
    }
}

fn is_bearer_of(head: &RequestHead<'_>, token: &str) -> bool {
    head.header("authorization")
        .and_then(parse_authorization)
        .and_then(|credentials| {
            credentials
                .bearer()
                .map(|value| secrets_equal(value.as_bytes(), token.as_bytes()))
        })
        .unwrap_or(false)
}

/// What to do with a request; the body of one for the API is still to be put in.
fn decide(
    head: &RequestHead<'_>,
    port: Port,
    directory: &Directory,
    blocked: bool,
    packet: impl FnOnce() -> Packet,
) -> Decision {
    let target = match port {
        Port::Api => classify(head.path()),
        Port::Settlement => Target::Api,
    };
    match target {
        Target::Packet { .. } if head.method == Method::Options => Decision::Methods(PACKET_METHODS),
        Target::Packet { .. } if head.method != Method::Post => {
            Decision::Problem(Problem::method_not_allowed(PACKET_METHODS, "packets are sent by POST"))
        }
        Target::Packet { username: Some(name) } if normalize_username(&name).is_err() => {
            Decision::Problem(Problem::impossible_name())
        }
        // Before the secret is looked at: who guesses too fast does not learn of a hit either.
        Target::Packet { .. } if blocked => Decision::Problem(
            Problem::new(429, "too_many_requests", "too many failed attempts from this address")
                .with_header("retry-after", "1"),
        ),
        Target::Packet { username } => match authenticate(head, username.as_deref(), directory) {
            Ok(account) => Decision::Packet {
                account,
                packet: packet(),
            },
            Err(problem) => Decision::Problem(problem),
        },
        Target::Btp { .. } if head.method == Method::Options => Decision::Methods(BTP_METHODS),
        Target::Btp { .. } if !matches!(head.method, Method::Get | Method::Head) => {
            Decision::Problem(Problem::method_not_allowed(BTP_METHODS, "a WebSocket begins with GET"))
        }
        Target::Btp { username: Some(name) } if normalize_username(&name).is_err() => {
            Decision::Problem(Problem::impossible_name())
        }
        Target::Btp { username } => match websocket_upgrade(head) {
            Some(upgrade) => Decision::Upgrade {
                named: username
                    .as_deref()
                    .and_then(|name| directory.find(name))
                    .map(|account| account.id),
                name_given: username.is_some(),
                key: upgrade.key.to_owned(),
                btp: upgrade.offers("btp"),
            },
            _ => Decision::Problem(
                Problem::new(426, "upgrade_required", "this is a WebSocket (RFC 6455), version 13")
                    .with_header("upgrade", "websocket")
                    .with_header("connection", "Upgrade")
                    .with_header("sec-websocket-version", "13"),
            ),
        },
        Target::Api => Decision::Api(Box::new(ApiRequest {
            port,
            method: head.method_text.to_owned(),
            target: head.target.to_owned(),
            headers: head
                .fields()
                .iter()
                .map(|(name, value)| (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))
                .collect(),
            body: Vec::new(),
            peer: std::net::Ipv4Addr::UNSPECIFIED.into(),
            websocket_key: websocket_upgrade(head).map(|upgrade| upgrade.key.into()),
        })),
    }
}

/// The wish to go on as a WebSocket, if it is one that we can grant.
fn websocket_upgrade<'a>(head: &RequestHead<'a>) -> Option<WebSocketUpgrade<'a>> {
    head.upgrade_websocket()
        .filter(|upgrade| upgrade.version == Some(13) && websocket::is_valid_key(upgrade.key))
}

/// Whose packet it is (http-api.md 2.2). An unknown name is refused like a wrong token, after the same work.
fn authenticate(
    head: &RequestHead<'_>,
    username: Option<&str>,
    directory: &Directory,
) -> Result<Arc<Account>, Problem> {
    let mut values = head.headers("authorization");
    let value = values.next().ok_or_else(Problem::unauthorized)?;
    if values.next().is_some() {
        return Err(Problem::bad_request("there is more than one Authorization header"));
    }
    let credentials: Credentials<'_> = parse_authorization(value).ok_or_else(Problem::unauthorized)?;
    // A bare password names nobody, and tokens need not be unique: without a name in the path it is refused.
    let name = match username {
        Some(name) => name,
        None => credentials.named_user().ok_or_else(Problem::unauthorized)?,
    };
    let account = directory.find(name);
    let secret = account.and_then(|account| account.links.http_incoming_token());
    let matches = credentials.matches(
        |user| account.is_some_and(|account| directory.find(user).is_some_and(|other| other.id == account.id)),
        |candidate| secrets_equal(candidate, secret.unwrap_or_default().as_bytes()),
    );
    match (account, secret) {
        (Some(account), Some(_)) if matches => Ok(account.clone()),
        _ => Err(Problem::failed_attempt()),
    }
}

fn within(part: &[u8], whole: &[u8]) -> bool {
    whole.as_ptr_range().contains(&part.as_ptr()) || part.is_empty()
}

/// Where `part`, a part of `whole`, lies in the bytes of which `whole` is the rest from `offset` on.
fn range_of(part: &[u8], whole: &[u8], offset: usize) -> std::ops::Range<usize> {
    if part.is_empty() {
        return offset..offset;
    }
    let start = part.as_ptr() as usize - whole.as_ptr() as usize + offset;
    start..start + part.len()
}
