//! The HTTP API: what an operator and the holders of accounts may ask of the node and change about it.
//!
//! Owns the way of one call: path, method, size, credentials, content type, JSON, and what is answered or refused, in
//! this order. [`path`] names resources, [`auth`] admits callers, [`json`], [`fields`] and [`values`] read bodies,
//! [`problem`] says no, [`stream`] answers at length; one file per group of calls does the rest, [`settlement_port`] what
//! engines ask on their own port. Leaves connections and HTTP's own framing to the shards, which hand over whole requests,
//! and every effect to [`crate::control`].
//!
//! Always: a handler may wait (for the disk, for all shards, for packets in flight), so it runs on a thread of its own
//! and never on a shard; what takes longer is answered later and holds no thread ([`Answer`]); a call that was refused has
//! changed nothing; no answer and no log line holds a secret.

mod accounts;
mod auth;
mod engines;
mod fields;
mod json;
pub mod node;
mod notifications;
pub mod path;
mod payments;
mod problem;
mod query;
mod rates;
mod routes;
mod settlement_port;
mod settlements;
mod spsp;
mod stream;
mod values;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Receiver;

use crate::control::Control;
use crate::control::explain::PacketRules;
use crate::control::payments::Payments;
use crate::logs;
use crate::shard::clock;
use crate::shard::control::{ApiRequest, ApiResponse, Pending, Piece, Port};
use crate::stream::secret::TokenMaker;
use crate::wire::timestamp::Timestamp;

pub use accounts::BalanceFormat;
use auth::Gate;
use json::Json;
use notifications::Seats;
use path::{Method, Resource};
use problem::{Kind, Problem};
use query::wants_detail;
pub use spsp::own_server;

/// What the operator decides about the API before the node starts.
pub struct Settings {
    pub admin_auth_token: Box<str>,
    /// What settlement engines authenticate with on their port; `None`: with nothing.
    pub settlement_api_token: Option<Box<str>>,
    /// Whether anybody may read rates and routes; else the admin and all holders.
    pub open_reads: bool,
    pub balance_format: BalanceFormat,
    /// User name or id of the account that is paid under the node's own name.
    pub default_spsp_account: Option<Box<str>>,
    /// What explanations of routes go by.
    pub packet_rules: PacketRules,
    /// Makes the addresses that payers are given.
    pub tokens: TokenMaker,
    /// Changes which log lines are written.
    pub change_log_filter: logs::Change,
}

/// The API of one node. Any number of threads may answer from it.
pub struct Api {
    control: Arc<Control>,
    payments: Payments,
    settings: Settings,
    gate: Gate,
    /// Of those who follow what accounts receive.
    seats: Seats,
    /// What monotonic times are counted from.
    started: Instant,
}

/// Answers requests, and goes on with long answers, until there can be no more. Several threads may share one receiver.
pub fn serve(api: &Api, requests: &Receiver<Pending>) {
    for pending in requests {
        // Our own mistake in one call must not take the API away from all others.
        match pending {
            Pending::Call { request, respond } => {
                let responder = Responder::new(&request, respond);
                // Its end answers the call, also when it is dropped on the way out of a panic.
                let _ = catch_unwind(AssertUnwindSafe(|| api.handle(&request, responder)));
            }
            Pending::Piece { mut source, respond } => {
                let made = catch_unwind(AssertUnwindSafe(|| source.next_piece()));
                respond(match made {
                    Ok((bytes, has_more)) => Piece::Made(bytes, has_more.then_some(source)),
                    Err(_) => {
                        tracing::error!(target: "api", "a long answer failed in the program");
                        Piece::Failed
                    }
                });
            }
        }
    }
}

/// What becomes of a call.
enum Answer {
    Now(ApiResponse),
    /// Somebody answers it when it is done, on another thread.
    Later(Box<dyn FnOnce(Responder)>),
}

/// Answers one call, once, from any thread.
struct Responder {
    respond: Option<Box<dyn FnOnce(ApiResponse) + Send>>,
    line: AccessLine,
    /// See [`settlement_port::credits`].
    credits: bool,
}

impl Responder {
    fn new(request: &ApiRequest, respond: Box<dyn FnOnce(ApiResponse) + Send>) -> Self {
        Self {
            respond: Some(respond),
            line: AccessLine::new(request),
            credits: settlement_port::credits(request),
        }
    }

    fn respond(mut self, response: ApiResponse) {
        self.send(response);
    }

    fn send(&mut self, mut response: ApiResponse) {
        if let Some(respond) = self.respond.take() {
            self.line.log(response.status);
            if self.credits {
                settlement_port::keep_silent(&mut response);
            }
            respond(response);
        }
    }
}

