//! The rules of the pipeline, end to end: what happens to a Prepare between two peers, over every kind of link, and
//! what the balances say afterwards. RFC 27, RFC 34; the order of the checks is the pipeline's own.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::btp_peer::packet_of;
use support::node::{Node, Options, expect_balance};
use support::packet::{Prepare, Reply, now, put_octets, sha256};
use support::party::{Party, Via};
use support::random::Random;
use support::rule::{Answer, Rule};

/// Our message window: how much earlier a Prepare expires at the next hop.
const WINDOW_MS: u64 = 1000;

#[test]
fn packets_flow_over_every_pair_of_links_on_one_shard() {
    packets_flow_over_every_pair_of_links(1);
}

#[test]
fn packets_flow_over_every_pair_of_links_on_two_shards() {
    packets_flow_over_every_pair_of_links(2);
}

/// With two receivers of each kind, some pairs share a shard and some do not, however accounts are placed.
fn packets_flow_over_every_pair_of_links(shards: usize) {
    let node = Node::with_shards(shards);
    let parties = |role: &str| -> Vec<Party> {
        let named = |number: usize, via: Via| Party::simple(&node, &format!("{role}_{number}"), via);
        Via::ALL
            .into_iter()
            .cycle()
            .take(6)
            .enumerate()
            .map(|(number, via)| named(number, via))
            .collect()
    };
    let (senders, receivers) = (parties("from"), parties("to"));
    let mut owed = 0;
    for (row, sender) in senders.iter().enumerate() {
        let mut paid = 0;
        for (column, receiver) in receivers.iter().enumerate() {
            let amount = (100 * row + 10 * column + 1) as u64;
            let mut prepare = Prepare::new(&format!("test.hub.{}.invoice.7", receiver.username), amount);
            prepare.data.extend_from_slice(b"and what else the sender has to say");
            let reply = sender.pay(&prepare);
            let route = format!("{} to {}", sender.username, receiver.username);
            assert!(reply.fulfills(&prepare), "{route}: {reply:?}");
            assert_eq!(reply.data(), b"paid", "{route}: the Fulfill's data passes");

            let arrived = receiver.rule.received().pop().expect("it arrived");
            let expected = Prepare {
                expires_at: prepare.expires_at - WINDOW_MS,
                ..prepare
            };
            assert_eq!(arrived, expected, "{route}: only the expiry differs");
            paid += i128::from(amount);
        }
        expect_balance(&node.api(), &sender.username, -paid);
        owed += paid;
    }
    let mut credited = 0;
    for receiver in &receivers {
        let fulfilled = i128::from(receiver.rule.fulfilled());
        expect_balance(&node.api(), &receiver.username, fulfilled);
        credited += fulfilled;
    }
    assert_eq!(owed, credited);
    node.api().audit();
}

/// Answers of the receivers come in any order, some pay and some do not; every unit is accounted for.
#[test]
fn many_packets_at_once_keep_every_balance_right() {
    let mut random = Random::new("many packets at once");
    let node = Node::with_shards(2);
    let rule = || {
        Rule::new(|prepare| {
            let answer = match prepare.data[0] % 8 {
                0 => Answer::reject("F99"),
                1 => Answer::Bytes(vec![14, 0]),
                2 => Answer::Fulfill.after(Duration::from_millis(u64::from(prepare.data[1]))),
                _ => return Answer::Fulfill,
            };
            answer.after(Duration::from_millis(u64::from(prepare.data[2] % 16)))
        })
    };
    let parties: Vec<Party> = (0..4)
        .map(|number| {
            let via = if number % 2 == 0 {
                Via::BtpToNode
            } else {
                Via::BtpFromNode
            };
            Party::join(&node, &format!("peer_{number}"), via, rule(), &json!({}))
        })
        .collect();
    let mut expected = [0_i128; 4];
    let mut waiting = Vec::new();
    for _ in 0..2000 {
        let (from, to) = (random.between(0, 3) as usize, random.between(0, 3) as usize);
        let prepare = Prepare::new(&format!("test.hub.peer_{to}"), random.between(0, 1_000_000));
        waiting.push((from, to, parties[from].btp_peer().start_prepare(&prepare), prepare));
    }
    for (from, to, reply, prepare) in waiting {
        let reply = packet_of(&reply);
        match prepare.data[0] % 8 {
            0 => assert_eq!(reply.code(), "F99"),
            1 => assert_eq!(reply.code(), "T00"),
            _ => {
                assert!(reply.fulfills(&prepare), "{reply:?}");
                expected[from] -= i128::from(prepare.amount);
                expected[to] += i128::from(prepare.amount);
            }
        }
    }
    for (party, expected) in parties.iter().zip(expected) {
        expect_balance(&node.api(), &party.username, expected);
        assert_eq!(node.api().held(&party.username), 0);
    }
    node.api().audit();
}

