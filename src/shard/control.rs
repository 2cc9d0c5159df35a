//! How the cold half of the node talks to its shards: changes that every shard applies in one order, questions about
//! one account, the HTTP requests that are not packets, which shards hand over and get answered, and what neighbours ask
//! and are asked.
//!
//! Owns the words of that conversation. The cold half (`control`, `api`) runs on threads of its own, because a shard
//! never waits; it sees the shards through [`Shards`] only, so it can be tested without any.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::ledger::PaymentNumber;
use crate::ledger::account::{Account, AccountId, AssetId};
use crate::pipeline::rates::Rates;
use crate::routing::forwarding::Forwarding;
use crate::stream::secret::SharedSecret;
use crate::stream::sender::{Outcome, Slippage, Target};
use crate::wire::packet::ErrorCode;
use crate::wire::timestamp::Timestamp;

pub use super::neighbour_events::{NeighbourEvents, NeighbourNews, NeighbourWaker, neighbour_events};
pub use crate::link::http::PIECE_BYTES;
pub use crate::pipeline::settling::{SettleNow, SettleOrder};
/// Which service under the `peer.` addresses is asked. A shard answers `peer.config` itself.
pub use crate::wire::peer::Service as PeerService;

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
    /// All routes at once, as they are now. Whoever publishes it keeps a reference until every shard has another, so
    /// that no shard has to give back the memory of a large table.
    Routes(Arc<Forwarding>),
    Rates(Arc<Rates>),
    /// The node's own address.
    NodeAddress(Arc<str>),
    /// The assets that have a settlement engine for all accounts in them.
    SettlingAssets(Arc<HashSet<AssetId>>),
    /// The open settlement of an account has ended: it was confirmed, and `returned` is 0, or cancelled, and its amount is
    /// the account's again.
    SettlementEnded {
        account: AccountId,
        returned: u64,
    },
    /// The holder has paid us, in units of the account.
    SettlementReceived {
        account: AccountId,
        credited: u64,
    },
}

/// The state of an account on the shard that owns it, at one moment. Amounts in units of the account's asset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccountState {
    /// What fulfilled packets have left; positive is what we owe the holder.
    pub booked: i128,
    /// Its Prepares in flight, to be taken off `booked`.
    pub held: i128,
    /// What of `booked` came in by settlement and was not used yet.
    pub prepaid: i128,
    /// Prepares in flight towards it.
    pub reserved: i128,
    /// The settlement that is open, already taken off `booked`; 0: none is.
    pub settling: u64,
    /// Packets in flight in either direction, also those of amount 0.
    pub in_flight: u32,
    /// A BTP connection to or from the peer is up and authenticated.
    pub btp_connected: bool,
}

/// A payment, or a quote, for the shard of the account that pays.
pub struct PaymentOrder {
    /// Of a payment: begun in the store under this number. A quote has one as well, and moves nothing.
    pub number: PaymentNumber,
    pub account: AccountId,
    /// Where the money goes, and the secret that goes with it.
    pub destination: Box<str>,
    pub shared_secret: SharedSecret,
    pub target: Target,
    pub slippage: Slippage,
    pub is_quote: bool,
    pub timeout_ms: Option<u64>,
}

/// How a payment or a quote ended. All of its packets have ended, and what they moved is durable.
pub struct PaymentEnd {
    pub outcome: Outcome,
    /// Why this node itself did not take the payment's packets, if that ended it.
    pub refused_here: Option<RefusedHere>,
}

/// See [`PaymentEnd::refused_here`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusedHere {
    /// The account may not owe more.
    InsufficientBalance,
    /// This node has no exchange rate from the account's asset to the next hop's.
    NoRate,
    /// The account is being deleted, or is not there.
    NoAccount,
    /// The node stops, or cannot commit.
    NotReady,
    /// The shard makes as many payments as it can.
    Busy,
}

/// A packet that one of our own accounts has received, or the end of a connection to it. What it tells is durable.
#[derive(Clone)]
pub struct Notice {
    pub to: Arc<Account>,
    /// The account over which the packet came: not the far sender.
    pub from_username: Box<str>,
    /// The whole address, with the token.
    pub destination: Box<str>,
    /// In units of `to`.
    pub amount: u64,
    pub at: Timestamp,
    /// STREAM's number of the packet.
    pub sequence: u64,
    /// The sender has closed the connection: the last word about it. The amount is zero.
    pub connection_closed: bool,
}

/// What a subscriber is told of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Topic {
    /// What this account receives.
    Account(AccountId),
    /// What any account receives.
    All,
}

/// One who wants to know what accounts receive, admitted by the API.
pub struct Subscription {
    /// Whose notices, as it was when its holder or the operator was let in; `None`: those of all accounts.
    pub account: Option<Arc<Account>>,
    /// It was the account's token that opened, so the subscription ends with it.
    pub as_holder: bool,
    /// The `Sec-WebSocket-Key` of the request.
    pub key: Box<str>,
    /// Among all subscribers, and among those of the topic.
    pub seats: [Seat; 2],
}

impl Subscription {
    pub fn topic(&self) -> Topic {
        self.account
            .as_ref()
            .map_or(Topic::All, |account| Topic::Account(account.id))
    }
}

/// One of a limited number, until it is dropped, on whichever thread.
#[derive(Debug)]
pub struct Seat(Arc<AtomicUsize>);

