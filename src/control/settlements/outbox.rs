//! Calls engines: one call at a time per thread, each with what has to be durable before it and after it.
//!
//! Owns what an engine's answer means for the record of a settlement. Leaves when to call to [`super::queue`].

use std::sync::Arc;

use url::Url;
use uuid::Uuid;

use crate::client::engine::EngineAnswer;
use crate::ledger::account::AccountId;
use crate::ledger::settlement::{SentTo, Settlement, SettlementState};
use crate::shard::control::Change;
use crate::store::{EngineTask, Mutation, StoreError};

use super::super::Control;
use super::queue::{Call, CallEnd, Job};
use super::{ENDED_KEPT, Engines, FORGET_EVERY};

/// How long a thread sleeps at most: a wall clock that was set, or a wake-up that was missed, costs no more.
const SLEEP_MS_MAX: u64 = 60_000;

/// Why a settlement is not tried again.
const KEY_FORGOTTEN: &str = "the engine may have accepted it so long ago that it does not know the key any more";

impl Control {
    /// Makes calls until the node stops.
    pub(super) fn call_engines(&self, engines: &dyn Engines) {
        let desk = &self.settling;
        while !desk.is_stopping() {
            let now = desk.now();
            let mut queue = desk.queue();
            match queue.take(now.monotonic_ms) {
                Ok(job) => {
                    drop(queue);
                    // There may be more for another thread.
                    desk.changed.notify_one();
                    self.make_call(engines, &job);
                }
                Err(wakeup_ms) => {
                    let wait_ms = wakeup_ms.map_or(SLEEP_MS_MAX, |at_ms| at_ms.saturating_sub(now.monotonic_ms));
                    if desk.is_stopping() {
                        return;
                    }
                    let wait = std::time::Duration::from_millis(wait_ms.clamp(1, SLEEP_MS_MAX));
                    drop(
                        desk.changed
                            .wait_timeout(queue, wait)
                            .expect("nobody panics while holding it"),
                    );
                }
            }
        }
    }

    /// Makes one call that was taken from the queue.
    pub(super) fn make_call(&self, engines: &dyn Engines, job: &Job) {
        match &job.call {
            Call::Settle(settlement) => self.try_settlement(engines, job, settlement),
            Call::Tell { account, uuid, task } => self.tell_engine(engines, job, *account, *uuid, *task),
        }
    }

    fn try_settlement(&self, engines: &dyn Engines, job: &Job, before: &Settlement) {
        let account = self.read().directory.get(before.account).cloned();
        let (Some(account), Ok(url)) = (account, Url::parse(&job.engine)) else {
            return self.not_called(job, before, "the account or its engine is not there");
        };
        let now_ms = self.settling.now().wall.as_millis();
        if before.is_key_forgotten(now_ms, self.settling.engine_key_kept_ms()) {
            return self.give_up(job, before);
        }
        let sent = Settlement {
            state: SettlementState::Sent,
            sent_to: Some(before.sent_to.clone().unwrap_or_else(|| SentTo {
                engine: (*job.engine).into(),
                since_ms: now_ms,
            })),
            attempts: before.attempts.saturating_add(1),
            last_attempt_ms: Some(now_ms),
            ..before.clone()
        };
        if let Err(error) = self.bookkeeper.apply(vec![Mutation::UpdateSettlement(sent.clone())]) {
            return self.not_called(job, before, &error.to_string());
        }
        let id = Uuid::from_bytes(sent.id);
        let uuid = Uuid::from_bytes(account.uuid);
        let answer = engines.settle(&url, uuid, sent.amount, sent.scale, &id.to_string());
        let (end, after) = self.after_try(before, sent, answer);
        self.conclude(job, before, end, after);
    }

