//! Payments over a network that a seed determines: it delays, loses, reorders and repeats, its connectors run out of
//! liquidity and patience, its receivers lie. Time is a number; a run takes a millisecond or two.
//!
//! Always, whoever does what: never more is spent than there was, no packet asks for less than the minimum rate, every
//! payment ends, and its books agree with those of the network. Where everybody is honest, everything arrives.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use clearway::stream::crypto::{ConnectionKeys, condition};
use clearway::stream::frame::{Frame, Packet, PacketBuilder};
use clearway::stream::ratio::Ratio;
use clearway::stream::receipt;
use clearway::stream::receiver::{Answer, Receipts, Receiver, Recipient};
use clearway::stream::secret::ReceiptKeys;
use clearway::stream::sender::{Config, Failure, IDLE_MS_MAX, Outcome, Outgoing, RateSource, Sender, Slippage, Target};
use clearway::wire::address::Address;
use clearway::wire::packet::{
    ErrorCode, PacketType, Prepare, PrepareBuilder, RejectBuilder, Reply, amount_too_large_data, encode_fulfill,
};
use clearway::wire::timestamp::Timestamp;
use random::Random;

#[path = "support/random.rs"]
mod random;

const RUNS: u64 = 10_000;
const SECRET: [u8; 32] = [7; 32];
const DESTINATION: Address<'static> = Address::from_static("test.hub.bob.AAECAwQFBgcICQoLDA0ODxAR");
const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
/// What is under way when nothing more is sent takes its 30 s, and one to be missed.
const LAST_MS: u64 = 31_000;

/// What the receiver does with a packet that it could fulfill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conduct {
    Honest,
    /// Fulfills whatever arrives, though the path keeps a fifth of all money, and says what arrived.
    AcceptsLess,
    /// The same, but says that the minimum arrived.
    AcceptsLessAndLies,
    ClaimsLess,
    ClaimsMore,
    SaysNothing,
    /// Fulfills so many, then says that the connection is closed.
    ClosesAfter(u32),
    /// ... then is unknown to the network.
    VanishesAfter(u32),
    /// ... then does not answer.
    FallsSilentAfter(u32),
    /// ... then refuses without a reason.
    RefusesAfter(u32),
}

/// What a connector does to the data of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tampering {
    None,
    Garbage,
    Removes,
    /// Puts the data of the answer before into this one.
    Swaps,
    /// Always the first.
    Replays,
}

/// A path and its receiver. Probabilities are per mille.
#[derive(Debug, Clone)]
struct World {
    delay_ms: (u64, u64),
    loss: u64,
    repetition: u64,
    busy: u64,
    rate: (u64, u64),
    /// From this packet on.
    next_rate: Option<(u32, (u64, u64))>,
    /// The largest packet, and whether the connector says so.
    limit: Option<u64>,
    is_limit_told: bool,
    next_limit: Option<(u32, u64)>,
    /// What may be under way at once, in source units.
    liquidity: u64,
    tampering: (Tampering, u64),
    conduct: Conduct,
    has_receipts: bool,
}

/// An answer on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    /// The earliest is the greatest, as the heap wants it.
    at: std::cmp::Reverse<u64>,
    request: u32,
    bytes: Vec<u8>,
    is_first: bool,
}

/// The network while it runs, and its books.
struct Network {
    world: World,
    random: Random,
    keys: ConnectionKeys,
    receiver: Receiver,
    arrivals: BinaryHeap<Arrival>,
    /// Source amount, what arrives of it, whether it is money.
    under_way: BTreeMap<u32, (u64, u64, bool)>,
    /// Of which the connector with little liquidity holds these, and so much.
    holding: BTreeSet<u32>,
    in_flight: u64,
    packets: u32,
    accepted: u32,
    data_seen: Vec<Vec<u8>>,
    /// What the receiver may keep, in its units, because a Fulfill reached the sender; and what that cost the sender.
    delivered: u64,
    spent: u64,
    /// By the receiver's count, answered or not.
    received: u64,
    last_fulfill: Option<Timestamp>,
    is_traced: bool,
}

