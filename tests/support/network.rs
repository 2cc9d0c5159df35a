//! Several nodes that are neighbours of each other, each a process of its own: lines, rings, stars, and what happens on
//! them while packets flow.
//!
//! Owns the links between the nodes, among them those that can be cut ([`Wire`]), packets that flow while something is
//! done to the nodes ([`Traffic`]), a neighbour that tells whatever a test wants told ([`Teller`]), and what must hold of
//! all books together. Node `n` has the address `example.` and the n-th letter, and is an
//! account `node_` and this letter at each of its neighbours.
//! Always: what one node says it owes its neighbour is what the neighbour says it is owed.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::{Index, IndexMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clearway::routing::ccp::Path;
use clearway::wire::address::Address;
use clearway::wire::ccp::{NewRoute, TableId, Texts, UpdateHead, UpdateWriter};
use serde_json::{Value, json};

use super::btp_peer::{BtpPeer, BtpReply};
use super::http::whole;
use super::node::{Node, Options};
use super::packet::{Prepare, Reply};
use super::rule::Rule;
use super::{PATIENCE, eventually, free_address};

/// What connects two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// The second dials the first.
    Btp,
    /// Each posts to the other.
    Http,
}

/// Both nodes get an account for the other, of this name and relation. The link comes up by itself.
pub fn connect(over: Over, one: (&Node, &str, &str), other: (&Node, &str, &str)) {
    connect_through(over, one, other, one.0.address());
}

/// The same, but that the second node finds the first at `address`.
fn connect_through(over: Over, one: (&Node, &str, &str), other: (&Node, &str, &str), address: SocketAddr) {
    for (is_second, near, far) in [(false, one, other), (true, other, one)] {
        let (node, username, relation) = near;
        let far_address = if is_second { address } else { far.0.address() };
        let far_username = far.1;
        let mut fields = json!({"routing_relation": relation});
        if relation != "Child" {
            fields["ilp_address"] = far.0.api().get("/")["ilp_address"].clone();
        }
        match over {
            Over::Btp if is_second => {
                let url = format!("btp+ws://{far_address}/accounts/{far_username}/ilp/btp");
                fields["ilp_over_btp_url"] = json!(url);
                fields["ilp_over_btp_outgoing_token"] = json!(format!("{far_username}-btp"));
            }
            Over::Btp => {}
            Over::Http => {
                let url = format!("http://{far_address}/accounts/{far_username}/ilp");
                fields["ilp_over_http_url"] = json!(url);
                fields["ilp_over_http_outgoing_token"] = json!(format!("{far_username}-http"));
            }
        }
        node.add_account(username, &fields);
    }
}

/// Where exactly this prefix leads; null if nowhere.
pub fn leads_to(node: &Node, prefix: &str) -> Value {
    node.api().get("/routes")[prefix].clone()
}

pub fn wait_for_route(node: &Node, prefix: &str, username: &str) {
    eventually(&format!("{prefix} leads to {username}"), || {
        (leads_to(node, prefix) == username).then_some(())
    });
}

pub fn wait_for_no_route(node: &Node, prefix: &str) {
    eventually(&format!("{prefix} leads nowhere"), || {
        leads_to(node, prefix).is_null().then_some(())
    });
}

/// The letter of a node.
pub fn name_of(node: usize) -> String {
    char::from(b'a' + u8::try_from(node).expect("a few nodes")).to_string()
}

/// Of the account that its neighbours have for a node.
pub fn username_of(node: usize) -> String {
    format!("node_{}", name_of(node))
}

pub fn address_of(node: usize) -> String {
    format!("example.{}", name_of(node))
}

/// The nodes, and which of them are neighbours.
pub struct Network {
    nodes: Vec<Node>,
    links: Vec<[usize; 2]>,
}

impl Index<usize> for Network {
    type Output = Node;

    fn index(&self, node: usize) -> &Node {
        &self.nodes[node]
    }
}

impl IndexMut<usize> for Network {
    fn index_mut(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node]
    }
}

