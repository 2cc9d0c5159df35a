//! The calls about payments: make one, ask what one would do, list those that were made.
//!
//! Owns how a payment is asked for and how it looks in an answer. One body serves the clients of two generations: what
//! each calls by another name is there twice. What happens is [`crate::control::payments`]'s.
//!
//! An answer is made of the payment's record alone, so that who asks again with the same key gets the same one.

use std::sync::Arc;

use serde::Serialize;
use url::Url;
use url::form_urlencoded;
use uuid::Uuid;

use crate::control::Warning;
use crate::control::payments::{
    AssetRecord, Payments, Quoted, Reason, Record, Refused, Request, SLIPPAGE_DEFAULT, State, endpoint, number_of,
    read_slippage,
};
use crate::ledger::account::Account;
use crate::shard::clock;
use crate::shard::control::{ApiRequest, ApiResponse};
use crate::stream::ratio::Ratio;
use crate::wire::timestamp::Timestamp;

use super::accounts::{PAGE_MAX, serialize_warnings};
use super::json::Json;
use super::problem::{Fault, InvalidParam, Kind, Problem, json_answer, shorten};
use super::query::{bad_parameter, parameter};
use super::stream::{Brackets, json_stream, write_json};
use super::values::{Refusal, integer, refuse, text};
use super::{Answer, Responder, read_json};

/// The longest time that a caller may give a payment.
const TIMEOUT_MS_MAX: u64 = 600_000;
const KEY_BYTES_MAX: usize = 255;
/// Payments on a page, unless the caller wants another number.
pub(super) const PAGE_DEFAULT: usize = 100;
/// When to come back, in seconds.
const RETRY_AFTER: &str = "5";

/// `POST /accounts/:username/payments`
pub fn pay(payments: &Payments, request: &ApiRequest, account: Arc<Account>) -> Result<Answer, Problem> {
    let key = read_key(request)?;
    let Asked {
        request,
        endpoint,
        warnings,
    } = read_request(read_json(request)?)?;
    if request.is_nothing() {
        return Ok(Answer::Now(nothing(&account, request, &warnings)));
    }
    let unpaid = Record::new(&account, request.clone(), 0);
    let payments = payments.clone();
    Ok(Answer::Later(Box::new(move |responder: Responder| {
        let done = move |result: Result<Arc<Record>, Refused>| {
            responder.respond(match result {
                Ok(record) => ended(&record, &warnings),
                Err(refused) => problem_of(refused, &unpaid).into_response(clock::wall()),
            });
        };
        payments.pay(&account, request, endpoint, key.as_deref(), Box::new(done));
    })))
}

/// `POST /accounts/:username/quotes`
pub fn quote(payments: &Payments, request: &ApiRequest, account: Arc<Account>) -> Result<Answer, Problem> {
    let Asked {
        request,
        endpoint,
        warnings,
    } = read_request(read_json(request)?)?;
    if request.is_nothing() {
        let rule = "there is nothing to ask about an amount of zero";
        let name = if request.destination_amount.is_some() {
            "destination_amount"
        } else {
            "source_amount"
        };
        return Err(Problem::field(Kind::JsonData, name, Fault::OutOfRange, rule));
    }
    let unpaid = Record::new(&account, request.clone(), 0);
    let payments = payments.clone();
    Ok(Answer::Later(Box::new(move |responder: Responder| {
        let done = move |result: Result<Quoted, Refused>| {
            responder.respond(match result {
                Ok(quoted) => json_answer(&QuoteAnswer::new(&quoted, &warnings)),
                Err(refused) => problem_of(refused, &unpaid).into_response(clock::wall()),
            });
        };
        payments.quote(&account, request, endpoint, Box::new(done));
    })))
}

/// `GET /accounts/:username/payments`
pub fn list(payments: &Payments, account: &Account, query: &str) -> Result<ApiResponse, Problem> {
    let mut limit = PAGE_DEFAULT;
    if let Some(given) = parameter(query, "limit") {
        let valid = given.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
        let rule = || bad_parameter("limit", &format!("expected an integer from 1 to {PAGE_MAX}"));
        limit = valid.ok_or_else(rule)?;
    }
    let mut before = None;
    if let Some(given) = parameter(query, "before") {
        let number = Uuid::try_parse(&given).ok().and_then(|id| number_of(&id));
        before = Some(number.ok_or_else(|| bad_parameter("before", "expected the id of a payment"))?);
    }
    let page = payments.list(account.id, before, limit)?;
    let next = page.next.map(|id| {
        let mut next = form_urlencoded::Serializer::new(String::new());
        next.extend_pairs(form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "before"));
        next.append_pair("before", &id.to_string());
        let username = percent_encode(&account.username);
        format!("</accounts/{username}/payments?{}>; rel=\"next\"", next.finish())
    });
    let mut records = page.records.into_iter();
    let read = move || records.by_ref().take(RECORDS_PER_READ).collect();
    let mut response = json_stream(Brackets::Array, read, |out, record| {
        write_json(out, &PaymentAnswer::new(record, &[]));
    });
    response.headers.extend(next.map(|next| ("link", next)));
    Ok(response)
}

