use std::time::Duration;

use crossbeam::channel::Receiver;

use super::super::Readiness;
use super::super::edit::AccountEdit;
use super::super::fake::{FAKE_SECRET, FakeDirections, FakeShards, PaymentDone, payment_end};
use super::record::slippage_ratio;
use super::*;
use crate::ledger::Transfer;
use crate::shard::control::PaymentOrder;
use crate::store::{
    Batch, Durability, Fault, MemoryStore, OpenError, Reader, Store, TransferSender, Writer, WriterHandle, recover,
};
use crate::stream::ratio::Ratio;
use crate::stream::sender::Target;
use crate::wire::timestamp::Timestamp;

/// Nothing here is measured by the clock; this only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node on the real writer over a disk in memory; its shards hand every payment to the test.
struct Node {
    control: Arc<Control>,
    payments: Payments,
    writer: WriterHandle,
    shard: TransferSender,
    started: Receiver<(PaymentOrder, PaymentDone)>,
    alice: Arc<Account>,
}

impl Node {
    fn start(disk: &MemoryStore) -> Self {
        Self::start_on(disk.clone())
    }

    fn start_on(mut store: impl Store + 'static) -> Self {
        let book = recover(&mut store).expect("the book adds up");
        let is_new = book.accounts.is_empty();
        let flush_interval = Duration::from_millis(5);
        let (writer, mut shards) = Writer::start(
            Box::new(store),
            &book,
            1,
            Durability::Commit,
            flush_interval,
            unbounded().0,
        )
        .unwrap();
        let fake = Arc::new(FakeShards::default());
        let (starts, started) = unbounded();
        fake.set_payer(move |order, done| starts.send((order, done)).unwrap());
        let control = Control::start("example.hub".into(), book, Arc::new(writer.clone()), fake).unwrap();
        let control = Arc::new(control);
        control.set_readiness(Readiness::Ready);
        let directions = Box::new(Arc::new(FakeDirections::default()));
        let payments = Payments::start(Arc::clone(&control), directions).unwrap();
        if is_new {
            for username in ["alice", "bob"] {
                let edit = AccountEdit {
                    asset_code: Some("ABC".into()),
                    asset_scale: Some(2),
                    ..AccountEdit::default()
                };
                control.create_account(Timestamp::default(), username, edit).unwrap();
            }
        }
        Self {
            alice: control.find_account("alice").unwrap(),
            payments,
            writer,
            shard: shards.remove(0),
            started,
            control,
        }
    }

    fn pay(&self, amount: u64, key: Option<&str>) -> Receiver<Result<Arc<Record>, Refused>> {
        let (sender, ended) = bounded(1);
        let done = Box::new(move |result| sender.send(result).unwrap());
        let endpoint = endpoint("$node.example/bob").unwrap();
        self.payments.pay(&self.alice, request(amount), endpoint, key, done);
        ended
    }

    /// A packet of a payment, durable when this returns.
    fn transfer(&mut self, number: PaymentNumber, amount: u64) {
        self.shard.push(Transfer {
            from: self.alice.id,
            to: self.control.find_account("bob").unwrap().id,
            incoming_amount: amount,
            outgoing_amount: amount,
            payment: Some(number),
        });
        self.shard.wake();
        assert!(self.control.audit().unwrap().adds_up());
    }

    fn records(&self) -> Vec<Record> {
        self.payments.list(self.alice.id, None, 1_000).unwrap().records
    }
}

/// A disk that takes its time for each commit.
struct Slow(MemoryStore);

impl Store for Slow {
    fn load(&mut self) -> Result<crate::store::Book, OpenError> {
        self.0.load()
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        thread::sleep(Duration::from_millis(5));
        self.0.commit(batch)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.0.reader()
    }
}

fn request(amount: u64) -> Request {
    Request {
        receiver: "$node.example/bob".into(),
        source_amount: Some(amount),
        destination_amount: None,
        slippage: SLIPPAGE_DEFAULT.into(),
        timeout_ms: None,
    }
}

