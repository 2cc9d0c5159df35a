//! The first half of a Prepare's way, on the shard that owns the account that sent it: check, find the next hop, hold.

use crate::ledger::AccountId;
use crate::wire::packet::Prepare;
use crate::wire::peer::Service;
use crate::wire::timestamp::Timestamp;

use super::forward::outgoing_expiry;
use super::in_flight::{IN_FLIGHT_MAX, IN_FLIGHT_PER_ACCOUNT_MAX, Origin, ReplyTo};
use super::local::Local;
use super::rates::ConversionError;
use super::reject::RejectReason;
use super::{LOCAL, Now, Pipeline, SPREAD_CONVERSIONS_MAX, local, rate_between};

/// What becomes of a Prepare that may come in.
#[derive(Debug)]
pub enum Incoming {
    /// It goes on.
    Onward(Onward),
    /// The account asks what it has with us; the answer is [`local::encode_config`], and the packet has ended.
    Config,
    /// A request of a neighbour, which is noted with [`Pipeline::await_answer`].
    Request { origin: Origin, service: Service },
}

/// A Prepare that may go on to `to`: everything the second half needs, but the packet's bytes.
#[derive(Debug)]
pub struct Onward {
    pub origin: Origin,
    pub to: AccountId,
    /// In units of the outgoing account.
    pub amount: u64,
    pub expires_at: Timestamp,
    pub condition: [u8; 32],
    /// Goes instead of the packet that came: the answer to an echo request.
    pub replacement: Option<Vec<u8>>,
    /// It may end at the account itself, see [`local::ends_in_token`].
    pub ends_in_token: bool,
}

impl Pipeline {
    /// Checks a Prepare from the account `from`, which this shard owns, in the order of [`RejectReason`].
    ///
    /// After an `Ok` with an Origin the Prepare is accepted: its amount is on hold, and the Origin must come back to
    /// [`Pipeline::finish`]. After an `Err` nothing has changed, but that a packet was counted against the rate limit.
    pub fn incoming(
        &mut self,
        now: Now,
        from: AccountId,
        prepare: &Prepare<'_>,
        reply_to: ReplyTo,
    ) -> Result<Incoming, RejectReason> {
        self.stats.prepares += 1;
        let result = self.check(now, from, prepare, reply_to);
        if result.is_err() {
            self.stats.rejected_here += 1;
        }
        result
    }

    fn check(
        &mut self,
        now: Now,
        from: AccountId,
        prepare: &Prepare<'_>,
        reply_to: ReplyTo,
    ) -> Result<Incoming, RejectReason> {
        if self.stopping {
            return Err(RejectReason::Stopping);
        }
        if self.cannot_commit {
            return Err(RejectReason::CannotCommit);
        }
        if self.accepted >= IN_FLIGHT_MAX {
            return Err(RejectReason::ConnectorBusy);
        }
        let amount = prepare.amount();
        self.admit(now, from, prepare)?;
        // From here on a refusal gives the amount back to the account's budget.
        let result = self.route_and_hold(now, from, prepare, reply_to);
        if result.is_err() {
            self.refund(from, amount);
        }
        result
    }

    /// What depends on the account and the packet alone.
    fn admit(&mut self, now: Now, from: AccountId, prepare: &Prepare<'_>) -> Result<(), RejectReason> {
        // The account went while its connection was being closed.
        let member = self.member_mut(from).ok_or(RejectReason::Stopping)?;
        if member.closing {
            return Err(RejectReason::Stopping);
        }
        if member.in_flight >= IN_FLIGHT_PER_ACCOUNT_MAX {
            return Err(RejectReason::ConnectorBusy);
        }
        if let Some(budgets) = &mut member.budgets
            && let Some(packets) = &mut budgets.packets
            && !packets.take(now.monotonic_ms, 1)
        {
            return Err(RejectReason::RateLimited);
        }
        if prepare.expires_at() <= now.wall {
            return Err(RejectReason::Expired);
        }
        let amount = prepare.amount();
        let maximum = member.limits().packet_amount_max;
        if amount > maximum {
            return Err(RejectReason::AmountTooLarge {
                received: amount,
                maximum,
            });
        }
        if let Some(budgets) = &mut member.budgets
            && let Some(budget) = &mut budgets.amount
            && !budget.take(now.monotonic_ms, amount)
        {
            return Err(RejectReason::AmountRateLimited);
        }
        Ok(())
    }

