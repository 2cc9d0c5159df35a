//! Finding accounts: one by its name, many in the order of their names.
//!
//! Owns the filters and the pages of a list. Reads only.

use std::sync::Arc;

use crate::ledger::account::{Account, RoutingRelation};
use crate::ledger::directory::fold_username;

use super::Control;

/// Which accounts to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Only those behind this user name, in the order of folded names.
    pub after: Option<Box<str>>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Upper case.
    pub asset_code: Option<Box<str>>,
    pub routing_relation: Option<RoutingRelation>,
    /// On whole segments.
    pub address_prefix: Option<Box<str>>,
}

impl Filter {
    fn admits(&self, account: &Account) -> bool {
        self.asset_code
            .as_deref()
            .is_none_or(|code| *code == *account.asset.code)
            && self
                .routing_relation
                .is_none_or(|relation| relation == account.routing_relation)
            && self
                .address_prefix
                .as_deref()
                .is_none_or(|prefix| is_below(&account.ilp_address, prefix))
    }
}

fn is_below(address: &str, prefix: &str) -> bool {
    prefix.is_empty()
        || address
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Some accounts in the order of their folded names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    pub accounts: Vec<Arc<Account>>,
    /// There are more behind the last one.
    pub has_more: bool,
}

impl Control {
    /// The account whose user name folds to the same key.
    pub fn find_account(&self, username: &str) -> Option<Arc<Account>> {
        self.read().directory.find(username).cloned()
    }

    /// The account with this public id.
    pub fn find_account_by_uuid(&self, uuid: &[u8; 16]) -> Option<Arc<Account>> {
        self.read().account_by_uuid(uuid).cloned()
    }

    pub fn account_count(&self) -> usize {
        self.read().directory.len()
    }

    pub fn list_accounts(&self, filter: &Filter) -> Page {
        let state = self.read();
        let after = filter.after.as_deref().map(fold_username);
        let mut admitted = state
            .accounts_after(after.as_deref())
            .filter(|account| filter.admits(account));
        let limit = filter.limit.unwrap_or(usize::MAX);
        let accounts = admitted.by_ref().take(limit).cloned().collect();
        Page {
            accounts,
            has_more: admitted.next().is_some(),
        }
    }
}
