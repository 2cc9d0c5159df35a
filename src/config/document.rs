//! Documents with options, in YAML, JSON or TOML, as names and values.
//!
//! Owns their limits, and what a parser would pass over: a name that is there twice, and a number that is not kept as it
//! was written. Leaves to [`super::options`] which names there are and what a value may be.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ConfigError;
use super::sources::{Given, Source};

/// How deep tables may lie in each other.
const DEPTH_MAX: usize = 8;
/// Options in one document: some thirty are known.
const NAMES_MAX: usize = 1_000;

/// A text with options, and what is known of its format.
pub enum Document<'a> {
    Stdin,
    /// The extension of the path tells.
    File(&'a str),
}

/// What a name stands for.
enum Value {
    Nothing,
    Text(String),
    /// A number, true or false, as its parser understood it.
    Read(String),
    List,
    /// In the order of the document, with all that is there twice.
    Table(Vec<(String, Value)>),
}

/// Reads a document. Nested tables become names with dots.
pub fn from_document(text: &str, document: Document<'_>) -> Result<Vec<Given>, ConfigError> {
    // Editors of other systems begin a text with a mark of its encoding.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (source, value) = match document {
        Document::Stdin => (Source::Stdin, json(text).or_else(|_| yaml(text))),
        Document::File(path) => {
            let extension = Path::new(path)
                .extension()
                .and_then(|extension| extension.to_str())
                .unwrap_or("");
            let value = match extension.to_ascii_lowercase().as_str() {
                "json" => json(text),
                "toml" => toml(text),
                "yaml" | "yml" => yaml(text),
                // A text that several of them take means the same in all.
                _ => json(text).or_else(|_| toml(text)).or_else(|_| yaml(text)),
            };
            (Source::File(path.to_owned()), value)
        }
    };
    let unreadable = |reason| ConfigError::Unreadable {
        place: source.to_string(),
        reason,
    };
    let mut reader = Reader {
        text,
        source: &source,
        given: Vec::new(),
    };
    match value.map_err(unreadable)? {
        Value::Nothing => {}
        Value::Table(members) => reader.flatten("", members, DEPTH_MAX)?,
        _ => return Err(unreadable("expected names and values".to_owned())),
    }
    Ok(reader.given)
}

// The messages of these parsers name a line, and may repeat what stands there: so only the line is taken over.

fn json(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Nothing);
    }
    serde_json::from_str(text).map_err(|error| format!("this is no JSON: line {}", error.line()))
}

fn yaml(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Nothing);
    }
    serde_yaml_ng::from_str(text).map_err(|error| match error.location() {
        Some(location) => format!("this is no YAML: line {}", location.line()),
        None => "this is no YAML".to_owned(),
    })
}

fn toml(text: &str) -> Result<Value, String> {
    toml::from_str(text).map_err(|error| match error.span() {
        Some(span) => {
            let before = text.as_bytes().iter().take(span.start);
            format!(
                "this is no TOML: line {}",
                before.filter(|byte| **byte == b'\n').count() + 1
            )
        }
        None => "this is no TOML".to_owned(),
    })
}

struct Reader<'a> {
    text: &'a str,
    source: &'a Source,
    given: Vec<Given>,
}

impl Reader<'_> {
    fn flatten(&mut self, prefix: &str, members: Vec<(String, Value)>, depth: usize) -> Result<(), ConfigError> {
        for (key, value) in members {
            let name = format!("{prefix}{}", key.replace('-', "_"));
            let (value, as_written) = match value {
                Value::Nothing => continue,
                Value::Text(value) => (value, true),
                Value::Read(value) => {
                    let as_written = is_a_word_of(self.text, &value);
                    (value, as_written)
                }
                Value::List => return Err(self.invalid(&name, "expected one value")),
                Value::Table(_) if depth == 0 => return Err(self.invalid(&name, "lies too deep")),
                Value::Table(members) => {
                    self.flatten(&format!("{name}."), members, depth - 1)?;
                    continue;
                }
            };
            let option = Given::new(&name, value, as_written, self.source.clone());
            if self.given.iter().any(|other| other.name == option.name) {
                return Err(self.invalid(&option.name, "is there twice"));
            }
            if self.given.len() == NAMES_MAX {
                return Err(ConfigError::Unreadable {
                    place: self.source.to_string(),
                    reason: format!("more than {NAMES_MAX} options"),
                });
            }
            self.given.push(option);
        }
        Ok(())
    }

    fn invalid(&self, name: &str, rule: &str) -> ConfigError {
        ConfigError::Invalid {
            option: super::shown(name),
            place: self.source.to_string(),
            rule: rule.to_owned(),
        }
    }
}

