//! Settlements against engines that fail in every way, on a book in memory and a clock that is moved.

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

#[test]
fn an_engine_that_is_there_pays_once() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let id = world.settle(&alice, 90);
    world.node.shards.take_published();
    world.pass(100);
    let settlement = world.get(&alice, id);
    assert_eq!((settlement.state.as_str(), settlement.attempts), ("confirmed", 1));
    assert!(settlement.ended_ms.is_some() && settlement.last_error.is_none());
    assert_eq!(world.engines.paid(), [90]);
    assert_eq!(world.node.shards.take_published(), "settled:0+0");
    world.pass(HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 1);
}

#[test]
fn whatever_is_wrong_for_an_hour_one_settlement_is_paid() {
    for (mode, state) in [
        (Mode::Down, "pending"),
        (Mode::Broken, "sent"),
        (Mode::AnswerLost, "sent"),
    ] {
        for restarts in [false, true] {
            let mut world = World::new();
            let alice = world.add_with_engine("alice", ENGINE);
            world.pass(1);
            world.engines.set(ENGINE, mode);
            let id = world.settle(&alice, 90);
            for _ in 0..60 {
                world.pass(HOUR_MS / 60);
                if restarts {
                    world = world.restart();
                }
            }
            let settlement = world.get(&alice, id);
            assert_eq!(settlement.state.as_str(), state, "{mode:?}");
            assert_eq!(settlement.last_error.as_deref(), Some("as the test says"));
            // 1 s, 2 s, 4 s and so on, half of it at least.
            let calls = world.engines.take_calls().len();
            assert!((11..=16).contains(&calls), "{mode:?}, {restarts}: {calls} calls");
            assert_eq!(settlement.attempts as usize, calls);
            assert_eq!(world.balance(&alice), -90, "it does not come back by itself");
            let next = world.control().next_attempt(&settlement).expect("it goes on");
            let now = world.control().settling.now().wall;
            assert!(now <= next && next <= now.plus_ms(PAUSE_MS_MAX), "{mode:?}");
            world.engines.set(ENGINE, Mode::Up);
            world.pass(PAUSE_MS_MAX + 1);
            assert_eq!(world.state(&alice, id), "confirmed", "{mode:?}");
            assert_eq!(world.engines.paid(), [90], "{mode:?}");
            assert_eq!(world.control().next_attempt(&world.get(&alice, id)), None);
        }
    }
}

#[test]
fn many_that_wait_for_one_engine_go_out_when_it_is_back() {
    let world = World::new();
    let accounts: Vec<_> = (0..50)
        .map(|number| world.add_with_engine(&format!("account_{number}"), ENGINE))
        .collect();
    world.pass(1);
    world.engines.set(ENGINE, Mode::Broken);
    let ids: Vec<_> = accounts.iter().map(|account| world.settle(account, 7)).collect();
    world.pass(3 * HOUR_MS);
    world.engines.set(ENGINE, Mode::Up);
    // The first that is tried shows that it is back.
    world.pass(HOUR_MS / 4);
    assert_eq!(world.engines.paid(), [7; 50]);
    for (account, id) in accounts.iter().zip(ids) {
        assert_eq!(world.state(account, id), "confirmed");
    }
}

#[test]
fn what_an_engine_refuses_waits_for_the_operator() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    world.engines.set(ENGINE, Mode::Refuses(409));
    let id = world.settle(&alice, 90);
    world.pass(3 * HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 1);
    let failed = world.get(&alice, id);
    assert_eq!((failed.state.as_str(), failed.sent_to.clone()), ("failed", None));
    let error = failed.last_error.as_deref().unwrap();
    assert!(error.contains("409") && error.contains("as the test says"), "{error}");
    assert_eq!(world.control().next_attempt(&failed), None);
    // Over a restart, too.
    let world = world.restart();
    world.pass(HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 0);
    // Once more in vain, and once more.
    assert_eq!(
        world
            .control()
            .retry_settlement(&alice, id, false)
            .unwrap()
            .state
            .as_str(),
        "pending"
    );
    world.pass(HOUR_MS);
    assert_eq!(world.state(&alice, id), "failed");
    world.engines.set(ENGINE, Mode::Up);
    world.control().retry_settlement(&alice, id, false).unwrap();
    world.pass(1);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
    let ended = Err(ControlError::SettlementEnded {
        state: SettlementState::Confirmed,
    });
    assert_eq!(world.control().retry_settlement(&alice, id, false), ended);
    assert_eq!(world.control().cancel_settlement(alice.id, id, true), ended);
    assert_eq!(
        world.control().cancel_settlement(alice.id, Uuid::nil(), true),
        Err(ControlError::SettlementNotFound)
    );
}

#[test]
fn what_no_engine_has_can_be_cancelled() {
    for mode in [Mode::Down, Mode::Refuses(400)] {
        let world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        world.pass(1);
        world.engines.set(ENGINE, mode);
        let id = world.settle(&alice, 90);
        world.pass(HOUR_MS);
        assert_eq!(world.balance(&alice), -90);
        let refused = world.control().delete_account("alice", true);
        assert_eq!(refused, Err(ControlError::SettlementPending));
        world.node.shards.take_published();
        let cancelled = world.control().cancel_settlement(alice.id, id, false).unwrap();
        assert_eq!(cancelled.state.as_str(), "cancelled");
        assert_eq!(world.balance(&alice), 0);
        assert_eq!(world.node.shards.take_published(), "settled:0+90");
        world.engines.set(ENGINE, Mode::Up);
        world.pass(HOUR_MS);
        assert_eq!(world.engines.paid(), [0_u64; 0], "{mode:?}");
    }
}

