//! Notifications of incoming payments, over real sockets: who may follow, what is told, in which order, and what becomes
//! of subscribers that are slow, broken, or let in no more. The payments are STREAM payments from outside.

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::btp_peer::BtpPeer;
use support::http::{Connection, request_bytes};
use support::node::{ADMIN_TOKEN, Node};
use support::packet::Prepare;
use support::party::{Party, Via};
use support::payer::pay;
use support::raw_websocket::{RawWebSocket, UPGRADE};
use support::rule::{Answer, Rule};
use support::{PATIENCE, eventually};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::{CloseFrame, WebSocket};
use tungstenite::{Error, Message};

const ALL: &str = "/payments/incoming";

fn of(username: &str) -> String {
    format!("/accounts/{username}/payments/incoming")
}

/// A node where alice pays with packets of at most 10, and bob and carol are paid.
fn hub(shards: usize) -> (Node, BtpPeer) {
    let node = Node::with_shards(shards);
    let more = json!({"max_packet_amount": 10});
    let alice = Party::join(&node, "alice", Via::BtpToNode, Rule::fulfill(), &more).btp_peer();
    for username in ["bob", "carol"] {
        node.add_account(username, &json!({}));
    }
    (node, alice)
}

/// Somebody who follows payments.
struct Follower(WebSocket<TcpStream>);

impl Follower {
    fn new(node: &Node, path: &str, token: &str) -> Self {
        let stream = TcpStream::connect_timeout(&node.address(), PATIENCE).expect("the node accepts");
        Self::on(stream, node.address(), path, token)
    }

