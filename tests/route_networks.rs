//! Networks of nodes that tell each other routes, while one of them dies, a link breaks, or all start again: packets
//! find the way that is left, and the way back when there is more. And neighbours that tell what is not so, or far too
//! much: they are answered, and nobody else notices.
//!
//! The times that are printed are what a packet waits for another way.

mod support;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clearway::wire::ccp::Update;
use serde_json::{Value, json};

use support::btp_peer::{BtpPeer, packet_of};
use support::network::Over::{Btp, Http};
use support::network::{
    Network, Over, Sent, Teller, Traffic, address_of, answers, customer, latencies, leads_to, longest_pause, name_of,
    username_of, wait_for_no_route, wait_for_route,
};
use support::node::{Node, Options};
use support::packet::{Prepare, Reply};
use support::rule::Rule;
use support::{PATIENCE, eventually, payer, within};

/// Where the interval is not what is tested, neighbours hear of each other often.
const OFTEN: [&str; 2] = ["--route_broadcast_interval", "500"];

/// The longest that packets may wait for another way once the one before is seen to be gone.
const REROUTED_WITHIN: Duration = Duration::from_secs(1);

/// Of a packet that may be lost on its way: enough for three nodes, each of which takes a second and wants two to be left.
const SHORT_LIFE: Duration = Duration::from_millis(4_500);

/// A node has ended by itself by then.
const STOP_LIMIT: Duration = Duration::from_secs(15);

fn pays(from: &BtpPeer, destination: &str, amount: u64) {
    let prepare = Prepare::new(destination, amount);
    let reply = from.prepare(&prepare);
    assert!(reply.fulfills(&prepare), "{destination}: {reply:?}");
}

/// A packet that nobody takes comes back as such, and at once.
fn is_unreachable(from: &BtpPeer, destination: &str, triggered_by: &str) {
    let begun = Instant::now();
    let reply = from.prepare(&Prepare::new(destination, 10));
    let Reply::Reject {
        code,
        triggered_by: whom,
        ..
    } = &reply
    else {
        panic!("{destination}: {reply:?}");
    };
    assert_eq!((code.as_str(), whom.as_str()), ("F02", triggered_by), "{destination}");
    assert!(
        begun.elapsed() < REROUTED_WITHIN,
        "{destination}: {:?}",
        begun.elapsed()
    );
}

/// What a node says of an address and packets to it.
fn explained(node: &Node, destination: &str) -> Value {
    node.api().get(&format!("/routes/explain?destination={destination}"))
}

/// Waits until a node knows exactly these ways, the best first.
fn wait_for_ways(node: &Node, destination: &str, expected: &[&str]) {
    let ways = || {
        let mut ways: Vec<String> = Vec::new();
        let explained = explained(node, destination);
        for candidate in explained["candidates"].as_array().into_iter().flatten() {
            let username = candidate["username"].as_str().expect("a user name");
            // An account may claim an address and tell it, too.
            if ways.iter().all(|way| way != username) {
                ways.push(username.to_owned());
            }
        }
        ways
    };
    eventually(&format!("the ways to {destination} are {expected:?}"), || {
        (ways() == expected).then_some(())
    });
}

/// Raw packets and a payment by STREAM, from a customer of one node to one of another.
fn pays_in_all_ways(network: &Network, (from, alice): (usize, &BtpPeer), (to, bob): (usize, &str)) {
    pays(alice, &format!("{}.{bob}", address_of(to)), 10);
    let outcome = payer::pay(alice, &network[to].api(), bob, 1_000, 10);
    assert_eq!(
        outcome.result,
        Ok(()),
        "a payment from {} to {}",
        name_of(from),
        name_of(to)
    );
}

