//! Settlements as they are kept: the outbox, what engines have brought and were answered, and what is to be said to them.
//!
//! Owns the limits of what is kept for an engine's sake, and what mutations mean for it in memory. Leaves the bytes on disk
//! to [`super::schema`], the balances to [`super::fold`], and speaking to engines to `control`.
//!
//! Always: an answer that was given to an engine is kept for as long as the engine may ask again, and what is kept for it
//! is bounded.

use std::collections::BTreeMap;

use super::{Batch, Mutation, StoreError};
use crate::ledger::settlement::Settlement;
use crate::ledger::{AccountId, SettlementNumber};

/// Bytes of the key of an incoming settlement, and of what came with it: digests.
pub const SETTLEMENT_KEY_BYTES: usize = 32;

/// A digest of the key that an engine gave an incoming settlement.
pub type SettlementKey = [u8; SETTLEMENT_KEY_BYTES];

/// How an incoming settlement was answered: a digest of what came in, the status, the body.
pub type SettlementAnswer = ([u8; SETTLEMENT_KEY_BYTES], u16, Box<[u8]>);

/// Answers that are kept for an account. Beyond these the one whose last use is the longest ago makes room, if that is
/// [`SETTLEMENT_KEY_MS_MIN`] ago; if not, a further settlement is refused. Reached only by an engine that settles more
/// than once in 1.3 seconds, for a whole day.
pub const SETTLEMENT_KEYS_MAX: usize = 65_536;

/// For how long after its last use an answer is kept in any case: an engine may ask again for at least a day.
pub const SETTLEMENT_KEY_MS_MIN: u64 = 24 * 60 * 60 * 1000;

/// Bytes of an answer's body: it is a quantity, or a word on what is wrong.
pub const SETTLEMENT_ANSWER_BYTES_MAX: usize = 4_096;

/// Engines of which something is kept for one account, at one time. It has one; more wait only to be told that they no
/// longer do, for as long as they cannot be reached.
pub const ENGINES_OF_ACCOUNT_MAX: usize = 64;

/// Bytes of an engine's URL.
pub const ENGINE_URL_BYTES_MAX: usize = 2_048;

/// What is to be said to an engine of an account.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EngineTask {
    /// That the account exists.
    Create,
    /// That it is no more, or has another engine.
    Delete,
}

/// A task that no engine has acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenEngineTask {
    /// May be deleted already; its number is never given again.
    pub account: AccountId,
    pub engine: Box<str>,
    /// By which the engine knows the account.
    pub uuid: [u8; 16],
    pub task: EngineTask,
}

/// What an engine knows of an account, and what it is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EngineAccount {
    pub uuid: [u8; 16],
    /// It has acknowledged that the account exists.
    pub announced: bool,
    pub task: Option<EngineTask>,
}

/// By account and engine.
pub(super) type EngineAccounts = BTreeMap<(AccountId, Box<str>), EngineAccount>;

/// Entries of [`EngineAccounts`] as they become; `None`: gone.
pub(super) type ChangedEngineAccounts = Vec<((AccountId, Box<str>), Option<EngineAccount>)>;

/// What a mutation makes of what engines know. Changes nothing in place, so that a store can write exactly
/// what changes.
pub(super) fn tell(known: &EngineAccounts, mutation: &Mutation) -> ChangedEngineAccounts {
    match mutation {
        Mutation::AnnounceAccount {
            account,
            engine,
            uuid,
            task,
        } => {
            let key = (*account, engine.clone());
            let after = EngineAccount {
                uuid: *uuid,
                announced: known.get(&key).is_some_and(|before| before.announced),
                task: Some(*task),
            };
            vec![(key, Some(after))]
        }
        Mutation::AnnouncedAccount { account, engine, task } => {
            let key = (*account, engine.clone());
            let Some(before) = known.get(&key) else {
                // The account was deleted meanwhile.
                return Vec::new();
            };
            let after = EngineAccount {
                announced: *task == EngineTask::Create,
                // Another task may have taken the place of the one that is done.
                task: before.task.filter(|open| open != task),
                ..*before
            };
            let is_of_use = after.announced || after.task.is_some();
            vec![(key, is_of_use.then_some(after))]
        }
        // What the engine was to be told of the account's end is still to be told.
        Mutation::DeleteAccount { id, .. } => of_account(known, *id)
            .filter(|(_, of)| of.task != Some(EngineTask::Delete))
            .map(|(key, _)| (key.clone(), None))
            .collect(),
        _ => Vec::new(),
    }
}

