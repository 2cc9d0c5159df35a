//! Asks settlement engines (RFC 38): make and forget an account, pay, hand over a peer's message. One try per call.
//!
//! Owns the four requests, and what is known afterwards. That is what money hangs on: [`EngineAnswer::NotSent`] is only
//! what failed before there was a connection that could carry the request, and [`EngineAnswer::Accepted`] and
//! [`EngineAnswer::Refused`] are only answers that arrived; all else is [`EngineAnswer::Unknown`]. Leaves to others
//! when to try again, with the same key, and what to do about a refusal.

use std::time::Duration;

use ureq::config::Config;
use ureq::http::{HeaderValue, Method, Request, StatusCode, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport};
use ureq::{Agent, AsSendBody};
use url::Url;
use uuid::Uuid;

use super::agent::{self, reason_of};
use crate::wire::base64;
use crate::wire::http::percent::percent_decode;

/// How long an engine may take for one answer.
pub const TRY_MAX: Duration = Duration::from_secs(5);
/// The answer to a message: another engine's message.
const MESSAGE_BYTES_MAX: u64 = 4 << 20;
/// Any other answer; it has some hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// What is kept of an engine's own words about a failure, in characters.
const DETAIL_CHARS_MAX: usize = 200;
/// Connections that are kept for the next request. Servers on Node.js close them after 5 s, and a request that meets
/// such a close has an outcome that nobody knows.
const IDLE_MAX: Duration = Duration::from_secs(4);
const IDLE_CONNECTIONS_MAX: usize = 32;

/// What is known after one try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EngineAnswer {
    /// Done, now or by an earlier try; with the body of the answer if it was one to a message.
    Accepted(Vec<u8>),
    /// The engine will not do this, however often it is asked: 4xx but 408, 425 and 429.
    Refused { status: u16, detail: String },
    /// May have been done: no answer, half of one, one that is not HTTP, or one that settles nothing (3xx, 408, 425,
    /// 429, 5xx).
    Unknown { error: String },
    /// Surely not done by this try, which never reached the engine. Says nothing of earlier ones.
    NotSent { error: String },
}

/// Asks engines. Any number of threads may ask through one.
pub struct EngineClient {
    agent: Agent,
    try_max: Duration,
}

impl Default for EngineClient {
    fn default() -> Self {
        Self::new(TRY_MAX)
    }
}

/// One request, and which statuses are success beside 2xx.
struct Call<'a> {
    method: Method,
    /// What is appended to the engine's URL.
    path: &'a [&'a str],
    /// The media type and the body.
    body: Option<(&'static str, &'a [u8])>,
    key: &'a str,
    also_success: Option<StatusCode>,
    is_message: bool,
    limit: Duration,
}

impl EngineClient {
    fn new(try_max: Duration) -> Self {
        let config = agent::config()
            // Whoever answers instead of the engine that was named is not trusted with money.
            .max_redirects(0)
            .max_idle_age(IDLE_MAX)
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .build();
        Self {
            agent: Agent::with_parts(
                config,
                BeforeSending(DefaultConnector::default()),
                BeforeSending(DefaultResolver::default()),
            ),
            try_max,
        }
    }

