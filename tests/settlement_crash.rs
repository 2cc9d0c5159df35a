//! The killing matrix of settlement: two nodes, one of which pays the other through engines, and at every point of the way
//! of the money one of the four processes is killed, or two. Whatever is killed and whenever, what is paid is what is
//! booked. Needs `node`, `npm` and `redis-server` (`make test` installs them).
//!
//! A pays B: A's account `bob` is B, B's account `alice` is A. All that nodes and engines say to each other goes through
//! proxies, which stop an exchange at an exact point; the victim dies there, and only then the exchange goes on, is lost, or
//! arrives after the victim has been started again. Packets flow meanwhile, and some are in flight at the kill.
//! `CRASH_ROUNDS=n` for more rounds, `TEST_SEED=n` to repeat the choices.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::engine::{Engine, Fault, Redis};
use support::http::{Connection, HttpAnswer, HttpRequest, whole};
use support::http_peer::HttpPeer;
use support::node::{Node, Options};
use support::packet::Prepare;
use support::proxy::{Held, Point, Proxy};
use support::random::Random;
use support::rule::{Answer, Rule};
use support::{eventually, free_address};

const THRESHOLD: i128 = 1_000;
const SETTLE_TO: i128 = 10;
const AMOUNT_MAX: u64 = 300;
const SCALE: u8 = 9;
/// HTTP connections of who pays A, each with one Prepare at a time.
const CONNECTIONS: usize = 3;
/// What is in flight to a node that dies must not keep anybody waiting for long.
const PACKET_LIFE: Duration = Duration::from_secs(6);
/// Some tries with their pauses, on a busy machine.
const QUIET_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// What every call about money has in its target.
const SETTLEMENTS: &str = "/settlements";

fn rounds() -> usize {
    match std::env::var("CRASH_ROUNDS") {
        Ok(text) => text.parse().expect("CRASH_ROUNDS is a number"),
        Err(_) => 5,
    }
}

/// A process of the four.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    A,
    /// With SIGTERM: it ends in order.
    AStopped,
    EngineOfA,
    B,
    EngineOfB,
}

/// How the victim is brought to the point at which it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// A has written what it is to pay, and reaches nobody.
    EngineAway,
    /// A's call of its engine.
    Paying(Point),
    /// The engine of A has the call: in the kernel only, or the work is done and the answer is never written, in turns.
    InEngine,
    /// The call of B's engine to B.
    Crediting(Point),
    /// The same when B has answered, and then the call again, and again, before and after another death of B.
    Repeating,
    /// The engine is away, and the operator cancels.
    Cancelling,
    /// A is dead until its engine has forgotten the key, which it had or had not got. The operator looks at the ledger.
    Forgetting,
}

/// What becomes of the exchange that stood still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Goes on while the victim is dead.
    Before,
    /// Goes on when the victim is back.
    After,
    Lost,
}

use Fate::{After, Before, Lost};
use Victim::{A, AStopped, B, EngineOfA, EngineOfB};

struct Row {
    point: &'static str,
    victims: &'static [Victim],
    way: Way,
    /// In turns.
    fates: &'static [Fate],
    /// How long after the point the victim dies, at most: drawn, but nothing in every other round.
    delay_us_max: u64,
    /// Every round must see a call of A's engine, or of B, again.
    is_repeated: bool,
}

const fn row(point: &'static str, victims: &'static [Victim], way: Way, fates: &'static [Fate]) -> Row {
    Row {
        point,
        victims,
        way,
        fates,
        delay_us_max: 0,
        is_repeated: true,
    }
}

/// A row of which nobody knows whether the call has to be made again.
const fn open_row(point: &'static str, victims: &'static [Victim], way: Way, delay_us_max: u64) -> Row {
    Row {
        delay_us_max,
        is_repeated: false,
        ..row(point, victims, way, &[Before, After, Lost])
    }
}

const ANY: &[Fate] = &[Before, After, Lost];
const NONE: &[&str] = &[];

/// What A says about the keys of its engine in the lane where these expire, and how long that is.
const RETENTION_ARGUMENTS: &[&str] = &["--settlement_key_retention", "2"];
const RETENTION: Duration = Duration::from_secs(2);

