//! What the node tells its neighbours: its routes in the order in which they changed.
//!
//! Owns the numbering of changes (epochs) and which routes are told at all. Leaves to [`super::speaker`] how far a
//! neighbour has heard it. A prefix stands in the log once, at its last change; a prefix that leads nowhere any more
//! stays as a withdrawal, for those who have not heard of it.
//!
//! Withdrawals must not pile up for ever. When there are far more of them than routes, the older half is forgotten. A
//! neighbour that has heard further does not notice; one that has not could keep a dead route, so its speaker begins
//! anew with another table ([`Log::has_lost`]). When the epochs run out, which takes years, that happens to all.
//!
//! Always: epochs of entries are below [`Log::epoch`], which is the next one to be given; there is one entry per
//! prefix; withdrawals exceed routes by at most [`LogLimits::withdrawn_spare`]; our own address is told by every table.

use std::collections::BTreeMap;
use std::sync::Arc;

use ring::{digest, hmac};

use super::filter::{lies_in, scheme_of};
use super::{Learned, Neighbour, Path};
use crate::ledger::account::{AccountId, RoutingRelation};
use crate::wire::address::Address;
use crate::wire::ccp::{AUTH_BYTES, TableId};

/// The last epoch but one, so that the next one can always be said.
const EPOCH_MAX: u32 = u32::MAX - 1;

/// How long a log may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLimits {
    /// Routes that are told, our own address among them.
    pub routes_max: usize,
    /// Withdrawals that may be kept beyond one per route.
    pub withdrawn_spare: usize,
}

impl Default for LogLimits {
    /// As many routes as a node learns; withdrawals of some tens of megabytes, so that a neighbour has minutes to hear
    /// them even while another one makes as many as it may.
    fn default() -> Self {
        Self {
            routes_max: 1 << 20,
            withdrawn_spare: 1 << 18,
        }
    }
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    pub account: AccountId,
    pub relation: RoutingRelation,
}

/// A prefix that leads somewhere.
struct Told {
    /// `None`: here.
    next_hop: Option<NextHop>,
    /// Behind us.
    path: Path,
    auth: [u8; AUTH_BYTES],
}

/// The last change of a prefix.
struct Entry {
    prefix: Arc<str>,
    /// `None`: it leads nowhere any more.
    told: Option<Told>,
    /// There was a change before this one, so a neighbour may know a route for the prefix.
    may_be_known: bool,
}

/// What an entry says to one neighbour.
pub(super) enum Saying<'a> {
    Announce {
        prefix: &'a str,
        path: &'a Path,
        auth: &'a [u8; AUTH_BYTES],
    },
    Withdraw {
        prefix: &'a str,
    },
    /// It never knew the prefix and need not.
    Nothing,
}

/// The routes that the node tells, shared by all speakers.
pub struct Log {
    own: Arc<str>,
    secret: hmac::Key,
    table_id: TableId,
    /// By epoch.
    entries: BTreeMap<u32, Entry>,
    epochs: BTreeMap<Arc<str>, u32>,
    next_epoch: u32,
    withdrawn: usize,
    /// Withdrawals before this epoch may have been forgotten.
    forgotten_before: u32,
    limits: LogLimits,
}

impl Log {
    /// A log that tells our own address. When that changes, make another. `table_id` is random; so is `secret`, which
    /// may outlive the process.
    pub fn new(own: Address<'_>, table_id: TableId, secret: &[u8; 32], limits: LogLimits) -> Self {
        let own: Arc<str> = own.as_str().into();
        let mut log = Self {
            own: Arc::clone(&own),
            secret: hmac::Key::new(hmac::HMAC_SHA256, secret),
            table_id,
            entries: BTreeMap::new(),
            epochs: BTreeMap::new(),
            next_epoch: 0,
            withdrawn: 0,
            forgotten_before: 0,
            limits,
        };
        let told = Told {
            next_hop: None,
            path: Path::empty(),
            auth: log.local_auth(&own),
        };
        log.push(&own, Some(told));
        log
    }

