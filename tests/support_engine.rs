//! The instruments before the measurement, for settlement: real engines and the one of this process keep the contract,
//! with every fault, and our client of engines knows what it can know of each. Needs `node`, `npm` and `redis-server`
//! (`make test` installs them).

mod support;

use std::time::Duration;

use clearway::client::engine::{EngineAnswer, EngineClient};
use serde_json::json;
use support::engine::{Engine, FakeEngine, FakeSettlement, Fault, Redis};
use support::http::{Connection, HttpAnswer};
use support::{eventually, free_address};
use url::Url;
use uuid::Uuid;

/// Accounts of two connectors, each of which is the other's peer.
const BOB_AT_ALICE: Uuid = Uuid::from_u128(0xb0b);
const ALICE_AT_BOB: Uuid = Uuid::from_u128(0xa11ce);

/// Two engines on one ledger, each with an account for the other and a stand-in for its connector.
struct Pair {
    alice: Engine,
    bob: Engine,
    connector_of_alice: FakeEngine,
    connector_of_bob: FakeEngine,
    _redis: Redis,
}

impl Pair {
    fn start() -> Self {
        let redis = Redis::start();
        let (connector_of_alice, connector_of_bob) = (FakeEngine::start(), FakeEngine::start());
        connector_of_alice.add_account(&BOB_AT_ALICE.to_string());
        connector_of_bob.add_account(&ALICE_AT_BOB.to_string());
        let alice = Engine::start(&redis, "alice", &connector_of_alice.url());
        let bob = Engine::start(&redis, "bob", &connector_of_bob.url());
        for (engine, account) in [(&alice, BOB_AT_ALICE), (&bob, ALICE_AT_BOB)] {
            let body = json!({ "id": account.to_string() }).to_string();
            assert_eq!(
                post(engine, "/accounts", "create", &body).expect("an answer").status,
                201
            );
        }
        Self {
            alice,
            bob,
            connector_of_alice,
            connector_of_bob,
            _redis: redis,
        }
    }

    fn linked() -> Self {
        let mut pair = Self::start();
        let bob = pair.bob.ledger_address(&ALICE_AT_BOB.to_string());
        let alice = pair.alice.ledger_address(&BOB_AT_ALICE.to_string());
        pair.alice.link(&BOB_AT_ALICE.to_string(), &bob);
        pair.bob.link(&ALICE_AT_BOB.to_string(), &alice);
        pair
    }

    /// Asks alice's engine to pay bob; `None` if the answer is lost.
    fn settle(&self, key: &str, amount: u64, scale: u8) -> Option<HttpAnswer> {
        let quantity = json!({"amount": amount.to_string(), "scale": scale}).to_string();
        post(
            &self.alice,
            &format!("/accounts/{BOB_AT_ALICE}/settlements"),
            key,
            &quantity,
        )
    }

    /// Waits until bob's connector has taken so many settlements, and gives their amounts at scale 9.
    fn taken(&self, count: usize) -> Vec<u128> {
        let at_nine = |settlement: &FakeSettlement| {
            let power = 9u8.checked_sub(settlement.scale).expect("amounts of these tests");
            settlement.amount * 10u128.pow(power.into())
        };
        eventually("the connector has taken it", || {
            let settlements = self.connector_of_bob.settlements();
            (settlements.len() >= count).then(|| settlements.iter().map(at_nine).collect())
        })
    }
}

/// Not with our own client: this is what shall be measured with later.
fn post(engine: &Engine, target: &str, key: &str, body: &str) -> Option<HttpAnswer> {
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
    let mut connection = Connection::open(engine.address);
    connection.request("POST", target, &headers, body.as_bytes()).ok()
}

#[test]
fn a_settlement_moves_once_although_answers_are_lost_and_the_call_is_repeated() {
    let mut pair = Pair::linked();
    pair.alice.break_down_for("settlements", Fault::Lose, Some(1));
    pair.connector_of_bob
        .break_down_for("settlements", Fault::Lose, Some(1));
    assert!(pair.settle("key-1", 1_500_000_000, 9).is_none(), "the answer is lost");
    for _ in 0..2 {
        let again = pair.settle("key-1", 1_500_000_000, 9).expect("an answer");
        assert_eq!(
            (again.status, again.json()["amount"].as_str()),
            (201, Some("1500000000"))
        );
    }
    assert_eq!(pair.taken(1), [1_500_000_000]);
    // The same key with another amount moves nothing; another key does, and tells that nothing else came before.
    assert_eq!(pair.settle("key-1", 7, 9).expect("an answer").status, 400);
    assert_eq!(pair.settle("key-2", u64::MAX, 9).expect("an answer").status, 201);
    assert_eq!(pair.taken(2), [1_500_000_000, u64::MAX.into()]);

    let calls = pair.connector_of_bob.requests();
    let keys: Vec<_> = calls
        .iter()
        .map(|call| call.header("idempotency-key").expect("a key"))
        .collect();
    assert_eq!(calls.len(), 3, "one was lost: {keys:?}");
    assert!(keys[0] == keys[1] && keys[1] != keys[2], "{keys:?}");
    let (from, to) = (format!("alice/{BOB_AT_ALICE}"), format!("bob/{ALICE_AT_BOB}"));
    let bob = eventually("all is announced", || {
        let view = pair.bob.ledger(9);
        (view.unannounced == 0).then_some(view)
    });
    let total = i128::from(u64::MAX) + 1_500_000_000;
    assert_eq!((bob.transfers.len(), bob.queued), (2, 0));
    assert_eq!(
        (bob.received(&to), bob.balance(&from), bob.sent(&from)),
        (total, -total, total)
    );
    assert_eq!(pair.connector_of_alice.requests().len(), 0);
}

