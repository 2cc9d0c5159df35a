//! What an operator sets about an account: who holds it, in which asset, how it is reached, what it may do.
//!
//! Owns the configuration of an account, which never changes in place: a change makes a new `Account`, and every
//! shard swaps its `Arc`. Leaves balances to [`super::balance`] and finding an account by its name to
//! [`super::directory`].
//!
//! Always: an idle account is small, because a hub has a hundred thousand of them. What most of them do not have costs
//! a pointer ([`OrDefault`]), what they have in common is shared ([`Account::asset`]), and texts that are read when a
//! peer connects, and not for every packet, lie together in one piece of memory ([`PackedLinks`]).

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::share::Share;

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

/// The place of `index` in a table with one entry per account, which is made long enough for it: by an eighth at a
/// time, because doubling would leave as much memory unused as a small account takes.
pub fn place_in<T>(table: &mut Vec<Option<T>>, index: usize) -> &mut Option<T> {
    if table.len() <= index {
        if table.capacity() <= index {
            table.reserve_exact(index + index / 8 + 8 - table.len());
        }
        table.resize_with(index + 1, || None);
    }
    &mut table[index]
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

/// How the account is reached and who may speak for it, laid open: for who sets it. An [`Account`] keeps it packed.
#[derive(Clone, PartialEq, Eq, Default)]
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

/// [`Links`] in one piece of memory. An account has one or two of the six, and each of its own would cost a pointer, a
/// length and an allocation.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PackedLinks {
    /// Of each that is set, in the order of the fields of [`Links`]: which field it is, its length, its text.
    texts: Box<[u8]>,
}

/// Bytes in front of a text: the number of the field and the length.
const LINK_HEAD_BYTES: usize = 1 + size_of::<u32>();

impl PackedLinks {
    /// See [`Links::http_url`].
    pub fn http_url(&self) -> Option<&str> {
        self.get(0)
    }

    /// See [`Links::http_incoming_token`].
    pub fn http_incoming_token(&self) -> Option<&str> {
        self.get(1)
    }

    /// See [`Links::http_outgoing_token`].
    pub fn http_outgoing_token(&self) -> Option<&str> {
        self.get(2)
    }

    /// See [`Links::btp_url`].
    pub fn btp_url(&self) -> Option<&str> {
        self.get(3)
    }

    /// See [`Links::btp_incoming_token`].
    pub fn btp_incoming_token(&self) -> Option<&str> {
        self.get(4)
    }

    /// See [`Links::btp_outgoing_token`].
    pub fn btp_outgoing_token(&self) -> Option<&str> {
        self.get(5)
    }

    /// All of them, each as a text of its own.
    pub fn unpack(&self) -> Links {
        let own = |text: Option<&str>| text.map(Box::from);
        Links {
            http_url: own(self.http_url()),
            http_incoming_token: own(self.http_incoming_token()),
            http_outgoing_token: own(self.http_outgoing_token()),
            btp_url: own(self.btp_url()),
            btp_incoming_token: own(self.btp_incoming_token()),
            btp_outgoing_token: own(self.btp_outgoing_token()),
        }
    }

    fn get(&self, wanted: u8) -> Option<&str> {
        let mut rest = &*self.texts;
        while let Some(([field, length @ ..], texts)) = rest.split_first_chunk::<LINK_HEAD_BYTES>() {
            let (text, behind) = texts.split_at(u32::from_le_bytes(*length) as usize);
            if *field == wanted {
                return Some(str::from_utf8(text).expect("it was text when it came"));
            }
            rest = behind;
        }
        None
    }
}

impl From<Links> for PackedLinks {
    fn from(links: Links) -> Self {
        let Links {
            http_url,
            http_incoming_token,
            http_outgoing_token,
            btp_url,
            btp_incoming_token,
            btp_outgoing_token,
        } = &links;
        let mut texts = Vec::new();
        let fields = [
            http_url,
            http_incoming_token,
            http_outgoing_token,
            btp_url,
            btp_incoming_token,
            btp_outgoing_token,
        ];
        for (field, text) in (0u8..).zip(fields) {
            if let Some(text) = text {
                let length = u32::try_from(text.len()).expect("texts are bounded where they come in");
                texts.push(field);
                texts.extend_from_slice(&length.to_le_bytes());
                texts.extend_from_slice(text.as_bytes());
            }
        }
        Self { texts: texts.into() }
    }
}

impl fmt::Debug for PackedLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.unpack().fmt(f)
    }
}

/// A part of an account that most accounts leave at its default: then it costs a pointer and no more.
#[derive(Clone)]
pub struct OrDefault<T>(Option<Box<T>>);

/// What [`OrDefault`] shows of a value that is not there.
pub trait StaticDefault: PartialEq + 'static {
    const DEFAULT: &'static Self;
}

