//! Configuration: command line, environment, standard input and a file become one checked [`Config`].
//!
//! Owns which source wins, the rules between options, and the help text. The options themselves are one table in
//! [`options`], through which every source goes; reading the sources is [`sources`]'s and [`document`]'s, reading values
//! [`values`]'s. [`read`] is a function of what it is given, so it is tested without a process.
//!
//! Always: an option that nobody knows, or a value that breaks its rule, stops the start with a message that names
//! option, source and rule; no message holds the value of a secret. Nothing below the connector knows the name of an
//! option.

mod document;
mod options;
pub mod sources;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, Command as CommandLine};
use url::Url;

use crate::ledger::settlement::ENGINE_KEY_KEPT_MS;
use crate::logs::Directives;
use crate::pipeline::rates::Decimal;
use crate::store::Durability;

use document::{Document, from_document};
use options::{ALIASES, IGNORED, OPTIONS, OptionSpec, PROVIDERS, SHARDS_MAX, WITHOUT_EFFECT_YET};
use sources::{Given, LOG_VARIABLE, Source, Sources};
pub use values::{AccountName, BalanceFormat, RateProvider};
pub(crate) use values::{read_seed, read_token};

/// The provider of exchange rates that needs a key may be a table of its own on the command line, too: our name of it, its
/// own, and the option that it is in.
const PROVIDER_KEYS: [[&str; 3]; 2] = [
    [
        "exchange_rate.provider.cryptocompare",
        "exchange_rate.provider.CryptoCompare",
        PROVIDERS[0],
    ],
    [
        "exchange_rate.second_provider.cryptocompare",
        "exchange_rate.second_provider.CryptoCompare",
        PROVIDERS[1],
    ],
];

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
    /// What settlement engines' calls carry. None: nothing, which only a loopback address may have.
    pub settlement_api_token: Option<Box<str>>,
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
    /// Whom `/.well-known/pay` pays. None: nobody.
    pub default_spsp_account: Option<AccountName>,
    /// How the API shows balances.
    pub api_balance_format: BalanceFormat,
    /// Whether anybody may read routes and rates.
    pub api_open_reads: bool,
    /// Whether payments may go to private addresses, if that was said; see [`Config::allows_private_urls`].
    pub allow_private_urls: Option<bool>,
    pub exchange_rate: ExchangeRate,
    /// From one announcement of routes to the next, while there are no new ones.
    pub route_broadcast_interval: Duration,
    /// Whether children may announce routes, too.
    pub accept_routes_from_children: bool,
    /// Routes of one neighbour that are kept.
    pub max_routes_per_neighbour: usize,
    /// After which time a balance is settled that has not reached its threshold. None: never.
    pub settle_every: Option<Duration>,
    /// For how long settlement engines know an idempotency key.
    pub settlement_key_retention: Duration,
    pub prometheus: Prometheus,
    /// Which log lines are written.
    pub log_filter: Directives,
    /// What the operator should know and what did not stop the start.
    pub warnings: Vec<String>,
}

/// Where exchange rates come from, and what is kept of a converted amount.
#[derive(Clone, PartialEq, Debug)]
pub struct ExchangeRate {
    /// None: rates are set by the operator only.
    pub provider: Option<RateProvider>,
    /// Where it is asked instead of its own address; only of providers that have one.
    pub provider_url: Option<Url>,
    /// Only beside a first.
    pub second_provider: Option<RateProvider>,
    pub second_provider_url: Option<Url>,
    pub poll_interval: Duration,
    /// Polls that may fail in a row; one more, and the rates are dropped.
    pub poll_failure_tolerance: u32,
    /// A polled rate that is further than this from the last one is held; greater than 0. None: none is.
    pub max_rate_change: Option<Decimal>,
    /// Kept by the node when it converts; at least 0 and below 1.
    pub spread: Decimal,
}

impl Default for ExchangeRate {
    fn default() -> Self {
        Self {
            provider: None,
            provider_url: None,
            second_provider: None,
            second_provider_url: None,
            poll_interval: Duration::from_secs(60),
            poll_failure_tolerance: 5,
            max_rate_change: None,
            spread: Decimal::zero(),
        }
    }
}

