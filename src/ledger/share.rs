//! A share of an amount: exact, small enough for every account to have one, and fast to take off.
//!
//! Always: at least nothing, and less than the whole.

use std::fmt;

/// What is kept of an amount: from 0 to below 1, in steps of `10^-18`. No amount has more than 20 digits, so a finer
/// step would hardly move a unit of the largest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Share {
    attos: u64,
}

impl Share {
    pub const NONE: Self = Self { attos: 0 };
    /// Digits behind the decimal point.
    pub const DIGITS_MAX: usize = 18;
    /// The whole, in units of `10^-18`.
    pub const ONE_ATTOS: u64 = 10u64.pow(Self::DIGITS_MAX as u32);

    /// `None`: it is the whole, or more.
    pub const fn from_attos(attos: u64) -> Option<Self> {
        if attos < Self::ONE_ATTOS {
            Some(Self { attos })
        } else {
            None
        }
    }

    /// In units of `10^-18`.
    pub const fn attos(self) -> u64 {
        self.attos
    }

    /// What is left of the whole, in units of `10^-18`; never nothing.
    pub const fn rest_attos(self) -> u64 {
        Self::ONE_ATTOS - self.attos
    }

    pub const fn is_none(self) -> bool {
        self.attos == 0
    }
}

impl fmt::Display for Share {
    /// The exact value as a JSON number: `0`, `0.001`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("0");
        }
        let digits = format!("{:0width$}", self.attos, width = Self::DIGITS_MAX);
        write!(f, "0.{}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_below_the_whole_and_written_exactly() {
        for (attos, written) in [
            (0, Some("0")),
            (1, Some("0.000000000000000001")),
            (1_000_000_000_000_000, Some("0.001")),
            (500_000_000_000_000_000, Some("0.5")),
            (123_456_789_012_345_678, Some("0.123456789012345678")),
            (999_999_999_999_999_999, Some("0.999999999999999999")),
            (1_000_000_000_000_000_000, None),
            (u64::MAX, None),
        ] {
            let share = Share::from_attos(attos);
            assert_eq!(share.map(|share| share.to_string()).as_deref(), written, "{attos}");
            if let Some(share) = share {
                assert_eq!(share.attos() + share.rest_attos(), Share::ONE_ATTOS);
            }
        }
    }
}
