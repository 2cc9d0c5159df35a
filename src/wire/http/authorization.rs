//! The `Authorization` field (RFC 9110 section 11.6.2, RFC 6750, RFC 7617) in the dialects in which
//! Interledger peers and operators send it.
//!
//! Owns which (user, secret) pairs a value can mean. Does not know any secret: the caller brings the
//! comparison, which must take constant time, and the folding of user names.
//!
//! Always: an empty secret is never a candidate, the number of comparisons does not depend on which
//! of them succeeds, and nothing here prints a secret.

use std::borrow::Cow;
use std::fmt;

use crate::wire::base64;

/// What an `Authorization` value offers.
pub enum Credentials<'a> {
    /// The value behind `Bearer`: a bare token or `username:token`. Tokens in the field hold blanks
    /// and colons, so nothing is cut off.
    Bearer(&'a str),
    /// `Basic`, decoded and split at the first colon.
    Basic { username: String, password: String },
}

/// Reads the value of an `Authorization` field: a scheme in any case, one or more blanks, the value.
/// `None` for another scheme, no value, bytes that are not UTF-8, or Basic that does not decode.
pub fn parse_authorization(value: &[u8]) -> Option<Credentials<'_>> {
    let value = std::str::from_utf8(value).ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim_start_matches(' ');
    if rest.is_empty() {
        return None;
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credentials::Bearer(rest));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = String::from_utf8(base64::decode(rest)?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        return Some(Credentials::Basic {
            username: username.into(),
            password: password.into(),
        });
    }
    None
}

impl Credentials<'_> {
    /// The whole value of Bearer, which is what the operator's token is compared with; Basic is for
    /// account holders only.
    pub fn bearer(&self) -> Option<&str> {
        match self {
            Self::Bearer(value) => Some(value),
            Self::Basic { .. } => None,
        }
    }

    /// The account a request without a name in its path speaks for: what stands before the first
    /// colon, written as `:` or, as clients of 2019 do, as `%3A`. `None` for a bare token, which
    /// names nobody.
    pub fn named_user(&self) -> Option<&str> {
        match self {
            Self::Bearer(value) => {
                let end = value.char_indices().find_map(|(index, _)| {
                    let rest = &value[index..];
                    (rest.starts_with(':') || starts_with_encoded_colon(rest)).then_some(index)
                })?;
                Some(&value[..end])
            }
            Self::Basic { username, .. } => Some(username),
        }
    }

    /// Whether these credentials are an account's: its user is whom `username_matches` accepts (after
    /// folding), its secret is what `secret_equals` accepts (in constant time).
    ///
    /// The secret may be the whole value; or what follows the user and a colon; or that, with `%3A`
    /// read as a colon. Basic always names its user.
    pub fn matches(&self, username_matches: impl Fn(&str) -> bool, secret_equals: impl Fn(&[u8]) -> bool) -> bool {
        let equals = |secret: &str| !secret.is_empty() & secret_equals(secret.as_bytes());
        let pair_equals = |pair: &str| match pair.split_once(':') {
            Some((username, secret)) if username_matches(username) => equals(secret),
            _ => false,
        };
        match self {
            // `|` and not `||`: the time must not tell which reading was the right one.
            Self::Bearer(value) => {
                let as_written = equals(value) | pair_equals(value);
                match decode_colons(value) {
                    Cow::Owned(decoded) => as_written | pair_equals(&decoded),
                    Cow::Borrowed(_) => as_written,
                }
            }
            Self::Basic { username, password } => username_matches(username) && equals(password),
        }
    }
}

/// Secrets never reach a log.
impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bearer(_) => "Bearer(..)",
            Self::Basic { .. } => "Basic(..)",
        })
    }
}

fn starts_with_encoded_colon(text: &str) -> bool {
    matches!(text.as_bytes(), [b'%', b'3', b'A' | b'a', ..])
}

