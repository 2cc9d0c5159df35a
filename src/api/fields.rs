//! The fields of an account as callers write them, and the rule that each must keep on its own.
//!
//! Owns turning a JSON object into an [`AccountEdit`] with every fault named, all at once. Both dialects are read:
//! numbers as numbers or as texts, relations in any case. Rules that concern more than one account are `control`'s.
//!
//! A missing field is kept (or gets its default in a new account); `null` is as good as missing in a new account and
//! clears the field of a known one.

use crate::control::Warning;
use crate::control::edit::{AccountEdit, Edit};

use super::json::Json;
use super::problem::{Fault, InvalidParam, Kind, Problem, shorten};
use super::values::{
    Refusal, asset_code, btp_token, btp_url, http_token, http_url, ilp_address, integer, not_negative, refuse,
    routing_relation, share, username,
};

/// What answers show in place of a secret. It is none itself: a caller who sends back what was read means "as it was".
pub const SECRET: &str = "SECRET";
/// Members of our own answers that a caller may send back unchanged; they are not set by anybody.
const READ_ONLY: [&str; 5] = ["id", "links", "tokens_set", "created_at", "warnings"];
/// What the operator alone decides about an account.
const OPERATORS_OWN: [&str; 13] = [
    "username",
    "ilp_address",
    "asset_code",
    "asset_scale",
    "max_packet_amount",
    "min_balance",
    "max_balance",
    "settlement_engine_url",
    "routing_relation",
    "round_trip_time",
    "amount_per_minute_limit",
    "packets_per_minute_limit",
    "spread",
];

/// Which call the fields are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Create,
    Update,
    /// What the holder may change: links and when to settle.
    Settings,
}

/// What a caller said about an account.
pub struct AccountFields {
    /// Normalized. Always there for a new account.
    pub username: Option<String>,
    pub edit: AccountEdit,
    pub warnings: Vec<Warning>,
}

/// Reads the object of a call that creates or changes an account.
pub fn read_account(body: Json, purpose: Purpose) -> Result<AccountFields, Problem> {
    let Json::Object(members) = body else {
        return Err(Problem::new(
            Kind::JsonData,
            format!("expected an object, found {}", body.kind()),
        ));
    };
    let mut reader = Reader::new(purpose);
    for (name, value) in members {
        reader.read(&name, value);
    }
    reader.finish()
}

struct Reader {
    purpose: Purpose,
    fields: AccountFields,
    /// The password in the URL that we dial, if there is one.
    btp_password: Option<Box<str>>,
    faults: Vec<(InvalidParam, String)>,
}

impl Reader {
    fn new(purpose: Purpose) -> Self {
        let fields = AccountFields {
            username: None,
            edit: AccountEdit::default(),
            warnings: vec![],
        };
        Self {
            purpose,
            fields,
            btp_password: None,
            faults: vec![],
        }
    }

    fn read(&mut self, name: &str, value: Json) {
        if self.purpose == Purpose::Settings && OPERATORS_OWN.contains(&name) {
            self.warn(name, "is not among the settings and was ignored");
            return;
        }
        match name {
            "username" => self.fields.username = self.required(name, value, username),
            "ilp_address" => self.fields.edit.ilp_address = self.edit(name, value, ilp_address),
            "asset_code" => self.fields.edit.asset_code = self.required(name, value, asset_code),
            "asset_scale" => self.fields.edit.asset_scale = self.required(name, value, integer),
            "max_packet_amount" => self.fields.edit.packet_amount_max = self.edit(name, value, integer),
            "min_balance" => self.fields.edit.balance_min = self.edit(name, value, integer),
            "max_balance" => self.fields.edit.balance_max = self.edit(name, value, integer),
            "ilp_over_http_url" => self.fields.edit.http_url = self.edit(name, value, http_url),
            "ilp_over_http_incoming_token" => {
                self.fields.edit.http_incoming_token = self.token(name, value, http_token);
            }
            "ilp_over_http_outgoing_token" => {
                self.fields.edit.http_outgoing_token = self.token(name, value, http_token);
            }
            "ilp_over_btp_url" => {
                let edit = self.edit(name, value, btp_url);
                if let Edit::Set((_, password)) = &edit {
                    self.btp_password.clone_from(password);
                }
                self.fields.edit.btp_url = match edit {
                    Edit::Keep => Edit::Keep,
                    Edit::Clear => Edit::Clear,
                    Edit::Set((url, _)) => Edit::Set(url),
                };
            }
            "ilp_over_btp_incoming_token" => self.fields.edit.btp_incoming_token = self.token(name, value, btp_token),
            "ilp_over_btp_outgoing_token" => self.fields.edit.btp_outgoing_token = self.token(name, value, btp_token),
            "settlement_engine_url" => self.fields.edit.settlement_engine_url = self.edit(name, value, http_url),
            "settle_threshold" => self.fields.edit.settle_threshold = self.edit(name, value, integer),
            "settle_to" if self.purpose == Purpose::Settings => {
                self.fields.edit.settle_to = self.edit(name, value, not_negative);
            }
            "settle_to" => self.fields.edit.settle_to = self.edit(name, value, integer),
            "routing_relation" => self.fields.edit.routing_relation = self.edit(name, value, routing_relation),
            "round_trip_time" => self.fields.edit.round_trip_time_ms = self.edit(name, value, integer),
            "amount_per_minute_limit" => self.fields.edit.amount_per_minute = self.edit(name, value, integer),
            "packets_per_minute_limit" => self.fields.edit.packets_per_minute = self.edit(name, value, integer),
            "spread" => self.fields.edit.spread = self.edit(name, value, share),
            known if READ_ONLY.contains(&known) => {}
            unknown => self.warn(&shorten(unknown), "is not known and was ignored"),
        }
    }

