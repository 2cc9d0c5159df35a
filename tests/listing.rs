//! Long lists: they are streamed, whatever their client does, and packets pass meanwhile.
//!
//! `LISTING_ACCOUNTS=100000` makes as many accounts as a large hub has, in some three minutes, and then also waits until a
//! client that reads nothing is dropped.

mod support;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::PATIENCE;
use support::http::{Api, Connection, request_bytes};
use support::hub::Hub;
use support::node::{ADMIN_TOKEN, Node};

/// Connections that make accounts at the same time: their commits share syncs.
const MAKERS: usize = 8;
/// Fixed routes: nearly as many as fit one request of 4 MiB.
const ROUTES: usize = 100_000;

fn accounts_wanted() -> usize {
    std::env::var("LISTING_ACCOUNTS").map_or(5_000, |number| number.parse().expect("a number of accounts"))
}

/// Makes accounts `user000000` and so on. Every second one may have a BTP link, so that its shard is asked about it.
fn make_accounts(node: &Node, count: usize) {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for maker in 0..MAKERS {
            scope.spawn(move || {
                let mut connection = node.connection();
                for number in (maker..count).step_by(MAKERS) {
                    let mut account = json!({
                        "username": format!("user{number:06}"),
                        "asset_code": if number % 100 == 7 { "RARE" } else { "ABC" },
                        "asset_scale": 9,
                    });
                    if number % 2 == 0 {
                        account["ilp_over_btp_incoming_token"] = json!("token");
                    }
                    let body = account.to_string();
                    let answer = connection.request("POST", "/accounts", &admin(), body.as_bytes());
                    assert_eq!(answer.expect("an answer").status, 200);
                }
            });
        }
    });
    println!("{count} accounts made in {:?}", begun.elapsed());
}

const ADMIN: &str = "Bearer admin-token-of-the-tests";

fn admin() -> [(&'static str, &'static str); 1] {
    assert!(ADMIN.ends_with(ADMIN_TOKEN));
    [("Authorization", ADMIN)]
}

fn get(target: &str) -> Vec<u8> {
    request_bytes("GET", target, &admin(), b"")
}

fn usernames(list: &Value) -> Vec<String> {
    let name = |account: &Value| account["username"].as_str().expect("a name").to_owned();
    list.as_array().expect("an array").iter().map(name).collect()
}

/// Sends packets one after the other while `work` runs; prints and gives back the longest one took.
fn longest_packet_while(hub: &Hub, what: &str, work: impl FnOnce()) -> Duration {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let packets = scope.spawn(|| {
            let (mut longest, mut count) = (Duration::ZERO, 0);
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                hub.good_packet_passes(what);
                longest = longest.max(begun.elapsed());
                count += 1;
            }
            (longest, count)
        });
        let begun = Instant::now();
        work();
        let took = begun.elapsed();
        is_over.store(true, Ordering::Relaxed);
        let (longest, count) = packets.join().expect("packets pass");
        println!("{what}: {took:?}; the longest of {count} packets took {longest:?}");
        longest
    })
}

/// No measurement, which a busy machine would spoil: a node that does not come back to its packets would be far off.
const LONGEST_PACKET_MAX: Duration = Duration::from_secs(3);

#[test]
fn packets_pass_while_everything_is_listed() {
    let hub = Hub::start();
    let count = accounts_wanted();
    make_accounts(&hub.node, count);
    let api = hub.node.api();
    let routes: BTreeMap<String, &str> = (0..ROUTES).map(|n| (format!("g.hub{n:06}.x"), "bob")).collect();
    let routes = serde_json::to_value(&routes).expect("a map of texts");

    let mut longest = Vec::new();
    longest_packet_while(&hub, "nothing else", || std::thread::sleep(Duration::from_secs(1)));
    let list = |what: &str| {
        longest_packet_while(&hub, what, || {
            let accounts = api.get("/accounts");
            let names = usernames(&accounts);
            assert_eq!(names.len(), count + 2);
            assert!(names.is_sorted());
            let btp = |place: usize| accounts[place]["links"]["btp"].as_str();
            assert_eq!((names[1].as_str(), btp(1)), ("bob", Some("connected")));
            assert_eq!((names[2].as_str(), btp(2)), ("user000000", Some("waiting")));
            assert_eq!((names[3].as_str(), btp(3)), ("user000001", None));
        })
    };
    longest.push(list("accounts, listed once"));
    longest.push(longest_packet_while(&hub, "accounts, listed by four at once", || {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(usernames(&api.get("/accounts")).len(), count + 2));
            }
        });
    }));
    longest.push(longest_packet_while(&hub, "fixed routes set", || {
        assert!(api.put("/routes/static", &routes) == routes);
    }));
    longest.push(longest_packet_while(&hub, "routes listed", || {
        let listed = api.get("/routes");
        let listed = listed.as_object().expect("an object");
        assert_eq!(listed.len(), ROUTES + count + 2);
        assert_eq!(listed["g.hub099999.x"], "bob");
        assert_eq!(listed["test.hub.user000000"], "user000000");
    }));
    longest.push(longest_packet_while(&hub, "fixed routes removed", || {
        assert_eq!(api.put("/routes/static", &json!({})), json!({}));
    }));
    let longest = longest.into_iter().max().expect("there were some");
    assert!(longest < LONGEST_PACKET_MAX, "a packet took {longest:?}");

    let mut node = hub.node;
    node.terminate();
    assert!(node.exit_status_within(PATIENCE).success());
    for line in node.log().lines().filter(|line| line.contains("longest_turn_us")) {
        println!("{line}");
    }
}

