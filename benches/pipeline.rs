//! What the rules of a packet cost, without its sockets and its disk: a Prepare is read, checked, routed, held, noted in
//! flight and patched; its Fulfill is read, verified and booked. Against SHA-256 of the fulfillment, which no connector
//! can leave out; and with many accounts and routes against few.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use clearway::ledger::account::ROUND_TRIP_TIME_MS_DEFAULT;
use clearway::ledger::{Account, AccountId, AccountLimits, Asset, AssetId, RoutingRelation};
use clearway::pipeline::forward::{Windows, outgoing_expiry};
use clearway::pipeline::in_flight::{ReplyTo, RequestId};
use clearway::pipeline::outgoing::LinkState;
use clearway::pipeline::rates::{Decimal, Rates};
use clearway::pipeline::response::{Answer, Outcome};
use clearway::pipeline::{Now, Pipeline, Settings};
use clearway::wire::packet::{Fulfill, Prepare, patch_prepare};
use criterion::Criterion;
use ring::digest::{SHA256, digest};

use sample::{NOW, Sample, word};
use support::{Digest, Random, Work, measure, size};

#[path = "support/sample.rs"]
mod sample;
mod support;

const CLOCK: Now = Now {
    wall: NOW,
    monotonic_ms: 1_000_000,
};
const LINK: LinkState = LinkState::Up { carrier: 1 };
/// Prepares in flight at once, unless a work says otherwise: a busy BTP link.
const WINDOW: usize = 512;

fn main() {
    support::main(&[packet, accounts]);
}

/// A packet as its two links see it.
struct Packet {
    sample: Sample,
    from: AccountId,
    to: AccountId,
    prepare: Vec<u8>,
    fulfill: Vec<u8>,
}

/// Packets between random pairs of the first `accounts` accounts.
fn packets(accounts: usize, count: usize) -> Vec<Packet> {
    let mut random = Random::from_seed(7);
    (0..count)
        .map(|_| {
            let from = random.below(accounts);
            let to = (from + 1 + random.below(accounts - 1)) % accounts;
            let sample = Sample::new(&mut random, format!("{}.~invoice", address(to as u32)));
            Packet {
                prepare: sample.prepare(),
                fulfill: sample.fulfill(),
                sample,
                from: AccountId::new(from as u32),
                to: AccountId::new(to as u32),
            }
        })
        .collect()
}

fn address(id: u32) -> String {
    format!("test.hub.user-{id:06}")
}

/// How the accounts of a hub are set up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// One asset, no limits.
    Plain,
    /// Every limit there is, each so high that it is looked at and never reached.
    Limits,
    /// Accounts with odd numbers are in another asset, worth 1 / 148.24 of the first.
    Assets,
}

impl Setup {
    fn asset(self, id: u32) -> (AssetId, Asset) {
        let (number, code) = match self {
            Self::Assets if id % 2 == 1 => (1, "XYZ"),
            _ => (0, "ABC"),
        };
        let asset = Asset {
            code: code.into(),
            scale: 9,
        };
        (AssetId::new(number), asset)
    }

    fn limits(self) -> AccountLimits {
        match self {
            Self::Limits => AccountLimits {
                packet_amount_max: i64::MAX as u64,
                balance_min: Some(i64::MIN),
                balance_max: Some(i64::MAX),
                amount_per_minute: Some(u64::MAX),
                packets_per_minute: Some(u32::MAX),
            },
            Self::Plain | Self::Assets => AccountLimits::default(),
        }
    }

    /// The amount that goes on, as the setup above means it: from ABC to XYZ times 148.24, rounded down.
    fn outgoing_amount(self, packet: &Packet) -> u64 {
        let (from, to) = (self.asset(packet.from.get()).0, self.asset(packet.to.get()).0);
        match from.get().cmp(&to.get()) {
            std::cmp::Ordering::Equal => packet.sample.amount,
            std::cmp::Ordering::Less => packet.sample.amount * 14_824 / 100,
            std::cmp::Ordering::Greater => packet.sample.amount * 100 / 14_824,
        }
    }
}

/// One shard, and what its links would keep.
struct Hub {
    pipeline: Pipeline,
    /// What goes out to the next hops, one Prepare behind the other.
    sent: Vec<u8>,
    in_flight: Vec<RequestId>,
}

impl Hub {
    fn new(accounts: usize, setup: Setup) -> Self {
        let settings = Settings {
            reflect: false,
            echo: true,
            windows: Windows::default(),
            spread: Decimal::zero(),
        };
        let mut pipeline = Pipeline::new(settings, 0, 1, CLOCK);
        pipeline.set_node_address("test.hub".into());
        let rate = |text| Decimal::parse(text).expect("a number was written");
        let rates = BTreeMap::from([("ABC".to_owned(), rate("148.24")), ("XYZ".to_owned(), rate("1"))]);
        pipeline.set_rates(Arc::new(Rates::new(rates).expect("both are positive")));
        for id in 0..accounts as u32 {
            let account = account(id, setup);
            pipeline.set_route(account.ilp_address.clone(), account.id);
            pipeline.put_account(Arc::new(account), 0, CLOCK);
        }
        Self {
            pipeline,
            sent: Vec::new(),
            in_flight: Vec::new(),
        }
    }

    /// Forwards all packets, `window` at a time, and gets all of them fulfilled. The digest is of what goes out and of what
    /// is booked.
    fn run(&mut self, packets: &[Packet], window: usize) -> u64 {
        let mut digest = Digest::default();
        for batch in packets.chunks(window) {
            self.sent.clear();
            self.in_flight.clear();
            for packet in batch {
                self.forward(packet, &mut digest);
            }
            black_box(&self.sent);
            for (index, packet) in batch.iter().enumerate() {
                self.fulfill(self.in_flight[index], packet, &mut digest);
            }
        }
        digest.get()
    }

