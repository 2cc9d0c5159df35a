//! The call about settlement engines: which engine settles for the accounts in which asset.
//!
//! Owns reading the map of asset codes to URLs. The answer is a map as well: every member of it is read as an asset, so
//! nothing may be added.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::control::Control;
use crate::shard::control::{ApiRequest, ApiResponse};

use super::json::Json;
use super::problem::{Fault, InvalidParam, Kind, Problem, json_answer, shorten};
use super::read_json;
use super::values::{check_asset_code, http_url};

/// `PUT /settlement/engines`: merged into what is there; null removes an entry.
pub fn merge(control: &Control, request: &ApiRequest) -> Result<ApiResponse, Problem> {
    let engines = read_engines(read_json(request)?)?;
    control.set_engines(&engines)?;
    Ok(json_answer(&engines))
}

fn read_engines(body: Json) -> Result<BTreeMap<Box<str>, Option<Box<str>>>, Problem> {
    let Json::Object(members) = body else {
        let detail = format!("expected an object of asset codes and URLs, found {}", body.kind());
        return Err(Problem::new(Kind::JsonData, detail));
    };
    let mut engines = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, value) in members {
        let url = match &value {
            Json::Null => Ok(None),
            url => http_url(url).map(Some),
        };
        let read = check_asset_code(&name).and_then(|code| Ok((code, url?)));
        let kept = read.and_then(|(code, url)| match engines.entry(code) {
            Entry::Vacant(entry) => {
                entry.insert(url);
                Ok(())
            }
            Entry::Occupied(_) => Err((Fault::Invalid, "is there twice: codes are in upper case".to_owned())),
        });
        if let Err((fault, rule)) = kept {
            let name = shorten(&name);
            faults.push((InvalidParam { name, fault }, rule));
        }
    }
    if faults.is_empty() {
        Ok(engines)
    } else {
        Err(Problem::fields(Kind::JsonData, faults))
    }
}
