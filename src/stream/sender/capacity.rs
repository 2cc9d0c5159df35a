//! The largest amount that one packet may have on a path: what connectors say with F08, or what is left of a search
//! when they only say that it is too large.
//!
//! Owns the search and its end. Always: a limit that was learned is never exceeded, and the search halves what is
//! unknown with every answer.

/// What is left unknown is not worth another packet when it is this small a part of what is known to pass.
const UNKNOWN_PART: u64 = 16;
/// While a larger packet is tried, others go at the size that has passed if it is not smaller than this part of the most
/// there may be.
const WORTHWHILE_PART: u64 = 4;

/// What is known about the size of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    limit: Limit,
    /// The largest amount that reached the receiver.
    passed: u64,
    /// The packet that is larger than any that has passed, while the limit is searched for: one at a time.
    trial: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// Nobody has complained.
    None,
    /// This much passes.
    Exact(u64),
    /// More than this does not pass; perhaps less does not, too.
    AtMost(u64),
}

/// Nothing can be sent on this path at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCapacity;

impl Capacity {
    pub const fn new() -> Self {
        Self {
            limit: Limit::None,
            passed: 0,
            trial: None,
        }
    }

    /// The largest amount that may be sent now; zero while the answer to a trial decides. `u64::MAX` without a limit.
    pub const fn next_amount(&self) -> u64 {
        match self.limit {
            Limit::None => u64::MAX,
            Limit::Exact(limit) => limit,
            Limit::AtMost(limit) if self.trial.is_some() => {
                // Much smaller packets would lose more to rounding than the wait costs.
                if self.passed >= limit / WORTHWHILE_PART {
                    self.passed
                } else {
                    0
                }
            }
            Limit::AtMost(limit) => self.passed + (limit - self.passed).div_ceil(2),
        }
    }

    /// No packet above this can pass. `u64::MAX` without a limit.
    pub const fn limit(&self) -> u64 {
        match self.limit {
            Limit::None => u64::MAX,
            Limit::Exact(limit) | Limit::AtMost(limit) => limit,
        }
    }

    /// What passes for sure and can hardly be exceeded. `None` while that is not known.
    pub const fn found(&self) -> Option<u64> {
        match self.limit {
            Limit::AtMost(_) => None,
            _ if self.passed == 0 => None,
            _ => Some(self.limit()),
        }
    }

    /// The largest amount that reached the receiver.
    pub const fn passed(&self) -> u64 {
        self.passed
    }

    /// A packet leaves.
    pub fn handle_sent(&mut self, sequence: u32, amount: u64) {
        if matches!(self.limit, Limit::AtMost(_)) && amount > self.passed {
            self.trial = Some(sequence);
        }
    }

    /// A packet was answered, in whatever way; call one of the others after it if it says more.
    pub fn handle_answered(&mut self, sequence: u32) {
        if self.trial == Some(sequence) {
            self.trial = None;
        }
    }

    /// A packet reached the receiver.
    pub fn handle_passed(&mut self, amount: u64) {
        self.passed = self.passed.max(amount).min(self.limit());
        if let Limit::AtMost(limit) = self.limit
            && limit - self.passed <= self.passed / UNKNOWN_PART
        {
            self.limit = Limit::Exact(self.passed);
        }
    }

    /// A packet was too large; `data` is that of its F08.
    pub fn handle_too_large(&mut self, amount: u64, data: &[u8]) -> Result<(), NoCapacity> {
        let told = told_maximum(amount, data);
        let limit = told.unwrap_or(amount.saturating_sub(1));
        if limit == 0 {
            return Err(NoCapacity);
        }
        // Others of the same size were under way; they say nothing new.
        if limit >= self.limit() {
            return Ok(());
        }
        if told.is_some() {
            self.limit = Limit::Exact(limit);
            self.passed = self.passed.min(limit);
        } else {
            // What passed before does not pass any more: begin anew, instead of trying one less, and one less again.
            if self.passed > limit {
                self.passed = 0;
            }
            self.limit = Limit::AtMost(limit);
            self.handle_passed(self.passed);
        }
        Ok(())
    }
}

