//! Settlements that have become due on this shard go to the store, as transfers among those of packets.
//!
//! Owns that each finds room in the store's queue, which is kept for the packets in flight. What has no room waits in the
//! pipeline, as what is due and not as what was taken off a balance.
//!
//! Always: what becomes due at once, however much it is, comes in parts, and packets become durable between them.

use crate::ledger::AccountId;
use crate::ledger::journal::TransferNumber;
use crate::pipeline::in_flight::IN_FLIGHT_MAX;
use crate::pipeline::settling::transfer_of;

use super::Shard;
use super::control::{SettleNow, SettleOrder};

/// Accounts looked at in one turn besides those of packets that were just fulfilled: after a start, or when an asset has got
/// an engine, all are to be looked at, and most are in no cache.
const LOOKS_PER_TURN: usize = 256;
/// Settlements of those that are handed over before the last one of them is durable: packets wait for a commit of these no
/// longer than a few milliseconds.
const MADE_TOGETHER_MAX: u32 = 512;

/// The settlements that [`Shard::settle_due`] has made since it last waited.
#[derive(Default)]
pub(super) struct MadeTogether {
    count: u32,
    last: TransferNumber,
}

impl MadeTogether {
    fn add(&mut self, number: TransferNumber) {
        self.count += 1;
        self.last = number;
    }

    /// Whether more may be made, where everything up to this number is durable.
    fn has_room(&self, durable: TransferNumber) -> bool {
        self.count < MADE_TOGETHER_MAX || self.last <= durable
    }

    fn begin_anew_if_full(&mut self) {
        if self.count >= MADE_TOGETHER_MAX {
            self.count = 0;
        }
    }
}

impl Shard {
    /// Whether an account is to be looked at that has been waiting, and can be.
    pub(super) fn can_settle(&self) -> bool {
        self.pipeline.has_to_settle() && self.has_room() && self.made_together.has_room(self.transfers.durable())
    }

    /// Looks at the next account. Called right after a packet's transfer was handed over, so that both are likely to become
    /// durable together.
    pub(super) fn settle_next(&mut self) -> Option<TransferNumber> {
        if !self.pipeline.has_to_settle() || !self.has_room() {
            return None;
        }
        let transfer = self.pipeline.settle_next()?;
        let number = self.transfers.push(transfer);
        self.commit.add(self.turn_us);
        Some(number)
    }

    /// Looks at those that have been waiting.
    pub(super) fn settle_due(&mut self) {
        for _ in 0..LOOKS_PER_TURN {
            if !self.can_settle() {
                return;
            }
            self.made_together.begin_anew_if_full();
            if let Some(number) = self.settle_next() {
                self.made_together.add(number);
            }
        }
    }

    pub(super) fn settle_now(&mut self, account: AccountId, by: SettleOrder) -> SettleNow {
        if !self.has_room() {
            return SettleNow::NotReady;
        }
        let made = self.pipeline.settle_now(account, by);
        if let SettleNow::Made { amount } = made {
            self.transfers.push(transfer_of(account, amount));
            self.commit.add(self.turn_us);
        }
        made
    }

    /// Whether the store's queue takes a transfer besides those that the packets in flight may become.
    fn has_room(&self) -> bool {
        let waiting = self.journal.len().max(self.transfers.waiting());
        self.pipeline.in_flight().len() + waiting < IN_FLIGHT_MAX && !self.pipeline.cannot_commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_at_once_comes_in_parts() {
        let mut made = MadeTogether::default();
        // Packets' transfers have numbers between them.
        let (mut handed_over, mut durable, mut commits) = (0, 0, 0);
        for _ in 0..10_000 {
            if !made.has_room(durable) {
                assert!(handed_over - durable <= 3 * u64::from(MADE_TOGETHER_MAX));
                durable = handed_over - 1;
                assert!(!made.has_room(durable), "the last one is missing");
                durable = handed_over;
                commits += 1;
            }
            assert!(made.has_room(durable));
            made.begin_anew_if_full();
            handed_over += 3;
            made.add(handed_over);
        }
        assert_eq!(commits, 10_000 / MADE_TOGETHER_MAX);
    }
}
