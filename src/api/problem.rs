//! What a refused call is told (RFC 7807, `application/problem+json`), and how answers are put together.
//!
//! Owns the list of problems: each has a name here, and one place gives it its status, title and code. Callers rely on
//! the codes. Details name the field and the rule, and never a secret or the inside of the program.

use serde::{Serialize, Serializer};

use crate::control::payments::Reason;
use crate::control::{BackupError, ControlError};
use crate::shard::control::ApiResponse;
use crate::wire::timestamp::Timestamp;

use super::json::InvalidJson;
use super::payments::PaymentAnswer;

/// Every way to refuse a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    BadRequest,
    JsonSyntax,
    JsonData,
    JsonEof,
    Unauthorized,
    NotFound,
    AccountNotFound,
    MethodNotAllowed,
    DuplicateUsername,
    SecondParent,
    DuplicateAddress,
    BalanceNotZero,
    AssetInUse,
    PacketsInFlight,
    RateNotHeld,
    RateMoved,
    DirectoryExists,
    BackupInProgress,
    IdempotencyConflict,
    SettlementPending,
    SettlementSent,
    SettlementNotSent,
    SettlementEnded,
    SettlementNotFound,
    NothingToSettle,
    NoSettlementRule,
    NoSettlementEngine,
    InvalidAccountId,
    PeerEngine,
    InvalidReceiver,
    ReceiverNotAllowed,
    ReceiverUnreachable,
    /// A payment did not complete.
    Payment(Reason),
    PayloadTooLarge,
    UnsupportedMediaType,
    UpgradeRequired,
    TooManyRequests,
    Internal,
    BackupFailed,
    NotReady,
}

impl Kind {
    /// Status, code, title, and the last part of the type's URI; without it the type is `about:blank`.
    const fn row(self) -> (u16, &'static str, &'static str, Option<&'static str>) {
        const EXISTS: &str = "Provided resource already exists";
        match self {
            Self::BadRequest => (400, "bad_request", "Bad Request", None),
            Self::JsonSyntax => (400, "json_syntax", "JSON Syntax Error", Some("json-syntax")),
            Self::JsonData => (400, "json_data", "JSON Data Error", Some("json-data")),
            Self::JsonEof => (400, "json_eof", "JSON Unexpected EOF", Some("json-eof")),
            Self::Unauthorized => (401, "unauthorized", "Unauthorized", None),
            Self::NotFound => (404, "not_found", "Not Found", None),
            Self::AccountNotFound => (
                404,
                "account_not_found",
                "Account Not Found",
                Some("accounts/account-not-found"),
            ),
            Self::MethodNotAllowed => (405, "method_not_allowed", "Method Not Allowed", None),
            Self::DuplicateUsername => (409, "duplicate_username", EXISTS, None),
            Self::SecondParent => (409, "second_parent", EXISTS, None),
            Self::DuplicateAddress => (409, "duplicate_address", EXISTS, None),
            Self::BalanceNotZero => (409, "balance_not_zero", "Conflict", None),
            Self::AssetInUse => (409, "asset_in_use", "Conflict", None),
            Self::PacketsInFlight => (409, "packets_in_flight", "Conflict", None),
            Self::RateNotHeld => (409, "rate_not_held", "Conflict", None),
            Self::RateMoved => (409, "rate_moved", "Conflict", None),
            Self::DirectoryExists => (409, "directory_exists", EXISTS, None),
            Self::BackupInProgress => (409, "backup_in_progress", "Conflict", None),
            Self::IdempotencyConflict => (409, "idempotency_conflict", "Idempotency Error", None),
            Self::SettlementPending => (409, "settlement_pending", "Conflict", None),
            Self::SettlementSent => (409, "settlement_sent", "Conflict", None),
            Self::SettlementNotSent => (409, "settlement_not_sent", "Conflict", None),
            Self::SettlementEnded => (409, "settlement_ended", "Conflict", None),
            Self::SettlementNotFound => (404, "settlement_not_found", "Not Found", None),
            Self::NothingToSettle => (409, "nothing_to_settle", "Conflict", None),
            Self::NoSettlementRule => (409, "no_settlement_rule", "Conflict", None),
            Self::NoSettlementEngine => (409, "no_settlement_engine", "Conflict", None),
            Self::InvalidAccountId => (400, "invalid_account_id", "Bad Request", None),
            Self::PeerEngine => (502, "peer_engine", "Bad Gateway", None),
            Self::InvalidReceiver => (400, "invalid_receiver", "Bad Request", None),
            Self::ReceiverNotAllowed => (400, "receiver_not_allowed", "Bad Request", None),
            Self::ReceiverUnreachable => (502, "receiver_unreachable", "Payment Failed", None),
            Self::Payment(Reason::Timeout) => (504, Reason::Timeout.as_str(), "Payment Failed", None),
            Self::Payment(reason) => (502, reason.as_str(), "Payment Failed", None),
            Self::PayloadTooLarge => (413, "payload_too_large", "Payload Too Large", None),
            Self::UnsupportedMediaType => (415, "unsupported_media_type", "Unsupported Media Type", None),
            Self::UpgradeRequired => (426, "upgrade_required", "Upgrade Required", None),
            Self::TooManyRequests => (429, "too_many_requests", "Too Many Requests", None),
            Self::Internal => (500, "internal", "Internal Server Error", None),
            Self::BackupFailed => (500, "backup_failed", "Internal Server Error", None),
            Self::NotReady => (503, "not_ready", "Service Unavailable", None),
        }
    }
}

