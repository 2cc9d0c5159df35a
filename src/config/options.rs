//! Every option of the node: its names, its default, what it means, and which reader takes its text.
//!
//! Owns the table that every source goes through, and the names that other nodes have for our options. How the text of
//! a value is read, and the rule it must keep on its own, are [`super::values`]'s; which source wins, and rules between
//! options, [`super`]'s. `docs/settings.md` is the same table for people.

use std::time::Duration;

use crate::store::Durability;

use super::Config;
use super::values::{
    BalanceFormat, read_account, read_address, read_bool, read_change, read_number, read_provider, read_provider_url,
    read_seed, read_socket_address, read_spread, read_token,
};

/// More shards than any machine has cores for; each is a thread with rings and buffers of its own.
pub const SHARDS_MAX: usize = 256;
/// The longest interval in milliseconds: a month. More is a mistake in the unit.
const INTERVAL_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1_000;
/// All the routes that a node learns.
const ROUTES_PER_NEIGHBOUR_MAX: u64 = 1 << 20;

/// One option, whatever source it comes from.
pub(super) struct OptionSpec {
    pub(super) name: &'static str,
    /// What stands for the value in the help text.
    pub(super) value: &'static str,
    /// As the help text shows it. Where it is a value, the reader takes it.
    pub(super) default: &'static str,
    /// Every character of it counts, also if a document has it as a number.
    pub(super) is_text: bool,
    pub(super) help: &'static str,
    /// Sets the value, or says which rule it breaks.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
}

