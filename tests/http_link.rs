//! ILP over HTTP (RFC 35, synchronous): the node as server of its peers' requests and as client of their endpoints.

mod support;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use clearway::wire::timestamp::Timestamp;
use serde_json::{Value, json};
use support::btp_peer::packet_of;
use support::eventually;
use support::http::{Connection, chunked, request_bytes};
use support::node::{Node, expect_balance};
use support::packet::{Prepare, Reply, now};
use support::party::{Party, Via};
use support::rule::{Answer, Rule};

/// Alice may send over HTTP, bob receives over BTP.
fn hub() -> (Node, Party) {
    let node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    let bob = Party::simple(&node, "bob", Via::BtpToNode);
    (node, bob)
}

#[test]
fn every_form_of_the_token_works_on_both_paths() {
    let (node, _bob) = hub();
    node.add_account(
        "Carol_2",
        &json!({"ilp_over_http_incoming_token": "pass:word and more"}),
    );
    // base64 of `alice:alice-http` and of `carol_2:pass:word and more`.
    let (alice_basic, carol_basic) = (
        "Basic YWxpY2U6YWxpY2UtaHR0cA==",
        "Basic Y2Fyb2xfMjpwYXNzOndvcmQgYW5kIG1vcmU=",
    );
    let table = [
        ("/accounts/alice/ilp", "Bearer alice-http", 200),
        ("/accounts/alice/ilp", "Bearer alice:alice-http", 200),
        ("/accounts/alice/ilp", "bearer   alice-http", 200),
        ("/accounts/alice/ilp", "Bearer alice%3Aalice-http", 200),
        ("/accounts/alice/ilp", alice_basic, 200),
        ("/accounts/alice/ilp/", "Bearer alice-http", 200),
        ("/accounts/%61lice/ilp", "Bearer alice-http", 200),
        ("/accounts/ALICE/ilp", "Bearer Alice:alice-http", 200),
        ("/ilp", "Bearer alice:alice-http", 200),
        ("/ilp", "Bearer ALICE:alice-http", 200),
        ("/ilp", alice_basic, 200),
        ("/accounts/carol_2/ilp", "Bearer pass:word and more", 200),
        ("/accounts/carol_2/ilp", "Bearer carol_2:pass:word and more", 200),
        ("/ilp", "Bearer carol_2:pass:word and more", 200),
        ("/ilp", carol_basic, 200),
        ("/accounts/carol_2/ilp", "Bearer pass", 401),
        ("/accounts/alice/ilp", "Bearer bob:alice-http", 401),
        ("/accounts/alice/ilp", "Bearer alice-btp", 401),
        ("/ilp", "Bearer alice-http", 401),
    ];
    for (target, authorization, expected) in table {
        let prepare = Prepare::new("test.hub.bob", 1);
        let mut connection = node.connection();
        let headers = [("Authorization", authorization)];
        let answer = connection
            .request("POST", target, &headers, &prepare.encode())
            .expect("an answer");
        assert_eq!(answer.status, expected, "{target} {authorization}");
        if expected == 200 {
            assert!(answer.reply().fulfills(&prepare), "{target} {authorization}");
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        }
    }
    expect_balance(&node.api(), "bob", 15);
}

