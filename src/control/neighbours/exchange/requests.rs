//! What neighbours ask us, and what we answer.
//!
//! Leaves what is allowed to the machines. What is accepted is answered at the end of the turn.

use super::super::lessons::Lesson;
use super::super::notes::Reason;
use super::{Exchange, PendingReply, ROUTES_LEARNED_MAX, Turn};
use crate::ledger::account::AccountId;
use crate::routing::ccp::{DropReason, Refusal};
use crate::shard::control::{PeerAnswer, PeerRequest, PeerService};
use crate::wire::ccp::{Control as ControlRequest, Malformed, Update};
use crate::wire::packet::ErrorCode;
use crate::wire::timestamp::Timestamp;

impl Exchange {
    /// A neighbour asks for something, or somebody who is none.
    pub(super) fn requested(&mut self, now: Timestamp, request: PeerRequest, turn: &mut Turn) {
        let PeerRequest {
            from,
            service,
            data,
            respond,
        } = request;
        let result = match service {
            PeerService::RouteControl => self
                .heard_of(now, from, turn)
                .and_then(|()| self.asked_for_routes(from, &data)),
            PeerService::RouteUpdate => self
                .heard_of(now, from, turn)
                .and_then(|()| self.told_routes(now, from, &data, turn)),
            // Of no concern to the exchange of routes, and for engines that may take their time.
            PeerService::Settle => return self.control.take_peer_message(from, data, respond),
        };
        turn.replies.push(PendingReply {
            respond,
            is_promise: result == Ok(true),
            answer: result.map_or_else(|rejected| rejected, |_| PeerAnswer::Fulfill { data: Vec::new() }),
        });
    }

    /// Whoever asks lives. Only neighbours exchange routes.
    fn heard_of(&mut self, now: Timestamp, id: AccountId, turn: &mut Turn) -> Result<(), PeerAnswer> {
        let party = self.find_party(now, id).ok_or_else(|| refused(Refusal::NotAllowed))?;
        party.link.handle_sign_of_life(now);
        turn.touched.insert(id);
        Ok(())
    }

    fn asked_for_routes(&mut self, id: AccountId, data: &[u8]) -> Result<bool, PeerAnswer> {
        let control = ControlRequest::parse(data).map_err(|error| malformed(&error))?;
        let party = self.parties.get_mut(&id).expect("who asks was looked for");
        party.speaker.handle_control(&control, &self.log).map_err(refused)?;
        Ok(false)
    }

    /// Whether it was told anything that is to be durable before it is answered.
    fn told_routes(&mut self, now: Timestamp, id: AccountId, data: &[u8], turn: &mut Turn) -> Result<bool, PeerAnswer> {
        let update = Update::parse(data).map_err(|error| malformed(&error))?;
        let room = ROUTES_LEARNED_MAX.saturating_sub(self.learned);
        let noted = [
            (DropReason::OwnPrefix, Reason::OwnPrefix),
            (DropReason::DefaultRoute, Reason::DefaultRoute),
            (DropReason::Full, Reason::TooManyRoutes),
        ];
        let (before, result, after, dropped) = self.hear(id, |listener| {
            let before = (listener.heard(), noted.map(|(drop, _)| listener.dropped(drop)));
            let result = listener.handle_update(now, &update, room);
            let dropped = noted.map(|(drop, _)| listener.dropped(drop));
            (before, result, listener.heard(), dropped)
        });
        let (heard_before, dropped_before) = before;
        for ((_, reason), (after, before)) in noted.into_iter().zip(dropped.into_iter().zip(dropped_before)) {
            self.note(now, id, reason, after - before);
        }
        match result {
            Ok(changes) => {
                let is_news = !changes.is_empty() || after != heard_before;
                if is_news {
                    turn.learn(Lesson {
                        account: id,
                        relation: self.parties[&id].neighbour.relation,
                        heard: Some(after),
                        changes,
                    });
                }
                Ok(is_news)
            }
            Err(refusal) => {
                self.note(now, id, Reason::TooManyUpdates, u64::from(refusal == Refusal::TooMany));
                Err(refused(refusal))
            }
        }
    }
}

fn refused(refusal: Refusal) -> PeerAnswer {
    PeerAnswer::Reject {
        code: refusal.code(),
        message: refusal.to_string().into(),
    }
}

fn malformed(error: &Malformed) -> PeerAnswer {
    PeerAnswer::Reject {
        code: ErrorCode::F01_INVALID_PACKET,
        message: error.to_string().into(),
    }
}
