//! Settlements: money that leaves the book towards an engine, and what engines bring.
//!
//! Owns the record of an outgoing settlement with the states it goes through, and the exact conversion of what an engine
//! has received into units of an account. Leaves when an account settles to whoever owns its balance, what a settlement
//! does to the balances to [`super::balance`] and `store`, and speaking to engines to `control`.
//!
//! Always: a settlement keeps its number, its id, its account and its amount from the moment in which the amount left
//! the balance; it ends once, confirmed or cancelled. What was converted and what remains are together exactly what
//! came in, and what remains is less than one unit of the account.

use std::fmt;

use num_bigint::BigUint;
use num_integer::Integer;
use num_traits::{ToPrimitive, Zero};

use super::account::AccountId;

/// A settlement's number within this node: ascending in the order in which they were made, given once, never used
/// again. The first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SettlementNumber(u64);

impl SettlementNumber {
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number after that of the last settlement, if there was one.
    pub fn next(last: Option<Self>) -> Self {
        Self(
            last.map_or(0, Self::get)
                .checked_add(1)
                .expect("no node settles 2^64 times"),
        )
    }
}

impl fmt::Display for SettlementNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far an outgoing settlement has got. The first three are open: the money has left the balance, and nobody has
/// confirmed it yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SettlementState {
    /// Never tried, or every try surely did not reach the engine.
    Pending,
    /// A try is or was under way whose outcome we do not know: the engine may have taken it over.
    Sent,
    /// The engine refused for good: waits for the operator.
    Failed,
    /// The engine has taken it over, and owns it from here.
    Confirmed,
    /// The amount has returned to the balance.
    Cancelled,
}

impl SettlementState {
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Sent,
        Self::Failed,
        Self::Confirmed,
        Self::Cancelled,
    ];

    /// The money is on its way.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Sent | Self::Failed)
    }

    /// As it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Confirmed => "confirmed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Bytes of [`Settlement::last_error`]: enough for an operator to see what is wrong, whatever an engine answers.
pub const SETTLEMENT_ERROR_BYTES_MAX: usize = 1_024;

/// The engine that may have taken a settlement over: a try there is under way, or one has ended that nobody knows the outcome
/// of. It goes to no other engine then, and does not come back unless the operator says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SentTo {
    /// Its URL.
    pub engine: Box<str>,
    /// When the first of these tries began. An engine that took that one over, and none after it, forgets the key so long
    /// after this as it keeps keys.
    pub since_ms: u64,
}

/// Engines know a key for 24 hours after its last use at least (RFC 38, Idempotence). The hour less is for clocks that differ,
/// and for a try that is under way.
pub const ENGINE_KEY_KEPT_MS: u64 = 23 * 60 * 60 * 1_000;

/// How far a clock may be set back that is only being put right, as one that follows a time server is.
pub const CLOCK_BACK_MS_MAX: u64 = 10 * 60 * 1_000;

/// An outgoing settlement: `amount` has left the balance of `account`, and an engine is to pay it. Not to be mixed up with
/// [`super::account::Settlement`], which says when an account settles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settlement {
    pub number: SettlementNumber,
    /// Random; shown as a UUID, and the key by which the engine knows one settlement from another.
    pub id: [u8; 16],
    pub account: AccountId,
    /// In units of the account's asset; more than nothing.
    pub amount: u64,
    /// The scale of the account's asset, which does not change while the settlement is open.
    pub scale: u8,
    pub state: SettlementState,
    /// None: surely nobody has it.
    pub sent_to: Option<SentTo>,
    /// How often an engine was called.
    pub attempts: u32,
    /// Milliseconds since 1970, UTC, as all the following.
    pub created_ms: u64,
    pub last_attempt_ms: Option<u64>,
    /// When it was confirmed or cancelled. None: it is open.
    pub ended_ms: Option<u64>,
    /// Why the last try did not succeed, see [`Self::set_last_error`].
    pub last_error: Option<Box<str>>,
}

impl Settlement {
    /// One that has just left the balance.
    pub fn made(
        number: SettlementNumber,
        id: [u8; 16],
        account: AccountId,
        amount: u64,
        scale: u8,
        created_ms: u64,
    ) -> Self {
        Self {
            number,
            id,
            account,
            amount,
            scale,
            state: SettlementState::Pending,
            sent_to: None,
            attempts: 0,
            created_ms,
            last_attempt_ms: None,
            ended_ms: None,
            last_error: None,
        }
    }

