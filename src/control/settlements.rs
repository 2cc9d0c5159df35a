//! Settlements and the engines that make them: what leaves the book is paid, what engines bring is credited, engines know
//! the accounts that they serve, and messages go between them.
//!
//! Owns what happens to a settlement from its record on, and everything that is asked of engines and by them. [`queue`] says
//! what is to be said to which engine and when, [`outbox`] says it, [`incoming`] credits what engines bring, [`messages`]
//! carries what engines tell each other, [`timer`] settles what has waited for long enough. Leaves when a balance settles
//! to the shards, what is kept to the store, and HTTP to [`crate::client::engine`] and `api`.
//!
//! # Threads
//! [`queue::CALLS_MAX`] call engines, a few hand over messages, one hears of new settlements and keeps time. No packet and
//! no shard waits for any of them.
//!
//! # What always holds
//! - A settlement is durably noted as sent before a byte of it leaves, and has one key for ever; so whatever breaks, and
//!   whenever, it is paid once.
//! - It returns to the balance only if surely no engine has it, or if the operator says so.
//! - It is not tried again once an engine may have paid it and forgotten its key.
//! - What an engine brings is credited in the same commit that remembers its key.

mod incoming;
mod messages;
mod outbox;
mod queue;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam::channel::Receiver;
use url::Url;
use uuid::Uuid;

use crate::client::engine::{EngineAnswer, EngineClient};
use crate::ledger::account::{Account, AccountId};
use crate::ledger::settlement::{ENGINE_KEY_KEPT_MS, SentTo, Settlement, SettlementState};
use crate::pipeline::Now;
use crate::shard::clock::Clock;
use crate::shard::control::{Change, SettleNow, SettleOrder};
use crate::store::{Book, EngineTask, Mutation, StoreError};
use crate::wire::timestamp::Timestamp;

use super::engines::{Engines as EngineMap, engine_in};
use super::{Control, ControlError};

pub use incoming::Incoming;
use incoming::KeysUsed;
use messages::Messages;
pub use messages::{MESSAGE_BYTES_MAX, MessageError};
use queue::Queue;

/// Engines, as this module asks them. One try per call, which may block for as long as that takes.
pub trait Engines: Send + Sync {
    fn create_account(&self, engine: &Url, account: Uuid, key: &str) -> EngineAnswer;
    fn delete_account(&self, engine: &Url, account: Uuid, key: &str) -> EngineAnswer;
    fn settle(&self, engine: &Url, account: Uuid, amount: u64, scale: u8, key: &str) -> EngineAnswer;
    fn message(&self, engine: &Url, account: Uuid, message: &[u8], key: &str, limit: Duration) -> EngineAnswer;
}

impl Engines for EngineClient {
    fn create_account(&self, engine: &Url, account: Uuid, key: &str) -> EngineAnswer {
        self.create_account(engine, account, key)
    }

    fn delete_account(&self, engine: &Url, account: Uuid, key: &str) -> EngineAnswer {
        self.delete_account(engine, account, key)
    }

    fn settle(&self, engine: &Url, account: Uuid, amount: u64, scale: u8, key: &str) -> EngineAnswer {
        self.settle(engine, account, amount, scale, key)
    }

    fn message(&self, engine: &Url, account: Uuid, message: &[u8], key: &str, limit: Duration) -> EngineAnswer {
        self.message(engine, account, message, key, limit)
    }
}

/// What is known of settlements and engines in memory, and what threads wait for. Part of [`Control`].
pub(super) struct Desk {
    queue: Mutex<Queue>,
    /// Something may have become due, or nothing ever will again.
    changed: Condvar,
    stopping: AtomicBool,
    clock: Clock,
    /// For how long engines know a key, in milliseconds.
    engine_key_kept_ms: AtomicU64,
    /// Accounts that say what they settle to and when.
    ruled: Mutex<BTreeSet<AccountId>>,
    messages: Messages,
    /// When engines have used the keys of what they brought.
    keys_used: Mutex<KeysUsed>,
    /// How far a test has moved the clock.
    #[cfg(test)]
    ahead_ms: AtomicU64,
    /// How far a test has set the time of day besides: ahead, or back.
    #[cfg(test)]
    set_ms: std::sync::atomic::AtomicI64,
}

