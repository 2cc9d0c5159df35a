//! Shards and neighbours, without the cold half of a node: its place is taken by the test. What the node asks over either
//! kind of link, what becomes of a neighbour's request until it is answered, and what is told of links. Also what the cold
//! half tells shards of settlements.

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clearway::ledger::account::Links;
use clearway::ledger::settlement::{Remainder, Settlement as SettlementRecord, SettlementState};
use clearway::ledger::{
    Account, AccountId, AccountLimits, Asset, AssetId, OrDefault, PackedLinks, RoutingRelation, Settlement,
};
use clearway::net::{Waker, listener};
use clearway::pipeline::Settings;
use clearway::pipeline::forward::Windows;
use clearway::pipeline::rates::Decimal;
use clearway::shard::clock::Clock;
use clearway::shard::control::{
    Change, NeighbourEvent, NeighbourEvents, PeerAnswer, PeerRequest, PeerService, Port, SettleNow, SettleOrder,
    Shards, neighbour_events,
};
use clearway::shard::dialing::Lookup;
use clearway::shard::handle::ShardsHandle;
use clearway::shard::http_serving::Tokens;
use clearway::shard::mesh::{Cold, Mailbox};
use clearway::shard::{Setup, Shard};
use clearway::store::{self, Durability, Mutation, RocksStore, Writer, WriterHandle};
use clearway::wire::packet::ErrorCode;
use clearway::wire::peer::encode_request;
use clearway::wire::timestamp::Timestamp;
use clearway::wire::{address, ccp};
use crossbeam::channel::{bounded, unbounded};
use glommio::{LocalExecutorBuilder, Placement};
use support::btp_peer::{BtpPeer, BtpServer, packet_of};
use support::http::Connection;
use support::http_peer::HttpPeer;
use support::packet::{Prepare, Reply, now};
use support::rule::{Answer, Rule};
use support::{PATIENCE, eventually, free_address};

const SHARDS: usize = 2;

/// Two shards on a store that nothing is written to.
struct Hub {
    handle: ShardsHandle,
    events: NeighbourEvents,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
    writer: WriterHandle,
    data: PathBuf,
}

impl Hub {
    fn start(name: &str) -> Self {
        let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        // Left by a process of the same number that was killed.
        let _ = std::fs::remove_dir_all(&data);
        std::fs::create_dir_all(&data).expect("the target folder is writable");
        let mut rocks = RocksStore::open(&data, &[7; 32]).expect("a new store");
        let book = store::recover(&mut rocks).expect("an empty book");
        let (writer, transfers) = Writer::start(
            Box::new(rocks),
            &book,
            SHARDS,
            Durability::Commit,
            Duration::ZERO,
            unbounded().0,
        )
        .expect("a thread");
        let mailboxes: Arc<[Mailbox]> = (0..SHARDS)
            .map(|_| Mailbox::new(Waker::new().expect("an eventfd")))
            .collect();
        let (news, events) = neighbour_events();
        let (api, _) = bounded(1);
        let (lookups, names) = bounded::<Lookup>(1);
        // Nobody has a name.
        std::thread::spawn(move || names.into_iter().for_each(|lookup| (lookup.respond)(None)));
        let (listening, address) = listener::bind(free_address()).expect("a free port");
        let mut threads = Vec::new();
        for (id, transfers) in (0..).zip(transfers) {
            let setup = Setup {
                settings: Settings {
                    reflect: true,
                    echo: true,
                    windows: Windows::default(),
                    spread: Decimal::zero(),
                },
                tokens: Tokens {
                    admin: "nobody has it".into(),
                    settlement: None,
                },
                secret_seed: [7; 32],
                listeners: vec![(Port::Api, listening.try_clone().expect("a duplicate"))],
                mailboxes: mailboxes.clone(),
                transfers,
                store: writer.clone(),
                api: api.clone(),
                neighbours: news.clone(),
                lookups: lookups.clone(),
                changes: Arc::new(vec![Change::NodeAddress("test.hub".into())]),
                booked: Arc::new([]),
                open_settlements: Arc::default(),
                connections_max: 1_000,
                connections_open: Arc::default(),
                clock: Clock::start(),
                give_back_memory: || {},
            };
            threads.push(std::thread::spawn(move || {
                let executor = LocalExecutorBuilder::new(Placement::Unbound)
                    .io_memory(64 << 10)
                    .ring_depth(64)
                    .make()
                    .expect("an executor");
                executor.run(async { Shard::new(id, setup).expect("a ring").run().await });
            }));
        }
        Self {
            handle: ShardsHandle::new(mailboxes),
            events,
            address,
            threads,
            writer,
            data,
        }
    }

