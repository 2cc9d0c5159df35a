//! The table: medians of all rounds, the relay of the same bytes beside them, the ratio, and the goal.
//! Owns the goals and their wording. A goal that is missed is a "no" in the table, never an error.
//! Lines that are no JSON object are ignored, so a file of measurements may hold remarks.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

/// A goal for one row: a bound on the node's figure or on its ratio to the relay's.
enum Goal {
    None,
    AtLeast(f64),
    AtMost(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

/// How a figure is written.
#[derive(Clone, Copy)]
enum Unit {
    PerSecond,
    Microseconds,
    Seconds,
    Percent,
    Bytes,
}

struct Table<'a> {
    records: &'a [Value],
    text: String,
}

/// The runs of one load, of any of the things that stood in the middle.
#[derive(Clone, Copy)]
struct Load<'a> {
    kind: &'a str,
    /// The field that tells loads of one kind apart, and its value.
    size: (&'a str, u64),
    rate: Option<u64>,
    routes: u64,
}

/// Renders the measurements in `raw`, one JSON object a line, as Markdown.
pub fn table(raw: &str) -> String {
    let records: Vec<Value> = raw
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(Value::is_object)
        .collect();
    let mut table = Table {
        records: &records,
        text: "| measured | node | relay | node / relay | goal | reached |\n\
               | --- | ---: | ---: | ---: | --- | --- |\n"
            .to_owned(),
    };
    table.http();
    table.btp();
    table.delay();
    table.fixed_rates();
    table.payments();
    table.at_rest();
    table.scale();
    table.failures();
    table.text
}

impl Table<'_> {
    fn http(&mut self) {
        for connections in self.values("http", "connections") {
            let load = Load {
                kind: "http",
                size: ("connections", connections),
                rate: None,
                routes: 0,
            };
            // At one connection it is the delay that counts; it has rows of its own.
            let goals = match connections {
                1 => (Goal::None, Goal::None),
                _ => (Goal::RatioAtLeast(1.0), Goal::RatioAtMost(1.0)),
            };
            let what = format!("HTTP, connections: {connections}");
            self.compare(&what, load, "nginx", "per_second", Unit::PerSecond, goals.0);
            let what = format!("{what}; CPU per packet");
            self.compare(&what, load, "nginx", "cpu_us", Unit::Microseconds, goals.1);
        }
    }

    fn btp(&mut self) {
        for window in self.values("btp", "window") {
            let load = Load {
                kind: "btp",
                size: ("window", window),
                rate: None,
                routes: 0,
            };
            let what = format!("BTP, window: {window}");
            let figure = |table: &mut Self, goal| {
                table.compare(&what, load, "haproxy", "per_second", Unit::PerSecond, goal);
            };
            figure(self, Goal::AtLeast(300_000.0));
            figure(self, Goal::RatioAtLeast(0.6));
            let what = format!("{what}; CPU per packet");
            let goal = Goal::AtMost(1.5);
            self.compare(&what, load, "haproxy", "cpu_us", Unit::Microseconds, goal);
        }
    }

    fn delay(&mut self) {
        let load = Load {
            kind: "http",
            size: ("connections", 1),
            rate: None,
            routes: 0,
        };
        let unit = Unit::Microseconds;
        self.compare(
            "HTTP, connections: 1; delay, median",
            load,
            "nginx",
            "p50_us",
            unit,
            Goal::None,
        );
        self.compare(
            "HTTP, connections: 1; delay, 99 %",
            load,
            "nginx",
            "p99_us",
            unit,
            Goal::None,
        );
        let node = self.median_of(load, "node", "p50_us");
        let nginx = self.median_of(load, "nginx", "p50_us");
        let sync = self.median("p50_us", |record| record["kind"] == "sync");
        if let (Some(node), Some(nginx), Some(sync)) = (node, nginx, sync) {
            let what = "delay above nginx; goal: one sync of the disk";
            self.row(what, Some(node - nginx), None, unit, Goal::AtMost(sync));
        }
    }

