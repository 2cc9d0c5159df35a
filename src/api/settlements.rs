//! The calls about outgoing settlements: list them, settle now, cancel or confirm one, have one tried again.
//!
//! Owns how a settlement looks in an answer. What happens is [`crate::control::settlements`]'s.

use std::sync::Arc;

use serde::Serialize;
use url::form_urlencoded;
use uuid::Uuid;

use crate::control::{Control, ControlError};
use crate::ledger::account::Account;
use crate::ledger::settlement::Settlement;
use crate::shard::control::ApiResponse;
use crate::wire::timestamp::Timestamp;

use super::accounts::PAGE_MAX;
use super::payments::{PAGE_DEFAULT, percent_encode};
use super::problem::{Kind, Problem, json_answer, json_answer_with_status, shorten};
use super::query::{bad_parameter, parameter};

/// `GET /accounts/:username/settlements`
pub fn list(control: &Control, account: &Account, query: &str) -> Result<ApiResponse, Problem> {
    let mut limit = PAGE_DEFAULT;
    if let Some(given) = parameter(query, "limit") {
        let valid = given.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
        let rule = || bad_parameter("limit", &format!("expected an integer from 1 to {PAGE_MAX}"));
        limit = valid.ok_or_else(rule)?;
    }
    let before = match parameter(query, "before").map(|given| Uuid::try_parse(&given)) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return Err(bad_parameter("before", "expected the id of a settlement")),
    };
    // One more than asked for tells whether there is a next page.
    let mut page = control.settlements(account.id, before, limit + 1)?;
    let has_more = page.len() > limit;
    page.truncate(limit);
    let answers: Vec<_> = page.iter().map(|one| SettlementAnswer::new(control, one)).collect();
    let mut response = json_answer(&answers);
    if let Some(last) = page.last().filter(|_| has_more) {
        let mut next = form_urlencoded::Serializer::new(String::new());
        next.extend_pairs(form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "before"));
        next.append_pair("before", &Uuid::from_bytes(last.id).to_string());
        let username = percent_encode(&account.username);
        let link = format!("</accounts/{username}/settlements?{}>; rel=\"next\"", next.finish());
        response.headers.push(("link", link));
    }
    Ok(response)
}

/// `POST /accounts/:username/settlements`
pub fn settle_now(control: &Control, username: &str) -> Result<ApiResponse, Problem> {
    let account = find(control, username)?;
    let made = control.settle_now(&account)?;
    Ok(json_answer_with_status(201, &SettlementAnswer::new(control, &made)))
}

/// `POST /accounts/:username/settlements/:id/cancel`
pub fn cancel(control: &Control, username: &str, id: &str, query: &str) -> Result<ApiResponse, Problem> {
    let force = read_force(query)?;
    let account = find(control, username)?;
    let cancelled = control.cancel_settlement(account.id, read_id(id)?, force)?;
    Ok(json_answer(&SettlementAnswer::new(control, &cancelled)))
}

/// `POST /accounts/:username/settlements/:id/confirm`
pub fn confirm(control: &Control, username: &str, id: &str) -> Result<ApiResponse, Problem> {
    let account = find(control, username)?;
    let confirmed = control.confirm_settlement(account.id, read_id(id)?)?;
    Ok(json_answer(&SettlementAnswer::new(control, &confirmed)))
}

/// `POST /accounts/:username/settlements/:id/retry`
pub fn retry(control: &Control, username: &str, id: &str, query: &str) -> Result<ApiResponse, Problem> {
    let force = read_force(query)?;
    let account = find(control, username)?;
    let again = control.retry_settlement(&account, read_id(id)?, force)?;
    Ok(json_answer(&SettlementAnswer::new(control, &again)))
}

/// The word of an operator who knows that a settlement was not paid.
fn read_force(query: &str) -> Result<bool, Problem> {
    match parameter(query, "force").as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(bad_parameter("force", "expected true or false")),
    }
}

fn find(control: &Control, username: &str) -> Result<Arc<Account>, Problem> {
    let not_found = || ControlError::AccountNotFound {
        username: shorten(username),
    };
    Ok(control.find_account(username).ok_or_else(not_found)?)
}

fn read_id(id: &str) -> Result<Uuid, Problem> {
    let not_found = |_| Problem::new(Kind::SettlementNotFound, "the account has no settlement with this id");
    Uuid::try_parse(id).map_err(not_found)
}

/// A settlement in an answer.
#[derive(Serialize)]
struct SettlementAnswer<'a> {
    id: String,
    state: &'static str,
    /// In units of the account's asset.
    amount: u64,
    scale: u8,
    /// How often an engine was called for it.
    attempts: u32,
    /// The engine that has it, or may have. Null: none has.
    engine: Option<&'a str>,
    created_at: String,
    last_attempt_at: Option<String>,
    /// Null: it is being called for it, or the settlement waits for something else than time.
    next_attempt_at: Option<String>,
    ended_at: Option<String>,
    /// Why the last try did not succeed.
    last_error: Option<&'a str>,
}

impl<'a> SettlementAnswer<'a> {
    fn new(control: &Control, settlement: &'a Settlement) -> Self {
        let time = |ms: u64| Timestamp::from_millis(ms).to_rfc3339();
        Self {
            id: Uuid::from_bytes(settlement.id).to_string(),
            state: settlement.state.as_str(),
            amount: settlement.amount,
            scale: settlement.scale,
            attempts: settlement.attempts,
            engine: settlement.sent_to.as_ref().map(|sent_to| &*sent_to.engine),
            created_at: time(settlement.created_ms),
            last_attempt_at: settlement.last_attempt_ms.map(time),
            next_attempt_at: control.next_attempt(settlement).map(Timestamp::to_rfc3339),
            ended_at: settlement.ended_ms.map(time),
            last_error: settlement.last_error.as_deref(),
        }
    }
}
