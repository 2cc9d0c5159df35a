//! When an account is settled: the rule, on the shard that owns the account (protocols.md 11.5).
//!
//! Owns when a settlement is due, and which accounts have one open. Leaves the amount to
//! [`Balance::settle`](crate::ledger::Balance::settle); the record of the settlement to the store, which makes it of the
//! transfer to [`SETTLEMENT`] in the same batch; and calling engines to who reads the records.
//!
//! The rule is looked at whenever what can be settled may have grown, above all after a fulfilled packet towards the
//! account. But a settlement needs a cause: since the last one a packet of the account has ended, or it was changed how it
//! settles, or the node was started. Without, two peers that both pay ahead would pay back and forth for ever, because each
//! payment leaves the other as it was; and an amount that comes back from a cancelled settlement would leave again at once.
//! A packet that was rejected is a cause only while we owe something: it costs its sender nothing, and whoever sends many
//! must not make peers pay ahead back and forth.
//!
//! Always: at most one settlement of an account is open, and what accumulates meanwhile goes with the next one; the
//! balance of an account without a threshold or without an engine is left alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::ledger::transfer::SETTLEMENT;
use crate::ledger::{Account, AccountId, AssetId, Settlement, Transfer};

use super::{Member, Pipeline};

/// Who orders to settle now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SettleOrder {
    /// Where the account settles to less than zero, that is paid ahead.
    Operator,
    /// Nothing is paid unless something is owed. What the timer has seen in the book need not hold here: the book may have
    /// taken a packet and what an engine brought in another order, so that more is prepaid here than there, or less.
    Timer,
}

/// What came of an order to settle now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SettleNow {
    /// So much has left the balance; its record follows.
    Made { amount: u64 },
    /// We owe no more than the account settles to.
    NothingOwed,
    /// The account does not say what it settles to.
    NoRule,
    /// Neither the account nor its asset has a settlement engine.
    NoEngine,
    /// There is one that has not ended.
    Open,
    /// The account is being deleted or is gone, or the store cannot take more at this moment.
    NotReady,
}

/// The rule of an account that has one. Most have none: that costs a pointer, and a packet one look at it.
pub(super) struct Rule {
    threshold: i64,
    to: i64,
    /// See the module's text.
    has_cause: bool,
    /// It waits to be looked at.
    queued: bool,
}

impl Rule {
    fn of(settlement: &Settlement) -> Option<Self> {
        let (threshold, to) = settlement.threshold.zip(settlement.to)?;
        (threshold > to).then_some(Self {
            threshold,
            to,
            has_cause: true,
            queued: false,
        })
    }
}

/// What a shard knows of settlements.
#[derive(Default)]
pub(super) struct Settling {
    /// Those with an engine for all accounts in them.
    assets: Arc<HashSet<AssetId>>,
    /// The settlement of each account that has one open: its amount.
    open: HashMap<AccountId, u64>,
    /// Accounts whose rules are to be looked at: each once, but for one that has lost its rule and got it again.
    queue: VecDeque<AccountId>,
    /// All accounts at these places are to be looked at besides.
    sweep: Range<usize>,
}

impl Settling {
    fn has_engine(&self, account: &Account) -> bool {
        account.settlement.engine_url.is_some() || self.assets.contains(&account.asset_id)
    }
}

impl Member {
    /// The rule may be another by the settings of `account`, which are about to replace those the member has.
    pub(super) fn set_rule(&mut self, account: &Account) {
        let before = self.rule.take();
        self.rule = Rule::of(&account.settlement).map(Box::new);
        let is_same = self.account.settlement == account.settlement && self.account.asset_id == account.asset_id;
        if let (Some(rule), Some(before)) = (&mut self.rule, before) {
            rule.has_cause = before.has_cause || !is_same;
            rule.queued = before.queued;
        }
    }

    /// Whether it is to be put into the queue: it has a rule and is not there.
    fn must_queue(&mut self) -> bool {
        let rule = self.rule.as_mut();
        rule.is_some_and(|rule| !std::mem::replace(&mut rule.queued, true))
    }
}

impl Pipeline {
    /// The assets that have an engine for all accounts in them.
    pub fn set_settling_assets(&mut self, assets: Arc<HashSet<AssetId>>) {
        self.settling.assets = assets;
        self.settling.sweep = 0..self.members.len();
    }