impl Network {
    fn new(world: World, random: Random) -> Self {
        Self {
            world,
            random,
            keys: ConnectionKeys::new(&SECRET),
            receiver: Receiver::new(),
            arrivals: BinaryHeap::new(),
            under_way: BTreeMap::new(),
            holding: BTreeSet::new(),
            in_flight: 0,
            packets: 0,
            accepted: 0,
            data_seen: Vec::new(),
            delivered: 0,
            spent: 0,
            received: 0,
            last_fulfill: None,
            is_traced: std::env::var_os("RUN_SEED").is_some(),
        }
    }

    fn happens(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.random.between(0, 999) < per_mille
    }

    /// Takes a Prepare and decides its whole fate.
    fn send(&mut self, now: Timestamp, prepare: &Outgoing<'_>) {
        self.packets += 1;
        if let Some((_, rate)) = self.world.next_rate.filter(|(from, _)| self.packets >= *from) {
            self.world.rate = rate;
        }
        if let Some((_, limit)) = self.world.next_limit.filter(|(from, _)| self.packets >= *from) {
            self.world.limit = Some(limit);
        }
        let (low, high) = self.world.delay_ms;
        let answered_at = now.plus_ms(self.random.between(low, high));
        let mut arrived = 0;
        let mut bytes = self.answer(prepare, &mut arrived);
        let is_silent = matches!(self.world.conduct, Conduct::FallsSilentAfter(count) if self.accepted > count);
        let mut at = answered_at;
        if is_silent || self.happens(self.world.loss) || answered_at >= prepare.expires_at {
            bytes = reject(ErrorCode::R00_TRANSFER_TIMED_OUT, &[]);
            at = prepare.expires_at;
        }
        if self.is_traced {
            let reply = Reply::parse(&bytes).expect("well-formed");
            let outgoing = (prepare.request, prepare.amount, prepare.is_money);
            println!(
                "{} {outgoing:?} -> {} {arrived} {reply:?}",
                now.as_millis(),
                at.as_millis()
            );
        }
        self.under_way
            .insert(prepare.request, (prepare.amount, arrived, prepare.is_money));
        self.arrivals.push(Arrival {
            at: std::cmp::Reverse(at.as_millis()),
            request: prepare.request,
            bytes: bytes.clone(),
            is_first: true,
        });
        if self.happens(self.world.repetition) {
            let again = at.plus_ms(self.random.between(0, 5_000));
            self.arrivals.push(Arrival {
                at: std::cmp::Reverse(again.as_millis()),
                request: prepare.request,
                bytes,
                is_first: false,
            });
        }
    }

    fn answer(&mut self, prepare: &Outgoing<'_>, arrived: &mut u64) -> Vec<u8> {
        if let Some(limit) = self.world.limit.filter(|&limit| prepare.amount > limit) {
            // The connector counts in units of its own, twice as small.
            let told = amount_too_large_data(prepare.amount.saturating_mul(2), limit.saturating_mul(2));
            let data: &[u8] = if self.world.is_limit_told { &told } else { &[] };
            return reject(ErrorCode::F08_AMOUNT_TOO_LARGE, data);
        }
        // What is held by connectors before that one is not our concern, but what goes past it is, until it is answered.
        if self.in_flight.saturating_add(prepare.amount) > self.world.liquidity {
            return reject(ErrorCode::T04_INSUFFICIENT_LIQUIDITY, &[]);
        }
        self.in_flight += prepare.amount;
        self.holding.insert(prepare.request);
        if self.happens(self.world.busy) {
            let codes = [
                ErrorCode::T00_INTERNAL_ERROR,
                ErrorCode::T01_PEER_UNREACHABLE,
                ErrorCode::T03_CONNECTOR_BUSY,
                ErrorCode::T05_RATE_LIMITED,
                ErrorCode::R00_TRANSFER_TIMED_OUT,
            ];
            return reject(codes[self.random.between(0, 4) as usize], &[]);
        }
        let (numerator, denominator) = self.world.rate;
        let mut amount = u128::from(prepare.amount) * u128::from(numerator) / u128::from(denominator);
        let keeps = matches!(self.world.conduct, Conduct::AcceptsLess | Conduct::AcceptsLessAndLies);
        if prepare.is_money && keeps {
            amount -= amount.div_ceil(5);
        }
        let amount = u64::try_from(amount).expect("rates and amounts of a world are small");
        if prepare.amount > 0 && amount == 0 {
            return reject(ErrorCode::R01_INSUFFICIENT_SOURCE_AMOUNT, &[]);
        }
        *arrived = amount;
        let answer = self.receive(prepare, amount);
        self.tamper(answer)
    }

