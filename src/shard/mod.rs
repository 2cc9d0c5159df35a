//! Shard: all that one core owns, and its loop: gather, handle, send, sleep.
//!
//! A shard is a pinned glommio executor with one task. It owns a partition of the accounts with their balances, their
//! links, the connections of their peers, and the Prepares in flight towards them. It shares nothing that changes:
//! other shards and the cold threads write into its mailbox ([`mesh`]), the store tells it which transfers are durable.
//!
//! A packet's way: [`http_serving`] or [`btp_sessions`] makes bytes a Prepare; [`packets`] asks the pipeline's first
//! half, carries it to the shard of its next hop if that is another, asks the second half; [`peers`] sends it. The
//! response comes back through the same files, and waits in the journal until its transfer is durable. Packets of our
//! own payments begin in [`payments`], those for our own accounts end in [`receiving`], and who wants to know of these is
//! told in [`notices`]. What neighbours ask each other under `peer.` begins and ends in [`neighbours`]. What becomes due for
//! settlement on the way is handed to the store in [`settling`].
//!
//! Always: handlers run to completion; nothing is borrowed while the shard sleeps; what a turn has to send goes out at
//! its end, in one system call.

pub mod btp_sessions;
pub mod changes;
pub mod clock;
pub mod connections;
pub mod control;
pub mod dialing;
pub mod entropy;
pub mod failures;
pub mod handle;
pub mod handover;
pub mod http_serving;
pub mod mesh;
mod neighbour_events;
pub mod neighbours;
pub mod notices;
pub mod packets;
pub mod paths;
pub mod payments;
pub mod peers;
pub mod problem;
pub mod receiving;
mod settling;

