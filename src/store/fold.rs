//! Folds transfers and mutations into the balances of one batch.
//!
//! Owns the arithmetic of the book: what each account and each of our positions will be when the batch is on disk, and
//! what they are there now. Leaves threads, queues and the disk itself to [`super::writer`].
//!
//! A settlement is folded like any transfer: its amount leaves the balance against our own position, and the record by
//! which an engine is made to pay it is in the same batch. Whether an account settles is none of the book's business.
//!
//! Always: what one batch changes sums to zero in every asset, and what it adds to what is on its way to engines is what
//! the records in it say. That is asserted of each batch before it is written, and proven again of the whole book when it
//! is read back ([`super::recovery`]).

use std::collections::{BTreeMap, BTreeSet};

use super::keys_used::KeysUsed;
use super::settling::{self, ENGINES_OF_ACCOUNT_MAX, EngineAccount, EngineAccounts, EngineTask};
use super::{
    Applied, Batch, Book, Mutation, SETTLEMENT_KEY_MS_MIN, SETTLEMENT_KEYS_MAX, SettlementKey, StoreError, heard,
};
use crate::ledger::account::place_in;
use crate::ledger::balance::{prepaid_after_debit, prepaid_after_settlement};
use crate::ledger::settlement::Settlement;
use crate::ledger::transfer::Owner;
use crate::ledger::{
    AccountId, Asset, AssetId, PaymentNumber, Remainder, SETTLEMENT, SettlementNumber, SettlementState, Standing,
    Transfer,
};

/// The book on disk, and on top of it the batch that is being made. Only what the batch touches is kept in both forms.
pub(super) struct Ledger {
    assets: Vec<Asset>,
    /// By asset.
    positions: Vec<i128>,
    /// The same on disk.
    positions_durable: Vec<i128>,
    /// By account. One that is deleted leaves a gap for ever, because its number is never given again.
    lines: Vec<Option<Line>>,
    next_account_id: u32,
    mutations: Vec<Mutation>,
    /// Each account that the batch touches, once.
    touched: Vec<Touched>,
    /// Payments that have begun and not ended.
    payments: BTreeMap<PaymentNumber, Paying>,
    /// Each payment that the batch touches, once. It may have ended since.
    payments_touched: Vec<PaymentNumber>,
    last_payment: Option<PaymentNumber>,
    /// Settlements that are open, the batch included. At most one of an account.
    settlements: BTreeMap<SettlementNumber, Settlement>,
    /// The record of each settlement that the batch makes, changes or ends, and the asset of its amount.
    settlements_touched: BTreeMap<SettlementNumber, (AssetId, Settlement)>,
    last_settlement: Option<SettlementNumber>,
    /// The same on disk.
    last_settlement_durable: Option<SettlementNumber>,
    /// What is on its way to engines, the batch included.
    pending: BTreeMap<AssetId, i128>,
    /// The same on disk.
    pending_durable: BTreeMap<AssetId, i128>,
    remainders: BTreeMap<AccountId, Remainder>,
    /// When the answer to each incoming settlement was last used.
    keys: KeysUsed,
    /// Each key that the batch touches, once.
    keys_touched: BTreeMap<(AccountId, SettlementKey), Option<u64>>,
    engine_accounts: EngineAccounts,
    /// Each of these that the batch touches, once; `None`: it is gone.
    told: BTreeMap<(AccountId, Box<str>), Option<EngineAccount>>,
}

/// A payment that is open, the batch included.
struct Paying {
    account: AccountId,
    sent: u64,
    /// The batch adds to what it has sent.
    touched: bool,
}

/// Payments that may be open at one time, at some 100 bytes each; further ones are refused.
pub(super) const PAYMENTS_OPEN_MAX: usize = 65_536;

/// An account, the batch included.
struct Line {
    booked: i128,
    prepaid: i128,
    asset: AssetId,
    /// Its place in [`Ledger::touched`], or [`UNTOUCHED`].
    touched: u32,
    /// A settlement of it is open.
    settling: bool,
    /// The batch deletes it.
    deleted: bool,
}

impl Line {
    fn new(asset: AssetId, standing: Standing) -> Self {
        Self {
            booked: standing.booked,
            prepaid: standing.prepaid,
            asset,
            touched: UNTOUCHED,
            settling: standing.settling,
            deleted: false,
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            booked: self.booked,
            prepaid: self.prepaid,
            settling: self.settling,
        }
    }
}

const UNTOUCHED: u32 = u32::MAX;

/// An account that the batch touches, as it was before.
struct Touched {
    id: AccountId,
    asset: AssetId,
    /// What it is on disk. `None`: the account is new.
    before: Option<Standing>,
}

/// What the mutations of one call that were looked at so far have made of the book.
struct Draft<'a> {
    ledger: &'a Ledger,
    assets: Vec<&'a Asset>,
    next_account_id: u32,
    /// The accounts that they name, or nothing.
    accounts: BTreeMap<AccountId, Option<(Standing, AssetId)>>,
    last_payment: Option<PaymentNumber>,
    /// The payments that they name: whose it is, or nothing.
    payments: BTreeMap<PaymentNumber, Option<AccountId>>,
    payments_begun: usize,
    /// The settlements that they name, or nothing.
    settlements: BTreeMap<SettlementNumber, Option<&'a Settlement>>,
    /// What incoming settlements leave over.
    remainders: BTreeMap<AccountId, &'a Remainder>,
    /// Engines that an account had nothing to do with before.
    engines: BTreeMap<AccountId, BTreeSet<&'a str>>,
}

