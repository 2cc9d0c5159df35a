//! A peer that speaks BTP 2.0 (RFC 23) over tungstenite's WebSocket: as client of the node and as server of its client.
//!
//! Speaks either dialect: the conformant one (a Prepare in a MESSAGE, its reply in a RESPONSE), or the inverted one
//! of interledger-rs 1.0 (a Prepare in a RESPONSE, its reply in a MESSAGE); reads both. One thread reads; whoever has
//! something to send takes the writer's lock.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

use super::packet::{Cursor, Prepare, Reply, put_octets};
use super::rule::{Answer, Rule};
use super::{PATIENCE, eventually};

pub const RESPONSE: u8 = 1;
pub const ERROR: u8 = 2;
pub const MESSAGE: u8 = 6;
pub const TRANSFER: u8 = 7;

const OCTET_STREAM: u8 = 0;
const TEXT_PLAIN: u8 = 1;

/// One BTP frame. Of an ERROR only the code is kept, of a TRANSFER the amount is dropped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub kind: u8,
    pub request_id: u32,
    pub error_code: Option<String>,
    /// Name, content type, data.
    pub entries: Vec<(String, u8, Vec<u8>)>,
}

impl Frame {
    pub fn new(kind: u8, request_id: u32) -> Self {
        Self {
            kind,
            request_id,
            error_code: None,
            entries: Vec::new(),
        }
    }

    pub fn ilp(kind: u8, request_id: u32, packet: &[u8]) -> Self {
        Self::new(kind, request_id).with("ilp", OCTET_STREAM, packet)
    }

    pub fn error(request_id: u32, code: &str) -> Self {
        Self {
            error_code: Some(code.to_owned()),
            ..Self::new(ERROR, request_id)
        }
    }

    pub fn auth(request_id: u32, username: Option<&str>, token: &str) -> Self {
        let frame = Self::new(MESSAGE, request_id).with("auth", OCTET_STREAM, b"");
        let frame = match username {
            Some(username) => frame.with("auth_username", TEXT_PLAIN, username.as_bytes()),
            None => frame,
        };
        frame.with("auth_token", TEXT_PLAIN, token.as_bytes())
    }

    pub fn with(mut self, name: &str, content_type: u8, data: &[u8]) -> Self {
        self.entries.push((name.to_owned(), content_type, data.to_vec()));
        self
    }

    pub fn entry(&self, name: &str) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|(given, ..)| given == name)
            .map(|(.., data)| data.as_slice())
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        if let Some(code) = &self.error_code {
            body.extend_from_slice(code.as_bytes());
            put_octets(&mut body, b"TestError");
            put_octets(&mut body, b"20260105101112.131Z");
            put_octets(&mut body, b"");
        }
        if self.kind == TRANSFER {
            body.extend_from_slice(&7_u64.to_be_bytes());
        }
        body.extend_from_slice(&[1, u8::try_from(self.entries.len()).expect("a few entries")]);
        for (name, content_type, data) in &self.entries {
            put_octets(&mut body, name.as_bytes());
            body.push(*content_type);
            put_octets(&mut body, data);
        }
        let mut frame = vec![self.kind];
        frame.extend_from_slice(&self.request_id.to_be_bytes());
        put_octets(&mut frame, &body);
        frame
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let kind = cursor.take(1)?[0];
        let request_id = u32::from_be_bytes(cursor.take(4)?.try_into().ok()?);
        let mut body = Cursor(cursor.octets()?);
        let mut frame = Self::new(kind, request_id);
        match kind {
            ERROR => {
                frame.error_code = Some(String::from_utf8(body.take(3)?.to_vec()).ok()?);
                for _name_triggered_at_data in 0..3 {
                    body.octets()?;
                }
            }
            TRANSFER => drop(body.take(8)?),
            RESPONSE | MESSAGE => {}
            _ => return None,
        }
        let count = body.octets()?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        for _ in 0..count {
            let name = String::from_utf8(body.octets()?.to_vec()).ok()?;
            let content_type = body.take(1)?[0];
            frame.entries.push((name, content_type, body.octets()?.to_vec()));
        }
        Some(frame)
    }
}