    /// The receiver's end.
    fn receive(&mut self, outgoing: &Outgoing<'_>, amount: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        PrepareBuilder {
            amount,
            expires_at: outgoing.expires_at,
            execution_condition: &outgoing.condition,
            destination: outgoing.destination,
            data: outgoing.data,
        }
        .encode(&mut bytes);
        let prepare = Prepare::parse(&bytes).expect("well-formed");
        let receipt_keys = ReceiptKeys {
            nonce: [1; 16],
            secret: [2; 32],
        };
        let received = self.received;
        let total = |_| received;
        let recipient = Recipient {
            keys: &self.keys,
            asset_code: "XYZ",
            asset_scale: 9,
            receipts: self.world.has_receipts.then_some(Receipts {
                keys: &receipt_keys,
                total: &total,
            }),
        };
        let mut data = Vec::new();
        let random = &mut self.random;
        let answer = self
            .receiver
            .answer(&recipient, &prepare, &mut |bytes| fill(random, bytes), &mut data);
        let mut plaintext = outgoing.data.to_vec();
        let request = self.keys.open(&mut plaintext).expect("made with these keys");
        let request = Packet::parse(request).expect("well-formed");
        let (sequence, minimum) = (request.sequence, request.prepare_amount);
        if let Answer::Fulfill(acceptance) = &answer {
            self.accepted += 1;
            self.received += acceptance.amount;
            assert_eq!(acceptance.amount, amount);
            assert!(outgoing.is_money && amount >= minimum);
        }
        let accepts_all = matches!(self.world.conduct, Conduct::AcceptsLess | Conduct::AcceptsLessAndLies);
        let is_over = |count| outgoing.is_money && self.accepted > count;
        let claim = match self.world.conduct {
            Conduct::ClosesAfter(count) if is_over(count) => {
                let close = Frame::ConnectionClose { code: 9, message: b"" };
                return reject(
                    ErrorCode::F99_APPLICATION_ERROR,
                    &self.sealed(PacketType::Reject, sequence, amount, &[close]),
                );
            }
            Conduct::VanishesAfter(count) if is_over(count) => return reject(ErrorCode::F02_UNREACHABLE, &[]),
            Conduct::RefusesAfter(count) if is_over(count) => {
                return reject(
                    ErrorCode::F99_APPLICATION_ERROR,
                    &self.sealed(PacketType::Reject, sequence, amount, &[]),
                );
            }
            Conduct::AcceptsLess if outgoing.is_money => Some(amount),
            Conduct::AcceptsLessAndLies if outgoing.is_money => Some(minimum),
            Conduct::ClaimsLess if outgoing.is_money => Some(minimum.saturating_sub(1)),
            Conduct::ClaimsMore if outgoing.is_money => Some(amount * 3),
            Conduct::SaysNothing if outgoing.is_money => {
                data.clear();
                None
            }
            _ => None,
        };
        if let Some(claimed) = claim {
            data = self.sealed(PacketType::Fulfill, sequence, claimed, &[]);
        }
        match answer {
            Answer::Reject(refusal) if !accepts_all || !outgoing.is_money => {
                if claim.is_some() {
                    data = self.sealed(PacketType::Reject, sequence, amount, &[]);
                }
                reject(refusal.code(), &data)
            }
            _ => {
                let fulfillment = self.keys.fulfillment(outgoing.data);
                assert_eq!(condition(&fulfillment), outgoing.condition);
                let mut out = Vec::new();
                encode_fulfill(&mut out, &fulfillment, &data);
                out
            }
        }
    }

    fn sealed(&mut self, packet_type: PacketType, sequence: u64, amount: u64, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        let packet = PacketBuilder {
            packet_type,
            sequence,
            prepare_amount: amount,
            frames,
        };
        self.keys.seal(self.random.bytes(), &mut out, |out| packet.encode(out));
        out
    }

    fn tamper(&mut self, answer: Vec<u8>) -> Vec<u8> {
        let reply = Reply::parse(&answer).expect("well-formed");
        let data = match reply {
            Reply::Fulfill(fulfill) => fulfill.data().to_vec(),
            Reply::Reject(reject) => reject.data().to_vec(),
        };
        self.data_seen.push(data);
        let (tampering, per_mille) = self.world.tampering;
        if !self.happens(per_mille) {
            return answer;
        }
        let seen = &self.data_seen;
        let data = match tampering {
            Tampering::None => return answer,
            Tampering::Garbage => self.random.bytes::<60>().to_vec(),
            Tampering::Removes => Vec::new(),
            Tampering::Swaps => seen[seen.len().saturating_sub(2)].clone(),
            Tampering::Replays => seen[0].clone(),
        };
        match reply {
            Reply::Fulfill(fulfill) => {
                let mut out = Vec::new();
                encode_fulfill(&mut out, fulfill.fulfillment(), &data);
                out
            }
            Reply::Reject(rejected) => reject(rejected.code(), &data),
        }
    }

    /// An answer reaches the sender's node: the books of the path are made final.
    fn arrive(&mut self, arrival: &Arrival) {
        if !arrival.is_first {
            return;
        }
        let (amount, arrived, is_money) = self.under_way.remove(&arrival.request).expect("under way");
        if self.holding.remove(&arrival.request) {
            self.in_flight -= amount;
        }
        if let Ok(Reply::Fulfill(_)) = Reply::parse(&arrival.bytes) {
            assert!(is_money);
            self.spent += amount;
            self.delivered += arrived;
            self.last_fulfill = Some(Timestamp::from_millis(arrival.at.0));
        }
    }

    fn money_under_way(&self) -> u64 {
        self.under_way
            .values()
            .filter(|packet| packet.2)
            .map(|packet| packet.0)
            .sum()
    }
}

