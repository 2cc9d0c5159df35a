//! The forwarding table: which account is the next hop for a destination (RFC 27, RFC 15).
//!
//! Owns the look-up: the longest prefix on whole segments wins, so `test.bob` leads to `test.bob.x` and never to
//! `test.bobby`. Leaves to `routing::table` which routes there are and which of several for one prefix is in force.
//!
//! Always: a prefix is as [`check_prefix`] returns it and has one next hop. The empty prefix is the default route. A
//! look-up allocates nothing, and its work is bounded by the length of an address, whatever a peer sends or announces.

use hashbrown::HashTable;

use crate::ledger::account::AccountId;
use crate::wire::address::{ADDRESS_BYTES_MAX, Address, check_prefix};

mod hash;
mod records;

use hash::{Keys, WORD_BYTES, find_dots, first_bytes, read_word, slot_hash};
use records::Records;

/// The most segments of an address, its scheme counted: every other byte is a dot.
const SEGMENTS_MAX: usize = ADDRESS_BYTES_MAX.div_ceil(2);

/// Depths a prefix may have, from none for the empty one.
const DEPTHS_MAX: usize = SEGMENTS_MAX + 1;

/// Prefixes of so many different depths fit the small buffer of a look-up. A table rarely has more than five.
const DEPTHS_FEW: usize = 8;

/// Longest prefix to next hop.
///
/// Prefixes are hashed from left to right, once per look-up: the hash of every shorter prefix of a destination comes
/// along at its border. They are then probed from the longest to the shortest, only at depths (numbers of segments)
/// that some prefix of the table has.
///
/// Memory beside the text of a prefix: 6 bytes of record, 6 to 12 of index, and an eighth of both texts and records in
/// reserve.
#[derive(Clone, Default)]
pub struct Forwarding {
    /// Where in `records` each prefix is, found by [`Keys`].
    index: HashTable<u32>,
    records: Records,
    depths: Depths,
    keys: Keys,
}

impl Forwarding {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next hop of the longest prefix that is `destination` or its beginning up to a dot.
    #[inline]
    pub fn lookup(&self, destination: Address<'_>) -> Option<AccountId> {
        let bytes = destination.as_bytes();
        if self.depths.different <= DEPTHS_FEW {
            self.lookup_within::<DEPTHS_FEW>(bytes)
        } else {
            self.lookup_within::<DEPTHS_MAX>(bytes)
        }
    }

    /// Looks up with room for `BORDERS` candidates: enough if the table has no more than `BORDERS` depths, because
    /// the candidates all differ in depth.
    fn lookup_within<const BORDERS: usize>(&self, destination: &[u8]) -> Option<AccountId> {
        let deepest = self.depths.deepest()?;
        let mut borders = [Border::default(); BORDERS];
        let mut count = 0;
        let mut note = |depth: usize, end: usize, hash: u32| {
            if self.depths.has(depth) {
                borders[count] = Border { end, hash };
                count += 1;
            }
        };

        let mut sum = self.keys.start();
        note(0, 0, Keys::finish(sum));
        'walk: {
            let mut depth = 0;
            if depth == deepest {
                break 'walk;
            }
            for (index, chunk) in destination.chunks(WORD_BYTES).enumerate() {
                let word = read_word(chunk);
                let mut dots = find_dots(word);
                while dots != 0 {
                    let before = dots.trailing_zeros() as usize / 8;
                    let begun = self.keys.add(sum, index, first_bytes(word, before));
                    depth += 1;
                    note(depth, index * WORD_BYTES + before, Keys::finish(begun));
                    if depth == deepest {
                        break 'walk;
                    }
                    dots &= dots - 1;
                }
                sum = self.keys.add(sum, index, word);
            }
            note(depth + 1, destination.len(), Keys::finish(sum));
        }

