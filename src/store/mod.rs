//! Store: what is kept when the process ends, and when it counts as kept.
//!
//! Owns the book as it is on disk ([`Book`]), what may change it ([`Mutation`], and the transfers that [`writer`]
//! folds), and the rule that a change is durable before anybody is told. [`Store`] is the door to the disk: [`rocks`]
//! is its default, [`MemoryStore`] the one that tests can crash; [`backup`] copies what is kept. Leaves the rules of money
//! to [`crate::ledger`] and the choice of what is acknowledged when to the shards.
//!
//! Always: one batch holds both legs of every transfer in it, so at every instant what is on disk adds up: per asset,
//! the sum of all balances and the connector's position is zero. [`recovery`] proves it at every start.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ledger::audit::Audit;
use crate::ledger::settlement::Settlement;
use crate::ledger::{Account, AccountId, Asset, AssetId, PaymentNumber, Remainder, SettlementNumber, Standing};
use crate::wire::ccp::TableId;

use settling::{ChangedEngineAccounts, EngineAccount, EngineAccounts, RememberedSettlements};

pub mod backup;
mod fold;
pub(crate) mod heard;
mod keys_used;
pub mod recovery;
pub mod rocks;
mod schema;
mod secrets;
mod settling;
pub mod writer;

pub use backup::BackupError;
pub use heard::{HeardRoutes, LearnedRoute};
pub use recovery::recover;
pub use rocks::RocksStore;
pub use schema::FORMAT_VERSION;
pub use settling::{
    ENGINE_URL_BYTES_MAX, ENGINES_OF_ACCOUNT_MAX, EngineTask, OpenEngineTask, SETTLEMENT_ANSWER_BYTES_MAX,
    SETTLEMENT_KEY_BYTES, SETTLEMENT_KEY_MS_MIN, SETTLEMENT_KEYS_MAX, SettlementAnswer, SettlementKey,
};
pub use writer::{Durability, Stats, TransferSender, Writer, WriterHandle};

/// Something in text for each of some assets, by the asset's code.
pub type Texts = Vec<(Box<str>, Box<str>)>;