fn fill(random: &mut Random, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
}

fn reject(code: ErrorCode, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    RejectBuilder {
        code,
        triggered_by: "test.hub",
        message: "",
        data,
    }
    .encode(&mut out);
    out
}

/// What a payment is asked to do.
#[derive(Debug, Clone, Copy)]
struct Order {
    target: Target,
    /// The rate that the caller gives, if it is asked.
    rate: Option<(u64, u64)>,
    slippage: (u64, u64),
    timeout_ms: Option<u64>,
    is_quote: bool,
    packets_in_flight_max: u32,
}

impl Order {
    fn sender(&self) -> Sender {
        let slippage = Ratio::new(self.slippage.0, self.slippage.1).and_then(Slippage::new);
        Sender::new(
            &Config {
                shared_secret: &SECRET,
                destination: DESTINATION,
                source_address: Address::from_static("test.hub.alice"),
                source_asset_code: "ABC",
                source_asset_scale: 2,
                target: self.target,
                rate: match self.rate {
                    None => RateSource::Path,
                    Some(_) => RateSource::Caller,
                },
                slippage: slippage.expect("less than one"),
                is_quote: self.is_quote,
                timeout_ms: self.timeout_ms,
                packets_in_flight_max: self.packets_in_flight_max,
            },
            START,
        )
    }
}

/// How a run ended.
struct Ended {
    outcome: Outcome,
    network: Network,
    rate_min: Option<Ratio>,
}

