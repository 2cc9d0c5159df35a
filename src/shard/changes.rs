//! Cold messages: changes of configuration, questions, answers of other threads, and the end.

use crate::ledger::{AccountId, Standing};
use crate::wire::websocket::CloseCode;

use super::Shard;
use super::connections::Link;
use super::control::{AccountState, Change, RefusedHere};
use super::mesh::{Cold, Message};

/// How long peers get to read our goodbyes before the process ends.
const EXIT_MS_MAX: u64 = 500;

impl Shard {
    pub(super) fn received(&mut self, message: Message) {
        match message {
            Message::Incoming { from, reply_to, packet } => self.incoming(from, reply_to, &packet),
            Message::Forward { onward, packet } => self.outgoing(onward, &packet),
            Message::Finish {
                by,
                origin,
                packet,
                outcome,
            } => self.ended_elsewhere(by, origin, &packet, outcome),
            Message::Reply {
                by,
                reply_to,
                from,
                packet,
            } => self.replied_elsewhere(by, from, reply_to, &packet),
            Message::Handover(handover) => self.handed_over(*handover),
            Message::Cold(cold) => self.received_cold(cold),
        }
    }

    fn received_cold(&mut self, cold: Cold) {
        match cold {
            Cold::Changes(changes, part, done) => {
                for change in &changes[part] {
                    self.apply(change, Standing::default());
                }
                // Before the other side hears of it: the last one to have a long list must not be a shard.
                drop(changes);
                // Nobody waits any more if the node is ending.
                let _ = done.send(());
            }
            Cold::State(account, answer) => {
                let _ = answer.send(self.account_state(account));
            }
            Cold::BtpConnected(accounts, answer) => {
                let _ = answer.send(accounts.iter().map(|id| self.is_btp_connected(*id)).collect());
            }
            Cold::ApiResponse { reply_to, response } => self.api_responded(reply_to, response),
            Cold::ApiPiece { reply_to, piece } => self.api_made(reply_to, piece),
            Cold::Follow { topic, by, connection } => self.follow(topic, by, connection),
            Cold::Followed { connection } => self.followed(connection),
            Cold::Unfollow { topic, by } => self.unfollow(topic, by),
            Cold::Notice(notice) => self.noticed(&notice),
            Cold::Resolved(resolved) => self.resolved(*resolved),
            Cold::PeerAnswer { from, id, answer } => self.peer_answered(from, id, answer.map(|answer| *answer)),
            Cold::Ask { account, packet, done } => self.ask(account, &packet, done),
            Cold::SettleNow(account, by, answer) => {
                let _ = answer.send(self.settle_now(account, by));
            }
            Cold::Pay(order, done) => self.begin_payment(*order, done),
            Cold::Stop => {
                self.cancel_payments(None, RefusedHere::NotReady);
                self.stopping = true;
                self.pipeline.stopping = true;
                self.end_questions(None);
                self.ring.stop_accepting();
            }
            Cold::Unanswered(answer) => {
                let _ = answer.send(self.pipeline.accepted() + self.journal.len());
            }
            Cold::Stats(answer) => {
                let _ = answer.send(self.pipeline.stats);
            }
            Cold::Exit => self.exit(),
        }
    }

    /// Applies one change; `standing` is what the book says of an account that is new to this shard.
    pub(super) fn apply(&mut self, change: &Change, standing: Standing) {
        match change {
            Change::Account(account) => {
                let before = self.pipeline.directory().get(account.id).cloned();
                if let Some(before) = &before
                    && before.links.http_incoming_token() != account.links.http_incoming_token()
                {
                    self.close_subscribers_of_holder(account.id);
                }
                self.pipeline.put_account(account.clone(), standing, self.now);
                let is_new = before.is_none();
                if self.owns(account.id) && before.as_ref().is_none_or(|before| before.links != account.links) {
                    let token_changed = before
                        .is_some_and(|before| before.links.btp_incoming_token() != account.links.btp_incoming_token());
                    if token_changed {
                        self.close_sessions(account.id, CloseCode::Normal);
                    }
                    self.relink(account);
                }
                if self.owns(account.id) {
                    self.links_configured(account, is_new);
                }
            }
            Change::CloseAccount(id) => {
                self.pipeline.set_closing(*id, true);
                self.cancel_payments(Some(*id), RefusedHere::NoAccount);
                self.end_questions(Some(*id));
            }
            Change::ReopenAccount(id) => self.pipeline.set_closing(*id, false),
            Change::RemoveAccount(id) => {
                if self.owns(*id) {
                    self.stop_dialing(*id);
                    self.close_pool(*id);
                    self.close_sessions(*id, CloseCode::Normal);
                    self.peers.remove(*id);
                    self.neighbours.forget(*id);
                }
                self.pipeline.remove_account(*id);
                self.close_subscribers(*id);
            }
            Change::SetRoute { prefix, next_hop } => self.pipeline.set_route(prefix.clone(), *next_hop),
            Change::RemoveRoute { prefix } => self.pipeline.remove_route(prefix),
            Change::Routes(routes) => self.pipeline.set_routes(routes.clone()),
            Change::Rates(rates) => self.pipeline.set_rates(rates.clone()),
            Change::NodeAddress(address) => self.pipeline.set_node_address(address.clone()),
            Change::SettlingAssets(assets) => self.pipeline.set_settling_assets(assets.clone()),
            Change::SettlementEnded { account, returned } => self.pipeline.settlement_ended(*account, *returned),
            Change::SettlementReceived { account, credited } => self.pipeline.settlement_received(*account, *credited),
        }
    }

    fn account_state(&self, id: AccountId) -> Option<AccountState> {
        let (balance, in_flight) = self.pipeline.state_of(id)?;
        Some(AccountState {
            booked: balance.booked(),
            held: balance.held(),
            prepaid: balance.prepaid(),
            reserved: balance.reserved(),
            settling: self.pipeline.open_settlement(id).unwrap_or(0),
            // A question comes from the account and goes to it, but it is ours, and is no reason to leave the account
            // alone.
            in_flight: in_flight - 2 * self.neighbours.asked_of(id),
            btp_connected: self.is_btp_connected(id),
        })
    }

    pub(super) fn is_btp_connected(&self, id: AccountId) -> bool {
        self.peers
            .get(id)
            .and_then(|peer| peer.btp)
            .is_some_and(|socket| self.ring.is_open(socket))
    }

    /// Closes the BTP sessions that an account's peer has opened.
    fn close_sessions(&mut self, account: AccountId, code: CloseCode) {
        let sessions: Vec<_> = self
            .connections
            .sockets()
            .filter(
                |socket| match self.connections.get(*socket).map(|connection| &connection.link) {
                    Some(Link::Btp(session)) => session.account() == Some(account),
                    _ => false,
                },
            )
            .collect();
        for socket in sessions {
            self.close_session(socket, code);
        }
    }

    fn exit(&mut self) {
        self.stopping = true;
        self.exiting = Some(self.now.monotonic_ms + EXIT_MS_MAX);
        let sockets: Vec<_> = self.connections.sockets().collect();
        for socket in sockets {
            match self.connections.get(socket).map(|connection| &connection.link) {
                Some(Link::Btp(_)) => self.close_session(socket, CloseCode::GoingAway),
                Some(Link::HttpServer(_)) => self.ring.drain(socket),
                Some(Link::Subscriber(_)) => self.close_subscriber(socket, CloseCode::GoingAway, "the node stops"),
                Some(Link::BtpHandshake { .. } | Link::HttpClient(_)) => self.ring.close(socket),
                None => {}
            }
        }
    }
}
