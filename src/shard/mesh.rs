//! Messages between shards, and from the cold threads to a shard.
//!
//! Every shard has one mailbox that anybody may put into. It needs no bound of its own, because everything in it is
//! bounded where it starts. A shard sends another at most [`PREPARES_MAX`] Prepares that are not answered yet, and no more
//! bytes of them than a mailbox may hold; one more is rejected with T03. Every Prepare brings back exactly one response,
//! a connection moves at most once, the cold threads wait for an answer before they ask again, and a connection has one
//! API call or one piece of an answer in the making. So a response always has room, and no shard ever waits for another.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::Sender;
use crossbeam::queue::SegQueue;

use crate::ledger::AccountId;
use crate::net::Waker;
use crate::pipeline::in_flight::{Origin, ReplyTo};
use crate::pipeline::incoming::Onward;
use crate::pipeline::response::Outcome;
use crate::pipeline::stats::Stats;

use super::control::{AccountState, ApiResponse, Change, PaymentOrder, Piece};
use super::handover::Handover;

/// Prepares that one shard may have sent to another and not got back.
pub const PREPARES_MAX: u32 = 65_536;

/// Bytes of Prepares that may lie in a mailbox. A shard that is kept off its core for a while gets no more than this; its
/// peers are told to come back (T03).
const MAILBOX_BYTES_MAX: usize = 16 * 1024 * 1024;

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
    /// A name was resolved for a link of this account.
    Resolved(Box<super::dialing::Resolved>),
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
}

impl Mailbox {
    pub fn new(waker: Waker) -> Self {
        Self {
            queue: SegQueue::new(),
            waker,
            prepare_bytes: AtomicUsize::new(0),
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
        Some(message)
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
