//! The command line: what curl can ask of a node, for people who prefer tables, and what is done beside a running node.
//!
//! Owns words, tables and exit codes. Whatever a node is asked goes through the same HTTP API that curl uses
//! ([`client`]), so nothing can be done here that an operator's script could not do, and every value goes to the node as
//! it was typed: the node alone knows which are valid. Leaves running a node to [`crate::connector`], whose command line
//! is [`crate::config`]'s.
//!
//! With `--json` standard output is the node's own answer, also when it refuses. Else it is tables, whose width depends
//! on nothing but what is in them. Errors and warnings go to standard error, and no secret goes anywhere but to the node.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 the command line cannot be used.

mod accounts;
mod backup;
mod check;
mod client;
mod engines;
mod fields;
mod input;
mod node;
mod pay;
mod rates;
mod routes;
mod settlements;
mod show;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use serde::de::{DeserializeOwned, IgnoredAny};

use backup::BackupArgs;
pub use check::run as check;
use client::{Answer, NodeArgs};
use show::plain;

/// One command.
#[derive(Parser)]
#[command(
    name = "clearway",
    version,
    disable_version_flag = true,
    about = "Asks a running node through its HTTP API.",
    after_help = "Without one of these commands clearway is the node itself: see clearway --help. A configuration file
\
                  that is named like a command is given as ./accounts."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Is the node ready, and does its book add up. Exit code 1 if not
    #[command(
        after_help = "The book is checked if there is an admin token. With --json: {\"node\": the answer to GET /, \
                            \"audit\": the one to GET /ledger/audit, or null}."
    )]
    Status {
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Create, list, read, change and delete accounts; read a balance
    Accounts {
        #[command(flatten)]
        node: NodeArgs,
        #[command(subcommand)]
        command: accounts::Command,
    },
    /// Read all routes; set fixed ones
    Routes {
        #[command(flatten)]
        node: NodeArgs,
        #[command(subcommand)]
        command: routes::Command,
    },
    /// Read, replace or confirm the exchange rates
    Rates {
        #[command(flatten)]
        node: NodeArgs,
        #[command(subcommand)]
        command: rates::Command,
    },
    /// Say which settlement engine settles an asset
    Engines {
        #[command(flatten)]
        node: NodeArgs,
        #[command(subcommand)]
        command: engines::Command,
    },
    /// List what goes to settlement engines; settle now, cancel, retry
    Settlements {
        #[command(flatten)]
        node: NodeArgs,
        #[command(subcommand)]
        command: settlements::Command,
    },
    /// Pay from an account, as its holder
    #[command(after_help = pay::HELP)]
    Pay {
        #[command(flatten)]
        payment: pay::Payment,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Change which log lines the node writes, until it stops
    LogLevel {
        /// Directives, merged into those in force: debug, or ledger=debug,net=info
        filter: String,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Print completions for a shell
    #[command(after_help = "For bash:  source <(clearway completions bash)")]
    Completions { shell: Shell },
    /// Copy the book into a new folder, from a running node or while none is running
    Backup(BackupArgs),
}

/// Why a command did not do what it was asked to. One message a person can act on.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The node answered, and refused.
    #[error("{status} {title}: {detail}")]
    Refused {
        status: u16,
        title: String,
        detail: String,
        /// The whole answer.
        body: String,
    },
    #[error("{node} gave no answer: {reason}")]
    Unreachable {
        node: String,
        reason: String,
        /// Certainly nothing was sent. Otherwise the node may have done what it was asked to.
        unsent: bool,
    },
    /// The node answered what we cannot read, or what should not be.
    #[error("{0}")]
    Failed(String),
    /// The command line cannot be used.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Output(#[from] io::Error),
}

/// Runs a command if the arguments (with the program's name first) name one. `None`: they are for a node to run.
pub fn run(arguments: &[OsString]) -> Option<ExitCode> {
    let parser = CommandLine::command();
    let named = arguments.get(1)?;
    if named != "help" && parser.find_subcommand(named).is_none() {
        return None;
    }
    let parsed = parser.try_get_matches_from(arguments).and_then(|matches| {
        let wants_json = wants_json(&matches);
        Ok((CommandLine::from_arg_matches(&matches)?.command, wants_json))
    });
    let (command, wants_json) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help goes to standard output and is no failure. Nobody may be listening any more.
            let _ = error.print();
            return Some(ExitCode::from(if error.use_stderr() { 2 } else { 0 }));
        }
    };
    let done = match &command {
        Command::Status { node } => node::status(node),
        Command::Accounts { node, command } => accounts::run(node, command),
        Command::Routes { node, command } => routes::run(node, command),
        Command::Rates { node, command } => rates::run(node, command),
        Command::Engines { node, command } => engines::run(node, command),
        Command::Settlements { node, command } => settlements::run(node, command),
        Command::Pay { node, payment } => pay::run(node, payment),
        Command::LogLevel { node, filter } => node::log_level(node, filter),
        Command::Completions { shell } => completions(*shell),
        Command::Backup(arguments) => backup::run(arguments),
    };
    let Err(error) = done else {
        return Some(ExitCode::SUCCESS);
    };
    if let (CliError::Refused { body, .. }, true) = (&error, wants_json)
        && serde_json::from_str::<IgnoredAny>(body).is_ok()
    {
        // The line on standard error says it as well, should nobody be listening here.
        let _ = write_out(body);
    }
    Some(match error {
        // Whoever reads our output has seen enough.
        CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        CliError::Invalid(rule) => {
            say(&rule);
            ExitCode::from(2)
        }
        error => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    })
}

