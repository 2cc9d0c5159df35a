//! HTTP/1.1 messages with a Content-Length (RFC 9112), as much as a load and a few API calls need.
//! Owns finding the end of a message in a buffer; leaves sockets to others. Chunked bodies are an
//! error: neither the connector nor the relays answer short packets that way.

/// Longest head taken, in bytes.
pub const HEAD_BYTES_MAX: usize = 4_096;

/// A message at the front of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// The status of a response; 0 for a request.
    pub status: u16,
    /// Where the body begins and the head ends.
    pub body_start: usize,
    /// Where the body and the message end. May lie beyond what has arrived: see [`whole`].
    pub end: usize,
    /// The other side closes the connection after this message.
    pub close: bool,
}

/// Reads a head off the front, and knows from it where the message ends.
/// `Ok(None)`: the rest of the head has not arrived.
pub fn head(bytes: &[u8]) -> Result<Option<Message>, &'static str> {
    let mut status = None;
    let mut length = 0;
    let mut close = false;
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        let Some(line_end) = rest.iter().position(|&byte| byte == b'\n') else {
            if bytes.len() > HEAD_BYTES_MAX {
                return Err("an HTTP head that is too long");
            }
            return Ok(None);
        };
        let line = rest[..line_end].strip_suffix(b"\r").unwrap_or(&rest[..line_end]);
        at += line_end + 1;
        let Some(status) = status else {
            status = Some(start_line(line)?);
            continue;
        };
        // The first letter decides whether a line is worth a closer look: most are not.
        match line.first() {
            None => {
                return Ok(Some(Message {
                    status,
                    body_start: at,
                    end: at + length,
                    close,
                }));
            }
            Some(b'c' | b'C') => {
                if let Some(value) = field(line, b"content-length") {
                    length = number(value).ok_or("an HTTP Content-Length that is no number")?;
                } else if let Some(value) = field(line, b"connection") {
                    close |= value.eq_ignore_ascii_case(b"close");
                }
            }
            Some(b't' | b'T') if field(line, b"transfer-encoding").is_some() => {
                return Err("an HTTP message with a Transfer-Encoding");
            }
            Some(_) => {}
        }
    }
}

/// Reads a message off the front once all of it is there.
pub fn whole(bytes: &[u8]) -> Result<Option<Message>, &'static str> {
    Ok(head(bytes)?.filter(|message| message.end <= bytes.len()))
}

/// The value of the header field `name` (lower case), if `line` is that field.
pub fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    if !start.eq_ignore_ascii_case(name) {
        return None;
    }
    Some(value.strip_prefix(b":")?.trim_ascii())
}

fn start_line(line: &[u8]) -> Result<u16, &'static str> {
    if let Some(rest) = line.strip_prefix(b"HTTP/1.") {
        let digits = rest.get(2..5).and_then(number);
        return digits
            .and_then(|status| u16::try_from(status).ok())
            .ok_or("an HTTP status line without a status");
    }
    if line.ends_with(b" HTTP/1.1") {
        return Ok(0);
    }
    Err("something that is not HTTP/1.1")
}

/// A decimal number of at most eight digits.
fn number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    digits.iter().try_fold(0, |sum, digit| match digit {
        b'0'..=b'9' => Some(sum * 10 + usize::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_their_length_says() {
        let wire = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 3\r\n\r\nabcHTTP";
        for cut in 0..wire.len() - 4 {
            assert_eq!(whole(&wire[..cut]), Ok(None), "{cut}");
        }
        let message = whole(wire).unwrap().unwrap();
        assert_eq!((message.status, message.close), (200, false));
        assert_eq!(&wire[message.body_start..message.end], b"abc");

        let wire = b"POST /ilp HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let message = whole(wire).unwrap().unwrap();
        assert_eq!((message.status, message.close), (0, true));
        assert_eq!(message.end, wire.len());
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for wire in [
            &b"SSH-2.0\r\n\r\n"[..],
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            &[b'a'; HEAD_BYTES_MAX + 1],
        ] {
            assert!(whole(wire).is_err());
        }
    }
}
