//! One packet after the other, by hand. What networks and receivers do in numbers is in `tests/stream_simulation.rs`.

use super::*;
use crate::stream::frame::{Frame, Packet, PacketBuilder};
use crate::wire::packet::{RejectBuilder, amount_too_large_data, encode_fulfill};

const SECRET: [u8; 32] = [7; 32];
const START: Timestamp = Timestamp::from_millis(1_000_000);
const BARE: &str = "test.hub.bob.AAECAwQFBgcICQoLDA0ODxAR";

/// A payment and what it sent.
struct Pay {
    sender: Sender,
    now: Timestamp,
    keys: ConnectionKeys,
    random: u8,
}

/// A Prepare as the receiver reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    request: u32,
    amount: u64,
    asks: u64,
    is_money: bool,
    data: Vec<u8>,
    condition: [u8; 32],
    frames: String,
}

impl Pay {
    fn new(target: Target, rate: RateSource) -> Self {
        Self::with(|config| {
            config.target = target;
            config.rate = rate;
        })
    }

    fn with(change: impl FnOnce(&mut Config<'_>)) -> Self {
        let mut config = Config {
            shared_secret: &SECRET,
            destination: Address::from_static(BARE),
            source_address: Address::from_static("test.hub.alice"),
            source_asset_code: "ABC",
            source_asset_scale: 2,
            target: Target::Source(1_000),
            rate: RateSource::Caller,
            slippage: Slippage::new(Ratio::new(1, 100).unwrap()).unwrap(),
            is_quote: false,
            timeout_ms: None,
            packets_in_flight_max: PACKETS_IN_FLIGHT_MAX,
        };
        change(&mut config);
        Self {
            sender: Sender::new(&config, START),
            now: START,
            keys: ConnectionKeys::new(&SECRET),
            random: 0,
        }
    }

    /// A payment of 1,000 at rate 2, about to send its money.
    fn paying() -> Self {
        let mut pay = Self::new(Target::Source(1_000), RateSource::Caller);
        pay.shake_hands();
        pay.sender.set_rate(pay.now, Ratio::new(2, 1));
        pay
    }

    fn shake_hands(&mut self) {
        let handshake = self.next().unwrap();
        self.refuse(&handshake, 0, &[ASSET]);
    }

    fn next(&mut self) -> Option<Sent> {
        let random = &mut self.random;
        let mut source = |bytes: &mut [u8]| {
            *random = random.wrapping_add(1);
            bytes.fill(*random);
        };
        let outgoing = self.sender.poll_prepare(self.now, &mut source)?;
        let mut plaintext = outgoing.data.to_vec();
        let packet = Packet::parse(self.keys.open(&mut plaintext).unwrap()).unwrap();
        assert_eq!(packet.packet_type, PacketType::Prepare);
        assert_eq!(packet.sequence, u64::from(outgoing.request));
        assert_eq!(outgoing.destination.as_str(), BARE);
        let fulfillable = condition(&self.keys.fulfillment(outgoing.data));
        assert_eq!(outgoing.condition == fulfillable, outgoing.is_money);
        let frames: Vec<String> = packet.frames().map(|frame| format!("{frame:?}")).collect();
        Some(Sent {
            request: outgoing.request,
            amount: outgoing.amount,
            asks: packet.prepare_amount,
            is_money: outgoing.is_money,
            data: outgoing.data.to_vec(),
            condition: outgoing.condition,
            frames: frames.join(" "),
        })
    }

    fn all(&mut self) -> Vec<Sent> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn sealed(&self, packet_type: PacketType, sequence: u32, amount: u64, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut data = Vec::new();
        let packet = PacketBuilder {
            packet_type,
            sequence: sequence.into(),
            prepare_amount: amount,
            frames,
        };
        self.keys.seal([0xff; NONCE_BYTES], &mut data, |out| packet.encode(out));
        data
    }

    /// The receiver got `amount` and gives it back.
    fn refuse(&mut self, sent: &Sent, amount: u64, frames: &[Frame<'_>]) {
        let data = self.sealed(PacketType::Reject, sent.request, amount, frames);
        self.reject(sent, ErrorCode::F99_APPLICATION_ERROR, &data);
    }

    fn reject(&mut self, sent: &Sent, code: ErrorCode, data: &[u8]) {
        let mut bytes = Vec::new();
        RejectBuilder {
            code,
            triggered_by: "test.hub",
            message: "",
            data,
        }
        .encode(&mut bytes);
        self.sender
            .handle_reply(self.now, sent.request, &Reply::parse(&bytes).unwrap());
    }

    /// The receiver got `amount` and keeps it.
    fn fulfill(&mut self, sent: &Sent, amount: u64, frames: &[Frame<'_>]) {
        let data = self.sealed(PacketType::Fulfill, sent.request, amount, frames);
        self.fulfill_with(sent, self.keys.fulfillment(&sent.data), &data);
    }

    fn fulfill_with(&mut self, sent: &Sent, fulfillment: [u8; 32], data: &[u8]) {
        let mut bytes = Vec::new();
        encode_fulfill(&mut bytes, &fulfillment, data);
        self.sender
            .handle_reply(self.now, sent.request, &Reply::parse(&bytes).unwrap());
    }

    /// Lets it say goodbye, if it does, and how it ended.
    fn ended(&mut self) -> Outcome {
        if let Some(close) = self.next() {
            assert!(close.frames.starts_with("ConnectionClose { code: 1"), "{close:?}");
            assert_eq!((close.amount, close.is_money), (0, false));
        }
        assert_eq!(self.next(), None);
        assert_eq!(self.sender.next_wakeup(), None);
        self.sender.outcome().expect("it is over")
    }

    fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }
}

const ASSET: Frame<'static> = Frame::ConnectionAssetDetails { code: b"XYZ", scale: 9 };

#[test]
fn nothing_to_send_is_over_at_once() {
    for target in [
        Target::Source(0),
        Target::Destination {
            amount: 0,
            source_max: 5,
        },
    ] {
        let outcome = Pay::new(target, RateSource::Path).ended();
        assert_eq!((outcome.result, outcome.amounts), (Ok(()), Amounts::default()));
        assert_eq!((outcome.packets, outcome.asset), (0, None));
    }
}

#[test]
fn a_payment_of_one_packet() {
    let mut pay = Pay::new(Target::Source(1_000), RateSource::Caller);
    let handshake = pay.next().unwrap();
    assert_eq!((handshake.amount, handshake.asks, handshake.is_money), (0, 0, false));
    assert_eq!(
        handshake.frames,
        format!(
            "{:?} {:?}",
            Frame::ConnectionNewAddress {
                address: b"test.hub.alice"
            },
            Frame::ConnectionAssetDetails { code: b"ABC", scale: 2 }
        )
    );
    assert_eq!(pay.next(), None, "one at a time");
    assert_eq!(pay.sender.asked_rate(), None);
    pay.refuse(&handshake, 0, &[ASSET]);
    let asset = Asset {
        code: "XYZ".into(),
        scale: 9,
    };
    assert_eq!(pay.sender.asked_rate(), Some(&asset));
    assert_eq!(pay.next(), None);
    pay.sender.set_rate(pay.now, Ratio::new(1, 3));

    let money = pay.next().unwrap();
    // 1,000 / 3 * 0.99, rounded up.
    assert_eq!((money.amount, money.asks, money.is_money), (1_000, 330, true));
    assert_eq!(money.frames, "StreamMoney { stream: 1, shares: 1 }");
    assert_eq!(pay.next(), None);
    let amounts = *pay.sender.amounts();
    assert_eq!((amounts.in_flight, amounts.fulfilled, amounts.left()), (1_000, 0, 0));
    assert_eq!(pay.sender.outcome(), None);
    pay.fulfill(&money, 333, &[]);
    let outcome = pay.ended();
    assert_eq!(outcome.result, Ok(()));
    assert_eq!(
        outcome.amounts,
        Amounts {
            source: 1_000,
            fulfilled: 1_000,
            in_flight: 0,
            delivered: 333
        }
    );
    assert_eq!((outcome.asset, outcome.packets), (Some(asset), 3));
}

#[test]
fn only_who_needs_it_is_told_an_address() {
    // A token with more in it is not of the kind that insists.
    let long = Address::from_static("test.hub.bob.AAECAwQFBgcICQoLDA0ODxARAAECAwQFBgcICQoLDA0ODxAR");
    let mut sender = Pay::with(|config| config.destination = long).sender;
    let outgoing = sender.poll_prepare(START, &mut |bytes| bytes.fill(1)).unwrap();
    assert_eq!(outgoing.destination, long);
    let mut plaintext = outgoing.data.to_vec();
    let keys = ConnectionKeys::new(&SECRET);
    let packet = Packet::parse(keys.open(&mut plaintext).unwrap()).unwrap();
    assert_eq!(
        packet.frames().next(),
        Some(Frame::ConnectionNewAddress { address: b"" })
    );
}

#[test]
fn who_knows_no_rate_asks_the_path() {
    for rate in [None, Some(Ratio::ZERO)] {
        let mut pay = Pay::new(Target::Source(1_000), RateSource::Caller);
        pay.shake_hands();
        pay.sender.set_rate(pay.now, rate);
        let probe = pay.next().expect("a volley");
        assert!(!probe.is_money, "{rate:?}");
    }
    // The receiver does not say what it has.
    let mut pay = Pay::new(Target::Source(1_000), RateSource::Caller);
    let handshake = pay.next().unwrap();
    pay.refuse(&handshake, 0, &[]);
    assert_eq!(pay.sender.asked_rate(), None);
    assert!(!pay.next().expect("a volley").is_money);

    // A rate that nobody asked for changes nothing.
    let mut pay = Pay::new(Target::Source(1_000), RateSource::Path);
    pay.sender.set_rate(pay.now, None);
    assert!(pay.next().is_some() && pay.sender.outcome().is_none());
    for slippage in [(1, 1), (2, 1)] {
        assert_eq!(Slippage::new(Ratio::new(slippage.0, slippage.1).unwrap()), None);
    }
}

/// A code, what its packet is answered with, and what becomes of the payment.
#[test]
fn what_codes_do_to_a_payment() {
    for code in ["F00", "F02", "F05", "F06", "F09", "R02", "R99", "X00"] {
        let mut pay = Pay::paying();
        let money = pay.next().unwrap();
        let code = ErrorCode::new(code.as_bytes().try_into().unwrap()).unwrap();
        pay.reject(&money, code, &[]);
        let outcome = pay.ended();
        assert_eq!(outcome.result, Err(Failure::Rejected(code)));
        assert_eq!((outcome.amounts.left(), outcome.last_reject), (1_000, Some(code)));
    }
    for code in ["T00", "T01", "T03", "T05", "T99", "T04", "R00", "F99"] {
        let mut pay = Pay::paying();
        let code = ErrorCode::new(code.as_bytes().try_into().unwrap()).unwrap();
        // Each pause is twice as long as the one before, and by chance up to half shorter.
        for pause_ms in [100, 200, 400] {
            let money = pay.next().unwrap();
            pay.reject(&money, code, &[]);
            assert_eq!(pay.sender.amounts().left(), 1_000);
            assert_eq!(pay.next(), None, "{code}");
            let until = pay.sender.next_wakeup().unwrap().as_millis() - pay.now.as_millis();
            assert!(until > pause_ms / 2 && until <= pause_ms, "{code}: {until}");
            pay.wait_ms(until - 1);
            assert_eq!(pay.next(), None, "{code}");
            pay.wait_ms(1);
        }
        let money = pay.next().unwrap();
        let is_smaller = code == ErrorCode::T04_INSUFFICIENT_LIQUIDITY;
        assert_eq!(money.amount, if is_smaller { 125 } else { 1_000 });
    }
    // Four times in a row nobody answered.
    let mut pay = Pay::paying();
    let code = ErrorCode::R00_TRANSFER_TIMED_OUT;
    for _ in 0..4 {
        let money = pay.next().unwrap();
        pay.reject(&money, code, &[]);
        pay.wait_ms(5_000);
    }
    assert_eq!(pay.ended().result, Err(Failure::Rejected(code)));
}

#[test]
fn the_size_of_packets() {
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    let code = ErrorCode::F08_AMOUNT_TOO_LARGE;
    pay.reject(&money, code, &amount_too_large_data(500, 150));
    // At most 300, in parts of one size.
    let sent = pay.all();
    assert_eq!(sent.iter().map(|sent| sent.amount).collect::<Vec<_>>(), [250; 4]);
    assert!(sent.iter().all(|sent| sent.asks == 495));
    // They come back one after the other: a smaller limit, then none at all.
    pay.reject(&sent[0], code, &amount_too_large_data(500, 400));
    pay.fulfill(&sent[1], 500, &[]);
    assert_eq!(pay.next().map(|sent| sent.amount), Some(125));
    pay.reject(&sent[2], code, &amount_too_large_data(500, 1));
    assert_eq!(pay.sender.outcome(), None, "waits for what is under way");
    assert_eq!(pay.next(), None);
    pay.fulfill(&sent[3], 500, &[]);
    assert_eq!(pay.sender.amounts().in_flight, 125);
    pay.wait_ms(31_000);
    let outcome = pay.ended();
    assert_eq!(outcome.result, Err(Failure::Rejected(code)));
    assert_eq!((outcome.amounts.fulfilled, outcome.amounts.left()), (500, 500));

    // Larger again, where small ones are lost to rounding.
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    pay.reject(&money, code, &amount_too_large_data(10, 1));
    let first = pay.all();
    assert_eq!(first.len(), 10);
    for sent in &first {
        pay.reject(sent, ErrorCode::R01_INSUFFICIENT_SOURCE_AMOUNT, &[]);
    }
    assert_eq!(
        pay.ended().result,
        Err(Failure::Rejected(ErrorCode::R01_INSUFFICIENT_SOURCE_AMOUNT))
    );
}

#[test]
fn what_a_fulfillment_proves() {
    let data = |pay: &Pay, sent: &Sent| pay.sealed(PacketType::Fulfill, sent.request, 2_100, &[]);
    // What the receiver says counts, if it is the receiver, about this packet, and it took it.
    type Data<'a> = &'a dyn Fn(&Pay, &Sent) -> Vec<u8>;
    let cases: &[(&str, Data<'_>, u64, Result<(), Failure>)] = &[
        ("more", &data, 2_100, Ok(())),
        (
            "exactly the minimum",
            &|pay, sent| pay.sealed(PacketType::Fulfill, sent.request, 1_980, &[]),
            1_980,
            Ok(()),
        ),
        (
            "less",
            &|pay, sent| pay.sealed(PacketType::Fulfill, sent.request, 1_979, &[]),
            1_980,
            Err(Failure::ReceiverMisbehaved),
        ),
        ("nothing", &|_, _| Vec::new(), 1_980, Ok(())),
        ("junk", &|_, _| vec![1; 100], 1_980, Ok(())),
        (
            "about another packet",
            &|pay, sent| pay.sealed(PacketType::Fulfill, sent.request - 1, 1, &[]),
            1_980,
            Ok(()),
        ),
        (
            "as if it had refused",
            &|pay, sent| pay.sealed(PacketType::Reject, sent.request, 1, &[]),
            1_980,
            Ok(()),
        ),
        ("our own words", &|_, sent| sent.data.clone(), 1_980, Ok(())),
        (
            "in another asset",
            &|pay, sent| {
                let other = Frame::ConnectionAssetDetails { code: b"XYZ", scale: 6 };
                pay.sealed(PacketType::Fulfill, sent.request, 2_000, &[other])
            },
            2_000,
            Err(Failure::ReceiverMisbehaved),
        ),
        (
            "and goodbye, when all is paid",
            &|pay, sent| {
                let close = Frame::ConnectionClose { code: 1, message: b"" };
                pay.sealed(PacketType::Fulfill, sent.request, 2_000, &[close])
            },
            2_000,
            Ok(()),
        ),
    ];
    for (what, data, delivered, result) in cases {
        let mut pay = Pay::paying();
        let money = pay.next().unwrap();
        let data = data(&pay, &money);
        pay.fulfill_with(&money, pay.keys.fulfillment(&money.data), &data);
        let outcome = pay.ended();
        assert_eq!(
            (outcome.result, outcome.amounts.delivered),
            (*result, *delivered),
            "{what}"
        );
        assert_eq!(outcome.amounts.fulfilled, 1_000, "{what}");
        // Once is enough.
        pay.fulfill_with(&money, pay.keys.fulfillment(&money.data), &data);
        assert_eq!(pay.sender.outcome(), Some(outcome));
    }

    // One that does not fit the condition proves nothing, nor does one for a packet that cannot be fulfilled.
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    pay.fulfill_with(&money, [9; 32], &[]);
    let outcome = pay.ended();
    assert_eq!(outcome.result, Err(Failure::Rejected(ErrorCode::F05_WRONG_CONDITION)));
    assert_eq!((outcome.amounts.fulfilled, outcome.amounts.left()), (0, 1_000));
}

#[test]
fn what_a_refusal_means() {
    // The rate itself is too low: (1,978 + 1) / 1,000 is less than 1.98.
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    pay.refuse(&money, 1_978, &[]);
    assert_eq!(pay.ended().result, Err(Failure::RateTooLow));

    // Only rounding: the last packet may ask for one source unit's worth less, once.
    let mut pay = Pay::new(Target::Source(1_001), RateSource::Caller);
    pay.shake_hands();
    pay.sender.set_rate(pay.now, Ratio::new(2, 1));
    let money = pay.next().unwrap();
    assert_eq!((money.amount, money.asks), (1_001, 1_982)); // 1,981.98
    pay.refuse(&money, 1_981, &[]);
    let again = pay.next().unwrap();
    assert_eq!((again.amount, again.asks), (1_001, 1_980));
    pay.refuse(&again, 1_979, &[]);
    assert_eq!(pay.ended().result, Err(Failure::RateTooLow));

    for close in [
        Frame::ConnectionClose { code: 1, message: b"" },
        Frame::StreamClose {
            stream: 1,
            code: 9,
            message: b"",
        },
    ] {
        let mut pay = Pay::paying();
        let money = pay.next().unwrap();
        pay.refuse(&money, 2_000, &[close]);
        assert_eq!(pay.ended().result, Err(Failure::ClosedByReceiver));
    }

    // Not from the receiver: it says nothing about the rate.
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    let replayed = pay.sealed(PacketType::Reject, money.request - 1, 0, &[]);
    pay.reject(&money, ErrorCode::F99_APPLICATION_ERROR, &replayed);
    assert!(pay.sender.outcome().is_none());
    pay.wait_ms(100);
    assert_eq!(pay.next().map(|sent| sent.amount), Some(1_000));
}

#[test]
fn time_ends_it() {
    // No answer comes: a second after the expiry it is as good as rejected; what comes later does not count.
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    assert_eq!(pay.sender.next_wakeup(), Some(START.plus_ms(30_000)));
    pay.wait_ms(30_000);
    assert_eq!(pay.next(), None);
    assert_eq!(pay.sender.amounts().in_flight, 1_000);
    assert_eq!(pay.sender.outcome(), None);
    assert_eq!(pay.sender.next_wakeup(), Some(START.plus_ms(31_000)));
    pay.wait_ms(1_000);
    let outcome = pay.ended();
    assert_eq!((outcome.result, outcome.amounts.left()), (Err(Failure::Idle), 1_000));
    pay.fulfill(&money, 2_000, &[]);
    assert_eq!(pay.sender.outcome(), Some(outcome));

    // The time given ends, with money under way.
    let mut pay = Pay::with(|config| config.timeout_ms = Some(500));
    pay.shake_hands();
    pay.sender.set_rate(pay.now, Ratio::new(2, 1));
    let money = pay.next().unwrap();
    assert_eq!(pay.sender.next_wakeup(), Some(START.plus_ms(500)));
    pay.wait_ms(500);
    assert_eq!((pay.next(), pay.sender.outcome()), (None, None));
    pay.fulfill(&money, 2_000, &[]);
    let outcome = pay.ended();
    assert_eq!(
        (outcome.result, outcome.amounts.fulfilled),
        (Err(Failure::TimedOut), 1_000)
    );

    // Nobody is there: nobody to say goodbye to.
    let mut pay = Pay::with(|_| {});
    assert!(pay.next().is_some());
    pay.wait_ms(30_000);
    assert_eq!(pay.next(), None);
    assert_eq!(pay.sender.outcome().unwrap().result, Err(Failure::Idle));

    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    pay.sender.cancel();
    assert_eq!((pay.next(), pay.sender.outcome()), (None, None));
    pay.reject(&money, ErrorCode::T04_INSUFFICIENT_LIQUIDITY, &[]);
    assert_eq!(pay.ended().result, Err(Failure::Cancelled));
}

#[test]
fn many_are_under_way_at_once() {
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    pay.reject(
        &money,
        ErrorCode::F08_AMOUNT_TOO_LARGE,
        &amount_too_large_data(1_000, 1),
    );
    let mut sent = pay.all();
    assert_eq!(sent.len(), 32);
    // Each Fulfill makes room for two.
    for round in 0..3 {
        for sent in std::mem::take(&mut sent) {
            pay.fulfill(&sent, 2, &[]);
        }
        sent = pay.all();
        assert_eq!(sent.len(), 64 << round);
    }
    let amounts = *pay.sender.amounts();
    assert_eq!((amounts.fulfilled, amounts.in_flight), (32 + 64 + 128, 256));
    // Half as many after a connector had enough of them, and not before a pause.
    for sent in &sent {
        pay.reject(sent, ErrorCode::T03_CONNECTOR_BUSY, &[]);
    }
    assert_eq!(pay.next(), None);
    pay.wait_ms(100);
    assert_eq!(pay.all().len(), 128);
}

#[test]
fn the_volley_and_a_quote() {
    let mut pay = Pay::with(|config| {
        config.rate = RateSource::Path;
        config.is_quote = true;
        config.target = Target::Source(5_000);
    });
    pay.shake_hands();
    let volley = pay.all();
    let amounts: Vec<u64> = volley.iter().map(|sent| sent.amount).collect();
    let mut expected: Vec<u64> = (0..13).rev().map(|exponent| 10u64.pow(exponent)).collect();
    expected.insert(0, 5_000);
    assert_eq!(amounts, expected);
    assert!(
        volley
            .iter()
            .all(|sent| !sent.is_money && sent.asks == 0 && sent.frames.is_empty())
    );
    for sent in &volley {
        match sent.amount {
            0..10 => pay.reject(sent, ErrorCode::R01_INSUFFICIENT_SOURCE_AMOUNT, &[]),
            // The path takes a third, and nothing above 1,234.
            10..=1_234 => pay.refuse(sent, sent.amount * 2 / 3, &[]),
            amount => pay.reject(
                sent,
                ErrorCode::F08_AMOUNT_TOO_LARGE,
                &amount_too_large_data(amount, 1_234),
            ),
        }
    }
    let largest = pay.next().unwrap();
    assert_eq!((largest.amount, largest.is_money), (1_234, false));
    pay.refuse(&largest, 822, &[]);
    let outcome = pay.sender.outcome().expect("a quote says no goodbye");
    assert_eq!((outcome.result, outcome.amounts.fulfilled), (Ok(()), 0));
    let quote = outcome.quote.unwrap();
    assert_eq!(
        quote,
        Quote {
            bounds: Bounds {
                lower: Ratio::new(666, 1_000).unwrap().max(Ratio::new(822, 1_234).unwrap()),
                upper: Ratio::new(667, 1_000).unwrap().min(Ratio::new(823, 1_234).unwrap()),
            },
            rate_min: Ratio::new(822 * 99, 1_234 * 100).unwrap(),
            packet_amount_max: 1_234,
            source_max: 5_000,
            delivered_min: 3_297, // 4,999 * 822 / 1,234 * 0.99
            delivered: 3_330,
        }
    );
}

#[test]
fn an_amount_to_deliver() {
    let pay = |source_max| {
        let mut pay = Pay::new(
            Target::Destination {
                amount: 1_000,
                source_max,
            },
            RateSource::Path,
        );
        pay.shake_hands();
        for sent in pay.all() {
            pay.refuse(&sent, sent.amount * 2, &[]);
        }
        pay
    };
    // 500 at the rate of the path, 506 and one at the worst that is acceptable.
    assert_eq!(pay(499).ended().result, Err(Failure::SourceTooSmall));
    assert_eq!(pay(500).sender.amounts().source, 500);
    let mut pay = pay(u64::MAX);
    assert_eq!(pay.sender.amounts().source, 507);
    let money = pay.next().unwrap();
    assert_eq!((money.amount, money.asks), (500, 990));
    assert_eq!(pay.next(), None);
    // A little less arrives than before: there is more to send.
    pay.fulfill(&money, 995, &[]);
    let more = pay.next().unwrap();
    assert_eq!((more.amount, more.asks), (3, 6));
    pay.fulfill(&more, 6, &[]);
    let outcome = pay.ended();
    assert_eq!(outcome.result, Ok(()));
    assert_eq!((outcome.amounts.fulfilled, outcome.amounts.delivered), (503, 1_001));
}

#[test]
fn the_best_receipt_is_kept() {
    let mut pay = Pay::paying();
    let money = pay.next().unwrap();
    pay.reject(&money, ErrorCode::F08_AMOUNT_TOO_LARGE, &amount_too_large_data(4, 1));
    let sent = pay.all();
    let receipt = |total: u64| {
        let mut receipt = [7; RECEIPT_BYTES];
        receipt[0] = 1;
        receipt[18..26].copy_from_slice(&total.to_be_bytes());
        receipt
    };
    for (sent, (stream, total)) in sent.iter().zip([(1, 500), (1, 1_500), (1, 1_000), (3, 9_999)]) {
        let receipt = &receipt(total)[..];
        let frames = [
            Frame::StreamReceipt { stream, receipt },
            Frame::StreamReceipt {
                stream: 1,
                receipt: &receipt[1..],
            },
        ];
        pay.fulfill(sent, 500, &frames);
    }
    assert_eq!(pay.ended().receipt, Some(receipt(1_500)));
}

#[test]
fn a_connection_has_fewer_than_2_to_the_31_packets() {
    let mut pay = Pay::paying();
    pay.sender.next_sequence = SEQUENCE_MAX;
    let money = pay.next().unwrap();
    pay.reject(&money, ErrorCode::F08_AMOUNT_TOO_LARGE, &amount_too_large_data(4, 1));
    let close = pay.next().unwrap();
    assert_eq!((close.request, close.is_money), ((1 << 31) - 1, false));
    let outcome = pay.ended();
    assert_eq!(outcome.result, Err(Failure::TooManyPackets));
    assert_eq!(outcome.packets, (1 << 31) - 1);
}
