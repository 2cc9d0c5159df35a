//! `clearway accounts`: everything about accounts, one call each; only the list may take several.

use std::io::{self, Write};

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use url::form_urlencoded;

use super::client::{Answer, Body, Client, NodeArgs, segment};
use super::fields::{self, Fields, SECRETS_HELP};
use super::show::{Members, PagedTable, cell, label, list, plain};
use super::{CliError, print, say, warn};

/// What a node gives at once.
const PAGE: &str = "1000";

#[derive(Subcommand)]
pub enum Command {
    /// List accounts, in the order of their names
    List(List),
    /// Create an account
    #[command(after_help = SECRETS_HELP)]
    Create {
        /// 2 to 32 letters, digits and underscores
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        username: String,
        /// For instance ABC
        #[arg(long, value_name = "CODE")]
        asset_code: String,
        /// How many decimal places its units have: at 9, a unit is 0.000000001 ABC
        #[arg(long, value_name = "SCALE")]
        asset_scale: String,
        #[command(flatten)]
        fields: Fields<false>,
    },
    /// Read an account
    Get(Username),
    /// Change an account; what is not given stays as it is
    #[command(after_help = SECRETS_HELP)]
    Update {
        #[command(flatten)]
        username: Username,
        /// Only of an account without balance
        #[arg(long, value_name = "CODE")]
        asset_code: Option<String>,
        /// Only of an account without balance
        #[arg(long, value_name = "SCALE")]
        asset_scale: Option<String>,
        /// Take a field back to its default, or to none; may be repeated
        #[arg(long, value_name = "FIELD", value_parser = PossibleValuesParser::new(fields::names::<false>()))]
        clear: Vec<String>,
        #[command(flatten)]
        fields: Fields<false>,
    },
    /// Change what the holder of an account may change, as operator or as holder
    #[command(after_help = SECRETS_HELP)]
    Settings {
        #[command(flatten)]
        username: Username,
        /// Take a field back to its default, or to none; may be repeated
        #[arg(long, value_name = "FIELD", value_parser = PossibleValuesParser::new(fields::names::<true>()))]
        clear: Vec<String>,
        #[command(flatten)]
        fields: Fields<true>,
    },
    /// Delete an account; packets in flight are waited for
    Delete {
        #[command(flatten)]
        username: Username,
        /// Even if its balance is not zero: the node takes it over
        #[arg(long)]
        force: bool,
    },
    /// Read a balance: positive is what the node owes the holder
    Balance(Username),
}

#[derive(Args)]
pub struct List {
    /// Only so many, at most 1000 [default: all]
    #[arg(long, value_name = "NUMBER")]
    limit: Option<String>,
    /// Only those behind this user name
    #[arg(long, value_name = "USERNAME")]
    after: Option<String>,
    /// Only those in assets of this code
    #[arg(long, value_name = "CODE")]
    asset_code: Option<String>,
    /// Only those that are NonRoutingAccount, Parent, Peer or Child
    #[arg(long, value_name = "RELATION")]
    routing_relation: Option<String>,
    /// Only addresses that are this or begin with it, by whole segments
    #[arg(long, value_name = "PREFIX")]
    address_prefix: Option<String>,
}

#[derive(Args)]
pub struct Username {
    // Not empty: that path would be the one of all accounts.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    username: String,
}

impl Username {
    fn path(&self) -> String {
        format!("/accounts/{}", segment(&self.username))
    }
}