    /// An account that may send no packet and owe nothing: what neighbours are asked needs neither.
    fn put(&self, id: u32, relation: RoutingRelation, links: Links) -> AccountId {
        let account = Self::account(id, relation, links);
        self.handle.publish(&[Change::Account(Arc::new(account))]);
        AccountId::new(id)
    }

    fn account(id: u32, relation: RoutingRelation, links: Links) -> Account {
        let limits = AccountLimits {
            packets_per_minute: (relation == RoutingRelation::Parent).then_some(0),
            balance_min: Some(0),
            balance_max: Some(0),
            ..AccountLimits::default()
        };
        Account {
            id: AccountId::new(id),
            uuid: [id as u8; 16],
            username: name_of(id).into(),
            ilp_address: format!("test.hub.{}", name_of(id)).into(),
            ilp_address_generated: true,
            asset: Arc::new(Asset {
                code: "ABC".into(),
                scale: 9,
            }),
            asset_id: AssetId::new(0),
            routing_relation: relation,
            limits: limits.into(),
            round_trip_time_ms: 500,
            settlement: OrDefault::default(),
            links: PackedLinks::from(links),
            created_at_ms: 0,
        }
    }

    fn ask(&self, account: AccountId, prepare: &[u8]) -> Receiver<Option<Reply>> {
        let (sender, answer) = channel();
        let done = Box::new(move |reply: Option<Vec<u8>>| {
            let reply = reply.map(|bytes| Reply::decode(&bytes).expect("one packet and nothing else"));
            // The test may have ended.
            let _ = sender.send(reply);
        });
        self.handle.ask(account, prepare.to_vec(), done);
        answer
    }

    fn asked(&self, account: AccountId) -> Option<Reply> {
        answer_of(&self.ask(account, &control(60_000)))
    }

    /// Waits for what is told of a link.
    fn expect_link(&self, account: AccountId, up: bool) {
        let told = self.next_link(account, up);
        assert_eq!(told, (account, up));
    }

    /// The same, where it may have been told before how it stood until then: who is slow hears the newest only.
    fn expect_link_at_last(&self, account: AccountId, up: bool) {
        let mut told = self.next_link(account, up);
        if told == (account, !up) {
            told = self.next_link(account, up);
        }
        assert_eq!(told, (account, up));
    }

