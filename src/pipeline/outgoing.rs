//! The second half of a Prepare's way, on the shard that owns the account it goes to: check that side, reserve, note it
//! in flight.

use super::in_flight::{IN_FLIGHT_PER_ACCOUNT_MAX, InFlight, Origin, RequestId};
use super::incoming::Onward;
use super::reject::RejectReason;
use super::{Now, Pipeline};

/// How the link to the next hop stands, as its shard sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// It takes packets; the number names the connection, for links that need it to tell whose answer it is.
    Up { carrier: u64 },
    /// None is configured, or none is connected.
    Down,
    /// It has more to send than it may have.
    Busy,
    /// The packet is longer than the link can carry.
    TooLong,
}

impl Pipeline {
    /// Notes the Prepare in flight to `onward.to`, which this shard owns. `waiting` is the number of transfers
    /// of this shard that the store has not made durable: they count against what may be in flight, because its queue has
    /// room for that many.
    pub fn outgoing(
        &mut self,
        now: Now,
        onward: Onward,
        link: LinkState,
        waiting: usize,
    ) -> Result<RequestId, (Origin, RejectReason)> {
        let Onward {
            origin,
            to,
            amount,
            expires_at,
            condition,
            replacement: _,
            ends_in_token: _,
        } = onward;
        match self.reserve(to, amount, link, waiting) {
            Err(reason) => {
                self.stats.rejected_here += 1;
                Err((origin, reason))
            }
            Ok((reservation, carrier)) => {
                let remaining_ms = expires_at.as_millis().saturating_sub(now.wall.as_millis());
                self.stats.forwarded += 1;
                Ok(self.in_flight.insert(InFlight {
                    origin,
                    to,
                    reservation,
                    condition,
                    deadline_ms: now.monotonic_ms + remaining_ms,
                    carrier,
                }))
            }
        }
    }

    pub(super) fn reserve(
        &mut self,
        to: crate::ledger::AccountId,
        amount: u64,
        link: LinkState,
        waiting: usize,
    ) -> Result<(crate::ledger::Reservation, u64), RejectReason> {
        let full = self.in_flight.len() + waiting >= super::in_flight::IN_FLIGHT_MAX;
        // The account went while the packet was on its way between two shards.
        let member = self.member_mut(to).ok_or(RejectReason::NoRoute)?;
        if member.closing {
            return Err(RejectReason::Stopping);
        }
        let carrier = match link {
            LinkState::Up { carrier } => carrier,
            LinkState::Down => return Err(RejectReason::LinkDown),
            LinkState::Busy => return Err(RejectReason::LinkBusy),
            LinkState::TooLong => return Err(RejectReason::PacketTooLarge),
        };
        if full || member.in_flight >= IN_FLIGHT_PER_ACCOUNT_MAX {
            return Err(RejectReason::ConnectorBusy);
        }
        let reservation = member.reserve(amount).map_err(|_| RejectReason::OutgoingLiquidity)?;
        member.in_flight += 1;
        Ok((reservation, carrier))
    }
}

impl Pipeline {
    /// Notes the connection that carries a Prepare, once it has one.
    pub fn set_carrier(&mut self, id: RequestId, carrier: u64) {
        if let Some(entry) = self.in_flight.get_mut(id) {
            entry.carrier = carrier;
        }
    }
}
