//! The values of an account's fields, one reader for each kind: integers, addresses, URLs, tokens, codes, names.
//!
//! Owns the rule that a value must keep on its own, and the form in which it is kept: asset codes in upper case, URLs
//! normalized and free of passwords. Which field takes which is [`super::fields`]'s.

use url::Url;

use crate::ledger::account::RoutingRelation;
use crate::ledger::directory::normalize_username;
use crate::ledger::share::Share;
use crate::pipeline::rates::{Decimal, InvalidDecimal};
use crate::wire::address::{Address, AddressError};
use crate::wire::http::percent::percent_decode;

use super::json::Json;
use super::problem::Fault;

/// The length of a token in bytes.
pub const TOKEN_BYTES_MAX: usize = 1_024;
/// The length of a URL in bytes.
pub const URL_BYTES_MAX: usize = 2_048;
/// The length of an asset code in bytes, in upper case.
pub const ASSET_CODE_BYTES_MAX: usize = 64;

/// What is wrong with a value, and the rule it breaks.
pub type Refusal = (Fault, String);

pub fn refuse<T>(fault: Fault, rule: impl Into<String>) -> Result<T, Refusal> {
    Err((fault, rule.into()))
}

pub fn text(value: &Json) -> Result<&str, Refusal> {
    match value {
        Json::Text(text) => Ok(text),
        other => refuse(Fault::Invalid, format!("expected a text, found {}", other.kind())),
    }
}

/// The integers that some field can have.
pub trait Integer: TryFrom<i128> {
    const RANGE: &'static str;
}

impl Integer for u8 {
    const RANGE: &'static str = "an integer from 0 to 255";
}

impl Integer for u32 {
    const RANGE: &'static str = "an integer from 0 to 2^32-1";
}

impl Integer for u64 {
    const RANGE: &'static str = "an integer from 0 to 2^64-1";
}

impl Integer for i64 {
    const RANGE: &'static str = "an integer from -2^63 to 2^63-1";
}

/// An integer as number or as text: a sign, digits, nothing else.
pub fn integer<T: Integer>(value: &Json) -> Result<T, Refusal> {
    let expected = || format!("expected {}", T::RANGE);
    let (Json::Number(text) | Json::Text(text)) = value else {
        return refuse(Fault::Invalid, expected());
    };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(Fault::Invalid, expected());
    }
    // More digits than even i128 has are out of every range, unless they are zeros.
    let number = text.parse::<i128>().ok().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| (Fault::OutOfRange, expected()))
}

/// An amount of money that a holder may name: a balance below zero is the operator's to allow.
pub fn not_negative(value: &Json) -> Result<i64, Refusal> {
    let expected = "expected an integer from 0 to 2^63-1";
    match integer::<i64>(value) {
        Ok(number) if number >= 0 => Ok(number),
        Ok(_) => refuse(Fault::OutOfRange, expected),
        Err((fault, _)) => refuse(fault, expected),
    }
}

/// A share of an amount, as number or as text, kept exactly.
pub fn share(value: &Json) -> Result<Share, Refusal> {
    let expected = "expected a number from 0 to below 1";
    let (Json::Number(text) | Json::Text(text)) = value else {
        return refuse(Fault::Invalid, expected);
    };
    let decimal = match Decimal::parse(text) {
        Ok(decimal) => decimal,
        Err(error) => {
            let is_out_of_range = error == InvalidDecimal::OutOfRange;
            let fault = if is_out_of_range {
                Fault::OutOfRange
            } else {
                Fault::Invalid
            };
            return refuse(fault, format!("{expected}: {error}"));
        }
    };
    if decimal.is_negative() || !decimal.is_below_one() {
        return refuse(Fault::OutOfRange, expected);
    }
    let rule = || format!("{expected}, with at most {} digits behind the point", Share::DIGITS_MAX);
    decimal.to_share().ok_or_else(|| (Fault::Invalid, rule()))
}

pub fn username(value: &Json) -> Result<String, Refusal> {
    normalize_username(text(value)?).map_err(|error| (Fault::Invalid, error.to_string()))
}

/// An address of an account. `peer` and `self` are no place where an account can be (RFC 15).
pub fn ilp_address(value: &Json) -> Result<Box<str>, Refusal> {
    match Address::parse(text(value)?.as_bytes()) {
        Ok(address) if matches!(address.scheme(), "peer" | "self") => {
            refuse(Fault::Invalid, "the schemes peer and self are not for accounts")
        }
        Ok(address) => Ok(address.as_str().into()),
        Err(error @ AddressError::TooLong) => refuse(Fault::TooLong, error.to_string()),
        Err(error) => refuse(Fault::Invalid, error.to_string()),
    }
}

