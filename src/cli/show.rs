//! How answers look to people: tables in plain text, as wide as what is in them and no wider.
//!
//! Owns [`Members`], an object as the node wrote it, and the one kind of table there is. Numbers are shown with the very
//! digits of the answer.
//!
//! Always: what comes from a node cannot move the cursor or change the terminal: control characters are escaped.

use std::fmt;

use comfy_table::{ColumnConstraint, Table, Width, presets};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object in the order in which the node wrote them, each with the digits that it wrote.
pub struct Members(pub Vec<(String, Box<RawValue>)>);

impl Members {
    /// What a table shows of a member that is there.
    pub fn get(&self, name: &str) -> Option<String> {
        let (_, value) = self.0.iter().find(|(member, _)| member == name)?;
        Some(cell(value))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// A value in one line: texts without quotes, `-` for nothing, `name value` for the members of an object.
pub fn cell(value: &RawValue) -> String {
    let json = value.get();
    let nothing_or = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    match json.as_bytes().first() {
        Some(b'n') => "-".to_owned(),
        Some(b'"') => nothing_or(plain(&serde_json::from_str::<String>(json).unwrap_or_default())),
        Some(b'[') => {
            let elements: Vec<Box<RawValue>> = serde_json::from_str(json).unwrap_or_default();
            nothing_or(
                elements
                    .iter()
                    .map(|element| cell(element))
                    .collect::<Vec<_>>()
                    .join(", "),
            )
        }
        Some(b'{') => {
            let members: Vec<(String, Box<RawValue>)> =
                serde_json::from_str(json).map_or_else(|_| vec![], |Members(all)| all);
            let there = members.iter().filter(|(_, value)| value.get() != "null");
            let shown = there.map(|(name, value)| format!("{} {}", plain(name), cell(value)));
            nothing_or(shown.collect::<Vec<_>>().join(", "))
        }
        _ => json.to_owned(),
    }
}

/// The text with its control characters escaped.
pub fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            escaped.extend(letter.escape_default());
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

/// Rows below a line of names.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = bare();
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    space_columns(&mut table);
    table.trim_fmt()
}

/// One line for each name and its value.
pub fn list(rows: impl IntoIterator<Item = (String, String)>) -> String {
    let mut table = bare();
    table.add_rows(rows.into_iter().map(|(name, value)| [name, value]));
    space_columns(&mut table);
    table.trim_fmt()
}

/// What a name in an answer looks like in a list.
pub fn label(name: &str) -> String {
    plain(&name.replace('_', " "))
}

fn bare() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// How many blanks there are between columns.
const GAP: u16 = 2;

/// None before the first column.
fn space_columns(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
}

/// A table that comes in pages: each is written when it is there, below one line of names, and its columns are at least
/// as wide as those of the page before. A long list takes no more memory than a page.
pub struct PagedTable {
    header: &'static [&'static str],
    widths: Vec<u16>,
}

impl PagedTable {
    pub fn new(header: &'static [&'static str]) -> Self {
        Self { header, widths: vec![] }
    }

    /// The next rows; the first time with the names above them.
    pub fn page(&mut self, rows: impl IntoIterator<Item = Vec<String>>) -> String {
        let mut table = bare();
        if self.widths.is_empty() {
            table.set_header(self.header.iter().copied());
        }
        table.add_rows(rows);
        space_columns(&mut table);
        let kept = self
            .widths
            .iter()
            .map(|width| ColumnConstraint::LowerBoundary(Width::Fixed(width.saturating_add(GAP))));
        table.set_constraints(kept);
        let text = table.trim_fmt();
        let found = table.column_max_content_widths();
        let widths = found.into_iter().enumerate();
        self.widths = widths
            .map(|(at, width)| width.max(self.widths.get(at).copied().unwrap_or(0)))
            .collect();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells() {
        for (json, expected) in [
            ("null", "-"),
            ("true", "true"),
            ("18446744073709551616", "18446744073709551616"),
            (
                "-170141183460469231731687303715884105728",
                "-170141183460469231731687303715884105728",
            ),
            ("1.0", "1.0"),
            (r#""alice""#, "alice"),
            (r#""""#, "-"),
            (r#""a\u001b[2Jb\n""#, r"a\u{1b}[2Jb\n"),
            (r#"["a","b"]"#, "a, b"),
            ("[]", "-"),
            (r#"{"http":null,"btp":"waiting"}"#, "btp waiting"),
            (r#"{"http":"ready","btp":"waiting"}"#, "http ready, btp waiting"),
            (r#"{"http":null}"#, "-"),
        ] {
            let value: Box<RawValue> = serde_json::from_str(json).unwrap();
            assert_eq!(cell(&value), expected, "{json}");
        }
    }

    #[test]
    fn members_keep_their_order() {
        let members: Members = serde_json::from_str(r#"{"z":1,"a":"x"}"#).unwrap();
        let names: Vec<&str> = members.0.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["z", "a"]);
        assert_eq!(members.get("a").as_deref(), Some("x"));
        assert_eq!(members.get("b"), None);
        assert!(serde_json::from_str::<Members>("[]").is_err());
    }

    #[test]
    fn tables() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(
            table(
                &["PREFIX", "USERNAME"],
                [row(["test.hub.alice", "alice"]), row(["g", "bob"])]
            ),
            "PREFIX          USERNAME\ntest.hub.alice  alice\ng               bob"
        );
        assert_eq!(table(&["PREFIX", "USERNAME"], []), "PREFIX  USERNAME");
        assert_eq!(
            list([("a".to_owned(), "1".to_owned()), ("long".to_owned(), "2".to_owned())]),
            "a     1\nlong  2"
        );
    }

    #[test]
    fn pages_of_a_table_share_their_columns() {
        let mut table = PagedTable::new(&["NAME", "VALUE"]);
        let mut page = |name: &str| table.page([vec![name.to_owned(), "1".to_owned()]]);
        assert_eq!(page("longer"), "NAME    VALUE\nlonger  1");
        assert_eq!(page("x"), "x       1");
        assert_eq!(page("still longer"), "still longer  1");
        assert_eq!(page("x"), "x             1");
    }
}
