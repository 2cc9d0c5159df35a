//! BTP 2.0 (RFC 23): the node as server of its peers' connections and as client of theirs, with peers that follow the
//! RFC and with peers that speak the inverted dialect of interledger-rs 1.0.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::btp_peer::{
    BtpPeer, BtpServer, Dialect, ERROR, Frame, Login, MESSAGE, RESPONSE, TRANSFER, next_frame, packet_of, upgrade,
};
use support::http::request_bytes;
use support::node::{Node, expect_balance};
use support::packet::{Prepare, Reply};
use support::party::{Party, Via};
use support::raw_websocket::UPGRADE;
use support::rule::{Answer, Rule};
use support::{eventually, within};
use tungstenite::Message;
use tungstenite::protocol::frame::Frame as WebSocketFrame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

#[test]
fn every_form_of_the_token_is_accepted_and_wrong_ones_are_f00() {
    let node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    node.add_account("bob", &json!({"ilp_over_btp_incoming_token": "with:colon und größer"}));
    node.add_account("mute", &json!({"ilp_over_btp_incoming_token": null}));
    let path = |name: &str| format!("/accounts/{name}/ilp/btp");
    let table = [
        (path("alice"), None, "alice-btp", "ok"),
        (path("alice"), Some(""), "alice-btp", "ok"),
        (path("alice"), Some("Alice"), "alice-btp", "ok"),
        (path("ALICE"), None, "alice:alice-btp", "ok"),
        ("/ilp/btp".to_owned(), Some("alice"), "alice-btp", "ok"),
        ("/ilp/btp".to_owned(), None, "alice:alice-btp", "ok"),
        ("/ilp/btp".to_owned(), Some(""), "alice:alice-btp", "ok"),
        (path("bob"), None, "with:colon und größer", "ok"),
        ("/ilp/btp".to_owned(), None, "bob:with:colon und größer", "ok"),
        (path("alice"), Some("bob"), "alice-btp", "F00"),
        (path("alice"), None, "alice-http", "F00"),
        ("/ilp/btp".to_owned(), None, "alice-btp", "F00"),
        (path("nobody"), None, "nobody-btp", "F00"),
        (path("mute"), None, "", "F00"),
    ];
    for (path, username, token, expected) in table {
        let attempt = BtpPeer::connect_as(
            node.address(),
            &path,
            username,
            token,
            Rule::fulfill(),
            Dialect::Conformant,
        );
        let outcome = attempt.as_ref().map_or_else(String::clone, |_| "ok".to_owned());
        assert_eq!(outcome, expected, "{path} {username:?} {token}");
        if let Ok(peer) = attempt {
            assert_eq!(
                peer.prepare(&Prepare::new("test.hub.nobody", 0)).code(),
                "F02",
                "{path}"
            );
        }
        // Failed attempts of one address are counted per second, and this is not the test of that.
        std::thread::sleep(Duration::from_millis(if expected == "ok" { 0 } else { 250 }));
    }
}

#[test]
fn frames_that_follow_the_token_at_once_are_not_lost() {
    let node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    let _bob = Party::simple(&node, "bob", Via::Http);
    for path in ["/accounts/alice/ilp/btp", "/ilp/btp"] {
        let mut socket = upgrade(node.address(), path);
        let prepares: Vec<Prepare> = (0..50).map(|_| Prepare::new("test.hub.bob", 1)).collect();
        socket
            .write(Message::binary(Frame::auth(7, Some("alice"), "alice-btp").encode()))
            .expect("open");
        for (id, prepare) in prepares.iter().enumerate() {
            let frame = Frame::ilp(MESSAGE, 100 + id as u32, &prepare.encode());
            socket.write(Message::binary(frame.encode())).expect("open");
        }
        socket.flush().expect("open");
        assert_eq!(
            next_frame(&mut socket),
            Some(Frame::new(RESPONSE, 7)),
            "the token first"
        );
        for _ in &prepares {
            let frame = next_frame(&mut socket).expect("a reply to each");
            let reply = Reply::decode(frame.entry("ilp").expect("a packet")).expect("a packet");
            assert!(reply.fulfills(&prepares[frame.request_id as usize - 100]), "{reply:?}");
        }
    }
    expect_balance(&node.api(), "bob", 100);
}

