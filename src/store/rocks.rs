//! The store on RocksDB, embedded in this process.
//!
//! Owns how RocksDB is set up and what its errors mean to an operator. Layouts are [`super::schema`]'s. One batch of
//! ours is one write batch of RocksDB, which its write-ahead log keeps whole or not at all; a commit returns after
//! `fdatasync` of that log.
//!
//! One process has a store open and writes it. Others may read it meanwhile ([`read_only`]), and see it as it was at one
//! instant between two commits, or not at all.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, DB, DBCompressionType, DBIteratorWithThreadMode, DBRecoveryMode,
    IteratorMode, LogLevel, Options, ReadOptions, SnapshotWithThreadMode, WriteBatch, WriteOptions,
};

use super::recovery::Sums;
use super::schema::{self, Malformed, family, meta};
use super::secrets::Secrets;
use super::settling::EngineAccounts;
use super::{
    BackupError, Batch, Book, HeardRoutes, Mutation, OpenError, OpenPayment, PAYMENT_KEY_BYTES, Reader,
    SettlementAnswer, SettlementKey, Store, StoreError, StoredPayment, Texts, backup,
};
use crate::ledger::audit::Audit;
use crate::ledger::settlement::Settlement;
use crate::ledger::{Account, AccountId, Asset, AssetId, PaymentNumber, Remainder, SettlementNumber, Standing};

/// The folder, opened by this process alone.
pub struct RocksStore {
    db: Arc<Db>,
    secrets: Secrets,
    synced: WriteOptions,
}

/// A type of its own so that a [`Reader`] can share it.
pub(super) struct Db(DB);

/// A memtable of each family, before it becomes a file. Balances are small and overwritten in place of a file's worth
/// of them, so more would only lengthen the start after a crash.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
/// All memtables of all families together.
const WRITE_BUFFERS_BYTES: usize = 16 << 20;
/// What a start after a crash has to read again, and with it how long it takes: about a second.
const LOG_BYTES: u64 = 64 << 20;
/// Blocks read at start and by audits; no packet ever reads.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// Tables held open; a book of a million accounts has fewer.
const OPEN_FILES: i32 = 64;

impl RocksStore {
    /// Opens the store in the folder `path`, or makes a new one there, readable by this user only. The tokens in it
    /// are sealed under `seed`.
    pub fn open(path: &Path, seed: &[u8; 32]) -> Result<Self, OpenError> {
        create_folder(path).map_err(|error| OpenError::Unavailable(format!("{}: {error}", path.display())))?;
        let db = open_to_write(path)?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let store = Self {
            db: Arc::new(db),
            secrets: Secrets::new(seed),
            synced,
        };
        store.check_or_mark()?;
        Ok(store)
    }

    /// Opens what is there for reading, and writes, makes and locks nothing. What a process that writes at this moment
    /// does to the files makes the result worthless: see [`read_only`].
    fn open_to_read(path: &Path, seed: &[u8; 32]) -> Result<Self, OpenError> {
        let store = Self {
            db: Arc::new(open_to_read(path)?),
            secrets: Secrets::new(seed),
            synced: WriteOptions::default(),
        };
        let view = View::new(&store.db);
        view.check_format()?;
        store.check_seed(&view)?;
        drop(view);
        Ok(store)
    }

    /// Checks format and seed, or marks a new store with ours.
    fn check_or_mark(&self) -> Result<(), OpenError> {
        let db = &self.db;
        let view = View::new(db);
        if view.meta(meta::FORMAT_VERSION)?.is_none() && view.is_empty()? {
            let mut batch = WriteBatch::default();
            let meta = db.family(family::META);
            batch.put_cf(meta, meta::FORMAT_VERSION, schema::FORMAT_VERSION.to_be_bytes());
            batch.put_cf(meta, meta::SEED_CHECK, schema::seed_check(&self.secrets));
            batch.put_cf(meta, meta::NEXT_ACCOUNT_ID, 0u32.to_be_bytes());
            return db.0.write_opt(batch, &self.synced).map_err(open_error);
        }
        view.check_format()?;
        self.check_seed(&view)
    }

    fn check_seed(&self, view: &View<'_>) -> Result<(), OpenError> {
        let check = view.meta(meta::SEED_CHECK)?.ok_or(Malformed("seed check"))?;
        if !schema::seed_check_opens(&self.secrets, &check) {
            return Err(OpenError::WrongSeed);
        }
        Ok(())
    }

    fn add_mutation(&self, batch: &mut WriteBatch, mutation: &Mutation) {
        let family = |name| self.db.family(name);
        match mutation {
            Mutation::PutAsset(id, asset) => {
                batch.put_cf(family(family::ASSETS), schema::asset_key(*id), schema::asset(asset));
            }
            Mutation::PutAccount(account) => {
                let record = schema::account(account, &self.secrets);
                batch.put_cf(family(family::ACCOUNTS), schema::account_key(account.id), record);
            }
            Mutation::DeleteAccount { id, write_off: _ } => {
                batch.delete_cf(family(family::ACCOUNTS), schema::account_key(*id));
                batch.delete_cf(family(family::BALANCES), schema::account_key(*id));
                for name in [family::PAYMENTS, family::KEYS, family::RECEIVED, family::USED] {
                    self.delete_all_of(batch, name, *id);
                }
                batch.delete_cf(family(family::REMAINDER), schema::account_key(*id));
                self.forget_settlements(batch, *id, None);
                self.forget_routes(batch, *id);
            }
            Mutation::PutStaticRoute { prefix, next_hop } => {
                batch.put_cf(
                    family(family::ROUTES),
                    prefix.as_bytes(),
                    schema::account_key(*next_hop),
                );
            }
            Mutation::RemoveStaticRoute { prefix } => {
                batch.delete_cf(family(family::ROUTES), prefix.as_bytes());
            }
            Mutation::PutRates(rates) => self.replace_texts(batch, family::RATES, rates),
            Mutation::PutEngines(engines) => self.replace_texts(batch, family::ENGINES, engines),
            Mutation::PutNodeAddress(address) => {
                batch.put_cf(family(family::META), meta::NODE_ADDRESS, address.as_bytes());
            }
            Mutation::PutAssignedAddress(address) => {
                let meta = family(family::META);
                match address {
                    Some(address) => batch.put_cf(meta, meta::ASSIGNED_ADDRESS, address.as_bytes()),
                    None => batch.delete_cf(meta, meta::ASSIGNED_ADDRESS),
                }
            }
            Mutation::LearnRoutes {
                account,
                table_id,
                epoch,
                set,
                removed,
            } => {
                let heard = schema::heard(table_id, *epoch);
                batch.put_cf(family(family::HEARD), schema::account_key(*account), heard);
                let learned = family(family::LEARNED);
                for prefix in removed {
                    batch.delete_cf(learned, schema::learned_key(*account, prefix));
                }
                for route in set {
                    let key = schema::learned_key(*account, &route.prefix);
                    batch.put_cf(learned, key, schema::learned(route));
                }
            }
            Mutation::ForgetRoutes { account } => self.forget_routes(batch, *account),
            Mutation::BeginPayment {
                account,
                number,
                record,
                key,
            } => {
                let number_bytes = number.get().to_be_bytes();
                batch.put_cf(family(family::META), meta::LAST_PAYMENT, number_bytes);
                batch.put_cf(family(family::PAYING), number_bytes, schema::paying(*account, 0));
                batch.put_cf(family(family::PAYMENTS), schema::payment_key(*account, *number), record);
                if let Some(key) = key {
                    batch.put_cf(
                        family(family::KEYS),
                        schema::key_of_payment(*account, key),
                        number_bytes,
                    );
                }
            }
            Mutation::ForgetPayments { account, before } => {
                let (first, end) = (schema::account_key(*account), schema::payment_key(*account, *before));
                batch.delete_range_cf(family(family::PAYMENTS), &first[..], &end[..]);
                self.forget_keys(batch, *account, *before);
            }
            Mutation::EndPayment {
                account,
                number,
                record,
            } => {
                batch.delete_cf(family(family::PAYING), number.get().to_be_bytes());
                batch.put_cf(family(family::PAYMENTS), schema::payment_key(*account, *number), record);
            }
            Mutation::ReceiveSettlement {
                account,
                remainder,
                key,
                input,
                status,
                answer,
                ..
            } => {
                let left = schema::remainder(remainder);
                batch.put_cf(family(family::REMAINDER), schema::account_key(*account), left);
                let answer = schema::received(input, *status, answer);
                batch.put_cf(family(family::RECEIVED), schema::received_key(*account, key), answer);
            }
            Mutation::ForgetSettlements { account, before } => {
                self.forget_settlements(batch, *account, Some(*before));
            }
            // What these mean is in the batch beside them.
            Mutation::UpdateSettlement(_)
            | Mutation::CancelSettlement { .. }
            | Mutation::UseSettlementKey { .. }
            | Mutation::ForgetSettlementKeys { .. }
            | Mutation::AnnounceAccount { .. }
            | Mutation::AnnouncedAccount { .. } => {}
        }
    }
}

impl RocksStore {
    /// Deletes what begins with the account's number in a family.
    fn delete_all_of(&self, batch: &mut WriteBatch, family: &str, account: AccountId) {
        let (first, end) = (schema::account_key(account), schema::end_of_account(account));
        batch.delete_range_cf(self.db.family(family), &first[..], &end);
    }

    fn forget_routes(&self, batch: &mut WriteBatch, account: AccountId) {
        batch.delete_cf(self.db.family(family::HEARD), schema::account_key(account));
        self.delete_all_of(batch, family::LEARNED, account);
    }

    /// Deletes the keys that payments of the account before this number began with.
    fn forget_keys(&self, batch: &mut WriteBatch, account: AccountId, before: PaymentNumber) {
        let keys = self.db.family(family::KEYS);
        let mut options = read_once();
        options.set_iterate_range(&schema::account_key(account)[..]..&schema::end_of_account(account));
        let before = before.get().to_be_bytes();
        // A key that cannot be read now is one too many, and finds no payment.
        for (key, number) in self.db.0.iterator_cf_opt(keys, options, IteratorMode::Start).flatten() {
            if *number < before[..] {
                batch.delete_cf(keys, key);
            }
        }
    }

    /// Deletes the account's settlements before this number, or all.
    fn forget_settlements(&self, batch: &mut WriteBatch, account: AccountId, before: Option<SettlementNumber>) {
        let first = schema::account_key(account);
        let end = before.map_or_else(
            || schema::end_of_account(account),
            |before| schema::settlement_key(account, before).to_vec(),
        );
        let mut options = read_once();
        options.set_iterate_range(&first[..]..&end);
        let settled = self.db.family(family::SETTLED);
        let records = self.db.0.iterator_cf_opt(settled, options, IteratorMode::Start);
        // One that cannot be read now leaves a name that leads nowhere.
        let readable = records
            .flatten()
            .filter_map(|(key, value)| schema::read_settlement(&key, &value).ok());
        for settlement in readable {
            batch.delete_cf(self.db.family(family::NAMED), settlement.id);
            let number = schema::settlement_number(settlement.number);
            batch.delete_cf(self.db.family(family::SETTLING), number);
        }
        batch.delete_range_cf(settled, &first[..], &end);
    }

    /// The records of settlements, and what leads to them.
    fn put_settlements(&self, writes: &mut WriteBatch, batch: &Batch) {
        let family = |name| self.db.family(name);
        for settlement in &batch.settlements {
            let (account, number) = (settlement.account, settlement.number);
            let key = schema::settlement_key(account, number);
            let number = schema::settlement_number(number);
            writes.put_cf(family(family::SETTLED), key, schema::settlement(settlement));
            writes.put_cf(family(family::SETTLING), number, schema::settling(settlement));
            writes.put_cf(family(family::NAMED), settlement.id, key);
        }
        if let Some(last) = batch.last_settlement {
            let last = schema::settlement_number(last);
            writes.put_cf(family(family::META), meta::LAST_SETTLEMENT, last);
        }
        for (asset, pending) in &batch.pending {
            let (key, pending) = (schema::asset_key(*asset), *pending);
            match pending {
                0 => writes.delete_cf(family(family::PENDING), key),
                _ => writes.put_cf(family(family::PENDING), key, schema::amount(pending)),
            }
        }
    }