impl<T: StaticDefault> Deref for OrDefault<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::DEFAULT)
    }
}

impl<T: StaticDefault> From<T> for OrDefault<T> {
    fn from(value: T) -> Self {
        Self((value != *T::DEFAULT).then(|| Box::new(value)))
    }
}

impl<T> Default for OrDefault<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: StaticDefault> PartialEq for OrDefault<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: StaticDefault + Eq> Eq for OrDefault<T> {}

impl<T: StaticDefault + fmt::Debug> fmt::Debug for OrDefault<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
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
    /// The one all accounts in it share.
    pub asset: Arc<Asset>,
    pub asset_id: AssetId,
    pub routing_relation: RoutingRelation,
    pub limits: OrDefault<AccountLimits>,
    /// A round trip to the peer in milliseconds: in this time before a packet's end its answer can still get through.
    pub round_trip_time_ms: u32,
    pub settlement: OrDefault<Settlement>,
    pub links: PackedLinks,
    /// Milliseconds since 1970, UTC.
    pub created_at_ms: u64,
}

// A bound for what a hundred thousand of them take: 128 bytes as an `Arc` has it, beside name, address and links.
const _: () = assert!(size_of::<Account>() + 2 * size_of::<usize>() <= 128);

/// When and how the account settles.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settlement {
    /// Settle when the balance reaches this, units of the asset. None: never.
    pub threshold: Option<i64>,
    /// Settle down to this balance. None: never.
    pub to: Option<i64>,
    pub engine_url: Option<Box<str>>,
}

impl StaticDefault for Settlement {
    const DEFAULT: &'static Self = &Self {
        threshold: None,
        to: None,
        engine_url: None,
    };
}

/// What the account may do, and what that costs it. All amounts in units of its asset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// What we keep of every packet that comes from it, converted or not, besides the node's own spread on conversions.
    pub spread: Share,
}

impl StaticDefault for AccountLimits {
    const DEFAULT: &'static Self = &Self {
        packet_amount_max: u64::MAX,
        balance_min: None,
        balance_max: None,
        amount_per_minute: None,
        packets_per_minute: None,
        spread: Share::NONE,
    };
}

impl Default for AccountLimits {
    fn default() -> Self {
        *Self::DEFAULT
    }
}

/// The round trip assumed of a peer until the operator says otherwise, in milliseconds.
pub const ROUND_TRIP_TIME_MS_DEFAULT: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_back_as_they_were_packed() {
        let text = |text: &str| Some(Box::from(text));
        // Every choice of what is set, with texts that are empty, not ASCII, and alike.
        for set in 0..64u8 {
            let field = |number: u8, value: &str| (set >> number & 1 == 1).then(|| Box::from(value));
            let links = Links {
                http_url: field(0, "http://peer.example/ilp"),
                http_incoming_token: field(1, ""),
                http_outgoing_token: field(2, "sword\u{0}fish"),
                btp_url: field(3, "btp+ws://zoë@peer.example/"),
                btp_incoming_token: field(4, "alike"),
                btp_outgoing_token: field(5, "alike"),
            };
            let packed = PackedLinks::from(links.clone());
            assert_eq!(packed.unpack(), links);
            assert_eq!(packed, PackedLinks::from(packed.unpack()));
        }
        let one = |links: Links| PackedLinks::from(links);
        let incoming = one(Links {
            btp_incoming_token: text("x"),
            ..Links::default()
        });
        let outgoing = one(Links {
            btp_outgoing_token: text("x"),
            ..Links::default()
        });
        assert_ne!(incoming, outgoing, "the same text means another thing in another field");
        assert_eq!(one(Links::default()), PackedLinks::default());
    }

    #[test]
    fn no_token_is_printed() {
        let links = Links {
            http_url: Some("http://peer.example/".into()),
            http_incoming_token: Some("swordfish".into()),
            btp_outgoing_token: Some("swordfish".into()),
            ..Links::default()
        };
        let printed = format!("{links:?} {:?}", PackedLinks::from(links.clone()));
        assert!(
            printed.contains("peer.example") && !printed.contains("swordfish"),
            "{printed}"
        );
    }

    #[test]
    fn a_default_takes_no_memory_and_equals_itself() {
        let limits = OrDefault::from(AccountLimits::default());
        assert!(limits.0.is_none());
        assert_eq!(limits, OrDefault::default());
        assert_eq!(limits.packet_amount_max, u64::MAX);
        let credit = AccountLimits {
            balance_min: Some(-1),
            ..AccountLimits::default()
        };
        assert_ne!(limits, credit.into());
        assert_eq!(*OrDefault::from(credit), credit);
    }
}
