//! `GET /routes/explain` against what packets find: whatever it says is refused is refused with the code and the words that
//! it says, and what it says is forwarded goes to whom it says.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::eventually;
use support::node::{Node, Options};
use support::packet::{Prepare, Reply};
use support::party::{Party, Via};
use support::rule::{Answer, Rule};

/// A segment as our own accounts hand them out to payers.
const TOKEN: &str = "AAECAwQFBgcICQoLDA0ODxAR";

/// An amount that the receivers of these tests never answer.
const UNANSWERED: u64 = 77;

struct World {
    node: Node,
    parties: Vec<Party>,
}

impl World {
    /// alice over HTTP, bob and dora over BTP, dora in another asset; carol and zoe have no connection, carol not even a
    /// link.
    fn start(arguments: &[&str]) -> Self {
        let node = Node::start_with(Options {
            shards: 2,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            ..Options::default()
        });
        let rule = || {
            Rule::new(|prepare| match prepare.amount {
                UNANSWERED => Answer::Nothing,
                _ => Answer::Fulfill,
            })
        };
        let parties = vec![
            Party::join(&node, "alice", Via::Http, rule(), &json!({})),
            Party::join(&node, "bob", Via::BtpToNode, rule(), &json!({})),
            Party::join(&node, "dora", Via::BtpToNode, rule(), &json!({"asset_code": "XYZ"})),
        ];
        node.add_account("carol", &json!({"ilp_over_btp_incoming_token": null}));
        node.add_account("zoe", &json!({}));
        let routes = json!({
            "test.far": "bob",
            "test.far.east": "zoe",
            "test.back": "alice",
            "test.hub.zoe.bridge": "bob",
        });
        node.api().put("/routes/static", &routes);
        Self { node, parties }
    }

    fn party(&self, username: &str) -> &Party {
        let party = self.parties.iter().find(|party| party.username == username);
        party.expect("one of the parties")
    }

    fn explain(&self, destination: &str, from: &str) -> Value {
        let target = format!("/routes/explain?destination={destination}&from={from}");
        self.node.api().get(&target)
    }

    /// A row: from, destination, and what is to become of the packet: to whom it goes, or a code; `local` is not
    /// followed any further. Checks what is explained against that, and a packet against what is explained.
    fn check(&self, rows: &[(&str, &str, &str)]) {
        for &(from, destination, expected) in rows {
            let explained = self.explain(destination, from);
            let row = format!("{from} to {destination}: {explained}");
            assert_eq!(explained["from"], from, "{row}");
            assert!(!explained["reasons"].as_array().expect("texts").is_empty(), "{row}");
            let prepare = Prepare::new(destination, 10);
            let reply = self.party(from).pay(&prepare);
            match (explained["outcome"].as_str(), reply) {
                (Some("forwarded"), Reply::Fulfill { .. }) => {
                    assert_eq!(explained["next_hop"], expected, "{row}");
                    let arrived = self.party(expected).rule.received().pop().expect("it arrived");
                    assert_eq!(arrived.destination, destination, "{row}");
                    assert_eq!(explained["code"], Value::Null, "{row}");
                }
                (Some("refused"), Reply::Reject { code, message, .. }) => {
                    assert_eq!(
                        (code.as_str(), &explained["code"]),
                        (expected, &json!(expected)),
                        "{row}"
                    );
                    assert_eq!(explained["message"], message, "{row}");
                }
                (Some("local"), _) => assert_eq!(expected, "local", "{row}"),
                (_, reply) => panic!("{row}: {reply:?}"),
            }
        }
    }
}

#[test]
fn a_packet_finds_what_was_explained() {
    let world = World::start(&[]);
    world.check(&[
        ("alice", "test.hub.bob.x", "bob"),
        ("alice", "test.far", "bob"),
        ("alice", "test.far.west.x", "bob"),
        ("alice", "test.farther", "F02"),
        ("alice", "test.far.east.x", "T01"),
        ("alice", "test.hub.zoe.x", "T01"),
        ("alice", "test.hub.zoe.bridge.x", "bob"),
        ("alice", "test.hub.carol", "T01"),
        ("alice", &format!("test.hub.carol.{TOKEN}"), "local"),
        ("alice", "test.hub", "F02"),
        ("alice", "test.hub.nobody", "F02"),
        ("alice", "g.hub.bob", "F02"),
        ("alice", "private.bob", "F02"),
        ("alice", "peer.nothing", "F02"),
        ("alice", "peer.config", "local"),
        ("alice", "test.hub.dora", "T00"),
        ("dora", "test.far.west", "T00"),
        ("dora", "test.hub.dora", "dora"),
        // Back to whom it came from: allowed unless the operator says otherwise.
        ("alice", "test.back.x", "alice"),
    ]);
    let api = world.node.api();
    api.put("/rates", &json!({"ABC": 1, "XYZ": 2}));
    world.check(&[("alice", "test.hub.dora", "dora"), ("dora", "test.far.west", "bob")]);
    // The default route takes what nobody else does, but nothing of our own.
    api.put("/routes/static", &json!({"": "bob", "test.hub": "alice"}));
    world.check(&[
        ("alice", "test.elsewhere", "bob"),
        ("alice", "g.elsewhere", "F02"),
        ("dora", "test.hub.nobody", "alice"),
        ("dora", "test.hub", "alice"),
    ]);
    api.put("/routes/static", &json!({"": "bob"}));
    world.check(&[("alice", "test.hub.nobody", "F02"), ("alice", "test.hub", "F02")]);
    let explained = world.explain("test.hub.bob.x", "alice");
    assert_eq!(explained["prefix"], "test.hub.bob");
    assert_eq!(explained["shorter"], json!([{"prefix": "", "username": "bob"}]));
    api.audit();
}

#[test]
fn what_the_operator_switched_off_is_explained() {
    let world = World::start(&["--reflect_payments", "false", "--echo", "false"]);
    world.check(&[
        ("alice", "test.back.x", "F02"),
        ("alice", "test.hub.alice", "F02"),
        ("bob", "test.hub.alice", "alice"),
        ("alice", "test.hub", "F02"),
    ]);
    let reasons = world.explain("test.back.x", "alice")["reasons"].to_string();
    assert!(reasons.contains("reflect_payments is off"), "{reasons}");
    let own = world.explain("test.hub", "alice")["reasons"].to_string();
    assert!(!own.contains("echo"), "{own}");
}

#[test]
fn an_account_that_is_being_deleted_takes_nothing() {
    let world = World::start(&[]);
    let api = world.node.api();
    let prepare = Prepare::new("test.hub.bob", UNANSWERED).expires_in(Duration::from_secs(4));
    let unanswered = world.party("dora").btp_peer();
    api.put("/rates", &json!({"ABC": 1, "XYZ": 1}));
    let reply = unanswered.start_prepare(&prepare);
    eventually("the packet is in flight", || {
        (!world.party("bob").rule.received().is_empty()).then_some(())
    });
    std::thread::scope(|scope| {
        let deletion = scope.spawn(|| api.call("DELETE", "/accounts/bob", None));
        eventually("bob is being deleted", || {
            (world.explain("test.far.west", "alice")["code"] == "T03").then_some(())
        });
        world.check(&[("alice", "test.far.west", "T03"), ("bob", "test.hub.alice", "T03")]);
        drop(reply);
        assert_eq!(deletion.join().expect("no panic").status, 200);
    });
    world.check(&[("alice", "test.far.west", "F02")]);
}
