//! What a payment is asked for as, and what is remembered of it: its record, in the store as JSON, and its id.
//!
//! Always: a record says everything that an answer says, and holds no secret.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ledger::account::Account;
use crate::ledger::payment::PaymentNumber;
use crate::pipeline::rates::Decimal;
use crate::shard::control::{PaymentEnd, RefusedHere};
use crate::store::{Mutation, OpenPayment};
use crate::stream::ratio::Ratio;
use crate::stream::sender::{Failure, IDLE_MS_MAX, Outcome, Slippage, Target};

/// How much worse than expected a rate may be if nobody says.
pub const SLIPPAGE_DEFAULT: &str = "0.015";
/// Digits of a slippage behind the point, so that its terms have 64 bits.
const SLIPPAGE_DIGITS_MAX: u32 = 19;
/// The layout of [`Record`] in the store.
const RECORD_VERSION: u8 = 1;

/// What a holder asks for. Two that are equal are one request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// As it was written.
    pub receiver: Box<str>,
    /// What to send, in units of the account; beside a destination amount, the most that it may cost.
    pub source_amount: Option<u64>,
    /// What to deliver, in units of the receiver.
    pub destination_amount: Option<u64>,
    /// See [`read_slippage`].
    pub slippage: Box<str>,
    pub timeout_ms: Option<u64>,
}

impl Request {
    /// Nothing is to be sent: nobody is asked for anything.
    pub fn is_nothing(&self) -> bool {
        self.source_amount == Some(0) && self.destination_amount.is_none() || self.destination_amount == Some(0)
    }

    pub(super) fn target(&self) -> Target {
        match self.destination_amount {
            Some(amount) => Target::Destination {
                amount,
                source_max: self.source_amount.unwrap_or(u64::MAX),
            },
            None => Target::Source(self.source_amount.unwrap_or(0)),
        }
    }

    pub(super) fn slippage(&self) -> Option<Slippage> {
        Slippage::new(slippage_ratio(&self.slippage)?)
    }
}

/// The one way to write a slippage: from 0 to below 1, exactly. `None`: it is none.
pub fn read_slippage(text: &str) -> Option<Box<str>> {
    let decimal = Decimal::parse(text).ok().filter(|decimal| !decimal.is_negative())?;
    let text: Box<str> = decimal.to_string().into();
    slippage_ratio(&text).filter(|_| decimal.is_below_one()).map(|_| text)
}

/// Of digits with at most one point and perhaps a power of ten, as decimals are written.
pub(super) fn slippage_ratio(text: &str) -> Option<Ratio> {
    let (mantissa, power) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = i64::try_from(fraction.len()).ok()?.checked_sub(power.parse().ok()?)?;
    let digits = u32::try_from(digits)
        .ok()
        .filter(|digits| *digits <= SLIPPAGE_DIGITS_MAX)?;
    Ratio::new(format!("{whole}{fraction}").parse().ok()?, 10_u64.checked_pow(digits)?)
}

/// Where a payment stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Sending,
    Completed,
    /// It may have delivered a part.
    Failed,
    /// The process that made it has ended before it.
    Interrupted,
}

/// Why a payment did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Rejected,
    RateUnavailable,
    RateTooLow,
    SourceAmountTooSmall,
    InsufficientBalance,
    ReceiverMisbehaved,
    ClosedByReceiver,
    TooManyPackets,
    Timeout,
    Cancelled,
    Interrupted,
}

impl Reason {
    pub const ALL: [Self; 11] = [
        Self::Rejected,
        Self::RateUnavailable,
        Self::RateTooLow,
        Self::SourceAmountTooSmall,
        Self::InsufficientBalance,
        Self::ReceiverMisbehaved,
        Self::ClosedByReceiver,
        Self::TooManyPackets,
        Self::Timeout,
        Self::Cancelled,
        Self::Interrupted,
    ];

