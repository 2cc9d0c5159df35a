//! The node is killed under load, at a random moment, again and again on the same data; what its book says afterwards
//! is held against what its peers saw.
//!
//! Senders and receivers are different accounts, so both bounds of every balance are known: what was acknowledged
//! must be there, and nothing may be there that was not sent. `CRASH_ROUNDS=n` for more rounds, `TEST_SEED=n` to
//! repeat the choices (the kernel's scheduling is not repeated).

mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::json;
use support::PATIENCE;
use support::btp_peer::{BtpPeer, BtpReply, BtpServer};
use support::http::{Connection, whole};
use support::http_peer::HttpPeer;
use support::node::{Node, Options};
use support::packet::Prepare;
use support::random::Random;
use support::rule::{Answer, Rule};

const RECEIVERS: [&str; 3] = ["to_http", "to_btp", "to_dialled"];
const SENDERS: [&str; 2] = ["from_http", "from_btp"];

/// HTTP connections of the sender over HTTP, each with one Prepare at a time.
const HTTP_CONNECTIONS: usize = 4;
/// Prepares that the sender over BTP keeps in flight.
const BTP_WINDOW: usize = 64;
const AMOUNT_MAX: u64 = 1_000_000_000;

fn rounds(default: u64) -> u64 {
    match std::env::var("CRASH_ROUNDS") {
        Ok(text) => text.parse().expect("CRASH_ROUNDS is a number"),
        Err(_) => default,
    }
}

/// What the peers saw in one round. Amounts.
#[derive(Default)]
struct Seen {
    /// Written to a socket, or about to be.
    sent: [AtomicU64; SENDERS.len()],
    /// Whose Fulfill the sender has received and checked, by sender and by receiver.
    acknowledged: [AtomicU64; SENDERS.len()],
    acknowledged_to: [AtomicU64; RECEIVERS.len()],
    packets: AtomicU64,
}

impl Seen {
    fn note_sent(&self, sender: usize, amount: u64) {
        self.sent[sender].fetch_add(amount, Ordering::SeqCst);
    }

    fn note_acknowledged(&self, sender: usize, receiver: usize, amount: u64) {
        self.acknowledged[sender].fetch_add(amount, Ordering::SeqCst);
        self.acknowledged_to[receiver].fetch_add(amount, Ordering::SeqCst);
        self.packets.fetch_add(1, Ordering::SeqCst);
    }
}

fn read(counter: &AtomicU64) -> i128 {
    i128::from(counter.load(Ordering::SeqCst))
}

/// Most packets are paid at once, some later, some not at all: so there are always some in every state.
fn receiving_rule() -> Rule {
    Rule::new(|prepare| match prepare.data[0] % 16 {
        0 => Answer::reject("F99"),
        1..4 => Answer::Fulfill.after(Duration::from_millis(u64::from(prepare.data[1] % 32))),
        _ => Answer::Fulfill,
    })
}

fn next_packet(random: &mut Random) -> (usize, Prepare) {
    let receiver = random.between(0, RECEIVERS.len() as u64 - 1) as usize;
    (
        receiver,
        Prepare::new(
            &format!("test.hub.{}", RECEIVERS[receiver]),
            random.between(1, AMOUNT_MAX),
        ),
    )
}

/// Sends over one connection until the node is gone.
fn send_over_http(mut connection: Connection, mut random: Random, seen: &Seen, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let (receiver, prepare) = next_packet(&mut random);
        seen.note_sent(0, prepare.amount);
        let Ok(answer) = connection.post("/accounts/from_http/ilp", "from_http-http", &prepare) else {
            return;
        };
        if answer.status == 200 && answer.reply().fulfills(&prepare) {
            seen.note_acknowledged(0, receiver, prepare.amount);
        }
    }
}

