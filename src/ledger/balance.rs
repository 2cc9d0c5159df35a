//! Balances: what we owe each account holder, and what is on hold for packets in flight.
//!
//! Owns all arithmetic on the money of one account. Knows nothing of packets, links or disks. See RFC 32 and, for the
//! sign, `RFC 27`'s view from the connector: **positive is what we owe the holder**, negative what they owe us.
//!
//! What engines have brought is part of the balance and kept apart in it as `prepaid`, until the account's own packets
//! have used it: it is not settled back. The account's own packets use it first; a settlement of ours takes only what is
//! not prepaid; one of theirs pays their debt first and is prepaid with the rest.
//!
//! Always: `held` covers exactly the incoming holds not yet spent, `reserved` exactly the outgoing ones; no packet makes
//! `booked - held` fall below `balance_min` or `booked + reserved` rise above `balance_max`; `prepaid` is never negative.

use super::account::AccountLimits;

/// The balance of one account, in units of its asset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Balance {
    /// What fulfilled packets and settlements have left. i128 holds 2^63 packets of the largest amount.
    booked: i128,
    /// The part of it that engines have brought and no packet has used.
    prepaid: i128,
    /// Prepares of this account that are in flight: taken off until they end.
    held: i128,
    /// Prepares in flight towards this account: what we shall owe if all of them are fulfilled.
    reserved: i128,
}

/// What the book says of an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Positive is what we owe the holder. What is prepaid is part of it, what is on its way to an engine is not.
    pub booked: i128,
    /// What engines have brought and no packet has used.
    pub prepaid: i128,
    /// A settlement of the account is open.
    pub settling: bool,
}

impl Standing {
    /// Nothing prepaid, and no settlement.
    pub const fn of(booked: i128) -> Self {
        Self {
            booked,
            prepaid: 0,
            settling: false,
        }
    }
}

/// What is prepaid after a packet of the account has taken `amount`.
pub fn prepaid_after_debit(prepaid: i128, amount: u64) -> i128 {
    (prepaid - i128::from(amount)).max(0)
}

/// What is prepaid after an engine has brought `amount`: what the holder owes us, apart from what is prepaid, is paid
/// first.
pub fn prepaid_after_settlement(booked: i128, prepaid: i128, amount: u64) -> i128 {
    let debt = (prepaid - booked).max(0);
    prepaid + (i128::from(amount) - debt).max(0)
}

/// The amount of a Prepare, taken off the balance of the account that sent it, until the packet ends.
#[must_use = "a Fulfill commits a hold; a Reject or the expiry releases it"]
#[derive(PartialEq, Eq, Debug)]
pub struct Hold {
    amount: u64,
}

impl Hold {
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

/// The amount of a Prepare on its way to an account, counted against what we may owe it, until the packet ends.
#[must_use = "a Fulfill commits a reservation; a Reject or the expiry releases it"]
#[derive(PartialEq, Eq, Debug)]
pub struct Reservation {
    amount: u64,
}

impl Reservation {
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

/// The balance does not allow it: ILP error T04.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the balance does not allow it")]
pub struct InsufficientLiquidity;

impl Balance {
    /// An account of which the book says `standing` and which has nothing in flight.
    pub fn from_book(standing: Standing) -> Self {
        Self {
            booked: standing.booked,
            prepaid: standing.prepaid,
            held: 0,
            reserved: 0,
        }
    }

    /// What the book says, whatever is in flight.
    pub fn booked(&self) -> i128 {
        self.booked
    }

    /// What engines have brought and no packet has used: part of [`Self::booked`].
    pub fn prepaid(&self) -> i128 {
        self.prepaid
    }

    /// The sum of this account's Prepares in flight.
    pub fn held(&self) -> i128 {
        self.held
    }

    /// The sum of the Prepares in flight towards this account.
    pub fn reserved(&self) -> i128 {
        self.reserved
    }

    /// What the next Prepare is checked against: booked less held.
    pub fn available(&self) -> i128 {
        self.booked - self.held
    }

    /// What we owe and may settle: what is neither on hold nor prepaid.
    pub fn due(&self) -> i128 {
        self.available() - self.prepaid
    }

    /// Nothing in flight in either direction, counted in money.
    pub fn is_settled(&self) -> bool {
        self.held == 0 && self.reserved == 0
    }

    /// Takes the amount of a Prepare off this account until the packet ends.
    pub fn hold(&mut self, amount: u64, limits: &AccountLimits) -> Result<Hold, InsufficientLiquidity> {
        if let Some(balance_min) = limits.balance_min
            // A packet of nothing asks for nothing, even of an account that is below its limit already.
            && amount > 0
            && self.available() - i128::from(amount) < i128::from(balance_min)
        {
            return Err(InsufficientLiquidity);
        }
        self.held += i128::from(amount);
        Ok(Hold { amount })
    }

