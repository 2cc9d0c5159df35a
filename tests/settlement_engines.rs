//! Two nodes that settle with each other, each through an engine of its own on `ilp-settlement-core`: nodes, engines and
//! ledger agree to the unit after settlements both ways, and without traffic they stop. Needs `node`, `npm` and
//! `redis-server` (`make test` installs them).
//!
//! All amounts of the ledger are in units of 10^-9 here. Both accounts of a link have the same scale, because the amounts
//! in its packets are in units of it.

mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::btp_peer::{BtpPeer, packet_of};
use support::engine::{Engine, LedgerView, Redis};
use support::http::{Api, Connection, whole};
use support::network::Over;
use support::node::{Node, Options};
use support::packet::Prepare;
use support::random::Random;
use support::rule::{Answer, Rule};
use support::{eventually, free_address, within};

/// Of the ledger, as these tests read it.
const LEDGER_SCALE: u8 = 9;
/// Settlements that each side must have made before traffic ends.
const SETTLEMENTS_MIN: usize = 5;
/// Waves of traffic after which it is clear that they do not settle as they should.
const WAVES_MAX: usize = 60;
/// How long all that is under way may take to arrive when traffic has ended.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);
/// Looks in a row that must find the same before it counts as the end: an account that was credited is looked at a moment
/// later, and its own settlement is in the book a moment after that.
const QUIET_LOOKS: usize = 5;

/// A node with its engine.
struct Side {
    node: Node,
    engine: Engine,
}

/// Two of them, on one ledger.
struct Pair {
    sides: [Side; 2],
    _redis: Redis,
}

/// What the two nodes are to each other: an account at each.
struct Link {
    username: String,
    /// By which the engines know the accounts.
    ids: [String; 2],
    scale: u8,
}

impl Pair {
    /// `example.a` and `example.b`.
    fn start(arguments: &[&str]) -> Self {
        let redis = Redis::start();
        let sides = thread::scope(|scope| {
            let start = |name: &'static str| {
                let redis = &redis;
                move || {
                    let node = Node::start_with(Options {
                        ilp_address: format!("example.{name}"),
                        http_bind_address: free_address().to_string(),
                        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
                        ..Options::default()
                    });
                    let engine = Engine::start(redis, name, &format!("http://{}", node.settlement_address()));
                    Side { node, engine }
                }
            };
            let starting = ["a", "b"].map(|name| scope.spawn(start(name)));
            starting.map(|starting| starting.join().expect("a node and its engine start"))
        });
        Self { sides, _redis: redis }
    }

    fn api(&self, side: usize) -> Api {
        self.sides[side].node.api()
    }

    /// From now on this engine settles for all accounts in the asset.
    fn set_engine(&self, side: usize) {
        let url = self.sides[side].engine.url();
        self.api(side).put("/settlement/engines", &json!({ "ABC": url }));
    }

    /// An account for the other at each, with these fields; `between` is done when the first has its own.
    fn link(&mut self, over: Over, username: &str, scale: u8, rules: [Value; 2], between: impl Fn(&Self)) -> Link {
        let mut ids = Vec::new();
        for (side, mut fields) in rules.into_iter().enumerate() {
            let other = &self.sides[1 - side].node;
            fields["routing_relation"] = json!("Peer");
            fields["ilp_address"] = json!(["example.b", "example.a"][side]);
            fields["asset_scale"] = json!(scale);
            let path = format!("{}/accounts/{username}/ilp", other.address());
            match over {
                Over::Http => {
                    fields["ilp_over_http_url"] = json!(format!("http://{path}"));
                    fields["ilp_over_http_outgoing_token"] = json!(format!("{username}-http"));
                }
                // The second dials the first.
                Over::Btp if side == 1 => {
                    fields["ilp_over_btp_url"] = json!(format!("btp+ws://{path}/btp"));
                    fields["ilp_over_btp_outgoing_token"] = json!(format!("{username}-btp"));
                }
                Over::Btp => {}
            }
            let account = self.sides[side].node.add_account(username, &fields);
            ids.push(account["id"].as_str().expect("a text").to_owned());
            if side == 0 {
                between(self);
            }
        }
        Link {
            username: username.to_owned(),
            ids: ids.try_into().expect("two accounts"),
            scale,
        }
    }

    /// Both engines know these accounts, and no others.
    fn expect_accounts(&mut self, expected: [&[String]; 2]) {
        for (side, expected) in self.sides.iter_mut().zip(expected) {
            let expected = expected.iter().cloned().collect();
            eventually("the engine knows the accounts", || {
                (side.engine.accounts() == expected).then_some(())
            });
        }
    }

    fn id_of(&self, side: usize, username: &str) -> String {
        let account = self.api(side).get(&format!("/accounts/{username}"));
        account["id"].as_str().expect("a text").to_owned()
    }

    /// What both say of their links.
    fn look(&mut self, links: &[Link]) -> Look {
        let views = self.sides.each_mut().map(|side| side.engine.ledger(LEDGER_SCALE));
        let accounts = |link: &Link| [0, 1].map(|side| Standing::read(&self.api(side), &link.username));
        Look {
            accounts: links
                .iter()
                .map(|link| (link.username.clone(), accounts(link)))
                .collect(),
            views,
        }
    }

    /// Waits until nothing is under way any more, nor is going to be: all is confirmed, moved and credited. `at_rest`:
    /// what an engine may keep because it is less than the smallest unit of the ledger.
    fn settle_down(&mut self, links: &[Link], at_rest: i128) -> Look {
        let (mut last, mut same) = (None, 0);
        let begun = Instant::now();
        loop {
            let look = self.look(links);
            same = if look.is_quiet(at_rest) && last.as_ref() == Some(&look) {
                same + 1
            } else {
                0
            };
            if same >= QUIET_LOOKS {
                return look;
            }
            assert!(
                begun.elapsed() < ARRIVAL_LIMIT,
                "not within {ARRIVAL_LIMIT:?}: all is settled\n{look}"
            );
            last = Some(look);
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn engines_of_sides(&mut self) -> [&mut Engine; 2] {
        self.sides.each_mut().map(|side| &mut side.engine)
    }
}

/// One account of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Standing {
    balance: i128,
    prepaid: i128,
    held: i128,
    /// What the engine has accepted, and in how many settlements.
    confirmed: i128,
    settlements: usize,
    /// Settlements that have not ended.
    open: usize,
    /// Calls beyond the first of each settlement.
    tries_again: u64,
}

