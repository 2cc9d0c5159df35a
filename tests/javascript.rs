//! Other people's software against ours: `ilp-packet`, `ilp-protocol-ccp`, `ilp-plugin-btp` and `ilp-plugin-http` on
//! Node.js, in versions
//! that `tests/js/package-lock.json` pins. Needs `node` and `npm` (`make test` installs them).

mod support;

use std::time::Duration;

use clearway::wire::address::Address;
use clearway::wire::packet::{self as wire, ErrorCode, PrepareBuilder, RejectBuilder};
use clearway::wire::timestamp::Timestamp;
use serde_json::{Value, json};
use support::btp_peer::BtpPeer;
use support::http_peer::HttpPeer;
use support::javascript::{SCRIPT_LIMIT, Script};
use support::node::{Node, Options, expect_balance};
use support::packet::{Prepare, Reply};
use support::party::{Party, Via};
use support::random::Random;
use support::rule::Rule;
use support::{PATIENCE, free_port, within};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("hexadecimal text");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

/// Every field of every packet, in our encoding and in theirs: the same bytes, read as the same fields.
#[test]
fn our_encodings_are_those_of_ilp_packet() {
    let mut random = Random::new("encodings");
    let mut peer = Script::peer(&["codec"]);
    let condition: [u8; 32] = random.bytes();
    let data = |length: usize| -> Vec<u8> { (0..length).map(|at| at as u8).collect() };
    let long_address = format!("test.{}", "a".repeat(1018));
    let mut ours: Vec<(Vec<u8>, Value)> = Vec::new();
    // Lengths around every step of the length determinant, amounts beyond what a double holds.
    for (amount, expires_ms, destination, length) in [
        (0, 1, "g.a", 0),
        (1, 1_767_607_872_131, "test.hub.alice", 1),
        (9_007_199_254_740_993, 1_709_251_199_999, "private.x_y~z-9", 62),
        (u64::MAX, 253_402_300_799_999, "example.a.b.c", 127),
        (1_000, 951_782_400_000, "local.host.bob", 128),
        (u64::MAX - 1, 1_767_607_872_000, long_address.as_str(), 255),
        (7, 4_102_444_800_001, "self.x", 256),
        (7, 4_102_444_800_001, "peer.config", 32_767),
        (
            random.next(),
            random.between(1, 253_402_300_799_999),
            "test1.random",
            random.between(0, 32_767) as usize,
        ),
    ] {
        let (expires_at, data) = (Timestamp::from_millis(expires_ms), data(length));
        let mut bytes = Vec::new();
        PrepareBuilder {
            amount,
            expires_at,
            execution_condition: &condition,
            destination: Address::parse(destination.as_bytes()).expect("a valid address"),
            data: &data,
        }
        .encode(&mut bytes);
        let fields = json!({
            "amount": amount.to_string(),
            "executionCondition": hex(&condition),
            "expiresAt": expires_at.to_rfc3339(),
            "destination": destination,
            "data": hex(&data),
        });
        ours.push((bytes, json!({"type": 12, "fields": fields})));
    }
    for length in [0, 94, 95, 127, 128, 300, 32_767] {
        let mut bytes = Vec::new();
        wire::encode_fulfill(&mut bytes, &condition, &data(length));
        let fields = json!({"fulfillment": hex(&condition), "data": hex(&data(length))});
        ours.push((bytes, json!({"type": 13, "fields": fields})));
    }
    for (code, triggered_by, message, length) in [
        ("F02", "test.hub", "no route", 0),
        ("T99", long_address.as_str(), "größer als €", 16),
        ("R00", "g.a", "", 32_767),
    ] {
        let mut bytes = Vec::new();
        let letters: [u8; 3] = code.as_bytes().try_into().expect("three letters");
        RejectBuilder {
            code: ErrorCode::new(letters).expect("a code"),
            triggered_by,
            message,
            data: &data(length),
        }
        .encode(&mut bytes);
        let fields = json!({"code": code, "triggeredBy": triggered_by, "message": message, "data": hex(&data(length))});
        ours.push((bytes, json!({"type": 14, "fields": fields})));
    }

    let packets: Vec<String> = ours.iter().map(|(bytes, _)| hex(bytes)).collect();
    let read = peer.ask(&json!({"command": "read", "packets": packets}));
    let fields: Vec<&Value> = ours.iter().map(|(_, fields)| fields).collect();
    let written = peer.ask(&json!({"command": "write", "packets": fields}));
    for (number, (bytes, expected)) in ours.iter().enumerate() {
        let theirs = &read["packets"][number];
        assert_eq!(theirs["type"], expected["type"]);
        assert_eq!(theirs["fields"], expected["fields"], "they read what we wrote");
        assert_eq!(theirs["again"], json!(hex(bytes)), "and write the same bytes");
        let their_bytes = unhex(&written["packets"][number]);
        assert_eq!(hex(&their_bytes), hex(bytes), "from the same fields");
        assert_eq!(
            fields_as_we_read_them(&their_bytes),
            *expected,
            "and we read what they wrote"
        );
    }
}

