//! `clearway routes`: all routes in force, and the fixed ones among them.

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use super::client::{Body, Client, NodeArgs, segment};
use super::show::{Members, cell, plain, table};
use super::{CliError, input, print, print_text};

#[derive(Subcommand)]
pub enum Command {
    /// List all routes in force: accounts, fixed and learned ones
    List,
    /// Fix the route of a prefix to an account
    Set {
        #[arg(value_parser = read_prefix)]
        prefix: String,
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        username: String,
    },
    /// Remove the fixed route of a prefix
    Delete {
        #[arg(value_parser = read_prefix)]
        prefix: String,
    },
    /// Replace all fixed routes
    Replace {
        /// A JSON object of prefixes and user names; - reads standard input
        file: String,
    },
}

/// A path cannot name the empty prefix: it would be that of all fixed routes.
fn read_prefix(text: &str) -> Result<String, String> {
    match text {
        "" => Err("the default route is set and removed with routes replace".to_owned()),
        prefix => Ok(prefix.to_owned()),
    }
}

pub fn run(node: &NodeArgs, command: &Command) -> Result<(), CliError> {
    let client = Client::new(node)?;
    let path = |prefix: &str| format!("/routes/static/{}", segment(prefix));
    match command {
        Command::List => print(node, &client.get("/routes")?, routes),
        Command::Set { prefix, username } => {
            let answer = client.call("PUT", &path(prefix), Body::Text(username))?;
            print_text(node, &answer, |username| {
                format!("{} leads to {username}", plain(prefix))
            })
        }
        Command::Delete { prefix } => {
            let answer = client.call("DELETE", &path(prefix), Body::Nothing)?;
            print_text(node, &answer, |username| {
                format!("{} led to {username}, and is removed", plain(prefix))
            })
        }
        Command::Replace { file } => {
            let map = input::map_file(file)?;
            print(node, &client.call("PUT", "/routes/static", Body::Json(&map))?, routes)
        }
    }
}

fn routes(answer: Members) -> String {
    let rows = answer.0.iter().map(|(prefix, username)| {
        // The default route, as one would write it for a shell.
        let prefix = if prefix.is_empty() {
            "\"\"".to_owned()
        } else {
            plain(prefix)
        };
        vec![prefix, cell(username)]
    });
    table(&["PREFIX", "USERNAME"], rows)
}
