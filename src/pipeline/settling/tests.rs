//! When an account is settled, as a table; RFC 32's walk-through; and two nodes that settle with each other, to the end.

use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use crate::ledger::{AccountLimits, Standing};
use crate::pipeline::forward::Windows;
use crate::pipeline::in_flight::{Origin, ReplyTo, RequestId};
use crate::pipeline::incoming::{Incoming, Onward};
use crate::pipeline::outgoing::LinkState;
use crate::pipeline::rates::Decimal;
use crate::pipeline::reject::RejectReason;
use crate::pipeline::response::{Answer, Outcome};
use crate::pipeline::{Now, Settings};
use crate::wire::address::Address;
use crate::wire::packet::{ErrorCode, Fulfill, PEER_CONDITION, Prepare, PrepareBuilder, encode_fulfill};
use crate::wire::timestamp::Timestamp;

/// The account that is settled.
const PEER: AccountId = AccountId::new(0);
/// A customer of the same node.
const CUSTOMER: AccountId = AccountId::new(1);

const ASSET: AssetId = AssetId::new(0);
const T04: ErrorCode = ErrorCode::T04_INSUFFICIENT_LIQUIDITY;

const NOW: Now = Now {
    wall: Timestamp::from_millis(1_800_000_000_000),
    monotonic_ms: 0,
};

/// The pipeline of a node, and what its book makes of the transfers.
struct Node {
    pipeline: Pipeline,
    peer: Account,
    booked: HashMap<AccountId, i128>,
    /// The amounts of all settlements, oldest first.
    settled: Vec<u64>,
}

impl Node {
    fn new(peer: Account, standing: Standing) -> Self {
        let settings = Settings {
            reflect: false,
            echo: false,
            windows: Windows::default(),
            spread: Decimal::zero(),
        };
        let mut pipeline = Pipeline::new(settings, 0, 1, NOW);
        pipeline.set_node_address("test.hub".into());
        for account in [peer.clone(), account(CUSTOMER, "customer")] {
            pipeline.set_route(account.ilp_address.clone(), account.id);
            let standing = if account.id == PEER {
                standing
            } else {
                Standing::default()
            };
            pipeline.put_account(Arc::new(account), standing, NOW);
        }
        Self {
            pipeline,
            peer,
            booked: HashMap::from([(PEER, standing.booked)]),
            settled: Vec::new(),
        }
    }

    /// Puts the peer's account in force as it is.
    fn publish(&mut self) {
        self.pipeline
            .put_account(Arc::new(self.peer.clone()), Standing::default(), NOW);
    }

    fn set_engine(&mut self, of_asset: bool) {
        let assets = of_asset.then_some(ASSET).into_iter().collect();
        self.pipeline.set_settling_assets(Arc::new(assets));
    }

    /// A Prepare comes from one account and goes on to the other.
    fn prepare(&mut self, from: AccountId, amount: u64) -> Result<(RequestId, AccountId), RejectReason> {
        let to = if from == PEER { CUSTOMER } else { PEER };
        let destination = if to == PEER {
            "test.hub.peer"
        } else {
            "test.hub.customer"
        };
        let mut packet = Vec::new();
        PrepareBuilder {
            amount,
            expires_at: NOW.wall.plus_ms(30_000),
            execution_condition: &PEER_CONDITION,
            destination: Address::parse(destination.as_bytes()).unwrap(),
            data: b"",
        }
        .encode(&mut packet);
        let prepare = Prepare::parse(&packet).unwrap();
        let onward: Onward = match self.pipeline.incoming(NOW, from, &prepare, ReplyTo::default())? {
            Incoming::Onward(onward) => onward,
            other => panic!("the address is an account's: {other:?}"),
        };
        match self.pipeline.outgoing(NOW, onward, LinkState::Up { carrier: 0 }, 0) {
            Ok(id) => Ok((id, to)),
            Err((origin, reason)) => {
                self.finish(origin, Outcome::Rejected);
                Err(reason)
            }
        }
    }

    /// The Fulfill has come: its transfer is made, and what is due right behind it.
    fn fulfilled(&mut self, (id, to): (RequestId, AccountId)) -> Origin {
        let mut packet = Vec::new();
        encode_fulfill(&mut packet, &[0; 32], b"");
        let answer = self.pipeline.fulfilled(id, to, &Fulfill::parse(&packet).unwrap());
        let Some(Answer::Fulfilled { origin, transfer }) = answer else {
            panic!("it waits for this Fulfill: {answer:?}");
        };
        self.book(transfer);
        self.settle_due();
        origin
    }