    fn next_link(&self, account: AccountId, up: bool) -> (AccountId, bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.events.next(Some(until)) {
                Some(NeighbourEvent::Link {
                    account: told,
                    up: is_up,
                }) => return (told, is_up),
                Some(NeighbourEvent::Request(request)) => panic!("{} asks", request.from),
                None => assert!(
                    Instant::now() < until,
                    "the link of {account} is to be told as up: {up}"
                ),
            }
        }
    }

    /// Nothing is told, and no question or request is left.
    fn expect_quiet(&self, accounts: &[AccountId]) {
        for account in accounts {
            let state = self.handle.account_state(*account).expect("the account is there");
            assert_eq!(
                (state.booked, state.held, state.reserved, state.in_flight),
                (0, 0, 0, 0)
            );
        }
        let unanswered = || (self.handle.unanswered() == Some(0)).then_some(());
        eventually("everything is answered", unanswered);
        assert!(self.events.next(Some(Instant::now())).is_none(), "nothing else is told");
    }

    fn next_request(&self) -> PeerRequest {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.events.next(Some(until)) {
                Some(NeighbourEvent::Request(request)) => return request,
                Some(NeighbourEvent::Link { .. }) => {}
                None => assert!(Instant::now() < until, "no request has come"),
            }
        }
    }

    fn connect(&self, id: u32) -> BtpPeer {
        BtpPeer::connect(self.address, &name_of(id), Rule::fulfill())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.handle.tell_all(|| Cold::Stop);
        self.handle.tell_all(|| Cold::Exit);
        for thread in self.threads.drain(..) {
            // A shard that failed has said so.
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "no shard panics");
        }
        self.writer.stop();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

fn name_of(id: u32) -> String {
    format!("neighbour_{id}")
}

fn answer_of(answer: &Receiver<Option<Reply>>) -> Option<Reply> {
    answer.recv_timeout(PATIENCE).expect("every question has an end")
}

/// A route control as the node would send it, with so much time.
fn control(left_ms: u64) -> Vec<u8> {
    let mut prepare = Vec::new();
    let sent_at = Timestamp::from_millis(now() + left_ms - 60_000);
    encode_request(&mut prepare, sent_at, ccp::CONTROL_DESTINATION, b"tell me");
    prepare
}

fn zeros(data: &[u8]) -> Reply {
    Reply::Fulfill {
        fulfillment: [0; 32],
        data: data.to_vec(),
    }
}

fn http(url: String) -> Links {
    Links {
        http_url: Some(url.into()),
        ..Links::default()
    }
}

/// The peer dials us.
fn btp_in(id: u32) -> Links {
    Links {
        btp_incoming_token: Some(format!("{}-btp", name_of(id)).into()),
        http_incoming_token: Some(format!("{}-http", name_of(id)).into()),
        ..Links::default()
    }
}

fn btp_out(server: &BtpServer) -> Links {
    Links {
        btp_url: Some(server.url("btp+ws").into()),
        btp_outgoing_token: Some("from-the-node".into()),
        ..Links::default()
    }
}

const PEER: RoutingRelation = RoutingRelation::Peer;

/// Over HTTP and over BTP, to accounts of either shard, one and many; also to an account that may not send a packet.
#[test]
fn questions_and_their_answers() {
    let hub = Hub::start("questions");
    let rule = Rule::always(Answer::Reply(zeros(b"here you are")));
    let (peer, server) = (
        HttpPeer::start(rule.clone()),
        BtpServer::start("from-the-node", rule.clone()),
    );
    let accounts: Vec<AccountId> = (0..4)
        .map(|id| match id / 2 {
            0 => hub.put(id, RoutingRelation::Parent, http(peer.url())),
            _ => hub.put(id, RoutingRelation::Parent, btp_out(&server)),
        })
        .collect();
    for account in &accounts {
        assert!(
            hub.handle.wait_for_btp(*account, Duration::ZERO) || account.get() < 2 || {
                hub.handle.wait_for_btp(*account, PATIENCE)
            }
        );
        let before = rule.received().len();
        let asked = control(60_000);
        assert_eq!(answer_of(&hub.ask(*account, &asked)), Some(zeros(b"here you are")));
        let received = rule.received();
        assert_eq!(received.len(), before + 1);
        assert_eq!(received[before].encode(), asked, "as it was given");
    }
    let answers: Vec<_> = (0..400)
        .map(|number| hub.ask(accounts[number % 4], &control(60_000)))
        .collect();
    for answer in &answers {
        assert_eq!(answer_of(answer), Some(zeros(b"here you are")));
    }
    while hub.events.next(Some(Instant::now())).is_some() {}
    hub.expect_quiet(&accounts);
}