/// Arguments of A, and rows. Each lane has a pair of nodes of its own, and all lanes run side by side, because most of the
/// time is pauses between tries.
const LANES: [(&[&str], &[Row]); 7] = [
    (
        NONE,
        &[
            row("response lost", &[AStopped], Way::Paying(Point::Answered), &[Lost]),
            open_row("intent written", &[A], Way::EngineAway, 0),
            row("request sent", &[A], Way::Paying(Point::Arrived), ANY),
            open_row("request sent", &[EngineOfA], Way::Paying(Point::Arrived), 0),
        ],
    ),
    (
        NONE,
        &[
            row("request received", &[A], Way::InEngine, ANY),
            row("request received", &[EngineOfA], Way::InEngine, &[Before]),
            row("response lost", &[A], Way::Paying(Point::Answered), &[Lost]),
        ],
    ),
    (
        NONE,
        &[
            row("response lost", &[EngineOfA], Way::Paying(Point::Answered), &[Lost]),
            row("response lost", &[A, EngineOfA], Way::Paying(Point::Answered), &[Lost]),
            open_row("acknowledged", &[A], Way::Paying(Point::Passed), 5_000),
        ],
    ),
    (
        NONE,
        &[
            open_row("acknowledged", &[EngineOfA], Way::Paying(Point::Passed), 5_000),
            row("request sent", &[A, B], Way::Paying(Point::Arrived), ANY),
            row("announced", &[B], Way::Crediting(Point::Arrived), &[Before]),
            row("announced", &[EngineOfB], Way::Crediting(Point::Arrived), ANY),
        ],
    ),
    (
        NONE,
        &[
            open_row("arrived", &[B], Way::Crediting(Point::Forwarded), 3_000),
            open_row("arrived", &[EngineOfB], Way::Crediting(Point::Forwarded), 3_000),
            row("credited", &[B], Way::Crediting(Point::Answered), &[Lost]),
            row("credited", &[EngineOfB], Way::Crediting(Point::Answered), ANY),
        ],
    ),
    (
        NONE,
        &[
            row("credited", &[B, EngineOfB], Way::Crediting(Point::Answered), &[Lost]),
            open_row("answered", &[B], Way::Crediting(Point::Passed), 5_000),
            open_row("answered", &[EngineOfB], Way::Crediting(Point::Passed), 5_000),
            row("key known", &[B], Way::Repeating, &[Lost]),
        ],
    ),
    (
        RETENTION_ARGUMENTS,
        &[
            open_row("cancelled", &[A], Way::Cancelling, 0),
            open_row("key expired", &[A], Way::Forgetting, 0),
        ],
    ),
];

/// A node with its engine, and what stands between them.
struct Side {
    node: Node,
    engine: Engine,
    to_engine: Proxy,
    to_node: Proxy,
    /// By which the engine knows the account of the other side.
    account: String,
}

impl Side {
    fn start(redis: &Redis, name: &str, to_engine: &'static str, to_node: &'static str, arguments: &[&str]) -> Self {
        let (to_engine, to_node) = (Proxy::start(to_engine), Proxy::start(to_node));
        let engine = Engine::start(redis, name, &to_node.url());
        to_engine.lead_to(engine.address);
        let node = Node::start_with(Options {
            ilp_address: format!("test.{name}"),
            // The other side finds it again.
            http_bind_address: free_address().to_string(),
            // And the engine, which does not wait until the node is ready.
            settlement_api_bind_address: free_address().to_string(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            log_filter: Some("info,api=warn".to_owned()),
            ..Options::default()
        });
        to_node.lead_to(node.settlement_address());
        Self {
            node,
            engine,
            to_engine,
            to_node,
            account: String::new(),
        }
    }

    /// An account for the other side, which settles through the engine.
    fn meet(&mut self, username: &str, other: (&str, SocketAddr), more: Value) {
        let (near, address) = other;
        let mut fields = json!({
            "routing_relation": "Peer",
            "ilp_address": format!("test.{username}"),
            "ilp_over_http_url": format!("http://{address}/accounts/{near}/ilp"),
            "ilp_over_http_outgoing_token": format!("{near}-http"),
            "settlement_engine_url": self.to_engine.url(),
        });
        for (name, value) in more.as_object().expect("fields of an account") {
            fields[name] = value.clone();
        }
        let created = self.node.add_account(username, &fields);
        self.account = created["id"].as_str().expect("an id").to_owned();
    }

    /// What its account has on the ledger of the engines.
    fn ledger_address(&self) -> String {
        self.engine.ledger_address(&self.account)
    }
}

/// What who pays A knows. Amounts.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    /// Whose Fulfill has come back.
    acknowledged: AtomicU64,
}

