//! Starts: the first one makes what nobody configured, and a start that cannot be right says why and ends.

mod support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::http::{Api, Connection};
use support::node::{Node, listening_on};
use support::within;

const LIMIT: Duration = Duration::from_secs(30);

fn data_dir(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("start-{name}-{}", std::process::id()));
    // Left by a process of the same number that was killed.
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn spawn(arguments: &[&str]) -> Child {
    command(arguments).spawn().expect("the node's binary can be run")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clearway"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// All that a node says on standard output, as it comes.
fn keep_output(child: &mut Child) -> impl Fn() -> String + use<> {
    let stdout = child.stdout.take().expect("a pipe");
    let said = Arc::<Mutex<String>>::default();
    std::thread::spawn({
        let said = said.clone();
        move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut said = said.lock().expect("no test panics here");
                said.push_str(&line);
                said.push('\n');
            }
        }
    });
    move || said.lock().expect("no test panics here").clone()
}

/// Waits until a node listens and is ready.
fn wait_until_ready(said: &impl Fn() -> String) -> SocketAddr {
    let address = within(LIMIT, "it listens", || said().lines().find_map(listening_on));
    within(LIMIT, "it is ready", || {
        let answer = Connection::try_open(address).ok()?.request("GET", "/", &[], b"").ok()?;
        (answer.status == 200).then_some(())
    });
    address
}

/// Runs a node that is expected to end by itself; its exit code and all it said.
fn ends(arguments: &[&str]) -> (Option<i32>, String) {
    ends_by_itself(&mut command(arguments))
}

fn ends_by_itself(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.spawn().expect("the node's binary can be run");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut stderr = child.stderr.take().expect("a pipe");
    let reading = std::thread::spawn(move || {
        let mut said = String::new();
        // What is not text is not worth showing.
        let _ = stdout.read_to_string(&mut said);
        let _ = stderr.read_to_string(&mut said);
        said
    });
    let begun = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "it runs, but should not: {command:?}\n{}",
                reading.join().unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (status.code(), reading.join().expect("reading does not panic"))
}