    fn fixed_rates(&mut self) {
        for (kind, field, relay) in [("http", "connections", "nginx"), ("btp", "window", "haproxy")] {
            for rate in self.values(kind, "rate") {
                for size in self.values(kind, field) {
                    let load = Load {
                        kind,
                        size: (field, size),
                        rate: Some(rate),
                        routes: 0,
                    };
                    let name = kind.to_uppercase();
                    let what = format!("{name} at {} /s", grouped(rate as f64));
                    let mut figure = |label: &str, key| {
                        let what = format!("{what}; {label}");
                        self.compare(&what, load, relay, key, Unit::Microseconds, Goal::None);
                    };
                    figure("CPU per packet", "cpu_us");
                    figure("delay, median", "p50_us");
                    figure("delay, 99 %", "p99_us");
                    figure("delay, 99.9 %", "p999_us");
                }
            }
        }
    }

    /// What the node pays itself: one payment is measured by its time, many by their packets.
    fn payments(&mut self) {
        for (name, seconds_max) in [("one node", 0.2), ("two nodes over BTP", 0.4)] {
            for count in self.values("payments", "payments") {
                for packets in self.values("payments", "packets_each") {
                    let wanted = |record: &Value| {
                        record["kind"] == "payments"
                            && record["name"] == name
                            && record["payments"] == count
                            && record["packets_each"] == packets
                    };
                    let [seconds, per_second, cpu_us] =
                        ["seconds", "per_second", "cpu_us"].map(|key| self.median(key, wanted));
                    let payments = match count {
                        1 => "payment".to_owned(),
                        _ => format!("{} payments at once", grouped(count as f64)),
                    };
                    let what = format!("{payments}, {} packets, {name}", grouped(packets as f64));
                    let (time_goal, rate_goal) = match count {
                        1 => (Goal::AtMost(seconds_max), Goal::None),
                        _ => (Goal::None, Goal::AtLeast(50_000.0)),
                    };
                    self.row(&what, seconds, None, Unit::Seconds, time_goal);
                    self.row(
                        &format!("{what}; packets"),
                        per_second,
                        None,
                        Unit::PerSecond,
                        rate_goal,
                    );
                    let what = format!("{what}; CPU per packet");
                    self.row(&what, cpu_us, None, Unit::Microseconds, Goal::None);
                }
            }
        }
    }

    fn at_rest(&mut self) {
        let idle = self.median("percent", |record| record["kind"] == "idle");
        // 0.05 % is what one decimal shows as 0.0; the kernel's own bookkeeping is within it.
        self.row("idle node, CPU", idle, None, Unit::Percent, Goal::AtMost(0.05));
        let resident = |step: &str| {
            self.median("resident", |record| {
                record["kind"] == "memory" && record["step"] == step
            })
        };
        let steps = ["empty", "created", "restarted"].map(resident);
        let accounts = self.values("memory", "accounts").into_iter().max();
        if let ([Some(empty), created, restarted], Some(accounts @ 1..)) = (steps, accounts) {
            for (step, resident) in [("just created", created), ("after a restart", restarted)] {
                let what = format!("memory per account, {} of them, {step}", grouped(accounts as f64));
                let each = resident.map(|resident| (resident - empty) / accounts as f64);
                self.row(&what, each, None, Unit::Bytes, Goal::AtMost(600.0));
            }
        }
        for count in self.values("connections", "count") {
            let of_count = |record: &Value| record["kind"] == "connections" && record["count"] == count;
            let each = self.median("bytes_each", of_count);
            let kernel = self.median("kernel_bytes_each", of_count);
            let count = grouped(count as f64);
            let what = format!("memory per idle connection, {count} of them");
            self.row(&what, each, None, Unit::Bytes, Goal::AtMost(8192.0));
            let what = "socket buffers in the kernel per idle connection, both ends";
            self.row(what, kernel, None, Unit::Bytes, Goal::None);
        }
    }

    fn scale(&mut self) {
        let routes = self.values("btp", "routes");
        let mut routes = routes.into_iter().filter(|&routes| routes > 0);
        let (Some(few), Some(many)) = (routes.next(), routes.next_back()) else {
            return;
        };
        for window in self.values("btp", "window") {
            let cpu = |routes| {
                let load = Load {
                    kind: "btp",
                    size: ("window", window),
                    rate: None,
                    routes,
                };
                self.median_of(load, "node", "cpu_us")
            };
            let (few_cpu, many_cpu) = (cpu(few), cpu(many));
            let what = format!(
                "CPU per packet at {} accounts and routes; relay column: at {few}",
                grouped(many as f64)
            );
            let goal = Goal::RatioAtMost(1.2);
            self.row(&what, many_cpu, few_cpu, Unit::Microseconds, goal);
        }
    }

