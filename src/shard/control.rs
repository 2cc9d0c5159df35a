//! How the cold half of the node talks to its shards: changes that every shard applies in one order, questions about
//! one account, and the HTTP requests that are not packets, which shards hand over and get answered.
//!
//! Owns the words of that conversation. The cold half (`control`, `api`) runs on threads of its own, because a shard
//! never waits; it sees the shards through [`Shards`] only, so it can be tested without any.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::account::{Account, AccountId};
use crate::pipeline::rates::Rates;

/// One step of a change of configuration. It is durable before it is published.
#[derive(Clone)]
pub enum Change {
    /// A new account, or a known one with new settings.
    Account(Arc<Account>),
    /// The account takes no new Prepares in either direction; its links stay until what is in flight has ended.
    CloseAccount(AccountId),
    /// The account works again: its deletion was refused.
    ReopenAccount(AccountId),
    /// The account is gone, its links are closed. Its routes were removed before.
    RemoveAccount(AccountId),
    /// Packets under this prefix go to this account.
    SetRoute {
        prefix: Arc<str>,
        next_hop: AccountId,
    },
    RemoveRoute {
        prefix: Arc<str>,
    },
    Rates(Arc<Rates>),
    /// The node's own address.
    NodeAddress(Arc<str>),
}

/// The state of an account on the shard that owns it, at one moment. Amounts in units of the account's asset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccountState {
    /// What fulfilled packets have left; positive is what we owe the holder.
    pub booked: i128,
    /// Its Prepares in flight, to be taken off `booked`.
    pub held: i128,
    /// Prepares in flight towards it.
    pub reserved: i128,
    /// Packets in flight in either direction, also those of amount 0.
    pub in_flight: u32,
    /// A BTP connection to or from the peer is up and authenticated.
    pub btp_connected: bool,
}

/// Why an account could not be closed in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("packets are still in flight")]
pub struct StillInFlight;

/// All shards, as the cold half sees them. Every call may block, for as long as a turn of a shard takes.
pub trait Shards: Send + Sync {
    /// Applies the changes on every shard, in this order; returns when all shards have. Calls must not overlap: the
    /// caller serializes changes.
    fn publish(&self, changes: &[Change]);

    /// The account as its shard sees it; `None` if the shard does not know it.
    fn account_state(&self, id: AccountId) -> Option<AccountState>;

    /// Waits until a closed account has nothing in flight and all its transfers are durable.
    fn wait_until_idle(&self, id: AccountId, at_most: Duration) -> Result<(), StillInFlight>;

    /// Waits until a BTP connection of the account is up; false if it is not by then.
    fn wait_for_btp(&self, id: AccountId, at_most: Duration) -> bool;
}

/// An HTTP request that is not a packet, whole and owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiRequest {
    /// As sent, for instance `GET`.
    pub method: String,
    /// The request target in origin form: path and query, still percent-encoded.
    pub target: String,
    /// Every header, name in lower case, values as sent.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub peer: IpAddr,
}

/// Its answer. The shard adds `Content-Length`, `Date` and `Connection`, and leaves the body out for HEAD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiResponse {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Close the connection after this answer.
    pub close: bool,
}

/// A request that a shard handed over, and the way back for its answer.
pub struct Pending {
    pub request: ApiRequest,
    pub respond: Box<dyn FnOnce(ApiResponse) + Send>,
}