    /// Counts a Prepare towards this account against what we may owe its holder.
    pub fn reserve(&mut self, amount: u64, limits: &AccountLimits) -> Result<Reservation, InsufficientLiquidity> {
        if let Some(balance_max) = limits.balance_max
            && amount > 0
            && self.booked + self.reserved + i128::from(amount) > i128::from(balance_max)
        {
            return Err(InsufficientLiquidity);
        }
        self.reserved += i128::from(amount);
        Ok(Reservation { amount })
    }

    /// The packet was fulfilled: what it held is gone for good.
    pub fn commit_hold(&mut self, hold: Hold) {
        self.release(hold.amount, Side::Held);
        self.booked -= i128::from(hold.amount);
        self.prepaid = prepaid_after_debit(self.prepaid, hold.amount);
    }

    /// The packet was rejected or expired: what it held is available again.
    pub fn release_hold(&mut self, hold: Hold) {
        self.release(hold.amount, Side::Held);
    }

    /// The packet was fulfilled: we owe the amount.
    pub fn commit_reservation(&mut self, reservation: Reservation) {
        self.release(reservation.amount, Side::Reserved);
        self.booked += i128::from(reservation.amount);
    }

    /// The packet was rejected or expired: we shall not owe the amount.
    pub fn release_reservation(&mut self, reservation: Reservation) {
        self.release(reservation.amount, Side::Reserved);
    }

    /// Takes off what is to be settled, if that has reached `threshold`: everything above `to`, but for what is prepaid
    /// or held, and no more than one settlement can carry. It is gone from the balance then, and the caller hands it
    /// over. A threshold that is not above `to` settles nothing.
    #[must_use = "what is taken off is handed over as a transfer"]
    pub fn settle(&mut self, threshold: i64, to: i64) -> Option<u64> {
        let (threshold, to) = (i128::from(threshold), i128::from(to));
        let due = self.due();
        if threshold <= to || due < threshold {
            return None;
        }
        let amount = u64::try_from(due - to).unwrap_or(u64::MAX);
        self.booked -= i128::from(amount);
        Some(amount)
    }

    /// An engine has brought `amount`.
    pub fn credit_settlement(&mut self, amount: u64) {
        self.prepaid = prepaid_after_settlement(self.booked, self.prepaid, amount);
        self.booked += i128::from(amount);
    }

    /// A settlement of ours was cancelled: `amount` comes back.
    pub fn credit(&mut self, amount: u64) {
        self.booked += i128::from(amount);
    }

    fn release(&mut self, amount: u64, side: Side) {
        let pool = match side {
            Side::Held => &mut self.held,
            Side::Reserved => &mut self.reserved,
        };
        *pool -= i128::from(amount);
        assert!(*pool >= 0, "more was released than was held");
    }
}

enum Side {
    Held,
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per event: `hold|commit|release|reserve|credit|unreserve AMOUNT -> ok|T04 booked held reserved`.
    fn check(limits: AccountLimits, script: &str) {
        let mut balance = Balance::default();
        let mut holds = Vec::new();
        let mut reservations = Vec::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let word: Vec<&str> = line.split_whitespace().collect();
            let amount: u64 = word[1].parse().unwrap();
            let result = match word[0] {
                "hold" => balance.hold(amount, &limits).map(|hold| holds.push(hold)),
                "reserve" => balance.reserve(amount, &limits).map(|one| reservations.push(one)),
                "commit" | "release" => {
                    let at = holds.iter().position(|hold: &Hold| hold.amount() == amount).unwrap();
                    let hold = holds.remove(at);
                    if word[0] == "commit" {
                        balance.commit_hold(hold)
                    } else {
                        balance.release_hold(hold)
                    }
                    Ok(())
                }
                "credit" | "unreserve" => {
                    let at = reservations
                        .iter()
                        .position(|one: &Reservation| one.amount() == amount)
                        .unwrap();
                    let one = reservations.remove(at);
                    if word[0] == "credit" {
                        balance.commit_reservation(one)
                    } else {
                        balance.release_reservation(one)
                    }
                    Ok(())
                }
                other => panic!("{other}"),
            };
            let said = if result.is_ok() { "ok" } else { "T04" };
            let now = format!("{said} {} {} {}", balance.booked(), balance.held(), balance.reserved());
            assert_eq!(now, word[2..].join(" "), "after {line:?}");
        }
    }

    #[test]
    fn without_limits_everything_is_held() {
        check(
            AccountLimits::default(),
            "hold 18446744073709551615 ok 0 18446744073709551615 0
             commit 18446744073709551615 ok -18446744073709551615 0 0
             reserve 5 ok -18446744073709551615 0 5
             credit 5 ok -18446744073709551610 0 0",
        );
    }

