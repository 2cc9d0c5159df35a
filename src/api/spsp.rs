//! What a payer asks before it pays: where to, and which secret goes with it (SPSP, RFC 9).
//!
//! Owns the answer. Address and secret are made afresh for every query and follow from the node's seed, so nothing is
//! stored and a restart loses none of them. Anybody may ask, also a page in a browser: hence the CORS headers.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::client::spsp::{Answer, OwnServer};
use crate::control::{Control, ControlError};
use crate::ledger::account::Account;
use crate::shard::clock;
use crate::shard::control::{ApiResponse, Body};
use crate::stream::secret::{TOKEN_RANDOM_BYTES, TokenMaker};
use crate::wire::address::Address;
use crate::wire::base64;

use super::Settings;
use super::path::Resource;
use super::problem::{Kind, Problem, json_answer, shorten};

/// What a browser must be told before it lets a page see the answer.
pub const CORS_HEADERS: [(&str, &str); 2] = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-headers", "web-monetization-id"),
];

/// How long a payer may use an answer, in seconds.
const AGE_MAX: &str = "max-age=60";

/// The same answers for this node's own payments, without a connection to itself. `address` is where it listens.
pub fn own_server(control: Arc<Control>, settings: &Settings, address: SocketAddr) -> OwnServer {
    let tokens = settings.tokens.clone();
    let default = settings.default_spsp_account.clone();
    let answer = move |target: &str| {
        let (resource, _) = Resource::parse(target)?;
        let answered = match resource {
            Resource::Spsp(username) => of_account(&control, &tokens, &username),
            Resource::Pay => of_node(&control, &tokens, default.as_deref()),
            _ => return None,
        };
        let response = answered.unwrap_or_else(|problem| problem.into_response(clock::wall()));
        let Body::Whole(body) = response.body else {
            return None;
        };
        let content_type = response.headers.into_iter().find(|(name, _)| *name == "content-type");
        Some(Answer {
            status: response.status,
            content_type: content_type.map(|(_, value)| value).unwrap_or_default(),
            body,
        })
    };
    OwnServer {
        address,
        answer: Box::new(answer),
    }
}

/// `GET /accounts/:username/spsp`
pub fn of_account(control: &Control, tokens: &TokenMaker, username: &str) -> Result<ApiResponse, Problem> {
    let account = control.find_account(username);
    let account = account.ok_or_else(|| {
        let username = shorten(username);
        invalid_receiver(Problem::from(ControlError::AccountNotFound { username }))
    })?;
    answer(tokens, &account)
}

/// `GET /.well-known/pay`: the account that the operator has chosen, by user name or id.
pub fn of_node(control: &Control, tokens: &TokenMaker, default: Option<&str>) -> Result<ApiResponse, Problem> {
    let account = default.and_then(|name| match uuid::Uuid::try_parse(name) {
        // An id is longer than any user name, so it cannot be one.
        Ok(id) => control.find_account_by_uuid(id.as_bytes()),
        Err(_) => control.find_account(name),
    });
    let none = || {
        invalid_receiver(Problem::new(
            Kind::NotFound,
            "this node receives nothing under its own name",
        ))
    };
    answer(tokens, &*account.ok_or_else(none)?)
}

fn answer(tokens: &TokenMaker, account: &Account) -> Result<ApiResponse, Problem> {
    #[derive(Serialize)]
    struct Receiver {
        destination_account: String,
        shared_secret: String,
    }
    let mut random = [0; TOKEN_RANDOM_BYTES];
    if let Err(error) = getrandom::fill(&mut random) {
        tracing::error!(target: "api", %error, "the system gives no random bytes");
        return Err(Problem::new(Kind::Internal, "no secret can be made"));
    }
    let issued = tokens.issue(&account.uuid, random, None);
    let destination_account = format!("{}.{}", account.ilp_address, issued.token);
    if Address::parse(destination_account.as_bytes()).is_err() {
        let problem = Problem::new(Kind::NotFound, "the account's address is too long to be paid at");
        return Err(invalid_receiver(problem));
    }
    let mut response = json_answer(&Receiver {
        destination_account,
        shared_secret: base64::encode(&issued.shared_secret),
    });
    response.headers = vec![
        ("content-type", "application/spsp4+json".to_owned()),
        ("cache-control", AGE_MAX.to_owned()),
    ];
    response
        .headers
        .extend(CORS_HEADERS.map(|(name, value)| (name, value.to_owned())));
    Ok(response)
}

/// RFC 9 has members of its own for a receiver that does not exist; the shape of all our problems stays around them.
fn invalid_receiver(problem: Problem) -> Problem {
    let problem = problem
        .with_member("id", "InvalidReceiverError")
        .with_member("message", "Invalid receiver ID");
    CORS_HEADERS
        .iter()
        .fold(problem, |problem, (name, value)| problem.with_header(name, *value))
}
