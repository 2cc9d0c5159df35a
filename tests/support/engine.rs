//! Settlement engines: real ones on `ilp-settlement-core` with a ledger of the tests' own in Redis, and a small one in
//! this process for tests that need many, fast, or with faults that follow one another exactly.
//!
//! Always: whoever uses an idempotency key of [`FakeEngine`] again with another amount, or none at all, fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{HttpRequest, read_request, whole};
use super::javascript::Script;
use super::server::Server;
use super::{eventually, free_address, free_port};

/// A Redis server with nothing in it that keeps nothing; ended when dropped.
pub struct Redis {
    child: Child,
    port: u16,
    folder: PathBuf,
    databases_given: AtomicU8,
}

impl Redis {
    pub fn start() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the target folder is writable");
        let port = free_port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("redis-server cannot be run ({error}): install Redis 6 or later"));
        let redis = Self {
            child,
            port,
            folder,
            databases_given: AtomicU8::new(0),
        };
        eventually("Redis answers", || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(b"PING\r\n").ok()?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).ok()?;
            (&answer == b"+PONG\r\n").then_some(())
        });
        redis
    }

    /// An engine forgets that it was ever asked with this key, as one does that keeps its keys for a day.
    pub fn forget_key(&self, engine: &Engine, account: &str, key: &str) {
        let [.., database] = &engine.arguments;
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("Redis listens");
        let commands = format!("SELECT {database}\r\nDEL accounts:{account}:settlement-requests:{key}\r\n");
        stream.write_all(commands.as_bytes()).expect("Redis takes commands");
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).expect("Redis answers");
        assert_eq!(&answer, b"+OK\r\n:1\r\n", "the engine had the key");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What is wrong with an engine's API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answers, but not at once.
    Slow(Duration),
    /// Answers with this, and does nothing.
    Status(u16),
    /// Neither does anything nor answers.
    Hang,
    /// Does the work and never says so.
    Silent,
    /// Does the work and closes the connection instead of answering.
    Lose,
    /// Does the work and answers with what is not HTTP.
    Garbage,
}

/// One transfer on the ledger of the real engines; addresses are `ENGINE/ACCOUNT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerTransfer {
    pub id: String,
    pub from: String,
    pub to: String,
    pub amount: i128,
}

/// The whole ledger, and how far one engine has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerView {
    pub transfers: Vec<LedgerTransfer>,
    /// What this engine has accepted and not moved yet.
    pub queued: i128,
    /// How many transfers to this engine its connector has not taken yet.
    pub unannounced: u64,
    /// How many requests it has had since its last start.
    pub requests: u64,
}

impl LedgerView {
    /// What has come to an address less what has left it.
    pub fn balance(&self, address: &str) -> i128 {
        self.received(address) - self.sent(address)
    }

    pub fn sent(&self, address: &str) -> i128 {
        let all = self.transfers.iter().filter(|transfer| transfer.from == address);
        all.map(|transfer| transfer.amount).sum()
    }

    pub fn received(&self, address: &str) -> i128 {
        let all = self.transfers.iter().filter(|transfer| transfer.to == address);
        all.map(|transfer| transfer.amount).sum()
    }
}

/// `engine.js`: a process that can be killed and started again without losing anything.
pub struct Engine {
    pub name: String,
    pub address: SocketAddr,
    arguments: [String; 5],
    script: Option<Script>,
}

impl Engine {
    /// `connector` is where settlements that have arrived are announced: the base of its settlement API, which
    /// need not be up yet. Engines on one `redis` share one ledger.
    pub fn start(redis: &Redis, name: &str, connector: &str) -> Self {
        let address = free_address();
        // Database 0 has the ledger.
        let database = redis.databases_given.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(database < 16, "Redis has 16 databases");
        let mut engine = Self {
            name: name.to_owned(),
            address,
            arguments: [
                name.to_owned(),
                address.port().to_string(),
                connector.trim_end_matches('/').to_owned(),
                redis.port.to_string(),
                database.to_string(),
            ],
            script: None,
        };
        engine.run();
        engine
    }

    /// Starts the process again, and waits until it is ready.
    pub fn run(&mut self) {
        assert!(self.script.is_none(), "it runs already");
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.script = Some(Script::ready("engine.js", &arguments));
    }

