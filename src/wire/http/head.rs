//! Request and response heads (RFC 9112 sections 2 to 6): the first line, and what the field lines
//! mean for the message as a whole.
//!
//! Owns where a head ends, how its body is framed, whether the connection lives on, and the upgrade
//! to a WebSocket (RFC 6455 section 4.2.1). Leaves the lines themselves to [`super::fields`], bodies
//! to [`super::body`], and what a path means to its reader.
//!
//! Always: a head that was accepted has one framing, and at most [`HEAD_BYTES_MAX`] bytes. The same
//! bytes at the start of a buffer give the same head whatever follows them, so a head that equals an
//! earlier one byte for byte needs no second parse.

use super::fields::{Fields, elements, end_of_line, is_authority, parse_decimal, token, value_len};
use super::malformed::Malformed;

/// The longest head, first line to empty line. Ours have 200 bytes, a browser's with cookies 4 KiB.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The methods we tell apart. `Other` is any other token: well formed, but nothing of ours answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Other,
}

/// How the end of the body is found (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body, and no field that speaks of one.
    None,
    /// Content-Length, in bytes.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// Responses only: the body ends when the connection does.
    UntilClose,
}

/// A request's head, borrowed from the received bytes.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    pub method: Method,
    /// The method as received: a token, for people where [`Method::Other`] says too little.
    pub method_text: &'a str,
    /// The request target as received: visible ASCII without `#`, not percent-decoded.
    pub target: &'a str,
    /// 0 or 1.
    pub version_minor: u8,
    fields: Fields<'a>,
}

impl<'a> RequestHead<'a> {
    /// The target's path, not percent-decoded; begins with `/`, except that `OPTIONS *` has `*`.
    pub fn path(&self) -> &'a str {
        let path = split_target(self.target).1;
        match path.split_once('?') {
            Some(("", _)) => "/",
            Some((path, _)) => path,
            None if path.is_empty() => "/",
            None => path,
        }
    }

    /// What follows the first `?` of the target.
    pub fn query(&self) -> Option<&'a str> {
        Some(self.target.split_once('?')?.1)
    }

    /// Host and port the client meant: of the target if it is absolute, else of Host
    /// (RFC 9112 section 3.2.2).
    pub fn host(&self) -> Option<&'a str> {
        split_target(self.target).0.or_else(|| self.fields.only("host"))
    }

    /// The value of the first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.fields.first(name)
    }

    /// The values of all fields of that name, in any case, in order.
    pub fn headers<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.fields.all(name)
    }

    /// All field lines.
    pub fn fields(&self) -> &Fields<'a> {
        &self.fields
    }

    /// How the body's end is found; never [`Framing::UntilClose`].
    pub fn framing(&self) -> Framing {
        let facts = self.fields.facts;
        match facts.content_length {
            _ if facts.chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::None,
        }
    }

    /// Whether another request may follow on this connection. An HTTP/1.0 client is never kept: it
    /// would need a `Connection: keep-alive` in our answer, and those who speak it in earnest close.
    pub fn keep_alive(&self) -> bool {
        self.version_minor == 1 && !self.fields.facts.close
    }

    /// The client waits for `100 Continue` before it sends the body (RFC 9110 section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.version_minor == 1 && self.fields.facts.expects_continue
    }

    /// The client expects something nobody can promise: 417.
    pub fn expects_unknown(&self) -> bool {
        self.version_minor == 1 && self.fields.facts.expects_other
    }

    /// The wish to go on as a WebSocket, if there is one. Its version and key are still to be judged.
    pub fn upgrade_websocket(&self) -> Option<WebSocketUpgrade<'a>> {
        let asks = self.method == Method::Get
            && self.version_minor == 1
            && self.fields.facts.upgrade
            && matches!(self.framing(), Framing::None | Framing::Length(0))
            && self.fields.lists("upgrade", "websocket");
        asks.then(|| WebSocketUpgrade {
            key: self.fields.only("sec-websocket-key").unwrap_or(""),
            version: self
                .fields
                .only("sec-websocket-version")
                .and_then(|text| text.parse().ok()),
            fields: self.fields,
        })
    }
}

/// A request to go on as a WebSocket (RFC 6455 section 4.2.1).
#[derive(Clone, Copy)]
pub struct WebSocketUpgrade<'a> {
    /// `Sec-WebSocket-Key`; empty, which is not a valid key, if it is missing or repeated.
    pub key: &'a str,
    /// `Sec-WebSocket-Version`; 13 is the only one in use.
    pub version: Option<u8>,
    fields: Fields<'a>,
}

