//! Chunked bodies (RFC 9112 section 7.1), decoded as they arrive.
//!
//! Owns the framing of chunks. Bodies with a Content-Length need no decoder: they are a slice of the
//! received bytes. Extensions and trailers are read and dropped; nothing of ours uses them.
//!
//! Always: `out` grows only by bytes that have arrived, never beyond the limit; what is not data is
//! bounded too; and the result does not depend on how the bytes were split.

use super::fields::{is_value_byte, token};

/// What chunk sizes, extensions and trailers may take beyond as much as the data itself takes.
/// Chunks of five bytes and more stay within it however many they are.
pub const FRAMING_BYTES_MAX: u64 = 16 * 1024;

/// Why a body is refused. Either way the connection must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More data than the caller allows, or framing out of proportion: 413.
    #[error("body too large")]
    TooLarge,
    /// Not the chunked coding: 400.
    #[error("malformed chunked body")]
    Malformed,
}

/// Decodes one chunked body; a new one is needed for the next.
#[derive(Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    /// The size being read, then the data bytes of the chunk still to come.
    remaining: u64,
    data_bytes: u64,
    framing_bytes: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Size,
    /// Behind that many digits.
    SizeDigits(u8),
    /// Blanks between the size and the `;` of an extension.
    SizeBlank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line or of the empty line at the end.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

/// Sixteen digits are 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

impl ChunkedDecoder {
    /// A decoder at the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes from the start of `input` and appends data to `out`, which holds what earlier calls
    /// have appended; `max` bounds the body in bytes. Returns how many bytes of `input` are used up,
    /// and whether the body is complete: until then that is all of them.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>, max: usize) -> Result<(usize, bool), BodyError> {
        let mut at = 0;
        while self.state != State::Done {
            let Some(&byte) = input.get(at) else {
                return Ok((at, false));
            };
            if self.state == State::Data {
                let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
                let data = &input[at..at + wanted.min(input.len() - at)];
                out.extend_from_slice(data);
                at += data.len();
                self.remaining -= data.len() as u64;
                self.data_bytes += data.len() as u64;
                if self.remaining == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.framing_bytes += 1;
            if self.framing_bytes > FRAMING_BYTES_MAX + self.data_bytes {
                return Err(BodyError::TooLarge);
            }
            self.state = self.step(byte)?;
            if self.state == State::Data && self.remaining > (max as u64).saturating_sub(self.data_bytes) {
                return Err(BodyError::TooLarge);
            }
            at += 1;
        }
        Ok((at, true))
    }