    /// What engines asked and what they are to be told.
    fn put_engines(&self, writes: &mut WriteBatch, batch: &Batch) {
        let family = |name| self.db.family(name);
        for ((account, key), used_ms) in &batch.keys_used {
            let key = schema::received_key(*account, key);
            match used_ms {
                Some(used_ms) => writes.put_cf(family(family::USED), key, used_ms.to_be_bytes()),
                None => {
                    writes.delete_cf(family(family::USED), &key);
                    writes.delete_cf(family(family::RECEIVED), &key);
                }
            }
        }
        for ((account, engine), known) in &batch.told {
            let key = schema::told_key(*account, engine);
            match known {
                Some(known) => writes.put_cf(family(family::TOLD), key, schema::told(known)),
                None => writes.delete_cf(family(family::TOLD), key),
            }
        }
    }

    /// Replaces everything in a family of texts by their codes.
    fn replace_texts(&self, batch: &mut WriteBatch, family: &str, texts: &[(Box<str>, Box<str>)]) {
        let family = self.db.family(family);
        batch.delete_range_cf(family, &[][..], schema::CODES_END);
        for (code, text) in texts {
            batch.put_cf(family, code.as_bytes(), text.as_bytes());
        }
    }
}

impl Store for RocksStore {
    fn load(&mut self) -> Result<Book, OpenError> {
        let view = View::new(&self.db);
        let next_account_id = view
            .meta(meta::NEXT_ACCOUNT_ID)?
            .ok_or(Malformed("next account number"))?;
        let assets = view.assets()?;
        let mut accounts = view.accounts(&assets, &self.secrets)?;
        let open_settlements = view.open_settlements()?;
        for open in &open_settlements {
            let at = accounts.binary_search_by_key(&open.account, |(account, _)| account.id);
            accounts[at.map_err(|_| Malformed("account of an open settlement"))?]
                .1
                .settling = true;
        }
        let mut static_routes = Vec::new();
        view.each(family::ROUTES, |prefix, next_hop| {
            static_routes.push((schema::read_text(prefix)?.into(), schema::read_account_key(next_hop)?));
            Ok(())
        })?;
        let mut book = Book {
            positions: view.positions(assets.len())?,
            heard: view.heard(&accounts)?,
            assets,
            accounts,
            static_routes,
            rates: view.texts(family::RATES)?,
            engines: view.texts(family::ENGINES)?,
            open_payments: view.open_payments()?,
            last_payment: view
                .meta(meta::LAST_PAYMENT)?
                .map(|number| schema::read_payment_number(&number))
                .transpose()?,
            node_address: view.meta_text(meta::NODE_ADDRESS)?,
            assigned_address: view.meta_text(meta::ASSIGNED_ADDRESS)?,
            next_account_id: schema::read_u32(&next_account_id)?,
            open_settlements,
            last_settlement: view
                .meta(meta::LAST_SETTLEMENT)?
                .map(|number| schema::read_settlement_number(&number))
                .transpose()?,
            remainders: view.remainders()?,
            pending: view.pending()?,
            keys_used: view.keys_used()?,
            ..Book::default()
        };
        book.set_engine_accounts(view.engine_accounts()?);
        Ok(book)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut writes = WriteBatch::default();
        // Before the mutations: one of them may forget what has just ended.
        self.put_settlements(&mut writes, batch);
        for mutation in &batch.mutations {
            self.add_mutation(&mut writes, mutation);
        }
        self.put_engines(&mut writes, batch);
        let balances = self.db.family(family::BALANCES);
        for (id, standing) in &batch.balances {
            writes.put_cf(balances, schema::account_key(*id), schema::balance(standing));
        }
        let positions = self.db.family(family::POSITIONS);
        for (asset, position) in &batch.positions {
            writes.put_cf(positions, schema::asset_key(*asset), schema::amount(*position));
        }
        let paying = self.db.family(family::PAYING);
        for (number, account, sent) in &batch.payments {
            writes.put_cf(paying, number.get().to_be_bytes(), schema::paying(*account, *sent));
        }
        if batch.settles() {
            let version = schema::FORMAT_VERSION.to_be_bytes();
            writes.put_cf(self.db.family(family::META), meta::FORMAT_VERSION, version);
        }
        if !batch.mutations.is_empty() {
            let next = batch.next_account_id.to_be_bytes();
            writes.put_cf(self.db.family(family::META), meta::NEXT_ACCOUNT_ID, next);
        }
        self.db
            .0
            .write_opt(writes, &self.synced)
            .map_err(|error| StoreError::Failed(error.into_string()))
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.db.clone()
    }
}

impl Reader for Db {
    fn audit(&self) -> Result<Audit, StoreError> {
        View::new(self)
            .audit()
            .map_err(|error| StoreError::Unreadable(error.to_string()))
    }

    fn copy_to(&self, directory: &Path) -> Result<Audit, BackupError> {
        backup::make(self.0.path(), directory, |copy| {
            // Tables are linked, or copied if the place is on another file system. What is in the log alone is written
            // to tables first, in the background: commits go on.
            let failed = |error: rocksdb::Error| BackupError::Failed(error.into_string());
            let checkpoint = Checkpoint::new(&self.0).map_err(failed)?;
            checkpoint.create_checkpoint(copy).map_err(failed)
        })
    }

    fn payment(&self, account: AccountId, number: PaymentNumber) -> Result<Option<StoredPayment>, StoreError> {
        let key = schema::payment_key(account, number);
        let record = self.0.get_cf(self.family(family::PAYMENTS), key).map_err(unreadable)?;
        Ok(record.map(|record| StoredPayment {
            number,
            record: record.into(),
        }))
    }

    fn payments(
        &self,
        account: AccountId,
        before: Option<PaymentNumber>,
        limit: usize,
    ) -> Result<Vec<StoredPayment>, StoreError> {
        let before = before.map(|before| schema::payment_key(account, before).to_vec());
        let mut payments = Vec::new();
        for record in self.newest_first(family::PAYMENTS, account, before).take(limit) {
            let (key, record) = record.map_err(unreadable)?;
            let number = schema::read_payment_key(&key).map_err(unreadable)?;
            payments.push(StoredPayment { number, record });
        }
        Ok(payments)
    }

    fn payment_by_key(
        &self,
        account: AccountId,
        key: &[u8; PAYMENT_KEY_BYTES],
    ) -> Result<Option<StoredPayment>, StoreError> {
        let key = schema::key_of_payment(account, key);
        match self.0.get_cf(self.family(family::KEYS), key).map_err(unreadable)? {
            Some(number) => self.payment(account, schema::read_payment_number(&number).map_err(unreadable)?),
            None => Ok(None),
        }
    }

    fn settlements(
        &self,
        account: AccountId,
        before: Option<SettlementNumber>,
        limit: usize,
    ) -> Result<Vec<Settlement>, StoreError> {
        let before = before.map(|before| schema::settlement_key(account, before).to_vec());
        let mut settlements = Vec::new();
        for record in self.newest_first(family::SETTLED, account, before).take(limit) {
            let (key, record) = record.map_err(unreadable)?;
            settlements.push(schema::read_settlement(&key, &record).map_err(unreadable)?);
        }
        Ok(settlements)
    }

    fn settlement(&self, number: SettlementNumber) -> Result<Option<Settlement>, StoreError> {
        let key = schema::settlement_number(number);
        let Some(whose) = self.0.get_cf(self.family(family::SETTLING), key).map_err(unreadable)? else {
            return Ok(None);
        };
        let (account, _) = schema::read_settling(&whose).map_err(unreadable)?;
        self.settlement_at(&schema::settlement_key(account, number))
    }

    fn settlement_by_id(&self, id: [u8; 16]) -> Result<Option<Settlement>, StoreError> {
        match self.0.get_cf(self.family(family::NAMED), id).map_err(unreadable)? {
            Some(key) => self.settlement_at(&key),
            None => Ok(None),
        }
    }

    fn settlement_answer(
        &self,
        account: AccountId,
        key: &SettlementKey,
    ) -> Result<Option<SettlementAnswer>, StoreError> {
        let key = schema::received_key(account, key);
        let answer = self.0.get_cf(self.family(family::RECEIVED), key).map_err(unreadable)?;
        let answer = answer.map(|answer| schema::read_received(&answer));
        answer.transpose().map_err(unreadable)
    }

    fn remainder(&self, account: AccountId) -> Result<Remainder, StoreError> {
        let key = schema::account_key(account);
        let left = self.0.get_cf(self.family(family::REMAINDER), key).map_err(unreadable)?;
        let left = left.map(|left| schema::read_remainder(&left)).transpose();
        Ok(left.map_err(unreadable)?.unwrap_or_default())
    }
}

/// A key, and what stands under it.
type Record = (Box<[u8]>, Box<[u8]>);

impl Db {
    /// What a family has of an account, from the end or from before this key on, backwards.
    fn newest_first(
        &self,
        family: &str,
        account: AccountId,
        before: Option<Vec<u8>>,
    ) -> impl Iterator<Item = Result<Record, rocksdb::Error>> {
        let end = before.unwrap_or_else(|| schema::end_of_account(account));
        let mut options = ReadOptions::default();
        options.set_iterate_range(&schema::account_key(account)[..]..&end);
        self.0.iterator_cf_opt(self.family(family), options, IteratorMode::End)
    }

    /// The settlement with this key.
    fn settlement_at(&self, key: &[u8]) -> Result<Option<Settlement>, StoreError> {
        let record = self.0.get_cf(self.family(family::SETTLED), key).map_err(unreadable)?;
        let settlement = record.map(|record| schema::read_settlement(key, &record));
        settlement.transpose().map_err(unreadable)
    }
}

fn unreadable(error: impl ToString) -> StoreError {
    StoreError::Unreadable(error.to_string())
}

impl Db {
    fn family(&self, name: &str) -> &ColumnFamily {
        self.0.cf_handle(name).expect("every family is opened with the store")
    }
}

/// How often a store that is being written is read again because its files changed meanwhile. They do every few seconds
/// under the heaviest load, and reading a million accounts takes about as long.
const READ_ATTEMPTS_MAX: u32 = 5;

/// Reads a store without changing or locking anything, also while another process has it open: then it is a picture of
/// one instant between two commits, a moment ago. `read` gets a store that cannot commit, and may be called again.
///
/// A reader follows the manifest to tables and log. The one who writes adds to the manifest before it removes any of
/// these, so if the manifest is the same before and after, nothing was missed; a log that ends in the middle of a batch
/// that is just being written counts without that batch.
pub fn read_only<T>(
    path: &Path,
    seed: &[u8; 32],
    mut read: impl FnMut(&mut RocksStore) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    for _ in 0..READ_ATTEMPTS_MAX {
        let before = Manifest::of(path)?;
        let opened = RocksStore::open_to_read(path, seed);
        if Manifest::of(path)? != before {
            continue;
        }
        match opened.and_then(|mut store| read(&mut store)) {
            // Tables are opened as they are read: one may have gone since.
            Err(_) if Manifest::of(path)? != before => {}
            result => return result,
        }
    }
    Err(OpenError::Unsettled)
}

/// Which tables and logs make up the store. Only ever grows, or is replaced by one of another name.
#[derive(PartialEq, Eq)]
struct Manifest {
    name: String,
    bytes: u64,
}

impl Manifest {
    fn of(path: &Path) -> Result<Self, OpenError> {
        let unavailable = |error: io::Error| OpenError::Unavailable(format!("{}: {error}", path.display()));
        let name = fs::read_to_string(path.join("CURRENT")).map_err(unavailable)?;
        let bytes = match fs::metadata(path.join(name.trim_end())) {
            Ok(file) => file.len(),
            // Replaced between the two calls: then the next look finds another name, and if not, opening says why.
            Err(_) => 0,
        };
        Ok(Self { name, bytes })
    }
}

/// Whether there is a store in this folder.
pub fn exists(path: &Path) -> bool {
    path.join("CURRENT").exists()
}

