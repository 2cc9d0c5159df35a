//! Payments that the node makes itself: `POST /accounts/USER/payments`, one call or many at once, and what they cost.
//! Owns the calls and what counts as paid. Always: a payment that was not answered with 200 and with all of its amount
//! is an error, by its name.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::{Value, json};

use crate::http;
use crate::process;
use crate::stream::Stream;

/// Longest answer taken: one payment in words.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Connections to one node, each with a payment.
pub const PAYMENTS_MAX: usize = 4_096;

/// What is paid, how often, and whose time it takes.
pub struct Payments {
    pub node: SocketAddr,
    pub username: String,
    /// The account's own, for ILP over HTTP: only the holder may pay.
    pub token: String,
    /// Payment pointer or URL.
    pub receiver: String,
    pub amount: u64,
    /// That the amount takes, as the payer's account is set up.
    pub packets: u64,
    /// All at once.
    pub count: usize,
    pub pids: Vec<u32>,
}

impl Payments {
    /// Opens all connections, sends all calls, then takes the answers: the time is from the first byte of the first call
    /// to the last of the last answer.
    pub fn run(&self) -> Result<Value, String> {
        let failed = |error: String| format!("node {}: {error}", self.node);
        let connect = || {
            TcpStream::connect(self.node)
                .and_then(|socket| Stream::new(socket, ANSWER_BYTES_MAX))
                .map_err(|error| error.to_string())
        };
        let mut streams: Vec<Stream> = (0..self.count)
            .map(|_| connect())
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let body = json!({ "receiver": self.receiver, "source_amount": self.amount }).to_string();
        let call = format!(
            "POST /accounts/{}/payments HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}:{}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.username,
            self.node,
            self.username,
            self.token,
            body.len()
        );
        let before = process::cpu_time(&self.pids)?;
        let started = Instant::now();
        for stream in &mut streams {
            stream.output().extend_from_slice(call.as_bytes());
            stream.flush().map_err(|error| failed(error.to_string()))?;
        }
        let mut errors: BTreeMap<String, u64> = BTreeMap::new();
        for stream in &mut streams {
            let (status, text) = answer(stream).map_err(failed)?;
            if let Err(error) = check(status, &text, self.amount) {
                *errors.entry(error).or_default() += 1;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let cpu = process::cpu_time(&self.pids)?.since(&before);
        // Nothing is known of how far the others came.
        let paid = self.count as u64 - errors.values().sum::<u64>();
        if paid == 0 {
            return Err(format!("no payment succeeded: {errors:?}"));
        }
        let packets = paid * self.packets;
        Ok(json!({
            "payments": self.count,
            "packets_each": self.packets,
            "seconds": seconds,
            "per_second": packets as f64 / seconds.max(1e-9),
            "cpu_us": (!self.pids.is_empty()).then(|| cpu.on_cpu_ns as f64 / 1e3 / packets as f64),
            "errors": errors,
        }))
    }
}

fn answer(stream: &mut Stream) -> Result<(u16, String), String> {
    loop {
        let input = stream.input();
        if let Some(message) = http::whole(input).map_err(str::to_owned)? {
            let text = String::from_utf8_lossy(&input[message.body_start..message.end]);
            return Ok((message.status, text.into_owned()));
        }
        stream.fill().map_err(|error| error.to_string())?;
    }
}

/// Whether an answer says that everything was sent and arrived; else what it says.
fn check(status: u16, text: &str, amount: u64) -> Result<(), String> {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    if status != 200 {
        return Err(format!(
            "{status} {}",
            answer["code"].as_str().unwrap_or("without a code")
        ));
    }
    match ["sent_amount", "delivered_amount"]
        .into_iter()
        .find(|&member| answer[member] != amount)
    {
        Some(member) => Err(format!("{member} {}", answer[member])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_paid() {
        for (status, text, expected) in [
            (200, r#"{"sent_amount":7,"delivered_amount":7}"#, Ok(())),
            (
                200,
                r#"{"sent_amount":7,"delivered_amount":6}"#,
                Err("delivered_amount 6"),
            ),
            (200, r#"{"delivered_amount":7}"#, Err("sent_amount null")),
            (502, r#"{"code":"rejected"}"#, Err("502 rejected")),
            (500, "oops", Err("500 without a code")),
        ] {
            assert_eq!(check(status, text, 7), expected.map_err(str::to_owned), "{text}");
        }
    }
}