/// What an operator changed. Those handed over together become durable together or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// A new asset: its number is the number of assets so far. A known one never changes.
    PutAsset(AssetId, Asset),
    /// A new account begins with a balance of zero and a number never used before. Of a known one the record is
    /// replaced and the balance kept; its asset changes only while the balance, what is prepaid of it and what its
    /// settlements left over are zero and no settlement is open.
    PutAccount(Arc<Account>),
    /// Refused while the balance or what is prepaid of it is not zero, unless `write_off`: then it joins our own position
    /// in its asset. Refused in any case while a settlement is open. What incoming settlements left over, less than a
    /// unit, goes with the account, and so do its ended settlements and the answers to incoming ones.
    /// Static routes to the account are removed by mutations of their own, handed over together with this one.
    DeleteAccount {
        id: AccountId,
        write_off: bool,
    },
    /// Packets for `prefix` go to `next_hop`; replaces the route the prefix had.
    PutStaticRoute {
        prefix: Arc<str>,
        next_hop: AccountId,
    },
    RemoveStaticRoute {
        prefix: Arc<str>,
    },
    /// Code of the asset and decimal text of its rate, with what `control` notes behind it. Replaces all rates.
    PutRates(Texts),
    /// Code of the asset and URL of the settlement engine that its accounts use. Replaces all engines.
    PutEngines(Texts),
    PutNodeAddress(Box<str>),
    /// What our parent calls us, or that nobody calls us anything any more.
    PutAssignedAddress(Option<Box<str>>),
    /// One update of a neighbour: up to which epoch of which of its tables we have heard it now, what it told and what
    /// it withdrew. A prefix that is both removed and set is set; one that is removed and was not there is no mistake.
    /// Another table id than before forgets nothing by itself, see [`Self::ForgetRoutes`].
    LearnRoutes {
        account: AccountId,
        table_id: TableId,
        epoch: u32,
        set: Vec<LearnedRoute>,
        removed: Vec<Arc<str>>,
    },
    /// All that the neighbour told, and how far we had heard it. Nothing, if it told nothing. An account that is deleted
    /// takes what it told along by itself.
    ForgetRoutes {
        account: AccountId,
    },
    /// A payment of one of our accounts begins. `record` is what is to be known of it, for whoever reads it back; `key`
    /// says who asked for it, so that it can be found by that, see [`Reader::payment_by_key`].
    BeginPayment {
        account: AccountId,
        number: PaymentNumber,
        record: Box<[u8]>,
        key: Option<[u8; PAYMENT_KEY_BYTES]>,
    },
    /// An open payment has ended: nothing more will be sent for it. Replaces its record.
    EndPayment {
        account: AccountId,
        number: PaymentNumber,
        record: Box<[u8]>,
    },
    /// The account's payments before this number are forgotten. None of them is open.
    ForgetPayments {
        account: AccountId,
        before: PaymentNumber,
    },
    /// An open settlement was tried, or has failed or was confirmed: replaces its record. Number, id, account, amount and
    /// time of creation stay.
    UpdateSettlement(Settlement),
    /// The amount of an open settlement returns to the balance of its account. Refused for one that an engine may have,
    /// because it may be paid already: who knows better marks it as failed and sent to nobody first, in the same call.
    CancelSettlement {
        number: SettlementNumber,
        at_ms: u64,
    },
    /// An engine has brought money: `credited` joins the balance of the account, by the rule of
    /// [`Balance::credit_settlement`](crate::ledger::Balance::credit_settlement). `remainder` is what is left over then,
    /// computed from the one that is kept now ([`Remainder::credit`]); if that is another by now, nothing is changed. The
    /// answer is found under `key` from then on, with `input`, a digest of what was asked; a key that is known is
    /// refused. One per account among mutations that are handed over together.
    ReceiveSettlement {
        account: AccountId,
        credited: u64,
        remainder: Remainder,
        key: SettlementKey,
        input: [u8; SETTLEMENT_KEY_BYTES],
        status: u16,
        answer: Box<[u8]>,
        at_ms: u64,
    },
    /// The engine has asked again under this key and got the same answer: it is kept for longer. Nothing if it is not
    /// known any more.
    UseSettlementKey {
        account: AccountId,
        key: SettlementKey,
        at_ms: u64,
    },
    /// Answers to incoming settlements whose last use was before this time are forgotten, in milliseconds since 1970: as
    /// many as one step may take, beginning with the account `from`. See [`Applied::forget_keys_from`].
    ForgetSettlementKeys {
        before_ms: u64,
        from: AccountId,
    },
    /// The account's settlements before this number are forgotten. None of them is open.
    ForgetSettlements {
        account: AccountId,
        before: SettlementNumber,
    },
    /// The engine at this URL is to be told that the account, known to it as `uuid`, exists or does no more. Takes the
    /// place of another task for the same engine and account. Only the task to delete may be for an account that is no
    /// more.
    AnnounceAccount {
        account: AccountId,
        engine: Box<str>,
        uuid: [u8; 16],
        task: EngineTask,
    },
    /// The engine has acknowledged it. A task that has taken its place stays open. Nothing if there is none.
    AnnouncedAccount {
        account: AccountId,
        engine: Box<str>,
        task: EngineTask,
    },
}

/// Bytes of what a payment may be found by: a digest.
pub const PAYMENT_KEY_BYTES: usize = 32;

/// A payment that has begun and not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenPayment {
    pub account: AccountId,
    pub number: PaymentNumber,
    /// What its fulfilled packets have taken from the account, in units of its asset.
    pub sent: u64,
    /// As it was when the payment began.
    pub record: Box<[u8]>,
}

/// A payment that is remembered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredPayment {
    pub number: PaymentNumber,
    pub record: Box<[u8]>,
}

/// What became of the mutations handed over together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The sum of the balances that deletions moved to our own positions. Positive: we owed it, and keep it.
    pub written_off: i128,
    /// There may be more to forget from this account on, by the last [`Mutation::ForgetSettlementKeys`] among them.
    pub forget_keys_from: Option<AccountId>,
}