/// Whatever else a neighbour does, the question comes to its end, and nothing is left of it.
#[test]
fn what_is_no_answer() {
    let hub = Hub::start("no-answers");
    let reject = Reply::reject("F00", "test.peer", "not allowed", b"");
    for (answer, left_ms, expected) in [
        (Answer::Reply(reject.clone()), 60_000, Some(reject)),
        (
            Answer::Reply(Reply::Fulfill {
                fulfillment: [1; 32],
                data: Vec::new(),
            }),
            60_000,
            None,
        ),
        (Answer::Bytes(b"garbage".to_vec()), 60_000, None),
        (Answer::Bytes(Vec::new()), 60_000, None),
        (Answer::Status(500), 60_000, None),
        (Answer::Close, 60_000, None),
        (Answer::Nothing, 300, None),
    ] {
        let rule = Rule::always(answer.clone());
        let (peer, server) = (HttpPeer::start(rule.clone()), BtpServer::start("from-the-node", rule));
        let accounts = [hub.put(0, PEER, http(peer.url())), hub.put(1, PEER, btp_out(&server))];
        assert!(hub.handle.wait_for_btp(accounts[1], PATIENCE));
        for account in accounts {
            let said = answer_of(&hub.ask(account, &control(left_ms)));
            assert_eq!(said, expected, "{account} {answer:?}");
        }
        drop((peer, server));
        for account in accounts {
            hub.handle.publish(&[Change::CloseAccount(account)]);
            let state = hub.handle.account_state(account).expect("it is there");
            assert_eq!(state.in_flight, 0, "{account} {answer:?}");
            hub.handle.publish(&[Change::RemoveAccount(account)]);
            assert_eq!(hub.asked(account), None, "it is gone");
        }
    }
    // No link at all, one that is not connected, and a question whose time is over.
    let none = hub.put(2, PEER, Links::default());
    let not_connected = hub.put(3, PEER, btp_in(3));
    assert_eq!((hub.asked(none), hub.asked(not_connected)), (None, None));
    let connected = hub.connect(3);
    assert!(hub.handle.wait_for_btp(not_connected, PATIENCE));
    assert_eq!(answer_of(&hub.ask(not_connected, &control(0))), None);
    assert!(connected.rule.received().is_empty(), "it is not sent");
}

/// A question to a neighbour that says nothing does not keep anybody waiting for a minute: not who deletes the account,
/// not who stops the node.
#[test]
fn silent_neighbours_hold_nothing_up() {
    let hub = Hub::start("silent");
    let rule = Rule::always(Answer::Nothing);
    let (peer, server) = (
        HttpPeer::start(rule.clone()),
        BtpServer::start("from-the-node", rule.clone()),
    );
    let accounts = [hub.put(0, PEER, http(peer.url())), hub.put(1, PEER, btp_out(&server))];
    assert!(hub.handle.wait_for_btp(accounts[1], PATIENCE));
    let ask_both = || accounts.map(|account| hub.ask(account, &control(60_000)));
    for round in 1..=2 {
        let open = ask_both();
        eventually("they were asked", || (rule.received().len() == 2 * round).then_some(()));
        for account in accounts {
            let state = hub.handle.account_state(account).expect("it is there");
            assert_eq!(state.in_flight, 0, "a question is no reason to leave an account alone");
        }
        assert_eq!(hub.handle.unanswered(), Some(2));
        match round {
            1 => {
                for account in accounts {
                    hub.handle.publish(&[Change::CloseAccount(account)]);
                    assert_eq!(hub.asked(account), None, "closed");
                    hub.handle.publish(&[Change::ReopenAccount(account)]);
                }
            }
            _ => hub.handle.tell_all(|| Cold::Stop),
        }
        assert!(open.iter().all(|answer| answer_of(answer).is_none()));
        assert_eq!(hub.handle.unanswered(), Some(0));
    }
    assert!(
        ask_both().iter().all(|answer| answer_of(answer).is_none()),
        "a node that stops asks nothing"
    );
}