    /// As records and answers have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RateUnavailable => "rate_unavailable",
            Self::RateTooLow => "rate_too_low",
            Self::SourceAmountTooSmall => "source_amount_too_small",
            Self::InsufficientBalance => "insufficient_balance",
            Self::ReceiverMisbehaved => "receiver_misbehaved",
            Self::ClosedByReceiver => "closed_by_receiver",
            Self::TooManyPackets => "too_many_packets",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An asset as a record has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AssetRecord {
    pub code: Box<str>,
    pub scale: u8,
}

/// What is remembered of a payment, in the store as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    version: u8,
    /// For the public; holds the payment's number, see [`public_id`].
    pub id: Uuid,
    pub request: Request,
    /// The account's address.
    pub from: Box<str>,
    /// The whole address, with the token; not known before the receiver was asked.
    pub to: Option<Box<str>>,
    pub source_asset: AssetRecord,
    /// Not known before the receiver has answered.
    pub destination_asset: Option<AssetRecord>,
    pub began_at_ms: u64,
    pub ended_at_ms: Option<u64>,
    pub state: State,
    /// What has arrived, in units of the account.
    pub sent: u64,
    pub in_flight: u64,
    /// In units of the receiver; `None`: nobody knows any more.
    pub delivered: Option<u64>,
    /// Of all kinds, those that moved nothing among them.
    pub packets: u32,
    pub reason: Option<Reason>,
    /// For people.
    pub detail: Option<Box<str>>,
    /// The code of the Reject that ended it.
    pub ilp_code: Option<Box<str>>,
    /// The last code that any packet was rejected with.
    pub last_reject: Option<Box<str>>,
}

impl Record {
    /// Of a payment that has sent nothing yet.
    pub fn new(account: &Account, request: Request, now_ms: u64) -> Self {
        Self {
            version: RECORD_VERSION,
            id: Uuid::nil(),
            request,
            from: (*account.ilp_address).into(),
            to: None,
            source_asset: AssetRecord {
                code: (*account.asset.code).into(),
                scale: account.asset.scale,
            },
            destination_asset: None,
            began_at_ms: now_ms,
            ended_at_ms: None,
            state: State::Sending,
            sent: 0,
            in_flight: 0,
            delivered: Some(0),
            packets: 0,
            reason: None,
            detail: None,
            ilp_code: None,
            last_reject: None,
        }
    }

    /// Reads what the store has kept. `None`: it was not written by this version or one before.
    pub fn read(stored: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(stored).ok()?;
        (record.version == RECORD_VERSION).then_some(record)
    }

    pub(super) fn write(&self) -> Box<[u8]> {
        let text = serde_json::to_vec(self).expect("texts and integers can be written");
        text.into()
    }

    /// The payment has ended like this.
    pub(super) fn end(&mut self, end: &PaymentEnd, now_ms: u64) {
        let outcome = &end.outcome;
        self.ended_at_ms = Some(now_ms);
        self.sent = outcome.amounts.fulfilled;
        self.in_flight = outcome.amounts.in_flight;
        self.delivered = Some(outcome.amounts.delivered);
        self.packets = outcome.packets;
        self.last_reject = outcome.last_reject.map(|code| code.to_string().into());
        self.destination_asset = outcome.asset.as_ref().map(|asset| AssetRecord {
            code: asset.code.clone(),
            scale: asset.scale,
        });
        match reason_of(outcome, end.refused_here) {
            None => self.state = State::Completed,
            Some((reason, step)) => {
                self.state = match reason {
                    Reason::Interrupted => State::Interrupted,
                    _ => State::Failed,
                };
                if let Err(Failure::Rejected(code)) = outcome.result {
                    self.ilp_code = Some(code.to_string().into());
                }
                self.fail(reason, &step);
            }
        }
    }

    fn fail(&mut self, reason: Reason, step: &str) {
        self.reason = Some(reason);
        self.detail = Some(format!("{step}; {}", self.what_moved()).into());
    }

    /// The process that made it is gone, and this is what the book says.
    fn interrupt(&mut self, sent: u64, now_ms: u64) {
        self.ended_at_ms = Some(now_ms);
        self.state = State::Interrupted;
        self.sent = sent;
        self.delivered = if sent == 0 { Some(0) } else { None };
        self.fail(Reason::Interrupted, "the node ended while the payment was being made");
    }

    /// The half of a sentence.
    fn what_moved(&self) -> String {
        let AssetRecord { code, scale } = &self.source_asset;
        let delivered = match (&self.delivered, &self.destination_asset) {
            _ if self.sent == 0 => return "nothing was sent".to_owned(),
            (Some(delivered), Some(asset)) => {
                format!("{delivered} units of {} at scale {} delivered", asset.code, asset.scale)
            }
            (Some(delivered), None) => format!("{delivered} units delivered"),
            (None, _) => "how much was delivered is not known".to_owned(),
        };
        let of_all = match (self.request.source_amount, self.request.destination_amount) {
            (Some(asked), None) => format!(" of {asked}"),
            _ => String::new(),
        };
        format!(
            "{}{of_all} units of {code} at scale {scale} were sent, {delivered}",
            self.sent
        )
    }
}