fn run(world: &World, order: &Order, mut random: Random) -> Ended {
    let mut sender = order.sender();
    let mut network = Network::new(world.clone(), random.fork());
    let mut now = START;
    let mut money_began = None;
    // Money packets under way or fulfilled that ask for one source unit's worth less.
    let mut graced: BTreeSet<u32> = BTreeSet::new();
    let outcome = loop {
        loop {
            let rate_min = sender.rate_min().copied();
            let Some(prepare) = sender.poll_prepare(now, &mut |bytes| fill(&mut random, bytes)) else {
                break;
            };
            if prepare.is_money {
                let mut plaintext = prepare.data.to_vec();
                let plaintext = network.keys.open(&mut plaintext).expect("made with these keys");
                let asked = Packet::parse(plaintext).expect("well-formed").prepare_amount;
                money_began.get_or_insert(now);
                let rate_min = rate_min.expect("the rate is decided before the money goes");
                if asked < rate_min.times_ceil(prepare.amount) {
                    assert_eq!(asked, rate_min.times_ceil(prepare.amount - 1));
                    graced.insert(prepare.request);
                    assert_eq!(graced.len(), 1, "only the last may ask for less");
                }
            }
            network.send(now, &prepare);
        }
        let amounts = *sender.amounts();
        assert_eq!(amounts.fulfilled, network.spent);
        assert_eq!(amounts.in_flight, network.money_under_way());
        assert_eq!(amounts.source, amounts.fulfilled + amounts.in_flight + amounts.left());
        if let Target::Source(source) = order.target {
            assert_eq!(amounts.source, source);
        }
        if let Some(rate) = asked_rate(&sender, order) {
            sender.set_rate(now, Some(rate));
            continue;
        }
        if let Some(outcome) = sender.outcome() {
            break outcome;
        }
        let wakeup = sender.next_wakeup().expect("it is not over");
        let arrives_at = network
            .arrivals
            .peek()
            .map(|arrival| Timestamp::from_millis(arrival.at.0));
        match arrives_at.filter(|&at| at <= wakeup) {
            Some(at) => {
                now = now.max(at);
                let arrival = network.arrivals.pop().expect("peeked at");
                network.arrive(&arrival);
                if graced.contains(&arrival.request) && arrival.bytes[0] == PacketType::Reject as u8 {
                    graced.remove(&arrival.request);
                }
                let reply = Reply::parse(&arrival.bytes).expect("well-formed");
                sender.handle_reply(now, arrival.request, &reply);
            }
            None => now = now.max(wakeup),
        }
        let from = network.last_fulfill.max(money_began).unwrap_or(START);
        let ends_by = from.plus_ms(IDLE_MS_MAX + LAST_MS);
        assert!(
            now <= ends_by,
            "{} ms after its end",
            now.as_millis() - ends_by.as_millis()
        );
        if let Some(timeout_ms) = order.timeout_ms {
            assert!(now <= START.plus_ms(timeout_ms + LAST_MS));
        }
    };
    assert_eq!(network.money_under_way(), 0, "it waits for all money");
    assert_eq!(sender.next_wakeup(), None);
    // Whatever comes now is too late to change anything.
    while let Some(arrival) = network.arrivals.pop() {
        sender.handle_reply(
            now,
            arrival.request,
            &Reply::parse(&arrival.bytes).expect("well-formed"),
        );
    }
    assert_eq!(sender.outcome().as_ref(), Some(&outcome));
    assert!(sender.poll_prepare(now, &mut |bytes| bytes.fill(0)).is_none());
    Ended {
        rate_min: sender.rate_min().copied(),
        outcome,
        network,
    }
}

fn asked_rate(sender: &Sender, order: &Order) -> Option<Ratio> {
    let asset = sender.asked_rate()?;
    assert_eq!((&*asset.code, asset.scale), ("XYZ", 9));
    let (numerator, denominator) = order.rate.expect("asked because it was offered");
    Ratio::new(numerator, denominator)
}

/// Prints the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("RUN_SEED={} repeats this run alone", self.0);
        }
    }
}

/// Every run has a seed of its own; `RUN_SEED=n` repeats one and shows its packets.
fn each_run(what: &str, runs: u64, mut check: impl FnMut(&mut Random)) {
    let mut random = Random::new(what);
    let only: Option<u64> = std::env::var("RUN_SEED")
        .ok()
        .map(|text| text.parse().expect("a number"));
    for _ in 0..only.map_or(runs, |_| 1) {
        let seed = Seed(only.unwrap_or_else(|| random.next()));
        check(&mut Random::from_seed(seed.0));
    }
}

fn one_in(random: &mut Random, cases: u64) -> bool {
    random.between(1, cases) == 1
}

