//! Payments that our own holders make, between real nodes: by payment pointer, over BTP and over HTTP, with other assets
//! on the way, and everything that can go wrong with them. After each the books add up.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::eventually;
use support::http::{Api, Connection, HttpAnswer, whole};
use support::http_peer::HttpPeer;
use support::node::{Node, Options, expect_balance};
use support::random::Random;
use support::rule::{Answer, Rule};

/// A payment may have ten thousand packets, on a machine that is busy with other tests.
const PAYMENT_LIMIT: Duration = Duration::from_secs(60);

fn node(ilp_address: &str, arguments: &[&str]) -> Node {
    Node::start_with(Options {
        ilp_address: ilp_address.to_owned(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        ..Options::default()
    })
}

fn spsp(node: &Node, username: &str) -> String {
    format!("http://{}/accounts/{username}/spsp", node.address())
}

fn holder(node: &Node, username: &str) -> Api {
    Api {
        address: node.address(),
        token: format!("{username}:{username}-http"),
    }
}

/// One call of a holder, with or without a key.
fn call(node: &Node, username: &str, path: &str, key: Option<&str>, body: &Value) -> HttpAnswer {
    let mut connection = Connection::open(node.address());
    connection.set_read_timeout(PAYMENT_LIMIT);
    let authorization = format!("Bearer {username}-http");
    let mut headers = vec![("Authorization", authorization.as_str())];
    headers.extend(key.map(|key| ("Idempotency-Key", key)));
    let target = format!("/accounts/{username}/{path}");
    connection
        .request("POST", &target, &headers, body.to_string().as_bytes())
        .expect("every call is answered")
}

fn pay(node: &Node, username: &str, body: &Value) -> HttpAnswer {
    call(node, username, "payments", None, body)
}

fn send(receiver: &str, amount: u64) -> Value {
    json!({"receiver": receiver, "source_amount": amount})
}

/// The body of an answer with this status.
fn expect(answer: &HttpAnswer, status: u16) -> Value {
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, status, "{text}");
    answer.json()
}

/// The problem of a payment that did not complete.
fn expect_problem(answer: &HttpAnswer, status: u16, code: &str) -> Value {
    let problem = expect(answer, status);
    assert_eq!(problem["code"], code, "{problem}");
    problem
}

/// Two neighbours, each with an account for the other in this asset, and routes to each other.
fn connect(a: &Node, b: &Node, names: (&str, &str), addresses: (&str, &str), asset: (&str, u8), over_btp: bool) {
    let (name_a, name_b) = names;
    let account = |ilp_address: &str| {
        json!({
            "ilp_address": ilp_address,
            "asset_code": asset.0,
            "asset_scale": asset.1,
            "routing_relation": "Peer",
        })
    };
    let mut at_b = account(addresses.0);
    if !over_btp {
        at_b["ilp_over_http_url"] = format!("http://{}/accounts/{name_b}/ilp", a.address()).into();
        at_b["ilp_over_http_outgoing_token"] = format!("{name_b}-http").into();
    }
    b.add_account(name_a, &at_b);
    let mut at_a = account(addresses.1);
    if over_btp {
        at_a["ilp_over_btp_url"] = format!("btp+ws://{}/accounts/{name_a}/ilp/btp", b.address()).into();
        at_a["ilp_over_btp_outgoing_token"] = format!("{name_a}-btp").into();
    } else {
        at_a["ilp_over_http_url"] = format!("http://{}/accounts/{name_a}/ilp", b.address()).into();
        at_a["ilp_over_http_outgoing_token"] = format!("{name_a}-http").into();
    }
    a.add_account(name_b, &at_a);
    if over_btp {
        eventually("the link is up", || {
            let account = a.api().get(&format!("/accounts/{name_b}"));
            (account["links"]["btp"] == "connected").then_some(())
        });
    }
}

fn fix_route(node: &Node, prefix: &str, username: &str) {
    let answer = node
        .api()
        .call("PUT", &format!("/routes/static/{prefix}"), Some(&json!(username)));
    assert_eq!(answer.status, 200);
}

/// A server where a payment pointer may lead: the same answer for everybody.
fn serve(answer: impl Fn(SocketAddr) -> Vec<u8> + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            counter.fetch_add(1, Ordering::SeqCst);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                head.push(byte[0]);
            }
            // The client may have enough before we have said everything.
            let _ = stream.write_all(&answer(address));
        }
    });
    (address, asked)
}

fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// Where to pay: at this address.
fn directions_to(destination: &str) -> Vec<u8> {
    let body = json!({
        "destination_account": destination,
        "shared_secret": "6jR5iNIVRvqeasJeCty6C+YB5X9FhSOUPCL/5nha5Vs=",
    });
    http("200 OK", "content-type: application/spsp4+json\r\n", &body.to_string())
}

#[test]
fn between_two_accounts_of_one_node() {
    let node = node("test.hub", &["--exchange_rate.spread", "0.01"]);
    node.add_account("alice", &json!({"max_packet_amount": 100}));
    node.add_account("bob", &json!({}));
    node.add_account("carol", &json!({"asset_code": "XYZ", "asset_scale": 6}));
    node.add_account("dave", &json!({}));
    node.api().put("/rates", &json!({"ABC": 1.0, "XYZ": 2.0}));
    let mut total = 0;
    for amount in [1, 100, 1_000_000] {
        let begun = Instant::now();
        let paid = expect(&pay(&node, "alice", &send(&spsp(&node, "bob"), amount)), 200);
        println!("{amount} units in packets of 100: {:?}", begun.elapsed());
        total += i128::from(amount);
        for name in ["sent_amount", "source_amount", "delivered_amount"] {
            assert_eq!(paid[name], amount, "{paid}");
        }
        assert_eq!(
            (&paid["in_flight_amount"], &paid["destination_asset_code"]),
            (&json!(0), &json!("ABC"))
        );
        assert_eq!(paid["from"], "test.hub.alice");
        assert!(paid["to"].as_str().unwrap().starts_with("test.hub.bob."), "{paid}");
        expect_balance(&node.api(), "alice", -total);
        expect_balance(&node.api(), "bob", total);
    }
    // 10^6 at scale 9 are 1000 at scale 6, half of that in the other asset, and the node keeps one percent.
    let paid = expect(&pay(&node, "dave", &send(&spsp(&node, "carol"), 1_000_000)), 200);
    assert_eq!(
        (&paid["sent_amount"], &paid["delivered_amount"]),
        (&json!(1_000_000), &json!(495))
    );
    assert_eq!(
        (&paid["delivered_asset_code"], &paid["delivered_asset_scale"]),
        (&json!("XYZ"), &json!(6))
    );
    expect_balance(&node.api(), "carol", 495);
    // So much shall arrive, for at most so much.
    let fixed = |more: Value| {
        let mut body = json!({"receiver": spsp(&node, "carol"), "destination_amount": "99"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pay(&node, "dave", &body)
    };
    let paid = expect(&fixed(json!({"source_amount": 300_000})), 200);
    assert!(paid["delivered_amount"].as_u64().unwrap() >= 99, "{paid}");
    assert!(paid["sent_amount"].as_u64().unwrap() <= 300_000, "{paid}");
    let problem = expect_problem(
        &fixed(json!({"source_amount": 100_000})),
        502,
        "source_amount_too_small",
    );
    assert_eq!(problem["payment"]["sent_amount"], 0);
    node.api().audit();
}

/// By its address the node knows itself; by a name it asks as it would ask anybody.
#[test]
fn the_own_server_answers_alike_with_and_without_a_connection() {
    let node = node("test.hub", &["--default_spsp_account", "bob"]);
    for username in ["alice", "bob"] {
        node.add_account(username, &json!({}));
    }
    let port = node.address().port();
    let ask = |host: &str, path: &str, calls: &str| {
        let answer = call(
            &node,
            "alice",
            calls,
            None,
            &send(&format!("http://{host}:{port}{path}"), 100),
        );
        let mut body = answer.json();
        let at = if body["payment"].is_null() {
            "/to"
        } else {
            "/payment/to"
        };
        if let Some(to) = body.pointer_mut(at).filter(|to| to.is_string()) {
            // The token is another one each time.
            *to = to.as_str().unwrap().rsplit_once('.').unwrap().0.into();
        }
        let told = [
            "to",
            "sent_amount",
            "delivered_amount",
            "state",
            "code",
            "detail",
            "source_amount",
        ];
        (
            answer.status,
            told.map(|name| body[name].clone()),
            body["payment"]["to"].clone(),
        )
    };
    for (path, status) in [
        ("/accounts/bob/spsp", 200),
        ("/accounts/%42ob/spsp/", 200),
        ("", 200),
        ("/accounts/nobody/spsp", 502),
        ("/accounts/bob", 502),
        ("/nothing", 502),
    ] {
        for calls in ["payments", "quotes"] {
            let without = ask("127.0.0.1", path, calls);
            assert_eq!(without.0, status, "{path}: {without:?}");
            assert_eq!(without, ask("localhost", path, calls), "{path}");
        }
    }
    expect_balance(&node.api(), "bob", 600);
    node.api().audit();
}

#[test]
fn a_quote_moves_nothing() {
    let node = node("test.hub", &["--exchange_rate.spread", "0.01"]);
    node.add_account("alice", &json!({"max_packet_amount": 1_000_000}));
    node.add_account("carol", &json!({"asset_code": "XYZ", "asset_scale": 6}));
    node.api().put("/rates", &json!({"ABC": 1.0, "XYZ": 2.0}));
    let answer = call(&node, "alice", "quotes", None, &send(&spsp(&node, "carol"), 10_000_000));
    let quote = expect(&answer, 200);
    assert_eq!(quote["source_amount"], 10_000_000, "{quote}");
    assert_eq!(quote["max_packet_amount"], 1_000_000, "{quote}");
    let delivered = quote["delivered_amount"].as_u64().unwrap();
    let least = quote["min_delivered_amount"].as_u64().unwrap();
    assert!(
        (4_900..=4_950).contains(&delivered) && least <= delivered && least >= 4_800,
        "{quote}"
    );
    assert_eq!(
        (&quote["destination_asset_code"], &quote["destination_asset_scale"]),
        (&json!("XYZ"), &json!(6))
    );
    for name in ["alice", "carol"] {
        assert_eq!((node.api().balance(name), node.api().held(name)), (0, 0));
    }
    assert_eq!(holder(&node, "alice").get("/accounts/alice/payments"), json!([]));
    let answer = call(&node, "alice", "quotes", None, &send(&spsp(&node, "nobody"), 1));
    expect_problem(&answer, 502, "receiver_unreachable");
    node.api().audit();
}

#[test]
fn between_nodes() {
    for over_btp in [true, false] {
        let (a, b) = (node("test.a", &[]), node("test.b", &[]));
        connect(&a, &b, ("node_a", "node_b"), ("test.a", "test.b"), ("ABC", 9), over_btp);
        a.add_account("alice", &json!({}));
        b.add_account("bob", &json!({"max_packet_amount": 1_000}));
        let paid = expect(&pay(&a, "alice", &send(&spsp(&b, "bob"), 50_000)), 200);
        assert_eq!(paid["delivered_amount"], 50_000, "{paid}");
        expect_balance(&a.api(), "node_b", 50_000);
        expect_balance(&b.api(), "node_a", -50_000);
        expect_balance(&b.api(), "bob", 50_000);
        let problem = expect_problem(
            &pay(&a, "alice", &send(&spsp(&b, "nobody"), 5)),
            502,
            "receiver_unreachable",
        );
        assert!(problem["detail"].as_str().unwrap().contains("404"), "{problem}");
        a.api().audit();
        b.api().audit();
    }
}

#[test]
fn through_three_nodes_with_three_assets() {
    let (a, b, c) = (
        node("test.a", &[]),
        node("test.b", &["--exchange_rate.spread", "0.2"]),
        node("test.c", &[]),
    );
    connect(&a, &b, ("node_a", "node_b"), ("test.a", "test.b"), ("ABC", 9), true);
    connect(&b, &c, ("node_b", "node_c"), ("test.b", "test.c"), ("XYZ", 6), false);
    fix_route(&a, "test.c", "node_b");
    fix_route(&c, "test.a", "node_b");
    a.add_account("alice", &json!({}));
    c.add_account("carol", &json!({"asset_code": "QQQ", "asset_scale": 4}));
    for node in [&a, &b, &c] {
        node.api().put("/rates", &json!({"ABC": 1.0, "XYZ": 2.0, "QQQ": 0.5}));
    }
    // 10^9 are one ABC; b makes 0.4 XYZ of it, c 1.6 QQQ. The sender's node counts on 2.
    let body =
        |slippage: &str| json!({"receiver": spsp(&c, "carol"), "source_amount": 1_000_000_000, "slippage": slippage});
    let problem = expect_problem(&pay(&a, "alice", &body("0.1")), 502, "rate_too_low");
    assert_eq!(problem["payment"]["sent_amount"], 0, "{problem}");
    assert_eq!(a.api().balance("alice"), 0);
    let paid = expect(&pay(&a, "alice", &body("0.21")), 200);
    assert_eq!(
        (&paid["sent_amount"], &paid["delivered_amount"]),
        (&json!(1_000_000_000), &json!(16_000)),
        "{paid}"
    );
    expect_balance(&c.api(), "carol", 16_000);
    for node in [&a, &b, &c] {
        node.api().audit();
    }
}

#[test]
fn what_can_go_wrong() {
    let node = node("test.hub", &[]);
    node.add_account("alice", &json!({}));
    node.add_account("poor", &json!({"min_balance": 0}));
    node.add_account("limited", &json!({"min_balance": -250, "max_packet_amount": 100}));
    node.add_account("bob", &json!({}));
    let stalls = HttpPeer::start(Rule::always(Answer::Nothing));
    node.add_account(
        "stalls",
        &json!({"ilp_over_http_url": stalls.url(), "ilp_over_http_outgoing_token": "t"}),
    );

    let (nowhere, _) = serve(|_| directions_to("test.elsewhere.bob"));
    let answer = pay(&node, "alice", &send(&format!("http://{nowhere}/"), 100));
    let problem = expect_problem(&answer, 502, "rejected");
    assert_eq!(
        (&problem["ilp_code"], &problem["payment"]["to"]),
        (&json!("F02"), &json!("test.elsewhere.bob"))
    );

    let begun = Instant::now();
    let problem = expect_problem(
        &pay(&node, "poor", &send(&spsp(&node, "bob"), 100)),
        502,
        "insufficient_balance",
    );
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "at once, not after half a minute"
    );
    assert!(
        problem["detail"].as_str().unwrap().contains("nothing was sent"),
        "{problem}"
    );
    let listed = holder(&node, "poor").get("/accounts/poor/payments");
    assert_eq!(
        (&listed[0]["state"], &listed[0]["code"]),
        (&json!("failed"), &json!("insufficient_balance"))
    );

    // What arrived before the money was gone is told.
    let problem = expect_problem(
        &pay(&node, "limited", &send(&spsp(&node, "bob"), 1_000)),
        502,
        "insufficient_balance",
    );
    let sent = whole(&problem["payment"]["sent_amount"]);
    assert!((100..=250).contains(&sent), "{problem}");
    assert_eq!(whole(&problem["payment"]["delivered_amount"]), sent);
    expect_balance(&node.api(), "limited", -sent);
    expect_balance(&node.api(), "bob", sent);

    let (slow, _) = serve(|_| directions_to("test.hub.stalls.token"));
    let body = json!({"receiver": format!("http://{slow}/"), "source_amount": 7, "timeout_ms": 300});
    let begun = Instant::now();
    let problem = expect_problem(&pay(&node, "alice", &body), 504, "timeout");
    assert!((300..5_000).contains(&begun.elapsed().as_millis()), "{problem}");
    assert_eq!(node.api().balance("alice"), 0);

    // An account that is deleted takes its payments along.
    let receiver = format!("http://{slow}/");
    let paying = std::thread::scope(|scope| {
        let paying = scope.spawn(|| pay(&node, "poor", &send(&receiver, 7)));
        eventually("the payment is open", || {
            let listed = holder(&node, "poor").get("/accounts/poor/payments");
            (listed[0]["state"] == "sending").then_some(())
        });
        let deleted = node.api().call("DELETE", "/accounts/poor", None);
        assert_eq!(deleted.status, 200, "{}", String::from_utf8_lossy(&deleted.body));
        paying.join().unwrap()
    });
    expect_problem(&paying, 502, "cancelled");
    node.api().audit();
}

#[test]
fn pointers_that_mean_harm() {
    let node = node("test.hub", &[]);
    node.add_account("alice", &json!({}));
    const SPSP: &str = "content-type: application/spsp4+json\r\n";
    let servers = [
        serve(|me| http("302 Found", &format!("location: http://{me}/again\r\n"), "")).0,
        serve(|_| http("200 OK", SPSP, &format!("{{\"x\":\"{}\"}}", "a".repeat(2_000_000)))).0,
        serve(|_| http("200 OK", "content-type: text/html\r\n", "{}")).0,
        serve(|_| http("200 OK", SPSP, "{}")).0,
        serve(|_| Vec::new()).0,
        serve(|_| directions_to("test.hub.alice..x")).0,
    ];
    for server in servers {
        let problem = expect_problem(
            &pay(&node, "alice", &send(&format!("http://{server}/x"), 5)),
            502,
            "receiver_unreachable",
        );
        assert!(
            problem["detail"].as_str().unwrap().ends_with("; nothing was sent"),
            "{problem}"
        );
    }
    for receiver in ["bob", "", "ftp://x/", "$u:p@example.com", "http://127.0.0.1:1/#x"] {
        expect_problem(&pay(&node, "alice", &send(receiver, 5)), 400, "invalid_receiver");
    }

    let strict = self::node("test.hub", &["--allow_private_urls", "false"]);
    strict.add_account("alice", &json!({}));
    let (private, asked) = serve(|_| directions_to("test.hub.alice.x"));
    let port = private.port();
    for receiver in [
        format!("http://127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://localhost:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        "http://example.com/".to_owned(),
        "https://169.254.169.254/latest".to_owned(),
    ] {
        expect_problem(&pay(&strict, "alice", &send(&receiver, 5)), 400, "receiver_not_allowed");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "nobody was asked");
}

#[test]
fn one_key_pays_once_across_restarts() {
    let mut node = node("test.hub", &[]);
    node.add_account("alice", &json!({"min_balance": -1_000}));
    node.add_account("bob", &json!({}));
    // The receiver is another text after a restart, as the port is; so the pointer leads through a server of ours.
    let target = Arc::new(std::sync::Mutex::new(spsp(&node, "bob")));
    let shown = Arc::clone(&target);
    let (server, _) = serve(move |_| http("302 Found", &format!("location: {}\r\n", shown.lock().unwrap()), ""));
    let receiver = format!("http://{server}/");
    let ask = |node: &Node, key: &str, amount| call(node, "alice", "payments", Some(key), &send(&receiver, amount));
    let paid = ask(&node, "first", 500);
    let failed = ask(&node, "second", 5_000);
    expect(&paid, 200);
    expect_problem(&failed, 502, "insufficient_balance");
    let sent = 500 + whole(&failed.json()["payment"]["sent_amount"]);
    for _ in 0..2 {
        for (key, amount, first) in [("first", 500, &paid), ("second", 5_000, &failed)] {
            let again = ask(&node, key, amount);
            assert_eq!((again.status, &again.body), (first.status, &first.body));
            expect_problem(&ask(&node, key, amount + 1), 409, "idempotency_conflict");
        }
        node.terminate();
        assert!(node.exit_status_within(PAYMENT_LIMIT).success());
        node.run();
        *target.lock().unwrap() = spsp(&node, "bob");
    }
    expect_balance(&node.api(), "alice", -sent);
    expect_balance(&node.api(), "bob", sent);

    // The list, in pages.
    let api = holder(&node, "alice");
    let mut found = Vec::new();
    let mut path = "/accounts/alice/payments?limit=1".to_owned();
    while found.len() < 3 {
        let answer = api.call("GET", &path, None);
        found.extend(
            expect(&answer, 200)
                .as_array()
                .unwrap()
                .iter()
                .map(|payment| payment["source_amount"].clone()),
        );
        let Some(link) = answer.header("link") else { break };
        path = link.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned();
    }
    assert_eq!(found, [json!(5_000), json!(500)], "the newest first");
    node.api().audit();
}

#[test]
fn killed_in_the_middle_of_a_payment() {
    let mut random = Random::new("payments that are killed");
    let mut node = node("test.hub", &[]);
    node.add_account("alice", &json!({"max_packet_amount": 1}));
    node.add_account("bob", &json!({}));
    let mut total = 0;
    let mut interrupted = 0;
    for round in 0..4 {
        let key = format!("round-{round}");
        let body = send(&spsp(&node, "bob"), 1_000_000);
        let address = node.address();
        let (request_key, request_body) = (key.clone(), body.clone());
        let caller = std::thread::spawn(move || {
            let mut connection = Connection::open(address);
            let headers = [
                ("Authorization", "Bearer alice-http"),
                ("Idempotency-Key", &request_key),
            ];
            let _ = connection.request(
                "POST",
                "/accounts/alice/payments",
                &headers,
                request_body.to_string().as_bytes(),
            );
        });
        eventually("money moves", || (node.api().balance("alice") < -total).then_some(()));
        std::thread::sleep(Duration::from_millis(random.between(0, 150)));
        node.kill();
        caller.join().unwrap();
        node.run();
        let api = holder(&node, "alice");
        let listed = api.get("/accounts/alice/payments?limit=1");
        let sent = whole(&listed[0]["sent_amount"]);
        total += sent;
        println!("round {round}: {} of 1000000 sent, {}", sent, listed[0]["state"]);
        assert_eq!(node.api().balance("alice"), -total, "the record is what the book says");
        assert_eq!(node.api().balance("bob"), total);
        if listed[0]["state"] == "interrupted" {
            interrupted += 1;
            assert_eq!(listed[0]["delivered_amount"], Value::Null);
            let problem = expect_problem(&call(&node, "alice", "payments", Some(&key), &body), 502, "interrupted");
            assert_eq!(whole(&problem["payment"]["sent_amount"]), sent);
            assert_eq!(node.api().balance("alice"), -total, "it is not paid again");
        }
        node.api().audit();
    }
    assert!(interrupted > 0, "no round hit a payment: {total}");
}

#[test]
fn a_hundred_at_once() {
    let node = node("test.hub", &[]);
    node.add_account("alice", &json!({"max_packet_amount": 10}));
    node.add_account("bob", &json!({}));
    let receiver = spsp(&node, "bob");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| expect(&pay(&node, "alice", &send(&receiver, 100)), 200));
        }
    });
    println!("100 payments of 10 packets: {:?}", begun.elapsed());
    expect_balance(&node.api(), "alice", -10_000);
    expect_balance(&node.api(), "bob", 10_000);
    // The same key from all of them: one payment.
    let answers: Vec<HttpAnswer> = std::thread::scope(|scope| {
        let ask = || call(&node, "alice", "payments", Some("one"), &send(&receiver, 100));
        let calls: Vec<_> = (0..50).map(|_| scope.spawn(ask)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, &answers[0].body));
    }
    expect_balance(&node.api(), "alice", -10_100);
    let listed = holder(&node, "alice").get("/accounts/alice/payments?limit=1000");
    assert_eq!(listed.as_array().unwrap().len(), 101);
    node.api().audit();
}

