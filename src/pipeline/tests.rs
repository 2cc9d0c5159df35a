//! What an operator sets about an account, and what becomes of its packets then: on one shard, with a simulated clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::in_flight::ReplyTo;
use super::incoming::{Incoming, Onward};
use super::reject::RejectReason;
use super::response::Outcome;
use super::*;
use crate::ledger::account::ROUND_TRIP_TIME_MS_DEFAULT;
use crate::ledger::{OrDefault, PackedLinks, RoutingRelation, Standing};
use crate::wire::address::Address;
use crate::wire::packet::{ErrorCode, Prepare, PrepareBuilder};

const MINUTE_MS: u64 = 60_000;
const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

const ALICE: AccountId = AccountId::new(0);
const BOB: AccountId = AccountId::new(1);

/// A node on which alice sends to bob.
struct Node {
    pipeline: Pipeline,
    alice: Account,
    bob: Account,
    /// Since [`START`].
    now_ms: u64,
}

impl Node {
    fn new(spread: &str) -> Self {
        let settings = Settings {
            reflect: false,
            echo: true,
            windows: Windows::default(),
            spread: Decimal::parse(spread).unwrap(),
        };
        let now = Now {
            wall: START,
            monotonic_ms: 0,
        };
        let mut pipeline = Pipeline::new(settings, 0, 1, now);
        pipeline.set_node_address("test.hub".into());
        let rates = [("ABC", "3"), ("XYZ", "2")].map(|(code, rate)| (code.to_owned(), Decimal::parse(rate).unwrap()));
        pipeline.set_rates(Arc::new(Rates::new(BTreeMap::from(rates)).unwrap()));
        let mut node = Self {
            pipeline,
            alice: account(ALICE, "alice"),
            bob: account(BOB, "bob"),
            now_ms: 0,
        };
        node.publish();
        for account in [&node.alice, &node.bob] {
            node.pipeline.set_route(account.ilp_address.clone(), account.id);
        }
        node
    }

    fn now(&self) -> Now {
        Now {
            wall: START.plus_ms(self.now_ms),
            monotonic_ms: self.now_ms,
        }
    }

    /// Puts both accounts in force as they are.
    fn publish(&mut self) {
        let now = self.now();
        for account in [&self.alice, &self.bob] {
            self.pipeline
                .put_account(Arc::new(account.clone()), Standing::default(), now);
        }
    }

    fn set_limits(&mut self, packets_per_minute: Option<u32>, amount_per_minute: Option<u64>) {
        self.alice.limits = AccountLimits {
            packets_per_minute,
            amount_per_minute,
            ..*self.alice.limits
        }
        .into();
        self.publish();
    }

    fn prepare(&mut self, amount: u64, lifetime_ms: u64) -> Result<Onward, RejectReason> {
        let mut packet = Vec::new();
        PrepareBuilder {
            amount,
            expires_at: self.now().wall.plus_ms(lifetime_ms),
            execution_condition: &[7; 32],
            destination: Address::parse(b"test.hub.bob.invoice").unwrap(),
            data: b"",
        }
        .encode(&mut packet);
        let reply_to = ReplyTo {
            shard: 0,
            connection: 0,
            request: 0,
        };
        let prepare = Prepare::parse(&packet).unwrap();
        match self.pipeline.incoming(self.now(), ALICE, &prepare, reply_to)? {
            Incoming::Onward(onward) => Ok(onward),
            other => panic!("bob's address is no service: {other:?}"),
        }
    }

    /// Sends a packet that ends at once. What goes on to bob, or the code it is rejected with.
    fn send(&mut self, amount: u64, outcome: Outcome) -> Result<u64, ErrorCode> {
        let onward = self.prepare(amount, 30_000).map_err(|reason| reason.code())?;
        self.pipeline.finish(ALICE, onward.origin.hold, outcome);
        Ok(onward.amount)
    }