impl Desk {
    /// On what the book says. Who settles for whom is told with [`Control::begin_settling`].
    pub(super) fn new(book: &mut Book) -> Self {
        let clock = Clock::start();
        let has_rule = |account: &Account| account.settlement.threshold.is_some() && account.settlement.to.is_some();
        let ruled = book.accounts.iter().map(|(account, _)| account);
        let ruled = ruled.filter(|account| has_rule(account)).map(|account| account.id);
        Self {
            ruled: Mutex::new(ruled.collect()),
            queue: Mutex::new(Queue::new(
                clock.now(),
                u64::from_be_bytes(random()),
                std::mem::take(&mut book.open_settlements),
                &std::mem::take(&mut book.announced),
                std::mem::take(&mut book.engine_tasks),
            )),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            clock,
            engine_key_kept_ms: AtomicU64::new(ENGINE_KEY_KEPT_MS),
            messages: Messages::default(),
            keys_used: Mutex::default(),
            #[cfg(test)]
            ahead_ms: Default::default(),
            #[cfg(test)]
            set_ms: Default::default(),
        }
    }

    fn now(&self) -> Now {
        #[cfg_attr(not(test), expect(unused_mut, reason = "only tests move the clock"))]
        let mut now = self.clock.now();
        #[cfg(test)]
        {
            let ahead_ms = self.ahead_ms.load(Ordering::SeqCst);
            (now.wall, now.monotonic_ms) = (now.wall.plus_ms(ahead_ms), now.monotonic_ms + ahead_ms);
            let set_ms = self.set_ms.load(Ordering::SeqCst);
            now.wall = Timestamp::from_millis(now.wall.as_millis().saturating_add_signed(set_ms));
        }
        now
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics while holding it")
    }

    /// Changes the queue, and has a thread look at it, which wakes the next one if it finds something to do.
    fn change<T>(&self, change: impl FnOnce(&mut Queue, Now) -> T) -> T {
        let now = self.now();
        let done = change(&mut self.queue(), now);
        self.changed.notify_one();
        done
    }

    fn ruled(&self) -> MutexGuard<'_, BTreeSet<AccountId>> {
        // A set, changed in one step.
        self.ruled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys_used(&self) -> MutexGuard<'_, KeysUsed> {
        self.keys_used.lock().expect("nobody panics while holding it")
    }

    fn engine_key_kept_ms(&self) -> u64 {
        self.engine_key_kept_ms.load(Ordering::Relaxed)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Takes over the tasks among mutations that have become durable.
    pub(super) fn announce(&self, mutations: &[Mutation]) {
        if !mutations
            .iter()
            .any(|one| matches!(one, Mutation::AnnounceAccount { .. }))
        {
            return;
        }
        self.change(|queue, now| {
            for mutation in mutations {
                if let Mutation::AnnounceAccount {
                    account,
                    engine,
                    uuid,
                    task,
                } = mutation
                {
                    queue.announce(now, *account, &Arc::from(&**engine), Uuid::from_bytes(*uuid), *task);
                }
            }
        });
    }

    /// An account was made or changed, durably; this engine settles for it.
    pub(super) fn account_changed(&self, account: &Account, engine: Option<Arc<str>>) {
        if account.settlement.threshold.is_some() && account.settlement.to.is_some() {
            self.ruled().insert(account.id);
        } else {
            self.ruled().remove(&account.id);
        }
        self.change(|queue, _| queue.set_engine(account.id, engine));
    }

    /// An account is no more.
    pub(super) fn account_removed(&self, account: AccountId) {
        self.ruled().remove(&account);
        self.change(|queue, _| queue.forget_account(account));
    }
}

fn random() -> [u8; 8] {
    let [first @ .., _, _, _, _, _, _, _, _] = Uuid::new_v4().into_bytes();
    first
}

