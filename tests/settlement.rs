//! Settlements of a whole node against an engine of this process: what leaves a balance is paid once, whatever the engine
//! does meanwhile; what engines bring is credited once; operators see and steer it; engines' messages go through.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::btp_peer::BtpPeer;
use support::engine::{FakeEngine, Fault};
use support::eventually;
use support::http::{Api, Connection, HttpAnswer};
use support::node::{ADMIN_TOKEN, Node, Options};
use support::packet::Prepare;
use support::rule::{Answer, Rule};

const SECOND: Duration = Duration::from_secs(1);

/// A node, an engine that serves bob, and alice who pays him.
struct World {
    node: Node,
    engine: FakeEngine,
    rule: Rule,
    _bob: BtpPeer,
}

impl World {
    fn start(arguments: &[&str]) -> Self {
        let node = Node::start_with(Options {
            shards: 2,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            // Bob dials again after a restart.
            http_bind_address: support::free_address().to_string(),
            ..Options::default()
        });
        let engine = FakeEngine::start();
        node.add_account("alice", &json!({}));
        node.add_account(
            "bob",
            &json!({
                "settle_threshold": 100, "settle_to": 10, "settlement_engine_url": engine.url(),
                "routing_relation": "Peer",
            }),
        );
        let rule = Rule::fulfill();
        let bob = BtpPeer::connect(node.address(), "bob", rule.clone());
        // Nothing is sent before, and an engine that goes down would never know.
        eventually("the engine has acknowledged bob", || {
            let bob = node.api().get("/accounts/bob");
            bob["settlement_engine_waiting"].is_null().then_some(())
        });
        Self {
            node,
            engine,
            rule,
            _bob: bob,
        }
    }

    fn api(&self) -> Api {
        self.node.api()
    }

    fn uuid(&self) -> String {
        let account = self.api().get("/accounts/bob");
        account["id"].as_str().expect("a text").to_owned()
    }

    fn pay(&self, amount: u64) {
        self.node.expect_fulfill("alice", &Prepare::new("test.hub.bob", amount));
    }

    fn settlements(&self) -> Vec<Value> {
        let listed = self.api().get("/accounts/bob/settlements");
        listed.as_array().expect("an array").clone()
    }

    fn expect_state(&self, state: &str) -> Value {
        eventually(&format!("the newest settlement is {state}"), || {
            let newest = self.settlements().into_iter().next()?;
            (newest["state"] == state).then_some(newest)
        })
    }

    fn balance(&self) -> i128 {
        self.api().balance("bob")
    }

    /// A call of the operator's, with its status and answer.
    fn call(&self, method: &str, target: &str) -> (u16, Value) {
        let authorization = format!("Bearer {ADMIN_TOKEN}");
        let headers = [("authorization", authorization.as_str())];
        let answer = self.node.connection().request(method, target, &headers, b"");
        let answer = answer.expect("an answer");
        (answer.status, answer.json())
    }

