//! How other threads wake a shard that sleeps.
//!
//! A shard that finds nothing to do announces that it parks and waits for its eventfd; whoever gives it work afterwards
//! writes to that eventfd. While the shard runs, waking it costs one atomic load and no system call.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

struct Shared {
    eventfd: OwnedFd,
    parked: AtomicBool,
}

/// Wakes one shard. Cheap to clone, callable from any thread.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; the descriptor it returns is ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and has no other owner.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(Arc::new(Shared {
            eventfd,
            parked: AtomicBool::new(false),
        })))
    }

    /// The descriptor to wait on, and to register with a ring so that its completions raise it too.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.eventfd.as_raw_fd()
    }

    /// Call after the work has been put where the shard looks for it.
    pub fn wake(&self) {
        // Pairs with the fence in `prepare_to_park`: either the shard sees the work, or we see that it parks.
        fence(Ordering::SeqCst);
        if self.0.parked.load(Ordering::Relaxed) && self.0.parked.swap(false, Ordering::Relaxed) {
            self.raise();
        }
    }

    /// Announces that the shard is about to park. The shard must look for work once more after this.
    pub fn prepare_to_park(&self) {
        self.0.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The shard runs again.
    pub fn unpark(&self) {
        self.0.parked.store(false, Ordering::Relaxed);
    }

    fn raise(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is eight readable bytes, as eventfd wants. It fails only if the counter would overflow,
        // and then the shard is about to wake anyhow.
        unsafe { libc::write(self.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}
