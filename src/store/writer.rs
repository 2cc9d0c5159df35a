//! The writer: one thread that makes transfers and mutations durable, many at a time.
//!
//! Owns the order in which the book changes and the moment at which a transfer counts as durable. Shards hand over
//! transfers through bounded queues of their own; the thread drains all of them, folds what it found into final
//! balances (one write per touched account, however many packets touched it), commits that as one batch, and then
//! publishes the number of the last durable transfer of each shard and every settlement that has come into being. Holds
//! and limits were checked by the shards: here nothing is refused but mutations.
//!
//! Always: what is published is on disk; what one batch changes sums to zero in every asset; after a commit that
//! failed nothing is ever published again. What a batch means is folded in [`super::fold`].

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use super::fold::Ledger;
use super::{Applied, BackupError, Batch, Book, Mutation, Reader, Store, StoreError};
use crate::ledger::audit::Audit;
use crate::ledger::journal::TransferNumber;
use crate::ledger::settlement::Settlement;
use crate::ledger::{AccountId, SettlementNumber, Standing, Transfer};

/// Transfers of one shard that the writer has not taken yet. As many as a shard may have in flight: all of them can
/// be fulfilled during one slow sync. See [`TransferSender::room`].
pub const TRANSFERS_WAITING_MAX: usize = 65_536;

/// Calls of [`WriterHandle::apply`] that wait for one another; the next caller blocks a little earlier.
const REQUESTS_WAITING_MAX: usize = 64;

/// How long a relaxed writer leaves the queues alone while it gathers a batch. Nobody waits for it, and in this time
/// not even ten million packets a second fill a queue.
const RELAXED_PAUSE: Duration = Duration::from_millis(5);

/// How often a caller who waits for the writer looks whether it is still there.
const LOOK_FOR_END_EVERY: Duration = Duration::from_millis(50);

const INTERNAL_ERROR: &str = "an internal error, see the log";

/// When a transfer counts as durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// When it is on disk.
    #[default]
    Commit,
    /// As soon as it is handed over; it reaches the disk within the flush interval, and a crash before that loses it.
    Relaxed,
}

/// What the writer has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    pub commits: u64,
    /// Transfers that are on disk.
    pub transfers: u64,
    /// How long the last commit took in microseconds, nearly all of it the sync.
    pub sync_us_last: u64,
    pub sync_us_max: u64,
}

/// Hands over the transfers of one shard and says how far they are durable. Belongs to that shard's thread.
pub struct TransferSender {
    shared: Arc<Shared>,
    shard: usize,
    thread: Thread,
    relaxed: bool,
    pushed: TransferNumber,
    /// Relaxed only: what may count as durable although it is not on disk.
    promised: TransferNumber,
    /// What the writer was last woken for.
    announced: Cell<TransferNumber>,
}

impl TransferSender {
    /// Hands over a transfer whose accounts exist, and gives it its number. It is seen by the writer at the latest
    /// after [`Self::wake`]. Never fails: the shard has kept [`Self::room`] for it. After a failure of the store the
    /// transfer is lost, as is everything that was not durable then, and its number is never reached.
    pub fn push(&mut self, transfer: Transfer) -> TransferNumber {
        self.pushed += 1;
        if self.shared.is_failed() {
            return self.pushed;
        }
        let refused = self.shared.shards[self.shard].queue.push(transfer).is_err();
        // A writer that has just failed no longer drains, so then a full queue is not our mistake.
        assert!(
            !refused || self.shared.is_failed(),
            "the shard kept room for its transfers"
        );
        if self.relaxed {
            self.promised = self.pushed;
        }
        self.pushed
    }

    /// How many transfers wait for the writer to take them.
    pub fn waiting(&self) -> usize {
        self.shared.shards[self.shard].queue.len()
    }

    /// How many transfers can be pushed for certain. A shard accepts a Prepare only if this exceeds what it has in
    /// flight, and answers T03 otherwise; only a disk that stands still makes it so.
    pub fn room(&self) -> usize {
        let queue = &self.shared.shards[self.shard].queue;
        queue.capacity() - queue.len()
    }

    /// The last transfer of this shard that counts as durable, and with it all before; 0 before the first.
    pub fn durable(&self) -> TransferNumber {
        self.promised
            .max(self.shared.shards[self.shard].durable.load(Ordering::Acquire))
    }

    /// Asks for a commit of what was pushed since the last call. When to ask is the shard's choice: it alone knows
    /// whether more is about to come, and a sync costs the same CPU for one transfer as for a hundred. A system call
    /// only if the writer sleeps, and nothing at all if nothing was pushed.
    pub fn wake(&self) {
        if self.announced.replace(self.pushed) == self.pushed {
            return;
        }
        self.shared.asked.store(true, Ordering::Release);
        // Pairs with the fence in `Writer::sleep`: either we see that it is about to sleep, or it sees that we asked.
        fence(Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::Relaxed) && self.shared.sleeping.swap(false, Ordering::Relaxed) {
            self.thread.unpark();
        }
    }
}

