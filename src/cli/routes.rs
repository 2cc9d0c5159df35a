//! `clearway routes`: all routes in force, the fixed ones among them, and why a packet goes where it goes.

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use serde::Deserialize;
use url::form_urlencoded;

use super::client::{Body, Client, NodeArgs, segment};
use super::show::{Members, cell, list, plain, table};
use super::{CliError, input, print, print_text};

#[derive(Subcommand)]
pub enum Command {
    /// List all routes in force: accounts, fixed and learned ones
    List {
        /// Every way for each prefix: where it comes from, whether its link is up, and which one is in force
        #[arg(long)]
        detail: bool,
    },
    /// Say which way a packet would go, and why
    Explain {
        /// An address
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        destination: String,
        /// The account that the packet comes from
        #[arg(long, value_name = "USERNAME", value_parser = NonEmptyStringValueParser::new())]
        from: Option<String>,
    },
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
        Command::List { detail: false } => print(node, &client.get("/routes")?, routes),
        Command::List { detail: true } => print(node, &client.get("/routes?detail=true")?, ways),
        Command::Explain { destination, from } => {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("destination", destination);
            query.extend_pairs(from.iter().map(|from| ("from", from)));
            print(
                node,
                &client.get(&format!("/routes/explain?{}", query.finish()))?,
                explanation,
            )
        }
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

/// A prefix in a table.
fn shown(prefix: &str) -> String {
    match prefix {
        // The default route, as one would write it for a shell.
        "" => "\"\"".to_owned(),
        prefix => plain(prefix),
    }
}

fn routes(answer: Members) -> String {
    let rows = answer.0.iter();
    table(
        &["PREFIX", "USERNAME"],
        rows.map(|(prefix, username)| vec![shown(prefix), cell(username)]),
    )
}

#[derive(Deserialize)]
struct Prefix {
    prefix: String,
    candidates: Vec<Members>,
}

/// The members of a candidate that a table shows.
const OF_A_WAY: [&str; 6] = ["username", "origin", "routing_relation", "hops", "path", "link"];

fn cells(candidate: &Members) -> impl Iterator<Item = String> + '_ {
    let or_nothing = |name: &&str| candidate.get(name).unwrap_or_else(|| "-".to_owned());
    OF_A_WAY.iter().map(or_nothing)
}

fn ways(answer: Vec<Prefix>) -> String {
    let rows = answer.iter().flat_map(|Prefix { prefix, candidates }| {
        candidates.iter().map(|candidate| {
            let in_force = candidate.get("in_force").as_deref() == Some("true");
            let mut row = vec![shown(prefix)];
            row.extend(cells(candidate));
            row.push(if in_force { "yes" } else { "-" }.to_owned());
            row
        })
    });
    let header = [
        "PREFIX", "USERNAME", "ORIGIN", "RELATION", "HOPS", "PATH", "LINK", "IN FORCE",
    ];
    table(&header, rows)
}

#[derive(Deserialize)]
struct Explanation {
    destination: String,
    from: Option<String>,
    outcome: String,
    next_hop: Option<String>,
    code: Option<String>,
    message: Option<String>,
    reasons: Vec<String>,
    prefix: Option<String>,
    candidates: Vec<Members>,
    shorter: Vec<Route>,
}

#[derive(Deserialize)]
struct Route {
    prefix: String,
    username: String,
}

fn explanation(answer: Explanation) -> String {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: &str| rows.push((name.to_owned(), plain(value)));
    row("destination", &answer.destination);
    if let Some(from) = &answer.from {
        row("from", from);
    }
    match (&answer.code, &answer.message) {
        (Some(code), Some(message)) => row("outcome", &format!("{}: {code}, {message}", answer.outcome)),
        _ => row("outcome", &answer.outcome),
    }
    if let Some(next_hop) = &answer.next_hop {
        row("next hop", next_hop);
    }
    for (place, reason) in answer.reasons.iter().enumerate() {
        row(if place == 0 { "because" } else { "" }, reason);
    }
    if let Some(prefix) = &answer.prefix {
        row("prefix", &shown(prefix));
    }
    for (place, Route { prefix, username }) in answer.shorter.iter().enumerate() {
        let name = if place == 0 { "shorter" } else { "" };
        row(name, &format!("{} leads to {username}", shown(prefix)));
    }
    let summary = list(rows);
    if answer.candidates.is_empty() {
        return summary;
    }
    let ways = answer.candidates.iter().map(|candidate| {
        let mut row: Vec<String> = cells(candidate).collect();
        row.push(candidate.get("behind").unwrap_or_else(|| "in force".to_owned()));
        row
    });
    let header = ["USERNAME", "ORIGIN", "RELATION", "HOPS", "PATH", "LINK", "WHY"];
    format!("{summary}\n\n{}", table(&header, ways))
}
