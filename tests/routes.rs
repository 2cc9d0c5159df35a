//! Nodes that tell each other routes and addresses over real links: whoever is told of a place can pay it, and a packet
//! takes the way that is there now.

mod support;

use serde_json::json;

use support::eventually;
use support::network::{Over, connect, leads_to, wait_for_no_route, wait_for_route};
use support::node::{Node, Options};
use support::packet::Prepare;
use support::party::{Party, Via};
use support::rule::Rule;

fn node(address: &str) -> Node {
    Node::start_with(Options {
        shards: 2,
        ilp_address: address.to_owned(),
        http_bind_address: support::free_address().to_string(),
        ..Options::default()
    })
}

fn pays(from: &Party, destination: &str) {
    let prepare = Prepare::new(destination, 10);
    let reply = from.pay(&prepare);
    assert!(reply.fulfills(&prepare), "{destination}: {reply:?}");
}

#[test]
fn a_child_gets_its_address_from_its_parent() {
    for over in [Over::Btp, Over::Http] {
        let parent = node("test.parent");
        let mut child = node("local.host");
        let alice = Party::simple(&parent, "alice", Via::BtpToNode);
        let bob = Party::simple(&child, "bob", Via::BtpToNode);
        connect(over, (&parent, "kid", "Child"), (&child, "up", "Parent"));
        let address = |node: &Node| node.api().get("/")["ilp_address"].clone();
        eventually("the child has its address", || {
            (address(&child) == "test.parent.kid").then_some(())
        });
        let account = child.api().get("/accounts/bob");
        assert_eq!(account["ilp_address"], "test.parent.kid.bob");
        pays(&alice, "test.parent.kid.bob");
        pays(&bob, "test.parent.alice");
        assert_eq!(child.api().audit()["adds_up"], true);

        // Kept: also while the parent is away.
        drop((bob, parent, alice));
        child.terminate();
        assert!(child.exit_status_within(support::PATIENCE * 4).success());
        child.run();
        assert_eq!(address(&child), "test.parent.kid");
        child.api().ok("DELETE", "/accounts/up?force=true", None);
        assert_eq!(address(&child), "local.host", "without a parent the configured one");
        assert_eq!(child.api().get("/accounts/bob")["ilp_address"], "local.host.bob");
    }
}

#[test]
fn peers_tell_each_other_what_they_reach() {
    for over in [Over::Btp, Over::Http] {
        let [one, hub, other] = ["test.one", "test.hub", "test.other"].map(node);
        connect(over, (&one, "hub", "Peer"), (&hub, "one", "Peer"));
        connect(over, (&hub, "other", "Peer"), (&other, "hub", "Peer"));
        wait_for_route(&one, "test.other", "hub");
        wait_for_route(&other, "test.one", "hub");
        let alice = Party::simple(&one, "alice", Via::BtpToNode);
        let _bob = Party::simple(&other, "bob", Via::BtpToNode);
        pays(&alice, "test.other.bob");

        // What a child reaches beyond our own addresses, and what the operator sets.
        let shop = Party::join(
            &other,
            "shop",
            Via::BtpToNode,
            Rule::fulfill(),
            &json!({"routing_relation": "Child", "ilp_address": "test.shop"}),
        );
        wait_for_route(&one, "test.shop", "hub");
        pays(&alice, "test.shop.till");
        other.api().put("/routes/static", &json!({"test.more": "shop"}));
        wait_for_route(&one, "test.more", "hub");
        let removed = other.api().call("DELETE", "/routes/static/test.more", None);
        assert_eq!(removed.status, 200);
        wait_for_no_route(&one, "test.more");

        // Its link is down: others are told, and when it is back.
        drop(shop);
        wait_for_no_route(&one, "test.shop");
        for (node, name) in [(&one, "hub"), (&hub, "one")] {
            node.api().ok("DELETE", &format!("/accounts/{name}?force=true"), None);
        }
        wait_for_no_route(&other, "test.one");
        assert!(
            leads_to(&one, "test.other").is_null(),
            "with the account its routes go at once"
        );
    }
}

#[test]
fn a_restart_keeps_what_neighbours_told() {
    let one = node("test.one");
    let mut hub = node("test.hub");
    let far = node("test.far");
    connect(Over::Btp, (&hub, "one", "Peer"), (&one, "hub", "Peer"));
    connect(Over::Btp, (&hub, "far", "Peer"), (&far, "hub", "Peer"));
    wait_for_route(&one, "test.far", "hub");
    let _shop = Party::join(
        &far,
        "shop",
        Via::BtpToNode,
        Rule::fulfill(),
        &json!({"routing_relation": "Child", "ilp_address": "test.shop"}),
    );
    wait_for_route(&hub, "test.shop", "far");
    wait_for_route(&one, "test.shop", "hub");
    // In the middle of everything.
    hub.kill();
    hub.run();
    assert_eq!(leads_to(&hub, "test.shop"), "far", "before anybody has spoken");
    let alice = Party::simple(&one, "alice", Via::BtpToNode);
    eventually("the links are up again", || {
        let prepare = Prepare::new("test.shop.till", 10);
        alice.pay(&prepare).fulfills(&prepare).then_some(())
    });
    wait_for_route(&one, "test.far", "hub");
}
