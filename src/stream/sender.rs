//! A payment as a state machine (RFC 29; protocols.md 9.5), and a quote, which is a payment that stops before the money.
//!
//! Owns what is sent, how much of it at once, what counts as delivered, and when it is over. The rate is in
//! [`bounds`](Bounds), the size of a packet in `capacity`, congestion in `window`. Leaves to the caller the way of a
//! Prepare, the clock, and to book what leaves: a packet moves money only if [`Outgoing::is_money`].
//!
//! # How it goes
//! A packet without money asks the receiver for its asset. Then, unless the caller knows the rate and how much to send, a
//! volley of packets that cannot be fulfilled finds out the rate and how large a packet may be. Then the money, and at
//! last a packet that closes the connection. The order of calls: whenever a `handle_*` or a command was called, and at
//! [`Sender::next_wakeup`], call [`Sender::poll_prepare`] until it gives nothing, then look at [`Sender::outcome`].
//!
//! Every Prepare needs one answer through [`Sender::handle_reply`]. One that has none a second after its expiry is taken
//! for rejected, so whoever sent it must not pay for a Fulfill that comes later.
//!
//! # What always holds
//! - Amount to send = fulfilled + under way + left, at every moment. Nothing beyond it is ever sent.
//! - A packet asks the receiver for its amount times the minimum rate, rounded up. Only the last may ask for one source
//!   unit's worth less, because rounding on the way may cost that much.
//! - What counts as delivered is what the receiver must have accepted to fulfill, or more if it says so.
//! - It ends: at the latest 30 s after the last Fulfill, plus the time of what is under way.

use std::collections::BTreeMap;

use super::RandomSource;
use super::crypto::{ConnectionKeys, NONCE_BYTES, condition};
use super::ratio::Ratio;
use super::receipt::RECEIPT_BYTES;
use crate::wire::address::Address;
use crate::wire::packet::{CONDITION_BYTES, ErrorCode, PacketType, Reply};
use crate::wire::timestamp::Timestamp;

mod answers;
mod bounds;
mod capacity;
mod progress;
mod sending;
mod terms;
mod window;

pub use bounds::Bounds;
use capacity::Capacity;
pub use terms::{Amounts, Asset, Config, Failure, Outcome, Outgoing, Quote, RateSource, Slippage, Target};
use window::Window;

/// Packets under way at once, unless the caller wants fewer.
pub const PACKETS_IN_FLIGHT_MAX: u32 = 512;
/// Without a Fulfill for so long, a payment has failed.
pub const IDLE_MS_MAX: u64 = 30_000;

/// How long a packet with money may be under way: no connector holds money longer than this.
const LIFETIME_MS: u64 = 30_000;
/// The same for one without money: its answer is worth less than another try.
const PROBE_LIFETIME_MS: u64 = 10_000;
/// An answer that has not come so long after the expiry will not come.
const LOST_AFTER_MS: u64 = 1_000;
/// Packets of one connection: every implementation counts to less than 2^31 (RFC 29, section 5.5). The last is for the
/// close.
const SEQUENCE_MAX: u32 = (1 << 31) - 2;
/// Times in a row that nobody answers before the expiry, before that is final.
const EXPIRED_MAX: u32 = 3;
/// Probes in one payment or quote, besides those that are sent again.
const PROBES_MAX: usize = 96;
/// A probe of which so much arrives, in units of the receiver, tells the rate well: to a tenth of a percent.
const GOOD_RATE_DELIVERED_MIN: u128 = 1_000;
/// All money goes over one stream, the first that a client may open.
const STREAM_ID: u64 = 1;
/// The longest asset code that we believe; no account has a longer one.
const ASSET_CODE_BYTES_MAX: usize = 64;
/// The length of a token made by a widely used node that accepts no empty address (see [`Sender::handshake_address`]).
const BARE_TOKEN_BYTES: usize = 24;

/// The volley: amounts from 10^12 down, to be popped from the end. Large ones tell the rate with more digits and how
/// large a packet may be, small ones pass where there is little liquidity.
const VOLLEY: [u64; 13] = [
    1,
    10,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
    100_000_000_000,
    1_000_000_000_000,
];

/// Where a payment stands. They follow one another in this order, some are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Asks for the asset.
    Handshake,
    /// Waits for [`Sender::set_rate`].
    AwaitingRate,
    /// Sends probes to learn the rate.
    Volley,
    /// A quote that looks for the largest packet.
    Search,
    Paying,
    /// Nothing more is sent; waits for the money under way.
    Ending,
    /// The close is to be sent.
    Closing,
    Done,
}

/// A Prepare without an answer.
struct InFlight {
    kind: Kind,
    amount: u64,
    /// The least that the receiver may accept.
    prepare_amount: u64,
    condition: [u8; CONDITION_BYTES],
    expires_at: Timestamp,
}

