//! Nodes that exchange routes with each other, without links, disks and clocks: what one asks is carried to the other by
//! hand, and time is turned.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::exchange::Exchange;
use super::*;
use crate::control::edit::{AccountEdit, Edit};
use crate::control::fake::{FakeBook, Node};
use crate::ledger::account::RoutingRelation::{Child, NonRoutingAccount, Parent, Peer};
use crate::ledger::account::{Account, RoutingRelation};
use crate::pipeline::Now;
use crate::shard::control::{Answered, NeighbourEvent, PeerAnswer, PeerRequest, PeerService, Shards};
use crate::wire::address::Address;
use crate::wire::ccp::{
    CONTROL_DESTINATION, Control as ControlRequest, Mode, NewRoute, UPDATE_DESTINATION, Update, UpdateHead,
    UpdateWriter,
};
use crate::wire::ildcp;
use crate::wire::packet::{ErrorCode, PEER_FULFILLMENT, Prepare, RejectBuilder, encode_fulfill};
use crate::wire::timestamp::Timestamp;

/// A question on its way.
struct Asked {
    account: AccountId,
    prepare: Vec<u8>,
    done: Answered,
}

struct TestNode {
    node: Node,
    exchange: Exchange,
    asked: Arc<Mutex<VecDeque<Asked>>>,
    events: Vec<NeighbourEvent>,
    wakeup_ms: Option<u64>,
    turns: usize,
}

impl TestNode {
    fn new(address: &str, settings: NeighbourSettings, now_ms: u64) -> Self {
        Self::start(address, Arc::new(FakeBook::default()), settings, now_ms)
    }

    fn start(address: &str, book: Arc<FakeBook>, settings: NeighbourSettings, now_ms: u64) -> Self {
        let node = Node::start(address, book);
        let asked = Arc::<Mutex<VecDeque<Asked>>>::default();
        let to = Arc::clone(&asked);
        node.shards.set_neighbour(move |account, prepare, done| {
            to.lock().unwrap().push_back(Asked {
                account,
                prepare: prepare.to_vec(),
                done,
            });
        });
        let exchange = Exchange::new(Arc::clone(&node.control), settings, at(now_ms)).unwrap();
        Self {
            node,
            exchange,
            asked,
            events: Vec::new(),
            wakeup_ms: Some(0),
            turns: 0,
        }
    }

    fn turn(&mut self, now_ms: u64) {
        let events = std::mem::take(&mut self.events);
        self.wakeup_ms = self.exchange.turn(at(now_ms), events);
        self.turns += 1;
    }

    fn account(&self, username: &str) -> Arc<Account> {
        self.node.control.find_account(username).expect("it was made")
    }

    fn id(&self, username: &str) -> AccountId {
        self.account(username).id
    }

    /// `PREFIX=USERNAME` of every route.
    fn routes(&self) -> String {
        let routes = self.node.control.routes_after(None, usize::MAX);
        let shown = routes
            .iter()
            .map(|(prefix, account)| format!("{prefix}={}", account.username));
        shown.collect::<Vec<_>>().join(" ")
    }

    fn leads_to(&self, prefix: &str) -> Option<String> {
        let routes = self.node.control.routes_after(None, usize::MAX);
        let route = routes.iter().find(|(found, _)| **found == *prefix);
        route.map(|(_, account)| account.username.to_string())
    }

    /// How many routes of neighbours a start would read back.
    fn kept(&self) -> usize {
        self.node
            .book
            .read_back()
            .heard
            .iter()
            .map(|heard| heard.routes.len())
            .sum()
    }

    fn path(&self, prefix: &str, username: &str) -> Option<String> {
        let path = self.node.control.path_of(prefix, self.id(username))?;
        Some(path.join(" "))
    }
}

fn at(now_ms: u64) -> Now {
    Now {
        // Another clock: whoever mixes them up is found out.
        wall: Timestamp::from_millis(1_800_000_000_000 + now_ms),
        monotonic_ms: now_ms,
    }
}

/// An account of one node, and what it is of another.
struct Wire {
    ends: [(usize, AccountId); 2],
    is_up: bool,
}

struct World {
    now_ms: u64,
    nodes: Vec<TestNode>,
    wires: Vec<Wire>,
}