/// How the engine of an account stands to it, for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineStanding {
    pub engine: Arc<str>,
    /// It has acknowledged the account.
    pub acknowledged: bool,
    /// Since it was last told something new.
    pub attempts: u32,
    pub last_error: Option<Box<str>>,
}

/// Mutations that are handed over together when there is one for each of many accounts.
const ANNOUNCED_TOGETHER: usize = 1_024;
/// Ended settlements of an account that are remembered, and how often on average those beyond are forgotten.
const ENDED_KEPT: usize = 1_000;
const FORGET_EVERY: u8 = 64;
/// How often the operator's word is tried again that met another change of the same settlement.
const END_TRIES: u32 = 8;
/// When settlements are made and given up.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// After this time a balance above what its account settles to is settled, see [`timer`].
    pub settle_every: Option<Duration>,
    /// For how long engines know a key. A settlement that one may have had for longer is not tried again.
    pub engine_key_kept: Duration,
}

impl Control {
    /// Settlements of the account, the newest first, at most `limit` of those before the one with the id `before`.
    pub fn settlements(
        &self,
        account: AccountId,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Settlement>, ControlError> {
        let before = match before {
            None => None,
            Some(id) => Some(self.settlement(account, id)?.number),
        };
        Ok(self.bookkeeper.reader()?.settlements(account, before, limit)?)
    }

    fn settlement(&self, account: AccountId, id: Uuid) -> Result<Settlement, ControlError> {
        let found = self.bookkeeper.reader()?.settlement_by_id(id.into_bytes())?;
        found
            .filter(|settlement| settlement.account == account)
            .ok_or(ControlError::SettlementNotFound)
    }

    /// When the engine is called for this settlement, if that is known.
    pub fn next_attempt(&self, settlement: &Settlement) -> Option<Timestamp> {
        if !settlement.state.is_open() {
            return None;
        }
        let at_ms = self.settling.queue().next_try_ms(settlement)?;
        let now = self.settling.now();
        Some(now.wall.plus_ms(at_ms.saturating_sub(now.monotonic_ms)))
    }

    /// How the engine that settles for the account stands to it. `None`: none does.
    pub fn engine_standing(&self, account: &Account) -> Option<EngineStanding> {
        let engine = self.engine_of(account)?;
        let queue = self.settling.queue();
        let entry = queue.engine_account(account.id, &engine);
        Some(EngineStanding {
            acknowledged: entry.is_some_and(|entry| entry.is_settled()),
            attempts: entry.map_or(0, |entry| entry.attempts),
            last_error: entry.and_then(|entry| entry.last_error.clone()),
            engine,
        })
    }

    /// Settles all we owe the holder above what the account settles to.
    pub fn settle_now(&self, account: &Account) -> Result<Settlement, ControlError> {
        if let Some(reason) = self.not_ready() {
            return Err(ControlError::NotReady { reason });
        }
        match self.shards.settle_now(account.id, SettleOrder::Operator) {
            SettleNow::Made { .. } => {}
            SettleNow::NothingOwed => return Err(ControlError::NothingToSettle),
            SettleNow::NoRule => return Err(ControlError::NoSettlementRule),
            SettleNow::NoEngine => return Err(ControlError::NoSettlementEngine),
            SettleNow::Open => return Err(ControlError::SettlementPending),
            SettleNow::NotReady => {
                let reason = "the account is being deleted, or the disk does not keep up".to_owned();
                return Err(ControlError::NotReady { reason });
            }
        }
        // Behind what the shard has handed over.
        self.bookkeeper.apply(Vec::new())?;
        let newest = self.bookkeeper.reader()?.settlements(account.id, None, 1)?.pop();
        newest.ok_or_else(|| ControlError::Internal("a settlement that was made is not in the book".to_owned()))
    }

    /// Takes an open settlement back: its amount returns to the balance. One that an engine may have only with `force`,
    /// which the operator gives who knows that it was not paid; not during a call, of which nobody can know that.
    pub fn cancel_settlement(&self, account: AccountId, id: Uuid, force: bool) -> Result<Settlement, ControlError> {
        let cancel = |settlement: &Settlement, at_ms| {
            let number = settlement.number;
            let mut mutations = vec![Mutation::CancelSettlement { number, at_ms }];
            if settlement.may_be_paid() {
                if !force {
                    return Err(ControlError::SettlementSent);
                }
                // One that begins from here on finds that the settlement has ended, or we find that it was tried again.
                if self.settling.queue().is_called(account) {
                    return Err(ControlError::SettlementCalled);
                }
                let given_up = Settlement {
                    state: SettlementState::Failed,
                    sent_to: None,
                    ..settlement.clone()
                };
                mutations.insert(0, Mutation::UpdateSettlement(given_up));
            }
            Ok(mutations)
        };
        let cancelled = self.end_settlement(account, id, cancel)?;
        tracing::info!(target: "settlements", settlement = %id, force, "cancelled");
        Ok(cancelled)
    }

    /// Ends an open settlement that an engine may have: the operator has seen in the engine's ledger that it is paid.
    pub fn confirm_settlement(&self, account: AccountId, id: Uuid) -> Result<Settlement, ControlError> {
        let confirm = |settlement: &Settlement, at_ms| {
            if !settlement.may_be_paid() {
                return Err(ControlError::SettlementNotSent);
            }
            Ok(vec![Mutation::UpdateSettlement(Settlement {
                state: SettlementState::Confirmed,
                ended_ms: Some(at_ms),
                ..settlement.clone()
            })])
        };
        let confirmed = self.end_settlement(account, id, confirm)?;
        tracing::info!(target: "settlements", settlement = %id, "confirmed by the operator");
        Ok(confirmed)
    }

    /// Ends an open settlement with the mutations that `how` makes of it and of the time.
    fn end_settlement(
        &self,
        account: AccountId,
        id: Uuid,
        how: impl Fn(&Settlement, u64) -> Result<Vec<Mutation>, ControlError>,
    ) -> Result<Settlement, ControlError> {
        let _changes = self.begin()?;
        let mut tries = 0;
        let before = loop {
            let settlement = self.settlement(account, id)?;
            if !settlement.state.is_open() {
                let state = settlement.state;
                return Err(ControlError::SettlementEnded { state });
            }
            let mut mutations = how(&settlement, self.settling.now().wall.as_millis())?;
            mutations.extend(self.forgetting(&settlement));
            match self.bookkeeper.apply(mutations) {
                Ok(_) => break settlement,
                // Tried, or confirmed, since it was read.
                Err(_) if tries < END_TRIES && self.settlement(account, id)? != settlement => tries += 1,
                Err(error) => return Err(error.into()),
            }
        };
        self.settling.change(|queue, _| queue.ended(&before));
        let after = self.settlement(account, id)?;
        let returned = match after.state {
            SettlementState::Cancelled => after.amount,
            _ => 0,
        };
        self.shards.publish(&[Change::SettlementEnded { account, returned }]);
        Ok(after)
    }

    /// Has an open settlement tried now: one that has failed, or one whose next try is far off. The engine is told of the
    /// account once more before, because it may have forgotten. One that an engine may have paid and forgotten the key of
    /// only with `force`, which the operator gives who knows that it was not paid.
    pub fn retry_settlement(&self, account: &Account, id: Uuid, force: bool) -> Result<Settlement, ControlError> {
        let _changes = self.begin()?;
        let settlement = self.settlement(account.id, id)?;
        if !settlement.state.is_open() {
            let state = settlement.state;
            return Err(ControlError::SettlementEnded { state });
        }
        if settlement.state != SettlementState::Failed {
            self.settling
                .change(|queue, now| queue.hasten_settlement(now.monotonic_ms, account.id));
            return Ok(settlement);
        }
        let now_ms = self.settling.now().wall.as_millis();
        if !force && settlement.is_key_forgotten(now_ms, self.settling.engine_key_kept_ms()) {
            return Err(ControlError::SettlementKeyForgotten);
        }
        let sent_to = settlement.sent_to.clone().filter(|_| !force);
        let state = match sent_to {
            Some(_) => SettlementState::Sent,
            None => SettlementState::Pending,
        };
        let again = Settlement {
            state,
            sent_to,
            ..settlement
        };
        let mut mutations = vec![Mutation::UpdateSettlement(again.clone())];
        let pinned = again.sent_to.as_ref().map(|sent_to| Arc::from(&*sent_to.engine));
        let engine = pinned.or_else(|| self.engine_of(account));
        mutations.extend(engine.map(|engine| announcement(account, &engine, EngineTask::Create)));
        self.bookkeeper.apply(mutations.clone())?;
        self.settling.announce(&mutations);
        self.settling
            .change(|queue, now| queue.retry(now.monotonic_ms, again.clone()));
        Ok(again)
    }

    /// What engines are to be told when an account is made, changed or deleted.
    pub(super) fn announcements(&self, before: Option<&Account>, after: Option<&Account>) -> Vec<Mutation> {
        let engines = self.engines();
        let engine =
            |account: Option<&Account>| account.and_then(|account| engine_in(&engines, account)).map(Arc::from);
        let account = after.or(before);
        match account {
            Some(account) => self.announcements_of(account, engine(after).as_ref(), after.is_none()),
            None => Vec::new(),
        }
    }

    /// Those who know the account and do not settle for it any more are told its end; whoever settles for it and does not
    /// know it is told that it exists.
    fn announcements_of(&self, account: &Account, engine: Option<&Arc<str>>, is_deleted: bool) -> Vec<Mutation> {
        let queue = self.settling.queue();
        let mut mutations = Vec::new();
        for other in queue.engines_of(account.id) {
            if (is_deleted || Some(&other) != engine) && queue.knows(account.id, &other) {
                mutations.push(announcement(account, &other, EngineTask::Delete));
            }
        }
        if let Some(engine) = engine
            && !is_deleted
            && !queue.knows(account.id, engine)
        {
            mutations.push(announcement(account, engine, EngineTask::Create));
        }
        mutations
    }

    /// Has every engine told what it does not know yet of the accounts in these assets; `None`: of all accounts.
    pub(super) fn announce_all(&self, engines: &EngineMap, codes: Option<&HashSet<Box<str>>>) {
        let accounts: Vec<Arc<Account>> = {
            let state = self.read();
            let is_meant = |account: &&Arc<Account>| codes.is_none_or(|codes| codes.contains(&*account.asset.code));
            state.directory.iter().filter(is_meant).cloned().collect()
        };
        let mut mutations = Vec::new();
        for account in &accounts {
            let engine: Option<Arc<str>> = engine_in(engines, account).map(Arc::from);
            mutations.extend(self.announcements_of(account, engine.as_ref(), false));
            self.settling.queue().set_engine(account.id, engine);
        }
        for together in mutations.chunks(ANNOUNCED_TOGETHER) {
            self.announce_these(together);
        }
        self.settling.changed.notify_one();
    }

    /// All, or if one of them does not fit, the others. The next start tries those again that were left out.
    fn announce_these(&self, mutations: &[Mutation]) {
        match self.bookkeeper.apply(mutations.to_vec()) {
            Ok(_) => self.settling.announce(mutations),
            Err(StoreError::TooManyEngines { .. }) if mutations.len() > 1 => {
                for one in mutations {
                    self.announce_these(std::slice::from_ref(one));
                }
            }
            Err(error) => tracing::error!(target: "settlements", %error, "an engine is not told of an account"),
        }
    }

    /// Calls to engines that are being made.
    pub fn engine_calls(&self) -> usize {
        self.settling.queue().calls()
    }
}

fn announcement(account: &Account, engine: &str, task: EngineTask) -> Mutation {
    Mutation::AnnounceAccount {
        account: account.id,
        engine: engine.into(),
        uuid: account.uuid,
        task,
    }
}

/// The threads. They end after [`Self::stop`], each with the call that it makes.
pub struct Settlements {
    control: Arc<Control>,
}

impl Settlements {
    /// Starts them. `made` gives every settlement as soon as it is durable.
    pub fn start(
        control: &Arc<Control>,
        engines: Arc<dyn Engines>,
        made: Receiver<Settlement>,
        times: Times,
    ) -> io::Result<Self> {
        let kept_ms = times.engine_key_kept.as_millis() as u64;
        control.settling.engine_key_kept_ms.store(kept_ms, Ordering::Relaxed);
        control.begin_settling();
        let spawn =
            |name: String, run: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name).spawn(run).map(drop);
        for number in 0..queue::CALLS_MAX {
            let (control, engines) = (Arc::clone(control), Arc::clone(&engines));
            let run = move || control.call_engines(&*engines);
            spawn(format!("clearway-settle-{number}"), Box::new(run))?;
        }
        for number in 0..messages::THREADS {
            let (control, engines) = (Arc::clone(control), Arc::clone(&engines));
            let run = move || control.hand_over_messages(&*engines);
            spawn(format!("clearway-engines-{number}"), Box::new(run))?;
        }
        let timer_control = Arc::clone(control);
        let run = move || timer::run(&timer_control, &made, times.settle_every);
        spawn("clearway-settling".to_owned(), Box::new(run))?;
        Ok(Self {
            control: Arc::clone(control),
        })
    }