    /// SIGKILL. Gives back when the process is gone.
    pub fn kill(&mut self) {
        drop(self.script.take().expect("the engine runs"));
    }

    pub fn is_running(&self) -> bool {
        self.script.is_some()
    }

    pub fn signal(&self, signal: libc::c_int) {
        let script = self.script.as_ref().expect("the engine runs");
        let pid = libc::pid_t::try_from(script.child.id()).expect("a process number");
        // SAFETY: kill takes two integers; the process is our own child and was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "our own child can be signalled");
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where one of its accounts is on the ledger.
    pub fn ledger_address(&self, account: &str) -> String {
        format!("{}/{account}", self.name)
    }

    /// Tells it where the peer behind an account is on the ledger, so that it need not ask with a message.
    pub fn link(&mut self, account: &str, peer: &str) {
        self.ask(json!({"command": "link", "account": account, "peer": peer}));
    }

    /// Until [`Self::mend`].
    pub fn break_down(&mut self, fault: Fault) {
        self.break_down_for("", fault, None);
    }

    /// For so many requests whose target contains `only`.
    pub fn break_down_for(&mut self, only: &str, fault: Fault, times: Option<u32>) {
        let (kind, ms, status) = match fault {
            Fault::Slow(pause) => ("slow", pause.as_millis() as u64, 0),
            Fault::Status(status) => ("status", 0, status),
            Fault::Hang => ("hang", 0, 0),
            Fault::Silent => ("silent", 0, 0),
            Fault::Lose => ("lose", 0, 0),
            Fault::Garbage => ("garbage", 0, 0),
        };
        let command = json!({
            "command": "fault", "kind": kind, "only": only, "times": times, "ms": ms, "status": status,
        });
        self.ask(command);
    }

    pub fn mend(&mut self) {
        self.ask(json!({"command": "fault", "kind": "none"}));
    }

    /// What it accepts stays in its queue, until told otherwise or started again.
    pub fn pause_settling(&mut self, paused: bool) {
        self.ask(json!({"command": "pause", "what": "settling", "paused": paused}));
    }

    /// What arrives is not told to its connector, until told otherwise or started again.
    pub fn pause_announcing(&mut self, paused: bool) {
        self.ask(json!({"command": "pause", "what": "announcing", "paused": paused}));
    }

    /// The ledger takes no fraction of 10^-`scale`, as far as this engine pays: what is finer stays in its queue and goes
    /// with what comes next. Until started again.
    pub fn set_ledger_scale(&mut self, scale: u8) {
        self.ask(json!({"command": "ledger_scale", "scale": scale}));
    }

    /// Pays the peer of an account so many units of 10^-9 that its connector has not asked for.
    pub fn give(&mut self, account: &str, nanos: u64) {
        let amount = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
        self.ask(json!({"command": "give", "account": account, "amount": amount}));
    }

    /// The accounts that it knows.
    pub fn accounts(&mut self) -> BTreeSet<String> {
        let answer = self.ask(json!({"command": "accounts"}));
        let accounts = answer["accounts"].as_array().expect("an array").iter();
        accounts
            .map(|account| account.as_str().expect("text").to_owned())
            .collect()
    }

    /// Every amount in units of 10^-`scale`.
    pub fn ledger(&mut self, scale: u8) -> LedgerView {
        let answer = self.ask(json!({"command": "ledger", "scale": scale}));
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let transfers = answer["transfers"].as_array().expect("an array").iter();
        LedgerView {
            transfers: transfers
                .map(|transfer| LedgerTransfer {
                    id: text(&transfer["id"]),
                    from: text(&transfer["from"]),
                    to: text(&transfer["to"]),
                    amount: whole(&transfer["amount"]),
                })
                .collect(),
            queued: whole(&answer["queued"]),
            unannounced: answer["unannounced"].as_u64().expect("a number"),
            requests: answer["requests"].as_u64().expect("a number"),
        }
    }

    fn ask(&mut self, command: Value) -> Value {
        self.script.as_mut().expect("the engine runs").ask(&command)
    }
}

/// One settlement that [`FakeEngine`] has made, once per key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FakeSettlement {
    pub account: String,
    pub key: String,
    pub amount: u128,
    pub scale: u8,
}

