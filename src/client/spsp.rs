//! Asks a receiver where to pay (SPSP, RFC 9), by payment pointer (RFC 26) or URL.
//!
//! Owns the way from a text that a holder typed to an address and a secret. A payment pointer must not be a way into the
//! operator's network: unless private addresses are allowed, nothing is connected to that is not reachable from
//! everywhere. That is checked of the very address that is connected to, behind the name and behind every redirect.
//!
//! A node whose holders pay one another asks itself. Over a connection that would cost more than the payment's packets, so
//! [`OwnServer`] answers in this process what its address would be asked for; how an answer is read is the same.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use url::{Host, Url};

use super::agent::{self, reason_of};
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
/// Connections that are kept for the next question: to one server as many as usually ask at a time, so that a busy one
/// costs no handshake per payment; to all of them, some kilobytes each. They go when nobody has used them for 15 seconds.
const IDLE_TO_ONE_MAX: usize = 16;
const IDLE_MAX: usize = 64;
/// How long the addresses of a name are used again, and of how many names: a look-up costs more than the question, and
/// holders pay at the same few hosts. No change of a name is expected to be seen everywhere within a second.
const NAME_KEPT: Duration = Duration::from_secs(1);
const NAMES_KEPT_MAX: usize = 1_024;
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

/// What this process itself answers.
pub struct OwnServer {
    /// Where it listens, for HTTP without TLS. Only a URL with an address, and not a name, is known to lead here.
    pub address: SocketAddr,
    /// What a GET of this path and query is answered there. Does not wait. `None`: ask there.
    pub answer: Box<Answers>,
}

type Answers = dyn Fn(&str) -> Option<Answer> + Send + Sync;

/// What a server has answered.
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

impl OwnServer {
    fn is_at(&self, endpoint: &Url) -> bool {
        let address = match endpoint.host() {
            Some(Host::Ipv4(address)) => IpAddr::from(address),
            Some(Host::Ipv6(address)) => IpAddr::from(address),
            _ => return false,
        };
        let own = self.address.ip();
        // Who listens at all addresses listens at the loopback ones of the same family.
        let is_here =
            own == address || own.is_unspecified() && own.is_ipv4() == address.is_ipv4() && address.is_loopback();
        is_here && endpoint.scheme() == "http" && endpoint.port_or_known_default() == Some(self.address.port())
    }
}

/// Asks SPSP servers. Any number of threads may ask through one.
pub struct SpspClient {
    agent: Agent,
    allow_private: bool,
    own: Option<OwnServer>,
}

impl SpspClient {
    /// `allow_private`: also ask hosts with private and loopback addresses, and without TLS.
    pub fn new(allow_private: bool, own: Option<OwnServer>) -> Self {
        let config = agent::config()
            .timeout_global(Some(TRY_MAX))
            .max_redirects(REDIRECTS_MAX)
            .https_only(!allow_private)
            .accept("application/spsp4+json, application/spsp+json")
            .max_idle_connections(IDLE_MAX)
            .max_idle_connections_per_host(IDLE_TO_ONE_MAX)
            .build();
        let resolver = PublicOnly {
            names: DefaultResolver::default(),
            allow_private,
            recent: Mutex::default(),
        };
        Self {
            agent: Agent::with_parts(config, DefaultConnector::default(), resolver),
            allow_private,
            own,
        }
    }

    /// What [`Self::query`] of an [`endpoint`] would give, if this process answers there. Does not wait.
    pub fn query_own(&self, endpoint: &Url) -> Option<Result<Destination, QueryError>> {
        let own = self.own.as_ref().filter(|own| own.is_at(endpoint))?;
        if let Err(refused) = self.check_allowed(endpoint) {
            return Some(Err(refused));
        }
        let target = &endpoint[url::Position::BeforePath..url::Position::AfterQuery];
        let answer = (own.answer)(target)?;
        let read = check_head(answer.status, &answer.content_type)
            .and_then(|()| read_body(&answer.body).map_err(|reason| Failure::Final(unreachable(reason))));
        match read {
            Ok(destination) => Some(Ok(destination)),
            Err(Failure::Final(error)) => Some(Err(error)),
            // Asking there asks again.
            Err(Failure::Passing(_)) => None,
        }
    }

