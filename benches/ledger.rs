//! What the ledger costs: a packet's hold and reservation, taken and committed or released, against the two additions
//! that move the same money with no questions asked; the same with many accounts; and the queue of responses that wait
//! for the disk.

use std::collections::VecDeque;
use std::hint::black_box;

use clearway::ledger::journal::Journal;
use clearway::ledger::{AccountLimits, Balance, Share};
use criterion::Criterion;

use support::{Digest, Random, Work, measure, size};

mod support;

/// Both limits are set and looked at, and neither is ever reached.
const LIMITS: AccountLimits = AccountLimits {
    packet_amount_max: u64::MAX,
    balance_min: Some(-1_000_000_000_000_000),
    balance_max: Some(1_000_000_000_000_000),
    amount_per_minute: None,
    packets_per_minute: None,
    spread: Share::NONE,
};

fn main() {
    support::main(&[packet, accounts, journal]);
}

/// A packet from one account to another, by their places.
#[derive(Clone, Copy)]
struct Payment {
    from: usize,
    to: usize,
    amount: u64,
}

impl Payment {
    fn back(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            ..self
        }
    }
}

/// Payments between accounts, and then each of them back, so that all balances end as they began.
fn payments(accounts: usize, count: usize) -> Vec<Payment> {
    let mut random = Random::from_seed(5);
    let there: Vec<Payment> = (0..count / 2)
        .map(|_| {
            let from = random.below(accounts);
            Payment {
                from,
                to: (from + 1 + random.below(accounts - 1)) % accounts,
                amount: 1 + random.next() % 1_000_000,
            }
        })
        .collect();
    let back = there.iter().map(|payment| payment.back());
    there.iter().copied().chain(back).collect()
}

/// The same money in bare numbers: the oracle, and what the ledger is compared with. The digest is of both balances after
/// each payment.
fn add_up(balances: &mut [i128], payments: &[Payment]) -> u64 {
    let mut digest = Digest::default();
    for payment in payments {
        balances[payment.from] -= i128::from(payment.amount);
        balances[payment.to] += i128::from(payment.amount);
        digest.add(balances[payment.from] as u64);
        digest.add(balances[payment.to] as u64);
    }
    digest.get()
}

fn commit(balances: &mut [Balance], payments: &[Payment]) -> u64 {
    let mut digest = Digest::default();
    for payment in payments {
        let hold = balances[payment.from]
            .hold(payment.amount, &LIMITS)
            .expect("within the limit");
        let reservation = balances[payment.to]
            .reserve(payment.amount, &LIMITS)
            .expect("within the limit");
        balances[payment.to].commit_reservation(reservation);
        balances[payment.from].commit_hold(hold);
        digest.add(balances[payment.from].booked() as u64);
        digest.add(balances[payment.to].booked() as u64);
    }
    digest.get()
}

fn release(balances: &mut [Balance], payments: &[Payment]) -> u64 {
    let mut digest = Digest::default();
    for payment in payments {
        let hold = balances[payment.from]
            .hold(payment.amount, &LIMITS)
            .expect("within the limit");
        let reservation = balances[payment.to]
            .reserve(payment.amount, &LIMITS)
            .expect("within the limit");
        digest.add(balances[payment.from].available() as u64);
        digest.add(balances[payment.to].reserved() as u64);
        balances[payment.to].release_reservation(reservation);
        balances[payment.from].release_hold(hold);
    }
    digest.get()
}

fn packet(criterion: &mut Criterion) {
    const ACCOUNTS: usize = 10;

    let payments = payments(ACCOUNTS, size(64, 4_096));
    let committed = add_up(&mut [0; ACCOUNTS], &payments);
    let released: Digest = payments
        .iter()
        .flat_map(|payment| [payment.amount.wrapping_neg(), payment.amount])
        .collect();
    let mut numbers = [0; ACCOUNTS];
    let mut committing = [Balance::default(); ACCOUNTS];
    let mut releasing = [Balance::default(); ACCOUNTS];
    let works = vec![
        Work::new("two additions", committed, || {
            add_up(&mut numbers, black_box(&payments))
        }),
        Work::new("take, commit", committed, || {
            commit(&mut committing, black_box(&payments))
        }),
        Work::new("take, release", released.get(), || {
            release(&mut releasing, black_box(&payments))
        }),
    ];
    measure(criterion, "ledger/packet", payments.len(), works);
    for balance in committing.iter().chain(&releasing) {
        assert_eq!(*balance, Balance::default(), "all has been paid back, nothing is held");
    }
}

fn accounts(criterion: &mut Criterion) {
    let counts = [10, 1_000, size(2_000, 100_000)];
    let payment_count = size(1_000, 65_536);
    let works = counts
        .map(|count| {
            let payments = payments(count, payment_count);
            let expected = add_up(&mut vec![0; count], &payments);
            let mut balances = vec![Balance::default(); count];
            Work::new(format!("{count} accounts"), expected, move || {
                commit(&mut balances, black_box(&payments))
            })
        })
        .into();
    measure(criterion, "ledger/accounts", payment_count, works);
}

fn journal(criterion: &mut Criterion) {
    /// Transfers that one sync of the disk makes durable, and a few that are not there yet.
    const BATCH: u64 = 100;
    const AHEAD: u64 = 28;

    let count = size(500, 50_000) as u64;
    let expected = (1..=count).collect::<Digest>().get();
    let works = vec![
        Work::new("bare queue", expected, || {
            let (mut queue, mut digest) = (VecDeque::new(), Digest::default());
            for number in 1..=black_box(count) {
                queue.push_back((number, number));
                if number % BATCH == 0 || number == count {
                    let keep = if number == count { 0 } else { AHEAD as usize };
                    let durable = queue.len() - keep;
                    queue.drain(..durable).for_each(|(_, response)| digest.add(response));
                }
            }
            digest.get()
        }),
        Work::new("wait, release", expected, || {
            let (mut journal, mut digest) = (Journal::default(), Digest::default());
            for number in 1..=black_box(count) {
                journal.wait(number, number);
                if number % BATCH == 0 || number == count {
                    let durable = if number == count { number } else { number - AHEAD };
                    while let Some(response) = journal.release(durable) {
                        digest.add(response);
                    }
                }
            }
            digest.get()
        }),
    ];
    measure(criterion, "ledger/journal", count as usize, works);
}
