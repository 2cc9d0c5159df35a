//! How the shards learn where packets go: a few changes one by one, many as a new snapshot of the whole table.
//!
//! Owns that choice, and the snapshot. It is built here, on the thread that makes the change, from the winners in the
//! table of routes: a shard only exchanges a pointer. The winners are read part by part, and the readers' lock is held
//! for one part at a time. Nothing else can change between two parts, because all of this happens within a change; for
//! the same reason no writer waits for that lock meanwhile, and so no reader waits behind one.
//!
//! Always: the newest snapshot and the one before it are kept here until all shards have the newest. So it is never a
//! shard that drops the last reference to one, which gives back all of its memory at once.

use std::sync::{Arc, Mutex};

use crate::ledger::account::AccountId;
use crate::pipeline::LOCAL;
use crate::routing::forwarding::{Builder, CHANGES_MAX, Forwarding};
use crate::routing::table::RouteChange;
use crate::shard::control::Change;

use super::Control;

/// Prefixes that are read without giving the readers' lock back: some 0.2 milliseconds.
const PREFIXES_AT_ONCE: usize = 4_096;

/// What the shards have.
#[derive(Default)]
pub(super) struct Published(Mutex<Newest>);

#[derive(Default)]
struct Newest {
    /// `None`: nothing but single changes so far.
    snapshot: Option<Arc<Forwarding>>,
    /// How many changes they were told one by one since.
    changes: usize,
}

impl Control {
    /// Tells all shards that these routes are other ones now. To be called within a change, after the table has changed.
    pub(super) fn publish_routes(&self, routes: Vec<RouteChange>) {
        self.publish([], routes, []);
    }

    /// Tells all shards what changes before the routes, the routes, and what changes after them, in this order.
    pub(super) fn publish(
        &self,
        before: impl IntoIterator<Item = Change>,
        mut routes: Vec<RouteChange>,
        after: impl IntoIterator<Item = Change>,
    ) {
        self.neighbours.routes_changed(&routes);
        // How a route leads to its next hop is no matter of the shards.
        routes.retain(|route| !route.same_next_hop);
        let mut newest = self.published.0.lock().expect("no change panics halfway");
        let mut changes: Vec<Change> = before.into_iter().collect();
        let mut replaced = None;
        newest.changes += routes.len();
        if newest.changes <= CHANGES_MAX {
            changes.extend(routes.into_iter().map(one_change));
        } else {
            let snapshot = self.snapshot();
            changes.push(Change::Routes(Arc::clone(&snapshot)));
            newest.changes = 0;
            replaced = newest.snapshot.replace(snapshot);
        }
        changes.extend(after);
        if !changes.is_empty() {
            self.shards.publish(&changes);
        }
        // All shards have the new one.
        drop(replaced);
    }

    /// The table that shards begin with.
    pub(super) fn first_snapshot(&self) -> Arc<Forwarding> {
        let _no_changes = self.changes.lock().expect("no change panics halfway");
        let snapshot = self.snapshot();
        let newest = Newest {
            snapshot: Some(Arc::clone(&snapshot)),
            changes: 0,
        };
        *self.published.0.lock().expect("no change panics halfway") = newest;
        snapshot
    }

    /// All routes as they are, while nobody can change them.
    fn snapshot(&self) -> Arc<Forwarding> {
        let node_address = self.node_address();
        let (mut prefixes, mut prefix_bytes) = (1, node_address.len());
        self.read_winners(|prefix, _| {
            prefixes += 1;
            prefix_bytes += prefix.len();
        });
        let mut table = Builder::new(prefixes, prefix_bytes);
        // Shards see to this too. But what they have to add is looked at for every packet. A winner replaces it.
        table.add(&node_address, LOCAL);
        self.read_winners(|prefix, next_hop| table.add(prefix, next_hop));
        Arc::new(table.finish())
    }

    fn read_winners(&self, mut read: impl FnMut(&str, AccountId)) {
        let mut after: Option<Arc<str>> = None;
        loop {
            let state = self.read();
            let mut last = None;
            let part = state.routes.winners_after(after.as_deref()).take(PREFIXES_AT_ONCE);
            for (prefix, next_hop) in part {
                read(prefix, next_hop);
                last = Some(prefix);
            }
            match last.cloned() {
                None => return,
                last => after = last,
            }
        }
    }
}