impl<'a> WebSocketUpgrade<'a> {
    /// The subprotocols offered, the client's favourite first.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.fields
            .all("sec-websocket-protocol")
            .flat_map(elements)
            .filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// Whether that subprotocol is offered. Names are compared as they are (RFC 6455 section 11.5).
    pub fn offers(&self, subprotocol: &str) -> bool {
        self.subprotocols().any(|name| name == subprotocol)
    }
}

/// A response's head, borrowed from the received bytes. The reason phrase is dropped: it carries
/// nothing (RFC 9112 section 4).
#[derive(Clone, Copy)]
pub struct ResponseHead<'a> {
    /// 100 to 999.
    pub status: u16,
    /// 0 or 1.
    pub version_minor: u8,
    fields: Fields<'a>,
}

impl<'a> ResponseHead<'a> {
    /// The value of the first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.fields.first(name)
    }

    /// All field lines.
    pub fn fields(&self) -> &Fields<'a> {
        &self.fields
    }

    /// The body's framing, unless the request was HEAD: a response to that has none.
    pub fn framing(&self) -> Framing {
        let facts = self.fields.facts;
        match (self.status, facts.content_length) {
            (100..=199 | 204 | 304, _) => Framing::None,
            _ if facts.chunked => Framing::Chunked,
            (_, Some(length)) => Framing::Length(length),
            (_, None) => Framing::UntilClose,
        }
    }

    /// Whether another request may be sent on this connection.
    pub fn keep_alive(&self) -> bool {
        let facts = self.fields.facts;
        let persists = self.version_minor == 1 || facts.keep_alive;
        persists && !facts.close && self.framing() != Framing::UntilClose
    }
}

/// Reads the request head at the start of `bytes`, with its length in bytes. One empty line before it
/// is skipped and counted (RFC 9112 section 2.2). `Ok(None)`: read more and call again.
pub fn parse_request(bytes: &[u8]) -> Result<Option<(RequestHead<'_>, usize)>, Malformed> {
    within_limit(bytes, request)
}

/// Reads the response head at the start of `bytes`, with its length in bytes. `Ok(None)`: read more
/// and call again.
pub fn parse_response(bytes: &[u8]) -> Result<Option<(ResponseHead<'_>, usize)>, Malformed> {
    within_limit(bytes, response)
}

/// Shows `parse` no byte beyond the limit, so the verdict does not depend on how the bytes were split.
fn within_limit<'a, T>(
    bytes: &'a [u8],
    parse: impl Fn(&'a [u8]) -> Result<Option<T>, Malformed>,
) -> Result<Option<T>, Malformed> {
    let parsed = parse(&bytes[..bytes.len().min(HEAD_BYTES_MAX)])?;
    if parsed.is_none() && bytes.len() >= HEAD_BYTES_MAX {
        return Err(Malformed::HeadTooLong);
    }
    Ok(parsed)
}

fn request(bytes: &[u8]) -> Result<Option<(RequestHead<'_>, usize)>, Malformed> {
    let mut start = 0;
    if let Some(b'\r' | b'\n') = bytes.first() {
        match end_of_line(bytes, 0, Malformed::BadRequestLine)? {
            Some(next) => start = next,
            None => return Ok(None),
        }
    }
    let Some((method_text, target_start)) = word(bytes, start, token(&bytes[start..]).len())? else {
        return Ok(None);
    };
    let length = visible_len(&bytes[target_start..]);
    let Some((target, version_start)) = word(bytes, target_start, length)? else {
        return Ok(None);
    };
    let version_end = version_start + visible_len(&bytes[version_start..]);
    let Some(fields_start) = end_of_line(bytes, version_end, Malformed::BadRequestLine)? else {
        return Ok(None);
    };
    let method = match method_text {
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        b"POST" => Method::Post,
        b"PUT" => Method::Put,
        b"DELETE" => Method::Delete,
        b"OPTIONS" => Method::Options,
        _ => Method::Other,
    };
    let version_minor = version_minor(&bytes[version_start..version_end], Malformed::BadRequestLine)?;
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Malformed::BadRequestLine);
    let (method_text, target) = (text(method_text)?, text(target)?);
    if !is_target(target, method) {
        return Err(Malformed::BadRequestLine);
    }
    let Some((fields, end)) = Fields::parse(bytes, fields_start)? else {
        return Ok(None);
    };
    check_framing(&fields, version_minor)?;
    if version_minor == 1 && !fields.facts.has_host {
        return Err(Malformed::MissingHost);
    }
    let head = RequestHead {
        method,
        method_text,
        target,
        version_minor,
        fields,
    };
    Ok(Some((head, end)))
}