    /// How many of the packets pass that are sent evenly, `per_second` for `seconds`; the others must get `code`.
    fn passed(&mut self, per_second: u64, seconds: u64, amount: u64, code: ErrorCode) -> u64 {
        let start_ms = self.now_ms;
        let mut passed = 0;
        for packet in 0..per_second * seconds {
            self.now_ms = start_ms + packet * 1_000 / per_second;
            match self.send(amount, Outcome::Fulfilled) {
                Ok(_) => passed += 1,
                Err(refused) => assert_eq!(refused, code, "packet {packet}"),
            }
        }
        self.now_ms = start_ms + seconds * 1_000;
        passed
    }
}

fn account(id: AccountId, name: &str) -> Account {
    Account {
        id,
        uuid: u128::from(id.get()).to_be_bytes(),
        username: name.into(),
        ilp_address: format!("test.hub.{name}").into(),
        ilp_address_generated: true,
        asset: Arc::new(Asset {
            code: "ABC".into(),
            scale: 2,
        }),
        asset_id: AssetId::new(0),
        routing_relation: RoutingRelation::Child,
        limits: OrDefault::default(),
        round_trip_time_ms: ROUND_TRIP_TIME_MS_DEFAULT,
        settlement: OrDefault::default(),
        links: PackedLinks::default(),
        created_at_ms: 0,
    }
}

const T04: ErrorCode = ErrorCode::T04_INSUFFICIENT_LIQUIDITY;
const T05: ErrorCode = ErrorCode::T05_RATE_LIMITED;
const R01: ErrorCode = ErrorCode::R01_INSUFFICIENT_SOURCE_AMOUNT;

#[test]
fn an_even_flow_at_the_limit_passes_whole_and_a_faster_one_with_the_limits_share() {
    // Ten minutes against 12,000 packets a minute.
    let mut node = Node::new("0");
    node.set_limits(Some(12_000), None);
    assert_eq!(node.passed(200, 600, 1, T05), 120_000);
    // Nothing was spent that was not won back: the whole burst is there, and not one more.
    for _ in 0..12_000 {
        node.send(1, Outcome::Fulfilled).unwrap();
    }
    assert_eq!(node.send(1, Outcome::Fulfilled), Err(T05), "the burst is spent");
    // One packet a second too many, with nothing left to spend: 200 a second pass, the first one a moment later.
    assert_eq!(node.passed(201, 600, 1, T05), 119_999);
    // A rested account spends its burst first: then all pass, until 12,000 seconds of one too many have used it up.
    let mut rested = Node::new("0");
    rested.set_limits(Some(12_000), None);
    assert_eq!(rested.passed(201, 600, 1, T05), 120_600);
}

#[test]
fn amounts_are_limited_to_the_unit_also_beyond_2_to_the_53rd() {
    for (limit, amount) in [
        (12_000, 1),
        (1_200_000_000_000, 100_000_000),
        (((1 << 40) + 1) * 12_000, (1 << 40) + 1),
        // The last amount that 12,000 of fit.
        (u64::MAX / 12_000 * 12_000, u64::MAX / 12_000),
    ] {
        let mut node = Node::new("0");
        node.set_limits(None, Some(limit));
        assert_eq!(node.passed(200, 600, amount, T04), 120_000, "limit {limit}");
        assert_eq!(node.send(limit, Outcome::Fulfilled), Ok(limit), "all of it at once");
        assert_eq!(
            node.send(1, Outcome::Fulfilled),
            Err(T04),
            "limit {limit}: and not a unit more"
        );
        assert_eq!(node.passed(201, 600, amount, T04), 119_999, "limit {limit}");
    }
    // What comes to nothing costs nothing of the amount, but counts as a packet.
    let mut node = Node::new("0");
    node.set_limits(Some(3), Some(100));
    for _ in 0..3 {
        assert_eq!(node.send(100, Outcome::Rejected), Ok(100));
    }
    assert_eq!(node.send(100, Outcome::Fulfilled), Err(T05));
    node.now_ms += MINUTE_MS;
    assert_eq!(node.send(100, Outcome::Fulfilled), Ok(100));
}

