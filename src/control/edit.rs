//! What a caller wants to be different about an account, field by field, and what becomes of the account then.
//!
//! Owns the three things that can happen to a field and the values fields fall back to. Leaves the reading of JSON to
//! `api`, and the rules that concern more than one account to [`super::state`]. Pure: an account in, an account out.

use crate::ledger::account::{
    Account, AccountLimits, PackedLinks, ROUND_TRIP_TIME_MS_DEFAULT, RoutingRelation, Settlement,
};
use crate::ledger::share::Share;

/// What a caller says about one field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Edit<T> {
    /// Nothing: it keeps its value, a new account gets the default.
    #[default]
    Keep,
    /// Back to the default, or to none where the field may be empty.
    Clear,
    Set(T),
}

impl<T> Edit<T> {
    /// Whether the caller said anything.
    pub fn is_given(&self) -> bool {
        !matches!(self, Self::Keep)
    }

    /// What was set, if anything was.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Keep | Self::Clear => None,
        }
    }

    fn apply(self, field: &mut T, default: T) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = default,
            Self::Set(value) => *field = value,
        }
    }

    fn apply_optional(self, field: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = None,
            Self::Set(value) => *field = Some(value),
        }
    }
}

/// Every field an operator may set, checked one by one: what is set here is valid in itself. Amounts in units of the
/// account's asset.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct AccountEdit {
    /// An ILP address. Cleared: made from the node's address and the user name.
    pub ilp_address: Edit<Box<str>>,
    /// Upper case, 1 to 64 bytes. Never cleared: an account always has an asset.
    pub asset_code: Option<Box<str>>,
    pub asset_scale: Option<u8>,
    pub packet_amount_max: Edit<u64>,
    pub balance_min: Edit<i64>,
    pub balance_max: Edit<i64>,
    pub http_url: Edit<Box<str>>,
    pub http_incoming_token: Edit<Box<str>>,
    pub http_outgoing_token: Edit<Box<str>>,
    /// Without a password; that one is the outgoing token.
    pub btp_url: Edit<Box<str>>,
    pub btp_incoming_token: Edit<Box<str>>,
    pub btp_outgoing_token: Edit<Box<str>>,
    pub settlement_engine_url: Edit<Box<str>>,
    pub settle_threshold: Edit<i64>,
    pub settle_to: Edit<i64>,
    pub routing_relation: Edit<RoutingRelation>,
    pub round_trip_time_ms: Edit<u32>,
    pub amount_per_minute: Edit<u64>,
    pub packets_per_minute: Edit<u32>,
    pub spread: Edit<Share>,
}

impl AccountEdit {
    /// Applies all fields but the address and the asset, which depend on what else there is (see [`super::state`]).
    pub(super) fn apply(self, account: &mut Account) {
        let defaults = AccountLimits::default();
        let mut limits = *account.limits;
        self.packet_amount_max
            .apply(&mut limits.packet_amount_max, defaults.packet_amount_max);
        self.balance_min.apply_optional(&mut limits.balance_min);
        self.balance_max.apply_optional(&mut limits.balance_max);
        self.amount_per_minute.apply_optional(&mut limits.amount_per_minute);
        self.packets_per_minute.apply_optional(&mut limits.packets_per_minute);
        self.spread.apply(&mut limits.spread, defaults.spread);
        account.limits = limits.into();

        let mut links = account.links.unpack();
        self.http_url.apply_optional(&mut links.http_url);
        self.http_incoming_token.apply_optional(&mut links.http_incoming_token);
        self.http_outgoing_token.apply_optional(&mut links.http_outgoing_token);
        self.btp_url.apply_optional(&mut links.btp_url);
        self.btp_incoming_token.apply_optional(&mut links.btp_incoming_token);
        self.btp_outgoing_token.apply_optional(&mut links.btp_outgoing_token);
        account.links = links.into();

        let mut settlement = Settlement::clone(&account.settlement);
        self.settlement_engine_url.apply_optional(&mut settlement.engine_url);
        self.settle_threshold.apply_optional(&mut settlement.threshold);
        self.settle_to.apply_optional(&mut settlement.to);
        account.settlement = settlement.into();

        self.routing_relation
            .apply(&mut account.routing_relation, RoutingRelation::default());
        self.round_trip_time_ms
            .apply(&mut account.round_trip_time_ms, ROUND_TRIP_TIME_MS_DEFAULT);
    }
}

/// Whether the connection we dial has to be dialled again.
pub(super) fn must_redial(before: &PackedLinks, after: &PackedLinks) -> bool {
    before.btp_url() != after.btp_url() || before.btp_outgoing_token() != after.btp_outgoing_token()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Links;

    #[test]
    fn keep_clear_and_set() {
        for (edit, with_default, optional) in [
            (Edit::Keep, 7, Some(7)),
            (Edit::Clear, 1, None),
            (Edit::Set(9), 9, Some(9)),
        ] {
            let mut field = 7;
            edit.apply(&mut field, 1);
            assert_eq!(field, with_default, "{edit:?}");
            let mut field = Some(7);
            edit.apply_optional(&mut field);
            assert_eq!(field, optional, "{edit:?}");
        }
    }

    #[test]
    fn only_what_we_dial_is_dialled_again() {
        let links = Links {
            btp_url: Some("ws://a/".into()),
            ..Links::default()
        };
        for (after, redial) in [
            (links.clone(), false),
            (
                Links {
                    btp_incoming_token: Some("x".into()),
                    ..links.clone()
                },
                false,
            ),
            (
                Links {
                    btp_outgoing_token: Some("x".into()),
                    ..links.clone()
                },
                true,
            ),
            (
                Links {
                    btp_url: Some("ws://b/".into()),
                    ..links.clone()
                },
                true,
            ),
            (
                Links {
                    btp_url: None,
                    ..links.clone()
                },
                true,
            ),
        ] {
            let (before, after) = (links.clone().into(), after.into());
            assert_eq!(must_redial(&before, &after), redial, "{after:?}");
        }
    }
}
