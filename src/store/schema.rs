//! Schema: where each thing is stored and how its bytes look, each layout written once.
//!
//! Owns column families, keys, values and the format version. Integers are big-endian, so that keys sort by number.
//! Leaves reading and writing to [`super::rocks`] and the encryption of tokens to [`super::secrets`].
//!
//! | family    | key                 | value                                                       |
//! |-----------|---------------------|-------------------------------------------------------------|
//! | meta      | name, see [`meta`]  | see there                                                   |
//! | assets    | asset, u16          | scale, u8; code                                             |
//! | accounts  | account, u32        | layout, u8; asset, u16; the rest as JSON, tokens sealed     |
//! | balances  | account, u32        | booked, i128: positive is what we owe the holder; what is   |
//! |           |                     | prepaid of it, i128: not there when zero                    |
//! | positions | asset, u16          | our own position, i128: positive is what we have gained     |
//! | routes    | prefix              | next hop: account, u32                                      |
//! | rates     | code                | decimal text; behind it its source, and whether it is out   |
//! | engines   | code                | URL of the settlement engine of accounts in that asset      |
//! | payments  | account, u32;       | what is known of a payment that we make or made, as JSON    |
//! |           | payment, u64        |                                                             |
//! | keys      | account, u32;       | the account's payment that began with this key: u64         |
//! |           | key, 32 bytes       |                                                             |
//! | paying    | payment, u64        | an open payment: account, u32; what it has sent, u64        |
//! | heard     | account, u32        | layout, u8; the neighbour's table id, 16 bytes; epoch, u32  |
//! | learned   | account, u32;       | what it told in that layout: auth, 32 bytes; path           |
//! |           | prefix              |                                                             |
//! | settled   | account, u32;       | an outgoing settlement, open or ended: layout, u8; the rest |
//! |           | settlement, u64     | as JSON                                                     |
//! | settling  | settlement, u64     | account, u32; whether it is open, u8                        |
//! | named     | id, 16 bytes        | the settlement with this id: account, u32; settlement, u64  |
//! | pending   | asset, u16          | the sum of the open settlements in it, i128; none: zero     |
//! | received  | account, u32;       | how an incoming settlement that came under this key was     |
//! |           | key, 32 bytes       | answered: what came, 32 bytes; status, u16; body            |
//! | used      | account, u32;       | when that answer was last given, in milliseconds since      |
//! |           | key, 32 bytes       | 1970, u64                                                   |
//! | remainder | account, u32        | what incoming settlements left over: scale, u8; how many    |
//! |           |                     | they were, u64; units                                       |
//! | told      | account, u32;       | what an engine knows of an account: UUID, 16 bytes; whether |
//! |           | URL of the engine   | it has acknowledged it, u8; what to tell it, u8             |

use std::sync::Arc;

use num_bigint::BigUint;
use serde::{Deserialize, Serialize};

use super::secrets::Secrets;
use super::settling::{EngineAccount, EngineTask};
use super::{LearnedRoute, PAYMENT_KEY_BYTES, SETTLEMENT_KEY_BYTES, SettlementAnswer, SettlementKey};
use crate::ledger::account::Settlement as SettlementRule;
use crate::ledger::settlement::{SentTo, Settlement};
use crate::ledger::{
    Account, AccountId, AccountLimits, Asset, AssetId, Links, PackedLinks, PaymentNumber, Remainder, RoutingRelation,
    SettlementNumber, SettlementState, Share, Standing,
};
use crate::wire::ccp::{AUTH_BYTES, TableId};

/// Counted up when a program that knows only the older layouts would misread what is stored.
///
/// 2: there are settlements, or something of them. A store of version 1 has none, and becomes one of version 2 with the
/// first; until then the program of before can still open it.
pub const FORMAT_VERSION: u32 = 2;

/// The oldest version that is read.
pub const FORMAT_VERSION_MIN: u32 = 1;

pub mod family {
    pub const META: &str = "meta";
    pub const ASSETS: &str = "assets";
    pub const ACCOUNTS: &str = "accounts";
    pub const BALANCES: &str = "balances";
    pub const POSITIONS: &str = "positions";
    pub const ROUTES: &str = "routes";
    pub const RATES: &str = "rates";
    pub const ENGINES: &str = "engines";
    pub const PAYMENTS: &str = "payments";
    pub const KEYS: &str = "keys";
    pub const PAYING: &str = "paying";
    pub const HEARD: &str = "heard";
    pub const LEARNED: &str = "learned";
    pub const SETTLED: &str = "settled";
    pub const SETTLING: &str = "settling";
    pub const NAMED: &str = "named";
    pub const PENDING: &str = "pending";
    pub const RECEIVED: &str = "received";
    pub const USED: &str = "used";
    pub const REMAINDER: &str = "remainder";
    pub const TOLD: &str = "told";