/// Accounts take turns, so that each has numbers of its own kind: what is kept of one must not depend on which.
#[test]
fn of_settlements_that_have_ended_the_last_thousand_are_kept() {
    let world = World::new();
    let accounts = ["alice", "bob"].map(|username| world.add_with_engine(username, ENGINE));
    world.pass(1);
    let kept = |account: &Account| world.control().settlements(account.id, None, usize::MAX).unwrap();
    const ROUNDS: usize = 4 * ENDED_KEPT;
    let ids: Vec<[Uuid; 2]> = (0..ROUNDS)
        .map(|_| {
            let made = accounts.each_ref().map(|account| world.settle(account, 1));
            while let Ok(job) = world.take_due() {
                world.control().make_call(&*world.engines, &job);
            }
            made
        })
        .collect();
    // One that stays open, however old it gets, and those that have ended before it.
    world.engines.set(ENGINE, Mode::Refuses(400));
    let open = world.settle(&accounts[0], 1);
    world.pass(1);
    for (number, account) in accounts.iter().enumerate() {
        let kept = kept(account);
        let newest_first: Vec<Uuid> = kept.iter().map(|one| Uuid::from_bytes(one.id)).collect();
        let mut expected: Vec<Uuid> = ids.iter().map(|made| made[number]).collect();
        expected.extend((number == 0).then_some(open));
        expected.reverse();
        // Forgetting comes once in 64 on average: not once in 2,000 does not happen.
        assert!(
            (ENDED_KEPT..ENDED_KEPT + 2_000).contains(&kept.len()),
            "{} of account {number}",
            kept.len()
        );
        assert_eq!(newest_first, expected[..kept.len()], "the oldest go");
        assert!(kept.iter().skip(1).all(|one| !one.state.is_open()));
    }
    assert_eq!(world.state(&accounts[0], open), "failed");
    assert_eq!(world.engines.paid().len(), 2 * ROUNDS);
    assert!(world.control().audit().unwrap().adds_up());
}

/// An outcome that nobody knows is not undone by later tries that never arrive, or are refused.
#[test]
fn what_an_engine_may_have_is_cancelled_by_force_only() {
    for (later, state) in [
        (Mode::Broken, "sent"),
        (Mode::Down, "sent"),
        (Mode::Refuses(404), "failed"),
    ] {
        let world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        world.pass(1);
        world.engines.set(ENGINE, Mode::AnswerLost);
        let id = world.settle(&alice, 90);
        world.pass(1);
        world.engines.set(ENGINE, later);
        world.pass(HOUR_MS);
        let world = world.restart();
        assert_eq!(world.state(&alice, id), state, "{later:?}");
        assert_eq!(
            world.control().cancel_settlement(alice.id, id, false),
            Err(ControlError::SettlementSent),
            "{later:?}"
        );
        // The operator says it was not paid. Here it was, and so the money is there twice: it is the operator's word.
        world.control().cancel_settlement(alice.id, id, true).unwrap();
        assert_eq!((world.balance(&alice), world.state(&alice, id)), (0, "cancelled"));
        world.pass(HOUR_MS);
        assert!(world.control().audit().unwrap().adds_up());
    }
}

/// The operator has looked into the ledger before the engine has got to it.
#[test]
fn what_an_engine_is_asked_for_is_not_cancelled_meanwhile() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    let id = world.settle(&alice, 90);
    let job = world.take_due().unwrap();
    let Call::Settle(before) = &job.call else {
        unreachable!()
    };
    let sent = Settlement {
        state: SettlementState::Sent,
        sent_to: Some(SentTo {
            engine: ENGINE.into(),
            since_ms: world.control().settling.now().wall.as_millis(),
        }),
        attempts: 1,
        ..before.clone()
    };
    let control = world.control();
    control
        .bookkeeper
        .apply(vec![Mutation::UpdateSettlement(sent.clone())])
        .unwrap();
    assert_eq!(
        control.cancel_settlement(alice.id, id, true),
        Err(ControlError::SettlementCalled)
    );
    control.settling.change(|queue, now| {
        queue.end(now.monotonic_ms, &job, CallEnd::Failed);
        queue.settled(now.monotonic_ms, before, sent);
    });
    control.cancel_settlement(alice.id, id, true).unwrap();
    world.pass(HOUR_MS);
    assert_eq!((world.balance(&alice), world.engines.paid()), (0, vec![]));
}

