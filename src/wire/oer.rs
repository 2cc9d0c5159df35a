//! The few OER primitives Interledger uses (RFC 30): integers, length determinants, octet strings.
//!
//! Owns how a length becomes a slice. Leaves what the bytes mean to the codecs above it.
//! Always: a read never looks past the bytes at hand, nothing is allocated from a declared length,
//! and only the canonical length is accepted: an encoding that a stricter next hop would refuse
//! is refused here, where the one who wrote it gets to hear of it.

/// Why bytes are not OER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OerError {
    /// Fewer bytes are left than the value needs, or than its length declares.
    #[error("the bytes end before the value does")]
    Truncated,
    /// The indefinite form, or a long form where fewer bytes would do.
    #[error("a length is not in its shortest form")]
    NonCanonicalLength,
    /// A length of more than eight bytes, or one that this machine cannot address.
    #[error("a length is too large")]
    TooLong,
    /// A variable-length integer without a single byte.
    #[error("an integer has no bytes")]
    EmptyInteger,
    /// A variable-length integer of more than eight bytes.
    #[error("an integer has more than 64 bits")]
    IntegerTooLong,
    /// A sequence announces more elements than the bytes left could hold.
    #[error("a sequence announces more elements than its bytes can hold")]
    CountTooLarge,
}

/// Lengths below this are one byte, the length itself.
const SHORT_FORM_MAX: usize = 0x7f;
/// Set in the first byte of the long form; the other bits count the bytes that follow.
const LONG_FORM: u8 = 0x80;
/// The longest long form and the longest variable-length integer, in bytes after the first.
const INTEGER_BYTES_MAX: usize = size_of::<u64>();

/// A cursor over borrowed bytes.
///
/// After an error the reader has consumed an unspecified part of the value: give it up.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    remaining: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the first of `bytes`.
    #[inline]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            remaining: bytes,
            length: bytes.len(),
        }
    }

    /// The bytes not read yet.
    #[inline]
    pub const fn remaining(&self) -> &'a [u8] {
        self.remaining
    }

    /// Whether every byte has been read.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.remaining.is_empty()
    }

    /// How many bytes have been read.
    #[inline]
    pub const fn position(&self) -> usize {
        self.length - self.remaining.len()
    }

    /// The next `count` bytes.
    #[inline]
    pub fn read_bytes(&mut self, count: usize) -> Result<&'a [u8], OerError> {
        let (bytes, remaining) = self.remaining.split_at_checked(count).ok_or(OerError::Truncated)?;
        self.remaining = remaining;
        Ok(bytes)
    }

    /// The next `N` bytes.
    #[inline]
    pub fn read_array<const N: usize>(&mut self) -> Result<&'a [u8; N], OerError> {
        let (bytes, remaining) = self.remaining.split_first_chunk().ok_or(OerError::Truncated)?;
        self.remaining = remaining;
        Ok(bytes)
    }

    /// A fixed-size integer of one byte.
    #[inline]
    pub fn read_u8(&mut self) -> Result<u8, OerError> {
        self.read_array::<1>().map(|&[byte]| byte)
    }

    /// A fixed-size integer of two bytes, big-endian.
    #[inline]
    pub fn read_u16(&mut self) -> Result<u16, OerError> {
        self.read_array().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// A fixed-size integer of four bytes, big-endian.
    #[inline]
    pub fn read_u32(&mut self) -> Result<u32, OerError> {
        self.read_array().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// A fixed-size integer of eight bytes, big-endian.
    #[inline]
    pub fn read_u64(&mut self) -> Result<u64, OerError> {
        self.read_array().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// A length determinant. It may declare more bytes than are left; nothing is reserved for it.
    #[inline]
    pub fn read_length(&mut self) -> Result<usize, OerError> {
        let first = self.read_u8()?;
        if usize::from(first) <= SHORT_FORM_MAX {
            return Ok(usize::from(first));
        }
        self.read_long_length(usize::from(first & !LONG_FORM))
    }

    /// The `count` bytes of a length in its long form.
    fn read_long_length(&mut self, count: usize) -> Result<usize, OerError> {
        match count {
            0 => return Err(OerError::NonCanonicalLength),
            1..=INTEGER_BYTES_MAX => {}
            _ => return Err(OerError::TooLong),
        }
        let bytes = self.read_bytes(count)?;
        let length = usize::try_from(big_endian(bytes)).map_err(|_| OerError::TooLong)?;
        if bytes[0] == 0 || length <= SHORT_FORM_MAX {
            return Err(OerError::NonCanonicalLength);
        }
        Ok(length)
    }

    /// A variable-length octet string, without its length.
    #[inline]
    pub fn read_var_octets(&mut self) -> Result<&'a [u8], OerError> {
        let length = self.read_length()?;
        self.read_bytes(length)
    }

    /// A variable-length unsigned integer of one to eight bytes.
    ///
    /// Leading zero bytes are accepted, because widely used encoders write them.
    #[inline]
    pub fn read_var_uint(&mut self) -> Result<u64, OerError> {
        let bytes = self.read_var_octets()?;
        match bytes.len() {
            0 => Err(OerError::EmptyInteger),
            1..=INTEGER_BYTES_MAX => Ok(big_endian(bytes)),
            _ => Err(OerError::IntegerTooLong),
        }
    }

    /// The number of elements of a sequence, none of which takes fewer than `min_element_bytes`.
    ///
    /// What it returns is at most `remaining().len() / min_element_bytes`, so it is safe to reserve
    /// room for that many elements.
    ///
    /// # Panics
    /// If `min_element_bytes` is zero, which would leave the count without a bound.
    #[inline]
    pub fn read_count(&mut self, min_element_bytes: usize) -> Result<usize, OerError> {
        assert!(min_element_bytes > 0, "every element takes at least one byte");
        let count = self.read_var_uint()?;
        let count_max = self.remaining.len() / min_element_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= count_max => Ok(count),
            _ => Err(OerError::CountTooLarge),
        }
    }
}

