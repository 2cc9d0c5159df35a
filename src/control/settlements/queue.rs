//! What is to be said to which engine, and when: a pure machine, driven by the time that it is given.
//!
//! Owns the order and the pauses, and how many calls an engine and all of them get at a time. Leaves the calls, and what is
//! durable of them, to [`super::outbox`]. Knows of every open settlement and of every engine what it was told of accounts,
//! as the book has it.
//!
//! # What always holds
//! - A settlement goes to an engine only after that engine has acknowledged the account; one that an engine may have goes
//!   to no other; and that engine is not told of the account's end before.
//! - One engine that does not answer gets one call at a time, and all of these together at most half of the threads: the
//!   others wait for nobody. One that is out is asked about once a second, however much waits for it.
//! - What failed is tried again after 1 s, 2 s, 4 s and so on up to an hour, with jitter, for ever; a settlement that an
//!   engine may have, for as long as it knows the key. Once an engine that was out answers, all that waits for it is due at
//!   once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use crate::ledger::account::AccountId;
use crate::ledger::settlement::{Settlement, SettlementState};
use crate::pipeline::Now;
use crate::store::{EngineTask, OpenEngineTask};

/// Calls to all engines at a time, each on a thread of its own.
pub const CALLS_MAX: usize = 16;
/// Calls to engines whose last call got no answer, at a time.
const TROUBLED_CALLS_MAX: usize = CALLS_MAX / 2;
/// Calls to one engine at a time; one to one that does not answer.
const CALLS_PER_ENGINE_MAX: usize = 2;

/// The pauses between tries.
const PAUSE_MS_MIN: u64 = 1_000;
pub const PAUSE_MS_MAX: u64 = 3_600_000;
/// An engine that has failed so often in a row was out, and not just unlucky with one of its accounts.
const OUT_AFTER: u32 = 3;
/// The pause between two calls to an engine that is out: at first, doubled with each that fails, and at most. What waits
/// for an engine may be a hundred thousand things, each of which is to be tried again a second later.
const OUT_PAUSE_MS_MIN: u64 = 8;
const OUT_PAUSE_MS_MAX: u64 = 1_000;

/// What one call is about. At most one settlement of an account is open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Topic {
    Account(AccountId),
    Settlement(AccountId),
}

/// A call to be made now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    pub engine: Arc<str>,
    pub call: Call,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    Settle(Settlement),
    Tell {
        account: AccountId,
        uuid: Uuid,
        task: EngineTask,
    },
}

/// How a call ended, as far as the order of calls is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallEnd {
    /// The engine has answered, whatever it said.
    Answered,
    /// It has not, or says that it cannot now.
    Failed,
    /// It was not called.
    NotMade,
}

/// What an engine knows of an account, and whether it is to be told more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineAccount {
    uuid: Uuid,
    announced: bool,
    task: Option<EngineTask>,
    pub attempts: u32,
    pub last_error: Option<Box<str>>,
    due_ms: u64,
    /// Where it is in its lane.
    placed_ms: Option<u64>,
    running: bool,
}

impl EngineAccount {
    /// It has acknowledged that the account exists, and is to be told nothing.
    pub fn is_settled(&self) -> bool {
        self.announced && self.task.is_none()
    }
}

/// An open settlement.
struct Open {
    settlement: Settlement,
    /// Who settles for the account now. One that an engine may have goes there nevertheless.
    engine: Option<Arc<str>>,
    /// Tries since the start of the settlement, or since the operator wanted it to be tried again.
    tries: u32,
    due_ms: u64,
    /// Where it is: in the lane of this engine, under this time.
    placed: Option<(Arc<str>, u64)>,
    running: bool,
}

impl Open {
    fn target(&self) -> Option<Arc<str>> {
        let sent_to = self.settlement.sent_to.as_ref();
        let pinned = sent_to.map(|sent_to| Arc::from(&*sent_to.engine));
        pinned.or_else(|| self.engine.clone())
    }
}

