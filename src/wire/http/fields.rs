//! Field lines: what stands between the first line of a head and the empty line that ends it
//! (RFC 9110 section 5, RFC 9112 section 5).
//!
//! Owns the strict reading of lines, and the few facts that decide where a message ends and whether
//! the connection lives on; they are noted in the same pass. Leaves the first line, and the verdict
//! on the facts, to [`super::head`].
//!
//! Always: a [`Fields`] holds only complete lines whose names are tokens and whose values hold
//! neither CR, LF, NUL nor another control character except TAB, so looking a field up later needs
//! no checks. Values are handed out without the blanks around them.

use super::malformed::Malformed;

/// Field lines in one head. Clients send about ten, browsers thirty; more is an attempt to be slow.
pub const HEADERS_MAX: usize = 100;

/// The field lines of one head, in the order they came in.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    /// Whole lines, each with its CR LF, without the empty line at the end.
    lines: &'a [u8],
    pub(super) facts: Facts,
}

/// What the first pass notes, so that nobody has to look these fields up again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub content_length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
    pub has_host: bool,
    /// Options of `Connection`.
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// `Expect: 100-continue`, and any other expectation.
    pub expects_continue: bool,
    pub expects_other: bool,
}

impl<'a> Fields<'a> {
    /// Reads the field lines that begin at `start`, up to and with the empty line. Returns them with
    /// the offset behind that line, or `None` while the empty line has not arrived.
    pub(super) fn parse(bytes: &'a [u8], start: usize) -> Result<Option<(Self, usize)>, Malformed> {
        let mut facts = Facts::default();
        let mut at = start;
        for line in 0..=HEADERS_MAX {
            match bytes.get(at) {
                None => return Ok(None),
                Some(b'\r' | b'\n') => {
                    let Some(end) = end_of_line(bytes, at, Malformed::BadHeader)? else {
                        return Ok(None);
                    };
                    let lines = &bytes[start..at];
                    return Ok(Some((Self { lines, facts }, end)));
                }
                // A fold continues the line before it for some readers and starts a field for others.
                Some(b' ' | b'\t') => return Err(Malformed::ObsFold),
                Some(_) if line == HEADERS_MAX => return Err(Malformed::TooManyHeaders),
                Some(_) => {}
            }
            let name = token(&bytes[at..]);
            let colon = at + name.len();
            match bytes.get(colon) {
                None => return Ok(None),
                Some(b':') if !name.is_empty() => {}
                // Also a blank before the colon: some readers drop it, some drop the field.
                Some(_) => return Err(Malformed::BadHeader),
            }
            let value_start = colon + 1;
            let value_end = value_start + value_len(&bytes[value_start..]);
            let Some(next) = end_of_line(bytes, value_end, Malformed::BadHeader)? else {
                return Ok(None);
            };
            facts.note(name, trim(&bytes[value_start..value_end]))?;
            at = next;
        }
        unreachable!("the line after the last one allowed is always judged")
    }

    /// All fields as name and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        Lines { rest: self.lines }
    }

    /// The values of every field of that name, in order; the case of `name` does not matter.
    pub fn all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.iter()
            .filter(move |(field, _)| field.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The value of the first field of that name.
    pub fn first(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The value of the field of that name as text, if there is exactly one and it is UTF-8.
    pub fn only(&self, name: &str) -> Option<&'a str> {
        let mut values = self.all(name);
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        std::str::from_utf8(value).ok()
    }

    /// Whether a comma-separated field of that name, however many lines it takes, has `element`;
    /// case does not matter.
    pub fn lists(&self, name: &str, element: &str) -> bool {
        self.all(name)
            .flat_map(elements)
            .any(|found| found.eq_ignore_ascii_case(element.as_bytes()))
    }
}

impl Facts {
    /// Takes note of one field. The lengths tell the cases apart before any byte is compared.
    fn note(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.note_host(value),
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if value.eq_ignore_ascii_case(b"100-continue") {
                    self.expects_continue = true;
                } else {
                    self.expects_other = true;
                }
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in elements(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                }
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.note_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.note_coding(value),
            _ => Ok(()),
        }
    }

    fn note_host(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.has_host {
            return Err(Malformed::TwoHosts);
        }
        if !is_authority(value) {
            return Err(Malformed::BadHost);
        }
        self.has_host = true;
        Ok(())
    }

    /// RFC 9112 section 6.3 would allow equal repetitions and lists of equal values. No client sends
    /// them; whoever does counts on two readers taking two different ones.
    fn note_length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.content_length.is_some() {
            return Err(Malformed::RepeatedLength);
        }
        self.content_length = Some(parse_decimal(value).ok_or(Malformed::BadContentLength)?);
        Ok(())
    }

    fn note_coding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            // RFC 9112, section 6.3: where chunked is not the last coding, the end of a request cannot be known. A
            // second line would make it the list "chunked, ...".
            let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
            let mut codings = elements(value);
            let last_is_chunked = codings.next_back().is_some_and(is_chunked);
            let known_before = codings.next().is_none_or(is_chunked) || codings.any(is_chunked);
            let only_unknown_before = !self.chunked && last_is_chunked && !known_before;
            return Err(if only_unknown_before {
                Malformed::UnknownTransferCoding
            } else {
                Malformed::BadTransferEncoding
            });
        }
        self.chunked = true;
        Ok(())
    }
}

/// Walks over lines that [`Fields::parse`] has accepted.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let colon = self.rest.iter().position(|&byte| byte == b':')?;
        let (name, value) = (&self.rest[..colon], &self.rest[colon + 1..]);
        let length = value_len(value);
        self.rest = value.get(length + 2..).unwrap_or_default();
        Some((name, trim(&value[..length])))
    }
}

