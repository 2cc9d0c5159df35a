//! Starts: the first one makes what nobody configured, and a start that cannot be right says why and ends.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
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
    Command::new(env!("CARGO_BIN_EXE_clearway"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the node's binary can be run")
}

/// Runs a node that is expected to end by itself; its exit code and all it said.
fn ends(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = spawn(arguments);
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
                "it runs, but should not: {arguments:?}\n{}",
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
        let said = || said.lock().expect("no test panics here").clone();
        let address = within(LIMIT, "it listens", || said().lines().find_map(listening_on));
        within(LIMIT, "it is ready", || {
            let answer = Connection::try_open(address).ok()?.request("GET", "/", &[], b"").ok()?;
            (answer.status == 200).then_some(())
        });
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
    let table: [(&[&str], i32, &[&str]); 8] = [
        (&["--no_such_option", "1"], 2, &["no_such_option"]),
        (&["--shards", "many"], 2, &["shards"]),
        (&["--http_bind_address", "here"], 2, &["http_bind_address"]),
        (&["--secret_seed", "abc"], 2, &["secret_seed"]),
        (&["--ilp_address", "no dots"], 2, &["ilp_address"]),
        (&["--durability", "maybe"], 2, &["durability"]),
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
