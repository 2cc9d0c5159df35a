//! Configuration: command line, environment, standard input and a file become one checked [`Config`].
//!
//! Owns which source wins, the rules between options, and the help text. The options themselves are one table in
//! [`options`], through which every source goes; reading the sources is [`sources`]'s. [`read`] is a function of what
//! it is given, so it is tested without a process.
//!
//! Always: an option that nobody knows, or a value that breaks its rule, stops the start with a message that names
//! option, source and rule; no message holds the value of a secret. Nothing below the connector knows the name of an
//! option.

mod options;
pub mod sources;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, Command as CommandLine};

use crate::store::Durability;

use options::{IGNORED, OPTIONS, SHARDS_MAX};
pub(crate) use options::{read_seed, read_token};
use sources::{Document, Given, Source, Sources};

/// Everything that is decided before the node starts.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// The node's own address.
    pub ilp_address: Box<str>,
    /// Root of all secrets at rest. None: kept in the data folder, see [`crate::keys`].
    pub secret_seed: Option<[u8; 32]>,
    /// What the operator's calls carry. None: kept in the data folder.
    pub admin_auth_token: Option<Box<str>>,
    /// API, ILP-over-HTTP and BTP.
    pub http_bind_address: SocketAddr,
    pub settlement_api_bind_address: SocketAddr,
    pub data_dir: PathBuf,
    /// At least 1.
    pub shards: usize,
    pub durability: Durability,
    /// What a power cut may cost under [`Durability::Relaxed`].
    pub flush_interval: Duration,
    /// Whether a packet may leave to the account it came from.
    pub reflect_payments: bool,
    /// Whether the node answers echo packets to its own address.
    pub echo: bool,
    /// How much earlier than the incoming Prepare the outgoing one expires, in milliseconds.
    pub min_message_window_ms: u32,
    /// The longest time a Prepare is held, in milliseconds.
    pub max_hold_time_ms: u32,
    /// Which log lines are written, in the directives of `tracing`.
    pub log_filter: String,
    /// What the operator should know and what did not stop the start.
    pub warnings: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ilp_address: "local.host".into(),
            secret_seed: None,
            admin_auth_token: None,
            http_bind_address: ([127, 0, 0, 1], 7770).into(),
            settlement_api_bind_address: ([127, 0, 0, 1], 7771).into(),
            data_dir: "./data".into(),
            shards: std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(SHARDS_MAX),
            durability: Durability::Commit,
            flush_interval: Duration::from_millis(5),
            reflect_payments: true,
            echo: true,
            min_message_window_ms: 1_000,
            max_hold_time_ms: 30_000,
            log_filter: "info".to_owned(),
            warnings: vec![],
        }
    }
}

impl fmt::Debug for Config {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("ilp_address", &self.ilp_address)
            .field("http_bind_address", &self.http_bind_address)
            .field("settlement_api_bind_address", &self.settlement_api_bind_address)
            .field("data_dir", &self.data_dir)
            .field("shards", &self.shards)
            .field("log_filter", &self.log_filter)
            .finish_non_exhaustive()
    }
}

/// What the command line asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Run the node.
    Run(Box<Config>),
    /// Print this and end: the help text or the version.
    Print(String),
}

/// Why there is no configuration. The process ends with code 2.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{place}: there is no option {option}; --help lists all")]
    Unknown { option: String, place: String },
    #[error("{place}: {option}: {rule}")]
    Invalid {
        option: String,
        place: String,
        rule: String,
    },
    #[error("{place}: {reason}")]
    Unreadable { place: String, reason: String },
    /// What is wrong with the command line, and how it is used.
    #[error("{0}")]
    Usage(String),
}