/// Why nothing was changed, or why nothing can be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The account cannot be deleted or change its asset. The caller may settle first, or write off.
    #[error("the balance is {balance}, not zero")]
    BalanceNotZero { balance: i128 },
    /// The account cannot be deleted: it is paying.
    #[error("a payment of the account is open")]
    PaymentOpen,
    /// The account cannot be deleted or change its asset: money of it is on its way to an engine.
    #[error("a settlement of the account is open: cancel it, or wait until it is confirmed")]
    SettlementOpen,
    /// The account cannot be deleted or change its asset, although the balance is zero: part of what would be owed was
    /// brought by an engine.
    #[error("{prepaid} are prepaid, not zero")]
    PrepaidNotZero { prepaid: i128 },
    /// The account cannot change its asset.
    #[error("incoming settlements have left over less than a unit, not zero")]
    RemainderNotZero,
    /// The settlement is not open: it has ended, is forgotten, or never was.
    #[error("settlement {number} is not open")]
    SettlementNotOpen { number: SettlementNumber },
    /// The settlement cannot be cancelled.
    #[error("settlement {number} was sent, and nobody knows whether the engine pays it")]
    SettlementSent { number: SettlementNumber },
    /// An incoming settlement came under this key before: its answer is to be given again.
    #[error("an incoming settlement came under this key before")]
    SettlementKeyKnown,
    /// Another incoming settlement of the account came first: what this one leaves over is to be computed anew.
    #[error("another incoming settlement of the account came first")]
    RemainderMoved,
    /// All answers that may be kept for the account are younger than a day. The engine may try again later.
    #[error("{max} incoming settlements of the account came within a day")]
    TooManySettlementKeys { max: usize },
    /// Too many engines wait to be told that they no longer serve the account.
    #[error("{max} engines know the account or are to be told of it: wait until those that are out are back")]
    TooManyEngines { max: usize },
    /// As many payments are open as may be at one time.
    #[error("{max} payments are being made already")]
    TooManyPayments { max: usize },
    /// The mutations do not fit the book: our own mistake, found before anything was changed.
    #[error("the change does not fit the book: {0}")]
    Inconsistent(&'static str),
    /// The node can no longer commit, and stays so until it is started again.
    #[error("the store has failed: {0}; see to the disk, then start the node again")]
    Failed(String),
    /// What is stored could not be read. Nothing was changed.
    #[error("the store cannot be read: {0}")]
    Unreadable(String),
    /// The writer was stopped in an orderly way.
    #[error("the store is closed")]
    Stopped,
}

/// Why a store is not opened. Nothing on disk is changed by an attempt that ends here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store was written under another `secret_seed`: start with that one, or choose another `data_dir`")]
    WrongSeed,
    #[error(
        "the store has format {found} and this version of the program reads format {expected}: start the version \
         that wrote it, or choose another `data_dir`"
    )]
    UnknownFormat { found: u32, expected: u32 },
    #[error("the book does not add up{}: restore the store from a backup", Differences(.0))]
    DoesNotAddUp(Audit),
    #[error("another process has the store open: stop it first, or choose another `data_dir`")]
    Locked,
    #[error("the store is damaged ({0}): restore it from a backup")]
    Corrupt(String),
    /// Of a reader beside the process that writes.
    #[error("the store is written faster than it can be read from outside: try again, or ask the node itself")]
    Unsettled,
    #[error("the store cannot be opened ({0}): see to the permissions and the free space of `data_dir`")]
    Unavailable(String),
}

/// Names every asset that does not add up, and by how much.
struct Differences<'a>(&'a Audit);

impl fmt::Display for Differences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = " (";
        for line in self.0.assets.iter().filter(|line| !line.adds_up()) {
            let difference = line.balances + line.position;
            let (balances, position) = (line.balances, line.position);
            write!(
                f,
                "{before}{}: the balances are {balances}, our position {position}, the difference {difference}",
                line.asset
            )?;
            let (pending, carried) = (line.pending, line.pending_carried);
            if pending != carried {
                write!(f, ", open settlements {pending} of {carried}")?;
            }
            before = "; ";
        }
        f.write_str(if before == "; " { ")" } else { "" })
    }
}

/// Everything that is kept, as read back at start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Book {
    /// By [`AssetId`].
    pub assets: Vec<Asset>,
    /// By ascending [`AccountId`].
    pub accounts: Vec<(Arc<Account>, Standing)>,
    /// By ascending prefix.
    pub static_routes: Vec<(Arc<str>, AccountId)>,
    /// By ascending code.
    pub rates: Texts,
    /// By ascending code.
    pub engines: Texts,
    pub node_address: Option<Box<str>>,
    /// What our parent calls us.
    pub assigned_address: Option<Box<str>>,
    /// By ascending account.
    pub heard: Vec<HeardRoutes>,
    /// By ascending number. Of those that have ended nothing is read back at start.
    pub open_payments: Vec<OpenPayment>,
    /// The highest number that was ever given to a payment.
    pub last_payment: Option<PaymentNumber>,
    /// By ascending number; at most one of an account. Of those that have ended nothing is read back at start.
    pub open_settlements: Vec<Settlement>,
    /// The highest number that was ever given to a settlement.
    pub last_settlement: Option<SettlementNumber>,
    /// Of every account that ever had an incoming settlement, by ascending account.
    pub remainders: Vec<(AccountId, Remainder)>,
    /// By ascending account and engine.
    pub engine_tasks: Vec<OpenEngineTask>,
    /// Which accounts which engines know, by ascending account and engine.
    pub announced: Vec<(AccountId, Box<str>)>,
    /// The number of the next account. Above every number ever given, also to accounts that are no more.
    pub next_account_id: u32,
    /// What we have gained (positive) or paid, by [`AssetId`].
    positions: Vec<i128>,
    /// What is on its way to engines, of each asset in which that is not zero: carried along with every settlement that
    /// begins or ends, not added up from them.
    pending: BTreeMap<AssetId, i128>,
    /// When each key of an incoming settlement was last used, in milliseconds since 1970.
    keys_used: BTreeMap<(AccountId, SettlementKey), u64>,
    /// The whole of `engine_tasks` and `announced`.
    engine_accounts: EngineAccounts,
}