    fn finish(mut self) -> Result<AccountFields, Problem> {
        if self.purpose == Purpose::Create {
            self.require("username", self.fields.username.is_some());
            self.require("asset_code", self.fields.edit.asset_code.is_some());
            self.require("asset_scale", self.fields.edit.asset_scale.is_some());
        }
        if !self.faults.is_empty() {
            return Err(Problem::fields(Kind::JsonData, self.faults));
        }
        if let Some(password) = self.btp_password
            && self.fields.edit.btp_outgoing_token.value().is_none()
        {
            self.fields.edit.btp_outgoing_token = Edit::Set(password);
        }
        Ok(self.fields)
    }

    /// Notes that a field is missing, unless it is there and was refused.
    fn require(&mut self, name: &str, is_there: bool) {
        if !is_there && !self.faults.iter().any(|(field, _)| *field.name == *name) {
            self.faults.push((
                InvalidParam {
                    name: name.into(),
                    fault: Fault::Missing,
                },
                String::new(),
            ));
        }
    }

    /// A field that has a default or may be empty.
    fn edit<T>(&mut self, name: &str, value: Json, read: fn(&Json) -> Result<T, Refusal>) -> Edit<T> {
        match (value, self.purpose) {
            (Json::Null, Purpose::Create) => Edit::Keep,
            (Json::Null, Purpose::Update | Purpose::Settings) => Edit::Clear,
            (value, _) => self.note(name, read(&value)).map_or(Edit::Keep, Edit::Set),
        }
    }

    /// A field that every account has, and that has no default.
    fn required<T>(&mut self, name: &str, value: Json, read: fn(&Json) -> Result<T, Refusal>) -> Option<T> {
        match (value, self.purpose) {
            (Json::Null, Purpose::Create) => None,
            // The path says it already.
            (Json::Null, Purpose::Update) if name == "username" => None,
            (Json::Null, _) => self.note(name, refuse(Fault::Invalid, "cannot be cleared")),
            (value, _) => self.note(name, read(&value)),
        }
    }

    fn token(&mut self, name: &str, value: Json, read: fn(&Json) -> Result<Box<str>, Refusal>) -> Edit<Box<str>> {
        if value == Json::Text(SECRET.into()) {
            // Else a caller who sends back what was read, or copies it to another node, would let everybody in.
            match self.purpose {
                Purpose::Update | Purpose::Settings => {
                    self.warn(name, "was kept: SECRET is what answers show in place of a token")
                }
                Purpose::Create => {
                    let rule = "SECRET is what answers show in place of a token, and is none";
                    self.note::<()>(name, refuse(Fault::Invalid, rule));
                }
            }
            return Edit::Keep;
        }
        self.edit(name, value, read)
    }

    fn note<T>(&mut self, name: &str, result: Result<T, Refusal>) -> Option<T> {
        result
            .map_err(|(fault, rule)| {
                self.faults.push((
                    InvalidParam {
                        name: name.into(),
                        fault,
                    },
                    rule,
                ))
            })
            .ok()
    }

