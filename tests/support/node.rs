//! A node in a process of its own: the very binary that users run, on free ports and in a data folder of its own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Api, Connection};
use super::packet::{Prepare, Reply};
use super::{PATIENCE, within};

/// The admin token of every node of these tests.
pub const ADMIN_TOKEN: &str = "admin-token-of-the-tests";
pub const SECRET_SEED: &str = "8852500887504328225458511465394229327394647958135038836332350604";

/// A start may have to wait for the disk while other tests run.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Lines of the node's output that are shown when its test fails.
const LOG_LINES_SHOWN_MAX: usize = 200;

/// How to start a node.
#[derive(Clone, Debug)]
pub struct Options {
    pub shards: usize,
    pub ilp_address: String,
    /// Another port at every start, unless peers must find it again.
    pub http_bind_address: String,
    /// The same for engines.
    pub settlement_api_bind_address: String,
    /// Further arguments, as on the command line.
    pub arguments: Vec<String>,
    /// What the node logs, if not the default.
    pub log_filter: Option<String>,
    /// Lines of its output that are kept, the newest.
    pub log_lines_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shards: 1,
            ilp_address: "test.hub".to_owned(),
            http_bind_address: "127.0.0.1:0".to_owned(),
            settlement_api_bind_address: "127.0.0.1:0".to_owned(),
            arguments: Vec::new(),
            log_filter: None,
            log_lines_max: LOG_LINES_SHOWN_MAX,
        }
    }
}

/// A running node, or one that was stopped and can be started again on its data. Killed when dropped.
pub struct Node {
    options: Options,
    data: PathBuf,
    running: Option<Running>,
    log: Arc<Mutex<VecDeque<String>>>,
}

struct Running {
    child: Child,
    address: SocketAddr,
    settlement_address: SocketAddr,
    /// Keep its output until it ends.
    readers: [JoinHandle<()>; 2],
}