/// With so many routes the ways of a read's packets are fetched ahead, by a look at frames that may be anything.
#[test]
fn every_packet_of_a_long_read_finds_its_way_among_many_routes() {
    const ROUTES: usize = 20_000;

    let node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    let receivers = ["bob", "carol", "dave"].map(|name| Party::simple(&node, name, Via::Http));
    let route = |number: usize| format!("test.far.n{number:05}");
    let routes: serde_json::Map<String, Value> = (0..ROUTES)
        .map(|number| (route(number), receivers[number % 3].username.as_str().into()))
        .collect();
    node.api().put("/routes/static", &routes.into());

    let mut socket = upgrade(node.address(), "/accounts/alice/ilp/btp");
    let auth = Frame::auth(7, None, "alice-btp").encode();
    socket.write(Message::binary(auth)).expect("open");
    let numbers: Vec<usize> = (0..300).map(|index| index * 7_919 % (ROUTES + ROUTES / 10)).collect();
    let prepares: Vec<Prepare> = numbers
        .iter()
        .map(|number| Prepare::new(&format!("{}.x", route(*number)), 1))
        .collect();
    for (id, prepare) in prepares.iter().enumerate() {
        let frame = Frame::ilp(MESSAGE, 100 + id as u32, &prepare.encode()).encode();
        let (first, second) = frame.split_at(frame.len() / 2);
        let piece = |bytes: &[u8], code, is_last| WebSocketFrame::message(bytes.to_vec(), OpCode::Data(code), is_last);
        match id % 10 {
            3 => {
                socket.write(Message::Ping(vec![1, 2, 3].into())).expect("open");
                socket.write(Message::binary(frame)).expect("open");
            }
            7 => {
                socket
                    .write(Message::Frame(piece(first, Data::Binary, false)))
                    .expect("open");
                socket
                    .write(Message::Frame(piece(second, Data::Continue, true)))
                    .expect("open");
            }
            _ => socket.write(Message::binary(frame)).expect("open"),
        }
    }
    socket.flush().expect("open");

    assert_eq!(next_frame(&mut socket), Some(Frame::new(RESPONSE, 7)));
    for _ in &prepares {
        let frame = next_frame(&mut socket).expect("a reply to each");
        let reply = Reply::decode(frame.entry("ilp").expect("a packet")).expect("a packet");
        let index = frame.request_id as usize - 100;
        if numbers[index] < ROUTES {
            assert!(reply.fulfills(&prepares[index]), "{reply:?}");
        } else {
            assert_eq!(reply.code(), "F02");
        }
    }
    for (place, receiver) in receivers.iter().enumerate() {
        let mut expected: Vec<String> = numbers
            .iter()
            .filter(|number| **number < ROUTES && **number % 3 == place)
            .map(|number| format!("{}.x", route(*number)))
            .collect();
        let mut received: Vec<String> = receiver
            .rule
            .received()
            .into_iter()
            .map(|prepare| prepare.destination)
            .collect();
        expected.sort();
        received.sort();
        assert_eq!(received, expected, "{}", receiver.username);
    }
}

#[test]
fn a_new_connection_of_an_account_replaces_the_old() {
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::Http);
    let slow = Rule::always(Answer::Fulfill.after(Duration::from_millis(700)));
    let old = Party::join(&node, "bob", Via::BtpToNode, slow, &json!({})).btp_peer();
    // In flight on the old connection while the new one comes up.
    let carol = Party::simple(&node, "carol", Via::BtpToNode);
    let on_old = Prepare::new("test.hub.bob", 5);
    let waiting = carol.btp_peer().start_prepare(&on_old);
    eventually("it is with bob", || old.rule.received().pop());
    let new = BtpPeer::connect(node.address(), "bob", Rule::fulfill());
    let prepare = Prepare::new("test.hub.bob", 1);
    assert!(alice.pay(&prepare).fulfills(&prepare));
    assert_eq!(
        new.rule.received_one().condition,
        prepare.condition,
        "sent on the new connection"
    );
    let reply = packet_of(&waiting);
    assert!(reply.fulfills(&on_old), "and the old one ends well: {reply:?}");
    within(Duration::from_secs(10), "the old connection is closed", || {
        old.is_closed().then_some(())
    });
    assert!(alice.pay(&Prepare::new("test.hub.bob", 1)).code() == "fulfill");
    expect_balance(&node.api(), "bob", 7);
}