/// One field that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct InvalidParam {
    pub name: Box<str>,
    #[serde(rename = "type")]
    pub fault: Fault,
}

/// What is wrong with a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Missing,
    Invalid,
    TooLong,
    OutOfRange,
    Immutable,
}

/// A refusal on its way to the caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    kind: Kind,
    detail: String,
    invalid_params: Vec<InvalidParam>,
    headers: Vec<(&'static str, String)>,
    /// Further members, for callers that know another shape of error besides this one.
    members: Vec<(&'static str, &'static str)>,
    /// How far the payment came that the call asked for.
    payment: Option<Box<PaymentAnswer>>,
    close: bool,
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            invalid_params: vec![],
            headers: vec![],
            members: vec![],
            payment: None,
            close: false,
        }
    }

    /// Some fields are wrong; the detail lists them all.
    pub fn fields(kind: Kind, fields: Vec<(InvalidParam, String)>) -> Self {
        let sentence = |(field, rule): &(InvalidParam, String)| match field.fault {
            Fault::Missing => format!("{} is missing", field.name),
            _ => format!("{}: {rule}", field.name),
        };
        let detail = fields.iter().map(sentence).collect::<Vec<_>>().join("; ");
        let invalid_params = fields.into_iter().map(|(field, _)| field).collect();
        Self {
            invalid_params,
            ..Self::new(kind, detail)
        }
    }

    /// One field is wrong.
    pub fn field(kind: Kind, name: &str, fault: Fault, rule: impl Into<String>) -> Self {
        Self::fields(
            kind,
            vec![(
                InvalidParam {
                    name: name.into(),
                    fault,
                },
                rule.into(),
            )],
        )
    }

    /// RFC 9110, section 11.6.1: a 401 says how to authenticate.
    pub fn unauthorized(detail: &str) -> Self {
        Self::new(Kind::Unauthorized, detail).with_header("www-authenticate", "Bearer")
    }

    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn with_member(mut self, name: &'static str, value: &'static str) -> Self {
        self.members.push((name, value));
        self
    }

    pub fn with_payment(mut self, payment: PaymentAnswer) -> Self {
        self.payment = Some(Box::new(payment));
        self
    }

    /// The connection is of no use after this answer.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub fn into_response(self, now: Timestamp) -> ApiResponse {
        /// In the order in which the members are written.
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: String,
            title: &'static str,
            status: u16,
            code: &'static str,
            detail: &'a str,
            datetime: String,
            #[serde(rename = "invalid-params", skip_serializing_if = "<[_]>::is_empty")]
            invalid_params: &'a [InvalidParam],
            #[serde(flatten, serialize_with = "serialize_members")]
            members: &'a [(&'static str, &'static str)],
            #[serde(skip_serializing_if = "Option::is_none")]
            ilp_code: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            payment: Option<&'a PaymentAnswer>,
        }
        fn serialize_members<S: Serializer>(
            members: &&[(&'static str, &'static str)],
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            serializer.collect_map(members.iter().copied())
        }
        let (status, code, title, name) = self.kind.row();
        let body = Body {
            r#type: match name {
                Some(name) => format!("https://errors.interledger.org/http-api/{name}"),
                None => "about:blank".to_owned(),
            },
            title,
            status,
            code,
            detail: &self.detail,
            datetime: now.to_rfc3339(),
            invalid_params: &self.invalid_params,
            members: &self.members,
            ilp_code: self.payment.as_ref().and_then(|payment| payment.ilp_code.as_deref()),
            payment: self.payment.as_deref(),
        };
        let mut headers = vec![("content-type", "application/problem+json".to_owned())];
        headers.extend(self.headers);
        ApiResponse {
            status,
            headers,
            body: to_json(&body).into(),
            close: self.close,
        }
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        let kind = match &error {
            ControlError::AccountNotFound { .. } => Kind::AccountNotFound,
            ControlError::RouteNotFound | ControlError::RateNotFound { .. } => Kind::NotFound,
            ControlError::RateNotHeld { .. } => Kind::RateNotHeld,
            ControlError::RateMoved { .. } => Kind::RateMoved,
            ControlError::DuplicateUsername { .. } => Kind::DuplicateUsername,
            ControlError::SecondParent => Kind::SecondParent,
            ControlError::DuplicateAddress { .. } => Kind::DuplicateAddress,
            ControlError::InvalidAddress { rule } => {
                return Self::field(Kind::JsonData, "ilp_address", Fault::Invalid, rule);
            }
            ControlError::AssetInUse => Kind::AssetInUse,
            ControlError::BalanceNotZero { .. } | ControlError::PrepaidNotZero { .. } => Kind::BalanceNotZero,
            ControlError::SettlementPending => Kind::SettlementPending,
            ControlError::SettlementSent | ControlError::SettlementCalled | ControlError::SettlementKeyForgotten => {
                Kind::SettlementSent
            }
            ControlError::SettlementNotSent => Kind::SettlementNotSent,
            ControlError::SettlementEnded { .. } => Kind::SettlementEnded,
            ControlError::SettlementNotFound => Kind::SettlementNotFound,
            ControlError::NothingToSettle => Kind::NothingToSettle,
            ControlError::NoSettlementRule => Kind::NoSettlementRule,
            ControlError::NoSettlementEngine => Kind::NoSettlementEngine,
            ControlError::NoAccountToSettle => Kind::AccountNotFound,
            ControlError::SettlementKeyConflict => Kind::IdempotencyConflict,
            ControlError::SettlementTooLarge => {
                return Self::field(Kind::JsonData, "amount", Fault::OutOfRange, error.to_string());
            }
            ControlError::PacketsInFlight => Kind::PacketsInFlight,
            ControlError::TooManyAssets
            | ControlError::TooManyAccounts
            | ControlError::TooManyRoutes { .. }
            | ControlError::TooManyEngines { .. } => Kind::BadRequest,
            ControlError::NotReady { .. } => Kind::NotReady,
            ControlError::Internal(reason) => {
                // The caller is not told what is inside; the operator is.
                tracing::error!(target: "api", %reason, "a change was refused by the store");
                return Self::new(Kind::Internal, "the change could not be made; nothing was changed");
            }
        };
        let problem = Self::new(kind, error.to_string());
        if kind == Kind::NotReady {
            problem.with_header("retry-after", "5")
        } else {
            problem
        }
    }
}

