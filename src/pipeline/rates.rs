//! Exchange rates, and the conversion of an amount from one asset to another (RFC 27, RFC 32).
//!
//! Owns the snapshot of all rates, and the arithmetic and rounding of a conversion. Leaves the text of a number to
//! `decimal`, where rates come from to `client` and `api`, and which ILP error a failed conversion becomes to
//! `pipeline::reject`.
//!
//! Always: no floating-point number touches an amount. The outgoing amount is the exact rational value of the incoming
//! one, rounded down, so a conversion never pays out more than it took in is worth. A positive amount never becomes 0
//! without an error. A rate in a [`Rates`] is greater than zero.

use std::collections::BTreeMap;

use num_bigint::{BigInt, BigUint, Sign};
use num_integer::Integer;
use num_traits::{One, ToPrimitive};

use crate::ledger::share::Share;

mod decimal;

use decimal::power_of_ten;
pub use decimal::{DECIMAL_DIGITS_MAX, DECIMAL_MAGNITUDE_MAX, DECIMAL_TEXT_BYTES_MAX, Decimal, InvalidDecimal};

/// Asset codes in one snapshot.
pub const RATES_MAX: usize = 65_536;

/// All rates at one moment: for each asset code, what one whole unit of the asset is worth, in a base common to all.
///
/// Immutable. A change makes a new snapshot, and every [`Conversion`] made from the old one is made again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    by_code: BTreeMap<String, Decimal>,
}

/// Why a map of rates cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidRates {
    #[error("the rate of {code} must be greater than zero")]
    NotPositive { code: String },
    #[error("more than {RATES_MAX} rates")]
    TooMany,
}

/// The pair cannot be converted, because one of its assets has no rate: ILP error T00.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoRate {
    #[error("no exchange rate for the incoming asset")]
    From,
    #[error("no exchange rate for the outgoing asset")]
    To,
}

impl Rates {
    /// Keys are asset codes as accounts have them, in upper case; every rate must be greater than zero.
    pub fn new(by_code: BTreeMap<String, Decimal>) -> Result<Self, InvalidRates> {
        if by_code.len() > RATES_MAX {
            return Err(InvalidRates::TooMany);
        }
        match by_code.iter().find(|(_, rate)| !rate.is_positive()) {
            Some((code, _)) => Err(InvalidRates::NotPositive { code: code.clone() }),
            None => Ok(Self { by_code }),
        }
    }

    /// What one whole unit of the asset is worth in the common base.
    pub fn get(&self, code: &str) -> Option<&Decimal> {
        self.by_code.get(code)
    }

    /// All rates in the order of their codes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Decimal)> {
        self.by_code.iter().map(|(code, rate)| (code.as_str(), rate))
    }

    pub fn len(&self) -> usize {
        self.by_code.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_code.is_empty()
    }

    /// How amounts of the asset `from` become amounts of the asset `to`, each a code and a scale. `spread` is the
    /// share we keep. An asset converts to itself at rate 1, whether a rate is set or not.
    pub fn conversion(&self, from: (&str, u8), to: (&str, u8), spread: &Decimal) -> Result<Conversion, NoRate> {
        let ((code_from, scale_from), (code_to, scale_to)) = (from, to);
        if code_from == code_to {
            return Ok(Conversion::same_asset(scale_from, scale_to, spread));
        }
        let rate_from = self.get(code_from).ok_or(NoRate::From)?;
        let rate_to = self.get(code_to).ok_or(NoRate::To)?;
        Ok(Conversion::new(rate_from, rate_to, scale_from, scale_to, spread))
    }
}

/// From amounts of one asset at its scale to amounts of another at its own: a fraction in lowest terms, made once per
/// pair of assets and used for every packet between them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversion {
    factor: Factor,
    /// The largest amount that converts to no more than `u64::MAX`.
    maximum: u64,
}

/// What an amount is multiplied by. The choice is made once, so that the common pairs cost one multiplication.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Factor {
    /// The connector keeps everything.
    Zero,
    /// The same asset at the same scale, without a spread.
    One,
    /// Both terms fit a machine word, as with rates and spreads of few digits.
    Small { numerator: u64, denominator: u64 },
    /// Terms of any size, as with rates that a market wrote down to the twentieth digit.
    Large(Box<LargeFactor>),
}

