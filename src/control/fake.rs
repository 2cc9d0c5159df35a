//! A book and shards that live in memory, for the tests of `control` and `api`.
//!
//! The book is folded as the writer does it and can be told to fail; the shards note what was published, in order, and show the
//! state a test gives them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::ledger::audit::Audit;
use crate::ledger::settlement::Settlement;
use crate::ledger::{AccountId, Standing, Transfer};
use crate::routing::forwarding::Forwarding;
use crate::routing::table::Step;
use crate::shard::control::{
    AccountState, Answered, Change, PaymentEnd, PaymentOrder, QUESTIONS_MAX, RefusedHere, SettleNow, SettleOrder,
    Shards, StillInFlight,
};
use crate::store::tests::MemoryBook;
use crate::store::{Applied, Book, Mutation, Reader, StoreError};
use crate::stream::sender::{Amounts, Failure, Outcome};
use url::Url;

use crate::client::spsp::{Destination, QueryError};

use super::payments::Directions;
use super::state::State;
use super::{BackupError, Bookkeeper, Control, Readiness};

#[derive(Default)]
pub(crate) struct FakeBook {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    book: MemoryBook,
    failure: Option<String>,
    copies: Vec<PathBuf>,
}

impl FakeBook {
    /// Books an amount to an account, as a packet from our own position would.
    pub(crate) fn credit(&self, id: AccountId, amount: i128) {
        let units = u64::try_from(amount.unsigned_abs()).unwrap();
        let (incoming_amount, outgoing_amount) = if amount < 0 { (units, 0) } else { (0, units) };
        self.transfer(&Transfer {
            from: id,
            to: id,
            incoming_amount,
            outgoing_amount,
            payment: None,
        });
    }

    /// Books what a shard would hand over; gives the settlement, if it made one.
    pub(crate) fn transfer(&self, transfer: &Transfer) -> Option<Settlement> {
        self.transfer_at(transfer, 0)
    }

    /// The same, at this time of day.
    pub(crate) fn transfer_at(&self, transfer: &Transfer, now_ms: u64) -> Option<Settlement> {
        self.inner.lock().unwrap().book.transfer(transfer, now_ms)
    }

    /// Makes one unit vanish, as no real book would.
    pub(crate) fn lose_a_unit(&self) {
        self.inner.lock().unwrap().book.lose_a_unit();
    }

    pub(crate) fn fail(&self, reason: &str) {
        self.inner.lock().unwrap().failure = Some(reason.to_owned());
    }

    /// Where copies of the book would be.
    pub(crate) fn copies(&self) -> Vec<PathBuf> {
        self.inner.lock().unwrap().copies.clone()
    }

    pub(crate) fn commits(&self) -> u64 {
        self.inner.lock().unwrap().book.commits()
    }

    /// What a start would read back.
    pub(crate) fn read_back(&self) -> Book {
        self.inner.lock().unwrap().book.read_back()
    }
}

impl Bookkeeper for FakeBook {
    fn apply(&self, mutations: Vec<Mutation>) -> Result<Applied, StoreError> {
        let mut inner = self.inner.lock().unwrap();
        match &inner.failure {
            Some(reason) => Err(StoreError::Failed(reason.clone())),
            None => inner.book.apply(mutations),
        }
    }

    fn audit(&self) -> Result<Audit, StoreError> {
        self.inner.lock().unwrap().book.reader().audit()
    }

    /// Takes any folder once, except those whose name says what is wrong.
    fn backup(&self, directory: &Path) -> Result<Audit, BackupError> {
        let mut inner = self.inner.lock().unwrap();
        if let Some(reason) = &inner.failure {
            return Err(StoreError::Failed(reason.clone()).into());
        }
        match directory.to_str() {
            Some("/refused") => return Err(BackupError::Directory("expected another".into())),
            Some("/busy") => return Err(BackupError::Busy),
            Some("/full") => return Err(BackupError::Failed("No space left on device".into())),
            _ if inner.copies.iter().any(|copy| copy == directory) => return Err(BackupError::Exists),
            _ => inner.copies.push(directory.to_owned()),
        }
        drop(inner);
        Ok(self.audit()?)
    }

