//! Payments that our own accounts make: drives their state machines, as one more source of Prepares.
//!
//! Owns which payments are open on this shard, when each of them is looked at again, and how a reply finds its payment.
//! What to send, and when a payment is over, is [`crate::stream::sender`]'s; the money moves as for every packet: a
//! payment's Prepares go through the pipeline of the account that pays, and their Fulfills come back when they are
//! durable. Leaves to [`crate::control`] what is remembered of a payment.
//!
//! Always: a payment ends when all of its packets have, and only then is that said.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::ledger::{AccountId, PaymentNumber};
use crate::pipeline::in_flight::ReplyTo;
use crate::pipeline::rates::Conversion;
use crate::pipeline::reject::RejectReason;
use crate::stream::ratio::Ratio;
use crate::stream::sender::{Asset, Config, Outcome, PACKETS_IN_FLIGHT_MAX, RateSource, Sender};
use crate::wire::address::Address;
use crate::wire::packet::{Prepare, PrepareBuilder, Reply};
use crate::wire::timestamp::Timestamp;

use super::Shard;
use super::control::{PaymentEnd, PaymentOrder, RefusedHere};

/// Payments that may be open on one shard, at some kilobytes each.
const PAYMENTS_MAX: usize = 16_384;
/// Prepares that one payment may send in one turn, so that others get theirs; and all of them together, at some
/// microseconds each, so that a turn stays short.
const PREPARES_PER_TURN: usize = 64;
const PREPARES_PER_TURN_OF_ALL: usize = 256;

/// Called with how a payment ended.
pub type Done = Box<dyn FnOnce(PaymentEnd) + Send>;

/// The payments of one shard.
#[derive(Default)]
pub struct Payments {
    open: HashMap<PaymentNumber, Paying>,
    /// To be looked at in this turn: a reply came, or they have more to send.
    ready: VecDeque<PaymentNumber>,
    /// When each is to be looked at again.
    wakeups: BTreeSet<(Timestamp, PaymentNumber)>,
    /// The payment that is handing a packet to the pipeline, and whether that is money: if it is refused there, its own
    /// account is the reason.
    asking: Option<(PaymentNumber, bool)>,
}

struct Paying {
    account: AccountId,
    sender: Sender,
    done: Done,
    /// Why we took none of its packets any more.
    refused_here: Option<RefusedHere>,
    is_ready: bool,
    wakeup: Option<Timestamp>,
}

impl Payments {
    /// Some have to be looked at at once.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the next has to be looked at, wall time.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        self.wakeups.first().map(|(at, _)| *at)
    }

    fn set_ready(&mut self, number: PaymentNumber) {
        if let Some(paying) = self.open.get_mut(&number)
            && !std::mem::replace(&mut paying.is_ready, true)
        {
            self.ready.push_back(number);
        }
    }
}

impl Shard {
    /// Begins a payment of an account of this shard.
    pub(super) fn begin_payment(&mut self, order: PaymentOrder, done: Done) {
        let account = self.pipeline.directory().get(order.account).cloned();
        let addresses = account.as_ref().map(|account| {
            (
                Address::parse(account.ilp_address.as_bytes()),
                Address::parse(order.destination.as_bytes()),
            )
        });
        let (Some(account), Some((Ok(source_address), Ok(destination)))) = (&account, addresses) else {
            return done(ended_at_once(RefusedHere::NoAccount));
        };
        if self.pipeline.is_closing(order.account) {
            return done(ended_at_once(RefusedHere::NoAccount));
        }
        if self.stopping || self.pipeline.cannot_commit {
            return done(ended_at_once(RefusedHere::NotReady));
        }
        if self.payments.open.len() >= PAYMENTS_MAX {
            return done(ended_at_once(RefusedHere::Busy));
        }
        let config = Config {
            shared_secret: &order.shared_secret,
            destination,
            source_address,
            source_asset_code: &account.asset.code,
            source_asset_scale: account.asset.scale,
            target: order.target,
            rate: RateSource::Caller,
            slippage: order.slippage,
            is_quote: order.is_quote,
            timeout_ms: order.timeout_ms,
            packets_in_flight_max: PACKETS_IN_FLIGHT_MAX,
        };
        let paying = Paying {
            account: order.account,
            sender: Sender::new(&config, self.now.wall),
            done,
            refused_here: None,
            is_ready: false,
            wakeup: None,
        };
        self.payments.open.insert(order.number, paying);
        self.payments.set_ready(order.number);
    }

    /// An account's payments send nothing more: it is being deleted, or (`None`) the node stops.
    pub(super) fn cancel_payments(&mut self, account: Option<AccountId>, reason: RefusedHere) {
        let mut cancelled = Vec::new();
        for (number, paying) in &mut self.payments.open {
            if account.is_none_or(|account| account == paying.account) {
                paying.refused_here.get_or_insert(reason);
                paying.sender.cancel();
                cancelled.push(*number);
            }
        }
        for number in cancelled {
            self.payments.set_ready(number);
        }
    }

    /// The response to a Prepare of a payment. A Fulfill is durable when it comes here.
    pub(super) fn payment_replied(&mut self, number: PaymentNumber, request: u32, packet: &[u8]) {
        let Some(paying) = self.payments.open.get_mut(&number) else {
            return;
        };
        let reply = Reply::parse(packet).expect("what the pipeline passes on was parsed or encoded here");
        paying.sender.handle_reply(self.now.wall, request, &reply);
        self.payments.set_ready(number);
    }

