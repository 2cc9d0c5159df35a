//! What callers say behind the `?`.

use url::form_urlencoded;

use super::problem::{Fault, Kind, Problem};

/// The first value of a query parameter, decoded.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

pub(super) fn bad_parameter(name: &str, rule: &str) -> Problem {
    Problem::field(Kind::BadRequest, name, Fault::Invalid, rule)
}

/// Whether `?detail=true` asks for what not everybody may see.
pub(super) fn wants_detail(query: &str) -> Result<bool, Problem> {
    match parameter(query, "detail").as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(bad_parameter("detail", "expected true or false")),
    }
}