    fn rejected(&mut self, (id, to): (RequestId, AccountId)) -> Origin {
        match self.pipeline.rejected(id, to) {
            Some(Answer::Rejected { origin }) => origin,
            other => panic!("it waits for this Reject: {other:?}"),
        }
    }

    fn finish(&mut self, origin: Origin, outcome: Outcome) {
        self.pipeline.finish(origin.from, origin.hold, outcome);
        self.settle_due();
    }

    /// A packet from one account to the other that nobody refuses on the way.
    fn pay(&mut self, from: AccountId, amount: u64) -> Result<(), ErrorCode> {
        let sent = self.prepare(from, amount).map_err(|reason| reason.code())?;
        let origin = self.fulfilled(sent);
        self.finish(origin, Outcome::Fulfilled);
        Ok(())
    }

    fn settle_due(&mut self) {
        while self.pipeline.has_to_settle() {
            let transfer = self.pipeline.settle_next();
            self.book(transfer);
        }
    }

    fn book(&mut self, transfer: Option<Transfer>) {
        let Some(transfer) = transfer else { return };
        *self.booked.entry(transfer.from).or_default() -= i128::from(transfer.incoming_amount);
        if transfer.to == SETTLEMENT {
            assert_eq!((transfer.from, transfer.outgoing_amount), (PEER, 0));
            self.settled.push(transfer.incoming_amount);
        } else {
            *self.booked.entry(transfer.to).or_default() += i128::from(transfer.outgoing_amount);
        }
    }

    fn settlement_ended(&mut self, returned: u64) {
        *self.booked.entry(PEER).or_default() += i128::from(returned);
        self.pipeline.settlement_ended(PEER, returned);
        self.settle_due();
    }

    fn settlement_received(&mut self, amount: u64) {
        *self.booked.entry(PEER).or_default() += i128::from(amount);
        self.pipeline.settlement_received(PEER, amount);
        self.settle_due();
    }

    fn balance(&self) -> crate::ledger::Balance {
        self.pipeline.state_of(PEER).unwrap().0
    }
}

fn account(id: AccountId, name: &str) -> Account {
    Account {
        username: name.into(),
        ilp_address: format!("test.hub.{name}").into(),
        limits: AccountLimits::default().into(),
        ..crate::store::tests::account(id.get(), ASSET.get())
    }
}

fn peer(threshold: impl Into<Option<i64>>, to: impl Into<Option<i64>>) -> Account {
    Account {
        settlement: Settlement {
            threshold: threshold.into(),
            to: to.into(),
            engine_url: Some("http://engine/".into()),
        }
        .into(),
        ..account(PEER, "peer")
    }
}