    /// The engine may have paid it, and may not know that any more: only its ledger can tell.
    fn give_up(&self, job: &Job, before: &Settlement) {
        let mut after = Settlement {
            state: SettlementState::Failed,
            ..before.clone()
        };
        let last = before.last_error.as_deref().unwrap_or("the node ended during the call");
        after.set_last_error(&format!(
            "{KEY_FORGOTTEN}: see whether its ledger has the payment, then confirm, or retry or cancel with force; last: {last}"
        ));
        tracing::error!(
            target: "settlements",
            settlement = %Uuid::from_bytes(after.id), account = %self.name_of(after.account), amount = after.amount,
            engine = %job.engine,
            "{KEY_FORGOTTEN}: the settlement waits for the operator to confirm, to retry or to cancel it"
        );
        self.conclude(job, before, CallEnd::NotMade, after);
    }

    /// What is known after a try. What an earlier try may have done, none that never arrived or was refused can undo.
    fn after_try(&self, before: &Settlement, sent: Settlement, answer: EngineAnswer) -> (CallEnd, Settlement) {
        let mut after = sent;
        let id = Uuid::from_bytes(after.id);
        match answer {
            EngineAnswer::Accepted(_) => {
                after.state = SettlementState::Confirmed;
                after.ended_ms = Some(self.settling.now().wall.as_millis());
                after.last_error = None;
                (CallEnd::Answered, after)
            }
            EngineAnswer::Refused { status, detail } => {
                after.state = SettlementState::Failed;
                after.sent_to.clone_from(&before.sent_to);
                after.set_last_error(&format!("the engine answered {status}: {detail}"));
                tracing::error!(
                    target: "settlements",
                    settlement = %id, account = %self.name_of(after.account), amount = after.amount, status, detail,
                    "the engine refuses a settlement: it waits for the operator to retry or to cancel it"
                );
                (CallEnd::Answered, after)
            }
            EngineAnswer::Unknown { error } => {
                self.warn_sometimes(&after, &error);
                after.set_last_error(&error);
                (CallEnd::Failed, after)
            }
            EngineAnswer::NotSent { error } => {
                self.warn_sometimes(&after, &error);
                if before.sent_to.is_none() {
                    (after.state, after.sent_to) = (SettlementState::Pending, None);
                }
                after.set_last_error(&error);
                (CallEnd::Failed, after)
            }
        }
    }

    /// Makes what is known durable, then lets everybody know.
    fn conclude(&self, job: &Job, before: &Settlement, end: CallEnd, after: Settlement) {
        let is_confirmed = after.state == SettlementState::Confirmed;
        let mut mutations = vec![Mutation::UpdateSettlement(after.clone())];
        mutations.extend(is_confirmed.then(|| self.forgetting(&after)).flatten());
        let applied = self.bookkeeper.apply(mutations);
        let id = Uuid::from_bytes(after.id);
        self.settling.change(|queue, now| {
            queue.end(now.monotonic_ms, job, end);
            match &applied {
                Ok(_) if !is_confirmed => queue.settled(now.monotonic_ms, before, after.clone()),
                Ok(_) | Err(StoreError::SettlementNotOpen { .. }) => queue.ended(&after),
                // The book still says that it was sent, and the next start tries it again.
                Err(_) => queue.postpone(now.monotonic_ms, job),
            }
        });
        match applied {
            Ok(_) if is_confirmed => {
                let (account, attempts) = (self.name_of(after.account), after.attempts);
                tracing::info!(target: "settlements", settlement = %id, %account, attempts, "confirmed");
                let ended = Change::SettlementEnded {
                    account: after.account,
                    returned: 0,
                };
                let _changes = self.changes.lock().expect("no change panics halfway");
                self.shards.publish(&[ended]);
            }
            Ok(_) => {}
            Err(StoreError::SettlementNotOpen { .. }) if is_confirmed && self.was_cancelled(&after) => tracing::error!(
                target: "settlements", settlement = %id, account = %self.name_of(after.account), amount = after.amount,
                "an engine has accepted a settlement that the operator has cancelled by force: it is paid, and was returned"
            ),
            Err(StoreError::SettlementNotOpen { .. }) => {}
            Err(error) => tracing::error!(target: "settlements", settlement = %id, %error, "cannot be noted"),
        }
    }