    /// `POST /accounts`. Success, too, if the engine has it already.
    pub fn create_account(&self, engine: &Url, account: Uuid, key: &str) -> EngineAnswer {
        let body = format!(r#"{{"id":"{account}"}}"#);
        self.ask(
            engine,
            &Call {
                method: Method::POST,
                path: &["accounts"],
                body: Some(("application/json", body.as_bytes())),
                key,
                also_success: Some(StatusCode::CONFLICT),
                is_message: false,
                limit: self.try_max,
            },
        )
    }

    /// `DELETE /accounts/:id`. Success, too, if the engine has none of this id.
    pub fn delete_account(&self, engine: &Url, account: Uuid, key: &str) -> EngineAnswer {
        self.ask(
            engine,
            &Call {
                method: Method::DELETE,
                path: &["accounts", &account.to_string()],
                body: None,
                key,
                also_success: Some(StatusCode::NOT_FOUND),
                is_message: false,
                limit: self.try_max,
            },
        )
    }

    /// `POST /accounts/:id/settlements`: pay `amount` units of 10^-`scale`. The engine pays once per key, so every try
    /// of one settlement has the same.
    pub fn settle(&self, engine: &Url, account: Uuid, amount: u64, scale: u8, key: &str) -> EngineAnswer {
        // As text: a JSON number of this size would lose digits in most engines.
        let body = format!(r#"{{"amount":"{amount}","scale":{scale}}}"#);
        self.ask(
            engine,
            &Call {
                method: Method::POST,
                path: &["accounts", &account.to_string(), "settlements"],
                body: Some(("application/json", body.as_bytes())),
                key,
                also_success: None,
                is_message: false,
                limit: self.try_max,
            },
        )
    }

    /// `POST /accounts/:id/messages`: hands over what the peer's engine said. `limit` is what is left until the peer
    /// stops waiting.
    pub fn message(&self, engine: &Url, account: Uuid, message: &[u8], key: &str, limit: Duration) -> EngineAnswer {
        self.ask(
            engine,
            &Call {
                method: Method::POST,
                path: &["accounts", &account.to_string(), "messages"],
                body: Some(("application/octet-stream", message)),
                key,
                also_success: None,
                is_message: true,
                limit,
            },
        )
    }

    fn ask(&self, engine: &Url, call: &Call<'_>) -> EngineAnswer {
        let not_sent = |error: &str| EngineAnswer::NotSent {
            error: error.to_owned(),
        };
        let unknown = |reason: &str| EngineAnswer::Unknown {
            error: format!("the engine {reason}"),
        };
        if call.limit.is_zero() {
            return not_sent("no time was left to ask the engine");
        }
        let request = match request(engine, call) {
            Ok(request) => request,
            Err(error) => return not_sent(error),
        };
        let sent = match call.body {
            None => self.agent.run(self.within(call.limit, request)),
            Some((_, bytes)) => self.agent.run(self.within(call.limit, request.map(|()| bytes))),
        };
        let mut response = match sent {
            Ok(response) => response,
            Err(ureq::Error::Other(error)) if error.is::<NotSent>() => return not_sent(&error.to_string()),
            Err(error) => return unknown(lost(&error)),
        };
        let status = response.status();
        let bytes_max = if call.is_message {
            MESSAGE_BYTES_MAX
        } else {
            ANSWER_BYTES_MAX
        };
        // One more: ureq wants room left when the end comes.
        let body = match response.body_mut().with_config().limit(bytes_max + 1).read_to_vec() {
            Ok(body) => body,
            // It is the head that tells what was done; only a message is answered by the body.
            Err(ureq::Error::BodyExceedsLimit(_)) if !(call.is_message && status.is_success()) => Vec::new(),
            Err(ureq::Error::BodyExceedsLimit(_)) => return unknown("answered with more than a message may have"),
            Err(error) => return unknown(lost(&error)),
        };
        if status.is_success() || Some(status) == call.also_success {
            return EngineAnswer::Accepted(if call.is_message { body } else { Vec::new() });
        }
        let detail = detail(status, &body);
        let may_pass = matches!(status.as_u16(), 408 | 425 | 429);
        match status.is_client_error() && !may_pass {
            true => EngineAnswer::Refused {
                status: status.as_u16(),
                detail,
            },
            false => unknown(&format!("answered {}: {detail}", status.as_u16())),
        }
    }

    fn within<B: AsSendBody>(&self, limit: Duration, request: Request<B>) -> Request<B> {
        self.agent
            .configure_request(request)
            .timeout_global(Some(limit))
            .build()
    }
}

/// All of a request but its body.
fn request(engine: &Url, call: &Call<'_>) -> Result<Request<()>, &'static str> {
    let (url, authorization) = endpoint(engine, call.path)?;
    let mut request = Request::builder().method(&call.method).uri(url.as_str());
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request = request.header("idempotency-key", call.key);
    if let Some((media_type, _)) = call.body {
        request = request.header("content-type", media_type);
    }
    request
        .body(())
        .map_err(|_| "the request to the engine cannot be written")
}

/// The engine's URL with `path` appended and without its credentials, and these as a header that is never printed.
fn endpoint(engine: &Url, path: &[&str]) -> Result<(Url, Option<HeaderValue>), &'static str> {
    let mut url = engine.clone();
    if !matches!(url.scheme(), "http" | "https") {
        return Err("the engine's URL is neither http nor https");
    }
    url.path_segments_mut()
        .map_err(|()| "the engine's URL has no path")?
        .pop_if_empty()
        .extend(path);
    url.set_fragment(None);
    if url.username().is_empty() && url.password().is_none() {
        return Ok((url, None));
    }
    let user = percent_decode(engine.username());
    let password = percent_decode(engine.password().unwrap_or_default());
    let (Some(user), Some(password)) = (user, password) else {
        return Err("the credentials in the engine's URL are not UTF-8");
    };
    let credentials = base64::encode(format!("{user}:{password}").as_bytes());
    let mut header = HeaderValue::try_from(format!("Basic {credentials}")).map_err(|_| "base64 is visible ASCII")?;
    header.set_sensitive(true);
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return Err("the engine's URL has no host");
    }
    Ok((url, Some(header)))
}

/// What the engine said of its failure, cut to what fits a line, else what its status means.
fn detail(status: StatusCode, body: &[u8]) -> String {
    // A character has four bytes at most, and half of one is no character.
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * DETAIL_CHARS_MAX)]);
    let plain = text.replace(|letter: char| letter.is_control() || letter == '\u{fffd}', " ");
    let mut words = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(DETAIL_CHARS_MAX) {
        words.truncate(end);
    }
    match words.is_empty() {
        true => status.canonical_reason().unwrap_or("no reason given").to_owned(),
        false => words,
    }
}