/// One line per event, all of them about one account; what it settles then, and what it has then: booked, prepaid, and
/// the settlement that is open.
fn check(script: &str) {
    let mut node = Node::new(account(PEER, "peer"), Standing::default());
    let mut held = Vec::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (event, expected) = line.split_once("->").expect("EVENT -> WHAT THEN");
        let words: Vec<&str> = event.split_whitespace().collect();
        let number = |at: usize| words[at].parse().unwrap();
        let before = node.settled.len();
        let mut said = String::new();
        match words[0] {
            // The peer is paid, it pays, it begins to pay, and that ends.
            "in" => node.pay(CUSTOMER, number(1)).unwrap(),
            "out" => node.pay(PEER, number(1)).unwrap(),
            "hold" => held.push(node.prepare(PEER, number(1)).unwrap()),
            "fulfill" => {
                let origin = node.fulfilled(held.pop().unwrap());
                node.finish(origin, Outcome::Fulfilled);
            }
            "reject" => {
                let origin = node.rejected(held.pop().unwrap());
                node.finish(origin, Outcome::Rejected);
            }
            "refused" => {
                let sent = node.prepare(CUSTOMER, number(1)).unwrap();
                let origin = node.rejected(sent);
                node.finish(origin, Outcome::Rejected);
            }
            "rule" => {
                let mut settlement = node.peer.settlement.clone();
                let number = |at: usize| (words[at] != "-").then(|| words[at].parse().unwrap());
                settlement = Settlement {
                    threshold: number(1),
                    to: number(2),
                    ..(*settlement).clone()
                }
                .into();
                node.peer.settlement = settlement;
                node.publish();
            }
            "engine" => {
                node.peer.settlement = Settlement {
                    engine_url: (words[1] != "-").then(|| words[1].into()),
                    ..(*node.peer.settlement).clone()
                }
                .into();
                node.publish();
            }
            "rename" => {
                node.peer.username = words[1].into();
                node.publish();
            }
            "default" => node.set_engine(words[1] == "yes"),
            "confirmed" => node.settlement_ended(0),
            "cancelled" => node.settlement_ended(number(1)),
            "received" => node.settlement_received(number(1)),
            "close" => node.pipeline.set_closing(PEER, true),
            "reopen" => node.pipeline.set_closing(PEER, false),
            "now" | "timer" => {
                let by = match words[0] {
                    "now" => SettleOrder::Operator,
                    _ => SettleOrder::Timer,
                };
                let made = node.pipeline.settle_now(PEER, by);
                if let SettleNow::Made { amount } = made {
                    node.book(Some(transfer_of(PEER, amount)));
                } else {
                    said = format!("{made:?} ");
                }
            }
            "restart" => {
                let balance = node.balance();
                let standing = Standing {
                    booked: balance.booked(),
                    prepaid: balance.prepaid(),
                    settling: node.pipeline.open_settlement(PEER).is_some(),
                };
                let open = node.pipeline.open_settlement(PEER);
                let booked = node.booked;
                node = Node::new(node.peer, standing);
                node.booked = booked;
                node.settled = vec![0; before];
                if open.is_some() {
                    node.pipeline.set_open_settlement(PEER, open);
                }
            }
            other => panic!("{other}"),
        }
        node.settle_due();
        for amount in &node.settled[before..] {
            said += &format!("settles {amount} ");
        }
        let balance = node.balance();
        let open = node.pipeline.open_settlement(PEER).unwrap_or(0);
        said += &format!("{} {} {open}", balance.booked(), balance.prepaid());
        assert_eq!(said, expected.trim(), "after {event:?} in\n{script}");
        assert_eq!(
            balance.booked(),
            node.booked[&PEER],
            "the book says the same after {event:?}"
        );
    }
}

#[test]
fn a_threshold_that_is_reached_settles_once_at_a_time() {
    check(
        "engine http://e  -> 0 0 0
         rule 10 2        -> 0 0 0
         in 9             -> 9 0 0
         refused 100      -> 9 0 0
         in 1             -> settles 8 2 0 8
         in 20            -> 22 0 8
         confirmed        -> settles 20 2 0 20
         confirmed        -> 2 0 0
         in 0             -> 2 0 0
         out 5            -> -3 0 0
         in 12            -> 9 0 0
         in 1             -> settles 8 2 0 8
         in 7             -> 9 0 8
         confirmed        -> 9 0 0
         in 1             -> settles 8 2 0 8",
    );
    // More than one settlement can carry goes with the next one.
    check(
        "engine http://e                -> 0 0 0
         in 18446744073709551615        -> 18446744073709551615 0 0
         in 18446744073709551615        -> 36893488147419103230 0 0
         rule 9223372036854775807 0     -> settles 18446744073709551615 18446744073709551615 0 18446744073709551615
         in 1                           -> 18446744073709551616 0 18446744073709551615
         confirmed                      -> settles 18446744073709551615 1 0 18446744073709551615",
    );
}

#[test]
fn without_a_rule_or_an_engine_no_balance_is_touched() {
    check(
        "rule 10 0        -> 0 0 0
         in 50            -> 50 0 0
         now              -> NoEngine 50 0 0
         default no       -> 50 0 0
         default yes      -> settles 50 0 0 50
         default no       -> 0 0 50
         confirmed        -> 0 0 0
         in 50            -> 50 0 0
         engine http://e  -> settles 50 0 0 50
         confirmed        -> 0 0 0
         engine -         -> 0 0 0
         in 50            -> 50 0 0",
    );
    for rule in [
        "- -",
        "10 -",
        "10 10",
        "0 10",
        "9223372036854775807 9223372036854775807",
    ] {
        check(&format!(
            "engine http://e -> 0 0 0
             rule {rule}     -> 0 0 0
             in 1000         -> 1000 0 0"
        ));
    }
    // What a rule left behind is settled by the next one.
    check(
        "engine http://e  -> 0 0 0
         rule 10 0        -> 0 0 0
         rule 100 -       -> 0 0 0
         in 60            -> 60 0 0
         rule 61 0        -> 60 0 0
         rule 60 -5       -> settles 65 -5 0 65",
    );
}

