//! The graceful stop: packets in flight end, new ones are turned away, everything is written, the exit code is 0.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::btp_peer::packet_of;
use support::http::Connection;
use support::node::Node;
use support::packet::Prepare;
use support::party::{Party, Via};
use support::rule::{Answer, Rule};
use support::{PATIENCE, eventually};

#[test]
fn packets_in_flight_end_well_and_new_ones_are_turned_away() {
    for shards in [1, 2] {
        let mut node = Node::with_shards(shards);
        let slow = || Rule::always(Answer::Fulfill.after(Duration::from_millis(1500)));
        let over_btp = Party::join(&node, "over_btp", Via::BtpToNode, slow(), &json!({}));
        let over_http = Party::join(&node, "over_http", Via::Http, slow(), &json!({}));
        let dialled = Party::join(&node, "dialled", Via::BtpFromNode, slow(), &json!({}));
        let receivers = [&over_btp, &over_http, &dialled];
        let alice = Party::simple(&node, "alice", Via::BtpToNode).btp_peer();
        node.add_account("carol", &json!({}));

        let prepares: Vec<Prepare> = receivers
            .iter()
            .map(|receiver| Prepare::new(&format!("test.hub.{}", receiver.username), 100))
            .collect();
        let waiting: Vec<_> = prepares.iter().map(|prepare| alice.start_prepare(prepare)).collect();
        let address = node.address();
        let over_http_sender = std::thread::spawn(move || {
            let prepare = Prepare::new("test.hub.over_btp", 7);
            let mut connection = Connection::open(address);
            let answer = connection
                .post("/accounts/carol/ilp", "carol-http", &prepare)
                .expect("an answer");
            assert!(answer.reply().fulfills(&prepare));
        });
        eventually("all are with their receivers", || {
            let received: usize = receivers.iter().map(|receiver| receiver.rule.received().len()).sum();
            (received == 4).then_some(())
        });

        node.terminate();
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(300));
        let refused = packet_of(&alice.start_prepare(&Prepare::new("test.hub.over_btp", 1)));
        assert!(
            refused.code().starts_with('T'),
            "new ones are turned away for now: {refused:?}"
        );
        // Nobody new is let in: refused, closed, or told to come back.
        if let Ok(mut connection) = Connection::try_open(node.address())
            && let Ok(answer) = connection.request("GET", "/", &[], b"")
        {
            assert_eq!((answer.status, &answer.json()["status"]), (503, &json!("NotReady")));
        }
        for (reply, prepare) in waiting.iter().zip(&prepares) {
            assert!(packet_of(reply).fulfills(prepare), "to {}", prepare.destination);
        }
        over_http_sender.join().expect("the sender over HTTP got its Fulfill");
        let status = node.exit_status_within(PATIENCE);
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "it does not wait without need: {:?}",
            begun.elapsed()
        );

        node.run();
        let api = node.api();
        assert_eq!(api.balance("alice"), -300);
        assert_eq!(api.balance("carol"), -7);
        assert_eq!(
            (
                api.balance("over_btp"),
                api.balance("over_http"),
                api.balance("dialled")
            ),
            (107, 100, 100)
        );
        api.audit();
    }
}

#[test]
fn packets_in_flight_may_also_end_by_their_expiry() {
    let mut node = Node::start();
    let alice = Party::simple(&node, "alice", Via::BtpToNode).btp_peer();
    let _bob = Party::join(&node, "bob", Via::BtpToNode, Rule::always(Answer::Nothing), &json!({}));
    let prepare = Prepare::new("test.hub.bob", 5).expires_in(Duration::from_secs(3));
    let waiting = alice.start_prepare(&prepare);
    eventually("it is in flight", || (node.api().held("alice") == 5).then_some(()));
    node.terminate();
    assert_eq!(packet_of(&waiting).code(), "R00");
    assert_eq!(node.exit_status_within(PATIENCE).code(), Some(0));
    node.run();
    assert_eq!(node.api().balance("alice"), 0);
}

#[test]
fn a_second_signal_hurries() {
    let mut node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::BtpToNode).btp_peer();
    let rule = Rule::new(|prepare| {
        if prepare.amount == 5 {
            Answer::Nothing
        } else {
            Answer::Fulfill
        }
    });
    let _bob = Party::join(&node, "bob", Via::BtpToNode, rule, &json!({}));
    assert_eq!(
        packet_of(&alice.start_prepare(&Prepare::new("test.hub.bob", 30))).code(),
        "fulfill"
    );
    let waiting = alice.start_prepare(&Prepare::new("test.hub.bob", 5).expires_in(Duration::from_secs(28)));
    eventually("it is in flight", || (node.api().held("alice") == 5).then_some(()));
    node.terminate();
    std::thread::sleep(Duration::from_secs(1));
    assert!(node.is_running(), "a packet is in flight");
    node.terminate();
    let begun = Instant::now();
    assert_eq!(node.exit_status_within(PATIENCE).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(waiting);
    node.run();
    assert_eq!(
        (node.api().balance("alice"), node.api().balance("bob")),
        (-30, 30),
        "what was paid is paid"
    );
    node.api().audit();
}

#[test]
fn without_packets_it_stops_at_once_whoever_is_connected() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut node = Node::with_shards(2);
        let peers: Vec<Party> = Via::ALL
            .into_iter()
            .enumerate()
            .map(|(number, via)| Party::simple(&node, &format!("peer_{number}"), via))
            .collect();
        let mut idle = node.connection();
        assert_eq!(idle.request("GET", "/", &[], b"").expect("an answer").status, 200);
        let mut half_a_request = node.connection();
        half_a_request.send(b"POST /ilp HTTP/1.1\r\nHo").expect("open");
        node.signal(signal);
        let begun = Instant::now();
        assert_eq!(node.exit_status_within(PATIENCE).code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(idle.is_closed_within(PATIENCE));
        drop(peers);
    }
}