/// Why there is no answer to a request that may have arrived.
fn lost(error: &ureq::Error) -> &'static str {
    match error {
        ureq::Error::Io(_) => "closed the connection before it had answered",
        error => reason_of(error),
    }
}

/// Marks the errors of what happens before a request is sent: a name is resolved, a connection made, TLS agreed on.
/// The kinds of errors do not tell: a connection can be reset before and after.
#[derive(Debug)]
struct BeforeSending<T>(T);

/// Nothing of the request has left.
#[derive(Debug, thiserror::Error)]
#[error("the engine {0}")]
struct NotSent(String);

impl NotSent {
    fn mark(error: ureq::Error) -> ureq::Error {
        let reason = match &error {
            ureq::Error::Timeout(_) => "cannot be connected to in time".to_owned(),
            ureq::Error::Io(io) => format!("{} ({io})", reason_of(&error)),
            error => reason_of(error).to_owned(),
        };
        ureq::Error::Other(Box::new(Self(reason)))
    }
}

impl Resolver for BeforeSending<DefaultResolver> {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.0.resolve(uri, config, timeout).map_err(NotSent::mark)
    }
}

impl Connector for BeforeSending<DefaultConnector> {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, ureq::Error> {
        self.0.connect(details, chained).map_err(NotSent::mark)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    const KEY: &str = "c9a2c3a0-5a0e-4f0e-8a63-4a4d6e3a3c11";
    const ACCOUNT: Uuid = Uuid::from_u128(0x5f0c_7a52_0000_4000_8000_2b6c_1d9e_8f10);
    /// Enough for loopback on a busy machine, short enough for those that shall be waited for.
    const SHORT: Duration = Duration::from_millis(300);

    #[derive(Clone, Debug)]
    enum Behaviour {
        /// These bytes, then wait for the next request.
        Answer(Vec<u8>),
        /// These bytes, then close.
        Close(Vec<u8>),
        /// These bytes, then nothing until the client leaves.
        Hang(Vec<u8>),
        /// These bytes, one after the other with a pause behind each.
        Drip(Vec<u8>),
    }
    use Behaviour::{Answer, Close, Drip, Hang};