impl World {
    fn new(addresses: &[&str]) -> Self {
        let now_ms = 1_000;
        let node = |address: &&str| TestNode::new(address, NeighbourSettings::default(), now_ms);
        Self {
            now_ms,
            nodes: addresses.iter().map(node).collect(),
            wires: Vec::new(),
        }
    }

    /// Both get an account for the other, under these names and relations, and a link that is up.
    fn connect(&mut self, one: (usize, &str, RoutingRelation), other: (usize, &str, RoutingRelation)) -> usize {
        let ends = [(one, other.0), (other, one.0)].map(|((node, username, relation), far)| {
            let address = match relation {
                // As it is below us.
                Child => None,
                _ => Some(self.nodes[far].node.control.node_address()),
            };
            let id = add(&self.nodes[node], username, relation, address.as_deref());
            (node, id)
        });
        self.wires.push(Wire { ends, is_up: false });
        let wire = self.wires.len() - 1;
        self.link(wire, true);
        wire
    }

    fn link(&mut self, wire: usize, up: bool) {
        self.wires[wire].is_up = up;
        for (node, account) in self.wires[wire].ends {
            self.nodes[node].events.push(NeighbourEvent::Link { account, up });
            self.nodes[node].wakeup_ms = Some(0);
        }
    }

    /// Carries questions and answers until nobody has anything to say now. They take no time.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut is_quiet = true;
            for place in 0..self.nodes.len() {
                let node = &mut self.nodes[place];
                let is_due = node.wakeup_ms.is_some_and(|at| at <= self.now_ms);
                if is_due || !node.events.is_empty() || node.has_news() {
                    node.turn(self.now_ms);
                    is_quiet = false;
                }
                let asked: Vec<_> = self.nodes[place].asked.lock().unwrap().drain(..).collect();
                for asked in asked {
                    self.carry(place, asked);
                    is_quiet = false;
                }
            }
            if is_quiet {
                return;
            }
        }
        panic!("they never come to rest");
    }

    fn carry(&mut self, from: usize, asked: Asked) {
        let Asked { account, prepare, done } = asked;
        let end = (from, account);
        let wire = self.wires.iter().find(|wire| wire.is_up && wire.ends.contains(&end));
        let Some(wire) = wire else { return done(None) };
        let (far, far_account) = wire.ends[usize::from(wire.ends[0] == end)];
        let prepare = Prepare::parse(&prepare).unwrap();
        let expiry_ms = prepare.expires_at().as_millis() - at(self.now_ms).wall.as_millis();
        assert_eq!((prepare.amount(), expiry_ms), (0, 60_000));
        let far = &mut self.nodes[far];
        let service = if prepare.destination() == ildcp::DESTINATION {
            return done(Some(far.config_of(far_account)));
        } else if prepare.destination() == CONTROL_DESTINATION {
            PeerService::RouteControl
        } else {
            assert_eq!(prepare.destination(), UPDATE_DESTINATION);
            PeerService::RouteUpdate
        };
        far.events.push(NeighbourEvent::Request(PeerRequest {
            from: far_account,
            service,
            data: prepare.data().to_vec(),
            respond: Box::new(move |answer| done(Some(encode(&answer)))),
        }));
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        loop {
            self.settle();
            let wakeups = self.nodes.iter().filter_map(|node| node.wakeup_ms);
            match wakeups.min().filter(|at| *at <= end) {
                Some(at) => self.now_ms = at.max(self.now_ms),
                None => break,
            }
        }
        self.now_ms = end;
        self.settle();
    }

    /// Sends a request to a node as a neighbour would, and gives the answer once the node has made a turn.
    fn request(&mut self, node: usize, from: AccountId, service: PeerService, data: Vec<u8>) -> PeerAnswer {
        let answers = Arc::<Mutex<Option<PeerAnswer>>>::default();
        let given = Arc::clone(&answers);
        self.nodes[node].events.push(NeighbourEvent::Request(PeerRequest {
            from,
            service,
            data,
            respond: Box::new(move |answer| *given.lock().unwrap() = Some(answer)),
        }));
        self.nodes[node].turn(self.now_ms);
        answers
            .lock()
            .unwrap()
            .take()
            .expect("every request is answered in its turn")
    }

    /// The node stops and starts again; its links come up afterwards.
    fn restart(&mut self, place: usize) {
        let book = Arc::clone(&self.nodes[place].node.book);
        let address = self.nodes[place].node.control.configured_address.to_string();
        self.nodes[place] = TestNode::start(&address, book, NeighbourSettings::default(), self.now_ms);
    }
}

