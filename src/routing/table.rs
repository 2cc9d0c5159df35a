//! Every route the node knows, and the choice among those with the same prefix.
//!
//! Owns the candidates: what the operator fixed, what accounts claim because it is their own address (or, for the
//! parent, because everything else goes there), and what neighbours told us; and whether their links are up. Leaves the
//! look-up of destinations to [`super::forwarding`], which holds the winners only, and to [`super::ccp`] what to believe
//! of a neighbour. Runs on the cold half of the node; shards never see it.
//!
//! The choice for one prefix (protocols.md 8.9; RFC 27 leaves it to the connector): a fixed route first, then the claim
//! of an account, then what was learned from a child, a peer, the parent; then fewer hops; then the oldest account.
//! Account numbers are given in order and once, so the oldest account is the one with the lowest number. Whose link is
//! down stands behind all whose links are up: the next best takes over and gives way again. If all are down the best
//! stays in force, so that a packet is told to come back (T01) and not that there is no such place (F02).
//!
//! Always: a prefix is in the table if and only if it has a candidate; the changes that are returned turn the winners
//! before them into the winners after them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::ledger::account::{AccountId, RoutingRelation};

mod candidates;

pub use candidates::Origin;
use candidates::{Kept, Known, Place};

/// One step of a change. Prefixes are normalized: no trailing dot, `""` for the default route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The account has this address, or is the parent and claims `""`. Claiming twice is claiming once.
    Claim { prefix: Arc<str>, account: AccountId },
    /// The account gives up its claim, if it has one.
    Unclaim { prefix: Arc<str>, account: AccountId },
    /// The operator sends this prefix to an account, whatever others claim.
    Fix { prefix: Arc<str>, next_hop: AccountId },
    /// The operator takes that back, if it was so.
    Unfix { prefix: Arc<str> },
    /// A neighbour told this prefix. Telling again replaces.
    Learn {
        prefix: Arc<str>,
        account: AccountId,
        relation: RoutingRelation,
        hops: u8,
    },
    /// The neighbour took it back, if it had told it.
    Unlearn { prefix: Arc<str>, account: AccountId },
}

impl Step {
    fn prefix(&self) -> &Arc<str> {
        match self {
            Self::Claim { prefix, .. }
            | Self::Unclaim { prefix, .. }
            | Self::Fix { prefix, .. }
            | Self::Unfix { prefix }
            | Self::Learn { prefix, .. }
            | Self::Unlearn { prefix, .. } => prefix,
        }
    }

    /// Which place changes, and what is in it then.
    fn effect(&self) -> (Place, Option<Known>) {
        let known = |account, origin| Some(Known { account, origin });
        match *self {
            Self::Claim { account, .. } => (Place::Own(account), known(account, Origin::Own)),
            Self::Unclaim { account, .. } => (Place::Own(account), None),
            Self::Fix { next_hop, .. } => (Place::Fixed, known(next_hop, Origin::Fixed)),
            Self::Unfix { .. } => (Place::Fixed, None),
            Self::Learn {
                account,
                relation,
                hops,
                ..
            } => (
                Place::Learned(account),
                known(account, Origin::Learned { relation, hops }),
            ),
            Self::Unlearn { account, .. } => (Place::Learned(account), None),
        }
    }
}

/// A prefix that leads elsewhere now, or in another way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteChange {
    pub prefix: Arc<str>,
    /// `None`: nobody leads there any more.
    pub next_hop: Option<AccountId>,
    /// It led to the same account before: only how it leads there changed, or whether its link is up. That is news for
    /// neighbours, and none for those who forward packets.
    pub same_next_hop: bool,
}

/// A way that packets under a prefix may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub account: AccountId,
    pub origin: Origin,
    /// Whether the link of the account is up.
    pub is_up: bool,
}

impl Candidate {
    fn is_learned_from(&self, account: AccountId) -> bool {
        self.account == account && matches!(self.origin, Origin::Learned { .. })
    }
}

/// How a prefix stood before a change.
#[derive(Clone, Copy)]
struct Before {
    in_force: Option<Candidate>,
    /// The one in force was told again: it may lead over other nodes than before.
    is_told_again: bool,
}

/// The routing table: every candidate for every prefix, in the order of the prefixes, so that who reads all of them can do
/// so in parts.
#[derive(Clone, Default, Debug)]
pub struct Table {
    kept: BTreeMap<Arc<str>, Kept>,
    /// Where an account has a fixed or a learned candidate. Claims are not here: an account knows its own.
    by_account: HashMap<AccountId, BTreeSet<Arc<str>>>,
    /// Accounts whose links are down.
    down: HashSet<AccountId>,
    fixed_count: usize,
}

