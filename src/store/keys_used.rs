//! When the answer to each incoming settlement was last used, as the ledger has it in memory.
//!
//! Owns finding what was used the longest ago without looking at everything: the writer's thread asks, and all packets
//! wait for it meanwhile. Leaves which answers are kept, and for how long, to [`super::fold`] and to who forgets them.
//!
//! Always: one step costs what it changes, not what is kept.

use std::collections::{BTreeMap, BTreeSet};

use super::SettlementKey;
use crate::ledger::AccountId;

/// Accounts looked at and keys forgotten in one step: with the commit of what it forgets it takes about a millisecond.
const STEP_MAX: usize = 256;

#[derive(Default)]
pub(super) struct KeysUsed(BTreeMap<AccountId, OfAccount>);

/// Never without a key. Times are milliseconds since 1970.
#[derive(Default)]
struct OfAccount {
    used: BTreeMap<SettlementKey, u64>,
    by_use: BTreeSet<(u64, SettlementKey)>,
}

impl KeysUsed {
    pub fn new(used: &BTreeMap<(AccountId, SettlementKey), u64>) -> Self {
        let mut accounts: BTreeMap<AccountId, BTreeMap<SettlementKey, u64>> = BTreeMap::new();
        for ((account, key), used_ms) in used {
            accounts.entry(*account).or_default().insert(*key, *used_ms);
        }
        let of_account = |used: BTreeMap<SettlementKey, u64>| OfAccount {
            by_use: used.iter().map(|(key, used_ms)| (*used_ms, *key)).collect(),
            used,
        };
        let accounts = accounts.into_iter();
        Self(accounts.map(|(account, used)| (account, of_account(used))).collect())
    }

    pub fn contains(&self, account: AccountId, key: &SettlementKey) -> bool {
        self.0.get(&account).is_some_and(|keys| keys.used.contains_key(key))
    }

    /// Keys of the account.
    pub fn count(&self, account: AccountId) -> usize {
        self.0.get(&account).map_or(0, |keys| keys.used.len())
    }

    /// The key of the account whose last use is the longest ago, and when that was.
    pub fn oldest(&self, account: AccountId) -> Option<(u64, SettlementKey)> {
        self.0.get(&account)?.by_use.first().copied()
    }

    /// A key is used, maybe for the first time.
    pub fn insert(&mut self, account: AccountId, key: SettlementKey, at_ms: u64) {
        let keys = self.0.entry(account).or_default();
        if let Some(before_ms) = keys.used.insert(key, at_ms) {
            keys.by_use.remove(&(before_ms, key));
        }
        keys.by_use.insert((at_ms, key));
    }

    /// What [`Self::oldest`] gives goes, and is given.
    pub fn remove_oldest(&mut self, account: AccountId) -> Option<SettlementKey> {
        let keys = self.0.get_mut(&account)?;
        let (_, key) = keys.by_use.pop_first()?;
        keys.used.remove(&key);
        if keys.used.is_empty() {
            self.0.remove(&account);
        }
        Some(key)
    }

    pub fn remove_account(&mut self, account: AccountId) {
        self.0.remove(&account);
    }

    /// One step of forgetting what was last used before `before_ms`, from this account on. Gives the account to go on from;
    /// `None`: that was all.
    pub fn forget(
        &mut self,
        before_ms: u64,
        from: AccountId,
        mut forgotten: impl FnMut(AccountId, SettlementKey),
    ) -> Option<AccountId> {
        let mut next = Some(from);
        for _ in 0..STEP_MAX {
            let (&account, _) = self.0.range(next?..).next()?;
            next = Some(account);
            let is_old = |(used_ms, _): &(u64, SettlementKey)| *used_ms < before_ms;
            if self.oldest(account).as_ref().is_some_and(is_old) {
                let key = self.remove_oldest(account)?;
                forgotten(account, key);
            } else {
                next = account.get().checked_add(1).map(AccountId::new);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> SettlementKey {
        let mut key = [0; 32];
        // Not in the order of their use.
        key[..4].copy_from_slice(&number.reverse_bits().to_be_bytes());
        key
    }

    fn forget_all(keys: &mut KeysUsed, before_ms: u64) -> (usize, Vec<(AccountId, SettlementKey)>) {
        let (mut steps, mut gone) = (0, Vec::new());
        let mut next = Some(AccountId::new(0));
        while let Some(from) = next {
            let before = gone.len();
            next = keys.forget(before_ms, from, |account, key| gone.push((account, key)));
            assert!(gone.len() - before <= STEP_MAX);
            steps += 1;
        }
        (steps, gone)
    }

    #[test]
    fn the_oldest_is_known_whatever_happens_to_the_others() {
        let [alice, bob] = [1, 2].map(AccountId::new);
        let mut keys = KeysUsed::default();
        assert_eq!((keys.count(alice), keys.oldest(alice)), (0, None));
        for (number, at_ms) in [(1, 50), (2, 30), (3, 40)] {
            keys.insert(alice, key(number), at_ms);
        }
        keys.insert(bob, key(2), 10);
        assert_eq!((keys.count(alice), keys.oldest(alice)), (3, Some((30, key(2)))));
        assert!(keys.contains(alice, &key(3)) && !keys.contains(bob, &key(3)));
        // Used again, also at an earlier time: a clock may be set.
        keys.insert(alice, key(2), 60);
        assert_eq!((keys.count(alice), keys.oldest(alice)), (3, Some((40, key(3)))));
        keys.insert(alice, key(1), 20);
        assert_eq!(keys.remove_oldest(alice), Some(key(1)));
        assert_eq!((keys.count(alice), keys.oldest(alice)), (2, Some((40, key(3)))));
        keys.remove_account(alice);
        assert_eq!((keys.count(alice), keys.remove_oldest(alice)), (0, None));
        assert_eq!(keys.remove_oldest(bob), Some(key(2)));
        assert_eq!(keys.remove_oldest(bob), None);
    }

    #[test]
    fn what_is_old_is_forgotten_in_short_steps() {
        let mut used = BTreeMap::new();
        // Three with many keys, then many with one that is kept and one that is not.
        for number in 0..9_000 {
            used.insert((AccountId::new(number % 3), key(number)), u64::from(number));
        }
        for number in 10..3_010 {
            used.insert((AccountId::new(number), key(1)), 1);
            used.insert((AccountId::new(number), key(2)), 9_000);
        }
        used.insert((AccountId::new(u32::MAX), key(7)), 7);
        let mut keys = KeysUsed::new(&used);
        let looks = forget_all(&mut keys, 0);
        assert_eq!(looks, (3_003 / STEP_MAX + 1, Vec::new()), "at 3,004 accounts, once");
        let (steps, gone) = forget_all(&mut keys, 4_500);
        let expected: BTreeSet<_> = used
            .iter()
            .filter(|(_, at_ms)| **at_ms < 4_500)
            .map(|(key, _)| *key)
            .collect();
        assert_eq!(gone.iter().copied().collect::<BTreeSet<_>>(), expected);
        assert_eq!(gone.len(), expected.len(), "each once");
        assert_eq!(steps, (gone.len() + 3_003) / STEP_MAX + 1);
        let left: usize = [0, 1, 2, 10, 3_009, u32::MAX]
            .map(|id| keys.count(AccountId::new(id)))
            .iter()
            .sum();
        assert_eq!(left, 4_500 + 2);
        assert_eq!(forget_all(&mut keys, 10_000).1.len(), 4_500 + 3_000);
        assert!(keys.0.is_empty());
    }
}
