//! Asks a receiver where to pay (SPSP, RFC 9), by payment pointer (RFC 26) or URL.
//!
//! Owns the way from a text that a holder typed to an address and a secret. A payment pointer must not be a way into the
//! operator's network: unless private addresses are allowed, nothing is connected to that is not reachable from
//! everywhere. That is checked of the very address that is connected to, behind the name and behind every redirect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{StatusCode, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use url::{Host, Url};

use crate::stream::secret::SharedSecret;
use crate::wire::address::Address;
use crate::wire::base64;

/// How long a server may take for one answer, redirects included.
const TRY_MAX: Duration = Duration::from_secs(3);
/// What we wait before we ask again a server that is overloaded or broken.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(500),
    Duration::from_millis(2_500),
];
const REDIRECTS_MAX: u32 = 3;
/// An answer has some hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// The length of a pointer or URL in bytes.
const RECEIVER_BYTES_MAX: usize = 2_048;
const MEDIA_TYPES: [&str; 3] = ["application/spsp4+json", "application/spsp+json", "application/json"];

/// Where to pay, and the secret that only the receiver and we know. Has no `Debug`: it would print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination {
    pub address: Box<str>,
    pub shared_secret: SharedSecret,
}

/// A text that names no receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidReceiver {
    #[error("expected a payment pointer ($example.com/alice) or an http or https URL")]
    NoPointer,
    #[error("must not hold a user name or password")]
    UserInfo,
    #[error("must not have a fragment")]
    Fragment,
    #[error("a payment pointer has neither port nor query")]
    PortOrQuery,
    #[error("has more than {RECEIVER_BYTES_MAX} bytes")]
    TooLong,
}

/// Why there is no destination.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    /// This node does not ask there.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// The server cannot be reached, or its answer is not one.
    #[error("{0}")]
    Unreachable(String),
}

const PRIVATE: &str = "the receiver's host has a private address, which this node does not connect to";
const PLAIN_HTTP: &str = "the receiver must be reached over https";

