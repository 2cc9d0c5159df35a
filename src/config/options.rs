//! Every option of the node: its name, its default, what it means, and how its text is read.
//!
//! Owns the rule that a value must keep on its own. Which source wins, and rules between options, are [`super`]'s.

use std::net::SocketAddr;
use std::time::Duration;

use crate::store::Durability;
use crate::wire::address::Address;

use super::Config;

/// More shards than any machine has cores for; each is a thread with rings and buffers of its own.
pub const SHARDS_MAX: usize = 256;

/// One option, whatever source it comes from.
pub(super) struct OptionSpec {
    pub(super) name: &'static str,
    /// What stands for the value in the help text.
    pub(super) value: &'static str,
    /// As the help text shows it. Where it is a value, the reader takes it.
    pub(super) default: &'static str,
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
        help: "Where settlement engines reach the node",
        set: |config, text| {
            config.settlement_api_bind_address = read_socket_address(text)?;
            Ok(())
        },
    },
    OptionSpec {
        name: "data_dir",
        value: "FOLDER",
        default: "./data",
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
        help: "The longest time a Prepare is held; later expiries are shortened",
        set: |config, text| {
            config.max_hold_time_ms = read_number(text, 1, 600_000)? as u32;
            Ok(())
        },
    },
];

/// Options of nodes that keep their data elsewhere. Taken from old configurations, and of no effect.
pub(super) const IGNORED: [&str; 4] = ["database_url", "redis_url", "redis_connection", "database_prefix"];

fn read_address(text: &str) -> Result<Box<str>, String> {
    match Address::parse(text.as_bytes()) {
        Ok(address) if matches!(address.scheme(), "peer" | "self") => {
            Err("the schemes peer and self are not for nodes".to_owned())
        }
        Ok(address) => Ok(address.as_str().into()),
        Err(error) => Err(error.to_string()),
    }
}

/// 64 hex digits. The message does not repeat what it refuses.
pub(crate) fn read_seed(text: &str) -> Result<[u8; 32], String> {
    let mut seed = [0; 32];
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    match digits {
        Some(digits) if digits.len() == 2 * seed.len() => {
            for (byte, pair) in seed.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = pair[0] << 4 | pair[1];
            }
            Ok(seed)
        }
        _ => Err("expected 64 hex digits (in YAML and TOML in quotation marks)".to_owned()),
    }
}

/// What a header can carry and a call can be compared with. The message does not repeat what it refuses.
pub(crate) fn read_token(text: &str) -> Result<Box<str>, String> {
    let is_sendable = text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.trim() == text;
    if is_sendable && (1..=1_024).contains(&text.len()) {
        Ok(text.into())
    } else {
        Err("expected 1 to 1024 characters of visible ASCII, blanks only in between".to_owned())
    }
}

fn read_socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected an address and a port, for instance 127.0.0.1:7770 or [::1]:7770".to_owned())
}

fn read_number(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("expected an integer from {min} to {max}"))
}

fn read_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}