#[test]
fn a_connection_is_kept_and_takes_pipelined_requests_in_order() {
    let node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    // Later packets are answered sooner, yet answers keep the order of the requests.
    let rule = Rule::new(|prepare| Answer::Fulfill.after(Duration::from_millis(200 - 10 * prepare.amount)));
    let _bob = Party::join(&node, "bob", Via::BtpToNode, rule, &json!({}));
    let mut connection = node.connection();
    for round in 0..3 {
        let prepares: Vec<Prepare> = (1..=20).map(|amount| Prepare::new("test.hub.bob", amount)).collect();
        let mut requests = Vec::new();
        for (number, prepare) in prepares.iter().enumerate() {
            let body = prepare.encode();
            let bearer = [("Authorization", "Bearer alice-http"), ("Transfer-Encoding", "chunked")];
            if number % 3 == 0 {
                let head = request_bytes("POST", "/accounts/alice/ilp", &bearer, b"");
                let head = String::from_utf8(head)
                    .expect("a head")
                    .replace("Content-Length: 0\r\n", "");
                requests.extend_from_slice(head.as_bytes());
                requests.extend(chunked(&body, 50));
            } else {
                requests.extend(request_bytes("POST", "/accounts/alice/ilp", &bearer[..1], &body));
            }
        }
        requests.extend(request_bytes("GET", "/", &[], b""));
        // Once as a whole, once in pieces that end anywhere, once byte by byte.
        for piece in requests.chunks([requests.len(), 97, 1][round]) {
            connection.send(piece).expect("the connection is open");
        }
        for prepare in &prepares {
            let answer = connection.answer().expect("an answer to each");
            assert!(
                answer.reply().fulfills(prepare),
                "round {round}, amount {}",
                prepare.amount
            );
        }
        assert_eq!(connection.answer().expect("and to the last").json()["status"], "Ready");
    }
    expect_balance(&node.api(), "alice", -3 * 210);
}