impl TestNode {
    fn has_news(&self) -> bool {
        let left = self.node.control.neighbours.left();
        !left.answers.is_empty() || !left.accounts.is_empty() || !left.prefixes.is_empty()
    }

    /// What a shard answers at `peer.config`.
    fn config_of(&self, id: AccountId) -> Vec<u8> {
        let account = Arc::clone(self.node.control.read().directory.get(id).unwrap());
        let mut reply = Vec::new();
        ildcp::Answer {
            client_address: Address::parse(account.ilp_address.as_bytes()).unwrap(),
            asset_scale: account.asset.scale,
            asset_code: &account.asset.code,
        }
        .encode(&mut reply);
        reply
    }
}

fn encode(answer: &PeerAnswer) -> Vec<u8> {
    let mut reply = Vec::new();
    match answer {
        PeerAnswer::Fulfill { data } => encode_fulfill(&mut reply, &PEER_FULFILLMENT, data),
        PeerAnswer::Reject { code, message } => RejectBuilder {
            code: *code,
            triggered_by: "test.somebody",
            message,
            data: &[],
        }
        .encode(&mut reply),
    }
    reply
}

fn add(node: &TestNode, username: &str, relation: RoutingRelation, address: Option<&str>) -> AccountId {
    let edit = AccountEdit {
        asset_code: Some("ABC".into()),
        asset_scale: Some(2),
        routing_relation: Edit::Set(relation),
        ilp_address: address.map_or(Edit::Keep, |address| Edit::Set(address.into())),
        http_url: Edit::Set("http://neighbour.example/".into()),
        ..AccountEdit::default()
    };
    let outcome = node.node.control.create_account(Timestamp::default(), username, edit);
    outcome.unwrap().account.id
}

fn update(node: &TestNode, username: &str, edit: AccountEdit) {
    node.node.control.update_account(username, edit).unwrap();
}

/// The data of an update of the first table of a neighbour at `speaker`: `from-to`, then `+prefix` and `-prefix`.
fn update_data(speaker: &'static str, text: &str) -> Vec<u8> {
    let speaker = Address::from_static(speaker);
    let mut words = text.split_whitespace();
    let (from, to) = words.next().unwrap().split_once('-').unwrap();
    let mut writer = UpdateWriter::new(speaker);
    for word in words {
        match word.split_at(1) {
            ("+", prefix) => writer.announce(&NewRoute {
                prefix,
                path: Default::default(),
                auth: &[5; 32],
            }),
            (_, prefix) => writer.withdraw(prefix),
        }
    }
    let head = UpdateHead {
        table_id: [7; 16],
        current_epoch: to.parse().unwrap(),
        from_epoch: from.parse().unwrap(),
        to_epoch: to.parse().unwrap(),
        hold_down_ms: 45_000,
        speaker,
    };
    let mut data = Vec::new();
    writer.finish(&head, &mut data);
    assert!(Update::parse(&data).is_ok());
    data
}

fn fulfilled() -> PeerAnswer {
    PeerAnswer::Fulfill { data: Vec::new() }
}

fn code_of(answer: &PeerAnswer) -> Option<ErrorCode> {
    match answer {
        PeerAnswer::Fulfill { .. } => None,
        PeerAnswer::Reject { code, .. } => Some(*code),
    }
}

/// Three peers in a row.
fn row() -> (World, [usize; 2]) {
    let mut world = World::new(&["test.a", "test.b", "test.c"]);
    let left = world.connect((0, "bob", Peer), (1, "alice", Peer));
    let right = world.connect((1, "carol", Peer), (2, "bob", Peer));
    world.settle();
    (world, [left, right])
}

