//! Asks our parent what it calls us (ILDCP, protocols.md 7): once per connection, and again until it answers.
//!
//! Owns when to ask. Leaves the question's layout to [`crate::wire::ildcp`], and what becomes of the answer to
//! [`super::exchange`].
//! Always: one question is under way at a time, and two are [`RETRY_MS`] apart.

use crate::wire::timestamp::Timestamp;

/// Without an answer for so long, a question is lost.
const LOST_AFTER_MS: u64 = 30_000;
/// From one question to the next: the first pause, and the longest; each is twice the one before.
const RETRY_MS: [u64; 2] = [5_000, 60_000];

/// When the parent is asked.
pub(super) struct Asker {
    life: u64,
    is_up: bool,
    /// Since the link is up, there was an answer, or none in time: what comes after it need not wait any longer.
    is_settled: bool,
    ask_at: Option<Timestamp>,
    in_flight: Option<u32>,
    failures: u32,
    next_request: u32,
}

impl Asker {
    /// `life` tells its questions from those of any other.
    pub(super) const fn new(life: u64) -> Self {
        Self {
            life,
            is_up: false,
            is_settled: false,
            ask_at: None,
            in_flight: None,
            failures: 0,
            next_request: 1,
        }
    }

    pub(super) const fn life(&self) -> u64 {
        self.life
    }

    /// Whether the exchange of routes may begin. It waits for the first word about our address, because another one
    /// begins it anew.
    pub(super) const fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// When to call [`Self::poll`] again, if nothing happens before.
    pub(super) fn next_wakeup(&self) -> Option<Timestamp> {
        self.ask_at.filter(|_| self.is_up)
    }

    /// The link is up, perhaps to a parent that has started again.
    pub(super) fn handle_up(&mut self, now: Timestamp) {
        self.is_up = true;
        self.is_settled = false;
        self.failures = 0;
        self.in_flight = None;
        self.ask_at = Some(now);
    }

    pub(super) fn handle_down(&mut self) {
        self.is_up = false;
        self.in_flight = None;
    }

    /// The account has changed, so the answer may suit it now.
    pub(super) fn ask_again(&mut self, now: Timestamp) {
        if self.in_flight.is_none() {
            self.ask_at = Some(now);
        }
    }

    /// Whether the question with this number is the one under way; it is over then.
    pub(super) fn take_request(&mut self, request: u32) -> bool {
        self.in_flight.take_if(|in_flight| *in_flight == request).is_some()
    }

    /// What came of the question is good.
    pub(super) fn handle_success(&mut self) {
        self.is_settled = true;
        self.failures = 0;
        self.ask_at = None;
    }

    /// It is not, or there was no answer.
    pub(super) fn handle_failure(&mut self, now: Timestamp) {
        self.is_settled = true;
        let [first, longest] = RETRY_MS;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        self.ask_at = Some(now.plus_ms(pause));
    }

    /// The number of the question to ask now, if there is one.
    pub(super) fn poll(&mut self, now: Timestamp) -> Option<u32> {
        if self.next_wakeup()? > now {
            return None;
        }
        if self.in_flight.take().is_some() {
            self.handle_failure(now);
            return None;
        }
        let request = self.next_request;
        self.next_request = request.wrapping_add(1);
        self.in_flight = Some(request);
        self.ask_at = Some(now.plus_ms(LOST_AFTER_MS));
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let mut asker = Asker::new(1);
        assert_eq!(asker.poll(at(0)), None, "the link is down");
        asker.handle_up(at(0));
        let mut now = 0;
        for pause in [5_000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            let request = asker.poll(at(now)).expect("it asks");
            assert_eq!(asker.poll(at(now)), None, "one question at a time");
            assert!(!asker.take_request(request.wrapping_add(1)));
            assert!(asker.take_request(request));
            asker.handle_failure(at(now));
            assert!(asker.is_settled());
            assert_eq!(asker.poll(at(now + pause - 1)), None, "after {pause}");
            now += pause;
        }
        let request = asker.poll(at(now)).expect("it asks");
        assert!(asker.take_request(request));
        asker.handle_success();
        assert_eq!(asker.next_wakeup(), None);

        asker.handle_down();
        asker.handle_up(at(now));
        assert!(!asker.is_settled());
        asker.poll(at(now)).expect("at every connection");
        now += LOST_AFTER_MS;
        assert_eq!(asker.poll(at(now)), None, "lost, and asked again after a pause");
        assert_eq!(asker.next_wakeup(), Some(at(now + RETRY_MS[0])));
    }
}
