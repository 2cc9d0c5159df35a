//! Where options come from: the environment, standard input, and a file.
//!
//! Owns reading them, and names and values in the environment. Which names there are, and what a value may be, is the
//! business of [`super`]; names and values in texts are [`super::document`]'s. The readers that touch the process
//! ([`read_environment`], [`read_file`], [`read_standard_input`]) are handed to [`super::read`], so that tests can do
//! without them.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::mpsc;
use std::time::Duration;

use super::ConfigError;
use super::options::{PROVIDERS, own_name};

/// Which log lines are written; the one setting that only the environment has, under the name all Rust programs use.
pub const LOG_VARIABLE: &str = "RUST_LOG";
/// No configuration is longer.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;
/// When an operator is told that the node waits for standard input.
const STDIN_NOTICE_AFTER: Duration = Duration::from_secs(1);
/// When the node starts without it: a supervisor may leave a pipe open for ever.
const STDIN_GIVEN_UP_AFTER: Duration = Duration::from_secs(9);

/// Everything that configures a process.
pub struct Sources<'a> {
    /// With the name of the program first.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// The text of a file, or why there is none.
    pub read_file: &'a dyn Fn(&str) -> Result<String, String>,
    /// The text of standard input, if it is to be read. The argument: it must be, whatever it is.
    pub read_stdin: &'a mut dyn FnMut(bool) -> Result<Option<String>, String>,
}

/// Where an option was found, for messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    CommandLine,
    /// With the name of the variable.
    Environment(String),
    Stdin,
    /// With its path.
    File(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::Environment(variable) => write!(f, "the environment ({variable})"),
            Self::Stdin => f.write_str("standard input"),
            Self::File(path) => write!(f, "the file {path}"),
        }
    }
}

/// An option as some source gives it. Has no `Debug`: it would print secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    /// Our own name, with underscores, and dots between the names of nested tables.
    pub name: String,
    pub value: String,
    /// False: a number or a truth, and the source may have had other characters for it.
    pub as_written: bool,
    pub source: Source,
}

impl Given {
    /// An option by any of its names. A table below a provider of exchange rates has one member, the provider with its key.
    pub fn new(name: &str, value: String, as_written: bool, source: Source) -> Self {
        let name = own_name(name);
        let below = |option| Some((option, name.strip_prefix(option)?.strip_prefix('.')?));
        let (name, value) = match PROVIDERS.into_iter().find_map(below) {
            Some((option, provider)) => (option.to_owned(), format!("{provider}:{value}")),
            None => (name, value),
        };
        Self {
            name,
            value,
            as_written,
            source,
        }
    }
}

/// Every variable that begins with `ILP_`, in any case, except those of the command-line client.
pub fn from_environment(environment: &[(String, String)]) -> Vec<Given> {
    // Of two names of one option our own wins, and `ILP_ADDRESS` over `ILP_ILP_ADDRESS`. Beyond that the environment has
    // no order: then the spelling decides, which is the same at every start.
    let mut given: Vec<((bool, String), Given)> = environment
        .iter()
        .filter_map(|(variable, value)| {
            let lower = variable.to_ascii_lowercase();
            let name = lower.strip_prefix("ilp_").filter(|name| !name.starts_with("cli_"))?;
            let name = match name {
                // The prefix is part of this one name.
                "address" => "ilp_address".to_owned(),
                name => name.replace("__", "."),
            };
            let source = Source::Environment(variable.clone());
            let option = Given::new(&name, value.clone(), true, source);
            let is_other_name = option.name != name || lower == "ilp_ilp_address";
            Some(((is_other_name, variable.clone()), option))
        })
        .collect();
    given.sort_by(|(one, _), (other, _)| one.cmp(other));
    given.into_iter().map(|(_, option)| option).collect()
}

/// The environment of this process. What is no text cannot be an option's value, and is no concern of ours elsewhere.
pub fn read_environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut environment = Vec::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if name == LOG_VARIABLE || !from_environment(&[(name.clone(), String::new())]).is_empty() => {
                return Err(ConfigError::Unreadable {
                    place: Source::Environment(name).to_string(),
                    reason: "the value is not UTF-8".to_owned(),
                });
            }
            Err(_) => {}
        }
    }
    Ok(environment)
}

/// Reads a configuration file.
pub fn read_file(path: &str) -> Result<String, String> {
    File::open(path)
        .and_then(read_bounded)
        .map_err(|error| error.to_string())
}

