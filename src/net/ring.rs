//! The shard's own io_uring: every socket of the shard, one system call per turn.
//!
//! Owns descriptors, armed receptions and bytes on their way out; tells its shard what happened as [`Completion`]s.
//! One multishot accept per listening socket, one multishot recv per connection with buffers that the kernel picks
//! ([`super::buffers`]), at most one send in flight per connection, all sends of a turn submitted together.
//!
//! The options (single issuer, deferred task run) let completions run only inside our own `enter`, so a turn sees them
//! as one batch and nothing interrupts it. They need Linux 6.1; see [`Ring::new`] for what is said to older kernels.
//!
//! Always: a socket's slot is freed, and its descriptor closed, only when no operation on it is in the kernel any more.
//! A completion that comes for an earlier user of a slot is recognized by its generation and dropped.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;
use socket2::SockAddr;

use super::Waker;
use super::buffers::{BUFFER_GROUP, Buffer, ReceiveBuffers, SendQueues};

/// Entries of the submission queue: one turn's sends and receptions. More are submitted by an early `enter`.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue; the kernel keeps what does not fit and delivers it later.
const COMPLETIONS: u32 = 8192;

/// Names a socket of this ring. Never names another socket later.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketId {
    index: u32,
    generation: u32,
}

impl SocketId {
    /// The slot, for tables beside the ring's; unique among open sockets.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The same name as one number, for those who pass it on without looking inside.
    pub fn to_u64(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }

    pub fn from_u64(number: u64) -> Self {
        Self {
            index: (number >> 32) as u32,
            generation: number as u32,
        }
    }
}

/// What happened. `Closed` is the last word about a socket.
pub enum Completion {
    /// A connection came in on the listening socket with this index.
    Accepted { listener: usize, connection: OwnedFd },
    /// The listening socket cannot accept now (no descriptors left); arm it again later.
    AcceptPaused { listener: usize, error: io::Error },
    /// Bytes arrived. Give the buffer back with [`Ring::give_back`].
    Received { socket: SocketId, buffer: Buffer },
    /// The peer has said everything it will say (end of stream).
    Finished { socket: SocketId },
    /// An outgoing connection is up.
    Connected { socket: SocketId },
    /// The send queue of the socket has become empty.
    Flushed { socket: SocketId },
    /// The socket was taken off the ring for another shard, see [`Ring::detach`]. Its slot is free.
    Detached { socket: SocketId, connection: OwnedFd },
    /// The socket is gone, for this reason if it was not we who closed it. Its slot is free.
    Closed { socket: SocketId, error: Option<io::Error> },
}

/// What a turn does when nothing has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sleep {
    /// It returns at once.
    No,
    /// It waits for a completion, or until another thread raises the eventfd.
    UntilWoken,
    /// The same, but no longer than this.
    AtMost(Duration),
}

/// What a completion was for; the lowest bits of its user data.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    Accept,
    Receive,
    Send,
    Connect,
    Cancel,
    Wake,
}

impl Operation {
    fn user_data(self, index: u32, generation: u32) -> u64 {
        u64::from(index) << 32 | u64::from(generation & GENERATION_MASK) << 8 | self as u64
    }

    fn from_user_data(user_data: u64) -> (Self, u32, u32) {
        let operation = match user_data as u8 {
            0 => Self::Accept,
            1 => Self::Receive,
            2 => Self::Send,
            3 => Self::Connect,
            4 => Self::Cancel,
            5 => Self::Wake,
            other => unreachable!("the kernel returns our own user data, not {other}"),
        };
        (
            operation,
            (user_data >> 32) as u32,
            (user_data >> 8) as u32 & GENERATION_MASK,
        )
    }
}

const GENERATION_MASK: u32 = 0x00FF_FFFF;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    /// Closes as soon as the send queue is empty.
    Draining,
    /// Waits for the kernel to let go, then the slot is freed.
    Closing,
    /// As `Closing`, but the descriptor goes to another shard.
    Detaching,
    /// Over; the slot stays taken until the owner has been told.
    Gone,
}

struct Socket {
    fd: RawFd,
    generation: u32,
    phase: Phase,
    /// A multishot recv is in the kernel.
    receiving: bool,
    /// The owner does not want more bytes for now.
    paused: bool,
    /// Cancellation of the recv has been asked for.
    cancelling: bool,
    /// The peer has said everything it will say.
    finished: bool,
    /// Listed among the sockets whose queue is submitted at the end of the turn.
    dirty: bool,
    error: Option<Box<io::Error>>,
    /// What comes after `sending`.
    queue: Vec<u8>,
    /// In the kernel, from `sent` on; empty when no send is in flight.
    sending: Vec<u8>,
    sent: u32,
    /// Must stay where it is while a connect is in the kernel.
    address: Option<Box<SockAddr>>,
}

