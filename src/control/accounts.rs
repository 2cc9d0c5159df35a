//! Creating, changing and closing accounts.
//!
//! Owns the order of effects of each: validate, one durable commit, all shards, then links. What happens outside of the
//! node (a connection that does not come up) never undoes an account; it becomes a [`Warning`].

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::account::{
    Account, AccountId, Asset, OrDefault, PackedLinks, ROUND_TRIP_TIME_MS_DEFAULT, RoutingRelation,
};
use crate::routing::table::Step;
use crate::shard::control::{AccountState, Change};
use crate::store::{Mutation, StoreError};
use crate::wire::address::Address;
use crate::wire::timestamp::Timestamp;

use super::edit::{AccountEdit, Edit, must_redial};
use super::state::{DEFAULT_ROUTE, State, generated_address};
use super::{Control, ControlError, Warning};

/// How long a caller waits for a BTP connection that the node dials. It is dialled for ever after that.
pub const BTP_WAIT: Duration = Duration::from_secs(2);
/// How long packets in flight may take to end before the account is not deleted after all: the longest hold.
pub const CLOSE_WAIT: Duration = Duration::from_secs(30);
/// How long a closed account may need until its last transfer is durable, when nothing was in flight before: some turns
/// of a shard and a commit.
const QUIET_WAIT: Duration = Duration::from_secs(1);
/// How long the end of an account's last payment may need to be stored, when nothing of it is in flight any more: some
/// commits. And how often that is looked at.
const PAYMENT_END_WAIT: Duration = Duration::from_secs(2);
const PAYMENT_END_ASK_AGAIN: Duration = Duration::from_millis(5);

/// An account after a change, and what the caller should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub account: Arc<Account>,
    pub warnings: Vec<Warning>,
}

/// An account that is no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deleted {
    pub account: Arc<Account>,
    /// Fixed and default routes that led to it, by prefix; its own address not among them.
    pub removed_routes: Vec<Arc<str>>,
    /// How many routes had been learned from it.
    pub learned_routes: usize,
    /// What was booked to our own position: positive is what we owed the holder.
    pub written_off: i128,
}

impl Control {
    /// Creates an account. `username` is what [`crate::ledger::directory::normalize_username`] gave; the edit has an
    /// asset code and a scale.
    pub fn create_account(&self, now: Timestamp, username: &str, edit: AccountEdit) -> Result<Outcome, ControlError> {
        let mut changes = self.begin()?;
        let (Some(code), Some(scale)) = (&edit.asset_code, edit.asset_scale) else {
            return Err(ControlError::Internal("a new account came without an asset".to_owned()));
        };
        let asset = Asset {
            code: (**code).into(),
            scale,
        };
        let id = changes.next_account_id;
        let next_account_id = id.checked_add(1).ok_or(ControlError::TooManyAccounts)?;

        let (account, is_new_asset) = {
            let state = self.read();
            let (asset, asset_id, is_new_asset) = state.intern(asset)?;
            let (ilp_address, ilp_address_generated) = chosen_address(&state, username, &edit.ilp_address)?;
            let mut account = Account {
                id: AccountId::new(id),
                uuid: uuid::Uuid::new_v4().into_bytes(),
                username: username.into(),
                ilp_address,
                ilp_address_generated,
                asset,
                asset_id,
                routing_relation: RoutingRelation::default(),
                limits: OrDefault::default(),
                round_trip_time_ms: ROUND_TRIP_TIME_MS_DEFAULT,
                settlement: OrDefault::default(),
                links: PackedLinks::default(),
                created_at_ms: now.as_millis(),
            };
            edit.apply(&mut account);
            state.check(&account, None)?;
            (Arc::new(account), is_new_asset)
        };

        let mut mutations = put_account(&account, is_new_asset);
        mutations.extend(self.announcements(None, Some(&account)));
        self.bookkeeper.apply(mutations.clone())?;
        // Durable: nothing below can fail.
        changes.next_account_id = next_account_id;
        let (routes, settling) = {
            let mut state = self.write();
            let settling = add_asset(&mut state, &account, is_new_asset);
            state.put_account(Arc::clone(&account));
            state.begin_link(&account);
            (state.routes.apply(State::claims_of(&account)), settling)
        };
        let account_put = Change::Account(Arc::clone(&account));
        self.publish(settling.into_iter().chain([account_put]), routes, []);
        self.settling.announce(&mutations);
        self.settling.account_changed(&account, self.engine_of(&account));
        drop(changes);
        self.neighbours.account_changed(account.id);

        Ok(self.outcome(account, true))
    }

    /// Changes an account. What the edit does not name is kept.
    pub fn update_account(&self, username: &str, edit: AccountEdit) -> Result<Outcome, ControlError> {
        self.update(|state| state.account(username), edit)
    }

    /// The same for the account that `known` is, or was: whoever was let in to change it has no say over another that
    /// has got its name since.
    pub fn update_known_account(&self, known: &Account, edit: AccountEdit) -> Result<Outcome, ControlError> {
        let not_found = || ControlError::AccountNotFound {
            username: known.username.clone(),
        };
        self.update(|state| state.directory.get(known.id).ok_or_else(not_found), edit)
    }