    fn forward(&mut self, packet: &Packet, digest: &mut Digest) {
        let prepare = Prepare::parse(&packet.prepare).expect("a Prepare was made");
        let onward = self
            .pipeline
            .incoming(CLOCK, packet.from, &prepare, ReplyTo::default())
            .expect("nothing forbids it");
        let (amount, expires_at) = (onward.amount, onward.expires_at);
        let id = self
            .pipeline
            .outgoing(CLOCK, onward, LINK, 0)
            .expect("nothing forbids it");
        let start = self.sent.len();
        self.sent.extend_from_slice(prepare.bytes());
        patch_prepare(&mut self.sent[start..], amount, expires_at);
        self.in_flight.push(id);
        digest.add(amount);
        digest.add(expires_at.as_millis());
    }

    fn fulfill(&mut self, id: RequestId, packet: &Packet, digest: &mut Digest) {
        let fulfill = Fulfill::parse(&packet.fulfill).expect("a Fulfill was made");
        let answer = self.pipeline.fulfilled(id, packet.to, &fulfill);
        let Some(Answer::Fulfilled {
            origin,
            transfer: Some(transfer),
        }) = answer
        else {
            panic!("it fulfills what is in flight");
        };
        self.pipeline.finish(origin.from, origin.hold, Outcome::Fulfilled);
        digest.add(u64::from(transfer.from.get()) << 32 | u64::from(transfer.to.get()));
        digest.add(transfer.incoming_amount);
        digest.add(transfer.outgoing_amount);
    }

    /// What [`Self::run`] must come to, from the packets' fields.
    fn expected(packets: &[Packet], window: usize, setup: Setup) -> u64 {
        let out = |packet: &Packet| {
            let expires_at = outgoing_expiry(packet.sample.expires_at, NOW, Windows::default()).expect("time enough");
            [setup.outgoing_amount(packet), expires_at.as_millis()]
        };
        let booked = |packet: &Packet| {
            let accounts = u64::from(packet.from.get()) << 32 | u64::from(packet.to.get());
            [accounts, packet.sample.amount, setup.outgoing_amount(packet)]
        };
        let batch = |batch: &[Packet]| -> Vec<u64> {
            let there = batch.iter().flat_map(out);
            there.chain(batch.iter().flat_map(booked)).collect()
        };
        packets.chunks(window).flat_map(batch).collect::<Digest>().get()
    }

    fn work<'a>(name: impl Into<String>, packets: &'a [Packet], window: usize, mut hub: Hub, setup: Setup) -> Work<'a> {
        let expected = Self::expected(packets, window, setup);
        Work::new(name, expected, move || hub.run(black_box(packets), window))
    }
}

fn account(id: u32, setup: Setup) -> Account {
    let (asset_id, asset) = setup.asset(id);
    Account {
        id: AccountId::new(id),
        uuid: u128::from(id).to_be_bytes(),
        username: format!("user-{id:06}").into(),
        ilp_address: address(id).into(),
        ilp_address_generated: true,
        asset,
        asset_id,
        routing_relation: RoutingRelation::Child,
        limits: setup.limits(),
        round_trip_time_ms: ROUND_TRIP_TIME_MS_DEFAULT,
        settle_threshold: None,
        settle_to: None,
        settlement_engine_url: None,
        links: Box::default(),
        created_at_ms: NOW.as_millis(),
    }
}

fn packet(criterion: &mut Criterion) {
    let packets = packets(2, size(64, 4_096));
    let conditions: Digest = packets.iter().map(|packet| word(&packet.sample.condition)).collect();
    let hub = |setup| Hub::new(2, setup);
    let works = vec![
        Work::new("SHA-256", conditions.get(), || {
            let hash = |packet: &Packet| word(digest(&SHA256, &packet.sample.fulfillment).as_ref());
            black_box(&packets).iter().map(hash).collect::<Digest>().get()
        }),
        Hub::work("one by one", &packets, 1, hub(Setup::Plain), Setup::Plain),
        Hub::work("512 in flight", &packets, WINDOW, hub(Setup::Plain), Setup::Plain),
        Hub::work("every limit", &packets, WINDOW, hub(Setup::Limits), Setup::Limits),
        Hub::work("two assets", &packets, WINDOW, hub(Setup::Assets), Setup::Assets),
    ];
    measure(criterion, "pipeline/packet", packets.len(), works);
    let mut hub = hub(Setup::Plain);
    hub.run(&packets, WINDOW);
    let booked: Vec<i128> = (0..2)
        .map(|id| {
            let (balance, in_flight) = hub.pipeline.state_of(AccountId::new(id)).expect("it was made");
            assert!(balance.is_settled() && in_flight == 0, "every packet has ended");
            balance.booked()
        })
        .collect();
    assert_eq!(booked[0], -booked[1], "what one account has paid the other has got");
    assert_ne!(booked[0], 0, "and the packets did not cancel out");
}

fn accounts(criterion: &mut Criterion) {
    let packet_count = size(500, 65_536);
    let few = packets(10, packet_count);
    let count = size(1_000, 100_000);
    let many = packets(count, packet_count);
    let hub = |accounts| Hub::new(accounts, Setup::Plain);
    let works = vec![
        Hub::work("10 accounts", &few, WINDOW, hub(10), Setup::Plain),
        Hub::work(format!("{count} accounts"), &many, WINDOW, hub(count), Setup::Plain),
        Hub::work(
            format!("{count} accounts, 10 of them in use"),
            &few,
            WINDOW,
            hub(count),
            Setup::Plain,
        ),
    ];
    measure(criterion, "pipeline/accounts and routes", packet_count, works);
}
