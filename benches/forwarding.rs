//! What the way costs: one look-up by longest prefix among 10, 10,000 and 1,000,000 of them, against an ordinary map that
//! is asked for one prefix after the other, and whose answers are those that the table must give; and what it costs to
//! build a table of them.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use clearway::ledger::AccountId;
use clearway::routing::forwarding::{AHEAD_MAX, Ahead, Amended, CHANGES_MAX, Forwarding};
use clearway::wire::address::Address;
use criterion::Criterion;

use support::{Digest, Random, Work, measure, size};

mod support;

/// What no route leads to, in a digest. No account has this number.
const NOWHERE: u64 = u64::MAX;

fn main() {
    support::main(&[ten, ten_thousand, a_million, snapshot]);
}

/// Prefixes as a hub has them: peers, its own accounts, regions of its peers, and a second account below each of its own,
/// so that one prefix often goes on where another ends. Account `n` is the next hop of the `n`-th.
fn routes(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| match number % 4 {
            0 => format!("test.peer-{number:07}"),
            1 => format!("test.hub.user-{number:07}"),
            2 => format!("test.peer-{:07}.region-{:02}.{number:07}", number - 2, number % 50),
            _ => format!("test.hub.user-{:07}.shop", number - 2),
        })
        .collect()
}

/// Addresses below random prefixes, one segment or two further down. One of sixteen has no route.
fn destinations(random: &mut Random, routes: &[String], count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            let prefix = &routes[random.below(routes.len())];
            let token = random.next();
            match random.below(16) {
                0 => format!("test.elsewhere.{token:016x}"),
                1..8 => format!("{prefix}.~{token:016x}"),
                _ => format!("{prefix}.invoices.{token:016x}"),
            }
        })
        .collect()
}

/// The next hop by definition: of all beginnings that end before a dot or with the address, the longest in the map.
fn lookup_by_definition(map: &HashMap<String, u32>, destination: &str) -> Option<u32> {
    let dots = destination.rmatch_indices('.').map(|(at, _)| at);
    [destination.len()]
        .into_iter()
        .chain(dots)
        .find_map(|end| map.get(&destination[..end]).copied())
}

fn digest_of(answers: impl Iterator<Item = Option<u32>>) -> u64 {
    let numbers = answers.map(|answer| answer.map_or(NOWHERE, u64::from));
    numbers.collect::<Digest>().get()
}

fn table_of(routes: &[String]) -> Forwarding {
    let numbers = (0..).map(AccountId::new);
    routes.iter().zip(numbers).collect()
}

fn map_of(routes: &[String]) -> HashMap<String, u32> {
    routes.iter().cloned().zip(0..).collect()
}

/// As for the packets of one read.
fn look_ahead(table: &Amended, addresses: &[Address<'_>]) {
    if let Some(mut ahead) = Ahead::of(table) {
        for address in addresses {
            ahead.expect(address.as_bytes());
        }
        ahead.fetch();
    }
}

fn lookups(criterion: &mut Criterion, prefix_count: usize) {
    // So many that what they touch of a large table does not stay in the caches near the core.
    let destination_count = size(200, 65_536);
    let mut random = Random::from_seed(6);
    let routes = routes(prefix_count);
    let destinations = destinations(&mut random, &routes, destination_count);
    // As in a packet that has been read: checked already.
    let addresses: Vec<Address<'_>> = destinations
        .iter()
        .map(|destination| Address::parse(destination.as_bytes()).expect("an address was made"))
        .collect();

    let map = map_of(&routes);
    assert_eq!(map.len(), prefix_count, "every prefix is another");
    let by_definition = || digest_of(black_box(&destinations).iter().map(|it| lookup_by_definition(&map, it)));
    let expected = by_definition();

    let table = Arc::new(table_of(&routes));
    // The same ways, but some of them were others before.
    let before = routes.iter().zip(0..).map(|(prefix, number)| {
        let is_changed = number < CHANGES_MAX as u32 - 1;
        (prefix, AccountId::new(if is_changed { u32::MAX - 1 } else { number }))
    });
    let mut amended = Amended::new(Arc::new(before.collect()));
    for (prefix, number) in routes.iter().zip(0..).take(CHANGES_MAX - 1) {
        amended.set(prefix.as_str().into(), Some(AccountId::new(number)));
    }

    let in_force = Amended::new(Arc::clone(&table));

    let works = vec![
        Work::new("map", expected, by_definition),
        Work::new("table", expected, || {
            let lookup = |address: &Address<'_>| table.lookup(*address).map(AccountId::get);
            digest_of(black_box(&addresses).iter().map(lookup))
        }),
        Work::new(format!("table, {AHEAD_MAX} at a time"), expected, || {
            let lookup = |address: &Address<'_>| in_force.lookup(*address).map(AccountId::get);
            let lookup_all = |batch| {
                look_ahead(&in_force, batch);
                batch.iter().map(lookup)
            };
            digest_of(black_box(&addresses).chunks(AHEAD_MAX).flat_map(lookup_all))
        }),
        Work::new(format!("table, {} changes", amended.changed()), expected, || {
            let lookup = |address: &Address<'_>| amended.lookup(*address).map(AccountId::get);
            digest_of(black_box(&addresses).iter().map(lookup))
        }),
    ];
    let group = format!("forwarding/lookup among {prefix_count}");
    measure(criterion, &group, destination_count, works);
}

fn ten(criterion: &mut Criterion) {
    lookups(criterion, 10);
}

fn ten_thousand(criterion: &mut Criterion) {
    lookups(criterion, size(100, 10_000));
}

fn a_million(criterion: &mut Criterion) {
    lookups(criterion, size(1_000, 1_000_000));
}

/// Each counts as one prefix, so what a million of them takes is as many milliseconds as one of them nanoseconds.
fn snapshot(criterion: &mut Criterion) {
    let routes = routes(size(1_000, 1_000_000));
    let count = routes.len();
    let works = vec![
        Work::new("map", count as u64, || black_box(map_of(&routes)).len() as u64),
        Work::new("table", count as u64, || black_box(table_of(&routes)).len() as u64),
    ];
    measure(criterion, &format!("forwarding/build {count}"), count, works);
}