    /// One for whom the system keeps little, so that a pause in reading is felt by the node.
    fn with_little_room(node: &Node, path: &str, token: &str) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4_096).expect("a size");
        socket
            .connect_timeout(&node.address().into(), PATIENCE)
            .expect("the node accepts");
        Self::on(socket.into(), node.address(), path, token)
    }

    fn on(stream: TcpStream, address: SocketAddr, path: &str, token: &str) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
        let mut request = format!("ws://{address}{path}").into_client_request().expect("a URL");
        let value = format!("Bearer {token}").parse().expect("a header");
        request.headers_mut().insert("Authorization", value);
        let (socket, _) = tungstenite::client(request, stream).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self(socket)
    }

    fn holder(node: &Node, username: &str) -> Self {
        Self::new(node, &of(username), &format!("{username}-http"))
    }

    /// The next text; the close frame's code and reason if that comes instead.
    fn next(&mut self) -> Result<String, (u16, String)> {
        loop {
            match self.0.read() {
                Ok(Message::Text(text)) => return Ok(text.to_string()),
                Ok(Message::Close(Some(CloseFrame { code, reason }))) => return Err((code.into(), reason.to_string())),
                Ok(Message::Ping(_)) => {}
                Ok(other) => panic!("the node sends {other:?}"),
                Err(Error::Io(error)) => panic!("neither text nor close: {error}"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn text(&mut self) -> String {
        self.next().unwrap_or_else(|close| panic!("closed with {close:?}"))
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.text()).expect("JSON")
    }

    /// What it is told up to and with the end of a STREAM connection.
    fn payment(&mut self) -> Vec<Value> {
        let mut told = Vec::new();
        loop {
            told.push(self.json());
            if told.last().is_some_and(|last| last["connection_closed"] == true) {
                return told;
            }
        }
    }
}

fn amount(notices: &[Value]) -> u64 {
    notices
        .iter()
        .map(|notice| notice["amount"].as_u64().expect("a number"))
        .sum()
}

#[test]
fn who_may_follow() {
    let (node, _alice) = hub(2);
    let mut caller = 0;
    // An address of its own for each: failed attempts do not add up.
    let mut call = |method: &str, path: &str, authorization: &str, upgrade: &[(&str, &str)]| {
        caller += 1;
        let mut connection = Connection::open_from(Ipv4Addr::new(127, 0, 1, caller), node.address());
        let mut headers = upgrade.to_vec();
        if !authorization.is_empty() {
            headers.push(("Authorization", authorization));
        }
        connection.request(method, path, &headers, b"").expect("an answer")
    };
    let admin = format!("Bearer {ADMIN_TOKEN}");
    let (bob, nobody) = (of("bob"), of("nobody"));
    for (path, authorization, with_upgrade, without) in [
        (&*bob, &*admin, 101, 426),
        (&bob, "Bearer bob-http", 101, 426),
        (&bob, "Bearer bob:bob-http", 101, 426),
        (&bob, "Bearer carol:carol-http", 401, 401),
        (&bob, "Bearer carol-http", 401, 401),
        (&bob, "Bearer wrong", 401, 401),
        (&bob, "Digest bob-http", 401, 401),
        (&bob, "", 401, 401),
        (&nobody, &admin, 404, 404),
        (&nobody, "Bearer bob-http", 401, 401),
        (ALL, &admin, 101, 426),
        (ALL, "Bearer bob-http", 401, 401),
        (ALL, "Bearer bob:bob-http", 401, 401),
        (ALL, "Bearer wrong", 401, 401),
        (ALL, "", 401, 401),
    ] {
        let row = format!("{path} by {authorization:?}");
        let upgraded = call("GET", path, authorization, &UPGRADE);
        assert_eq!(upgraded.status, with_upgrade, "{row}");
        if with_upgrade == 101 {
            let accept = upgraded.header("sec-websocket-accept");
            assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{row}");
        } else {
            assert_eq!(upgraded.json()["status"], with_upgrade, "{row}");
        }
        let plain = call("GET", path, authorization, &[]);
        assert_eq!(plain.status, without, "{row}");
        if without == 426 {
            assert_eq!(plain.json()["code"], "upgrade_required", "{row}");
            assert_eq!(plain.header("upgrade"), Some("websocket"), "{row}");
            assert_eq!(plain.header("sec-websocket-version"), Some("13"), "{row}");
        }
    }
    for path in [&*bob, ALL] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let answer = call(method, path, &admin, &UPGRADE);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"), "{method} {path}");
        }
        assert_eq!(call("HEAD", path, &admin, &UPGRADE).status, 426, "HEAD {path}");
        assert_eq!(call("OPTIONS", path, "", &[]).status, 204, "OPTIONS {path}");
        let mut old = UPGRADE;
        old[2] = ("Sec-WebSocket-Version", "8");
        assert_eq!(call("GET", path, &admin, &old).status, 426, "version 8");
        let mut no_key = UPGRADE;
        no_key[3] = ("Sec-WebSocket-Key", "short");
        assert_eq!(call("GET", path, &admin, &no_key).status, 426, "no key");
    }
}

#[test]
fn every_packet_is_told_in_order_when_it_is_in_the_book() {
    let (node, alice) = hub(1);
    let api = node.api();
    let mut bob = Follower::holder(&node, "bob");
    let mut all = Follower::new(&node, ALL, ADMIN_TOKEN);
    let mut carol = Follower::holder(&node, "carol");

    let outcome = pay(&alice, &api, "bob", 95, 1);
    assert_eq!((outcome.result, outcome.amounts.delivered), (Ok(()), 95));
    let first = bob.text();
    let parsed: Value = serde_json::from_str(&first).expect("JSON");
    let member = |name: &str| parsed[name].to_string();
    let expected = format!(
        r#"{{"to_username":"bob","from_username":"alice","destination":{},"amount":{},"timestamp":{},"sequence":{},"connection_closed":false}}"#,
        member("destination"),
        member("amount"),
        member("timestamp"),
        member("sequence"),
    );
    assert_eq!(first, expected);
    let destination = parsed["destination"].as_str().expect("a text");
    assert!(destination.starts_with("test.hub.bob."), "{destination}");
    let timestamp = parsed["timestamp"].as_str().expect("a text");
    assert!(
        timestamp.starts_with("20") && timestamp.ends_with('Z') && timestamp.len() == 24,
        "{timestamp}"
    );

    let mut told = vec![parsed.clone()];
    told.extend(bob.payment());
    assert_eq!(amount(&told), 95);
    assert!(told.len() >= 11, "ten packets of at most 10, and the end: {told:?}");
    for pair in told.windows(2) {
        assert!(pair[0]["sequence"].as_u64() < pair[1]["sequence"].as_u64(), "{told:?}");
        assert_eq!(pair[0]["connection_closed"], false);
        assert_eq!(pair[1]["destination"], parsed["destination"]);
    }
    let last = told.last().expect("at least one");
    assert_eq!((&last["amount"], &last["connection_closed"]), (&json!(0), &json!(true)));
    // The operator is told the same in a wrapper.
    for notice in &told {
        assert_eq!(all.json(), json!({"Ok": notice}));
    }
    // What others receive is none of carol's business.
    pay(&alice, &api, "carol", 1, 1);
    assert_eq!(carol.json()["to_username"], "carol");

    // Told is booked: the book is asked as soon as the first packet is known.
    let paying = std::thread::spawn({
        let (alice, api) = (alice.clone(), api.clone());
        move || pay(&alice, &api, "bob", 300, 8)
    });
    let mut received = 95;
    for _ in 0..30 {
        received += i128::from(bob.json()["amount"].as_u64().expect("a number"));
        assert!(api.balance("bob") >= received, "told before it was booked");
    }
    paying.join().expect("the payment ends");
    node.api().audit();
}

