//! `clearway-perf`: the measuring stick of Clearway. One thread is sender and receiver, so that
//! whatever stands in the middle has the other core for itself.
//!
//! Every command prints one JSON object per measurement to standard output, and words to standard
//! error. `table` turns a file of such lines into the table that `perf/run` shows. Nothing here is
//! part of the connector or imports it; see `perf/README.md` for what is measured, and how.
//!
//! `packet`, `btp` and `http` are bytes; `stream` and `process` the kernel; `meter` counts; `http_load`
//! and `btp_load` are the loops, `handshake` what precedes the latter; `node` is the API, `payments` what
//! the node pays when it is asked to; `summary` the table.

mod btp;
mod btp_load;
mod handshake;
mod http;
mod http_load;
mod meter;
mod node;
mod packet;
mod payments;
mod process;
mod stream;
mod summary;

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use handshake::{Receiver, Server};
use meter::{Meter, Plan};
use packet::Prepares;

#[derive(Parser)]
#[command(version, about = "Measures Interledger connectors, and relays to compare them with")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send Prepares over HTTP, one in flight on each connection, and receive them over HTTP
    Http(HttpOptions),
    /// Send Prepares over BTP, many in flight on one connection, and receive them over BTP
    Btp(BtpOptions),
    /// Call the API once; fails unless the answer is 200
    Call {
        #[command(flatten)]
        node: NodeOptions,
        method: String,
        path: String,
        #[arg(default_value = "")]
        body: String,
    },
    /// Wait until the node is ready
    Wait {
        #[command(flatten)]
        node: NodeOptions,
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Create accounts named load000000, load000001, ...
    Accounts {
        #[command(flatten)]
        node: NodeOptions,
        #[arg(long)]
        count: u64,
        /// Stop early after so long
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Replace the static routes by many that lead to one account
    Routes {
        #[command(flatten)]
        node: NodeOptions,
        /// Prefix of each, with {} where six digits go
        #[arg(long)]
        pattern: String,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        account: String,
    },
    /// Read the memory of a process
    Memory {
        #[arg(long)]
        pid: u32,
        /// What the process has done up to now, for the table
        #[arg(long)]
        step: String,
        /// Accounts it holds, for the table
        #[arg(long, default_value_t = 0)]
        accounts: u64,
    },
    /// Open connections that stay idle, and see what they cost in memory
    Connections {
        #[command(flatten)]
        node: NodeOptions,
        #[arg(long)]
        pid: u32,
        #[arg(long)]
        count: usize,
    },
    /// Read the CPU time of a process that has nothing to do
    Idle {
        #[arg(long)]
        pid: u32,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// Have the node make payments, all at once
    Payments(PaymentsOptions),
    /// Measure how long the disk takes to make 4 KiB durable
    Sync {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, default_value_t = 300)]
        rounds: u32,
    },
    /// Print the table of a file of measurements
    Table { raw: PathBuf },
}

#[derive(Args)]
struct NodeOptions {
    /// Address of the API, as http://HOST:PORT
    #[arg(long)]
    node: String,
    #[arg(long, default_value = "")]
    token: String,
}

#[derive(Args)]
struct LoadOptions {
    /// What stands in the middle, for the table
    #[arg(long, default_value = "node")]
    name: String,
    /// ILP address to send to; {} is a route number of six digits
    #[arg(long)]
    destination: String,
    /// Choose among so many route numbers, at random
    #[arg(long, default_value_t = 0)]
    routes: u32,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before that which are not measured
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Packets per second; without it, as many as are answered
    #[arg(long)]
    rate: Option<u64>,
    /// Processes in the middle: their CPU time is read, with threads and descendants
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// Core to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// Never sleep
    #[arg(long)]
    spin: bool,
}

#[derive(Args)]
struct HttpOptions {
    #[command(flatten)]
    load: LoadOptions,
    /// Where to send, as http://HOST:PORT/PATH
    #[arg(long)]
    target: String,
    #[arg(long, default_value = "")]
    token: String,
    /// Port of 127.0.0.1 to receive on
    #[arg(long)]
    receiver_port: u16,
    /// Connections, one request in flight on each; a list is run one after the other
    #[arg(long, value_delimiter = ',', default_value = "64")]
    connections: Vec<usize>,
}

