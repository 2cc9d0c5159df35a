//! What stands: every account, asset, route and rate, and the rules that concern more than one of them.
//!
//! Owns the copy of the configuration that the API reads. It is changed only after the change is durable, by
//! [`super::Control`]; every check here is done before, on the same state, under the lock that serializes changes.
//!
//! Always: a folded user name belongs to one account; there is at most one parent; an address belongs to one account,
//! or to several links towards peers and the parent; every candidate in the table of routes names an account that
//! exists.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use hashbrown::HashTable;

use crate::ledger::account::{Account, AccountId, Asset, AssetId, RoutingRelation};
use crate::ledger::directory::{Directory, fold_username};
use crate::pipeline::rates::Rates;
use crate::routing::table::{Step, Table};
use crate::wire::address::Address;

use super::ControlError;
use super::engines::Engines;
use super::rates::desk::Desk;

/// The prefix of the default route.
pub(super) const DEFAULT_ROUTE: &str = "";

/// One consistent picture of the configuration.
pub(super) struct State {
    pub node_address: Arc<str>,
    /// What our parent calls us, if we have one and it has told us.
    pub assigned_address: Option<Arc<str>>,
    pub directory: Directory,
    /// All accounts in the order of their folded user names, which is the order in which they are listed. The names are
    /// the directory's; that one in a million comes or goes costs moving 4 MB.
    by_name: Vec<AccountId>,
    /// All accounts by their public ids, which are the accounts' own.
    by_uuid: HashTable<AccountId>,
    /// By [`AssetId`]. An asset is never taken out again: its position stays in the book.
    pub assets: Vec<Arc<Asset>>,
    asset_ids: HashMap<Arc<Asset>, AssetId>,
    pub routes: Table,
    /// The rates in force, as the shards have them; `rate_desk` says where they came from.
    pub rates: Arc<Rates>,
    pub rate_desk: Arc<Desk>,
    pub engines: Arc<Engines>,
}

impl State {
    pub fn new(node_address: Arc<str>, assets: Vec<Asset>, rate_desk: Desk) -> Self {
        let assets: Vec<_> = assets.into_iter().map(Arc::new).collect();
        let ids = (0..=u16::MAX).map(AssetId::new);
        Self {
            node_address,
            assigned_address: None,
            directory: Directory::new(),
            by_name: Vec::new(),
            by_uuid: HashTable::new(),
            asset_ids: assets.iter().cloned().zip(ids).collect(),
            assets,
            routes: Table::new(),
            rates: Arc::new(rate_desk.rates()),
            rate_desk: Arc::new(rate_desk),
            engines: Arc::default(),
        }
    }

    /// The account, or the error that names it.
    pub fn account(&self, username: &str) -> Result<&Arc<Account>, ControlError> {
        self.directory
            .find(username)
            .ok_or_else(|| ControlError::AccountNotFound {
                username: shorten(username),
            })
    }

    /// The one account whose relation is Parent.
    pub fn parent(&self) -> Option<AccountId> {
        self.directory
            .iter()
            .find(|account| account.routing_relation == RoutingRelation::Parent)
            .map(|parent| parent.id)
    }

    /// The asset as all its accounts share it, its number, and whether it is a new one.
    pub fn intern(&self, asset: Asset) -> Result<(Arc<Asset>, AssetId, bool), ControlError> {
        if let Some((known, id)) = self.asset_ids.get_key_value(&asset) {
            return Ok((Arc::clone(known), *id, false));
        }
        match u16::try_from(self.assets.len()) {
            Ok(number) => Ok((Arc::new(asset), AssetId::new(number), true)),
            Err(_) => Err(ControlError::TooManyAssets),
        }
    }

    /// Adds an asset under the number that [`Self::intern`] gave.
    pub fn add_asset(&mut self, id: AssetId, asset: Arc<Asset>) {
        assert_eq!(id.index(), self.assets.len(), "assets are numbered without gaps");
        self.asset_ids.insert(Arc::clone(&asset), id);
        self.assets.push(asset);
    }

    /// Adds an account or replaces the one with its id, without its routes.
    pub fn put_account(&mut self, account: Arc<Account>) {
        if let Err(place) = self.place_of(&fold_username(&account.username)) {
            if self.by_name.len() == self.by_name.capacity() {
                self.by_name.reserve_exact(self.by_name.len() / 8 + 8);
            }
            self.by_name.insert(place, account.id);
            self.add_uuid(&account);
        }
        self.directory.insert(account);
    }

