//! What a run counts, and when it sends: warm-up, the measured window, and the wait for stragglers.
//! Owns pacing, the latency histogram, errors by name, and the CPU time spent within the window.
//! Leaves sockets and packets to the loops of `http_load` and `btp_load`, which read the clock once
//! per batch and say here what happened.
//!
//! Two ways to send. **Closed loop**: a new packet for each answer; what is measured is capacity.
//! **Fixed rate**: packet *i* is due at `i / rate`, and its latency counts from that moment even if it
//! had to wait for room, so a stall shows in the latency of everything it delayed (no coordinated
//! omission); what never could be sent is counted as an error.
//! Always: a packet counts once, as fulfilled or as an error; only a verified Fulfill is fulfilled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::process::{self, CpuTime};

/// How long answers are waited for after the last Prepare.
const DRAIN: Duration = Duration::from_secs(2);
/// Kinds of errors told apart; more are counted together.
const ERROR_KINDS_MAX: usize = 32;
/// Longest latency told apart from longer ones, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// How a run is measured.
pub struct Plan {
    pub warmup: Duration,
    pub window: Duration,
    /// Packets per second; `None` is the closed loop.
    pub rate: Option<u64>,
    /// Processes whose CPU time is read, with all their descendants.
    pub pids: Vec<u32>,
    /// Never sleep between events: at little load the wake-up of the generator is not measured.
    pub spin: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Warmup,
    Window,
    Drain,
}

/// Counts one run. Times are nanoseconds since [`Meter::start`].
pub struct Meter {
    plan: Plan,
    started: Instant,
    phase: Phase,
    now: u64,
    window: std::ops::Range<u64>,
    /// Packets made so far; at a fixed rate this is the schedule.
    sent: u64,
    refresh_due: u64,
    in_flight: u64,
    fulfilled: u64,
    latencies: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    middle: CpuTime,
    own_cpu_ns: u64,
    window_taken: Duration,
}

impl Meter {
    /// Starts the warm-up now.
    pub fn start(plan: Plan) -> Result<Meter, String> {
        if plan.rate == Some(0) {
            return Err("a rate is at least one packet per second".into());
        }
        let latencies = Histogram::new_with_max(LATENCY_NS_MAX, 3).map_err(|error| error.to_string())?;
        let begin = plan.warmup.as_nanos() as u64;
        let end = begin + plan.window.as_nanos() as u64;
        Ok(Meter {
            plan,
            started: Instant::now(),
            phase: Phase::Warmup,
            now: 0,
            window: begin..end,
            sent: 0,
            refresh_due: 0,
            in_flight: 0,
            fulfilled: 0,
            latencies,
            errors: BTreeMap::new(),
            middle: CpuTime::default(),
            own_cpu_ns: 0,
            window_taken: Duration::ZERO,
        })
    }

    /// Reads the clock. Call when events arrived and before packets are made.
    pub fn tick(&mut self) {
        self.now = self.started.elapsed().as_nanos() as u64;
    }

    /// Advances the phase. `false` when the run is over: all answered, or waited long enough.
    pub fn goes_on(&mut self) -> Result<bool, String> {
        self.tick();
        if self.phase == Phase::Warmup && self.now >= self.window.start {
            self.middle = process::cpu_time(&self.plan.pids)?;
            self.own_cpu_ns = process::own_cpu_ns()?;
            self.tick();
            self.open_window();
        }
        if self.phase == Phase::Window && self.now >= self.window.end {
            self.close_window();
            self.middle = process::cpu_time(&self.plan.pids)?.since(&self.middle);
            self.own_cpu_ns = process::own_cpu_ns()? - self.own_cpu_ns;
        }
        Ok(self.waits())
    }

    /// The window begins now, after the CPU time was read: what reading took is not in it.
    fn open_window(&mut self) {
        self.phase = Phase::Window;
        self.window.end += self.now - self.window.start;
        self.window.start = self.now;
    }

    fn close_window(&mut self) {
        self.phase = Phase::Drain;
        self.window_taken = Duration::from_nanos(self.now - self.window.start);
    }

    fn waits(&self) -> bool {
        let drained = self.window.end + DRAIN.as_nanos() as u64;
        self.phase != Phase::Drain || self.in_flight > 0 && self.now < drained
    }

    /// Milliseconds the loop may sleep for events.
    pub fn sleep_ms(&self) -> i32 {
        // The kernel's timers are too coarse for a schedule, so a fixed rate never sleeps.
        if self.plan.spin || self.plan.rate.is_some() && self.phase != Phase::Drain {
            return 0;
        }
        10
    }

    /// Wall time in milliseconds, once a second: the moment to give Prepares a new expiry.
    pub fn refresh_at(&mut self) -> Option<u64> {
        if self.now < self.refresh_due {
            return None;
        }
        self.refresh_due = self.now + 1_000_000_000;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Some(unix.unwrap_or_default().as_millis() as u64)
    }

    /// The moment from which the next packet's latency counts, if a packet is to be sent now.
    pub fn due(&mut self) -> Option<u64> {
        if self.phase == Phase::Drain {
            return None;
        }
        let due = match self.plan.rate {
            None => self.now,
            Some(rate) => {
                let due = self.sent * 1_000_000_000 / rate;
                if due > self.now || due >= self.window.end {
                    return None;
                }
                due
            }
        };
        self.sent += 1;
        self.in_flight += 1;
        Some(due)
    }

