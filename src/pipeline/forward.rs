//! What goes onward: an earlier expiry (RFC 27 and RFC 18; protocols.md 4.3). Pure arithmetic.

use crate::wire::timestamp::Timestamp;

/// How much of a packet's time this hop takes for itself, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Windows {
    /// Taken off the expiry at least: in this time a Fulfill that reached us at our own deadline still gets back to the
    /// sender before its own. Twice what is taken off must be left on arrival.
    pub message_window_ms: u64,
    /// We hold nobody's money longer than this.
    pub hold_ms_max: u64,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            message_window_ms: 1_000,
            hold_ms_max: 30_000,
        }
    }
}

impl Windows {
    /// Between two accounts, each with a round trip of its own: a message needs half of each on its way there and half of
    /// each on its way back.
    pub fn between(self, round_trip_time_ms_from: u32, round_trip_time_ms_to: u32) -> Self {
        let round_trips_ms = u64::from(round_trip_time_ms_from) + u64::from(round_trip_time_ms_to);
        Self {
            message_window_ms: self.message_window_ms.max(round_trips_ms),
            ..self
        }
    }
}

/// Too little time is left: R02.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InsufficientTimeout;

/// The expiry of the outgoing Prepare: earlier than the incoming one by the window, and no later than `hold_ms_max`
/// from now. Never later than the incoming expiry.
pub fn outgoing_expiry(
    incoming: Timestamp,
    now: Timestamp,
    windows: Windows,
) -> Result<Timestamp, InsufficientTimeout> {
    let remaining_ms = incoming.as_millis().saturating_sub(now.as_millis());
    if remaining_ms < 2 * windows.message_window_ms {
        return Err(InsufficientTimeout);
    }
    Ok(incoming
        .minus_ms(windows.message_window_ms)
        .min(now.plus_ms(windows.hold_ms_max)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_accounts_take_more_and_fast_ones_no_less_than_the_window() {
        let now = Timestamp::from_millis(1_000_000);
        for (from_ms, to_ms, incoming_in_ms, outgoing_in_ms) in [
            (500, 500, 10_000, Some(9_000)),
            (0, 0, 10_000, Some(9_000)),
            (10, 990, 10_000, Some(9_000)),
            (501, 500, 10_000, Some(8_999)),
            (0, 3_000, 10_000, Some(7_000)),
            (3_000, 0, 10_000, Some(7_000)),
            (2_000, 3_000, 10_000, Some(5_000)),
            (2_000, 3_001, 10_000, None),
            (2_000, 3_000, 35_001, Some(30_000)),
            (u32::MAX, u32::MAX, 10_000, None),
            (u32::MAX, u32::MAX, 4 * u64::from(u32::MAX), Some(30_000)),
        ] {
            let windows = Windows::default().between(from_ms, to_ms);
            let outgoing = outgoing_expiry(now.plus_ms(incoming_in_ms), now, windows);
            let expected = outgoing_in_ms.map(|ms| now.plus_ms(ms));
            assert_eq!(outgoing.ok(), expected, "{from_ms} {to_ms} {incoming_in_ms}");
        }
    }

    #[test]
    fn the_expiry_is_shortened_and_never_lengthened() {
        let now = Timestamp::from_millis(1_000_000);
        for (incoming_in_ms, outgoing_in_ms) in [
            (60_000, Some(30_000)),
            (31_000, Some(30_000)),
            (30_999, Some(29_999)),
            (5_000, Some(4_000)),
            (2_000, Some(1_000)),
            (1_999, None),
            (0, None),
        ] {
            let outgoing = outgoing_expiry(now.plus_ms(incoming_in_ms), now, Windows::default());
            assert_eq!(
                outgoing.ok(),
                outgoing_in_ms.map(|ms| now.plus_ms(ms)),
                "{incoming_in_ms} ms left"
            );
        }
        assert!(
            outgoing_expiry(now.minus_ms(1), now, Windows::default()).is_err(),
            "in the past"
        );
    }
}
