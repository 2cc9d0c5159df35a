//! The port of settlement engines: what is served there and nowhere else, what is not, and that it keeps the limits of the
//! other port.

mod support;

use serde_json::json;
use support::http::{Connection, HttpAnswer, chunked, request_bytes};
use support::node::{ADMIN_TOKEN, Node, Options};
use support::packet::Prepare;
use support::raw_websocket::UPGRADE;

const LARGE: usize = 4 * 1024 * 1024;
const SMALL: usize = 64 * 1024;
const MESSAGES: &str = "/accounts/5f0c7a52-0000-4000-8000-2b6c1d9e8f10/messages";
const SETTLEMENTS: &str = "/accounts/5f0c7a52-0000-4000-8000-2b6c1d9e8f10/settlements";

fn expect_problem(what: &str, answer: &HttpAnswer, status: u16, code: &str) {
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, status, "{what}: {text}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json"),
        "{what}"
    );
    assert_eq!(answer.json()["code"], code, "{what}");
}

#[test]
fn each_port_serves_its_own() {
    let node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    let admin = format!("Bearer {ADMIN_TOKEN}");
    let admin = [("authorization", admin.as_str())];
    let mut engine = Connection::open(node.settlement_address());
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/accounts"),
        ("POST", "/accounts"),
        ("GET", "/accounts/alice"),
        ("GET", "/accounts/alice/balance"),
        ("GET", "/accounts/alice/spsp"),
        ("GET", "/.well-known/pay"),
        ("GET", "/routes"),
        ("PUT", "/rates"),
        ("PUT", "/settlement/engines"),
        ("OPTIONS", "/accounts"),
        ("GET", "/ilp/btp"),
        ("POST", "/ilp"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing?x=1"),
    ] {
        let answer = engine.request(method, target, &admin, b"").expect("an answer");
        expect_problem(&format!("{method} {target}"), &answer, 404, "not_found");
    }
    // A packet that the other port takes.
    let prepare = Prepare::new("test.hub.alice", 0);
    let answer = engine.post("/accounts/alice/ilp", "alice-http", &prepare);
    expect_problem("a packet", &answer.expect("an answer"), 404, "not_found");
    let answer = node.connection().post("/accounts/alice/ilp", "alice-http", &prepare);
    assert_eq!(answer.expect("an answer").status, 200);
    // It does not become a WebSocket, and goes on as HTTP.
    let answer = engine
        .request("GET", "/accounts/alice/ilp/btp", &UPGRADE, b"")
        .expect("an answer");
    expect_problem("BTP", &answer, 404, "not_found");
    let answer = engine.request("GET", "/", &[], b"").expect("an answer");
    expect_problem("the next request", &answer, 404, "not_found");

    // What engines call is nothing that is open to them on the other port.
    for target in [SETTLEMENTS, MESSAGES] {
        let body = br#"{"amount":"1","scale":9}"#;
        let headers = [("idempotency-key", "1")];
        let answer = node.connection().request("POST", target, &headers, body);
        let status = answer.expect("an answer").status;
        assert!(matches!(status, 401 | 404), "{target}: {status}");
    }
    assert_eq!(node.api().balance("alice"), 0);
}

#[test]
fn the_limits_are_those_of_the_other_port_and_messages_may_be_longer() {
    const TOKEN: &str = "token-of-the-engines";
    let open = Node::start();
    let guarded = Node::start_with(Options {
        arguments: vec!["--settlement_api_token".to_owned(), TOKEN.to_owned()],
        ..Options::default()
    });
    let call = |node: &Node, target: &str, token: &str, bytes: usize| {
        let authorization = format!("Bearer {token}");
        let mut headers = vec![("content-type", "application/octet-stream")];
        if !token.is_empty() {
            headers.push(("authorization", authorization.as_str()));
        }
        let mut connection = Connection::open(node.settlement_address());
        // An early refusal may end the connection before all of it is sent.
        let request = request_bytes("POST", target, &headers, &vec![7; bytes]);
        let _ = connection.send(&request);
        connection.answer().map(|answer| answer.status).unwrap_or(413)
    };
    // Nobody has this id: what is not too large is not found, or not let in.
    for (node, target, token, bytes, expected) in [
        (&open, MESSAGES, "", LARGE, &[404][..]),
        (&open, MESSAGES, "", LARGE + 1, &[413]),
        (&open, &format!("{MESSAGES}/"), "", LARGE, &[404]),
        (&open, SETTLEMENTS, "", SMALL + 1, &[413]),
        (&open, "/rates", ADMIN_TOKEN, SMALL + 1, &[413]),
        (&guarded, MESSAGES, TOKEN, LARGE, &[404]),
        (&guarded, MESSAGES, TOKEN, LARGE + 1, &[413]),
        (&guarded, MESSAGES, "", SMALL + 1, &[413]),
        (&guarded, MESSAGES, "another", SMALL + 1, &[413]),
        (&guarded, MESSAGES, ADMIN_TOKEN, SMALL + 1, &[413]),
        (&guarded, MESSAGES, "", SMALL, &[401, 404]),
    ] {
        let status = call(node, target, token, bytes);
        assert!(expected.contains(&status), "{target} {token:?} {bytes}: {status}");
    }
    // A chunked body counts alike.
    let mut connection = Connection::open(open.settlement_address());
    let head = format!("POST {MESSAGES} HTTP/1.1\r\nhost: hub\r\ntransfer-encoding: chunked\r\n\r\n");
    let body = chunked(&vec![7; 2 * SMALL], 10_000);
    connection.send(&[head.as_bytes(), &body].concat()).expect("it is sent");
    expect_problem(
        "chunked",
        &connection.answer().expect("an answer"),
        404,
        "account_not_found",
    );
    // Heads, and requests one behind the other.
    let mut connection = Connection::open(open.settlement_address());
    connection
        .send(b"GET / HTTP/1.1\r\nhost: hub\r\n\r\n".repeat(50).as_slice())
        .expect("they are sent");
    for _ in 0..50 {
        expect_problem("in a row", &connection.answer().expect("an answer"), 404, "not_found");
    }
    let long = "x".repeat(20_000);
    let answer = connection.request("GET", "/", &[("long", long.as_str())], b"");
    expect_problem(
        "a long head",
        &answer.expect("an answer"),
        431,
        "request_header_fields_too_large",
    );
    let mut connection = Connection::open(open.settlement_address());
    connection.send(b"what?\r\n\r\n").expect("it is sent");
    expect_problem("no HTTP", &connection.answer().expect("an answer"), 400, "bad_request");
}