/// Whether the command was given `--json`. Some commands do not have it.
fn wants_json(matches: &ArgMatches) -> bool {
    let here = matches
        .try_get_one::<bool>("json")
        .ok()
        .flatten()
        .is_some_and(|json| *json);
    here || matches.subcommand().is_some_and(|(_, below)| wants_json(below))
}

/// Of the commands and of the node's own options, which stand in the same place.
fn completions(shell: Shell) -> Result<(), CliError> {
    let commands = CommandLine::command();
    let mut all = crate::config::command_line().subcommands(commands.get_subcommands().cloned());
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut all, "clearway", &mut script);
    write_out(&String::from_utf8_lossy(&script))
}

/// Writes a JSON answer for programs, or what `show` makes of it for people, and says its warnings.
fn print<T: DeserializeOwned>(
    node: &NodeArgs,
    answer: &Answer,
    show: impl FnOnce(T) -> String,
) -> Result<(), CliError> {
    let text = if node.json {
        // As it came, if it is JSON at all: numbers of any size, members that we do not know.
        answer.json::<IgnoredAny>()?;
        answer.body.clone()
    } else {
        show(answer.json()?)
    };
    warn(answer);
    write_out(&text)
}

/// Writes an answer that is a text: as a JSON text for programs, or what `show` makes of it for people.
fn print_text(node: &NodeArgs, answer: &Answer, show: impl FnOnce(&str) -> String) -> Result<(), CliError> {
    warn(answer);
    let text = answer.body.trim();
    if node.json {
        write_out(&serde_json::to_string(text).expect("a text can be written as JSON"))
    } else {
        write_out(&show(&plain(text)))
    }
}

/// Says what the node did and did not like.
fn warn(answer: &Answer) {
    for warning in answer.warnings() {
        say(&format!("warning: {warning}"));
    }
}

/// Writes to standard output, with one line end behind it.
fn write_out(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

/// Writes one line to standard error.
fn say(text: &str) {
    // Where this cannot be written there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "clearway: {}", plain(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap's own check of all commands: no option twice, no impossible combination.
    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn only_a_known_first_word_is_a_command() {
        for arguments in [
            "",
            "config.yaml",
            "./accounts",
            "-",
            "- config.yaml",
            "--shards 2",
            "--data_dir accounts",
            "--help",
            "--version",
            "account",
            "ACCOUNTS",
        ] {
            let arguments: Vec<OsString> = std::iter::once("clearway")
                .chain(arguments.split_whitespace())
                .map(OsString::from)
                .collect();
            assert!(run(&arguments).is_none(), "{arguments:?} is for the node");
        }
    }

    #[test]
    fn json_is_seen_before_and_behind_the_inner_command() {
        for (line, expected) in [
            ("status --json", true),
            ("status", false),
            ("accounts --json list", true),
            ("accounts list --json", true),
            ("accounts list", false),
            ("completions bash", false),
        ] {
            let words = std::iter::once("clearway").chain(line.split_whitespace());
            let matches = CommandLine::command().try_get_matches_from(words).unwrap();
            assert_eq!(wants_json(&matches), expected, "{line}");
        }
    }
}
