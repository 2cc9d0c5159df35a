//! Failed attempts to authenticate, per address: who guesses is slowed down, and nobody else.
//!
//! Owns the counting. Whoever checks secrets asks [`Failures::is_blocked`] before it looks at one, so that a hit is not
//! learned either, and notes what failed. A connection that has proved itself asks no more, so the packets of a peer do
//! not suffer from a stranger behind the same address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Failed attempts that an address may make at once, and per second after that.
pub const FAILED_ATTEMPTS_PER_SECOND: u64 = 5;
/// Addresses whose failed attempts are counted at one time, at some 40 bytes each. In a second in which more addresses
/// than this fail, those beyond it are not slowed down: no address may suffer for the attempts of another.
const ADDRESSES_MAX: usize = 16_384;

/// Failed attempts per address, each a bucket that leaks: a failure adds 1,000, a millisecond takes
/// [`FAILED_ATTEMPTS_PER_SECOND`] away.
#[derive(Default)]
pub struct Failures {
    by_address: HashMap<IpAddr, Bucket>,
    swept_at_ms: u64,
}

#[derive(Clone, Copy)]
struct Bucket {
    level: u64,
    at_ms: u64,
}

const FAILURE: u64 = 1_000;

impl Bucket {
    fn level(self, now_ms: u64) -> u64 {
        self.level.saturating_sub(
            now_ms
                .saturating_sub(self.at_ms)
                .saturating_mul(FAILED_ATTEMPTS_PER_SECOND),
        )
    }
}

impl Failures {
    /// Nobody has failed lately enough to matter: there is no need to know who asks.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Whether this address has failed too often to be listened to now.
    pub fn is_blocked(&self, peer: IpAddr, now_ms: u64) -> bool {
        let level = self
            .by_address
            .get(&counted_as(peer))
            .map_or(0, |bucket| bucket.level(now_ms));
        level + FAILURE > FAILURE * FAILED_ATTEMPTS_PER_SECOND
    }

    /// An attempt from this address has failed.
    pub fn note(&mut self, peer: IpAddr, now_ms: u64) {
        let address = counted_as(peer);
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&address) {
            // At most once a second: a bucket takes no longer than that to leak out.
            if now_ms.saturating_sub(self.swept_at_ms) >= 1_000 {
                self.swept_at_ms = now_ms;
                self.by_address.retain(|_, bucket| bucket.level(now_ms) > 0);
            }
            if self.by_address.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let bucket = self.by_address.entry(address).or_insert(Bucket {
            level: 0,
            at_ms: now_ms,
        });
        *bucket = Bucket {
            level: bucket.level(now_ms) + FAILURE,
            at_ms: now_ms,
        };
    }
}

/// Whoever has one IPv6 address has 2^64 of them: they count as one.
fn counted_as(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_attempts() {
        let mut failures = Failures::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for attempt in 0..5 {
            assert!(!failures.is_blocked(one, 0), "{attempt}");
            failures.note(one, 0);
        }
        for (peer, now_ms, blocked) in [(one, 0, true), (other, 0, false), (one, 199, true), (one, 200, false)] {
            assert_eq!(failures.is_blocked(peer, now_ms), blocked, "{peer} at {now_ms}");
        }
        failures.note(one, 200);
        assert!(failures.is_blocked(one, 200));
        assert!(!failures.is_blocked(one, 5_000));
    }

    #[test]
    fn five_a_second_for_ever_are_never_blocked() {
        let mut failures = Failures::default();
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        for now_ms in (0..60_000).step_by(200) {
            assert!(!failures.is_blocked(peer, now_ms), "{now_ms}");
            failures.note(peer, now_ms);
        }
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        for (one, other, same) in [
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            let counted = |text: &str| counted_as(text.parse().unwrap());
            assert_eq!(counted(one) == counted(other), same, "{one} {other}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_recovers() {
        let mut failures = Failures::default();
        let address = |number: usize| IpAddr::V4((number as u32).into());
        for number in 0..ADDRESSES_MAX + 10 {
            failures.note(address(number), 2_000);
        }
        assert_eq!(failures.by_address.len(), ADDRESSES_MAX);
        failures.note(address(ADDRESSES_MAX + 11), 3_000);
        assert_eq!(failures.by_address.len(), 1, "what has leaked out was swept");
    }
}
