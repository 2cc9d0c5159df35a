//! An account together with the peer that holds it, over any kind of link: what most tests of forwarding need.

use std::sync::Mutex;

use serde_json::{Value, json};

use super::btp_peer::{BtpPeer, BtpServer};
use super::http::Connection;
use super::http_peer::HttpPeer;
use super::node::Node;
use super::packet::{Prepare, Reply};
use super::rule::Rule;

/// How the peer and the node are linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// Both sides post to each other.
    Http,
    /// The peer connects to the node.
    BtpToNode,
    /// The node connects to the peer.
    BtpFromNode,
}

impl Via {
    pub const ALL: [Self; 3] = [Self::Http, Self::BtpToNode, Self::BtpFromNode];
}

/// The holder of an account, who can pay and be paid.
pub struct Party {
    pub username: String,
    pub rule: Rule,
    link: Link,
}

enum Link {
    Http {
        connection: Mutex<Connection>,
        peer: HttpPeer,
    },
    BtpToNode(BtpPeer),
    BtpFromNode(BtpServer),
}

impl Party {
    /// Makes the account (fields as [`Node::add_account`]) and brings its link up.
    pub fn join(node: &Node, username: &str, via: Via, rule: Rule, more: &Value) -> Self {
        let mut fields = more.clone();
        let link = match via {
            Via::Http => {
                let peer = HttpPeer::start(rule.clone());
                fields["ilp_over_http_url"] = json!(peer.url());
                fields["ilp_over_http_outgoing_token"] = json!("from-the-node");
                node.add_account(username, &fields);
                Link::Http {
                    connection: Mutex::new(node.connection()),
                    peer,
                }
            }
            Via::BtpToNode => {
                node.add_account(username, &fields);
                Link::BtpToNode(BtpPeer::connect(node.address(), username, rule.clone()))
            }
            Via::BtpFromNode => {
                let server = BtpServer::start("from-the-node", rule.clone());
                fields["ilp_over_btp_url"] = json!(server.url("btp+ws"));
                fields["ilp_over_btp_outgoing_token"] = json!("from-the-node");
                let created = node.add_account(username, &fields);
                assert_eq!(created["warnings"], Value::Null, "the node reaches its peer");
                server.peer();
                Link::BtpFromNode(server)
            }
        };
        Self {
            username: username.to_owned(),
            rule,
            link,
        }
    }

    /// As [`Self::join`], fulfilling everything, with the default fields.
    pub fn simple(node: &Node, username: &str, via: Via) -> Self {
        Self::join(node, username, via, Rule::fulfill(), &json!({}))
    }

    /// Sends a Prepare and waits for what comes back.
    pub fn pay(&self, prepare: &Prepare) -> Reply {
        match &self.link {
            Link::Http { connection, .. } => {
                let (path, token) = (
                    format!("/accounts/{}/ilp", self.username),
                    format!("{}-http", self.username),
                );
                let mut connection = connection.lock().expect("no test panics here");
                connection
                    .post(&path, &token, prepare)
                    .expect("the node answers")
                    .reply()
            }
            Link::BtpToNode(peer) => peer.prepare(prepare),
            Link::BtpFromNode(server) => server.peer().prepare(prepare),
        }
    }

    /// The HTTP endpoint of a party over HTTP.
    pub fn http_peer(&self) -> &HttpPeer {
        match &self.link {
            Link::Http { peer, .. } => peer,
            Link::BtpToNode(_) | Link::BtpFromNode(_) => {
                panic!("{} is not over HTTP", self.username)
            }
        }
    }

    /// The current BTP connection of a party over BTP.
    pub fn btp_peer(&self) -> BtpPeer {
        match &self.link {
            Link::Http { .. } => panic!("{} is not over BTP", self.username),
            Link::BtpToNode(peer) => peer.clone(),
            Link::BtpFromNode(server) => server.peer(),
        }
    }
}
