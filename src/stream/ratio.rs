//! Exact fractions: rates between two assets in their smallest units, and the part of one that may be lost.
//!
//! Owns their comparison and how an amount is multiplied by one. Leaves to the caller which way to round.
//!
//! Always: no floating-point number touches an amount. Every result is the exact one, rounded once; one that exceeds
//! 64 bits is the largest amount there is.

use std::cmp::Ordering;

use num_bigint::BigUint;
use num_integer::Integer;
use num_traits::ToPrimitive;

/// A fraction of whole numbers, zero among them. Not in lowest terms: two that are equal may have different terms.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    numerator: u128,
    /// Never zero.
    denominator: u128,
}

impl Ratio {
    pub const ZERO: Self = Self {
        numerator: 0,
        denominator: 1,
    };

    /// `None` if `denominator` is zero.
    pub fn new(numerator: u64, denominator: u64) -> Option<Self> {
        (denominator != 0).then(|| Self {
            numerator: numerator.into(),
            denominator: denominator.into(),
        })
    }

    /// What became of `sent`, if `delivered` arrived of it: the least rate and one that is not quite reached, because
    /// what arrived was rounded down. `None` if nothing was sent.
    pub(super) fn bounds(sent: u64, delivered: u64) -> Option<(Self, Self)> {
        let lower = Self::new(delivered, sent)?;
        let upper = Self {
            numerator: lower.numerator + 1,
            ..lower
        };
        Some((lower, upper))
    }

    pub const fn numerator(&self) -> u128 {
        self.numerator
    }

    pub const fn denominator(&self) -> u128 {
        self.denominator
    }

    pub const fn is_zero(&self) -> bool {
        self.numerator == 0
    }

    /// `amount` times this fraction, rounded down.
    pub fn times_floor(&self, amount: u64) -> u64 {
        divided_floor(amount, self.numerator, self.denominator)
    }

    /// `amount` times this fraction, rounded up.
    pub fn times_ceil(&self, amount: u64) -> u64 {
        divided_ceil(amount, self.numerator, self.denominator)
    }

    /// What, times this fraction, is at least `amount`: the quotient, rounded up. `None` if this is zero.
    pub fn divide_ceil(&self, amount: u64) -> Option<u64> {
        (self.numerator != 0).then(|| divided_ceil(amount, self.denominator, self.numerator))
    }

    /// The largest amount that, times this fraction, is no more than `amount`. `None` if this is zero.
    pub fn divide_floor(&self, amount: u64) -> Option<u64> {
        (self.numerator != 0).then(|| divided_floor(amount, self.denominator, self.numerator))
    }

    /// This fraction times `other`. `None` if that has terms of more than 128 bits, which two that come from
    /// [`Self::new`] never have.
    pub fn times(&self, other: &Self) -> Option<Self> {
        Some(Self {
            numerator: self.numerator.checked_mul(other.numerator)?,
            denominator: self.denominator.checked_mul(other.denominator)?,
        })
    }

    /// What is missing to one. `None` if this is more.
    pub fn complement(&self) -> Option<Self> {
        Some(Self {
            numerator: self.denominator.checked_sub(self.numerator)?,
            denominator: self.denominator,
        })
    }
}

impl PartialEq for Ratio {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ratio {}

impl PartialOrd for Ratio {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ratio {
    fn cmp(&self, other: &Self) -> Ordering {
        let left = self.numerator.checked_mul(other.denominator);
        let right = other.numerator.checked_mul(self.denominator);
        match (left, right) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => (BigUint::from(self.numerator) * other.denominator)
                .cmp(&(BigUint::from(other.numerator) * self.denominator)),
        }
    }
}

fn divided_floor(amount: u64, numerator: u128, denominator: u128) -> u64 {
    match u128::from(amount).checked_mul(numerator) {
        Some(product) => u64::try_from(product / denominator).unwrap_or(u64::MAX),
        None => (BigUint::from(amount) * numerator / denominator)
            .to_u64()
            .unwrap_or(u64::MAX),
    }
}

fn divided_ceil(amount: u64, numerator: u128, denominator: u128) -> u64 {
    match u128::from(amount).checked_mul(numerator) {
        Some(product) => u64::try_from(product.div_ceil(denominator)).unwrap_or(u64::MAX),
        None => (BigUint::from(amount) * numerator)
            .div_ceil(&BigUint::from(denominator))
            .to_u64()
            .unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use num_bigint::BigInt;
    use num_rational::BigRational;
    use proptest::prelude::*;

    use super::*;

    fn ratio(numerator: u64, denominator: u64) -> Ratio {
        Ratio::new(numerator, denominator).unwrap()
    }

    #[test]
    fn rounding() {
        for (numerator, denominator, amount, floor, ceil) in [
            (1, 3, 10, 3, 4),
            (1, 3, 9, 3, 3),
            (0, 7, 9, 0, 0),
            (5, 1, u64::MAX, u64::MAX, u64::MAX),
            (u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX),
            (u64::MAX, 2, 3, u64::MAX, u64::MAX),
            (u64::MAX - 1, u64::MAX, u64::MAX, u64::MAX - 1, u64::MAX - 1),
        ] {
            let ratio = ratio(numerator, denominator);
            assert_eq!(
                (ratio.times_floor(amount), ratio.times_ceil(amount)),
                (floor, ceil),
                "{amount} * {ratio:?}"
            );
        }
        assert_eq!(Ratio::new(1, 0), None);
        assert_eq!(ratio(6, 4), ratio(3, 2));
        assert_eq!(ratio(3, 2).divide_ceil(4), Some(3));
        assert_eq!(ratio(3, 2).divide_floor(4), Some(2));
        assert_eq!((Ratio::ZERO.divide_ceil(4), Ratio::ZERO.divide_floor(4)), (None, None));
        assert_eq!(ratio(3, 200).complement(), Some(ratio(197, 200)));
        assert_eq!(ratio(3, 2).complement(), None);
    }

    fn exact(ratio: &Ratio) -> BigRational {
        BigRational::new(ratio.numerator.into(), ratio.denominator.into())
    }

    prop_compose! {
        fn any_ratio()(a: u64, b: u64, shift_a in 0..64u32, shift_b in 0..63u32) -> Ratio {
            ratio(a >> shift_a, (b >> shift_b).max(1))
        }
    }

    proptest! {
        #[test]
        fn the_oracle_agrees(a in any_ratio(), b in any_ratio(), c in any_ratio(), d in any_ratio(), amount: u64) {
            let (left, right) = (a.times(&b).unwrap(), c.times(&d).unwrap());
            prop_assert_eq!(exact(&left), exact(&a) * exact(&b));
            prop_assert_eq!(left.cmp(&right), exact(&left).cmp(&exact(&right)));
            let amount_exact = BigRational::from(BigInt::from(amount));
            let product = exact(&left) * &amount_exact;
            let cut = |exact: BigRational| exact.to_integer().to_u64().unwrap_or(u64::MAX);
            prop_assert_eq!(left.times_floor(amount), cut(product.floor()));
            prop_assert_eq!(left.times_ceil(amount), cut(product.ceil()));
            let quotient = left.divide_ceil(amount);
            prop_assert_eq!(quotient, (!left.is_zero()).then(|| cut((amount_exact / exact(&left)).ceil())));
        }
    }
}