#[test]
fn lines_carry_packets_from_end_to_end() {
    for links in [&[Btp][..], &[Http, Btp], &[Btp, Http, Http, Btp]] {
        let network = Network::line(links, &OFTEN);
        let last = links.len();
        network.wait_until_told();
        let (alice, bob) = (customer(&network[0], "alice"), customer(&network[last], "bob"));
        pays_in_all_ways(&network, (0, &alice), (last, "bob"));
        pays_in_all_ways(&network, (last, &bob), (0, "alice"));
        pays(&bob, "example.a.alice", 7);
        is_unreachable(&alice, "example.nowhere.at.all", "example.a");
        is_unreachable(&alice, &format!("{}.nobody", address_of(last)), &address_of(last));
        network.check_books(0);
        // 1,010 went there and 1,017 back.
        assert_eq!(network.booked(0, 1), -7, "{links:?}");
    }
}

/// Between two that dial it stands one that starts again: they come back, each in its time, and so does every way.
#[test]
fn a_hub_that_others_dial_starts_again() {
    let (left, hub, right) = (0, 1, 2);
    let mut network = Network::start(3, &[]);
    network.link(Btp, hub, left);
    network.link(Btp, hub, right);
    network.wait_until_told();
    let (alice, _bob) = (customer(&network[left], "alice"), customer(&network[right], "bob"));
    let traffic = Traffic::start(&alice, "example.c.bob");
    network.wait_for_packets(left, hub, 20);
    let ended = Instant::now();
    network[hub].terminate();
    assert!(network[hub].exit_status_within(STOP_LIMIT).success());
    network[hub].run();
    let started = ended.elapsed();
    network.wait_for_packets(left, hub, 20);
    let sent = traffic.end();
    println!(
        "a hub starts again in {started:?}: no packet arrived for {:?}; {:?}",
        longest_pause(&sent, ended),
        answers(&sent)
    );
    // It knows from before where everything is, and tells who comes back first, too.
    assert!(!sent.iter().any(|packet| packet.code == "F02"), "{:?}", answers(&sent));
    network.check_books(0);
}

/// How a node is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// SIGTERM: it ends by itself.
    Asked,
    /// SIGKILL.
    Killed,
}

/// Packets that did not arrive, as far as their sender was told.
fn refused(sent: &[Sent]) -> i128 {
    sent.iter().filter(|packet| packet.code != "fulfill").count() as i128
}

/// Of five nodes in a circle, a pays c over b; b ends, and starts again.
fn a_node_of_a_ring_ends(links: [Over; 5], end: End, arguments: &[&str]) {
    let (a, b, c, e) = (0, 1, 2, 4);
    let mut network = Network::ring(&links, arguments);
    network.wait_until_told();
    wait_for_ways(&network[a], "example.c", &["node_b", "node_e"]);
    let (alice, _bob) = (customer(&network[a], "alice"), customer(&network[c], "bob"));
    is_unreachable(&alice, "example.nowhere.at.all", "example.a");
    is_unreachable(&alice, "example.d.nobody", "example.d");

    let traffic = Traffic::start(&alice, "example.c.bob");
    network.wait_for_packets(a, b, 20);
    assert_eq!(network.booked(a, e), 0, "nobody takes the longer way yet");
    let ended = Instant::now();
    match end {
        End::Asked => {
            network[b].terminate();
            assert!(network[b].exit_status_within(STOP_LIMIT).success());
        }
        End::Killed => network[b].kill(),
    }
    network.wait_for_packets(a, e, 20);
    network[b].run();
    network.wait_for_packets(a, b, 20);
    let sent = traffic.end();

    let pause = longest_pause(&sent, ended);
    println!(
        "ring of 5, {links:?}, b is {end:?}: no packet arrived for {:.1} ms; {:?}",
        pause.as_secs_f64() * 1e3,
        answers(&sent)
    );
    assert!(pause < REROUTED_WITHIN, "{pause:?}");
    let is_for_now = |packet: &Sent| packet.code == "fulfill" || packet.code.starts_with(['T', 'R']);
    assert!(sent.iter().all(is_for_now), "{:?}", answers(&sent));
    network.check_books(match end {
        End::Asked => 0,
        End::Killed => refused(&sent),
    });
}

