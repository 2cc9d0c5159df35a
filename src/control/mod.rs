//! The cold half of the node: accounts, routes and rates as they stand. A change is validated, made durable, then
//! published to all shards in one order, and only then answered.
//!
//! Owns the configuration between the HTTP API above and the store and the shards below. [`state`] is what stands,
//! [`edit`] what a caller wants to be different; [`accounts`], [`routes`], [`rates`], [`engines`] and [`address`] make the
//! changes, [`publish`] brings routes to the shards, [`list`] finds accounts, [`explain`] says where a packet would go,
//! [`payments`] has payments made and remembers them, [`settlements`] has engines settle, [`neighbours`] speaks with other
//! nodes.
//! Leaves HTTP and JSON to `api`, the record on disk to `store`, and the money to the shards; of balances it only asks.
//!
//! Always: changes happen one at a time; what readers see is durable; a change that was refused has changed nothing.
//! The lock that readers take is never held while waiting for the disk or for a shard.

pub mod accounts;
pub mod address;
pub mod edit;
pub mod engines;
pub mod explain;
pub mod list;
pub mod neighbours;
pub mod payments;
mod publish;
pub mod rates;
pub mod routes;
pub mod settlements;
mod state;

#[cfg(test)]
pub(crate) mod fake;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::ledger::account::{Account, AccountId, RoutingRelation};
use crate::ledger::audit::Audit;
use crate::ledger::{PaymentNumber, SettlementState, Standing};
use crate::routing::table::Step;
use crate::shard::clock;
use crate::shard::control::{AccountState, Change, Shards};
use crate::store::{Applied, Book, HeardRoutes, Mutation, Reader, StoreError, WriterHandle};

pub use crate::store::BackupError;
use neighbours::{Listeners, News};
use publish::Published;
use rates::desk::Desk;
use state::State;

/// The book, as the cold half sees it. Every call may wait for the disk.
pub trait Bookkeeper: Send + Sync {
    /// Makes the mutations durable, all or none.
    fn apply(&self, mutations: Vec<Mutation>) -> Result<Applied, StoreError>;

    /// Adds up what is on disk.
    fn audit(&self) -> Result<Audit, StoreError>;

    /// Copies what is on disk into a new folder, and adds up the copy.
    fn backup(&self, directory: &Path) -> Result<Audit, BackupError>;

    /// What is durable of an account, in units of its asset.
    fn standing(&self, id: AccountId) -> Option<Standing>;

    /// The durable balance of an account; positive is what we owe the holder.
    fn booked(&self, id: AccountId) -> Option<i128> {
        self.standing(id).map(|standing| standing.booked)
    }

    /// Reads what is on disk, on the caller's thread.
    fn reader(&self) -> Result<Arc<dyn Reader>, StoreError>;

    /// Why nothing can be committed any more, if so.
    fn failure(&self) -> Option<String>;
}

impl Bookkeeper for WriterHandle {
    fn apply(&self, mutations: Vec<Mutation>) -> Result<Applied, StoreError> {
        self.apply(mutations)
    }

    fn audit(&self) -> Result<Audit, StoreError> {
        self.audit()
    }

    fn backup(&self, directory: &Path) -> Result<Audit, BackupError> {
        self.backup(directory)
    }

    fn standing(&self, id: AccountId) -> Option<Standing> {
        self.standing(id)
    }

    fn reader(&self) -> Result<Arc<dyn Reader>, StoreError> {
        self.reader()
    }

    fn failure(&self) -> Option<String> {
        self.failure()
    }
}