    pub const ALL: [&str; 21] = [
        META, ASSETS, ACCOUNTS, BALANCES, POSITIONS, ROUTES, RATES, ENGINES, PAYMENTS, KEYS, PAYING, HEARD, LEARNED,
        SETTLED, SETTLING, NAMED, PENDING, RECEIVED, USED, REMAINDER, TOLD,
    ];
}

/// Keys of the family `meta`.
pub mod meta {
    /// u32; written first, read first.
    pub const FORMAT_VERSION: &[u8] = b"format_version";
    /// A sealed constant: opens under the seed that the store was made with, and under no other.
    pub const SEED_CHECK: &[u8] = b"seed_check";
    /// The node's ILP address as text. Absent until the node has one.
    pub const NODE_ADDRESS: &[u8] = b"node_address";
    /// What our parent calls us, as text. Absent while nobody does.
    pub const ASSIGNED_ADDRESS: &[u8] = b"assigned_address";
    /// u32.
    pub const NEXT_ACCOUNT_ID: &[u8] = b"next_account_id";
    /// u64. Absent until there was one.
    pub const LAST_PAYMENT: &[u8] = b"last_payment";
    /// u64. Absent until there was one.
    pub const LAST_SETTLEMENT: &[u8] = b"last_settlement";
}

/// Above every code: those are UTF-8, which has no such byte.
pub const CODES_END: &[u8] = &[0xff];

/// Bytes that are none of ours: says what was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no valid {0}")]
pub struct Malformed(pub &'static str);

pub fn account_key(id: AccountId) -> [u8; 4] {
    id.get().to_be_bytes()
}

pub fn read_account_key(bytes: &[u8]) -> Result<AccountId, Malformed> {
    read_u32(bytes)
        .map(AccountId::new)
        .map_err(|_| Malformed("account number"))
}

/// Below the keys of everything that belongs to the account with the next number, and above those of this one.
pub fn end_of_account(id: AccountId) -> Vec<u8> {
    // Behind the last number there is nothing: account numbers run out before they reach it.
    id.get().saturating_add(1).to_be_bytes().to_vec()
}

pub fn payment_key(account: AccountId, number: PaymentNumber) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&account_key(account));
    key[4..].copy_from_slice(&number.get().to_be_bytes());
    key
}

/// The number in a payment's key.
pub fn read_payment_key(bytes: &[u8]) -> Result<PaymentNumber, Malformed> {
    read_payment_number(bytes.get(4..).unwrap_or_default())
}

pub fn read_payment_number(bytes: &[u8]) -> Result<PaymentNumber, Malformed> {
    let number = bytes.try_into().ok().map(u64::from_be_bytes);
    number
        .and_then(PaymentNumber::new)
        .ok_or(Malformed("number of a payment"))
}

pub fn key_of_payment(account: AccountId, key: &[u8; PAYMENT_KEY_BYTES]) -> Vec<u8> {
    [&account_key(account)[..], key].concat()
}

pub fn paying(account: AccountId, sent: u64) -> Vec<u8> {
    [&account_key(account)[..], &sent.to_be_bytes()].concat()
}

pub fn read_paying(bytes: &[u8]) -> Result<(AccountId, u64), Malformed> {
    let (account, sent) = bytes.split_at_checked(4).ok_or(Malformed("open payment"))?;
    let sent = sent.try_into().map_err(|_| Malformed("amount of an open payment"))?;
    Ok((read_account_key(account)?, u64::from_be_bytes(sent)))
}

pub fn settlement_key(account: AccountId, number: SettlementNumber) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&account_key(account));
    key[4..].copy_from_slice(&settlement_number(number));
    key
}

/// Key or value: whose settlement, and which.
pub fn read_settlement_key(bytes: &[u8]) -> Result<(AccountId, SettlementNumber), Malformed> {
    let (account, number) = bytes.split_at_checked(4).ok_or(Malformed("key of a settlement"))?;
    Ok((read_account_key(account)?, read_settlement_number(number)?))
}

pub fn settlement_number(number: SettlementNumber) -> [u8; 8] {
    number.get().to_be_bytes()
}

pub fn read_settlement_number(bytes: &[u8]) -> Result<SettlementNumber, Malformed> {
    read_u64(bytes)
        .map(SettlementNumber::new)
        .map_err(|_| Malformed("number of a settlement"))
}

/// Whose a settlement is, and whether it is open.
pub fn settling(settlement: &Settlement) -> Vec<u8> {
    [
        &account_key(settlement.account)[..],
        &[u8::from(settlement.state.is_open())],
    ]
    .concat()
}