pub fn asset_code(value: &Json) -> Result<Box<str>, Refusal> {
    check_asset_code(text(value)?)
}

/// Upper-cases an asset code and checks it.
pub fn check_asset_code(text: &str) -> Result<Box<str>, Refusal> {
    let code = text.to_uppercase();
    if code.is_empty() {
        refuse(Fault::Invalid, "an asset code must not be empty")
    } else if code.len() > ASSET_CODE_BYTES_MAX {
        refuse(
            Fault::TooLong,
            format!("an asset code has at most {ASSET_CODE_BYTES_MAX} bytes in upper case"),
        )
    } else if code.chars().any(char::is_control) {
        refuse(Fault::Invalid, "an asset code has no control characters")
    } else {
        Ok(code.into())
    }
}

pub fn routing_relation(value: &Json) -> Result<RoutingRelation, Refusal> {
    let rule = "expected NonRoutingAccount, Parent, Peer or Child";
    RoutingRelation::parse(text(value)?).ok_or_else(|| (Fault::Invalid, rule.to_owned()))
}

/// What may be sent in a header (RFC 9110, section 5.5), so that it can be compared byte by byte.
pub fn http_token(value: &Json) -> Result<Box<str>, Refusal> {
    let token = btp_token(value)?;
    let is_sendable = token.bytes().all(|byte| matches!(byte, b' '..=b'~')) && token.trim() == &*token;
    if is_sendable {
        Ok(token)
    } else {
        refuse(Fault::Invalid, "expected visible ASCII, blanks only in between")
    }
}

pub fn btp_token(value: &Json) -> Result<Box<str>, Refusal> {
    let token = text(value)?;
    match token.len() {
        0 => refuse(Fault::Invalid, "must not be empty; null removes it"),
        1..=TOKEN_BYTES_MAX => Ok(token.into()),
        _ => refuse(Fault::TooLong, format!("a token has at most {TOKEN_BYTES_MAX} bytes")),
    }
}

fn parse_url(text: &str, expected: &str) -> Result<Url, Refusal> {
    if text.len() > URL_BYTES_MAX {
        return refuse(Fault::TooLong, format!("a URL has at most {URL_BYTES_MAX} bytes"));
    }
    match Url::parse(text) {
        Ok(url) if url.has_host() => Ok(url),
        _ => refuse(Fault::Invalid, expected),
    }
}

pub fn http_url(value: &Json) -> Result<Box<str>, Refusal> {
    let expected = "expected an absolute http or https URL";
    let url = parse_url(text(value)?, expected)?;
    if !matches!(url.scheme(), "http" | "https") {
        return refuse(Fault::Invalid, expected);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(
            Fault::Invalid,
            "a URL is shown to everybody who may read the account; use the token fields",
        );
    }
    Ok(url.as_str().into())
}

