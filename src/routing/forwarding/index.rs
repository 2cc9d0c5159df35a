//! Where the prefixes of a table are: buckets that a hash leads to, and records that the buckets lead to, in one piece
//! of memory.
//!
//! Owns the layout of both. A bucket is one line of the processor's cache and has room for eight prefixes: a few bits of
//! the hash of each, and where its record is. With five on average, a prefix that is not in the table costs this one
//! line, and one that is there costs one more, or two, for its record. Leaves hashing and what is looked for to
//! [`super`].
//!
//! Always: records are only added; a bucket that is full has sent what did not fit to the next one, and no other.

use std::ops::Range;

use crate::ledger::account::AccountId;
use crate::wire::address::ADDRESS_BYTES_MAX;

use super::pages::Pages;

/// What the processor fetches at once.
const BUCKET_BYTES: usize = 64;
const SLOTS: usize = 8;
/// Slots that are taken on average, of eight. With more, more buckets are full; with fewer, fewer stay in the caches.
const SLOTS_TAKEN: usize = 5;

// A bucket: eight tags, eight places of records in bytes from the beginning of the memory. A tag of zero: none.
const TAGS: Range<usize> = 0..SLOTS * size_of::<u32>();
const PLACES: Range<usize> = TAGS.end..TAGS.end + SLOTS * size_of::<u32>();
const _: () = assert!(PLACES.end == BUCKET_BYTES);

// A record: the next hop, the length of the prefix, the prefix. So that a hit reads one place and not three.
const NEXT_HOP: Range<usize> = 0..size_of::<u32>();
const LENGTH: Range<usize> = NEXT_HOP.end..NEXT_HOP.end + size_of::<u16>();
const PREFIX: usize = LENGTH.end;
const _: () = assert!(ADDRESS_BYTES_MAX <= u16::MAX as usize);

pub(super) struct Index {
    /// The buckets, then the records.
    memory: Pages,
    buckets: usize,
    /// How many prefixes there are, and how many there is room for.
    len: usize,
    capacity: usize,
    /// Where the next record begins.
    end: usize,
}

impl Index {
    /// Room for so many prefixes with so many bytes together.
    pub(super) fn with_capacity(prefixes: usize, prefix_bytes: usize) -> Self {
        // One more: there must be one that is not full.
        let buckets = prefixes / SLOTS_TAKEN + 1;
        let end = buckets * BUCKET_BYTES;
        let bytes = end + prefixes * PREFIX + prefix_bytes;
        assert!(
            u32::try_from(bytes).is_ok(),
            "4 GiB of prefixes are refused where they come in"
        );
        Self {
            memory: Pages::new(bytes),
            buckets,
            len: 0,
            capacity: prefixes,
            end,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All that the table takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// The next hop of exactly this prefix.
    #[inline]
    pub(super) fn find(&self, prefix: &[u8], hash: u64) -> Option<AccountId> {
        let at = self.find_record(prefix, hash).ok()?;
        Some(self.next_hop(at))
    }

    /// Has the processor fetch what [`Self::find`] will look at first.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        self.memory.prefetch(self.bucket_of(hash) * BUCKET_BYTES);
    }

    /// Has the processor fetch what [`Self::find`] will look at then, once the first is there: the record that a prefix of
    /// so many bytes has, most likely, if it has one.
    #[inline]
    pub(super) fn prefetch_record(&self, hash: u64, prefix_bytes: usize) {
        let line = self.line(self.bucket_of(hash));
        let equal = slots_with(line, tag_of(hash));
        if equal != 0 {
            let at = place(line, equal.trailing_zeros() as usize);
            // A record may lie across two lines.
            self.memory.prefetch(at);
            self.memory.prefetch(at + PREFIX + prefix_bytes - 1);
        }
    }

    /// Of a prefix that is there already, only the next hop is changed.
    pub(super) fn insert(&mut self, prefix: &[u8], hash: u64, next_hop: AccountId) {
        let slot = match self.find_record(prefix, hash) {
            Ok(at) => return self.write(at + NEXT_HOP.start, &next_hop.get().to_le_bytes()),
            Err(slot) => slot,
        };
        assert!(self.len < self.capacity, "as many prefixes as were announced");
        let at = self.end;
        self.write(at + NEXT_HOP.start, &next_hop.get().to_le_bytes());
        self.write(at + LENGTH.start, &(prefix.len() as u16).to_le_bytes());
        self.write(at + PREFIX, prefix);
        let of_slot = slot.bucket * BUCKET_BYTES + slot.number * size_of::<u32>();
        self.write(of_slot + TAGS.start, &tag_of(hash).to_le_bytes());
        self.write(of_slot + PLACES.start, &(at as u32).to_le_bytes());
        self.end += PREFIX + prefix.len();
        self.len += 1;
    }

    /// Where the record of a prefix is, or the slot that it would have.
    #[inline]
    fn find_record(&self, prefix: &[u8], hash: u64) -> Result<usize, Slot> {
        let tag = tag_of(hash);
        let mut bucket = self.bucket_of(hash);
        loop {
            let line = self.line(bucket);
            let mut equal = slots_with(line, tag);
            while equal != 0 {
                let at = place(line, equal.trailing_zeros() as usize);
                if self.prefix(at) == prefix {
                    return Ok(at);
                }
                equal &= equal - 1;
            }
            let free = slots_with(line, 0);
            if free != 0 {
                let number = free.trailing_zeros() as usize;
                return Err(Slot { bucket, number });
            }
            bucket = if bucket + 1 < self.buckets { bucket + 1 } else { 0 };
        }
    }

    #[inline]
    fn line(&self, bucket: usize) -> &[u8; BUCKET_BYTES] {
        self.memory[bucket * BUCKET_BYTES..]
            .first_chunk()
            .expect("buckets are whole")
    }

    #[inline]
    fn bucket_of(&self, hash: u64) -> usize {
        (((hash >> 32) * self.buckets as u64) >> 32) as usize
    }

    #[inline]
    fn next_hop(&self, at: usize) -> AccountId {
        AccountId::new(u32::from_le_bytes(self.field(at, NEXT_HOP)))
    }

    #[inline]
    fn prefix(&self, at: usize) -> &[u8] {
        let length = u16::from_le_bytes(self.field(at, LENGTH));
        &self.memory[at + PREFIX..][..usize::from(length)]
    }

    #[inline]
    fn field<const BYTES: usize>(&self, at: usize, field: Range<usize>) -> [u8; BYTES] {
        *self.memory[at + field.start..]
            .first_chunk()
            .expect("records are whole")
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A free place for a prefix.
struct Slot {
    bucket: usize,
    number: usize,
}

/// The half of a hash that does not choose the bucket. Odd, because zero is none.
#[inline]
fn tag_of(hash: u64) -> u32 {
    hash as u32 | 1
}

/// A bit for each slot with this tag, the first one lowest.
#[inline]
fn slots_with(line: &[u8; BUCKET_BYTES], tag: u32) -> u32 {
    let (tags, _) = line[TAGS].as_chunks();
    let mut equal = 0;
    for (slot, bytes) in tags.iter().enumerate() {
        equal |= u32::from(u32::from_le_bytes(*bytes) == tag) << slot;
    }
    equal
}

#[inline]
fn place(line: &[u8; BUCKET_BYTES], slot: usize) -> usize {
    let (places, _) = line[PLACES].as_chunks();
    u32::from_le_bytes(places[slot]) as usize
}
