//! What the node and its neighbours tell each other of themselves: routes (CCP, protocols.md 8), and our address, if a
//! parent gives us one (ILDCP, protocols.md 7).
//!
//! Owns the one thread on which all of it happens, and what others leave for it ([`News`]). [`exchange`] is what it does
//! in a turn; [`parent`], [`link`] and [`notes`] are small machines it uses; [`lessons`] makes what neighbours told
//! durable and tells the shards. Leaves the rules of the exchange to [`crate::routing::ccp`], the choice among routes to
//! [`crate::routing::table`], and packets and links to the shards.
//!
//! The thread sleeps until a neighbour asks or answers, a link comes or goes, an operator changes an account or a route,
//! or it is time for a machine. One turn takes all that has happened, is one commit and one publication at most, and
//! sends what is due; so many updates at once cost little more than one.

mod exchange;
mod lessons;
mod link;
mod notes;
mod parent;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::ledger::account::AccountId;
use crate::routing::ccp::{Listener, ROUTES_MAX};
use crate::routing::table::RouteChange;
use crate::shard::clock::Clock;
use crate::shard::control::{NeighbourEvents, NeighbourWaker};

use super::{Control, StartError};
use exchange::Exchange;

/// Events that one turn takes: after so many, what they led to goes out before more is looked at.
const EVENTS_PER_TURN: usize = 1_024;

/// What the operator sets about the exchange of routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourSettings {
    /// From one update to the next while there is nothing new.
    pub update_interval_ms: u32,
    /// Children may tell routes too.
    pub hears_children: bool,
    /// Routes of one neighbour that are kept.
    pub routes_max: usize,
}

impl Default for NeighbourSettings {
    fn default() -> Self {
        Self {
            update_interval_ms: crate::routing::ccp::INTERVAL_MS,
            hears_children: false,
            routes_max: ROUTES_MAX,
        }
    }
}

/// The exchange before it begins: what neighbours told before the last stop is in force already.
pub struct Prepared {
    exchange: Exchange,
    clock: Clock,
}

/// The exchange as it goes on. Ends with [`Self::stop`].
pub struct Neighbours {
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

impl Neighbours {
    /// Puts the routes that neighbours told before the last stop into the table, as far as they are still believed. To be
    /// called before the shards are told the routes.
    pub fn prepare(control: &Arc<Control>, settings: NeighbourSettings) -> Result<Prepared, StartError> {
        let clock = Clock::start();
        let exchange = Exchange::new(Arc::clone(control), settings, clock.now())?;
        Ok(Prepared { exchange, clock })
    }

    /// Starts the thread.
    pub fn start(prepared: Prepared, events: NeighbourEvents) -> io::Result<Self> {
        let Prepared { exchange, clock } = prepared;
        let control = Arc::clone(exchange.control());
        control.neighbours.set_waker(events.waker());
        let thread = thread::Builder::new()
            .name("clearway-neighbours".to_owned())
            .spawn(move || run(exchange, clock, &events))?;
        Ok(Self { control, thread })
    }

    /// Ends the thread after the turn that it is in. Requests that it has not looked at are not answered.
    pub fn stop(self) {
        self.control.neighbours.stop();
        // If it has failed it has said so already.
        let _ = self.thread.join();
    }
}

fn run(mut exchange: Exchange, clock: Clock, events: &NeighbourEvents) {
    // The first turn looks at everything there is.
    let mut wakeup_ms = Some(0);
    while !exchange.control().neighbours.is_stopping() {
        let now_ms = clock.now().monotonic_ms;
        let wait = |wakeup_ms: u64| Instant::now() + Duration::from_millis(wakeup_ms.saturating_sub(now_ms));
        let mut taken = Vec::new();
        let mut next = events.next(wakeup_ms.map(wait));
        while let Some(event) = next {
            taken.push(event);
            if taken.len() == EVENTS_PER_TURN {
                break;
            }
            next = events.next(Some(Instant::now()));
        }
        wakeup_ms = exchange.turn(clock.now(), taken);
    }
}

/// What came of a question that we sent.
struct AnswerNews {
    account: AccountId,
    question: Question,
    /// As it came. `None`: there is none.
    reply: Option<Vec<u8>>,
}

/// A question that we sent, so that its answer finds who asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Question {
    kind: QuestionKind,
    /// As the machine counts them.
    request: u32,
    /// Of the machines that asked. Others may have taken their place.
    life: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum QuestionKind {
    /// What do you call us?
    Config,
    /// Tell us routes.
    Control,
    /// These are our routes.
    Update,
    /// Are you there?
    Try,
}

/// What others leave for the thread, until its next turn. Nothing here waits for it.
#[derive(Default)]
pub(super) struct News {
    left: Mutex<Left>,
    waker: OnceLock<NeighbourWaker>,
}

/// Everything is kept once, however often it is left, and answers are as many as questions: so there is no more of it than
/// there are accounts and prefixes.
#[derive(Default)]
struct Left {
    answers: Vec<AnswerNews>,
    /// Made, changed or removed.
    accounts: BTreeSet<AccountId>,
    /// Lead elsewhere, or otherwise, than before.
    prefixes: BTreeSet<Arc<str>>,
    is_stopping: bool,
}

impl News {
    /// An account was made, changed or removed. Said after the change is in force.
    pub(super) fn account_changed(&self, account: AccountId) {
        self.left().accounts.insert(account);
        self.wake();
    }

    /// Said within the change, after it is in force.
    pub(super) fn routes_changed(&self, changes: &[RouteChange]) {
        if changes.is_empty() {
            return;
        }
        let prefixes = changes.iter().map(|change| Arc::clone(&change.prefix));
        self.left().prefixes.extend(prefixes);
        self.wake();
    }

    fn answered(&self, answer: AnswerNews) {
        self.left().answers.push(answer);
        self.wake();
    }

    /// Ends the thread's sleep.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    fn set_waker(&self, waker: NeighbourWaker) {
        assert!(self.waker.set(waker).is_ok(), "there is one thread");
    }

    fn stop(&self) {
        self.left().is_stopping = true;
        self.wake();
    }

    fn is_stopping(&self) -> bool {
        self.left().is_stopping
    }

    fn take_answers_and_accounts(&self) -> (Vec<AnswerNews>, BTreeSet<AccountId>) {
        let mut left = self.left();
        (mem::take(&mut left.answers), mem::take(&mut left.accounts))
    }

    fn take_prefixes(&self) -> BTreeSet<Arc<str>> {
        mem::take(&mut self.left().prefixes)
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().expect("nobody panics while holding it")
    }
}

/// What each neighbour told, for the thread that hears them and for whoever wants to see a path. Held for moments, and
/// never while waiting for another lock.
#[derive(Default)]
pub(super) struct Listeners {
    by_account: Mutex<HashMap<AccountId, Listener>>,
}

impl Listeners {
    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Listener>> {
        self.by_account.lock().expect("nobody panics while holding it")
    }
}

impl Control {
    /// The nodes that a route leads over which this account told, the nearest first. `None`: it told none for exactly
    /// this prefix.
    pub fn path_of(&self, prefix: &str, account: AccountId) -> Option<Vec<String>> {
        let listeners = self.listeners.lock();
        let learned = listeners.get(&account)?.get(prefix)?;
        Some(learned.path.hops().map(str::to_owned).collect())
    }
}
