//! Route exchange with neighbours (CCP; in no RFC, see protocols.md 8): what we tell one, and what we believe of what
//! it tells us.
//!
//! Owns both directions as state machines that know one neighbour each: a [`Speaker`] tells it our routes, out of the
//! [`Log`] that all speakers of the node share; a [`Listener`] asks for its routes, filters them, keeps those it
//! believes and hands on every change. Leaves the layout of payloads to [`crate::wire::ccp`], the choice among routes
//! to [`super::table`], and to the caller the way of a request and its answer, and the clock.
//!
//! # How it goes
//! For each neighbour, a speaker and a listener; both are told when the link is up and when it is down. Every
//! `peer.route.control` goes to [`Speaker::handle_control`], every `peer.route.update` to [`Listener::handle_update`],
//! and their result decides between Fulfill and Reject. Whatever was called, and at `next_wakeup`, the `poll_*` of the
//! machine says what is to be sent, and its answer, or that there is none, goes to its `handle_answer`. Changes that a
//! listener reports go into the routing table; what wins there goes into the log.
//!
//! # What always holds
//! - A neighbour that has heard the log up to its newest epoch knows the routes it may know, and no others.
//! - What a listener has announced and not withdrawn is what it keeps: the caller's copy needs no reset.
//! - Everything that a neighbour can make grow has a limit: routes and their bytes, changes and updates per second, and
//!   what we send in answer.
//! - A route that we believe leads away from us: not into our own addresses, not over ourselves, and a child speaks for
//!   its own addresses alone.

use std::fmt;
use std::sync::Arc;

use crate::ledger::account::{AccountId, RoutingRelation};
use crate::wire::address::Address;
use crate::wire::ccp::Texts;
use crate::wire::oer::write_var_octets;
use crate::wire::packet::{ErrorCode, PEER_FULFILLMENT, Reply};

mod filter;
mod listener;
mod log;
mod speaker;

pub use filter::{DROP_REASONS, DropReason};
pub use listener::{Change, Learned, Listener, ListenerConfig, ROUTES_MAX};
pub use log::{Log, LogLimits, NextHop};
pub use speaker::{INTERVAL_MS, Speaker};

/// Hops of a path that we believe, and bytes that they take: no real path comes near either.
pub const PATH_HOPS_MAX: usize = 32;
pub const PATH_BYTES_MAX: usize = 4_096;

/// The other end of a route exchange. A change of any field makes new machines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    pub account: AccountId,
    /// What it is to us.
    pub relation: RoutingRelation,
    /// Its address, as the account says.
    pub address: Arc<str>,
}

/// What became of a request to a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Fulfilled,
    Rejected(ErrorCode),
    /// The link was down, the request expired, or the answer is none that a neighbour gives.
    Missing,
}

impl Answer {
    /// Reads the answer of a neighbour.
    pub fn of(reply: &Reply<'_>) -> Self {
        match reply {
            Reply::Fulfill(fulfill) if *fulfill.fulfillment() == PEER_FULFILLMENT => Self::Fulfilled,
            Reply::Fulfill(_) => Self::Missing,
            Reply::Reject(reject) => Self::Rejected(reject.code()),
        }
    }

    /// Whether the neighbour says that this direction is off: both implementations answer so when their relation to us
    /// does not allow what we ask.
    fn is_refusal(self) -> bool {
        self == Self::Rejected(ErrorCode::F00_BAD_REQUEST)
    }
}

/// Why a request of a neighbour is rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The relation, or the operator, does not allow it.
    #[error("no routes are exchanged in this direction")]
    NotAllowed,
    /// More updates than the neighbour may send.
    #[error("too many route updates")]
    TooMany,
}

impl Refusal {
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::NotAllowed => ErrorCode::F00_BAD_REQUEST,
            Self::TooMany => ErrorCode::T05_RATE_LIMITED,
        }
    }
}

/// The nodes that a route leads over, the nearest first, as a neighbour wrote them. All are addresses. Copies share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Path(Arc<[u8]>);

impl Path {
    /// The path of what lies next to us.
    pub fn empty() -> Self {
        Self(Arc::default())
    }

    /// From the addresses of its nodes.
    pub fn new<'a>(hops: impl IntoIterator<Item = Address<'a>>) -> Self {
        let mut bytes = Vec::new();
        for hop in hops {
            write_var_octets(&mut bytes, hop.as_bytes());
        }
        Self(bytes.into())
    }

    /// From the bytes that [`Self::as_bytes`] gave. `None`: they are not those of a path that we believe.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let texts = Texts::from_bytes(bytes).ok()?;
        let is_short = texts.len() <= PATH_HOPS_MAX && bytes.len() <= PATH_BYTES_MAX;
        let are_addresses = || texts.iter().all(|hop| Address::parse(hop).is_ok());
        (is_short && are_addresses()).then(|| Self(bytes.into()))
    }

    /// For who keeps it elsewhere.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Of texts that were found to be addresses.
    fn of_checked(texts: Texts<'_>) -> Self {
        Self(texts.as_bytes().into())
    }

    fn texts(&self) -> Texts<'_> {
        Texts::from_bytes(&self.0).expect("texts when it was made")
    }

    fn byte_len(&self) -> usize {
        self.0.len()
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.texts().len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The addresses of the nodes.
    pub fn hops(&self) -> impl Iterator<Item = &str> {
        let hops = self.texts().iter();
        hops.map(|hop| str::from_utf8(hop).expect("addresses when it was made"))
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.hops()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_back_from_its_bytes() {
        let hops = ["test.a", "test.b.c"].map(|hop| Address::parse(hop.as_bytes()).unwrap());
        for path in [Path::empty(), Path::new(hops)] {
            assert_eq!(Path::from_bytes(path.as_bytes()), Some(path));
        }
        let many = Path::new([hops[0]; PATH_HOPS_MAX + 1]);
        for bytes in [&[1][..], &[3, b'a', b'.'], &[1, b'a'], &[0], many.as_bytes()] {
            assert_eq!(Path::from_bytes(bytes), None, "{bytes:?}");
        }
    }
}
