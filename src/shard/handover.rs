//! A connection moves to the shard that owns its account, once, as soon as it is known whose it is. From then on its
//! packets cross at most one border: towards the account they go to.

use std::os::fd::OwnedFd;

use super::connections::Connection;

/// A connection on its way: the socket, what is known about it, and the bytes that its new shard must look at first.
pub struct Handover {
    pub socket: OwnedFd,
    pub connection: Box<Connection>,
}
