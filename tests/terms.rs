//! What an operator sets about an account, and what becomes of its packets and payments then, over real sockets: limits
//! that hold over all of its links together, a spread that adds up, and the time that a packet has left.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::eventually;
use support::http::{Connection, whole};
use support::node::{Node, Options, expect_balance};
use support::packet::{Prepare, now};
use support::party::{Party, Via};
use support::rule::Rule;

fn node(arguments: &[&str]) -> Node {
    Node::start_with(Options {
        shards: 2,
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        ..Options::default()
    })
}

/// An account with two links at once: it sends over BTP, and over HTTP.
struct TwoLinks {
    btp: Party,
    http: Connection,
    sent: u64,
}

impl TwoLinks {
    fn join(node: &Node, username: &str, more: &Value) -> Self {
        Self {
            btp: Party::join(node, username, Via::BtpToNode, Rule::fulfill(), more),
            http: node.connection(),
            sent: 0,
        }
    }

    /// Sends to bob, over the one link and the other in turn.
    fn pay(&mut self, amount: u64) -> String {
        self.sent += 1;
        let prepare = Prepare::new("test.hub.bob", amount);
        let reply = if self.sent.is_multiple_of(2) {
            self.btp.pay(&prepare)
        } else {
            let path = format!("/accounts/{}/ilp", self.btp.username);
            let token = format!("{}-http", self.btp.username);
            let answer = self.http.post(&path, &token, &prepare);
            answer.expect("the node answers").reply()
        };
        reply.code().to_owned()
    }

    /// How many of `count` packets pass; the others must get `code`.
    fn passed(&mut self, count: u64, amount: u64, code: &str) -> u64 {
        let mut passed = 0;
        for _ in 0..count {
            match self.pay(amount).as_str() {
                "fulfill" => passed += 1,
                other => assert_eq!(other, code),
            }
        }
        passed
    }
}

/// What a limit lets pass in a time, if it is all there in the beginning.
fn share(limit: u64, time: Duration) -> u64 {
    limit + share_won_back(limit, time)
}

fn share_won_back(limit: u64, time: Duration) -> u64 {
    // The node and we read our clocks at other moments, a millisecond apart at most beyond what we measure.
    let time_ms = time.as_millis() as u64 + 1;
    limit * time_ms / 60_000
}

#[test]
fn a_limit_is_one_over_both_links() {
    let node = node(&[]);
    let _bob = Party::simple(&node, "bob", Via::Http);

    let begun = Instant::now();
    let mut alice = TwoLinks::join(&node, "alice", &json!({"packets_per_minute_limit": 40}));
    let passed = alice.passed(100, 1, "T05");
    assert!((40..=share(40, begun.elapsed())).contains(&passed), "{passed} packets");
    expect_balance(&node.api(), "bob", i128::from(passed));

    // What is spent stays spent: since the burst began, no more has come back than time gives back.
    node.api()
        .put("/accounts/alice", &json!({"packets_per_minute_limit": 400}));
    let again = alice.passed(100, 1, "T05");
    let most = share_won_back(400, begun.elapsed());
    assert!(again <= most, "{again} packets, {most} at most");

    let begun = Instant::now();
    let mut carol = TwoLinks::join(&node, "carol", &json!({"amount_per_minute_limit": 4_000}));
    let passed = carol.passed(100, 100, "T04");
    assert!(
        (40..=share(4_000, begun.elapsed()) / 100).contains(&passed),
        "{passed} times 100"
    );
    node.api().audit();
}

/// Our own position in ABC.
fn position(node: &Node) -> i128 {
    let audit = node.api().audit();
    let assets = audit["assets"].as_array().expect("an array of assets");
    let asset = assets.iter().find(|asset| asset["asset_code"] == "ABC");
    whole(&asset.expect("there are accounts in ABC")["position"])
}