#[test]
fn the_node_dials_every_spelling_of_a_btp_url() {
    let node = Node::with_shards(2);
    let sender = Party::simple(&node, "sender", Via::Http);
    for (number, scheme) in ["btp+ws", "ws", "http"].into_iter().enumerate() {
        let username = format!("dialled_{number}");
        let server = BtpServer::start("secret", Rule::fulfill());
        let fields = json!({"ilp_over_btp_url": server.url(scheme), "ilp_over_btp_outgoing_token": "secret"});
        let created = node.add_account(&username, &fields);
        assert_eq!(created["warnings"], Value::Null, "{scheme}");
        assert_eq!(
            sender.pay(&Prepare::new(&format!("test.hub.{username}"), 1)).code(),
            "fulfill",
            "{scheme}"
        );
        let login = server.logins().pop().expect("one login");
        assert_eq!(
            (login.path.as_str(), login.token.as_str()),
            ("/btp", "secret"),
            "{scheme}"
        );
        assert_eq!(login.username.unwrap_or_default(), "", "{scheme}");
    }
    // User and token in the URL, as ilp-plugin-btp writes them.
    let server = BtpServer::start("se:cret", Rule::fulfill());
    let url = format!("btp+ws://me:se%3Acret@{}/accounts/hub/ilp/btp", server.address);
    node.add_account("in_url", &json!({"ilp_over_btp_url": url}));
    assert_eq!(sender.pay(&Prepare::new("test.hub.in_url", 1)).code(), "fulfill");
    let Login {
        path, username, token, ..
    } = server.logins().pop().expect("one login");
    assert_eq!(
        (path.as_str(), username.as_deref(), token.as_str()),
        ("/accounts/hub/ilp/btp", Some("me"), "se:cret")
    );
}

#[test]
fn the_node_dials_again_when_its_peer_comes_back() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::Http);
    let server = BtpServer::start("secret", Rule::fulfill());
    let address = server.address;
    let fields = json!({"ilp_over_btp_url": server.url("btp+ws"), "ilp_over_btp_outgoing_token": "secret"});
    node.add_account("bob", &fields);
    let pay = || alice.pay(&Prepare::new("test.hub.bob", 1)).code().to_owned();
    assert_eq!(pay(), "fulfill");

    // The connection breaks, the peer is still there.
    server.peer().close();
    eventually("dialled again", || (pay() == "fulfill").then_some(()));

    // The peer is gone for a while.
    drop(server);
    eventually("the link is down", || (pay() == "T01").then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(pay(), "T01");
    let server = BtpServer::start_at(address, "secret", Rule::fulfill(), Dialect::Conformant);
    within(Duration::from_secs(12), "found again", || {
        (pay() == "fulfill").then_some(())
    });

    // It comes back with another token: refused, tried again, and taken as soon as the operator knows it.
    drop(server);
    let server = BtpServer::start_at(address, "changed", Rule::fulfill(), Dialect::Conformant);
    within(Duration::from_secs(12), "refused", || {
        (!server.logins().is_empty()).then_some(())
    });
    assert_eq!(pay(), "T01");
    node.api()
        .put("/accounts/bob", &json!({"ilp_over_btp_outgoing_token": "changed"}));
    within(Duration::from_secs(12), "accepted", || {
        (pay() == "fulfill").then_some(())
    });

    // Another URL: the old connection ends, the new one is used.
    let old = server.peer();
    let elsewhere = BtpServer::start("changed", Rule::fulfill());
    node.api()
        .put("/accounts/bob", &json!({"ilp_over_btp_url": elsewhere.url("ws")}));
    within(Duration::from_secs(12), "moved", || {
        (pay() == "fulfill" && !elsewhere.rule.received().is_empty()).then_some(())
    });
    within(Duration::from_secs(31), "the old connection is closed", || {
        old.is_closed().then_some(())
    });

    // Deleted: nobody is dialled any more.
    let last = elsewhere.peer();
    node.api().ok("DELETE", "/accounts/bob?force=true", None);
    last.expect_closed();
    let logins = elsewhere.logins().len();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(elsewhere.logins().len(), logins);
}

