//! Asks those who know what assets are worth: CoinCap, CryptoCompare, or any URL that answers a map of rates.
//!
//! Owns one poll: what is requested, how long it may take and how much it may say, and which parts of an answer are
//! rates. Leaves to `control` when to ask, what a failure means, and which rates to believe.
//!
//! Always: a rate is the decimal that the provider wrote, read from its text, and never went through a float. A rate is
//! greater than zero and its code is one that an account may have; an entry that is not so is left out and counted, and
//! an answer without any rate is a failure. No message holds a URL, a key, or what a provider sent but the codes that
//! are left out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use ureq::Agent;
use ureq::http::StatusCode;
use url::{Host, Url};

use crate::pipeline::rates::{Decimal, RATES_MAX};
use crate::wire::ildcp::ASSET_CODE_BYTES_MAX;

/// How long a poll may take, from the name's resolution to the last byte, redirects included.
pub const POLL_MAX: Duration = Duration::from_secs(10);
/// An answer of CoinCap about all that it knows has some two hundred kilobytes.
pub const ANSWER_BYTES_MAX: u64 = 8 << 20;
const REDIRECTS_MAX: u32 = 3;
/// Rates in one answer: what two providers give fits one snapshot, whatever they name.
pub const ANSWER_RATES_MAX: usize = RATES_MAX / 2;
const _: () = assert!(2 * ANSWER_RATES_MAX <= RATES_MAX, "a snapshot holds all of two answers");

/// Where CoinCap and CryptoCompare are, unless the operator knows a mirror.
const COIN_CAP: &str = "https://api.coincap.io/";
const CRYPTO_COMPARE: &str = "https://min-api.cryptocompare.com/";

/// Who is asked. Has no `Debug`: it would print keys and URLs.
#[derive(Clone, PartialEq, Eq)]
pub enum Provider {
    CoinCap,
    CryptoCompare {
        key: Box<str>,
    },
    /// Answers `{"ABC": 1.0, "XYZ": "2.517"}`. May hold a secret.
    Url(Url),
}

impl Provider {
    /// For people and programs; says nothing of keys and places.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CoinCap => "CoinCap",
            Self::CryptoCompare { .. } => "CryptoCompare",
            Self::Url(_) => "URL",
        }
    }
}

/// What a provider says about the value of assets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// By codes in upper case; all greater than zero.
    pub rates: BTreeMap<String, Decimal>,
    /// Entries that are no rates.
    pub skipped: usize,
    /// What was wrong with the first of them.
    pub first_skipped: Option<String>,
}

/// Why a poll brought nothing. Goes on with a sentence that begins with the provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PollError {
    #[error("has a name that cannot be resolved")]
    NotFound,
    #[error("cannot be connected to")]
    NotConnected,
    #[error("has no certificate that can be trusted")]
    NotTrusted,
    #[error("did not answer within {} s", POLL_MAX.as_secs())]
    Late,
    #[error("redirects without an end")]
    Redirects,
    #[error("redirects from https to http")]
    Unprotected,
    #[error("answered {0}")]
    Status(u16),
    #[error("did not answer in HTTP")]
    NotHttp,
    #[error("did not finish its answer")]
    Incomplete,
    #[error("answered with more than {} MiB", ANSWER_BYTES_MAX >> 20)]
    TooLong,
    #[error("did not answer in the JSON that is expected of it")]
    Malformed,
    #[error("answered with one code twice")]
    CodeTwice,
    #[error("answered with no rate")]
    NoRate,
    #[error("answered with more than {ANSWER_RATES_MAX} rates")]
    TooMany,
    #[error("could not be asked, because this machine gives us no more threads")]
    NoThread,
}

/// Asks one provider.
pub struct RateClient {
    agent: Agent,
    requests: Requests,
}

/// What a poll requests.
enum Requests {
    CoinCap { assets: Url, rates: Url },
    CryptoCompare { top: Url, authorization: String },
    Map(Url),
}

