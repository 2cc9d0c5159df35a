//! When a node settles, seen from outside: thresholds, with packets that really pass. The engine is a port where nobody
//! listens, so every settlement stays open.

mod support;

use serde_json::{Value, json};
use support::btp_peer::BtpPeer;
use support::http::Api;
use support::node::{Node, expect_balance};
use support::packet::{Prepare, Reply};
use support::rule::Rule;
use support::{eventually, free_address};

/// Balance, what is prepaid of it, and what is on its way to an engine.
fn money(api: &Api, username: &str) -> (i64, i64, i64) {
    let answer = api.get(&format!("/accounts/{username}/balance"));
    let number = |name: &str| answer[name].as_i64().expect("a number");
    (
        number("balance"),
        number("prepaid_amount"),
        number("pending_settlement"),
    )
}

fn expect_money(api: &Api, username: &str, expected: (i64, i64, i64)) {
    eventually(&format!("{username} has {expected:?}"), || {
        (money(api, username) == expected).then_some(())
    });
}

fn nobody() -> String {
    format!("http://{}/", free_address())
}

#[test]
fn a_threshold_settles_once_and_the_rest_waits() {
    let node = Node::with_shards(2);
    let api = node.api();
    node.add_account("alice", &json!({}));
    let engine = nobody();
    node.add_account(
        "bob",
        &json!({ "settle_threshold": 100, "settle_to": 10, "settlement_engine_url": engine }),
    );
    // Nobody settles for carol.
    node.add_account("carol", &json!({ "settle_threshold": 100, "settle_to": 10 }));
    let _bob = BtpPeer::connect(node.address(), "bob", Rule::fulfill());
    let _carol = BtpPeer::connect(node.address(), "carol", Rule::fulfill());
    let mut alice = node.connection();
    let mut pay = |receiver: &str, amount| {
        let prepare = Prepare::new(&format!("test.hub.{receiver}"), amount);
        let answer = alice
            .post("/accounts/alice/ilp", "alice-http", &prepare)
            .expect("an answer");
        assert!(matches!(answer.reply(), Reply::Fulfill { .. }), "{:?}", answer.reply());
    };
    pay("bob", 99);
    expect_money(&api, "bob", (99, 0, 0));
    pay("bob", 1);
    expect_money(&api, "bob", (10, 0, 90));
    pay("bob", 500);
    expect_money(&api, "bob", (510, 0, 90));
    pay("carol", 600);
    expect_money(&api, "carol", (600, 0, 0));
    expect_balance(&api, "alice", -1_200);
    api.audit();
    // An engine for all in the asset: carol's balance has waited for one.
    api.put("/settlement/engines", &json!({ "ABC": nobody() }));
    expect_money(&api, "carol", (10, 0, 590));
    assert_eq!(money(&api, "bob"), (510, 0, 90), "one at a time");
    api.audit();
}

/// Accounts that are paid ahead are settled as soon as there is an engine: many more than a shard looks at in one turn, those
/// that are there and those that come, also in a new asset.
#[test]
fn an_engine_for_an_asset_settles_all_accounts_in_it() {
    const ACCOUNTS: usize = 600;
    let node = Node::with_shards(2);
    let api = node.api();
    let ahead = |threshold: i64, to: i64| json!({ "settle_threshold": threshold, "settle_to": to });
    let with = |mut fields: Value, name: &str, value: Value| {
        fields[name] = value;
        fields
    };
    for number in 0..ACCOUNTS {
        node.add_account(&format!("account_{number}"), &ahead(0, -5));
    }
    node.add_account("poor", &ahead(1, -5));
    node.add_account("other", &with(ahead(0, -5), "asset_code", json!("XYZ")));
    assert_eq!(money(&api, "account_0"), (0, 0, 0));
    api.put("/settlement/engines", &json!({ "ABC": nobody(), "DEF": nobody() }));
    for number in (0..ACCOUNTS).rev() {
        expect_money(&api, &format!("account_{number}"), (-5, 0, 5));
    }
    assert_eq!(money(&api, "poor"), (0, 0, 0));
    assert_eq!(money(&api, "other"), (0, 0, 0));
    // One that comes later, one in an asset that is new, one that is given a threshold, and one that gets another asset.
    node.add_account("late", &ahead(0, -7));
    expect_money(&api, "late", (-7, 0, 7));
    node.add_account("foreign", &with(ahead(0, -8), "asset_code", json!("DEF")));
    expect_money(&api, "foreign", (-8, 0, 8));
    api.put("/accounts/poor/settings", &json!({ "settle_threshold": 0 }));
    expect_money(&api, "poor", (-5, 0, 5));
    let moved = json!({ "asset_code": "DEF", "asset_scale": 3 });
    api.put("/accounts/other", &moved);
    expect_money(&api, "other", (-5, 0, 5));
    api.audit();
}