#[derive(Args)]
struct BtpOptions {
    #[command(flatten)]
    load: LoadOptions,
    /// Where to send, as ws://HOST:PORT/PATH
    #[arg(long)]
    target: String,
    #[arg(long, default_value = "")]
    token: String,
    /// Where to receive as a client, as ws://HOST:PORT/PATH
    #[arg(long, required_unless_present = "receiver_port", conflicts_with = "receiver_port")]
    receiver: Option<String>,
    #[arg(long, default_value = "")]
    receiver_token: String,
    /// Port of 127.0.0.1 to receive on as a server, behind a relay
    #[arg(long)]
    receiver_port: Option<u16>,
    /// Packets in flight
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=btp_load::WINDOW_MAX as i64))]
    window: u32,
}

#[derive(Args)]
struct PaymentsOptions {
    #[command(flatten)]
    node: NodeOptions,
    /// What the payments go through, for the table
    #[arg(long, default_value = "one node")]
    name: String,
    /// Account that pays; --token is its token for ILP over HTTP
    #[arg(long)]
    username: String,
    /// Payment pointer or URL
    #[arg(long)]
    receiver: String,
    /// Of each payment, in units of the account
    #[arg(long)]
    amount: u64,
    /// Packets that each takes, as the account is set up
    #[arg(long)]
    packets: u64,
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Processes that the payments pass: their CPU time is read, with threads and descendants
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clearway-perf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Http(options) => run_http(&options),
        Command::Btp(options) => run_btp(&options),
        Command::Call {
            node,
            method,
            path,
            body,
        } => {
            let mut api = node::Api::connect(node.address()?, &node.token)?;
            match api.call(&method, &path, &body)? {
                (200, text) => {
                    println!("{text}");
                    Ok(())
                }
                (status, text) => Err(format!("{method} {path}: {status} {text}")),
            }
        }
        Command::Wait { node, seconds } => node::wait_until_ready(node.address()?, Duration::from_secs(seconds)),
        Command::Accounts { node, count, seconds } => {
            let limit = Duration::from_secs(seconds);
            print(node::create_accounts(node.address()?, &node.token, count, limit)?)
        }
        Command::Routes {
            node,
            pattern,
            count,
            account,
        } => {
            let mut api = node::Api::connect(node.address()?, &node.token)?;
            node::set_routes(&mut api, &pattern, count, &account)
        }
        Command::Memory { pid, step, accounts } => {
            let memory = process::memory(pid)?;
            print(json!({
                "kind": "memory", "step": step, "accounts": accounts,
                "resident": memory.resident, "anonymous": memory.anonymous,
            }))
        }
        Command::Connections { node, pid, count } => print(node::idle_connections(node.address()?, pid, count)?),
        Command::Idle { pid, seconds } => {
            let time = seconds_of(seconds)?;
            print(node::idle(pid, time)?)
        }
        Command::Payments(options) => run_payments(options),
        Command::Sync { dir, rounds } => print(node::disk_sync(&dir, rounds.max(1))?),
        Command::Table { raw } => {
            let text = std::fs::read_to_string(&raw).map_err(|error| format!("{}: {error}", raw.display()))?;
            print!("{}", summary::table(&text));
            Ok(())
        }
    }
}

fn run_http(options: &HttpOptions) -> Result<(), String> {
    let (target, path) = split_url(&options.target)?;
    options.load.pin()?;
    process::raise_open_files().map_err(|error| format!("open files: {error}"))?;
    for &connections in &options.connections {
        if !(1..=4096).contains(&connections) {
            return Err("1 to 4096 connections".into());
        }
        let ends = http_load::Ends {
            target,
            path: path.clone(),
            token: options.token.clone(),
            receiver: SocketAddr::from(([127, 0, 0, 1], options.receiver_port)),
            connections,
        };
        let figures = http_load::run(&ends, options.load.prepares()?, options.load.meter()?)?;
        let head = json!({ "kind": "http", "connections": connections });
        print(options.load.labelled(head, figures))?;
    }
    Ok(())
}