impl InFlight {
    const fn is_money(&self) -> bool {
        matches!(self.kind, Kind::Money { .. })
    }

    /// When its answer will not come any more.
    fn lost_at(&self) -> Timestamp {
        self.expires_at.plus_ms(LOST_AFTER_MS)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Handshake,
    Probe,
    Money {
        /// Nothing was left to send after it.
        is_last: bool,
        /// It asks for one source unit's worth less.
        has_grace: bool,
        /// The most that it may deliver.
        delivered_max: u64,
    },
}

/// What the receiver wrote into an answer, if it is from the receiver and for this packet.
#[derive(Clone, Copy)]
struct Claim {
    /// What arrived, in units of the receiver.
    arrived: u64,
    is_closed: bool,
}

/// A payment or a quote under way.
pub struct Sender {
    keys: ConnectionKeys,
    destination: Box<str>,
    source_address: Box<str>,
    source_asset: Asset,
    target: Target,
    rate: RateSource,
    slippage: Slippage,
    is_quote: bool,

    phase: Phase,
    failure: Option<Failure>,
    /// When the payment began, its money began, or a packet was fulfilled; the last of these.
    idle_since: Timestamp,
    deadline: Option<Timestamp>,

    asset: Option<Asset>,
    /// The receiver has answered: there is a connection to be closed.
    is_connected: bool,
    bounds: Option<Bounds>,
    /// Given by the caller, before slippage.
    rate_given: Option<Ratio>,
    rate_min: Option<Ratio>,

    /// Amounts to probe, from the end.
    probes: Vec<u64>,
    /// Amounts that were probed, whatever became of it.
    probed: Vec<u64>,
    /// Amounts of probes that failed for reasons that pass.
    probes_failed: Vec<u64>,
    /// The volley told too little, perhaps because each probe took the liquidity that the next one needs.
    is_probing_alone: bool,
    capacity: Capacity,
    window: Window,
    /// Smaller packets are lost to rounding.
    packet_amount_min: u64,

    amounts: Amounts,
    /// The most that what is under way may deliver.
    delivered_in_flight: u64,
    /// The last packet was refused although the rate suffices: only rounding can be the reason.
    needs_grace: bool,
    /// A packet that asks for less is under way or fulfilled.
    has_spent_grace: bool,

    in_flight: BTreeMap<u32, InFlight>,
    next_sequence: u32,
    /// Expired in a row, counted once for all that were under way together.
    expired: u32,
    expired_at: u32,
    receipt: Option<(u64, [u8; RECEIPT_BYTES])>,
    last_reject: Option<ErrorCode>,

    /// Random, drawn with the last nonce, for the next pause.
    jitter: u32,
    /// The data of the last Prepare.
    data: Vec<u8>,
    /// Where answers are decrypted.
    scratch: Vec<u8>,
}

impl Sender {
    /// A payment that begins now. One of nothing is over at once.
    pub fn new(config: &Config<'_>, now: Timestamp) -> Self {
        let source = match config.target {
            Target::Source(amount) => amount,
            Target::Destination { .. } => 0,
        };
        let is_nothing = matches!(config.target, Target::Source(0) | Target::Destination { amount: 0, .. });
        Self {
            keys: ConnectionKeys::new(config.shared_secret),
            destination: config.destination.as_str().into(),
            source_address: config.source_address.as_str().into(),
            source_asset: Asset {
                code: config.source_asset_code.into(),
                scale: config.source_asset_scale,
            },
            target: config.target,
            rate: config.rate,
            slippage: config.slippage,
            is_quote: config.is_quote,
            phase: if is_nothing { Phase::Done } else { Phase::Handshake },
            failure: None,
            idle_since: now,
            deadline: config.timeout_ms.map(|ms| now.plus_ms(ms)),
            asset: None,
            is_connected: false,
            bounds: None,
            rate_given: None,
            rate_min: None,
            probes: Vec::new(),
            probed: Vec::new(),
            probes_failed: Vec::new(),
            is_probing_alone: false,
            capacity: Capacity::new(),
            window: Window::new(config.packets_in_flight_max),
            packet_amount_min: 1,
            amounts: Amounts {
                source,
                ..Amounts::default()
            },
            delivered_in_flight: 0,
            needs_grace: false,
            has_spent_grace: false,
            in_flight: BTreeMap::new(),
            next_sequence: 1,
            expired: 0,
            expired_at: 0,
            receipt: None,
            last_reject: None,
            jitter: 0,
            data: Vec::new(),
            scratch: Vec::new(),
        }
    }

    // Getters.

    /// Where the money is.
    pub const fn amounts(&self) -> &Amounts {
        &self.amounts
    }

    /// The asset of the receiver, once it has said.
    pub const fn asset(&self) -> Option<&Asset> {
        self.asset.as_ref()
    }