#[test]
fn the_first_start_makes_seed_and_token_and_later_ones_keep_them() {
    let data = data_dir("first");
    let folder = data.to_str().expect("a path in UTF-8");
    let arguments = [
        "--data_dir",
        folder,
        "--http_bind_address",
        "127.0.0.1:0",
        "--settlement_api_bind_address",
        "127.0.0.1:0",
    ];
    let mut secrets = Vec::new();
    for _ in 0..2 {
        let mut child = spawn(&arguments);
        let said = keep_output(&mut child);
        let address = wait_until_ready(&said);
        for name in ["secret_seed", "admin_auth_token"] {
            let file = data.join(name);
            let mode = std::fs::metadata(&file)
                .expect("made at the first start")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name} is for its owner only");
            secrets.push(std::fs::read_to_string(&file).expect("text").trim().to_owned());
        }
        assert_eq!(
            std::fs::metadata(&data).expect("a folder").permissions().mode() & 0o077,
            0
        );
        let token = secrets.last().expect("the token was read").clone();
        assert!(
            Api { address, token }
                .get("/accounts")
                .as_array()
                .is_some_and(Vec::is_empty)
        );
        for word in ["curl", folder] {
            assert!(
                said().contains(word),
                "the start message helps with the first calls: {}",
                said()
            );
        }
        for secret in &secrets {
            assert!(!said().contains(secret.as_str()), "secrets stay in their files");
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    assert_eq!(secrets[..2], secrets[2..], "they must never change");
    assert_ne!(secrets[0], secrets[1]);
    assert_eq!(secrets[0].len(), 64);
    let _ = std::fs::remove_dir_all(&data);
}

#[test]
fn a_start_that_cannot_be_right_says_why() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("a bound socket has an address").to_string();
    let node = Node::start();
    let data = data_dir("refused");
    let (fresh, used) = (data.to_str().expect("UTF-8"), node.data_dir().to_str().expect("UTF-8"));
    let any = ["--settlement_api_bind_address", "127.0.0.1:0"];
    // Arguments -> exit code, and words that the message must have.
    let table: [(&[&str], i32, &[&str]); 11] = [
        (&["--no_such_option", "1"], 2, &["no_such_option"]),
        (&["--shards", "many"], 2, &["shards"]),
        (&["--http_bind_address", "here"], 2, &["http_bind_address"]),
        (&["--secret_seed", "abc"], 2, &["secret_seed"]),
        (&["--ilp_address", "no dots"], 2, &["ilp_address"]),
        (&["--durability", "maybe"], 2, &["durability"]),
        (&["--exchange_rate.spread", "1"], 2, &["exchange_rate.spread"]),
        (&["--google_pubsub.topic", "x"], 2, &["google_pubsub.topic"]),
        (
            &["--prometheus.bind_address", "127.0.0.1:7770"],
            2,
            &["prometheus.bind_address"],
        ),
        (
            &["--data_dir", fresh, "--http_bind_address", &taken],
            1,
            &[&taken, "http_bind_address"],
        ),
        (&["--data_dir", used, "--http_bind_address", "127.0.0.1:0"], 1, &[used]),
    ];
    for (arguments, code, words) in table {
        let (exit, said) = ends(&[arguments, &any[..]].concat());
        assert_eq!(exit, Some(code), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: no {word:?} in {said:?}");
        }
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
    let _ = std::fs::remove_dir_all(&data);
}

#[test]
fn an_environment_that_cannot_be_right_is_named() {
    let no_text = OsStr::from_bytes(&[b'a', 0xff]);
    // Variable, value, and words that the message must have.
    let table: [(&str, &OsStr, &[&str]); 8] = [
        ("RUST_LOG", "info,ledger=loud".as_ref(), &["RUST_LOG", "ledger=loud"]),
        ("ILP_COLOUR", "red".as_ref(), &["ILP_COLOUR", "colour"]),
        ("ILP_GOOGLE_PUBSUB__TOPIC", "x".as_ref(), &["google_pubsub.topic"]),
        (
            "ILP_SETTLEMENT_API_BIND_ADDRESS",
            "0.0.0.0:0".as_ref(),
            &[
                "settlement_api_token",
                "is required",
                "whoever reaches it can credit accounts",
            ],
        ),
        (
            "ILP_SETTLEMENT_API_BIND_ADDRESS",
            "[::]:0".as_ref(),
            &["settlement_api_token", "is required"],
        ),
        (
            "ILP_SETTLEMENT_API_BIND_ADDRESS",
            "192.0.2.1:7771".as_ref(),
            &["settlement_api_token", "is required"],
        ),
        ("ILP_SETTLEMENT_API_TOKEN", "".as_ref(), &["settlement_api_token"]),
        ("ILP_DATA_DIR", no_text, &["ILP_DATA_DIR"]),
    ];
    for (variable, value, words) in table {
        let (exit, said) = ends_by_itself(command(&[]).env(variable, value));
        assert_eq!(exit, Some(2), "{variable}: {said}");
        for word in words {
            assert!(said.contains(word), "{variable}: no {word:?} in {said:?}");
        }
    }
    let (exit, said) = ends_by_itself(command(&[]).arg(no_text));
    assert_eq!(exit, Some(2), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// As users of interledger-rs have it; ports and folder are given beside it, because tests share a machine.
const CONFIGURATION_OF_ANOTHER_NODE: &str = "
# The hub of our guild
ilp_address: example.hub
secret_seed: \"8852500887504328225458511465394229327394647958135038836332350604\"
admin_auth_token: hi_hub
redis_url: redis://127.0.0.1:6379/0
http_bind_address: 127.0.0.1:7770
settlement_api_bind_address: 127.0.0.1:7771
default_spsp_account: alice
route_broadcast_interval: 200
exchange_rate:
  provider:
    CryptoCompare: our-key-there
  poll_interval: 10000
  spread: 0.01
prometheus:
  bind_address: 127.0.0.1:0
  histogram_window: 5000
  histogram_granularity: 1000
";

#[test]
fn a_configuration_of_another_node_starts_from_a_file_and_from_standard_input() {
    for (name, from_file) in [("file", true), ("stdin", false)] {
        let data = data_dir(name);
        std::fs::create_dir_all(&data).expect("a folder");
        let file = data.join("hub.yml");
        std::fs::write(&file, CONFIGURATION_OF_ANOTHER_NODE).expect("a file");
        let mut command = command(&[
            "--http_bind_address",
            "127.0.0.1:0",
            "--settlement-api-bind-address=127.0.0.1:0",
        ]);
        command.env("ILP_DATA_DIR", &data);
        // Nobody outside of this machine is asked.
        command.env(
            "ILP_EXCHANGE_RATE__PROVIDER_URL",
            format!("http://{}/", support::free_address()),
        );
        let mut child = if from_file {
            command.arg(&file).spawn().expect("the node's binary can be run")
        } else {
            let mut child = command
                .stdin(Stdio::piped())
                .spawn()
                .expect("the node's binary can be run");
            let mut stdin = child.stdin.take().expect("a pipe");
            stdin
                .write_all(CONFIGURATION_OF_ANOTHER_NODE.as_bytes())
                .expect("the node reads it");
            child
        };
        let said = keep_output(&mut child);
        let address = wait_until_ready(&said);
        let token = "hi_hub".to_owned();
        let api = Api { address, token };
        assert!(api.get("/accounts").as_array().is_some_and(Vec::is_empty), "its token");
        assert_eq!(api.get("/")["ilp_address"], "example.hub");
        for option in ["redis_url", "prometheus.bind_address"] {
            let begin = format!(" WARN config: {option}: ");
            let lines: Vec<String> = said()
                .lines()
                .filter(|line| line.contains(&begin))
                .map(str::to_owned)
                .collect();
            let [line] = lines.as_slice() else {
                panic!("{name}: one warning of {option}: {}", said());
            };
            // RFC 3339 in UTC, level, target, message.
            let (time, rest) = line
                .split_once("  WARN config: ")
                .expect("the level comes after the time");
            let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{line}");
            assert!(!rest.is_empty());
        }
        assert!(!said().contains('\u{1b}'), "no colours: {}", said());
        for secret in ["our-key-there", "hi_hub", "88525008"] {
            assert!(!said().contains(secret), "no secrets: {}", said());
        }
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_dir_all(&data);
    }
}

/// Tokens on the disk are readable with the right seed only, and an operator who mixes seeds up must learn it.
#[test]
fn another_seed_is_refused_by_name() {
    let mut node = Node::start();
    node.terminate();
    assert!(node.exit_status_within(LIMIT).success());
    let other = "11".repeat(32);
    let data = node.data_dir().to_str().expect("UTF-8").to_owned();
    let (exit, said) = ends(&[
        "--data_dir",
        &data,
        "--secret_seed",
        &other,
        "--http_bind_address",
        "127.0.0.1:0",
        "--settlement_api_bind_address",
        "127.0.0.1:0",
    ]);
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("secret_seed"), "{said}");
    assert!(!said.contains(&other), "the seed itself is nobody's business: {said}");
    node.run();
}
