//! One turn of the exchange with all neighbours: what has happened goes into the machines of those it concerns, what
//! came of it is put in force at once, and what is due is sent.
//!
//! Owns the machines of each neighbour ([`parties`]), what is asked and answered ([`questions`], [`requests`]), the log
//! that all are told from, and when each wants to be called again. A neighbour is an account that is no customer. Reads
//! no clock: waiting is measured with the monotonic time that it is given, which never jumps.
//!
//! Always: what a machine has reported is in the table of routes, and what wins there is in the log, at the end of every
//! turn; an update is answered when what it told is durable.

mod parties;
mod questions;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parties::neighbour_of;

use super::NeighbourSettings;
use super::lessons::{Lesson, LinkChange, learn};
use super::link::Link;
use super::notes::{Notes, Reason};
use super::parent::Asker;
use crate::control::{Control, StartError};
use crate::ledger::account::{AccountId, RoutingRelation};
use crate::pipeline::Now;
use crate::routing::ccp::{Change, Learned, Listener, Log, LogLimits, Neighbour, NextHop, Path, Speaker};
use crate::routing::table::{Candidate, Origin};
use crate::shard::control::{NeighbourEvent, PeerAnswer};
use crate::store::{HeardRoutes, Mutation};
use crate::wire::address::Address;
use crate::wire::packet::ErrorCode;
use crate::wire::timestamp::Timestamp;

/// Routes that are learned in all: as many as the log tells, at some 200 bytes each.
const ROUTES_LEARNED_MAX: usize = 1 << 20;
/// Neighbours that are sent something in one turn, so that what they and others say meanwhile waits for milliseconds.
const POLLED_PER_TURN: usize = 64;
/// How long after a start a neighbour may take to come back until others hear that nothing leads over it. Both sides of a
/// link dial again within seconds.
const RETURN_MS_MAX: u64 = 10_000;
/// Prefixes that are looked up while nobody may change them.
const PREFIXES_AT_ONCE: usize = 1_024;

/// A neighbour and its machines. What it tells is heard by a [`Listener`] in [`super::Listeners`].
struct Party {
    neighbour: Neighbour,
    username: Box<str>,
    /// Of these machines, to tell answers to them from answers to those before.
    life: u64,
    speaker: Speaker,
    /// Of our parent.
    asker: Option<Asker>,
    link: Link,
    /// The link is tried, and nothing was sent yet.
    is_to_be_tried: bool,
    /// The link is up as far as speaker and listener know.
    is_begun: bool,
    /// Its place in the schedule.
    due: Option<Timestamp>,
}

/// What a turn has found out and not yet put in force.
#[derive(Default)]
struct Turn {
    lessons: Vec<Lesson>,
    links: Vec<LinkChange>,
    replies: Vec<PendingReply>,
    /// Neighbours whose machines may want to send something.
    touched: BTreeSet<AccountId>,
    /// What is perhaps to be told otherwise than before.
    prefixes: BTreeSet<Arc<str>>,
    /// All of it.
    tells_anew: bool,
}

struct PendingReply {
    respond: Box<dyn FnOnce(PeerAnswer) + Send>,
    answer: PeerAnswer,
    /// It says yes to something that is not durable yet.
    is_promise: bool,
}

/// The exchange with all neighbours.
pub(super) struct Exchange {
    control: Arc<Control>,
    settings: NeighbourSettings,
    /// Our address, as the log and the listeners know it.
    own: Arc<str>,
    /// What authenticates our own routes; of this process.
    secret: [u8; 32],
    log: Log,
    parties: BTreeMap<AccountId, Party>,
    schedule: BTreeSet<(Timestamp, AccountId)>,
    /// Routes of all listeners.
    learned: usize,
    /// After a start neighbours come back one by one. Until then these were not back, and the others are told the routes
    /// over them as if their links were up: packets get a T01 here for a moment, and no F02 elsewhere.
    returning: BTreeSet<AccountId>,
    returning_until: Timestamp,
    notes: Notes,
    lives: u64,
}

