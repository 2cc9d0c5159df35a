//! STREAM payments to accounts of our nodes in bad weather: peers that lose, stall and lie, a node that is killed on the
//! way, packets that come twice or to the wrong address. The payers are our own sender on the far side of a link.
//!
//! Always, whatever happens: what the payer says it has sent is what its node has booked; on both sides of every link
//! the books say the same, but for what was in flight when a node was killed, which only the node further on may have
//! booked; every book adds up.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clearway::stream::crypto::{ConnectionKeys, condition};
use clearway::stream::sender::PACKETS_IN_FLIGHT_MAX;
use serde_json::{Value, json};
use support::btp_peer::{BtpPeer, BtpReply, packet_of};
use support::node::{Node, Options, expect_balance};
use support::packet::{Prepare, Reply, now};
use support::party::{Party, Via};
use support::random::Random;
use support::rule::{Answer, Rule};
use support::stream::{Invoice, Paid, Payer, ask, spsp_url};
use support::{eventually, free_port, within};

/// The largest packet of most payers, so that an amount says how many packets it takes.
const PACKET_AMOUNT: u64 = 100;

fn start(ilp_address: &str) -> Node {
    Node::start_with(Options {
        shards: 2,
        ilp_address: ilp_address.to_owned(),
        ..Options::default()
    })
}

/// An account that is paid and has no link: nobody but the node answers for it.
fn add_receiver(node: &Node, username: &str, code: &str, scale: u8) {
    node.api()
        .create_account(&json!({"username": username, "asset_code": code, "asset_scale": scale}));
}

/// How two nodes are linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Between {
    Http,
    /// The first dials the second.
    Btp,
}

/// Two nodes become each other's accounts, named as given; `fields` for both, such as the asset between them.
fn link(between: Between, (one, name_of_one): (&Node, &str), (two, name_of_two): (&Node, &str), fields: &Value) {
    let (mut on_one, mut on_two) = (fields.clone(), fields.clone());
    match between {
        Between::Http => {
            on_one["ilp_over_http_url"] = json!(format!("http://{}/accounts/{name_of_one}/ilp", two.address()));
            on_one["ilp_over_http_outgoing_token"] = json!(format!("{name_of_one}-http"));
            on_two["ilp_over_http_url"] = json!(format!("http://{}/accounts/{name_of_two}/ilp", one.address()));
            on_two["ilp_over_http_outgoing_token"] = json!(format!("{name_of_two}-http"));
        }
        Between::Btp => {
            let url = format!("btp+ws://{}/accounts/{name_of_one}/ilp/btp", two.address());
            on_one["ilp_over_btp_url"] = json!(url);
            on_one["ilp_over_btp_outgoing_token"] = json!(format!("{name_of_one}-btp"));
        }
    }
    two.add_account(name_of_one, &on_two);
    let created = one.add_account(name_of_two, &on_one);
    assert_eq!(created["warnings"], Value::Null, "one reaches two");
}

/// What one says that it owes two is what two says it has to get.
fn expect_mirrored((one, name_of_two): (&Node, &str), (two, name_of_one): (&Node, &str)) {
    eventually("both sides of a link have the same book", || {
        (one.api().balance(name_of_two) == -two.api().balance(name_of_one)).then_some(())
    });
}

/// A connector of this test between two nodes: what `weather` does not answer goes on over `onward`.
fn relay(onward: BtpPeer, weather: impl Fn(&Prepare) -> Option<Answer> + Send + Sync + 'static) -> Rule {
    Rule::new(move |prepare| {
        if let Some(answer) = weather(prepare) {
            return answer;
        }
        let mut next = prepare.clone();
        next.expires_at -= 100;
        // What the next node would not take any more.
        let Some(left) = next.expires_at.checked_sub(now()).filter(|left| *left > 2_100) else {
            return Answer::reject("R00");
        };
        match onward.start_prepare(&next).recv_timeout(Duration::from_millis(left)) {
            Ok(BtpReply::Packet(reply)) => Answer::Reply(reply),
            _ => Answer::reject("R00"),
        }
    })
}

/// Two nodes with a relay in between: alice at the one, bob at the other.
struct Pair {
    one: Node,
    two: Node,
    _relay: Party,
}

