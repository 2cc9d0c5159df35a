//! The calls about accounts: create, list, read, change, delete, and read the balance.
//!
//! Owns how an account and a balance look in an answer. What happens is `control`'s.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use url::form_urlencoded;

use crate::control::accounts::Outcome;
use crate::control::edit::Edit;
use crate::control::engines::{Engines, engine_in};
use crate::control::list::{Cursor, Filter};
use crate::control::{Control, Warning};
use crate::ledger::account::{Account, RoutingRelation};
use crate::ledger::directory::fold_username;
use crate::ledger::share::Share;
use crate::shard::control::{AccountState, ApiRequest, ApiResponse, QUESTIONS_MAX};
use crate::wire::address::check_prefix;
use crate::wire::timestamp::Timestamp;

use super::auth::Caller;
use super::fields::{Purpose, SECRET, read_account};
use super::problem::{Fault, Kind, Problem, json_answer};
use super::query::{bad_parameter, parameter};
use super::read_json;
use super::stream::{Brackets, json_stream, write_json};
use super::values::check_asset_code;

/// The largest page of a list.
pub(super) const PAGE_MAX: usize = 1_000;

/// `POST /accounts`
pub fn create(control: &Control, request: &ApiRequest, now: Timestamp) -> Result<ApiResponse, Problem> {
    let fields = read_account(read_json(request)?, Purpose::Create)?;
    let username = fields.username.unwrap_or_default();
    let outcome = control.create_account(now, &username, fields.edit)?;
    Ok(changed(control, outcome, fields.warnings))
}

/// `PUT /accounts/:username`
pub fn update(control: &Control, request: &ApiRequest, username: &str) -> Result<ApiResponse, Problem> {
    let fields = read_account(read_json(request)?, Purpose::Update)?;
    if fields
        .username
        .is_some_and(|name| fold_username(&name) != fold_username(username))
    {
        return Err(Problem::field(
            Kind::JsonData,
            "username",
            Fault::Immutable,
            "is not the one of the path",
        ));
    }
    let outcome = control.update_account(username, fields.edit)?;
    Ok(changed(control, outcome, fields.warnings))
}

/// `PUT /accounts/:username/settings`
pub fn change_settings(
    control: &Control,
    request: &ApiRequest,
    account: &Account,
    caller: Caller,
) -> Result<ApiResponse, Problem> {
    let fields = read_account(read_json(request)?, Purpose::Settings)?;
    if caller == Caller::Holder && fields.edit.http_incoming_token == Edit::Clear {
        let name = "ilp_over_http_incoming_token";
        let rule = "without it you could not log in any more; the admin may clear it";
        return Err(Problem::field(Kind::JsonData, name, Fault::Invalid, rule));
    }
    if let (Edit::Set(settle_to), Some(min)) = (&fields.edit.settle_to, account.limits.balance_min)
        && caller == Caller::Holder
        && *settle_to < min
    {
        // No packet of theirs could take it out either.
        let rule = format!("would settle below the min_balance of the account, which is {min}");
        return Err(Problem::field(Kind::JsonData, "settle_to", Fault::OutOfRange, rule));
    }
    let outcome = control.update_known_account(account, fields.edit)?;
    Ok(changed(control, outcome, fields.warnings))
}

fn changed(control: &Control, outcome: Outcome, mut warnings: Vec<Warning>) -> ApiResponse {
    warnings.extend(outcome.warnings);
    let state = control.account_state(&outcome.account);
    let engine = control.engine_of(&outcome.account);
    json_answer(&AccountAnswer {
        warnings: &warnings,
        ..AccountAnswer::new(&outcome.account, state.btp_connected, engine.as_deref())
    })
}

/// `GET /accounts/:username`
pub fn read(control: &Control, account: &Account) -> ApiResponse {
    let standing = control.engine_standing(account);
    let engine = standing.as_ref().map(|standing| &*standing.engine);
    let waiting = standing.as_ref().filter(|standing| !standing.acknowledged);
    json_answer(&AccountAnswer {
        settlement_engine_waiting: waiting.map(|standing| EngineAnswer {
            attempts: standing.attempts,
            last_error: standing.last_error.as_deref(),
        }),
        ..AccountAnswer::new(account, is_btp_connected(control, account), engine)
    })
}

