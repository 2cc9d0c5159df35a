//! What HTTP itself allows: methods, paths, types, sizes, chunks, expectations, pipelining, and guessing.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;

use crate::caller::{Caller, authorization, password};
use crate::support::eventually;
use crate::support::http::{Connection, HttpAnswer, chunked, request_bytes};
use crate::support::node::{ADMIN_TOKEN, Node};
use crate::support::packet::Prepare;
use crate::tables::{ALICE_AND_BOB, start_node};

fn allowed(answer: &HttpAnswer) -> BTreeSet<String> {
    let allow = answer.header("allow").unwrap_or_default();
    allow.split(',').map(|name| name.trim().to_owned()).collect()
}

/// Asks every path with every method but those it has: 405 for the ones, 204 for OPTIONS, and the same `Allow` for all.
pub fn check_methods(node: &Node, table: &[(&str, &str)]) {
    let mut faults = Vec::new();
    let mut connection = node.connection();
    for (path, methods) in table {
        let expected: BTreeSet<String> = methods.split(", ").map(str::to_owned).collect();
        for method in [
            "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PURGE", "get",
        ] {
            let status = match method {
                "OPTIONS" => 204,
                method if expected.contains(method) => continue,
                _ => 405,
            };
            // Nobody's: the method comes before the caller.
            let answer = connection.request(method, path, &[], b"").expect("an answer");
            if answer.status != status || allowed(&answer) != expected {
                let found = answer.header("allow");
                faults.push(format!(
                    "{method} {path}: expected {status} and {methods}, got {} {found:?}",
                    answer.status
                ));
            }
            if status == 405 && method != "HEAD" {
                assert_eq!(answer.json()["code"], "method_not_allowed", "{method} {path}");
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_path_has_its_methods() {
    let node = start_node(&[]);
    Caller::new(&node).check(ALICE_AND_BOB);
    check_methods(
        &node,
        &[
            ("/", "GET, HEAD, OPTIONS"),
            ("/accounts", "GET, HEAD, POST, OPTIONS"),
            ("/accounts/", "GET, HEAD, POST, OPTIONS"),
            ("/accounts/alice", "GET, HEAD, PUT, DELETE, OPTIONS"),
            ("/accounts/nobody/", "GET, HEAD, PUT, DELETE, OPTIONS"),
            ("/accounts/alice/balance", "GET, HEAD, OPTIONS"),
            ("/accounts/alice/ilp", "POST, OPTIONS"),
            ("/accounts/nobody/ilp", "POST, OPTIONS"),
            ("/ilp", "POST, OPTIONS"),
            ("/ilp/", "POST, OPTIONS"),
            ("/rates", "GET, HEAD, PUT, OPTIONS"),
            ("/rates?x=1", "GET, HEAD, PUT, OPTIONS"),
            ("/rates/confirm", "POST, OPTIONS"),
            ("/routes", "GET, HEAD, OPTIONS"),
            ("/routes/explain", "GET, HEAD, OPTIONS"),
            ("/routes/static", "PUT, OPTIONS"),
            ("/routes/static/", "PUT, OPTIONS"),
            ("/routes/static/test.x", "PUT, DELETE, OPTIONS"),
            ("/ledger/audit", "GET, HEAD, OPTIONS"),
        ],
    );
}

/// The paths of BTP are like all others: OPTIONS is answered, HEAD goes where GET goes.
#[test]
fn the_paths_of_btp_have_their_methods() {
    let node = start_node(&[]);
    check_methods(
        &node,
        &[
            ("/ilp/btp", "GET, HEAD, OPTIONS"),
            ("/accounts/alice/ilp/btp", "GET, HEAD, OPTIONS"),
        ],
    );
    Caller::new(&node).check(
        "HEAD /ilp/btp | - | | 426 |
         HEAD /accounts/alice/ilp/btp | - | | 426 |",
    );
}

#[test]
fn unknown_paths_are_404_for_everybody() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    for path in [
        "/nothing",
        "/account",
        "/Accounts",
        "/ACCOUNTS/alice",
        "//accounts",
        "/accounts//",
        "/accounts//balance",
        "/accounts/alice//",
        "/accounts/alice/nothing",
        "/accounts/alice/balance/x",
        "/accounts/alice/ilp/x",
        "/accounts/alice/ilp/btp/x",
        "/accounts/../accounts",
        "/./accounts/alice",
        "/accounts/alice/../bob",
        "/accounts/a%2Fb",
        "/accounts/alice%2Fbalance",
        "/accounts/%ff",
        "/accounts/%c3%28",
        "/accounts/%6",
        "/accounts/%",
        "/accounts/%zz",
        "/accounts/%2561",
        "/accounts/alice;x=1",
        "/accounts/alice%00",
        "/%61ccounts/nothing/x",
        "/ledger",
        "/ledger/audit/x",
        "/routes/",
        "/routes/x",
        "/routes/static/test/x",
        "/rates/ABC",
        "/ilpx",
        "/ilp/btpx",
        "/.well-known",
        "/.well-known/other",
        "/favicon.ico",
        "/admin",
        "/metrics",
    ] {
        // What stands behind one slash may still be a name that nobody has; only the operator may learn that.
        for method in ["GET", "DELETE"] {
            let (answer, _) = caller.call(&format!("{method} {path}"), "admin", "");
            let one_slash_is_ignored = path == "/routes/";
            let expected = match (one_slash_is_ignored, method) {
                (true, "GET") => 200,
                (true, _) => 405,
                _ => 404,
            };
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
}

#[test]
fn names_in_paths_are_decoded_once_and_folded() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(
        r#"
GET /accounts/%61lice           | admin | | 200 | username=alice
GET /accounts/%61%6c%69%63%65/  | alice | | 200 | username=alice
GET /accounts/ALICE             | alice | | 200 | username=alice
GET /accounts/aLiCe/balance     | alice: | | 200 | balance=0
GET /accounts/%EF%BD%81lice     | admin | | 200 | username=alice
GET /accounts/%2561lice         | admin | | 404 | code=account_not_found
GET /accounts/al+ice            | admin | | 404 | code=account_not_found
PUT /accounts/%41LICE           | admin | {"username":"Alice"} | 200 | username=alice
GET /accounts?limit=%31         | admin | | 200 |
"#,
    );
}

#[test]
fn content_types_of_json_calls() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    for (content_type, status) in [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON;CHARSET=UTF-8", 200),
        ("application/json;charset=\"utf-8\"", 200),
        ("application/json; version=1", 200),
        ("application/x-www-form-urlencoded", 200),
        ("application/octet-stream", 200),
        ("application/json; charset=latin1", 400),
        ("application/json; charset=utf-16", 400),
        ("application/json; charset=", 400),
        ("text/plain", 415),
        ("text/json", 415),
        ("text/plain; charset=utf-8", 415),
        ("multipart/form-data; boundary=x", 415),
        ("image/png", 415),
        ("json", 415),
        ("applicationjson", 415),
    ] {
        for (call, body) in [
            ("PUT /accounts/alice", "{}".to_owned()),
            ("PUT /rates", "{}".to_owned()),
            ("PUT /routes/static", "{}".to_owned()),
            (
                "POST /accounts",
                r#"{"username":"user_$n","asset_code":"ABC","asset_scale":9}"#.to_owned(),
            ),
        ] {
            let (answer, _) = caller.call(call, &format!("admin, Content-Type: {content_type}"), &body);
            assert_eq!(answer.status, status, "{call} with {content_type}");
        }
    }
}

fn admin_request(method: &str, target: &str, more: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let bearer = authorization("admin").remove(0);
    let mut headers = vec![("Authorization", bearer.as_str())];
    headers.extend(more);
    request_bytes(method, target, &headers, body)
}

#[test]
fn bodies_have_a_size() {
    let node = start_node(&[]);
    Caller::new(&node).check(ALICE_AND_BOB);
    // Blanks are as good as anything to fill a body.
    let padded = |length: usize| format!("{{{}}}", " ".repeat(length - 2)).into_bytes();
    const ACCOUNT: usize = 64 * 1024;
    const TABLE: usize = 4 * 1024 * 1024;
    for (method, target, length, status) in [
        ("POST", "/accounts", ACCOUNT, 400),
        ("POST", "/accounts", ACCOUNT + 1, 413),
        ("PUT", "/accounts/alice", ACCOUNT, 200),
        ("PUT", "/accounts/alice", ACCOUNT + 1, 413),
        ("PUT", "/accounts/alice", TABLE + 1, 413),
        ("PUT", "/rates", ACCOUNT + 1, 200),
        ("PUT", "/rates", TABLE, 200),
        ("PUT", "/rates", TABLE + 1, 413),
        ("PUT", "/routes/static", TABLE, 200),
        ("PUT", "/routes/static", TABLE + 1, 413),
    ] {
        let what = format!("{method} {target} with {length} bytes");
        let mut connection = node.connection();
        // The node may refuse before it has read everything.
        let _ = connection.send(&admin_request(method, target, &[], &padded(length)));
        let answer = connection.answer().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.status, status, "{what}");
        if status == 413 {
            assert_eq!(answer.json()["code"], "payload_too_large", "{what}");
        }
        let limit = Duration::from_millis(if status == 413 { 5_000 } else { 50 });
        assert_eq!(connection.is_closed_within(limit), status == 413, "{what}: closed");

        // The same in chunks, whose sum nobody knows before.
        let mut head = format!(
            "{method} {target} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        )
        .into_bytes();
        head.extend(chunked(&padded(length), 16_384));
        let mut connection = node.connection();
        let _ = connection.send(&head);
        let answer = connection
            .answer()
            .unwrap_or_else(|error| panic!("{what} in chunks: {error}"));
        assert_eq!(answer.status, status, "{what} in chunks");
    }
    // What a stranger announces is not waited for.
    for announced in ["65537", "4194305", "18446744073709551615"] {
        let mut connection = node.connection();
        let head = format!("POST /accounts HTTP/1.1\r\nHost: node\r\nContent-Length: {announced}\r\n\r\n");
        connection.send(head.as_bytes()).expect("an open connection");
        assert_eq!(connection.answer().expect("an answer").status, 413, "{announced}");
        assert!(connection.is_closed_within(Duration::from_secs(5)), "{announced}");
    }
    assert_eq!(node.api().get("/accounts").as_array().map(Vec::len), Some(2));
}

/// RFC 7807 wants the words of the status; callers may compare them.
#[test]
fn too_large_has_its_title() {
    let node = start_node(&[]);
    let mut connection = node.connection();
    let head = b"POST /accounts HTTP/1.1\r\nHost: node\r\nContent-Length: 65537\r\n\r\n";
    connection.send(head).expect("an open connection");
    assert_eq!(
        connection.answer().expect("an answer").json()["title"],
        "Payload Too Large"
    );
}

#[test]
fn chunks_expectations_heads_and_pipelines() {
    let node = start_node(&[]);
    // Serves bob's peer, too.
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    let account = |name: &str| json!({"username": name, "asset_code": "ABC", "asset_scale": 9}).to_string();
    let mut connection = node.connection();

    // In chunks of every size.
    for size in [1, 7, 1_000] {
        let mut bytes = format!(
            "POST /accounts HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        )
        .into_bytes();
        bytes.extend(chunked(account(&format!("chunks_{size}")).as_bytes(), size));
        connection.send(&bytes).expect("an open connection");
        assert_eq!(connection.answer().expect("an answer").status, 200, "chunks of {size}");
    }
    // A packet in chunks.
    let prepare = Prepare::new("test.hub.bob", 1);
    let mut bytes = format!(
        "POST /accounts/alice/ilp HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        password("alice")
    )
    .into_bytes();
    bytes.extend(chunked(&prepare.encode(), 10));
    connection.send(&bytes).expect("an open connection");
    assert!(connection.answer().expect("an answer").reply().fulfills(&prepare));

    // A client that waits to be asked for the body.
    let body = account("expecting");
    let head = admin_request("POST", "/accounts", &[("Expect", "100-continue")], body.as_bytes());
    let (head, body) = head.split_at(head.len() - body.len());
    connection.send(head).expect("an open connection");
    assert_eq!(connection.answer().expect("an interim answer").status, 100);
    connection.send(body).expect("an open connection");
    assert_eq!(connection.answer().expect("an answer").json()["username"], "expecting");

    // HEAD is GET without the body: the same head, and the next answer follows at once.
    for target in [
        "/",
        "/accounts",
        "/accounts/alice",
        "/accounts/alice/balance",
        "/rates",
        "/routes",
        "/ledger/audit",
    ] {
        let bearer = authorization("admin").remove(0);
        let headers = [("Authorization", bearer.as_str())];
        let get = connection.request("GET", target, &headers, b"").expect("an answer");
        let head = connection.request("HEAD", target, &headers, b"").expect("an answer");
        assert_eq!((head.status, get.status), (200, 200), "{target}");
        for name in ["content-type", "content-length"] {
            assert_eq!(head.header(name), get.header(name), "{target}: {name}");
        }
    }

    // Many calls at once, answered in their order, those of shards and those of the API.
    let alice = format!("Bearer {}", password("alice"));
    let as_alice = [("Authorization", alice.as_str())];
    let mut bytes = Vec::new();
    let expected = [200, 200, 404, 405, 200, 200, 401, 204, 200];
    bytes.extend(request_bytes("GET", "/", &[], b""));
    bytes.extend(request_bytes(
        "POST",
        "/accounts/alice/ilp",
        &as_alice,
        &prepare.encode(),
    ));
    bytes.extend(request_bytes("GET", "/nothing", &[], b""));
    bytes.extend(request_bytes("PATCH", "/ilp", &[], b""));
    bytes.extend(admin_request("PUT", "/accounts/alice", &[], b"{\"min_balance\":-1000}"));
    bytes.extend(request_bytes("GET", "/accounts/alice", &as_alice, b""));
    bytes.extend(request_bytes("GET", "/accounts", &[], b""));
    bytes.extend(request_bytes("OPTIONS", "/accounts", &[], b""));
    bytes.extend(request_bytes("GET", "/rates", &[], b""));
    connection.send(&bytes).expect("an open connection");
    let answers: Vec<u16> = expected
        .iter()
        .map(|_| connection.answer().expect("an answer to each").status)
        .collect();
    assert_eq!(answers, expected);
    // And byte by byte.
    for byte in admin_request("GET", "/accounts/alice", &[], b"") {
        connection.send(&[byte]).expect("an open connection");
    }
    assert_eq!(connection.answer().expect("an answer").json()["min_balance"], -1000);
    assert_eq!(node.api().get("/accounts").as_array().map(Vec::len), Some(6));
}

/// 2.2, rule 8.
#[test]
fn guessing_slows_down_the_guesser_only() {
    let node = start_node(&[]);
    // Serves bob's peer, too.
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    let wrong = [("Authorization", "Bearer alice:guess")];
    let admin = authorization("admin").remove(0);
    let right = [("Authorization", admin.as_str())];
    let alice = authorization("alice:").remove(0);
    let paying = [("Authorization", alice.as_str())];
    let packet = || Prepare::new("test.hub.bob", 1).encode();
    let mut other = Connection::open_from(Ipv4Addr::new(127, 0, 0, 2), node.address());
    for (number, (method, target)) in [
        ("GET", "/accounts"),
        ("GET", "/accounts/alice"),
        ("PUT", "/rates"),
        ("POST", "/accounts/alice/ilp"),
        ("POST", "/ilp"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut guesser = Connection::open_from(Ipv4Addr::new(127, 0, 1, number as u8 + 1), node.address());
        let is_packet = target.ends_with("ilp");
        let body = if is_packet { packet() } else { b"{}".to_vec() };
        let mut statuses = Vec::new();
        for _ in 0..20 {
            let answer = guesser.request(method, target, &wrong, &body).expect("an answer");
            assert_eq!(answer.status == 429, answer.header("retry-after").is_some(), "{target}");
            statuses.push(answer.status);
            // Another address is not slowed down meanwhile.
            let answer = other.request("GET", "/accounts/alice", &right, b"").expect("an answer");
            assert_eq!(answer.status, 200, "another address during {target}");
            let answer = other
                .request("POST", "/accounts/alice/ilp", &paying, &packet())
                .expect("an answer");
            assert_eq!(answer.reply().code(), "fulfill", "another address during {target}");
        }
        assert_eq!(statuses[..5], [401; 5], "{target}: five are told so");
        assert!(
            statuses.contains(&429),
            "{target}: then it is slowed down: {statuses:?}"
        );
        // A hit is not told either, unless the fifth of a second from which on one may try again ends between two calls;
        // and what needs no secret goes on.
        let hit = if is_packet { &paying } else { &right };
        eventually(&format!("{target}: a hit is not told"), || {
            let mut status = |headers| {
                let answer = guesser.request(method, target, headers, &body);
                answer.expect("an answer").status
            };
            (status(&wrong[..]) == 429 && status(&hit[..]) == 429).then_some(())
        });
        assert_eq!(guesser.request("GET", "/", &[], b"").expect("an answer").status, 200);
        assert_eq!(
            guesser.request("GET", "/rates", &wrong, b"").expect("an answer").status,
            200
        );
        // After a second it is as if nothing had been.
        std::thread::sleep(Duration::from_millis(1_050));
        assert_eq!(
            guesser.request(method, target, hit, &body).expect("an answer").status,
            200,
            "{target}"
        );
    }
}
