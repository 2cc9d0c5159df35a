//! The answers of the serving end: in the order of its requests (RFC 9112 section 9.3.2), long ones piece by piece.
//!
//! Owns which answer may go out now, how a long body is framed, and when its next piece is wanted: not before the client
//! has taken the one before. Leaves to the caller what an answer says, where the pieces come from, and the socket.
//!
//! Always: nothing of an answer is written before all of those before it; a long answer costs one piece, however long it
//! is and however slowly it is read; one that cannot be finished lacks its end, so that nobody takes it for complete.

use std::collections::VecDeque;

use crate::wire::http::write::{BodyEnd, write_chunk, write_last_chunk};

/// A body longer than this goes out in pieces of about this size: what a client that does not read can make us keep, and
/// what the system takes from us at once. That takes a shard a tenth of a millisecond, so a few clients in one turn do not
/// keep its packets waiting.
pub const PIECE_BYTES: usize = 32 * 1024;

/// What an answer has to know of its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Tells the requests of a connection apart.
    pub request: u32,
    /// The client lets the connection stay.
    pub keep_alive: bool,
    /// The body is left out.
    pub head_only: bool,
    /// The client speaks HTTP/1.1, so it reads chunks.
    pub reads_chunks: bool,
    /// No further request is looked at until this one is answered.
    pub alone: bool,
}

impl Asked {
    /// As packets are asked with, on a connection that stays; the number is still to be given.
    pub const PACKET: Self = Self {
        request: 0,
        keep_alive: true,
        head_only: false,
        reads_chunks: true,
        alone: false,
    };
}

/// A body that goes out in pieces.
pub enum LongBody<S> {
    /// All of it is here.
    Bytes(Vec<u8>),
    /// Whatever `S` will make of it; how long it gets is not known.
    Made(S),
}

/// What the caller has to do now.
#[derive(PartialEq, Eq, Debug)]
pub enum Next<S> {
    /// Nothing, until something happens.
    Wait,
    /// Have the next piece of the answer to this request made, and bring it to [`Answers::handle_piece`].
    Make(u32, S),
    /// Send what was written, then close: there will be no more.
    Close,
}

/// The requests of one connection that are not answered, oldest first.
///
/// [`push`](Self::push) notes a request; [`answer`](Self::answer) or [`answer_long`](Self::answer_long) answers it, in
/// any order. When everything written has been sent, [`handle_drained`](Self::handle_drained) goes on with a long answer.
/// What these return is to be done at once; after [`Next::Close`] none of them may be called.
pub struct Answers<S> {
    waiting: VecDeque<Waiting<S>>,
}

struct Waiting<S> {
    asked: Asked,
    answer: Answer<S>,
}

enum Answer<S> {
    /// There is none yet.
    Awaited,
    /// Written, while those before it are not.
    Written(Vec<u8>),
    Long(Box<Long<S>>),
}

struct Long<S> {
    /// Empty once it was written.
    head: Vec<u8>,
    rest: Rest<S>,
    end: BodyEnd,
    keep_alive: bool,
}

/// What is still to be written of a long body.
enum Rest<S> {
    Bytes {
        bytes: Vec<u8>,
        written: usize,
    },
    /// `None`: a piece is being made.
    Made(Option<S>),
}

impl<S> Default for Answers<S> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<S> Answers<S> {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The last request is one that must be answered before another is looked at.
    pub fn holds_up(&self) -> bool {
        self.waiting.back().is_some_and(|last| last.asked.alone)
    }

    /// A long answer has begun, or is next.
    pub fn is_long(&self) -> bool {
        matches!(self.waiting.front(), Some(first) if matches!(first.answer, Answer::Long(_)))
    }

    /// A long answer has begun, and it is the client who has to take what was written of it.
    pub fn awaits_client(&self) -> bool {
        let Some(Waiting {
            answer: Answer::Long(long),
            ..
        }) = self.waiting.front()
        else {
            return false;
        };
        !matches!(long.rest, Rest::Made(None))
    }

    /// Notes a request.
    pub fn push(&mut self, asked: Asked) {
        self.waiting.push_back(Waiting {
            asked,
            answer: Answer::Awaited,
        });
    }

