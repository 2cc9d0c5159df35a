//! The command line: what curl can ask of a node, for people who prefer tables, and what is done beside a running node.
//!
//! Owns words, tables and exit codes. Whatever a node is asked goes through the same HTTP API that curl uses
//! ([`client`]), so nothing can be done here that an operator's script could not do. Leaves running a node to
//! [`crate::connector`], whose command line is [`crate::config`]'s.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 the command line cannot be used.

mod client;
mod status;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::Value;

use client::{Client, NodeArgs};

/// One command and what all of them share.
#[derive(Parser)]
#[command(name = "clearway", version, disable_version_flag = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Is the node ready, and under which address
    Status(NodeArgs),
}

/// Why a command did not do what it was asked to. One message a person can act on.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The node answered, and refused.
    #[error("{status} {title}: {detail}")]
    Refused { status: u16, title: String, detail: String },
    #[error("{node}: {reason}")]
    Unreachable { node: String, reason: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Output(#[from] io::Error),
}

/// Runs a command if the arguments (with the program's name first) name one. `None`: they are for a node to run.
pub fn run(arguments: &[String]) -> Option<ExitCode> {
    let parser = CommandLine::command();
    let named = arguments.get(1)?;
    if named != "help" && parser.find_subcommand(named).is_none() {
        return None;
    }
    let command = match parser
        .try_get_matches_from(arguments)
        .and_then(|matches| CommandLine::from_arg_matches(&matches))
    {
        Ok(line) => line.command,
        Err(error) => {
            // Help goes to standard output and is no failure. Nobody may be listening any more.
            let _ = error.print();
            return Some(ExitCode::from(if error.use_stderr() { 2 } else { 0 }));
        }
    };
    let done = match command {
        Command::Status(node) => status::run(&node),
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clearway: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Writes a JSON answer for programs, or what `show` makes of it for people.
fn print(node: &NodeArgs, answer: &Value, show: impl FnOnce(&Value) -> String) -> Result<(), CliError> {
    let text = if node.json {
        serde_json::to_string_pretty(answer).expect("JSON can be written again")
    } else {
        show(answer)
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

impl NodeArgs {
    fn client(&self) -> Result<Client, CliError> {
        Client::new(self)
    }
}
