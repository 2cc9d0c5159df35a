//! Which way a packet would go, and why: what the pipeline decides about a destination, told in words.
//!
//! Owns the words, and the order of the checks, which is that of [`crate::pipeline::incoming`] and
//! [`crate::pipeline::outgoing`]. Leaves out what only a packet can tell: its amount against limits and balances, its
//! expiry, and what its data asks for. Reads only.
//!
//! Always: what is said to be refused is refused with the code that is said, as long as nothing changes meanwhile;
//! `tests/explain.rs` sends the packets.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ledger::account::{Account, AccountId};
use crate::pipeline::rates::{Decimal, Rates};
use crate::pipeline::reject::RejectReason;
use crate::routing::table::{Candidate, Origin};
use crate::shard::receiving::token_of;
use crate::wire::address::Address;

use super::routes::{Route, Way, has_link};
use super::state::{DEFAULT_ROUTE, State};
use super::{Control, ControlError, Readiness};

/// What the operator decided about packets that an explanation has to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketRules {
    /// May a Prepare leave on the account it came from?
    pub reflect: bool,
    /// Are echo requests to the node's own address answered?
    pub echo: bool,
}

/// What would become of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes to the next hop.
    Forwarded,
    /// The node answers it itself.
    Local,
    Refused(RejectReason),
}

/// One way for the prefix that decides.
#[derive(Clone, Debug)]
pub struct WayExplained {
    pub way: Way,
    /// Why it stands behind the one in force, which is the first and has no such reason.
    pub behind: Option<String>,
}

/// The answer to: where would a packet go?
#[derive(Clone, Debug)]
pub struct Explanation {
    pub from: Option<Arc<Account>>,
    pub outcome: Outcome,
    /// To whom it goes, or would go if it was not refused.
    pub next_hop: Option<Arc<Account>>,
    /// In the order of the checks; each is a sentence without its full stop.
    pub reasons: Vec<String>,
    /// The longest prefix that matches. `None`: there is none, or none was looked for.
    pub prefix: Option<Arc<str>>,
    /// The ways for that prefix; none if it is the node's own address.
    pub ways: Vec<WayExplained>,
    /// Shorter prefixes that match as well, longest first, and where they lead.
    pub shorter: Vec<Route>,
}

/// What the look-up finds.
struct Found {
    prefix: Arc<str>,
    /// Empty: it is the node itself.
    ways: Vec<Way>,
}

impl Control {
    /// Says what would become of a packet to this address, from this account if it is named. Waits for a change that is
    /// being made.
    pub fn explain(
        &self,
        destination: Address<'_>,
        from: Option<&str>,
        rules: PacketRules,
    ) -> Result<Explanation, ControlError> {
        let closing = self.changes.lock().expect("no change panics halfway").closing.clone();
        let (from, node_address, rates, mut found, shorter) = {
            let state = self.read();
            let from = from.map(|username| state.account(username).cloned()).transpose()?;
            let (found, shorter) = look_up(&state, destination);
            let (node_address, rates) = (Arc::clone(&state.node_address), Arc::clone(&state.rates));
            (from, node_address, rates, found, shorter)
        };
        if let Some(found) = &mut found {
            self.add_paths(&found.prefix, &mut found.ways);
        }
        let mut explanation = Explanation {
            from,
            outcome: Outcome::Forwarded,
            next_hop: None,
            reasons: Vec::new(),
            prefix: None,
            ways: Vec::new(),
            shorter: Vec::new(),
        };
        let packet = Packet {
            destination,
            node_address: &node_address,
            rates: &rates,
            closing: &closing,
            rules,
        };
        explanation.outcome = self.decide(&packet, found, shorter, &mut explanation);
        Ok(explanation)
    }