impl RateClient {
    /// `base`: where CoinCap or CryptoCompare is asked instead of its own address; its path goes in front of theirs.
    pub fn new(provider: &Provider, base: Option<&Url>) -> Self {
        let below = |own: &str, path: &str| {
            let base = base.cloned().unwrap_or_else(|| Url::parse(own).expect("a constant"));
            let mut url = base.clone();
            url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
            url
        };
        let requests = match provider {
            Provider::CoinCap => Requests::CoinCap {
                assets: below(COIN_CAP, "v2/assets"),
                rates: below(COIN_CAP, "v2/rates"),
            },
            Provider::CryptoCompare { key } => {
                let mut top = below(CRYPTO_COMPARE, "data/top/mktcapfull");
                top.set_query(Some("limit=100&tsym=USD"));
                let authorization = format!("Apikey {key}");
                Requests::CryptoCompare { top, authorization }
            }
            Provider::Url(url) => Requests::Map(url.clone()),
        };
        let (Requests::CoinCap { assets: url, .. } | Requests::CryptoCompare { top: url, .. } | Requests::Map(url)) =
            &requests;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(POLL_MAX))
            .max_redirects(REDIRECTS_MAX)
            // What began protected stays so. The library leaves the key behind at every redirect.
            .https_only(url.scheme() == "https")
            .accept("application/json")
            .user_agent(concat!("clearway/", env!("CARGO_PKG_VERSION")));
        // The environment may name a proxy, which does not lead to this machine.
        let config = if is_local(url) { config.proxy(None) } else { config };
        Self {
            agent: config.build().into(),
            requests,
        }
    }

    /// Blocks for [`POLL_MAX`] at most.
    pub fn poll(&self) -> Result<Answer, PollError> {
        match &self.requests {
            Requests::CoinCap { assets, rates } => {
                let (assets, rates) = thread::scope(|scope| {
                    let beside = thread::Builder::new()
                        .name("clearway-rates".to_owned())
                        .spawn_scoped(scope, || self.get(assets, None))
                        .map_err(|_| PollError::NoThread)?;
                    let rates = self.get(rates, None);
                    let assets = beside.join().map_err(|_| PollError::NoThread)?;
                    Ok::<_, PollError>((assets?, rates?))
                })?;
                read_coin_cap(&assets, &rates)
            }
            Requests::CryptoCompare { top, authorization } => read_crypto_compare(&self.get(top, Some(authorization))?),
            Requests::Map(url) => read_map(&self.get(url, None)?),
        }
    }

    fn get(&self, url: &Url, authorization: Option<&str>) -> Result<Vec<u8>, PollError> {
        let mut request = self.agent.get(url.as_str());
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.call().map_err(|error| reason_of(&error))?;
        if response.status() != StatusCode::OK {
            return Err(PollError::Status(response.status().as_u16()));
        }
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        body.read_to_vec().map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => PollError::TooLong,
            ureq::Error::Timeout(_) => PollError::Late,
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => PollError::Late,
            _ => PollError::Incomplete,
        })
    }
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address == Ipv4Addr::LOCALHOST,
        Some(Host::Ipv6(address)) => address == Ipv6Addr::LOCALHOST,
        None => false,
    }
}

fn reason_of(error: &ureq::Error) -> PollError {
    match error {
        ureq::Error::HostNotFound => PollError::NotFound,
        ureq::Error::Timeout(_) => PollError::Late,
        ureq::Error::TooManyRedirects => PollError::Redirects,
        ureq::Error::RequireHttpsOnly(_) => PollError::Unprotected,
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => PollError::NotTrusted,
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => PollError::Late,
        ureq::Error::ConnectionFailed | ureq::Error::Io(_) => PollError::NotConnected,
        _ => PollError::NotHttp,
    }
}

/// `{"data":[{"symbol":"BTC","priceUsd":"64000.1"}]}` and `{"data":[{"symbol":"EUR","rateUsd":"1.08"}]}`. A symbol that
/// both have is worth what the second says. Several coins may share a symbol: the list begins with the largest, which is
/// the one that is meant.
fn read_coin_cap(assets: &[u8], rates: &[u8]) -> Result<Answer, PollError> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        data: Vec<Asset<'a>>,
    }
    #[derive(Deserialize)]
    struct Asset<'a> {
        #[serde(borrow)]
        symbol: Option<&'a RawValue>,
        #[serde(borrow, rename = "priceUsd")]
        price: Option<&'a RawValue>,
        #[serde(borrow, rename = "rateUsd")]
        rate: Option<&'a RawValue>,
    }
    let mut answer = Answer::default();
    let assets: List<'_> = read_json(assets)?;
    for asset in assets.data {
        answer.add(asset.symbol, asset.price, Twice::FirstCounts);
    }
    let mut second = Answer::default();
    let rates: List<'_> = read_json(rates)?;
    for asset in rates.data {
        second.add(asset.symbol, asset.rate, Twice::FirstCounts);
    }
    answer.rates.append(&mut second.rates);
    answer.skipped += second.skipped;
    answer.first_skipped = answer.first_skipped.or(second.first_skipped);
    answer.in_dollars()
}