impl Network {
    /// Nodes without links, on ports that they keep when they start again.
    pub fn start(count: usize, arguments: &[&str]) -> Self {
        let start = |node| {
            let options = Options {
                ilp_address: address_of(node),
                http_bind_address: free_address().to_string(),
                arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
                ..Options::default()
            };
            // At the same time: each waits for the disk.
            std::thread::spawn(move || Node::start_with(options))
        };
        let starting: Vec<_> = (0..count).map(start).collect();
        let nodes = starting
            .into_iter()
            .map(|starting| starting.join().expect("the node starts"))
            .collect();
        Self {
            nodes,
            links: Vec::new(),
        }
    }

    /// Peers in a row, over these links.
    pub fn line(links: &[Over], arguments: &[&str]) -> Self {
        let mut network = Self::start(links.len() + 1, arguments);
        for (node, over) in links.iter().enumerate() {
            network.link(*over, node, node + 1);
        }
        network
    }

    /// Peers in a circle, over these links; the last one is between the last node and the first.
    pub fn ring(links: &[Over], arguments: &[&str]) -> Self {
        let mut network = Self::start(links.len(), arguments);
        for (node, over) in links.iter().enumerate() {
            network.link(*over, node, (node + 1) % links.len());
        }
        network
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Two nodes become peers.
    pub fn link(&mut self, over: Over, one: usize, other: usize) {
        self.relate(over, (one, "Peer"), (other, "Peer"));
    }

    /// Two nodes become neighbours. Relations are as the account at that node has them: what the other is to it.
    pub fn relate(&mut self, over: Over, one: (usize, &str), other: (usize, &str)) {
        let address = self[one.0].address();
        self.relate_through(over, one, other, address);
    }

    /// Two nodes become peers whose link can be cut: the second dials the first through a [`Wire`].
    pub fn link_by_wire(&mut self, one: usize, other: usize) -> Wire {
        let wire = Wire::to(self[one].address());
        self.relate_through(Over::Btp, (one, "Peer"), (other, "Peer"), wire.address);
        wire
    }

    fn relate_through(&mut self, over: Over, one: (usize, &str), other: (usize, &str), address: SocketAddr) {
        let (username_of_one, username_of_other) = (username_of(one.0), username_of(other.0));
        connect_through(
            over,
            (&self[one.0], &username_of_other, one.1),
            (&self[other.0], &username_of_one, other.1),
            address,
        );
        self.links.push([one.0, other.0]);
    }

    /// Waits until every node knows the way to every other.
    pub fn wait_until_told(&self) {
        for node in 0..self.nodes.len() {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                eventually(&format!("{} reaches {}", name_of(node), name_of(other)), || {
                    (!leads_to(&self[node], &address_of(other)).is_null()).then_some(())
                });
            }
        }
    }

    /// What this node says it owes a neighbour, whatever is on hold.
    pub fn booked(&self, node: usize, neighbour: usize) -> i128 {
        let balance = self[node]
            .api()
            .get(&format!("/accounts/{}/balance", username_of(neighbour)));
        whole(&balance["balance"]) + whole(&balance["held"])
    }

    /// Waits until this node has sent at least `count` more units to a neighbour.
    pub fn wait_for_packets(&self, node: usize, neighbour: usize, count: i128) {
        let before = self.booked(node, neighbour);
        eventually(
            &format!("packets go from {} to {}", name_of(node), name_of(neighbour)),
            || (self.booked(node, neighbour) >= before + count).then_some(()),
        );
    }

    /// Every book adds up, nothing is on hold, and neighbours say the same of what one owes the other. `lost`: so much
    /// may be missing where a node was killed, because what it had paid for was no longer told to who paid for it.
    pub fn check_books(&self, lost: i128) {
        for [one, other] in self.links.iter().copied() {
            let what = format!("{} and {} say the same", name_of(one), name_of(other));
            eventually(&what, || {
                let held = self[one].api().held(&username_of(other)) + self[other].api().held(&username_of(one));
                let sum = self.booked(one, other) + self.booked(other, one);
                (held == 0 && (-lost..=0).contains(&sum)).then_some(())
            });
        }
        for node in &self.nodes {
            node.api().audit();
        }
    }
}

