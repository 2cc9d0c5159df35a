//! What the rules of a packet cost, without its sockets and its disk: a Prepare is read, checked, routed, held, noted in
//! flight and patched; its Fulfill is read, verified and booked. Against SHA-256 of the fulfillment, which no connector
//! can leave out; with many accounts and routes against few; and how long packets wait when a large table of routes is
//! replaced.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clearway::ledger::account::ROUND_TRIP_TIME_MS_DEFAULT;
use clearway::ledger::{
    Account, AccountId, AccountLimits, Asset, AssetId, OrDefault, PackedLinks, RoutingRelation, Standing,
};
use clearway::pipeline::forward::Windows;
use clearway::pipeline::in_flight::{ReplyTo, RequestId};
use clearway::pipeline::incoming::Incoming;
use clearway::pipeline::outgoing::LinkState;
use clearway::pipeline::rates::{Decimal, Rates};
use clearway::pipeline::response::{Answer, Outcome};
use clearway::pipeline::{LOCAL, Now, Pipeline, Settings};
use clearway::routing::forwarding::{AHEAD_MAX, Forwarding};
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
    support::main(&[packet, accounts, replaced_routes]);
}

/// A packet as its two links see it.
struct Packet {
    from: AccountId,
    to: AccountId,
    /// Where they lie in [`Traffic::bytes`].
    prepare: Range<usize>,
    fulfill: Range<usize>,
}

/// Packets, and their bytes one behind the other, as in the receive buffers of a busy shard: what is measured is what the
/// rules touch, not where the packets lie.
struct Traffic {
    packets: Vec<Packet>,
    bytes: Vec<u8>,
    samples: Vec<Sample>,
}

impl Traffic {
    /// `count` packets between random pairs of the first `accounts` accounts.
    fn new(accounts: usize, count: usize) -> Self {
        let mut random = Random::from_seed(7);
        let mut traffic = Self {
            packets: Vec::with_capacity(count),
            bytes: Vec::new(),
            samples: Vec::with_capacity(count),
        };
        for _ in 0..count {
            let from = random.below(accounts);
            let to = (from + 1 + random.below(accounts - 1)) % accounts;
            let sample = Sample::new(&mut random, format!("{}.~invoice", address(to as u32)));
            let prepare = traffic.push(&sample.prepare());
            let fulfill = traffic.push(&sample.fulfill());
            traffic.packets.push(Packet {
                from: AccountId::new(from as u32),
                to: AccountId::new(to as u32),
                prepare,
                fulfill,
            });
            traffic.samples.push(sample);
        }
        traffic
    }

    fn push(&mut self, packet: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(packet);
        start..self.bytes.len()
    }

    /// What [`Hub::run`] must come to, from the samples and the setup.
    fn expected(&self, window: usize, setup: Setup) -> u64 {
        let all: Vec<(&Packet, &Sample)> = self.packets.iter().zip(&self.samples).collect();
        let mut digest = Digest::default();
        for batch in all.chunks(window) {
            for (packet, sample) in batch {
                let expires_at = sample.expires_at.minus_ms(Windows::default().message_window_ms);
                digest.add(setup.outgoing_amount(packet, sample.amount));
                digest.add(expires_at.as_millis());
            }
            for (packet, sample) in batch {
                digest.add(u64::from(packet.from.get()) << 32 | u64::from(packet.to.get()));
                digest.add(sample.amount);
                digest.add(setup.outgoing_amount(packet, sample.amount));
            }
        }
        digest.get()
    }
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
                ..AccountLimits::default()
            },
            Self::Plain | Self::Assets => AccountLimits::default(),
        }
    }

    /// The amount that goes on, as the setup means it: from ABC to XYZ times 148.24, rounded down.
    fn outgoing_amount(self, packet: &Packet, amount: u64) -> u64 {
        let (from, to) = (self.asset(packet.from.get()).0, self.asset(packet.to.get()).0);
        match from.cmp(&to) {
            Ordering::Equal => amount,
            Ordering::Less => amount * 14_824 / 100,
            Ordering::Greater => amount * 100 / 14_824,
        }
    }
}