    fn route_and_hold(
        &mut self,
        now: Now,
        from: AccountId,
        prepare: &Prepare<'_>,
        reply_to: ReplyTo,
    ) -> Result<Incoming, RejectReason> {
        let destination = prepare.destination();
        if destination.scheme() == "peer" {
            return self.serve(now, from, prepare, reply_to);
        }
        let mut replacement = None;
        let next_hop = if destination.as_str() == &*self.node_address && self.settings.echo && local::is_echo(prepare) {
            let answer = local::echo(prepare)?;
            let back = Prepare::parse(&answer).expect("the echo was encoded here");
            let next_hop = self.next_hop(&back)?;
            replacement = Some(answer);
            next_hop
        } else {
            self.next_hop(prepare)?
        };
        if next_hop == from && !self.settings.reflect {
            return Err(RejectReason::Reflected);
        }
        let (sender, receiver) = self
            .brief(from)
            .zip(self.brief(next_hop))
            .ok_or(RejectReason::NoRoute)?;
        // Most packets stay in one asset and pay nothing. They touch neither account's settings: at a hundred thousand
        // accounts those are not in any cache.
        let amount = match prepare.amount() {
            0 => 0,
            amount if sender.asset_id == receiver.asset_id && !sender.has_spread => amount,
            amount => self.convert(from, next_hop, amount)?,
        };
        let windows = self.settings.windows;
        let windows = windows.between(sender.round_trip_time_ms, receiver.round_trip_time_ms);
        let expires_at =
            outgoing_expiry(prepare.expires_at(), now.wall, windows).map_err(|_| RejectReason::InsufficientTimeout)?;
        let member = self.member_mut(from).expect("admitted above");
        let hold = member
            .hold(prepare.amount())
            .map_err(|_| RejectReason::IncomingLiquidity)?;
        // The last check was the first change: from here on the Prepare is accepted and nothing below can fail.
        member.in_flight += 1;
        self.accepted += 1;
        Ok(Incoming::Onward(Onward {
            origin: Origin { from, hold, reply_to },
            to: next_hop,
            amount,
            expires_at,
            condition: *prepare.condition(),
            replacement,
            ends_in_token: local::ends_in_token(destination.as_str()),
        }))
    }

    /// What a neighbour asks under `peer.`: no such packet goes on, whatever the routes say.
    fn serve(
        &mut self,
        now: Now,
        from: AccountId,
        prepare: &Prepare<'_>,
        reply_to: ReplyTo,
    ) -> Result<Incoming, RejectReason> {
        let member = self.member_mut(from).expect("admitted above");
        match local::check_request(prepare, member.account.routing_relation, now.wall)? {
            Local::Config => Ok(Incoming::Config),
            Local::Service(service) => {
                let hold = member.hold(0).map_err(|_| RejectReason::IncomingLiquidity)?;
                member.in_flight += 1;
                self.accepted += 1;
                let origin = Origin { from, hold, reply_to };
                Ok(Incoming::Request { origin, service })
            }
        }
    }

    fn next_hop(&self, prepare: &Prepare<'_>) -> Result<AccountId, RejectReason> {
        let destination = prepare.destination();
        // A test network's packets have no business on the live one, nor the reverse, whatever the default route says.
        if destination.scheme() != &*self.own_scheme {
            return Err(RejectReason::NoRoute);
        }
        match self.forwarding.lookup(destination) {
            Some(LOCAL) if destination.as_str() == &*self.node_address => Err(RejectReason::NoSuchService),
            Some(LOCAL) | None => Err(RejectReason::NoRoute),
            Some(next_hop) => Ok(next_hop),
        }
    }

    /// The amount in units of the next hop, less the sender's spread; never worth more than what came in.
    fn convert(&mut self, from: AccountId, to: AccountId, amount: u64) -> Result<u64, RejectReason> {
        let (from, to) = (self.directory.get(from), self.directory.get(to));
        let (from, to) = from.zip(to).ok_or(RejectReason::NoRoute)?;
        let assets = (from.asset_id, to.asset_id);
        let spread = from.limits.spread;
        let (rates, node_spread) = (&self.rates, &self.settings.spread);
        let make = || Some(rate_between(rates, node_spread, &from.asset, &to.asset)?.less(spread));
        let conversion = if spread.is_none() {
            self.conversions.entry(assets).or_insert_with(make)
        } else {
            let (known, key) = (&mut self.spread_conversions, (assets.0, assets.1, spread));
            if known.len() >= SPREAD_CONVERSIONS_MAX && !known.contains_key(&key) {
                known.clear();
            }
            known.entry(key).or_insert_with(make)
        };
        let conversion = conversion.as_ref().ok_or(RejectReason::NoRate)?;
        conversion.convert(amount).map_err(|error| match error {
            ConversionError::Zero => RejectReason::AmountBecameZero,
            ConversionError::TooLarge { maximum } => RejectReason::AmountTooLarge {
                received: amount,
                maximum,
            },
        })
    }

    pub(super) fn refund(&mut self, from: AccountId, amount: u64) {
        if let Some(member) = self.member_mut(from)
            && let Some(budgets) = &mut member.budgets
            && let Some(budget) = &mut budgets.amount
        {
            budget.give_back(amount);
        }
    }
}