#[test]
fn a_node_of_a_ring_is_killed() {
    // With the interval that everybody has: nothing waits for it.
    a_node_of_a_ring_ends([Btp; 5], End::Killed, &[]);
}

#[test]
fn a_node_of_a_ring_over_http_is_killed() {
    a_node_of_a_ring_ends([Http; 5], End::Killed, &OFTEN);
}

#[test]
fn a_node_of_a_ring_is_stopped() {
    a_node_of_a_ring_ends([Http, Btp, Btp, Http, Btp], End::Asked, &OFTEN);
}

/// Of three nodes in a circle, a pays c. The link between the two breaks and is mended.
#[test]
fn a_link_of_a_ring_of_three_breaks() {
    let (a, b, c) = (0, 1, 2);
    let mut network = Network::line(&[Btp, Http], &[]);
    let wire = network.link_by_wire(a, c);
    wait_for_ways(&network[a], "example.c", &["node_c", "node_b"]);
    let (alice, _bob) = (customer(&network[a], "alice"), customer(&network[c], "bob"));
    is_unreachable(&alice, "example.nowhere.at.all", "example.a");
    let traffic = Traffic::start(&alice, "example.c.bob");
    network.wait_for_packets(a, c, 20);
    let broken = Instant::now();
    wire.cut();
    network.wait_for_packets(a, b, 20);
    wire.mend();
    network.wait_for_packets(a, c, 20);
    let sent = traffic.end();
    let pause = longest_pause(&sent, broken);
    println!(
        "ring of 3, the link breaks: no packet arrived for {:.1} ms; {:?}",
        pause.as_secs_f64() * 1e3,
        answers(&sent)
    );
    assert!(pause < REROUTED_WITHIN, "{pause:?}");
    network.check_books(refused(&sent));
}

/// Of five nodes in a circle, a pays c over b. The link between b and c breaks, which a is told and cannot see; nobody
/// waits for the interval, and no packet goes in circles.
#[test]
fn a_link_breaks_that_the_payer_does_not_see() {
    let (a, b, c, e) = (0, 1, 2, 4);
    let mut network = Network::start(5, &[]);
    for (one, other) in [(0, 1), (2, 3), (3, 4), (4, 0)] {
        network.link(Btp, one, other);
    }
    let wire = network.link_by_wire(b, c);
    network.wait_until_told();
    wait_for_route(&network[a], "example.c", "node_b");
    wait_for_ways(&network[a], "example.c", &["node_b", "node_e"]);
    wait_for_ways(&network[b], "example.c", &["node_c"]);
    let (alice, _bob) = (customer(&network[a], "alice"), customer(&network[c], "bob"));
    let of_b = customer(&network[b], "carol");
    let traffic = Traffic::start(&alice, "example.c.bob");
    network.wait_for_packets(a, b, 20);
    let broken = Instant::now();
    wire.cut();
    network.wait_for_packets(a, e, 20);
    // Whoever is next to the break goes back the way that the others come.
    wait_for_route(&network[b], "example.c", "node_a");
    pays(&of_b, "example.c.bob", 5);
    is_unreachable(&of_b, "example.c.nobody", "example.c");
    wire.mend();
    network.wait_for_packets(a, b, 20);
    let sent = traffic.end();
    let pause = longest_pause(&sent, broken);
    println!(
        "ring of 5, a link breaks that a does not see: no packet arrived for {:.1} ms; {:?}",
        pause.as_secs_f64() * 1e3,
        answers(&sent)
    );
    assert!(pause < REROUTED_WITHIN, "{pause:?}");
    network.check_books(refused(&sent));
}

