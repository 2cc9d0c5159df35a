//! The node under test, seen from its API and from the kernel: set-up calls, accounts by the thousand,
//! idle connections, memory, the disk's own sync.
//! Everything here blocks and is paced by the node; nothing of it is in the measured window of a load.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::http;
use crate::process;
use crate::stream::Stream;

/// Longest answer taken: a table of 100,000 routes comes back whole.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Connections on which accounts are created at once.
const CREATORS: u64 = 8;
/// Idle connections that may wait for their first answer at once.
const OPENING_MAX: usize = 64;

/// A keep-alive connection to the API.
pub struct Api {
    stream: Stream,
    address: SocketAddr,
    token: String,
}

impl Api {
    pub fn connect(address: SocketAddr, token: &str) -> Result<Api, String> {
        TcpStream::connect(address)
            .and_then(|socket| Stream::new(socket, ANSWER_BYTES_MAX))
            .map(|stream| Api {
                stream,
                address,
                token: token.to_owned(),
            })
            .map_err(|error| format!("node {address}: {error}"))
    }

    /// One call: status and body of the answer. An empty `body` is sent as none.
    pub fn call(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            self.token,
            body.len()
        );
        self.stream.output().extend_from_slice(head.as_bytes());
        self.stream.output().extend_from_slice(body.as_bytes());
        let failed = |error| format!("{method} {path}: {error}");
        self.stream.flush().map_err(failed)?;
        loop {
            let input = self.stream.input();
            if let Some(message) = http::whole(input).map_err(str::to_owned)? {
                let text = String::from_utf8_lossy(&input[message.body_start..message.end]);
                let answer = (message.status, text.into_owned());
                self.stream.consume(message.end);
                return Ok(answer);
            }
            self.stream.fill().map_err(failed)?;
        }
    }
}

/// Waits until the node answers `GET /` with 200, up to `limit`.
pub fn wait_until_ready(address: SocketAddr, limit: Duration) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let answer = Api::connect(address, "").and_then(|mut api| api.call("GET", "/", ""));
        match answer {
            Ok((200, _)) => return Ok(()),
            other if started.elapsed() > limit => {
                return Err(format!("not ready after {limit:?}: {other:?}"));
            }
            _ => sleep(Duration::from_millis(20)),
        }
    }
}

/// Creates `count` accounts, each with its own token, and says how many there are now and how long it
/// took. Stops early, without an error, when `limit` is over.
pub fn create_accounts(address: SocketAddr, token: &str, count: u64, limit: Duration) -> Result<Value, String> {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let made = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let create = || -> Result<(), String> {
        let mut api = Api::connect(address, token)?;
        while !stop.load(Ordering::Relaxed) && started.elapsed() < limit {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let body = format!(
                r#"{{"username":"load{number:06}","asset_code":"ABC","asset_scale":9,"ilp_over_http_incoming_token":"load{number:06}-pw"}}"#
            );
            match api.call("POST", "/accounts", &body)? {
                (200, _) => made.fetch_add(1, Ordering::Relaxed),
                (status, text) => return Err(format!("POST /accounts: {status} {text}")),
            };
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..CREATORS.min(count) {
            scope.spawn(|| {
                if let Err(error) = create() {
                    stop.store(true, Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        *failure = Some(error);
                    }
                }
            });
        }
    });
    if let Ok(Some(error)) = failure.into_inner() {
        return Err(error);
    }
    Ok(json!({
        "kind": "accounts",
        "asked": count,
        "made": made.into_inner(),
        "seconds": started.elapsed().as_secs_f64(),
    }))
}

/// Replaces the static routes by `count` that all lead to `account`: `pattern` with six digits in
/// the place of `{}`.
pub fn set_routes(api: &mut Api, pattern: &str, count: u32, account: &str) -> Result<(), String> {
    let routes: Map<String, Value> = (0..count)
        .map(|number| (pattern.replacen("{}", &format!("{number:06}"), 1), account.into()))
        .collect();
    match api.call("PUT", "/routes/static", &Value::from(routes).to_string())? {
        (200, _) => Ok(()),
        (status, text) => Err(format!(
            "PUT /routes/static: {status} {}",
            text.chars().take(300).collect::<String>()
        )),
    }
}

/// Opens `count` connections that ask one thing, get the answer, and stay; compares the node's memory
/// before and after. The sockets' own memory in the kernel (both ends, all of the machine) is apart.
pub fn idle_connections(address: SocketAddr, pid: u32, count: usize) -> Result<Value, String> {
    let files = process::raise_open_files().map_err(|error| error.to_string())?;
    if files < count as u64 + 100 {
        return Err(format!("only {files} open files are allowed"));
    }
    let (before, kernel_before) = (process::memory(pid)?, process::tcp_memory());
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        let mut opening = Vec::new();
        for _ in 0..OPENING_MAX.min(count - open.len()) {
            let mut stream = TcpStream::connect(address)
                .and_then(|socket| Stream::new(socket, 2 * http::HEAD_BYTES_MAX))
                .map_err(|error| format!("connection {}: {error}", open.len()))?;
            let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
            stream.output().extend_from_slice(request.as_bytes());
            stream.flush().map_err(|error| error.to_string())?;
            opening.push(stream);
        }
        for mut stream in opening {
            while http::whole(stream.input())?.is_none() {
                stream
                    .fill()
                    .map_err(|error| format!("connection {}: {error}", open.len()))?;
            }
            open.push(stream);
        }
    }
    sleep(Duration::from_secs(1));
    let (after, kernel_after) = (process::memory(pid)?, process::tcp_memory());
    Ok(json!({
        "kind": "connections",
        "count": count,
        "resident_before": before.resident,
        "resident_after": after.resident,
        "anonymous_before": before.anonymous,
        "anonymous_after": after.anonymous,
        "bytes_each": after.resident.saturating_sub(before.resident) as f64 / count.max(1) as f64,
        "kernel_bytes_each":
            kernel_after.saturating_sub(kernel_before) as f64 / count.max(1) as f64,
    }))
}

/// CPU time of a node that has nothing to do.
pub fn idle(pid: u32, time: Duration) -> Result<Value, String> {
    let before = process::cpu_time(&[pid])?;
    let started = Instant::now();
    sleep(time);
    let spent = process::cpu_time(&[pid])?.since(&before);
    Ok(json!({
        "kind": "idle",
        "seconds": time.as_secs_f64(),
        "on_cpu_ms": spent.on_cpu_ns as f64 / 1e6,
        "percent": spent.on_cpu_ns as f64 / started.elapsed().as_nanos() as f64 * 100.0,
    }))
}

/// How long the disk under `directory` takes to make 4 KiB durable: append, then `fdatasync`.
pub fn disk_sync(directory: &Path, rounds: u32) -> Result<Value, String> {
    let path = directory.join("sync-probe");
    let measure = || -> std::io::Result<Vec<f64>> {
        let mut file = File::create(&path)?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            let started = Instant::now();
            file.write_all(&[0x5a; 4096])?;
            file.sync_data()?;
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    };
    let times = measure();
    // The probe is ours; that it cannot be removed changes no figure.
    drop(fs::remove_file(&path));
    let mut times = times.map_err(|error| format!("{}: {error}", path.display()))?;
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied();
    Ok(json!({ "kind": "sync", "rounds": rounds, "p50_us": at(50), "p99_us": at(99) }))
}