/// Records that are turned into JSON at once.
const RECORDS_PER_READ: usize = 64;

/// User names may have letters that a header may not.
pub(super) fn percent_encode(username: &str) -> String {
    form_urlencoded::byte_serialize(username.as_bytes()).collect()
}

/// A payment that was asked for, and where its receiver is asked.
struct Asked {
    request: Request,
    endpoint: Url,
    warnings: Vec<Warning>,
}

/// Reads the object of a call, with every fault named at once.
fn read_request(body: Json) -> Result<Asked, Problem> {
    let Json::Object(members) = body else {
        let detail = format!("expected an object, found {}", body.kind());
        return Err(Problem::new(Kind::JsonData, detail));
    };
    let mut reader = Reader::default();
    let mut receiver: Option<Box<str>> = None;
    let mut source_amount = None;
    let mut destination_amount = None;
    let mut slippage = None;
    let mut timeout_ms = None;
    for (name, value) in members {
        if value == Json::Null {
            continue;
        }
        match &*name {
            "receiver" => receiver = reader.note("receiver", text(&value).map(Box::from)),
            "source_amount" => source_amount = reader.note("source_amount", integer::<u64>(&value)),
            "destination_amount" => destination_amount = reader.note("destination_amount", integer::<u64>(&value)),
            "slippage" => slippage = reader.note("slippage", read_fraction(&value)),
            "timeout_ms" => timeout_ms = reader.note("timeout_ms", read_timeout(&value)),
            unknown => reader.warnings.push(Warning {
                field: shorten(unknown),
                message: "is not known and was ignored".to_owned(),
            }),
        }
    }
    if receiver.is_none() {
        reader.require("receiver");
    }
    if source_amount.is_none() && destination_amount.is_none() && !reader.has_faulty("destination_amount") {
        reader.require("source_amount");
    }
    let (endpoint, receiver) = match receiver.map(|receiver| (endpoint(&receiver), receiver)) {
        Some((Ok(endpoint), receiver)) => (Some(endpoint), receiver),
        Some((Err(error), _)) if reader.faults.is_empty() => {
            return Err(Problem::field(
                Kind::InvalidReceiver,
                "receiver",
                Fault::Invalid,
                error.to_string(),
            ));
        }
        Some((Err(error), receiver)) => {
            reader.note::<()>("receiver", refuse(Fault::Invalid, error.to_string()));
            (None, receiver)
        }
        None => (None, Box::default()),
    };
    let (Some(endpoint), true) = (endpoint, reader.faults.is_empty()) else {
        return Err(Problem::fields(Kind::JsonData, reader.faults));
    };
    Ok(Asked {
        request: Request {
            receiver,
            source_amount,
            destination_amount,
            slippage: slippage.unwrap_or_else(|| SLIPPAGE_DEFAULT.into()),
            timeout_ms,
        },
        endpoint,
        warnings: reader.warnings,
    })
}

#[derive(Default)]
struct Reader {
    faults: Vec<(InvalidParam, String)>,
    warnings: Vec<Warning>,
}

impl Reader {
    fn note<T>(&mut self, name: &str, result: Result<T, Refusal>) -> Option<T> {
        let note = |(fault, rule)| {
            let name = name.into();
            self.faults.push((InvalidParam { name, fault }, rule));
        };
        result.map_err(note).ok()
    }

    fn has_faulty(&self, name: &str) -> bool {
        self.faults.iter().any(|(field, _)| *field.name == *name)
    }

    /// Notes that a field is missing, unless it is there and was refused.
    fn require(&mut self, name: &str) {
        if !self.has_faulty(name) {
            self.note::<()>(name, refuse(Fault::Missing, String::new()));
        }
    }
}

fn read_fraction(value: &Json) -> Result<Box<str>, Refusal> {
    let rule = "expected a decimal number from 0 to below 1, of at most 19 digits behind the point";
    let (Json::Number(text) | Json::Text(text)) = value else {
        return refuse(Fault::Invalid, rule);
    };
    read_slippage(text).ok_or_else(|| (Fault::OutOfRange, rule.to_owned()))
}