/// Four nodes below one, which gives them their addresses; it stops, and is killed, and all goes on.
#[test]
fn a_star_has_its_addresses_from_the_middle() {
    let mut network = Network::start(5, &OFTEN);
    let middle = 4;
    for (kid, over) in [Btp, Http, Btp, Http].into_iter().enumerate() {
        network.relate(over, (middle, "Child"), (kid, "Parent"));
    }
    let address = |network: &Network, kid: usize| network[kid].api().get("/")["ilp_address"].clone();
    for kid in 0..middle {
        let given = format!("example.e.{}", username_of(kid));
        eventually("a child has its address", || {
            (address(&network, kid) == given).then_some(())
        });
    }
    let customers: Vec<BtpPeer> = (0..middle).map(|kid| customer(&network[kid], "alice")).collect();
    let pay_everybody = |network: &Network| {
        for (from, alice) in customers.iter().enumerate() {
            for to in (0..middle).filter(|to| *to != from) {
                let account = network[to].api().get("/accounts/alice");
                let given = format!("example.e.{}.alice", username_of(to));
                assert_eq!(account["ilp_address"], given);
                pays(alice, &given, 10);
            }
            let own = format!("example.e.{}", username_of(from));
            is_unreachable(alice, "example.nowhere.at.all", "example.e");
            is_unreachable(alice, "example.e.nobody", "example.e");
            is_unreachable(alice, "example.e.node_d.nobody", "example.e.node_d");
            is_unreachable(alice, &format!("{own}.nobody"), &own);
        }
    };
    pay_everybody(&network);
    let outcome = payer::pay(&customers[0], &network[3].api(), "alice", 1_000, 10);
    assert_eq!(outcome.result, Ok(()));

    for end in [End::Asked, End::Killed] {
        match end {
            End::Asked => {
                network[middle].terminate();
                assert!(network[middle].exit_status_within(STOP_LIMIT).success());
            }
            End::Killed => network[middle].kill(),
        }
        let ended = Instant::now();
        // There is a way, and nobody at its end now.
        let prepare = Prepare::new("example.e.node_b.alice", 10).expires_in(SHORT_LIFE);
        let reply = customers[0].prepare(&prepare);
        assert!(reply.code().starts_with(['T', 'R']), "{end:?}: {reply:?}");
        network[middle].run();
        let started = ended.elapsed();
        for to in [1, 2, 3] {
            let destination = format!("example.e.{}.alice", username_of(to));
            eventually("packets arrive again", || {
                let prepare = Prepare::new(&destination, 10).expires_in(SHORT_LIFE);
                customers[0].prepare(&prepare).fulfills(&prepare).then_some(())
            });
        }
        println!(
            "star, the middle is {end:?}: back after {:?}, of which {started:?} to start",
            ended.elapsed()
        );
        pay_everybody(&network);
    }
    network.check_books(0);
}

/// Everybody starts again, the one in the middle first: it knows all ways before anybody has told it one.
#[test]
fn the_whole_network_starts_again() {
    let (first, middle, last) = (0, 1, 2);
    let mut network = Network::line(&[Btp, Http], &[]);
    network.wait_until_told();
    let alice = customer(&network[first], "alice");
    let _carol = customer(&network[middle], "carol");
    let _bob = customer(&network[last], "bob");
    pays_in_all_ways(&network, (first, &alice), (last, "bob"));
    for node in [first, middle, last] {
        network[node].terminate();
        assert!(network[node].exit_status_within(STOP_LIMIT).success());
    }
    for node in [first, last, middle] {
        network[node].run();
    }
    let ways = ["example.a", "example.c"].map(|prefix| leads_to(&network[middle], prefix));
    assert_eq!(ways, ["node_a", "node_c"], "before anybody has told it again");
    let carol = BtpPeer::connect(network[middle].address(), "carol", Rule::fulfill());
    for destination in ["example.a.alice", "example.c.bob"] {
        let reply = carol.prepare(&Prepare::new(destination, 10));
        assert_ne!(reply.code(), "F02", "{reply:?}");
    }
    let started = Instant::now();
    let alice = BtpPeer::connect(network[first].address(), "alice", Rule::fulfill());
    let _bob = BtpPeer::connect(network[last].address(), "bob", Rule::fulfill());
    eventually("packets arrive again", || {
        let prepare = Prepare::new("example.c.bob", 10).expires_in(SHORT_LIFE);
        let reply = alice.prepare(&prepare);
        assert_ne!(reply.code(), "F02", "{reply:?}");
        reply.fulfills(&prepare).then_some(())
    });
    println!(
        "line of 3, all start again: packets arrive {:?} after the last has started",
        started.elapsed()
    );
    network.check_books(0);
}

