//! What a packet of a STREAM payment costs at both ends, without the connectors in between: the sender makes and seals a
//! Prepare, the receiver opens it and answers with a fulfillment, the sender opens and believes that. Against the bare
//! cryptography of the two, which no implementation can leave out.

use std::hint::black_box;

use clearway::stream::crypto::ConnectionKeys;
use clearway::stream::ratio::Ratio;
use clearway::stream::receiver::{Answer, Receiver, Recipient};
use clearway::stream::sender::{Config, PACKETS_IN_FLIGHT_MAX, RateSource, Sender, Slippage, Target};
use clearway::wire::address::Address;
use clearway::wire::packet::{
    ErrorCode, Prepare, PrepareBuilder, RejectBuilder, Reply, amount_too_large_data, encode_fulfill,
};
use clearway::wire::timestamp::Timestamp;
use criterion::Criterion;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hmac};

use support::{Digest, Random, Work, measure, size};

mod support;

const SECRET: [u8; 32] = [7; 32];
const DESTINATION: Address<'static> = Address::from_static("test.hub.bob.AAECAwQFBgcICQoLDA0ODxAR");
const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
/// The largest packet of the path, and the amount of all packets of a payment.
const PACKET_AMOUNT: u64 = 1_000;
/// Plaintext of a Prepare and of its Fulfill, in bytes: what the two make of amounts of this size.
const PLAINTEXT_BYTES: [usize; 2] = [15, 24];

fn main() {
    support::main(&[packet]);
}

fn packet(criterion: &mut Criterion) {
    let packets = size(16, 10_000);
    let works = vec![
        Work::new("bare cryptography", cryptography_expected(packets), || {
            cryptography(packets)
        }),
        Work::new("both ends", both_ends_expected(packets), || both_ends(packets)),
        Work::new("both ends, one in flight", both_ends_expected(packets), || {
            pay(packets, 1)
        }),
    ];
    measure(criterion, "stream", packets, works);
}

/// Two envelopes sealed and opened, the fulfillment at both ends, its hash where the condition is made, where it is
/// fulfilled and where the Fulfill is believed.
fn cryptography(packets: usize) -> u64 {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &SECRET).expect("32 bytes"));
    let fulfillment = hmac::Key::new(hmac::HMAC_SHA256, &SECRET);
    let mut random = Random::from_seed(3);
    let mut opened = Digest::default();
    for number in 0..packets as u64 {
        let mut conditions = [0; 3];
        for (answer, bytes) in PLAINTEXT_BYTES.into_iter().enumerate() {
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&random.next().to_be_bytes());
            let mut data = [0; 64];
            data[..8].copy_from_slice(&number.to_be_bytes());
            let data = &mut data[..bytes];
            let tag = key
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), data)
                .expect("a short plaintext");
            // The receiver makes the fulfillment of a Prepare, and so does its sender, to know the condition.
            if answer == 0 {
                for condition in &mut conditions[..2] {
                    let preimage = hmac::sign(&fulfillment, black_box(&*data));
                    *condition = first_number(digest::digest(&digest::SHA256, preimage.as_ref()).as_ref());
                }
            } else {
                let preimage = black_box(SECRET);
                conditions[2] = first_number(digest::digest(&digest::SHA256, &preimage).as_ref());
            }
            let data = key
                .open_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), tag, data, 0..)
                .expect("what was sealed");
            opened.add(first_number(data));
        }
        assert_eq!(conditions[0], conditions[1], "both ends come to the same");
        black_box(conditions);
    }
    opened.get()
}

fn cryptography_expected(packets: usize) -> u64 {
    (0..packets as u64)
        .flat_map(|number| [number, number])
        .collect::<Digest>()
        .get()
}

fn first_number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().expect("at least eight bytes"))
}

fn both_ends(packets: usize) -> u64 {
    pay(packets, PACKETS_IN_FLIGHT_MAX)
}

