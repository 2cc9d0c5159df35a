//! Writes HTTP/1.1 messages (RFC 9112): our answers, and the numbers in our requests.
//!
//! Owns the bytes of a head we send. Everything is appended to a buffer of the caller, without the
//! formatting machinery: an answer with a packet is a few copies. Leaves the clock to the caller, who
//! says what to put into Date, the same text for all answers of a second.
//!
//! Always: an answer has its Date (RFC 9110 section 6.6.1), a head we write says where its body ends,
//! and no value can end its line early.

use super::fields::is_value_byte;
use crate::wire::timestamp::HTTP_DATE_BYTES;

/// Appends the answer to a packet: 200 with the reply's bytes. `date` is its time, as
/// [`to_http_date`](crate::wire::timestamp::Timestamp::to_http_date) writes it.
pub fn write_ok_packet(out: &mut Vec<u8>, date: &[u8; HTTP_DATE_BYTES], packet: &[u8], keep_alive: bool) {
    const START: &[u8] = b"HTTP/1.1 200 OK\r\ndate: ";
    const MIDDLE: &[u8] = b"\r\ncontent-type: application/octet-stream\r\ncontent-length: ";
    let head_bytes_max = START.len() + date.len() + MIDDLE.len() + DECIMAL_BYTES_MAX + CLOSE.len();
    out.reserve(head_bytes_max + packet.len());
    out.extend_from_slice(START);
    out.extend_from_slice(date);
    out.extend_from_slice(MIDDLE);
    write_decimal(out, packet.len() as u64);
    out.extend_from_slice(if keep_alive { b"\r\n\r\n" } else { CLOSE });
    out.extend_from_slice(packet);
}

/// Where the body of an answer ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyEnd {
    /// After so many bytes.
    Length(u64),
    /// With the last chunk; for clients that speak HTTP/1.1.
    LastChunk,
    /// With the connection, which does not stay; for all others.
    Close,
}

/// Appends any answer. `headers` come without Date, Content-Length and Connection, which are added.
///
/// With `head_only`, for HEAD, the body is announced but left out. Status 1xx, 204 and 304 have no
/// body and no length. A control character in a value is written as a blank.
pub fn write_response(
    out: &mut Vec<u8>,
    date: &[u8; HTTP_DATE_BYTES],
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    keep_alive: bool,
    head_only: bool,
) {
    write_response_head(
        out,
        date,
        status,
        headers,
        BodyEnd::Length(body.len() as u64),
        keep_alive,
    );
    if has_body(status) && !head_only {
        out.extend_from_slice(body);
    }
}

/// Appends the head of an answer whose body follows, in one piece or in several: bytes as they are,
/// or with [`write_chunk`] and [`write_last_chunk`].
pub fn write_response_head(
    out: &mut Vec<u8>,
    date: &[u8; HTTP_DATE_BYTES],
    status: u16,
    headers: &[(&str, &str)],
    end: BodyEnd,
    keep_alive: bool,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\ndate: ");
    out.extend_from_slice(date);
    for (name, value) in headers {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        write_value(out, value);
    }
    match end {
        _ if !has_body(status) => {}
        BodyEnd::Length(length) => {
            out.extend_from_slice(b"\r\ncontent-length: ");
            write_decimal(out, length);
        }
        BodyEnd::LastChunk => out.extend_from_slice(b"\r\ntransfer-encoding: chunked"),
        BodyEnd::Close => {}
    }
    let keep_alive = keep_alive && end != BodyEnd::Close;
    out.extend_from_slice(if keep_alive { b"\r\n\r\n" } else { CLOSE });
}

fn has_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 304)
}

/// Appends one chunk (RFC 9112 section 7.1). Nothing for no data: a chunk without any is the last.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    write_hexadecimal(out, data.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the end of a chunked body. Without it the client knows that the body is not complete.
pub fn write_last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

/// Appends `100 Continue` (RFC 9110 section 15.2.1).
pub fn write_continue(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// Appends a number in decimal digits.
pub fn write_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; DECIMAL_BYTES_MAX];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn write_hexadecimal(out: &mut Vec<u8>, number: u64) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (number >> (4 * place)) as usize % 16;
        out.push(b"0123456789abcdef"[digit]);
    }
}

/// The usual reason phrase (RFC 9110 section 15), empty for a status we never send.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "",
    }
}

const CLOSE: &[u8] = b"\r\nconnection: close\r\n\r\n";

/// Digits of `u64::MAX`.
const DECIMAL_BYTES_MAX: usize = 20;