impl From<BackupError> for Problem {
    fn from(error: BackupError) -> Self {
        let directory = |kind, rule: String| Self::field(kind, "directory", Fault::Invalid, rule);
        match error {
            BackupError::Directory(rule) => directory(Kind::BadRequest, rule),
            BackupError::Exists => directory(Kind::DirectoryExists, error.to_string()),
            BackupError::Busy => Self::new(Kind::BackupInProgress, error.to_string()).with_header("retry-after", "5"),
            // The operator chose the folder, and has to know what is wrong with its disk.
            BackupError::Failed(_) | BackupError::Open(_) => Self::new(Kind::BackupFailed, error.to_string()),
            BackupError::Store(error) => ControlError::from(error).into(),
        }
    }
}

impl From<InvalidJson> for Problem {
    fn from(error: InvalidJson) -> Self {
        let detail = error.to_string();
        match error {
            InvalidJson::Eof => Self::new(Kind::JsonEof, detail),
            InvalidJson::Syntax(_) | InvalidJson::TooDeep => Self::new(Kind::JsonSyntax, detail),
            InvalidJson::DuplicateMember(name) => Self::field(
                Kind::JsonData,
                &shorten(&name),
                Fault::Invalid,
                "this member is there twice",
            ),
        }
    }
}

/// 200 with a JSON body.
pub fn json_answer(body: &impl Serialize) -> ApiResponse {
    json_answer_with_status(200, body)
}

pub fn json_answer_with_status(status: u16, body: &impl Serialize) -> ApiResponse {
    let headers = vec![("content-type", "application/json".to_owned())];
    ApiResponse {
        status,
        headers,
        body: to_json(body).into(),
        close: false,
    }
}

/// 200 with a text.
pub fn text_answer(text: &str) -> ApiResponse {
    let headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
    ApiResponse {
        status: 200,
        headers,
        body: text.as_bytes().to_vec().into(),
        close: false,
    }
}

fn to_json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("our own answers have texts for names and finite numbers")
}

/// As much of what a caller sent as an answer may repeat.
pub fn shorten(text: &str) -> Box<str> {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_their_order() {
        let now = Timestamp::from_millis(1_767_607_872_131);
        let missing = InvalidParam {
            name: "asset_scale".into(),
            fault: Fault::Missing,
        };
        let range = InvalidParam {
            name: "min_balance".into(),
            fault: Fault::OutOfRange,
        };
        let fields = vec![(missing, String::new()), (range, "too far".to_owned())];
        let response = Problem::fields(Kind::JsonData, fields).into_response(now);
        assert_eq!(response.status, 400);
        assert_eq!(
            response.headers,
            [("content-type", "application/problem+json".to_owned())]
        );
        assert_eq!(
            String::from_utf8(response.body.into_bytes()).unwrap(),
            r#"{"type":"https://errors.interledger.org/http-api/json-data","title":"JSON Data Error","status":400,"#
                .to_owned()
                + r#""code":"json_data","detail":"asset_scale is missing; min_balance: too far","#
                + r#""datetime":"2026-01-05T10:11:12.131Z","invalid-params":[{"name":"asset_scale","type":"missing"},"#
                + r#"{"name":"min_balance","type":"out_of_range"}]}"#
        );
        let response = Problem::unauthorized("no").into_response(now);
        assert!(response.headers.contains(&("www-authenticate", "Bearer".to_owned())));
        assert!(
            !String::from_utf8(response.body.into_bytes())
                .unwrap()
                .contains("invalid-params")
        );
    }
}