fn fields_as_we_read_them(bytes: &[u8]) -> Value {
    if let Ok(prepare) = wire::Prepare::parse(bytes) {
        let fields = json!({
            "amount": prepare.amount().to_string(),
            "executionCondition": hex(prepare.condition()),
            "expiresAt": prepare.expires_at().to_rfc3339(),
            "destination": prepare.destination().as_str(),
            "data": hex(prepare.data()),
        });
        return json!({"type": 12, "fields": fields});
    }
    match wire::Reply::parse(bytes).expect("a packet") {
        wire::Reply::Fulfill(fulfill) => {
            let fields = json!({"fulfillment": hex(fulfill.fulfillment()), "data": hex(fulfill.data())});
            json!({"type": 13, "fields": fields})
        }
        wire::Reply::Reject(reject) => {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            let fields = json!({
                "code": reject.code().as_str(),
                "triggeredBy": text(reject.triggered_by()),
                "message": text(reject.message()),
                "data": hex(reject.data()),
            });
            json!({"type": 14, "fields": fields})
        }
    }
}

/// What every kind of JavaScript peer must be able to do: pay, be paid, see Rejects of the node and of other peers.
/// Gives back the partner, who is still connected.
fn exercise(node: &Node, script: &mut Script, username: &str) -> Party {
    let partner = Party::simple(node, &format!("partner_of_{username}"), Via::BtpToNode);
    let (to_partner, to_script) = (
        format!("test.hub.{}", partner.username),
        format!("test.hub.{username}.shop"),
    );

    let sent = script.send(&to_partner, 1000);
    assert_eq!(sent["paid"], true, "{sent}");
    assert_eq!(sent["reply"]["data"], json!(hex(b"paid")));
    let arrived = partner.rule.received_one();
    assert_eq!(json!(arrived.amount.to_string()), sent["prepare"]["amount"]);
    assert_eq!(json!(hex(&arrived.condition)), sent["prepare"]["executionCondition"]);
    assert_eq!(json!(hex(&arrived.data)), sent["prepare"]["data"]);
    let expires_at = Timestamp::from_millis(arrived.expires_at + 1000).to_rfc3339();
    assert_eq!(
        json!(expires_at),
        sent["prepare"]["expiresAt"],
        "one second earlier at the next hop"
    );
    expect_balance(&node.api(), username, -1000);

    let prepare = Prepare::new(&to_script, 400);
    let reply = partner.pay(&prepare);
    assert!(reply.fulfills(&prepare), "{reply:?}");
    assert_eq!(reply.data(), b"paid in javascript");
    let received = script.received().pop().expect("it arrived");
    assert_eq!(received["amount"], "400");
    assert_eq!(received["destination"], json!(to_script));
    assert_eq!(received["executionCondition"], json!(hex(&prepare.condition)));
    assert_eq!(
        received["expiresAt"],
        json!(Timestamp::from_millis(prepare.expires_at - 1000).to_rfc3339())
    );
    expect_balance(&node.api(), username, -600);

    let rejected = partner.pay(&Prepare::new(&to_script, 13));
    assert_eq!(
        rejected,
        Reply::reject("F99", "test.javascript", "thirteen", b"from javascript")
    );
    let refused = script.send("test.hub.nobody", 5);
    assert_eq!(
        (&refused["paid"], &refused["reply"]["code"]),
        (&json!(false), &json!("F02"))
    );
    assert_eq!(refused["reply"]["triggeredBy"], "test.hub");
    node.api()
        .put(&format!("/accounts/{username}"), &json!({"max_packet_amount": 2000}));
    let refused = script.send(&to_partner, 2001);
    let maximum = [2001_u64.to_be_bytes(), 2000_u64.to_be_bytes()].concat();
    assert_eq!(
        (&refused["reply"]["code"], &refused["reply"]["data"]),
        (&json!("F08"), &json!(hex(&maximum)))
    );

    let many = script.ask(&json!({"command": "sendMany", "destination": to_partner, "amount": "1", "count": 200}));
    assert_eq!(many["paid"], 200);
    expect_balance(&node.api(), username, -800);
    expect_balance(&node.api(), &partner.username, 800);
    node.api().audit();
    partner
}

