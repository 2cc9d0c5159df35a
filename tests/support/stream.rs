//! A payer with our own STREAM sender on the far side of a link: what `clearway::stream::sender` decides goes out as
//! Prepares over a socket, and what comes back goes into it. Tests choose the link, and spoil what lies behind it.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use clearway::stream::ratio::Ratio;
use clearway::stream::sender::{Config, Outcome, PACKETS_IN_FLIGHT_MAX, RateSource, Sender, Slippage, Target};
use clearway::wire::address::Address;
use clearway::wire::base64;
use clearway::wire::packet::Reply as WireReply;
use clearway::wire::timestamp::Timestamp;
use serde_json::Value;

use super::btp_peer::{BtpPeer, BtpReply};
use super::http::Connection;
use super::node::Node;
use super::packet::{Prepare, Reply, now};
use super::rule::Rule;

/// HTTP connections of a payer, each with one Prepare at a time.
const CONNECTIONS: usize = 16;
/// No payment of these tests takes so long.
const PAYMENT_LIMIT: Duration = Duration::from_secs(40);
/// Answers are looked for so often: of all that wait, only the oldest can be slept on.
const POLL: Duration = Duration::from_millis(1);

/// What a payer gets before it pays.
#[derive(Clone, Debug)]
pub struct Invoice {
    pub destination: String,
    pub shared_secret: [u8; 32],
}

/// Asks an SPSP endpoint, as anybody may.
pub fn ask(url: &str) -> Invoice {
    let rest = url.strip_prefix("http://").expect("these tests are in the clear");
    let (host, path) = rest.split_once('/').expect("a path");
    let address: SocketAddr = host.parse().expect("a socket address");
    let headers = [("Accept", "application/spsp4+json")];
    let answer = Connection::open(address)
        .request("GET", &format!("/{path}"), &headers, b"")
        .expect("an answer");
    assert_eq!(answer.status, 200, "{url}");
    let answer = answer.json();
    let text = |name: &str| answer[name].as_str().expect("text").to_owned();
    Invoice {
        destination: text("destination_account"),
        shared_secret: base64::decode(&text("shared_secret"))
            .and_then(|secret| secret.try_into().ok())
            .expect("a secret of 32 bytes"),
    }
}

pub fn spsp_url(node: &Node, username: &str) -> String {
    format!("http://{}/accounts/{username}/spsp", node.address())
}

/// The holder of an account, who pays.
pub struct Payer {
    link: Link,
    address: String,
    asset_code: String,
    asset_scale: u8,
    /// How long a Prepare lives, if not as long as the sender says: so that a test need not wait for an expiry.
    pub lifetime: Duration,
    /// Times the expected rate, the least that is accepted.
    pub slippage: Ratio,
    pub timeout: Option<Duration>,
}

enum Link {
    Btp(BtpPeer),
    Http(crossbeam::channel::Sender<(Prepare, mpsc::Sender<BtpReply>)>),
}

/// How a payment ended, and what was sent for it.
pub struct Paid {
    pub outcome: Outcome,
    /// Every Prepare, as it went out.
    pub prepares: Vec<Prepare>,
    /// The codes of all Rejects, also of those to probes.
    pub rejects: Vec<String>,
}

impl Paid {
    /// Panics unless all of `amount` was sent.
    pub fn expect_whole(&self, amount: u64) {
        let outcome = &self.outcome;
        assert_eq!(
            outcome.result,
            Ok(()),
            "{outcome:?}, rejected with {:?}",
            self.reject_counts()
        );
        assert_eq!((outcome.amounts.fulfilled, outcome.amounts.in_flight), (amount, 0));
    }

    pub fn reject_counts(&self) -> std::collections::BTreeMap<&str, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for code in &self.rejects {
            *counts.entry(code.as_str()).or_default() += 1;
        }
        counts
    }
}

impl Payer {
    /// On a link of its own to an account that is there (tokens as [`Node::add_account`] gives them).
    pub fn over_btp(node: &Node, username: &str) -> Self {
        let peer = BtpPeer::connect(node.address(), username, Rule::fulfill());
        Self::new(node, username, Link::Btp(peer))
    }

    pub fn over_http(node: &Node, username: &str) -> Self {
        let (jobs, waiting) = crossbeam::channel::unbounded::<(Prepare, mpsc::Sender<BtpReply>)>();
        for _ in 0..CONNECTIONS {
            let mut connection = node.connection();
            let (path, token) = (format!("/accounts/{username}/ilp"), format!("{username}-http"));
            let waiting = waiting.clone();
            std::thread::spawn(move || {
                for (prepare, reply) in waiting {
                    connection.set_read_timeout(PAYMENT_LIMIT);
                    let Ok(answer) = connection.post(&path, &token, &prepare) else {
                        return;
                    };
                    // Whoever waited may have given up.
                    let _ = reply.send(BtpReply::Packet(answer.reply()));
                }
            });
        }
        Self::new(node, username, Link::Http(jobs))
    }

