//! Payments that our own accounts make: many packets with one purpose.
//!
//! Owns the number of a payment, by which a transfer says that it belongs to one. So the book knows exactly what a
//! payment has sent, also when the process that was making it is gone. Leaves making payments to `stream` and
//! remembering them to `store`.

use std::num::NonZeroU64;

/// A payment's number within this node: ascending in time, given once, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PaymentNumber(NonZeroU64);

/// Payments that may begin in one millisecond without the numbers running ahead of the clock: 2^20.
const COUNTER_BITS: u32 = 20;

impl PaymentNumber {
    /// `None` for zero, which no payment has.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The number of a payment that begins now, above that of the last one, whatever the clock does. `now_ms` is
    /// milliseconds since 1970.
    pub fn next(last: Option<Self>, now_ms: u64) -> Self {
        let least = last.map_or(1, |last| last.get() + 1);
        Self::new(least.max(Self::first_at(now_ms))).expect("1 and more is not zero")
    }

    /// Below the numbers of all payments that begin at this time or later, and above those before, if the clock has
    /// always been right.
    pub fn at(now_ms: u64) -> Option<Self> {
        Self::new(Self::first_at(now_ms))
    }

    const fn first_at(now_ms: u64) -> u64 {
        // In the year 2527 the bits run out; then numbers go on one by one.
        let most = u64::MAX >> (COUNTER_BITS + 1);
        (if now_ms < most { now_ms } else { most }) << COUNTER_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_whatever_the_clock_does() {
        let first = PaymentNumber::next(None, 1_000);
        assert_eq!(first.get(), 1_000 << 20);
        assert_eq!(PaymentNumber::at(1_000), Some(first));
        let mut last = first;
        for now_ms in [1_000, 1_000, 999, 0, 1_001, u64::MAX, u64::MAX, 5] {
            let next = PaymentNumber::next(Some(last), now_ms);
            assert!(next > last, "{now_ms}");
            last = next;
        }
        assert_eq!(PaymentNumber::next(None, 0).get(), 1);
        assert_eq!(PaymentNumber::at(0), None);
    }
}
