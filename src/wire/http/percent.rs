//! Percent-encoding (RFC 3986, section 2.1), decoded once.

use std::borrow::Cow;

/// Replaces every `%XX` by its byte. `None`: an escape is incomplete or no hexadecimal, or the result is not UTF-8.
/// A slash that was hidden is a slash in the result; who splits paths does so before.
pub fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        decoded.push((high << 4 | low) as u8);
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, decoded) in [
            ("alice", Some("alice")),
            ("%61lice", Some("alice")),
            ("ma%C3%9Fe", Some("maße")),
            ("a%2fb", Some("a/b")),
            ("%2561", Some("%61")),
            ("", Some("")),
            ("%", None),
            ("%6", None),
            ("%zz", None),
            ("%ff", None),
        ] {
            assert_eq!(percent_decode(text).as_deref(), decoded, "{text}");
        }
    }
}