/// See the module's text.
pub struct Ring {
    // Dropped first: the kernel lets go of the buffers before they are freed.
    ring: IoUring,
    buffers: ReceiveBuffers,
    queues: SendQueues,
    sockets: Slab<Socket>,
    /// Grows with every socket, so that a slot's next user has another.
    generation: u32,
    dirty: Vec<SocketId>,
    listeners: Vec<OwnedFd>,
    accepting: bool,
    /// Raised by other threads; a read of it is always in the kernel, so that it ends our sleep like any completion.
    wake_fd: RawFd,
    wake_count: Box<[u8; 8]>,
    /// The last words about sockets that are gone, told at the end of a turn, and their slots.
    gone: Vec<(u32, Completion)>,
    /// Slots of sockets whose last word has been told. They are free with the next turn: a connection that was accepted
    /// in the same turn must not get the slot before its owner has heard of the end of the previous one.
    told: Vec<u32>,
}

/// What the ring needs and this machine does not give, in words for an operator.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    #[error(
        "io_uring is not permitted here ({0}). Containers often forbid it: allow the system calls io_uring_setup, \
         io_uring_enter and io_uring_register in the seccomp profile (Docker: --security-opt seccomp=unconfined or a \
         profile that lists them), and see that /proc/sys/kernel/io_uring_disabled is 0"
    )]
    Forbidden(io::Error),
    #[error("this kernel's io_uring lacks {feature} ({error}). Clearway needs Linux 6.1 or later; this is {release}")]
    TooOld {
        feature: &'static str,
        error: io::Error,
        release: String,
    },
    #[error("io_uring could not be set up: {0}. Raising the limit of locked memory (ulimit -l) may help")]
    Other(io::Error),
}

impl Unsupported {
    fn from_setup(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => Self::Forbidden(error),
            Some(libc::EINVAL) => Self::too_old("deferred task run", error),
            _ => Self::Other(error),
        }
    }

    fn too_old(feature: &'static str, error: io::Error) -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self::TooOld {
            feature,
            error,
            release: release.trim().to_owned(),
        }
    }
}

/// Tries whether the kernel gives us such a ring, on a thread of its own, because a ring belongs to the thread that
/// made it.
pub fn check_kernel() -> Result<(), Unsupported> {
    let waker = Waker::new().map_err(Unsupported::Other)?;
    let tried = std::thread::Builder::new()
        .spawn(move || Ring::new(waker.as_raw_fd()).map(drop))
        .map_err(Unsupported::Other)?;
    tried.join().expect("trying the ring does not panic")
}

