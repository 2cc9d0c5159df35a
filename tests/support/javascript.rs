//! Other people's packages on Node.js: the scripts that use them, where they are installed, and how a test drives them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// Node.js takes its time to start on a busy machine.
pub const SCRIPT_LIMIT: Duration = Duration::from_secs(30);

/// The folder in [`scripts`] with those of docs/walkthrough. They find the packages above it.
pub const WALKTHROUGH: &str = "walkthrough";

/// A copy of the scripts with their packages, below the target folder; made once.
pub fn scripts() -> &'static Path {
    static SCRIPTS: OnceLock<PathBuf> = OnceLock::new();
    SCRIPTS.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("javascript");
        let walkthrough = folder.join(WALKTHROUGH);
        std::fs::create_dir_all(&walkthrough).expect("the target folder is writable");
        let copy_to = |folder: &Path, from: &str, name: &str| {
            let bytes = std::fs::read(source.join(from).join(name)).expect("part of the project");
            // Whole or not at all: scripts of another test process may start from there just now.
            let new = folder.join(format!("{name}.{}", std::process::id()));
            std::fs::write(&new, &bytes).expect("the target folder is writable");
            std::fs::rename(&new, folder.join(name)).expect("the target folder is writable");
            bytes
        };
        let copy = |from, name| copy_to(&folder, from, name);
        copy("tests/js", "package.json");
        copy("tests/js", ".npmrc");
        copy("tests/js", "peer.js");
        copy("tests/js", "stream.js");
        copy("tests/js", "engine.js");
        for name in ["send.js", "receive.js", "engine.js"] {
            copy_to(&walkthrough, "docs/walkthrough", name);
        }
        let lock = copy("tests/js", "package-lock.json");
        // Written last, so it is there only when all packages are.
        let installed = folder.join("node_modules/installed-from.json");
        if std::fs::read(&installed).is_ok_and(|from| from == lock) {
            return folder;
        }
        let npm = Command::new("npm")
            .args(["ci", "--ignore-scripts"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .output();
        let npm = npm.unwrap_or_else(|error| panic!("npm cannot be run ({error}): install Node.js 18 or later"));
        assert!(
            npm.status.success(),
            "npm ci failed: {}",
            String::from_utf8_lossy(&npm.stderr)
        );
        std::fs::write(&installed, &lock).expect("the target folder is writable");
        // Thousands of small files wait for the disk now, and a node whose log has to wait behind them for seconds lets
        // packets expire.
        // SAFETY: takes nothing and cannot fail.
        unsafe { libc::sync() };
        folder
    })
}

/// A script that runs; ended when dropped.
pub struct Script {
    pub child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Script {
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new("node")
            .arg(name)
            .args(arguments)
            .current_dir(scripts())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("node cannot be run ({error}): install Node.js 18 or later"));
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            lines,
        }
    }

    /// `peer.js`, ready.
    pub fn peer(arguments: &[&str]) -> Self {
        Self::ready("peer.js", arguments)
    }

    /// A script that takes commands, ready.
    pub fn ready(name: &str, arguments: &[&str]) -> Self {
        let mut script = Self::start(name, arguments);
        assert_eq!(script.answer(), json!({"ready": true}));
        script
    }

    pub fn line(&mut self) -> String {
        self.lines
            .recv_timeout(SCRIPT_LIMIT)
            .expect("the script says something")
    }

    pub fn answer(&mut self) -> Value {
        let line = self.line();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(answer["error"], Value::Null, "{}", answer["error"]);
        answer
    }

    pub fn ask(&mut self, command: &Value) -> Value {
        let stdin = self.stdin.as_mut().expect("standard input is a pipe");
        writeln!(stdin, "{command}").expect("the script runs");
        self.answer()
    }

    /// Sends one packet; what the script says of the reply.
    pub fn send(&mut self, destination: &str, amount: u64) -> Value {
        self.ask(&json!({"command": "send", "destination": destination, "amount": amount.to_string()}))
    }

    pub fn received(&mut self) -> Vec<Value> {
        self.ask(&json!({"command": "received"}))["received"]
            .as_array()
            .expect("an array")
            .clone()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