/// Of three nodes in a circle and one beside them: what the operator of a sets is what a does and what d is told, and
/// when he takes it back it is as before; with an account goes all that it told, at once.
#[test]
fn an_operator_overrides_what_was_told() {
    let (a, b, c, d) = (0, 1, 2, 3);
    let mut network = Network::start(4, &[]);
    for (one, other) in [(a, b), (b, c), (c, a), (a, d)] {
        network.link(Btp, one, other);
    }
    network.wait_until_told();
    let _bob = customer(&network[c], "bob");
    let dora = customer(&network[d], "dora");
    let path_at_d = || explained(&network[d], "example.c.bob")["candidates"][0]["path"].clone();
    eventually("d is told the short way", || {
        (path_at_d() == json!(["example.a", "example.c"])).then_some(())
    });
    pays(&dora, "example.c.bob", 10);
    assert_eq!((network.booked(a, c), network.booked(a, b)), (10, 0));

    let set = network[a]
        .api()
        .call("PUT", "/routes/static/example.c", Some(&json!("node_b")));
    assert_eq!(set.status, 200);
    assert_eq!(leads_to(&network[a], "example.c"), "node_b");
    pays(&dora, "example.c.bob", 10);
    assert_eq!((network.booked(a, c), network.booked(a, b)), (10, 10));
    eventually("d is told that a leads there", || {
        (path_at_d() == json!(["example.a"])).then_some(())
    });

    let taken_back = network[a].api().call("DELETE", "/routes/static/example.c", None);
    assert_eq!(taken_back.status, 200);
    assert_eq!(leads_to(&network[a], "example.c"), "node_c");
    pays(&dora, "example.c.bob", 10);
    assert_eq!((network.booked(a, c), network.booked(a, b)), (20, 10));
    eventually("d is told the short way again", || {
        (path_at_d() == json!(["example.a", "example.c"])).then_some(())
    });

    network[a].api().ok("DELETE", "/accounts/node_c?force=true", None);
    assert_eq!(leads_to(&network[a], "example.c"), "node_b", "at once");
    pays(&dora, "example.c.bob", 10);
    network[a].api().ok("DELETE", "/accounts/node_b?force=true", None);
    assert_eq!(
        (leads_to(&network[a], "example.c"), leads_to(&network[a], "example.b")),
        (Value::Null, Value::Null)
    );
    is_unreachable(&dora, "example.c.bob", "example.a");
    wait_for_no_route(&network[d], "example.c");
    is_unreachable(&dora, "example.c.bob", "example.d");
    for node in network.nodes() {
        node.api().audit();
    }
}

/// Half of the packets of others take less, whatever a neighbour does: some hundred times what they take on a machine
/// that has nothing else to do.
const LATENCY_MAX: Duration = Duration::from_millis(200);

/// A node with a customer that pays another, and neighbours that talk.
struct Town {
    node: Node,
    alice: BtpPeer,
    _bob: BtpPeer,
}

impl Town {
    fn start() -> Self {
        let node = Node::start_with(Options {
            ilp_address: "example.hub".to_owned(),
            shards: 2,
            ..Options::default()
        });
        let (alice, bob) = (customer(&node, "alice"), customer(&node, "bob"));
        Self { node, alice, _bob: bob }
    }

    /// How long packets of others take while this goes on, half of them and all but one in a hundred. Every one arrives.
    fn while_packets_flow<T>(&self, what: impl FnOnce() -> T) -> (T, (Duration, Duration)) {
        let traffic = Traffic::start(&self.alice, "example.hub.bob");
        let result = what();
        let sent = traffic.end();
        assert_eq!(answers(&sent).into_keys().collect::<Vec<_>>(), ["fulfill"]);
        let latencies = latencies(&sent);
        assert!(latencies.0 < LATENCY_MAX, "{latencies:?}");
        (result, latencies)
    }