impl Ledger {
    pub(super) fn new(book: &Book) -> Self {
        let mut ledger = Self {
            assets: book.assets.clone(),
            positions: book.positions.clone(),
            positions_durable: book.positions.clone(),
            lines: Vec::new(),
            next_account_id: book.next_account_id,
            mutations: Vec::new(),
            touched: Vec::new(),
            payments: BTreeMap::new(),
            payments_touched: Vec::new(),
            last_payment: book.last_payment,
            settlements: BTreeMap::new(),
            settlements_touched: BTreeMap::new(),
            last_settlement: book.last_settlement,
            last_settlement_durable: book.last_settlement,
            pending: book.pending.clone(),
            pending_durable: book.pending.clone(),
            remainders: book.remainders.iter().cloned().collect(),
            keys: KeysUsed::new(&book.keys_used),
            keys_touched: BTreeMap::new(),
            engine_accounts: book.engine_accounts.clone(),
            told: BTreeMap::new(),
        };
        for open in &book.open_settlements {
            ledger.settlements.insert(open.number, open.clone());
        }
        for open in &book.open_payments {
            let paying = Paying {
                account: open.account,
                sent: open.sent,
                touched: false,
            };
            ledger.payments.insert(open.number, paying);
        }
        for (account, standing) in &book.accounts {
            ledger.insert(account.id, Line::new(account.asset_id, *standing));
        }
        ledger
    }

    fn insert(&mut self, id: AccountId, line: Line) {
        *place_in(&mut self.lines, id.index()) = Some(line);
    }

    fn line(&self, id: AccountId) -> Option<&Line> {
        let line = self.lines.get(id.index())?.as_ref()?;
        (!line.deleted).then_some(line)
    }

    /// What the book on disk says of an account.
    pub(super) fn durable(&self, id: AccountId) -> Option<Standing> {
        let line = self.lines.get(id.index())?.as_ref()?;
        match line.touched {
            UNTOUCHED => Some(line.standing()),
            place => self.touched[place as usize].before,
        }
    }

    /// The line of an account that exists, noted as touched.
    fn touch(&mut self, id: AccountId) -> &mut Line {
        let line = self.lines.get_mut(id.index()).and_then(Option::as_mut);
        let line = line.expect("the shards know which accounts exist");
        if line.touched == UNTOUCHED {
            line.touched = u32::try_from(self.touched.len()).expect("there are fewer accounts than numbers for them");
            self.touched.push(Touched {
                id,
                asset: line.asset,
                before: Some(line.standing()),
            });
        }
        line
    }

    /// Adds a transfer to the batch. Transfers come first in a batch: a mutation may end what they rely on.
    /// `now_ms` is milliseconds since 1970: a settlement bears the time at which it was folded.
    pub(super) fn fold(&mut self, transfer: &Transfer, now_ms: u64) {
        assert!(
            self.mutations.is_empty(),
            "a transfer is folded before the mutations of its batch"
        );
        if transfer.is_settlement() {
            return self.settle(transfer, now_ms);
        }
        let from = self.touch(transfer.from);
        from.prepaid = prepaid_after_debit(from.prepaid, transfer.incoming_amount);
        let from_asset = from.asset;
        let to_asset = self.touch(transfer.to).asset;
        for entry in transfer.entries(from_asset, to_asset) {
            match entry.owner {
                Owner::Account(id) => self.touch(id).booked += entry.amount,
                Owner::Connector => self.positions[entry.asset.index()] += entry.amount,
            }
        }
        if let Some(number) = transfer.payment {
            let paying = self.payments.get_mut(&number);
            let paying = paying.expect("a payment is open until its last packet has ended");
            paying.sent = paying
                .sent
                .checked_add(transfer.incoming_amount)
                .expect("a payment sends no more than its amount");
            if !paying.touched {
                paying.touched = true;
                self.payments_touched.push(number);
            }
        }
    }

    /// Money leaves an account towards an engine, and the record of it comes into being.
    fn settle(&mut self, transfer: &Transfer, now_ms: u64) {
        let (account, amount) = (transfer.from, transfer.incoming_amount);
        assert!(
            amount > 0 && transfer.outgoing_amount == 0 && transfer.payment.is_none(),
            "a settlement takes something from one account"
        );
        let line = self.touch(account);
        assert!(!line.settling, "the shards settle an account once at a time");
        line.settling = true;
        let asset = line.asset;
        self.move_out(account, asset, i128::from(amount));
        let number = SettlementNumber::next(self.last_settlement);
        self.last_settlement = Some(number);
        let id = uuid::Uuid::new_v4().into_bytes();
        let scale = self.assets[asset.index()].scale;
        let settlement = Settlement::made(number, id, account, amount, scale, now_ms);
        self.put_settlement(asset, settlement);
    }

    /// An amount leaves the balance of an account for its engine; a negative one comes back. What is prepaid stays.
    fn move_out(&mut self, account: AccountId, asset: AssetId, amount: i128) {
        self.touch(account).booked -= amount;
        self.positions[asset.index()] += amount;
        *self.pending.entry(asset).or_default() += amount;
    }

    /// Notes the record of a settlement, as it is after the batch.
    fn put_settlement(&mut self, asset: AssetId, settlement: Settlement) {
        let (number, record) = (settlement.number, settlement.clone());
        self.settlements_touched.insert(number, (asset, record));
        if settlement.state.is_open() {
            self.settlements.insert(settlement.number, settlement);
        } else {
            self.settlements.remove(&settlement.number);
            self.touch(settlement.account).settling = false;
        }
    }