impl Pair {
    fn start(via: Via, weather: impl Fn(&Prepare) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let (one, two) = (start("test.one"), start("test.two"));
        two.add_account("relay", &json!({}));
        add_receiver(&two, "bob", "ABC", 9);
        let onward = BtpPeer::connect(two.address(), "relay", Rule::fulfill());
        let relay = Party::join(&one, "relay", via, relay(onward, weather), &json!({}));
        one.add_account("alice", &json!({"max_packet_amount": PACKET_AMOUNT}));
        one.api().put("/routes/static", &json!({"test.two": "relay"}));
        Self {
            one,
            two,
            _relay: relay,
        }
    }

    /// All of `amount` has gone from alice to bob, and every book says so.
    fn expect_paid(&self, amount: u64) {
        let amount = i128::from(amount);
        for (node, username, balance) in [
            (&self.one, "alice", -amount),
            (&self.one, "relay", amount),
            (&self.two, "relay", -amount),
            (&self.two, "bob", amount),
        ] {
            expect_balance(&node.api(), username, balance);
            assert_eq!(node.api().held(username), 0, "{username}");
        }
        self.one.api().audit();
        self.two.api().audit();
    }
}

/// One packet in a hundred is rejected for a reason that passes: everything arrives, and nothing twice.
#[test]
fn everything_arrives_over_a_peer_that_loses_packets() {
    let mut random = Random::new("loss");
    for via in Via::ALL {
        let lost = Arc::new(AtomicUsize::new(0));
        let pair = Pair::start(via, {
            let (lost, choices) = (lost.clone(), std::sync::Mutex::new(random.fork()));
            move |_| {
                let mut choices = choices.lock().expect("no test panics here");
                (choices.between(1, 100) == 1).then(|| {
                    lost.fetch_add(1, Ordering::SeqCst);
                    let code = ["T00", "T01", "T02", "T03", "T04", "T05", "T99"][choices.between(0, 6) as usize];
                    Answer::reject(code)
                })
            }
        });
        let payer = Payer::over_btp(&pair.one, "alice");
        let amount = random.between(100_000, 101_000);
        let paid = payer.pay(&ask(&spsp_url(&pair.two, "bob")), amount);
        println!(
            "{via:?}: {:?}, lost {lost:?}, rejects {:?}",
            paid.outcome,
            paid.reject_counts()
        );
        paid.expect_whole(amount);
        assert_eq!(paid.outcome.amounts.delivered, amount, "{via:?}");
        assert!(
            lost.load(Ordering::SeqCst) > 0,
            "{via:?}: at 1 % of a thousand packets some are lost"
        );
        pair.expect_paid(amount);
    }
}

/// The peer takes packets and says nothing until they have expired, then goes on.
#[test]
fn everything_arrives_over_a_peer_that_stalls() {
    const STALL: Duration = Duration::from_millis(3_500);
    const PACKETS_BEFORE: usize = 200;
    for via in [Via::Http, Via::BtpFromNode] {
        let (packets, until) = (AtomicUsize::new(0), std::sync::OnceLock::new());
        let pair = Pair::start(via, move |_| {
            if packets.fetch_add(1, Ordering::SeqCst) >= PACKETS_BEFORE {
                let until: &Instant = until.get_or_init(|| Instant::now() + STALL);
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
            }
            None
        });
        let mut payer = Payer::over_btp(&pair.one, "alice");
        // Of which every node takes a second and wants two to be left.
        payer.lifetime = Duration::from_millis(4_000);
        let paid = payer.pay(&ask(&spsp_url(&pair.two, "bob")), 100_000);
        println!("{via:?}: {:?}, rejects {:?}", paid.outcome, paid.reject_counts());
        paid.expect_whole(100_000);
        assert!(paid.reject_counts().contains_key("R00"), "{via:?}: packets expired");
        pair.expect_paid(100_000);
    }
}

