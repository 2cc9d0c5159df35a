//! Packets that end here: what payers send to the addresses that our own accounts hand out (STREAM, RFC 29).
//!
//! Owns telling such a packet from one that goes on: its address is an account's and a token behind it, and it decrypts
//! under the secret that follows from that token. Who is a receiver is a link like any other to the pipeline, one that
//! answers at once: the amount is reserved, booked and durable before the Fulfill leaves, as for every packet.
//!
//! Always: nothing is kept of a connection, so a restart ends none. What cannot be decrypted goes to the account's link,
//! if it has one: a peer may have given out an address that looks like ours.

use std::collections::HashMap;

use crate::ledger::{Account, AccountId};
use crate::pipeline::incoming::Onward;
use crate::pipeline::local::TOKEN_CHARS;
use crate::pipeline::outgoing::LinkState;
use crate::stream::crypto::ConnectionKeys;
use crate::stream::receiver::{Answer, Receiver, Recipient, Refusal};
use crate::stream::secret::{self, TokenMaker};
use crate::wire::packet::{Prepare, RejectBuilder, encode_fulfill, patch_prepare};

use super::Shard;
use super::control::Notice;
use super::packets::Response;

const _: () = assert!(
    TOKEN_CHARS == secret::TOKEN_CHARS,
    "what the pipeline looks for is what we hand out"
);

/// Connections whose keys are at hand. Deriving them takes as long as all the rest of a packet.
const CONNECTIONS_MAX: usize = 4_096;

/// What a shard needs to answer payers.
pub struct Receiving {
    tokens: TokenMaker,
    receiver: Receiver,
    connections: HashMap<(AccountId, [u8; TOKEN_CHARS]), ConnectionKeys>,
    /// The packet as its receiver sees it, and the data of the answer; kept for their memory.
    packet: Vec<u8>,
    data: Vec<u8>,
    answer: Vec<u8>,
}

impl Receiving {
    pub fn new(secret_seed: &[u8; 32]) -> Self {
        Self {
            tokens: TokenMaker::new(secret_seed),
            receiver: Receiver::new(),
            connections: HashMap::new(),
            packet: Vec::new(),
            data: Vec::new(),
            answer: Vec::new(),
        }
    }

    fn keys(&mut self, account: &Account, token: &[u8; TOKEN_CHARS]) -> Option<&ConnectionKeys> {
        let key = (account.id, *token);
        if !self.connections.contains_key(&key) {
            let text = std::str::from_utf8(token).ok()?;
            let opened = self.tokens.open(&account.uuid, text)?;
            // All at once: who is still paying is back with the next packet.
            if self.connections.len() >= CONNECTIONS_MAX {
                self.connections.clear();
            }
            self.connections.insert(key, ConnectionKeys::new(&opened.shared_secret));
        }
        self.connections.get(&key)
    }
}

/// The token in an address of an account: the segment behind the account's own address. One payer in the field asks for
/// the asset with a segment `_` in between.
pub fn token_of(destination: &str, ilp_address: &str) -> Option<[u8; TOKEN_CHARS]> {
    let rest = destination.strip_prefix(ilp_address)?.strip_prefix('.')?;
    let token = rest.strip_prefix("_.").unwrap_or(rest);
    token.as_bytes().try_into().ok()
}

impl Shard {
    /// Answers a Prepare that ends at one of our accounts. Gives it back if it goes on to the account's link.
    pub(super) fn receive(&mut self, onward: Onward, packet: &[u8]) -> Option<Onward> {
        let account = self.pipeline.directory().get(onward.to).cloned();
        let prepare = Prepare::parse(packet).ok();
        let Some((account, token)) = account.zip(prepare).and_then(|(account, prepare)| {
            let token = token_of(prepare.destination().as_str(), &account.ilp_address)?;
            Some((account, token))
        }) else {
            return Some(onward);
        };
        let mut receiving = self.receiving.take().expect("receiving a packet receives no other");
        let mut packet_received = std::mem::take(&mut receiving.packet);
        packet_received.clear();
        packet_received.extend_from_slice(packet);
        patch_prepare(&mut packet_received, onward.amount, onward.expires_at);
        let prepare = Prepare::parse(&packet_received).expect("it was one before its amount was changed");
        let answer = self.decide_received(&mut receiving, &account, &token, &prepare);
        // Not ours after all: the account's own business, if it can be asked.
        let links = &account.links;
        let has_link = links
            .http_url()
            .or(links.btp_url())
            .or(links.btp_incoming_token())
            .is_some();
        let goes_on = answer == Answer::Reject(Refusal::Unexpected) && has_link;
        let onward = if goes_on {
            Some(onward)
        } else {
            self.answer_received(&mut receiving, &account, onward, &prepare, &answer);
            None
        };
        receiving.packet = packet_received;
        self.receiving = Some(receiving);
        onward
    }