    fn standing(&self, id: AccountId) -> Option<Standing> {
        self.inner.lock().unwrap().book.standing(id)
    }

    fn reader(&self) -> Result<Arc<dyn Reader>, StoreError> {
        Ok(self.inner.lock().unwrap().book.reader())
    }

    fn failure(&self) -> Option<String> {
        self.inner.lock().unwrap().failure.clone()
    }
}

/// Says how a payment ends, and when.
pub(crate) type Payer = Box<dyn Fn(PaymentOrder, PaymentDone) + Send + Sync>;
pub(crate) type PaymentDone = Box<dyn FnOnce(PaymentEnd) + Send>;
/// Settles an account.
pub(crate) type Settler = Box<dyn Fn(AccountId) -> SettleNow + Send + Sync>;
/// Says what a neighbour answers, and when.
pub(crate) type Neighbour = Box<dyn Fn(AccountId, &[u8], Answered) + Send + Sync>;

#[derive(Default)]
pub(crate) struct FakeShards {
    published: Mutex<Vec<String>>,
    states: Mutex<HashMap<AccountId, AccountState>>,
    payer: Mutex<Option<Payer>>,
    asked: Mutex<Vec<(AccountId, Vec<u8>)>>,
    neighbour: Mutex<Option<Neighbour>>,
    settler: Mutex<Option<Settler>>,
    routes: Mutex<FakeRoutes>,
}

/// What a shard knows of routes.
#[derive(Default)]
struct FakeRoutes {
    snapshot: Option<Arc<Forwarding>>,
    /// What was told since.
    changes: BTreeMap<Arc<str>, Option<AccountId>>,
}

impl FakeRoutes {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::SetRoute { prefix, next_hop } => drop(self.changes.insert(Arc::clone(prefix), Some(*next_hop))),
            Change::RemoveRoute { prefix } => drop(self.changes.insert(Arc::clone(prefix), None)),
            Change::Routes(snapshot) => {
                self.changes.clear();
                let replaced = self.snapshot.replace(Arc::clone(snapshot));
                let is_last = replaced.is_some_and(|replaced| Arc::into_inner(replaced).is_some());
                assert!(!is_last, "no shard gives back the memory of a table");
            }
            _ => {}
        }
    }
}

impl FakeShards {
    /// Where exactly this prefix leads, by all that was published.
    pub(crate) fn next_hop(&self, prefix: &str) -> Option<AccountId> {
        let routes = self.routes.lock().unwrap();
        let in_snapshot = || routes.snapshot.as_ref().and_then(|snapshot| snapshot.get(prefix));
        routes.changes.get(prefix).copied().unwrap_or_else(in_snapshot)
    }

    /// What was published since the last call, one word per change.
    pub(crate) fn take_published(&self) -> String {
        std::mem::take(&mut *self.published.lock().unwrap()).join(" ")
    }

    pub(crate) fn set_state(&self, id: AccountId, state: AccountState) {
        self.states.lock().unwrap().insert(id, state);
    }

    /// From now on payments are made like this; without, there are none.
    pub(crate) fn set_payer(&self, payer: impl Fn(PaymentOrder, PaymentDone) + Send + Sync + 'static) {
        *self.payer.lock().unwrap() = Some(Box::new(payer));
    }

    /// What neighbours were asked since the last call: whom, and the Prepare.
    pub(crate) fn take_asked(&self) -> Vec<(AccountId, Vec<u8>)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// From now on neighbours answer like this; without, they cannot be reached.
    pub(crate) fn set_neighbour(&self, neighbour: impl Fn(AccountId, &[u8], Answered) + Send + Sync + 'static) {
        *self.neighbour.lock().unwrap() = Some(Box::new(neighbour));
    }

    /// From now on accounts are settled like this; without, nothing is owed to anybody.
    pub(crate) fn set_settler(&self, settler: impl Fn(AccountId) -> SettleNow + Send + Sync + 'static) {
        *self.settler.lock().unwrap() = Some(Box::new(settler));
    }

    fn state(&self, id: AccountId) -> AccountState {
        self.states.lock().unwrap().get(&id).copied().unwrap_or_default()
    }
}