#[test]
fn what_was_paid_in_beforehand_is_not_paid_out() {
    check(
        "engine http://e  -> 0 0 0
         rule 10 0        -> 0 0 0
         received 25      -> 25 25 0
         in 9             -> 34 25 0
         out 5            -> 29 20 0
         in 1             -> settles 10 20 20 10
         received 6       -> 26 26 10
         out 30           -> -4 0 10
         received 3       -> -1 0 10
         received 3       -> 2 2 10
         in 10            -> 12 2 10
         confirmed        -> settles 10 2 2 10",
    );
    // What is on hold may still be spent: it is not paid out either.
    check(
        "engine http://e  -> 0 0 0
         rule 10 0        -> 0 0 0
         hold 3           -> 0 0 0
         in 12            -> 12 0 0
         in 1             -> settles 10 3 0 10
         reject           -> 3 0 10
         confirmed        -> 3 0 0
         hold 2           -> 3 0 0
         in 8             -> 11 0 0
         reject           -> settles 11 0 0 11
         confirmed        -> 0 0 0
         received 5       -> 5 5 0
         hold 5           -> 5 5 0
         in 10            -> 15 5 0
         fulfill          -> settles 10 0 0 10",
    );
}

#[test]
fn a_settlement_needs_a_cause() {
    // Cancelled: it stays with us until there is a new reason, of which another user name is none.
    for (event, then) in [
        ("in 1", "settles 11 0 0 11"),
        ("in 0", "10 0 0"),
        ("out 0", "10 0 0"),
        ("received 0", "10 0 0"),
        ("rename other", "10 0 0"),
        ("rule 9 0", "settles 10 0 0 10"),
        ("engine http://f", "settles 10 0 0 10"),
        ("default yes", "10 0 0"),
        ("restart", "settles 10 0 0 10"),
        ("now", "settles 10 0 0 10"),
    ] {
        check(&format!(
            "engine http://e  -> 0 0 0
             rule 10 0        -> 0 0 0
             in 10            -> settles 10 0 0 10
             cancelled 10     -> 10 0 0
             {event}          -> {then}"
        ));
    }
    // Fulfilled while it was open.
    check(
        "engine http://e  -> 0 0 0
         rule 10 0        -> 0 0 0
         in 10            -> settles 10 0 0 10
         in 1             -> 1 0 10
         cancelled 10     -> settles 11 0 0 11",
    );
    // Whoever pays ahead does so at once, and again only when something was used of it.
    check(
        "engine http://e  -> 0 0 0
         rule 0 -100      -> settles 100 -100 0 100
         received 100     -> 0 0 100
         confirmed        -> 0 0 0
         in 1             -> settles 101 -100 0 101
         confirmed        -> -100 0 0
         in 99            -> -1 0 0
         in 1             -> settles 100 -100 0 100",
    );
}

/// A packet that is rejected costs its sender nothing: it must not make anybody pay ahead.
#[test]
fn a_rejected_packet_is_a_cause_only_for_what_is_owed() {
    check(
        "engine http://e  -> 0 0 0
         rule 0 -100      -> settles 100 -100 0 100
         received 100     -> 0 0 100
         confirmed        -> 0 0 0
         hold 5           -> 0 0 0
         reject           -> 0 0 0
         refused 5        -> 0 0 0
         hold 5           -> 0 0 0
         fulfill          -> -5 0 0
         in 5             -> settles 100 -100 0 100",
    );
    // What was on hold stood in the way of what had its cause before.
    check(
        "hold 10          -> 0 0 0
         rule -5 -10      -> 0 0 0
         engine http://e  -> 0 0 0
         reject           -> settles 10 -10 0 10",
    );
    // What was on hold when the rest was settled.
    check(
        "engine http://e  -> 0 0 0
         rule 10 0        -> 0 0 0
         hold 10          -> 0 0 0
         in 20            -> settles 10 10 0 10
         confirmed        -> 10 0 0
         reject           -> settles 10 0 0 10",
    );
}

