//! The API as callers see it, as tables: a call, who makes it, its body, and what must come back.
//!
//! The rows of one table share a node and follow each other. The node has a book and shards in memory
//! ([`crate::control::fake`]).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::control::Readiness;
use crate::control::fake::{FakeBook, FakeDirections, Node, PaymentDone, payment_end};
use crate::ledger::account::AccountId;
use crate::pipeline::LOCAL;
use crate::shard::control::{AccountState, Body, BodySource, PaymentEnd, PaymentOrder, Port, RefusedHere, Shards};
use crate::stream::ratio::Ratio;
use crate::stream::sender::{Bounds, Failure, Quote};
use crate::wire::base64;
use crate::wire::error_code::ErrorCode;

use super::*;

const ADMIN: &str = "the admin token";
const ADMIN_VALUE: &str = "Bearer the admin token";

/// A call, who makes it, the body, the status, and what the answer has to contain. The caller is `admin`, `-` for
/// nobody, or an `Authorization` value. A part that begins with `!` must not be there; one with `@` is a header,
/// `@name: value`.
type Row<'a> = (&'a str, &'a str, &'a str, u16, &'a [&'a str]);

impl Api {
    /// Answers one request, and waits if that takes longer.
    fn answered(&self, request: &ApiRequest) -> ApiResponse {
        let (sender, answer) = crossbeam::channel::bounded(1);
        let respond = move |response| sender.send(response).unwrap_or_default();
        self.handle(request, Responder::new(request, Box::new(respond)));
        answer.recv().expect("every call is answered")
    }
}

struct Caller {
    api: Api,
    node: Node,
    directions: Arc<FakeDirections>,
    calls: u32,
}

impl Caller {
    fn new() -> Self {
        Self::on(Node::new("example.hub"))
    }

    fn on(node: Node) -> Self {
        Self::with(node, |_| {})
    }