    fn decide_received(
        &mut self,
        receiving: &mut Receiving,
        account: &Account,
        token: &[u8; TOKEN_CHARS],
        prepare: &Prepare<'_>,
    ) -> Answer {
        let mut data = std::mem::take(&mut receiving.data);
        data.clear();
        let mut receiver = std::mem::take(&mut receiving.receiver);
        let entropy = &mut self.entropy;
        let answer = match receiving.keys(account, token) {
            None => Answer::Reject(Refusal::Unexpected),
            Some(keys) => {
                let recipient = Recipient {
                    keys,
                    asset_code: &account.asset.code,
                    asset_scale: account.asset.scale,
                    receipts: None,
                };
                receiver.answer(&recipient, prepare, &mut |bytes| entropy.fill(bytes), &mut data)
            }
        };
        receiving.data = data;
        receiving.receiver = receiver;
        answer
    }

    /// Takes the packet as the account's link would, and has it answered at once.
    fn answer_received(
        &mut self,
        receiving: &mut Receiving,
        account: &std::sync::Arc<Account>,
        onward: Onward,
        prepare: &Prepare<'_>,
        received: &Answer,
    ) {
        let from = onward.origin.from;
        let waiting = self.journal.len().max(self.transfers.waiting());
        let id = match self
            .pipeline
            .outgoing(self.now, onward, LinkState::Up { carrier: 0 }, waiting)
        {
            Ok(id) => id,
            Err((origin, reason)) => return self.answer_with(origin, &reason),
        };
        receiving.answer.clear();
        let (amount, sequence, connection_closed) = match received {
            Answer::Fulfill(acceptance) => {
                encode_fulfill(&mut receiving.answer, &acceptance.fulfillment, &receiving.data);
                (acceptance.amount, acceptance.sequence, false)
            }
            Answer::Reject(refusal) => {
                RejectBuilder {
                    code: refusal.code(),
                    triggered_by: &account.ilp_address,
                    message: refusal.message(),
                    data: &receiving.data,
                }
                .encode(&mut receiving.answer);
                match refusal {
                    Refusal::Closed { sequence } => (0, *sequence, true),
                    _ => (0, 0, false),
                }
            }
        };
        let is_news = connection_closed || matches!(received, Answer::Fulfill(_));
        let notice = (is_news && self.has_subscribers(account.id)).then(|| Notice {
            to: account.clone(),
            from_username: self
                .pipeline
                .directory()
                .get(from)
                .map_or_else(Box::default, |from| from.username.clone()),
            destination: prepare.destination().as_str().into(),
            amount,
            at: self.now.wall,
            sequence,
            connection_closed,
        });
        let answer = std::mem::take(&mut receiving.answer);
        self.responded_with(account.id, id, Response::Packet(&answer), notice);
        receiving.answer = answer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_addresses() {
        let token = "AAECAwQFBgcICQoLDA0ODxAR";
        for (destination, address, found) in [
            (format!("test.hub.bob.{token}"), "test.hub.bob", true),
            (format!("test.hub.bob._.{token}"), "test.hub.bob", true),
            (format!("test.hub.bob.{token}.x"), "test.hub.bob", false),
            (format!("test.hub.bob.x.{token}"), "test.hub.bob", false),
            (format!("test.hub.bob.{}", &token[1..]), "test.hub.bob", false),
            (format!("test.hub.bobby.{token}"), "test.hub.bob", false),
            (format!("test.hub.{token}"), "test.hub.bob", false),
            ("test.hub.bob".to_owned(), "test.hub.bob", false),
            (format!("test.hub.bob.{token}"), "test.hub", false),
        ] {
            assert_eq!(token_of(&destination, address).is_some(), found, "{destination}");
        }
    }
}
