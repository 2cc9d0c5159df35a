//! `clearway settlements`: what has left the balance of an account towards its engine, and what the operator does about it.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::client::{Answer, Body, Client, NodeArgs, segment};
use super::show::{Members, cell, label, list, table};
use super::{CliError, print};

#[derive(Subcommand)]
pub enum Command {
    /// List settlements, the newest first
    List {
        #[command(flatten)]
        account: Account,
        /// How many, at most 1000
        #[arg(long, value_name = "NUMBER", default_value = "100")]
        limit: String,
        /// Only those made before the one with this id
        #[arg(long, value_name = "ID")]
        before: Option<String>,
    },
    /// Settle all that the node owes the holder above what the account settles to
    Now {
        #[command(flatten)]
        account: Account,
    },
    /// Take an open settlement back: its amount returns to the balance
    Cancel {
        #[command(flatten)]
        one: One,
        /// Also one that an engine may have accepted, if you know that it was not paid
        #[arg(long)]
        force: bool,
    },
    /// End one that an engine may have accepted, and has paid by its ledger
    Confirm {
        #[command(flatten)]
        one: One,
    },
    /// Try an open settlement again now
    Retry {
        #[command(flatten)]
        one: One,
        /// Also one that an engine may have accepted, if you know that it was not paid
        #[arg(long)]
        force: bool,
    },
}

#[derive(Args)]
pub struct Account {
    /// The account
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    username: String,
}

impl Account {
    fn path(&self) -> String {
        format!("/accounts/{}/settlements", segment(&self.username))
    }
}

/// One settlement of an account.
#[derive(Args)]
pub struct One {
    #[command(flatten)]
    account: Account,
    /// The settlement
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
}

impl One {
    /// Has the node do what was decided.
    fn decide(&self, client: &Client, decision: &str, force: bool) -> Result<Answer, CliError> {
        let query = if force { "?force=true" } else { "" };
        let path = format!("{}/{}/{decision}{query}", self.account.path(), segment(&self.id));
        client.call("POST", &path, Body::Nothing)
    }
}

pub fn run(node: &NodeArgs, command: &Command) -> Result<(), CliError> {
    let client = Client::new(node)?;
    let answer = match command {
        Command::List { account, limit, before } => {
            let mut path = format!("{}?limit={}", account.path(), segment(limit));
            if let Some(before) = before {
                path = format!("{path}&before={}", segment(before));
            }
            return print(node, &client.get(&path)?, all);
        }
        Command::Now { account } => client.call("POST", &account.path(), Body::Nothing)?,
        Command::Cancel { one, force } => one.decide(&client, "cancel", *force)?,
        Command::Confirm { one } => one.decide(&client, "confirm", false)?,
        Command::Retry { one, force } => one.decide(&client, "retry", *force)?,
    };
    print(node, &answer, |Members(members)| {
        let rows = members.iter().map(|(name, value)| (label(name), cell(value)));
        list(rows)
    })
}

fn all(settlements: Vec<Members>) -> String {
    const COLUMNS: [&str; 8] = [
        "id",
        "state",
        "amount",
        "scale",
        "attempts",
        "created_at",
        "next_attempt_at",
        "last_error",
    ];
    let header = COLUMNS.map(|name| name.replace('_', " ").to_uppercase());
    let row = |settlement: &Members| {
        let cell = |name: &str| settlement.get(name).unwrap_or_else(|| "-".to_owned());
        COLUMNS.map(cell).to_vec()
    };
    table(&header.each_ref().map(String::as_str), settlements.iter().map(row))
}
