//! How it goes on: when one phase is complete and which is next, and when it is over.

use super::{
    Amounts, Failure, GOOD_RATE_DELIVERED_MIN, IDLE_MS_MAX, PROBES_MAX, Phase, Quote, RateSource, Sender, Target,
    VOLLEY,
};
use crate::wire::packet::ErrorCode;
use crate::wire::timestamp::Timestamp;
impl Sender {
    /// Ends what the time has ended.
    pub(super) fn notice_time(&mut self, now: Timestamp) {
        while let Some((&sequence, packet)) = self.in_flight.first_key_value()
            && now >= packet.lost_at()
        {
            let packet = self.in_flight.remove(&sequence).expect("it is the first");
            self.handle_reject(now, sequence, &packet, ErrorCode::R00_TRANSFER_TIMED_OUT, &[]);
        }
        if now >= self.idle_since.plus_ms(IDLE_MS_MAX) {
            self.fail(Failure::Idle);
        }
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.fail(Failure::TimedOut);
        }
        self.advance(now);
    }

    /// Goes to the next phase when this one is complete.
    pub(super) fn advance(&mut self, now: Timestamp) {
        match self.phase {
            Phase::Handshake if self.is_connected => match self.rate {
                RateSource::Path => self.begin_volley_or_money(now),
                RateSource::Caller if self.asset.is_some() => self.phase = Phase::AwaitingRate,
                // Not all receivers say what they have, and then nobody can know a rate beforehand.
                RateSource::Caller => {
                    self.rate = RateSource::Path;
                    self.begin_volley_or_money(now);
                }
            },
            Phase::Volley if self.probes.is_empty() && self.in_flight.is_empty() => self.end_volley(now),
            Phase::Search if self.probes.is_empty() && self.in_flight.is_empty() => self.search(now),
            Phase::Paying if self.is_paid() => self.close(),
            Phase::Paying if self.amounts.in_flight == 0 && self.amounts.left() == 0 => {
                self.fail(Failure::SourceTooSmall);
            }
            Phase::Paying if self.amounts.in_flight == 0 && self.wanted() == 0 => self.fail(Failure::RateTooLow),
            Phase::Ending if self.amounts.in_flight == 0 => self.close(),
            _ => {}
        }
        let Amounts {
            source,
            fulfilled,
            in_flight,
            ..
        } = self.amounts;
        assert!(
            fulfilled.checked_add(in_flight).is_some_and(|spent| spent <= source),
            "never more than there is"
        );
    }

    pub(super) fn begin_volley_or_money(&mut self, now: Timestamp) {
        // Whoever knows the rate and what to send need not ask anybody.
        if self.rate_given.is_some() && matches!(self.target, Target::Source(_)) && !self.is_quote {
            self.set_rate_min(now);
            return;
        }
        self.phase = Phase::Volley;
        self.probes.extend(VOLLEY);
        // Of this one the rate will be known exactly.
        if let Target::Source(amount) = self.target
            && !self.probes.contains(&amount)
        {
            self.probes.push(amount);
        }
        self.probed.clone_from(&self.probes);
    }

    /// All probes are answered.
    fn end_volley(&mut self, now: Timestamp) {
        let limit = self.capacity.next_amount();
        let is_rate_known = self.bounds.is_some_and(|bounds| !bounds.lower.is_zero());
        // The largest packet there may be says most about the rate; and if none has passed, this one may.
        let is_new = limit < u64::MAX && !self.probed.contains(&limit) && self.probed.len() < PROBES_MAX;
        if is_new && (!is_rate_known || self.capacity.found().is_some()) {
            self.probe(limit);
            return;
        }
        // A few units of the receiver say little about the rate. It is worth one more try, not more, to know it better.
        let is_rate_good = self
            .bounds
            .is_some_and(|bounds| bounds.lower.numerator() >= GOOD_RATE_DELIVERED_MIN);
        let is_good_enough = is_rate_good || is_rate_known && self.is_probing_alone;
        if is_good_enough || is_rate_known && self.probes_failed.is_empty() {
            self.set_rate_min(now);
        } else if self.probes_failed.is_empty() {
            self.fail(Failure::RateTooLow);
        } else {
            self.probes_failed.sort_unstable();
            self.probes.append(&mut self.probes_failed);
            self.is_probing_alone = true;
            self.window.pause(now, self.jitter);
        }
    }

    fn probe(&mut self, amount: u64) {
        self.probes.push(amount);
        self.probed.push(amount);
    }

    /// The rate is known: decides what is acceptable, and goes on to the money.
    fn set_rate_min(&mut self, now: Timestamp) {
        let expected = self.rate_given.or(self.bounds.map(|bounds| bounds.lower));
        let rate_min = expected.and_then(|rate| rate.times(&self.slippage.kept));
        let Some(rate_min) = rate_min.filter(|rate| !rate.is_zero()) else {
            self.fail(Failure::RateTooLow);
            return;
        };
        if self.bounds.is_some_and(|bounds| bounds.upper <= rate_min) {
            self.fail(Failure::RateTooLow);
            return;
        }
        self.rate_min = Some(rate_min);
        if let Target::Destination { amount, source_max } = self.target {
            // One unit more, for the rounding of the last packet.
            let needed = rate_min.divide_ceil(amount).unwrap_or(u64::MAX).saturating_add(1);
            let cheapest = self.bounds.and_then(|bounds| bounds.upper.divide_ceil(amount));
            if cheapest.is_none_or(|cheapest| cheapest > source_max) {
                self.fail(Failure::SourceTooSmall);
                return;
            }
            self.amounts.source = needed.min(source_max);
        }
        self.idle_since = now;
        self.probes_failed.clear();
        if self.is_quote {
            self.phase = Phase::Search;
            self.search(now);
        } else {
            self.phase = Phase::Paying;
        }
    }

    /// A quote also says how large a packet may be.
    fn search(&mut self, now: Timestamp) {
        if self.capacity.found().is_some() || self.probed.len() >= PROBES_MAX {
            self.phase = Phase::Done;
        } else if !self.probes_failed.is_empty() {
            self.probes_failed.clear();
            self.probes.push(self.capacity.next_amount());
            self.window.pause(now, self.jitter);
        } else {
            self.probe(self.capacity.next_amount());
        }
    }

    /// Whether all is achieved and nothing under way.
    pub(super) fn is_paid(&self) -> bool {
        self.phase == Phase::Paying
            && self.amounts.in_flight == 0
            && match self.target {
                Target::Source(_) => self.amounts.left() == 0,
                Target::Destination { amount, .. } => self.amounts.delivered >= amount,
            }
    }

    /// Sends nothing more. The first failure is the one that is told.
    pub(super) fn fail(&mut self, failure: Failure) {
        match self.phase {
            // The money has arrived.
            Phase::Closing | Phase::Done => return,
            Phase::Ending => {}
            _ => self.failure = Some(failure),
        }
        self.phase = Phase::Ending;
        if self.amounts.in_flight == 0 {
            self.close();
        }
    }

    /// All money has arrived or come back. Says goodbye to a receiver that was there; a quote leaves the connection for
    /// the payment.
    fn close(&mut self) {
        self.phase = if self.is_connected && !self.is_quote {
            Phase::Closing
        } else {
            Phase::Done
        };
    }

    pub(super) fn quote(&self) -> Option<Quote> {
        if !self.is_quote || self.failure.is_some() {
            return None;
        }
        let (bounds, rate_min) = (self.bounds?, self.rate_min?);
        let source_max = self.amounts.source;
        let (delivered_min, delivered) = match self.target {
            Target::Source(amount) => (rate_min.times_ceil(amount - 1), bounds.lower.times_floor(amount)),
            Target::Destination { amount, .. } => (amount, amount),
        };
        Some(Quote {
            bounds,
            rate_min,
            packet_amount_max: self.capacity.found().unwrap_or_else(|| self.capacity.passed()),
            source_max,
            delivered_min,
            delivered,
        })
    }
}
