//! What neighbours ask this node under `peer.`, what this node asks them, and whether they can be reached.
//!
//! Owns the way of a request to the cold half and of the answer back to the connection, the questions that the cold half
//! has asked and the replies to them, and when the state of a link is told. Which requests are served, and when they
//! expire, is the pipeline's; what is answered is decided by the cold half, but for `peer.config`, which needs nobody.
//!
//! Always: the cold half has at most [`REQUESTS_PER_ACCOUNT_MAX`] requests of one account, also of those that have
//! expired meanwhile; every question is answered exactly once; the state of a link that was told last is how it stands.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::ledger::{Account, AccountId};
use crate::net::SocketId;
use crate::pipeline::in_flight::{Origin, ReplyTo, RequestId};
use crate::pipeline::local;
use crate::pipeline::reject::RejectReason;
use crate::pipeline::response::Outcome;
use crate::wire::packet::{DATA_BYTES_MAX, ErrorCode, PEER_FULFILLMENT, Prepare, RejectBuilder, encode_fulfill};

use super::Shard;
use super::control::{Answered, NeighbourNews, PeerAnswer, PeerRequest, PeerService, Seat};
use super::mesh::{Cold, Mailbox, Message};
use super::packets::Response;

/// Requests of one account that the cold half may have. A neighbour has one update and one control on the way, and some
/// messages of its settlement engine.
pub const REQUESTS_PER_ACCOUNT_MAX: usize = 8;

/// What a shard keeps of its neighbours' requests and of ours.
pub struct Neighbours {
    news: NeighbourNews,
    /// How many requests of an account the cold half has.
    taken: HashMap<AccountId, Arc<AtomicUsize>>,
    /// Questions of our own, by number. All are in flight.
    asked: HashMap<u32, Asked>,
    next_question: u32,
    /// Accounts whose link may have changed in this turn.
    untold: Vec<AccountId>,
}

struct Asked {
    account: AccountId,
    id: RequestId,
    /// The BTP session it was sent over; an HTTP connection that ends says itself what it carried.
    session: Option<SocketId>,
    done: Answered,
}

impl Neighbours {
    pub fn new(news: NeighbourNews) -> Self {
        Self {
            news,
            taken: HashMap::new(),
            asked: HashMap::new(),
            next_question: 0,
            untold: Vec::new(),
        }
    }

    /// How many questions to an account are open.
    pub fn asked_of(&self, account: AccountId) -> u32 {
        self.asked.values().filter(|asked| asked.account == account).count() as u32
    }

    /// A link has changed and nobody knows.
    pub fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Nothing is kept of an account that is gone.
    pub fn forget(&mut self, account: AccountId) {
        self.taken.remove(&account);
    }

    fn new_question(&mut self) -> u32 {
        // There are far fewer than numbers.
        while self.asked.contains_key(&self.next_question) {
            self.next_question = self.next_question.wrapping_add(1);
        }
        self.next_question
    }
}

/// Brings the answer to one request back to its shard: the one that is given, or none when it is dropped.
struct Responder {
    mailboxes: Arc<[Mailbox]>,
    shard: u16,
    from: AccountId,
    id: RequestId,
    answered: bool,
    /// Until the answer is on its way.
    seat: Option<Seat>,
}

impl Responder {
    fn respond(mut self, answer: PeerAnswer) {
        self.answered = true;
        self.send(Some(answer));
    }

    fn send(&mut self, answer: Option<PeerAnswer>) {
        // Who has the answer may ask the next thing at once, and finds room for it.
        drop(self.seat.take());
        let answer = Cold::PeerAnswer {
            from: self.from,
            id: self.id,
            answer: answer.map(Box::new),
        };
        self.mailboxes[usize::from(self.shard)].send(Message::Cold(answer));
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            self.send(None);
        }
    }
}

impl Shard {
    /// Tells an account its address and its asset.
    pub(super) fn answer_config(&mut self, from: AccountId, reply_to: ReplyTo) {
        let Some(account) = self.pipeline.directory().get(from) else {
            return;
        };
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        local::encode_config(account, &mut packet);
        self.reply(from, reply_to, &packet);
        self.scratch = packet;
    }

    /// Hands a request of a neighbour to the cold half.
    pub(super) fn requested(&mut self, origin: Origin, service: PeerService, prepare: &Prepare<'_>) {
        let from = origin.from;
        let taken = self.neighbours.taken.entry(from).or_default();
        let Some(seat) = Seat::take(taken, REQUESTS_PER_ACCOUNT_MAX) else {
            return self.answer_with(origin, &RejectReason::ConnectorBusy);
        };
        let waiting = self.journal.len().max(self.transfers.waiting());
        let id = match self.pipeline.await_answer(self.now, origin, prepare, waiting) {
            Ok(id) => id,
            Err((origin, reason)) => return self.answer_with(origin, &reason),
        };
        let responder = Responder {
            mailboxes: self.mesh.mailboxes().clone(),
            shard: self.id,
            from,
            id,
            answered: false,
            seat: Some(seat),
        };
        let request = PeerRequest {
            from,
            service,
            data: prepare.data().to_vec(),
            respond: Box::new(move |answer| responder.respond(answer)),
        };
        // If there is no room for it, it is dropped, and so answered.
        drop(self.neighbours.news.request(request));
    }

