//! Every field of an account with everything that it must not be, and JSON that is none: each is refused with the right
//! words, and after all of it nothing has changed, nothing was lost, and nothing has leaked.

use std::time::Duration;

use serde_json::{Value, json};

use crate::caller::{Caller, TOKEN_MARK, authorization, check_log, invalid_params, leaked};
use crate::support::http::{Connection, HttpAnswer};
use crate::support::node::{Node, Options};
use crate::tables::ALICE_AND_BOB;

const I64: (&str, &str) = ("-9223372036854775809", "9223372036854775808");
const U64: (&str, &str) = ("-1", "18446744073709551616");
const U32: (&str, &str) = ("-1", "4294967296");

/// The fields that take integers, and the nearest that are out of range.
const INTEGERS: [(&str, (&str, &str)); 9] = [
    ("asset_scale", ("-1", "256")),
    ("max_packet_amount", U64),
    ("min_balance", I64),
    ("max_balance", I64),
    ("settle_threshold", I64),
    ("settle_to", I64),
    ("round_trip_time", U32),
    ("amount_per_minute_limit", U64),
    ("packets_per_minute_limit", U32),
];

/// The fields that take texts, one that is too long, and what is said about that.
fn texts() -> Vec<(&'static str, String, &'static str)> {
    let long_url = |scheme: &str| format!("{scheme}://h/{}", "a".repeat(2_048));
    let long_token = TOKEN_MARK.repeat(171);
    vec![
        ("username", "a".repeat(33), "invalid"),
        ("ilp_address", format!("test.{}", "a".repeat(1_019)), "too_long"),
        ("asset_code", "a".repeat(65), "too_long"),
        ("ilp_over_http_url", long_url("http"), "too_long"),
        ("ilp_over_btp_url", long_url("btp+ws"), "too_long"),
        ("settlement_engine_url", long_url("https"), "too_long"),
        ("ilp_over_http_incoming_token", long_token.clone(), "too_long"),
        ("ilp_over_http_outgoing_token", long_token.clone(), "too_long"),
        ("ilp_over_btp_incoming_token", long_token.clone(), "too_long"),
        ("ilp_over_btp_outgoing_token", long_token, "too_long"),
        ("routing_relation", "Peer".repeat(64), "invalid"),
    ]
}

