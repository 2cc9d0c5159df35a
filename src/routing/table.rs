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
    /// The claim that wins among the claims. Kept apart, because nearly every prefix has one claim and a list of its
    /// own would cost an allocation for each.
    oldest: Option<AccountId>,
    /// All other claims, ascending; every one above `oldest`.
    younger: Vec<AccountId>,
}

impl Candidates {
    fn winner(&self) -> Option<AccountId> {
        self.fixed.or(self.oldest)
    }

    fn is_empty(&self) -> bool {
        self.fixed.is_none() && self.oldest.is_none()
    }

    fn claim(&mut self, account: AccountId) {
        let Some(oldest) = self.oldest else {
            self.oldest = Some(account);
            return;
        };
        if account == oldest {
            return;
        }
        self.oldest = Some(account.min(oldest));
        let later = account.max(oldest);
        if let Err(place) = self.younger.binary_search(&later) {
            self.younger.insert(place, later);
        }
    }

    fn unclaim(&mut self, account: AccountId) {
        if self.oldest == Some(account) {
            self.oldest = if self.younger.is_empty() {
                None
            } else {
                Some(self.younger.remove(0))
            };
        } else if let Ok(place) = self.younger.binary_search(&account) {
            self.younger.remove(place);
        }
    }
}

/// The routing table: every candidate for every prefix, in the order of the prefixes.
#[derive(Clone, Default, Debug)]
pub struct Table {
    candidates: BTreeMap<Arc<str>, Candidates>,
    fixed_count: usize,
}

impl Table {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many prefixes lead somewhere.
    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// How many fixed routes there are.
    pub fn fixed_count(&self) -> usize {
        self.fixed_count
    }

    /// Where exactly this prefix leads; no look-up of shorter ones.
    pub fn winner(&self, prefix: &str) -> Option<AccountId> {
        self.candidates.get(prefix)?.winner()
    }

    /// Where the operator sends exactly this prefix.
    pub fn fixed(&self, prefix: &str) -> Option<AccountId> {
        self.candidates.get(prefix)?.fixed
    }

    /// The accounts that claim exactly this prefix, oldest first.
    pub fn claims(&self, prefix: &str) -> impl Iterator<Item = AccountId> + '_ {
        let candidates = self.candidates.get(prefix);
        candidates
            .into_iter()
            .flat_map(|candidates| candidates.oldest.iter().chain(&candidates.younger).copied())
    }

    /// Every prefix and where it leads, in the order of the prefixes.
    pub fn winners(&self) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        self.candidates
            .iter()
            .filter_map(|(prefix, candidates)| Some((prefix, candidates.winner()?)))
    }

    /// The fixed routes, in the order of the prefixes.
    pub fn fixed_routes(&self) -> impl Iterator<Item = (&Arc<str>, AccountId)> {
        self.candidates
            .iter()
            .filter_map(|(prefix, candidates)| Some((prefix, candidates.fixed?)))
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
        match step {
            Step::Claim { prefix, account } => self.candidates.entry(prefix).or_default().claim(account),
            Step::Fix { prefix, next_hop } => {
                let candidates = self.candidates.entry(prefix).or_default();
                if candidates.fixed.replace(next_hop).is_none() {
                    self.fixed_count += 1;
                }
            }
            Step::Unclaim { prefix, account } => self.withdraw(prefix, |candidates| candidates.unclaim(account)),
            Step::Unfix { prefix } => {
                let mut removed = false;
                self.withdraw(prefix, |candidates| removed = candidates.fixed.take().is_some());
                self.fixed_count -= usize::from(removed);
            }
        }
    }

    /// Changes the candidates of a prefix that has some, and forgets the prefix with its last one.
    fn withdraw(&mut self, prefix: Arc<str>, change: impl FnOnce(&mut Candidates)) {
        if let Entry::Occupied(mut entry) = self.candidates.entry(prefix) {
            change(entry.get_mut());
            if entry.get().is_empty() {
                entry.remove();
            }
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
