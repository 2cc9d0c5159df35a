//! A transfer: what one fulfilled packet moves between two accounts, and what it leaves with us.
//!
//! Owns the rule that money only ever moves: per asset, the entries of a transfer sum to zero. Leaves the order of
//! transfers to [`super::journal`] and their storage to `store`.

use super::account::{AccountId, AssetId};
use super::payment::PaymentNumber;

/// The receiver of all outgoing settlements: nobody's account, and never given to one.
pub const SETTLEMENT: AccountId = AccountId::new(u32::MAX - 1);

/// One fulfilled packet, or an outgoing settlement: then `to` is [`SETTLEMENT`], `outgoing_amount` is 0 and
/// `incoming_amount` is what leaves the balance of `from` towards its engine. `incoming_amount` leaves the balance of `from`, the account that sent the Prepare, in its
/// asset; `outgoing_amount` joins the balance of `to`, the account that fulfilled it, in its own. The difference, per
/// asset, is the connector's own position: a positive position is what we have gained and nobody else holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    pub from: AccountId,
    pub to: AccountId,
    pub incoming_amount: u64,
    pub outgoing_amount: u64,
    /// The payment of `from` that the packet belongs to, if we make it ourselves. It is open until its last packet has
    /// ended.
    pub payment: Option<PaymentNumber>,
}

// A queue of 65,536 per shard: no more than it needs.
const _: () = assert!(size_of::<Transfer>() == 32);

/// One line of the book: an owner's balance in one asset changes by `amount`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub owner: Owner,
    pub asset: AssetId,
    pub amount: i128,
}

/// Whose balance an entry changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    Account(AccountId),
    /// The connector itself: its position in the asset.
    Connector,
}

impl Transfer {
    /// `amount`, more than nothing, leaves the balance of `from` towards its engine.
    pub const fn settlement(from: AccountId, amount: u64) -> Self {
        Self {
            from,
            to: SETTLEMENT,
            incoming_amount: amount,
            outgoing_amount: 0,
            payment: None,
        }
    }

    pub fn is_settlement(&self) -> bool {
        self.to == SETTLEMENT
    }

    /// The four entries of this transfer, given the assets of its accounts. Per asset they sum to zero by
    /// construction: what an account loses or gains, our position in the same asset gains or loses.
    pub fn entries(&self, from_asset: AssetId, to_asset: AssetId) -> [Entry; 4] {
        let incoming = i128::from(self.incoming_amount);
        let outgoing = i128::from(self.outgoing_amount);
        [
            Entry {
                owner: Owner::Account(self.from),
                asset: from_asset,
                amount: -incoming,
            },
            Entry {
                owner: Owner::Connector,
                asset: from_asset,
                amount: incoming,
            },
            Entry {
                owner: Owner::Account(self.to),
                asset: to_asset,
                amount: outgoing,
            },
            Entry {
                owner: Owner::Connector,
                asset: to_asset,
                amount: -outgoing,
            },
        ]
    }
}

/// Whether these entries sum to zero in every asset.
pub fn adds_up(entries: &[Entry]) -> bool {
    entries.iter().all(|one| {
        entries
            .iter()
            .filter(|other| other.asset == one.asset)
            .map(|other| other.amount)
            .sum::<i128>()
            == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_add_up_per_asset() {
        for (from_asset, to_asset, incoming_amount, outgoing_amount) in [
            (0, 0, 100, 100),
            (0, 0, 100, 99),
            (0, 1, 100, 3),
            (0, 1, u64::MAX, u64::MAX),
            (1, 0, 0, 0),
        ] {
            let transfer = Transfer {
                from: AccountId::new(0),
                to: AccountId::new(1),
                incoming_amount,
                outgoing_amount,
                payment: None,
            };
            let entries = transfer.entries(AssetId::new(from_asset), AssetId::new(to_asset));
            assert!(adds_up(&entries), "{transfer:?}");
            let mut wrong = entries;
            wrong[0].amount += 1;
            assert!(!adds_up(&wrong), "one unit too many is noticed: {wrong:?}");
        }
    }
}
