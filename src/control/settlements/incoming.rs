//! What engines bring: the holder has paid outside of the node, and the account is credited.
//!
//! Owns that each key is credited once, and what is answered to a key that comes again. Leaves the conversion to
//! [`Remainder::credit`](crate::ledger::Remainder::credit).
//!
//! Always: credit, remainder, key and answer are one commit; whoever asks again is answered as before.

use num_bigint::BigUint;
use ring::digest::{SHA256, digest};

use crate::ledger::account::AccountId;
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

impl Control {
    /// Credits an account with what an engine has brought, or finds out that it was credited before. Gives the status and
    /// the body of the answer.
    pub fn receive_settlement(&self, id: AccountId, incoming: &Incoming<'_>) -> Result<(u16, Box<[u8]>), ControlError> {
        // Held to the end: the account keeps its asset meanwhile, and two of the same key come one after the other.
        let changes = self.changes.lock().expect("no change panics halfway");
        let not_found = || ControlError::NoAccountToSettle;
        let account = self.read().directory.get(id).cloned().ok_or_else(not_found)?;
        let at_ms = self.settling.now().wall.as_millis();
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
