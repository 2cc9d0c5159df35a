//! Routes that neighbours told us, as they are kept: so that a node that starts again forwards at its first Prepare and
//! need not hear everything anew.
//!
//! Owns what is kept of one neighbour's routes, how long a route may be, and what a mutation means for them in memory.
//! Leaves the bytes on disk to [`super::schema`], and which routes are believed, for how long, and where the exchange is
//! taken up again to `routing::ccp` and whoever drives it.
//!
//! Always: what is kept of a neighbour is what one of its updates left, never half of an update.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Mutation, StoreError};
use crate::ledger::AccountId;
use crate::routing::ccp::PATH_BYTES_MAX;
use crate::wire::address::ADDRESS_BYTES_MAX;
use crate::wire::ccp::{AUTH_BYTES, TableId};

/// A route that a neighbour told and that we believe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LearnedRoute {
    /// At most [`ADDRESS_BYTES_MAX`] bytes.
    pub prefix: Arc<str>,
    /// As the neighbour wrote it, at most [`PATH_BYTES_MAX`] bytes.
    pub path: Box<[u8]>,
    pub auth: [u8; AUTH_BYTES],
}

/// What one neighbour told us, and up to where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeardRoutes {
    pub account: AccountId,
    /// Which table of the neighbour this is a copy of, and up to which of its epochs.
    pub table_id: TableId,
    pub epoch: u32,
    /// By ascending prefix.
    pub routes: Vec<LearnedRoute>,
}

/// Whether everything that an update sets and removes is as short as it must be.
pub(super) fn check_update(set: &[LearnedRoute], removed: &[Arc<str>]) -> Result<(), StoreError> {
    let is_too_long = |prefix: &str| prefix.len() > ADDRESS_BYTES_MAX;
    if set.iter().any(|route| is_too_long(&route.prefix)) || removed.iter().any(|prefix| is_too_long(prefix)) {
        return Err(StoreError::Inconsistent(
            "a learned prefix is no longer than an address",
        ));
    }
    if set.iter().any(|route| route.path.len() > PATH_BYTES_MAX) {
        return Err(StoreError::Inconsistent("a learned path is no longer than is believed"));
    }
    Ok(())
}

/// What a mutation means for `heard`, which is sorted by account. Linear in the routes of the neighbour: for stores in
/// memory.
pub(crate) fn commit(heard: &mut Vec<HeardRoutes>, mutation: &Mutation) {
    match mutation {
        Mutation::LearnRoutes {
            account,
            table_id,
            epoch,
            set,
            removed,
        } => {
            let at = heard.binary_search_by_key(account, |known| known.account);
            let at = at.unwrap_or_else(|at| {
                heard.insert(
                    at,
                    HeardRoutes {
                        account: *account,
                        table_id: *table_id,
                        epoch: *epoch,
                        routes: Vec::new(),
                    },
                );
                at
            });
            let known = &mut heard[at];
            (known.table_id, known.epoch) = (*table_id, *epoch);
            known.update(set, removed);
        }
        Mutation::ForgetRoutes { account } | Mutation::DeleteAccount { id: account, .. } => {
            heard.retain(|known| known.account != *account);
        }
        _ => {}
    }
}

impl HeardRoutes {
    /// Removes first, then sets; of two for the same prefix the later one counts.
    fn update(&mut self, set: &[LearnedRoute], removed: &[Arc<str>]) {
        let mut after: BTreeMap<&str, Option<&LearnedRoute>> = BTreeMap::new();
        after.extend(removed.iter().map(|prefix| (&**prefix, None)));
        after.extend(set.iter().map(|route| (&*route.prefix, Some(route))));
        self.routes.retain(|known| !after.contains_key(&*known.prefix));
        self.routes.extend(after.into_values().flatten().cloned());
        self.routes.sort_by(|one, other| one.prefix.cmp(&other.prefix));
    }
}
