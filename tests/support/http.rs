//! HTTP/1.1 as a careful client and as a rude one: whole answers are read, and any bytes can be sent.
//!
//! [`Connection`] is one socket. [`Api`] is the operator's curl. Heads of answers are read with httparse.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;
use super::packet::{Prepare, Reply};

/// One answer of the node.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpAnswer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(given, _)| given == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The packet in a 200.
    pub fn reply(&self) -> Reply {
        assert_eq!(
            self.status,
            200,
            "every ILP outcome is a 200: {}",
            String::from_utf8_lossy(&self.body)
        );
        Reply::decode(&self.body).expect("the body is a Fulfill or a Reject")
    }
}

/// One connection to the node, with what was received and not read yet.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap_or_else(|error| panic!("connecting to {address}: {error}"))
    }

    pub fn try_open(address: SocketAddr) -> io::Result<Self> {
        Self::from_stream(TcpStream::connect_timeout(&address, PATIENCE)?)
    }

    /// From another address of this machine: Linux accepts any of 127.0.0.0/8 as a source.
    pub fn open_from(source: Ipv4Addr, address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket
            .bind(&SocketAddr::new(IpAddr::V4(source), 0).into())
            .expect("a loopback address");
        socket
            .connect_timeout(&address.into(), PATIENCE)
            .unwrap_or_else(|error| panic!("connecting from {source} to {address}: {error}"));
        Self::from_stream(socket.into()).expect("a TCP socket")
    }

    pub fn from_stream(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    pub fn set_read_timeout(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("a limit is not zero");
    }

    pub fn set_write_timeout(&self, limit: Duration) {
        self.stream.set_write_timeout(Some(limit)).expect("a limit is not zero");
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Closes our half: the peer reads an end, we may go on reading.
    pub fn end_sending(&self) {
        self.stream.shutdown(Shutdown::Write).expect("the socket is open");
    }

    /// Reads one answer. An error of kind `UnexpectedEof` means the node closed before a whole answer.
    pub fn answer(&mut self) -> io::Result<HttpAnswer> {
        let mut answer = self.head_of_answer()?;
        answer.body = self.body(&answer)?;
        Ok(answer)
    }

    /// Reads one answer that has no body, whatever its head says: the one to HEAD.
    pub fn head_of_answer(&mut self) -> io::Result<HttpAnswer> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut head = httparse::Response::new(&mut headers);
            let parsed = head
                .parse(&self.buffer)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            if let httparse::Status::Complete(head_length) = parsed {
                let status = head.code.expect("a complete head has a status");
                let headers: Vec<(String, String)> = head
                    .headers
                    .iter()
                    .map(|header| {
                        (
                            header.name.to_ascii_lowercase(),
                            String::from_utf8_lossy(header.value).into_owned(),
                        )
                    })
                    .collect();
                self.buffer.drain(..head_length);
                return Ok(HttpAnswer {
                    status,
                    headers,
                    body: Vec::new(),
                });
            }
            self.receive()?;
        }
    }

    fn body(&mut self, answer: &HttpAnswer) -> io::Result<Vec<u8>> {
        if answer.status < 200 || answer.status == 204 {
            return Ok(Vec::new());
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            loop {
                let line = self.line()?;
                let size = usize::from_str_radix(line.trim(), 16)
                    .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                body.extend(self.take(size)?);
                self.line()?;
                if size == 0 {
                    return Ok(body);
                }
            }
        }
        let length = answer.header("content-length").unwrap_or("0");
        let length = length
            .parse()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        self.take(length)
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end + 2)?;
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.receive()?;
        }
    }

    /// Takes exactly `count` bytes, for answers that are not HTTP.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.receive()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes)? {
            0 => Err(io::Error::from(ErrorKind::UnexpectedEof)),
            count => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }

    /// True if the node closes within `limit`; whatever it still sends is dropped.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        let begun = Instant::now();
        while let Some(left) = limit.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            self.set_read_timeout(left);
            match self.receive() {
                Ok(()) => self.buffer.clear(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return false;
                }
                Err(_) => return true,
            }
        }
        false
    }

    /// One request with a Content-Length, and its answer.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<HttpAnswer> {
        self.send(&request_bytes(method, target, headers, body))?;
        match method {
            "HEAD" => self.head_of_answer(),
            _ => self.answer(),
        }
    }

    /// One Prepare over ILP-over-HTTP, and what came back.
    pub fn post(&mut self, target: &str, token: &str, prepare: &Prepare) -> io::Result<HttpAnswer> {
        self.request(
            "POST",
            target,
            &[("Authorization", &format!("Bearer {token}"))],
            &prepare.encode(),
        )
    }
}