/// An engine keeps a key for a day after its last use. If it has paid and nobody has heard of that for so long, another
/// try would pay again.
#[test]
fn what_an_engine_may_have_forgotten_is_not_tried_again() {
    for later in [Mode::Down, Mode::Broken] {
        let mut world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        world.pass(1);
        world.engines.set(ENGINE, Mode::AnswerLost);
        let id = world.settle(&alice, 90);
        world.pass(1);
        world.engines.set(ENGINE, later);
        for _ in 0..26 {
            world.pass(HOUR_MS);
            world = world.restart();
        }
        world.engines.forget_keys();
        world.engines.set(ENGINE, Mode::Up);
        world.pass(2 * HOUR_MS);
        let failed = world.get(&alice, id);
        assert_eq!(failed.state.as_str(), "failed", "{later:?}");
        assert_eq!(failed.sent_to.as_ref().map(|sent_to| &*sent_to.engine), Some(ENGINE));
        let error = failed.last_error.as_deref().unwrap();
        assert!(error.contains("key") && error.contains("as the test says"), "{error}");
        assert_eq!(world.engines.paid(), [90], "{later:?}");
        // Nor does the operator have it paid again without saying so.
        let (control, node) = (world.control(), &world.node);
        assert_eq!(
            control.retry_settlement(&alice, id, false),
            Err(ControlError::SettlementKeyForgotten)
        );
        assert_eq!(
            control.cancel_settlement(alice.id, id, false),
            Err(ControlError::SettlementSent)
        );
        node.shards.take_published();
        let confirmed = control.confirm_settlement(alice.id, id).unwrap();
        assert!(confirmed.state.as_str() == "confirmed" && confirmed.ended_ms.is_some());
        assert_eq!(
            (world.balance(&alice), &*node.shards.take_published()),
            (-90, "settled:0+0")
        );
        // The next one is open to be made.
        let next = world.settle(&alice, 5);
        world.pass(1);
        assert_eq!(world.state(&alice, next), "confirmed");
        assert_eq!(world.engines.paid().iter().sum::<u64>(), 95);
    }
}

/// A clock that was wrong when it was sent says nothing of how long an engine has had it.
#[test]
fn with_a_clock_that_was_set_back_it_is_not_tried_again() {
    const TEN_YEARS_MS: i64 = 87_600 * HOUR_MS as i64;
    const MINUTE_MS: i64 = 60_000;
    for (set_ms, state) in [
        (TEN_YEARS_MS, "failed"),
        (-TEN_YEARS_MS, "failed"),
        (11 * MINUTE_MS, "failed"),
        (9 * MINUTE_MS, "confirmed"),
        (-9 * MINUTE_MS, "confirmed"),
    ] {
        for restarts in [false, true] {
            let mut world = World::new();
            let alice = world.add_with_engine("alice", ENGINE);
            world.pass(1);
            world.control().settling.set_ms.store(set_ms, Ordering::SeqCst);
            world.engines.set(ENGINE, Mode::AnswerLost);
            let id = world.settle(&alice, 90);
            world.pass(1);
            assert_eq!((world.state(&alice, id), world.engines.paid()), ("sent", vec![90]));
            world.control().settling.set_ms.store(0, Ordering::SeqCst);
            if restarts {
                world = world.restart();
            }
            if state == "failed" {
                // The engine is out for as long as it keeps keys.
                world.engines.set(ENGINE, Mode::Down);
                world.pass(26 * HOUR_MS);
                world.engines.forget_keys();
            }
            world.engines.set(ENGINE, Mode::Up);
            world.pass(HOUR_MS + 1);
            assert_eq!(world.engines.paid(), [90], "{set_ms}, {restarts}");
            assert_eq!(world.state(&alice, id), state, "{set_ms}, {restarts}");
        }
    }
}

/// The book is a copy, whose original has paid meanwhile what is not sent in the copy.
#[test]
fn what_the_original_of_a_copy_may_have_paid_is_not_paid_again() {
    for (hours_later, state) in [(1, "confirmed"), (26, "failed")] {
        let mut world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        let bob = world.add("bob", AccountEdit::default());
        world.pass(1);
        world.engines.set(ENGINE, Mode::Down);
        let now_ms = world.control().settling.now().wall.as_millis();
        let made = world.node.book.transfer_at(&transfer_of(alice.id, 90), now_ms).unwrap();
        let id = Uuid::from_bytes(made.id);
        let nobodys = world.settle(&bob, 5);
        // The original pays it under its key.
        let paid = ((ENGINE.to_owned(), id.to_string()), 90);
        world.engines.inner.lock().unwrap().paid.extend([paid]);
        world
            .control()
            .settling
            .ahead_ms
            .fetch_add(hours_later * HOUR_MS, Ordering::SeqCst);
        if hours_later > 24 {
            world.engines.forget_keys();
        }
        world.engines.set(ENGINE, Mode::Up);
        world = world.restart();
        world.control().take_over_copy().unwrap();
        world.control().begin_settling();
        world.pass(HOUR_MS);
        assert_eq!((world.state(&alice, id), world.engines.paid()), (state, vec![90]));
        assert_eq!(world.state(&bob, nobodys), "pending");
        if state == "failed" {
            let control = world.control();
            assert_eq!(
                control.cancel_settlement(alice.id, id, false),
                Err(ControlError::SettlementSent)
            );
            assert!(control.confirm_settlement(alice.id, id).is_ok());
        }
    }
}

/// The operator may have it tried again when its refusal is in the book and the thread that noted it has not said so yet.
#[test]
fn a_retry_that_meets_the_end_of_a_call_is_not_lost() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    let id = world.settle(&alice, 90);
    let job = world.take_due().unwrap();
    let Call::Settle(before) = &job.call else {
        unreachable!()
    };
    let refused = Settlement {
        state: SettlementState::Failed,
        attempts: 1,
        last_error: Some("refused".into()),
        ..before.clone()
    };
    let control = world.control();
    control
        .bookkeeper
        .apply(vec![Mutation::UpdateSettlement(refused.clone())])
        .unwrap();
    control.retry_settlement(&alice, id, false).unwrap();
    control.settling.change(|queue, now| {
        queue.end(now.monotonic_ms, &job, CallEnd::Answered);
        queue.settled(now.monotonic_ms, before, refused);
    });
    world.pass(1_000);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
}

