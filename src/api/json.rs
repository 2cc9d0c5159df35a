//! JSON as callers send it: read strictly, every number kept exactly as written (RFC 8259).
//!
//! Owns reading. `simd-json` checks the grammar and the UTF-8 and resolves escapes; this module adds what money and
//! configuration need beside that: no member twice, no depth beyond [`DEPTH_MAX`], and no number that went through a
//! float. For the last one the text of each number is set aside before the parser sees it, and a zero stands in its
//! place. Leaves writing to `serde_json`.
//!
//! Always: the work and the memory are linear in the length of the text, which the caller has bounded.

use std::collections::HashSet;

use simd_json::{Node, StaticNode};

/// How deep arrays and objects may lie in each other.
pub const DEPTH_MAX: usize = 32;

/// A JSON value. Numbers are the caller's text, which has the grammar of a JSON number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Json {
    Null,
    Bool(bool),
    Number(Box<str>),
    Text(Box<str>),
    Array(Vec<Json>),
    /// In the order written; no name is there twice.
    Object(Vec<(Box<str>, Json)>),
}

impl Json {
    /// What it is, for error details.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Why a text is no JSON that we take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidJson {
    /// It ends before the value does.
    #[error("the JSON ends too early")]
    Eof,
    #[error("this is no JSON: {0}")]
    Syntax(String),
    #[error("the member {0:?} is there twice")]
    DuplicateMember(Box<str>),
    #[error("arrays and objects lie deeper than {DEPTH_MAX} in each other")]
    TooDeep,
}

/// Reads one value and nothing behind it.
pub fn parse(text: &[u8]) -> Result<Json, InvalidJson> {
    let mut patched = text.to_vec();
    let numbers = set_numbers_aside(&mut patched)?;
    let tape = simd_json::to_tape(&mut patched).map_err(|error| InvalidJson::Syntax(reason(&error)))?;
    let mut reader = TapeReader {
        nodes: tape.0.iter(),
        numbers: numbers.into_iter(),
    };
    reader.value()
}

/// Goes through the text once: checks the depth, takes the numbers out in order, leaves a `0` and blanks in their
/// place. Whether anything may stand where it stands is for the parser to say.
fn set_numbers_aside(text: &mut [u8]) -> Result<Vec<Box<str>>, InvalidJson> {
    let mut numbers = Vec::new();
    let mut depth = 0_usize;
    let mut is_blank = true;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        is_blank &= matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match byte {
            b'"' => {
                at = end_of_text(text, at + 1)?;
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(InvalidJson::TooDeep);
                }
            }
            // One too many is found by the parser.
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let len = text[at..].iter().take_while(|byte| is_part(byte)).count();
                let number = &mut text[at..at + len];
                if !is_number(number) {
                    return Err(InvalidJson::Syntax("a number is malformed".to_owned()));
                }
                numbers.push(number.iter().map(|byte| char::from(*byte)).collect::<String>().into());
                number.fill(b' ');
                number[0] = b'0';
                at += len;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    if depth > 0 || is_blank {
        Err(InvalidJson::Eof)
    } else {
        Ok(numbers)
    }
}

/// The position behind the quotation mark that ends a text which begins at `at`. Checks the one thing about escapes
/// that the parser lets pass, reading a NUL instead: half of a surrogate pair.
fn end_of_text(text: &[u8], mut at: usize) -> Result<usize, InvalidJson> {
    loop {
        match text.get(at).ok_or(InvalidJson::Eof)? {
            b'"' => return Ok(at + 1),
            b'\\' => {
                let len = match utf16_escape(&text[at..]) {
                    Some(0xD800..=0xDBFF) => match utf16_escape(&text[at + UTF16_ESCAPE_LEN..]) {
                        Some(0xDC00..=0xDFFF) => 2 * UTF16_ESCAPE_LEN,
                        _ => return Err(half_a_pair()),
                    },
                    Some(0xDC00..=0xDFFF) => return Err(half_a_pair()),
                    Some(_) => UTF16_ESCAPE_LEN,
                    None => 2,
                };
                at += len;
            }
            _ => at += 1,
        }
    }
}