/// What a field must not be: the field, its value as JSON, and the type of the fault; without one it is no JSON at all.
pub fn bad_values() -> Vec<(&'static str, String, Option<&'static str>)> {
    let mut values = Vec::new();
    for (field, (below, above)) in INTEGERS {
        for value in ["{}", "[]", "[9]", "true", "false"] {
            values.push((field, value.to_owned(), Some("invalid")));
        }
        for text in [
            "", " ", "nine", " 9", "9 ", "+", "-", "--9", "0x10", "9_000", "9,0", "1.5", "9.0", "1e3", "٣", "NaN",
            "null", "9\\u0000",
        ] {
            values.push((field, format!("\"{text}\""), Some("invalid")));
        }
        for number in ["1.5", "9.0", "1e3", "-0.0", "1E-400"] {
            values.push((field, number.to_owned(), Some("invalid")));
        }
        let endless = "9".repeat(2_000);
        for number in [below, above, "340282366920938463463374607431768211456", &endless] {
            values.push((field, number.to_owned(), Some("out_of_range")));
            values.push((field, format!("\"{number}\""), Some("out_of_range")));
        }
        for nonsense in [
            "09", "+9", "9.", ".9", "9e", "0x9", "NaN", "Infinity", "- 9", "nine", "'9'",
        ] {
            values.push((field, nonsense.to_owned(), None));
        }
    }
    for value in [
        "{}",
        "[]",
        "[0.5]",
        "true",
        "\"\"",
        "\" 0.5\"",
        "\"half\"",
        "\"0,5\"",
        "\".5\"",
        "\"5.\"",
        "\"NaN\"",
        "\"1%\"",
        "\"0.5\\u0000\"",
        // More digits than are kept.
        "0.1234567890123456789",
        "1e-19",
        "\"1E-300\"",
    ] {
        values.push(("spread", value.to_owned(), Some("invalid")));
    }
    for number in [
        "1",
        "1.0",
        "1e0",
        "-1",
        "-0.5",
        "-1e-18",
        "1e300",
        "1e301",
        "1e-301",
        "1e99999999999999999999",
    ] {
        values.push(("spread", number.to_owned(), Some("out_of_range")));
        values.push(("spread", format!("\"{number}\""), Some("out_of_range")));
    }
    for nonsense in [".5", "0.", "0.5.5", "NaN", "Infinity", "00.5", "+0.5", "half"] {
        values.push(("spread", nonsense.to_owned(), None));
    }
    for (field, long, fault) in texts() {
        for value in ["{}", "[]", "[\"a\"]", "true", "false", "7", "-1.5e3", "{\"a\":\"b\"}"] {
            values.push((field, value.to_owned(), Some("invalid")));
        }
        values.push((field, "\"\"".to_owned(), Some("invalid")));
        values.push((field, format!("\"{long}\""), Some(fault)));
        if !field.starts_with("ilp_over_btp_") || !field.ends_with("_token") {
            // A token of BTP is any UTF-8.
            for text in ["\\u0000", "ab\\u0000cd", "\\u0007", "\\t", "a\\nb"] {
                values.push((field, format!("\"{text}\""), Some("invalid")));
            }
        }
        for nonsense in [
            "alice",
            "'alice'",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\udbff\\u0041\"",
            "\"\\x41\"",
            "\"\\u00\"",
            "\"a\nb\"",
        ] {
            values.push((field, nonsense.to_owned(), None));
        }
    }
    for (field, bad) in [
        ("username", &["a", "a b", "a-b", "a.b", "a:b", "a/b", "a@b", "½½"][..]),
        (
            "ilp_address",
            &[
                "test", "test.", "test..x", "what.x", "TEST.x", "test.x y", "test.ü", "peer.x", "self.x", "$host/x",
            ],
        ),
        (
            "ilp_over_http_url",
            &[
                "h",
                "h:1",
                "/x",
                "//h/x",
                "http://",
                "ftp://h",
                "ws://h",
                "http://u:s3cr3t@h/",
                "javascript:x",
            ],
        ),
        (
            "settlement_engine_url",
            &[
                "h",
                "h:1",
                "/x",
                "http://",
                "btp+ws://h",
                "http://u@h/",
                "http://[::1",
                "http://h:99999/",
            ],
        ),
        (
            "ilp_over_btp_url",
            &[
                "h",
                "btp+",
                "btp+http://h",
                "btp+btp+ws://h",
                "ftp://h",
                "mailto:a@b",
                "ws://",
            ],
        ),
        (
            "ilp_over_http_incoming_token",
            &[" s3cr3t", "s3cr3t ", "pässword-s3cr3t", "😀"],
        ),
        (
            "ilp_over_http_outgoing_token",
            &[" s3cr3t", "s3cr3t ", "pässword-s3cr3t", "😀"],
        ),
        ("routing_relation", &["Sibling", "Peer ", "NonRouting", "0"]),
    ] {
        for text in bad {
            values.push((field, format!("\"{text}\""), Some("invalid")));
        }
    }
    values
}

/// An account with one member of another value, as a text: a member may be wrong as JSON, too.
fn body_with(field: &str, value: &str) -> String {
    let mut members = vec![format!("\"{field}\":{value}")];
    for (name, good) in [
        ("username", "\"mallory\""),
        ("asset_code", "\"ABC\""),
        ("asset_scale", "9"),
        ("ilp_over_http_incoming_token", "\"mallory-s3cr3t\""),
    ] {
        if name != field {
            members.push(format!("\"{name}\":{good}"));
        }
    }
    format!("{{{}}}", members.join(","))
}

/// Sends bad things over one connection, and keeps what did not come back as it should.
pub struct Attack {
    connection: Connection,
    calls: u32,
    faults: Vec<String>,
}

impl Attack {
    pub fn new(node: &Node) -> Self {
        Self {
            connection: node.connection(),
            calls: 0,
            faults: vec![],
        }
    }

    fn send(&mut self, method: &str, target: &str, body: &[u8]) -> HttpAnswer {
        self.calls += 1;
        let admin = authorization("admin").remove(0);
        let headers = [("Authorization", admin.as_str()), ("Content-Type", "application/json")];
        let answer = self.connection.request(method, target, &headers, body);
        answer.unwrap_or_else(|error| panic!("{method} {target}: {error}: {}", String::from_utf8_lossy(body)))
    }

