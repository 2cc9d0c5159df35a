//! Payments of our holders: asked for, made, remembered.
//!
//! Owns the life of a payment around its packets: who may be paid is asked ([`crate::client::spsp`]), the payment is begun
//! in the store, the shard of its account makes it, its end is stored, and only then is it told. Owns the record that is
//! kept of it, and what asking twice means. Leaves the packets to [`crate::shard::payments`] and HTTP to `api`.
//!
//! # Threads
//! [`ASKING_THREADS`] ask receivers' servers, which may take their time. One keeps the book: what begins and ends while it
//! waits for the disk goes into its next commit, so a thousand payments at once take few syncs, and numbers ascend. No
//! shard and no caller waits.
//!
//! # What always holds
//! - A payment is begun in the store before its first packet leaves, and ended there before anybody hears of its end.
//! - Payments that a key was given for are found by it as long as they are remembered: one key, one payment.
//! - A payment that the last process left open is ended at the next start, with what the book says that it has sent.
//! - A secret is in no record.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use url::Url;
use uuid::Uuid;

use crate::client::spsp::{Destination, QueryError, SpspClient};
use crate::ledger::account::{Account, AccountId};
use crate::ledger::payment::PaymentNumber;
use crate::pipeline::rates::Decimal;
use crate::shard::clock;
use crate::shard::control::{PaymentEnd, PaymentOrder, RefusedHere};
use crate::store::{Mutation, OpenPayment, PAYMENT_KEY_BYTES, StoreError, StoredPayment};
use crate::stream::ratio::Ratio;
use crate::stream::sender::{Failure, IDLE_MS_MAX, Outcome, Quote, Slippage, Target};

use super::{Control, ControlError};

pub use crate::client::spsp::{InvalidReceiver, endpoint};

