//! Opens ports, and says how many connections the process may have.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel completes for us before we accept them. It cuts this to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// How long a port may still be another's, and how often that is looked at.
const IN_USE_MAX: Duration = Duration::from_secs(2);
const IN_USE_PAUSE: Duration = Duration::from_millis(50);

/// A bound and listening socket, and the address it really has (the port may have been 0).
///
/// All shards accept from the same socket, so a second process that asks for the port is refused by the kernel;
/// with SO_REUSEPORT it would silently get a share of our peers.
///
/// A port that is in use is tried again for a moment: the kernel takes the sockets out of the ring of a process that was
/// killed some time after the process is gone, and whoever supervises it starts the next one at once.
pub fn bind(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let started = Instant::now();
    let socket = loop {
        // Two sockets may be bound to a port that nobody listens on, so only listening tells.
        let listening = bound(address).and_then(|socket| socket.listen(BACKLOG).map(|()| socket));
        match listening {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < IN_USE_MAX => {
                thread::sleep(IN_USE_PAUSE);
            }
            other => break other?,
        }
    };
    let bound = socket
        .local_addr()?
        .as_socket()
        .expect("an internet socket has an internet address");
    Ok((socket.into(), bound))
}

/// Whether [`bind`] would be given the address at this moment. Nobody can connect to it meanwhile.
pub fn try_bind(address: SocketAddr) -> io::Result<()> {
    bound(address).map(drop)
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted node gets its port back although connections of the previous one are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    // Accepted connections inherit these from the listening socket, which saves a system call for each.
    super::dial::configure(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Descriptors kept for files of the store, outgoing connections and the rest when connections are counted.
const DESCRIPTORS_RESERVED: u64 = 512;

/// Raises the process's limit of open descriptors as far as it may, and says how many connections that allows.
pub fn connections_max() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid, initialized struct.
    let current = unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 256;
        }
        let raised = libc::rlimit {
            rlim_cur: limit.rlim_max,
            rlim_max: limit.rlim_max,
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
            raised.rlim_cur
        } else {
            limit.rlim_cur
        }
    };
    let connections = current.saturating_sub(DESCRIPTORS_RESERVED).max(64);
    usize::try_from(connections).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// More connections than this are refused on any machine: sockets are found by a 32-bit index.
const CONNECTIONS_MAX: usize = 1 << 20;
