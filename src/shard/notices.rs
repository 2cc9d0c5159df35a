//! Who wants to know what our own accounts receive, and telling them.
//!
//! A subscriber is a WebSocket on whichever shard its connection came to; the shard that owns the account sends each
//! notice to the shards that have subscribers for it, once, and those write it to each. Owns who follows what, on this
//! shard and on which others. Leaves who may follow to the API, which admits a subscriber before it comes here, and what
//! becomes of a slow or broken one to [`crate::link::subscriber`].
//!
//! Always: a subscriber hears that it is one only when all shards know, so nothing that is received after that is kept
//! from it; a shard never waits for a subscriber, and what waits for one is bounded, also in a mailbox.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::ledger::AccountId;
use crate::link::subscriber::{End, OnLag, Subscriber, text_frame};
use crate::net::SocketId;
use crate::pipeline::in_flight::ReplyTo;
use crate::wire::websocket::{self, CloseCode};

use super::Shard;
use super::connections::{Connection, Link, Subscribing};
use super::control::{Notice, Subscription, Topic};
use super::mesh::{Cold, Message};
use super::problem::Problem;

/// Bytes that the system keeps for a subscriber. Its own choice would be some megabytes: as much would be told late, or
/// never, before anybody noticed that nobody reads.
const SYSTEM_BYTES_MAX: usize = 64 * 1024;
/// How long a subscriber may take to read our last words.
const GOODBYE_MS_MAX: u64 = 2_000;
/// The same for one that reads slowly: why it was closed comes behind what it has not read.
const GOODBYE_SLOW_MS_MAX: u64 = 30_000;

/// Who follows what, as one shard knows it.
#[derive(Default)]
pub struct Notices {
    /// The shards that have subscribers for an account, and for all; this one among them.
    followers: HashMap<AccountId, Vec<u16>>,
    followers_of_all: Vec<u16>,
    /// The subscribers of this shard.
    own: HashMap<Topic, Vec<SocketId>>,
}

impl Notices {
    fn follow(&mut self, topic: Topic, by: u16) {
        let followers = match topic {
            Topic::Account(account) => self.followers.entry(account).or_default(),
            Topic::All => &mut self.followers_of_all,
        };
        if !followers.contains(&by) {
            followers.push(by);
        }
    }

    fn unfollow(&mut self, topic: Topic, by: u16) {
        match topic {
            Topic::Account(account) => {
                if let Some(followers) = self.followers.get_mut(&account) {
                    followers.retain(|follower| *follower != by);
                    if followers.is_empty() {
                        self.followers.remove(&account);
                    }
                }
            }
            Topic::All => self.followers_of_all.retain(|follower| *follower != by),
        }
    }

    #[inline]
    fn is_followed(&self, account: AccountId) -> bool {
        !self.followers_of_all.is_empty() || (!self.followers.is_empty() && self.followers.contains_key(&account))
    }

    fn is_followed_by(&self, account: AccountId, shard: u16) -> bool {
        self.followers_of_all.contains(&shard)
            || self
                .followers
                .get(&account)
                .is_some_and(|followers| followers.contains(&shard))
    }

    /// A subscriber of this shard is gone; whether it was the last of its topic here.
    fn leave(&mut self, topic: Topic, socket: SocketId) -> bool {
        let Some(sockets) = self.own.get_mut(&topic) else {
            return false;
        };
        sockets.retain(|own| *own != socket);
        let is_last = sockets.is_empty();
        if is_last {
            self.own.remove(&topic);
        }
        is_last
    }
}

impl Shard {
    /// Whether anybody wants to know what this account receives.
    #[inline]
    pub(super) fn has_subscribers(&self, account: AccountId) -> bool {
        self.notices.is_followed(account)
    }

    /// Tells all who want to know. What it tells is durable.
    pub(super) fn notify(&mut self, notice: Notice) {
        let account = notice.to.id;
        let notice = Arc::new(notice);
        for shard in 0..self.mesh.shards() {
            if !self.notices.is_followed_by(account, shard) {
                continue;
            }
            if shard == self.id {
                self.noticed(&notice);
            } else {
                self.mesh.send_notice(shard, notice.clone());
            }
        }
    }

    /// Writes a notice to the subscribers of this shard.
    pub(super) fn noticed(&mut self, notice: &Notice) {
        for topic in [Topic::Account(notice.to.id), Topic::All] {
            if self.notices.own.contains_key(&topic) {
                // Encoded once for all of them.
                let message = text_frame(&encode(notice, topic));
                self.each_subscriber(topic, |subscriber, unsent, out| subscriber.push(&message, unsent, out));
            }
        }
    }

