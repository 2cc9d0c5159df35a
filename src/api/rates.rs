//! The calls about exchange rates: read all, replace all, see where they come from, confirm those that are held.
//!
//! Owns reading and writing the map of asset codes to rates. Rates are kept exactly as given; only the answer shows
//! them as floats. In a map answer every member is read as an asset, so nothing may be added to it: what is known beside
//! the rates has an answer of its own, in which they are texts with every digit.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Serialize, Serializer};

use crate::control::Control;
use crate::control::rates::desk::{Desk, Entry as DeskEntry};
use crate::pipeline::rates::{Decimal, Rates};
use crate::shard::control::{ApiRequest, ApiResponse};
use crate::wire::timestamp::Timestamp;

use super::json::Json;
use super::problem::{Fault, InvalidParam, Kind, Problem, json_answer, shorten};
use super::read_json;
use super::values::check_asset_code;

/// `GET /rates`
pub fn read(control: &Control) -> ApiResponse {
    json_answer(&RatesAnswer(&control.rates()))
}

/// `PUT /rates`
pub fn replace(control: &Control, request: &ApiRequest) -> Result<ApiResponse, Problem> {
    let rates = read_rates(read_json(request)?)?;
    Ok(json_answer(&RatesAnswer(&*control.set_rates(rates)?)))
}

/// `POST /rates/confirm`: what is held of these codes is right. All or none.
///
/// The body is a list of codes, for whatever is held of them, or a map of codes and values, for what is held of them if
/// it is no further from the value than a rate may move unconfirmed.
pub fn confirm(control: &Control, request: &ApiRequest) -> Result<ApiResponse, Problem> {
    let codes = match read_json(request)? {
        Json::Array(codes) => {
            let code = |code| match code {
                Json::Text(code) => Ok((code, ())),
                other => Err(Problem::new(
                    Kind::JsonData,
                    format!("expected asset codes, found {}", other.kind()),
                )),
            };
            let codes: Vec<_> = codes.into_iter().map(code).collect::<Result<_, _>>()?;
            read_by_code(codes, |()| Ok(None))?
        }
        Json::Object(members) => read_by_code(members, |value| read_rate(&value).map(Some))?,
        other => {
            let detail = format!(
                "expected an array of asset codes or an object with rates, found {}",
                other.kind()
            );
            return Err(Problem::new(Kind::JsonData, detail));
        }
    };
    if codes.is_empty() {
        return Err(Problem::new(Kind::JsonData, "expected at least one asset code"));
    }
    let codes = codes.into_iter().map(|(code, value)| (code.into(), value));
    Ok(json_answer(&RatesAnswer(&*control.confirm_rates(&codes.collect())?)))
}

fn read_rates(body: Json) -> Result<Rates, Problem> {
    let Json::Object(members) = body else {
        let detail = format!("expected an object of asset codes and rates, found {}", body.kind());
        return Err(Problem::new(Kind::JsonData, detail));
    };
    let by_code = read_by_code(members, |value| read_rate(&value))?;
    Rates::new(by_code).map_err(|error| Problem::new(Kind::JsonData, error.to_string()))
}

/// Codes in upper case, each with what `read` makes of what stands beside it. Names all that are wrong.
fn read_by_code<V, T>(
    members: impl IntoIterator<Item = (Box<str>, V)>,
    read: impl Fn(V) -> Result<T, String>,
) -> Result<BTreeMap<String, T>, Problem> {
    let mut by_code = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, value) in members {
        let mut refuse = |fault, rule| {
            faults.push((
                InvalidParam {
                    name: shorten(&name),
                    fault,
                },
                rule,
            ))
        };
        match (check_asset_code(&name), read(value)) {
            (Err((fault, rule)), _) => refuse(fault, rule),
            (_, Err(rule)) => refuse(Fault::Invalid, rule),
            (Ok(code), Ok(rate)) => match by_code.entry(String::from(code)) {
                Entry::Vacant(entry) => {
                    entry.insert(rate);
                }
                Entry::Occupied(_) => refuse(Fault::Invalid, "is there twice: codes are in upper case".to_owned()),
            },
        }
    }
    if !faults.is_empty() {
        return Err(Problem::fields(Kind::JsonData, faults));
    }
    Ok(by_code)
}