/// `\uXXXX`
const UTF16_ESCAPE_LEN: usize = 6;

/// The code unit of an escape at the beginning of a text; `None` if it is another escape, or a broken one.
fn utf16_escape(text: &[u8]) -> Option<u16> {
    let digits = text.get(..UTF16_ESCAPE_LEN)?.strip_prefix(b"\\u")?;
    let digit = |unit: u16, byte: &u8| Some(unit << 4 | char::from(*byte).to_digit(16)? as u16);
    digits.iter().try_fold(0, digit)
}

fn half_a_pair() -> InvalidJson {
    InvalidJson::Syntax("an escape is half of a surrogate pair".to_owned())
}

/// RFC 8259, section 6: `[ "-" ] int [ frac ] [ exp ]`, no zero in front of another digit.
fn is_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> (usize, &[u8]) {
        let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (len, &text[len..])
    }
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let (len, mut rest) = digits(text);
    if len == 0 || (len > 1 && text[0] == b'0') {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let (len, behind) = digits(fraction);
        if len == 0 {
            return false;
        }
        rest = behind;
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or(rest.strip_prefix(b"E")) {
        let exponent = exponent
            .strip_prefix(b"+")
            .or(exponent.strip_prefix(b"-"))
            .unwrap_or(exponent);
        let (len, behind) = digits(exponent);
        if len == 0 {
            return false;
        }
        rest = behind;
    }
    rest.is_empty()
}

/// What the parser found, and where. Its own message is for its developers.
fn reason(error: &simd_json::Error) -> String {
    format!("byte {}", error.index())
}

/// Turns the parser's tape, in which the parts of a value follow it, into a tree.
struct TapeReader<'tape, 'input> {
    nodes: std::slice::Iter<'tape, Node<'input>>,
    numbers: std::vec::IntoIter<Box<str>>,
}

impl TapeReader<'_, '_> {
    /// Never recurses deeper than [`DEPTH_MAX`], which was checked.
    fn value(&mut self) -> Result<Json, InvalidJson> {
        let incomplete = || InvalidJson::Syntax("incomplete".to_owned());
        Ok(match self.nodes.next().ok_or_else(incomplete)? {
            Node::Static(StaticNode::Null) => Json::Null,
            Node::Static(StaticNode::Bool(value)) => Json::Bool(*value),
            // The zeros that stand for numbers; nothing else is a number here.
            Node::Static(_) => Json::Number(self.numbers.next().ok_or_else(incomplete)?),
            Node::String(text) => Json::Text((*text).into()),
            Node::Array { len, .. } => {
                let mut items = Vec::with_capacity(*len);
                for _ in 0..*len {
                    items.push(self.value()?);
                }
                Json::Array(items)
            }
            Node::Object { len, .. } => self.object(*len)?,
        })
    }