#[test]
fn connections_end_as_http_says() {
    let (node, _bob) = hub();
    let prepare = Prepare::new("test.hub.bob", 1);
    let body = prepare.encode();

    let mut connection = node.connection();
    let headers = [("Authorization", "Bearer alice-http"), ("Connection", "close")];
    let answer = connection
        .request("POST", "/accounts/alice/ilp", &headers, &body)
        .expect("an answer");
    assert!(answer.reply().fulfills(&prepare));
    assert!(connection.is_closed_within(Duration::from_secs(2)), "Connection: close");

    let mut connection = node.connection();
    let head = format!(
        "POST /accounts/alice/ilp HTTP/1.0\r\nAuthorization: Bearer alice-http\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection
        .send(&[head.as_bytes(), &body].concat())
        .expect("the connection is open");
    assert!(connection.answer().expect("an answer").reply().fulfills(&prepare));
    assert!(
        connection.is_closed_within(Duration::from_secs(2)),
        "HTTP/1.0 without keep-alive"
    );

    // A client that has said everything and closed its half still gets its answer.
    let mut connection = node.connection();
    let request = request_bytes("POST", "/accounts/alice/ilp", &headers[..1], &body);
    connection.send(&request).expect("the connection is open");
    connection.end_sending();
    assert!(connection.answer().expect("an answer").reply().fulfills(&prepare));
    assert!(
        connection.is_closed_within(Duration::from_secs(2)),
        "the peer has ended"
    );

    let mut connection = node.connection();
    let head = format!(
        "POST /accounts/alice/ilp HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer alice-http\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send(head.as_bytes()).expect("the connection is open");
    assert_eq!(connection.answer().expect("an answer").status, 100);
    connection.send(&body).expect("the connection is open");
    assert!(connection.answer().expect("an answer").reply().fulfills(&prepare));
    assert!(
        connection
            .post("/accounts/alice/ilp", "alice-http", &prepare)
            .expect("kept")
            .reply()
            .fulfills(&prepare)
    );
}

/// RFC 30: bytes after the packet are for readers of a later time. They go no further: bob would not take them.
#[test]
fn bytes_after_a_packet_are_ignored() {
    let (node, bob) = hub();
    let prepare = Prepare::new("test.hub.bob", 1);
    let body = [&prepare.encode()[..], b"and more"].concat();
    let headers = [("Authorization", "Bearer alice-http")];
    let answer = node
        .connection()
        .request("POST", "/accounts/alice/ilp", &headers, &body)
        .expect("an answer");
    assert!(answer.reply().fulfills(&prepare));
    assert_eq!(bob.rule.received_one().data, prepare.data);
}

/// RFC 9110 section 6.6.1: a server that has a clock says when it answered.
#[test]
fn every_answer_has_its_date() {
    let (node, _bob) = hub();
    let mut connection = node.connection();
    let good = Prepare::new("test.hub.bob", 1).encode();
    let bearer = [("Authorization", "Bearer alice-http")];
    for (method, target, headers, body, status) in [
        ("POST", "/accounts/alice/ilp", &bearer[..], &good[..], 200),
        ("POST", "/accounts/alice/ilp", &bearer, &good, 200), // the same head once more takes a shorter way
        ("POST", "/accounts/alice/ilp", &bearer, b"no packet", 400),
        ("POST", "/accounts/alice/ilp", &[], &good, 401),
        ("GET", "/", &[], b"", 200),
        ("PATCH", "/", &[], b"", 405),
        ("GET", "/nothing", &[], b"", 404),
    ] {
        let before = now();
        let answer = connection.request(method, target, headers, body).expect("an answer");
        assert_eq!(answer.status, status, "{method} {target}");
        let date = answer.header("date").unwrap_or_default().as_bytes();
        assert!(
            (before / 1000..=now() / 1000).any(|second| Timestamp::from_millis(second * 1000).to_http_date() == date),
            "{method} {target}: {}",
            date.escape_ascii()
        );
    }
}

#[test]
fn other_methods_and_paths_are_refused_and_the_connection_lives() {
    let (node, _bob) = hub();
    let mut connection = node.connection();
    let table = [
        ("GET", "/accounts/alice/ilp", 405),
        ("PUT", "/ilp", 405),
        ("POST", "/accounts/nobody/ilp", 401),
        ("POST", "/accounts/a%2Fb/ilp", 404),
        ("POST", "/accounts/alice/ilp/more", 404),
        ("POST", "/", 405),
        ("GET", "/nothing", 404),
    ];
    for (method, target, expected) in table {
        let headers = [("Authorization", "Bearer alice-http")];
        let answer = connection.request(method, target, &headers, b"x").expect("an answer");
        assert_eq!(answer.status, expected, "{method} {target}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{method} {target}"
        );
        if expected == 405 {
            assert!(answer.header("allow").is_some(), "{method} {target}");
        }
    }
    let prepare = Prepare::new("test.hub.bob", 1);
    assert!(
        connection
            .post("/ilp", "alice:alice-http", &prepare)
            .expect("an answer")
            .reply()
            .fulfills(&prepare)
    );
}

/// What a peer's HTTP answer means for the sender.
#[test]
fn statuses_of_a_peer_become_rejects() {
    let table = [
        (400, "T00"),
        (401, "T01"),
        (404, "T01"),
        (405, "T01"),
        (413, "T00"),
        (429, "T03"),
        (503, "T03"),
        (500, "T01"),
        (502, "T01"),
        (202, "T00"),
    ];
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let rule = Rule::new(|prepare| match prepare.amount {
        1 => Answer::Fulfill,
        2 => Answer::Close,
        status => Answer::Status(status as u16),
    });
    let bob = Party::join(&node, "bob", Via::Http, rule, &json!({}));
    for (status, expected) in table {
        let reply = alice.pay(&Prepare::new("test.hub.bob", status));
        assert_eq!(reply.code(), expected, "status {status}");
        let Reply::Reject { triggered_by, .. } = reply else {
            panic!("a Reject")
        };
        assert_eq!(triggered_by, "test.hub", "status {status}");
    }
    assert_eq!(
        alice.pay(&Prepare::new("test.hub.bob", 2)).code(),
        "T01",
        "closed instead of an answer"
    );
    assert_eq!(
        alice.pay(&Prepare::new("test.hub.bob", 1)).code(),
        "fulfill",
        "and then it works"
    );
    assert_eq!(
        bob.rule.received().len(),
        table.len() + 2,
        "no packet is ever sent twice"
    );
    expect_balance(&node.api(), "alice", -1);
}

#[test]
fn a_peer_that_is_not_there_is_t01() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::Http);
    let closed_port = {
        let peer = support::http_peer::HttpPeer::start(Rule::fulfill());
        peer.url()
    };
    node.add_account("closed", &json!({"ilp_over_http_url": closed_port}));
    node.add_account("linkless", &json!({}));
    node.add_account(
        "dead_btp",
        &json!({"ilp_over_btp_url": closed_port.replace("http", "btp+ws")}),
    );
    for name in ["closed", "linkless", "dead_btp"] {
        let begun = Instant::now();
        let reply = alice.pay(&Prepare::new(&format!("test.hub.{name}"), 5));
        assert_eq!(reply.code(), "T01", "{name}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{name}: at once, not at the expiry"
        );
    }
    expect_balance(&node.api(), "alice", 0);

    // When the peer comes up, it is found without any call of the operator.
    let address = closed_port
        .trim_start_matches("http://")
        .trim_end_matches("/ilp")
        .parse()
        .expect("an address");
    let peer = support::http_peer::HttpPeer::start_at(address, Rule::fulfill());
    eventually("the peer is reached", || {
        (alice.pay(&Prepare::new("test.hub.closed", 5)).code() == "fulfill").then_some(())
    });
    assert_eq!(peer.rule.fulfilled(), 5);
}