/// `DELETE /accounts/:username`
pub fn delete(control: &Control, username: &str, query: &str) -> Result<ApiResponse, Problem> {
    let force = match parameter(query, "force").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(bad_parameter("force", "expected true or false")),
    };
    let deleted = control.delete_account(username, force)?;
    let removed_routes = deleted.removed_routes.iter().map(|prefix| &**prefix).collect();
    Ok(json_answer(&AccountAnswer {
        removed_routes: Some(removed_routes),
        removed_learned_routes: (deleted.learned_routes > 0).then_some(deleted.learned_routes),
        written_off: force.then_some(deleted.written_off),
        links: LinksAnswer { http: None, btp: None },
        ..AccountAnswer::new(&deleted.account, false, control.engine_of(&deleted.account).as_deref())
    }))
}

/// Accounts that are read, and whose shards are asked about them, at once.
const ACCOUNTS_PER_READ: usize = 64;
const _: () = assert!(ACCOUNTS_PER_READ <= QUESTIONS_MAX);

/// `GET /accounts`
pub fn list(control: &Arc<Control>, query: &str) -> Result<ApiResponse, Problem> {
    let (filter, mut cursor, limit) = read_list(query)?;
    let Some(limit) = limit else {
        let reader = Arc::clone(control);
        let read = move || with_links(&reader, reader.list_accounts(&filter, &mut cursor, ACCOUNTS_PER_READ));
        return Ok(json_stream(Brackets::Array, read, write_account));
    };
    // One more than asked for tells whether there is a next page. A page is chosen before it is answered, because its head
    // says where the next one begins: one created while it goes out must not push another out of both.
    let mut page = control.list_accounts(&filter, &mut cursor, limit + 1);
    let has_more = page.len() > limit;
    page.truncate(limit);
    let next = page.last().filter(|_| has_more).map(|last| {
        let mut next = form_urlencoded::Serializer::new(String::new());
        next.extend_pairs(form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "after"));
        next.append_pair("after", &last.username);
        format!("</accounts?{}>; rel=\"next\"", next.finish())
    });
    let reader = Arc::clone(control);
    let mut page = page.into_iter();
    let read = move || with_links(&reader, page.by_ref().take(ACCOUNTS_PER_READ).collect());
    let mut response = json_stream(Brackets::Array, read, write_account);
    response.headers.extend(next.map(|next| ("link", next)));
    Ok(response)
}

/// An account on its way into a list, and what is known of it elsewhere.
struct Listed {
    account: Arc<Account>,
    is_btp_connected: bool,
    /// All engines, of which one may be the account's.
    engines: Arc<Engines>,
}

/// Shards are asked about BTP connections only where there can be one: most accounts of a large hub have none.
fn with_links(control: &Control, accounts: Vec<Arc<Account>>) -> Vec<Listed> {
    let engines = control.engines();
    let ids: Vec<_> = accounts
        .iter()
        .filter(|account| has_btp(account))
        .map(|account| account.id)
        .collect();
    let mut connected = control.btp_connected(&ids).into_iter();
    let listed = accounts.into_iter().map(|account| Listed {
        is_btp_connected: has_btp(&account) && connected.next().unwrap_or(false),
        account,
        engines: Arc::clone(&engines),
    });
    listed.collect()
}

fn write_account(out: &mut Vec<u8>, listed: &Listed) {
    let engine = engine_in(&listed.engines, &listed.account);
    write_json(
        out,
        &AccountAnswer::new(&listed.account, listed.is_btp_connected, engine),
    );
}

/// What to list, from where on, and at most how many; `None`: all.
fn read_list(query: &str) -> Result<(Filter, Cursor, Option<usize>), Problem> {
    let mut filter = Filter::default();
    let cursor = parameter(query, "after").map_or_else(Cursor::default, |username| Cursor::after(&username));
    let mut limit = None;
    if let Some(given) = parameter(query, "limit") {
        let valid = given.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
        let rule = || bad_parameter("limit", &format!("expected an integer from 1 to {PAGE_MAX}"));
        limit = Some(valid.ok_or_else(rule)?);
    }
    if let Some(code) = parameter(query, "asset_code") {
        filter.asset_code = Some(check_asset_code(&code).map_err(|(_, rule)| bad_parameter("asset_code", &rule))?);
    }
    if let Some(relation) = parameter(query, "routing_relation") {
        let rule = || bad_parameter("routing_relation", "expected NonRoutingAccount, Parent, Peer or Child");
        filter.routing_relation = Some(RoutingRelation::parse(&relation).ok_or_else(rule)?);
    }
    if let Some(prefix) = parameter(query, "address_prefix") {
        let prefix = check_prefix(&prefix).map_err(|error| bad_parameter("address_prefix", &error.to_string()))?;
        filter.address_prefix = Some(prefix.into());
    }
    Ok((filter, cursor, limit))
}

