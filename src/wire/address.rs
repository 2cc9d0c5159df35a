//! ILP addresses (RFC 15): which text is one, and which routing prefixes an operator may name.
//!
//! Owns the grammar, checked here once; everything above takes an [`Address`] and trusts it.
//! Leaves to routing what a scheme means and where an address leads.
//! Always: an [`Address`] is ASCII, has a known scheme, at least one segment, no empty one, and at
//! most [`ADDRESS_BYTES_MAX`] bytes. Addresses are compared byte by byte; case counts.

/// The longest address, in bytes (RFC 15).
pub const ADDRESS_BYTES_MAX: usize = 1023;

/// The longest scheme, in bytes: `private` and `example`.
const SCHEME_BYTES_MAX: usize = 7;

/// Why text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// More than [`ADDRESS_BYTES_MAX`] bytes.
    #[error("an address has at most {ADDRESS_BYTES_MAX} bytes")]
    TooLong,
    /// What stands before the first dot is no scheme; an empty text has none.
    #[error("an address begins with g, test, test1, test2, test3, private, example, local, peer or self")]
    UnknownScheme,
    /// A scheme and nothing else.
    #[error("an address has a segment after its scheme")]
    NoSegment,
    /// Two dots in a row, or a dot at the end.
    #[error("an address has no empty segment")]
    EmptySegment,
    /// A byte that is no letter of ASCII, no digit, and none of `_`, `~`, `-` and the dot.
    #[error("an address has letters, digits, '_', '~', '-' and dots")]
    InvalidCharacter,
}

/// An ILP address, borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address<'a>(&'a str);

impl<'a> Address<'a> {
    /// Checks that `bytes` are an address.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AddressError> {
        check_address(bytes)?;
        // Cannot fail, for what was checked is ASCII; it costs less than the check did.
        let text = str::from_utf8(bytes).map_err(|_| AddressError::InvalidCharacter)?;
        Ok(Self(text))
    }

    /// An address written in the program.
    ///
    /// # Panics
    /// If it is none; in a constant, that is an error of compilation.
    pub const fn from_static(text: &'static str) -> Address<'static> {
        assert!(check_address(text.as_bytes()).is_ok(), "not an address");
        Address(text)
    }

    /// The whole address.
    #[inline]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// The whole address, as it stands in a packet.
    #[inline]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0.as_bytes()
    }

    /// What stands before the first dot.
    #[inline]
    pub fn scheme(self) -> &'a str {
        self.0.split_once('.').map_or(self.0, |(scheme, _)| scheme)
    }

    /// What stands between the dots after the scheme, from left to right; never empty.
    #[inline]
    pub fn segments(self) -> impl DoubleEndedIterator<Item = &'a str> + Clone {
        let scheme_bytes = self.scheme().len();
        self.0[scheme_bytes + 1..].split('.')
    }

    /// Whether `prefix` is this address, or its beginning up to a dot.
    ///
    /// `prefix` is as [`check_prefix`] returns it; the empty one begins every address.
    #[inline]
    pub fn starts_with(self, prefix: &str) -> bool {
        match self.0.as_bytes().strip_prefix(prefix.as_bytes()) {
            Some(rest) => prefix.is_empty() || matches!(rest, [] | [b'.', ..]),
            None => false,
        }
    }
}

impl std::fmt::Display for Address<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.0)
    }
}

/// Checks a routing prefix: empty (the default route), a scheme, or an address.
///
/// Returns it as it is kept in tables: without the one dot that it may end with.
pub fn check_prefix(prefix: &str) -> Result<&str, AddressError> {
    let trimmed = match prefix.strip_suffix('.') {
        // A lone dot is no prefix, and must not turn into the default route.
        Some("") => return Err(AddressError::UnknownScheme),
        Some(trimmed) => trimmed,
        None => prefix,
    };
    if trimmed.is_empty() || is_known_scheme(trimmed) {
        return Ok(trimmed);
    }
    check_address(trimmed.as_bytes()).map(|()| trimmed)
}

/// Whether an address may begin with `scheme`.
pub fn is_known_scheme(scheme: &str) -> bool {
    scheme_bytes(scheme.as_bytes()) == Some(scheme.len())
}

/// Part of a segment.
const SEGMENT: u8 = 0;
/// Between two segments.
const DOT: u8 = 1;
/// Not part of any address.
const INVALID: u8 = 2;