    /// Sends a body in which one field is wrong, or with which the whole body is no JSON.
    pub fn refuse_field(&mut self, method: &str, target: &str, body: &str, field: &str, fault: Option<&str>) {
        let codes: &[&str] = match fault {
            Some(_) => &["json_data"],
            None => &["json_syntax", "json_eof"],
        };
        let params: Vec<String> = fault.iter().map(|fault| format!("{field} {fault}")).collect();
        self.refuse(method, target, body.as_bytes(), codes, &params);
    }

    /// Panics with everything that was not refused as it should.
    pub fn finish(self) {
        assert!(
            self.faults.is_empty(),
            "{} faults:\n{}",
            self.faults.len(),
            self.faults.join("\n")
        );
    }

    /// Sends a body that must be a 400 of one of these codes, with these `invalid-params`.
    fn refuse(&mut self, method: &str, target: &str, body: &[u8], codes: &[&str], params: &[String]) {
        let answer = self.send(method, target, body);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let is_right = answer.status == 400
            && answer.header("content-type") == Some("application/problem+json")
            && codes.iter().any(|code| answer.json()["code"] == *code)
            && invalid_params(&answer.json()) == params
            && leaked(&text).is_none();
        if !is_right {
            let body = String::from_utf8_lossy(body);
            self.faults.push(format!(
                "{method} {target} {body:.200}: expected {codes:?} {params:?}, got {} {text:.400}",
                answer.status
            ));
        }
    }
}

#[test]
fn no_field_takes_what_it_must_not() {
    let mut node = Node::start_with(Options {
        shards: 2,
        // Whatever may be logged is.
        log_filter: Some("trace".to_owned()),
        log_lines_max: 1_000_000,
        ..Options::default()
    });
    let mut attack = Attack::new(&node);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    let before = node.api().get("/accounts");

    let values = bad_values();
    for (field, value, fault) in &values {
        attack.refuse_field("POST", "/accounts", &body_with(field, value), field, *fault);
        if *field != "min_balance" {
            let beside = format!("{{\"min_balance\":-77,\"{field}\":{value}}}");
            attack.refuse_field("PUT", "/accounts/alice", &beside, field, *fault);
        }
    }
    // All of them at once: every field is named.
    let mut body = Value::Object(Default::default());
    for (field, ..) in INTEGERS {
        body[field] = json!([]);
    }
    for (field, ..) in texts() {
        body[field] = json!({});
    }
    for (method, target) in [("POST", "/accounts"), ("PUT", "/accounts/alice")] {
        let mut params: Vec<String> = body
            .as_object()
            .unwrap()
            .keys()
            .map(|field| format!("{field} invalid"))
            .collect();
        let answer = attack.send(method, target, body.to_string().as_bytes());
        let mut found = invalid_params(&answer.json());
        params.sort();
        found.sort();
        assert_eq!((answer.status, found), (400, params), "{method} {target}");
    }

    no_json(&mut attack);

    println!("{} fields and values, {} calls", values.len(), attack.calls);
    attack.finish();
    // Nothing has come of it.
    assert_eq!(node.api().get("/accounts"), before, "no account was made or changed");
    assert_eq!(
        node.api().get("/routes"),
        json!({"test.hub.alice": "alice", "test.hub.bob": "bob"})
    );
    caller.check(
        "GET / | - | | 200 | status=Ready
         POST /accounts/alice/ilp | alice | prepare test.hub.bob 1 | 200 | ilp=fulfill
         GET /ledger/audit | admin | | 200 | adds_up=true",
    );
    node.terminate();
    assert!(node.exit_status_within(Duration::from_secs(40)).success());
    assert!(
        node.log_lines().iter().any(|line| line.contains("/accounts/alice")),
        "calls are logged"
    );
    check_log(&node);
}