#[test]
fn routes_travel_from_node_to_node() {
    let (mut world, _) = row();
    // The operator's own, a child and a customer outside; neither what lies below, nor of another network.
    add(&world.nodes[0], "kid", Child, Some("test.kid"));
    add(&world.nodes[0], "shop", NonRoutingAccount, Some("test.shop"));
    add(&world.nodes[0], "below", Child, None);
    add(&world.nodes[0], "far", Child, Some("g.far"));
    world.nodes[0]
        .node
        .control
        .set_static_route("test.fixed".into(), "bob")
        .unwrap();
    world.nodes[0]
        .node
        .control
        .set_static_route("test.more".into(), "shop")
        .unwrap();
    world.pass(1_000);
    let learned = "test.a=bob test.b=bob test.kid=bob test.more=bob test.shop=bob";
    assert_eq!(world.nodes[2].routes(), learned);
    // What leads to bob himself bob is not told.
    assert_eq!(world.nodes[1].leads_to("test.fixed"), None);
    assert_eq!(world.nodes[1].path("test.kid", "alice").as_deref(), Some("test.a"));
    assert_eq!(world.nodes[2].path("test.kid", "bob").as_deref(), Some("test.b test.a"));
    assert_eq!(world.nodes[2].path("test.nowhere", "bob"), None);
    let published = world.nodes[2].node.shards.take_published();
    assert!(published.contains("route:test.kid=0"), "{published}");
    assert_eq!((world.nodes[1].kept(), world.nodes[2].kept()), (5, 5));

    world.nodes[0].node.control.delete_account("kid", false).unwrap();
    world.nodes[0]
        .node
        .control
        .remove_static_route("test.more".into())
        .unwrap();
    world.pass(1_000);
    assert_eq!(world.nodes[2].routes(), "test.a=bob test.b=bob test.shop=bob");
    assert_eq!(world.nodes[2].kept(), 3);
    // It stays so, and nobody says more than heartbeats.
    let turns = world.nodes[1].turns;
    world.pass(600_000);
    assert_eq!(world.nodes[2].routes(), "test.a=bob test.b=bob test.shop=bob");
    let turns = world.nodes[1].turns - turns;
    assert!(turns < 20 * 2 * 6, "{turns} turns in ten minutes");
}

#[test]
fn others_find_another_way_within_a_second_of_a_dropped_link() {
    let (mut world, [left, _]) = row();
    world.pass(1_000);
    assert_eq!(world.nodes[2].leads_to("test.a").as_deref(), Some("bob"));
    world.link(left, false);
    world.pass(1_000);
    assert_eq!(world.nodes[2].leads_to("test.a"), None, "it is withdrawn");
    assert_eq!(
        world.nodes[1].leads_to("test.a").as_deref(),
        Some("alice"),
        "and not forgotten"
    );
    // The link is tried, so nobody has to tell that it is up.
    world.wires[left].is_up = true;
    world.pass(31_000);
    assert_eq!(world.nodes[2].leads_to("test.a").as_deref(), Some("bob"));
    // A second way takes over at once, and back.
    let other = world.connect((0, "carol", Peer), (2, "alice", Peer));
    world.pass(1_000);
    assert_eq!(world.nodes[2].path("test.a", "alice").as_deref(), Some("test.a"));
    assert_eq!(world.nodes[2].leads_to("test.a").as_deref(), Some("alice"));
    world.link(other, false);
    world.pass(1_000);
    assert_eq!(world.nodes[2].leads_to("test.a").as_deref(), Some("bob"));
    world.link(other, true);
    world.pass(1_000);
    assert_eq!(world.nodes[2].leads_to("test.a").as_deref(), Some("alice"));
}

