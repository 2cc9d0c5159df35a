//! Accounts that settle, as scripts for interledger-rs set them up, and what becomes of an open settlement when its account
//! is changed meanwhile: the amount, the asset and the key stay, an engine that may have it keeps it, and everything else is
//! in force for the next one.

mod support;

use serde_json::{Value, json};
use support::btp_peer::BtpPeer;
use support::engine::{FakeEngine, Fault};
use support::eventually;
use support::http::Api;
use support::node::{ADMIN_TOKEN, Node};
use support::packet::Prepare;
use support::rule::Rule;

/// Alice pays bob, who has joined over BTP.
struct World {
    node: Node,
    api: Api,
    _bob: Option<BtpPeer>,
}

impl World {
    fn start() -> Self {
        let node = Node::with_shards(2);
        node.add_account("alice", &json!({}));
        let api = node.api();
        Self { node, api, _bob: None }
    }

    /// Bob as the script of another node creates him: every value is a text.
    fn with_bob(mut self, more: &Value) -> Self {
        let mut bob = json!({
            "username": "bob", "asset_code": "ABC", "asset_scale": "9", "routing_relation": "Peer",
            "ilp_over_btp_incoming_token": "bob-btp", "ilp_over_http_incoming_token": "bob-http",
        });
        let fields = more.as_object().expect("an object").clone();
        bob.as_object_mut().expect("an object").extend(fields);
        self.api.ok("POST", "/accounts/", Some(&bob));
        self._bob = Some(BtpPeer::connect(self.node.address(), "bob", Rule::fulfill()));
        self
    }

    fn pay(&self, amount: u64) {
        self.node.expect_fulfill("alice", &Prepare::new("test.hub.bob", amount));
    }

    fn bob(&self) -> Value {
        self.api.get("/accounts/bob")
    }

    fn id(&self) -> String {
        self.bob()["id"].as_str().expect("a text").to_owned()
    }

    /// Balance, and what is on its way to an engine.
    fn expect_money(&self, expected: (i64, i64)) {
        eventually(&format!("bob has {expected:?}"), || {
            let answer = self.api.get("/accounts/bob/balance");
            let number = |name: &str| answer[name].as_i64().expect("a number");
            ((number("balance"), number("pending_settlement")) == expected).then_some(())
        });
    }

    /// The newest first: state, amount, and the engine that has it or may.
    fn settlements(&self) -> Vec<(String, u64, Value)> {
        let listed = self.api.get("/accounts/bob/settlements");
        let all = listed.as_array().expect("a list").iter();
        all.map(|one| {
            let state = one["state"].as_str().expect("a text").to_owned();
            (state, one["amount"].as_u64().expect("a number"), one["engine"].clone())
        })
        .collect()
    }

    fn expect_settlements(&self, expected: &[(&str, u64)]) {
        eventually(&format!("settlements are {expected:?}"), || {
            let found = self.settlements();
            let found: Vec<_> = found
                .iter()
                .map(|(state, amount, _)| (state.as_str(), *amount))
                .collect();
            (found == expected).then_some(())
        });
    }

    /// Settlements go to an engine only after that.
    fn expect_known_to(&self, engine: &FakeEngine) {
        let id = self.id();
        eventually("the engine knows bob", || engine.accounts().contains(&id).then_some(()));
    }

    /// The newest has been tried in vain.
    fn expect_tried(&self, state: &str) {
        eventually(&format!("it was tried, and is {state}"), || {
            let newest = self.api.get("/accounts/bob/settlements")[0].clone();
            (newest["state"] == state && newest["attempts"] != 0 && newest["last_error"].is_string()).then_some(())
        });
    }

    fn retry(&self) {
        let id = self.api.get("/accounts/bob/settlements")[0]["id"].clone();
        let id = id.as_str().expect("a text");
        let target = format!("/accounts/bob/settlements/{id}/retry");
        // What has gone through since is not tried again.
        let status = self.api.call("POST", &target, None).status;
        assert!(matches!(status, 200 | 409), "{status}");
    }
}

/// The URL of an engine as the node keeps it.
fn kept(engine: &FakeEngine) -> Value {
    json!(format!("{}/", engine.url()))
}