#[test]
fn an_expiry_is_shortened_and_never_later_than_the_longest_hold() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let bob = Party::simple(&node, "bob", Via::Http);
    // Seconds of life on arrival -> code.
    let table = [
        (5.0, "fulfill"),
        (2.5, "fulfill"),
        (1.5, "R02"),
        (0.0, "R02"),
        (-100.0, "R02"),
    ];
    for (seconds, expected) in table {
        let mut prepare = Prepare::new("test.hub.bob", 1);
        prepare.expires_at = now().saturating_add_signed((seconds * 1000.0) as i64);
        let before = bob.rule.received().len();
        assert_eq!(alice.pay(&prepare).code(), expected, "{seconds} s");
        if expected == "fulfill" {
            let arrived = bob.rule.received().pop().expect("it arrived");
            assert_eq!(arrived.expires_at, prepare.expires_at - WINDOW_MS, "{seconds} s");
        } else {
            assert_eq!(bob.rule.received().len(), before, "{seconds} s: not forwarded");
        }
    }
    for expires_at in [now() + 60_000, 253_402_300_799_999] {
        let prepare = Prepare {
            expires_at,
            ..Prepare::new("test.hub.bob", 1)
        };
        let sent_at = now();
        assert_eq!(alice.pay(&prepare).code(), "fulfill");
        let arrived = bob.rule.received().pop().expect("it arrived");
        assert!(
            (sent_at..=now()).contains(&(arrived.expires_at - 30_000)),
            "held for 30 s at most: sent at {sent_at}, expires at {}",
            arrived.expires_at
        );
    }
}

/// The receiver's answer comes after the outgoing expiry: the sender was told R00, so nobody is paid.
#[test]
fn a_late_fulfill_pays_nobody() {
    for via in [Via::Http, Via::BtpToNode] {
        let node = Node::start();
        let alice = Party::simple(&node, "alice", Via::BtpToNode);
        let late = Rule::new(|prepare| match prepare.amount {
            100 => Answer::Fulfill.after(Duration::from_millis(2000)),
            200 => Answer::Nothing,
            _ => Answer::Fulfill,
        });
        let bob = Party::join(&node, "bob", via, late, &json!({}));
        for amount in [100, 200] {
            // Bob has until 1.2 s from now; alice until 2.2 s.
            let prepare = Prepare::new("test.hub.bob", amount).expires_in(Duration::from_millis(2200));
            let begun = Instant::now();
            let reply = alice.btp_peer().start_prepare(&prepare);
            support::eventually("the amount is held", || {
                (node.api().balance("alice") == -i128::from(amount)).then_some(())
            });
            assert_eq!(node.api().held("alice"), i128::from(amount));
            assert_eq!(packet_of(&reply).code(), "R00", "{via:?}");
            let took = begun.elapsed();
            assert!(
                took >= Duration::from_millis(1100),
                "{via:?}: not before the outgoing expiry: {took:?}"
            );
            assert!(
                prepare.expires_at > now(),
                "{via:?}: before the incoming expiry: {took:?}"
            );
            expect_balance(&node.api(), "alice", 0);
        }
        // The late Fulfill is under way or has arrived by now; afterwards nothing has changed and the link works.
        std::thread::sleep(Duration::from_millis(1000));
        assert_eq!(bob.rule.fulfilled(), 100, "bob did answer");
        let prepare = Prepare::new("test.hub.bob", 1);
        assert!(alice.pay(&prepare).fulfills(&prepare));
        expect_balance(&node.api(), "alice", -1);
        expect_balance(&node.api(), "bob", 1);
        node.api().audit();
    }
}

