//! Route exchange between two nodes over a link that loses, repeats, delays and reorders everything, while tables
//! change and nodes start again: in the end the one that listens has the routes that it may know and believe, and no
//! others.
//!
//! Time is turned by hand, nothing is sent over sockets. The rules are told here a second time, as plainly as possible,
//! so that a mistake in the filter cannot hide behind itself.

// Alone, because nothing else of the support is needed.
#[allow(dead_code)]
#[path = "support/random.rs"]
mod random;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use clearway::ledger::account::{AccountId, RoutingRelation};
use clearway::routing::ccp::{
    Answer, Change, INTERVAL_MS, Learned, Listener, ListenerConfig, Log, LogLimits, Neighbour, NextHop, Path, Refusal,
    Speaker,
};
use clearway::wire::address::Address;
use clearway::wire::ccp::{Control, NewRoute, Update, UpdateHead, UpdateWriter};
use clearway::wire::timestamp::Timestamp;
use random::Random;

const STORIES: u64 = 400;
/// Of virtual time: with faults, then without.
const CHAOS_MS: u64 = 400_000;
const CALM_MS: u64 = 300_000;

/// What no neighbour makes shorter.
const UPDATE_PAUSE_MS: u64 = 150;

/// Who listens is this account of who speaks.
const LISTENER_ACCOUNT: u32 = 1;
/// Few, so that much is forgotten.
const LIMITS: LogLimits = LogLimits {
    routes_max: 1_000,
    withdrawn_spare: 5,
};

/// Who speaks, who listens, and what the listener is to the speaker and the speaker to the listener.
const PAIRS: [(&str, &str, RoutingRelation, RoutingRelation); 5] = [
    ("test.alice", "test.bob", RoutingRelation::Peer, RoutingRelation::Peer),
    (
        "test.alice",
        "test.alice.bob",
        RoutingRelation::Child,
        RoutingRelation::Parent,
    ),
    (
        "test.bob.alice",
        "test.bob",
        RoutingRelation::Parent,
        RoutingRelation::Child,
    ),
    (
        "test.alice",
        "test.bob",
        RoutingRelation::Parent,
        RoutingRelation::Child,
    ),
    ("test.alice", "test.bob", RoutingRelation::Peer, RoutingRelation::Parent),
];

/// A message on its way.
enum Message {
    Update { request: u32, data: Vec<u8> },
    UpdateAnswer { request: u32, answer: Answer },
    Control { request: u32, control: Control },
    ControlAnswer { request: u32, answer: Answer },
}

/// What the link does to messages.
#[derive(Clone, Copy)]
struct Faults {
    lost_percent: u64,
    repeated_percent: u64,
    delay_ms_max: u64,
}

const NONE: Faults = Faults {
    lost_percent: 0,
    repeated_percent: 0,
    delay_ms_max: 20,
};

struct World {
    random: Random,
    now: u64,
    faults: Faults,
    is_up: bool,
    pair: (&'static str, &'static str, RoutingRelation, RoutingRelation),

    /// What leads where, at the node that speaks.
    table: BTreeMap<String, (NextHop, Vec<String>)>,
    log: Log,
    speaker: Speaker,
    listener: Listener,
    /// What the listener's changes add up to.
    heard: BTreeMap<String, Vec<String>>,

    /// By the time of arrival.
    on_the_way: BTreeMap<u64, VecDeque<Message>>,
    /// By the speaker as it is, before it starts again.
    update_sent_at: Option<u64>,
}

fn path_of<S: AsRef<str>>(hops: &[S]) -> Path {
    Path::new(
        hops.iter()
            .map(|hop| Address::parse(hop.as_ref().as_bytes()).expect("an address")),
    )
}