#[test]
fn a_changed_token_or_a_deletion_closes_the_peers_connection() {
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::BtpToNode).btp_peer();
    let bob = Party::simple(&node, "bob", Via::Http);
    assert_eq!(alice.prepare(&Prepare::new("test.hub.bob", 1)).code(), "fulfill");
    node.api()
        .put("/accounts/alice", &json!({"ilp_over_btp_incoming_token": "changed"}));
    within(Duration::from_secs(31), "closed after its replies", || {
        alice.is_closed().then_some(())
    });
    let connect = |token: &str| {
        let path = "/accounts/alice/ilp/btp";
        BtpPeer::connect_as(node.address(), path, None, token, Rule::fulfill(), Dialect::Conformant)
    };
    assert_eq!(connect("alice-btp").err().as_deref(), Some("F00"));
    let alice = connect("changed").expect("the new token");
    assert_eq!(alice.prepare(&Prepare::new("test.hub.bob", 1)).code(), "fulfill");
    assert_eq!(bob.pay(&Prepare::new("test.hub.alice", 1)).code(), "fulfill");

    node.api().ok("DELETE", "/accounts/alice?force=true", None);
    alice.expect_closed();
    assert_eq!(connect("changed").err().as_deref(), Some("F00"));
    assert_eq!(bob.pay(&Prepare::new("test.hub.alice", 1)).code(), "F02");
    node.api().audit();
}

/// A deletion waits for what is in flight, and takes nothing new meanwhile.
#[test]
fn a_deletion_lets_packets_in_flight_end() {
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::BtpToNode).btp_peer();
    let slow = Rule::always(Answer::Fulfill.after(Duration::from_millis(1500)));
    let _bob = Party::join(&node, "bob", Via::BtpToNode, slow, &json!({}));
    let prepare = Prepare::new("test.hub.bob", 9);
    let waiting = alice.start_prepare(&prepare);
    eventually("it is in flight", || (node.api().held("alice") == 9).then_some(()));
    let api = node.api();
    let deleting = std::thread::spawn(move || api.ok("DELETE", "/accounts/bob?force=true", None));
    std::thread::sleep(Duration::from_millis(300));
    // Whether bob goes is not yet decided, so either answer is right; a packet more is not.
    let refused = alice.prepare(&Prepare::new("test.hub.bob", 1));
    assert!(["F02", "T01", "T03"].contains(&refused.code()), "{refused:?}");
    let reply = packet_of(&waiting);
    assert!(reply.fulfills(&prepare), "{reply:?}");
    let deleted = deleting.join().expect("the call is answered");
    assert_eq!(support::http::whole(&deleted["written_off"]), 9);
    expect_balance(&node.api(), "alice", -9);
    node.api().audit();
}

/// A peer of the inverted dialect on either end: Prepares come in RESPONSE, replies in MESSAGE.
#[test]
fn the_inverted_dialect_is_understood_in_both_roles() {
    let node = Node::with_shards(2);
    node.add_account("inverted_in", &json!({}));
    let client = BtpPeer::connect_as(
        node.address(),
        "/accounts/inverted_in/ilp/btp",
        None,
        "inverted_in-btp",
        Rule::fulfill(),
        Dialect::Inverted,
    )
    .expect("its login is as the RFC says");
    let server = BtpServer::start_at(support::free_address(), "secret", Rule::fulfill(), Dialect::Inverted);
    let fields = json!({"ilp_over_btp_url": server.url("btp+ws"), "ilp_over_btp_outgoing_token": "secret"});
    node.add_account("inverted_out", &fields);
    let plain = Party::simple(&node, "plain", Via::BtpToNode);

    // The peer of these tests panics if the node sends anything but MESSAGE for a Prepare and RESPONSE for its reply.
    let (client_name, server_name) = ("test.hub.inverted_in", "test.hub.inverted_out");
    let pairs = [
        (client.clone(), server_name),
        (client, "test.hub.plain"),
        (server.peer(), client_name),
        (server.peer(), "test.hub.plain"),
        (plain.btp_peer(), client_name),
        (plain.btp_peer(), server_name),
    ];
    for (sender, destination) in &pairs {
        for amount in 1..=20 {
            let prepare = Prepare::new(destination, amount);
            let reply = sender.prepare(&prepare);
            assert!(reply.fulfills(&prepare), "to {destination}: {reply:?}");
        }
        assert_eq!(sender.prepare(&Prepare::new("test.hub.nobody", 1)).code(), "F02");
    }
    for name in ["inverted_in", "inverted_out", "plain"] {
        expect_balance(&node.api(), name, 0);
    }
}