/// A customer of a node, connected over BTP.
pub fn customer(node: &Node, username: &str) -> BtpPeer {
    node.add_account(username, &json!({}));
    BtpPeer::connect(node.address(), username, Rule::fulfill())
}

/// A link of which a test holds the shears: a port that leads to another, or to nobody while it is cut.
pub struct Wire {
    pub address: SocketAddr,
    shared: Arc<WireShared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct WireShared {
    is_cut: AtomicBool,
    is_over: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Wire {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(free_address()).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::<WireShared>::default();
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for near in listener.incoming() {
                    if shared.is_over.load(Ordering::SeqCst) {
                        return;
                    }
                    // Dropped, who dials is refused.
                    if let Ok(near) = near {
                        let _ = shared.pass(near, target);
                    }
                }
            }
        });
        Self {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    /// All connections end, and no new one is made.
    pub fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        let mut streams = self.shared.streams.lock().expect("no test panics here");
        for stream in streams.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }
}

impl WireShared {
    fn pass(&self, near: TcpStream, target: SocketAddr) -> io::Result<()> {
        let mut streams = self.streams.lock().expect("no test panics here");
        if self.is_cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        let far = TcpStream::connect_timeout(&target, PATIENCE)?;
        for (from, to) in [(&near, &far), (&far, &near)] {
            from.set_nodelay(true)?;
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            std::thread::spawn(move || {
                let mut bytes = [0; 16 * 1024];
                while let Ok(count @ 1..) = from.read(&mut bytes)
                    && to.write_all(&bytes[..count]).is_ok()
                {}
                // Where one direction ends, both do.
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            });
        }
        streams.extend([near, far]);
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the accepting thread, which then sees that it is over.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Time from one packet of [`Traffic`] to the next.
const PACKET_PAUSE: Duration = Duration::from_millis(2);
/// Packets of [`Traffic`] live so long: each of four nodes takes a second of it, and wants two to be left.
const PACKET_LIFE: Duration = Duration::from_secs(6);

/// Packets of one unit that a customer sends to an address, one every [`PACKET_PAUSE`], whatever becomes of them.
pub struct Traffic {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sent>>,
}

/// A packet of [`Traffic`] and what became of it.
pub struct Sent {
    pub at: Instant,
    pub ended: Instant,
    /// As [`Reply::code`] has it.
    pub code: String,
    /// Of a Reject: who says so, and why.
    pub why: String,
}

impl Traffic {
    pub fn start(from: &BtpPeer, destination: &str) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let (is_over, from, destination) = (Arc::clone(&is_over), from.clone(), destination.to_owned());
            move || flow(&from, &destination, &is_over)
        });
        Self { is_over, thread }
    }

    /// Ends it, and waits until all packets have.
    pub fn end(self) -> Vec<Sent> {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().expect("packets flow")
    }
}

fn flow(from: &BtpPeer, destination: &str, is_over: &AtomicBool) -> Vec<Sent> {
    let mut waiting: VecDeque<(Instant, Prepare, Receiver<BtpReply>)> = VecDeque::new();
    let mut all = Vec::new();
    let mut end = |at, prepare: &Prepare, reply| {
        let BtpReply::Packet(reply) = reply else {
            panic!("expected a Fulfill or a Reject, got {reply:?}");
        };
        let is_right = reply.code() != "fulfill" || reply.fulfills(prepare);
        assert!(is_right, "{reply:?} does not fulfill {prepare:?}");
        let why = match &reply {
            Reply::Fulfill { .. } => String::new(),
            Reply::Reject {
                triggered_by, message, ..
            } => format!(" {triggered_by}: {message}"),
        };
        all.push(Sent {
            at,
            ended: Instant::now(),
            code: reply.code().to_owned(),
            why,
        });
    };
    let mut last_at = Instant::now();
    while !waiting.is_empty() || !is_over.load(Ordering::SeqCst) {
        let at = Instant::now();
        if !is_over.load(Ordering::SeqCst) {
            let prepare = Prepare::new(destination, 1).expires_in(PACKET_LIFE);
            let reply = from.start_prepare(&prepare);
            last_at = at;
            match reply.recv_timeout(PACKET_PAUSE) {
                Ok(reply) => end(at, &prepare, reply),
                Err(_) => waiting.push_back((at, prepare, reply)),
            }
        }
        waiting.retain(|(at, prepare, reply)| match reply.try_recv() {
            Ok(reply) => {
                end(*at, prepare, reply);
                false
            }
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Disconnected) => panic!("the node has closed the customer's connection"),
        });
        assert!(
            last_at.elapsed() < PATIENCE,
            "{} packets are not answered",
            waiting.len()
        );
        std::thread::sleep(PACKET_PAUSE.saturating_sub(at.elapsed()));
    }
    all
}