fn send_over_btp(peer: &BtpPeer, mut random: Random, seen: &Seen, stop: &AtomicBool) {
    let mut waiting: VecDeque<(usize, Prepare, Receiver<BtpReply>)> = VecDeque::new();
    loop {
        let ending = stop.load(Ordering::SeqCst) || peer.is_closed();
        if !ending {
            let (receiver, prepare) = next_packet(&mut random);
            seen.note_sent(1, prepare.amount);
            let reply = peer.start_prepare(&prepare);
            waiting.push_back((receiver, prepare, reply));
        }
        if ending || waiting.len() == BTP_WINDOW {
            let Some((receiver, prepare, reply)) = waiting.pop_front() else {
                return;
            };
            // A closed channel: the node went first.
            if let Ok(BtpReply::Packet(reply)) = reply.recv_timeout(PATIENCE)
                && reply.fulfills(&prepare)
            {
                seen.note_acknowledged(1, receiver, prepare.amount);
            }
        }
    }
}

/// Balances of [`SENDERS`], then of [`RECEIVERS`]; panics unless the book adds up and has no gain or loss of its own.
fn read_book(node: &Node) -> Vec<i128> {
    let api = node.api();
    let audit = api.audit();
    let assets = audit["assets"].as_array().expect("an array of assets");
    assert_eq!(assets.len(), 1, "{audit}");
    assert_eq!(
        whole(&assets[0]["position"]),
        0,
        "nothing was converted, so nothing is gained or lost: {audit}"
    );
    let accounts = SENDERS.iter().chain(&RECEIVERS);
    accounts
        .map(|username| {
            assert_eq!(api.held(username), 0, "{username}: after a start nothing is in flight");
            api.balance(username)
        })
        .collect()
}

struct Bench {
    node: Node,
    http_receiver: HttpPeer,
    dialled_receiver: BtpServer,
}

impl Bench {
    fn start(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let node = Node::start_with(Options {
            shards: 2,
            arguments,
            ..Options::default()
        });
        let http_receiver = HttpPeer::start(receiving_rule());
        let dialled_receiver = BtpServer::start("from-the-node", receiving_rule());
        for sender in SENDERS {
            node.add_account(sender, &json!({}));
        }
        node.add_account("to_http", &json!({"ilp_over_http_url": http_receiver.url()}));
        node.add_account("to_btp", &json!({}));
        let dialled = json!({
            "ilp_over_btp_url": dialled_receiver.url("btp+ws"),
            "ilp_over_btp_outgoing_token": "from-the-node",
        });
        node.add_account("to_dialled", &dialled);
        Self {
            node,
            http_receiver,
            dialled_receiver,
        }
    }

    /// Load until the kill; gives what was seen, and per receiver what it has fulfilled in this round.
    fn round(&mut self, random: &mut Random) -> (Seen, [i128; RECEIVERS.len()]) {
        let address = self.node.address();
        let btp_rule = receiving_rule();
        let _btp_receiver = BtpPeer::connect(address, "to_btp", btp_rule.clone());
        let sender = BtpPeer::connect(address, "from_btp", Rule::fulfill());
        // A node that was started a moment ago dials its peer again; from then on all three are reached.
        self.dialled_receiver.peer();
        let before = [
            self.http_receiver.rule.fulfilled(),
            0,
            self.dialled_receiver.rule.fulfilled(),
        ];
        let (seen, stop) = (Seen::default(), AtomicBool::new(false));
        let kill_after = Duration::from_millis(random.between(20, 400));
        std::thread::scope(|scope| {
            for _ in 0..HTTP_CONNECTIONS {
                let (connection, random) = (Connection::open(address), random.fork());
                let (seen, stop) = (&seen, &stop);
                scope.spawn(move || send_over_http(connection, random, seen, stop));
            }
            let random = random.fork();
            scope.spawn(|| send_over_btp(&sender, random, &seen, &stop));
            std::thread::sleep(kill_after);
            self.node.kill();
            stop.store(true, Ordering::SeqCst);
        });
        // Receivers note what they fulfill before they send it, and what comes too late for the node is only noted.
        let after = [
            self.http_receiver.rule.fulfilled(),
            btp_rule.fulfilled(),
            self.dialled_receiver.rule.fulfilled(),
        ];
        (
            seen,
            std::array::from_fn(|receiver| i128::from(after[receiver] - before[receiver])),
        )
    }
}

