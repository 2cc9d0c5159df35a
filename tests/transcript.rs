//! The documents are true: every command that README.md or a document below docs/ shows is run, and shows what it says.
//!
//! # What a document may contain
//! A block marked `console` is a session: a line that begins with `$ ` is a command, lines that begin with `> ` or that
//! follow a backslash go on with it, and all other lines are what it shows, on either of its outputs. Nothing more may be
//! shown and nothing less, but:
//! - `…` stands for any text within a line, and a line of nothing else for any lines;
//! - a line that begins with a blank, behind one that ends with a comma, goes on with that line: JSON comes in one line.
//!
//! A block marked `sh` is commands without what they show: each must succeed. Blocks of other kinds are not run.
//!
//! # How it is run
//! One bash and one node per document, the node on a fresh data folder, which is `data` in the folder where bash begins.
//! The node's two ports are free ones: where a command has `127.0.0.1:7770` it gets the real one, and what is shown is
//! put back; so are the ports of what a document starts itself (7780 and 7781, 3001 and 3002) and the folder `/backup/`.
//! Settings from the environment tell `clearway` and its commands the same. curl shows no progress, as on a terminal, and is counted: it must have been called as often as
//! the document shows it. Each command has no input and a time limit; what a command in the background shows is waited
//! for.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use support::node::listening_on;
use support::{free_port, javascript, within};

/// Commands that are not run: document, command, reason.
const NOT_RUN: [(&str, &str, &str); 3] = [
    (
        "README.md",
        "make run",
        "the node runs already, and is the one that the test was built with",
    ),
    (
        "README.md",
        "npm install",
        "the packages are there: the pinned ones of tests/javascript.rs",
    ),
    ("docs/settlement.md", "(cd docs/walkthrough; npm install)", "as above"),
];

/// The longest time for one command, and for what it leaves in the background to show what is expected. The slowest is an
/// engine that was away for some seconds: it may be called again only after about as long.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// A start may have to wait for the disk while other tests run.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Stands alone on a line when a command has ended, with its status behind it.
const END: &str = "-- the command has ended:";
/// What a shown line may leave out.
const ANYTHING: &str = "…";

/// One command of a document.
#[derive(PartialEq, Eq, Debug)]
struct Step {
    /// The number of its first line, from 1.
    line: usize,
    command: String,
    /// `None`: the document does not say.
    shown: Option<Vec<String>>,
}

/// README.md and all of docs/, by their names in the project.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("part of the project") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                // Somebody may have done as the README says.
                if path.file_name().is_some_and(|name| name != "node_modules") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    let read = |path: PathBuf| {
        let name = path
            .strip_prefix(root)
            .expect("below the project")
            .display()
            .to_string();
        (name, fs::read_to_string(&path).expect("a document is UTF-8"))
    };
    files.into_iter().map(read).collect()
}

/// All commands of a document, in order.
fn steps(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((_, line)) = lines.next() {
        let Some(kind) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let block: Vec<(usize, &str)> = lines
            .by_ref()
            .take_while(|(_, line)| !line.trim_start().starts_with("```"))
            .map(|(index, line)| (index + 1, line))
            .collect();
        match kind.trim() {
            "console" => read_session(&block, &mut steps),
            "sh" => read_commands(&block, &mut steps),
            _ => {}
        }
    }
    steps
}

fn read_session(block: &[(usize, &str)], steps: &mut Vec<Step>) {
    let first = steps.len();
    for (number, line) in block {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                line: *number,
                command: command.to_owned(),
                shown: Some(vec![]),
            });
            continue;
        }
        assert!(steps.len() > first, "line {number}: a session begins with a command");
        let step = steps.last_mut().expect("there is one");
        let shown = step.shown.as_mut().expect("a session shows something");
        match line.strip_prefix("> ") {
            Some(more) if shown.is_empty() => step.command += &format!("\n{more}"),
            _ if shown.is_empty() && step.command.ends_with('\\') => step.command += &format!("\n{line}"),
            _ => shown.push((*line).to_owned()),
        }
    }
}