fn response(bytes: &[u8]) -> Result<Option<(ResponseHead<'_>, usize)>, Malformed> {
    let bad = Malformed::BadStatusLine;
    let version_len = visible_len(bytes);
    match bytes.get(version_len) {
        None => return Ok(None),
        Some(b' ') => {}
        Some(_) => return Err(bad),
    }
    let version_minor = version_minor(&bytes[..version_len], bad)?;
    let status_start = version_len + 1;
    let Some(digits) = bytes.get(status_start..status_start + 3) else {
        return Ok(None);
    };
    let status = parse_decimal(digits)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|&number| number >= 100)
        .ok_or(bad)?;
    // A missing reason should keep its blank; some servers drop that too, and nothing hangs on it.
    let mut at = status_start + 3;
    if let Some(b' ') = bytes.get(at) {
        at += value_len(&bytes[at..]);
    }
    let Some(fields_start) = end_of_line(bytes, at, bad)? else {
        return Ok(None);
    };
    let Some((fields, end)) = Fields::parse(bytes, fields_start)? else {
        return Ok(None);
    };
    check_framing(&fields, version_minor)?;
    Ok(Some((
        ResponseHead {
            status,
            version_minor,
            fields,
        },
        end,
    )))
}

fn check_framing(fields: &Fields<'_>, version_minor: u8) -> Result<(), Malformed> {
    if fields.facts.chunked {
        if fields.facts.content_length.is_some() {
            return Err(Malformed::BothLengths);
        }
        if version_minor == 0 {
            return Err(Malformed::CodedOldVersion);
        }
    }
    Ok(())
}

/// A word of the request line with the offset behind the one blank that must follow it.
fn word(bytes: &[u8], start: usize, length: usize) -> Result<Option<(&[u8], usize)>, Malformed> {
    match bytes.get(start + length) {
        None => Ok(None),
        Some(b' ') if length > 0 => Ok(Some((&bytes[start..start + length], start + length + 1))),
        Some(_) => Err(Malformed::BadRequestLine),
    }
}

fn version_minor(version: &[u8], otherwise: Malformed) -> Result<u8, Malformed> {
    match version {
        b"HTTP/1.1" => Ok(1),
        b"HTTP/1.0" => Ok(0),
        _ if version.starts_with(b"HTTP/") => Err(Malformed::UnsupportedVersion),
        _ => Err(otherwise),
    }
}

/// How many bytes from the start are visible ASCII.
fn visible_len(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|byte| !byte.is_ascii_graphic())
        .unwrap_or(bytes.len())
}

/// The forms of RFC 9112 section 3.2 that an origin server gets. CONNECT's is for proxies, and a
/// fragment never leaves the client.
fn is_target(target: &str, method: Method) -> bool {
    if target.contains('#') {
        return false;
    }
    match split_target(target) {
        (None, "*") => method == Method::Options,
        (None, path) => path.starts_with('/'),
        (Some(authority), _) => !authority.is_empty() && is_authority(authority.as_bytes()),
    }
}

