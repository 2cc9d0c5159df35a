//! What an account may do in a minute: a limit on packets or on amounts, spent and won back evenly.
//!
//! Owns the arithmetic of one limit. Leaves which limits an account has to `ledger::account`, their order among the
//! other checks and their ILP errors (T05 for packets, T04 for amounts) to `pipeline::incoming`.
//!
//! Always: while a limit stays as it is, within any `t` milliseconds no more passes than `limit + limit * t / 60_000`,
//! exactly: nothing is lost to rounding, however often or seldom the bucket is asked.

/// The time in which a limit is won back in full.
pub const WINDOW_MS: u64 = 60_000;

/// A limit per minute. A rested account may spend the whole limit at once; from then on it is won back evenly, at
/// `limit / 60_000` a millisecond.
///
/// Kept as a debt that melts away rather than as a supply that fills up: what was taken is zero for an account that has
/// rested, whatever its limit. See [`Self::set_limit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// What was taken and is not won back yet, in units of 1 / [`WINDOW_MS`]: in these, a millisecond wins back
    /// exactly [`Self::per_ms`], and no fraction is ever cut off. Below `2^80`.
    debt: u128,
    /// Packets or amount per minute.
    limit: u64,
    /// When `debt` was computed, monotonic milliseconds.
    updated_ms: u64,
}

const _: () = assert!(
    size_of::<Bucket>() <= 32,
    "an account has two of these, and there are many accounts"
);

impl Bucket {
    /// A bucket nothing was taken from. All times are milliseconds of one monotonic clock.
    pub const fn new(limit_per_minute: u64, now_ms: u64) -> Self {
        Self {
            debt: 0,
            limit: limit_per_minute,
            updated_ms: now_ms,
        }
    }

    /// Takes `amount`, or nothing and returns false: all or none. With a limit of 0 nothing passes; with any other,
    /// an amount of 0 always does.
    pub fn take(&mut self, now_ms: u64, amount: u64) -> bool {
        if amount == 0 || self.limit == 0 {
            return self.limit > 0;
        }
        self.win_back(now_ms);
        let debt = self.debt + Self::in_parts(amount);
        if debt > Self::in_parts(self.limit) {
            return false;
        }
        self.debt = debt;
        true
    }

    /// Returns what was taken for a packet that came to nothing. What has been won back meanwhile is not won twice. Under
    /// a limit that has changed meanwhile it counts as if it had been taken under this one.
    pub fn give_back(&mut self, amount: u64) {
        self.debt = self.debt.saturating_sub(Self::in_parts(amount));
    }

    /// Another limit from now on. The bucket stays as full as it was, in proportion: if a third of the old limit could be
    /// spent, a third of the new one can, and it is won back in full as soon as it would have been. So a change gives
    /// nothing away, and takes nobody's packets for longer than a minute. Rounded against the account, by less than
    /// `1 / WINDOW_MS`.
    pub fn set_limit(&mut self, now_ms: u64, limit_per_minute: u64) {
        self.win_back(now_ms);
        let before = self.per_ms();
        self.limit = limit_per_minute;
        let after = self.per_ms();
        // Whole milliseconds and the rest apart: their product with a limit of 64 bits would not fit.
        self.debt = self.debt / before * after + (self.debt % before * after).div_ceil(before);
    }

    /// What a millisecond wins back. With a limit of 0 there is nothing to win back, but time passes all the same.
    fn per_ms(&self) -> u128 {
        u128::from(self.limit.max(1))
    }

