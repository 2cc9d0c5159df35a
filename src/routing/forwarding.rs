//! The forwarding table: which account is the next hop for a destination (RFC 27, RFC 15).
//!
//! Owns the look-up: the longest prefix on whole segments wins, so `test.bob` leads to `test.bob.x` and never to
//! `test.bobby`. A [`Forwarding`] is a snapshot: built once, off the shards, then read by all of them and never changed.
//! [`Amended`] is a shard's own view of it, with the few changes that were made since; [`Ahead`] makes the look-ups of
//! several packets wait for memory together. Leaves to `routing::table` which routes there are and which of several for
//! one prefix is in force, and to `control` when a new snapshot is due.
//!
//! Always: a prefix is as [`check_prefix`] returns it and has one next hop. The empty prefix is the default route. A
//! look-up allocates nothing, and its work is bounded by the length of an address, whatever a peer sends or announces.

use crate::ledger::account::AccountId;
use crate::wire::address::{ADDRESS_BYTES_MAX, Address, check_prefix};

mod ahead;
mod amended;
mod depths;
mod hash;
mod index;
mod pages;

pub use ahead::{AHEAD_MAX, Ahead};
pub use amended::{Amended, CHANGES_MAX};
use depths::{Depths, depth_of};
use hash::{Keys, WORD_BYTES, find_dots, first_bytes, read_word};
use index::Index;

/// The most segments of an address, its scheme counted: every other byte is a dot.
const SEGMENTS_MAX: usize = ADDRESS_BYTES_MAX.div_ceil(2);

/// Depths a prefix may have, from none for the empty one.
const DEPTHS_MAX: usize = SEGMENTS_MAX + 1;

/// Prefixes of so many different depths fit the small buffer of a look-up. A table rarely has more than five.
const DEPTHS_FEW: usize = 8;

/// Longest prefix to next hop, as it was at one moment.
///
/// Prefixes are hashed from left to right, once per look-up: the hash of every shorter prefix of a destination comes
/// along at its border. They are then probed from the longest to the shortest, only at depths (numbers of segments)
/// that some prefix of the table has. In a large table nearly all of the time goes into waiting for memory, so that of
/// all borders is asked for before the first is looked at, and what comes in is what is needed: one line of the cache for
/// a border, and the record of the prefix that wins.
///
/// Memory beside the text of a prefix: 6 bytes of record and 13 of index, once for all shards.
pub struct Forwarding {
    index: Index,
    depths: Depths,
    keys: Keys,
}

impl Forwarding {
    /// A table without prefixes: nothing leads anywhere.
    pub fn empty() -> Self {
        Builder::new(0, 0).finish()
    }

    /// The next hop of the longest prefix that is `destination` or its beginning up to a dot.
    #[inline]
    pub fn lookup(&self, destination: Address<'_>) -> Option<AccountId> {
        self.search(destination, &self.depths, |prefix, hash| self.index.find(prefix, hash))
    }

    /// The next hop set for exactly this prefix.
    pub fn get(&self, prefix: &str) -> Option<AccountId> {
        let prefix = prefix.as_bytes();
        (prefix.len() <= ADDRESS_BYTES_MAX)
            .then(|| self.index.find(prefix, self.keys.hash(prefix)))
            .flatten()
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that the table takes, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of::<[u128; hash::WORDS_MAX + 1]>() + self.index.bytes()
    }

    /// What `find` finds for the longest beginning of `destination` for which it finds something, among those that end at
    /// a border and have one of `depths`.
    #[inline]
    fn search(
        &self,
        destination: Address<'_>,
        depths: &Depths,
        find: impl Fn(&[u8], u64) -> Option<AccountId>,
    ) -> Option<AccountId> {
        let bytes = destination.as_bytes();
        if depths.different() <= DEPTHS_FEW {
            self.search_within::<DEPTHS_FEW>(bytes, depths, find)
        } else {
            self.search_within::<DEPTHS_MAX>(bytes, depths, find)
        }
    }

    /// Searches with room for `BORDERS` candidates: enough if there are no more than `BORDERS` depths, because the
    /// candidates all differ in depth.
    #[inline]
    fn search_within<const BORDERS: usize>(
        &self,
        destination: &[u8],
        depths: &Depths,
        find: impl Fn(&[u8], u64) -> Option<AccountId>,
    ) -> Option<AccountId> {
        let mut borders = [Border::default(); BORDERS];
        let mut count = 0;
        self.walk(destination, depths, |border| {
            self.index.prefetch(border.hash);
            borders[count] = border;
            count += 1;
        });
        borders[..count]
            .iter()
            .rev()
            .find_map(|border| find(&destination[..border.end], border.hash))
    }

