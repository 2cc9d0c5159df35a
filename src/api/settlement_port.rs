//! The settlement API (RFC 38): what settlement engines ask of the node, on a port of their own.
//!
//! Owns the paths of that port. Nothing of the operator's API is under them, and nothing of this is on the other port, so
//! an operator can let engines reach the one and nobody else.

use crate::shard::control::ApiRequest;

use super::Answer;
use super::problem::{Kind, Problem, shorten};

/// Answers a call that came in on the engines' port.
pub(super) fn answer(request: &ApiRequest) -> Result<Answer, Problem> {
    let path = request.target.split('?').next().unwrap_or_default();
    let detail = format!("the settlement API has nothing under {}", shorten(path));
    Err(Problem::new(Kind::NotFound, detail))
}
