//! The node's own address: as configured, or as our parent calls us.
//!
//! Owns which of both it is, and what follows when it changes: the addresses that were made from it, what accounts claim,
//! and what the shards know. Leaves asking the parent to [`super::neighbours`].
//!
//! Always: the node has an assigned address only while it has a parent; an address that would belong to two accounts is
//! not taken.

use std::collections::HashSet;
use std::sync::Arc;

use crate::ledger::account::{Account, RoutingRelation};
use crate::shard::control::Change;
use crate::store::{Book, Mutation};
use crate::wire::address::Address;

use super::state::{State, renamed_address};
use super::{Control, ControlError};

/// The address of a node that starts on this book: what its parent called it, if it has one, else what is configured.
pub fn address_at_start<'a>(configured: &'a str, book: &'a Book) -> &'a str {
    let is_parent = |account: &Account| account.routing_relation == RoutingRelation::Parent;
    let has_parent = book.accounts.iter().any(|(account, _)| is_parent(account));
    let assigned = book.assigned_address.as_deref();
    assigned.filter(|_| has_parent).unwrap_or(configured)
}

impl Control {
    /// Our parent calls us this. Says whether that is another address than before. Nothing changes if the address is
    /// that of another account, or if an account would get an address that it cannot have.
    pub(super) fn assign_address(&self, address: Address<'_>) -> Result<bool, ControlError> {
        let _changes = self.changes.lock().expect("no change panics halfway");
        if self.read().parent().is_none() {
            // It was removed while it answered.
            return Ok(false);
        }
        self.rename_node(Some(address.as_str().into()))
    }

    /// There is no parent any more, so what it called us is not our address. Within a change.
    pub(super) fn leave_parent(&self) {
        if let Err(error) = self.rename_node(None) {
            // The next start tries again.
            tracing::error!(target: "routes", %error, "the node keeps the address of a parent that it no longer has");
        }
    }

    /// Takes an assigned address, or goes back to the configured one. Within a change.
    fn rename_node(&self, assigned: Option<Arc<str>>) -> Result<bool, ControlError> {
        let address = assigned.as_ref().unwrap_or(&self.configured_address);
        let (is_known, renamed) = {
            let state = self.read();
            let renamed = if state.node_address == *address {
                Vec::new()
            } else {
                renamed_accounts(&state, address)?
            };
            (state.assigned_address == assigned, renamed)
        };
        let is_another = *self.node_address() != **address;
        if is_known && !is_another {
            return Ok(false);
        }
        let mut mutations = vec![Mutation::PutAssignedAddress(assigned.as_deref().map(Box::from))];
        if is_another {
            mutations.push(Mutation::PutNodeAddress((**address).into()));
        }
        mutations.extend(renamed.iter().cloned().map(Mutation::PutAccount));
        self.bookkeeper.apply(mutations)?;
        // Durable: nothing below can fail.
        let routes = {
            let mut state = self.write();
            state.node_address = Arc::clone(address);
            let mut steps = Vec::new();
            for account in &renamed {
                let before = state.directory.get(account.id).expect("it was there a moment ago");
                steps.extend(State::unclaims_of(before).chain(State::claims_of(account)));
                state.put_account(Arc::clone(account));
            }
            let routes = state.routes.apply(steps);
            state.assigned_address.clone_from(&assigned);
            routes
        };
        if is_another {
            tracing::info!(
                target: "routes", %address, is_assigned = assigned.is_some(), accounts = renamed.len(),
                "the node has another address"
            );
            let address = Change::NodeAddress(Arc::clone(address));
            let accounts = renamed.into_iter().map(Change::Account);
            self.publish([address].into_iter().chain(accounts), routes, []);
            self.neighbours.wake();
        }
        Ok(is_another)
    }
}

/// The accounts whose address follows the node's, with their addresses below the new one.
fn renamed_accounts(state: &State, node_address: &Arc<str>) -> Result<Vec<Arc<Account>>, ControlError> {
    let mut renamed = Vec::new();
    for account in state.directory.iter().filter(|account| account.ilp_address_generated) {
        renamed.push(Arc::new(Account {
            ilp_address: renamed_address(node_address, &account.username)?,
            ..Account::clone(account)
        }));
    }
    let moves: HashSet<_> = renamed.iter().map(|account| account.id).collect();
    // Somebody else has it, and stays where it is.
    let is_taken = |address: &str| state.routes.claims(address).any(|id| !moves.contains(&id));
    let new = renamed.iter().map(|account| &account.ilp_address);
    if let Some(address) = new.chain([node_address]).find(|address| is_taken(address)) {
        return Err(ControlError::DuplicateAddress {
            address: Arc::clone(address),
        });
    }
    Ok(renamed)
}