impl Standing {
    fn read(api: &Api, username: &str) -> Self {
        let listed = api.get(&format!("/accounts/{username}/settlements?limit=1000"));
        let listed = listed.as_array().expect("an array");
        let confirmed = listed.iter().filter(|settlement| settlement["state"] == "confirmed");
        let balance = api.get(&format!("/accounts/{username}/balance"));
        Self {
            balance: whole(&balance["balance"]),
            prepaid: whole(&balance["prepaid_amount"]),
            held: whole(&balance["held"]),
            confirmed: confirmed.clone().map(|settlement| whole(&settlement["amount"])).sum(),
            settlements: confirmed.clone().count(),
            open: listed.len() - confirmed.clone().count() + usize::from(balance["pending_settlement"] != 0),
            tries_again: confirmed
                .map(|settlement| settlement["attempts"].as_u64().expect("a number") - 1)
                .sum(),
        }
    }

    /// What we owe the holder and may settle.
    fn due(&self) -> i128 {
        self.balance - self.prepaid
    }
}

/// What there is to see of both nodes and both engines.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Look {
    /// By the name of the link.
    accounts: BTreeMap<String, [Standing; 2]>,
    views: [LedgerView; 2],
}

impl Look {
    fn is_quiet(&self, at_rest: i128) -> bool {
        let mut accounts = self.accounts.values().flatten();
        let is_moved = |view: &LedgerView| view.queued <= at_rest && view.unannounced == 0;
        accounts.all(|account| account.open == 0 && account.held == 0) && self.views.iter().all(is_moved)
    }

    /// Settlements of both sides, by link.
    fn counts(&self) -> Vec<[usize; 2]> {
        let counts = |of: &[Standing; 2]| [of[0].settlements, of[1].settlements];
        self.accounts.values().map(counts).collect()
    }

