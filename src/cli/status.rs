//! `clearway status`: is the node ready.

use super::client::NodeArgs;
use super::{CliError, print};

pub fn run(node: &NodeArgs) -> Result<(), CliError> {
    let answer = node.client()?.call("GET", "/", None)?;
    print(node, &answer, |answer| {
        let member = |name: &str| answer[name].as_str().unwrap_or("-").to_owned();
        format!(
            "{} as {}, version {}",
            member("status"),
            member("ilp_address"),
            member("version")
        )
    })
}