    /// Our own address, which speaks.
    pub fn own(&self) -> Address<'_> {
        Address::parse(self.own.as_bytes()).expect("it was an address when it was given")
    }

    /// Which table the epochs are of. It changes when the epochs begin anew.
    pub const fn table_id(&self) -> TableId {
        self.table_id
    }

    /// The epoch of the next change.
    pub const fn epoch(&self) -> u32 {
        self.next_epoch
    }

    /// How many routes are told, our own address among them.
    pub fn len(&self) -> usize {
        self.entries.len() - self.withdrawn
    }

    /// Never: our own address is always told.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A prefix leads to an account now: because we set it so, or because the account told us. Says whether neighbours
    /// hear of it. They do not if it lies below our own address, which they know already, if it is a default route, if
    /// it is of another network, or if the log is full; what was told of the prefix before is then withdrawn.
    pub fn announce(&mut self, prefix: &Arc<str>, next_hop: NextHop, learned: Option<&Learned>) -> bool {
        let is_new = self.told(prefix).is_none();
        if !self.is_to_be_told(prefix) || is_new && self.len() >= self.limits.routes_max {
            self.withdraw(prefix);
            return false;
        }
        let told = Told {
            next_hop: Some(next_hop),
            path: learned.map_or_else(Path::empty, |learned| learned.path.clone()),
            // Each node on the way hashes once more.
            auth: learned.map_or_else(|| self.local_auth(prefix), |learned| hash(&learned.auth)),
        };
        let is_told_already = self.told(prefix).is_some_and(|before| {
            before.next_hop == told.next_hop && before.path == told.path && before.auth == told.auth
        });
        if !is_told_already {
            self.push(prefix, Some(told));
        }
        true
    }

    /// A prefix leads nowhere any more, or nowhere that neighbours should know. Our own address stays.
    pub fn withdraw(&mut self, prefix: &Arc<str>) {
        if self.told(prefix).is_some() && *prefix != self.own {
            self.push(prefix, None);
        }
    }

    /// A mark of how much has been forgotten so far, for [`Self::has_lost`].
    pub(super) const fn forgotten_before(&self) -> u32 {
        self.forgotten_before
    }

    /// Whether somebody who began to listen when the mark was `mark`, and has heard up to `epoch`, may have heard of a
    /// prefix whose withdrawal it will not hear. Who began after a withdrawal was forgotten never heard of its prefix.
    pub(super) const fn has_lost(&self, mark: u32, epoch: u32) -> bool {
        self.forgotten_before > mark && self.forgotten_before > epoch
    }

    /// From an epoch on: each epoch in use, and what it says to a neighbour.
    pub(super) fn sayings_from<'a>(
        &'a self,
        epoch: u32,
        neighbour: &'a Neighbour,
    ) -> impl Iterator<Item = (u32, Saying<'a>)> {
        let entries = self.entries.range(epoch..);
        entries.map(move |(&epoch, entry)| (epoch, entry.saying_to(neighbour)))
    }

    fn told(&self, prefix: &str) -> Option<&Told> {
        let epoch = self.epochs.get(prefix)?;
        self.entries[epoch].told.as_ref()
    }

    fn is_to_be_told(&self, prefix: &str) -> bool {
        let scheme = scheme_of(&self.own);
        scheme_of(prefix) == scheme && prefix != scheme && !lies_in(prefix, &self.own)
    }

    /// What authenticates a route that begins with us, hashed once as every route that is told.
    fn local_auth(&self, prefix: &str) -> [u8; AUTH_BYTES] {
        let tag = hmac::sign(&self.secret, prefix.as_bytes());
        hash(tag.as_ref())
    }

    fn push(&mut self, prefix: &Arc<str>, told: Option<Told>) {
        if self.next_epoch >= EPOCH_MAX {
            self.begin_anew();
        }
        let before = self.epochs.insert(Arc::clone(prefix), self.next_epoch);
        let before = before.and_then(|epoch| self.entries.remove(&epoch));
        self.withdrawn -= usize::from(before.as_ref().is_some_and(|before| before.told.is_none()));
        self.withdrawn += usize::from(told.is_none());
        let entry = Entry {
            prefix: Arc::clone(prefix),
            told,
            may_be_known: before.is_some(),
        };
        self.entries.insert(self.next_epoch, entry);
        self.next_epoch += 1;
        if self.withdrawn > self.len() + self.limits.withdrawn_spare {
            self.forget_withdrawals();
        }
    }

    /// Forgets the older half of the withdrawals. Looks at the whole log, once in as many changes as it forgets.
    #[cold]
    fn forget_withdrawals(&mut self) {
        let to_forget = self.withdrawn.div_ceil(2);
        let withdrawn = self.entries.iter().filter(|(_, entry)| entry.told.is_none());
        let epochs: Vec<u32> = withdrawn.map(|(&epoch, _)| epoch).take(to_forget).collect();
        for epoch in &epochs {
            let entry = self.entries.remove(epoch).expect("found a moment ago");
            self.epochs.remove(&entry.prefix);
        }
        self.withdrawn -= epochs.len();
        self.forgotten_before = epochs.last().map_or(self.forgotten_before, |epoch| epoch + 1);
    }

    /// Another table that says the same, with epochs from the first on. Withdrawals are told again, because the widely
    /// used implementations keep the routes of an old table.
    #[cold]
    fn begin_anew(&mut self) {
        self.next_epoch = 0;
        self.forgotten_before = 0;
        for (_, entry) in std::mem::take(&mut self.entries) {
            self.epochs.insert(Arc::clone(&entry.prefix), self.next_epoch);
            self.entries.insert(self.next_epoch, entry);
            self.next_epoch += 1;
        }
        self.table_id = table_after(&self.table_id, b"all");
    }
}

