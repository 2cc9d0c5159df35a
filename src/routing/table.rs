//! Every route the node knows, and the choice among those with the same prefix.
//!
//! Owns the candidates: what the operator fixed, and what accounts claim because it is their own address (or, for the
//! parent, because everything else goes there). Leaves the look-up of destinations to [`super::forwarding`], which
//! holds the winners only. Runs on the cold half of the node; shards never see it.
//!
//! The choice for one prefix (protocols: RFC 27 leaves it to the connector): a fixed route first, then the claim of the
//! oldest account. Account numbers are given in order and once, so the oldest account is the one with the lowest
//! number.
//!
//! Always: a prefix is in the table if and only if it has a candidate; the changes that [`Table::apply`] returns turn
//! the winners before it into the winners after it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;

use crate::ledger::account::AccountId;

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
}

impl Step {
    fn prefix(&self) -> &Arc<str> {
        match self {
            Self::Claim { prefix, .. }
            | Self::Unclaim { prefix, .. }
            | Self::Fix { prefix, .. }
            | Self::Unfix { prefix } => prefix,
        }
    }
}

/// A prefix whose winner is another one now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteChange {
    pub prefix: Arc<str>,
    /// `None`: nobody leads there any more.
    pub next_hop: Option<AccountId>,
}

/// All candidates for one prefix.
#[derive(Clone, Default, Debug)]
struct Candidates {
    fixed: Option<AccountId>,
    /// Ascending.
    claims: Vec<AccountId>,
}

/// The same as it is kept: nearly every prefix has one candidate, for which a list would cost more than all the rest.
#[derive(Clone, Debug)]
enum Kept {
    Claimed(AccountId),
    Fixed(AccountId),
    Several(Box<Candidates>),
}

impl Candidates {
    fn claim(&mut self, account: AccountId) {
        if let Err(place) = self.claims.binary_search(&account) {
            self.claims.insert(place, account);
        }
    }

    fn unclaim(&mut self, account: AccountId) {
        if let Ok(place) = self.claims.binary_search(&account) {
            self.claims.remove(place);
        }
    }

    /// `None`: there is no candidate.
    fn keep(self) -> Option<Kept> {
        match (self.fixed, &*self.claims) {
            (None, []) => None,
            (None, [only]) => Some(Kept::Claimed(*only)),
            (Some(only), []) => Some(Kept::Fixed(only)),
            _ => Some(Kept::Several(Box::new(self))),
        }
    }
}

impl Kept {
    fn winner(&self) -> Option<AccountId> {
        self.fixed().or(self.claims().first().copied())
    }

    fn fixed(&self) -> Option<AccountId> {
        match self {
            Self::Claimed(_) => None,
            Self::Fixed(next_hop) => Some(*next_hop),
            Self::Several(candidates) => candidates.fixed,
        }
    }

    /// Ascending.
    fn claims(&self) -> &[AccountId] {
        match self {
            Self::Claimed(account) => std::slice::from_ref(account),
            Self::Fixed(_) => &[],
            Self::Several(candidates) => &candidates.claims,
        }
    }

    fn candidates(&self) -> Candidates {
        Candidates {
            fixed: self.fixed(),
            claims: self.claims().to_vec(),
        }
    }
}