    /// A clock that stands still or steps back wins nothing back, and its step forward again is not counted twice.
    fn win_back(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.updated_ms);
        let won = u128::from(elapsed_ms) * self.per_ms();
        self.debt = self.debt.saturating_sub(won);
        self.updated_ms += elapsed_ms;
    }

    fn in_parts(amount: u64) -> u128 {
        u128::from(amount) * u128::from(WINDOW_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigInt;
    use num_rational::BigRational;
    use proptest::prelude::*;

    const MINUTE: u64 = WINDOW_MS;

    /// How many of the packets sent evenly, `per_second` for `seconds`, the bucket lets pass.
    fn passed(bucket: &mut Bucket, from_ms: u64, per_second: u64, seconds: u64) -> u64 {
        (0..per_second * seconds)
            .map(|packet| from_ms + packet * 1_000 / per_second)
            .filter(|&now_ms| bucket.take(now_ms, 1))
            .count() as u64
    }

    #[test]
    fn an_even_flow_at_the_limit_passes_whole() {
        let mut bucket = Bucket::new(12_000, 7);
        assert_eq!(passed(&mut bucket, 7, 200, 600), 120_000);
        assert!(bucket.take(600_006, 11_999), "and the burst is still there");
    }

    #[test]
    fn an_even_flow_above_the_limit_passes_the_limits_share() {
        let mut bucket = Bucket::new(12_000, 0);
        assert!(bucket.take(0, 12_000), "a rested bucket gives a burst");
        // 201 a second for ten minutes on an empty bucket: 200 a second pass, less the one still being won back.
        assert_eq!(passed(&mut bucket, 0, 201, 600), 119_999);
        // From a rested bucket the burst lasts for 12,000 seconds of one packet too many a second; then the share passes.
        let mut rested = Bucket::new(12_000, 0);
        assert_eq!(passed(&mut rested, 0, 201, 11_999), 201 * 11_999);
        assert_eq!(passed(&mut rested, 11_999_000, 201, 6_000), 200 * 6_000);
    }

    #[test]
    fn a_limit_below_one_a_millisecond_is_not_rounded_away() {
        // One a minute, asked every millisecond.
        let mut bucket = Bucket::new(1, 0);
        let passed: Vec<u64> = (0..3 * MINUTE).filter(|&now| bucket.take(now, 1)).collect();
        assert_eq!(passed, [0, MINUTE, 2 * MINUTE]);
    }

    #[test]
    fn a_burst_is_won_back_to_the_millisecond() {
        let mut bucket = Bucket::new(600, 0);
        assert!(bucket.take(0, 600));
        assert!(!bucket.take(99, 1));
        assert!(bucket.take(100, 1));
        assert!(!bucket.take(10_099, 100), "all or none");
        assert!(bucket.take(10_100, 100));
        assert!(!bucket.take(u64::MAX, 601), "never more than the limit at once");
        assert!(bucket.take(u64::MAX, 600));
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_pass() {
        let mut bucket = Bucket::new(0, 0);
        assert!(!bucket.take(0, 1));
        assert!(!bucket.take(u64::MAX, 1));
        assert!(!bucket.take(u64::MAX, 0));
    }

    #[test]
    fn the_largest_limit_does_not_overflow() {
        let mut bucket = Bucket::new(u64::MAX, 0);
        assert!(bucket.take(0, u64::MAX));
        assert!(!bucket.take(0, 1));
        assert!(bucket.take(0, 0), "nothing is always there");
        assert!(bucket.take(1, u64::MAX / MINUTE));
        assert!(!bucket.take(1, 1));
        assert!(bucket.take(u64::MAX, u64::MAX));
        bucket.give_back(u64::MAX);
        bucket.give_back(u64::MAX);
        assert!(bucket.take(u64::MAX, u64::MAX));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_but_not_twice() {
        let mut bucket = Bucket::new(100, 0);
        assert!(bucket.take(0, 100));
        bucket.give_back(60);
        assert!(!bucket.take(0, 61));
        assert!(bucket.take(0, 60));
        bucket.give_back(100);
        bucket.give_back(100);
        assert!(!bucket.take(0, 101));
        assert!(bucket.take(0, 100));
    }

    #[test]
    fn a_new_limit_leaves_the_bucket_as_full_as_it_was() {
        let mut bucket = Bucket::new(100, 0);
        assert!(bucket.take(0, 75));
        bucket.set_limit(0, 1_000); // a quarter is left
        assert!(!bucket.take(0, 251));
        assert!(bucket.take(0, 250));
        bucket.set_limit(0, 60); // nothing is left, and a second wins back one
        assert!(!bucket.take(999, 1));
        assert!(bucket.take(1_000, 1));
        bucket.set_limit(1_000, 0);
        assert!(!bucket.take(1_001, 1));
        bucket.set_limit(31_000, u64::MAX); // half a minute has passed
        assert!(!bucket.take(31_000, u64::MAX / 2 + 1));
        assert!(bucket.take(31_000, u64::MAX / 2));
        bucket.set_limit(31_000, 1);
        assert!(!bucket.take(90_999, 1));
        assert!(bucket.take(91_000, 1));
    }

    #[test]
    fn changing_a_limit_back_and_forth_wins_nothing() {
        let mut bucket = Bucket::new(7, 0);
        assert!(bucket.take(0, 7));
        for limit in [1, 3, u64::MAX, 0, 60_001, 2, u64::MAX - 1, 0, 7].repeat(100) {
            bucket.set_limit(0, limit);
            assert!(!bucket.take(0, 1), "{limit}");
        }
        assert!(bucket.take(60_000, 7), "and takes nothing either");
    }

    #[test]
    fn a_clock_that_stands_still_gives_the_burst_and_no_more() {
        for limit in [1, 12_000, (1 << 53) + 1, u64::MAX] {
            let mut bucket = Bucket::new(limit, 5);
            for part in [limit / 3, limit / 3, limit - 2 * (limit / 3)] {
                assert!(bucket.take(5, part), "{limit}");
            }
            for _ in 0..1_000 {
                assert!(!bucket.take(5, 1), "{limit}");
            }
        }
    }

    #[test]
    fn a_clock_that_steps_back_wins_nothing() {
        let mut bucket = Bucket::new(60, 10_000);
        assert!(bucket.take(10_000, 60));
        assert!(!bucket.take(5_000, 1));
        assert!(!bucket.take(10_999, 1));
        assert!(bucket.take(11_000, 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Take(u64),
        GiveBack(u64),
        SetLimit(u64),
    }

    fn amounts() -> impl Strategy<Value = u64> {
        prop_oneof![0..200u64, any::<u64>()]
    }

    proptest! {
        /// The part of the limit that is spent, as an exact fraction: changing the limit does not change it.
        #[test]
        fn a_bucket_is_as_full_as_an_exact_one_whatever_becomes_of_its_limit(
            limit in amounts(),
            steps in prop::collection::vec(prop_oneof![
                3 => prop_oneof![0..3_000u64, 0..100_000u64].prop_map(Step::Wait),
                6 => amounts().prop_map(Step::Take),
                1 => amounts().prop_map(Step::GiveBack),
                1 => amounts().prop_map(Step::SetLimit),
            ], 0..60),
        ) {
            let whole = |number: u64| BigRational::from(BigInt::from(number));
            let mut bucket = Bucket::new(limit, 0);
            let mut now_ms = 0;
            let mut spent = whole(0);
            // Every change of the limit may round against the account by one part of the debt.
            let mut rounded = whole(0);
            for step in steps {
                match step {
                    Step::Wait(ms) => {
                        now_ms += ms;
                        spent = (spent - whole(ms) / whole(MINUTE)).max(whole(0));
                    }
                    Step::Take(amount) => {
                        let took = bucket.take(now_ms, amount);
                        let of_limit = whole(amount) / whole(bucket.limit.max(1));
                        let fits = bucket.limit > 0 && &spent + &of_limit <= whole(1);
                        let fits_for_certain = bucket.limit > 0 && &spent + &of_limit + &rounded <= whole(1);
                        prop_assert!(if took { fits || amount == 0 } else { !fits_for_certain }, "{took}");
                        if took {
                            spent += of_limit;
                        }
                    }
                    Step::GiveBack(amount) if bucket.limit > 0 => {
                        bucket.give_back(amount);
                        spent = (spent - whole(amount) / whole(bucket.limit)).max(whole(0));
                    }
                    Step::GiveBack(_) => {}
                    Step::SetLimit(limit) => {
                        bucket.set_limit(now_ms, limit);
                        rounded += whole(1) / (whole(limit.max(1)) * whole(MINUTE));
                    }
                }
                bucket.win_back(now_ms);
                let kept = BigRational::new(bucket.debt.into(), (bucket.per_ms() * u128::from(MINUTE)).into());
                prop_assert!(spent <= kept && kept <= &spent + &rounded, "{spent} {kept}");
                prop_assert!(kept <= whole(1));
            }
        }

        #[test]
        fn no_period_passes_more_than_its_share(
            limit in 1u64..5_000,
            requests in prop::collection::vec((0u64..2_000, 1u64..400), 1..60),
        ) {
            let mut bucket = Bucket::new(limit, 0);
            let mut now_ms = 0;
            let mut passed: Vec<(u64, u64)> = Vec::new();
            // What passed since each earlier moment, and whether `amount` more would keep within that period's share.
            let fits = |passed: &[(u64, u64)], now_ms: u64, amount: u64| {
                let mut sum = u128::from(amount);
                let within = |sum: u128, since_ms: u64| {
                    sum * u128::from(MINUTE)
                        <= u128::from(limit) * u128::from(MINUTE + now_ms - since_ms)
                };
                within(sum, now_ms) && passed.iter().rev().all(|&(at_ms, taken)| {
                    sum += u128::from(taken);
                    within(sum, at_ms)
                })
            };
            for (pause_ms, amount) in requests {
                now_ms += pause_ms;
                let expected = fits(&passed, now_ms, amount);
                prop_assert_eq!(bucket.take(now_ms, amount), expected, "at {} ms", now_ms);
                if expected {
                    passed.push((now_ms, amount));
                }
            }
        }
    }
}
