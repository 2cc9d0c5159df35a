//! Stands between two who speak HTTP, sees how far each exchange has come, and stops it there for a test.
//!
//! Owns the points of an exchange ([`Point`]) and the traps that a test sets at them. A connection that meets a trap stands
//! still, its bytes with it, until the test has decided its fate; all others go on. Requests and answers are read whole
//! and written anew, with the same head and body.
//! Always: nothing of a request is passed before [`Point::Arrived`], and nothing of its answer before [`Point::Answered`].

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use super::http::{Connection, HttpRequest, read_request};
use super::server::Server;
use super::{PATIENCE, free_address};

/// How far an exchange has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The request is here, whole; nothing of it was passed on.
    Arrived,
    /// All of the request was passed on; nothing of an answer was read.
    Forwarded,
    /// The answer is here, whole; nothing of it was passed on.
    Answered,
    /// All of the answer was passed on.
    Passed,
}

/// A connection that stands still. Dropped, it is closed to both sides.
pub struct Held {
    pub request: HttpRequest,
    fate: Sender<()>,
}

impl Held {
    /// It goes on, whoever is left at its ends.
    pub fn go_on(self) {
        // It may have met its end meanwhile.
        let _ = self.fate.send(());
    }

    /// What was not passed on never is.
    pub fn lose(self) {}
}

/// Catches one connection.
pub struct Trap {
    what: String,
    held: Receiver<Held>,
}

impl Trap {
    /// Waits until a connection is at the point.
    pub fn wait(self) -> Held {
        let held = self.held.recv_timeout(PATIENCE);
        held.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {}", self.what))
    }
}

struct Armed {
    point: Point,
    only: String,
    held: Sender<Held>,
}

/// Listens for the one side, asks the other.
pub struct Proxy {
    pub address: SocketAddr,
    name: &'static str,
    shared: Arc<Shared>,
    server: Server,
}

#[derive(Default)]
struct Shared {
    target: Mutex<Option<SocketAddr>>,
    armed: Mutex<Vec<Armed>>,
    requests: Mutex<Vec<HttpRequest>>,
    answers: Mutex<Vec<(HttpRequest, u16)>>,
}

impl Proxy {
    /// `name` says between whom, for a test that fails. It leads to nobody at first.
    pub fn start(name: &'static str) -> Self {
        let shared = Arc::<Shared>::default();
        let serving = Arc::clone(&shared);
        let server = Server::start_at(free_address(), move |near| serving.serve(near));
        Self {
            address: server.address,
            name,
            shared,
            server,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where requests go from now on.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.shared.target.lock().expect("no test panics here") = Some(target);
    }

    /// The next connection at this point, with a request whose target contains `only`, stands still there.
    pub fn stop_at(&self, point: Point, only: &str) -> Trap {
        let (sender, held) = channel();
        self.shared.armed().push(Armed {
            point,
            only: only.to_owned(),
            held: sender,
        });
        Trap {
            what: format!("a request for {only} is {point:?} ({})", self.name),
            held,
        }
    }

    /// Every request so far whose target contains `only`, as it arrived.
    pub fn requests(&self, only: &str) -> Vec<HttpRequest> {
        let requests = self.shared.requests.lock().expect("no test panics here");
        let chosen = requests.iter().filter(|request| request.target.contains(only));
        chosen.cloned().collect()
    }

    /// Every answer so far to a request whose target contains `only`: the request and the status.
    pub fn answers(&self, only: &str) -> Vec<(HttpRequest, u16)> {
        let answers = self.shared.answers.lock().expect("no test panics here");
        let chosen = answers.iter().filter(|(request, _)| request.target.contains(only));
        chosen.cloned().collect()
    }

    /// Nobody listens any more, and every connection is closed. Those that stand still keep doing so.
    pub fn go_down(&mut self) {
        self.server.go_down();
    }

    pub fn come_back(&mut self) {
        self.server.come_back();
    }
}

impl Shared {
    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().expect("no test panics here")
    }

    /// Until one of both sides ends, or the test ends it.
    fn serve(&self, mut near: &TcpStream) {
        // Every answer is one write; without this the kernel may keep it for the next.
        let _ = near.set_nodelay(true);
        let mut buffer = Vec::new();
        while let Some(request) = read_request(near, &mut buffer) {
            self.requests.lock().expect("no test panics here").push(request.clone());
            if !self.meets(Point::Arrived, &request) {
                return;
            }
            let target = *self.target.lock().expect("no test panics here");
            // A connection for each request: whoever is there now gets it, and not who was there before.
            let Some(Ok(mut far)) = target.map(Connection::try_open) else {
                return;
            };
            let first = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
            let bytes = message(first, &request.headers, Some(&request.body));
            if far.send(&bytes).is_err() || !self.meets(Point::Forwarded, &request) {
                return;
            }
            let Ok(answer) = far.answer() else { return };
            let noted = (request.clone(), answer.status);
            self.answers.lock().expect("no test panics here").push(noted);
            if !self.meets(Point::Answered, &request) {
                return;
            }
            let first = format!("HTTP/1.1 {} Answer\r\n", answer.status);
            let body = (answer.status != 204).then_some(answer.body.as_slice());
            let bytes = message(first, &answer.headers, body);
            if near.write_all(&bytes).is_err() || !self.meets(Point::Passed, &request) {
                return;
            }
        }
    }

    /// Whether the exchange goes on from here; if a trap is set here, not before the test says so.
    fn meets(&self, point: Point, request: &HttpRequest) -> bool {
        let is_for_us = |armed: &Armed| armed.point == point && request.target.contains(&armed.only);
        let trap = {
            let mut armed = self.armed();
            let found = armed.iter().position(is_for_us);
            found.map(|at| armed.remove(at))
        };
        let Some(trap) = trap else { return true };
        let (fate, decided) = channel();
        let held = Held {
            request: request.clone(),
            fate,
        };
        // A trap that nobody looks after any more catches nothing.
        trap.held.send(held).is_err() || decided.recv().is_ok()
    }
}

/// A head with the length of the body in it, and the body.
fn message(first_line: String, headers: &[(String, String)], body: Option<&[u8]>) -> Vec<u8> {
    let mut head = first_line;
    for (name, value) in headers {
        if !matches!(name.as_str(), "content-length" | "transfer-encoding") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    if let Some(body) = body {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}