fn read_timeout(value: &Json) -> Result<u64, Refusal> {
    let rule = || format!("expected an integer from 1 to {TIMEOUT_MS_MAX}");
    match integer::<u64>(value) {
        Ok(timeout_ms) if (1..=TIMEOUT_MS_MAX).contains(&timeout_ms) => Ok(timeout_ms),
        Ok(_) => refuse(Fault::OutOfRange, rule()),
        Err((fault, _)) => refuse(fault, rule()),
    }
}

/// What the caller names the payment by.
pub(super) fn read_key(request: &ApiRequest) -> Result<Option<String>, Problem> {
    let mut values = request.headers.iter().filter(|(name, _)| name == "idempotency-key");
    let Some((_, value)) = values.next() else {
        return Ok(None);
    };
    let is_key = (1..=KEY_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(value) {
        Ok(key) if is_key && values.next().is_none() => Ok(Some(key.to_owned())),
        _ => {
            let detail = format!("Idempotency-Key: expected one of 1 to {KEY_BYTES_MAX} visible ASCII characters");
            Err(Problem::new(Kind::BadRequest, detail))
        }
    }
}

/// The answer to a payment of nothing: nobody was asked for anything, and there is nothing to remember.
fn nothing(account: &Account, request: Request, warnings: &[Warning]) -> ApiResponse {
    let now_ms = clock::wall().as_millis();
    let mut record = Record::new(account, request, now_ms);
    record.state = State::Completed;
    record.ended_at_ms = Some(now_ms);
    json_answer(&PaymentAnswer::new(&record, warnings))
}

/// The answer to a payment that has ended.
fn ended(record: &Record, warnings: &[Warning]) -> ApiResponse {
    let Some(reason) = record.reason else {
        return json_answer(&PaymentAnswer::new(record, warnings));
    };
    let problem = Problem::new(Kind::Payment(reason), record.detail.as_deref().unwrap_or_default());
    let ended_at_ms = record.ended_at_ms.unwrap_or(record.began_at_ms);
    problem
        .with_payment(PaymentAnswer::new(record, warnings))
        .into_response(Timestamp::from_millis(ended_at_ms))
}

/// `unpaid` is what would have been paid.
fn problem_of(refused: Refused, unpaid: &Record) -> Problem {
    let nothing_sent = |detail: &str| {
        let mut unpaid = unpaid.clone();
        unpaid.state = State::Failed;
        unpaid.detail = Some(detail.into());
        PaymentAnswer::new(&unpaid, &[])
    };
    match refused {
        Refused::NotAllowed(rule) => {
            let problem = Problem::field(Kind::ReceiverNotAllowed, "receiver", Fault::Invalid, rule);
            problem.with_payment(nothing_sent(rule))
        }
        Refused::Unreachable(reason) => {
            let detail = format!("{reason}; nothing was sent");
            let unpaid = nothing_sent(&detail);
            Problem::new(Kind::ReceiverUnreachable, detail).with_payment(unpaid)
        }
        Refused::KeyConflict => Problem::new(
            Kind::IdempotencyConflict,
            "this Idempotency-Key was used for another request; nothing was sent",
        ),
        Refused::AccountNotFound => Problem::new(Kind::AccountNotFound, "the account was deleted; nothing was sent"),
        Refused::Busy => Problem::new(
            Kind::NotReady,
            "the node makes as many payments as it can; nothing was sent",
        )
        .with_header("retry-after", RETRY_AFTER),
        Refused::NotReady(reason) => {
            Problem::new(Kind::NotReady, format!("{reason}; nothing was sent")).with_header("retry-after", RETRY_AFTER)
        }
        Refused::Unstored(record) => {
            let detail = "the end of the payment cannot be stored; the next start of the node tells what was sent";
            Problem::new(Kind::NotReady, detail)
                .with_header("retry-after", RETRY_AFTER)
                .with_payment(PaymentAnswer::new(&record, &[]))
        }
        Refused::Failed(record) => {
            let kind = Kind::Payment(record.reason.unwrap_or(Reason::Cancelled));
            Problem::new(kind, record.detail.as_deref().unwrap_or_default())
                .with_payment(PaymentAnswer::new(&record, &[]))
        }
        Refused::Internal => Problem::new(Kind::Internal, "the payment failed in the program"),
    }
}

/// A payment in an answer. The first members are what clients of two generations read, in the order in which
/// interledger-rs writes them; ours come after.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PaymentAnswer {
    from: Box<str>,
    to: Option<Box<str>>,
    sent_amount: u64,
    sent_asset_scale: u8,
    sent_asset_code: Box<str>,
    source_asset_scale: u8,
    source_asset_code: Box<str>,
    /// As asked.
    source_amount: Option<u64>,
    in_flight_amount: u64,
    delivered_amount: Option<u64>,
    delivered_asset_scale: Option<u8>,
    delivered_asset_code: Option<Box<str>>,
    destination_asset_scale: Option<u8>,
    destination_asset_code: Option<Box<str>>,
    /// Null: nothing was begun, so nothing is remembered.
    id: Option<String>,
    state: State,
    receiver: Box<str>,
    /// As asked.
    destination_amount: Option<u64>,
    slippage: Box<str>,
    timeout_ms: Option<u64>,
    began_at: Option<String>,
    ended_at: Option<String>,
    packets: u32,
    code: Option<&'static str>,
    detail: Option<Box<str>>,
    pub ilp_code: Option<Box<str>>,
    last_reject: Option<Box<str>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "serialize_warning_list")]
    warnings: Vec<Warning>,
}

