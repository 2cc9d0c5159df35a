//! The calls about exchange rates: read all, replace all.
//!
//! Owns reading and writing the map of asset codes to rates. Rates are kept exactly as given; only the answer shows
//! them as floats. In a map answer every member is read as an asset, so nothing may be added to it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Serialize, Serializer};

use crate::control::Control;
use crate::pipeline::rates::{Decimal, Rates};
use crate::shard::control::{ApiRequest, ApiResponse};

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

fn read_rates(body: Json) -> Result<Rates, Problem> {
    let Json::Object(members) = body else {
        let detail = format!("expected an object of asset codes and rates, found {}", body.kind());
        return Err(Problem::new(Kind::JsonData, detail));
    };
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
        match (check_asset_code(&name), read_rate(&value)) {
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
    Rates::new(by_code).map_err(|error| Problem::new(Kind::JsonData, error.to_string()))
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