#[test]
fn engines_that_are_killed_go_on_where_they_were() {
    let mut pair = Pair::linked();
    // Accepted, not moved.
    pair.alice.pause_settling(true);
    assert_eq!(pair.settle("key-1", 5, 9).expect("an answer").status, 201);
    assert_eq!(pair.settle("key-2", 6, 0).expect("an answer").status, 201);
    let before = pair.alice.ledger(9);
    assert_eq!((before.transfers.len(), before.queued), (0, 6_000_000_005));
    // Moved, not announced.
    pair.bob.pause_announcing(true);
    pair.alice.kill();
    assert!(Connection::try_open(pair.alice.address).is_err());
    pair.alice.run();
    let moved = eventually("both have moved", || {
        let view = pair.bob.ledger(9);
        (view.unannounced == 2).then_some(view)
    });
    assert_eq!(moved.received(&format!("bob/{ALICE_AT_BOB}")), 6_000_000_005);
    assert_eq!(pair.connector_of_bob.settlements(), []);
    // Announced to a connector that is not there.
    pair.connector_of_bob.go_down();
    pair.bob.kill();
    pair.bob.run();
    assert_eq!(pair.bob.ledger(9).unannounced, 2);
    pair.connector_of_bob.come_back();
    let mut taken = pair.taken(2);
    taken.sort_unstable();
    assert_eq!(taken, [5, 6_000_000_000]);
    // A connector that is broken is told again, under the same keys.
    pair.connector_of_bob
        .break_down_for("settlements", Fault::Status(500), Some(2));
    assert_eq!(pair.settle("key-3", 7, 9).expect("an answer").status, 201);
    assert_eq!(pair.taken(3)[2], 7);
    eventually("all is announced", || {
        (pair.bob.ledger(9).unannounced == 0).then_some(())
    });
    // The keys are kept: nothing moves again.
    assert_eq!(pair.settle("key-1", 5, 9).expect("an answer").status, 201);
    assert_eq!(pair.settle("key-4", 8, 9).expect("an answer").status, 201);
    assert_eq!(pair.taken(4)[3], 8);
    assert_eq!(pair.alice.ledger(9).transfers.len(), 4);
}

