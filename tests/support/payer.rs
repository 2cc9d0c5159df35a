//! Pays one of the node's accounts by STREAM, over BTP: the node's own sender, driven from outside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clearway::stream::ratio::Ratio;
use clearway::stream::sender::{Config, Outcome, RateSource, Sender, Slippage, Target};
use clearway::wire::address::Address;
use clearway::wire::base64;
use clearway::wire::packet;
use clearway::wire::timestamp::Timestamp;
use serde_json::Value;

use super::btp_peer::{BtpPeer, packet_of};
use super::http::Api;
use super::packet::{Prepare, now};

/// A payment of these tests is over by then.
const PAYMENT_LIMIT: Duration = Duration::from_secs(25);

/// Pays `amount` to an account of the same asset, with so many packets under way at once, and closes the connection.
/// Everything has been answered when it returns.
pub fn pay(peer: &BtpPeer, api: &Api, receiver: &str, amount: u64, in_flight_max: u32) -> Outcome {
    let begun = Instant::now();
    let time = || Timestamp::from_millis(now());
    let answer: Value = api.get(&format!("/accounts/{receiver}/spsp"));
    let text = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("no {name}: {answer}"));
    let secret = base64::decode(text("shared_secret")).expect("a secret in base64");
    let config = Config {
        shared_secret: &secret.try_into().expect("32 bytes"),
        destination: Address::parse(text("destination_account").as_bytes()).expect("an address"),
        source_address: Address::parse(b"test.payer").expect("an address"),
        source_asset_code: "ABC",
        source_asset_scale: 9,
        target: Target::Source(amount),
        rate: RateSource::Caller,
        slippage: Slippage::new(Ratio::ZERO).expect("none is less than everything"),
        is_quote: false,
        timeout_ms: None,
        packets_in_flight_max: in_flight_max,
    };
    let mut sender = Sender::new(&config, time());
    let mut random = |bytes: &mut [u8]| getrandom::fill(bytes).expect("the system gives random bytes");
    let mut waiting = VecDeque::new();
    loop {
        assert!(begun.elapsed() < PAYMENT_LIMIT, "the payment has not ended");
        if sender.asked_rate().is_some() {
            sender.set_rate(time(), Ratio::new(1, 1));
        }
        while let Some(outgoing) = sender.poll_prepare(time(), &mut random) {
            let prepare = Prepare {
                amount: outgoing.amount,
                expires_at: outgoing.expires_at.as_millis(),
                condition: outgoing.condition,
                destination: outgoing.destination.as_str().to_owned(),
                data: outgoing.data.to_vec(),
                later: Vec::new(),
            };
            waiting.push_back((outgoing.request, peer.start_prepare(&prepare)));
        }
        match waiting.pop_front() {
            Some((request, reply)) => {
                let reply = packet_of(&reply).encode();
                let reply = packet::Reply::parse(&reply).expect("the node's packets are valid");
                sender.handle_reply(time(), request, &reply);
            }
            None => match sender.outcome() {
                Some(outcome) => return outcome,
                None => std::thread::sleep(Duration::from_millis(1)),
            },
        }
    }
}
