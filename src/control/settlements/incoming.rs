//! What engines bring: the holder has paid outside of the node, and the account is credited.
//!
//! Owns that each key is credited once, and what is answered to a key that comes again. Leaves the conversion to
//! [`Remainder::credit`](crate::ledger::Remainder::credit).
//!
//! Always: credit, remainder, key and answer are one commit; whoever asks again is answered as before, and a time of day that
//! is wrong, or was, makes nobody forget what was credited.

use std::collections::VecDeque;

use num_bigint::BigUint;
use ring::digest::{SHA256, digest};

use crate::ledger::account::AccountId;
use crate::pipeline::Now;
use crate::shard::control::Change;
use crate::store::{Mutation, SETTLEMENT_KEY_BYTES, StoreError};

use super::super::{Control, ControlError};

/// A settlement as an engine tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incoming<'a> {
    pub key: &'a str,
    /// In units of `10^-scale`.
    pub amount: &'a BigUint,
    pub scale: u8,
    /// What the engine is answered, now and whenever it asks again with this key.
    pub status: u16,
    pub answer: &'a [u8],
}

/// For how long after its last use the answer to a key is kept.
const KEY_KEPT_MS: u64 = 48 * 60 * 60 * 1_000;
const HOUR_MS: u64 = 60 * 60 * 1_000;

/// The lowest time of day at which a key was used, for every hour of [`KEY_KEPT_MS`] that the node has run in which one was.
///
/// Keys are kept with the time of day of their last use. That alone may not say which are old: a clock that jumps ahead would
/// make all of them old at once, and one that was behind when a key came, as on a machine that has just been started, makes
/// that key old as soon as it is put right. So the node must have run for as long besides.
#[derive(Default)]
pub(super) struct KeysUsed {
    /// The number of the hour by the monotonic clock, ascending, and the time of day.
    hours: VecDeque<(u64, u64)>,
}

impl KeysUsed {
    /// A key is used now.
    fn note(&mut self, now: Now) {
        let (hour, at_ms) = (now.monotonic_ms / HOUR_MS, now.wall.as_millis());
        match self.hours.back_mut() {
            Some((last, lowest_ms)) if *last == hour => *lowest_ms = at_ms.min(*lowest_ms),
            _ => self.hours.push_back((hour, at_ms)),
        }
    }

    /// Keys that were last used before this time of day have not been used for [`KEY_KEPT_MS`], by both clocks. `None`: the
    /// node has not run for long enough to know.
    fn forgettable_before_ms(&mut self, now: Now) -> Option<u64> {
        // The monotonic clock begins with the process.
        let since_ms = now.monotonic_ms.checked_sub(KEY_KEPT_MS)?;
        while self.hours.front().is_some_and(|(hour, _)| *hour < since_ms / HOUR_MS) {
            self.hours.pop_front();
        }
        let lowest_ms = self.hours.iter().map(|(_, lowest_ms)| *lowest_ms).min();
        let before_ms = now.wall.as_millis().saturating_sub(KEY_KEPT_MS);
        Some(lowest_ms.map_or(before_ms, |lowest_ms| lowest_ms.min(before_ms)))
    }
}

impl Control {
    /// Forgets the answers that no engine will ask for again. In short steps: packets become durable between them.
    pub(super) fn forget_settlement_keys(&self) {
        let mut from = Some(AccountId::new(0));
        while let Some(first) = from.filter(|_| !self.settling.is_stopping()) {
            // Held for the step: no key is used between the look at the clocks and what follows from it.
            let _changes = self.changes.lock().expect("no change panics halfway");
            let now = self.settling.now();
            let Some(before_ms) = self.settling.keys_used().forgettable_before_ms(now) else {
                return;
            };
            let forget = Mutation::ForgetSettlementKeys { before_ms, from: first };
            // Refused only by a node that cannot commit; it says so itself.
            let Ok(applied) = self.bookkeeper.apply(vec![forget]) else {
                return;
            };
            from = applied.forget_keys_from;
        }
    }

    /// Credits an account with what an engine has brought, or finds out that it was credited before. Gives the status and
    /// the body of the answer.
    pub fn receive_settlement(&self, id: AccountId, incoming: &Incoming<'_>) -> Result<(u16, Box<[u8]>), ControlError> {
        // Held to the end: the account keeps its asset meanwhile, and two of the same key come one after the other.
        let changes = self.changes.lock().expect("no change panics halfway");
        let not_found = || ControlError::NoAccountToSettle;
        let account = self.read().directory.get(id).cloned().ok_or_else(not_found)?;
        let now = self.settling.now();
        self.settling.keys_used().note(now);
        let at_ms = now.wall.as_millis();
        let key = sha256(incoming.key.as_bytes());
        let input = sha256(format!("{} {}", incoming.amount, incoming.scale).as_bytes());
        let reader = self.bookkeeper.reader()?;
        // First of all, whether the node is ready or not, and whoever settles for the account now: an engine that hears that
        // it was not credited may bring it again under another key.
        if let Some((known, status, answer)) = reader.settlement_answer(id, &key)? {
            let account = id;
            // It is kept for longer now; if that cannot be noted, the answer is right nevertheless.
            let _ = self
                .bookkeeper
                .apply(vec![Mutation::UseSettlementKey { account, key, at_ms }]);
            return match known == input {
                true => Ok((status, answer)),
                false => Err(ControlError::SettlementKeyConflict),
            };
        }
        if let Some(reason) = self.not_ready() {
            return Err(ControlError::NotReady { reason });
        }
        if self.engine_of(&account).is_none() {
            return Err(not_found());
        }
        if changes.closing.contains(&id) {
            let reason = "the account is being deleted".to_owned();
            return Err(ControlError::NotReady { reason });
        }
        let before = reader.remainder(id)?;
        let converted = before.credit(incoming.amount, incoming.scale, account.asset.scale);
        let (credited, remainder) = converted.map_err(|_| ControlError::SettlementTooLarge)?;
        let applied = self.bookkeeper.apply(vec![Mutation::ReceiveSettlement {
            account: id,
            credited,
            remainder,
            key,
            input,
            status: incoming.status,
            answer: incoming.answer.into(),
            at_ms,
        }]);
        match applied {
            Ok(_) => {}
            Err(error @ StoreError::TooManySettlementKeys { .. }) => {
                let reason = error.to_string();
                return Err(ControlError::NotReady { reason });
            }
            Err(error) => return Err(error.into()),
        }
        tracing::info!(
            target: "settlements", account = %account.username, amount = %incoming.amount, scale = incoming.scale, credited,
            "received"
        );
        if credited > 0 {
            self.shards
                .publish(&[Change::SettlementReceived { account: id, credited }]);
        }
        Ok((incoming.status, incoming.answer.into()))
    }
}

fn sha256(bytes: &[u8]) -> [u8; SETTLEMENT_KEY_BYTES] {
    let digest = digest(&SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
