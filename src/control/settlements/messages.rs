//! What settlement engines tell each other, handed on as it is (protocols.md 11.7).
//!
//! Owns both ways: from our engine to the peer's, as a request to `peer.settle` over the account's link, and from the peer
//! to our engine, on threads of its own, so that an engine that takes its time delays nobody but its own peers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use url::Url;
use uuid::Uuid;

use crate::client::engine::{EngineAnswer, TRY_MAX};
use crate::ledger::account::{Account, AccountId};
use crate::shard::control::PeerAnswer;
use crate::wire::packet::{DATA_BYTES_MAX, ErrorCode, Reply};
use crate::wire::peer::{SETTLE_DESTINATION, encode_request_until};

use super::super::Control;
use super::Engines;

/// What a message to a peer's engine may have: it is the data of one packet.
pub const MESSAGE_BYTES_MAX: usize = DATA_BYTES_MAX;
/// How long a peer may take for the answer of its engine.
const PEER_MS_MAX: u64 = 30_000;
/// Messages of peers that are handed over at a time, and of these to one engine.
pub const THREADS: usize = 4;
const PER_ENGINE_MAX: usize = 2;
/// Messages that wait for a thread, each of 32 KiB at most, and of these for one engine. Beyond, a peer is told to come
/// back.
const WAITING_MAX: usize = 256;
const WAITING_PER_ENGINE_MAX: usize = 64;

/// Why a message has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    #[error("the peer cannot be reached, or did not answer within {} s", PEER_MS_MAX / 1_000)]
    NoAnswer,
    #[error("the peer answered {code}: {message}")]
    Rejected { code: ErrorCode, message: String },
}

/// Told what the peer's engine answered. Called on a shard's thread, so it must not wait.
pub type MessageDone = Box<dyn FnOnce(Result<Vec<u8>, MessageError>) + Send>;

/// A message of a peer for our engine.
struct Waiting {
    engine: Arc<str>,
    account: Uuid,
    data: Vec<u8>,
    respond: Box<dyn FnOnce(PeerAnswer) + Send>,
}

#[derive(Default)]
pub(super) struct Messages {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    running: HashMap<Arc<str>, usize>,
    stopping: bool,
}

impl State {
    /// The oldest whose engine has room.
    fn take(&mut self) -> Option<Waiting> {
        let has_room = |one: &Waiting| {
            self.running
                .get(&one.engine)
                .is_none_or(|count| *count < PER_ENGINE_MAX)
        };
        let place = self.waiting.iter().position(has_room)?;
        let taken = self.waiting.remove(place)?;
        *self.running.entry(Arc::clone(&taken.engine)).or_default() += 1;
        Some(taken)
    }
}

impl Messages {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    pub(super) fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_all();
    }

    /// Waits for a message; `None`: the node stops.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.state();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(taken) = state.take() {
                return Some(taken);
            }
            state = self.changed.wait(state).expect("nobody panics while holding it");
        }
    }

    fn done(&self, engine: &Arc<str>) {
        let mut state = self.state();
        if let Some(count) = state.running.get_mut(engine) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(engine);
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl Control {
    /// Hands a message of our engine to the peer's.
    ///
    /// # Panics
    /// If it has more than [`MESSAGE_BYTES_MAX`].
    pub fn send_engine_message(&self, account: AccountId, message: &[u8], done: MessageDone) {
        let expires_at = self.settling.now().wall.plus_ms(PEER_MS_MAX);
        let mut prepare = Vec::new();
        encode_request_until(&mut prepare, expires_at, SETTLE_DESTINATION, message);
        let answered = move |reply: Option<Vec<u8>>| {
            done(match reply.as_deref().map(Reply::parse) {
                Some(Ok(Reply::Fulfill(fulfill))) => Ok(fulfill.data().to_vec()),
                Some(Ok(Reply::Reject(reject))) => Err(MessageError::Rejected {
                    code: reject.code(),
                    message: shown(reject.message()),
                }),
                Some(Err(_)) | None => Err(MessageError::NoAnswer),
            });
        };
        self.shards.ask(account, prepare, Box::new(answered));
    }

    /// A peer has a message for the engine of its account. Waits for nobody: it is answered here if there is no engine,
    /// later if there is, and with a request to come back, by dropping `respond`, if too many wait.
    pub(in crate::control) fn take_peer_message(
        &self,
        from: AccountId,
        data: Vec<u8>,
        respond: Box<dyn FnOnce(PeerAnswer) + Send>,
    ) {
        let account: Option<Arc<Account>> = self.read().directory.get(from).cloned();
        let engine = account.as_ref().and_then(|account| self.engine_of(account));
        let (Some(account), Some(engine)) = (account, engine) else {
            return respond(PeerAnswer::Reject {
                code: ErrorCode::F02_UNREACHABLE,
                message: "no settlement engine serves this account".into(),
            });
        };
        let messages = &self.settling.messages;
        let mut state = messages.state();
        let of_engine = state.waiting.iter().filter(|one| one.engine == engine).count();
        if state.waiting.len() >= WAITING_MAX || of_engine >= WAITING_PER_ENGINE_MAX || state.stopping {
            drop(state);
            return drop(respond);
        }
        state.waiting.push_back(Waiting {
            engine,
            account: Uuid::from_bytes(account.uuid),
            data,
            respond,
        });
        drop(state);
        messages.changed.notify_one();
    }

    /// Hands over messages of peers until the node stops.
    pub(super) fn hand_over_messages(&self, engines: &dyn Engines) {
        let messages = &self.settling.messages;
        while let Some(waiting) = messages.next() {
            let Waiting {
                engine,
                account,
                data,
                respond,
            } = waiting;
            respond(hand_over(engines, &engine, account, &data));
            messages.done(&engine);
        }
    }
}

fn hand_over(engines: &dyn Engines, engine: &str, account: Uuid, data: &[u8]) -> PeerAnswer {
    let reject = |code, message: String| PeerAnswer::Reject {
        code,
        message: message.into(),
    };
    let Ok(url) = Url::parse(engine) else {
        return reject(
            ErrorCode::T00_INTERNAL_ERROR,
            "the settlement engine cannot be reached".to_owned(),
        );
    };
    // A peer that asks again gets an answer of its own.
    let key = Uuid::new_v4().to_string();
    match engines.message(&url, account, data, &key, TRY_MAX) {
        EngineAnswer::Accepted(data) => PeerAnswer::Fulfill { data },
        EngineAnswer::Refused { status, detail } => {
            tracing::warn!(target: "settlements", engine, %account, status, detail, "the engine refuses a message of its peer");
            reject(
                ErrorCode::F00_BAD_REQUEST,
                format!("the settlement engine answered {status}"),
            )
        }
        EngineAnswer::Unknown { error } | EngineAnswer::NotSent { error } => {
            tracing::warn!(target: "settlements", engine, %account, error, "the engine does not take a message of its peer");
            reject(
                ErrorCode::T00_INTERNAL_ERROR,
                "the settlement engine did not answer".to_owned(),
            )
        }
    }
}

/// What a stranger says, as far as a line has room for it.
fn shown(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}