/// The node in the middle is killed while packets pass it, and comes back: the payment goes on.
#[test]
fn a_payment_survives_the_death_of_a_node_on_its_way() {
    let mut random = Random::new("death on the way");
    const AMOUNT: u64 = 2_000_000;
    for between in [Between::Btp, Between::Http] {
        let one = start("test.one");
        let mut two = Node::start_with(Options {
            shards: 2,
            ilp_address: "test.two".to_owned(),
            // Its peers must find it again.
            http_bind_address: format!("127.0.0.1:{}", free_port()),
            ..Options::default()
        });
        let three = start("test.three");
        link(between, (&one, "one"), (&two, "two"), &json!({}));
        link(between, (&two, "two"), (&three, "three"), &json!({}));
        one.api().put("/routes/static", &json!({"test.three": "two"}));
        two.api().put("/routes/static", &json!({"test.three": "three"}));
        one.add_account("alice", &json!({"max_packet_amount": PACKET_AMOUNT}));
        add_receiver(&three, "carol", "ABC", 9);
        let mut payer = Payer::over_btp(&one, "alice");
        // Of which every node takes a second and wants two to be left.
        payer.lifetime = Duration::from_millis(5_000);
        let invoice = ask(&spsp_url(&three, "carol"));
        let kill_after = i128::from(random.between(1_000, AMOUNT / 4));
        let paid = std::thread::scope(|scope| {
            let payment = scope.spawn(|| payer.pay(&invoice, AMOUNT));
            within(Duration::from_secs(20), "money arrives", || {
                (three.api().balance("carol") >= kill_after).then_some(())
            });
            let address = two.address();
            two.kill();
            assert!(!payment.is_finished(), "the node is killed on the way of packets");
            // The kernel takes the sockets of its ring a moment after the process.
            eventually("the port is free", || std::net::TcpListener::bind(address).ok());
            two.run();
            payment.join().expect("the payment ends")
        });
        println!("{between:?}: {:?}, rejects {:?}", paid.outcome, paid.reject_counts());
        paid.expect_whole(AMOUNT);

        let sent = i128::from(AMOUNT);
        expect_balance(&one.api(), "alice", -sent);
        expect_balance(&one.api(), "two", sent);
        // Who paid out last has the proof: what was in flight at the kill may have been booked there and not before.
        let books = within(Duration::from_secs(10), "nothing is in flight", || {
            let held = [(&two, "one"), (&two, "three"), (&three, "two"), (&three, "carol")];
            let nothing = held.iter().all(|(node, username)| node.api().held(username) == 0);
            nothing.then(|| {
                [
                    -two.api().balance("one"),
                    two.api().balance("three"),
                    -three.api().balance("two"),
                    three.api().balance("carol"),
                ]
            })
        });
        let [from_one, to_three, from_two, to_carol] = books;
        println!("{between:?}: killed after {kill_after} of {sent}; then {books:?}");
        assert_eq!(
            (from_one, from_two),
            (to_three, to_carol),
            "no node gains or loses anything by itself"
        );
        let in_flight_max = i128::from(u64::from(PACKETS_IN_FLIGHT_MAX) * PACKET_AMOUNT);
        assert!((sent..=sent + in_flight_max).contains(&from_one), "{from_one}");
        assert!((from_one..=from_one + in_flight_max).contains(&from_two), "{from_two}");
        for node in [&one, &two, &three] {
            node.api().audit();
        }
    }
}

/// Two and three nodes, each link in an asset of its own: what arrives is within the rounding of every node, and every
/// link has the same book on both sides.
#[test]
fn payments_cross_nodes_and_assets() {
    // One ABC is worth 4 XYZ or 10 DEF.
    let rates = json!({"ABC": 20, "XYZ": 5, "DEF": 2});
    for between in [Between::Btp, Between::Http] {
        let nodes = [start("test.one"), start("test.two"), start("test.three")];
        let [one, two, three] = &nodes;
        for node in &nodes {
            node.api().put("/rates", &rates);
        }
        link(
            between,
            (one, "one"),
            (two, "two"),
            &json!({"asset_code": "XYZ", "asset_scale": 6}),
        );
        link(
            between,
            (two, "two"),
            (three, "three"),
            &json!({"asset_code": "DEF", "asset_scale": 8}),
        );
        one.api()
            .put("/routes/static", &json!({"test.two": "two", "test.three": "two"}));
        two.api().put("/routes/static", &json!({"test.three": "three"}));
        one.add_account("alice", &json!({"max_packet_amount": 50_000_000}));
        add_receiver(two, "bob", "DEF", 4);
        add_receiver(three, "carol", "ABC", 7);
        for (payer, link) in [
            (Payer::over_btp(one, "alice"), "BTP"),
            (Payer::over_http(one, "alice"), "HTTP"),
        ] {
            for (node, receiver, numerator, denominator, loss) in [
                // 10^-9 ABC are 10 * 10^-9 DEF = 10 * 10^-5 of 10^-4 DEF.
                (two, "bob", 10, 100_000, 1),
                // 10^-9 ABC are 10^-2 of 10^-7 ABC; a unit of XYZ at 10^-6 is worth 2.5 of them.
                (three, "carol", 1, 100, 4),
            ] {
                let (amount, before) = (1_234_567_890, node.api().balance(receiver));
                let paid = payer.pay(&ask(&spsp_url(node, receiver)), amount);
                paid.expect_whole(amount);
                let delivered = i128::from(paid.outcome.amounts.delivered);
                let at_most = i128::from(amount) * numerator / denominator;
                let packets = paid.prepares.len() as i128;
                assert!(
                    (at_most - packets * loss..=at_most).contains(&delivered),
                    "{between:?}, {link}: {receiver} got {delivered} of {at_most} in {packets} packets"
                );
                expect_balance(&node.api(), receiver, before + delivered);
            }
        }
        expect_balance(&one.api(), "alice", -4 * 1_234_567_890);
        expect_mirrored((one, "two"), (two, "one"));
        expect_mirrored((two, "three"), (three, "two"));
        for node in &nodes {
            node.api().audit();
        }
    }
}