/// What one engine is to be asked.
#[derive(Default)]
struct Lane {
    due: BTreeSet<(u64, Topic)>,
    running: usize,
    /// In a row.
    failures: u32,
    /// It is not called before.
    resume_ms: u64,
    /// Under which time it is in the schedule.
    scheduled_ms: Option<u64>,
}

impl Lane {
    fn is_troubled(&self) -> bool {
        self.failures > 0
    }

    fn is_out(&self) -> bool {
        self.failures >= OUT_AFTER
    }

    /// Calls to an engine that does not answer.
    fn troubled_calls(&self) -> usize {
        if self.is_troubled() { self.running } else { 0 }
    }

    /// When the next call may be made.
    fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| self.resume_ms.max(*due_ms))
    }

    /// What is to be done now, of which there is something. Of an engine that is out what has become due last: as good as
    /// all else to find out whether it is back, and nothing new waits for what fails again and again.
    fn take(&mut self, now_ms: u64) -> Topic {
        let first = *self.due.first().expect("a lane that is scheduled has something to do");
        let after_now = (now_ms + 1, Topic::Account(AccountId::new(0)));
        let newest = self.due.range(..after_now).next_back().filter(|_| self.is_out());
        let taken = newest.copied().unwrap_or(first);
        self.due.remove(&taken);
        taken.1
    }

    fn has_room(&self) -> bool {
        self.running < if self.is_troubled() { 1 } else { CALLS_PER_ENGINE_MAX }
    }
}

/// See the module's text.
pub struct Queue {
    open: HashMap<AccountId, Open>,
    known: BTreeMap<(AccountId, Arc<str>), EngineAccount>,
    lanes: HashMap<Arc<str>, Lane>,
    /// Lanes that have room and something to do, by when: those that answer, and those that do not.
    schedule: [BTreeSet<(u64, Arc<str>)>; 2],
    troubled_calls: usize,
    calls: usize,
    random: u64,
}

impl Queue {
    /// On what the book says. `seed` is for the jitter.
    pub fn new(
        now: Now,
        seed: u64,
        open: Vec<Settlement>,
        known: &[(AccountId, Box<str>)],
        tasks: Vec<OpenEngineTask>,
    ) -> Self {
        let mut queue = Self {
            open: HashMap::new(),
            known: BTreeMap::new(),
            lanes: HashMap::new(),
            schedule: Default::default(),
            troubled_calls: 0,
            calls: 0,
            random: seed | 1,
        };
        for (account, engine) in known {
            let entry = queue.entry(*account, &Arc::from(&**engine), Uuid::nil());
            entry.announced = true;
        }
        for OpenEngineTask {
            account,
            engine,
            uuid,
            task,
        } in tasks
        {
            let uuid = Uuid::from_bytes(uuid);
            queue.announce(now, account, &Arc::from(engine), uuid, task);
        }
        for settlement in open {
            queue.add(now, settlement, None);
        }
        queue
    }

    fn entry(&mut self, account: AccountId, engine: &Arc<str>, uuid: Uuid) -> &mut EngineAccount {
        let key = (account, Arc::clone(engine));
        self.known.entry(key).or_insert(EngineAccount {
            uuid,
            announced: false,
            task: None,
            attempts: 0,
            last_error: None,
            due_ms: 0,
            placed_ms: None,
            running: false,
        })
    }

    /// A settlement that is open: a new one, or one of before the start, whose pause goes on.
    pub fn add(&mut self, now: Now, settlement: Settlement, engine: Option<Arc<str>>) {
        let account = settlement.account;
        let due_ms = match settlement.last_attempt_ms {
            None => now.monotonic_ms,
            Some(at_ms) => {
                let pause_ms = self.pause_ms(settlement.attempts);
                let ends_ms = at_ms.saturating_add(pause_ms);
                // A clock that was set does not make it longer.
                now.monotonic_ms + ends_ms.saturating_sub(now.wall.as_millis()).min(pause_ms)
            }
        };
        let open = Open {
            tries: settlement.attempts,
            settlement,
            engine,
            due_ms,
            placed: None,
            running: false,
        };
        self.take_out(account);
        self.open.insert(account, open);
        self.place(account);
    }

