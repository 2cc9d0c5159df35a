//! What all benches share: the size of a run, choices from a seed, and the way a piece of work is measured and proved.
//!
//! A group is one input and several [`Work`]s on it. A work returns a digest of what it computed, and whoever makes it
//! brings the digest it must have, computed in another way. They are compared in every iteration, so nobody speeds a
//! work up by changing its meaning, and no compiler leaves out what it computes.
//!
//! `cargo bench` measures, in two ways. Criterion says how long each work takes and how that has changed since the last
//! run. Beside it a line `ratio` compares each work with the first of its group, by short rounds that take turns, because
//! what else the machine does comes and goes: these are the figures to quote. `cargo test --benches` runs every work
//! once, on a small input.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

// The node's own allocator, because where things lie in memory is part of what they cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds of each work that a ratio is made of.
const ROUNDS: usize = 51;
/// A round repeats its work for about this time: long beside a reading of the clock, short beside a time slice, so that
/// many rounds pass undisturbed.
const ROUND: Duration = Duration::from_millis(1);

/// One thing to measure.
pub struct Work<'a> {
    name: String,
    expected: u64,
    run: Box<dyn FnMut() -> u64 + 'a>,
}

impl<'a> Work<'a> {
    /// `run` does the work once, on the whole input, and returns its digest, which must be `expected`. It may change
    /// what it works on, but must find it as it was when it is called again.
    pub fn new(name: impl Into<String>, expected: u64, run: impl FnMut() -> u64 + 'a) -> Self {
        Self {
            name: name.into(),
            expected,
            run: Box::new(run),
        }
    }

    fn run(&mut self) {
        let digest = black_box((self.run)());
        assert_eq!(digest, self.expected, "{} computes something else", self.name);
    }

    fn time(&mut self, iterations: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..iterations {
            self.run();
        }
        start.elapsed()
    }

    /// How often it fits into a round.
    fn iterations_per_round(&mut self) -> u64 {
        let once = self.time(1).max(Duration::from_nanos(1));
        (ROUND.as_nanos() / once.as_nanos()).max(1) as u64
    }
}

/// Runs the groups of one bench.
pub fn main(groups: &[fn(&mut Criterion)]) {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_500))
        .without_plots()
        .configure_from_args();
    for group in groups {
        group(&mut criterion);
    }
    criterion.final_summary();
}

/// Measures the works of a group, each of which handles the same number of `elements`. The first is what the others are
/// compared with.
pub fn measure(criterion: &mut Criterion, group: &str, elements: usize, mut works: Vec<Work<'_>>) {
    let mut measured = criterion.benchmark_group(group);
    measured.throughput(Throughput::Elements(elements as u64));
    for work in &mut works {
        let name = work.name.clone();
        measured.bench_function(name, |bencher| bencher.iter(|| work.run()));
    }
    measured.finish();
    if is_full() {
        print_ratios(group, elements, &mut works);
    }
}

fn print_ratios(group: &str, elements: usize, works: &mut [Work<'_>]) {
    let iterations: Vec<u64> = works.iter_mut().map(Work::iterations_per_round).collect();
    let mut times: Vec<Vec<f64>> = works.iter().map(|_| Vec::with_capacity(ROUNDS)).collect();
    for _ in 0..ROUNDS {
        for ((work, &count), times) in works.iter_mut().zip(&iterations).zip(&mut times) {
            times.push(work.time(count).as_nanos() as f64 / (count * elements as u64) as f64);
        }
    }
    let ns: Vec<f64> = times.iter_mut().map(|times| undisturbed(times)).collect();
    let first = &works[0].name;
    for (work, each) in works.iter().zip(&ns) {
        let name = format!("{group}/{}", work.name);
        let (ratio, per_second) = (each / ns[0], 1_000.0 / each);
        println!("ratio  {name:<44} {each:>8.1} ns each {per_second:>7.2} million/s {ratio:>7.2} x {first}");
    }
}

/// The slowest of the fastest tenth: other processes only ever add to a round.
fn undisturbed(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 10]
}

/// How much to work on: `full` when something is measured, `small` when it is only tried.
pub fn size(small: usize, full: usize) -> usize {
    if is_full() { full } else { small }
}

/// Cargo says `--bench` to a bench that shall measure. The other two are for whoever wants it only tried or listed.
fn is_full() -> bool {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    has("--bench") && !has("--test") && !has("--list")
}

/// Everything that was computed, in its order: a polynomial in an odd number, so that no error cancels another by its
/// place, as errors of one unit each would in a sum. One multiplication and one addition a number, beside the work.
#[derive(Default)]
pub struct Digest(u64);

impl Digest {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    #[inline]
    pub fn add(&mut self, number: u64) {
        self.0 = self.0.wrapping_mul(Self::FACTOR).wrapping_add(number);
    }

    pub fn get(&self) -> u64 {
        self.0
    }
}

impl FromIterator<u64> for Digest {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut digest = Self::default();
        numbers.into_iter().for_each(|number| digest.add(number));
        digest
    }
}

/// The same numbers in every run (SplitMix64).
pub struct Random(u64);

impl Random {
    pub const fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to `count`, without it.
    #[allow(dead_code)] // not every bench has something to choose
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }
}
