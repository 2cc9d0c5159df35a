//! What the whole-connector tests share: a node in a process of its own, and peers that speak to it over sockets.
//!
//! The peers have their own codec ([`packet`], [`btp_peer`]), a second reading of the RFCs, so a mistake in the
//! node's codec cannot hide behind the same mistake in its test. Leaves every claim about behaviour to the test files.
//! Always: every wait has a limit ([`PATIENCE`]), and every random choice comes from a seed that is printed.

#![allow(dead_code)] // every test file is a crate of its own and uses its part of this

pub mod btp_peer;
pub mod engine;
pub mod http;
pub mod http_peer;
pub mod hub;
pub mod javascript;
pub mod network;
pub mod node;
pub mod packet;
pub mod party;
pub mod payer;
pub mod proxy;
pub mod random;
pub mod rates;
pub mod raw_websocket;
pub mod rule;
pub mod server;
pub mod stream;

use std::os::linux::net::SocketAddrExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// How long a test waits for something that should happen at once, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Polls until `check` gives a value; panics with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, check)
}

/// Polls until `check` gives a value; panics with `what` after `limit`.
pub fn within<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// [`free_port`] of this machine.
pub fn free_address() -> std::net::SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, free_port()).into()
}

/// A port that is free and stays so while nobody listens on it: Linux gives connections that go out other ones, so not
/// even a peer that keeps dialling it can end up with it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    let count = u32::from(PORTS.end - PORTS.start);
    // Test processes beside this one begin elsewhere, those with neighbouring ids too.
    let offset = std::process::id().wrapping_mul(1_009) % count;
    for _ in PORTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % count;
        let port = PORTS.start + ((offset + number) % count) as u16;
        if reserve(port) && is_free(port) {
            return port;
        }
    }
    panic!("no port in {PORTS:?} is free");
}

/// Has the port for as long as this process lives, as far as its like are concerned: an address of Linux that is nobody's
/// file, and goes with its process.
fn reserve(port: u16) -> bool {
    let name = format!("clearway-test-port-{port}");
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a short name");
    match std::os::unix::net::UnixListener::bind_addr(&address) {
        Ok(reserved) => {
            std::mem::forget(reserved);
            true
        }
        Err(_) => false,
    }
}

/// Whether nobody listens there. Looks without listening: a process that is just being started on another thread has this
/// socket, too, for a moment, in which nobody else could listen then.
fn is_free(port: u16) -> bool {
    // Some servers listen on all addresses, of IPv6 too where there is any.
    let hosts: [std::net::IpAddr; 2] = [
        std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::Ipv6Addr::UNSPECIFIED.into(),
    ];
    hosts.into_iter().all(|host| {
        let address = std::net::SocketAddr::new(host, port);
        let bound = Socket::new(Domain::for_address(address), Type::STREAM, None).and_then(|socket| {
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())
        });
        bound
            .err()
            .is_none_or(|error| error.kind() != std::io::ErrorKind::AddrInUse)
    })
}