    /// Tells that notices were lost because this shard did not empty its mailbox in time. Which accounts they were
    /// about, nobody has kept: every subscriber may have missed some.
    pub(super) fn tell_missed_notices(&mut self) {
        let Some(missed) = self.mesh.mailbox().take_missed_notices() else {
            return;
        };
        tracing::warn!(target: "http", shard = self.id, missed, "subscribers have missed notices");
        let topics: Vec<Topic> = self.notices.own.keys().copied().collect();
        for topic in topics {
            self.each_subscriber(topic, |subscriber, unsent, out| subscriber.skip(missed, unsent, out));
        }
    }

    /// Tells something to every subscriber of this shard that follows `topic` and has begun to listen.
    fn each_subscriber(
        &mut self,
        topic: Topic,
        mut tell: impl FnMut(&mut Subscriber, usize, &mut Vec<u8>) -> Result<(), End>,
    ) {
        let mut ended = Vec::new();
        for socket in self.notices.own.get(&topic).into_iter().flatten().copied() {
            let unsent = self.ring.unsent(socket);
            let Some(Link::Subscriber(subscribing)) =
                self.connections.get_mut(socket).map(|connection| &mut connection.link)
            else {
                continue;
            };
            if subscribing.opening.is_none()
                && let Some(out) = self.ring.output(socket)
                && let Err(end) = tell(&mut subscribing.subscriber, unsent, out)
            {
                ended.push((socket, end));
            }
        }
        for (socket, end) in ended {
            self.subscriber_ended(socket, end);
        }
    }

    /// The API has admitted a subscriber: its HTTP connection becomes a WebSocket as soon as all shards know of it.
    pub(super) fn subscribe(&mut self, reply_to: ReplyTo, subscription: Subscription) {
        let socket = SocketId::from_u64(reply_to.connection);
        if let Err(problem) = self.check_subscription(socket, &subscription) {
            self.answer_problem(reply_to, &problem);
            return;
        }
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        if self.ring.output(socket).is_none() {
            // The connection has had its last words.
            return;
        }
        if connection.finished {
            // A client that will not say anything more could not even close.
            self.ring.close(socket);
            return;
        }
        let topic = subscription.topic();
        let on_lag = match topic {
            Topic::Account(_) => OnLag::Close,
            Topic::All => OnLag::Tell(encode_lag),
        };
        let subscriber = Subscriber::new(on_lag, self.now.monotonic_ms);
        self.connections.set_deadline(socket, subscriber.next_deadline_ms());
        let others = self.mesh.shards() - 1;
        let link = Link::Subscriber(Box::new(Subscribing {
            subscriber,
            subscription,
            opening: Some(others),
        }));
        if let Some(connection) = self.connections.get_mut(socket) {
            // What the client has sent behind its request stays.
            let inbox = std::mem::take(&mut connection.inbox);
            *connection = Connection {
                inbox,
                moved: connection.moved,
                paused: connection.paused,
                ..Connection::new(link)
            };
        }
        self.notices.own.entry(topic).or_default().push(socket);
        self.notices.follow(topic, self.id);
        for shard in (0..self.mesh.shards()).filter(|shard| *shard != self.id) {
            let follow = Cold::Follow {
                topic,
                by: self.id,
                connection: reply_to.connection,
            };
            self.mesh.send(shard, Message::Cold(follow));
        }
        if others == 0 {
            self.open_subscription(socket);
        }
    }

    /// What may have changed since the API has looked, or what it could not see.
    fn check_subscription(&self, socket: SocketId, subscription: &Subscription) -> Result<(), Problem> {
        let answers = match self.connections.get(socket).map(|connection| &connection.link) {
            Some(Link::HttpServer(serving)) => serving.answers.len(),
            _ => 0,
        };
        if answers > 1 {
            let detail = "a WebSocket begins when all earlier requests are answered";
            return Err(Problem::bad_request(detail));
        }
        let Some(admitted) = &subscription.account else {
            return Ok(());
        };
        match self.pipeline.directory().get(admitted.id) {
            None => Err(Problem::new(404, "account_not_found", "the account was deleted")),
            Some(now)
                if subscription.as_holder
                    && now.links.http_incoming_token() != admitted.links.http_incoming_token() =>
            {
                Err(Problem::unauthorized())
            }
            Some(_) => Ok(()),
        }
    }

    /// Another shard has subscribers for `topic` now.
    pub(super) fn follow(&mut self, topic: Topic, by: u16, connection: u64) {
        self.notices.follow(topic, by);
        self.mesh.send(by, Message::Cold(Cold::Followed { connection }));
    }

    pub(super) fn unfollow(&mut self, topic: Topic, by: u16) {
        self.notices.unfollow(topic, by);
    }