#[test]
fn a_restart_knows_what_is_open() {
    check(
        "engine http://e  -> 0 0 0
         rule 10 0        -> 0 0 0
         received 4       -> 4 4 0
         in 15            -> settles 15 4 4 15
         in 20            -> 24 4 15
         restart          -> 24 4 15
         in 1             -> 25 4 15
         now              -> Open 25 4 15
         confirmed        -> settles 21 4 4 21
         confirmed        -> 4 4 0
         restart          -> 4 4 0",
    );
    // The book says that one is open before anybody knows its amount.
    let standing = Standing {
        booked: 50,
        prepaid: 0,
        settling: true,
    };
    let mut node = Node::new(peer(10, 0), standing);
    node.settle_due();
    assert_eq!((node.settled.len(), node.pipeline.open_settlement(PEER)), (0, Some(0)));
    node.settlement_ended(0);
    assert_eq!(node.settled, [50]);
}

#[test]
fn an_account_that_is_being_deleted_is_not_settled() {
    check(
        "engine http://e  -> 0 0 0
         in 50            -> 50 0 0
         close            -> 50 0 0
         rule 10 0        -> 50 0 0
         now              -> NotReady 50 0 0
         reopen           -> settles 50 0 0 50",
    );
    let mut node = Node::new(peer(10, 0), Standing::default());
    node.pay(CUSTOMER, 10).unwrap();
    node.settlement_ended(0);
    node.pipeline.set_closing(PEER, true);
    node.pipeline.remove_account(PEER);
    assert_eq!(
        node.pipeline.settle_now(PEER, SettleOrder::Operator),
        SettleNow::NotReady
    );
    assert_eq!(
        node.pipeline.settle_now(AccountId::new(7), SettleOrder::Operator),
        SettleNow::NotReady
    );
    // What others were about to say of it changes nothing.
    node.pipeline.settlement_ended(PEER, 5);
    node.pipeline.settlement_received(PEER, 5);
    node.settle_due();
    assert_eq!(node.settled, [10]);
}

#[test]
fn an_order_settles_below_the_threshold() {
    check(
        "now              -> NoRule 0 0 0
         rule - 5         -> 0 0 0
         now              -> NoEngine 0 0 0
         default yes      -> 0 0 0
         now              -> NothingOwed 0 0 0
         in 5             -> 5 0 0
         now              -> NothingOwed 5 0 0
         in 3             -> 8 0 0
         received 4       -> 12 4 0
         now              -> settles 3 9 4 3
         now              -> Open 9 4 3
         confirmed        -> 9 4 0
         now              -> NothingOwed 9 4 0
         rule - 9223372036854775807 -> 9 4 0
         now              -> NothingOwed 9 4 0",
    );
    // The timer pays ahead only with what is owed.
    check(
        "engine http://e  -> 0 0 0
         rule 10 -100     -> 0 0 0
         timer            -> NothingOwed 0 0 0
         received 3       -> 3 3 0
         timer            -> NothingOwed 3 3 0
         in 1             -> 4 3 0
         timer            -> settles 101 -97 3 101
         confirmed        -> -97 3 0
         now              -> NothingOwed -97 3 0
         in 1             -> -96 3 0
         timer            -> NothingOwed -96 3 0
         now              -> settles 1 -97 3 1",
    );
}

/// Vector 81 of protocols.md: Alice lets Bob owe 20 and settles at 10; he lets her owe 5 and settles at 15.
#[test]
fn the_walk_through_of_rfc_32() {
    let trusting = |threshold, balance_min| Account {
        limits: AccountLimits {
            balance_min: Some(balance_min),
            ..AccountLimits::default()
        }
        .into(),
        ..peer(threshold, 0)
    };
    let mut alice = Node::new(trusting(10, -20), Standing::default());
    let mut bob = Node::new(trusting(15, -5), Standing::default());
    /// From one to the other: what the other says, and what each owes the other then, as each sees it.
    fn pay(from: &mut Node, to: &mut Node, amount: u64) -> (Result<(), ErrorCode>, i128, i128) {
        let sent = from.prepare(CUSTOMER, amount).expect("the sender's own node");
        let answer = to.pay(PEER, amount);
        let (origin, outcome) = match answer {
            Ok(()) => (from.fulfilled(sent), Outcome::Fulfilled),
            Err(_) => (from.rejected(sent), Outcome::Rejected),
        };
        from.finish(origin, outcome);
        (answer, from.balance().booked(), to.balance().booked())
    }
    assert_eq!(pay(&mut bob, &mut alice, 12), (Ok(()), 12, -12));
    assert_eq!(pay(&mut bob, &mut alice, 9), (Err(T04), 12, -12));
    assert_eq!(pay(&mut bob, &mut alice, 7), (Ok(()), 0, -19));
    assert_eq!(bob.settled, [19], "down to nothing");
    alice.settlement_received(19);
    bob.settlement_ended(0);
    assert_eq!((alice.balance().booked(), alice.balance().prepaid()), (0, 0));
    assert_eq!(pay(&mut alice, &mut bob, 2), (Ok(()), 2, -2));
    assert_eq!(pay(&mut alice, &mut bob, 5), (Err(T04), 2, -2));
    assert!(alice.settled.is_empty() && bob.settled.len() == 1);
}

