//! Asks a node's HTTP API, and says in one line why it did not answer as wished.
//!
//! Owns where the token comes from and to whom it may go: the one in the data folder is this machine's, so it is sent to
//! nodes on this machine only; no redirect is followed, and a node on this machine is never asked through a proxy.
//!
//! Always: an answer stays the text that the node wrote, so that no number loses a digit on its way to the reader.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::{HeaderValue, Request, Response};
use url::{Host, Url};

use super::CliError;
use super::input;
use super::show::plain;
use crate::keys::TOKEN_FILE;

/// No call but a payment may take longer: a deletion that waits for packets in flight has half a minute.
const CALL_MAX: Duration = Duration::from_secs(60);
/// A node that is there takes the connection at once.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// No answer is longer: a million routes are less, and accounts come in pages.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// What is shown of an answer that is no problem in JSON: some proxy's page.
const DETAIL_CHARS_MAX: usize = 200;

/// Which node to ask, as whom, and how to show the answer.
#[derive(Args, Clone)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// Where the node's API is
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ILP_CLI_NODE_URL",
        default_value = "http://127.0.0.1:7770",
        value_parser = read_node_url
    )]
    pub node: String,
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "ILP_CLI_API_AUTH",
        hide_env_values = true,
        help = "The admin's token, or for one account USERNAME:PASSWORD; @FILE reads it from a file, - from\n\
                standard input [default: the admin token in the data folder, for a node on this machine]"
    )]
    pub auth: Option<String>,
    /// The data folder of a node on this machine, for its admin token
    #[arg(
        long,
        global = true,
        visible_alias = "data_dir",
        value_name = "FOLDER",
        env = "ILP_DATA_DIR",
        default_value = "./data"
    )]
    pub data_dir: PathBuf,
    /// Print the node's answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// An address that paths can be appended to.
fn read_node_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or("expected a URL such as http://127.0.0.1:7770")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL is shown in errors; give the token as --auth".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("paths are appended to it, so it has no ? and no #".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Whether no network lies between us and the node.
fn is_on_this_machine(node: &str) -> bool {
    match Url::parse(node).as_ref().map(Url::host) {
        Ok(Some(Host::Ipv4(address))) => address.is_loopback(),
        Ok(Some(Host::Ipv6(address))) => address.is_loopback(),
        Ok(Some(Host::Domain(name))) => name == "localhost",
        _ => false,
    }
}

/// A node's API, asked as one caller.
pub struct Client {
    agent: Agent,
    node: String,
    token: Option<String>,
    /// Where the token is from, or where it would have been.
    token_origin: String,
}