/// Threads that ask where to pay. A server that does not answer holds one of them for a quarter of a minute at most.
pub const ASKING_THREADS: usize = 16;
/// Payments that may wait for one of these threads; more are told to come back.
const QUESTIONS_WAITING_MAX: usize = 4_096;
/// Payments and quotes between the question and the answer. A shard can make twice as many at a time.
const OPEN_MAX: usize = 8_192;
/// What begins and ends in one commit. With their records, some hundred kilobytes.
const BOOKINGS_PER_COMMIT: usize = 256;
/// How long a payment is remembered.
const REMEMBERED_MS: u64 = 90 * DAY_MS;
const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// Accounts of which it is known that their old payments were forgotten today, at some 20 bytes each.
const FORGOT_MAX: usize = 65_536;
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

    fn target(&self) -> Target {
        match self.destination_amount {
            Some(amount) => Target::Destination {
                amount,
                source_max: self.source_amount.unwrap_or(u64::MAX),
            },
            None => Target::Source(self.source_amount.unwrap_or(0)),
        }
    }

    fn slippage(&self) -> Option<Slippage> {
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
fn slippage_ratio(text: &str) -> Option<Ratio> {
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

    fn write(&self) -> Box<[u8]> {
        let text = serde_json::to_vec(self).expect("texts and integers can be written");
        text.into()
    }

    /// The payment has ended like this.
    fn end(&mut self, end: &PaymentEnd, now_ms: u64) {
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
fn public_id(number: PaymentNumber, random: u64) -> Uuid {
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
pub(super) fn interrupt(open: &OpenPayment, now_ms: u64) -> Option<Mutation> {
    let mut record = Record::read(&open.record)?;
    record.interrupt(open.sent, now_ms);
    Some(Mutation::EndPayment {
        account: open.account,
        number: open.number,
        record: record.write(),
    })
}

/// What a quote tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quoted {
    pub from: Box<str>,
    pub to: Box<str>,
    pub source_asset: AssetRecord,
    pub destination_asset: AssetRecord,
    pub quote: Quote,
}

/// Why nothing was begun, or why nothing can be said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// This node does not ask such a receiver.
    NotAllowed(&'static str),
    Unreachable(Box<str>),
    /// The key was given for another request.
    KeyConflict,
    AccountNotFound,
    /// Too many payments at a time.
    Busy,
    NotReady(Box<str>),
    /// It has ended, and that could not be stored: the next start decides what is remembered.
    Unstored(Box<Record>),
    /// Of a quote: as a payment would have failed.
    Failed(Box<Record>),
    Internal,
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Failed(_) | StoreError::Stopped => Self::NotReady(error.to_string().into()),
            StoreError::TooManyPayments { .. } => Self::Busy,
            error => {
                tracing::error!(target: "payments", %error, "a payment was refused by the store");
                Self::Internal
            }
        }
    }
}

/// Told how a payment ended: with a record that is stored, unless it was refused.
pub type Done = Box<dyn FnOnce(Result<Arc<Record>, Refused>) + Send>;
/// Told what a payment would do.
pub type QuoteDone = Box<dyn FnOnce(Result<Quoted, Refused>) + Send>;

/// Whoever knows where a receiver is paid.
pub trait Directions: Send + Sync {
    /// Asks an [`endpoint`]. May take a quarter of a minute.
    fn ask(&self, endpoint: &Url) -> Result<Destination, QueryError>;
}

impl Directions for SpspClient {
    fn ask(&self, endpoint: &Url) -> Result<Destination, QueryError> {
        self.query(endpoint)
    }
}

/// A key as the store has it: a digest of account and key.
type Key = [u8; PAYMENT_KEY_BYTES];

fn key_digest(account: &Account, key: &str) -> Key {
    let text = [&account.uuid[..], key.as_bytes()].concat();
    let digest = digest(&SHA256, &text);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// All payments of a node. Clones are the same.
#[derive(Clone)]
pub struct Payments {
    shared: Arc<Shared>,
    questions: Sender<Question>,
}

struct Shared {
    control: Arc<Control>,
    directions: Box<dyn Directions>,
    open: Mutex<Open>,
    /// Payments that may be open in the store.
    begun: AtomicUsize,
    last_number: Mutex<Option<PaymentNumber>>,
}

#[derive(Default)]
struct Open {
    count: usize,
    by_key: HashMap<Key, InProgress>,
}

/// A payment with a key.
struct InProgress {
    request: Request,
    /// Others who have asked for the same.
    waiting: Vec<Done>,
}

/// One of [`OPEN_MAX`], given back when it goes.
struct Place {
    shared: Arc<Shared>,
    key: Option<Key>,
}

impl Place {
    /// The payment is over: tells everybody who waits for it.
    fn settle(mut self, done: Done, result: &Result<Arc<Record>, Refused>) {
        let waiting = self.leave();
        done(result.clone());
        for done in waiting {
            done(result.clone());
        }
    }

    fn leave(&mut self) -> Vec<Done> {
        let Some(key) = self.key.take() else {
            return Vec::new();
        };
        let in_progress = self.shared.open().by_key.remove(&key);
        in_progress.map(|in_progress| in_progress.waiting).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Those who still wait are dropped outside of the lock.
        let _waiting = self.leave();
        self.shared.open().count -= 1;
    }
}

/// Where is this receiver paid?
struct Question {
    place: Place,
    account: Arc<Account>,
    request: Request,
    endpoint: Url,
    purpose: Purpose,
}

enum Purpose {
    Payment(Done),
    Quote(QuoteDone),
}

/// What the thread that keeps the book is given.
enum Booking {
    Begin(Box<Begin>),
    End(Box<End>),
    /// Has nothing to be stored; is told here because a shard does not write JSON.
    Quoted(Box<QuoteEnd>),
}

struct Begin {
    place: Place,
    done: Done,
    account: AccountId,
    /// Given by the book.
    number: Option<PaymentNumber>,
    forget_before: Option<PaymentNumber>,
    record: Record,
    destination: Destination,
    /// The way back, for the end.
    bookings: Sender<Booking>,
    begun: Begun,
}

struct End {
    place: Place,
    done: Done,
    account: AccountId,
    number: PaymentNumber,
    record: Record,
    begun: Begun,
}

struct QuoteEnd {
    _place: Place,
    done: QuoteDone,
    record: Record,
    end: PaymentEnd,
}

/// A payment that the store may have open, as long as this lives.
struct Begun(Arc<Shared>);

impl Begun {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.begun.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Payments {
    /// Starts the threads. They end when this and all payments are gone.
    pub fn start(control: Arc<Control>, directions: Box<dyn Directions>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            last_number: Mutex::new(control.last_payment),
            control,
            directions,
            open: Mutex::default(),
            begun: AtomicUsize::new(0),
        });
        let (questions, asked) = bounded(QUESTIONS_WAITING_MAX);
        // Not longer than `OPEN_MAX`: whatever is in it has a place. A shard that hands over an end must not wait.
        let (bookings, booked) = unbounded();
        for number in 0..ASKING_THREADS {
            let (shared, asked, bookings) = (Arc::clone(&shared), Receiver::clone(&asked), bookings.clone());
            thread::Builder::new()
                .name(format!("clearway-pay-{number}"))
                .spawn(move || shared.ask_all(&asked, &bookings))?;
        }
        let mut book = Bookkeeping {
            shared: Arc::clone(&shared),
            forgot_at_ms: HashMap::new(),
        };
        thread::Builder::new()
            .name("clearway-pay-book".to_owned())
            .spawn(move || book.keep(&booked))?;
        Ok(Self { shared, questions })
    }

    /// Makes a payment from `account`, at most once for each `key`. `done` is told on another thread, or on this one
    /// before this returns.
    pub fn pay(&self, account: &Arc<Account>, request: Request, endpoint: Url, key: Option<&str>, done: Done) {
        let key = key.map(|key| key_digest(account, key));
        let place = {
            let mut open = self.shared.open();
            if let Some(key) = key {
                if let Some(in_progress) = open.by_key.get_mut(&key) {
                    if in_progress.request == request {
                        in_progress.waiting.push(done);
                        return;
                    }
                    drop(open);
                    return done(Err(Refused::KeyConflict));
                }
                // Under the lock: what has ended meanwhile is stored before it leaves the table.
                match self.shared.find(account.id, &key) {
                    Ok(None) => {}
                    found => {
                        drop(open);
                        return done(found.and_then(|found| answer_again(found, &request)));
                    }
                }
            }
            match self.shared.admit(&mut open) {
                Ok(()) => {}
                Err(refused) => {
                    drop(open);
                    return done(Err(refused));
                }
            }
            if let Some(key) = key {
                let in_progress = InProgress {
                    request: request.clone(),
                    waiting: Vec::new(),
                };
                open.by_key.insert(key, in_progress);
            }
            Place {
                shared: Arc::clone(&self.shared),
                key,
            }
        };
        self.ask(Question {
            place,
            account: Arc::clone(account),
            request,
            endpoint,
            purpose: Purpose::Payment(done),
        });
    }

    /// Finds out what a payment would do. Nothing is moved and nothing is stored.
    pub fn quote(&self, account: &Arc<Account>, request: Request, endpoint: Url, done: QuoteDone) {
        let admitted = self.shared.admit(&mut self.shared.open());
        if let Err(refused) = admitted {
            return done(Err(refused));
        }
        let place = Place {
            shared: Arc::clone(&self.shared),
            key: None,
        };
        self.ask(Question {
            place,
            account: Arc::clone(account),
            request,
            endpoint,
            purpose: Purpose::Quote(done),
        });
    }

    fn ask(&self, question: Question) {
        match self.questions.try_send(question) {
            Ok(()) => {}
            Err(TrySendError::Full(question)) => question.refuse(Refused::Busy),
            Err(TrySendError::Disconnected(question)) => question.refuse(Refused::Internal),
        }
    }

    /// Payments that the store may have open: how many a stop has to wait for.
    pub fn begun(&self) -> usize {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// What is remembered of the account's payments, the newest first, at most `limit` of those before `before`.
    pub fn list(&self, account: AccountId, before: Option<PaymentNumber>, limit: usize) -> Result<Page, ControlError> {
        // One more than asked for tells whether there is a next page.
        let mut stored = self.shared.control.bookkeeper.payments(account, before, limit + 1)?;
        let has_more = stored.len() > limit;
        stored.truncate(limit);
        let last = stored.last().filter(|_| has_more);
        Ok(Page {
            next: last.map(|last| Record::read(&last.record).map_or_else(|| public_id(last.number, 0), |last| last.id)),
            records: stored.iter().filter_map(read_stored).collect(),
        })
    }
}

/// A part of the list of payments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    pub records: Vec<Record>,
    /// The id before which the next page begins, if there is one.
    pub next: Option<Uuid>,
}

/// A record that cannot be read is the operator's to see to, and takes no other out of a list.
fn read_stored(stored: &StoredPayment) -> Option<Record> {
    let record = Record::read(&stored.record);
    if record.is_none() {
        tracing::error!(target: "payments", number = stored.number.get(), "a stored payment cannot be read");
    }
    record
}

/// What a payment that is remembered answers whoever asks for it again.
fn answer_again(found: Option<Record>, request: &Request) -> Result<Arc<Record>, Refused> {
    let record = found.ok_or(Refused::Internal)?;
    if record.request != *request {
        return Err(Refused::KeyConflict);
    }
    match record.state {
        State::Sending => Err(Refused::Unstored(Box::new(record))),
        _ => Ok(Arc::new(record)),
    }
}

impl Question {
    fn refuse(self, refused: Refused) {
        match self.purpose {
            Purpose::Payment(done) => self.place.settle(done, &Err(refused)),
            Purpose::Quote(done) => done(Err(refused)),
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        // A count and a table, each changed in one step.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, open: &mut Open) -> Result<(), Refused> {
        if let Some(reason) = self.control.not_ready() {
            return Err(Refused::NotReady(reason.into()));
        }
        if open.count >= OPEN_MAX {
            return Err(Refused::Busy);
        }
        open.count += 1;
        Ok(())
    }

    fn find(&self, account: AccountId, key: &Key) -> Result<Option<Record>, Refused> {
        match self.control.bookkeeper.payment_by_key(account, key)? {
            None => Ok(None),
            Some(stored) => read_stored(&stored).map(Some).ok_or(Refused::Internal),
        }
    }

    fn next_number(&self, now_ms: u64) -> PaymentNumber {
        let mut last = self.last_number.lock().unwrap_or_else(PoisonError::into_inner);
        let next = PaymentNumber::next(*last, now_ms);
        *last = Some(next);
        next
    }

    fn account(&self, id: AccountId) -> Option<Arc<Account>> {
        self.control.read().directory.get(id).cloned()
    }

    /// The life of a thread that asks.
    fn ask_all(self: &Arc<Self>, questions: &Receiver<Question>, bookings: &Sender<Booking>) {
        for question in questions {
            let destination = match self.directions.ask(&question.endpoint) {
                Ok(destination) => destination,
                Err(QueryError::NotAllowed(rule)) => {
                    question.refuse(Refused::NotAllowed(rule));
                    continue;
                }
                Err(QueryError::Unreachable(reason)) => {
                    question.refuse(Refused::Unreachable(reason.into()));
                    continue;
                }
            };
            // It may have been changed or deleted meanwhile.
            let Some(account) = self.account(question.account.id) else {
                question.refuse(Refused::AccountNotFound);
                continue;
            };
            let now_ms = clock::wall().as_millis();
            let mut record = Record::new(&account, question.request, now_ms);
            record.to = Some(destination.address.clone());
            match question.purpose {
                Purpose::Payment(done) => {
                    let begin = Begin {
                        place: question.place,
                        done,
                        account: account.id,
                        number: None,
                        forget_before: None,
                        record,
                        destination,
                        bookings: bookings.clone(),
                        begun: Begun::new(self),
                    };
                    // An error: the program ends, and whoever asked is told so when this is dropped.
                    let _ = bookings.send(Booking::Begin(Box::new(begin)));
                }
                Purpose::Quote(done) => {
                    let number = self.next_number(now_ms);
                    let Some(order) = order(account.id, number, &record.request, destination, true) else {
                        done(Err(Refused::Internal));
                        continue;
                    };
                    let (place, bookings) = (question.place, bookings.clone());
                    let told = move |end| {
                        let quoted = QuoteEnd {
                            _place: place,
                            done,
                            record,
                            end,
                        };
                        let _ = bookings.send(Booking::Quoted(Box::new(quoted)));
                    };
                    self.control.shards.pay(order, Box::new(told));
                }
            }
        }
    }
}

/// `None`: the slippage is none, which was checked when it was read.
fn order(
    account: AccountId,
    number: PaymentNumber,
    request: &Request,
    destination: Destination,
    is_quote: bool,
) -> Option<PaymentOrder> {
    Some(PaymentOrder {
        number,
        account,
        destination: destination.address,
        shared_secret: destination.shared_secret,
        target: request.target(),
        slippage: request.slippage()?,
        is_quote,
        timeout_ms: request.timeout_ms,
    })
}

impl QuoteEnd {
    fn tell(mut self) {
        let quote = match (&self.end.outcome.result, self.end.outcome.quote) {
            (Ok(()), Some(quote)) => quote,
            _ => {
                self.record.end(&self.end, clock::wall().as_millis());
                return (self.done)(Err(Refused::Failed(Box::new(self.record))));
            }
        };
        let Some(asset) = self.end.outcome.asset else {
            return (self.done)(Err(Refused::Internal));
        };
        (self.done)(Ok(Quoted {
            from: self.record.from,
            to: self.record.to.unwrap_or_default(),
            source_asset: self.record.source_asset,
            destination_asset: AssetRecord {
                code: asset.code,
                scale: asset.scale,
            },
            quote,
        }));
    }
}

/// The thread that keeps the book of payments.
struct Bookkeeping {
    shared: Arc<Shared>,
    /// When each account's old payments were last forgotten.
    forgot_at_ms: HashMap<AccountId, u64>,
}

impl Bookkeeping {
    fn keep(&mut self, bookings: &Receiver<Booking>) {
        while let Ok(first) = bookings.recv() {
            let more = bookings.try_iter().take(BOOKINGS_PER_COMMIT - 1);
            let batch: Vec<Booking> = std::iter::once(first).chain(more).collect();
            let batch: Vec<Booking> = batch.into_iter().filter_map(|booking| self.prepare(booking)).collect();
            self.commit(batch);
        }
    }

    /// Gives what begins its number, and tells what has nothing to be stored.
    fn prepare(&mut self, booking: Booking) -> Option<Booking> {
        match booking {
            Booking::Quoted(quoted) => {
                quoted.tell();
                None
            }
            Booking::End(_) => Some(booking),
            Booking::Begin(mut begin) => {
                let refused = match self.shared.control.not_ready() {
                    Some(reason) => Some(Refused::NotReady(reason.into())),
                    None if self.shared.account(begin.account).is_none() => Some(Refused::AccountNotFound),
                    None => None,
                };
                if let Some(refused) = refused {
                    begin.refuse(refused);
                    return None;
                }
                let mut random = [0; 8];
                if let Err(error) = getrandom::fill(&mut random) {
                    tracing::error!(target: "payments", %error, "the system gives no random bytes");
                    begin.refuse(Refused::Internal);
                    return None;
                }
                let now_ms = clock::wall().as_millis();
                let number = self.shared.next_number(now_ms);
                begin.number = Some(number);
                begin.record.id = public_id(number, u64::from_be_bytes(random));
                begin.record.began_at_ms = now_ms;
                begin.forget_before = self.must_forget(begin.account, now_ms);
                Some(Booking::Begin(begin))
            }
        }
    }

    /// Once a day for each account that pays.
    fn must_forget(&mut self, account: AccountId, now_ms: u64) -> Option<PaymentNumber> {
        let last = self.forgot_at_ms.get(&account);
        if last.is_some_and(|last| now_ms.saturating_sub(*last) < DAY_MS) {
            return None;
        }
        if self.forgot_at_ms.len() >= FORGOT_MAX {
            // Forgetting once more than needed does no harm.
            self.forgot_at_ms.clear();
        }
        self.forgot_at_ms.insert(account, now_ms);
        PaymentNumber::at(now_ms.saturating_sub(REMEMBERED_MS))
    }

    /// Stores all of this at once; if that is refused, each for itself, so that one does not harm the others.
    fn commit(&self, batch: Vec<Booking>) {
        let mutations: Vec<Mutation> = batch.iter().flat_map(Booking::mutations).collect();
        if mutations.is_empty() {
            return;
        }
        let bookkeeper = &self.shared.control.bookkeeper;
        if bookkeeper.apply(mutations).is_ok() {
            return batch.into_iter().for_each(|booking| self.stored(booking));
        }
        for mut booking in batch {
            // An open payment cannot be forgotten, however old; that must not keep its account from paying.
            if let Booking::Begin(begin) = &mut booking {
                begin.forget_before = None;
            }
            match bookkeeper.apply(booking.mutations()) {
                Ok(_) => self.stored(booking),
                Err(error) => booking.refuse(error),
            }
        }
    }

    /// It is durable: the payment may begin to send, its end may be told.
    fn stored(&self, booking: Booking) {
        match booking {
            Booking::Begin(begin) => begin.send(&self.shared),
            Booking::End(end) => {
                let End {
                    place,
                    done,
                    record,
                    begun,
                    ..
                } = *end;
                tracing::debug!(
                    target: "payments", id = %record.id, state = ?record.state, sent = record.sent,
                    delivered = record.delivered, packets = record.packets, "a payment has ended"
                );
                place.settle(done, &Ok(Arc::new(record)));
                drop(begun);
            }
            Booking::Quoted(quoted) => quoted.tell(),
        }
    }
}

impl Booking {
    /// What is to be stored.
    fn mutations(&self) -> Vec<Mutation> {
        match self {
            Self::Begin(begin) => {
                let Some(number) = begin.number else { return Vec::new() };
                let forget = begin.forget_before.map(|before| Mutation::ForgetPayments {
                    account: begin.account,
                    before,
                });
                let begins = Mutation::BeginPayment {
                    account: begin.account,
                    number,
                    record: begin.record.write(),
                    key: begin.place.key,
                };
                forget.into_iter().chain([begins]).collect()
            }
            Self::End(end) => vec![Mutation::EndPayment {
                account: end.account,
                number: end.number,
                record: end.record.write(),
            }],
            Self::Quoted(_) => Vec::new(),
        }
    }

    fn refuse(self, error: StoreError) {
        match self {
            Self::Begin(begin) => begin.refuse(error.into()),
            Self::End(end) => {
                let End {
                    place,
                    done,
                    record,
                    begun,
                    ..
                } = *end;
                tracing::error!(target: "payments", id = %record.id, %error, "the end of a payment is not stored");
                place.settle(done, &Err(Refused::Unstored(Box::new(record))));
                drop(begun);
            }
            Self::Quoted(quoted) => quoted.tell(),
        }
    }
}

impl Begin {
    fn refuse(self, refused: Refused) {
        self.place.settle(self.done, &Err(refused));
    }

    /// Hands the payment to the shard of its account, which says how it ended.
    fn send(self, shared: &Shared) {
        let Self {
            place,
            done,
            account,
            number,
            mut record,
            destination,
            bookings,
            begun,
            ..
        } = self;
        let order =
            number.and_then(|number| Some((number, order(account, number, &record.request, destination, false)?)));
        let Some((number, order)) = order else {
            return place.settle(done, &Err(Refused::Internal));
        };
        let ended = move |end: PaymentEnd| {
            record.end(&end, clock::wall().as_millis());
            let end = End {
                place,
                done,
                account,
                number,
                record,
                begun,
            };
            // An error: the program ends, and the book says what was sent.
            let _ = bookings.send(Booking::End(Box::new(end)));
        };
        shared.control.shards.pay(order, Box::new(ended));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam::channel::Receiver;

    use super::super::Readiness;
    use super::super::edit::AccountEdit;
    use super::super::fake::{FAKE_SECRET, FakeDirections, FakeShards, PaymentDone, payment_end};
    use super::*;
    use crate::ledger::Transfer;
    use crate::store::{
        Batch, Durability, Fault, MemoryStore, OpenError, Reader, Store, TransferSender, Writer, WriterHandle, recover,
    };
    use crate::wire::timestamp::Timestamp;

    /// Nothing here is measured by the clock; this only ends a test that would hang.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A node on the real writer over a disk in memory; its shards hand every payment to the test.
    struct Node {
        control: Arc<Control>,
        payments: Payments,
        writer: WriterHandle,
        shard: TransferSender,
        started: Receiver<(PaymentOrder, PaymentDone)>,
        alice: Arc<Account>,
    }

    impl Node {
        fn start(disk: &MemoryStore) -> Self {
            Self::start_on(disk.clone())
        }

        fn start_on(mut store: impl Store + 'static) -> Self {
            let book = recover(&mut store).expect("the book adds up");
            let is_new = book.accounts.is_empty();
            let flush_interval = Duration::from_millis(5);
            let (writer, mut shards) =
                Writer::start(Box::new(store), &book, 1, Durability::Commit, flush_interval).unwrap();
            let fake = Arc::new(FakeShards::default());
            let (starts, started) = unbounded();
            fake.set_payer(move |order, done| starts.send((order, done)).unwrap());
            let control = Control::start("example.hub".into(), book, Arc::new(writer.clone()), fake).unwrap();
            let control = Arc::new(control);
            control.set_readiness(Readiness::Ready);
            let directions = Box::new(Arc::new(FakeDirections::default()));
            let payments = Payments::start(Arc::clone(&control), directions).unwrap();
            if is_new {
                for username in ["alice", "bob"] {
                    let edit = AccountEdit {
                        asset_code: Some("ABC".into()),
                        asset_scale: Some(2),
                        ..AccountEdit::default()
                    };
                    control.create_account(Timestamp::default(), username, edit).unwrap();
                }
            }
            Self {
                alice: control.find_account("alice").unwrap(),
                payments,
                writer,
                shard: shards.remove(0),
                started,
                control,
            }
        }

        fn pay(&self, amount: u64, key: Option<&str>) -> Receiver<Result<Arc<Record>, Refused>> {
            let (sender, ended) = bounded(1);
            let done = Box::new(move |result| sender.send(result).unwrap());
            let endpoint = endpoint("$node.example/bob").unwrap();
            self.payments.pay(&self.alice, request(amount), endpoint, key, done);
            ended
        }

        /// A packet of a payment, durable when this returns.
        fn transfer(&mut self, number: PaymentNumber, amount: u64) {
            self.shard.push(Transfer {
                from: self.alice.id,
                to: self.control.find_account("bob").unwrap().id,
                incoming_amount: amount,
                outgoing_amount: amount,
                payment: Some(number),
            });
            self.shard.wake();
            assert!(self.control.audit().unwrap().adds_up());
        }

        fn records(&self) -> Vec<Record> {
            self.payments.list(self.alice.id, None, 1_000).unwrap().records
        }
    }

    /// A disk that takes its time for each commit.
    struct Slow(MemoryStore);

    impl Store for Slow {
        fn load(&mut self) -> Result<crate::store::Book, OpenError> {
            self.0.load()
        }

        fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
            thread::sleep(Duration::from_millis(5));
            self.0.commit(batch)
        }

        fn reader(&self) -> Arc<dyn Reader> {
            self.0.reader()
        }
    }

    fn request(amount: u64) -> Request {
        Request {
            receiver: "$node.example/bob".into(),
            source_amount: Some(amount),
            destination_amount: None,
            slippage: SLIPPAGE_DEFAULT.into(),
            timeout_ms: None,
        }
    }

    #[test]
    fn begun_before_it_sends_and_ended_before_it_is_told() {
        let disk = MemoryStore::default();
        let mut node = Node::start(&disk);
        let ended = node.pay(100, None);
        let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
        let open = recover(&mut disk.clone()).unwrap().open_payments;
        assert_eq!(open.len(), 1, "it is in the store when the shard hears of it");
        let text = String::from_utf8_lossy(&open[0].record).into_owned();
        assert!(!text.contains(std::str::from_utf8(&FAKE_SECRET).unwrap()), "{text}");
        assert_eq!((open[0].number, order.target), (order.number, Target::Source(100)));
        assert_eq!(node.payments.begun(), 1);
        node.transfer(order.number, 100);
        assert!(ended.is_empty());
        done(payment_end(Ok(()), 100, 100));
        let record = ended.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(
            (record.state, record.sent, record.delivered),
            (State::Completed, 100, Some(100))
        );
        assert_eq!(recover(&mut disk.clone()).unwrap().open_payments, []);
        assert_eq!(node.records(), [(*record).clone()]);
        assert_eq!(number_of(&record.id), Some(order.number));
    }

    #[test]
    fn what_a_crash_leaves_open_is_ended_with_what_the_book_says() {
        let disk = MemoryStore::default();
        let mut node = Node::start(&disk);
        let waits = node.pay(100, Some("k"));
        let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
        node.transfer(order.number, 30);
        node.transfer(order.number, 11);
        let unsent = node.pay(7, None);
        let (_, unsent_done) = node.started.recv_timeout(PATIENCE).unwrap();

        let again = Node::start(&disk.restart());
        let records = again.records();
        let seen: Vec<_> = records
            .iter()
            .map(|record| (record.state, record.sent, record.delivered))
            .collect();
        assert_eq!(
            seen,
            [(State::Interrupted, 0, Some(0)), (State::Interrupted, 41, None)],
            "the newest first"
        );
        assert_eq!(again.writer.booked(again.alice.id), Some(-41));
        // The key finds it, and nothing is paid again.
        let found = again.pay(100, Some("k")).recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(*found, records[1]);
        let detail = found.detail.as_deref().unwrap();
        assert!(
            detail.contains("41 of 100 units of ABC at scale 2 were sent"),
            "{detail}"
        );
        assert_eq!(
            again.pay(99, Some("k")).recv_timeout(PATIENCE).unwrap(),
            Err(Refused::KeyConflict)
        );
        assert!(again.started.is_empty());
        // The next payment has a higher number.
        let _next = again.pay(5, None);
        let (next, _) = again.started.recv_timeout(PATIENCE).unwrap();
        assert!(next.number > order.number);
        drop((waits, done, unsent, unsent_done));
    }

    #[test]
    fn an_end_that_cannot_be_stored_is_not_told_as_one() {
        for (fault, state) in [(Fault::Lost, State::Interrupted), (Fault::KeptUnseen, State::Completed)] {
            let disk = MemoryStore::default();
            let mut node = Node::start(&disk);
            let ended = node.pay(100, Some("k"));
            let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
            node.transfer(order.number, 100);
            disk.crash_after(0, fault);
            done(payment_end(Ok(()), 100, 100));
            let Err(Refused::Unstored(record)) = ended.recv_timeout(PATIENCE).unwrap() else {
                panic!("nobody knows what the next start will say");
            };
            assert_eq!(record.sent, 100);
            let again = Node::start(&disk.restart());
            let found = again.pay(100, Some("k")).recv_timeout(PATIENCE).unwrap().unwrap();
            assert_eq!((found.state, found.sent), (state, 100));
            assert!(again.started.is_empty());
        }
    }

    #[test]
    fn many_at_once_take_few_commits() {
        let node = Node::start_on(Slow(MemoryStore::default()));
        let before = node.writer.stats().commits;
        let ends: Vec<_> = (1..=1_000).map(|amount| node.pay(amount, None)).collect();
        let mut numbers = Vec::new();
        for _ in 0..1_000 {
            let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
            numbers.push(order.number);
            done(payment_end(Ok(()), 0, 0));
        }
        for ended in ends {
            assert_eq!(ended.recv_timeout(PATIENCE).unwrap().unwrap().state, State::Completed);
        }
        assert!(numbers.is_sorted_by(|a, b| a < b), "numbers ascend");
        assert_eq!(node.records().len(), 1_000);
        let commits = node.writer.stats().commits - before;
        assert!(commits < 200, "{commits} commits for 1000 payments");
    }

    #[test]
    fn places_are_given_back() {
        let disk = MemoryStore::default();
        let node = Node::start(&disk);
        let is_empty = || {
            let open = node.payments.shared.open();
            (open.count, open.by_key.len()) == (0, 0) && node.payments.begun() == 0
        };
        let ended = node.pay(1, Some("k"));
        let waits = node.pay(1, Some("k"));
        let (_, done) = node.started.recv_timeout(PATIENCE).unwrap();
        assert_eq!(node.payments.begun(), 1);
        // The shard has gone, and nobody will say how it ended; those who wait are not left waiting.
        drop(done);
        assert!(ended.recv().is_err() && waits.recv().is_err());
        assert!(is_empty());
        // As many as there may be, and one more.
        node.payments.shared.open().count = OPEN_MAX;
        assert_eq!(node.pay(2, None).recv_timeout(PATIENCE).unwrap(), Err(Refused::Busy));
        assert_eq!(
            node.pay(2, Some("m")).recv_timeout(PATIENCE).unwrap(),
            Err(Refused::Busy)
        );
        node.payments.shared.open().count = 0;
        assert!(is_empty());
    }

    #[test]
    fn one_that_cannot_begin_does_not_harm_the_others() {
        let disk = MemoryStore::default();
        let node = Node::start(&disk);
        let kept = node.pay(1, None);
        let (_, done) = node.started.recv_timeout(PATIENCE).unwrap();
        // Deleting waits for the payment; then whoever still knows the account is told that it is gone.
        let control = Arc::clone(&node.control);
        let deletes = thread::spawn(move || control.delete_account("alice", false));
        done(payment_end(Ok(()), 0, 0));
        assert_eq!(kept.recv_timeout(PATIENCE).unwrap().unwrap().state, State::Completed);
        deletes.join().unwrap().unwrap();
        assert_eq!(
            node.pay(2, None).recv_timeout(PATIENCE).unwrap(),
            Err(Refused::AccountNotFound)
        );
        assert_eq!(node.payments.shared.open().count, 0);
    }

    #[test]
    fn ids_hold_numbers() {
        let max = PaymentNumber::at(u64::MAX).unwrap();
        for number in [
            1,
            2,
            1 << 20,
            (1 << 20) - 1,
            1_790_000_000_000 << 20 | 0xa_bcde,
            max.get(),
        ] {
            let number = PaymentNumber::new(number).unwrap();
            for random in [0, u64::MAX, 0x0123_4567_89ab_cdef] {
                let id = public_id(number, random);
                assert_eq!((id.get_version_num(), number_of(&id)), (7, Some(number)), "{id}");
            }
        }
        assert_eq!(number_of(&Uuid::nil()), None);
        assert_eq!(number_of(&Uuid::new_v4()), None);
        assert_eq!(
            number_of(&"ffffffff-ffff-7fff-bfff-ffffffffffff".parse().unwrap()),
            None
        );
    }

    #[test]
    fn slippages() {
        for (text, expected) in [
            ("0", Some("0")),
            ("0.0", Some("0")),
            ("0.015", Some("0.015")),
            ("1.50e-2", Some("0.015")),
            ("0.9999999999999999999", Some("0.9999999999999999999")),
            ("0.99999999999999999999", None),
            ("1.5e-18", Some("1.5e-18")),
            ("0.0000000000000000001", Some("1e-19")),
            ("1e-20", None),
            ("1", None),
            ("-0.1", None),
            ("1.5", None),
            ("NaN", None),
            ("", None),
        ] {
            let read = read_slippage(text);
            assert_eq!(read.as_deref(), expected, "{text}");
            if let Some(read) = read {
                let request = Request {
                    slippage: read,
                    ..request(1)
                };
                assert!(request.slippage().is_some(), "{text}");
            }
        }
        assert_eq!(slippage_ratio("0.015"), Ratio::new(15, 1_000));
    }
}
