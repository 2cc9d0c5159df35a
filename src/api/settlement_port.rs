//! The settlement API (RFC 38): what settlement engines ask of the node, on a port of their own.
//!
//! Owns the paths of that port and how its bodies are read. Nothing of the operator's API is under them, and nothing of
//! this is on the other port, so an operator can let engines reach the one and nobody else. What happens is
//! [`crate::control::settlements`]'s.

use std::sync::Arc;

use num_bigint::BigUint;
use uuid::Uuid;

use crate::control::settlements::{Incoming, MESSAGE_BYTES_MAX, MessageError};
use crate::control::{Control, ControlError};
use crate::ledger::account::Account;
use crate::shard::clock;
use crate::shard::control::{ApiRequest, ApiResponse, Body, Port};

use super::auth::Gate;
use super::json::Json;
use super::payments::read_key;
use super::problem::{Fault, InvalidParam, Kind, Problem, shorten};
use super::values::{Refusal, integer, refuse};
use super::{Answer, Responder, read_json};

/// Digits of an amount: as many as 2^64 - 1 units at scale 0 have at scale 255.
const AMOUNT_DIGITS_MAX: usize = 275;

/// Answers a call that came in on the engines' port.
pub(super) fn answer(
    control: &Arc<Control>,
    gate: &Gate,
    request: &ApiRequest,
    now_ms: u64,
) -> Result<Answer, Problem> {
    let path = request.target.split('?').next().unwrap_or_default();
    let path = path.strip_suffix('/').unwrap_or(path);
    let segments: Vec<&str> = path.split('/').collect();
    let (id, is_message) = match segments[..] {
        ["", "accounts", id, "settlements"] => (id, false),
        ["", "accounts", id, "messages"] => (id, true),
        _ => {
            let detail = format!("the settlement API has nothing under {}", shorten(path));
            return Err(Problem::new(Kind::NotFound, detail));
        }
    };
    match request.method.as_str() {
        "POST" => {}
        "OPTIONS" => {
            return Ok(Answer::Now(ApiResponse {
                status: 204,
                headers: vec![("allow", ALLOW.to_owned())],
                body: vec![].into(),
                close: false,
            }));
        }
        _ => {
            let problem = Problem::new(Kind::MethodNotAllowed, "this path has other methods, see Allow");
            return Err(problem.with_header("allow", ALLOW));
        }
    }
    gate.admit_engine(request, now_ms)?;
    let account = find(control, id)?;
    if is_message {
        if control.engine_of(&account).is_none() {
            return Err(ControlError::NoAccountToSettle.into());
        }
        message(control, request, &account)
    } else {
        settle(control, request, &account).map(Answer::Now)
    }
}

/// Whether it is about money that an engine brings.
pub(super) fn credits(request: &ApiRequest) -> bool {
    request.port == Port::Settlement && request.method == "POST" && is_settlement(&request.target)
}

fn is_settlement(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    path.strip_suffix('/').unwrap_or(path).ends_with("/settlements")
}

/// An engine that hears that something is wrong here must ask again under the same key, because an earlier request with it may
/// have been credited (RFC 38, Retry Behavior). Engines on ilp-settlement-core 0.1.1 do so only if they hear nothing: to them
/// 429 and 5xx mean that nothing was credited, and they bring the amount again under another key. So they hear nothing.
pub(super) fn keep_silent(response: &mut ApiResponse) {
    if response.status == 429 || response.status >= 500 {
        tracing::warn!(
            target: "settlements", status = response.status,
            "an engine's settlement gets no answer, so that the engine asks again"
        );
        response.body = Body::Silence;
    }
}

const ALLOW: &str = "POST, OPTIONS";

/// The account whose public id this is.
fn find(control: &Control, id: &str) -> Result<Arc<Account>, Problem> {
    // As engines were told it: with hyphens.
    let uuid = Uuid::try_parse(id).ok().filter(|_| id.len() == 36);
    let uuid = uuid.ok_or_else(|| Problem::new(Kind::InvalidAccountId, "the id of an account is a UUID"))?;
    let account = control.find_account_by_uuid(uuid.as_bytes());
    Ok(account.ok_or(ControlError::NoAccountToSettle)?)
}