    /// Nodes, engines and ledger agree on one link exactly. `carried`: what fulfilled packets have carried from the first
    /// to the second, less what they have carried back. `given`: what either side has paid on the ledger by hand.
    /// `queued`: what the engines have of it that is too little for the ledger.
    fn expect_agreement(&self, link: &Link, carried: i128, given: [i128; 2], queued: [i128; 2]) {
        let unit = 10i128.pow((LEDGER_SCALE - link.scale).into());
        let accounts = &self.accounts[&link.username];
        let transfers = &self.views[0].transfers;
        let at = |side: usize| format!("{}/{}", ["a", "b"][side], link.ids[side]);
        let mut remainders = [0; 2];
        for (payer, payee) in [(0, 1), (1, 0)] {
            let moved: i128 = transfers
                .iter()
                .filter(|transfer| transfer.from == at(payer))
                .map(|transfer| {
                    assert_eq!(transfer.to, at(payee), "the money goes to the peer");
                    transfer.amount
                })
                .sum();
            assert_eq!(
                accounts[payer].confirmed * unit,
                moved - given[payer] + queued[payer],
                "{}: what {payer} has confirmed is what the ledger has moved\n{self}",
                link.username
            );
            // The book of the payee, by the only other thing that changes it: packets.
            let by_packets = if payee == 1 { -carried } else { carried };
            let credited = accounts[payee].balance + accounts[payee].confirmed - by_packets;
            remainders[payee] = moved - credited * unit;
            assert!(
                (0..unit).contains(&remainders[payee]),
                "{}: {payee} was credited {credited} for {moved}\n{self}",
                link.username
            );
        }
        assert_eq!(
            (accounts[0].balance + accounts[1].balance) * unit,
            given.iter().sum::<i128>() - queued.iter().sum::<i128>() - remainders.iter().sum::<i128>(),
            "{}: what one owes is what the other is owed\n{self}",
            link.username
        );
    }
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, accounts) in &self.accounts {
            writeln!(f, "{name}:\n  a {:?}\n  b {:?}", accounts[0], accounts[1])?;
        }
        for (name, view) in ["a", "b"].iter().zip(&self.views) {
            let (queued, unannounced, transfers) = (view.queued, view.unannounced, view.transfers.len());
            writeln!(
                f,
                "engine {name}: {queued} queued, {unannounced} unannounced, {transfers} transfers on the ledger"
            )?;
        }
        Ok(())
    }
}

/// Pays by STREAM, from an account of one node to one of another.
fn pay(payer: (&Api, &str), receiver: (&Api, &str), amount: u64) -> Result<(), String> {
    let body = json!({
        "receiver": format!("http://{}/accounts/{}/spsp", receiver.0.address, receiver.1),
        "source_amount": amount,
    });
    let mut connection = Connection::open(payer.0.address);
    connection.set_read_timeout(ARRIVAL_LIMIT);
    let authorization = format!("Bearer {}-http", payer.1);
    let answer = connection
        .request(
            "POST",
            &format!("/accounts/{}/payments", payer.1),
            &[("Authorization", &authorization)],
            body.to_string().as_bytes(),
        )
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status == 200 {
        Ok(())
    } else {
        Err(text.into_owned())
    }
}

/// Packets with these amounts, so many of them at a time, all of which arrive.
fn send(from: &BtpPeer, destination: &str, amounts: &[u64]) {
    const AT_A_TIME: usize = 4;
    for amounts in amounts.chunks(AT_A_TIME) {
        let prepares: Vec<_> = amounts
            .iter()
            .map(|amount| Prepare::new(destination, *amount))
            .collect();
        let replies: Vec<_> = prepares.iter().map(|prepare| from.start_prepare(prepare)).collect();
        for (prepare, reply) in prepares.iter().zip(&replies) {
            let reply = packet_of(reply);
            assert!(reply.fulfills(prepare), "{reply:?}");
        }
    }
}