/// What each byte is in an address.
static CLASS_OF: [u8; 256] = {
    let mut classes = [INVALID; 256];
    let mut byte = 0;
    while byte < classes.len() {
        classes[byte] = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'~' | b'-' => SEGMENT,
            b'.' => DOT,
            _ => INVALID,
        };
        byte += 1;
    }
    classes
};

/// The whole grammar. Loops over indices, because it also runs while compiling.
const fn check_address(bytes: &[u8]) -> Result<(), AddressError> {
    if bytes.len() > ADDRESS_BYTES_MAX {
        return Err(AddressError::TooLong);
    }
    let Some(scheme_bytes) = scheme_bytes(bytes) else {
        return Err(AddressError::UnknownScheme);
    };
    if scheme_bytes == bytes.len() {
        return Err(AddressError::NoSegment);
    }
    // The loop only collects, so that it does not branch on what a peer sent.
    let mut seen = 0;
    let mut seen_together = 0;
    let mut previous = SEGMENT;
    let mut at = scheme_bytes;
    while at < bytes.len() {
        let class = CLASS_OF[bytes[at] as usize];
        seen |= class;
        seen_together |= class & previous;
        previous = class;
        at += 1;
    }
    if seen & INVALID != 0 {
        Err(AddressError::InvalidCharacter)
    } else if seen_together & DOT != 0 || previous == DOT {
        Err(AddressError::EmptySegment)
    } else {
        Ok(())
    }
}

