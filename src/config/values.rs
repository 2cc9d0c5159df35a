//! Values of options: their own types, and how each is read from text.
//!
//! Owns the rule that a value must keep on its own. No message repeats the text it refuses, because that may be a secret
//! in the wrong place.

use std::fmt;
use std::net::SocketAddr;

use url::Url;
use uuid::Uuid;

use crate::ledger::directory::normalize_username;
use crate::pipeline::rates::Decimal;
use crate::wire::address::Address;

/// A longer URL is a mistake.
const URL_BYTES_MAX: usize = 2_048;

/// An account that need not exist yet. No UUID can be a user name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccountName {
    /// In its NFKC form.
    Username(Box<str>),
    Id(Uuid),
}

/// How the API shows a balance that is asked for without a format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BalanceFormat {
    /// In the smallest unit of the account's asset.
    Integer,
    /// In whole units of the asset, with a fraction.
    Scaled,
}

/// Who is asked for exchange rates.
#[derive(Clone, PartialEq, Eq)]
pub enum RateProvider {
    CoinCap,
    CryptoCompare {
        key: Box<str>,
    },
    /// `http` or `https`. May hold a secret.
    Url(Url),
}

impl fmt::Debug for RateProvider {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CoinCap => "CoinCap",
            Self::CryptoCompare { .. } => "CryptoCompare",
            Self::Url(_) => "Url",
        })
    }
}

/// A user name or a UUID with its hyphens; without them it is a user name.
pub(super) fn read_account(text: &str) -> Result<AccountName, String> {
    const UUID_BYTES: usize = 36;
    if text.len() == UUID_BYTES
        && let Ok(id) = Uuid::try_parse(text)
    {
        return Ok(AccountName::Id(id));
    }
    normalize_username(text)
        .map(|name| AccountName::Username(name.into()))
        .map_err(|error| format!("expected a user name or a UUID; a user name {error}"))
}

/// `CoinCap`, `CryptoCompare:KEY` (names in any case), or a URL.
pub(super) fn read_provider(text: &str) -> Result<RateProvider, String> {
    let text = text.trim();
    let (name, rest) = text
        .split_once(':')
        .map_or((text, None), |(name, rest)| (name, Some(rest)));
    match (name.to_ascii_lowercase().as_str(), rest) {
        ("coincap", None) => Ok(RateProvider::CoinCap),
        ("cryptocompare", Some(key)) => {
            let key = read_token(key.trim()).map_err(|rule| format!("the key of CryptoCompare: {rule}"))?;
            Ok(RateProvider::CryptoCompare { key })
        }
        ("cryptocompare", None) => Err("CryptoCompare needs a key: CryptoCompare:KEY".to_owned()),
        ("http" | "https", Some(_)) => {
            let url = Url::parse(text).ok().filter(|_| text.len() <= URL_BYTES_MAX);
            let url = url.filter(|url| url.has_host() && url.fragment().is_none());
            let rule = || format!("expected an absolute URL without a fragment, of at most {URL_BYTES_MAX} bytes");
            url.map(RateProvider::Url).ok_or_else(rule)
        }
        _ => Err("expected CoinCap, CryptoCompare:KEY, or an http(s) URL".to_owned()),
    }
}

/// Where a provider is asked instead of its own address. No secret: it is shown by a check.
pub(super) fn read_provider_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|_| text.len() <= URL_BYTES_MAX);
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let is_plain = |url: &Url| {
        let has_user = !url.username().is_empty() || url.password().is_some();
        !has_user && url.query().is_none() && url.fragment().is_none()
    };
    url.filter(is_plain).ok_or_else(|| {
        format!("expected an http or https URL of at most {URL_BYTES_MAX} bytes, without user name, query and fragment")
    })
}

/// Above 0, exactly as it is written.
pub(super) fn read_change(text: &str) -> Result<Decimal, String> {
    let change = Decimal::parse(text).map_err(|error| error.to_string())?;
    if !change.is_positive() {
        return Err("expected a number above 0".to_owned());
    }
    Ok(change)
}

/// At least 0 and below 1, exactly as it is written.
pub(super) fn read_spread(text: &str) -> Result<Decimal, String> {
    let spread = Decimal::parse(text).map_err(|error| error.to_string())?;
    if spread.is_negative() || !spread.is_below_one() {
        return Err("expected a number from 0 to below 1".to_owned());
    }
    Ok(spread)
}

pub(super) fn read_address(text: &str) -> Result<Box<str>, String> {
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

pub(super) fn read_socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected an address and a port, for instance 127.0.0.1:7770 or [::1]:7770".to_owned())
}

pub(super) fn read_number(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("expected an integer from {min} to {max}"))
}

pub(super) fn read_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}
