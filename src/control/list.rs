//! Finding accounts: one by its name, many in the order of their names.
//!
//! Owns the filters and the parts of a list. Reads only.
//!
//! Always: a list of any length is read in parts, each of which holds the readers' lock for some 10 microseconds. An
//! account that was there all the time is in the list once; one that came or went meanwhile may be in it or not.

use std::sync::Arc;

use crate::ledger::account::{Account, RoutingRelation};
use crate::ledger::directory::fold_username;

use super::Control;

/// Accounts that are looked at before others get the lock.
const LOOKED_AT_MAX: usize = 512;

/// Which accounts to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
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

/// A place in the list: behind the account with this folded user name, whether it exists or not; at first before all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursor(Option<Box<str>>);

impl Cursor {
    pub fn after(username: &str) -> Self {
        Self(Some(fold_username(username).into()))
    }
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

    /// The next accounts that the filter admits, at most so many, in the order of their folded names; moves the cursor
    /// behind the last. Fewer: there are no more.
    pub fn list_accounts(&self, filter: &Filter, cursor: &mut Cursor, at_most: usize) -> Vec<Arc<Account>> {
        let mut found = Vec::new();
        while found.len() < at_most {
            let state = self.read();
            let mut last = None;
            let mut looked_at = 0;
            for account in state.accounts_after(cursor.0.as_deref()).take(LOOKED_AT_MAX) {
                looked_at += 1;
                last = Some(account);
                if filter.admits(account) {
                    found.push(Arc::clone(account));
                    if found.len() == at_most {
                        break;
                    }
                }
            }
            if let Some(last) = last {
                *cursor = Cursor::after(&last.username);
            }
            if looked_at < LOOKED_AT_MAX {
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::edit::AccountEdit;
    use super::super::fake::Node;
    use super::*;
    use crate::wire::timestamp::Timestamp;

    fn create(node: &Node, username: &str, asset_code: &str) {
        let edit = AccountEdit {
            asset_code: Some(asset_code.into()),
            asset_scale: Some(2),
            ..AccountEdit::default()
        };
        node.control
            .create_account(Timestamp::default(), username, edit)
            .unwrap();
    }

    fn names(accounts: &[Arc<Account>]) -> Vec<String> {
        accounts.iter().map(|account| account.username.to_string()).collect()
    }

    /// The whole list, read in parts of `at_most`.
    fn in_parts(node: &Node, filter: &Filter, at_most: usize) -> Vec<String> {
        let (mut cursor, mut all) = (Cursor::default(), Vec::new());
        loop {
            let part = node.control.list_accounts(filter, &mut cursor, at_most);
            all.extend(names(&part));
            if part.len() < at_most {
                return all;
            }
        }
    }

    #[test]
    fn parts_make_the_whole_list() {
        let node = Node::new("example.hub");
        let count = 2 * LOOKED_AT_MAX + 3;
        for number in 0..count {
            // Capitals do not change the order.
            let capital = if number % 2 == 0 { "User" } else { "uSER" };
            let rare = number % 700 == 699;
            create(
                &node,
                &format!("{capital}{number:05}"),
                if rare { "RARE" } else { "ABC" },
            );
        }
        let all = in_parts(&node, &Filter::default(), usize::MAX);
        assert_eq!(all.len(), count);
        assert!(all.is_sorted_by_key(|name| fold_username(name).into_owned()));
        for at_most in [1, 7, LOOKED_AT_MAX, LOOKED_AT_MAX + 1, count, count + 1] {
            assert_eq!(in_parts(&node, &Filter::default(), at_most), all, "{at_most}");
        }
        let rare = Filter {
            asset_code: Some("RARE".into()),
            ..Filter::default()
        };
        for at_most in [1, 2, 100] {
            assert_eq!(in_parts(&node, &rare, at_most), ["uSER00699"], "{at_most}");
        }
        let none = Filter {
            asset_code: Some("NONE".into()),
            ..Filter::default()
        };
        assert!(in_parts(&node, &none, 1).is_empty());
    }

    #[test]
    fn what_changes_meanwhile_disturbs_no_other() {
        let node = Node::new("example.hub");
        for name in ["anna", "Bob", "carl", "dora", "emil", "fred"] {
            create(&node, name, "ABC");
        }
        let mut cursor = Cursor::default();
        let mut next = |count| names(&node.control.list_accounts(&Filter::default(), &mut cursor, count));
        assert_eq!(next(2), ["anna", "Bob"]);
        // The one the cursor is at, one before it, one behind it; and the same to come.
        for name in ["bob", "anna", "emil"] {
            node.control.delete_account(name, false).unwrap();
        }
        for name in ["abel", "burt", "dana"] {
            create(&node, name, "ABC");
        }
        assert_eq!(next(2), ["burt", "carl"]);
        assert_eq!(next(9), ["dana", "dora", "fred"]);
        assert!(next(9).is_empty());
        create(&node, "zoe", "ABC");
        assert_eq!(next(9), ["zoe"]);
    }
}
