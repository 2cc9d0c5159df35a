//! Copies of the book: made while packets flow, read back, restored; and the report of what a start would meet.
//!
//! `BACKUP_ACCOUNTS=n` sets how large the book is that is copied under load; the longest pause of the packets is
//! printed.

mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clearway::ledger::AccountId;
use clearway::store::{Durability, Mutation, RocksStore, Writer, recover};
use serde_json::{Value, json};
use support::http::{Api, Connection, whole};
use support::node::{ADMIN_TOKEN, Node, Options, SECRET_SEED, expect_balance};
use support::packet::Prepare;
use support::party::{Party, Via};

/// Connections that send, each with one Prepare at a time.
const SENDERS: usize = 4;
const ANY_PORTS: [&str; 4] = [
    "--http_bind_address",
    "127.0.0.1:0",
    "--settlement_api_bind_address",
    "127.0.0.1:0",
];

/// A folder for copies, gone at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("backup-{name}-{}", std::process::id()));
        // Left by a process of the same number that was killed.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("a fresh name");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        text(&self.0.join(name))
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("it is there");
        let mut names: Vec<_> = entries
            .map(|entry| text(Path::new(&entry.expect("readable").file_name())))
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Runs the program to its end: exit code, standard output, standard error.
fn clearway(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_clearway"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .expect("the binary can be run");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("no signal ends it");
    assert!(!said(&output.stderr).contains("panicked"), "{}", said(&output.stderr));
    (code, said(&output.stdout), said(&output.stderr))
}

fn backup(api: &Api, directory: &str) -> Value {
    api.ok("POST", "/ledger/backup", Some(&json!({ "directory": directory })))
}

/// Everything that a restored node must have in common with the one it was copied from.
fn what_is_served(node: &Node) -> Value {
    let api = node.api();
    let mut accounts = api.get("/accounts?limit=1000");
    for account in accounts.as_array_mut().expect("an array") {
        // Whether a peer is connected at this moment is no part of the book.
        account["links"] = Value::Null;
        let name = account["username"].as_str().expect("a name").to_owned();
        account["balance"] = api.get(&format!("/accounts/{name}/balance"));
    }
    json!({
        "accounts": accounts,
        "routes": api.get("/routes"),
        "rates": api.get("/rates"),
        "audit": api.audit(),
    })
}

/// Adds accounts past the API, which would take a commit for each.
fn fill(data: &Path, accounts: u32) {
    let mut seed = [0; 32];
    for (byte, digits) in seed.iter_mut().zip(SECRET_SEED.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).expect("ASCII");
        *byte = u8::from_str_radix(digits, 16).expect("hex digits");
    }
    let mut store = RocksStore::open(&data.join("store"), &seed).expect("the node has ended");
    let book = recover(&mut store).expect("the book adds up");
    let first = book.next_account_id;
    let model = (*book.accounts[0].0).clone();
    let interval = Duration::from_millis(5);
    let (handle, _senders) = Writer::start(
        Box::new(store),
        &book,
        1,
        Durability::Commit,
        interval,
        crossbeam::channel::unbounded().0,
    )
    .expect("a thread");
    let account = |id: u32| {
        let mut account = model.clone();
        account.id = AccountId::new(id);
        account.uuid[..4].copy_from_slice(&id.to_be_bytes());
        account.username = format!("user_{id}").into();
        account.ilp_address = format!("test.hub.user_{id}").into();
        Mutation::PutAccount(Arc::new(account))
    };
    let numbers: Vec<u32> = (first..first + accounts).collect();
    for some in numbers.chunks(1_000) {
        let puts = some.iter().map(|id| account(*id)).collect();
        handle.apply(puts).expect("they are new");
    }
    handle.stop();
}

/// What the senders saw.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// The last Fulfill, and the longest time without one.
    last: Mutex<Option<Instant>>,
    pause: Mutex<Duration>,
}

impl Seen {
    fn note_acknowledged(&self) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        let now = Instant::now();
        let before = self.last.lock().expect("no test panics here").replace(now);
        let mut pause = self.pause.lock().expect("no test panics here");
        *pause = (*pause).max(before.map_or(Duration::ZERO, |before| now.duration_since(before)));
    }

    fn take_pause(&self) -> Duration {
        std::mem::take(&mut self.pause.lock().expect("no test panics here"))
    }
}