#[test]
fn a_link_that_stays_down_is_tried_now_and_then() {
    let mut world = World::new(&["test.a"]);
    let ends = [(0, "peer", Peer), (0, "kid", Child)].map(|(node, username, relation)| {
        let address = Some("test.other").filter(|_| relation == Peer);
        (node, add(&world.nodes[0], username, relation, address))
    });
    for (node, account) in ends {
        world.nodes[node]
            .events
            .push(NeighbourEvent::Link { account, up: false });
    }
    let mut tried = Vec::new();
    for second in 0..100_u64 {
        world.now_ms = 1_000 + second * 1_000;
        world.nodes[0].turn(world.now_ms);
        for asked in world.nodes[0].asked.lock().unwrap().drain(..) {
            let prepare = Prepare::parse(&asked.prepare).unwrap();
            let is_control = prepare.destination() == CONTROL_DESTINATION;
            let mode = is_control.then(|| ControlRequest::parse(prepare.data()).unwrap().mode);
            tried.push((second, asked.account == ends[0].1, mode));
            (asked.done)(None);
        }
        world.nodes[0].turn(world.now_ms);
    }
    let peers: Vec<_> = tried
        .iter()
        .filter(|(_, is_peer, mode)| *is_peer && mode.is_some())
        .collect();
    let kids: Vec<_> = tried.iter().filter(|(_, is_peer, _)| !is_peer).collect();
    assert_eq!(
        peers.iter().map(|(at, ..)| *at).collect::<Vec<_>>(),
        [5, 15, 35, 65, 95]
    );
    assert_eq!(kids.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), [5, 15, 35, 65, 95]);
    assert!(peers.iter().all(|(.., mode)| *mode == Some(Mode::Sync)), "what is next");
    assert!(
        kids.iter().all(|(.., mode)| *mode == Some(Mode::Idle)),
        "there is nothing to say"
    );
}

#[test]
fn a_parent_names_its_child() {
    let mut world = World::new(&["test.parent", "local.host"]);
    add(&world.nodes[1], "alice", NonRoutingAccount, None);
    add(&world.nodes[1], "fixed", NonRoutingAccount, Some("test.fixed"));
    add(&world.nodes[0], "shop", NonRoutingAccount, Some("test.shop"));
    world.nodes[1].node.shards.take_published();
    let wire = world.connect((0, "kid", Child), (1, "parent", Parent));
    world.pass(1_000);
    let child = &world.nodes[1];
    assert_eq!(&*child.node.control.node_address(), "test.parent.kid");
    assert_eq!(&*child.account("alice").ilp_address, "test.parent.kid.alice");
    assert_eq!(&*child.account("fixed").ilp_address, "test.fixed");
    let published = child.node.shards.take_published();
    let renamed = "node:test.parent.kid account:alice@test.parent.kid.alice no-route:local.host.alice \
                   route:test.parent.kid.alice=0";
    assert!(published.contains(renamed), "{published}");
    // The child asked for routes and told its own under its new address.
    let routes = "=parent test.fixed=fixed test.parent=parent test.parent.kid.alice=alice test.shop=parent";
    assert_eq!(child.routes(), routes);
    assert_eq!(
        world.nodes[0].leads_to("test.fixed"),
        None,
        "children tell no routes, unless they may"
    );
    let book = world.nodes[1].node.book.read_back();
    assert_eq!(book.assigned_address.as_deref(), Some("test.parent.kid"));
    assert_eq!(book.node_address.as_deref(), Some("test.parent.kid"));

    // It is the address until the parent says otherwise, also after a restart and while the parent is away.
    world.link(wire, false);
    world.restart(1);
    world.pass(10_000);
    assert_eq!(&*world.nodes[1].node.control.node_address(), "test.parent.kid");
    let another = AccountEdit {
        ilp_address: Edit::Set("test.parent.other".into()),
        ..AccountEdit::default()
    };
    update(&world.nodes[0], "kid", another);
    world.link(wire, true);
    world.pass(1_000);
    assert_eq!(&*world.nodes[1].node.control.node_address(), "test.parent.other");
    assert_eq!(
        world.nodes[1].leads_to("test.shop").as_deref(),
        Some("parent"),
        "heard anew"
    );
    world.restart(1);
    assert_eq!(
        world.nodes[1].leads_to("test.shop").as_deref(),
        Some("parent"),
        "and kept"
    );

    // Without a parent the node is what it is configured to be.
    world.nodes[1].node.control.delete_account("parent", false).unwrap();
    assert_eq!(&*world.nodes[1].node.control.node_address(), "local.host");
    assert_eq!(&*world.nodes[1].account("alice").ilp_address, "local.host.alice");
    world.pass(1_000);
    assert_eq!(world.nodes[1].routes(), "local.host.alice=alice test.fixed=fixed");
    assert_eq!(
        (
            world.nodes[1].kept(),
            world.nodes[1].node.book.read_back().assigned_address
        ),
        (0, None)
    );
}