    /// No engine is called any more. A settlement whose call is being made is tried again after the next start, under
    /// the same key.
    pub fn stop(&self) {
        let desk = &self.control.settling;
        desk.stopping.store(true, Ordering::SeqCst);
        // Whoever is about to wait has looked before, and holds the lock until it does.
        drop(desk.queue());
        desk.changed.notify_all();
        desk.messages.stop();
    }
}

impl Control {
    /// The book is a copy of another, whose node has gone on since: it may have sent what is not sent here. So all of it counts
    /// as sent when it was made. Engines are asked under the same keys for as long as they know them, and the operator is asked
    /// about the rest. Before [`Settlements::start`].
    pub fn take_over_copy(&self) -> Result<(), StoreError> {
        let mut unsent = self.settling.queue().unsent();
        unsent.retain_mut(|settlement| {
            let Some(engine) = self.engine_now(settlement.account) else {
                return false;
            };
            settlement.state = SettlementState::Sent;
            settlement.sent_to = Some(SentTo {
                engine: (*engine).into(),
                since_ms: settlement.created_ms,
            });
            true
        });
        for together in unsent.chunks(ANNOUNCED_TOGETHER) {
            let updates = together.iter().cloned().map(Mutation::UpdateSettlement);
            self.bookkeeper.apply(updates.collect())?;
        }
        tracing::warn!(
            target: "settlements", unsent = unsent.len(),
            "the book is a copy: what was settled since it was made is owed here still, and would be settled again"
        );
        self.settling.change(|queue, now| {
            for settlement in unsent {
                queue.add(now, settlement, None);
            }
        });
        Ok(())
    }

