//! Routes: what the operator says leads where, and what there is.
//!
//! Owns replacing all fixed routes and changing one, and reading routes in parts. Which of several candidates wins is
//! [`crate::routing::table`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::account::{Account, AccountId};
use crate::routing::table::{Candidate, Origin, Step};
use crate::store::Mutation;

use super::state::State;
use super::{Changes, Control, ControlError};

/// Fixed routes a node may have. As many prefixes as the whole Internet has networks, at some 150 bytes each.
pub const STATIC_ROUTES_MAX: usize = 1_000_000;

/// A prefix and the account it leads to.
pub type Route = (Arc<str>, Arc<Account>);

/// A way that packets may go.
#[derive(Clone, Debug)]
pub struct Way {
    pub account: Arc<Account>,
    pub candidate: Candidate,
    /// The nodes that it leads over, the nearest first, if a neighbour has told them.
    pub path: Option<Vec<String>>,
}

/// A prefix and every way for it, best first: the first is in force.
pub type Ways = (Arc<str>, Vec<Way>);

/// Whether the account can be reached at all.
pub fn has_link(account: &Account) -> bool {
    let links = &account.links;
    let link = links.http_url().or(links.btp_url()).or(links.btp_incoming_token());
    link.is_some()
}

impl State {
    /// The account at the end of a route.
    pub(super) fn next_hop(&self, id: AccountId) -> Arc<Account> {
        Arc::clone(self.directory.get(id).expect("a route leads to an account"))
    }

    /// Without its path, which is not kept here.
    pub(super) fn way(&self, candidate: Candidate) -> Way {
        Way {
            account: self.next_hop(candidate.account),
            candidate,
            path: None,
        }
    }
}

impl Control {
    /// The routes in force behind a prefix (`None`: from the first on), at most so many, in the order of the prefixes.
    /// Fewer: there are no more. Holds the readers' lock as long as it takes to find so many.
    pub fn routes_after(&self, prefix: Option<&str>, at_most: usize) -> Vec<Route> {
        let state = self.read();
        state
            .routes
            .winners_after(prefix)
            .take(at_most)
            .map(|(prefix, next_hop)| (Arc::clone(prefix), state.next_hop(next_hop)))
            .collect()
    }

    /// The prefixes behind one (`None`: from the first on) with every way for each, in the order of the prefixes: so many
    /// ways, and those that the last of their prefixes has beside them. None: there are no more.
    pub fn ways_after(&self, prefix: Option<&str>, at_most: usize) -> Vec<Ways> {
        let mut found: Vec<Ways> = Vec::new();
        {
            let state = self.read();
            let mut count = 0;
            for (prefix, candidates) in state.routes.candidates_after(prefix) {
                count += candidates.len();
                let ways = candidates.into_iter().map(|candidate| state.way(candidate));
                found.push((Arc::clone(prefix), ways.collect()));
                if count >= at_most {
                    break;
                }
            }
        }
        for (prefix, ways) in &mut found {
            self.add_paths(prefix, ways);
        }
        found
    }

    /// Adds what neighbours have told about the ways for a prefix.
    pub(super) fn add_paths(&self, prefix: &str, ways: &mut [Way]) {
        for way in ways {
            if let Origin::Learned { .. } = way.candidate.origin {
                way.path = self.path_of(prefix, way.candidate.account);
            }
        }
    }

    /// Replaces all fixed routes, or none if one of the names is unknown. Prefixes are normalized and differ.
    pub fn set_static_routes(&self, wanted: BTreeMap<Arc<str>, Box<str>>) -> Result<Vec<Route>, ControlError> {
        let changes = self.begin()?;
        if wanted.len() > STATIC_ROUTES_MAX {
            return Err(ControlError::TooManyRoutes { max: STATIC_ROUTES_MAX });
        }
        let mut routes = Vec::with_capacity(wanted.len());
        let mut steps = Vec::new();
        {
            let state = self.read();
            for (prefix, _) in state
                .routes
                .fixed_routes()
                .filter(|(prefix, _)| !wanted.contains_key(*prefix))
            {
                steps.push(Step::Unfix {
                    prefix: Arc::clone(prefix),
                });
            }
            for (prefix, username) in wanted {
                let account = changes.next_hop(state.account(&username)?)?;
                if state.routes.fixed(&prefix) != Some(account.id) {
                    steps.push(Step::Fix {
                        prefix: Arc::clone(&prefix),
                        next_hop: account.id,
                    });
                }
                routes.push((prefix, Arc::clone(account)));
            }
        }
        self.change_routes(steps)?;
        Ok(routes)
    }

    /// Sets or replaces one fixed route.
    pub fn set_static_route(&self, prefix: Arc<str>, username: &str) -> Result<Arc<Account>, ControlError> {
        let changes = self.begin()?;
        let (account, steps) = {
            let state = self.read();
            let account = Arc::clone(changes.next_hop(state.account(username)?)?);
            let steps = match state.routes.fixed(&prefix) {
                Some(next_hop) if next_hop == account.id => vec![],
                None if state.routes.fixed_count() >= STATIC_ROUTES_MAX => {
                    return Err(ControlError::TooManyRoutes { max: STATIC_ROUTES_MAX });
                }
                _ => vec![Step::Fix {
                    prefix,
                    next_hop: account.id,
                }],
            };
            (account, steps)
        };
        self.change_routes(steps)?;
        Ok(account)
    }

    /// Removes one fixed route and names the account it led to.
    pub fn remove_static_route(&self, prefix: Arc<str>) -> Result<Arc<Account>, ControlError> {
        let _changes = self.begin()?;
        let account = {
            let state = self.read();
            state.next_hop(state.routes.fixed(&prefix).ok_or(ControlError::RouteNotFound)?)
        };
        self.change_routes(vec![Step::Unfix { prefix }])?;
        Ok(account)
    }

    /// Makes steps about fixed routes durable, takes them, and tells the shards. Within a change.
    fn change_routes(&self, steps: Vec<Step>) -> Result<(), ControlError> {
        if steps.is_empty() {
            return Ok(());
        }
        let mutation = |step: &Step| match step {
            Step::Fix { prefix, next_hop } => Some(Mutation::PutStaticRoute {
                prefix: Arc::clone(prefix),
                next_hop: *next_hop,
            }),
            Step::Unfix { prefix } => Some(Mutation::RemoveStaticRoute {
                prefix: Arc::clone(prefix),
            }),
            // Follow from the accounts, or are kept with the neighbour that told them.
            Step::Claim { .. } | Step::Unclaim { .. } | Step::Learn { .. } | Step::Unlearn { .. } => None,
        };
        self.bookkeeper.apply(steps.iter().filter_map(mutation).collect())?;
        // Durable: nothing below can fail.
        let routes = self.write().routes.apply(steps);
        self.publish_routes(routes);
        Ok(())
    }
}

impl Changes {
    /// The account, if a route may lead to it.
    fn next_hop<'a>(&self, account: &'a Arc<Account>) -> Result<&'a Arc<Account>, ControlError> {
        if self.closing.contains(&account.id) {
            return Err(ControlError::PacketsInFlight);
        }
        Ok(account)
    }
}