/// How long no packet has arrived: the longest pause between two that did, from the last one before `since` on.
pub fn longest_pause(sent: &[Sent], since: Instant) -> Duration {
    let mut arrived: Vec<_> = sent
        .iter()
        .filter(|packet| packet.code == "fulfill")
        .map(|packet| packet.ended)
        .collect();
    arrived.sort_unstable();
    let first = arrived.partition_point(|at| *at < since).saturating_sub(1);
    let pauses = arrived[first..].windows(2).map(|pair| pair[1] - pair[0]);
    pauses.max().expect("packets arrived after it")
}

/// How long a packet that arrives takes, half of them and all but one in a hundred.
pub fn latencies(sent: &[Sent]) -> (Duration, Duration) {
    let mut all: Vec<_> = sent.iter().map(|packet| packet.ended - packet.at).collect();
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() * 99 / 100])
}

/// How often each answer came back.
pub fn answers(sent: &[Sent]) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for packet in sent {
        *answers.entry(format!("{}{}", packet.code, packet.why)).or_default() += 1;
    }
    answers
}

/// A neighbour that tells whatever it likes, and takes every packet it is sent.
pub struct Teller {
    pub peer: BtpPeer,
    pub address: String,
    pub table_id: TableId,
    username: String,
}

impl Teller {
    /// A neighbour of this relation (what it is to the node) over BTP, by the name that its address ends in.
    pub fn join(node: &Node, address: &str, relation: &str) -> Self {
        let (_, username) = address.rsplit_once('.').expect("an address has two parts");
        node.add_account(username, &json!({"routing_relation": relation, "ilp_address": address}));
        Self::connect(node, address)
    }

    /// The same once the account is there.
    pub fn connect(node: &Node, address: &str) -> Self {
        let (_, username) = address.rsplit_once('.').expect("an address has two parts");
        Self {
            peer: BtpPeer::connect(node.address(), username, Rule::fulfill()),
            address: address.to_owned(),
            table_id: [1; 16],
            username: username.to_owned(),
        }
    }

    pub fn username(&self) -> &str {
        &self.username
    }

    /// The Prepare with an update from one epoch to another: these routes, over these nodes behind the teller, are new;
    /// those prefixes lead nowhere any more.
    pub fn update(&self, epochs: (u32, u32), new: &[(&str, &[&str])], withdrawn: &[&str]) -> Prepare {
        let speaker = address(&self.address);
        let mut writer = UpdateWriter::new(speaker);
        for (prefix, hops) in new {
            let path = Path::new(hops.iter().map(|hop| address(hop)));
            let path = Texts::from_bytes(path.as_bytes()).expect("a path");
            writer.announce(&NewRoute {
                prefix,
                path,
                auth: &[0; 32],
            });
        }
        for prefix in withdrawn {
            writer.withdraw(prefix);
        }
        let head = UpdateHead {
            table_id: self.table_id,
            current_epoch: epochs.1,
            from_epoch: epochs.0,
            to_epoch: epochs.1,
            hold_down_ms: 45_000,
            speaker,
        };
        let mut data = Vec::new();
        writer.finish(&head, &mut data);
        Prepare::request("peer.route.update", &data)
    }

    /// Tells it, and waits for the answer.
    pub fn tell(&self, epochs: (u32, u32), new: &[(&str, &[&str])], withdrawn: &[&str]) -> Reply {
        self.peer.prepare(&self.update(epochs, new, withdrawn))
    }
}

fn address(text: &str) -> Address<'_> {
    Address::parse(text.as_bytes()).expect("an address")
}
