//! Exact decimal numbers, as people and markets write rates.
//!
//! Owns their text and its limits. Leaves arithmetic to [`super`], but for the one difference a spread needs.
//!
//! Always: a decimal is what was written, to the last digit, and no number is so long or so large that computing with
//! it could take long.

use std::fmt;
use std::str::FromStr;

use num_bigint::{BigInt, BigUint, Sign};
use num_traits::{One, ToPrimitive, Zero};

use crate::ledger::share::Share;

/// Digits that a [`Decimal`] may have between its first and its last one that is not 0.
pub const DECIMAL_DIGITS_MAX: usize = 40;
/// The text of a [`Decimal`]: long enough for [`DECIMAL_DIGITS_MAX`] digits at any magnitude without an exponent.
pub const DECIMAL_TEXT_BYTES_MAX: usize = 400;
/// The first digit of a [`Decimal`] stands between `10^-300` and `10^300`, so that its nearest `f64` is neither zero,
/// nor infinite, nor short of digits.
pub const DECIMAL_MAGNITUDE_MAX: i32 = 300;
const _: () = assert!(
    1 + 2 + DECIMAL_MAGNITUDE_MAX as usize + DECIMAL_DIGITS_MAX <= DECIMAL_TEXT_BYTES_MAX,
    "every decimal can be written without an exponent: sign, `0.`, zeros, digits"
);

/// An exact decimal number: a rate, or the share of an amount that the connector keeps.
///
/// Two decimals are equal when their values are: `1.50` is `1.5`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Decimal {
    /// Does not end in the digit 0, unless it is 0.
    pub(super) coefficient: BigInt,
    /// The value is `coefficient * 10^exponent`; 0 for the value 0.
    pub(super) exponent: i32,
}

/// Why a text is no [`Decimal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidDecimal {
    #[error("longer than {DECIMAL_TEXT_BYTES_MAX} bytes")]
    TooLong,
    #[error("not a decimal number")]
    Malformed,
    #[error("more than {DECIMAL_DIGITS_MAX} significant digits")]
    TooManyDigits,
    #[error("outside 1e-{DECIMAL_MAGNITUDE_MAX} to 1e{DECIMAL_MAGNITUDE_MAX}")]
    OutOfRange,
}

impl Decimal {
    /// Reads a number as JSON writes it (`2.517`, `-0.01`, `5e-7`), and besides a leading `+` and leading zeros.
    /// No white space; at least one digit on either side of a decimal point. Zeros before the first and after the last
    /// other digit do not count as significant.
    pub fn parse(text: &str) -> Result<Self, InvalidDecimal> {
        use InvalidDecimal::{Malformed, OutOfRange, TooLong, TooManyDigits};

        if text.len() > DECIMAL_TEXT_BYTES_MAX {
            return Err(TooLong);
        }
        let (sign, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (Sign::Minus, &text[1..]),
            Some(b'+') => (Sign::Plus, &text[1..]),
            _ => (Sign::Plus, text),
        };
        let (mantissa, power) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, Some(power)),
            None => (unsigned, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) if is_digits(fraction) => (whole, fraction),
            Some(_) => return Err(Malformed),
            None => (mantissa, ""),
        };
        if !is_digits(whole) {
            return Err(Malformed);
        }
        let power: i32 = match power {
            Some(power) if !is_digits(power.strip_prefix(['+', '-']).unwrap_or(power)) => {
                return Err(Malformed);
            }
            // Nothing but digits and a sign, so what does not fit is too large for us in either direction.
            Some(power) => power.parse().map_err(|_| OutOfRange)?,
            None => 0,
        };

        let digits = [whole, fraction].concat();
        let significant = digits.trim_start_matches('0').trim_end_matches('0');
        if significant.is_empty() {
            return Ok(Self::zero());
        }
        if significant.len() > DECIMAL_DIGITS_MAX {
            return Err(TooManyDigits);
        }
        // All lengths are below DECIMAL_TEXT_BYTES_MAX; only the power can be of any size.
        let trailing_zeros = digits.len() - digits.trim_end_matches('0').len();
        let exponent = power
            .checked_add(trailing_zeros as i32 - fraction.len() as i32)
            .ok_or(OutOfRange)?;
        let magnitude = exponent.checked_add(significant.len() as i32 - 1).ok_or(OutOfRange)?;
        if !(-DECIMAL_MAGNITUDE_MAX..=DECIMAL_MAGNITUDE_MAX).contains(&magnitude) {
            return Err(OutOfRange);
        }
        let coefficient = significant.parse().expect("decimal digits are an integer");
        Ok(Self {
            coefficient: BigInt::from_biguint(sign, coefficient),
            exponent,
        })
    }

    /// The number 0, the spread of a connector that keeps nothing.
    pub fn zero() -> Self {
        Self {
            coefficient: BigInt::ZERO,
            exponent: 0,
        }
    }

    pub fn is_zero(&self) -> bool {
        self.coefficient.is_zero()
    }

    /// Greater than zero, as every rate must be.
    pub fn is_positive(&self) -> bool {
        self.coefficient.sign() == Sign::Plus
    }

    pub fn is_negative(&self) -> bool {
        self.coefficient.sign() == Sign::Minus
    }

    /// Below 1, as the share of an amount is that leaves something of it.
    pub fn is_below_one(&self) -> bool {
        self.subtract_from_one().0.sign() == Sign::Plus
    }

    /// The same as a share. `None`: it is below 0, not below 1, or has more digits than a share.
    pub fn to_share(&self) -> Option<Share> {
        let exponent = self.exponent + Share::DIGITS_MAX as i32;
        if exponent < 0 || !self.is_below_one() {
            return None;
        }
        let attos = &self.coefficient * BigInt::from(power_of_ten(exponent));
        Share::from_attos(attos.to_u64()?)
    }

    /// The nearest `f64`, finite, and 0 only for 0. For showing to people and programs, never for computing.
    pub fn to_f64(&self) -> f64 {
        self.to_string()
            .parse()
            .expect("what a decimal is written as, a float can be read from")
    }

    /// Whether neither of two positive numbers is more than `1 + step` times the other: the same for a rise and for the
    /// fall that takes it back.
    pub fn is_near(&self, other: &Self, step: &Self) -> bool {
        let minus_step = Self {
            coefficient: -&step.coefficient,
            exponent: step.exponent,
        };
        let (factor, factor_exponent) = minus_step.subtract_from_one();
        let is_at_most = |one: &Self, other: &Self| {
            let most = &other.coefficient * &factor;
            let exponent = one.exponent - other.exponent - factor_exponent;
            let power = BigInt::from(power_of_ten(exponent));
            if exponent >= 0 {
                &one.coefficient * power <= most
            } else {
                one.coefficient <= most * power
            }
        };
        is_at_most(self, other) && is_at_most(other, self)
    }

    /// `1 - self`, as the number `.0 * 10^.1`.
    pub(super) fn subtract_from_one(&self) -> (BigInt, i32) {
        if self.exponent < 0 {
            let one = BigInt::from(power_of_ten(self.exponent));
            (one - &self.coefficient, self.exponent)
        } else {
            let whole = &self.coefficient * BigInt::from(power_of_ten(self.exponent));
            (BigInt::one() - whole, 0)
        }
    }
}

