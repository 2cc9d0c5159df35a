//! One WebSocket on which only we speak, after the upgrade (RFC 6455): a subscriber, and what it has not been told yet.
//!
//! Owns what waits for a slow reader and what becomes of one that is too slow, pings, and the closing of both sides.
//! Leaves to others what a message says, who may hear it, and the clock: the caller brings the time, and asks
//! [`Subscriber::next_deadline_ms`] when to bring it again.
//!
//! Always: messages go out in the order in which they came, each once or, where it was skipped, with its gap told; what
//! waits is bounded; nothing that a client sends is kept, whatever its length or fragments; nothing follows our close
//! frame.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::wire::websocket::{self, CloseCode, Opcode};

/// How often a client is asked for a sign of life.
pub const PING_MS: u64 = 30_000;
/// A client that has let so many pings in a row go by is gone.
pub const PINGS_MISSED_MAX: u8 = 2;

/// Messages that wait for a subscriber before it is closed.
pub const WAITING_UNTIL_CLOSED_MAX: usize = 1_024;
/// Messages that wait for a subscriber before the oldest are skipped.
pub const WAITING_UNTIL_SKIPPED_MAX: usize = 256;

/// With more than this unsent on the socket, messages wait here, where they are counted, and shared by all subscribers
/// that wait for them.
pub const UNSENT_BYTES_MAX: usize = 64 * 1024;

/// The longest frame of a client that is skipped. It costs us no memory, so this only tells a client that takes us for
/// something else.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Beyond this many bytes in `out` pings are not answered: their sender does not read.
const PONGS_UNSENT_BYTES_MAX: usize = 2 * UNSENT_BYTES_MAX;

/// What happens to a subscriber that reads too slowly.
#[derive(Clone, Copy, Debug)]
pub enum OnLag {
    /// It is closed with 1013: what it would miss cannot be told from what never was.
    Close,
    /// The oldest messages are skipped. This makes the text that says how many, in their place.
    Tell(fn(u64) -> Vec<u8>),
}

/// The subscription is over. Our close frame is in `out`: send that, then close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    #[error("the client closed")]
    ByClient,
    #[error("the client broke the WebSocket protocol: {0:?}")]
    Violation(CloseCode),
    #[error("the client reads too slowly")]
    Lagged,
    #[error("the client answers no pings")]
    Silent,
}

/// One subscriber, without its socket.
///
/// [`Self::push`] and [`Self::skip`] bring news, [`Self::handle_bytes`] what the client sends, [`Self::handle_drained`]
/// that everything written was sent, [`Self::handle_time`] the time. All of them append whole frames to `out`; `unsent`
/// is what the socket has not sent yet, with `out`.
#[derive(Debug)]
pub struct Subscriber {
    on_lag: OnLag,
    /// Frames that are not written yet, oldest first.
    waiting: VecDeque<Arc<[u8]>>,
    /// Messages that were skipped in front of those, and not told of.
    skipped: u64,
    /// Bytes still to come of a frame that nobody reads.
    ignored_bytes: usize,
    /// A message of the client goes on in its next data frame.
    in_fragments: bool,
    pings_unanswered: u8,
    ping_at_ms: u64,
    close_sent: bool,
}

impl Subscriber {
    /// `now_ms` is monotonic, as everywhere here.
    pub fn new(on_lag: OnLag, now_ms: u64) -> Self {
        Self {
            on_lag,
            waiting: VecDeque::new(),
            skipped: 0,
            ignored_bytes: 0,
            in_fragments: false,
            pings_unanswered: 0,
            ping_at_ms: now_ms + PING_MS,
            close_sent: false,
        }
    }

    /// When to call [`Self::handle_time`] at the latest.
    pub fn next_deadline_ms(&self) -> u64 {
        self.ping_at_ms
    }

    /// Nothing is sent any more.
    pub fn is_over(&self) -> bool {
        self.close_sent
    }