    /// Notes why a try did not succeed; what is too long is cut.
    pub fn set_last_error(&mut self, error: &str) {
        let mut end = error.len().min(SETTLEMENT_ERROR_BYTES_MAX);
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        self.last_error = Some(error[..end].into());
    }

    /// Whether an engine may have it, so that its amount must not simply come back.
    pub fn may_be_paid(&self) -> bool {
        self.sent_to.is_some()
    }

    /// Whether an engine may have had it for so long that it does not know its key any more, and would pay it again. So it
    /// may, too, if the clock was set back since: nobody knows then for how long it was.
    pub fn is_key_forgotten(&self, now_ms: u64, kept_ms: u64) -> bool {
        self.sent_to.as_ref().is_some_and(|sent_to| {
            let latest_ms = self
                .last_attempt_ms
                .map_or(sent_to.since_ms, |at_ms| at_ms.max(sent_to.since_ms));
            now_ms.saturating_sub(sent_to.since_ms) >= kept_ms || now_ms.saturating_add(CLOCK_BACK_MS_MAX) < latest_ms
        })
    }

    /// Whether this open settlement may be replaced by `after`; if not, the rule that is broken. A settlement is not
    /// cancelled like this, because its money moves then.
    pub fn may_become(&self, after: &Self) -> Result<(), &'static str> {
        let same = |of: &Self| (of.number, of.id, of.account, of.amount, of.scale, of.created_ms);
        if same(self) != same(after) {
            return Err("a settlement keeps its number, id, account, amount and time");
        }
        if after.state == SettlementState::Cancelled {
            return Err("a settlement is cancelled by a mutation of its own");
        }
        if after.state.is_open() != after.ended_ms.is_none() {
            return Err("a settlement has an end when it has ended");
        }
        if after.state == SettlementState::Sent && after.sent_to.is_none() {
            return Err("a settlement that was sent was sent to some engine");
        }
        if after.attempts < self.attempts {
            return Err("no attempt of a settlement is taken back");
        }
        if after
            .last_error
            .as_ref()
            .is_some_and(|error| error.len() > SETTLEMENT_ERROR_BYTES_MAX)
        {
            return Err("the error of a settlement is short");
        }
        Ok(())
    }
}

/// What engines have brought is more than 2^64 - 1 units of the account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the amount is more than {} units of the account", u64::MAX)]
pub struct TooLarge;

/// What the incoming settlements of an account have left over: less than one unit of the account, exactly. It is added
/// to the next one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remainder {
    /// One of `units` is `10^-scale` of one whole of the asset. As small as it can be: 0 when nothing is left over.
    scale: u8,
    units: BigUint,
    /// How many settlements are in it, those included that left nothing over. So whoever keeps it notices when two were
    /// computed from the same one, of which only one can be right.
    settlements: u64,
}

/// Above this many bits an amount is too large whatever the scales: u64::MAX units with 255 digits behind them.
const AMOUNT_BITS_MAX: u64 = 64 + 848;

impl Remainder {
    /// As it was kept. `None`: one of the two is not as [`Self::credit`] leaves it.
    pub fn from_parts(scale: u8, units: BigUint, settlements: u64) -> Option<Self> {
        let kept = Self {
            scale,
            units,
            settlements,
        };
        let smallest = kept.clone().reduced();
        (kept == smallest).then_some(kept)
    }

    /// One of [`Self::units`] is `10^-scale` of one whole of the asset.
    pub fn scale(&self) -> u8 {
        self.scale
    }

    pub fn units(&self) -> &BigUint {
        &self.units
    }

    /// How many settlements are in it.
    pub fn settlements(&self) -> u64 {
        self.settlements
    }

    pub fn is_zero(&self) -> bool {
        self.units.is_zero()
    }

    /// Whether it is less than one unit at this scale.
    pub fn is_below_one_unit(&self, account_scale: u8) -> bool {
        // A whole number of units at a coarser scale is no remainder at a finer one.
        self.is_zero() || (self.scale > account_scale && self.units < ten_to(self.scale - account_scale))
    }

    /// Whether this is `before` and one settlement more.
    pub fn follows(&self, before: &Self) -> bool {
        before.settlements.checked_add(1) == Some(self.settlements)
    }

