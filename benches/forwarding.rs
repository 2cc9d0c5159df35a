//! What the way costs: one look-up by longest prefix among 10, 10,000 and 1,000,000 of them. Every answer is compared with
//! that of an ordinary map that is asked for one prefix after the other.

use std::collections::HashMap;
use std::hint::black_box;

use clearway::ledger::AccountId;
use clearway::routing::forwarding::Forwarding;
use clearway::wire::address::Address;
use criterion::Criterion;

use support::{Digest, Random, Work, measure, size};

mod support;

/// What no route leads to, in a digest. No account has this number.
const NOWHERE: u64 = u64::MAX;

fn main() {
    support::main(&[prefixes]);
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
fn lookup_by_definition(map: &HashMap<&str, u32>, destination: &str) -> Option<u32> {
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

/// A table, what is asked of it, and the digest of the right answers.
struct Case {
    table: Forwarding,
    destinations: Vec<String>,
    expected: u64,
}

impl Case {
    fn new(random: &mut Random, prefix_count: usize, destination_count: usize) -> Self {
        let routes = routes(prefix_count);
        let destinations = destinations(random, &routes, destination_count);
        let numbered = || routes.iter().map(String::as_str).zip(0..);
        let map: HashMap<&str, u32> = numbered().collect();
        assert_eq!(map.len(), prefix_count, "every prefix is another");
        let answers = destinations
            .iter()
            .map(|destination| lookup_by_definition(&map, destination));
        Self {
            expected: digest_of(answers),
            table: numbered()
                .map(|(prefix, next_hop)| (prefix, AccountId::new(next_hop)))
                .collect(),
            destinations,
        }
    }

    fn work(&self) -> Work<'_> {
        // As in a packet that has been read: checked already.
        let addresses: Vec<Address<'_>> = self
            .destinations
            .iter()
            .map(|destination| Address::parse(destination.as_bytes()).expect("an address was made"))
            .collect();
        Work::new(format!("{} prefixes", self.table.len()), self.expected, move || {
            let lookup = |&address: &Address<'_>| self.table.lookup(address).map(AccountId::get);
            digest_of(black_box(&addresses).iter().map(lookup))
        })
    }
}

fn prefixes(criterion: &mut Criterion) {
    let counts = [10, size(100, 10_000), size(1_000, 1_000_000)];
    // So many that what they touch of a large table does not stay in the caches near the core.
    let destination_count = size(200, 65_536);
    let mut random = Random::from_seed(6);
    let cases = counts.map(|count| Case::new(&mut random, count, destination_count));
    let works = cases.iter().map(Case::work).collect();
    measure(criterion, "forwarding/lookup", destination_count, works);
}