impl Book {
    /// What incoming settlements of the account have left over.
    pub fn remainder(&self, account: AccountId) -> Remainder {
        match self.remainders.binary_search_by_key(&account, |(of, _)| *of) {
            Ok(at) => self.remainders[at].1.clone(),
            Err(_) => Remainder::default(),
        }
    }

    fn set_engine_accounts(&mut self, known: EngineAccounts) {
        let open = |((account, engine), of): (&(AccountId, Box<str>), &EngineAccount)| {
            Some(OpenEngineTask {
                account: *account,
                engine: engine.clone(),
                uuid: of.uuid,
                task: of.task?,
            })
        };
        self.engine_tasks = known.iter().filter_map(open).collect();
        let announced = known.iter().filter(|(_, of)| of.announced);
        self.announced = announced.map(|(key, _)| key.clone()).collect();
        self.engine_accounts = known;
    }

    /// What the connector has gained (positive) or paid (negative), by [`AssetId`].
    pub fn positions(&self) -> &[i128] {
        &self.positions
    }

    fn account_at(&self, id: AccountId) -> Result<usize, usize> {
        self.accounts.binary_search_by_key(&id, |(account, _)| account.id)
    }

    /// What a batch means. Linear in the number of accounts for each account that comes or goes: for small books.
    fn commit(&mut self, batch: &Batch) {
        for mutation in &batch.mutations {
            self.commit_mutation(mutation);
        }
        for (id, standing) in &batch.balances {
            let at = self.account_at(*id).expect("a balance belongs to an account");
            self.accounts[at].1 = *standing;
        }
        for settlement in &batch.settlements {
            let at = self
                .open_settlements
                .binary_search_by_key(&settlement.number, |open| open.number);
            match (at, settlement.state.is_open()) {
                (Ok(at), true) => self.open_settlements[at] = settlement.clone(),
                (Ok(at), false) => drop(self.open_settlements.remove(at)),
                (Err(at), true) => self.open_settlements.insert(at, settlement.clone()),
                (Err(_), false) => {}
            }
        }
        self.last_settlement = batch.last_settlement.or(self.last_settlement);
        if !batch.told.is_empty() {
            let mut known = std::mem::take(&mut self.engine_accounts);
            settling::update(&mut known, batch.told.clone());
            self.set_engine_accounts(known);
        }
        for (asset, pending) in &batch.pending {
            self.pending.insert(*asset, *pending);
        }
        self.pending.retain(|_, pending| *pending != 0);
        for (key, used_ms) in &batch.keys_used {
            match used_ms {
                Some(used_ms) => drop(self.keys_used.insert(*key, *used_ms)),
                None => drop(self.keys_used.remove(key)),
            }
        }
        for (asset, position) in &batch.positions {
            self.positions[asset.index()] = *position;
        }
        for (number, _, sent) in &batch.payments {
            let open = self.open_payments.iter_mut().find(|open| open.number == *number);
            open.expect("only an open payment sends").sent = *sent;
        }
        self.next_account_id = batch.next_account_id;
    }

