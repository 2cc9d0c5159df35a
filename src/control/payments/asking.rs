//! Where a receiver is paid: found out before a payment is begun.
//!
//! What is known here already is answered by whoever asks for the payment; for everything else there are threads that may
//! wait. Both go on the same way.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use url::Url;

use crate::client::spsp::{Destination, QueryError, SpspClient};
use crate::ledger::account::{Account, AccountId};
use crate::ledger::payment::PaymentNumber;
use crate::shard::clock;
use crate::shard::control::PaymentOrder;

use super::book::{Begin, Begun, Booking, QuoteEnd};
use super::record::{Record, Request};
use super::{Done, Place, QuoteDone, Refused, Shared};

/// Whoever knows where a receiver is paid.
pub trait Directions: Send + Sync {
    /// What [`Self::ask`] would say, if that is known without a wait. `None`: ask.
    fn known(&self, endpoint: &Url) -> Option<Result<Destination, QueryError>>;

    /// Asks an [`endpoint`](super::endpoint). May take a quarter of a minute.
    fn ask(&self, endpoint: &Url) -> Result<Destination, QueryError>;
}

impl Directions for SpspClient {
    fn known(&self, endpoint: &Url) -> Option<Result<Destination, QueryError>> {
        self.query_own(endpoint)
    }

    fn ask(&self, endpoint: &Url) -> Result<Destination, QueryError> {
        self.query(endpoint)
    }
}

/// Where is this receiver paid?
pub struct Question {
    pub place: Place,
    pub account: Arc<Account>,
    pub request: Request,
    pub endpoint: Url,
    pub purpose: Purpose,
}

pub enum Purpose {
    Payment(Done),
    Quote(QuoteDone),
}

impl Question {
    pub fn refuse(self, refused: Refused) {
        match self.purpose {
            Purpose::Payment(done) => self.place.settle(done, &Err(refused)),
            Purpose::Quote(done) => done(Err(refused)),
        }
    }
}

/// The life of a thread that asks.
pub fn ask_all(shared: &Arc<Shared>, questions: &Receiver<Question>, bookings: &Sender<Booking>) {
    for question in questions {
        let found = shared.directions.ask(&question.endpoint);
        go_on(shared, question, found, bookings);
    }
}

/// It is known where to pay, or that nobody knows: begins the payment, or the quote. Does not wait.
pub fn go_on(
    shared: &Arc<Shared>,
    question: Question,
    found: Result<Destination, QueryError>,
    bookings: &Sender<Booking>,
) {
    let destination = match found {
        Ok(destination) => destination,
        Err(QueryError::NotAllowed(rule)) => return question.refuse(Refused::NotAllowed(rule)),
        Err(QueryError::Unreachable(reason)) => return question.refuse(Refused::Unreachable(reason.into())),
    };
    // It may have been changed or deleted meanwhile.
    let Some(account) = shared.account(question.account.id) else {
        return question.refuse(Refused::AccountNotFound);
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
                begun: Begun::new(shared),
            };
            // An error: the program ends, and whoever asked is told so when this is dropped.
            let _ = bookings.send(Booking::Begin(Box::new(begin)));
        }
        Purpose::Quote(done) => {
            let number = shared.next_number(now_ms);
            let Some(order) = order(account.id, number, &record.request, destination, true) else {
                return done(Err(Refused::Internal));
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
            shared.control.shards.pay(order, Box::new(told));
        }
    }
}

/// `None`: the slippage is none, which was checked when it was read.
pub fn order(
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
