//! Who may follow what accounts receive (`/accounts/:username/payments/incoming`, `/payments/incoming`).
//!
//! Owns how many subscribers there may be. Whoever is let in gets a seat and goes back to the shard that has the
//! connection, which makes it a WebSocket ([`crate::shard::notices`]). The seat is free again when that is gone.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ledger::account::Account;
use crate::shard::control::{ApiRequest, ApiResponse, Body, Seat, Subscription, Topic};

use super::auth::Caller;
use super::problem::{Kind, Problem};

/// Subscribers of one account, or of all accounts: a notice is copied for each of them on the shards that packets need.
pub const OF_ONE_MAX: usize = 64;
/// Subscribers of a node. Each may have a few hundred KiB that wait for it.
pub const IN_ALL_MAX: usize = 4_096;

/// The seats of all subscribers.
#[derive(Default)]
pub struct Seats {
    taken: Arc<AtomicUsize>,
    /// Only API threads lock it: a shard that frees a seat has a counter at hand.
    by_topic: Mutex<HashMap<Topic, Arc<AtomicUsize>>>,
}

impl Seats {
    fn take(&self, topic: Topic) -> Result<[Seat; 2], Problem> {
        let in_all = Seat::take(&self.taken, IN_ALL_MAX).ok_or_else(|| {
            let detail = format!("the node has {IN_ALL_MAX} subscribers already");
            Problem::new(Kind::NotReady, detail).with_header("retry-after", "10")
        })?;
        // Counters are valid at every instant.
        let mut by_topic = self.by_topic.lock().unwrap_or_else(PoisonError::into_inner);
        if by_topic.len() > IN_ALL_MAX {
            // Those without a seat are held by nobody but the table.
            by_topic.retain(|_, taken| Arc::strong_count(taken) > 1);
        }
        let taken = by_topic.entry(topic).or_default();
        let of_one = Seat::take(taken, OF_ONE_MAX).ok_or_else(|| {
            let detail = format!("there are {OF_ONE_MAX} subscribers already");
            Problem::new(Kind::TooManyRequests, detail).with_header("retry-after", "10")
        })?;
        Ok([in_all, of_one])
    }
}

/// `GET /accounts/:username/payments/incoming`, by a caller who was let in to the account.
pub fn of_account(
    seats: &Seats,
    request: &ApiRequest,
    account: Arc<Account>,
    caller: Caller,
) -> Result<ApiResponse, Problem> {
    subscribe(seats, request, Some(account), caller == Caller::Holder)
}

/// `GET /payments/incoming`, by the operator.
pub fn of_all(seats: &Seats, request: &ApiRequest) -> Result<ApiResponse, Problem> {
    subscribe(seats, request, None, false)
}

fn subscribe(
    seats: &Seats,
    request: &ApiRequest,
    account: Option<Arc<Account>>,
    as_holder: bool,
) -> Result<ApiResponse, Problem> {
    let key = request.websocket_key.clone().ok_or_else(|| {
        Problem::new(Kind::UpgradeRequired, "this is a WebSocket (RFC 6455), version 13")
            .with_header("upgrade", "websocket")
            .with_header("connection", "Upgrade")
            .with_header("sec-websocket-version", "13")
    })?;
    let topic = account
        .as_ref()
        .map_or(Topic::All, |account| Topic::Account(account.id));
    let seats = seats.take(topic)?;
    Ok(ApiResponse {
        status: 101,
        headers: vec![],
        body: Body::WebSocket(Box::new(Subscription {
            account,
            as_holder,
            key,
            seats,
        })),
        close: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::account::AccountId;

    fn topic(number: u32) -> Topic {
        Topic::Account(AccountId::new(number))
    }

    #[test]
    fn seats_are_limited_and_come_back() {
        let seats = Seats::default();
        let mut of_one: Vec<_> = (0..OF_ONE_MAX).map(|_| seats.take(topic(0)).unwrap()).collect();
        let refused = seats.take(topic(0)).unwrap_err().into_response(Default::default());
        assert_eq!(refused.status, 429);
        // Another account's are its own; a refusal has taken none of all.
        let mut others: Vec<_> = (OF_ONE_MAX..IN_ALL_MAX)
            .map(|number| seats.take(topic(number as u32)).unwrap())
            .collect();
        let refused = seats.take(Topic::All).unwrap_err().into_response(Default::default());
        assert_eq!(refused.status, 503);
        of_one.pop();
        let again = seats.take(topic(0)).unwrap();
        assert!(seats.take(topic(0)).is_err());
        others.clear();
        of_one.push(again);
        assert!(seats.take(topic(0)).is_err(), "this account's seats are still taken");
        of_one.clear();
        seats.take(topic(0)).unwrap();
    }

    #[test]
    fn nothing_is_kept_of_accounts_without_subscribers() {
        let seats = Seats::default();
        for number in 0..3 * IN_ALL_MAX as u32 {
            drop(seats.take(topic(number)).unwrap());
        }
        assert!(seats.by_topic.lock().unwrap().len() <= IN_ALL_MAX + 1);
    }
}