/// A request as a server of the tests reads it.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The next request of a connection, `buffer` being what was received of it; `None` when the connection ends, or does
/// not speak HTTP with a Content-Length.
pub fn read_request(mut stream: &TcpStream, buffer: &mut Vec<u8>) -> Option<HttpRequest> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut headers);
        let parsed = head.parse(buffer).ok()?;
        let lengths = parsed.is_complete().then(|| {
            let length = head
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length = length.map_or(Some(0), |header| std::str::from_utf8(header.value).ok()?.parse().ok());
            Some((parsed.unwrap(), length?))
        });
        if let Some(lengths) = lengths {
            let (head_length, body_length): (usize, usize) = lengths?;
            if buffer.len() >= head_length + body_length {
                let request = HttpRequest {
                    method: head.method?.to_owned(),
                    target: head.path?.to_owned(),
                    headers: head
                        .headers
                        .iter()
                        .map(|header| {
                            let value = String::from_utf8_lossy(header.value).into_owned();
                            (header.name.to_ascii_lowercase(), value)
                        })
                        .collect(),
                    body: buffer[head_length..head_length + body_length].to_vec(),
                };
                buffer.drain(..head_length + body_length);
                return Some(request);
            }
        }
        let mut bytes = [0; 16 * 1024];
        match stream.read(&mut bytes) {
            Ok(count) if count > 0 => buffer.extend_from_slice(&bytes[..count]),
            _ => return None,
        }
    }
}

/// A request as any HTTP client writes it.
pub fn request_bytes(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "{method} {target} HTTP/1.1\r\nHost: node\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    request
}

/// A body in chunks of `size` bytes, RFC 9112 section 7.1.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    for chunk in body.chunks(size) {
        encoded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(b"0\r\n\r\n");
    encoded
}

/// The operator: every call on a connection of its own, with the admin token.
#[derive(Clone, Debug)]
pub struct Api {
    pub address: SocketAddr,
    pub token: String,
}

impl Api {
    pub fn call(&self, method: &str, target: &str, body: Option<&Value>) -> HttpAnswer {
        let authorization = format!("Bearer {}", self.token);
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut headers = vec![("Authorization", authorization.as_str()), ("Connection", "close")];
        if !body.is_empty() {
            headers.push(("Content-Type", "application/json"));
        }
        let mut connection = Connection::open(self.address);
        // Deleting an account may wait 30 s for its packets.
        connection.set_read_timeout(Duration::from_secs(45));
        connection
            .request(method, target, &headers, body.as_bytes())
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// A call that must be answered with 200, and its JSON.
    pub fn ok(&self, method: &str, target: &str, body: Option<&Value>) -> Value {
        let answer = self.call(method, target, body);
        assert_eq!(
            answer.status,
            200,
            "{method} {target}: {}",
            String::from_utf8_lossy(&answer.body)
        );
        answer.json()
    }

    pub fn get(&self, target: &str) -> Value {
        self.ok("GET", target, None)
    }

    pub fn put(&self, target: &str, body: &Value) -> Value {
        self.ok("PUT", target, Some(body))
    }

    pub fn create_account(&self, account: &Value) -> Value {
        self.ok("POST", "/accounts", Some(account))
    }

    /// What the node owes the holder, less what is held.
    pub fn balance(&self, username: &str) -> i128 {
        whole(&self.get(&format!("/accounts/{username}/balance"))["balance"])
    }

    pub fn held(&self, username: &str) -> i128 {
        whole(&self.get(&format!("/accounts/{username}/balance"))["held"])
    }

    /// Panics unless the book adds up, per asset and as a whole; gives the audit.
    pub fn audit(&self) -> Value {
        /// Read for themselves: sums may have more digits than a `Value` keeps.
        #[derive(serde::Deserialize)]
        struct Audit {
            assets: Vec<Sums>,
        }
        #[derive(serde::Deserialize)]
        struct Sums {
            balances: i128,
            position: i128,
        }
        let answer = self.call("GET", "/ledger/audit", None);
        let audit = answer.json();
        assert_eq!(audit["adds_up"], true, "the book does not add up: {audit}");
        let exact: Audit = serde_json::from_slice(&answer.body).expect("sums of assets");
        for (asset, sums) in audit["assets"].as_array().expect("assets").iter().zip(exact.assets) {
            assert_eq!(asset["adds_up"], true, "{asset}");
            assert_eq!(sums.balances + sums.position, 0, "{asset}");
        }
        audit
    }
}

/// A JSON integer of any size: as a number or as text.
pub fn whole(value: &Value) -> i128 {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().unwrap_or_else(|_| panic!("not an integer: {value}"))
}