    /// Adds mutations to the batch, all or none.
    pub(super) fn apply(&mut self, mutations: Vec<Mutation>) -> Result<Applied, StoreError> {
        self.check(&mutations)?;
        // From here on nothing can fail.
        let mut applied = Applied::default();
        for mutation in &mutations {
            match mutation {
                Mutation::PutAsset(id, asset) => {
                    if id.index() == self.assets.len() {
                        self.assets.push(asset.clone());
                        self.positions.push(0);
                    }
                }
                Mutation::PutAccount(account) => {
                    let (id, asset) = (account.id, account.asset_id);
                    if self.line(id).is_none() {
                        self.add(id, asset);
                    }
                    self.touch(id).asset = asset;
                }
                Mutation::DeleteAccount { id, .. } => {
                    let line = self.touch(*id);
                    line.deleted = true;
                    let (booked, asset) = (line.booked, line.asset);
                    self.positions[asset.index()] += booked;
                    applied.written_off += booked;
                    self.remainders.remove(id);
                    self.keys.remove_account(*id);
                    self.keys_touched.retain(|(account, _), _| account != id);
                }
                Mutation::UpdateSettlement(settlement) => {
                    let asset = self.touch(settlement.account).asset;
                    if !settlement.state.is_open() {
                        *self.pending.entry(asset).or_default() -= i128::from(settlement.amount);
                    }
                    self.put_settlement(asset, settlement.clone());
                }
                Mutation::CancelSettlement { number, at_ms } => {
                    let mut settlement = self.settlements[number].clone();
                    let asset = self.touch(settlement.account).asset;
                    self.move_out(settlement.account, asset, -i128::from(settlement.amount));
                    settlement.state = SettlementState::Cancelled;
                    settlement.ended_ms = Some(*at_ms);
                    self.put_settlement(asset, settlement);
                }
                Mutation::ReceiveSettlement {
                    account,
                    credited,
                    remainder,
                    key,
                    at_ms,
                    ..
                } => {
                    let line = self.touch(*account);
                    line.prepaid = prepaid_after_settlement(line.booked, line.prepaid, *credited);
                    line.booked += i128::from(*credited);
                    let asset = line.asset;
                    self.positions[asset.index()] -= i128::from(*credited);
                    self.remainders.insert(*account, remainder.clone());
                    self.make_room_for_key(*account);
                    self.use_key(*account, *key, *at_ms);
                }
                Mutation::UseSettlementKey { account, key, at_ms } => {
                    if self.keys.contains(*account, key) {
                        self.use_key(*account, *key, *at_ms);
                    }
                }
                Mutation::ForgetSettlementKeys { before_ms, from } => {
                    let touched = &mut self.keys_touched;
                    applied.forget_keys_from = self.keys.forget(*before_ms, *from, |account, key| {
                        touched.insert((account, key), None);
                    });
                }
                Mutation::BeginPayment { account, number, .. } => {
                    self.last_payment = Some(*number);
                    let paying = Paying {
                        account: *account,
                        sent: 0,
                        touched: false,
                    };
                    self.payments.insert(*number, paying);
                }
                Mutation::EndPayment { number, .. } => {
                    self.payments.remove(number);
                }
                Mutation::PutStaticRoute { .. }
                | Mutation::RemoveStaticRoute { .. }
                | Mutation::PutRates(_)
                | Mutation::PutEngines(_)
                | Mutation::PutNodeAddress(_)
                | Mutation::PutAssignedAddress(_)
                | Mutation::LearnRoutes { .. }
                | Mutation::ForgetRoutes { .. }
                | Mutation::ForgetPayments { .. }
                | Mutation::ForgetSettlements { .. }
                | Mutation::AnnounceAccount { .. }
                | Mutation::AnnouncedAccount { .. } => {}
            }
            let told = settling::tell(&self.engine_accounts, mutation);
            self.told.extend(told.iter().cloned());
            settling::update(&mut self.engine_accounts, told);
        }
        self.mutations.extend(mutations);
        Ok(applied)
    }

    /// Where as many answers are kept as may be, the one whose last use is the longest ago goes.
    fn make_room_for_key(&mut self, account: AccountId) {
        if self.keys.count(account) >= SETTLEMENT_KEYS_MAX
            && let Some(oldest) = self.keys.remove_oldest(account)
        {
            self.keys_touched.insert((account, oldest), None);
        }
    }

    fn use_key(&mut self, account: AccountId, key: SettlementKey, at_ms: u64) {
        self.keys.insert(account, key, at_ms);
        self.keys_touched.insert((account, key), Some(at_ms));
    }

    /// A new account, which is not on disk yet.
    fn add(&mut self, id: AccountId, asset: AssetId) {
        self.insert(id, Line::new(asset, Standing::default()));
        self.touch(id);
        let touched = self.touched.last_mut().expect("it has just been touched");
        touched.before = None;
        self.next_account_id = id.get() + 1;
    }

    /// Whether mutations fit the book, each after those before it. Changes nothing.
    fn check(&self, mutations: &[Mutation]) -> Result<(), StoreError> {
        let mut draft = Draft {
            ledger: self,
            assets: self.assets.iter().collect(),
            next_account_id: self.next_account_id,
            accounts: BTreeMap::new(),
            last_payment: self.last_payment,
            payments: BTreeMap::new(),
            payments_begun: 0,
            settlements: BTreeMap::new(),
            remainders: BTreeMap::new(),
            engines: BTreeMap::new(),
        };
        mutations.iter().try_for_each(|mutation| draft.check(mutation))
    }

    /// What was folded and applied since the last batch, checked against what is on disk. Before the next one is begun,
    /// [`Self::published`] says that this one is kept.
    pub(super) fn take_batch(&mut self) -> Batch {
        let mut sums = vec![0i128; self.positions.len()];
        let mut batch = Batch {
            mutations: std::mem::take(&mut self.mutations),
            balances: Vec::with_capacity(self.touched.len()),
            positions: Vec::new(),
            payments: Vec::with_capacity(self.payments_touched.len()),
            settlements: Vec::new(),
            last_settlement: (self.last_settlement != self.last_settlement_durable)
                .then_some(self.last_settlement)
                .flatten(),
            pending: Vec::new(),
            told: std::mem::take(&mut self.told).into_iter().collect(),
            keys_used: std::mem::take(&mut self.keys_touched).into_iter().collect(),
            next_account_id: self.next_account_id,
        };
        for number in self.payments_touched.drain(..) {
            if let Some(paying) = self.payments.get_mut(&number) {
                paying.touched = false;
                batch.payments.push((number, paying.account, paying.sent));
            }
        }
        for Touched { id, asset, before } in &self.touched {
            sums[asset.index()] -= before.map_or(0, |before| before.booked);
            if let Some(line) = self.line(*id) {
                batch.balances.push((*id, line.standing()));
                // It may be in another asset by now, and something may have come in that since.
                sums[line.asset.index()] += line.booked;
            }
        }
        for (number, (position, sum)) in self.positions.iter().zip(&mut sums).enumerate() {
            let before = self.positions_durable.get(number).copied().unwrap_or(0);
            // Not written when unchanged; a new asset is read back as zero.
            if *position != before {
                let number = u16::try_from(number).expect("assets are numbered in 16 bits");
                batch.positions.push((AssetId::new(number), *position));
            }
            *sum += position - before;
        }
        // The same rule as in `Transfer::entries`, on another path: from the sums that go to disk.
        assert!(
            sums.iter().all(|sum| *sum == 0),
            "what a batch changes sums to zero in every asset"
        );
        self.take_settlements(&mut batch);
        batch
    }