#[test]
fn begun_before_it_sends_and_ended_before_it_is_told() {
    let disk = MemoryStore::default();
    let mut node = Node::start(&disk);
    let ended = node.pay(100, None);
    let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
    let open = recover(&mut disk.clone()).unwrap().open_payments;
    assert_eq!(open.len(), 1, "it is in the store when the shard hears of it");
    let text = String::from_utf8_lossy(&open[0].record).into_owned();
    assert!(!text.contains(std::str::from_utf8(&FAKE_SECRET).unwrap()), "{text}");
    assert_eq!((open[0].number, order.target), (order.number, Target::Source(100)));
    assert_eq!(node.payments.begun(), 1);
    node.transfer(order.number, 100);
    assert!(ended.is_empty());
    done(payment_end(Ok(()), 100, 100));
    let record = ended.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(
        (record.state, record.sent, record.delivered),
        (State::Completed, 100, Some(100))
    );
    assert_eq!(recover(&mut disk.clone()).unwrap().open_payments, []);
    assert_eq!(node.records(), [(*record).clone()]);
    assert_eq!(number_of(&record.id), Some(order.number));
}

#[test]
fn what_is_known_is_not_asked_for() {
    let node = Node::start(&MemoryStore::default());
    // Nobody asks any more: a question would wait for ever.
    let (nobody, _waiting) = bounded(1);
    let node = Node {
        payments: Payments {
            questions: nobody,
            ..node.payments.clone()
        },
        ..node
    };
    let pay = |receiver: &str, key| {
        let (sender, ended) = bounded(1);
        let done = Box::new(move |result| sender.send(result).unwrap());
        let request = Request {
            receiver: receiver.into(),
            ..request(100)
        };
        node.payments
            .pay(&node.alice, request, endpoint(receiver).unwrap(), key, done);
        ended
    };
    let refused = pay("$here.example/gone", Some("k"))
        .try_recv()
        .expect("told before `pay` returns");
    assert!(matches!(refused, Err(Refused::Unreachable(_))), "{refused:?}");
    assert_eq!(node.payments.shared.open().count, 0);
    let ended = pay("$here.example/bob", Some("k"));
    let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
    assert_eq!(&*order.destination, "example.node.bob.token");
    done(payment_end(Ok(()), 100, 100));
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().unwrap().state, State::Completed);
    assert_eq!(node.records().len(), 1);
}

#[test]
fn what_a_crash_leaves_open_is_ended_with_what_the_book_says() {
    let disk = MemoryStore::default();
    let mut node = Node::start(&disk);
    let waits = node.pay(100, Some("k"));
    let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
    node.transfer(order.number, 30);
    node.transfer(order.number, 11);
    let unsent = node.pay(7, None);
    let (_, unsent_done) = node.started.recv_timeout(PATIENCE).unwrap();

    let again = Node::start(&disk.restart());
    let records = again.records();
    let seen: Vec<_> = records
        .iter()
        .map(|record| (record.state, record.sent, record.delivered))
        .collect();
    assert_eq!(
        seen,
        [(State::Interrupted, 0, Some(0)), (State::Interrupted, 41, None)],
        "the newest first"
    );
    assert_eq!(again.writer.booked(again.alice.id), Some(-41));
    // The key finds it, and nothing is paid again.
    let found = again.pay(100, Some("k")).recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(*found, records[1]);
    let detail = found.detail.as_deref().unwrap();
    assert!(
        detail.contains("41 of 100 units of ABC at scale 2 were sent"),
        "{detail}"
    );
    assert_eq!(
        again.pay(99, Some("k")).recv_timeout(PATIENCE).unwrap(),
        Err(Refused::KeyConflict)
    );
    assert!(again.started.is_empty());
    // The next payment has a higher number.
    let _next = again.pay(5, None);
    let (next, _) = again.started.recv_timeout(PATIENCE).unwrap();
    assert!(next.number > order.number);
    drop((waits, done, unsent, unsent_done));
}

#[test]
fn an_end_that_cannot_be_stored_is_not_told_as_one() {
    for (fault, state) in [(Fault::Lost, State::Interrupted), (Fault::KeptUnseen, State::Completed)] {
        let disk = MemoryStore::default();
        let mut node = Node::start(&disk);
        let ended = node.pay(100, Some("k"));
        let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
        node.transfer(order.number, 100);
        disk.crash_after(0, fault);
        done(payment_end(Ok(()), 100, 100));
        let Err(Refused::Unstored(record)) = ended.recv_timeout(PATIENCE).unwrap() else {
            panic!("nobody knows what the next start will say");
        };
        assert_eq!(record.sent, 100);
        let again = Node::start(&disk.restart());
        let found = again.pay(100, Some("k")).recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!((found.state, found.sent), (state, 100));
        assert!(again.started.is_empty());
    }
}