    /// The packet that was due at `due` came back with the right fulfillment.
    pub fn fulfilled(&mut self, due: u64) {
        self.in_flight -= 1;
        let counts = self.phase == Phase::Window;
        self.fulfilled += u64::from(counts);
        // At a fixed rate the stragglers count too, or the slowest would be the ones left out.
        if counts || self.plan.rate.is_some() && self.window.contains(&due) {
            self.latencies.saturating_record(self.now.saturating_sub(due));
        }
    }

    /// A packet came back otherwise, or not at all. Counted in every phase.
    pub fn failed(&mut self, name: &str) {
        self.in_flight -= 1;
        self.note(name, 1);
    }

    /// Something went wrong that is not the fate of one packet.
    pub fn note(&mut self, name: &str, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(sum) = self.errors.get_mut(name) {
            *sum += count;
        } else if self.errors.len() < ERROR_KINDS_MAX {
            self.errors.insert(name.to_owned(), count);
        } else {
            *self.errors.entry("others".to_owned()).or_default() += count;
        }
    }

    /// What went wrong up to now, in words.
    pub fn errors(&self) -> String {
        let errors = self.errors.iter();
        let words: Vec<String> = errors.map(|(name, sum)| format!("{sum} x {name}")).collect();
        words.join(", ")
    }

    /// The figures of the run, as one JSON object.
    pub fn finish(mut self) -> Value {
        self.note("unanswered", self.in_flight);
        if let Some(rate) = self.plan.rate {
            let scheduled = (self.window.end * rate).div_ceil(1_000_000_000);
            self.note("due, never sent", scheduled.saturating_sub(self.sent));
        }
        let seconds = self.window_taken.as_secs_f64();
        let packets = self.fulfilled.max(1) as f64;
        let us = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1e3;
        let per_packet = |ns: u64| ns as f64 / 1e3 / packets;
        json!({
            "rate": self.plan.rate,
            "seconds": seconds,
            "packets": self.fulfilled,
            "per_second": self.fulfilled as f64 / seconds.max(1e-9),
            "p50_us": us(0.5), "p90_us": us(0.9), "p99_us": us(0.99), "p999_us": us(0.999),
            "max_us": self.latencies.max() as f64 / 1e3,
            "cpu_us": (!self.plan.pids.is_empty()).then(|| per_packet(self.middle.on_cpu_ns)),
            "user_us": (!self.plan.pids.is_empty()).then(|| per_packet(self.middle.user_ns)),
            "system_us": (!self.plan.pids.is_empty()).then(|| per_packet(self.middle.system_ns)),
            "generator_busy": self.own_cpu_ns as f64 / 1e9 / seconds.max(1e-9),
            "errors": self.errors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Warms up for 1 ms and measures for 10 ms, of a clock turned by hand.
    fn meter(rate: Option<u64>) -> Meter {
        Meter::start(Plan {
            warmup: Duration::from_millis(1),
            window: Duration::from_millis(10),
            rate,
            pids: Vec::new(),
            spin: true,
        })
        .unwrap()
    }

    #[test]
    fn the_closed_loop_counts_what_ends_in_the_window() {
        let mut meter = meter(None);
        let early = meter.due().unwrap();
        meter.fulfilled(early);
        meter.now = MS;
        meter.open_window();
        let due = meter.due().unwrap();
        meter.now = 4 * MS;
        meter.fulfilled(due);
        meter.due().unwrap();
        meter.failed("Reject T04");
        meter.due().unwrap();
        meter.now = 11 * MS;
        meter.close_window();
        assert_eq!(meter.due(), None);
        assert!(meter.waits(), "one answer is missing");
        meter.now += 2_000 * MS;
        assert!(!meter.waits(), "for two seconds");
        let figures = meter.finish();
        assert_eq!(figures["packets"], 1);
        assert_eq!(figures["per_second"], 100.0);
        let latency = figures["max_us"].as_f64().unwrap();
        assert!((2_990.0..3_010.0).contains(&latency), "{latency}");
        assert_eq!(figures["errors"], json!({"Reject T04": 1, "unanswered": 1}));
    }

    #[test]
    fn a_fixed_rate_counts_from_the_intended_moment() {
        let mut meter = meter(Some(1_000));
        assert_eq!(meter.due(), Some(0));
        assert_eq!(meter.due(), None, "the next is due after a millisecond");
        meter.fulfilled(0);
        meter.now = MS;
        meter.open_window();
        // Nothing could be sent for five milliseconds: that is in the latency of what was due.
        meter.now = 6 * MS;
        let due: Vec<u64> = std::iter::from_fn(|| meter.due()).collect();
        assert_eq!(due, [MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS, 6 * MS]);
        meter.fulfilled(MS);
        meter.now = 11 * MS;
        meter.close_window();
        meter.fulfilled(2 * MS);
        let figures = meter.finish();
        assert_eq!(figures["packets"], 1, "the other came after the window");
        let slowest = figures["max_us"].as_f64().unwrap();
        assert!((8_990.0..9_010.0).contains(&slowest), "but has its latency: {slowest}");
        assert_eq!(figures["errors"], json!({"due, never sent": 4, "unanswered": 4}));
    }

    #[test]
    fn the_kinds_of_errors_are_limited() {
        let mut meter = meter(None);
        for kind in 0..ERROR_KINDS_MAX + 5 {
            meter.note(&format!("kind {kind}"), 1);
        }
        assert_eq!(meter.errors.len(), ERROR_KINDS_MAX + 1);
        assert_eq!(meter.errors["others"], 5);
    }
}
