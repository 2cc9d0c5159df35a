//! A packet's rules, in two halves: [`incoming`] on the shard that owns the account that sent the Prepare, [`outgoing`]
//! on the shard that owns the account it goes to; [`response`] is the way back. No sockets, no disk, and time is an
//! argument.
//!
//! A Prepare's life: `incoming` checks it in the order of [`reject::RejectReason`], finds the next hop, computes amount
//! and expiry and takes a [`Hold`](crate::ledger::Hold); `outgoing` checks the other side, takes a
//! [`Reservation`](crate::ledger::Reservation) and notes it in flight; its link sends it. Then exactly one of three
//! things takes it out of the table: `response`, `expire`, or `fail` (the link broke). Each gives the
//! [`Origin`](in_flight::Origin) back, which [`Pipeline::finish`] ends on the first shard.
//!
//! After it a settlement of the account that was paid may be due: [`settling`].
//!
//! What ends here instead is in [`local`]. A request of a neighbour, and a question of our own to one, is a packet of
//! amount 0 that waits in the same table.
//!
//! Always: every Origin that `incoming` made is finished exactly once, so every hold is committed or released once.

pub mod forward;
pub mod in_flight;
pub mod incoming;
pub mod limits;
pub mod local;
pub mod outgoing;
pub mod rates;
pub mod reject;
pub mod response;
pub mod settling;
pub mod stats;

use std::collections::HashMap;
use std::sync::Arc;

use crate::ledger::account::{StaticDefault, place_in};
use crate::ledger::balance::InsufficientLiquidity;
use crate::ledger::{
    Account, AccountId, AccountLimits, Asset, AssetId, Balance, Directory, Hold, Reservation, Share, Standing,
};
use crate::routing::forwarding::{Ahead, Amended, Forwarding};
use crate::wire::timestamp::Timestamp;

use forward::Windows;
use in_flight::Table;
use limits::Bucket;
use rates::{Conversion, Decimal, Rates};
use settling::{Rule, Settling};
use stats::Stats;

/// One reading of the clock, good for a turn of the shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// What packets' expiries are compared with.
    pub wall: Timestamp,
    /// What waiting is measured with: it never jumps. Milliseconds.
    pub monotonic_ms: u64,
}

/// What the operator sets for the node as a whole.
#[derive(Clone, Debug)]
pub struct Settings {
    /// May a Prepare leave on the account it came from?
    pub reflect: bool,
    /// Are echo requests to the node's own address answered?
    pub echo: bool,
    pub windows: Windows,
    /// Kept by the node when it converts: amount x rate x (1 - spread).
    pub spread: Decimal,
}

/// The next hop of the node's own address and of everything below it that is nobody's: this node.
pub const LOCAL: AccountId = AccountId::new(u32::MAX);

/// An account on the shard that owns it.
struct Member {
    account: Arc<Account>,
    balance: Balance,
    /// Only accounts with a limit pay for its buckets.
    budgets: Option<Box<Budgets>>,
    /// Only accounts with a threshold are settled by themselves.
    rule: Option<Box<Rule>>,
    /// Packets in flight, from it and to it; those of amount 0 count too.
    in_flight: u32,
    /// Being deleted: no new packets in either direction.
    closing: bool,
    /// The account has limits. Without, its settings are not looked at for a packet.
    limited: bool,
}

// There may be a hundred thousand of them.
const _: () = assert!(size_of::<Member>() <= 96);

/// What every packet needs to know of both of its accounts, for all accounts of the node: their settings are not in any
/// cache when there are a hundred thousand of them, and these are eight bytes.
#[derive(Clone, Copy)]
struct Brief {
    round_trip_time_ms: u32,
    asset_id: AssetId,
    /// We keep a share of what comes from it: which, its settings say.
    has_spread: bool,
}

const _: () = assert!(
    size_of::<Option<Brief>>() == 8,
    "one word for each account on each shard"
);

impl Brief {
    fn of(account: &Account) -> Self {
        Self {
            round_trip_time_ms: account.round_trip_time_ms,
            asset_id: account.asset_id,
            has_spread: !account.limits.spread.is_none(),
        }
    }
}

/// Conversions less an account's spread that are kept at one time, at some 200 bytes each. There are as many as there are
/// pairs of assets and spreads in use; beyond these they are made again.
const SPREAD_CONVERSIONS_MAX: usize = 4_096;

#[derive(Default)]
struct Budgets {
    packets: Option<Bucket>,
    amount: Option<Bucket>,
}