/// A command goes on until bash calls it complete.
fn read_commands(block: &[(usize, &str)], steps: &mut Vec<Step>) {
    let mut begun: Option<(usize, String)> = None;
    for (number, line) in block {
        let (first, command) = match begun.take() {
            Some((first, text)) => (first, format!("{text}\n{line}")),
            None if line.trim().is_empty() || line.trim_start().starts_with('#') => continue,
            None => (*number, (*line).to_owned()),
        };
        let check = Command::new("bash").args(["-n", "-c", &command]).output();
        let check = check.expect("bash can be run");
        if check.status.success() && check.stderr.is_empty() && !command.ends_with('\\') {
            steps.push(Step {
                line: first,
                command,
                shown: None,
            });
        } else {
            begun = Some((first, command));
        }
    }
    if let Some((first, command)) = begun {
        panic!("line {first}: this command does not end: {command}");
    }
}

/// How often a text shows a call of curl, be it in a block or not.
fn curls(text: &str) -> usize {
    text.match_indices("curl ")
        .filter(|(at, found)| {
            text[at + found.len()..].starts_with(['-', '$', '"', '\'']) || text[at + found.len()..].starts_with("http")
        })
        .count()
}

/// A bash and the node that its commands talk to. Both end, with all that bash has started, when dropped.
struct Session {
    folder: PathBuf,
    node: Child,
    bash: Child,
    stdin: ChildStdin,
    output: Receiver<String>,
    /// What the document says, and what is meant.
    places: [(&'static str, String); 7],
    /// Something of an earlier command may still run, and show more.
    has_background: bool,
}

impl Session {
    fn start(name: &str) -> Self {
        let folder = name.replace(['/', '.'], "-");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("transcript-{}-{folder}", std::process::id()));
        // Left by a process of the same number that was killed.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("docs")).expect("the target folder is writable");
        let scripts = javascript::scripts().join(javascript::WALKTHROUGH);
        std::os::unix::fs::symlink(&scripts, folder.join("docs/walkthrough")).expect("a fresh folder");

        let log = folder.join("node.log");
        let log_file = File::create(&log).expect("a fresh folder");
        let settlement_port = free_port();
        let mut node = command(env!("CARGO_BIN_EXE_clearway"), &folder, 0, settlement_port)
            .stdin(Stdio::null())
            .stderr(log_file.try_clone().expect("a file"))
            .stdout(log_file)
            .spawn()
            .expect("the node's binary can be run");
        let listening = within(START_LIMIT, "the node says where it listens", || {
            let ended = node.try_wait().expect("our own child").is_some();
            let text = fs::read_to_string(&log).expect("a log");
            assert!(!ended, "the node has ended:\n{text}");
            text.lines().find_map(listening_on)
        });

        let mut bash = command("bash", &folder, listening.port(), settlement_port)
            .args(["--noprofile", "--norc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("bash can be run");
        let mut stdin = bash.stdin.take().expect("standard input is a pipe");
        let stdout = bash.stdout.take().expect("standard output is a pipe");
        let (sender, output) = channel();
        thread::spawn(move || send_output(stdout, &sender));
        let prelude = "exec 2>&1; curl() { echo >> \"$HOME/curls\"; command curl --no-progress-meter \"$@\"; }\n";
        stdin.write_all(prelude.as_bytes()).expect("bash reads");
        fs::create_dir(folder.join("backup")).expect("a fresh folder");
        let backup = format!("{}/", folder.join("backup").display());
        Self {
            folder,
            node,
            bash,
            stdin,
            output,
            places: [
                ("127.0.0.1:7770", listening.to_string()),
                ("127.0.0.1:7771", format!("127.0.0.1:{settlement_port}")),
                ("7780", free_port().to_string()),
                ("7781", free_port().to_string()),
                ("3001", free_port().to_string()),
                ("3002", free_port().to_string()),
                ("/backup/", backup),
            ],
            has_background: false,
        }
    }

    /// Runs one command; says what is wrong with what it shows, or gives up on the session.
    fn run(&mut self, step: &Step) -> Result<Option<String>, String> {
        let places = self.places.iter().map(|(said, meant)| (*said, meant.as_str()));
        let meant = replaced(&step.command, places);
        let quoted = meant.replace('\'', r"'\''");
        // Evaluated here, not in a bash of its own, so that variables and folders stay; and complete, whatever it is.
        let line = format!("eval '{quoted}' < /dev/null\nprintf '\\n%s %s\\n' '{END}' $?\n");
        self.stdin
            .write_all(line.as_bytes())
            .map_err(|_| "bash has ended".to_owned())?;
        self.has_background |= step.command.ends_with('&');

        let begun = Instant::now();
        let mut text = String::new();
        let mut ended = None;
        loop {
            if ended.is_none() {
                ended = take_end(&mut text);
            }
            let shown = self.as_said(&text);
            let limit = match ended {
                None => COMMAND_LIMIT,
                Some(status) => {
                    let wrong = match &step.shown {
                        Some(expected) => difference(expected, &shown),
                        None if status == 0 => None,
                        None => Some(format!("status {status}\n{shown}")),
                    };
                    if wrong.is_none() || !self.has_background || begun.elapsed() > COMMAND_LIMIT {
                        return Ok(wrong);
                    }
                    COMMAND_LIMIT
                }
            };
            match self.output.recv_timeout(limit.saturating_sub(begun.elapsed())) {
                Ok(more) => text += &more,
                Err(RecvTimeoutError::Timeout) if ended.is_some() => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("not within {COMMAND_LIMIT:?}; shown so far:\n{shown}"));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(format!("bash has ended; shown before:\n{shown}")),
            }
        }
    }

    /// With the ports that the document knows.
    fn as_said(&self, text: &str) -> String {
        let places = self.places.iter().map(|(said, meant)| (meant.as_str(), *said));
        replaced(&text.replace('\r', ""), places)
    }

    fn curls(&self) -> usize {
        // Without a call there is no file.
        fs::read_to_string(self.folder.join("curls")).map_or(0, |text| text.lines().count())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let group = libc::pid_t::try_from(self.bash.id()).expect("a process number");
        // SAFETY: kill takes two integers; the group is bash's own, and bash was not waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let _ = self.bash.wait();
        let _ = self.node.kill();
        let _ = self.node.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A program in the world of a document: nothing of ours but the path to `clearway` and the ports.
fn command(program: &str, folder: &Path, port: u16, settlement_port: u16) -> Command {
    let binaries = Path::new(env!("CARGO_BIN_EXE_clearway"))
        .parent()
        .expect("it is in a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("LC_ALL", "C.UTF-8")
        .env("PATH", format!("{}:{path}", binaries.display()))
        .env("ILP_CLI_NODE_URL", format!("http://127.0.0.1:{port}"))
        .env("ILP_HTTP_BIND_ADDRESS", format!("127.0.0.1:{port}"))
        .env(
            "ILP_SETTLEMENT_API_BIND_ADDRESS",
            format!("127.0.0.1:{settlement_port}"),
        );
    command
}

fn send_output(mut output: impl Read, sender: &std::sync::mpsc::Sender<String>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(len @ 1..) = output.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..len]);
        // Whole lines only, so that no character is cut in two. The end of a command is always a line.
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        let lines: Vec<u8> = bytes.drain(..=end).collect();
        if sender.send(String::from_utf8_lossy(&lines).into_owned()).is_err() {
            return;
        }
    }
}

/// Puts other texts in the place of some, all at once: a port that was put in may contain the digits of another.
fn replaced<'a>(text: &str, places: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let place = places.clone().find(|(from, _)| rest.starts_with(from));
        let (len, put) = place.map_or((letter.len_utf8(), None), |(from, to)| (from.len(), Some(to)));
        done += put.unwrap_or(&rest[..len]);
        rest = &rest[len..];
    }
    done
}