#[test]
fn subscribers_on_every_shard_are_told_from_the_moment_they_are_let_in() {
    let (node, alice) = hub(2);
    let api = node.api();
    // The kernel spreads connections over the shards; that all of them come to one is as good as impossible.
    let usernames = ["bob", "carol"];
    let mut followers = usernames.map(|username| [(); 16].map(|()| Follower::holder(&node, username)));
    let mut all = [(); 8].map(|()| Follower::new(&node, ALL, ADMIN_TOKEN));
    for round in 0..6 {
        // The two accounts are owned by different shards.
        for (username, followers) in usernames.iter().zip(&mut followers) {
            // The first packet comes right behind the upgrade of this one.
            let mut newest = Follower::holder(&node, username);
            assert_eq!(pay(&alice, &api, username, 30, 2).result, Ok(()));
            let told = newest.payment();
            assert_eq!(amount(&told), 30, "round {round}");
            for follower in followers {
                assert_eq!(follower.payment(), told, "round {round}");
            }
            let wrapped: Vec<Value> = told.iter().map(|notice| json!({"Ok": notice})).collect();
            for follower in &mut all {
                let heard: Vec<Value> = told.iter().map(|_| follower.json()).collect();
                assert_eq!(heard, wrapped, "round {round}");
            }
        }
    }
}

#[test]
fn slow_subscribers_hold_nobody_up() {
    const PACKETS: u64 = 5_000;
    let (node, alice) = hub(2);
    let api = node.api();
    let mut reading = Follower::holder(&node, "bob");
    let mut slow: Vec<Follower> = (0..3)
        .map(|_| Follower::with_little_room(&node, &of("bob"), "bob-http"))
        .collect();
    let mut slow_admin: Vec<Follower> = (0..3)
        .map(|_| Follower::with_little_room(&node, ALL, ADMIN_TOKEN))
        .collect();

    let reader = std::thread::spawn(move || (reading.payment(), reading));
    let begun = Instant::now();
    let outcome = pay(&alice, &api, "bob", 10 * PACKETS, 128);
    println!("{PACKETS} packets took {:?}", begun.elapsed());
    assert_eq!((outcome.result, outcome.amounts.delivered), (Ok(()), 10 * PACKETS));
    let (told, mut reading) = reader.join().expect("the reader ends");
    assert_eq!(amount(&told), 10 * PACKETS, "who reads misses nothing");
    assert!(told.len() as u64 > PACKETS, "{} messages", told.len());

    // Of an account's subscribers nobody is left in doubt about a gap: what was told is a beginning, then the close.
    for follower in &mut slow {
        let mut heard = 0;
        let close = loop {
            match follower.next() {
                Ok(text) => {
                    let notice: Value = serde_json::from_str(&text).expect("JSON");
                    assert_eq!(notice, told[heard]);
                    heard += 1;
                }
                Err(close) => break close,
            }
        };
        assert_eq!(close, (1013, "too many messages were not read".to_owned()));
        assert!(heard < told.len());
    }
    // The operator's are told how large the gap is, and go on.
    for follower in &mut slow_admin {
        let (mut position, mut lagged) = (0, 0);
        while position < told.len() {
            let notice = follower.json();
            if let Some(gap) = notice["Err"].as_str() {
                let count = gap.strip_prefix("channel lagged by ").expect("the known words");
                let count: usize = count.parse().expect("a number");
                assert!(count > 0);
                lagged += count;
                position += count;
            } else {
                assert_eq!(notice, json!({"Ok": told[position]}));
                position += 1;
            }
        }
        assert_eq!(position, told.len());
        assert!(lagged > 1_000, "{lagged}");
    }
    assert_eq!(pay(&alice, &api, "bob", 5, 1).result, Ok(()));
    assert_eq!(amount(&reading.payment()), 5);
    for follower in &mut slow_admin {
        assert_eq!(follower.json()["Ok"]["amount"], 5);
    }
    node.api().audit();
}