/// Every `%3A` and `%3a` as a colon; owned only if there was one.
fn decode_colons(text: &str) -> Cow<'_, str> {
    if text.contains("%3A") || text.contains("%3a") {
        Cow::Owned(text.replace("%3A", ":").replace("%3a", ":"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One line per header value: what user `alice` with that token gets, and whom the value names.
    #[test]
    fn table() {
        let table = [
            // The value, the token of alice, whether it is accepted, whom it names.
            ("Bearer alice-pw", "alice-pw", true, None),
            ("bearer   alice-pw", "alice-pw", true, None),
            ("BEARER alice:alice-pw", "alice-pw", true, Some("alice")),
            ("Bearer ALICE:alice-pw", "alice-pw", true, Some("ALICE")),
            ("Bearer bob:alice-pw", "alice-pw", false, Some("bob")),
            ("Bearer alice:wrong", "alice-pw", false, Some("alice")),
            ("Bearer alice%3Aalice-pw", "alice-pw", true, Some("alice")),
            ("Bearer alice%3aalice-pw", "alice-pw", true, Some("alice")),
            ("Bearer bob%3Aalice-pw", "alice-pw", false, Some("bob")),
            ("Bearer pass:word", "pass:word", true, Some("pass")),
            ("Bearer alice:pass:word", "pass:word", true, Some("alice")),
            ("Bearer alice%3Apass%3Aword", "pass:word", true, Some("alice")),
            ("Bearer alice:pa%3Ass", "pa%3Ass", true, Some("alice")),
            ("Bearer alice:pa%3Ass", "pa:ss", true, Some("alice")),
            ("Bearer alice%3Aa:b", "a:b", true, Some("alice")),
            ("Bearer default account holder", "default account holder", true, None),
            (
                "Bearer alice:default account holder",
                "default account holder",
                true,
                Some("alice"),
            ),
            ("Bearer alice:", "", false, Some("alice")),
            ("Bearer alice-pw ", "alice-pw", false, None),
            ("Bearer ALICE-PW", "alice-pw", false, None),
            ("Basic YWxpY2U6YWxpY2UtcHc=", "alice-pw", true, Some("alice")),
            ("basic YWxpY2U6YWxpY2UtcHc=", "alice-pw", true, Some("alice")),
            ("Basic Ym9iOmFsaWNlLXB3", "alice-pw", false, Some("bob")),
            ("Basic YWxpY2U6cGFzczp3b3Jk", "pass:word", true, Some("alice")),
        ];
        for (value, token, accepted, names) in table {
            let credentials = parse_authorization(value.as_bytes()).expect(value);
            let found = credentials.matches(
                |username| username.eq_ignore_ascii_case("alice"),
                |secret| secret == token.as_bytes(),
            );
            assert_eq!(found, accepted, "{value} against {token}");
            assert_eq!(credentials.named_user(), names, "{value}");
            assert_eq!(
                credentials.bearer().is_some(),
                value.to_lowercase().starts_with("bearer")
            );
            assert!(!format!("{credentials:?}").contains("pw"), "no secret in a log");
        }
    }

    #[test]
    fn refused() {
        let table: [&[u8]; 12] = [
            b"",
            b"Bearer",
            b"Bearer ",
            b"Bearer    ",
            b" Bearer x",
            b"XXXXXX alice-pw",
            b"Digest x",
            b"Bearer\talice-pw",
            b"Basic !!!!",
            b"Basic YWxpY2U=",
            b"Basic //86//8=",
            b"Bearer \xff",
        ];
        for value in table {
            assert!(
                parse_authorization(value).is_none(),
                "{:?}",
                String::from_utf8_lossy(value)
            );
        }
    }

    #[test]
    fn empty_secret_matches_nothing() {
        for value in ["Bearer alice:", "Bearer alice%3A", "Basic YWxpY2U6"] {
            let credentials = parse_authorization(value.as_bytes()).unwrap();
            assert!(!credentials.matches(|_| true, |secret| secret.is_empty()), "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(value: Vec<u8>) {
            let _ = parse_authorization(&value);
        }

        /// The user named is one with whom the pair matches.
        #[test]
        fn named_user_can_match(value in "[a-z%3A:]{1,20}") {
            let credentials = Credentials::Bearer(&value);
            if let Some(name) = credentials.named_user() {
                let secret = decode_colons(&value).split_once(':').unwrap().1.to_owned();
                let matches = credentials.matches(|user| user == name, |bytes| bytes == secret.as_bytes());
                prop_assert_eq!(matches, !secret.is_empty());
            }
        }
    }
}