/// Takes the line that ends a command out of what is shown, and the line break before it, which is ours if there was one
/// already.
fn take_end(text: &mut String) -> Option<i32> {
    let begin = text.find(&format!("\n{END} "))?;
    let end = begin + 1 + text[begin + 1..].find('\n')?;
    let status = text[begin..end]
        .rsplit(' ')
        .next()
        .and_then(|status| status.parse().ok());
    let is_in_line = begin > 0 && !text[..begin].ends_with('\n');
    text.replace_range(begin..=end, if is_in_line { "\n" } else { "" });
    Some(status.expect("bash says a number"))
}

/// Puts lines together that were broken for reading, and leaves out blanks where nobody sees them.
fn whole_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    for line in lines {
        match (whole.last_mut(), line.strip_prefix(' ')) {
            (Some(last), Some(rest)) if last.ends_with(',') => *last += rest.trim(),
            _ => whole.push(line.trim_end().to_owned()),
        }
    }
    while whole.last().is_some_and(String::is_empty) {
        whole.pop();
    }
    whole
}

/// What is wrong with what was shown, for a person to read.
fn difference(expected: &[String], shown: &str) -> Option<String> {
    let expected = whole_lines(expected.iter().map(String::as_str));
    let shown = whole_lines(shown.lines());
    if all_match(&expected, &shown) {
        return None;
    }
    let same = expected
        .iter()
        .zip(&shown)
        .take_while(|(pattern, line)| *pattern != ANYTHING && matched(pattern, line).is_ok())
        .count();
    let mut text = String::new();
    for line in &shown[..same] {
        text += &format!("      {line}\n");
    }
    for line in &expected[same..] {
        text += &format!("    - {line}\n");
    }
    for line in &shown[same..] {
        text += &format!("    + {line}\n");
    }
    if let (Some(pattern), Some(line)) = (expected.get(same), shown.get(same))
        && let Err((wanted, found)) = matched(pattern, line)
    {
        text += &format!("    the first difference: expected {wanted:?}, found {found:?}\n");
    }
    Some(text)
}