#[test]
fn a_spread_is_the_nodes_income_and_the_book_adds_up() {
    let mut node = node(&["--exchange_rate.spread", "0.01"]);
    let bob = Party::simple(&node, "bob", Via::Http);
    let carol = json!({"asset_code": "XYZ", "asset_scale": 6});
    let carol = Party::join(&node, "carol", Via::BtpToNode, Rule::fulfill(), &carol);
    node.api().put("/rates", &json!({"ABC": 1, "XYZ": 2}));
    let alice = json!({"spread": "0.001"});
    let alice = Party::join(&node, "alice", Via::BtpToNode, Rule::fulfill(), &alice);
    let (mut taken, mut given) = (0, 0);
    for (amount, expected) in [
        (1_000, Some(999)),
        (999, Some(998)),
        (1, None),
        (0, Some(0)),
        (1 << 60, Some((1u64 << 60) - (1u64 << 60) / 1_000 - 1)),
    ] {
        let reply = alice.pay(&Prepare::new("test.hub.bob", amount));
        let arrived = bob.rule.received().last().map(|prepare| prepare.amount);
        match expected {
            Some(expected) => {
                assert_eq!((reply.code(), arrived), ("fulfill", Some(expected)), "{amount}");
                taken += i128::from(amount);
                given += i128::from(expected);
            }
            None => assert_eq!(reply.code(), "R01", "{amount}"),
        }
    }
    // 1,000,000,000 x 1/2 x 10^-3 x 0.99 x 0.999: converted, and both are kept.
    let reply = alice.pay(&Prepare::new("test.hub.carol", 1_000_000_000));
    assert_eq!((reply.code(), carol.rule.received_one().amount), ("fulfill", 494_505));
    taken += 1_000_000_000;
    // Only what comes from alice: bob pays her the whole of it.
    assert!(bob.pay(&Prepare::new("test.hub.alice", 1_000)).code() == "fulfill");
    expect_balance(&node.api(), "alice", 1_000 - taken);
    expect_balance(&node.api(), "bob", given - 1_000);
    assert_eq!(position(&node), taken - given);
    // It is as the operator set it after a crash, and so is the book.
    node.kill();
    node.run();
    assert_eq!(node.api().get("/accounts/alice")["spread"], json!(0.001));
    assert_eq!(position(&node), taken - given);
}

#[test]
fn payments_and_quotes_know_the_spread_of_the_account_that_pays() {
    let node = node(&[]);
    node.add_account("alice", &json!({"spread": 0.25, "max_packet_amount": 10_000}));
    node.add_account("bob", &json!({}));
    let call = |path: &str, amount: u64| {
        let receiver = format!("http://{}/accounts/bob/spsp", node.address());
        let body = json!({"receiver": receiver, "source_amount": amount}).to_string();
        let target = format!("/accounts/alice/{path}");
        let headers = [("Authorization", "Bearer alice-http")];
        let answer = node.connection().request("POST", &target, &headers, body.as_bytes());
        let answer = answer.expect("every call is answered");
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    };
    let quote = call("quotes", 100_000);
    assert_eq!(
        (&quote["source_amount"], &quote["delivered_amount"]),
        (&json!(100_000), &json!(75_000)),
        "{quote}"
    );
    assert!(
        quote["min_delivered_amount"]
            .as_u64()
            .is_some_and(|least| (70_000..=75_000).contains(&least)),
        "{quote}"
    );
    assert_eq!(
        (node.api().balance("alice"), position(&node)),
        (0, 0),
        "a quote moves nothing"
    );
    let paid = call("payments", 100_000);
    assert_eq!(
        (&paid["sent_amount"], &paid["delivered_amount"]),
        (&json!(100_000), &json!(75_000)),
        "{paid}"
    );
    expect_balance(&node.api(), "alice", -100_000);
    expect_balance(&node.api(), "bob", 75_000);
    eventually("the book shows it", || (position(&node) == 25_000).then_some(()));
}

#[test]
fn round_trips_and_the_longest_hold_are_taken_off_a_packets_time() {
    let node = node(&["--max_hold_time_ms", "20000"]);
    let bob = Party::join(
        &node,
        "bob",
        Via::Http,
        Rule::fulfill(),
        &json!({"round_trip_time": 700}),
    );
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    for (round_trip_time, lifetime_ms, taken_off_ms) in [
        (300, 15_000, Some(1_000)),
        (0, 15_000, Some(1_000)),
        (1_300, 15_000, Some(2_000)),
        (6_300, 15_000, Some(7_000)),
        (6_900, 15_000, None),
    ] {
        node.api()
            .put("/accounts/alice", &json!({"round_trip_time": round_trip_time}));
        let sent_at = now();
        let mut prepare = Prepare::new("test.hub.bob", 1);
        prepare.expires_at = sent_at + lifetime_ms;
        let reply = alice.pay(&prepare);
        let what = format!("{round_trip_time} ms round trip, {lifetime_ms} ms left");
        let Some(taken_off_ms) = taken_off_ms else {
            assert_eq!(reply.code(), "R02", "{what}");
            continue;
        };
        assert!(reply.fulfills(&prepare), "{what}: {reply:?}");
        let arrived = bob.rule.received().pop().expect("it has arrived").expires_at;
        assert_eq!(arrived, prepare.expires_at - taken_off_ms, "{what}");
    }
    // More time than it may be held for: whatever the round trips, 20 s are left.
    for round_trip_time in [300, 6_300] {
        node.api()
            .put("/accounts/alice", &json!({"round_trip_time": round_trip_time}));
        let sent_at = now();
        let mut prepare = Prepare::new("test.hub.bob", 1);
        prepare.expires_at = sent_at + 60_000;
        assert!(alice.pay(&prepare).fulfills(&prepare));
        let arrived = bob.rule.received().pop().expect("it has arrived").expires_at;
        assert!(
            (sent_at..=now()).contains(&(arrived - 20_000)),
            "sent at {sent_at}, expires at {arrived}"
        );
    }
}