    fn commit_mutation(&mut self, mutation: &Mutation) {
        heard::commit(&mut self.heard, mutation);
        match mutation {
            Mutation::PutAsset(id, asset) => {
                if id.index() == self.assets.len() {
                    self.assets.push(asset.clone());
                    self.positions.push(0);
                }
            }
            Mutation::PutAccount(account) => match self.account_at(account.id) {
                Ok(at) => self.accounts[at].0 = account.clone(),
                Err(at) => self.accounts.insert(at, (account.clone(), Standing::default())),
            },
            Mutation::DeleteAccount { id, write_off: _ } => {
                let at = self.account_at(*id).expect("an account that is deleted exists");
                self.accounts.remove(at);
                self.remainders.retain(|(account, _)| account != id);
                self.keys_used.retain(|(account, _), _| account != id);
            }
            Mutation::PutStaticRoute { prefix, next_hop } => {
                match self.static_routes.binary_search_by(|(known, _)| known.cmp(prefix)) {
                    Ok(at) => self.static_routes[at].1 = *next_hop,
                    Err(at) => self.static_routes.insert(at, (prefix.clone(), *next_hop)),
                }
            }
            Mutation::RemoveStaticRoute { prefix } => {
                self.static_routes.retain(|(known, _)| known != prefix);
            }
            Mutation::PutRates(rates) => {
                self.rates.clone_from(rates);
                self.rates.sort();
            }
            Mutation::PutEngines(engines) => {
                self.engines.clone_from(engines);
                self.engines.sort();
            }
            Mutation::PutNodeAddress(address) => self.node_address = Some(address.clone()),
            Mutation::PutAssignedAddress(address) => self.assigned_address.clone_from(address),
            Mutation::BeginPayment {
                account,
                number,
                record,
                key: _,
            } => {
                self.last_payment = Some(*number);
                self.open_payments.push(OpenPayment {
                    account: *account,
                    number: *number,
                    sent: 0,
                    record: record.clone(),
                });
            }
            Mutation::EndPayment { number, .. } => self.open_payments.retain(|open| open.number != *number),
            Mutation::ReceiveSettlement { account, remainder, .. } => {
                match self.remainders.binary_search_by_key(account, |(of, _)| *of) {
                    Ok(at) => self.remainders[at].1 = remainder.clone(),
                    Err(at) => self.remainders.insert(at, (*account, remainder.clone())),
                }
            }
            // What these mean is in the batch beside them, was done above, or is not read back at start.
            Mutation::UpdateSettlement(_)
            | Mutation::CancelSettlement { .. }
            | Mutation::UseSettlementKey { .. }
            | Mutation::ForgetSettlementKeys { .. }
            | Mutation::ForgetSettlements { .. }
            | Mutation::AnnounceAccount { .. }
            | Mutation::AnnouncedAccount { .. }
            | Mutation::LearnRoutes { .. }
            | Mutation::ForgetRoutes { .. }
            | Mutation::ForgetPayments { .. } => {}
        }
    }
}

/// What one commit writes: all of it, or nothing. Made by [`writer`] alone, which has checked it against the book.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// In the order in which they were made. What a deletion writes off is in `positions` already.
    mutations: Vec<Mutation>,
    /// What the book says after this batch of every account that it touches and leaves standing.
    balances: Vec<(AccountId, Standing)>,
    /// Our own positions after this batch, of every asset that it touches.
    positions: Vec<(AssetId, i128)>,
    /// What open payments have sent after this batch, of each that it touches and leaves open.
    payments: Vec<(PaymentNumber, AccountId, u64)>,
    /// The records after this batch of every settlement that it makes, changes or ends, by ascending number.
    settlements: Vec<Settlement>,
    /// The highest number that a settlement got in this batch, if one got one.
    last_settlement: Option<SettlementNumber>,
    /// What engines know of accounts after this batch and are to be told, where it changes that.
    told: ChangedEngineAccounts,
    /// What is on its way to engines after this batch, in every asset in which it changes that.
    pending: Vec<(AssetId, i128)>,
    /// When keys of incoming settlements were last used after this batch, of each that it touches; `None`: the answer is
    /// forgotten.
    keys_used: Vec<((AccountId, SettlementKey), Option<u64>)>,
    /// The number of the next account after this batch.
    next_account_id: u32,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.mutations.is_empty() && self.balances.is_empty() && self.positions.is_empty() && self.payments.is_empty()
    }

    /// Whether it holds anything that a program which knows of no settlements would misread or neglect.
    fn settles(&self) -> bool {
        let tells = |mutation: &Mutation| {
            matches!(
                mutation,
                Mutation::ReceiveSettlement { .. } | Mutation::AnnounceAccount { .. }
            )
        };
        !self.settlements.is_empty() || self.mutations.iter().any(tells)
    }
}

/// Where the book is kept. One thread owns it; whoever wants to read what is kept takes a [`Reader`].
pub trait Store: Send {
    /// Reads everything back.
    fn load(&mut self) -> Result<Book, OpenError>;

    /// Writes a batch, all or nothing. It survives a power cut from the moment this returns `Ok`. After an error
    /// nobody knows whether the batch is kept, and the store must be opened again before it is used.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// Reads what is kept, from any thread and while commits go on.
    fn reader(&self) -> Arc<dyn Reader>;
}