/// A line that is only `…` stands for any lines.
fn all_match(expected: &[String], shown: &[String]) -> bool {
    match expected {
        [] => shown.is_empty(),
        [pattern, rest @ ..] if pattern == ANYTHING => {
            (0..=shown.len()).any(|skipped| all_match(rest, &shown[skipped..]))
        }
        [pattern, rest @ ..] => match shown {
            [line, behind @ ..] => matched(pattern, line).is_ok() && all_match(rest, behind),
            [] => false,
        },
    }
}

/// Whether a line is as its pattern says; else the beginning of what was expected and of what is there.
fn matched(pattern: &str, line: &str) -> Result<(), (String, String)> {
    let shorten = |text: &str| text.chars().take(60).collect::<String>();
    let mut pieces = pattern.split(ANYTHING).peekable();
    let mut rest = line;
    let mut is_first = true;
    while let Some(piece) = pieces.next() {
        let is_last = pieces.peek().is_none();
        let begin = match (is_first, is_last) {
            (true, true) => (piece == rest).then_some(0),
            (true, false) => rest.starts_with(piece).then_some(0),
            (false, true) => rest.ends_with(piece).then(|| rest.len() - piece.len()),
            (false, false) => rest.find(piece),
        };
        let Some(begin) = begin else {
            // As far as it goes well.
            let prefix = (0..=piece.len())
                .rev()
                .filter(|len| piece.is_char_boundary(*len))
                .map(|len| &piece[..len])
                .find_map(|prefix| {
                    let at = if is_first {
                        rest.starts_with(prefix).then_some(0)
                    } else {
                        rest.find(prefix)
                    };
                    at.map(|at| at + prefix.len()).zip(Some(prefix.len()))
                });
            let (there, good) = prefix.expect("the empty text is everywhere");
            return Err((shorten(&piece[good..]), shorten(&rest[there..])));
        };
        rest = &rest[begin + piece.len()..];
        is_first = false;
    }
    Ok(())
}

/// Runs a document from its first command to its last; everything that is wrong with it.
fn play(name: &str, text: &str) -> Vec<String> {
    let steps = steps(text);
    let mut wrong = Vec::new();
    if !steps.is_empty() {
        let mut session = Session::start(name);
        for step in &steps {
            if NOT_RUN
                .iter()
                .any(|(document, command, _)| (*document, *command) == (name, &step.command))
            {
                continue;
            }
            let (end, text) = match session.run(step) {
                Ok(None) => continue,
                Ok(Some(text)) => (false, text),
                Err(text) => (true, text),
            };
            wrong.push(format!("{name}:{}: $ {}\n{text}", step.line, step.command));
            if end {
                let log = fs::read_to_string(session.folder.join("node.log")).unwrap_or_default();
                wrong.push(format!("{name}: the rest was not run; the node's output:\n{log}"));
                return wrong;
            }
        }
        let (said, called) = (curls(text), session.curls());
        if said != called {
            wrong.push(format!("{name}: it shows {said} calls of curl, and {called} were made"));
        }
    } else if curls(text) > 0 {
        wrong.push(format!(
            "{name}: it shows calls of curl outside of any block that is run"
        ));
    }
    wrong
}

