//! Sockets for one thread: a readiness queue (epoll, edge-triggered) and streams with one buffer each way.
//! Owns buffers and partial writes; leaves the meaning of bytes to others. Always: a stream that was
//! reported is read until the kernel has no more for it, and takes no more than its buffer holds.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Most readiness events taken in one turn.
const EVENTS_MAX: usize = 512;
/// Output a stream collects before its owner should stop producing more.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Longest wait for one read or write of a blocking stream.
const BLOCKING_MAX: Duration = Duration::from_secs(20);

/// The readiness queue: which sockets have bytes, or room for them.
pub struct Readiness {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Readiness {
    pub fn new() -> io::Result<Readiness> {
        // SAFETY: takes no pointers; the new descriptor is owned by nobody else.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Readiness {
            epoll,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX],
        })
    }

    /// Reports `socket` as `token` whenever it becomes readable or writable, until it is closed.
    pub fn watch(&self, socket: &impl AsRawFd, token: usize) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event {
            events: interest as u32,
            u64: token as u64,
        };
        // SAFETY: `event` lives through the call, which copies it.
        let result = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_raw_fd(),
                &mut event,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits up to `timeout_ms` (0: only looks) and appends the tokens of what is ready to `ready`.
    pub fn wait(&mut self, timeout_ms: i32, ready: &mut Vec<usize>) -> io::Result<()> {
        // SAFETY: the kernel writes at most EVENTS_MAX entries into a vector of that many.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as i32,
                timeout_ms,
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        ready.extend(self.events[..count as usize].iter().map(|event| event.u64 as usize));
        Ok(())
    }
}

/// Connections that may wait to be accepted: a middle may open all of its pool at once.
const BACKLOG: i32 = 4_096;

/// A non-blocking listener on `address`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    // SAFETY: takes no pointers. Linux lets a listening socket listen again with another backlog;
    // the 128 of the standard library make the connections above wait for retransmissions.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(listener)
}

/// Takes one waiting connection, or `None`. The listener must be non-blocking.
pub fn accept(listener: &TcpListener, input_bytes: usize) -> io::Result<Option<Stream>> {
    match listener.accept() {
        Ok((socket, _)) => {
            let mut stream = Stream::new(socket, input_bytes)?;
            stream.go_nonblocking()?;
            Ok(Some(stream))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A TCP connection with an input buffer of a fixed size and an output buffer.
pub struct Stream {
    socket: TcpStream,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    output: Vec<u8>,
    written: usize,
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl Stream {
    /// A blocking stream; see [`Stream::go_nonblocking`]. A message longer than `input_bytes` is an
    /// error when it arrives.
    pub fn new(socket: TcpStream, input_bytes: usize) -> io::Result<Stream> {
        socket.set_nodelay(true)?;
        take_cheapest_congestion_control(&socket);
        socket.set_nonblocking(false)?;
        // Handshakes and API calls block; a peer that says nothing must not hold them for ever.
        socket.set_read_timeout(Some(BLOCKING_MAX))?;
        socket.set_write_timeout(Some(BLOCKING_MAX))?;
        Ok(Stream {
            socket,
            input: vec![0; input_bytes].into_boxed_slice(),
            start: 0,
            end: 0,
            output: Vec::new(),
            written: 0,
        })
    }

    pub fn go_nonblocking(&mut self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// What has arrived and was not consumed.
    pub fn input(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    /// Input and output at once, to answer what is being read. Append only.
    pub fn both(&mut self) -> (&mut [u8], &mut Vec<u8>) {
        (&mut self.input[self.start..self.end], &mut self.output)
    }

    /// Where to append what shall be sent with the next [`Stream::flush`].
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Too much waits for the peer to read it: produce no more until [`Stream::flush`] got rid of it.
    pub fn is_clogged(&self) -> bool {
        self.output.len() - self.written > OUTPUT_BYTES_MAX
    }

    /// Drops the first `count` bytes of the input.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "only what arrived can be consumed");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once. `true` if there may be more to read after the input was consumed; `false` if the
    /// kernel has no more. The end of the stream is the error `UnexpectedEof`.
    pub fn fill(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.input.len() {
            return Err(io::Error::other("a message longer than the input buffer"));
        }
        loop {
            match (&self.socket).read(&mut self.input[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.end += count;
                    // A short read means the kernel's buffer is empty (epoll(7)).
                    return Ok(self.end == self.input.len());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends as much of the output as the kernel takes; all of it, on a blocking stream.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match (&self.socket).write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        } else if self.written > OUTPUT_BYTES_MAX {
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}

/// Reno costs the least per segment. The system's choice may pace what it sends by timers, which on
/// loopback measures the generator; what stands in the middle keeps the system's choice.
fn take_cheapest_congestion_control(socket: &TcpStream) {
    const NAME: &[u8] = b"reno";
    // SAFETY: the kernel copies NAME, whose length is given. Every Linux has it; should it be refused,
    // the socket keeps the system's choice and works the same.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            NAME.as_ptr().cast(),
            NAME.len() as libc::socklen_t,
        );
    }
}