#[test]
fn ilp_plugin_btp_as_client_of_our_server() {
    let node = Node::with_shards(2);
    let address = node.address();
    for (username, path) in [("by_path", "/accounts/by_path/ilp/btp"), ("by_name", "/ilp/btp")] {
        node.add_account(username, &json!({}));
        let server = format!("btp+ws://{username}:{username}-btp@{address}{path}");
        let mut script = Script::peer(&["btp-client", &server]);
        let _partner = exercise(&node, &mut script, username);

        // Replaced by another connection of the same account, which the first one then tries to replace again.
        let rival = BtpPeer::connect(address, username, Rule::fulfill());
        within(SCRIPT_LIMIT, "the old connection ends or takes over", || {
            (script.send(&format!("test.hub.partner_of_{username}"), 1)["paid"] == true).then_some(())
        });
        drop(rival);
    }
}

/// A restart of the node costs its peers nothing but the pause: they dial again by themselves.
#[test]
fn ilp_plugin_btp_comes_back_after_our_restart() {
    let mut node = Node::start_with(Options {
        http_bind_address: format!("127.0.0.1:{}", free_port()),
        ..Options::default()
    });
    for username in ["alice", "plugin"] {
        node.add_account(username, &json!({}));
    }
    let server = format!("btp+ws://plugin:plugin-btp@{}/accounts/plugin/ilp/btp", node.address());
    let mut script = Script::peer(&["btp-client", &server]);
    for (round, kill) in [(1, false), (2, true)] {
        if kill {
            node.kill();
        } else {
            node.terminate();
            assert!(node.exit_status_within(Duration::from_secs(40)).success());
        }
        let mut wait_until_connected = |expected: bool| {
            within(SCRIPT_LIMIT, &format!("connected: {expected}"), || {
                let answer = script.ask(&json!({"command": "isConnected"}));
                (answer["connected"] == expected).then_some(())
            });
        };
        wait_until_connected(false);
        node.run();
        wait_until_connected(true);
        let alice = BtpPeer::connect(node.address(), "alice", Rule::fulfill());
        assert_eq!(script.send("test.hub.alice", 30)["paid"], true);
        let prepare = Prepare::new("test.hub.plugin", 10);
        assert!(alice.prepare(&prepare).fulfills(&prepare));
        expect_balance(&node.api(), "plugin", -20 * round);
    }
}

#[test]
fn ilp_plugin_btp_as_server_of_our_client() {
    let node = Node::with_shards(2);
    let port = free_port().to_string();
    let fields = json!({
        "ilp_over_btp_url": format!("btp+ws://127.0.0.1:{port}"),
        "ilp_over_btp_outgoing_token": "what they know",
    });
    let mut script = Script::peer(&["btp-server", &port, "what they know"]);
    let created = node.add_account("plugin", &fields);
    assert_eq!(created["warnings"], Value::Null);
    let partner = exercise(&node, &mut script, "plugin");

    // Their server is gone, and comes back: our client dials it again by itself.
    drop(script);
    within(SCRIPT_LIMIT, "the link is down", || {
        (partner.pay(&Prepare::new("test.hub.plugin", 1)).code() == "T01").then_some(())
    });
    let mut script = Script::peer(&["btp-server", &port, "what they know"]);
    within(SCRIPT_LIMIT, "dialled again", || {
        let prepare = Prepare::new("test.hub.plugin", 2);
        partner.pay(&prepare).fulfills(&prepare).then_some(())
    });
    assert_eq!(script.send("test.hub.partner_of_plugin", 1)["paid"], true);
    expect_balance(&node.api(), "plugin", -800 + 2 - 1);
}