impl Ring {
    /// Sets up the ring on the thread that will use it: it accepts submissions from no other. `wake_fd` is an eventfd
    /// that other threads raise to wake this one; it must stay open as long as the ring.
    pub fn new(wake_fd: RawFd) -> Result<Self, Unsupported> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)
            .map_err(Unsupported::from_setup)?;
        let buffers = ReceiveBuffers::register(&ring).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Unsupported::too_old("provided buffer rings", error),
            _ => Unsupported::Other(error),
        })?;
        let mut ring = Self {
            ring,
            buffers,
            queues: SendQueues::default(),
            sockets: Slab::new(),
            generation: 0,
            dirty: Vec::new(),
            listeners: Vec::new(),
            accepting: true,
            wake_fd,
            wake_count: Box::new([0; 8]),
            gone: Vec::new(),
            told: Vec::new(),
        };
        ring.listen_for_wakes();
        Ok(ring)
    }

    fn listen_for_wakes(&mut self) {
        let entry = opcode::Read::new(types::Fd(self.wake_fd), self.wake_count.as_mut_ptr(), 8)
            .build()
            .user_data(Operation::Wake.user_data(0, 0));
        self.push(entry);
    }

    /// How many sockets are open.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Starts accepting connections.
    pub fn listen(&mut self, listener: OwnedFd) {
        self.listeners.push(listener);
        self.accept(self.listeners.len() - 1);
    }

    /// Accepts again on a listening socket after [`Completion::AcceptPaused`].
    pub fn accept(&mut self, listener: usize) {
        if self.accepting {
            let entry = opcode::AcceptMulti::new(types::Fd(self.listeners[listener].as_raw_fd()))
                .flags(libc::SOCK_CLOEXEC)
                .build()
                .user_data(Operation::Accept.user_data(listener as u32, 0));
            self.push(entry);
        }
    }

    /// Accepts no more connections: who connects is refused at once, and so is whoever waits to be accepted. That holds
    /// for all descriptors of the listening sockets, and so for the rings of other shards.
    pub fn stop_accepting(&mut self) {
        self.accepting = false;
        for listener in 0..self.listeners.len() {
            self.cancel(Operation::Accept.user_data(listener as u32, 0));
            shutdown(self.listeners[listener].as_raw_fd(), libc::SHUT_RDWR);
        }
    }

    /// Takes over a connection and starts receiving on it.
    pub fn open(&mut self, connection: OwnedFd) -> SocketId {
        let socket = self.insert(connection, Phase::Open, None);
        self.receive(socket);
        socket
    }

    /// Starts an outgoing connection; [`Completion::Connected`] or [`Completion::Closed`] follows.
    pub fn connect(&mut self, connection: OwnedFd, address: SocketAddr) -> SocketId {
        let address = Box::new(SockAddr::from(address));
        let (fd, pointer, len) = (connection.as_raw_fd(), address.as_ptr(), address.len());
        let socket = self.insert(connection, Phase::Connecting, Some(address));
        let entry = opcode::Connect::new(types::Fd(fd), pointer.cast(), len)
            .build()
            .user_data(Operation::Connect.user_data(socket.index, socket.generation));
        self.push(entry);
        socket
    }

    /// Where to append what shall be sent; it goes out at the end of the turn. `None` once the socket is closing.
    pub fn output(&mut self, id: SocketId) -> Option<&mut Vec<u8>> {
        let socket = self
            .sockets
            .get_mut(id.index())
            .filter(|socket| socket.generation == id.generation)?;
        if !matches!(socket.phase, Phase::Open | Phase::Connecting) {
            return None;
        }
        if !socket.dirty {
            socket.dirty = true;
            self.dirty.push(id);
            if socket.queue.capacity() == 0 {
                socket.queue = self.queues.take();
            }
        }
        Some(&mut socket.queue)
    }

    /// Bytes that wait to be sent or are being sent.
    pub fn unsent(&self, id: SocketId) -> usize {
        self.get(id).map_or(0, |socket| {
            socket.queue.len() + socket.sending.len() - socket.sent as usize
        })
    }

    /// Who is at the other end.
    pub fn peer_address(&self, id: SocketId) -> Option<SocketAddr> {
        let socket = self.get(id)?;
        // SAFETY: the descriptor is open as long as the slot exists; it is only looked at here.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.fd) };
        socket2::SockRef::from(&borrowed).peer_addr().ok()?.as_socket()
    }

    /// Has the system keep no more than about so many bytes that the peer has not taken: it would keep megabytes.
    pub fn limit_system_buffer(&self, id: SocketId, bytes: usize) {
        if let Some(socket) = self.get(id) {
            // SAFETY: as in `peer_address`; the call changes a setting of the socket.
            let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.fd) };
            // Without the limit the peer is only found slow later.
            let _ = socket2::SockRef::from(&borrowed).set_send_buffer_size(bytes);
        }
    }

    pub fn is_open(&self, id: SocketId) -> bool {
        self.get(id)
            .is_some_and(|socket| matches!(socket.phase, Phase::Open | Phase::Connecting))
    }

    /// Stops receiving until [`Self::resume`]; what the kernel has received already may still be delivered.
    pub fn pause(&mut self, id: SocketId) {
        let Some(socket) = self.get_mut(id) else { return };
        socket.paused = true;
        self.cancel_receive(id);
    }

    pub fn resume(&mut self, id: SocketId) {
        let Some(socket) = self.get_mut(id) else { return };
        socket.paused = false;
        if !socket.receiving && !socket.finished && socket.phase == Phase::Open {
            self.receive(id);
        }
    }

    /// Sends what is queued, says that there will be no more, and closes when the peer has closed too or
    /// [`Self::close`] is called.
    pub fn drain(&mut self, id: SocketId) {
        let Some(socket) = self.get_mut(id) else { return };
        if socket.phase != Phase::Open {
            self.close(id);
            return;
        }
        socket.phase = Phase::Draining;
        // What still arrives is read and dropped: unread bytes would make the kernel reset the connection, and the
        // peer would never see our last words.
        let read_on = !socket.receiving && !socket.finished;
        socket.paused = false;
        let everything_sent = socket.queue.is_empty() && socket.sending.is_empty();
        if read_on {
            self.receive(id);
        }
        if everything_sent {
            self.say_goodbye(id);
        }
    }

    fn say_goodbye(&mut self, id: SocketId) {
        let socket = &self.sockets[id.index()];
        if socket.finished {
            self.close(id);
        } else {
            shutdown(socket.fd, libc::SHUT_WR);
        }
    }

    /// Closes at once; what is queued is lost. [`Completion::Closed`] follows.
    pub fn close(&mut self, id: SocketId) {
        let Some(socket) = self.get_mut(id) else { return };
        if matches!(socket.phase, Phase::Closing | Phase::Detaching) {
            return;
        }
        let connecting = socket.phase == Phase::Connecting;
        socket.phase = Phase::Closing;
        if connecting {
            self.cancel(Operation::Connect.user_data(id.index, id.generation));
        } else {
            // Ends a reception and a send that are in the kernel; their completions follow.
            shutdown(socket.fd, libc::SHUT_RDWR);
            self.free_if_idle(id);
        }
    }

    /// Takes the socket off this ring, for another shard. Nothing may be queued for sending. Bytes that arrive until
    /// [`Completion::Detached`] are delivered as usual, and belong to the connection's new home.
    pub fn detach(&mut self, id: SocketId) {
        let Some(socket) = self.get_mut(id) else { return };
        assert!(
            socket.queue.is_empty() && socket.sending.is_empty(),
            "a connection moves when it has said everything"
        );
        if socket.phase == Phase::Open {
            socket.phase = Phase::Detaching;
            self.cancel_receive(id);
            self.free_if_idle(id);
        }
    }

    /// Lets the kernel use a received buffer again.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.buffers.give_back(buffer);
    }

    /// Submits what was queued since the last turn and gathers what has happened; sleeps as `sleep` says if nothing has.
    pub fn turn(&mut self, completions: &mut Vec<Completion>, sleep: Sleep) {
        self.flush();
        for index in self.told.drain(..) {
            self.sockets.remove(index as usize);
        }
        let queued = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        // SAFETY, of each `enter`: no signal mask is passed, and a time lives until the call returns; every entry pushed
        // refers to memory that outlives its operation (a socket's slot keeps its send buffer and address until the
        // completion has come).
        let entered = match sleep {
            Sleep::No => unsafe { submitter.enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None) },
            Sleep::UntilWoken => unsafe { submitter.enter::<libc::sigset_t>(queued, 1, ENTER_GETEVENTS, None) },
            Sleep::AtMost(time) => {
                let time = types::Timespec::from(time);
                let arguments = types::SubmitArgs::new().timespec(&time);
                unsafe { submitter.enter(queued, 1, ENTER_GETEVENTS | ENTER_EXT_ARG, Some(&arguments)) }
            }
        };
        if let Err(error) = entered {
            // Busy: the completion queue is full; we empty it below and submit with the next turn. Time: it is over.
            let transient = matches!(
                error.raw_os_error(),
                Some(libc::EBUSY | libc::EINTR | libc::EAGAIN | libc::ETIME)
            );
            assert!(transient, "the ring accepts what we submit: {error}");
        }
        while let Some(entry) = self.next_completion() {
            self.handle(&entry, completions);
        }
        for (index, last_word) in self.gone.drain(..) {
            self.told.push(index);
            completions.push(last_word);
        }
    }

    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    fn handle(&mut self, entry: &cqueue::Entry, completions: &mut Vec<Completion>) {
        let (operation, index, generation) = Operation::from_user_data(entry.user_data());
        let id = SocketId { index, generation };
        let result = entry.result();
        let more = cqueue::more(entry.flags());
        match operation {
            Operation::Cancel => {}
            Operation::Wake => self.listen_for_wakes(),
            Operation::Accept => {
                if result >= 0 {
                    // SAFETY: the kernel has just opened this descriptor for us.
                    let connection = unsafe { OwnedFd::from_raw_fd(result) };
                    completions.push(Completion::Accepted {
                        listener: id.index(),
                        connection,
                    });
                }
                if !more && self.accepting {
                    match -result {
                        // The connection ended before it was accepted.
                        libc::ECONNABORTED | libc::EINTR | libc::EAGAIN => self.accept(id.index()),
                        // Nobody listens any more: another shard has heard first that the node stops.
                        libc::EINVAL => {}
                        error if result < 0 => completions.push(Completion::AcceptPaused {
                            listener: id.index(),
                            error: io::Error::from_raw_os_error(error),
                        }),
                        _ => self.accept(id.index()),
                    }
                }
            }
            Operation::Connect => self.connected(id, result, completions),
            Operation::Receive => self.received(id, entry, completions),
            Operation::Send => self.sent(id, result, completions),
        }
    }

    fn connected(&mut self, id: SocketId, result: i32, completions: &mut Vec<Completion>) {
        let Some(socket) = self.get_mut(id) else { return };
        socket.address = None;
        if socket.phase == Phase::Connecting && result >= 0 {
            socket.phase = Phase::Open;
            self.receive(id);
            completions.push(Completion::Connected { socket: id });
            return;
        }
        if socket.phase == Phase::Connecting {
            socket.error = Some(Box::new(io::Error::from_raw_os_error(-result)));
        }
        socket.phase = Phase::Closing;
        self.free_if_idle(id);
    }

    fn received(&mut self, id: SocketId, entry: &cqueue::Entry, completions: &mut Vec<Completion>) {
        let result = entry.result();
        let buffer = cqueue::buffer_select(entry.flags())
            .map(|index| self.buffers.take(index, usize::try_from(result).unwrap_or(0)));
        let more = cqueue::more(entry.flags());
        let Some(socket) = self
            .sockets
            .get_mut(id.index())
            .filter(|socket| socket.generation == id.generation)
        else {
            if let Some(buffer) = buffer {
                self.buffers.give_back(buffer);
            }
            return;
        };
        if !more {
            socket.receiving = false;
            socket.cancelling = false;
        }
        let phase = socket.phase;
        let listening = matches!(phase, Phase::Open | Phase::Detaching);
        match buffer {
            Some(buffer) if result > 0 && listening => {
                completions.push(Completion::Received { socket: id, buffer });
            }
            Some(buffer) => self.buffers.give_back(buffer),
            None => {}
        }
        if result == 0 && !more {
            match phase {
                Phase::Open => {
                    socket.finished = true;
                    completions.push(Completion::Finished { socket: id });
                }
                // It may say more to nobody; its new home finds the end of the stream by itself.
                Phase::Detaching => self.free_if_idle(id),
                _ => self.close(id),
            }
        } else if result < 0 && !matches!(-result, libc::ENOBUFS | libc::ECANCELED | libc::EINTR) {
            if let Some(socket) = self.get_mut(id)
                && socket.error.is_none()
            {
                socket.error = Some(Box::new(io::Error::from_raw_os_error(-result)));
            }
            self.close(id);
        } else if !more {
            // Ended for want of buffers, or cancelled for a pause that may be over by now.
            match self.get(id) {
                Some(socket) if matches!(socket.phase, Phase::Open | Phase::Draining) && !socket.paused => {
                    self.receive(id);
                }
                _ => {}
            }
        }
        self.free_if_idle(id);
    }

    fn sent(&mut self, id: SocketId, result: i32, completions: &mut Vec<Completion>) {
        let Some(socket) = self.get_mut(id) else { return };
        if result < 0 {
            let queue = std::mem::take(&mut socket.sending);
            socket.sent = 0;
            if socket.error.is_none() && socket.phase != Phase::Closing {
                socket.error = Some(Box::new(io::Error::from_raw_os_error(-result)));
            }
            self.queues.give_back(queue);
            self.close(id);
            self.free_if_idle(id);
            return;
        }
        socket.sent += result as u32;
        if (socket.sent as usize) < socket.sending.len() && socket.phase != Phase::Closing {
            self.submit_send(id);
            return;
        }
        socket.sent = 0;
        let queue = std::mem::take(&mut socket.sending);
        let socket_is_empty = socket.queue.is_empty();
        match socket.phase {
            Phase::Closing => {}
            _ if !socket_is_empty => self.start_send(id),
            Phase::Draining => self.say_goodbye(id),
            _ => completions.push(Completion::Flushed { socket: id }),
        }
        self.queues.give_back(queue);
        self.free_if_idle(id);
    }

    /// Submits the send queues that have grown in this turn.
    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(socket) = self.get_mut(id) else { continue };
            socket.dirty = false;
            let ready = matches!(socket.phase, Phase::Open | Phase::Draining) && socket.sending.is_empty();
            if !socket.queue.is_empty() && ready {
                self.start_send(id);
            }
        }
        self.dirty = dirty;
    }

    fn start_send(&mut self, id: SocketId) {
        let socket = &mut self.sockets[id.index()];
        socket.sending = std::mem::take(&mut socket.queue);
        self.submit_send(id);
    }

    fn submit_send(&mut self, id: SocketId) {
        let socket = &self.sockets[id.index()];
        let rest = &socket.sending[socket.sent as usize..];
        let entry = opcode::Send::new(types::Fd(socket.fd), rest.as_ptr(), rest.len() as u32)
            // The kernel sends all of it before it completes; MSG_NOSIGNAL: a closed peer is an error, not a signal.
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .user_data(Operation::Send.user_data(id.index, id.generation));
        self.push(entry);
    }

    fn receive(&mut self, id: SocketId) {
        let socket = &mut self.sockets[id.index()];
        socket.receiving = true;
        let entry = opcode::RecvMulti::new(types::Fd(socket.fd), BUFFER_GROUP)
            .build()
            .user_data(Operation::Receive.user_data(id.index, id.generation));
        self.push(entry);
    }

    fn cancel_receive(&mut self, id: SocketId) {
        let socket = &mut self.sockets[id.index()];
        if socket.receiving && !socket.cancelling {
            socket.cancelling = true;
            self.cancel(Operation::Receive.user_data(id.index, id.generation));
        }
    }

    fn cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data)
            .build()
            .user_data(Operation::Cancel.user_data(0, 0));
        self.push(entry);
    }

    fn insert(&mut self, connection: OwnedFd, phase: Phase, address: Option<Box<SockAddr>>) -> SocketId {
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let generation = self.generation;
        let index = self.sockets.insert(Socket {
            fd: connection.into_raw_fd(),
            generation,
            phase,
            receiving: false,
            paused: false,
            cancelling: false,
            finished: false,
            dirty: false,
            error: None,
            queue: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            address,
        });
        SocketId {
            index: index as u32,
            generation,
        }
    }

    /// Frees a closing or detaching socket when nothing of it is in the kernel any more.
    fn free_if_idle(&mut self, id: SocketId) {
        let Some(socket) = self.get(id) else { return };
        let in_kernel = socket.receiving || !socket.sending.is_empty() || socket.address.is_some();
        if in_kernel || !matches!(socket.phase, Phase::Closing | Phase::Detaching) {
            return;
        }
        let socket = &mut self.sockets[id.index()];
        let phase = std::mem::replace(&mut socket.phase, Phase::Gone);
        let queue = std::mem::take(&mut socket.queue);
        let error = socket.error.take();
        // SAFETY: the slot has owned the descriptor since `insert`, and gives it up here.
        let connection = unsafe { OwnedFd::from_raw_fd(std::mem::replace(&mut socket.fd, -1)) };
        self.queues.give_back(queue);
        let last_word = if phase == Phase::Detaching {
            Completion::Detached { socket: id, connection }
        } else {
            Completion::Closed {
                socket: id,
                error: error.map(|error| *error),
            }
        };
        self.gone.push((id.index, last_word));
    }

    fn get(&self, id: SocketId) -> Option<&Socket> {
        let socket = self.sockets.get(id.index())?;
        (socket.generation == id.generation && socket.phase != Phase::Gone).then_some(socket)
    }

    fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        let socket = self.sockets.get_mut(id.index())?;
        (socket.generation == id.generation && socket.phase != Phase::Gone).then_some(socket)
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: see `turn`: what an entry points to lives until its completion.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit();
        }
    }

    fn submit(&mut self) {
        if let Err(error) = self.ring.submit() {
            let transient = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN));
            assert!(transient, "the ring accepts what we submit: {error}");
        }
    }

    /// Whether the next turn has something to tell without waiting for the kernel.
    pub fn has_last_words(&self) -> bool {
        !self.gone.is_empty()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Descriptors of open sockets; the kernel ends their operations when the ring is closed right after.
        for (_, socket) in self.sockets.iter().filter(|(_, socket)| socket.phase != Phase::Gone) {
            shutdown(socket.fd, libc::SHUT_RDWR);
            // SAFETY: the slot owns the descriptor and is never used again.
            drop(unsafe { OwnedFd::from_raw_fd(socket.fd) });
        }
        // Bytes and addresses the kernel may still read must outlive the ring, which is dropped after this body and
        // before the other fields; `sockets` comes after `ring` in the struct.
    }
}

/// Flags of io_uring_enter(2).
const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;

fn shutdown(fd: RawFd, how: libc::c_int) {
    // SAFETY: takes no pointers. It fails when the peer is gone already, which is what it is for.
    unsafe { libc::shutdown(fd, how) };
}