use std::collections::{BinaryHeap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::Sender;

use crate::ledger::journal::Journal;
use crate::ledger::{AccountId, Standing};
use crate::net::buffers::Buffer;
use crate::net::ring::{Sleep, Unsupported};
use crate::net::{Completion, Ring, SocketId};
use crate::pipeline::{Now, Pipeline, Settings};
use crate::store::{TransferSender, WriterHandle};

use clock::{Clock, HttpDate};
use connections::{Connection, Connections, HttpServing, Link};
use control::{Change, NeighbourNews, Pending, Port};
use dialing::{Attempt, Lookup};
use entropy::Entropy;
use failures::Failures;
use http_serving::Tokens;
use mesh::{Mailbox, Mesh};
use neighbours::Neighbours;
use notices::Notices;
use packets::KeptBack;
use payments::Payments;
use peers::Peers;
use receiving::Receiving;

/// Beyond this many unsent bytes a connection takes no new Prepares (T03), and its own requests are not read any more.
pub const UNSENT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Reading goes on when this little is unsent.
const UNSENT_BYTES_RESUME: usize = UNSENT_BYTES_MAX / 4;

/// Bytes kept for a connection: the beginning of a message, or requests that wait until earlier ones are answered. Only
/// a message that is known to be longer is collected beyond this.
const INBOX_BYTES_MAX: usize = 256 * 1024;

/// Messages handled in one turn, so that sockets get their turn too.
const MESSAGES_PER_TURN: usize = 4_096;

/// What a shard starts with, besides its number.
pub struct Setup {
    pub settings: Settings,
    /// Who may send requests with large bodies, see [`http_serving`].
    pub tokens: Tokens,
    /// What payers are answered with follows from it.
    pub secret_seed: [u8; 32],
    pub listeners: Vec<(Port, OwnedFd)>,
    pub mailboxes: Arc<[Mailbox]>,
    pub transfers: TransferSender,
    pub store: WriterHandle,
    /// API requests go here.
    pub api: Sender<Pending>,
    /// What neighbours ask, and how their links stand, goes here.
    pub neighbours: NeighbourNews,
    /// Names to be resolved go here.
    pub lookups: Sender<Lookup>,
    /// What all shards know at the start, in order.
    pub changes: Arc<Vec<Change>>,
    /// What the book says of every account, by id, and the amounts of the settlements that are open.
    pub booked: Arc<[Standing]>,
    pub open_settlements: Arc<HashMap<AccountId, u64>>,
    /// How many connections all shards may have together, and how many they have.
    pub connections_max: usize,
    pub connections_open: Arc<AtomicUsize>,
    pub clock: Clock,
    /// Gives memory that the thread has freed back to the system: the tables have grown step by step.
    pub give_back_memory: fn(),
}

/// See the module's text.
pub struct Shard {
    id: u16,
    clock: Clock,
    /// When this turn began; the same in microseconds of the monotonic clock.
    now: Now,
    turn_us: u64,
    /// The longest turn so far took so many microseconds: packets may have waited for that long.
    longest_turn_us: u64,
    http_date: HttpDate,
    ring: Ring,
    pipeline: Pipeline,
    connections: Connections,
    peers: Peers,
    mesh: Mesh,
    journal: Journal<KeptBack>,
    transfers: TransferSender,
    made_together: settling::MadeTogether,
    store: WriterHandle,
    api: Sender<Pending>,
    lookups: Sender<Lookup>,
    tokens: Tokens,
    /// Which port each listening socket of the ring is.
    ports: Vec<Port>,
    /// Attempts to reach a peer, soonest first.
    attempts: BinaryHeap<Attempt>,
    connections_max: usize,
    /// Connections of all shards.
    connections_open: Arc<AtomicUsize>,
    failures: Failures,
    /// HTTP pools made so far: the number of the last one.
    pools_made: u64,
    /// Connections whose kept bytes are to be looked at again.
    resume: Vec<SocketId>,
    /// A listening socket that could not accept.
    paused_listeners: Vec<usize>,
    /// When the connections' deadlines were last looked at, monotonic seconds.
    swept_s: u64,
    random: Random,
    stopping: bool,
    exiting: Option<u64>,
    commit: Commit,
    /// A packet encoded here on its way to a link; kept for its memory.
    scratch: Vec<u8>,
    entropy: Entropy,
    payments: Payments,
    /// A payment's packet on its way into the pipeline; kept for its memory.
    payment_scratch: Vec<u8>,
    /// `None` only while a packet is being received.
    receiving: Option<Box<Receiving>>,
    notices: Notices,
    neighbours: Neighbours,
}

impl Shard {
    /// Sets up the shard on the thread that will run it.
    pub fn new(id: u16, setup: Setup) -> Result<Self, Unsupported> {
        let now = setup.clock.now();
        let shards = setup.mailboxes.len() as u32;
        let mut ring = Ring::new(setup.mailboxes[usize::from(id)].waker().as_raw_fd())?;
        let mut ports = Vec::new();
        for (port, listener) in setup.listeners {
            ring.listen(listener);
            ports.push(port);
        }
        let mut shard = Self {
            id,
            clock: setup.clock,
            now,
            turn_us: setup.clock.now_us(),
            longest_turn_us: 0,
            http_date: HttpDate::new(now.wall),
            ring,
            pipeline: Pipeline::new(setup.settings, u32::from(id), shards, now),
            connections: Connections::default(),
            peers: Peers::new(shards),
            mesh: Mesh::new(setup.mailboxes, id),
            journal: Journal::default(),
            transfers: setup.transfers,
            made_together: settling::MadeTogether::default(),
            store: setup.store,
            api: setup.api,
            lookups: setup.lookups,
            tokens: setup.tokens,
            ports,
            attempts: BinaryHeap::new(),
            connections_max: setup.connections_max,
            connections_open: setup.connections_open,
            failures: Failures::default(),
            pools_made: 0,
            resume: Vec::new(),
            paused_listeners: Vec::new(),
            swept_s: 0,
            random: Random::new(),
            stopping: false,
            exiting: None,
            commit: Commit::default(),
            scratch: Vec::new(),
            entropy: Entropy::default(),
            payments: Payments::default(),
            payment_scratch: Vec::new(),
            receiving: Some(Box::new(Receiving::new(&setup.secret_seed))),
            notices: Notices::default(),
            neighbours: Neighbours::new(setup.neighbours),
        };
        for change in setup.changes.iter() {
            let standing = match change {
                Change::Account(account) => setup.booked.get(account.id.index()).copied(),
                _ => None,
            };
            shard.apply(change, standing.unwrap_or_default());
        }
        for (id, amount) in setup.open_settlements.iter() {
            shard.pipeline.set_open_settlement(*id, Some(*amount));
        }
        (setup.give_back_memory)();
        Ok(shard)
    }

    /// Runs until it is told to exit.
    ///
    /// It sleeps in its own ring, not in the executor's. That costs one system call where a detour through an eventfd
    /// and the executor's rings costs six, which at one packet at a time is half of its CPU. The price: other tasks on
    /// this executor would only run between turns of a busy shard. There are none; what is cold has its own threads.
    pub async fn run(mut self) {
        let waker = self.mesh.mailbox().waker().clone();
        let mut completions = Vec::new();
        while !self.is_over() {
            waker.prepare_to_park();
            let sleep = self.may_sleep_for();
            if sleep == Sleep::No {
                waker.unpark();
            }
            self.ring.turn(&mut completions, sleep);
            waker.unpark();
            self.turn(&mut completions);
            glommio::yield_if_needed().await;
        }
        tracing::info!(target: "shard", shard = self.id, longest_turn_us = self.longest_turn_us, "ended");
    }

    /// One turn: everything that has happened is handled. What there is to send goes out with the next.
    fn turn(&mut self, completions: &mut Vec<Completion>) {
        self.turn_us = self.clock.now_us();
        self.now = Clock::at(self.turn_us);
        // First: after a long sleep, what came too late must find nothing to answer, and what is new must find the
        // timing wheel at the present.
        self.expire();
        for completion in completions.drain(..) {
            self.completed(completion);
        }
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.mesh.mailbox().receive() else {
                break;
            };
            self.received(message);
        }
        self.tell_missed_notices();
        self.release_durable();
        self.settle_due();
        self.drive_payments();
        self.attempt_due();
        self.sweep();
        while let Some(socket) = self.resume.pop() {
            self.process_inbox(socket);
        }
        self.tell_links();
        let now_us = self.clock.now_us();
        if self.commit.is_due(now_us, self.pipeline.in_flight().is_empty()) {
            self.commit = Commit::default();
            self.transfers.wake();
        }
        self.longest_turn_us = self.longest_turn_us.max(now_us - self.turn_us);
        self.mesh.wake_others();
        if self.store.is_failed() && !self.pipeline.cannot_commit {
            tracing::error!(target: "ledger", shard = self.id, "the store has failed: no packet is accepted any more");
            self.pipeline.cannot_commit = true;
        }
    }

    /// How long the shard may sleep: not at all if something came while it announced that it parks.
    fn may_sleep_for(&self) -> Sleep {
        if !self.mesh.mailbox().is_empty()
            || self.has_durable()
            || self.payments.has_ready()
            || self.neighbours.has_untold()
            || self.can_settle()
            || self.ring.has_last_words()
        {
            return Sleep::No;
        }
        let deadline_us = self.next_deadline_ms().map(|deadline_ms| deadline_ms * 1_000);
        let Some(deadline_us) = deadline_us.into_iter().chain(self.commit.deadline_us()).min() else {
            return Sleep::UntilWoken;
        };
        match deadline_us.saturating_sub(self.clock.now_us()) {
            0 => Sleep::No,
            left_us => Sleep::AtMost(Duration::from_micros(left_us)),
        }
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        let expiry = self.pipeline.in_flight().next_deadline_ms();
        let attempt = self.attempts.peek().map(Attempt::at_ms);
        let sweep =
            (self.connections.has_deadlines() || !self.paused_listeners.is_empty()).then(|| (self.swept_s + 1) * 1_000);
        // Payments go by the wall clock, as their packets do.
        let payment = self
            .payments
            .next_wakeup()
            .map(|at| self.now.monotonic_ms + at.as_millis().saturating_sub(self.now.wall.as_millis()));
        [expiry, attempt, sweep, payment, self.exiting]
            .into_iter()
            .flatten()
            .min()
    }

    fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { listener, connection } => self.accepted(self.ports[listener], connection),
            Completion::AcceptPaused { listener, error } => {
                tracing::warn!(target: "net", shard = self.id, %error, "no connection can be accepted now");
                self.paused_listeners.push(listener);
            }
            Completion::Received { socket, buffer } => self.arrived(socket, buffer),
            Completion::Finished { socket } => self.finished(socket),
            Completion::Connected { socket } => self.connected(socket),
            Completion::Flushed { socket } => self.flushed(socket),
            Completion::Detached { socket, connection } => self.detached(socket, connection),
            Completion::Closed { socket, error } => self.closed(socket, error),
        }
    }

    fn accepted(&mut self, port: Port, connection: OwnedFd) {
        if self.connections_open.load(Ordering::Relaxed) >= self.connections_max || self.stopping {
            // Closing it at once is the cheapest answer, and the only one that needs no memory.
            drop(connection);
            return;
        }
        let socket = self.ring.open(connection);
        let serving = HttpServing {
            port,
            ..HttpServing::default()
        };
        self.connect_to(socket, Connection::new(Link::HttpServer(serving)));
        self.connections
            .set_deadline(socket, self.now.monotonic_ms + http_serving::IDLE_MS_MAX);
    }

    /// Notes a connection of this shard.
    fn connect_to(&mut self, socket: SocketId, connection: impl Into<Box<Connection>>) {
        self.connections_open.fetch_add(1, Ordering::Relaxed);
        self.connections.insert(socket, connection.into());
    }

    /// The connection is not this shard's any more.
    fn disconnect(&mut self, socket: SocketId) -> Option<Box<Connection>> {
        let connection = self.connections.remove(socket)?;
        self.connections_open.fetch_sub(1, Ordering::Relaxed);
        Some(connection)
    }

    /// Bytes came. They are handled where they lie; only what is incomplete is copied.
    fn arrived(&mut self, socket: SocketId, mut buffer: Buffer) {
        if let Some(connection) = self.connections.get_mut(socket) {
            if connection.inbox.is_empty() && connection.moving_to.is_none() {
                let used = self.consume(socket, &mut buffer);
                self.keep(socket, &buffer[used..]);
            } else {
                connection.inbox.extend_from_slice(&buffer);
                self.process_inbox(socket);
            }
        }
        self.ring.give_back(buffer);
        self.adjust_reception(socket);
    }

    /// Looks again at the bytes that were kept.
    fn process_inbox(&mut self, socket: SocketId) {
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        if connection.moving_to.is_some() {
            return;
        }
        let mut inbox = std::mem::take(&mut connection.inbox);
        let used = self.consume(socket, &mut inbox);
        if let Some(connection) = self.connections.get_mut(socket)
            && used < inbox.len()
        {
            inbox.drain(..used);
            connection.inbox = inbox;
        }
        if self
            .connections
            .get(socket)
            .is_some_and(|connection| connection.finished)
        {
            self.http_finished(socket);
        }
        self.adjust_reception(socket);
    }

    fn keep(&mut self, socket: SocketId, rest: &[u8]) {
        if !rest.is_empty()
            && let Some(connection) = self.connections.get_mut(socket)
        {
            connection.inbox.extend_from_slice(rest);
        }
    }

    /// Handles what is complete in `bytes`; returns how much that was.
    fn consume(&mut self, socket: SocketId, bytes: &mut [u8]) -> usize {
        match self.connections.get(socket).map(|connection| &connection.link) {
            Some(Link::HttpServer(_)) => self.consume_http(socket, bytes),
            Some(Link::Btp(_)) => self.consume_btp(socket, bytes),
            Some(Link::BtpHandshake { .. }) => self.consume_btp_handshake(socket, bytes),
            Some(Link::HttpClient(_)) => self.consume_http_answers(socket, bytes),
            Some(Link::Subscriber(_)) => self.consume_subscriber(socket, bytes),
            None => bytes.len(),
        }
    }

    fn finished(&mut self, socket: SocketId) {
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        connection.finished = true;
        match &connection.link {
            // Looks for a request that waited for its turn, and ends the connection if there is none.
            Link::HttpServer(_) => self.process_inbox(socket),
            Link::HttpClient(_) => self.http_answers_ended(socket),
            _ => self.ring.drain(socket),
        }
    }

    fn flushed(&mut self, socket: SocketId) {
        self.adjust_reception(socket);
        self.move_if_ready(socket);
        self.http_flushed(socket);
        self.subscriber_flushed(socket);
    }

    /// Stops reading from a peer that does not read what we send it, or that asks faster than it can be answered;
    /// reads on when that is over.
    fn adjust_reception(&mut self, socket: SocketId) {
        let unsent = self.ring.unsent(socket);
        let Some(connection) = self.connections.get_mut(socket) else {
            return;
        };
        // More than the message that is being collected needs: what is there has to be dealt with first.
        let needed = match &connection.link {
            Link::HttpServer(serving) => serving.server.needed(),
            _ => 0,
        };
        let crowded = connection.inbox.len() > needed.max(INBOX_BYTES_MAX);
        if !connection.paused && (unsent > UNSENT_BYTES_MAX || crowded) {
            connection.paused = true;
            self.ring.pause(socket);
        } else if connection.paused && unsent <= UNSENT_BYTES_RESUME && !crowded {
            connection.paused = false;
            self.ring.resume(socket);
        }
    }

    /// Sends the connection to the shard it belongs to, once it has said everything here.
    fn move_if_ready(&mut self, socket: SocketId) {
        if self
            .connections
            .get(socket)
            .is_some_and(|connection| connection.moving_to.is_some())
            && self.ring.unsent(socket) == 0
        {
            self.connections.clear_deadline(socket);
            self.ring.detach(socket);
        }
    }

    fn detached(&mut self, socket: SocketId, connection: OwnedFd) {
        let Some(mut moving) = self.disconnect(socket) else {
            return;
        };
        let to = moving.moving_to.take().expect("only what moves is detached");
        moving.moved = true;
        let handover = handover::Handover {
            socket: connection,
            connection: moving,
        };
        self.mesh.send(to, mesh::Message::Handover(Box::new(handover)));
    }

    fn handed_over(&mut self, handover: handover::Handover) {
        let handover::Handover { socket, connection } = handover;
        let socket = self.ring.open(socket);
        self.connect_to(socket, connection);
        self.connections
            .set_deadline(socket, self.now.monotonic_ms + http_serving::IDLE_MS_MAX);
        self.btp_handed_over(socket);
        self.process_inbox(socket);
    }

    fn closed(&mut self, socket: SocketId, error: Option<std::io::Error>) {
        let Some(connection) = self.disconnect(socket) else {
            return;
        };
        match connection.link {
            Link::HttpServer(_) => {}
            Link::Btp(session) => self.btp_closed(socket, &session, error),
            Link::BtpHandshake { account, .. } => self.dial_failed(account, socket, error),
            Link::HttpClient(requesting) => self.http_client_closed(socket, &requesting, error),
            Link::Subscriber(subscribing) => self.left(socket, subscribing.subscription.topic()),
        }
    }

    /// Looks at the deadlines of all connections, once a second.
    fn sweep(&mut self) {
        let second = self.now.monotonic_ms / 1_000;
        if second == self.swept_s {
            return;
        }
        self.swept_s = second;
        for listener in std::mem::take(&mut self.paused_listeners) {
            self.ring.accept(listener);
        }
        for socket in self.connections.overdue(self.now.monotonic_ms) {
            match self.connections.get(socket).map(|connection| &connection.link) {
                Some(Link::HttpServer(_)) => self.http_overdue(socket),
                Some(Link::Btp(_)) => self.btp_overdue(socket),
                Some(Link::Subscriber(_)) => self.subscriber_overdue(socket),
                // No connection or no answer in time.
                Some(Link::BtpHandshake { .. } | Link::HttpClient(_)) => self.ring.close(socket),
                None => {}
            }
        }
    }

    fn is_over(&self) -> bool {
        self.exiting
            .is_some_and(|at_ms| self.ring.is_empty() || self.now.monotonic_ms >= at_ms)
    }

    fn owns(&self, id: AccountId) -> bool {
        self.pipeline.owns(id)
    }
}

