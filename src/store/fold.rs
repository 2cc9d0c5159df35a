//! Folds transfers and mutations into the balances of one batch.
//!
//! Owns the arithmetic of the book: what each account and each of our positions will be when the batch is on disk, and
//! what they are there now. Leaves threads, queues and the disk itself to [`super::writer`].
//!
//! Always: what one batch changes sums to zero in every asset. That is asserted of each batch before it is written, and
//! proven again of the whole book when it is read back ([`super::recovery`]).

use std::collections::BTreeMap;

use super::{Applied, Batch, Book, Mutation, StoreError, heard};
use crate::ledger::account::place_in;
use crate::ledger::transfer::Owner;
use crate::ledger::{AccountId, Asset, AssetId, PaymentNumber, Transfer};

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
    asset: AssetId,
    /// Its place in [`Ledger::touched`], or [`UNTOUCHED`].
    touched: u32,
    /// The batch deletes it.
    deleted: bool,
}

const UNTOUCHED: u32 = u32::MAX;

/// An account that the batch touches, as it was before.
struct Touched {
    id: AccountId,
    asset: AssetId,
    /// Its balance on disk. `None`: the account is new.
    booked: Option<i128>,
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
        };
        for open in &book.open_payments {
            let paying = Paying {
                account: open.account,
                sent: open.sent,
                touched: false,
            };
            ledger.payments.insert(open.number, paying);
        }
        for (account, booked) in &book.accounts {
            ledger.insert(
                account.id,
                Line {
                    booked: *booked,
                    asset: account.asset_id,
                    touched: UNTOUCHED,
                    deleted: false,
                },
            );
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

    /// The balance on disk.
    pub(super) fn durable(&self, id: AccountId) -> Option<i128> {
        let line = self.lines.get(id.index())?.as_ref()?;
        match line.touched {
            UNTOUCHED => Some(line.booked),
            place => self.touched[place as usize].booked,
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
                booked: Some(line.booked),
            });
        }
        line
    }

    /// Adds a transfer to the batch. Transfers come first in a batch: a mutation may end what they rely on.
    pub(super) fn fold(&mut self, transfer: &Transfer) {
        assert!(
            self.mutations.is_empty(),
            "a transfer is folded before the mutations of its batch"
        );
        let from_asset = self.touch(transfer.from).asset;
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
                | Mutation::ForgetPayments { .. } => {}
            }
        }
        self.mutations.extend(mutations);
        Ok(applied)
    }

    /// A new account, which is not on disk yet.
    fn add(&mut self, id: AccountId, asset: AssetId) {
        let line = Line {
            booked: 0,
            asset,
            touched: UNTOUCHED,
            deleted: false,
        };
        self.insert(id, line);
        self.touch(id);
        let touched = self.touched.last_mut().expect("it has just been touched");
        touched.booked = None;
        self.next_account_id = id.get() + 1;
    }

    /// Whether mutations fit the book, each after those before it. Changes nothing.
    fn check(&self, mutations: &[Mutation]) -> Result<(), StoreError> {
        let mut assets: Vec<&Asset> = self.assets.iter().collect();
        let mut next_account_id = self.next_account_id;
        // What the earlier mutations have made of the accounts they name: balance and asset, or nothing.
        let mut changed: BTreeMap<AccountId, Option<(i128, AssetId)>> = BTreeMap::new();
        let mut last_payment = self.last_payment;
        // What the earlier mutations have made of the payments they name: whose it is, or nothing.
        let mut payments: BTreeMap<PaymentNumber, Option<AccountId>> = BTreeMap::new();
        let mut begun = 0;
        for mutation in mutations {
            let account = |id: AccountId| match changed.get(&id) {
                Some(account) => *account,
                None => self.line(id).map(|line| (line.booked, line.asset)),
            };
            match mutation {
                Mutation::PutAsset(id, asset) => match assets.get(id.index()) {
                    Some(known) if *known == asset => {}
                    Some(_) => return Err(StoreError::Inconsistent("an asset never changes")),
                    None if id.index() == assets.len() => assets.push(asset),
                    None => {
                        return Err(StoreError::Inconsistent("assets are numbered without a gap"));
                    }
                },
                Mutation::PutAccount(new) => {
                    let booked = match account(new.id) {
                        Some((booked, asset)) if booked != 0 && asset != new.asset_id => {
                            return Err(StoreError::BalanceNotZero { balance: booked });
                        }
                        Some((booked, _)) => booked,
                        None if new.id.get() < next_account_id => {
                            return Err(StoreError::Inconsistent("an account number is never used again"));
                        }
                        None => {
                            let next = new.id.get().checked_add(1);
                            next_account_id = next.ok_or(StoreError::Inconsistent("account numbers have run out"))?;
                            0
                        }
                    };
                    if assets.get(new.asset_id.index()) != Some(&&*new.asset) {
                        return Err(StoreError::Inconsistent("an account's asset is known by its number"));
                    }
                    changed.insert(new.id, Some((booked, new.asset_id)));
                }
                Mutation::DeleteAccount { id, .. } if self.payments.values().any(|paying| paying.account == *id) => {
                    return Err(StoreError::PaymentOpen);
                }
                Mutation::DeleteAccount { id, write_off } => match account(*id) {
                    Some((balance, _)) if balance != 0 && !write_off => {
                        return Err(StoreError::BalanceNotZero { balance });
                    }
                    Some(_) => {
                        changed.insert(*id, None);
                    }
                    None => {
                        return Err(StoreError::Inconsistent("an account that is deleted exists"));
                    }
                },
                Mutation::PutStaticRoute { .. }
                | Mutation::RemoveStaticRoute { .. }
                | Mutation::PutRates(_)
                | Mutation::PutEngines(_)
                | Mutation::PutNodeAddress(_)
                | Mutation::PutAssignedAddress(_)
                | Mutation::ForgetRoutes { .. } => {}
                Mutation::LearnRoutes {
                    account: neighbour,
                    set,
                    removed,
                    ..
                } => {
                    if account(*neighbour).is_none() {
                        return Err(StoreError::Inconsistent("an account that tells routes exists"));
                    }
                    heard::check_update(set, removed)?;
                }
                Mutation::ForgetPayments { account: payer, before } => {
                    let mut open = self.payments.iter().filter(|(_, paying)| paying.account == *payer);
                    if open.next().is_some_and(|(number, _)| number < before) {
                        return Err(StoreError::Inconsistent("an open payment is not forgotten"));
                    }
                }
                Mutation::BeginPayment {
                    account: payer, number, ..
                } => {
                    if account(*payer).is_none() {
                        return Err(StoreError::Inconsistent("an account that pays exists"));
                    }
                    if last_payment.is_some_and(|last| *number <= last) {
                        return Err(StoreError::Inconsistent("a payment's number is never used again"));
                    }
                    begun += 1;
                    if self.payments.len() + begun > PAYMENTS_OPEN_MAX {
                        return Err(StoreError::TooManyPayments { max: PAYMENTS_OPEN_MAX });
                    }
                    last_payment = Some(*number);
                    payments.insert(*number, Some(*payer));
                }
                Mutation::EndPayment { account, number, .. } => {
                    let open = match payments.get(number) {
                        Some(payer) => *payer,
                        None => self.payments.get(number).map(|paying| paying.account),
                    };
                    if open != Some(*account) {
                        return Err(StoreError::Inconsistent("a payment that ends is open"));
                    }
                    payments.insert(*number, None);
                }
            }
        }
        Ok(())
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
            next_account_id: self.next_account_id,
        };
        for number in self.payments_touched.drain(..) {
            if let Some(paying) = self.payments.get_mut(&number) {
                paying.touched = false;
                batch.payments.push((number, paying.account, paying.sent));
            }
        }
        for Touched { id, asset, booked } in &self.touched {
            let after = self.line(*id).map(|line| line.booked);
            batch.balances.extend(after.map(|after| (*id, after)));
            sums[asset.index()] += after.unwrap_or(0) - booked.unwrap_or(0);
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
        batch
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
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::store::tests::{account, book};
    use crate::store::{MemoryStore, recover};

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
                            ledger.fold(&transfer(from, to, incoming_amount, outgoing_amount));
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
                            let mut booked = vec![None; 6];
                            for (account, balance) in &kept.accounts {
                                booked[account.id.index()] = Some(*balance);
                            }
                            (booked, kept.positions.clone())
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
}