        borders[..count].iter().rev().find_map(|border| {
            let at = self.find(&destination[..border.end], border.hash)?;
            Some(self.records.next_hop(at))
        })
    }

    /// Makes `next_hop` the way to `prefix`; returns the one it replaces.
    ///
    /// `prefix` must be as [`check_prefix`] returns it. Takes amortized constant time; one call in many reads the
    /// whole table, which takes some 50 ms at a million prefixes.
    pub fn insert(&mut self, prefix: impl AsRef<str>, next_hop: AccountId) -> Option<AccountId> {
        let prefix = prefix.as_ref();
        assert_eq!(
            check_prefix(prefix),
            Ok(prefix),
            "prefixes are checked where they come in"
        );
        let hash = self.keys.hash(prefix.as_bytes());
        if let Some(at) = self.find(prefix.as_bytes(), hash) {
            let replaced = self.records.next_hop(at);
            self.records.set_next_hop(at, next_hop);
            return Some(replaced);
        }
        if self.index.len() == self.index.capacity() {
            self.rebuild();
        }
        let at = self.records.push(prefix, next_hop);
        let (records, keys) = (&self.records, &self.keys);
        self.index
            .insert_unique(slot_hash(hash), at, |&at| slot_hash(keys.hash(records.prefix(at))));
        self.depths.add(depth_of(prefix));
        None
    }

    /// Forgets the way to exactly this prefix; returns what it was.
    pub fn remove(&mut self, prefix: &str) -> Option<AccountId> {
        if prefix.len() > ADDRESS_BYTES_MAX {
            return None;
        }
        let hash = self.keys.hash(prefix.as_bytes());
        let records = &self.records;
        let is_it = |&at: &u32| records.prefix(at) == prefix.as_bytes();
        let slot = self.index.find_entry(slot_hash(hash), is_it).ok()?;
        let (at, _) = slot.remove();
        let removed = self.records.next_hop(at);
        self.records.remove(at);
        self.depths.remove(depth_of(prefix));
        if self.records.is_mostly_gaps() {
            self.rebuild();
        }
        Some(removed)
    }

    /// The next hop set for exactly this prefix.
    pub fn get(&self, prefix: &str) -> Option<AccountId> {
        if prefix.len() > ADDRESS_BYTES_MAX {
            return None;
        }
        let at = self.find(prefix.as_bytes(), self.keys.hash(prefix.as_bytes()))?;
        Some(self.records.next_hop(at))
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// All prefixes with their next hops, in no order to rely on.
    pub fn iter(&self) -> impl Iterator<Item = (&str, AccountId)> {
        self.records.iter().map(|at| {
            let prefix = str::from_utf8(self.records.prefix(at)).expect("it was text when it came");
            (prefix, self.records.next_hop(at))
        })
    }

    #[inline]
    fn find(&self, prefix: &[u8], hash: u32) -> Option<u32> {
        let is_it = |&at: &u32| self.records.prefix(at) == prefix;
        self.index.find(slot_hash(hash), is_it).copied()
    }

    /// Closes the gaps that removed prefixes have left, and makes room for an eighth more. Reads the records from
    /// front to back, which took 50 ms for a million on the machine it was measured on: who must not wait so long
    /// changes a copy of the table and puts it in the place of this one.
    #[cold]
    fn rebuild(&mut self) {
        let room = self.len() / 8 + 8;
        let mut index = HashTable::with_capacity(self.len() + room);
        let mut records = Records::with_capacity(self.records.len_without_gaps() / 8 * 9);
        for (prefix, next_hop) in self.iter() {
            let hash = slot_hash(self.keys.hash(prefix.as_bytes()));
            // There is room for all of them, so nothing is ever hashed again.
            index.insert_unique(hash, records.push(prefix, next_hop), |_| unreachable!());
        }
        self.index = index;
        self.records = records;
    }
}

impl<P: AsRef<str>> FromIterator<(P, AccountId)> for Forwarding {
    /// Of several next hops for one prefix the last one stays.
    fn from_iter<I: IntoIterator<Item = (P, AccountId)>>(routes: I) -> Self {
        let mut table = Self::new();
        for (prefix, next_hop) in routes {
            table.insert(prefix, next_hop);
        }
        table
    }
}

/// A prefix of a destination that may be in the table: its length, and its hash.
#[derive(Clone, Copy, Default)]
struct Border {
    end: usize,
    hash: u32,
}

/// The number of segments of a prefix: 0 for the empty one, 1 for a scheme.
fn depth_of(prefix: &str) -> usize {
    if prefix.is_empty() {
        return 0;
    }
    1 + prefix.bytes().filter(|&byte| byte == b'.').count()
}

/// How many prefixes there are of each depth.
#[derive(Clone, Default)]
struct Depths {
    /// By depth; ends with the deepest that has any, so it is empty when the table is.
    prefixes: Vec<u32>,
    /// Depths that have any.
    different: usize,
}

impl Depths {
    #[inline]
    fn deepest(&self) -> Option<usize> {
        self.prefixes.len().checked_sub(1)
    }

    #[inline]
    fn has(&self, depth: usize) -> bool {
        self.prefixes.get(depth).is_some_and(|&count| count > 0)
    }

    fn add(&mut self, depth: usize) {
        if self.prefixes.len() <= depth {
            self.prefixes.resize(depth + 1, 0);
        }
        self.prefixes[depth] += 1;
        if self.prefixes[depth] == 1 {
            self.different += 1;
        }
    }

