//! What broken, careless and hostile peers put into packets and HTTP requests, and what they get for it. After each of
//! them a good packet passes. RFC 9112 section 11. WebSocket and BTP have `bad_frames.rs`, waiting has `overload.rs`.

mod support;

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;
use support::btp_peer::{BtpPeer, BtpReply, Frame, MESSAGE};
use support::http::{Connection, chunked};
use support::hub::Hub;
use support::node::expect_balance;
use support::packet::{Prepare, Reply};
use support::rule::Rule;

/// Bytes that are no Prepare, with what is wrong about them.
fn malformed_prepares() -> Vec<(&'static str, Vec<u8>)> {
    let good = Prepare::new("test.hub.bob", 1);
    let bytes = good.encode();
    let content = 2; // type, and a length of one byte
    assert_eq!(usize::from(bytes[1]), bytes.len() - content, "the offsets below fit");
    let patched = |at: usize, with: &[u8]| {
        let mut patched = bytes.clone();
        patched[content + at..content + at + with.len()].copy_from_slice(with);
        patched
    };
    let addressed = |destination: &str| {
        Prepare {
            destination: destination.to_owned(),
            ..good.clone()
        }
        .encode()
    };
    let mut too_long = good.clone();
    too_long.data.resize(32_768, 0);
    vec![
        ("type alone", vec![12]),
        ("a length without content", vec![12, 0x81, 0xff]),
        ("no content", vec![12, 0]),
        ("one byte missing", bytes[..bytes.len() - 1].to_vec()),
        (
            "a length of nine bytes",
            [&[12, 0x89][..], &[0xff; 9], &bytes[content..]].concat(),
        ),
        (
            "a length of 2^63",
            [&[12, 0x88, 0x80][..], &[0; 7], &bytes[content..]].concat(),
        ),
        ("an indefinite length", [&[12, 0x80][..], &bytes[content..]].concat()),
        ("month 13", patched(8, b"20261301000000000")),
        ("day 32", patched(8, b"20260132000000000")),
        ("letters in the expiry", patched(8, b"2026010100000000Z")),
        ("a destination beyond the end", patched(57, &[0x7f])),
        ("an empty destination", addressed("")),
        ("a scheme alone", addressed("test")),
        ("an unknown scheme", addressed("what.hub.bob")),
        ("an empty segment", addressed("test..bob")),
        ("a trailing dot", addressed("test.hub.")),
        ("a space in the destination", addressed("test.hub.bob bob")),
        (
            "1,024 bytes of destination",
            addressed(&format!("test.{}", "a".repeat(1019))),
        ),
        ("data of 32,768 bytes", too_long.encode()),
    ]
}

#[test]
fn malformed_packets_are_400_over_http() {
    let hub = Hub::start();
    let mut connection = hub.node.connection();
    let prepare = Prepare::new("test.hub.bob", 1);
    let others = [
        ("nothing", Vec::new()),
        ("a Fulfill", prepare.fulfilled().encode()),
        ("a Reject", Reply::reject("F99", "test.x", "", b"").encode()),
        ("another type", [&[11], &prepare.encode()[1..]].concat()),
        ("text", b"hello".to_vec()),
    ];
    for (what, body) in malformed_prepares().into_iter().chain(others) {
        let headers = [("Authorization", "Bearer alice-http")];
        let answer = connection
            .request("POST", "/accounts/alice/ilp", &headers, &body)
            .expect("an answer");
        assert_eq!(answer.status, 400, "{what}");
        assert_eq!(answer.json()["code"], "invalid_packet", "{what}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{what}"
        );
    }
    // The connection was not at fault.
    let answer = connection
        .post("/accounts/alice/ilp", "alice-http", &prepare)
        .expect("an answer");
    assert!(answer.reply().fulfills(&prepare));
    expect_balance(&hub.node.api(), "alice", -1);
}