    /// To be called before the account is in the directory: those that are there already may have to move.
    fn add_uuid(&mut self, account: &Account) {
        let directory = &self.directory;
        let known = |id: &AccountId| directory.get(*id).expect("a listed account exists");
        self.by_uuid
            .insert_unique(uuid_hash(&account.uuid), account.id, |id| uuid_hash(&known(id).uuid));
    }

    /// The account with this public id.
    pub fn account_by_uuid(&self, uuid: &[u8; 16]) -> Option<&Arc<Account>> {
        let account = |id: &AccountId| self.directory.get(*id).expect("a listed account exists");
        self.by_uuid
            .find(uuid_hash(uuid), |id| account(id).uuid == *uuid)
            .map(account)
    }

    /// Adds the accounts of a state that has none, without their routes. One by one would take time in the square of
    /// their number.
    pub fn put_first_accounts(&mut self, accounts: Vec<Arc<Account>>) {
        assert!(self.by_name.is_empty(), "these are the first");
        self.by_name = accounts.iter().map(|account| account.id).collect();
        self.by_uuid = HashTable::with_capacity(accounts.len());
        for account in accounts {
            self.add_uuid(&account);
            self.directory.insert(account);
        }
        let directory = &self.directory;
        self.by_name
            .sort_unstable_by(|one, other| folded_name(directory, *one).cmp(&folded_name(directory, *other)));
    }

    pub fn remove_account(&mut self, account: &Account) {
        let place = self.place_of(&fold_username(&account.username));
        self.by_name.remove(place.expect("an account that exists has a name"));
        let listed = self
            .by_uuid
            .find_entry(uuid_hash(&account.uuid), |id| *id == account.id);
        listed.expect("an account that exists has an id").remove();
        self.directory.remove(account.id);
    }

    /// The accounts behind a folded user name, or all, in the order of their folded names.
    pub fn accounts_after(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<Account>> {
        let first = match name.map(|name| self.place_of(name)) {
            None => 0,
            Some(Ok(place)) => place + 1,
            Some(Err(place)) => place,
        };
        self.by_name[first..].iter().filter_map(|id| self.directory.get(*id))
    }

    /// Where the account with this folded user name is in `by_name`, or else where it would be.
    fn place_of(&self, name: &str) -> Result<usize, usize> {
        self.by_name
            .binary_search_by(|id| folded_name(&self.directory, *id).as_ref().cmp(name))
    }

    /// Checks an account, new or changed, against all others. `before` is what it was.
    pub fn check(&self, account: &Account, before: Option<&Account>) -> Result<(), ControlError> {
        if before.is_none() && self.directory.find(&account.username).is_some() {
            return Err(ControlError::DuplicateUsername {
                username: account.username.clone(),
            });
        }
        let is_parent = |account: &Account| account.routing_relation == RoutingRelation::Parent;
        if is_parent(account)
            && !before.is_some_and(is_parent)
            && self.parent().is_some_and(|parent| parent != account.id)
        {
            return Err(ControlError::SecondParent);
        }
        // Also checked when only the relation changes: a customer may not keep an address that two peers share.
        let unchanged = before.is_some_and(|before| {
            before.ilp_address == account.ilp_address && before.routing_relation == account.routing_relation
        });
        if !unchanged {
            self.check_address_is_free(account)?;
        }
        Ok(())
    }

    fn check_address_is_free(&self, account: &Account) -> Result<(), ControlError> {
        let is_link = |account: &Account| {
            matches!(
                account.routing_relation,
                RoutingRelation::Peer | RoutingRelation::Parent
            )
        };
        let ours = account.ilp_address == self.node_address;
        let others = self.routes.claims(&account.ilp_address).filter(|id| *id != account.id);
        for other in others.filter_map(|id| self.directory.get(id)) {
            // Several links to one neighbour have its address; but nobody shares ours.
            if ours || !is_link(account) || !is_link(other) {
                return Err(ControlError::DuplicateAddress {
                    address: Arc::clone(&account.ilp_address),
                });
            }
        }
        Ok(())
    }

    /// The link of an account that is new, or that was read back: an HTTP link is up until it fails, a BTP link down until
    /// there is a session. From then on the shards tell. To be called before the account claims anything.
    pub fn begin_link(&mut self, account: &Account) {
        let is_up = account.links.http_url().is_some();
        let changes = self.routes.set_link(account.id, is_up, []);
        assert!(changes.is_empty(), "nothing leads to it yet");
    }

    /// What an account claims in the table of routes.
    pub fn claims_of(account: &Account) -> impl Iterator<Item = Step> {
        let default = (account.routing_relation == RoutingRelation::Parent).then(|| DEFAULT_ROUTE.into());
        let account_id = account.id;
        [Some(Arc::clone(&account.ilp_address)), default]
            .into_iter()
            .flatten()
            .map(move |prefix| Step::Claim {
                prefix,
                account: account_id,
            })
    }

    /// The same, taken back.
    pub fn unclaims_of(account: &Account) -> impl Iterator<Item = Step> {
        Self::claims_of(account).map(|step| match step {
            Step::Claim { prefix, account } => Step::Unclaim { prefix, account },
            other => other,
        })
    }

    /// The prefixes the operator sends to an account.
    pub fn fixed_routes_to(&self, id: AccountId) -> Vec<Arc<str>> {
        self.routes.fixed_routes_to(id)
    }
}

/// Public ids are random, so that any part of one is a hash of it.
fn uuid_hash(uuid: &[u8; 16]) -> u64 {
    let [first @ .., _, _, _, _, _, _, _, _] = *uuid;
    u64::from_be_bytes(first)
}

fn folded_name(directory: &Directory, id: AccountId) -> Cow<'_, str> {
    let account = directory.get(id).expect("a listed account exists");
    fold_username(&account.username)
}