#[test]
fn links_are_told() {
    let hub = Hub::start("links");
    // Without any link there is nothing to tell; what is told of others comes first.
    hub.put(9, PEER, Links::default());

    let btp = hub.put(0, PEER, btp_in(0));
    hub.expect_link(btp, false);
    let peer = hub.connect(0);
    hub.expect_link(btp, true);
    peer.close();
    hub.expect_link(btp, false);
    let peer = hub.connect(0);
    hub.expect_link(btp, true);
    // A second session in the place of the first: it is up, and stays so when the first ends.
    let second = hub.connect(0);
    hub.expect_link(btp, true);
    peer.expect_closed();
    second.close();
    hub.expect_link(btp, false);

    let rule = Rule::always(Answer::Reply(zeros(b"")));
    let server = BtpServer::start("from-the-node", rule.clone());
    let dialled = hub.put(1, PEER, btp_out(&server));
    hub.expect_link_at_last(dialled, true);
    drop(server);
    hub.expect_link(dialled, false);
    hub.put(1, PEER, Links::default());
    hub.expect_link(dialled, false);

    // Up until a connection fails; asked all the same, and up again.
    let address = free_address();
    let over_http = hub.put(2, PEER, http(format!("http://{address}/ilp")));
    hub.expect_link(over_http, true);
    assert_eq!(hub.asked(over_http), None);
    hub.expect_link(over_http, false);
    assert_eq!(hub.asked(over_http), None, "told once");
    let peer = HttpPeer::start_at(address, rule.clone());
    assert_eq!(hub.asked(over_http), Some(zeros(b"")));
    hub.expect_link(over_http, true);
    assert_eq!(hub.asked(over_http), Some(zeros(b"")));
    drop(peer);
    assert_eq!(hub.asked(over_http), None);
    // The old connection may have been what failed first.
    assert_eq!(hub.asked(over_http), None);
    hub.expect_link(over_http, false);
    // A peer that takes connections and ends them without a word is as good as none, until its first answer.
    let is_mute = Arc::new(AtomicBool::new(true));
    let peer = HttpPeer::start(Rule::new({
        let is_mute = Arc::clone(&is_mute);
        move |_| match is_mute.load(Ordering::SeqCst) {
            true => Answer::Close,
            false => Answer::Reply(zeros(b"")),
        }
    }));
    let mute = hub.put(3, PEER, http(peer.url()));
    hub.expect_link(mute, true);
    assert_eq!(hub.asked(mute), None);
    hub.expect_link(mute, false);
    assert_eq!(hub.asked(mute), None, "told once");
    is_mute.store(false, Ordering::SeqCst);
    assert_eq!(hub.asked(mute), Some(zeros(b"")));
    hub.expect_link(mute, true);

    // Another URL, another chance.
    hub.put(2, PEER, http("http://no.such.name:8080/".to_owned()));
    hub.expect_link(over_http, true);
    assert_eq!(hub.asked(over_http), None);
    hub.expect_link(over_http, false);

    // Packets go over HTTP where there is a URL, whatever else is connected.
    let both = Links {
        http_url: Some(format!("http://{}/ilp", free_address()).into()),
        ..btp_in(4)
    };
    let both = hub.put(4, PEER, both);
    hub.expect_link(both, true);
    assert_eq!(hub.asked(both), None);
    hub.expect_link(both, false);
    let session = hub.connect(4);
    hub.expect_link(both, false);
    hub.put(4, PEER, btp_in(4));
    hub.expect_link(both, true);

    // Of an account that goes nothing is told.
    hub.handle
        .publish(&[Change::CloseAccount(both), Change::RemoveAccount(both)]);
    session.expect_closed();
    hub.expect_quiet(&[btp, dialled, over_http]);
}

