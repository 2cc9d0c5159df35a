//! The calls about routes: which prefix leads to whom, and what the operator fixed.
//!
//! Owns reading and writing the maps of prefixes to user names. In a map answer every member is read as a prefix, so
//! nothing may be added to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::control::Control;
use crate::control::routes::Route;
use crate::ledger::directory::normalize_username;
use crate::shard::control::{ApiRequest, ApiResponse};
use crate::wire::address::check_prefix;

use super::json::{self, Json};
use super::problem::{Fault, Kind, Problem, json_answer, shorten, text_answer};
use super::read_json;
use super::stream::{Brackets, json_stream, write_json};

/// Routes that are read at once.
const ROUTES_PER_READ: usize = 512;

/// `GET /routes`
pub fn list(control: &Arc<Control>) -> ApiResponse {
    let control = Arc::clone(control);
    let mut after: Option<Arc<str>> = None;
    let read = move || {
        let routes = control.routes_after(after.as_deref(), ROUTES_PER_READ);
        if let Some((prefix, _)) = routes.last() {
            after = Some(Arc::clone(prefix));
        }
        routes
    };
    json_stream(Brackets::Object, read, |out, (prefix, account)| {
        write_json(out, &**prefix);
        out.push(b':');
        write_json(out, &*account.username);
    })
}

/// `PUT /routes/static`
pub fn replace(control: &Control, request: &ApiRequest) -> Result<ApiResponse, Problem> {
    let body = read_json(request)?;
    let Json::Object(members) = body else {
        let detail = format!("expected an object of prefixes and user names, found {}", body.kind());
        return Err(Problem::new(Kind::JsonData, detail));
    };
    let mut routes = BTreeMap::new();
    for (given, username) in members {
        let invalid = |rule: String| Problem::field(Kind::JsonData, &shorten(&given), Fault::Invalid, rule);
        let prefix = check_prefix(&given).map_err(|error| invalid(error.to_string()))?;
        let Json::Text(username) = username else {
            return Err(invalid(format!("expected a user name, found {}", username.kind())));
        };
        check_username(&username)?;
        if routes.insert(Arc::from(prefix), username).is_some() {
            return Err(invalid(
                "this prefix is there twice: one dot at the end does not count".to_owned(),
            ));
        }
    }
    Ok(json_answer(&RoutesAnswer(&control.set_static_routes(routes)?)))
}

/// `PUT /routes/static/:prefix`
pub fn set(control: &Control, request: &ApiRequest, prefix: &str) -> Result<ApiResponse, Problem> {
    let prefix = read_prefix(prefix)?;
    let text = std::str::from_utf8(&request.body)
        .map_err(|_| Problem::new(Kind::BadRequest, "the user name is not UTF-8"))?
        .trim();
    let username: Box<str> = if text.starts_with('"') {
        match json::parse(text.as_bytes())? {
            Json::Text(username) => username,
            other => {
                return Err(Problem::new(
                    Kind::JsonData,
                    format!("expected a user name, found {}", other.kind()),
                ));
            }
        }
    } else {
        text.into()
    };
    check_username(&username)?;
    let account = control.set_static_route(prefix, &username)?;
    Ok(text_answer(&account.username))
}

/// `DELETE /routes/static/:prefix`
pub fn remove(control: &Control, prefix: &str) -> Result<ApiResponse, Problem> {
    let account = control.remove_static_route(read_prefix(prefix)?)?;
    Ok(text_answer(&account.username))
}

fn read_prefix(text: &str) -> Result<Arc<str>, Problem> {
    let invalid = |error| Problem::new(Kind::BadRequest, format!("the prefix is invalid: {error}"));
    check_prefix(text).map(Arc::from).map_err(invalid)
}

/// A name that cannot be one is the caller's mistake; one that nobody has is not found.
fn check_username(username: &str) -> Result<(), Problem> {
    match normalize_username(username) {
        Ok(_) => Ok(()),
        Err(error) => {
            let detail = format!("the user name {:?} {error}", shorten(username));
            Err(Problem::new(Kind::BadRequest, detail))
        }
    }
}

struct RoutesAnswer<'a>(&'a [Route]);

impl Serialize for RoutesAnswer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(prefix, account)| (&**prefix, &*account.username)))
    }
}