#[test]
fn ilp_plugin_http_as_sender_and_receiver() {
    let node = Node::with_shards(2);
    let port = free_port();
    let fields = json!({
        "ilp_over_http_url": format!("http://127.0.0.1:{port}/"),
        "ilp_over_http_outgoing_token": "what they know",
    });
    node.add_account("plugin", &fields);
    let url = format!("http://{}/accounts/plugin/ilp", node.address());
    let mut script = Script::peer(&["http", &port.to_string(), &url, "what they know", "plugin-http"]);
    let partner = exercise(&node, &mut script, "plugin");

    node.api().put(
        "/accounts/plugin",
        &json!({"ilp_over_http_outgoing_token": "something else"}),
    );
    assert_eq!(
        partner.pay(&Prepare::new("test.hub.plugin", 1)).code(),
        "T01",
        "they answer 401"
    );
}

/// Two JavaScript peers and nothing of ours but the node.
#[test]
fn ilp_plugin_btp_pays_ilp_plugin_btp() {
    let node = Node::with_shards(2);
    let port = free_port().to_string();
    let mut dialled = Script::peer(&["btp-server", &port, "secret"]);
    node.add_account("alice", &json!({}));
    let fields = json!({
        "ilp_over_btp_url": format!("btp+ws://127.0.0.1:{port}"),
        "ilp_over_btp_outgoing_token": "secret",
    });
    node.add_account("bob", &fields);
    // On a busy machine the peer may be later than the call waits for it.
    within(PATIENCE, "bob is connected", || {
        (node.api().get("/accounts/bob")["links"]["btp"] == "connected").then_some(())
    });
    let server = format!("btp+ws://alice:alice-btp@{}/ilp/btp", node.address());
    let mut dialling = Script::peer(&["btp-client", &server]);
    for (script, destination) in [(&mut dialling, "test.hub.bob"), (&mut dialled, "test.hub.alice.wallet")] {
        let command = json!({"command": "sendMany", "destination": destination, "amount": "3", "count": 300});
        assert_eq!(script.ask(&command)["paid"], 300, "to {destination}");
        let largest = json!({"command": "send", "destination": destination, "amount": "1", "dataBytes": 32_767});
        assert_eq!(script.ask(&largest)["paid"], true, "to {destination}");
    }
    expect_balance(&node.api(), "alice", 0);
    assert_eq!((dialling.received().len(), dialled.received().len()), (301, 301));
}

/// Routes in both directions, as `ilp-protocol-ccp` reads and writes them: a neighbour asks and is asked, tells and is
/// told, and packets go where it said.
#[test]
fn ilp_protocol_ccp_tells_and_is_told() {
    const TABLE: &str = "21e55f8e-abcd-4e97-9ab9-bf0ff00a224c";
    const NO_TABLE: &str = "00000000-0000-0000-0000-000000000000";
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    node.add_account(
        "partner",
        &json!({"routing_relation": "Peer", "ilp_address": "test.partner", "ilp_over_btp_incoming_token": "secret"}),
    );
    let shop = json!({"routing_relation": "Child", "ilp_address": "test.shop"});
    let _shop = Party::join(&node, "shop", Via::BtpToNode, Rule::fulfill(), &shop);
    let server = format!("btp+ws://:secret@{}/accounts/partner/ilp/btp", node.address());
    let mut script = Script::peer(&["btp-client", &server]);

    // It is asked for its routes, and told ours without having asked.
    let told = |what: &str, script: &mut Script, is_it: &dyn Fn(&Value) -> bool| {
        within(SCRIPT_LIMIT, what, || {
            let routing = script.ask(&json!({"command": "routing"}));
            let updates = routing["updates"].as_array()?.clone();
            updates.into_iter().find(|update| is_it(update))
        })
    };
    let announces = |update: &Value, prefix: &str| {
        let routes = update["newRoutes"].as_array().expect("routes");
        routes.iter().any(|route| route["prefix"] == prefix)
    };
    let first = told("it is told of the shop", &mut script, &|update| {
        announces(update, "test.shop")
    });
    assert_eq!(
        (&first["speaker"], &first["holdDownTime"]),
        (&json!("test.hub"), &json!(45_000))
    );
    let shop = first["newRoutes"].as_array().expect("routes").iter();
    let shop = shop
        .clone()
        .find(|route| route["prefix"] == "test.shop")
        .expect("the shop");
    assert_eq!((&shop["path"], &shop["props"]), (&json!(["test.hub"]), &json!([])));
    let routing = script.ask(&json!({"command": "routing"}));
    let asked = json!([{"mode": 1, "lastKnownRoutingTableId": NO_TABLE, "lastKnownEpoch": 0, "features": []}]);
    assert_eq!(routing["controls"], asked);

    // What it tells is where packets go.
    let update = |epochs: (u32, u32), new: &Value, withdrawn: &Value| {
        json!({"command": "tell", "update": {
            "routingTableId": TABLE,
            "currentEpochIndex": epochs.1,
            "fromEpochIndex": epochs.0,
            "toEpochIndex": epochs.1,
            "holdDownTime": 45_000,
            "speaker": "test.partner",
            "newRoutes": new,
            "withdrawnRoutes": withdrawn,
        }})
    };
    let new = json!([
        {"prefix": "test.partner", "path": ["test.partner"]},
        {"prefix": "test.far", "path": ["test.partner", "test.far"]},
    ]);
    script.ask(&update((0, 2), &new, &json!([])));
    assert_eq!(node.api().get("/routes")["test.far"], "partner");
    let prepare = Prepare::new("test.far.away", 5);
    assert!(alice.pay(&prepare).fulfills(&prepare));
    script.ask(&update((2, 3), &json!([]), &json!(["test.far"])));
    assert_eq!(node.api().get("/routes")["test.far"], Value::Null);
    assert_eq!(alice.pay(&Prepare::new("test.far.away", 5)).code(), "F02");
    expect_balance(&node.api(), "partner", 5);

    // It forgets everything and asks anew.
    let before = told("what there is", &mut script, &|_| true)["routingTableId"].clone();
    let count = |script: &mut Script| {
        let routing = script.ask(&json!({"command": "routing"}));
        let updates = routing["updates"].as_array().expect("updates").clone();
        updates.iter().filter(|update| update["fromEpochIndex"] == 0).count()
    };
    let earlier = count(&mut script);
    script.ask(&json!({"command": "askForRoutes", "lastKnownRoutingTableId": before, "lastKnownEpoch": 0}));
    within(SCRIPT_LIMIT, "it is told all of it again", || {
        (count(&mut script) > earlier).then_some(())
    });
    node.api().audit();
}