impl Table {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many prefixes lead somewhere.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many fixed routes there are.
    pub fn fixed_count(&self) -> usize {
        self.fixed_count
    }

    /// Where exactly this prefix leads; no look-up of shorter ones.
    pub fn winner(&self, prefix: &str) -> Option<AccountId> {
        self.in_force(prefix).map(|candidate| candidate.account)
    }

    /// The same, with why.
    pub fn in_force(&self, prefix: &str) -> Option<Candidate> {
        self.kept.get(prefix).map(|kept| self.best(kept))
    }

    /// Every way for exactly this prefix, best first: those whose links are down behind all others.
    pub fn candidates(&self, prefix: &str) -> Vec<Candidate> {
        self.kept.get(prefix).map_or_else(Vec::new, |kept| self.in_order(kept))
    }

    /// Where the operator sends exactly this prefix.
    pub fn fixed(&self, prefix: &str) -> Option<AccountId> {
        fixed_of(self.kept.get(prefix)?)
    }

    /// The accounts that claim exactly this prefix, oldest first.
    pub fn claims(&self, prefix: &str) -> impl Iterator<Item = AccountId> + '_ {
        let all = self.kept.get(prefix).map_or(&[][..], Kept::all);
        let own = all.iter().filter(|known| known.origin == Origin::Own);
        own.map(|known| known.account)
    }

    /// Every prefix and where it leads, in the order of the prefixes.
    pub fn winners(&self) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        self.winners_after(None)
    }

    /// The same from behind a prefix on, which need not be there.
    pub fn winners_after(&self, prefix: Option<&str>) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        self.kept_after(prefix)
            .map(|(prefix, kept)| (prefix, self.best(kept).account))
    }

    /// Every prefix from behind one on, with all its candidates, best first.
    pub fn candidates_after(&self, prefix: Option<&str>) -> impl Iterator<Item = (&Arc<str>, Vec<Candidate>)> {
        self.kept_after(prefix)
            .map(|(prefix, kept)| (prefix, self.in_order(kept)))
    }

    fn kept_after(&self, prefix: Option<&str>) -> impl Iterator<Item = (&Arc<str>, &Kept)> {
        let first = prefix.map_or(Bound::Unbounded, Bound::Excluded);
        self.kept.range::<str, _>((first, Bound::Unbounded))
    }

    /// The fixed routes, in the order of the prefixes.
    pub fn fixed_routes(&self) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        self.kept
            .iter()
            .filter_map(|(prefix, kept)| Some((prefix, fixed_of(kept)?)))
    }

    /// The prefixes that the operator sends to this account, in their order.
    pub fn fixed_routes_to(&self, account: AccountId) -> Vec<Arc<str>> {
        let routes = self.routes_of(account);
        let fixed = routes.filter(|prefix| self.fixed(prefix) == Some(account));
        fixed.map(Arc::clone).collect()
    }

    /// The prefixes that this neighbour told, in their order.
    pub fn learned_from(&self, account: AccountId) -> impl Iterator<Item = &Arc<str>> {
        self.routes_of(account).filter(move |prefix| {
            let all = self.kept[&***prefix].all();
            all.iter().any(|known| known.is_in(Place::Learned(account)))
        })
    }

    /// Where an account has a fixed or a learned candidate.
    fn routes_of(&self, account: AccountId) -> impl Iterator<Item = &Arc<str>> {
        self.by_account.get(&account).into_iter().flatten()
    }

    /// Gives back the room that prefixes taken one by one have left between them: up to half of the table.
    pub fn shrink(&mut self) {
        self.kept = std::mem::take(&mut self.kept).into_iter().collect();
        for prefixes in self.by_account.values_mut() {
            *prefixes = std::mem::take(prefixes).into_iter().collect();
        }
    }

    /// Takes the steps in order and says what changed. A prefix that ends as it began is not named, unless a neighbour has
    /// told the route in force again.
    pub fn apply(&mut self, steps: impl IntoIterator<Item = Step>) -> Vec<RouteChange> {
        let mut before: BTreeMap<Arc<str>, Before> = BTreeMap::new();
        for step in steps {
            let before = match before.entry(Arc::clone(step.prefix())) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.before(step.prefix())),
            };
            let in_force = self.take(&step);
            if let Step::Learn { account, .. } = step {
                before.is_told_again |= in_force.is_some_and(|candidate| candidate.is_learned_from(account));
            }
        }
        self.changes_since(before)
    }

    /// The link of an account is up or down now; all are up until told otherwise. `claims`: the prefixes that the account
    /// claims itself.
    pub fn set_link(
        &mut self,
        account: AccountId,
        up: bool,
        claims: impl IntoIterator<Item = Arc<str>>,
    ) -> Vec<RouteChange> {
        if up != self.down.contains(&account) {
            return Vec::new();
        }
        let mut prefixes: Vec<Arc<str>> = self.routes_of(account).cloned().collect();
        prefixes.extend(claims);
        prefixes.sort_unstable();
        prefixes.dedup();
        let before = self.note(prefixes);
        if up {
            self.down.remove(&account);
        } else {
            self.down.insert(account);
        }
        self.changes_since(before)
    }

    /// The account is gone, and with it everything learned from it and the state of its link. Its claims and the fixed
    /// routes to it are taken back before, in steps.
    pub fn forget_account(&mut self, account: AccountId) -> Vec<RouteChange> {
        let before = self.note(self.routes_of(account).cloned().collect());
        for (prefix, _) in &before {
            let prefix = Arc::clone(prefix);
            self.take(&Step::Unlearn { prefix, account });
        }
        self.down.remove(&account);
        self.changes_since(before)
    }

    fn before(&self, prefix: &str) -> Before {
        Before {
            in_force: self.in_force(prefix),
            is_told_again: false,
        }
    }

    /// How these prefixes stand.
    fn note(&self, prefixes: Vec<Arc<str>>) -> Vec<(Arc<str>, Before)> {
        let note = |prefix: Arc<str>| {
            let before = self.before(&prefix);
            (prefix, before)
        };
        prefixes.into_iter().map(note).collect()
    }

    /// What stands otherwise now.
    fn changes_since(&self, before: impl IntoIterator<Item = (Arc<str>, Before)>) -> Vec<RouteChange> {
        let change = |(prefix, before): (Arc<str>, Before)| {
            let after = self.in_force(&prefix);
            let next_hop = after.map(|candidate| candidate.account);
            let same_next_hop = before.in_force.map(|candidate| candidate.account) == next_hop;
            (after != before.in_force || before.is_told_again).then_some(RouteChange {
                prefix,
                next_hop,
                same_next_hop,
            })
        };
        before.into_iter().filter_map(change).collect()
    }

    /// Takes one step; gives what is in force after it.
    fn take(&mut self, step: &Step) -> Option<Candidate> {
        let (place, known) = step.effect();
        let found = self.kept.get_key_value(step.prefix());
        // One text for all: the table's own, if it has the prefix.
        let prefix = Arc::clone(found.map_or(step.prefix(), |(prefix, _)| prefix));
        let (kept, replaced) = Kept::put(found.map(|(_, kept)| kept), place, known);
        let in_force = kept.as_ref().map(|kept| self.best(kept));
        if place == Place::Fixed {
            self.fixed_count += usize::from(known.is_some());
            self.fixed_count -= usize::from(replaced.is_some());
        }
        for account in [replaced, known].into_iter().flatten().map(|known| known.account) {
            let all = kept.as_ref().map_or(&[][..], Kept::all);
            let is_listed = all
                .iter()
                .any(|known| known.account == account && known.origin != Origin::Own);
            self.list(account, &prefix, is_listed);
        }
        match kept {
            Some(kept) => drop(self.kept.insert(prefix, kept)),
            None => drop(self.kept.remove(&prefix)),
        }
        in_force
    }

    /// Notes whether the account has a fixed or a learned candidate for the prefix.
    fn list(&mut self, account: AccountId, prefix: &Arc<str>, is_listed: bool) {
        if is_listed {
            let prefixes = self.by_account.entry(account).or_default();
            if !prefixes.contains(prefix) {
                prefixes.insert(Arc::clone(prefix));
            }
        } else if let Some(prefixes) = self.by_account.get_mut(&account) {
            prefixes.remove(prefix);
            if prefixes.is_empty() {
                self.by_account.remove(&account);
            }
        }
    }

    fn seen(&self, known: Known) -> Candidate {
        Candidate {
            account: known.account,
            origin: known.origin,
            is_up: self.is_up(known.account),
        }
    }

    /// Whether the link of an account is up, as far as was told.
    pub fn is_up(&self, account: AccountId) -> bool {
        self.down.is_empty() || !self.down.contains(&account)
    }

    /// The first whose link is up, or else the first.
    fn best(&self, kept: &Kept) -> Candidate {
        let all = kept.all();
        let up = all.iter().find(|known| self.is_up(known.account));
        self.seen(*up.unwrap_or(&all[0]))
    }

    fn in_order(&self, kept: &Kept) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = kept.all().iter().map(|known| self.seen(*known)).collect();
        // Stable: each half stays as it is.
        all.sort_by_key(|candidate| !candidate.is_up);
        all
    }
}

fn fixed_of(kept: &Kept) -> Option<AccountId> {
    let best = kept.all()[0];
    (best.origin == Origin::Fixed).then_some(best.account)
}

#[cfg(test)]
mod tests;