#[test]
fn a_route_ends_on_a_segment_border() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::Http);
    let bob = Party::simple(&node, "bob", Via::Http);
    let table = [
        ("test.hub.bob", "fulfill"),
        ("test.hub.bob.shop.7", "fulfill"),
        ("test.hub.bobby", "F02"),
        ("test.hub.bo", "F02"),
        ("test.hub.Bob", "F02"),
        ("test.hub", "F02"),
        ("test.hub.nobody", "F02"),
        ("test.hubble.bob", "F02"),
        ("test1.hub.bob", "F02"),
        ("g.elsewhere", "F02"),
        ("peer.nothing.we.know", "F02"),
        ("self.bob", "F02"),
    ];
    for (destination, expected) in table {
        let reply = alice.pay(&Prepare::new(destination, 1));
        assert_eq!(reply.code(), expected, "{destination}");
        if let Reply::Reject { triggered_by, .. } = reply {
            assert_eq!(triggered_by, "test.hub", "{destination}");
        }
    }
    assert_eq!(bob.rule.received().len(), 2);

    // The longest prefix wins, and a default route takes the rest, but never what belongs to a link alone.
    let bobby = Party::simple(&node, "bobby", Via::Http);
    let carol = Party::simple(&node, "carol", Via::Http);
    node.api().put(
        "/routes/static",
        &json!({"": "carol", "test.hub.bob.shop": "bobby", "test.far": "bobby", "g": "bobby"}),
    );
    let table = [
        ("test.hub.bobby", "bobby"),
        ("test.hub.bob.shop", "bobby"),
        ("test.hub.bob.shop.7", "bobby"),
        ("test.hub.bob.shopping", "bob"),
        ("test.far.away", "bobby"),
        ("test.farther.away", "carol"),
    ];
    for (destination, receiver) in table {
        let prepare = Prepare::new(destination, 1);
        assert_eq!(alice.pay(&prepare).code(), "fulfill", "{destination}");
        let receiver = [&bob, &bobby, &carol]
            .into_iter()
            .find(|party| party.username == receiver)
            .expect("known");
        assert_eq!(
            receiver.rule.received().pop().map(|last| last.condition),
            Some(prepare.condition),
            "{destination}"
        );
    }
    assert_eq!(alice.pay(&Prepare::new("peer.nothing.we.know", 0)).code(), "F02");
    // What is below our own address is nowhere else, so it is not the default route's.
    assert_eq!(alice.pay(&Prepare::new("test.hub.nobody", 1)).code(), "F02");
    // RFC 34: a node on a test network has no way into the live one, whatever its routes say.
    assert_eq!(alice.pay(&Prepare::new("g.elsewhere", 1)).code(), "F02");
    node.api().put("/routes/static", &json!({}));
    assert_eq!(alice.pay(&Prepare::new("test.far.away", 1)).code(), "F02");
}

#[test]
fn too_large_an_amount_is_f08_and_says_the_maximum() {
    let node = Node::start();
    let alice = Party::join(
        &node,
        "alice",
        Via::BtpToNode,
        Rule::fulfill(),
        &json!({"max_packet_amount": 500}),
    );
    let _bob = Party::simple(&node, "bob", Via::Http);
    assert_eq!(
        alice.pay(&Prepare::new("test.hub.bob", 500)).code(),
        "fulfill",
        "the limit is inclusive"
    );
    for amount in [501, u64::MAX] {
        let reply = alice.pay(&Prepare::new("test.hub.bob", amount));
        assert_eq!(reply.code(), "F08");
        assert_eq!(reply.data(), [amount.to_be_bytes(), 500_u64.to_be_bytes()].concat());
    }
    // A new limit applies to the next packet on a connection that is open.
    node.api().put("/accounts/alice", &json!({"max_packet_amount": 501}));
    assert_eq!(alice.pay(&Prepare::new("test.hub.bob", 501)).code(), "fulfill");
    expect_balance(&node.api(), "alice", -1001);
}

