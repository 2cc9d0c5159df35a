//! The asking end of an HTTP/1.1 connection: our Prepares out, the peer's answers back
//! (RFC 9112 sections 6 and 9).
//!
//! Owns the request's head, built once per account, and where each answer ends. Does not know which
//! Prepare an answer belongs to: answers come in the order of the requests, and the caller keeps
//! count. An answer to nothing means that the connection is out of step and must be closed.

use super::{Progress, REPEATED_HEAD_BYTES_MAX};
use crate::wire::http::write::write_decimal;
use crate::wire::http::{
    BodyError, ChunkedDecoder, Framing, HEAD_BYTES_MAX, Malformed, Method, ResponseHead, parse_request, parse_response,
};
use crate::wire::packet::{PACKET_BYTES_MAX, patch_prepare};
use crate::wire::timestamp::Timestamp;

/// Interim answers (1xx) to one request. More than a few serve only to keep us waiting.
const INTERIM_MAX: u8 = 8;

/// The head of every request to one account's endpoint, up to the Content-Length's digits.
#[derive(Clone)]
pub struct RequestTemplate {
    head: Box<[u8]>,
}

/// Host, path or token cannot stand in a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("host, path or token cannot be sent in an HTTP request")]
pub struct Unsendable;

impl RequestTemplate {
    /// `host` is `host[:port]`; `path_and_query` begins with `/` and is percent-encoded; `token` goes
    /// out as `Bearer`, and is visible ASCII with single or repeated blanks only inside.
    pub fn new(host: &str, path_and_query: &str, token: Option<&str>) -> Result<Self, Unsendable> {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let mut head = format!("POST {path_and_query} HTTP/1.1\r\nhost: {host}\r\n");
        if let Some(value) = &authorization {
            head.push_str(&format!("authorization: {value}\r\n"));
        }
        head.push_str("content-type: application/octet-stream\r\naccept: application/octet-stream\r\ncontent-length: ");
        // Whether the parts are clean is asked of the strictest reader we know: our own parser must
        // find exactly them again, and nothing else.
        let whole = format!("{head}0\r\n\r\n");
        let (read, _) = parse_request(whole.as_bytes()).ok().flatten().ok_or(Unsendable)?;
        let clean = whole.is_ascii()
            && !host.is_empty()
            && read.method == Method::Post
            && read.target == path_and_query
            && path_and_query.starts_with('/')
            && read.header("host") == Some(host.as_bytes())
            && read.header("authorization") == authorization.as_deref().map(str::as_bytes)
            && token.is_none_or(|token| !token.is_empty() && !token.contains('\t'))
            && read.fields().iter().count() == 4 + usize::from(token.is_some());
        if !clean || whole.len() > HEAD_BYTES_MAX / 2 {
            return Err(Unsendable);
        }
        Ok(Self {
            head: head.into_bytes().into(),
        })
    }

    /// Appends a request with `packet`, which `Prepare::parse` has accepted, whose amount and expiry
    /// are replaced by those of `patch`.
    pub fn write_request(&self, packet: &[u8], patch: (u64, Timestamp), out: &mut Vec<u8>) {
        const LENGTH_AND_END: usize = 24;
        out.reserve(self.head.len() + LENGTH_AND_END + packet.len());
        out.extend_from_slice(&self.head);
        write_decimal(out, packet.len() as u64);
        out.extend_from_slice(b"\r\n\r\n");
        let start = out.len();
        out.extend_from_slice(packet);
        let (amount, expires_at) = patch;
        patch_prepare(&mut out[start..], amount, expires_at);
    }
}

/// One connection that we have opened to a peer's endpoint.
///
/// Call [`next`](Self::next) with the bytes not yet used until it gives `(0, None)`, also after an
/// answer; when the peer closes, call [`finish`](Self::finish) with what is left. After an answer
/// with `keep_alive == false`, or an error, close.
#[derive(Default)]
pub struct HttpClient {
    /// The head of the last answer, if it is one that may repeat: kept alive, with a Content-Length.
    /// Else empty.
    previous: Vec<u8>,
    previous_body_bytes: u32,
    previous_status: u16,
    /// Interim answers since the last final one.
    interim: u8,
    progress: Progress,
    reading: Reading,
}

#[derive(Default)]
enum Reading {
    #[default]
    Head,
    Chunked(Box<ChunkedAnswer>),
    /// The body is all that comes.
    UntilClose {
        status: u16,
    },
}

struct ChunkedAnswer {
    status: u16,
    keep_alive: bool,
    decoder: ChunkedDecoder,
    body: Vec<u8>,
    /// It has been reported, and is to be dropped.
    complete: bool,
}