/// `10^|exponent|`. Exponents here come from decimals and scales, so the result has at most some hundred digits.
pub(super) fn power_of_ten(exponent: i32) -> BigUint {
    BigUint::from(10u8).pow(exponent.unsigned_abs())
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl FromStr for Decimal {
    type Err = InvalidDecimal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Decimal {
    /// The exact value as a JSON number, which [`Decimal::parse`] reads back: `2.517`, `1200`, `5e-7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// From here on, zeros would hide the digits: an exponent is written instead.
        const MAGNITUDES_WITHOUT_EXPONENT: std::ops::Range<i32> = -6..21;

        if self.is_negative() {
            f.write_str("-")?;
        }
        let digits = self.coefficient.magnitude().to_string();
        let magnitude = self.exponent + digits.len() as i32 - 1;
        if !MAGNITUDES_WITHOUT_EXPONENT.contains(&magnitude) {
            let (first, rest) = digits.split_at(1);
            let point = if rest.is_empty() { "" } else { "." };
            write!(f, "{first}{point}{rest}e{magnitude}")
        } else if self.exponent >= 0 {
            let zeros = self.exponent as usize;
            write!(f, "{digits}{:0<zeros$}", "")
        } else if magnitude >= 0 {
            let (whole, fraction) = digits.split_at(magnitude as usize + 1);
            write!(f, "{whole}.{fraction}")
        } else {
            let zeros = -magnitude as usize - 1;
            write!(f, "0.{:0<zeros$}{digits}", "")
        }
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn below_one() {
        for (text, is_below) in [
            ("0", true),
            ("-2", true),
            ("0.99999999999999999999999999999999999999", true),
            ("1e-300", true),
            ("1", false),
            ("1.0000000000000000000000000000000000001", false),
            ("1e300", false),
        ] {
            assert_eq!(Decimal::parse(text).unwrap().is_below_one(), is_below, "{text}");
        }
    }

    #[test]
    fn shares() {
        for (text, attos) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("1e-18", Some(1)),
            ("0.0010", Some(1_000_000_000_000_000)),
            ("0.999999999999999999", Some(999_999_999_999_999_999)),
            ("1e-19", None),
            ("0.1234567890123456789", None),
            ("1e-300", None),
            ("0.9999999999999999999", None),
            ("1", None),
            ("-0.001", None),
            ("-1e-18", None),
            ("1e300", None),
        ] {
            let share = decimal(text).to_share();
            assert_eq!(share.map(Share::attos), attos, "{text}");
            if let Some(share) = share {
                assert_eq!(decimal(&share.to_string()), decimal(text));
            }
        }
    }

    #[test]
    fn near_and_far() {
        for (one, other, step, is_near) in [
            ("1", "1", "0.2", true),
            ("1", "1.2", "0.2", true),
            ("1", "1.2000000000000000000000000000000000001", "0.2", false),
            ("1.2", "1", "0.2", true),
            ("1", "0.83333333333333333333", "0.2", false),
            ("1", "0.83333333333333333334", "0.2", true),
            ("64000", "0.000015625", "0.2", false),
            ("2", "0.5", "2.9", false),
            ("2", "0.5", "3", true),
            ("1e300", "1e-300", "1e300", false),
            ("1e-300", "1.00001e-300", "1e-5", true),
            ("1e-300", "1.00002e-300", "1e-5", false),
            ("3e20", "300000000000000000001", "1e-20", true),
        ] {
            let (one, other, step) = (decimal(one), decimal(other), decimal(step));
            assert_eq!(one.is_near(&other, &step), is_near, "{one} {other} {step}");
            assert_eq!(other.is_near(&one, &step), is_near, "{other} {one} {step}");
        }
    }

    #[test]
    fn decimals_are_kept_exactly() {
        for (text, exact) in [
            ("2.517", "2.517"),
            ("1.0", "1"),
            ("+1", "1"),
            ("-0.01", "-0.01"),
            ("-0", "0"),
            ("0.0e999", "0"),
            ("5e-7", "5e-7"),
            ("0.0000005", "5e-7"),
            ("0.000001", "0.000001"),
            ("1200", "1200"),
            ("12E2", "1200"),
            ("1.25e+1", "12.5"),
            ("0012.50", "12.5"),
            ("100000000000000000000", "100000000000000000000"),
            ("1000000000000000000000", "1e21"),
            ("-1.5e-9", "-1.5e-9"),
            (
                "1.234567890123456789012345678901234567890",
                "1.23456789012345678901234567890123456789",
            ),
            ("1e300", "1e300"),
            ("1e-300", "1e-300"),
        ] {
            let parsed = decimal(text);
            assert_eq!(parsed.to_string(), exact, "{text}");
            assert_eq!(decimal(exact), parsed, "{text}");
            assert_eq!(parsed.to_f64(), text.parse::<f64>().unwrap(), "{text}");
        }
    }

    #[test]
    fn what_is_no_decimal() {
        use InvalidDecimal::{Malformed, OutOfRange, TooLong, TooManyDigits};
        let forty = "1234567890".repeat(3) + "1234567891";
        let forty_one = format!("{forty}2");
        let long = "0".repeat(DECIMAL_TEXT_BYTES_MAX + 1);
        for (text, expected) in [
            ("", Malformed),
            ("+", Malformed),
            ("-", Malformed),
            ("+-1", Malformed),
            (".5", Malformed),
            ("5.", Malformed),
            (".", Malformed),
            ("1.2.3", Malformed),
            ("1,2", Malformed),
            (" 1", Malformed),
            ("1 ", Malformed),
            ("1_000", Malformed),
            ("0x10", Malformed),
            ("NaN", Malformed),
            ("inf", Malformed),
            ("e5", Malformed),
            ("1e", Malformed),
            ("1e+", Malformed),
            ("1e+-5", Malformed),
            ("1e5e5", Malformed),
            ("1e1.5", Malformed),
            ("\u{661}", Malformed),
            ("1e301", OutOfRange),
            ("1e-301", OutOfRange),
            ("1e2147483647", OutOfRange),
            ("10e2147483647", OutOfRange),
            ("0.1e-2147483648", OutOfRange),
            ("1e99999999999999999999", OutOfRange),
            (forty_one.as_str(), TooManyDigits),
            (long.as_str(), TooLong),
        ] {
            assert_eq!(Decimal::parse(text), Err(expected), "{text}");
        }
        assert!(Decimal::parse(&forty).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in "-?[0-9]{1,10}(\\.[0-9]{1,30})?(e-?[0-9]{1,2})?") {
            let once = decimal(&text);
            prop_assert_eq!(decimal(&once.to_string()), once.clone());
            prop_assert_eq!(once.to_f64(), text.parse::<f64>().unwrap());
        }

        #[test]
        fn no_text_is_too_strange(text in "[-+0-9.eE]{0,50}|.{0,20}") {
            if let Ok(decimal) = Decimal::parse(&text) {
                prop_assert_eq!(decimal.to_f64(), text.parse::<f64>().unwrap());
            }
        }
    }
}
