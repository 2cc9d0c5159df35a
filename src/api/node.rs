//! The calls about the node itself: is it ready, and does its book add up.
//!
//! Owns how both look in an answer.

use serde::Serialize;

use crate::control::Control;
use crate::logs;
use crate::shard::control::{ApiRequest, ApiResponse};

use super::problem::{Kind, Problem, json_answer, json_answer_with_status, text_answer};

/// `GET /`: 200 while the node serves, 503 with the reason while it does not.
pub fn health(control: &Control) -> ApiResponse {
    #[derive(Serialize)]
    struct Health<'a> {
        status: &'static str,
        ilp_address: &'a str,
        version: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }
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
        body: include_bytes!("openapi.json").to_vec(),
        close: false,
    }
}

/// `GET /ledger/audit`: per asset, every account's balance added up, and our own position against it. The sums are read
/// back from disk in one instant, after everything that was handed to the store before this call.
///
/// ```json
/// {"adds_up":true,"assets":[{"asset_code":"ABC","asset_scale":9,"accounts":2,"balances":-5,"position":5,"adds_up":true}]}
/// ```
///
/// Amounts are integers in units of the asset at its scale. `balances` is positive where we owe the holders more than
/// they owe us; `position` is what the connector has gained (positive) or paid (negative). The asset adds up if their
/// sum is zero, and the book does if every asset does. A book that does not is answered with 200 as well: the call
/// worked.
pub fn audit(control: &Control) -> Result<ApiResponse, Problem> {
    #[derive(Serialize)]
    struct Book<'a> {
        adds_up: bool,
        assets: Vec<Asset<'a>>,
    }
    #[derive(Serialize)]
    struct Asset<'a> {
        asset_code: &'a str,
        asset_scale: u8,
        accounts: u64,
        balances: i128,
        position: i128,
        adds_up: bool,
    }
    let audit = control.audit()?;
    let assets = audit.assets.iter().map(|line| Asset {
        asset_code: &line.asset.code,
        asset_scale: line.asset.scale,
        accounts: line.accounts,
        balances: line.balances,
        position: line.position,
        adds_up: line.adds_up(),
    });
    Ok(json_answer(&Book {
        adds_up: audit.adds_up(),
        assets: assets.collect(),
    }))
}