/// The SPSP endpoint of a payment pointer or URL.
pub fn endpoint(receiver: &str) -> Result<Url, InvalidReceiver> {
    if receiver.len() > RECEIVER_BYTES_MAX {
        return Err(InvalidReceiver::TooLong);
    }
    let (text, is_pointer) = match receiver.strip_prefix('$') {
        Some(rest) => (format!("https://{rest}"), true),
        None => (receiver.to_owned(), false),
    };
    // What the parser of URLs would mend is no pointer: blanks, control characters, back slashes, other alphabets.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let url = Url::parse(&text).ok().filter(|url| is_plain && url.has_host());
    let mut url = url.ok_or(InvalidReceiver::NoPointer)?;
    if !matches!(url.scheme(), "http" | "https") || text.split_once("://").is_none_or(|(_, rest)| rest.starts_with('/'))
    {
        return Err(InvalidReceiver::NoPointer);
    }
    if !url.username().is_empty() || url.password().is_some() || text.contains('@') && authority(&text).contains('@') {
        return Err(InvalidReceiver::UserInfo);
    }
    if url.fragment().is_some() {
        return Err(InvalidReceiver::Fragment);
    }
    if is_pointer && (authority(&text).contains(':') || url.query().is_some()) {
        return Err(InvalidReceiver::PortOrQuery);
    }
    if url.path() == "/" && url.query().is_none() {
        url.set_path("/.well-known/pay");
    }
    Ok(url)
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Asks SPSP servers. Any number of threads may ask through one.
pub struct SpspClient {
    agent: Agent,
    allow_private: bool,
}

impl SpspClient {
    /// `allow_private`: also ask hosts with private and loopback addresses, and without TLS.
    pub fn new(allow_private: bool) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TRY_MAX))
            .max_redirects(REDIRECTS_MAX)
            .https_only(!allow_private)
            // A proxy would connect where we do not.
            .proxy(None)
            .accept("application/spsp4+json, application/spsp+json")
            .user_agent(concat!("clearway/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = PublicOnly {
            names: DefaultResolver::default(),
            allow_private,
        };
        Self {
            agent: Agent::with_parts(config, DefaultConnector::default(), resolver),
            allow_private,
        }
    }

    /// Asks an [`endpoint`]. Blocks for 15 seconds at most.
    pub fn query(&self, endpoint: &Url) -> Result<Destination, QueryError> {
        if !self.allow_private {
            if endpoint.scheme() != "https" {
                return Err(QueryError::NotAllowed(PLAIN_HTTP));
            }
            let address = match endpoint.host() {
                Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
                Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
                _ => None,
            };
            if address.is_some_and(|address| !is_public(address)) {
                return Err(QueryError::NotAllowed(PRIVATE));
            }
        }
        let mut pauses = PAUSES.iter();
        loop {
            match self.ask(endpoint) {
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => match pauses.next() {
                    Some(pause) => std::thread::sleep(*pause),
                    None => return Err(error),
                },
                Ok(destination) => return Ok(destination),
            }
        }
    }

    fn ask(&self, endpoint: &Url) -> Result<Destination, Failure> {
        let unreachable = |reason: &str| QueryError::Unreachable(format!("the receiver's server {reason}"));
        let mut response = self.agent.get(endpoint.as_str()).call().map_err(|error| match error {
            ureq::Error::Other(error) if error.is::<NotPublic>() => Failure::Final(QueryError::NotAllowed(PRIVATE)),
            ureq::Error::RequireHttpsOnly(_) => Failure::Final(QueryError::NotAllowed(PLAIN_HTTP)),
            error => Failure::Final(unreachable(reason_of(&error))),
        })?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Failure::Passing(unreachable(&format!("answered {}", status.as_u16()))));
        }
        let mut read = || -> Result<Destination, &'static str> {
            if status != StatusCode::OK {
                return Err(match status.as_u16() {
                    404 => "knows no such receiver (404)",
                    300..=399 => "redirects without an end",
                    _ => "refused to say where to pay",
                });
            }
            let media_type = response
                .headers()
                .get("content-type")
                .and_then(|value| value.to_str().ok());
            let media_type = media_type
                .and_then(|value| value.split(';').next())
                .unwrap_or_default()
                .trim();
            if !MEDIA_TYPES.iter().any(|known| known.eq_ignore_ascii_case(media_type)) {
                return Err("answered with another media type than SPSP has");
            }
            let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
            let text = body.read_to_string().map_err(|error| match error {
                ureq::Error::BodyExceedsLimit(_) => "answered with more than SPSP has to say",
                _ => "did not finish its answer",
            })?;
            read_answer(&text)
        };
        read().map_err(|reason| Failure::Final(unreachable(reason)))
    }
}

/// Whether asking again may help.
enum Failure {
    Final(QueryError),
    Passing(QueryError),
}

fn read_answer(text: &str) -> Result<Destination, &'static str> {
    #[derive(Deserialize)]
    struct Answer {
        destination_account: String,
        shared_secret: String,
    }
    let answer: Answer = serde_json::from_str(text).map_err(|_| "answered with no SPSP answer")?;
    if Address::parse(answer.destination_account.as_bytes()).is_err() {
        return Err("answered with an address that is none");
    }
    let secret = base64::decode(&answer.shared_secret).and_then(|secret| secret.try_into().ok());
    Ok(Destination {
        address: answer.destination_account.into(),
        shared_secret: secret.ok_or("answered with a secret that is none")?,
    })
}

/// In words that tell a caller what to do, and nothing of the library.
fn reason_of(error: &ureq::Error) -> &'static str {
    match error {
        ureq::Error::HostNotFound => "has a name that cannot be resolved",
        ureq::Error::Timeout(_) => "did not answer in time",
        ureq::Error::TooManyRedirects => "redirects without an end",
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => "has no certificate that can be trusted",
        ureq::Error::ConnectionFailed | ureq::Error::Io(_) => "cannot be connected to",
        _ => "did not answer in HTTP",
    }
}

/// Resolves names, and hides every address that is not reachable from everywhere.
#[derive(Debug)]
struct PublicOnly {
    names: DefaultResolver,
    allow_private: bool,
}

/// A name that leads only to where we do not connect.
#[derive(Debug, thiserror::Error)]
#[error("{PRIVATE}")]
struct NotPublic;