fn send(mut connection: Connection, seen: &Seen, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let prepare = Prepare::new("test.hub.bob", 1);
        seen.sent.fetch_add(1, Ordering::SeqCst);
        let answer = connection.post("/accounts/alice/ilp", "alice-http", &prepare);
        assert!(answer.expect("the node answers").reply().fulfills(&prepare));
        seen.note_acknowledged();
    }
}

#[test]
fn a_copy_made_under_load_has_everything_acknowledged_before() {
    let accounts = std::env::var("BACKUP_ACCOUNTS").map_or(5_000, |n| n.parse().expect("a number"));
    let folder = Folder::new("load");
    let mut node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    node.terminate();
    assert!(node.exit_status_within(support::PATIENCE).success());
    fill(node.data_dir(), accounts);
    node.run();
    let bob = Party::simple(&node, "bob", Via::BtpToNode);

    let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (connection, seen, stop) = (node.connection(), seen.clone(), stop.clone());
            std::thread::spawn(move || send(connection, &seen, &stop))
        })
        .collect();
    support::eventually("packets flow", || {
        (seen.acknowledged.load(Ordering::SeqCst) > 200).then_some(())
    });
    let mut copies = Vec::new();
    let mut pauses = vec![seen.take_pause()];
    for number in 0..4 {
        let directory = folder.path(&format!("copy-{number}"));
        let before = seen.acknowledged.load(Ordering::SeqCst);
        let begun = Instant::now();
        let answer = backup(&node.api(), &directory);
        let took = begun.elapsed();
        let after = seen.sent.load(Ordering::SeqCst);
        pauses.push(seen.take_pause());
        println!(
            "copy {number} took {took:?}, with {} packets sent meanwhile",
            after - before
        );
        assert_eq!(answer["directory"], directory.as_str());
        assert_eq!(answer["accounts"], accounts + 2);
        assert_eq!(answer["adds_up"], true, "{answer}");
        assert_eq!(whole(&answer["assets"][0]["balances"]), 0, "{answer}");
        copies.push((directory, before, after));
    }
    stop.store(true, Ordering::SeqCst);
    for sender in senders {
        sender.join().expect("every packet was fulfilled");
    }
    println!("{accounts} accounts: longest pauses of {SENDERS} senders before and during each copy: {pauses:?}");
    let acknowledged = seen.acknowledged.load(Ordering::SeqCst);
    expect_balance(&node.api(), "bob", i128::from(acknowledged));
    assert_eq!(
        bob.rule.fulfilled(),
        acknowledged,
        "the original goes on as if nothing had been"
    );
    assert!(node.is_running());

    for (directory, before, after) in copies {
        let restored = Node::start_on(directory.into(), Options::default());
        let api = restored.api();
        api.audit();
        let balance = api.balance("bob");
        assert!(
            (i128::from(before)..=i128::from(after)).contains(&balance),
            "{before} were acknowledged before the copy, {after} were sent by its end, {balance} are in it"
        );
        assert_eq!(api.balance("alice"), -balance);
    }
}

#[test]
fn a_restored_copy_serves_the_same() {
    let folder = Folder::new("restore");
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::Http);
    let _bob = Party::simple(&node, "bob", Via::BtpToNode);
    let carol = Party::join(
        &node,
        "carol",
        Via::Http,
        support::rule::Rule::fulfill(),
        &json!({"asset_code": "XYZ", "asset_scale": 2, "max_packet_amount": 77, "routing_relation": "Peer"}),
    );
    let api = node.api();
    api.put("/rates", &json!({"ABC": 1, "XYZ": 0.5}));
    api.put("/routes/static", &json!({"test.far": "bob", "test.away": "carol"}));
    // What carol gets is converted and rounded down, so the copy has a position of our own as well.
    for (destination, amount) in [
        ("test.hub.bob", 1_000),
        ("test.hub.carol", 9_999_999_999),
        ("test.far.x", 5),
    ] {
        let prepare = Prepare::new(destination, amount);
        assert!(alice.pay(&prepare).fulfills(&prepare), "{destination}");
    }
    expect_balance(&api, "carol", i128::from(carol.rule.fulfilled()));
    expect_balance(&api, "bob", 1_005);
    let served = what_is_served(&node);
    let copy = folder.path("copy");
    backup(&api, &copy);
    // What comes later is not in the copy.
    let prepare = Prepare::new("test.hub.bob", 3);
    assert!(alice.pay(&prepare).fulfills(&prepare));
    let mut restored = Node::start_on(copy.into(), Options::default());
    assert_eq!(what_is_served(&restored), served);
    // It is a data folder like any other.
    let mut connection = restored.connection();
    let to_nobody = Prepare::new("test.hub.nobody", 1);
    let answer = connection.post("/accounts/alice/ilp", "alice-http", &to_nobody);
    let reply = answer.expect("the node answers").reply();
    assert!(
        !reply.fulfills(&to_nobody),
        "tokens are the same, and nobody is paid: {reply:?}"
    );
    restored.kill();
    restored.run();
    assert_eq!(what_is_served(&restored), served);
    expect_balance(&api, "bob", 1_008);
}