    /// Converts `amount` at the scale of an engine, and this remainder with it, into whole units of the account and what
    /// remains then. Exact for all scales. Nothing has happened if it is too large.
    pub fn credit(&self, amount: &BigUint, engine_scale: u8, account_scale: u8) -> Result<(u64, Self), TooLarge> {
        if amount.bits() > AMOUNT_BITS_MAX {
            return Err(TooLarge);
        }
        let scale = self.scale.max(engine_scale).max(account_scale);
        let sum = &self.units * ten_to(scale - self.scale) + amount * ten_to(scale - engine_scale);
        let (credited, units) = sum.div_rem(&ten_to(scale - account_scale));
        let remainder = Self {
            scale,
            units,
            settlements: self.settlements.checked_add(1).ok_or(TooLarge)?,
        };
        let remainder = remainder.reduced();
        assert!(
            remainder.is_below_one_unit(account_scale),
            "what remains is less than one unit"
        );
        Ok((credited.to_u64().ok_or(TooLarge)?, remainder))
    }

    /// The same value without zeros at its end.
    fn reduced(mut self) -> Self {
        let ten = BigUint::from(10u8);
        if self.units.is_zero() {
            self.scale = 0;
        }
        while self.scale > 0 {
            let (shorter, digit) = self.units.div_rem(&ten);
            if !digit.is_zero() {
                break;
            }
            self.units = shorter;
            self.scale -= 1;
        }
        self
    }
}

fn ten_to(exponent: u8) -> BigUint {
    BigUint::from(10u8).pow(exponent.into())
}

#[cfg(test)]
mod tests {
    use num_bigint::BigInt;
    use num_rational::BigRational;
    use proptest::prelude::*;

    use super::*;

