//! Packets between links, pipeline and other shards: what [`crate::pipeline`] decides is carried out here.

use crate::ledger::AccountId;
use crate::pipeline::in_flight::{Origin, ReplyTo, RequestId};
use crate::pipeline::incoming::{Incoming, Onward};
use crate::pipeline::reject::RejectReason;
use crate::pipeline::response::{Answer, Outcome};
use crate::wire::address::Address;
use crate::wire::packet::{PACKET_BYTES_MAX, Prepare, Reject, Reply};

use super::Shard;
use super::control::Notice;
use super::mesh::Message;

/// A Fulfill that waits until its transfer is durable.
pub struct KeptBack {
    origin: Origin,
    packet: Box<[u8]>,
    /// Whoever wants to know of it is told then.
    notice: Option<Box<Notice>>,
}

/// What a next hop said to one of our Prepares.
pub enum Response<'a> {
    /// Bytes that should be a Fulfill or a Reject.
    Packet(&'a [u8]),
    /// Nothing of the kind, for this reason.
    None(RejectReason),
}

/// A Reject's message is cut to this when the packet would otherwise be too long for the links we know.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// The longest packet that every peer in the field takes (interledger-rs).
const REJECT_BYTES_COMMON_MAX: usize = 40_000;

impl Shard {
    /// A Prepare came in from `from` on a connection of this shard.
    pub(super) fn prepare_arrived(&mut self, from: AccountId, reply_to: ReplyTo, packet: &[u8]) {
        if self.owns(from) {
            self.incoming(from, reply_to, packet);
            return;
        }
        let owner = self.pipeline.owner_of(from);
        if self.mesh.take_room(owner, packet.len()) {
            self.mesh.send(
                owner,
                Message::Incoming {
                    from,
                    reply_to,
                    packet: packet.into(),
                },
            );
        } else {
            self.reject(from, reply_to, &RejectReason::ConnectorBusy);
        }
    }

    /// The first half: this shard owns `from`.
    pub(super) fn incoming(&mut self, from: AccountId, reply_to: ReplyTo, packet: &[u8]) {
        let Ok(prepare) = Prepare::parse(packet) else {
            self.reject(from, reply_to, &RejectReason::InvalidPacket);
            return;
        };
        match self.pipeline.incoming(self.now, from, &prepare, reply_to) {
            Err(reason) => self.reject(from, reply_to, &reason),
            Ok(Incoming::Config) => self.answer_config(from, reply_to),
            Ok(Incoming::Request { origin, service }) => self.requested(origin, service, &prepare),
            Ok(Incoming::Onward(mut onward)) => {
                // What goes on ends with the envelope: bytes behind it are nobody's (protocols.md 1.8).
                let replacement = onward.replacement.take();
                let packet = replacement.as_deref().unwrap_or(prepare.bytes());
                if self.owns(onward.to) {
                    self.outgoing(onward, packet);
                    return;
                }
                let owner = self.pipeline.owner_of(onward.to);
                if self.mesh.take_room(owner, packet.len()) {
                    self.mesh.send(
                        owner,
                        Message::Forward {
                            onward,
                            packet: packet.into(),
                        },
                    );
                } else {
                    self.answer_with(onward.origin, &RejectReason::ConnectorBusy);
                }
            }
        }
    }

    /// The second half: this shard owns `onward.to`.
    pub(super) fn outgoing(&mut self, onward: Onward, packet: &[u8]) {
        let (to, amount, expires_at) = (onward.to, onward.amount, onward.expires_at);
        let onward = match onward.ends_in_token {
            true => match self.receive(onward, packet) {
                Some(onward) => onward,
                None => return,
            },
            false => onward,
        };
        let state = self.link_state(to, packet.len());
        // In relaxed mode nothing is kept back, but the store's queue may still be long.
        let waiting = self.journal.len().max(self.transfers.waiting());
        match self.pipeline.outgoing(self.now, onward, state, waiting) {
            Ok(id) => self.send_prepare(to, id, packet, amount, expires_at),
            Err((origin, reason)) => self.answer_with(origin, &reason),
        }
    }

    /// A next hop has answered.
    pub(super) fn responded(&mut self, from: AccountId, id: RequestId, response: Response<'_>) {
        self.responded_with(from, id, response, None);
    }

    /// The same, with what is to be told when it is durable.
    pub(super) fn responded_with(
        &mut self,
        from: AccountId,
        id: RequestId,
        response: Response<'_>,
        notice: Option<Notice>,
    ) {
        let (answer, packet) = match response {
            Response::None(reason) => (self.pipeline.failed(id, from, reason), &[][..]),
            Response::Packet(bytes) => match Reply::parse(bytes) {
                Ok(Reply::Fulfill(fulfill)) => (self.pipeline.fulfilled(id, from, &fulfill), fulfill.bytes()),
                Ok(Reply::Reject(reject)) => {
                    let answer = self.pipeline.rejected(id, from);
                    if let Some(Answer::Rejected { origin }) = answer {
                        self.pass_reject(origin, &reject);
                        self.notify_now(notice);
                    } else {
                        self.note_late(from);
                    }
                    return;
                }
                Err(_) => (self.pipeline.failed(id, from, RejectReason::GarbageResponse), &[][..]),
            },
        };
        match answer {
            None => self.note_late(from),
            Some(Answer::Fulfilled { origin, transfer: None }) => {
                self.end(origin, packet, Outcome::Fulfilled);
                self.notify_now(notice);
            }
            Some(Answer::Fulfilled {
                origin,
                transfer: Some(transfer),
            }) => {
                let number = self.transfers.push(transfer);
                self.commit.add(self.turn_us);
                self.journal.wait(
                    number,
                    KeptBack {
                        origin,
                        packet: packet.into(),
                        notice: notice.map(Box::new),
                    },
                );
                self.settle_next();
            }
            Some(Answer::Refused { origin, reason }) => self.answer_with(origin, &reason),
            Some(Answer::Rejected { .. }) => unreachable!("only a Reject is passed on"),
        }
    }