/// `{"Data":[{"CoinInfo":{"Name":"BTC"},"RAW":{"USD":{"PRICE":64000.1}}}]}`. Coins that are not traded have no `RAW`.
fn read_crypto_compare(text: &[u8]) -> Result<Answer, PollError> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow, rename = "Data")]
        data: Vec<Coin<'a>>,
    }
    #[derive(Deserialize)]
    struct Coin<'a> {
        #[serde(borrow, rename = "CoinInfo")]
        info: Option<Info<'a>>,
        #[serde(borrow, rename = "RAW")]
        raw: Option<Raw<'a>>,
    }
    #[derive(Deserialize)]
    struct Info<'a> {
        #[serde(borrow, rename = "Name")]
        name: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow, rename = "USD")]
        dollars: Option<Dollars<'a>>,
    }
    #[derive(Deserialize)]
    struct Dollars<'a> {
        #[serde(borrow, rename = "PRICE")]
        price: Option<&'a RawValue>,
    }
    let list: List<'_> = read_json(text)?;
    let mut answer = Answer::default();
    for coin in list.data {
        let Some(raw) = coin.raw else { continue };
        let name = coin.info.and_then(|info| info.name);
        let price = raw.dollars.and_then(|dollars| dollars.price);
        answer.add(name, price, Twice::FirstCounts);
    }
    answer.in_dollars()
}

/// `{"ABC": 1.0, "XYZ": "2.517"}`, in any common base.
fn read_map(text: &[u8]) -> Result<Answer, PollError> {
    let Members(members) = read_json(text)?;
    let mut answer = Answer::default();
    for (code, value) in members {
        if !answer.add_code(&code, Some(value), Twice::IsAnError) {
            return Err(PollError::CodeTwice);
        }
    }
    answer.checked()
}

fn read_json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, PollError> {
    serde_json::from_slice(text).map_err(|_| PollError::Malformed)
}

/// What it means that a code is there again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twice {
    FirstCounts,
    IsAnError,
}

impl Answer {
    /// Takes one entry of a list, of whatever kind its parts are.
    fn add(&mut self, code: Option<&RawValue>, value: Option<&RawValue>, twice: Twice) {
        match code.and_then(|code| serde_json::from_str::<Cow<'_, str>>(code.get()).ok()) {
            Some(code) => {
                self.add_code(&code, value, twice);
            }
            None => self.skip("", "has no code"),
        }
    }

    /// False: the code was there already, and must not be.
    fn add_code(&mut self, code: &str, value: Option<&RawValue>, twice: Twice) -> bool {
        let code = code.to_uppercase();
        if code.is_empty() || code.len() > ASSET_CODE_BYTES_MAX || code.chars().any(char::is_control) {
            self.skip("", "has a code that no account may have");
            return true;
        }
        let Some(rate) = value.and_then(read_rate) else {
            self.skip(&code, "has no rate above zero");
            return true;
        };
        match self.rates.entry(code) {
            Entry::Vacant(place) => {
                place.insert(rate);
                true
            }
            Entry::Occupied(_) => twice == Twice::FirstCounts,
        }
    }

    fn skip(&mut self, code: &str, reason: &str) {
        self.skipped += 1;
        let subject = if code.is_empty() { "an entry" } else { code };
        self.first_skipped.get_or_insert_with(|| format!("{subject} {reason}"));
    }

    /// All values are in US dollars, which are worth one of themselves.
    fn in_dollars(self) -> Result<Self, PollError> {
        let mut answer = self.checked()?;
        let one = Decimal::parse("1").expect("a constant");
        answer.rates.insert("USD".to_owned(), one);
        Ok(answer)
    }

    fn checked(self) -> Result<Self, PollError> {
        // One place is left for the dollar.
        match self.rates.len() {
            0 => Err(PollError::NoRate),
            ANSWER_RATES_MAX.. => Err(PollError::TooMany),
            _ => Ok(self),
        }
    }
}

/// A number, or a text that is one.
fn read_rate(value: &RawValue) -> Option<Decimal> {
    let text = match value.get() {
        json if json.starts_with('"') => serde_json::from_str::<Cow<'_, str>>(json).ok()?,
        json => Cow::Borrowed(json),
    };
    Decimal::parse(&text).ok().filter(Decimal::is_positive)
}