/// Which BTP types a peer writes. Both are read by every peer of these tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    Conformant,
    /// As interledger-rs 1.0 writes: request and reply types swapped.
    Inverted,
}

impl Dialect {
    fn request(self) -> u8 {
        if self == Self::Conformant { MESSAGE } else { RESPONSE }
    }

    fn reply(self) -> u8 {
        if self == Self::Conformant { RESPONSE } else { MESSAGE }
    }
}

/// What came back for a frame of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BtpReply {
    Packet(Reply),
    /// An ERROR frame's code.
    Error(String),
    /// A RESPONSE without a packet in it.
    Empty,
}

/// One authenticated connection. Clones share it; it is closed when the last one is dropped or by [`Self::close`].
#[derive(Clone)]
pub struct BtpPeer {
    pub rule: Rule,
    session: Arc<Session>,
}

struct Session {
    dialect: Dialect,
    stream: TcpStream,
    writer: Mutex<WebSocket<TcpStream>>,
    pending: Mutex<HashMap<u32, Sender<BtpReply>>>,
    next_request_id: AtomicU32,
    closed: AtomicBool,
    /// What the node sent as a MESSAGE or TRANSFER that is no packet.
    other: Mutex<Vec<Frame>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Ends the reading thread's socket, too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A WebSocket to the node that was not authenticated: the rude tests write what they like.
pub fn upgrade(address: SocketAddr, path: &str) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the node accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
    stream.set_nodelay(true).expect("a TCP socket");
    let (socket, _) = tungstenite::client(format!("ws://{address}{path}"), stream).expect("the node upgrades");
    socket
}

/// The next BTP frame on a WebSocket; `None` when it is closed.
pub fn next_frame<S: Read + Write>(socket: &mut WebSocket<S>) -> Option<Frame> {
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => {
                return Some(Frame::decode(&bytes).expect("the node sends valid BTP"));
            }
            Ok(Message::Close(_)) => return None,
            Ok(_) => {}
            Err(tungstenite::Error::Io(error)) if is_timeout(&error) => {
                panic!("the node is silent")
            }
            Err(_) => return None,
        }
    }
}

