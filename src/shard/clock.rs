//! The only reader of the clock. A shard reads it once per turn; everything below takes the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::pipeline::Now;
use crate::wire::timestamp::Timestamp;

/// Milliseconds since the epoch for packets, milliseconds since the process started for waiting.
#[derive(Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub fn now(&self) -> Now {
        Now {
            wall: wall(),
            monotonic_ms: self.now_us() / 1_000,
        }
    }

    /// The monotonic clock in microseconds. Begins at one second: zero is free to mean "never".
    pub fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64 + 1_000_000
    }
}

/// The time of day.
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(since.as_millis() as u64)
}
