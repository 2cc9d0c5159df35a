//! Which routes of a neighbour are believed (protocols.md 8.8): one rule per reason, in the order of the checks.
//!
//! Owns what can be said of a route alone. Leaves limits, which depend on the routes already kept, to
//! [`super::listener`].
//! Always: a prefix that passes is normalized (no trailing dot) and of our own scheme; a path that passes is made of
//! addresses and can be told on.

use std::sync::Arc;

use super::{PATH_BYTES_MAX, PATH_HOPS_MAX, Path};
use crate::ledger::account::RoutingRelation;
use crate::wire::address::{Address, check_prefix};
use crate::wire::ccp::{Route, Texts};

/// Why a route is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DropReason {
    #[error("the prefix is no prefix")]
    Prefix,
    /// Payments of another network do not pass through us.
    #[error("the prefix is of another network")]
    Scheme,
    /// Only a parent may say that everything else goes to it.
    #[error("a default route from a neighbour that is no parent")]
    DefaultRoute,
    /// Ours to route, and nobody else's.
    #[error("the prefix is our own or lies below it")]
    OwnPrefix,
    /// A child speaks for its own addresses.
    #[error("the prefix is not below the address of the child")]
    OutsideChild,
    #[error("the path has more than {PATH_HOPS_MAX} hops or {PATH_BYTES_MAX} bytes")]
    PathTooLong,
    #[error("a hop of the path is no address")]
    Hop,
    /// It leads back to us.
    #[error("the path leads over ourselves")]
    Loop,
    /// A limit of the neighbour or of the node.
    #[error("more routes than are kept")]
    Full,
}

/// All reasons, in the order in which they are declared.
pub const DROP_REASONS: [DropReason; 9] = [
    DropReason::Prefix,
    DropReason::Scheme,
    DropReason::DefaultRoute,
    DropReason::OwnPrefix,
    DropReason::OutsideChild,
    DropReason::PathTooLong,
    DropReason::Hop,
    DropReason::Loop,
    DropReason::Full,
];

/// What the rules depend on.
pub(super) struct Filter {
    own: Arc<str>,
    relation: RoutingRelation,
    /// For a child: where its routes must lie.
    neighbour: Arc<str>,
}

impl Filter {
    pub(super) fn new(own: Arc<str>, relation: RoutingRelation, neighbour: Arc<str>) -> Self {
        Self {
            own,
            relation,
            neighbour,
        }
    }

    /// The prefix of a route that is believed, as it is kept; else the first reason against it.
    pub(super) fn check<'a>(&self, route: &Route<'a>) -> Result<&'a str, DropReason> {
        let prefix = normalized(route.prefix).ok_or(DropReason::Prefix)?;
        self.check_prefix(prefix).map_err(|reason| match reason {
            // A widely used node tells us our own routes back. That claims nothing.
            DropReason::OwnPrefix if self.comes_from_us(route.path) => DropReason::Loop,
            reason => reason,
        })?;
        self.check_path(route.path)?;
        Ok(prefix)
    }

    /// The same for a route that was believed once, perhaps by a node with another address.
    pub(super) fn check_kept(&self, prefix: &str, path: &Path) -> Result<(), DropReason> {
        self.check_prefix(prefix)?;
        self.check_path(path.texts())
    }

    fn check_prefix(&self, prefix: &str) -> Result<(), DropReason> {
        let scheme = scheme_of(&self.own);
        if prefix.is_empty() || prefix == scheme {
            let is_parent = self.relation == RoutingRelation::Parent;
            return if is_parent {
                Ok(())
            } else {
                Err(DropReason::DefaultRoute)
            };
        }
        if scheme_of(prefix) != scheme {
            return Err(DropReason::Scheme);
        }
        // A child below us speaks for a part of our own addresses, which is the point of being one. Any other claim to
        // them would take our customers' payments away.
        let is_child = self.relation == RoutingRelation::Child;
        let is_child_below_us = is_child && self.neighbour != self.own && lies_in(&self.neighbour, &self.own);
        if is_child && !lies_in(prefix, &self.neighbour) {
            return Err(DropReason::OutsideChild);
        }
        if !is_child_below_us && lies_in(prefix, &self.own) {
            return Err(DropReason::OwnPrefix);
        }
        Ok(())
    }

    /// Whether we are behind the neighbour, which is the first hop.
    fn comes_from_us(&self, path: Texts<'_>) -> bool {
        path.iter().skip(1).any(|hop| hop == self.own.as_bytes())
    }

    fn check_path(&self, path: Texts<'_>) -> Result<(), DropReason> {
        if path.len() > PATH_HOPS_MAX || path.as_bytes().len() > PATH_BYTES_MAX {
            return Err(DropReason::PathTooLong);
        }
        for hop in path.iter() {
            let hop = Address::parse(hop).map_err(|_| DropReason::Hop)?;
            if hop.as_str() == &*self.own {
                return Err(DropReason::Loop);
            }
        }
        Ok(())
    }
}