fn one_change(RouteChange { prefix, next_hop, .. }: RouteChange) -> Change {
    match next_hop {
        Some(next_hop) => Change::SetRoute { prefix, next_hop },
        None => Change::RemoveRoute { prefix },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::edit::AccountEdit;
    use super::super::fake::Node;
    use super::*;
    use crate::shard::control::Shards;
    use crate::wire::timestamp::Timestamp;

    /// A node at `example.hub` with alice (0) and bob (1), whose shards begin as those of a node do.
    fn node() -> Node {
        let node = Node::new("example.hub");
        node.shards.publish(&node.control.initial_changes());
        for username in ["alice", "bob"] {
            let edit = AccountEdit {
                asset_code: Some("ABC".into()),
                asset_scale: Some(2),
                ..AccountEdit::default()
            };
            node.control
                .create_account(Timestamp::default(), username, edit)
                .unwrap();
        }
        node.shards.take_published();
        node
    }

    /// Fixed routes for so many prefixes.
    fn routes(count: usize, username: &str) -> BTreeMap<Arc<str>, Box<str>> {
        let route = |number| (format!("example.far.{number:06}").into(), username.into());
        (0..count).map(route).collect()
    }

    fn check_shards_know_all(node: &Node) {
        let state = node.control.read();
        for (prefix, next_hop) in state.routes.winners() {
            assert_eq!(node.shards.next_hop(prefix), Some(next_hop), "{prefix}");
        }
    }

    #[test]
    fn few_changes_go_one_by_one_and_many_as_a_snapshot() {
        let node = node();
        // Two are used up: the accounts' own addresses.
        node.control
            .set_static_routes(routes(CHANGES_MAX - 2, "alice"))
            .unwrap();
        let published = node.shards.take_published();
        assert_eq!(published.split(' ').count(), CHANGES_MAX - 2);
        assert!(published.starts_with("route:example.far.000000=0 "), "{published:.60}");
        check_shards_know_all(&node);

        // The next one is too many: all of them, both accounts, and the node itself.
        node.control.set_static_route("example.last".into(), "bob").unwrap();
        let prefixes = CHANGES_MAX - 2 + 1 + 2 + 1;
        assert_eq!(node.shards.take_published(), format!("routes:{prefixes}"));
        check_shards_know_all(&node);

        // There is room again.
        node.control.remove_static_route("example.last".into()).unwrap();
        assert_eq!(node.shards.take_published(), "no-route:example.last");
        assert_eq!(node.shards.next_hop("example.last"), None);
        let more = 3 * PREFIXES_AT_ONCE;
        node.control.set_static_routes(routes(more, "bob")).unwrap();
        assert_eq!(node.shards.take_published(), format!("routes:{}", more + 3));
        check_shards_know_all(&node);
        node.control.set_static_routes(BTreeMap::new()).unwrap();
        assert_eq!(node.shards.take_published(), "routes:3");
        assert_eq!(node.shards.next_hop("example.far.000000"), None);
        check_shards_know_all(&node);
    }

    #[test]
    fn an_account_is_there_before_the_routes_to_it_and_goes_after_them() {
        let node = node();
        let fill_up = || {
            node.control.set_static_routes(BTreeMap::new()).unwrap();
            node.control.set_static_routes(routes(CHANGES_MAX, "alice")).unwrap();
            let told = node.control.published.0.lock().unwrap().changes;
            node.control
                .publish_routes((told..CHANGES_MAX).map(|_| no_change()).collect());
            node.shards.take_published();
        };
        fill_up();
        let edit = AccountEdit {
            asset_code: Some("ABC".into()),
            asset_scale: Some(2),
            ..AccountEdit::default()
        };
        node.control
            .create_account(Timestamp::default(), "carol", edit)
            .unwrap();
        let prefixes = CHANGES_MAX + 3 + 1;
        assert_eq!(
            node.shards.take_published(),
            format!("account:carol@example.hub.carol routes:{prefixes}")
        );
        fill_up();
        node.control.delete_account("carol", false).unwrap();
        assert_eq!(
            node.shards.take_published(),
            format!("close:2 routes:{} remove:2", prefixes - 1)
        );
        check_shards_know_all(&node);
    }

    /// Counts as one, and says what is so already.
    fn no_change() -> RouteChange {
        RouteChange {
            prefix: "example.nobody".into(),
            next_hop: None,
            same_next_hop: false,
        }
    }

    #[test]
    fn shards_begin_with_a_snapshot() {
        let node = node();
        node.control.set_static_route("example.far".into(), "bob").unwrap();
        let again = Node::start("example.hub", Arc::clone(&node.book));
        again.shards.publish(&again.control.initial_changes());
        assert_eq!(
            again.shards.take_published(),
            "node:example.hub rates:0 account:alice@example.hub.alice account:bob@example.hub.bob routes:4"
        );
        check_shards_know_all(&again);
        assert_eq!(again.shards.next_hop("example.hub"), Some(LOCAL));
        again.control.publish_routes(vec![]);
        assert_eq!(again.shards.take_published(), "");
    }

    #[test]
    fn an_account_may_have_the_address_of_the_node() {
        let node = node();
        let edit = AccountEdit {
            asset_code: Some("ABC".into()),
            asset_scale: Some(2),
            ilp_address: super::super::edit::Edit::Set("example.hub".into()),
            ..AccountEdit::default()
        };
        node.control.create_account(Timestamp::default(), "me", edit).unwrap();
        node.control.set_static_routes(routes(CHANGES_MAX + 1, "me")).unwrap();
        assert_eq!(node.shards.next_hop("example.hub"), Some(AccountId::new(2)));
    }
}