/// A value may repeat what a client sent, such as a name: it must not be able to add a line.
fn write_value(out: &mut Vec<u8>, value: &str) {
    out.extend(value.bytes().map(|byte| if is_value_byte(byte) { byte } else { b' ' }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::{ChunkedDecoder, Framing, parse_response};
    use proptest::prelude::*;

    const DATE: &[u8; HTTP_DATE_BYTES] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    #[test]
    fn packets() {
        let mut out = Vec::new();
        write_ok_packet(&mut out, DATE, b"abc", true);
        write_ok_packet(&mut out, DATE, b"", false);
        let start = "HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-type: application/octet-stream";
        let expected =
            format!("{start}\r\ncontent-length: 3\r\n\r\nabc{start}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn responses() {
        let written = |status, body: &[u8], keep_alive, head_only| {
            let mut out = Vec::new();
            let headers = [("allow", "GET, POST"), ("x", "a\r\ninjected: 1\0")];
            write_response(&mut out, DATE, status, &headers, body, keep_alive, head_only);
            String::from_utf8(out).unwrap()
        };
        let fields = "\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\nallow: GET, POST\r\nx: a  injected: 1 ";
        assert_eq!(
            written(405, b"{}", true, false),
            format!("HTTP/1.1 405 Method Not Allowed{fields}\r\ncontent-length: 2\r\n\r\n{{}}")
        );
        assert_eq!(
            written(200, b"{}", true, true),
            format!("HTTP/1.1 200 OK{fields}\r\ncontent-length: 2\r\n\r\n")
        );
        assert_eq!(
            written(204, b"dropped", false, false),
            format!("HTTP/1.1 204 No Content{fields}\r\nconnection: close\r\n\r\n")
        );
    }

    #[test]
    fn heads_say_where_the_body_ends() {
        for (status, end, keep_alive, rest) in [
            (200, BodyEnd::Length(7), true, "\r\ncontent-length: 7\r\n\r\n"),
            (200, BodyEnd::LastChunk, true, "\r\ntransfer-encoding: chunked\r\n\r\n"),
            (
                200,
                BodyEnd::LastChunk,
                false,
                "\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
            ),
            (200, BodyEnd::Close, false, "\r\nconnection: close\r\n\r\n"),
            // A body that ends with the connection ends it.
            (200, BodyEnd::Close, true, "\r\nconnection: close\r\n\r\n"),
            (204, BodyEnd::LastChunk, true, "\r\n\r\n"),
        ] {
            let mut out = Vec::new();
            write_response_head(&mut out, DATE, status, &[], end, keep_alive);
            let written = String::from_utf8(out).unwrap();
            let date = "\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT";
            assert_eq!(written, format!("HTTP/1.1 {status} {}{date}{rest}", reason(status)));
        }
    }

    #[test]
    fn chunks() {
        for (bytes, size) in [
            (1, "1"),
            (15, "f"),
            (16, "10"),
            (255, "ff"),
            (4096, "1000"),
            (65_536, "10000"),
        ] {
            let mut out = Vec::new();
            write_chunk(&mut out, &vec![b'x'; bytes]);
            let data = "x".repeat(bytes);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{size}\r\n{data}\r\n"));
        }
        let mut out = Vec::new();
        write_chunk(&mut out, b"");
        assert!(out.is_empty(), "no data is no chunk, or it would be the last");
        write_last_chunk(&mut out);
        assert_eq!(out, b"0\r\n\r\n");
    }

    proptest! {
        /// Chunks are read back as what they were, and nothing but the last one ends the body.
        #[test]
        fn chunks_round_trip(pieces: Vec<Vec<u8>>) {
            let mut out = Vec::new();
            for piece in &pieces {
                write_chunk(&mut out, piece);
            }
            let (mut decoder, mut read) = (ChunkedDecoder::new(), Vec::new());
            prop_assert_eq!(decoder.decode(&out, &mut read, usize::MAX), Ok((out.len(), false)));
            write_last_chunk(&mut out);
            let (mut decoder, mut read) = (ChunkedDecoder::new(), Vec::new());
            prop_assert_eq!(decoder.decode(&out, &mut read, usize::MAX), Ok((out.len(), true)));
            prop_assert_eq!(read, pieces.concat());
        }

        /// What we write is one response for us and for httparse, whatever the strings.
        #[test]
        fn one_message(status in 200..600_u16, value in "\\PC*|.*", body: Vec<u8>, keep_alive: bool) {
            let mut out = Vec::new();
            write_response(&mut out, DATE, status, &[("x", &value)], &body, keep_alive, false);
            let (head, length) = parse_response(&out).unwrap().unwrap();
            prop_assert_eq!(head.status, status);
            if !matches!(status, 204 | 304) {
                prop_assert_eq!(head.framing(), Framing::Length(body.len() as u64));
                prop_assert_eq!(&out[length..], &body[..]);
                prop_assert_eq!(head.keep_alive(), keep_alive);
            }
            let mut headers = [httparse::EMPTY_HEADER; 5];
            let mut oracle = httparse::Response::new(&mut headers);
            prop_assert_eq!(oracle.parse(&out), Ok(httparse::Status::Complete(length)));
        }

        #[test]
        fn decimals(number: u64) {
            let mut out = Vec::new();
            write_decimal(&mut out, number);
            prop_assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }
}
