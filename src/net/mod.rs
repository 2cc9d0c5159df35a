//! Bytes in and out, whatever they mean: the shard's own io_uring, its buffers, listening sockets and outgoing
//! connections. Knows nothing of HTTP, BTP, accounts or packets.

pub mod buffers;
pub mod dial;
pub mod listener;
pub mod ring;
pub mod wake;

pub use ring::{Completion, Ring, SocketId};
pub use wake::Waker;
