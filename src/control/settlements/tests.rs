//! Settlements against engines that fail in every way, on a book in memory and a clock that is moved.

mod accounts;
mod incoming;
mod messages;
mod operator;
mod outbox;
mod queue;
mod timer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::mpsc::channel;

use num_bigint::BigUint;

use super::super::Readiness;
use super::super::edit::{AccountEdit, Edit};
use super::super::fake::Node;
use super::queue::{CALLS_MAX, Call, CallEnd, Job, PAUSE_MS_MAX};
use super::timer::Timers;
use super::*;
use crate::ledger::settlement::SettlementNumber;
use crate::pipeline::settling::transfer_of;
use crate::shard::control::PeerAnswer;
use crate::wire::packet::{ErrorCode, PEER_FULFILLMENT, Prepare, RejectBuilder, encode_fulfill};
use crate::wire::peer::SETTLE_DESTINATION;
use crate::wire::timestamp::Timestamp;

const ENGINE: &str = "http://engine.example/";
const OTHER: &str = "http://other.example/";
const HOUR_MS: u64 = 3_600_000;

/// What an engine does with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Up,
    /// Nobody listens.
    Down,
    /// It does not do it, and nobody learns that: it hangs, breaks, answers 500 or garbage.
    Broken,
    /// It does it, and nobody learns that.
    AnswerLost,
    Refuses(u16),
}

#[derive(Default)]
struct FakeEngines {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    modes: BTreeMap<String, Mode>,
    accounts: BTreeSet<(String, Uuid)>,
    /// What each engine has paid, by key.
    paid: BTreeMap<(String, String), u64>,
    /// Calls to settle.
    calls: Vec<String>,
}

impl FakeEngines {
    fn set(&self, engine: &str, mode: Mode) {
        self.inner.lock().unwrap().modes.insert(engine.to_owned(), mode);
    }

    fn paid(&self) -> Vec<u64> {
        self.inner.lock().unwrap().paid.values().copied().collect()
    }

    /// Whoever asks with one of these keys is somebody new.
    fn forget_keys(&self) {
        let mut inner = self.inner.lock().unwrap();
        let paid = std::mem::take(&mut inner.paid);
        let forgotten = paid
            .into_iter()
            .map(|((engine, key), amount)| ((engine, format!("forgotten {key}")), amount));
        inner.paid = forgotten.collect();
    }

    fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().unwrap().calls)
    }

    fn knows(&self, engine: &str, account: Uuid) -> bool {
        let inner = self.inner.lock().unwrap();
        inner.accounts.contains(&(engine.to_owned(), account))
    }

    fn answer(&self, engine: &Url, act: impl FnOnce(&mut Inner, &str) -> Result<(), u16>) -> EngineAnswer {
        let mut inner = self.inner.lock().unwrap();
        let error = || "as the test says".to_owned();
        match inner.modes.get(engine.as_str()).copied().unwrap_or(Mode::Up) {
            Mode::Down => EngineAnswer::NotSent { error: error() },
            Mode::Broken => EngineAnswer::Unknown { error: error() },
            Mode::Refuses(status) => EngineAnswer::Refused {
                status,
                detail: error(),
            },
            mode => match act(&mut inner, engine.as_str()) {
                Err(status) => EngineAnswer::Refused {
                    status,
                    detail: error(),
                },
                Ok(()) if mode == Mode::AnswerLost => EngineAnswer::Unknown { error: error() },
                Ok(()) => EngineAnswer::Accepted(Vec::new()),
            },
        }
    }
}

/// Accounts are refused by none of these engines.
impl FakeEngines {
    fn tell(&self, engine: &Url, act: impl FnOnce(&mut Inner, &str) -> Result<(), u16>) -> EngineAnswer {
        let mode = self.inner.lock().unwrap().modes.get(engine.as_str()).copied();
        if !matches!(mode, Some(Mode::Refuses(_))) {
            return self.answer(engine, act);
        }
        let _ = act(&mut self.inner.lock().unwrap(), engine.as_str());
        EngineAnswer::Accepted(Vec::new())
    }
}

impl Engines for FakeEngines {
    fn create_account(&self, engine: &Url, account: Uuid, _key: &str) -> EngineAnswer {
        self.tell(engine, |inner, engine| {
            inner.accounts.insert((engine.to_owned(), account));
            Ok(())
        })
    }

    fn delete_account(&self, engine: &Url, account: Uuid, _key: &str) -> EngineAnswer {
        self.tell(engine, |inner, engine| {
            inner.accounts.remove(&(engine.to_owned(), account));
            Ok(())
        })
    }

    fn settle(&self, engine: &Url, account: Uuid, amount: u64, _scale: u8, key: &str) -> EngineAnswer {
        self.inner.lock().unwrap().calls.push(engine.to_string());
        self.answer(engine, |inner, engine| {
            if !inner.accounts.contains(&(engine.to_owned(), account)) {
                return Err(404);
            }
            let paid = inner.paid.entry((engine.to_owned(), key.to_owned())).or_insert(amount);
            assert_eq!(*paid, amount, "a key has one amount");
            Ok(())
        })
    }