/// The elements of a comma-separated list, without the blanks around them; empty ones are dropped
/// (RFC 9110 section 5.6.1).
pub(super) fn elements(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(trim)
        .filter(|element| !element.is_empty())
}

/// The offset behind the CR LF that must stand at `at`; `None` while it has not arrived whole.
/// `otherwise` is the fault if another byte stands there.
pub(super) fn end_of_line(bytes: &[u8], at: usize, otherwise: Malformed) -> Result<Option<usize>, Malformed> {
    match (bytes.get(at), bytes.get(at + 1)) {
        (None, _) | (Some(b'\r'), None) => Ok(None),
        (Some(b'\r'), Some(b'\n')) => Ok(Some(at + 2)),
        (Some(b'\r'), Some(_)) => Err(Malformed::BareCr),
        (Some(b'\n'), _) => Err(Malformed::BareLf),
        (Some(_), _) => Err(otherwise),
    }
}

/// Digits only: no sign, no blank, no list. `None` also beyond 64 bits.
pub(super) fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// `host` or `host:port` by its characters (RFC 3986 section 3.2). Empty is allowed: it is what a
/// client must send for a URL without an authority. User information is not allowed (RFC 9110
/// section 4.2.4).
pub(super) fn is_authority(text: &[u8]) -> bool {
    text.iter()
        .all(|&byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte))
}

/// The token (RFC 9110 section 5.6.2) that `bytes` begins with; it may be empty.
pub(super) fn token(bytes: &[u8]) -> &[u8] {
    let length = bytes
        .iter()
        .position(|&byte| !IS_TOKEN[usize::from(byte)])
        .unwrap_or(bytes.len());
    &bytes[..length]
}

/// Without blanks and TABs at both ends.
pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// How many bytes from the start can stand in a field value: TAB, blank, visible ASCII and the bytes
/// above ASCII.
pub(super) fn value_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        while let Some(word) = bytes[at..].first_chunk::<8>() {
            let stop = control_bytes(u64::from_le_bytes(*word));
            if stop != 0 {
                at += stop.trailing_zeros() as usize / 8;
                break;
            }
            at += 8;
        }
        // Here stands a control character, or fewer than eight bytes are left.
        while let Some(&byte) = bytes.get(at) {
            if is_value_byte(byte) {
                at += 1;
                if byte == b'\t' {
                    break; // rare: go on with whole words behind it
                }
            } else {
                return at;
            }
        }
        if at == bytes.len() {
            return at;
        }
    }
}

/// Whether the byte can stand in a field value.
pub(super) fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Marks the first byte of the word that is below 0x20 or is 0x7f with its top bit. Bytes behind the
/// first may be marked wrongly, since the subtractions borrow; 0 if there is none.
fn control_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([0x01; 8]);
    const TOPS: u64 = u64::from_le_bytes([0x80; 8]);
    let below_space = word.wrapping_sub(ONES * 0x20) & !word;
    let delete = word ^ (ONES * 0x7f);
    let is_delete = delete.wrapping_sub(ONES) & !delete;
    (below_space | is_delete) & TOPS
}

/// `tchar` of RFC 9110 section 5.6.2.
static IS_TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < marks.len() {
        table[marks[index] as usize] = true;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Eight bytes at a time find the same end as one byte at a time.
        #[test]
        fn value_len_by_words_is_value_len_by_bytes(
            bytes in prop::collection::vec(prop_oneof![8 => 0x20_u8..=0x7e, 1 => any::<u8>(), 1 => Just(b'\t')], 0..64)
        ) {
            let expected = bytes.iter().position(|&byte| !is_value_byte(byte)).unwrap_or(bytes.len());
            prop_assert_eq!(value_len(&bytes), expected);
        }
    }

    #[test]
    fn every_control_byte_stops_a_value_at_every_offset() {
        for byte in 0..=255_u8 {
            for offset in 0..20 {
                let mut text = [b'x'; 20];
                text[offset] = byte;
                let stops = (byte < 0x20 && byte != b'\t') || byte == 0x7f;
                assert_eq!(
                    value_len(&text),
                    if stops { offset } else { 20 },
                    "{byte:#x} at {offset}"
                );
            }
        }
    }

    #[test]
    fn decimals() {
        let table: [(&[u8], Option<u64>); 10] = [
            (b"0", Some(0)),
            (b"0042", Some(42)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"", None),
            (b"+1", None),
            (b"-1", None),
            (b"1 ", None),
            (b"0x10", None),
            (b"1,1", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_decimal(text), expected, "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn looking_up() {
        let bytes = b"Host: h\r\nA:1\r\nX-List: a , ,b\t\r\na:\t 2 \r\nx-list:C\r\nempty:\r\n\r\nrest";
        let (fields, end) = Fields::parse(bytes, 0).unwrap().unwrap();
        assert_eq!(&bytes[end..], b"rest");
        assert_eq!(fields.iter().count(), 6);
        assert_eq!(fields.first("A"), Some(&b"1"[..]));
        assert_eq!(fields.all("a").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(fields.only("a"), None);
        assert_eq!(fields.only("HOST"), Some("h"));
        assert_eq!(fields.only("empty"), Some(""));
        assert_eq!(fields.first("hos"), None);
        assert!(fields.lists("x-list", "B") && fields.lists("X-List", "c"));
        assert!(!fields.lists("x-list", "a ,"));
    }
}