    /// The settlement of this account that is open.
    pub fn open(&self, account: AccountId) -> Option<&Settlement> {
        self.open.get(&account).map(|open| &open.settlement)
    }

    /// Whether an engine is being called for the settlement of this account.
    pub fn is_called(&self, account: AccountId) -> bool {
        self.open.get(&account).is_some_and(|open| open.running)
    }

    /// Open settlements that no engine has, as far as the book knows.
    pub fn unsent(&self) -> Vec<Settlement> {
        let open = self.open.values().map(|open| &open.settlement);
        let is_unsent = |one: &&Settlement| one.state == SettlementState::Pending && !one.may_be_paid();
        open.filter(is_unsent).cloned().collect()
    }

    /// When the engine is called for this settlement, if that is known: not while it is being called, nor while it waits for
    /// the operator, or for an engine that has acknowledged the account.
    pub fn next_try_ms(&self, settlement: &Settlement) -> Option<u64> {
        let open = self.open.get(&settlement.account)?;
        let placed = open
            .placed
            .as_ref()
            .filter(|_| open.settlement.number == settlement.number);
        placed.map(|(engine, at_ms)| {
            let lane = self.lanes.get(engine);
            lane.map_or(*at_ms, |lane| lane.resume_ms.max(*at_ms))
        })
    }

    /// This settlement, if it is open still. After it, another one of its account may be.
    fn open_one(&mut self, settlement: &Settlement) -> Option<&mut Open> {
        let open = self.open.get_mut(&settlement.account)?;
        (open.settlement.number == settlement.number).then_some(open)
    }

    /// Calls that are being made.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Which engine settles for the account from now on.
    pub fn set_engine(&mut self, account: AccountId, engine: Option<Arc<str>>) {
        if let Some(open) = self.open.get_mut(&account) {
            open.engine = engine;
            self.place(account);
        }
    }

    /// The engine is to be told something of the account, instead of what it was to be told before.
    pub fn announce(&mut self, now: Now, account: AccountId, engine: &Arc<str>, uuid: Uuid, task: EngineTask) {
        let entry = self.entry(account, engine, uuid);
        (entry.uuid, entry.task, entry.attempts, entry.last_error) = (uuid, Some(task), 0, None);
        entry.due_ms = now.monotonic_ms;
        self.place_account(account, engine);
        self.place(account);
    }

    /// Nobody needs to be told of this account but that it is no more.
    pub fn forget_account(&mut self, account: AccountId) {
        for engine in self.engines_of(account) {
            let key = (account, engine);
            if self.known[&key].task != Some(EngineTask::Delete) {
                self.unplace_account(&key);
                self.known.remove(&key);
            }
        }
    }

    /// The engines that know the account, or may.
    pub fn engines_of(&self, account: AccountId) -> Vec<Arc<str>> {
        let first = (account, Arc::from(""));
        let of_account = self.known.range(first..).take_while(|((of, _), _)| *of == account);
        of_account.map(|((_, engine), _)| Arc::clone(engine)).collect()
    }

    /// What this engine knows of the account, if anything.
    pub fn engine_account(&self, account: AccountId, engine: &str) -> Option<&EngineAccount> {
        self.known.get(&(account, Arc::from(engine)))
    }

    /// Whether the engine knows the account, or will be told of it.
    pub fn knows(&self, account: AccountId, engine: &str) -> bool {
        self.engine_account(account, engine)
            .is_some_and(|entry| match entry.task {
                None => entry.announced,
                Some(task) => task == EngineTask::Create,
            })
    }

