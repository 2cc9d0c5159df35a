//! A server of the test's own that can go down and come back at the same address.
//!
//! Owns the listening socket and the open connections, one thread each. Leaves what is said on a connection to whoever
//! started it.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

type Serve = dyn Fn(&TcpStream) + Send + Sync;

/// Gone when it is dropped, with all connections.
pub struct Server {
    pub address: SocketAddr,
    serve: Arc<Serve>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    listening: Option<Listening>,
}

struct Listening {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// `serve` has a connection until it returns, and then the connection is closed.
    pub fn start_at(address: SocketAddr, serve: impl Fn(&TcpStream) + Send + Sync + 'static) -> Self {
        let mut server = Self {
            address,
            serve: Arc::new(serve),
            open: Arc::default(),
            listening: None,
        };
        server.come_back();
        server
    }

    /// Nobody listens any more, and every connection is closed. Whoever serves one may go on with what it does.
    pub fn go_down(&mut self) {
        let listening = self.listening.take().expect("it is up");
        listening.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees `stopped` and gives the port back.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        listening.thread.join().expect("the accepting thread does not panic");
        for stream in self.open.lock().expect("no test panics here").drain(..) {
            // A connection that is closed already is what we want.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn come_back(&mut self) {
        assert!(self.listening.is_none(), "it is up");
        let listener =
            TcpListener::bind(self.address).unwrap_or_else(|error| panic!("binding {}: {error}", self.address));
        let stopped = Arc::<AtomicBool>::default();
        let (serve, open, is_stopped) = (Arc::clone(&self.serve), Arc::clone(&self.open), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if let Ok(clone) = stream.try_clone() {
                    open.lock().expect("no test panics here").push(clone);
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    serve(&stream);
                    // The list of open connections has a duplicate, so dropping the stream would not close it.
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        self.listening = Some(Listening { stopped, thread });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.listening.is_some() {
            self.go_down();
        }
    }
}