    fn update(
        &self,
        find: impl FnOnce(&State) -> Result<&Arc<Account>, ControlError>,
        edit: AccountEdit,
    ) -> Result<Outcome, ControlError> {
        let changes = self.begin()?;
        let (before, after, is_new_asset) = {
            let state = self.read();
            let before = Arc::clone(find(&state)?);
            if changes.closing.contains(&before.id) {
                return Err(ControlError::PacketsInFlight);
            }
            let mut after = Account::clone(&before);
            if edit.ilp_address.is_given() {
                (after.ilp_address, after.ilp_address_generated) =
                    chosen_address(&state, &before.username, &edit.ilp_address)?;
            }
            let mut asset = Asset::clone(&before.asset);
            if let Some(code) = &edit.asset_code {
                asset.code = (**code).into();
            }
            asset.scale = edit.asset_scale.unwrap_or(asset.scale);
            let is_new_asset;
            (after.asset, after.asset_id, is_new_asset) = state.intern(asset)?;
            edit.apply(&mut after);
            state.check(&after, Some(&before))?;
            (before, Arc::new(after), is_new_asset)
        };
        if after == before {
            drop(changes);
            return Ok(self.outcome(before, false));
        }
        let changes_asset = after.asset_id != before.asset_id;
        if changes_asset {
            self.close_for_new_asset(before.id)?;
        }
        let mut mutations = put_account(&after, is_new_asset);
        mutations.extend(self.announcements(Some(&before), Some(&after)));
        if let Err(error) = self.bookkeeper.apply(mutations.clone()) {
            if changes_asset {
                self.shards.publish(&[Change::ReopenAccount(before.id)]);
            }
            return Err(match error {
                StoreError::BalanceNotZero { .. }
                | StoreError::PrepaidNotZero { .. }
                | StoreError::RemainderNotZero
                | StoreError::SettlementOpen => ControlError::AssetInUse,
                other => other.into(),
            });
        }
        // Durable: nothing below can fail.
        let (routes, settling) = {
            let mut state = self.write();
            let settling = add_asset(&mut state, &after, is_new_asset);
            state.put_account(Arc::clone(&after));
            let claims = State::unclaims_of(&before).chain(State::claims_of(&after));
            (state.routes.apply(claims), settling)
        };
        let account = [Change::Account(Arc::clone(&after))];
        let reopened = changes_asset.then_some(Change::ReopenAccount(after.id));
        self.publish(settling.into_iter().chain(account).chain(reopened), routes, []);
        self.settling.announce(&mutations);
        self.settling.account_changed(&after, self.engine_of(&after));
        let is_parent = |account: &Account| account.routing_relation == RoutingRelation::Parent;
        if is_parent(&before) && !is_parent(&after) {
            self.leave_parent();
        }
        drop(changes);
        self.neighbours.account_changed(after.id);

        let dials = must_redial(&before.links, &after.links);
        Ok(self.outcome(after, dials))
    }

    /// Deletes an account once nothing of it is in flight. Its balance must be zero, unless `force` writes it off.
    ///
    /// Others make their changes while this waits; this account is out of their reach until then.
    pub fn delete_account(&self, username: &str, force: bool) -> Result<Deleted, ControlError> {
        let account = {
            let mut changes = self.begin()?;
            let account = Arc::clone(self.read().account(username)?);
            // Known to fail already: do not disturb the account for it. The store has the last word below.
            let standing = self.bookkeeper.standing(account.id).unwrap_or_default();
            if standing.settling {
                return Err(ControlError::SettlementPending);
            }
            let balance = standing.booked;
            if balance != 0 && !force {
                return Err(ControlError::BalanceNotZero { balance });
            }
            if !changes.closing.insert(account.id) {
                return Err(ControlError::PacketsInFlight);
            }
            self.shards.publish(&[Change::CloseAccount(account.id)]);
            account
        };
        let idle = self.shards.wait_until_idle(account.id, CLOSE_WAIT);

        let mut changes = self.changes.lock().expect("no change panics halfway");
        let deleted = match idle {
            Ok(()) => self.remove_idle_account(&account, force),
            Err(_) => Err(ControlError::PacketsInFlight),
        };
        if deleted.is_err() {
            self.shards.publish(&[Change::ReopenAccount(account.id)]);
        }
        changes.closing.remove(&account.id);
        deleted
    }

