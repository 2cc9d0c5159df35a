//! What an operator sets about an account: who holds it, in which asset, how it is reached, what it may do.
//!
//! Owns the configuration of an account, which never changes in place: a change makes a new `Account`, and every
//! shard swaps its `Arc`. Leaves balances to [`super::balance`] and finding an account by its name to
//! [`super::directory`].

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An account's number within this node: dense, given once, never used again. Peers and operators see the UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AccountId(u32);

impl AccountId {
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an index into a table with one entry per account.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An asset at a scale, by its number within this node. Amounts add up only within one `AssetId`: the same code at
/// two scales is two of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AssetId(u16);

impl AssetId {
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    pub const fn get(self) -> u16 {
        self.0
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A unit of account: one unit of an amount is `10^-scale` of one whole `code`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Asset {
    /// Upper case, 1 to 64 bytes.
    pub code: Arc<str>,
    pub scale: u8,
}

impl fmt::Display for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.code, self.scale)
    }
}

/// What the account holder is to us. It decides about routes, not about money.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum RoutingRelation {
    /// A customer: pays and is paid, exchanges no routes.
    #[default]
    NonRoutingAccount,
    /// Gives us our address and a default route.
    Parent,
    /// An equal, with whom we exchange routes.
    Peer,
    /// Has an address below ours.
    Child,
}

impl RoutingRelation {
    pub const ALL: [Self; 4] = [Self::NonRoutingAccount, Self::Parent, Self::Peer, Self::Child];

    /// The spelling of the HTTP API, which clients compare with its case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NonRoutingAccount => "NonRoutingAccount",
            Self::Parent => "Parent",
            Self::Peer => "Peer",
            Self::Child => "Child",
        }
    }

    /// Reads a relation in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|relation| relation.as_str().eq_ignore_ascii_case(text))
    }
}

/// How the account is reached and who may speak for it. Boxed in [`Account`], because most accounts of a large hub
/// set few of these.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Links {
    /// Where Prepares go over ILP-over-HTTP: an absolute `http` or `https` URL, normalized.
    pub http_url: Option<Box<str>>,
    /// The holder's password for the API and for ILP-over-HTTP. None: nobody can log in.
    pub http_incoming_token: Option<Box<str>>,
    /// What we send after `Bearer `, verbatim. None: an empty value.
    pub http_outgoing_token: Option<Box<str>>,
    /// Where we dial for BTP, as the operator wrote it (normalized): `btp+ws`, `btp+wss`, `ws`, `wss`, `http`, `https`.
    pub btp_url: Option<Box<str>>,
    /// What the peer must send in its BTP auth frame. None: nobody can log in.
    pub btp_incoming_token: Option<Box<str>>,
    /// What we send in ours, verbatim. None: an empty token.
    pub btp_outgoing_token: Option<Box<str>>,
}

impl fmt::Debug for Links {
    /// Tokens never reach a log line, so they are not printed here either.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("http_url", &self.http_url)
            .field("btp_url", &self.btp_url)
            .finish_non_exhaustive()
    }
}

/// One account as the operator set it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    pub id: AccountId,
    /// The public id, version 4, never used again.
    pub uuid: [u8; 16],
    /// As given at creation, after NFKC. Compared by its folded form only, see [`super::directory`].
    pub username: Box<str>,
    /// Where packets for this account go; our local route to it.
    pub ilp_address: Arc<str>,
    /// The address was made from the node's address and the user name, and follows the node's address.
    pub ilp_address_generated: bool,
    pub asset: Asset,
    pub asset_id: AssetId,
    pub routing_relation: RoutingRelation,
    pub limits: AccountLimits,
    /// A round trip to the peer in milliseconds.
    pub round_trip_time_ms: u32,
    /// Settle when the balance reaches this, units of the asset. None: never.
    pub settle_threshold: Option<i64>,
    /// Settle down to this balance. None: never.
    pub settle_to: Option<i64>,
    pub settlement_engine_url: Option<Box<str>>,
    pub links: Box<Links>,
    /// Milliseconds since 1970, UTC.
    pub created_at_ms: u64,
}

/// What the account may do. All amounts in units of its asset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AccountLimits {
    /// The largest Prepare it may send, inclusive.
    pub packet_amount_max: u64,
    /// How low its balance (less what is held) may fall; negative is credit given. None: no limit.
    pub balance_min: Option<i64>,
    /// How much we may owe it, counting what is in flight towards it. None: no limit.
    pub balance_max: Option<i64>,
    /// The sum of its Prepares' amounts in a minute. None: no limit; 0: nothing passes.
    pub amount_per_minute: Option<u64>,
    /// How many Prepares it may send in a minute. None: no limit; 0: nothing passes.
    pub packets_per_minute: Option<u32>,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self {
            packet_amount_max: u64::MAX,
            balance_min: None,
            balance_max: None,
            amount_per_minute: None,
            packets_per_minute: None,
        }
    }
}

/// The round trip assumed of a peer until the operator says otherwise, in milliseconds.
pub const ROUND_TRIP_TIME_MS_DEFAULT: u32 = 500;