#[test]
fn subscriptions_end_with_the_account_its_token_and_the_node() {
    let (mut node, alice) = hub(2);
    let api = node.api();
    let mut of_carol = [
        Follower::holder(&node, "carol"),
        Follower::new(&node, &of("carol"), ADMIN_TOKEN),
    ];
    let mut of_bob = Follower::holder(&node, "bob");
    let mut by_admin = Follower::new(&node, &of("bob"), ADMIN_TOKEN);
    let mut all = Follower::new(&node, ALL, ADMIN_TOKEN);

    api.ok("DELETE", "/accounts/carol", None);
    for follower in &mut of_carol {
        assert_eq!(follower.next(), Err((1000, "the account was deleted".to_owned())));
    }
    // Another account of the same name has its own.
    node.add_account("carol", &json!({}));
    let mut of_new_carol = Follower::holder(&node, "carol");
    pay(&alice, &api, "carol", 7, 1);
    assert_eq!(amount(&of_new_carol.payment()), 7);
    while all.json()["Ok"]["connection_closed"] == false {}

    // Something else changes, then the token.
    api.put("/accounts/bob", &json!({"max_balance": 1_000_000}));
    pay(&alice, &api, "bob", 3, 1);
    assert_eq!(amount(&of_bob.payment()), 3);
    assert_eq!(amount(&by_admin.payment()), 3);
    while all.json()["Ok"]["connection_closed"] == false {}
    api.put("/accounts/bob", &json!({"ilp_over_http_incoming_token": "new"}));
    assert_eq!(of_bob.next(), Err((1008, "the account's token was changed".to_owned())));
    let mut of_bob = Follower::new(&node, &of("bob"), "new");
    pay(&alice, &api, "bob", 4, 1);
    for follower in [&mut of_bob, &mut by_admin] {
        assert_eq!(amount(&follower.payment()), 4, "the operator's stays");
    }
    while all.json()["Ok"]["connection_closed"] == false {}

    node.terminate();
    for follower in [&mut of_bob, &mut by_admin, &mut all, &mut of_new_carol] {
        assert_eq!(follower.next(), Err((1001, "the node stops".to_owned())));
    }
    assert!(node.exit_status_within(PATIENCE).success());
}