/// The process that has the store open for writing; 0 if it cannot be seen from here. Not for a process that has the
/// store open itself: asking would drop its lock.
pub fn used_by(path: &Path) -> Option<u32> {
    let lock = File::open(path.join("LOCK")).ok()?;
    let mut whole_file = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel fills in a struct of the type that F_GETLK is documented with.
    let asked = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_GETLK, &raw mut whole_file) };
    let is_locked = asked == 0 && whole_file.l_type != libc::F_UNLCK as libc::c_short;
    is_locked.then(|| u32::try_from(whole_file.l_pid).unwrap_or(0))
}

/// Opens a store that is there, to copy it. Needs no seed.
pub(super) fn open_to_copy(path: &Path) -> Result<Db, OpenError> {
    if !exists(path) {
        return Err(OpenError::Unavailable(format!(
            "there is no store in {}",
            path.display()
        )));
    }
    let db = open_to_write(path)?;
    View::new(&db).check_format()?;
    Ok(db)
}

/// Reads every record of a store that nobody writes, which verifies all checksums, and adds up the book.
pub(super) fn audit_closed(path: &Path) -> Result<Audit, OpenError> {
    let db = open_to_read(path)?;
    let view = View::new(&db);
    view.check_format()?;
    // The rest is read for the audit.
    let audited = [
        family::ASSETS,
        family::ACCOUNTS,
        family::BALANCES,
        family::POSITIONS,
        family::SETTLING,
        family::PENDING,
    ];
    for name in family::ALL.iter().filter(|name| !audited.contains(name)) {
        view.each(name, |_, _| Ok(()))?;
    }
    Ok(view.audit()?)
}

fn open_to_write(path: &Path) -> Result<Db, OpenError> {
    let options = options();
    // Families of a newer version must be opened too, or RocksDB refuses before we can read the format version.
    let mut families: Vec<String> = family::ALL.map(String::from).into();
    families.push("default".into());
    if exists(path) {
        let known = DB::list_cf(&options, path).map_err(open_error)?;
        families.extend(
            known
                .into_iter()
                .filter(|name| !family::ALL.contains(&name.as_str()) && name != "default"),
        );
    }
    DB::open_cf_with_opts(&options, path, families.into_iter().map(|name| (name, options.clone())))
        .map(Db)
        .map_err(open_error)
}

fn open_to_read(path: &Path) -> Result<Db, OpenError> {
    let mut options = options();
    // Even a reader would make the folder.
    options.create_if_missing(false);
    let families = DB::list_cf(&options, path).map_err(open_error)?;
    let families = families.into_iter().map(|name| (name, options.clone()));
    DB::open_cf_with_opts_for_read_only(&options, path, families, false)
        .map(Db)
        .map_err(open_error)
}

/// What was kept at one instant between two commits.
struct View<'a> {
    db: &'a Db,
    snapshot: SnapshotWithThreadMode<'a, DB>,
}

/// Why a view cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    RocksDb(#[from] rocksdb::Error),
    #[error("{0}")]
    Other(String),
}

impl<'a> View<'a> {
    fn new(db: &'a Db) -> Self {
        Self {
            db,
            snapshot: db.0.snapshot(),
        }
    }

    fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(family) = self.db.0.cf_handle(family::META) else {
            return Ok(None);
        };
        Ok(self.snapshot.get_cf(family, key)?)
    }

    fn meta_text(&self, key: &[u8]) -> Result<Option<Box<str>>, ReadError> {
        let text = self.meta(key)?;
        Ok(text.as_deref().map(schema::read_text).transpose()?.map(Box::from))
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let Some(version) = self.meta(meta::FORMAT_VERSION)? else {
            return Err(OpenError::Corrupt("it has no format version".into()));
        };
        let found = schema::read_u32(&version)?;
        if !(schema::FORMAT_VERSION_MIN..=schema::FORMAT_VERSION).contains(&found) {
            return Err(OpenError::UnknownFormat {
                found,
                expected: schema::FORMAT_VERSION,
            });
        }
        Ok(())
    }

    fn records(&self, name: &str) -> Option<DBIteratorWithThreadMode<'_, DB>> {
        // A store that is only read may lack a family that a newer version would add: it has no records then.
        let family = self.db.0.cf_handle(name)?;
        Some(self.snapshot.iterator_cf_opt(family, read_once(), IteratorMode::Start))
    }

    /// Every record of a family, by ascending key. Checksums are verified.
    fn each(&self, name: &str, mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), ReadError>) -> Result<(), ReadError> {
        for record in self.records(name).into_iter().flatten() {
            let (key, value) = record?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn is_empty(&self) -> Result<bool, ReadError> {
        let mut empty = true;
        for name in family::ALL {
            self.each(name, |_, _| {
                empty = false;
                Ok(())
            })?;
        }
        Ok(empty)
    }

    fn assets(&self) -> Result<Vec<Asset>, ReadError> {
        let mut assets = Vec::new();
        self.each(family::ASSETS, |key, value| {
            if schema::read_asset_key(key)?.index() != assets.len() {
                return Err(Malformed("sequence of assets").into());
            }
            assets.push(schema::read_asset(value)?);
            Ok(())
        })?;
        Ok(assets)
    }

    /// A family of texts by their codes.
    fn texts(&self, name: &str) -> Result<Texts, ReadError> {
        let mut texts = Vec::new();
        self.each(name, |code, text| {
            texts.push((schema::read_text(code)?.into(), schema::read_text(text)?.into()));
            Ok(())
        })?;
        Ok(texts)
    }

    fn open_payments(&self) -> Result<Vec<OpenPayment>, ReadError> {
        let mut open = Vec::new();
        self.each(family::PAYING, |number, value| {
            let number = schema::read_payment_number(number)?;
            let (account, sent) = schema::read_paying(value)?;
            let key = schema::payment_key(account, number);
            let record = self.snapshot.get_cf(self.db.family(family::PAYMENTS), key)?;
            open.push(OpenPayment {
                account,
                number,
                sent,
                record: record.ok_or(Malformed("record of an open payment"))?.into(),
            });
            Ok(())
        })?;
        Ok(open)
    }

    /// Every open settlement, and each as its record says.
    fn open_settlements(&self) -> Result<Vec<Settlement>, ReadError> {
        let settled = self.db.0.cf_handle(family::SETTLED);
        let mut open = Vec::new();
        self.each(family::SETTLING, |number, value| {
            let number = schema::read_settlement_number(number)?;
            let (account, is_open) = schema::read_settling(value)?;
            if !is_open {
                return Ok(());
            }
            let key = schema::settlement_key(account, number);
            let missing = Malformed("record of an open settlement");
            let record = self.snapshot.get_cf(settled.ok_or(missing)?, key)?;
            let settlement = schema::read_settlement(&key, &record.ok_or(missing)?)?;
            if !settlement.state.is_open() {
                return Err(missing.into());
            }
            open.push(settlement);
            Ok(())
        })?;
        Ok(open)
    }

    fn remainders(&self) -> Result<Vec<(AccountId, Remainder)>, ReadError> {
        let mut remainders = Vec::new();
        self.each(family::REMAINDER, |account, left| {
            remainders.push((schema::read_account_key(account)?, schema::read_remainder(left)?));
            Ok(())
        })?;
        Ok(remainders)
    }

    fn pending(&self) -> Result<BTreeMap<AssetId, i128>, ReadError> {
        let mut pending = BTreeMap::new();
        self.each(family::PENDING, |asset, amount| {
            pending.insert(schema::read_asset_key(asset)?, schema::read_amount(amount)?);
            Ok(())
        })?;
        Ok(pending)
    }

    fn keys_used(&self) -> Result<BTreeMap<(AccountId, SettlementKey), u64>, ReadError> {
        let mut used = BTreeMap::new();
        self.each(family::USED, |key, used_ms| {
            used.insert(schema::read_received_key(key)?, schema::read_u64(used_ms)?);
            Ok(())
        })?;
        Ok(used)
    }

    fn engine_accounts(&self) -> Result<EngineAccounts, ReadError> {
        let mut known = EngineAccounts::new();
        self.each(family::TOLD, |key, of| {
            known.insert(schema::read_told_key(key)?, schema::read_told(of)?);
            Ok(())
        })?;
        Ok(known)
    }

    /// What the neighbours told, of those among `accounts`. A version of the program that knew of no routes may have
    /// deleted an account and left what it told: its number is never given again, so that is nobody's.
    fn heard(&self, accounts: &[(Arc<Account>, Standing)]) -> Result<Vec<HeardRoutes>, ReadError> {
        let mut heard: Vec<HeardRoutes> = Vec::new();
        self.each(family::HEARD, |account, value| {
            let account = schema::read_account_key(account)?;
            let (table_id, epoch) = schema::read_heard(value)?;
            heard.push(HeardRoutes {
                account,
                table_id,
                epoch,
                routes: Vec::new(),
            });
            Ok(())
        })?;
        // Both families come by ascending account.
        let mut at = 0;
        self.each(family::LEARNED, |key, value| {
            let (account, route) = schema::read_learned(key, value)?;
            while heard.get(at).is_some_and(|of| of.account < account) {
                at += 1;
            }
            let of = heard.get_mut(at).filter(|of| of.account == account);
            let routes = &mut of.ok_or(Malformed("neighbour of a learned route"))?.routes;
            if routes.len() == routes.capacity() {
                // There may be a million of them: doubling would leave as much memory unused.
                routes.reserve_exact(routes.len() / 8 + 8);
            }
            routes.push(route);
            Ok(())
        })?;
        heard.retain(|of| {
            accounts
                .binary_search_by_key(&of.account, |(account, _)| account.id)
                .is_ok()
        });
        Ok(heard)
    }

    /// One per asset; an asset in which nothing was ever moved has none stored.
    fn positions(&self, assets: usize) -> Result<Vec<i128>, ReadError> {
        let mut positions = vec![0; assets];
        self.each(family::POSITIONS, |key, value| {
            let asset = schema::read_asset_key(key)?;
            let position = positions
                .get_mut(asset.index())
                .ok_or(Malformed("asset of a position"))?;
            *position = schema::read_amount(value)?;
            Ok(())
        })?;
        Ok(positions)
    }

    /// Records and balances are two families with the same keys: one without the other is damage.
    fn each_account(
        &self,
        mut visit: impl FnMut(AccountId, &[u8], Standing) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut balances = self.records(family::BALANCES).into_iter().flatten();
        self.each(family::ACCOUNTS, |key, record| {
            let (owner, standing) = balances.next().ok_or(Malformed("balance of an account"))??;
            if *owner != *key {
                return Err(Malformed("pair of an account and its balance").into());
            }
            visit(schema::read_account_key(key)?, record, schema::read_balance(&standing)?)
        })?;
        match balances.next() {
            None => Ok(()),
            Some(_) => Err(Malformed("account of a balance").into()),
        }
    }

    fn accounts(&self, assets: &[Asset], secrets: &Secrets) -> Result<Vec<(Arc<Account>, Standing)>, ReadError> {
        let assets: Vec<_> = assets.iter().cloned().map(Arc::new).collect();
        let mut accounts = Vec::new();
        self.each_account(|id, record, standing| {
            accounts.push((Arc::new(schema::read_account(id, record, &assets, secrets)?), standing));
            Ok(())
        })?;
        Ok(accounts)
    }

    fn audit(&self) -> Result<Audit, ReadError> {
        let assets = self.assets()?;
        let positions = self.positions(assets.len())?;
        let mut sums = Sums::new(assets.into_iter());
        let open = self.open_settlements()?;
        // Only their accounts' assets are looked for, in a book of which most accounts do not settle at this moment.
        let mut assets_settling = BTreeMap::new();
        assets_settling.extend(open.iter().map(|open| (open.account, None)));
        self.each_account(|id, record, standing| {
            let asset = schema::read_account_asset(record)?;
            if let Some(of) = assets_settling.get_mut(&id) {
                *of = Some(asset);
            }
            sums.add_account(asset, standing.booked).map_err(ReadError::Other)
        })?;
        for open in &open {
            let asset = assets_settling[&open.account].ok_or(Malformed("account of an open settlement"))?;
            sums.add_settlement(asset, open).map_err(ReadError::Other)?;
        }
        sums.close(&positions, &self.pending()?).map_err(ReadError::Other)
    }
}

/// For a pass over everything: it would fill the cache with what is not read again.
fn read_once() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);

    // What is damaged is refused and never passed over. Of the recovery modes, this one forgives a log that ends in
    // the middle of a record, which is what a crash during a write leaves (such a batch was never acknowledged).
    // "Point in time" would also drop everything behind a damaged record, acknowledged or not, without a word;
    // "absolute consistency" would not start after a crash. The price: a file system that after a power cut shows
    // zeros for the end of a write it had not finished is refused too, because nobody can tell that from damage.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_paranoid_checks(true);
    options.set_track_and_verify_wals_in_manifest(true);
    // Families reach their files together, so no damage to the log can separate a balance from its counter-entry.
    options.set_atomic_flush(true);

    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(LOG_BYTES);
    options.set_max_open_files(OPEN_FILES);
    options.set_compression_type(DBCompressionType::None);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    options.set_block_based_table_factory(&table);

    // One thread writes: nothing to make concurrent. Two in the background: one to flush, one to compact.
    options.set_allow_concurrent_memtable_write(false);
    options.set_max_background_jobs(2);

    // An idle node does nothing, and its folder does not fill with log files.
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_skip_stats_update_on_db_open(true);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(1 << 20);
    options.set_keep_log_file_num(2);
    options
}