    /// Asks an [`endpoint`]. Blocks for 15 seconds at most.
    pub fn query(&self, endpoint: &Url) -> Result<Destination, QueryError> {
        self.check_allowed(endpoint)?;
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

    /// What can be said of a URL before its name is resolved.
    fn check_allowed(&self, endpoint: &Url) -> Result<(), QueryError> {
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
        Ok(())
    }

    fn ask(&self, endpoint: &Url) -> Result<Destination, Failure> {
        let mut response = self.agent.get(endpoint.as_str()).call().map_err(|error| match error {
            ureq::Error::Other(error) if error.is::<NotPublic>() => Failure::Final(QueryError::NotAllowed(PRIVATE)),
            ureq::Error::RequireHttpsOnly(_) => Failure::Final(QueryError::NotAllowed(PLAIN_HTTP)),
            error => Failure::Final(unreachable(reason_of(&error))),
        })?;
        let content_type = response.headers().get("content-type");
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        check_head(response.status().as_u16(), content_type)?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        body.read_to_vec()
            .map_err(|error| match error {
                ureq::Error::BodyExceedsLimit(_) => "answered with more than SPSP has to say",
                _ => "did not finish its answer",
            })
            .and_then(|body| read_body(&body))
            .map_err(|reason| Failure::Final(unreachable(reason)))
    }
}

fn unreachable(reason: &str) -> QueryError {
    QueryError::Unreachable(format!("the receiver's server {reason}"))
}

/// Whether asking again may help.
enum Failure {
    Final(QueryError),
    Passing(QueryError),
}

/// Whether the body of an answer is worth reading.
fn check_head(status: u16, content_type: &str) -> Result<(), Failure> {
    let reason = match status {
        200 => {
            let media_type = content_type.split(';').next().unwrap_or_default().trim();
            if MEDIA_TYPES.iter().any(|known| known.eq_ignore_ascii_case(media_type)) {
                return Ok(());
            }
            "answered with another media type than SPSP has"
        }
        429 | 500..=599 => return Err(Failure::Passing(unreachable(&format!("answered {status}")))),
        404 => "knows no such receiver (404)",
        300..=399 => "redirects without an end",
        _ => "refused to say where to pay",
    };
    Err(Failure::Final(unreachable(reason)))
}

fn read_body(body: &[u8]) -> Result<Destination, &'static str> {
    #[derive(Deserialize)]
    struct Answer {
        destination_account: String,
        shared_secret: String,
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|_| "answered with no SPSP answer")?;
    if Address::parse(answer.destination_account.as_bytes()).is_err() {
        return Err("answered with an address that is none");
    }
    let secret = base64::decode(&answer.shared_secret).and_then(|secret| secret.try_into().ok());
    Ok(Destination {
        address: answer.destination_account.into(),
        shared_secret: secret.ok_or("answered with a secret that is none")?,
    })
}

/// Resolves names, and hides every address that is not reachable from everywhere.
#[derive(Debug)]
struct PublicOnly {
    names: DefaultResolver,
    allow_private: bool,
    /// What names and ports were resolved to a moment ago.
    recent: Mutex<HashMap<(Box<str>, u16), Recent>>,
}

#[derive(Debug)]
struct Recent {
    found: Vec<SocketAddr>,
    at: Instant,
}

impl PublicOnly {
    /// The library starts a thread for each look-up, so that it can stop waiting for it: it is left alone where the answer
    /// is an address already, or was the same a moment ago.
    fn look_up(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let Some((host, port)) = host_and_port(uri) else {
            return self.names.resolve(uri, config, timeout);
        };
        let mut found = self.empty();
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            found.push(SocketAddr::new(address, port));
            return Ok(found);
        }
        let key = (host.to_ascii_lowercase().into_boxed_str(), port);
        if let Some(recent) = self.recent().get(&key).filter(|recent| recent.at.elapsed() < NAME_KEPT) {
            recent.found.iter().for_each(|address| found.push(*address));
            return Ok(found);
        }
        let found = self.names.resolve(uri, config, timeout)?;
        let recent = Recent {
            found: found.to_vec(),
            at: Instant::now(),
        };
        let mut all = self.recent();
        if all.len() >= NAMES_KEPT_MAX {
            // Those that were forgotten in vain are looked up again.
            all.clear();
        }
        all.insert(key, recent);
        Ok(found)
    }

    fn recent(&self) -> MutexGuard<'_, HashMap<(Box<str>, u16), Recent>> {
        // Each change of the table is one step.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn host_and_port(uri: &Uri) -> Option<(&str, u16)> {
    let port = uri.port_u16().or(match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    });
    Some((uri.host()?, port?))
}