/// What surely never arrived is tried for ever: no engine can have forgotten it.
#[test]
fn what_no_engine_can_have_is_tried_for_days() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    world.engines.set(ENGINE, Mode::Down);
    let id = world.settle(&alice, 90);
    world.pass(24 * 7 * HOUR_MS);
    assert_eq!(world.state(&alice, id), "pending");
    let refused = world.control().confirm_settlement(alice.id, id);
    assert_eq!(refused, Err(ControlError::SettlementNotSent));
    world.engines.set(ENGINE, Mode::Up);
    world.pass(PAUSE_MS_MAX);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
}

/// The operator has looked: it was not paid. It is as if it had never been tried, and goes to whoever settles now.
#[test]
fn with_force_it_is_tried_again_under_the_same_key() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    world.engines.set(ENGINE, Mode::Broken);
    let id = world.settle(&alice, 90);
    world.pass(26 * HOUR_MS);
    assert_eq!(world.state(&alice, id), "failed");
    world.set_engine("alice", OTHER);
    world.pass(1);
    assert_eq!(world.engines.paid(), [0_u64; 0]);
    let again = world
        .control()
        .retry_settlement(&world.account("alice"), id, true)
        .unwrap();
    assert_eq!((again.state.as_str(), again.sent_to), ("pending", None));
    world.pass(1);
    let confirmed = world.get(&alice, id);
    assert_eq!(confirmed.state.as_str(), "confirmed");
    assert_eq!(confirmed.sent_to.map(|sent_to| sent_to.engine), Some(OTHER.into()));
    assert_eq!(world.engines.paid(), [90]);
}

/// Another engine would pay it again.
#[test]
fn what_an_engine_may_have_goes_to_no_other() {
    for (mode, pinned) in [(Mode::AnswerLost, true), (Mode::Down, false)] {
        let world = World::new();
        let alice = world.add_with_engine("alice", ENGINE);
        let uuid = Uuid::from_bytes(alice.uuid);
        world.pass(1);
        assert!(world.engines.knows(ENGINE, uuid));
        world.engines.set(ENGINE, mode);
        let id = world.settle(&alice, 90);
        world.pass(1);
        world.engines.take_calls();
        world.set_engine("alice", OTHER);
        world.pass(HOUR_MS);
        let world = world.restart();
        world.pass(HOUR_MS);
        assert!(world.engines.knows(OTHER, uuid));
        let calls = world.engines.take_calls();
        let target = if pinned { ENGINE } else { OTHER };
        assert!(
            !calls.is_empty() && calls.iter().all(|engine| engine == target),
            "{calls:?}"
        );
        assert_eq!(world.state(&alice, id), if pinned { "sent" } else { "confirmed" });
        // Not before the settlement is over does the first engine hear that the account has left.
        assert!(world.engines.knows(ENGINE, uuid));
        world.engines.set(ENGINE, Mode::Up);
        world.pass(2 * HOUR_MS);
        assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![90]));
        assert!(!world.engines.knows(ENGINE, uuid));
    }
}

#[test]
fn engines_know_the_accounts_that_they_serve() {
    let world = World::new();
    world.engines.set(ENGINE, Mode::Down);
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add("bob", AccountEdit::default());
    let (alice_id, bob_id) = (Uuid::from_bytes(alice.uuid), Uuid::from_bytes(bob.uuid));
    let id = world.settle(&alice, 5);
    world.pass(HOUR_MS);
    assert_eq!(world.engines.take_calls().len(), 0, "it does not know the account yet");
    let standing = world.control().engine_standing(&alice).unwrap();
    assert!(!standing.acknowledged && standing.attempts > 10, "{standing:?}");
    assert_eq!(standing.last_error.as_deref(), Some("as the test says"));
    assert_eq!(world.control().engine_standing(&bob), None);
    let world = world.restart();
    world.engines.set(ENGINE, Mode::Up);
    world.pass(HOUR_MS);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![5]));
    assert!(world.control().engine_standing(&alice).unwrap().acknowledged);
    // The engine of an asset serves those without one of their own.
    let set = |engine: Option<&str>| {
        let edits = [("ABC".into(), engine.map(Box::from))];
        world.control().set_engines(&edits.into()).unwrap();
        world.pass(1);
    };
    set(Some(OTHER));
    assert!(world.engines.knows(OTHER, bob_id) && !world.engines.knows(OTHER, alice_id));
    set(Some(ENGINE));
    assert!(world.engines.knows(ENGINE, bob_id) && !world.engines.knows(OTHER, bob_id));
    set(None);
    assert!(!world.engines.knows(ENGINE, bob_id) && world.engines.knows(ENGINE, alice_id));
    // The end of an account is told, however long that takes.
    world.node.book.credit(alice.id, 5);
    world.engines.set(ENGINE, Mode::Broken);
    world.control().delete_account("alice", false).unwrap();
    world.pass(HOUR_MS);
    let world = world.restart();
    world.engines.set(ENGINE, Mode::Up);
    world.pass(HOUR_MS);
    assert!(!world.engines.knows(ENGINE, alice_id));
    assert_eq!(world.node.book.read_back().engine_tasks, []);
}