/// The amount that, sent from here, arrives as no more than the maximum that an F08 names: floor(sent * maximum /
/// received), both in units of who wrote it. `None` if it makes no sense.
fn told_maximum(sent: u64, data: &[u8]) -> Option<u64> {
    let both: &[u8; 16] = data.try_into().ok()?;
    let both = u128::from_be_bytes(*both);
    let (received, maximum) = ((both >> u64::BITS) as u64, both as u64);
    if received <= maximum {
        return None;
    }
    // Less than `sent`, because `maximum` is less than `received`.
    u64::try_from(u128::from(sent) * u128::from(maximum) / u128::from(received)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::amount_too_large_data;

    #[test]
    fn what_connectors_tell() {
        for (sent, received, maximum, expected) in [
            (1_000, 1_000, 400, Some(400)),
            (1_000, 2_000, 1_999, Some(999)),
            (u64::MAX, u64::MAX, u64::MAX - 1, Some(u64::MAX - 1)),
            (u64::MAX, 3, 2, Some(u64::MAX / 3 * 2)),
            (1_000, 3, 0, Some(0)),
            (1_000, 400, 400, None),
            (1_000, 400, 401, None),
            (1_000, 0, 0, None),
        ] {
            let data = amount_too_large_data(received, maximum);
            assert_eq!(told_maximum(sent, &data), expected, "{sent} {received} {maximum}");
            assert_eq!(told_maximum(sent, &data[1..]), None);
            assert_eq!(told_maximum(sent, &[]), None);
        }
    }

    #[test]
    fn a_limit_that_is_told_is_known_at_once() {
        let mut capacity = Capacity::new();
        assert_eq!((capacity.next_amount(), capacity.found()), (u64::MAX, None));
        assert_eq!(
            capacity.handle_too_large(1_000, &amount_too_large_data(2_000, 500)),
            Ok(())
        );
        assert_eq!((capacity.next_amount(), capacity.found()), (250, None));
        capacity.handle_passed(250);
        assert_eq!(capacity.found(), Some(250));
        // Later it is lowered, and never raised.
        for (received, maximum, expected) in [(500, 400, 200), (500, 450, 200), (500, 2, 1)] {
            let data = amount_too_large_data(received, maximum);
            assert_eq!(capacity.handle_too_large(250, &data), Ok(()));
            assert_eq!(capacity.next_amount(), expected);
        }
        let data = amount_too_large_data(500, 0);
        assert_eq!(capacity.handle_too_large(250, &data), Err(NoCapacity));
    }

    #[test]
    fn a_limit_that_is_not_told_is_searched_for() {
        for (first, limit) in [(1_000, 999), (u64::MAX, 1), (u64::MAX, 12_345_678), (10, 5), (2, 1)] {
            let mut capacity = Capacity::new();
            let mut amount = first;
            let mut packets = 0;
            while capacity.found().is_none() {
                capacity.handle_sent(packets, amount);
                if packets > 0 {
                    assert!(capacity.next_amount() <= capacity.passed(), "one trial at a time");
                }
                capacity.handle_answered(packets);
                if amount > limit {
                    assert_eq!(capacity.handle_too_large(amount, &[]), Ok(()));
                } else {
                    capacity.handle_passed(amount);
                }
                amount = capacity.next_amount();
                packets += 1;
                assert!(packets <= 72, "{first} {limit}: {capacity:?}");
            }
            let found = capacity.found().unwrap();
            assert!(found <= limit && limit - found <= found / 8, "{found} of {limit}");
        }
        assert_eq!(Capacity::new().handle_too_large(1, &[]), Err(NoCapacity));
        assert_eq!(Capacity::new().handle_too_large(0, &[]), Err(NoCapacity));
    }

    #[test]
    fn a_limit_that_falls_is_searched_for_from_the_bottom() {
        let mut capacity = Capacity::new();
        capacity.handle_passed(1_000_000);
        assert_eq!(capacity.handle_too_large(1_000_000, &[]), Ok(()));
        assert_eq!(
            (capacity.next_amount(), capacity.passed(), capacity.found()),
            (500_000, 0, None)
        );
    }
}