fn fulfill(data: &[u8]) -> PeerAnswer {
    PeerAnswer::Fulfill { data: data.to_vec() }
}

/// What a neighbour asks reaches the cold half as it was sent, and the answer goes out over the link it came by; when the
/// session was replaced meanwhile, over the new one; for accounts of either shard.
#[test]
fn requests_and_their_answers() {
    let hub = Hub::start("requests");
    for id in 0..4 {
        hub.put(id, PEER, btp_in(id));
        let peer = hub.connect(id);
        let mut waiting = Vec::new();
        for (destination, service) in [
            ("peer.route.control", PeerService::RouteControl),
            ("peer.route.update", PeerService::RouteUpdate),
            ("peer.settle", PeerService::Settle),
        ] {
            let reply = peer.start_prepare(&Prepare::request(destination, destination.as_bytes()));
            let asked = hub.next_request();
            let seen = (asked.from.get(), asked.service, asked.data.as_slice());
            assert_eq!(seen, (id, service, destination.as_bytes()));
            waiting.push((reply, asked));
        }
        // In another order, and from another thread.
        for (reply, asked) in waiting.into_iter().rev() {
            let data = asked.data.clone();
            std::thread::spawn(move || (asked.respond)(fulfill(&asked.data)));
            assert_eq!(packet_of(&reply), zeros(&data));
        }

        let reply = peer.start_prepare(&Prepare::request("peer.route.update", b""));
        let asked = hub.next_request();
        let refusal = PeerAnswer::Reject {
            code: ErrorCode::F00_BAD_REQUEST,
            message: "no".into(),
        };
        (asked.respond)(refusal);
        assert_eq!(packet_of(&reply), Reply::reject("F00", "test.hub", "no", b""));
        for (bytes, expected) in [(32_767, "fulfill"), (32_768, "T00")] {
            let reply = peer.start_prepare(&Prepare::request("peer.settle", b""));
            (hub.next_request().respond)(fulfill(&vec![1; bytes]));
            assert_eq!(packet_of(&reply).code(), expected, "{bytes} bytes");
        }

        let mut connection = Connection::open(hub.address);
        let bytes = support::http::request_bytes(
            "POST",
            &format!("/accounts/{}/ilp", name_of(id)),
            &[("Authorization", &format!("Bearer {}-http", name_of(id)))],
            &Prepare::request("peer.settle", b"by http").encode(),
        );
        connection.send(&bytes).expect("open");
        let asked = hub.next_request();
        assert_eq!((asked.from.get(), asked.data.as_slice()), (id, &b"by http"[..]));
        (asked.respond)(fulfill(b"over http"));
        assert_eq!(connection.answer().expect("an answer").reply(), zeros(b"over http"));
    }
    // Its connection is gone when it is answered: nobody hears it, and nothing is left.
    let account = AccountId::new(0);
    let peer = hub.connect(0);
    drop(peer.start_prepare(&Prepare::request("peer.settle", b"")));
    let asked = hub.next_request();
    peer.close();
    (asked.respond)(fulfill(b""));
    eventually("it is answered", || (hub.handle.unanswered() == Some(0)).then_some(()));
    assert_eq!(hub.handle.account_state(account).expect("it is there").in_flight, 0);
}