fn draw_world(random: &mut Random, source: u64, slippage: (u64, u64)) -> World {
    let term = |random: &mut Random| {
        let digits = random.between(1, 4) as u32;
        random.between(1, 10u64.pow(digits))
    };
    let rate = (term(random), term(random));
    let low = random.between(0, 200);
    // A packet so large that rounding cannot cost more than the slippage.
    let size_min = (4 * rate.1 * slippage.1).div_ceil(rate.0 * slippage.0.max(1));
    let parts = random.between(1, 400);
    let limit = size_min + random.between(0, source / parts);
    let is_limit_told = one_in(random, 2);
    // One that is searched for is at times not reached by far.
    let limit = if is_limit_told { limit } else { limit.max(8 * size_min) };
    World {
        delay_ms: (low, low + random.between(0, 300)),
        loss: 0,
        repetition: if one_in(random, 4) { 100 } else { 0 },
        busy: if one_in(random, 4) { random.between(1, 50) } else { 0 },
        rate,
        next_rate: None,
        limit: (one_in(random, 2)).then_some(limit),
        is_limit_told,
        next_limit: None,
        liquidity: if one_in(random, 3) {
            // At least what a packet needs, with what the window may lose to halving.
            (4 * size_min).max(limit / 2).max(1_000) + random.between(0, source)
        } else {
            u64::MAX
        },
        tampering: (Tampering::None, 0),
        conduct: Conduct::Honest,
        has_receipts: one_in(random, 2),
    }
}

fn draw_order(random: &mut Random) -> Order {
    let slippage = (random.between(5, 50), 1_000);
    let exponent = random.between(3, 9) as u32;
    Order {
        target: Target::Source(random.between(10u64.pow(exponent - 1), 10u64.pow(exponent))),
        rate: None,
        slippage,
        timeout_ms: None,
        is_quote: false,
        packets_in_flight_max: random.between(1, 200) as u32,
    }
}

fn source_of(order: &Order) -> u64 {
    match order.target {
        Target::Source(source) => source,
        Target::Destination { source_max, .. } => source_max,
    }
}

/// Keeps the number of packets of a run in bounds.
fn with_at_most(packets: u64, mut world: World, order: &Order) -> World {
    let size = source_of(order) / packets + 1;
    world.limit = world.limit.map(|limit| limit.max(size));
    world.liquidity = world.liquidity.max(size.saturating_mul(4));
    world
}

#[test]
fn honest_networks_deliver_everything() {
    let mut packets = 0;
    each_run("honest", RUNS / 2, |random| {
        let mut order = draw_order(random);
        let mut world = with_at_most(400, draw_world(random, source_of(&order), order.slippage), &order);
        let source = source_of(&order);
        // What all of it is worth: rounding the only packet costs less than the slippage.
        let worth = u128::from(source) * u128::from(world.rate.0) / u128::from(world.rate.1);
        if worth * u128::from(order.slippage.0) < 4 * u128::from(order.slippage.1) {
            return;
        }
        let worth = u64::try_from(worth).expect("small");
        match random.next() % 3 {
            0 => order.rate = Some(world.rate),
            1 => {
                order.target = Target::Destination {
                    amount: worth,
                    source_max: u64::MAX,
                };
            }
            _ => {}
        }
        if one_in(random, 8) {
            // The rate changes, but less than the slippage allows.
            let kept = 2 * order.slippage.1 - order.slippage.0;
            let lower = (world.rate.0 * kept, world.rate.1 * 2 * order.slippage.1);
            let size = 16 * lower.1 * order.slippage.1 / (lower.0 * order.slippage.0) + 16;
            if world.limit.is_none_or(|limit| limit > size) && world.liquidity > 4 * size && source > size {
                world.next_rate = Some((random.between(16, 60) as u32, lower));
            }
        }
        let ended = run(&world, &order, random.fork());
        let Outcome { result, amounts, .. } = ended.outcome;
        assert_eq!(result, Ok(()), "{world:?} {order:?} {:?}", ended.outcome);
        assert_eq!(amounts.delivered, ended.network.delivered);
        let rate_min = ended.rate_min.expect("it was paid");
        match order.target {
            Target::Source(source) => {
                assert_eq!((amounts.fulfilled, amounts.left()), (source, 0));
                assert!(amounts.delivered >= rate_min.times_ceil(source - 1));
            }
            Target::Destination { amount, .. } => {
                assert!(amounts.delivered >= amount);
                assert!(amounts.fulfilled <= rate_min.divide_ceil(amount).expect("a rate") + 1);
            }
        }
        let claimed = ended
            .outcome
            .receipt
            .and_then(|receipt| receipt::claimed_total(&receipt));
        assert_eq!(claimed, world.has_receipts.then_some(amounts.delivered));
        packets += u64::from(ended.outcome.packets);
    });
    println!("{packets} packets");
}