/// The packet rules of one shard, with the state they need: the accounts it owns, what is in flight, and its copy of
/// what all shards know.
pub struct Pipeline {
    settings: Settings,
    node_address: Arc<str>,
    /// What stands before the first dot of it.
    own_scheme: Box<str>,
    directory: Directory,
    /// By account id.
    briefs: Vec<Option<Brief>>,
    forwarding: Amended,
    rates: Arc<Rates>,
    /// Made at the first packet between two assets, gone when the rates change. `None`: no rate.
    conversions: HashMap<(AssetId, AssetId), Option<Conversion>>,
    /// The same less an account's own spread. Others than these are not looked up for a packet of an account without.
    spread_conversions: HashMap<(AssetId, AssetId, Share), Option<Conversion>>,
    /// By account id divided by the number of shards.
    members: Vec<Option<Box<Member>>>,
    shards: u32,
    shard: u32,
    in_flight: Table,
    settling: Settling,
    /// Prepares accepted here whose Origin is not finished.
    accepted: usize,
    /// The node is stopping: no new Prepares.
    pub stopping: bool,
    /// The store has failed: no new promises.
    pub cannot_commit: bool,
    pub stats: Stats,
}

impl Pipeline {
    /// The pipeline of shard number `shard` of `shards`.
    pub fn new(settings: Settings, shard: u32, shards: u32, now: Now) -> Self {
        Self {
            settings,
            node_address: "local.host".into(),
            own_scheme: "local".into(),
            directory: Directory::new(),
            briefs: Vec::new(),
            forwarding: Amended::new(Arc::new(Forwarding::empty())),
            rates: Arc::new(Rates::default()),
            conversions: HashMap::new(),
            spread_conversions: HashMap::new(),
            members: Vec::new(),
            shards,
            shard,
            in_flight: Table::new(now.monotonic_ms),
            settling: Settling::default(),
            accepted: 0,
            stopping: false,
            cannot_commit: false,
            stats: Stats::default(),
        }
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    pub fn node_address(&self) -> &str {
        &self.node_address
    }

    /// Which shard owns an account. Ids are dense, so this spreads them evenly.
    pub fn owner_of(&self, id: AccountId) -> u16 {
        (id.get() % self.shards) as u16
    }

    pub fn owns(&self, id: AccountId) -> bool {
        id.get() % self.shards == self.shard
    }

    /// Prepares accepted here and not answered yet.
    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// Prepares sent from here and not answered yet.
    pub fn in_flight(&self) -> &Table {
        &self.in_flight
    }

    /// A new account, or new settings of a known one. `standing` is what the book says of one that is new to this shard.
    pub fn put_account(&mut self, account: Arc<Account>, standing: Standing, now: Now) {
        let id = account.id;
        if self.owns(id) {
            let index = self.member_index(id);
            let place = place_in(&mut self.members, index);
            let member = place.get_or_insert_with(|| {
                Box::new(Member {
                    account: account.clone(),
                    balance: Balance::from_book(standing),
                    budgets: None,
                    rule: None,
                    in_flight: 0,
                    closing: false,
                    limited: false,
                })
            });
            if member.account.asset_id != account.asset_id {
                assert!(
                    member.in_flight == 0,
                    "an asset changes only while nothing is in flight"
                );
            }
            member.set_budgets(&account, now);
            member.set_rule(&account);
            member.limited = *account.limits != AccountLimits::default();
            member.account = account.clone();
            if standing.settling {
                self.set_open_settlement(id, None);
            }
            self.look_soon(id);
        }
        *place_in(&mut self.briefs, id.index()) = Some(Brief::of(&account));
        self.directory.insert(account);
    }

    /// Takes no new packets for the account, or takes them again.
    pub fn set_closing(&mut self, id: AccountId, closing: bool) {
        if let Some(member) = self.member_mut(id) {
            member.closing = closing;
        }
        self.look_soon(id);
    }

    /// Whether the account of this shard takes no new packets.
    pub fn is_closing(&self, id: AccountId) -> bool {
        self.member(id).is_some_and(|member| member.closing)
    }

    pub fn remove_account(&mut self, id: AccountId) {
        if self.owns(id)
            && let Some(place) = self.member_index_of(id).map(|index| &mut self.members[index])
            && let Some(member) = place.take()
        {
            assert!(member.in_flight == 0, "an account goes when nothing of it is in flight");
        }
        self.forget_settlement(id);
        if let Some(place) = self.briefs.get_mut(id.index()) {
            *place = None;
        }
        self.directory.remove(id);
    }

    /// Replaces all routes. Whoever made the ones before still has them, so that their memory is not given back here.
    pub fn set_routes(&mut self, routes: Arc<Forwarding>) {
        self.forwarding = Amended::new(routes);
        self.keep_own_route();
    }

    pub fn set_route(&mut self, prefix: Arc<str>, next_hop: AccountId) {
        self.forwarding.set(prefix, Some(next_hop));
    }

    pub fn remove_route(&mut self, prefix: &Arc<str>) {
        self.forwarding.set(prefix.clone(), None);
        self.keep_own_route();
    }

    pub fn set_node_address(&mut self, address: Arc<str>) {
        if self.forwarding.get(&self.node_address) == Some(LOCAL) {
            self.forwarding.set(self.node_address.clone(), None);
        }
        self.own_scheme = address.split('.').next().unwrap_or_default().into();
        self.node_address = address;
        self.keep_own_route();
    }

    /// What is below our own address and nobody's ends here: a default route must not carry it away, because it would
    /// come back. An account may have the node's own address; then it is its route.
    fn keep_own_route(&mut self) {
        if self.forwarding.get(&self.node_address).is_none() {
            self.forwarding.set(self.node_address.clone(), Some(LOCAL));
        }
    }

    /// For the destinations of packets that are about to come in, if there are so many routes that it helps.
    #[inline]
    pub fn ahead(&self) -> Option<Ahead<'_>> {
        Ahead::of(&self.forwarding)
    }