/// The authority, if the target is absolute, and the rest: path and query.
fn split_target(target: &str) -> (Option<&str>, &str) {
    if target.starts_with('/') {
        return (None, target);
    }
    let scheme_len = ["http://", "https://"].into_iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(scheme.len())
    });
    let Some(scheme_len) = scheme_len else {
        return (None, target);
    };
    let rest = &target[scheme_len..];
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    (Some(&rest[..end]), &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::HEADERS_MAX;
    use proptest::prelude::*;

    fn request_of(text: &str) -> RequestHead<'_> {
        let (head, length) = parse_request(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    #[test]
    fn a_peers_request() {
        let text = "POST /accounts/alice/ilp HTTP/1.1\r\nHost: hub.example:7770\r\naccept: */*\r\n\
             AUTHORIZATION:Bearer  alice-pw \t\r\nContent-Length: 42\r\n\r\n";
        let body = format!("{text}BODY");
        let (head, length) = parse_request(body.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        assert_eq!((head.method, head.version_minor), (Method::Post, 1));
        assert_eq!((head.path(), head.query()), ("/accounts/alice/ilp", None));
        assert_eq!(head.host(), Some("hub.example:7770"));
        assert_eq!(head.header("authorization"), Some(&b"Bearer  alice-pw"[..]));
        assert_eq!(head.framing(), Framing::Length(42));
        assert!(head.keep_alive() && !head.expects_continue());
        assert!(head.upgrade_websocket().is_none());
    }

    #[test]
    fn methods() {
        let table = [
            ("GET", Method::Get),
            ("HEAD", Method::Head),
            ("POST", Method::Post),
            ("PUT", Method::Put),
            ("DELETE", Method::Delete),
            ("OPTIONS", Method::Options),
            ("PATCH", Method::Other),
            ("get", Method::Other), // methods are told apart by case (RFC 9110 section 9.1)
            ("M-SEARCH", Method::Other),
        ];
        for (text, method) in table {
            let request = format!("{text} / HTTP/1.1\r\nHost: h\r\n\r\n");
            let head = request_of(&request);
            assert_eq!((head.method, head.method_text), (method, text));
        }
    }

    #[test]
    fn targets() {
        let table = [
            ("GET", "/", "/", None, "h"),
            ("GET", "/a%20b/?x=/y?z", "/a%20b/", Some("x=/y?z"), "h"),
            ("GET", "//two", "//two", None, "h"),
            ("GET", "/?", "/", Some(""), "h"),
            ("GET", "http://other:80/a/b?c", "/a/b", Some("c"), "other:80"),
            ("GET", "HTTPS://other", "/", None, "other"),
            ("GET", "http://other?c", "/", Some("c"), "other"),
            ("OPTIONS", "*", "*", None, "h"),
        ];
        for (method, target, path, query, host) in table {
            let text = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let head = request_of(&text);
            assert_eq!(
                (head.path(), head.query(), head.host()),
                (path, query, Some(host)),
                "{target}"
            );
        }
        let refused = [
            ("GET", "*"),
            ("GET", "a"),
            ("GET", "/a#b"),
            ("CONNECT", "h:1"),
            ("GET", "http:///a"),
            ("GET", "http://user:pw@h/"),
            ("GET", "ftp://h/"),
            ("GET", "/\u{e9}"),
            ("GET", "?x"),
        ];
        for (method, target) in refused {
            let text = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(
                parse_request(text.as_bytes()).err(),
                Some(Malformed::BadRequestLine),
                "{target}"
            );
        }
    }

    /// Fields of a POST, and what they say about its end and about the connection.
    #[test]
    fn framing_and_persistence() {
        use Framing::{Chunked, Length, None};
        let table = [
            ("HTTP/1.1", "", None, true),
            ("HTTP/1.1", "Content-Length: 0\r\n", Length(0), true),
            ("HTTP/1.1", "content-length:\t007 \r\n", Length(7), true),
            (
                "HTTP/1.1",
                "Content-Length: 18446744073709551615\r\n",
                Length(u64::MAX),
                true,
            ),
            ("HTTP/1.1", "Transfer-Encoding: Chunked\r\n", Chunked, true),
            ("HTTP/1.1", "Connection: close\r\n", None, false),
            ("HTTP/1.1", "Connection: keep-alive, Close\r\n", None, false),
            ("HTTP/1.1", "Connection: TE\r\nConnection: close\r\n", None, false),
            ("HTTP/1.1", "Connection: closed\r\n", None, true),
            ("HTTP/1.0", "", None, false),
            ("HTTP/1.0", "Connection: keep-alive\r\n", None, false),
            ("HTTP/1.0", "Content-Length: 3\r\n", Length(3), false),
        ];
        for (version, fields, framing, keep_alive) in table {
            let text = format!("POST / {version}\r\nHost: h\r\n{fields}\r\n");
            let head = request_of(&text);
            assert_eq!(
                (head.framing(), head.keep_alive()),
                (framing, keep_alive),
                "{version} {fields:?}"
            );
        }
    }

    /// Each attack or slip, and its answer. Where httparse lets it pass, the line says so: there we
    /// are the stricter.
    #[test]
    fn refused() {
        use Malformed::*;
        const LAX: bool = true; // httparse accepts this
        const STRICT: bool = false;
        let table: [(&[u8], Malformed, u16, bool); 51] = [
            // Two lengths: one reader believes the first, another the second.
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                BothLengths,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
                BothLengths,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
                RepeatedLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
                RepeatedLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\n",
                BadContentLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\n",
                BadContentLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -3\r\n\r\n",
                BadContentLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x3\r\n\r\n",
                BadContentLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3 3\r\n\r\n",
                BadContentLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n",
                BadContentLength,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551616\r\n\r\n",
                BadContentLength,
                400,
                LAX,
            ),
            // Codings that one reader takes for chunked and another not.
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                UnknownTransferCoding,
                501,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
                BadTransferEncoding,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n",
                BadTransferEncoding,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
                BadTransferEncoding,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;q=1\r\n\r\n",
                BadTransferEncoding,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n",
                BadTransferEncoding,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                BadTransferEncoding,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
                BadTransferEncoding,
                400,
                LAX,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
                BadHeader,
                400,
                STRICT,
            ),
            (
                b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
                CodedOldVersion,
                400,
                LAX,
            ),
            // Lines whose end or name is in dispute.
            (b"POST / HTTP/1.1\nHost: h\r\n\r\n", BareLf, 400, LAX),
            (b"POST / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", BareLf, 400, LAX),
            (b"POST / HTTP/1.1\r\nHost: h\r\n\n", BareLf, 400, LAX),
            (b"\nPOST / HTTP/1.1\r\nHost: h\r\n\r\n", BareLf, 400, LAX),
            (b"POST / HTTP/1.1\rHost: h\r\n\r\n", BareCr, 400, STRICT),
            (b"POST / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", BareCr, 400, STRICT),
            (b"POST / HTTP/1.1\r\nHost: h\r\n\rX", BareCr, 400, STRICT),
            (b"POST / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", ObsFold, 400, STRICT),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\n\tContent-Length: 3\r\n\r\n",
                ObsFold,
                400,
                STRICT,
            ),
            (b"POST / HTTP/1.1\r\n Host: h\r\n\r\n", ObsFold, 400, STRICT),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 3\r\n\r\n",
                BadHeader,
                400,
                STRICT,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length\t: 3\r\n\r\n",
                BadHeader,
                400,
                STRICT,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
                BadHeader,
                400,
                STRICT,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\n: no name\r\n\r\n",
                BadHeader,
                400,
                STRICT,
            ),
            (b"POST / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", BadHeader, 400, STRICT),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nX: a\x7fb\r\n\r\n",
                BadHeader,
                400,
                STRICT,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nX\xc4: a\r\n\r\n",
                BadHeader,
                400,
                STRICT,
            ),
            // Who is meant.
            (b"GET / HTTP/1.1\r\n\r\n", MissingHost, 400, LAX),
            (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", TwoHosts, 400, LAX),
            (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", BadHost, 400, LAX),
            (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BadHost, 400, LAX),
            // First lines.
            (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", BadRequestLine, 400, STRICT),
            (b"GET /  HTTP/1.1\r\nHost: h\r\n\r\n", BadRequestLine, 400, STRICT),
            (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", BadRequestLine, 400, STRICT),
            (b"GET /\r\n\r\n", BadRequestLine, 400, STRICT),
            (b"GET / http/1.1\r\nHost: h\r\n\r\n", BadRequestLine, 400, STRICT),
            (b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", BadRequestLine, 400, LAX),
            (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", UnsupportedVersion, 505, STRICT),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", UnsupportedVersion, 505, STRICT),
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                BadRequestLine,
                400,
                STRICT,
            ), // TLS
        ];
        for (bytes, expected, status, lax) in table {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(parse_request(bytes).err(), Some(expected), "{shown:?}");
            assert_eq!(expected.status(), status, "{shown:?}");
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let oracle = httparse::Request::new(&mut headers).parse(bytes);
            assert_eq!(oracle.is_ok(), lax, "httparse on {shown:?}: {oracle:?}");
        }
    }

    #[test]
    fn limits() {
        let with_headers = |count| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
        request_of(&with_headers(HEADERS_MAX));
        let error = parse_request(with_headers(HEADERS_MAX + 1).as_bytes()).err().unwrap();
        assert_eq!((error, error.status()), (Malformed::TooManyHeaders, 431));

        let with_bytes = |count: usize| {
            let frame = "GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n";
            frame.replace("A: ", &format!("A: {}", "x".repeat(count - frame.len())))
        };
        request_of(&with_bytes(HEAD_BYTES_MAX));
        let too_long = with_bytes(HEAD_BYTES_MAX + 1);
        let error = parse_request(too_long.as_bytes()).err().unwrap();
        assert_eq!((error, error.status()), (Malformed::HeadTooLong, 431));
        // The verdict falls as soon as that many bytes are there without an end.
        assert_eq!(parse_request(&too_long.as_bytes()[..HEAD_BYTES_MAX]).err(), Some(error));
        assert!(
            parse_request(&too_long.as_bytes()[..HEAD_BYTES_MAX - 1])
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn websocket_upgrades() {
        let text = |fields: &str| format!("GET /ilp/btp HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let whole = text(
            "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ==\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: x, btp\r\nSec-WebSocket-Protocol: y\r\n",
        );
        let upgrade = request_of(&whole).upgrade_websocket().unwrap();
        assert_eq!((upgrade.key, upgrade.version), ("SGVsbG8sIHdvcmxkIQ==", Some(13)));
        assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["x", "btp", "y"]);
        assert!(upgrade.offers("btp") && !upgrade.offers("BTP"));

        let bare = text("Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n");
        let upgrade = request_of(&bare).upgrade_websocket().unwrap();
        assert_eq!((upgrade.key, upgrade.version), ("", None));

        let not = [
            "Upgrade: websocket\r\n",
            "Connection: Upgrade\r\n",
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
        ];
        for fields in not {
            assert!(request_of(&text(fields)).upgrade_websocket().is_none(), "{fields:?}");
        }
        assert!(request_of(&whole.replace("GET", "POST")).upgrade_websocket().is_none());
        assert!(request_of(&whole.replace("/1.1", "/1.0")).upgrade_websocket().is_none());
    }

    #[test]
    fn expectations() {
        let table = [
            ("HTTP/1.1\r\nExpect: 100-Continue", true, false),
            ("HTTP/1.0\r\nExpect: 100-continue", false, false),
            ("HTTP/1.1\r\nExpect: miracles", false, true),
            ("HTTP/1.1", false, false),
        ];
        for (version, expects_continue, expects_unknown) in table {
            let text = format!("PUT / {version}\r\nHost: h\r\n\r\n");
            let head = request_of(&text);
            assert_eq!(head.expects_continue(), expects_continue, "{version:?}");
            assert_eq!(head.expects_unknown(), expects_unknown, "{version:?}");
        }
    }

    #[test]
    fn responses() {
        use Framing::{Chunked, Length, None, UntilClose};
        let table = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", 200, Length(5), true),
            ("HTTP/1.1 200\r\nContent-Length: 5\r\n", 200, Length(5), true),
            ("HTTP/1.1 200 \r\nContent-Length: 0\r\n", 200, Length(0), true),
            (
                "HTTP/1.1 404 Nicht gefunden\u{fc}\r\nContent-Length: 5\r\nConnection: close\r\n",
                404,
                Length(5),
                false,
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", 200, Chunked, true),
            ("HTTP/1.1 200 OK\r\n", 200, UntilClose, false),
            ("HTTP/1.1 100 Continue\r\n", 100, None, true),
            ("HTTP/1.1 204 No Content\r\n", 204, None, true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n", 304, None, true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n", 200, Length(5), false),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n",
                200,
                Length(5),
                true,
            ),
        ];
        for (text, status, framing, keep_alive) in table {
            let text = format!("{text}\r\n");
            let (head, length) = parse_response(text.as_bytes()).unwrap().unwrap();
            assert_eq!(length, text.len());
            assert_eq!(
                (head.status, head.framing(), head.keep_alive()),
                (status, framing, keep_alive),
                "{text:?}"
            );
        }
        let refused = [
            ("HTTP/1.1  200 OK\r\n", Malformed::BadStatusLine),
            ("HTTP/1.1 20 OK\r\n", Malformed::BadStatusLine),
            ("HTTP/1.1 2000 OK\r\n", Malformed::BadStatusLine),
            ("HTTP/1.1 099 OK\r\n", Malformed::BadStatusLine),
            ("HTTP/1.1 200 O\0K\r\n", Malformed::BadStatusLine),
            ("SSH-2.0-OpenSSH\r\n", Malformed::BadStatusLine),
            ("HTTP/2 200 OK\r\n", Malformed::UnsupportedVersion),
            ("HTTP/1.1 200 OK\n", Malformed::BareLf),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                Malformed::BothLengths,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
                Malformed::RepeatedLength,
            ),
        ];
        for (text, expected) in refused {
            assert_eq!(
                parse_response(format!("{text}\r\n").as_bytes()).err(),
                Some(expected),
                "{text:?}"
            );
        }
    }

    /// Text near a head: pieces of real ones in any order, with faults strewn in.
    fn near_heads(first_lines: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop::sample::select(vec![
            "Host: h",
            "host:a:80",
            "Content-Length: 5",
            "content-length: x",
            "Transfer-Encoding: chunked",
            "Connection: close",
            "X:",
            "X-Y_Z: \t a b \t",
            "Accept: */*",
            "bad line",
            " fold",
            "E: \u{e9}",
            "\r\n",
            "\r",
            "\n",
        ]);
        let first = prop::sample::select(first_lines);
        let faults = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
        (first, prop::collection::vec(pieces, 0..6), faults).prop_map(|(first, lines, faults)| {
            let mut bytes = format!("{first}\r\nHost: h\r\n{}\r\n\r\nbody", lines.join("\r\n")).into_bytes();
            for (index, byte) in faults {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            bytes
        })
    }

    fn requests() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            6 => near_heads(&["GET / HTTP/1.1", "POST /ilp?x=y HTTP/1.0", "\r\nPUT http://h/a HTTP/1.1", "OPTIONS * HTTP/1.1"]),
            1 => prop::collection::vec(any::<u8>(), 0..100),
        ]
    }

    fn responses_strategy() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            6 => near_heads(&["HTTP/1.1 200 OK", "HTTP/1.0 404", "HTTP/1.1 100 Continue", "HTTP/1.1 500 "]),
            1 => prop::collection::vec(any::<u8>(), 0..100),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What we accept, httparse accepts, with the same fields and the same end.
        #[test]
        fn httparse_agrees_on_requests(bytes in requests()) {
            if let Ok(Some((head, length))) = parse_request(&bytes) {
                let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
                let mut oracle = httparse::Request::new(&mut headers);
                prop_assert_eq!(oracle.parse(&bytes), Ok(httparse::Status::Complete(length)));
                prop_assert_eq!(oracle.method, Some(head.method_text));
                prop_assert_eq!(oracle.path, Some(head.target));
                prop_assert_eq!(oracle.version, Some(head.version_minor));
                let ours: Vec<_> = head.fields().iter().collect();
                let theirs: Vec<_> = oracle.headers.iter().map(|h| (h.name.as_bytes(), h.value)).collect();
                prop_assert_eq!(ours, theirs);
            }
        }

        #[test]
        fn httparse_agrees_on_responses(bytes in responses_strategy()) {
            if let Ok(Some((head, length))) = parse_response(&bytes) {
                let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
                let mut oracle = httparse::Response::new(&mut headers);
                prop_assert_eq!(oracle.parse(&bytes), Ok(httparse::Status::Complete(length)));
                prop_assert_eq!(oracle.code, Some(head.status));
                prop_assert_eq!(oracle.version, Some(head.version_minor));
                let ours: Vec<_> = head.fields().iter().collect();
                let theirs: Vec<_> = oracle.headers.iter().map(|h| (h.name.as_bytes(), h.value)).collect();
                prop_assert_eq!(ours, theirs);
            }
        }

        /// A verdict on a part is the verdict on the whole; only "not yet" may change.
        #[test]
        fn every_prefix_agrees(bytes in requests()) {
            let whole = parse_request(&bytes).map(|found| found.map(|(_, length)| length));
            for end in 0..bytes.len() {
                match parse_request(&bytes[..end]).map(|found| found.map(|(_, length)| length)) {
                    Ok(None) => {}
                    verdict => prop_assert_eq!(verdict, whole),
                }
            }
        }

        #[test]
        fn every_prefix_of_a_response_agrees(bytes in responses_strategy()) {
            let whole = parse_response(&bytes).map(|found| found.map(|(_, length)| length));
            for end in 0..bytes.len() {
                match parse_response(&bytes[..end]).map(|found| found.map(|(_, length)| length)) {
                    Ok(None) => {}
                    verdict => prop_assert_eq!(verdict, whole),
                }
            }
        }
    }
}