/// Payers over both kinds of links pay receivers of every shard, all at once.
#[test]
fn many_payments_at_once_add_up() {
    let mut random = Random::new("at once");
    let node = start("test.hub");
    let receivers = ["bob", "carol", "dave"];
    for receiver in receivers {
        add_receiver(&node, receiver, "ABC", 9);
    }
    let payers: Vec<(String, Payer)> = (0..4)
        .map(|number| {
            let username = format!("payer{number}");
            node.add_account(&username, &json!({"max_packet_amount": PACKET_AMOUNT << number}));
            let payer = match number % 2 {
                0 => Payer::over_btp(&node, &username),
                _ => Payer::over_http(&node, &username),
            };
            (username, payer)
        })
        .collect();
    let plans: Vec<Vec<(usize, u64)>> = payers
        .iter()
        .map(|_| {
            (0..5)
                .map(|_| (random.between(0, 2) as usize, random.between(1, 50_000)))
                .collect()
        })
        .collect();
    std::thread::scope(|scope| {
        let node = &node;
        for ((_, payer), plan) in payers.iter().zip(&plans) {
            scope.spawn(move || {
                for &(receiver, amount) in plan {
                    let paid = payer.pay(&ask(&spsp_url(node, receivers[receiver])), amount);
                    paid.expect_whole(amount);
                    assert_eq!(paid.outcome.amounts.delivered, amount);
                }
            });
        }
    });
    for ((username, _), plan) in payers.iter().zip(&plans) {
        let spent: u64 = plan.iter().map(|(_, amount)| amount).sum();
        expect_balance(&node.api(), username, -i128::from(spent));
    }
    for (number, username) in receivers.iter().enumerate() {
        let earned = plans.iter().flatten().filter(|(receiver, _)| *receiver == number);
        expect_balance(
            &node.api(),
            username,
            earned.map(|(_, amount)| i128::from(*amount)).sum(),
        );
    }
    node.api().audit();
}

/// Addresses and secrets follow from the seed: what was handed out before a crash is paid after it.
#[test]
fn an_address_outlives_the_process() {
    let mut node = start("test.hub");
    node.add_account("alice", &json!({}));
    add_receiver(&node, "bob", "ABC", 9);
    let invoice = ask(&spsp_url(&node, "bob"));
    node.kill();
    node.set_shards(3);
    node.run();
    Payer::over_http(&node, "alice").pay(&invoice, 77).expect_whole(77);
    expect_balance(&node.api(), "bob", 77);
}

/// The last Prepare of a payment that carried money.
fn last_money(paid: &Paid, invoice: &Invoice) -> Prepare {
    let keys = ConnectionKeys::new(&invoice.shared_secret);
    let is_money = |prepare: &&Prepare| condition(&keys.fulfillment(&prepare.data)) == prepare.condition;
    paid.prepares
        .iter()
        .rfind(is_money)
        .expect("a payment carries money")
        .clone()
}

