//! The Prepares that have left and wait for a response: bounded, found by number, ordered by expiry.
//!
//! The number of an entry is the request id on a BTP link, so a response finds its Prepare with one look: the slot in
//! the low 16 bits, above it a generation that changes with every use of the slot, so that a late response to an
//! earlier Prepare matches nothing.
//!
//! Expiry is a timing wheel: a list per [`TICK_MS`] milliseconds, linked through the entries, so putting in, taking out
//! and expiring cost the same however many are in flight.

use crate::ledger::{AccountId, Hold, PaymentNumber, Reservation};

/// Prepares that may wait for a response on one shard. A full table answers T03; it never grows. At 50 ms a packet,
/// this is more than a million packets a second.
pub const IN_FLIGHT_MAX: usize = 1 << SLOT_BITS;

/// Prepares that may be in flight to one account, or from one: half, so that one peer that does not answer leaves room
/// for all others.
pub const IN_FLIGHT_PER_ACCOUNT_MAX: u32 = IN_FLIGHT_MAX as u32 / 2;

const SLOT_BITS: u32 = 16;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// A packet expires up to this much later than it says; it never expires earlier.
pub const TICK_MS: u64 = 8;
const TICKS: usize = 8192;

/// The longest that a Prepare may be held: the wheel must not turn round on it.
pub const HOLD_MS_MAX: u64 = 60_000;
const _: () = assert!(
    HOLD_MS_MAX + 2 * TICK_MS < TICKS as u64 * TICK_MS,
    "the wheel holds the longest wait"
);

const NONE: u32 = u32::MAX;

/// Where the response goes: to a connection of a shard, to a payment that the shard makes, or to who asked a neighbour
/// something. The pipeline hands it back as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReplyTo {
    pub shard: u16,
    /// Chosen by the shard, below 2^63; or 2^63 and a payment's number; or 2^63, for there is no payment 0: a question.
    pub connection: u64,
    pub request: u32,
}

/// Tells the number of a payment from a connection.
const OF_A_PAYMENT: u64 = 1 << 63;

impl ReplyTo {
    /// The packet is the `request`th of a payment that `shard` makes.
    pub fn to_payment(shard: u16, payment: PaymentNumber, request: u32) -> Self {
        assert!(payment.get() < OF_A_PAYMENT, "numbers of payments have 63 bits");
        Self {
            shard,
            connection: OF_A_PAYMENT | payment.get(),
            request,
        }
    }

    /// The packet is the `question`th that `shard` has asked a neighbour.
    pub fn to_question(shard: u16, question: u32) -> Self {
        Self {
            shard,
            connection: OF_A_PAYMENT,
            request: question,
        }
    }

    /// The question of our own that the packet asks, if it does.
    pub fn question(&self) -> Option<u32> {
        (self.connection == OF_A_PAYMENT).then_some(self.request)
    }

    /// The payment that the packet belongs to, if it is one of our own.
    pub fn payment(&self) -> Option<PaymentNumber> {
        if self.connection & OF_A_PAYMENT == 0 {
            return None;
        }
        PaymentNumber::new(self.connection & !OF_A_PAYMENT)
    }
}

/// The incoming half of a packet in flight: who sent it, what it holds, and where the answer goes.
#[must_use = "whoever drops it leaves a sender without an answer and its money on hold"]
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    pub from: AccountId,
    pub hold: Hold,
    pub reply_to: ReplyTo,
}

/// A Prepare that has been sent to `to`.
#[derive(Debug)]
pub struct InFlight {
    pub origin: Origin,
    pub to: AccountId,
    pub reservation: Reservation,
    pub condition: [u8; 32],
    /// On the shard's monotonic clock, milliseconds.
    pub deadline_ms: u64,
    /// The connection that carries the request, for links where that is the only way to tell whose answer it is.
    pub carrier: u64,
}

/// The number of a Prepare in flight: never that of another one until 65,536 have used its slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestId(pub u32);

struct Slot {
    generation: u16,
    entry: Option<InFlight>,
    next: u32,
    previous: u32,
    /// The place on the wheel where it stands.
    place: u32,
}