/// `GET /accounts/:username/balance`
pub fn balance(
    control: &Control,
    account: &Account,
    default_format: BalanceFormat,
    query: &str,
) -> Result<ApiResponse, Problem> {
    let format = match parameter(query, "format") {
        None => default_format,
        Some(name) => {
            BalanceFormat::parse(&name).ok_or_else(|| bad_parameter("format", "expected integer or scaled"))?
        }
    };
    let state = control.account_state(account);
    match format {
        BalanceFormat::Integer => Ok(json_answer(&BalanceAnswer::new(account, state))),
        BalanceFormat::Scaled => {
            /// Exactly these members in this order: scripts compare the text.
            #[derive(Serialize)]
            struct Scaled<'a> {
                asset_code: &'a str,
                balance: f64,
            }
            // Read from decimal digits, so that it is the nearest float at every scale.
            let text = format!("{}e-{}", state.booked - state.held, account.asset.scale);
            let balance = text.parse().expect("an integer and an exponent make a float");
            Ok(json_answer(&Scaled {
                asset_code: &account.asset.code,
                balance,
            }))
        }
    }
}

/// How a balance is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BalanceFormat {
    /// In units of the asset's scale, with more beside it.
    #[default]
    Integer,
    /// In whole units, as interledger-rs 1.0 has it.
    Scaled,
}

impl BalanceFormat {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "integer" => Some(Self::Integer),
            "scaled" => Some(Self::Scaled),
            _ => None,
        }
    }
}

/// Asks the shard only if there can be a connection: most accounts of a large hub have none.
fn is_btp_connected(control: &Control, account: &Account) -> bool {
    has_btp(account) && control.account_state(account).btp_connected
}

/// Whether a BTP connection may come or be dialled.
fn has_btp(account: &Account) -> bool {
    account.links.btp_url().is_some() || account.links.btp_incoming_token().is_some()
}

/// An account in an answer, its members in the order that clients of interledger-rs know; ours come after.
#[derive(Serialize)]
struct AccountAnswer<'a> {
    id: String,
    username: &'a str,
    ilp_address: &'a str,
    asset_code: &'a str,
    asset_scale: u8,
    max_packet_amount: u64,
    min_balance: Option<i64>,
    ilp_over_http_url: Option<&'a str>,
    ilp_over_http_incoming_token: &'static str,
    ilp_over_http_outgoing_token: &'static str,
    ilp_over_btp_url: Option<&'a str>,
    ilp_over_btp_incoming_token: &'static str,
    ilp_over_btp_outgoing_token: &'static str,
    settle_threshold: Option<i64>,
    settle_to: Option<i64>,
    routing_relation: &'static str,
    round_trip_time: u32,
    packets_per_minute_limit: Option<u32>,
    amount_per_minute_limit: Option<u64>,
    settlement_engine_url: Option<&'a str>,
    max_balance: Option<i64>,
    spread: Box<RawValue>,
    /// Which of the four tokens are there.
    tokens_set: Vec<&'static str>,
    links: LinksAnswer,
    created_at: String,
    /// Of an account that is read, while its engine has not acknowledged it.
    #[serde(skip_serializing_if = "Option::is_none")]
    settlement_engine_waiting: Option<EngineAnswer<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "serialize_warnings")]
    warnings: &'a [Warning],
    /// Of a deleted account only.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_routes: Option<Vec<&'a str>>,
    /// Of a deleted account that had told us routes: how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_learned_routes: Option<usize>,
    /// Of an account deleted by force only. Units of its asset; positive is what we owed the holder.
    #[serde(skip_serializing_if = "Option::is_none")]
    written_off: Option<i128>,
}

/// How far the node has got with telling the engine of the account.
#[derive(Serialize)]
struct EngineAnswer<'a> {
    attempts: u32,
    last_error: Option<&'a str>,
}

/// How the account is reached now.
#[derive(Serialize)]
struct LinksAnswer {
    /// `ready`: Prepares go out to its URL; null: it has none.
    http: Option<&'static str>,
    /// `connected`; `connecting`: the node dials; `waiting`: the peer may dial; null: neither may.
    btp: Option<&'static str>,
}

