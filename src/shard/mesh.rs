//! Messages between shards, and from the cold threads to a shard.
//!
//! Every shard has one mailbox that anybody may put into. It needs no bound of its own, because everything in it is
//! bounded where it starts. A shard sends another at most [`PREPARES_MAX`] Prepares that are not answered yet, and no more
//! bytes of them than a mailbox may hold; one more is rejected with T03. Every Prepare brings back exactly one response,
//! a connection moves at most once, the cold threads wait for an answer before they ask again (a shard, and a neighbour),
//! they have a few requests of each neighbour to answer, and a connection has one API call or one piece of an answer in
//! the making. So a response always has room, and no shard ever waits for another.
//! Only notices of what accounts receive are nobody's answer: beyond [`NOTICES_MAX`] they are counted instead of sent.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::channel::Sender;
use crossbeam::queue::SegQueue;

use crate::ledger::AccountId;
use crate::net::Waker;
use crate::pipeline::in_flight::{Origin, ReplyTo, RequestId};
use crate::pipeline::incoming::Onward;
use crate::pipeline::response::Outcome;
use crate::pipeline::stats::Stats;

use super::control::{
    AccountState, Answered, ApiResponse, Change, Notice, PaymentOrder, PeerAnswer, Piece, SettleNow, SettleOrder, Topic,
};
use super::handover::Handover;

/// Prepares that one shard may have sent to another and not got back.
pub const PREPARES_MAX: u32 = 65_536;

/// Bytes of Prepares that may lie in a mailbox. A shard that is kept off its core for a while gets no more than this; its
/// peers are told to come back (T03).
const MAILBOX_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Notices that may lie in a mailbox, a few hundred bytes each. A shard that is so far behind has subscribers that have
/// missed something, and they are told.
const NOTICES_MAX: usize = 16_384;

/// What one shard, or a cold thread, tells a shard.
pub enum Message {
    /// A Prepare came in on a connection of another shard than its account's: check it here.
    Incoming {
        from: AccountId,
        reply_to: ReplyTo,
        packet: Box<[u8]>,
    },
    /// An accepted Prepare for an account of this shard.
    Forward {
        onward: Onward,
        packet: Box<[u8]>,
    },
    /// A Prepare that was accepted here and forwarded to the shard `by` has ended there.
    Finish {
        by: u16,
        origin: Origin,
        packet: Box<[u8]>,
        outcome: Outcome,
    },
    /// The response to an [`Message::Incoming`] that was sent to the shard `by`, for the connection it came on.
    Reply {
        by: u16,
        reply_to: ReplyTo,
        from: AccountId,
        packet: Box<[u8]>,
    },
    /// A connection that belongs here.
    Handover(Box<Handover>),
    Cold(Cold),
}

impl Message {
    fn prepare_bytes(&self) -> usize {
        match self {
            Self::Incoming { packet, .. } | Self::Forward { packet, .. } => packet.len(),
            _ => 0,
        }
    }
}

/// What the cold threads tell a shard.
pub enum Cold {
    /// Apply these of them in order, then say so.
    Changes(Arc<[Change]>, Range<usize>, Sender<()>),
    State(AccountId, Sender<Option<AccountState>>),
    /// Which of these accounts, all of this shard, have a BTP connection?
    BtpConnected(Box<[AccountId]>, Sender<Box<[bool]>>),
    ApiResponse {
        reply_to: ReplyTo,
        response: ApiResponse,
    },
    /// More of a long answer.
    ApiPiece {
        reply_to: ReplyTo,
        piece: Piece,
    },
    /// The shard `by` has a subscriber for this topic, on the connection of this number.
    Follow {
        topic: Topic,
        by: u16,
        connection: u64,
    },
    /// A shard has taken note of that.
    Followed {
        connection: u64,
    },
    /// The shard `by` has no subscriber for this topic any more.
    Unfollow {
        topic: Topic,
        by: u16,
    },
    /// An account has received something, and subscribers of this shard want to know.
    Notice(Arc<Notice>),
    /// A name was resolved for a link of this account.
    Resolved(Box<super::dialing::Resolved>),
    /// The answer to a request of a neighbour; `None`: there will be none.
    PeerAnswer {
        from: AccountId,
        id: RequestId,
        answer: Option<Box<PeerAnswer>>,
    },
    /// Send this request of our own to a neighbour.
    Ask {
        account: AccountId,
        packet: Box<[u8]>,
        done: Answered,
    },
    /// Settle this account, if it is to be settled.
    SettleNow(AccountId, SettleOrder, Sender<SettleNow>),
    /// Make this payment.
    Pay(Box<PaymentOrder>, super::payments::Done),
    /// Take no new connections and no new Prepares.
    Stop,
    /// How many Prepares are not answered yet?
    Unanswered(Sender<usize>),
    Stats(Sender<Stats>),
    /// Say goodbye to all peers and end.
    Exit,
}

/// Where a shard gets its messages.
pub struct Mailbox {
    queue: SegQueue<Message>,
    waker: Waker,
    /// Of the Prepares in `queue`. Counted by several threads, so it may be passed by a packet each.
    prepare_bytes: AtomicUsize,
    /// Notices in `queue`, and those that found no room there. As inexact.
    notices: AtomicUsize,
    notices_missed: AtomicU64,
}

impl Mailbox {
    pub fn new(waker: Waker) -> Self {
        Self {
            queue: SegQueue::new(),
            waker,
            prepare_bytes: AtomicUsize::new(0),
            notices: AtomicUsize::new(0),
            notices_missed: AtomicU64::new(0),
        }
    }