    /// One line per settlement: `AMOUNT@ENGINE-SCALE CREDITED UNITS@SCALE`, or `too-large`.
    fn check(account_scale: u8, script: &str) {
        let mut remainder = Remainder::default();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (quantity, expected) = line.split_once(' ').unwrap();
            let (amount, scale) = quantity.split_once('@').unwrap();
            let said = match remainder.credit(&amount.parse().unwrap(), scale.parse().unwrap(), account_scale) {
                Ok((credited, after)) => {
                    assert!(after.follows(&remainder) && !remainder.follows(&after));
                    remainder = after;
                    format!("{credited} {}@{}", remainder.units(), remainder.scale())
                }
                Err(TooLarge) => "too-large".to_owned(),
            };
            assert_eq!(said, expected.trim(), "{line:?}");
        }
    }

    #[test]
    fn nothing_remains_of_a_coarser_scale() {
        check(
            9,
            "1@9   1 0@0
             0@255 0 0@0
             5@0   5000000000 0@0
             18446744073709551615@9  18446744073709551615 0@0
             18446744073709551616@9  too-large
             18446744073@0  18446744073000000000 0@0
             18446744074@0  too-large",
        );
    }

    #[test]
    fn what_a_finer_scale_leaves_over_is_in_the_next_one() {
        check(
            2,
            "999@5  0 999@5
             1@5    1 0@0
             150@3  15 0@0
             155@3  15 5@3
             49@4   0 99@4
             1@255  0 990000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
             0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
             000000000000000000000000000000000000000000000000000000000000000001@255",
        );
    }

    #[test]
    fn an_amount_beyond_all_measure_is_refused_at_once() {
        let beyond = BigUint::from(1u8) << (AMOUNT_BITS_MAX as usize);
        assert_eq!(Remainder::default().credit(&beyond, 255, 0), Err(TooLarge));
        // The bound refuses nothing that fits.
        let largest = (BigUint::from(u64::MAX) + 1u8) * ten_to(255) - 1u8;
        assert!(largest.bits() <= AMOUNT_BITS_MAX);
        let (credited, remainder) = Remainder::default().credit(&largest, 255, 0).unwrap();
        assert_eq!(credited, u64::MAX);
        assert_eq!(remainder.units(), &(ten_to(255) - 1u8));
        assert_eq!(
            remainder
                .credit(&BigUint::from(1u8), 255, 0)
                .map(|(credited, _)| credited),
            Ok(1)
        );
    }

    #[test]
    fn a_remainder_that_no_settlement_leaves_is_not_read() {
        for (scale, units, valid) in [
            (0, 0u8, true),
            (0, 5, true),
            (3, 5, true),
            (3, 0, false),
            (3, 50, false),
        ] {
            let read = Remainder::from_parts(scale, units.into(), 1);
            assert_eq!(read.is_some(), valid, "{units}@{scale}");
        }
        for (scale, account_scale, below) in [(3, 2, true), (3, 3, false), (3, 0, true), (2, 3, false)] {
            let read = Remainder::from_parts(scale, 5u8.into(), 1).unwrap();
            assert_eq!(
                read.is_below_one_unit(account_scale),
                below,
                "5@{scale} in units of {account_scale}"
            );
        }
        assert!(!Remainder::from_parts(3, 15u8.into(), 1).unwrap().is_below_one_unit(2));
    }

    #[test]
    fn states_come_back_as_they_are_written() {
        for state in SettlementState::ALL {
            assert_eq!(SettlementState::parse(state.as_str()), Some(state));
        }
        assert_eq!(SettlementState::parse("Pending"), None);
        let open = SettlementState::ALL.map(SettlementState::is_open);
        assert_eq!(open, [true, true, true, false, false]);
    }

    #[test]
    fn a_settlement_changes_only_as_it_may() {
        let before = Settlement {
            number: SettlementNumber::new(3),
            id: [7; 16],
            account: AccountId::new(1),
            amount: 10,
            scale: 2,
            state: SettlementState::Sent,
            sent_to: Some(SentTo {
                engine: "http://engine/".into(),
                since_ms: 3,
            }),
            attempts: 2,
            created_ms: 5,
            last_attempt_ms: Some(6),
            ended_ms: None,
            last_error: None,
        };
        let with = |change: fn(&mut Settlement)| {
            let mut after = before.clone();
            change(&mut after);
            before.may_become(&after).is_ok()
        };
        assert!(with(|_| ()));
        assert!(with(|after| after.state = SettlementState::Pending));
        assert!(with(
            |after| (after.state, after.attempts) = (SettlementState::Failed, 3)
        ));
        assert!(with(
            |after| (after.state, after.ended_ms) = (SettlementState::Confirmed, Some(9))
        ));
        assert!(with(|after| after.set_last_error(&"\u{20ac}".repeat(5_000))));
        let wrong: [fn(&mut Settlement); 11] = [
            |after| after.number = SettlementNumber::new(4),
            |after| after.id = [8; 16],
            |after| after.account = AccountId::new(2),
            |after| after.amount = 11,
            |after| after.scale = 3,
            |after| after.created_ms = 6,
            |after| after.attempts = 1,
            |after| after.state = SettlementState::Confirmed,
            |after| after.ended_ms = Some(9),
            |after| (after.state, after.ended_ms) = (SettlementState::Cancelled, Some(9)),
            |after| after.last_error = Some("a".repeat(SETTLEMENT_ERROR_BYTES_MAX + 1).into()),
        ];
        assert!(wrong.into_iter().all(|change| !with(change)));
    }

    fn value(units: &BigUint, scale: u8) -> BigRational {
        BigRational::new(BigInt::from(units.clone()), BigInt::from(ten_to(scale)))
    }

    /// Amounts that are small, around the largest that fit after conversion, and beyond everything.
    fn amounts() -> impl Strategy<Value = BigUint> {
        prop_oneof![
            3 => (0..100_000u64).prop_map(BigUint::from),
            3 => any::<u64>().prop_map(BigUint::from),
            3 => (any::<u64>(), any::<u8>()).prop_map(|(most, digits)| BigUint::from(most) * ten_to(digits)),
            1 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| BigUint::from_bytes_be(&bytes)),
        ]
    }

    proptest! {
        /// What is credited and what remains are at every moment exactly what came in.
        #[test]
        fn settlements_in_any_scales_conserve_value(
            account_scale: u8,
            quantities in proptest::collection::vec((amounts(), any::<u8>()), 0..40),
        ) {
            let mut remainder = Remainder::default();
            let (mut came_in, mut credited_sum) = (BigRational::zero(), BigUint::zero());
            for (amount, scale) in quantities {
                let with_this = value(&remainder.units, remainder.scale) + value(&amount, scale);
                let fits = (with_this * BigInt::from(ten_to(account_scale))).to_integer() <= BigInt::from(u64::MAX);
                match remainder.credit(&amount, scale, account_scale) {
                    Ok((credited, after)) => {
                        prop_assert!(fits, "{} was credited", credited);
                        came_in += value(&amount, scale);
                        credited_sum += credited;
                        prop_assert!(after.follows(&remainder));
                        remainder = after;
                    }
                    Err(TooLarge) => prop_assert!(!fits, "{} at {} was refused", amount, scale),
                }
                let left_over = value(&remainder.units, remainder.scale);
                prop_assert!(left_over < value(&BigUint::from(1u8), account_scale), "{:?}", remainder);
                prop_assert_eq!(value(&credited_sum, account_scale) + left_over, came_in.clone());
                prop_assert!(remainder.is_below_one_unit(account_scale));
                let kept = Remainder::from_parts(remainder.scale(), remainder.units().clone(), remainder.settlements());
                prop_assert_eq!(kept.as_ref(), Some(&remainder), "as it would be read back");
            }
        }
    }
}