/// A fraction in lowest terms of which at least one does not fit a machine word, and an estimate that makes it
/// unnecessary to look at them for nearly every amount.
#[derive(Clone, PartialEq, Eq, Debug)]
struct LargeFactor {
    numerator: BigUint,
    denominator: BigUint,
    /// The fraction as `whole + part / 2^128`, rounded up.
    whole: u64,
    part: u128,
}

/// Why an amount cannot be converted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConversionError {
    /// A positive amount is worth less than one unit of the outgoing asset: ILP error R01.
    #[error("the amount is worth less than one unit of the outgoing asset")]
    Zero,
    /// More than `u64::MAX` units of the outgoing asset: ILP error F08. `maximum` is the largest incoming amount that
    /// still converts.
    #[error("the amount is too large: at most {maximum} can be converted")]
    TooLarge { maximum: u64 },
}

impl Conversion {
    /// The factor is `rate_from / rate_to * (1 - spread) * 10^(scale_to - scale_from)`, exactly. A spread of 1 or more
    /// leaves nothing to pay out; a negative one pays out more than the rate says, which is the operator's to decide.
    ///
    /// The rates must be greater than zero, which those of a [`Rates`] are.
    pub fn new(rate_from: &Decimal, rate_to: &Decimal, scale_from: u8, scale_to: u8, spread: &Decimal) -> Self {
        assert!(
            rate_from.is_positive() && rate_to.is_positive(),
            "a rate is checked before it is used"
        );
        let (kept, kept_exponent) = spread.subtract_from_one();
        if kept.sign() != Sign::Plus {
            return Self {
                factor: Factor::Zero,
                maximum: u64::MAX,
            };
        }
        let mut numerator = rate_from.coefficient.magnitude() * kept.magnitude();
        let mut denominator = rate_to.coefficient.magnitude().clone();
        let exponent =
            rate_from.exponent + kept_exponent - rate_to.exponent + i32::from(scale_to) - i32::from(scale_from);
        if exponent >= 0 {
            numerator *= power_of_ten(exponent);
        } else {
            denominator *= power_of_ten(exponent);
        }
        Self::from_fraction(numerator, denominator)
    }

    /// From one scale of an asset to another scale of the same asset: rate 1, with the spread applied.
    pub fn same_asset(scale_from: u8, scale_to: u8, spread: &Decimal) -> Self {
        let one = Decimal {
            coefficient: BigInt::one(),
            exponent: 0,
        };
        Self::new(&one, &one, scale_from, scale_to, spread)
    }

    /// This conversion, of whose exact result `share` is kept besides: rounded down once, at the end.
    pub fn less(&self, share: Share) -> Self {
        let (numerator, denominator) = match &self.factor {
            _ if share.is_none() => return self.clone(),
            Factor::Zero => return self.clone(),
            Factor::One => (BigUint::one(), BigUint::one()),
            Factor::Small { numerator, denominator } => ((*numerator).into(), (*denominator).into()),
            Factor::Large(factor) => (factor.numerator.clone(), factor.denominator.clone()),
        };
        Self::from_fraction(numerator * share.rest_attos(), denominator * Share::ONE_ATTOS)
    }

    /// Both terms are greater than zero.
    fn from_fraction(numerator: BigUint, denominator: BigUint) -> Self {
        let divisor = numerator.gcd(&denominator);
        let (numerator, denominator) = (numerator / &divisor, denominator / divisor);

        // amount * n / d < 2^64 is amount <= (2^64 * d - 1) / n.
        let maximum = ((&denominator << 64u8) - 1u8) / &numerator;
        let maximum = maximum.to_u64().unwrap_or(u64::MAX);
        let factor = match (numerator.to_u64(), denominator.to_u64()) {
            (Some(1), Some(1)) => Factor::One,
            (Some(numerator), Some(denominator)) => Factor::Small { numerator, denominator },
            _ => Factor::Large(Box::new(LargeFactor::new(numerator, denominator))),
        };
        Self { factor, maximum }
    }