fn read(counter: &AtomicU64) -> i128 {
    i128::from(counter.load(Ordering::SeqCst))
}

/// Packets from A's account `payer` to B's account `receiver`, until it is ended or A is gone.
struct Traffic {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(address: SocketAddr, seen: &Arc<Seen>, random: &mut Random) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let start = |_| {
            let (is_over, seen, mut random) = (Arc::clone(&is_over), Arc::clone(seen), random.fork());
            std::thread::spawn(move || {
                let mut connection = Connection::open(address);
                while !is_over.load(Ordering::SeqCst) {
                    let amount = random.between(1, AMOUNT_MAX);
                    let prepare = Prepare::new("test.bob.receiver", amount).expires_in(PACKET_LIFE);
                    seen.sent.fetch_add(amount, Ordering::SeqCst);
                    let Ok(answer) = connection.post("/accounts/payer/ilp", "payer-http", &prepare) else {
                        return;
                    };
                    if answer.status == 200 && answer.reply().fulfills(&prepare) {
                        seen.acknowledged.fetch_add(amount, Ordering::SeqCst);
                    } else {
                        // B is away: its death need not be told of a thousand times a second.
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            })
        };
        let threads = (0..CONNECTIONS).map(start).collect();
        Self { is_over, threads }
    }

    /// Every packet has been answered, or will not be.
    fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("packets are sent");
        }
    }
}

/// What everybody says when nothing is under way any more.
#[derive(Clone, Copy, Default, Debug)]
struct Books {
    settlements: usize,
    /// Calls of A's engine, as A counts them, and of B, as the proxy does.
    tries: u64,
    told: usize,
    /// What A has confirmed.
    confirmed: i128,
    /// What has moved on the engines' ledger, and in how many transfers.
    paid: i128,
    transfers: usize,
    /// What B has credited.
    credited: i128,
    /// What A has taken from its customer, and B has given to its own.
    forwarded: i128,
    delivered: i128,
}

struct Pair {
    a: Side,
    b: Side,
    receiver: HttpPeer,
    seen: Arc<Seen>,
    random: Random,
    /// Of A, by id.
    settlements: BTreeMap<String, Value>,
    books: Books,
    redis: Redis,
}

impl Pair {
    fn start(mut random: Random, arguments_of_a: &[&str]) -> Self {
        let redis = Redis::start();
        let (mut a, mut b) = std::thread::scope(|scope| {
            let starting = scope.spawn(|| {
                Side::start(
                    &redis,
                    "alice",
                    "A calls its engine",
                    "A's engine calls A",
                    arguments_of_a,
                )
            });
            let b = Side::start(&redis, "bob", "B calls its engine", "B's engine calls B", &[]);
            (starting.join().expect("A starts"), b)
        });
        // Most packets are paid at once, some later, some not at all.
        let receiver = HttpPeer::start(Rule::new(|prepare| match prepare.data[0] % 16 {
            0 => Answer::reject("F99"),
            1..8 => Answer::Fulfill.after(Duration::from_millis(u64::from(prepare.data[1] % 8))),
            _ => Answer::Fulfill,
        }));
        b.node
            .add_account("receiver", &json!({"ilp_over_http_url": receiver.url()}));
        a.node.add_account("payer", &json!({}));
        let (address_of_a, address_of_b) = (a.node.address(), b.node.address());
        b.meet("alice", ("bob", address_of_a), json!({}));
        let rule = json!({"settle_threshold": THRESHOLD as i64, "settle_to": SETTLE_TO as i64});
        a.meet("bob", ("alice", address_of_b), rule);
        for (side, username) in [(&a, "bob"), (&b, "alice")] {
            eventually("the engine knows the account", || {
                let account = side.node.api().get(&format!("/accounts/{username}"));
                account["settlement_engine_waiting"].is_null().then_some(())
            });
        }
        let random = random.fork();
        let mut pair = Self {
            a,
            b,
            receiver,
            seen: Arc::default(),
            random,
            settlements: BTreeMap::new(),
            books: Books::default(),
            redis,
        };
        // The engines learn from each other where they are on the ledger.
        let traffic = pair.traffic();
        eventually("A settles", || (!pair.newest().is_null()).then_some(()));
        traffic.end();
        pair.wait_until_quiet();
        pair
    }