#[test]
fn nothing_is_sent_that_is_not_durable_before() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(1);
    let id = world.settle(&alice, 90);
    world.node.book.fail("the disk is full");
    let desk = &world.control().settling;
    let job = desk.queue().take(desk.now().monotonic_ms).expect("it is due");
    world.control().make_call(&*world.engines, &job);
    assert_eq!(world.engines.take_calls().len(), 0);
    assert_eq!(world.state(&alice, id), "pending");
}

fn is_settle(job: &Job) -> bool {
    matches!(job.call, Call::Settle(_))
}

/// The settlement of this account, of which no engine has heard.
fn pending(account: u32) -> Settlement {
    Settlement {
        number: SettlementNumber::new(u64::from(account) + 1),
        id: [0; 16],
        account: AccountId::new(account),
        amount: 1,
        scale: 0,
        state: SettlementState::Pending,
        sent_to: None,
        attempts: 0,
        created_ms: 0,
        last_attempt_ms: None,
        ended_ms: None,
        last_error: None,
    }
}

/// However much waits for an engine that is out costs no more than one thing that does, and nothing new waits for it.
#[test]
fn an_engine_that_is_out_is_asked_about_once_a_second() {
    const WAITING: u32 = 10_000;
    let now = Now {
        wall: Timestamp::from_millis(1_000_000),
        monotonic_ms: 1_000,
    };
    let known: Vec<_> = (0..=WAITING)
        .map(|number| (AccountId::new(number), ENGINE.into()))
        .collect();
    let mut queue = Queue::new(now, 7, Vec::new(), &known, Vec::new());
    for number in 0..WAITING {
        queue.add(now, pending(number), Some(ENGINE.into()));
    }
    let mut now_ms = now.monotonic_ms;
    let mut take = |queue: &mut Queue, until_ms: u64| loop {
        match queue.take(now_ms) {
            Ok(job) => return Some((now_ms, job)),
            Err(wakeup_ms) => now_ms = wakeup_ms.filter(|at_ms| *at_ms <= until_ms)?,
        }
    };
    let about = |job: &Job| match &job.call {
        Call::Settle(settlement) => settlement.clone(),
        Call::Tell { .. } => unreachable!("there is nothing to tell"),
    };
    let minutes = |count: u64| now.monotonic_ms + count * 60_000;
    let mut calls = 0;
    while let Some((now_ms, job)) = take(&mut queue, minutes(10)) {
        calls += 1;
        queue.end(now_ms, &job, CallEnd::Failed);
        queue.settled(now_ms, &about(&job), about(&job));
    }
    assert!((590..620).contains(&calls), "{calls} calls in ten minutes");

    let added = Now {
        wall: now.wall,
        monotonic_ms: minutes(10),
    };
    queue.add(added, pending(WAITING), Some(ENGINE.into()));
    let (back_ms, job) = take(&mut queue, minutes(10) + 1_000).expect("the next call");
    assert_eq!(about(&job).account, AccountId::new(WAITING), "the newest");
    queue.end(back_ms, &job, CallEnd::Answered);
    queue.ended(&about(&job));
    let mut paid = 0;
    while let Some((now_ms, job)) = take(&mut queue, back_ms) {
        queue.end(now_ms, &job, CallEnd::Answered);
        queue.ended(&about(&job));
        paid += 1;
    }
    assert_eq!(paid, WAITING, "all at once");
}

/// Engines that do not answer get few threads, and those that do get theirs.
#[test]
fn no_engine_holds_up_another() {
    let now = Now {
        wall: Timestamp::from_millis(1_000_000),
        monotonic_ms: 1_000,
    };
    let engine = |number: u32| format!("http://engine-{number}.example/");
    // A hundred accounts at each of twenty engines.
    let of = |account: u32| engine(account % 20);
    let known: Vec<_> = (0..2_000)
        .map(|number| (AccountId::new(number), of(number).into_boxed_str()))
        .collect();
    let mut queue = Queue::new(now, 7, Vec::new(), &known, Vec::new());
    for number in 0..2_000 {
        queue.add(now, pending(number), Some(of(number).into()));
    }
    let mut running = Vec::new();
    for _ in 0..CALLS_MAX {
        running.push(queue.take(now.monotonic_ms).expect("there is much to do"));
    }
    assert!(running.iter().all(is_settle));
    let of_one = |running: &[Job], number| running.iter().filter(|job| *job.engine == *engine(number)).count();
    assert!((0..20).all(|number| of_one(&running, number) <= 2));
    // All engines but one hang, and each call ends after 5 s.
    let mut paid = 0;
    let mut now_ms = now.monotonic_ms;
    for _ in 0..100 {
        now_ms += 5_000;
        for job in running.drain(..) {
            let Call::Settle(before) = &job.call else {
                unreachable!()
            };
            let mut settlement = before.clone();
            if *job.engine == *engine(3) {
                queue.end(now_ms, &job, CallEnd::Answered);
                queue.ended(&settlement);
                paid += 1;
            } else {
                queue.end(now_ms, &job, CallEnd::Failed);
                settlement.sent_to = Some(SentTo {
                    engine: (*job.engine).into(),
                    since_ms: now_ms,
                });
                queue.settled(now_ms, before, settlement);
            }
        }
        while running.len() < CALLS_MAX
            && let Ok(job) = queue.take(now_ms)
        {
            running.push(job);
        }
    }
    assert_eq!(paid, 100, "two at a time, as long as there are some");
    assert!(
        running.len() <= CALLS_MAX / 2,
        "{} threads wait for engines",
        running.len()
    );
}