/// The address of an account that got none of its own.
pub(super) fn generated_address(node_address: &str, username: &str) -> Result<Arc<str>, ControlError> {
    let invalid = |rule: String| ControlError::InvalidAddress { rule };
    if !username.is_ascii() {
        return Err(invalid("must be given, because the user name is not ASCII".to_owned()));
    }
    let address = format!("{node_address}.{username}");
    match Address::parse(address.as_bytes()) {
        Ok(_) => Ok(address.into()),
        Err(error) => Err(invalid(format!(
            "cannot be made from the node's address and the user name: {error}"
        ))),
    }
}

/// The address of an account after the node's address changed, for one whose address was generated. A parent may have
/// given us the very address of one of our users, as single-user nodes have it: then that user keeps it.
pub(super) fn renamed_address(node_address: &str, username: &str) -> Result<Arc<str>, ControlError> {
    if node_address.rsplit('.').next() == Some(username) {
        return Ok(node_address.into());
    }
    generated_address(node_address, username)
}

/// As much of what a caller sent as an error may repeat.
fn shorten(text: &str) -> Box<str> {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_from_names() {
        let long = format!("g.{}", "a".repeat(1_000));
        let longest = format!("g.{}", "a".repeat(1_019));
        for (node, username, generated, renamed) in [
            (
                "example.hub",
                "alice",
                Some("example.hub.alice"),
                Some("example.hub.alice"),
            ),
            (
                "example.hub",
                "Alice_2",
                Some("example.hub.Alice_2"),
                Some("example.hub.Alice_2"),
            ),
            (
                "example.parent.hub",
                "hub",
                Some("example.parent.hub.hub"),
                Some("example.parent.hub"),
            ),
            ("example.hub", "zoë", None, None),
            (
                &long,
                "alice",
                Some(&*format!("{long}.alice")),
                Some(&*format!("{long}.alice")),
            ),
            (&longest, "alice", None, None),
        ] {
            assert_eq!(
                generated_address(node, username).ok().as_deref(),
                generated,
                "{username}"
            );
            assert_eq!(renamed_address(node, username).ok().as_deref(), renamed, "{username}");
        }
    }

    #[test]
    fn assets_are_numbered_once() {
        let asset = |code: &str| Asset {
            code: code.into(),
            scale: 9,
        };
        let number = |state: &State, asset| {
            let (interned, id, is_new) = state.intern(asset).unwrap();
            (interned.to_string(), id.get(), is_new)
        };
        let mut state = State::new("example.hub".into(), vec![asset("ABC")], Desk::default());
        assert_eq!(number(&state, asset("ABC")), ("ABC@9".into(), 0, false));
        assert_eq!(number(&state, asset("XYZ")), ("XYZ@9".into(), 1, true));
        state.add_asset(AssetId::new(1), Arc::new(asset("XYZ")));
        assert_eq!(number(&state, asset("XYZ")), ("XYZ@9".into(), 1, false));
        let finer = Asset {
            code: "XYZ".into(),
            scale: 8,
        };
        assert_eq!(number(&state, finer), ("XYZ@8".into(), 2, true));
        let [one, other] = [(), ()].map(|()| state.intern(asset("ABC")).unwrap().0);
        assert!(Arc::ptr_eq(&one, &other), "accounts share their asset");

        let all = (0..65_536).map(|number| asset(&number.to_string())).collect();
        let full = State::new("example.hub".into(), all, Desk::default());
        assert_eq!(number(&full, asset("65535")), ("65535@9".into(), 65_535, false));
        assert!(matches!(full.intern(asset("ABC")), Err(ControlError::TooManyAssets)));
    }
}