/// What came back for a Prepare that was started: a packet, and in time.
pub fn packet_of(reply: &Receiver<BtpReply>) -> Reply {
    match reply.recv_timeout(PATIENCE) {
        Ok(BtpReply::Packet(reply)) => reply,
        other => panic!("expected a Fulfill or a Reject, got {other:?}"),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl BtpPeer {
    /// Connects to the node as the account of `path`, in the conformant dialect. Panics if the node refuses.
    pub fn connect(address: SocketAddr, username: &str, rule: Rule) -> Self {
        let path = format!("/accounts/{username}/ilp/btp");
        Self::connect_as(
            address,
            &path,
            None,
            &format!("{username}-btp"),
            rule,
            Dialect::Conformant,
        )
        .unwrap_or_else(|refusal| panic!("{username} was refused: {refusal}"))
    }

    /// Connects and authenticates; the error is the code of the ERROR frame, or "closed".
    pub fn connect_as(
        address: SocketAddr,
        path: &str,
        username: Option<&str>,
        token: &str,
        rule: Rule,
        dialect: Dialect,
    ) -> Result<Self, String> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| error.to_string())?;
        let half = ReadHalf::new(&stream);
        let muted = half.muted.clone();
        let (mut socket, _) =
            tungstenite::client(format!("ws://{address}{path}"), half).map_err(|error| error.to_string())?;
        let auth = Frame::auth(1, username, token);
        socket
            .send(Message::binary(auth.encode()))
            .map_err(|error| error.to_string())?;
        match next_frame(&mut socket) {
            Some(frame) if frame.kind == RESPONSE && frame.request_id == 1 => {}
            Some(Frame {
                error_code: Some(code), ..
            }) => return Err(code),
            Some(frame) => return Err(format!("unexpected {frame:?}")),
            None => return Err("closed".to_owned()),
        }
        muted.store(true, Ordering::SeqCst);
        Ok(Self::run(stream, socket, Role::Client, rule, dialect))
    }

    fn run(stream: TcpStream, reader: WebSocket<ReadHalf>, role: Role, rule: Rule, dialect: Dialect) -> Self {
        stream.set_read_timeout(None).expect("no limit is a limit");
        let write_half = stream.try_clone().expect("a socket can be duplicated");
        let session = Arc::new(Session {
            dialect,
            stream,
            writer: Mutex::new(WebSocket::from_raw_socket(write_half, role, None)),
            pending: Mutex::default(),
            next_request_id: AtomicU32::new(2),
            closed: AtomicBool::new(false),
            other: Mutex::default(),
        });
        let peer = Self {
            rule: rule.clone(),
            session: session.clone(),
        };
        // The thread must not keep the session alive, or a dropped peer would stay connected.
        let weak = Arc::downgrade(&session);
        std::thread::spawn(move || {
            let mut reader = reader;
            while let Ok(message) = reader.read() {
                let Some(session) = weak.upgrade() else {
                    return;
                };
                match message {
                    Message::Binary(bytes) => handle_frame(&session, &rule, &bytes),
                    Message::Ping(payload) => drop(session.send(Message::Pong(payload))),
                    Message::Close(_) => break,
                    _ => {}
                }
            }
            if let Some(session) = weak.upgrade() {
                session.end();
            }
        });
        peer
    }

    /// Sends a Prepare; its reply comes through the channel, which closes when the connection does.
    pub fn start_prepare(&self, prepare: &Prepare) -> Receiver<BtpReply> {
        let id = self.session.next_request_id.fetch_add(1, Ordering::SeqCst);
        let (sender, receiver) = mpsc::channel();
        self.session
            .pending
            .lock()
            .expect("no test panics here")
            .insert(id, sender);
        let frame = Frame::ilp(self.session.dialect.request(), id, &prepare.encode());
        if self.session.closed.load(Ordering::SeqCst) || self.send_frame(&frame).is_err() {
            self.session.pending.lock().expect("no test panics here").remove(&id);
        }
        receiver
    }

    /// Sends a Prepare and waits for the packet that comes back.
    pub fn prepare(&self, prepare: &Prepare) -> Reply {
        packet_of(&self.start_prepare(prepare))
    }

    /// Sends a frame that waits for an answer: a RESPONSE or an ERROR with its id.
    pub fn request(&self, frame: &Frame) -> BtpReply {
        let (sender, receiver) = mpsc::channel();
        self.session
            .pending
            .lock()
            .expect("no test panics here")
            .insert(frame.request_id, sender);
        self.send_frame(frame).expect("the connection is open");
        receiver.recv_timeout(PATIENCE).expect("every request gets one answer")
    }

    pub fn send_frame(&self, frame: &Frame) -> io::Result<()> {
        self.send(Message::binary(frame.encode()))
    }

    pub fn send(&self, message: Message) -> io::Result<()> {
        self.session.send(message)
    }

    pub fn is_closed(&self) -> bool {
        self.session.closed.load(Ordering::SeqCst)
    }

    pub fn expect_closed(&self) {
        eventually("the node closes the BTP connection", || self.is_closed().then_some(()));
    }

    /// Drops the TCP connection without a close frame, like a peer that crashed.
    pub fn close(&self) {
        // Closed already is as good.
        let _ = self.session.stream.shutdown(Shutdown::Both);
    }

    /// Frames of the node that were requests, but no Prepares.
    pub fn other_requests(&self) -> Vec<Frame> {
        self.session.other.lock().expect("no test panics here").clone()
    }
}