    /// A call on the port of engines.
    fn engine_call(&self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpAnswer {
        let mut connection = Connection::open(self.node.settlement_address());
        connection.request("POST", target, headers, body).expect("an answer")
    }
}

#[test]
fn what_leaves_the_balance_is_paid_once() {
    let world = World::start(&[]);
    world.pay(99);
    assert_eq!(world.settlements(), [] as [Value; 0]);
    world.pay(1);
    let confirmed = world.expect_state("confirmed");
    assert_eq!((&confirmed["amount"], &confirmed["scale"]), (&json!(90), &json!(9)));
    assert_eq!(
        (&confirmed["attempts"], &confirmed["last_error"]),
        (&json!(1), &Value::Null)
    );
    assert!(confirmed["ended_at"].is_string() && confirmed["created_at"].is_string());
    assert_eq!(world.balance(), 10);
    // The next one, again and again.
    for round in 2..5 {
        world.pay(90);
        eventually("it is paid, too", || {
            (world.engine.settlements().len() == round).then_some(())
        });
        eventually("it is confirmed", || {
            world
                .settlements()
                .iter()
                .all(|one| one["state"] == "confirmed")
                .then_some(())
        });
    }
    assert_eq!(world.engine.total(&world.uuid(), 9), 4 * 90);
    let (status, page) = world.call("GET", "/accounts/bob/settlements?limit=1");
    assert_eq!((status, page.as_array().map(Vec::len)), (200, Some(1)));
    world.api().audit();
}

#[test]
fn an_engine_that_fails_is_asked_until_it_answers() {
    for (fault, state) in [
        (Fault::Status(500), "sent"),
        (Fault::Lose, "sent"),
        (Fault::Garbage, "sent"),
        (Fault::Silent, "sent"),
    ] {
        let world = World::start(&[]);
        let uuid = world.uuid();
        eventually("the engine knows bob", || {
            world.engine.accounts().contains(&uuid).then_some(())
        });
        world.engine.break_down_for("settlements", fault, None);
        world.pay(100);
        world.expect_state(state);
        // Packets go on meanwhile.
        world.pay(300);
        assert_eq!(world.balance(), 310);
        world.engine.mend();
        // The pause that is on, at most some seconds; then the rest.
        eventually("all is paid", || (world.engine.total(&uuid, 9) == 390).then_some(()));
        eventually("all is confirmed", || {
            let all = world.settlements();
            (all.len() == 2 && all.iter().all(|one| one["state"] == "confirmed")).then_some(())
        });
        assert_eq!(
            (world.balance(), world.engine.settlements().len()),
            (10, 2),
            "{fault:?}"
        );
        world.api().audit();
    }
}

/// By the name that the operator knows, and not by a number that nothing else shows.
#[test]
fn the_log_names_the_account_of_a_settlement() {
    let world = World::start(&[]);
    let uuid = world.uuid();
    eventually("the engine knows bob", || {
        world.engine.accounts().contains(&uuid).then_some(())
    });
    let expect_line = |level: &str, what: &str| {
        let begin = format!("{level} settlements: {what}");
        eventually(&format!("a line that names bob: {begin}"), || {
            let lines = world.node.log_lines();
            let mut said = lines.iter().filter(|line| line.contains(&begin));
            said.any(|line| line.contains(" account=bob ")).then_some(())
        });
    };
    world.engine.break_down_for("settlements", Fault::Status(503), Some(1));
    world.pay(100);
    expect_line("INFO", "made ");
    expect_line("WARN", "not acknowledged yet; it will be tried again ");
    expect_line("INFO", "confirmed ");
    world.engine.break_down_for("settlements", Fault::Status(400), Some(1));
    world.pay(90);
    expect_line("ERROR", "the engine refuses a settlement");
}

#[test]
fn a_settlement_survives_the_death_of_the_node() {
    let mut world = World::start(&[]);
    let uuid = world.uuid();
    eventually("the engine knows bob", || {
        world.engine.accounts().contains(&uuid).then_some(())
    });
    world.engine.break_down_for("settlements", Fault::Lose, None);
    world.pay(100);
    world.expect_state("sent");
    world.node.kill();
    world.engine.mend();
    world.node.run();
    world.expect_state("confirmed");
    assert_eq!(
        (world.engine.total(&uuid, 9), world.engine.settlements().len()),
        (90, 1)
    );
    assert_eq!(world.balance(), 10);
    world.api().audit();
}

#[test]
fn the_operator_steers() {
    let mut world = World::start(&[]);
    let uuid = world.uuid();
    eventually("the engine knows bob", || {
        world.engine.accounts().contains(&uuid).then_some(())
    });
    let expect = |call: (u16, Value), status: u16, code: &str| {
        assert_eq!((call.0, call.1["code"].as_str()), (status, Some(code)), "{}", call.1);
    };
    let settle = |world: &World| world.call("POST", "/accounts/bob/settlements");
    expect(settle(&world), 409, "nothing_to_settle");
    expect(
        world.call("POST", "/accounts/alice/settlements"),
        409,
        "no_settlement_rule",
    );
    expect(
        world.call("POST", "/accounts/nobody/settlements"),
        404,
        "account_not_found",
    );
    world.pay(50);
    let (status, made) = settle(&world);
    // The engine may have it already.
    assert_eq!((status, &made["amount"]), (201, &json!(40)), "{made}");
    world.expect_state("confirmed");

    // One that the engine refuses: it waits, is tried again, and comes back.
    world.engine.break_down_for("settlements", Fault::Status(400), None);
    world.pay(50);
    settle(&world);
    let failed = world.expect_state("failed");
    expect(settle(&world), 409, "settlement_pending");
    expect(
        world.call("DELETE", "/accounts/bob?force=true"),
        409,
        "settlement_pending",
    );
    let path = |settlement: &Value, what: &str| {
        let id = settlement["id"].as_str().expect("an id");
        format!("/accounts/bob/settlements/{id}/{what}")
    };
    let (status, _) = world.call("POST", &path(&failed, "retry"));
    assert_eq!(status, 200);
    eventually("it was refused again", || {
        (world.settlements()[0]["attempts"] == 2).then_some(())
    });
    world.expect_state("failed");
    let (status, cancelled) = world.call("POST", &path(&failed, "cancel"));
    assert_eq!((status, &cancelled["state"]), (200, &json!("cancelled")));
    assert_eq!(world.balance(), 60);
    expect(world.call("POST", &path(&failed, "cancel")), 409, "settlement_ended");
    expect(world.call("POST", &path(&failed, "retry")), 409, "settlement_ended");
    expect(
        world.call("POST", "/accounts/bob/settlements/nothing/cancel"),
        404,
        "settlement_not_found",
    );

    // One whose outcome nobody knows: only with force.
    world.engine.break_down_for("settlements", Fault::Status(500), None);
    settle(&world);
    let sent = world.expect_state("sent");
    expect(world.call("POST", &path(&sent, "cancel")), 409, "settlement_sent");
    // Not while the engine is being asked.
    eventually("it is cancelled", || {
        let (status, answer) = world.call("POST", &path(&sent, "cancel?force=true"));
        assert!(
            status == 200 || answer["code"] == "settlement_sent",
            "{status}: {answer}"
        );
        (status == 200).then_some(())
    });
    assert_eq!(world.balance(), 60);

    // One that surely has not arrived.
    world.engine.go_down();
    settle(&world);
    let pending = eventually("it was tried", || {
        let newest = world.settlements().remove(0);
        (newest["state"] == "pending" && newest["attempts"] != 0).then_some(newest)
    });
    assert_eq!(world.call("POST", &path(&pending, "cancel")).0, 200);
    assert_eq!(world.balance(), 60);
    world.engine.come_back();
    assert_eq!(world.engine.total(&uuid, 9), 40);
    world.api().audit();
}

#[test]
fn what_an_engine_brings_is_credited_once() {
    let world = World::start(&[]);
    let target = format!("/accounts/{}/settlements", world.uuid());
    let bring = |key: &str, body: &str| {
        let headers = [("idempotency-key", key), ("content-type", "application/json")];
        let headers = if key.is_empty() { &headers[1..] } else { &headers[..] };
        let answer = world.engine_call(&target, headers, body.as_bytes());
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    };
    let taken = r#"{"amount":"2500","scale":11}"#;
    assert_eq!(bring("a", taken), (201, taken.to_owned()));
    assert_eq!(bring("a", taken), (201, taken.to_owned()));
    assert_eq!(world.balance(), 25);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| bring("b", taken))).collect();
        asking
            .into_iter()
            .map(|asked| asked.join().expect("no panic"))
            .collect()
    });
    assert!(
        answers.iter().all(|answer| *answer == (201, taken.to_owned())),
        "{answers:?}"
    );
    eventually("it is credited", || (world.balance() == 50).then_some(()));
    for (key, body, status, part) in [
        ("a", r#"{"amount":"2501","scale":11}"#, 409, "idempotency_conflict"),
        ("", taken, 400, "Idempotency-Key"),
        ("c", r#"{"amount":"-1","scale":9}"#, 400, r#""name":"amount""#),
        ("c", r#"{"amount":"1"}"#, 400, r#""name":"scale""#),
        (
            "c",
            r#"{"amount":"18446744073709551616","scale":9}"#,
            400,
            "nothing was credited",
        ),
        ("c", "{", 400, "json_eof"),
        ("c", r#"{"amount":3,"scale":9}"#, 201, r#"{"amount":"3","scale":9}"#),
    ] {
        let (found, answer) = bring(key, body);
        assert_eq!(found, status, "{body}: {answer}");
        assert!(answer.contains(part), "{body}: {answer}");
    }
    eventually("it is credited", || (world.balance() == 53).then_some(()));
    let headers = [("idempotency-key", "k")];
    for (target, status) in [
        ("/accounts/bob/settlements", 400),
        ("/accounts/5f0c7a52-0000-4000-8000-2b6c1d9e8f10/settlements", 404),
    ] {
        assert_eq!(
            world.engine_call(target, &headers, taken.as_bytes()).status,
            status,
            "{target}"
        );
    }
    let alice = world.api().get("/accounts/alice")["id"]
        .as_str()
        .expect("a text")
        .to_owned();
    let target = format!("/accounts/{alice}/settlements");
    assert_eq!(
        world.engine_call(&target, &headers, taken.as_bytes()).status,
        404,
        "no engine serves her"
    );
    // What was credited is said again also if the account has no engine any more.
    world
        .api()
        .put("/accounts/bob", &json!({"settlement_engine_url": null}));
    assert_eq!(bring("a", taken), (201, taken.to_owned()));
    assert_eq!(bring("d", taken).0, 404);
    assert_eq!(world.balance(), 53);
    world.api().audit();
}

#[test]
fn engines_prove_themselves_when_they_must() {
    let world = World::start(&["--settlement_api_token", "token-of-the-engines"]);
    let target = format!("/accounts/{}/settlements", world.uuid());
    let body = br#"{"amount":"7","scale":9}"#;
    let ask = |authorization: &str| {
        let headers = [("idempotency-key", "a"), ("authorization", authorization)];
        let headers = if authorization.is_empty() {
            &headers[..1]
        } else {
            &headers[..]
        };
        world.engine_call(&target, headers, body).status
    };
    assert_eq!(ask(""), 401);
    assert_eq!(ask(&format!("Bearer {ADMIN_TOKEN}")), 401);
    assert_eq!((ask("Bearer token-of-the-engines"), world.balance()), (201, 7));
    // Who guesses is slowed down, and hears nothing then: an engine would take it as a word on its money.
    let guess = |token: &str| {
        let headers = [("idempotency-key", "b"), ("authorization", &*format!("Bearer {token}"))];
        let mut connection = Connection::open(world.node.settlement_address());
        let answer = connection.request("POST", &target, &headers, body);
        answer.ok().map(|answer| answer.status)
    };
    let guesses: Vec<_> = (0..20).map(|number| guess(&number.to_string())).collect();
    assert!(guesses.contains(&None), "{guesses:?}");
    assert!(guesses.iter().flatten().all(|status| *status == 401), "{guesses:?}");
    eventually("the engine may try again", || {
        guess("token-of-the-engines").map(|status| assert_eq!(status, 201))
    });
    assert_eq!(world.balance(), 14);
}

#[test]
fn engines_talk_to_each_other() {
    let world = World::start(&[]);
    let target = format!("/accounts/{}/messages", world.uuid());
    let headers = [("content-type", "application/octet-stream")];
    // Bob's connector fulfills, with nothing to say.
    let answer = world.engine_call(&target, &headers, b"hello");
    assert_eq!((answer.status, answer.body.len()), (201, 0));
    let asked = eventually("bob was asked", || {
        world
            .rule
            .received()
            .into_iter()
            .find(|prepare| prepare.destination == "peer.settle")
    });
    assert_eq!((asked.amount, asked.data.as_slice()), (0, &b"hello"[..]));
    let answer = world.engine_call(&target, &headers, &[7; 40_000]);
    assert_eq!(answer.status, 413);
    // A peer that cannot be reached.
    let carol = World::start(&[]);
    carol
        .node
        .add_account("carol", &json!({ "settlement_engine_url": carol.engine.url() }));
    let id = carol.api().get("/accounts/carol")["id"]
        .as_str()
        .expect("a text")
        .to_owned();
    let answer = carol.engine_call(&format!("/accounts/{id}/messages"), &headers, b"hello");
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (502, Some("peer_engine"))
    );
}

#[test]
fn a_peer_that_rejects_is_named() {
    let mut world = World::start(&[]);
    drop(std::mem::replace(
        &mut world._bob,
        BtpPeer::connect(world.node.address(), "bob", Rule::always(Answer::reject("F02"))),
    ));
    let target = format!("/accounts/{}/messages", world.uuid());
    let answer = world.engine_call(&target, &[], b"hello");
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (502, Some("peer_engine"))
    );
    assert!(
        answer.json()["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("F02"))
    );
}

#[test]
fn what_waits_is_settled_by_time() {
    let world = World::start(&["--settle_every", "1"]);
    world.pay(60);
    world.expect_state("confirmed");
    assert_eq!((world.balance(), world.engine.total(&world.uuid(), 9)), (10, 50));
    std::thread::sleep(SECOND);
    assert_eq!(world.settlements().len(), 1, "nothing is owed above what it settles to");
}

#[test]
fn engines_hear_of_accounts_and_of_their_end() {
    let world = World::start(&[]);
    let uuid = world.uuid();
    eventually("the engine knows bob", || {
        world.engine.accounts().contains(&uuid).then_some(())
    });
    world
        .api()
        .put("/settlement/engines", &json!({ "ABC": world.engine.url() }));
    eventually("and alice", || (world.engine.accounts().len() == 2).then_some(()));
    world.api().put("/settlement/engines", &json!({ "ABC": null }));
    eventually("not any more", || {
        (world.engine.accounts().as_slice() == [uuid.clone()]).then_some(())
    });
    assert_eq!(world.call("DELETE", "/accounts/bob").0, 200);
    eventually("nobody", || world.engine.accounts().is_empty().then_some(()));
}

/// The original goes on after the copy was made, and pays. A node on the copy does not pay that again: as long as the engine
/// knows the key, it says so; afterwards the operator is asked.
#[test]
fn a_copy_does_not_pay_again_what_its_original_has_paid() {
    for (arguments, state) in [(&[][..], "confirmed"), (&["--settlement_key_retention", "1"], "failed")] {
        let mut world = World::start(&[]);
        world.engine.go_down();
        world.pay(100);
        let waiting = world.expect_state("pending");
        eventually("it has been tried", || {
            (world.settlements()[0]["attempts"] != 0).then_some(())
        });
        let folder = world.node.data_dir().with_extension("copy");
        let _ = std::fs::remove_dir_all(&folder);
        let directory = folder.to_str().expect("a text");
        world
            .api()
            .ok("POST", "/ledger/backup", Some(&json!({ "directory": directory })));
        world.engine.come_back();
        let id = waiting["id"].as_str().expect("a text");
        let (status, _) = world.call("POST", &format!("/accounts/bob/settlements/{id}/retry"));
        assert_eq!(status, 200);
        world.expect_state("confirmed");
        world.node.kill();

        std::thread::sleep(SECOND);
        world.node = Node::start_on(
            folder,
            Options {
                arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
                ..Options::default()
            },
        );
        let after = world.expect_state(state);
        assert_eq!(
            (&after["id"], &after["engine"]),
            (&waiting["id"], &json!(world.engine.url() + "/"))
        );
        assert_eq!(world.engine.total(&world.uuid(), 9), 90);
        assert_eq!(world.engine.settlements().len(), 1);
        world.api().audit();
        // What the copy makes itself is like any other from the second start on.
        world.node.kill();
        world.node.run();
        world.expect_state(state);
    }
}