/// With the default durability: what was acknowledged is there.
#[test]
fn no_acknowledged_fulfill_is_lost_and_nothing_is_invented() {
    let mut random = Random::new("crash");
    let mut bench = Bench::start(&[]);
    let mut book = read_book(&bench.node);
    assert_eq!(book, [0; 5]);
    let (mut acknowledged, mut in_doubt) = ([0; RECEIVERS.len()], 0);
    for round in 1..=rounds(20) {
        let (seen, fulfilled) = bench.round(&mut random);
        // Accounts may belong to other shards than before.
        bench.node.set_shards(random.between(1, 3) as usize);
        bench.node.run();
        let after = read_book(&bench.node);
        let change: Vec<i128> = after.iter().zip(&book).map(|(after, before)| after - before).collect();
        println!(
            "round {round}: {} packets acknowledged, changes {change:?}",
            read(&seen.packets)
        );
        for (sender, username) in SENDERS.iter().enumerate() {
            let (sent, least) = (read(&seen.sent[sender]), read(&seen.acknowledged[sender]));
            let debited = -change[sender];
            assert!(
                debited >= least,
                "round {round}: {username} paid {least} for sure, the book says {debited}"
            );
            assert!(
                debited <= sent,
                "round {round}: {username} sent {sent} at most, the book says {debited}"
            );
            in_doubt += sent - least;
        }
        for (receiver, username) in RECEIVERS.iter().enumerate() {
            let (least, most) = (read(&seen.acknowledged_to[receiver]), fulfilled[receiver]);
            let credited = change[SENDERS.len() + receiver];
            assert!(
                credited >= least,
                "round {round}: {username} earned {least} for sure, the book says {credited}"
            );
            assert!(
                credited <= most,
                "round {round}: {username} fulfilled {most}, the book says {credited}"
            );
            acknowledged[receiver] += least;
        }
        book = after;
    }
    assert!(
        acknowledged.iter().all(|amount| *amount > 0),
        "every receiver was paid: {acknowledged:?}"
    );
    assert!(in_doubt > 0, "the kill hit packets in flight");

    // And a graceful stop changes nothing at all.
    bench.node.terminate();
    assert!(bench.node.exit_status_within(Duration::from_secs(40)).success());
    bench.node.run();
    assert_eq!(read_book(&bench.node), book);
}

/// With relaxed durability the last moments may be missing, on both sides of each packet alike.
#[test]
fn relaxed_durability_loses_whole_transfers_only() {
    let mut random = Random::new("crash, relaxed");
    let mut bench = Bench::start(&["--durability", "relaxed", "--flush_interval_ms", "20"]);
    let mut book = read_book(&bench.node);
    for round in 1..=rounds(20).div_ceil(4) {
        let (seen, fulfilled) = bench.round(&mut random);
        bench.node.run();
        let after = read_book(&bench.node);
        for (sender, username) in SENDERS.iter().enumerate() {
            let (sent, debited) = (read(&seen.sent[sender]), book[sender] - after[sender]);
            assert!(
                (0..=sent).contains(&debited),
                "round {round}: {username} sent {sent}, the book says {debited}"
            );
        }
        for (receiver, username) in RECEIVERS.iter().enumerate() {
            let at = SENDERS.len() + receiver;
            let (most, credited) = (fulfilled[receiver], after[at] - book[at]);
            assert!(
                (0..=most).contains(&credited),
                "round {round}: {username} fulfilled {most}, the book says {credited}"
            );
        }
        book = after;
    }
    assert!(book[0] < 0 && book[1] < 0, "packets did flow: {book:?}");
}