/// An engine of this process: a real HTTP server that keeps the contract, with faults on demand. It may stand in for a
/// connector's settlement API, too, which has the same two calls.
pub struct FakeEngine {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: Server,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    accounts: BTreeSet<String>,
    /// By account and key: the amount and the scale.
    keys: BTreeMap<(String, String), (u128, u8)>,
    settlements: Vec<FakeSettlement>,
    messages: Vec<Vec<u8>>,
    /// `None`: the message itself.
    reply: Option<Vec<u8>>,
    requests: Vec<HttpRequest>,
    fault: Option<PlannedFault>,
    violations: Vec<String>,
}

struct PlannedFault {
    fault: Fault,
    only: String,
    times: Option<u32>,
}

impl FakeEngine {
    pub fn start() -> Self {
        Self::start_at(free_address())
    }

    pub fn start_at(address: SocketAddr) -> Self {
        let shared = Arc::<Shared>::default();
        let serving = Arc::clone(&shared);
        Self {
            address,
            shared,
            server: Server::start_at(address, move |stream| serve(stream, &serving)),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Nobody listens any more, and every connection is closed. What it knows stays.
    pub fn go_down(&mut self) {
        self.server.go_down();
    }

    pub fn come_back(&mut self) {
        self.server.come_back();
    }

    /// As if the connector had created it.
    pub fn add_account(&self, account: &str) {
        self.state().accounts.insert(account.to_owned());
    }

    pub fn accounts(&self) -> Vec<String> {
        self.state().accounts.iter().cloned().collect()
    }

    /// Until [`Self::mend`].
    pub fn break_down(&self, fault: Fault) {
        self.break_down_for("", fault, None);
    }

    /// For so many requests whose target contains `only`.
    pub fn break_down_for(&self, only: &str, fault: Fault, times: Option<u32>) {
        self.state().fault = Some(PlannedFault {
            fault,
            only: only.to_owned(),
            times,
        });
    }

    pub fn mend(&self) {
        self.state().fault = None;
    }

    /// What a message is answered with, instead of itself.
    pub fn reply_with(&self, reply: &[u8]) {
        self.state().reply = Some(reply.to_vec());
    }

    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.state().messages.clone()
    }

    /// Every request so far, those that met a fault too.
    pub fn requests(&self) -> Vec<HttpRequest> {
        self.state().requests.clone()
    }

    /// In the order in which they were made.
    pub fn settlements(&self) -> Vec<FakeSettlement> {
        self.state().settlements.clone()
    }

    /// What it has paid for an account, in units of 10^-`scale`.
    pub fn total(&self, account: &str, scale: u8) -> u128 {
        let settlements = self.settlements();
        let of_account = settlements.iter().filter(|settlement| settlement.account == account);
        of_account
            .map(|settlement| {
                let shift = |from: u8, to: u8| 10u128.checked_pow((to - from).into()).expect("scales of a test");
                if settlement.scale <= scale {
                    return settlement.amount * shift(settlement.scale, scale);
                }
                let divisor = shift(scale, settlement.scale);
                assert_eq!(
                    settlement.amount % divisor,
                    0,
                    "{settlement:?} is no integer at scale {scale}"
                );
                settlement.amount / divisor
            })
            .sum()
    }

    /// What its callers did against the contract so far, and forgets it.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().violations)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no test panics here")
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(
                self.take_violations(),
                Vec::<String>::new(),
                "a settlement engine was called wrongly"
            );
        }
    }
}

fn serve(mut stream: &TcpStream, shared: &Shared) {
    // Every answer is one write; without this the kernel may keep it for the next.
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    while let Some(request) = read_request(stream, &mut buffer) {
        let lock = || shared.state.lock().expect("no test panics here");
        let fault = lock().note(&request);
        match fault {
            Some(Fault::Slow(pause)) => std::thread::sleep(pause),
            Some(Fault::Status(status)) => {
                if respond(stream, status, b"out of order").is_err() {
                    return;
                }
                continue;
            }
            Some(Fault::Hang) => return wait_for_end(stream),
            _ => {}
        }
        let (status, body) = lock().handle(&request);
        let written = match fault {
            Some(Fault::Silent) => return wait_for_end(stream),
            Some(Fault::Lose) => return,
            Some(Fault::Garbage) => {
                // The client may have left.
                let _ = stream.write_all(b"garbage\r\n\r\n");
                return;
            }
            _ => respond(stream, status, &body),
        };
        if written.is_err() {
            return;
        }
    }
}