    /// There will be no more answers.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Answers a request, now or when those before it have been answered. `write` gets where to, and says whether the
    /// connection stays. Nothing is written for a request that is not known.
    pub fn answer(
        &mut self,
        request: u32,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>, Asked) -> bool,
    ) -> Next<S> {
        let Some(at) = self.position(request) else {
            return Next::Wait;
        };
        let waiting = &mut self.waiting[at];
        if at > 0 {
            let mut bytes = Vec::new();
            waiting.asked.keep_alive = write(&mut bytes, waiting.asked);
            waiting.answer = Answer::Written(bytes);
            return Next::Wait;
        }
        let keep_alive = write(out, waiting.asked);
        self.end_first(keep_alive, out)
    }

    /// As [`Self::answer`], with a body that goes out in pieces. `write_head` also gets where the body ends.
    pub fn answer_long(
        &mut self,
        request: u32,
        body: LongBody<S>,
        out: &mut Vec<u8>,
        write_head: impl FnOnce(&mut Vec<u8>, Asked, BodyEnd) -> bool,
    ) -> Next<S> {
        let Some(at) = self.position(request) else {
            return Next::Wait;
        };
        let waiting = &mut self.waiting[at];
        let asked = waiting.asked;
        let end = match &body {
            LongBody::Bytes(bytes) => BodyEnd::Length(bytes.len() as u64),
            LongBody::Made(_) if asked.reads_chunks => BodyEnd::LastChunk,
            LongBody::Made(_) => BodyEnd::Close,
        };
        let may_stay = |keep_alive: bool| keep_alive && end != BodyEnd::Close;
        if asked.head_only {
            return self.answer(request, out, |out, asked| may_stay(write_head(out, asked, end)));
        }
        let mut head = Vec::new();
        let keep_alive = may_stay(write_head(&mut head, asked, end));
        let rest = match body {
            LongBody::Bytes(bytes) => Rest::Bytes { bytes, written: 0 },
            LongBody::Made(source) => Rest::Made(Some(source)),
        };
        waiting.answer = Answer::Long(Box::new(Long {
            head,
            rest,
            end,
            keep_alive,
        }));
        if at == 0 { self.proceed(out) } else { Next::Wait }
    }

    /// The piece that was asked for, and what will make the next one; `None` if this was the last.
    pub fn handle_piece(&mut self, request: u32, piece: &[u8], source: Option<S>, out: &mut Vec<u8>) -> Next<S> {
        let Some(Waiting {
            asked,
            answer: Answer::Long(long),
        }) = self.waiting.front_mut()
        else {
            return Next::Wait;
        };
        if asked.request != request || !matches!(long.rest, Rest::Made(None)) {
            return Next::Wait;
        }
        let in_chunks = long.end == BodyEnd::LastChunk;
        if in_chunks {
            write_chunk(out, piece);
        } else {
            out.extend_from_slice(piece);
        }
        if let Some(source) = source {
            long.rest = Rest::Made(Some(source));
            return Next::Wait;
        }
        if in_chunks {
            write_last_chunk(out);
        }
        let keep_alive = long.keep_alive;
        self.end_first(keep_alive, out)
    }

    /// Everything written has been sent: goes on with a long answer.
    pub fn handle_drained(&mut self, out: &mut Vec<u8>) -> Next<S> {
        if self.is_long() { self.proceed(out) } else { Next::Wait }
    }

    /// Where a request waits for its answer.
    fn position(&self, request: u32) -> Option<usize> {
        let is_it =
            |waiting: &Waiting<S>| waiting.asked.request == request && matches!(waiting.answer, Answer::Awaited);
        self.waiting.iter().position(is_it)
    }

    /// The first answer is written to its end.
    fn end_first(&mut self, keep_alive: bool, out: &mut Vec<u8>) -> Next<S> {
        self.waiting.pop_front();
        if keep_alive { self.proceed(out) } else { Next::Close }
    }

    /// Writes what may go out now: whole answers, and one piece of a long one.
    fn proceed(&mut self, out: &mut Vec<u8>) -> Next<S> {
        while let Some(first) = self.waiting.front_mut() {
            let keep_alive = match &mut first.answer {
                Answer::Awaited => return Next::Wait,
                Answer::Written(bytes) => {
                    out.extend_from_slice(bytes);
                    first.asked.keep_alive
                }
                Answer::Long(long) => {
                    out.append(&mut long.head);
                    match &mut long.rest {
                        Rest::Made(source) => {
                            let request = first.asked.request;
                            return source.take().map_or(Next::Wait, |source| Next::Make(request, source));
                        }
                        Rest::Bytes { bytes, written } => {
                            let end = bytes.len().min(*written + PIECE_BYTES);
                            out.extend_from_slice(&bytes[*written..end]);
                            *written = end;
                            if end < bytes.len() {
                                return Next::Wait;
                            }
                            long.keep_alive
                        }
                    }
                }
            };
            self.waiting.pop_front();
            if !keep_alive {
                return Next::Close;
            }
        }
        Next::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A connection by its letters: requests are numbered from 0, and everything a step returns is shown.
    #[derive(Default)]
    struct Caller {
        answers: Answers<&'static str>,
        out: Vec<u8>,
        requests: u32,
    }

    impl Caller {
        /// One step, and what it wrote and asked for.
        fn step(&mut self, step: &str) -> String {
            let words: Vec<&str> = step.split_whitespace().collect();
            let number = || words[1].parse().unwrap();
            let is_said = |word: &str| words.contains(&word);
            let out = &mut self.out;
            let next = match words[0] {
                "ask" => {
                    self.answers.push(Asked {
                        request: self.requests,
                        keep_alive: !is_said("last") && !is_said("1.0"),
                        head_only: is_said("HEAD"),
                        reads_chunks: !is_said("1.0"),
                        alone: is_said("alone"),
                    });
                    self.requests += 1;
                    Next::Wait
                }
                "answer" => self.answers.answer(number(), out, |out, asked| {
                    out.extend_from_slice(format!("<{}>", words[1]).as_bytes());
                    asked.keep_alive && !is_said("close")
                }),
                "list" | "bytes" => {
                    let body = match words[0] {
                        "list" => LongBody::Made("source"),
                        _ => LongBody::Bytes(vec![b'b'; words[2].parse().unwrap()]),
                    };
                    self.answers.answer_long(number(), body, out, |out, asked, end| {
                        out.extend_from_slice(format!("<{} {end:?}>", words[1]).as_bytes());
                        asked.keep_alive && !is_said("close")
                    })
                }
                "piece" => {
                    let source = (!is_said("end")).then_some("source");
                    self.answers.handle_piece(number(), words[2].as_bytes(), source, out)
                }
                "drained" => self.answers.handle_drained(out),
                other => panic!("no such step: {other}"),
            };
            let written = String::from_utf8(std::mem::take(&mut self.out)).unwrap();
            let written = written.replace("\r\n", "|");
            // Bodies of known length are shown by how much of them was written.
            let body = written.matches('b').count();
            let written = if body > 10 {
                written.replace('b', "") + &format!("+{body}")
            } else {
                written
            };
            let next = match next {
                Next::Wait => String::new(),
                Next::Make(request, _) => format!("make {request}"),
                Next::Close => "close".to_owned(),
            };
            format!("{written} {next}").trim().to_owned()
        }

        fn check(story: &[(&str, &str)]) {
            let mut caller = Self::default();
            for (number, (step, expected)) in story.iter().enumerate() {
                assert_eq!(caller.step(step), *expected, "step {number} of {story:?}");
            }
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Waiting<Box<dyn Send>>>() <= 40);
    }

    #[test]
    fn answers_leave_in_the_order_of_the_requests() {
        Caller::check(&[
            ("ask", ""),
            ("ask", ""),
            ("ask", ""),
            ("answer 2", ""),
            ("list 2", ""),   // it has its answer
            ("answer 7", ""), // nobody asked
            ("answer 0", "<0>"),
            ("answer 1", "<1><2>"),
            ("answer 1", ""), // answered already
            ("drained", ""),
            ("ask last", ""),
            ("answer 3", "<3> close"),
        ]);
        Caller::check(&[
            ("ask", ""),
            ("ask last", ""),
            ("answer 1", ""),
            ("answer 0", "<0><1> close"),
        ]);
        Caller::check(&[
            ("ask", ""),
            ("ask", ""),
            ("answer 0 close", "<0> close"), // what was asked behind it gets no answer
        ]);
    }

    #[test]
    fn a_long_answer_waits_for_its_client() {
        Caller::check(&[
            ("ask", ""),
            ("list 0", "<0 LastChunk> make 0"),
            ("drained", ""), // the piece is being made
            ("piece 0 abc", "3|abc|"),
            ("piece 0 abc", ""), // not asked for
            ("drained", "make 0"),
            ("piece 1 abc", ""), // of another request
            ("piece 0 defg", "4|defg|"),
            ("drained", "make 0"),
            ("piece 0 h end", "1|h|0||"),
            ("drained", ""),
            ("ask", ""),
            ("answer 1", "<1>"),
        ]);
    }

    #[test]
    fn others_wait_for_the_end_of_a_long_answer() {
        Caller::check(&[
            ("ask", ""),
            ("ask", ""),
            ("ask", ""),
            ("ask last", ""),
            ("answer 3", ""),
            ("list 1", ""),
            ("list 2", ""),
            ("answer 0", "<0><1 LastChunk> make 1"),
            ("piece 1 abc end", "3|abc|0||<2 LastChunk> make 2"),
            ("piece 2 x", "1|x|"),
            ("drained", "make 2"),
            ("piece 2 y end", "1|y|0||<3> close"),
        ]);
    }

    #[test]
    fn how_a_list_ends() {
        // HTTP/1.0 knows no chunks: the body ends with the connection.
        Caller::check(&[
            ("ask 1.0", ""),
            ("list 0", "<0 Close> make 0"),
            ("piece 0 abc", "abc"),
            ("drained", "make 0"),
            ("piece 0 def end", "def close"),
        ]);
        Caller::check(&[
            ("ask last", ""),
            ("list 0", "<0 LastChunk> make 0"),
            ("piece 0 a end", "1|a|0|| close"),
        ]);
        Caller::check(&[
            ("ask", ""),
            ("list 0 close", "<0 LastChunk> make 0"),
            ("piece 0 a end", "1|a|0|| close"),
        ]);
        // Only the head, and nothing is made.
        Caller::check(&[
            ("ask HEAD", ""),
            ("ask", ""),
            ("list 0", "<0 LastChunk>"),
            ("answer 1", "<1>"),
        ]);
        Caller::check(&[("ask HEAD 1.0", ""), ("list 0", "<0 Close> close")]);
        Caller::check(&[("ask HEAD", ""), ("bytes 0 99", "<0 Length(99)>")]);
        Caller::check(&[
            ("ask", ""),
            ("ask HEAD", ""),
            ("list 1", ""),
            ("answer 0", "<0><1 LastChunk>"),
        ]);
    }

    #[test]
    fn long_bytes_go_out_in_pieces() {
        Caller::check(&[
            ("ask", ""),
            ("ask", ""),
            ("answer 1", ""),
            ("bytes 0 80000", "<0 Length(80000)>+32768"),
            ("drained", "+32768"),
            ("drained", "<1>+14464"),
            ("drained", ""),
        ]);
        Caller::check(&[
            ("ask last", ""),
            ("bytes 0 32769", "<0 Length(32769)>+32768"),
            ("drained", "b close"),
        ]);
    }

    #[test]
    fn who_waits_for_whom() {
        let mut caller = Caller::default();
        for (step, holds_up, is_long, awaits_client) in [
            ("ask", false, false, false),
            ("ask alone", true, false, false),
            ("list 1", true, false, false),
            ("answer 0", true, true, false), // the piece is being made
            ("piece 1 a", true, true, true),
            ("drained", true, true, false),
            ("piece 1 a end", false, false, false),
            ("ask alone", true, false, false),
            ("bytes 2 40000", true, true, true),
            ("drained", false, false, false),
        ] {
            caller.step(step);
            let answers = &caller.answers;
            let found = (answers.holds_up(), answers.is_long(), answers.awaits_client());
            assert_eq!(found, (holds_up, is_long, awaits_client), "{step}");
        }
        assert!(caller.answers.is_empty());
    }

    proptest! {
        /// Whatever the order of answers, pieces and sends, what comes out are the answers in the order of the requests.
        #[test]
        fn in_order(kinds in prop::collection::vec(0..3_u8, 1..8), order in any::<u64>()) {
            let (mut answers, mut out) = (Answers::default(), Vec::new());
            let mut expected = Vec::new();
            for (request, kind) in kinds.iter().enumerate() {
                answers.push(Asked {
                    request: request as u32, keep_alive: true, head_only: false, reads_chunks: true, alone: false,
                });
                expected.extend_from_slice(&match kind {
                    0 => format!("<{request}>").into_bytes(),
                    1 => format!("<{request}>3\r\nabc\r\n3\r\nabc\r\n0\r\n\r\n").into_bytes(),
                    _ => [format!("<{request}>").into_bytes(), vec![b'b'; 100_000]].concat(),
                });
            }
            let mut left: Vec<usize> = (0..kinds.len()).collect();
            let mut random = order;
            let mut to_make: Option<(u32, u8)> = None;
            while !answers.is_empty() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let next = if !left.is_empty() && random >> 63 == 0 {
                    let request = left.swap_remove((random >> 32) as usize % left.len());
                    let head = format!("<{request}>").into_bytes();
                    match kinds[request] {
                        0 => answers.answer(request as u32, &mut out, |out, _| { out.extend(head); true }),
                        kind => {
                            let body = if kind == 1 { LongBody::Made(0) } else { LongBody::Bytes(vec![b'b'; 100_000]) };
                            answers.answer_long(request as u32, body, &mut out, |out, _, _| { out.extend(head); true })
                        }
                    }
                } else if let Some((request, made)) = to_make.take() {
                    answers.handle_piece(request, b"abc", (made == 0).then_some(1), &mut out)
                } else {
                    answers.handle_drained(&mut out)
                };
                match next {
                    Next::Wait => {}
                    Next::Make(request, source) => to_make = Some((request, source)),
                    Next::Close => prop_assert!(false, "nobody asked for that"),
                }
            }
            prop_assert!(out == expected);
        }
    }
}
