//! Whether a neighbour can be reached, as far as we know.
//!
//! Owns trying links that are down and that nobody else tries: those over HTTP have no connection that could tell that
//! the other side is back. Leaves the connections to the shards.
//! Always: a link that is tried is tried once, then waited for.

use crate::wire::timestamp::Timestamp;

/// After a try that failed: the first, the second ... pause.
const TRY_AGAIN_MS: [u64; 4] = [5_000, 10_000, 20_000, 30_000];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing was heard of it yet.
    Unknown,
    Down,
    /// As good as up until the next answer, or the next that is missing.
    Tried,
    Up,
}

/// The link to one neighbour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    state: State,
    /// Requests may be sent over it although it is down.
    can_be_tried: bool,
    try_at: Option<Timestamp>,
    failures: usize,
}

impl Link {
    pub(super) const fn new(can_be_tried: bool) -> Self {
        Self {
            state: State::Unknown,
            can_be_tried,
            try_at: None,
            failures: 0,
        }
    }

    /// Whether requests are sent over it.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Up | State::Tried)
    }

    pub(super) fn is_tried(&self) -> bool {
        self.state == State::Tried
    }

    pub(super) fn next_wakeup(&self) -> Option<Timestamp> {
        self.try_at.filter(|_| self.state == State::Down)
    }

    pub(super) fn set_can_be_tried(&mut self, now: Timestamp, can_be_tried: bool) {
        if can_be_tried != self.can_be_tried {
            self.can_be_tried = can_be_tried;
            self.failures = 0;
            self.try_at = can_be_tried.then_some(now);
        }
    }

    /// It is up for certain.
    pub(super) fn handle_up(&mut self) {
        self.state = State::Up;
        self.failures = 0;
        self.try_at = None;
    }

    pub(super) fn handle_down(&mut self, now: Timestamp) {
        if self.state == State::Down {
            return;
        }
        self.state = State::Down;
        let pause = TRY_AGAIN_MS[self.failures.min(TRY_AGAIN_MS.len() - 1)];
        self.failures += 1;
        self.try_at = self.can_be_tried.then(|| now.plus_ms(pause));
    }

    /// The neighbour itself was heard, over whatever way: a good moment to try.
    pub(super) fn handle_sign_of_life(&mut self, now: Timestamp) {
        if self.next_wakeup().is_some() {
            self.try_at = Some(now);
        }
    }

    /// Whether it is time to try; it counts as open then.
    pub(super) fn poll_try(&mut self, now: Timestamp) -> bool {
        if self.next_wakeup().is_none_or(|at| at > now) {
            return false;
        }
        self.state = State::Tried;
        self.try_at = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_link_is_tried_less_and_less_often() {
        let mut link = Link::new(true);
        assert!(!link.is_open());
        let mut now = 0;
        for pause in [5_000, 10_000, 20_000, 30_000, 30_000] {
            link.handle_down(at(now));
            link.handle_down(at(now + 1)); // told twice
            assert!(!link.is_open() && !link.poll_try(at(now + pause - 1)));
            now += pause;
            assert!(link.poll_try(at(now)) && link.is_open());
            assert!(!link.poll_try(at(now)), "once");
        }
        link.handle_up();
        link.handle_down(at(now));
        assert_eq!(link.next_wakeup(), Some(at(now + 5_000)));
        link.handle_sign_of_life(at(now + 7));
        assert!(link.poll_try(at(now + 7)));
    }

    #[test]
    fn a_link_that_somebody_else_tries_is_waited_for() {
        let mut link = Link::new(false);
        link.handle_down(at(0));
        link.handle_sign_of_life(at(0));
        assert!(!link.poll_try(at(1_000_000)));
        link.set_can_be_tried(at(7), true);
        assert!(link.poll_try(at(7)));
    }
}