    /// What did not end with the right fulfillment, or could not be measured at all.
    fn failures(&mut self) {
        let mut lines = BTreeSet::new();
        for record in self.records {
            if record["kind"] == "failure" {
                lines.insert(format!("- not measured: {}", text_of(&record["what"])));
            }
            for (error, count) in record["errors"].as_object().into_iter().flatten() {
                lines.insert(format!(
                    "- {} over {}: {count} x {error}",
                    text_of(&record["name"]),
                    text_of(&record["kind"]),
                ));
            }
        }
        self.text.push_str("\nErrors, of all packets of all rounds:");
        if lines.is_empty() {
            self.text.push_str(" none.");
        }
        self.text.push('\n');
        for line in lines {
            self.text.push_str(&line);
            self.text.push('\n');
        }
        let busiest = self
            .records
            .iter()
            .filter(|record| record["rate"].is_null())
            .filter_map(|record| Some((record["generator_busy"].as_f64()?, record)))
            .max_by(|one, other| one.0.total_cmp(&other.0));
        if let Some((busy, record)) = busiest {
            // Writing to a String cannot fail.
            let _ = writeln!(
                self.text,
                "\nThe generator used its core at most {:.0} % in a closed loop ({} over {}).",
                busy * 100.0,
                text_of(&record["name"]),
                text_of(&record["kind"]),
            );
        }
    }

    /// A row for node and relay, if either was measured.
    fn compare(&mut self, what: &str, load: Load, relay: &str, key: &str, unit: Unit, goal: Goal) {
        let node = self.median_of(load, "node", key);
        let other = self.median_of(load, relay, key);
        self.row(what, node, other, unit, goal);
    }

    fn row(&mut self, what: &str, node: Option<f64>, relay: Option<f64>, unit: Unit, goal: Goal) {
        if node.is_none() && relay.is_none() {
            return;
        }
        let ratio = node.zip(relay).map(|(node, relay)| node / relay);
        let (words, reached) = match goal {
            Goal::None => ("-".to_owned(), None),
            Goal::AtLeast(bound) => (format!("at least {}", unit.show(bound)), node.map(|node| node >= bound)),
            Goal::AtMost(bound) => (format!("at most {}", unit.show(bound)), node.map(|node| node <= bound)),
            Goal::RatioAtLeast(bound) => (format!("ratio at least {bound}"), ratio.map(|ratio| ratio >= bound)),
            Goal::RatioAtMost(bound) => (format!("ratio at most {bound}"), ratio.map(|ratio| ratio <= bound)),
        };
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| unit.show(value));
        let _ = writeln!(
            self.text,
            "| {what} | {} | {} | {} | {words} | {} |",
            shown(node),
            shown(relay),
            ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            match reached {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "-",
            },
        );
    }

    fn median_of(&self, load: Load, name: &str, key: &str) -> Option<f64> {
        self.median(key, |record| {
            record["kind"] == load.kind
                && record["name"] == name
                && record[load.size.0] == load.size.1
                && record["rate"].as_u64() == load.rate
                && record["routes"] == load.routes
        })
    }

    fn median(&self, key: &str, wanted: impl Fn(&Value) -> bool) -> Option<f64> {
        let mut values: Vec<f64> = self
            .records
            .iter()
            .filter(|record| wanted(record))
            .filter_map(|record| record[key].as_f64())
            .collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() % 2 {
            _ if values.is_empty() => None,
            0 => Some((values[middle - 1] + values[middle]) / 2.0),
            _ => Some(values[middle]),
        }
    }

    /// The values a field takes in records of a kind, smallest first.
    fn values(&self, kind: &str, field: &str) -> BTreeSet<u64> {
        self.records
            .iter()
            .filter(|record| record["kind"] == kind)
            .filter_map(|record| record[field].as_u64())
            .collect()
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::PerSecond => format!("{} /s", grouped(value)),
            Unit::Microseconds if value.abs() < 10.0 => format!("{value:.2} us"),
            Unit::Microseconds => format!("{value:.1} us"),
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Percent => format!("{value:.2} %"),
            Unit::Bytes => format!("{} B", grouped(value)),
        }
    }
}