    /// The cold half has answered a request, or dropped it. The neighbour may have been told already that it took too
    /// long.
    pub(super) fn peer_answered(&mut self, from: AccountId, id: RequestId, answer: Option<PeerAnswer>) {
        let Some(origin) = self.pipeline.answered(id, from) else {
            return;
        };
        let mut packet = Vec::new();
        let (code, message) = match answer {
            Some(PeerAnswer::Fulfill { data }) if data.len() <= DATA_BYTES_MAX => {
                encode_fulfill(&mut packet, &PEER_FULFILLMENT, &data);
                return self.end(origin, &packet, Outcome::Fulfilled);
            }
            Some(PeerAnswer::Fulfill { .. }) => (ErrorCode::T00_INTERNAL_ERROR, "the answer is too long".into()),
            Some(PeerAnswer::Reject { code, message }) => (code, message),
            None => return self.answer_with(origin, &RejectReason::ConnectorBusy),
        };
        RejectBuilder {
            code,
            triggered_by: self.pipeline.node_address(),
            message: &message,
            data: &[],
        }
        .encode(&mut packet);
        self.end(origin, &packet, Outcome::Rejected);
    }

    /// Asks a neighbour something, straight over its link.
    pub(super) fn ask(&mut self, account: AccountId, packet: &[u8], done: Answered) {
        let Ok(prepare) = Prepare::parse(packet) else {
            return done(None);
        };
        let question = self.neighbours.new_question();
        let link = self.link_state(account, packet.len());
        let waiting = self.journal.len().max(self.transfers.waiting());
        let reply_to = ReplyTo::to_question(self.id, question);
        match self.pipeline.ask(self.now, account, &prepare, reply_to, link, waiting) {
            Ok(id) => {
                let peer = self.peers.get(account).filter(|peer| peer.http.is_none());
                let asked = Asked {
                    account,
                    id,
                    session: peer.and_then(|peer| peer.btp),
                    done,
                };
                self.neighbours.asked.insert(question, asked);
                self.send_prepare(account, id, prepare.bytes(), 0, prepare.expires_at());
            }
            Err(reason) => {
                tracing::debug!(target: "packets", %account, ?reason, "not asked");
                done(None);
            }
        }
    }

    /// A question has come to its end: with a neighbour's reply, or without.
    pub(super) fn question_ended(&mut self, question: u32, reply: Option<&[u8]>) {
        if let Some(asked) = self.neighbours.asked.remove(&question) {
            (asked.done)(reply.map(<[u8]>::to_vec));
        }
    }

    /// Nobody waits for the answers of an account any more, because it is being deleted, or of any (`None`), because the
    /// node stops: a minute is too long for either.
    pub(super) fn end_questions(&mut self, account: Option<AccountId>) {
        self.end_questions_where(&RejectReason::Stopping, |asked| {
            account.is_none_or(|account| account == asked.account)
        });
    }

    /// A BTP session has ended. A packet's answer may still come over the next one; who asked would rather ask again.
    pub(super) fn end_questions_over(&mut self, session: SocketId) {
        self.end_questions_where(&RejectReason::LinkFailed, |asked| asked.session == Some(session));
    }

    fn end_questions_where(&mut self, reason: &RejectReason, is_meant: impl Fn(&Asked) -> bool) {
        let open = self.neighbours.asked.values().filter(|asked| is_meant(asked));
        let open: Vec<_> = open.map(|asked| (asked.account, asked.id)).collect();
        for (account, id) in open {
            self.responded(account, id, Response::None(reason.clone()));
        }
    }

    /// The link of an account may have changed: how it stands is told at the end of the turn.
    pub(super) fn link_changed(&mut self, account: AccountId) {
        self.neighbours.untold.push(account);
    }

    /// The same after a change of its settings: an account that is new and has no link is not worth a word.
    pub(super) fn links_configured(&mut self, account: &Account, is_new: bool) {
        let links = &account.links;
        let any = links.http_url().or(links.btp_url()).or(links.btp_incoming_token());
        if any.is_some() || !is_new {
            self.link_changed(account.id);
        }
    }

    /// Tells how the links stand that have changed. If that is not possible now, the next turn does.
    pub(super) fn tell_links(&mut self) {
        if !self.neighbours.has_untold() {
            return;
        }
        let untold = std::mem::take(&mut self.neighbours.untold);
        let states = untold
            .iter()
            .filter(|account| self.pipeline.state_of(**account).is_some())
            .map(|account| (*account, self.is_link_up(*account)));
        let told = self.neighbours.news.links(states);
        if !told {
            self.neighbours.untold = untold;
        }
    }

    fn is_link_up(&self, account: AccountId) -> bool {
        match self.peers.get(account).and_then(|peer| peer.http.as_ref()) {
            Some(pool) => pool.is_reachable(),
            None => self.is_btp_connected(account),
        }
    }
}