    fn object(&mut self, len: usize) -> Result<Json, InvalidJson> {
        let mut members = Vec::with_capacity(len);
        let mut names = HashSet::with_capacity(len);
        for _ in 0..len {
            let Some(Node::String(name)) = self.nodes.next() else {
                return Err(InvalidJson::Syntax("a member has no name".to_owned()));
            };
            if !names.insert(*name) {
                return Err(InvalidJson::DuplicateMember((*name).into()));
            }
            members.push(((*name).into(), self.value()?));
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value as a text that shows its types: numbers as written, in `<>`.
    fn show(json: &Json) -> String {
        match json {
            Json::Null => "null".into(),
            Json::Bool(value) => value.to_string(),
            Json::Number(text) => format!("<{text}>"),
            Json::Text(text) => format!("{text:?}"),
            Json::Array(items) => {
                format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(","))
            }
            Json::Object(members) => {
                let member = |(name, value): &(Box<str>, Json)| format!("{name:?}:{}", show(value));
                format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
            }
        }
    }

    #[test]
    fn table() {
        for (text, expected) in [
            ("null", "null"),
            (" true ", "true"),
            ("0", "<0>"),
            ("-0", "<-0>"),
            ("9", "<9>"),
            ("18446744073709551615", "<18446744073709551615>"),
            (
                "99999999999999999999999999999999999999999",
                "<99999999999999999999999999999999999999999>",
            ),
            (
                "0.10000000000000000000000000000000000001",
                "<0.10000000000000000000000000000000000001>",
            ),
            ("5e-7", "<5e-7>"),
            ("1E+400", "<1E+400>"),
            (r#""a\"1[{""#, r#""a\"1[{""#),
            (r#""\u0061lice""#, r#""alice""#),
            (r#""\\""#, r#""\\""#),
            ("\"Zoë\"", "\"Zoë\""),
            ("[]", "[]"),
            ("{}", "{}"),
            (
                r#"{"b":1,"a":[2,{"c":"3"},-4.5],"d":null}"#,
                r#"{"b":<1>,"a":[<2>,{"c":"3"},<-4.5>],"d":null}"#,
            ),
            // ---- refused
            ("", "Eof"),
            (" \n", "Eof"),
            ("{", "Eof"),
            ("[1,2", "Eof"),
            (r#"{"a":"#, "Eof"),
            (r#""abc"#, "Eof"),
            (r#""abc\"#, "Eof"),
            ("{}}", "Syntax"),
            ("{} {}", "Syntax"),
            ("1 2", "Syntax"),
            ("1x", "Syntax"),
            ("x1", "Syntax"),
            ("true1", "Syntax"),
            ("01", "Syntax"),
            ("1.", "Syntax"),
            (".5", "Syntax"),
            ("+1", "Syntax"),
            ("-", "Syntax"),
            ("1e", "Syntax"),
            ("1-2", "Syntax"),
            ("NaN", "Syntax"),
            ("Infinity", "Syntax"),
            ("nul", "Syntax"),
            ("{a:1}", "Syntax"),
            (r#"{"a":1,}"#, "Syntax"),
            (r#"{"a" 1}"#, "Syntax"),
            ("{1:2}", "Syntax"),
            ("[1,]", "Syntax"),
            ("[1 2]", "Syntax"),
            (r#""\x""#, "Syntax"),
            (r#""\ud800""#, "Syntax"),
            (r#""\udc00""#, "Syntax"),
            (r#""\ud800\u0041""#, "Syntax"),
            (r#""\ud83d\ude00""#, "\"😀\""),
            (r#""\ud83d\\ude00""#, "Syntax"),
            (r#""\u00g0""#, "Syntax"),
            (r#""\u00"#, "Eof"),
            ("\"\n\"", "Syntax"),
            (r#"{"a":1,"a":2}"#, "DuplicateMember"),
            (r#"{"a":1,"\u0061":2}"#, "DuplicateMember"),
            (r#"[{"b":{"a":1,"a":1}}]"#, "DuplicateMember"),
        ] {
            let found = match parse(text.as_bytes()) {
                Ok(json) => show(&json),
                Err(error) => format!("{error:?}").split('(').next().unwrap().to_owned(),
            };
            assert_eq!(found, expected, "{text}");
        }
        assert!(matches!(parse(b"\"\xff\""), Err(InvalidJson::Syntax(_))), "not UTF-8");
    }

    #[test]
    fn depth() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(parse(nested(DEPTH_MAX + 1).as_bytes()), Err(InvalidJson::TooDeep));
        assert_eq!(parse("[".repeat(1_000_000).as_bytes()), Err(InvalidJson::TooDeep));
    }

    proptest! {
        /// What we take, the other reader takes, and what only it takes is a member there twice or a number too large.
        #[test]
        fn as_serde_json_reads_it(text in r#"([\[\]{}:,"a0-3. e\-]|true|null|\\\\|\\u|d8|dc|"){0,24}"#) {
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            match parse(text.as_bytes()) {
                Ok(ours) => match theirs {
                    Ok(theirs) => prop_assert_eq!(matches!(ours, Json::Object(_)), theirs.is_object()),
                    Err(error) => prop_assert!(error.to_string().contains("out of range"), "{}: {}", text, error),
                },
                Err(InvalidJson::DuplicateMember(_)) => {}
                Err(_) => prop_assert!(theirs.is_err(), "{}", text),
            }
        }

        #[test]
        fn any_bytes(text: Vec<u8>) {
            let _ = parse(&text);
        }
    }
}