#[test]
fn malformed_packets_are_f01_over_btp() {
    let hub = Hub::start();
    hub.node.add_account("mallory", &json!({}));
    let mallory = BtpPeer::connect(hub.node.address(), "mallory", Rule::fulfill());
    for (number, (what, bytes)) in malformed_prepares().into_iter().enumerate() {
        let frame = Frame::ilp(MESSAGE, 1000 + number as u32, &bytes);
        match mallory.request(&frame) {
            BtpReply::Packet(reply) => assert_eq!(reply.code(), "F01", "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let good = Prepare::new("test.hub.bob", 1);
    assert!(mallory.prepare(&good).fulfills(&good), "on the same connection");
    hub.good_packet_passes("malformed packets");
}

#[test]
fn wrong_credentials_are_401_and_too_many_429() {
    let hub = Hub::start();
    let body = Prepare::new("test.hub.bob", 1).encode();
    let ask = |target: &str, headers: &[(&str, &str)]| {
        // At most five failures a second are answered one by one.
        std::thread::sleep(Duration::from_millis(250));
        hub.node
            .connection()
            .request("POST", target, headers, &body)
            .expect("an answer")
    };
    let ilp = "/accounts/alice/ilp";
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let table: [(&str, Headers<'_>, u16); 12] = [
        (ilp, &[], 401),
        ("/ilp", &[], 401),
        (ilp, &[("Authorization", "Bearer wrong")], 401),
        (ilp, &[("Authorization", "Bearer alice-httpx")], 401),
        (ilp, &[("Authorization", "Bearer alice-htt")], 401),
        (ilp, &[("Authorization", "Bearer")], 401),
        (ilp, &[("Authorization", "")], 401),
        (ilp, &[("Authorization", "XXXXXX alice-http")], 401),
        (ilp, &[("Authorization", "Basic !!!")], 401),
        (ilp, &[("Authorization", "Bearer admin-token-of-the-tests")], 401),
        ("/accounts/nobody/ilp", &[("Authorization", "Bearer alice-http")], 401),
        (
            ilp,
            &[
                ("Authorization", "Bearer alice-http"),
                ("Authorization", "Bearer alice-http"),
            ],
            400,
        ),
    ];
    for (target, headers, expected) in table {
        let answer = ask(target, headers);
        assert_eq!(answer.status, expected, "{target} {headers:?}");
        assert_eq!(answer.json()["status"], expected, "{target} {headers:?}");
        if expected == 401 {
            assert!(
                answer
                    .header("www-authenticate")
                    .is_some_and(|value| value.starts_with("Bearer")),
                "{headers:?}"
            );
        }
    }
    hub.good_packet_passes("wrong credentials");
}

#[test]
fn guessing_tokens_is_slowed_down() {
    let hub = Hub::start();
    let prepare = Prepare::new("test.hub.bob", 1);
    let calls = [
        ("GET", "/accounts/alice/balance", 3),
        ("POST", "/accounts/alice/ilp", 4),
        ("POST", "/ilp", 5),
    ];
    for (method, target, last_byte) in calls {
        let guesser = Ipv4Addr::new(127, 0, 0, last_byte);
        let wrong = [("Authorization", "Bearer alice:guess")];
        let statuses: Vec<u16> = (0..20)
            .map(|_| {
                let mut connection = Connection::open_from(guesser, hub.node.address());
                let body = if method == "POST" { prepare.encode() } else { Vec::new() };
                let answer = connection.request(method, target, &wrong, &body).expect("an answer");
                assert_eq!(answer.status == 429, answer.header("retry-after").is_some(), "{target}");
                answer.status
            })
            .collect();
        assert_eq!(statuses[..5], [401; 5], "{target}: five wrong guesses are told so");
        assert_eq!(
            statuses[19], 429,
            "{target}: then guessing is slowed down: {statuses:?}"
        );
        hub.good_packet_passes("somebody else's guesses");
    }
}

#[test]
fn oversized_bodies_are_413_and_oversized_heads_431() {
    let hub = Hub::start();
    let bearer = "Authorization: Bearer alice-http\r\n";
    let admin = "Authorization: Bearer admin-token-of-the-tests\r\nContent-Type: application/json\r\n";
    let sized = |method: &str, target: &str, more: &str, length: u64| {
        format!("{method} {target} HTTP/1.1\r\nHost: node\r\n{more}Content-Length: {length}\r\n\r\n").into_bytes()
    };
    let mut in_chunks = format!(
        "POST /ilp HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer alice:alice-http\r\n{}\r\n",
        TE
    )
    .into_bytes();
    in_chunks.extend(chunked(&[0; 70_000], 1000));
    let expecting = format!("Expect: 100-continue\r\n{bearer}");
    // None of the bodies with a length is sent: the head is enough to know.
    let table = [
        (
            "a packet's body",
            sized("POST", "/accounts/alice/ilp", bearer, 65_537),
            413,
        ),
        ("a packet's body in chunks", in_chunks, 413),
        (
            "an expected body",
            sized("POST", "/accounts/alice/ilp", &expecting, 1 << 40),
            413,
        ),
        ("an account", sized("POST", "/accounts", admin, 65_537), 413),
        (
            "a table of routes",
            sized("PUT", "/routes/static", admin, 4 * 1024 * 1024 + 1),
            413,
        ),
        (
            "a length beyond 64 bits",
            request_with("Content-Length: 18446744073709551616\r\n"),
            400,
        ),
        (
            "a head of 17 KiB",
            request_with(&format!("X: {}\r\n", "x".repeat(17 * 1024))),
            431,
        ),
        (
            "a head that does not end",
            format!("GET /{}", "x".repeat(17 * 1024)).into_bytes(),
            431,
        ),
        ("101 headers", request_with(&"X: x\r\n".repeat(101)), 431),
    ];
    for (what, bytes, expected) in table {
        assert_eq!(hub.status_of(&bytes), (expected, true), "{what}: status, and closed");
        hub.good_packet_passes(what);
    }
    // The limits themselves are allowed.
    let mut largest = Prepare::new("test.hub.bob", 1);
    largest.data.resize(32_767, 1);
    assert!(hub.alice.pay(&largest).fulfills(&largest));
    assert_eq!(hub.status_of(&request_with(&"X: x\r\n".repeat(90))).0, 200);
}

const TE: &str = "Transfer-Encoding: chunked\r\n";

/// `GET /` with these header lines.
fn request_with(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: node\r\n{lines}\r\n").into_bytes()
}

/// Requests that two servers may read as different requests. RFC 9112, section 11.2.
#[test]
fn attempts_to_smuggle_a_request_are_400_and_end_the_connection() {
    let hub = Hub::start();
    let post = |lines: &str, body: &str| {
        format!("POST /ilp HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer alice:alice-http\r\n{lines}\r\n{body}")
    };
    let hidden = "GET / HTTP/1.1\r\nHost: node\r\n\r\n";
    let both = format!("Content-Length: {}\r\n{TE}", hidden.len() + 5);
    let table = [
        ("both lengths", post(&both, &format!("0\r\n\r\n{hidden}"))),
        (
            "both lengths, the other order",
            post(&format!("{TE}Content-Length: 5\r\n"), &format!("0\r\n\r\n{hidden}")),
        ),
        (
            "two different lengths",
            post("Content-Length: 0\r\nContent-Length: 5\r\n", "hello"),
        ),
        (
            "two equal lengths",
            post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ),
        ("a list of lengths", post("Content-Length: 5, 5\r\n", "hello")),
        ("a signed length", post("Content-Length: +5\r\n", "hello")),
        ("a negative length", post("Content-Length: -5\r\n", "hello")),
        ("a hexadecimal length", post("Content-Length: 0x5\r\n", "hello")),
        ("an empty length", post("Content-Length: \r\n", "hello")),
        ("a folded header", post("X: a\r\n b\r\nContent-Length: 5\r\n", "hello")),
        ("a folded length", post("Content-Length:\r\n 5\r\n", "hello")),
        ("a line that ends in LF", post("X: a\nContent-Length: 5\r\n", "hello")),
        ("a head that ends in LF", "GET / HTTP/1.1\nHost: node\n\n".to_owned()),
        ("CR without LF", post("X: a\rContent-Length: 5\r\n", "hello")),
        ("NUL in a value", post("X: a\0b\r\nContent-Length: 5\r\n", "hello")),
        ("a space before the colon", post("Content-Length : 5\r\n", "hello")),
        (
            "a space before the first header",
            format!("GET / HTTP/1.1\r\n Host: node\r\n\r\n{hidden}"),
        ),
        (
            "chunked, then identity",
            post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ),
        (
            "chunked twice",
            post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        ),
        ("chunked in two headers", post(&TE.repeat(2), "0\r\n\r\n")),
        (
            "an unknown coding",
            post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ),
        (
            "a coding after a control byte",
            post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
        ),
        (
            "chunked over an unknown coding",
            post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        ),
        (
            "chunked in HTTP/1.0",
            post(TE, "0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0"),
        ),
        ("a chunk size with a sign", post(TE, "+5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk size with 0x", post(TE, "0x5\r\nhello\r\n0\r\n\r\n")),
        (
            "a chunk size beyond 64 bits",
            post(TE, "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ),
        ("a chunk that ends in LF", post(TE, "5\nhello\r\n0\r\n\r\n")),
        ("a chunk without its end", post(TE, "5\r\nhello0\r\n\r\n")),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        (
            "two Hosts",
            "GET / HTTP/1.1\r\nHost: node\r\nHost: other\r\n\r\n".to_owned(),
        ),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: node\r\n\r\n".to_owned()),
        ("no version", "GET /\r\nHost: node\r\n\r\n".to_owned()),
        (
            "a control byte in the target",
            "GET /\x01 HTTP/1.1\r\nHost: node\r\n\r\n".to_owned(),
        ),
        (
            "not HTTP at all",
            "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03 a TLS hello\r\n\r\n".to_owned(),
        ),
    ];
    let mut wrong = Vec::new();
    for (what, request) in table {
        // One answer, and nothing for what was hidden behind.
        let mut connection = hub.node.connection();
        let _ = connection.send(request.as_bytes());
        let answer = connection.answer().unwrap_or_else(|error| panic!("{what}: {error}"));
        // RFC 9112, section 6.1: a coding that nobody knows may also be answered with 501.
        if answer.status != 400 && !(what.ends_with("coding") && answer.status == 501) {
            wrong.push((what, answer.status));
        }
        let closed_by = connection.answer().expect_err(what);
        assert!(
            matches!(closed_by.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
            "{what}: a second answer, or left open: {closed_by}"
        );
    }
    assert_eq!(wrong, [], "each is a 400");
    assert_eq!(hub.status_of(b"GET / HTTP/2.0\r\nHost: node\r\n\r\n"), (505, true));
    assert_eq!(hub.status_of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (505, true));
    hub.good_packet_passes("smuggling");
    expect_balance(&hub.node.api(), "alice", -1);
}