    fn latency_alone(&self) -> (Duration, Duration) {
        self.while_packets_flow(|| std::thread::sleep(Duration::from_millis(500)))
            .1
    }

    /// Lines of the log that say this.
    fn said(&self, what: &str) -> usize {
        // The threads that read the output may be a moment behind.
        let count = || self.node.log_lines().iter().filter(|line| line.contains(what)).count();
        eventually(what, || (count() > 0).then(count))
    }
}

/// Prefixes that a neighbour was told and has not been told to forget.
fn told_to(teller: &Teller) -> Vec<String> {
    let mut told = std::collections::BTreeSet::new();
    for prepare in teller.peer.rule.received() {
        if prepare.destination != "peer.route.update" {
            continue;
        }
        let update = Update::parse(&prepare.data).expect("the node's updates are valid");
        let text = |prefix: &[u8]| String::from_utf8(prefix.to_vec()).expect("text");
        for withdrawn in update.withdrawn.iter() {
            told.remove(&text(withdrawn));
        }
        told.extend(update.new_routes.iter().map(|route| text(route.prefix)));
    }
    told.into_iter().collect()
}

/// What nobody may claim is not believed, said once, and told nobody; what is good beside it is.
#[test]
fn claims_that_are_not_a_neighbours_to_make() {
    let town = Town::start();
    let listener = Teller::join(&town.node, "example.listener", "Peer");
    let liar = Teller::join(&town.node, "example.liar", "Peer");
    let child = Teller::join(&town.node, "example.hub.child", "Child");
    let bad: [(&str, &[&str]); 9] = [
        ("example.hub", &[]),
        ("example.hub.bob", &["example.else"]),
        ("example.hub.child", &[]),
        ("", &[]),
        ("example", &[]),
        ("g", &[]),
        ("test.other", &[]),
        ("peer.config", &[]),
        ("example.over.us", &["example.hub"]),
    ];
    let (told, latency) = town.while_packets_flow(|| {
        let mut told = 0;
        for epoch in 0..30 {
            let good = format!("example.good{epoch}");
            let mut new = bad.to_vec();
            new.insert(epoch as usize % bad.len(), (&good, &["example.far"]));
            let reply = liar.tell((epoch, epoch + 1), &new, &[]);
            assert_eq!(reply.code(), "fulfill", "{reply:?}");
            assert_eq!(leads_to(&town.node, &good), "liar");
            told += 1;
        }
        told
    });
    println!("{told} updates with claims that are not believed: packets of others take {latency:?}");
    let refused = child.tell(
        (0, 1),
        &[("example.hub.child.more", &[]), ("example.hub.bob", &[])],
        &[],
    );
    assert_eq!(refused.code(), "F00", "children tell nothing: {refused:?}");

    let routes = town.node.api().get("/routes");
    let routes = routes.as_object().expect("prefixes");
    let to_liar = routes.iter().filter(|(_, to)| **to == "liar").map(|(prefix, _)| prefix);
    assert!(
        to_liar
            .clone()
            .all(|prefix| prefix == "example.liar" || prefix.starts_with("example.good")),
        "{routes:?}"
    );
    assert_eq!(to_liar.count(), 31);
    assert_eq!(routes["example.hub.bob"], "bob");
    pays(&town.alice, "example.hub.bob", 3);
    pays(&town.alice, "example.good7.somebody", 3);
    is_unreachable(&town.alice, "example.over.us.x", "example.hub");

    eventually("the listener is told the good ones", || {
        (told_to(&listener).len() >= 31).then_some(())
    });
    let told = told_to(&listener);
    assert!(
        told.iter()
            .all(|prefix| prefix == "example.hub" || prefix.starts_with("example.good")),
        "{told:?}"
    );
    assert_eq!(town.said("a neighbour claims addresses of ours"), 1);
    assert_eq!(town.said("a neighbour that is no parent offers a default route"), 1);
    town.node.api().audit();
}

