//! What neighbours told, made durable and put in force.
//!
//! Owns the order: one commit, then the table of routes, then all shards. Leaves what to believe to
//! [`crate::routing::ccp`].
//! Always: a route in the table that was told is in the store; it names an account that exists.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::account::{AccountId, RoutingRelation};
use crate::routing::ccp::{Change, Learned};
use crate::routing::table::Step;
use crate::store::{LearnedRoute, Mutation, StoreError};
use crate::wire::ccp::TableId;

use super::super::Control;
use super::super::state::State;

/// Steps that are taken while readers wait: some milliseconds.
const STEPS_AT_ONCE: usize = 4_096;

/// What is different about the routes of one neighbour.
pub(super) struct Lesson {
    pub(super) account: AccountId,
    pub(super) relation: RoutingRelation,
    /// What was heard now; `None`: all is forgotten, and that it was ever heard.
    pub(super) heard: Option<(TableId, u32)>,
    pub(super) changes: Vec<Change>,
}

/// A link that is up or down now and was not before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkChange {
    pub(super) account: AccountId,
    pub(super) is_up: bool,
}

impl Lesson {
    /// What becomes of each prefix in the end.
    fn results(&self) -> BTreeMap<&Arc<str>, Option<&Learned>> {
        let mut results = BTreeMap::new();
        for change in &self.changes {
            match change {
                Change::Announce { prefix, learned } => results.insert(prefix, Some(learned)),
                Change::Withdraw { prefix } => results.insert(prefix, None),
            };
        }
        results
    }

    fn add_to(&self, mutations: &mut Vec<Mutation>, steps: &mut Vec<Step>) {
        let account = self.account;
        let results = self.results();
        for (prefix, learned) in &results {
            let prefix = Arc::clone(prefix);
            steps.push(match learned {
                Some(learned) => learn(prefix, account, self.relation, learned),
                None => Step::Unlearn { prefix, account },
            });
        }
        let Some((table_id, epoch)) = self.heard else {
            mutations.push(Mutation::ForgetRoutes { account });
            return;
        };
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        for (prefix, learned) in results {
            match learned {
                Some(learned) => set.push(LearnedRoute {
                    prefix: Arc::clone(prefix),
                    path: learned.path.as_bytes().into(),
                    auth: learned.auth,
                }),
                None => removed.push(Arc::clone(prefix)),
            }
        }
        mutations.push(Mutation::LearnRoutes {
            account,
            table_id,
            epoch,
            set,
            removed,
        });
    }
}

/// A route that a neighbour told, for the table.
pub(super) fn learn(prefix: Arc<str>, account: AccountId, relation: RoutingRelation, learned: &Learned) -> Step {
    // One implementation names itself in the path of its own address, the other does not.
    let hops = u8::try_from(learned.path.len().max(1)).expect("a path that is believed is short");
    Step::Learn {
        prefix,
        account,
        relation,
        hops,
    }
}

impl Control {
    /// Makes lessons and links durable, as far as they are to be, and tells the shards what changed. What an account told
    /// that is no more is left out. An error: nothing has changed.
    pub(super) fn take_lessons(&self, lessons: &[Lesson], links: &[LinkChange]) -> Result<(), StoreError> {
        let _changes = self.changes.lock().expect("no change panics halfway");
        let (mut mutations, mut steps) = (Vec::new(), Vec::new());
        {
            let state = self.read();
            let exists = |lesson: &&Lesson| state.directory.get(lesson.account).is_some();
            for lesson in lessons.iter().filter(exists) {
                lesson.add_to(&mut mutations, &mut steps);
            }
        }
        if !mutations.is_empty() {
            self.bookkeeper.apply(mutations)?;
        }
        // Durable: nothing below can fail.
        let mut changed = Vec::new();
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            changed.extend(self.write().routes.apply(steps.by_ref().take(STEPS_AT_ONCE)));
        }
        for link in links {
            let mut state = self.write();
            let Some(account) = state.directory.get(link.account).cloned() else {
                continue;
            };
            let claims = State::claims_of(&account).filter_map(|step| match step {
                Step::Claim { prefix, .. } => Some(prefix),
                _ => None,
            });
            changed.extend(state.routes.set_link(link.account, link.is_up, claims));
        }
        if !changed.is_empty() {
            self.publish_routes(changed);
        }
        Ok(())
    }
}