/// The amounts of all packets in the order in which they were taken, and what the sender says in the end.
fn both_ends_expected(packets: usize) -> u64 {
    let total = packets as u64 * PACKET_AMOUNT;
    let taken = std::iter::repeat_n(PACKET_AMOUNT, packets);
    taken.chain([total, total]).collect::<Digest>().get()
}

/// A payment that takes `packets` packets, over a path that takes no larger ones.
fn pay(packets: usize, in_flight_max: u32) -> u64 {
    let total = packets as u64 * PACKET_AMOUNT;
    let mut sender = Sender::new(
        &Config {
            shared_secret: &SECRET,
            destination: DESTINATION,
            source_address: Address::from_static("test.hub.alice"),
            source_asset_code: "ABC",
            source_asset_scale: 9,
            target: Target::Source(total),
            rate: RateSource::Caller,
            slippage: Slippage::new(Ratio::new(1, 100).expect("not divided by zero")).expect("less than everything"),
            is_quote: false,
            timeout_ms: None,
            packets_in_flight_max: in_flight_max,
        },
        NOW,
    );
    let keys = ConnectionKeys::new(&SECRET);
    let recipient = Recipient {
        keys: &keys,
        asset_code: "ABC",
        asset_scale: 9,
        receipts: None,
    };
    let mut receiver = Receiver::new();
    let mut random = Random::from_seed(4);
    let mut fill = |bytes: &mut [u8]| {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_be_bytes()[..chunk.len()]);
        }
    };
    let mut taken = Digest::default();
    let mut prepares: Vec<(u32, Vec<u8>)> = Vec::new();
    let (mut data, mut reply) = (Vec::new(), Vec::new());
    // Buffers of Prepares that were answered, to be used again.
    let mut spare: Vec<Vec<u8>> = Vec::new();
    loop {
        while let Some(outgoing) = sender.poll_prepare(NOW, &mut fill) {
            let mut prepare = spare.pop().unwrap_or_default();
            prepare.clear();
            PrepareBuilder {
                amount: outgoing.amount,
                expires_at: outgoing.expires_at,
                execution_condition: &outgoing.condition,
                destination: outgoing.destination,
                data: outgoing.data,
            }
            .encode(&mut prepare);
            prepares.push((outgoing.request, prepare));
        }
        if sender.asked_rate().is_some() {
            sender.set_rate(NOW, Ratio::new(1, 1));
            continue;
        }
        if let Some(outcome) = sender.outcome() {
            assert_eq!(outcome.result, Ok(()));
            taken.add(outcome.amounts.fulfilled);
            taken.add(outcome.amounts.delivered);
            return taken.get();
        }
        assert!(!prepares.is_empty(), "whoever waits, waits for something");
        for (request, prepare) in prepares.drain(..) {
            let parsed = Prepare::parse(&prepare).expect("a Prepare was written");
            data.clear();
            reply.clear();
            if parsed.amount() > PACKET_AMOUNT {
                refuse(
                    ErrorCode::F08_AMOUNT_TOO_LARGE,
                    &amount_too_large_data(parsed.amount(), PACKET_AMOUNT),
                    &mut reply,
                );
            } else {
                match receiver.answer(&recipient, &parsed, &mut fill, &mut data) {
                    Answer::Fulfill(acceptance) => {
                        taken.add(acceptance.amount);
                        encode_fulfill(&mut reply, &acceptance.fulfillment, &data);
                    }
                    Answer::Reject(refusal) => refuse(refusal.code(), &data, &mut reply),
                }
            }
            sender.handle_reply(NOW, request, &Reply::parse(&reply).expect("a packet was written"));
            spare.push(prepare);
        }
    }
}

fn refuse(code: ErrorCode, data: &[u8], out: &mut Vec<u8>) {
    RejectBuilder {
        code,
        triggered_by: "test.hub",
        message: "",
        data,
    }
    .encode(out);
}
