//! What neighbours ask the node under `peer.`: their address (ILDCP, RFC 31), routes, messages between settlement
//! engines; over both kinds of link, for every relation, and for accounts of every shard.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use support::btp_peer::{BtpPeer, packet_of};
use support::http::{Connection, request_bytes};
use support::node::{Node, Options, expect_balance};
use support::packet::{Cursor, Prepare, Reply, now, sha256};
use support::party::{Party, Via};
use support::random::Random;
use support::rule::{Answer, Rule};

const SHARDS: usize = 3;

/// The Fulfill that tells an account what it has: read by the letter of RFC 31.
fn expect_config(reply: &Reply, address: &str, scale: u8, code: &str) {
    let Reply::Fulfill { fulfillment, data } = reply else {
        panic!("expected the account's address, got {reply:?}");
    };
    assert_eq!(*fulfillment, [0; 32]);
    let mut data = Cursor(data);
    let told = (
        data.octets().expect("an address").to_vec(),
        data.take(1).expect("a scale")[0],
        data.octets().expect("a code").to_vec(),
    );
    assert_eq!(told, (address.as_bytes().to_vec(), scale, code.as_bytes().to_vec()));
    assert!(data.0.is_empty(), "and nothing else");
}

/// A Reject of the node itself, with this code.
fn expect_reject(reply: &Reply, expected: &str, what: &str) {
    let Reply::Reject { code, triggered_by, .. } = reply else {
        panic!("{what}: expected {expected}, got {reply:?}");
    };
    assert_eq!((code.as_str(), triggered_by.as_str()), (expected, "test.hub"), "{what}");
}

const RELATIONS: [&str; 4] = ["NonRoutingAccount", "Child", "Peer", "Parent"];

#[test]
fn every_relation_over_every_link() {
    let node = Node::with_shards(SHARDS);
    for via in Via::ALL {
        for relation in RELATIONS {
            let username = format!("{via:?}_{relation}").to_lowercase();
            let mut fields = json!({"routing_relation": relation, "asset_code": "EUR", "asset_scale": 3});
            if ["Peer", "Parent"].contains(&relation) {
                fields["ilp_address"] = json!(format!("test.{username}"));
            }
            // A neighbour is asked for routes and told some; a customer is asked nothing.
            let is_neighbour = relation != "NonRoutingAccount";
            let rule = Rule::new(move |prepare| {
                assert!(is_neighbour && prepare.is_request(), "{prepare:?}");
                Answer::Fulfill
            });
            let party = Party::join(&node, &username, via, rule, &fields);
            let account = node.api().get(&format!("/accounts/{username}"));
            let address = account["ilp_address"].as_str().expect("an address");
            let what = |case: &str| format!("{username}: {case}");

            let reply = party.pay(&Prepare::request("peer.config", b""));
            match relation {
                "Peer" | "Parent" => expect_reject(&reply, "F00", &what("config")),
                _ => expect_config(&reply, address, 3, "EUR"),
            }
            let reply = party.pay(&Prepare::request("peer.settle", b"from an engine"));
            expect_reject(&reply, "F02", &what("no engine"));
            expect_reject(
                &party.pay(&Prepare::request("peer.bonfig", b"")),
                "F02",
                &what("no service"),
            );
            expect_reject(
                &party.pay(&Prepare::request("peer.route", b"")),
                "F02",
                &what("no service"),
            );

            for destination in ["peer.config", "peer.route.control", "peer.route.update", "peer.settle"] {
                let what = |case: &str| format!("{username} {destination}: {case}");
                let paid = Prepare {
                    amount: 1,
                    ..Prepare::request(destination, b"")
                };
                expect_reject(&party.pay(&paid), "F00", &what("money"));
                let other = Prepare {
                    condition: sha256(b"another"),
                    ..Prepare::request(destination, b"")
                };
                expect_reject(&party.pay(&other), "F01", &what("another condition"));
                let late = Prepare {
                    expires_at: now() - 1,
                    ..Prepare::request(destination, b"")
                };
                expect_reject(&party.pay(&late), "R02", &what("expired"));
            }
            // The printed condition of RFC 38.
            let printed = Prepare {
                condition: sha256(b""),
                ..Prepare::request("peer.settle", b"")
            };
            expect_reject(&party.pay(&printed), "F02", &what("taken, but there is no engine"));
            expect_balance(&node.api(), &username, 0);
            assert_eq!(node.api().held(&username), 0);
            // The node has but one parent.
            node.api().ok("DELETE", &format!("/accounts/{username}"), None);
        }
    }
    node.api().audit();
}

