//! Asks a node's HTTP API, and says in one line why it did not answer as wished.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use ureq::Agent;
use ureq::http::Request;

use super::CliError;
use crate::keys::TOKEN_FILE;

/// No call may take longer: a payment, or a deletion that waits for packets in flight, has half a minute.
const CALL_MAX: Duration = Duration::from_secs(60);
/// No answer is longer: a million routes or accounts are less.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// Which node to ask, as whom, and how to show the answer.
#[derive(Args, Clone)]
pub struct NodeArgs {
    /// Where the node's API is
    #[arg(
        long,
        value_name = "URL",
        env = "ILP_CLI_NODE_URL",
        default_value = "http://127.0.0.1:7770"
    )]
    pub node: String,
    /// The admin's token, or for calls about one account USERNAME:PASSWORD [default: the admin token in the data folder]
    #[arg(long, value_name = "TOKEN", env = "ILP_CLI_API_AUTH", hide_env_values = true)]
    pub auth: Option<String>,
    /// The data folder of a node on this machine, for its admin token
    #[arg(
        long,
        visible_alias = "data_dir",
        value_name = "FOLDER",
        env = "ILP_DATA_DIR",
        default_value = "./data"
    )]
    pub data_dir: PathBuf,
    /// Print the node's answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// A node's API, asked as one caller.
pub struct Client {
    agent: Agent,
    node: String,
    auth: Option<String>,
}

impl Client {
    pub fn new(node: &NodeArgs) -> Result<Self, CliError> {
        let auth = match &node.auth {
            Some(auth) => Some(auth.clone()),
            // Without a token the calls that are open to anybody still work.
            None => std::fs::read_to_string(node.data_dir.join(TOKEN_FILE))
                .ok()
                .map(|line| line.trim_end_matches(['\r', '\n']).to_owned()),
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(CALL_MAX))
            .user_agent(concat!("clearway/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: agent.into(),
            node: node.node.trim_end_matches('/').to_owned(),
            auth,
        })
    }

    /// Sends JSON, or nothing, and returns the JSON of a 2xx answer. `path` begins with a slash and is encoded already.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, CliError> {
        let body = body.map(|body| serde_json::to_vec(body).expect("JSON can be written"));
        let text = self.call_text(method, path, body.as_deref(), "application/json")?;
        serde_json::from_str(&text).map_err(|error| self.unreachable(format!("the answer is no JSON: {error}")))
    }

    /// Sends bytes, or nothing, and returns the text of a 2xx answer.
    pub fn call_text(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        content_type: &str,
    ) -> Result<String, CliError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.node));
        if let Some(auth) = &self.auth {
            request = request.header("authorization", format!("Bearer {auth}"));
        }
        if body.is_some() {
            request = request.header("content-type", content_type);
        }
        let request = request
            .body(body.unwrap_or_default())
            .map_err(|error| CliError::Invalid(format!("--node, --auth: {error}")))?;
        let mut response = self.agent.run(request).map_err(|error| self.unreachable(error))?;
        let status = response.status().as_u16();
        let reader = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = reader.read_to_string().map_err(|error| self.unreachable(error))?;
        if (200..300).contains(&status) {
            return Ok(text);
        }
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        let member = |name: &str, otherwise: &str| problem[name].as_str().unwrap_or(otherwise).to_owned();
        Err(CliError::Refused {
            status,
            title: member("title", "refused"),
            detail: member("detail", text.trim()),
        })
    }

    fn unreachable(&self, error: impl ToString) -> CliError {
        CliError::Unreachable {
            node: self.node.clone(),
            reason: error.to_string(),
        }
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