impl<'a> AccountAnswer<'a> {
    /// `engine`: the account's own, else its asset's.
    fn new(account: &'a Account, is_btp_connected: bool, engine: Option<&'a str>) -> Self {
        let (links, settlement) = (&account.links, &account.settlement);
        let tokens = [
            ("ilp_over_http_incoming_token", links.http_incoming_token()),
            ("ilp_over_http_outgoing_token", links.http_outgoing_token()),
            ("ilp_over_btp_incoming_token", links.btp_incoming_token()),
            ("ilp_over_btp_outgoing_token", links.btp_outgoing_token()),
        ];
        let btp = match (links.btp_url(), links.btp_incoming_token()) {
            _ if is_btp_connected => Some("connected"),
            (Some(_), _) => Some("connecting"),
            (None, Some(_)) => Some("waiting"),
            (None, None) => None,
        };
        Self {
            id: uuid::Uuid::from_bytes(account.uuid).to_string(),
            username: &account.username,
            ilp_address: &account.ilp_address,
            asset_code: &account.asset.code,
            asset_scale: account.asset.scale,
            max_packet_amount: account.limits.packet_amount_max,
            min_balance: account.limits.balance_min,
            ilp_over_http_url: links.http_url(),
            ilp_over_http_incoming_token: SECRET,
            ilp_over_http_outgoing_token: SECRET,
            ilp_over_btp_url: links.btp_url(),
            ilp_over_btp_incoming_token: SECRET,
            ilp_over_btp_outgoing_token: SECRET,
            settle_threshold: settlement.threshold,
            settle_to: settlement.to,
            routing_relation: account.routing_relation.as_str(),
            round_trip_time: account.round_trip_time_ms,
            packets_per_minute_limit: account.limits.packets_per_minute,
            amount_per_minute_limit: account.limits.amount_per_minute,
            settlement_engine_url: engine,
            max_balance: account.limits.balance_max,
            spread: exact_number(account.limits.spread),
            tokens_set: tokens
                .iter()
                .filter(|(_, token)| token.is_some())
                .map(|(name, _)| *name)
                .collect(),
            links: LinksAnswer {
                http: links.http_url().map(|_| "ready"),
                btp,
            },
            created_at: Timestamp::from_millis(account.created_at_ms).to_rfc3339(),
            settlement_engine_waiting: None,
            warnings: &[],
            removed_routes: None,
            removed_learned_routes: None,
            written_off: None,
        }
    }
}

/// A share with all of its digits, so that what was read can be sent back.
fn exact_number(share: Share) -> Box<RawValue> {
    RawValue::from_string(share.to_string()).expect("a share is written as a JSON number")
}

pub(super) fn serialize_warnings<S: Serializer>(warnings: &[Warning], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct WarningAnswer<'a> {
        field: &'a str,
        message: &'a str,
    }
    serializer.collect_seq(
        warnings
            .iter()
            .map(|Warning { field, message }| WarningAnswer { field, message }),
    )
}

/// A balance in units of the account's asset; positive is what we owe the holder.
#[derive(Serialize)]
struct BalanceAnswer<'a> {
    /// What the next Prepare is checked against: what is held is taken off already.
    balance: i128,
    asset_code: &'a str,
    asset_scale: u8,
    /// The same in whole units, exactly.
    balance_scaled: String,
    prepaid_amount: i128,
    held: i128,
    pending_settlement: u64,
}

impl<'a> BalanceAnswer<'a> {
    fn new(account: &'a Account, state: AccountState) -> Self {
        let balance = state.booked - state.held;
        Self {
            balance,
            asset_code: &account.asset.code,
            asset_scale: account.asset.scale,
            balance_scaled: scaled(balance, account.asset.scale),
            prepaid_amount: state.prepaid,
            held: state.held,
            pending_settlement: state.settling,
        }
    }
}

/// `balance * 10^-scale` in decimal digits, as few as it takes.
fn scaled(balance: i128, scale: u8) -> String {
    let scale = usize::from(scale);
    let digits = format!("{:0>width$}", balance.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let fraction = fraction.trim_end_matches('0');
    let sign = if balance < 0 { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_balances() {
        for (balance, scale, expected) in [
            (0, 9, "0"),
            (1_000, 9, "0.000001"),
            (-500, 9, "-0.0000005"),
            (1_000_000_000, 9, "1"),
            (1_234_567_890, 9, "1.23456789"),
            (-12, 0, "-12"),
            (100, 0, "100"),
            (7, 30, "0.000000000000000000000000000007"),
            (i128::MIN, 2, "-1701411834604692317316873037158841057.28"),
        ] {
            assert_eq!(scaled(balance, scale), expected);
        }
        assert_eq!(scaled(1, 255).len(), 257);
    }
}