/// Packets that a receiver must not take, and those that it must, although they look odd.
#[test]
fn who_takes_which_packet() {
    let node = start("test.hub");
    node.add_account("alice", &json!({}));
    for receiver in ["bob", "carol", "gone"] {
        add_receiver(&node, receiver, "ABC", 9);
    }
    let payer = Payer::over_btp(&node, "alice");
    let invoice = ask(&spsp_url(&node, "bob"));
    let paid = payer.pay(&invoice, 1_000);
    paid.expect_whole(1_000);
    let good = Prepare {
        expires_at: now() + 20_000,
        ..last_money(&paid, &invoice)
    };
    let gone = ask(&spsp_url(&node, "gone"));
    node.api().ok("DELETE", "/accounts/gone", None);
    let token = invoice.destination.rsplit('.').next().expect("a token");
    let with = |change: &dyn Fn(&mut Prepare)| {
        let mut prepare = good.clone();
        change(&mut prepare);
        prepare
    };
    let middle = good.data.len() / 2;
    let mut earned = 1_000;
    for (what, prepare, expected) in [
        ("the same packet again is money again", with(&|_| ()), "fulfill"),
        ("and again", with(&|_| ()), "fulfill"),
        ("more than asked for", with(&|prepare| prepare.amount += 5), "fulfill"),
        ("less than asked for", with(&|prepare| prepare.amount /= 2), "F99"),
        (
            "a bit of the data is flipped",
            with(&|prepare| prepare.data[middle] ^= 1),
            "F06",
        ),
        (
            "a bit of the nonce is flipped",
            with(&|prepare| prepare.data[0] ^= 1),
            "F06",
        ),
        (
            "a bit of the tag is flipped",
            with(&|prepare| prepare.data[20] ^= 1),
            "F06",
        ),
        ("no data", with(&|prepare| prepare.data.clear()), "F06"),
        (
            "data that nobody sealed",
            with(&|prepare| prepare.data = vec![7; 100]),
            "F06",
        ),
        ("another condition", with(&|prepare| prepare.condition[31] ^= 1), "F99"),
        (
            "bob's token below carol's address",
            with(&|prepare| prepare.destination = format!("test.hub.carol.{token}")),
            "F06",
        ),
        (
            "another token of bob's",
            with(&|prepare| prepare.destination = ask(&spsp_url(&node, "bob")).destination),
            "F06",
        ),
        (
            "an account that was deleted",
            with(&|prepare| prepare.destination.clone_from(&gone.destination)),
            "F02",
        ),
        (
            "an account that never was",
            with(&|prepare| prepare.destination = format!("test.hub.nobody.{token}")),
            "F02",
        ),
    ] {
        let reply = packet_of(&payer.start(&prepare));
        assert_eq!(reply.code(), expected, "{what}: {reply:?}");
        if let Reply::Fulfill { fulfillment, .. } = &reply {
            assert_eq!(condition(fulfillment), prepare.condition, "{what}");
            earned += i128::from(prepare.amount);
        }
        expect_balance(&node.api(), "bob", earned);
        expect_balance(&node.api(), "carol", 0);
        expect_balance(&node.api(), "alice", -earned);
    }
    assert_eq!(node.api().held("alice"), 0);
    node.api().audit();
}

/// Twenty packets, each a hundred times at once: every one that was fulfilled was paid for, and no other.
#[test]
fn duplicates_in_flight_are_each_paid_for_or_refused() {
    let node = start("test.hub");
    node.add_account("alice", &json!({"max_packet_amount": PACKET_AMOUNT}));
    add_receiver(&node, "bob", "ABC", 9);
    let payer = Payer::over_btp(&node, "alice");
    let invoice = ask(&spsp_url(&node, "bob"));
    let paid = payer.pay(&invoice, 20 * PACKET_AMOUNT);
    paid.expect_whole(20 * PACKET_AMOUNT);
    let keys = ConnectionKeys::new(&invoice.shared_secret);
    let is_small = |prepare: &&Prepare| prepare.amount <= PACKET_AMOUNT;
    let is_money = |prepare: &&Prepare| condition(&keys.fulfillment(&prepare.data)) == prepare.condition;
    let money: Vec<&Prepare> = paid.prepares.iter().filter(is_small).filter(is_money).collect();
    let replies: Vec<_> = (0..100)
        .flat_map(|_| &money)
        .map(|prepare| (prepare.amount, payer.start(prepare)))
        .collect();
    let fulfilled: u64 = replies
        .iter()
        .filter(|(_, reply)| matches!(packet_of(reply), Reply::Fulfill { .. }))
        .map(|(amount, _)| amount)
        .sum();
    assert!(
        fulfilled > 0,
        "the receiver keeps nothing, so it takes what comes again"
    );
    let earned = i128::from(20 * PACKET_AMOUNT + fulfilled);
    expect_balance(&node.api(), "bob", earned);
    expect_balance(&node.api(), "alice", -earned);
    node.api().audit();
}
