//! The ledger: the accounts of one shard, double entry, and the rules that every change keeps.
//!
//! Pure state: no packets, no links, no disk, no clock. [`account`] is what an operator sets, [`balance`] the money of
//! one account, [`transfer`] what one fulfilled packet moves, [`journal`] what waits until its transfer is durable,
//! [`directory`] who is who, [`audit`] the proof that the book adds up, [`share`] a part of an amount, [`settlement`] what
//! leaves towards an engine and what engines bring.

pub mod account;
pub mod audit;
pub mod balance;
pub mod directory;
pub mod journal;
pub mod payment;
pub mod settlement;
pub mod share;
pub mod transfer;

pub use account::{
    Account, AccountId, AccountLimits, Asset, AssetId, Links, OrDefault, PackedLinks, RoutingRelation, Settlement,
};
pub use balance::{Balance, Hold, Reservation, Standing};
pub use directory::Directory;
pub use payment::PaymentNumber;
pub use settlement::{Remainder, SettlementNumber, SettlementState};
pub use share::Share;
pub use transfer::{SETTLEMENT, Transfer};
