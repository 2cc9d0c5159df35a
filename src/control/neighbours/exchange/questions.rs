//! What we ask neighbours, and what becomes of their answers.
//!
//! Leaves what to ask, and when, to the machines.
//! Always: an answer goes to the machine that asked, or to nobody.

use std::sync::Arc;

use super::super::notes::Reason;
use super::super::parent::Asker;
use super::super::{AnswerNews, Question, QuestionKind};
use super::{Exchange, Turn, steady};
use crate::control::ControlError;
use crate::ledger::account::{Account, AccountId};
use crate::pipeline::Now;
use crate::routing::ccp::Answer;
use crate::wire::ccp::{Control as ControlRequest, Mode, NO_TABLE, encode_update_request};
use crate::wire::ildcp;
use crate::wire::packet::Reply;
use crate::wire::timestamp::Timestamp;

impl Exchange {
    /// Sends what the machines of a neighbour have to say now.
    pub(super) fn poll(&mut self, now: Now, id: AccountId) {
        let steady = steady(now);
        let mut questions = Vec::new();
        let party = self.parties.get_mut(&id).expect("a neighbour that is due exists");
        let life = party.life;
        if party.link.poll_try(steady) {
            party.is_to_be_tried = true;
            self.open(steady, id);
        }
        let party = self.parties.get_mut(&id).expect("a neighbour that is due exists");
        if let Some(asker) = &mut party.asker
            && let Some(request) = asker.poll(steady)
        {
            let mut prepare = Vec::new();
            ildcp::encode_question(&mut prepare, now.wall);
            let question = Question {
                kind: QuestionKind::Config,
                request,
                life: asker.life(),
            };
            questions.push((question, prepare));
        }
        self.begin_if_settled(steady, id);
        if let Some((request, control)) = self.hear(id, |listener| listener.poll_control(steady)) {
            let mut prepare = Vec::new();
            control.encode(&mut prepare, now.wall);
            let kind = QuestionKind::Control;
            questions.push((Question { kind, request, life }, prepare));
        }
        let party = self.parties.get_mut(&id).expect("a neighbour that is due exists");
        let mut data = Vec::new();
        if let Some(request) = party.speaker.poll_update(steady, &self.log, &mut data) {
            let mut prepare = Vec::new();
            encode_update_request(&mut prepare, now.wall, &data);
            let kind = QuestionKind::Update;
            questions.push((Question { kind, request, life }, prepare));
        }
        if std::mem::take(&mut party.is_to_be_tried) && questions.is_empty() {
            // True of everybody to whom we have nothing to say: we want no routes from it now.
            let control = ControlRequest {
                mode: Mode::Idle,
                table_id: NO_TABLE,
                epoch: 0,
            };
            let mut prepare = Vec::new();
            control.encode(&mut prepare, now.wall);
            let (kind, request) = (QuestionKind::Try, 0);
            questions.push((Question { kind, request, life }, prepare));
        }
        for (question, prepare) in questions {
            let control = Arc::downgrade(&self.control);
            let done = move |reply| {
                if let Some(control) = control.upgrade() {
                    control.neighbours.answered(AnswerNews {
                        account: id,
                        question,
                        reply,
                    });
                }
            };
            self.control.shards.ask(id, prepare, Box::new(done));
        }
    }

    /// A question of ours is answered, or will not be.
    pub(super) fn answered(&mut self, now: Timestamp, news: AnswerNews, turn: &mut Turn) {
        let AnswerNews {
            account: id,
            question,
            reply,
        } = news;
        let reply = reply.as_deref().and_then(|bytes| Reply::parse(bytes).ok());
        let Some(party) = self.parties.get_mut(&id) else { return };
        let asker_life = party.asker.as_ref().map(Asker::life);
        let is_ours = match question.kind {
            QuestionKind::Config => asker_life == Some(question.life),
            QuestionKind::Control | QuestionKind::Update | QuestionKind::Try => party.life == question.life,
        };
        if !is_ours {
            return;
        }
        turn.touched.insert(id);
        let answer = reply.as_ref().map_or(Answer::Missing, Answer::of);
        match question.kind {
            QuestionKind::Update => party.speaker.handle_answer(now, question.request, answer),
            QuestionKind::Control => self.hear(id, |listener| listener.handle_answer(question.request, answer)),
            QuestionKind::Config => self.told_address(now, id, question.request, reply.as_ref()),
            QuestionKind::Try => {}
        }
        let Some(party) = self.parties.get_mut(&id) else { return };
        if party.link.is_tried() {
            if reply.is_some() {
                party.link.handle_up();
                self.set_link(id, true, turn);
            } else {
                self.close(now, id);
            }
        }
    }

    /// Our parent has said what it calls us, or has not.
    fn told_address(&mut self, now: Timestamp, id: AccountId, request: u32, reply: Option<&Reply<'_>>) {
        let Some(account) = self.account(id) else { return };
        let asker = self.parties.get_mut(&id).and_then(|party| party.asker.as_mut());
        if !asker.is_some_and(|asker| asker.take_request(request)) {
            return;
        }
        let result = match reply {
            None => Err(None),
            Some(reply) => self.adopt(&account, reply).map_err(Some),
        };
        let asker = self.parties.get_mut(&id).and_then(|party| party.asker.as_mut());
        let asker = asker.expect("it has asked");
        match result {
            Ok(()) => asker.handle_success(),
            Err(why) => {
                asker.handle_failure(now);
                if let Some((reason, detail)) = why
                    && self.notes.note(now, id, reason, 1).is_some()
                {
                    tracing::error!(target: "routes", parent = %account.username, detail, "{reason}");
                }
            }
        }
        self.begin_if_settled(now, id);
    }

    /// Takes the address that a parent gives us, if its idea of our account is ours.
    fn adopt(&self, account: &Account, reply: &Reply<'_>) -> Result<(), (Reason, String)> {
        let fulfill = match reply {
            Reply::Fulfill(fulfill) => fulfill,
            Reply::Reject(reject) => return Err((Reason::NoAddress, format!("it answers {}", reject.code()))),
        };
        let answer = ildcp::Answer::parse(fulfill).map_err(|error| (Reason::NoAddress, error.to_string()))?;
        let asset = &account.asset;
        // One implementation writes all codes in capitals.
        let is_same_code = answer.asset_code.to_uppercase() == asset.code.to_uppercase();
        if !is_same_code || answer.asset_scale != asset.scale {
            let theirs = format!("{}@{}", answer.asset_code, answer.asset_scale);
            return Err((
                Reason::AssetMismatch,
                format!("it says {theirs}, the account is in {asset}"),
            ));
        }
        match self.control.assign_address(answer.client_address) {
            Ok(_) => Ok(()),
            Err(error @ ControlError::NotReady { .. }) => Err((Reason::NoAddress, error.to_string())),
            Err(error) => Err((
                Reason::UnfitAddress,
                format!("{}: {error}", answer.client_address.as_str()),
            )),
        }
    }
}
