//! Which resource a request target names, and what may be done with it.
//!
//! Owns the paths of the API: percent-decoding, the trailing slash, the methods of each resource, and how large a body
//! each takes. Leaves the packets' own paths to the shards; they are known here so that a wrong method on them is 405
//! and not 404.

use crate::wire::http::percent::percent_decode;

/// What the shards let through: 64 KiB for accounts and settings, 4 MiB for maps of rates and routes.
pub use crate::shard::http_serving::{BODY_BYTES_MAX, LARGE_BODY_BYTES_MAX as MAP_BODY_BYTES_MAX};

/// What a path names. Names and prefixes are decoded and not checked any further.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resource {
    /// `/`
    Node,
    /// `/accounts`
    Accounts,
    /// `/accounts/:username`
    Account(String),
    /// `/accounts/:username/settings`
    Settings(String),
    /// `/accounts/:username/balance`
    Balance(String),
    /// `/accounts/:username/payments`
    Payments(String),
    /// `/accounts/:username/quotes`
    Quotes(String),
    /// `/accounts/:username/settlements`
    Settlements(String),
    /// `/accounts/:username/settlements/:id/cancel`
    CancelSettlement(String, String),
    /// `/accounts/:username/settlements/:id/confirm`
    ConfirmSettlement(String, String),
    /// `/accounts/:username/settlements/:id/retry`
    RetrySettlement(String, String),
    /// `/accounts/:username/spsp`
    Spsp(String),
    /// `/accounts/:username/payments/incoming`
    IncomingPayments(String),
    /// `/payments/incoming`
    AllIncomingPayments,
    /// `/.well-known/pay`
    Pay,
    /// `/ilp`, `/accounts/:username/ilp`
    Packets,
    /// `/ilp/btp`, `/accounts/:username/ilp/btp`
    Btp,
    /// `/routes`
    Routes,
    /// `/routes/explain`
    RouteExplanation,
    /// `/routes/static`
    StaticRoutes,
    /// `/routes/static/:prefix`
    StaticRoute(String),
    /// `/rates`
    Rates,
    /// `/rates/confirm`
    RatesConfirm,
    /// `/settlement/engines`
    Engines,
    /// `/tracing-level`
    LogLevel,
    /// `/ledger/audit`
    Audit,
    /// `/ledger/backup`
    Backup,
    /// `/openapi.json`
    Description,
}

