//! A provider of exchange rates on this machine, which answers each path as it is told to.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a request to a path is answered with.
#[derive(Clone, Debug)]
pub enum Reply {
    Json(String),
    /// One after the other, and again from the first.
    InTurn(Vec<String>),
    Status(u16),
    /// To this place.
    Redirect(String),
    /// These bytes, and the end of the connection.
    Raw(Vec<u8>),
    /// Nothing, but the connection stays open as long as the client likes.
    Silence,
}

impl Reply {
    pub fn json(text: &str) -> Self {
        Self::Json(text.to_owned())
    }
}

/// Serves until the process ends.
pub struct RateServer {
    address: SocketAddr,
    play: Arc<Mutex<Play>>,
}

#[derive(Default)]
struct Play {
    replies: HashMap<String, Reply>,
    /// The head of every request, in the order in which they came.
    heads: Vec<String>,
}

impl RateServer {
    /// Every path is 404 until [`Self::play`].
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let play: Arc<Mutex<Play>> = Arc::default();
        let shared = play.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let play = shared.clone();
                std::thread::spawn(move || serve(stream, &play));
            }
        });
        Self { address, play }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on requests to this path, with its query, are answered like this.
    pub fn play(&self, path: &str, reply: Reply) {
        self.lock().replies.insert(path.to_owned(), reply);
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.lock().heads.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Play> {
        self.play.lock().expect("no test panics here")
    }
}

/// One request per connection.
fn serve(mut stream: TcpStream, play: &Mutex<Play>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let reply = {
        let mut play = play.lock().expect("no test panics here");
        play.heads.push(head);
        match play.replies.get_mut(&path) {
            Some(Reply::InTurn(texts)) => {
                texts.rotate_left(1);
                Reply::Json(texts[texts.len() - 1].clone())
            }
            Some(reply) => reply.clone(),
            None => Reply::Status(404),
        }
    };
    let with_body = |status: &str, headers: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    };
    let bytes = match reply {
        Reply::Json(text) => with_body("200 OK", "Content-Type: application/json\r\n", &text),
        Reply::InTurn(_) => unreachable!("one of them was chosen"),
        Reply::Status(status) => with_body(&format!("{status} No"), "", "no"),
        Reply::Redirect(location) => with_body("302 Found", &format!("Location: {location}\r\n"), ""),
        Reply::Raw(bytes) => bytes,
        Reply::Silence => {
            // Until the client goes.
            let _ = stream.read(&mut [0]);
            return;
        }
    };
    // The client may have seen enough.
    let _ = stream.write_all(&bytes);
}