    fn was_cancelled(&self, settlement: &Settlement) -> bool {
        let reader = self.bookkeeper.reader();
        let found = reader.and_then(|reader| reader.settlement(settlement.number));
        // What cannot be read is rather reported for nothing than not at all.
        !found.is_ok_and(|found| found.is_some_and(|found| found.state == SettlementState::Confirmed))
    }

    /// Nothing was asked of the engine.
    fn not_called(&self, job: &Job, before: &Settlement, reason: &str) {
        let is_open = self
            .bookkeeper
            .reader()
            .and_then(|reader| reader.settlement(before.number))
            .is_ok_and(|found| found.is_some_and(|found| found.state.is_open()));
        if is_open && self.not_ready().is_none() {
            let id = Uuid::from_bytes(before.id);
            tracing::error!(target: "settlements", settlement = %id, reason, "cannot be sent");
        }
        self.settling.change(|queue, now| {
            queue.end(now.monotonic_ms, job, CallEnd::NotMade);
            match is_open || self.bookkeeper.failure().is_some() {
                true => queue.postpone(now.monotonic_ms, job),
                // Cancelled since it was taken.
                false => queue.ended(before),
            }
        });
    }

    /// Now and then the oldest of those that have ended go. Drawn by the random id, because the numbers of an account
    /// follow from how many others settle, and may never have what makes one the next to look.
    pub(super) fn forgetting(&self, ended: &Settlement) -> Option<Mutation> {
        if !ended.id[0].is_multiple_of(FORGET_EVERY) {
            return None;
        }
        let reader = self.bookkeeper.reader().ok()?;
        let kept = reader.settlements(ended.account, None, ENDED_KEPT).ok()?;
        let last = kept.last().filter(|_| kept.len() == ENDED_KEPT)?;
        Some(Mutation::ForgetSettlements {
            account: ended.account,
            before: last.number,
        })
    }

    fn tell_engine(&self, engines: &dyn Engines, job: &Job, account: AccountId, uuid: Uuid, task: EngineTask) {
        let engine = &job.engine;
        let answer = match Url::parse(engine) {
            // Another key each time: the engine is told how it is now, and not what it was told before.
            Ok(url) => {
                let key = Uuid::new_v4().to_string();
                match task {
                    EngineTask::Create => engines.create_account(&url, uuid, &key),
                    EngineTask::Delete => engines.delete_account(&url, uuid, &key),
                }
            }
            Err(error) => EngineAnswer::NotSent {
                error: error.to_string(),
            },
        };
        let (end, result) = match answer {
            EngineAnswer::Accepted(_) => {
                let told = Mutation::AnnouncedAccount {
                    account,
                    engine: (**engine).into(),
                    task,
                };
                let applied = self.bookkeeper.apply(vec![told]);
                (CallEnd::Answered, applied.map(drop).map_err(|error| error.to_string()))
            }
            EngineAnswer::Refused { status, detail } => (
                CallEnd::Answered,
                Err(format!("the engine answered {status}: {detail}")),
            ),
            EngineAnswer::Unknown { error } | EngineAnswer::NotSent { error } => (CallEnd::Failed, Err(error)),
        };
        let attempts = self.settling.change(|queue, now| {
            queue.end(now.monotonic_ms, job, end);
            let attempts = queue.engine_account(account, engine).map_or(0, |entry| entry.attempts);
            match &result {
                Ok(()) => queue.told(account, engine, task),
                Err(error) => queue.not_told(now.monotonic_ms, account, engine, error),
            }
            attempts
        });
        if let Err(error) = result
            && attempts.is_power_of_two()
        {
            let engine: &Arc<str> = engine;
            tracing::warn!(target: "settlements", %engine, account = %uuid, ?task, attempts, error, "an engine does not take an account");
        }
    }

    /// With the first, second, fourth, eighth try and so on: who waits for an hour need not say so 3,600 times.
    fn warn_sometimes(&self, tried: &Settlement, error: &str) {
        let attempts = tried.attempts;
        if attempts.is_power_of_two() {
            tracing::warn!(
                target: "settlements",
                settlement = %Uuid::from_bytes(tried.id), account = %self.name_of(tried.account), attempts, error,
                "not acknowledged yet; it will be tried again"
            );
        }
    }
}
