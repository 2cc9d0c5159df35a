//! Settlement engines by asset: which one the accounts in an asset use that name none themselves.
//!
//! Owns the map and changing it. What engines are asked and told is not decided here.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::account::Account;
use crate::store::Mutation;

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
        self.write().engines = Arc::new(engines);
        Ok(())
    }
}