impl Seat {
    /// `None`: all are taken.
    pub fn take(taken: &Arc<AtomicUsize>, at_most: usize) -> Option<Self> {
        let one_more = |taken| (taken < at_most).then_some(taken + 1);
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
            .then(|| Self(taken.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request of a neighbour that the cold half answers. It was checked: it carries no money, has the condition of its
/// kind, and has not expired.
pub struct PeerRequest {
    pub from: AccountId,
    pub service: PeerService,
    pub data: Vec<u8>,
    /// Once it is dropped without a call, the neighbour is told to come back (T03).
    pub respond: Box<dyn FnOnce(PeerAnswer) + Send>,
}

/// The answer to a [`PeerRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerAnswer {
    /// At most as much data as a packet may have; more is answered T00.
    Fulfill { data: Vec<u8> },
    Reject {
        code: ErrorCode,
        message: Cow<'static, str>,
    },
}

/// What happens at the links and concerns the cold half.
pub enum NeighbourEvent {
    Request(PeerRequest),
    /// How the link of an account stands now; that a state is told again means nothing, or that it was left meanwhile.
    ///
    /// A BTP link is up while a session is authenticated. An HTTP link is up when it is configured, and until a connection
    /// to it cannot be made while there is no other; then until one is made. Of an account without any link nothing is
    /// told.
    Link {
        account: AccountId,
        up: bool,
    },
}

/// Gets a neighbour's answer to a question, as it came, or `None`: there will be none that a neighbour gives.
pub type Answered = Box<dyn FnOnce(Option<Vec<u8>>) + Send>;

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

    /// Whether each of these accounts has a BTP connection that is up, in their order; false for one that no shard
    /// knows. At most [`QUESTIONS_MAX`] at once.
    fn btp_connected(&self, ids: &[AccountId]) -> Vec<bool>;

    /// Waits until a closed account has nothing in flight and all its transfers are durable.
    fn wait_until_idle(&self, id: AccountId, at_most: Duration) -> Result<(), StillInFlight>;

    /// Makes a payment; `done` is called on the shard's thread, so it must not wait.
    fn pay(&self, order: PaymentOrder, done: Box<dyn FnOnce(PaymentEnd) + Send>);

    /// Sends a request of our own (`wire::peer`) over the link of this account, past all routes; over HTTP also when that
    /// counts as down. `done` is called on the shard's thread, so it must not wait.
    ///
    /// # Panics
    /// If it is not a Prepare of amount 0 to an address under `peer.`.
    fn ask(&self, account: AccountId, prepare: Vec<u8>, done: Answered);

    /// Settles what we owe the account above what it settles to, whatever its threshold is, if it has no settlement open.
    /// The record of it is in the book a moment later.
    fn settle_now(&self, account: AccountId, by: SettleOrder) -> SettleNow;

    /// Waits until a BTP connection of the account is up; false if it is not by then.
    fn wait_for_btp(&self, id: AccountId, at_most: Duration) -> bool;
}

/// Accounts that a shard may be asked about in one message: it answers in some 10 microseconds.
pub const QUESTIONS_MAX: usize = 256;

/// What a listening socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Port {
    /// Packets, BTP, and the API of operators and holders.
    #[default]
    Api,
    /// The settlement API, and nothing else.
    Settlement,
}

/// An HTTP request that is not a packet, whole and owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiRequest {
    /// Where it came in: the same path is another resource on another port.
    pub port: Port,
    /// As sent, for instance `GET`.
    pub method: String,
    /// The request target in origin form: path and query, still percent-encoded.
    pub target: String,
    /// Every header, name in lower case, values as sent.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub peer: IpAddr,
    /// The key of a WebSocket, version 13, that the request asks to become.
    pub websocket_key: Option<Box<str>>,
}

/// Its answer. The shard adds what frames the body, `Date` and `Connection`, and leaves the body out for HEAD.
pub struct ApiResponse {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
    /// Close the connection after this answer.
    pub close: bool,
}

/// What an answer says.
pub enum Body {
    /// All of it. If it is long, the shard hands it on in pieces.
    Whole(Vec<u8>),
    /// As much as there is to say, made while the client reads it: for what may be larger than anybody should keep.
    Made(Box<dyn BodySource>),
    /// Nothing: the connection becomes a WebSocket, on which a subscriber is told what accounts receive.
    WebSocket(Box<Subscription>),
    /// Not even a head: the connection is closed. For who would draw a wrong conclusion from any answer.
    Silence,
}

impl Body {
    /// All of it, for tests.
    #[cfg(test)]
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let mut source = match self {
            Self::Whole(bytes) => return bytes,
            Self::Made(source) => source,
            Self::WebSocket(_) | Self::Silence => return Vec::new(),
        };
        let mut all = Vec::new();
        loop {
            let (piece, has_more) = source.next_piece();
            all.extend(piece);
            if !has_more {
                return all;
            }
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Whole(bytes)
    }
}

/// Makes a body, piece by piece, on an API thread; between two pieces it waits for the client, on no thread at all. It may
/// be dropped at any time, on a shard, so it should hold little.
pub trait BodySource: Send {
    /// The next piece, of about [`PIECE_BYTES`], and whether more will follow.
    fn next_piece(&mut self) -> (Vec<u8>, bool);
}

/// What came of asking for a piece.
pub enum Piece {
    /// And what makes the next one; `None` if this was the last.
    Made(Vec<u8>, Option<Box<dyn BodySource>>),
    /// It cannot be made: our own mistake. The client must see that the answer is not complete.
    Failed,
}

/// What a shard asks of the API threads, and the way back.
pub enum Pending {
    /// A request that is to be answered.
    Call {
        request: ApiRequest,
        respond: Box<dyn FnOnce(ApiResponse) + Send>,
    },
    /// An answer whose client has taken all of it so far: the next piece.
    Piece {
        source: Box<dyn BodySource>,
        respond: Box<dyn FnOnce(Piece) + Send>,
    },
}