#[test]
fn the_node_keeps_its_connections_to_a_peer() {
    let (node, alice, bob) = {
        let node = Node::start();
        let alice = Party::simple(&node, "alice", Via::BtpToNode);
        let bob = Party::simple(&node, "bob", Via::Http);
        (node, alice, bob)
    };
    for _ in 0..50 {
        assert_eq!(alice.pay(&Prepare::new("test.hub.bob", 1)).code(), "fulfill");
    }
    assert_eq!(
        bob.http_peer().connections(),
        1,
        "one packet after another needs one connection"
    );
    assert_eq!(bob.http_peer().authorization().as_deref(), Some("Bearer from-the-node"));

    // A peer may close what is idle; that costs no packet.
    for _ in 0..5 {
        bob.http_peer().close_connections();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(alice.pay(&Prepare::new("test.hub.bob", 1)).code(), "fulfill");
    }
    expect_balance(&node.api(), "bob", 55);

    // A new token is used for the next packet.
    node.api()
        .put("/accounts/bob", &json!({"ilp_over_http_outgoing_token": "another"}));
    assert_eq!(alice.pay(&Prepare::new("test.hub.bob", 1)).code(), "fulfill");
    assert_eq!(bob.http_peer().authorization().as_deref(), Some("Bearer another"));

    // So is a new address, path and query included.
    let elsewhere = support::http_peer::HttpPeer::start(Rule::fulfill());
    node.api()
        .put("/accounts/bob", &json!({"ilp_over_http_url": elsewhere.url()}));
    assert_eq!(alice.pay(&Prepare::new("test.hub.bob", 1)).code(), "fulfill");
    assert_eq!(elsewhere.rule.received().len(), 1);
}

#[test]
fn packets_to_a_slow_peer_wait_side_by_side() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let rule = Rule::always(Answer::Fulfill.after(Duration::from_millis(500)));
    let _bob = Party::join(&node, "bob", Via::Http, rule, &json!({}));
    let begun = Instant::now();
    let waiting: Vec<_> = (0..32)
        .map(|_| alice.btp_peer().start_prepare(&Prepare::new("test.hub.bob", 1)))
        .collect();
    for reply in waiting {
        assert_eq!(packet_of(&reply).code(), "fulfill");
    }
    let took = begun.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "32 waits of 0.5 s, one after another would be 16 s: {took:?}"
    );
}

/// Whatever framing a peer's server chooses for its answers.
#[test]
fn a_peer_may_frame_its_answers_as_http_allows() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let rule = Rule::new(|prepare| {
        let packet = prepare.fulfilled().encode();
        let (head, body) = match prepare.amount {
            1 => (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                chunked(&packet, 10),
            ),
            2 => (
                "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 39\r\n\r\n",
                packet,
            ),
            3 => (
                "HTTP/1.1 200\r\ncontent-LENGTH:39\r\nX-Long: \t padded \t \r\n\r\n",
                packet,
            ),
            4 => (
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 39\r\n\r\n",
                packet,
            ),
            5 => (
                "HTTP/1.1 200 OK\r\nContent-Length: 39, 39\r\nContent-Length: 40\r\n\r\n",
                packet,
            ),
            6 => ("HTTP/3.0 200 OK\r\nContent-Length: 39\r\n\r\n", packet),
            7 => ("SSH-2.0-OpenSSH_9.6\r\n", packet),
            8 => (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                packet,
            ),
            9 => (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"fffffffffffffffff\r\n".to_vec(),
            ),
            10 => (
                "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
                vec![0x0d; 1_000_000],
            ),
            _ => ("HTTP/1.1 200 OK\r\nContent-Length: 39\r\n\r\n", packet),
        };
        Answer::Raw([head.as_bytes(), &body].concat())
    });
    let _bob = Party::join(&node, "bob", Via::Http, rule, &json!({}));
    for amount in 0..=10 {
        let prepare = Prepare::new("test.hub.bob", amount);
        assert_eq!(prepare.fulfilled().encode().len(), 39, "the lengths above fit");
        let reply = alice.pay(&prepare);
        if amount <= 4 {
            assert!(reply.fulfills(&prepare), "case {amount}: {reply:?}");
        } else {
            assert!(["T00", "T01"].contains(&reply.code()), "case {amount}: {reply:?}");
        }
        let good = Prepare::new("test.hub.bob", 0);
        assert!(alice.pay(&good).fulfills(&good), "after case {amount}");
    }
    node.api().audit();
}

