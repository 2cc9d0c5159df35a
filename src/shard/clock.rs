//! The only reader of the clock, and what is made of its time. A shard reads it once per turn, the API once per call;
//! everything below takes the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::pipeline::Now;
use crate::wire::timestamp::{HTTP_DATE_BYTES, Timestamp};

/// Milliseconds since the epoch for packets, milliseconds since the process started for waiting.
#[derive(Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time of a turn that began at `monotonic_us` of [`Self::now_us`].
    pub fn at(monotonic_us: u64) -> Now {
        Now {
            wall: wall(),
            monotonic_ms: monotonic_us / 1_000,
        }
    }

    pub fn now(&self) -> Now {
        Self::at(self.now_us())
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

/// The text of the current second for HTTP's `Date`: made once per second, not once per answer.
pub struct HttpDate {
    /// Of the wall clock, since the epoch.
    second: u64,
    text: [u8; HTTP_DATE_BYTES],
}

impl HttpDate {
    pub fn new(now: Timestamp) -> Self {
        Self {
            second: second_of(now),
            text: now.to_http_date(),
        }
    }

    /// The text for `now`, which may also be earlier than before: a wall clock can be set back.
    #[inline]
    pub fn at(&mut self, now: Timestamp) -> &[u8; HTTP_DATE_BYTES] {
        if second_of(now) != self.second {
            *self = Self::new(now);
        }
        &self.text
    }
}

fn second_of(time: Timestamp) -> u64 {
    time.as_millis() / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_its_second() {
        let start = 784_111_777_000;
        let mut date = HttpDate::new(Timestamp::from_millis(start));
        for (after_ms, expected) in [
            (0, b"Sun, 06 Nov 1994 08:49:37 GMT"),
            (999, b"Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_000, b"Sun, 06 Nov 1994 08:49:38 GMT"),
            (86_400_000, b"Mon, 07 Nov 1994 08:49:37 GMT"),
            (999, b"Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            assert_eq!(
                date.at(Timestamp::from_millis(start + after_ms)),
                expected,
                "{after_ms}"
            );
        }
    }
}