    struct Server {
        address: SocketAddr,
        /// Every request, with the number of its connection.
        seen: Arc<Mutex<Vec<(usize, String)>>>,
    }

    impl Server {
        fn start(behaviour: Behaviour) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let server = Self {
                address: listener.local_addr().unwrap(),
                seen: Arc::default(),
            };
            let seen = server.seen.clone();
            std::thread::spawn(move || {
                for (number, stream) in listener.incoming().enumerate() {
                    let (mut stream, behaviour, seen) = (stream.unwrap(), behaviour.clone(), seen.clone());
                    std::thread::spawn(move || {
                        while let Some(request) = read_request(&mut stream) {
                            seen.lock().unwrap().push((number, request));
                            let (Answer(bytes) | Close(bytes) | Hang(bytes) | Drip(bytes)) = &behaviour;
                            let pause = matches!(behaviour, Drip(_)).then_some(SHORT / 10);
                            let step = pause.map_or(bytes.len().max(1), |_| 1);
                            for part in bytes.chunks(step) {
                                // A client that has left is what some of these want.
                                let _ = stream.write_all(part);
                                if let Some(pause) = pause {
                                    std::thread::sleep(pause);
                                }
                            }
                            match behaviour {
                                Answer(_) | Drip(_) => {}
                                Close(_) => {
                                    let _ = stream.shutdown(Shutdown::Both);
                                    return;
                                }
                                Hang(_) => drop(stream.read(&mut [0])),
                            }
                        }
                    });
                }
            });
            server
        }

        fn url(&self) -> Url {
            Url::parse(&format!("http://{}", self.address)).unwrap()
        }

        fn requests(&self) -> Vec<(usize, String)> {
            self.seen.lock().unwrap().clone()
        }
    }