/// A packet between the two nodes.
enum Flight {
    Sent {
        by: usize,
        amount: u64,
        here: (RequestId, AccountId),
    },
    Arrived {
        by: usize,
        here: (RequestId, AccountId),
        there: (RequestId, AccountId),
    },
    /// The far customer has fulfilled it, and the far node has not told the near one.
    Fulfilled {
        by: usize,
        here: (RequestId, AccountId),
        there: Origin,
    },
}

/// A settlement that the engines have not dealt with yet.
struct Transit {
    by: usize,
    amount: u64,
    credited: bool,
    confirmed: bool,
}

/// Two nodes with an account for each other, packets both ways, and engines that deliver and confirm when they like.
struct Pair {
    nodes: [Node; 2],
    flights: Vec<Flight>,
    transits: Vec<Transit>,
    /// Settlements of each node that the engines know of.
    taken: [usize; 2],
    random: u64,
    /// Packets that have.
    ended: usize,
    cancelled: usize,
}

impl Pair {
    fn new(seed: u64, rules: [(i64, i64); 2]) -> Self {
        let mut nodes = rules.map(|(threshold, to)| Node::new(peer(threshold, to), Standing::default()));
        nodes.iter_mut().for_each(Node::settle_due);
        Self {
            nodes,
            flights: Vec::new(),
            transits: Vec::new(),
            taken: [0; 2],
            random: seed,
            ended: 0,
            cancelled: 0,
        }
    }

    /// Below `end` (splitmix64).
    fn random(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % end as u64) as usize
    }

    fn send(&mut self, amount_max: usize) {
        let (by, amount) = (self.random(2), self.random(amount_max + 1) as u64);
        let here = self.nodes[by].prepare(CUSTOMER, amount).expect("nothing is limited");
        self.flights.push(Flight::Sent { by, amount, here });
    }

    /// Some packet comes one step further.
    fn fly(&mut self) {
        let at = self.random(self.flights.len());
        let next = match self.flights.swap_remove(at) {
            Flight::Sent { by, amount, here } => Flight::Arrived {
                by,
                here,
                there: self.nodes[1 - by].prepare(PEER, amount).expect("nothing is limited"),
            },
            Flight::Arrived { by, here, there } => {
                if self.random(4) == 0 {
                    for (node, sent) in [(1 - by, there), (by, here)] {
                        let origin = self.nodes[node].rejected(sent);
                        self.nodes[node].finish(origin, Outcome::Rejected);
                    }
                    self.ended += 1;
                    return;
                }
                let there = self.nodes[1 - by].fulfilled(there);
                Flight::Fulfilled { by, here, there }
            }
            Flight::Fulfilled { by, here, there } => {
                self.nodes[1 - by].finish(there, Outcome::Fulfilled);
                let origin = self.nodes[by].fulfilled(here);
                self.nodes[by].finish(origin, Outcome::Fulfilled);
                self.ended += 1;
                return;
            }
        };
        self.flights.push(next);
    }

    /// The engines take over what is new, and get on with one of those they have.
    fn engines(&mut self, may_cancel: bool) {
        for (by, node) in self.nodes.iter().enumerate() {
            for amount in &node.settled[self.taken[by]..] {
                self.transits.push(Transit {
                    by,
                    amount: *amount,
                    credited: false,
                    confirmed: false,
                });
            }
            self.taken[by] = node.settled.len();
            let open = node.pipeline.open_settlement(PEER);
            let mine = self
                .transits
                .iter()
                .filter(|transit| transit.by == by && !transit.confirmed);
            assert_eq!(
                mine.map(|transit| transit.amount).collect::<Vec<_>>(),
                Vec::from_iter(open),
                "at most one is open"
            );
        }
        if self.transits.is_empty() {
            return;
        }
        let at = self.random(self.transits.len());
        let (choice, cancels) = (self.random(2), may_cancel && self.random(8) == 0);
        let transit = &mut self.transits[at];
        let (by, amount) = (transit.by, transit.amount);
        if cancels && !transit.credited && !transit.confirmed {
            self.transits.swap_remove(at);
            self.cancelled += 1;
            self.nodes[by].settlement_ended(amount);
            return;
        }
        if choice == 0 && !transit.credited {
            transit.credited = true;
            self.nodes[1 - by].settlement_received(amount);
        } else if choice == 1 && !transit.confirmed {
            transit.confirmed = true;
            self.nodes[by].settlement_ended(0);
        }
        if self.transits[at].credited && self.transits[at].confirmed {
            self.transits.swap_remove(at);
        }
    }

    fn settled(&self) -> usize {
        self.nodes.iter().map(|node| node.settled.len()).sum()
    }

    fn is_quiet(&self) -> bool {
        let is_known = |by: usize| self.nodes[by].settled.len() == self.taken[by];
        self.flights.is_empty() && self.transits.is_empty() && is_known(0) && is_known(1)
    }
}

