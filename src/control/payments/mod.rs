//! Payments of our holders: asked for, made, remembered.
//!
//! Owns the life of a payment around its packets: who may be paid is asked ([`crate::client::spsp`]), the payment is begun
//! in the store, the shard of its account makes it, its end is stored, and only then is it told. Owns the record that is
//! kept of it, and what asking twice means. Leaves the packets to [`crate::shard::payments`] and HTTP to `api`.
//!
//! # Threads
//! [`ASKING_THREADS`] ask receivers' servers, which may take their time; what is known without asking goes past them. One
//! keeps the book: what begins and ends while it waits for the disk goes into its next commit, so a thousand payments at
//! once take few syncs, and numbers ascend. No shard and no caller waits.
//!
//! # What always holds
//! - A payment is begun in the store before its first packet leaves, and ended there before anybody hears of its end.
//! - Payments that a key was given for are found by it as long as they are remembered: one key, one payment.
//! - A payment that the last process left open is ended at the next start, with what the book says that it has sent.
//! - A secret is in no record.

mod asking;
mod book;
mod record;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use ring::digest::{SHA256, digest};
use url::Url;
use uuid::Uuid;

use crate::ledger::account::{Account, AccountId};
use crate::ledger::payment::PaymentNumber;
use crate::store::{PAYMENT_KEY_BYTES, StoreError, StoredPayment};
use crate::stream::sender::Quote;

use super::{Control, ControlError};

use asking::{Purpose, Question};
use book::{Booking, Bookkeeping};
use record::public_id;

pub use crate::client::spsp::{InvalidReceiver, endpoint};
pub use asking::Directions;
pub(super) use record::interrupt;
pub use record::{AssetRecord, Reason, Record, Request, SLIPPAGE_DEFAULT, State, number_of, read_slippage};

/// Threads that ask where to pay. A server that does not answer holds one of them for a quarter of a minute at most.
pub const ASKING_THREADS: usize = 16;
/// Payments that may wait for one of these threads; more are told to come back.
const QUESTIONS_WAITING_MAX: usize = 4_096;
/// Payments and quotes between the question and the answer. A shard can make twice as many at a time.
const OPEN_MAX: usize = 8_192;

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
    bookings: Sender<Booking>,
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
                .spawn(move || asking::ask_all(&shared, &asked, &bookings))?;
        }
        let mut book = Bookkeeping::new(Arc::clone(&shared));
        thread::Builder::new()
            .name("clearway-pay-book".to_owned())
            .spawn(move || book.keep(&booked))?;
        Ok(Self {
            shared,
            questions,
            bookings,
        })
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
        if let Some(found) = self.shared.directions.known(&question.endpoint) {
            return asking::go_on(&self.shared, question, found, &self.bookings);
        }
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
        let mut stored = self
            .shared
            .control
            .bookkeeper
            .reader()?
            .payments(account, before, limit + 1)?;
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
        match self.control.bookkeeper.reader()?.payment_by_key(account, key)? {
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
}