#[test]
fn hostile_networks_cost_nothing_beyond_the_minimum() {
    let mut results: BTreeMap<String, u32> = BTreeMap::new();
    each_run("hostile", RUNS / 2, |random| {
        let mut order = draw_order(random);
        let mut world = draw_world(random, source_of(&order), order.slippage);
        if one_in(random, 2) {
            world.loss = random.between(1, 200);
        }
        world.busy = [0, 0, 100, 900][random.between(0, 3) as usize];
        if one_in(random, 4) {
            let (numerator, denominator) = world.rate;
            let from = random.between(1, 60) as u32;
            world.next_rate = Some((from, (numerator * random.between(1, 300), denominator * 100)));
        }
        if one_in(random, 4) {
            world.next_limit = Some((random.between(1, 60) as u32, random.between(0, source_of(&order))));
        }
        if one_in(random, 4) {
            world.liquidity = random.between(0, source_of(&order));
        }
        let tampering = [
            Tampering::None,
            Tampering::Garbage,
            Tampering::Removes,
            Tampering::Swaps,
            Tampering::Replays,
        ][random.between(0, 4) as usize];
        world.tampering = (tampering, random.between(1, 1_000));
        let count = random.between(0, 50) as u32;
        world.conduct = [
            Conduct::Honest,
            Conduct::AcceptsLess,
            Conduct::AcceptsLessAndLies,
            Conduct::ClaimsLess,
            Conduct::ClaimsMore,
            Conduct::SaysNothing,
            Conduct::ClosesAfter(count),
            Conduct::VanishesAfter(count),
            Conduct::FallsSilentAfter(count),
            Conduct::RefusesAfter(count),
        ][random.between(0, 9) as usize];
        if one_in(random, 3) {
            order.rate = Some((world.rate.0, world.rate.1));
        }
        if one_in(random, 3) {
            let source = source_of(&order);
            let amount = u128::from(source) * u128::from(world.rate.0) / u128::from(world.rate.1);
            order.target = Target::Destination {
                amount: amount as u64,
                source_max: source + source / 100,
            };
        }
        order.slippage.0 = random.between(0, 999);
        order.timeout_ms = (one_in(random, 4)).then(|| random.between(0, 60_000));
        let world = with_at_most(400, world, &order);

        let ended = run(&world, &order, random.fork());
        let Outcome { result, amounts, .. } = &ended.outcome;
        let context = format!("{world:?} {order:?} {:?}", ended.outcome);
        assert!(amounts.fulfilled <= source_of(&order), "{context}");
        let steals = matches!(world.conduct, Conduct::AcceptsLess | Conduct::AcceptsLessAndLies);
        // The receiver agreed to as much, whatever it got.
        if let Some(rate_min) = &ended.rate_min {
            let least = rate_min.times_ceil(amounts.fulfilled.saturating_sub(1));
            assert!(amounts.delivered >= least, "{context}");
            assert!(steals || ended.network.delivered >= least, "{context}");
        }
        if world.conduct == Conduct::Honest {
            assert!(amounts.delivered <= ended.network.delivered, "{context}");
        }
        if result.is_ok() {
            match order.target {
                Target::Source(source) => assert_eq!(amounts.fulfilled, source, "{context}"),
                Target::Destination { amount, .. } => assert!(amounts.delivered >= amount, "{context}"),
            }
        }
        let name = match result {
            Ok(()) => "ok".to_owned(),
            Err(Failure::Rejected(code)) => format!("rejected {code}"),
            Err(failure) => format!("{failure:?}"),
        };
        *results.entry(name).or_default() += 1;
    });
    println!("{results:?}");
    for expected in [
        "ok",
        "RateTooLow",
        "ReceiverMisbehaved",
        "ClosedByReceiver",
        "Idle",
        "TimedOut",
        "rejected F02",
        "rejected R00",
    ] {
        assert!(
            results.contains_key(expected) || RUNS < 10_000,
            "never {expected}: {results:?}"
        );
    }
}