/// Reads what is kept, see [`Store::reader`].
pub trait Reader: Send + Sync {
    /// The proof over one instant between two commits, read from the store and not from anybody's memory.
    fn audit(&self) -> Result<Audit, StoreError>;

    /// The payment of the account with this number.
    fn payment(&self, account: AccountId, number: PaymentNumber) -> Result<Option<StoredPayment>, StoreError>;

    /// Payments of the account, at most `limit`, the newest first, before the number `before` if there is one.
    fn payments(
        &self,
        account: AccountId,
        before: Option<PaymentNumber>,
        limit: usize,
    ) -> Result<Vec<StoredPayment>, StoreError>;

    /// The payment of the account that began with this key.
    fn payment_by_key(
        &self,
        account: AccountId,
        key: &[u8; PAYMENT_KEY_BYTES],
    ) -> Result<Option<StoredPayment>, StoreError>;

    /// Settlements of the account, at most `limit`, the newest first, before the number `before` if there is one.
    fn settlements(
        &self,
        account: AccountId,
        before: Option<SettlementNumber>,
        limit: usize,
    ) -> Result<Vec<Settlement>, StoreError>;

    /// The settlement with this number, of whichever account.
    fn settlement(&self, number: SettlementNumber) -> Result<Option<Settlement>, StoreError>;

    /// The settlement with this id, of whichever account.
    fn settlement_by_id(&self, id: [u8; 16]) -> Result<Option<Settlement>, StoreError>;

    /// How an incoming settlement of the account was answered that came under this key.
    fn settlement_answer(
        &self,
        account: AccountId,
        key: &SettlementKey,
    ) -> Result<Option<SettlementAnswer>, StoreError>;

    /// What incoming settlements of the account have left over.
    fn remainder(&self, account: AccountId) -> Result<Remainder, StoreError>;

    /// Copies what is kept at one instant between two commits into the new folder `directory`. Gives the proof of the
    /// copy, read back from the copy. See [`backup`].
    fn copy_to(&self, directory: &Path) -> Result<Audit, BackupError>;
}

/// What a [`MemoryStore`] does to a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The batch is lost.
    Lost,
    /// The batch is kept, but the process ends before anybody learns of it.
    KeptUnseen,
}

/// A store in memory that loses nothing but what it is told to: clones share one disk, so a test can keep one clone,
/// crash the other, and look at what is left.
#[derive(Clone, Default)]
pub struct MemoryStore {
    disk: Arc<Mutex<MemoryDisk>>,
}

#[derive(Default)]
struct MemoryDisk {
    book: Book,
    payments: RememberedPayments,
    settlements: RememberedSettlements,
    commits: u64,
    /// From this many commits on, every further one meets the fault.
    fault: Option<(u64, Fault)>,
}

/// The payments that are remembered by a store in memory.
#[derive(Clone, Default)]
struct RememberedPayments {
    records: BTreeMap<(AccountId, PaymentNumber), Box<[u8]>>,
    keys: BTreeMap<(AccountId, [u8; PAYMENT_KEY_BYTES]), PaymentNumber>,
}

impl RememberedPayments {
    /// What mutations mean for them.
    fn commit(&mut self, mutations: &[Mutation]) {
        for mutation in mutations {
            match mutation {
                Mutation::BeginPayment {
                    account,
                    number,
                    record,
                    key,
                } => {
                    self.records.insert((*account, *number), record.clone());
                    self.keys.extend(key.map(|key| ((*account, key), *number)));
                }
                Mutation::EndPayment {
                    account,
                    number,
                    record,
                } => {
                    let known = self.records.insert((*account, *number), record.clone());
                    assert!(known.is_some(), "a payment that ends has begun");
                }
                Mutation::ForgetPayments { account, before } => {
                    self.records
                        .retain(|(owner, number), _| owner != account || number >= before);
                }
                Mutation::DeleteAccount { id, .. } => self.records.retain(|(owner, _), _| owner != id),
                _ => {}
            }
        }
        let records = &self.records;
        self.keys
            .retain(|(owner, _), number| records.contains_key(&(*owner, *number)));
    }

    /// See [`Reader::payment`].
    fn find(&self, account: AccountId, number: PaymentNumber) -> Option<StoredPayment> {
        let record = self.records.get(&(account, number))?.clone();
        Some(StoredPayment { number, record })
    }