pub fn read_settling(bytes: &[u8]) -> Result<(AccountId, bool), Malformed> {
    match bytes {
        [account @ .., is_open @ (0 | 1)] => Ok((read_account_key(account)?, *is_open == 1)),
        _ => Err(Malformed("state of a settlement")),
    }
}

/// Counted up when an older program would misread the record, as [`ACCOUNT_LAYOUT`].
const SETTLEMENT_LAYOUT: u8 = 1;

/// The JSON of a settlement. Account and number are in its key.
#[derive(Serialize, Deserialize)]
struct SettlementRecord {
    id: uuid::Uuid,
    amount: u64,
    scale: u8,
    state: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent_to: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent_since_ms: Option<u64>,
    attempts: u32,
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_attempt_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_error: Option<Box<str>>,
}

pub fn settlement(settlement: &Settlement) -> Vec<u8> {
    let record = SettlementRecord {
        id: uuid::Uuid::from_bytes(settlement.id),
        amount: settlement.amount,
        scale: settlement.scale,
        state: settlement.state.as_str().into(),
        sent_to: settlement.sent_to.as_ref().map(|sent_to| sent_to.engine.clone()),
        sent_since_ms: settlement.sent_to.as_ref().map(|sent_to| sent_to.since_ms),
        attempts: settlement.attempts,
        created_ms: settlement.created_ms,
        last_attempt_ms: settlement.last_attempt_ms,
        ended_ms: settlement.ended_ms,
        last_error: settlement.last_error.clone(),
    };
    let mut bytes = vec![SETTLEMENT_LAYOUT];
    serde_json::to_writer(&mut bytes, &record).expect("text and numbers are always valid JSON");
    bytes
}

pub fn read_settlement(key: &[u8], value: &[u8]) -> Result<Settlement, Malformed> {
    let (account, number) = read_settlement_key(key)?;
    let Some((&SETTLEMENT_LAYOUT, json)) = value.split_first() else {
        return Err(Malformed("layout of a settlement"));
    };
    let record: SettlementRecord = serde_json::from_slice(json).map_err(|_| Malformed("settlement"))?;
    Ok(Settlement {
        number,
        id: record.id.into_bytes(),
        account,
        amount: record.amount,
        scale: record.scale,
        state: SettlementState::parse(&record.state).ok_or(Malformed("state of a settlement"))?,
        sent_to: match (record.sent_to, record.sent_since_ms) {
            (None, None) => None,
            (Some(engine), Some(since_ms)) => Some(SentTo { engine, since_ms }),
            _ => return Err(Malformed("engine of a settlement")),
        },
        attempts: record.attempts,
        created_ms: record.created_ms,
        last_attempt_ms: record.last_attempt_ms,
        ended_ms: record.ended_ms,
        last_error: record.last_error,
    })
}

/// The key under which an incoming settlement came.
pub fn received_key(account: AccountId, key: &SettlementKey) -> Vec<u8> {
    [&account_key(account)[..], key].concat()
}

pub fn read_received_key(bytes: &[u8]) -> Result<(AccountId, SettlementKey), Malformed> {
    let (account, key) = bytes
        .split_at_checked(4)
        .ok_or(Malformed("key of an incoming settlement"))?;
    let key = key.try_into().map_err(|_| Malformed("key of an incoming settlement"))?;
    Ok((read_account_key(account)?, key))
}

pub fn received(input: &[u8; SETTLEMENT_KEY_BYTES], status: u16, answer: &[u8]) -> Vec<u8> {
    [&input[..], &status.to_be_bytes(), answer].concat()
}

pub fn read_received(bytes: &[u8]) -> Result<SettlementAnswer, Malformed> {
    let malformed = Malformed("answer to a settlement");
    let (input, rest) = bytes.split_first_chunk().ok_or(malformed)?;
    let (status, answer) = rest.split_first_chunk().ok_or(malformed)?;
    Ok((*input, u16::from_be_bytes(*status), answer.into()))
}

pub fn remainder(remainder: &Remainder) -> Vec<u8> {
    let settlements = remainder.settlements().to_be_bytes();
    [&[remainder.scale()], &settlements[..], &remainder.units().to_bytes_be()].concat()
}

pub fn read_remainder(bytes: &[u8]) -> Result<Remainder, Malformed> {
    let malformed = Malformed("remainder of settlements");
    let (scale, rest) = bytes.split_first().ok_or(malformed)?;
    let (settlements, units) = rest.split_first_chunk().ok_or(malformed)?;
    let (settlements, units) = (u64::from_be_bytes(*settlements), BigUint::from_bytes_be(units));
    Remainder::from_parts(*scale, units, settlements).ok_or(malformed)
}

pub fn told_key(account: AccountId, engine: &str) -> Vec<u8> {
    [&account_key(account)[..], engine.as_bytes()].concat()
}