    /// The settlements that the batch touches and what it changes of what is on its way to engines, checked against
    /// their records.
    fn take_settlements(&mut self, batch: &mut Batch) {
        self.pending.retain(|_, amount| *amount != 0);
        let mut by_records = self.pending_durable.clone();
        for (asset, settlement) in std::mem::take(&mut self.settlements_touched).into_values() {
            // Only an open one can be touched, so what was on disk before was open.
            let was_open = Some(settlement.number) <= self.last_settlement_durable;
            let opened = i128::from(settlement.state.is_open()) - i128::from(was_open);
            *by_records.entry(asset).or_default() += opened * i128::from(settlement.amount);
            batch.settlements.push(settlement);
        }
        by_records.retain(|_, amount| *amount != 0);
        assert!(
            by_records == self.pending,
            "what is on its way to engines is what the settlements say"
        );
        let assets = self.pending.keys().chain(self.pending_durable.keys()).copied();
        let mut assets: Vec<_> = assets.collect();
        assets.sort_unstable();
        assets.dedup();
        let of = |amounts: &BTreeMap<AssetId, i128>, asset: AssetId| amounts.get(&asset).copied().unwrap_or(0);
        let changed = assets.into_iter().map(|asset| (asset, of(&self.pending, asset)));
        batch.pending = changed
            .filter(|(asset, amount)| *amount != of(&self.pending_durable, *asset))
            .collect();
    }

    /// Notes that the batch which was taken is on disk.
    pub(super) fn published(&mut self) {
        for Touched { id, .. } in self.touched.drain(..) {
            let place = &mut self.lines[id.index()];
            match place {
                Some(line) if !line.deleted => line.touched = UNTOUCHED,
                _ => *place = None,
            }
        }
        self.positions_durable.clone_from(&self.positions);
        self.pending_durable.clone_from(&self.pending);
        self.last_settlement_durable = self.last_settlement;
    }
}

impl<'a> Draft<'a> {
    /// Whether a mutation fits what those before it have made of the book; then it is part of that.
    fn check(&mut self, mutation: &'a Mutation) -> Result<(), StoreError> {
        settling::check_bytes(mutation)?;
        match mutation {
            Mutation::PutAsset(id, asset) => match self.assets.get(id.index()) {
                Some(known) if *known == asset => {}
                Some(_) => return Err(StoreError::Inconsistent("an asset never changes")),
                None if id.index() == self.assets.len() => self.assets.push(asset),
                None => {
                    return Err(StoreError::Inconsistent("assets are numbered without a gap"));
                }
            },
            Mutation::PutAccount(new) => {
                let standing = match self.account(new.id) {
                    Some((standing, asset)) => {
                        if asset != new.asset_id {
                            check_nothing_is_owed(standing)?;
                            if !self.remainder(new.id).is_none_or(Remainder::is_zero) {
                                return Err(StoreError::RemainderNotZero);
                            }
                        }
                        standing
                    }
                    None if new.id.get() < self.next_account_id => {
                        return Err(StoreError::Inconsistent("an account number is never used again"));
                    }
                    None if new.id >= SETTLEMENT => {
                        return Err(StoreError::Inconsistent("account numbers have run out"));
                    }
                    None => {
                        self.next_account_id = new.id.get() + 1;
                        Standing::default()
                    }
                };
                if self.assets.get(new.asset_id.index()) != Some(&&*new.asset) {
                    return Err(StoreError::Inconsistent("an account's asset is known by its number"));
                }
                self.accounts.insert(new.id, Some((standing, new.asset_id)));
            }
            Mutation::DeleteAccount { id, .. } if self.ledger.payments.values().any(|paying| paying.account == *id) => {
                return Err(StoreError::PaymentOpen);
            }
            Mutation::DeleteAccount { id, write_off } => {
                let (standing, _) = self
                    .account(*id)
                    .ok_or(StoreError::Inconsistent("an account that is deleted exists"))?;
                if standing.settling {
                    return Err(StoreError::SettlementOpen);
                }
                if !write_off {
                    check_nothing_is_owed(standing)?;
                }
                self.accounts.insert(*id, None);
            }
            Mutation::PutStaticRoute { .. }
            | Mutation::RemoveStaticRoute { .. }
            | Mutation::PutRates(_)
            | Mutation::PutEngines(_)
            | Mutation::PutNodeAddress(_)
            | Mutation::PutAssignedAddress(_)
            | Mutation::ForgetRoutes { .. }
            | Mutation::UseSettlementKey { .. }
            | Mutation::ForgetSettlementKeys { .. }
            | Mutation::AnnouncedAccount { .. } => {}
            Mutation::LearnRoutes {
                account, set, removed, ..
            } => {
                if self.account(*account).is_none() {
                    return Err(StoreError::Inconsistent("an account that tells routes exists"));
                }
                heard::check_update(set, removed)?;
            }
            Mutation::ForgetPayments { account, before } => {
                let mut open = self
                    .ledger
                    .payments
                    .iter()
                    .filter(|(_, paying)| paying.account == *account);
                if open.next().is_some_and(|(number, _)| number < before) {
                    return Err(StoreError::Inconsistent("an open payment is not forgotten"));
                }
            }
            Mutation::BeginPayment { account, number, .. } => {
                if self.account(*account).is_none() {
                    return Err(StoreError::Inconsistent("an account that pays exists"));
                }
                if self.last_payment.is_some_and(|last| *number <= last) {
                    return Err(StoreError::Inconsistent("a payment's number is never used again"));
                }
                self.payments_begun += 1;
                if self.ledger.payments.len() + self.payments_begun > PAYMENTS_OPEN_MAX {
                    return Err(StoreError::TooManyPayments { max: PAYMENTS_OPEN_MAX });
                }
                self.last_payment = Some(*number);
                self.payments.insert(*number, Some(*account));
            }
            Mutation::EndPayment { account, number, .. } => {
                let open = match self.payments.get(number) {
                    Some(payer) => *payer,
                    None => self.ledger.payments.get(number).map(|paying| paying.account),
                };
                if open != Some(*account) {
                    return Err(StoreError::Inconsistent("a payment that ends is open"));
                }
                self.payments.insert(*number, None);
            }
            Mutation::UpdateSettlement(after) => {
                let before = self.open_settlement(after.number)?;
                before.may_become(after).map_err(StoreError::Inconsistent)?;
                if after.state.is_open() {
                    self.settlements.insert(after.number, Some(after));
                } else {
                    self.end_settlement(after, 0);
                }
            }
            Mutation::CancelSettlement { number, .. } => {
                let before = self.open_settlement(*number)?;
                if before.may_be_paid() {
                    return Err(StoreError::SettlementSent { number: *number });
                }
                self.end_settlement(before, i128::from(before.amount));
            }
            Mutation::ForgetSettlements { account, before } => {
                let mut open = self.ledger.settlements.values();
                if open.any(|open| open.account == *account && open.number < *before && self.is_open(open.number)) {
                    return Err(StoreError::Inconsistent("an open settlement is not forgotten"));
                }
            }
            Mutation::ReceiveSettlement { .. } => self.check_received(mutation)?,
            Mutation::AnnounceAccount {
                account, engine, task, ..
            } => {
                if *task == EngineTask::Create && self.account(*account).is_none() {
                    return Err(StoreError::Inconsistent("an account that is announced exists"));
                }
                let known = &self.ledger.engine_accounts;
                let new = self.engines.entry(*account).or_default();
                if !known.contains_key(&(*account, engine.clone())) {
                    new.insert(engine);
                }
                if settling::of_account(known, *account).count() + new.len() > ENGINES_OF_ACCOUNT_MAX {
                    return Err(StoreError::TooManyEngines {
                        max: ENGINES_OF_ACCOUNT_MAX,
                    });
                }
            }
        }
        Ok(())
    }

