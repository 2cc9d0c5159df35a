//! What a payment is told and what it tells: the words between a sender and its caller.

use super::{Bounds, IDLE_MS_MAX};
use crate::stream::ratio::Ratio;
use crate::stream::receipt::RECEIPT_BYTES;
use crate::stream::secret::SharedSecret;
use crate::wire::address::Address;
use crate::wire::packet::{CONDITION_BYTES, ErrorCode};
use crate::wire::timestamp::Timestamp;

/// What is to be achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Send so much, in source units.
    Source(u64),
    /// Deliver so much, in units of the receiver, for no more than `source_max`.
    Destination { amount: u64, source_max: u64 },
}

/// What the minimum rate is derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateSource {
    /// What the path gives: the rate of the volley.
    Path,
    /// The caller, who is asked when the receiver's asset is known: [`Sender::asked_rate`](super::Sender::asked_rate).
    Caller,
}

/// How much worse than the expected rate may be accepted: at least nothing, less than everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slippage {
    /// What is left of the rate. Terms of 64 bits.
    pub(super) kept: Ratio,
}

impl Slippage {
    /// `None` unless 0 <= `slippage` < 1.
    pub fn new(slippage: Ratio) -> Option<Self> {
        let kept = slippage.complement()?;
        (!kept.is_zero()).then_some(Self { kept })
    }
}

/// All that a payment needs to know.
pub struct Config<'a> {
    pub shared_secret: &'a SharedSecret,
    pub destination: Address<'a>,
    /// Of the account that pays.
    pub source_address: Address<'a>,
    pub source_asset_code: &'a str,
    pub source_asset_scale: u8,
    pub target: Target,
    pub rate: RateSource,
    pub slippage: Slippage,
    /// Stop before the money.
    pub is_quote: bool,
    /// After this nothing more is sent; what is under way is waited for.
    pub timeout_ms: Option<u64>,
    /// At most [`PACKETS_IN_FLIGHT_MAX`](super::PACKETS_IN_FLIGHT_MAX) is a good choice; zero counts as one.
    pub packets_in_flight_max: u32,
}

/// The asset of the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    pub code: Box<str>,
    pub scale: u8,
}

/// A Prepare to be sent.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Names it in [`Sender::handle_reply`](super::Sender::handle_reply).
    pub request: u32,
    /// In source units.
    pub amount: u64,
    pub expires_at: Timestamp,
    pub condition: [u8; CONDITION_BYTES],
    pub destination: Address<'a>,
    pub data: &'a [u8],
    /// Whether it can be fulfilled. If not, a refusal of it says nothing about the payment: probes are larger than what
    /// an account may have.
    pub is_money: bool,
}

/// Where the money is, in source units but for `delivered`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// What may be sent in all. Zero as long as an amount to deliver waits for its rate.
    pub source: u64,
    pub fulfilled: u64,
    pub in_flight: u64,
    /// In units of the receiver.
    pub delivered: u64,
}

impl Amounts {
    /// What may still be sent.
    pub const fn left(&self) -> u64 {
        self.source - self.fulfilled - self.in_flight
    }
}

/// Why a payment or a quote did not succeed. The first reason counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A final code.
    #[error("a packet was rejected with {0}")]
    Rejected(ErrorCode),
    /// Less arrives than is acceptable, or nothing but the remainder of a division.
    #[error("the rate of the path is below the minimum")]
    RateTooLow,
    /// The amount to deliver costs more than the caller allows.
    #[error("the amount to send does not suffice")]
    SourceTooSmall,
    /// The receiver fulfilled less than it had to, or changed its asset.
    #[error("the receiver breaks the rules of STREAM")]
    ReceiverMisbehaved,
    #[error("the receiver closed the connection")]
    ClosedByReceiver,
    /// Nothing was fulfilled for [`IDLE_MS_MAX`].
    #[error("no packet was fulfilled for {} s", IDLE_MS_MAX / 1_000)]
    Idle,
    #[error("the time given is over")]
    TimedOut,
    #[error("the connection has no packets left")]
    TooManyPackets,
    /// See [`Sender::cancel`](super::Sender::cancel).
    #[error("cancelled")]
    Cancelled,
}

/// What a payment would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    pub bounds: Bounds,
    pub rate_min: Ratio,
    /// `u64::MAX` if nobody named a limit.
    pub packet_amount_max: u64,
    /// The most that would be sent.
    pub source_max: u64,
    /// The least that would be delivered if the payment succeeds.
    pub delivered_min: u64,
    /// What would be delivered at the rate that was seen, before each packet's rounding.
    pub delivered: u64,
}

impl Outcome {
    /// Of a payment that nobody took.
    pub fn not_begun() -> Self {
        Self {
            result: Err(Failure::Cancelled),
            amounts: Amounts::default(),
            asset: None,
            quote: None,
            receipt: None,
            last_reject: None,
            packets: 0,
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub result: Result<(), Failure>,
    pub amounts: Amounts,
    pub asset: Option<Asset>,
    /// Of a quote that succeeded.
    pub quote: Option<Quote>,
    /// The one for the largest total, if the receiver makes receipts; whether it is genuine, its verifier knows.
    pub receipt: Option<[u8; RECEIPT_BYTES]>,
    /// The last code that anybody rejected a packet with, probes included: for people who ask why.
    pub last_reject: Option<ErrorCode>,
    /// Prepares that were sent, of all kinds.
    pub packets: u32,
}