    /// Our own pipeline has not taken a Prepare of a payment. Money that its account may not owe will not be taken the
    /// next time either; everything else passes, or is for the payment to judge by its code.
    pub(super) fn payment_refused(&mut self, number: PaymentNumber, reason: &RejectReason) {
        let Some((_, is_money)) = self.payments.asking.filter(|(asking, _)| *asking == number) else {
            return;
        };
        let reason = match reason {
            // A probe may be larger than what the account has: that it is refused says nothing about the payment.
            RejectReason::IncomingLiquidity if is_money => RefusedHere::InsufficientBalance,
            RejectReason::NoRate => RefusedHere::NoRate,
            RejectReason::CannotCommit | RejectReason::Stopping => RefusedHere::NotReady,
            _ => return,
        };
        if let Some(paying) = self.payments.open.get_mut(&number) {
            paying.refused_here.get_or_insert(reason);
            paying.sender.cancel();
        }
    }

    /// Goes on with the payments that something happened to, and with those whose time has come.
    pub(super) fn drive_payments(&mut self) {
        while let Some((_, number)) = self.payments.wakeups.first().filter(|(at, _)| *at <= self.now.wall) {
            let number = *number;
            self.payments.wakeups.pop_first();
            if let Some(paying) = self.payments.open.get_mut(&number) {
                paying.wakeup = None;
            }
            self.payments.set_ready(number);
        }
        let mut sent = 0;
        // Those that become ready meanwhile, and those that there is no time for, are for the next turn.
        for _ in 0..self.payments.ready.len() {
            if sent >= PREPARES_PER_TURN_OF_ALL {
                break;
            }
            if let Some(number) = self.payments.ready.pop_front() {
                sent += self.drive_payment(number);
            }
        }
    }

    /// Gives the number of Prepares that were sent.
    fn drive_payment(&mut self, number: PaymentNumber) -> usize {
        let Some(paying) = self.payments.open.get_mut(&number) else {
            return 0;
        };
        paying.is_ready = false;
        self.give_rate(number);
        let mut sent = 0;
        while sent < PREPARES_PER_TURN && self.send_next(number) {
            sent += 1;
        }
        if sent == PREPARES_PER_TURN {
            self.payments.set_ready(number);
        }
        let Some(paying) = self.payments.open.get_mut(&number) else {
            return sent;
        };
        if let Some(outcome) = paying.sender.outcome() {
            self.end_payment(number, outcome);
            return sent;
        }
        let wakeup = paying.sender.next_wakeup();
        if paying.wakeup != wakeup {
            let before = std::mem::replace(&mut paying.wakeup, wakeup);
            if let Some(before) = before {
                self.payments.wakeups.remove(&(before, number));
            }
            self.payments.wakeups.extend(wakeup.map(|at| (at, number)));
        }
        sent
    }

    /// Answers a payment that asks what its money is worth there.
    fn give_rate(&mut self, number: PaymentNumber) {
        let Some(paying) = self.payments.open.get_mut(&number) else {
            return;
        };
        let Some(asked) = paying.sender.asked_rate() else {
            return;
        };
        let rate = self
            .pipeline
            .directory()
            .get(paying.account)
            .and_then(|account| self.pipeline.rate_from(account, &asset_of(asked)))
            .and_then(|conversion| ratio_of(&conversion));
        paying.sender.set_rate(self.now.wall, rate);
    }

    /// Hands the next Prepare of a payment to the pipeline, if there is one.
    fn send_next(&mut self, number: PaymentNumber) -> bool {
        let Some(paying) = self.payments.open.get_mut(&number) else {
            return false;
        };
        let account = paying.account;
        let entropy = &mut self.entropy;
        let Some(outgoing) = paying
            .sender
            .poll_prepare(self.now.wall, &mut |bytes| entropy.fill(bytes))
        else {
            return false;
        };
        let request = outgoing.request;
        let is_money = outgoing.is_money;
        let mut packet = std::mem::take(&mut self.payment_scratch);
        packet.clear();
        PrepareBuilder {
            amount: outgoing.amount,
            expires_at: outgoing.expires_at,
            execution_condition: &outgoing.condition,
            destination: outgoing.destination,
            data: outgoing.data,
        }
        .encode(&mut packet);
        debug_assert!(Prepare::parse(&packet).is_ok());
        self.payments.asking = Some((number, is_money));
        self.incoming(account, ReplyTo::to_payment(self.id, number, request), &packet);
        self.payments.asking = None;
        self.payment_scratch = packet;
        true
    }

    fn end_payment(&mut self, number: PaymentNumber, outcome: Outcome) {
        let Some(paying) = self.payments.open.remove(&number) else {
            return;
        };
        if let Some(at) = paying.wakeup {
            self.payments.wakeups.remove(&(at, number));
        }
        (paying.done)(PaymentEnd {
            outcome,
            refused_here: paying.refused_here,
        });
    }
}

fn ended_at_once(reason: RefusedHere) -> PaymentEnd {
    PaymentEnd {
        outcome: Outcome::not_begun(),
        refused_here: Some(reason),
    }
}

fn asset_of(asset: &Asset) -> crate::ledger::Asset {
    crate::ledger::Asset {
        code: (*asset.code).into(),
        scale: asset.scale,
    }
}

/// The rate as a fraction of two integers of 64 bits, not above the exact one.
fn ratio_of(conversion: &Conversion) -> Option<Ratio> {
    let (numerator, denominator) = conversion.as_u64_fraction()?;
    Ratio::new(numerator, denominator)
}
