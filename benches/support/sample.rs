//! Packets as a hub sees them: a payment's Prepares, each with its own fulfillment, and the Fulfills that answer them.

use clearway::wire::address::Address;
use clearway::wire::packet::{CONDITION_BYTES, PrepareBuilder, encode_fulfill};
use clearway::wire::timestamp::Timestamp;
use ring::digest::{SHA256, digest};

use crate::support::Random;

/// When the packets arrive.
pub const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

/// A STREAM packet with one or two frames (RFC 29) has about as many.
const DATA_BYTES: usize = 64;

/// The fields of a Prepare, and the secret that fulfills it.
pub struct Sample {
    pub amount: u64,
    pub expires_at: Timestamp,
    pub fulfillment: [u8; CONDITION_BYTES],
    pub condition: [u8; CONDITION_BYTES],
    pub destination: String,
    pub data: Vec<u8>,
}

impl Sample {
    /// A Prepare of 1,000 to 1,000,999 units to `destination`, with 5 to 25 seconds left.
    pub fn new(random: &mut Random, destination: String) -> Self {
        let fulfillment = std::array::from_fn(|_| random.next() as u8);
        Self {
            amount: 1_000 + random.next() % 1_000_000,
            expires_at: NOW.plus_ms(5_000 + random.next() % 20_000),
            fulfillment,
            condition: digest(&SHA256, &fulfillment)
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 bytes"),
            destination,
            data: (0..DATA_BYTES).map(|_| random.next() as u8).collect(),
        }
    }

    /// The Prepare with these fields.
    pub fn prepare(&self) -> Vec<u8> {
        self.prepare_with(self.amount, self.expires_at)
    }

    /// The Prepare as it looks when another amount and expiry are put in.
    pub fn prepare_with(&self, amount: u64, expires_at: Timestamp) -> Vec<u8> {
        let mut packet = Vec::new();
        PrepareBuilder {
            amount,
            expires_at,
            execution_condition: &self.condition,
            destination: Address::parse(self.destination.as_bytes()).expect("an address was made"),
            data: &self.data,
        }
        .encode(&mut packet);
        packet
    }

    /// The Fulfill that pays for it, with data of its own.
    pub fn fulfill(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        encode_fulfill(&mut packet, &self.fulfillment, &self.data[..DATA_BYTES / 2]);
        packet
    }
}

/// The first eight bytes as a number.
pub fn word(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().expect("at least eight bytes"))
}
