//! What engines bring, as a whole node takes it over real sockets: amounts in every form, keys in every form, one credit for
//! each, over a crash as well; and what stands in the way of guessing their token.

mod support;

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::btp_peer::BtpPeer;
use support::engine::FakeEngine;
use support::eventually;
use support::http::{Connection, HttpAnswer, request_bytes, whole};
use support::node::{ADMIN_TOKEN, Node, Options};
use support::packet::Prepare;
use support::rule::Rule;

/// A node and an engine that serves all in ABC.
struct World {
    node: Node,
    engine: FakeEngine,
}

impl World {
    fn start() -> Self {
        let node = Node::with_shards(2);
        let engine = FakeEngine::start();
        node.api().put("/settlement/engines", &json!({ "ABC": engine.url() }));
        Self { node, engine }
    }

    fn add(&self, username: &str) -> String {
        id_of(&self.node.add_account(username, &json!({})))
    }

    /// A settlement as an engine tells it, and the answer.
    fn bring(&self, id: &str, key: &str, body: &str) -> (u16, String) {
        let target = format!("/accounts/{id}/settlements");
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let answer =
            Connection::open(self.node.settlement_address()).request("POST", &target, &headers, body.as_bytes());
        shown(&answer.expect("an answer"))
    }

    fn money(&self, username: &str) -> (i128, i128) {
        let answer = self.node.api().get(&format!("/accounts/{username}/balance"));
        let number = |name: &str| whole(&answer[name]);
        (number("balance"), number("prepaid_amount"))
    }

    /// All of it is prepaid, as long as nobody pays.
    fn expect_credited(&self, username: &str, expected: i128) {
        eventually(&format!("{username} has {expected}"), || {
            (self.money(username) == (expected, expected)).then_some(())
        });
    }
}

fn id_of(account: &Value) -> String {
    account["id"].as_str().expect("a text").to_owned()
}