pub fn read_told_key(bytes: &[u8]) -> Result<(AccountId, Box<str>), Malformed> {
    let (account, engine) = bytes.split_at_checked(4).ok_or(Malformed("engine of an account"))?;
    Ok((read_account_key(account)?, read_text(engine)?.into()))
}

pub fn told(of: &EngineAccount) -> Vec<u8> {
    let task = match of.task {
        None => 0,
        Some(EngineTask::Create) => 1,
        Some(EngineTask::Delete) => 2,
    };
    [&of.uuid[..], &[u8::from(of.announced), task]].concat()
}

pub fn read_told(bytes: &[u8]) -> Result<EngineAccount, Malformed> {
    let malformed = Malformed("task for an engine");
    let (uuid, rest) = bytes.split_first_chunk().ok_or(malformed)?;
    let (announced, task) = match rest {
        [announced @ (0 | 1), 0] => (announced, None),
        [announced @ (0 | 1), 1] => (announced, Some(EngineTask::Create)),
        [announced @ (0 | 1), 2] => (announced, Some(EngineTask::Delete)),
        _ => return Err(malformed),
    };
    Ok(EngineAccount {
        uuid: *uuid,
        announced: *announced == 1,
        task,
    })
}

/// Counted up when a program that knows only the older layouts would misread what a neighbour told.
const HEARD_LAYOUT: u8 = 1;

/// How far a neighbour was heard.
pub fn heard(table_id: &TableId, epoch: u32) -> Vec<u8> {
    [&[HEARD_LAYOUT][..], table_id, &epoch.to_be_bytes()].concat()
}

pub fn read_heard(bytes: &[u8]) -> Result<(TableId, u32), Malformed> {
    let Some((&HEARD_LAYOUT, rest)) = bytes.split_first() else {
        return Err(Malformed("layout of what a neighbour told"));
    };
    let (table_id, epoch) = rest.split_first_chunk().ok_or(Malformed("table of a neighbour"))?;
    Ok((*table_id, read_u32(epoch)?))
}

pub fn learned_key(account: AccountId, prefix: &str) -> Vec<u8> {
    [&account_key(account)[..], prefix.as_bytes()].concat()
}

pub fn learned(route: &LearnedRoute) -> Vec<u8> {
    [&route.auth[..], &route.path].concat()
}

/// A route, and the account that told it.
pub fn read_learned(key: &[u8], value: &[u8]) -> Result<(AccountId, LearnedRoute), Malformed> {
    let (account, prefix) = key.split_at_checked(4).ok_or(Malformed("key of a learned route"))?;
    let (auth, path) = value
        .split_first_chunk::<AUTH_BYTES>()
        .ok_or(Malformed("learned route"))?;
    let route = LearnedRoute {
        prefix: read_text(prefix)?.into(),
        path: path.into(),
        auth: *auth,
    };
    Ok((read_account_key(account)?, route))
}

pub fn asset_key(id: AssetId) -> [u8; 2] {
    id.get().to_be_bytes()
}

pub fn read_asset_key(bytes: &[u8]) -> Result<AssetId, Malformed> {
    let bytes = bytes.try_into().map_err(|_| Malformed("asset number"))?;
    Ok(AssetId::new(u16::from_be_bytes(bytes)))
}

pub fn read_u32(bytes: &[u8]) -> Result<u32, Malformed> {
    bytes
        .try_into()
        .map(u32::from_be_bytes)
        .map_err(|_| Malformed("number"))
}

pub fn read_u64(bytes: &[u8]) -> Result<u64, Malformed> {
    bytes
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| Malformed("number"))
}

/// A balance, and what is prepaid of it.
pub fn balance(standing: &Standing) -> Vec<u8> {
    let mut bytes = amount(standing.booked).to_vec();
    if standing.prepaid != 0 {
        bytes.extend(amount(standing.prepaid));
    }
    bytes
}

/// As [`balance`] wrote it; whether a settlement is open is not said there.
pub fn read_balance(bytes: &[u8]) -> Result<Standing, Malformed> {
    let (booked, prepaid) = bytes.split_at_checked(16).ok_or(Malformed("amount"))?;
    Ok(Standing {
        booked: read_amount(booked)?,
        prepaid: match prepaid {
            [] => 0,
            prepaid => read_amount(prepaid)?,
        },
        settling: false,
    })
}

/// A position, or a sum of settlements.
pub fn amount(amount: i128) -> [u8; 16] {
    amount.to_be_bytes()
}

pub fn read_amount(bytes: &[u8]) -> Result<i128, Malformed> {
    bytes
        .try_into()
        .map(i128::from_be_bytes)
        .map_err(|_| Malformed("amount"))
}

pub fn read_text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("text"))
}