impl Shards for FakeShards {
    fn publish(&self, changes: &[Change]) {
        let mut routes = self.routes.lock().unwrap();
        changes.iter().for_each(|change| routes.apply(change));
        self.published.lock().unwrap().extend(changes.iter().map(show));
    }

    fn account_state(&self, id: AccountId) -> Option<AccountState> {
        self.states.lock().unwrap().get(&id).copied()
    }

    fn btp_connected(&self, ids: &[AccountId]) -> Vec<bool> {
        assert!(ids.len() <= QUESTIONS_MAX);
        ids.iter().map(|id| self.state(*id).btp_connected).collect()
    }

    /// Does not wait: what is in flight in a fake stays there.
    fn wait_until_idle(&self, id: AccountId, _at_most: Duration) -> Result<(), StillInFlight> {
        if self.state(id).in_flight == 0 {
            Ok(())
        } else {
            Err(StillInFlight)
        }
    }

    fn pay(&self, order: PaymentOrder, done: Box<dyn FnOnce(PaymentEnd) + Send>) {
        self.published
            .lock()
            .unwrap()
            .push(format!("pay:{}>{}", order.account, order.destination));
        if let Some(payer) = &*self.payer.lock().unwrap() {
            return payer(order, done);
        }
        done(PaymentEnd {
            outcome: Outcome::not_begun(),
            refused_here: Some(RefusedHere::Busy),
        });
    }

    fn ask(&self, account: AccountId, prepare: Vec<u8>, done: Answered) {
        self.asked.lock().unwrap().push((account, prepare.clone()));
        match &*self.neighbour.lock().unwrap() {
            Some(neighbour) => neighbour(account, &prepare, done),
            None => done(None),
        }
    }

    fn settle_now(&self, account: AccountId, _: SettleOrder) -> SettleNow {
        match &*self.settler.lock().unwrap() {
            Some(settler) => settler(account),
            None => SettleNow::NothingOwed,
        }
    }

    fn wait_for_btp(&self, id: AccountId, _at_most: Duration) -> bool {
        self.state(id).btp_connected
    }
}

/// The secret of all receivers: must be nowhere.
pub(crate) const FAKE_SECRET: [u8; 32] = *b"nobody may ever see this secret!";

/// Knows every receiver on `node.example` and `here.example` by the last part of its path, and one that cannot be reached.
/// The second host need not be asked.
#[derive(Default)]
pub(crate) struct FakeDirections {
    asked: Mutex<Vec<String>>,
}

impl FakeDirections {
    /// Who was asked for since the last call.
    pub(crate) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Directions for Arc<FakeDirections> {
    fn known(&self, endpoint: &Url) -> Option<Result<Destination, QueryError>> {
        (endpoint.host_str() == Some("here.example")).then(|| self.ask(endpoint))
    }

    fn ask(&self, endpoint: &Url) -> Result<Destination, QueryError> {
        self.asked.lock().unwrap().push(endpoint.to_string());
        let name = endpoint.path().rsplit('/').next().unwrap_or_default();
        match (endpoint.host_str(), name) {
            (Some("node.example" | "here.example"), "gone") => {
                Err(QueryError::Unreachable("the receiver's server is gone".into()))
            }
            (Some("node.example" | "here.example"), name) => Ok(Destination {
                address: format!("example.node.{name}.token").into(),
                shared_secret: FAKE_SECRET,
            }),
            _ => Err(QueryError::NotAllowed("this is no place to ask")),
        }
    }
}

/// The end of a payment that has sent and delivered so much.
pub(crate) fn payment_end(result: Result<(), Failure>, sent: u64, delivered: u64) -> PaymentEnd {
    PaymentEnd {
        outcome: Outcome {
            result,
            amounts: Amounts {
                source: sent,
                fulfilled: sent,
                in_flight: 0,
                delivered,
            },
            asset: Some(crate::stream::sender::Asset {
                code: "XYZ".into(),
                scale: 2,
            }),
            quote: None,
            receipt: None,
            last_reject: None,
            packets: 3,
        },
        refused_here: None,
    }
}

pub(crate) fn show(change: &Change) -> String {
    match change {
        Change::Account(account) => format!("account:{}@{}", account.username, account.ilp_address),
        Change::CloseAccount(id) => format!("close:{id}"),
        Change::ReopenAccount(id) => format!("reopen:{id}"),
        Change::RemoveAccount(id) => format!("remove:{id}"),
        Change::SetRoute { prefix, next_hop } => format!("route:{prefix}={next_hop}"),
        Change::RemoveRoute { prefix } => format!("no-route:{prefix}"),
        Change::Routes(snapshot) => format!("routes:{}", snapshot.len()),
        Change::Rates(rates) => format!("rates:{}", rates.len()),
        Change::NodeAddress(address) => format!("node:{address}"),
        Change::SettlingAssets(assets) => {
            let mut numbers: Vec<u16> = assets.iter().map(|asset| asset.get()).collect();
            numbers.sort_unstable();
            format!("settling:{numbers:?}")
        }
        Change::SettlementEnded { account, returned } => format!("settled:{account}+{returned}"),
        Change::SettlementReceived { account, credited } => format!("received:{account}+{credited}"),
    }
}

/// A node with an empty book, and handles to look behind it.
pub(crate) struct Node {
    pub(crate) control: Arc<Control>,
    pub(crate) book: Arc<FakeBook>,
    pub(crate) shards: Arc<FakeShards>,
}

impl Node {
    pub(crate) fn new(node_address: &str) -> Self {
        Self::start(node_address, Arc::new(FakeBook::default()))
    }