impl World {
    fn new(mut random: Random) -> Self {
        let pair = PAIRS[random.between(0, PAIRS.len() as u64 - 1) as usize];
        let table_id = random.bytes();
        let mut world = Self {
            now: 1_000_000,
            faults: NONE,
            is_up: false,
            pair,
            table: BTreeMap::new(),
            log: new_log(pair.0, table_id),
            speaker: new_speaker(&pair),
            listener: new_listener(&pair),
            heard: BTreeMap::new(),
            on_the_way: BTreeMap::new(),
            update_sent_at: None,
            random,
        };
        world.link(true);
        world
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.between(1, 100) <= percent
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    fn send(&mut self, message: Message) {
        let delay = self.random.between(1, self.faults.delay_ms_max);
        self.on_the_way.entry(self.now + delay).or_default().push_back(message);
    }

    /// Link up or down. What is on its way may still arrive.
    fn link(&mut self, is_up: bool) {
        self.is_up = is_up;
        if is_up {
            self.speaker.handle_up();
            self.listener.handle_up(self.time());
        } else {
            self.speaker.handle_down();
            self.listener.handle_down();
        }
    }

    // What happens to the nodes.

    fn change_table(&mut self) {
        let prefix = match self.random.between(0, 9) {
            0 => "test".to_owned(),
            1 => "g.elsewhere".to_owned(),
            2 => format!("{}.customer", self.pair.0),
            3 => format!("{}.customer", self.pair.1),
            4 => self.pair.1.to_owned(),
            _ => format!("test.n{}.x", self.random.between(0, 40)),
        };
        if self.chance(45) {
            self.table.remove(&prefix);
            self.log.withdraw(&prefix.into());
            return;
        }
        let next_hop = NextHop {
            account: AccountId::new(self.random.between(1, 4) as u32),
            relation: RoutingRelation::ALL[self.random.between(0, 3) as usize],
        };
        let mut hops: Vec<String> = (0..self.random.between(0, 3))
            .map(|hop| format!("test.h{hop}"))
            .collect();
        if self.chance(10) {
            hops.push(self.pair.1.to_owned());
        }
        if self.chance(3) {
            hops.extend((0..32).map(|hop| format!("test.far{hop}")));
        }
        self.table.insert(prefix.clone(), (next_hop, hops));
        self.tell(&prefix);
    }

    fn tell(&mut self, prefix: &str) {
        let (next_hop, hops) = &self.table[prefix];
        let learned = Learned {
            path: path_of(hops),
            auth: [5; 32],
        };
        let learned = (!hops.is_empty()).then_some(&learned);
        self.log.announce(&prefix.into(), *next_hop, learned);
    }

    fn restart_speaker(&mut self) {
        self.link(false);
        self.log = new_log(self.pair.0, self.random.bytes());
        for prefix in self.table.keys().cloned().collect::<Vec<_>>() {
            self.tell(&prefix);
        }
        self.speaker = new_speaker(&self.pair);
        self.update_sent_at = None;
        self.link(true);
    }

    fn restart_listener(&mut self) {
        self.link(false);
        self.listener = new_listener(&self.pair);
        self.heard.clear();
        self.link(true);
    }

    fn mischief(&mut self) {
        match self.random.between(0, 99) {
            0..80 => {
                for _ in 0..self.random.between(1, 8) {
                    self.change_table();
                }
            }
            80..84 => (0..200).for_each(|_| self.change_table()),
            84..88 => self.restart_speaker(),
            88..92 => self.restart_listener(),
            92..97 => {
                self.link(false);
                self.link(true);
            }
            _ => {
                let is_up = self.is_up;
                self.link(!is_up);
            }
        }
    }

    // How messages go.

    /// All that is due now.
    fn turn(&mut self) {
        while let Some(first) = self.on_the_way.first_entry().filter(|first| *first.key() <= self.now) {
            for message in first.remove() {
                self.arrive(message);
            }
        }
        let changes = self.listener.handle_time(self.time());
        self.take(changes);
        let mut data = Vec::new();
        if let Some(request) = self.speaker.poll_update(self.time(), &self.log, &mut data) {
            let earliest = self.update_sent_at.map_or(0, |at| at + UPDATE_PAUSE_MS);
            assert!(self.now >= earliest, "updates have pauses, whatever is asked and lost");
            self.update_sent_at = Some(self.now);
            self.send(Message::Update { request, data });
        }
        if let Some((request, control)) = self.listener.poll_control(self.time()) {
            self.send(Message::Control { request, control });
        }
    }

    fn arrive(&mut self, message: Message) {
        if self.chance(self.faults.lost_percent) {
            // Who waits for an answer may hear that there is none, or nothing at all.
            if self.chance(50) {
                match message {
                    Message::Update { request, .. } => {
                        self.speaker.handle_answer(self.time(), request, Answer::Missing);
                    }
                    Message::Control { request, .. } => self.listener.handle_answer(request, Answer::Missing),
                    Message::UpdateAnswer { .. } | Message::ControlAnswer { .. } => {}
                }
            }
            return;
        }
        let is_repeated = self.chance(self.faults.repeated_percent);
        match message {
            Message::Update { request, data } => {
                let update = Update::parse(&data).expect("a speaker writes what can be read");
                let room = usize::MAX;
                let result = self.listener.handle_update(self.time(), &update, room);
                let answer = match result {
                    Ok(changes) => {
                        self.take(changes);
                        Answer::Fulfilled
                    }
                    Err(refusal) => Answer::Rejected(refusal.code()),
                };
                if is_repeated {
                    self.send(Message::Update { request, data });
                }
                self.send(Message::UpdateAnswer { request, answer });
            }
            Message::Control { request, control } => {
                let result = self.speaker.handle_control(&control, &self.log);
                let answer = result.map_or_else(|refusal| Answer::Rejected(refusal.code()), |()| Answer::Fulfilled);
                if is_repeated {
                    self.send(Message::Control { request, control });
                }
                self.send(Message::ControlAnswer { request, answer });
            }
            Message::UpdateAnswer { request, answer } => self.speaker.handle_answer(self.time(), request, answer),
            Message::ControlAnswer { request, answer } => self.listener.handle_answer(request, answer),
        }
    }

    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Announce { prefix, learned } => {
                    let hops = learned.path.hops().map(str::to_owned).collect();
                    self.heard.insert(prefix.to_string(), hops);
                }
                Change::Withdraw { prefix } => {
                    assert!(self.heard.remove(&*prefix).is_some(), "{prefix} was announced before");
                }
            }
        }
        assert_eq!(self.heard.len(), self.listener.len());
    }

    fn run(&mut self, ms: u64, faults: Faults, mischief_ms_max: Option<u64>) {
        self.faults = faults;
        let end = self.now + ms;
        let mut mischief_at = mischief_ms_max.map(|ms| self.now + self.random.between(0, ms));
        let mut turns = 0;
        loop {
            self.turn();
            let wakeups = [self.speaker.next_wakeup(&self.log), self.listener.next_wakeup()];
            let next = wakeups
                .into_iter()
                .flatten()
                .map(Timestamp::as_millis)
                .chain(self.on_the_way.first_key_value().map(|(&at, _)| at))
                .chain(mischief_at)
                .min()
                .unwrap_or(end);
            if next >= end {
                break;
            }
            turns += 1;
            assert!(turns < 200_000, "it comes to rest");
            self.now = next.max(self.now);
            if mischief_at.is_some_and(|at| at <= self.now) {
                self.mischief();
                let pause = self.random.between(0, mischief_ms_max.unwrap_or_default());
                mischief_at = Some(self.now + pause);
            }
        }
        self.now = end;
    }

    /// What the listener should have, by the rules of protocols.md 8.4 and 8.8.
    fn expected(&self) -> BTreeMap<String, Vec<String>> {
        let (speaker, listener, listener_is, speaker_is) = self.pair;
        let below = |prefix: &str, space: &str| format!("{prefix}.").starts_with(&format!("{space}."));
        let mut expected = BTreeMap::new();
        let own = (speaker.to_owned(), None, Vec::new());
        let others = self
            .table
            .iter()
            .map(|(prefix, (hop, path))| (prefix.clone(), Some(*hop), path.clone()));
        for (prefix, next_hop, mut path) in std::iter::once(own).chain(others) {
            if let Some(next_hop) = next_hop {
                let is_ours = matches!(
                    next_hop.relation,
                    RoutingRelation::Child | RoutingRelation::NonRoutingAccount
                );
                let is_told = next_hop.account.get() != LISTENER_ACCOUNT
                    && (listener_is != RoutingRelation::Parent || is_ours)
                    && prefix.starts_with("test.")
                    && !below(&prefix, speaker);
                if !is_told {
                    continue;
                }
            }
            path.insert(0, speaker.to_owned());
            let is_believed = if speaker_is == RoutingRelation::Child {
                below(&prefix, speaker)
            } else {
                !below(&prefix, listener)
            };
            if is_believed && path.len() <= 32 && !path.iter().any(|hop| hop == listener) {
                expected.insert(prefix, path);
            }
        }
        expected
    }
}