    fn remove(&mut self, depth: usize) {
        self.prefixes[depth] -= 1;
        if self.prefixes[depth] == 0 {
            self.different -= 1;
        }
        while self.prefixes.last() == Some(&0) {
            self.prefixes.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::hash::WORDS_MAX;
    use super::records::PREFIX;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn table(routes: &str) -> Forwarding {
        routes
            .split_whitespace()
            .map(|route| {
                let (prefix, next_hop) = route.split_once('=').unwrap();
                (prefix, AccountId::new(next_hop.parse().unwrap()))
            })
            .collect()
    }

    fn lookup(table: &Forwarding, destination: &str) -> Option<u32> {
        let destination = Address::parse(destination.as_bytes()).expect(destination);
        table.lookup(destination).map(AccountId::get)
    }

    /// One destination per line: `destination next-hop`, or `-` for none.
    fn check(routes: &str, destinations: &str) {
        let table = table(routes);
        for line in destinations.lines().map(str::trim) {
            let (destination, expected) = line.split_once(' ').unwrap();
            let found = lookup(&table, destination);
            let found = found.map_or("-".to_owned(), |next_hop| next_hop.to_string());
            assert_eq!(found, expected.trim(), "{destination} among {routes}");
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        check(
            "example.a=1 example.a.b=3 example.a.b.c=2",
            "example.a          1
             example.a.x        1
             example.a.b        3
             example.a.b.x      3
             example.a.b.c      2
             example.a.b.c.d.e  2
             example.other      -
             test.a.b.c         -",
        );
    }

    #[test]
    fn a_prefix_ends_on_a_segment_border() {
        check(
            "example.a=1 test.bob=2 g=3 test1.bob=4",
            "example.ab         -
             example.a-b        -
             example.a.b        1
             test.bobby         -
             test.bo            -
             test.bob           2
             test.bob.by        2
             test1.bob          4
             test2.bob          -
             g.bob              3",
        );
    }

    #[test]
    fn a_scheme_and_nothing_are_prefixes() {
        check(
            "g=1 =2 g.a.b=3",
            "g.a       1
             g.a.b     3
             g.a.bc    1
             test.a    2
             test.a.b  2
             self.a    2",
        );
        check("=9", "g.a 9\ntest3.x.y.z 9");
        check("", "g.a -");
    }

    #[test]
    fn borders_around_the_words_of_the_hash() {
        // Prefixes of every length from 3 to 40, each the only one: all positions in a word, and whole words.
        for length in 3..=40 {
            let prefix = format!("g.{}", "abcdefghij".repeat(4).split_at(length - 2).0);
            let table = table(&format!("{prefix}=1"));
            assert_eq!(lookup(&table, &prefix), Some(1), "{prefix}");
            assert_eq!(lookup(&table, &format!("{prefix}.x")), Some(1), "{prefix}");
            assert_eq!(lookup(&table, &format!("{prefix}.abcdefghi.y")), Some(1));
            assert_eq!(lookup(&table, &format!("{prefix}x")), None, "{prefix}");
            assert_eq!(lookup(&table, &format!("{prefix}x.y")), None, "{prefix}");
        }
    }

    #[test]
    fn the_longest_addresses() {
        let longest = format!("test.{}", "_".repeat(ADDRESS_BYTES_MAX - 5));
        let table = table(&format!("{longest}=1 test=2"));
        assert_eq!(lookup(&table, &longest), Some(1));
        assert_eq!(lookup(&table, &longest[..ADDRESS_BYTES_MAX - 1]), Some(2));
        assert_eq!(table.get(&longest), Some(AccountId::new(1)));
        let too_long = format!("{longest}_");
        assert_eq!(table.get(&too_long), None);
        assert_eq!(table.clone().remove(&too_long), None);
    }

    #[test]
    fn every_depth_at_once() {
        let of_depth = |depth: usize| match depth {
            0 => String::new(),
            _ => format!("g{}", ".a".repeat(depth - 1)),
        };
        let mut table = Forwarding::new();
        for depth in 0..=SEGMENTS_MAX {
            table.insert(of_depth(depth), AccountId::new(depth as u32));
        }
        assert_eq!(of_depth(SEGMENTS_MAX).len(), ADDRESS_BYTES_MAX);
        for depth in 2..SEGMENTS_MAX {
            let destination = of_depth(depth);
            assert_eq!(lookup(&table, &destination), Some(depth as u32));
            assert_eq!(lookup(&table, &format!("{destination}b")), Some(depth as u32 - 1));
        }
        // And down again, so that tables of many depths and of few answer alike.
        let deepest = of_depth(SEGMENTS_MAX);
        for depth in (0..=SEGMENTS_MAX).rev() {
            assert_eq!(lookup(&table, &deepest), Some(depth as u32));
            assert_eq!(table.remove(&of_depth(depth)), Some(AccountId::new(depth as u32)));
        }
        assert_eq!(lookup(&table, &deepest), None);
    }

    #[test]
    fn a_prefix_is_replaced_and_removed() {
        let mut table = Forwarding::new();
        assert_eq!(table.insert("g.a", AccountId::new(1)), None);
        assert_eq!(
            table.insert(Arc::<str>::from("g.a"), AccountId::new(2)),
            Some(AccountId::new(1))
        );
        assert_eq!(table.len(), 1);
        assert_eq!(table.get("g.a"), Some(AccountId::new(2)));
        assert_eq!(table.get("g"), None, "only exactly this prefix");
        assert_eq!(table.get("g.a.b"), None);
        assert_eq!(table.remove("g.a.b"), None);
        assert_eq!(table.remove("g.a"), Some(AccountId::new(2)));
        assert_eq!(table.remove("g.a"), None);
        assert!(table.is_empty());
        assert_eq!(lookup(&table, "g.a.b"), None);
    }

    #[test]
    fn a_copy_is_a_table_of_its_own() {
        let mut old = table("g.a=1 g.b=2");
        let new = {
            let mut new = old.clone();
            new.insert("g.a", AccountId::new(3));
            new.remove("g.b");
            new
        };
        old.insert("g.c", AccountId::new(4));
        let routes = |table: &Forwarding| {
            let mut routes: Vec<_> = table.iter().map(|(prefix, hop)| format!("{prefix}={hop:?}")).collect();
            routes.sort();
            routes.join(" ")
        };
        assert_eq!(routes(&old), "g.a=AccountId(1) g.b=AccountId(2) g.c=AccountId(4)");
        assert_eq!(routes(&new), "g.a=AccountId(3)");
    }

    #[test]
    #[should_panic(expected = "prefixes are checked where they come in")]
    fn an_unchecked_prefix_is_our_mistake() {
        table("g.a.=1");
    }

    #[test]
    fn routes_that_come_and_go_leave_nothing_behind() {
        let mut table = Forwarding::new();
        let prefix = |number: u32| format!("g.peer{}.{number}", number % 7);
        for round in 0..20 {
            for number in 0..1_000 {
                table.insert(prefix(round * 500 + number), AccountId::new(number));
            }
            for number in 0..500 {
                assert!(table.remove(&prefix(round * 500 + number)).is_some());
            }
            assert_eq!(table.len(), 500);
            assert_eq!(table.iter().count(), 500);
            let live: usize = table.iter().map(|(prefix, _)| PREFIX + prefix.len()).sum();
            assert_eq!(table.records.len_without_gaps(), live);
        }
        let (kept, reserved) = table.records.len_and_capacity();
        assert!(
            kept <= 2 * 500 * 20 + 500 * 20 && reserved <= 4 * 500 * 20,
            "{kept}, {reserved}"
        );
    }

    /// What the table must do, as slowly and plainly as it can be said.
    fn naive_lookup(routes: &BTreeMap<String, u32>, destination: Address<'_>) -> Option<u32> {
        routes
            .iter()
            .filter(|(prefix, _)| destination.starts_with(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(_, &next_hop)| next_hop)
    }

    /// Few different segments, so that prefixes and destinations meet often.
    fn any_prefix() -> impl Strategy<Value = String> {
        prop_oneof![
            1 => Just(String::new()),
            20 => "(g|test)(\\.(a|b|ab|longsegment|eightbyt)){0,5}",
            1 => "(g|test)(\\.[ab]){0,30}",
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_a_search_through_all_routes_does(
            changes in prop::collection::vec((any_prefix(), prop::option::weighted(0.7, 0u32..100)), 0..120),
            destinations in prop::collection::vec(any_prefix(), 1..30),
            // Without keys, all prefixes have the same hash: then the text alone decides.
            all_meet in any::<bool>(),
        ) {
            let mut table = Forwarding::new();
            if all_meet {
                table.keys = Keys(Arc::new([0; WORDS_MAX + 1]));
            }
            let mut routes = BTreeMap::new();
            for (prefix, next_hop) in changes {
                let (before, expected) = match next_hop {
                    Some(next_hop) => (
                        table.insert(&prefix, AccountId::new(next_hop)),
                        routes.insert(prefix.clone(), next_hop),
                    ),
                    None => (table.remove(&prefix), routes.remove(&prefix)),
                };
                prop_assert_eq!(before.map(AccountId::get), expected);
                prop_assert_eq!(table.get(&prefix).map(AccountId::get), routes.get(&prefix).copied());
            }
            prop_assert_eq!(table.len(), routes.len());
            let listed: BTreeMap<String, u32> =
                table.iter().map(|(prefix, next_hop)| (prefix.to_owned(), next_hop.get())).collect();
            prop_assert_eq!(&listed, &routes);
            for destination in destinations {
                let Ok(destination) = Address::parse(destination.as_bytes()) else { continue };
                let found = table.lookup(destination).map(AccountId::get);
                prop_assert_eq!(found, naive_lookup(&routes, destination), "{}", destination);
            }
        }
    }
}