#[test]
fn the_balance_never_falls_below_its_minimum() {
    let node = Node::start();
    let alice = Party::join(
        &node,
        "alice",
        Via::BtpToNode,
        Rule::fulfill(),
        &json!({"min_balance": -1000}),
    );
    let slow = Rule::new(|prepare| match prepare.amount {
        300 => Answer::reject("T99").after(Duration::from_millis(700)),
        _ => Answer::Fulfill,
    });
    let bob = Party::join(&node, "bob", Via::BtpToNode, slow, &json!({}));
    let pay = |amount| alice.pay(&Prepare::new("test.hub.bob", amount));
    assert_eq!(pay(600).code(), "fulfill");
    let refused = pay(401);
    assert_eq!(refused.code(), "T04");
    let Reply::Reject { message, .. } = refused else {
        panic!("a Reject")
    };
    assert_eq!(
        message, "exceeded maximum balance.",
        "the text that another connector looks for"
    );

    // What is in flight counts, until it is rejected.
    let waiting = alice.btp_peer().start_prepare(&Prepare::new("test.hub.bob", 300));
    support::eventually("300 are held", || (node.api().held("alice") == 300).then_some(()));
    assert_eq!(node.api().balance("alice"), -900);
    assert_eq!(pay(101).code(), "T04");
    assert_eq!(packet_of(&waiting).code(), "T99");
    assert_eq!(pay(400).code(), "fulfill");
    assert_eq!(pay(1).code(), "T04");
    assert_eq!(pay(0).code(), "fulfill", "an amount of zero touches no balance");
    assert_eq!(bob.pay(&Prepare::new("test.hub.alice", 10)).code(), "fulfill");
    assert_eq!(pay(11).code(), "T04");
    assert_eq!(pay(10).code(), "fulfill");
    expect_balance(&node.api(), "alice", -1000);
    expect_balance(&node.api(), "bob", 1000);
    node.api().audit();
}

#[test]
fn what_we_may_owe_is_limited_and_counts_what_is_in_flight() {
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let slow = Rule::new(|prepare| match prepare.amount {
        300 => Answer::reject("T99").after(Duration::from_millis(700)),
        _ => Answer::Fulfill,
    });
    let bob = Party::join(&node, "bob", Via::BtpToNode, slow, &json!({"max_balance": 1000}));
    let pay = |amount| alice.pay(&Prepare::new("test.hub.bob", amount)).code().to_owned();
    assert_eq!(pay(600), "fulfill");
    assert_eq!(pay(401), "T04");
    let waiting = alice.btp_peer().start_prepare(&Prepare::new("test.hub.bob", 300));
    support::eventually("300 are held", || (node.api().held("alice") == 300).then_some(()));
    assert_eq!(pay(101), "T04");
    assert_eq!(packet_of(&waiting).code(), "T99");
    assert_eq!(pay(400), "fulfill");
    assert_eq!(pay(1), "T04");
    assert_eq!(pay(0), "fulfill");
    assert_eq!(
        bob.pay(&Prepare::new("test.hub.alice", 10)).code(),
        "fulfill",
        "paying makes room"
    );
    assert_eq!(pay(11), "T04");
    assert_eq!(pay(10), "fulfill");
    expect_balance(&node.api(), "bob", 1000);
    expect_balance(&node.api(), "alice", -1000);
    node.api().audit();
}