/// A connection whose system keeps little for it, so that what is not read stays with the node.
fn connect_narrow(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4 * 1024).expect("a size");
    socket.connect(&address.into()).expect("the node accepts");
    socket.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
    socket.into()
}

/// What a client reads that takes its time: everything until the node closes.
fn read_to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            // The node was killed, or gave the client up.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("after {} bytes: {error}", bytes.len()),
        }
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse().ok()).expect("a number")
}

/// More than the API has threads, so that one that waited for a client would be missed.
const DEAF: usize = 32;
/// What each of them may cost: a piece on its way and one to come, with room for the allocator.
const DEAF_KIB_MAX: u64 = 400;

#[test]
fn clients_that_do_not_read_hold_nothing() {
    let hub = Hub::start();
    let count = accounts_wanted();
    make_accounts(&hub.node, count);
    let api = hub.node.api();
    // Not the first of its kind: what the node's threads keep for the next one is not counted.
    api.get("/accounts");
    let before = resident_kib(hub.node.pid());
    let mut deaf: Vec<TcpStream> = (0..DEAF).map(|_| connect_narrow(hub.node.address())).collect();
    let begun = Instant::now();
    for stream in &mut deaf {
        // Also what they ask behind it waits, and costs nothing.
        let requests = get("/accounts").repeat(20);
        stream.write_all(&requests).expect("open");
    }
    // All of them have got their first bytes, and the node has nothing left to do for them.
    for stream in &deaf {
        stream.peek(&mut [0]).expect("the answer begins");
    }
    for _ in 0..20 {
        let begun = Instant::now();
        api.get("/accounts?limit=10");
        assert!(begun.elapsed() < PATIENCE / 2, "API threads are free");
        hub.good_packet_passes("lists that are not read");
    }
    let grown = resident_kib(hub.node.pid()).saturating_sub(before);
    println!("{DEAF} lists that are not read: the node grew by {grown} KiB");
    assert!(grown < DEAF as u64 * DEAF_KIB_MAX, "the node grew by {grown} KiB");

    // One of them has been slow only. Meanwhile accounts come and go, of which those it has not got to are not missed.
    let changed = [2, count / 2, count - 2].map(|number| format!("user{number:06}"));
    for username in &changed {
        api.ok("DELETE", &format!("/accounts/{username}"), None);
    }
    let created = ["user000000b", "userx", "zoe"];
    for username in created {
        hub.node.add_account(username, &json!({}));
    }
    let slow = deaf.pop().expect("there are many");
    let mut slow = Connection::from_stream(slow).expect("a socket");
    let names = usernames(&slow.answer().expect("a whole answer").json());
    let stable = |names: &[String]| {
        let is_stable = |name: &&String| !changed.contains(name) && !created.contains(&name.as_str());
        names.iter().filter(is_stable).cloned().collect::<Vec<_>>()
    };
    assert!(
        names.is_sorted_by(|one, other| one < other),
        "in order, and nobody twice"
    );
    assert_eq!(stable(&names), stable(&usernames(&api.get("/accounts"))));
    assert!(
        names.contains(&"zoe".to_owned()) && !names.contains(&changed[2]),
        "read late"
    );
    // Behind it comes what was asked behind it.
    let names = usernames(&slow.answer().expect("the next answer").json());
    assert_eq!(names.len(), count + 2);
    drop(slow);

    if count >= 100_000 {
        let mut first = deaf.remove(0);
        first
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("a limit is not zero");
        std::thread::sleep(Duration::from_secs(65).saturating_sub(begun.elapsed()));
        let bytes = read_to_the_end(&mut first);
        println!("dropped after {} bytes", bytes.len());
        assert!(!bytes.ends_with(b"0\r\n\r\n"), "an answer that was cut off shows it");
    }

    // The node ends at once, and who did not read everything can tell.
    let mut node = hub.node;
    let mut cut = deaf.pop().expect("there are many");
    node.terminate();
    assert!(node.exit_status_within(PATIENCE).success());
    let bytes = read_to_the_end(&mut cut);
    assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(!bytes.ends_with(b"0\r\n\r\n"), "an answer that was cut off shows it");
}

/// A head as it was received, up to its empty line.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("heads are text")
}