/// A complete, final answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// 200 to 999. Only 200 may hold a packet; for the rest see [`super::reject_code_for_status`].
    pub status: u16,
    /// At most [`PACKET_BYTES_MAX`] bytes.
    pub body: &'a [u8],
    /// Another request may be sent on this connection.
    pub keep_alive: bool,
}

/// Why a connection is given up. Whether the peer took the Prepares that wait on it is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error(transparent)]
    Head(#[from] Malformed),
    #[error("answer too large")]
    TooLarge,
    #[error("malformed chunked answer")]
    BadBody,
    #[error("protocol switched unasked")]
    Switched,
    #[error("too many interim answers")]
    TooManyInterim,
    #[error("closed within an answer")]
    ClosedEarly,
}

impl From<BodyError> for Broken {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::TooLarge,
            BodyError::Malformed => Self::BadBody,
        }
    }
}

impl HttpClient {
    /// A connection on which nothing has arrived.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next complete answer in `bytes`, with how many of them are used up. `(0, None)`: not yet;
    /// a larger number without an answer is progress.
    pub fn next<'a>(&'a mut self, bytes: &'a [u8]) -> Result<(usize, Option<Answer<'a>>), Broken> {
        match &self.reading {
            Reading::Head => {}
            Reading::Chunked(answer) if answer.complete => self.reading = Reading::Head,
            Reading::Chunked(_) => return self.next_chunks(bytes, 0),
            Reading::UntilClose { .. } if bytes.len() > PACKET_BYTES_MAX => {
                return Err(Broken::TooLarge);
            }
            Reading::UntilClose { .. } => return Ok((0, None)),
        }
        let mut start = 0;
        loop {
            let rest = &bytes[start..];
            if !self.progress.is_worth_a_look(rest) {
                return Ok((start, None));
            }
            let (head_bytes, body_bytes, status, keep_alive);
            if !self.previous.is_empty() && rest.starts_with(&self.previous) {
                head_bytes = self.previous.len();
                body_bytes = self.previous_body_bytes as usize;
                (status, keep_alive) = (self.previous_status, true);
            } else {
                let Some((head, length)) = parse_response(rest)? else {
                    self.progress.head_unfinished(rest.len());
                    return Ok((start, None));
                };
                head_bytes = length;
                (status, keep_alive) = (head.status, head.keep_alive());
                if status < 200 {
                    self.skip_interim(status)?;
                    start += head_bytes;
                    continue;
                }
                body_bytes = match head.framing() {
                    Framing::None => 0,
                    Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
                    Framing::Chunked => {
                        self.read_on(Reading::Chunked(Box::new(ChunkedAnswer {
                            status,
                            keep_alive,
                            decoder: ChunkedDecoder::new(),
                            body: Vec::new(),
                            complete: false,
                        })));
                        return self.next_chunks(bytes, start + head_bytes);
                    }
                    Framing::UntilClose => {
                        self.read_on(Reading::UntilClose { status });
                        return Ok((start + head_bytes, None));
                    }
                };
                if body_bytes > PACKET_BYTES_MAX {
                    return Err(Broken::TooLarge);
                }
                self.keep_head(&head, &rest[..head_bytes], body_bytes);
            }
            let Some(body) = rest.get(head_bytes..head_bytes + body_bytes) else {
                self.progress.wait_for(head_bytes + body_bytes);
                return Ok((start, None));
            };
            self.progress = Progress::default();
            self.interim = 0;
            let used = start + head_bytes + body_bytes;
            return Ok((
                used,
                Some(Answer {
                    status,
                    body,
                    keep_alive,
                }),
            ));
        }
    }

    /// The peer has closed; `bytes` are those not yet used. Gives the answer whose end the closing
    /// was, and `None` if no answer had begun.
    pub fn finish<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Answer<'a>>, Broken> {
        match std::mem::take(&mut self.reading) {
            Reading::UntilClose { .. } if bytes.len() > PACKET_BYTES_MAX => Err(Broken::TooLarge),
            Reading::UntilClose { status } => Ok(Some(Answer {
                status,
                body: bytes,
                keep_alive: false,
            })),
            Reading::Chunked(answer) if !answer.complete => Err(Broken::ClosedEarly),
            _ if bytes.is_empty() => Ok(None),
            _ => Err(Broken::ClosedEarly),
        }
    }

    /// With fewer bytes than this, counted from the first not yet used, there is nothing new to be
    /// had from [`next`](Self::next). At least 1.
    pub fn needed(&self) -> usize {
        self.progress.needed.max(1)
    }

    /// The head is done with, and the body has no length known beforehand.
    fn read_on(&mut self, reading: Reading) {
        self.progress = Progress::default();
        self.previous.clear();
        self.reading = reading;
    }

    fn skip_interim(&mut self, status: u16) -> Result<(), Broken> {
        if status == 101 {
            return Err(Broken::Switched);
        }
        if self.interim == INTERIM_MAX {
            return Err(Broken::TooManyInterim);
        }
        self.interim += 1;
        self.progress = Progress::default();
        Ok(())
    }

    fn keep_head(&mut self, head: &ResponseHead<'_>, bytes: &[u8], body_bytes: usize) {
        self.previous.clear();
        let may_repeat =
            matches!(head.framing(), Framing::Length(_)) && head.keep_alive() && bytes.len() <= REPEATED_HEAD_BYTES_MAX;
        if let (true, Ok(body_bytes)) = (may_repeat, u32::try_from(body_bytes)) {
            self.previous.extend_from_slice(bytes);
            self.previous_body_bytes = body_bytes;
            self.previous_status = head.status;
        }
    }

    /// Goes on with the chunks that begin at `start`.
    fn next_chunks<'a>(&'a mut self, bytes: &[u8], start: usize) -> Result<(usize, Option<Answer<'a>>), Broken> {
        let Reading::Chunked(answer) = &mut self.reading else {
            return Ok((start, None));
        };
        let (used, complete) = answer
            .decoder
            .decode(&bytes[start..], &mut answer.body, PACKET_BYTES_MAX)?;
        if !complete {
            return Ok((start + used, None));
        }
        answer.complete = true;
        self.interim = 0;
        let (status, keep_alive) = (answer.status, answer.keep_alive);
        Ok((
            start + used,
            Some(Answer {
                status,
                body: &answer.body,
                keep_alive,
            }),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connections, cuts, read_in_pieces};
    use super::*;
    use crate::wire::address::Address;
    use crate::wire::http::Framing;
    use crate::wire::packet::{Prepare, PrepareBuilder};
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq)]
    enum Seen {
        Answer {
            status: u16,
            body: Vec<u8>,
            keep_alive: bool,
        },
        Broken(Broken),
        /// The peer closed between two answers.
        Closed,
    }

    fn answer(status: u16, body: &[u8]) -> Seen {
        Seen::Answer {
            status,
            body: body.to_vec(),
            keep_alive: true,
        }
    }

    fn last_answer(status: u16, body: &[u8]) -> Seen {
        Seen::Answer {
            status,
            body: body.to_vec(),
            keep_alive: false,
        }
    }

    impl From<Answer<'_>> for Seen {
        fn from(found: Answer<'_>) -> Self {
            Self::Answer {
                status: found.status,
                body: found.body.into(),
                keep_alive: found.keep_alive,
            }
        }
    }

    /// A connection with its caller: keeps unused bytes, goes on after every answer.
    #[derive(Default)]
    struct Caller {
        client: HttpClient,
        kept: Vec<u8>,
        seen: Vec<Seen>,
    }

    impl Caller {
        fn read(&mut self, bytes: &[u8]) {
            if matches!(self.seen.last(), Some(Seen::Broken(_))) {
                return;
            }
            self.kept.extend_from_slice(bytes);
            let mut at = 0;
            loop {
                match self.client.next(&self.kept[at..]) {
                    Ok((0, None)) => break,
                    Ok((used, found)) => {
                        self.seen.extend(found.map(Seen::from));
                        at += used;
                    }
                    Err(broken) => {
                        self.seen.push(Seen::Broken(broken));
                        return;
                    }
                }
            }
            self.kept.drain(..at);
            let until_close = matches!(self.client.reading, Reading::UntilClose { .. });
            assert!(
                until_close || self.kept.len() < self.client.needed(),
                "a caller that waits for `needed` never hangs"
            );
        }

        fn close(mut self) -> Vec<Seen> {
            if !matches!(self.seen.last(), Some(Seen::Broken(_))) {
                self.seen.push(match self.client.finish(&self.kept) {
                    Ok(found) => found.map_or(Seen::Closed, Seen::from),
                    Err(broken) => Seen::Broken(broken),
                });
            }
            self.seen
        }

        fn of(bytes: &[u8]) -> Vec<Seen> {
            let mut caller = Self::default();
            caller.read(bytes);
            caller.close()
        }
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<HttpClient>() <= 80, "{}", size_of::<HttpClient>());
    }

    /// What the peer sends before it closes, and what is reported.
    #[test]
    fn table() {
        let broken = |broken| vec![Seen::Broken(broken)];
        let table = [
            ("", vec![Seen::Closed]),
            (&format!("{OK}first"), vec![answer(200, b"first"), Seen::Closed]),
            (
                &format!("{OK}first{OK}other{OK}\r\n\r\n\0"),
                vec![
                    answer(200, b"first"),
                    answer(200, b"other"),
                    answer(200, b"\r\n\r\n\0"),
                    Seen::Closed,
                ],
            ),
            (
                &format!(
                    "{OK}first{}x{OK}again",
                    OK.replace("200 OK", "503").replace(": 5", ": 1")
                ),
                vec![
                    answer(200, b"first"),
                    answer(503, b"x"),
                    answer(200, b"again"),
                    Seen::Closed,
                ],
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", vec![answer(204, b""), Seen::Closed]),
            (
                &format!("{}first", OK.replace("Server: x", "Connection: close")),
                vec![last_answer(200, b"first"), Seen::Closed],
            ),
            (
                &format!("{}first", OK.replace("/1.1", "/1.0")),
                vec![last_answer(200, b"first"), Seen::Closed],
            ),
            (
                &format!("{0}first{0}again", OK.replace("Server: x", "Connection: close")),
                vec![last_answer(200, b"first"), last_answer(200, b"again"), Seen::Closed],
            ),
            // Interim answers are skipped, some of them.
            (
                &format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n{OK}first"),
                vec![answer(200, b"first"), Seen::Closed],
            ),
            (
                &format!("{0}{OK}first{0}{OK}again", "HTTP/1.1 102\r\n\r\n".repeat(8)),
                vec![answer(200, b"first"), answer(200, b"again"), Seen::Closed],
            ),
            (&"HTTP/1.1 102\r\n\r\n".repeat(9), broken(Broken::TooManyInterim)),
            (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
                broken(Broken::Switched),
            ),
            // Chunked, alone and in a row with others.
            (
                &format!("{CHUNKED}5\r\nabcde\r\n1\r\nf\r\n0\r\n\r\n{OK}first{CHUNKED}0\r\n\r\n"),
                vec![
                    answer(200, b"abcdef"),
                    answer(200, b"first"),
                    answer(200, b""),
                    Seen::Closed,
                ],
            ),
            (&format!("{CHUNKED}10001\r\n"), broken(Broken::TooLarge)),
            (&format!("{CHUNKED}x\r\n"), broken(Broken::BadBody)),
            // The end of the connection as the end of the body, and as an accident.
            ("HTTP/1.1 200 OK\r\n\r\nall of it", vec![last_answer(200, b"all of it")]),
            ("HTTP/1.0 502 Bad Gateway\r\n\r\n", vec![last_answer(502, b"")]),
            (&format!("{OK}firs"), broken(Broken::ClosedEarly)),
            (
                &format!("{OK}first{OK}"),
                vec![answer(200, b"first"), Seen::Broken(Broken::ClosedEarly)],
            ),
            ("HTTP/1.1 200", broken(Broken::ClosedEarly)),
            (&format!("{CHUNKED}5\r\nabcde\r\n0\r\n"), broken(Broken::ClosedEarly)),
            // Too large, told by the head.
            (&OK.replace(": 5", ": 65537"), broken(Broken::TooLarge)),
            (&OK.replace(": 5", ": 18446744073709551615"), broken(Broken::TooLarge)),
            (
                &OK.replace(": 5", ": 5\r\nTransfer-Encoding: chunked"),
                broken(Broken::Head(Malformed::BothLengths)),
            ),
            ("SSH-2.0-x\r\n", broken(Broken::Head(Malformed::BadStatusLine))),
        ];
        for (input, expected) in table {
            assert_eq!(Caller::of(input.as_bytes()), expected, "{input:?}");
        }
    }

    #[test]
    fn bodies_are_bounded_also_without_a_length() {
        let fits = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(PACKET_BYTES_MAX));
        assert_eq!(Caller::of(fits.as_bytes()), [last_answer(200, &fits.as_bytes()[19..])]);
        assert_eq!(
            Caller::of(format!("{fits}x").as_bytes()),
            [Seen::Broken(Broken::TooLarge)]
        );
    }

    #[test]
    fn the_same_head_is_not_parsed_again() {
        let mut client = HttpClient::new();
        let bytes = format!("{OK}first");
        client.next(bytes.as_bytes()).unwrap();
        // Were it parsed, the status would be the one written in it.
        client.previous_status = 299;
        assert_eq!(client.next(bytes.as_bytes()).unwrap().1.unwrap().status, 299);
        let other = bytes.replace("x", "y");
        assert_eq!(client.next(other.as_bytes()).unwrap().1.unwrap().status, 200);
    }

    #[test]
    fn requests_carry_the_patched_packet() {
        let mut packet = Vec::new();
        let prepare = PrepareBuilder {
            amount: 10,
            expires_at: Timestamp::from_millis(1_767_607_871_000),
            execution_condition: &[7; 32],
            destination: Address::parse(b"test.hub.bob").unwrap(),
            data: b"data",
        };
        prepare.encode(&mut packet);
        let template = RequestTemplate::new("peer.example:80", "/ilp?x=y", Some("a token:b")).unwrap();
        let mut out = b"before".to_vec();
        let sooner = Timestamp::from_millis(1_767_607_870_000);
        template.write_request(&packet, (9, sooner), &mut out);

        let (head, head_bytes) = parse_request(&out[6..]).unwrap().unwrap();
        assert_eq!(
            (head.method, head.target, head.keep_alive()),
            (Method::Post, "/ilp?x=y", true)
        );
        assert_eq!(head.host(), Some("peer.example:80"));
        assert_eq!(head.header("authorization"), Some(&b"Bearer a token:b"[..]));
        assert_eq!(head.header("content-type"), Some(&b"application/octet-stream"[..]));
        assert_eq!(head.header("accept"), Some(&b"application/octet-stream"[..]));
        assert_eq!(head.framing(), Framing::Length(packet.len() as u64));
        let sent = Prepare::parse(&out[6 + head_bytes..]).unwrap();
        assert_eq!(
            (sent.amount(), sent.expires_at(), sent.data()),
            (9, sooner, &b"data"[..])
        );
        assert_eq!(sent.bytes().len(), packet.len());
    }

    #[test]
    fn templates_take_only_what_can_be_sent() {
        let table = [
            ("h", "/", None, true),
            ("[::1]:80", "/a/b?c=%20", Some("x"), true),
            ("", "/", None, false),
            ("user@h", "/", None, false),
            ("h/", "/", None, false),
            ("h\r\nx: y", "/", None, false),
            ("h", "", None, false),
            ("h", "ilp", None, false),
            ("h", "http://other/", None, false),
            ("h", "/a b", None, false),
            ("h", "/a#b", None, false),
            ("h", "/\u{e9}", None, false),
            ("h", "/ HTTP/1.1\r\nx: y\r\nz:", None, false),
            ("h", "/", Some(""), false),
            ("h", "/", Some("x "), false),
            ("h", "/", Some("x\ty"), false),
            ("h", "/", Some("\u{e9}"), false),
            ("h", "/", Some("x\r\ny: z"), false),
        ];
        for (host, path, token, sendable) in table {
            assert_eq!(
                RequestTemplate::new(host, path, token).is_ok(),
                sendable,
                "{host:?} {path:?} {token:?}"
            );
        }
        let long = "x".repeat(HEAD_BYTES_MAX);
        assert!(RequestTemplate::new("h", "/", Some(&long)).is_err());
    }

    /// Answers of every kind, some of them broken, and how often each should come.
    fn pieces() -> Vec<(u32, String)> {
        vec![
            (8, format!("{OK}12345")),
            (4, format!("{OK}\r\n\r\n\n")),
            (4, OK.replace(": 5", ": 0")),
            (4, format!("{CHUNKED}3\r\nabc\r\n0\r\n\r\n")),
            (4, "HTTP/1.1 100 Continue\r\n\r\n".into()),
            (4, "HTTP/1.1 204\r\n\r\n".into()),
            (1, "HTTP/1.1 200 OK\r\n\r\nrest".into()),
            (1, OK.replace(": 5", ": 70000")),
            (1, format!("{CHUNKED}3\r\nabcd\r\n")),
            (1, "x\n".into()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn splits_do_not_matter(bytes in connections(pieces()), cuts in cuts()) {
            let mut split = Caller::default();
            read_in_pieces(&bytes, &cuts, |piece| split.read(piece));
            prop_assert_eq!(Caller::of(&bytes), split.close());
        }

        #[test]
        fn any_bytes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5)) {
            let mut caller = Caller::default();
            for piece in pieces {
                caller.read(&piece);
            }
            caller.close();
        }

        /// What our server writes is what our client reads.
        #[test]
        fn our_own_answers(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..99), 0..5)) {
            let date = Timestamp::default().to_http_date();
            let mut bytes = Vec::new();
            for body in &bodies {
                crate::wire::http::write::write_ok_packet(&mut bytes, &date, body, true);
            }
            let expected: Vec<_> = bodies.iter().map(|body| answer(200, body)).chain([Seen::Closed]).collect();
            prop_assert_eq!(Caller::of(&bytes), expected);
        }
    }
}
