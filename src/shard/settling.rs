//! Settlements that have become due on this shard go to the store, as transfers among those of packets.
//!
//! Owns that each finds room in the store's queue, which is kept for the packets in flight. What has no room waits in the
//! pipeline, as what is due and not as what was taken off a balance.

use crate::ledger::AccountId;
use crate::pipeline::in_flight::IN_FLIGHT_MAX;
use crate::pipeline::settling::transfer_of;

use super::Shard;
use super::control::{SettleNow, SettleOrder};

/// Accounts looked at in one turn besides those of packets that were just fulfilled: after a start, or when an asset has got
/// an engine, all are to be looked at, and most are in no cache.
const LOOKS_PER_TURN: usize = 256;

impl Shard {
    /// Whether an account is to be looked at, and can be.
    pub(super) fn can_settle(&self) -> bool {
        self.pipeline.has_to_settle() && self.has_room()
    }

    /// Looks at the next account. Called right after a packet's transfer was handed over, so that both are likely to become
    /// durable together.
    pub(super) fn settle_next(&mut self) {
        if self.can_settle()
            && let Some(transfer) = self.pipeline.settle_next()
        {
            self.transfers.push(transfer);
            self.commit.add(self.turn_us);
        }
    }

    /// Looks at those that have been waiting.
    pub(super) fn settle_due(&mut self) {
        for _ in 0..LOOKS_PER_TURN {
            if !self.pipeline.has_to_settle() {
                return;
            }
            self.settle_next();
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