/// A method of HTTP that some resource has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Resource {
    /// The resource of a request target, and its query. `None`: there is no such thing.
    pub fn parse(target: &str) -> Option<(Self, &str)> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix('/')?;
        // One trailing slash is ignored; the client of interledger-rs posts to `/accounts/`.
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments: Vec<String> = match path {
            "" => vec![],
            _ => path.split('/').map(decode_segment).collect::<Option<_>>()?,
        };
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let resource = match segments[..] {
            [] => Self::Node,
            ["accounts"] => Self::Accounts,
            ["accounts", username] => Self::Account(username.to_owned()),
            ["accounts", username, "settings"] => Self::Settings(username.to_owned()),
            ["accounts", username, "balance"] => Self::Balance(username.to_owned()),
            ["accounts", username, "payments"] => Self::Payments(username.to_owned()),
            ["accounts", username, "quotes"] => Self::Quotes(username.to_owned()),
            ["accounts", username, "settlements"] => Self::Settlements(username.to_owned()),
            ["accounts", username, "settlements", id, "cancel"] => {
                Self::CancelSettlement(username.to_owned(), id.to_owned())
            }
            ["accounts", username, "settlements", id, "confirm"] => {
                Self::ConfirmSettlement(username.to_owned(), id.to_owned())
            }
            ["accounts", username, "settlements", id, "retry"] => {
                Self::RetrySettlement(username.to_owned(), id.to_owned())
            }
            ["accounts", username, "spsp"] => Self::Spsp(username.to_owned()),
            ["accounts", username, "payments", "incoming"] => Self::IncomingPayments(username.to_owned()),
            ["payments", "incoming"] => Self::AllIncomingPayments,
            [".well-known", "pay"] => Self::Pay,
            ["ilp"] | ["accounts", _, "ilp"] => Self::Packets,
            ["ilp", "btp"] | ["accounts", _, "ilp", "btp"] => Self::Btp,
            ["routes"] => Self::Routes,
            ["routes", "explain"] => Self::RouteExplanation,
            ["routes", "static"] => Self::StaticRoutes,
            ["routes", "static", prefix] => Self::StaticRoute(prefix.to_owned()),
            ["rates"] => Self::Rates,
            ["rates", "confirm"] => Self::RatesConfirm,
            ["settlement", "engines"] => Self::Engines,
            ["tracing-level"] => Self::LogLevel,
            ["ledger", "audit"] => Self::Audit,
            ["ledger", "backup"] => Self::Backup,
            ["openapi.json"] => Self::Description,
            _ => return None,
        };
        Some((resource, query))
    }

    pub fn methods(&self) -> &'static [Method] {
        match self {
            Self::Accounts | Self::Payments(_) | Self::Settlements(_) => &[Method::Get, Method::Post],
            Self::Account(_) => &[Method::Get, Method::Put, Method::Delete],
            Self::Node
            | Self::Balance(_)
            | Self::Spsp(_)
            | Self::Pay
            | Self::IncomingPayments(_)
            | Self::AllIncomingPayments
            | Self::Btp
            | Self::Routes
            | Self::RouteExplanation
            | Self::Audit
            | Self::Description => &[Method::Get],
            Self::Packets
            | Self::Backup
            | Self::Quotes(_)
            | Self::CancelSettlement(..)
            | Self::ConfirmSettlement(..)
            | Self::RetrySettlement(..)
            | Self::RatesConfirm => &[Method::Post],
            Self::Settings(_) | Self::StaticRoutes | Self::Engines | Self::LogLevel => &[Method::Put],
            Self::StaticRoute(_) => &[Method::Put, Method::Delete],
            Self::Rates => &[Method::Get, Method::Put],
        }
    }

    /// The value of `Allow`. HEAD goes wherever GET goes, OPTIONS everywhere.
    pub fn allow(&self) -> String {
        let mut names = Vec::new();
        for method in self.methods() {
            match method {
                Method::Get => names.extend(["GET", "HEAD"]),
                Method::Post => names.push("POST"),
                Method::Put => names.push("PUT"),
                Method::Delete => names.push("DELETE"),
            }
        }
        names.push("OPTIONS");
        names.join(", ")
    }

    /// How large a body may be, in bytes.
    pub fn body_bytes_max(&self) -> usize {
        match self {
            Self::Rates | Self::RatesConfirm | Self::StaticRoutes | Self::Engines => MAP_BODY_BYTES_MAX,
            _ => BODY_BYTES_MAX,
        }
    }
}

