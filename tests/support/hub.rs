//! A node with a sender and a receiver, for tests that do something bad to it and then ask whether it still serves.

use std::time::Duration;

use super::node::Node;
use super::packet::Prepare;
use super::party::{Party, Via};

/// A node where alice can pay bob over HTTP; `good_packet_passes` is asked after every attack.
pub struct Hub {
    pub node: Node,
    pub alice: Party,
    _bob: Party,
}

impl Hub {
    pub fn start() -> Self {
        let node = Node::with_shards(2);
        let alice = Party::simple(&node, "alice", Via::Http);
        let bob = Party::simple(&node, "bob", Via::BtpToNode);
        Self { node, alice, _bob: bob }
    }

    pub fn good_packet_passes(&self, after: &str) {
        let prepare = Prepare::new("test.hub.bob", 1);
        let reply = self.alice.pay(&prepare);
        assert!(reply.fulfills(&prepare), "after {after}: {reply:?}");
    }

    /// Sends bytes on a fresh connection; the status of the answer, and whether the node closed it. Status 0: closed
    /// without an answer.
    pub fn status_of(&self, bytes: &[u8]) -> (u16, bool) {
        let mut connection = self.node.connection();
        // The node may close before it has read everything.
        let _ = connection.send(bytes);
        let status = connection.answer().map_or(0, |answer| answer.status);
        (status, connection.is_closed_within(Duration::from_millis(500)))
    }
}
