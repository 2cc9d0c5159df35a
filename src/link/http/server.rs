//! The serving end of an HTTP/1.1 connection: requests in their order (RFC 9112 sections 6 and 9).
//!
//! Owns where one request ends and the next begins, `100 Continue`, and the comparison of each head
//! with the one before: a peer sends the same head with every packet, and who it is, and which
//! account it may use, was concluded from it already.

use super::{Progress, REPEATED_HEAD_BYTES_MAX};
use crate::wire::http::write::write_continue;
use crate::wire::http::{BodyError, ChunkedDecoder, Framing, Malformed, RequestHead, parse_request};
use crate::wire::packet::PACKET_BYTES_MAX;

/// A body longer than any packet is collected here as it arrives, and handed over without a copy: a shard that moved
/// megabytes at once would keep its packets waiting. Shorter ones stay where they were received until they are whole.
const COLLECTED_BYTES_MIN: usize = PACKET_BYTES_MAX + 1;

/// One connection that a client has opened to us.
///
/// Call [`next`](Self::next) with the bytes not yet used until it gives `(0, None)`; after a request
/// it must be called again even without further bytes, which lets go of that request's body.
/// Answers go out in the order of the requests. After a request whose head says
/// `keep_alive() == false`, or an `Err`, send the answer and close.
#[derive(Default)]
pub struct HttpServer {
    /// The head of the last request, if it is one that may repeat: kept alive, with a Content-Length
    /// and no expectation. Else empty.
    previous: Vec<u8>,
    previous_body_bytes: u32,
    /// The caller wants `previous` reported as [`Incoming::Repeat`].
    remembered: bool,
    /// The last request of this connection has been reported.
    closing: bool,
    progress: Progress,
    collected: Option<Box<CollectedRequest>>,
}

/// A request whose body is collected apart from the received bytes.
struct CollectedRequest {
    head: Box<[u8]>,
    framing: Collecting,
    body: Vec<u8>,
    body_max: usize,
    /// It has been reported, and is to be dropped.
    complete: bool,
}

enum Collecting {
    Chunks(ChunkedDecoder),
    /// Ends with so many bytes.
    Length(usize),
}

/// A complete request.
pub enum Incoming<'a> {
    Request {
        head: RequestHead<'a>,
        body: &'a [u8],
    },
    /// A request whose head is byte for byte that of the request before, for which
    /// [`HttpServer::remember`] was called. Another request may follow it.
    Repeat {
        body: &'a [u8],
    },
}

/// Why a connection is given up. The answer has this status, and `Connection: close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Head(#[from] Malformed),
    #[error("body too large")]
    BodyTooLarge,
    #[error("malformed chunked body")]
    BadBody,
    #[error("unknown expectation")]
    UnknownExpectation,
}

impl Refused {
    /// The status of the answer.
    pub fn status(self) -> u16 {
        match self {
            Self::Head(malformed) => malformed.status(),
            Self::BodyTooLarge => 413,
            Self::BadBody => 400,
            Self::UnknownExpectation => 417,
        }
    }
}

impl From<BodyError> for Refused {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::BodyTooLarge,
            BodyError::Malformed => Self::BadBody,
        }
    }
}

impl HttpServer {
    /// A connection on which nothing has arrived.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next complete request in `bytes`, with how many of them are used up. `(0, None)`: not yet;
    /// a larger number without a request is progress within a chunked body.
    ///
    /// `body_max` tells from the head how long the body may be, in bytes; a longer one is refused
    /// before it arrives. `out` gets `100 Continue` when the client waits for it.
    pub fn next<'a>(
        &'a mut self,
        bytes: &'a [u8],
        body_max: impl Fn(&RequestHead<'_>) -> usize,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Incoming<'a>>), Refused> {
        if self.collected.as_ref().is_some_and(|request| request.complete) {
            self.collected = None;
        }
        if self.closing {
            // What a client sends behind its last request is nobody's.
            return Ok((bytes.len(), None));
        }
        if self.collected.is_some() {
            return self.collect(bytes, 0);
        }
        if !self.progress.is_worth_a_look(bytes) {
            return Ok((0, None));
        }
        if self.remembered && bytes.starts_with(&self.previous) {
            let start = self.previous.len();
            let end = start + self.previous_body_bytes as usize;
            let Some(body) = bytes.get(start..end) else {
                self.progress.wait_for(end);
                return Ok((0, None));
            };
            self.progress = Progress::default();
            return Ok((end, Some(Incoming::Repeat { body })));
        }
        let Some((head, head_bytes)) = parse_request(bytes)? else {
            self.progress.head_unfinished(bytes.len());
            return Ok((0, None));
        };
        if head.expects_unknown() {
            return Err(Refused::UnknownExpectation);
        }
        let body_max = body_max(&head);
        let body_bytes = match head.framing() {
            Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            Framing::Chunked => {
                continue_if_awaited(&head, &bytes[head_bytes..], out);
                let framing = Collecting::Chunks(ChunkedDecoder::new());
                return self.start_collecting(bytes, head_bytes, framing, body_max);
            }
            // A request does not end with the connection.
            Framing::None | Framing::UntilClose => 0,
        };
        if body_bytes > body_max {
            return Err(Refused::BodyTooLarge);
        }
        let end = head_bytes.saturating_add(body_bytes);
        let Some(body) = bytes.get(head_bytes..end) else {
            continue_if_awaited(&head, &bytes[head_bytes..], out);
            if body_bytes >= COLLECTED_BYTES_MIN {
                return self.start_collecting(bytes, head_bytes, Collecting::Length(body_bytes), body_bytes);
            }
            self.progress.wait_for(end);
            return Ok((0, None));
        };
        self.keep_head(&head, &bytes[..head_bytes], body_bytes);
        self.progress = Progress::default();
        self.closing = !head.keep_alive();
        Ok((end, Some(Incoming::Request { head, body })))
    }