/// What a frame means is decided by the packet in it; the BTP type alone decides only where there is none.
#[test]
fn frames_get_the_answers_of_the_dialect_table() {
    let node = Node::start();
    let _bob = Party::simple(&node, "bob", Via::Http);
    node.add_account("alice", &json!({}));
    let mut socket = upgrade(node.address(), "/accounts/alice/ilp/btp");
    let mut send = |frame: &Frame| -> Option<Frame> {
        socket
            .send(Message::binary(frame.encode()))
            .expect("the connection is open");
        // Something that is always answered follows, so silence is seen without waiting.
        let marker = Frame::new(MESSAGE, 0xffff_fff0).with("marker", 0, b"");
        socket
            .send(Message::binary(marker.encode()))
            .expect("the connection is open");
        let mut answer = None;
        loop {
            let next = next_frame(&mut socket).expect("the connection is open");
            if next.request_id == marker.request_id {
                assert_eq!(
                    next,
                    Frame::new(RESPONSE, marker.request_id),
                    "an unknown subprotocol is acknowledged"
                );
                return answer;
            }
            assert_eq!(answer.replace(next), None, "one answer at most");
        }
    };
    assert_eq!(send(&Frame::auth(1, None, "alice-btp")), Some(Frame::new(RESPONSE, 1)));

    let to_nobody = Prepare::new("test.hub.nobody", 0).encode();
    let truncated = &to_nobody[..to_nobody.len() - 1];
    let fulfill = Prepare::new("test.hub.bob", 0).fulfilled().encode();
    let reject = Reply::reject("F99", "test.x", "", b"").encode();
    let code_of = |frame: Option<Frame>, id: u32| -> String {
        let frame = frame.expect("an answer");
        assert_eq!(
            (frame.kind, frame.request_id, frame.entries.len()),
            (RESPONSE, id, 1),
            "{frame:?}"
        );
        Reply::decode(frame.entry("ilp").expect("a packet"))
            .expect("a packet")
            .code()
            .to_owned()
    };
    assert_eq!(code_of(send(&Frame::ilp(MESSAGE, 2, &to_nobody)), 2), "F02");
    assert_eq!(code_of(send(&Frame::ilp(RESPONSE, 3, &to_nobody)), 3), "F02");
    assert_eq!(code_of(send(&Frame::ilp(MESSAGE, 4, truncated)), 4), "F01");
    assert_eq!(code_of(send(&Frame::ilp(MESSAGE, 5, b"\x0bwhat")), 5), "F01");
    let late_entry = Frame::new(MESSAGE, 6)
        .with("custom", 2, b"{}")
        .with("ilp", 0, &to_nobody);
    assert_eq!(code_of(send(&late_entry), 6), "F02", "at any position");

    assert_eq!(
        send(&Frame::ilp(MESSAGE, 7, &fulfill)),
        None,
        "a reply is never answered"
    );
    assert_eq!(send(&Frame::ilp(RESPONSE, 8, &fulfill)), None);
    assert_eq!(send(&Frame::ilp(MESSAGE, 9, &reject)), None);
    assert_eq!(send(&Frame::new(RESPONSE, 10)), None);
    assert_eq!(send(&Frame::error(11, "F00")), None);
    assert_eq!(send(&Frame::ilp(RESPONSE, 12, b"\x0bwhat")), None);
    assert_eq!(send(&Frame::new(MESSAGE, 13)), Some(Frame::new(RESPONSE, 13)));
    assert_eq!(
        send(&Frame::new(MESSAGE, 14).with("custom", 2, b"{}")),
        Some(Frame::new(RESPONSE, 14))
    );
    let refused = send(&Frame::new(TRANSFER, 15)).expect("an answer");
    assert_eq!(
        (refused.kind, refused.request_id, refused.error_code.as_deref()),
        (ERROR, 15, Some("F00"))
    );
    expect_balance(&node.api(), "alice", 0);
}