#[test]
fn rates_per_minute_are_limited() {
    let node = Node::start();
    let _bob = Party::join(
        &node,
        "bob",
        Via::Http,
        Rule::new(|prepare| {
            if prepare.amount == 7 {
                Answer::reject("F99")
            } else {
                Answer::Fulfill
            }
        }),
        &json!({}),
    );
    let alice = Party::join(
        &node,
        "alice",
        Via::BtpToNode,
        Rule::fulfill(),
        &json!({"packets_per_minute_limit": 3}),
    );
    let pay = |party: &Party, amount| party.pay(&Prepare::new("test.hub.bob", amount)).code().to_owned();
    assert_eq!(
        [(); 4].map(|()| pay(&alice, 1)),
        ["fulfill", "fulfill", "fulfill", "T05"]
    );
    let none = Party::join(
        &node,
        "none",
        Via::Http,
        Rule::fulfill(),
        &json!({"packets_per_minute_limit": 0}),
    );
    assert_eq!(pay(&none, 1), "T05");

    // One unit comes back every 6 s, too slowly to matter here.
    let carol = Party::join(
        &node,
        "carol",
        Via::BtpToNode,
        Rule::fulfill(),
        &json!({"amount_per_minute_limit": 10}),
    );
    assert_eq!(pay(&carol, 11), "T04");
    assert_eq!(pay(&carol, 7), "F99");
    assert_eq!(pay(&carol, 9), "fulfill", "a rejected amount does not count");
    assert_eq!(pay(&carol, 5), "T04");
    expect_balance(&node.api(), "carol", -9);
    node.api()
        .put("/accounts/carol", &json!({"amount_per_minute_limit": null}));
    assert_eq!(pay(&carol, 5), "fulfill");
}

#[test]
fn rejects_pass_untouched() {
    let table = [
        Reply::reject("F99", "test.far.away", "no such invoice", b"application data"),
        Reply::reject("T05", "test.hub", "slow down", b""),
        Reply::reject("X42", "g.somewhere", "a code nobody knows", &[0xff; 3000]),
        Reply::reject("F08", "test.far", "", &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5]),
    ];
    for via in Via::ALL {
        let node = Node::start();
        let alice = Party::simple(&node, "alice", Via::Http);
        let rejects = table.clone();
        let rule = Rule::new(move |prepare| Answer::Reply(rejects[prepare.amount as usize].clone()));
        let _bob = Party::join(&node, "bob", via, rule, &json!({}));
        for (amount, expected) in table.iter().enumerate() {
            assert_eq!(
                &alice.pay(&Prepare::new("test.hub.bob", amount as u64)),
                expected,
                "{via:?}"
            );
        }
        expect_balance(&node.api(), "alice", 0);
        expect_balance(&node.api(), "bob", 0);
    }
}

/// Some connectors cannot read a Reject without the address of who made it, so ours stands in.
#[test]
fn a_reject_without_an_address_gets_ours() {
    for via in Via::ALL {
        let node = Node::start();
        let alice = Party::simple(&node, "alice", Via::Http);
        let nameless = Answer::Reply(Reply::reject("F99", "", "who am I", b"data"));
        let _bob = Party::join(&node, "bob", via, Rule::always(nameless), &json!({}));
        let reply = alice.pay(&Prepare::new("test.hub.bob", 1));
        assert_eq!(reply, Reply::reject("F99", "test.hub", "who am I", b"data"), "{via:?}");
    }
}

#[test]
fn a_wrong_fulfillment_is_f05_and_garbage_is_t00() {
    let wrong = Reply::Fulfill {
        fulfillment: [7; 32],
        data: Vec::new(),
    };
    let table = [
        (Answer::Reply(wrong), "F05"),
        (Answer::Bytes(b"\x0d\x05short".to_vec()), "T00"),
        (Answer::Bytes(b"\x0e\x03F99".to_vec()), "T00"),
        (Answer::Bytes(b"\x0bwhat is this?".to_vec()), "T00"),
        (Answer::Bytes(Vec::new()), "T00"),
        (
            Answer::Bytes(Prepare::new("test.hub.alice", 0).encode()[..40].to_vec()),
            "T00",
        ),
    ];
    for via in [Via::Http, Via::BtpFromNode] {
        let node = Node::start();
        let alice = Party::simple(&node, "alice", Via::BtpToNode);
        let answers = table.clone();
        let rule = Rule::new(move |prepare| match answers.get(prepare.amount as usize) {
            Some((answer, _)) => answer.clone(),
            None => Answer::Fulfill,
        });
        let _bob = Party::join(&node, "bob", via, rule, &json!({}));
        for (amount, (answer, expected)) in table.iter().enumerate() {
            // Over BTP a truncated Prepare in a RESPONSE is a request of the peer, and no answer to ours.
            if via == Via::BtpFromNode && matches!(answer, Answer::Bytes(bytes) if bytes.first() == Some(&12)) {
                continue;
            }
            let reply = alice.pay(&Prepare::new("test.hub.bob", amount as u64));
            assert_eq!(reply.code(), *expected, "{via:?}: {answer:?}");
        }
        expect_balance(&node.api(), "alice", 0);
        let good = Prepare::new("test.hub.bob", 50);
        assert!(alice.pay(&good).fulfills(&good), "{via:?}: the link still works");
        expect_balance(&node.api(), "bob", 50);
        node.api().audit();
    }
}

