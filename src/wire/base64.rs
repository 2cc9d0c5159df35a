//! Base64 (RFC 4648): the text form of short secrets and digests. Owns the alphabets and the
//! padding rule. Leaves the meaning of the bytes to the caller.
//! Always: what `encode` writes, `decode` reads back; `decode` never allocates more than the text
//! it was given. Neither runs in constant time: compare secrets as bytes, elsewhere.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Marks a byte that stands for no digit.
const NO_DIGIT: u8 = 0xff;

/// The value of each byte as a base64 digit, in the standard and the URL-safe alphabet alike (RFC
/// 4648, sections 4 and 5): they differ in two digits and do not overlap, so one table reads both.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        digits[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    digits[b'-' as usize] = digits[b'+' as usize];
    digits[b'_' as usize] = digits[b'/' as usize];
    digits
};

/// Encodes in the standard alphabet, with padding.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0u32;
        for index in 0..3 {
            bits = bits << 8 | u32::from(group.get(index).copied().unwrap_or(0));
        }
        // n bytes need n + 1 digits; the rest of the four is padding.
        for index in 0..4 {
            if index <= group.len() {
                let digit = bits >> (18 - 6 * index) & 0x3f;
                text.push(char::from(ALPHABET[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Encodes in the URL-safe alphabet, without padding.
pub fn encode_url(bytes: &[u8]) -> String {
    let standard = encode(bytes);
    standard.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

/// Decodes either alphabet; the padding may be left out, but not be wrong.
///
/// `None` if a byte is no digit, if the padding or the length fits no number of bytes, or if bits
/// beyond the last byte are set: of all texts for the same bytes only the canonical one is read, so
/// equal bytes mean equal text up to alphabet and padding.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let padded = text.as_bytes();
    let digits = match padded {
        [digits @ .., b'=', b'='] | [digits @ .., b'='] => digits,
        digits => digits,
    };
    if digits.len() != padded.len() && !padded.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for index in 0..4 {
            let digit = match group.get(index) {
                Some(&byte) => DIGITS[usize::from(byte)],
                None => 0,
            };
            if digit == NO_DIGIT {
                return None;
            }
            bits = bits << 6 | u32::from(digit);
        }
        let [_, decoded @ ..] = bits.to_be_bytes();
        // One digit alone carries six bits: not a byte.
        let count = group.len().checked_sub(1).filter(|count| *count > 0)?;
        if decoded[count..].iter().any(|spare| *spare != 0) {
            return None;
        }
        bytes.extend_from_slice(&decoded[..count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_4648_vectors() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
            let unpadded = text.trim_end_matches('=');
            assert_eq!(decode(unpadded).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(encode(&[0xfb, 0xff, 0xbf]), "+/+/");
        assert_eq!(encode_url(&[0xfb, 0xff, 0xbf]), "-_-_");
        assert_eq!(encode_url(&[0xfb]), "-w");
        assert_eq!(decode("+/+/"), decode("-_-_"));
        assert_eq!(decode("-_-_"), Some(vec![0xfb, 0xff, 0xbf]));
    }

    #[test]
    fn what_is_not_base64() {
        for text in [
            "Z", "Zg=", "Zm9=v", "=", "==", "====", "Zm9v=", "Zm9v==", "Zm9v====", "Zm9vZ", "Zg===", "Zh==", "Zm9",
            "Zm 9v", "Zm9v\n", "Zm9é", "Zm8==",
        ] {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn what_decodes_is_canonical(text in "[A-Za-z0-9+/=]{0,12}") {
            if let Some(bytes) = decode(&text) {
                let canonical = encode(&bytes);
                prop_assert_eq!(canonical.trim_end_matches('='), text.trim_end_matches('='));
            }
        }
    }
}