/// A number without decimals, its digits in groups of three.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value <= -0.5 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_medians_ratios_and_answers() {
        let run = |kind: &str, name: &str, size: &str, more: &str| {
            format!(r#"{{"kind":"{kind}","name":"{name}",{size},"rate":null,{more}}}"#)
        };
        let mut raw = String::from("a remark\n");
        for (name, per_second, cpu_us) in [
            ("node", 50_000.0, 12.0),
            ("node", 70_000.0, 16.0),
            ("node", 60_000.0, 14.0),
            ("nginx", 40_000.0, 13.0),
            ("nginx", 60_000.0, 14.0),
        ] {
            raw += &run(
                "http",
                name,
                r#""connections":64,"routes":0"#,
                &format!(r#""per_second":{per_second},"cpu_us":{cpu_us},"errors":{{}}"#),
            );
            raw.push('\n');
        }
        for (routes, cpu_us) in [(10, 1.0), (100_000, 1.3)] {
            raw += &run(
                "btp",
                "node",
                &format!(r#""window":512,"routes":{routes}"#),
                &format!(r#""cpu_us":{cpu_us},"errors":{{"Reject T04":3}}"#),
            );
            raw.push('\n');
        }
        let text = table(&raw);
        for line in [
            "| HTTP, connections: 64 | 60,000 /s | 50,000 /s | 1.20 | ratio at least 1 | yes |",
            "| HTTP, connections: 64; CPU per packet | 14.0 us | 13.5 us | 1.04 | ratio at most 1 | **no** |",
            "| CPU per packet at 100,000 accounts and routes; relay column: at 10 | 1.30 us | 1.00 us | 1.30 | ratio at most 1.2 | **no** |",
            "- node over btp: 3 x Reject T04",
        ] {
            assert!(text.contains(line), "{line}\nis missing in\n{text}");
        }
        assert!(!text.contains("idle node"), "what was not measured has no row");
    }

    #[test]
    fn one_payment_is_measured_by_its_time_and_many_by_their_packets() {
        let mut raw = String::new();
        for (name, count, packets, seconds) in [
            ("one node", 1, 10_000, 0.1),
            ("two nodes over BTP", 1, 10_000, 0.5),
            ("one node", 1_000, 10, 0.125),
        ] {
            let per_second = f64::from(count * packets) / seconds;
            raw += &format!(
                r#"{{"kind":"payments","name":"{name}","payments":{count},"packets_each":{packets},"seconds":{seconds},"per_second":{per_second},"cpu_us":7.5,"errors":{{}}}}"#
            );
            raw.push('\n');
        }
        let text = table(&raw);
        for line in [
            "| payment, 10,000 packets, one node | 0.100 s | - | - | at most 0.200 s | yes |",
            "| payment, 10,000 packets, one node; packets | 100,000 /s | - | - | - | - |",
            "| payment, 10,000 packets, two nodes over BTP | 0.500 s | - | - | at most 0.400 s | **no** |",
            "| 1,000 payments at once, 10 packets, one node; packets | 80,000 /s | - | - | at least 50,000 /s | yes |",
            "| 1,000 payments at once, 10 packets, one node; CPU per packet | 7.50 us | - | - | - | - |",
        ] {
            assert!(text.contains(line), "{line}\nis missing in\n{text}");
        }
        assert_eq!(
            text.lines().filter(|line| line.contains("payment")).count(),
            9,
            "{text}"
        );
    }

    #[test]
    fn memory_is_shared_among_accounts() {
        let mut raw = String::new();
        for (step, accounts, resident) in [
            ("empty", 0, 10_000_000),
            ("created", 100_000, 80_000_000),
            ("restarted", 100_000, 60_000_000),
        ] {
            raw += &format!(r#"{{"kind":"memory","step":"{step}","accounts":{accounts},"resident":{resident}}}"#);
            raw.push('\n');
        }
        let text = table(&raw);
        assert!(
            text.contains("just created | 700 B | - | - | at most 600 B | **no** |"),
            "{text}"
        );
        assert!(
            text.contains("after a restart | 500 B | - | - | at most 600 B | yes |"),
            "{text}"
        );
        assert!(text.contains("Errors, of all packets of all rounds: none."));
    }
}