/// See the module's text.
pub struct Table {
    slots: Vec<Slot>,
    /// Free slots, used last-in first-out, so that a quiet shard touches few of them.
    free: Vec<u32>,
    /// The first entry of each tick.
    wheel: Box<[u32]>,
    /// A bit for each tick that has entries, so that the next deadline is found without walking the wheel.
    occupied: [u64; TICKS / 64],
    /// Everything before this tick has been expired.
    tick: u64,
    len: usize,
}

impl Table {
    pub fn new(now_ms: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            wheel: vec![NONE; TICKS].into_boxed_slice(),
            occupied: [0; TICKS / 64],
            tick: now_ms / TICK_MS,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_full(&self) -> bool {
        self.len == IN_FLIGHT_MAX
    }

    /// Notes a Prepare. The table must not be full, and [`Self::expire`] must have been called at this time.
    pub fn insert(&mut self, entry: InFlight) -> RequestId {
        assert!(!self.is_full(), "the caller has asked");
        let tick = (entry.deadline_ms.div_ceil(TICK_MS)).max(self.tick);
        assert!(
            tick - self.tick < TICKS as u64,
            "nothing is held longer than the wheel is round"
        );
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                entry: None,
                next: NONE,
                previous: NONE,
                place: 0,
            });
            self.slots.len() as u32 - 1
        });
        let wheel_place = tick as usize % TICKS;
        let head = std::mem::replace(&mut self.wheel[wheel_place], slot);
        self.occupied[wheel_place / 64] |= 1 << (wheel_place % 64);
        if head != NONE {
            self.slots[head as usize].previous = slot;
        }
        let noted = &mut self.slots[slot as usize];
        noted.next = head;
        noted.previous = NONE;
        noted.place = wheel_place as u32;
        noted.entry = Some(entry);
        self.len += 1;
        RequestId(u32::from(noted.generation) << SLOT_BITS | slot)
    }

    pub fn get(&self, id: RequestId) -> Option<&InFlight> {
        let slot = self.slots.get((id.0 & SLOT_MASK) as usize)?;
        slot.entry
            .as_ref()
            .filter(|_| u32::from(slot.generation) == id.0 >> SLOT_BITS)
    }

    pub fn get_mut(&mut self, id: RequestId) -> Option<&mut InFlight> {
        self.get(id)?;
        self.slots[(id.0 & SLOT_MASK) as usize].entry.as_mut()
    }

    /// Takes a Prepare out: it is answered. `None` if it was answered before, has expired, or never was.
    pub fn remove(&mut self, id: RequestId) -> Option<InFlight> {
        self.get(id)?;
        Some(self.take(id.0 & SLOT_MASK))
    }

    /// The next Prepare whose time is over, until there is none.
    pub fn expire(&mut self, now_ms: u64) -> Option<InFlight> {
        let now_tick = now_ms / TICK_MS;
        if self.len == 0 {
            self.tick = self.tick.max(now_tick);
            return None;
        }
        while self.tick <= now_tick {
            let head = self.wheel[self.tick as usize % TICKS];
            if head != NONE {
                return Some(self.take(head));
            }
            if self.tick == now_tick {
                break;
            }
            self.tick += 1;
        }
        None
    }

    /// When [`Self::expire`] will find something; `None` when nothing is in flight.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let from = self.tick as usize % TICKS;
        // The rest of the word that holds the current tick, then the other words, then the beginning of that word.
        let words = TICKS / 64;
        for step in 0..=words {
            let word = (from / 64 + step) % words;
            let behind_us = match step {
                0 => u64::MAX << (from % 64),
                _ if step == words => !(u64::MAX << (from % 64)),
                _ => u64::MAX,
            };
            let bits = self.occupied[word] & behind_us;
            if bits != 0 {
                let place = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (place + TICKS - from) % TICKS;
                return Some((self.tick + ahead as u64) * TICK_MS);
            }
        }
        unreachable!("what is in flight is on the wheel")
    }

    fn take(&mut self, slot: u32) -> InFlight {
        let noted = &mut self.slots[slot as usize];
        let entry = noted.entry.take().expect("the caller has looked");
        let (next, previous, place) = (noted.next, noted.previous, noted.place);
        noted.generation = noted.generation.wrapping_add(1);
        if next != NONE {
            self.slots[next as usize].previous = previous;
        }
        if previous != NONE {
            self.slots[previous as usize].next = next;
        } else {
            let place = place as usize;
            self.wheel[place] = next;
            if next == NONE {
                self.occupied[place / 64] &= !(1 << (place % 64));
            }
        }
        self.free.push(slot);
        self.len -= 1;
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{AccountLimits, Balance};

    fn entry(deadline_ms: u64, amount: u64) -> InFlight {
        let limits = AccountLimits::default();
        InFlight {
            origin: Origin {
                from: AccountId::new(0),
                hold: Balance::default().hold(amount, &limits).unwrap(),
                reply_to: ReplyTo::default(),
            },
            to: AccountId::new(1),
            reservation: Balance::default().reserve(amount, &limits).unwrap(),
            condition: [0; 32],
            deadline_ms,
            carrier: 0,
        }
    }

    fn expired(table: &mut Table, now_ms: u64) -> Vec<u64> {
        let mut amounts: Vec<u64> = std::iter::from_fn(|| table.expire(now_ms))
            .map(|entry| entry.reservation.amount())
            .collect();
        amounts.sort_unstable();
        amounts
    }

    #[test]
    fn a_response_finds_its_prepare_once() {
        let mut table = Table::new(5_000);
        let first = table.insert(entry(6_000, 1));
        let second = table.insert(entry(6_000, 2));
        assert_eq!(table.remove(first).unwrap().reservation.amount(), 1);
        assert!(table.remove(first).is_none(), "a second response finds nothing");
        let third = table.insert(entry(7_000, 3));
        assert!(table.remove(first).is_none(), "also not when the slot is used again");
        assert_eq!(table.get(third).unwrap().reservation.amount(), 3);
        assert_eq!(table.remove(second).unwrap().reservation.amount(), 2);
        assert!(table.remove(RequestId(0xFFFF_FFFF)).is_none(), "an invented id");
    }

    #[test]
    fn prepares_expire_in_time_and_never_early() {
        let mut table = Table::new(1_000);
        for (deadline_ms, amount) in [(1_001, 1), (1_500, 2), (31_000, 3), (61_000, 4), (900, 5)] {
            table.insert(entry(deadline_ms, amount));
        }
        assert_eq!(expired(&mut table, 1_000), [5], "one that was late from the start");
        assert_eq!(table.next_deadline_ms(), Some(1_008));
        assert_eq!(expired(&mut table, 1_007), [] as [u64; 0]);
        assert_eq!(expired(&mut table, 1_008), [1]);
        assert_eq!(expired(&mut table, 1_499), [] as [u64; 0]);
        assert_eq!(expired(&mut table, 31_000), [2, 3]);
        assert_eq!(expired(&mut table, 60_999), [] as [u64; 0]);
        assert_eq!(expired(&mut table, 61_008), [4]);
        assert!(table.is_empty() && table.next_deadline_ms().is_none());
        assert!(expired(&mut table, 500_000).is_empty());
        table.insert(entry(500_000 + 60_000, 6));
        assert_eq!(expired(&mut table, 500_000), [] as [u64; 0], "after a long silence");
    }

    #[test]
    fn random_use_agrees_with_a_sorted_list() {
        // A small deterministic generator; the seed is in the message of each assertion.
        for seed in 0..50u64 {
            let mut state = seed + 1;
            let mut random = move |below: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let mut now = 10_000;
            let mut table = Table::new(now);
            let mut model: Vec<(RequestId, u64, u64)> = Vec::new();
            for amount in 0..2_000 {
                match random(4) {
                    0 | 1 => {
                        let deadline = now + random(30_000);
                        model.push((table.insert(entry(deadline, amount)), deadline, amount));
                    }
                    2 if !model.is_empty() => {
                        let (id, _, amount) = model.swap_remove(random(model.len() as u64) as usize);
                        assert_eq!(table.remove(id).unwrap().reservation.amount(), amount, "seed {seed}");
                    }
                    _ => {
                        now += random(500);
                        let due = expired(&mut table, now);
                        model.retain(|(_, deadline, amount)| {
                            let gone = due.contains(amount);
                            assert!(!gone || *deadline <= now, "seed {seed}: never early");
                            assert!(gone || *deadline + TICK_MS > now, "seed {seed}: never forgotten");
                            !gone
                        });
                    }
                }
                assert_eq!(table.len(), model.len(), "seed {seed}");
            }
        }
    }
}