    /// What becomes of an amount from this account on its way to an account in the asset `to`, here and now.
    pub fn rate_from(&self, from: &Account, to: &Asset) -> Option<Conversion> {
        let rate = rate_between(&self.rates, &self.settings.spread, &from.asset, to)?;
        Some(rate.less(from.limits.spread))
    }

    pub fn set_rates(&mut self, rates: Arc<Rates>) {
        self.rates = rates;
        self.conversions.clear();
        self.spread_conversions.clear();
    }

    /// The balance of an account of this shard, how many packets of it are in flight.
    pub fn state_of(&self, id: AccountId) -> Option<(Balance, u32)> {
        self.member(id).map(|member| (member.balance, member.in_flight))
    }

    fn brief(&self, id: AccountId) -> Option<Brief> {
        self.briefs.get(id.index()).copied().flatten()
    }

    fn member_index(&self, id: AccountId) -> usize {
        (id.get() / self.shards) as usize
    }

    fn member_index_of(&self, id: AccountId) -> Option<usize> {
        let index = self.member_index(id);
        (self.owns(id) && index < self.members.len()).then_some(index)
    }

    fn member(&self, id: AccountId) -> Option<&Member> {
        self.members[self.member_index_of(id)?].as_deref()
    }

    fn member_mut(&mut self, id: AccountId) -> Option<&mut Member> {
        let index = self.member_index_of(id)?;
        self.members[index].as_deref_mut()
    }
}

impl Member {
    fn limits(&self) -> &AccountLimits {
        if self.limited {
            &self.account.limits
        } else {
            AccountLimits::DEFAULT
        }
    }

    fn hold(&mut self, amount: u64) -> Result<Hold, InsufficientLiquidity> {
        let limits = *self.limits();
        self.balance.hold(amount, &limits)
    }

    fn reserve(&mut self, amount: u64) -> Result<Reservation, InsufficientLiquidity> {
        let limits = *self.limits();
        self.balance.reserve(amount, &limits)
    }

    /// Takes over the limits of `account`. What is spent of a budget stays spent, also if its limit changes; a limit where
    /// there was none begins unspent.
    fn set_budgets(&mut self, account: &Account, now: Now) {
        let limits = &account.limits;
        if limits.packets_per_minute.is_none() && limits.amount_per_minute.is_none() {
            self.budgets = None;
            return;
        }
        let budgets = self.budgets.get_or_insert_default();
        set_budget(&mut budgets.packets, limits.packets_per_minute.map(u64::from), now);
        set_budget(&mut budgets.amount, limits.amount_per_minute, now);
    }
}

/// What an amount in one asset is worth in another, less `spread` if it has to be converted for that.
fn rate_between(rates: &Rates, spread: &Decimal, from: &Asset, to: &Asset) -> Option<Conversion> {
    let spread = if from == to { &Decimal::zero() } else { spread };
    rates
        .conversion((&from.code, from.scale), (&to.code, to.scale), spread)
        .ok()
}

fn set_budget(budget: &mut Option<Bucket>, limit: Option<u64>, now: Now) {
    match (budget.as_mut(), limit) {
        (Some(bucket), Some(limit)) => bucket.set_limit(now.monotonic_ms, limit),
        (_, limit) => *budget = limit.map(|limit| Bucket::new(limit, now.monotonic_ms)),
    }
}

#[cfg(test)]
mod tests;