    /// One more shard knows of a subscriber.
    pub(super) fn followed(&mut self, connection: u64) {
        let socket = SocketId::from_u64(connection);
        if let Some(Link::Subscriber(subscribing)) =
            self.connections.get_mut(socket).map(|connection| &mut connection.link)
            && let Some(unaware) = &mut subscribing.opening
        {
            *unaware -= 1;
            if *unaware == 0 {
                self.open_subscription(socket);
            }
        }
    }

    /// All shards know of a subscriber: it is told that it is one.
    fn open_subscription(&mut self, socket: SocketId) {
        if let Some(Link::Subscriber(subscribing)) =
            self.connections.get_mut(socket).map(|connection| &mut connection.link)
            && let Some(out) = self.ring.output(socket)
        {
            websocket::write_server_handshake(out, &subscribing.subscription.key, None);
            subscribing.opening = None;
            self.ring.limit_system_buffer(socket, SYSTEM_BYTES_MAX);
            self.resume.push(socket);
        }
    }

    /// Handles what a subscriber has sent; returns how much that was.
    pub(super) fn consume_subscriber(&mut self, socket: SocketId, bytes: &mut [u8]) -> usize {
        let Some(Link::Subscriber(subscribing)) =
            self.connections.get_mut(socket).map(|connection| &mut connection.link)
        else {
            return bytes.len();
        };
        if subscribing.opening.is_some() {
            return 0;
        }
        let Some(out) = self.ring.output(socket) else {
            return bytes.len();
        };
        match subscribing.subscriber.handle_bytes(bytes, out) {
            Ok(used) => used,
            Err(end) => {
                self.subscriber_ended(socket, end);
                bytes.len()
            }
        }
    }

    /// Everything written to a subscriber has been sent.
    pub(super) fn subscriber_flushed(&mut self, socket: SocketId) {
        if let Some(Link::Subscriber(subscribing)) =
            self.connections.get_mut(socket).map(|connection| &mut connection.link)
            && subscribing.opening.is_none()
            && let Some(out) = self.ring.output(socket)
        {
            subscribing.subscriber.handle_drained(out);
        }
    }

    /// It is time to ask for a sign of life, or to give up.
    pub(super) fn subscriber_overdue(&mut self, socket: SocketId) {
        let now_ms = self.now.monotonic_ms;
        let Some(Link::Subscriber(subscribing)) =
            self.connections.get_mut(socket).map(|connection| &mut connection.link)
        else {
            return;
        };
        let subscriber = &mut subscribing.subscriber;
        // It did not read our last words, or the other shards have not answered for so long.
        if subscriber.is_over() || subscribing.opening.is_some() {
            self.ring.close(socket);
            return;
        }
        let Some(out) = self.ring.output(socket) else {
            // It has said that it will say no more, and does not read either.
            self.ring.close(socket);
            return;
        };
        if let Err(end) = subscriber.handle_time(now_ms, out) {
            self.subscriber_ended(socket, end);
            return;
        }
        let next_ms = subscriber.next_deadline_ms();
        self.connections.set_deadline(socket, next_ms);
    }

    /// Its close frame is written: nothing more is said.
    fn subscriber_ended(&mut self, socket: SocketId, end: End) {
        tracing::debug!(target: "http", %end, "subscription over");
        let wait_ms = match end {
            End::Lagged => GOODBYE_SLOW_MS_MAX,
            _ => GOODBYE_MS_MAX,
        };
        self.drain_subscriber(socket, wait_ms);
    }

    fn drain_subscriber(&mut self, socket: SocketId, wait_ms: u64) {
        self.leave(socket);
        self.ring.drain(socket);
        self.connections.set_deadline(socket, self.now.monotonic_ms + wait_ms);
    }

    /// The connection of a subscriber is no longer told anything.
    fn leave(&mut self, socket: SocketId) {
        if let Some(Link::Subscriber(subscribing)) = self.connections.get(socket).map(|connection| &connection.link) {
            self.left(socket, subscribing.subscription.topic());
        }
    }

    /// A subscriber is gone, perhaps with its connection.
    pub(super) fn left(&mut self, socket: SocketId, topic: Topic) {
        if !self.notices.leave(topic, socket) {
            return;
        }
        self.notices.unfollow(topic, self.id);
        for shard in (0..self.mesh.shards()).filter(|shard| *shard != self.id) {
            let unfollow = Cold::Unfollow { topic, by: self.id };
            self.mesh.send(shard, Message::Cold(unfollow));
        }
    }

    /// Closes the subscribers of an account that is gone.
    pub(super) fn close_subscribers(&mut self, account: AccountId) {
        self.close_subscribers_where(account, CloseCode::Normal, "the account was deleted", |_| true);
    }

