//! `clearway backup`: a copy of the book in a new folder, which can be started as a data folder.
//!
//! Owns which way the copy is made. A running node makes it itself, through the same call that curl can make; only when
//! nobody listens where the node should, and nobody has its store open, this command opens the store in the data folder
//! in the node's place. The answer says which of both it was. Owns copying the keys as well, which no node gives out.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use url::Url;

use super::check::show_assets;
use super::client::{Body, Client, NodeArgs};
use super::{CliError, write_out};
use crate::api::node::BackupAnswer;
use crate::keys::{self, SEED_FILE, STORE_FOLDER};
use crate::store::{backup, rocks};

/// How long a port may take to refuse us.
const CONNECT_MAX: Duration = Duration::from_secs(3);

#[derive(Args)]
pub struct BackupArgs {
    /// A new folder, on the machine of the node, in one that exists
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Copy the keys as well (secret_seed, admin_auth_token) from the data folder: who has such a copy has everything
    #[arg(long)]
    with_keys: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// What was done, for programs.
#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    copy: &'a BackupAnswer,
    /// `node`, or `command`: this one, because no node was running.
    made_by: &'static str,
    /// The names of the keys that are in the copy.
    keys: &'a [&'static str],
}

pub fn run(arguments: &BackupArgs) -> Result<(), CliError> {
    let node = &arguments.node;
    let directory = std::path::absolute(&arguments.directory)?;
    let Some(directory) = directory.to_str() else {
        return Err(CliError::Invalid("DIR: the path is not UTF-8".to_owned()));
    };
    if arguments.with_keys && !node.data_dir.join(SEED_FILE).is_file() {
        return Err(CliError::Invalid(format!(
            "--with-keys: there is no {SEED_FILE} in {}: it is configured elsewhere, and a copy of it belongs in a safe \
             place",
            node.data_dir.display()
        )));
    }
    let body = json!({ "directory": directory }).to_string();
    let asked = Client::new(node)?.call("POST", "/ledger/backup", Body::Json(body.as_bytes()));
    let (copy, made_by) = match asked {
        Ok(answer) => (answer.json::<BackupAnswer>()?, "node"),
        Err(CliError::Unreachable {
            node: url,
            reason,
            unsent: true,
        }) if nobody_listens(&url) => (copy_closed(node, directory, &reason)?, "command"),
        Err(error) => return Err(error),
    };
    let copied = if arguments.with_keys {
        copy_keys(&node.data_dir, Path::new(directory))
    } else {
        Ok(Vec::new())
    };
    let names = copied.as_deref().unwrap_or_default();
    write_out(&if node.json {
        let done = Done {
            copy: &copy,
            made_by,
            keys: names,
        };
        serde_json::to_string_pretty(&done).expect("text and numbers are always valid JSON")
    } else {
        show(&copy, made_by, names, node)
    })?;
    copied?;
    if !copy.adds_up {
        return Err(CliError::Failed(
            "the book in the copy does not add up: see `clearway check` on the data folder, and keep older copies"
                .to_owned(),
        ));
    }
    Ok(())
}

fn show(copy: &BackupAnswer, made_by: &str, keys: &[&str], node: &NodeArgs) -> String {
    let by = match made_by {
        "node" => format!("by the node at {}", node.node),
        _ => format!("from {}, while no node was running", node.data_dir.display()),
    };
    let keys = match keys {
        [] => "without keys: starting it takes the secret_seed".to_owned(),
        names => format!("with {}: keep it where the keys are safe", names.join(" and ")),
    };
    format!(
        "copied {by} to {}, {keys}\n{} accounts, read back from the copy:\n{}",
        copy.directory,
        copy.accounts,
        show_assets(&copy.assets)
    )
}

/// Whether the port is closed. Anything else, a node that is slow or a name that is unknown, may be a running node.
fn nobody_listens(url: &str) -> bool {
    let addresses = Url::parse(url).ok().and_then(|url| url.socket_addrs(|| None).ok());
    addresses.is_some_and(|addresses| {
        !addresses.is_empty()
            && addresses.iter().all(|address| {
                TcpStream::connect_timeout(address, CONNECT_MAX)
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            })
    })
}

/// Makes the copy in the node's place. `reason`: why the node was not reached.
fn copy_closed(node: &NodeArgs, directory: &str, reason: &str) -> Result<BackupAnswer, CliError> {
    let store = node.data_dir.join(STORE_FOLDER);
    let unreachable = |why: String| CliError::Unreachable {
        node: node.node.clone(),
        reason: format!("{reason}; {why}"),
        unsent: true,
    };
    if !rocks::exists(&store) {
        return Err(unreachable(format!(
            "and there is no store in {}",
            node.data_dir.display()
        )));
    }
    // For the message: opening the store takes the lock, or fails.
    if let Some(process) = rocks::used_by(&store) {
        let data = node.data_dir.display();
        return Err(unreachable(format!(
            "but process {process} runs a node on {data}: give its address as --node"
        )));
    }
    match backup::copy_closed(&store, Path::new(directory)) {
        Ok(audit) => Ok(BackupAnswer::new(directory, &audit)),
        Err(error) => Err(CliError::Failed(format!("{directory}: {error}"))),
    }
}

/// The keys go into the copy only if they are its own.
fn copy_keys(data_dir: &Path, directory: &Path) -> Result<Vec<&'static str>, CliError> {
    let failed = |reason: String| {
        CliError::Failed(format!(
            "the copy in {} is whole, but the keys are not in it: {reason}",
            directory.display()
        ))
    };
    let found = keys::look(data_dir, None, None).map_err(|error| failed(error.to_string()))?;
    let (seed, _) = found
        .secret_seed
        .ok_or_else(|| failed(format!("{SEED_FILE} is gone")))?;
    rocks::read_only(&directory.join(STORE_FOLDER), &seed, |_| Ok(())).map_err(|error| failed(error.to_string()))?;
    keys::copy(data_dir, directory).map_err(|error| failed(error.to_string()))
}
