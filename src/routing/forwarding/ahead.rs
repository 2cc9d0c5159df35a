//! Look-ups that are about to be made: what they will read of a large table is asked of the memory for several of them
//! at once, so that they need not wait for it one after the other.
//!
//! Owns which lines are asked for, and whether it is worth the work. It only ever changes how long a look-up takes, never
//! what it finds, so the destinations may be guesses: not checked, cut off, or never looked up. Leaves to whoever has
//! the packets where their destinations are.

use crate::wire::address::ADDRESS_BYTES_MAX;

use super::{Amended, Border};

/// So many destinations go together. By the time that the last of them has been read, what the first one needs is there;
/// and of so many, it is still in the cache next to the core when its turn comes.
pub const AHEAD_MAX: usize = 16;

/// Four for each destination. Those of a table with prefixes of more depths are not all asked for.
const BORDERS_MAX: usize = 4 * AHEAD_MAX;

/// A table of fewer bytes mostly stays in the caches that a core has for itself, beside all else that a packet touches,
/// and waiting for those costs less than what is done here: some 50 nanoseconds a packet. Through a whole node, both were
/// equal at somewhat less than 100 KiB.
const LARGE_FROM_BYTES: usize = 256 << 10;

/// The destinations of the next packets, told in their order. First [`Self::expect`] each of them, then
/// [`Self::fetch`], then look them up.
pub struct Ahead<'a> {
    table: &'a Amended,
    borders: [Border; BORDERS_MAX],
    count: usize,
}

impl<'a> Ahead<'a> {
    /// `None`: the table is too small to be worth it.
    #[inline]
    pub fn of(table: &'a Amended) -> Option<Self> {
        (table.snapshot.bytes() >= LARGE_FROM_BYTES).then(|| Self {
            table,
            borders: [Border::default(); BORDERS_MAX],
            count: 0,
        })
    }

    /// Asks for what the look-up of `destination` reads first: the buckets of its borders.
    #[inline]
    pub fn expect(&mut self, destination: &[u8]) {
        let Self { table, borders, count } = self;
        let destination = &destination[..destination.len().min(ADDRESS_BYTES_MAX)];
        table.snapshot.walk(destination, &table.depths, |border| {
            if let Some(place) = borders.get_mut(*count) {
                table.snapshot.index.prefetch(border.hash);
                *place = border;
                *count += 1;
            }
        });
    }

    /// Asks for what the look-ups read then: the records that the buckets lead to.
    #[inline]
    pub fn fetch(self) {
        for border in &self.borders[..self.count] {
            self.table.snapshot.index.prefetch_record(border.hash, border.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use proptest::prelude::*;

    use crate::ledger::account::AccountId;
    use crate::routing::forwarding::Forwarding;
    use crate::wire::address::Address;

    use super::*;

    fn prefix(number: u32) -> String {
        format!("test.peer-{number}.region.{}", number % 7)
    }

    /// As many prefixes, and one of each depth up to `deepest`.
    fn table(count: u32, deepest: usize) -> Amended {
        let routes = (0..count).map(|number| (prefix(number), AccountId::new(number)));
        let deep = (1..=deepest).map(|depth| (format!("g{}", ".a".repeat(depth - 1)), AccountId::new(0)));
        Amended::new(Arc::new(routes.chain(deep).collect()))
    }

    /// With prefixes of a hundred depths.
    static LARGE: LazyLock<Amended> = LazyLock::new(|| table(20_000, 100));

    #[test]
    fn only_a_large_table_is_worth_it() {
        assert!(Ahead::of(&Amended::new(Arc::new(Forwarding::empty()))).is_none());
        assert!(Ahead::of(&table(1_000, 0)).is_none());
        assert!(Ahead::of(&table(20_000, 0)).is_some());
    }

    #[test]
    fn what_is_noted_is_what_a_look_up_asks_for() {
        let table = table(20_000, 0);
        let mut ahead = Ahead::of(&table).unwrap();
        for number in 0..AHEAD_MAX as u32 {
            let destination = format!("{}.invoice", prefix(number));
            ahead.expect(destination.as_bytes());
            // All prefixes have four segments.
            assert_eq!(ahead.count, number as usize + 1);
            let Border { end, hash } = ahead.borders[number as usize];
            assert_eq!(destination[..end], prefix(number));
            let found = table.snapshot.index.find(prefix(number).as_bytes(), hash);
            assert_eq!(found, Some(AccountId::new(number)));
        }
        ahead.fetch();
    }

    #[test]
    fn no_more_is_asked_for_than_there_is_room() {
        let mut ahead = Ahead::of(&LARGE).unwrap();
        for _ in 0..AHEAD_MAX {
            ahead.expect(b"g");
            ahead.expect(format!("g{}", ".a".repeat(200)).as_bytes());
        }
        assert_eq!(ahead.count, BORDERS_MAX);
        ahead.fetch();
    }

    proptest! {
        #[test]
        fn whatever_is_expected_a_look_up_finds_the_same(
            expected in prop::collection::vec(prop_oneof![
                "test\\.peer-[0-9]{1,5}\\.region\\.[0-9](\\.x)?".prop_map(String::into_bytes),
                "g(\\.a){0,120}".prop_map(String::into_bytes),
                prop::collection::vec(prop_oneof![Just(b'.'), any::<u8>()], 0..2_000),
            ], 0..100),
        ) {
            let table = &*LARGE;
            let look_up = |bytes: &Vec<u8>| Address::parse(bytes).ok().map(|address| table.lookup(address));
            let before: Vec<_> = expected.iter().map(look_up).collect();
            let mut ahead = Ahead::of(table).unwrap();
            for destination in &expected {
                ahead.expect(destination);
            }
            ahead.fetch();
            prop_assert_eq!(expected.iter().map(look_up).collect::<Vec<_>>(), before);
        }
    }
}