/// Nothing under `peer.` is forwarded, also not by a default route.
#[test]
fn no_route_carries_a_peer_address_away() {
    let node = Node::with_shards(2);
    let alice = Party::simple(&node, "alice", Via::Http);
    let away = Party::simple(&node, "away", Via::BtpToNode);
    node.api().put("/routes/static", &json!({"test": "away"}));
    for destination in ["peer.unknown", "peer.config.x", "peer.settle.x"] {
        expect_reject(&alice.pay(&Prepare::request(destination, b"")), "F02", destination);
    }
    assert!(away.rule.received().is_empty());
}

/// A change of the account, or of the node's address, is what the next answer says; an account that is gone gets none.
#[test]
fn the_answer_is_the_account_as_it_is() {
    let node = Node::with_shards(SHARDS);
    let peers: Vec<BtpPeer> = (0..SHARDS)
        .map(|number| {
            let username = format!("customer_{number}");
            node.add_account(&username, &json!({}));
            BtpPeer::connect(node.address(), &username, Rule::fulfill())
        })
        .collect();
    for (number, peer) in peers.iter().enumerate() {
        let config = || peer.prepare(&Prepare::request("peer.config", b"ignored"));
        expect_config(&config(), &format!("test.hub.customer_{number}"), 9, "ABC");
        let path = format!("/accounts/customer_{number}");
        node.api().put(&path, &json!({"ilp_address": "test.hub.renamed"}));
        expect_config(&config(), "test.hub.renamed", 9, "ABC");
        node.api().put(&path, &json!({"routing_relation": "Peer"}));
        expect_reject(&config(), "F00", "now a peer");
        node.api().put(
            &path,
            &json!({"routing_relation": "Child", "ilp_address": format!("test.elsewhere{number}")}),
        );
        expect_config(&config(), &format!("test.elsewhere{number}"), 9, "ABC");
        node.api().ok("DELETE", &path, None);
        peer.expect_closed();
    }
    node.api().audit();
}

/// They count as packets of the account that asks.
#[test]
fn a_limit_on_packets_counts_requests() {
    let node = Node::with_shards(2);
    let limits = json!({"packets_per_minute_limit": 3});
    let alice = Party::join(&node, "alice", Via::BtpToNode, Rule::fulfill(), &limits);
    for _ in 0..3 {
        expect_config(
            &alice.pay(&Prepare::request("peer.config", b"")),
            "test.hub.alice",
            9,
            "ABC",
        );
    }
    expect_reject(&alice.pay(&Prepare::request("peer.config", b"")), "T05", "the fourth");
}

/// The longest data is served; longer is no packet. Data of any kind, to any service, is answered, and the next packet
/// passes.
#[test]
fn data_of_any_kind() {
    let node = Node::with_shards(2);
    let peer = json!({"routing_relation": "Peer", "ilp_address": "test.alice"});
    let alice = Party::join(&node, "alice", Via::BtpToNode, Rule::fulfill(), &peer);
    let bob = Party::simple(&node, "bob", Via::Http);
    let longest = vec![0xFF; 32_767];
    for destination in ["peer.route.update", "peer.route.control", "peer.settle", "peer.config"] {
        for party in [&alice, &bob] {
            let reply = party.pay(&Prepare::request(destination, &longest));
            assert_ne!(reply.code(), "R00", "{destination} is answered");
        }
        let too_long = Prepare::request(destination, &[&longest[..], b"x"].concat());
        expect_reject(&alice.pay(&too_long), "F01", destination);
        let bytes = request_bytes(
            "POST",
            "/accounts/bob/ilp",
            &[("Authorization", "Bearer bob-http")],
            &too_long.encode(),
        );
        let mut connection = node.connection();
        connection.send(&bytes).expect("the connection is open");
        assert_eq!(connection.answer().expect("an answer").status, 400, "{destination}");
    }
    let mut random = Random::new("requests of any kind");
    for _ in 0..300 {
        let destination =
            ["peer.route.update", "peer.route.control", "peer.settle", "peer.config"][random.between(0, 3) as usize];
        let bytes: Vec<u8> = (0..random.between(0, 200)).map(|_| random.next() as u8).collect();
        let party = [&alice, &bob][random.between(0, 1) as usize];
        let reply = party.pay(&Prepare::request(destination, &bytes));
        assert!(["F00", "F01", "F02", "fulfill"].contains(&reply.code()), "{reply:?}");
    }
    let prepare = Prepare::new("test.hub.bob", 1);
    assert!(alice.pay(&prepare).fulfills(&prepare));
}