pub fn run(node: &NodeArgs, command: &Command) -> Result<(), CliError> {
    let client = Client::new(node)?;
    match command {
        Command::List(filter) => list_all(node, &client, filter),
        Command::Create {
            username,
            asset_code,
            asset_scale,
            fields,
        } => {
            let mut body = fields.body(&[])?;
            body.insert("username".to_owned(), username.as_str().into());
            body.insert("asset_code".to_owned(), asset_code.as_str().into());
            body.insert("asset_scale".to_owned(), asset_scale.as_str().into());
            let body = Value::Object(body).to_string();
            print(
                node,
                &client.call("POST", "/accounts", Body::Json(body.as_bytes()))?,
                account,
            )
        }
        Command::Get(username) => print(node, &client.get(&username.path())?, account),
        Command::Update {
            username,
            asset_code,
            asset_scale,
            clear,
            fields,
        } => {
            let mut body = fields.body(clear)?;
            for (name, value) in [("asset_code", asset_code), ("asset_scale", asset_scale)] {
                if let Some(value) = value {
                    body.insert(name.to_owned(), value.as_str().into());
                }
            }
            change(node, &client, &username.path(), body)
        }
        Command::Settings {
            username,
            clear,
            fields,
        } => change(
            node,
            &client,
            &format!("{}/settings", username.path()),
            fields.body(clear)?,
        ),
        Command::Delete { username, force } => {
            let query = if *force { "?force=true" } else { "" };
            let answer = client.call("DELETE", &format!("{}{query}", username.path()), Body::Nothing)?;
            print(node, &answer, deleted)
        }
        Command::Balance(username) => {
            // The node may be set to answer with floats.
            let answer = client.get(&format!("{}/balance?format=integer", username.path()))?;
            print(node, &answer, balance)
        }
    }
}

fn change(node: &NodeArgs, client: &Client, path: &str, body: serde_json::Map<String, Value>) -> Result<(), CliError> {
    if body.is_empty() {
        return Err(CliError::Invalid(
            "nothing to change: give a field, or --clear FIELD".to_owned(),
        ));
    }
    let body = Value::Object(body).to_string();
    print(node, &client.call("PUT", path, Body::Json(body.as_bytes()))?, account)
}

/// Writes page by page: a hub has more accounts than anybody wants to wait for, or to keep.
fn list_all(node: &NodeArgs, client: &Client, filter: &List) -> Result<(), CliError> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", filter.limit.as_deref().unwrap_or(PAGE));
    for (name, value) in [
        ("asset_code", &filter.asset_code),
        ("routing_relation", &filter.routing_relation),
        ("address_prefix", &filter.address_prefix),
        ("after", &filter.after),
    ] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let mut query = query.finish();
    let mut pages = Pages::new(node.json);
    loop {
        let answer = client.get(&format!("/accounts?{query}")).map_err(|error| match error {
            // A list that was begun has no room for another answer.
            error if !pages.is_first => CliError::Failed(error.to_string()),
            error => error,
        })?;
        warn(&answer);
        pages.write(&answer)?;
        match answer.next {
            Some(next) if filter.limit.is_some() => {
                if let Some((_, after)) = form_urlencoded::parse(next.as_bytes()).find(|(name, _)| name == "after") {
                    say(&format!("there are more: --after {after}"));
                }
                break;
            }
            // Whoever sends us in a circle is no node.
            Some(next) if next == query => {
                return Err(CliError::Failed("the next page is the same page again".to_owned()));
            }
            Some(next) => query = next,
            None => break,
        }
    }
    pages.end()
}

/// A list that is written as it comes: as one array, or as one table.
struct Pages {
    json: bool,
    table: PagedTable,
    is_first: bool,
}

impl Pages {
    fn new(json: bool) -> Self {
        Self {
            json,
            table: PagedTable::new(&["USERNAME", "ADDRESS", "ASSET", "SCALE", "RELATION", "LINKS"]),
            is_first: true,
        }
    }

    fn write(&mut self, page: &Answer) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        if self.json {
            let accounts: Vec<Box<RawValue>> = page.json()?;
            for account in accounts {
                let before = if self.is_first { "[" } else { "," };
                write!(out, "{before}\n{account}")?;
                self.is_first = false;
            }
        } else {
            let accounts: Vec<Listed> = page.json()?;
            if self.is_first || !accounts.is_empty() {
                writeln!(out, "{}", self.table.page(accounts.into_iter().map(Listed::row)))?;
            }
            self.is_first = false;
        }
        Ok(out.flush()?)
    }

    fn end(self) -> Result<(), CliError> {
        if !self.json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{}", if self.is_first { "[]" } else { "\n]" })?;
        Ok(out.flush()?)
    }
}