/// The id of the table that follows one, `for_whom`: another for one neighbour than for all, so that no neighbour ever
/// hears two tables under one id. As good as random to others, because the first one was.
pub(super) fn table_after(table_id: &TableId, for_whom: &[u8]) -> TableId {
    let hash = hash(&[&table_id[..], for_whom].concat());
    *hash.first_chunk().expect("a hash is longer than an id")
}

impl Entry {
    fn saying_to(&self, neighbour: &Neighbour) -> Saying<'_> {
        let prefix = &*self.prefix;
        match &self.told {
            Some(Told { next_hop, path, auth }) if may_know(neighbour, *next_hop) => {
                Saying::Announce { prefix, path, auth }
            }
            _ if self.may_be_known => Saying::Withdraw { prefix },
            _ => Saying::Nothing,
        }
    }
}

/// Whether a neighbour is told a route (protocols.md 8.4). Nobody hears its own routes back, and a parent hears of
/// ourselves, our children and our customers alone: it does not reach our peers through us.
fn may_know(neighbour: &Neighbour, next_hop: Option<NextHop>) -> bool {
    let Some(next_hop) = next_hop else { return true };
    if next_hop.account == neighbour.account {
        return false;
    }
    match neighbour.relation {
        RoutingRelation::Peer | RoutingRelation::Child => true,
        RoutingRelation::Parent => matches!(
            next_hop.relation,
            RoutingRelation::Child | RoutingRelation::NonRoutingAccount
        ),
        RoutingRelation::NonRoutingAccount => false,
    }
}