fn serialize_warning_list<S: serde::Serializer>(warnings: &[Warning], serializer: S) -> Result<S::Ok, S::Error> {
    serialize_warnings(warnings, serializer)
}

impl PaymentAnswer {
    fn new(record: &Record, warnings: &[Warning]) -> Self {
        let AssetRecord { code, scale } = &record.source_asset;
        let destination_code = record.destination_asset.as_ref().map(|asset| asset.code.clone());
        let destination_scale = record.destination_asset.as_ref().map(|asset| asset.scale);
        let time = |ms: u64| Timestamp::from_millis(ms).to_rfc3339();
        Self {
            from: record.from.clone(),
            to: record.to.clone(),
            sent_amount: record.sent,
            sent_asset_scale: *scale,
            sent_asset_code: code.clone(),
            source_asset_scale: *scale,
            source_asset_code: code.clone(),
            source_amount: record.request.source_amount,
            in_flight_amount: record.in_flight,
            delivered_amount: record.delivered,
            delivered_asset_scale: destination_scale,
            delivered_asset_code: destination_code.clone(),
            destination_asset_scale: destination_scale,
            destination_asset_code: destination_code,
            id: (!record.id.is_nil()).then(|| record.id.to_string()),
            state: record.state,
            receiver: record.request.receiver.clone(),
            destination_amount: record.request.destination_amount,
            slippage: record.request.slippage.clone(),
            timeout_ms: record.request.timeout_ms,
            began_at: Some(record.began_at_ms).filter(|ms| *ms > 0).map(time),
            ended_at: record.ended_at_ms.map(time),
            packets: record.packets,
            code: record.reason.map(Reason::as_str),
            detail: record.detail.clone(),
            ilp_code: record.ilp_code.clone(),
            last_reject: record.last_reject.clone(),
            warnings: warnings.to_vec(),
        }
    }
}

/// What a payment would do, in an answer.
#[derive(Serialize)]
struct QuoteAnswer<'a> {
    from: &'a str,
    to: &'a str,
    /// The most that would be sent.
    source_amount: u64,
    source_asset_scale: u8,
    source_asset_code: &'a str,
    /// At the rate that was seen, before each packet's rounding.
    delivered_amount: u64,
    /// The least, if the payment completes.
    min_delivered_amount: u64,
    destination_asset_scale: u8,
    destination_asset_code: &'a str,
    /// At least this.
    rate: RateAnswer,
    /// Null: nobody on the path has named a limit.
    max_packet_amount: Option<u64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "serialize_warnings")]
    warnings: &'a [Warning],
}

/// Units of the receiver per unit of the account, as a fraction of two integers.
#[derive(Serialize)]
struct RateAnswer {
    numerator: u128,
    denominator: u128,
}

impl From<&Ratio> for RateAnswer {
    fn from(ratio: &Ratio) -> Self {
        Self {
            numerator: ratio.numerator(),
            denominator: ratio.denominator(),
        }
    }
}

impl<'a> QuoteAnswer<'a> {
    fn new(quoted: &'a Quoted, warnings: &'a [Warning]) -> Self {
        let quote = &quoted.quote;
        Self {
            from: &quoted.from,
            to: &quoted.to,
            source_amount: quote.source_max,
            source_asset_scale: quoted.source_asset.scale,
            source_asset_code: &quoted.source_asset.code,
            delivered_amount: quote.delivered,
            min_delivered_amount: quote.delivered_min,
            destination_asset_scale: quoted.destination_asset.scale,
            destination_asset_code: &quoted.destination_asset.code,
            rate: (&quote.bounds.lower).into(),
            max_packet_amount: Some(quote.packet_amount_max).filter(|amount| *amount < u64::MAX),
            warnings,
        }
    }
}