impl Exchange {
    /// Takes back what neighbours told before the last stop, as far as it is still believed, and puts it into the table
    /// of routes. Talks to no shard.
    pub(super) fn new(control: Arc<Control>, settings: NeighbourSettings, now: Now) -> Result<Self, StartError> {
        let own = control.node_address();
        let secret = random();
        let mut exchange = Self {
            log: new_log(&own, &secret),
            own,
            secret,
            settings,
            parties: BTreeMap::new(),
            schedule: BTreeSet::new(),
            learned: 0,
            returning: BTreeSet::new(),
            returning_until: steady(now).plus_ms(RETURN_MS_MAX),
            notes: Notes::default(),
            lives: 0,
            control,
        };
        let now = steady(now);
        let accounts: Vec<_> = exchange.control.read().directory.iter().cloned().collect();
        for account in accounts {
            if neighbour_of(&account).is_some() {
                exchange.add_party(now, &account);
            }
        }
        let heard = exchange.control.take_heard();
        exchange.returning = exchange.parties.keys().copied().collect();
        exchange.restore(now, heard)?;
        exchange.tell_all();
        for id in exchange.parties.keys().copied().collect::<Vec<_>>() {
            exchange.reschedule(id);
        }
        Ok(exchange)
    }

    fn restore(&mut self, now: Timestamp, heard: Vec<HeardRoutes>) -> Result<(), StartError> {
        let (mut mutations, mut steps) = (Vec::new(), Vec::new());
        for heard in heard {
            let account = heard.account;
            let table = (heard.table_id, heard.epoch);
            let Some(relation) = self.parties.get(&account).map(|party| party.neighbour.relation) else {
                mutations.push(Mutation::ForgetRoutes { account });
                continue;
            };
            let mut removed = Vec::new();
            let mut routes = Vec::with_capacity(heard.routes.len());
            for route in heard.routes {
                match Path::from_bytes(&route.path) {
                    Some(path) => routes.push((route.prefix, Learned { path, auth: route.auth })),
                    None => removed.push(route.prefix),
                }
            }
            let room = ROUTES_LEARNED_MAX - self.learned;
            let (table_id, epoch) = self.hear(account, |listener| {
                removed.extend(listener.restore(now, table, routes, room));
                let kept = listener.routes();
                steps.extend(kept.map(|(prefix, learned)| learn(Arc::clone(prefix), account, relation, learned)));
                listener.heard()
            });
            if !removed.is_empty() {
                mutations.push(Mutation::LearnRoutes {
                    account,
                    table_id,
                    epoch,
                    set: Vec::new(),
                    removed,
                });
            }
        }
        if !mutations.is_empty() {
            self.control.bookkeeper.apply(mutations)?;
        }
        let mut state = self.control.write();
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            state.routes.apply(steps.by_ref().take(PREFIXES_AT_ONCE));
        }
        state.routes.shrink();
        Ok(())
    }

    pub(super) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Takes what has happened, and gives the monotonic time in milliseconds at which it wants to be called again if
    /// nothing happens before.
    pub(super) fn turn(&mut self, now: Now, events: Vec<NeighbourEvent>) -> Option<u64> {
        let steady = steady(now);
        let mut turn = Turn::default();
        let (answers, accounts) = self.control.neighbours.take_answers_and_accounts();
        for answer in answers {
            self.answered(steady, answer, &mut turn);
        }
        // Here or elsewhere the node may have got another address.
        if *self.control.node_address() != *self.own {
            self.begin_anew(steady, &mut turn);
        }
        for account in accounts {
            self.account_changed(steady, account, &mut turn);
        }
        for event in events {
            match event {
                NeighbourEvent::Link { account, up } => self.link_changed(steady, account, up, &mut turn),
                NeighbourEvent::Request(request) => self.requested(steady, request, &mut turn),
            }
        }
        self.time_passed(steady, &mut turn);
        if !self.returning.is_empty() && self.returning_until <= steady {
            self.returning.clear();
            turn.tells_anew = true;
        }
        self.settle(&mut turn);
        let told_before = (self.log.table_id(), self.log.epoch());
        for id in std::mem::take(&mut turn.touched) {
            self.schedule_at(id, steady);
        }
        self.tell(turn);
        if (self.log.table_id(), self.log.epoch()) != told_before {
            // Everybody has news.
            for id in self.parties.keys().copied().collect::<Vec<_>>() {
                self.reschedule(id);
            }
        }
        self.send(now);
        let first = self.schedule.first().map(|(due, _)| *due);
        let returned = (!self.returning.is_empty()).then_some(self.returning_until);
        let wakeup = first.into_iter().chain(returned).min();
        wakeup.map(|at| at.as_millis())
    }

    // What happens.

    fn note(&mut self, now: Timestamp, id: AccountId, reason: Reason, count: u64) {
        if let Some(times) = self.notes.note(now, id, reason, count) {
            let username = self.parties.get(&id).map_or("", |party| &*party.username);
            tracing::warn!(target: "routes", account = username, times, "{reason}");
        }
    }

    /// Those who have been silent for too long are forgotten.
    fn time_passed(&mut self, now: Timestamp, turn: &mut Turn) {
        for id in self.take_due(now) {
            turn.touched.insert(id);
            let party = self.parties.get_mut(&id).expect("a neighbour that is due exists");
            let relation = party.neighbour.relation;
            let changes = self.hear(id, |listener| listener.handle_time(now));
            if !changes.is_empty() {
                let username = &self.parties[&id].username;
                tracing::info!(
                    target: "routes", account = %username, routes = changes.len(),
                    "a neighbour has been silent for too long, its routes are dropped"
                );
                turn.learn(Lesson {
                    account: id,
                    relation,
                    heard: None,
                    changes,
                });
            }
        }
    }

    // What comes of it.

    /// Makes what was learned durable, puts it in force, and answers those who told it.
    fn settle(&mut self, turn: &mut Turn) {
        let lessons = std::mem::take(&mut turn.lessons);
        let links = std::mem::take(&mut turn.links);
        let result = if lessons.is_empty() && links.is_empty() {
            Ok(())
        } else {
            self.control.take_lessons(&lessons, &links)
        };
        for PendingReply {
            respond,
            answer,
            is_promise,
        } in turn.replies.drain(..)
        {
            respond(match &result {
                Err(_) if is_promise => reject(ErrorCode::T00_INTERNAL_ERROR, "the node cannot commit"),
                _ => answer,
            });
        }
    }

    /// Tells the log what leads where now.
    fn tell(&mut self, turn: Turn) {
        let mut prefixes = turn.prefixes;
        prefixes.append(&mut self.control.neighbours.take_prefixes());
        if turn.tells_anew {
            self.tell_all();
        }
        // Those among them that lead nowhere any more are in no list of all.
        let prefixes: Vec<_> = prefixes.into_iter().collect();
        for some in prefixes.chunks(PREFIXES_AT_ONCE) {
            self.tell_some(some);
        }
    }

    /// All that there is. Into a log that knows our own address alone, or that knows no prefix which leads nowhere now.
    fn tell_all(&mut self) {
        let mut last: Option<Arc<str>> = None;
        loop {
            let some: Vec<_> = {
                let state = self.control.read();
                let winners = state.routes.winners_after(last.as_deref());
                winners
                    .take(PREFIXES_AT_ONCE)
                    .map(|(prefix, _)| Arc::clone(prefix))
                    .collect()
            };
            let Some(prefix) = some.last() else { break };
            last = Some(Arc::clone(prefix));
            self.tell_some(&some);
        }
    }

    fn tell_some(&mut self, prefixes: &[Arc<str>]) {
        let winners: Vec<_> = {
            let state = self.control.read();
            let winner = |prefix: &Arc<str>| {
                let winner = state.routes.in_force(prefix)?;
                let account = state.directory.get(winner.account)?;
                Some((winner, account.routing_relation))
            };
            prefixes.iter().map(winner).collect()
        };
        let listeners = self.control.listeners.lock();
        for (prefix, winner) in prefixes.iter().zip(winners) {
            let learned = |winner: &Candidate| listeners.get(&winner.account)?.get(prefix);
            let is_told = |winner: &Candidate| winner.is_up || self.returning.contains(&winner.account);
            let Some((winner, relation)) = winner.filter(|(winner, _)| is_told(winner)) else {
                self.log.withdraw(prefix);
                continue;
            };
            let next_hop = NextHop {
                account: winner.account,
                relation,
            };
            let is_ours = matches!(relation, RoutingRelation::Child | RoutingRelation::NonRoutingAccount);
            match (winner.origin, learned(&winner)) {
                (Origin::Fixed, _) => _ = self.log.announce(prefix, next_hop, None),
                (Origin::Own, _) if is_ours => _ = self.log.announce(prefix, next_hop, None),
                // Of a peer or parent we tell what it says of itself, and not what we happen to know of it.
                (Origin::Own | Origin::Learned { .. }, Some(learned)) => {
                    _ = self.log.announce(prefix, next_hop, Some(learned));
                }
                (Origin::Own | Origin::Learned { .. }, None) => self.log.withdraw(prefix),
            }
        }
    }

    /// Sends what is due, to some neighbours; the others are next.
    fn send(&mut self, now: Now) {
        for id in self.take_due(steady(now)) {
            self.poll(now, id);
            self.reschedule(id);
        }
    }

    // When each neighbour is next.

    /// Takes some neighbours that are due from the schedule, those who wait for longest.
    fn take_due(&mut self, now: Timestamp) -> Vec<AccountId> {
        let due = self.schedule.range(..=(now, AccountId::new(u32::MAX)));
        let due: Vec<_> = due.take(POLLED_PER_TURN).copied().collect();
        for (at, id) in &due {
            self.schedule.remove(&(*at, *id));
            self.parties.get_mut(id).expect("a neighbour that is due exists").due = None;
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    fn reschedule(&mut self, id: AccountId) {
        let Some(party) = self.parties.get(&id) else { return };
        let due = [
            party.link.next_wakeup(),
            party.asker.as_ref().and_then(Asker::next_wakeup),
            party.speaker.next_wakeup(&self.log),
            self.control.listeners.lock().get(&id).and_then(Listener::next_wakeup),
        ];
        if let Some(due) = due.into_iter().flatten().min() {
            self.schedule_at(id, due);
        }
    }

    /// At the latest then.
    fn schedule_at(&mut self, id: AccountId, at: Timestamp) {
        let Some(party) = self.parties.get_mut(&id) else { return };
        if party.due.is_none_or(|due| at < due) {
            let before = party.due.replace(at);
            self.unschedule(id, before);
            self.schedule.insert((at, id));
        }
    }

    fn unschedule(&mut self, id: AccountId, due: Option<Timestamp>) {
        if let Some(due) = due {
            self.schedule.remove(&(due, id));
        }
    }
}

impl Turn {
    fn learn(&mut self, lesson: Lesson) {
        let prefix = |change: &Change| match change {
            Change::Announce { prefix, .. } | Change::Withdraw { prefix } => Arc::clone(prefix),
        };
        // Also where another wins, or the same one wins as before: the path may be another.
        self.prefixes.extend(lesson.changes.iter().map(prefix));
        self.lessons.push(lesson);
    }
}

fn new_log(own: &str, secret: &[u8; 32]) -> Log {
    let own = Address::parse(own.as_bytes()).expect("the node's address is one");
    Log::new(own, random(), secret, LogLimits::default())
}

fn random<const BYTES: usize>() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes once it has started");
    bytes
}

/// What waiting is measured with.
fn steady(now: Now) -> Timestamp {
    Timestamp::from_millis(now.monotonic_ms)
}

fn reject(code: ErrorCode, message: &'static str) -> PeerAnswer {
    PeerAnswer::Reject {
        code,
        message: message.into(),
    }
}
