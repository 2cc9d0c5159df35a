//! The hash of prefixes: keyed, so that nobody outside can make them meet, and taken from left to right, so that the
//! hash of a destination passes the hashes of all its prefixes.
//!
//! Owns the arithmetic and the search for dots. Leaves to [`super`] which prefixes are looked for.

use std::sync::Arc;

use crate::wire::address::ADDRESS_BYTES_MAX;

/// Addresses are hashed by words of 8 bytes.
pub(super) const WORD_BYTES: usize = size_of::<u64>();
pub(super) const WORDS_MAX: usize = ADDRESS_BYTES_MAX.div_ceil(WORD_BYTES);

/// The secret numbers of one table's hash function.
///
/// A text, cut into words `w` of 8 bytes, hashes to the upper bits of `k0 + k1*w0 + k2*w1 + ...` modulo `2^128`. This
/// is multilinear hashing, which is strongly universal (Carter and Wegman; Lemire and Kaser, "Strongly universal string
/// hashing is fast"): over the choice of the keys, any two different texts get the same 32 bits once in `2^32`. So
/// peers, who do not know the keys, cannot choose prefixes or destinations that meet in the table. No two texts are the
/// same words, since the last word is filled up with zeros and no text has a zero.
#[derive(Clone)]
pub(super) struct Keys(pub(super) Arc<[u128; WORDS_MAX + 1]>);

impl Default for Keys {
    fn default() -> Self {
        let mut bytes = [0; size_of::<u128>() * (WORDS_MAX + 1)];
        getrandom::fill(&mut bytes).expect("the kernel hands out random bytes");
        let (keys, _) = bytes.as_chunks();
        Self(Arc::new(std::array::from_fn(|index| u128::from_ne_bytes(keys[index]))))
    }
}

impl Keys {
    #[inline]
    pub(super) fn start(&self) -> u128 {
        self.0[0]
    }

    /// Goes on from `sum` by the word at `index`. At most [`WORDS_MAX`] of them.
    #[inline]
    pub(super) fn add(&self, sum: u128, index: usize, word: u64) -> u128 {
        sum.wrapping_add(self.0[index + 1].wrapping_mul(u128::from(word)))
    }

    #[inline]
    pub(super) fn finish(sum: u128) -> u32 {
        (sum >> 96) as u32
    }

    /// The hash of a whole text of at most [`ADDRESS_BYTES_MAX`] bytes.
    pub(super) fn hash(&self, text: &[u8]) -> u32 {
        let words = text.chunks(WORD_BYTES).map(read_word).enumerate();
        Self::finish(words.fold(self.start(), |sum, (index, word)| self.add(sum, index, word)))
    }
}

/// The index takes the place in its table from the lower bits and a tag from the upper seven.
#[inline]
pub(super) fn slot_hash(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// At most 8 bytes, the first one lowest, filled up with zeros.
#[inline]
pub(super) fn read_word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(word) => u64::from_le_bytes(*word),
        None => bytes.iter().rfold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

/// The first `count` bytes of a word, fewer than 8.
#[inline]
pub(super) fn first_bytes(word: u64, count: usize) -> u64 {
    word & ((1 << (count * 8)) - 1)
}

/// The upper bit of every byte that is a dot, and nothing else.
#[inline]
pub(super) fn find_dots(word: u64) -> u64 {
    const LOWER_BITS: u64 = u64::from_ne_bytes([0x7f; WORD_BYTES]);
    // A dot becomes zero, and only zero has no bit in its lower seven, no carry out of them, and no upper bit.
    let other = word ^ u64::from_ne_bytes([b'.'; WORD_BYTES]);
    !(((other & LOWER_BITS) + LOWER_BITS) | other | LOWER_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_found_in_every_place() {
        for place in 0..WORD_BYTES {
            for byte in 0..=u8::MAX {
                for others in [0x00, 0x2d, 0x2e, 0x2f, 0x7f, 0x80, 0xae, 0xff] {
                    let mut bytes = [others; WORD_BYTES];
                    bytes[place] = byte;
                    let expected = bytes.map(|byte| if byte == b'.' { 0x80 } else { 0 });
                    assert_eq!(find_dots(u64::from_le_bytes(bytes)), u64::from_le_bytes(expected));
                }
            }
        }
    }

    #[test]
    fn tables_hash_with_keys_of_their_own() {
        let (one, other) = (Keys::default(), Keys::default());
        let text = b"example.a.b.c";
        assert_ne!(
            (one.hash(text), one.hash(b"example.b")),
            (other.hash(text), other.hash(b"example.b")),
            "equal once in 2^64"
        );
    }
}