    /// A node whose operator has decided something about its API.
    fn with(node: Node, decide: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            admin_auth_token: ADMIN.into(),
            settlement_api_token: None,
            open_reads: true,
            balance_format: BalanceFormat::Integer,
            default_spsp_account: None,
            packet_rules: PacketRules {
                reflect: true,
                echo: true,
            },
            tokens: TokenMaker::new(&[9; 32]),
            change_log_filter: Arc::new(|text| match text {
                "" => Err("it is empty".to_owned()),
                _ => Ok(()),
            }),
        };
        decide(&mut settings);
        let directions = Arc::new(FakeDirections::default());
        let payments = Payments::start(Arc::clone(&node.control), Box::new(Arc::clone(&directions))).unwrap();
        Self {
            api: Api::new(Arc::clone(&node.control), payments, settings),
            node,
            directions,
            calls: 0,
        }
    }

    /// A request from an address of its own, so that failed attempts do not add up.
    fn request(&mut self, call: &str, caller: &str, body: &str) -> ApiRequest {
        self.calls += 1;
        let (method, target) = call.split_once(' ').unwrap();
        let mut headers = vec![("host".to_owned(), b"hub".to_vec())];
        match caller {
            "-" => {}
            "admin" => headers.push(("authorization".to_owned(), ADMIN_VALUE.into())),
            value => headers.push(("authorization".to_owned(), value.into())),
        }
        ApiRequest {
            port: Port::Api,
            method: method.to_owned(),
            target: target.to_owned(),
            headers,
            body: body.into(),
            peer: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + self.calls)),
            websocket_key: None,
        }
    }

    fn call(&mut self, call: &str, caller: &str, body: &str) -> (u16, String, Vec<(&'static str, String)>) {
        let request = self.request(call, caller, body);
        show(self.api.answered(&request))
    }

    fn check(&mut self, rows: &[Row<'_>]) {
        for (call, caller, body, status, parts) in rows {
            let (found, answer, headers) = self.call(call, caller, body);
            let row = format!("{call} by {caller} with {body:.200}: {found} {headers:?} {answer:.800}");
            assert_eq!(found, *status, "{row}");
            for part in *parts {
                if let Some(absent) = part.strip_prefix('!') {
                    assert!(!answer.contains(absent), "{absent} is in {row}");
                } else if let Some(header) = part.strip_prefix('@') {
                    let (name, value) = header.split_once(": ").unwrap();
                    assert!(
                        headers.iter().any(|(n, v)| *n == name && v == value),
                        "{header} is not in {row}"
                    );
                } else {
                    assert!(answer.contains(part), "{part} is not in {row}");
                }
            }
            if *status >= 400 && call.split(' ').nth(1) != Some("/") {
                assert!(answer.contains(&format!("\"status\":{status},\"code\":\"")), "{row}");
                assert!(answer.contains("\"datetime\":\"20"), "{row}");
            }
        }
    }

    fn id_of(&self, username: &str) -> AccountId {
        self.node.control.find_account(username).unwrap().id
    }
}

fn show(response: ApiResponse) -> (u16, String, Vec<(&'static str, String)>) {
    (
        response.status,
        String::from_utf8(response.body.into_bytes()).unwrap(),
        response.headers,
    )
}

const ALICE: &str =
    r#"{"username":"alice","asset_code":"abc","asset_scale":9,"ilp_over_http_incoming_token":"alice-pw"}"#;
const BOB: &str = r#"{"username":"bob","asset_code":"XYZ","asset_scale":"2","ilp_over_http_incoming_token":"bob:pw"}"#;

#[test]
fn creating_accounts() {
    let minimum = |name: &str| format!(r#"{{"username":"{name}","asset_code":"ABC","asset_scale":9}}"#);
    let plus = |name: &str, more: &str| format!(r#"{{"username":"{name}","asset_code":"ABC","asset_scale":9,{more}}}"#);
    let mut caller = Caller::new();
    caller.check(&[
        (
            "POST /accounts",
            "admin",
            ALICE,
            200,
            &[
                r#","username":"alice","ilp_address":"example.hub.alice","asset_code":"ABC","asset_scale":9,"max_packet_amount":18446744073709551615,"min_balance":null,"ilp_over_http_url":null,"ilp_over_http_incoming_token":"SECRET","ilp_over_http_outgoing_token":"SECRET","ilp_over_btp_url":null,"ilp_over_btp_incoming_token":"SECRET","ilp_over_btp_outgoing_token":"SECRET","settle_threshold":null,"settle_to":null,"routing_relation":"NonRoutingAccount","round_trip_time":500,"packets_per_minute_limit":null,"amount_per_minute_limit":null,"settlement_engine_url":null,"max_balance":null,"spread":0,"tokens_set":["ilp_over_http_incoming_token"],"links":{"http":null,"btp":null},"created_at":"20"#,
                "!alice-pw",
                "!warnings",
                "@content-type: application/json",
            ],
        ),
        ("POST /accounts", "admin", ALICE, 409, &[r#""code":"duplicate_username""#]),
        ("POST /accounts/", "admin", &minimum("ALICE"), 409, &[r#""title":"Provided resource already exists""#]),
        (
            "POST /accounts/",
            "admin",
            BOB,
            200,
            &[r#""asset_scale":2"#, "!bob:pw", "@content-type: application/json"],
        ),
        ("POST /accounts", "admin", &minimum("Carol"), 200, &[r#""username":"Carol","ilp_address":"example.hub.Carol""#]),
        ("POST /accounts", "admin", &minimum("d"), 400, &[r#"{"name":"username","type":"invalid"}"#]),
        ("POST /accounts", "admin", &minimum("d-d"), 400, &["username: may have letters"]),
        ("POST /accounts", "admin", &minimum(r"d\u0064"), 200, &[r#""username":"dd""#]),
        ("POST /accounts", "admin", &minimum("zoë"), 400, &[r#"{"name":"ilp_address","type":"invalid"}"#]),
        ("POST /accounts", "admin", &plus("zoë", r#""ilp_address":"example.zoe""#), 200, &["\"username\":\"zoë\""]),
        ("POST /accounts", "admin", &plus("ZOË", r#""ilp_address":"example.zoe2""#), 409, &["duplicate_username"]),
        ("POST /accounts", "admin", "{}", 400, &[
            r#""code":"json_data","detail":"username is missing; asset_code is missing; asset_scale is missing""#,
            r#""invalid-params":[{"name":"username","type":"missing"},"#,
        ]),
        ("POST /accounts", "admin", "", 400, &[r#""code":"json_eof""#]),
        ("POST /accounts", "admin", r#"{"username""#, 400, &["json_eof", "JSON Unexpected EOF"]),
        ("POST /accounts", "admin", "{username}", 400, &["json_syntax"]),
        ("POST /accounts", "admin", "[]", 400, &["json_data", "expected an object, found an array"]),
        ("POST /accounts", "admin", &plus("ee", r#""asset_scale":9"#), 400, &["asset_scale: this member is there twice"]),
        ("POST /accounts", "admin", &"[".repeat(33), 400, &["json_syntax", "deeper than 32"]),
        ("POST /accounts", "admin", &plus("ee", r#""colour":"red""#), 200, &[
            r#""warnings":[{"field":"colour","message":"is not known and was ignored"}]"#,
        ]),
        ("POST /accounts", "admin", &plus("ff", r#""min_balance":"-100","max_packet_amount":"7","max_balance":5"#), 200, &[
            r#""min_balance":-100"#, r#""max_packet_amount":7,"#, r#""max_balance":5,"#,
        ]),
        ("POST /accounts", "admin", &plus("gg", r#""min_balance":1.5"#), 400, &[r#"{"name":"min_balance","type":"invalid"}"#]),
        ("POST /accounts", "admin", &plus("gg", r#""max_packet_amount":-1"#), 400, &["out_of_range"]),
        ("POST /accounts", "admin", &plus("gg", r#""ilp_over_http_url":"http://u:p@h/""#), 400, &["!u:p"]),
        ("POST /accounts", "admin", &plus("gg", r#""ilp_over_http_incoming_token":"""#), 400, &["must not be empty"]),
        // Addresses.
        ("POST /accounts", "admin", &plus("gg", r#""ilp_address":"example.hub.alice""#), 409, &["duplicate_address"]),
        ("POST /accounts", "admin", &plus("gg", r#""ilp_address":"peer.settle""#), 400, &["ilp_address"]),
        ("POST /accounts", "admin", &plus("gg", r#""ilp_address":"g.other""#), 200, &[
            r#""warnings":[{"field":"ilp_address","message":"has another scheme"#,
        ]),
        ("POST /accounts", "admin", &plus("own", r#""ilp_address":"example.hub""#), 200, &[r#""ilp_address":"example.hub","#]),
        ("POST /accounts", "admin", &plus("own2", r#""ilp_address":"example.hub""#), 409, &["duplicate_address"]),
        // Two links to one neighbour, but no customer beside them.
        ("POST /accounts", "admin", &plus("n1", r#""ilp_address":"example.n","routing_relation":"peer""#), 200, &[
            r#""routing_relation":"Peer""#,
        ]),
        ("POST /accounts", "admin", &plus("n2", r#""ilp_address":"example.n","routing_relation":"PARENT""#), 200, &["Parent"]),
        ("POST /accounts", "admin", &plus("n3", r#""ilp_address":"example.n""#), 409, &["duplicate_address"]),
        ("POST /accounts", "admin", &plus("n4", r#""routing_relation":"Parent""#), 409, &["second_parent"]),
        // Links and settlement that do not work yet.
        ("POST /accounts", "admin", &plus("btp1", r#""ilp_over_btp_url":"btp+ws://u:pass@h:1/x","settle_threshold":5,"settle_to":5"#), 200, &[
            r#""ilp_over_btp_url":"btp+ws://u@h:1/x""#,
            r#""tokens_set":["ilp_over_btp_outgoing_token"],"links":{"http":null,"btp":"connecting"}"#,
            r#"{"field":"ilp_over_btp_url","message":"is not connected yet"#,
            r#"{"field":"settle_threshold","message":"is not above settle_to"#,
            r#"{"field":"settle_threshold","message":"has no settlement engine"#,
            "!pass",
        ]),
        ("GET /accounts/n1", "admin", "", 200, &[r#""username":"n1""#]),
        // The older account keeps the route; the parent has the default route.
        ("GET /routes", "-", "", 200, &[r#"{"":"n2","#, r#""example.n":"n1""#, r#""example.hub.alice":"alice""#]),
    ]);
    assert_eq!(caller.node.control.account_count(), 12);
}

#[test]
fn effects_come_in_order() {
    let mut caller = Caller::new();
    caller.check(&[("POST /accounts", "admin", ALICE, 200, &[])]);
    assert_eq!(
        caller.node.shards.take_published(),
        "account:alice@example.hub.alice route:example.hub.alice=0"
    );
    for (call, body, published) in [
        (
            "PUT /accounts/alice",
            r#"{"max_packet_amount":5}"#,
            "account:alice@example.hub.alice",
        ),
        ("PUT /accounts/alice", r#"{"max_packet_amount":5}"#, ""),
        ("PUT /accounts/alice", "{}", ""),
        (
            "PUT /accounts/alice",
            r#"{"ilp_address":"example.a"}"#,
            "account:alice@example.a route:example.a=0 no-route:example.hub.alice",
        ),
        (
            "PUT /accounts/alice",
            r#"{"routing_relation":"Parent"}"#,
            "account:alice@example.a route:=0",
        ),
        (
            "PUT /accounts/alice",
            r#"{"routing_relation":null}"#,
            "account:alice@example.a no-route:",
        ),
        (
            "PUT /routes/static",
            r#"{"g":"alice","example.b":"alice"}"#,
            "route:example.b=0 route:g=0",
        ),
        ("PUT /routes/static", r#"{"g":"alice"}"#, "no-route:example.b"),
        ("PUT /routes/static/g", "alice", ""),
        ("PUT /rates", r#"{"ABC":1}"#, "rates:1"),
        (
            "PUT /accounts/alice",
            r#"{"asset_scale":8}"#,
            "close:0 account:alice@example.a reopen:0",
        ),
        (
            "DELETE /accounts/alice",
            "",
            "close:0 no-route:example.a no-route:g remove:0",
        ),
    ] {
        let (status, answer, _) = caller.call(call, "admin", body);
        assert_eq!(status, 200, "{call} {body}: {answer}");
        assert_eq!(caller.node.shards.take_published(), published, "{call} {body}");
    }
}

#[test]
fn who_may_call() {
    let basic = |pair: &str| format!("Basic {}", base64::encode(pair.as_bytes()));
    let calls = [
        // call, body, holder of alice, nobody
        ("GET /accounts/alice", "", 200, 401),
        ("GET /accounts/alice/balance", "", 200, 401),
        ("GET /accounts/alice/payments/incoming", "", 426, 401),
        ("GET /payments/incoming", "", 401, 401),
        ("HEAD /accounts/alice", "", 200, 401),
        ("GET /accounts", "", 401, 401),
        ("POST /accounts", "", 401, 401),
        ("PUT /accounts/alice", "{}", 401, 401),
        ("PUT /rates", "{}", 401, 401),
        ("GET /rates?detail=true", "", 401, 401),
        ("POST /rates/confirm", "[]", 401, 401),
        ("PUT /routes/static", "{}", 401, 401),
        ("PUT /routes/static/g.x", "alice", 401, 401),
        ("DELETE /routes/static/g.x", "", 401, 401),
        ("DELETE /accounts/alice", "", 401, 401),
        ("GET /accounts/alice/settlements", "", 200, 401),
        ("POST /accounts/alice/settlements", "", 401, 401),
        ("POST /accounts/alice/settlements/x/cancel", "", 401, 401),
        ("POST /accounts/alice/settlements/x/retry", "", 401, 401),
        ("GET /ledger/audit", "", 401, 401),
        ("POST /ledger/backup", r#"{"directory":"/copy"}"#, 401, 401),
        ("POST /accounts/alice/payments", ZERO, 200, 401),
        ("GET /accounts/alice/payments", "", 200, 401),
        ("POST /accounts/alice/quotes", "{}", 400, 401),
        ("GET /", "", 200, 200),
        ("GET /rates", "", 200, 200),
        ("GET /routes", "", 200, 200),
    ];
    let holders = [
        "Bearer alice-pw".to_owned(),
        "bearer   alice-pw".to_owned(),
        "Bearer alice:alice-pw".to_owned(),
        "Bearer ALICE:alice-pw".to_owned(),
        "Bearer alice%3Aalice-pw".to_owned(),
        basic("alice:alice-pw"),
    ];
    let strangers = [
        "Bearer bob:pw".to_owned(), // valid, but for another account
        "Bearer bob:alice-pw".to_owned(),
        "Bearer alice:".to_owned(),
        "Bearer wrong".to_owned(),
        "Bearer".to_owned(),
        "XXXXXX alice-pw".to_owned(),
        "alice-pw".to_owned(),
        "\u{ff}".to_owned(),
        basic("bob:bob:pw"),
        basic("admin:the admin token"), // Basic is for holders
        "Bearer the admin token ".to_owned(),
        "-".to_owned(),
    ];
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
    ]);
    for (call, body, holder_status, stranger_status) in calls {
        for holder in &holders {
            assert_eq!(caller.call(call, holder, body).0, holder_status, "{call} by {holder}");
        }
        for stranger in &strangers {
            let (status, answer, headers) = caller.call(call, stranger, body);
            assert_eq!(status, stranger_status, "{call} by {stranger}: {answer}");
            if status == 401 {
                assert!(
                    headers.contains(&("www-authenticate", "Bearer".to_owned())),
                    "{call} by {stranger}"
                );
            }
        }
    }
    caller.check(&[
        ("GET /accounts/bob", "Bearer bob:pw", "", 200, &[]),
        ("GET /accounts/bob", "Bearer bob:bob:pw", "", 200, &[]),
        ("GET /accounts/bob", "bEARER the admin token", "", 200, &[]),
        // Only the operator learns who is not there.
        (
            "GET /accounts/nobody",
            "admin",
            "",
            404,
            &[r#""code":"account_not_found""#],
        ),
        ("GET /accounts/nobody", "Bearer alice-pw", "", 401, &[]),
        ("GET /accounts/nobody/balance", "-", "", 401, &[]),
        ("GET /accounts/x", "admin", "", 404, &["account_not_found"]),
        ("GET /accounts/%61lice", "admin", "", 200, &[]),
        ("GET /accounts/Alice/", "admin", "", 200, &[r#""username":"alice""#]),
        // Nobody can log in to an account without a token.
        (
            "PUT /accounts/bob",
            "admin",
            r#"{"ilp_over_http_incoming_token":null}"#,
            200,
            &[r#""tokens_set":[]"#],
        ),
        ("GET /accounts/bob", "Bearer bob:pw", "", 401, &[]),
        ("GET /accounts/bob", "Bearer \0", "", 401, &[]),
    ]);
    let mut twice = caller.request("GET /accounts/alice", "admin", "");
    twice.headers.push(("authorization".to_owned(), ADMIN_VALUE.into()));
    assert_eq!(caller.api.answered(&twice).status, 400, "two Authorization headers");
}

#[test]
fn guessing_is_slowed_down() {
    let mut caller = Caller::new();
    let mut attempt = |value: &str, now_ms: u64, peer: &str| {
        let mut request = caller.request("GET /accounts", value, "");
        request.peer = peer.parse().unwrap();
        match caller.api.answer(&request, Timestamp::default(), now_ms) {
            Ok(Answer::Now(response)) => response.status,
            Ok(Answer::Later(_)) => panic!("nothing that is tried here takes longer"),
            Err(problem) => {
                let (status, _, headers) = show(problem.into_response(Timestamp::default()));
                assert_eq!(status == 429, headers.contains(&("retry-after", "1".to_owned())));
                status
            }
        }
    };
    for row in 0..5 {
        assert_eq!(attempt("Bearer wrong", 10, "192.0.2.1"), 401, "{row}");
    }
    for (value, now_ms, peer, status) in [
        ("Bearer wrong", 10, "192.0.2.1", 429),
        (ADMIN_VALUE, 10, "192.0.2.1", 429), // a hit is not told either
        ("-", 10, "192.0.2.1", 401),         // no attempt
        (ADMIN_VALUE, 10, "192.0.2.2", 200), // others are not concerned
        (ADMIN_VALUE, 1_010, "192.0.2.1", 200),
    ] {
        assert_eq!(attempt(value, now_ms, peer), status, "{value} at {now_ms} from {peer}");
    }
}

#[test]
fn paths_methods_and_bodies() {
    let mut caller = Caller::new();
    let too_large = format!("{{\"x\":\"{}\"}}", "a".repeat(path::BODY_BYTES_MAX));
    caller.check(&[
        (
            "GET /nothing",
            "-",
            "",
            404,
            &[r#""code":"not_found""#, "@content-type: application/problem+json"],
        ),
        ("GET /accounts/a%2Fb", "admin", "", 404, &[r#""code":"not_found""#]),
        ("GET /accounts/%ff", "admin", "", 404, &[]),
        (
            "PATCH /accounts",
            "admin",
            "",
            405,
            &["@allow: GET, HEAD, POST, OPTIONS", r#""code":"method_not_allowed""#],
        ),
        ("DELETE /accounts", "-", "", 405, &[]),
        (
            "POST /accounts/alice",
            "-",
            "",
            405,
            &["@allow: GET, HEAD, PUT, DELETE, OPTIONS"],
        ),
        ("POST /", "-", "", 405, &[]),
        ("GET /ilp", "-", "", 405, &["@allow: POST, OPTIONS"]),
        ("GET /accounts/alice/ilp", "-", "", 405, &[]),
        ("GET /accounts/alice/ilp/btp", "-", "", 426, &["@upgrade: websocket"]),
        ("GET /routes/static", "-", "", 405, &["@allow: PUT, OPTIONS"]),
        ("OPTIONS /rates", "-", "", 204, &["@allow: GET, HEAD, PUT, OPTIONS"]),
        ("OPTIONS /accounts/nobody", "-", "", 204, &[]),
        ("OPTIONS /nothing", "-", "", 404, &[]),
        ("HEAD /", "-", "", 200, &[]),
        (
            "POST /accounts",
            "admin",
            &too_large,
            413,
            &[r#""code":"payload_too_large""#],
        ),
        (
            "PUT /rates",
            "admin",
            &too_large,
            400,
            &["x: expected a number above 0"],
        ),
    ]);
    for (content_type, status) in [
        ("application/json", 200),
        ("application/x-www-form-urlencoded", 200),
        ("APPLICATION/json; charset=UTF-8", 200),
        ("application/json;charset=\"utf-8\"", 200),
        ("application/json; charset=latin1", 400),
        ("text/plain", 415),
        ("json", 415),
        ("", 415),
        ("\u{ff}", 415),
    ] {
        let mut request = caller.request("PUT /rates", "admin", "{}");
        request.headers.push(("content-type".to_owned(), content_type.into()));
        assert_eq!(caller.api.answered(&request).status, status, "{content_type}");
        // A name as text may have any type.
        request = caller.request("PUT /routes/static/g", "admin", "nobody");
        request.headers.push(("content-type".to_owned(), content_type.into()));
        assert_eq!(caller.api.answered(&request).status, 404, "{content_type}");
    }
    let request = caller.request("POST /accounts", "admin", &too_large);
    assert!(
        caller.api.answered(&request).close,
        "what follows a body too large is not read"
    );
}

#[test]
fn changing_accounts() {
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
        ("PUT /accounts/nobody", "admin", "{}", 404, &["account_not_found"]),
        (
            "PUT /accounts/alice",
            "admin",
            "{}",
            200,
            &[r#""tokens_set":["ilp_over_http_incoming_token"]"#],
        ),
        ("PUT /accounts/alice", "admin", "", 400, &["json_eof"]),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"username":"ALICE"}"#,
            200,
            &[r#""username":"alice""#],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"username":"bob"}"#,
            400,
            &[r#"{"name":"username","type":"immutable"}"#],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"min_balance":-5,"round_trip_time":"9"}"#,
            200,
            &[r#""min_balance":-5"#],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"max_packet_amount":7}"#,
            200,
            &[r#""min_balance":-5"#, r#""round_trip_time":9"#],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"min_balance":null,"max_packet_amount":null,"round_trip_time":null}"#,
            200,
            &[
                r#""max_packet_amount":18446744073709551615,"min_balance":null"#,
                r#""round_trip_time":500"#,
            ],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"asset_code":null}"#,
            400,
            &["asset_code: cannot be cleared"],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_over_http_url":"x"}"#,
            400,
            &["ilp_over_http_url"],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_address":"example.hub.bob"}"#,
            409,
            &["duplicate_address"],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_address":"example.alice"}"#,
            200,
            &[r#""ilp_address":"example.alice""#],
        ),
        (
            "GET /routes",
            "-",
            "",
            200,
            &[r#"{"example.alice":"alice","example.hub.bob":"bob"}"#],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_address":null}"#,
            200,
            &[r#""ilp_address":"example.hub.alice""#],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"routing_relation":"Parent"}"#,
            200,
            &[],
        ),
        (
            "PUT /accounts/bob",
            "admin",
            r#"{"routing_relation":"Parent"}"#,
            409,
            &["second_parent"],
        ),
        ("GET /routes", "-", "", 200, &[r#"{"":"alice","#]),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"routing_relation":"child"}"#,
            200,
            &[r#""routing_relation":"Child""#],
        ),
        (
            "PUT /accounts/bob",
            "admin",
            r#"{"routing_relation":"Parent"}"#,
            200,
            &[],
        ),
        // The old password is dead at once; what answers show in place of one is none.
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_over_http_incoming_token":"new"}"#,
            200,
            &["!\"new\""],
        ),
        ("GET /accounts/alice", "Bearer alice-pw", "", 401, &[]),
        ("GET /accounts/alice", "Bearer new", "", 200, &[]),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_over_http_incoming_token":"SECRET"}"#,
            200,
            &["was kept"],
        ),
        ("GET /accounts/alice", "Bearer SECRET", "", 401, &[]),
        ("GET /accounts/alice", "Bearer new", "", 200, &[]),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_over_btp_incoming_token":"x"}"#,
            200,
            &[r#""btp":"waiting""#, "!not connected"],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_over_btp_url":"ws://h"}"#,
            200,
            &[r#""btp":"connecting""#, "not connected"],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"min_balance":1}"#,
            200,
            &["!not connected"],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_over_http_url":"http://h"}"#,
            200,
            &[r#""links":{"http":"ready","#],
        ),
        // The asset, while nothing depends on it.
        (
            "PUT /accounts/bob",
            "admin",
            r#"{"asset_code":"new","asset_scale":3}"#,
            200,
            &[r#""asset_code":"NEW","asset_scale":3"#],
        ),
    ]);
    let alice = caller.id_of("alice");
    caller.node.shards.set_state(
        alice,
        AccountState {
            btp_connected: true,
            ..Default::default()
        },
    );
    caller.check(&[
        ("GET /accounts/alice", "admin", "", 200, &[r#""btp":"connected""#]),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"ilp_over_btp_url":"ws://other"}"#,
            200,
            &["!not connected"],
        ),
    ]);
    for state in [
        AccountState {
            held: 5,
            in_flight: 1,
            ..Default::default()
        },
        AccountState {
            booked: 1,
            ..Default::default()
        },
        AccountState {
            in_flight: 1,
            ..Default::default()
        },
    ] {
        caller.node.shards.set_state(alice, state);
        caller.check(&[(
            "PUT /accounts/alice",
            "admin",
            r#"{"asset_scale":2}"#,
            409,
            &[r#""code":"asset_in_use""#],
        )]);
    }
    caller.node.shards.set_state(alice, AccountState::default());
    caller.node.book.credit(alice, -1);
    caller.node.shards.take_published();
    caller.check(&[(
        "PUT /accounts/alice",
        "admin",
        r#"{"asset_scale":2}"#,
        409,
        &[r#""code":"asset_in_use""#],
    )]);
    assert_eq!(caller.node.shards.take_published(), "", "the account was not disturbed");
}

#[test]
fn deleting_accounts() {
    let mut caller = Caller::new();
    let parent = r#"{"username":"up","asset_code":"ABC","asset_scale":9,"routing_relation":"Parent",
        "ilp_over_http_url":"http://h/"}"#;
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
        ("POST /accounts", "admin", parent, 200, &[]),
        (
            "PUT /routes/static",
            "admin",
            r#"{"g.a":"alice","g.b":"bob","g.c":"alice"}"#,
            200,
            &[],
        ),
        ("DELETE /accounts/nobody", "admin", "", 404, &["account_not_found"]),
        (
            "DELETE /accounts/alice?force=maybe",
            "admin",
            "",
            400,
            &[r#"{"name":"force","type":"invalid"}"#],
        ),
    ]);
    let (alice, bob) = (caller.id_of("alice"), caller.id_of("bob"));
    caller.node.book.credit(alice, -250);
    caller.check(&[
        (
            "DELETE /accounts/alice",
            "admin",
            "",
            409,
            &[r#""code":"balance_not_zero""#, "the balance is -250"],
        ),
        ("GET /accounts/alice", "admin", "", 200, &[]),
    ]);
    caller.node.shards.set_state(
        alice,
        AccountState {
            in_flight: 1,
            booked: -250,
            ..Default::default()
        },
    );
    caller.node.shards.take_published();
    caller.check(&[
        (
            "DELETE /accounts/alice?force=true",
            "admin",
            "",
            409,
            &[r#""code":"packets_in_flight""#],
        ),
        ("PUT /accounts/alice", "admin", r#"{"min_balance":0}"#, 200, &[]),
    ]);
    assert_eq!(
        caller.node.shards.take_published(),
        "close:0 reopen:0 account:alice@example.hub.alice"
    );
    caller.node.shards.set_state(
        alice,
        AccountState {
            booked: -250,
            ..Default::default()
        },
    );
    caller.check(&[
        ("DELETE /accounts/ALICE?force=true", "admin", "", 200, &[
            r#""username":"alice""#,
            r#""removed_routes":["g.a","g.c"],"written_off":-250}"#,
        ]),
        ("DELETE /accounts/alice", "admin", "", 404, &[]),
        ("GET /accounts/alice", "Bearer alice-pw", "", 401, &[]),
        ("GET /routes", "-", "", 200, &[r#"{"":"up","example.hub.bob":"bob","example.hub.up":"up","g.b":"bob"}"#]),
        ("GET /ledger/audit", "admin", "", 200, &[
            r#"{"adds_up":true,"assets":[{"asset_code":"ABC","asset_scale":9,"accounts":1,"balances":0,"position":0,"pending":0,"adds_up":true}"#,
        ]),
        ("DELETE /accounts/up", "admin", "", 200, &[r#""links":{"http":null,"btp":null}"#, r#""removed_routes":[""]}"#, "!written_off"]),
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("DELETE /accounts/bob?force=false", "admin", "", 200, &[r#""removed_routes":["g.b"]"#]),
    ]);
    assert!(caller.id_of("alice") > bob, "a number is never given twice");
    assert_eq!(caller.node.control.account_count(), 1);
}

#[test]
fn balances() {
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("GET /accounts/alice/balance", "Bearer alice-pw", "", 200, &[
            r#"{"balance":0,"asset_code":"ABC","asset_scale":9,"balance_scaled":"0","prepaid_amount":0,"held":0,"pending_settlement":0}"#,
        ]),
    ]);
    let alice = caller.id_of("alice");
    caller.node.book.credit(alice, 77);
    caller.check(&[("GET /accounts/alice/balance", "admin", "", 200, &[r#"{"balance":77,"#])]);
    caller.node.shards.set_state(
        alice,
        AccountState {
            booked: 1_000,
            held: 1_500,
            ..Default::default()
        },
    );
    caller.check(&[
        (
            "GET /accounts/alice/balance",
            "admin",
            "",
            200,
            &[
                r#"{"balance":-500,"#,
                r#""balance_scaled":"-0.0000005""#,
                r#""held":1500"#,
            ],
        ),
        (
            "GET /accounts/alice/balance?format=integer",
            "admin",
            "",
            200,
            &[r#"{"balance":-500,"#],
        ),
        (
            "GET /accounts/alice/balance?format=scaled",
            "admin",
            "",
            200,
            &[r#"{"asset_code":"ABC","balance":-5e-7}"#],
        ),
        ("GET /accounts/alice/balance?format=x", "admin", "", 400, &["format"]),
    ]);
    caller.node.shards.set_state(
        alice,
        AccountState {
            booked: 500,
            held: 100,
            prepaid: 450,
            settling: 70,
            ..Default::default()
        },
    );
    caller.check(&[(
        "GET /accounts/alice/balance",
        "admin",
        "",
        200,
        &[
            r#"{"balance":400,"#,
            r#""prepaid_amount":450,"held":100,"pending_settlement":70}"#,
        ],
    )]);
    caller.node.shards.set_state(
        alice,
        AccountState {
            booked: i128::from(u64::MAX) * 8,
            ..Default::default()
        },
    );
    caller.check(&[
        (
            "GET /accounts/alice/balance",
            "admin",
            "",
            200,
            &[r#"{"balance":147573952589676412920,"#],
        ),
        ("PUT /accounts/alice", "admin", "{}", 200, &[]),
        (
            "GET /accounts/alice/balance?format=scaled",
            "admin",
            "",
            200,
            &[r#""balance":147573952589.6764"#],
        ),
    ]);
}

#[test]
fn listing_accounts() {
    let mut caller = Caller::new();
    for (name, more) in [
        ("Dave", ""),
        ("alice", r#","routing_relation":"Peer","ilp_address":"example.peers.a""#),
        ("Bob", r#","ilp_address":"example.peersx""#),
        ("carol", r#","asset_scale":2"#),
    ] {
        let scale = if more.contains("scale") {
            ""
        } else {
            r#","asset_scale":9"#
        };
        let code = if name == "carol" { "XYZ" } else { "ABC" };
        let body = format!(r#"{{"username":"{name}","asset_code":"{code}"{scale}{more}}}"#);
        assert_eq!(caller.call("POST /accounts", "admin", &body).0, 200, "{body}");
    }
    for (query, names, next) in [
        ("", "alice Bob carol Dave", None),
        ("?limit=4", "alice Bob carol Dave", None),
        (
            "?limit=2",
            "alice Bob",
            Some("</accounts?limit=2&after=Bob>; rel=\"next\""),
        ),
        ("?limit=2&after=Bob", "carol Dave", None),
        (
            "?limit=1&after=BOB",
            "carol",
            Some("</accounts?limit=1&after=carol>; rel=\"next\""),
        ),
        ("?after=zzz", "", None),
        ("?asset_code=abc", "alice Bob Dave", None),
        (
            "?asset_code=abc&limit=1&after=alice",
            "Bob",
            Some("</accounts?asset_code=abc&limit=1&after=Bob>; rel=\"next\""),
        ),
        ("?routing_relation=peer", "alice", None),
        ("?address_prefix=example.peers", "alice", None),
        ("?address_prefix=example.", "alice Bob carol Dave", None),
        ("?address_prefix=", "alice Bob carol Dave", None),
        ("?colour=red", "alice Bob carol Dave", None),
    ] {
        let (status, answer, headers) = caller.call(&format!("GET /accounts{query}"), "admin", "");
        assert_eq!(status, 200, "{query}");
        let list: Vec<serde_json::Value> = serde_json::from_str(&answer).unwrap();
        let found: Vec<&str> = list
            .iter()
            .map(|account| account["username"].as_str().unwrap())
            .collect();
        assert_eq!(found.join(" "), names, "{query}");
        let link = headers
            .iter()
            .find(|(name, _)| *name == "link")
            .map(|(_, value)| value.as_str());
        assert_eq!(link, next, "{query}");
    }
    caller.check(&[
        (
            "GET /accounts?limit=0",
            "admin",
            "",
            400,
            &[r#"{"name":"limit","type":"invalid"}"#],
        ),
        ("GET /accounts?limit=1001", "admin", "", 400, &[]),
        ("GET /accounts?limit=x", "admin", "", 400, &[]),
        ("GET /accounts?routing_relation=x", "admin", "", 400, &[]),
        ("GET /accounts?address_prefix=x", "admin", "", 400, &[]),
    ]);
}

#[test]
fn routes() {
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
        ("PUT /routes/static", "admin", r#"{"example.some-prefix.":"BOB","":"alice","g":"bob"}"#, 200, &[
            r#"{"":"alice","example.some-prefix":"bob","g":"bob"}"#,
        ]),
        ("GET /routes", "-", "", 200, &[
            r#"{"":"alice","example.hub.alice":"alice","example.hub.bob":"bob","example.some-prefix":"bob","g":"bob"}"#,
        ]),
        // A fixed route wins over the account's own.
        ("PUT /routes/static/example.hub.alice", "admin", " bob\n", 200, &["bob", "@content-type: text/plain; charset=utf-8"]),
        ("GET /routes", "Bearer garbage", "", 200, &[r#""example.hub.alice":"bob""#]),
        ("DELETE /routes/static/example.hub.alice", "admin", "", 200, &["bob"]),
        ("GET /routes", "-", "", 200, &[r#""example.hub.alice":"alice""#]),
        ("DELETE /routes/static/example.hub.alice", "admin", "", 404, &[r#""code":"not_found""#]),
        ("PUT /routes/static/ex%41mple", "admin", "bob", 400, &["the prefix is invalid"]),
        ("PUT /routes/static/ex%61mple", "admin", "\"Bob\"", 200, &["bob"]),
        ("PUT /routes/static/example.x", "admin", "nobody", 404, &["account_not_found"]),
        ("PUT /routes/static/example.x", "admin", "no-body", 400, &["bad_request"]),
        ("PUT /routes/static/example.x", "admin", "", 400, &[]),
        ("PUT /routes/static/example.x", "admin", "\"bob", 400, &["json_eof"]),
        ("PUT /routes/static/example.x", "admin", "\"\\u0062ob\"", 200, &["bob"]),
        ("PUT /routes/static/example..x", "admin", "bob", 400, &[]),
        ("PUT /routes/static/", "admin", r#"{"g":"alice"}"#, 200, &[r#"{"g":"alice"}"#]),
        ("GET /routes", "-", "", 200, &[r#"{"example.hub.alice":"alice","example.hub.bob":"bob","g":"alice"}"#]),
        // Nothing of a map that has a mistake in it.
        ("PUT /routes/static", "admin", r#"{"test":"bob","test1":"nobody"}"#, 404, &["there is no account nobody"]),
        ("PUT /routes/static", "admin", r#"{"test":"bob","test1":"x-y"}"#, 400, &["bad_request"]),
        ("PUT /routes/static", "admin", r#"{"test":"bob","test1":7}"#, 400, &[r#"{"name":"test1","type":"invalid"}"#]),
        ("PUT /routes/static", "admin", r#"{"example.a":"bob","example.a.":"bob"}"#, 400, &["there twice"]),
        ("PUT /routes/static", "admin", r#"{"nowhere":"bob"}"#, 400, &["nowhere"]),
        ("PUT /routes/static", "admin", r#"["bob"]"#, 400, &[]),
        ("GET /routes", "-", "", 200, &[r#""g":"alice""#, "!test"]),
        ("PUT /routes/static", "admin", "{}", 200, &["{}"]),
        ("GET /routes", "-", "", 200, &[r#"{"example.hub.alice":"alice","example.hub.bob":"bob"}"#]),
    ]);
}

#[test]
fn every_way_for_a_prefix_and_why_one_is_in_force() {
    let mut caller = Caller::new();
    let neighbour = |name: &str, relation: &str| {
        format!(
            r#"{{"username":"{name}","asset_code":"ABC","asset_scale":9,"ilp_address":"example.{name}",
                "routing_relation":"{relation}","ilp_over_http_url":"http://127.0.0.1:9/"}}"#
        )
    };
    let alice = neighbour("alice", "NonRoutingAccount");
    let [child, peer, other] =
        [("kid", "Child"), ("north", "Peer"), ("south", "Peer")].map(|(name, relation)| neighbour(name, relation));
    caller.check(&[
        ("POST /accounts", "admin", &alice, 200, &[]),
        ("POST /accounts", "admin", &child, 200, &[]),
        ("POST /accounts", "admin", &peer, 200, &[]),
        ("POST /accounts", "admin", &other, 200, &[]),
        (
            "PUT /routes/static",
            "admin",
            r#"{"example.far":"alice","example":"north"}"#,
            200,
            &[],
        ),
    ]);
    caller.node.learn("example.far", "kid", 7);
    caller.node.learn("example.far", "north", 3);
    caller.node.learn("example.far", "south", 2);
    caller.node.learn("example.further", "south", 1);
    let detail = "GET /routes?detail=true";
    let explain = "GET /routes/explain?destination=example.far.x&from=alice";
    caller.check(&[
        ("GET /routes", "-", "", 200, &[r#""example.far":"alice","example.further":"south""#]),
        (detail, "-", "", 401, &[]),
        (detail, "admin", "", 200, &[concat!(
            r#"{"prefix":"example.far","candidates":[{"username":"alice","origin":"static","link":"up","in_force":true},"#,
            r#"{"username":"kid","origin":"learned","routing_relation":"Child","hops":7,"link":"up","in_force":false},"#,
            r#"{"username":"south","origin":"learned","routing_relation":"Peer","hops":2,"link":"up","in_force":false},"#,
            r#"{"username":"north","origin":"learned","routing_relation":"Peer","hops":3,"link":"up","in_force":false}]}"#,
        )]),
        (explain, "admin", "", 200, &[
            r#""next_hop":"alice""#,
            r#""of 4 ways the one to alice is in force: a static route""#,
            r#""behind":"a static route comes before all others""#,
            r#""shorter":[{"prefix":"example","username":"north"}]"#,
        ]),
        ("DELETE /routes/static/example.far", "admin", "", 200, &[]),
        (explain, "admin", "", 200, &[
            r#""outcome":"forwarded","next_hop":"kid","code":null,"message":null"#,
            r#""of 3 ways the one to kid is in force: a route of 7 hops, learned from a Child","it goes to kid over HTTP""#,
            r#""behind":"a route learned from a Child comes before one from a Peer""#,
        ]),
    ]);
    caller.node.set_link("kid", false);
    caller.check(&[(
        explain,
        "admin",
        "",
        200,
        &[
            r#""next_hop":"south""#,
            r#""behind":"fewer hops: 2 against 3"},{"username":"kid""#,
            r#""link":"down","in_force":false,"behind":"its link is down""#,
        ],
    )]);
    caller.node.set_link("north", false);
    caller.node.set_link("south", false);
    caller.check(&[
        (
            explain,
            "admin",
            "",
            200,
            &[
                r#""outcome":"refused","next_hop":"kid","code":"T01","message":"the next hop could not be reached""#,
                "the links of all of them are down",
                "the last connection to the ilp_over_http_url of kid failed",
            ],
        ),
        // What an account had told goes with it.
        (
            "DELETE /accounts/south",
            "admin",
            "",
            200,
            &[r#""removed_routes":[],"removed_learned_routes":2}"#],
        ),
        (detail, "admin", "", 200, &["!south", "!example.further"]),
        ("DELETE /accounts/alice", "admin", "", 200, &[r#""removed_routes":[]}"#]),
        // Who has no link cannot be reached.
        ("POST /accounts", "admin", ALICE, 200, &[]),
        (
            "GET /routes/explain?destination=example.hub.alice.x",
            "admin",
            "",
            200,
            &[
                r#""outcome":"refused","next_hop":"alice","code":"T01","message":"no connection to the next hop""#,
                r#""alice has no link""#,
                r#""link":null"#,
            ],
        ),
    ]);
}

#[test]
fn details_of_many_routes_are_read_in_parts() {
    let mut caller = Caller::new();
    let peer = r#"{"username":"north","asset_code":"ABC","asset_scale":9,"routing_relation":"Peer"}"#;
    caller.check(&[("POST /accounts", "admin", peer, 200, &[])]);
    for number in 0..3_000 {
        caller.node.learn(&format!("example.n{number}"), "north", 1);
    }
    let (status, answer, _) = caller.call("GET /routes?detail=true", "admin", "");
    assert_eq!(status, 200);
    let prefixes: Vec<serde_json::Value> = serde_json::from_str(&answer).unwrap();
    let names: Vec<&str> = prefixes
        .iter()
        .map(|prefix| prefix["prefix"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 3_001, "and its own");
    assert!(names.is_sorted());
}

#[test]
fn rates() {
    let many_digits = format!(r#"{{"ABC":0.{}}}"#, "1".repeat(40));
    let too_many_digits = format!(r#"{{"ABC":0.{}}}"#, "1".repeat(41));
    let mut caller = Caller::new();
    caller.check(&[
        ("GET /rates", "-", "", 200, &["{}"]),
        (
            "PUT /rates",
            "admin",
            r#"{"xyz":"2.517","ABC":1,"tiny":5e-7}"#,
            200,
            &[r#"{"ABC":1.0,"TINY":5e-7,"XYZ":2.517}"#],
        ),
        (
            "GET /rates",
            "Bearer garbage",
            "",
            200,
            &[r#"{"ABC":1.0,"TINY":5e-7,"XYZ":2.517}"#],
        ),
        (
            "PUT /rates",
            "admin",
            r#"{"ABC":0}"#,
            400,
            &[r#"{"name":"ABC","type":"invalid"}"#],
        ),
        ("PUT /rates", "admin", r#"{"ABC":-1}"#, 400, &[]),
        (
            "PUT /rates",
            "admin",
            r#"{"ABC":null,"XYZ":"NaN"}"#,
            400,
            &["ABC: expected a number above 0, found null; XYZ: "],
        ),
        ("PUT /rates", "admin", r#"{"ABC":"inf"}"#, 400, &[]),
        ("PUT /rates", "admin", r#"{"ABC":1,"abc":2}"#, 400, &["there twice"]),
        ("PUT /rates", "admin", r#"{"ABC":1,"ABC":2}"#, 400, &["there twice"]),
        ("PUT /rates", "admin", r#"{"":1}"#, 400, &[]),
        ("PUT /rates", "admin", r#"{"ABC":1e400}"#, 400, &[]),
        ("PUT /rates", "admin", "7", 400, &["found a number"]),
        ("PUT /rates", "admin", &too_many_digits, 400, &["40 significant digits"]),
        ("GET /rates", "-", "", 200, &[r#"{"ABC":1.0,"#]),
        (
            "PUT /rates",
            "admin",
            &many_digits,
            200,
            &[r#"{"ABC":0.1111111111111111}"#],
        ),
    ]);
    let exact = caller.node.control.rates();
    assert_eq!(
        exact.get("ABC").unwrap().to_string(),
        format!("0.{}", "1".repeat(40)),
        "kept as it was written"
    );
    caller.check(&[
        (
            "GET /rates?detail=true",
            "admin",
            "",
            200,
            &[
                r#"{"max_rate_change":null,"providers":[],"rates":{"ABC":{"rate":"0.1111111111111111111111111111111111111111","#,
                r#""state":"fresh","source":"operator","said_at":"2"#,
                r#""held":null}"#,
            ],
        ),
        ("GET /rates?detail=false", "-", "", 200, &[r#"{"ABC":0.1111111111111111}"#]),
        ("GET /rates?detail=yes", "admin", "", 400, &[r#""name":"detail""#]),
        ("POST /rates/confirm", "admin", r#"["ABC"]"#, 409, &["rate_not_held", "ABC is not held"]),
        ("POST /rates/confirm", "admin", r#"{"abc":1}"#, 409, &["rate_not_held"]),
        ("POST /rates/confirm", "admin", r#"["XYZ"]"#, 404, &["not_found", "no rate of XYZ"]),
        ("POST /rates/confirm", "admin", r#"["ABC","abc"]"#, 400, &["there twice"]),
        ("POST /rates/confirm", "admin", "[1]", 400, &["expected asset codes, found a number"]),
        ("POST /rates/confirm", "admin", "[]", 400, &["at least one"]),
        ("POST /rates/confirm", "admin", "{}", 400, &["at least one"]),
        ("POST /rates/confirm", "admin", "7", 400, &["found a number"]),
        ("POST /rates/confirm", "admin", r#"{"ABC":0,"":1}"#, 400, &["ABC: expected a number above 0", "must not be empty"]),
        ("PUT /rates", "admin", "{}", 200, &["{}"]),
        ("GET /rates", "-", "", 200, &["{}"]),
    ]);
}

#[test]
fn what_was_changed_is_there_after_a_restart() {
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
        (
            "PUT /accounts/bob",
            "admin",
            r#"{"ilp_address":"example.bob"}"#,
            200,
            &[],
        ),
        ("PUT /routes/static", "admin", r#"{"g":"alice"}"#, 200, &[]),
        ("PUT /rates", "admin", r#"{"ABC":"2.517"}"#, 200, &[]),
    ]);
    let (_, accounts, _) = caller.call("GET /accounts", "admin", "");
    let book = Arc::clone(&caller.node.book);
    let commits = book.commits();
    let mut again = Caller::on(Node::start("example.hub", Arc::clone(&book)));
    let (_, accounts_again, _) = again.call("GET /accounts", "admin", "");
    assert_eq!(accounts, accounts_again);
    assert_eq!(book.commits(), commits, "nothing to write");
    again.check(&[
        (
            "GET /routes",
            "-",
            "",
            200,
            &[r#"{"example.bob":"bob","example.hub.alice":"alice","g":"alice"}"#],
        ),
        ("GET /rates", "-", "", 200, &[r#"{"ABC":2.517}"#]),
    ]);
    // Under another address of the node, generated addresses follow it, in one commit.
    let mut renamed = Caller::on(Node::start("g.hub", Arc::clone(&book)));
    assert_eq!(book.commits(), commits + 1);
    renamed.check(&[(
        "GET /routes",
        "-",
        "",
        200,
        &[r#"{"example.bob":"bob","g":"alice","g.hub.alice":"alice"}"#],
    )]);
    let initial = renamed.node.control.initial_changes();
    renamed.node.shards.take_published();
    renamed.node.shards.publish(&initial);
    assert_eq!(
        renamed.node.shards.take_published(),
        "node:g.hub rates:1 account:alice@g.hub.alice account:bob@example.bob routes:4"
    );
    let next_hop = |prefix| renamed.node.shards.next_hop(prefix);
    let [alice, bob] = [0, 1].map(|number| Some(AccountId::new(number)));
    let next_hops = ["example.bob", "g", "g.hub.alice", "g.hub"].map(next_hop);
    assert_eq!(next_hops, [bob, alice, alice, Some(LOCAL)]);
}

/// What the operator may do is not done on the port of settlement engines.
#[test]
fn the_port_of_engines_serves_no_call_of_the_other() {
    let mut caller = Caller::new();
    let commits = caller.node.book.commits();
    for (call, body) in [
        ("GET /", ""),
        ("POST /accounts", ALICE),
        ("GET /accounts", ""),
        ("DELETE /accounts/alice", ""),
        ("PUT /rates", r#"{"ABC":1}"#),
        ("OPTIONS /accounts", ""),
        ("PATCH /", ""),
        ("GET *", ""),
    ] {
        let request = ApiRequest {
            port: Port::Settlement,
            ..caller.request(call, "admin", body)
        };
        let (status, answer, _) = show(caller.api.answered(&request));
        assert_eq!(status, 404, "{call}: {answer}");
        assert!(answer.contains(r#""code":"not_found""#), "{call}: {answer}");
    }
    assert_eq!(caller.node.book.commits(), commits);
    assert_eq!(caller.node.shards.take_published(), "");
}

/// An engine that brings money and hears of a fault here may take it as a word on the money.
#[test]
fn engines_hear_nothing_of_faults_when_they_bring_money() {
    let mut caller = Caller::new();
    let created = caller.call(
        "POST /accounts",
        "admin",
        r#"{"username":"alice","asset_code":"ABC","asset_scale":9,"settlement_engine_url":"http://127.0.0.1:3001"}"#,
    );
    let answer: serde_json::Value = serde_json::from_str(&created.1).unwrap();
    let id = answer["id"].as_str().unwrap();
    let control = Arc::clone(&caller.node.control);
    let mut bring = |path: &str, key: &str, body: &str| {
        let mut request = caller.request(&format!("POST /accounts/{id}/{path}"), "-", body);
        request.port = Port::Settlement;
        request.headers.push(("idempotency-key".to_owned(), key.into()));
        let response = caller.api.answered(&request);
        (response.status, matches!(response.body, Body::Silence))
    };
    let ten = r#"{"amount":"10","scale":9}"#;
    assert_eq!(bring("settlements", "a", ten), (201, false));
    assert_eq!(bring("settlements", "b", "{}"), (400, false));
    control.set_readiness(Readiness::Stopping);
    assert_eq!(bring("settlements", "b", ten), (503, true));
    assert_eq!(bring("settlements/?x", "b", ten), (503, true));
    assert_eq!(bring("settlements", "a", ten), (201, false), "it was credited before");
    assert_eq!(bring("messages", "b", "hello"), (503, false), "this is no money");
}

#[test]
fn a_node_that_cannot_commit_says_so_and_changes_nothing() {
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        (
            "GET /",
            "-",
            "",
            200,
            &[
                r#"{"status":"Ready","ilp_address":"example.hub","version":""#,
                "!reason",
            ],
        ),
        ("GET /ledger/audit", "admin", "", 200, &[r#"{"adds_up":true,"#]),
    ]);
    caller.node.book.lose_a_unit();
    caller.check(&[("GET /ledger/audit", "admin", "", 200, &[
        r#"{"adds_up":false,"assets":[{"asset_code":"ABC","asset_scale":9,"accounts":1,"balances":0,"position":-1,"pending":0,"adds_up":false}]}"#,
    ])]);
    caller.node.book.fail("disk full");
    caller.node.shards.take_published();
    let not_ready: &[&str] = &[r#""code":"not_ready""#, "@retry-after: 5"];
    caller.check(&[
        (
            "GET /",
            "-",
            "",
            503,
            &[
                r#""status":"NotReady""#,
                r#""reason":"the node cannot commit: disk full""#,
            ],
        ),
        ("POST /accounts", "admin", BOB, 503, not_ready),
        ("PUT /accounts/alice", "admin", r#"{"min_balance":1}"#, 503, not_ready),
        ("DELETE /accounts/alice", "admin", "", 503, not_ready),
        ("PUT /routes/static", "admin", r#"{"g":"alice"}"#, 503, not_ready),
        ("PUT /rates", "admin", r#"{"ABC":1}"#, 503, not_ready),
        (
            "POST /ledger/backup",
            "admin",
            r#"{"directory":"/copy"}"#,
            503,
            not_ready,
        ),
        ("GET /accounts/alice", "admin", "", 200, &[r#""min_balance":null"#]),
        ("GET /rates", "-", "", 200, &["{}"]),
    ]);
    assert_eq!(caller.node.shards.take_published(), "");

    for (readiness, reason) in [(Readiness::Starting, "starting"), (Readiness::Stopping, "stopping")] {
        let mut caller = Caller::new();
        caller.node.control.set_readiness(readiness);
        caller.check(&[
            ("GET /", "-", "", 503, &[reason]),
            ("POST /accounts", "admin", ALICE, 503, &[reason]),
        ]);
    }
}

#[test]
fn a_copy_of_the_book() {
    let mut caller = Caller::new();
    let field: &[&str] = &[r#""invalid-params":[{"name":"directory","type":"invalid"}]"#];
    let call = "POST /ledger/backup";
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        (call, "admin", r#"{"directory":"/copy"}"#, 200, &[
            r#"{"directory":"/copy","accounts":1,"adds_up":true,"assets":[{"asset_code":"ABC","asset_scale":9,"accounts":1,"balances":0,"position":0,"pending":0,"adds_up":true}]}"#,
        ]),
        (call, "admin", r#"{"directory":"/copy"}"#, 409, &[r#""code":"directory_exists""#, field[0]]),
        (call, "admin", r#"{"directory":"/refused"}"#, 400, &["expected another", field[0]]),
        (call, "admin", r#"{"directory":"/busy"}"#, 409, &[r#""code":"backup_in_progress""#, "@retry-after: 5"]),
        (call, "admin", r#"{"directory":"/full"}"#, 500, &[r#""code":"backup_failed""#, "No space left"]),
        (call, "admin", r#"{"directory":7}"#, 400, &["expected a text, found a number", field[0]]),
        (call, "admin", "{}", 400, &[r#"{"name":"directory","type":"missing"}"#]),
        (call, "admin", r#"{"directory":"/a","with_keys":true}"#, 400, &[r#"{"name":"with_keys","type":"invalid"}"#]),
        (call, "admin", r#"["/a"]"#, 400, &["expected an object, found an array"]),
        (call, "admin", "", 400, &[r#""code":"json_eof""#]),
        ("GET /ledger/backup", "admin", "", 405, &["@allow: POST, OPTIONS"]),
    ]);
    assert_eq!(caller.node.book.copies(), [std::path::Path::new("/copy")]);
    caller.node.book.lose_a_unit();
    caller.check(&[(
        call,
        "admin",
        r#"{"directory":"/damaged"}"#,
        200,
        &[
            r#"{"directory":"/damaged","accounts":1,"adds_up":false,"assets":[{"#,
            r#""position":-1,"pending":0,"adds_up":false}]}"#,
        ],
    )]);
}

#[test]
fn a_name_is_given_once_however_many_ask() {
    let mut caller = Caller::new();
    let request = caller.request("POST /accounts", "admin", ALICE);
    let api = &caller.api;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| api.answered(&request).status)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|status| **status == 409).count(),
        7,
        "{statuses:?}"
    );
}

const ZERO: &str = r#"{"receiver":"$node.example/bob","source_amount":0}"#;

/// A payment of so much to a receiver on the node of the fakes.
fn to(receiver: &str, more: &str) -> String {
    format!(r#"{{"receiver":"$node.example/{receiver}",{more}}}"#)
}

/// Alice and bob, and shards that end payments as the receiver's name says.
fn payers() -> Caller {
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
    ]);
    caller.node.shards.set_payer(|order: PaymentOrder, done: PaymentDone| {
        let name = order.destination.split('.').nth(2).unwrap_or_default().to_owned();
        let failed = |failure| payment_end(Err(failure), 40, 39);
        let refused = |reason| PaymentEnd {
            refused_here: Some(reason),
            ..payment_end(Err(Failure::Cancelled), 0, 0)
        };
        if order.is_quote && name == "bob" {
            let ratio = |numerator, denominator| Ratio::new(numerator, denominator).unwrap();
            let mut end = payment_end(Ok(()), 0, 0);
            end.outcome.quote = Some(Quote {
                bounds: Bounds {
                    lower: ratio(1, 2),
                    upper: ratio(51, 100),
                },
                rate_min: ratio(49, 100),
                packet_amount_max: 1_000,
                source_max: 100,
                delivered_min: 49,
                delivered: 50,
            });
            return done(end);
        }
        done(match &*name {
            "bob" => payment_end(Ok(()), 100, 50),
            "rejects" => failed(Failure::Rejected(ErrorCode::F02_UNREACHABLE)),
            "norate" => refused(RefusedHere::NoRate),
            "badrate" => failed(Failure::RateTooLow),
            "dear" => failed(Failure::SourceTooSmall),
            "cheat" => failed(Failure::ReceiverMisbehaved),
            "closes" => failed(Failure::ClosedByReceiver),
            "idle" => failed(Failure::Idle),
            "late" => failed(Failure::TimedOut),
            "endless" => failed(Failure::TooManyPackets),
            "poor" => refused(RefusedHere::InsufficientBalance),
            "stops" => refused(RefusedHere::NotReady),
            "closing" => refused(RefusedHere::NoAccount),
            // The shard is gone.
            _ => return,
        });
    });
    caller
}

#[test]
fn payments() {
    let mut caller = payers();
    let alice = "Bearer alice:alice-pw";
    let pay = "POST /accounts/alice/payments";
    let hundred = |receiver: &str| to(receiver, r#""source_amount":"100""#);
    let with = |more: &str| to("bob", more);
    caller.check(&[
        (pay, "-", &hundred("bob"), 401, &[]),
        (pay, "admin", &hundred("bob"), 401, &["only the holder"]),
        (pay, "Bearer bob:bob:pw", &hundred("bob"), 401, &[]),
        ("POST /accounts/nobody/payments", alice, &hundred("bob"), 401, &[]),
        ("PUT /accounts/alice/payments", alice, "", 405, &["@allow: GET, HEAD, POST, OPTIONS"]),
        // Nothing is asked of anybody.
        (pay, alice, ZERO, 200, &[
            r#"{"from":"example.hub.alice","to":null,"sent_amount":0,"sent_asset_scale":9,"sent_asset_code":"ABC","#,
            r#""source_amount":0,"in_flight_amount":0,"delivered_amount":0,"delivered_asset_scale":null,"#,
            r#""destination_asset_code":null,"id":null,"state":"completed""#,
        ]),
        (pay, alice, &with(r#""destination_amount":0"#), 200, &[r#""sent_amount":0"#]),
        (pay, alice, &hundred("bob"), 200, &[
            r#"{"from":"example.hub.alice","to":"example.node.bob.token","sent_amount":100,"sent_asset_scale":9,"sent_asset_code":"ABC","source_asset_scale":9,"source_asset_code":"ABC","source_amount":100,"in_flight_amount":0,"delivered_amount":50,"delivered_asset_scale":2,"delivered_asset_code":"XYZ","destination_asset_scale":2,"destination_asset_code":"XYZ","id":""#,
            r#""state":"completed","receiver":"$node.example/bob","destination_amount":null,"slippage":"0.015","#,
            r#""packets":3,"code":null,"detail":null,"ilp_code":null"#,
            "!warnings", "!nobody may ever see", "@content-type: application/json",
        ]),
        (pay, alice, &with(r#""destination_amount":50,"source_amount":100,"slippage":"2e-2","timeout_ms":"600000","colour":1"#), 200, &[
            r#""destination_amount":50,"slippage":"0.02","timeout_ms":600000"#,
            r#""warnings":[{"field":"colour","message":"is not known and was ignored"}]"#,
        ]),
        // Every fault at once.
        (pay, alice, "{}", 400, &["json_data", "receiver is missing; source_amount is missing"]),
        (pay, alice, "[]", 400, &["json_data"]),
        (pay, alice, "", 400, &["json_eof"]),
        (pay, alice, r#"{"receiver":7,"source_amount":-1,"slippage":1,"timeout_ms":0}"#, 400, &[
            r#"[{"name":"receiver","type":"invalid"},{"name":"source_amount","type":"out_of_range"},{"name":"slippage","type":"out_of_range"},{"name":"timeout_ms","type":"out_of_range"}]"#,
        ]),
        (pay, alice, r#"{"receiver":"bob","source_amount":1.5}"#, 400, &["json_data", r#""name":"receiver""#, "source_amount"]),
        (pay, alice, r#"{"receiver":"bob","source_amount":1}"#, 400, &["invalid_receiver", "payment pointer", r#""name":"receiver""#]),
        (pay, alice, r#"{"receiver":"$a@b.example","source_amount":1}"#, 400, &["invalid_receiver", "password"]),
        (pay, alice, r#"{"receiver":"$b.example/#x","source_amount":1}"#, 400, &["invalid_receiver", "fragment"]),
        (pay, alice, &with(r#""source_amount":1,"slippage":-0.1"#), 400, &["slippage"]),
        (pay, alice, &with(r#""source_amount":1,"slippage":"NaN""#), 400, &["slippage"]),
        (pay, alice, &with(r#""source_amount":1,"slippage":0.99999999999999999999"#), 400, &["19 digits"]),
        (pay, alice, &with(r#""source_amount":1,"slippage":0.9999999999999999999"#), 200, &[]),
        (pay, alice, &with(r#""source_amount":1,"timeout_ms":600001"#), 400, &["from 1 to 600000"]),
        // Nobody was paid.
        (pay, alice, r#"{"receiver":"$other.example","source_amount":1}"#, 400, &[
            "receiver_not_allowed", r#""payment":{"from":"example.hub.alice","to":null,"sent_amount":0,"#,
        ]),
        (pay, alice, &hundred("gone"), 502, &["receiver_unreachable", "nothing was sent", r#""id":null"#, r#""state":"failed""#]),
        // Ends of payments.
        (pay, alice, &hundred("rejects"), 502, &[
            r#""title":"Payment Failed","status":502,"code":"rejected","detail":"the path rejected a packet with F02 (Unreachable); 40 of 100 units of ABC at scale 9 were sent, 39 units of XYZ at scale 2 delivered""#,
            r#""ilp_code":"F02","payment":{"from""#, r#""sent_amount":40,"#, r#""delivered_amount":39,"#,
            "@content-type: application/problem+json",
        ]),
        (pay, alice, &hundred("norate"), 502, &["rate_unavailable"]),
        (pay, alice, &hundred("badrate"), 502, &["rate_too_low", r#""state":"failed""#, "!invalid-params"]),
        (pay, alice, &hundred("dear"), 502, &["source_amount_too_small"]),
        (pay, alice, &hundred("cheat"), 502, &["receiver_misbehaved"]),
        (pay, alice, &hundred("closes"), 502, &["closed_by_receiver"]),
        (pay, alice, &hundred("idle"), 504, &[r#""code":"timeout""#, "for 30 s"]),
        (pay, alice, &hundred("late"), 504, &[r#""code":"timeout""#]),
        (pay, alice, &hundred("endless"), 502, &["too_many_packets"]),
        (pay, alice, &hundred("poor"), 502, &["insufficient_balance", "nothing was sent"]),
        (pay, alice, &hundred("stops"), 502, &[r#""code":"interrupted""#]),
        (pay, alice, &hundred("closing"), 502, &[r#""code":"cancelled""#]),
        (pay, alice, &hundred("vanishes"), 500, &["internal"]),
        // The list.
        ("GET /accounts/alice/payments?limit=2", "admin", "", 200, &[
            r#"[{"from":"example.hub.alice","to":"example.node.vanishes.token","#, r#""state":"sending""#,
            r#""receiver":"$node.example/closing""#, "!stops",
        ]),
        ("GET /accounts/bob/payments", "Bearer bob:bob:pw", "", 200, &["[]"]),
        ("GET /accounts/alice/payments", "Bearer bob:bob:pw", "", 401, &[]),
        ("GET /accounts/alice/payments?limit=0", alice, "", 400, &["from 1 to 1000"]),
        ("GET /accounts/alice/payments?before=7", alice, "", 400, &["the id of a payment"]),
        // Quotes.
        ("POST /accounts/alice/quotes", "admin", &hundred("bob"), 401, &[]),
        ("POST /accounts/alice/quotes", alice, &hundred("bob"), 200, &[
            r#"{"from":"example.hub.alice","to":"example.node.bob.token","source_amount":100,"source_asset_scale":9,"source_asset_code":"ABC","delivered_amount":50,"min_delivered_amount":49,"destination_asset_scale":2,"destination_asset_code":"XYZ","rate":{"numerator":1,"denominator":2},"max_packet_amount":1000}"#,
        ]),
        ("POST /accounts/alice/quotes", alice, ZERO, 400, &["source_amount"]),
        ("POST /accounts/alice/quotes", alice, &hundred("gone"), 502, &["receiver_unreachable"]),
        ("POST /accounts/alice/quotes", alice, &hundred("rejects"), 502, &[r#""ilp_code":"F02""#]),
    ]);
    caller.node.control.set_readiness(Readiness::Stopping);
    caller.check(&[(
        pay,
        alice,
        &hundred("bob"),
        503,
        &["not_ready", "stopping", "@retry-after: 5"],
    )]);
    caller.node.control.set_readiness(Readiness::Ready);
    caller.node.book.fail("the disk is full");
    caller.check(&[(pay, alice, &hundred("bob"), 503, &["not_ready"])]);
}

#[test]
fn payments_are_listed_in_pages() {
    let mut caller = payers();
    for amount in 1..=5 {
        let body = to("bob", &format!(r#""source_amount":{amount}"#));
        assert_eq!(
            caller.call("POST /accounts/alice/payments", "Bearer alice-pw", &body).0,
            200
        );
    }
    let mut found = Vec::new();
    let mut call = "GET /accounts/alice/payments?limit=2".to_owned();
    loop {
        let (status, answer, headers) = caller.call(&call, "Bearer alice-pw", "");
        assert_eq!(status, 200, "{answer}");
        let page: Vec<serde_json::Value> = serde_json::from_str(&answer).unwrap();
        found.extend(page.iter().map(|payment| payment["source_amount"].as_u64().unwrap()));
        let Some((_, link)) = headers.iter().find(|(name, _)| *name == "link") else {
            break;
        };
        let target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
        call = format!("GET {target}");
        assert!(found.len() < 6, "it ends");
    }
    assert_eq!(found, [5, 4, 3, 2, 1]);
}

#[test]
fn one_key_is_one_payment() {
    let mut caller = payers();
    let paid = |caller: &Caller| caller.node.shards.take_published().matches("pay:").count();
    let call = |caller: &mut Caller, key: &str, body: &str| {
        let mut request = caller.request("POST /accounts/alice/payments", "Bearer alice-pw", body);
        request.headers.push(("idempotency-key".to_owned(), key.into()));
        let (status, answer, _) = show(caller.api.answered(&request));
        (status, answer)
    };
    let hundred = |receiver: &str| to(receiver, r#""source_amount":100"#);
    for (receiver, status) in [("bob", 200), ("rejects", 502), ("idle", 504)] {
        let first = call(&mut caller, receiver, &hundred(receiver));
        assert_eq!(first.0, status, "{first:?}");
        let again = call(&mut caller, receiver, &hundred(receiver));
        assert_eq!(again, first);
        // Written in another way, it is the same request.
        let same = to(receiver, r#""slippage":0.0150,"source_amount":"100","timeout_ms":null"#);
        assert_eq!(call(&mut caller, receiver, &same), first);
        assert_eq!(paid(&caller), 1);
        let other = to(receiver, r#""source_amount":101"#);
        let (status, answer) = call(&mut caller, receiver, &other);
        assert!(status == 409 && answer.contains("Idempotency Error") && answer.contains("idempotency_conflict"));
        assert_eq!(paid(&caller), 0);
    }
    // What was never begun may be tried again, and is another request's as well.
    assert_eq!(call(&mut caller, "gone", &hundred("gone")).0, 502);
    assert_eq!(call(&mut caller, "gone", &hundred("bob")).0, 200);
    let long = "k".repeat(256);
    for key in ["", "a b", "\u{e4}", &long] {
        let (status, answer) = call(&mut caller, key, &hundred("bob"));
        assert!(status == 400 && answer.contains("Idempotency-Key"), "{key}: {answer}");
    }
    // Another account may use the same key.
    let mut request = caller.request("POST /accounts/bob/payments", "Bearer bob:bob:pw", &hundred("bob"));
    request.headers.push(("idempotency-key".to_owned(), b"bob".to_vec()));
    caller.node.shards.take_published();
    assert_eq!(caller.api.answered(&request).status, 200);
    assert_eq!(paid(&caller), 1);
    assert!(!caller.directions.take_asked().is_empty());
}

#[test]
fn who_asks_meanwhile_waits_for_the_same_payment() {
    let mut caller = payers();
    let (started, starts) = crossbeam::channel::unbounded();
    caller.node.shards.set_payer(move |_, done| started.send(done).unwrap());
    let (answered, answers) = crossbeam::channel::unbounded();
    let body = to("bob", r#""source_amount":100"#);
    for number in 0..8 {
        let mut request = caller.request("POST /accounts/alice/payments", "Bearer alice-pw", &body);
        request.headers.push(("idempotency-key".to_owned(), b"k".to_vec()));
        if number == 7 {
            request.body = to("bob", r#""source_amount":101"#).into();
        }
        let answered = answered.clone();
        let respond = Box::new(move |response: ApiResponse| answered.send(show(response)).unwrap());
        // Nothing waits here: the answers come later.
        caller.api.handle(&request, Responder::new(&request, respond));
    }
    let (status, ..) = answers.recv().unwrap();
    assert_eq!(status, 409, "another request with the key is refused at once");
    let done = starts.recv().unwrap();
    assert!(answers.is_empty());
    done(payment_end(Ok(()), 100, 50));
    let first = answers.recv().unwrap();
    assert_eq!(first.0, 200);
    for _ in 0..6 {
        assert_eq!(answers.recv().unwrap(), first);
    }
    assert!(starts.is_empty(), "one payment");
}

#[test]
fn requests_are_served_until_there_can_be_no_more() {
    let mut caller = Caller::on(Node::start("example.hub", Arc::new(FakeBook::default())));
    let (pending, requests) = crossbeam::channel::bounded(4);
    let (answered, answers) = crossbeam::channel::bounded(4);
    for call in ["GET /", "GET /nothing"] {
        let answered = answered.clone();
        let request = caller.request(call, "-", "");
        let respond = Box::new(move |response: ApiResponse| answered.send(response.status).unwrap());
        pending.send(Pending::Call { request, respond }).unwrap();
    }
    drop(pending);
    serve(&caller.api, &requests);
    assert_eq!(answers.try_iter().collect::<Vec<_>>(), [200, 404]);
}

#[test]
fn settings_of_the_holder() {
    let mut caller = Caller::new();
    let (alice, bob) = ("Bearer alice-pw", "Bearer bob:bob:pw");
    let settings = "PUT /accounts/alice/settings";
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
        (settings, "-", "{}", 401, &[]),
        (settings, bob, "{}", 401, &[]),
        (settings, "Bearer wrong", "{}", 401, &[]),
        (settings, alice, "{}", 200, &[r#""username":"alice""#, "!warnings"]),
        (settings, "Bearer alice:alice-pw", "{}", 200, &[]),
        (settings, "admin", "{}", 200, &[]),
        ("PUT /accounts/nobody/settings", "admin", "{}", 404, &["account_not_found"]),
        ("PUT /accounts/nobody/settings", alice, "{}", 401, &[]),
        ("GET /accounts/alice/settings", alice, "", 405, &["@allow: PUT, OPTIONS"]),
        (settings, alice, "", 400, &["json_eof"]),
        (settings, alice, "[]", 400, &["expected an object"]),
        (settings, alice, r#"{"settle_to":0,"settle_threshold":"-5"}"#, 200, &[
            r#""settle_threshold":-5,"settle_to":0"#,
            r#"{"field":"settle_threshold","message":"is not above settle_to"#,
        ]),
        (settings, alice, r#"{"settle_to":-1}"#, 400, &[r#"{"name":"settle_to","type":"out_of_range"}"#]),
        (settings, alice, r#"{"settle_to":9223372036854775808}"#, 400, &["0 to 2^63-1"]),
        (settings, "admin", r#"{"settle_to":-1}"#, 400, &["out_of_range"]),
        (settings, alice, r#"{"settle_to":9223372036854775807}"#, 200, &[r#""settle_to":9223372036854775807"#]),
        (settings, alice, r#"{"settle_to":null,"settle_threshold":null}"#, 200, &[
            r#""settle_threshold":null,"settle_to":null"#,
        ]),
        // What must stay with us is not taken out by a settlement either.
        ("PUT /accounts/alice", "admin", r#"{"min_balance":500}"#, 200, &[]),
        (settings, alice, r#"{"settle_to":499}"#, 400, &[
            r#"{"name":"settle_to","type":"out_of_range"}"#, "min_balance of the account, which is 500",
        ]),
        (settings, alice, r#"{"settle_to":500}"#, 200, &[r#""settle_to":500"#]),
        (settings, "admin", r#"{"settle_to":499}"#, 200, &[r#""settle_to":499"#]),
        ("PUT /accounts/alice", "admin", r#"{"min_balance":null,"settle_to":null}"#, 200, &[]),
        // What is not the holder's is left alone.
        (settings, alice, r#"{"max_packet_amount":7,"min_balance":-5,"asset_scale":2,"routing_relation":"Parent",
            "ilp_address":"example.x","username":"bob","settlement_engine_url":"http://e/","colour":"red"}"#, 200, &[
            r#""username":"alice","ilp_address":"example.hub.alice","asset_code":"ABC","asset_scale":9"#,
            r#""max_packet_amount":18446744073709551615,"min_balance":null"#,
            r#""routing_relation":"NonRoutingAccount""#,
            r#""settlement_engine_url":null"#,
            r#"{"field":"min_balance","message":"is not among the settings and was ignored"}"#,
            r#"{"field":"username","#,
            r#"{"field":"colour","message":"is not known and was ignored"}"#,
        ]),
        // One bad field, and nothing is changed.
        (settings, alice, r#"{"ilp_over_http_url":"http://h/","ilp_over_btp_url":"nonsense"}"#, 400, &[
            r#"[{"name":"ilp_over_btp_url","type":"invalid"}]"#,
        ]),
        ("GET /accounts/alice", alice, "", 200, &[r#""ilp_over_http_url":null"#]),
        (settings, alice, r#"{"ilp_over_http_url":"http://h","ilp_over_http_outgoing_token":"out"}"#, 200, &[
            r#""ilp_over_http_url":"http://h/""#,
            r#""tokens_set":["ilp_over_http_incoming_token","ilp_over_http_outgoing_token"],"links":{"http":"ready""#,
        ]),
        (settings, alice, r#"{"ilp_over_btp_url":"btp+ws://u:pass@h:1/"}"#, 200, &[
            r#""ilp_over_btp_url":"btp+ws://u@h:1/""#, "is not connected yet", "!pass",
        ]),
        // The holder stays able to log in.
        (settings, alice, r#"{"ilp_over_http_incoming_token":null}"#, 400, &["the admin may clear it"]),
        (settings, alice, r#"{"ilp_over_http_incoming_token":""}"#, 400, &["must not be empty"]),
        (settings, alice, r#"{"ilp_over_http_incoming_token":"SECRET"}"#, 200, &["was kept"]),
        (settings, alice, r#"{"ilp_over_http_incoming_token":"new:pw"}"#, 200, &["!new:pw"]),
        (settings, alice, "{}", 401, &[]),
        (settings, "Bearer new:pw", "{}", 200, &[]),
        (settings, "Bearer alice:new:pw", "{}", 200, &[]),
        (settings, "admin", r#"{"ilp_over_http_incoming_token":null}"#, 200, &["!ilp_over_http_incoming_token\","]),
        (settings, "Bearer new:pw", "{}", 401, &[]),
    ]);
    let commits = caller.node.book.commits();
    caller.check(&[(settings, "admin", r#"{"ilp_over_http_url":"http://h/"}"#, 200, &[])]);
    assert_eq!(caller.node.book.commits(), commits, "nothing was different");
}

#[test]
fn settlement_engines() {
    let call = "PUT /settlement/engines";
    let mut caller = Caller::new();
    let account = |name: &str, more: &str| {
        format!(
            r#"{{"username":"{name}","asset_code":"ABC","asset_scale":9,"settle_threshold":9,"settle_to":0{more}}}"#
        )
    };
    caller.check(&[
        (
            "POST /accounts",
            "admin",
            &account("alice", ""),
            200,
            &["has no settlement engine to work with"],
        ),
        (call, "-", "{}", 401, &[]),
        (call, "Bearer alice-pw", "{}", 401, &[]),
        ("GET /settlement/engines", "admin", "", 405, &["@allow: PUT, OPTIONS"]),
        (call, "admin", "{}", 200, &["{}"]),
        (call, "admin", "", 400, &["json_eof"]),
        (call, "admin", "[]", 400, &["json_data"]),
        (call, "admin", "ABC=http%3A%2F%2Fe", 400, &["json_syntax"]),
        (
            call,
            "admin",
            r#"{"ABC":7}"#,
            400,
            &[r#"[{"name":"ABC","type":"invalid"}]"#],
        ),
        (
            call,
            "admin",
            r#"{"ABC":"nonsense","":"http://e/","XYZ":"ws://e/"}"#,
            400,
            &[r#"[{"name":"ABC","type":"invalid"},{"name":"","type":"invalid"},{"name":"XYZ","type":"invalid"}]"#],
        ),
        (call, "admin", r#"{"ABC":"http://user:pass@e/"}"#, 400, &["!pass@"]),
        (
            call,
            "admin",
            r#"{"abc":"http://e/","ABC":"http://e/"}"#,
            400,
            &["is there twice"],
        ),
        (
            call,
            "admin",
            r#"{"abc":"http://e:3001","XYZ":"https://x/y"}"#,
            200,
            &[
                r#"{"ABC":"http://e:3001/","XYZ":"https://x/y"}"#,
                "@content-type: application/json",
            ],
        ),
        (
            "GET /accounts/alice",
            "admin",
            "",
            200,
            &[r#""settlement_engine_url":"http://e:3001/""#],
        ),
        (
            "GET /accounts",
            "admin",
            "",
            200,
            &[r#""settlement_engine_url":"http://e:3001/""#],
        ),
        (
            "PUT /accounts/alice",
            "admin",
            r#"{"settle_to":1}"#,
            200,
            &["!no settlement engine"],
        ),
        (
            "POST /accounts",
            "admin",
            &account("bob", r#","settlement_engine_url":"http://own""#),
            200,
            &[r#""settlement_engine_url":"http://own/""#, "!no settlement engine"],
        ),
        // Merged; null removes.
        (
            call,
            "admin",
            r#"{"ABC":null,"DEF":"http://d/"}"#,
            200,
            &[r#"{"ABC":null,"DEF":"http://d/"}"#],
        ),
        (
            "GET /accounts/alice",
            "admin",
            "",
            200,
            &[r#""settlement_engine_url":null"#],
        ),
        (
            "GET /accounts/bob",
            "admin",
            "",
            200,
            &[r#""settlement_engine_url":"http://own/""#],
        ),
    ]);
    let engines = caller.node.control.engines();
    let engines: Vec<_> = engines.iter().map(|(code, url)| format!("{code}={url}")).collect();
    assert_eq!(engines.join(" "), "DEF=http://d/ XYZ=https://x/y");
    let node = Node::start("example.hub", Arc::clone(&caller.node.book));
    assert_eq!(node.control.engines().len(), 2, "a restart keeps them");
}

/// What this node would be answered if it asked itself, and what it tells itself instead.
#[test]
fn the_nodes_own_payers_are_told_the_same() {
    let node = Node::new("example.hub");
    let mut caller = Caller::with(node, |settings| settings.default_spsp_account = Some("bob".into()));
    let own = own_server(
        Arc::clone(&caller.node.control),
        &caller.api.settings,
        ([127, 0, 0, 1], 7770).into(),
    );
    let long = format!("/accounts/{}/spsp", "a".repeat(2_000));
    for created in [false, true] {
        if created {
            caller.check(&[("POST /accounts", "admin", BOB, 200, &[])]);
        }
        for target in [
            "/.well-known/pay",
            "/.well-known/pay?x=1",
            "/accounts/bob/spsp",
            "/accounts/BO%42/spsp/",
            "/accounts/nobody/spsp?x",
            &long,
        ] {
            let (status, body, headers) = caller.call(&format!("GET {target}"), "-", "");
            let answer = (own.answer)(target).unwrap();
            let content_type = ("content-type", answer.content_type);
            assert_eq!(answer.status, status, "{target}");
            assert!(
                headers.contains(&content_type),
                "{target}: {content_type:?}, {headers:?}"
            );
            // Token, secret and time are new in each answer.
            let lasting = |body: &[u8]| {
                let mut body: serde_json::Value = serde_json::from_slice(body).unwrap();
                for name in ["shared_secret", "datetime"] {
                    body[name] = body[name].as_str().map(str::len).into();
                }
                let address = body["destination_account"].as_str().unwrap_or_default();
                body["destination_account"] = address.rsplit_once('.').map_or("", |(account, _)| account).into();
                body
            };
            assert_eq!(lasting(&answer.body), lasting(body.as_bytes()), "{target}");
        }
    }
    for target in [
        "/",
        "/accounts",
        "/accounts/bob",
        "/accounts/bob/payments",
        "/accounts/%zz/spsp",
        "/x",
    ] {
        assert!((own.answer)(target).is_none(), "{target} is nothing that payers ask");
    }
}

#[test]
fn where_payers_are_told_to_pay() {
    let node = Node::new("example.hub");
    let mut caller = Caller::with(node, |settings| settings.default_spsp_account = Some("BOB".into()));
    caller.check(&[
        (
            "GET /.well-known/pay",
            "-",
            "",
            404,
            &[
                r#""code":"not_found""#,
                r#""id":"InvalidReceiverError","message":"Invalid receiver ID""#,
                "@access-control-allow-origin: *",
            ],
        ),
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
        (
            "GET /.well-known/pay",
            "-",
            "",
            200,
            &[
                r#"{"destination_account":"example.hub.bob."#,
                r#"","shared_secret":""#,
                "@content-type: application/spsp4+json",
                "@cache-control: max-age=60",
                "@access-control-allow-origin: *",
                "@access-control-allow-headers: web-monetization-id",
            ],
        ),
        (
            "GET /accounts/ALICE/spsp",
            "Bearer whatever",
            "",
            200,
            &["example.hub.alice."],
        ),
        ("GET /accounts/alice/spsp/", "-", "", 200, &[]),
        ("HEAD /accounts/alice/spsp", "-", "", 200, &[]),
        (
            "OPTIONS /accounts/alice/spsp",
            "-",
            "",
            204,
            &["@allow: GET, HEAD, OPTIONS", "@access-control-allow-origin: *"],
        ),
        (
            "OPTIONS /.well-known/pay",
            "-",
            "",
            204,
            &["@access-control-allow-headers: web-monetization-id"],
        ),
        (
            "POST /accounts/alice/spsp",
            "-",
            "",
            405,
            &["@allow: GET, HEAD, OPTIONS"],
        ),
        (
            "GET /accounts/nobody/spsp",
            "-",
            "",
            404,
            &[
                r#""code":"account_not_found""#,
                r#""id":"InvalidReceiverError","message":"Invalid receiver ID"}"#,
            ],
        ),
        ("GET /accounts/a%2Fb/spsp", "-", "", 404, &[]),
        ("GET /.well-known", "-", "", 404, &[]),
        (
            "PUT /accounts/alice",
            "admin",
            &format!(r#"{{"ilp_address":"example.{}"}}"#, "a".repeat(1_000)),
            200,
            &[],
        ),
        ("GET /accounts/alice/spsp", "-", "", 404, &["too long to be paid at"]),
        ("DELETE /accounts/bob", "admin", "", 200, &[]),
        ("GET /accounts/bob/spsp", "-", "", 404, &[]),
        ("GET /.well-known/pay", "-", "", 404, &[]),
    ]);
    caller.check(&[("POST /accounts", "admin", BOB, 200, &[])]);
    let mut ask = || {
        let (_, answer, _) = caller.call("GET /accounts/bob/spsp", "-", "");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        (
            text("destination_account"),
            base64::decode(&text("shared_secret")).unwrap(),
        )
    };
    let ((one, one_secret), (other, other_secret)) = (ask(), ask());
    assert!(one != other && one_secret != other_secret, "every payer gets another");
    let bob = caller.node.control.find_account("bob").unwrap();
    let token = one.strip_prefix("example.hub.bob.").unwrap();
    let opened = TokenMaker::new(&[9; 32]).open(&bob.uuid, token).unwrap();
    assert_eq!(opened.shared_secret, *one_secret, "a node that starts again knows it");

    // The operator may name the account by its id, too.
    let id = uuid::Uuid::from_bytes(bob.uuid).to_string();
    let node = Node::start("example.hub", Arc::clone(&caller.node.book));
    let mut caller = Caller::with(node, |settings| settings.default_spsp_account = Some(id.into()));
    caller.check(&[
        ("GET /.well-known/pay", "-", "", 200, &["example.hub.bob."]),
        ("DELETE /accounts/bob", "admin", "", 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
        ("GET /.well-known/pay", "-", "", 404, &[]),
    ]);
}

#[test]
fn what_the_operator_decides() {
    let node = Node::new("example.hub");
    let mut caller = Caller::with(node, |settings| {
        settings.open_reads = false;
        settings.balance_format = BalanceFormat::Scaled;
    });
    let integer = r#"{"balance":0,"#;
    let scaled = r#"{"asset_code":"ABC","balance":0.0}"#;
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("POST /accounts", "admin", BOB, 200, &[]),
    ]);
    for call in ["GET /routes", "GET /rates", "HEAD /routes"] {
        caller.check(&[
            (call, "-", "", 401, &[]),
            (call, "admin", "", 200, &[]),
            (call, "Bearer alice:alice-pw", "", 200, &[]),
            (call, "Bearer bob:bob:pw", "", 200, &[]),
            // A password alone names nobody.
            (call, "Bearer alice-pw", "", 401, &[]),
            (call, "Bearer alice:bob:pw", "", 401, &[]),
            (call, "Bearer nobody:alice-pw", "", 401, &[]),
        ]);
    }
    caller.check(&[
        ("GET /", "-", "", 200, &[]),
        ("GET /accounts/alice/balance", "admin", "", 200, &[scaled]),
        (
            "GET /accounts/alice/balance?format=integer",
            "admin",
            "",
            200,
            &[integer],
        ),
        ("GET /accounts/alice/balance?format=scaled", "admin", "", 200, &[scaled]),
        (
            "GET /accounts/alice/balance?format=other",
            "admin",
            "",
            400,
            &["expected integer or scaled"],
        ),
    ]);
}

#[test]
fn log_level_and_description() {
    let mut caller = Caller::new();
    caller.check(&[
        ("POST /accounts", "admin", ALICE, 200, &[]),
        ("PUT /tracing-level", "-", "info", 401, &[]),
        ("PUT /tracing-level", "Bearer alice-pw", "info", 401, &[]),
        ("GET /tracing-level", "admin", "", 405, &["@allow: PUT, OPTIONS"]),
        (
            "PUT /tracing-level",
            "admin",
            " debug,clearway=trace\n",
            200,
            &[
                "Logging level changed to: debug,clearway=trace",
                "@content-type: text/plain; charset=utf-8",
            ],
        ),
        (
            "PUT /tracing-level",
            "admin",
            " ",
            400,
            &["the filter is invalid: it is empty"],
        ),
        (
            "GET /openapi.json",
            "-",
            "",
            200,
            &[r#""openapi": "3.1."#, "@content-type: application/json"],
        ),
        ("PUT /openapi.json", "admin", "{}", 405, &["@allow: GET, HEAD, OPTIONS"]),
    ]);
    let mut request = caller.request("PUT /tracing-level", "admin", "");
    request.body = vec![0xff];
    assert_eq!(caller.api.answered(&request).status, 400);
}

#[test]
fn long_answers_go_on_when_they_are_asked_to() {
    /// Counts down to its end, or to a mistake of ours.
    struct Countdown(u8, bool);

    impl BodySource for Countdown {
        fn next_piece(&mut self) -> (Vec<u8>, bool) {
            assert!(self.0 > 1 || !self.1, "a mistake");
            self.0 -= 1;
            (vec![b'0' + self.0], self.0 > 0)
        }
    }

    let caller = Caller::new();
    for (source, expected) in [
        (Countdown(3, false), "210."),
        (Countdown(1, false), "0."),
        (Countdown(3, true), "21!"),
    ] {
        let mut shown = String::new();
        let mut source: Option<Box<dyn BodySource>> = Some(Box::new(source));
        while let Some(made) = source.take() {
            let (pending, requests) = crossbeam::channel::bounded(1);
            let (answered, answers) = crossbeam::channel::bounded(1);
            let respond = Box::new(move |piece| answered.send(piece).map_err(drop).unwrap());
            pending
                .send(Pending::Piece { source: made, respond })
                .map_err(drop)
                .unwrap();
            drop(pending);
            serve(&caller.api, &requests);
            match answers.try_recv().map_err(drop).unwrap() {
                Piece::Made(bytes, more) => {
                    shown += str::from_utf8(&bytes).unwrap();
                    source = more;
                    if source.is_none() {
                        shown.push('.');
                    }
                }
                Piece::Failed => shown.push('!'),
            }
        }
        assert_eq!(shown, expected);
    }
}
