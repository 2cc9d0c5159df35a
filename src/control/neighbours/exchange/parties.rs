//! Who is a neighbour, and the machines of each.
//!
//! Owns making them, making them anew when the neighbour or we are another one than before, and their end. Links are
//! told from here to all machines of a neighbour.
//! Always: every neighbour has a listener, whether it is heard or not.

use std::sync::Arc;

use super::super::lessons::{Lesson, LinkChange};
use super::super::link::Link;
use super::super::parent::Asker;
use super::{Exchange, Party, Turn, new_log};
use crate::ledger::account::{Account, AccountId, RoutingRelation};
use crate::routing::ccp::{Listener, ListenerConfig, Neighbour, Speaker};
use crate::wire::ccp::{Control as ControlRequest, Mode, NO_TABLE};
use crate::wire::timestamp::Timestamp;

impl Exchange {
    /// Makes the machines of an account, if it is a neighbour.
    pub(super) fn add_party(&mut self, now: Timestamp, account: &Account) {
        let Some(neighbour) = neighbour_of(account) else { return };
        let relation = neighbour.relation;
        self.lives += 1;
        let party = Party {
            username: account.username.clone(),
            life: self.lives,
            speaker: Speaker::new(neighbour.clone(), self.settings.update_interval_ms),
            asker: (relation == RoutingRelation::Parent).then(|| Asker::new(self.lives)),
            link: Link::new(account.links.http_url().is_some()),
            is_to_be_tried: false,
            is_begun: false,
            due: None,
            neighbour,
        };
        self.new_listener(&party.neighbour);
        self.parties.insert(account.id, party);
        if !self.is_link_up(account.id) {
            self.close(now, account.id);
        }
    }

    fn new_listener(&self, neighbour: &Neighbour) {
        let listener = Listener::new(ListenerConfig {
            own: Arc::clone(&self.own),
            neighbour: neighbour.clone(),
            hears_children: self.settings.hears_children,
            routes_max: self.settings.routes_max,
        });
        self.control.listeners.lock().insert(neighbour.account, listener);
    }

    /// An account may have come that we are only about to hear of.
    pub(super) fn find_party(&mut self, now: Timestamp, id: AccountId) -> Option<&mut Party> {
        if !self.parties.contains_key(&id) {
            let account = self.account(id)?;
            self.add_party(now, &account);
        }
        self.parties.get_mut(&id)
    }

    pub(super) fn account(&self, id: AccountId) -> Option<Arc<Account>> {
        self.control.read().directory.get(id).cloned()
    }

    /// An account was made, changed or removed.
    pub(super) fn account_changed(&mut self, now: Timestamp, id: AccountId, turn: &mut Turn) {
        let account = self.account(id);
        let wanted = account.as_deref().and_then(neighbour_of);
        let Some(account) = account else {
            // Its routes went with it.
            self.remove_party(id);
            self.returning.remove(&id);
            self.notes.forget(id);
            return;
        };
        if wanted.is_none() {
            self.forget(id, turn);
            self.remove_party(id);
            if account.links.http_url().is_some() {
                // Nobody would find out when it is up again.
                self.set_link(id, true, turn);
            }
            return;
        }
        turn.touched.insert(id);
        let Some(party) = self.parties.get_mut(&id) else {
            return self.add_party(now, &account);
        };
        if Some(&party.neighbour) != wanted.as_ref() {
            self.forget(id, turn);
            return self.renew(now, &account);
        }
        party.username.clone_from(&account.username);
        party.link.set_can_be_tried(now, account.links.http_url().is_some());
        if let Some(asker) = &mut party.asker {
            asker.ask_again(now);
        }
    }

    /// New machines for a neighbour that is another one now, or we are. Its link stays as it is.
    fn renew(&mut self, now: Timestamp, account: &Account) {
        let Some(before) = self.parties.remove(&account.id) else {
            return self.add_party(now, account);
        };
        self.unschedule(account.id, before.due);
        self.add_party(now, account);
        let party = self.parties.get_mut(&account.id).expect("added a moment ago");
        party.link = before.link;
        if party.link.is_tried() {
            // The answer that would tell whether it is up goes to nobody.
            party.link.handle_down(now);
            party.link.handle_sign_of_life(now);
        }
        if party.neighbour.relation == before.neighbour.relation && before.speaker.is_wanted() {
            let control = ControlRequest {
                mode: Mode::Sync,
                table_id: NO_TABLE,
                epoch: 0,
            };
            let asked = party.speaker.handle_control(&control, &self.log);
            asked.expect("the speaker before it was asked, too");
        }
        let was_parent = before.asker.is_some();
        if party.asker.is_some() && was_parent {
            party.asker = before.asker;
        } else if party.link.is_open()
            && let Some(asker) = &mut party.asker
        {
            asker.handle_up(now);
        }
        self.begin_if_settled(now, account.id);
    }

    fn remove_party(&mut self, id: AccountId) {
        if let Some(party) = self.parties.remove(&id) {
            self.unschedule(id, party.due);
        }
        if let Some(listener) = self.control.listeners.lock().remove(&id) {
            self.learned -= listener.len();
        }
    }