/// The calls of a script for interledger-rs, in its words; then it settles, with whom it says.
#[test]
fn a_script_of_another_node_sets_settling_up() {
    let (own, default) = (FakeEngine::start(), FakeEngine::start());
    let world = World::start().with_bob(&json!({ "settle_threshold": "1000", "settle_to": "0" }));
    let api = &world.api;
    let bob = world.bob();
    assert_eq!(
        (
            &bob["settle_threshold"],
            &bob["settle_to"],
            &bob["settlement_engine_url"]
        ),
        (&json!(1_000), &json!(0), &Value::Null)
    );
    // Without an engine nothing leaves the balance.
    world.pay(1_200);
    world.expect_money((1_200, 0));
    assert!(world.settlements().is_empty());
    // The engine of the asset: what was owed before is settled with it.
    let engines = api.put(
        "/settlement/engines",
        &json!({ "ABC": default.url(), "XYZ": own.url() }),
    );
    assert_eq!(engines, json!({ "ABC": kept(&default), "XYZ": kept(&own) }));
    assert_eq!(world.bob()["settlement_engine_url"], kept(&default));
    world.expect_settlements(&[("confirmed", 1_200)]);
    let id = world.id();
    assert_eq!(default.total(&id, 9), 1_200);
    // The whole account once more, as that script must send it, and with an engine of its own.
    api.put(
        "/accounts/bob",
        &json!({
            "username": "bob", "asset_code": "ABC", "asset_scale": "9", "settle_threshold": "500", "settle_to": "100",
            "settlement_engine_url": own.url(), "routing_relation": "Peer",
        }),
    );
    assert_eq!(world.bob()["settlement_engine_url"], kept(&own));
    world.pay(499);
    world.expect_money((499, 0));
    world.pay(1);
    world.expect_settlements(&[("confirmed", 400), ("confirmed", 1_200)]);
    assert_eq!((own.total(&id, 9), default.total(&id, 9)), (400, 1_200));
    eventually("the other one is told that it does not settle any more", || {
        (!default.accounts().contains(&id)).then_some(())
    });
    // The holder's own settings, in both forms of the password; what is not his to say stays.
    let before = world.bob();
    for (authorization, body) in [
        ("Bearer bob-http", json!({ "settle_threshold": "300" })),
        (
            "Bearer bob:bob-http",
            json!({ "settle_to": "50", "settlement_engine_url": default.url() }),
        ),
    ] {
        let answer = world.node.connection().request(
            "PUT",
            "/accounts/bob/settings",
            &[("authorization", authorization)],
            body.to_string().as_bytes(),
        );
        assert_eq!(answer.expect("an answer").status, 200);
    }
    let after = world.bob();
    assert_eq!(
        (&after["settle_threshold"], &after["settle_to"]),
        (&json!(300), &json!(50))
    );
    assert_eq!(after["settlement_engine_url"], before["settlement_engine_url"]);
    world.pay(200);
    world.expect_settlements(&[("confirmed", 250), ("confirmed", 400), ("confirmed", 1_200)]);
    // Left out is kept, null is none: back to the engine of the asset, and then to nobody.
    api.put("/accounts/bob", &json!({ "settlement_engine_url": null }));
    assert_eq!(world.bob()["settlement_engine_url"], kept(&default));
    assert_eq!(world.bob()["settle_threshold"], json!(300));
    world.expect_known_to(&default);
    world.pay(250);
    world.expect_settlements(&[
        ("confirmed", 250),
        ("confirmed", 250),
        ("confirmed", 400),
        ("confirmed", 1_200),
    ]);
    assert_eq!(default.total(&id, 9), 1_450);
    api.put("/settlement/engines", &json!({ "ABC": null }));
    assert_eq!(world.bob()["settlement_engine_url"], Value::Null);
    world.pay(1_000);
    world.expect_money((1_050, 0));
    assert_eq!(world.settlements().len(), 4);
    api.audit();
    assert!(own.take_violations().is_empty() && default.take_violations().is_empty());
}