#[test]
fn what_clients_say_is_ignored_or_answered_by_the_rules() {
    let (node, alice) = hub(1);
    let open = || {
        let mut connection = node.connection();
        let headers = [&UPGRADE[..], &[("Authorization", "Bearer bob-http")]].concat();
        let answer = connection.request("GET", &of("bob"), &headers, b"").expect("an answer");
        assert_eq!(answer.status, 101);
        RawWebSocket(connection)
    };
    // Whole, in fragments, with a ping between them, and long.
    let mut socket = open();
    socket.send_frame(0x81, b"hello?");
    socket.send_frame(0x02, &[0xff; 1_000]);
    socket.send_frame(0x89, b"still there");
    socket.send_frame(0x00, &[0; 60_000]);
    socket.send_frame(0x80, b"");
    socket.send_frame(0x89, b"");
    assert_eq!(socket.frame(), Some((0x8a, b"still there".to_vec())));
    assert_eq!(socket.frame(), Some((0x8a, Vec::new())));
    pay(&alice, &node.api(), "bob", 1, 1);
    let (first, payload) = socket.frame().expect("a notice");
    assert_eq!(first, 0x81);
    assert!(payload.starts_with(br#"{"to_username":"bob","#));
    assert_eq!(
        socket.frame().map(|(first, _)| first),
        Some(0x81),
        "the end of the connection"
    );
    socket.send_frame(0x88, &[0x03, 0xe8]);
    assert_eq!(socket.close_code(), 1000);
    assert!(socket.0.is_closed_within(PATIENCE));

    for (name, bytes, code) in [
        ("not masked", &[0x81, 0x01, b'x'][..], 1002),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n", 1002),
        ("a reserved opcode", &[0x83, 0x80, 1, 2, 3, 4], 1002),
        ("an end without a beginning", &[0x80, 0x80, 1, 2, 3, 4], 1002),
        ("too long", &[0x82, 0xff, 0, 0, 0, 0, 0x7f, 0, 0, 0, 1, 2, 3, 4], 1009),
    ] {
        let mut socket = open();
        socket.send(bytes);
        assert_eq!(socket.close_code(), code, "{name}");
        assert!(socket.0.is_closed_within(PATIENCE), "{name}");
    }
    // One that is gone without a word is no burden.
    drop(open());
    pay(&alice, &node.api(), "bob", 1, 1);
}

#[test]
fn seats_are_limited_and_free_again_when_somebody_leaves() {
    let (node, alice) = hub(2);
    let mut followers: Vec<Follower> = (0..64).map(|_| Follower::holder(&node, "bob")).collect();
    let headers = [&UPGRADE[..], &[("Authorization", "Bearer bob-http")]].concat();
    let ask = |path: &str, token: &str| {
        let mut headers = headers.clone();
        let value = format!("Bearer {token}");
        headers[4].1 = &value;
        let mut connection = node.connection();
        let answer = connection.request("GET", path, &headers, b"").expect("an answer");
        (answer, connection)
    };
    let (refused, mut connection) = ask(&of("bob"), "bob-http");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("10")));
    assert_eq!(refused.json()["code"], "too_many_requests");
    // It is HTTP still.
    assert_eq!(connection.request("GET", "/", &[], b"").expect("an answer").status, 200);
    // Others have their own.
    assert_eq!(ask(&of("carol"), "carol-http").0.status, 101);
    assert_eq!(ask(ALL, ADMIN_TOKEN).0.status, 101);
    followers.pop();
    let _one_more = eventually("the seat is free", || {
        Some(ask(&of("bob"), "bob-http")).filter(|(answer, _)| answer.status == 101)
    });
    pay(&alice, &node.api(), "bob", 20, 2);
    for follower in &mut followers {
        assert_eq!(amount(&follower.payment()), 20);
    }
}

#[test]
fn a_websocket_begins_when_earlier_requests_are_answered() {
    let (node, _alice) = hub(1);
    let rule = Rule::always(Answer::Fulfill.after(Duration::from_millis(500)));
    let _dave = Party::join(&node, "dave", Via::BtpToNode, rule, &json!({}));
    let prepare = Prepare::new("test.hub.dave", 1);
    let mut connection = node.connection();
    let authorization = ("Authorization", "Bearer bob-http");
    let headers = [&UPGRADE[..], &[authorization]].concat();
    let packet = request_bytes("POST", "/accounts/bob/ilp", &[authorization], &prepare.encode());
    let upgrade = request_bytes("GET", &of("bob"), &headers, b"");
    connection
        .send(&[packet, upgrade.clone()].concat())
        .expect("the node reads");
    let answer = connection.answer().expect("the packet's answer");
    assert!(answer.reply().fulfills(&prepare));
    assert_eq!(connection.answer().expect("a refusal").status, 400);
    connection.send(&upgrade).expect("the node reads");
    assert_eq!(connection.answer().expect("an answer").status, 101);
}