    /// In the order in which the pipeline checks.
    fn decide(
        &self,
        packet: &Packet<'_>,
        found: Option<Found>,
        shorter: Vec<Route>,
        explanation: &mut Explanation,
    ) -> Outcome {
        let Explanation { from, reasons, .. } = explanation;
        let mut say = |reason: String| reasons.push(reason);
        if self.readiness.load(Ordering::Relaxed) == Readiness::Stopping as u8 {
            say("the node is stopping".to_owned());
            return Outcome::Refused(RejectReason::Stopping);
        }
        if let Some(reason) = self.bookkeeper.failure() {
            say(format!("the node cannot commit: {reason}"));
            return Outcome::Refused(RejectReason::CannotCommit);
        }
        if let Some(from) = from
            && packet.closing.contains(&from.id)
        {
            say(format!("{} is being deleted", from.username));
            return Outcome::Refused(RejectReason::Stopping);
        }
        let destination = packet.destination.as_str();
        if packet.destination.scheme() == "peer" {
            return match destination {
                "peer.config" | "peer.route.control" | "peer.route.update" | "peer.settle" => {
                    say("the node answers this address itself, for whoever is at the other end of a link".to_owned());
                    Outcome::Local
                }
                _ => {
                    say("no service has this address, and peer. addresses are never forwarded".to_owned());
                    Outcome::Refused(RejectReason::NoSuchService)
                }
            };
        }
        let is_own_address = destination == packet.node_address;
        if is_own_address && packet.rules.echo {
            say("an echo request to the node's own address is answered by the node".to_owned());
        }
        let own_scheme = packet.node_address.split('.').next().unwrap_or_default();
        if packet.destination.scheme() != own_scheme {
            say(format!(
                "its scheme is not {own_scheme}, that of the node's own address {}",
                packet.node_address
            ));
            return Outcome::Refused(RejectReason::NoRoute);
        }
        explanation.shorter = shorter;
        let Some(found) = found else {
            say("no prefix matches, and there is no default route".to_owned());
            return Outcome::Refused(RejectReason::NoRoute);
        };
        explanation.prefix = Some(Arc::clone(&found.prefix));
        let Some(winner) = found.ways.first().cloned() else {
            return if is_own_address {
                say("it is the node's own address, where nothing else is taken".to_owned());
                Outcome::Refused(RejectReason::NoSuchService)
            } else {
                say("it is below the node's own address and nobody's: a shorter route would bring it back".to_owned());
                Outcome::Refused(RejectReason::NoRoute)
            };
        };
        say(match &*found.prefix {
            DEFAULT_ROUTE => "no prefix matches but that of the default route".to_owned(),
            prefix => format!("{prefix} is the longest prefix that matches"),
        });
        say(why_in_force(&found, &winner));
        let behind = |way: &Way| why_behind(&winner.candidate, &way.candidate);
        let ways = found.ways.into_iter().enumerate();
        explanation.ways = ways
            .map(|(place, way)| WayExplained {
                behind: (place > 0).then(|| behind(&way)),
                way,
            })
            .collect();
        let to = winner.account;
        explanation.next_hop = Some(Arc::clone(&to));
        let (outcome, reason) = self.decide_next_hop(packet, from.as_deref(), &to, winner.candidate.is_up);
        say(reason);
        outcome
    }

    /// What depends on the next hop.
    fn decide_next_hop(
        &self,
        packet: &Packet<'_>,
        from: Option<&Account>,
        to: &Account,
        is_up: bool,
    ) -> (Outcome, String) {
        let username = &to.username;
        let refused = |reason, words: String| (Outcome::Refused(reason), words);
        if let Some(from) = from {
            if from.id == to.id && !packet.rules.reflect {
                let words = "it would go back to whom it came from, and reflect_payments is off".to_owned();
                return refused(RejectReason::Reflected, words);
            }
            if from.asset_id != to.asset_id && !has_rate(packet.rates, from, to) {
                let words = format!(
                    "there is no exchange rate from {} to {}; only amounts of 0 need none",
                    from.asset.code, to.asset.code
                );
                return refused(RejectReason::NoRate, words);
            }
        }
        if packet.closing.contains(&to.id) {
            return refused(RejectReason::Stopping, format!("{username} is being deleted"));
        }
        if token_of(packet.destination.as_str(), &to.ilp_address).is_some() {
            let words = format!("it is a payment address of {username}: the node receives STREAM packets for it");
            return match has_link(to) {
                true => (Outcome::Local, format!("{words}, and others go on to its link")),
                false => (Outcome::Local, words),
            };
        }
        if to.links.http_url().is_some() {
            return match is_up {
                true => (Outcome::Forwarded, format!("it goes to {username} over HTTP")),
                false => {
                    let words = format!("the last connection to the ilp_over_http_url of {username} failed");
                    refused(RejectReason::LinkFailed, words)
                }
            };
        }
        if !has_link(to) {
            return refused(RejectReason::LinkDown, format!("{username} has no link"));
        }
        match self.account_state(to).btp_connected {
            true => (Outcome::Forwarded, format!("it goes to {username} over BTP")),
            false => refused(
                RejectReason::LinkDown,
                format!("{username} has no BTP connection at the moment"),
            ),
        }
    }
}

/// A packet that may never come, and what decides about it.
struct Packet<'a> {
    destination: Address<'a>,
    node_address: &'a str,
    rates: &'a Rates,
    closing: &'a HashSet<AccountId>,
    rules: PacketRules,
}

/// The longest prefix that matches with its ways, and all shorter ones, as the shards find them.
fn look_up(state: &State, destination: Address<'_>) -> (Option<Found>, Vec<Route>) {
    let node_address = &state.node_address;
    let mut found = None;
    let mut shorter = Vec::new();
    for prefix in prefixes_of(destination) {
        let Some(winner) = state.routes.winner(prefix) else {
            // What is below our own address and nobody's ends here; no account may lead it away.
            if *prefix == **node_address && found.is_none() {
                found = Some(Found {
                    prefix: Arc::clone(node_address),
                    ways: Vec::new(),
                });
            }
            continue;
        };
        match found {
            None => {
                let ways = state.routes.candidates(prefix).into_iter();
                found = Some(Found {
                    prefix: prefix.into(),
                    ways: ways.map(|candidate| state.way(candidate)).collect(),
                });
            }
            Some(_) => shorter.push((prefix.into(), state.next_hop(winner))),
        }
    }
    (found, shorter)
}