    /// The next call that is due, or when there will be one. `None`: not before something else happens.
    pub fn take(&mut self, now_ms: u64) -> Result<Job, Option<u64>> {
        let may_try_troubled = self.troubled_calls < TROUBLED_CALLS_MAX;
        let first = |set: &BTreeSet<(u64, Arc<str>)>| set.first().cloned();
        let [healthy, troubled] = self.schedule.each_ref().map(first);
        let candidates = [healthy, troubled.filter(|_| may_try_troubled)];
        let mut wakeup_ms = None;
        for (due_ms, engine) in candidates.into_iter().flatten() {
            if due_ms > now_ms {
                wakeup_ms = Some(wakeup_ms.map_or(due_ms, |other: u64| other.min(due_ms)));
                continue;
            }
            return Ok(self.begin(now_ms, engine));
        }
        Err(wakeup_ms)
    }

    /// A call of this lane begins.
    fn begin(&mut self, now_ms: u64, engine: Arc<str>) -> Job {
        let lane = self.lanes.get_mut(&engine).expect("a lane that is scheduled exists");
        let topic = lane.take(now_ms);
        self.troubled_calls += usize::from(lane.is_troubled());
        self.calls += 1;
        lane.running += 1;
        let call = match topic {
            Topic::Settlement(account) => {
                let open = self.open.get_mut(&account).expect("what is placed is open");
                (open.placed, open.running) = (None, true);
                Call::Settle(open.settlement.clone())
            }
            Topic::Account(account) => {
                let entry = self.known.get_mut(&(account, Arc::clone(&engine)));
                let entry = entry.expect("what is placed is known");
                (entry.placed_ms, entry.running) = (None, true);
                entry.attempts = entry.attempts.saturating_add(1);
                Call::Tell {
                    account,
                    uuid: entry.uuid,
                    task: entry.task.expect("only what is to be told is placed"),
                }
            }
        };
        self.reschedule(&engine);
        Job { engine, call }
    }

    /// A call has ended. To be followed by [`Self::settled`], [`Self::ended`] or [`Self::told`], which say what is known now.
    pub fn end(&mut self, now_ms: u64, job: &Job, end: CallEnd) {
        let lane = self.lanes.get_mut(&job.engine).expect("a lane with calls exists");
        self.calls -= 1;
        self.troubled_calls -= lane.troubled_calls();
        lane.running -= 1;
        let was_out = lane.is_out();
        match end {
            CallEnd::Answered => (lane.failures, lane.resume_ms) = (0, 0),
            CallEnd::Failed => {
                lane.failures = lane.failures.saturating_add(1);
                if lane.is_out() {
                    let doublings = (lane.failures - OUT_AFTER).min(7);
                    lane.resume_ms = now_ms + (OUT_PAUSE_MS_MIN << doublings).min(OUT_PAUSE_MS_MAX);
                }
            }
            CallEnd::NotMade => {}
        }
        self.troubled_calls += lane.troubled_calls();
        if end == CallEnd::Answered && was_out {
            // The others are due already.
            let waiting = lane.due.iter().rev().take_while(|(due_ms, _)| *due_ms > now_ms);
            let waiting: Vec<_> = waiting.map(|(_, topic)| *topic).collect();
            for topic in waiting {
                self.hasten(now_ms, topic, &job.engine);
            }
        }
        match &job.call {
            Call::Settle(settlement) => {
                if let Some(open) = self.open_one(settlement) {
                    open.running = false;
                }
            }
            Call::Tell { account, .. } => {
                if let Some(entry) = self.known.get_mut(&(*account, Arc::clone(&job.engine))) {
                    entry.running = false;
                }
            }
        }
        self.reschedule(&job.engine);
    }

    fn hasten(&mut self, now_ms: u64, topic: Topic, engine: &Arc<str>) {
        match topic {
            Topic::Settlement(account) => {
                if let Some(open) = self.open.get_mut(&account) {
                    open.due_ms = open.due_ms.min(now_ms);
                }
                self.place(account);
            }
            Topic::Account(account) => {
                if let Some(entry) = self.known.get_mut(&(account, Arc::clone(engine))) {
                    entry.due_ms = entry.due_ms.min(now_ms);
                }
                self.place_account(account, engine);
            }
        }
    }

