//! The proof that everything adds up: per asset, the sum of all balances and the connector's position is zero, and what
//! is on its way to engines is what the records of open settlements say.
//!
//! Owns the sum; whoever reads a book, from disk or from memory, feeds it here.

use super::account::Asset;

/// One asset's line of the proof. Amounts in units of the asset, positive is what we owe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AssetAudit {
    pub asset: Asset,
    /// How many accounts are in this asset.
    pub accounts: u64,
    /// The sum of their booked balances.
    pub balances: i128,
    /// What the accounts together owe the connector: what it has kept of packets and what has left for engines, less what
    /// engines have brought. Negative where it owes them.
    pub position: i128,
    /// The sum of the open settlements in this asset, added up from their records. It has left the balances already.
    pub pending: i128,
    /// The same sum as the book has carried it along with every settlement that began or ended.
    pub pending_carried: i128,
}

impl AssetAudit {
    pub fn new(asset: Asset) -> Self {
        Self {
            asset,
            accounts: 0,
            balances: 0,
            position: 0,
            pending: 0,
            pending_carried: 0,
        }
    }

    pub fn add_account(&mut self, booked: i128) {
        self.accounts += 1;
        self.balances += booked;
    }

    pub fn adds_up(&self) -> bool {
        self.balances + self.position == 0 && self.pending == self.pending_carried
    }
}

/// The proof for every asset.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    pub assets: Vec<AssetAudit>,
}

impl Audit {
    pub fn adds_up(&self) -> bool {
        self.assets.iter().all(AssetAudit::adds_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_too_many_is_noticed() {
        let mut line = AssetAudit::new(Asset {
            code: "ABC".into(),
            scale: 9,
        });
        line.add_account(-100);
        line.add_account(99);
        line.position = 1;
        let mut audit = Audit { assets: vec![line] };
        assert!(audit.adds_up());
        audit.assets[0].add_account(1);
        assert!(!audit.adds_up());
        assert!(Audit::default().adds_up(), "an empty book adds up");
        audit.assets[0].balances -= 1;
        audit.assets[0].pending = 5;
        assert!(!audit.adds_up(), "a settlement that the book does not know of");
        audit.assets[0].pending_carried = 5;
        assert!(audit.adds_up());
    }
}
