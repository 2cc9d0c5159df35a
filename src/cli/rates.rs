//! `clearway rates`: the exchange rates in force, all at once.

use clap::Subcommand;
use serde_json::Value;

use super::client::{Body, Client, NodeArgs};
use super::show::{Members, cell, plain, table};
use super::{CliError, input, print};

#[derive(Subcommand)]
pub enum Command {
    /// List the rates
    List,
    /// Replace all rates
    Replace {
        #[arg(
            required = true,
            value_name = "CODE=RATE|FILE",
            help = "What a whole unit of each asset is worth in one common base, such as ABC=1.0 XYZ=2.517;\n\
                    or a file with a JSON object of that; - reads standard input"
        )]
        rates: Vec<String>,
    },
}

pub fn run(node: &NodeArgs, command: &Command) -> Result<(), CliError> {
    let client = Client::new(node)?;
    let answer = match command {
        Command::List => client.get("/rates")?,
        Command::Replace { rates } => {
            // An empty rate is no rate, and no way to leave one out: the node says so.
            let map = input::map(rates, &Value::from(""))?;
            client.call("PUT", "/rates", Body::Json(&map))?
        }
    };
    print(node, &answer, |Members(rates)| {
        table(
            &["ASSET", "RATE"],
            rates.iter().map(|(code, rate)| vec![plain(code), cell(rate)]),
        )
    })
}