    /// Asks that requests with the head of the last one be reported as [`Incoming::Repeat`], until
    /// another head comes. Without effect if that head is none that may repeat.
    pub fn remember(&mut self) {
        self.remembered = !self.previous.is_empty();
    }

    /// Takes [`remember`](Self::remember) back: what was concluded from the head no longer holds.
    pub fn forget(&mut self) {
        self.remembered = false;
        self.previous = Vec::new();
    }

    /// With fewer bytes than this, counted from the first not yet used, there is nothing new to be
    /// had from [`next`](Self::next). At least 1.
    pub fn needed(&self) -> usize {
        self.progress.needed.max(1)
    }

    fn keep_head(&mut self, head: &RequestHead<'_>, bytes: &[u8], body_bytes: usize) {
        self.remembered = false;
        self.previous.clear();
        let may_repeat = matches!(head.framing(), Framing::Length(_))
            && head.keep_alive()
            && !head.expects_continue()
            && bytes.len() <= REPEATED_HEAD_BYTES_MAX;
        if let (true, Ok(body_bytes)) = (may_repeat, u32::try_from(body_bytes)) {
            self.previous.reserve_exact(bytes.len());
            self.previous.extend_from_slice(bytes);
            self.previous_body_bytes = body_bytes;
        }
    }

    fn start_collecting<'a>(
        &'a mut self,
        bytes: &[u8],
        head_bytes: usize,
        framing: Collecting,
        body_max: usize,
    ) -> Result<(usize, Option<Incoming<'a>>), Refused> {
        self.progress = Progress::default();
        self.previous.clear();
        self.remembered = false;
        self.collected = Some(Box::new(CollectedRequest {
            head: bytes[..head_bytes].into(),
            framing,
            body: Vec::new(),
            body_max,
            complete: false,
        }));
        self.collect(bytes, head_bytes)
    }

    /// Goes on with the body, of which `bytes` has more from `start` on.
    fn collect<'a>(&'a mut self, bytes: &[u8], start: usize) -> Result<(usize, Option<Incoming<'a>>), Refused> {
        let Some(request) = &mut self.collected else {
            return Ok((start, None));
        };
        let more = &bytes[start..];
        request.make_room(more.len());
        let (used, complete) = match &mut request.framing {
            Collecting::Chunks(decoder) => decoder.decode(more, &mut request.body, request.body_max)?,
            Collecting::Length(length) => {
                let used = more.len().min(*length - request.body.len());
                request.body.extend_from_slice(&more[..used]);
                (used, request.body.len() == *length)
            }
        };
        if !complete {
            return Ok((start + used, None));
        }
        request.complete = true;
        let Some((head, _)) = parse_request(&request.head)? else {
            unreachable!("these bytes were a whole head when the body began");
        };
        self.closing = !head.keep_alive();
        let body = &request.body;
        Ok((start + used, Some(Incoming::Request { head, body })))
    }

    /// The body of the request just reported, if it was collected, so that it need not be copied.
    pub fn take_body(&mut self) -> Option<Vec<u8>> {
        let request = self.collected.as_mut().filter(|request| request.complete)?;
        Some(std::mem::take(&mut request.body))
    }

    /// A body is arriving, and not all of it is there.
    pub fn is_collecting(&self) -> bool {
        self.collected.as_ref().is_some_and(|request| !request.complete)
    }
}