#[test]
fn amounts_are_converted_between_assets_and_rounded_down() {
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let in_xyz = json!({"asset_code": "XYZ", "asset_scale": 6});
    let bob = Party::join(&node, "bob", Via::Http, Rule::fulfill(), &in_xyz);
    let micro = Party::join(
        &node,
        "micro",
        Via::BtpToNode,
        Rule::fulfill(),
        &json!({"asset_scale": 6}),
    );
    let whole = Party::join(
        &node,
        "whole",
        Via::BtpToNode,
        Rule::fulfill(),
        &json!({"asset_scale": 0}),
    );
    let api = node.api();
    let pay = |party: &Party, to: &str, amount| party.pay(&Prepare::new(&format!("test.hub.{to}"), amount));

    assert_eq!(pay(&alice, "bob", 1_000_000).code(), "T00", "no rate is known");
    // 1 ABC is worth 1, 1 XYZ is worth 2; ABC has nine digits, XYZ six.
    api.put("/rates", &json!({"ABC": 1, "XYZ": "2"}));
    assert_eq!(pay(&alice, "bob", 1_000_000).code(), "fulfill");
    assert_eq!(bob.rule.received().pop().map(|arrived| arrived.amount), Some(500));
    assert_eq!(pay(&alice, "bob", 1_999_999).code(), "fulfill");
    assert_eq!(
        bob.rule.received().pop().map(|arrived| arrived.amount),
        Some(999),
        "999.9995 rounds down"
    );
    assert_eq!(pay(&alice, "bob", 1_999).code(), "R01", "0.9995 would be nothing");
    assert_eq!(pay(&alice, "bob", 0).code(), "fulfill");
    assert_eq!(pay(&bob, "alice", 3).code(), "fulfill");
    assert_eq!(alice.rule.received().pop().map(|arrived| arrived.amount), Some(6000));
    expect_balance(&api, "alice", -1_000_000 - 1_999_999 + 6000);
    expect_balance(&api, "bob", 500 + 999 - 3);

    // More digits than a double has: amount x 1.000000007 / 2.517 x 10^-3, worked out with integers.
    api.put("/rates", &json!({"ABC": "1.000000007", "XYZ": "2.517"}));
    let amount: u64 = 1_234_567_890_123_456_789;
    let exact = u128::from(amount) * 1_000_000_007 / (2_517_000_000 * 1000);
    assert_eq!(pay(&alice, "bob", amount).code(), "fulfill");
    assert_eq!(
        bob.rule.received().pop().map(|arrived| u128::from(arrived.amount)),
        Some(exact)
    );

    // The same asset at another scale needs no rate.
    assert_eq!(pay(&alice, "micro", 12_345).code(), "fulfill");
    assert_eq!(micro.rule.received_one().amount, 12);
    let maximum = u64::MAX / 1_000_000_000;
    let reply = pay(&whole, "alice", maximum + 1);
    assert_eq!(reply.code(), "F08", "it does not fit a packet");
    assert_eq!(
        reply.data(),
        [(maximum + 1).to_be_bytes(), maximum.to_be_bytes()].concat()
    );
    assert_eq!(pay(&whole, "alice", maximum).code(), "fulfill");
    assert_eq!(pay(&alice, "whole", maximum * 1_000_000_000).code(), "fulfill");
    expect_balance(&api, "whole", 0);

    let audit = api.audit();
    assert_eq!(audit["assets"].as_array().map(Vec::len), Some(4), "{audit}");

    api.put("/rates", &json!({}));
    assert_eq!(pay(&alice, "bob", 1_000_000).code(), "T00", "the rates are gone");
}