/// Reads standard input to its end, if it is a pipe or a file, or if it must be. Under a supervisor a pipe may stay
/// open without a word: then `notice` is called, first to say so, at last to say that the node goes on without it.
pub fn read_standard_input(forced: bool, notice: &dyn Fn(&str)) -> Result<Option<String>, String> {
    // A closed standard input is none.
    let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else {
        return Ok(None);
    };
    let kind = stdin.metadata().map_err(|error| error.to_string())?.file_type();
    if !forced && !kind.is_fifo() && !kind.is_file() {
        return Ok(None);
    }
    let (done, text) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = done.send(read_bounded(stdin));
    });
    let text = text.recv_timeout(STDIN_NOTICE_AFTER).or_else(|_| {
        notice("waiting for the end of the configuration on standard input");
        if forced {
            return text.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected);
        }
        text.recv_timeout(STDIN_GIVEN_UP_AFTER)
    });
    match text {
        Ok(text) => text.map(Some).map_err(|error| error.to_string()),
        Err(_) => {
            notice("standard input did not end; going on without it");
            Ok(None)
        }
    }
}

fn read_bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    let read = file.take(DOCUMENT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > DOCUMENT_BYTES_MAX {
        return Err(io::Error::other(format!("longer than {DOCUMENT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn names_in_the_environment() {
        for (environment, options) in [
            ("ILP_SHARDS=2", "shards=2"),
            ("ilp_shards=2", "shards=2"),
            ("Ilp_Shards=2", "shards=2"),
            ("ILP_DATA_DIR=x", "data_dir=x"),
            ("ILP_EXCHANGE_RATE__SPREAD=0.1", "exchange_rate.spread=0.1"),
            ("ILP_EXCHANGE_RATE_SPREAD=0.1", "exchange_rate.spread=0.1"),
            (
                "ilp_exchange_rate__provider__CryptoCompare=k",
                "exchange_rate.provider=cryptocompare:k",
            ),
            (
                "ILP_EXCHANGE_RATE__SECOND_PROVIDER__CryptoCompare=k",
                "exchange_rate.second_provider=cryptocompare:k",
            ),
            (
                "ILP_EXCHANGE_RATE__PROVIDER_URL=http://h",
                "exchange_rate.provider_url=http://h",
            ),
            ("ILP_PROMETHEUSCONFIG__BIND_ADDRESS=x", "prometheus.bind_address=x"),
            ("ILP_ADDRESS=g.one", "ilp_address=g.one"),
            ("ILP_ILP_ADDRESS=g.two", "ilp_address=g.two"),
            (
                "ilp_ILP_address=g.two ilp_address=g.one",
                "ilp_address=g.one ilp_address=g.two",
            ),
            (
                "ILP_ILP_ADDRESS=g.two ILP_ADDRESS=g.one",
                "ilp_address=g.one ilp_address=g.two",
            ),
            (
                "ILP_EXCHANGE_RATE_SPREAD=1 ilp_exchange_rate__spread=2",
                "exchange_rate.spread=2 exchange_rate.spread=1",
            ),
            (
                "ILP_CLI_NODE_URL=x ILP_CLI_API_AUTH=x Ilp_Cli_Other=x ILPX=x XILP_SHARDS=2",
                "",
            ),
        ] {
            let variables: Vec<(String, String)> = environment
                .split(' ')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            let given = from_environment(&variables);
            let shown: Vec<String> = given
                .iter()
                .map(|option| format!("{}={}", option.name, option.value))
                .collect();
            assert_eq!(shown.join(" "), options, "{environment}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_where_it_matters() {
        let no_text = || OsString::from_vec(vec![b'a', 0xff]);
        for (name, refused) in [
            ("ILP_DATA_DIR", true),
            ("ilp_admin_auth_token", true),
            ("RUST_LOG", true),
            ("ILP_CLI_API_AUTH", false),
            ("LS_COLORS", false),
        ] {
            let read = read_environment([(name.into(), no_text())].into_iter());
            assert_eq!(read.is_err(), refused, "{name}");
            let said = read.map_or_else(|error| error.to_string(), |_| String::new());
            assert!(said.is_empty() || said.contains(name), "{said}");
        }
        assert_eq!(read_environment([(no_text(), no_text())].into_iter()), Ok(vec![]));
    }

    #[test]
    fn a_file_has_a_limit() {
        let path = std::env::temp_dir().join(format!("clearway-config-{}", std::process::id()));
        let name = path.to_str().expect("the name is ASCII");
        for (length, is_read) in [(DOCUMENT_BYTES_MAX, true), (DOCUMENT_BYTES_MAX + 1, false)] {
            std::fs::write(&path, " ".repeat(length as usize)).unwrap();
            assert_eq!(read_file(name).is_ok(), is_read, "{length}");
        }
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        assert!(read_file(name).is_err(), "it is no text");
        std::fs::remove_file(&path).unwrap();
        assert!(read_file(name).is_err(), "it is missing");
    }
}