    /// Closes those that were let in by a token that is not valid any more.
    pub(super) fn close_subscribers_of_holder(&mut self, account: AccountId) {
        let reason = "the account's token was changed";
        self.close_subscribers_where(account, CloseCode::PolicyViolation, reason, |it| it.as_holder);
    }

    fn close_subscribers_where(
        &mut self,
        account: AccountId,
        code: CloseCode,
        reason: &str,
        is_meant: impl Fn(&Subscription) -> bool,
    ) {
        let sockets = self.notices.own.get(&Topic::Account(account)).cloned();
        for socket in sockets.unwrap_or_default() {
            if let Some(Link::Subscriber(subscribing)) = self.connections.get(socket).map(|connection| &connection.link)
                && is_meant(&subscribing.subscription)
            {
                self.close_subscriber(socket, code, reason);
            }
        }
    }

    /// Says goodbye to a subscriber, and why.
    pub(super) fn close_subscriber(&mut self, socket: SocketId, code: CloseCode, reason: &str) {
        let Some(Link::Subscriber(subscribing)) =
            self.connections.get_mut(socket).map(|connection| &mut connection.link)
        else {
            return;
        };
        if subscribing.opening.is_some() {
            // It is no WebSocket yet.
            self.leave(socket);
            self.ring.close(socket);
            return;
        }
        if let Some(out) = self.ring.output(socket) {
            subscribing.subscriber.close(code, reason, out);
            self.drain_subscriber(socket, GOODBYE_MS_MAX);
        }
    }
}

/// A notice as its subscribers read it. All of an account's are one text; who follows everything reads the same in a
/// wrapper, because there a gap can be told as well ([`encode_lag`]).
fn encode(notice: &Notice, topic: Topic) -> Vec<u8> {
    /// In the order in which they are written.
    #[derive(Serialize)]
    struct Text<'a> {
        to_username: &'a str,
        from_username: &'a str,
        destination: &'a str,
        amount: u64,
        timestamp: String,
        sequence: u64,
        connection_closed: bool,
    }
    #[derive(Serialize)]
    struct Wrapped<'a> {
        #[serde(rename = "Ok")]
        text: Text<'a>,
    }
    let text = Text {
        to_username: &notice.to.username,
        from_username: &notice.from_username,
        destination: &notice.destination,
        amount: notice.amount,
        timestamp: notice.at.to_rfc3339(),
        sequence: notice.sequence,
        connection_closed: notice.connection_closed,
    };
    let encoded = match topic {
        Topic::Account(_) => serde_json::to_vec(&text),
        Topic::All => serde_json::to_vec(&Wrapped { text }),
    };
    encoded.expect("texts and numbers can be written as JSON")
}

/// So many notices were skipped.
fn encode_lag(count: u64) -> Vec<u8> {
    format!(r#"{{"Err":"channel lagged by {count}"}}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_what() {
        let (alice, bob) = (AccountId::new(1), AccountId::new(2));
        let mut notices = Notices::default();
        // What happens, and which shards then follow alice and bob.
        for (follows, topic, shard, of_alice, of_bob) in [
            (true, Topic::Account(alice), 1, &[1][..], &[][..]),
            (true, Topic::Account(alice), 1, &[1], &[]),
            (true, Topic::Account(alice), 0, &[0, 1], &[]),
            (true, Topic::All, 2, &[0, 1, 2], &[2]),
            (true, Topic::Account(bob), 2, &[0, 1, 2], &[2]),
            (false, Topic::All, 2, &[0, 1], &[2]),
            (false, Topic::Account(alice), 1, &[0], &[2]),
            (false, Topic::Account(alice), 1, &[0], &[2]),
            (false, Topic::Account(bob), 2, &[0], &[]),
            (false, Topic::Account(bob), 2, &[0], &[]),
            (false, Topic::Account(alice), 0, &[], &[]),
            (false, Topic::All, 2, &[], &[]),
        ] {
            if follows {
                notices.follow(topic, shard);
            } else {
                notices.unfollow(topic, shard);
            }
            for (account, expected) in [(alice, of_alice), (bob, of_bob)] {
                let followers: Vec<u16> = (0..4).filter(|by| notices.is_followed_by(account, *by)).collect();
                assert_eq!(followers, expected, "{account} after {follows} {topic:?} {shard}");
                assert_eq!(notices.is_followed(account), !expected.is_empty());
            }
        }
        assert!(notices.followers.is_empty(), "nothing is kept of who has left");
    }

    #[test]
    fn gaps_are_told_as_the_dialect_has_it() {
        assert_eq!(encode_lag(17), br#"{"Err":"channel lagged by 17"}"#);
    }
}