/// Why a change was refused or a question has no answer. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    #[error("there is no account {username}")]
    AccountNotFound { username: Box<str> },
    #[error("there is no fixed route for this prefix")]
    RouteNotFound,
    #[error("there is no rate of {code}")]
    RateNotFound { code: Box<str> },
    #[error("the rate of {code} is not held")]
    RateNotHeld { code: Box<str> },
    #[error("the rate that is held of {code} is {held} by now")]
    RateMoved { code: Box<str>, held: String },
    #[error("the user name {username} is taken")]
    DuplicateUsername { username: Box<str> },
    #[error("there is a parent already, and a node has one")]
    SecondParent,
    #[error("the address {address} belongs to another account")]
    DuplicateAddress { address: Arc<str> },
    /// The rule goes with the field `ilp_address`.
    #[error("ilp_address {rule}")]
    InvalidAddress { rule: String },
    #[error("the asset changes only while nothing is owed and nothing is in flight")]
    AssetInUse,
    #[error("the balance is {balance}; settle it first, or delete with ?force=true to write it off")]
    BalanceNotZero { balance: i128 },
    #[error("of the balance {prepaid} are prepaid: use them, or delete with ?force=true to write them off")]
    PrepaidNotZero { prepaid: i128 },
    #[error("packets of this account are still in flight, or it is being deleted")]
    PacketsInFlight,
    #[error("a settlement of the account is open: wait until it is confirmed, or cancel it")]
    SettlementPending,
    #[error("the account has no settlement with this id")]
    SettlementNotFound,
    #[error("the settlement has ended: it is {}", state.as_str())]
    SettlementEnded { state: SettlementState },
    #[error(
        "an engine may have accepted the settlement: wait, or cancel with ?force=true if you know that it was not paid"
    )]
    SettlementSent,
    #[error("an engine is being asked to make the settlement: see in a few seconds whether its ledger has the payment")]
    SettlementCalled,
    #[error(
        "an engine may have accepted the settlement and forgotten its key: see whether its ledger has the payment, then \
         confirm, or retry with ?force=true if you know that it was not paid"
    )]
    SettlementKeyForgotten,
    #[error("surely no engine has accepted the settlement: there is nothing to confirm")]
    SettlementNotSent,
    #[error("no more is owed than the account settles to")]
    NothingToSettle,
    #[error("the account has no settle_to")]
    NoSettlementRule,
    #[error("neither the account nor its asset has a settlement engine")]
    NoSettlementEngine,
    #[error("there is no account with this id that a settlement engine serves")]
    NoAccountToSettle,
    #[error("this Idempotency-Key came with another settlement before; nothing was credited")]
    SettlementKeyConflict,
    #[error("the amount is more than {} units of the account; nothing was credited", u64::MAX)]
    SettlementTooLarge,
    #[error("the node has {} assets, which is all it can have", 1 << 16)]
    TooManyAssets,
    #[error("the node has given all account numbers it can give")]
    TooManyAccounts,
    #[error("the node would have more than {max} settlement engines")]
    TooManyEngines { max: usize },
    #[error("the node would have more than {max} fixed routes")]
    TooManyRoutes { max: usize },
    /// Starting, stopping, or unable to commit.
    #[error("{reason}")]
    NotReady { reason: String },
    /// What the store says about a change that should have fitted: our own mistake, but nothing is lost by refusing.
    #[error("{0}")]
    Internal(String),
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BalanceNotZero { balance } => Self::BalanceNotZero { balance },
            StoreError::PrepaidNotZero { prepaid } => Self::PrepaidNotZero { prepaid },
            StoreError::PaymentOpen => Self::PacketsInFlight,
            StoreError::SettlementOpen => Self::SettlementPending,
            StoreError::Failed(_) | StoreError::Stopped | StoreError::TooManyEngines { .. } => Self::NotReady {
                reason: error.to_string(),
            },
            other => Self::Internal(other.to_string()),
        }
    }
}

/// Why what was read back cannot be run.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    #[error("the stored rate of {code} cannot be read: restore the store from a backup")]
    Rate { code: Box<str> },
    #[error("the stored route {prefix:?} leads to an account that does not exist: restore the store from a backup")]
    Route { prefix: Arc<str> },
    #[error("under ilp_address {node_address} the account {username} gets no address: {reason}")]
    Address {
        node_address: Arc<str>,
        username: Box<str>,
        reason: ControlError,
    },
    #[error("the stored payment {number} cannot be read: restore the store from a backup")]
    Payment { number: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Something a caller should know about a change that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The field it is about, as the API names it.
    pub field: Box<str>,
    pub message: String,
}

/// Whether the node serves. A change is refused while it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Readiness {
    Starting,
    Ready,
    Stopping,
}

/// What only the one who makes a change sees.
struct Changes {
    next_account_id: u32,
    /// Accounts that are being deleted: nobody else may change them.
    closing: HashSet<AccountId>,
}

/// What a start makes of a book.
struct Restored {
    state: State,
    /// What it takes to make the book agree.
    mutations: Vec<Mutation>,
    /// What neighbours had told and is still of use.
    heard: Vec<HeardRoutes>,
}

