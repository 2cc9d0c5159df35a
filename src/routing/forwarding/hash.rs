//! The hash of prefixes: keyed, so that nobody outside can make them meet, and taken from left to right, so that the
//! hash of a destination passes the hashes of all its prefixes.
//!
//! Owns the arithmetic and the search for dots. Leaves to [`super`] which prefixes are looked for.

use crate::wire::address::ADDRESS_BYTES_MAX;

/// Addresses are hashed by words of 8 bytes.
pub(super) const WORD_BYTES: usize = size_of::<u64>();
pub(super) const WORDS_MAX: usize = ADDRESS_BYTES_MAX.div_ceil(WORD_BYTES);

/// The secret numbers of one table's hash function.
///
/// A text, cut into words `w` of 8 bytes, hashes to the upper half of `k0 + k1*w0 + k2*w1 + ...` modulo `2^128`. This
/// is multilinear hashing, which is strongly universal (Carter and Wegman; Lemire and Kaser, "Strongly universal string
/// hashing is fast"): over the choice of the keys, any two different texts get the same 64 bits once in `2^64`. So
/// peers, who do not know the keys, cannot choose prefixes or destinations that meet in the table. No two texts are the
/// same words, since the last word is filled up with zeros and no text has a zero.
pub(super) struct Keys(pub(super) Box<[u128; WORDS_MAX + 1]>);

impl Default for Keys {
    fn default() -> Self {
        let mut bytes = [0; size_of::<u128>() * (WORDS_MAX + 1)];
        getrandom::fill(&mut bytes).expect("the kernel hands out random bytes");
        let (keys, _) = bytes.as_chunks();
        Self(Box::new(std::array::from_fn(|index| u128::from_ne_bytes(keys[index]))))
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
    pub(super) fn finish(sum: u128) -> u64 {
        (sum >> 64) as u64
    }

    /// The hash of a whole text of at most [`ADDRESS_BYTES_MAX`] bytes.
    pub(super) fn hash(&self, text: &[u8]) -> u64 {
        let mut sum = self.start();
        for index in 0..text.len().div_ceil(WORD_BYTES) {
            sum = self.add(sum, index, read_word(text, index));
        }
        Self::finish(sum)
    }
}

/// The word at `index` of a text that is long enough to have one: its first byte lowest, filled up with zeros at the end
/// of the text.
#[inline]
pub(super) fn read_word(text: &[u8], index: usize) -> u64 {
    let rest = &text[index * WORD_BYTES..];
    match (rest.first_chunk(), text.last_chunk()) {
        (Some(word), _) => u64::from_le_bytes(*word),
        // What is before the word goes out of it: cheaper than putting it together from its bytes.
        (None, Some(last)) => u64::from_le_bytes(*last) >> ((WORD_BYTES - rest.len()) * 8),
        (None, None) => rest.iter().rfold(0, |word, &byte| word << 8 | u64::from(byte)),
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
            "equal once in 2^128"
        );
    }

    #[test]
    fn words_end_with_the_text() {
        let text = b"abcdefghijklmnopqrstu";
        for length in 1..=text.len() {
            for index in 0..length.div_ceil(WORD_BYTES) {
                let mut expected = [0; WORD_BYTES];
                let word = &text[..length][index * WORD_BYTES..];
                let word = &word[..word.len().min(WORD_BYTES)];
                expected[..word.len()].copy_from_slice(word);
                assert_eq!(read_word(&text[..length], index), u64::from_le_bytes(expected));
            }
        }
    }
}