/// The URL that we dial without its password, and the password: it is a secret, and a URL is not kept like one.
pub fn btp_url(value: &Json) -> Result<(Box<str>, Option<Box<str>>), Refusal> {
    let expected = "expected an absolute URL with btp+ws, btp+wss, ws, wss, http or https";
    let text = text(value)?;
    // What `btp+` hides is a scheme that the parser knows and normalizes.
    let (prefix, rest) = match text.split_at_checked(4) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("btp+") => ("btp+", rest),
        _ => ("", text),
    };
    let mut url = parse_url(rest, expected)?;
    match (prefix, url.scheme()) {
        (_, "ws" | "wss") | ("", "http" | "https") => {}
        _ => return refuse(Fault::Invalid, expected),
    }
    let password = match url.password().map(percent_decode) {
        None => None,
        Some(Some(password)) if (1..=TOKEN_BYTES_MAX).contains(&password.len()) => Some(password.as_ref().into()),
        Some(_) => return refuse(Fault::Invalid, "the password in the URL is no token"),
    };
    if url.set_password(None).is_err() {
        return refuse(Fault::Invalid, expected);
    }
    Ok((format!("{prefix}{url}").into(), password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers() {
        let number = |text: &str| Json::Number(text.into());
        let as_text = |text: &str| Json::Text(text.into());
        for (text, u8_value, i64_value) in [
            ("9", Ok(9), Ok(9)),
            ("0", Ok(0), Ok(0)),
            ("-0", Ok(0), Ok(0)),
            ("255", Ok(255), Ok(255)),
            ("256", Err(Fault::OutOfRange), Ok(256)),
            ("-1", Err(Fault::OutOfRange), Ok(-1)),
            ("-9223372036854775808", Err(Fault::OutOfRange), Ok(i64::MIN)),
            ("9223372036854775808", Err(Fault::OutOfRange), Err(Fault::OutOfRange)),
            (&"9".repeat(60), Err(Fault::OutOfRange), Err(Fault::OutOfRange)),
            ("1.5", Err(Fault::Invalid), Err(Fault::Invalid)),
            ("9.0", Err(Fault::Invalid), Err(Fault::Invalid)),
            ("1e3", Err(Fault::Invalid), Err(Fault::Invalid)),
        ] {
            for value in [number(text), as_text(text)] {
                assert_eq!(integer::<u8>(&value).map_err(|(fault, _)| fault), u8_value, "{text}");
                assert_eq!(integer::<i64>(&value).map_err(|(fault, _)| fault), i64_value, "{text}");
            }
        }
        for (text, valid) in [
            ("+9", true),
            ("0009", true),
            ("", false),
            ("+", false),
            ("-", false),
            (" 9", false),
        ] {
            assert_eq!(integer::<i64>(&as_text(text)).is_ok(), valid, "{text:?}");
        }
        assert_eq!(integer::<u64>(&number("18446744073709551615")), Ok(u64::MAX));
        assert!(integer::<u8>(&Json::Bool(true)).is_err());
    }

    #[test]
    fn urls() {
        for (url, http, btp) in [
            (
                "http://localhost:3000",
                Some("http://localhost:3000/"),
                Some("http://localhost:3000/"),
            ),
            (
                "HTTPS://Example.com/a b",
                Some("https://example.com/a%20b"),
                Some("https://example.com/a%20b"),
            ),
            ("ws://h:1/x", None, Some("ws://h:1/x")),
            ("wss://h/x", None, Some("wss://h/x")),
            (
                "btp+ws://H:8770/accounts/a/ilp/btp",
                None,
                Some("btp+ws://h:8770/accounts/a/ilp/btp"),
            ),
            ("BTP+WSS://h", None, Some("btp+wss://h/")),
            ("btp+http://h", None, None),
            ("btp+ws://user@h/", None, Some("btp+ws://user@h/")),
            ("btp+ws://user:pa%3Ass@h/", None, Some("btp+ws://user@h/ pa:ss")),
            ("btp+ws://:pass@h/", None, Some("btp+ws://h/ pass")),
            ("http://user:pass@h/", None, Some("http://user@h/ pass")),
            ("btp+ws://user:%ff@h/", None, None),
            ("ftp://h/", None, None),
            ("localhost:3000", None, None),
            ("/path", None, None),
            ("http://", None, None),
            ("btp+", None, None),
            ("", None, None),
            ("mailto:a@b", None, None),
        ] {
            let value = Json::Text(url.into());
            assert_eq!(http_url(&value).ok().as_deref(), http, "{url}");
            let found = btp_url(&value).ok().map(|(url, password)| match password {
                Some(password) => format!("{url} {password}"),
                None => url.into(),
            });
            assert_eq!(found.as_deref(), btp, "{url}");
        }
        let long = Json::Text(format!("http://h/{}", "a".repeat(URL_BYTES_MAX)).into());
        assert_eq!(http_url(&long).unwrap_err().0, Fault::TooLong);
    }

    #[test]
    fn tokens_and_codes() {
        for (token, http, btp) in [
            ("alice-pw", true, true),
            ("default account holder", true, true),
            ("pass:word", true, true),
            (" x", false, true),
            ("x ", false, true),
            ("", false, false),
            ("a\tb", false, true),
            ("pässword", false, true),
            (&"x".repeat(TOKEN_BYTES_MAX), true, true),
            (&"x".repeat(TOKEN_BYTES_MAX + 1), false, false),
        ] {
            let value = Json::Text(token.into());
            assert_eq!(http_token(&value).is_ok(), http, "{token:.20}");
            assert_eq!(btp_token(&value).is_ok(), btp, "{token:.20}");
        }
        for (code, expected) in [
            ("abc", Some("ABC")),
            ("ß", Some("SS")),
            ("", None),
            ("A\nB", None),
            (&"x".repeat(64), Some(&*"X".repeat(64))),
            (&"x".repeat(65), None),
            (&"ß".repeat(33), None),
        ] {
            assert_eq!(check_asset_code(code).ok().as_deref(), expected, "{code}");
        }
    }
}
