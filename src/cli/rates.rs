//! `clearway rates`: the exchange rates in force, all at once; where they come from, and those that are held.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Body, Client, NodeArgs};
use super::show::{Members, cell, label, list, plain, table};
use super::{CliError, input, print};

#[derive(Subcommand)]
pub enum Command {
    /// List the rates
    List {
        /// With every digit, where each comes from, since when, and what is held; as the operator
        #[arg(long)]
        detail: bool,
    },
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
    /// Put held rates in force
    Confirm {
        #[arg(
            required = true,
            value_name = "CODE|CODE=RATE",
            help = "Codes, for whatever is held of them; or each with the rate that you expect, such as ABC=1.02:\n\
                    what is held must be no further from it than a rate may move unconfirmed"
        )]
        rates: Vec<String>,
    },
}

pub fn run(node: &NodeArgs, command: &Command) -> Result<(), CliError> {
    let client = Client::new(node)?;
    let answer = match command {
        Command::List { detail: true } => return print(node, &client.get("/rates?detail=true")?, detail),
        Command::List { detail: false } => client.get("/rates")?,
        Command::Confirm { rates } => {
            let body = if rates.iter().any(|rate| rate.contains('=')) {
                input::map(rates, &Value::from(""))?
            } else {
                serde_json::to_vec(rates).expect("texts can be written as JSON")
            };
            client.call("POST", "/rates/confirm", Body::Json(&body))?
        }
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

/// What the node knows of its rates, as far as a table needs it.
#[derive(Deserialize)]
struct Detail {
    max_rate_change: Option<String>,
    providers: Vec<Members>,
    rates: Members,
}

fn detail(detail: Detail) -> String {
    let or_nothing = |members: &Members, name: &str| members.get(name).unwrap_or_else(|| "-".to_owned());
    let rates = detail.rates.0.iter().map(|(code, rate)| {
        let rate: Members = serde_json::from_str(rate.get()).unwrap_or(Members(vec![]));
        let mut row = vec![plain(code)];
        row.extend(["rate", "state", "source", "said_at", "held"].map(|name| or_nothing(&rate, name)));
        row
    });
    let rates = table(&["ASSET", "RATE", "STATE", "SOURCE", "SAID AT", "HELD"], rates);
    if detail.providers.is_empty() {
        return rates;
    }
    let columns = ["source", "kind", "state", "last_success", "failures", "last_error"];
    let providers = table(
        &["SOURCE", "KIND", "STATE", "LAST SUCCESS", "FAILURES", "LAST ERROR"],
        detail
            .providers
            .iter()
            .map(|provider| columns.map(|name| or_nothing(provider, name)).to_vec()),
    );
    let change = detail
        .max_rate_change
        .map_or_else(|| "-".to_owned(), |change| plain(&change));
    let change = list([(label("max_rate_change"), change)]);
    format!("{rates}\n\n{providers}\n\n{change}")
}
