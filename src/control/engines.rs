//! Settlement engines by asset: which one the accounts in an asset use that name none themselves.
//!
//! Owns the map, changing it, and telling the shards which assets have an engine: they settle accounts by it. What engines
//! are asked and told is not decided here.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::ledger::account::{Account, Asset, AssetId};
use crate::shard::control::Change;
use crate::store::Mutation;

use super::state::State;
use super::{Control, ControlError};

/// Engines a node may know, as many as it may have assets.
pub const ENGINES_MAX: usize = 1 << 16;

/// URL of an engine by the code of an asset, which is in upper case.
pub type Engines = BTreeMap<Box<str>, Arc<str>>;

/// The engine that settles for an account: its own, else that of its asset.
pub fn engine_in<'a>(engines: &'a Engines, account: &'a Account) -> Option<&'a str> {
    let own = account.settlement.engine_url.as_deref();
    own.or_else(|| engines.get(&account.asset.code as &str).map(|url| &**url))
}

impl Control {
    /// See [`engine_in`].
    pub fn engine_of(&self, account: &Account) -> Option<Arc<str>> {
        engine_in(&self.read().engines, account).map(Arc::from)
    }

    /// The engines of all assets that have one.
    pub fn engines(&self) -> Arc<Engines> {
        Arc::clone(&self.read().engines)
    }

    /// Sets the engines of some assets; `None` removes one. All others stay.
    pub fn set_engines(&self, edits: &BTreeMap<Box<str>, Option<Box<str>>>) -> Result<(), ControlError> {
        let _changes = self.begin()?;
        let before = self.engines();
        let mut engines = Engines::clone(&before);
        for (code, url) in edits {
            match url {
                Some(url) => engines.insert(code.clone(), (**url).into()),
                None => engines.remove(code),
            };
        }
        if engines.len() > ENGINES_MAX {
            return Err(ControlError::TooManyEngines { max: ENGINES_MAX });
        }
        if engines == *before {
            return Ok(());
        }
        let stored = engines.iter().map(|(code, url)| (code.clone(), (**url).into()));
        self.bookkeeper.apply(vec![Mutation::PutEngines(stored.collect())])?;
        // Durable: nothing below can fail.
        let (before, after) = {
            let mut state = self.write();
            let before = state.settling_assets();
            state.engines = Arc::new(engines);
            (before, state.settling_assets())
        };
        if after != before {
            self.shards.publish(&[Change::SettlingAssets(Arc::new(after))]);
        }
        self.announce_all(&self.engines(), Some(&edits.keys().cloned().collect()));
        Ok(())
    }
}

impl State {
    /// The assets whose accounts all have an engine.
    pub(super) fn settling_assets(&self) -> HashSet<AssetId> {
        let ids = (0..=u16::MAX).map(AssetId::new);
        let with_engine = |(asset, _): &(&Arc<Asset>, AssetId)| self.engines.contains_key(&asset.code as &str);
        self.assets
            .iter()
            .zip(ids)
            .filter(with_engine)
            .map(|(_, id)| id)
            .collect()
    }

    /// What shards have to know besides of an account in a new asset.
    pub(super) fn change_of_new_asset(&self, asset: &Asset) -> Option<Change> {
        let has_engine = self.engines.contains_key(&asset.code as &str);
        has_engine.then(|| Change::SettlingAssets(Arc::new(self.settling_assets())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::edit::AccountEdit;
    use super::super::fake::Node;
    use super::*;
    use crate::shard::control::Shards;
    use crate::wire::timestamp::Timestamp;

    #[test]
    fn shards_know_which_assets_have_an_engine() {
        let node = Node::new("example.hub");
        let create = |username: &str, code: &str, scale: u8| {
            let edit = AccountEdit {
                asset_code: Some(code.into()),
                asset_scale: Some(scale),
                ..AccountEdit::default()
            };
            let created = node.control.create_account(Timestamp::default(), username, edit);
            created.expect("a new account");
            node.shards.take_published()
        };
        let set = |engines: &[(&str, Option<&str>)]| {
            let edits = engines.iter().map(|(code, url)| ((*code).into(), url.map(Box::from)));
            node.control.set_engines(&edits.collect()).expect("a change");
            node.shards.take_published()
        };
        assert!(!create("alice", "ABC", 2).contains("settling"));
        assert!(!create("bob", "ABC", 9).contains("settling"));
        assert!(!create("carol", "XYZ", 2).contains("settling"));
        // At every scale of the code, and what is not there yet when it comes, before its first account.
        assert_eq!(set(&[("ABC", Some("http://a/"))]), "settling:[0, 1]");
        assert_eq!(set(&[("DEF", Some("http://d/"))]), "");
        assert!(create("dan", "DEF", 3).starts_with("settling:[0, 1, 3] account:dan@"));
        assert!(!create("eve", "DEF", 3).contains("settling"));
        let edit = AccountEdit {
            asset_scale: Some(4),
            ..AccountEdit::default()
        };
        node.control.update_account("eve", edit).expect("a change");
        let published = node.shards.take_published();
        assert!(published.contains("settling:[0, 1, 3, 4] account:eve@"), "{published}");
        // Another engine for the same assets is none of their business.
        assert_eq!(set(&[("ABC", Some("http://b/"))]), "");
        assert_eq!(set(&[("ABC", None), ("XYZ", None)]), "settling:[3, 4]");

        let again = Node::start("example.hub", Arc::clone(&node.book));
        again.shards.publish(&again.control.initial_changes());
        let published = again.shards.take_published();
        assert!(published.contains(" settling:[3, 4] account:alice@"), "{published}");
    }
}
