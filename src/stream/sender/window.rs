//! How much of a payment may be under way at once, and when to wait.
//!
//! Owns the limits in packets and in amount: they grow while packets are fulfilled, and are halved when a connector
//! says that it has too much to do or too little liquidity. Leaves the size of a single packet to
//! [`capacity`](super::capacity).
//!
//! Always: what was sent before a reduction does not reduce again, so a hundred packets that fail for one reason count
//! once. A pause lasts from 50 ms to 10 s.

use crate::wire::timestamp::Timestamp;

/// In flight at first: as many as a fast path answers in the time it takes to send them.
const COUNT_FIRST: u32 = 32;
/// The first pause, and the longest: each is twice the one before, and then up to half shorter by chance, so that
/// senders that failed together do not come back together.
const PAUSE_MS_FIRST: u64 = 100;
const PAUSE_MS_MAX: u64 = 10_000;
/// After a reduction, a window that was fulfilled as a whole grows by this part of what it was reduced to.
const GROWTH_PART: u64 = 8;

/// The limits of one payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    count: u32,
    count_max: u32,
    /// Grows with every Fulfill until something is reduced, then once per window.
    is_starting: bool,
    /// Fulfilled since `count` grew.
    fulfilled: u32,
    /// `u64::MAX` until liquidity ran short.
    amount: u64,
    amount_growth: u64,
    /// Packets below this were sent before the last reduction.
    reduced_at: u32,
    pause_ms: u64,
    paused_until: Option<Timestamp>,
}

/// What is under way when a packet comes back, it included.
#[derive(Debug, Clone, Copy)]
pub struct UnderWay {
    pub count: u32,
    pub amount: u64,
}

impl Window {
    /// Of at most `count_max` packets, but one at least.
    pub fn new(count_max: u32) -> Self {
        let count_max = count_max.max(1);
        Self {
            count: COUNT_FIRST.min(count_max),
            count_max,
            is_starting: true,
            fulfilled: 0,
            amount: u64::MAX,
            amount_growth: 0,
            reduced_at: 0,
            pause_ms: PAUSE_MS_FIRST,
            paused_until: None,
        }
    }

    /// Packets that may be under way.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// What all packets under way may have together, in source units.
    pub const fn amount(&self) -> u64 {
        self.amount
    }

    /// Nothing may be sent before this.
    pub const fn paused_until(&self) -> Option<Timestamp> {
        self.paused_until
    }

    /// Whether a pause lasts; forgets one that is over.
    pub fn is_paused(&mut self, now: Timestamp) -> bool {
        self.paused_until = self.paused_until.filter(|&until| now < until);
        self.paused_until.is_some()
    }

    /// A packet of `amount` was fulfilled.
    pub fn handle_fulfill(&mut self, amount: u64) {
        self.pause_ms = PAUSE_MS_FIRST;
        self.fulfilled += 1;
        if self.is_starting || self.fulfilled >= self.count {
            self.fulfilled = 0;
            self.count = (self.count + 1).min(self.count_max);
        }
        if self.amount < u64::MAX {
            // In proportion: all packets of a window together let it grow by the whole step.
            let growth = u128::from(self.amount_growth) * u128::from(amount) / u128::from(self.amount);
            let growth = u64::try_from(growth).unwrap_or(u64::MAX).max(1);
            self.amount = self.amount.saturating_add(growth);
        }
    }

    /// A connector has too little liquidity. Waits only if no other packet is under way whose answer could make room.
    pub fn handle_liquidity(&mut self, now: Timestamp, sequence: u32, next: u32, under_way: UnderWay, jitter: u32) {
        if sequence >= self.reduced_at {
            self.reduce_count(next, under_way);
            self.amount = (self.amount.min(under_way.amount) / 2).max(1);
            self.amount_growth = (self.amount / GROWTH_PART).max(1);
        }
        if under_way.count <= 1 {
            self.pause(now, jitter);
        }
    }

    /// A packet failed for a reason that passes with time.
    pub fn handle_busy(&mut self, now: Timestamp, sequence: u32, next: u32, under_way: UnderWay, jitter: u32) {
        if sequence >= self.reduced_at {
            self.reduce_count(next, under_way);
            self.pause(now, jitter);
        }
    }

    /// Waits, each time longer, until a packet is fulfilled.
    pub fn pause(&mut self, now: Timestamp, jitter: u32) {
        let shorter = (self.pause_ms / 2 * u64::from(jitter)) >> u32::BITS;
        self.paused_until = Some(now.plus_ms(self.pause_ms - shorter));
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
    }

    fn reduce_count(&mut self, next: u32, under_way: UnderWay) {
        self.reduced_at = next;
        self.is_starting = false;
        self.fulfilled = 0;
        self.count = (self.count.min(under_way.count) / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    #[test]
    fn it_grows_fast_then_slowly() {
        let mut window = Window::new(100);
        assert_eq!((window.count(), window.amount()), (32, u64::MAX));
        for _ in 0..200 {
            window.handle_fulfill(10);
        }
        assert_eq!((window.count(), window.amount()), (100, u64::MAX));

        // A whole window fails for one reason: that counts once.
        for (index, sequence) in (200..300).enumerate() {
            let count = 100 - index as u32;
            let under_way = UnderWay {
                count,
                amount: u64::from(count) * 10,
            };
            window.handle_liquidity(NOW, sequence, 300, under_way, 0);
        }
        assert_eq!((window.count(), window.amount()), (50, 500));
        for _ in 0..50 {
            window.handle_fulfill(10);
        }
        assert_eq!(window.count(), 51);
        assert!((550..=563).contains(&window.amount()), "{window:?}");
        assert_eq!(Window::new(0).count(), 1);
        assert_eq!(Window::new(7).count(), 7);
    }

    #[test]
    fn pauses_double_up_to_ten_seconds_and_begin_anew() {
        let mut window = Window::new(1);
        let mut sequence = 0;
        let under_way = UnderWay { count: 1, amount: 10 };
        let mut pause = |window: &mut Window, jitter| {
            sequence += 1;
            window.handle_busy(NOW, sequence, sequence + 1, under_way, jitter);
            window.paused_until().unwrap().as_millis() - NOW.as_millis()
        };
        assert!(!window.is_paused(NOW));
        for expected in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            assert_eq!(pause(&mut window, 0), expected);
        }
        assert_eq!(pause(&mut window, u32::MAX), 5_001);
        assert_eq!(pause(&mut window, 1 << 31), 7_500);
        assert!(window.is_paused(NOW.plus_ms(7_499)));
        assert!(!window.is_paused(NOW.plus_ms(7_500)));
        assert_eq!(window.paused_until(), None);
        window.handle_fulfill(1);
        assert_eq!(pause(&mut window, 0), 100);
        assert_eq!(window.count(), 1);
    }

    #[test]
    fn liquidity_is_waited_for_only_when_nothing_else_can_make_room() {
        let mut window = Window::new(10);
        window.handle_liquidity(NOW, 5, 7, UnderWay { count: 2, amount: 20 }, 0);
        assert_eq!((window.amount(), window.paused_until()), (10, None));
        // Sent before the reduction, but the last under way.
        window.handle_liquidity(NOW, 6, 7, UnderWay { count: 1, amount: 10 }, 0);
        assert_eq!((window.amount(), window.paused_until()), (10, Some(NOW.plus_ms(100))));
        for _ in 0..10 {
            window.handle_liquidity(NOW, 8, 8, UnderWay { count: 1, amount: 1 }, 0);
        }
        assert_eq!((window.amount(), window.count()), (1, 1));
    }
}