/// A name that leads only to where we do not connect.
#[derive(Debug, thiserror::Error)]
#[error("{PRIVATE}")]
struct NotPublic;

impl Resolver for PublicOnly {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.look_up(uri, config, timeout)?;
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
            let server = serve(answers.clone());
            let url = format!("http://{server}/bob");
            let found = SpspClient::new(true, None).query(&endpoint(&url).unwrap());
            let in_words = |found| match found {
                Ok(Destination { address, shared_secret }) => {
                    assert_eq!(shared_secret[..4], [0xea, 0x34, 0x79, 0x88]);
                    String::from(address)
                }
                Err(error) => QueryError::to_string(&error),
            };
            let found = in_words(found);
            assert!(
                found.contains(expected),
                "{found} and not {expected} of {answers:.300?}"
            );
            // The same words from this process mean the same, if they are an answer to the first question.
            let own = own_server(server, answers[0].clone());
            if let Some(known) = SpspClient::new(true, Some(own)).query_own(&endpoint(&url).unwrap()) {
                assert_eq!(in_words(known), found);
            }
        }
    }

    /// Says what a server at `address` would, if that is whole and final.
    fn own_server(address: SocketAddr, answer: String) -> OwnServer {
        let answer = move |target: &str| {
            assert_eq!(target, "/bob");
            let (head, body) = answer.split_once("\r\n\r\n")?;
            let status = head.split(' ').nth(1)?.parse().ok().filter(|status| *status != 302)?;
            let is_whole = head.ends_with(&format!("content-length: {}", body.len()));
            let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: "));
            // What is too long is so for the wire only.
            (is_whole && body.len() < 1_000).then(|| Answer {
                status,
                content_type: content_type.unwrap_or_default().to_owned(),
                body: body.into(),
            })
        };
        OwnServer {
            address,
            answer: Box::new(answer),
        }
    }

    #[test]
    fn what_this_process_answers_itself() {
        let known = |listens: &str, allow_private, url: &str| {
            let answer = |target: &str| {
                (target != "/accounts").then(|| Answer {
                    status: 200,
                    content_type: "application/spsp4+json".to_owned(),
                    body: serde_json::to_vec(&serde_json::json!({
                        "destination_account": "example.red.bob",
                        "shared_secret": base64::encode(&[7; 32]),
                    }))
                    .unwrap(),
                })
            };
            let own = OwnServer {
                address: listens.parse().unwrap(),
                answer: Box::new(answer),
            };
            let found = SpspClient::new(allow_private, Some(own)).query_own(&endpoint(url).unwrap());
            found.map(|found| found.map(|destination| destination.address.to_string()))
        };
        let here = Some(Ok("example.red.bob".to_owned()));
        let refused = |why| Some(Err(QueryError::NotAllowed(why)));
        for (listens, allow_private, url, expected) in [
            (
                "127.0.0.1:7770",
                true,
                "http://127.0.0.1:7770/accounts/bob/spsp",
                here.clone(),
            ),
            ("127.0.0.1:7770", true, "http://127.0.0.1:7770/", here.clone()),
            ("127.0.0.1:80", true, "http://127.0.0.1/bob", here.clone()),
            ("[::1]:7770", true, "http://[::1]:7770/bob", here.clone()),
            ("0.0.0.0:7770", true, "http://127.0.0.1:7770/bob", here.clone()),
            ("0.0.0.0:7770", true, "http://127.1.2.3:7770/bob", here.clone()),
            ("[::]:7770", true, "http://[::1]:7770/bob", here),
            // Not a question of this protocol.
            ("127.0.0.1:7770", true, "http://127.0.0.1:7770/accounts", None),
            // Elsewhere, for all we know.
            ("127.0.0.1:7770", true, "http://127.0.0.1:7771/bob", None),
            ("127.0.0.1:7770", true, "http://127.0.0.2:7770/bob", None),
            ("127.0.0.1:7770", true, "http://localhost:7770/bob", None),
            ("127.0.0.1:7770", true, "http://[::1]:7770/bob", None),
            ("127.0.0.1:7770", true, "https://127.0.0.1:7770/bob", None),
            ("127.0.0.1:443", true, "https://127.0.0.1/bob", None),
            ("0.0.0.0:7770", true, "http://192.168.1.1:7770/bob", None),
            ("[::]:7770", true, "http://127.0.0.1:7770/bob", None),
            // What is not allowed is not allowed here either.
            (
                "127.0.0.1:7770",
                false,
                "http://127.0.0.1:7770/bob",
                refused(PLAIN_HTTP),
            ),
            ("8.8.8.8:80", false, "http://8.8.8.8/bob", refused(PLAIN_HTTP)),
        ] {
            assert_eq!(known(listens, allow_private, url), expected, "{url} at {listens}");
        }
    }

    #[test]
    fn names_are_looked_up_once_in_a_moment() {
        let resolver = PublicOnly {
            names: DefaultResolver::default(),
            allow_private: true,
            recent: Mutex::default(),
        };
        let resolve = |url: &str| {
            let timeout = NextTimeout {
                after: TRY_MAX.into(),
                reason: ureq::Timeout::Resolve,
                ..NextTimeout::default()
            };
            let found = resolver.resolve(&url.parse().unwrap(), &Config::default(), timeout);
            found.map(|found| found.to_vec()).unwrap_or_default()
        };
        for (url, expected) in [
            ("http://127.0.0.1/x", "127.0.0.1:80"),
            ("https://8.8.8.8/", "8.8.8.8:443"),
            ("http://[::1]:7770/", "[::1]:7770"),
        ] {
            assert_eq!(resolve(url), [expected.parse().unwrap()], "{url}");
        }
        assert!(resolver.recent().is_empty(), "an address is no name");
        let found = resolve("http://localhost:7770/");
        assert!(
            !found.is_empty()
                && found
                    .iter()
                    .all(|address| address.ip().is_loopback() && address.port() == 7770)
        );
        let key = (Box::from("localhost"), 7770);
        let marked: SocketAddr = "127.9.9.9:7770".parse().unwrap();
        let just_now = Recent {
            found: vec![marked],
            // A machine that stands still for a second must not end its time.
            at: Instant::now() + TRY_MAX * 100,
        };
        resolver.recent().insert(key.clone(), just_now);
        assert_eq!(resolve("http://LOCALHOST:7770/y"), [marked], "not looked up again");
        assert_ne!(resolve("http://localhost:7771/"), [marked]);
        let before = Instant::now().checked_sub(NAME_KEPT).unwrap();
        resolver.recent().get_mut(&key).unwrap().at = before;
        assert_eq!(resolve("http://localhost:7770/"), found, "looked up again");
        // A name that leads nowhere is not remembered, and the table does not grow for ever.
        assert!(resolve(&format!("http://{}/", "a".repeat(64))).is_empty());
        assert_eq!(resolver.recent().len(), 2);
        for number in 0..NAMES_KEPT_MAX {
            let recent = Recent {
                found: Vec::new(),
                at: before,
            };
            resolver.recent().insert((number.to_string().into(), 80), recent);
        }
        resolve("http://localhost:7772/");
        assert_eq!(resolver.recent().len(), 1);
        // What is remembered is hidden like everything else.
        let public_only = PublicOnly {
            allow_private: false,
            ..resolver
        };
        let timeout = NextTimeout {
            after: TRY_MAX.into(),
            reason: ureq::Timeout::Resolve,
            ..NextTimeout::default()
        };
        let uri = "http://localhost:7772/".parse().unwrap();
        let refused = public_only.resolve(&uri, &Config::default(), timeout);
        assert!(matches!(refused, Err(ureq::Error::Other(_))), "{refused:?}");
    }

    #[test]
    fn private_hosts_are_refused_before_anything_is_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = SpspClient::new(false, None);
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
        let refused = SpspClient::new(true, None).query(&url).err().unwrap();
        assert!(refused.to_string().contains("cannot be connected to"), "{refused}");
    }
}
