//! HTTP requests of peers and operators: packets are handled here, WebSocket upgrades begin here, everything else goes
//! to the API threads. Answers leave in the order of the requests.

use std::sync::Arc;

use crate::ledger::directory::{normalize_username, secrets_equal};
use crate::ledger::{Account, AccountId, Directory};
use crate::link::btp::BtpLink;
use crate::link::http::Incoming;
use crate::net::SocketId;
use crate::pipeline::in_flight::ReplyTo;
use crate::wire::http::authorization::{Credentials, parse_authorization};
use crate::wire::http::write::{write_ok_packet, write_response};
use crate::wire::http::{Method, RequestHead};
use crate::wire::packet::{PACKET_BYTES_MAX, Prepare};
use crate::wire::timestamp::HTTP_DATE_BYTES;
use crate::wire::websocket;

use super::Shard;
use super::btp_sessions::AUTHENTICATION_MS_MAX;
use super::connections::{BtpPhase, BtpSession, Connection, HttpReply, HttpServing, Link};
use super::control::{ApiRequest, ApiResponse, Pending};
use super::paths::{Target, classify};
use super::problem::Problem;

/// A connection on which no request comes is closed after this long. Peers keep theirs busier than that.
pub const IDLE_MS_MAX: u64 = 600_000;
/// The head of a request must be complete this long after its first byte, and its body this long after that: a sender
/// that takes longer is broken or means us harm.
pub const REQUEST_MS_MAX: u64 = 10_000;
/// How long a closing connection may take to read our last answer.
const LINGER_MS_MAX: u64 = 2_000;

/// Requests of one connection that may wait for their answers; further ones stay unread.
const PIPELINED_MAX: usize = 256;