/// An exact decimal above zero, as number or as text.
fn read_rate(value: &Json) -> Result<Decimal, String> {
    let (Json::Number(text) | Json::Text(text)) = value else {
        return Err(format!("expected a number above 0, found {}", value.kind()));
    };
    match Decimal::parse(text) {
        Ok(rate) if rate.is_positive() => Ok(rate),
        Ok(_) => Err("expected a number above 0".to_owned()),
        Err(error) => Err(format!("expected a number above 0: {error}")),
    }
}

struct RatesAnswer<'a>(&'a Rates);

impl Serialize for RatesAnswer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(code, rate)| (code, rate.to_f64())))
    }
}

/// `GET /rates?detail=true`: of every code the rate, where it came from and whether it is in force; of every provider how
/// its polls went.
pub fn detail(control: &Control, now: Timestamp) -> ApiResponse {
    let desk = control.rate_desk();
    let providers = desk.providers().map(|(source, provider)| ProviderAnswer {
        source: source.as_str(),
        kind: provider.kind,
        state: match (provider.is_fresh(), desk.has_failed(provider)) {
            (true, _) => "fresh",
            (false, false) if provider.failures == 0 => "waiting",
            (false, false) => "stale",
            (false, true) => "failed",
        },
        last_success: Instant::of(provider.last_success_ms),
        age_ms: age_ms(now, provider.last_success_ms),
        failures: provider.failures,
        last_error: provider.last_error.map(|error| error.to_string()),
        skipped: provider.skipped,
    });
    json_answer(&DetailAnswer {
        max_rate_change: desk.max_change().map(ToString::to_string),
        providers: providers.collect(),
        rates: DetailRates { desk: &desk, now },
    })
}

fn age_ms(now: Timestamp, then_ms: Option<u64>) -> Option<u64> {
    Some(now.as_millis().saturating_sub(then_ms?))
}

/// RFC 3339.
#[derive(Serialize)]
struct Instant(String);

impl Instant {
    fn of(ms: Option<u64>) -> Option<Self> {
        Some(Self(Timestamp::from_millis(ms?).to_rfc3339()))
    }
}

#[derive(Serialize)]
struct DetailAnswer<'a> {
    max_rate_change: Option<String>,
    providers: Vec<ProviderAnswer>,
    rates: DetailRates<'a>,
}

#[derive(Serialize)]
struct ProviderAnswer {
    source: &'static str,
    kind: &'static str,
    state: &'static str,
    last_success: Option<Instant>,
    age_ms: Option<u64>,
    failures: u32,
    last_error: Option<String>,
    skipped: usize,
}

/// Made while it is written: there may be very many.
struct DetailRates<'a> {
    desk: &'a Desk,
    now: Timestamp,
}

#[derive(Serialize)]
struct RateAnswer {
    /// In force, or the last that was.
    rate: Option<String>,
    state: &'static str,
    source: &'static str,
    said_at: Option<Instant>,
    age_ms: Option<u64>,
    held: Option<HeldAnswer>,
}

#[derive(Serialize)]
struct HeldAnswer {
    rate: String,
    source: &'static str,
    since: Option<Instant>,
    reason: &'static str,
    other_rate: Option<String>,
}

impl DetailRates<'_> {
    fn answer(&self, entry: &DeskEntry) -> RateAnswer {
        RateAnswer {
            rate: entry.trusted.as_ref().map(ToString::to_string),
            state: self.desk.state(entry).as_str(),
            source: entry.source.as_str(),
            said_at: Instant::of(entry.said_at_ms),
            age_ms: age_ms(self.now, entry.said_at_ms),
            held: entry.held.as_ref().map(|held| HeldAnswer {
                rate: held.rate.to_string(),
                source: held.source.as_str(),
                since: Instant::of(Some(held.since_ms)),
                reason: match held.other {
                    None => "step",
                    Some(_) => "disagreement",
                },
                other_rate: held.other.as_ref().map(ToString::to_string),
            }),
        }
    }
}

impl Serialize for DetailRates<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.desk.entries().map(|(code, entry)| (code, self.answer(entry))))
    }
}