    /// The state behind one byte that is not data.
    fn step(&mut self, byte: u8) -> Result<State, BodyError> {
        Ok(match (self.state, byte) {
            (State::Size, _) => self.digit(0, byte)?,
            (State::SizeDigits(_) | State::Extension, b'\r') => State::SizeLf,
            (State::SizeDigits(_) | State::SizeBlank, b';') => State::Extension,
            (State::SizeDigits(_) | State::SizeBlank, b' ' | b'\t') => State::SizeBlank,
            (State::SizeDigits(digits), _) => self.digit(digits, byte)?,
            (State::Extension, _) if is_value_byte(byte) => State::Extension,
            (State::SizeLf, b'\n') if self.remaining == 0 => State::Trailer,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::Trailer, b'\r') => State::EndLf,
            (State::EndLf, b'\n') => State::Done,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::Trailer | State::TrailerName, _) if !token(&[byte]).is_empty() => State::TrailerName,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, _) if is_value_byte(byte) => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::Trailer,
            _ => return Err(BodyError::Malformed),
        })
    }

    /// One more hexadecimal digit behind `digits` others.
    fn digit(&mut self, digits: u8, byte: u8) -> Result<State, BodyError> {
        let digit = char::from(byte).to_digit(16).ok_or(BodyError::Malformed)?;
        if digits == SIZE_DIGITS_MAX {
            return Err(BodyError::Malformed);
        }
        // Before the first digit `remaining` is 0: the chunk before has been used up. The shift
        // drops nothing: of sixteen digits' 64 bits at most 60 are in use.
        self.remaining = self.remaining << 4 | u64::from(digit);
        Ok(State::SizeDigits(digits + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1000;

    fn decode(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>, BodyError> {
        let mut out = Vec::new();
        let (used, done) = ChunkedDecoder::new().decode(input, &mut out, MAX)?;
        assert!(done || used == input.len());
        Ok(done.then_some((out, used)))
    }

    /// Input, and what comes out: the data and the unused rest, "not yet", or the fault.
    #[test]
    fn table() {
        use BodyError::{Malformed, TooLarge};
        type Expected = Result<Option<(&'static str, &'static str)>, BodyError>;
        let table: [(&str, Expected); 37] = [
            ("0\r\n\r\n", Ok(Some(("", "")))),
            ("3\r\nabc\r\n0\r\n\r\n", Ok(Some(("abc", "")))),
            ("3\r\nabc\r\n00\r\n\r\nGET /", Ok(Some(("abc", "GET /")))),
            (
                "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
                Ok(Some(("01234567890123456789", ""))),
            ),
            ("1\r\na\r\n002\r\nbc\r\n0\r\n\r\n", Ok(Some(("abc", "")))),
            ("2\r\n\r\n\r\n0\r\n\r\n", Ok(Some(("\r\n", "")))),
            ("1;x=y\r\na\r\n0;last=\"q;\"\r\n\r\n", Ok(Some(("a", "")))),
            ("1 \t;x\r\na\r\n0\r\n\r\n", Ok(Some(("a", "")))),
            ("0\r\nX-Sum: 1\r\nY:\r\n\r\nrest", Ok(Some(("", "rest")))),
            ("0000000000000001\r\na\r\n0\r\n\r\n", Ok(Some(("a", "")))),
            ("", Ok(None)),
            ("3", Ok(None)),
            ("3\r\nab", Ok(None)),
            ("3\r\nabc\r\n0\r\n", Ok(None)),
            ("3\r\nabc\r\n0\r\n\r", Ok(None)),
            // Who ends lines by LF alone reads other chunks than who does not.
            ("3\nabc\r\n0\r\n\r\n", Err(Malformed)),
            ("3\r\nabc\n0\r\n\r\n", Err(Malformed)),
            ("3;x\nabc\r\n", Err(Malformed)),
            ("0\r\n\n", Err(Malformed)),
            ("0\r\nX: 1\n\r\n", Err(Malformed)),
            ("3\r\nabcd\r\n0\r\n\r\n", Err(Malformed)),
            ("3\rabc", Err(Malformed)),
            ("\r\n", Err(Malformed)),
            (" 3\r\nabc\r\n", Err(Malformed)),
            ("3 \r\nabc\r\n", Err(Malformed)),
            ("+3\r\nabc\r\n", Err(Malformed)),
            ("-1\r\n", Err(Malformed)),
            ("0x3\r\nabc\r\n", Err(Malformed)),
            ("g\r\n", Err(Malformed)),
            (";x\r\n", Err(Malformed)),
            ("1;\u{1}\r\n", Err(Malformed)),
            ("00000000000000001\r\na\r\n", Err(Malformed)),
            ("0\r\n folded\r\n", Err(Malformed)),
            ("0\r\n: no name\r\n", Err(Malformed)),
            ("0\r\nX : 1\r\n", Err(Malformed)),
            ("3e9\r\n", Err(TooLarge)),
            ("ffffffffffffffff\r\n", Err(TooLarge)),
        ];
        for (input, expected) in table {
            let expected =
                expected.map(|found| found.map(|(data, rest)| (data.as_bytes().to_vec(), input.len() - rest.len())));
            assert_eq!(decode(input.as_bytes()), expected, "{input:?}");
        }
    }

    #[test]
    fn the_limit_counts_all_chunks() {
        let fits = format!("{0:x}\r\n{1}\r\n1\r\nx\r\n0\r\n\r\n", MAX - 1, "y".repeat(MAX - 1));
        assert_eq!(decode(fits.as_bytes()).unwrap().unwrap().0.len(), MAX);
        let beyond = fits.replace("1\r\nx\r\n", "2\r\nxx\r\n");
        assert_eq!(decode(beyond.as_bytes()), Err(BodyError::TooLarge));
    }

    #[test]
    fn framing_is_bounded() {
        let trailers = format!("0\r\n{}\r\n", "T: 1\r\n".repeat(3000));
        assert_eq!(decode(trailers.as_bytes()), Err(BodyError::TooLarge));
        let extension = format!("1;{}", "x".repeat(17_000));
        assert_eq!(decode(extension.as_bytes()), Err(BodyError::TooLarge));
        let small_chunks = format!("{}0\r\n\r\n", "5\r\nabcde\r\n".repeat(100_000));
        let mut out = Vec::new();
        let decoded = ChunkedDecoder::new().decode(small_chunks.as_bytes(), &mut out, 1 << 20);
        assert_eq!(decoded, Ok((small_chunks.len(), true)));
        assert_eq!(out.len(), 500_000);
    }

    proptest! {
        /// What a client encodes comes out again, whatever the chunks and whatever the reads.
        #[test]
        fn round_trip_in_pieces(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            piece in 1..20_usize,
        ) {
            let mut encoded = Vec::new();
            for chunk in &chunks {
                encoded.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                encoded.extend_from_slice(chunk);
                encoded.extend_from_slice(b"\r\n");
            }
            encoded.extend_from_slice(b"0\r\n\r\n");
            let (mut decoder, mut out, mut done) = (ChunkedDecoder::new(), Vec::new(), false);
            for piece in encoded.chunks(piece) {
                prop_assert!(!done);
                let (used, complete) = decoder.decode(piece, &mut out, MAX).unwrap();
                prop_assert_eq!(used, piece.len());
                done = complete;
            }
            prop_assert!(done);
            prop_assert_eq!(out, chunks.concat());
        }

        /// Arbitrary bytes, and bytes near the real thing: no panic, no data beyond the limit, the
        /// same verdict byte by byte as in one piece, and httparse reads the same first size.
        #[test]
        fn any_bytes(input in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(prop::sample::select(b"0123aF;: \t\r\r\r\n\n\nx".to_vec()), 0..60),
        ]) {
            let mut whole = Vec::new();
            let at_once = ChunkedDecoder::new().decode(&input, &mut whole, 20);
            prop_assert!(whole.len() <= 20);
            let (mut decoder, mut out) = (ChunkedDecoder::new(), Vec::new());
            let mut in_bytes = Ok((0, false));
            for (index, byte) in input.iter().enumerate() {
                match decoder.decode(std::slice::from_ref(byte), &mut out, 20) {
                    Ok((used, done)) => in_bytes = Ok((index + used, done)),
                    Err(error) => in_bytes = Err(error),
                }
                if !matches!(in_bytes, Ok((_, false))) {
                    break;
                }
            }
            prop_assert_eq!(at_once, in_bytes);
            prop_assert_eq!(&whole, &out);
            if let Ok((_, true)) = at_once {
                let first = httparse::parse_chunk_size(&input).unwrap().unwrap();
                prop_assert_eq!(first.1 == 0, whole.is_empty());
                prop_assert!(whole.len() as u64 >= first.1);
                prop_assert!(input[first.0..].starts_with(&whole[..first.1 as usize]));
            }
        }
    }
}