impl CollectedRequest {
    /// Growing in doubles would copy megabytes at once, so a body that has become longer than a packet gets all the room
    /// it may need. That is address space: memory comes as it is written to.
    fn make_room(&mut self, more_bytes: usize) {
        let bytes = self.body.len() + more_bytes;
        if bytes >= COLLECTED_BYTES_MIN && bytes > self.body.capacity() {
            self.body.reserve_exact(self.body_max.saturating_sub(self.body.len()));
        }
    }
}

/// Sends `100 Continue` to a client that waits for it, having sent nothing of the body. This comes
/// once per request: the next look at it needs at least one byte more.
fn continue_if_awaited(head: &RequestHead<'_>, body_so_far: &[u8], out: &mut Vec<u8>) {
    if head.expects_continue() && body_so_far.is_empty() {
        write_continue(out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connections, cuts, read_in_pieces};
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str =
        "POST /accounts/alice/ilp HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\nContent-Length: 5\r\n\r\n";

    /// What came out of a connection, in order.
    #[derive(Debug, Clone, PartialEq)]
    enum Seen {
        Request(String, Vec<u8>),
        Repeat(Vec<u8>),
        Refused(Refused),
    }

    fn request(target: &str, body: &[u8]) -> Seen {
        Seen::Request(target.into(), body.to_vec())
    }

    /// A connection with its caller: keeps unused bytes, remembers every head.
    #[derive(Default)]
    struct Caller {
        server: HttpServer,
        kept: Vec<u8>,
        seen: Vec<Seen>,
        out: Vec<u8>,
    }

    impl Caller {
        fn read(&mut self, bytes: &[u8]) {
            if let Some(Seen::Refused(_)) = self.seen.last() {
                return;
            }
            self.kept.extend_from_slice(bytes);
            let mut at = 0;
            loop {
                let body_max = |head: &RequestHead<'_>| if head.path() == "/rates" { 100 } else { 20 };
                let (used, found) = match self.server.next(&self.kept[at..], body_max, &mut self.out) {
                    Ok((0, None)) => break,
                    Ok((used, None)) => (used, None),
                    Ok((used, Some(Incoming::Request { head, body }))) => (used, Some(request(head.target, body))),
                    Ok((used, Some(Incoming::Repeat { body }))) => (used, Some(Seen::Repeat(body.to_vec()))),
                    Err(refused) => {
                        self.seen.push(Seen::Refused(refused));
                        return;
                    }
                };
                if found.is_some() {
                    self.server.remember();
                }
                self.seen.extend(found);
                at += used;
            }
            self.kept.drain(..at);
            assert!(
                self.kept.len() < self.server.needed(),
                "a caller that waits for `needed` never hangs"
            );
        }

        fn of(input: &str) -> Self {
            let mut caller = Self::default();
            caller.read(input.as_bytes());
            caller
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<HttpServer>() <= 64, "{}", size_of::<HttpServer>());
    }

    #[test]
    fn the_same_head_is_not_parsed_again() {
        let other = HEAD.replace("alice", "bob");
        let caller = Caller::of(&format!(
            "{HEAD}first{HEAD}\0\r\n\r\n{HEAD}third{other}other{HEAD}again{HEAD}again"
        ));
        let alice = "/accounts/alice/ilp";
        assert_eq!(
            caller.seen,
            [
                request(alice, b"first"),
                Seen::Repeat(b"\0\r\n\r\n".into()),
                Seen::Repeat(b"third".into()),
                request("/accounts/bob/ilp", b"other"),
                request(alice, b"again"),
                Seen::Repeat(b"again".into()),
            ]
        );
        assert!(caller.kept.is_empty() && caller.out.is_empty());
    }

    #[test]
    fn repeats_only_what_was_asked_for() {
        let (mut server, mut out) = (HttpServer::new(), Vec::new());
        let bytes = format!("{HEAD}first");
        let mut is_repeat = |server: &mut HttpServer, bytes: &str| {
            let (used, found) = server.next(bytes.as_bytes(), |_| 20, &mut out).unwrap();
            assert_eq!(used, bytes.len());
            matches!(found, Some(Incoming::Repeat { .. }))
        };
        assert!(!is_repeat(&mut server, &bytes));
        assert!(!is_repeat(&mut server, &bytes));
        server.remember();
        assert!(is_repeat(&mut server, &bytes));
        assert!(is_repeat(&mut server, &bytes));
        server.forget();
        assert!(!is_repeat(&mut server, &bytes));
        // Another head is not covered by what was said of the one before.
        server.remember();
        let other = bytes.replace("alice", "bob");
        assert!(!is_repeat(&mut server, &other));
        assert!(!is_repeat(&mut server, &other));
        // Heads that say more than "the same again", or are long, never repeat.
        for more in ["Expect: 100-continue".to_owned(), format!("X: {}", "x".repeat(1024))] {
            let bytes = format!("{}{more}\r\n\r\nfirst", &HEAD[..HEAD.len() - 2]);
            assert!(!is_repeat(&mut server, &bytes));
            server.remember();
            assert!(!is_repeat(&mut server, &bytes));
        }
        let get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        assert!(!is_repeat(&mut server, get));
        server.remember();
        assert!(!is_repeat(&mut server, get));
    }

    /// What arrives, what is reported, what is written at once.
    #[test]
    fn table() {
        let chunked = "POST /ilp HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let refused = |refused| vec![Seen::Refused(refused)];
        let table = [
            ("", vec![]),
            ("GET / HTTP/1.1\r\nHo", vec![]),
            (get, vec![request("/", b"")]),
            (
                &format!("{get}\r\n{get}\r\n"),
                vec![request("/", b""), request("/", b"")],
            ),
            (&format!("{HEAD}1234"), vec![]),
            // HTTP/1.0, Connection: close: the last request, whatever follows.
            (
                &format!("{}{get}", get.replace("/1.1", "/1.0")),
                vec![request("/", b"")],
            ),
            (
                &format!("{}{get}", get.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")),
                vec![request("/", b"")],
            ),
            (
                &format!(
                    "{}1\r\nx\r\n0\r\n\r\n{get}",
                    chunked.replace("Tr", "Connection: close\r\nTr")
                ),
                vec![request("/ilp", b"x")],
            ),
            // Chunked, alone and in a row.
            (
                &format!("{chunked}3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: 1\r\n\r\n{get}"),
                vec![request("/ilp", b"abcde"), request("/", b"")],
            ),
            (
                &format!("{chunked}0\r\n\r\n{chunked}1\r\nx\r\n0\r\n\r\n"),
                vec![request("/ilp", b""), request("/ilp", b"x")],
            ),
            (&format!("{chunked}3\r\nabc\r\n0\r\n"), vec![]),
            // Refused, the size before any of the body is there.
            (&HEAD.replace(": 5", ": 21"), refused(Refused::BodyTooLarge)),
            (
                &HEAD.replace(": 5", ": 18446744073709551615"),
                refused(Refused::BodyTooLarge),
            ),
            (
                &HEAD.replace("/accounts/alice/ilp", "/rates").replace(": 5", ": 101"),
                refused(Refused::BodyTooLarge),
            ),
            (
                &HEAD.replace("/accounts/alice/ilp", "/rates").replace(": 5", ": 100"),
                vec![],
            ),
            (&format!("{chunked}15\r\n"), refused(Refused::BodyTooLarge)),
            (&format!("{chunked}14\r\n"), vec![]),
            (&format!("{chunked}x\r\n"), refused(Refused::BadBody)),
            (
                &get.replace("\r\n\r\n", "\r\nExpect: miracles\r\n\r\n"),
                refused(Refused::UnknownExpectation),
            ),
            (
                &HEAD.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n"),
                refused(Malformed::BothLengths.into()),
            ),
            (
                &format!("{get}GET / HTTP/1.1\nHost: h\n\n"),
                vec![request("/", b""), Seen::Refused(Malformed::BareLf.into())],
            ),
            // A request hidden in a body stays a body.
            (
                &format!(
                    "{}{get}",
                    HEAD.replace("/accounts/alice/ilp", "/rates").replace(": 5", ": 27")
                ),
                vec![request("/rates", get.as_bytes())],
            ),
        ];
        for (input, expected) in table {
            let caller = Caller::of(input);
            assert_eq!(caller.seen, expected, "{input:?}");
            assert!(caller.out.is_empty(), "{input:?}");
        }
    }

    #[test]
    fn statuses() {
        let table = [
            (Refused::Head(Malformed::HeadTooLong), 431),
            (Refused::Head(Malformed::UnsupportedVersion), 505),
            (Refused::BodyTooLarge, 413),
            (Refused::BadBody, 400),
            (Refused::UnknownExpectation, 417),
        ];
        for (refused, status) in table {
            assert_eq!(refused.status(), status);
            assert!(!refused.to_string().is_empty());
        }
    }

    #[test]
    fn a_long_body_is_collected_and_taken() {
        let body: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
        let head = |framing: &str| format!("PUT /rates HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n");
        let chunks = body
            .chunks(70_000)
            .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        let by_length = [head("Content-Length: 300000").as_bytes(), &body].concat();
        let by_chunks: Vec<u8> = head("Transfer-Encoding: chunked")
            .into_bytes()
            .into_iter()
            .chain(chunks)
            .chain(*b"0\r\n\r\n")
            .collect();
        let get = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        for request in [by_length, by_chunks] {
            for read_bytes in [1_000, 16_384, 70_000] {
                let (mut server, mut out, mut kept) = (HttpServer::new(), Vec::new(), Vec::new());
                let bytes = [&request[..], get].concat();
                let mut seen = Vec::new();
                for read in bytes.chunks(read_bytes) {
                    kept.extend_from_slice(read);
                    let mut at = 0;
                    loop {
                        let (used, found) = server.next(&kept[at..], |_| 400_000, &mut out).unwrap();
                        at += used;
                        match found {
                            Some(Incoming::Request { head, body }) => {
                                let (target, bytes) = (head.target.to_owned(), body.len());
                                assert!(!server.is_collecting());
                                seen.push((target, bytes, server.take_body()));
                            }
                            Some(Incoming::Repeat { .. }) => panic!("nothing was remembered"),
                            None if used == 0 => break,
                            None => assert!(server.is_collecting()),
                        }
                    }
                    kept.drain(..at);
                    assert!(kept.len() <= read_bytes, "the body is not kept twice");
                }
                let expected = [
                    ("/rates".to_owned(), body.len(), Some(body.clone())),
                    ("/".to_owned(), 0, None),
                ];
                assert!(seen == expected, "read by {read_bytes}");
            }
        }
    }

    #[test]
    fn continue_is_sent_once_and_only_to_who_waits() {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let waiting = HEAD.replace("Host", "Expect: 100-continue\r\nHost");
        let chunked = waiting.replace("Content-Length: 5", "Transfer-Encoding: chunked");
        for (head, body) in [(waiting.as_str(), "12345"), (&chunked, "5\r\n12345\r\n0\r\n\r\n")] {
            let mut caller = Caller::default();
            for round in 1..=2 {
                caller.read(head.as_bytes());
                assert_eq!(caller.out, CONTINUE.repeat(round), "the client waits");
                for byte in body.bytes() {
                    caller.read(&[byte]);
                }
                assert_eq!(caller.out, CONTINUE.repeat(round), "only once");
                assert_eq!(caller.seen, vec![request("/accounts/alice/ilp", b"12345"); round]);
            }
            caller.read(format!("{head}{body}").as_bytes());
            assert_eq!(caller.out, CONTINUE.repeat(2), "who sent the body does not wait");
        }
        assert!(Caller::of(&waiting.replace("/1.1", "/1.0")).out.is_empty());
        assert!(Caller::of(&waiting.replace(": 5", ": 0")).out.is_empty());
        let too_large = Caller::of(&waiting.replace(": 5", ": 50"));
        assert_eq!(too_large.seen, [Seen::Refused(Refused::BodyTooLarge)]);
        assert!(too_large.out.is_empty(), "413 instead of 100");
    }

    #[test]
    fn an_endless_head_is_refused_at_the_limit() {
        let mut caller = Caller::of("GET / HTTP/1.1\r\nHost: h\r\nX: ");
        while caller.seen.is_empty() {
            assert!(caller.kept.len() < crate::wire::http::HEAD_BYTES_MAX);
            caller.read(b"x");
        }
        assert_eq!(caller.seen, [Seen::Refused(Malformed::HeadTooLong.into())]);
    }

    /// Requests of every kind, some of them broken, and how often each should come.
    fn pieces() -> Vec<(u32, String)> {
        vec![
            (8, format!("{HEAD}12345")),
            (4, format!("{HEAD}\r\n\r\n\n")),
            (4, HEAD.replace(": 5", ": 0")),
            (4, "GET /?x HTTP/1.1\r\nHost: h\r\n\r\n".into()),
            (
                4,
                "\r\nPUT /ilp HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(),
            ),
            (1, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".into()),
            (1, HEAD.replace(": 5", ": 500")),
            (1, "GET / HTTP/1.1\r\n\r\n".into()),
            (
                1,
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n".into(),
            ),
            (1, "x\n".into()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn splits_do_not_matter(bytes in connections(pieces()), cuts in cuts()) {
            let mut whole = Caller::default();
            whole.read(&bytes);
            let mut split = Caller::default();
            read_in_pieces(&bytes, &cuts, |piece| split.read(piece));
            prop_assert_eq!(whole.seen, split.seen);
        }

        #[test]
        fn any_bytes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5)) {
            let mut caller = Caller::default();
            for piece in pieces {
                caller.read(&piece);
            }
        }
    }
}
