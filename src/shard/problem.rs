//! Refusals that a shard gives by itself, without asking the API's threads, as problem details (RFC 9457).
//!
//! Owns their statuses, codes and words. The API has its own, which know fields and resources. Leaves the bytes of the
//! answer to the writer of heads, and what is refused to the caller.
//! Always: the title is the status in words, except where the problem has a type of its own.

use std::borrow::Cow;

use serde::Serialize;

use crate::link::http::Refused;
use crate::wire::http::write::reason;
use crate::wire::packet::InvalidPacket;
use crate::wire::timestamp::Timestamp;

/// Why a request is not served, for its sender.
#[derive(Debug)]
pub struct Problem {
    status: u16,
    kind: &'static str,
    title: &'static str,
    code: &'static str,
    detail: Cow<'static, str>,
    headers: Vec<(&'static str, &'static str)>,
    failed_attempt: bool,
}

impl Problem {
    /// A problem of no type but its status. `code` is for programs, `detail` for people.
    pub fn new(status: u16, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            kind: "about:blank",
            // The dialect has the older name of this one (RFC 7231).
            title: if status == 413 {
                "Payload Too Large"
            } else {
                reason(status)
            },
            code,
            detail: detail.into(),
            headers: vec![],
            failed_attempt: false,
        }
    }

    /// What belongs to the status, such as `Allow`.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "bad_request", detail)
    }

    /// RFC 35: a body that is no Prepare is refused by HTTP's own means.
    pub fn invalid_packet(invalid: InvalidPacket) -> Self {
        Self {
            kind: "https://errors.interledger.org/http-api/ilp-over-http/invalid-packet",
            title: "Invalid Packet",
            ..Self::new(400, "invalid_packet", format!("not a Prepare: {invalid}"))
        }
    }

    /// A text in a path that could not be any account's name.
    pub fn impossible_name() -> Self {
        Self::new(404, "not_found", "no account can have this name")
    }

    pub fn method_not_allowed(allowed: &'static str, detail: &'static str) -> Self {
        Self::new(405, "method_not_allowed", detail).with_header("allow", allowed)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "unauthorized", "the credentials are missing or wrong").with_header("www-authenticate", "Bearer")
    }

    /// As [`Self::unauthorized`], when a secret was offered and was wrong.
    pub fn failed_attempt() -> Self {
        Self {
            failed_attempt: true,
            ..Self::unauthorized()
        }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    pub fn headers(&self) -> &[(&'static str, &'static str)] {
        &self.headers
    }

    /// Whether it counts against an address that guesses secrets.
    pub fn is_failed_attempt(&self) -> bool {
        self.failed_attempt
    }

    pub fn body(&self, now: Timestamp) -> Vec<u8> {
        /// In the order in which the API writes its own.
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: &'a str,
            title: &'a str,
            status: u16,
            code: &'a str,
            detail: &'a str,
            datetime: String,
        }
        let body = Body {
            r#type: self.kind,
            title: self.title,
            status: self.status,
            code: self.code,
            detail: &self.detail,
            datetime: now.to_rfc3339(),
        };
        serde_json::to_vec(&body).expect("texts and a number can be written as JSON")
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let code = match refused.status() {
            413 => "payload_too_large",
            417 => "expectation_failed",
            431 => "request_header_fields_too_large",
            501 => "not_implemented",
            505 => "http_version_not_supported",
            _ => "bad_request",
        };
        let detail = match refused {
            Refused::Head(malformed) => malformed.detail().to_owned(),
            other => other.to_string(),
        };
        Self::new(refused.status(), code, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::Malformed;

    #[test]
    fn problems_say_what_is_wrong_in_every_form() {
        let invalid = InvalidPacket::UnexpectedType(13);
        let table: [(Problem, u16, &str, &str, Option<&str>); 6] = [
            (
                Problem::invalid_packet(invalid),
                400,
                "Invalid Packet",
                "invalid_packet",
                None,
            ),
            (Problem::bad_request("x"), 400, "Bad Request", "bad_request", None),
            (
                Problem::failed_attempt(),
                401,
                "Unauthorized",
                "unauthorized",
                Some("www-authenticate"),
            ),
            (Problem::impossible_name(), 404, "Not Found", "not_found", None),
            (
                Problem::method_not_allowed("GET", "x"),
                405,
                "Method Not Allowed",
                "method_not_allowed",
                Some("allow"),
            ),
            (
                Refused::BodyTooLarge.into(),
                413,
                "Payload Too Large",
                "payload_too_large",
                None,
            ),
        ];
        for (problem, status, title, code, header) in table {
            let body: serde_json::Value = serde_json::from_slice(&problem.body(Timestamp::default())).unwrap();
            assert_eq!(problem.status(), status);
            assert_eq!((&body["status"], &body["title"]), (&status.into(), &title.into()));
            assert_eq!(body["code"], code);
            assert_eq!(body["datetime"], "1970-01-01T00:00:00.000Z");
            assert_eq!(problem.headers().first().map(|(name, _)| *name), header);
            assert_eq!(problem.is_failed_attempt(), status == 401);
        }
    }

    /// A client may put secrets anywhere: what was wrong is named, never quoted.
    #[test]
    fn a_refused_head_is_not_quoted() {
        let problem = Problem::from(Refused::Head(Malformed::BareLf));
        assert_eq!((problem.status(), &*problem.detail), (400, Malformed::BareLf.detail()));
    }
}