    /// Every border of `destination` at one of `depths`, from the shortest beginning to the longest.
    #[inline]
    fn walk(&self, destination: &[u8], depths: &Depths, mut note: impl FnMut(Border)) {
        let Some(deepest) = depths.deepest() else { return };
        let mut note = |end: usize, sum: u128| {
            let hash = Keys::finish(sum);
            note(Border { end, hash });
        };
        let mut sum = self.keys.start();
        if depths.has(0) {
            note(0, sum);
        }
        let mut depth = 0;
        if depth == deepest {
            return;
        }
        for index in 0..destination.len().div_ceil(WORD_BYTES) {
            let word = read_word(destination, index);
            let mut dots = find_dots(word);
            while dots != 0 {
                let before = dots.trailing_zeros() as usize / 8;
                depth += 1;
                if depths.has(depth) {
                    note(
                        index * WORD_BYTES + before,
                        self.keys.add(sum, index, first_bytes(word, before)),
                    );
                }
                if depth == deepest {
                    return;
                }
                dots &= dots - 1;
            }
            sum = self.keys.add(sum, index, word);
        }
        if depths.has(depth + 1) {
            note(destination.len(), sum);
        }
    }
}

impl<P: AsRef<str>> FromIterator<(P, AccountId)> for Forwarding {
    /// Of several next hops for one prefix the last one stays.
    fn from_iter<I: IntoIterator<Item = (P, AccountId)>>(routes: I) -> Self {
        let routes: Vec<_> = routes.into_iter().collect();
        let prefix_bytes = routes.iter().map(|(prefix, _)| prefix.as_ref().len()).sum();
        let mut table = Builder::new(routes.len(), prefix_bytes);
        for (prefix, next_hop) in &routes {
            table.add(prefix.as_ref(), *next_hop);
        }
        table.finish()
    }
}

/// A table that is being built, prefix by prefix: who reads them from something that others wait for can do so in parts.
pub struct Builder(Forwarding);

impl Builder {
    /// Room for so many prefixes, with so many bytes together.
    pub fn new(prefixes: usize, prefix_bytes: usize) -> Self {
        Self(Forwarding {
            index: Index::with_capacity(prefixes, prefix_bytes),
            depths: Depths::default(),
            keys: Keys::default(),
        })
    }

    /// Makes `next_hop` the way to `prefix`, which is as [`check_prefix`] returns it.
    ///
    /// # Panics
    /// If there is no room.
    pub fn add(&mut self, prefix: &str, next_hop: AccountId) {
        let Forwarding { index, depths, keys } = &mut self.0;
        assert_eq!(
            check_prefix(prefix),
            Ok(prefix),
            "prefixes are checked where they come in"
        );
        index.insert(prefix.as_bytes(), keys.hash(prefix.as_bytes()), next_hop);
        depths.add(depth_of(prefix));
    }

    pub fn finish(self) -> Forwarding {
        self.0
    }
}

/// A prefix of a destination that may be in the table: its length, and its hash.
#[derive(Clone, Copy, Default)]
struct Border {
    end: usize,
    hash: u64,
}