#[test]
fn refused_copies_change_nothing() {
    let folder = Folder::new("refused");
    let node = Node::start();
    node.add_account("alice", &json!({}));
    std::fs::write(folder.path("file"), "text").expect("a free name");
    std::fs::create_dir(folder.path("empty")).expect("a free name");
    let before = folder.names();
    // Directory -> status, and words of the answer.
    for (directory, status, words) in [
        (json!(folder.path("file")), 409, "directory_exists"),
        (json!(folder.path("empty")), 409, "directory_exists"),
        (json!("relative/copy"), 400, "from the root"),
        (json!(""), 400, "from the root"),
        (json!(folder.path("missing/copy")), 400, "No such file"),
        (json!(folder.path("file/copy")), 400, "is no folder"),
        (
            json!(text(&node.data_dir().join("store/copy"))),
            400,
            "lie in the store",
        ),
        (json!("/proc/copy"), 400, "cannot be made"),
        (json!(null), 400, "expected a text"),
    ] {
        let answer = node
            .api()
            .call("POST", "/ledger/backup", Some(&json!({ "directory": directory })));
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, status, "{directory}: {body}");
        assert!(body.contains(words), "{directory}: no {words:?} in {body}");
        assert_eq!(answer.json()["invalid-params"][0]["name"], "directory", "{body}");
    }
    let body = json!({"directory": folder.path("copy")});
    for token in ["wrong", "alice:alice-http"] {
        let api = Api {
            token: token.to_owned(),
            ..node.api()
        };
        assert_eq!(api.call("POST", "/ledger/backup", Some(&body)).status, 401, "{token}");
    }
    assert_eq!(folder.names(), before);
    assert_eq!(std::fs::read_to_string(folder.path("file")).expect("as it was"), "text");
    backup(&node.api(), &folder.path("copy"));
    assert_eq!(node.api().call("POST", "/ledger/backup", Some(&body)).status, 409);
}

