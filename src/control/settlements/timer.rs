//! Keeps time: settles what has waited above what an account settles to, hears of new settlements, and has the answers
//! forgotten that no engine will ask for again.
//!
//! Owns the timers of `settle_every`. They are in memory only: all begin anew with the node.
//!
//! An account is settled when for `settle_every` every look at its balance, some ten in that time, found it above what it
//! settles to, and its threshold was not reached. A look is one at the book in memory, at the accounts that have a rule and
//! no others. How much of such a balance is prepaid, and not to be settled, its shard knows: the book may have taken a packet
//! and what an engine brought in another order, and count more of it, or less. What is paid ahead is never paid by the timer
//! alone: where nothing is owed it does nothing, else two peers who both pay ahead would pay each other for ever.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::ledger::account::AccountId;
use crate::ledger::settlement::Settlement;
use crate::shard::control::{SettleNow, SettleOrder};

use super::super::Control;

const FORGET_KEYS_EVERY: Duration = Duration::from_secs(60 * 60);
/// Looks per `settle_every`, and the bounds of the time between two.
const LOOKS: u32 = 10;
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);
/// How soon the thread sees that the node stops.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// Runs until the node stops.
pub(super) fn run(control: &Control, made: &Receiver<Settlement>, settle_every: Option<Duration>) {
    let look_every = settle_every.map(|every| (every / LOOKS).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX));
    let mut timers = Timers::default();
    let mut next_look = Instant::now();
    let mut next_forgetting = Instant::now() + FORGET_KEYS_EVERY;
    while !control.settling.is_stopping() {
        let now = Instant::now();
        if let (Some(every), Some(look_every)) = (settle_every, look_every)
            && now >= next_look
        {
            next_look = now + look_every;
            timers.look(control, every.as_millis() as u64);
        }
        if now >= next_forgetting {
            next_forgetting = now + FORGET_KEYS_EVERY;
            control.forget_settlement_keys();
        }
        let wait = if look_every.is_some() {
            next_look.saturating_duration_since(now).min(SLEEP_MAX)
        } else {
            SLEEP_MAX
        };
        match made.recv_timeout(wait) {
            Ok(settlement) => {
                timers.since_ms.remove(&settlement.account);
                control.settlement_made(settlement);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Since when the balance of each account is above what it settles to.
#[derive(Default)]
pub(super) struct Timers {
    pub(super) since_ms: HashMap<AccountId, u64>,
}

impl Timers {
    /// Looks at all accounts with a rule, and settles those whose time is over.
    pub(super) fn look(&mut self, control: &Control, every_ms: u64) {
        if control.not_ready().is_some() {
            return;
        }
        let ruled: BTreeSet<AccountId> = control.settling.ruled().clone();
        self.since_ms.retain(|account, _| ruled.contains(account));
        let now_ms = control.settling.now().monotonic_ms;
        for account in ruled {
            if !control.may_owe_above_rule(account) {
                self.since_ms.remove(&account);
                continue;
            }
            let since_ms = *self.since_ms.entry(account).or_insert(now_ms);
            if now_ms - since_ms < every_ms {
                continue;
            }
            self.since_ms.remove(&account);
            if let SettleNow::Made { amount } = control.shards.settle_now(account, SettleOrder::Timer) {
                tracing::info!(target: "settlements", account = %control.name_of(account), amount, "settled by time");
            }
        }
    }
}

impl Control {
    /// Whether we owe the holder something, prepaid or not, and more than the account settles to.
    fn may_owe_above_rule(&self, id: AccountId) -> bool {
        let Some(standing) = self.bookkeeper.standing(id).filter(|standing| !standing.settling) else {
            return false;
        };
        let state = self.read();
        let Some(account) = state.directory.get(id) else {
            return false;
        };
        let rule = account.settlement.threshold.zip(account.settlement.to);
        rule.is_some_and(|(threshold, to)| threshold > to && standing.booked > i128::from(to.max(0)))
    }
}