/// Why a payment did not complete, and in which step.
fn reason_of(outcome: &Outcome, refused_here: Option<RefusedHere>) -> Option<(Reason, String)> {
    let failure = outcome.result.err()?;
    let (reason, step) = match failure {
        Failure::Cancelled => match refused_here {
            Some(RefusedHere::InsufficientBalance) => (
                Reason::InsufficientBalance,
                "the account may not owe so much".to_owned(),
            ),
            Some(RefusedHere::NoRate) => (
                Reason::RateUnavailable,
                "there is no rate from the account's asset to the next hop's".to_owned(),
            ),
            Some(RefusedHere::NotReady) => (Reason::Interrupted, "the node stopped".to_owned()),
            Some(RefusedHere::Busy) => (
                Reason::Cancelled,
                "the node makes as many payments as it can".to_owned(),
            ),
            Some(RefusedHere::NoAccount) | None => (Reason::Cancelled, "the account was closed".to_owned()),
        },
        Failure::Rejected(code) => {
            let step = format!("the path rejected a packet with {code} ({})", code.name());
            (Reason::Rejected, step)
        }
        Failure::RateTooLow => (Reason::RateTooLow, failure.to_string()),
        Failure::SourceTooSmall => (
            Reason::SourceAmountTooSmall,
            "the amount to deliver costs more than may be sent".to_owned(),
        ),
        Failure::ReceiverMisbehaved => (Reason::ReceiverMisbehaved, failure.to_string()),
        Failure::ClosedByReceiver => (Reason::ClosedByReceiver, failure.to_string()),
        Failure::TooManyPackets => (Reason::TooManyPackets, failure.to_string()),
        Failure::Idle => {
            let last = outcome.last_reject.map(|code| format!(", the last Reject was {code}"));
            let seconds = IDLE_MS_MAX / 1_000;
            let step = format!("no packet was fulfilled for {seconds} s{}", last.unwrap_or_default());
            (Reason::Timeout, step)
        }
        Failure::TimedOut => (Reason::Timeout, "the time given was over".to_owned()),
    };
    Some((reason, step))
}

/// Bits of a payment's number that count within a millisecond; the others are the time.
const COUNTER_BITS: u32 = 20;

/// The id of a payment: a UUID of version 7 that has the payment's number in place of its time and of what follows it, so
/// that it names a place in the list of payments also when that payment is forgotten.
pub(super) fn public_id(number: PaymentNumber, random: u64) -> Uuid {
    let ms = number.get() >> COUNTER_BITS;
    let counter = number.get() as u32 & ((1 << COUNTER_BITS) - 1);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    bytes[6] = 0x70 | (counter >> 16) as u8;
    bytes[7] = (counter >> 8) as u8;
    bytes[8..].copy_from_slice(&random.to_be_bytes());
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    bytes[9] = counter as u8;
    Uuid::from_bytes(bytes)
}

/// The number that a payment's id has in it. `None`: it is no such id.
pub fn number_of(id: &Uuid) -> Option<PaymentNumber> {
    let bytes = id.as_bytes();
    if bytes[6] >> 4 != 7 || bytes[8] >> 6 != 2 {
        return None;
    }
    let mut ms = [0; 8];
    ms[2..].copy_from_slice(&bytes[..6]);
    let counter = u64::from(bytes[6] & 0xf) << 16 | u64::from(bytes[7]) << 8 | u64::from(bytes[9]);
    let ms = u64::from_be_bytes(ms);
    (ms >> (u64::BITS - COUNTER_BITS) == 0)
        .then_some(ms << COUNTER_BITS | counter)
        .and_then(PaymentNumber::new)
}

/// Ends a payment that the last process has left open. `None`: its record cannot be read.
pub fn interrupt(open: &OpenPayment, now_ms: u64) -> Option<Mutation> {
    let mut record = Record::read(&open.record)?;
    record.interrupt(open.sent, now_ms);
    Some(Mutation::EndPayment {
        account: open.account,
        number: open.number,
        record: record.write(),
    })
}