    /// The factor as a fraction of two 64-bit integers, exact if it has such terms, else a little below. `None`: it is too
    /// small or too large for that.
    pub fn as_u64_fraction(&self) -> Option<(u64, u64)> {
        match &self.factor {
            Factor::Zero => Some((0, 1)),
            Factor::One => Some((1, 1)),
            Factor::Small { numerator, denominator } => Some((*numerator, *denominator)),
            Factor::Large(factor) => {
                let excess = factor
                    .numerator
                    .bits()
                    .max(factor.denominator.bits())
                    .saturating_sub(63);
                let numerator = &factor.numerator >> excess;
                // Rounded up, so that the fraction is not above the factor.
                let denominator = (&factor.denominator >> excess) + 1u8;
                let numerator = numerator.to_u64().filter(|numerator| *numerator > 0)?;
                Some((numerator, denominator.to_u64()?))
            }
        }
    }

    /// The amount in the outgoing asset, rounded down. 0 stays 0.
    pub fn convert(&self, amount: u64) -> Result<u64, ConversionError> {
        if amount > self.maximum {
            return Err(ConversionError::TooLarge { maximum: self.maximum });
        }
        let converted = match &self.factor {
            Factor::Zero => 0,
            Factor::One => amount,
            Factor::Small { numerator, denominator } => {
                let exact = u128::from(amount) * u128::from(*numerator);
                (exact / u128::from(*denominator)) as u64 // fits, because amount <= maximum
            }
            Factor::Large(factor) => factor.multiply(amount),
        };
        if converted == 0 && amount > 0 {
            return Err(ConversionError::Zero);
        }
        Ok(converted)
    }
}

impl LargeFactor {
    fn new(numerator: BigUint, denominator: BigUint) -> Self {
        let mut estimate = (&numerator << 128u8).div_ceil(&denominator);
        let whole = &estimate >> 128u8;
        estimate -= &whole << 128u8;
        Self {
            // A factor above 2^64 converts no amount but 0, and what it is estimated as does not matter.
            whole: whole.to_u64().unwrap_or(u64::MAX),
            part: estimate.to_u128().expect("a remainder of 2^128"),
            numerator,
            denominator,
        }
    }