    /// Nothing was moved, so there is nothing to wait for.
    fn notify_now(&mut self, notice: Option<Notice>) {
        if let Some(notice) = notice {
            self.notify(notice);
        }
    }

    fn note_late(&self, from: AccountId) {
        tracing::debug!(target: "packets", account = %from, "a response that nothing waits for; not paid");
    }

    /// Lets go of the Fulfills whose transfers have become durable.
    pub(super) fn release_durable(&mut self) {
        if self.journal.is_empty() {
            return;
        }
        let durable = self.transfers.durable();
        while let Some(KeptBack { origin, packet, notice }) = self.journal.release(durable) {
            self.end(origin, &packet, Outcome::Fulfilled);
            if let Some(notice) = notice {
                self.notify(*notice);
            }
        }
    }

    pub(super) fn has_durable(&self) -> bool {
        self.journal
            .next()
            .is_some_and(|number| number <= self.transfers.durable())
    }

    /// Rejects the Prepares whose outgoing expiry has passed.
    pub(super) fn expire(&mut self) {
        while let Some((to, carrier, answer)) = self.pipeline.expire(self.now) {
            if let Answer::Refused { origin, reason } = answer {
                self.answer_with(origin, &reason);
            }
            self.carrier_overdue(to, carrier);
        }
    }

    /// Ends an accepted Prepare with a Reject of our own.
    pub(super) fn answer_with(&mut self, origin: Origin, reason: &RejectReason) {
        // Who has asked a neighbour wants its reply, and no other.
        if let Some(question) = origin.reply_to.question() {
            self.pipeline.finish(origin.from, origin.hold, Outcome::Rejected);
            return self.question_ended(question, None);
        }
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        reason.encode(self.pipeline.node_address(), &mut packet);
        self.end(origin, &packet, Outcome::Rejected);
        self.scratch = packet;
    }

    /// Passes a next hop's Reject on as it came, but for what no reader may be asked to take.
    fn pass_reject(&mut self, origin: Origin, reject: &Reject<'_>) {
        let triggered_by = Address::parse(reject.triggered_by());
        if triggered_by.is_ok() && reject.bytes().len() <= REJECT_BYTES_COMMON_MAX {
            self.end(origin, reject.bytes(), Outcome::Rejected);
            return;
        }
        let mut packet = Vec::new();
        let own = Address::parse(self.pipeline.node_address().as_bytes()).expect("our own address is one");
        let triggered_by = triggered_by.unwrap_or(own);
        reject.encode_with(&mut packet, triggered_by, MESSAGE_BYTES_MAX);
        debug_assert!(packet.len() <= PACKET_BYTES_MAX);
        self.end(origin, &packet, Outcome::Rejected);
    }

    /// An accepted Prepare has ended: its hold is spent where its account lives, and its sender gets the response.
    pub(super) fn end(&mut self, origin: Origin, packet: &[u8], outcome: Outcome) {
        if !self.owns(origin.from) {
            let owner = self.pipeline.owner_of(origin.from);
            self.mesh.send(
                owner,
                Message::Finish {
                    by: self.id,
                    origin,
                    packet: packet.into(),
                    outcome,
                },
            );
            return;
        }
        let Origin { from, hold, reply_to } = origin;
        self.pipeline.finish(from, hold, outcome);
        self.reply(from, reply_to, packet);
    }

    /// A Prepare that this shard had sent on has ended on the shard `by`.
    pub(super) fn ended_elsewhere(&mut self, by: u16, origin: Origin, packet: &[u8], outcome: Outcome) {
        self.mesh.give_room_back(by);
        self.end(origin, packet, outcome);
    }

    /// Refuses a Prepare that was not accepted.
    fn reject(&mut self, from: AccountId, reply_to: ReplyTo, reason: &RejectReason) {
        tracing::debug!(target: "packets", account = %from, ?reason, "rejected");
        if let Some(number) = reply_to.payment() {
            self.payment_refused(number, reason);
        }
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        reason.encode(self.pipeline.node_address(), &mut packet);
        self.reply(from, reply_to, &packet);
        self.scratch = packet;
    }

    /// The response to a Prepare whose account lives on the shard `by`.
    pub(super) fn replied_elsewhere(&mut self, by: u16, from: AccountId, reply_to: ReplyTo, packet: &[u8]) {
        self.mesh.give_room_back(by);
        self.reply_here(from, reply_to, packet);
    }

    /// Hands a response to the connection that the Prepare came on.
    pub(super) fn reply(&mut self, from: AccountId, reply_to: ReplyTo, packet: &[u8]) {
        if reply_to.shard == self.id {
            self.reply_here(from, reply_to, packet);
        } else {
            self.mesh.send(
                reply_to.shard,
                Message::Reply {
                    by: self.id,
                    reply_to,
                    from,
                    packet: packet.into(),
                },
            );
        }
    }
}

// Every Prepare in flight may become a transfer before the store takes the first of them.
const _: () = assert!(crate::pipeline::in_flight::IN_FLIGHT_MAX <= crate::store::writer::TRANSFERS_WAITING_MAX);