#[test]
fn the_command_asks_the_node_or_does_it_itself() {
    let folder = Folder::new("command");
    let mut node = Node::start();
    node.add_account("alice", &json!({}));
    let (url, data) = (format!("http://{}", node.address()), text(node.data_dir()));
    // Bound and not listened on: it refuses for as long as this lives.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    nobody
        .bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .expect("a free port");
    let nobody = nobody.local_addr().expect("bound").as_socket().expect("an address");
    let nobody = format!("http://{nobody}");
    let copy = |name: &str, node: &str, more: &[&str]| {
        let path = folder.path(name);
        let arguments = ["backup", &path, "--node", node, "--data-dir", &data];
        clearway(&[&arguments[..], more].concat())
    };
    let auth = ["--auth", ADMIN_TOKEN];

    let (code, said, error) = copy("one", &url, &auth);
    assert_eq!((code, &*error), (0, ""), "{said}");
    assert!(
        said.contains("copied by the node at") && said.contains("without keys"),
        "{said}"
    );
    assert!(said.contains("ABC@9") && said.contains("adds up"), "{said}");
    for (name, node, more, expected, words) in [
        ("one", &url, &auth[..], 1, "409"),
        ("none", &url, &["--auth", "wrong"], 1, "401"),
        ("none", &nobody, &[], 1, "runs a node on"),
        (
            "none",
            &url,
            &["--with-keys", "--auth", ADMIN_TOKEN],
            2,
            "no secret_seed",
        ),
    ] {
        let (code, said, error) = copy(name, node, more);
        assert_eq!(code, expected, "{more:?}: {said}{error}");
        assert!(error.contains(words) && error.lines().count() == 1, "{more:?}: {error}");
    }

    // The seed of this test's nodes is configured; now it is kept, as it is by default.
    for (name, line) in [("secret_seed", SECRET_SEED), ("admin_auth_token", ADMIN_TOKEN)] {
        std::fs::write(node.data_dir().join(name), format!("{line}\n")).expect("the data folder is ours");
    }
    let (code, said, error) = copy("keys", &url, &["--with-keys", "--json"]);
    assert_eq!((code, &*error), (0, ""));
    let answer: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(answer["made_by"], "node", "{said}");
    assert_eq!(answer["keys"], json!(["secret_seed", "admin_auth_token"]));
    assert_eq!(
        (&answer["accounts"], &answer["adds_up"]),
        (&json!(1), &json!(true)),
        "{said}"
    );
    assert!(!said.contains(SECRET_SEED) && !said.contains(ADMIN_TOKEN));

    node.terminate();
    assert!(node.exit_status_within(support::PATIENCE).success());
    let (code, said, error) = copy("offline", &nobody, &["--json"]);
    assert_eq!((code, &*error), (0, ""));
    let answer: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(answer["made_by"], "command", "{said}");
    assert_eq!(
        (&answer["accounts"], &answer["adds_up"]),
        (&json!(1), &json!(true)),
        "{said}"
    );
    let (code, _, error) = copy("offline", &nobody, &[]);
    assert_eq!(code, 1);
    assert!(error.contains("is there already"), "{error}");

    // Keys of another store are not put beside this one.
    std::fs::write(node.data_dir().join("secret_seed"), "11".repeat(32)).expect("the data folder is ours");
    let (code, _, error) = copy("other-keys", &nobody, &["--with-keys"]);
    assert_eq!(code, 1);
    assert!(error.contains("secret_seed") && error.contains("whole"), "{error}");
    assert_eq!(
        std::fs::read_dir(folder.path("other-keys")).expect("the copy").count(),
        1
    );
    assert_eq!(folder.names(), ["keys", "offline", "one", "other-keys"]);

    // Whoever has the copy with keys needs nothing else.
    for name in ["one", "offline"] {
        let restored = Node::start_on(folder.path(name).into(), Options::default());
        assert_eq!(restored.api().balance("alice"), 0, "{name}");
    }
    let (code, said, error) = clearway(&[&["check", "--data_dir", &folder.path("keys")][..], &ANY_PORTS].concat());
    assert_eq!(code, 0, "{said}{error}");
    let empty = Folder::new("empty");
    let arguments = [
        "backup",
        &folder.path("none"),
        "--node",
        &nobody,
        "--data-dir",
        &empty.path("data"),
    ];
    let (code, _, error) = clearway(&arguments);
    assert_eq!(code, 1);
    assert!(error.contains("there is no store in"), "{error}");
    assert_eq!(empty.names(), Vec::<String>::new(), "and none was made");
}

/// Changes one byte in the middle of every table.
fn damage(store: &Path) {
    let mut tables = 0;
    for entry in std::fs::read_dir(store).expect("a store") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = std::fs::read(&path).expect("readable");
            bytes[5] ^= 1;
            // Not in place: the file may be one with the original's.
            std::fs::remove_file(&path).expect("ours");
            std::fs::write(&path, bytes).expect("ours");
            tables += 1;
        }
    }
    assert!(tables > 0, "a copy has tables");
}

/// Gives the first account a unit that nobody paid.
fn add_a_unit(store: &Path) {
    let options = rocksdb::Options::default();
    let families = rocksdb::DB::list_cf(&options, store).expect("a store");
    let db = rocksdb::DB::open_cf(&options, store, families).expect("a store that nobody uses");
    let balances = db.cf_handle("balances").expect("the family of balances");
    db.put_cf(balances, 0_u32.to_be_bytes(), 1_i128.to_be_bytes())
        .expect("written");
}