impl Session {
    fn send(&self, message: Message) -> io::Result<()> {
        let mut writer = self.writer.lock().map_err(|_| io::ErrorKind::Other)?;
        writer.send(message).map_err(io::Error::other)
    }

    fn send_frame(&self, frame: &Frame) {
        // The connection may be gone, which the reading thread notices.
        let _ = self.send(Message::binary(frame.encode()));
    }

    fn end(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Whoever waits learns it at once.
        self.pending.lock().expect("no test panics here").clear();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn complete(&self, request_id: u32, reply: BtpReply) {
        if let Some(waiting) = self.pending.lock().expect("no test panics here").remove(&request_id) {
            // The waiting side may have given up.
            let _ = waiting.send(reply);
        }
    }
}

fn handle_frame(session: &Arc<Session>, rule: &Rule, bytes: &[u8]) {
    let frame = Frame::decode(bytes).expect("the node sends valid BTP");
    if let Some(code) = frame.error_code {
        return session.complete(frame.request_id, BtpReply::Error(code));
    }
    let Some(packet) = frame.entry("ilp") else {
        if frame.kind == RESPONSE {
            session.complete(frame.request_id, BtpReply::Empty);
        } else {
            session.other.lock().expect("no test panics here").push(frame);
        }
        return;
    };
    if let Some(reply) = Reply::decode(packet) {
        assert_eq!(frame.kind, RESPONSE, "the node answers in RESPONSE");
        return session.complete(frame.request_id, BtpReply::Packet(reply));
    }
    let prepare = Prepare::decode(packet).expect("the node sends valid packets");
    assert_eq!(frame.kind, MESSAGE, "the node asks in MESSAGE");
    match rule.decide(&prepare) {
        Answer::After(time, then) => {
            let (session, rule) = (session.clone(), rule.clone());
            std::thread::spawn(move || {
                let (mut time, mut then) = (time, *then);
                while let Answer::After(more, next) = then {
                    (time, then) = (time + more, *next);
                }
                std::thread::sleep(time);
                answer(&session, &rule, &prepare, frame.request_id, then);
            });
        }
        at_once => answer(session, rule, &prepare, frame.request_id, at_once),
    }
}

fn answer(session: &Session, rule: &Rule, prepare: &Prepare, request_id: u32, answer: Answer) {
    let kind = session.dialect.reply();
    match answer {
        Answer::Fulfill => {
            rule.note_fulfilled(prepare);
            session.send_frame(&Frame::ilp(kind, request_id, &prepare.fulfilled().encode()));
        }
        Answer::Reply(reply) => session.send_frame(&Frame::ilp(kind, request_id, &reply.encode())),
        Answer::Bytes(bytes) => session.send_frame(&Frame::ilp(RESPONSE, request_id, &bytes)),
        // The connection may be gone, which the reading thread notices.
        Answer::Raw(bytes) => drop(session.send(Message::binary(bytes))),
        Answer::Status(_) => session.send_frame(&Frame::error(request_id, "T00")),
        Answer::Close => session.end(),
        Answer::Nothing | Answer::After(..) => {}
    }
}

/// The reading side's socket. After the handshake it writes nothing, because frames are written whole by the writer;
/// pongs are among them.
struct ReadHalf {
    stream: TcpStream,
    muted: Arc<AtomicBool>,
}

impl ReadHalf {
    fn new(stream: &TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
        Self {
            stream: stream.try_clone().expect("a socket can be duplicated"),
            muted: Arc::default(),
        }
    }
}

impl Read for ReadHalf {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for ReadHalf {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.muted.load(Ordering::SeqCst) {
            Ok(bytes.len())
        } else {
            self.stream.write(bytes)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the node said when it connected to a [`BtpServer`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Login {
    pub path: String,
    pub username: Option<String>,
    pub token: String,
    /// The client offered the subprotocol `btp`.
    pub subprotocol: Option<String>,
}

/// A peer that listens; the node dials it. Stops listening and closes everything when dropped.
pub struct BtpServer {
    pub rule: Rule,
    pub address: SocketAddr,
    shared: Arc<ServerShared>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct ServerShared {
    token: String,
    dialect: Dialect,
    stopped: AtomicBool,
    peers: Mutex<Vec<BtpPeer>>,
    logins: Mutex<Vec<Login>>,
}

impl BtpServer {
    /// Accepts clients that know `token`.
    pub fn start(token: &str, rule: Rule) -> Self {
        Self::start_at(super::free_address(), token, rule, Dialect::Conformant)
    }

    pub fn start_at(address: SocketAddr, token: &str, rule: Rule, dialect: Dialect) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("binding {address}: {error}"));
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(ServerShared {
            token: token.to_owned(),
            dialect,
            stopped: AtomicBool::new(false),
            peers: Mutex::default(),
            logins: Mutex::default(),
        });
        let accepting = std::thread::spawn({
            let (shared, rule) = (shared.clone(), rule.clone());
            move || {
                for stream in listener.incoming() {
                    if shared.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let (shared, rule) = (shared.clone(), rule.clone());
                    std::thread::spawn(move || welcome(stream, &shared, rule));
                }
            }
        });
        Self {
            rule,
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}/btp", self.address)
    }

    /// The newest authenticated connection of the node; waits for the first.
    pub fn peer(&self) -> BtpPeer {
        eventually("the node dials its peer", || {
            let peers = self.shared.peers.lock().expect("no test panics here");
            peers.last().filter(|peer| !peer.is_closed()).cloned()
        })
    }

    /// Every attempt to authenticate so far.
    pub fn logins(&self) -> Vec<Login> {
        self.shared.logins.lock().expect("no test panics here").clone()
    }
}

impl Drop for BtpServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees `stopped`; waited for, so the port is free afterwards.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        if let Ok(mut peers) = self.shared.peers.lock() {
            peers.drain(..).for_each(|peer| peer.close());
        }
    }
}

/// The server's half of the handshakes of WebSocket and of BTP; `None` if the client breaks off or is refused.
#[allow(clippy::result_large_err)] // the callback's signature is tungstenite's
fn welcome(stream: TcpStream, shared: &ServerShared, rule: Rule) -> Option<()> {
    let half = ReadHalf::new(&stream);
    let muted = half.muted.clone();
    let (mut path, mut subprotocol) = (String::new(), None);
    let mut socket = tungstenite::accept_hdr(half, |request: &Request, mut response: Response| {
        path = request.uri().path().to_owned();
        if let Some(offered) = request.headers().get("sec-websocket-protocol") {
            subprotocol = offered.to_str().ok().map(str::to_owned);
            response.headers_mut().insert("sec-websocket-protocol", offered.clone());
        }
        Ok(response)
    })
    .ok()?;
    let auth = next_frame(&mut socket)?;
    let text = |name: &str| auth.entry(name).map(|data| String::from_utf8_lossy(data).into_owned());
    let login = Login {
        path,
        username: text("auth_username"),
        token: text("auth_token")?,
        subprotocol,
    };
    let accepted = login.token == shared.token && auth.entry("auth").is_some() && auth.kind == MESSAGE;
    shared.logins.lock().expect("no test panics here").push(login);
    let answer = if accepted {
        Frame::new(RESPONSE, auth.request_id)
    } else {
        Frame::error(auth.request_id, "F00")
    };
    socket.send(Message::binary(answer.encode())).ok()?;
    if accepted {
        muted.store(true, Ordering::SeqCst);
        let peer = BtpPeer::run(stream, socket, Role::Server, rule, shared.dialect);
        shared.peers.lock().expect("no test panics here").push(peer);
    }
    Some(())
}