/// Speaks to the writer from any thread but the shards'. The last one to go stops it.
#[derive(Clone)]
pub struct WriterHandle {
    inner: Arc<HandleInner>,
}

struct HandleInner {
    shared: Arc<Shared>,
    requests: Sender<Request>,
    thread: Thread,
    /// The store itself goes with the writer's thread.
    reader: Weak<dyn Reader>,
    /// Held while a copy is made.
    backup: Mutex<()>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl WriterHandle {
    /// Makes `mutations` durable, in their order and after every transfer that was handed over before. Blocks for
    /// a sync or two. All of them or none: on an error nothing has changed, except that after
    /// [`StoreError::Failed`] only the next start shows which of both it is.
    pub fn apply(&self, mutations: Vec<Mutation>) -> Result<Applied, StoreError> {
        let (reply, answer) = bounded(1);
        let request = Request { mutations, reply };
        let sent = self.inner.requests.send(request);
        self.inner.thread.unpark();
        match sent {
            Ok(()) => self.await_answer(&answer),
            Err(_) => Err(self.closed()),
        }
    }

    /// A request that comes in the moment in which the thread ends may stay in the queue, unanswered, for as long as
    /// somebody could send another: so the answer is not waited for beyond the thread's end.
    fn await_answer(&self, answer: &Receiver<Result<Applied, StoreError>>) -> Result<Applied, StoreError> {
        loop {
            // Read first: whatever was answered was answered before the end.
            let ended = self.inner.shared.ended.load(Ordering::Acquire);
            match answer.recv_timeout(LOOK_FOR_END_EVERY) {
                Ok(applied) => return applied,
                Err(RecvTimeoutError::Timeout) if !ended => {}
                Err(_) => return Err(self.closed()),
            }
        }
    }

    /// The proof that the book adds up, read back from the store, after everything handed over before is durable.
    /// Reads on the caller's thread, so commits go on meanwhile.
    pub fn audit(&self) -> Result<Audit, StoreError> {
        self.apply(Vec::new())?;
        self.reader()?.audit()
    }

    /// Reads what is on disk, on the caller's thread.
    pub fn reader(&self) -> Result<Arc<dyn Reader>, StoreError> {
        self.inner.reader.upgrade().ok_or_else(|| self.closed())
    }

    /// Copies the store into the new folder `directory`, with everything handed over before. One copy at a time. Works
    /// on the caller's thread, so commits go on meanwhile. Gives the proof of the copy, read back from it.
    pub fn backup(&self, directory: &Path) -> Result<Audit, BackupError> {
        let _one = match self.inner.backup.try_lock() {
            Ok(guard) => guard,
            // The lock protects no data.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(BackupError::Busy),
        };
        self.apply(Vec::new())?;
        self.reader()?.copy_to(directory)
    }

    /// Why the node can no longer commit, if so.
    pub fn failure(&self) -> Option<String> {
        self.inner.shared.failure.get().cloned()
    }

    /// Whether the node can no longer commit: one load, for every turn of a shard.
    pub fn is_failed(&self) -> bool {
        self.inner.shared.is_failed()
    }

    /// The balance on disk: positive is what we owe the holder. `None`: no such account.
    pub fn booked(&self, id: AccountId) -> Option<i128> {
        self.standing(id).map(|standing| standing.booked)
    }

    /// What the book on disk says of an account. `None`: no such account.
    pub fn standing(&self, id: AccountId) -> Option<Standing> {
        self.inner.shared.ledger().durable(id)
    }

    /// Calls `wake` from the writer's thread whenever transfers of `shard` became durable, and when the store has
    /// failed. Once per shard, before it pushes.
    pub fn set_waker(&self, shard: usize, wake: Box<dyn Fn() + Send + Sync>) {
        let set = self.inner.shared.shards[shard].waker.set(wake);
        assert!(set.is_ok(), "a shard has one waker");
    }

    /// Commits what was handed over before, ends the thread and closes the store. For when the shards have stopped:
    /// what is pushed later is lost.
    pub fn stop(&self) {
        self.inner.stop();
    }

    pub fn stats(&self) -> Stats {
        let counters = &self.inner.shared.counters;
        Stats {
            commits: counters.commits.load(Ordering::Relaxed),
            transfers: counters.transfers.load(Ordering::Relaxed),
            sync_us_last: counters.sync_us_last.load(Ordering::Relaxed),
            sync_us_max: counters.sync_us_max.load(Ordering::Relaxed),
        }
    }

    /// Why the thread no longer answers.
    fn closed(&self) -> StoreError {
        match self.failure() {
            Some(reason) => StoreError::Failed(reason),
            None if self.inner.shared.stopping.load(Ordering::Acquire) => StoreError::Stopped,
            // It is unwinding at this moment.
            None => StoreError::Failed(INTERNAL_ERROR.into()),
        }
    }
}

impl HandleInner {
    fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.thread.unpark();
        // Taken out first: a second caller waits for the first, and then finds nothing.
        let mut join = self.join.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = join.take() {
            // A panic of the thread is known as a failure of the store already.
            let _ = thread.join();
        }
    }
}