/// What the table shows of an account.
#[derive(Deserialize)]
struct Listed {
    username: String,
    ilp_address: String,
    asset_code: String,
    asset_scale: u8,
    routing_relation: String,
    links: Box<RawValue>,
}

impl Listed {
    fn row(self) -> Vec<String> {
        vec![
            plain(&self.username),
            plain(&self.ilp_address),
            plain(&self.asset_code),
            self.asset_scale.to_string(),
            plain(&self.routing_relation),
            cell(&self.links),
        ]
    }
}

/// All members of an account. Of a token only whether there is one.
fn account(answer: Members) -> String {
    let tokens_set = answer.0.iter().find(|(name, _)| name == "tokens_set");
    let tokens_set: Option<Vec<String>> = tokens_set.and_then(|(_, value)| serde_json::from_str(value.get()).ok());
    let rows = answer
        .0
        .iter()
        .filter_map(|(name, value)| match (&**name, &tokens_set) {
            // Said beside the table, and within it.
            ("warnings" | "tokens_set", _) => None,
            (token, Some(set)) if token.ends_with("_token") => {
                let state = if set.iter().any(|name| name == token) {
                    "set"
                } else {
                    "-"
                };
                Some((label(name), state.to_owned()))
            }
            _ => Some((label(name), cell(value))),
        });
    list(rows)
}

fn deleted(answer: Members) -> String {
    let shown = ["username", "removed_routes", "written_off"];
    list(shown.into_iter().filter_map(|name| {
        let label = if name == "username" {
            "deleted".to_owned()
        } else {
            label(name)
        };
        Some((label, answer.get(name)?))
    }))
}

fn balance(answer: Members) -> String {
    let member = |name| answer.get(name).unwrap_or_else(|| "-".to_owned());
    list(answer.0.iter().filter_map(|(name, value)| match &**name {
        "asset_code" | "asset_scale" | "balance_scaled" => None,
        "balance" => {
            let (scaled, code, scale) = (member("balance_scaled"), member("asset_code"), member("asset_scale"));
            let units = cell(value);
            Some((
                label(name),
                format!("{units} at scale {scale}, which is {scaled} {code}"),
            ))
        }
        _ => Some((label(name), cell(value))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(json: &str) -> Members {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn answers_for_people() {
        assert_eq!(
            account(members(
                r#"{"username":"alice","min_balance":null,"ilp_over_http_incoming_token":"SECRET",
                    "ilp_over_btp_incoming_token":"SECRET","tokens_set":["ilp_over_btp_incoming_token"],
                    "links":{"http":null,"btp":"waiting"},"warnings":[{"field":"x","message":"y"}]}"#
            )),
            "username                      alice\n\
             min balance                   -\n\
             ilp over http incoming token  -\n\
             ilp over btp incoming token   set\n\
             links                         btp waiting"
        );
        assert_eq!(
            account(members(r#"{"ilp_over_http_incoming_token":"SECRET"}"#)),
            "ilp over http incoming token  SECRET",
            "a node that does not say which are set"
        );
        assert_eq!(
            balance(members(
                r#"{"balance":-170141183460469231731687303715884105728,"asset_code":"ABC","asset_scale":2,
                    "balance_scaled":"-1701411834604692317316873037158841057.28","prepaid_amount":0,"held":7}"#
            )),
            "balance         -170141183460469231731687303715884105728 at scale 2, which is \
             -1701411834604692317316873037158841057.28 ABC\n\
             prepaid amount  0\n\
             held            7"
        );
        assert_eq!(
            deleted(members(
                r#"{"id":"x","username":"alice","removed_routes":["g.a","g.b"],"written_off":-5}"#
            )),
            "deleted         alice\nremoved routes  g.a, g.b\nwritten off     -5"
        );
    }
}