    fn message(&self, engine: &Url, _account: Uuid, message: &[u8], _key: &str, _limit: Duration) -> EngineAnswer {
        match self.answer(engine, |_, _| Ok(())) {
            EngineAnswer::Accepted(_) => EngineAnswer::Accepted([b"re: ", message].concat()),
            other => other,
        }
    }
}

struct World {
    node: Node,
    engines: Arc<FakeEngines>,
}

impl World {
    fn new() -> Self {
        Self {
            node: Node::new("example.hub"),
            engines: Arc::default(),
        }
    }

    /// The process ends, and another one is started on its book.
    fn restart(self) -> Self {
        let book = Arc::clone(&self.node.book);
        let ahead_ms = self.node.control.settling.ahead_ms.load(Ordering::SeqCst);
        let node = Node::start("example.hub", book);
        let desk = &node.control.settling;
        desk.ahead_ms.store(ahead_ms, Ordering::SeqCst);
        // Read back at the time that the test has got to.
        let book = node.book.read_back();
        *desk.queue() = Queue::new(desk.now(), 7, book.open_settlements, &book.announced, book.engine_tasks);
        node.control.begin_settling();
        Self {
            node,
            engines: self.engines,
        }
    }

    fn control(&self) -> &Control {
        &self.node.control
    }

    fn add(&self, username: &str, edit: AccountEdit) -> Arc<Account> {
        let edit = AccountEdit {
            asset_code: Some("ABC".into()),
            asset_scale: Some(2),
            ..edit
        };
        let created = self.control().create_account(Timestamp::default(), username, edit);
        created.expect("a new account").account
    }

    fn add_with_engine(&self, username: &str, engine: &str) -> Arc<Account> {
        self.add(
            username,
            AccountEdit {
                settlement_engine_url: Edit::Set(engine.into()),
                ..AccountEdit::default()
            },
        )
    }

    fn set_engine(&self, username: &str, engine: &str) {
        let edit = AccountEdit {
            settlement_engine_url: Edit::Set(engine.into()),
            ..AccountEdit::default()
        };
        self.control().update_account(username, edit).expect("a change");
    }

    fn account(&self, username: &str) -> Arc<Account> {
        self.control().find_account(username).expect("it was made")
    }

    /// So much leaves the balance of an account, as its shard would have it.
    fn settle(&self, account: &Account, amount: u64) -> Uuid {
        let made = self.node.book.transfer(&transfer_of(account.id, amount));
        let made = made.expect("a settlement");
        let id = Uuid::from_bytes(made.id);
        self.control().settlement_made(made);
        id
    }

    /// The next call that is due now.
    fn take_due(&self) -> Result<Job, Option<u64>> {
        let desk = &self.control().settling;
        let now_ms = desk.now().monotonic_ms;
        desk.queue().take(now_ms)
    }

    /// All that is due in so much time.
    fn pass(&self, ms: u64) {
        let desk = &self.control().settling;
        let end_ms = desk.now().monotonic_ms + ms;
        loop {
            let now_ms = desk.now().monotonic_ms;
            let taken = desk.queue().take(now_ms);
            match taken {
                Ok(job) => self.control().make_call(&*self.engines, &job),
                Err(Some(at_ms)) if at_ms <= end_ms => {
                    desk.ahead_ms.fetch_add(at_ms.saturating_sub(now_ms), Ordering::SeqCst);
                }
                Err(_) => {
                    let left_ms = end_ms.saturating_sub(now_ms);
                    desk.ahead_ms.fetch_add(left_ms, Ordering::SeqCst);
                    break;
                }
            }
        }
        assert!(self.control().audit().unwrap().adds_up());
    }

    fn get(&self, account: &Account, id: Uuid) -> Settlement {
        self.control().settlement(account.id, id).unwrap()
    }

    fn state(&self, account: &Account, id: Uuid) -> &'static str {
        self.get(account, id).state.as_str()
    }

    fn balance(&self, account: &Account) -> i128 {
        self.control().bookkeeper.booked(account.id).unwrap()
    }
}

fn receive(world: &World, account: &Account, key: &str, amount: &str, scale: u8) -> Result<String, ControlError> {
    let amount: BigUint = amount.parse().unwrap();
    let answer = format!("{amount}@{scale}");
    let incoming = Incoming {
        key,
        amount: &amount,
        scale,
        status: 201,
        answer: answer.as_bytes(),
    };
    let (status, body) = world.control().receive_settlement(account.id, &incoming)?;
    Ok(format!("{status} {}", String::from_utf8_lossy(&body)))
}

/// What a call to settle is about.
fn settlement_of(job: &Job) -> Settlement {
    match &job.call {
        Call::Settle(settlement) => settlement.clone(),
        Call::Tell { .. } => unreachable!("it tells of an account"),
    }
}
