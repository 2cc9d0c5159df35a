//! The candidates for one prefix: where each comes from, which is better, and how they are kept.
//!
//! Owns the order of preference. Leaves links to the table above: whether one is up is the account's, not the route's.
//!
//! Always: candidates are kept best first; an account has at most one of each origin, and at most one is fixed.

use crate::ledger::account::{AccountId, RoutingRelation};

/// Where a route comes from. The variants are in the order in which they win.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The operator said so.
    Fixed,
    /// It is the account's own address, or the account is the parent, to whom everything else goes.
    Own,
    /// A neighbour, which is this to us, told us; `hops` is the number of nodes that it leads over.
    Learned { relation: RoutingRelation, hops: u8 },
}

impl Origin {
    /// Lower is better: fixed, own, learned from children, peers and the parent; among those fewer hops.
    fn rank(self) -> (u8, u8, u8) {
        match self {
            Self::Fixed => (0, 0, 0),
            Self::Own => (1, 0, 0),
            Self::Learned { relation, hops } => {
                let relation = match relation {
                    RoutingRelation::Child => 0,
                    RoutingRelation::Peer => 1,
                    RoutingRelation::Parent => 2,
                    // Exchanges no routes.
                    RoutingRelation::NonRoutingAccount => 3,
                };
                (2, relation, hops)
            }
        }
    }
}

/// A candidate as it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub account: AccountId,
    pub origin: Origin,
}

impl Known {
    /// Lower is better. The oldest account decides what nothing else does: accounts are numbered in the order in which
    /// they were made.
    fn rank(&self) -> ((u8, u8, u8), AccountId) {
        (self.origin.rank(), self.account)
    }

    pub fn is_in(&self, place: Place) -> bool {
        match (place, self.origin) {
            (Place::Fixed, Origin::Fixed) => true,
            (Place::Own(account), Origin::Own) | (Place::Learned(account), Origin::Learned { .. }) => {
                account == self.account
            }
            _ => false,
        }
    }
}

/// What a step puts a candidate in, or takes it out of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Fixed,
    Own(AccountId),
    Learned(AccountId),
}

/// All candidates for one prefix. Nearly every prefix has one, for which a list would cost more than all the rest.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    One(Known),
    /// Two or more.
    Several(Box<[Known]>),
}

const _: () = assert!(size_of::<Kept>() <= 16, "there may be a million of them");

impl Kept {
    /// Best first; at least one.
    pub fn all(&self) -> &[Known] {
        match self {
            Self::One(known) => std::slice::from_ref(known),
            Self::Several(all) => all,
        }
    }

    /// What is kept after `known`, if anything, has come into a place, and what was there before. `None`: there is no
    /// candidate any more.
    pub fn put(kept: Option<&Self>, place: Place, known: Option<Known>) -> (Option<Self>, Option<Known>) {
        let before = kept.map_or(&[][..], Self::all);
        let replaced = before.iter().copied().find(|other| other.is_in(place));
        let mut after: Vec<Known> = Vec::with_capacity(before.len() + 1);
        after.extend(before.iter().filter(|other| !other.is_in(place)));
        if let Some(known) = known {
            let at = after.partition_point(|other| other.rank() < known.rank());
            after.insert(at, known);
        }
        let kept = match after[..] {
            [] => None,
            [only] => Some(Self::One(only)),
            _ => Some(Self::Several(after.into())),
        };
        (kept, replaced)
    }
}