#[test]
fn two_nodes_settle_a_finite_number_of_times_and_stop() {
    for rules in [
        [(10, 0), (10, 0)],
        [(1, 0), (1, 0)],
        [(1, 0), (1_000, 500)],
        [(10, 5), (20, 15)],
        // Paying ahead, from one side and from both: without a cause these would go on for ever.
        [(10, -20), (10, 0)],
        [(10, -20), (10, -20)],
        [(0, -100), (10, 0)],
        [(0, -100), (0, -100)],
        [(-5, -10), (-5, -300)],
        [(i64::MIN + 1, i64::MIN), (-1, -2)],
    ] {
        let mut settled = 0;
        for seed in 1..=20 {
            let at = format!("seed {seed} rules {rules:?}");
            let may_cancel = seed % 2 == 0;
            let mut pair = Pair::new(seed, rules);
            for _ in 0..1_000 {
                match pair.random(4) {
                    0 if pair.flights.len() < 20 => pair.send(30),
                    1 | 2 if !pair.flights.is_empty() => pair.fly(),
                    _ => pair.engines(may_cancel),
                }
            }
            while !pair.flights.is_empty() {
                pair.fly();
            }
            let (during, mut steps) = (pair.settled(), 0);
            while !pair.is_quiet() {
                pair.engines(false);
                steps += 1;
                assert!(steps < 1_000, "{at}: they do not stop");
            }
            // One each for what came in while another was open.
            assert!(pair.settled() - during <= 2, "{at}: {} more", pair.settled() - during);
            // Packets that are rejected move nothing, and neither do they make anybody settle.
            let before = pair.settled();
            for by in [0, 1].repeat(20) {
                let here = pair.nodes[by].prepare(CUSTOMER, 1).expect("nothing is limited");
                let there = pair.nodes[1 - by].prepare(PEER, 1).expect("nothing is limited");
                for (node, sent) in [(1 - by, there), (by, here)] {
                    let origin = pair.nodes[node].rejected(sent);
                    pair.nodes[node].finish(origin, Outcome::Rejected);
                    pair.nodes[node].settle_due();
                }
                while !pair.is_quiet() {
                    pair.engines(false);
                }
            }
            assert!(
                may_cancel || pair.settled() == before,
                "{at}: {} more",
                pair.settled() - before
            );
            // A cause each: the two ends of a packet, and the start of each node.
            assert!(pair.settled() <= 2 * pair.ended + 2, "{at}: {}", pair.settled());
            assert!(pair.ended > 100, "{at}: {}", pair.ended);
            settled += pair.settled();
            let [one, other] = &pair.nodes;
            assert_eq!(
                one.balance().booked(),
                -other.balance().booked(),
                "{at}: both say the same"
            );
            for (node, (threshold, _)) in pair.nodes.iter().zip(rules) {
                let balance = node.balance();
                assert!(balance.is_settled(), "{at}: nothing is in flight");
                assert_eq!(balance.booked(), node.booked[&PEER], "{at}: so does the book");
                assert!(balance.prepaid() >= 0, "{at}");
                if threshold > 0 && pair.cancelled == 0 {
                    let owed = balance.booked() - balance.prepaid();
                    assert!(owed < i128::from(threshold), "{at}: {owed} is left");
                }
            }
        }
        assert!(settled > 100, "{rules:?}: {settled}");
    }
}
