//! The calls about routes: which prefix leads to whom and why, and what the operator fixed.
//!
//! Owns reading and writing the maps of prefixes to user names, and how the ways behind them look in an answer. In a map
//! answer every member is read as a prefix, so nothing may be added to it; what there is to say beside it has another
//! shape.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::control::Control;
use crate::control::explain::{Explanation, Outcome, PacketRules, WayExplained};
use crate::control::routes::{Route, Way, has_link};
use crate::ledger::directory::normalize_username;
use crate::routing::table::Origin;
use crate::shard::control::{ApiRequest, ApiResponse};
use crate::wire::address::{Address, check_prefix};

use super::json::{self, Json};
use super::problem::{Fault, Kind, Problem, json_answer, shorten, text_answer};
use super::query::{bad_parameter, parameter};
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

/// `GET /routes?detail=true`
pub fn list_in_detail(control: &Arc<Control>) -> Result<ApiResponse, Problem> {
    let control = Arc::clone(control);
    let mut after: Option<Arc<str>> = None;
    let read = move || {
        let found = control.ways_after(after.as_deref(), ROUTES_PER_READ);
        if let Some((prefix, _)) = found.last() {
            after = Some(Arc::clone(prefix));
        }
        found
    };
    Ok(json_stream(Brackets::Array, read, |out, (prefix, ways)| {
        let ways = ways.iter().enumerate();
        let candidates = ways.map(|(place, way)| CandidateAnswer::new(way, place == 0, None));
        write_json(
            out,
            &PrefixAnswer {
                prefix,
                candidates: candidates.collect(),
            },
        );
    }))
}

/// `GET /routes/explain`
pub fn explain(control: &Control, rules: PacketRules, query: &str) -> Result<ApiResponse, Problem> {
    let missing = || Problem::field(Kind::BadRequest, "destination", Fault::Missing, "");
    let destination = parameter(query, "destination").ok_or_else(missing)?;
    let address =
        Address::parse(destination.as_bytes()).map_err(|error| bad_parameter("destination", &error.to_string()))?;
    let from = parameter(query, "from");
    if let Some(username) = &from {
        check_username(username)?;
    }
    let explanation = control.explain(address, from.as_deref(), rules)?;
    Ok(json_answer(&ExplanationAnswer::new(&destination, &explanation)))
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

/// A prefix and every way for it.
#[derive(Serialize)]
struct PrefixAnswer<'a> {
    prefix: &'a str,
    /// Best first.
    candidates: Vec<CandidateAnswer<'a>>,
}

/// One way.
#[derive(Serialize)]
struct CandidateAnswer<'a> {
    username: &'a str,
    /// `static`: the operator said so; `account`: its own address, or the parent's default route; `learned`: it told us.
    origin: &'static str,
    /// What the account was to us when it told us.
    #[serde(skip_serializing_if = "Option::is_none")]
    routing_relation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hops: Option<u8>,
    /// The nodes in between, the nearest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a [String]>,
    /// `up` or `down`; null: the account has no link.
    link: Option<&'static str>,
    in_force: bool,
    /// Why another one is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<&'a str>,
}

impl<'a> CandidateAnswer<'a> {
    fn new(way: &'a Way, in_force: bool, behind: Option<&'a str>) -> Self {
        let (origin, learned) = match way.candidate.origin {
            Origin::Fixed => ("static", None),
            Origin::Own => ("account", None),
            Origin::Learned { relation, hops } => ("learned", Some((relation.as_str(), hops))),
        };
        let link = if way.candidate.is_up { "up" } else { "down" };
        Self {
            username: &way.account.username,
            origin,
            routing_relation: learned.map(|(relation, _)| relation),
            hops: learned.map(|(_, hops)| hops),
            path: way.path.as_deref(),
            link: has_link(&way.account).then_some(link),
            in_force,
            behind,
        }
    }
}

/// Where a packet would go.
#[derive(Serialize)]
struct ExplanationAnswer<'a> {
    destination: &'a str,
    from: Option<&'a str>,
    outcome: &'static str,
    /// To whom it goes, or would if it was not refused.
    next_hop: Option<&'a str>,
    /// What the Reject would say.
    code: Option<String>,
    message: Option<&'static str>,
    reasons: &'a [String],
    /// The prefix that decides.
    prefix: Option<&'a str>,
    candidates: Vec<CandidateAnswer<'a>>,
    shorter: Vec<ShorterAnswer<'a>>,
}

#[derive(Serialize)]
struct ShorterAnswer<'a> {
    prefix: &'a str,
    username: &'a str,
}

impl<'a> ExplanationAnswer<'a> {
    fn new(destination: &'a str, explanation: &'a Explanation) -> Self {
        let (outcome, refusal) = match &explanation.outcome {
            Outcome::Forwarded => ("forwarded", None),
            Outcome::Local => ("local", None),
            Outcome::Refused(reason) => ("refused", Some(reason)),
        };
        let candidate = |(place, explained): (usize, &'a WayExplained)| {
            CandidateAnswer::new(&explained.way, place == 0, explained.behind.as_deref())
        };
        let shorter = explanation.shorter.iter();
        Self {
            destination,
            from: explanation.from.as_ref().map(|from| &*from.username),
            outcome,
            next_hop: explanation.next_hop.as_ref().map(|next_hop| &*next_hop.username),
            code: refusal.map(|reason| reason.code().to_string()),
            message: refusal.map(|reason| reason.message()),
            reasons: &explanation.reasons,
            prefix: explanation.prefix.as_deref(),
            candidates: explanation.ways.iter().enumerate().map(candidate).collect(),
            shorter: shorter
                .map(|(prefix, account)| ShorterAnswer {
                    prefix,
                    username: &account.username,
                })
                .collect(),
        }
    }
}

struct RoutesAnswer<'a>(&'a [Route]);

impl Serialize for RoutesAnswer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(prefix, account)| (&**prefix, &*account.username)))
    }
}