    /// A node on a book that was there before.
    pub(crate) fn start(node_address: &str, book: Arc<FakeBook>) -> Self {
        let shards = Arc::new(FakeShards::default());
        let read_back = book.read_back();
        let control = Control::start(node_address.into(), read_back, book.clone(), shards.clone()).unwrap();
        control.set_readiness(Readiness::Ready);
        Self {
            control: Arc::new(control),
            book,
            shards,
        }
    }

    /// A neighbour has told a route.
    pub(crate) fn learn(&self, prefix: &str, username: &str, hops: u8) {
        let mut state = self.control.write();
        let neighbour = Arc::clone(state.account(username).unwrap());
        state.routes.apply([Step::Learn {
            prefix: prefix.into(),
            account: neighbour.id,
            relation: neighbour.routing_relation,
            hops,
        }]);
    }

    /// The link of an account is up or down.
    pub(crate) fn set_link(&self, username: &str, up: bool) {
        let mut state = self.control.write();
        let account = Arc::clone(state.account(username).unwrap());
        let claims = State::claims_of(&account).filter_map(|step| match step {
            Step::Claim { prefix, .. } => Some(prefix),
            _ => None,
        });
        state.routes.set_link(account.id, up, claims);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ildcp;
    use crate::wire::timestamp::Timestamp;
    use std::sync::mpsc::channel;

    #[test]
    fn neighbours_answer_as_scripted_and_when() {
        let shards = FakeShards::default();
        let mut question = Vec::new();
        ildcp::encode_question(&mut question, Timestamp::default());
        let (sender, answers) = channel();
        let ask = |id: u32| {
            let sender = sender.clone();
            let done = Box::new(move |reply| sender.send((id, reply)).unwrap());
            shards.ask(AccountId::new(id), question.clone(), done);
        };
        ask(1);
        assert_eq!(answers.recv().unwrap(), (1, None), "nobody is there");
        let later = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&later);
        shards.set_neighbour(move |account, prepare, done| match account.get() {
            2 => kept.lock().unwrap().push(done),
            _ => done(Some(prepare.to_vec())),
        });
        ask(2);
        ask(3);
        assert_eq!(answers.recv().unwrap(), (3, Some(question.clone())));
        later.lock().unwrap().pop().unwrap()(Some(Vec::new()));
        assert_eq!(answers.recv().unwrap(), (2, Some(Vec::new())));
        let asked = [1, 2, 3].map(|id| (AccountId::new(id), question.clone()));
        assert_eq!(shards.take_asked(), asked);
        assert!(shards.take_asked().is_empty());
    }
}