fn wait_for_end(mut stream: &TcpStream) {
    while matches!(stream.read(&mut [0; 1024]), Ok(count) if count > 0) {}
}

fn respond(mut stream: &TcpStream, status: u16, body: &[u8]) -> std::io::Result<()> {
    // A 204 has no body and no length.
    let mut response = match status {
        204 => "HTTP/1.1 204 Answer\r\n\r\n".to_owned(),
        _ => format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n\r\n", body.len()),
    }
    .into_bytes();
    if status != 204 {
        response.extend_from_slice(body);
    }
    stream.write_all(&response)
}

impl State {
    /// Keeps a request, and says which fault it meets.
    fn note(&mut self, request: &HttpRequest) -> Option<Fault> {
        self.requests.push(request.clone());
        let planned = self.fault.as_mut()?;
        if !request.target.contains(&planned.only) {
            return None;
        }
        let fault = planned.fault;
        if let Some(times) = &mut planned.times {
            *times -= 1;
            if *times == 0 {
                self.fault = None;
            }
        }
        Some(fault)
    }

    fn handle(&mut self, request: &HttpRequest) -> (u16, Vec<u8>) {
        let path: Vec<&str> = request.target.trim_start_matches('/').split('/').collect();
        match (request.method.as_str(), path.as_slice()) {
            ("POST", ["accounts"]) => self.create(request),
            ("DELETE", ["accounts", account]) => match self.accounts.remove(*account) {
                true => (204, Vec::new()),
                false => (404, b"no such account".to_vec()),
            },
            ("POST", ["accounts", account, _]) if !self.accounts.contains(*account) => {
                (404, b"no such account".to_vec())
            }
            ("POST", ["accounts", account, "settlements"]) => self.settle(account, request),
            ("POST", ["accounts", _, "messages"]) => {
                self.messages.push(request.body.clone());
                (201, self.reply.clone().unwrap_or_else(|| request.body.clone()))
            }
            _ => {
                self.violations.push(format!("{} {}", request.method, request.target));
                (404, b"no such call".to_vec())
            }
        }
    }

    fn create(&mut self, request: &HttpRequest) -> (u16, Vec<u8>) {
        let body: Option<Value> = serde_json::from_slice(&request.body).ok();
        let id = body.as_ref().and_then(|body| body["id"].as_str());
        let Some(id) = id.filter(|_| is_json(request)) else {
            return self.wrong(request, "is no account");
        };
        match self.accounts.insert(id.to_owned()) {
            true => (201, request.body.clone()),
            false => (409, b"there is one".to_vec()),
        }
    }

    fn settle(&mut self, account: &str, request: &HttpRequest) -> (u16, Vec<u8>) {
        let Some(key) = request.header("idempotency-key").filter(|key| !key.is_empty()) else {
            return self.wrong(request, "has no key");
        };
        let body: Option<Value> = serde_json::from_slice(&request.body).ok();
        let quantity = body.as_ref().and_then(|body| {
            let amount = body["amount"].as_str()?.parse().ok()?;
            Some((amount, u8::try_from(body["scale"].as_u64()?).ok()?))
        });
        let Some((amount, scale)) = quantity.filter(|(amount, _)| *amount > 0 && is_json(request)) else {
            return self.wrong(request, "is no quantity");
        };
        let id = (account.to_owned(), key.to_owned());
        match self.keys.get(&id) {
            None => {
                self.keys.insert(id, (amount, scale));
                self.settlements.push(FakeSettlement {
                    account: account.to_owned(),
                    key: key.to_owned(),
                    amount,
                    scale,
                });
            }
            Some(before) if *before == (amount, scale) => {}
            Some(before) => {
                let reason = format!("uses a key again that was used with {before:?}");
                self.wrong(request, &reason);
                return (409, b"the key was used with another amount".to_vec());
            }
        }
        (201, request.body.clone())
    }

    fn wrong(&mut self, request: &HttpRequest, reason: &str) -> (u16, Vec<u8>) {
        let body = String::from_utf8_lossy(&request.body);
        let violation = format!("{} {} {body:.200} {reason}", request.method, request.target);
        self.violations.push(violation);
        (400, reason.as_bytes().to_vec())
    }
}

fn is_json(request: &HttpRequest) -> bool {
    let media_type = request.header("content-type").unwrap_or_default();
    media_type.split(';').next() == Some("application/json")
}