    fn traffic(&mut self) -> Traffic {
        Traffic::start(self.a.node.address(), &self.seen, &mut self.random)
    }

    /// The newest settlement of A; null if there is none.
    fn newest(&self) -> Value {
        self.a.node.api().get("/accounts/bob/settlements?limit=1")[0].clone()
    }

    fn kill(&mut self, victims: &[Victim]) {
        for victim in victims {
            match victim {
                A => self.a.node.kill(),
                AStopped => self.a.node.terminate(),
                EngineOfA => self.a.engine.kill(),
                B => self.b.node.kill(),
                EngineOfB => self.b.engine.kill(),
            }
        }
    }

    fn run(&mut self, victims: &[Victim]) {
        for victim in victims {
            match victim {
                A => self.a.node.run(),
                AStopped => {
                    assert!(self.a.node.exit_status_within(QUIET_LIMIT).success());
                    self.a.node.run();
                }
                EngineOfA => self.a.engine.run(),
                B => self.b.node.run(),
                EngineOfB => self.b.engine.run(),
            }
        }
    }

    /// Kills at the point of the row and starts again what was killed.
    fn strike(&mut self, row: &Row, round: usize) {
        let fate = row.fates[round % row.fates.len()];
        match row.way {
            Way::EngineAway => self.strike_intent(row, round, fate),
            Way::Paying(point) => {
                let trap = self.a.to_engine.stop_at(point, SETTLEMENTS);
                let traffic = self.traffic();
                let held = trap.wait();
                self.kill_after_delay(row, round);
                self.revive(row.victims, traffic, held, fate);
            }
            Way::Crediting(point) => {
                let trap = self.b.to_node.stop_at(point, SETTLEMENTS);
                let traffic = self.traffic();
                let held = trap.wait();
                self.kill_after_delay(row, round);
                self.revive(row.victims, traffic, held, fate);
            }
            Way::InEngine if round.is_multiple_of(2) => self.strike_unread(row, fate),
            Way::InEngine => self.strike_unanswered(row),
            Way::Repeating => self.strike_and_repeat(row),
            Way::Cancelling => self.strike_cancelled(row),
            Way::Forgetting => self.strike_and_forget(row, round),
        }
    }