    /// What is durable of a settlement after a try of it as it was `before`; it is tried again after a pause, unless it waits
    /// for the operator.
    pub fn settled(&mut self, now_ms: u64, before: &Settlement, settlement: Settlement) {
        let account = settlement.account;
        let Some(open) = self.open_one(&settlement) else { return };
        if open.settlement != *before {
            // The operator has had a word since that was durable, and knows more.
            return self.place(account);
        }
        open.settlement = settlement;
        open.tries = open.tries.saturating_add(1);
        let tries = open.tries;
        let pause_ms = self.pause_ms(tries);
        if let Some(open) = self.open.get_mut(&account) {
            open.due_ms = now_ms + pause_ms;
        }
        self.place(account);
    }

    /// A settlement that failed is to be tried again at once.
    pub fn retry(&mut self, now_ms: u64, settlement: Settlement) {
        let account = settlement.account;
        if let Some(open) = self.open.get_mut(&account) {
            (open.settlement, open.tries, open.due_ms) = (settlement, 0, now_ms);
            self.place(account);
        }
    }

    /// An open settlement that waits for its next try gets it now.
    pub fn hasten_settlement(&mut self, now_ms: u64, account: AccountId) {
        if let Some(open) = self.open.get_mut(&account) {
            (open.tries, open.due_ms) = (0, open.due_ms.min(now_ms));
            self.place(account);
        }
    }

    /// The call was not made, for our own reasons: once more a moment later.
    pub fn postpone(&mut self, now_ms: u64, job: &Job) {
        match &job.call {
            Call::Settle(settlement) => {
                if let Some(open) = self.open_one(settlement) {
                    open.due_ms = now_ms + PAUSE_MS_MIN;
                }
                self.place(settlement.account);
            }
            Call::Tell { account, .. } => {
                if let Some(entry) = self.known.get_mut(&(*account, Arc::clone(&job.engine))) {
                    entry.due_ms = now_ms + PAUSE_MS_MIN;
                }
                self.place_account(*account, &job.engine);
            }
        }
    }

    /// A settlement has ended.
    pub fn ended(&mut self, settlement: &Settlement) {
        let account = settlement.account;
        if self.open(account).is_some_and(|open| open.number == settlement.number) {
            self.take_out(account);
            for engine in self.engines_of(account) {
                self.place_account(account, &engine);
            }
        }
    }

    /// The engine has acknowledged a task, durably.
    pub fn told(&mut self, account: AccountId, engine: &Arc<str>, task: EngineTask) {
        let key = (account, Arc::clone(engine));
        let Some(entry) = self.known.get_mut(&key) else { return };
        entry.announced = task == EngineTask::Create;
        if entry.task == Some(task) {
            (entry.task, entry.last_error) = (None, None);
        }
        if entry.announced || entry.task.is_some() {
            self.place_account(account, engine);
        } else {
            self.unplace_account(&key);
            self.known.remove(&key);
        }
        self.place(account);
    }

    /// A task was not acknowledged.
    pub fn not_told(&mut self, now_ms: u64, account: AccountId, engine: &Arc<str>, error: &str) {
        let key = (account, Arc::clone(engine));
        let Some(attempts) = self.known.get(&key).map(|entry| entry.attempts) else {
            return;
        };
        let pause_ms = self.pause_ms(attempts);
        if let Some(entry) = self.known.get_mut(&key) {
            entry.due_ms = now_ms + pause_ms;
            entry.last_error = Some(error.into());
        }
        self.place_account(account, engine);
    }

    /// Between half of the pause and all of it, so that what failed together is not tried together.
    fn pause_ms(&mut self, tries: u32) -> u64 {
        let doublings = tries.saturating_sub(1).min(12);
        let pause_ms = (PAUSE_MS_MIN << doublings).min(PAUSE_MS_MAX);
        // xorshift: what the jitter is made of need not be hard to guess.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        pause_ms / 2 + self.random % (pause_ms / 2 + 1)
    }