/// Metrics for Prometheus.
#[derive(Clone, PartialEq, Debug)]
pub struct Prometheus {
    /// None: off.
    pub bind_address: Option<SocketAddr>,
    /// How far back quantiles look, in steps of `histogram_granularity`.
    pub histogram_window: Duration,
    pub histogram_granularity: Duration,
}

impl Default for Prometheus {
    fn default() -> Self {
        Self {
            bind_address: None,
            histogram_window: Duration::from_secs(300),
            histogram_granularity: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Whether payments may go to payment pointers at private and loopback addresses. Unless that was said, only those of
    /// a node that nobody else can reach may: others must not be able to probe its network through it.
    pub fn allows_private_urls(&self) -> bool {
        self.allow_private_urls
            .unwrap_or_else(|| is_loopback(self.http_bind_address))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ilp_address: "local.host".into(),
            secret_seed: None,
            admin_auth_token: None,
            http_bind_address: ([127, 0, 0, 1], 7770).into(),
            settlement_api_bind_address: ([127, 0, 0, 1], 7771).into(),
            settlement_api_token: None,
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
            default_spsp_account: None,
            api_balance_format: BalanceFormat::Integer,
            api_open_reads: true,
            allow_private_urls: None,
            exchange_rate: ExchangeRate::default(),
            route_broadcast_interval: Duration::from_secs(30),
            accept_routes_from_children: false,
            max_routes_per_neighbour: 100_000,
            settle_every: None,
            settlement_key_retention: Duration::from_millis(ENGINE_KEY_KEPT_MS),
            prometheus: Prometheus::default(),
            log_filter: Directives::default(),
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
            .field("exchange_rate", &self.exchange_rate)
            .field("prometheus", &self.prometheus)
            .field("log_filter", &self.log_filter)
            .finish_non_exhaustive()
    }
}

/// What the command line asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Run the node.
    Run(Box<Config>),
    /// Report what a start would meet, and start nothing.
    Check(Box<Check>),
    /// Print this and end: the help text or the version.
    Print(String),
}

/// What a check reports on.
#[derive(Clone, PartialEq, Debug)]
pub struct Check {
    pub config: Config,
    /// Every option, in the order of the help text.
    pub settings: Vec<Setting>,
    /// For programs, not for people.
    pub json: bool,
}

/// One option as it is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    pub name: &'static str,
    /// As it was given, or what stands for the default in the help text. `None`: it was given, and is a secret.
    pub value: Option<String>,
    /// `None`: nobody gave it, this is the default.
    pub source: Option<Source>,
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
    let is_check = sources.arguments.get(1).is_some_and(|first| first == CHECK);
    let arguments = sources
        .arguments
        .iter()
        .enumerate()
        .filter(|(place, _)| !is_check || *place != 1)
        .map(|(_, argument)| with_underscores(argument));
    let command_line = if is_check { check_command_line() } else { command_line() };
    let matches = match command_line.try_get_matches_from(arguments) {
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
    for name in OPTIONS
        .iter()
        .map(|spec| spec.name)
        .chain(IGNORED)
        .chain(PROVIDER_KEYS.map(|[name, ..]| name))
    {
        if let Some(value) = matches.get_one::<String>(name) {
            given.push(Given::new(name, value.clone(), true, Source::CommandLine));
        }
    }
    given.extend(sources::from_environment(&sources.environment));
    if let Some(text) = (sources.read_stdin)(stdin_forced).map_err(|reason| unreadable(&Source::Stdin, reason))? {
        given.extend(from_document(&text, Document::Stdin)?);
    }
    if let Some(path) = file {
        let source = Source::File(path.clone());
        let text = (sources.read_file)(path).map_err(|reason| unreadable(&source, reason))?;
        given.extend(from_document(&text, Document::File(path))?);
    }
    let mut settings = settings(&given);
    let mut config = assemble(given)?;
    let filter = sources.environment.iter().find(|(name, _)| name == LOG_VARIABLE);
    if let Some((name, text)) = filter
        && !text.trim().is_empty()
    {
        config.log_filter = Directives::parse(text).map_err(|rule| ConfigError::Invalid {
            option: name.clone(),
            place: "the environment".to_owned(),
            rule: rule.to_string(),
        })?;
        settings.push(Setting {
            name: LOG_VARIABLE,
            value: Some(text.clone()),
            source: Some(Source::Environment(name.clone())),
        });
    }
    if is_check {
        let json = matches.get_flag(JSON);
        return Ok(Command::Check(Box::new(Check { config, settings, json })));
    }
    Ok(Command::Run(Box::new(config)))
}

/// The first word of a command line that asks for a check.
const CHECK: &str = "check";
const JSON: &str = "json";

/// Every option with the value that wins and where it came from.
fn settings(given: &[Given]) -> Vec<Setting> {
    let in_force = |name| {
        let winner = given.iter().find(|option| option.name == name);
        let value = match winner {
            None => OPTIONS
                .iter()
                .find(|spec| spec.name == name)
                .map(|spec| spec.default.to_owned()),
            Some(option) => (!is_secret(name)).then(|| option.value.clone()),
        };
        Setting {
            name,
            value,
            source: winner.map(|option| option.source.clone()),
        }
    };
    OPTIONS.iter().map(|spec| in_force(spec.name)).collect()
}

/// Whether the value of an option is nobody's business. Told by the name, so that a new option is not forgotten here.
fn is_secret(name: &str) -> bool {
    let words = ["seed", "token", "secret", "password", "key"];
    // A provider of exchange rates may be given together with its key.
    PROVIDERS.contains(&name) || name.split(['.', '_']).any(|word| words.contains(&word))
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
    let mut ignored: Vec<&str> = Vec::new();
    for option in &given {
        let table = option.name.split('.').next().unwrap_or_default();
        if let Some(name) = IGNORED.into_iter().find(|name| *name == table) {
            if !ignored.contains(&name) {
                ignored.push(name);
            }
            continue;
        }
        let Some(spec) = OPTIONS.iter().find(|spec| spec.name == option.name) else {
            return Err(ConfigError::Unknown {
                option: shown(&option.name),
                place: option.source.to_string(),
            });
        };
        let invalid = |rule: &str| ConfigError::Invalid {
            option: option.name.clone(),
            place: option.source.to_string(),
            rule: rule.to_owned(),
        };
        if let Some(winner) = seen.iter().find(|winner| winner.name == option.name) {
            if means(spec, winner) != means(spec, option) {
                let (winner, loser) = (&winner.source, &option.source);
                warnings.push(format!("{}: {winner} and {loser} differ; {winner} wins", option.name));
            }
            continue;
        }
        seen.push(option);
        if !option.as_written && (spec.is_text || digits(&option.value) > f64::DIGITS as usize) {
            return Err(invalid(
                "is a number or truth that can be written in several ways: put it in quotation marks",
            ));
        }
        (spec.set)(&mut config, &option.value).map_err(|rule| invalid(&rule))?;
        if WITHOUT_EFFECT_YET.contains(&spec.name) {
            warnings.push(format!(
                "{}: {} sets it, but this version does not act on it yet",
                spec.name, option.source
            ));
        }
    }
    if !ignored.is_empty() {
        warnings.push(format!(
            "{}: no effect; everything is kept in data_dir",
            ignored.join(", ")
        ));
    }
    check_relations(&config)?;
    config.warnings = warnings;
    Ok(config)
}

/// What a configuration would be of this value alone. None: the value breaks its rule.
fn means(spec: &OptionSpec, option: &Given) -> Option<Config> {
    let mut config = Config::default();
    (spec.set)(&mut config, &option.value).ok().map(|()| config)
}

/// How many digits a number has between its first and its last one that is not 0.
fn digits(number: &str) -> usize {
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    digits.trim_matches('0').len()
}

/// A name as messages show it: it may be of any length and have any characters.
fn shown(name: &str) -> String {
    const CHARS_SHOWN: usize = 80;
    name.chars().take(CHARS_SHOWN).flat_map(char::escape_debug).collect()
}

/// Whether only this machine reaches the address.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
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
    if let Some(address) = config.prometheus.bind_address
        && address.port() != 0
        && [config.http_bind_address, config.settlement_api_bind_address].contains(&address)
    {
        return Err(invalid(
            "prometheus.bind_address",
            "is the address of another port of this node",
        ));
    }
    if config.settlement_api_token.is_none() && !is_loopback(config.settlement_api_bind_address) {
        return Err(invalid(
            "settlement_api_token",
            "is required, because settlement_api_bind_address is no loopback address: whoever reaches it can credit accounts",
        ));
    }
    if config.prometheus.histogram_granularity > config.prometheus.histogram_window {
        return Err(invalid(
            "prometheus.histogram_granularity",
            "is longer than prometheus.histogram_window",
        ));
    }
    let rates = &config.exchange_rate;
    if rates.second_provider.is_some() && rates.provider.is_none() {
        return Err(invalid(
            "exchange_rate.second_provider",
            "is for a node that has an exchange_rate.provider, too",
        ));
    }
    for (option, provider, url) in [
        ("exchange_rate.provider_url", &rates.provider, &rates.provider_url),
        (
            "exchange_rate.second_provider_url",
            &rates.second_provider,
            &rates.second_provider_url,
        ),
    ] {
        let has_address = matches!(
            provider,
            Some(RateProvider::CoinCap | RateProvider::CryptoCompare { .. })
        );
        if url.is_some() && !has_address {
            return Err(invalid(
                option,
                "is for CoinCap and CryptoCompare; any other provider is an URL",
            ));
        }
    }
    if config.min_message_window_ms >= config.max_hold_time_ms {
        return Err(invalid(
            "min_message_window_ms",
            "leaves no time within max_hold_time_ms",
        ));
    }
    Ok(())
}