/// At most eight bytes as an integer.
fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// How many bytes the length determinant of `len` takes.
#[inline]
pub const fn length_size(len: usize) -> usize {
    if len <= SHORT_FORM_MAX {
        1
    } else {
        1 + significant_bytes(len as u64)
    }
}

/// How many bytes `value` takes without leading zeros; one for zero.
const fn significant_bytes(value: u64) -> usize {
    INTEGER_BYTES_MAX - (value | 1).leading_zeros() as usize / 8
}

/// Appends the length determinant of `len`.
#[inline]
pub fn write_length(out: &mut Vec<u8>, len: usize) {
    if len <= SHORT_FORM_MAX {
        out.push(len as u8);
    } else {
        let count = significant_bytes(len as u64);
        out.push(LONG_FORM | count as u8);
        out.extend_from_slice(&(len as u64).to_be_bytes()[INTEGER_BYTES_MAX - count..]);
    }
}

/// Appends `bytes` with their length in front.
#[inline]
pub fn write_var_octets(out: &mut Vec<u8>, bytes: &[u8]) {
    write_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends `value` as a variable-length integer without leading zeros.
#[inline]
pub fn write_var_uint(out: &mut Vec<u8>, value: u64) {
    write_var_octets(
        out,
        &value.to_be_bytes()[INTEGER_BYTES_MAX - significant_bytes(value)..],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use OerError::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn encoded(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    #[test]
    fn lengths_are_read() {
        let cases: &[(&[u8], Result<usize, OerError>)] = &[
            (&[0x00], Ok(0)),
            (&[0x07], Ok(7)),
            (&[0x7f], Ok(127)),
            (&[0x81, 0x80], Ok(128)),
            (&[0x81, 0x82], Ok(130)),
            (&[0x82, 0x12, 0x34], Ok(4660)),
            (&[0x83, 0xab, 0xcd, 0xef], Ok(11_259_375)),
            (
                &[0x88, 0xac, 0x01, 0x05, 0x5a, 0x1d, 0xeb, 0xac, 0x1e],
                Ok(12_394_193_534_107_495_454),
            ),
            (&[0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Ok(usize::MAX)),
            (&[], Err(Truncated)),
            (&[0x80], Err(NonCanonicalLength)),
            (&[0x80, 0x00, 0x01], Err(NonCanonicalLength)),
            (&[0x89, 0x00, 1, 2, 3, 4, 5, 6, 7, 8], Err(TooLong)),
            (
                &[0x89, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                Err(TooLong),
            ),
            (&[0xfe, 0x00], Err(TooLong)),
            (&[0xff], Err(TooLong)),
            (&[0x81, 0x00], Err(NonCanonicalLength)),
            (&[0x81, 0x01], Err(NonCanonicalLength)),
            (&[0x81, 0x7f], Err(NonCanonicalLength)),
            (&[0x82, 0x00, 0x68], Err(NonCanonicalLength)),
            (&[0x82, 0x00, 0xff], Err(NonCanonicalLength)),
            (&[0x82, 0x01], Err(Truncated)),
            (&[0x84, 0xff, 0xff, 0xff], Err(Truncated)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Reader::new(bytes).read_length(), *expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn lengths_are_written_in_their_shortest_form() {
        let cases: &[(usize, &[u8])] = &[
            (0, &[0x00]),
            (127, &[0x7f]),
            (128, &[0x81, 0x80]),
            (255, &[0x81, 0xff]),
            (256, &[0x82, 0x01, 0x00]),
            (65_535, &[0x82, 0xff, 0xff]),
            (65_536, &[0x83, 0x01, 0x00, 0x00]),
        ];
        for (len, expected) in cases {
            assert_eq!(encoded(|out| write_length(out, *len)), *expected, "{len}");
            assert_eq!(length_size(*len), expected.len(), "{len}");
        }
    }

    #[test]
    fn octet_strings_end_where_their_length_says() {
        let example = b"\x18example.top.middle.lower\xff";
        let mut reader = Reader::new(example);
        assert_eq!(reader.read_var_octets(), Ok(&b"example.top.middle.lower"[..]));
        assert_eq!(reader.position(), 25);
        assert_eq!(reader.remaining(), [0xff]);
        assert!(!reader.is_empty());

        let long = b"example.very.long.address.to.exceed.127.characters.and.trigger.a.long.form.\
            length.determinant.to.show.how.that.works.great.as.well";
        let bytes = encoded(|out| write_var_octets(out, long));
        assert_eq!(bytes[..2], [0x81, 0x82]);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.read_var_octets(), Ok(&long[..]));
        assert!(reader.is_empty());

        // A length that runs past the end, however far, only says so.
        for bytes in [
            &[7, 1, 2, 3, 4, 5, 6][..],
            &[0x88, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert_eq!(Reader::new(bytes).read_var_octets(), Err(Truncated), "{bytes:02x?}");
        }
    }

    #[test]
    fn variable_integers_are_read() {
        let cases: &[(&[u8], Result<u64, OerError>)] = &[
            (&[1, 0], Ok(0)),
            (&[1, 9], Ok(9)),
            (&[1, 255], Ok(255)),
            (&[2, 1, 0], Ok(256)),
            (&[2, 1, 2], Ok(258)),
            (&[2, 0, 1], Ok(1)), // a leading zero is tolerated
            (&[8, 1, 2, 3, 4, 5, 6, 7, 8], Ok(72_623_859_790_382_856)),
            (&[8, 255, 255, 255, 255, 255, 255, 255, 255], Ok(u64::MAX)),
            (&[0], Err(EmptyInteger)),
            (&[4], Err(Truncated)),
            (&[4, 1, 2, 3], Err(Truncated)),
            (&[9, 1, 2, 3, 4, 5, 6, 7, 8, 9], Err(IntegerTooLong)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Reader::new(bytes).read_var_uint(), *expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn variable_integers_are_written_without_leading_zeros() {
        let cases: &[(u64, &[u8])] = &[
            (0, &[1, 0]),
            (255, &[1, 255]),
            (256, &[2, 1, 0]),
            (u64::MAX, &[8, 255, 255, 255, 255, 255, 255, 255, 255]),
        ];
        for (value, expected) in cases {
            assert_eq!(encoded(|out| write_var_uint(out, *value)), *expected, "{value}");
        }
    }

    #[test]
    fn counts_are_bounded_by_the_bytes_left() {
        let cases: &[(&[u8], usize, Result<usize, OerError>)] = &[
            (&[1, 0], 3, Ok(0)),
            (&[1, 2, 0, 0, 0, 0, 0, 0], 3, Ok(2)),
            (&[2, 0, 2, 0, 0, 0, 0, 0, 0], 3, Ok(2)),
            (&[1, 2, 0, 0, 0, 0, 0], 3, Err(CountTooLarge)),
            (&[8, 255, 255, 255, 255, 255, 255, 255, 255, 0], 1, Err(CountTooLarge)),
            (&[0], 1, Err(EmptyInteger)),
        ];
        for (bytes, min_element_bytes, expected) in cases {
            let count = Reader::new(bytes).read_count(*min_element_bytes);
            assert_eq!(count, *expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn fixed_integers_are_big_endian() {
        let bytes = [1, 1, 2, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8];
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.read_u8(), Ok(1));
        assert_eq!(reader.read_u16(), Ok(0x0102));
        assert_eq!(reader.read_u32(), Ok(0x0102_0304));
        assert_eq!(reader.read_u64(), Ok(0x0102_0304_0506_0708));
        assert_eq!(reader.read_u8(), Err(Truncated));
    }

    proptest! {
        #[test]
        fn lengths_round_trip(len: usize) {
            let bytes = encoded(|out| write_length(out, len));
            prop_assert_eq!(bytes.len(), length_size(len));
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.read_length(), Ok(len));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn integers_round_trip(value: u64) {
            let bytes = encoded(|out| write_var_uint(out, value));
            prop_assert_eq!(Reader::new(&bytes).read_var_uint(), Ok(value));
        }

        #[test]
        fn octet_strings_round_trip_and_their_truncations_are_errors(
            content in vec(any::<u8>(), 0..400),
        ) {
            let bytes = encoded(|out| write_var_octets(out, &content));
            prop_assert_eq!(Reader::new(&bytes).read_var_octets(), Ok(&content[..]));
            for end in 0..bytes.len() {
                prop_assert_eq!(Reader::new(&bytes[..end]).read_var_octets(), Err(Truncated));
            }
        }

        // There is one encoding of every octet string: what is accepted is written back the same.
        #[test]
        fn accepted_octet_strings_are_canonical(bytes in vec(any::<u8>(), 0..20)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(content) = reader.read_var_octets() {
                let rewritten = encoded(|out| write_var_octets(out, content));
                prop_assert_eq!(&bytes[..reader.position()], &rewritten[..]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in vec(any::<u8>(), 0..20),
            reads in vec(0..8u8, 0..8),
        ) {
            let mut reader = Reader::new(&bytes);
            for read in reads {
                let _ = match read {
                    0 => reader.read_u8().map(drop),
                    1 => reader.read_u16().map(drop),
                    2 => reader.read_u32().map(drop),
                    3 => reader.read_u64().map(drop),
                    4 => reader.read_length().map(drop),
                    5 => reader.read_var_octets().map(drop),
                    6 => reader.read_var_uint().map(drop),
                    _ => reader.read_count(3).map(drop),
                };
                prop_assert_eq!(reader.position() + reader.remaining().len(), bytes.len());
            }
        }
    }
}