    fn check_received(&mut self, mutation: &'a Mutation) -> Result<(), StoreError> {
        let Mutation::ReceiveSettlement {
            account,
            credited,
            remainder,
            key,
            at_ms,
            ..
        } = mutation
        else {
            unreachable!("called for nothing else")
        };
        let (mut standing, asset) = self
            .account(*account)
            .ok_or(StoreError::Inconsistent("an account that is settled with exists"))?;
        if self.remainders.contains_key(account) {
            return Err(StoreError::Inconsistent(
                "one incoming settlement of an account at a time",
            ));
        }
        let keys = &self.ledger.keys;
        if keys.contains(*account, key) {
            return Err(StoreError::SettlementKeyKnown);
        }
        if keys.count(*account) >= SETTLEMENT_KEYS_MAX {
            let oldest = keys.oldest(*account);
            let is_old = oldest.is_some_and(|(used_ms, _)| at_ms.saturating_sub(used_ms) >= SETTLEMENT_KEY_MS_MIN);
            if !is_old {
                return Err(StoreError::TooManySettlementKeys {
                    max: SETTLEMENT_KEYS_MAX,
                });
            }
        }
        if !remainder.follows(self.remainder(*account).unwrap_or(&Remainder::default())) {
            return Err(StoreError::RemainderMoved);
        }
        if !remainder.is_below_one_unit(self.assets[asset.index()].scale) {
            return Err(StoreError::Inconsistent(
                "what a settlement leaves over is below one unit",
            ));
        }
        self.remainders.insert(*account, remainder);
        standing.prepaid = prepaid_after_settlement(standing.booked, standing.prepaid, *credited);
        standing.booked += i128::from(*credited);
        self.accounts.insert(*account, Some((standing, asset)));
        Ok(())
    }

    fn account(&self, id: AccountId) -> Option<(Standing, AssetId)> {
        match self.accounts.get(&id) {
            Some(account) => *account,
            None => self.ledger.line(id).map(|line| (line.standing(), line.asset)),
        }
    }

    fn remainder(&self, account: AccountId) -> Option<&Remainder> {
        match self.remainders.get(&account) {
            Some(remainder) => Some(remainder),
            None => self.ledger.remainders.get(&account),
        }
    }

    fn open_settlement(&self, number: SettlementNumber) -> Result<&'a Settlement, StoreError> {
        let open = match self.settlements.get(&number) {
            Some(open) => *open,
            None => self.ledger.settlements.get(&number),
        };
        open.ok_or(StoreError::SettlementNotOpen { number })
    }

    fn is_open(&self, number: SettlementNumber) -> bool {
        self.open_settlement(number).is_ok()
    }

    /// `returned` comes back to the balance.
    fn end_settlement(&mut self, settlement: &Settlement, returned: i128) {
        self.settlements.insert(settlement.number, None);
        let account = self.account(settlement.account);
        let (mut standing, asset) = account.expect("an account stays while a settlement is open");
        standing.settling = false;
        standing.booked += returned;
        self.accounts.insert(settlement.account, Some((standing, asset)));
    }
}