#[test]
fn a_limit_that_is_changed_gives_nothing_away() {
    let mut node = Node::new("0");
    node.set_limits(Some(100), Some(1_000));
    for _ in 0..100 {
        node.send(10, Outcome::Fulfilled).unwrap();
    }
    assert_eq!(node.send(0, Outcome::Fulfilled), Err(T05), "both are spent");
    // Raised, lowered, to nothing and back, and put in force again as it is: nothing of it is a way around the limit.
    for (packets, amount) in [(12_000, 120_000), (10, 100), (0, 0), (100, 1_000), (100, 1_000)] {
        node.set_limits(Some(packets), Some(amount));
        assert_eq!(node.send(0, Outcome::Fulfilled), Err(T05), "{packets}");
    }
    // A third of a minute wins back a third, at any limit.
    node.now_ms += MINUTE_MS / 3;
    node.set_limits(Some(3_000), Some(1_000));
    assert_eq!(node.send(333, Outcome::Fulfilled), Ok(333), "a third of the amount");
    assert_eq!(node.send(1, Outcome::Fulfilled), Err(T04));
    for _ in 0..998 {
        node.send(0, Outcome::Fulfilled).unwrap();
    }
    assert_eq!(node.send(0, Outcome::Fulfilled), Err(T05), "and of the packets");
    // Without limits nothing is counted, and what an account has of other settings does not matter.
    node.set_limits(None, None);
    assert_eq!(node.passed(1_000, 10, 1, T05), 10_000);
}

#[test]
fn what_goes_on_is_what_the_spreads_leave() {
    /// Of `amount`, with these spreads of the node and of alice, so much goes on: `None` is R01.
    struct Case(&'static str, &'static str, u64, Option<u64>);
    for (code, scale, cases) in [
        // To the same asset: the node converts nothing, alice's spread holds all the same.
        (
            "ABC",
            2,
            vec![
                Case("0", "0", 1_000, Some(1_000)),
                Case("0.5", "0", 1_000, Some(1_000)),
                Case("0", "0.001", 1_000, Some(999)),
                Case("0.5", "0.001", 1_000, Some(999)),
                Case("0", "0.001", 999, Some(998)),
                Case("0", "0.000000000000000001", 2, Some(1)),
                Case("0", "0.000000000000000001", 1, None),
                Case("0", "0.5", 1, None),
                Case("0", "0.5", 0, Some(0)),
                Case("0", "0.999999999999999999", 1_000_000_000_000_000_000, Some(1)),
                Case("0", "0.999999999999999999", 999_999_999_999_999_999, None),
                // 18446744073709551615 x 0.999 = 18428297329635842063.385
                Case("0", "0.001", u64::MAX, Some(18_428_297_329_635_842_063)),
            ],
        ),
        // To another scale of the same asset, which is a conversion.
        (
            "ABC",
            3,
            vec![
                Case("0", "0.001", 1_000, Some(9_990)),
                Case("0.01", "0", 1_000, Some(9_900)),
                Case("0.01", "0.001", 1_000, Some(9_890)),
            ],
        ),
        // To another asset: 3/2 of it, both spreads, rounded once.
        (
            "XYZ",
            2,
            vec![
                Case("0", "0", 1_001, Some(1_501)),
                Case("0", "0.1", 1_001, Some(1_351)),
                Case("0.1", "0.1", 1_001, Some(1_216)),
                // 3 x 3/2 x 0.9 x 0.9 = 3.645; rounded in between it would be 4 -> 3 -> 2.
                Case("0.1", "0.1", 3, Some(3)),
                Case("0.1", "0.3", 1, None),
                Case("0", "0.3", 1, Some(1)),
            ],
        ),
    ] {
        for Case(node_spread, spread, amount, expected) in cases {
            let mut node = Node::new(node_spread);
            node.alice.limits = AccountLimits {
                spread: Decimal::parse(spread).unwrap().to_share().unwrap(),
                ..AccountLimits::default()
            }
            .into();
            if (code, scale) != ("ABC", 2) {
                node.bob.asset = Arc::new(Asset {
                    code: code.into(),
                    scale,
                });
                node.bob.asset_id = AssetId::new(1);
            }
            node.publish();
            let rate = node.pipeline.rate_from(&node.alice, &node.bob.asset).unwrap();
            let what = format!("{amount} to {code}@{scale}, spreads {node_spread} and {spread}");
            for _ in 0..2 {
                assert_eq!(node.send(amount, Outcome::Fulfilled), expected.ok_or(R01), "{what}");
            }
            assert_eq!(
                rate.convert(amount).ok(),
                expected,
                "{what}: a payment expects the same"
            );
            // What came in is what is taken from her, whatever goes on.
            let booked = node.pipeline.state_of(ALICE).unwrap().0.booked();
            assert_eq!(
                booked,
                if expected.is_some() { -2 * i128::from(amount) } else { 0 },
                "{what}"
            );
        }
    }
}