impl Resolver for PublicOnly {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.names.resolve(uri, config, timeout)?;
        if self.allow_private {
            return Ok(found);
        }
        let mut public = self.empty();
        for address in found.iter().filter(|address| is_public(address.ip())) {
            public.push(*address);
        }
        if public.is_empty() {
            return Err(ureq::Error::Other(Box::new(NotPublic)));
        }
        Ok(public)
    }
}

/// Whether an address is one of the Internet's, and not of a host, a link, a site, or nobody (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped().or_else(|| embedded_v4(address)) {
            Some(address) => is_public_v4(address),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        // Shared by carriers (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544), reserved (RFC 1112).
        || a == 100 && (64..128).contains(&b)
        || (a, b, c) == (192, 0, 0)
        || a == 198 && (b == 18 || b == 19)
        || a >= 240)
}

/// The IPv4 address that translators and 6to4 would connect to (RFC 6052, RFC 3056).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bytes = address.octets();
    let four = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(four(12)),
        [0x2002, ..] => Some(four(2)),
        _ => None,
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Of all addresses only 2000::/3 is given out; within it, documentation and Teredo are not for us.
    segments[0] & 0xe000 == 0x2000
        && !(segments[0] == 0x2001 && (segments[1] == 0xdb8 || segments[1] == 0))
        && !(segments[0] == 0x3fff && segments[1] < 0x1000)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    #[test]
    fn pointers_and_urls() {
        use InvalidReceiver::{Fragment, NoPointer, PortOrQuery, UserInfo};
        for (receiver, expected) in [
            ("$example.com", Ok("https://example.com/.well-known/pay")),
            ("$example.com/", Ok("https://example.com/.well-known/pay")),
            ("$example.com/bob", Ok("https://example.com/bob")),
            ("$example.com/bob/", Ok("https://example.com/bob/")),
            ("$bob.example.com", Ok("https://bob.example.com/.well-known/pay")),
            ("https://example.com", Ok("https://example.com/.well-known/pay")),
            ("https://example.com/x?y=1", Ok("https://example.com/x?y=1")),
            (
                "http://127.0.0.1:7770/accounts/bob/spsp",
                Ok("http://127.0.0.1:7770/accounts/bob/spsp"),
            ),
            ("http://[::1]:80/x", Ok("http://[::1]/x")),
            ("", Err(NoPointer)),
            ("$", Err(NoPointer)),
            ("$/bob", Err(NoPointer)),
            ("example.com", Err(NoPointer)),
            ("ftp://example.com/", Err(NoPointer)),
            ("file:///etc/passwd", Err(NoPointer)),
            ("https:///example.com", Err(NoPointer)),
            ("$exa mple.com", Err(NoPointer)),
            ("$example.com/b ob", Err(NoPointer)),
            ("$example.com\\@other.com", Err(NoPointer)),
            ("$zoë.example", Err(NoPointer)),
            ("https://example.com/\n", Err(NoPointer)),
            ("$user@example.com", Err(UserInfo)),
            ("https://user:pw@example.com/", Err(UserInfo)),
            ("https://@example.com/", Err(UserInfo)),
            ("https://example.com/a@b", Ok("https://example.com/a@b")),
            ("$example.com/bob#x", Err(Fragment)),
            ("https://example.com/#", Err(Fragment)),
            ("$example.com:8080/bob", Err(PortOrQuery)),
            ("$example.com:443", Err(PortOrQuery)),
            ("$example.com/bob?x=1", Err(PortOrQuery)),
        ] {
            let found = endpoint(receiver).map(String::from);
            assert_eq!(found.as_deref().map_err(|error| *error), expected, "{receiver}");
        }
        let long = format!("$example.com/{}", "a".repeat(RECEIVER_BYTES_MAX));
        assert_eq!(endpoint(&long), Err(InvalidReceiver::TooLong));
    }

    #[test]
    fn addresses_that_are_connected_to() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("192.0.0.8", false),
            ("198.18.0.1", false),
            ("2606:4700::1111", true),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fc00::1", false),
            ("ff02::1", false),
            ("2001:db8::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::808:808", true),
            ("2002:7f00:1::", false),
            ("::7f00:1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    /// A server that gives each connection the next of these answers, and the last one for ever.
    fn serve(answers: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        break;
                    }
                    head.extend(byte);
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.contains("application/spsp4+json"), "{head}");
                let _ = stream.write_all(answers[number.min(answers.len() - 1)].as_bytes());
            }
        });
        address
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    }

    #[test]
    fn answers_of_servers() {
        const SPSP: &str = "content-type: application/spsp4+json\r\n";
        let good = r#"{"destination_account":"example.red.bob","shared_secret":"6jR5iNIVRvqeasJeCty6C+YB5X9FhSOUPCL/5nha5Vs=","x":1}"#;
        let url_safe = good.replace("C+Y", "C-Y").replace("CL/5", "CL_5").replace("Vs=", "Vs");
        let huge = format!("{{\"x\":\"{}\"}}", "a".repeat(100_000));
        for (answers, expected) in [
            (vec![answer("200 OK", SPSP, good)], "example.red.bob"),
            (
                vec![answer(
                    "200 OK",
                    "content-type: Application/JSON; charset=utf-8\r\n",
                    &url_safe,
                )],
                "example.red.bob",
            ),
            (
                vec![
                    answer("503 No", "", ""),
                    answer("429 No", "", ""),
                    answer("200 OK", SPSP, good),
                ],
                "example.red.bob",
            ),
            (
                vec![
                    answer("302 Found", "location: /other\r\n", ""),
                    answer("200 OK", SPSP, good),
                ],
                "example.red.bob",
            ),
            (vec![answer("500 No", "", "")], "answered 500"),
            (vec![answer("404 No", SPSP, "{}")], "knows no such receiver"),
            (vec![answer("401 No", SPSP, "{}")], "refused to say"),
            (
                vec![answer("302 Found", "location: /again\r\n", "")],
                "redirects without an end",
            ),
            (
                vec![answer("200 OK", "content-type: text/html\r\n", good)],
                "another media type",
            ),
            (vec![answer("200 OK", "", good)], "another media type"),
            (vec![answer("200 OK", SPSP, &huge)], "more than SPSP has to say"),
            (vec![answer("200 OK", SPSP, "{}")], "no SPSP answer"),
            (
                vec![answer("200 OK", SPSP, &good.replace("example.red", "example..red"))],
                "an address that is none",
            ),
            (
                vec![answer("200 OK", SPSP, &good.replace("6jR5", "6jR"))],
                "a secret that is none",
            ),
            (
                vec!["HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{".into()],
                "did not finish",
            ),
            (vec!["nonsense".into()], "the receiver's server"),
            (vec![String::new()], "the receiver's server"),
        ] {
            let url = format!("http://{}/bob", serve(answers.clone()));
            let found = SpspClient::new(true).query(&endpoint(&url).unwrap());
            let found = match found {
                Ok(destination) => {
                    assert_eq!(destination.shared_secret[..4], [0xea, 0x34, 0x79, 0x88]);
                    destination.address.to_string()
                }
                Err(error) => error.to_string(),
            };
            assert!(
                found.contains(expected),
                "{found} and not {expected} of {answers:.300?}"
            );
        }
    }

    #[test]
    fn private_hosts_are_refused_before_anything_is_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = SpspClient::new(false);
        for (url, expected) in [
            (format!("https://127.0.0.1:{port}/x"), PRIVATE),
            (format!("https://localhost:{port}/x"), PRIVATE),
            (format!("https://[::1]:{port}/x"), PRIVATE),
            (format!("https://2130706433:{port}/x"), PRIVATE),
            ("https://169.254.169.254/latest".into(), PRIVATE),
            (format!("http://127.0.0.1:{port}/x"), PLAIN_HTTP),
        ] {
            let refused = client.query(&endpoint(&url).unwrap()).err();
            assert_eq!(refused, Some(QueryError::NotAllowed(expected)), "{url}");
        }
        assert!(listener.accept().is_err(), "nobody came");
        // Nobody listens on a port that has just been given back.
        drop(listener);
        let url = endpoint(&format!("http://127.0.0.1:{port}/x")).unwrap();
        let refused = SpspClient::new(true).query(&url).err().unwrap();
        assert!(refused.to_string().contains("cannot be connected to"), "{refused}");
    }
}