#[test]
fn quotes_move_nothing_and_keep_their_word() {
    each_run("quotes", RUNS / 20, |random| {
        let mut order = draw_order(random);
        let world = with_at_most(400, draw_world(random, source_of(&order), order.slippage), &order);
        let source = source_of(&order);
        let worth = u128::from(source) * u128::from(world.rate.0) / u128::from(world.rate.1);
        if worth * u128::from(order.slippage.0) < 4 * u128::from(order.slippage.1) {
            return;
        }
        order.is_quote = true;
        let ended = run(&world, &order, random.fork());
        let context = format!("{world:?} {order:?} {:?}", ended.outcome);
        assert_eq!(ended.outcome.result, Ok(()), "{context}");
        assert_eq!((ended.network.spent, ended.network.accepted), (0, 0), "{context}");
        let quote = ended.outcome.quote.expect("it succeeded");
        let rate = Ratio::new(world.rate.0, world.rate.1).expect("a rate");
        assert!(quote.bounds.lower <= rate && rate < quote.bounds.upper, "{context}");
        assert!(quote.delivered_min <= quote.delivered, "{context}");
        assert_eq!(quote.source_max, source);
        if let Some(limit) = world.limit {
            assert!(quote.packet_amount_max <= limit, "{context}");
            let is_ample = world.liquidity == u64::MAX && world.busy == 0;
            assert!(!is_ample || quote.packet_amount_max >= limit - limit / 8, "{context}");
        }
        // The payment that follows, held to the rate of the quote, keeps to it.
        order.is_quote = false;
        let lower = quote.bounds.lower;
        let term = |term: u128| u64::try_from(term).expect("amounts");
        order.rate = Some((term(lower.numerator()), term(lower.denominator())));
        let paid = run(&world, &order, random.fork()).outcome;
        assert_eq!(paid.result, Ok(()), "{context}");
        assert!(paid.amounts.delivered >= quote.delivered_min, "{context}");
    });
}

/// Not a test: what a packet costs the sender. `cargo test --release --test stream_simulation -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn cost_of_a_packet() {
    const PACKETS: u64 = 100_000;
    let order = Order {
        target: Target::Source(PACKETS * 1_000),
        rate: Some((1, 1)),
        slippage: (15, 1_000),
        timeout_ms: None,
        is_quote: false,
        packets_in_flight_max: 512,
    };
    let world = World {
        limit: Some(1_000),
        is_limit_told: true,
        rate: (1, 1),
        delay_ms: (1, 1),
        loss: 0,
        repetition: 0,
        busy: 0,
        next_rate: None,
        next_limit: None,
        liquidity: u64::MAX,
        tampering: (Tampering::None, 0),
        conduct: Conduct::Honest,
        has_receipts: false,
    };
    let mut random = Random::new("cost");
    let mut sender = order.sender();
    let mut network = Network::new(world, random.fork());
    let mut now = START;
    let (mut sending, mut handling, mut receiving) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    while sender.outcome().is_none() {
        if let Some(rate) = asked_rate(&sender, &order) {
            sender.set_rate(now, Some(rate));
        }
        loop {
            let begun = Instant::now();
            let prepare = sender.poll_prepare(now, &mut |bytes| fill(&mut random, bytes));
            sending += begun.elapsed();
            let Some(prepare) = prepare else { break };
            let begun = Instant::now();
            network.send(now, &prepare);
            receiving += begun.elapsed();
        }
        while let Some(arrival) = network.arrivals.pop() {
            now = now.max(Timestamp::from_millis(arrival.at.0));
            network.arrive(&arrival);
            let reply = Reply::parse(&arrival.bytes).expect("well-formed");
            let begun = Instant::now();
            sender.handle_reply(now, arrival.request, &reply);
            handling += begun.elapsed();
        }
    }
    let outcome = sender.outcome().expect("it is over");
    assert_eq!(outcome.result, Ok(()));
    let packets = outcome.packets;
    println!(
        "{packets} packets: {:?} to send each, {:?} to handle its answer; {:?} for the network and the receiver",
        sending / packets,
        handling / packets,
        receiving / packets
    );
}