#[test]
fn the_node_keeps_its_spread_of_what_it_converts() {
    let arguments = ["--exchange_rate.spread", "0.01"].map(str::to_owned).to_vec();
    let node = Node::start_with(Options {
        shards: 2,
        arguments,
        ..Options::default()
    });
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let carol = Party::simple(&node, "carol", Via::BtpToNode);
    let in_xyz = json!({"asset_code": "XYZ", "asset_scale": 6});
    let bob = Party::join(&node, "bob", Via::Http, Rule::fulfill(), &in_xyz);
    let api = node.api();
    api.put("/rates", &json!({"ABC": 1, "XYZ": "2"}));
    let pay = |to: &str, amount| alice.pay(&Prepare::new(&format!("test.hub.{to}"), amount));

    assert_eq!(pay("bob", 1_000_000).code(), "fulfill");
    assert_eq!(bob.rule.received_one().amount, 495, "500 less one percent");
    assert_eq!(pay("bob", 2_021).code(), "fulfill");
    assert_eq!(
        bob.rule.received().pop().map(|arrived| arrived.amount),
        Some(1),
        "1.000395 rounds down"
    );
    assert_eq!(pay("bob", 2_020).code(), "R01", "0.9999 would be nothing");
    assert_eq!(pay("carol", 1_000).code(), "fulfill");
    assert_eq!(carol.rule.received_one().amount, 1_000, "nothing was converted");
    expect_balance(&api, "alice", -1_000_000 - 2_021 - 1_000);
    expect_balance(&api, "bob", 495 + 1);
    api.audit();
}

#[test]
fn a_packet_may_come_back_to_its_sender() {
    let node = Node::start();
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    let prepare = Prepare::new("test.hub.alice", 25);
    assert!(alice.pay(&prepare).fulfills(&prepare));
    expect_balance(&node.api(), "alice", 0);

    let arguments = vec!["--reflect_payments".to_owned(), "false".to_owned()];
    let node = Node::start_with(Options {
        arguments,
        ..Options::default()
    });
    let alice = Party::simple(&node, "alice", Via::BtpToNode);
    assert_eq!(alice.pay(&prepare).code(), "F02");
    expect_balance(&node.api(), "alice", 0);
}

/// The echo of two other connectors: a Prepare to our own address that names its sender comes back to it.
#[test]
fn our_own_address_echoes() {
    let node = Node::start();
    // An echo's data is given, so its preimage is agreed on beforehand.
    let fulfilled = Reply::Fulfill {
        fulfillment: [9; 32],
        data: Vec::new(),
    };
    let rule = Rule::always(Answer::Reply(fulfilled));
    let alice = Party::join(&node, "alice", Via::BtpToNode, rule, &json!({}));
    let mut prepare = Prepare::new("test.hub", 70);
    prepare.condition = sha256(&[9; 32]);
    prepare.data = b"ECHOECHOECHOECHO\x00".to_vec();
    put_octets(&mut prepare.data, b"test.hub.alice");
    assert!(alice.pay(&prepare).fulfills(&prepare));
    let arrived = alice.rule.received_one();
    assert_eq!((arrived.destination.as_str(), arrived.amount), ("test.hub.alice", 70));
    assert_eq!(
        (arrived.condition, arrived.data.as_slice()),
        (prepare.condition, &b"ECHOECHOECHOECHO\x01"[..])
    );
    expect_balance(&node.api(), "alice", 0);

    let carol = Party::simple(&node, "carol", Via::Http);
    let mut broken = prepare.clone();
    for data in [
        &b"ECHOECHOECHOECHO"[..],
        b"ECHOECHOECHOECHO\x00\x05short",
        b"ECHOECHOECHOECHO\x07\x00",
    ] {
        broken.data = data.to_vec();
        assert_eq!(carol.pay(&broken).code(), "F01", "{data:?}");
    }
    broken.data = b"hello".to_vec();
    assert_eq!(carol.pay(&broken).code(), "F02");
}