/// That no amount of the account would mean something else, or be lost, without the account as it is.
fn check_nothing_is_owed(standing: Standing) -> Result<(), StoreError> {
    match standing {
        Standing { settling: true, .. } => Err(StoreError::SettlementOpen),
        Standing { booked: balance, .. } if balance != 0 => Err(StoreError::BalanceNotZero { balance }),
        Standing { prepaid, .. } if prepaid != 0 => Err(StoreError::PrepaidNotZero { prepaid }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use num_bigint::BigInt;
    use num_rational::BigRational;
    use num_traits::Zero;
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::settlement::SentTo;
    use crate::ledger::{AccountLimits, Balance};
    use crate::store::tests::{account, assets, book};
    use crate::store::{Fault, MemoryStore, Reader, Store, recover};

    fn transfer(from: u32, to: u32, incoming_amount: u64, outgoing_amount: u64) -> Transfer {
        Transfer {
            from: AccountId::new(from),
            to: AccountId::new(to),
            incoming_amount,
            outgoing_amount,
            payment: None,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Transfer {
            from: u32,
            to: u32,
            incoming_amount: u64,
            outgoing_amount: u64,
        },
        Put {
            id: u32,
            asset: u16,
        },
        Delete {
            id: u32,
            write_off: bool,
        },
        Commit,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..6u32, 0..6u32, 0..100u64, 0..100u64).prop_map(
                |(from, to, incoming_amount, outgoing_amount)| Step::Transfer {
                    from, to, incoming_amount, outgoing_amount
                }
            ),
            2 => (0..6u32, 0..2u16).prop_map(|(id, asset)| Step::Put { id, asset }),
            1 => (0..6u32, any::<bool>()).prop_map(|(id, write_off)| Step::Delete { id, write_off }),
            2 => Just(Step::Commit),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// Whatever is folded into whichever batches: after each the book adds up, and what the writer believes to be
        /// on disk is what a start would read back.
        #[test]
        fn every_batch_leaves_a_book_that_adds_up(steps in steps()) {
            let mut kept = book(&[0, 0], 0);
            let mut ledger = Ledger::new(&kept);
            for step in steps.into_iter().chain([Step::Commit]) {
                match step {
                    Step::Transfer { from, to, incoming_amount, outgoing_amount } => {
                        let exists = |id| ledger.line(AccountId::new(id)).is_some();
                        if ledger.mutations.is_empty() && exists(from) && exists(to) {
                            ledger.fold(&transfer(from, to, incoming_amount, outgoing_amount), 0);
                        }
                    }
                    Step::Put { id, asset } => {
                        let _ = ledger.apply(vec![Mutation::PutAccount(Arc::new(account(id, asset)))]);
                    }
                    Step::Delete { id, write_off } => {
                        let id = AccountId::new(id);
                        let balance = ledger.line(id).map(|line| line.booked);
                        let applied = ledger.apply(vec![Mutation::DeleteAccount { id, write_off }]);
                        prop_assert_eq!(applied.ok().map(|applied| applied.written_off), balance.filter(
                            |balance| *balance == 0 || write_off
                        ));
                    }
                    Step::Commit => {
                        let batch = ledger.take_batch();
                        let believed = |ledger: &Ledger| {
                            let ids = (0..6).map(AccountId::new);
                            (ids.map(|id| ledger.durable(id)).collect::<Vec<_>>(), ledger.positions_durable.clone())
                        };
                        let read_back = |kept: &Book| {
                            let mut standings = vec![None; 6];
                            for (account, standing) in &kept.accounts {
                                standings[account.id.index()] = Some(*standing);
                            }
                            (standings, kept.positions.clone())
                        };
                        prop_assert_eq!(believed(&ledger), read_back(&kept), "before the commit");
                        kept.commit(&batch);
                        ledger.published();
                        prop_assert_eq!(recover(&mut MemoryStore::holding(kept.clone())), Ok(kept.clone()));
                        prop_assert_eq!(believed(&ledger), read_back(&kept), "after it");
                    }
                }
            }
        }
    }

    /// What settlements and their surroundings do to accounts 0 to 3.
    #[derive(Clone, Debug)]
    enum Event {
        Transfer {
            from: u32,
            to: u32,
            incoming_amount: u64,
            outgoing_amount: u64,
        },
        /// Looks at the account's settling rule, as its shard would.
        Settle {
            id: u32,
            threshold: i64,
            to: i64,
        },
        /// The open settlement at this place gets into this state.
        Update {
            place: usize,
            state: SettlementState,
        },
        Cancel {
            place: usize,
        },
        Receive {
            id: u32,
            amount: u64,
            scale: u8,
            key: u8,
            at_ms: u64,
        },
        Use {
            id: u32,
            key: u8,
            at_ms: u64,
        },
        ForgetKeys {
            before_ms: u64,
        },
        Forget {
            id: u32,
            before: u64,
        },
        Put {
            id: u32,
            asset: u16,
        },
        Delete {
            id: u32,
            write_off: bool,
        },
        Announce {
            id: u32,
            engine: u8,
            task: EngineTask,
        },
        Announced {
            id: u32,
            engine: u8,
            task: EngineTask,
        },
        Commit,
        Crash {
            fault: Fault,
        },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let task = || prop_oneof![Just(EngineTask::Create), Just(EngineTask::Delete)];
        let amount = || prop_oneof![0..100u64, Just(u64::MAX)];
        let scale = prop_oneof![0..12u8, any::<u8>()];
        let event = prop_oneof![
            8 => (0..4u32, 0..4u32, amount(), amount()).prop_map(
                |(from, to, incoming_amount, outgoing_amount)| Event::Transfer {
                    from, to, incoming_amount, outgoing_amount
                }
            ),
            8 => (0..4u32, -20..120i64, -20..100i64)
                .prop_map(|(id, threshold, to)| Event::Settle { id, threshold, to }),
            4 => (0..4usize, 0..4usize).prop_map(|(place, state)| Event::Update {
                place,
                state: SettlementState::ALL[state],
            }),
            3 => (0..4usize).prop_map(|place| Event::Cancel { place }),
            8 => (0..4u32, amount(), scale, 0..20u8, 0..9u64).prop_map(
                |(id, amount, scale, key, at_ms)| Event::Receive { id, amount, scale, key, at_ms }
            ),
            1 => (0..4u32, 0..20u8, 0..9u64).prop_map(|(id, key, at_ms)| Event::Use { id, key, at_ms }),
            1 => (0..9u64).prop_map(|before_ms| Event::ForgetKeys { before_ms }),
            1 => (0..4u32, 0..9u64).prop_map(|(id, before)| Event::Forget { id, before }),
            1 => (0..4u32, 0..2u16).prop_map(|(id, asset)| Event::Put { id, asset }),
            1 => (0..4u32, any::<bool>()).prop_map(|(id, write_off)| Event::Delete { id, write_off }),
            1 => (0..4u32, 0..3u8, task()).prop_map(|(id, engine, task)| Event::Announce { id, engine, task }),
            1 => (0..4u32, 0..3u8, task()).prop_map(|(id, engine, task)| Event::Announced { id, engine, task }),
            4 => Just(Event::Commit),
            1 => prop_oneof![Just(Fault::Lost), Just(Fault::KeptUnseen)].prop_map(|fault| Event::Crash { fault }),
        ];
        proptest::collection::vec(event, 0..120)
    }

    /// What an account must be, by what was done with it.
    #[derive(Clone)]
    struct Expected {
        asset: u16,
        balance: Balance,
        /// What engines have brought, and what of it was credited, in whole units of the asset's code.
        came_in: BigRational,
        credited: BigRational,
    }

    type Expectations = BTreeMap<u32, Expected>;

    /// A node's book, what it must say now, and what must be left of it after a crash.
    struct Stage {
        disk: MemoryStore,
        ledger: Ledger,
        now: Expectations,
        durable: Expectations,
    }

    fn whole_units(amount: u64, scale: u8) -> BigRational {
        BigRational::new(amount.into(), BigInt::from(10).pow(scale.into()))
    }

    impl Stage {
        fn new() -> Self {
            let book = book(&[0, 0, 0], 0);
            let expected = Expected {
                asset: 0,
                balance: Balance::default(),
                came_in: BigRational::zero(),
                credited: BigRational::zero(),
            };
            let expected: Expectations = (0..3).map(|id| (id, expected.clone())).collect();
            Self {
                ledger: Ledger::new(&book),
                disk: MemoryStore::holding(book),
                now: expected.clone(),
                durable: expected,
            }
        }

        fn play(&mut self, event: Event) {
            match event {
                Event::Transfer {
                    from,
                    to,
                    incoming_amount,
                    outgoing_amount,
                } => {
                    if !self.now.contains_key(&from) || !self.now.contains_key(&to) {
                        return;
                    }
                    self.commit_mutations();
                    let free = AccountLimits::default();
                    let payer = &mut self.now.get_mut(&from).unwrap().balance;
                    let hold = payer.hold(incoming_amount, &free).unwrap();
                    payer.commit_hold(hold);
                    let payee = &mut self.now.get_mut(&to).unwrap().balance;
                    let reservation = payee.reserve(outgoing_amount, &free).unwrap();
                    payee.commit_reservation(reservation);
                    self.ledger
                        .fold(&transfer(from, to, incoming_amount, outgoing_amount), 0);
                }
                Event::Settle { id, threshold, to } => {
                    let is_settling = |open: &Settlement| open.account == AccountId::new(id);
                    if self.ledger.settlements.values().any(is_settling) {
                        return;
                    }
                    self.commit_mutations();
                    let due = self
                        .now
                        .get_mut(&id)
                        .and_then(|expected| expected.balance.settle(threshold, to));
                    if let Some(amount) = due {
                        self.ledger.fold(&Transfer::settlement(AccountId::new(id), amount), 7);
                    }
                }
                Event::Update { place, state } => {
                    let Some(mut settlement) = self.open_at(place) else {
                        return;
                    };
                    settlement.state = state;
                    // One that has failed may be at its engine, or not.
                    let may_be_paid = match state {
                        SettlementState::Sent => true,
                        SettlementState::Failed => settlement.may_be_paid(),
                        _ => false,
                    };
                    settlement.sent_to = may_be_paid.then(|| SentTo {
                        engine: "http://engine/".into(),
                        since_ms: 8,
                    });
                    settlement.attempts += 1;
                    settlement.ended_ms = (!state.is_open()).then_some(9);
                    self.ledger.apply(vec![Mutation::UpdateSettlement(settlement)]).unwrap();
                }
                Event::Cancel { place } => {
                    let Some(settlement) = self.open_at(place) else { return };
                    let number = settlement.number;
                    let cancelled = self.ledger.apply(vec![Mutation::CancelSettlement { number, at_ms: 9 }]);
                    if settlement.may_be_paid() {
                        assert_eq!(cancelled, Err(StoreError::SettlementSent { number }));
                    } else {
                        cancelled.unwrap();
                        let expected = self.now.get_mut(&settlement.account.get()).unwrap();
                        expected.balance.credit(settlement.amount);
                    }
                }
                Event::Receive {
                    id,
                    amount,
                    scale,
                    key,
                    at_ms,
                } => self.receive(id, amount, scale, key, at_ms),
                Event::Use { id, key, at_ms } => {
                    let (account, key) = (AccountId::new(id), [key; 32]);
                    self.ledger
                        .apply(vec![Mutation::UseSettlementKey { account, key, at_ms }])
                        .unwrap();
                }
                Event::ForgetKeys { before_ms } => {
                    let from = AccountId::new(0);
                    self.ledger
                        .apply(vec![Mutation::ForgetSettlementKeys { before_ms, from }])
                        .unwrap();
                }
                Event::Forget { id, before } => {
                    let (account, before) = (AccountId::new(id), SettlementNumber::new(before));
                    let mut open = self.ledger.settlements.values();
                    let is_in_the_way = open.any(|open| open.account == account && open.number < before);
                    let forgotten = self.ledger.apply(vec![Mutation::ForgetSettlements { account, before }]);
                    assert_eq!(forgotten.is_err(), is_in_the_way);
                }
                Event::Put { id, asset } => {
                    let put = self
                        .ledger
                        .apply(vec![Mutation::PutAccount(Arc::new(account(id, asset)))]);
                    if put.is_ok() {
                        let expected = self.now.entry(id).or_insert_with(|| Expected {
                            asset,
                            balance: Balance::default(),
                            came_in: BigRational::zero(),
                            credited: BigRational::zero(),
                        });
                        if expected.asset != asset {
                            assert_eq!(expected.came_in, expected.credited, "nothing is left over");
                            assert_eq!((expected.balance.booked(), expected.balance.prepaid()), (0, 0));
                            expected.asset = asset;
                        }
                    }
                }
                Event::Delete { id, write_off } => {
                    let account = AccountId::new(id);
                    let open = self.ledger.settlements.values().any(|open| open.account == account);
                    let deleted = self
                        .ledger
                        .apply(vec![Mutation::DeleteAccount { id: account, write_off }]);
                    if let Ok(applied) = deleted {
                        let expected = self.now.remove(&id).unwrap().balance;
                        assert_eq!(applied.written_off, expected.booked());
                        assert!(!open && (write_off || (expected.booked(), expected.prepaid()) == (0, 0)));
                    }
                }
                Event::Announce { id, engine, task } => {
                    let announced = self.ledger.apply(vec![Mutation::AnnounceAccount {
                        account: AccountId::new(id),
                        engine: format!("http://engine{engine}/").into(),
                        uuid: [1; 16],
                        task,
                    }]);
                    assert_eq!(
                        announced.is_ok(),
                        task == EngineTask::Delete || self.now.contains_key(&id)
                    );
                }
                Event::Announced { id, engine, task } => {
                    let (account, engine) = (AccountId::new(id), format!("http://engine{engine}/").into());
                    self.ledger
                        .apply(vec![Mutation::AnnouncedAccount { account, engine, task }])
                        .unwrap();
                }
                Event::Commit => self.commit(),
                Event::Crash { fault } => {
                    self.disk.crash_after(0, fault);
                    let batch = self.ledger.take_batch();
                    self.disk.commit(&batch).unwrap_err();
                    self.disk = self.disk.restart();
                    match fault {
                        Fault::Lost => self.now = self.durable.clone(),
                        Fault::KeptUnseen => self.durable = self.now.clone(),
                    }
                    self.ledger = Ledger::new(&recover(&mut self.disk.clone()).unwrap());
                }
            }
        }

        fn receive(&mut self, id: u32, amount: u64, scale: u8, key: u8, at_ms: u64) {
            let (account, key) = (AccountId::new(id), [key; 32]);
            let before = self.ledger.remainders.get(&account).cloned().unwrap_or_default();
            let account_scale = self.now.get(&id).map_or(0, |of| assets()[usize::from(of.asset)].scale);
            let Ok((credited, remainder)) = before.credit(&amount.into(), scale, account_scale) else {
                return;
            };
            let mutation = |remainder: &Remainder| Mutation::ReceiveSettlement {
                account,
                credited,
                remainder: remainder.clone(),
                key,
                input: [scale; 32],
                status: 201,
                answer: key.into(),
                at_ms,
            };
            let is_known = self.ledger.keys.contains(account, &key);
            match self.ledger.apply(vec![mutation(&remainder)]) {
                Ok(_) => {
                    assert!(!is_known);
                    let expected = self.now.get_mut(&id).unwrap();
                    expected.balance.credit_settlement(credited);
                    expected.came_in += whole_units(amount, scale);
                    expected.credited += whole_units(credited, account_scale);
                    // The same once more, under another key: computed from what is not there any more.
                    let mut again = mutation(&remainder);
                    if let Mutation::ReceiveSettlement { key, .. } = &mut again {
                        *key = [255; 32];
                    }
                    assert_eq!(self.ledger.apply(vec![again]), Err(StoreError::RemainderMoved));
                }
                Err(refused) if is_known => assert_eq!(refused, StoreError::SettlementKeyKnown),
                Err(_) => assert!(!self.now.contains_key(&id)),
            }
        }

        fn open_at(&self, place: usize) -> Option<Settlement> {
            self.ledger.settlements.values().nth(place).cloned()
        }

        /// A transfer does not come after the mutations of its batch.
        fn commit_mutations(&mut self) {
            if !self.ledger.mutations.is_empty() {
                self.commit();
            }
        }

        fn commit(&mut self) {
            let batch = self.ledger.take_batch();
            self.disk.commit(&batch).unwrap();
            self.ledger.published();
            self.durable = self.now.clone();
        }

        /// What is on disk is what was expected, to the last digit.
        fn check(&self) {
            let kept = recover(&mut self.disk.clone()).expect("it adds up");
            assert!(self.disk.audit().unwrap().adds_up());
            assert_eq!(kept.accounts.len(), self.durable.len());
            for (account, standing) in &kept.accounts {
                let expected = &self.durable[&account.id.get()];
                let balance = (expected.balance.booked(), expected.balance.prepaid());
                assert_eq!((standing.booked, standing.prepaid), balance, "account {}", account.id);
                let remainder = kept.remainder(account.id);
                let ten = BigInt::from(10);
                let left = BigRational::new(remainder.units().clone().into(), ten.pow(remainder.scale().into()));
                assert_eq!(&expected.credited + left, expected.came_in, "account {}", account.id);
            }
            for open in &kept.open_settlements {
                let found = self.disk.settlement(open.number).unwrap();
                assert_eq!(found.as_ref(), Some(open));
                assert_eq!(self.disk.settlement_by_id(open.id).unwrap().as_ref(), Some(open));
            }
            for (account, key) in kept.keys_used.keys() {
                let (_, status, answer) = self.disk.settlement_answer(*account, key).unwrap().unwrap();
                assert_eq!((status, &*answer), (201, &key[..]));
            }
        }
    }

    proptest! {
        /// Whatever is settled, brought, cancelled and forgotten, and wherever the process ends: the book adds up, and
        /// every unit is where it was expected.
        #[test]
        fn no_settlement_loses_or_invents_a_unit(events in events()) {
            let mut stage = Stage::new();
            for event in events.into_iter().chain([Event::Commit]) {
                let looks = matches!(event, Event::Commit | Event::Crash { .. });
                stage.play(event);
                if looks {
                    stage.check();
                }
            }
        }
    }
}