#[test]
fn changes_of_an_account_hold_at_once() {
    let (node, bob) = hub();
    let api = node.api();
    let mut connection = node.connection();
    let mut pay = |token: &str| {
        let prepare = Prepare::new("test.hub.bob", 1);
        connection
            .post("/accounts/alice/ilp", token, &prepare)
            .expect("an answer")
            .status
    };
    assert_eq!(pay("alice-http"), 200);
    api.put(
        "/accounts/alice",
        &json!({"ilp_over_http_incoming_token": "new secret"}),
    );
    assert_eq!(
        pay("alice-http"),
        401,
        "the old token, on a connection that used it before"
    );
    assert_eq!(pay("new secret"), 200);
    expect_balance(&api, "alice", -2);

    // What is owed is not forgotten: first the balance, then the account.
    let refused = api.call("DELETE", "/accounts/alice", None);
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (409, &json!("balance_not_zero"))
    );
    assert_eq!(pay("new secret"), 200, "a refused deletion changes nothing");
    let deleted = api.ok("DELETE", "/accounts/alice?force=true", None);
    assert_eq!(support::http::whole(&deleted["written_off"]), -3);
    assert_eq!(pay("new secret"), 401, "gone");
    assert_eq!(api.call("GET", "/accounts/alice", None).status, 404);
    let reply = bob.pay(&Prepare::new("test.hub.alice", 1));
    assert_eq!(reply.code(), "F02", "its route is gone");
    expect_balance(&api, "bob", 3);
    api.audit();

    // The name is free at once, and the new account has nothing of the old one.
    node.add_account("alice", &json!({}));
    assert_eq!(api.balance("alice"), 0);
    let prepare = Prepare::new("test.hub.bob", 1);
    let reply = node
        .connection()
        .post("/accounts/alice/ilp", "alice-http", &prepare)
        .expect("an answer")
        .reply();
    assert!(reply.fulfills(&prepare));
    api.audit();
}

/// Connections from many clients of one account, on every shard, at the same moment.
#[test]
fn many_connections_of_one_account_share_its_balance() {
    let (node, bob) = hub();
    node.api().put("/accounts/alice", &json!({"min_balance": -500}));
    let start = Barrier::new(16);
    let fulfilled: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(node.address());
                    start.wait();
                    let mut fulfilled = 0;
                    for _ in 0..50 {
                        let prepare = Prepare::new("test.hub.bob", 1);
                        let answer = connection.post("/accounts/alice/ilp", "alice-http", &prepare);
                        match answer.expect("an answer").reply() {
                            reply @ Reply::Fulfill { .. } => {
                                assert!(reply.fulfills(&prepare));
                                fulfilled += 1;
                            }
                            reply => assert_eq!(reply.code(), "T04"),
                        }
                    }
                    fulfilled
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("no client panics"))
            .sum()
    });
    assert_eq!(fulfilled, 500, "800 were sent, 500 may pass");
    expect_balance(&node.api(), "alice", -500);
    expect_balance(&node.api(), "bob", 500);
    assert_eq!(bob.rule.fulfilled(), 500);
    let audit: Value = node.api().audit();
    assert_eq!(audit["adds_up"], true);
}