/// Whether a value stands in a document in just these characters: 1e5 does not, when it was read as 100000.0.
fn is_a_word_of(text: &str, value: &str) -> bool {
    let is_outside =
        |neighbour: Option<char>| neighbour.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '+' | '-' | '_'));
    text.match_indices(value).any(|(at, _)| {
        is_outside(text[..at].chars().next_back()) && is_outside(text[at + value.len()..].chars().next())
    })
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a table")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Read(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Read(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Read(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Read(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Read(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // The shortest text that is this number.
        Ok(Value::Read(format!("{value:?}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut table = Vec::new();
        while let Some(member) = members.next_entry()? {
            table.push(member);
        }
        Ok(Value::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file says, as `name=value` of every option in it, or why it cannot be used.
    fn read(path: &str, text: &str) -> String {
        match from_document(text, Document::File(path)) {
            Ok(given) => {
                let mark = |option: &Given| if option.as_written { "" } else { " (read)" };
                let shown = given
                    .iter()
                    .map(|option| format!("{}={}{}", option.name, option.value, mark(option)));
                shown.collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn values_of_every_format() {
        for (path, text, options) in [
            ("x.yaml", "a: 5\nb: 0.01\nc: true\nd: x", "a=5 b=0.01 c=true d=x"),
            (
                "x.json",
                r#"{"a":5,"b":0.01,"c":true,"d":"x"}"#,
                "a=5 b=0.01 c=true d=x",
            ),
            ("x.toml", "a = 5\nb = 0.01\nc = true\nd = 'x'", "a=5 b=0.01 c=true d=x"),
            ("x.yaml", "a: null\nb: ~\nc:\nd: {}\ne: 1", "e=1"),
            ("x.json", r#"{"a":null,"b":{}}"#, ""),
            ("x.yaml", "a: {b: {c-d: 1}}\ne.f: 2", "a.b.c_d=1 e.f=2"),
            ("x.toml", "[a]\nb.c-d = 1\n", "a.b.c_d=1"),
            ("x.yaml", "\u{feff}a: 1", "a=1"),
            ("x.json", "\u{feff}{\"a\": 1}", "a=1"),
            ("x.yaml", "", ""),
            ("x.yaml", "# nothing yet\n", ""),
            ("x.yaml", "---\n", ""),
            ("x.yaml", "null", ""),
            ("x.json", " \n", ""),
            ("x.json", "{}", ""),
            ("x.toml", "", ""),
            ("x", " ", ""),
            // Numbers and words that their parser writes in another way.
            (
                "x.yaml",
                "a: 1e5\nb: 0x1F\nc: 0.50\nd: True",
                "a=100000.0 (read) b=31 (read) c=0.5 (read) d=true (read)",
            ),
            ("x.toml", "a = 60_000", "a=60000 (read)"),
            ("x.json", r#"{"a":0.1000000000000000000001}"#, "a=0.1 (read)"),
            ("x.yaml", "a: \"1e5\"", "a=1e5"),
            ("x.yaml", "a: 007", "a=007"),
            ("x.yaml", "1: 2", "1=2"),
        ] {
            assert_eq!(read(path, text), options, "{path}: {text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let many: String = (0..=NAMES_MAX).map(|number| format!("a{number}: 1\n")).collect();
        // Every level says the one below nine times.
        let bomb: String = (1..12).fold("a0: &a0 x\n".to_owned(), |text, level| {
            let below = format!("*a{}", level - 1);
            format!("{text}a{level}: &a{level} [{}]\n", [below.as_str(); 9].join(","))
        });
        for (path, text, message) in [
            ("x.yaml", "a: [1]", "a: expected one value"),
            ("x.toml", "a = [1]", "a: expected one value"),
            ("x.toml", "[[a]]\nb = 1", "a: expected one value"),
            ("x.json", "[1]", "expected names and values"),
            ("x.yaml", "- a: 1", "expected names and values"),
            ("x.yaml", "just words", "expected names and values"),
            ("x.json", "5", "expected names and values"),
            ("x.yaml", "a: 1\na: 2", "a: is there twice"),
            ("x.json", r#"{"a":1,"a":1}"#, "a: is there twice"),
            ("x.toml", "a = 1\na = 2", "this is no TOML: line 2"),
            ("x.yaml", "a-b: 1\na_b: 1", "a_b: is there twice"),
            ("x.yaml", "a: {b: 1}\na.b: 2", "a.b: is there twice"),
            (
                "x.yaml",
                "exchange_rate: {spread: 0}\nexchange_rate_spread: 0",
                "exchange_rate.spread: is there twice",
            ),
            ("x.json", &nested(9), "a=1"),
            ("x.json", &nested(10), "lies too deep"),
            ("x.yaml", &nested(10), "lies too deep"),
            ("x.json", &nested(5_000), "this is no JSON: line 1"),
            ("x.yaml", &nested(5_000), "this is no YAML"),
            ("x.toml", &format!("a = {}", "[".repeat(5_000)), "this is no TOML"),
            ("x.yaml", &many, "more than 1000 options"),
            ("x.yaml", &bomb, "x.yaml: "),
            ("x.yaml", "a: 1\nb: [", "this is no YAML: line "),
            ("x.yaml", "a: 1\n---\nb: 2", "this is no YAML"),
            ("x.json", "{\"a\":1,}", "this is no JSON: line 1"),
            ("x.json", "{\"a\":1} {}", "this is no JSON: line 1"),
            ("x.toml", "a = 1\nb", "this is no TOML: line 2"),
        ] {
            let said = read(path, text);
            assert!(said.contains(message), "{path}: {text:.80}: {said}");
        }
    }
}