    fn new(node: &Node, username: &str, link: Link) -> Self {
        let account: Value = node.api().get(&format!("/accounts/{username}"));
        let text = |name: &str| account[name].as_str().expect("text").to_owned();
        Self {
            link,
            address: text("ilp_address"),
            asset_code: text("asset_code"),
            asset_scale: account["asset_scale"].as_u64().expect("a number") as u8,
            lifetime: Duration::from_secs(30),
            slippage: Ratio::new(1, 100).expect("not divided by zero"),
            timeout: None,
        }
    }

    /// Sends one Prepare.
    pub fn start(&self, prepare: &Prepare) -> Receiver<BtpReply> {
        match &self.link {
            Link::Btp(peer) => peer.start_prepare(prepare),
            Link::Http(jobs) => {
                let (sender, receiver) = mpsc::channel();
                // If no connection is left, the answer is missed as it is over BTP.
                let _ = jobs.send((prepare.clone(), sender));
                receiver
            }
        }
    }

    pub fn pay(&self, invoice: &Invoice, amount: u64) -> Paid {
        let config = Config {
            shared_secret: &invoice.shared_secret,
            destination: address(&invoice.destination),
            source_address: address(&self.address),
            source_asset_code: &self.asset_code,
            source_asset_scale: self.asset_scale,
            target: Target::Source(amount),
            rate: RateSource::Path,
            slippage: Slippage::new(self.slippage).expect("less than everything"),
            is_quote: false,
            timeout_ms: self.timeout.map(|timeout| timeout.as_millis() as u64),
            packets_in_flight_max: PACKETS_IN_FLIGHT_MAX,
        };
        let mut sender = Sender::new(&config, wall());
        let mut waiting: Vec<(u32, Receiver<BtpReply>)> = Vec::new();
        let (mut prepares, mut rejects) = (Vec::new(), Vec::new());
        let mut random = |bytes: &mut [u8]| getrandom::fill(bytes).expect("the system has random bytes");
        let begun = Instant::now();
        loop {
            assert!(
                begun.elapsed() < PAYMENT_LIMIT,
                "the payment ends: {:?}",
                sender.amounts()
            );
            while let Some(outgoing) = sender.poll_prepare(wall(), &mut random) {
                let lives_until = now() + self.lifetime.as_millis() as u64;
                let prepare = Prepare {
                    amount: outgoing.amount,
                    expires_at: outgoing.expires_at.as_millis().min(lives_until),
                    condition: outgoing.condition,
                    destination: outgoing.destination.as_str().to_owned(),
                    data: outgoing.data.to_vec(),
                    later: Vec::new(),
                };
                waiting.push((outgoing.request, self.start(&prepare)));
                prepares.push(prepare);
            }
            if let Some(outcome) = sender.outcome() {
                return Paid {
                    outcome,
                    prepares,
                    rejects,
                };
            }
            for (request, reply) in answers(&mut waiting) {
                if let Reply::Reject { code, .. } = &reply {
                    rejects.push(code.clone());
                }
                let bytes = reply.encode();
                sender.handle_reply(wall(), request, &WireReply::parse(&bytes).expect("a packet"));
            }
        }
    }
}

/// What has come in; waits a moment if that is nothing.
fn answers(waiting: &mut Vec<(u32, Receiver<BtpReply>)>) -> Vec<(u32, Reply)> {
    let mut answers = Vec::new();
    waiting.retain(|(request, receiver)| match receiver.try_recv() {
        Ok(BtpReply::Packet(reply)) => {
            answers.push((*request, reply));
            false
        }
        Ok(other) => panic!("expected a Fulfill or a Reject, got {other:?}"),
        Err(TryRecvError::Empty) => true,
        // The link is gone; the sender will miss the answer.
        Err(TryRecvError::Disconnected) => false,
    });
    if answers.is_empty() {
        match waiting
            .first()
            .map(|(request, oldest)| (*request, oldest.recv_timeout(POLL)))
        {
            Some((request, Ok(BtpReply::Packet(reply)))) => {
                waiting.remove(0);
                answers.push((request, reply));
            }
            Some(_) => {}
            None => std::thread::sleep(POLL),
        }
    }
    answers
}

fn address(text: &str) -> Address<'_> {
    Address::parse(text.as_bytes()).expect("a valid address")
}

fn wall() -> Timestamp {
    Timestamp::from_millis(now())
}
