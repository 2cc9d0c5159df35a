//! Random choices of a test, from one seed (SplitMix64). `TEST_SEED=n` repeats a run's choices.

use std::time::{SystemTime, UNIX_EPOCH};

/// A stream of numbers that its seed determines.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// From `TEST_SEED`, else from the clock; prints the seed, which the harness shows when the test fails.
    pub fn new(what: &str) -> Self {
        let seed = match std::env::var("TEST_SEED") {
            Ok(text) => text.parse().expect("TEST_SEED is a number from 0 to 2^64-1"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |since| since.as_nanos() as u64),
        };
        println!("{what}: TEST_SEED={seed}");
        Self(seed)
    }

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

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    /// A stream of its own, for another thread.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}