/// Makes the folder, for this user only, and makes the folder's own name durable.
fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn open_error(error: rocksdb::Error) -> OpenError {
    use rocksdb::ErrorKind::{Corruption, IOError};
    let kind = error.kind();
    let text = error.into_string();
    match kind {
        // Held by another process, or by this one. RocksDB has no code for it, only these words.
        IOError if text.contains("While lock file") || text.contains("lock hold by current process") => {
            OpenError::Locked
        }
        Corruption => OpenError::Corrupt(text),
        _ => OpenError::Unavailable(text),
    }
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::RocksDb(error) => open_error(error),
            ReadError::Malformed(_) | ReadError::Other(_) => Self::Corrupt(error.to_string()),
        }
    }
}

impl From<Malformed> for OpenError {
    fn from(error: Malformed) -> Self {
        ReadError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use crossbeam::channel::{Receiver, unbounded};

    use super::*;
    use crate::ledger::settlement::SentTo;
    use crate::ledger::{AssetId, Links, SettlementState, Transfer};
    use crate::store::tests::{Folder, account, assets, book};
    use crate::store::{Durability, EngineTask, LearnedRoute, MemoryStore, Writer, recover};

    const SEED: [u8; 32] = [7; 32];

    impl Folder {
        fn open(&self) -> Result<RocksStore, OpenError> {
            RocksStore::open(&self.0, &SEED)
        }

        fn files(&self, extension: &str) -> Vec<PathBuf> {
            let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
            entries
                .filter(|path| path.extension().is_some_and(|end| end == extension))
                .collect()
        }

        /// Copies a store that nobody has open.
        fn copy_to(&self, copy: &Self) {
            fs::create_dir_all(&copy.0).unwrap();
            for entry in fs::read_dir(&self.0).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, copy.0.join(path.file_name().unwrap())).unwrap();
            }
        }