    fn read_request(stream: &mut TcpStream) -> Option<String> {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            request.extend(byte);
        }
        let head = String::from_utf8(request).unwrap().to_ascii_lowercase();
        assert!(!head.contains("transfer-encoding"), "{head}");
        let length = head.split("content-length: ").nth(1).map_or(0, |rest| {
            let digits = rest.split("\r\n").next().unwrap();
            digits.parse().unwrap()
        });
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(head + &String::from_utf8_lossy(&body))
    }

    fn answer(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    /// The kind of an answer and its words, as one line of a table.
    fn shown(answer: EngineAnswer) -> String {
        match answer {
            EngineAnswer::Accepted(body) => format!("accepted {}", String::from_utf8_lossy(&body)),
            EngineAnswer::Refused { status, detail } => format!("refused {status} {detail}"),
            EngineAnswer::Unknown { error } => format!("unknown: {error}"),
            EngineAnswer::NotSent { error } => format!("not sent: {error}"),
        }
    }

    #[test]
    fn what_is_known_after_a_try() {
        let quantity = r#"{"amount":"10","scale":9}"#;
        let huge = "x".repeat(1 << 20);
        let chunked = "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let half_chunked = "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
        let cut = |status| format!("HTTP/1.1 {status}\r\ncontent-length: 99\r\n\r\n{{").into_bytes();
        let redirect = "HTTP/1.1 307 No\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".as_bytes();
        let words = format!("a\r\n\tb {} \u{1b}[31m", "é".repeat(300));
        let kept = format!("refused 400 a b {}", "é".repeat(DETAIL_CHARS_MAX - 4));
        for (behaviour, expected) in [
            (Answer(answer("201 Created", quantity)), "accepted "),
            (Answer(answer("200 OK", "")), "accepted "),
            (Answer(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()), "accepted "),
            (Answer(answer("202 Accepted", "garbage {")), "accepted "),
            (Answer(chunked.as_bytes().to_vec()), "accepted "),
            // The head has said it.
            (Answer(answer("201 Created", &huge)), "accepted "),
            (
                Answer(answer("400 Bad Request", "Quantity to settle is invalid")),
                "refused 400 Quantity to settle is invalid",
            ),
            (Answer(answer("400 Bad Request", &words)), &kept),
            (Answer(answer("401 No", "")), "refused 401 Unauthorized"),
            (Answer(answer("404 No", "no account")), "refused 404 no account"),
            (Answer(answer("409 No", "other input")), "refused 409 other input"),
            (Answer(answer("422 No", &huge)), "refused 422 Unprocessable Entity"),
            (Answer(answer("499 No", "")), "refused 499 no reason given"),
            (
                Answer(redirect.to_vec()),
                "unknown: the engine answered 307: Temporary Redirect",
            ),
            (
                Answer(answer("408 No", "")),
                "unknown: the engine answered 408: Request Timeout",
            ),
            (
                Answer(answer("425 No", "")),
                "unknown: the engine answered 425: Too Early",
            ),
            (
                Answer(answer("429 No", "slow down")),
                "unknown: the engine answered 429: slow down",
            ),
            (
                Answer(answer("500 No", "oops")),
                "unknown: the engine answered 500: oops",
            ),
            (
                Answer(answer("503 No", "")),
                "unknown: the engine answered 503: Service Unavailable",
            ),
            (
                Close(Vec::new()),
                "unknown: the engine closed the connection before it had answered",
            ),
            (
                Close(b"HTTP/1.1 201 Cre".to_vec()),
                "unknown: the engine closed the connection before it had answered",
            ),
            (
                Close(cut("201 Created")),
                "unknown: the engine closed the connection before it had answered",
            ),
            (
                Close(cut("400 No")),
                "unknown: the engine closed the connection before it had answered",
            ),
            (
                Close(half_chunked.as_bytes().to_vec()),
                "unknown: the engine closed the connection before it had answered",
            ),
            (Hang(Vec::new()), "unknown: the engine did not answer in time"),
            (Hang(cut("201 Created")), "unknown: the engine did not answer in time"),
            (
                Close(b"nonsense\r\n\r\n".to_vec()),
                "unknown: the engine did not answer in HTTP",
            ),
            (Close(b"\0\0\0".to_vec()), "unknown: the engine did not answer in HTTP"),
            // What comes before an answer is none.
            (
                Answer([b"HTTP/1.1 100 Continue\r\n\r\n", &*answer("400 No", "late")].concat()),
                "refused 400 late",
            ),
            (
                Hang(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
                "unknown: the engine did not answer in time",
            ),
            // The time is for all of an answer, and not for each of its parts.
            (
                Drip(answer("201 Created", "")),
                "unknown: the engine did not answer in time",
            ),
        ] {
            let server = Server::start(behaviour.clone());
            let limit = if matches!(behaviour, Hang(_) | Drip(_)) {
                SHORT
            } else {
                TRY_MAX
            };
            let found = EngineClient::new(limit).settle(&server.url(), ACCOUNT, 10, 9, KEY);
            assert_eq!(shown(found), expected, "{behaviour:.200?}");
            assert_eq!(server.requests().len(), 1, "one try is one request: {behaviour:.200?}");
        }
    }

    #[test]
    fn what_never_reached_the_engine() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Nobody listens on a port that has just been given back.
        drop(listener);
        let plain = Server::start(Close(b"this is not TLS, for sure\r\n".to_vec()));
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        for (url, expected) in [
            (
                format!("http://127.0.0.1:{port}"),
                "not sent: the engine cannot be connected to (Connection refused",
            ),
            (
                "http://engine.invalid/".into(),
                "not sent: the engine has a name that cannot be resolved",
            ),
            (format!("https://{}", plain.address), "not sent: the engine "),
            // Connected, but TLS is never agreed on.
            (
                format!("https://{}", silent.local_addr().unwrap()),
                "not sent: the engine cannot be connected to in time",
            ),
            (
                "ftp://127.0.0.1/".into(),
                "not sent: the engine's URL is neither http nor https",
            ),
            (
                "mailto:engine".into(),
                "not sent: the engine's URL is neither http nor https",
            ),
            (
                "http://%ff@127.0.0.1/".into(),
                "not sent: the credentials in the engine's URL are not UTF-8",
            ),
        ] {
            let limit = if url.contains(".invalid") { TRY_MAX } else { SHORT };
            let found = EngineClient::new(limit).settle(&Url::parse(&url).unwrap(), ACCOUNT, 10, 9, KEY);
            let found = shown(found);
            // Where there is no network, a name cannot be looked up at all.
            let without_network = url.contains(".invalid") && found.starts_with("not sent: the engine cannot be");
            assert!(found.starts_with(expected) || without_network, "{url}: {found}");
        }
        let server = Server::start(Answer(answer("201 Created", "")));
        let client = EngineClient::default();
        let late = client.message(&server.url(), ACCOUNT, b"", KEY, Duration::ZERO);
        assert_eq!(shown(late), "not sent: no time was left to ask the engine");
        let bad_key = client.settle(&server.url(), ACCOUNT, 10, 9, "a\nb");
        assert_eq!(shown(bad_key), "not sent: the request to the engine cannot be written");
        assert_eq!(server.requests(), []);
    }

    #[test]
    fn what_each_call_sends_and_takes_as_success() {
        let client = EngineClient::default();
        let id = ACCOUNT.to_string();
        type Ask = fn(&EngineClient, &Url) -> EngineAnswer;
        let create: Ask = |client, url| client.create_account(url, ACCOUNT, KEY);
        let delete: Ask = |client, url| client.delete_account(url, ACCOUNT, KEY);
        let settle: Ask = |client, url| client.settle(url, ACCOUNT, u64::MAX, 255, KEY);
        let message: Ask = |client, url| client.message(url, ACCOUNT, b"{}\n", KEY, TRY_MAX);
        for (ask, line, body, media_type, outcomes) in [
            (
                create,
                "post /e/accounts http/1.1".to_owned(),
                format!(r#"{{"id":"{id}"}}"#),
                Some("application/json"),
                ["accepted ", "refused 404 no", "accepted "],
            ),
            (
                delete,
                format!("delete /e/accounts/{id} http/1.1"),
                String::new(),
                None,
                ["accepted ", "accepted ", "refused 409 no"],
            ),
            (
                settle,
                format!("post /e/accounts/{id}/settlements http/1.1"),
                r#"{"amount":"18446744073709551615","scale":255}"#.to_owned(),
                Some("application/json"),
                ["accepted ", "refused 404 no", "refused 409 no"],
            ),
            (
                message,
                format!("post /e/accounts/{id}/messages http/1.1"),
                "{}\n".to_owned(),
                Some("application/octet-stream"),
                ["accepted no", "refused 404 no", "refused 409 no"],
            ),
        ] {
            for (status, outcome) in ["201 Yes", "404 No", "409 No"].iter().zip(outcomes) {
                let server = Server::start(Answer(answer(status, "no")));
                let url = server.url().join("/e/").unwrap();
                assert_eq!(shown(ask(&client, &url)), outcome, "{line} {status}");
                let (_, request) = &server.requests()[0];
                let (head, sent) = request.split_once("\r\n\r\n").unwrap();
                assert_eq!(sent, body, "{head}");
                let mut lines = head.split("\r\n");
                assert_eq!(lines.next(), Some(&*line));
                let has = |header: &str| head.split("\r\n").any(|line| line == header);
                assert!(has(&format!("idempotency-key: {KEY}")), "{head}");
                assert!(!head.contains("authorization"), "{head}");
                match media_type {
                    Some(media_type) => assert!(has(&format!("content-type: {media_type}")), "{head}"),
                    None => assert!(!head.contains("content-type"), "{head}"),
                }
            }
        }
    }

    #[test]
    fn answers_to_messages_are_bounded_and_any_bytes() {
        let ask = |behaviour| {
            let server = Server::start(behaviour);
            EngineClient::default().message(&server.url(), ACCOUNT, &[0, 255], KEY, TRY_MAX)
        };
        let bytes: Vec<u8> = (0..=255).collect();
        let mut good = b"HTTP/1.1 201 Yes\r\ncontent-length: 256\r\n\r\n".to_vec();
        good.extend(&bytes);
        assert_eq!(ask(Answer(good)), EngineAnswer::Accepted(bytes));
        let size = MESSAGE_BYTES_MAX as usize;
        let full = answer("200 OK", &"x".repeat(size));
        assert!(ask(Answer(full)) == EngineAnswer::Accepted(vec![b'x'; size]));
        let too_large = answer("200 OK", &"x".repeat(size + 1));
        let expected = "unknown: the engine answered with more than a message may have";
        assert_eq!(shown(ask(Answer(too_large))), expected);
    }

    #[test]
    fn where_a_request_goes_and_as_whom() {
        for (engine, url, authorization) in [
            ("http://e:1", "http://e:1/accounts/x", None),
            ("http://e:1/", "http://e:1/accounts/x", None),
            ("http://e:1/a/b", "http://e:1/a/b/accounts/x", None),
            ("http://e:1/a/b/", "http://e:1/a/b/accounts/x", None),
            ("https://e/a%2Fb?t=1#f", "https://e/a%2Fb/accounts/x?t=1", None),
            ("http://user:pw@e", "http://e/accounts/x", Some("user:pw")),
            ("http://user@e", "http://e/accounts/x", Some("user:")),
            ("http://:pw@e", "http://e/accounts/x", Some(":pw")),
            ("http://a%40b:p%3Aw%0a@e", "http://e/accounts/x", Some("a@b:p:w\n")),
        ] {
            let (found, header) = endpoint(&Url::parse(engine).unwrap(), &["accounts", "x"]).unwrap();
            assert_eq!(found.as_str(), url);
            assert_eq!(header.is_some(), authorization.is_some(), "{engine}");
            if let (Some(header), Some(authorization)) = (header, authorization) {
                assert_eq!(header, format!("Basic {}", base64::encode(authorization.as_bytes())));
                assert!(!format!("{header:?}").contains("Basic"), "it is never printed");
            }
        }
        let server = Server::start(Answer(answer("201 Created", "")));
        let mut url = server.url();
        url.set_username("user").unwrap();
        url.set_password(Some("pw")).unwrap();
        let client = EngineClient::default();
        assert_eq!(shown(client.settle(&url, ACCOUNT, 1, 0, KEY)), "accepted ");
        let expected = format!(
            "authorization: basic {}\r\n",
            base64::encode(b"user:pw").to_ascii_lowercase()
        );
        assert!(server.requests()[0].1.contains(&expected));
        // No words about a failure repeat them.
        url.set_port(Some(1)).unwrap();
        let failed = shown(client.settle(&url, ACCOUNT, 1, 0, KEY));
        assert!(failed.starts_with("not sent") && !failed.contains("pw"), "{failed}");
    }

    /// More than was asked for, behind an answer: it is not the answer to what is asked next.
    #[test]
    fn an_answer_too_many_answers_nothing() {
        let twice = [answer("400 No", "first"), answer("201 Created", "")].concat();
        let server = Server::start(Answer(twice));
        let client = EngineClient::default();
        for _ in 0..5 {
            assert_eq!(
                shown(client.settle(&server.url(), ACCOUNT, 1, 0, KEY)),
                "refused 400 first"
            );
        }
        let connections: Vec<usize> = server.requests().iter().map(|(number, _)| *number).collect();
        assert_eq!(connections, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn connections_are_kept() {
        let server = Server::start(Answer(answer("201 Created", "ok")));
        let client = EngineClient::default();
        for _ in 0..3 {
            assert_eq!(shown(client.settle(&server.url(), ACCOUNT, 1, 0, KEY)), "accepted ");
        }
        let connections: Vec<usize> = server.requests().iter().map(|(number, _)| *number).collect();
        assert_eq!(connections, [0, 0, 0]);
    }
}