fn run_btp(options: &BtpOptions) -> Result<(), String> {
    let server = |url: &str, token: &str| -> Result<Server, String> {
        let (address, path) = split_url(url)?;
        Ok(Server {
            address,
            path,
            token: token.to_owned(),
        })
    };
    let target = server(&options.target, &options.token)?;
    let receiver = match (&options.receiver, options.receiver_port) {
        (Some(url), _) => Receiver::Connects(server(url, &options.receiver_token)?),
        (None, Some(port)) => Receiver::Listens(SocketAddr::from(([127, 0, 0, 1], port))),
        (None, None) => return Err("a receiver is missing".into()),
    };
    options.load.pin()?;
    let figures = btp_load::run(
        &target,
        &receiver,
        options.window as usize,
        options.load.prepares()?,
        options.load.meter()?,
    )?;
    let head = json!({ "kind": "btp", "window": options.window });
    print(options.load.labelled(head, figures))
}

fn run_payments(options: PaymentsOptions) -> Result<(), String> {
    if !(1..=payments::PAYMENTS_MAX).contains(&options.count) {
        return Err(format!("1 to {} payments", payments::PAYMENTS_MAX));
    }
    process::raise_open_files().map_err(|error| format!("open files: {error}"))?;
    let payments = payments::Payments {
        node: options.node.address()?,
        username: options.username,
        token: options.node.token,
        receiver: options.receiver,
        amount: options.amount,
        packets: options.packets,
        count: options.count,
        pids: options.pid,
    };
    let mut figures = payments.run()?;
    figures["kind"] = "payments".into();
    figures["name"] = options.name.into();
    print(figures)
}

impl LoadOptions {
    fn pin(&self) -> Result<(), String> {
        match self.cpu {
            Some(core) if core >= 1024 => Err(format!("there is no core {core}")),
            Some(core) => process::pin(core).map_err(|error| format!("core {core}: {error}")),
            None => Ok(()),
        }
    }

    fn prepares(&self) -> Result<Prepares, String> {
        Prepares::new(&self.destination, self.routes)
    }

    /// The clock of the run starts here, so this comes last. Connecting is part of the warm-up.
    fn meter(&self) -> Result<Meter, String> {
        Meter::start(Plan {
            warmup: seconds_of(self.warmup)?,
            window: seconds_of(self.seconds)?,
            rate: self.rate,
            pids: self.pid.clone(),
            spin: self.spin,
        })
    }

    fn labelled(&self, mut head: Value, mut figures: Value) -> Value {
        head["name"] = self.name.as_str().into();
        head["routes"] = self.routes.into();
        if let (Some(head), Some(figures)) = (head.as_object_mut(), figures.as_object_mut()) {
            head.append(figures);
        }
        head
    }
}

impl NodeOptions {
    fn address(&self) -> Result<SocketAddr, String> {
        Ok(split_url(&self.node)?.0)
    }
}

fn print(figures: Value) -> Result<(), String> {
    writeln!(std::io::stdout(), "{figures}").map_err(|error| format!("standard output: {error}"))
}

fn seconds_of(seconds: f64) -> Result<Duration, String> {
    if !(0.0..=3600.0).contains(&seconds) {
        return Err("times are 0 to 3600 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Address and path of `scheme://HOST:PORT/PATH`; the scheme says nothing the command did not.
fn split_url(url: &str) -> Result<(SocketAddr, String), String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let address = host
        .to_socket_addrs()
        .map_err(|error| format!("{url}: {error}"))?
        .next()
        .ok_or_else(|| format!("{url}: no such host"))?;
    Ok((address, if path.is_empty() { "/" } else { path }.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn urls_are_split() {
        let (address, path) = split_url("ws://127.0.0.1:7770/accounts/bob/ilp/btp").unwrap();
        assert_eq!(address.to_string(), "127.0.0.1:7770");
        assert_eq!(path, "/accounts/bob/ilp/btp");
        assert_eq!(split_url("http://127.0.0.1:1").unwrap().1, "/");
        assert!(split_url("http://127.0.0.1").is_err());
    }
}