/// The members of an object, also if one is there twice, which a map would hide.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of codes and rates")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates, how many entries were left out and why the first was, or why there are none.
    fn show(read: Result<Answer, PollError>) -> String {
        match read {
            Err(error) => error.to_string(),
            Ok(answer) => {
                let rates: Vec<_> = answer
                    .rates
                    .iter()
                    .map(|(code, rate)| format!("{code}={rate}"))
                    .collect();
                let skipped = answer.first_skipped.unwrap_or_default();
                match answer.skipped {
                    0 => rates.join(" "),
                    count => format!("{} -{count} {skipped}", rates.join(" ")),
                }
            }
        }
    }

    #[test]
    fn maps() {
        let long = format!(r#"{{"{}":1,"B":1}}"#, "a".repeat(65));
        let digits = format!(r#"{{"A":0.{},"B":0.{}}}"#, "1".repeat(41), "1".repeat(40));
        let digits_read = format!("B=0.{} -1 A has no rate above zero", "1".repeat(40));
        for (text, expected) in [
            (r#"{"ABC":1.0,"xyz":"2.517"}"#, "ABC=1 XYZ=2.517"),
            (
                r#"{"A":0.1000000000000000055511151231257827,"B":12345678901234567890.123456789}"#,
                "A=0.1000000000000000055511151231257827 B=12345678901234567890.123456789",
            ),
            (r#"{"A":5e-7,"B":"1E+2"}"#, "A=5e-7 B=100"),
            (r#"{"\u0061bc":"\u0031"}"#, "ABC=1"),
            (&digits, &digits_read),
            // ---- entries that are no rates
            (r#"{"A":null,"B":1}"#, "B=1 -1 A has no rate above zero"),
            (r#"{"A":0,"B":1}"#, "B=1 -1 A has no rate above zero"),
            (r#"{"A":-1,"B":1}"#, "B=1 -1 A has no rate above zero"),
            (
                r#"{"A":"NaN","C":"Infinity","D":"","B":1}"#,
                "B=1 -3 A has no rate above zero",
            ),
            (
                r#"{"A":true,"C":[1],"D":{"x":1},"B":1}"#,
                "B=1 -3 A has no rate above zero",
            ),
            (
                r#"{"A":" 1","C":"1,5","D":1e400,"E":1e-400,"B":1}"#,
                "B=1 -4 A has no rate above zero",
            ),
            (r#"{"":1,"B":1}"#, "B=1 -1 an entry has a code that no account may have"),
            (
                r#"{"\u001b[2J":1,"B":1}"#,
                "B=1 -1 an entry has a code that no account may have",
            ),
            (&long, "B=1 -1 an entry has a code that no account may have"),
            // ---- refused whole
            (r#"{"A":1,"a":2}"#, "answered with one code twice"),
            (r#"{"A":1,"A":1}"#, "answered with one code twice"),
            ("{}", "answered with no rate"),
            (r#"{"A":null}"#, "answered with no rate"),
            ("", "did not answer in the JSON that is expected of it"),
            ("[]", "did not answer in the JSON that is expected of it"),
            ("7", "did not answer in the JSON that is expected of it"),
            (r#"{"A":1"#, "did not answer in the JSON that is expected of it"),
            (r#"{"A":1} x"#, "did not answer in the JSON that is expected of it"),
            (r#"{"A":NaN}"#, "did not answer in the JSON that is expected of it"),
            (r#"{"A":01}"#, "did not answer in the JSON that is expected of it"),
            ("<html>", "did not answer in the JSON that is expected of it"),
        ] {
            assert_eq!(show(read_map(text.as_bytes())), expected, "{text:.100}");
        }
        assert_eq!(read_map(b"{\"A\xff\":1}"), Err(PollError::Malformed), "not UTF-8");
        let deep = format!("{{\"A\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read_map(deep.as_bytes()), Err(PollError::NoRate), "it is not gone into");
        let many = |count: usize| {
            let members: Vec<_> = (0..count).map(|number| format!("\"A{number}\":1")).collect();
            read_map(format!("{{{}}}", members.join(",")).as_bytes()).map(|answer| answer.rates.len())
        };
        assert_eq!(many(ANSWER_RATES_MAX - 1), Ok(ANSWER_RATES_MAX - 1));
        assert_eq!(many(ANSWER_RATES_MAX), Err(PollError::TooMany));
    }

    #[test]
    fn coin_cap() {
        let none = r#"{"data":[]}"#;
        for (assets, rates, expected) in [
            (
                r#"{"data":[{"id":"bitcoin","rank":"1","symbol":"BTC","priceUsd":"64000.1000000000000001"}],"timestamp":1}"#,
                r#"{"data":[{"id":"euro","symbol":"EUR","rateUsd":"1.08","type":"fiat"}]}"#,
                "BTC=64000.1000000000000001 EUR=1.08 USD=1",
            ),
            // A symbol in both: the second; the first of several coins; numbers as well as texts.
            (
                r#"{"data":[{"symbol":"btc","priceUsd":"1"},{"symbol":"BTC","priceUsd":"2"},{"symbol":"X","priceUsd":3}]}"#,
                r#"{"data":[{"symbol":"X","rateUsd":"4"},{"symbol":"USD","rateUsd":"0.9"}]}"#,
                "BTC=1 USD=1 X=4",
            ),
            (
                r#"{"data":[{"symbol":"A","priceUsd":null},{"symbol":"B","priceUsd":"1"},{"symbol":"C"}]}"#,
                none,
                "B=1 USD=1 -2 A has no rate above zero",
            ),
            (
                r#"{"data":[{"symbol":null,"priceUsd":"1"},{"symbol":7,"priceUsd":"1"},{"priceUsd":"1"},{}]}"#,
                r#"{"data":[{"symbol":"A","rateUsd":"1"}]}"#,
                "A=1 USD=1 -4 an entry has no code",
            ),
            (none, none, "answered with no rate"),
            (
                r#"{"error":"too many requests"}"#,
                none,
                "did not answer in the JSON that is expected of it",
            ),
            (
                none,
                r#"{"data":[7]}"#,
                "did not answer in the JSON that is expected of it",
            ),
        ] {
            let read = read_coin_cap(assets.as_bytes(), rates.as_bytes());
            assert_eq!(show(read), expected, "{assets}");
        }
    }

    #[test]
    fn crypto_compare() {
        for (text, expected) in [
            (
                r#"{"Message":"Success","Data":[{"CoinInfo":{"Id":"1182","Name":"BTC"},"RAW":{"USD":{"TYPE":"5","PRICE":64000.10000000000000001}}},
                   {"CoinInfo":{"Name":"NEW"}},{"CoinInfo":{"Name":"OLD"},"RAW":null}]}"#,
                "BTC=64000.10000000000000001 USD=1",
            ),
            (
                r#"{"Data":[{"CoinInfo":{"Name":"A"},"RAW":{"USD":{"PRICE":null}}},{"CoinInfo":{"Name":"B"},"RAW":{}},
                   {"CoinInfo":{},"RAW":{"USD":{"PRICE":1}}},{"RAW":{"USD":{"PRICE":1}}},
                   {"CoinInfo":{"Name":"C"},"RAW":{"USD":{"PRICE":0}}},{"CoinInfo":{"Name":"D"},"RAW":{"USD":{"PRICE":2}}}]}"#,
                "D=2 USD=1 -5 A has no rate above zero",
            ),
            (
                r#"{"Response":"Error","Message":"your api_key is invalid","Data":{}}"#,
                "did not answer in the JSON that is expected of it",
            ),
            (r#"{"Data":[]}"#, "answered with no rate"),
        ] {
            assert_eq!(show(read_crypto_compare(text.as_bytes())), expected, "{text}");
        }
    }

    #[test]
    fn what_is_requested() {
        let key = || Provider::CryptoCompare { key: "k".into() };
        let other = |text| Provider::Url(Url::parse(text).unwrap());
        for (provider, base, expected) in [
            (
                Provider::CoinCap,
                "",
                "https://api.coincap.io/v2/assets https://api.coincap.io/v2/rates",
            ),
            (
                Provider::CoinCap,
                "http://h:1/mirror/",
                "http://h:1/mirror/v2/assets http://h:1/mirror/v2/rates",
            ),
            (
                key(),
                "",
                "https://min-api.cryptocompare.com/data/top/mktcapfull?limit=100&tsym=USD Apikey k",
            ),
            (
                key(),
                "http://h",
                "http://h/data/top/mktcapfull?limit=100&tsym=USD Apikey k",
            ),
            (other("https://h/x?y=z"), "", "https://h/x?y=z"),
        ] {
            let base = Url::parse(base).ok();
            let requested = match RateClient::new(&provider, base.as_ref()).requests {
                Requests::CoinCap { assets, rates } => format!("{assets} {rates}"),
                Requests::CryptoCompare { top, authorization } => format!("{top} {authorization}"),
                Requests::Map(url) => url.to_string(),
            };
            assert_eq!(requested, expected);
        }
    }
}
