//! What an operator should know about a neighbour, said once and not for every packet.
//!
//! Owns how often: the first time at once, then at most every [`QUIET_MS`] for each neighbour and reason, with how often
//! it happened meanwhile.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::ledger::account::AccountId;
use crate::wire::timestamp::Timestamp;

const QUIET_MS: u64 = 600_000;

/// What is worth a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error("a neighbour claims addresses of ours")]
    OwnPrefix,
    #[error("a neighbour that is no parent offers a default route")]
    DefaultRoute,
    #[error("a neighbour tells more routes than are kept")]
    TooManyRoutes,
    #[error("a neighbour sends more route updates than it may")]
    TooManyUpdates,
    #[error("the parent has another asset or scale for our account with it, so its address is not taken")]
    AssetMismatch,
    #[error("the parent gives us an address that cannot be taken")]
    UnfitAddress,
    #[error("the parent does not tell our address")]
    NoAddress,
}

struct Noted {
    said_at: Timestamp,
    unsaid: u64,
}

#[derive(Default)]
pub(super) struct Notes {
    noted: BTreeMap<(AccountId, Reason), Noted>,
}

impl Notes {
    /// It happened `count` times. Gives how often it is to be said to have happened, if now is the time to say it.
    pub(super) fn note(&mut self, now: Timestamp, account: AccountId, reason: Reason, count: u64) -> Option<u64> {
        if count == 0 {
            return None;
        }
        let noted = match self.noted.entry((account, reason)) {
            Entry::Vacant(entry) => {
                entry.insert(Noted {
                    said_at: now,
                    unsaid: 0,
                });
                return Some(count);
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        noted.unsaid += count;
        if now < noted.said_at.plus_ms(QUIET_MS) {
            return None;
        }
        noted.said_at = now;
        Some(std::mem::take(&mut noted.unsaid))
    }

    /// The account is gone, or works now.
    pub(super) fn forget(&mut self, account: AccountId) {
        self.noted.retain(|(noted, _), _| *noted != account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_and_then_every_ten_minutes() {
        let mut notes = Notes::default();
        let (bob, eve) = (AccountId::new(1), AccountId::new(2));
        for (minute, account, reason, count, said) in [
            (0, bob, Reason::OwnPrefix, 3, Some(3)),
            (0, bob, Reason::OwnPrefix, 2, None),
            (0, bob, Reason::DefaultRoute, 1, Some(1)),
            (0, eve, Reason::OwnPrefix, 1, Some(1)),
            (9, bob, Reason::OwnPrefix, 1, None),
            (10, bob, Reason::OwnPrefix, 0, None),
            (10, bob, Reason::OwnPrefix, 1, Some(4)),
            (19, bob, Reason::OwnPrefix, 1, None),
            (21, bob, Reason::OwnPrefix, 1, Some(2)),
        ] {
            let now = Timestamp::from_millis(1_000 + minute * 60_000);
            assert_eq!(notes.note(now, account, reason, count), said, "minute {minute}");
        }
        notes.forget(bob);
        let now = Timestamp::from_millis(21 * 60_000);
        assert_eq!(notes.note(now, bob, Reason::OwnPrefix, 1), Some(1));
    }
}