/// The cold half has eight requests of a neighbour at most, whatever becomes of them; who asks more is told to come back,
/// and others are served.
#[test]
fn requests_have_limits() {
    let hub = Hub::start("limits");
    let noisy = hub.put(0, PEER, btp_in(0));
    let other = hub.put(2, PEER, btp_in(2));
    let (peer, quiet) = (hub.connect(0), hub.connect(2));
    let ask = |left_ms| {
        let prepare = Prepare {
            expires_at: now() + left_ms,
            ..Prepare::request("peer.route.update", b"")
        };
        peer.start_prepare(&prepare)
    };
    // These expire while the cold half has them, and still count.
    let mut expiring: Vec<_> = (0..8).map(|_| ask(400)).collect();
    let asked: Vec<_> = (0..8).map(|_| hub.next_request()).collect();
    assert_eq!(packet_of(&ask(60_000)).code(), "T03", "the ninth");
    let reply = quiet.start_prepare(&Prepare::request("peer.route.update", b""));
    (hub.next_request().respond)(fulfill(b""));
    assert_eq!(packet_of(&reply), zeros(b""), "another neighbour");
    for reply in expiring.drain(..) {
        let reply = packet_of(&reply);
        assert_eq!(
            reply,
            Reply::reject("R00", "test.hub", "no response before the expiry", b"")
        );
    }
    assert_eq!(packet_of(&ask(60_000)).code(), "T03", "they are still there");
    for asked in asked {
        // Too late: nobody hears it.
        (asked.respond)(fulfill(b"late"));
    }
    // Dropped without a word.
    let replies: Vec<_> = (0..8).map(|_| ask(60_000)).collect();
    drop((0..8).map(|_| hub.next_request()).collect::<Vec<_>>());
    for reply in &replies {
        assert_eq!(packet_of(reply).code(), "T03", "dropped");
    }
    let reply = ask(60_000);
    (hub.next_request().respond)(fulfill(b"again"));
    assert_eq!(packet_of(&reply), zeros(b"again"));

    // Nobody looks at requests: what waits for them is limited, and the rest is told to come back.
    let peers: Vec<BtpPeer> = (0..70)
        .map(|number| {
            hub.put(10 + number, PEER, btp_in(10 + number));
            hub.connect(10 + number)
        })
        .collect();
    let replies: Vec<_> = peers
        .iter()
        .flat_map(|peer| (0..8).map(|_| peer.start_prepare(&Prepare::request("peer.settle", b""))))
        .collect();
    let unanswered = || (hub.handle.unanswered() == Some(512)).then_some(());
    eventually("as many as may wait do, and the rest is answered", unanswered);
    for _ in 0..512 {
        (hub.next_request().respond)(fulfill(b""));
    }
    let codes: Vec<_> = replies.iter().map(|reply| packet_of(reply).code().to_owned()).collect();
    let served = codes.iter().filter(|code| *code == "fulfill").count();
    assert_eq!((served, codes.len()), (512, 560));
    assert!(codes.iter().all(|code| code == "fulfill" || code == "T03"), "{codes:?}");
    while hub.events.next(Some(Instant::now())).is_some() {}
    hub.expect_quiet(&[noisy, other]);
}

/// Only what goes to a neighbour itself goes past the routes.
#[test]
fn a_payment_is_no_question() {
    let hub = Hub::start("no-question");
    let account = hub.put(0, PEER, Links::default());
    let mut prepare = Vec::new();
    let elsewhere = address::Address::from_static("test.hub.bob");
    encode_request(&mut prepare, Timestamp::from_millis(now()), elsewhere, b"");
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hub.ask(account, &prepare)));
    assert!(asked.is_err());
}