pub fn asset(asset: &Asset) -> Vec<u8> {
    [&[asset.scale], asset.code.as_bytes()].concat()
}

pub fn read_asset(bytes: &[u8]) -> Result<Asset, Malformed> {
    let (scale, code) = bytes.split_first().ok_or(Malformed("asset"))?;
    Ok(Asset {
        code: read_text(code)?.into(),
        scale: *scale,
    })
}

const SEED_CHECK_OWNER: [u8; 16] = [0; 16];
const SEED_CHECK_TEXT: &[u8] = b"clearway";

/// The value of [`meta::SEED_CHECK`].
pub fn seed_check(secrets: &Secrets) -> Vec<u8> {
    secrets.seal(&SEED_CHECK_OWNER, "seed_check", SEED_CHECK_TEXT)
}

pub fn seed_check_opens(secrets: &Secrets, bytes: &[u8]) -> bool {
    secrets
        .open(&SEED_CHECK_OWNER, "seed_check", bytes)
        .is_ok_and(|text| text == SEED_CHECK_TEXT)
}

/// Counted up when an older program would misread the record. A new field that may be absent does not count it up:
/// an older program passes over it.
const ACCOUNT_LAYOUT: u8 = 1;
/// Layout and asset in front of the JSON, so that an audit need not read the rest.
const ACCOUNT_HEAD_BYTES: usize = 1 + 2;

/// The JSON of an account. The names are spelled out here, so that a renamed field elsewhere changes nothing on disk.
#[derive(Serialize, Deserialize)]
struct AccountRecord {
    uuid: uuid::Uuid,
    username: Box<str>,
    ilp_address: Box<str>,
    ilp_address_generated: bool,
    routing_relation: Box<str>,
    packet_amount_max: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    balance_min: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    balance_max: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    amount_per_minute: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packets_per_minute: Option<u32>,
    /// In units of `10^-18`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spread_attos: Option<u64>,
    round_trip_time_ms: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settle_threshold: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settle_to: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settlement_engine_url: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_url: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_incoming_token: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_outgoing_token: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    btp_url: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    btp_incoming_token: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    btp_outgoing_token: Option<Sealed>,
    created_at_ms: u64,
}

/// A sealed token in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Sealed(Box<str>);

/// Under what a token is sealed, besides the account it belongs to.
mod field {
    pub const HTTP_INCOMING_TOKEN: &str = "http_incoming_token";
    pub const HTTP_OUTGOING_TOKEN: &str = "http_outgoing_token";
    pub const BTP_INCOMING_TOKEN: &str = "btp_incoming_token";
    pub const BTP_OUTGOING_TOKEN: &str = "btp_outgoing_token";
}

impl Sealed {
    fn new(secrets: &Secrets, account: &Account, field: &str, token: Option<Box<str>>) -> Option<Self> {
        let sealed = secrets.seal(&account.uuid, field, token?.as_bytes());
        Some(Self(to_hex(&sealed).into()))
    }

    fn open(&self, secrets: &Secrets, uuid: &[u8; 16], field: &str) -> Result<Box<str>, Malformed> {
        let sealed = from_hex(&self.0).ok_or(Malformed("token"))?;
        let token = secrets.open(uuid, field, &sealed).map_err(|_| Malformed("token"))?;
        Ok(read_text(&token)?.into())
    }
}

pub fn account(account: &Account, secrets: &Secrets) -> Vec<u8> {
    let Account { limits, settlement, .. } = account;
    let links = account.links.unpack();
    let seal = |field, token| Sealed::new(secrets, account, field, token);
    let record = AccountRecord {
        uuid: uuid::Uuid::from_bytes(account.uuid),
        username: account.username.clone(),
        ilp_address: Box::from(&*account.ilp_address),
        ilp_address_generated: account.ilp_address_generated,
        routing_relation: account.routing_relation.as_str().into(),
        packet_amount_max: limits.packet_amount_max,
        balance_min: limits.balance_min,
        balance_max: limits.balance_max,
        amount_per_minute: limits.amount_per_minute,
        packets_per_minute: limits.packets_per_minute,
        spread_attos: Some(limits.spread.attos()).filter(|attos| *attos != 0),
        round_trip_time_ms: account.round_trip_time_ms,
        settle_threshold: settlement.threshold,
        settle_to: settlement.to,
        settlement_engine_url: settlement.engine_url.clone(),
        http_url: links.http_url,
        http_incoming_token: seal(field::HTTP_INCOMING_TOKEN, links.http_incoming_token),
        http_outgoing_token: seal(field::HTTP_OUTGOING_TOKEN, links.http_outgoing_token),
        btp_url: links.btp_url,
        btp_incoming_token: seal(field::BTP_INCOMING_TOKEN, links.btp_incoming_token),
        btp_outgoing_token: seal(field::BTP_OUTGOING_TOKEN, links.btp_outgoing_token),
        created_at_ms: account.created_at_ms,
    };
    let mut bytes = Vec::with_capacity(1024);
    bytes.push(ACCOUNT_LAYOUT);
    bytes.extend_from_slice(&asset_key(account.asset_id));
    serde_json::to_writer(&mut bytes, &record).expect("text and numbers are always valid JSON");
    bytes
}

