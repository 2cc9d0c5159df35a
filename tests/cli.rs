//! The command line, run as users run it: against a real node, and where an answer must be known to the byte against a
//! server that plays one.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use serde_json::{Value, json};
use support::PATIENCE;
use support::node::{ADMIN_TOKEN, Node};

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    /// Panics unless the command did what it was asked to, without a word of complaint.
    fn done(self) -> String {
        assert_eq!((self.code, &*self.err), (Some(0), ""), "{self:?}");
        self.out
    }

    fn json(self) -> Value {
        let out = self.done();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

/// A folder that is gone when its test is.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{}-{number}", std::process::id()));
        // Left by a process of the same number that was killed.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("a file for the test");
        path.to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Somebody at a shell, in an empty folder and with an environment that says nothing.
struct User {
    folder: Folder,
    environment: BTreeMap<&'static str, String>,
}

impl User {
    fn new() -> Self {
        Self {
            folder: Folder::new(),
            environment: BTreeMap::new(),
        }
    }

    /// One who asks this node with the admin's token.
    fn of(address: SocketAddr) -> Self {
        let user = Self::new().with("ILP_CLI_NODE_URL", &format!("http://{address}"));
        user.with("ILP_CLI_API_AUTH", ADMIN_TOKEN)
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.insert(name, value.to_owned());
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.environment.remove(name);
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clearway"));
        command.args(arguments).current_dir(&self.folder.0).env_clear();
        command.envs(&self.environment);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Words are separated by white space.
    fn run(&self, line: &str) -> Said {
        self.run_with_input(&line.split_whitespace().collect::<Vec<_>>(), "")
    }

    fn run_with_input(&self, arguments: &[&str], input: &str) -> Said {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("the binary can be run");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A command that reads none of it may have ended.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("our own child");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Said {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

/// A request as it arrived at the server that plays a node.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// Method and target.
    line: String,
    headers: BTreeMap<String, String>,
    body: String,
}

/// Plays a node: gives one answer after the other, and keeps what it was asked.
struct Stage {
    address: SocketAddr,
    asked: mpsc::Receiver<Asked>,
}

impl Stage {
    /// Answers in order: status line, further headers, and the body.
    fn new(answers: &[(&str, &str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let answers: Vec<String> = answers
            .iter()
            .map(|(status, headers, body)| {
                let length = body.len();
                format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
            })
            .collect();
        let (sender, asked) = mpsc::channel();
        std::thread::spawn(move || {
            for answer in answers {
                let Ok((stream, _)) = listener.accept() else { return };
                let request = read_request(&stream);
                // The test may be over.
                let _ = sender.send(request);
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).expect("the command asked")
    }
}

fn read_request(stream: &TcpStream) -> Asked {
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
    let mut reader = BufReader::new(stream);
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    };
    let line = next();
    let mut headers = BTreeMap::new();
    loop {
        let header = next();
        let Some((name, value)) = header.split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a whole body");
    Asked {
        line: line.trim_end_matches(" HTTP/1.1").to_owned(),
        headers,
        body: String::from_utf8(body).expect("UTF-8"),
    }
}

#[test]
fn accounts_from_creation_to_deletion() {
    let node = Node::start();
    let user = User::of(node.address());
    let header = "USERNAME  ADDRESS  ASSET  SCALE  RELATION  LINKS\n";
    assert_eq!(user.run("accounts list").done(), header);
    assert_eq!(user.run("accounts list --json").json(), json!([]));

    let created = user.run(
        "accounts create alice --asset-code abc --asset-scale 9 --min-balance -100 --max-balance 18 \
         --max-packet-amount 500 --packets-per-minute-limit 600 --amount-per-minute-limit 18446744073709551615 \
         --round-trip-time 250 --spread 2.5e-3 --ilp-over-http-incoming-token alice-http --ilp-over-btp-incoming-token alice-btp \
         --settle-threshold 1000 --settle-to=-5 --routing-relation peer --ilp-address test.alice --json",
    );
    let created: Value = serde_json::from_str(&created.out).expect("an account");
    for (member, expected) in [
        ("username", json!("alice")),
        ("asset_code", json!("ABC")),
        ("asset_scale", json!(9)),
        ("min_balance", json!(-100)),
        ("max_balance", json!(18)),
        ("max_packet_amount", json!(500)),
        ("packets_per_minute_limit", json!(600)),
        ("amount_per_minute_limit", json!(u64::MAX)),
        ("round_trip_time", json!(250)),
        ("spread", json!(0.0025)),
        ("settle_threshold", json!(1000)),
        ("settle_to", json!(-5)),
        ("routing_relation", json!("Peer")),
        ("ilp_address", json!("test.alice")),
        (
            "tokens_set",
            json!(["ilp_over_http_incoming_token", "ilp_over_btp_incoming_token"]),
        ),
    ] {
        assert_eq!(created[member], expected, "{member}");
    }
    user.run("accounts create bob_the_second --asset-code XYZ --asset-scale 2 --ilp-over-http-url http://127.0.0.1:1")
        .done();
    assert_eq!(
        user.run("accounts list").done(),
        "USERNAME        ADDRESS                  ASSET  SCALE  RELATION           LINKS\n\
         alice           test.alice               ABC    9      Peer               btp waiting\n\
         bob_the_second  test.hub.bob_the_second  XYZ    2      NonRoutingAccount  http ready\n"
    );

    // As the node wrote it, to the byte.
    let answer = node.api().call("GET", "/accounts/alice", None);
    let answer = String::from_utf8(answer.body).expect("UTF-8");
    assert_eq!(user.run("accounts get alice --json").done(), format!("{answer}\n"));
    let shown = user.run("accounts get alice").done();
    for line in [
        "username                      alice",
        "amount per minute limit       18446744073709551615",
        "ilp over http incoming token  set",
        "ilp over http outgoing token  -",
        "ilp over btp url              -",
        "links                         btp waiting",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} in\n{shown}");
    }

    let updated = user.run("accounts update alice --clear min-balance --clear max-balance --settle-to 7 --json");
    assert_eq!(updated.code, Some(0), "{updated:?}");
    assert!(
        updated.err.starts_with("clearway: warning: settle_threshold: "),
        "no engine: {updated:?}"
    );
    let updated: Value = serde_json::from_str(&updated.out).expect("an account");
    assert_eq!(updated["min_balance"], Value::Null);
    assert_eq!(updated["max_balance"], Value::Null);
    assert_eq!(updated["settle_to"], 7);
    assert_eq!(updated["round_trip_time"], 250, "what is not given stays");
    assert_eq!(
        user.run("accounts update bob_the_second --asset-code QRS --asset-scale 3 --json")
            .json()["asset_code"],
        "QRS"
    );

    let balance = "balance             0 at scale 9, which is 0 ABC\n\
                   prepaid amount      0\n\
                   held                0\n\
                   pending settlement  0\n";
    assert_eq!(user.run("accounts balance alice").done(), balance);
    assert_eq!(user.run("accounts balance alice --json").json()["balance_scaled"], "0");
    let holder = User::of(node.address()).with("ILP_CLI_API_AUTH", "alice:alice-http");
    assert_eq!(holder.run("accounts balance alice").done(), balance);

    user.run("routes set test.behind-alice alice").done();
    assert_eq!(
        user.run("accounts delete alice").done(),
        "deleted         alice\nremoved routes  test.behind-alice\n"
    );
    let forced = user.run("accounts delete bob_the_second --force --json").json();
    assert_eq!(forced["written_off"], 0);
    assert_eq!(user.run("accounts list").done(), header);
}

#[test]
fn lists_in_parts() {
    let node = Node::start();
    let user = User::of(node.address());
    for (name, asset, relation) in [("ann", "ABC", "Peer"), ("ben", "ABC", "Child"), ("cid", "XYZ", "Peer")] {
        let fields = json!({"asset_code": asset, "routing_relation": relation});
        node.add_account(name, &fields);
    }
    let names = |line: &str| {
        let said = user.run(line);
        let found: Vec<Value> = serde_json::from_str(&said.out).expect("a list");
        let names = found
            .iter()
            .map(|account| account["username"].as_str().expect("a name").to_owned());
        (names.collect::<Vec<_>>().join(" "), said.err)
    };
    for (options, expected, more) in [
        ("", "ann ben cid", ""),
        ("--asset-code abc", "ann ben", ""),
        ("--routing-relation peer", "ann cid", ""),
        ("--address-prefix test.hub.ben", "ben", ""),
        ("--limit 2", "ann ben", "clearway: there are more: --after ben\n"),
        ("--limit 2 --after ben", "cid", ""),
        ("--after cid", "", ""),
        (
            "--limit 1 --asset-code ABC",
            "ann",
            "clearway: there are more: --after ann\n",
        ),
    ] {
        let found = names(&format!("accounts list --json {options}"));
        assert_eq!(found, (expected.to_owned(), more.to_owned()), "{options}");
    }
    let refused = user.run("accounts list --limit 1001");
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("400") && refused.err.contains("limit"),
        "{refused:?}"
    );
}

/// One call for each page, and one table or array of all.
#[test]
fn pages_are_followed() {
    let account = |name: &str| {
        format!(
            r#"{{"username":"{name}","ilp_address":"g.{name}","asset_code":"ABC","asset_scale":9,"routing_relation":"Peer","links":{{"http":null,"btp":null}},"big":18446744073709551616}}"#
        )
    };
    let first = format!("[{},{}]", account("ann"), account("benjamin_the_first"));
    let second = format!("[{}]", account("cid"));
    let link = "Link: </accounts?limit=1000&asset_code=A%26B&after=ben>; rel=\"next\"\r\n";
    let answers = [("200 OK", link, &*first), ("200 OK", "", &*second)];

    let stage = Stage::new(&answers);
    let user = User::of(stage.address);
    assert_eq!(
        user.run("accounts list --asset-code A&B").done(),
        "USERNAME            ADDRESS               ASSET  SCALE  RELATION  LINKS\n\
         ann                 g.ann                 ABC    9      Peer      -\n\
         benjamin_the_first  g.benjamin_the_first  ABC    9      Peer      -\n\
         cid                 g.cid                 ABC    9      Peer      -\n"
    );
    let asked = stage.asked();
    assert_eq!(asked.line, "GET /accounts?limit=1000&asset_code=A%26B");
    assert_eq!(asked.headers["authorization"], format!("Bearer {ADMIN_TOKEN}"));
    assert_eq!(
        stage.asked().line,
        "GET /accounts?limit=1000&asset_code=A%26B&after=ben"
    );

    let stage = Stage::new(&answers);
    let listed = User::of(stage.address).run("accounts list --json").done();
    let expected = format!(
        "[\n{},\n{},\n{}\n]\n",
        account("ann"),
        account("benjamin_the_first"),
        account("cid")
    );
    assert_eq!(listed, expected, "no digit is lost");

    let unavailable = r#"{"title":"Service Unavailable","detail":"it stops"}"#;
    let stage = Stage::new(&[answers[0], ("503 Service Unavailable", "", unavailable)]);
    let said = User::of(stage.address).run("accounts list --json");
    assert_eq!(
        (said.code, &*said.err),
        (Some(1), "clearway: 503 Service Unavailable: it stops\n")
    );
    assert!(!said.out.contains("it stops"), "the list was begun: {said:?}");

    // A page that leads to itself would never end.
    let circle = "Link: </accounts?limit=1000>; rel=\"next\"\r\n";
    let stage = Stage::new(&[("200 OK", circle, "[]")]);
    let said = User::of(stage.address).run("accounts list");
    assert_eq!(said.code, Some(1));
    assert_eq!(said.err, "clearway: the next page is the same page again\n");
}

#[test]
fn routes_and_rates() {
    let node = Node::start();
    let user = User::of(node.address());
    node.add_account("bob", &json!({}));
    assert_eq!(
        user.run("routes set test.far-away. bob").done(),
        "test.far-away. leads to bob\n"
    );
    assert_eq!(
        user.run("routes list").done(),
        "PREFIX         USERNAME\ntest.far-away  bob\ntest.hub.bob   bob\n"
    );
    assert_eq!(
        user.run("routes list --json").json(),
        json!({"test.far-away": "bob", "test.hub.bob": "bob"})
    );
    assert_eq!(
        user.run("routes list --detail").done(),
        "PREFIX         USERNAME  ORIGIN   RELATION  HOPS  PATH  LINK  IN FORCE\n\
         test.far-away  bob       static   -         -     -     down  yes\n\
         test.hub.bob   bob       account  -         -     -     down  yes\n"
    );
    assert_eq!(
        user.run("routes list --detail --json").json()[0]["candidates"],
        json!([{"username": "bob", "origin": "static", "link": "down", "in_force": true}])
    );
    assert_eq!(
        user.run("routes explain test.far-away.x --from bob").done(),
        "destination  test.far-away.x\n\
         from         bob\n\
         outcome      refused: T01, no connection to the next hop\n\
         next hop     bob\n\
         because      test.far-away is the longest prefix that matches\n\
         \u{20}            it leads to bob: a static route\n\
         \u{20}            bob has no BTP connection at the moment\n\
         prefix       test.far-away\n\
         \n\
         USERNAME  ORIGIN  RELATION  HOPS  PATH  LINK  WHY\n\
         bob       static  -         -     -     down  in force\n"
    );
    assert_eq!(
        user.run("routes explain test.hub").done(),
        "destination  test.hub\n\
         outcome      refused: F02, no such local address\n\
         because      an echo request to the node's own address is answered by the node\n\
         \u{20}            it is the node's own address, where nothing else is taken\n\
         prefix       test.hub\n"
    );
    assert_eq!(
        user.run("routes explain g.bob --json").json()["reasons"],
        json!(["its scheme is not test, that of the node's own address test.hub"])
    );
    assert_eq!(
        user.run("routes delete test.far-away").done(),
        "test.far-away led to bob, and is removed\n"
    );
    assert_eq!(user.run("routes set g.x bob --json").done(), "\"bob\"\n");
    let file = user.folder.write("routes.json", r#"{"": "bob", "g.y": "bob"}"#);
    let replaced = "PREFIX  USERNAME\n\"\"      bob\ng.y     bob\n";
    assert_eq!(user.run(&format!("routes replace {file}")).done(), replaced);
    assert_eq!(
        user.run_with_input(&["routes", "replace", "-"], "{}").done(),
        "PREFIX  USERNAME\n"
    );

    assert_eq!(
        user.run("rates replace ABC=1.0 xyz=2.517").done(),
        "ASSET  RATE\nABC    1.0\nXYZ    2.517\n"
    );
    assert_eq!(user.run("rates list --json").json(), json!({"ABC": 1.0, "XYZ": 2.517}));
    let file = user.folder.write("rates.json", r#"{"ABC": "0.5"}"#);
    assert_eq!(
        user.run(&format!("rates replace {file}")).done(),
        "ASSET  RATE\nABC    0.5\n"
    );
    assert_eq!(
        user.run_with_input(&["rates", "replace", "-"], "{}").done(),
        "ASSET  RATE\n"
    );
    assert_eq!(user.run("rates list").done(), "ASSET  RATE\n");

    for (line, code, said) in [
        ("rates replace ABC=", 1, "ABC: expected a number above 0"),
        ("rates replace ABC=1 abc=2", 1, "is there twice"),
        ("rates replace ABC=1 ABC=2", 2, "ABC is there twice"),
        ("rates replace ABC=1 XYZ", 2, "XYZ: expected CODE=VALUE"),
        ("rates replace", 2, "CODE=RATE|FILE"),
        ("routes set g.x nobody", 1, "404 Account Not Found"),
        ("routes delete g.x", 1, "404 Not Found"),
        ("routes explain nowhere", 1, "destination: an address begins with"),
        ("routes explain test.x --from nobody", 1, "404 Account Not Found"),
        ("routes replace ./missing.json", 2, "./missing.json: No such file"),
    ] {
        let refused = user.run(line);
        assert_eq!(refused.code, Some(code), "{line}: {refused:?}");
        assert!(
            refused.err.contains(said) && refused.out.is_empty(),
            "{line}: {refused:?}"
        );
    }
    let refused = user.run_with_input(&["routes", "set", "", "bob"], "");
    assert_eq!(
        refused.code,
        Some(2),
        "the path of the empty prefix is that of all: {refused:?}"
    );
    let large = user.folder.write("large.json", &" ".repeat((4 << 20) + 1));
    let refused = user.run(&format!("routes replace {large}"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("longer than 4194304 bytes"), "{refused:?}");
}

#[test]
fn refusals_are_one_line_and_an_exit_code() {
    let node = Node::start();
    node.add_account("alice", &json!({}));
    let admin = || User::of(node.address());
    for (line, code, said) in [
        (
            "accounts create alice --asset-code ABC --asset-scale 9",
            1,
            "clearway: 409 Provided resource already exists: ",
        ),
        (
            "accounts create bob --asset-code ABC --asset-scale 300 --min-balance 1.5",
            1,
            "clearway: 400 JSON Data Error: asset_scale: expected an integer from 0 to 255; min_balance: ",
        ),
        ("accounts get nobody", 1, "clearway: 404 Account Not Found: "),
        ("accounts get a/b", 1, "clearway: 404 Not Found: "),
        ("accounts get alice --auth wrong", 1, "clearway: 401 Unauthorized: "),
        ("accounts create", 2, "--asset-code"),
        (
            "accounts create bob --asset-code ABC --asset-scale 9 --colour red",
            2,
            "--colour",
        ),
        ("accounts update alice", 2, "clearway: nothing to change"),
        ("accounts update alice --clear colour", 2, "colour"),
        ("accounts settings alice --min-balance 0", 2, "--min-balance"),
        (
            "accounts update alice --settle-to 1 --clear settle-to",
            2,
            "cleared as well",
        ),
        ("accounts sell alice", 2, "sell"),
        ("accounts", 2, "Usage: clearway accounts"),
        ("accounts list --node 127.0.0.1:7770", 2, "expected a URL"),
        (
            "accounts list --auth @missing",
            2,
            "clearway: --auth: missing: No such file",
        ),
        ("completions cobol", 2, "cobol"),
    ] {
        let refused = admin().run(line);
        assert_eq!(refused.code, Some(code), "{line}: {refused:?}");
        assert!(
            refused.err.contains(said) && refused.out.is_empty(),
            "{line}: {refused:?}"
        );
        if code == 1 {
            assert_eq!(refused.err.lines().count(), 1, "{line}: {refused:?}");
        }
    }
    let refused = admin().run_with_input(&["accounts", "get", ""], "");
    assert_eq!(refused.code, Some(2), "the path of no name is that of all: {refused:?}");
    let refused = admin().run("accounts get nobody --json");
    let problem: Value = serde_json::from_str(&refused.out).expect("the node's own answer");
    assert_eq!((refused.code, &problem["code"]), (Some(1), &json!("account_not_found")));
    assert!(refused.err.starts_with("clearway: 404"), "{refused:?}");

    let gone = support::free_address();
    let refused = User::of(gone).run("rates list");
    assert_eq!(refused.code, Some(1));
    assert_eq!(
        refused.err,
        format!("clearway: http://{gone} gave no answer: Connection refused (os error 111)\n")
    );
    let stage = Stage::new(&[("200 OK", "", "<html>")]);
    let refused = User::of(stage.address).run("rates list --json");
    assert_eq!(refused.code, Some(1), "no node, whatever it is: {refused:?}");
    assert!(refused.out.is_empty(), "{refused:?}");
    let stage = Stage::new(&[("502 Bad Gateway", "", "<html>\u{1b}[2J</html>")]);
    let refused = User::of(stage.address).run("rates list --json");
    assert_eq!(refused.code, Some(1));
    assert!(refused.out.is_empty(), "this is no JSON: {refused:?}");
    assert_eq!(refused.err, "clearway: 502 Bad Gateway: <html>\\u{1b}[2J</html>\n");
    let stage = Stage::new(&[("302 Found", "Location: http://127.0.0.1:1/\r\n", "")]);
    let refused = User::of(stage.address).run("rates list");
    assert_eq!(refused.code, Some(1), "a token goes nowhere else: {refused:?}");
    assert!(refused.err.starts_with("clearway: 302 Found"), "{refused:?}");
}

#[test]
fn tokens_come_from_many_places_and_are_never_shown() {
    let node = Node::start();
    let user = User::of(node.address()).without("ILP_CLI_API_AUTH");
    let said = user.run("accounts list");
    assert_eq!(said.code, Some(1));
    for part in [
        "clearway: 401 Unauthorized: ",
        "no token was sent: neither --auth nor ILP_CLI_API_AUTH is given",
        "./data/admin_auth_token: No such file",
    ] {
        assert!(said.err.contains(part), "{part} in {said:?}");
    }

    let data = Folder::new();
    data.write("admin_auth_token", &format!("{ADMIN_TOKEN}\n"));
    let folder = data.0.to_str().expect("UTF-8");
    user.run(&format!("accounts list --data-dir {folder}")).done();
    user.run(&format!("accounts list --data_dir {folder}")).done();
    User::of(node.address())
        .without("ILP_CLI_API_AUTH")
        .with("ILP_DATA_DIR", folder)
        .run("accounts list")
        .done();
    std::fs::create_dir(user.folder.0.join("data")).expect("a folder");
    user.folder.write("data/admin_auth_token", ADMIN_TOKEN);
    user.run("accounts list").done();

    let token = user.folder.write("token", &format!("{ADMIN_TOKEN}\r\n"));
    user.run(&format!("accounts list --auth @{token}")).done();
    user.run_with_input(&["accounts", "list", "--auth", "-"], ADMIN_TOKEN)
        .done();
    let said = user.run_with_input(&["accounts", "list", "--auth", ""], "");
    assert_eq!(
        said.code,
        Some(2),
        "an empty variable is no wish for another token: {said:?}"
    );

    // A call to this machine does not leave it.
    let proxied = User::of(node.address())
        .with("http_proxy", "http://127.0.0.1:1")
        .with("ALL_PROXY", "http://127.0.0.1:1");
    proxied.run("accounts list").done();

    // The tokens of accounts, from all three places.
    let file = user.folder.write("btp", "from-the-file\n");
    let btp = format!("@{file}");
    let line = [
        "accounts",
        "create",
        "alice",
        "--asset-code",
        "ABC",
        "--asset-scale",
        "9",
        "--ilp-over-http-incoming-token",
        "-",
        "--ilp-over-btp-incoming-token",
        &btp,
    ];
    let shown = user.run_with_input(&line, "from-standard-input\n").done();
    assert!(!shown.contains("from-"), "{shown}");
    let holder = User::of(node.address()).with("ILP_CLI_API_AUTH", "alice:from-standard-input");
    holder.run("accounts get alice").done();
    let twice = "accounts create bob --asset-code ABC --asset-scale 9 \
                 --ilp-over-http-incoming-token - --ilp-over-btp-incoming-token -";
    let twice: Vec<&str> = twice.split_whitespace().collect();
    let said = user.run_with_input(&twice, "once\n");
    assert_eq!(said.code, Some(2), "standard input is read once: {said:?}");
    assert_eq!(
        said.err,
        "clearway: --ilp-over-btp-incoming-token: standard input: is empty\n"
    );

    for secret in [ADMIN_TOKEN, "alice:from-standard-input", "wrong-token"] {
        let user = User::of(node.address()).with("ILP_CLI_API_AUTH", secret);
        for line in [
            "accounts list",
            "accounts get alice",
            "accounts get nobody",
            "--help",
            "accounts --help",
        ] {
            let said = user.run(line);
            assert!(
                !said.out.contains(secret) && !said.err.contains(secret),
                "{line}: {said:?}"
            );
        }
    }

    // This address leads to this machine as well, but is none of its own: what is in the data folder stays here.
    let unauthorized = (
        "401 Unauthorized",
        "",
        r#"{"title":"Unauthorized","detail":"a token, please"}"#,
    );
    let stage = Stage::new(&[unauthorized]);
    let elsewhere = User::new()
        .with("ILP_CLI_NODE_URL", &format!("http://0.0.0.0:{}", stage.address.port()))
        .with("ILP_DATA_DIR", folder);
    let said = elsewhere.run("accounts list");
    assert!(!stage.asked().headers.contains_key("authorization"));
    assert!(
        said.err.contains("is for nodes on this machine") && said.err.lines().count() == 1,
        "{said:?}"
    );
}

#[test]
fn status_says_whether_all_is_well() {
    let node = Node::start();
    node.add_account("alice", &json!({}));
    let version = env!("CARGO_PKG_VERSION");
    let head = format!("status       Ready\nilp address  test.hub\nversion      {version}\n");
    let user = User::of(node.address());
    assert_eq!(
        user.run("status").done(),
        format!(
            "{head}book         adds up\n\n\
             ASSET  SCALE  ACCOUNTS  BALANCES  POSITION  PENDING  ADDS UP\n\
             ABC    9      1         0         0         0        yes\n"
        )
    );
    let answer = user.run("status --json").json();
    assert_eq!(answer["node"]["status"], "Ready");
    assert_eq!(answer["audit"]["adds_up"], true);
    let unchecked = format!("{head}book         not checked: this takes the admin's token\n");
    let nobody = User::of(node.address()).without("ILP_CLI_API_AUTH");
    assert_eq!(nobody.run("status").done(), unchecked);
    assert_eq!(nobody.run("status --json").json()["audit"], Value::Null);
    let holder = User::of(node.address()).with("ILP_CLI_API_AUTH", "alice:alice-http");
    assert_eq!(holder.run("status").done(), unchecked);

    let ready = (
        "200 OK",
        "",
        r#"{"status":"Ready","ilp_address":"g.hub","version":"9"}"#,
    );
    let not_ready = r#"{"status":"NotReady","ilp_address":"g.hub","version":"9","reason":"the disk is full"}"#;
    let wrong = r#"{"adds_up":true,"assets":[{"asset_code":"ABC","asset_scale":9,"accounts":2,"balances":-5,"position":4,"pending":0,"adds_up":true}]}"#;
    let broken = (
        "500 Internal Server Error",
        "",
        r#"{"title":"Internal Server Error","detail":"it broke"}"#,
    );
    for (answers, out, err) in [
        (
            vec![("503 Service Unavailable", "", not_ready)],
            "status       NotReady\n",
            "clearway: 503 Service Unavailable: the disk is full\n",
        ),
        (
            vec![ready, ("200 OK", "", wrong)],
            "ABC    9      2         -5        4         0        NO\n",
            "clearway: the book does not add up: ABC at scale 9 has balances of -5 and a position of 4\n",
        ),
        (
            vec![ready, broken],
            "book         not checked\n",
            "clearway: 500 Internal Server Error: it broke\n",
        ),
    ] {
        let stage = Stage::new(&answers);
        let said = User::of(stage.address).run("status");
        assert_eq!((said.code, &*said.err), (Some(1), err), "{said:?}");
        assert!(said.out.contains(out), "{said:?}");
        let stage = Stage::new(&answers);
        let said = User::of(stage.address).run("status --json");
        assert_eq!((said.code, &*said.err), (Some(1), err), "{said:?}");
        let whole: Value = serde_json::from_str(&said.out).expect("one JSON document");
        assert!(whole["node"]["status"].is_string(), "{whole}");
    }
}

#[test]
fn settings_engines_and_log_level() {
    let account = r#"{"username":"alice","settle_to":0,"tokens_set":[],"warnings":[{"field":"settle_threshold","message":"never settles"}]}"#;
    let stage = Stage::new(&[("200 OK", "", account)]);
    let holder = User::of(stage.address).with("ILP_CLI_API_AUTH", "alice:pw");
    let said =
        holder.run("accounts settings alice --settle-to 0 --clear ilp-over-btp-url --ilp-over-http-outgoing-token t");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.out, "username   alice\nsettle to  0\n");
    assert_eq!(said.err, "clearway: warning: settle_threshold: never settles\n");
    let asked = stage.asked();
    assert_eq!(asked.line, "PUT /accounts/alice/settings");
    assert_eq!(asked.headers["authorization"], "Bearer alice:pw");
    assert_eq!(asked.headers["content-type"], "application/json");
    assert_eq!(
        asked.body,
        r#"{"ilp_over_btp_url":null,"ilp_over_http_outgoing_token":"t","settle_to":"0"}"#
    );

    let map = r#"{"ABC":"http://127.0.0.1:3001/","XYZ":null}"#;
    let warned = ("200 OK", "X-Clearway-Warning: ABC has no accounts\r\n", map);
    let stage = Stage::new(&[warned, warned]);
    let user = User::of(stage.address);
    let said = user.run("engines set ABC=http://127.0.0.1:3001 XYZ=");
    assert_eq!(said.out, "ASSET  ENGINE\nABC    http://127.0.0.1:3001/\nXYZ    -\n");
    assert_eq!(said.err, "clearway: warning: ABC has no accounts\n");
    let asked = stage.asked();
    assert_eq!(asked.line, "PUT /settlement/engines");
    assert_eq!(asked.body, r#"{"ABC":"http://127.0.0.1:3001","XYZ":null}"#);
    assert_eq!(user.run("engines set ABC=x --json").out, format!("{map}\n"));

    let changed = ("200 OK", "", "Logging level changed to: ledger=debug,net=info");
    let stage = Stage::new(&[changed, changed]);
    let user = User::of(stage.address);
    assert_eq!(
        user.run("log-level ledger=debug,net=info").done(),
        "Logging level changed to: ledger=debug,net=info\n"
    );
    let asked = stage.asked();
    assert_eq!(
        (&*asked.line, &*asked.body),
        ("PUT /tracing-level", "ledger=debug,net=info")
    );
    assert_eq!(
        user.run("log-level debug --json").done(),
        "\"Logging level changed to: ledger=debug,net=info\"\n"
    );
}

#[test]
fn payments() {
    let paid = r#"{"from":"g.hub.alice","to":"g.bob.x","sent_amount":1000,"source_amount":1000,"in_flight_amount":0,"delivered_amount":500,"source_asset_code":"ABC","source_asset_scale":9,"destination_asset_code":"XYZ","destination_asset_scale":6}"#;
    let ok = ("200 OK", "", paid);
    let stage = Stage::new(&[ok, ok, ok]);
    let holder = User::of(stage.address).with("ILP_CLI_API_AUTH", "alice:pw");
    assert_eq!(
        holder
            .run("pay alice $bob.example 1000 --slippage 0.02 --timeout-ms 5000 --idempotency-key k-1")
            .done(),
        "sent       1000 units of ABC at scale 9\n\
         in flight  0 units of ABC at scale 9\n\
         delivered  500 units of XYZ at scale 6\n\
         to         g.bob.x\n"
    );
    let asked = stage.asked();
    assert_eq!(asked.line, "POST /accounts/alice/payments");
    assert_eq!(asked.headers["authorization"], "Bearer alice:pw");
    assert_eq!(asked.headers["idempotency-key"], "k-1");
    let body: Value = serde_json::from_str(&asked.body).expect("JSON");
    let expected = json!({"receiver": "$bob.example", "source_amount": "1000", "slippage": "0.02", "timeout_ms": 5000});
    assert_eq!(body, expected);

    assert_eq!(
        holder
            .run("pay alice http://h/bob --destination-amount 500 --json --timeout-ms 18446744073709551615")
            .done(),
        format!("{paid}\n")
    );
    let asked = stage.asked();
    let key = asked.headers["idempotency-key"].clone();
    assert_eq!(key.len(), 36, "a UUID: {key}");
    let body: Value = serde_json::from_str(&asked.body).expect("JSON");
    let expected = json!({"receiver": "http://h/bob", "destination_amount": "500", "timeout_ms": u64::MAX});
    assert_eq!(body, expected);
    holder.run("pay alice http://h/bob 1").done();
    assert_ne!(
        stage.asked().headers["idempotency-key"],
        key,
        "every payment has its own"
    );

    // Part of it arrived.
    let problem = r#"{"type":"about:blank","title":"Payment Failed","status":502,"code":"rejected","detail":"no route","payment":{"from":"a","to":"g.bob.x","sent_amount":400,"source_amount":1000,"in_flight_amount":100,"delivered_amount":200,"source_asset_code":"ABC","source_asset_scale":9,"destination_asset_code":null,"destination_asset_scale":null}}"#;
    let failed = ("502 Bad Gateway", "Content-Type: application/problem+json\r\n", problem);
    let stage = Stage::new(&[failed, failed]);
    let holder = User::of(stage.address).with("ILP_CLI_API_AUTH", "alice:pw");
    let said = holder.run("pay alice $bob.example 1000");
    assert_eq!(
        (said.code, &*said.err),
        (Some(1), "clearway: 502 Payment Failed: no route\n")
    );
    assert_eq!(
        said.out,
        "sent       400 units of ABC at scale 9\nin flight  100 units of ABC at scale 9\ndelivered  200\nto         g.bob.x\n"
    );
    let said = holder.run("pay alice $bob.example 1000 --json");
    assert_eq!((said.code, said.out), (Some(1), format!("{problem}\n")));

    // The connection ends before the answer.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let holder = User::of(listener.local_addr().expect("an address")).with("ILP_CLI_API_AUTH", "alice:pw");
    let hanging_up = std::thread::spawn(move || read_request(&listener.accept().expect("a connection").0));
    let said = holder.run("pay alice $bob.example 1000");
    let key = hanging_up.join().expect("a request").headers["idempotency-key"].clone();
    assert_eq!(said.code, Some(1));
    let hint = format!("clearway: whether it was paid is not known; ask again with --idempotency-key {key}\n");
    assert!(said.err.contains(&hint), "{said:?}");

    let refused = |line: &str, auth: Option<&str>| {
        let user = User::new().with("ILP_CLI_NODE_URL", "http://127.0.0.1:1");
        let user = match auth {
            Some(auth) => user.with("ILP_CLI_API_AUTH", auth),
            None => user,
        };
        user.run(line)
    };
    for (line, auth, code, said) in [
        (
            "pay alice $b 1000",
            None,
            2,
            "a payment is the holder's: give --auth USERNAME:PASSWORD",
        ),
        ("pay alice $b 1000", Some("admin"), 2, "expected USERNAME:PASSWORD"),
        ("pay alice $b", Some("alice:pw"), 2, "<AMOUNT>"),
        (
            "pay alice $b 1 --destination-amount 2",
            Some("alice:pw"),
            2,
            "cannot be used with",
        ),
        (
            "pay alice $b 1 --idempotency-key \u{e4}",
            Some("alice:pw"),
            2,
            "visible ASCII",
        ),
        ("pay alice $b 1", Some("alice:pw"), 1, "Connection refused"),
    ] {
        let refused = refused(line, auth);
        assert_eq!(refused.code, Some(code), "{line}: {refused:?}");
        assert!(refused.err.contains(said), "{line}: {refused:?}");
        assert!(
            !refused.err.contains("whether it was paid"),
            "nothing was sent: {refused:?}"
        );
    }
}

#[test]
fn settlements() {
    let open = r#"{"id":"5f0c7a52-0000-4000-8000-2b6c1d9e8f10","state":"sent","amount":18446744073709551615,"scale":9,"attempts":3,"engine":"http://e/","created_at":"2026-01-05T10:11:12.131Z","last_attempt_at":"2026-01-05T10:11:19.131Z","next_attempt_at":"2026-01-05T10:11:23.131Z","ended_at":null,"last_error":"no answer"}"#;
    let shown = "id               5f0c7a52-0000-4000-8000-2b6c1d9e8f10\n\
                 state            sent\n\
                 amount           18446744073709551615\n\
                 scale            9\n\
                 attempts         3\n\
                 engine           http://e/\n\
                 created at       2026-01-05T10:11:12.131Z\n\
                 last attempt at  2026-01-05T10:11:19.131Z\n\
                 next attempt at  2026-01-05T10:11:23.131Z\n\
                 ended at         -\n\
                 last error       no answer\n";
    for (line, asked) in [
        ("settlements now alice", "POST /accounts/alice/settlements"),
        (
            "settlements cancel alice an-id",
            "POST /accounts/alice/settlements/an-id/cancel",
        ),
        (
            "settlements cancel alice an-id --force",
            "POST /accounts/alice/settlements/an-id/cancel?force=true",
        ),
        (
            "settlements retry al/ice ../x?y",
            "POST /accounts/al%2Fice/settlements/..%2Fx%3Fy/retry",
        ),
    ] {
        let ok = ("200 OK", "", open);
        let stage = Stage::new(&[ok, ok]);
        let user = User::of(stage.address);
        assert_eq!(user.run(line).done(), shown, "{line}");
        let request = stage.asked();
        assert_eq!((&*request.line, &*request.body), (asked, ""), "{line}");
        assert_eq!(request.headers["authorization"], format!("Bearer {ADMIN_TOKEN}"));
        assert_eq!(user.run(&format!("{line} --json")).done(), format!("{open}\n"));
    }
    let list = format!("[{open}]");
    for (line, asked) in [
        ("settlements list alice", "GET /accounts/alice/settlements?limit=100"),
        (
            "settlements list alice --limit 7 --before an&id",
            "GET /accounts/alice/settlements?limit=7&before=an%26id",
        ),
    ] {
        let ok = ("200 OK", "", &*list);
        let stage = Stage::new(&[ok, ok]);
        let user = User::of(stage.address);
        assert_eq!(
            user.run(line).done(),
            "ID                                    STATE  AMOUNT                SCALE  ATTEMPTS  CREATED AT                NEXT ATTEMPT AT           LAST ERROR\n\
             5f0c7a52-0000-4000-8000-2b6c1d9e8f10  sent   18446744073709551615  9      3         2026-01-05T10:11:12.131Z  2026-01-05T10:11:23.131Z  no answer\n"
        );
        assert_eq!(stage.asked().line, asked);
        assert_eq!(user.run(&format!("{line} --json")).done(), format!("{list}\n"));
    }
    // What an engine has said is shown as one line, whatever is in it.
    let evil = list.replace("no answer", "a\\nb\\u001b[31mc");
    let stage = Stage::new(&[("200 OK", "", &evil)]);
    let said = User::of(stage.address).run("settlements list alice").done();
    assert!(said.lines().count() == 2 && !said.contains('\u{1b}'), "{said:?}");

    for (line, code, said) in [
        ("settlements", 2, "list"),
        ("settlements list", 2, "<USERNAME>"),
        ("settlements cancel alice", 2, "<ID>"),
        ("settlements retry alice", 2, "<ID>"),
        ("settlements pay alice", 2, "unrecognized subcommand"),
        ("engines", 2, "set"),
        ("engines set", 2, "<CODE=URL|FILE>"),
        ("engines set ABC", 2, "ABC"),
    ] {
        let refused = User::new().run(line);
        assert_eq!(refused.code, Some(code), "{line}: {refused:?}");
        assert!(refused.err.contains(said), "{line}: {refused:?}");
    }
}

/// A settlement from its making to its end, on a node. Nobody listens where its engine should be.
#[test]
fn settlements_are_made_and_cancelled() {
    let node = Node::start();
    node.add_account("alice", &json!({ "settle_to": -5 }));
    let admin = User::of(node.address());
    let holder = User::of(node.address()).with("ILP_CLI_API_AUTH", "alice:alice-http");
    let refused = |said: Said, why: &str| {
        assert_eq!((said.code, &*said.out), (Some(1), ""), "{said:?}");
        assert_eq!(said.err, format!("clearway: {why}\n"));
    };
    refused(
        admin.run("settlements now alice"),
        "409 Conflict: neither the account nor its asset has a settlement engine",
    );
    let engine = format!("http://{}", support::free_address());
    admin.run(&format!("engines set ABC={engine}")).done();
    assert_eq!(
        admin.run("settlements list alice").done(),
        "ID  STATE  AMOUNT  SCALE  ATTEMPTS  CREATED AT  NEXT ATTEMPT AT  LAST ERROR\n"
    );
    let made = admin.run("settlements now alice --json").json();
    let id = made["id"].as_str().expect("a text");
    refused(
        admin.run("settlements now alice"),
        "409 Conflict: a settlement of the account is open: wait until it is confirmed, or cancel it",
    );
    let status = admin.run("status").done();
    assert!(
        status.ends_with(
            "ASSET  SCALE  ACCOUNTS  BALANCES  POSITION  PENDING  ADDS UP\n\
             ABC    9      1         -5        5         5        yes\n"
        ),
        "{status}"
    );
    let listed = holder.run("settlements list alice").done();
    assert!(listed.contains(id) && listed.contains("pending"), "{listed}");
    let only_seen =
        "401 Unauthorized: the credentials do not allow this call; the token was the one of --auth or ILP_CLI_API_AUTH";
    for line in ["now alice", &format!("cancel alice {id}"), &format!("retry alice {id}")] {
        refused(holder.run(&format!("settlements {line}")), only_seen);
    }
    assert_eq!(
        admin.run(&format!("settlements retry alice {id} --json")).json()["id"],
        id
    );
    assert_eq!(
        admin.run(&format!("settlements cancel alice {id} --json")).json()["state"],
        "cancelled"
    );
    refused(
        admin.run(&format!("settlements cancel alice {id} --force")),
        "409 Conflict: the settlement has ended: it is cancelled",
    );
    refused(
        admin.run("settlements retry alice an-id"),
        "404 Not Found: the account has no settlement with this id",
    );
    assert_eq!(
        admin.run("settlements list alice --before x").code,
        Some(1),
        "no id of a settlement"
    );
}

#[test]
fn completions_are_scripts() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = user.run(&format!("completions {shell}")).done();
        for word in [
            "accounts",
            "log-level",
            "min-balance",
            "settlements",
            "engines",
            "retry",
            "data_dir",
            "settlement_api_token",
            "flush_interval_ms",
        ] {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
    let script = user
        .folder
        .write("completions.bash", &user.run("completions bash").done());
    let checked = Command::new("bash")
        .args(["-n", &script])
        .output()
        .expect("bash can be run");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn without_a_command_it_is_the_node() {
    let user = User::new();
    let help = user.run("--help").done();
    let (_, named) = help
        .split_once("Commands, ")
        .expect("the help of the node names the commands");
    let commands = user.run("help").done();
    let (_, listed) = commands.split_once("Commands:\n").expect("a list of commands");
    let listed = listed.lines().take_while(|line| line.starts_with("  "));
    let listed: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(listed.len() > 7, "{commands}");
    for command in listed {
        let is_named = named
            .split(|letter: char| !letter.is_ascii_alphabetic() && letter != '-')
            .any(|name| name == command);
        assert!(is_named, "{command} in {named}");
    }

    // Each of these is a node's, and ends for its configuration.
    for (line, said) in [
        ("missing.yaml", "missing.yaml"),
        ("./accounts", "./accounts"),
        ("--shards 0", "shards"),
        ("--shards none accounts", "accounts"),
        ("- missing.yaml", "missing.yaml"),
        ("account list", "one configuration file"),
    ] {
        let refused = user.run(line);
        assert_eq!(refused.code, Some(2), "{line}: {refused:?}");
        assert!(
            refused.err.contains(said) && refused.err.starts_with("clearway: "),
            "{line}: {refused:?}"
        );
    }
    assert!(user.run("--version").done().starts_with("clearway "));
    use std::os::unix::ffi::OsStrExt;
    for first in ["accounts", "file"] {
        let mut command = user.command(&[first]);
        command.arg(std::ffi::OsStr::from_bytes(b"\xff"));
        let output = command.output().expect("the binary can be run");
        assert_eq!(output.status.code(), Some(2), "{first}: {output:?}");
    }
}

/// A reader that has seen enough is no failure, and nothing to talk about.
#[test]
fn a_closed_pipe_is_quiet() {
    let rates = (0..20_000)
        .map(|n| format!("\"A{n}\":1.0"))
        .collect::<Vec<_>>()
        .join(",");
    let rates = format!("{{{rates}}}");
    for line in [&["rates", "list"][..], &["rates", "list", "--json"]] {
        let stage = Stage::new(&[("200 OK", "", &rates)]);
        let mut child = User::of(stage.address)
            .command(line)
            .spawn()
            .expect("the binary can be run");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("our own child");
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    // What a monitor must know is in the exit code, whoever reads.
    let wrong = r#"{"adds_up":false,"assets":[]}"#;
    let stage = Stage::new(&[("200 OK", "", r#"{"status":"Ready"}"#), ("200 OK", "", wrong)]);
    let mut child = User::of(stage.address)
        .command(&["status"])
        .spawn()
        .expect("the binary can be run");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("our own child");
    assert_eq!(output.status.code(), Some(1));
}