/// An address and its beginnings up to a dot, longest first, and the empty prefix.
fn prefixes_of(address: Address<'_>) -> impl Iterator<Item = &str> {
    let whole = address.as_str();
    let shorter = whole.rmatch_indices('.').map(|(dot, _)| &whole[..dot]);
    std::iter::once(whole).chain(shorter).chain([DEFAULT_ROUTE])
}

fn has_rate(rates: &Rates, from: &Account, to: &Account) -> bool {
    let asset = |account: &Account| (Arc::clone(&account.asset.code), account.asset.scale);
    let ((from_code, from_scale), (to_code, to_scale)) = (asset(from), asset(to));
    // Whether there is one does not depend on what the node keeps.
    rates
        .conversion((&from_code, from_scale), (&to_code, to_scale), &Decimal::zero())
        .is_ok()
}

fn why_in_force(found: &Found, winner: &Way) -> String {
    let username = &winner.account.username;
    let what = match winner.candidate.origin {
        Origin::Fixed => "a static route".to_owned(),
        Origin::Own if *found.prefix == *DEFAULT_ROUTE => "the default route to the parent".to_owned(),
        Origin::Own => "the account's own address".to_owned(),
        Origin::Learned { relation, hops } => {
            let hops = match hops {
                1 => "1 hop".to_owned(),
                hops => format!("{hops} hops"),
            };
            format!("a route of {hops}, learned from a {}", relation.as_str())
        }
    };
    match found.ways.len() {
        1 => format!("it leads to {username}: {what}"),
        count if !winner.candidate.is_up => {
            format!("of {count} ways the one to {username} is in force: {what}; the links of all of them are down")
        }
        count => format!("of {count} ways the one to {username} is in force: {what}"),
    }
}

/// Why a way stands behind the one in force.
fn why_behind(winner: &Candidate, other: &Candidate) -> String {
    let why = match (winner.origin, other.origin) {
        _ if winner.is_up && !other.is_up => "its link is down",
        (Origin::Fixed, _) => "a static route comes before all others",
        (Origin::Own, Origin::Learned { .. }) => "an account's own address comes before learned routes",
        (
            Origin::Learned { relation, hops },
            Origin::Learned {
                relation: other_relation,
                hops: other_hops,
            },
        ) => {
            if relation != other_relation {
                let [first, second] = [relation, other_relation].map(|relation| relation.as_str());
                return format!("a route learned from a {first} comes before one from a {second}");
            }
            if hops != other_hops {
                return format!("fewer hops: {hops} against {other_hops}");
            }
            "the older account comes first"
        }
        _ => "the older account comes first",
    };
    why.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::account::RoutingRelation;

    #[test]
    fn prefixes_are_found_longest_first() {
        let prefixes = |address: &str| {
            let address = Address::parse(address.as_bytes()).unwrap();
            prefixes_of(address).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(prefixes("g.a.bc"), ["g.a.bc", "g.a", "g", ""]);
        assert_eq!(prefixes("g.a"), ["g.a", "g", ""]);
    }

    #[test]
    fn why_one_way_stands_behind_another() {
        let learned = |relation, hops| Origin::Learned { relation, hops };
        let (child, peer) = (RoutingRelation::Child, RoutingRelation::Peer);
        let candidate = |origin, is_up| Candidate {
            account: AccountId::new(1),
            origin,
            is_up,
        };
        for (winner, is_up, other, other_is_up, expected) in [
            (
                Origin::Fixed,
                true,
                Origin::Own,
                true,
                "a static route comes before all others",
            ),
            (Origin::Own, true, Origin::Fixed, false, "its link is down"),
            (
                Origin::Own,
                false,
                learned(child, 1),
                false,
                "an account's own address comes before learned routes",
            ),
            (Origin::Own, true, Origin::Own, true, "the older account comes first"),
            (
                learned(child, 9),
                true,
                learned(peer, 1),
                true,
                "a route learned from a Child comes before one from a Peer",
            ),
            (
                learned(peer, 2),
                true,
                learned(peer, 3),
                true,
                "fewer hops: 2 against 3",
            ),
            (
                learned(peer, 2),
                false,
                learned(peer, 2),
                false,
                "the older account comes first",
            ),
        ] {
            let (winner, other) = (candidate(winner, is_up), candidate(other, other_is_up));
            assert_eq!(why_behind(&winner, &other), expected, "{winner:?} {other:?}");
        }
    }
}