#[test]
fn every_command_shows_what_the_documents_say() {
    let documents = documents();
    for (name, command, reason) in NOT_RUN {
        let is_there = |(document, text): &(String, String)| {
            document == name && steps(text).iter().any(|step| step.command == command)
        };
        assert!(
            documents.iter().any(is_there),
            "{name} has no {command:?} any more: {reason}"
        );
    }
    let played: Vec<_> = thread::scope(|scope| {
        let playing: Vec<_> = documents
            .iter()
            .map(|(name, text)| scope.spawn(move || play(name, text)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<String>>| thread.join().expect("said above");
        playing.into_iter().flat_map(join).collect()
    });
    assert!(played.is_empty(), "{}", played.join("\n"));
}

#[test]
fn blocks_are_read() {
    let text = "text $ no\n```console\n$ one\nshown\n> shown\n\n$ two 'a\n> b' \\\n  c\n```\n```yaml\n$ no\n```\n\
        ```sh\n# comment\nthree\n\nfour 'd\ne'\n```\n";
    let step = |line, command: &str, shown: Option<&[&str]>| Step {
        line,
        command: command.to_owned(),
        shown: shown.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect()),
    };
    let expected = [
        step(3, "one", Some(&["shown", "> shown", ""])),
        step(7, "two 'a\nb' \\\n  c", Some(&[])),
        step(16, "three", None),
        step(18, "four 'd\ne'", None),
    ];
    assert_eq!(steps(text), expected);
    assert_eq!(
        curls("curl, curl and `curl -s x`\ncurl $N/; curl http://a | curl \"$N\""),
        4
    );
}

#[test]
fn places_are_replaced_at_once() {
    let places = [
        ("127.0.0.1:7770", "127.0.0.1:23001"),
        ("3001", "27780"),
        ("7780", "21111"),
    ];
    let there = replaced("é 127.0.0.1:7770 3001, 7780", places.into_iter());
    assert_eq!(there, "é 127.0.0.1:23001 27780, 21111");
    let back = replaced(&there, places.map(|(said, meant)| (meant, said)).into_iter());
    assert_eq!(back, "é 127.0.0.1:7770 3001, 7780");
}

#[test]
fn what_is_shown_is_compared() {
    for (expected, shown, same) in [
        ("", "", true),
        ("", "a", false),
        ("a", "", false),
        ("a", "a\n\n", true),
        ("a", "b", false),
        ("a", "a\nb", false),
        ("a\nb", "a", false),
        ("a…", "abc", true),
        ("a…c", "ac", true),
        ("a…c", "abd", false),
        ("a…b…c", "a-b-c", true),
        ("a…b…c", "a-c-b", false),
        ("a…a", "a", false),
        ("…c", "abc", true),
        ("…", "", true),
        ("a\n…\nz", "a\nb\nc\nz", true),
        ("a\n…\nz", "a\nb\nc", false),
        ("…\na", "b\na\nc\na", true),
        ("{\"a\":1,\n \"b\":2}", "{\"a\":1,\"b\":2}", true),
        ("{\"a\":1,\n \"b\":2}", "{\"a\":1,\"b\":3}", false),
        ("a\n b", "a\n b", true),
        ("a\n b", "ab", false),
    ] {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        assert_eq!(difference(&expected, shown).is_none(), same, "{expected:?}, {shown:?}");
    }
    let said = difference(&["{\"a\":…,\"b\":2}".to_owned()], "{\"a\":1,\"b\":3}").expect("a difference");
    assert!(said.contains("expected \"2}\", found \"3}\""), "{said}");
}

/// A document that is wrong in every way there is.
#[test]
fn a_wrong_document_is_found() {
    let text = "```console\n$ A=1; cd docs\n$ echo $A; pwd\n1\n…/docs\n$ echo $A\n2\n$ false\n$ echo \"\n```\n\
        ```sh\ntrue\nfalse\n```\n`curl http://127.0.0.1:7770/`\n";
    let wrong = play("wrong.md", text);
    let begins: Vec<&str> = wrong.iter().filter_map(|text| text.lines().next()).collect();
    assert_eq!(
        begins,
        [
            "wrong.md:6: $ echo $A",
            "wrong.md:9: $ echo \"",
            "wrong.md:13: $ false",
            "wrong.md: it shows 1 calls of curl, and 0 were made",
        ]
    );
}