#[test]
fn a_parent_that_is_one_no_more_takes_its_address_along() {
    let mut world = World::new(&["test.parent", "local.host"]);
    world.connect((0, "kid", Child), (1, "parent", Parent));
    world.pass(1_000);
    assert_eq!(&*world.nodes[1].node.control.node_address(), "test.parent.kid");
    let demoted = AccountEdit {
        routing_relation: Edit::Set(Peer),
        ..AccountEdit::default()
    };
    update(&world.nodes[1], "parent", demoted);
    world.pass(1_000);
    assert_eq!(&*world.nodes[1].node.control.node_address(), "local.host");
}

#[test]
fn an_address_for_another_asset_is_not_taken() {
    let mut world = World::new(&["test.parent", "local.host"]);
    let wire = world.connect((0, "kid", Child), (1, "parent", Parent));
    world.link(wire, false);
    let asset = |scale| AccountEdit {
        asset_code: Some("ABC".into()),
        asset_scale: Some(scale),
        ..AccountEdit::default()
    };
    update(&world.nodes[1], "parent", asset(3));
    world.link(wire, true);
    world.pass(70_000);
    assert_eq!(&*world.nodes[1].node.control.node_address(), "local.host");
    // The operator sees to it.
    update(&world.nodes[1], "parent", asset(2));
    world.pass(1_000);
    assert_eq!(&*world.nodes[1].node.control.node_address(), "test.parent.kid");
}

#[test]
fn an_address_that_another_account_has_is_not_taken() {
    let mut world = World::new(&["test.parent", "local.host"]);
    add(&world.nodes[1], "alice", NonRoutingAccount, None);
    let taken = add(
        &world.nodes[1],
        "taken",
        NonRoutingAccount,
        Some("test.parent.kid.alice"),
    );
    world.connect((0, "kid", Child), (1, "parent", Parent));
    world.pass(1_000);
    assert_eq!(&*world.nodes[1].node.control.node_address(), "local.host");
    assert_eq!(&*world.nodes[1].account("alice").ilp_address, "local.host.alice");
    world.nodes[1].node.control.delete_account("taken", false).unwrap();
    world.pass(70_000);
    assert_eq!(
        &*world.nodes[1].account("alice").ilp_address,
        "test.parent.kid.alice",
        "{taken}"
    );
}

#[test]
fn a_restart_keeps_routes_until_the_neighbour_is_silent_for_too_long() {
    let (mut world, [left, right]) = row();
    world.pass(1_000);
    world.link(right, false);
    world.restart(2);
    // Before anybody has said anything.
    let restarted = &world.nodes[2].node;
    restarted.shards.publish(&restarted.control.initial_changes());
    assert_eq!(restarted.shards.next_hop("test.a"), Some(AccountId::new(0)));
    assert_eq!(world.nodes[2].path("test.a", "bob").as_deref(), Some("test.b test.a"));
    // It goes on where it was: nothing is told twice.
    world.link(right, true);
    world.nodes[2].turn(world.now_ms);
    let asked = world.nodes[2].asked.lock().unwrap();
    let prepares: Vec<_> = asked
        .iter()
        .map(|asked| Prepare::parse(&asked.prepare).unwrap())
        .collect();
    let control = prepares
        .iter()
        .find(|prepare| prepare.destination() == CONTROL_DESTINATION)
        .unwrap();
    let control = ControlRequest::parse(control.data()).unwrap();
    let heard = &world.nodes[2].node.book.read_back().heard[0];
    assert_eq!((control.table_id, control.epoch), (heard.table_id, heard.epoch));
    assert!(control.epoch > 0);
    drop(asked);
    world.pass(300_000);
    assert_eq!(world.nodes[2].leads_to("test.a").as_deref(), Some("bob"));

    world.link(left, false);
    world.link(right, false);
    world.restart(2);
    world.pass(59_000);
    assert_eq!(world.nodes[2].leads_to("test.a").as_deref(), Some("bob"));
    world.pass(2_000);
    assert_eq!(world.nodes[2].leads_to("test.a"), None);
    assert_eq!(world.nodes[2].kept(), 0);
}

#[test]
fn a_restart_under_another_address_hears_everything_anew() {
    let (mut world, _) = row();
    world.pass(1_000);
    let book = Arc::clone(&world.nodes[2].node.book);
    assert!(world.nodes[2].kept() > 0);
    world.nodes[2] = TestNode::start("test.d", book, NeighbourSettings::default(), world.now_ms);
    assert_eq!((world.nodes[2].leads_to("test.a"), world.nodes[2].kept()), (None, 0));
}

