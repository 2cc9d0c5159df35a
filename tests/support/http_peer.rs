//! A peer with an ILP-over-HTTP endpoint that answers by a [`Rule`]: a thread per connection, heads read with httparse.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::http::read_request;
use super::packet::Prepare;
use super::rule::{Answer, Rule};

/// Serves until it is dropped.
pub struct HttpPeer {
    pub rule: Rule,
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    connections: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
    authorization: Mutex<Option<String>>,
    requests: AtomicUsize,
}

impl HttpPeer {
    pub fn start(rule: Rule) -> Self {
        Self::start_at(super::free_address(), rule)
    }

    pub fn start_at(address: SocketAddr, rule: Rule) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("binding {address}: {error}"));
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::<Shared>::default();
        let peer = Self {
            rule: rule.clone(),
            address,
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                if let Ok(clone) = stream.try_clone() {
                    shared.open.lock().expect("no test panics here").push(clone);
                }
                let (shared, rule) = (shared.clone(), rule.clone());
                std::thread::spawn(move || {
                    serve(&stream, &shared, &rule);
                    // The list of open connections has a duplicate, so dropping the stream would not close it.
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        peer
    }

    pub fn url(&self) -> String {
        format!("http://{}/ilp", self.address)
    }

    /// How many connections were opened so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The `Authorization` of the last request.
    pub fn authorization(&self) -> Option<String> {
        self.shared.authorization.lock().expect("no test panics here").clone()
    }

    /// Closes every connection that is open now; new ones are served.
    pub fn close_connections(&self) {
        for stream in self.shared.open.lock().expect("no test panics here").drain(..) {
            // A connection that is closed already is what we want.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for HttpPeer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees `stopped` and gives the port back.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        self.close_connections();
    }
}

fn serve(mut stream: &TcpStream, shared: &Shared, rule: &Rule) {
    // Every answer is one write; without this the kernel may keep it for the next.
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    while let Some(request) = read_request(stream, &mut buffer) {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        *shared.authorization.lock().expect("no test panics here") = request.header("authorization").map(str::to_owned);
        let Some(prepare) = Prepare::decode(&request.body) else {
            let _ = respond(stream, 400, b"");
            continue;
        };
        let mut answer = rule.decide(&prepare);
        while let Answer::After(time, then) = answer {
            std::thread::sleep(time);
            answer = *then;
        }
        let written = match answer {
            Answer::Fulfill => {
                rule.note_fulfilled(&prepare);
                respond(stream, 200, &prepare.fulfilled().encode())
            }
            Answer::Reply(reply) => respond(stream, 200, &reply.encode()),
            Answer::Bytes(bytes) => respond(stream, 200, &bytes),
            Answer::Raw(bytes) => stream.write_all(&bytes),
            Answer::Status(status) => respond(stream, status, b""),
            Answer::Nothing => {
                // Holds the connection open until the other side gives up.
                let _ = stream.read(&mut [0]);
                return;
            }
            Answer::Close | Answer::After(..) => return,
        };
        if written.is_err() {
            return;
        }
    }
}

fn respond(mut stream: &TcpStream, status: u16, body: &[u8]) -> std::io::Result<()> {
    let mut response = format!(
        "HTTP/1.1 {status} Answer\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    response.extend_from_slice(body);
    stream.write_all(&response)
}