fn new_log(own: &str, table_id: [u8; 16]) -> Log {
    let own = Address::parse(own.as_bytes()).expect("an address");
    Log::new(own, table_id, &[3; 32], LIMITS)
}

fn new_speaker(pair: &(&str, &str, RoutingRelation, RoutingRelation)) -> Speaker {
    let neighbour = Neighbour {
        account: AccountId::new(LISTENER_ACCOUNT),
        relation: pair.2,
        address: pair.1.into(),
    };
    Speaker::new(neighbour, INTERVAL_MS)
}

fn new_listener(pair: &(&str, &str, RoutingRelation, RoutingRelation)) -> Listener {
    Listener::new(ListenerConfig {
        own: pair.1.into(),
        neighbour: Neighbour {
            account: AccountId::new(1),
            relation: pair.3,
            address: pair.0.into(),
        },
        hears_children: true,
        routes_max: 1_000,
    })
}

#[test]
fn whatever_happens_the_listener_ends_with_the_routes_of_the_speaker() {
    let mut seeds = Random::new("route exchange");
    let mut most = 0;
    for _ in 0..STORIES {
        let seed = seeds.next();
        let mut world = World::new(Random::from_seed(seed));
        let faults = Faults {
            lost_percent: world.random.between(0, 60),
            repeated_percent: world.random.between(0, 40),
            delay_ms_max: [5, 500, 20_000, 60_000][world.random.between(0, 3) as usize],
        };
        let mischief_ms_max = [500, 5_000, 60_000][world.random.between(0, 2) as usize];
        world.run(CHAOS_MS, faults, Some(mischief_ms_max));
        let is_up = world.is_up;
        if !is_up {
            world.link(true);
        }
        world.run(CALM_MS, NONE, None);
        assert_eq!(world.heard, world.expected(), "story {seed}, {:?}", world.pair);
        let kept: Vec<_> = world.listener.routes().map(|(prefix, _)| prefix.to_string()).collect();
        assert_eq!(kept, world.heard.into_keys().collect::<Vec<_>>(), "story {seed}");
        assert_eq!(world.speaker.epoch(&world.log), world.log.epoch(), "story {seed}");
        most = most.max(kept.len());
    }
    assert!(most > 10, "the stories are about routes");
}