#[test]
fn requests_are_answered_by_what_the_neighbour_may() {
    let mut world = World::new(&["test.me"]);
    let node = &world.nodes[0];
    let peer = add(node, "peer", Peer, Some("test.peer"));
    let kid = add(node, "kid", Child, None);
    let shop = add(node, "shop", NonRoutingAccount, None);
    let nobody = AccountId::new(99);
    let sync = |mode| {
        let mut data = Vec::new();
        let control = ControlRequest {
            mode,
            table_id: [0; 16],
            epoch: 0,
        };
        control.encode_data(&mut data);
        data
    };
    let told = || update_data("test.peer", "0-1 +test.peer");
    use PeerService::{RouteControl, RouteUpdate, Settle};
    for (from, service, data, expected) in [
        (peer, RouteControl, sync(Mode::Sync), None),
        (peer, RouteControl, sync(Mode::Idle), None),
        (peer, RouteControl, vec![2; 40], Some(ErrorCode::F01_INVALID_PACKET)),
        (peer, RouteControl, vec![], Some(ErrorCode::F01_INVALID_PACKET)),
        (peer, RouteUpdate, told(), None),
        (peer, RouteUpdate, vec![1], Some(ErrorCode::F01_INVALID_PACKET)),
        (kid, RouteControl, sync(Mode::Sync), None),
        (kid, RouteUpdate, told(), Some(ErrorCode::F00_BAD_REQUEST)),
        (shop, RouteControl, sync(Mode::Sync), Some(ErrorCode::F00_BAD_REQUEST)),
        (shop, RouteUpdate, told(), Some(ErrorCode::F00_BAD_REQUEST)),
        (nobody, RouteControl, sync(Mode::Sync), Some(ErrorCode::F00_BAD_REQUEST)),
        (peer, Settle, vec![1], Some(ErrorCode::F02_UNREACHABLE)),
        (shop, Settle, vec![1], Some(ErrorCode::F02_UNREACHABLE)),
    ] {
        let answer = world.request(0, from, service, data);
        assert_eq!(code_of(&answer), expected, "{from} {service:?} {answer:?}");
    }
    // All of an update is durable and in force when it is answered, and an update too many is refused.
    let mut codes = Vec::new();
    for epoch in 1..60 {
        let data = update_data("test.peer", &format!("{epoch}-{} +test.n{epoch}", epoch + 1));
        let answer = world.request(0, peer, RouteUpdate, data);
        if answer == fulfilled() {
            assert_eq!(
                world.nodes[0].leads_to(&format!("test.n{epoch}")).as_deref(),
                Some("peer")
            );
            assert_eq!(world.nodes[0].kept(), epoch + 1);
        }
        codes.push(code_of(&answer));
    }
    assert_eq!(
        codes.iter().filter(|code| code.is_none()).count(),
        39,
        "40 at once, and one was before"
    );
    assert!(codes.contains(&Some(ErrorCode::T05_RATE_LIMITED)));
}

#[test]
fn children_tell_routes_if_they_may() {
    let mut world = World::new(&[]);
    let settings = NeighbourSettings {
        hears_children: true,
        routes_max: 2,
        ..NeighbourSettings::default()
    };
    world.nodes.push(TestNode::new("test.me", settings, world.now_ms));
    let kid = add(&world.nodes[0], "kid", Child, None);
    let data = update_data(
        "test.me.kid",
        "0-5 +test.me.kid.a +test.elsewhere +test.me.kid.b +test.me.kid.c",
    );
    assert_eq!(world.request(0, kid, PeerService::RouteUpdate, data), fulfilled());
    assert_eq!(
        world.nodes[0].routes(),
        "test.me.kid=kid test.me.kid.a=kid test.me.kid.b=kid"
    );
    // It was told more than is kept, so after a restart it asks for all of it.
    assert_eq!(world.nodes[0].node.book.read_back().heard[0].epoch, 0);
}