/// The length of the scheme that `bytes` begin with, if a dot or nothing follows it.
const fn scheme_bytes(bytes: &[u8]) -> Option<usize> {
    let mut end = 0;
    while end < bytes.len() && end <= SCHEME_BYTES_MAX && bytes[end] != b'.' {
        end += 1;
    }
    match bytes.split_at(end).0 {
        b"g" | b"test" | b"test1" | b"test2" | b"test3" => Some(end),
        b"private" | b"example" | b"local" | b"peer" | b"self" => Some(end),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AddressError::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const SCHEMES: [&str; 10] = [
        "g", "private", "example", "peer", "self", "test", "test1", "test2", "test3", "local",
    ];

    fn parse(text: &str) -> Result<&str, AddressError> {
        Address::parse(text.as_bytes()).map(Address::as_str)
    }

    #[test]
    fn addresses_are_accepted_as_they_are() {
        let long = format!("test.{}", "_".repeat(1018));
        let cases = [
            "test.alice.XYZ.1234.-_~",
            "g.us-fed.ach.0.acmebank.swx0a0.acmecorp.sales.199.~ipr.\
             cdfa5e16-e759-4ba3-88f6-8b9dc83c1868.2",
            "peer.config",
            "test3.A",
            "g.g",
            "example.test.private",
            &long,
        ];
        assert_eq!(long.len(), ADDRESS_BYTES_MAX);
        for text in cases {
            assert_eq!(parse(text), Ok(text));
        }
        for scheme in SCHEMES {
            let text = format!("{scheme}.A");
            assert_eq!(parse(&text), Ok(&*text));
            assert_eq!(parse(scheme), Err(NoSegment));
            assert!(is_known_scheme(scheme));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("test.{}", "_".repeat(1019));
        let cases = [
            ("", UnknownScheme),
            (".", UnknownScheme),
            ("test", NoSegment),
            ("test.", EmptySegment),
            ("test.alice.", EmptySegment),
            (".test.alice", UnknownScheme),
            ("test..alice", EmptySegment),
            ("test.alice..bob", EmptySegment),
            ("test4.alice", UnknownScheme),
            ("what.alice", UnknownScheme),
            ("Test.alice", UnknownScheme),
            ("testalice", UnknownScheme),
            ("privateer.alice", UnknownScheme),
            ("ga.alice", UnknownScheme),
            ("test.alice 123", InvalidCharacter),
            ("test.alice!123", InvalidCharacter),
            ("test.alice/123", InvalidCharacter),
            ("test.alice\n", InvalidCharacter),
            ("test.alicé", InvalidCharacter),
            (&long, TooLong),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
        assert_eq!(Address::parse(b"\xf0"), Err(UnknownScheme));
        assert_eq!(Address::parse(b"test.\xf0"), Err(InvalidCharacter));
        assert_eq!(Address::parse(b"test.a\x00"), Err(InvalidCharacter));
    }

    #[test]
    fn each_byte_is_judged_alone() {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || b"_~-.".contains(&byte);
            let bytes = [b'g', b'.', b'a', byte, b'b'];
            assert_eq!(Address::parse(&bytes).is_ok(), expected, "{byte:#04x}");
        }
    }

    #[test]
    fn an_address_falls_apart_at_its_dots() {
        let address = Address::from_static("test1.acme.bob.7");
        assert_eq!(address.scheme(), "test1");
        assert_eq!(address.segments().collect::<Vec<_>>(), ["acme", "bob", "7"]);
        assert_eq!(address.segments().next_back(), Some("7"));
        assert_eq!(address.to_string(), "test1.acme.bob.7");
        assert_eq!(address.as_bytes(), b"test1.acme.bob.7");
    }

    #[test]
    fn prefixes_end_at_dots() {
        let cases = [
            ("", true),
            ("test", true),
            ("test.bob", true),
            ("test.bobby", true),
            ("test.bobby.x", true),
            ("test.bobby.x.y", false),
            ("test.bobb", false),
            ("test.bobby.", false), // not as check_prefix returns it
            ("tes", false),
            ("g", false),
        ];
        // Both have the prefixes of the other's length, which is what a raw comparison confuses.
        for (prefix, expected) in cases {
            let address = if prefix == "test.bob" {
                "test.bob.x"
            } else {
                "test.bobby.x"
            };
            let address = Address::from_static(address);
            assert_eq!(address.starts_with(prefix), expected, "{address} {prefix}");
        }
        assert!(!Address::from_static("test.bobby").starts_with("test.bob"));
        assert!(!Address::from_static("example.ab").starts_with("example.a"));
    }

    #[test]
    fn operators_name_prefixes() {
        let longest = format!("g.{}", "a".repeat(1021));
        let longest_with_dot = format!("{longest}.");
        let cases = [
            ("", Ok("")),
            ("g", Ok("g")),
            ("g.", Ok("g")),
            ("local", Ok("local")),
            ("test.alice", Ok("test.alice")),
            ("test.alice.", Ok("test.alice")),
            (&*longest_with_dot, Ok(&*longest)),
            (".", Err(UnknownScheme)),
            ("..", Err(UnknownScheme)),
            ("g..", Err(EmptySegment)),
            ("test.alice..", Err(EmptySegment)),
            ("test4", Err(UnknownScheme)),
            ("alice", Err(UnknownScheme)),
            ("test.al ice", Err(InvalidCharacter)),
        ];
        for (prefix, expected) in cases {
            assert_eq!(check_prefix(prefix), expected, "{prefix:?}");
        }
    }

    #[test]
    fn schemes_are_whole_words() {
        for text in [
            "", "G", "tes", "test4", "test11", "g.", "privat", "privatee", "examples",
        ] {
            assert!(!is_known_scheme(text), "{text:?}");
        }
    }

    /// The grammar once more, in the words of RFC 15 instead of tables.
    fn is_address(text: &str) -> bool {
        let mut parts = text.split('.');
        let scheme = parts.next().unwrap_or_default();
        let segments: Vec<_> = parts.collect();
        text.len() <= ADDRESS_BYTES_MAX
            && SCHEMES.contains(&scheme)
            && !segments.is_empty()
            && segments.iter().all(|segment| {
                !segment.is_empty() && segment.chars().all(|c| c.is_ascii_alphanumeric() || "_~-".contains(c))
            })
    }

    proptest! {
        #[test]
        fn the_pass_over_bytes_is_the_grammar(
            text in "(g|test[0-9]?|peer|self|local|private|[a-z]{1,8})(\\.?[ a.é~Z0-]{0,4}){0,6}",
        ) {
            prop_assert_eq!(parse(&text).is_ok(), is_address(&text));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..40)) {
            let accepted = Address::parse(&bytes).is_ok();
            prop_assert_eq!(accepted, str::from_utf8(&bytes).is_ok_and(is_address));
        }

        #[test]
        fn a_prefix_is_a_beginning_in_segments(
            address in "g(\\.[ab]{1,2}){1,5}",
            prefix in "|g(\\.[ab]{1,2}){0,5}",
        ) {
            let whole: Vec<_> = address.split('.').collect();
            let beginning: Vec<_> = prefix.split('.').filter(|part| !part.is_empty()).collect();
            let parsed = Address::parse(address.as_bytes()).unwrap();
            prop_assert_eq!(check_prefix(&prefix), Ok(&*prefix));
            prop_assert_eq!(parsed.starts_with(&prefix), whole.starts_with(&beginning));
            let segments: Vec<_> = parsed.segments().collect();
            prop_assert_eq!(&segments[..], &whole[1..]);
        }
    }
}