fn shown(answer: &HttpAnswer) -> (u16, String) {
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

fn quantity(amount: &str, scale: &str) -> String {
    format!(r#"{{"amount":{amount},"scale":{scale}}}"#)
}

/// As text or as number, at any scale, up to all that an account can have of one settlement; whatever else comes is refused
/// by name, and nothing is credited. No number goes through a float.
#[test]
fn amounts_in_every_form() {
    let world = World::start();
    let id = world.add("alice");
    let nines = |count: usize| format!("\"{}\"", "9".repeat(count));
    let one_at_255 = format!("\"1{}\"", "0".repeat(255));
    let almost_one = format!("\"{}\"", "9".repeat(246));
    let mut credited = 0;
    for (number, (amount, scale, expected)) in [
        // What is credited at scale 9, or how it is refused.
        ("\"10\"", "9", Ok(10)),
        ("10", "9", Ok(10)),
        ("\"0010\"", "9", Ok(10)),
        ("0", "9", Ok(0)),
        ("\"0\"", "255", Ok(0)),
        ("\"\\u0031\"", "9", Ok(1)),
        ("1", "0", Ok(1_000_000_000)),
        ("1", "\"9\"", Ok(1)),
        ("9007199254740993", "9", Ok(9_007_199_254_740_993)),
        (&one_at_255, "255", Ok(1_000_000_000)),
        // Below one unit, until the next one makes it whole: 0.99… and the last of 255 digits.
        (&almost_one, "255", Ok(0)),
        ("1", "255", Ok(1)),
        ("18446744073709551615", "9", Ok(u64::MAX.into())),
        ("18446744073709551616", "9", Err("nothing was credited")),
        ("\"18446744073709551616\"", "9", Err("nothing was credited")),
        ("18446744074", "0", Err("nothing was credited")),
        (&nines(275), "0", Err("nothing was credited")),
        (&nines(276), "255", Err(r#"{"name":"amount","type":"out_of_range"}"#)),
        (&nines(60_000), "9", Err(r#"{"name":"amount","type":"out_of_range"}"#)),
        ("-1", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("-0", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("\"-1\"", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("1.5", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("10.0", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("1e3", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("1E400", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("\"\"", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("\" 1\"", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("\"0x1\"", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("null", "9", Err(r#"{"name":"amount","type":"invalid"}"#)),
        ("1", "256", Err(r#"{"name":"scale","type":"out_of_range"}"#)),
        ("1", "-1", Err(r#"{"name":"scale","type":"out_of_range"}"#)),
        ("1", "1.0", Err(r#"{"name":"scale","type":"invalid"}"#)),
        ("1", "null", Err(r#"{"name":"scale","type":"invalid"}"#)),
        ("007", "9", Err("json_syntax")),
        ("NaN", "9", Err("json_syntax")),
        ("1", "9,\"amount\":2", Err("this member is there twice")),
        ("1", "9} {", Err("json_syntax")),
    ]
    .into_iter()
    .enumerate()
    {
        let body = quantity(amount, scale);
        let (status, answer) = world.bring(&id, &format!("key-{number}"), &body);
        match expected {
            Ok(units) => {
                assert_eq!(status, 201, "{body:.300}: {answer}");
                let answer: Value = serde_json::from_str(&answer).expect("JSON");
                assert!(answer["amount"].is_string(), "{answer}");
                credited += units;
            }
            Err(part) => {
                assert_eq!(status, 400, "{body:.300}: {answer}");
                assert!(answer.contains(part), "{body:.300}: {answer}");
            }
        }
        // Balances above 2^64 are beyond what these tests read.
        if credited <= u64::MAX.into() {
            world.expect_credited("alice", credited);
        }
    }
    for (body, part) in [
        ("", "json_eof"),
        ("{}", "amount is missing; scale is missing"),
        (r#"{"scale":9}"#, r#"{"name":"amount","type":"missing"}"#),
        (r#"{"amount":"1"}"#, r#"{"name":"scale","type":"missing"}"#),
        ("[]", "json_data"),
        ("\"1\"", "json_data"),
        ("7", "json_data"),
    ] {
        let (status, answer) = world.bring(&id, "other", body);
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer.contains(part), "{body}: {answer}");
    }
    // Larger than a settlement can be: not even read.
    let body = quantity(&format!("\"{}\"", "9".repeat(4 << 20)), "9");
    let target = format!("/accounts/{id}/settlements");
    let mut connection = Connection::open(world.node.settlement_address());
    // The node may end the connection before all of it is sent.
    let _ = connection.send(&request_bytes(
        "POST",
        &target,
        &[("idempotency-key", "huge")],
        body.as_bytes(),
    ));
    let status = connection.answer().map_or(413, |answer| answer.status);
    assert_eq!(status, 413);
    // Exactly the sum is there.
    let audit = world.node.api().call("GET", "/ledger/audit", None);
    let audit = String::from_utf8(audit.body).expect("UTF-8");
    assert!(
        audit.contains(&format!(
            "\"balances\":{credited},\"position\":-{credited},\"pending\":0"
        )),
        "{credited}: {audit}"
    );
}

/// A key is 1 to 255 visible ASCII characters, and the account's own.
#[test]
fn keys_in_every_form() {
    let world = World::start();
    let (alice, bob) = (world.add("alice"), world.add("bob"));
    let body = quantity("\"7\"", "9");
    let ask = |id: &str, keys: &[&str]| {
        let headers: Vec<_> = keys.iter().map(|key| ("idempotency-key", *key)).collect();
        let target = format!("/accounts/{id}/settlements");
        let mut connection = Connection::open(world.node.settlement_address());
        shown(
            &connection
                .request("POST", &target, &headers, body.as_bytes())
                .expect("an answer"),
        )
    };
    let long = |length: usize| "k".repeat(length);
    for keys in [
        &[][..],
        &[""],
        &["two words"],
        &["a\tb"],
        &["\u{e9}"],
        &["a", "b"],
        &["a", "a"],
        &[&long(256)],
        &[&long(1_024)],
    ] {
        let (status, answer) = ask(&alice, keys);
        assert_eq!(status, 400, "{keys:?}: {answer}");
        assert!(answer.contains("Idempotency-Key: "), "{keys:?}: {answer}");
    }
    world.expect_credited("alice", 0);
    let mut expected = 0;
    for key in [&long(255), "!", "~", "{\"a\":1}", "Key", "key"] {
        for _ in 0..2 {
            let (status, answer) = ask(&alice, &[key]);
            assert_eq!((status, &*answer), (201, r#"{"amount":"7","scale":9}"#), "{key}");
        }
        expected += 7;
        world.expect_credited("alice", expected);
    }
    // Another account's is another key.
    assert_eq!(ask(&bob, &["key"]).0, 201);
    world.expect_credited("bob", 7);
    world.expect_credited("alice", expected);
    for (id, status, code) in [
        ("5f0c7a52-0000-4000-8000-2b6c1d9e8f10", 404, "account_not_found"),
        ("alice", 400, "invalid_account_id"),
        (&alice.replace('-', ""), 400, "invalid_account_id"),
        (&format!("%7B{alice}%7D"), 400, "invalid_account_id"),
    ] {
        let (found, answer) = ask(id, &["key-2"]);
        assert_eq!(found, status, "{id}: {answer}");
        assert!(answer.contains(code), "{id}: {answer}");
    }
    assert_eq!(ask(&alice.to_uppercase(), &["upper"]).0, 201, "a UUID in any case");
}

/// Eight at once with one key: with one body all get the answer of the one credit; with eight, one is credited.
#[test]
fn one_key_at_the_same_time_is_one_credit() {
    let world = World::start();
    let id = world.add("alice");
    let at_once = |key: &str, amount: fn(u64) -> u64| {
        let answers: Vec<(u16, String)> = thread::scope(|scope| {
            let (world, id) = (&world, &id);
            let asking: Vec<_> = (1..9)
                .map(|number| {
                    let body = quantity(&amount(number).to_string(), "9");
                    scope.spawn(move || world.bring(id, key, &body))
                })
                .collect();
            asking
                .into_iter()
                .map(|asked| asked.join().expect("no panic"))
                .collect()
        });
        answers
    };
    let mut expected = 0;
    for round in 0..10 {
        let same = at_once(&format!("same-{round}"), |_| 5);
        let answer = (201, r#"{"amount":"5","scale":9}"#.to_owned());
        assert_eq!(same, vec![answer; 8]);
        expected += 5;
        let other = at_once(&format!("other-{round}"), |number| number);
        let taken: Vec<i128> = (1..)
            .zip(&other)
            .filter(|(_, (status, _))| *status == 201)
            .map(|(number, _)| number)
            .collect();
        let refused = other
            .iter()
            .filter(|(_, answer)| answer.contains("idempotency_conflict"));
        assert_eq!((taken.len(), refused.count()), (1, 7), "{other:?}");
        expected += taken[0];
        world.expect_credited("alice", expected);
    }
    world.node.api().audit();
}

/// What an engine was answered stays its answer, and what is left over stays there, whatever happens to the node.
#[test]
fn answers_and_remainders_outlive_the_node() {
    let mut world = World::start();
    let id = world.add("alice");
    let tenth = quantity("\"9\"", "10");
    assert_eq!(world.bring(&id, "a", &tenth).0, 201);
    assert_eq!(world.bring(&id, "b", &quantity("25", "8")).0, 201);
    world.expect_credited("alice", 250);
    for round in 0..3 {
        world.node.kill();
        world.node.run();
        assert_eq!(
            world.bring(&id, "a", &tenth),
            (201, r#"{"amount":"9","scale":10}"#.to_owned())
        );
        let (status, answer) = world.bring(&id, "a", &quantity("\"10\"", "10"));
        assert_eq!(status, 409, "{answer}");
        assert!(answer.contains("idempotency_conflict"), "{answer}");
        // The same in another form is the same.
        assert_eq!(world.bring(&id, "b", &quantity("\"025\"", "8")).0, 201);
        assert_eq!(world.money("alice"), (250 + round, 250 + round));
        // 0.9 and 0.1 in the first round, nothing and 1 in the others.
        let rest = if round == 0 { "1" } else { "10" };
        assert_eq!(world.bring(&id, &format!("rest-{round}"), &quantity(rest, "10")).0, 201);
        world.expect_credited("alice", 251 + round);
    }
    world.node.api().audit();
}

/// A debt is paid first, and only what is more is paid ahead. What is left over of it keeps the asset as it is.
#[test]
fn what_is_left_over_keeps_the_asset() {
    let world = World::start();
    let id = world.add("alice");
    world.node.add_account("bob", &json!({}));
    let api = world.node.api();
    let _bob = BtpPeer::connect(world.node.address(), "bob", Rule::fulfill());
    let pay = |amount| {
        let prepare = Prepare::new("test.hub.bob", amount);
        let answer = world
            .node
            .connection()
            .post("/accounts/alice/ilp", "alice-http", &prepare);
        assert_eq!(answer.expect("an answer").status, 200);
    };
    pay(100);
    assert_eq!(world.money("alice"), (-100, 0));
    assert_eq!(world.bring(&id, "a", &quantity("1500", "10")).0, 201);
    eventually("50 are paid ahead", || (world.money("alice") == (50, 50)).then_some(()));
    pay(50);
    eventually("they are used", || (world.money("alice") == (0, 0)).then_some(()));
    let change = |body: Value| {
        let answer = api.call("PUT", "/accounts/alice", Some(&body));
        (
            answer.status,
            answer.json()["code"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (in_use, done) = ((409, "asset_in_use".to_owned()), (200, String::new()));
    assert_eq!(change(json!({ "asset_scale": 8 })), done, "nothing is left over");
    assert_eq!(world.bring(&id, "b", &quantity("3", "9")).0, 201);
    assert_eq!(world.money("alice"), (0, 0), "0.3 units");
    for other in [json!({ "asset_scale": 9 }), json!({ "asset_code": "XYZ" })] {
        assert_eq!(change(other), in_use);
    }
    // What the asset has nothing to do with may change.
    assert_eq!(change(json!({ "settle_to": 5, "min_balance": -1000 })), done);
    assert_eq!(world.bring(&id, "c", &quantity("7", "9")).0, 201);
    eventually("it is whole", || (world.money("alice") == (1, 1)).then_some(()));
    assert_eq!(change(json!({ "asset_scale": 9 })), in_use, "there is a balance now");
    pay(1);
    eventually("it is used", || (world.money("alice") == (0, 0)).then_some(()));
    assert_eq!(change(json!({ "asset_scale": 9 })), done);
    // What is below one unit does not keep an account.
    assert_eq!(world.bring(&id, "d", &quantity("3", "10")).0, 201);
    api.ok("DELETE", "/accounts/alice", None);
    let (status, answer) = world.bring(&id, "a", &quantity("1500", "10"));
    assert_eq!(status, 404, "{answer}");
    api.audit();
}

/// Messages are as long as a packet's data, to the byte.
#[test]
fn messages_have_a_length() {
    let world = World::start();
    let id = world.add("alice");
    let rule = Rule::fulfill();
    let _alice = BtpPeer::connect(world.node.address(), "alice", rule.clone());
    let target = format!("/accounts/{id}/messages");
    for (bytes, status) in [(0, 201), (32_767, 201), (32_768, 413), (4 << 20, 413)] {
        let mut connection = Connection::open(world.node.settlement_address());
        let answer = connection.request("POST", &target, &[], &vec![7; bytes]);
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, status, "{bytes}");
        if status == 201 {
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
            let received = rule.received();
            let last = received.last().expect("a Prepare");
            assert_eq!(
                (last.destination.as_str(), last.data.len()),
                ("peer.settle", bytes),
                "handed on"
            );
        } else {
            assert_eq!(answer.json()["code"], "payload_too_large");
        }
    }
    assert!(world.engine.messages().is_empty(), "they went to the peer's");
}

/// On both ports: a token that is wrong counts, also when it comes with a body that only the right one may send; and once
/// too many were wrong even the right one is not told from them.
#[test]
fn guessing_with_large_bodies_is_guessing() {
    const TOKEN: &str = "token-of-the-engines";
    const LARGE: usize = 64 * 1024 + 1;
    let node = Node::start_with(Options {
        arguments: vec!["--settlement_api_token".to_owned(), TOKEN.to_owned()],
        ..Options::default()
    });
    let message = "/accounts/5f0c7a52-0000-4000-8000-2b6c1d9e8f10/messages";
    // Blanks behind it make a small map a large body.
    let map = format!("{{}}{}", " ".repeat(LARGE)).into_bytes();
    for (number, (address, method, target, right, body, taken)) in [
        (node.settlement_address(), "POST", message, TOKEN, vec![7; LARGE], 404),
        (node.address(), "PUT", "/rates", ADMIN_TOKEN, map, 200),
    ]
    .into_iter()
    .enumerate()
    {
        let ask = |source: Ipv4Addr, token: Option<&str>| {
            let authorization = token.map(|token| format!("Bearer {token}"));
            let headers: Vec<_> = authorization
                .iter()
                .map(|value| ("authorization", value.as_str()))
                .collect();
            let mut connection = Connection::open_from(source, address);
            // The node may end the connection before all of it is sent.
            let _ = connection.send(&request_bytes(method, target, &headers, &body));
            connection.answer().map_or(413, |answer| answer.status)
        };
        let source = |last: u8| Ipv4Addr::new(127, 1, number as u8, last);
        assert_eq!(ask(source(1), Some(right)), taken, "{target}");
        // Who names no secret guesses none.
        for _ in 0..20 {
            assert_eq!(ask(source(1), None), 413, "{target}");
        }
        assert_eq!(ask(source(1), Some(right)), taken, "{target}: nobody has guessed");
        for guess in 0..20 {
            assert_eq!(ask(source(1), Some(&format!("guess-{guess}"))), 413, "{target}");
        }
        // Unless the fifth of a second from which on one may try again ends between two calls.
        eventually("a hit is not told", || {
            assert_eq!(ask(source(1), Some("another guess")), 413, "{target}");
            (ask(source(1), Some(right)) == 413).then_some(())
        });
        assert_eq!(ask(source(2), Some(right)), taken, "{target}: others do not notice");
        eventually("the guesser may try again", || {
            (ask(source(1), Some(right)) == taken).then_some(())
        });
    }
    assert_eq!(node.api().get("/rates"), json!({}));
}

/// Requests that mean to reach an account by another way than its path, or to be taken for others.
#[test]
fn tricks_with_requests_credit_nobody() {
    let world = World::start();
    let id = world.add("alice");
    let body = quantity("\"7\"", "9");
    let ask = |method: &str, target: &str, key: &str| {
        let mut connection = Connection::open(world.node.settlement_address());
        let headers = [("idempotency-key", key)];
        let answer = connection.request(method, target, &headers, body.as_bytes());
        answer.expect("an answer").status
    };
    for (method, target, expected) in [
        ("POST", format!("/accounts/{id}%2fsettlements"), 404),
        ("POST", format!("/accounts/{id}/settlements%2f"), 404),
        ("POST", format!("/accounts/{id}/settlements/."), 404),
        ("POST", format!("/accounts/{id}/./settlements"), 404),
        ("POST", format!("/accounts/x/../{id}/settlements"), 404),
        ("POST", format!("//accounts/{id}/settlements"), 404),
        ("POST", format!("/accounts//{id}/settlements"), 404),
        ("POST", format!("/accounts/{id}//settlements"), 404),
        ("POST", format!("/accounts/{id}/settlements//"), 404),
        ("POST", format!("/accounts/{id}/SETTLEMENTS"), 404),
        ("POST", format!("/Accounts/{id}/settlements"), 404),
        ("POST", format!("/accounts/{id}/settlements."), 404),
        ("POST", format!("/accounts/{id}/settlements;x=1"), 404),
        ("POST", format!("/accounts/{id}?/settlements"), 404),
        ("POST", format!("/accounts/{id}./settlements"), 400),
        ("POST", format!("/accounts/%20{id}/settlements"), 400),
        ("POST", "/accounts//settlements".to_owned(), 400),
        ("POST", "/accounts/alice/settlements".to_owned(), 400),
        ("GET", format!("/accounts/{id}/settlements"), 405),
        ("PUT", format!("/accounts/{id}/settlements"), 405),
        ("DELETE", format!("/accounts/{id}/settlements"), 405),
        ("post", format!("/accounts/{id}/settlements"), 405),
        ("OPTIONS", format!("/accounts/{id}/settlements"), 204),
    ] {
        assert_eq!(ask(method, &target, "key"), expected, "{method} {target}");
    }
    world.expect_credited("alice", 0);

    // Two lengths, a length and chunks, a chunk too long: what is behind them is no request of its own.
    let hidden = format!(
        "POST /accounts/{id}/settlements HTTP/1.1\r\nhost: hub\r\nidempotency-key: hidden\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for framing in [
        "content-length: 0\r\ncontent-length: 500\r\n\r\n",
        "content-length: 0, 500\r\n\r\n",
        "content-length: +0\r\n\r\n",
        "content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "transfer-encoding: xchunked\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n-0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
        "content-length : 0\r\n\r\n",
    ] {
        let mut connection = Connection::open(world.node.settlement_address());
        let head = format!("POST /accounts/{id}/messages HTTP/1.1\r\nhost: hub\r\n{framing}{hidden}");
        let _ = connection.send(head.as_bytes());
        let status = connection.answer().map(|answer| answer.status);
        assert!(
            matches!(status, Ok(400 | 411 | 413 | 501) | Err(_)),
            "{framing:?}: {status:?}"
        );
        assert!(connection.is_closed_within(Duration::from_secs(5)), "{framing:?}");
    }
    world.expect_credited("alice", 0);

    // Many one behind the other, and nobody who waits for the answers: each is credited once, however often it comes.
    let mut sent = Vec::new();
    for number in 0..20 {
        sent.extend_from_slice(hidden.replace("hidden", &format!("row-{number}")).as_bytes());
    }
    for _ in 0..3 {
        let mut connection = Connection::open(world.node.settlement_address());
        connection.send(&sent).expect("they are sent");
        assert_eq!(connection.answer().expect("an answer").status, 201);
    }
    let mut connection = Connection::open(world.node.settlement_address());
    connection.send(&sent).expect("they are sent");
    for _ in 0..20 {
        assert_eq!(connection.answer().expect("an answer").status, 201);
    }
    world.expect_credited("alice", 140);
    world.node.api().audit();
}
