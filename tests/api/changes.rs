//! Changes under load: none is lost that was answered, none is made twice, and each is seen by the very next packet.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use serde_json::{Map, Value, json};

use crate::caller::{Caller, authorization};
use crate::support::btp_peer::BtpPeer;
use crate::support::http::{Connection, HttpAnswer};
use crate::support::http_peer::HttpPeer;
use crate::support::node::{Node, Options, expect_balance};
use crate::support::packet::Prepare;
use crate::support::random::Random;
use crate::support::rule::Rule;
use crate::tables::ALICE_AND_BOB;

const ACCOUNTS: usize = 100;
const CONNECTIONS: usize = 8;
const CRASHES: u64 = 5;

fn call(connection: &mut Connection, method: &str, target: &str, body: &Value) -> HttpAnswer {
    let admin = authorization("admin").remove(0);
    let answer = connection.request(
        method,
        target,
        &[("Authorization", &admin)],
        body.to_string().as_bytes(),
    );
    answer.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
}

/// An account as a caller may want one; what is not said gets its default.
fn random_account(random: &mut Random, username: &str) -> Value {
    let mut account = json!({"username": username, "asset_code": "ABC", "asset_scale": random.between(0, 255)});
    let more = [
        ("max_packet_amount", json!(random.next())),
        ("min_balance", json!(random.next() as i64)),
        (
            "ilp_over_http_url",
            json!(format!("http://127.0.0.1:{}/ilp", random.between(1, 65_535))),
        ),
        ("ilp_over_http_incoming_token", json!(format!("{username}-s3cr3t"))),
        ("ilp_over_btp_incoming_token", json!(format!("{username}-btp-s3cr3t"))),
        ("settle_to", json!(random.next() as i64)),
        ("round_trip_time", json!(random.next() as u32)),
        ("packets_per_minute_limit", json!(random.next() as u32)),
        ("spread", json!(format!("0.{}", random.between(0, 999_999)))),
        ("routing_relation", json!("Child")),
        ("ilp_address", json!(format!("test.place.{username}"))),
    ];
    for (field, value) in more {
        if random.between(0, 1) == 0 {
            account[field] = value;
        }
    }
    account
}

/// What an account looks like whoever asks: a warning belongs to one answer.
fn without_warnings(mut account: Value) -> Value {
    account.as_object_mut().expect("an account").remove("warnings");
    account
}

/// A new account and perhaps a change of it; the last answer.
fn create(connection: &mut Connection, random: &mut Random, username: &str) -> Value {
    let answer = call(connection, "POST", "/accounts", &random_account(random, username));
    assert_eq!(
        answer.status,
        200,
        "{username}: {}",
        String::from_utf8_lossy(&answer.body)
    );
    if random.between(0, 2) > 0 {
        return without_warnings(answer.json());
    }
    let change = json!({"max_packet_amount": random.next(), "settle_to": random.next() as i64});
    let answer = call(connection, "PUT", &format!("/accounts/{username}"), &change);
    assert_eq!(
        answer.status,
        200,
        "{username}: {}",
        String::from_utf8_lossy(&answer.body)
    );
    without_warnings(answer.json())
}