/// An account that pays ahead, so that it is settled without a packet.
#[test]
fn settlements_are_made_told_of_and_ended() {
    let hub = Hub::start("settlements");
    let asset = Asset {
        code: "ABC".into(),
        scale: 9,
    };
    let put = |id: u32, settlement: Settlement| {
        let account = Arc::new(Account {
            settlement: settlement.into(),
            ..Hub::account(id, RoutingRelation::Peer, Links::default())
        });
        let mutations = vec![
            Mutation::PutAsset(AssetId::new(0), asset.clone()),
            Mutation::PutAccount(account.clone()),
        ];
        hub.writer.apply(mutations).expect("a new account");
        hub.handle.publish(&[Change::Account(account)]);
        AccountId::new(id)
    };
    let engine = || Some("http://127.0.0.1:9/".into());
    let state = |id| {
        let state = hub.handle.account_state(id).expect("the account is there");
        (state.booked, state.prepaid, state.settling)
    };
    let without_engine = put(
        0,
        Settlement {
            to: Some(-5),
            ..Settlement::default()
        },
    );
    let ordered = put(
        1,
        Settlement {
            to: Some(-5),
            engine_url: engine(),
            ..Settlement::default()
        },
    );
    let by_rule = put(
        2,
        Settlement {
            threshold: Some(0),
            to: Some(-7),
            engine_url: engine(),
        },
    );
    let without_rule = put(
        3,
        Settlement {
            engine_url: engine(),
            ..Settlement::default()
        },
    );
    assert_eq!(
        hub.handle.settle_now(without_rule, SettleOrder::Operator),
        SettleNow::NoRule
    );
    assert_eq!(
        hub.handle.settle_now(without_engine, SettleOrder::Operator),
        SettleNow::NoEngine
    );
    assert_eq!(
        hub.handle.settle_now(AccountId::new(9), SettleOrder::Operator),
        SettleNow::NotReady
    );

    // The rule of its own accord, an order when it comes; both are in the book soon.
    eventually("the rule has settled", || (state(by_rule) == (-7, 0, 7)).then_some(()));
    assert_eq!(hub.handle.settle_now(by_rule, SettleOrder::Operator), SettleNow::Open);
    assert_eq!(
        hub.handle.settle_now(ordered, SettleOrder::Operator),
        SettleNow::Made { amount: 5 }
    );
    assert_eq!(state(ordered), (-5, 0, 5));
    for (account, booked) in [(by_rule, -7), (ordered, -5)] {
        let is_booked = || (hub.writer.booked(account) == Some(booked)).then_some(());
        eventually("the settlement is in the book", is_booked);
    }

    // The peer pays ahead too, and the settlements end: one is confirmed, one cancelled. In the book first.
    let reader = hub.writer.reader().unwrap();
    let made = |account| {
        reader
            .settlements(account, None, 1)
            .unwrap()
            .pop()
            .expect("it was made")
    };
    let (confirmed, cancelled) = (made(by_rule), made(ordered));
    let (credited, remainder) = Remainder::default().credit(&10_u8.into(), 9, 9).unwrap();
    let mutations = vec![
        Mutation::ReceiveSettlement {
            account: by_rule,
            credited,
            remainder,
            key: [1; 32],
            input: [2; 32],
            status: 201,
            answer: Box::default(),
            at_ms: now(),
        },
        Mutation::UpdateSettlement(SettlementRecord {
            state: SettlementState::Confirmed,
            ended_ms: Some(now()),
            ..confirmed
        }),
        Mutation::CancelSettlement {
            number: cancelled.number,
            at_ms: now(),
        },
    ];
    hub.writer.apply(mutations).expect("both are open");
    hub.handle.publish(&[
        Change::SettlementReceived {
            account: by_rule,
            credited,
        },
        Change::SettlementEnded {
            account: by_rule,
            returned: 0,
        },
        Change::SettlementEnded {
            account: ordered,
            returned: 5,
        },
    ]);
    assert_eq!(state(by_rule), (3, 3, 0), "and is not settled again for it");
    assert_eq!(state(ordered), (0, 0, 0));
    assert_eq!(
        hub.handle.settle_now(ordered, SettleOrder::Operator),
        SettleNow::Made { amount: 5 }
    );

    // An engine for all in the asset.
    let assets = Arc::new(HashSet::from([AssetId::new(0)]));
    hub.handle.publish(&[Change::SettlingAssets(assets)]);
    assert_eq!(
        hub.handle.settle_now(without_engine, SettleOrder::Operator),
        SettleNow::Made { amount: 5 }
    );
    hub.handle.publish(&[Change::CloseAccount(by_rule)]);
    assert_eq!(
        hub.handle.settle_now(by_rule, SettleOrder::Operator),
        SettleNow::NotReady
    );
}