    /// The second half of a deletion, within a change.
    fn remove_idle_account(&self, account: &Arc<Account>, force: bool) -> Result<Deleted, ControlError> {
        let (mut removed_routes, was_default) = {
            let state = self.read();
            let is_default = state.routes.winner(DEFAULT_ROUTE) == Some(account.id);
            (state.fixed_routes_to(account.id), is_default)
        };
        let remove = |prefix: &Arc<str>| Mutation::RemoveStaticRoute {
            prefix: Arc::clone(prefix),
        };
        let mut mutations: Vec<Mutation> = removed_routes.iter().map(remove).collect();
        mutations.extend(self.announcements(Some(account), None));
        mutations.push(Mutation::DeleteAccount {
            id: account.id,
            write_off: force,
        });
        let end = Instant::now() + PAYMENT_END_WAIT;
        let applied = loop {
            match self.bookkeeper.apply(mutations.clone()) {
                Err(StoreError::PaymentOpen) if Instant::now() < end => thread::sleep(PAYMENT_END_ASK_AGAIN),
                applied => break applied?,
            }
        };
        // Durable: nothing below can fail.
        let (routes, learned_routes) = {
            let mut state = self.write();
            let learned_routes = state.routes.learned_from(account.id).count();
            let unfix = removed_routes.iter().map(|prefix| Step::Unfix {
                prefix: Arc::clone(prefix),
            });
            let steps: Vec<_> = unfix.chain(State::unclaims_of(account)).collect();
            let mut routes = state.routes.apply(steps);
            routes.extend(state.routes.forget_account(account.id));
            state.remove_account(account);
            (routes, learned_routes)
        };
        // No packet finds the way to the account before the account goes.
        self.publish([], routes, [Change::RemoveAccount(account.id)]);
        self.settling.announce(&mutations);
        self.settling.account_removed(account.id);
        if account.routing_relation == RoutingRelation::Parent {
            self.leave_parent();
        }
        self.neighbours.account_changed(account.id);

        if was_default && !removed_routes.iter().any(|prefix| **prefix == *DEFAULT_ROUTE) {
            removed_routes.insert(0, DEFAULT_ROUTE.into());
        }
        Ok(Deleted {
            account: Arc::clone(account),
            removed_routes,
            learned_routes,
            written_off: applied.written_off,
        })
    }

    /// Keeps packets off an account whose amounts are about to mean something else.
    fn close_for_new_asset(&self, id: AccountId) -> Result<(), ControlError> {
        // Known to fail already: do not disturb the account for it.
        let is_unused = |state: AccountState| state.booked == 0 && state.held == 0 && state.in_flight == 0;
        let is_zero = self.bookkeeper.booked(id).unwrap_or(0) == 0;
        if !is_zero || !self.shards.account_state(id).is_none_or(is_unused) {
            return Err(ControlError::AssetInUse);
        }
        self.shards.publish(&[Change::CloseAccount(id)]);
        let idle = self.shards.wait_until_idle(id, QUIET_WAIT).is_ok();
        if idle && self.bookkeeper.booked(id).unwrap_or(0) == 0 {
            return Ok(());
        }
        self.shards.publish(&[Change::ReopenAccount(id)]);
        Err(ControlError::AssetInUse)
    }

    /// Looks at an account after a change: what works, but perhaps not as its operator thinks.
    fn outcome(&self, account: Arc<Account>, dials: bool) -> Outcome {
        let mut warnings = Vec::new();
        let mut warn = |field: &str, message: &str| {
            warnings.push(Warning {
                field: field.into(),
                message: message.to_owned(),
            });
        };
        let scheme = |address: &str| address.split('.').next().map(str::to_owned);
        if scheme(&account.ilp_address) != scheme(&self.node_address()) {
            warn(
                "ilp_address",
                "has another scheme than the node's address: packets do not get here from other nodes",
            );
        }
        let settlement = &account.settlement;
        if let Some(threshold) = settlement.threshold {
            if settlement.to.is_some_and(|settle_to| threshold <= settle_to) {
                warn("settle_threshold", "is not above settle_to: the account never settles");
            }
            if self.engine_of(&account).is_none() {
                warn(
                    "settle_threshold",
                    "has no settlement engine to work with: the account never settles",
                );
            }
        }
        if dials && account.links.btp_url().is_some() && !self.shards.wait_for_btp(account.id, BTP_WAIT) {
            warn("ilp_over_btp_url", "is not connected yet: the node goes on dialling");
        }
        Outcome { account, warnings }
    }
}

/// The address an edit asks for, and whether it is a generated one.
fn chosen_address(state: &State, username: &str, edit: &Edit<Box<str>>) -> Result<(Arc<str>, bool), ControlError> {
    match edit.value() {
        Some(address) => match Address::parse(address.as_bytes()) {
            Ok(address) => Ok((address.as_str().into(), false)),
            Err(error) => Err(ControlError::InvalidAddress {
                rule: error.to_string(),
            }),
        },
        None => Ok((generated_address(&state.node_address, username)?, true)),
    }
}

/// Adds the account's asset if it is new. What the shards have to know of it then.
fn add_asset(state: &mut State, account: &Account, is_new: bool) -> Option<Change> {
    if !is_new {
        return None;
    }
    state.add_asset(account.asset_id, Arc::clone(&account.asset));
    state.change_of_new_asset(&account.asset)
}

fn put_account(account: &Arc<Account>, is_new_asset: bool) -> Vec<Mutation> {
    let asset = is_new_asset.then(|| Mutation::PutAsset(account.asset_id, Asset::clone(&account.asset)));
    asset
        .into_iter()
        .chain([Mutation::PutAccount(Arc::clone(account))])
        .collect()
}