#[test]
fn a_changed_spread_and_a_changed_rate_hold_for_the_next_packet() {
    let mut node = Node::new("0");
    node.bob.asset = Arc::new(Asset {
        code: "XYZ".into(),
        scale: 2,
    });
    node.bob.asset_id = AssetId::new(1);
    let mut send_at = |attos, amount| {
        node.alice.limits = AccountLimits {
            spread: Share::from_attos(attos).unwrap(),
            ..AccountLimits::default()
        }
        .into();
        node.publish();
        node.send(amount, Outcome::Fulfilled).unwrap()
    };
    assert_eq!(send_at(0, 1_000), 1_500);
    assert_eq!(send_at(Share::ONE_ATTOS / 10, 1_000), 1_350);
    assert_eq!(send_at(0, 1_000), 1_500);
    // More spreads than conversions are kept of.
    for permille in 1..=2 * SPREAD_CONVERSIONS_MAX as u64 {
        let expected = 1_500 * (10_000 - permille) / 10_000;
        assert_eq!(send_at(permille * (Share::ONE_ATTOS / 10_000), 1_000), expected);
    }
    assert!(node.pipeline.spread_conversions.len() <= SPREAD_CONVERSIONS_MAX);
    let rates = [("ABC", "1"), ("XYZ", "1")].map(|(code, rate)| (code.to_owned(), Decimal::parse(rate).unwrap()));
    node.pipeline
        .set_rates(Arc::new(Rates::new(BTreeMap::from(rates)).unwrap()));
    assert_eq!(node.send(10_000, Outcome::Fulfilled), Ok(10_000 - 8_192));
}

#[test]
fn round_trips_and_the_longest_hold_decide_when_a_packet_expires() {
    for (alice_ms, bob_ms, lifetime_ms, outgoing_ms) in [
        (500, 500, 10_000, Some(9_000)),
        (0, 0, 10_000, Some(9_000)),
        (1_500, 500, 10_000, Some(8_000)),
        (500, 1_500, 10_000, Some(8_000)),
        (2_500, 2_500, 10_000, Some(5_000)),
        (2_501, 2_500, 10_000, None),
        (500, 500, 60_000, Some(30_000)),
        (500, 1_500, 31_999, Some(29_999)),
        (500, 1_500, 32_001, Some(30_000)),
    ] {
        let mut node = Node::new("0");
        (node.alice.round_trip_time_ms, node.bob.round_trip_time_ms) = (alice_ms, bob_ms);
        node.publish();
        let onward = node.prepare(1, lifetime_ms);
        let expires_at = match onward {
            Ok(onward) => {
                node.pipeline.finish(ALICE, onward.origin.hold, Outcome::Rejected);
                Some(onward.expires_at)
            }
            Err(reason) => {
                assert_eq!(reason, RejectReason::InsufficientTimeout);
                None
            }
        };
        let expected = outgoing_ms.map(|ms| START.plus_ms(ms));
        assert_eq!(expires_at, expected, "{alice_ms} {bob_ms} {lifetime_ms}");
    }
}
