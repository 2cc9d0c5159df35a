//! Where options come from: the environment, documents in YAML, JSON or TOML, standard input, and the file itself.
//!
//! Owns turning each of them into names and values in text. Which names there are, and what a value may be, is the
//! business of [`super`]. The two readers that touch the process ([`read_file`], [`read_standard_input`]) are
//! handed to [`super::read`], so that tests can do without them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use super::ConfigError;

/// No configuration is longer.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;
/// How deep tables may lie in each other.
const DEPTH_MAX: usize = 8;
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

/// An option as some source gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// With underscores, and dots between the names of nested tables.
    pub name: String,
    pub value: String,
    pub source: Source,
}

/// Every variable that begins with `ILP_`, in any case, except those of the command-line client.
pub fn from_environment(environment: &[(String, String)]) -> Vec<Given> {
    let mut given: Vec<Given> = environment
        .iter()
        .filter_map(|(variable, value)| {
            let lower = variable.to_ascii_lowercase();
            let name = lower.strip_prefix("ilp_").filter(|name| !name.starts_with("cli_"))?;
            // The prefix is part of this one name: ILP_ADDRESS.
            let name = if name == "address" {
                "ilp_address".to_owned()
            } else {
                name.replace("__", ".")
            };
            Some(Given {
                name,
                value: value.clone(),
                source: Source::Environment(variable.clone()),
            })
        })
        .collect();
    // The environment has no order. ILP_ADDRESS comes before ILP_ILP_ADDRESS this way, and wins.
    given.sort_by_cached_key(|option| option.source.to_string());
    given
}

/// A text with options, and what is known of its format.
pub enum Document<'a> {
    Stdin,
    /// The extension of the path tells.
    File(&'a str),
}

/// Reads a document. Nested tables become names with dots.
pub fn from_document(text: &str, document: Document<'_>) -> Result<Vec<Given>, ConfigError> {
    let (source, value) = match document {
        Document::Stdin => (Source::Stdin, json(text).or_else(|_| yaml(text))),
        Document::File(path) => {
            let extension = Path::new(path)
                .extension()
                .and_then(|extension| extension.to_str())
                .unwrap_or("");
            let value = match extension.to_ascii_lowercase().as_str() {
                "json" => json(text),
                "toml" => toml(text),
                "yaml" | "yml" => yaml(text),
                // A text that several of them take means the same in all.
                _ => json(text).or_else(|_| toml(text)).or_else(|_| yaml(text)),
            };
            (Source::File(path.to_owned()), value)
        }
    };
    let unreadable = |reason| ConfigError::Unreadable {
        place: source.to_string(),
        reason,
    };
    let mut given = Vec::new();
    match value.map_err(unreadable)? {
        Value::Null => {}
        Value::Object(members) => flatten("", members, DEPTH_MAX, &source, &mut given)?,
        _ => return Err(unreadable("expected names and values".to_owned())),
    }
    Ok(given)
}

// The messages of these parsers name a line, and may repeat what stands there: so only the line is taken over.

fn json(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).map_err(|error| format!("this is no JSON: line {}", error.line()))
}

fn yaml(text: &str) -> Result<Value, String> {
    serde_yaml_ng::from_str(text).map_err(|error| match error.location() {
        Some(location) => format!("this is no YAML: line {}", location.line()),
        None => "this is no YAML".to_owned(),
    })
}

fn toml(text: &str) -> Result<Value, String> {
    toml::from_str(text).map_err(|error| match error.span() {
        Some(span) => format!("this is no TOML: line {}", text[..span.start].matches('\n').count() + 1),
        None => "this is no TOML".to_owned(),
    })
}

fn flatten(
    prefix: &str,
    members: serde_json::Map<String, Value>,
    depth: usize,
    source: &Source,
    given: &mut Vec<Given>,
) -> Result<(), ConfigError> {
    for (key, value) in members {
        let name = format!("{prefix}{}", key.replace('-', "_"));
        let invalid = |rule: &str| ConfigError::Invalid {
            option: name.clone(),
            place: source.to_string(),
            rule: rule.to_owned(),
        };
        let value = match value {
            Value::Null => continue,
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            Value::String(value) => value,
            Value::Array(_) => return Err(invalid("expected one value")),
            Value::Object(_) if depth == 0 => return Err(invalid("lies too deep")),
            Value::Object(members) => {
                flatten(&format!("{name}."), members, depth - 1, source, given)?;
                continue;
            }
        };
        if given.iter().any(|other| other.name == name) {
            return Err(invalid("is there twice"));
        }
        given.push(Given {
            name,
            value,
            source: source.clone(),
        });
    }
    Ok(())
}

/// The directives of `RUST_LOG` in our own names: unit files written for another node name its crates, and mean the
/// whole program.
pub fn log_filter(text: &str) -> String {
    let translate = |directive: &str| {
        let directive = directive.trim();
        let (target, level) = directive
            .split_once('=')
            .map_or((directive, None), |(target, level)| (target, Some(level)));
        let krate = target.split("::").next().unwrap_or_default().replace('-', "_");
        if krate != "ilp" && krate != "interledger" && !krate.starts_with("interledger_") {
            return directive.to_owned();
        }
        level.map_or("clearway".to_owned(), |level| format!("clearway={level}"))
    };
    text.split(',').map(translate).collect::<Vec<_>>().join(",")
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