pub(crate) fn command_line() -> CommandLine {
    let options = OPTIONS.iter().map(|spec| {
        let help = format!("{} [default: {}]", spec.help, spec.default);
        let aliases = ALIASES
            .iter()
            .filter(|(_, own)| *own == spec.name)
            .map(|(alias, _)| *alias);
        long_option(spec.name)
            .value_name(spec.value)
            .help(help)
            .aliases(aliases.collect::<Vec<_>>())
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
        .args(PROVIDER_KEYS.map(|[name, alias, option]| long_option(name).alias(alias).conflicts_with(option).hide(true)))
        .after_help(
            "MS are milliseconds. Every option can also be set in the environment (ILP_SHARDS=2; ILP_ADDRESS for\n\
             ilp_address; ILP_EXCHANGE_RATE__SPREAD for exchange_rate.spread), on standard input (YAML or JSON) or in the\n\
             file. The command line wins over the environment, the environment over standard input, standard input over\n\
             the file. Hyphens may stand for underscores. RUST_LOG sets which log lines are written, for instance\n\
             RUST_LOG=debug or RUST_LOG=info,packets=debug.\n\n\
             Commands, which ask a running node instead: status, accounts, routes, rates, engines, settlements,\n\
             pay, log-level, backup, completions; see clearway help. And clearway check: would the node start.",
        )
}

/// The same options for [`CHECK`], and one of its own.
fn check_command_line() -> CommandLine {
    command_line()
        .about(
            "Reports what a start with the same options and sources would meet, and starts, makes and changes nothing.\n\
             Works beside a running node. Exit code 0: all is well; 1: something would stop the start, or the book does\n\
             not add up; 2: the configuration cannot be used.",
        )
        .override_usage("clearway check [OPTIONS] [-] [FILE]")
        .arg(
            Arg::new(JSON)
                .long(JSON)
                .action(ArgAction::SetTrue)
                .help("Print the report as JSON"),
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
mod tests;