    /// `amount` times this factor, rounded down; the caller has checked that it fits.
    ///
    /// The estimate is above the factor by less than `2^-128`, so its product is above the exact one by less than
    /// `amount / 2^128`. Both have the same integer part unless the fraction of the product is smaller than that, which
    /// is so for one amount in `2^64`. Only then the exact terms are multiplied.
    fn multiply(&self, amount: u64) -> u64 {
        if amount == 0 {
            return 0;
        }
        let amount = u128::from(amount);
        // amount * part is 192 bits: 64 before the point and 128 behind it.
        let low = amount * (self.part & u128::from(u64::MAX));
        let high = amount * (self.part >> 64) + (low >> 64);
        let fraction = (high << 64) | (low & u128::from(u64::MAX));
        if fraction < amount {
            let exact = BigUint::from(amount) * &self.numerator / &self.denominator;
            return exact.to_u64().expect("an amount up to the maximum converts");
        }
        (amount * u128::from(self.whole) + (high >> 64)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_rational::BigRational;
    use num_traits::Zero;
    use proptest::prelude::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The same number, read by different rules: the oracle of all arithmetic here.
    fn rational(decimal: &Decimal) -> BigRational {
        let text = decimal.to_string();
        let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let coefficient: BigInt = format!("{whole}{fraction}").parse().unwrap();
        BigRational::from(coefficient) * ten_to(power.parse::<i32>().unwrap() - fraction.len() as i32)
    }

    fn ten_to(exponent: i32) -> BigRational {
        BigRational::from(BigInt::from(10)).pow(exponent)
    }

    /// One conversion per line: `amount, rate from/to, scale from/to, spread -> amount or error`.
    fn check(table: &str) {
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [amount, rates, scales, spread, "->", expected @ ..] = words.as_slice() else {
                panic!("{line}");
            };
            let (rate_from, rate_to) = rates.split_once('/').unwrap();
            let (scale_from, scale_to) = scales.split_once('/').unwrap();
            let conversion = Conversion::new(
                &decimal(rate_from),
                &decimal(rate_to),
                scale_from.parse().unwrap(),
                scale_to.parse().unwrap(),
                &decimal(spread),
            );
            let said = match conversion.convert(amount.parse().unwrap()) {
                Ok(amount) => amount.to_string(),
                Err(ConversionError::Zero) => "R01".to_owned(),
                Err(ConversionError::TooLarge { maximum }) => format!("F08 {maximum}"),
            };
            assert_eq!(said, expected.join(" "), "{line}");
        }
    }

    #[test]
    fn conversions_of_other_connectors() {
        check(
            "         200 1/2           1/1  0     -> 100
                  1000000 3/2           1/1  0     -> 1500000
                      100 1/2           1/1  0.01  -> 49
                      200 1/2           1/1  -0.01 -> 101
                        4 1/2           1/1  0.01  -> 1
                       50 1/1           0/0  0.11  -> 44
             159000000000 0.000009/1    3/0  0     -> 1431
                        1 0.00000025/0.25 0/6 0    -> 1
                       99 0.00000025/0.25 0/6 0    -> 99",
        );
    }

    #[test]
    fn amounts_that_cannot_be_converted() {
        check(
            "                   1 1/1     2/1   0    -> R01
                               10 1/1     2/1   0    -> 1
                                9 1/1     2/1   0    -> R01
             18446744073709551615 2/1     0/0   0    -> F08 9223372036854775807
              9223372036854775807 2/1     0/0   0    -> 18446744073709551614
              9223372036854775808 2/1     0/0   0    -> F08 9223372036854775807
                                1 1/1     0/255 0    -> F08 0
                                0 1/1     0/255 0    -> 0
             18446744073709551615 1/1     255/0 0    -> R01
                                1 1/1     0/0   1    -> R01
             18446744073709551615 1/1     0/0   1    -> R01
                              100 1/1     0/0   1.5  -> R01
                                0 1/1     0/0   1    -> 0
                              100 1/1     0/0   1e300 -> R01",
        );
    }

    #[test]
    fn nothing_is_lost_beyond_the_digits_of_a_float() {
        check(
            "18446744073709551615 1/1   9/9 0    -> 18446744073709551615
             18446744073709551615 7/7   0/0 0    -> 18446744073709551615
             18446744073709551615 3/3.0000000000000000000000000000000000001 0/0 0 -> 18446744073709551614
                 9007199254740993 1/1   0/0 0    -> 9007199254740993
                               21 4e299/2e299 0/0 0  -> 42
             18446744073709551615 1/1   0/0 1e-300 -> 18446744073709551614
             18446744073709551615 1/1   0/0 0.999999999999999999999999 -> R01",
        );
    }

    #[test]
    fn the_same_asset_needs_no_rate() {
        let rates = Rates::default();
        let zero = Decimal::zero();
        let same = rates.conversion(("ABC", 9), ("ABC", 9), &zero).unwrap();
        assert_eq!(same, Conversion::same_asset(4, 4, &zero));
        assert_eq!(same.convert(u64::MAX), Ok(u64::MAX));
        let scaled = rates.conversion(("ABC", 9), ("ABC", 6), &zero).unwrap();
        assert_eq!(scaled.convert(1_999), Ok(1));
        let spread = decimal("0.002");
        let kept = rates.conversion(("ABC", 9), ("ABC", 9), &spread).unwrap();
        assert_eq!(kept.convert(1_000), Ok(998));
    }

    #[test]
    fn a_pair_needs_both_rates() {
        let rates = Rates::new(BTreeMap::from([
            ("ABC".to_owned(), decimal("1")),
            ("XYZ".to_owned(), decimal("2")),
        ]))
        .unwrap();
        let zero = Decimal::zero();
        let convert = |from, to| rates.conversion((from, 0), (to, 0), &zero);
        assert_eq!(convert("ABC", "XYZ").unwrap().convert(100), Ok(50));
        assert_eq!(convert("XYZ", "ABC").unwrap().convert(100), Ok(200));
        assert_eq!(convert("ABC", "EUR"), Err(NoRate::To));
        assert_eq!(convert("EUR", "ABC"), Err(NoRate::From));
        assert_eq!(
            convert("abc", "XYZ"),
            Err(NoRate::From),
            "codes are compared as they are"
        );
    }

    #[test]
    fn a_snapshot_has_no_rate_of_zero_or_less() {
        for text in ["0", "-1", "-0.5", "0e5"] {
            let rates = BTreeMap::from([("ABC".to_owned(), decimal("1")), ("XYZ".to_owned(), decimal(text))]);
            let code = "XYZ".to_owned();
            assert_eq!(Rates::new(rates), Err(InvalidRates::NotPositive { code }), "{text}");
        }
        let numbered = |count: usize| (0..count).map(|n| (n.to_string(), decimal("1"))).collect();
        assert_eq!(Rates::new(numbered(RATES_MAX)).unwrap().len(), RATES_MAX);
        assert_eq!(Rates::new(numbered(RATES_MAX + 1)), Err(InvalidRates::TooMany));
    }

    proptest! {
        /// What goes on as a fraction of 64 bits is never above the exact factor, and hardly below it.
        #[test]
        fn fractions_of_64_bits(from in any_rate(), to in any_rate(), scales in any_scales(), spread in any_spread()) {
            let conversion = Conversion::new(&from, &to, scales.0, scales.1, &spread);
            if let Some((numerator, denominator)) = conversion.as_u64_fraction() {
                let fraction = BigRational::new(numerator.into(), denominator.into());
                let exact = match &conversion.factor {
                    Factor::Zero => BigRational::zero(),
                    Factor::One => BigRational::from_integer(1.into()),
                    Factor::Small { numerator, denominator } => {
                        BigRational::new((*numerator).into(), (*denominator).into())
                    }
                    Factor::Large(factor) => {
                        BigRational::new(factor.numerator.clone().into(), factor.denominator.clone().into())
                    }
                };
                prop_assert!(fraction <= exact);
                // Terms of some 20 bits and more are exact to a millionth.
                if numerator > 1 << 21 && denominator > 1 << 21 {
                    let missing = (&exact - &fraction) * BigRational::from_integer(1_000_000.into());
                    prop_assert!(missing <= exact);
                }
            }
        }
    }

    /// Rates as people write them and as markets do, over the whole range.
    fn any_rate() -> impl Strategy<Value = Decimal> {
        prop_oneof![
            2 => "[1-9][0-9]{0,5}(\\.[0-9]{1,8})?",
            2 => "[1-9]\\.[0-9]{1,39}e-?[0-9]{1,2}",
            1 => "[1-9]\\.[0-9]{39}e-?[12][0-9]{2}",
            1 => "[1-9][0-9]{39}",
        ]
        .prop_map(|text| decimal(&text))
    }

    fn any_spread() -> impl Strategy<Value = Decimal> {
        prop_oneof![
            3 => Just("0".to_owned()),
            3 => "0\\.[0-9]{1,6}",
            1 => "-?[0-2]\\.[0-9]{1,39}",
        ]
        .prop_map(|text| decimal(&text))
    }

    /// All scales; half of the pairs close enough to each other that amounts between 1 and `u64::MAX` convert.
    fn any_scales() -> impl Strategy<Value = (u8, u8)> {
        prop_oneof![
            any::<(u8, u8)>(),
            (any::<u8>(), -20i16..=20)
                .prop_map(|(from, more)| { (from, (i16::from(from) + more).clamp(0, 255) as u8) }),
        ]
    }

    fn any_amount() -> impl Strategy<Value = u64> {
        // Of every length in bits.
        (any::<u64>(), 0u32..64).prop_map(|(amount, shift)| amount >> shift)
    }

    /// No pair of scales is left to chance, with terms of a word and with larger ones.
    #[test]
    fn every_pair_of_scales() {
        let spread = decimal("0.003");
        let kept = BigRational::one() - rational(&spread);
        for (rate_from, rate_to) in [("1", "2.517"), ("3.141592653589793238462643383279502884197", "7e-9")] {
            let (rate_from, rate_to) = (decimal(rate_from), decimal(rate_to));
            let rate = rational(&rate_from) / rational(&rate_to) * &kept;
            for (scale_from, scale_to) in (0..=255).flat_map(|from| (0..=255).map(move |to| (from, to))) {
                let conversion = Conversion::new(&rate_from, &rate_to, scale_from, scale_to, &spread);
                let factor = &rate * ten_to(i32::from(scale_to) - i32::from(scale_from));
                let exact = |amount: u64| (&factor * BigRational::from(BigInt::from(amount))).floor().to_integer();
                for amount in [
                    1,
                    1_000_000_007,
                    conversion.maximum,
                    conversion.maximum.saturating_add(1),
                    u64::MAX,
                ] {
                    let expected = match exact(amount) {
                        exact if exact.is_zero() => Err(ConversionError::Zero),
                        exact => exact.to_u64().ok_or(ConversionError::TooLarge {
                            maximum: conversion.maximum,
                        }),
                    };
                    if amount > 0 {
                        assert_eq!(
                            conversion.convert(amount),
                            expected,
                            "{amount} from {scale_from} to {scale_to}"
                        );
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn a_conversion_is_the_exact_value_rounded_down(
            amount in any_amount(),
            rate_from in any_rate(),
            rate_to in any_rate(),
            (scale_from, scale_to) in any_scales(),
            spread in any_spread(),
        ) {
            let conversion = Conversion::new(&rate_from, &rate_to, scale_from, scale_to, &spread);
            let kept = BigRational::one() - rational(&spread);
            let factor = rational(&rate_from) / rational(&rate_to)
                * ten_to(i32::from(scale_to) - i32::from(scale_from))
                * kept.max(BigRational::zero());
            let exact = |amount: u64| &factor * BigRational::from(BigInt::from(amount));
            let largest = BigRational::from(BigInt::from(u64::MAX));
            match conversion.convert(amount) {
                Ok(converted) => {
                    let paid_out = BigRational::from(BigInt::from(converted));
                    prop_assert!(paid_out <= exact(amount), "never more than the exact value");
                    prop_assert_eq!(paid_out, exact(amount).floor());
                    prop_assert!(amount == 0 || converted > 0);
                }
                Err(ConversionError::Zero) => {
                    prop_assert!(amount > 0 && exact(amount).floor().is_zero());
                }
                Err(ConversionError::TooLarge { maximum }) => {
                    prop_assert!(exact(amount).floor() > largest);
                    prop_assert!(exact(maximum).floor() <= largest, "the maximum converts");
                    prop_assert!(exact(maximum + 1).floor() > largest, "one more does not");
                    prop_assert_eq!(
                        conversion.convert(maximum).map(BigInt::from),
                        Ok(exact(maximum).floor().to_integer())
                    );
                    prop_assert_eq!(
                        conversion.convert(maximum + 1),
                        Err(ConversionError::TooLarge { maximum })
                    );
                }
            }
        }

        #[test]
        fn a_share_is_taken_off_before_the_only_rounding(
            amount in any_amount(),
            rate_from in any_rate(),
            rate_to in any_rate(),
            (scale_from, scale_to) in any_scales(),
            spread in any_spread(),
            attos in prop_oneof![Just(0), Just(1), Just(Share::ONE_ATTOS - 1), 0..Share::ONE_ATTOS],
        ) {
            let share = Share::from_attos(attos).unwrap();
            let conversion = Conversion::new(&rate_from, &rate_to, scale_from, scale_to, &spread).less(share);
            let kept = BigRational::one() - rational(&spread);
            let exact = rational(&rate_from) / rational(&rate_to)
                * ten_to(i32::from(scale_to) - i32::from(scale_from))
                * kept.max(BigRational::zero())
                * (BigRational::one() - rational(&decimal(&share.to_string())))
                * BigRational::from(BigInt::from(amount));
            match conversion.convert(amount) {
                Ok(converted) => prop_assert_eq!(BigInt::from(converted), exact.floor().to_integer()),
                Err(ConversionError::Zero) => prop_assert!(amount > 0 && exact.floor().is_zero()),
                Err(ConversionError::TooLarge { .. }) => {
                    prop_assert!(exact.floor() > BigRational::from(BigInt::from(u64::MAX)));
                }
            }
        }

        #[test]
        fn large_terms_are_exact_around_every_whole_result(
            whole in any_amount(),
            numerator in 1u128..,
            denominator in 1u128..,
        ) {
            // The amounts next to which the product passes a whole number, where an estimate would go wrong first.
            let (numerator, denominator) = (BigUint::from(numerator), BigUint::from(denominator));
            let conversion = Conversion::from_fraction(numerator.clone(), denominator.clone());
            let Some(amount) = (BigUint::from(whole) * &denominator / &numerator).to_u64() else {
                return Ok(());
            };
            for amount in [amount, amount.saturating_add(1)] {
                let exact = BigUint::from(amount) * &numerator / &denominator;
                match conversion.convert(amount) {
                    Ok(converted) => prop_assert_eq!(BigUint::from(converted), exact),
                    Err(ConversionError::Zero) => prop_assert!(exact.is_zero()),
                    Err(ConversionError::TooLarge { .. }) => prop_assert!(exact.to_u64().is_none()),
                }
            }
        }

    }
}
