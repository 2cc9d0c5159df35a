//! Recovery: reads everything back at start, and adds it up before anybody relies on it.
//!
//! Owns the refusal to start on a book that does not add up: whatever made it so, forwarding on top of it would make
//! it worse. Leaves reading to [`super::Store::load`] and the meaning of the sums to [`crate::ledger::audit`].

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::audit::{AssetAudit, Audit};
use crate::ledger::settlement::Settlement;
use crate::ledger::{Account, AccountId, Asset, AssetId, Standing};

use super::{Book, OpenError, Store};

/// The book that `store` kept, proven to add up.
pub fn recover(store: &mut dyn Store) -> Result<Book, OpenError> {
    let book = store.load()?;
    let audit = audit(&book).map_err(OpenError::Corrupt)?;
    if !audit.adds_up() {
        return Err(OpenError::DoesNotAddUp(audit));
    }
    if let Some((account, _)) = book.accounts.last()
        && account.id.get() >= book.next_account_id
    {
        // A number given twice would hand one holder's balance to another.
        return Err(OpenError::Corrupt(format!(
            "account {} is not below the next number",
            account.id
        )));
    }
    check_settlements(&book).map_err(OpenError::Corrupt)?;
    Ok(book)
}

/// Whether what is kept of settlements fits the accounts. An error names what does not.
fn check_settlements(book: &Book) -> Result<(), String> {
    let mut settling = 0;
    for (account, standing) in &book.accounts {
        if standing.prepaid < 0 {
            return Err(format!("account {} has {} prepaid", account.id, standing.prepaid));
        }
        settling += usize::from(standing.settling);
    }
    for open in &book.open_settlements {
        let number = open.number;
        let (account, standing) =
            find(book, open.account).ok_or_else(|| format!("settlement {number} has no account"))?;
        if !standing.settling || open.scale != account.asset.scale || !open.state.is_open() {
            return Err(format!("settlement {number} does not fit its account"));
        }
        if book.last_settlement < Some(number) {
            return Err(format!("settlement {number} is above the last number"));
        }
    }
    if settling != book.open_settlements.len() {
        return Err("an account has more than one open settlement, or one without a record".into());
    }
    for (id, remainder) in &book.remainders {
        let below = find(book, *id).is_some_and(|(account, _)| remainder.is_below_one_unit(account.asset.scale));
        if !below {
            return Err(format!("what settlements left over does not fit account {id}"));
        }
    }
    Ok(())
}

fn find(book: &Book, id: AccountId) -> Option<&(Arc<Account>, Standing)> {
    let at = book.accounts.binary_search_by_key(&id, |(account, _)| account.id);
    at.ok().map(|at| &book.accounts[at])
}

/// Adds up a book in memory. An error names what is beyond adding.
pub(super) fn audit(book: &Book) -> Result<Audit, String> {
    let mut sums = Sums::new(book.assets.iter().cloned());
    for (account, standing) in &book.accounts {
        sums.add_account(account.asset_id, standing.booked)?;
    }
    for open in &book.open_settlements {
        let (account, _) = find(book, open.account).ok_or("an open settlement has no account")?;
        sums.add_settlement(account.asset_id, open)?;
    }
    sums.close(&book.positions, &book.pending)
}

/// The proof while it is being added up. What it is fed comes from a disk, so nothing is taken for granted: not that
/// an asset exists, and not that a sum fits.
pub(super) struct Sums {
    audit: Audit,
}

impl Sums {
    pub fn new(assets: impl Iterator<Item = Asset>) -> Self {
        Self {
            audit: Audit {
                assets: assets.map(AssetAudit::new).collect(),
            },
        }
    }

    pub fn add_account(&mut self, asset: AssetId, booked: i128) -> Result<(), String> {
        let line = self.line(asset)?;
        line.balances.checked_add(booked).ok_or_else(|| too_large(line))?;
        line.add_account(booked);
        Ok(())
    }

    /// An open settlement, by its record.
    pub fn add_settlement(&mut self, asset: AssetId, open: &Settlement) -> Result<(), String> {
        // Fewer than 2^32 amounts of 64 bits: these always fit.
        self.line(asset)?.pending += i128::from(open.amount);
        Ok(())
    }

    /// The proof, with our own position in each asset against the balances, and what the book has carried as pending
    /// against the open settlements.
    pub fn close(mut self, positions: &[i128], pending: &BTreeMap<AssetId, i128>) -> Result<Audit, String> {
        if positions.len() != self.audit.assets.len() {
            return Err("assets and positions are not the same number".into());
        }
        for (line, position) in self.audit.assets.iter_mut().zip(positions) {
            line.balances.checked_add(*position).ok_or_else(|| too_large(line))?;
            line.position = *position;
        }
        for (asset, carried) in pending {
            self.line(*asset)?.pending_carried = *carried;
        }
        Ok(self.audit)
    }

    fn line(&mut self, asset: AssetId) -> Result<&mut AssetAudit, String> {
        let line = self.audit.assets.get_mut(asset.index());
        line.ok_or_else(|| format!("asset {} is not known", asset.get()))
    }
}

fn too_large(line: &AssetAudit) -> String {
    format!("the balances in {} are too large to add up", line.asset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;
    use crate::store::tests::book;

    #[test]
    fn a_book_that_adds_up_is_given_out() {
        let expected = book(&[-7, 4], 3);
        assert_eq!(recover(&mut MemoryStore::holding(expected.clone())), Ok(expected));
        assert_eq!(recover(&mut MemoryStore::default()), Ok(Book::default()));
    }

    #[test]
    fn a_unit_too_many_is_refused() {
        let Err(OpenError::DoesNotAddUp(audit)) = recover(&mut MemoryStore::holding(book(&[-7, 4], 2))) else {
            panic!("must be refused");
        };
        assert_eq!((audit.assets[0].balances, audit.assets[0].position), (-3, 2));
    }

    #[test]
    fn sums_that_do_not_fit_are_refused_and_not_computed() {
        for (balances, position) in [([i128::MAX, 1], 0), ([i128::MIN, -1], 1), ([i128::MAX, 0], i128::MAX)] {
            let error = recover(&mut MemoryStore::holding(book(&balances, position))).unwrap_err();
            assert!(
                matches!(&error, OpenError::Corrupt(what) if what.contains("too large")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_number_that_could_be_given_twice_is_refused() {
        let mut bad = book(&[0, 0], 0);
        bad.next_account_id = 1;
        assert!(matches!(
            recover(&mut MemoryStore::holding(bad)),
            Err(OpenError::Corrupt(_))
        ));
    }
}