/// Payments by STREAM over BTP, with so little credit that they wait for settlements. The ledger is coarser than the
/// accounts, so the engines keep what it cannot move. Each wave begins when all of the last one has arrived.
#[test]
fn payments_both_ways_are_settled_again_and_again() {
    const LEDGER_UNIT: i128 = 1_000;
    // What the lesser payment and the threshold of its side make that side settle at most in one wave may arrive when the
    // greater payment has evened it out, and is prepaid then. Beyond that there must be room for the other's threshold and
    // a packet.
    const LESS_MAX: u64 = 500_000;
    const THRESHOLD_MAX: u64 = 1_000_007;
    const PACKET_MAX: u64 = 100_000;
    const CREDIT: u64 = LESS_MAX + 2 * THRESHOLD_MAX + PACKET_MAX;
    let mut random = Random::new("payments");
    let mut pair = Pair::start(&[]);
    for engine in pair.engines_of_sides() {
        engine.set_ledger_scale(6);
    }
    let rules = [
        json!({"settle_threshold": THRESHOLD_MAX, "settle_to": 0}),
        json!({"settle_threshold": 700_003, "settle_to": 100_001}),
    ];
    let rules = rules.map(|mut fields| {
        fields["min_balance"] = json!(-(CREDIT as i64));
        fields["max_packet_amount"] = json!(PACKET_MAX);
        fields
    });
    // The engine of one hears of its account when it is named, that of the other when the account is made.
    let link = pair.link(Over::Btp, "peer", 9, rules, |pair| pair.set_engine(1));
    pair.set_engine(0);
    pair.sides[0].node.add_account("alice", &json!({}));
    pair.sides[1].node.add_account("bob", &json!({}));
    let known = |pair: &Pair| {
        [(0, "alice"), (1, "bob")].map(|(side, customer)| [link.ids[side].clone(), pair.id_of(side, customer)])
    };
    let known = known(&pair);
    pair.expect_accounts([&known[0], &known[1]]);
    eventually("the link is up", || {
        let account = pair.api(0).get("/accounts/peer");
        (account["links"]["btp"] == "connected").then_some(())
    });

    let links = [link];
    let begun = Instant::now();
    let mut waves = 0;
    let mut paid = [0; 2];
    let mut look = pair.look(&links);
    while look.counts()[0].iter().any(|count| *count < SETTLEMENTS_MIN) {
        assert!(
            waves < WAVES_MAX,
            "after {waves} waves they have settled too seldom\n{look}"
        );
        let (more, less) = (random.between(4_000_000, 6_000_000), random.between(1, LESS_MAX));
        let amounts = if waves % 2 == 0 { [more, less] } else { [less, more] };
        let apis = [pair.api(0), pair.api(1)];
        let holders = [(&apis[0], "alice"), (&apis[1], "bob")];
        let results = thread::scope(|scope| {
            let there = scope.spawn(|| pay(holders[0], holders[1], amounts[0]));
            let back = pay(holders[1], holders[0], amounts[1]);
            [there.join().expect("no panic"), back]
        });
        assert_eq!(
            results,
            [Ok(()), Ok(())],
            "wave {waves} {amounts:?}\n{}",
            pair.look(&links)
        );
        for (paid, amount) in paid.iter_mut().zip(amounts) {
            *paid += i128::from(amount);
        }
        waves += 1;
        look = pair.settle_down(&links, LEDGER_UNIT - 1);
    }
    let took = begun.elapsed();
    let carried = paid[0] - paid[1];
    assert_eq!(
        (pair.api(0).balance("alice"), pair.api(1).balance("bob")),
        (-carried, carried)
    );
    let queued = [look.views[0].queued, look.views[1].queued];
    look.expect_agreement(&links[0], carried, [0, 0], queued);
    let coarse = |amount: i128| amount % LEDGER_UNIT == 0;
    assert!(look.views[0].transfers.iter().all(|transfer| coarse(transfer.amount)));
    for side in [0, 1] {
        pair.api(side).audit();
    }
    let [at_a, at_b] = &look.accounts["peer"];
    println!(
        "over BTP: {waves} waves of payments in {took:.1?}; settlements {} and {}, {} and {} units, {queued:?} at rest",
        at_a.settlements, at_b.settlements, at_a.confirmed, at_b.confirmed
    );

    // The engines forget accounts that are no more.
    for (side, customer) in [(0, "alice"), (1, "bob")] {
        for username in ["peer", customer] {
            let target = format!("/accounts/{username}?force=true");
            assert_eq!(pair.api(side).call("DELETE", &target, None).status, 200);
        }
        pair.api(side).audit();
    }
    pair.expect_accounts([&[], &[]]);
}