/// `POST /accounts/:id/settlements`
fn settle(control: &Control, request: &ApiRequest, account: &Account) -> Result<ApiResponse, Problem> {
    let Some(key) = read_key(request)? else {
        return Err(Problem::new(
            Kind::BadRequest,
            "Idempotency-Key: is missing; without it a settlement would be credited each time it is told",
        ));
    };
    let (amount, scale) = read_quantity(read_json(request)?)?;
    let answer = format!(r#"{{"amount":"{amount}","scale":{scale}}}"#);
    let incoming = Incoming {
        key: &key,
        amount: &amount,
        scale,
        status: 201,
        answer: answer.as_bytes(),
    };
    let (status, body) = control.receive_settlement(account.id, &incoming)?;
    Ok(ApiResponse {
        status,
        headers: vec![("content-type", "application/json".to_owned())],
        body: body.into_vec().into(),
        close: false,
    })
}

/// An amount and its scale, with every fault named at once. Other members are of no concern to us.
fn read_quantity(body: Json) -> Result<(BigUint, u8), Problem> {
    let Json::Object(members) = body else {
        let detail = format!("expected an object with amount and scale, found {}", body.kind());
        return Err(Problem::new(Kind::JsonData, detail));
    };
    let member = |wanted: &str| {
        members
            .iter()
            .find(|(name, _)| **name == *wanted)
            .map(|(_, value)| value)
    };
    let mut faults = Vec::new();
    let mut note = |name: &str, (fault, rule): Refusal| {
        let name = name.into();
        faults.push((InvalidParam { name, fault }, rule));
    };
    let missing = || refuse(Fault::Missing, "");
    let amount = member("amount").map_or_else(missing, read_amount);
    let missing = || refuse(Fault::Missing, "");
    let scale = member("scale").map_or_else(missing, integer::<u8>);
    match (amount, scale) {
        (Ok(amount), Ok(scale)) => return Ok((amount, scale)),
        (amount, scale) => {
            amount.err().into_iter().for_each(|refusal| note("amount", refusal));
            scale.err().into_iter().for_each(|refusal| note("scale", refusal));
        }
    }
    Err(Problem::fields(Kind::JsonData, faults))
}

/// A text of digits, or an integer.
fn read_amount(value: &Json) -> Result<BigUint, Refusal> {
    let rule = format!("expected an integer from 0, as a text, of at most {AMOUNT_DIGITS_MAX} digits");
    let (Json::Text(text) | Json::Number(text)) = value else {
        return refuse(Fault::Invalid, rule);
    };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(Fault::Invalid, rule);
    }
    // Before it is read: the work grows faster than the digits.
    if text.len() > AMOUNT_DIGITS_MAX {
        return refuse(Fault::OutOfRange, rule);
    }
    text.parse().map_err(|_| (Fault::Invalid, rule))
}