fn hash(bytes: &[u8]) -> [u8; AUTH_BYTES] {
    let hash = digest::digest(&digest::SHA256, bytes);
    *hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::RoutingRelation::*;
    use super::*;

    fn log() -> Log {
        log_with(LogLimits::default())
    }

    fn log_with(limits: LogLimits) -> Log {
        Log::new(Address::from_static("test.me"), [7; 16], &[1; 32], limits)
    }

    fn neighbour(account: u32, relation: RoutingRelation) -> Neighbour {
        Neighbour {
            account: AccountId::new(account),
            relation,
            address: "test.neighbour".into(),
        }
    }

    fn via(account: u32, relation: RoutingRelation) -> NextHop {
        NextHop {
            account: AccountId::new(account),
            relation,
        }
    }

    fn learned(path: &str) -> Learned {
        let hops = path
            .split_whitespace()
            .map(|hop| Address::parse(hop.as_bytes()).unwrap());
        Learned {
            path: Path::new(hops),
            auth: [9; 32],
        }
    }

    /// `epoch+prefix` for what is announced, `epoch-prefix` for what is withdrawn.
    fn heard(log: &Log, from: u32, account: u32, relation: RoutingRelation) -> String {
        let neighbour = neighbour(account, relation);
        let heard = log
            .sayings_from(from, &neighbour)
            .filter_map(|(epoch, saying)| match saying {
                Saying::Announce { prefix, .. } => Some(format!("{epoch}+{prefix}")),
                Saying::Withdraw { prefix } => Some(format!("{epoch}-{prefix}")),
                Saying::Nothing => None,
            });
        heard.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_prefix_stands_where_it_changed_last() {
        let mut log = log();
        assert_eq!((log.epoch(), log.len()), (1, 1));
        let routes = [("test.a", 1), ("test.b", 2), ("test.a", 1), ("test.a", 2)];
        for (prefix, account) in routes {
            assert!(log.announce(&prefix.into(), via(account, Peer), None));
        }
        assert_eq!(heard(&log, 0, 9, Peer), "0+test.me 2+test.b 3+test.a");
        log.withdraw(&"test.b".into());
        log.withdraw(&"test.b".into());
        log.withdraw(&"test.unknown".into());
        log.withdraw(&"test.me".into());
        assert_eq!(heard(&log, 0, 9, Peer), "0+test.me 3+test.a 4-test.b");
        assert_eq!(heard(&log, 4, 9, Peer), "4-test.b");
        assert_eq!((log.epoch(), log.len()), (5, 2));
        assert!(log.announce(&"test.b".into(), via(1, Peer), None));
        assert_eq!(heard(&log, 4, 9, Peer), "5+test.b");
        assert_eq!(log.withdrawn, 0);
    }

    #[test]
    fn another_path_is_a_change() {
        let mut log = log();
        let prefix: Arc<str> = "test.a".into();
        for (path, epoch) in [
            ("test.b", 2),
            ("test.b", 2),
            ("test.b test.c", 3),
            ("test.c", 4),
            ("test.c", 4),
        ] {
            assert!(log.announce(&prefix, via(1, Peer), Some(&learned(path))));
            assert_eq!(log.epoch(), epoch, "{path}");
        }
    }

    #[test]
    fn what_nobody_is_told() {
        let mut log = log();
        for prefix in ["", "test", "g", "g.a", "test1.a", "test.me", "test.me.kid", "self.a"] {
            assert!(!log.announce(&prefix.into(), via(1, Child), None), "{prefix}");
        }
        assert_eq!(log.epoch(), 1);
        assert!(log.announce(&"test.meadow".into(), via(1, Child), None));
        assert_eq!(heard(&log, 0, 9, Peer), "0+test.me 1+test.meadow");
    }

    #[test]
    fn who_is_told_what() {
        let mut log = log();
        let next_hops = [(1, Parent), (2, Peer), (3, Child), (4, NonRoutingAccount)];
        for (account, relation) in next_hops {
            assert!(log.announce(&format!("test.{account}").into(), via(account, relation), None));
        }
        for (account, relation, expected) in [
            (9, Peer, "0+test.me 1+test.1 2+test.2 3+test.3 4+test.4"),
            (9, Child, "0+test.me 1+test.1 2+test.2 3+test.3 4+test.4"),
            (9, Parent, "0+test.me 3+test.3 4+test.4"),
            (2, Peer, "0+test.me 1+test.1 3+test.3 4+test.4"),
            (3, Child, "0+test.me 1+test.1 2+test.2 4+test.4"),
            (3, Parent, "0+test.me 4+test.4"),
        ] {
            assert_eq!(heard(&log, 0, account, relation), expected, "{account} {relation:?}");
        }
        // A route that moves to the neighbour itself, or to one it may not know, must be taken back.
        for account in [1, 3] {
            log.announce(&format!("test.{account}").into(), via(2, Peer), None);
        }
        assert_eq!(heard(&log, 5, 2, Peer), "5-test.1 6-test.3");
        assert_eq!(heard(&log, 5, 9, Parent), "5-test.1 6-test.3");
        assert_eq!(heard(&log, 5, 9, Peer), "5+test.1 6+test.3");
    }

    #[test]
    fn a_route_is_hashed_once_more_at_every_node() {
        let mut log = log();
        let learned = learned("test.b test.c");
        log.announce(&"test.a".into(), via(1, Peer), Some(&learned));
        log.announce(&"test.fixed".into(), via(1, Peer), None);
        let neighbour = neighbour(9, Peer);
        let auths: Vec<_> = log
            .sayings_from(0, &neighbour)
            .map(|(_, saying)| match saying {
                Saying::Announce { auth, path, .. } => (*auth, path.len()),
                _ => panic!("all are announced"),
            })
            .collect();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let local = |prefix: &str| hash(hmac::sign(&key, prefix.as_bytes()).as_ref());
        assert_eq!(
            auths,
            [(local("test.me"), 0), (hash(&[9; 32]), 2), (local("test.fixed"), 0)]
        );
    }

    #[test]
    fn a_full_log_tells_no_more_prefixes() {
        let mut log = log_with(LogLimits {
            routes_max: 3,
            ..LogLimits::default()
        });
        for (prefix, account, is_told) in [
            ("test.a", 1, true),
            ("test.b", 1, true),
            ("test.c", 1, false),
            ("test.b", 2, true),
        ] {
            assert_eq!(
                log.announce(&prefix.into(), via(account, Peer), None),
                is_told,
                "{prefix}"
            );
        }
        log.withdraw(&"test.a".into());
        assert!(log.announce(&"test.c".into(), via(1, Peer), None));
        assert_eq!(log.len(), 3);
    }

    #[test]
    fn withdrawals_do_not_pile_up() {
        let mut log = log_with(LogLimits {
            withdrawn_spare: 4,
            ..LogLimits::default()
        });
        log.announce(&"test.stays".into(), via(1, Peer), None);
        for number in 0..6 {
            let prefix: Arc<str> = format!("test.{number}").into();
            log.announce(&prefix, via(1, Peer), None);
            log.withdraw(&prefix);
        }
        let all = "0+test.me 1+test.stays 3-test.0 5-test.1 7-test.2 9-test.3 11-test.4 13-test.5";
        assert_eq!(heard(&log, 0, 9, Peer), all);
        let mark = log.forgotten_before();
        assert_eq!((mark, log.has_lost(mark, 0)), (0, false));

        log.announce(&"test.last".into(), via(1, Peer), None);
        log.withdraw(&"test.stays".into());
        assert_eq!(
            heard(&log, 0, 9, Peer),
            "0+test.me 11-test.4 13-test.5 14+test.last 15-test.stays"
        );
        assert_eq!((log.withdrawn, log.entries.len()), (3, log.epochs.len()));
        assert_eq!(log.forgotten_before(), 10);
        for (mark, epoch, has_lost) in [
            (0, 0, true),
            (0, 9, true),
            (0, 10, false),
            (10, 0, false),
            (10, 5, false),
        ] {
            assert_eq!(log.has_lost(mark, epoch), has_lost, "since {mark}, heard up to {epoch}");
        }
        assert_eq!(log.table_id(), [7; 16]);
    }

    #[test]
    fn a_log_is_never_longer_than_its_limits() {
        let limits = LogLimits {
            routes_max: 50,
            withdrawn_spare: 100,
        };
        let mut log = log_with(limits);
        for number in 0..5_000_u32 {
            let prefix: Arc<str> = format!("test.{}", number.wrapping_mul(2_654_435_761) % 1_000).into();
            match number % 3 {
                0 => log.withdraw(&prefix),
                _ => drop(log.announce(&prefix, via(number % 4, Peer), None)),
            }
            let withdrawn = log.entries.values().filter(|entry| entry.told.is_none()).count();
            assert_eq!((log.withdrawn, log.entries.len()), (withdrawn, log.epochs.len()));
            assert!(log.len() <= limits.routes_max && withdrawn <= log.len() + limits.withdrawn_spare);
        }
        for (epoch, entry) in &log.entries {
            assert_eq!(log.epochs[&entry.prefix], *epoch);
        }
    }

    #[test]
    fn epochs_begin_anew_before_they_end() {
        let mut log = log();
        log.announce(&"test.a".into(), via(1, Peer), None);
        log.next_epoch = EPOCH_MAX - 1;
        log.announce(&"test.b".into(), via(1, Peer), None);
        assert_eq!((log.table_id(), log.epoch()), ([7; 16], EPOCH_MAX));
        log.announce(&"test.c".into(), via(1, Peer), None);
        assert_eq!(log.table_id(), table_after(&[7; 16], b"all"));
        assert_eq!(heard(&log, 0, 9, Peer), "0+test.me 1+test.a 2+test.b 3+test.c");
    }
}