/// The engines that know an account, or are to.
pub(super) fn of_account(
    known: &EngineAccounts,
    account: AccountId,
) -> impl Iterator<Item = (&(AccountId, Box<str>), &EngineAccount)> {
    let first = (account, Box::default());
    known.range(first..).take_while(move |((of, _), _)| *of == account)
}

/// Those entries changed.
pub(super) fn update(known: &mut EngineAccounts, changed: ChangedEngineAccounts) {
    for (key, after) in changed {
        match after {
            Some(after) => drop(known.insert(key, after)),
            None => drop(known.remove(&key)),
        }
    }
}

/// Whether the parts of a mutation that come from outside are as short as they must be.
pub(super) fn check_bytes(mutation: &Mutation) -> Result<(), StoreError> {
    match mutation {
        Mutation::ReceiveSettlement { answer, .. } if answer.len() > SETTLEMENT_ANSWER_BYTES_MAX => {
            Err(StoreError::Inconsistent("the answer to a settlement is short"))
        }
        Mutation::AnnounceAccount { engine, .. } if engine.len() > ENGINE_URL_BYTES_MAX => {
            Err(StoreError::Inconsistent("the URL of an engine is short"))
        }
        _ => Ok(()),
    }
}

/// What a store in memory remembers of settlements, besides what a start reads back.
#[derive(Clone, Default)]
pub(super) struct RememberedSettlements {
    records: BTreeMap<SettlementNumber, Settlement>,
    answers: BTreeMap<(AccountId, SettlementKey), SettlementAnswer>,
}

impl RememberedSettlements {
    /// What a batch means for them.
    pub fn commit(&mut self, batch: &Batch) {
        for settlement in &batch.settlements {
            self.records.insert(settlement.number, settlement.clone());
        }
        for mutation in &batch.mutations {
            match mutation {
                Mutation::ReceiveSettlement {
                    account,
                    key,
                    input,
                    status,
                    answer,
                    ..
                } => {
                    self.answers.insert((*account, *key), (*input, *status, answer.clone()));
                }
                Mutation::ForgetSettlements { account, before } => {
                    self.records
                        .retain(|number, settlement| settlement.account != *account || number >= before);
                }
                Mutation::DeleteAccount { id, .. } => {
                    self.records.retain(|_, settlement| settlement.account != *id);
                    self.answers.retain(|(account, _), _| account != id);
                }
                _ => {}
            }
        }
        for (key, _) in batch.keys_used.iter().filter(|(_, used_ms)| used_ms.is_none()) {
            self.answers.remove(key);
        }
    }

    /// See [`super::Reader::settlement`].
    pub fn find(&self, number: SettlementNumber) -> Option<Settlement> {
        self.records.get(&number).cloned()
    }

    /// See [`super::Reader::settlement_by_id`].
    pub fn find_by_id(&self, id: [u8; 16]) -> Option<Settlement> {
        self.records.values().find(|settlement| settlement.id == id).cloned()
    }

    /// See [`super::Reader::settlements`].
    pub fn list(&self, account: AccountId, before: Option<SettlementNumber>, limit: usize) -> Vec<Settlement> {
        let newest_first = self.records.values().rev();
        let is_wanted = |one: &&Settlement| one.account == account && before.is_none_or(|before| one.number < before);
        newest_first.filter(is_wanted).take(limit).cloned().collect()
    }

    /// See [`super::Reader::settlement_answer`].
    pub fn answer(&self, account: AccountId, key: &SettlementKey) -> Option<SettlementAnswer> {
        self.answers.get(&(account, *key)).cloned()
    }
}