#[cfg(test)]
mod tests {
    use super::hash::WORDS_MAX;
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
        assert_eq!(table.get(&format!("{longest}_")), None, "too long to be there");
    }

    #[test]
    fn every_depth_at_once() {
        let of_depth = |depth: usize| match depth {
            0 => String::new(),
            _ => format!("g{}", ".a".repeat(depth - 1)),
        };
        let deepest = of_depth(SEGMENTS_MAX);
        assert_eq!(deepest.len(), ADDRESS_BYTES_MAX);
        // Tables of few depths and of many answer alike.
        for depths in [
            1,
            2,
            DEPTHS_FEW - 1,
            DEPTHS_FEW,
            DEPTHS_FEW + 1,
            64,
            65,
            200,
            DEPTHS_MAX,
        ] {
            let table: Forwarding = (0..depths)
                .map(|depth| (of_depth(depth), AccountId::new(depth as u32)))
                .collect();
            for depth in 2..SEGMENTS_MAX {
                let destination = of_depth(depth);
                let found = |depth: usize| Some(depth.min(depths - 1) as u32);
                assert_eq!(lookup(&table, &destination), found(depth));
                assert_eq!(lookup(&table, &format!("{destination}b")), found(depth - 1));
            }
            assert_eq!(lookup(&table, &deepest), Some(depths as u32 - 1));
        }
    }

    #[test]
    fn of_several_for_one_prefix_the_last_stays() {
        let table = table("g.a=1 g.b=2 g.a=3");
        assert_eq!(table.len(), 2);
        assert_eq!(table.get("g.a"), Some(AccountId::new(3)));
        assert_eq!(table.get("g"), None, "only exactly this prefix");
        assert_eq!(table.get("g.a.b"), None);
        assert!(Forwarding::empty().is_empty());
    }

    #[test]
    #[should_panic(expected = "prefixes are checked where they come in")]
    fn an_unchecked_prefix_is_our_mistake() {
        table("g.a.=1");
    }

    #[test]
    #[should_panic(expected = "as many prefixes as were announced")]
    fn more_prefixes_than_announced_are_our_mistake() {
        let mut table = Builder::new(1, 100);
        table.add("g.a", AccountId::new(1));
        table.add("g.a", AccountId::new(2));
        table.add("g.b", AccountId::new(1));
    }

    #[test]
    fn a_large_table_finds_all_it_has_and_nothing_else() {
        let prefix = |number: u32| format!("test.peer-{}.region.{number}", number % 7);
        let table: Forwarding = (0..50_000)
            .map(|number| (prefix(number), AccountId::new(number)))
            .collect();
        assert_eq!(table.len(), 50_000);
        for number in 0..50_000 {
            assert_eq!(table.get(&prefix(number)), Some(AccountId::new(number)));
            assert_eq!(lookup(&table, &format!("{}.x", prefix(number))), Some(number));
            assert_eq!(table.get(&prefix(number + 50_000)), None);
        }
        let text: usize = (0..50_000).map(|number| prefix(number).len()).sum();
        let beside_text = (table.bytes() - text) as f64 / 50_000.0;
        assert!(beside_text < 20.0, "{beside_text} bytes");
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

    /// A table whose prefixes all have the same hash, for want of keys: then the text alone decides.
    fn without_keys(routes: &BTreeMap<String, u32>) -> Forwarding {
        let mut table = Builder::new(routes.len(), routes.keys().map(String::len).sum());
        table.0.keys = Keys(Box::new([0; WORDS_MAX + 1]));
        for (prefix, next_hop) in routes {
            table.add(prefix, AccountId::new(*next_hop));
        }
        table.finish()
    }

    proptest! {
        #[test]
        fn it_does_what_a_search_through_all_routes_does(
            changes in prop::collection::vec((any_prefix(), prop::option::weighted(0.7, 0u32..100)), 0..120),
            // After so many changes there is a new snapshot.
            changes_per_snapshot in 1usize..120,
            destinations in prop::collection::vec(any_prefix(), 1..30),
            all_meet in any::<bool>(),
        ) {
            let mut routes = BTreeMap::new();
            let snapshot = |routes: &BTreeMap<String, u32>| {
                let numbered = routes.iter().map(|(prefix, next_hop)| (prefix, AccountId::new(*next_hop)));
                Amended::new(Arc::new(if all_meet { without_keys(routes) } else { numbered.collect() }))
            };
            let mut table = snapshot(&routes);
            for changes in changes.chunks(changes_per_snapshot) {
                for (prefix, next_hop) in changes {
                    table.set(prefix.as_str().into(), next_hop.map(AccountId::new));
                    match next_hop {
                        Some(next_hop) => routes.insert(prefix.clone(), *next_hop),
                        None => routes.remove(prefix),
                    };
                    prop_assert_eq!(table.get(prefix).map(AccountId::get), *next_hop);
                }
                let new = snapshot(&routes);
                for destination in &destinations {
                    let Ok(destination) = Address::parse(destination.as_bytes()) else { continue };
                    let expected = naive_lookup(&routes, destination);
                    for table in [&table, &new] {
                        let found = table.lookup(destination).map(AccountId::get);
                        prop_assert_eq!(found, expected, "{}", destination);
                    }
                }
                table = new;
            }
        }
    }
}