#[test]
fn many_at_once_take_few_commits() {
    let node = Node::start_on(Slow(MemoryStore::default()));
    let before = node.writer.stats().commits;
    let ends: Vec<_> = (1..=1_000).map(|amount| node.pay(amount, None)).collect();
    let mut numbers = Vec::new();
    for _ in 0..1_000 {
        let (order, done) = node.started.recv_timeout(PATIENCE).unwrap();
        numbers.push(order.number);
        done(payment_end(Ok(()), 0, 0));
    }
    for ended in ends {
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap().unwrap().state, State::Completed);
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "numbers ascend");
    assert_eq!(node.records().len(), 1_000);
    let commits = node.writer.stats().commits - before;
    assert!(commits < 200, "{commits} commits for 1000 payments");
}

#[test]
fn places_are_given_back() {
    let disk = MemoryStore::default();
    let node = Node::start(&disk);
    let is_empty = || {
        let open = node.payments.shared.open();
        (open.count, open.by_key.len()) == (0, 0) && node.payments.begun() == 0
    };
    let ended = node.pay(1, Some("k"));
    let waits = node.pay(1, Some("k"));
    let (_, done) = node.started.recv_timeout(PATIENCE).unwrap();
    assert_eq!(node.payments.begun(), 1);
    // The shard has gone, and nobody will say how it ended; those who wait are not left waiting.
    drop(done);
    assert!(ended.recv().is_err() && waits.recv().is_err());
    assert!(is_empty());
    // As many as there may be, and one more.
    node.payments.shared.open().count = OPEN_MAX;
    assert_eq!(node.pay(2, None).recv_timeout(PATIENCE).unwrap(), Err(Refused::Busy));
    assert_eq!(
        node.pay(2, Some("m")).recv_timeout(PATIENCE).unwrap(),
        Err(Refused::Busy)
    );
    node.payments.shared.open().count = 0;
    assert!(is_empty());
}

#[test]
fn one_that_cannot_begin_does_not_harm_the_others() {
    let disk = MemoryStore::default();
    let node = Node::start(&disk);
    let kept = node.pay(1, None);
    let (_, done) = node.started.recv_timeout(PATIENCE).unwrap();
    // Deleting waits for the payment; then whoever still knows the account is told that it is gone.
    let control = Arc::clone(&node.control);
    let deletes = thread::spawn(move || control.delete_account("alice", false));
    done(payment_end(Ok(()), 0, 0));
    assert_eq!(kept.recv_timeout(PATIENCE).unwrap().unwrap().state, State::Completed);
    deletes.join().unwrap().unwrap();
    assert_eq!(
        node.pay(2, None).recv_timeout(PATIENCE).unwrap(),
        Err(Refused::AccountNotFound)
    );
    assert_eq!(node.payments.shared.open().count, 0);
}

#[test]
fn ids_hold_numbers() {
    let max = PaymentNumber::at(u64::MAX).unwrap();
    for number in [
        1,
        2,
        1 << 20,
        (1 << 20) - 1,
        1_790_000_000_000 << 20 | 0xa_bcde,
        max.get(),
    ] {
        let number = PaymentNumber::new(number).unwrap();
        for random in [0, u64::MAX, 0x0123_4567_89ab_cdef] {
            let id = public_id(number, random);
            assert_eq!((id.get_version_num(), number_of(&id)), (7, Some(number)), "{id}");
        }
    }
    assert_eq!(number_of(&Uuid::nil()), None);
    assert_eq!(number_of(&Uuid::new_v4()), None);
    assert_eq!(
        number_of(&"ffffffff-ffff-7fff-bfff-ffffffffffff".parse().unwrap()),
        None
    );
}

#[test]
fn slippages() {
    for (text, expected) in [
        ("0", Some("0")),
        ("0.0", Some("0")),
        ("0.015", Some("0.015")),
        ("1.50e-2", Some("0.015")),
        ("0.9999999999999999999", Some("0.9999999999999999999")),
        ("0.99999999999999999999", None),
        ("1.5e-18", Some("1.5e-18")),
        ("0.0000000000000000001", Some("1e-19")),
        ("1e-20", None),
        ("1", None),
        ("-0.1", None),
        ("1.5", None),
        ("NaN", None),
        ("", None),
    ] {
        let read = read_slippage(text);
        assert_eq!(read.as_deref(), expected, "{text}");
        if let Some(read) = read {
            let request = Request {
                slippage: read,
                ..request(1)
            };
            assert!(request.slippage().is_some(), "{text}");
        }
    }
    assert_eq!(slippage_ratio("0.015"), Ratio::new(15, 1_000));
}