/// Packets over HTTP, both ways at once, while each side pays the other on the ledger by hand, too, in amounts finer than
/// the accounts: what is less than a unit is carried over.
#[test]
fn packets_both_ways_are_settled_again_and_again() {
    const THRESHOLD: u64 = 10_000;
    const LATENCY_ROUNDS: usize = 20;
    let mut random = Random::new("packets");
    let mut pair = Pair::start(&[]);
    // One names the engine in the account, the other has one for the asset.
    pair.set_engine(1);
    let rule = || json!({"settle_threshold": THRESHOLD, "settle_to": 0});
    let mut rules = [rule(), rule()];
    rules[0]["settlement_engine_url"] = json!(pair.sides[0].engine.url());
    let link = pair.link(Over::Http, "peer", 6, rules, |_| {});
    let customers = [(0, "alice"), (1, "bob")].map(|(side, username)| {
        let node = &pair.sides[side].node;
        node.add_account(username, &json!({"asset_scale": 6}));
        BtpPeer::connect(node.address(), username, Rule::fulfill())
    });
    let destinations = ["example.b.bob", "example.a.alice"];
    let [id, id_of_peer] = link.ids.clone();
    pair.expect_accounts([&[id], &[id_of_peer, pair.id_of(1, "bob")]]);

    let mut carried = 0;
    let mut latencies: Vec<Duration> = (0..LATENCY_ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            send(&customers[0], destinations[0], &[THRESHOLD]);
            carried += i128::from(THRESHOLD);
            let api = pair.api(1);
            eventually("it is paid", || (api.balance("peer") == 0).then(|| begun.elapsed()))
        })
        .collect();
    // The first includes that the engine asks the other for its address.
    let first = latencies.remove(0);
    latencies.sort_unstable();

    let links = [link];
    let begun = Instant::now();
    let mut waves = 0;
    let mut given = [0; 2];
    let is_enough = |[of_a, of_b]: [usize; 2]| of_a >= LATENCY_ROUNDS + SETTLEMENTS_MIN && of_b >= SETTLEMENTS_MIN;
    while !is_enough(pair.look(&links).counts()[0]) {
        assert!(
            waves < WAVES_MAX,
            "after {waves} waves they have settled too seldom\n{}",
            pair.look(&links)
        );
        let mut amounts = |count: usize| -> Vec<u64> { (0..count).map(|_| random.between(1, THRESHOLD / 4)).collect() };
        let amounts = if waves % 2 == 0 {
            [amounts(24), amounts(6)]
        } else {
            [amounts(6), amounts(24)]
        };
        for side in [0, 1] {
            let nanos = random.between(1, 5_000);
            pair.sides[side].engine.give(&links[0].ids[side], nanos);
            given[side] += i128::from(nanos);
        }
        thread::scope(|scope| {
            scope.spawn(|| send(&customers[0], destinations[0], &amounts[0]));
            send(&customers[1], destinations[1], &amounts[1]);
        });
        let [there, back] = amounts.map(|amounts| amounts.into_iter().map(i128::from).sum::<i128>());
        carried += there - back;
        waves += 1;
    }
    let took = begun.elapsed();
    let look = pair.settle_down(&links, 0);
    assert_eq!(
        (pair.api(0).balance("alice"), pair.api(1).balance("bob")),
        (-carried, carried)
    );
    look.expect_agreement(&links[0], carried, given, [0, 0]);
    for side in [0, 1] {
        pair.api(side).audit();
    }
    let [at_a, at_b] = &look.accounts["peer"];
    println!(
        "over HTTP: {waves} waves of packets in {took:.1?}; settlements {} and {}; from the packet to the peer's credit \
         {first:.1?} the first time, then {:.1?} (median) and {:.1?} (longest)",
        at_a.settlements,
        at_b.settlements,
        latencies[latencies.len() / 2],
        latencies[latencies.len() - 1]
    );
}

/// How both sides settle: the threshold and what they settle to.
const RULES: [[(i64, i64); 2]; 9] = [
    [(1_000, 0), (1_000, 0)],
    [(1, 0), (1, 0)],
    [(501, 500), (501, 500)],
    [(1, 0), (1_000, 500)],
    // One side pays ahead, and both.
    [(1_000, -500), (1_000, 0)],
    [(0, -500), (1, 0)],
    [(0, -500), (0, -500)],
    [(-499, -500), (-499, -500)],
    [(-5, -10), (-5, -300)],
];

/// Packets of one direction in each pair of rules.
const PACKETS: usize = 20;