#[test]
fn an_engine_asks_the_peers_for_its_address_with_a_message() {
    let pair = Pair::start();
    let address = json!({"address": pair.bob.ledger_address(&ALICE_AT_BOB.to_string())});
    // At first the peer's engine cannot be reached.
    pair.connector_of_alice
        .break_down_for("messages", Fault::Status(502), Some(1));
    pair.connector_of_alice.reply_with(address.to_string().as_bytes());
    assert_eq!(pair.settle("key-1", 10, 6).expect("an answer").status, 201);
    assert_eq!(pair.taken(1), [10_000]);
    assert_eq!(pair.connector_of_alice.messages(), [br#"{"ask":"address"}"#]);
    // And answers when it is asked itself.
    let client = EngineClient::default();
    let url = Url::parse(&pair.bob.url()).expect("a URL");
    let limit = Duration::from_secs(5);
    let reply = client.message(&url, ALICE_AT_BOB, br#"{"ask":"address"}"#, "key", limit);
    assert_eq!(reply, EngineAnswer::Accepted(address.to_string().into_bytes()));
}

/// What our client knows after each fault, and what the engine has done.
#[test]
fn our_client_knows_what_it_can_know_of_each_engine() {
    let kind = |answer: EngineAnswer| match answer {
        EngineAnswer::Accepted(_) => "accepted".to_owned(),
        EngineAnswer::Refused { status, .. } => format!("refused {status}"),
        EngineAnswer::Unknown { .. } => "unknown".to_owned(),
        EngineAnswer::NotSent { .. } => "not sent".to_owned(),
    };
    let client = EngineClient::default();
    let mut fake = FakeEngine::start();
    let mut pair = Pair::linked();
    let url_of_fake = Url::parse(&fake.url()).expect("a URL");
    let url_of_alice = Url::parse(&pair.alice.url()).expect("a URL");
    assert_eq!(
        kind(client.settle(&url_of_fake, BOB_AT_ALICE, 10, 9, "early")),
        "refused 404"
    );
    for url in [&url_of_fake, &url_of_alice] {
        assert_eq!(kind(client.create_account(url, BOB_AT_ALICE, "create")), "accepted");
        assert_eq!(
            kind(client.create_account(url, BOB_AT_ALICE, "create again")),
            "accepted"
        );
    }
    let table = [
        (None, "accepted", true),
        (Some(Fault::Slow(Duration::from_millis(50))), "accepted", true),
        (Some(Fault::Status(400)), "refused 400", false),
        (Some(Fault::Status(409)), "refused 409", false),
        (Some(Fault::Status(429)), "unknown", false),
        (Some(Fault::Status(500)), "unknown", false),
        (Some(Fault::Lose), "unknown", true),
        (Some(Fault::Garbage), "unknown", true),
    ];
    let mut done = 0;
    for (number, (fault, expected, is_done)) in table.into_iter().enumerate() {
        let key = format!("key-{number}");
        if let Some(fault) = fault {
            fake.break_down_for("settlements", fault, Some(1));
            pair.alice.break_down_for("settlements", fault, Some(1));
        }
        let settle = |url| kind(client.settle(url, BOB_AT_ALICE, 10, 9, &key));
        assert_eq!(
            (settle(&url_of_fake), settle(&url_of_alice)),
            (expected.into(), expected.into()),
            "{fault:?}"
        );
        done += usize::from(is_done);
        assert_eq!(fake.settlements().len(), done, "{fault:?}");
        assert_eq!(pair.taken(done).len(), done, "{fault:?}");
        // Once the fault is over, the same key ends it, whatever was done before.
        assert_eq!(
            (settle(&url_of_fake), settle(&url_of_alice)),
            ("accepted".into(), "accepted".into())
        );
        done += usize::from(!is_done);
        assert_eq!(fake.settlements().len(), done, "{fault:?}");
        assert_eq!(pair.taken(done).len(), done, "{fault:?}");
    }
    // These two let it wait: with messages the limit is the caller's.
    for fault in [Fault::Hang, Fault::Silent] {
        let limit = Duration::from_millis(200);
        let message = |url| kind(client.message(url, BOB_AT_ALICE, b"{}", "key", limit));
        fake.break_down_for("messages", fault, Some(1));
        pair.alice.break_down_for("messages", fault, Some(1));
        assert_eq!(
            (message(&url_of_fake), message(&url_of_alice)),
            ("unknown".into(), "unknown".into()),
            "{fault:?}"
        );
    }
    assert_eq!(fake.messages().len(), 1, "a silent engine has done it");
    fake.go_down();
    pair.alice.kill();
    for url in [&url_of_fake, &url_of_alice] {
        assert_eq!(kind(client.settle(url, BOB_AT_ALICE, 10, 9, "down")), "not sent");
    }
    fake.come_back();
    pair.alice.run();
    for url in [&url_of_fake, &url_of_alice] {
        assert_eq!(kind(client.delete_account(url, BOB_AT_ALICE, "delete")), "accepted");
        assert_eq!(
            kind(client.delete_account(url, BOB_AT_ALICE, "delete again")),
            "accepted"
        );
        assert_eq!(kind(client.settle(url, BOB_AT_ALICE, 10, 9, "late")), "refused 404");
    }
    assert_eq!(fake.total(&BOB_AT_ALICE.to_string(), 9), 10 * done as u128);
    assert_eq!(fake.total(&BOB_AT_ALICE.to_string(), 12), 10_000 * done as u128);
}

#[test]
fn the_fake_engine_sees_what_its_callers_do_wrong() {
    let fake = FakeEngine::start_at(free_address());
    let account = BOB_AT_ALICE.to_string();
    fake.add_account(&account);
    let mut connection = Connection::open(fake.address);
    let target = format!("/accounts/{account}/settlements");
    let mut settle = |key: Option<&str>, body: &str| {
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(key.map(|key| ("Idempotency-Key", key)));
        let answer = connection.request("POST", &target, &headers, body.as_bytes());
        (answer.expect("an answer").status, fake.take_violations().len())
    };
    let ten = r#"{"amount":"10","scale":9}"#;
    assert_eq!(settle(Some("a"), ten), (201, 0));
    assert_eq!(settle(Some("a"), ten), (201, 0));
    for (key, body, expected) in [
        (Some("a"), r#"{"amount":"11","scale":9}"#, (409, 1)),
        (Some("a"), r#"{"amount":"10","scale":8}"#, (409, 1)),
        (None, ten, (400, 1)),
        (Some("b"), r#"{"amount":10,"scale":9}"#, (400, 1)),
        (Some("b"), r#"{"amount":"0","scale":9}"#, (400, 1)),
        (Some("b"), r#"{"amount":"10","scale":256}"#, (400, 1)),
        (Some("b"), "garbage", (400, 1)),
    ] {
        assert_eq!(settle(key, body), expected, "{key:?} {body}");
    }
    assert_eq!(fake.settlements().len(), 1);
    // What nobody has taken fails the test that owns the engine.
    assert_eq!(settle(Some("a"), ten), (201, 0));
    let wrong = Connection::open(fake.address).request("GET", "/", &[], b"");
    assert_eq!(wrong.expect("an answer").status, 404);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(fake))).is_err());
}