    /// See [`Reader::payments`].
    fn list(&self, account: AccountId, before: Option<PaymentNumber>, limit: usize) -> Vec<StoredPayment> {
        let newest_first = self.records.iter().rev();
        let wanted = newest_first
            .filter(|((owner, number), _)| *owner == account && before.is_none_or(|before| *number < before));
        let stored = wanted.take(limit).map(|((_, number), record)| StoredPayment {
            number: *number,
            record: record.clone(),
        });
        stored.collect()
    }

    /// See [`Reader::payment_by_key`].
    fn find_by_key(&self, account: AccountId, key: &[u8; PAYMENT_KEY_BYTES]) -> Option<StoredPayment> {
        self.find(account, *self.keys.get(&(account, *key))?)
    }
}

impl MemoryStore {
    /// The commit after the next `commits` meets `fault`, and none succeeds after it.
    pub fn crash_after(&self, commits: u64, fault: Fault) {
        let mut disk = self.disk();
        disk.fault = Some((disk.commits + commits, fault));
    }

    /// A disk that holds `book`.
    pub fn holding(book: Book) -> Self {
        Self {
            disk: Arc::new(Mutex::new(MemoryDisk {
                book,
                ..MemoryDisk::default()
            })),
        }
    }

    /// What is left of this disk after the crash, in a process that has just been started.
    pub fn restart(&self) -> Self {
        let disk = self.disk();
        let left = MemoryDisk {
            book: disk.book.clone(),
            payments: disk.payments.clone(),
            settlements: disk.settlements.clone(),
            ..MemoryDisk::default()
        };
        Self {
            disk: Arc::new(Mutex::new(left)),
        }
    }

    /// How many commits were kept.
    pub fn commits(&self) -> u64 {
        self.disk().commits
    }

    fn disk(&self) -> MutexGuard<'_, MemoryDisk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Book, OpenError> {
        Ok(self.disk().book.clone())
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut disk = self.disk();
        let fault = disk
            .fault
            .filter(|(after, _)| disk.commits >= *after)
            .map(|(_, fault)| fault);
        if fault != Some(Fault::Lost) {
            disk.payments.commit(&batch.mutations);
            disk.settlements.commit(batch);
            disk.book.commit(batch);
            disk.commits += 1;
        }
        match fault {
            None => Ok(()),
            Some(kept_or_lost) => {
                // Nothing gets through after the first one.
                disk.fault = Some((0, Fault::Lost));
                Err(StoreError::Failed(format!("told to fail: {kept_or_lost:?}")))
            }
        }
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(self.clone())
    }
}

impl Reader for MemoryStore {
    fn audit(&self) -> Result<Audit, StoreError> {
        recovery::audit(&self.disk().book).map_err(StoreError::Unreadable)
    }

    fn payment(&self, account: AccountId, number: PaymentNumber) -> Result<Option<StoredPayment>, StoreError> {
        Ok(self.disk().payments.find(account, number))
    }

    fn payments(
        &self,
        account: AccountId,
        before: Option<PaymentNumber>,
        limit: usize,
    ) -> Result<Vec<StoredPayment>, StoreError> {
        Ok(self.disk().payments.list(account, before, limit))
    }

    fn payment_by_key(
        &self,
        account: AccountId,
        key: &[u8; PAYMENT_KEY_BYTES],
    ) -> Result<Option<StoredPayment>, StoreError> {
        Ok(self.disk().payments.find_by_key(account, key))
    }

    fn settlements(
        &self,
        account: AccountId,
        before: Option<SettlementNumber>,
        limit: usize,
    ) -> Result<Vec<Settlement>, StoreError> {
        Ok(self.disk().settlements.list(account, before, limit))
    }

    fn settlement(&self, number: SettlementNumber) -> Result<Option<Settlement>, StoreError> {
        Ok(self.disk().settlements.find(number))
    }

    fn settlement_by_id(&self, id: [u8; 16]) -> Result<Option<Settlement>, StoreError> {
        Ok(self.disk().settlements.find_by_id(id))
    }

    fn settlement_answer(
        &self,
        account: AccountId,
        key: &SettlementKey,
    ) -> Result<Option<SettlementAnswer>, StoreError> {
        Ok(self.disk().settlements.answer(account, key))
    }

    fn remainder(&self, account: AccountId) -> Result<Remainder, StoreError> {
        Ok(self.disk().book.remainder(account))
    }