    /// Puts a message in and wakes the shard.
    pub fn send(&self, message: Message) {
        self.queue.push(message);
        self.waker.wake();
    }

    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn receive(&self) -> Option<Message> {
        let message = self.queue.pop()?;
        self.prepare_bytes.fetch_sub(message.prepare_bytes(), Ordering::Relaxed);
        if matches!(message, Message::Cold(Cold::Notice(_))) {
            self.notices.fetch_sub(1, Ordering::Relaxed);
        }
        Some(message)
    }

    /// How many notices found no room since this was last asked; not before those that did are received.
    pub(super) fn take_missed_notices(&self) -> Option<u64> {
        let is_told_next = self.notices_missed.load(Ordering::Relaxed) > 0 && self.notices.load(Ordering::Relaxed) == 0;
        is_told_next.then(|| self.notices_missed.swap(0, Ordering::Relaxed))
    }
}

/// One shard's view of all mailboxes.
pub struct Mesh {
    mailboxes: Arc<[Mailbox]>,
    me: usize,
    /// Prepares sent to each shard and not answered.
    unanswered: Vec<u32>,
    /// Shards that were sent something in this turn.
    to_wake: Vec<bool>,
}

impl Mesh {
    pub fn new(mailboxes: Arc<[Mailbox]>, me: u16) -> Self {
        let shards = mailboxes.len();
        Self {
            mailboxes,
            me: usize::from(me),
            unanswered: vec![0; shards],
            to_wake: vec![false; shards],
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.mailboxes.len() as u16
    }

    pub fn mailbox(&self) -> &Mailbox {
        &self.mailboxes[self.me]
    }

    pub fn mailboxes(&self) -> &Arc<[Mailbox]> {
        &self.mailboxes
    }

    /// Sends at the end of the turn at the latest; the other shard is woken once for all messages of a turn.
    pub fn send(&mut self, to: u16, message: Message) {
        let to = usize::from(to);
        debug_assert_ne!(to, self.me, "a shard does not write letters to itself");
        let mailbox = &self.mailboxes[to];
        mailbox
            .prepare_bytes
            .fetch_add(message.prepare_bytes(), Ordering::Relaxed);
        mailbox.queue.push(message);
        self.to_wake[to] = true;
    }

    /// As [`Self::send`], if there is room; else the other shard learns how many there were.
    pub fn send_notice(&mut self, to: u16, notice: Arc<Notice>) {
        let mailbox = &self.mailboxes[usize::from(to)];
        if mailbox.notices.load(Ordering::Relaxed) >= NOTICES_MAX {
            mailbox.notices_missed.fetch_add(1, Ordering::Relaxed);
            self.to_wake[usize::from(to)] = true;
            return;
        }
        mailbox.notices.fetch_add(1, Ordering::Relaxed);
        self.send(to, Message::Cold(Cold::Notice(notice)));
    }

    /// Room for one more Prepare of so many bytes to `to`, and with it for its response.
    pub fn take_room(&mut self, to: u16, packet_bytes: usize) -> bool {
        let waiting_bytes = self.mailboxes[usize::from(to)].prepare_bytes.load(Ordering::Relaxed);
        let unanswered = &mut self.unanswered[usize::from(to)];
        let room = *unanswered < PREPARES_MAX && waiting_bytes + packet_bytes <= MAILBOX_BYTES_MAX;
        *unanswered += u32::from(room);
        room
    }

    /// A Prepare that was sent to `to` has been answered.
    pub fn give_room_back(&mut self, to: u16) {
        let unanswered = &mut self.unanswered[usize::from(to)];
        assert!(*unanswered > 0, "every response answers a Prepare");
        *unanswered -= 1;
    }

    pub fn wake_others(&mut self) {
        for (mailbox, to_wake) in self.mailboxes.iter().zip(&mut self.to_wake) {
            if std::mem::take(to_wake) {
                mailbox.waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::account;
    use crate::wire::timestamp::Timestamp;

    #[test]
    fn notices_beyond_the_limit_are_counted() {
        let mailboxes: Arc<[Mailbox]> = (0..2).map(|_| Mailbox::new(Waker::new().unwrap())).collect();
        let mut mesh = Mesh::new(mailboxes.clone(), 0);
        let notice = Arc::new(Notice {
            to: Arc::new(account(1, 0)),
            from_username: "alice".into(),
            destination: "test.hub.bob.token".into(),
            amount: 1,
            at: Timestamp::default(),
            sequence: 2,
            connection_closed: false,
        });
        for _ in 0..NOTICES_MAX + 5 {
            mesh.send_notice(1, notice.clone());
        }
        // Only notices have this limit.
        mesh.send(1, Message::Cold(Cold::Stop));
        let mailbox = &mailboxes[1];
        for _ in 0..NOTICES_MAX {
            assert_eq!(mailbox.take_missed_notices(), None, "those that had room come first");
            assert!(matches!(mailbox.receive(), Some(Message::Cold(Cold::Notice(_)))));
        }
        assert_eq!(mailbox.take_missed_notices(), Some(5));
        assert_eq!(mailbox.take_missed_notices(), None, "they are told once");
        assert!(matches!(mailbox.receive(), Some(Message::Cold(Cold::Stop))));
        assert!(mailbox.is_empty());
        mesh.send_notice(1, notice);
        assert!(matches!(mailbox.receive(), Some(Message::Cold(Cold::Notice(_)))));
        assert_eq!(mailbox.take_missed_notices(), None, "there is room again");
    }
}