    #[test]
    fn the_incoming_limit_counts_what_is_held() {
        check(
            AccountLimits {
                balance_min: Some(-100),
                ..AccountLimits::default()
            },
            "hold    100 ok  0 100 0
             hold      1 T04 0 100 0
             hold      0 ok  0 100 0
             release 100 ok  0 0 0
             hold     60 ok  0 60 0
             hold     41 T04 0 60 0
             hold     40 ok  0 100 0
             commit   60 ok  -60 40 0
             hold      1 T04 -60 40 0
             release  40 ok  -60 0 0
             hold     40 ok  -60 40 0",
        );
    }

    #[test]
    fn a_credit_can_be_spent_at_once() {
        check(
            AccountLimits {
                balance_min: Some(0),
                ..AccountLimits::default()
            },
            "hold      1 T04 0 0 0
             reserve  10 ok  0 0 10
             hold      1 T04 0 0 10
             credit   10 ok  10 0 0
             hold     10 ok  10 10 0
             commit   10 ok  0 0 0",
        );
    }

    /// One line per event: `debit|owe|settle|receive|return AMOUNT -> BOOKED PREPAID`; a settlement of threshold 100 to
    /// `to` says what it took.
    fn check_settling(to: i64, script: &str) {
        let mut balance = Balance::default();
        let free = AccountLimits::default();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let word: Vec<&str> = line.split_whitespace().collect();
            let amount: u64 = word[1].parse().unwrap();
            match word[0] {
                "debit" => {
                    let hold = balance.hold(amount, &free).unwrap();
                    balance.commit_hold(hold);
                }
                "owe" => {
                    let reservation = balance.reserve(amount, &free).unwrap();
                    balance.commit_reservation(reservation);
                }
                "settle" => assert_eq!(balance.settle(100, to).unwrap_or(0), amount, "{line:?}"),
                "receive" => balance.credit_settlement(amount),
                "return" => balance.credit(amount),
                other => panic!("{other}"),
            }
            let now = format!("{} {}", balance.booked(), balance.prepaid());
            assert_eq!(now, word[2..].join(" "), "after {line:?}");
        }
    }

    #[test]
    fn what_is_prepaid_is_used_first_and_not_settled_back() {
        check_settling(
            0,
            "receive 150  150 150
             settle    0  150 150
             debit    30  120 120
             owe      99  219 120
             settle    0  219 120
             owe       1  220 120
             settle  100  120 120
             debit   200  -80   0
             receive  50  -30   0
             receive  50   20  20
             owe     500  520  20
             settle  500   20  20
             return  500  520  20
             settle  500   20  20",
        );
    }

    #[test]
    fn a_settlement_may_leave_something_or_take_more() {
        check_settling(
            40,
            "owe 99 99 0\n settle 0 99 0\n owe 1 100 0\n settle 60 40 0\n settle 0 40 0",
        );
        check_settling(-10, "owe 100 100 0\n settle 110 -10 0\n receive 15 5 5\n debit 7 -2 0");
        for to in [100, 101, i64::MAX] {
            check_settling(to, "owe 1000 1000 0\n settle 0 1000 0");
        }
    }

    #[test]
    fn a_settlement_takes_what_is_held_by_nobody_and_fits_one_record() {
        let mut balance = Balance::from_book(Standing {
            booked: 500,
            prepaid: 100,
            settling: false,
        });
        let hold = balance.hold(250, &AccountLimits::default()).unwrap();
        assert_eq!(balance.settle(151, 0), None);
        assert_eq!(balance.settle(150, 0), Some(150));
        assert_eq!(
            (balance.booked(), balance.prepaid(), balance.available()),
            (350, 100, 100)
        );
        balance.release_hold(hold);
        assert_eq!(balance.settle(1, 0), Some(250), "what was held is not lost to settling");
        let much = 3 * i128::from(u64::MAX);
        let mut balance = Balance::from_book(Standing::of(much));
        assert_eq!(balance.settle(i64::MAX, i64::MIN), Some(u64::MAX));
        assert_eq!(balance.booked(), much - i128::from(u64::MAX));
    }

    #[test]
    fn the_outgoing_limit_counts_what_is_in_flight() {
        check(
            AccountLimits {
                balance_max: Some(50),
                ..AccountLimits::default()
            },
            "reserve   30 ok  0 0 30
             reserve   21 T04 0 0 30
             reserve   20 ok  0 0 50
             unreserve 30 ok  0 0 20
             credit    20 ok  20 0 0
             reserve   31 T04 20 0 0
             reserve   30 ok  20 0 30",
        );
    }
}