    /// A settlement of this account was open when the node started; its amount may be told later.
    pub fn set_open_settlement(&mut self, id: AccountId, amount: Option<u64>) {
        if self.owns(id) {
            let known = self.settling.open.entry(id).or_default();
            *known = amount.unwrap_or(*known);
        }
    }

    /// The amount of the account's settlement that is open.
    pub fn open_settlement(&self, id: AccountId) -> Option<u64> {
        self.settling.open.get(&id).copied()
    }

    /// A packet that moved money, or might have, has ended towards this account or from it.
    pub(super) fn note_cause(&mut self, id: AccountId) {
        if let Some(rule) = self.member_mut(id).and_then(|member| member.rule.as_mut()) {
            rule.has_cause = true;
            self.look_soon(id);
        }
    }

    /// Has the account's rule looked at, if it has one.
    pub(super) fn look_soon(&mut self, id: AccountId) {
        if self.member_mut(id).is_some_and(Member::must_queue) {
            self.settling.queue.push_back(id);
        }
    }

    /// Whether there is anything for [`Self::settle_next`] to look at.
    pub fn has_to_settle(&self) -> bool {
        !self.settling.queue.is_empty() || !self.settling.sweep.is_empty()
    }

    /// Looks at one account. If its settlement is due, the amount has left its balance, and the transfer must be made.
    pub fn settle_next(&mut self) -> Option<Transfer> {
        let Self { settling, members, .. } = self;
        let (place, swept) = match settling.queue.pop_front() {
            Some(id) => ((id.get() / self.shards) as usize, false),
            None => (settling.sweep.next()?, true),
        };
        // It may have gone meanwhile, or its rule.
        let member = members.get_mut(place)?.as_deref_mut()?;
        let rule = member.rule.as_mut()?;
        rule.queued = false;
        rule.has_cause |= swept && member.account.settlement.engine_url.is_none();
        let id = member.account.id;
        if !rule.has_cause || member.closing || !settling.has_engine(&member.account) || settling.open.contains_key(&id)
        {
            return None;
        }
        let amount = member.balance.settle(rule.threshold, rule.to)?;
        rule.has_cause = false;
        settling.open.insert(id, amount);
        Some(transfer_of(id, amount))
    }

    /// Settles all we owe above what the account settles to, whatever its threshold is. After [`SettleNow::Made`] the
    /// transfer must be made.
    pub fn settle_now(&mut self, id: AccountId, by: SettleOrder) -> SettleNow {
        let Some(index) = self.member_index_of(id) else {
            return SettleNow::NotReady;
        };
        let Self { settling, members, .. } = self;
        let Some(member) = members[index].as_deref_mut().filter(|member| !member.closing) else {
            return SettleNow::NotReady;
        };
        let Some(to) = member.account.settlement.to else {
            return SettleNow::NoRule;
        };
        if !settling.has_engine(&member.account) {
            return SettleNow::NoEngine;
        }
        if settling.open.contains_key(&id) {
            return SettleNow::Open;
        }
        let threshold = match by {
            SettleOrder::Operator => to.saturating_add(1),
            SettleOrder::Timer => to.max(0).saturating_add(1),
        };
        match member.balance.settle(threshold, to) {
            None => SettleNow::NothingOwed,
            Some(amount) => {
                if let Some(rule) = &mut member.rule {
                    rule.has_cause = false;
                }
                settling.open.insert(id, amount);
                SettleNow::Made { amount }
            }
        }
    }

    /// The account's settlement has ended: confirmed, or cancelled, and then its amount is `returned`.
    pub fn settlement_ended(&mut self, id: AccountId, returned: u64) {
        if !self.owns(id) {
            return;
        }
        self.settling.open.remove(&id);
        if let Some(member) = self.member_mut(id) {
            member.balance.credit(returned);
        }
        self.look_soon(id);
    }

    /// The holder has paid us so much, which is in the book.
    pub fn settlement_received(&mut self, id: AccountId, credited: u64) {
        if let Some(member) = self.member_mut(id) {
            member.balance.credit_settlement(credited);
        }
        self.look_soon(id);
    }

    /// Nothing is known of the account any more.
    pub(super) fn forget_settlement(&mut self, id: AccountId) {
        self.settling.open.remove(&id);
    }
}

/// What takes a settlement's amount out of the book.
pub fn transfer_of(from: AccountId, amount: u64) -> Transfer {
    Transfer {
        from,
        to: SETTLEMENT,
        incoming_amount: amount,
        outgoing_amount: 0,
        payment: None,
    }
}

#[cfg(test)]
mod tests;