    fn kill_after_delay(&mut self, row: &Row, round: usize) {
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_micros(self.random.between(0, row.delay_us_max)));
        }
        self.kill(row.victims);
    }

    /// After the kill: what stood still meets its fate, packets end, and the victims are started again.
    fn revive(&mut self, victims: &[Victim], traffic: Traffic, held: Held, fate: Fate) {
        let key = held.request.header("idempotency-key").expect("a key").to_owned();
        let mut held = Some(held);
        match fate {
            Before => held.take().into_iter().for_each(Held::go_on),
            Lost => held = None,
            After => {}
        }
        traffic.end();
        self.run(victims);
        if victims.contains(&A) || victims.contains(&AStopped) {
            // Whatever A knew of it when it ended, it must not have forgotten that the engine may have it.
            let (status, answer) = self.operator(&key, "cancel");
            let codes = ["settlement_sent", "settlement_ended"];
            assert!(
                status == 409 && codes.iter().any(|code| answer["code"] == *code),
                "{answer}"
            );
        }
        held.into_iter().for_each(Held::go_on);
    }

    /// What the operator of A does about a settlement.
    fn operator(&self, id: &str, what: &str) -> (u16, Value) {
        let target = format!("/accounts/bob/settlements/{id}/{what}");
        let answer = self.a.node.api().call("POST", &target, None);
        (answer.status, answer.json())
    }

    fn operator_ends(&self, id: &str, what: &str, state: &str) {
        let (status, answer) = self.operator(id, what);
        assert_eq!((status, &answer["state"]), (200, &json!(state)), "{what}: {answer}");
    }

    /// What came back is settled with the next packets, and not without.
    fn settle_anew(&mut self, cancelled: &str) {
        let traffic = self.traffic();
        eventually("the next settlement", || {
            (self.newest()["id"] != cancelled).then_some(())
        });
        traffic.end();
    }

    fn strike_cancelled(&mut self, row: &Row) {
        self.a.to_engine.go_down();
        let traffic = self.traffic();
        let id = eventually("a settlement waits", || {
            let newest = self.newest();
            let is_waiting = newest["attempts"] != 0 && newest["state"] == "pending";
            is_waiting.then(|| newest["id"].as_str().expect("an id").to_owned())
        });
        self.operator_ends(&id, "cancel", "cancelled");
        self.kill(row.victims);
        traffic.end();
        self.a.to_engine.come_back();
        self.run(row.victims);
        let (status, answer) = self.operator(&id, "cancel");
        assert_eq!((status, &answer["code"]), (409, &json!("settlement_ended")), "{answer}");
        self.settle_anew(&id);
    }

    fn strike_and_forget(&mut self, row: &Row, round: usize) {
        let before = self.taken_over();
        let is_taken = round.is_multiple_of(2);
        let point = if is_taken { Point::Answered } else { Point::Arrived };
        let trap = self.a.to_engine.stop_at(point, SETTLEMENTS);
        let traffic = self.traffic();
        let held = trap.wait();
        let since = Instant::now();
        let id = held.request.header("idempotency-key").expect("a key").to_owned();
        self.kill(row.victims);
        held.lose();
        traffic.end();
        if is_taken {
            self.redis.forget_key(&self.a.engine, &self.a.account, &id);
        }
        // A counts from before its call, so its time is over by then.
        std::thread::sleep(RETENTION.saturating_sub(since.elapsed()));
        self.run(row.victims);
        eventually("A gives it up", || {
            let newest = self.newest();
            assert_eq!(newest["id"], id, "no other may begin");
            (newest["state"] == "failed" && newest["engine"].is_string() && newest["attempts"] == 1).then_some(())
        });
        for what in ["cancel", "retry"] {
            let (status, answer) = self.operator(&id, what);
            assert_eq!(
                (status, &answer["code"]),
                (409, &json!("settlement_sent")),
                "{what}: {answer}"
            );
        }
        let is_paid = self.taken_over() > before;
        assert_eq!(is_paid, is_taken);
        match (is_paid, round % 4) {
            (true, _) => self.operator_ends(&id, "confirm", "confirmed"),
            (false, 1) => self.operator_ends(&id, "retry?force=true", "pending"),
            (false, _) => {
                self.operator_ends(&id, "cancel?force=true", "cancelled");
                self.settle_anew(&id);
            }
        }
    }

    /// Somebody was called in vain already, or maybe not, in turns.
    fn strike_intent(&mut self, row: &Row, round: usize, fate: Fate) {
        self.a.to_engine.go_down();
        let traffic = self.traffic();
        eventually("a settlement is written, and nobody was reached", || {
            let newest = self.newest();
            let is_tried = newest["attempts"] != 0;
            (newest["ended_at"].is_null() && (is_tried && newest["state"] == "pending" || round % 2 == 1)).then_some(())
        });
        self.kill(row.victims);
        traffic.end();
        if fate == Before {
            self.a.to_engine.come_back();
        }
        self.run(row.victims);
        if fate != Before {
            self.a.to_engine.come_back();
        }
    }

    /// The engine's kernel has all of the request, the engine itself has read nothing of it.
    fn strike_unread(&mut self, row: &Row, fate: Fate) {
        let arrived = self.a.to_engine.stop_at(Point::Arrived, SETTLEMENTS);
        let traffic = self.traffic();
        let arrived = arrived.wait();
        self.a.engine.signal(libc::SIGSTOP);
        let forwarded = self.a.to_engine.stop_at(Point::Forwarded, SETTLEMENTS);
        arrived.go_on();
        let held = forwarded.wait();
        self.kill(row.victims);
        if self.a.engine.is_running() {
            self.a.engine.signal(libc::SIGCONT);
        }
        self.revive(row.victims, traffic, held, fate);
    }

    /// The engine has done the work, and not said so.
    fn strike_unanswered(&mut self, row: &Row) {
        let before = self.taken_over();
        self.a.engine.break_down_for(SETTLEMENTS, Fault::Silent, Some(1));
        let forwarded = self.a.to_engine.stop_at(Point::Forwarded, SETTLEMENTS);
        let traffic = self.traffic();
        let held = forwarded.wait();
        eventually("the engine has done the work", || {
            (self.taken_over() > before).then_some(())
        });
        self.kill(row.victims);
        self.revive(row.victims, traffic, held, Lost);
    }

    /// What the engine of A has queued or paid.
    fn taken_over(&mut self) -> i128 {
        let view = self.a.engine.ledger(SCALE);
        view.queued + view.sent(&self.a.ledger_address())
    }

    fn strike_and_repeat(&mut self, row: &Row) {
        let trap = self.b.to_node.stop_at(Point::Answered, SETTLEMENTS);
        let traffic = self.traffic();
        let held = trap.wait();
        let request = held.request.clone();
        self.kill(row.victims);
        self.revive(row.victims, traffic, held, Lost);
        let first = self.tell_b(&request);
        assert_eq!(first.status, 201, "{first:?}");
        let again = |answer: HttpAnswer| assert_eq!((answer.status, &answer.body), (201, &first.body));
        again(self.tell_b(&request));
        self.kill(row.victims);
        self.run(row.victims);
        again(self.tell_b(&request));
        let another = HttpRequest {
            body: br#"{"amount":"1","scale":0}"#.to_vec(),
            ..request.clone()
        };
        let refused = self.tell_b(&another);
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (409, &json!("idempotency_conflict"))
        );
        again(self.tell_b(&request));
    }

    /// What B's engine told B, once more, as it was.
    fn tell_b(&self, request: &HttpRequest) -> HttpAnswer {
        let headers = request
            .headers
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "host" | "content-length"));
        let headers: Vec<_> = headers.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut connection = Connection::open(self.b.node.settlement_address());
        let answer = connection.request(&request.method, &request.target, &headers, &request.body);
        answer.expect("an answer")
    }

    /// Waits until no packet, no settlement and no announcement is under way. Does not look whether anything adds up.
    fn wait_until_quiet(&mut self) {
        let begun = Instant::now();
        while !self.is_quiet() {
            assert!(
                begun.elapsed() < QUIET_LIMIT,
                "still at work after {QUIET_LIMIT:?}: {:#}\n{:?}\n{:?}",
                self.newest(),
                self.a.engine.ledger(SCALE),
                self.b.engine.ledger(SCALE),
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn is_quiet(&mut self) -> bool {
        let (a, b) = (self.a.node.api(), self.b.node.api());
        // From the cause to the effect: what has ended here can no more begin there. The audit waits until all is in the book
        // that the shard has done, so that no settlement is overlooked whose amount has left the balance already.
        a.held("payer") == 0
            && a.balance("bob") < THRESHOLD
            && a.audit()["adds_up"] == true
            && !["pending", "sent", "failed"].contains(&self.newest()["state"].as_str().unwrap_or_default())
            && self.a.engine.ledger(SCALE).queued == 0
            && self.b.engine.ledger(SCALE).unannounced == 0
            && b.held("alice") == 0
            && a.held("bob") == 0
            && b.held("receiver") == 0
    }

    /// What everybody says now; panics unless they all say the same. Nothing is under way.
    fn check(&mut self, what: &str) -> Books {
        let (a, b) = (self.a.node.api(), self.b.node.api());
        let listed = a.get("/accounts/bob/settlements?limit=1000");
        for settlement in listed.as_array().expect("an array") {
            let id = settlement["id"].as_str().expect("an id").to_owned();
            self.settlements.insert(id, settlement.clone());
        }
        let confirmed = self.settlements.values().filter(|one| one["state"] == "confirmed");
        let view = self.a.engine.ledger(SCALE);
        let books = Books {
            settlements: self.settlements.len(),
            tries: self
                .settlements
                .values()
                .map(|one| one["attempts"].as_u64().expect("a number"))
                .sum(),
            told: self.b.to_node.requests(SETTLEMENTS).len(),
            confirmed: confirmed.clone().map(|one| whole(&one["amount"])).sum(),
            paid: view.sent(&self.a.ledger_address()),
            transfers: view.transfers.len(),
            credited: b.balance("alice") + b.balance("receiver"),
            forwarded: -a.balance("payer"),
            delivered: b.balance("receiver"),
        };
        assert_eq!(
            books.confirmed, books.paid,
            "{what}: A has confirmed what was paid: {books:?}\n{view:?}"
        );
        assert_eq!(
            confirmed.count(),
            books.transfers,
            "{what}: once per settlement: {books:?}"
        );
        assert_eq!(
            view.received(&self.b.ledger_address()),
            books.paid,
            "{what}: nobody else was paid"
        );
        assert_eq!(
            books.credited, books.paid,
            "{what}: B has booked what was paid: {books:?}"
        );
        assert_eq!(
            a.balance("bob") + books.confirmed,
            books.forwarded,
            "{what}: what B was owed is paid or in the balance: {books:?}"
        );
        let mut known = BTreeSet::new();
        for (request, status) in self.b.to_node.answers(SETTLEMENTS) {
            let key = request.header("idempotency-key").expect("a key").to_owned();
            // An engine that hears of an error may bring it again under another key.
            assert!(
                status == 201 || !known.contains(&key),
                "{what}: {status} to what was credited"
            );
            if status == 201 {
                known.insert(key);
            }
        }
        // A node that dies does not tell the side before it of what the side behind it has fulfilled.
        let ordered = [
            ("acknowledged", read(&self.seen.acknowledged)),
            ("in A's book", books.forwarded),
            ("in B's book", books.delivered),
            ("fulfilled by the receiver", i128::from(self.receiver.rule.fulfilled())),
            ("sent", read(&self.seen.sent)),
        ];
        assert!(ordered.is_sorted_by_key(|(_, amount)| *amount), "{what}: {ordered:?}");
        for api in [&a, &b] {
            api.audit();
        }
        books
    }

    /// All rounds of a row; a line of the table.
    fn measure(&mut self, row: &Row) -> String {
        let begun = Instant::now();
        let what = format!("{}, {:?}", row.point, row.victims);
        let before = self.books;
        for round in 0..rounds() {
            let last = self.books;
            self.strike(row, round);
            self.wait_until_quiet();
            self.books = self.check(&format!("{what}, round {round}"));
            let books = self.books;
            assert!(
                books.settlements > last.settlements,
                "{what}, round {round}: it was about a settlement"
            );
            if row.is_repeated {
                let tries = books.tries - last.tries > (books.settlements - last.settlements) as u64;
                let told = books.told - last.told > books.transfers - last.transfers;
                assert!(
                    tries || told,
                    "{what}, round {round}: the call was made again: {last:?} {books:?}"
                );
            }
        }
        let after = self.books;
        let mut victims = String::new();
        for victim in row.victims {
            let name = match victim {
                A => "A",
                AStopped => "A, in order",
                EngineOfA => "engine of A",
                B => "B",
                EngineOfB => "engine of B",
            };
            let comma = if victims.is_empty() { "" } else { ", " };
            write!(victims, "{comma}{name}").expect("a text grows");
        }
        format!(
            "{:<18}{victims:<20}{:>6}{:>13}{:>7}{:>7}{:>10}{:>10}{:>8.1}",
            row.point,
            rounds(),
            after.settlements - before.settlements,
            after.tries - before.tries,
            after.told - before.told,
            after.paid - before.paid,
            after.credited - before.credited,
            begun.elapsed().as_secs_f64(),
        )
    }
}

/// What [`Pair::measure`] gives.
fn print_table(rows: &[String]) {
    println!(
        "{:<18}{:<20}{:>6}{:>13}{:>7}{:>7}{:>10}{:>10}{:>8}",
        "point", "killed", "rounds", "settlements", "tries", "told", "paid", "booked", "seconds"
    );
    for row in rows {
        println!("{row}");
    }
}

#[test]
fn whoever_is_killed_and_whenever_what_is_paid_is_what_is_booked() {
    let mut random = Random::new("settlement_crash");
    let table: Vec<String> = std::thread::scope(|scope| {
        let run = |(arguments, rows): (&'static [&str], &'static [Row])| {
            let random = random.fork();
            scope.spawn(move || {
                let mut pair = Pair::start(random, arguments);
                pair.books = pair.check("before the first kill");
                let table: Vec<String> = rows.iter().map(|row| pair.measure(row)).collect();
                (table, read(&pair.seen.sent) - read(&pair.seen.acknowledged))
            })
        };
        let lanes: Vec<_> = LANES.map(run).into_iter().collect();
        let ended: Vec<_> = lanes
            .into_iter()
            .map(|lane| lane.join().expect("all adds up"))
            .collect();
        let in_doubt: i128 = ended.iter().map(|(_, in_doubt)| in_doubt).sum();
        assert!(in_doubt > 0, "kills hit packets in flight");
        ended.into_iter().flat_map(|(table, _)| table).collect()
    });
    print_table(&table);
}