/// Nobody will answer any more: our own mistake, and the caller must not wait for ever.
impl Drop for Responder {
    fn drop(&mut self) {
        if self.respond.is_some() {
            tracing::error!(target: "api", method = self.line.method, "a call failed in the program");
            let problem = Problem::new(Kind::Internal, "the call failed in the program");
            self.send(problem.into_response(clock::wall()));
        }
    }
}

impl Api {
    pub fn new(control: Arc<Control>, payments: Payments, settings: Settings) -> Self {
        Self {
            control,
            payments,
            gate: Gate::new(&settings.admin_auth_token, settings.settlement_api_token.as_deref()),
            seats: Seats::default(),
            settings,
            started: Instant::now(),
        }
    }

    /// Answers one request, or has it answered later. May wait as long as the slowest change may: half a minute.
    fn handle(&self, request: &ApiRequest, responder: Responder) {
        let now = clock::wall();
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self.answer(request, now, now_ms) {
            Ok(Answer::Now(response)) => responder.respond(response),
            Ok(Answer::Later(begin)) => begin(responder),
            Err(problem) => responder.respond(problem.into_response(now)),
        }
    }

    /// The same at a given time: of the wall, and monotonic in milliseconds.
    fn answer(&self, request: &ApiRequest, now: Timestamp, now_ms: u64) -> Result<Answer, Problem> {
        if request.port == Port::Settlement {
            return settlement_port::answer(&self.control, &self.gate, request, now_ms);
        }
        let Some((resource, query)) = Resource::parse(&request.target) else {
            return Err(Problem::new(Kind::NotFound, "there is nothing under this path"));
        };
        let method = match request.method.as_str() {
            "GET" | "HEAD" => Some(Method::Get),
            "POST" => Some(Method::Post),
            "PUT" => Some(Method::Put),
            "DELETE" => Some(Method::Delete),
            "OPTIONS" => {
                let mut headers = vec![("allow", resource.allow())];
                if matches!(resource, Resource::Spsp(_) | Resource::Pay) {
                    headers.extend(spsp::CORS_HEADERS.map(|(name, value)| (name, value.to_owned())));
                }
                return Ok(Answer::Now(ApiResponse {
                    status: 204,
                    headers,
                    body: vec![].into(),
                    close: false,
                }));
            }
            _ => None,
        };
        let Some(method) = method.filter(|method| resource.methods().contains(method)) else {
            let problem = Problem::new(Kind::MethodNotAllowed, "this path has other methods, see Allow");
            return Err(problem.with_header("allow", resource.allow()));
        };
        if request.body.len() > resource.body_bytes_max() {
            let detail = format!("the body may have at most {} bytes", resource.body_bytes_max());
            return Err(Problem::new(Kind::PayloadTooLarge, detail).closing());
        }
        let control = &self.control;
        let response = match (resource, method) {
            (Resource::Payments(username), Method::Post) => {
                let account = self.gate.find_holder(control, request, now_ms, &username)?;
                return payments::pay(&self.payments, request, account);
            }
            (Resource::Quotes(username), _) => {
                let account = self.gate.find_holder(control, request, now_ms, &username)?;
                return payments::quote(&self.payments, request, account);
            }
            (Resource::Payments(username), _) => {
                let (account, _) = self.gate.find(control, request, now_ms, &username)?;
                payments::list(&self.payments, &account, query)
            }
            (Resource::Settlements(username), Method::Get) => {
                let (account, _) = self.gate.find(control, request, now_ms, &username)?;
                settlements::list(control, &account, query)
            }
            (Resource::Node, _) => Ok(node::health(control)),
            (Resource::Description, _) => Ok(node::description()),
            (Resource::Spsp(username), _) => spsp::of_account(control, &self.settings.tokens, &username),
            (Resource::Pay, _) => {
                let default = self.settings.default_spsp_account.as_deref();
                spsp::of_node(control, &self.settings.tokens, default)
            }
            (Resource::Routes, Method::Get) if wants_detail(query)? => {
                self.gate.admit_admin(request, now_ms)?;
                routes::list_in_detail(control)
            }
            (Resource::Rates, Method::Get) if wants_detail(query)? => {
                self.gate.admit_admin(request, now_ms)?;
                Ok(rates::detail(control, now))
            }
            (resource @ (Resource::Routes | Resource::Rates), Method::Get) => {
                if !self.settings.open_reads {
                    self.gate.admit_admin_or_any_holder(control, request, now_ms)?;
                }
                Ok(match resource {
                    Resource::Routes => routes::list(control),
                    _ => rates::read(control),
                })
            }
            (Resource::Btp, _) => {
                let problem = Problem::new(Kind::UpgradeRequired, "BTP is spoken over WebSocket");
                Err(problem
                    .with_header("upgrade", "websocket")
                    .with_header("connection", "Upgrade"))
            }
            (Resource::Packets, _) => Err(Problem::new(
                Kind::UnsupportedMediaType,
                "a packet comes as application/octet-stream to the shard that owns its account",
            )),
            (Resource::Account(username), Method::Get) => {
                let (account, _) = self.gate.find(control, request, now_ms, &username)?;
                Ok(accounts::read(control, &account))
            }
            (Resource::Balance(username), _) => {
                let (account, _) = self.gate.find(control, request, now_ms, &username)?;
                accounts::balance(control, &account, self.settings.balance_format, query)
            }
            (Resource::IncomingPayments(username), _) => {
                let (account, caller) = self.gate.find(control, request, now_ms, &username)?;
                notifications::of_account(&self.seats, request, account, caller)
            }
            (Resource::Settings(username), _) => {
                let (account, caller) = self.gate.find(control, request, now_ms, &username)?;
                accounts::change_settings(control, request, &account, caller)
            }
            (resource, method) => {
                self.gate.admit_admin(request, now_ms)?;
                match (resource, method) {
                    (Resource::Accounts, Method::Get) => accounts::list(control, query),
                    (Resource::Accounts, _) => accounts::create(control, request, now),
                    (Resource::Account(username), Method::Put) => accounts::update(control, request, &username),
                    (Resource::Account(username), _) => accounts::delete(control, &username, query),
                    (Resource::RouteExplanation, _) => routes::explain(control, self.settings.packet_rules, query),
                    (Resource::StaticRoutes, _) => routes::replace(control, request),
                    (Resource::StaticRoute(prefix), Method::Put) => routes::set(control, request, &prefix),
                    (Resource::StaticRoute(prefix), _) => routes::remove(control, &prefix),
                    (Resource::AllIncomingPayments, _) => notifications::of_all(&self.seats, request),
                    (Resource::Rates, _) => rates::replace(control, request),
                    (Resource::RatesConfirm, _) => rates::confirm(control, request),
                    (Resource::Engines, _) => engines::merge(control, request),
                    (Resource::Settlements(username), _) => settlements::settle_now(control, &username),
                    (Resource::CancelSettlement(username, id), _) => {
                        settlements::cancel(control, &username, &id, query)
                    }
                    (Resource::ConfirmSettlement(username, id), _) => settlements::confirm(control, &username, &id),
                    (Resource::RetrySettlement(username, id), _) => settlements::retry(control, &username, &id, query),
                    (Resource::LogLevel, _) => node::change_log_level(&self.settings.change_log_filter, request),
                    (Resource::Audit, _) => node::audit(control),
                    (Resource::Backup, _) => node::backup(control, request),
                    _ => Err(Problem::new(Kind::Internal, "this call is admitted and has no handler")),
                }
            }
        };
        response.map(Answer::Now)
    }
}