/// The asset of an account, without the rest of it.
pub fn read_account_asset(bytes: &[u8]) -> Result<AssetId, Malformed> {
    match bytes.first_chunk::<ACCOUNT_HEAD_BYTES>() {
        Some([ACCOUNT_LAYOUT, asset @ ..]) => read_asset_key(asset),
        _ => Err(Malformed("account layout")),
    }
}

/// `assets` are those stored, by their number: all accounts in one share it.
pub fn read_account(
    id: AccountId,
    bytes: &[u8],
    assets: &[Arc<Asset>],
    secrets: &Secrets,
) -> Result<Account, Malformed> {
    let asset_id = read_account_asset(bytes)?;
    let asset = assets.get(asset_id.index()).ok_or(Malformed("asset of an account"))?;
    let record: AccountRecord =
        serde_json::from_slice(&bytes[ACCOUNT_HEAD_BYTES..]).map_err(|_| Malformed("account"))?;
    let uuid = record.uuid.into_bytes();
    let open = |field, token: Option<Sealed>| token.map(|token| token.open(secrets, &uuid, field)).transpose();
    Ok(Account {
        id,
        uuid,
        username: record.username,
        ilp_address: record.ilp_address.into(),
        ilp_address_generated: record.ilp_address_generated,
        asset: asset.clone(),
        asset_id,
        routing_relation: RoutingRelation::parse(&record.routing_relation).ok_or(Malformed("routing relation"))?,
        limits: AccountLimits {
            packet_amount_max: record.packet_amount_max,
            balance_min: record.balance_min,
            balance_max: record.balance_max,
            amount_per_minute: record.amount_per_minute,
            packets_per_minute: record.packets_per_minute,
            spread: Share::from_attos(record.spread_attos.unwrap_or(0)).ok_or(Malformed("spread"))?,
        }
        .into(),
        round_trip_time_ms: record.round_trip_time_ms,
        settlement: SettlementRule {
            threshold: record.settle_threshold,
            to: record.settle_to,
            engine_url: record.settlement_engine_url,
        }
        .into(),
        links: PackedLinks::from(Links {
            http_url: record.http_url,
            http_incoming_token: open(field::HTTP_INCOMING_TOKEN, record.http_incoming_token)?,
            http_outgoing_token: open(field::HTTP_OUTGOING_TOKEN, record.http_outgoing_token)?,
            btp_url: record.btp_url,
            btp_incoming_token: open(field::BTP_INCOMING_TOKEN, record.btp_incoming_token)?,
            btp_outgoing_token: open(field::BTP_OUTGOING_TOKEN, record.btp_outgoing_token)?,
        }),
        created_at_ms: record.created_at_ms,
    })
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |character: u8| char::from(character).to_digit(16).map(|value| value as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = Box<str>> {
        ".{0,40}".prop_map(Box::from)
    }

    prop_compose! {
        fn links()(
            http_url in proptest::option::of(text()),
            http_incoming_token in proptest::option::of(text()),
            http_outgoing_token in proptest::option::of(text()),
            btp_url in proptest::option::of(text()),
            btp_incoming_token in proptest::option::of(text()),
            btp_outgoing_token in proptest::option::of(text()),
        ) -> Links {
            Links {
                http_url,
                http_incoming_token,
                http_outgoing_token,
                btp_url,
                btp_incoming_token,
                btp_outgoing_token,
            }
        }
    }

    prop_compose! {
        fn limits()(
            packet_amount_max: u64,
            balance_min: Option<i64>,
            balance_max: Option<i64>,
            amount_per_minute: Option<u64>,
            packets_per_minute: Option<u32>,
            spread_attos in prop_oneof![Just(0), 0..Share::ONE_ATTOS],
        ) -> AccountLimits {
            AccountLimits {
                packet_amount_max,
                balance_min,
                balance_max,
                amount_per_minute,
                packets_per_minute,
                spread: Share::from_attos(spread_attos).unwrap(),
            }
        }
    }

    prop_compose! {
        fn accounts()(
            id: u32,
            uuid: [u8; 16],
            username in text(),
            ilp_address in text(),
            ilp_address_generated: bool,
            asset_id in 0..3u16,
            relation in 0..4usize,
            limits in limits(),
            round_trip_time_ms: u32,
            (threshold, to) in any::<(Option<i64>, Option<i64>)>(),
            engine_url in proptest::option::of(text()),
            links in links(),
            created_at_ms: u64,
        ) -> Account {
            Account {
                id: AccountId::new(id),
                uuid,
                username,
                ilp_address: ilp_address.into(),
                ilp_address_generated,
                asset: assets()[usize::from(asset_id)].clone(),
                asset_id: AssetId::new(asset_id),
                routing_relation: RoutingRelation::ALL[relation],
                limits: limits.into(),
                round_trip_time_ms,
                settlement: SettlementRule { threshold, to, engine_url }.into(),
                links: links.into(),
                created_at_ms,
            }
        }
    }

    fn assets() -> Vec<Arc<Asset>> {
        [("ABC", 9), ("ABC", 2), ("XYZ", 255)]
            .map(|(code, scale)| {
                Arc::new(Asset {
                    code: code.into(),
                    scale,
                })
            })
            .into()
    }

    proptest! {
        #[test]
        fn an_account_comes_back_as_it_went(one in accounts()) {
            let secrets = Secrets::new(&[7; 32]);
            let bytes = account(&one, &secrets);
            prop_assert_eq!(read_account_asset(&bytes).unwrap(), one.asset_id);
            let read = read_account(one.id, &bytes, &assets(), &secrets).unwrap();
            prop_assert!(read.links == one.links, "links");
            prop_assert_eq!(read, one);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, layout in 0..3u8) {
            let secrets = Secrets::new(&[7; 32]);
            let with_head = [&[layout, 0, 0], bytes.as_slice()].concat();
            for bytes in [&bytes, &with_head] {
                let _ = read_account(AccountId::new(0), bytes, &assets(), &secrets);
                let _ = (read_asset(bytes), read_amount(bytes), read_account_key(bytes), read_asset_key(bytes));
                let _ = (read_heard(bytes), read_learned(bytes, bytes));
                let _ = (read_settlement(bytes, bytes), read_settling(bytes), read_balance(bytes));
                let _ = (read_received_key(bytes), read_received(bytes), read_remainder(bytes));
                let _ = (read_told_key(bytes), read_told(bytes));
            }
        }

        #[test]
        fn keys_and_amounts_come_back(id: u32, asset_id: u16, value: i128, scale: u8, code in text()) {
            prop_assert_eq!(read_account_key(&account_key(AccountId::new(id))), Ok(AccountId::new(id)));
            prop_assert_eq!(read_asset_key(&asset_key(AssetId::new(asset_id))), Ok(AssetId::new(asset_id)));
            prop_assert_eq!(read_amount(&amount(value)), Ok(value));
            let one = Asset { code: code.into(), scale };
            prop_assert_eq!(read_asset(&asset(&one)), Ok(one));
        }

        #[test]
        fn what_neighbours_told_comes_back(
            id: u32,
            table_id: TableId,
            epoch: u32,
            prefix in text(),
            path: Vec<u8>,
            auth: [u8; AUTH_BYTES],
        ) {
            prop_assert_eq!(read_heard(&heard(&table_id, epoch)), Ok((table_id, epoch)));
            let id = AccountId::new(id);
            let route = LearnedRoute { prefix: (*prefix).into(), path: path.into(), auth };
            prop_assert_eq!(read_learned(&learned_key(id, &prefix), &learned(&route)), Ok((id, route)));
        }

        #[test]
        fn a_settlement_comes_back(
            id: u32,
            (number, uuid, amount, scale) in any::<(u64, [u8; 16], u64, u8)>(),
            state in 0..5usize,
            (attempts, created_ms) in any::<(u32, u64)>(),
            (last_attempt_ms, ended_ms) in any::<(Option<u64>, Option<u64>)>(),
            (sent_to, last_error) in (proptest::option::of((text(), any::<u64>())), proptest::option::of(text())),
        ) {
            let one = Settlement {
                number: SettlementNumber::new(number),
                id: uuid,
                account: AccountId::new(id),
                amount,
                scale,
                state: SettlementState::ALL[state],
                sent_to: sent_to.map(|(engine, since_ms)| SentTo { engine, since_ms }),
                attempts,
                created_ms,
                last_attempt_ms,
                ended_ms,
                last_error,
            };
            let (key, value) = (settlement_key(one.account, one.number), settlement(&one));
            prop_assert_eq!(read_settling(&settling(&one)), Ok((one.account, one.state.is_open())));
            prop_assert_eq!(read_settlement(&key, &value), Ok(one));
            prop_assert_eq!(
                read_settlement(&key, &[&[SETTLEMENT_LAYOUT + 1], &value[1..]].concat()),
                Err(Malformed("layout of a settlement"))
            );
        }

        #[test]
        fn what_engines_brought_and_know_comes_back(
            (id, key, input) in any::<(u32, [u8; 32], [u8; 32])>(),
            (status, answer) in any::<(u16, Vec<u8>)>(),
            (amount, scale) in any::<(u64, u8)>(),
            (uuid, announced) in any::<([u8; 16], bool)>(),
            task in 0..3usize,
            engine in text(),
            (booked, prepaid) in any::<(i128, i128)>(),
        ) {
            let id = AccountId::new(id);
            prop_assert_eq!(read_received_key(&received_key(id, &key)), Ok((id, key)));
            prop_assert_eq!(read_received(&received(&input, status, &answer)), Ok((input, status, answer.into())));
            let (_, left) = Remainder::default().credit(&amount.into(), scale, 20).unwrap_or_default();
            prop_assert_eq!(read_remainder(&remainder(&left)), Ok(left));
            let task = [None, Some(EngineTask::Create), Some(EngineTask::Delete)][task];
            let known = EngineAccount { uuid, announced, task };
            prop_assert_eq!(read_told(&told(&known)), Ok(known));
            prop_assert_eq!(read_told_key(&told_key(id, &engine)), Ok((id, engine)));
            let standing = Standing { booked, prepaid, settling: false };
            prop_assert_eq!(read_balance(&balance(&standing)), Ok(standing));
            prop_assert_eq!(read_balance(&super::amount(booked)), Ok(Standing::of(booked)), "of an older version");
        }

        #[test]
        fn hexadecimal_comes_back(bytes: Vec<u8>) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        }
    }

    #[test]
    fn hexadecimal_is_strict() {
        for text in ["0", "0g", "é", "+1"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
        assert_eq!(from_hex("00fFa5"), Some(vec![0, 255, 0xa5]));
    }

    #[test]
    fn a_field_of_a_newer_version_is_passed_over_and_a_missing_one_is_not() {
        let json = |more: &str| {
            let record = format!(
                r#"{{"uuid":"67e55044-10b1-426f-9247-bb680e5fe0c8","username":"alice","ilp_address":"test.alice",
                "ilp_address_generated":true,"routing_relation":"Child","packet_amount_max":18446744073709551615,
                "round_trip_time_ms":500{more}}}"#
            );
            [&[ACCOUNT_LAYOUT, 0, 1], record.as_bytes()].concat()
        };
        let secrets = Secrets::new(&[7; 32]);
        let read = |bytes: &[u8]| read_account(AccountId::new(5), bytes, &assets(), &secrets);
        let newer = read(&json(r#","created_at_ms":9,"of_a_newer_version":[1,2]"#)).unwrap();
        assert_eq!(*newer.limits, AccountLimits::default());
        assert_eq!((newer.asset, newer.created_at_ms), (assets()[1].clone(), 9));
        assert_eq!(read(&json("")), Err(Malformed("account")), "created_at_ms is missing");
        let spread = |attos: u64| read(&json(&format!(r#","created_at_ms":9,"spread_attos":{attos}"#)));
        assert_eq!(spread(1).unwrap().limits.spread.attos(), 1);
        assert_eq!(spread(Share::ONE_ATTOS), Err(Malformed("spread")));
        let mut unknown = json(r#","created_at_ms":9"#);
        unknown[0] = ACCOUNT_LAYOUT + 1;
        assert_eq!(read(&unknown), Err(Malformed("account layout")));
        unknown[..ACCOUNT_HEAD_BYTES].copy_from_slice(&[ACCOUNT_LAYOUT, 0, 3]);
        assert_eq!(read(&unknown), Err(Malformed("asset of an account")));
    }

    proptest! {
        #[test]
        fn a_token_moved_to_another_account_or_field_does_not_open(
            mut one in accounts(),
            other in accounts(),
            token in text(),
        ) {
            prop_assume!(one.uuid != other.uuid);
            let secrets = Secrets::new(&[7; 32]);
            one.links = Links { btp_incoming_token: Some(token), ..Links::default() }.into();
            let bytes = account(&one, &secrets);
            let json = String::from_utf8(bytes[ACCOUNT_HEAD_BYTES..].to_vec()).unwrap();
            let uuid = |account: &Account| uuid::Uuid::from_bytes(account.uuid).to_string();
            for moved in [
                json.replace(&uuid(&one), &uuid(&other)),
                json.replace(field::BTP_INCOMING_TOKEN, field::HTTP_INCOMING_TOKEN),
            ] {
                prop_assume!(moved != json);
                let bytes = [&bytes[..ACCOUNT_HEAD_BYTES], moved.as_bytes()].concat();
                prop_assert_eq!(
                    read_account(one.id, &bytes, &assets(), &secrets),
                    Err(Malformed("token"))
                );
            }
        }
    }
}