/// The walk-through of the README, with its own scripts: a packet from alice over HTTP to bob over BTP, and back.
#[test]
fn the_walk_through_works() {
    let node = Node::start();
    let port = free_port();
    // The README's three accounts; carol has no peer, and nobody pays her.
    for account in [
        json!({"username": "alice", "asset_code": "ABC", "asset_scale": 9, "ilp_over_http_incoming_token": "alice-pw",
            "ilp_over_http_url": format!("http://127.0.0.1:{port}")}),
        json!({"username": "bob", "asset_code": "ABC", "asset_scale": 9, "ilp_over_btp_incoming_token": "bob-pw"}),
        json!({"username": "carol", "asset_code": "ABC", "asset_scale": 9}),
    ] {
        node.api().create_account(&account);
    }
    let address = node.address();
    let mut bob = Script::start(
        "receive.js",
        &[&format!("btp+ws://bob:bob-pw@{address}/accounts/bob/ilp/btp")],
    );
    assert_eq!(bob.line(), "bob is connected");
    let node_url = format!("http://{address}");
    let mut alice = Script::start(
        "send.js",
        &[&node_url, "test.hub.bob", "test.hub.alice", &port.to_string()],
    );
    let mut said = [alice.line(), alice.line()];
    // The two may come in either order.
    said.sort();
    assert_eq!(said, ["alice paid 1000 to test.hub.bob", "alice received 500 back"]);
    assert_eq!(bob.line(), "bob received 1000 for test.hub.bob");
    assert_eq!(bob.line(), "bob paid 500 back to test.hub.alice");
    let status = within(SCRIPT_LIMIT, "alice ends by herself", || {
        alice.child.try_wait().expect("our own child")
    });
    assert!(status.success());
    expect_balance(&node.api(), "alice", -500);
    expect_balance(&node.api(), "bob", 500);
    node.api().audit();
}

/// Our instruments and theirs agree without the node, so a failure above is the node's.
#[test]
fn ilp_plugin_http_understands_the_peers_of_these_tests() {
    let endpoint = HttpPeer::start(Rule::fulfill());
    let port = free_port();
    let mut script = Script::peer(&["http", &port.to_string(), &endpoint.url(), "token", "token"]);
    assert_eq!(script.send("test.bob", 12)["paid"], true);
    assert_eq!(endpoint.rule.received_one().amount, 12);
    let prepare = Prepare::new("test.javascript", 3);
    let mut connection = support::http::Connection::open(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    assert!(
        connection
            .post("/", "token", &prepare)
            .expect("an answer")
            .reply()
            .fulfills(&prepare)
    );
}