/// Reads all sources. Where several name an option the first of these wins: command line, environment, standard input,
/// file.
pub fn read(sources: Sources<'_>) -> Result<Command, ConfigError> {
    let arguments = sources.arguments.iter().map(|argument| with_underscores(argument));
    let matches = match command_line().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => {
            let message = error.to_string();
            return Err(ConfigError::Usage(
                message.trim_start_matches("error: ").trim_end().to_owned(),
            ));
        }
        Err(help_or_version) => return Ok(Command::Print(help_or_version.to_string())),
    };
    let mut positional = matches.get_many::<String>("FILE").unwrap_or_default().peekable();
    let stdin_forced = positional.next_if(|first| *first == "-").is_some();
    let file = positional.next();
    if positional.next().is_some() {
        return Err(ConfigError::Usage("expected one configuration file at most".to_owned()));
    }

    let mut given = Vec::new();
    for name in names() {
        if let Some(value) = matches.get_one::<String>(name) {
            given.push(Given {
                name: name.to_owned(),
                value: value.clone(),
                source: Source::CommandLine,
            });
        }
    }
    given.extend(sources::from_environment(&sources.environment));
    if let Some(text) = (sources.read_stdin)(stdin_forced).map_err(|reason| unreadable(&Source::Stdin, reason))? {
        given.extend(sources::from_document(&text, Document::Stdin)?);
    }
    if let Some(path) = file {
        let source = Source::File(path.clone());
        let text = (sources.read_file)(path).map_err(|reason| unreadable(&source, reason))?;
        given.extend(sources::from_document(&text, Document::File(path))?);
    }
    let mut config = assemble(given)?;
    if let Some(filter) = sources
        .environment
        .iter()
        .find(|(name, _)| name == "RUST_LOG")
        .map(|(_, value)| value)
        && !filter.trim().is_empty()
    {
        config.log_filter = sources::log_filter(filter);
    }
    Ok(Command::Run(Box::new(config)))
}

fn unreadable(source: &Source, reason: String) -> ConfigError {
    ConfigError::Unreadable {
        place: source.to_string(),
        reason,
    }
}

/// Makes a configuration of what was given, in the order in which sources win.
fn assemble(given: Vec<Given>) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let mut seen: Vec<&Given> = Vec::new();
    let mut warnings = Vec::new();
    for option in &given {
        if let Some(winner) = seen.iter().find(|winner| winner.name == option.name) {
            if winner.value != option.value {
                let (winner, loser) = (&winner.source, &option.source);
                warnings.push(format!("{}: {winner} and {loser} differ; {winner} wins", option.name));
            }
            continue;
        }
        seen.push(option);
        if IGNORED.contains(&option.name.as_str()) {
            warnings.push(format!(
                "{}: {} has no effect; everything is kept in data_dir",
                option.name, option.source
            ));
            continue;
        }
        let Some(spec) = OPTIONS.iter().find(|spec| spec.name == option.name) else {
            return Err(ConfigError::Unknown {
                option: option.name.clone(),
                place: option.source.to_string(),
            });
        };
        (spec.set)(&mut config, &option.value).map_err(|rule| ConfigError::Invalid {
            option: option.name.clone(),
            place: option.source.to_string(),
            rule,
        })?;
    }
    check_relations(&config)?;
    config.warnings = warnings;
    Ok(config)
}

/// Rules between options.
fn check_relations(config: &Config) -> Result<(), ConfigError> {
    let invalid = |option: &str, rule: &str| ConfigError::Invalid {
        option: option.to_owned(),
        place: "the configuration".to_owned(),
        rule: rule.to_owned(),
    };
    if config.http_bind_address == config.settlement_api_bind_address && config.http_bind_address.port() != 0 {
        return Err(invalid(
            "settlement_api_bind_address",
            "is the same as http_bind_address",
        ));
    }
    if config.min_message_window_ms >= config.max_hold_time_ms {
        return Err(invalid(
            "min_message_window_ms",
            "leaves no time within max_hold_time_ms",
        ));
    }
    Ok(())
}

fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|spec| spec.name).chain(IGNORED)
}