impl Drop for HandleInner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the writer's thread shares with everybody else.
struct Shared {
    shards: Box<[CachePadded<ShardQueue>]>,
    /// Changed by the writer's thread alone, and not locked during a commit.
    ledger: Mutex<Ledger>,
    /// The writer is about to sleep until it is woken.
    sleeping: AtomicBool,
    /// A shard wants what it has pushed committed.
    asked: AtomicBool,
    stopping: AtomicBool,
    /// The thread answers nothing any more.
    ended: AtomicBool,
    failed: AtomicBool,
    failure: OnceLock<String>,
    counters: Counters,
}

struct ShardQueue {
    queue: ArrayQueue<Transfer>,
    durable: CachePadded<AtomicU64>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Counters {
    commits: AtomicU64,
    transfers: AtomicU64,
    sync_us_last: AtomicU64,
    sync_us_max: AtomicU64,
}

impl Shared {
    fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, reason: String) {
        tracing::error!("the store has failed, and promises nothing any more: {reason}");
        // The first reason is the cause, later ones are consequences.
        let _ = self.failure.set(reason);
        self.failed.store(true, Ordering::Release);
        for shard in &self.shards {
            shard.wake();
        }
    }
}

impl ShardQueue {
    fn wake(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }
}

/// Mutations to be made durable; none just waits for everything before it.
struct Request {
    mutations: Vec<Mutation>,
    reply: Sender<Result<Applied, StoreError>>,
}

/// The writer's thread: [`Self::start`] is all that others see of it.
pub struct Writer {
    store: Box<dyn Store>,
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    durability: Durability,
    flush_interval: Duration,
    /// Taken from each shard so far.
    taken: Vec<TransferNumber>,
    /// Is told of every settlement once it is durable.
    settlements: Sender<Settlement>,
    /// The last one that was told.
    last_settlement: Option<SettlementNumber>,
    /// When the oldest transfer that waits to be committed was taken.
    pending_since: Option<Instant>,
}

impl Writer {
    /// Starts the thread on what `book`, loaded from `store`, says. `flush_interval` is for [`Durability::Relaxed`].
    /// `settlements` is sent every outgoing settlement as soon as its record is durable; those of before the start are in
    /// the book. The writer never waits for whoever listens, so the channel must take one per account.
    /// The thread inherits the caller's processor affinity, so call this before pinning to a core. An error is the
    /// system's that refuses the thread.
    pub fn start(
        store: Box<dyn Store>,
        book: &Book,
        shards: usize,
        durability: Durability,
        flush_interval: Duration,
        settlements: Sender<Settlement>,
    ) -> io::Result<(WriterHandle, Vec<TransferSender>)> {
        let shard = || {
            CachePadded::new(ShardQueue {
                queue: ArrayQueue::new(TRANSFERS_WAITING_MAX),
                durable: CachePadded::default(),
                waker: OnceLock::new(),
            })
        };
        let shared = Arc::new(Shared {
            shards: (0..shards).map(|_| shard()).collect(),
            ledger: Mutex::new(Ledger::new(book)),
            sleeping: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            counters: Counters::default(),
        });
        let (requests, received) = bounded(REQUESTS_WAITING_MAX);
        let reader = store.reader();
        let reader_weak = Arc::downgrade(&reader);
        let writer = Self {
            store,
            shared: shared.clone(),
            requests: received,
            durability,
            flush_interval,
            taken: vec![0; shards],
            settlements,
            last_settlement: book.last_settlement,
            pending_since: None,
        };
        let join = thread::Builder::new().name("clearway-store".into()).spawn(move || {
            // Kept for as long as the store is open, see `HandleInner::reader`.
            let _reader = reader;
            writer.run();
        })?;
        let thread = join.thread().clone();
        let sender = |shard| TransferSender {
            shared: shared.clone(),
            shard,
            thread: thread.clone(),
            relaxed: durability == Durability::Relaxed,
            pushed: 0,
            promised: 0,
            announced: Cell::new(0),
        };
        let senders = (0..shards).map(sender).collect();
        let inner = HandleInner {
            shared,
            requests,
            thread,
            reader: reader_weak,
            backup: Mutex::new(()),
            join: Mutex::new(Some(join)),
        };
        Ok((WriterHandle { inner: Arc::new(inner) }, senders))
    }

