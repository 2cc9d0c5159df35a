//! Outgoing connections: the socket itself, and the pauses between attempts when a peer does not answer.
//!
//! Names are resolved elsewhere (it blocks); this file starts with an address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// The pauses before attempt 1, 2, 3 ...: the steps of ilp-plugin-btp, of which the last repeats for ever. A peer that
/// was gone for a moment is back at once; one that is gone for a day costs an attempt every five seconds.
const PAUSES_MS: [u64; 6] = [0, 100, 500, 1_000, 2_000, 5_000];

/// A connection that has lived this long has proved itself: the next pause starts from the shortest again.
pub const PROVEN_AFTER_MS: u64 = 10_000;

/// Growing, jittered pauses between attempts to reach one peer.
#[derive(Clone, Copy, Default, Debug)]
pub struct Backoff {
    attempts: u8,
}

impl Backoff {
    /// The pause before the next attempt, in milliseconds: the step's full length less up to a quarter of it, chosen by
    /// `random`, so that a thousand peers of a hub that restarts do not all come back in the same millisecond.
    pub fn next_pause_ms(&mut self, random: u64) -> u64 {
        let step = PAUSES_MS[usize::from(self.attempts).min(PAUSES_MS.len() - 1)];
        self.attempts = self.attempts.saturating_add(1);
        step - random % (step / 4 + 1)
    }

    /// The connection worked for `lived_ms`.
    pub fn worked(&mut self, lived_ms: u64) {
        if lived_ms >= PROVEN_AFTER_MS {
            self.attempts = 0;
        }
    }
}

/// An unconnected socket for `address`, ready for [`super::Ring::connect`].
pub fn socket_for(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    configure(&socket)?;
    Ok(socket.into())
}

/// What every connection of the node is set to, in either direction: packets leave at once, and a peer whose machine
/// has vanished is noticed even when nothing is sent.
pub(super) fn configure(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_start_again_after_a_connection_that_worked() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..8).map(|_| backoff.next_pause_ms(0)).collect();
        assert_eq!(pauses, [0, 100, 500, 1_000, 2_000, 5_000, 5_000, 5_000]);
        backoff.worked(PROVEN_AFTER_MS - 1);
        assert_eq!(
            backoff.next_pause_ms(0),
            5_000,
            "a connection that dies young proves nothing"
        );
        backoff.worked(PROVEN_AFTER_MS);
        assert_eq!(backoff.next_pause_ms(0), 0);
    }

    #[test]
    fn jitter_takes_off_up_to_a_quarter() {
        for random in [0, 1, 7, 1_250, u64::MAX] {
            let mut backoff = Backoff { attempts: 9 };
            let pause = backoff.next_pause_ms(random);
            assert!((3_750..=5_000).contains(&pause), "{pause}");
        }
    }
}