/// The configuration and everything that may be done to it.
///
/// Reading methods answer at once. Changing ones ([`Control::create_account`] and its like) wait for their turn, for
/// the disk and for all shards.
pub struct Control {
    state: RwLock<State>,
    /// Held from the validation of a change until all shards have it, so that all see changes in one order.
    changes: Mutex<Changes>,
    published: Published,
    bookkeeper: Arc<dyn Bookkeeper>,
    shards: Arc<dyn Shards>,
    readiness: AtomicU8,
    /// The highest number that a payment had at start.
    last_payment: Option<PaymentNumber>,
    /// The node's address while no parent gives it another.
    configured_address: Arc<str>,
    /// What neighbours had told before the last stop, until [`neighbours`] takes it.
    heard: Mutex<Vec<HeardRoutes>>,
    /// What neighbours tell.
    listeners: Listeners,
    /// What the thread of neighbours has to know.
    neighbours: News,
    /// What is to be said to settlement engines.
    settling: settlements::Desk,
}

impl Control {
    /// Takes over what was read back at start. If the node's address is another one than last time, every generated
    /// address follows it, and what neighbours told is forgotten; payments that were open are ended; all in one commit.
    /// Talks to no shard: see [`Self::initial_changes`]. With a parent, what that one called us last is our address.
    pub fn start(
        configured_address: Arc<str>,
        mut book: Book,
        bookkeeper: Arc<dyn Bookkeeper>,
        shards: Arc<dyn Shards>,
    ) -> Result<Self, StartError> {
        let next_account_id = book.next_account_id;
        let last_payment = book.last_payment;
        let settling = settlements::Desk::new(&mut book);
        let Restored {
            state,
            mutations,
            heard,
        } = Self::stand(&configured_address, book)?;
        if !mutations.is_empty() {
            bookkeeper.apply(mutations)?;
        }
        Ok(Self {
            state: RwLock::new(state),
            changes: Mutex::new(Changes {
                next_account_id,
                closing: HashSet::new(),
            }),
            published: Published::default(),
            bookkeeper,
            shards,
            readiness: AtomicU8::new(Readiness::Starting as u8),
            last_payment,
            configured_address,
            heard: Mutex::new(heard),
            listeners: Listeners::default(),
            neighbours: News::default(),
            settling,
        })
    }

    /// Whether a start on this book would get past [`Self::start`].
    pub fn check_start(configured_address: &Arc<str>, book: Book) -> Result<(), StartError> {
        Self::stand(configured_address, book).map(drop)
    }

    /// What stands at start, and the changes of the book that it takes to make it so.
    fn stand(configured_address: &Arc<str>, book: Book) -> Result<Restored, StartError> {
        let node_address: Arc<str> = address::address_at_start(configured_address, &book).into();
        let rate_desk = Desk::restore(&book.rates).map_err(|code| StartError::Rate { code })?;

        let renamed = book.node_address.as_deref() != Some(&*node_address);
        let mut mutations = Vec::new();
        if renamed {
            mutations.push(Mutation::PutNodeAddress((*node_address).into()));
        }
        let mut heard = book.heard;
        if renamed {
            // It was believed of another node.
            let accounts = heard.drain(..).map(|heard| heard.account);
            mutations.extend(accounts.map(|account| Mutation::ForgetRoutes { account }));
        }
        let now_ms = clock::wall().as_millis();
        for open in &book.open_payments {
            let number = open.number.get();
            mutations.push(payments::interrupt(open, now_ms).ok_or(StartError::Payment { number })?);
        }
        let mut state = State::new(Arc::clone(&node_address), book.assets, rate_desk);
        let has_parent = |account: &Account| account.routing_relation == RoutingRelation::Parent;
        if book.accounts.iter().any(|(account, _)| has_parent(account)) {
            state.assigned_address = book.assigned_address.as_deref().map(Arc::from);
        } else if book.assigned_address.is_some() {
            mutations.push(Mutation::PutAssignedAddress(None));
        }
        let engines = book.engines.iter().map(|(code, url)| (code.clone(), (**url).into()));
        state.engines = Arc::new(engines.collect());
        let mut accounts: Vec<_> = book.accounts.into_iter().map(|(account, _)| account).collect();
        for account in accounts
            .iter_mut()
            .filter(|account| renamed && account.ilp_address_generated)
        {
            *account = rename(account, &node_address)?;
            mutations.push(Mutation::PutAccount(Arc::clone(account)));
        }
        for account in &accounts {
            state.begin_link(account);
            state.routes.apply(State::claims_of(account));
        }
        state.put_first_accounts(accounts);
        for (prefix, next_hop) in book.static_routes {
            if state.directory.get(next_hop).is_none() {
                return Err(StartError::Route { prefix });
            }
            state.routes.apply([Step::Fix { prefix, next_hop }]);
        }
        state.routes.shrink();
        Ok(Restored {
            state,
            mutations,
            heard,
        })
    }