/// Bodies that are no JSON, or more of it than anybody needs, on every call that reads some.
fn no_json(attack: &mut Attack) {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    let nested_objects = |depth: usize| format!("{}{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let bodies: Vec<(Vec<u8>, &[&str], &str)> = vec![
        (b"".to_vec(), &["json_eof"], ""),
        (b" \r\n\t".to_vec(), &["json_eof"], ""),
        (b"{".to_vec(), &["json_eof"], ""),
        (b"{\"username\"".to_vec(), &["json_eof"], ""),
        (b"{\"username\":\"al".to_vec(), &["json_eof"], ""),
        (b"\"".to_vec(), &["json_eof"], ""),
        (b"{}{}".to_vec(), &["json_syntax"], ""),
        (b"{} x".to_vec(), &["json_syntax"], ""),
        (b"{}\0".to_vec(), &["json_syntax"], ""),
        (b"\0{}".to_vec(), &["json_syntax"], ""),
        (b"\xef\xbb\xbf{}".to_vec(), &["json_syntax"], ""),
        (b"{'a':1}".to_vec(), &["json_syntax"], ""),
        (b"{\"a\":1,}".to_vec(), &["json_syntax"], ""),
        (b"{/**/}".to_vec(), &["json_syntax"], ""),
        (b"}".to_vec(), &["json_syntax"], ""),
        (b"username=alice&asset_code=ABC".to_vec(), &["json_syntax"], ""),
        (b"<xml/>".to_vec(), &["json_syntax"], ""),
        (b"{\"\xff\":1}".to_vec(), &["json_syntax"], ""),
        (b"{\"a\":\"\xc3\x28\"}".to_vec(), &["json_syntax"], ""),
        (b"{\"a\":\"\xed\xa0\x80\"}".to_vec(), &["json_syntax"], ""),
        (b"{\"a\":\"\xf4\x90\x80\x80\"}".to_vec(), &["json_syntax"], ""),
        (b"{\"a\":\"\xc0\x80\"}".to_vec(), &["json_syntax"], ""),
        (b"\xff\xfe{\0}\0".to_vec(), &["json_syntax", "json_eof"], ""),
        (b"null".to_vec(), &["json_data"], ""),
        (b"7".to_vec(), &["json_data"], ""),
        (b"true".to_vec(), &["json_data"], ""),
        (b"\"alice\"".to_vec(), &["json_data"], ""),
        (b"[]".to_vec(), &["json_data"], ""),
        (b"[{}]".to_vec(), &["json_data"], ""),
        (b"{\"x\":1,\"x\":1}".to_vec(), &["json_data"], "x invalid"),
        (b"{\"x\":1,\"\\u0078\":2}".to_vec(), &["json_data"], "x invalid"),
        (b"{\"x\":{\"y\":1,\"y\":1}}".to_vec(), &["json_data"], "y invalid"),
        (nested(33).into_bytes(), &["json_syntax"], ""),
        (nested(10_000).into_bytes(), &["json_syntax"], ""),
        (nested_objects(33).into_bytes(), &["json_syntax"], ""),
        (nested_objects(10_000).into_bytes(), &["json_syntax", "json_eof"], ""),
        ("[".repeat(65_536).into_bytes(), &["json_syntax"], ""),
        ("{\"a\":".repeat(13_000).into_bytes(), &["json_syntax"], ""),
        ("9".repeat(65_536).into_bytes(), &["json_data"], ""),
    ];
    for (body, codes, param) in &bodies {
        let params: Vec<String> = Some(*param)
            .filter(|param| !param.is_empty())
            .map(str::to_owned)
            .into_iter()
            .collect();
        for (method, target) in [
            ("POST", "/accounts"),
            ("PUT", "/accounts/alice"),
            ("PUT", "/rates"),
            ("PUT", "/routes/static"),
        ] {
            attack.refuse(method, target, body, codes, &params);
        }
    }
    // As deep as is allowed, and as wide: what is not known is ignored and named.
    let deep = attack.send("PUT", "/accounts/alice", nested(32).as_bytes());
    assert_eq!((deep.status, &deep.json()["warnings"][0]["field"]), (200, &json!("a")));
    let members: Vec<String> = (0..4_000).map(|number| format!("\"m{number}\":[]")).collect();
    let wide = attack.send(
        "PUT",
        "/accounts/alice",
        format!("{{{}}}", members.join(",")).as_bytes(),
    );
    assert_eq!(wide.status, 200);
    assert!(
        wide.json()["warnings"]
            .as_array()
            .is_some_and(|warnings| !warnings.is_empty())
    );
}