/// The body of a call that takes JSON.
fn read_json(request: &ApiRequest) -> Result<Json, Problem> {
    check_content_type(request)?;
    Ok(json::parse(&request.body)?)
}

/// Any `application/*` or none at all: command-line clients send the type of forms.
fn check_content_type(request: &ApiRequest) -> Result<(), Problem> {
    let Some((_, value)) = request.headers.iter().find(|(name, _)| name == "content-type") else {
        return Ok(());
    };
    let value = String::from_utf8_lossy(value);
    let mut parts = value.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let is_application = media_type
        .split_once('/')
        .is_some_and(|(kind, _)| kind.trim().eq_ignore_ascii_case("application"));
    if !is_application {
        return Err(Problem::new(Kind::UnsupportedMediaType, "expected application/json"));
    }
    for parameter in parts {
        let Some((name, value)) = parameter.split_once('=') else {
            continue;
        };
        let charset = value.trim().trim_matches('"');
        if name.trim().eq_ignore_ascii_case("charset") && !charset.eq_ignore_ascii_case("utf-8") {
            return Err(Problem::new(Kind::BadRequest, "the charset of JSON is utf-8"));
        }
    }
    Ok(())
}

/// One line per call, written when it is answered; the query stays out, because clients put secrets there.
struct AccessLine {
    peer: IpAddr,
    /// The same path is another thing on another port.
    port: &'static str,
    method: String,
    path: String,
    referrer: String,
    agent: String,
}

impl AccessLine {
    fn new(request: &ApiRequest) -> Self {
        let header = |wanted: &str| {
            let value = request
                .headers
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_slice());
            String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
        };
        Self {
            peer: request.peer,
            port: match request.port {
                Port::Api => "api",
                Port::Settlement => "settlement",
            },
            method: request.method.clone(),
            path: request.target.split('?').next().unwrap_or_default().to_owned(),
            referrer: header("referer"),
            agent: header("user-agent"),
        }
    }

    fn log(&self, status: u16) {
        tracing::info!(
            target: "api",
            peer = %self.peer,
            port = self.port,
            method = self.method,
            path = self.path,
            status,
            referrer = self.referrer,
            agent = self.agent,
        );
    }
}