/// Every option, in the order of the help text.
pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "ilp_address",
        value: "ADDRESS",
        default: "local.host",
        is_text: true,
        help: "The node's own ILP address; accounts get addresses below it",
        set: |config, text| {
            config.ilp_address = read_address(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "secret_seed",
        value: "HEX",
        default: "made at the first start, in the data folder",
        is_text: true,
        help: "64 hex digits; encrypts secrets at rest and must never change",
        set: |config, text| {
            config.secret_seed = Some(read_seed(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "admin_auth_token",
        value: "TOKEN",
        default: "made at the first start, in the data folder",
        is_text: true,
        help: "What the operator's calls carry as `Authorization: Bearer TOKEN`",
        set: |config, text| {
            config.admin_auth_token = Some(read_token(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "http_bind_address",
        value: "IP:PORT",
        default: "127.0.0.1:7770",
        is_text: false,
        help: "Where the API, ILP-over-HTTP and BTP listen",
        set: |config, text| {
            config.http_bind_address = read_socket_address(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "settlement_api_bind_address",
        value: "IP:PORT",
        default: "127.0.0.1:7771",
        is_text: false,
        help: "Where settlement engines reach the node",
        set: |config, text| {
            config.settlement_api_bind_address = read_socket_address(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "settlement_api_token",
        value: "TOKEN",
        default: "none needed on a loopback address",
        is_text: true,
        help: "What settlement engines' calls carry as `Authorization: Bearer TOKEN`",
        set: |config, text| {
            config.settlement_api_token = Some(read_token(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "data_dir",
        value: "FOLDER",
        default: "./data",
        is_text: true,
        help: "Where the ledger, the accounts and the generated secrets are kept",
        set: |config, text| {
            if text.is_empty() {
                return Err("expected the name of a folder".to_owned());
            }
            config.data_dir = text.into();
            Ok(())
        },
    },
    OptionSpec {
        name: "shards",
        value: "NUMBER",
        default: "one per core",
        is_text: false,
        help: "How many threads carry packets, each pinned to a core",
        set: |config, text| {
            config.shards = read_number(text, 1, SHARDS_MAX as u64)? as usize;
            Ok(())
        },
    },
    OptionSpec {
        name: "durability",
        value: "MODE",
        default: "commit",
        is_text: false,
        help: "commit: a Fulfill leaves when it is on disk; relaxed: at once, and a power cut costs flush_interval_ms",
        set: |config, text| {
            config.durability = match text {
                "commit" => Durability::Commit,
                "relaxed" => Durability::Relaxed,
                _ => return Err("expected commit or relaxed".to_owned()),
            };
            Ok(())
        },
    },
    OptionSpec {
        name: "flush_interval_ms",
        value: "MS",
        default: "5",
        is_text: false,
        help: "How often the ledger is written to disk when durability is relaxed",
        set: |config, text| {
            config.flush_interval = Duration::from_millis(read_number(text, 1, 10_000)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "reflect_payments",
        value: "BOOL",
        default: "true",
        is_text: false,
        help: "Whether a packet may leave to the account it came from",
        set: |config, text| {
            config.reflect_payments = read_bool(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "echo",
        value: "BOOL",
        default: "true",
        is_text: false,
        help: "Whether the node answers echo packets to its own address",
        set: |config, text| {
            config.echo = read_bool(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "min_message_window_ms",
        value: "MS",
        default: "1000",
        is_text: false,
        help: "How much earlier than the incoming Prepare the outgoing one expires",
        set: |config, text| {
            config.min_message_window_ms = read_number(text, 1, 60_000)? as u32;
            Ok(())
        },
    },
    OptionSpec {
        name: "max_hold_time_ms",
        value: "MS",
        default: "30000",
        is_text: false,
        help: "The longest time a Prepare is held; later expiries are shortened",
        set: |config, text| {
            config.max_hold_time_ms = read_number(text, 1, 600_000)? as u32;
            Ok(())
        },
    },
    OptionSpec {
        name: "default_spsp_account",
        value: "ACCOUNT",
        default: "not set",
        is_text: true,
        help: "User name or UUID of the account that is paid under /.well-known/pay; need not exist yet",
        set: |config, text| {
            config.default_spsp_account = Some(read_account(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "api_balance_format",
        value: "FORMAT",
        default: "integer",
        is_text: false,
        help: "integer: balances in the smallest unit of their asset; scaled: in whole units, with a fraction",
        set: |config, text| {
            config.api_balance_format = match text.to_ascii_lowercase().as_str() {
                "integer" => BalanceFormat::Integer,
                "scaled" => BalanceFormat::Scaled,
                _ => return Err("expected integer or scaled".to_owned()),
            };
            Ok(())
        },
    },
    OptionSpec {
        name: "api_open_reads",
        value: "BOOL",
        default: "true",
        is_text: false,
        help: "Whether anybody may read routes and rates, and not only the admin and holders of accounts",
        set: |config, text| {
            config.api_open_reads = read_bool(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "allow_private_urls",
        value: "BOOL",
        default: "true while http_bind_address is a loopback address",
        is_text: false,
        help: "Whether payments may go to payment pointers at private and loopback addresses",
        set: |config, text| {
            config.allow_private_urls = Some(read_bool(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.provider",
        value: "PROVIDER",
        default: "not set",
        is_text: true,
        help: "Who is asked for exchange rates: CoinCap, CryptoCompare:KEY, or an http(s) URL",
        set: |config, text| {
            config.exchange_rate.provider = Some(read_provider(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.provider_url",
        value: "URL",
        default: "the provider's own",
        is_text: true,
        help: "Where CoinCap or CryptoCompare is asked, if at a mirror",
        set: |config, text| {
            config.exchange_rate.provider_url = Some(read_provider_url(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.second_provider",
        value: "PROVIDER",
        default: "not set",
        is_text: true,
        help: "Who is believed where the provider says nothing, and contradicts it",
        set: |config, text| {
            config.exchange_rate.second_provider = Some(read_provider(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.second_provider_url",
        value: "URL",
        default: "the provider's own",
        is_text: true,
        help: "Where the second provider is asked, if at a mirror",
        set: |config, text| {
            config.exchange_rate.second_provider_url = Some(read_provider_url(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.poll_interval",
        value: "MS",
        default: "60000",
        is_text: false,
        help: "How often the providers are asked",
        set: |config, text| {
            config.exchange_rate.poll_interval = Duration::from_millis(read_number(text, 1, INTERVAL_MS_MAX)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.poll_failure_tolerance",
        value: "NUMBER",
        default: "5",
        is_text: false,
        help: "How many times in a row a provider may fail before its rates are dropped",
        set: |config, text| {
            config.exchange_rate.poll_failure_tolerance = read_number(text, 0, u32::MAX.into())? as u32;
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.max_rate_change",
        value: "SHARE",
        default: "not set",
        is_text: false,
        help: "How far a polled rate may move, and providers may differ, before it is held: 0.2 is a fifth more, or that back",
        set: |config, text| {
            config.exchange_rate.max_rate_change = Some(read_change(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "exchange_rate.spread",
        value: "SHARE",
        default: "0",
        is_text: false,
        help: "The share that the node keeps of an amount that it converts: 0.01 is one percent",
        set: |config, text| {
            config.exchange_rate.spread = read_spread(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "route_broadcast_interval",
        value: "MS",
        default: "30000",
        is_text: false,
        help: "How often routes are announced to peers",
        set: |config, text| {
            config.route_broadcast_interval = Duration::from_millis(read_number(text, 1, INTERVAL_MS_MAX)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "accept_routes_from_children",
        value: "BOOL",
        default: "false",
        is_text: false,
        help: "Whether children may announce routes, too: to addresses below their own",
        set: |config, text| {
            config.accept_routes_from_children = read_bool(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "max_routes_per_neighbour",
        value: "NUMBER",
        default: "100000",
        is_text: false,
        help: "How many routes of one neighbour are kept; what it announces beyond that is not",
        set: |config, text| {
            config.max_routes_per_neighbour = read_number(text, 1, ROUTES_PER_NEIGHBOUR_MAX)? as usize;
            Ok(())
        },
    },
    OptionSpec {
        name: "settle_every",
        value: "SECONDS",
        default: "not set",
        is_text: false,
        help: "How long a balance above what an account settles to may wait for its threshold",
        set: |config, text| {
            config.settle_every = Some(Duration::from_secs(read_number(text, 1, INTERVAL_MS_MAX / 1_000)?));
            Ok(())
        },
    },
    OptionSpec {
        name: "settlement_key_retention",
        value: "SECONDS",
        default: "82800",
        is_text: false,
        help: "For how long engines know a key; a settlement that one may have had for longer is not tried again",
        set: |config, text| {
            let seconds = read_number(text, 1, INTERVAL_MS_MAX / 1_000)?;
            config.settlement_key_retention = Duration::from_secs(seconds);
            Ok(())
        },
    },
    OptionSpec {
        name: "prometheus.bind_address",
        value: "IP:PORT",
        default: "not set",
        is_text: false,
        help: "Where metrics can be read",
        set: |config, text| {
            config.prometheus.bind_address = Some(read_socket_address(text)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "prometheus.histogram_window",
        value: "MS",
        default: "300000",
        is_text: false,
        help: "How far back the quantiles of the metrics look",
        set: |config, text| {
            config.prometheus.histogram_window = Duration::from_millis(read_number(text, 1, INTERVAL_MS_MAX)?);
            Ok(())
        },
    },
    OptionSpec {
        name: "prometheus.histogram_granularity",
        value: "MS",
        default: "10000",
        is_text: false,
        help: "In which steps that window moves on",
        set: |config, text| {
            config.prometheus.histogram_granularity = Duration::from_millis(read_number(text, 1, INTERVAL_MS_MAX)?);
            Ok(())
        },
    },
];

/// Options that name a provider of exchange rates, perhaps with its key.
pub(super) const PROVIDERS: [&str; 2] = ["exchange_rate.provider", "exchange_rate.second_provider"];

/// Options that are checked and kept, and that this version does nothing with yet: a start that is given one says so.
pub(super) const WITHOUT_EFFECT_YET: &[&str] = &[
    "prometheus.bind_address",
    "prometheus.histogram_window",
    "prometheus.histogram_granularity",
];

/// Options of nodes that keep their data elsewhere. Taken from old configurations, and of no effect.
pub(super) const IGNORED: [&str; 4] = ["database_url", "redis_url", "redis_connection", "database_prefix"];

/// Names that other nodes' configurations have for our options and tables, in any case, and ours.
pub(super) const ALIASES: [(&str, &str); 5] = [
    ("exchange_rate_provider", "exchange_rate.provider"),
    ("exchange_rate_poll_interval", "exchange_rate.poll_interval"),
    (
        "exchange_rate_poll_failure_tolerance",
        "exchange_rate.poll_failure_tolerance",
    ),
    ("exchange_rate_spread", "exchange_rate.spread"),
    ("prometheusconfig", "prometheus"),
];

/// Our own name of an option, or of one in a table, by any of its names.
pub(super) fn own_name(name: &str) -> String {
    let (first, rest) = name.split_at(name.find('.').unwrap_or(name.len()));
    let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(first));
    alias.map_or_else(|| name.to_owned(), |(_, own)| format!("{own}{rest}"))
}