    fn take_out(&mut self, account: AccountId) {
        if let Some(open) = self.open.remove(&account)
            && let Some((engine, at_ms)) = open.placed
        {
            self.remove(&engine, at_ms, Topic::Settlement(account));
        }
    }

    /// Puts the settlement of an account where it belongs now: in the lane of its engine if that may be called for it.
    fn place(&mut self, account: AccountId) {
        let Some(open) = self.open.get_mut(&account) else {
            return;
        };
        let before = open.placed.take();
        let may_run = !open.running && open.settlement.state != SettlementState::Failed;
        let (due_ms, target) = (open.due_ms, open.target());
        let engine = target.filter(|engine| {
            let known = self.known.get(&(account, Arc::clone(engine)));
            may_run && known.is_some_and(|entry| entry.announced && entry.task != Some(EngineTask::Create))
        });
        if let Some((engine, at_ms)) = before {
            self.remove(&engine, at_ms, Topic::Settlement(account));
        }
        if let Some(engine) = engine {
            self.insert(&engine, due_ms, Topic::Settlement(account));
            if let Some(open) = self.open.get_mut(&account) {
                open.placed = Some((engine, due_ms));
            }
        }
        for engine in self.engines_of(account) {
            self.place_account(account, &engine);
        }
    }

    /// The same for what an engine is to be told of an account.
    fn place_account(&mut self, account: AccountId, engine: &Arc<str>) {
        let key = (account, Arc::clone(engine));
        self.unplace_account(&key);
        // The settlement may be at the engine already, which must not forget its account then.
        let is_needed = self.open.get(&account).is_some_and(|open| {
            let sent_to = open.settlement.sent_to.as_ref();
            sent_to.is_some_and(|sent_to| *sent_to.engine == **engine)
                || (open.running && open.target().as_ref() == Some(engine))
        });
        let Some(entry) = self.known.get_mut(&key) else { return };
        let may_run = match entry.task {
            None => false,
            Some(EngineTask::Create) => true,
            Some(EngineTask::Delete) => !is_needed,
        };
        if may_run && !entry.running {
            let due_ms = entry.due_ms;
            entry.placed_ms = Some(due_ms);
            self.insert(engine, due_ms, Topic::Account(account));
        }
    }

    fn unplace_account(&mut self, key: &(AccountId, Arc<str>)) {
        let placed = self.known.get_mut(key).and_then(|entry| entry.placed_ms.take());
        if let Some(at_ms) = placed {
            self.remove(&key.1, at_ms, Topic::Account(key.0));
        }
    }

    fn insert(&mut self, engine: &Arc<str>, due_ms: u64, topic: Topic) {
        self.lanes
            .entry(Arc::clone(engine))
            .or_default()
            .due
            .insert((due_ms, topic));
        self.reschedule(engine);
    }

    fn remove(&mut self, engine: &Arc<str>, due_ms: u64, topic: Topic) {
        if let Some(lane) = self.lanes.get_mut(engine) {
            lane.due.remove(&(due_ms, topic));
            self.reschedule(engine);
        }
    }

    /// Puts a lane into the schedule as it is now; one without anything goes.
    fn reschedule(&mut self, engine: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(engine) else { return };
        if let Some(at_ms) = lane.scheduled_ms.take() {
            let key = (at_ms, Arc::clone(engine));
            for schedule in &mut self.schedule {
                schedule.remove(&key);
            }
        }
        match lane.next_ms() {
            Some(at_ms) if lane.has_room() => {
                lane.scheduled_ms = Some(at_ms);
                self.schedule[usize::from(lane.is_troubled())].insert((at_ms, Arc::clone(engine)));
            }
            // One that has failed is remembered, so that its next call counts as one to an engine that does not answer.
            None if lane.running == 0 && !lane.is_troubled() => drop(self.lanes.remove(engine)),
            _ => {}
        }
    }
}