/// What is on its way keeps its amount and its asset, whatever the account says by now; the rest is settled by what it says
/// when that has ended.
#[test]
fn a_rule_that_changes_is_for_the_next_one() {
    let engine = FakeEngine::start();
    let world = World::start().with_bob(&json!({
        "settle_threshold": "100", "settle_to": "10", "settlement_engine_url": engine.url(),
    }));
    world.expect_known_to(&engine);
    engine.break_down_for("settlements", Fault::Status(500), None);
    world.pay(150);
    world.expect_money((10, 140));
    world.expect_tried("sent");
    let change = |body: Value| {
        let answer = world.api.call("PUT", "/accounts/bob", Some(&body));
        let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
        (answer.status, code)
    };
    let (done, in_use) = ((200, String::new()), (409, "asset_in_use".to_owned()));
    for (body, expected) in [
        (json!({ "asset_scale": 8 }), &in_use),
        (json!({ "asset_code": "XYZ" }), &in_use),
        (json!({ "settle_to": null }), &done),
        (json!({ "settle_threshold": null, "settle_to": 5 }), &done),
        (json!({ "settle_threshold": "60", "settle_to": "20" }), &done),
    ] {
        assert_eq!(change(body.clone()), *expected, "{body}");
        world.expect_money((10, 140));
    }
    world.api.ok(
        "PUT",
        "/accounts/bob/settings",
        Some(&json!({ "settle_threshold": 50 })),
    );
    for target in ["/accounts/bob", "/accounts/bob?force=true"] {
        let answer = world.api.call("DELETE", target, None);
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (409, &json!("settlement_pending"))
        );
    }
    // One at a time: this waits.
    world.pay(40);
    world.expect_money((50, 140));
    assert_eq!(world.settlements().len(), 1);
    engine.mend();
    world.retry();
    world.expect_settlements(&[("confirmed", 30), ("confirmed", 140)]);
    world.expect_money((20, 0));
    assert_eq!(engine.total(&world.id(), 9), 170);
    // A rule that was taken away while one was open is not asked any more.
    engine.break_down_for("settlements", Fault::Status(500), None);
    world.pay(30);
    world.expect_money((20, 30));
    assert_eq!(change(json!({ "settle_threshold": null })), done);
    world.pay(100);
    engine.mend();
    world.retry();
    world.expect_settlements(&[("confirmed", 30), ("confirmed", 30), ("confirmed", 140)]);
    world.expect_money((120, 0));
    world.api.audit();
    assert!(engine.take_violations().is_empty());
}

/// One that surely no engine has goes where the account's engine is by now; one that an engine may have, to that one.
#[test]
fn an_engine_that_changes_gets_only_what_no_other_may_have() {
    let (mut first, second) = (FakeEngine::start(), FakeEngine::start());
    let world = World::start().with_bob(&json!({
        "settle_threshold": "100", "settle_to": "0", "settlement_engine_url": first.url(),
    }));
    let id = world.id();
    world.expect_known_to(&first);
    let set = |engine: Value| {
        world
            .api
            .put("/accounts/bob", &json!({ "settlement_engine_url": engine }));
    };
    // Nobody was reached.
    first.go_down();
    world.pay(100);
    world.expect_tried("pending");
    assert_eq!(world.settlements()[0].2, Value::Null);
    // The balance is nothing, but what is on its way is in units of the asset.
    world.expect_money((0, 100));
    let changed = world
        .api
        .call("PUT", "/accounts/bob", Some(&json!({ "asset_scale": 8 })));
    assert_eq!((changed.status, &changed.json()["code"]), (409, &json!("asset_in_use")));
    set(Value::Null);
    world.pay(7);
    world.expect_money((7, 100));
    assert_eq!(world.settlements()[0].0, "pending", "nobody to go to");
    set(json!(second.url()));
    world.retry();
    world.expect_settlements(&[("confirmed", 100)]);
    assert_eq!(second.total(&id, 9), 100);
    first.come_back();
    assert_eq!(first.total(&id, 9), 0);
    // The second has it, and nobody knows; the first one is the account's engine when it is tried again, also after a crash.
    second.break_down_for("settlements", Fault::Lose, None);
    world.pay(100);
    world.expect_tried("sent");
    assert_eq!(world.settlements()[0].2, kept(&second));
    set(json!(first.url()));
    world.retry();
    let mut world = world;
    world.node.kill();
    world.node.run();
    world.api = world.node.api();
    assert_eq!(world.settlements()[0], ("sent".to_owned(), 107, kept(&second)));
    assert_eq!(world.bob()["settlement_engine_url"], kept(&first));
    second.mend();
    world.retry();
    world.expect_settlements(&[("confirmed", 107), ("confirmed", 100)]);
    assert_eq!((first.total(&id, 9), second.total(&id, 9)), (0, 207));
    // From here on it is the first, and the second hears of the end only now.
    eventually("the second is told", || {
        (!second.accounts().contains(&id)).then_some(())
    });
    let bob = BtpPeer::connect(world.node.address(), "bob", Rule::fulfill());
    world._bob = Some(bob);
    world.pay(100);
    world.expect_settlements(&[("confirmed", 100), ("confirmed", 107), ("confirmed", 100)]);
    assert_eq!((first.total(&id, 9), second.total(&id, 9)), (100, 207));
    let authorization = format!("Bearer {ADMIN_TOKEN}");
    let deleted = world
        .node
        .connection()
        .request("DELETE", "/accounts/bob", &[("authorization", &authorization)], b"");
    assert_eq!(deleted.expect("an answer").status, 200);
    eventually("the first is told of the end", || {
        first.accounts().is_empty().then_some(())
    });
    world.api.audit();
    assert!(first.take_violations().is_empty() && second.take_violations().is_empty());
}