#[test]
fn from_the_command_line() {
    let node = node("test.hub", &[]);
    node.add_account("alice", &json!({"min_balance": -100}));
    node.add_account("bob", &json!({}));
    let run = |amount: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_clearway"))
            .args(["pay", "alice", &spsp(&node, "bob"), amount])
            .args([
                "--node",
                &format!("http://{}", node.address()),
                "--auth",
                "alice:alice-http",
            ])
            .output()
            .expect("the binary can be run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (success, out, err) = run("60");
    assert!(success && err.is_empty(), "{out}{err}");
    assert!(out.contains("sent       60 units of ABC at scale 9"), "{out}");
    assert!(out.contains("delivered  60 units of ABC at scale 9"), "{out}");
    let (success, out, err) = run("1000");
    assert!(
        !success && out.contains("sent  ") && err.contains("the account may not owe so much"),
        "{out}{err}"
    );
    node.api().audit();
}

#[test]
fn a_stop_ends_payments_first() {
    let stalls = HttpPeer::start(Rule::always(Answer::Nothing));
    let mut node = node("test.hub", &[]);
    node.add_account("alice", &json!({}));
    node.add_account(
        "stalls",
        &json!({"ilp_over_http_url": stalls.url(), "ilp_over_http_outgoing_token": "t"}),
    );
    let (slow, _) = serve(|_| directions_to("test.hub.stalls.token"));
    let address = node.address();
    let body = send(&format!("http://{slow}/"), 7).to_string();
    let caller = std::thread::spawn(move || {
        let mut connection = Connection::open(address);
        connection.set_read_timeout(PAYMENT_LIMIT);
        let headers = [("Authorization", "Bearer alice-http")];
        connection.request("POST", "/accounts/alice/payments", &headers, body.as_bytes())
    });
    eventually("the payment is open", || {
        let listed = holder(&node, "alice").get("/accounts/alice/payments");
        (listed[0]["state"] == "sending").then_some(())
    });
    node.terminate();
    let answer = caller.join().unwrap().expect("it is answered before the node ends");
    expect_problem(&answer, 502, "interrupted");
    assert!(node.exit_status_within(PAYMENT_LIMIT).success());
    node.run();
    let listed = holder(&node, "alice").get("/accounts/alice/payments");
    assert_eq!(
        (&listed[0]["state"], &listed[0]["delivered_amount"]),
        (&json!("interrupted"), &json!(0))
    );
    node.api().audit();
}