/// What a peer's frame means for a Prepare that we sent to it.
#[test]
fn failures_of_a_peer_become_rejects() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::Http);
    node.add_account("bob", &json!({}));
    let mut bob = upgrade(node.address(), "/accounts/bob/ilp/btp");
    bob.send(Message::binary(Frame::auth(1, None, "bob-btp").encode()))
        .expect("open");
    assert_eq!(next_frame(&mut bob), Some(Frame::new(RESPONSE, 1)));
    let prepare = Prepare::new("test.hub.bob", 3);
    let fulfill = prepare.fulfilled().encode();
    type Answers<'a> = &'a dyn Fn(u32) -> Vec<Frame>;
    let table: [(&str, Answers<'_>, &str); 9] = [
        ("ERROR T00", &|id| vec![Frame::error(id, "T00")], "T01"),
        ("ERROR F08", &|id| vec![Frame::error(id, "F08")], "T04"),
        ("ERROR F00", &|id| vec![Frame::error(id, "F00")], "T00"),
        ("empty RESPONSE", &|id| vec![Frame::new(RESPONSE, id)], "T00"),
        (
            "RESPONSE with something else",
            &|id| vec![Frame::new(RESPONSE, id).with("custom", 2, b"{}")],
            "T00",
        ),
        (
            "an id nobody waits for, then the Fulfill",
            &|id| {
                vec![
                    Frame::ilp(RESPONSE, id.wrapping_add(1), &fulfill),
                    Frame::ilp(RESPONSE, id, &fulfill),
                ]
            },
            "fulfill",
        ),
        (
            "a Fulfill in MESSAGE",
            &|id| vec![Frame::ilp(MESSAGE, id, &fulfill)],
            "fulfill",
        ),
        (
            "the Fulfill twice",
            &|id| vec![Frame::ilp(RESPONSE, id, &fulfill); 2],
            "fulfill",
        ),
        (
            "a Prepare with our id, then the Fulfill",
            &|id| {
                let request = Prepare::new("test.hub.nobody", 0).encode();
                vec![Frame::ilp(MESSAGE, id, &request), Frame::ilp(RESPONSE, id, &fulfill)]
            },
            "fulfill",
        ),
    ];
    for (what, frames, expected) in table {
        let reply = std::thread::scope(|scope| {
            let reply = scope.spawn(|| alice.pay(&prepare));
            let request = loop {
                let frame = next_frame(&mut bob).expect("the connection is open");
                // Replies to requests of an earlier row.
                if frame.kind == MESSAGE {
                    break frame;
                }
            };
            for frame in frames(request.request_id) {
                bob.send(Message::binary(frame.encode()))
                    .expect("the connection is open");
            }
            reply.join().expect("the sender gets an answer")
        });
        assert_eq!(reply.code(), expected, "{what}");
    }
    expect_balance(&node.api(), "alice", -12);
    expect_balance(&node.api(), "bob", 12);
    node.api().audit();
}

/// A peer that is gone in the middle: the sender learns it at the latest when its packet expires, and keeps its money.
#[test]
fn a_connection_that_breaks_releases_what_was_in_flight() {
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::BtpToNode).btp_peer();
    let bob = Party::join(&node, "bob", Via::BtpToNode, Rule::always(Answer::Close), &json!({}));
    let prepare = Prepare::new("test.hub.bob", 40).expires_in(Duration::from_millis(2500));
    let begun = Instant::now();
    let reply = alice.prepare(&prepare);
    assert!(["T01", "R00"].contains(&reply.code()), "{reply:?}");
    assert!(begun.elapsed() < Duration::from_millis(2500));
    expect_balance(&node.api(), "alice", 0);
    bob.btp_peer().expect_closed();
    assert_eq!(alice.prepare(&Prepare::new("test.hub.bob", 40)).code(), "T01");

    // The sender is gone: the Fulfill is booked all the same, for the receiver has been promised its money.
    let slow = Rule::always(Answer::Fulfill.after(Duration::from_millis(500)));
    let bob = BtpPeer::connect(node.address(), "bob", slow);
    drop(alice.start_prepare(&Prepare::new("test.hub.bob", 40)));
    eventually("it is with bob", || bob.rule.received().pop());
    alice.close();
    expect_balance(&node.api(), "bob", 40);
    expect_balance(&node.api(), "alice", -40);
    node.api().audit();
}

