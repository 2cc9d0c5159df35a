//! The way back: a Fulfill is verified and becomes a transfer; a Reject, a broken link or the expiry release what was
//! taken (RFC 27; protocols.md 4.6).

use ring::digest;

use crate::ledger::{AccountId, Hold, Transfer};
use crate::wire::packet::Fulfill;

use super::in_flight::{InFlight, Origin, RequestId};
use super::reject::RejectReason;
use super::{Now, Pipeline};

/// What a response means for the packet it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The Fulfill is valid: it may leave when `transfer` is durable, at once if there is nothing to transfer.
    Fulfilled { origin: Origin, transfer: Option<Transfer> },
    /// The Reject goes back as it came.
    Rejected { origin: Origin },
    /// We reject it, for this reason.
    Refused { origin: Origin, reason: RejectReason },
}

/// How a packet ended, for the account that sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Fulfilled,
    Rejected,
}

impl Pipeline {
    /// A Fulfill from `from` for the Prepare `id`. `None`: it belongs to nothing that waits, is too late or invented,
    /// and moves no money. A settlement may be due after it, see [`Pipeline::has_to_settle`].
    pub fn fulfilled(&mut self, id: RequestId, from: AccountId, fulfill: &Fulfill<'_>) -> Option<Answer> {
        let InFlight {
            origin,
            to,
            reservation,
            condition,
            ..
        } = self.take(id, from)?;
        if digest::digest(&digest::SHA256, fulfill.fulfillment()).as_ref() != condition {
            self.member_mut(to)
                .expect(IN_FLIGHT_KEEPS)
                .balance
                .release_reservation(reservation);
            self.stats.rejected_here += 1;
            return Some(Answer::Refused {
                origin,
                reason: RejectReason::WrongFulfillment,
            });
        }
        // From here on we owe the amount, and are owed the other: nothing below can fail.
        let transfer = Transfer {
            from: origin.from,
            to,
            incoming_amount: origin.hold.amount(),
            outgoing_amount: reservation.amount(),
            payment: origin.reply_to.payment(),
        };
        let member = self.member_mut(to).expect(IN_FLIGHT_KEEPS);
        member.balance.commit_reservation(reservation);
        if member.rule.is_some() && transfer.outgoing_amount > 0 {
            self.note_cause(to);
        }
        self.stats.fulfilled += 1;
        let moves_money = transfer.incoming_amount > 0 || transfer.outgoing_amount > 0;
        Some(Answer::Fulfilled {
            origin,
            transfer: moves_money.then_some(transfer),
        })
    }

    /// A Reject from `from` for the Prepare `id`.
    pub fn rejected(&mut self, id: RequestId, from: AccountId) -> Option<Answer> {
        let entry = self.take(id, from)?;
        self.stats.rejected_there += 1;
        Some(Answer::Rejected {
            origin: self.release(entry),
        })
    }

    /// There will be no response to the Prepare `id`: its link broke, or answered with something else.
    pub fn failed(&mut self, id: RequestId, from: AccountId, reason: RejectReason) -> Option<Answer> {
        let entry = self.take(id, from)?;
        self.stats.rejected_here += 1;
        Some(Answer::Refused {
            origin: self.release(entry),
            reason,
        })
    }

    /// The next Prepare whose outgoing expiry is past, until there is none.
    pub fn expire(&mut self, now: Now) -> Option<(AccountId, u64, Answer)> {
        let entry = self.in_flight.expire(now.monotonic_ms)?;
        let (to, carrier) = (entry.to, entry.carrier);
        self.member_mut(to).expect(IN_FLIGHT_KEEPS).in_flight -= 1;
        self.stats.timed_out += 1;
        Some((
            to,
            carrier,
            Answer::Refused {
                origin: self.release(entry),
                reason: RejectReason::TimedOut,
            },
        ))
    }

    /// The packet has ended: what it held is gone for good or available again. On the shard of the account that sent it.
    pub fn finish(&mut self, from: AccountId, hold: Hold, outcome: Outcome) {
        let amount = hold.amount();
        let member = self.member_mut(from).expect(IN_FLIGHT_KEEPS);
        member.in_flight -= 1;
        match outcome {
            Outcome::Fulfilled => member.balance.commit_hold(hold),
            Outcome::Rejected => member.balance.release_hold(hold),
        }
        // What was on hold, or what it has used of what was prepaid, no longer stands in the way of a settlement. But a
        // packet that was rejected costs its sender nothing: it makes us pay what we owe, and nothing ahead.
        let is_cause = outcome == Outcome::Fulfilled || member.balance.due() > 0;
        if member.rule.is_some() && amount > 0 {
            if is_cause {
                self.note_cause(from);
            } else {
                self.look_soon(from);
            }
        }
        self.accepted -= 1;
        if outcome == Outcome::Rejected {
            self.refund(from, amount);
        }
    }

    pub(super) fn take(&mut self, id: RequestId, from: AccountId) -> Option<InFlight> {
        // Requests are numbered per shard, not per account: nobody answers for another.
        if self.in_flight.get(id).is_none_or(|entry| entry.to != from) {
            self.stats.late_or_unknown += 1;
            return None;
        }
        let entry = self.in_flight.remove(id)?;
        self.member_mut(entry.to).expect(IN_FLIGHT_KEEPS).in_flight -= 1;
        Some(entry)
    }

    pub(super) fn release(&mut self, entry: InFlight) -> Origin {
        let member = self.member_mut(entry.to).expect(IN_FLIGHT_KEEPS);
        member.balance.release_reservation(entry.reservation);
        entry.origin
    }
}

const IN_FLIGHT_KEEPS: &str = "an account with packets in flight is not removed";