    /// What neighbours had told before the last stop, once.
    fn take_heard(&self) -> Vec<HeardRoutes> {
        std::mem::take(&mut *self.heard.lock().expect("nobody panics while holding it"))
    }

    /// Everything that stands, as changes for shards that know nothing yet: accounts before the routes to them.
    pub fn initial_changes(&self) -> Vec<Change> {
        let snapshot = self.first_snapshot();
        let state = self.read();
        let mut changes = Vec::with_capacity(4 + state.directory.len());
        changes.push(Change::NodeAddress(Arc::clone(&state.node_address)));
        changes.push(Change::Rates(Arc::clone(&state.rates)));
        let settling = state.settling_assets();
        if !settling.is_empty() {
            changes.push(Change::SettlingAssets(Arc::new(settling)));
        }
        changes.extend(
            state
                .directory
                .iter()
                .map(|account| Change::Account(Arc::clone(account))),
        );
        changes.push(Change::Routes(snapshot));
        changes
    }

    /// The connector says when the node begins and ceases to serve.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.store(readiness as u8, Ordering::Relaxed);
    }

    /// Why the node does not serve; `None` if it does.
    pub fn not_ready(&self) -> Option<String> {
        let readiness = self.readiness.load(Ordering::Relaxed);
        if readiness == Readiness::Starting as u8 {
            Some("the node is starting".to_owned())
        } else if readiness == Readiness::Stopping as u8 {
            Some("the node is stopping".to_owned())
        } else {
            self.bookkeeper
                .failure()
                .map(|reason| format!("the node cannot commit: {reason}"))
        }
    }

    pub fn node_address(&self) -> Arc<str> {
        Arc::clone(&self.read().node_address)
    }

    /// The proof that the book adds up, read from disk after everything handed over so far.
    pub fn audit(&self) -> Result<Audit, ControlError> {
        Ok(self.bookkeeper.audit()?)
    }

    /// Copies the book, with everything answered so far, into a new folder. Gives the proof of the copy.
    pub fn backup(&self, directory: &Path) -> Result<Audit, BackupError> {
        self.bookkeeper.backup(directory)
    }

    /// The account as its shard sees it. While a shard does not know it yet, what the book says.
    pub fn account_state(&self, account: &Account) -> AccountState {
        self.shards.account_state(account.id).unwrap_or_else(|| AccountState {
            booked: self.bookkeeper.booked(account.id).unwrap_or(0),
            ..AccountState::default()
        })
    }

    /// Whether each of these accounts has a BTP connection that is up.
    pub fn btp_connected(&self, ids: &[AccountId]) -> Vec<bool> {
        self.shards.btp_connected(ids)
    }

    /// Begins a change: from here on, until the guard goes, nobody else makes one.
    fn begin(&self) -> Result<MutexGuard<'_, Changes>, ControlError> {
        let changes = self.changes.lock().expect("no change panics halfway");
        match self.not_ready() {
            Some(reason) => Err(ControlError::NotReady { reason }),
            None => Ok(changes),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no change panics halfway")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no change panics halfway")
    }
}

