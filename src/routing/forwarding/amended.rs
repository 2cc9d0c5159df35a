//! A snapshot, and the changes that were made since: what one shard looks packets up in.
//!
//! Owns how the two are read as one: a prefix that was changed counts as it is now, whatever the snapshot says, and the
//! longest prefix wins wherever it stands. While nothing has changed, a look-up is one in the snapshot.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::ledger::account::AccountId;
use crate::wire::address::{ADDRESS_BYTES_MAX, Address, check_prefix};

use super::Forwarding;
use super::depths::{Depths, depth_of};

/// Changed prefixes from which on a new snapshot should be made. So many stay in the caches near the core, and a shard
/// forgets them in some 50 microseconds.
pub const CHANGES_MAX: usize = 1_024;

/// See the module's text.
pub struct Amended {
    pub(super) snapshot: Arc<Forwarding>,
    /// By the snapshot's hash; what it says itself is not among them.
    changes: HashTable<Amendment>,
    /// Those of the snapshot and those of the prefixes that were set since.
    pub(super) depths: Depths,
}

/// A prefix that does not lead where the snapshot says.
struct Amendment {
    hash: u64,
    prefix: Arc<str>,
    /// `None`: nowhere, so that a shorter prefix counts.
    next_hop: Option<AccountId>,
}

impl Amended {
    /// The table as it is in `snapshot`.
    pub fn new(snapshot: Arc<Forwarding>) -> Self {
        Self {
            changes: HashTable::new(),
            depths: snapshot.depths.clone(),
            snapshot,
        }
    }

    /// The next hop of the longest prefix that is `destination` or its beginning up to a dot.
    #[inline]
    pub fn lookup(&self, destination: Address<'_>) -> Option<AccountId> {
        if self.changes.is_empty() {
            self.snapshot.lookup(destination)
        } else {
            self.lookup_among_changes(destination)
        }
    }

    #[inline(never)]
    fn lookup_among_changes(&self, destination: Address<'_>) -> Option<AccountId> {
        self.snapshot
            .search(destination, &self.depths, |prefix, hash| self.find(prefix, hash))
    }

    /// The next hop set for exactly this prefix.
    pub fn get(&self, prefix: &str) -> Option<AccountId> {
        if prefix.len() > ADDRESS_BYTES_MAX {
            return None;
        }
        self.find(prefix.as_bytes(), self.snapshot.keys.hash(prefix.as_bytes()))
    }

    /// Makes `next_hop` the way to `prefix`, which is as [`check_prefix`] returns it; `None`: no way leads there any
    /// more. Takes some 100 nanoseconds.
    pub fn set(&mut self, prefix: Arc<str>, next_hop: Option<AccountId>) {
        assert_eq!(
            check_prefix(&prefix),
            Ok(&*prefix),
            "prefixes are checked where they come in"
        );
        let hash = self.snapshot.keys.hash(prefix.as_bytes());
        let is_as_before = self.snapshot.index.find(prefix.as_bytes(), hash) == next_hop;
        let known = self.changes.find_entry(hash, |change| change.prefix == prefix);
        match (known, is_as_before) {
            (Ok(known), true) => drop(known.remove()),
            (Ok(mut known), false) => known.get_mut().next_hop = next_hop,
            (Err(_), true) => return,
            (Err(_), false) => {
                let amendment = Amendment {
                    hash,
                    prefix: Arc::clone(&prefix),
                    next_hop,
                };
                self.changes.insert_unique(hash, amendment, |change| change.hash);
            }
        }
        if next_hop.is_some() {
            self.depths.add(depth_of(&prefix));
        }
        if self.changes.is_empty() {
            self.depths = self.snapshot.depths.clone();
        }
    }

    /// How many prefixes do not lead where the snapshot says.
    pub fn changed(&self) -> usize {
        self.changes.len()
    }

    #[inline]
    fn find(&self, prefix: &[u8], hash: u64) -> Option<AccountId> {
        match self.changes.find(hash, |change| change.prefix.as_bytes() == prefix) {
            Some(change) => change.next_hop,
            None => self.snapshot.index.find(prefix, hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `prefix=next-hop`, or `prefix=-` for none; one after the other.
    fn set(table: &mut Amended, routes: &str) {
        for route in routes.split_whitespace() {
            let (prefix, next_hop) = route.split_once('=').unwrap();
            table.set(prefix.into(), next_hop.parse().ok().map(AccountId::new));
        }
    }

    fn lookup(table: &Amended, destination: &str) -> String {
        let found = table.lookup(Address::parse(destination.as_bytes()).unwrap());
        found.map_or("-".to_owned(), |next_hop| next_hop.to_string())
    }

    #[test]
    fn snapshot_and_changes_are_read_as_one() {
        let routes = [("g", 1), ("g.a.b", 2), ("g.c", 3)].map(|(prefix, number)| (prefix, AccountId::new(number)));
        let snapshot: Arc<Forwarding> = Arc::new(routes.into_iter().collect());
        for (changes, count, found) in [
            ("", 0, "1 2 2 3 -"),
            ("g.a.b=9", 1, "1 9 9 3 -"),
            ("g.a.b=-", 1, "1 1 1 3 -"),     // a shorter one of the snapshot counts again
            ("g.a.b=- g=8", 2, "8 8 8 3 -"), // or a shorter one that changed
            ("g.a.b.c=7", 1, "1 2 7 3 -"),   // longer than any in the snapshot
            ("g.a=6", 1, "6 2 2 3 -"),       // between two of the snapshot
            ("g=- g.a.b=- g.c=-", 3, "- - - - -"),
            ("g=- =5", 2, "5 2 2 3 5"),
            ("g.a.b=- g.a.b=2", 0, "1 2 2 3 -"), // as it was
            ("g.x=4 g.x=-", 0, "1 2 2 3 -"),
            ("g.c=4 g.c=5 g.c=6", 1, "1 2 2 6 -"),
        ] {
            let mut table = Amended::new(Arc::clone(&snapshot));
            set(&mut table, changes);
            assert_eq!(table.changed(), count, "{changes}");
            let destinations = ["g.a", "g.a.b", "g.a.b.c", "g.c.d", "test.a"];
            let all = destinations.map(|destination| lookup(&table, destination));
            assert_eq!(all.join(" "), found, "{changes}");
        }
    }

    #[test]
    fn changes_that_are_taken_back_leave_nothing_behind() {
        let mut table = Amended::new(Arc::new(Forwarding::empty()));
        for round in 0..20 {
            for number in 0..CHANGES_MAX {
                table.set(format!("g.{round}.a.b.c.{number}").into(), Some(AccountId::new(1)));
            }
            assert_eq!(table.changed(), CHANGES_MAX);
            for number in 0..CHANGES_MAX {
                table.set(format!("g.{round}.a.b.c.{number}").into(), None);
            }
            assert_eq!(table.changed(), 0);
            assert_eq!(table.depths.different(), 0);
        }
        assert!(
            table.changes.capacity() < 4 * CHANGES_MAX,
            "{}",
            table.changes.capacity()
        );
    }

    #[test]
    #[should_panic(expected = "prefixes are checked where they come in")]
    fn an_unchecked_prefix_is_our_mistake() {
        set(&mut Amended::new(Arc::new(Forwarding::empty())), "g.a.=1");
    }
}