#[test]
fn a_settlement_has_one_call_at_a_time() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    world.pass(0);
    let take = || {
        world
            .control()
            .settling
            .queue()
            .take(world.control().settling.now().monotonic_ms)
    };
    let first = world.settle(&alice, 10);
    let call_of_first = take().unwrap();
    world.control().cancel_settlement(alice.id, first, false).unwrap();
    let second = world.settle(&alice, 20);
    let call_of_second = take().unwrap();
    // Whatever becomes of the call of one that has ended is no concern of the next.
    world.control().make_call(&*world.engines, &call_of_first);
    world.control().retry_settlement(&alice, second, false).unwrap();
    assert_eq!(take(), Err(None));
    world.control().make_call(&*world.engines, &call_of_second);
    let states = world.control().settlements(alice.id, None, 10).unwrap();
    let states: Vec<_> = states
        .iter()
        .map(|one| (one.amount, one.state.as_str(), one.attempts))
        .collect();
    assert_eq!(states, [(20, "confirmed", 1), (10, "cancelled", 0)]);
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

#[test]
fn what_engines_bring_is_credited_once() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add("bob", AccountEdit::default());
    let carol = world.add_with_engine("carol", ENGINE);
    world.node.shards.take_published();
    assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
    assert_eq!(world.node.shards.take_published(), "received:0+15");
    assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
    for (amount, scale) in [("151", 3), ("150", 2)] {
        assert_eq!(
            receive(&world, &alice, "a", amount, scale),
            Err(ControlError::SettlementKeyConflict)
        );
    }
    assert_eq!(
        (world.balance(&alice), world.node.shards.take_published()),
        (15, String::new())
    );
    // What is left over is in the next one; keys are the account's own.
    assert!(receive(&world, &alice, "b", "6", 3).is_ok());
    assert_eq!(world.balance(&alice), 15);
    assert!(receive(&world, &alice, "c", "4", 3).is_ok());
    assert_eq!(world.balance(&alice), 16);
    assert!(receive(&world, &carol, "a", "1", 2).is_ok());
    assert_eq!(world.balance(&carol), 1);
    assert_eq!(
        receive(&world, &alice, "d", "18446744073709551616", 2),
        Err(ControlError::SettlementTooLarge)
    );
    assert!(receive(&world, &alice, "d", "0", 2).is_ok());
    assert_eq!(receive(&world, &bob, "a", "1", 2), Err(ControlError::NoAccountToSettle));
    // Also after a restart, and for two days after the last use.
    let world = world.restart();
    assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
    for passed_hours in [47, 47, 49] {
        world.pass(passed_hours * HOUR_MS);
        world.control().forget_settlement_keys();
        assert_eq!(receive(&world, &alice, "a", "150", 3), Ok("201 150@3".to_owned()));
        let credited = if passed_hours == 49 { 31 } else { 16 };
        assert_eq!(world.balance(&alice), credited, "after {passed_hours} hours");
    }
    assert!(world.control().audit().unwrap().adds_up());
}

/// The time of day is wrong, for a while: nothing is credited a second time for that.
#[test]
fn no_clock_that_jumps_makes_a_key_forgotten() {
    const TEN_YEARS_MS: i64 = 87_600 * HOUR_MS as i64;
    for wrong_ms in [TEN_YEARS_MS, -TEN_YEARS_MS] {
        for restarts in [false, true] {
            // The clock is wrong when the key comes first, when it comes again, when keys are forgotten.
            for wrong_at in 0..3 {
                let mut world = World::new();
                let alice = world.add_with_engine("alice", ENGINE);
                let at = format!("{wrong_ms}, {restarts}, {wrong_at}");
                let set = |world: &World, step| {
                    let set_ms = if step == wrong_at { wrong_ms } else { 0 };
                    world.control().settling.set_ms.store(set_ms, Ordering::SeqCst);
                };
                if !restarts {
                    world.pass(100 * HOUR_MS);
                }
                set(&world, 0);
                receive(&world, &alice, "a", "1", 2).unwrap();
                set(&world, 1);
                receive(&world, &alice, "a", "1", 2).unwrap();
                set(&world, 2);
                if restarts {
                    world = world.restart();
                    set(&world, 2);
                }
                world.control().forget_settlement_keys();
                set(&world, 3);
                world.pass(47 * HOUR_MS);
                world.control().forget_settlement_keys();
                receive(&world, &alice, "a", "1", 2).unwrap();
                assert_eq!(world.balance(&alice), 1, "{at}");
            }
        }
    }
}

/// What is kept for an engine's sake is bounded: beyond it the engine is told to come back, and nothing is credited.
#[test]
fn more_keys_than_are_kept_are_refused_until_the_oldest_is_a_day_old() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add_with_engine("bob", ENGINE);
    for number in 0..crate::store::SETTLEMENT_KEYS_MAX {
        assert!(receive(&world, &alice, &number.to_string(), "1", 2).is_ok());
    }
    let full = world.balance(&alice);
    let refused = receive(&world, &alice, "one more", "1", 2);
    assert!(matches!(refused, Err(ControlError::NotReady { .. })), "{refused:?}");
    assert_eq!(world.balance(&alice), full);
    assert!(receive(&world, &alice, "0", "1", 2).is_ok(), "it is answered as before");
    assert!(
        receive(&world, &bob, "one more", "1", 2).is_ok(),
        "others do not notice"
    );
    assert_eq!((world.balance(&alice), world.balance(&bob)), (full, 1));
    world.pass(24 * HOUR_MS + 1);
    assert!(receive(&world, &alice, "0", "1", 2).is_ok());
    assert_eq!(
        world.balance(&alice),
        full,
        "what was used lately is not what makes room"
    );
    assert!(receive(&world, &alice, "one more", "1", 2).is_ok());
    assert_eq!(world.balance(&alice), full + 1);
    assert!(receive(&world, &alice, "0", "1", 2).is_ok());
    assert_eq!(world.balance(&alice), full + 1);
}