/// When to ask the store for a commit. A sync costs the same for one transfer as for a hundred, so transfers wait for
/// company as long as more is about to come, and not a microsecond longer.
#[derive(Default)]
struct Commit {
    /// Transfers handed to the store and not asked for.
    transfers: u32,
    /// When the first and the last of them were handed over, microseconds.
    first_us: u64,
    last_us: u64,
}

/// With this many together the cost of a sync is spread thin enough.
const COMMIT_TRANSFERS_ENOUGH: u32 = 1_024;
/// A shard that is busy all the time still commits this often, in microseconds: some three syncs of a good disk.
const COMMIT_BUSY_US_MAX: u64 = 500;
/// A shard with Prepares in flight, whose responses may come at any moment, waits for them this long after the last
/// one: less than a sync takes.
const COMMIT_IDLE_US_MAX: u64 = 60;

impl Commit {
    fn add(&mut self, now_us: u64) {
        if self.transfers == 0 {
            self.first_us = now_us;
        }
        self.transfers += 1;
        self.last_us = now_us;
    }

    fn is_due(&self, now_us: u64, nothing_in_flight: bool) -> bool {
        self.transfers > 0
            && (nothing_in_flight
                || self.transfers >= COMMIT_TRANSFERS_ENOUGH
                || now_us >= (self.last_us + COMMIT_IDLE_US_MAX).min(self.first_us + COMMIT_BUSY_US_MAX))
    }

    /// When an idle shard must look again.
    fn deadline_us(&self) -> Option<u64> {
        (self.transfers > 0).then_some((self.last_us + COMMIT_IDLE_US_MAX).min(self.first_us + COMMIT_BUSY_US_MAX))
    }
}

/// Numbers nobody needs to foresee: jitter and masks (splitmix64, seeded by the kernel).
pub struct Random(u64);

impl Random {
    fn new() -> Self {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the kernel gives random bytes");
        Self(u64::from_le_bytes(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }
}