#[test]
fn what_http_clients_of_all_kinds_get() {
    let node = Node::start();
    const COUNT: usize = 1_200;
    make_accounts(&node, COUNT);
    let api = node.api();
    let all = usernames(&api.get("/accounts"));
    assert_eq!(all.len(), COUNT);

    // HEAD: the head, no body, and the connection goes on.
    let mut stream = TcpStream::connect(node.address()).expect("the node accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
    stream
        .write_all(&request_bytes("HEAD", "/accounts", &admin(), b""))
        .expect("open");
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    assert!(!head.contains("connection: close"), "{head}");
    // Many requests at once on the same connection; answers come in their order, whole, and it stays open.
    let pipelined = [
        get("/accounts"),
        get("/"),
        get("/routes"),
        get("/accounts?limit=1000"),
        get("/accounts/nobody"),
    ];
    stream.write_all(&pipelined.concat()).expect("open");
    let mut connection = Connection::from_stream(stream).expect("a socket");
    let mut next = || connection.answer().expect("an answer");
    let accounts = next();
    assert_eq!(accounts.header("transfer-encoding"), Some("chunked"));
    assert_eq!(accounts.header("content-length"), None);
    assert_eq!(usernames(&accounts.json()), all);
    assert_eq!(next().json()["status"], "Ready");
    assert_eq!(next().json().as_object().expect("an object").len(), COUNT);
    assert_eq!(usernames(&next().json()), all[..1_000]);
    assert_eq!(next().status, 404);
    let again = connection
        .request("GET", "/accounts", &admin(), b"")
        .expect("kept alive");
    assert_eq!(usernames(&again.json()), all);
    // The last request of a connection may be a long one.
    let last = [admin()[0], ("Connection", "close")];
    let answer = connection
        .request("GET", "/accounts", &last, b"")
        .expect("a whole answer");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(usernames(&answer.json()), all);
    assert!(connection.is_closed_within(PATIENCE));

    // A client may end after its last request, whatever is before it.
    let mut connection = node.connection();
    let refused = request_bytes("POST", "/accounts/nobody/ilp", &[("Authorization", "Bearer x")], b"");
    let pipelined = [
        get("/accounts"),
        refused.repeat(3),
        get("/"),
        get("/accounts?limit=3"),
        get("/routes"),
    ]
    .concat();
    connection.send(&pipelined).expect("open");
    connection.end_sending();
    let mut next = || connection.answer().expect("an answer").json();
    assert_eq!(usernames(&next()), all);
    for _ in 0..3 {
        assert_eq!(next()["status"], 401);
    }
    assert_eq!(next()["status"], "Ready");
    assert_eq!(usernames(&next()), all[..3]);
    assert_eq!(next().as_object().expect("an object").len(), COUNT);
    assert!(connection.is_closed_within(PATIENCE));

    // HTTP/1.0 knows no chunks: the answer ends with the connection. A client may have closed its half.
    for half_closed in [false, true] {
        let mut stream = connect_narrow(node.address());
        let request = format!("GET /accounts HTTP/1.0\r\nAuthorization: {ADMIN}\r\nConnection: keep-alive\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("open");
        if half_closed {
            stream.shutdown(std::net::Shutdown::Write).expect("open");
        }
        let head = read_head(&mut stream);
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(!head.contains("chunked") && !head.contains("content-length"), "{head}");
        let body: Value = serde_json::from_slice(&read_to_the_end(&mut stream)).expect("all of it");
        assert_eq!(usernames(&body), all);
    }

    pages(&api, &all);
}

/// Pages, followed by their links, are the list; filters go along.
fn pages(api: &Api, all: &[String]) {
    let rare: Vec<String> = all.iter().filter(|name| name.ends_with("07")).cloned().collect();
    for (target, expected) in [
        ("/accounts?limit=500", all),
        ("/accounts?asset_code=rare&limit=5", &rare[..]),
        ("/accounts?limit=12&asset_code=RARE", &rare[..]),
        ("/accounts?limit=1000&asset_code=NONE", &[]),
    ] {
        let mut names = Vec::new();
        let mut next = Some(target.to_owned());
        while let Some(target) = next.take() {
            let answer = api.call("GET", &target, None);
            assert_eq!(answer.status, 200, "{target}");
            names.extend(usernames(&answer.json()));
            next = answer.header("link").map(|link| {
                let (target, rest) = link
                    .strip_prefix('<')
                    .and_then(|link| link.split_once('>'))
                    .expect("a link");
                assert_eq!(rest, "; rel=\"next\"");
                target.to_owned()
            });
            assert!(
                names.len() <= expected.len(),
                "{target}: there is nothing behind the last page"
            );
        }
        assert_eq!(names, expected, "{target}");
    }
    let filtered = api.get("/accounts?asset_code=RARE");
    assert_eq!(usernames(&filtered), rare, "a list without a limit is filtered, too");
    let after = api.get("/accounts?after=USER001189");
    assert_eq!(usernames(&after), all[1_190..]);
    for target in [
        "/accounts?limit=0",
        "/accounts?limit=1001",
        "/accounts?routing_relation=Friend",
    ] {
        assert_eq!(api.call("GET", target, None).status, 400, "{target}");
    }
}