/// Engines that are out are to be told that they settle no more; of these only so many are remembered for one account.
#[test]
fn an_account_does_not_collect_engines_without_end() {
    let world = World::new();
    let name = |number: usize| format!("http://engine-{number}.example/");
    let change = |engine: &str| {
        let edit = AccountEdit {
            settlement_engine_url: Edit::Set(engine.into()),
            ..AccountEdit::default()
        };
        world.control().update_account("alice", edit)
    };
    world.engines.set(&name(0), Mode::Down);
    let alice = world.add_with_engine("alice", &name(0));
    let max = crate::store::ENGINES_OF_ACCOUNT_MAX;
    for number in 1..max {
        world.engines.set(&name(number), Mode::Down);
        assert!(change(&name(number)).is_ok(), "{number}");
    }
    let refused = change(ENGINE).map(|_| ());
    assert!(matches!(refused, Err(ControlError::NotReady { .. })), "{refused:?}");
    // It has the engine that it had, and goes on with it.
    let engine = || {
        world
            .control()
            .engine_of(&world.control().find_account("alice").unwrap())
    };
    assert_eq!(engine().as_deref(), Some(&*name(max - 1)));
    let id = world.settle(&alice, 5);
    for number in 0..max {
        world.engines.set(&name(number), Mode::Up);
    }
    world.pass(HOUR_MS + 1);
    assert_eq!((world.state(&alice, id), world.engines.paid()), ("confirmed", vec![5]));
    assert!(change(ENGINE).is_ok());
    world.pass(1);
    assert!(world.engines.knows(ENGINE, Uuid::from_bytes(alice.uuid)));
    assert_eq!(world.node.book.read_back().engine_tasks, []);
}

/// An engine that hears of an error may bring the money again under another key.
#[test]
fn what_was_credited_is_said_again_whatever_has_become_of_the_node() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let known = Ok("201 150@3".to_owned());
    assert_eq!(receive(&world, &alice, "a", "150", 3), known);
    let no_engine = AccountEdit {
        settlement_engine_url: Edit::Clear,
        ..AccountEdit::default()
    };
    world.control().update_account("alice", no_engine).unwrap();
    assert_eq!(receive(&world, &alice, "a", "150", 3), known);
    assert_eq!(
        receive(&world, &alice, "b", "150", 3),
        Err(ControlError::NoAccountToSettle)
    );
    world.set_engine("alice", ENGINE);
    for readiness in [Readiness::Starting, Readiness::Stopping] {
        world.control().set_readiness(readiness);
        assert_eq!(receive(&world, &alice, "a", "150", 3), known, "{readiness:?}");
        assert!(
            matches!(
                receive(&world, &alice, "b", "150", 3),
                Err(ControlError::NotReady { .. })
            ),
            "{readiness:?}"
        );
    }
    assert_eq!(world.balance(&alice), 15);
}

#[test]
fn the_same_settlement_at_the_same_time_is_credited_once() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    std::thread::scope(|scope| {
        let ask = || receive(&world, &alice, "a", "150", 3);
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        for asked in asking {
            assert_eq!(asked.join().unwrap(), Ok("201 150@3".to_owned()));
        }
    });
    assert_eq!(world.balance(&alice), 15);
}

#[test]
fn messages_of_peers_reach_their_engine() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let bob = world.add("bob", AccountEdit::default());
    let ask = |account: &Account| {
        let (sender, answer) = channel();
        let respond = Box::new(move |answer| sender.send(answer).unwrap());
        world
            .control()
            .take_peer_message(account.id, b"hello".to_vec(), respond);
        answer
    };
    let code = |answer| match answer {
        PeerAnswer::Reject { code, .. } => Some(code),
        PeerAnswer::Fulfill { .. } => None,
    };
    assert_eq!(code(ask(&bob).recv().unwrap()), Some(ErrorCode::F02_UNREACHABLE));
    // More than wait are told to come back: nobody answers them.
    let waiting: Vec<_> = (0..70).map(|_| ask(&alice)).collect();
    assert_eq!(
        waiting
            .iter()
            .filter(|answer| answer.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected))
            .count(),
        6
    );
    std::thread::scope(|scope| {
        for _ in 0..messages::THREADS {
            scope.spawn(|| world.control().hand_over_messages(&*world.engines));
        }
        for answer in &waiting[..64] {
            let data = b"re: hello".to_vec();
            assert_eq!(answer.recv(), Ok(PeerAnswer::Fulfill { data }));
        }
        for (mode, expected) in [
            (Mode::Refuses(404), ErrorCode::F00_BAD_REQUEST),
            (Mode::Broken, ErrorCode::T00_INTERNAL_ERROR),
            (Mode::Down, ErrorCode::T00_INTERNAL_ERROR),
        ] {
            world.engines.set(ENGINE, mode);
            assert_eq!(code(ask(&alice).recv().unwrap()), Some(expected), "{mode:?}");
        }
        world.control().settling.messages.stop();
    });
}