/// One neighbour asks 10,000 times without waiting, each thing that there is; packets of others flow on meanwhile, and
/// everything is answered.
#[test]
fn ten_thousand_requests_at_once() {
    let node = Node::start_with(Options {
        shards: SHARDS,
        ..Options::default()
    });
    node.add_account("noisy", &json!({"routing_relation": "Child"}));
    let noisy = BtpPeer::connect(node.address(), "noisy", Rule::fulfill());
    let (alice, bob) = (
        Party::simple(&node, "alice", Via::Http),
        Party::simple(&node, "bob", Via::BtpToNode),
    );
    let over = AtomicBool::new(false);
    let flowed = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut flowed = 0;
            while !over.load(Ordering::Relaxed) || flowed < 20 {
                let prepare = Prepare::new("test.hub.bob", 1);
                let reply = alice.pay(&prepare);
                assert!(reply.fulfills(&prepare), "{reply:?}");
                flowed += 1;
            }
            flowed
        });
        let config = Prepare::request("peer.config", b"");
        let update = Prepare::request("peer.route.update", &[1; 500]);
        let replies: Vec<_> = (0..10_000)
            .map(|number| {
                (
                    number % 4,
                    noisy.start_prepare(if number % 4 == 0 { &update } else { &config }),
                )
            })
            .collect();
        let mut busy = 0;
        for (kind, reply) in replies {
            let reply = packet_of(&reply);
            match kind {
                0 => {
                    assert!(
                        ["F00", "F01", "fulfill", "T03", "T05"].contains(&reply.code()),
                        "{reply:?}"
                    );
                    busy += usize::from(reply.code() == "T03");
                }
                _ => expect_config(&reply, "test.hub.noisy", 9, "ABC"),
            }
        }
        println!("{busy} of 2500 updates were told to come back");
        over.store(true, Ordering::Relaxed);
        others.join().expect("packets flow")
    });
    expect_balance(&node.api(), "bob", flowed);
    expect_balance(&node.api(), "noisy", 0);
    // Nothing has stayed behind: the account goes at once.
    node.api().ok("DELETE", "/accounts/noisy", None);
    drop(bob);
    node.api().audit();
}

/// Over HTTP the answers keep the order of the requests, whoever answers them, and on whatever shard the account lives.
#[test]
fn pipelined_over_http() {
    let node = Node::with_shards(SHARDS);
    let names: Vec<String> = (0..2 * SHARDS).map(|number| format!("customer_{number}")).collect();
    for username in &names {
        node.add_account(username, &json!({"ilp_over_http_incoming_token": "same"}));
    }
    // The accounts of all shards on one connection: it can only live on one of them.
    let mut requests = Vec::new();
    let destinations = [
        "peer.config",
        "peer.settle",
        "peer.config",
        "peer.nothing",
        "peer.settle",
    ];
    for destination in destinations {
        for username in &names {
            let bearer = format!("Bearer {username}:same");
            let body = Prepare::request(destination, b"").encode();
            requests.extend(request_bytes("POST", "/ilp", &[("Authorization", &bearer)], &body));
        }
    }
    let mut connection: Connection = node.connection();
    connection.send(&requests).expect("the connection is open");
    for destination in destinations {
        for username in &names {
            let reply = connection.answer().expect("an answer to each").reply();
            match destination {
                "peer.config" => expect_config(&reply, &format!("test.hub.{username}"), 9, "ABC"),
                _ => expect_reject(&reply, "F02", destination),
            }
        }
    }
}

/// A node that stops answers what it has taken, and takes no more; nothing keeps it from stopping.
#[test]
fn a_node_with_neighbours_stops_at_once() {
    let mut node = Node::with_shards(SHARDS);
    let peer = json!({"routing_relation": "Peer", "ilp_address": "test.alice"});
    let alice = Party::join(&node, "alice", Via::BtpToNode, Rule::fulfill(), &peer);
    for _ in 0..50 {
        alice
            .btp_peer()
            .start_prepare(&Prepare::request("peer.route.update", &[1; 100]));
    }
    node.terminate();
    assert!(node.exit_status_within(Duration::from_secs(10)).success());
}
