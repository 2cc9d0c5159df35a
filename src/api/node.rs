//! The calls about the node itself: is it ready, does its book add up, copy it.
//!
//! Owns how these look in an answer, also where a command answers in the node's place.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::ledger::audit::{AssetAudit, Audit};
use crate::logs;
use crate::shard::control::{ApiRequest, ApiResponse};

use super::json::Json;
use super::problem::{Fault, Kind, Problem, json_answer, json_answer_with_status, shorten, text_answer};
use super::read_json;

/// `GET /`: 200 while the node serves, 503 with the reason while it does not. Without some rates it serves what needs
/// none, and `rates` says what is wrong.
pub fn health(control: &Control) -> ApiResponse {
    #[derive(Serialize)]
    struct Health<'a> {
        status: &'static str,
        ilp_address: &'a str,
        version: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rates: Option<RateTrouble>,
    }
    #[derive(Serialize)]
    struct RateTrouble {
        failed: Vec<&'static str>,
        dropped: usize,
        held: usize,
    }
    let rates = control.rate_trouble().map(|trouble| RateTrouble {
        failed: trouble.failed.into_iter().map(|source| source.as_str()).collect(),
        dropped: trouble.dropped,
        held: trouble.held,
    });
    let reason = control.not_ready();
    let (status, word) = if reason.is_none() {
        (200, "Ready")
    } else {
        (503, "NotReady")
    };
    let ilp_address = &control.node_address();
    let version = env!("CARGO_PKG_VERSION");
    let mut response = json_answer_with_status(
        status,
        &Health {
            status: word,
            ilp_address,
            version,
            reason,
            rates,
        },
    );
    if status == 503 {
        response.headers.push(("retry-after", "5".to_owned()));
    }
    response
}

/// `PUT /tracing-level`: which log lines are written from now on.
pub fn change_log_level(change: &logs::Change, request: &ApiRequest) -> Result<ApiResponse, Problem> {
    let text = std::str::from_utf8(&request.body)
        .map_err(|_| Problem::new(Kind::BadRequest, "the filter is not UTF-8"))?
        .trim();
    change(text).map_err(|rule| Problem::new(Kind::BadRequest, format!("the filter is invalid: {rule}")))?;
    Ok(text_answer(&format!("Logging level changed to: {text}")))
}

/// `GET /openapi.json`: this API as OpenAPI 3.1 describes it.
pub fn description() -> ApiResponse {
    ApiResponse {
        status: 200,
        headers: vec![("content-type", "application/json".to_owned())],
        body: include_bytes!("openapi.json").to_vec().into(),
        close: false,
    }
}

/// `GET /ledger/audit`: per asset, every account's balance added up, and our own position against it. The sums are read
/// back from disk in one instant, after everything that was handed to the store before this call.
///
/// ```json
/// {"adds_up":true,"assets":[{"asset_code":"ABC","asset_scale":9,"accounts":2,"balances":-5,"position":5,"pending":0,"adds_up":true}]}
/// ```
///
/// Amounts are integers in units of the asset at its scale. `balances` is positive where we owe the holders more than
/// they owe us; `position` is what we have kept of packets and what has left for settlement engines, less what engines have
/// brought; `pending` is what is still on its way to engines: it has left the balances, and is in the position. The asset
/// adds up if balances and position sum to zero and the open settlements are what the book has carried along, and the book
/// does if every asset does. A book that does not is answered with 200 as well: the call worked.
pub fn audit(control: &Control) -> Result<ApiResponse, Problem> {
    let audit = control.audit()?;
    Ok(json_answer(&BookAnswer {
        adds_up: audit.adds_up(),
        assets: asset_answers(&audit),
    }))
}

#[derive(Serialize)]
struct BookAnswer {
    adds_up: bool,
    assets: Vec<AssetAnswer>,
}

/// One asset's line of the proof, as every answer shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AssetAnswer {
    pub asset_code: Arc<str>,
    pub asset_scale: u8,
    pub accounts: u64,
    pub balances: i128,
    pub position: i128,
    pub pending: i128,
    pub adds_up: bool,
}

pub fn asset_answers(audit: &Audit) -> Vec<AssetAnswer> {
    let answer = |line: &AssetAudit| AssetAnswer {
        asset_code: line.asset.code.clone(),
        asset_scale: line.asset.scale,
        accounts: line.accounts,
        balances: line.balances,
        position: line.position,
        pending: line.pending,
        adds_up: line.adds_up(),
    };
    audit.assets.iter().map(answer).collect()
}

/// What is said about a copy of the book. The proof is the copy's own, read back from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupAnswer {
    pub directory: Box<str>,
    pub accounts: u64,
    pub adds_up: bool,
    pub assets: Vec<AssetAnswer>,
}

impl BackupAnswer {
    pub fn new(directory: &str, audit: &Audit) -> Self {
        Self {
            directory: directory.into(),
            accounts: audit.assets.iter().map(|line| line.accounts).sum(),
            adds_up: audit.adds_up(),
            assets: asset_answers(audit),
        }
    }
}

/// `POST /ledger/backup`: copies the book into a new folder on the node's machine, with everything that was answered
/// before this call. Packets flow on meanwhile.
///
/// The body is `{"directory":"/absolute/path"}`, a folder that does not exist in one that does. The answer is that of an
/// audit with the directory and the number of accounts in front, and proves the copy, not the original. A copy that does
/// not add up is kept and answered with 200 as well: it shows the damage.
pub fn backup(control: &Control, request: &ApiRequest) -> Result<ApiResponse, Problem> {
    let directory = read_directory(read_json(request)?)?;
    let audit = control.backup(Path::new(&*directory))?;
    Ok(json_answer(&BackupAnswer::new(&directory, &audit)))
}

fn read_directory(body: Json) -> Result<Box<str>, Problem> {
    let Json::Object(members) = body else {
        let detail = format!("expected an object, found {}", body.kind());
        return Err(Problem::new(Kind::JsonData, detail));
    };
    let mut directory = None;
    for (name, value) in members {
        directory = match (&*name, value) {
            ("directory", Json::Text(path)) => Some(path),
            ("directory", other) => {
                let rule = format!("expected a text, found {}", other.kind());
                return Err(Problem::field(Kind::JsonData, "directory", Fault::Invalid, rule));
            }
            // A call that writes to a disk does nothing that it was told in words it does not know.
            (unknown, _) => {
                let rule = "is not known";
                return Err(Problem::field(Kind::JsonData, &shorten(unknown), Fault::Invalid, rule));
            }
        };
    }
    directory.ok_or_else(|| Problem::field(Kind::JsonData, "directory", Fault::Missing, ""))
}
