//! The records of a forwarding table: prefixes with their next hops, one behind the other in one piece of memory.
//!
//! Owns their layout. Leaves finding a record to [`super`], which also closes the gaps that removed ones leave.

use std::ops::Range;

use crate::ledger::account::AccountId;
use crate::wire::address::ADDRESS_BYTES_MAX;

/// Next hops and prefixes, one record behind the other, so that a hit reads one place in memory and not three.
///
/// A record is known by where it begins.
#[derive(Clone, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    /// Bytes of removed records.
    gaps: usize,
}

// A record: the next hop, the length of the prefix, the prefix.
const NEXT_HOP: Range<usize> = 0..size_of::<u32>();
const LENGTH: Range<usize> = NEXT_HOP.end..NEXT_HOP.end + size_of::<u16>();
pub(super) const PREFIX: usize = LENGTH.end;
/// Set in the length of a record that was removed.
const REMOVED: u16 = 1 << 15;

const _: () = assert!(ADDRESS_BYTES_MAX < REMOVED as usize);

impl Records {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            gaps: 0,
        }
    }

    pub(super) fn push(&mut self, prefix: &str, next_hop: AccountId) -> u32 {
        let at = u32::try_from(self.bytes.len()).expect("4 GiB of prefixes are refused above");
        let length = PREFIX + prefix.len();
        if self.bytes.capacity() - self.bytes.len() < length {
            // By an eighth: doubling would leave more memory unused than all the rest of the table takes.
            self.bytes.reserve_exact(self.bytes.len() / 8 + length);
        }
        self.bytes.extend_from_slice(&next_hop.get().to_le_bytes());
        self.bytes.extend_from_slice(&(prefix.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(prefix.as_bytes());
        at
    }

    #[inline]
    pub(super) fn next_hop(&self, at: u32) -> AccountId {
        AccountId::new(u32::from_le_bytes(self.field(at, NEXT_HOP)))
    }

    pub(super) fn set_next_hop(&mut self, at: u32, next_hop: AccountId) {
        self.bytes[at as usize..][NEXT_HOP].copy_from_slice(&next_hop.get().to_le_bytes());
    }

    #[inline]
    pub(super) fn prefix(&self, at: u32) -> &[u8] {
        &self.bytes[at as usize + PREFIX..][..usize::from(self.length(at) & !REMOVED)]
    }

    #[inline]
    fn length(&self, at: u32) -> u16 {
        u16::from_le_bytes(self.field(at, LENGTH))
    }

    #[inline]
    fn field<const BYTES: usize>(&self, at: u32, field: Range<usize>) -> [u8; BYTES] {
        *self.bytes[at as usize + field.start..]
            .first_chunk()
            .expect("a record is whole")
    }

    pub(super) fn remove(&mut self, at: u32) {
        let length = self.length(at) | REMOVED;
        self.bytes[at as usize..][LENGTH].copy_from_slice(&length.to_le_bytes());
        self.gaps += PREFIX + self.prefix(at).len();
    }

    pub(super) fn len_without_gaps(&self) -> usize {
        self.bytes.len() - self.gaps
    }

    /// More than half is gaps, so closing them costs less than making them did.
    pub(super) fn is_mostly_gaps(&self) -> bool {
        self.gaps > self.bytes.len() / 2
    }

    #[cfg(test)]
    pub(super) fn len_and_capacity(&self) -> (usize, usize) {
        (self.bytes.len(), self.bytes.capacity())
    }

    /// Where the records are that were not removed.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let mut next = 0;
        std::iter::from_fn(move || {
            while (next as usize) < self.bytes.len() {
                let at = next;
                next += (PREFIX + self.prefix(at).len()) as u32;
                if self.length(at) & REMOVED == 0 {
                    return Some(at);
                }
            }
            None
        })
    }
}
