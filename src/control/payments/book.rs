//! The thread that keeps the book of payments: what begins and what ends is stored here, many at a time.
//!
//! Owns the order of payments (their numbers ascend) and the moment in which each may send, or be told. Always: a payment
//! is begun in the store before its shard hears of it, and ended there before anybody hears of its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Sender};

use crate::client::spsp::Destination;
use crate::ledger::account::AccountId;
use crate::ledger::payment::PaymentNumber;
use crate::shard::clock;
use crate::shard::control::PaymentEnd;
use crate::store::{Mutation, StoreError};

use super::asking::order;
use super::record::{AssetRecord, Record, public_id};
use super::{Done, Place, QuoteDone, Quoted, Refused, Shared};

/// What begins and ends in one commit. With their records, some hundred kilobytes.
const BOOKINGS_PER_COMMIT: usize = 256;
/// How long a payment is remembered.
const REMEMBERED_MS: u64 = 90 * DAY_MS;
const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// Accounts of which it is known that their old payments were forgotten today, at some 20 bytes each.
const FORGOT_MAX: usize = 65_536;

/// What the thread that keeps the book is given.
pub enum Booking {
    Begin(Box<Begin>),
    End(Box<End>),
    /// Has nothing to be stored; is told here because a shard does not write JSON.
    Quoted(Box<QuoteEnd>),
}

pub struct Begin {
    pub place: Place,
    pub done: Done,
    pub account: AccountId,
    /// Given by the book.
    pub number: Option<PaymentNumber>,
    pub forget_before: Option<PaymentNumber>,
    pub record: Record,
    pub destination: Destination,
    /// The way back, for the end.
    pub bookings: Sender<Booking>,
    pub begun: Begun,
}

pub struct End {
    place: Place,
    done: Done,
    account: AccountId,
    number: PaymentNumber,
    record: Record,
    begun: Begun,
}

pub struct QuoteEnd {
    pub _place: Place,
    pub done: QuoteDone,
    pub record: Record,
    pub end: PaymentEnd,
}

/// A payment that the store may have open, as long as this lives.
pub struct Begun(Arc<Shared>);

impl Begun {
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.begun.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::SeqCst);
    }
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
pub struct Bookkeeping {
    shared: Arc<Shared>,
    /// When each account's old payments were last forgotten.
    forgot_at_ms: HashMap<AccountId, u64>,
}

impl Bookkeeping {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            forgot_at_ms: HashMap::new(),
        }
    }

    /// The life of the thread.
    pub fn keep(&mut self, bookings: &Receiver<Booking>) {
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