    /// Takes back all that a neighbour has told.
    fn forget(&mut self, id: AccountId, turn: &mut Turn) {
        let Some(party) = self.parties.get(&id) else { return };
        let relation = party.neighbour.relation;
        let changes = self.hear(id, Listener::forget);
        turn.learn(Lesson {
            account: id,
            relation,
            heard: None,
            changes,
        });
    }

    /// Our own address is another one: all that was told and heard begins with it.
    pub(super) fn begin_anew(&mut self, now: Timestamp, turn: &mut Turn) {
        self.own = self.control.node_address();
        self.log = new_log(&self.own, &self.secret);
        turn.tells_anew = true;
        for id in self.parties.keys().copied().collect::<Vec<_>>() {
            self.forget(id, turn);
            match self.account(id) {
                Some(account) if neighbour_of(&account).is_some() => self.renew(now, &account),
                // We are about to hear of it.
                _ => self.remove_party(id),
            }
            turn.touched.insert(id);
        }
    }

    /// Has something done by the listener of a neighbour that there is.
    pub(super) fn hear<T>(&mut self, id: AccountId, act: impl FnOnce(&mut Listener) -> T) -> T {
        let mut listeners = self.control.listeners.lock();
        let listener = listeners.get_mut(&id).expect("every neighbour has a listener");
        let before = listener.len();
        let result = act(listener);
        self.learned = self.learned - before + listener.len();
        result
    }

    // Links.

    /// A link is up, perhaps to a neighbour that has started again, or down.
    pub(super) fn link_changed(&mut self, now: Timestamp, id: AccountId, is_up: bool, turn: &mut Turn) {
        if self.find_party(now, id).is_none() {
            let has_http = self
                .account(id)
                .is_some_and(|account| account.links.http_url().is_some());
            // Nobody asks a customer anything, so a link without connections would stay down for ever.
            if is_up || !has_http {
                self.set_link(id, is_up, turn);
            }
            return;
        }
        turn.touched.insert(id);
        self.set_link(id, is_up, turn);
        if !is_up {
            return self.close(now, id);
        }
        let party = self.parties.get_mut(&id).expect("found a moment ago");
        let was_tried = party.link.is_tried();
        party.link.handle_up();
        if !was_tried {
            self.open(now, id);
        }
    }

    /// Notes what the table of routes is to know of a link.
    pub(super) fn set_link(&mut self, id: AccountId, is_up: bool, turn: &mut Turn) {
        if is_up {
            self.returning.remove(&id);
        }
        let noted = turn.links.iter_mut().find(|link| link.account == id);
        match noted {
            Some(link) => link.is_up = is_up,
            None if self.is_link_up(id) == is_up => {}
            None => turn.links.push(LinkChange { account: id, is_up }),
        }
    }

    /// Whether the link is up as far as the table of routes knows.
    fn is_link_up(&self, id: AccountId) -> bool {
        self.control.read().routes.is_up(id)
    }

    /// The link is up, or tried. If it was up, there is another connection now.
    pub(super) fn open(&mut self, now: Timestamp, id: AccountId) {
        let Some(party) = self.parties.get_mut(&id) else { return };
        if party.is_begun {
            party.is_begun = false;
            // A child says itself what it wants, and may have done so over the new connection already.
            if party.neighbour.relation != RoutingRelation::Child {
                party.speaker.handle_down();
            }
            self.hear(id, Listener::handle_down);
        }
        let Some(party) = self.parties.get_mut(&id) else { return };
        if let Some(asker) = &mut party.asker {
            asker.handle_up(now);
        }
        self.begin_if_settled(now, id);
    }

    /// The link is down.
    pub(super) fn close(&mut self, now: Timestamp, id: AccountId) {
        let Some(party) = self.parties.get_mut(&id) else { return };
        party.link.handle_down(now);
        party.is_to_be_tried = false;
        if let Some(asker) = &mut party.asker {
            asker.handle_down();
        }
        if party.is_begun {
            party.is_begun = false;
            party.speaker.handle_down();
            self.hear(id, Listener::handle_down);
        }
    }

    /// Routes are exchanged from the moment on at which nothing has to come first.
    pub(super) fn begin_if_settled(&mut self, now: Timestamp, id: AccountId) {
        let Some(party) = self.parties.get_mut(&id) else { return };
        let is_settled = party.asker.as_ref().is_none_or(Asker::is_settled);
        if party.link.is_open() && is_settled && !party.is_begun {
            party.is_begun = true;
            party.speaker.handle_up();
            self.hear(id, |listener| listener.handle_up(now));
        }
    }
}

/// What the account is in the exchange, if it takes part.
pub(super) fn neighbour_of(account: &Account) -> Option<Neighbour> {
    let relation = account.routing_relation;
    (relation != RoutingRelation::NonRoutingAccount).then(|| Neighbour {
        account: account.id,
        relation,
        address: Arc::clone(&account.ilp_address),
    })
}