        /// The log that the last commits are in.
        fn log(&self) -> PathBuf {
            self.files("log").into_iter().max().unwrap()
        }
    }

    fn mutations() -> Vec<Mutation> {
        let assets = (0..)
            .zip(assets())
            .map(|(id, asset)| Mutation::PutAsset(AssetId::new(id), asset));
        let accounts = [account(0, 0), account(1, 1), account(2, 0)]
            .map(Arc::new)
            .map(Mutation::PutAccount);
        let route = |prefix: &str, next_hop| Mutation::PutStaticRoute {
            prefix: prefix.into(),
            next_hop: AccountId::new(next_hop),
        };
        let texts = |texts: &[(&str, &str)]| -> Vec<(Box<str>, Box<str>)> {
            let text = |(code, text): &(&str, &str)| ((*code).into(), (*text).into());
            texts.iter().map(text).collect()
        };
        let rates = |rates| Mutation::PutRates(texts(rates));
        let engines = |engines| Mutation::PutEngines(texts(engines));
        let mut more = vec![
            route("", 0),
            route("test.west", 1),
            route("test.east", 1),
            route("test.west", 0),
            Mutation::RemoveStaticRoute {
                prefix: "test.east".into(),
            },
            rates(&[("ABC", "1"), ("OLD", "5")]),
            rates(&[("XYZ", "0.25"), ("ABC", "2"), ("\u{10FFFF}", "3")]),
            engines(&[("ABC", "http://old/"), ("OLD", "http://old/")]),
            engines(&[("XYZ", "http://127.0.0.1:3001/"), ("ABC", "https://engine.example/a")]),
            Mutation::PutNodeAddress("test.node".into()),
            Mutation::DeleteAccount {
                id: AccountId::new(2),
                write_off: false,
            },
        ];
        more.splice(0..0, assets.chain(accounts));
        more
    }

    fn start(store: impl Store + 'static) -> (super::super::WriterHandle, super::super::TransferSender) {
        let (handle, sender, _) = start_listening(store);
        (handle, sender)
    }

    fn start_listening(
        store: impl Store + 'static,
    ) -> (
        super::super::WriterHandle,
        super::super::TransferSender,
        Receiver<Settlement>,
    ) {
        let mut store: Box<dyn Store> = Box::new(store);
        let book = recover(&mut *store).unwrap();
        let interval = Duration::from_millis(100);
        let (settlements, made) = unbounded();
        let started = Writer::start(store, &book, 1, Durability::Commit, interval, settlements);
        let (handle, mut senders) = started.unwrap();
        (handle, senders.remove(0), made)
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

    /// Writes a single record past all rules, as a damaged disk or a meddler would.
    fn tamper(folder: &Folder, family: &str, key: &[u8], value: &[u8]) {
        let store = folder.open().unwrap();
        store.db.0.put_cf(store.db.family(family), key, value).unwrap();
    }

    #[test]
    fn a_new_store_is_empty_and_for_this_user_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new();
        let mut store = RocksStore::open(&folder.0.join("below"), &SEED).unwrap();
        assert_eq!(recover(&mut store), Ok(Book::default()));
        assert_eq!(fs::metadata(&folder.0).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_was_committed_is_read_back_and_is_what_the_memory_store_holds() {
        let folder = Folder::new();
        let memory = MemoryStore::default();
        let play = |(handle, mut sender): (super::super::WriterHandle, super::super::TransferSender)| {
            handle.apply(mutations()).unwrap();
            sender.push(transfer(0, 1, u64::MAX, 3));
            sender.push(transfer(1, 0, 5, 6));
            handle
                .apply(vec![Mutation::PutAccount(Arc::new(account(3, 1)))])
                .unwrap();
            sender.push(transfer(0, 3, 9, 8));
            let delete = Mutation::DeleteAccount {
                id: AccountId::new(3),
                write_off: true,
            };
            assert_eq!(handle.apply(vec![delete]).unwrap().written_off, 8);
            handle.stop();
        };
        play(start(folder.open().unwrap()));
        play(start(memory.clone()));
        let kept = recover(&mut folder.open().unwrap()).unwrap();
        assert_eq!(kept, recover(&mut memory.restart()).unwrap());
        assert_eq!(kept.next_account_id, 4, "numbers are not given again");
        assert_eq!(
            kept.static_routes,
            [("".into(), AccountId::new(0)), ("test.west".into(), AccountId::new(0))]
        );
        assert_eq!(kept.rates.len(), 3, "OLD is gone");
        assert_eq!(kept.accounts[0].1, Standing::of(6 - i128::from(u64::MAX) - 9));
    }

    /// The same on disk and in memory: what payments have sent, what is read back of them, and what is forgotten.
    #[test]
    fn payments_are_remembered() {
        let folder = Folder::new();
        let memory = MemoryStore::default();
        let (alice, bob) = (AccountId::new(0), AccountId::new(1));
        let number = |number| PaymentNumber::new(number).unwrap();
        let begin = |account, payment, key: Option<u8>| Mutation::BeginPayment {
            account,
            number: number(payment),
            record: format!("begun {payment}").into_bytes().into(),
            key: key.map(|key| [key; 32]),
        };
        let end = |account, payment| Mutation::EndPayment {
            account,
            number: number(payment),
            record: format!("ended {payment}").into_bytes().into(),
        };
        let paid = |payment, incoming_amount| Transfer {
            payment: Some(number(payment)),
            ..transfer(0, 1, incoming_amount, 1)
        };
        let play = |(handle, mut sender): (super::super::WriterHandle, super::super::TransferSender)| {
            handle.apply(mutations()).unwrap();
            handle
                .apply(vec![
                    begin(alice, 5, Some(5)),
                    begin(bob, 6, Some(5)),
                    begin(alice, 7, None),
                ])
                .unwrap();
            for (payment, amount) in [(5, 100), (7, 1), (5, 20), (7, 2)] {
                sender.push(paid(payment, amount));
            }
            handle.apply(vec![end(bob, 6)]).unwrap();
            sender.push(paid(7, 4));
            // Refused, each for a reason of its own, and nothing is changed.
            for refused in [
                begin(alice, 7, None),
                begin(AccountId::new(9), 8, None),
                end(bob, 6),
                end(bob, 7),
                end(alice, 99),
                Mutation::ForgetPayments {
                    account: alice,
                    before: number(6),
                },
                Mutation::DeleteAccount {
                    id: alice,
                    write_off: true,
                },
            ] {
                assert!(handle.apply(vec![refused.clone()]).is_err(), "{refused:?}");
            }
            handle.apply(vec![end(alice, 5)]).unwrap();
            let reader = handle.reader().unwrap();
            let shown = |stored: Vec<StoredPayment>| -> Vec<String> {
                let texts = stored
                    .iter()
                    .map(|payment| String::from_utf8(payment.record.to_vec()).unwrap());
                texts.collect()
            };
            assert_eq!(shown(reader.payments(alice, None, 9).unwrap()), ["begun 7", "ended 5"]);
            assert_eq!(shown(reader.payments(alice, None, 1).unwrap()), ["begun 7"]);
            assert_eq!(shown(reader.payments(alice, Some(number(7)), 9).unwrap()), ["ended 5"]);
            assert_eq!(shown(reader.payments(bob, None, 9).unwrap()), ["ended 6"]);
            let by_key = |account, key| {
                reader
                    .payment_by_key(account, &[key; 32])
                    .unwrap()
                    .map(|found| found.number)
            };
            assert_eq!(
                [by_key(alice, 5), by_key(bob, 5), by_key(alice, 6)],
                [Some(number(5)), Some(number(6)), None]
            );
            handle
                .apply(vec![Mutation::ForgetPayments {
                    account: alice,
                    before: number(7),
                }])
                .unwrap();
            assert_eq!(shown(reader.payments(alice, None, 9).unwrap()), ["begun 7"]);
            assert_eq!([by_key(alice, 5), by_key(bob, 5)], [None, Some(number(6))]);
            assert!(reader.payment(bob, number(6)).unwrap().is_some());
            let delete = Mutation::DeleteAccount {
                id: bob,
                write_off: true,
            };
            let routes = ["", "test.west"].map(|prefix| Mutation::PutStaticRoute {
                prefix: prefix.into(),
                next_hop: alice,
            });
            handle.apply(routes.into_iter().chain([delete]).collect()).unwrap();
            assert!(reader.payments(bob, None, 9).unwrap().is_empty());
            assert_eq!(by_key(bob, 5), None);
            drop(reader);
            handle.stop();
        };
        play(start(memory.clone()));
        play(start(folder.open().unwrap()));
        let kept = recover(&mut folder.open().unwrap()).unwrap();
        assert_eq!(kept, recover(&mut memory.restart()).unwrap());
        let open: Vec<_> = kept.open_payments.iter().map(|open| (open.number, open.sent)).collect();
        assert_eq!(
            open,
            [(number(7), 7)],
            "what a payment has sent is in the book with the balances"
        );
        assert_eq!(&*kept.open_payments[0].record, b"begun 7");
        assert_eq!(kept.last_payment, Some(number(7)));
    }

    /// An engine has brought `amount` at `scale` to account 0, on top of what was left over before.
    fn receive(before: &Remainder, amount: u64, scale: u8, key: u8, at_ms: u64) -> (Mutation, Remainder) {
        let (credited, remainder) = before.credit(&amount.into(), scale, assets()[0].scale).unwrap();
        let mutation = Mutation::ReceiveSettlement {
            account: AccountId::new(0),
            credited,
            remainder: remainder.clone(),
            key: [key; 32],
            input: [amount as u8; 32],
            status: 201,
            answer: format!("{amount}@{scale}").into_bytes().into(),
            at_ms,
        };
        (mutation, remainder)
    }

    fn announce(engine: &str, task: EngineTask) -> Mutation {
        Mutation::AnnounceAccount {
            account: AccountId::new(0),
            engine: engine.into(),
            uuid: [5; 16],
            task,
        }
    }

    fn announced(engine: &str, task: EngineTask) -> Mutation {
        Mutation::AnnouncedAccount {
            account: AccountId::new(0),
            engine: engine.into(),
            task,
        }
    }

    /// The same on disk and in memory: the outbox, what it makes of the balances, what engines brought and asked.
    #[test]
    fn settlements_are_remembered() {
        let folder = Folder::new();
        let memory = MemoryStore::default();
        let (alice, bob) = (AccountId::new(0), AccountId::new(1));
        let number = SettlementNumber::new;
        let delete = |id| Mutation::DeleteAccount { id, write_off: true };
        let in_asset = |asset| Mutation::PutAccount(Arc::new(account(0, asset)));
        let play = |(handle, mut sender, made): (
            super::super::WriterHandle,
            super::super::TransferSender,
            Receiver<Settlement>,
        )| {
            handle.apply(mutations()).unwrap();
            let routes = Mutation::RemoveStaticRoute {
                prefix: "test.west".into(),
            };
            handle.apply(vec![routes]).unwrap();
            // Bob has paid Alice 100, of which 60 go to her engine; he owes 5 and is to be prefunded with 7.
            sender.push(transfer(1, 0, 5, 100));
            sender.push(Transfer::settlement(alice, 60));
            sender.push(Transfer::settlement(bob, 7));
            handle.apply(Vec::new()).unwrap();
            let first: Vec<Settlement> = made.try_iter().collect();
            let shown: Vec<_> = first
                .iter()
                .map(|one| (one.number, one.account, one.amount, one.scale, one.state))
                .collect();
            let pending = SettlementState::Pending;
            assert_eq!(
                shown,
                [(number(1), alice, 60, 9, pending), (number(2), bob, 7, 2, pending)]
            );
            assert!(first[0].id != first[1].id && first[0].created_ms > 1_700_000_000_000);
            let [of_alice, of_bob] = first.try_into().unwrap();
            let standing = |booked, prepaid, settling| {
                Some(Standing {
                    booked,
                    prepaid,
                    settling,
                })
            };
            assert_eq!(handle.standing(alice), standing(40, 0, true));
            assert_eq!(handle.standing(bob), standing(-12, 0, true));
            let audit = handle.audit().unwrap();
            let lines: Vec<_> = audit.assets.iter().map(|line| (line.position, line.pending)).collect();
            assert_eq!((lines, audit.adds_up()), (vec![(-40, 60), (12, 7)], true));

            let reader = handle.reader().unwrap();
            let sent_to = || SentTo {
                engine: "http://engine/".into(),
                since_ms: 12,
            };
            let with = |of: &Settlement, state, attempts, ended_ms| Settlement {
                state,
                sent_to: (state == SettlementState::Sent).then(sent_to),
                attempts,
                ended_ms,
                ..of.clone()
            };
            let sent = with(&of_alice, SettlementState::Sent, 1, None);
            handle.apply(vec![Mutation::UpdateSettlement(sent.clone())]).unwrap();
            assert_eq!(reader.settlement(number(1)), Ok(Some(sent.clone())));
            assert_eq!(reader.settlement_by_id(of_alice.id), Ok(Some(sent.clone())));
            // Refused, each for a reason of its own, and nothing is changed.
            let cancel = |of| Mutation::CancelSettlement {
                number: number(of),
                at_ms: 99,
            };
            let forget = |account, before| Mutation::ForgetSettlements {
                account,
                before: number(before),
            };
            let confirmed = with(&of_alice, SettlementState::Confirmed, 1, Some(98));
            for (refused, why) in [
                (vec![cancel(1)], StoreError::SettlementSent { number: number(1) }),
                (vec![cancel(9)], StoreError::SettlementNotOpen { number: number(9) }),
                (vec![delete(alice)], StoreError::SettlementOpen),
                (vec![in_asset(1)], StoreError::SettlementOpen),
                (
                    vec![forget(bob, 3)],
                    StoreError::Inconsistent("an open settlement is not forgotten"),
                ),
                (
                    vec![Mutation::UpdateSettlement(Settlement { amount: 59, ..sent })],
                    StoreError::Inconsistent("a settlement keeps its number, id, account, amount and time"),
                ),
                (
                    vec![
                        Mutation::UpdateSettlement(confirmed.clone()),
                        Mutation::UpdateSettlement(confirmed.clone()),
                    ],
                    StoreError::SettlementNotOpen { number: number(1) },
                ),
                (
                    vec![cancel(2), cancel(2)],
                    StoreError::SettlementNotOpen { number: number(2) },
                ),
            ] {
                assert_eq!(handle.apply(refused), Err(why));
            }
            assert_eq!(handle.standing(alice), standing(40, 0, true));
            handle.apply(vec![Mutation::UpdateSettlement(confirmed)]).unwrap();
            assert_eq!(handle.standing(alice), standing(40, 0, false), "the engine owns it now");
            // Who knows that it was not paid: marked as failed and cancelled, in one call.
            let lost = with(&of_bob, SettlementState::Sent, 1, None);
            handle.apply(vec![Mutation::UpdateSettlement(lost)]).unwrap();
            let failed = with(&of_bob, SettlementState::Failed, 1, None);
            handle
                .apply(vec![Mutation::UpdateSettlement(failed), cancel(2)])
                .unwrap();
            assert_eq!(handle.standing(bob), standing(-5, 0, false));
            assert!(handle.audit().unwrap().assets.iter().all(|line| line.pending == 0));

            // Engines bring 30 units and 5 and a half, and ask again.
            let (brought, left) = receive(&Remainder::default(), 30, 9, 1, 10);
            handle.apply(vec![brought.clone()]).unwrap();
            assert_eq!(handle.apply(vec![brought]), Err(StoreError::SettlementKeyKnown));
            let (brought, left_then) = receive(&left, 55, 10, 2, 20);
            handle.apply(vec![brought]).unwrap();
            let (stale, _) = receive(&left, 1, 9, 3, 20);
            assert_eq!(handle.apply(vec![stale]), Err(StoreError::RemainderMoved));
            assert_eq!(handle.standing(alice), standing(75, 35, false));
            assert_eq!(reader.remainder(alice), Ok(left_then.clone()));
            assert_eq!(reader.remainder(bob), Ok(Remainder::default()));
            let answer = |key: u8| reader.settlement_answer(alice, &[key; 32]).unwrap();
            assert_eq!(answer(2), Some(([55; 32], 201, Box::from(*b"55@10"))));
            assert_eq!((answer(3), answer(1).is_some()), (None, true));
            let use_key = |key: u8| Mutation::UseSettlementKey {
                account: alice,
                key: [key; 32],
                at_ms: 30,
            };
            handle.apply(vec![use_key(1), use_key(9)]).unwrap();
            handle
                .apply(vec![Mutation::ForgetSettlementKeys {
                    before_ms: 30,
                    from: AccountId::new(0),
                }])
                .unwrap();
            assert_eq!((answer(1).is_some(), answer(2), answer(9)), (true, None, None));
            // Her packets use what is prepaid first.
            sender.push(transfer(0, 1, 50, 5));
            handle.apply(Vec::new()).unwrap();
            assert_eq!(handle.standing(alice), standing(25, 0, false));
            let (brought, left_over) = receive(&left_then, 10, 9, 4, 40);
            sender.push(transfer(0, 1, 25, 1));
            handle.apply(vec![brought]).unwrap();
            // Nothing is owed after this packet, but that of which less than a unit came in.
            sender.push(transfer(0, 1, 10, 1));
            handle.apply(Vec::new()).unwrap();
            assert_eq!(handle.apply(vec![in_asset(1)]), Err(StoreError::RemainderNotZero));
            assert!(!left_over.is_zero());
            // Prepaid can be what is owed otherwise: a balance of zero that is not nothing.
            sender.push(Transfer::settlement(alice, 8));
            let (brought, _) = receive(&left_over, 18, 9, 5, 50);
            handle.apply(vec![brought]).unwrap();
            let third = made.try_iter().last().unwrap();
            assert_eq!(third.number, number(3));
            assert_eq!(handle.standing(alice), standing(10, 10, true));

            for told in [
                announce("http://one/", EngineTask::Create),
                announced("http://one/", EngineTask::Create),
                announce("http://two/", EngineTask::Create),
                announce("http://one/", EngineTask::Delete),
                announce("http://three/", EngineTask::Create),
                announce("http://three/", EngineTask::Delete),
                announced("http://three/", EngineTask::Create),
                announced("http://never/", EngineTask::Create),
            ] {
                handle.apply(vec![told]).unwrap();
            }
            let shown = |stored: Result<Vec<Settlement>, StoreError>| -> Vec<(u64, &str)> {
                let stored = stored.unwrap();
                stored
                    .iter()
                    .map(|one| (one.number.get(), one.state.as_str()))
                    .collect()
            };
            assert_eq!(
                shown(reader.settlements(alice, None, 9)),
                [(3, "pending"), (1, "confirmed")]
            );
            assert_eq!(shown(reader.settlements(alice, None, 1)), [(3, "pending")]);
            assert_eq!(shown(reader.settlements(alice, Some(number(3)), 9)), [(1, "confirmed")]);
            assert_eq!(shown(reader.settlements(bob, None, 9)), [(2, "cancelled")]);
            handle.apply(vec![forget(alice, 3), delete(bob)]).unwrap();
            assert_eq!(shown(reader.settlements(alice, None, 9)), [(3, "pending")]);
            assert!(shown(reader.settlements(bob, None, 9)).is_empty());
            for forgotten in [&of_alice, &of_bob] {
                assert_eq!(reader.settlement(forgotten.number), Ok(None));
                assert_eq!(reader.settlement_by_id(forgotten.id), Ok(None));
            }
            drop(reader);
            handle.stop();
        };
        play(start_listening(memory.clone()));
        play(start_listening(folder.open().unwrap()));
        // Each of the two made ids and times of its own.
        let alike = |mut book: Book| {
            for open in &mut book.open_settlements {
                (open.id, open.created_ms) = ([0; 16], 0);
            }
            book
        };
        let kept = alike(recover(&mut folder.open().unwrap()).unwrap());
        assert_eq!(kept, alike(recover(&mut memory.restart()).unwrap()));
        assert_eq!(kept.last_settlement, Some(number(3)));
        let open: Vec<_> = kept
            .open_settlements
            .iter()
            .map(|open| (open.number, open.amount))
            .collect();
        assert_eq!((open, kept.accounts[0].1.settling), (vec![(number(3), 8)], true));
        let tasks: Vec<_> = kept
            .engine_tasks
            .iter()
            .map(|open| (&*open.engine, open.task))
            .collect();
        assert_eq!(
            tasks,
            [
                ("http://one/", EngineTask::Delete),
                ("http://three/", EngineTask::Delete),
                ("http://two/", EngineTask::Create)
            ]
        );
        let known: Vec<_> = kept.announced.iter().map(|(_, engine)| &**engine).collect();
        assert_eq!(known, ["http://one/", "http://three/"]);

        // What an engine was to be told of an account's end outlives the account; the rest goes with it.
        for store in [
            Box::new(memory.restart()) as Box<dyn Store>,
            Box::new(folder.open().unwrap()),
        ] {
            let mut store = store;
            let book = recover(&mut *store).unwrap();
            let settlement = book.open_settlements[0].clone();
            let interval = Duration::from_millis(100);
            let (handle, _senders) =
                Writer::start(store, &book, 1, Durability::Commit, interval, unbounded().0).unwrap();
            let cancel = Mutation::CancelSettlement {
                number: settlement.number,
                at_ms: 100,
            };
            let route = Mutation::RemoveStaticRoute { prefix: "".into() };
            assert_eq!(
                handle.apply(vec![route, cancel, delete(alice)]).unwrap().written_off,
                18
            );
            let reader = handle.reader().unwrap();
            assert_eq!(reader.settlement_by_id(settlement.id), Ok(None));
            assert_eq!(reader.settlement_answer(alice, &[5; 32]), Ok(None));
            assert_eq!(reader.remainder(alice), Ok(Remainder::default()));
            assert!(reader.audit().unwrap().adds_up());
            drop(reader);
            handle
                .apply(vec![announced("http://three/", EngineTask::Delete)])
                .unwrap();
            handle.stop();
        }
        let left = recover(&mut folder.open().unwrap()).unwrap();
        assert!(left.accounts.is_empty() && left.remainders.is_empty() && left.announced.len() == 1);
        assert_eq!(left.engine_tasks.len(), 1);
        assert_eq!(
            (&*left.engine_tasks[0].engine, left.engine_tasks[0].uuid),
            ("http://one/", [5; 16])
        );
        assert_eq!(left.last_settlement, Some(number(3)), "numbers are not given again");
    }

    #[test]
    fn answers_are_bounded_and_the_oldest_makes_room_after_a_day() {
        let folder = Folder::new();
        let (handle, _sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        let alice = AccountId::new(0);
        let digest_of = |key: u32| {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&key.to_be_bytes());
            digest
        };
        // Filled past the rules, because it takes 65,536 commits otherwise; the ledger reads them back at start.
        let (first, mut left) = receive(&Remainder::default(), 1, 9, 0, 1_000);
        handle.apply(vec![first]).unwrap();
        handle.stop();
        let store = folder.open().unwrap();
        let max = crate::store::SETTLEMENT_KEYS_MAX as u32;
        for number in 1..max {
            let received = schema::received_key(alice, &digest_of(number));
            let used_ms = 2_000 + u64::from(number);
            store
                .db
                .0
                .put_cf(store.db.family(family::USED), &received, used_ms.to_be_bytes())
                .unwrap();
            store
                .db
                .0
                .put_cf(
                    store.db.family(family::RECEIVED),
                    &received,
                    schema::received(&[0; 32], 201, b""),
                )
                .unwrap();
        }
        let (handle, _sender) = start(store);
        let mut receive = |key: u32, at_ms| {
            let (mut mutation, after) = self::receive(&left, 1, 9, 0, at_ms);
            if let Mutation::ReceiveSettlement { key: digest, .. } = &mut mutation {
                *digest = digest_of(key);
            }
            let received = handle.apply(vec![mutation]);
            if received.is_ok() {
                left = after;
            }
            received
        };
        let day = crate::store::SETTLEMENT_KEY_MS_MIN;
        let full = StoreError::TooManySettlementKeys { max: max as usize };
        assert_eq!(receive(max, 1_000 + day - 1), Err(full.clone()));
        assert_eq!(
            handle.booked(alice),
            Some(1),
            "nothing is credited that cannot be answered again"
        );
        receive(max, 1_000 + day).unwrap();
        assert_eq!(
            receive(max + 1, 1_000 + day),
            Err(full),
            "the next one is younger than a day"
        );
        let reader = handle.reader().unwrap();
        let is_kept = |number| reader.settlement_answer(alice, &digest_of(number)).unwrap().is_some();
        assert_eq!([is_kept(0), is_kept(1), is_kept(max)], [false, true, true]);
        drop(reader);
        handle.stop();
        assert_eq!(
            recover(&mut folder.open().unwrap()).unwrap().keys_used.len(),
            max as usize
        );
    }

    #[test]
    fn more_engines_than_an_account_can_have_are_refused() {
        let memory = MemoryStore::default();
        let (handle, _sender) = start(memory);
        handle.apply(mutations()).unwrap();
        let max = crate::store::ENGINES_OF_ACCOUNT_MAX;
        let announce = |number: usize| announce(&format!("http://engine{number}/"), EngineTask::Delete);
        handle.apply((0..max).map(announce).collect()).unwrap();
        assert_eq!(
            handle.apply(vec![announce(max)]),
            Err(StoreError::TooManyEngines { max })
        );
        handle.apply(vec![announce(0)]).unwrap();
        handle
            .apply(vec![announced("http://engine7/", EngineTask::Delete)])
            .unwrap();
        handle.apply(vec![announce(max)]).unwrap();
        let far = "http://".to_owned() + &"a".repeat(crate::store::ENGINE_URL_BYTES_MAX);
        let refused = handle.apply(vec![self::announce(&far, EngineTask::Delete)]);
        assert_eq!(refused, Err(StoreError::Inconsistent("the URL of an engine is short")));
    }

    #[test]
    fn a_store_of_a_version_that_knew_no_settlements_opens_without_loss() {
        let folder = Folder::new();
        let (handle, mut sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        sender.push(transfer(0, 1, 100, 7));
        handle.stop();
        let before = recover(&mut folder.open().unwrap()).unwrap();
        assert_eq!(before.accounts[0].1, Standing::of(-100));
        // As that version left it: without the families it did not have, and marked as its own.
        let families = DB::list_cf(&options(), &folder.0).unwrap();
        let mut older = DB::open_cf(&options(), &folder.0, &families).unwrap();
        for name in [
            family::SETTLED,
            family::SETTLING,
            family::NAMED,
            family::PENDING,
            family::RECEIVED,
            family::USED,
            family::REMAINDER,
            family::TOLD,
        ] {
            older.drop_cf(name).unwrap();
        }
        let meta = older.cf_handle(family::META).unwrap();
        older.put_cf(meta, meta::FORMAT_VERSION, 1u32.to_be_bytes()).unwrap();
        drop(older);
        let seen = read_only(&folder.0, &SEED, |store| {
            assert!(store.reader().audit().unwrap().adds_up());
            recover(store)
        });
        assert_eq!(seen.as_ref(), Ok(&before), "also by a reader, who cannot add them");
        assert_eq!(recover(&mut folder.open().unwrap()).as_ref(), Ok(&before));
        let version = |store: &RocksStore| View::new(&store.db).meta(meta::FORMAT_VERSION).unwrap().unwrap();
        let (handle, mut sender) = start(folder.open().unwrap());
        sender.push(transfer(0, 1, 1, 1));
        handle
            .apply(vec![Mutation::PutAccount(Arc::new(account(0, 0)))])
            .unwrap();
        handle.stop();
        let still = version(&folder.open().unwrap());
        assert_eq!(still, 1u32.to_be_bytes(), "that version can still open it");
        let (handle, mut sender) = start(folder.open().unwrap());
        sender.push(Transfer::settlement(AccountId::new(1), 3));
        handle.stop();
        let store = folder.open().unwrap();
        assert_eq!(
            version(&store),
            schema::FORMAT_VERSION.to_be_bytes(),
            "and now it would misread it"
        );
        drop(store);
        let kept = recover(&mut folder.open().unwrap()).unwrap();
        assert_eq!((kept.open_settlements.len(), kept.accounts[1].1.booked), (1, 5));
    }

    #[test]
    fn a_log_cut_anywhere_keeps_each_settlement_with_its_balance_or_neither() {
        let folder = Folder::new();
        let (handle, mut sender, made) = start_listening(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        let mut ends = Vec::new();
        let mut commit = |handle: &super::super::WriterHandle, mutations| {
            handle.apply(mutations).unwrap();
            ends.push(fs::metadata(folder.log()).unwrap().len());
        };
        commit(&handle, Vec::new());
        sender.push(Transfer::settlement(AccountId::new(0), 60));
        commit(&handle, Vec::new());
        let number = made.recv().unwrap().number;
        commit(&handle, vec![Mutation::CancelSettlement { number, at_ms: 1 }]);
        let (brought, _) = receive(&Remainder::default(), 55, 10, 1, 1);
        commit(&handle, vec![brought]);
        handle.stop();
        let whole = fs::read(folder.log()).unwrap();
        let copy = Folder::new();
        let cuts = ends[1..].iter().flat_map(|end| [end - 1, *end]);
        for end in (ends[0]..ends[3]).step_by(61).chain(cuts) {
            folder.copy_to(&copy);
            fs::write(copy.log(), &whole[..end as usize]).unwrap();
            let store = copy.open().unwrap();
            let reader = store.reader();
            let book = recover(&mut { store }).unwrap();
            let audit = reader.audit().unwrap();
            let standing = book.accounts[0].1;
            let left_over = reader.remainder(AccountId::new(0)).unwrap();
            let answered = reader.settlement_answer(AccountId::new(0), &[1; 32]).unwrap().is_some();
            let seen = (
                standing.booked,
                standing.prepaid,
                audit.assets[0].pending,
                left_over.is_zero(),
                answered,
            );
            let expected = match ends.iter().filter(|whole| **whole <= end).count() {
                1 => (0, 0, 0, true, false),
                2 => (-60, 0, 60, true, false),
                3 => (0, 0, 0, true, false),
                _ => (5, 5, 0, false, true),
            };
            assert_eq!(seen, expected, "cut at {end} of {ends:?}");
            drop(reader);
            fs::remove_dir_all(&copy.0).unwrap();
        }
    }

    #[test]
    fn settlements_that_do_not_fit_the_book_are_refused() {
        let original = Folder::new();
        let (handle, mut sender) = start(original.open().unwrap());
        handle.apply(mutations()).unwrap();
        sender.push(Transfer::settlement(AccountId::new(0), 60));
        handle.stop();
        recover(&mut original.open().unwrap()).unwrap();
        let number = schema::settlement_number(SettlementNumber::new(1));
        let key = schema::settlement_key(AccountId::new(0), SettlementNumber::new(1));
        let record = |amount, scale, state| {
            let made = Settlement::made(SettlementNumber::new(1), [1; 16], AccountId::new(0), amount, scale, 0);
            schema::settlement(&Settlement { state, ..made })
        };
        let pending = SettlementState::Pending;
        let balance = |booked, prepaid| {
            schema::balance(&Standing {
                booked,
                prepaid,
                settling: false,
            })
        };
        let left = |scale, units: u8| schema::remainder(&Remainder::from_parts(scale, units.into(), 1).unwrap());
        for (name, key, value, is_damage) in [
            (family::SETTLED, &key[..], record(61, 9, pending), false),
            (family::SETTLED, &key, record(60, 8, pending), true),
            (family::SETTLED, &key, record(60, 9, SettlementState::Confirmed), true),
            (family::SETTLED, &key, vec![2], true),
            (family::SETTLING, &number, vec![0, 0, 0, 0, 0], false),
            (family::SETTLING, &number, vec![0, 0, 0, 7, 1], true),
            (family::SETTLING, &number, vec![0, 0, 0, 0, 2], true),
            (family::SETTLING, &[0, 0, 0, 0, 0, 0, 0, 9], vec![0, 0, 0, 0, 1], true),
            (family::PENDING, &[0, 0], schema::amount(59).into(), false),
            (family::PENDING, &[0, 9], schema::amount(0).into(), true),
            (family::PENDING, &[0, 0], vec![1], true),
            (family::BALANCES, &[0; 4], balance(-60, -1), true),
            (family::BALANCES, &[0; 4], [&balance(-60, 1)[..], &[0]].concat(), true),
            (family::REMAINDER, &[0; 4], left(9, 1), true),
            (family::REMAINDER, &[0, 0, 0, 9], left(10, 1), true),
            (family::REMAINDER, &[0; 4], vec![0; 8], true),
            (family::USED, &[0; 36], vec![0; 7], true),
            (family::USED, &[0; 35], vec![0; 8], true),
            (family::TOLD, &[0; 5], vec![0; 17], true),
            (family::TOLD, b"\0\0\0\0\xff", vec![0; 18], true),
            (family::META, meta::LAST_SETTLEMENT, vec![0; 8], true),
        ] {
            let folder = Folder::new();
            original.copy_to(&folder);
            tamper(&folder, name, key, &value);
            let error = recover(&mut folder.open().unwrap()).unwrap_err();
            let expected = match &error {
                OpenError::Corrupt(_) => is_damage,
                OpenError::DoesNotAddUp(_) => !is_damage,
                _ => false,
            };
            assert!(expected, "{name} {key:?} {value:?}: {error}");
            assert_eq!(
                audit_closed(&folder.0).is_ok_and(|audit| audit.adds_up()),
                matches!(name, family::REMAINDER | family::USED | family::TOLD | family::META)
                    || (name == family::SETTLED && value == record(60, 8, pending))
                    || (name == family::BALANCES && value.len() == 32),
                "{name} {key:?} {value:?}"
            );
        }
    }

    fn route(prefix: &str, mark: u8) -> LearnedRoute {
        LearnedRoute {
            prefix: prefix.into(),
            path: vec![mark; usize::from(mark)].into(),
            auth: [mark; 32],
        }
    }

    fn learn(account: u32, epoch: u32, set: Vec<LearnedRoute>, removed: &[&str]) -> Mutation {
        Mutation::LearnRoutes {
            account: AccountId::new(account),
            table_id: [account as u8; 16],
            epoch,
            set,
            removed: removed.iter().map(|prefix| (*prefix).into()).collect(),
        }
    }

    /// What is known of neighbours, one line each: account, epoch, and the prefixes with their marks.
    fn heard(book: &Book) -> Vec<String> {
        let route = |route: &LearnedRoute| {
            let mark = route.auth[0];
            assert_eq!((&*route.path, route.auth), (&vec![mark; mark.into()][..], [mark; 32]));
            format!(" {}={mark}", route.prefix)
        };
        let line = |of: &HeardRoutes| {
            assert_eq!(of.table_id, [of.account.get() as u8; 16]);
            let routes: String = of.routes.iter().map(route).collect();
            format!("{}@{}:{routes}", of.account, of.epoch)
        };
        book.heard.iter().map(line).collect()
    }

    /// The same on disk and in memory: each update as a whole, by account and prefix, gone with the account.
    #[test]
    fn what_neighbours_told_is_remembered() {
        let folder = Folder::new();
        let memory = MemoryStore::default();
        let forget = |account| Mutation::ForgetRoutes {
            account: AccountId::new(account),
        };
        let longest = "a".repeat(1023);
        let too_long = "a".repeat(1024);
        // What is applied together, and what a start reads back then.
        let steps: Vec<(Vec<Mutation>, Vec<&str>)> = vec![
            (vec![learn(1, 0, vec![], &[])], vec!["1@0:"]),
            (
                vec![learn(
                    1,
                    7,
                    vec![route("test.b", 1), route("test.a", 2), route("", 3)],
                    &["test.c"],
                )],
                vec!["1@7: =3 test.a=2 test.b=1"],
            ),
            (
                vec![learn(0, 9, vec![route("test.b", 4), route("test.b", 5)], &["test.b"])],
                vec!["0@9: test.b=5", "1@7: =3 test.a=2 test.b=1"],
            ),
            (
                vec![learn(
                    1,
                    8,
                    vec![route("test.ab", 6), route("test.a", 7)],
                    &["test.b", ""],
                )],
                vec!["0@9: test.b=5", "1@8: test.a=7 test.ab=6"],
            ),
            (
                vec![forget(1), learn(1, 1, vec![route("test.z", 8)], &[]), forget(9)],
                vec!["0@9: test.b=5", "1@1: test.z=8"],
            ),
            (
                vec![
                    Mutation::DeleteAccount {
                        id: AccountId::new(0),
                        write_off: false,
                    },
                    Mutation::PutAssignedAddress(Some("test.parent.us".into())),
                ],
                vec!["1@1: test.z=8"],
            ),
            (vec![forget(1)], vec![]),
            (
                vec![
                    learn(1, 3, vec![route(&longest, 9)], &[]),
                    Mutation::PutAssignedAddress(None),
                    Mutation::PutAssignedAddress(Some("test.other.us".into())),
                ],
                vec!["1@3: $longest=9"],
            ),
        ];
        let with_path = |bytes| LearnedRoute {
            path: vec![0; bytes].into(),
            ..route("test.a", 1)
        };
        let refused = [
            learn(9, 1, vec![], &[]),
            learn(0, 1, vec![], &[]),
            learn(1, 1, vec![route("test.a", 1), route(&too_long, 1)], &[]),
            learn(1, 1, vec![], &[&too_long]),
            learn(1, 1, vec![with_path(4_097)], &[]),
        ];
        let mut disk = Vec::new();
        for (store, kept) in [(true, folder.0.clone()), (false, PathBuf::new())] {
            let open = || -> Box<dyn Store> {
                match store {
                    true => Box::new(RocksStore::open(&kept, &SEED).unwrap()),
                    false => Box::new(memory.clone()),
                }
            };
            let write = |mutations: Vec<Mutation>| {
                let mut store = open();
                let book = recover(&mut *store).unwrap();
                let interval = Duration::from_millis(100);
                let (handle, _senders) =
                    Writer::start(store, &book, 1, Durability::Commit, interval, unbounded().0).unwrap();
                let applied = handle.apply(mutations);
                handle.stop();
                applied.map(|_| recover(&mut *open()).unwrap())
            };
            write(mutations()).unwrap();
            let routes = ["", "test.west"].map(|prefix| Mutation::PutStaticRoute {
                prefix: prefix.into(),
                next_hop: AccountId::new(1),
            });
            write(routes.into()).unwrap();
            for (mutations, expected) in &steps {
                let expected: Vec<_> = expected.iter().map(|line| line.replace("$longest", &longest)).collect();
                assert_eq!(heard(&write(mutations.clone()).unwrap()), expected, "{mutations:?}");
            }
            for mutation in &refused {
                let first = Mutation::PutNodeAddress("test.changed".into());
                let error = write(vec![first, mutation.clone()]).unwrap_err();
                assert!(matches!(error, StoreError::Inconsistent(_)), "{error}");
            }
            write(vec![learn(1, 4, vec![with_path(4_096)], &[])]).unwrap();
            disk.push(recover(&mut *open()).unwrap());
        }
        assert_eq!(disk[0], disk[1]);
        assert_eq!(disk[0].assigned_address.as_deref(), Some("test.other.us"));
        assert_eq!(
            disk[0].node_address.as_deref(),
            Some("test.node"),
            "what was refused has changed nothing"
        );
        assert_eq!(disk[0].heard[0].routes.len(), 2);
    }

    #[test]
    fn a_store_of_a_version_that_knew_no_learned_routes_opens_without_loss() {
        let folder = Folder::new();
        let (handle, mut sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        sender.push(transfer(0, 1, 100, 7));
        handle.stop();
        let before = recover(&mut folder.open().unwrap()).unwrap();
        // As that version left it: without the families it did not have.
        let families = DB::list_cf(&options(), &folder.0).unwrap();
        let mut older = DB::open_cf(&options(), &folder.0, &families).unwrap();
        for name in [family::HEARD, family::LEARNED] {
            older.drop_cf(name).unwrap();
        }
        drop(older);
        let seen = read_only(&folder.0, &SEED, |store| recover(store));
        assert_eq!(seen.as_ref(), Ok(&before), "also by a reader, who cannot add them");
        assert_eq!(recover(&mut folder.open().unwrap()).as_ref(), Ok(&before));
        let (handle, _sender) = start(folder.open().unwrap());
        handle
            .apply(vec![
                learn(0, 1, vec![route("test.a", 1)], &[]),
                learn(1, 2, vec![route("test.b", 2)], &[]),
            ])
            .unwrap();
        handle.stop();
        assert_eq!(
            heard(&recover(&mut folder.open().unwrap()).unwrap()),
            ["0@1: test.a=1", "1@2: test.b=2"]
        );
        // The other way round: that version deletes an account and leaves what it does not know of.
        let store = folder.open().unwrap();
        let key = schema::account_key(AccountId::new(0));
        for name in [family::ACCOUNTS, family::BALANCES] {
            store.db.0.delete_cf(store.db.family(name), key).unwrap();
        }
        let position = schema::asset_key(AssetId::new(0));
        store
            .db
            .0
            .delete_cf(store.db.family(family::POSITIONS), position)
            .unwrap();
        drop(store);
        assert_eq!(heard(&recover(&mut folder.open().unwrap()).unwrap()), ["1@2: test.b=2"]);
    }

    /// What is recovered of a store that was stopped, for every place between the ends of its last two commits at which its
    /// log may be cut, and for the last end itself.
    fn recover_cut(folder: &Folder, ends: &[u64], check: impl Fn(u64, Book)) {
        let whole = fs::read(folder.log()).unwrap();
        let copy = Folder::new();
        for end in (ends[0]..ends[1]).step_by(4).chain([ends[1] - 1, ends[1]]) {
            fs::create_dir_all(&copy.0).unwrap();
            for entry in fs::read_dir(&folder.0).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, copy.0.join(path.file_name().unwrap())).unwrap();
            }
            fs::write(copy.log(), &whole[..end as usize]).unwrap();
            check(end, recover(&mut copy.open().unwrap()).unwrap());
            fs::remove_dir_all(&copy.0).unwrap();
        }
    }

    #[test]
    fn a_log_cut_anywhere_keeps_each_update_of_a_neighbour_whole_or_not_at_all() {
        let folder = Folder::new();
        let (handle, _sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        handle.stop();
        let (handle, _sender) = start(folder.open().unwrap());
        let mut ends = Vec::new();
        let updates = [
            learn(1, 1, vec![route("test.a", 1), route("test.b", 2)], &[]),
            learn(1, 2, vec![route("test.c", 3)], &["test.a"]),
        ];
        for update in updates {
            handle.apply(vec![update]).unwrap();
            ends.push(fs::metadata(folder.log()).unwrap().len());
        }
        handle.stop();
        recover_cut(&folder, &ends, |end, book| {
            let expected = match end == ends[1] {
                true => "1@2: test.b=2 test.c=3",
                false => "1@1: test.a=1 test.b=2",
            };
            assert_eq!(heard(&book), [expected], "cut at {end} of {ends:?}");
        });
    }

    #[test]
    fn an_audit_reads_the_store_and_not_our_memory() {
        let folder = Folder::new();
        let store = folder.open().unwrap();
        let db = store.db.clone();
        let (handle, mut sender) = start(store);
        handle.apply(mutations()).unwrap();
        sender.push(transfer(0, 1, 100, 7));
        let audit = handle.audit().unwrap();
        let lines: Vec<_> = audit
            .assets
            .iter()
            .map(|line| (line.accounts, line.balances, line.position))
            .collect();
        assert_eq!(lines, [(1, -100, 100), (1, 7, -7)]);
        let key = schema::account_key(AccountId::new(1));
        db.0.put_cf(db.family(family::BALANCES), key, schema::amount(8))
            .unwrap();
        assert!(!handle.audit().unwrap().adds_up());
        db.0.put_cf(db.family(family::BALANCES), key, b"8").unwrap();
        assert!(matches!(handle.audit(), Err(StoreError::Unreadable(_))));
    }

    #[test]
    fn a_log_cut_anywhere_loses_only_its_end() {
        let folder = Folder::new();
        let (handle, mut sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        handle.stop();
        drop(folder.open().unwrap());
        let (handle, mut sender_again) = start(folder.open().unwrap());
        std::mem::swap(&mut sender, &mut sender_again);
        // A log only grows in commits: where each ends is where a cut loses nothing.
        let mut ends = Vec::new();
        for _ in 0..2 {
            sender.push(transfer(0, 1, 10, 1));
            handle.apply(Vec::new()).unwrap();
            ends.push(fs::metadata(folder.log()).unwrap().len());
        }
        handle.stop();
        recover_cut(&folder, &ends, |end, book| {
            let commits = ends.iter().filter(|whole| **whole <= end).count();
            assert_eq!(book.accounts[1].1.booked, commits as i128, "cut at {end} of {ends:?}");
        });
    }

    #[test]
    fn a_log_damaged_in_the_middle_is_refused() {
        let folder = Folder::new();
        let (handle, mut sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        let damage = fs::metadata(folder.log()).unwrap().len() - 20;
        sender.push(transfer(0, 1, 10, 1));
        handle.stop();
        let mut bytes = fs::read(folder.log()).unwrap();
        bytes[damage as usize] ^= 1;
        fs::write(folder.log(), bytes).unwrap();
        assert!(matches!(folder.open(), Err(OpenError::Corrupt(_))));
    }

    #[test]
    fn another_seed_and_another_format_are_refused_and_named() {
        let folder = Folder::new();
        drop(folder.open().unwrap());
        let error = RocksStore::open(&folder.0, &[8; 32]).err().unwrap();
        assert_eq!(error, OpenError::WrongSeed);
        assert!(error.to_string().contains("secret_seed"), "{error}");
        tamper(&folder, family::META, meta::FORMAT_VERSION, &3u32.to_be_bytes());
        let error = folder.open().err().unwrap();
        assert_eq!(error, OpenError::UnknownFormat { found: 3, expected: 2 });
        // A newer format may have more families: it is still named, not just not understood.
        let mut newer = DB::open_cf(&options(), &folder.0, family::ALL).unwrap();
        newer.create_cf("outbox", &options()).unwrap();
        drop(newer);
        assert_eq!(folder.open().err().unwrap(), error);
    }

    #[test]
    fn a_store_in_use_is_locked() {
        // This test again, as the other process.
        const STORE: &str = "CLEARWAY_TEST_STORE";
        if let Some(path) = std::env::var_os(STORE) {
            let error = RocksStore::open(Path::new(&path), &SEED).err();
            assert_eq!(error, Some(OpenError::Locked));
            assert_eq!(used_by(Path::new(&path)), Some(std::os::unix::process::parent_id()));
            return;
        }
        let folder = Folder::new();
        assert_eq!(used_by(&folder.0), None);
        drop(folder.open().unwrap());
        assert_eq!(used_by(&folder.0), None);
        let _store = folder.open().unwrap();
        assert_eq!(folder.open().err(), Some(OpenError::Locked));
        let (_, module) = module_path!().split_once("::").unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([&format!("{module}::a_store_in_use_is_locked"), "--exact"])
            .env(STORE, &folder.0)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    /// Everything that a reader could have changed.
    fn listing(folder: &Folder) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
        let mut files: Vec<_> = fs::read_dir(&folder.0)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let file = entry.metadata().unwrap();
                (entry.path(), file.len(), file.modified().unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn a_reader_sees_what_is_committed_and_changes_nothing() {
        let folder = Folder::new();
        let missing = read_only(&folder.0, &SEED, |_| Ok(())).unwrap_err();
        assert!(matches!(missing, OpenError::Unavailable(_)), "{missing}");
        assert!(!folder.0.exists(), "and makes no folder");
        let (handle, mut sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        for round in 1..=3 {
            sender.push(transfer(0, 1, 10, 1));
            handle.apply(Vec::new()).unwrap();
            let before = listing(&folder);
            let book = read_only(&folder.0, &SEED, |store| recover(store)).unwrap();
            assert_eq!(book.accounts[1].1.booked, round);
            let error = read_only(&folder.0, &[8; 32], |_| Ok(())).unwrap_err();
            assert_eq!(error, OpenError::WrongSeed);
            assert_eq!(listing(&folder), before);
        }
        let refused = read_only(&folder.0, &SEED, |store| Ok(store.commit(&Batch::default())));
        assert!(matches!(refused, Ok(Err(StoreError::Failed(_)))), "{refused:?}");
        handle.stop();
        let before = listing(&folder);
        assert_eq!(
            read_only(&folder.0, &SEED, |store| recover(store)).unwrap().accounts[1]
                .1
                .booked,
            3
        );
        assert_eq!(listing(&folder), before);
    }

    /// Tables come and go quickly, as under a load that no real node has.
    #[test]
    fn a_reader_beside_a_busy_writer_is_never_wrong() {
        let folder = Folder::new();
        let store = folder.open().unwrap();
        let db = store.db.clone();
        let (handle, mut sender) = start(store);
        handle.apply(mutations()).unwrap();
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut paid = 0;
                while !done.load(Ordering::Relaxed) {
                    for _ in 0..10 {
                        sender.push(transfer(0, 1, 10, 1));
                        handle.apply(Vec::new()).unwrap();
                        paid += 1;
                    }
                    if paid % 20 == 0 {
                        db.0.flush_cf(db.family(family::BALANCES)).unwrap();
                    }
                }
                (handle, paid)
            }
        });
        let (mut last, mut read) = (0, 0);
        for _ in 0..40 {
            match read_only(&folder.0, &SEED, |store| recover(store)) {
                Ok(book) => {
                    let seen = book.accounts[1].1.booked;
                    assert!(seen >= last, "{seen} after {last}");
                    last = seen;
                    read += 1;
                }
                Err(error) => assert_eq!(error, OpenError::Unsettled),
            }
        }
        done.store(true, Ordering::Relaxed);
        let (handle, paid) = writer.join().unwrap();
        handle.stop();
        println!("{read} of 40 attempts read {last} of {paid} commits");
        assert!(read > 0 && last > 0, "{read} of 40 attempts");
        assert_eq!(
            read_only(&folder.0, &SEED, |store| recover(store)).unwrap().accounts[1]
                .1
                .booked,
            paid
        );
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = Folder::new();
        fs::write(&folder.0, "a file").unwrap();
        let error = RocksStore::open(&folder.0.join("store"), &SEED).err().unwrap();
        assert!(
            matches!(&error, OpenError::Unavailable(text) if text.contains("clearway-store-")),
            "{error}"
        );
        fs::remove_file(&folder.0).unwrap();
    }

    #[test]
    fn a_tampered_balance_does_not_add_up() {
        let folder = Folder::new();
        let (handle, mut sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        sender.push(transfer(0, 1, 100, 7));
        handle.stop();
        let first = schema::account_key(AccountId::new(0));
        tamper(&folder, family::BALANCES, &first, &schema::amount(-99));
        let Err(OpenError::DoesNotAddUp(audit)) = recover(&mut folder.open().unwrap()) else {
            panic!("must be refused");
        };
        assert!(!audit.assets[0].adds_up() && audit.assets[1].adds_up());
        let error = OpenError::DoesNotAddUp(audit).to_string();
        assert!(
            error.contains("ABC@9") && error.contains("the difference 1)"),
            "{error}"
        );
    }

    #[test]
    fn records_that_do_not_belong_together_are_refused() {
        let key = |id| schema::account_key(AccountId::new(id));
        let record = schema::account(&account(9, 1), &Secrets::new(&SEED));
        for (family, key, value) in [
            (family::BALANCES, &key(9)[..], &schema::amount(0)[..]),
            (family::ACCOUNTS, &key(9), &record),
            (family::ACCOUNTS, &key(0), b"garbage"),
            (family::BALANCES, &key(0), b"0"),
            (family::POSITIONS, &[0, 9], &schema::amount(0)),
            (family::ASSETS, &[0, 9], b"\x02ABC"),
            (family::RATES, b"ABC", b"\xff"),
            (family::META, meta::NEXT_ACCOUNT_ID, &[0, 0, 0, 1]),
            (family::META, meta::ASSIGNED_ADDRESS, b"\xff"),
            (family::HEARD, &key(0), &[2; 21]),
            (family::HEARD, &key(0), &schema::heard(&[7; 16], 1)[..20]),
            (family::LEARNED, &key(0)[..3], &[0; 32]),
            (family::LEARNED, &key(0), &[0; 32]),
            (family::LEARNED, &key(1), &[0; 31]),
            (family::LEARNED, b"\0\0\0\x01\xff", &[0; 32]),
        ] {
            let folder = Folder::new();
            let (handle, _sender) = start(folder.open().unwrap());
            handle.apply(mutations()).unwrap();
            handle.apply(vec![learn(1, 1, vec![], &[])]).unwrap();
            handle.stop();
            tamper(&folder, family, key, value);
            let error = recover(&mut folder.open().unwrap()).unwrap_err();
            assert!(matches!(error, OpenError::Corrupt(_)), "{family} {key:?}: {error}");
        }
    }

    #[test]
    fn no_token_is_in_any_file() {
        let folder = Folder::new();
        let (handle, _sender) = start(folder.open().unwrap());
        let mut with_tokens = account(0, 0);
        with_tokens.links = Links {
            http_incoming_token: Some("swordfish one".into()),
            http_outgoing_token: Some("swordfish two".into()),
            btp_incoming_token: Some("swordfish three".into()),
            btp_outgoing_token: Some("swordfish four".into()),
            ..Links::default()
        }
        .into();
        let assets = Mutation::PutAsset(AssetId::new(0), assets()[0].clone());
        handle
            .apply(vec![assets, Mutation::PutAccount(Arc::new(with_tokens.clone()))])
            .unwrap();
        handle.stop();
        let mut store = folder.open().unwrap();
        // Once more as a table, after the log.
        store.db.0.flush_cf(store.db.family(family::ACCOUNTS)).unwrap();
        assert_eq!(*recover(&mut store).unwrap().accounts[0].0, with_tokens);
        drop(store);
        assert!(!folder.files("log").is_empty() && !folder.files("sst").is_empty());
        let (mut names, mut tokens) = (0, 0);
        for entry in fs::read_dir(&folder.0).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            let count = |needle: &[u8]| bytes.windows(needle.len()).filter(|window| *window == needle).count();
            names += count(b"user_0");
            tokens += count(b"swordfish");
        }
        assert!(names > 0, "the search finds what is there in clear");
        assert_eq!(tokens, 0);
    }

    #[test]
    fn a_book_larger_than_the_write_buffers_comes_back() {
        let folder = Folder::new();
        let (handle, mut sender) = start(folder.open().unwrap());
        let assets = (0..)
            .zip(assets())
            .map(|(id, asset)| Mutation::PutAsset(AssetId::new(id), asset));
        handle.apply(assets.collect()).unwrap();
        let accounts = 30_000;
        for first in (0..accounts).step_by(1000) {
            let put = |id| Mutation::PutAccount(Arc::new(account(id, (id % 2) as u16)));
            handle.apply((first..first + 1000).map(put).collect()).unwrap();
        }
        for id in 1..accounts {
            sender.push(transfer(id - 1, id, u64::from(id), 1));
        }
        assert!(handle.audit().unwrap().adds_up());
        handle.stop();
        assert!(!folder.files("sst").is_empty(), "some of it is in tables");
        let kept = recover(&mut folder.open().unwrap()).unwrap();
        assert_eq!(kept.accounts.len(), 30_000);
        assert_eq!(kept.accounts[1].1.booked, 1 - 2);
        assert_ne!(kept.positions(), book(&[], 0).positions());
    }

    /// With CLEARWAY_TEST_UPDATES=1000, a million of them.
    #[test]
    fn more_routes_than_the_write_buffers_hold_come_back() {
        const ROUTES_PER_UPDATE: u32 = 1_000;
        let updates = std::env::var("CLEARWAY_TEST_UPDATES").map_or(40, |updates| updates.parse().unwrap());
        let folder = Folder::new();
        let (handle, _sender) = start(folder.open().unwrap());
        handle.apply(mutations()).unwrap();
        let prefix = |number: u32| format!("test.net{:02}.node{number:07}", number % 97);
        for update in 0..updates {
            let numbers = update * ROUTES_PER_UPDATE..(update + 1) * ROUTES_PER_UPDATE;
            let set = numbers
                .map(|number| route(&prefix(number), (number % 251) as u8))
                .collect();
            handle.apply(vec![learn(update % 2, update, set, &[])]).unwrap();
        }
        handle.stop();
        assert!(!folder.files("sst").is_empty(), "some of it is in tables");
        let started = std::time::Instant::now();
        let kept = recover(&mut folder.open().unwrap()).unwrap();
        println!("{} routes read in {:?}", updates * ROUTES_PER_UPDATE, started.elapsed());
        assert_eq!([kept.heard[0].epoch, kept.heard[1].epoch], [updates - 2, updates - 1]);
        for (of, routes) in (0..).zip(&kept.heard) {
            let mut expected: Vec<_> = (0..updates * ROUTES_PER_UPDATE)
                .filter(|number| number / ROUTES_PER_UPDATE % 2 == of)
                .map(|number| (prefix(number), (number % 251) as u8))
                .collect();
            expected.sort();
            let read: Vec<_> = routes
                .routes
                .iter()
                .map(|route| (route.prefix.to_string(), route.auth[0]))
                .collect();
            assert!(read == expected, "account {of}");
        }
    }
}