/// One shard, and what its links would keep.
struct Hub {
    setup: Setup,
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
            pipeline.put_account(Arc::new(account(id, setup)), Standing::default(), CLOCK);
        }
        // As the node makes it: its own address among the others.
        let routes = (0..accounts as u32).map(|id| (address(id), AccountId::new(id)));
        let own = [("test.hub".to_owned(), LOCAL)];
        pipeline.set_routes(Arc::new(routes.chain(own).collect()));
        Self {
            setup,
            pipeline,
            sent: Vec::new(),
            in_flight: Vec::new(),
        }
    }

    /// Forwards all packets, `window` at a time, and gets all of them fulfilled. The digest is of what goes out and of what
    /// is booked.
    fn run(&mut self, traffic: &Traffic, window: usize) -> u64 {
        let mut digest = Digest::default();
        for batch in traffic.packets.chunks(window) {
            self.forward_all(traffic, batch, &mut digest);
        }
        digest.get()
    }

    fn forward_all(&mut self, traffic: &Traffic, batch: &[Packet], digest: &mut Digest) {
        self.sent.clear();
        self.in_flight.clear();
        for read in batch.chunks(AHEAD_MAX) {
            self.look_ahead(traffic, read);
            for packet in read {
                self.forward(packet, &traffic.bytes[packet.prepare.clone()], digest);
            }
        }
        black_box(&self.sent);
        for (index, packet) in batch.iter().enumerate() {
            let fulfill = &traffic.bytes[packet.fulfill.clone()];
            self.fulfill(self.in_flight[index], packet, fulfill, digest);
        }
    }

    /// As for the packets of one read.
    fn look_ahead(&self, traffic: &Traffic, packets: &[Packet]) {
        if let Some(mut ahead) = self.pipeline.ahead() {
            for packet in packets {
                let prepare = &traffic.bytes[packet.prepare.clone()];
                ahead.expect(Prepare::peek_destination(prepare).expect("a Prepare was made"));
            }
            ahead.fetch();
        }
    }

    fn forward(&mut self, packet: &Packet, bytes: &[u8], digest: &mut Digest) {
        let prepare = Prepare::parse(bytes).expect("a Prepare was made");
        let Ok(Incoming::Onward(onward)) = self.pipeline.incoming(CLOCK, packet.from, &prepare, ReplyTo::default())
        else {
            panic!("nothing forbids it, and it is for another account");
        };
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

    fn fulfill(&mut self, id: RequestId, packet: &Packet, bytes: &[u8], digest: &mut Digest) {
        let fulfill = Fulfill::parse(bytes).expect("a Fulfill was made");
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

    fn work(mut self, name: impl Into<String>, traffic: &Traffic, window: usize) -> Work<'_> {
        let expected = traffic.expected(window, self.setup);
        Work::new(name, expected, move || self.run(black_box(traffic), window))
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
        asset: Arc::new(asset),
        asset_id,
        routing_relation: RoutingRelation::Child,
        limits: setup.limits().into(),
        round_trip_time_ms: ROUND_TRIP_TIME_MS_DEFAULT,
        settlement: OrDefault::default(),
        links: PackedLinks::default(),
        created_at_ms: NOW.as_millis(),
    }
}

fn packet(criterion: &mut Criterion) {
    let traffic = Traffic::new(2, size(64, 4_096));
    let conditions: Digest = traffic.samples.iter().map(|sample| word(&sample.condition)).collect();
    let work = |name, window, setup| Hub::new(2, setup).work(name, &traffic, window);
    let works = vec![
        Work::new("SHA-256", conditions.get(), || {
            let hash = |sample: &Sample| word(digest(&SHA256, &sample.fulfillment).as_ref());
            black_box(&traffic.samples).iter().map(hash).collect::<Digest>().get()
        }),
        work("one by one", 1, Setup::Plain),
        work("512 in flight", WINDOW, Setup::Plain),
        work("every limit", WINDOW, Setup::Limits),
        work("two assets", WINDOW, Setup::Assets),
    ];
    measure(criterion, "pipeline/packet", traffic.packets.len(), works);

    let mut hub = Hub::new(2, Setup::Plain);
    hub.run(&traffic, WINDOW);
    let [one, other] = [0, 1].map(|id| {
        let (balance, in_flight) = hub.pipeline.state_of(AccountId::new(id)).expect("it was made");
        assert!(balance.is_settled() && in_flight == 0, "every packet has ended");
        balance.booked()
    });
    assert_eq!(one, -other, "what one account has paid the other has got");
    assert_ne!(one, 0, "and the packets did not cancel out");
}