#[test]
fn pings_are_answered_and_messages_may_come_in_pieces() {
    let node = Node::start();
    node.add_account("alice", &json!({}));
    let _bob = Party::simple(&node, "bob", Via::Http);
    let mut socket = upgrade(node.address(), "/ilp/btp");
    let expect_pong = |socket: &mut tungstenite::WebSocket<std::net::TcpStream>, payload: &[u8]| {
        socket.send(Message::Ping(payload.to_vec().into())).expect("open");
        assert_eq!(socket.read().expect("open"), Message::Pong(payload.to_vec().into()));
    };
    expect_pong(&mut socket, b"before the token");
    socket
        .send(Message::binary(Frame::auth(1, Some("alice"), "alice-btp").encode()))
        .expect("open");
    assert_eq!(next_frame(&mut socket), Some(Frame::new(RESPONSE, 1)));
    expect_pong(&mut socket, &[b'x'; 125]);
    socket.send(Message::Pong(b"unasked".to_vec().into())).expect("open");

    // One message in fragments with a ping between them.
    let prepare = Prepare::new("test.hub.bob", 1);
    let bytes = Frame::ilp(MESSAGE, 2, &prepare.encode()).encode();
    let pieces: Vec<&[u8]> = bytes.chunks(40).collect();
    for (number, piece) in pieces.iter().enumerate() {
        let opcode = if number == 0 { Data::Binary } else { Data::Continue };
        let fin = number + 1 == pieces.len();
        let frame = WebSocketFrame::message(piece.to_vec(), OpCode::Data(opcode), fin);
        socket.send(Message::Frame(frame)).expect("open");
        if number == 0 {
            expect_pong(&mut socket, b"in between");
        }
    }
    let frame = next_frame(&mut socket).expect("a reply");
    let reply = Reply::decode(frame.entry("ilp").expect("a packet")).expect("a packet");
    assert!(reply.fulfills(&prepare));

    // A close is answered with a close.
    socket.close(None).expect("open");
    while socket.read().is_ok() {}
    assert!(!socket.can_read());
}

#[test]
fn the_upgrade_follows_rfc_6455() {
    let node = Node::start();
    node.add_account("alice", &json!({}));
    let good = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "chat, btp"),
    ];
    let try_with = |path: &str, change: Option<(&str, Option<&str>)>| {
        let headers: Vec<(&str, &str)> = good
            .iter()
            .filter_map(|(name, value)| match change {
                Some((changed, to)) if changed == *name => to.map(|to| (*name, to)),
                _ => Some((*name, *value)),
            })
            .collect();
        node.connection()
            .request("GET", path, &headers, b"")
            .expect("an answer")
    };
    for path in ["/ilp/btp", "/accounts/alice/ilp/btp", "/accounts/nobody/ilp/btp"] {
        let answer = try_with(path, None);
        assert_eq!(answer.status, 101, "{path}");
        // The example of RFC 6455, section 1.3.
        assert_eq!(
            answer.header("sec-websocket-accept"),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            "{path}"
        );
        assert_eq!(answer.header("sec-websocket-protocol"), Some("btp"), "{path}");
    }
    assert_eq!(
        try_with("/ilp/btp", Some(("Sec-WebSocket-Protocol", None))).header("sec-websocket-protocol"),
        None
    );
    assert_eq!(
        try_with("/accounts/a-b/ilp/btp", None).status,
        404,
        "an impossible name"
    );
    for (name, to) in [
        ("Upgrade", None),
        ("Connection", Some("keep-alive")),
        ("Sec-WebSocket-Version", Some("8")),
        ("Sec-WebSocket-Key", None),
        ("Sec-WebSocket-Key", Some("short")),
    ] {
        let status = try_with("/ilp/btp", Some((name, to))).status;
        assert!([400, 426].contains(&status), "{name}: {to:?}: {status}");
    }
}

/// Answers keep the order of their requests, and behind a 101 there are no answers.
#[test]
fn an_upgrade_has_to_wait_for_earlier_answers() {
    let node = Node::with_shards(2);
    node.add_account("alice", &json!({}));
    let slow = Rule::always(Answer::Fulfill.after(Duration::from_millis(300)));
    let _bob = Party::join(&node, "bob", Via::BtpToNode, slow, &json!({}));
    let prepare = Prepare::new("test.hub.bob", 1);
    let packet = request_bytes(
        "POST",
        "/accounts/alice/ilp",
        &[("Authorization", "Bearer alice-http")],
        &prepare.encode(),
    );
    let mut connection = node.connection();
    for _ in 0..2 {
        let upgrade = request_bytes("GET", "/ilp/btp", &UPGRADE, b"");
        connection.send(&[&packet[..], &upgrade].concat()).expect("open");
        assert!(
            connection
                .answer()
                .expect("the first answer")
                .reply()
                .fulfills(&prepare)
        );
        let refused = connection.answer().expect("the second answer");
        assert_eq!((refused.status, &refused.json()["code"]), (400, &json!("bad_request")));
    }
    let answer = connection.request("GET", "/ilp/btp", &UPGRADE, b"").expect("an answer");
    assert_eq!(answer.status, 101, "nothing is before it any more");
}