/// A prefix as it is kept; `None` if it is none.
pub(super) fn normalized(prefix: &[u8]) -> Option<&str> {
    check_prefix(str::from_utf8(prefix).ok()?).ok()
}

/// Whether `prefix` is `space` or lies below it, segment by segment.
pub(super) fn lies_in(prefix: &str, space: &str) -> bool {
    prefix
        .strip_prefix(space)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What stands before the first dot.
pub(super) fn scheme_of(prefix: &str) -> &str {
    prefix.split_once('.').map_or(prefix, |(scheme, _)| scheme)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ccp::{NewRoute, Update, UpdateHead, UpdateWriter};
    use crate::wire::oer::write_var_octets;

    /// One line per route: `relation neighbour prefix path expected`; `.` is the empty prefix, `-` the empty path, hops
    /// have commas between them. We are `test.me.hub`. The neighbour stands before the path.
    fn check(lines: &str) {
        for line in lines.lines().map(str::trim) {
            let words: Vec<_> = line.split_whitespace().collect();
            let [relation, neighbour, prefix, path, expected] = words[..] else {
                panic!("{line}")
            };
            let relation = RoutingRelation::parse(relation).expect(line);
            let prefix = if prefix == "." { "" } else { prefix };
            let mut hops = Vec::new();
            for hop in path.split(',').filter(|hop| *hop != "-") {
                write_var_octets(&mut hops, hop.as_bytes());
            }
            let found = verdict(relation, neighbour, prefix, &hops);
            assert_eq!(found.unwrap_or_else(|reason| format!("{reason:?}")), expected, "{line}");
        }
    }

    fn verdict(relation: RoutingRelation, neighbour: &str, prefix: &str, hops: &[u8]) -> Result<String, DropReason> {
        let speaker = Address::parse(neighbour.as_bytes()).unwrap();
        let mut writer = UpdateWriter::new(speaker);
        writer.announce(&NewRoute {
            prefix,
            path: Texts::from_bytes(hops).unwrap(),
            auth: &[0; 32],
        });
        let head = UpdateHead {
            table_id: [1; 16],
            current_epoch: 1,
            from_epoch: 0,
            to_epoch: 1,
            hold_down_ms: 1,
            speaker,
        };
        let mut data = Vec::new();
        writer.finish(&head, &mut data);
        let update = Update::parse(&data).unwrap();
        let route = update.new_routes.iter().next().unwrap();
        let filter = Filter::new("test.me.hub".into(), relation, neighbour.into());
        filter.check(&route).map(str::to_owned)
    }

    #[test]
    fn which_prefixes_are_believed() {
        check(
            "peer   test.bob         test.bob           -  test.bob
             peer   test.bob         test.bob.          -  test.bob
             peer   test.bob         test.else.where    -  test.else.where
             peer   test.bob         test.me            -  test.me
             peer   test.bob         test.me.hubby      -  test.me.hubby
             peer   test.bob         test.me.hub        -  OwnPrefix
             peer   test.bob         test.me.hub.       -  OwnPrefix
             peer   test.bob         test.me.hub.alice  -  OwnPrefix
             parent test.me          test.me.hub.alice  -  OwnPrefix
             peer   test.bob         test.me.hub        test.me.hub  Loop
             peer   test.bob         test.me.hub.alice  test.c,test.me.hub  Loop
             peer   test.bob         test1.bob          -  Scheme
             peer   test.bob         g.bob              -  Scheme
             peer   test.bob         peer.config        -  Scheme
             peer   test.bob         self.x             -  Scheme
             peer   test.bob         g                  -  Scheme
             peer   test.bob         what.bob           -  Prefix
             peer   test.bob         test..bob          -  Prefix
             peer   test.bob         test.b!            -  Prefix
             peer   test.bob         ..                 -  Prefix",
        );
        let longest = format!("test.{}", "a".repeat(1018));
        let peer = RoutingRelation::Peer;
        assert_eq!(verdict(peer, "test.bob", &longest, &[]), Ok(longest.clone()));
        assert_eq!(
            verdict(peer, "test.bob", &format!("{longest}a"), &[]),
            Err(DropReason::Prefix)
        );
    }

    #[test]
    fn a_default_route_comes_from_a_parent() {
        check(
            "parent test.me          test  -  test
             peer   test.bob         test  -  DefaultRoute
             peer   test.bob         .     -  DefaultRoute
             child  test.me.hub.kid  test  -  DefaultRoute
             child  test.me.hub.kid  .     -  DefaultRoute",
        );
        assert_eq!(verdict(RoutingRelation::Parent, "test.me", "", &[]), Ok(String::new()));
    }

    #[test]
    fn a_child_speaks_for_its_own_addresses() {
        check(
            "child  test.me.hub.kid  test.me.hub.kid      -  test.me.hub.kid
             child  test.me.hub.kid  test.me.hub.kid.a.b  -  test.me.hub.kid.a.b
             child  test.me.hub.kid  test.me.hub.kidney   -  OutsideChild
             child  test.me.hub.kid  test.me.hub.alice    -  OutsideChild
             child  test.me.hub.kid  test.me.hub          -  OutsideChild
             child  test.me.hub.kid  test.else            -  OutsideChild
             child  test.else        test.else.a          -  test.else.a
             child  test.else        test.me.hub.alice    -  OutsideChild
             child  test.me          test.me.hub.alice    -  OwnPrefix
             child  test.me          test.me.b            -  test.me.b
             child  test.me.hub      test.me.hub.alice    -  OwnPrefix",
        );
    }

    #[test]
    fn which_paths_are_believed() {
        check(
            "peer   test.bob  test.x  test.a,test.b            test.x
             peer   test.bob  test.x  test.a,test.me.hub       Loop
             peer   test.bob  test.x  test.me.hub              Loop
             peer   test.bob  test.x  test.me.hubby,test.me    test.x
             peer   test.bob  test.x  test.a,nonsense          Hop
             peer   test.bob  test.x  nonsense,test.me.hub     Hop",
        );
        let hops = |count: usize, bytes: usize| {
            let mut hops = Vec::new();
            for _ in 0..count {
                write_var_octets(&mut hops, format!("test.{}", "a".repeat(bytes - 5)).as_bytes());
            }
            hops
        };
        // The neighbour itself is one more.
        for (count, bytes, expected) in [
            (PATH_HOPS_MAX - 1, 20, Ok("test.x".to_owned())),
            (PATH_HOPS_MAX, 20, Err(DropReason::PathTooLong)),
            (4, 1_000, Ok("test.x".to_owned())),
            (5, 1_000, Err(DropReason::PathTooLong)),
        ] {
            let found = verdict(RoutingRelation::Peer, "test.bob", "test.x", &hops(count, bytes));
            assert_eq!(found, expected, "{count} hops of {bytes} bytes");
        }
    }

    #[test]
    fn every_reason_is_listed_once_and_at_its_place() {
        for (place, reason) in DROP_REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
    }
}
