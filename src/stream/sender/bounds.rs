//! What is known of the rate of a path, from what arrived of packets that were sent.

use crate::stream::ratio::Ratio;

/// Between which rates the path converts, from source units to units of the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// At least this.
    pub lower: Ratio,
    /// Less than this.
    pub upper: Ratio,
}

impl Bounds {
    /// Learns from one packet. What contradicts everything before it is a new rate, which replaces the old one.
    pub fn learn(known: &mut Option<Self>, sent: u64, delivered: u64) {
        let Some((lower, upper)) = Ratio::bounds(sent, delivered) else {
            return;
        };
        match known {
            Some(bounds) if lower < bounds.upper && upper > bounds.lower => {
                bounds.lower = bounds.lower.max(lower);
                bounds.upper = bounds.upper.min(upper);
            }
            _ => *known = Some(Self { lower, upper }),
        }
    }

    /// The most that may arrive of `amount`.
    pub fn delivered_max(&self, amount: u64) -> u64 {
        self.upper.times_ceil(amount).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_packet_narrows_them_or_begins_anew() {
        let ratio = |numerator, denominator| Ratio::new(numerator, denominator).unwrap();
        let mut bounds = None;
        for (sent, delivered, lower, upper) in [
            (10, 5, ratio(5, 10), ratio(6, 10)),
            (100, 57, ratio(57, 100), ratio(58, 100)),
            (10, 5, ratio(57, 100), ratio(58, 100)),   // says less
            (0, 9, ratio(57, 100), ratio(58, 100)),    // says nothing
            (100, 58, ratio(58, 100), ratio(59, 100)), // the rate has changed, if only a little
            (10, 4, ratio(4, 10), ratio(5, 10)),
            (1_000, 0, ratio(0, 1), ratio(1, 1_000)),
            (1, u64::MAX, ratio(u64::MAX, 1), Ratio::bounds(1, u64::MAX).unwrap().1),
        ] {
            Bounds::learn(&mut bounds, sent, delivered);
            assert_eq!(bounds, Some(Bounds { lower, upper }), "{delivered} of {sent}");
        }
        let bounds = Bounds {
            lower: ratio(57, 100),
            upper: ratio(58, 100),
        };
        assert_eq!(bounds.delivered_max(100), 57);
        assert_eq!(bounds.delivered_max(1_000), 579);
        assert_eq!(bounds.delivered_max(0), 0);
    }
}
