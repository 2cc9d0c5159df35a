//! All shards from outside: what the cold threads hold.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};

use crate::ledger::AccountId;
use crate::pipeline::stats::Stats;
use crate::wire::packet::Prepare;

use super::control::{
    AccountState, Answered, Change, PaymentEnd, PaymentOrder, QUESTIONS_MAX, SettleNow, SettleOrder, Shards,
    StillInFlight,
};
use super::mesh::{Cold, Mailbox, Message};

/// Changes that a shard applies in one turn: routes, of which it takes some two in a microsecond. So packets wait for a
/// part of a long list no longer than for each other. A whole table of routes is one change, and a pointer.
const CHANGES_PER_TURN: usize = 256;

/// How often a state that is waited for is asked for again. Only deletions and new links wait like this.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// See [`Shards`].
#[derive(Clone)]
pub struct ShardsHandle {
    mailboxes: Arc<[Mailbox]>,
}

impl ShardsHandle {
    pub fn new(mailboxes: Arc<[Mailbox]>) -> Self {
        Self { mailboxes }
    }

    /// Tells every shard the same.
    pub fn tell_all(&self, mut message: impl FnMut() -> Cold) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(Message::Cold(message()));
        }
    }

    /// Prepares that are not answered yet, on all shards. `None`: a shard has ended.
    pub fn unanswered(&self) -> Option<usize> {
        let answers: Vec<Receiver<usize>> = self.ask_all(Cold::Unanswered);
        answers.iter().map(|answer| answer.recv().ok()).sum()
    }

    /// The counters of every shard.
    pub fn stats(&self) -> Vec<Stats> {
        self.ask_all(Cold::Stats)
            .iter()
            .filter_map(|answer| answer.recv().ok())
            .collect()
    }

    fn ask_all<T>(&self, question: impl Fn(crossbeam::channel::Sender<T>) -> Cold) -> Vec<Receiver<T>> {
        self.mailboxes
            .iter()
            .map(|mailbox| {
                let (sender, receiver) = bounded(1);
                mailbox.send(Message::Cold(question(sender)));
                receiver
            })
            .collect()
    }

    fn wait_for(&self, id: AccountId, at_most: Duration, reached: impl Fn(&AccountState) -> bool) -> bool {
        let end = Instant::now() + at_most;
        loop {
            if self.account_state(id).is_none_or(|state| reached(&state)) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(ASK_AGAIN);
        }
    }
}

impl Shards for ShardsHandle {
    fn publish(&self, changes: &[Change]) {
        let changes: Arc<[Change]> = changes.into();
        for start in (0..changes.len()).step_by(CHANGES_PER_TURN) {
            let part = start..changes.len().min(start + CHANGES_PER_TURN);
            let done = self.ask_all(|sender| Cold::Changes(changes.clone(), part.clone(), sender));
            for done in done {
                // An error: the shard has ended, and with it the node.
                let _ = done.recv();
            }
        }
    }

    fn account_state(&self, id: AccountId) -> Option<AccountState> {
        let owner = id.index() % self.mailboxes.len();
        let (sender, receiver) = bounded(1);
        self.mailboxes[owner].send(Message::Cold(Cold::State(id, sender)));
        receiver.recv().ok().flatten()
    }

    fn btp_connected(&self, ids: &[AccountId]) -> Vec<bool> {
        assert!(ids.len() <= QUESTIONS_MAX, "a shard is not asked so much at once");
        let shards = self.mailboxes.len();
        let questions = (0..shards).filter_map(|shard| {
            let of_shard: Box<[AccountId]> = ids.iter().filter(|id| id.index() % shards == shard).copied().collect();
            let (sender, receiver) = bounded(1);
            (!of_shard.is_empty()).then(|| {
                self.mailboxes[shard].send(Message::Cold(Cold::BtpConnected(of_shard, sender)));
                (shard, receiver)
            })
        });
        // All are asked before the first is waited for.
        let questions: Vec<_> = questions.collect();
        let mut connected = vec![false; ids.len()];
        for (shard, answer) in questions {
            let Ok(answer) = answer.recv() else { continue };
            let places = (0..ids.len()).filter(|place| ids[*place].index() % shards == shard);
            for (place, is_connected) in places.zip(answer) {
                connected[place] = is_connected;
            }
        }
        connected
    }

    fn wait_until_idle(&self, id: AccountId, at_most: Duration) -> Result<(), StillInFlight> {
        // Transfers of the account that are not durable yet are in the store's queues before the deletion is, and the
        // store keeps that order.
        if self.wait_for(id, at_most, |state| state.in_flight == 0) {
            Ok(())
        } else {
            Err(StillInFlight)
        }
    }

    fn pay(&self, order: PaymentOrder, done: Box<dyn FnOnce(PaymentEnd) + Send>) {
        let owner = order.account.index() % self.mailboxes.len();
        self.mailboxes[owner].send(Message::Cold(Cold::Pay(Box::new(order), done)));
    }

    fn ask(&self, account: AccountId, prepare: Vec<u8>, done: Answered) {
        // Here, so that a mistake stops who has made it, and no shard.
        let parsed = Prepare::parse(&prepare).expect("our own request is a packet");
        assert!(parsed.amount() == 0, "a request between neighbours carries no money");
        assert!(
            parsed.destination().scheme() == "peer",
            "nothing else goes past the routes"
        );
        let owner = account.index() % self.mailboxes.len();
        let packet = prepare.into();
        self.mailboxes[owner].send(Message::Cold(Cold::Ask { account, packet, done }));
    }

    fn settle_now(&self, account: AccountId, by: SettleOrder) -> SettleNow {
        let owner = account.index() % self.mailboxes.len();
        let (sender, answer) = bounded(1);
        self.mailboxes[owner].send(Message::Cold(Cold::SettleNow(account, by, sender)));
        // An error: the shard has ended, and with it the node.
        answer.recv().unwrap_or(SettleNow::NotReady)
    }

    fn wait_for_btp(&self, id: AccountId, at_most: Duration) -> bool {
        self.wait_for(id, at_most, |state| state.btp_connected)
    }
}