/// `POST /accounts/:id/messages`
fn message(control: &Arc<Control>, request: &ApiRequest, account: &Account) -> Result<Answer, Problem> {
    if request.body.len() > MESSAGE_BYTES_MAX {
        let detail = format!("a message may have at most {MESSAGE_BYTES_MAX} bytes: it goes to the peer in one packet");
        return Err(Problem::new(Kind::PayloadTooLarge, detail));
    }
    if let Some(reason) = control.not_ready() {
        return Err(ControlError::NotReady { reason }.into());
    }
    let (control, id, body) = (Arc::clone(control), account.id, request.body.clone());
    Ok(Answer::Later(Box::new(move |responder: Responder| {
        let done = move |result: Result<Vec<u8>, MessageError>| {
            responder.respond(match result {
                Ok(reply) => ApiResponse {
                    status: 201,
                    headers: vec![("content-type", "application/octet-stream".to_owned())],
                    body: reply.into(),
                    close: false,
                },
                Err(error) => Problem::new(Kind::PeerEngine, error.to_string()).into_response(clock::wall()),
            });
        };
        control.send_engine_message(id, &body, Box::new(done));
    })))
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    #[test]
    fn quantities() {
        let digits = "9".repeat(AMOUNT_DIGITS_MAX);
        for (text, expected) in [
            (r#"{"amount":"100","scale":9}"#, "100@9"),
            (r#"{"amount":100,"scale":9}"#, "100@9"),
            (r#"{"amount":"0","scale":0}"#, "0@0"),
            (r#"{"amount":"007","scale":255,"more":[]}"#, "7@255"),
            // No number goes through a float.
            (r#"{"amount":18446744073709551615,"scale":1}"#, "18446744073709551615@1"),
            (r#"{"amount":18446744073709551616,"scale":1}"#, "18446744073709551616@1"),
            (r#"{"amount":9007199254740993,"scale":1}"#, "9007199254740993@1"),
            (r#"{"amount":0,"scale":255}"#, "0@255"),
            (r#"{"amount":"000","scale":"9"}"#, "0@9"),
            (r#"{"amount":"\u0031\u0030","scale":9}"#, "10@9"),
            (&format!(r#"{{"amount":{digits},"scale":1}}"#), &format!("{digits}@1")),
            (&format!(r#"{{"amount":{digits}0,"scale":1}}"#), "amount"),
            (
                &format!(r#"{{"amount":"{}1","scale":1}}"#, "0".repeat(AMOUNT_DIGITS_MAX)),
                "amount",
            ),
            (
                &format!(r#"{{"amount":"{}","scale":1}}"#, "9".repeat(4 << 20)),
                "amount",
            ),
            (&format!(r#"{{"amount":{},"scale":1}}"#, "9".repeat(4 << 20)), "amount"),
            (
                &format!(r#"{{"amount":"{}x","scale":1}}"#, "9".repeat(4 << 20)),
                "amount",
            ),
            (&format!(r#"{{"amount":"1","scale":{}}}"#, "9".repeat(4 << 20)), "scale"),
            (&format!(r#"{{"amount":"{digits}","scale":1}}"#), &format!("{digits}@1")),
            (&format!(r#"{{"amount":"{digits}9","scale":1}}"#), "amount"),
            (r#"{"amount":"-1","scale":9}"#, "amount"),
            (r#"{"amount":-1,"scale":9}"#, "amount"),
            (r#"{"amount":"+1","scale":9}"#, "amount"),
            (r#"{"amount":1.5,"scale":9}"#, "amount"),
            (r#"{"amount":"1.5","scale":9}"#, "amount"),
            (r#"{"amount":10.0,"scale":9}"#, "amount"),
            (r#"{"amount":"10.0","scale":9}"#, "amount"),
            (r#"{"amount":1e3,"scale":9}"#, "amount"),
            (r#"{"amount":"1e3","scale":9}"#, "amount"),
            (r#"{"amount":-0,"scale":9}"#, "amount"),
            (r#"{"amount":" 1","scale":9}"#, "amount"),
            (r#"{"amount":"1 ","scale":9}"#, "amount"),
            (r#"{"amount":"0x1","scale":9}"#, "amount"),
            (r#"{"amount":"1,000","scale":9}"#, "amount"),
            (r#"{"amount":"\u0663","scale":9}"#, "amount"),
            (r#"{"amount":"Infinity","scale":9}"#, "amount"),
            (r#"{"amount":true,"scale":9}"#, "amount"),
            (r#"{"amount":{},"scale":9}"#, "amount"),
            (r#"{"Amount":"1","scale":9}"#, "amount"),
            (r#"{"amount":"","scale":9}"#, "amount"),
            (r#"{"amount":"1_0","scale":9}"#, "amount"),
            (r#"{"amount":null,"scale":9}"#, "amount"),
            (r#"{"amount":[1],"scale":9}"#, "amount"),
            (r#"{"scale":9}"#, "amount"),
            (r#"{"amount":"1"}"#, "scale"),
            (r#"{"amount":"1","scale":256}"#, "scale"),
            (r#"{"amount":"1","scale":-1}"#, "scale"),
            (r#"{"amount":"1","scale":1.0}"#, "scale"),
            (r#"{"amount":"1","scale":1e0}"#, "scale"),
            (r#"{"amount":"1","scale":""}"#, "scale"),
            (r#"{"amount":"1","scale":null}"#, "scale"),
            (r#"{"amount":"1","scale":[9]}"#, "scale"),
            (r#"{"amount":"x","scale":"y"}"#, "amount scale"),
            (r#"{}"#, "amount scale"),
        ] {
            let found = match read_quantity(parse(text.as_bytes()).unwrap()) {
                Ok((amount, scale)) => format!("{amount}@{scale}"),
                Err(problem) => {
                    let body = problem.into_response(clock::wall()).body.into_bytes();
                    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    let names = answer["invalid-params"].as_array().unwrap().iter();
                    names
                        .map(|fault| fault["name"].as_str().unwrap())
                        .collect::<Vec<_>>()
                        .join(" ")
                }
            };
            assert_eq!(found, expected, "{text:.80}");
        }
        assert!(read_quantity(Json::Null).is_err());
    }
}