#[test]
fn messages_of_engines_reach_the_peer() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    let send = |message: &[u8]| {
        let (sender, answer) = channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        world.control().send_engine_message(alice.id, message, done);
        answer.recv().unwrap()
    };
    assert_eq!(send(b"hello"), Err(MessageError::NoAnswer));
    world.node.shards.set_neighbour(|_, prepare, done| {
        let prepare = Prepare::parse(prepare).expect("a Prepare");
        assert_eq!((prepare.amount(), prepare.destination()), (0, SETTLE_DESTINATION));
        let mut reply = Vec::new();
        match prepare.data() {
            b"refuse" => RejectBuilder {
                code: ErrorCode::F00_BAD_REQUEST,
                triggered_by: "peer.settle",
                message: "not that\n",
                data: b"",
            }
            .encode(&mut reply),
            data => encode_fulfill(&mut reply, &PEER_FULFILLMENT, &[b"re: ", data].concat()),
        }
        done(Some(reply));
    });
    assert_eq!(send(b"hello"), Ok(b"re: hello".to_vec()));
    assert_eq!(
        send(&[7; MESSAGE_BYTES_MAX - 4]).map(|reply| reply.len()),
        Ok(MESSAGE_BYTES_MAX)
    );
    let refused = send(b"refuse").unwrap_err().to_string();
    assert_eq!(refused, "the peer answered F00: not that");
}

#[test]
fn what_waits_long_enough_is_settled() {
    let world = World::new();
    let ruled = |username: &str, threshold: i64, to: i64| {
        let edit = AccountEdit {
            settle_threshold: Edit::Set(threshold),
            settle_to: Edit::Set(to),
            settlement_engine_url: Edit::Set(ENGINE.into()),
            ..AccountEdit::default()
        };
        world.add(username, edit)
    };
    let alice = ruled("alice", 100, 10);
    let ahead = ruled("ahead", 100, -10);
    let bob = world.add_with_engine("bob", ENGINE);
    let settled = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&settled);
    world.node.shards.set_settler(move |account| {
        noted.lock().unwrap().push(account.get());
        SettleNow::Made { amount: 1 }
    });
    let mut timers = Timers::default();
    let mut look = |ms: u64, expected: &[u32]| {
        world.control().settling.ahead_ms.fetch_add(ms, Ordering::SeqCst);
        timers.look(world.control(), 60_000);
        assert_eq!(std::mem::take(&mut *settled.lock().unwrap()), expected);
    };
    world.node.book.credit(alice.id, 11);
    world.node.book.credit(bob.id, 99);
    look(0, &[]);
    look(50_000, &[]);
    // Back at what it settles to, and above it again: the time begins anew.
    world.node.book.credit(alice.id, -1);
    look(1_000, &[]);
    world.node.book.credit(alice.id, 1);
    look(50_000, &[]);
    look(50_000, &[]);
    look(10_000, &[alice.id.get()]);
    look(10_000, &[]);
    // What is paid ahead is not paid by the timer alone.
    look(120_000, &[alice.id.get()]);
    world.node.book.credit(ahead.id, 1);
    look(0, &[]);
    look(60_000, &[alice.id.get(), ahead.id.get()]);
    world.node.book.credit(ahead.id, -1);
    look(60_000, &[]);
    look(60_000, &[alice.id.get()]);
    // Of what the peer has brought, the shard knows how much is prepaid.
    receive(&world, &bob, "x", "1", 2).unwrap();
    receive(&world, &ahead, "x", "50", 2).unwrap();
    look(0, &[]);
    look(120_000, &[alice.id.get(), ahead.id.get()]);
    // Without a rule there is nothing to look at.
    let edit = AccountEdit {
        settle_to: Edit::Clear,
        ..AccountEdit::default()
    };
    world.control().update_account("alice", edit).unwrap();
    look(120_000, &[]);
    assert_eq!(world.control().settling.ruled().len(), 1);
}

#[test]
fn settling_now_says_what_came_of_it() {
    let world = World::new();
    let alice = world.add_with_engine("alice", ENGINE);
    assert_eq!(world.control().settle_now(&alice), Err(ControlError::NothingToSettle));
    let book = Arc::clone(&world.node.book);
    world.node.shards.set_settler(move |account| {
        book.transfer(&transfer_of(account, 33));
        SettleNow::Made { amount: 33 }
    });
    let made = world.control().settle_now(&alice).unwrap();
    assert_eq!((made.amount, made.state.as_str()), (33, "pending"));
    assert_eq!(
        world.control().settlements(alice.id, None, 10).unwrap(),
        std::slice::from_ref(&made)
    );
    for (said, error) in [
        (SettleNow::NoRule, ControlError::NoSettlementRule),
        (SettleNow::NoEngine, ControlError::NoSettlementEngine),
        (SettleNow::Open, ControlError::SettlementPending),
    ] {
        world.node.shards.set_settler(move |_| said);
        assert_eq!(world.control().settle_now(&alice), Err(error));
    }
    let id = Uuid::from_bytes(made.id);
    assert_eq!(world.control().settlements(alice.id, Some(id), 10).unwrap(), []);
}