/// What a call carries beside its path.
pub enum Body<'a> {
    Nothing,
    Json(&'a [u8]),
    Text(&'a str),
}

/// A 2xx answer.
pub struct Answer {
    pub body: String,
    /// The query of the page behind this one.
    pub next: Option<String>,
    /// Of calls whose answer has no room for warnings.
    header_warnings: Vec<String>,
}

impl Client {
    pub fn new(node: &NodeArgs) -> Result<Self, CliError> {
        let is_local = is_on_this_machine(&node.node);
        let (token, token_origin) = match &node.auth {
            Some(given) => (
                Some(input::secret("--auth", given)?),
                "the token was the one of --auth or ILP_CLI_API_AUTH".to_owned(),
            ),
            None if !is_local => (
                None,
                "no token was sent: neither --auth nor ILP_CLI_API_AUTH is given, and the one in the data folder is for \
                 nodes on this machine"
                    .to_owned(),
            ),
            None => {
                let path = node.data_dir.join(TOKEN_FILE);
                // Without a token the calls that are open to anybody still work.
                match input::secret_in_file(&path) {
                    Ok(token) => (Some(token), format!("the token was the one in {}", path.display())),
                    Err(reason) => (
                        None,
                        format!(
                            "no token was sent: neither --auth nor ILP_CLI_API_AUTH is given, and {}: {reason}",
                            path.display()
                        ),
                    ),
                }
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect is an answer to show: a token goes to whom it was meant for.
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_MAX))
            .user_agent(concat!("clearway/", env!("CARGO_PKG_VERSION")));
        let config = if is_local { config.proxy(None) } else { config };
        Ok(Self {
            agent: config.build().into(),
            node: node.node.clone(),
            token,
            token_origin,
        })
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the token has the form of a holder's, `USERNAME:PASSWORD`.
    pub fn is_holder(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.contains(':'))
    }

    pub fn get(&self, path: &str) -> Result<Answer, CliError> {
        self.call("GET", path, Body::Nothing)
    }

    /// Any call. `path` begins with a slash and is encoded already.
    pub fn call(&self, method: &str, path: &str, body: Body<'_>) -> Result<Answer, CliError> {
        self.ask(method, path, body, None, CALL_MAX)
    }

    /// A POST that the node carries out once per key, whose answer may take as long as `limit`.
    pub fn call_once(&self, path: &str, body: &[u8], key: &str, limit: Duration) -> Result<Answer, CliError> {
        self.ask("POST", path, Body::Json(body), Some(key), limit)
    }

    fn ask(
        &self,
        method: &str,
        path: &str,
        body: Body<'_>,
        idempotency_key: Option<&str>,
        limit: Duration,
    ) -> Result<Answer, CliError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.node));
        if let Some(token) = &self.token {
            let value = HeaderValue::from_bytes(format!("Bearer {token}").as_bytes());
            let mut value = value.map_err(|_| CliError::Invalid("--auth: cannot be sent in a header".to_owned()))?;
            value.set_sensitive(true);
            request = request.header("authorization", value);
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let (content_type, bytes) = match body {
            Body::Nothing => (None, None),
            Body::Json(bytes) => (Some("application/json"), Some(bytes)),
            Body::Text(text) => (Some("text/plain; charset=utf-8"), Some(text.as_bytes())),
        };
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let unusable = |error: ureq::http::Error| CliError::Invalid(format!("this cannot be asked: {error}"));
        let sent = match bytes {
            None => {
                let request = request.body(()).map_err(unusable)?;
                let request = self
                    .agent
                    .configure_request(request)
                    .timeout_global(Some(limit))
                    .build();
                self.agent.run(request)
            }
            Some(bytes) => {
                let request = request.body(bytes).map_err(unusable)?;
                let request = self
                    .agent
                    .configure_request(request)
                    .timeout_global(Some(limit))
                    .build();
                self.agent.run(request)
            }
        };
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let reader = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let body = reader.read_to_string().map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(Answer {
                body,
                next: header_values(&response, "link").find_map(next_query),
                header_warnings: header_values(&response, "x-clearway-warning")
                    .map(str::to_owned)
                    .collect(),
            });
        }
        Err(self.refused(response.status().as_u16(), body))
    }

    fn refused(&self, status: u16, body: String) -> CliError {
        /// RFC 7807. A node that is not ready says so in an answer that is no problem.
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Problem {
            title: Option<String>,
            detail: Option<String>,
            reason: Option<String>,
        }
        let problem: Problem = serde_json::from_str(&body).unwrap_or_default();
        let title = problem.title.unwrap_or_else(|| {
            let known = ureq::http::StatusCode::from_u16(status).ok();
            let reason = known.and_then(|status| status.canonical_reason());
            reason.unwrap_or("Refused").to_owned()
        });
        let detail = problem.detail.or(problem.reason);
        let mut detail = detail.unwrap_or_else(|| shorten(body.trim()));
        if status == 401 {
            detail = format!("{detail}; {}", self.token_origin);
        }
        CliError::Refused {
            status,
            title,
            detail,
            body,
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> CliError {
        use std::io::ErrorKind;
        let unsent = match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) => true,
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => true,
            ureq::Error::Io(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            ),
            _ => false,
        };
        let reason = match error {
            ureq::Error::Io(error) => error.to_string(),
            ureq::Error::HostNotFound => "the name of the host is not known".to_owned(),
            other => other.to_string(),
        };
        CliError::Unreachable {
            node: self.node.clone(),
            reason,
            unsent,
        }
    }
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, CliError> {
        serde_json::from_str(&self.body)
            .map_err(|error| CliError::Failed(format!("the answer is not what a node says: {error}")))
    }

    /// What the node wants the caller to know, from a member of the answer or from its header.
    pub fn warnings(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Warned {
            warnings: Vec<Warning>,
        }
        #[derive(Deserialize)]
        struct Warning {
            field: String,
            message: String,
        }
        // Most answers have none.
        let warned: Option<Warned> = serde_json::from_str(&self.body).ok();
        let of_body = warned.into_iter().flat_map(|warned| warned.warnings);
        let mut warnings: Vec<String> = of_body
            .map(|warning| format!("{}: {}", warning.field, warning.message))
            .collect();
        warnings.extend(self.header_warnings.iter().cloned());
        warnings
    }
}