/// Bodies of API calls, and those that carry whole tables, which only the admin may send.
pub const BODY_BYTES_MAX: usize = PACKET_BYTES_MAX;
pub const TABLE_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

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
    Problem(Problem),
}

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
            if serving.replies.len() >= PIPELINED_MAX || connection.moving_to.is_some() {
                break;
            }
            let Some(out) = self.ring.output(socket) else {
                return bytes.len();
            };
            let rest = &bytes[used..];
            let admin_token = &self.admin_token;
            let result = serving.server.next(rest, |head| body_max(head, admin_token), out);
            let (taken, decision, keep_alive, head_only) = match result {
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
                    (taken, Decision::Packet { account, packet }, true, false)
                }
                Ok((taken, Some(Incoming::Request { head, body }))) => {
                    serving.repeating = None;
                    let within = within(body, rest);
                    // Who asks is looked up only if anybody has failed lately.
                    let blocked = !self.failures.is_empty()
                        && head.header("authorization").is_some()
                        && self
                            .ring
                            .peer_address(socket)
                            .is_some_and(|peer| self.failures.is_blocked(peer.ip(), self.now.monotonic_ms));
                    let decision = decide(&head, body, self.pipeline.directory(), blocked, || {
                        if within {
                            Packet::Within(range_of(body, rest, used))
                        } else {
                            Packet::Apart(body.into())
                        }
                    });
                    (taken, decision, head.keep_alive(), head.method == Method::Head)
                }
                Err(refused) => (rest.len(), Decision::Problem(refused.into()), false, false),
            };
            if let Decision::Packet {
                account,
                packet: Packet::Within(_),
            } = &decision
            {
                let owner = self.pipeline.owner_of(account.id);
                if owner != self.id && !connection.moved && serving.replies.is_empty() && !connection.finished {
                    // It begins again there, with this request.
                    *serving = HttpServing::default();
                    connection.moving_to = Some(owner);
                    self.move_if_ready(socket);
                    return used;
                }
                if keep_alive && serving.repeating.is_none() {
                    serving.server.remember();
                    serving.repeating = Some(account.clone());
                }
            }
            let decision = match decision {
                // Behind it there is no HTTP any more, and these answers are still to come.
                Decision::Upgrade { .. } if !serving.replies.is_empty() => Decision::Problem(Problem::bad_request(
                    "a WebSocket begins when all earlier requests are answered",
                )),
                other => other,
            };
            let request = serving.next_request;
            serving.next_request = request.wrapping_add(1);
            serving.closing = !keep_alive;
            if !matches!(decision, Decision::Upgrade { .. }) {
                serving.replies.push_back(HttpReply {
                    request,
                    keep_alive,
                    head_only,
                    ready: None,
                });
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
        let waiting_for_us = !serving.replies.is_empty();
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
        if serving.closing && serving.replies.is_empty() {
            self.ring.close(socket);
        } else if !serving.replies.is_empty() {
            // It waits for us, not we for it.
            self.connections.set_deadline(socket, now_ms + IDLE_MS_MAX);
        } else if serving.request_since_ms != 0 {
            let body_is_coming = serving.server.needed() > connection.inbox.len() + 1;
            if body_is_coming && now_ms < serving.request_since_ms + 3 * REQUEST_MS_MAX {
                let body_deadline_ms = serving.request_since_ms + 3 * REQUEST_MS_MAX;
                self.connections.set_deadline(socket, body_deadline_ms);
                return;
            }
            serving.closing = true;
            let request = serving.next_request;
            serving.replies.push_back(HttpReply {
                request,
                keep_alive: false,
                head_only: false,
                ready: None,
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
            mailboxes[me].send(super::mesh::Message::Cold(super::mesh::Cold::ApiResponse {
                reply_to,
                response,
            }));
        });
        if self.api.try_send(Pending { request, respond }).is_err() {
            let problem = Problem::new(503, "not_ready", "too many API calls are waiting");
            self.answer_problem(reply_to, &problem.with_header("retry-after", "1"));
        }
    }

    pub(super) fn api_responded(&mut self, reply_to: ReplyTo, response: &ApiResponse) {
        let headers: Vec<(&str, &str)> = response
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        self.answer_http(reply_to, |out, date, keep_alive, head_only| {
            let keep_alive = keep_alive && !response.close;
            let (status, body) = (response.status, &response.body);
            write_response(out, date, status, &headers, body, keep_alive, head_only);
            keep_alive
        });
    }

    fn answer_problem(&mut self, reply_to: ReplyTo, problem: &Problem) {
        let body = problem.body(self.now.wall);
        let content_type = ("content-type", "application/problem+json");
        let headers: Vec<_> = std::iter::once(content_type).chain(problem.header()).collect();
        self.answer_http(reply_to, |out, date, keep_alive, head_only| {
            write_response(out, date, problem.status(), &headers, &body, keep_alive, head_only);
            keep_alive
        });
    }

    pub(super) fn reply_over_http(&mut self, reply_to: ReplyTo, packet: &[u8]) {
        self.answer_http(reply_to, |out, date, keep_alive, _| {
            write_ok_packet(out, date, packet, keep_alive);
            keep_alive
        });
    }

    /// Writes the answer to a request, now or when those before it have been answered. `write` gets where to, the text
    /// for `Date`, whether the client lets the connection stay, and whether the body is left out; it says whether the
    /// connection stays.
    fn answer_http(
        &mut self,
        reply_to: ReplyTo,
        write: impl FnOnce(&mut Vec<u8>, &[u8; HTTP_DATE_BYTES], bool, bool) -> bool,
    ) {
        let socket = SocketId::from_u64(reply_to.connection);
        let now_ms = self.now.monotonic_ms;
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        let finished = connection.finished;
        let Link::HttpServer(serving) = &mut connection.link else {
            return;
        };
        let Some(at) = serving
            .replies
            .iter()
            .position(|reply| reply.request == reply_to.request)
        else {
            return;
        };
        let date = self.http_date.at(self.now.wall);
        if at > 0 {
            let reply = &mut serving.replies[at];
            let mut bytes = Vec::new();
            reply.keep_alive = write(&mut bytes, date, reply.keep_alive, reply.head_only);
            reply.ready = Some(bytes);
            return;
        }
        let Some(out) = self.ring.output(socket) else { return };
        let first = serving.replies.pop_front().expect("found above");
        let mut keep_alive = write(out, date, first.keep_alive, first.head_only);
        while keep_alive
            && let Some(next) = serving.replies.front_mut()
            && let Some(bytes) = next.ready.take()
        {
            out.extend_from_slice(&bytes);
            keep_alive = next.keep_alive;
            serving.replies.pop_front();
        }
        if !keep_alive || (finished && serving.replies.is_empty()) {
            serving.closing = true;
            serving.replies.clear();
            self.ring.drain(socket);
            self.connections.set_deadline(socket, now_ms + LINGER_MS_MAX);
            return;
        }
        // What waited for room among the replies goes on when there is plenty again.
        if !connection.inbox.is_empty() && serving.replies.len() <= PIPELINED_MAX / 2 && !self.resume.contains(&socket)
        {
            self.resume.push(socket);
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
fn body_max(head: &RequestHead<'_>, admin_token: &str) -> usize {
    let path = head.path();
    let carries_a_table = path.starts_with("/rates") || path.starts_with("/routes") || path.starts_with("/settlement");
    if carries_a_table && is_admin(head, admin_token) {
        TABLE_BODY_BYTES_MAX
    } else {
        BODY_BYTES_MAX
    }
}

fn is_admin(head: &RequestHead<'_>, admin_token: &str) -> bool {
    head.header("authorization")
        .and_then(parse_authorization)
        .and_then(|credentials| {
            credentials
                .bearer()
                .map(|value| secrets_equal(value.as_bytes(), admin_token.as_bytes()))
        })
        .unwrap_or(false)
}

fn decide(
    head: &RequestHead<'_>,
    body: &[u8],
    directory: &Directory,
    blocked: bool,
    packet: impl FnOnce() -> Packet,
) -> Decision {
    match classify(head.path()) {
        Target::Packet { .. } if head.method == Method::Options => {
            Decision::Problem(Problem::new(204, "", "").with_header("allow", "POST, OPTIONS"))
        }
        Target::Packet { .. } if head.method != Method::Post => {
            Decision::Problem(Problem::method_not_allowed("POST, OPTIONS", "packets are sent by POST"))
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
        Target::Btp { .. } if head.method != Method::Get => {
            Decision::Problem(Problem::method_not_allowed("GET", "a WebSocket begins with GET"))
        }
        Target::Btp { username: Some(name) } if normalize_username(&name).is_err() => {
            Decision::Problem(Problem::impossible_name())
        }
        Target::Btp { username } => match head.upgrade_websocket() {
            Some(upgrade) if websocket::is_valid_key(upgrade.key) && upgrade.version == Some(13) => Decision::Upgrade {
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
                    .with_header("sec-websocket-version", "13"),
            ),
        },
        Target::Api => Decision::Api(Box::new(ApiRequest {
            method: head.method_text.to_owned(),
            target: head.target.to_owned(),
            headers: head
                .fields()
                .iter()
                .map(|(name, value)| (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))
                .collect(),
            body: body.to_vec(),
            peer: std::net::Ipv4Addr::UNSPECIFIED.into(),
        })),
    }
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