/// The account under a new address of the node.
fn rename(account: &Account, node_address: &Arc<str>) -> Result<Arc<Account>, StartError> {
    match state::renamed_address(node_address, &account.username) {
        Ok(ilp_address) => Ok(Arc::new(Account {
            ilp_address,
            ..account.clone()
        })),
        Err(reason) => Err(StartError::Address {
            node_address: Arc::clone(node_address),
            username: account.username.clone(),
            reason,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::edit::{AccountEdit, Edit};
    use super::fake::FakeShards;
    use super::*;
    use crate::ledger::Transfer;
    use crate::store::{Durability, Fault, MemoryStore, TransferSender, Writer, recover};
    use crate::wire::timestamp::Timestamp;
    use std::time::Duration;

    /// A node on the real writer over a disk in memory.
    struct Node {
        control: Control,
        writer: WriterHandle,
        shard: TransferSender,
    }

    impl Node {
        fn start(disk: &MemoryStore) -> Self {
            let mut store = disk.clone();
            let book = recover(&mut store).expect("the book adds up");
            let flush_interval = Duration::from_millis(5);
            let (settlements, _) = crossbeam::channel::unbounded();
            let (writer, mut shards) = Writer::start(
                Box::new(store),
                &book,
                1,
                Durability::Commit,
                flush_interval,
                settlements,
            )
            .unwrap();
            let shard = shards.remove(0);
            let control = Control::start(
                "example.hub".into(),
                book,
                Arc::new(writer.clone()),
                Arc::new(FakeShards::default()),
            );
            let control = control.unwrap();
            control.set_readiness(Readiness::Ready);
            Self { control, writer, shard }
        }

        fn create(&self, username: &str, asset_code: &str) -> Result<AccountId, ControlError> {
            let edit = AccountEdit {
                asset_code: Some(asset_code.into()),
                asset_scale: Some(2),
                http_incoming_token: Edit::Set("token".into()),
                ..AccountEdit::default()
            };
            let outcome = self.control.create_account(Timestamp::default(), username, edit);
            outcome.map(|outcome| outcome.account.id)
        }

        /// A packet, durable when this returns.
        fn transfer(&mut self, from: AccountId, to: AccountId, incoming_amount: u64, outgoing_amount: u64) {
            self.shard.push(Transfer {
                from,
                to,
                incoming_amount,
                outgoing_amount,
                payment: None,
            });
            self.shard.wake();
            assert!(self.control.audit().unwrap().adds_up());
        }

        /// Everything that readers see.
        fn picture(&self) -> String {
            let state = self.control.read();
            let accounts: Vec<_> = state.directory.iter().collect();
            let routes: Vec<_> = state.routes.winners().collect();
            format!("{accounts:?} {routes:?} {:?} {:?}", state.rates, state.assets)
        }
    }

    #[test]
    fn on_the_real_writer_everything_is_kept_and_adds_up() {
        let disk = MemoryStore::default();
        let mut node = Node::start(&disk);
        let alice = node.create("alice", "ABC").unwrap();
        let bob = node.create("bob", "XYZ").unwrap();
        node.control.set_static_route("g".into(), "bob").unwrap();
        node.transfer(alice, bob, 100, 40);

        let new_asset = || AccountEdit {
            asset_scale: Some(3),
            ..AccountEdit::default()
        };
        assert_eq!(
            node.control.update_account("alice", new_asset()),
            Err(ControlError::AssetInUse)
        );
        let refused = node.control.delete_account("bob", false);
        assert_eq!(refused, Err(ControlError::BalanceNotZero { balance: 40 }));

        node.transfer(bob, alice, 40, 100);
        let changed = node.control.update_account("alice", new_asset()).unwrap();
        assert_eq!(changed.account.asset.to_string(), "ABC@3");
        node.transfer(alice, bob, 7, 5);
        let deleted = node.control.delete_account("alice", true).unwrap();
        assert_eq!(deleted.written_off, -7);
        let carol = node.create("carol", "ABC").unwrap();
        assert_eq!(carol.get(), 2);

        let before = node.picture();
        node.writer.stop();
        let again = Node::start(&disk);
        assert_eq!(again.picture(), before);
        assert_eq!(
            again.control.find_account("bob").map(|bob| again.writer.booked(bob.id)),
            Some(Some(5))
        );
        assert_eq!(again.create("dave", "ABC").unwrap().get(), 3);
        assert!(again.control.audit().unwrap().adds_up());
    }

    #[test]
    fn a_change_that_did_not_become_durable_is_not_seen() {
        for fault in [Fault::Lost, Fault::KeptUnseen] {
            let disk = MemoryStore::default();
            let node = Node::start(&disk);
            node.create("alice", "ABC").unwrap();
            let before = node.picture();
            disk.crash_after(0, fault);
            assert!(matches!(node.create("bob", "ABC"), Err(ControlError::NotReady { .. })));
            assert_eq!(node.picture(), before);
            assert!(node.control.not_ready().is_some());
            assert!(matches!(
                node.create("carol", "ABC"),
                Err(ControlError::NotReady { .. })
            ));
            // The next start decides: what was kept is there whole.
            let again = Node::start(&disk.restart());
            assert_eq!(again.control.account_count(), if fault == Fault::Lost { 1 } else { 2 });
        }
    }
}