    fn copy_to(&self, _directory: &Path) -> Result<Audit, BackupError> {
        Err(BackupError::Failed("a store in memory has no files".into()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::ledger::audit::AssetAudit;
    use crate::ledger::{AccountLimits, Links, OrDefault, PackedLinks, RoutingRelation, Transfer};

    /// The name of a folder that does not exist, and is gone at the end of the test.
    pub struct Folder(pub PathBuf);

    impl Folder {
        pub fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("clearway-store-{}-{number}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// The assets of [`book`], by number.
    pub fn assets() -> Vec<Asset> {
        [("ABC", 9), ("XYZ", 2)]
            .map(|(code, scale)| Asset {
                code: code.into(),
                scale,
            })
            .into()
    }

    pub fn account(id: u32, asset: u16) -> Account {
        let mut uuid = [0; 16];
        uuid[..4].copy_from_slice(&id.to_be_bytes());
        Account {
            id: AccountId::new(id),
            uuid,
            username: format!("user_{id}").into(),
            ilp_address: format!("test.node.user_{id}").into(),
            ilp_address_generated: true,
            asset: Arc::new(assets()[usize::from(asset)].clone()),
            asset_id: AssetId::new(asset),
            routing_relation: RoutingRelation::Child,
            limits: AccountLimits {
                balance_min: Some(-1000),
                ..AccountLimits::default()
            }
            .into(),
            round_trip_time_ms: 500,
            settlement: OrDefault::default(),
            links: PackedLinks::from(Links {
                btp_incoming_token: Some(format!("swordfish {id}").into()),
                ..Links::default()
            }),
            created_at_ms: 1_700_000_000_000,
        }
    }

    /// Accounts 0, 1, 2 ... in ABC with these balances, and our position there. Nothing in XYZ.
    pub fn book(balances: &[i128], position: i128) -> Book {
        let accounts = (0..)
            .zip(balances)
            .map(|(id, booked)| (Arc::new(account(id, 0)), Standing::of(*booked)));
        Book {
            assets: assets(),
            accounts: accounts.collect(),
            next_account_id: u32::try_from(balances.len()).unwrap(),
            positions: vec![position, 0],
            ..Book::default()
        }
    }

    /// A store in memory with what the writer makes of mutations and transfers, each a batch of its own, and without its
    /// thread: the book of those who are tested above it.
    pub struct MemoryBook {
        ledger: fold::Ledger,
        store: MemoryStore,
    }

    impl Default for MemoryBook {
        fn default() -> Self {
            Self {
                ledger: fold::Ledger::new(&Book::default()),
                store: MemoryStore::default(),
            }
        }
    }

    impl MemoryBook {
        pub fn apply(&mut self, mutations: Vec<Mutation>) -> Result<Applied, StoreError> {
            let applied = self.ledger.apply(mutations)?;
            self.commit();
            Ok(applied)
        }

        /// Gives the settlement that it made.
        pub fn transfer(&mut self, transfer: &Transfer, now_ms: u64) -> Option<Settlement> {
            self.ledger.fold(transfer, now_ms);
            self.commit().settlements.pop()
        }

        fn commit(&mut self) -> Batch {
            let batch = self.ledger.take_batch();
            self.store.commit(&batch).expect("it was not told to fail");
            self.ledger.published();
            batch
        }

        pub fn standing(&self, id: AccountId) -> Option<Standing> {
            self.ledger.durable(id)
        }

        /// Reads what is kept, as the writer's handle would.
        pub fn reader(&self) -> Arc<dyn Reader> {
            Arc::new(self.store.clone())
        }

        /// What a start would read back.
        pub fn read_back(&self) -> Book {
            self.store.disk().book.clone()
        }

        /// Makes one unit of our position in the first asset vanish, as no real book would.
        pub fn lose_a_unit(&self) {
            self.store.disk().book.positions[0] -= 1;
        }

        /// How many batches were kept.
        pub fn commits(&self) -> u64 {
            self.store.commits()
        }
    }

    #[test]
    fn a_book_that_does_not_add_up_names_the_asset_and_the_difference() {
        let mut good = AssetAudit::new(Asset {
            code: "ABC".into(),
            scale: 9,
        });
        good.add_account(0);
        let mut bad = AssetAudit::new(Asset {
            code: "XYZ".into(),
            scale: 2,
        });
        bad.add_account(-5);
        bad.position = 7;
        let mut neglected = AssetAudit::new(Asset {
            code: "OUT".into(),
            scale: 0,
        });
        (neglected.pending, neglected.pending_carried) = (3, 4);
        let message = OpenError::DoesNotAddUp(Audit {
            assets: vec![good, bad, neglected],
        })
        .to_string();
        assert_eq!(
            message,
            "the book does not add up (XYZ@2: the balances are -5, our position 7, the difference 2; OUT@0: the \
             balances are 0, our position 0, the difference 0, open settlements 3 of 4): restore the store from a \
             backup"
        );
    }
}