    fn run(mut self) {
        loop {
            // Read in this order: what was handed over before a stop or a request is drained after it was seen.
            let stopping = self.shared.stopping.load(Ordering::Acquire);
            let requests: Vec<Request> = self.requests.try_iter().take(REQUESTS_WAITING_MAX).collect();
            let asked = self.shared.asked.swap(false, Ordering::Acquire);
            if asked || !requests.is_empty() || stopping || self.pending_since.is_some() {
                self.drain();
            }
            // How long the batch may still wait for company. `None`: it is empty.
            let grace = self.pending_since.map(|since| match self.durability {
                Durability::Commit => Duration::ZERO,
                Durability::Relaxed => self.flush_interval.saturating_sub(since.elapsed()),
            });
            match grace {
                Some(grace) if !grace.is_zero() && requests.is_empty() && !stopping => {
                    // Requests wake us, shards need not.
                    thread::park_timeout(RELAXED_PAUSE.min(grace));
                }
                None if requests.is_empty() && stopping => return,
                None if requests.is_empty() => self.sleep(),
                _ => {
                    if self.commit(requests).is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Sleeps until a shard or a request wakes us; may return early.
    fn sleep(&self) {
        self.shared.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `TransferSender::wake`.
        fence(Ordering::SeqCst);
        // Requests and stops always unpark us. What a shard has pushed and not asked for waits for its company.
        if !self.shared.asked.load(Ordering::Relaxed) {
            thread::park();
        }
        self.shared.sleeping.store(false, Ordering::Relaxed);
    }

    /// Takes what waits in every shard's queue, but not what arrives meanwhile, into the working balances.
    fn drain(&mut self) {
        let mut any = false;
        let now_ms = now_ms();
        let mut ledger = self.shared.ledger();
        for (shard, taken) in self.shared.shards.iter().zip(&mut self.taken) {
            for _ in 0..shard.queue.len() {
                let Some(transfer) = shard.queue.pop() else {
                    break;
                };
                ledger.fold(&transfer, now_ms);
                *taken += 1;
                any = true;
            }
        }
        drop(ledger);
        if any && self.pending_since.is_none() {
            self.pending_since = Some(Instant::now());
        }
    }

    /// Writes the batch with `requests` at its end, then publishes it. Gives the number of transfers in it; `None`
    /// after a failure, when nothing can be committed any more.
    fn commit(&mut self, requests: Vec<Request>) -> Option<u64> {
        let mut pending = Vec::with_capacity(requests.len());
        let mut ledger = self.shared.ledger();
        for Request { mutations, reply } in requests {
            match ledger.apply(mutations) {
                Ok(applied) => pending.push((reply, applied)),
                // Nothing has changed. A caller that no longer listens needs no answer.
                Err(refused) => {
                    let _ = reply.send(Err(refused));
                }
            }
        }
        let batch = ledger.take_batch();
        drop(ledger);
        if !batch.is_empty() {
            let started = Instant::now();
            if let Err(error) = self.store.commit(&batch) {
                let reason = match error {
                    StoreError::Failed(reason) => reason,
                    other => other.to_string(),
                };
                // Before the answers, so that whoever gets one finds the store failed.
                self.shared.fail(reason.clone());
                for (reply, _) in pending {
                    let _ = reply.send(Err(StoreError::Failed(reason.clone())));
                }
                return None;
            }
            self.count_sync(started.elapsed());
        }
        self.shared.ledger().published();
        self.publish_settlements(&batch);
        let transfers = self.publish_transfers();
        for (reply, applied) in pending {
            let _ = reply.send(Ok(applied));
        }
        Some(transfers)
    }

    /// The ones that are new: what else becomes of a settlement, whoever made it so knows.
    fn publish_settlements(&mut self, batch: &Batch) {
        for settlement in &batch.settlements {
            if Some(settlement.number) > self.last_settlement {
                self.last_settlement = Some(settlement.number);
                // Nobody listens any more when the node is stopping: it is in the book.
                let _ = self.settlements.try_send(settlement.clone());
            }
        }
    }

    fn publish_transfers(&mut self) -> u64 {
        self.pending_since = None;
        let mut transfers = 0;
        for (shard, taken) in self.shared.shards.iter().zip(&self.taken) {
            let before = shard.durable.load(Ordering::Relaxed);
            if *taken > before {
                transfers += taken - before;
                shard.durable.store(*taken, Ordering::Release);
                // In relaxed mode nobody waits for this.
                if self.durability == Durability::Commit {
                    shard.wake();
                }
            }
        }
        self.shared.counters.transfers.fetch_add(transfers, Ordering::Relaxed);
        transfers
    }

    fn count_sync(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let counters = &self.shared.counters;
        counters.commits.fetch_add(1, Ordering::Relaxed);
        counters.sync_us_last.store(took, Ordering::Relaxed);
        counters.sync_us_max.fetch_max(took, Ordering::Relaxed);
    }
}

impl Drop for Writer {
    /// A mistake of ours on this thread must not leave the shards waiting for a promise that nobody keeps.
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.fail(INTERNAL_ERROR.into());
        }
        self.shared.ended.store(true, Ordering::Release);
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use super::*;
    use crate::ledger::{Asset, AssetId};
    use crate::store::tests::{account, assets, book};
    use crate::store::{Fault, LearnedRoute, MemoryStore, OpenError, recover};

    /// Nothing here is measured by the clock; this only ends a test that would hang.
    const PATIENCE: Duration = Duration::from_secs(60);
    const SHARDS: usize = 3;

    fn start(disk: &MemoryStore, shards: usize, durability: Durability) -> (WriterHandle, Vec<TransferSender>) {
        let mut store = disk.clone();
        let book = recover(&mut store).unwrap();
        let interval = Duration::from_millis(20);
        Writer::start(Box::new(store), &book, shards, durability, interval, unbounded().0).unwrap()
    }

    fn transfer(from: u32, to: u32, incoming_amount: u64, outgoing_amount: u64) -> Transfer {
        Transfer {
            from: AccountId::new(from),
            to: AccountId::new(to),
            incoming_amount,
            outgoing_amount,
            payment: None,
        }
    }

    fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < PATIENCE, "waited too long until {what}");
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Accounts 0 to 7 send, in both assets; account 8 + n counts the transfers of shard n.
    fn crowd() -> Book {
        let accounts = (0..8 + SHARDS as u32).map(|id| (Arc::new(account(id, (id % 2) as u16)), Standing::default()));
        Book {
            assets: assets(),
            accounts: accounts.collect(),
            next_account_id: 8 + SHARDS as u32,
            positions: vec![0, 0],
            ..Book::default()
        }
    }

    /// The transfers of one shard: each credits one unit to its counter, so its balance tells how many there were.
    fn transfers_of(shard: usize, seed: u64) -> impl Iterator<Item = Transfer> {
        let mut state = (seed << 8) + shard as u64 + 1;
        std::iter::repeat_with(move || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            transfer((state % 8) as u32, 8 + shard as u32, state >> (state % 60), 1)
        })
    }

    /// The crowd's book after the first `counts` transfers of each shard.
    fn book_after(counts: [u64; SHARDS], seed: u64) -> Book {
        let mut book = crowd();
        for (shard, count) in counts.into_iter().enumerate() {
            for transfer in transfers_of(shard, seed).take(count as usize) {
                let incoming = i128::from(transfer.incoming_amount);
                book.accounts[transfer.from.index()].1.booked -= incoming;
                book.positions[transfer.from.index() % 2] += incoming;
                book.accounts[transfer.to.index()].1.booked += 1;
                book.positions[transfer.to.index() % 2] -= 1;
            }
        }
        book
    }

    /// Pushes `count` transfers from a thread per shard. Gives each shard's last durable number, once all are durable
    /// or the store has failed.
    fn push_all(handle: &WriterHandle, senders: Vec<TransferSender>, seed: u64, count: u64) -> [u64; SHARDS] {
        let threads = senders.into_iter().enumerate().map(|(shard, mut sender)| {
            let handle = handle.clone();
            thread::spawn(move || {
                for (number, transfer) in (1..=count).zip(transfers_of(shard, seed)) {
                    assert_eq!(sender.push(transfer), number);
                    // In bursts of many lengths, with the writer idle in between or not.
                    if transfer.incoming_amount % 7 == 0 {
                        sender.wake();
                    }
                    if transfer.incoming_amount % 97 == 0 {
                        thread::yield_now();
                    }
                }
                sender.wake();
                wait_until("all is durable", || sender.durable() == count || handle.is_failed());
                sender.durable()
            })
        });
        let threads: Vec<_> = threads.collect();
        let durable: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        durable.try_into().unwrap()
    }

    #[test]
    fn what_several_shards_push_is_kept_and_adds_up() {
        let disk = MemoryStore::holding(crowd());
        let (handle, senders) = start(&disk, SHARDS, Durability::Commit);
        let count = 20_000;
        assert_eq!(push_all(&handle, senders, 1, count), [count; SHARDS]);
        assert!(handle.audit().unwrap().adds_up());
        let expected = book_after([count; SHARDS], 1);
        for (account, standing) in &expected.accounts {
            assert_eq!(handle.standing(account.id), Some(*standing));
        }
        assert_eq!(handle.booked(AccountId::new(99)), None);
        let stats = handle.stats();
        assert_eq!(stats.transfers, count * SHARDS as u64);
        assert_eq!(stats.commits, disk.commits());
        assert!(stats.sync_us_last <= stats.sync_us_max);
        handle.stop();
        assert_eq!(recover(&mut disk.restart()), Ok(expected));
    }

    #[test]
    fn after_a_crash_nothing_acknowledged_is_missing() {
        for seed in 1..=60 {
            let disk = MemoryStore::holding(crowd());
            let fault = if seed % 2 == 0 { Fault::Lost } else { Fault::KeptUnseen };
            disk.crash_after(seed % 13, fault);
            let (handle, senders) = start(&disk, SHARDS, Durability::Commit);
            let durable = push_all(&handle, senders, seed, 2_000);
            if !handle.is_failed() {
                // So few commits were needed that none met the fault.
                assert_eq!(durable, [2_000; SHARDS], "seed {seed}");
                handle.apply(vec![Mutation::PutNodeAddress("test.node".into())]).ok();
            }
            let left = recover(&mut disk.restart()).unwrap();
            let kept = [8, 9, 10].map(|counter| u64::try_from(left.accounts[counter].1.booked).unwrap());
            for shard in 0..SHARDS {
                let lost = durable[shard] > kept[shard];
                assert!(!lost, "seed {seed}: {durable:?} was acknowledged, {kept:?} is left");
            }
            let left = Book {
                node_address: None,
                ..left
            };
            assert_eq!(left, book_after(kept, seed), "seed {seed}");
        }
    }

    /// Every settlement that anybody was told of is kept, with what it took off the balance; one that nobody was told of
    /// may be kept, and is in the book then.
    #[test]
    fn after_a_crash_every_settlement_that_was_told_is_kept_and_adds_up() {
        for durability in [Durability::Commit, Durability::Relaxed] {
            for seed in 1..=30u64 {
                let accounts = 20;
                let disk = MemoryStore::holding(book(&vec![1_000; accounts], -1_000 * accounts as i128));
                let fault = if seed % 2 == 0 { Fault::Lost } else { Fault::KeptUnseen };
                disk.crash_after(seed % 7, fault);
                let mut store = disk.clone();
                let book = recover(&mut store).unwrap();
                let (settlements, made) = unbounded();
                let interval = Duration::from_millis(1);
                let (handle, mut senders) =
                    Writer::start(Box::new(store), &book, 1, durability, interval, settlements).unwrap();
                for id in 0..accounts as u32 {
                    senders[0].push(Transfer::settlement(AccountId::new(id), u64::from(id) + seed));
                    senders[0].wake();
                    if u64::from(id) % 3 == seed % 3 {
                        let _ = handle.apply(Vec::new());
                    }
                }
                let _ = handle.apply(Vec::new());
                handle.stop();
                let left = recover(&mut disk.restart()).unwrap();
                let told: Vec<Settlement> = made.try_iter().collect();
                let kept = &left.open_settlements;
                assert!(told.len() <= kept.len(), "seed {seed}: {told:?} of {kept:?}");
                assert_eq!(told, kept[..told.len()], "seed {seed}");
                assert_eq!(left.last_settlement, kept.last().map(|last| last.number));
                for open in kept {
                    let (_, standing) = &left.accounts[open.account.index()];
                    assert_eq!(
                        (standing.booked, standing.settling),
                        (1_000 - i128::from(open.amount), true)
                    );
                }
                let untouched = left.accounts.iter().filter(|(_, of)| *of == Standing::of(1_000));
                let rest = untouched.count();
                assert_eq!(rest + kept.len(), accounts, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_second_settlement_of_an_account_is_our_mistake_and_stops_the_node() {
        let disk = MemoryStore::holding(book(&[9], -9));
        let (handle, mut senders) = start(&disk, 1, Durability::Commit);
        for _ in 0..2 {
            senders[0].push(Transfer::settlement(AccountId::new(0), 4));
        }
        senders[0].wake();
        wait_until("the writer has failed", || handle.is_failed());
        assert!(senders[0].durable() <= 1);
    }

    /// Each update of a neighbour takes one prefix back and tells the next: so one look tells which was the last.
    #[test]
    fn after_a_crash_no_acknowledged_update_of_a_neighbour_is_missing() {
        let prefix = |epoch: u32| Arc::from(format!("test.number{epoch}"));
        let update = |epoch: u32| Mutation::LearnRoutes {
            account: AccountId::new(1),
            table_id: [9; 16],
            epoch,
            set: vec![LearnedRoute {
                prefix: prefix(epoch),
                path: epoch.to_be_bytes().into(),
                auth: [epoch as u8; 32],
            }],
            removed: vec![prefix(epoch - 1)],
        };
        for seed in 1..=20 {
            let disk = MemoryStore::holding(book(&[0, 0], 0));
            let fault = if seed % 2 == 0 { Fault::Lost } else { Fault::KeptUnseen };
            disk.crash_after(seed, fault);
            let (handle, _senders) = start(&disk, 1, Durability::Commit);
            let acknowledged = (1..)
                .take_while(|epoch| handle.apply(vec![update(*epoch)]).is_ok())
                .count() as u32;
            handle.stop();
            let kept = if fault == Fault::Lost {
                acknowledged
            } else {
                acknowledged + 1
            };
            let left = recover(&mut disk.restart()).unwrap();
            let [heard] = left.heard.as_slice() else {
                panic!("seed {seed}: {:?}", left.heard);
            };
            assert_eq!((heard.epoch, heard.routes.len()), (kept, 1), "seed {seed}");
            assert_eq!(heard.routes[0].prefix, prefix(kept), "seed {seed}");
        }
    }

    #[test]
    fn after_a_failure_nothing_is_promised() {
        for durability in [Durability::Commit, Durability::Relaxed] {
            let disk = MemoryStore::holding(book(&[0, 0], 0));
            let (handle, mut senders) = start(&disk, 1, durability);
            let mut sender = senders.remove(0);
            let (woken, wakes) = bounded(16);
            handle.set_waker(
                0,
                Box::new(move || {
                    let _ = woken.try_send(());
                }),
            );
            assert_eq!(sender.push(transfer(0, 1, 5, 5)), 1);
            handle.apply(Vec::new()).unwrap();
            disk.crash_after(0, Fault::Lost);
            assert_eq!(sender.push(transfer(0, 1, 5, 5)), 2);
            let failed = handle.apply(vec![Mutation::PutNodeAddress("test.node".into())]);
            assert!(matches!(failed, Err(StoreError::Failed(_))), "{failed:?}");
            assert!(handle.is_failed() && handle.failure().is_some());
            assert!(wakes.try_iter().count() > 0, "the failure wakes the shard");
            let promised = sender.durable();
            assert_eq!(
                promised,
                if durability == Durability::Commit { 1 } else { 2 },
                "relaxed had promised it"
            );
            // More than the queue holds: they go nowhere, and that is no mistake of the shard.
            for _ in 0..TRANSFERS_WAITING_MAX + 1 {
                sender.push(transfer(0, 1, 5, 5));
            }
            sender.wake();
            assert_eq!(sender.durable(), promised);
            assert!(matches!(handle.apply(Vec::new()), Err(StoreError::Failed(_))));
            assert!(matches!(handle.audit(), Err(StoreError::Failed(_))));
            assert_eq!(handle.booked(AccountId::new(1)), Some(5));
            handle.stop();
            assert_eq!(recover(&mut disk.restart()).unwrap().accounts[1].1.booked, 5);
        }
    }

    #[test]
    fn a_transfer_for_nobody_is_our_mistake_and_stops_the_node() {
        let disk = MemoryStore::holding(book(&[0, 0], 0));
        let (handle, mut senders) = start(&disk, 1, Durability::Commit);
        senders[0].push(transfer(0, 2, 5, 5));
        senders[0].wake();
        wait_until("the writer has failed", || handle.is_failed());
        assert!(matches!(handle.apply(Vec::new()), Err(StoreError::Failed(_))));
        assert_eq!(senders[0].durable(), 0);
        assert_eq!(disk.commits(), 0);
    }

    #[test]
    fn relaxed_promises_at_once_and_keeps_it_soon() {
        let disk = MemoryStore::holding(crowd());
        let (handle, senders) = start(&disk, SHARDS, Durability::Relaxed);
        // `push_all` sees all as durable the moment it has pushed.
        assert_eq!(push_all(&handle, senders, 3, 5_000), [5_000; SHARDS]);
        let expected = book_after([5_000; SHARDS], 3);
        wait_until("the flush interval has passed", || {
            let on_disk = |(account, standing): &(Arc<_>, _)| {
                let account: &crate::ledger::Account = account;
                handle.standing(account.id) == Some(*standing)
            };
            expected.accounts.iter().all(on_disk)
        });
        drop(handle);
        assert_eq!(
            recover(&mut disk.restart()),
            Ok(expected),
            "and dropping the last handle stops"
        );
    }

    #[test]
    fn stopping_keeps_what_was_pushed() {
        for durability in [Durability::Commit, Durability::Relaxed] {
            let disk = MemoryStore::holding(book(&[0, 0], 0));
            let (handle, mut senders) = start(&disk, 1, durability);
            for _ in 0..1000 {
                senders[0].push(transfer(0, 1, 3, 2));
            }
            handle.stop();
            handle.stop();
            assert_eq!(handle.apply(Vec::new()), Err(StoreError::Stopped));
            assert_eq!(handle.audit(), Err(StoreError::Stopped));
            assert_eq!(handle.failure(), None);
            let left = recover(&mut disk.restart()).unwrap();
            let balances: Vec<i128> = left.accounts.iter().map(|(_, standing)| standing.booked).collect();
            assert_eq!((balances, left.positions), (vec![-3000, 2000], vec![1000, 0]));
        }
    }

    #[test]
    fn mutations_come_after_the_transfers_before_them() {
        for durability in [Durability::Commit, Durability::Relaxed] {
            let disk = MemoryStore::holding(book(&[0, 0], 0));
            let (handle, mut senders) = start(&disk, 1, durability);
            let sender = &mut senders[0];
            for round in 1..=100 {
                sender.push(transfer(0, 1, 10, 7));
                // Not even woken: the mutation wakes the writer.
                handle
                    .apply(vec![Mutation::PutNodeAddress("test.node".into())])
                    .unwrap();
                assert_eq!(sender.durable(), round);
                assert_eq!(handle.booked(AccountId::new(1)), Some(7 * i128::from(round)));
            }
            let delete = |write_off| Mutation::DeleteAccount {
                id: AccountId::new(1),
                write_off,
            };
            sender.push(transfer(0, 1, 10, 7));
            assert_eq!(
                handle.apply(vec![delete(false)]),
                Err(StoreError::BalanceNotZero { balance: 707 })
            );
            assert_eq!(
                handle.apply(vec![delete(true)]),
                Ok(Applied {
                    written_off: 707,
                    ..Applied::default()
                })
            );
            assert_eq!(handle.booked(AccountId::new(1)), None);
            let audit = handle.audit().unwrap();
            assert_eq!((audit.assets[0].balances, audit.assets[0].position), (-1010, 1010));
        }
    }

    #[test]
    fn mutations_are_applied_all_or_not_at_all() {
        let disk = MemoryStore::holding(book(&[4, 0], -4));
        let (handle, _senders) = start(&disk, 1, Durability::Commit);
        let put = |id: u32, asset| Mutation::PutAccount(Arc::new(account(id, asset)));
        let delete = |id, write_off| Mutation::DeleteAccount {
            id: AccountId::new(id),
            write_off,
        };
        let euro = || Asset {
            code: "EUR".into(),
            scale: 2,
        };
        let before = recover(&mut disk.clone());
        let mut wrong_asset = account(4, 0);
        Arc::make_mut(&mut wrong_asset.asset).scale = 3;
        for (refused, why) in [
            (delete(0, false), "BalanceNotZero"),
            (put(0, 1), "BalanceNotZero"),
            (delete(7, true), "is deleted exists"),
            (put(u32::MAX, 0), "run out"),
            (Mutation::PutAccount(Arc::new(wrong_asset)), "by its number"),
            (Mutation::PutAsset(AssetId::new(1), euro()), "never changes"),
            (Mutation::PutAsset(AssetId::new(3), euro()), "without a gap"),
        ] {
            let first = Mutation::PutNodeAddress("test.node".into());
            let error = handle.apply(vec![first, put(3, 1), refused]).unwrap_err();
            assert!(format!("{error:?}").contains(why), "{error:?} is not {why}");
            assert_eq!(recover(&mut disk.clone()), before);
            assert_eq!(handle.booked(AccountId::new(3)), None);
        }
        assert_eq!(disk.commits(), 0);
        // Each after those before it: an asset and its account at once, an empty account in another asset.
        let mut in_euro = account(5, 0);
        (in_euro.asset, in_euro.asset_id) = (Arc::new(euro()), AssetId::new(2));
        let known = Mutation::PutAsset(AssetId::new(2), euro());
        let put_in_euro = Mutation::PutAccount(Arc::new(in_euro));
        handle
            .apply(vec![known.clone(), put_in_euro, put(1, 1), known])
            .unwrap();
        assert_eq!(handle.apply(vec![put(6, 1), delete(6, false)]), Ok(Applied::default()));
        for used_before in [4, 6] {
            let error = handle.apply(vec![put(used_before, 1)]).unwrap_err();
            assert!(format!("{error:?}").contains("never used again"), "{error:?}");
        }
        handle.stop();
        let book = recover(&mut disk.restart()).unwrap();
        assert_eq!(
            (book.next_account_id, book.positions.len(), book.accounts.len()),
            (7, 3, 3)
        );
    }

    /// A store whose commits each wait for a permit.
    struct Stalled {
        store: MemoryStore,
        permits: Receiver<()>,
    }

    impl Store for Stalled {
        fn load(&mut self) -> Result<Book, OpenError> {
            self.store.load()
        }

        fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
            self.permits.recv_timeout(PATIENCE).expect("the test gives a permit");
            self.store.commit(batch)
        }

        fn reader(&self) -> Arc<dyn Reader> {
            self.store.reader()
        }
    }

    #[test]
    fn what_arrives_during_a_sync_is_one_batch_and_a_disk_that_stands_still_is_seen_as_no_room() {
        let store = MemoryStore::holding(book(&[0, 0], 0));
        let (permit, permits) = bounded(2);
        let stalled = Stalled {
            store: store.clone(),
            permits,
        };
        let interval = Duration::from_millis(20);
        let (handle, mut senders) = Writer::start(
            Box::new(stalled),
            &book(&[0, 0], 0),
            1,
            Durability::Commit,
            interval,
            unbounded().0,
        )
        .unwrap();
        let sender = &mut senders[0];
        assert_eq!(sender.room(), TRANSFERS_WAITING_MAX);
        sender.push(transfer(0, 1, 1, 1));
        sender.wake();
        wait_until("the writer has taken it", || sender.room() == TRANSFERS_WAITING_MAX);
        while sender.room() > 0 {
            sender.push(transfer(0, 1, 1, 1));
        }
        sender.wake();
        assert_eq!(sender.durable(), 0, "the disk stands still");
        permit.send(()).unwrap();
        wait_until("the first is durable", || sender.durable() > 0);
        assert_eq!(sender.durable(), 1);
        permit.send(()).unwrap();
        wait_until("the others are durable", || sender.durable() > 1);
        assert_eq!(sender.durable(), 1 + TRANSFERS_WAITING_MAX as u64);
        assert_eq!(handle.stats().commits, 2);
        assert_eq!(sender.room(), TRANSFERS_WAITING_MAX);
    }

    #[test]
    fn every_lonely_transfer_wakes_the_writer_and_the_writer_its_shard() {
        let disk = MemoryStore::holding(book(&[0, 0], 0));
        let (handle, mut senders) = start(&disk, 1, Durability::Commit);
        let shard = thread::current();
        handle.set_waker(0, Box::new(move || shard.unpark()));
        let sender = &mut senders[0];
        for round in 0..50_000 {
            // Sooner and later, so that some come just as the writer goes to sleep.
            for _ in 0..round % 1000 {
                std::hint::black_box(round);
            }
            let number = sender.push(transfer(0, 1, 1, 1));
            sender.wake();
            let started = Instant::now();
            while sender.durable() < number {
                // Mostly spinning, because a shard that is woken comes too late for that.
                if round % 10 == 0 {
                    thread::park_timeout(PATIENCE);
                }
                let waited = started.elapsed();
                assert!(waited < PATIENCE, "a wake was lost in round {round}");
            }
        }
    }
}