#[test]
fn the_largest_data_passes_and_one_byte_more_is_refused() {
    let node = Node::start();
    for via in Via::ALL {
        let name = format!("{via:?}").to_lowercase();
        let party = Party::simple(&node, &name, via);
        let mut prepare = Prepare::new(&format!("test.hub.{name}"), 1);
        prepare.data.resize(32_767, 0xa5);
        assert!(party.pay(&prepare).fulfills(&prepare), "{via:?}");
        assert_eq!(party.rule.received_one().data, prepare.data, "{via:?}");
        if via != Via::Http {
            prepare.data.push(0);
            assert_eq!(party.pay(&prepare).code(), "F01", "{via:?}");
        }
    }
}

/// RFC 30: what stands behind the last known field belongs to a later version. It is not ours to drop.
#[test]
fn fields_of_a_later_version_are_passed_on() {
    for shards in [1, 2] {
        let node = Node::with_shards(shards);
        let senders = Via::ALL.map(|via| Party::simple(&node, &format!("from_{via:?}").to_lowercase(), via));
        for via in Via::ALL {
            let receiver = Party::simple(&node, &format!("to_{via:?}").to_lowercase(), via);
            for (sender, later) in senders.iter().zip([&b"\x00"[..], b"a later version", &[7; 300]]) {
                let mut prepare = Prepare::new(&format!("test.hub.{}", receiver.username), 1);
                prepare.later = later.to_vec();
                let route = format!("{} to {}", sender.username, receiver.username);
                assert!(sender.pay(&prepare).fulfills(&prepare), "{route}");
                let expected = Prepare {
                    expires_at: prepare.expires_at - WINDOW_MS,
                    ..prepare
                };
                assert_eq!(receiver.rule.received().pop(), Some(expected), "{route}");
            }
        }
    }
}

/// What an operator set, and what peers have earned, is there again after a stop and after a kill.
#[test]
fn everything_is_there_after_a_restart() {
    let mut node = Node::with_shards(2);
    let in_xyz = json!({"asset_code": "XYZ", "asset_scale": 6, "min_balance": -7});
    {
        let alice = Party::simple(&node, "alice", Via::BtpToNode);
        let _bob = Party::join(&node, "bob", Via::BtpToNode, Rule::fulfill(), &in_xyz);
        node.api().put("/rates", &json!({"ABC": 1, "XYZ": 2}));
        node.api().put("/routes/static", &json!({"test.shop": "bob"}));
        assert_eq!(alice.pay(&Prepare::new("test.shop.1", 1_000_000)).code(), "fulfill");
    }
    let (accounts, routes) = (node.api().get("/accounts"), node.api().get("/routes"));
    for kill in [false, true] {
        if kill {
            node.kill();
        } else {
            node.terminate();
            assert!(node.exit_status_within(Duration::from_secs(40)).success());
        }
        node.run();
        let api = node.api();
        assert_eq!(api.balance("alice"), -1_000_000);
        assert_eq!(api.balance("bob"), 500);
        api.audit();
        assert_eq!(api.get("/routes"), routes);
        let fields = |accounts: &serde_json::Value, name: &str| -> Vec<serde_json::Value> {
            accounts
                .as_array()
                .expect("an array")
                .iter()
                .map(|account| account[name].clone())
                .collect()
        };
        let after = api.get("/accounts");
        for name in [
            "id",
            "username",
            "ilp_address",
            "asset_code",
            "asset_scale",
            "min_balance",
            "tokens_set",
        ] {
            assert_eq!(fields(&after, name), fields(&accounts, name), "{name}");
        }
    }
    let alice = support::btp_peer::BtpPeer::connect(node.address(), "alice", Rule::fulfill());
    let bob = support::btp_peer::BtpPeer::connect(node.address(), "bob", Rule::fulfill());
    assert_eq!(
        alice.prepare(&Prepare::new("test.shop.1", 2_000)).code(),
        "fulfill",
        "tokens, routes and rates are back"
    );
    assert_eq!(
        bob.prepare(&Prepare::new("test.hub.alice", 509)).code(),
        "T04",
        "so are limits"
    );
    expect_balance(&node.api(), "bob", 501);
}