    /// Who settles for the account with this number, as it is at this moment.
    fn engine_now(&self, account: AccountId) -> Option<Arc<str>> {
        let account = self.read().directory.get(account).cloned();
        account.and_then(|account| self.engine_of(&account))
    }

    /// Finds out who settles for whom, and what engines are to be told. Once, before the threads start.
    fn begin_settling(&self) {
        let engines = self.engines();
        self.announce_all(&engines, None);
    }

    /// What a log line calls the account: its name, or its number if it is no more.
    fn name_of(&self, account: AccountId) -> String {
        let state = self.read();
        let found = state.directory.get(account);
        found.map_or_else(|| account.to_string(), |account| account.username.to_string())
    }

    /// Takes over a settlement that has just become durable.
    fn settlement_made(&self, settlement: Settlement) {
        let account = settlement.account;
        tracing::info!(
            target: "settlements",
            settlement = %Uuid::from_bytes(settlement.id), account = %self.name_of(account),
            amount = settlement.amount, "made"
        );
        let mut engine = self.engine_now(account);
        self.settling
            .change(|queue, now| queue.add(now, settlement, engine.clone()));
        // Whoever has given the account another engine since it was looked at found no settlement to say it to.
        while engine != self.engine_now(account) {
            engine = self.engine_now(account);
            self.settling
                .change(|queue, _| queue.set_engine(account, engine.clone()));
        }
    }
}