/// Two nodes with a link for every pair of rules. Packets go one way, then none: settlements end, and what is left of the
/// books `is_over`. For as long as `watch` there are no more.
fn expect_end(what: &str, arguments: &[&str], watch: Duration, is_over: impl Fn(&Standing, (i64, i64)) -> bool) {
    let mut random = Random::new(what);
    let mut pair = Pair::start(arguments);
    for side in [0, 1] {
        pair.set_engine(side);
    }
    // Both fulfill what is for them, but for the addresses that say so.
    let rule = || {
        Rule::new(|prepare| match prepare.destination.ends_with(".reject") {
            true => Answer::reject("F99"),
            false => Answer::Fulfill,
        })
    };
    let customers = [(0, "alice"), (1, "bob")].map(|(side, username)| {
        let node = &pair.sides[side].node;
        node.add_account(username, &json!({}));
        BtpPeer::connect(node.address(), username, rule())
    });
    let mut links = Vec::new();
    for (number, rules) in RULES.iter().enumerate() {
        let username = format!("peer_{number}");
        let fields = rules.map(|(threshold, to)| json!({"settle_threshold": threshold, "settle_to": to}));
        links.push(pair.link(Over::Btp, &username, 9, fields, |_| {}));
        for (side, prefix, leads_to) in [
            (0, "example.b", username.as_str()),
            (1, "example.b", "bob"),
            (1, "example.a", &username),
            (0, "example.a", "alice"),
        ] {
            let target = format!("/routes/static/{prefix}.link{number}");
            let answer = pair.api(side).call("PUT", &target, Some(&json!(leads_to)));
            assert_eq!(answer.status, 200);
        }
        eventually("the link is up", || {
            let account = pair.api(0).get(&format!("/accounts/{username}"));
            (account["links"]["btp"] == "connected").then_some(())
        });
    }

    let mut carried = vec![0; RULES.len()];
    for _ in 0..PACKETS {
        for (number, carried) in carried.iter_mut().enumerate() {
            let amount = random.between(1, 300);
            send(&customers[0], &format!("example.b.link{number}"), &[amount]);
            *carried += i128::from(amount);
        }
    }
    let mut rules = BTreeMap::new();
    for (link, of) in links.iter().zip(RULES) {
        rules.insert(link.username.clone(), of);
    }
    let over = |look: &Look| {
        let mut accounts = look.accounts.iter();
        accounts.all(|(name, [a, b])| is_over(a, rules[name][0]) && is_over(b, rules[name][1]))
    };
    within(ARRIVAL_LIMIT, "nothing is due any more", || {
        over(&pair.look(&links)).then_some(())
    });
    let look = pair.settle_down(&links, 0);
    assert!(over(&look), "{look}");
    for (link, carried) in links.iter().zip(&carried) {
        look.expect_agreement(link, *carried, [0, 0], [0, 0]);
    }
    let counts = look.counts();
    for (rules, [of_a, of_b]) in RULES.iter().zip(&counts) {
        println!("{what}, {rules:?}: {PACKETS} packets, settlements {of_a} and {of_b}");
        // A cause each: a packet, the account's beginning, and the time.
        assert!(*of_a >= 1 && *of_a.max(of_b) <= PACKETS + 2, "{rules:?}");
        // Who is paid pays nothing back, unless it pays ahead.
        assert!(*of_b == 0 || rules[1].1 < 0, "{rules:?}");
    }
    // Packets that are rejected move nothing, and make nobody settle.
    for number in 0..RULES.len() {
        for (customer, prefix) in customers.iter().zip(["example.b", "example.a"]).cycle().take(8) {
            let reply = customer.prepare(&Prepare::new(&format!("{prefix}.link{number}.reject"), 5));
            assert_eq!(reply.code(), "F99", "{reply:?}");
        }
    }
    thread::sleep(watch);
    let later = pair.look(&links);
    assert_eq!(later.counts(), counts, "they go on without traffic");
    assert_eq!(later.views[0].transfers.len(), look.views[0].transfers.len());
    assert_eq!(later.accounts, look.accounts);
    for side in [0, 1] {
        pair.api(side).audit();
    }
}

#[test]
fn thresholds_on_both_sides_settle_a_finite_number_of_times() {
    let below_threshold = |account: &Standing, (threshold, _): (i64, i64)| {
        // Who pays ahead does so for a cause only.
        threshold <= 0 || account.due() < i128::from(threshold)
    };
    expect_end("thresholds", &[], Duration::from_secs(1), below_threshold);
}

#[test]
fn settling_by_time_on_both_sides_ends_with_the_traffic() {
    let nothing_owed = |account: &Standing, (_, to): (i64, i64)| account.due() <= i128::from(to.max(0));
    // Three times the time after which what is owed is settled.
    expect_end(
        "by time",
        &["--settle_every", "1"],
        Duration::from_millis(3_500),
        nothing_owed,
    );
}
