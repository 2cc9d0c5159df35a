//! Who wants to know what our own accounts receive.

use crate::ledger::AccountId;

use super::Shard;
use super::control::Notice;

impl Shard {
    /// Whether anybody wants to know what this account receives.
    pub(super) fn has_subscribers(&self, _account: AccountId) -> bool {
        false
    }

    /// Tells all who want to know. What it tells is durable.
    pub(super) fn notify(&mut self, _notice: Notice) {}
}