    /// Takes what the client has sent: answers its pings and its close, drops the rest. Returns how much was used; bring
    /// the rest again with more behind it, which is less than a control frame.
    pub fn handle_bytes(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> Result<usize, End> {
        let mut used = 0;
        loop {
            if self.close_sent {
                return Ok(bytes.len());
            }
            let ignored = self.ignored_bytes.min(bytes.len() - used);
            self.ignored_bytes -= ignored;
            used += ignored;
            let rest = &mut bytes[used..];
            let head = match websocket::parse_head(rest, FRAME_BYTES_MAX) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(used),
                Err(code) => return Err(self.violation(code, out)),
            };
            let Some(key) = head.mask else {
                return Err(self.violation(CloseCode::ProtocolError, out));
            };
            if head.opcode.is_control() {
                let frame_bytes = head.head_len + head.payload_len;
                // Only a complete frame is touched: a mask that was removed twice would be back.
                let Some(payload) = rest.get_mut(head.head_len..frame_bytes) else {
                    return Ok(used);
                };
                websocket::unmask(payload, key);
                self.handle_control(head.opcode, payload, out)?;
                used += frame_bytes;
            } else {
                if (head.opcode == Opcode::Continuation) != self.in_fragments {
                    return Err(self.violation(CloseCode::ProtocolError, out));
                }
                self.in_fragments = !head.fin;
                self.ignored_bytes = head.payload_len;
                used += head.head_len;
            }
            // Whatever it says, it is there.
            self.pings_unanswered = 0;
        }
    }

    fn handle_control(&mut self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
        match opcode {
            Opcode::Ping if out.len() <= PONGS_UNSENT_BYTES_MAX => {
                websocket::write_control(out, Opcode::Pong, payload, None);
            }
            Opcode::Close => {
                websocket::parse_close(payload).map_err(|code| self.violation(code, out))?;
                // RFC 6455, section 5.5.1: the same code back.
                websocket::write_control(out, Opcode::Close, &payload[..payload.len().min(2)], None);
                self.end();
                return Err(End::ByClient);
            }
            _ => {}
        }
        Ok(())
    }

    /// Everything written has been sent: what waits goes on.
    pub fn handle_drained(&mut self, out: &mut Vec<u8>) {
        if self.skipped > 0
            && let OnLag::Tell(text) = self.on_lag
        {
            out.extend_from_slice(&text_frame(&text(self.skipped)));
            self.skipped = 0;
        }
        while out.len() <= UNSENT_BYTES_MAX
            && let Some(message) = self.waiting.pop_front()
        {
            out.extend_from_slice(&message);
        }
        if self.waiting.is_empty() {
            // Who has caught up holds no memory.
            self.waiting = VecDeque::new();
        }
    }

    /// Asks for a sign of life, when it is time.
    pub fn handle_time(&mut self, now_ms: u64, out: &mut Vec<u8>) -> Result<(), End> {
        if self.close_sent || now_ms < self.ping_at_ms {
            return Ok(());
        }
        if self.pings_unanswered >= PINGS_MISSED_MAX {
            self.close(CloseCode::PolicyViolation, "pings were not answered", out);
            return Err(End::Silent);
        }
        self.pings_unanswered += 1;
        self.ping_at_ms = now_ms + PING_MS;
        websocket::write_control(out, Opcode::Ping, b"", None);
        Ok(())
    }

    /// A message, made by [`text_frame`].
    pub fn push(&mut self, message: &Arc<[u8]>, unsent: usize, out: &mut Vec<u8>) -> Result<(), End> {
        if self.close_sent {
            return Ok(());
        }
        if self.waiting.is_empty() && self.skipped == 0 && unsent <= UNSENT_BYTES_MAX {
            out.extend_from_slice(message);
            return Ok(());
        }
        match self.on_lag {
            OnLag::Close if self.waiting.len() >= WAITING_UNTIL_CLOSED_MAX => return Err(self.lagged(out)),
            OnLag::Tell(_) if self.waiting.len() >= WAITING_UNTIL_SKIPPED_MAX => {
                self.waiting.pop_front();
                self.skipped += 1;
            }
            _ => {}
        }
        self.waiting.push_back(message.clone());
        Ok(())
    }

    /// So many messages behind those pushed so far were lost on their way here.
    pub fn skip(&mut self, count: u64, unsent: usize, out: &mut Vec<u8>) -> Result<(), End> {
        if self.close_sent || count == 0 {
            return Ok(());
        }
        if matches!(self.on_lag, OnLag::Close) {
            return Err(self.lagged(out));
        }
        // There is one gap at most, in front of all that waits: what waits goes with it.
        self.skipped += count + self.waiting.len() as u64;
        self.waiting.clear();
        if unsent <= UNSENT_BYTES_MAX {
            self.handle_drained(out);
        }
        Ok(())
    }

