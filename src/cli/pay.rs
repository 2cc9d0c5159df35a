//! `clearway pay`: a payment from an account of the node to whoever can be reached.
//!
//! Every payment carries an idempotency key, so that a payer who got no answer can ask again and pay once.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::client::{Client, NodeArgs, segment};
use super::show::{list, plain};
use super::{CliError, print, say, write_out};

/// A payment ends by itself: half a minute after the last packet that arrived. This is for a node that is gone.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// How much later than the payment's own limit we stop waiting for the answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(60);
/// Nobody waits longer, and no clock can be asked to.
const ANSWER_MAX_EVER: Duration = Duration::from_secs(24 * 3600);

pub const HELP: &str = "Only the holder can pay: --auth is USERNAME:PASSWORD of the account, or better a file with it. Without
\
                        an answer it is not known whether the payment was made. Then ask again with the --idempotency-key
\
                        that the error names: it is paid once.";

#[derive(Args)]
pub struct Payment {
    /// The account to pay from
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    username: String,
    /// A payment pointer such as '$host/path', or the URL of an SPSP endpoint
    receiver: String,
    /// What to send, in units of the account's asset; or give --destination-amount
    #[arg(
        required_unless_present = "destination_amount",
        conflicts_with = "destination_amount"
    )]
    amount: Option<String>,
    /// What to deliver instead, in units of the receiver's asset
    #[arg(long, value_name = "UNITS")]
    destination_amount: Option<String>,
    /// How much worse than expected the rate may be: 0.01 is one percent [default: the node's]
    #[arg(long, value_name = "FRACTION")]
    slippage: Option<String>,
    /// When to give up, in milliseconds [default: the node's]
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// The node makes one payment per key, however often it is asked [default: a new one]
    #[arg(long, value_name = "KEY", value_parser = read_key)]
    idempotency_key: Option<String>,
}

/// What can be sent as a key.
fn read_key(text: &str) -> Result<String, String> {
    let is_key = (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_key
        .then(|| text.to_owned())
        .ok_or_else(|| "expected 1 to 255 visible ASCII characters".to_owned())
}

/// What became of a payment. Amounts in units of the asset beside them.
#[derive(Deserialize)]
struct Outcome {
    to: Option<String>,
    sent_amount: u64,
    #[serde(default)]
    in_flight_amount: u64,
    /// Null: the node ended while it was paid, and nobody knows any more.
    delivered_amount: Option<u64>,
    source_asset_code: Option<String>,
    source_asset_scale: Option<u8>,
    destination_asset_code: Option<String>,
    destination_asset_scale: Option<u8>,
}

pub fn run(node: &NodeArgs, payment: &Payment) -> Result<(), CliError> {
    // The admin's token in the data folder would be refused, and a payment should name its payer.
    if node.auth.is_none() {
        return Err(CliError::Invalid(
            "a payment is the holder's: give --auth USERNAME:PASSWORD, or ILP_CLI_API_AUTH".to_owned(),
        ));
    }
    let client = Client::new(node)?;
    if !client.is_holder() {
        return Err(CliError::Invalid(
            "--auth: a payment is the holder's: expected USERNAME:PASSWORD".to_owned(),
        ));
    }
    let mut body = Map::new();
    for (name, value) in [
        ("receiver", Some(&payment.receiver)),
        ("source_amount", payment.amount.as_ref()),
        ("destination_amount", payment.destination_amount.as_ref()),
        ("slippage", payment.slippage.as_ref()),
    ] {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.as_str().into());
        }
    }
    let mut limit = ANSWER_MAX;
    if let Some(timeout_ms) = payment.timeout_ms {
        body.insert("timeout_ms".to_owned(), timeout_ms.into());
        limit = Duration::from_millis(timeout_ms)
            .saturating_add(ANSWER_MARGIN)
            .min(ANSWER_MAX_EVER);
    }
    let key = payment
        .idempotency_key
        .clone()
        .unwrap_or_else(|| Uuid::new_v4().to_string());
    let path = format!("/accounts/{}/payments", segment(&payment.username));
    match client.call_once(&path, Value::Object(body).to_string().as_bytes(), &key, limit) {
        Ok(answer) => print(node, &answer, Outcome::show),
        Err(error) => {
            match &error {
                CliError::Refused { body, .. } if !node.json => show_what_was_paid(body),
                CliError::Unreachable { unsent: false, .. } => say(&format!(
                    "whether it was paid is not known; ask again with --idempotency-key {key}"
                )),
                _ => {}
            }
            Err(error)
        }
    }
}

/// A payment that failed may have arrived in part.
fn show_what_was_paid(body: &str) {
    #[derive(Deserialize)]
    struct Problem {
        payment: Outcome,
    }
    if let Ok(problem) = serde_json::from_str::<Problem>(body) {
        // The error itself is said in any case.
        let _ = write_out(&problem.payment.show());
    }
}

impl Outcome {
    fn show(self) -> String {
        let amount = |units: u64, code: Option<&str>, scale: Option<u8>| match (code, scale) {
            (Some(code), Some(scale)) => format!("{units} units of {} at scale {scale}", plain(code)),
            _ => units.to_string(),
        };
        let source = |units| amount(units, self.source_asset_code.as_deref(), self.source_asset_scale);
        let destination = self.destination_asset_code.as_deref();
        let rows = [
            ("sent", source(self.sent_amount)),
            ("in flight", source(self.in_flight_amount)),
            (
                "delivered",
                self.delivered_amount.map_or_else(
                    || "not known".to_owned(),
                    |units| amount(units, destination, self.destination_asset_scale),
                ),
            ),
            ("to", self.to.as_deref().map_or_else(|| "-".to_owned(), plain)),
        ];
        list(rows.map(|(name, value)| (name.to_owned(), value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for (text, valid) in [
            ("k", true),
            ("3f1e-6a0c:x", true),
            ("", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(read_key(text).is_ok(), valid, "{text}");
        }
        assert!(read_key(&"k".repeat(255)).is_ok());
        assert!(read_key(&"k".repeat(256)).is_err());
    }

    #[test]
    fn outcomes() {
        let show = |json: &str| serde_json::from_str::<Outcome>(json).unwrap().show();
        assert_eq!(
            show(
                r#"{"from":"g.a","to":"g.b.x","sent_amount":18446744073709551615,"source_amount":1000,"in_flight_amount":3,
                    "delivered_amount":500,"source_asset_code":"ABC","source_asset_scale":9,
                    "destination_asset_code":"XYZ","destination_asset_scale":6}"#
            ),
            "sent       18446744073709551615 units of ABC at scale 9\n\
             in flight  3 units of ABC at scale 9\n\
             delivered  500 units of XYZ at scale 6\n\
             to         g.b.x"
        );
        assert_eq!(
            show(r#"{"to":null,"sent_amount":0,"delivered_amount":0,"destination_asset_code":null}"#),
            "sent       0\nin flight  0\ndelivered  0\nto         -"
        );
    }
}