/// The routing table: every candidate for every prefix, in the order of the prefixes, so that who reads all of them can do
/// so in parts.
#[derive(Clone, Default, Debug)]
pub struct Table {
    kept: BTreeMap<Arc<str>, Kept>,
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
        self.kept.get(prefix)?.winner()
    }

    /// Where the operator sends exactly this prefix.
    pub fn fixed(&self, prefix: &str) -> Option<AccountId> {
        self.kept.get(prefix)?.fixed()
    }

    /// The accounts that claim exactly this prefix, oldest first.
    pub fn claims(&self, prefix: &str) -> impl Iterator<Item = AccountId> + '_ {
        let kept = self.kept.get(prefix);
        kept.map_or(&[][..], Kept::claims).iter().copied()
    }

    /// Every prefix and where it leads, in the order of the prefixes.
    pub fn winners(&self) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        self.winners_after(None)
    }

    /// The same from behind a prefix on, which need not be there.
    pub fn winners_after(&self, prefix: Option<&str>) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        let first = prefix.map_or(Bound::Unbounded, Bound::Excluded);
        self.kept
            .range::<str, _>((first, Bound::Unbounded))
            .filter_map(|(prefix, kept)| Some((prefix, kept.winner()?)))
    }

    /// The fixed routes, in the order of the prefixes.
    pub fn fixed_routes(&self) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        self.kept
            .iter()
            .filter_map(|(prefix, kept)| Some((prefix, kept.fixed()?)))
    }

    /// The prefixes that the operator sends to this account, in their order.
    pub fn fixed_routes_to(&self, account: AccountId) -> Vec<Arc<str>> {
        let routes = self.fixed_routes().filter(|(_, next_hop)| *next_hop == account);
        routes.map(|(prefix, _)| Arc::clone(prefix)).collect()
    }

    /// Gives back the room that prefixes taken one by one have left between them: up to half of the table.
    pub fn shrink(&mut self) {
        self.kept = std::mem::take(&mut self.kept).into_iter().collect();
    }

    /// Takes the steps in order and says which winners changed. A prefix that ends where it began is not named.
    pub fn apply(&mut self, steps: impl IntoIterator<Item = Step>) -> Vec<RouteChange> {
        let mut before: BTreeMap<Arc<str>, Option<AccountId>> = BTreeMap::new();
        for step in steps {
            let prefix = step.prefix();
            if let Entry::Vacant(entry) = before.entry(Arc::clone(prefix)) {
                entry.insert(self.winner(prefix));
            }
            self.take(step);
        }
        before
            .into_iter()
            .filter_map(|(prefix, before)| {
                let next_hop = self.winner(&prefix);
                (next_hop != before).then_some(RouteChange { prefix, next_hop })
            })
            .collect()
    }

    fn take(&mut self, step: Step) {
        let kept = self.kept.get(step.prefix());
        let mut candidates = kept.map(Kept::candidates).unwrap_or_default();
        let was_fixed = candidates.fixed.is_some();
        let prefix = match step {
            Step::Claim { prefix, account } => {
                candidates.claim(account);
                prefix
            }
            Step::Unclaim { prefix, account } => {
                candidates.unclaim(account);
                prefix
            }
            Step::Fix { prefix, next_hop } => {
                candidates.fixed = Some(next_hop);
                prefix
            }
            Step::Unfix { prefix } => {
                candidates.fixed = None;
                prefix
            }
        };
        self.fixed_count += usize::from(candidates.fixed.is_some());
        self.fixed_count -= usize::from(was_fixed);
        match candidates.keep() {
            Some(kept) => drop(self.kept.insert(prefix, kept)),
            None => drop(self.kept.remove(&prefix)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per step: `claim PREFIX N`, `unclaim PREFIX N`, `fix PREFIX N`, `unfix PREFIX`; `.` is the empty
    /// prefix.
    fn step(line: &str) -> Step {
        let words: Vec<&str> = line.split_whitespace().collect();
        let prefix: Arc<str> = if words[1] == "." { "".into() } else { words[1].into() };
        let account = || AccountId::new(words[2].parse().unwrap());
        match words[0] {
            "claim" => Step::Claim {
                prefix,
                account: account(),
            },
            "unclaim" => Step::Unclaim {
                prefix,
                account: account(),
            },
            "fix" => Step::Fix {
                prefix,
                next_hop: account(),
            },
            "unfix" => Step::Unfix { prefix },
            other => panic!("no such step: {other}"),
        }
    }

    fn show(changes: &[RouteChange]) -> String {
        let show = |change: &RouteChange| match change.next_hop {
            Some(id) => format!("{}={id}", change.prefix),
            None => format!("{}=-", change.prefix),
        };
        changes.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_choice_for_one_prefix() {
        let mut table = Table::new();
        for (line, changes, prefixes) in [
            ("claim g.a 5", "g.a=5", 1),
            ("claim g.a 5", "", 1),
            ("claim g.a 7", "", 1),        // the older account keeps the route
            ("claim g.a 3", "g.a=3", 1),   // an even older one takes it
            ("unclaim g.a 9", "", 1),      // never had one
            ("unclaim g.a 3", "g.a=5", 1), // back to the next oldest
            ("fix g.a 8", "g.a=8", 1),     // the operator wins
            ("claim g.a 1", "", 1),
            ("fix g.a 9", "g.a=9", 1),
            ("unfix g.a", "g.a=1", 1),
            ("unfix g.a", "", 1),
            ("unclaim g.a 1", "g.a=5", 1),
            ("unclaim g.a 5", "g.a=7", 1),
            ("unclaim g.a 7", "g.a=-", 0),
            ("unclaim g.a 7", "", 0),
            ("unfix g.b", "", 0),
            ("claim . 2", "=2", 1),
            ("fix . 4", "=4", 1),
            ("unfix .", "=2", 1),
        ] {
            assert_eq!(show(&table.apply([step(line)])), changes, "{line}");
            assert_eq!(table.len(), prefixes, "{line}");
        }
    }

    #[test]
    fn only_what_differs_in_the_end_is_a_change() {
        let mut table = Table::new();
        table.apply(["claim g.a 1", "fix g.b 2", "fix g.c 3"].map(step));
        // Replacing the whole fixed table: g.b stays as it was, g.c goes, g.d comes.
        let changes = table.apply(
            [
                "unfix g.b",
                "unfix g.c",
                "fix g.b 2",
                "fix g.d 2",
                "unclaim g.a 1",
                "claim g.a 1",
            ]
            .map(step),
        );
        assert_eq!(show(&changes), "g.c=- g.d=2");
        assert_eq!(table.fixed_count(), 2);
        assert_eq!(
            table
                .fixed_routes()
                .map(|(prefix, _)| prefix.to_string())
                .collect::<Vec<_>>(),
            ["g.b", "g.d"]
        );
        assert_eq!(table.winners().count(), 3);
    }

    #[test]
    fn winners_are_read_in_parts() {
        let mut table = Table::new();
        table.apply(
            [
                "claim g.b 1",
                "claim . 2",
                "fix g 3",
                "claim g.a.x 4",
                "claim g.c 5",
                "fix g.c 6",
            ]
            .map(step),
        );
        table.shrink();
        let read = |after| {
            let routes = table.winners_after(after);
            let shown: Vec<String> = routes.map(|(prefix, id)| format!("{prefix}={id}")).collect();
            shown.join(" ")
        };
        for (after, routes) in [
            (None, "=2 g=3 g.a.x=4 g.b=1 g.c=6"),
            (Some(""), "g=3 g.a.x=4 g.b=1 g.c=6"),
            (Some("g"), "g.a.x=4 g.b=1 g.c=6"),
            (Some("g.a"), "g.a.x=4 g.b=1 g.c=6"), // it need not be there
            (Some("g.a.x"), "g.b=1 g.c=6"),
            (Some("g.c"), ""),
            (Some("h"), ""),
        ] {
            assert_eq!(read(after), routes, "after {after:?}");
        }
    }

    #[test]
    fn claims_are_listed_oldest_first() {
        let mut table = Table::new();
        table.apply(["claim g.a 9", "claim g.a 2", "claim g.a 5"].map(step));
        assert_eq!(table.claims("g.a").map(AccountId::get).collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!(table.claims("g.b").count(), 0);
    }

    #[test]
    fn the_changes_lead_from_the_winners_before_to_the_winners_after() {
        // A replica that sees only the changes must agree with the table after every batch.
        let mut table = Table::new();
        let mut replica: BTreeMap<Arc<str>, AccountId> = BTreeMap::new();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2_000 {
            let mut steps = Vec::new();
            for _ in 0..4 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let prefix: Arc<str> = ["", "g", "g.a", "g.a.b"][(random >> 33) as usize % 4].into();
                let account = AccountId::new((random >> 40) as u32 % 5);
                steps.push(match (random >> 50) % 4 {
                    0 => Step::Claim { prefix, account },
                    1 => Step::Unclaim { prefix, account },
                    2 => Step::Fix {
                        prefix,
                        next_hop: account,
                    },
                    _ => Step::Unfix { prefix },
                });
            }
            for change in table.apply(steps) {
                match change.next_hop {
                    Some(next_hop) => replica.insert(change.prefix, next_hop),
                    None => replica.remove(&change.prefix),
                };
            }
            let winners: BTreeMap<_, _> = table.winners().map(|(prefix, id)| (Arc::clone(prefix), id)).collect();
            assert_eq!(winners, replica);
            assert_eq!(table.fixed_count(), table.fixed_routes().count());
            assert_eq!(table.len(), replica.len());
        }
    }
}