/// The node is killed at the very moment at which the last of a hundred callers has its 200.
#[test]
fn no_account_that_was_answered_is_lost() {
    let mut random = Random::new("accounts under load");
    let mut node = Node::start_with(Options {
        shards: 2,
        ..Options::default()
    });
    // In the order of the peers' lives: the account of bob names a peer that outlives the node's restarts.
    let receiver = HttpPeer::start(Rule::fulfill());
    node.add_account("alice", &json!({}));
    node.add_account("bob", &json!({"ilp_over_http_url": receiver.url()}));
    let mut expected = Map::new();
    for account in node.api().get("/accounts").as_array().expect("an array") {
        expected.insert(
            account["username"].as_str().expect("a name").to_owned(),
            account.clone(),
        );
    }
    let (sent, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0));
    for round in 1..=CRASHES {
        let stop = AtomicBool::new(false);
        let left = AtomicUsize::new(ACCOUNTS);
        let next = AtomicUsize::new(0);
        let answered = Mutex::new(Vec::with_capacity(ACCOUNTS));
        let address = node.address();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut connection = Connection::open(address);
                    while !stop.load(Ordering::SeqCst) {
                        let prepare = Prepare::new("test.hub.bob", 1);
                        sent.fetch_add(1, Ordering::SeqCst);
                        let Ok(answer) = connection.post("/accounts/alice/ilp", "alice-http", &prepare) else {
                            return;
                        };
                        if answer.reply().fulfills(&prepare) {
                            acknowledged.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
            for _ in 0..CONNECTIONS {
                let mut random = random.fork();
                let (node, stop, left, next, answered) = (&node, &stop, &left, &next, &answered);
                scope.spawn(move || {
                    let mut connection = Connection::open(address);
                    loop {
                        let number = next.fetch_add(1, Ordering::SeqCst);
                        if number >= ACCOUNTS {
                            return;
                        }
                        let account = create(&mut connection, &mut random, &format!("r{round}_{number}"));
                        answered.lock().expect("no test panics here").push(account);
                        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                            node.signal(libc::SIGKILL);
                            stop.store(true, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        node.kill();
        for account in answered.into_inner().expect("no test panics here") {
            expected.insert(account["username"].as_str().expect("a name").to_owned(), account);
        }
        assert_eq!(expected.len(), 2 + ACCOUNTS * round as usize);

        node.set_shards(random.between(1, 3) as usize);
        node.run();
        let found = node.api().get("/accounts");
        let found = found.as_array().expect("an array");
        assert_eq!(found.len(), expected.len(), "round {round}: none more, none less");
        for account in found {
            let username = account["username"].as_str().expect("a name");
            assert_eq!(
                Some(account),
                expected.get(username),
                "round {round}: as it was answered"
            );
        }
        let routes = node.api().get("/routes");
        for account in expected.values() {
            let address = account["ilp_address"].as_str().expect("an address");
            assert_eq!(
                routes[address], account["username"],
                "round {round}: its route is there"
            );
        }
        node.api().audit();
        let (paid, earned) = (-node.api().balance("alice"), node.api().balance("bob"));
        let (least, most) = (acknowledged.load(Ordering::SeqCst), sent.load(Ordering::SeqCst));
        println!("round {round}: {least} packets acknowledged, {paid} in the book, {most} sent");
        assert!(
            (i128::from(least)..=i128::from(most)).contains(&paid),
            "round {round}: alice paid {paid}"
        );
        assert_eq!(paid, earned, "round {round}: a packet has two sides");
    }
    assert!(acknowledged.load(Ordering::SeqCst) > 0, "packets did flow");
    // Who was created can log in.
    let mut logged_in = 0;
    for (username, account) in &expected {
        let tokens = account["tokens_set"].as_array().expect("an array");
        if username.starts_with('r') && tokens.contains(&json!("ilp_over_http_incoming_token")) {
            let bearer = format!("Bearer {username}-s3cr3t");
            let target = format!("/accounts/{username}");
            let answer = node
                .connection()
                .request("GET", &target, &[("Authorization", &bearer)], b"");
            assert_eq!(answer.expect("an answer").json()["id"], account["id"]);
            logged_in += 1;
        }
    }
    assert!(logged_in > 0, "some have a password");
}

#[test]
fn a_name_is_given_once() {
    let node = Node::with_shards(2);
    for round in 0..5 {
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let node = &node;
            let callers: Vec<_> = (0..30)
                .map(|caller| {
                    scope.spawn(move || {
                        // One name, however it is written.
                        let name = if caller % 2 == 0 {
                            format!("name{round}")
                        } else {
                            format!("NAME{round}")
                        };
                        let account = json!({"username": name, "asset_code": "ABC", "asset_scale": caller});
                        let mut connection = node.connection();
                        call(&mut connection, "POST", "/accounts", &account).status
                    })
                })
                .collect();
            callers
                .into_iter()
                .map(|caller| caller.join().expect("an answer"))
                .collect()
        });
        let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
        assert_eq!((count(200), count(409)), (1, 29), "{statuses:?}");
        assert_eq!(node.api().get("/accounts").as_array().map(Vec::len), Some(round + 1));
    }
}

/// Senders, so many that each of two shards owns some, and two receivers.
const SENDERS: [&str; 4] = ["one", "two", "three", "four"];
const ROUNDS: u64 = 50;

/// Connections that have sent packets before, so that whatever a shard keeps about them is kept.
struct Senders<'a> {
    node: &'a Node,
    over_http: Vec<(&'static str, Connection)>,
    over_btp: Vec<BtpPeer>,
}

impl<'a> Senders<'a> {
    /// From an address of its own, because some of what they send will fail to authenticate.
    fn open(node: &'a Node, number: u64) -> Self {
        let source = Ipv4Addr::from(0x7f02_0000 + number as u32);
        let connect = |username: &&'static str| (*username, Connection::open_from(source, node.address()));
        // Two of each: wherever the kernel delivers a connection, it ends up at the shard of its account.
        let over_http = SENDERS.iter().chain(&SENDERS).map(connect).collect();
        let rule = Rule::fulfill();
        let over_btp = SENDERS
            .iter()
            .map(|username| BtpPeer::connect(node.address(), username, rule.clone()))
            .collect();
        let mut senders = Self {
            node,
            over_http,
            over_btp,
        };
        senders.expect("before", "test.hub.left", 1, "fulfill");
        senders
    }

    /// Every connection sends one packet, and gets this for it.
    fn expect(&mut self, what: &str, destination: &str, amount: u64, code: &str) {
        for (username, connection) in &mut self.over_http {
            let prepare = Prepare::new(destination, amount);
            let target = format!("/accounts/{username}/ilp");
            let answer = connection
                .post(&target, &format!("{username}-http"), &prepare)
                .expect("an answer");
            assert_eq!(
                answer.reply().code(),
                code,
                "{what}: {username} over HTTP, {amount} to {destination}"
            );
        }
        for (username, peer) in SENDERS.iter().zip(&self.over_btp) {
            let reply = peer.prepare(&Prepare::new(destination, amount));
            assert_eq!(
                reply.code(),
                code,
                "{what}: {username} over BTP, {amount} to {destination}"
            );
        }
    }

    /// The status of the next packet of one sender over HTTP, per connection.
    fn statuses(&mut self, wanted: &str, token: &str) -> Vec<u16> {
        let mut statuses = Vec::new();
        for (username, connection) in self.over_http.iter_mut().filter(|(username, _)| *username == wanted) {
            let prepare = Prepare::new("test.hub.left", 1);
            let answer = connection
                .post(&format!("/accounts/{username}/ilp"), token, &prepare)
                .expect("an answer");
            statuses.push(answer.status);
        }
        statuses
    }

    fn change(&self, method: &str, target: &str, body: &Value) {
        let answer = self.node.api().call(method, target, Some(body));
        assert_eq!(
            answer.status,
            200,
            "{method} {target} {body}: {}",
            String::from_utf8_lossy(&answer.body)
        );
    }

    fn change_all(&self, body: &Value) {
        for username in SENDERS {
            self.change("PUT", &format!("/accounts/{username}"), body);
        }
    }
}

#[test]
fn a_change_is_seen_by_the_very_next_packet() {
    let mut random = Random::new("changes");
    let node = Node::with_shards(2);
    let (left, right, foreign) = (Rule::fulfill(), Rule::fulfill(), Rule::fulfill());
    for username in SENDERS {
        node.add_account(username, &json!({}));
    }
    let receivers: Vec<HttpPeer> = [&left, &right, &foreign]
        .map(|rule| HttpPeer::start(rule.clone()))
        .into();
    for ((username, code), receiver) in [("left", "ABC"), ("right", "ABC"), ("foreign", "XYZ")]
        .into_iter()
        .zip(&receivers)
    {
        node.add_account(
            username,
            &json!({"ilp_over_http_url": receiver.url(), "asset_code": code}),
        );
    }
    let mut seen = [0; 6];
    for round in 1..=ROUNDS {
        let mut senders = Senders::open(&node, round);
        let kind = (round % 6) as usize;
        seen[kind] += 1;
        let what = format!("round {round}");
        match kind {
            0 => {
                let most = random.between(2, 1_000_000);
                senders.change_all(&json!({"max_packet_amount": most}));
                senders.expect(&what, "test.hub.left", most + 1, "F08");
                senders.expect(&what, "test.hub.left", most, "fulfill");
                senders.change_all(&json!({"packets_per_minute_limit": 0}));
                senders.expect(&what, "test.hub.left", 1, "T05");
                senders.change_all(&json!({"packets_per_minute_limit": null, "max_packet_amount": null}));
                senders.expect(&what, "test.hub.left", most + 1, "fulfill");
            }
            1 => {
                let username = SENDERS[random.between(0, 3) as usize];
                let target = format!("/accounts/{username}");
                let (old, new) = (format!("{username}-http"), format!("{username}-new-{round}"));
                assert_eq!(senders.statuses(username, &old), [200; 2], "{what}");
                senders.change("PUT", &target, &json!({"ilp_over_http_incoming_token": new}));
                assert_eq!(
                    senders.statuses(username, &old),
                    [401; 2],
                    "{what}: the old password is dead"
                );
                assert_eq!(
                    senders.statuses(username, &new),
                    [200; 2],
                    "{what}: the new one is good"
                );
                senders.change("PUT", &target, &json!({"ilp_over_http_incoming_token": old}));
                assert_eq!(senders.statuses(username, &new), [401; 2], "{what}");
                assert_eq!(senders.statuses(username, &old), [200; 2], "{what}");
            }
            2 => {
                let prefix = format!("test.fixed.r{round}");
                senders.expect(&what, &prefix, 1, "F02");
                for (username, rule) in [("left", &left), ("right", &right), ("left", &left)] {
                    let before = rule.fulfilled();
                    senders.change("PUT", "/routes/static", &json!({prefix.clone(): username}));
                    senders.expect(&what, &format!("{prefix}.x"), 1_000_000, "fulfill");
                    let packets = (senders.over_http.len() + senders.over_btp.len()) as u64;
                    assert_eq!(
                        rule.fulfilled() - before,
                        packets * 1_000_000,
                        "{what}: all came to {username}"
                    );
                }
                senders.change("DELETE", &format!("/routes/static/{prefix}"), &Value::Null);
                senders.expect(&what, &format!("{prefix}.x"), 1, "F02");
            }
            3 => {
                let rate = random.between(1, 9);
                senders.change("PUT", "/rates", &json!({"ABC": rate, "XYZ": "1"}));
                let before = foreign.fulfilled();
                senders.expect(&what, "test.hub.foreign", 1_000, "fulfill");
                let packets = (senders.over_http.len() + senders.over_btp.len()) as u64;
                assert_eq!(
                    foreign.fulfilled() - before,
                    packets * rate * 1_000,
                    "{what}: at the new rate"
                );
                senders.change("PUT", "/rates", &json!({}));
                senders.expect(&what, "test.hub.foreign", 1_000, "T00");
            }
            4 => {
                let name = format!("guest{round}");
                let address = format!("test.hub.{name}");
                senders.expect(&what, &address, 1, "F02");
                node.add_account(
                    &name,
                    &json!({"ilp_over_http_url": receivers[0].url(), "min_balance": -1}),
                );
                senders.expect(&what, &address, 1, "fulfill");
                let mut guest = Connection::open_from(Ipv4Addr::new(127, 3, 0, round as u8), node.address());
                let token = format!("{name}-http");
                let mut send = || {
                    let prepare = Prepare::new("test.hub.left", 1);
                    guest
                        .post(&format!("/accounts/{name}/ilp"), &token, &prepare)
                        .expect("an answer")
                };
                assert_eq!(send().reply().code(), "fulfill", "{what}");
                senders.change("DELETE", &format!("/accounts/{name}?force=true"), &Value::Null);
                assert_eq!(send().status, 401, "{what}: nobody's password any more");
                senders.expect(&what, &address, 1, "F02");
            }
            _ => {
                let (from, to) = (format!("test.old{round}"), format!("test.new{round}"));
                senders.change("PUT", "/accounts/right", &json!({"ilp_address": from}));
                senders.expect(&what, "test.hub.right", 1, "F02");
                senders.expect(&what, &from, 1, "fulfill");
                senders.change("PUT", "/accounts/right", &json!({"ilp_address": to}));
                senders.expect(&what, &from, 1, "F02");
                senders.expect(&what, &to, 1, "fulfill");
                senders.change(
                    "PUT",
                    "/accounts/right",
                    &json!({"ilp_address": null, "max_balance": 0}),
                );
                senders.expect(&what, "test.hub.right", 1, "T04");
                senders.change("PUT", "/accounts/right", &json!({"max_balance": null}));
                senders.expect(&what, "test.hub.right", 1, "fulfill");
            }
        }
    }
    assert!(seen.iter().all(|rounds| *rounds >= 8), "each kind of change: {seen:?}");
    // What the receivers fulfilled is in the book, and nothing else.
    let api = node.api();
    api.audit();
    expect_balance(&api, "right", i128::from(right.fulfilled()));
    expect_balance(&api, "foreign", i128::from(foreign.fulfilled()));
}

/// Refused changes are seen by nobody.
#[test]
fn a_refused_change_changes_no_packet() {
    let node = Node::with_shards(2);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(
        r#"
PUT /accounts/alice | admin | {"max_packet_amount":5,"min_balance":"x"} | 400 | bad=min_balance invalid
POST /accounts/alice/ilp | alice | prepare test.hub.bob 6 | 200 | ilp=fulfill
PUT /accounts/alice | admin | {"max_packet_amount":5,"asset_scale":2} | 409 | code=asset_in_use
POST /accounts/alice/ilp | alice | prepare test.hub.bob 6 | 200 | ilp=fulfill
PUT /routes/static  | admin | {"test.hub.bob":"alice","test.x":"nobody"} | 404 |
POST /accounts/alice/ilp | alice | prepare test.hub.bob 6 | 200 | ilp=fulfill
DELETE /accounts/bob | admin | | 409 | code=balance_not_zero
POST /accounts/alice/ilp | alice | prepare test.hub.bob 6 | 200 | ilp=fulfill
PUT /accounts/alice | alice | {"max_packet_amount":5} | 401 |
POST /accounts/alice/ilp | alice | prepare test.hub.bob 6 | 200 | ilp=fulfill
GET /accounts/bob/balance | bob | | 200 | balance=30
"#,
    );
}