#[test]
fn a_check_says_what_a_start_would_meet() {
    let folder = Folder::new("check");
    let mut node = Node::start_with(Options {
        shards: 2,
        ..Options::default()
    });
    node.add_account("alice", &json!({}));
    let (data, address) = (text(node.data_dir()), node.address().to_string());
    for name in ["damaged", "wrong", "healthy"] {
        backup(&node.api(), &folder.path(name));
    }
    damage(Path::new(&folder.path("damaged/store")));
    add_a_unit(Path::new(&folder.path("wrong/store")));
    let names = folder.names();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("bound").to_string();
    let other_seed = "11".repeat(32);
    let (fresh, file) = (folder.path("fresh"), folder.path("healthy/store/CURRENT"));
    let (damaged, wrong, healthy) = (folder.path("damaged"), folder.path("wrong"), folder.path("healthy"));
    let seed = ["--secret_seed", SECRET_SEED];
    let other = ["--secret_seed", other_seed.as_str()];
    let any = &ANY_PORTS[2..];
    let port = |address| ["--http_bind_address", address];
    let free = port("127.0.0.1:0");
    // Data folder, further arguments -> exit code, and words of the report or the message.
    let table: [(&str, Vec<&str>, i32, &[&str]); 13] = [
        (
            &fresh,
            [&free[..], any].concat(),
            0,
            &["is made at the start", "all is well"],
        ),
        (
            &healthy,
            [&free, any, &seed].concat(),
            0,
            &["1 accounts", "ABC@9", "adds up", "all is well"],
        ),
        (
            &data,
            [&port(&address), any, &seed].concat(),
            0,
            &["a node is running", "in use by the node: Ready"],
        ),
        (
            &data,
            [&port(&taken), any, &seed].concat(),
            1,
            &["a program that is no node", "1 problem"],
        ),
        (
            &fresh,
            [&port(&taken), any].concat(),
            1,
            &["http_bind_address", "a program that is no node"],
        ),
        (
            &fresh,
            [&port(&address), any].concat(),
            1,
            &["by a node on another data folder"],
        ),
        (&healthy, [&free, any, &other].concat(), 1, &["another `secret_seed`"]),
        (&healthy, [&free[..], any].concat(), 1, &["secret_seed is missing"]),
        (&damaged, [&free, any, &seed].concat(), 1, &["the store is damaged"]),
        (
            &wrong,
            [&free, any, &seed].concat(),
            1,
            &["DOES NOT ADD UP", "the difference 1"],
        ),
        (&file, [&free, any, &seed].concat(), 1, &["is no folder"]),
        (&fresh, vec!["--no_such_option", "1"], 2, &["no_such_option"]),
        (&fresh, vec!["--shards", "many"], 2, &["shards"]),
    ];
    for (data_dir, arguments, expected, words) in table {
        let arguments = [&["check", "--data_dir", data_dir][..], &arguments].concat();
        let (code, said, error) = clearway(&arguments);
        assert_eq!(code, expected, "{arguments:?}: {said}{error}");
        for word in words {
            assert!(
                said.contains(word) || error.contains(word),
                "{arguments:?}: no {word:?} in {said}{error}"
            );
        }
        for secret in [SECRET_SEED, &other_seed] {
            assert!(
                !said.contains(secret) && !error.contains(secret),
                "{arguments:?}: {said}{error}"
            );
        }
    }
    assert_eq!(folder.names(), names, "nothing was made");

    // For programs; and what was checked is not in the way of a start.
    let report = |data: &str| {
        let arguments = [&["check", "--json", "--data_dir", data][..], &free, any, &seed].concat();
        let (code, said, _) = clearway(&arguments);
        let report: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(report["ok"], code == 0, "{said}");
        report
    };
    assert_eq!(report(&data)["running"], node.pid());
    node.terminate();
    assert!(node.exit_status_within(support::PATIENCE).success());
    let stopped = report(&data);
    assert_eq!(
        (&stopped["ok"], &stopped["running"]),
        (&json!(true), &Value::Null),
        "{stopped}"
    );
    assert_eq!(stopped["store"]["accounts"], 1);
    let settings = stopped["settings"].as_array().expect("an array");
    let setting = |name: &str| {
        settings
            .iter()
            .find(|setting| setting["name"] == name)
            .expect("an option")
    };
    assert_eq!(setting("data_dir")["source"], "the command line");
    assert_eq!(setting("secret_seed")["value"], Value::Null);
    assert_eq!(setting("echo")["source"], Value::Null);
    let wrong = report(&wrong);
    assert_eq!(
        (&wrong["ok"], &wrong["book"]["adds_up"]),
        (&json!(false), &json!(false)),
        "{wrong}"
    );
    assert_eq!(whole(&wrong["book"]["assets"][0]["balances"]), 1);
    node.run();
}