    /// Says goodbye, and why: at most 123 bytes.
    pub fn close(&mut self, code: CloseCode, reason: &str, out: &mut Vec<u8>) {
        if self.close_sent {
            return;
        }
        let mut payload = (code as u16).to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        debug_assert!(payload.len() <= websocket::CONTROL_PAYLOAD_BYTES_MAX);
        websocket::write_control(out, Opcode::Close, &payload, None);
        self.end();
    }

    fn lagged(&mut self, out: &mut Vec<u8>) -> End {
        self.close(CloseCode::TryAgainLater, "too many messages were not read", out);
        End::Lagged
    }

    #[cold]
    fn violation(&mut self, code: CloseCode, out: &mut Vec<u8>) -> End {
        self.close(code, "", out);
        End::Violation(code)
    }

    fn end(&mut self) {
        self.close_sent = true;
        self.waiting = VecDeque::new();
        self.skipped = 0;
    }
}

/// A text as one frame, for any number of subscribers: what a server sends is not masked.
pub fn text_frame(text: &[u8]) -> Arc<[u8]> {
    let mut frame = Vec::with_capacity(websocket::HEAD_BYTES_MAX + text.len());
    websocket::write_head(&mut frame, Opcode::Text, text.len(), None);
    frame.extend_from_slice(text);
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_MS: u64 = 1_000;
    const KEY: [u8; 4] = [0x5a, 0x01, 0xff, 0x33];
    const TELL: OnLag = OnLag::Tell(|count| format!("skipped {count}").into_bytes());

    fn text(text: &str) -> Arc<[u8]> {
        text_frame(text.as_bytes())
    }

    /// A masked frame with any first byte.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        websocket::write_head(&mut frame, Opcode::Binary, payload.len(), Some(KEY));
        frame[0] = first;
        let start = frame.len();
        frame.extend_from_slice(payload);
        websocket::unmask(&mut frame[start..], KEY);
        frame
    }

    /// What was sent, in words: texts as they are, `ping`, `pong ..`, `close CODE REASON`.
    fn sent(out: &mut Vec<u8>) -> Vec<String> {
        let mut frames = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            let head = websocket::parse_head(rest, usize::MAX).unwrap().unwrap();
            assert!(head.fin && head.mask.is_none(), "a server's frame");
            let end = head.head_len + head.payload_len;
            let payload = &rest[head.head_len..end];
            let shown = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            frames.push(match head.opcode {
                Opcode::Text => shown(payload),
                Opcode::Ping => "ping".to_owned(),
                Opcode::Pong => format!("pong {}", shown(payload)),
                Opcode::Close if payload.is_empty() => "close".to_owned(),
                Opcode::Close => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    format!("close {code} {}", shown(&payload[2..])).trim_end().to_owned()
                }
                other => panic!("{other:?} is never sent"),
            });
            rest = &rest[end..];
        }
        out.clear();
        frames
    }

    #[test]
    fn what_clients_send() {
        let long = vec![b'x'; FRAME_BYTES_MAX];
        let ended = |code| Err(End::Violation(code));
        for (name, bytes, result, answers) in [
            ("text", masked(0x81, b"hello"), Ok(()), &[][..]),
            ("binary", masked(0x82, &[0xff; 200]), Ok(()), &[]),
            ("no UTF-8", masked(0x81, &[0xff, 0xfe]), Ok(()), &[]),
            ("empty", masked(0x81, b""), Ok(()), &[]),
            ("long", masked(0x82, &long), Ok(()), &[]),
            (
                "fragments",
                [
                    masked(0x01, b"a"),
                    masked(0x00, &long),
                    masked(0x00, b""),
                    masked(0x80, b"c"),
                ]
                .concat(),
                Ok(()),
                &[],
            ),
            (
                "ping between fragments",
                [masked(0x02, b"a"), masked(0x89, b"there?"), masked(0x80, b"b")].concat(),
                Ok(()),
                &["pong there?"],
            ),
            ("pong", masked(0x8a, b"x"), Ok(()), &[]),
            (
                "two pings",
                [masked(0x89, b"1"), masked(0x89, b"2")].concat(),
                Ok(()),
                &["pong 1", "pong 2"],
            ),
            (
                "close",
                masked(0x88, &[0x03, 0xe8, b'b']),
                Err(End::ByClient),
                &["close 1000"],
            ),
            ("bare close", masked(0x88, b""), Err(End::ByClient), &["close"]),
            (
                "bad close",
                masked(0x88, &[0x03]),
                ended(CloseCode::ProtocolError),
                &["close 1002"],
            ),
            (
                "no mask",
                vec![0x81, 0x01, b'x'],
                ended(CloseCode::ProtocolError),
                &["close 1002"],
            ),
            (
                "HTTP",
                b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                ended(CloseCode::ProtocolError),
                &["close 1002"],
            ),
            (
                "reserved bit",
                masked(0xc1, b"x"),
                ended(CloseCode::ProtocolError),
                &["close 1002"],
            ),
            (
                "end of nothing",
                masked(0x80, b"x"),
                ended(CloseCode::ProtocolError),
                &["close 1002"],
            ),
            (
                "message in a message",
                [masked(0x01, b"a"), masked(0x01, b"b")].concat(),
                ended(CloseCode::ProtocolError),
                &["close 1002"],
            ),
            (
                "too long",
                masked(0x82, &[&long[..], b"x"].concat()),
                ended(CloseCode::MessageTooBig),
                &["close 1009"],
            ),
        ] {
            // All at once, and one byte after the other.
            for step in [bytes.len(), 1] {
                let mut subscriber = Subscriber::new(OnLag::Close, NOW_MS);
                let (mut inbox, mut out, mut end) = (Vec::new(), Vec::new(), Ok(()));
                for part in bytes.chunks(step) {
                    inbox.extend_from_slice(part);
                    match subscriber.handle_bytes(&mut inbox, &mut out) {
                        Ok(used) => drop(inbox.drain(..used)),
                        Err(why) => {
                            end = Err(why);
                            break;
                        }
                    }
                    assert!(step > 1 || inbox.len() <= websocket::HEAD_BYTES_MAX + 125, "{name}");
                }
                assert_eq!(end, result, "{name}");
                assert_eq!(sent(&mut out), answers, "{name}");
                assert_eq!(subscriber.is_over(), result.is_err(), "{name}");
                assert!(end.is_err() || inbox.is_empty(), "{name}");
            }
        }
    }

    #[test]
    fn pings_and_signs_of_life() {
        // At each time (in ping intervals) what the client sends before, and what it gets then.
        let pong: &[u8] = &masked(0x8a, b"");
        let chatter: &[u8] = &masked(0x81, b"x");
        let none: &[u8] = b"";
        for (name, events) in [
            (
                "alive",
                &[(none, "ping"), (pong, "ping"), (pong, "ping"), (pong, "ping")][..],
            ),
            (
                "one missed",
                &[
                    (none, "ping"),
                    (none, "ping"),
                    (pong, "ping"),
                    (none, "ping"),
                    (pong, "ping"),
                ],
            ),
            ("talks instead", &[(none, "ping"), (none, "ping"), (chatter, "ping")]),
            (
                "gone",
                &[
                    (none, "ping"),
                    (none, "ping"),
                    (none, "close 1008 pings were not answered"),
                ],
            ),
            (
                "gone later",
                &[
                    (none, "ping"),
                    (pong, "ping"),
                    (none, "ping"),
                    (none, "close 1008 pings were not answered"),
                ],
            ),
        ] {
            let mut subscriber = Subscriber::new(OnLag::Close, NOW_MS);
            let mut out = Vec::new();
            for (number, (bytes, expected)) in (1..).zip(events) {
                subscriber.handle_bytes(&mut bytes.to_vec(), &mut out).unwrap();
                let at_ms = NOW_MS + number * PING_MS;
                assert_eq!(subscriber.next_deadline_ms(), at_ms, "{name}");
                assert_eq!(subscriber.handle_time(at_ms - 1, &mut out), Ok(()), "{name}");
                assert!(out.is_empty(), "{name}: not before its time");
                let end = subscriber.handle_time(at_ms, &mut out);
                assert_eq!(end.is_err(), expected.starts_with("close"), "{name}");
                assert_eq!(sent(&mut out), [*expected], "{name}");
            }
        }
    }

    #[test]
    fn one_that_reads_gets_everything_at_once() {
        for on_lag in [OnLag::Close, TELL] {
            let mut subscriber = Subscriber::new(on_lag, NOW_MS);
            let mut out = Vec::new();
            for number in 0..5_000 {
                subscriber.push(&text(&number.to_string()), 0, &mut out).unwrap();
                assert_eq!(sent(&mut out), [number.to_string()]);
            }
        }
    }

    #[test]
    fn one_that_lags_is_closed() {
        let mut subscriber = Subscriber::new(OnLag::Close, NOW_MS);
        let (mut out, slow) = (Vec::new(), UNSENT_BYTES_MAX + 1);
        for number in 0..WAITING_UNTIL_CLOSED_MAX {
            subscriber.push(&text(&number.to_string()), slow, &mut out).unwrap();
        }
        assert!(out.is_empty());
        // It catches up in time, and begins to lag again.
        subscriber.handle_drained(&mut out);
        let expected: Vec<_> = (0..WAITING_UNTIL_CLOSED_MAX).map(|number| number.to_string()).collect();
        assert_eq!(sent(&mut out), expected);
        for _ in 0..WAITING_UNTIL_CLOSED_MAX {
            subscriber.push(&text("more"), slow, &mut out).unwrap();
        }
        assert_eq!(subscriber.push(&text("too much"), slow, &mut out), Err(End::Lagged));
        assert_eq!(sent(&mut out), ["close 1013 too many messages were not read"]);
        subscriber.handle_drained(&mut out);
        subscriber.push(&text("late"), 0, &mut out).unwrap();
        subscriber.handle_time(u64::MAX - PING_MS, &mut out).unwrap();
        subscriber.close(CloseCode::Normal, "late", &mut out);
        assert!(out.is_empty(), "nothing follows a close frame");
    }

    #[test]
    fn one_that_lags_is_told() {
        let (mut out, slow) = (Vec::new(), UNSENT_BYTES_MAX + 1);
        for (pushed, skipped) in [(1, 0), (256, 0), (257, 1), (300, 44), (5_000, 4_744)] {
            let mut subscriber = Subscriber::new(TELL, NOW_MS);
            for number in 0..pushed {
                subscriber.push(&text(&number.to_string()), slow, &mut out).unwrap();
            }
            subscriber.handle_drained(&mut out);
            let told = (skipped > 0).then(|| format!("skipped {skipped}"));
            let rest = (skipped..pushed).map(|number| number.to_string());
            assert_eq!(sent(&mut out), told.into_iter().chain(rest).collect::<Vec<_>>());
            subscriber.push(&text("goes on"), 0, &mut out).unwrap();
            assert_eq!(sent(&mut out), ["goes on"]);
        }
    }

    #[test]
    fn what_was_lost_on_the_way() {
        let (mut out, slow) = (Vec::new(), UNSENT_BYTES_MAX + 1);
        let mut closed = Subscriber::new(OnLag::Close, NOW_MS);
        assert_eq!(closed.skip(0, 0, &mut out), Ok(()));
        assert_eq!(closed.skip(1, 0, &mut out), Err(End::Lagged));
        assert_eq!(sent(&mut out), ["close 1013 too many messages were not read"]);

        let mut told = Subscriber::new(TELL, NOW_MS);
        told.skip(3, 0, &mut out).unwrap();
        assert_eq!(sent(&mut out), ["skipped 3"]);
        told.push(&text("waits"), slow, &mut out).unwrap();
        told.skip(2, slow, &mut out).unwrap();
        told.push(&text("behind the gap"), slow, &mut out).unwrap();
        assert!(out.is_empty());
        told.handle_drained(&mut out);
        assert_eq!(sent(&mut out), ["skipped 3", "behind the gap"]);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_little_is_kept(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            let mut subscriber = Subscriber::new(OnLag::Close, NOW_MS);
            let (mut inbox, mut out) = (Vec::new(), Vec::new());
            for part in bytes.chunks(step) {
                inbox.extend_from_slice(part);
                let Ok(used) = subscriber.handle_bytes(&mut inbox, &mut out) else { break };
                inbox.drain(..used);
                prop_assert!(inbox.len() < websocket::HEAD_BYTES_MAX + websocket::CONTROL_PAYLOAD_BYTES_MAX);
            }
        }
    }
}