#[test]
fn a_node_that_floods_is_bounded() {
    const ROUTES_MAX: usize = 2_000;
    const SECONDS: u64 = 30;
    let mut random = Random::new("flood");
    let pair = PAIRS[0];
    let mut listener = Listener::new(ListenerConfig {
        own: pair.1.into(),
        neighbour: Neighbour {
            account: AccountId::new(1),
            relation: RoutingRelation::Peer,
            address: pair.0.into(),
        },
        hears_children: false,
        routes_max: ROUTES_MAX,
    });
    let speaker = Address::parse(pair.0.as_bytes()).expect("an address");
    let (mut accepted, mut refused, mut changed) = (0, 0, 0);
    let mut kept: BTreeMap<Arc<str>, Learned> = BTreeMap::new();
    for ms in 0..SECONDS * 1_000 {
        let mut writer = UpdateWriter::new(speaker);
        for _ in 0..20 {
            let prefix = format!("test.flood{}", random.next());
            if random.between(0, 3) > 0 {
                writer.announce(&NewRoute {
                    prefix: &prefix,
                    path: Default::default(),
                    auth: &random.bytes(),
                });
            } else if let Some(known) = kept.keys().next() {
                writer.withdraw(known);
            }
        }
        let head = UpdateHead {
            // Now and then it pretends to have started again.
            table_id: [(ms / 7_000) as u8; 16],
            current_epoch: u32::MAX,
            from_epoch: 0,
            to_epoch: u32::MAX,
            hold_down_ms: u32::MAX,
            speaker,
        };
        let mut data = Vec::new();
        writer.finish(&head, &mut data);
        let update = Update::parse(&data).expect("well written");
        match listener.handle_update(Timestamp::from_millis(1_000_000 + ms), &update, usize::MAX) {
            Ok(changes) => {
                accepted += 1;
                changed += changes.len();
                for change in changes {
                    match change {
                        Change::Announce { prefix, learned } => drop(kept.insert(prefix, learned)),
                        Change::Withdraw { prefix } => drop(kept.remove(&prefix)),
                    }
                }
            }
            Err(refusal) => {
                assert_eq!(refusal, Refusal::TooMany);
                refused += 1;
            }
        }
        assert!(listener.len() <= ROUTES_MAX);
        assert_eq!(kept.len(), listener.len());
    }
    assert!(accepted <= 40 + SECONDS * 20, "{accepted} updates were accepted");
    assert!(
        refused > 0 && changed > 0,
        "{refused} were refused, {changed} routes changed"
    );
    assert!(listener.routes().eq(kept.iter()), "what was reported is what is kept");
}
