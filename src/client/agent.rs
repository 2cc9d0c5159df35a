//! What our clients build their agents from, and words for what went wrong.

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

/// What holds for every client: statuses are looked at, nobody stands between, and servers can see who asks.
pub(super) fn config() -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        // A proxy would connect where we do not.
        .proxy(None)
        .user_agent(concat!("clearway/", env!("CARGO_PKG_VERSION")))
}

/// In words that tell a caller what to do, and nothing of the library.
pub(super) fn reason_of(error: &ureq::Error) -> &'static str {
    match error {
        ureq::Error::HostNotFound => "has a name that cannot be resolved",
        ureq::Error::Timeout(_) => "did not answer in time",
        ureq::Error::TooManyRedirects => "redirects without an end",
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => "has no certificate that can be trusted",
        ureq::Error::ConnectionFailed | ureq::Error::Io(_) => "cannot be connected to",
        _ => "did not answer in HTTP",
    }
}