fn command_line() -> CommandLine {
    let options = OPTIONS.iter().map(|spec| {
        let help = format!("{} [default: {}]", spec.help, spec.default);
        long_option(spec.name).value_name(spec.value).help(help)
    });
    let ignored = IGNORED.iter().map(|name| long_option(name).hide(true));
    CommandLine::new("clearway")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs an Interledger connector: forwards ILP packets between its accounts and keeps their ledger.")
        .override_usage("clearway [OPTIONS] [-] [FILE]")
        .arg(
            Arg::new("FILE")
                .num_args(0..)
                .action(ArgAction::Append)
                .help("Configuration in YAML, JSON or TOML; a leading - reads standard input, whatever it is"),
        )
        .args(options)
        .args(ignored)
        .after_help(
            "Every option can also be set in the environment (ILP_SHARDS=2; ILP_ADDRESS for ilp_address), on standard\n\
             input (YAML or JSON) or in the file. The command line wins over the environment, the environment over\n\
             standard input, standard input over the file. Hyphens may stand for underscores. RUST_LOG sets which log\n\
             lines are written, for instance RUST_LOG=debug or RUST_LOG=clearway::shard=trace.",
        )
}

fn long_option(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::Set)
}

/// The same argument, but `--data-dir=a-b` as `--data_dir=a-b`.
fn with_underscores(argument: &str) -> String {
    match argument.strip_prefix("--") {
        None => argument.to_owned(),
        Some(option) => {
            let (name, value) = option.split_at(option.find('=').unwrap_or(option.len()));
            format!("--{}{value}", name.replace('-', "_"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of command line, environment (`NAME=VALUE`, one per line), standard input and a file.
    fn run(arguments: &str, environment: &str, stdin: &str, file: &str) -> Result<Command, ConfigError> {
        let program = std::iter::once("clearway");
        read(Sources {
            arguments: program.chain(arguments.split_whitespace()).map(str::to_owned).collect(),
            environment: environment
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            read_stdin: &mut |_| Ok((!stdin.is_empty()).then(|| stdin.to_owned())),
            read_file: &|path| {
                if file.is_empty() {
                    Err(format!("{path} is missing"))
                } else {
                    Ok(file.to_owned())
                }
            },
        })
    }

    fn config(arguments: &str, environment: &str, stdin: &str, file: &str) -> Config {
        match run(arguments, environment, stdin, file) {
            Ok(Command::Run(config)) => *config,
            other => panic!("{arguments}: {other:?}"),
        }
    }

    #[test]
    fn defaults_in_the_help_text_are_the_defaults() {
        for spec in OPTIONS {
            // Some defaults are words: they depend on the machine, or are made at the first start.
            if !spec.default.contains(' ') {
                let mut config = Config::default();
                (spec.set)(&mut config, spec.default).unwrap();
                assert!(config == Config::default(), "{}", spec.name);
            }
        }
        assert_eq!(config("", "", "", ""), Config::default());
    }

    #[test]
    fn every_placesets_every_option_and_the_order_is_kept() {
        let seed = "ab".repeat(32);
        for (name, value) in [
            ("ilp_address", "g.hub"),
            ("secret_seed", &*seed),
            ("admin_auth_token", "token"),
            ("http_bind_address", "0.0.0.0:1"),
            ("settlement_api_bind_address", "[::1]:2"),
            ("data_dir", "/somewhere"),
            ("shards", "3"),
            ("durability", "relaxed"),
            ("flush_interval_ms", "50"),
            ("reflect_payments", "false"),
            ("echo", "false"),
            ("min_message_window_ms", "500"),
            ("max_hold_time_ms", "20000"),
        ] {
            let expected = config(&format!("--{name} {value}"), "", "", "");
            assert!(expected != Config::default(), "{name}");
            let hyphens = name.replace('_', "-");
            let upper = name.to_uppercase();
            let document = |text: &str| format!("{{\"{name}\": \"{text}\"}}");
            for (arguments, environment, stdin, file) in [
                (format!("--{name}={value}"), String::new(), String::new(), String::new()),
                (
                    format!("--{hyphens} {value}"),
                    String::new(),
                    String::new(),
                    String::new(),
                ),
                (
                    String::new(),
                    format!("ILP_{upper}={value}"),
                    String::new(),
                    String::new(),
                ),
                (
                    String::new(),
                    format!("ilp_{name}={value}"),
                    String::new(),
                    String::new(),
                ),
                (String::new(), String::new(), document(value), String::new()),
                (
                    String::new(),
                    String::new(),
                    format!("{name}: \"{value}\""),
                    String::new(),
                ),
                ("x.json".into(), String::new(), String::new(), document(value)),
                (
                    "x.yaml".into(),
                    String::new(),
                    String::new(),
                    format!("{name}: \"{value}\""),
                ),
                (
                    "x.yml".into(),
                    String::new(),
                    String::new(),
                    format!("{hyphens}: '{value}'"),
                ),
                (
                    "x.toml".into(),
                    String::new(),
                    String::new(),
                    format!("{name} = \"{value}\""),
                ),
                (
                    "x.conf".into(),
                    String::new(),
                    String::new(),
                    format!("{name} = \"{value}\""),
                ),
                ("x".into(), String::new(), String::new(), format!("{name}: \"{value}\"")),
            ] {
                let found = config(&arguments, &environment, &stdin, &file);
                assert!(found == expected, "{arguments} {environment} {stdin} {file}");
            }
        }
        let file = "shards: 1\necho: false";
        for (arguments, environment, stdin, shards, warning) in [
            ("x.yaml", "", "", 1, ""),
            (
                "x.yaml",
                "",
                "shards: 2",
                2,
                "shards: standard input and the file x.yaml differ; standard input wins",
            ),
            (
                "x.yaml",
                "ILP_SHARDS=3",
                "shards: 2",
                3,
                "shards: the environment (ILP_SHARDS) and standard input differ",
            ),
            (
                "--shards 4 x.yaml",
                "ILP_SHARDS=3",
                "",
                4,
                "shards: the command line and the environment",
            ),
            ("x.yaml --shards 1", "", "", 1, ""),
        ] {
            let found = config(arguments, environment, stdin, file);
            assert_eq!(found.shards, shards, "{arguments} {environment} {stdin}");
            assert!(!found.echo, "what only the file says stays");
            let first = found.warnings.first().map_or("", String::as_str);
            assert!(
                first.starts_with(warning) && first.is_empty() == warning.is_empty(),
                "{first}"
            );
        }
    }

    #[test]
    fn the_address_has_two_names_in_the_environment() {
        for (environment, address) in [
            ("ILP_ADDRESS=g.one", "g.one"),
            ("ILP_ILP_ADDRESS=g.two", "g.two"),
            ("ILP_ILP_ADDRESS=g.two\nILP_ADDRESS=g.one", "g.one"),
            ("ILP_CLI_NODE_URL=http://x\nPATH=/bin\nILP_CLI_API_AUTH=x", "local.host"),
        ] {
            assert_eq!(&*config("", environment, "", "").ilp_address, address, "{environment}");
        }
    }

    #[test]
    fn what_stops_the_start_is_named() {
        let short = "secret_seed: 1234";
        for (arguments, environment, stdin, file, message) in [
            ("--colour red", "", "", "", "unexpected argument '--colour'"),
            ("--shards", "", "", "", "a value is required for '--shards"),
            ("--shards 1 --shards 2", "", "", "", "cannot be used multiple times"),
            ("a.yaml b.yaml", "", "", "x: 1", "one configuration file at most"),
            (
                "--shards 0",
                "",
                "",
                "",
                "the command line: shards: expected an integer from 1 to 256",
            ),
            (
                "",
                "ILP_SHARDS=x",
                "",
                "",
                "the environment (ILP_SHARDS): shards: expected an integer",
            ),
            (
                "",
                "ILP_COLOUR=red",
                "",
                "",
                "the environment (ILP_COLOUR): there is no option colour",
            ),
            ("", "", "colour: red", "", "standard input: there is no option colour"),
            ("", "", "- a", "", "standard input: expected names and values"),
            ("", "", "a: [", "", "standard input: "),
            (
                "x.toml",
                "",
                "",
                "exchange.rate = 1",
                "the file x.toml: there is no option exchange.rate",
            ),
            ("x.json", "", "", "shards: 1", "the file x.json: "),
            (
                "x.yaml",
                "",
                "",
                "shards: [1]",
                "the file x.yaml: shards: expected one value",
            ),
            (
                "x.yaml",
                "",
                "",
                "min_message_window_ms: 5\nmin-message-window-ms: 6",
                "is there twice",
            ),
            ("x.yaml", "", "", "", "the file x.yaml: x.yaml is missing"),
            (
                "x.yaml",
                "",
                "",
                short,
                "the file x.yaml: secret_seed: expected 64 hex digits",
            ),
            (
                "--secret_seed 12zz",
                "",
                "",
                "",
                "the command line: secret_seed: expected 64 hex digits",
            ),
            (
                "--ilp_address peer.x",
                "",
                "",
                "",
                "ilp_address: the schemes peer and self",
            ),
            ("--ilp_address hub", "", "", "", "ilp_address: an address begins with"),
            (
                "--http_bind_address localhost:1",
                "",
                "",
                "",
                "http_bind_address: expected an address and a port",
            ),
            (
                "--durability never",
                "",
                "",
                "",
                "durability: expected commit or relaxed",
            ),
            ("--echo yes", "", "", "", "echo: expected true or false"),
            ("--admin_auth_token=", "", "", "", "admin_auth_token: "),
            (
                "",
                "ILP_ADMIN_AUTH_TOKEN= x",
                "",
                "",
                "admin_auth_token: expected 1 to 1024",
            ),
            (
                "--http_bind_address 127.0.0.1:7771",
                "",
                "",
                "",
                "is the same as http_bind_address",
            ),
            (
                "--max_hold_time_ms 1000",
                "",
                "",
                "",
                "leaves no time within max_hold_time_ms",
            ),
        ] {
            let found = run(arguments, environment, stdin, file)
                .expect_err(arguments)
                .to_string();
            assert!(
                found.contains(message),
                "{arguments} {environment} {stdin} {file}: {found}"
            );
            assert!(!found.contains("1234") && !found.contains("12zz"), "{found}");
        }
        assert!(
            config(
                "--http_bind_address 127.0.0.1:0 --settlement_api_bind_address 127.0.0.1:0",
                "",
                "",
                ""
            )
            .shards
                > 0
        );
    }

    #[test]
    fn options_of_other_nodes_are_taken_with_a_warning() {
        let found = config(
            "--redis_url redis://x x.yaml",
            "ILP_DATABASE_URL=x",
            "",
            "redis_url: redis://x\ndatabase_prefix: y",
        );
        assert_eq!(found.warnings.len(), 3, "{:?}", found.warnings);
        assert!(found.warnings[0].starts_with("redis_url: the command line has no effect"));
    }

    #[test]
    fn help_and_version() {
        for (arguments, parts) in [
            (
                "--help",
                &["[default: 127.0.0.1:7770]", "--admin_auth_token <TOKEN>", "ILP_ADDRESS"][..],
            ),
            ("-h --colour", &["--data_dir <FOLDER>"]),
            ("--version", &[env!("CARGO_PKG_VERSION")]),
            ("-V", &["clearway "]),
        ] {
            let Ok(Command::Print(text)) = run(arguments, "", "", "") else {
                panic!("{arguments}")
            };
            for part in parts {
                assert!(text.contains(part), "{part} is not in {text}");
            }
            assert!(!text.contains("redis"), "what has no effect is not offered");
        }
    }

    #[test]
    fn log_lines() {
        for (environment, filter) in [
            ("", "info"),
            ("RUST_LOG=", "info"),
            ("RUST_LOG=debug", "debug"),
            ("RUST_LOG=interledger=debug,h2=off", "clearway=debug,h2=off"),
            ("RUST_LOG=ilp=trace", "clearway=trace"),
            ("RUST_LOG=interledger", "clearway"),
            (
                "RUST_LOG=interledger::ccp=debug,clearway::shard=info",
                "clearway=debug,clearway::shard=info",
            ),
            ("RUST_LOG=interledger_ccp=debug", "clearway=debug"),
            ("RUST_LOG=ilpx=debug", "ilpx=debug"),
        ] {
            assert_eq!(config("", environment, "", "").log_filter, filter, "{environment}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let found = config(
            &format!("--secret_seed {} --admin_auth_token hush", "ab".repeat(32)),
            "",
            "",
            "",
        );
        let text = format!("{found:?}");
        assert!(
            !text.contains("hush") && !text.contains("abab") && !text.contains("171"),
            "{text}"
        );
    }
}
