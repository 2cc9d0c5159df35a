//! `clearway engines`: which settlement engine serves the accounts of an asset.

use clap::Subcommand;
use serde_json::Value;

use super::client::{Body, Client, NodeArgs};
use super::show::{Members, cell, plain, table};
use super::{CliError, input, print};

#[derive(Subcommand)]
pub enum Command {
    /// Set or remove the engines of some assets; those of others stay
    Set {
        #[arg(
            required = true,
            value_name = "CODE=URL|FILE",
            help = "Assets and the URLs of their engines, such as ABC=http://127.0.0.1:3001; ABC= removes one;\n\
                    or a file with a JSON object of that; - reads standard input"
        )]
        engines: Vec<String>,
    },
}

pub fn run(node: &NodeArgs, command: &Command) -> Result<(), CliError> {
    let Command::Set { engines } = command;
    let client = Client::new(node)?;
    let map = input::map(engines, &Value::Null)?;
    let answer = client.call("PUT", "/settlement/engines", Body::Json(&map))?;
    print(node, &answer, |Members(engines)| {
        table(
            &["ASSET", "ENGINE"],
            engines.iter().map(|(code, url)| vec![plain(code), cell(url)]),
        )
    })
}