/// Percent-decodes one segment, once. `None` for what is empty, no UTF-8, a broken escape, or a slash in disguise.
fn decode_segment(segment: &str) -> Option<String> {
    let decoded = percent_decode(segment)?.into_owned();
    (!decoded.is_empty() && !decoded.contains('/')).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_max(target: &str) -> usize {
        Resource::parse(target).map_or(BODY_BYTES_MAX, |(resource, _)| resource.body_bytes_max())
    }

    #[test]
    fn table() {
        use Resource::*;
        for (target, expected) in [
            ("/", Some((Node, ""))),
            ("/?x=1", Some((Node, "x=1"))),
            ("/accounts", Some((Accounts, ""))),
            ("/accounts/", Some((Accounts, ""))),
            ("/accounts//", None),
            ("//accounts", None),
            ("/accounts?limit=1&after=a", Some((Accounts, "limit=1&after=a"))),
            ("/accounts/alice", Some((Account("alice".into()), ""))),
            ("/accounts/%61lice/", Some((Account("alice".into()), ""))),
            ("/accounts/Zo%C3%AB", Some((Account("Zoë".into()), ""))),
            ("/accounts/a+b", Some((Account("a+b".into()), ""))),
            ("/accounts/%2561", Some((Account("%61".into()), ""))),
            ("/accounts/a%2Fb", None),
            ("/accounts/%ff", None),
            ("/accounts/%6", None),
            ("/accounts/%zz", None),
            ("/accounts/%+1", None),
            ("/accounts/alice/balance", Some((Balance("alice".into()), ""))),
            ("/accounts/alice/ilp", Some((Packets, ""))),
            ("/accounts/alice/ilp/btp", Some((Btp, ""))),
            ("/accounts/alice/other", None),
            ("/accounts/balance", Some((Account("balance".into()), ""))),
            ("/ilp", Some((Packets, ""))),
            ("/ilp/btp", Some((Btp, ""))),
            ("/routes", Some((Routes, ""))),
            (
                "/routes/explain?destination=g.a",
                Some((RouteExplanation, "destination=g.a")),
            ),
            ("/routes/static", Some((StaticRoutes, ""))),
            ("/routes/static/", Some((StaticRoutes, ""))),
            (
                "/routes/static/ex%41mple.x",
                Some((StaticRoute("exAmple.x".into()), "")),
            ),
            ("/routes/static/a/b", None),
            ("/rates", Some((Rates, ""))),
            ("/rates?detail=true", Some((Rates, "detail=true"))),
            ("/rates/confirm/", Some((RatesConfirm, ""))),
            ("/rates/ABC", None),
            ("/accounts/alice/settings", Some((Settings("alice".into()), ""))),
            ("/accounts/alice/payments", Some((Payments("alice".into()), ""))),
            (
                "/accounts/alice/payments?limit=1",
                Some((Payments("alice".into()), "limit=1")),
            ),
            ("/accounts/alice/quotes/", Some((Quotes("alice".into()), ""))),
            ("/accounts/alice/settlements", Some((Settlements("alice".into()), ""))),
            (
                "/accounts/alice/settlements/x/cancel?force=true",
                Some((CancelSettlement("alice".into(), "x".into()), "force=true")),
            ),
            (
                "/accounts/alice/settlements/x/confirm",
                Some((ConfirmSettlement("alice".into(), "x".into()), "")),
            ),
            (
                "/accounts/alice/settlements/x/retry/",
                Some((RetrySettlement("alice".into(), "x".into()), "")),
            ),
            ("/accounts/alice/settlements/x", None),
            ("/accounts/alice/spsp", Some((Spsp("alice".into()), ""))),
            ("/.well-known/pay", Some((Pay, ""))),
            ("/settlement/engines", Some((Engines, ""))),
            ("/settlement", None),
            (
                "/accounts/alice/payments/incoming",
                Some((IncomingPayments("alice".into()), "")),
            ),
            ("/payments/incoming", Some((AllIncomingPayments, ""))),
            ("/payments", None),
            ("/tracing-level", Some((LogLevel, ""))),
            ("/openapi.json", Some((Description, ""))),
            ("/ledger/audit", Some((Audit, ""))),
            ("/ledger/backup", Some((Backup, ""))),
            ("/ledger", None),
            ("/Accounts", None),
            ("accounts", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(Resource::parse(target), expected, "{target}");
        }
    }

    #[test]
    fn methods_and_bodies() {
        for (target, allow, body) in [
            ("/", "GET, HEAD, OPTIONS", BODY_BYTES_MAX),
            ("/accounts", "GET, HEAD, POST, OPTIONS", BODY_BYTES_MAX),
            ("/accounts/alice", "GET, HEAD, PUT, DELETE, OPTIONS", BODY_BYTES_MAX),
            ("/accounts/alice/payments", "GET, HEAD, POST, OPTIONS", BODY_BYTES_MAX),
            ("/accounts/alice/quotes", "POST, OPTIONS", BODY_BYTES_MAX),
            (
                "/accounts/alice/settlements",
                "GET, HEAD, POST, OPTIONS",
                BODY_BYTES_MAX,
            ),
            ("/accounts/alice/settlements/x/confirm", "POST, OPTIONS", BODY_BYTES_MAX),
            ("/accounts/alice/settlements/x/retry", "POST, OPTIONS", BODY_BYTES_MAX),
            ("/ilp", "POST, OPTIONS", BODY_BYTES_MAX),
            ("/ledger/backup", "POST, OPTIONS", BODY_BYTES_MAX),
            ("/routes/explain", "GET, HEAD, OPTIONS", BODY_BYTES_MAX),
            ("/routes/static", "PUT, OPTIONS", MAP_BODY_BYTES_MAX),
            ("/routes/static/g", "PUT, DELETE, OPTIONS", BODY_BYTES_MAX),
            ("/rates", "GET, HEAD, PUT, OPTIONS", MAP_BODY_BYTES_MAX),
            ("/rates/confirm", "POST, OPTIONS", MAP_BODY_BYTES_MAX),
            ("/settlement/engines", "PUT, OPTIONS", MAP_BODY_BYTES_MAX),
            ("/accounts/alice/settings", "PUT, OPTIONS", BODY_BYTES_MAX),
            ("/.well-known/pay", "GET, HEAD, OPTIONS", BODY_BYTES_MAX),
            ("/payments/incoming", "GET, HEAD, OPTIONS", BODY_BYTES_MAX),
        ] {
            assert_eq!(Resource::parse(target).unwrap().0.allow(), allow, "{target}");
            assert_eq!(body_max(target), body, "{target}");
        }
        assert_eq!(body_max("/unknown"), BODY_BYTES_MAX);
    }
}
