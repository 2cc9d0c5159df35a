//! Long answers: JSON lists that are written while the client reads them.
//!
//! Owns where an element ends and a piece of the answer begins. Leaves to each call what its elements are, and to the
//! shards when the next piece is wanted.

use std::vec;

use serde::Serialize;

use crate::shard::control::{ApiResponse, Body, BodySource, PIECE_BYTES};

/// What the elements stand in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Brackets {
    Array,
    /// Each element is a member: its name, a colon, its value.
    Object,
}

impl Brackets {
    fn open_and_close(self) -> (u8, u8) {
        match self {
            Self::Array => (b'[', b']'),
            Self::Object => (b'{', b'}'),
        }
    }
}

/// 200 with a JSON array or object of any length. `read` gives the next elements, a few hundred at most; none: that was
/// all. `write` appends one of them. Nothing is read before the client has taken what was written.
pub fn json_stream<T: Send + 'static>(
    brackets: Brackets,
    read: impl FnMut() -> Vec<T> + Send + 'static,
    write: impl Fn(&mut Vec<u8>, &T) + Send + 'static,
) -> ApiResponse {
    let source = Elements {
        brackets,
        has_begun: false,
        is_first: true,
        at_hand: Vec::new().into_iter(),
        read,
        write,
    };
    ApiResponse {
        status: 200,
        headers: vec![("content-type", "application/json".to_owned())],
        body: Body::Made(Box::new(source)),
        close: false,
    }
}

/// Appends a value as JSON.
pub fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("our own answers have texts for names and finite numbers");
}

struct Elements<T, R, W> {
    brackets: Brackets,
    has_begun: bool,
    /// No element was written yet.
    is_first: bool,
    /// Read, and not written yet.
    at_hand: vec::IntoIter<T>,
    read: R,
    write: W,
}

impl<T, R, W> BodySource for Elements<T, R, W>
where
    T: Send,
    R: FnMut() -> Vec<T> + Send,
    W: Fn(&mut Vec<u8>, &T) + Send,
{
    fn next_piece(&mut self) -> (Vec<u8>, bool) {
        let (open, close) = self.brackets.open_and_close();
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        if !std::mem::replace(&mut self.has_begun, true) {
            piece.push(open);
        }
        // Checked behind each element: a piece is longer than it should be by less than one.
        while piece.len() < PIECE_BYTES {
            if self.at_hand.as_slice().is_empty() {
                self.at_hand = (self.read)().into_iter();
            }
            let Some(element) = self.at_hand.next() else {
                piece.push(close);
                return (piece, false);
            };
            if !std::mem::replace(&mut self.is_first, false) {
                piece.push(b',');
            }
            (self.write)(&mut piece, &element);
        }
        (piece, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a list of texts that is read `at_once` at a time.
    fn pieces(brackets: Brackets, elements: Vec<String>, at_once: usize) -> Vec<String> {
        let mut left = elements.into_iter();
        let read = move || left.by_ref().take(at_once).collect();
        let response = json_stream(brackets, read, move |out, element: &String| {
            write_json(out, element);
            if brackets == Brackets::Object {
                out.extend_from_slice(b":1");
            }
        });
        assert_eq!(response.headers, [("content-type", "application/json".to_owned())]);
        let Body::Made(mut source) = response.body else {
            panic!("made while it is read")
        };
        let mut pieces = Vec::new();
        loop {
            let (piece, has_more) = source.next_piece();
            assert!(!piece.is_empty());
            pieces.push(String::from_utf8(piece).unwrap());
            if !has_more {
                return pieces;
            }
        }
    }

    #[test]
    fn short_lists_are_one_piece() {
        for (brackets, elements, expected) in [
            (Brackets::Array, &[][..], "[]"),
            (Brackets::Array, &["a"], r#"["a"]"#),
            (Brackets::Array, &["a", "b\"", "c"], r#"["a","b\"","c"]"#),
            (Brackets::Object, &[], "{}"),
            (Brackets::Object, &["", "g.a"], r#"{"":1,"g.a":1}"#),
        ] {
            for at_once in [1, 2, 3, 4] {
                let elements = elements.iter().map(|text| text.to_string()).collect();
                assert_eq!(pieces(brackets, elements, at_once), [expected]);
            }
        }
    }

    #[test]
    fn long_lists_are_cut_between_elements() {
        let elements: Vec<String> = (0..5_000).map(|number| format!("{number:0100}")).collect();
        let pieces = pieces(Brackets::Array, elements.clone(), 64);
        let total = pieces.concat();
        assert_eq!(serde_json::from_str::<Vec<String>>(&total).unwrap(), elements);
        assert_eq!(pieces.len(), total.len().div_ceil(PIECE_BYTES));
        for piece in &pieces {
            assert!(piece.len() < PIECE_BYTES + 104, "{}", piece.len());
        }
    }
}