fn accounts(criterion: &mut Criterion) {
    const FEW: usize = 10;

    let packet_count = size(500, 32_768);
    let many = size(1_000, 100_000);
    // Each has packets of its own, so that none finds in the caches what the one before it has read.
    let traffic = [FEW, FEW, many].map(|in_use| Traffic::new(in_use, packet_count));
    let hub = |accounts| Hub::new(accounts, Setup::Plain);
    let works = vec![
        hub(FEW).work(format!("{FEW}"), &traffic[0], WINDOW),
        hub(many).work(format!("{many}, {FEW} in use"), &traffic[1], WINDOW),
        hub(many).work(format!("{many}, all in use"), &traffic[2], WINDOW),
    ];
    measure(criterion, "pipeline/accounts", packet_count, works);
}

/// The time that this thread has been running: what else the machine does is not in it.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(read, 0, "every thread has such a clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The longest of several turns: by the clock, and without what the thread did not run.
#[derive(Clone, Copy, Default)]
struct Longest {
    passed: Duration,
    running: Duration,
}

impl Longest {
    fn time(&mut self, turn: impl FnOnce()) {
        let (start, running) = (Instant::now(), thread_time());
        turn();
        self.passed = self.passed.max(start.elapsed());
        self.running = self.running.max(thread_time() - running);
    }
}

/// A shard forwards packets, a few in every turn, while another thread builds tables of a million routes, each with
/// 10,000 others than the one before, and hands them over. The longest turn in which one came, beside the longest of all
/// other turns.
fn replaced_routes(_: &mut Criterion) {
    const ACCOUNTS: usize = 100;
    const PACKETS_PER_TURN: usize = 64;

    let prefix_count = size(1_000, 1_000_000);
    let replaced_count = prefix_count / 100;
    let snapshots = size(2, 20);
    let routes_after = |round: usize| -> Arc<Forwarding> {
        let far = (0..prefix_count).map(|number| {
            // In each round another hundredth of them moves to the other half of the accounts.
            let moved = number / replaced_count <= round;
            let next_hop = number % (ACCOUNTS / 2) + if moved { ACCOUNTS / 2 } else { 0 };
            (format!("test.far-{number:07}"), AccountId::new(next_hop as u32))
        });
        let near = (0..ACCOUNTS as u32).map(|id| (address(id), AccountId::new(id)));
        Arc::new(near.chain(far).chain([("test.hub".to_owned(), LOCAL)]).collect())
    };

    let traffic = Traffic::new(ACCOUNTS, PACKETS_PER_TURN * 64);
    let mut hub = Hub::new(ACCOUNTS, Setup::Plain);
    let (sender, receiver) = mpsc::sync_channel::<Arc<Forwarding>>(1);
    let (done, all_have_it) = mpsc::sync_channel::<()>(1);
    let (mut with, mut without) = (Longest::default(), Longest::default());
    thread::scope(|scope| {
        let routes_after = &routes_after;
        scope.spawn(move || {
            let mut kept = None;
            for round in 0..snapshots {
                let snapshot = routes_after(round);
                sender.send(Arc::clone(&snapshot)).expect("the shard runs");
                all_have_it.recv().expect("the shard runs");
                // The one before goes here, and not where packets wait.
                kept = Some(snapshot);
            }
            drop(kept);
        });
        let mut turns = traffic.packets.chunks(PACKETS_PER_TURN).cycle();
        let mut digest = Digest::default();
        loop {
            let snapshot = match receiver.try_recv() {
                Ok(snapshot) => Some(snapshot),
                Err(mpsc::TryRecvError::Empty) => None,
                Err(mpsc::TryRecvError::Disconnected) => break,
            };
            let has_new = snapshot.is_some();
            let longest = if has_new { &mut with } else { &mut without };
            longest.time(|| {
                if let Some(snapshot) = snapshot {
                    hub.pipeline.set_routes(snapshot);
                }
                hub.forward_all(&traffic, turns.next().expect("it goes round"), &mut digest);
            });
            if has_new {
                done.send(()).expect("the other thread waits for it");
            }
        }
        black_box(digest.get());
    });
    let us = |time: Duration| time.as_nanos() as f64 / 1_000.0;
    for (name, longest) in [("with a new table", with), ("without", without)] {
        println!(
            "ratio  {:<44} {:>8.1} us running {:>8.1} us passed",
            format!("pipeline/longest turn {name}"),
            us(longest.running),
            us(longest.passed)
        );
    }
}