/// Requests of one neighbour that are under way at once, as the node allows them.
const UNDER_WAY_MAX: usize = 8;

/// Sends these updates, so many at once, and says how often each code came back.
fn tell_all(teller: &Teller, updates: impl Iterator<Item = Prepare>) -> std::collections::BTreeMap<String, usize> {
    let mut counts = std::collections::BTreeMap::new();
    let mut waiting = VecDeque::new();
    let mut count = |reply: Reply| *counts.entry(reply.code().to_owned()).or_insert(0) += 1;
    for update in updates {
        if waiting.len() == UNDER_WAY_MAX {
            count(packet_of(&waiting.pop_front().expect("some wait")));
        }
        waiting.push_back(teller.peer.start_prepare(&update));
    }
    waiting.iter().for_each(|reply| count(packet_of(reply)));
    counts
}

/// A neighbour tells a million prefixes: first as fast as it is answered, then as slowly as it must. It fills its own
/// room and nobody else's.
#[test]
fn a_million_prefixes() {
    const PREFIXES: usize = 1_000_000;
    const PREFIXES_PER_UPDATE: usize = 50;
    const ROUTES_MAX: usize = 100_000;
    const TAKEN: usize = 103_000;
    let town = Town::start();
    let mut flood = Teller::join(&town.node, "example.flood", "Peer");
    let good = Teller::join(&town.node, "example.good", "Peer");
    let prefixes: Vec<String> = (0..PREFIXES).map(|number| format!("example.{number}")).collect();
    let alone = town.latency_alone();
    let memory_before = town.node.resident_kib();
    let begun = Instant::now();
    let (counts, latency) = town.while_packets_flow(|| {
        let updates = (0..).zip(prefixes.chunks(PREFIXES_PER_UPDATE));
        tell_all(&flood, updates.map(|(epoch, some)| announcing(&flood, epoch, some)))
    });
    println!(
        "a million prefixes offered in {:?}: {counts:?}; {} KiB before, {} KiB after; packets of others take \
         {latency:?} instead of {alone:?}",
        begun.elapsed(),
        memory_before,
        town.node.resident_kib()
    );
    assert_eq!(counts.values().sum::<usize>(), PREFIXES / PREFIXES_PER_UPDATE);
    assert!(
        counts.keys().all(|code| code == "fulfill" || code == "T05"),
        "{counts:?}"
    );
    assert_eq!(town.said("a neighbour sends more route updates than it may"), 1);

    // Now it begins anew and does as it is told, with as much in an update as fits.
    flood.table_id = [2; 16];
    let begun = Instant::now();
    let (refused, latency) = town.while_packets_flow(|| {
        let mut refused = 0;
        for (epoch, some) in (0..).zip(prefixes[..TAKEN].chunks(500)) {
            loop {
                let reply = flood.peer.prepare(&announcing(&flood, epoch, some));
                if reply.code() == "fulfill" {
                    break;
                }
                assert_eq!(reply.code(), "T05", "{reply:?}");
                refused += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        refused
    });
    let routes = town.node.api().get("/routes");
    let to_flood = routes
        .as_object()
        .expect("prefixes")
        .values()
        .filter(|to| **to == "flood");
    let memory = town.node.resident_kib();
    println!(
        "{TAKEN} prefixes taken in {:?}, {refused} updates had to wait: {memory} KiB; packets of others take \
         {latency:?} instead of {alone:?}",
        begun.elapsed()
    );
    assert!(
        memory < memory_before + ROUTES_MAX as u64,
        "a route takes more than a KiB: {memory}"
    );
    // One more: it has an address of its own.
    assert_eq!(to_flood.count(), ROUTES_MAX + 1);
    assert_eq!(town.said("a neighbour tells more routes than are kept"), 1);
    // Others are heard as before, and its own routes are good.
    assert_eq!(good.tell((0, 1), &[("example.better", &[])], &[]).code(), "fulfill");
    assert_eq!(leads_to(&town.node, "example.better"), "good");
    pays(&town.alice, "example.better.x", 1);
    pays(&town.alice, "example.7.x", 1);
    // With the account all of it goes at once.
    town.node.api().ok("DELETE", "/accounts/flood?force=true", None);
    let left = town.node.api().get("/routes").as_object().expect("prefixes").len();
    assert!(left < 10, "{left} routes are left");
    town.node.api().audit();
}

/// The update that announces these prefixes in one epoch.
fn announcing(teller: &Teller, epoch: u32, prefixes: &[String]) -> Prepare {
    let new: Vec<(&str, &[&str])> = prefixes.iter().map(|prefix| (prefix.as_str(), &[][..])).collect();
    teller.update((epoch, epoch + 1), &new, &[])
}

/// A thousand updates per second that announce and take back the same prefixes: beyond what is allowed they are refused,
/// what was told before stays good, and others neither wait nor go without.
#[test]
fn a_thousand_updates_per_second() {
    const UPDATES: u32 = 3_000;
    let town = Town::start();
    let (flood, good) = (
        Teller::join(&town.node, "example.flood", "Peer"),
        Teller::join(&town.node, "example.good", "Peer"),
    );
    let listener = Teller::join(&town.node, "example.listener", "Peer");
    let alone = town.latency_alone();
    assert_eq!(flood.tell((0, 1), &[("example.steady", &[])], &[]).code(), "fulfill");
    let begun = Instant::now();
    let ((counts, others), latency) = town.while_packets_flow(|| {
        std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                // Neighbours that keep to the rules are heard meanwhile.
                let mut slowest = Duration::ZERO;
                for epoch in 0..10 {
                    let prefix = format!("example.good{epoch}");
                    let begun = Instant::now();
                    let reply = good.tell((epoch, epoch + 1), &[(&prefix, &[])], &[]);
                    slowest = slowest.max(begun.elapsed());
                    assert_eq!(reply.code(), "fulfill");
                    pays(&town.alice, &format!("{prefix}.x"), 1);
                    std::thread::sleep(Duration::from_millis(200));
                }
                slowest
            });
            let flapping = (0..UPDATES).map(|number| {
                let due = Duration::from_millis(u64::from(number));
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
                if number % 2 == 0 {
                    flood.update((1, 1), &[("example.flapping", &[])], &[])
                } else {
                    flood.update((1, 1), &[], &["example.flapping"])
                }
            });
            let counts = tell_all(&flood, flapping);
            (counts, others.join().expect("others are heard"))
        })
    });
    let took = begun.elapsed();
    println!(
        "{UPDATES} updates in {took:?}: {counts:?}; a good neighbour's take {others:?} at most; packets of others take \
         {latency:?} instead of {alone:?}"
    );
    let accepted = counts["fulfill"] as u64;
    let allowed = 40 + 20 * (took.as_secs() + 1);
    assert!(accepted <= allowed, "{accepted} were accepted");
    assert_eq!(accepted + counts["T05"] as u64, u64::from(UPDATES), "{counts:?}");
    assert_eq!(town.said("a neighbour sends more route updates than it may"), 1);
    assert_eq!(leads_to(&town.node, "example.steady"), "flood");
    pays(&town.alice, "example.steady.x", 1);
    // What others hear of it keeps to what a neighbour may send.
    let updates = listener.peer.rule.received();
    let updates = updates
        .iter()
        .filter(|prepare| prepare.destination == "peer.route.update")
        .count() as u64;
    println!("another neighbour was told {updates} updates meanwhile");
    assert!(updates <= 10 + begun.elapsed().as_millis() as u64 / 150, "{updates}");
    within(PATIENCE, "all good routes are there", || {
        (0..10)
            .all(|epoch| leads_to(&town.node, &format!("example.good{epoch}")) == "good")
            .then_some(())
    });
    town.node.api().audit();
}