fn header_values<'a, B>(response: &'a Response<B>, name: &str) -> impl Iterator<Item = &'a str> {
    let values = response.headers().get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok())
}

/// The query behind `rel="next"` in a Link header (RFC 8288). Only the query: a node cannot send us elsewhere.
fn next_query(link: &str) -> Option<String> {
    link.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let parameter = parameter.trim().split_once('=');
            parameter.is_some_and(|(name, value)| name == "rel" && value.trim_matches('"') == "next")
        });
        let (_, query) = target.split_once('?')?;
        is_next.then(|| query.to_owned())
    })
}

fn shorten(text: &str) -> String {
    let text = plain(text);
    match text.char_indices().nth(DETAIL_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// One segment of a path.
pub fn segment(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_urls() {
        for (text, expected, local) in [
            ("http://127.0.0.1:7770", Some("http://127.0.0.1:7770"), true),
            ("http://127.9.0.1:7770/", Some("http://127.9.0.1:7770"), true),
            ("http://LOCALHOST:7770", Some("http://localhost:7770"), true),
            ("http://[::1]:7770", Some("http://[::1]:7770"), true),
            ("https://hub.example/node/", Some("https://hub.example/node"), false),
            ("http://127.0.0.1.example", Some("http://127.0.0.1.example"), false),
            ("http://localhost.example", Some("http://localhost.example"), false),
            ("http://192.168.0.1", Some("http://192.168.0.1"), false),
            ("http://alice:pw@127.0.0.1", None, false),
            ("http://127.0.0.1/?x=1", None, false),
            ("http://127.0.0.1/#x", None, false),
            ("127.0.0.1:7770", None, false),
            ("localhost:7770", None, false),
            ("ftp://127.0.0.1", None, false),
            ("http://", None, false),
            ("", None, false),
        ] {
            let read = read_node_url(text).ok();
            assert_eq!(read.as_deref(), expected, "{text}");
            assert_eq!(read.is_some_and(|node| is_on_this_machine(&node)), local, "{text}");
        }
    }

    #[test]
    fn links_to_the_next_page() {
        for (link, expected) in [
            (
                r#"</accounts?limit=2&after=bob>; rel="next""#,
                Some("limit=2&after=bob"),
            ),
            ("</accounts?after=bob>; rel=next", Some("after=bob")),
            (r#"<http://other.example/?after=x>;rel="next""#, Some("after=x")),
            (r#"</a?x>; rel="prev", </a?y>; title="t"; rel="next""#, Some("y")),
            (r#"</accounts?after=bob>; rel="prev""#, None),
            (r#"</accounts>; rel="next""#, None),
            ("</accounts?after=bob", None),
            ("", None),
        ] {
            assert_eq!(next_query(link).as_deref(), expected, "{link}");
        }
    }

    #[test]
    fn segments() {
        for (text, expected) in [
            ("alice", "alice"),
            ("example.hub-2_x~", "example.hub-2_x~"),
            ("a/b?c#d%e f", "a%2Fb%3Fc%23d%25e%20f"),
            ("Zoë", "Zo%C3%AB"),
        ] {
            assert_eq!(segment(text), expected);
        }
    }

    #[test]
    fn long_details_are_shortened_on_a_character() {
        assert_eq!(shorten("as it is"), "as it is");
        let long = "ë".repeat(DETAIL_CHARS_MAX + 1);
        assert_eq!(shorten(&long).chars().count(), DETAIL_CHARS_MAX + 3);
    }
}