    /// The receiver's asset, while the payment waits for [`Self::set_rate`].
    pub fn asked_rate(&self) -> Option<&Asset> {
        self.asset.as_ref().filter(|_| self.phase == Phase::AwaitingRate)
    }

    /// What no packet may fall below, in units of the receiver per source unit; `None` before it is decided.
    pub const fn rate_min(&self) -> Option<&Ratio> {
        self.rate_min.as_ref()
    }

    /// When to call [`Self::poll_prepare`] again, if nothing happens before. `None` when it is over.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        if self.phase == Phase::Done {
            return None;
        }
        // Answers are missed in the order of the packets only if all live equally long; the first is near enough, for
        // at each wakeup the next one is looked for.
        let lost = self.in_flight.values().next().map(InFlight::lost_at);
        if self.phase == Phase::Ending {
            return lost;
        }
        [
            lost,
            Some(self.idle_since.plus_ms(IDLE_MS_MAX)),
            self.deadline,
            self.window.paused_until(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// How it ended; `None` before.
    pub fn outcome(&self) -> Option<Outcome> {
        (self.phase == Phase::Done).then(|| Outcome {
            result: self.failure.map_or(Ok(()), Err),
            amounts: self.amounts,
            asset: self.asset.clone(),
            quote: self.quote(),
            receipt: self.receipt.map(|(_, receipt)| receipt),
            last_reject: self.last_reject,
            packets: self.next_sequence - 1,
        })
    }

    // Commands.

    /// Answers [`Self::asked_rate`]: units of the receiver per source unit, before slippage. `None`: the caller does not
    /// know either, and the path is asked.
    pub fn set_rate(&mut self, now: Timestamp, rate: Option<Ratio>) {
        if self.phase != Phase::AwaitingRate {
            return;
        }
        self.rate_given = rate.filter(|rate| !rate.is_zero());
        if self.rate_given.is_none() {
            self.rate = RateSource::Path;
        }
        self.begin_volley_or_money(now);
    }

    /// Sends nothing more and ends when all money under way has arrived or come back.
    pub fn cancel(&mut self) {
        self.fail(Failure::Cancelled);
    }

    // What must go out.

    /// The next Prepare to send now, if there is one.
    pub fn poll_prepare(&mut self, now: Timestamp, random: &mut RandomSource<'_>) -> Option<Outgoing<'_>> {
        self.notice_time(now);
        let (kind, amount, prepare_amount) = self.next_packet(now)?;
        let sequence = self.next_sequence;
        self.next_sequence += 1;

        let mut drawn = [0; NONCE_BYTES + size_of::<u32>()];
        random(&mut drawn);
        let (nonce, jitter) = drawn.split_first_chunk().expect("as long as both");
        self.jitter = u32::from_be_bytes(jitter.try_into().expect("as long as both"));
        self.write_data(*nonce, sequence, kind, prepare_amount);

        let is_money = matches!(kind, Some(Kind::Money { .. }));
        let condition = if is_money {
            condition(&self.keys.fulfillment(&self.data))
        } else {
            let mut unfulfillable = [0; CONDITION_BYTES];
            random(&mut unfulfillable);
            unfulfillable
        };
        let lifetime_ms = if is_money { LIFETIME_MS } else { PROBE_LIFETIME_MS };
        let expires_at = now.plus_ms(lifetime_ms);
        // Nobody waits for the answer to a close.
        if let Some(kind) = kind {
            self.in_flight.insert(
                sequence,
                InFlight {
                    kind,
                    amount,
                    prepare_amount,
                    condition,
                    expires_at,
                },
            );
            self.hold(sequence, kind, amount);
        }
        Some(Outgoing {
            request: sequence,
            amount,
            expires_at,
            condition,
            destination: Address::parse(self.destination.as_bytes()).expect("it was an address when it was given"),
            data: &self.data,
            is_money,
        })
    }

    // What arrived.

    /// The answer to a Prepare. One to a Prepare that is not under way (any more) is ignored.
    pub fn handle_reply(&mut self, now: Timestamp, request: u32, reply: &Reply<'_>) {
        if self.phase == Phase::Done {
            return;
        }
        let Some(packet) = self.in_flight.remove(&request) else {
            return;
        };
        match reply {
            // Nobody knows what fulfills the condition of the others.
            Reply::Fulfill(fulfill) if packet.is_money() && condition(fulfill.fulfillment()) == packet.condition => {
                let claim = self.read_claim(request, fulfill.data(), PacketType::Fulfill);
                self.handle_fulfill(now, request, &packet, claim);
            }
            Reply::Fulfill(_) => self.handle_reject(now, request, &packet, ErrorCode::F05_WRONG_CONDITION, &[]),
            Reply::Reject(reject) => self.handle_reject(now, request, &packet, reject.code(), reject.data()),
        }
        self.advance(now);
    }
}

#[cfg(test)]
mod tests;