impl Node {
    /// One shard, address `test.hub`.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn with_shards(shards: usize) -> Self {
        Self::start_with(Options {
            shards,
            ..Options::default()
        })
    }

    pub fn start_with(options: Options) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("node-{}-{number}", std::process::id()));
        // Left by a process of the same number that was killed.
        let _ = std::fs::remove_dir_all(&data);
        Self::start_on(data, options)
    }

    /// On a data folder that is there already, or that the node makes. It is removed in the end.
    pub fn start_on(data: PathBuf, options: Options) -> Self {
        let mut node = Self {
            options,
            data,
            running: None,
            log: Arc::default(),
        };
        node.run();
        node
    }

    /// Starts the process on its data folder and waits until it is ready.
    pub fn run(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let mut child = Command::new(env!("CARGO_BIN_EXE_clearway"))
            .arg("--data_dir")
            .arg(&self.data)
            .args([
                "--http_bind_address",
                &self.options.http_bind_address,
                "--settlement_api_bind_address",
                &self.options.settlement_api_bind_address,
            ])
            .args(["--admin_auth_token", ADMIN_TOKEN, "--secret_seed", SECRET_SEED])
            .args([
                "--ilp_address",
                &self.options.ilp_address,
                "--shards",
                &self.options.shards.to_string(),
            ])
            .args(&self.options.arguments)
            .envs(self.options.log_filter.iter().map(|filter| ("RUST_LOG", filter)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the node's binary can be run");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let (found, addresses) = std::sync::mpsc::channel();
        let lines_max = self.options.log_lines_max;
        let log = self.log.clone();
        let errors = std::thread::spawn(move || keep_log(stderr, &log, lines_max, |_| {}));
        let log = self.log.clone();
        let output = std::thread::spawn(move || {
            keep_log(stdout, &log, lines_max, |line| {
                if let Some(addresses) = listening_on(line).zip(settlement_api_on(line)) {
                    // Only the first is waited for.
                    let _ = found.send(addresses);
                }
            });
        });
        let Ok((address, settlement_address)) = addresses.recv_timeout(START_LIMIT) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "the node did not say where it listens within {START_LIMIT:?}; its output:\n{}",
                self.log()
            );
        };
        self.running = Some(Running {
            child,
            address,
            settlement_address,
            readers: [errors, output],
        });
        within(START_LIMIT, "the node is ready", || {
            let answer = Connection::try_open(address).ok()?.request("GET", "/", &[], b"").ok()?;
            (answer.status == 200 && answer.json()["status"] == "Ready").then_some(())
        });
    }

    /// For the next run.
    pub fn set_shards(&mut self, shards: usize) {
        self.options.shards = shards;
    }

    pub fn is_running(&mut self) -> bool {
        match &mut self.running {
            Some(running) => running
                .child
                .try_wait()
                .expect("our own child can be waited for")
                .is_none(),
            None => false,
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the node runs")
    }

    /// Where it serves the API, ILP-over-HTTP and BTP.
    pub fn address(&self) -> SocketAddr {
        self.running().address
    }

    /// Where it serves settlement engines.
    pub fn settlement_address(&self) -> SocketAddr {
        self.running().settlement_address
    }

    pub fn pid(&self) -> u32 {
        self.running().child.id()
    }

    /// Its memory, as Linux counts it.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the node runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        kib.expect("Linux says so")
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    pub fn api(&self) -> Api {
        Api {
            address: self.address(),
            token: ADMIN_TOKEN.to_owned(),
        }
    }

    pub fn connection(&self) -> Connection {
        Connection::open(self.address())
    }

    /// An account in asset ABC at scale 9 with the tokens `NAME-http` and `NAME-btp`; `more` adds or replaces fields.
    pub fn add_account(&self, username: &str, more: &Value) -> Value {
        let mut account = json!({
            "username": username,
            "asset_code": "ABC",
            "asset_scale": 9,
            "ilp_over_http_incoming_token": format!("{username}-http"),
            "ilp_over_btp_incoming_token": format!("{username}-btp"),
        });
        for (name, value) in more.as_object().expect("fields of an account") {
            account[name] = value.clone();
        }
        self.api().create_account(&account)
    }

    /// A packet of an account of [`Self::add_account`], over HTTP, that must be fulfilled.
    pub fn expect_fulfill(&self, username: &str, prepare: &Prepare) {
        let (path, token) = (format!("/accounts/{username}/ilp"), format!("{username}-http"));
        let answer = self.connection().post(&path, &token, prepare);
        let reply = answer.expect("an answer").reply();
        assert!(matches!(reply, Reply::Fulfill { .. }), "{reply:?}");
    }

    /// SIGKILL: nothing of the node's own runs any more. Gives back when the process is gone.
    pub fn kill(&mut self) {
        let mut running = self.running.take().expect("the node runs");
        running.child.kill().expect("our own child can be killed");
        running.child.wait().expect("our own child can be waited for");
    }

    /// SIGTERM: the node ends by itself.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.pid()).expect("a process number");
        // SAFETY: kill takes two integers; the process is our own child and was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "our own child can be signalled");
    }

    /// Waits until it has ended by itself.
    pub fn exit_status_within(&mut self, limit: Duration) -> ExitStatus {
        let mut running = self.running.take().expect("the node runs");
        let begun = Instant::now();
        loop {
            if let Some(status) = running.child.try_wait().expect("our own child can be waited for") {
                running.readers.into_iter().for_each(|reader| drop(reader.join()));
                return status;
            }
            if begun.elapsed() > limit {
                self.running = Some(running);
                panic!("the node has not ended within {limit:?}; its output:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last lines of its output.
    pub fn log(&self) -> String {
        // The threads that read the output may be a moment behind.
        std::thread::sleep(Duration::from_millis(50));
        let log = self.log.lock().expect("no test panics here");
        let unshown = log.len().saturating_sub(LOG_LINES_SHOWN_MAX);
        log.iter().skip(unshown).map(|line| format!("  | {line}\n")).collect()
    }

    /// Every line of its output that was kept; complete once the node has ended.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().expect("no test panics here").iter().cloned().collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let ended = running.child.try_wait().ok().flatten();
            let _ = running.child.kill();
            let _ = running.child.wait();
            if let Some(status) = ended {
                eprintln!("the node ended during its test: {status}");
            }
        }
        if std::thread::panicking() {
            eprintln!("output of the node, data in {}:\n{}", self.data.display(), self.log());
        } else {
            let _ = std::fs::remove_dir_all(&self.data);
        }
    }
}

/// The address in the line that the node prints when it is up.
pub fn listening_on(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening on http://")?;
    let end = rest.find(|letter: char| !(letter.is_ascii_digit() || letter == '.' || letter == ':'));
    rest[..end.unwrap_or(rest.len())]
        .trim_end_matches(['.', ':'])
        .parse()
        .ok()
}

/// The other address in that line.
fn settlement_api_on(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("(settlement API on ")?;
    rest.split_once(')')?.0.parse().ok()
}

fn keep_log(output: impl Read, log: &Mutex<VecDeque<String>>, lines_max: usize, mut each: impl FnMut(&str)) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        each(&line);
        let mut log = log.lock().expect("no test panics here");
        if log.len() == lines_max {
            log.pop_front();
        }
        log.push_back(line);
    }
}

/// Waits for a balance: the answer to a packet may be a moment ahead of what the API shows of the other account.
pub fn expect_balance(api: &Api, username: &str, expected: i128) {
    let mut last = 0;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        last = api.balance(username);
        if last == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("balance of {username}: expected {expected}, got {last}");
}