    fn warn(&mut self, field: &str, message: &str) {
        self.fields.warnings.push(Warning {
            field: field.into(),
            message: message.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    fn read(body: &str, purpose: Purpose) -> Result<AccountFields, String> {
        let body = json::parse(body.as_bytes()).unwrap();
        read_account(body, purpose).map_err(|problem| {
            let response = problem.into_response(Default::default());
            let body: serde_json::Value = serde_json::from_slice(&response.body.into_bytes()).unwrap();
            let params = body["invalid-params"].as_array().cloned().unwrap_or_default();
            let param = |param: &serde_json::Value| {
                format!(
                    "{} {}",
                    param["name"].as_str().unwrap(),
                    param["type"].as_str().unwrap()
                )
            };
            params.iter().map(param).collect::<Vec<_>>().join(", ")
        })
    }

    #[test]
    fn all_faults_at_once() {
        use Purpose::{Create, Update};
        for (purpose, body, faults) in [
            (
                Create,
                "{}",
                "username missing, asset_code missing, asset_scale missing",
            ),
            (
                Create,
                r#"{"username":null,"asset_code":"A","asset_scale":1}"#,
                "username missing",
            ),
            (
                Create,
                r#"{"username":"a","asset_code":7,"asset_scale":300,"min_balance":1.5,"round_trip_time":-1}"#,
                "username invalid, asset_code invalid, asset_scale out_of_range, min_balance invalid, \
                 round_trip_time out_of_range",
            ),
            (
                Create,
                r#"{"username":"al","asset_code":"A","asset_scale":1,"ilp_address":"peer.a","routing_relation":"x",
                    "ilp_over_http_url":"x","ilp_over_http_incoming_token":""}"#,
                "ilp_address invalid, routing_relation invalid, ilp_over_http_url invalid, \
                 ilp_over_http_incoming_token invalid",
            ),
            (
                Update,
                r#"{"asset_code":null,"asset_scale":null}"#,
                "asset_code invalid, asset_scale invalid",
            ),
        ] {
            assert_eq!(read(body, purpose).err().as_deref(), Some(faults), "{body}");
        }
        assert_eq!(read("[]", Create).err().as_deref(), Some(""));
    }

    #[test]
    fn null_means_missing_or_clear() {
        let base = r#""username":"alice","asset_code":"ABC","asset_scale":"9""#;
        let body = format!(r#"{{{base},"min_balance":null,"ilp_address":null,"max_packet_amount":"100"}}"#);
        let created = read(&body, Purpose::Create).unwrap();
        assert_eq!(created.username.as_deref(), Some("alice"));
        assert_eq!(created.edit.asset_scale, Some(9));
        assert!(created.edit.balance_min == Edit::Keep && created.edit.ilp_address == Edit::Keep);
        assert!(created.edit.packet_amount_max == Edit::Set(100));
        let updated = read(&body, Purpose::Update).unwrap();
        assert!(updated.edit.balance_min == Edit::Clear && updated.edit.ilp_address == Edit::Clear);
    }

    #[test]
    fn a_password_in_the_url_becomes_the_token() {
        for (body, token) in [
            (r#"{"ilp_over_btp_url":"ws://u:secret@h/"}"#, Edit::Set("secret".into())),
            (
                r#"{"ilp_over_btp_outgoing_token":"other","ilp_over_btp_url":"ws://u:secret@h/"}"#,
                Edit::Set("other".into()),
            ),
            (r#"{"ilp_over_btp_url":"ws://u@h/"}"#, Edit::Keep),
            (
                r#"{"ilp_over_btp_outgoing_token":null,"ilp_over_btp_url":"ws://h/"}"#,
                Edit::Clear,
            ),
        ] {
            let fields = read(body, Purpose::Update).unwrap();
            assert!(fields.edit.btp_outgoing_token == token, "{body}");
            let url = fields.edit.btp_url.value().unwrap();
            assert!(!url.contains("secret"), "{url}");
        }
    }

    #[test]
    fn what_was_read_may_be_sent_back() {
        let body = r#"{"id":"x","links":{},"tokens_set":[],"created_at":"x","warnings":[],"colour":"red",
            "ilp_over_http_incoming_token":"SECRET"}"#;
        let fields = read(body, Purpose::Update).unwrap();
        assert!(
            fields.edit.http_incoming_token == Edit::Keep,
            "or everybody could log in as SECRET"
        );
        let about: Vec<&str> = fields.warnings.iter().map(|warning| &*warning.field).collect();
        assert_eq!(about, ["colour", "ilp_over_http_incoming_token"]);
    }
}