#[test]
fn an_account_that_changes_or_goes_takes_its_routes_along() {
    let mut world = World::new(&["test.me"]);
    let tell = |world: &mut World, id| {
        let data = update_data("test.peer", "0-3 +test.peer +test.x +test.y");
        assert_eq!(world.request(0, id, PeerService::RouteUpdate, data), fulfilled());
    };
    let peer = add(&world.nodes[0], "peer", Peer, Some("test.peer"));
    tell(&mut world, peer);
    assert_eq!(world.nodes[0].routes(), "test.peer=peer test.x=peer test.y=peer");
    let customer = AccountEdit {
        routing_relation: Edit::Set(NonRoutingAccount),
        ..AccountEdit::default()
    };
    update(&world.nodes[0], "peer", customer);
    world.settle();
    assert_eq!(
        (world.nodes[0].routes().as_str(), world.nodes[0].kept()),
        ("test.peer=peer", 0)
    );
    let again = AccountEdit {
        routing_relation: Edit::Set(Peer),
        ..AccountEdit::default()
    };
    update(&world.nodes[0], "peer", again);
    tell(&mut world, peer);
    assert_eq!(world.nodes[0].kept(), 3);
    world.nodes[0].node.control.delete_account("peer", false).unwrap();
    assert_eq!(world.nodes[0].routes(), "");
    // What was on its way from it comes too late.
    let late = update_data("test.peer", "3-4 +test.z");
    let answer = world.request(0, peer, PeerService::RouteUpdate, late);
    assert_eq!(code_of(&answer), Some(ErrorCode::F00_BAD_REQUEST));
    assert_eq!((world.nodes[0].routes().as_str(), world.nodes[0].kept()), ("", 0));
}

#[test]
fn an_update_that_cannot_be_kept_is_refused_and_not_in_force() {
    let mut world = World::new(&["test.me"]);
    let peer = add(&world.nodes[0], "peer", Peer, Some("test.peer"));
    world.settle();
    world.nodes[0].node.book.fail("the disk is full");
    let data = update_data("test.peer", "0-1 +test.x");
    let answer = world.request(0, peer, PeerService::RouteUpdate, data);
    assert_eq!(code_of(&answer), Some(ErrorCode::T00_INTERNAL_ERROR));
    assert_eq!(world.nodes[0].routes(), "test.peer=peer");
}

#[test]
fn what_came_at_once_is_one_commit_and_one_publication() {
    let mut world = World::new(&["test.me"]);
    let peers: Vec<_> = (0..100)
        .map(|number| {
            let address = format!("test.peer{number}");
            add(&world.nodes[0], &format!("peer{number}"), Peer, Some(&address))
        })
        .collect();
    world.settle();
    let commits = world.nodes[0].node.book.commits();
    for (number, from) in peers.iter().enumerate() {
        let data = update_data("test.somebody", &format!("0-1 +test.n{number}"));
        world.nodes[0].events.push(NeighbourEvent::Request(PeerRequest {
            from: *from,
            service: PeerService::RouteUpdate,
            data,
            respond: Box::new(|answer| assert_eq!(answer, fulfilled())),
        }));
    }
    world.nodes[0].turn(world.now_ms);
    assert_eq!(world.nodes[0].node.book.commits() - commits, 1);
    assert_eq!(world.nodes[0].kept(), 100);
}

#[test]
fn a_thousand_idle_neighbours_cost_little() {
    let mut world = World::new(&["test.hub"]);
    let answers = Arc::<Mutex<usize>>::default();
    let count = Arc::clone(&answers);
    world.nodes[0].node.shards.set_neighbour(move |_, prepare, done| {
        *count.lock().unwrap() += 1;
        assert!(Prepare::parse(prepare).is_ok());
        done(Some(encode(&fulfilled())));
    });
    for number in 0..1_000 {
        let id = add(
            &world.nodes[0],
            &format!("peer{number}"),
            Peer,
            Some(&format!("test.peer{number}")),
        );
        world.nodes[0]
            .events
            .push(NeighbourEvent::Link { account: id, up: true });
    }
    world.pass(1_000);
    let (turns, asked) = (world.nodes[0].turns, *answers.lock().unwrap());
    assert_eq!(asked, 2_000, "each is asked for routes and told ours");
    world.pass(60_000);
    let (turns, asked) = (world.nodes[0].turns - turns, *answers.lock().unwrap() - asked);
    assert!(asked <= 5_000, "{asked} requests in a minute");
    assert!(turns <= asked, "{turns} turns for {asked} requests");
}
