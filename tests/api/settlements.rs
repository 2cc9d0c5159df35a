//! Settlements by whom, with what, and what must come back: the calls of operators and holders on the one port, and those
//! of engines on the other, with a token and without.

use serde_json::Value;

use crate::caller::{Caller, TOKEN_MARK};
use crate::support::eventually;
use crate::support::node::Node;
use crate::tables::{ALICE_AND_BOB, callers, start_node};
use crate::transport::check_methods;

/// Nobody listens there, so whatever is settled stays open.
const NOBODY: &str = r#"
PUT /settlement/engines | admin | {"ABC":"http://127.0.0.1:1"} | 200 | ={"ABC":"http://127.0.0.1:1/"}
"#;
const UNKNOWN: &str = "5f0c7a52-0000-4000-8000-2b6c1d9e8f10";

fn id_of(node: &Node, username: &str) -> String {
    let account = node.api().get(&format!("/accounts/{username}"));
    account["id"].as_str().expect("a text").to_owned()
}

fn engine_token() -> String {
    format!("engines-{TOKEN_MARK}")
}

#[test]
fn who_may_see_and_steer_settlements() {
    let token = engine_token();
    let node = start_node(&["--settlement_api_token", &token]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(NOBODY);
    let id = id_of(&node, "alice");
    let [admin, bare, named, other, mut bad, twice, nobody] = callers();
    // What lets engines in on their port is nothing here.
    bad.extend([format!("Bearer {token}"), format!("Bearer alice:{token}")]);
    let columns = [admin, bare, named, other, bad, twice, nobody];
    let calls = caller.check_matrix(
        &columns.each_ref().map(Vec::as_slice),
        &format!(
            r#"
# call                                            | body | admin bare named other bad twice none
GET  /accounts/alice/settlements                  |      |  200  200  200   401   401  400  401
HEAD /accounts/alice/settlements                  |      |  200  200  200   401   401  400  401
GET  /accounts/%41lice/settlements/?limit=1       |      |  200  200  200   401   401  400  401
GET  /accounts/alice/settlements?limit=0          |      |  400  400  400   401   401  400  401
GET  /accounts/nobody/settlements                 |      |  404  401  401   401   401  400  401
POST /accounts/alice/settlements                  |      |  409  401  401   401   401  400  401
POST /accounts/nobody/settlements                 |      |  404  401  401   401   401  400  401
POST /accounts/alice/settlements/{UNKNOWN}/cancel |      |  404  401  401   401   401  400  401
POST /accounts/alice/settlements/x/cancel?force=true |   |  404  401  401   401   401  400  401
POST /accounts/nobody/settlements/x/cancel        |      |  404  401  401   401   401  400  401
POST /accounts/alice/settlements/{UNKNOWN}/retry  |      |  404  401  401   401   401  400  401
POST /accounts/nobody/settlements/x/retry         |      |  404  401  401   401   401  400  401
# What engines call is nothing here: an id is no name, and there are no messages.
POST /accounts/{id}/settlements | {{"amount":"1","scale":9}}  |  404  401  401   401   401  400  401
POST /accounts/{id}/messages    | hello                       |  404  404  404   404   404  404  404
"#
        ),
    );
    assert!(calls > 600, "every form of every caller: {calls}");
    caller.check("GET /accounts/alice/balance | admin | | 200 | balance=0; prepaid_amount=0");
}

#[test]
fn every_path_of_settlements_has_its_methods() {
    let node = start_node(&[]);
    check_methods(
        &node,
        &[
            ("/accounts/alice/settlements", "GET, HEAD, POST, OPTIONS"),
            ("/accounts/alice/settlements/", "GET, HEAD, POST, OPTIONS"),
            ("/accounts/alice/settlements/x/cancel", "POST, OPTIONS"),
            ("/accounts/alice/settlements/x/retry", "POST, OPTIONS"),
        ],
    );
    for target in [
        "/accounts/alice/settlements/x",
        "/accounts/alice/settlements/x/nothing",
        "/accounts/alice/settlements//cancel",
        "/accounts/alice/settlements/x/cancel/y",
    ] {
        Caller::new(&node).check(&format!("POST {target} | admin | | 404 | code=not_found"));
    }
}

/// Without a token whoever reaches the port is an engine, whatever else it says of itself.
#[test]
fn who_is_an_engine_without_a_token() {
    let node = start_node(&[]);
    let operator = Caller::new(&node);
    operator.check(ALICE_AND_BOB);
    operator.check(NOBODY);
    let id = id_of(&node, "alice");
    let columns = callers().map(|column| with_key(&column));
    let engine = Caller::of_engines(&node);
    engine.check_matrix(
        &columns.each_ref().map(Vec::as_slice),
        &format!(
            r#"
# call                             | body                      | admin bare named other bad twice none
POST    /accounts/{id}/settlements | {{"amount":"1","scale":9}}|  201  201  201   201   201  201  201
POST    /accounts/{id}/settlements | {{"amount":"2","scale":9}}|  409  409  409   409   409  409  409
POST    /accounts/{id}/messages    | hello                     |  502  502  502   502   502  502  502
POST    /accounts/alice/settlements|                           |  400  400  400   400   400  400  400
POST    /accounts/{UNKNOWN}/settlements | {{"amount":"1","scale":9}} | 404 404 404 404   404  404  404
POST    /accounts/{UNKNOWN}/messages    | hello                | 404   404  404   404   404  404  404
{}"#,
            of_nobody(7),
        ),
    );
    operator.check("GET /accounts/alice/balance | admin | | 200 | balance=1; prepaid_amount=1");
}

#[test]
fn who_is_an_engine_with_a_token() {
    let token = engine_token();
    let node = start_node(&["--settlement_api_token", &token]);
    let operator = Caller::new(&node);
    operator.check(ALICE_AND_BOB);
    operator.check(NOBODY);
    let id = id_of(&node, "alice");
    let [admin, bare, named, other, mut bad, twice, nobody] = callers();
    bad.extend([
        format!("Bearer {}", &token[1..]),
        format!("Bearer {token}x"),
        format!("Bearer alice:{token}"),
        format!("Digest {token}"),
        crate::caller::basic(&format!("engine:{token}")),
        token.clone(),
    ]);
    let right = vec![format!("Bearer {token}"), format!("bEARER   {token}")];
    let columns = [admin, bare, named, other, bad, twice, nobody, right].map(|column| with_key(&column));
    let engine = Caller::of_engines(&node);
    engine.check_matrix(
        &columns.each_ref().map(Vec::as_slice),
        &format!(
            r#"
# call                             | body                      | admin bare named other bad twice none engine
POST    /accounts/{id}/settlements | {{"amount":"1","scale":9}}|  401  401  401   401   401  400  401  201
POST    /accounts/{id}/settlements | {{"amount":"2","scale":9}}|  401  401  401   401   401  400  401  409
POST    /accounts/{id}/settlements | {{                        |  401  401  401   401   401  400  401  400
POST    /accounts/{id}/messages    | hello                     |  401  401  401   401   401  400  401  502
# Who is there and who is not only an engine learns.
POST    /accounts/alice/settlements|                           |  401  401  401   401   401  400  401  400
POST    /accounts/{UNKNOWN}/settlements | {{"amount":"1","scale":9}} | 401 401 401 401   401  400  401  404
POST    /accounts/{UNKNOWN}/messages    | hello                | 401   401  401   401   401  400  401  404
{}"#,
            of_nobody(8),
        ),
    );
    operator.check("GET /accounts/alice/balance | admin | | 200 | balance=1; prepaid_amount=1");
}

/// Lines about what is for nobody on the engines' port, whoever calls.
fn of_nobody(columns: usize) -> String {
    let lines = [
        ("GET /accounts/alice/settlements", "405"),
        ("PUT /accounts/alice/messages", "405"),
        ("OPTIONS /accounts/alice/settlements", "204"),
        ("POST /accounts/alice/settlements/x/cancel", "404"),
        ("POST /accounts/alice/settlements/x/retry", "404"),
        ("PUT /settlement/engines", "404"),
        ("GET /accounts/alice", "404"),
        ("GET /accounts", "404"),
        ("GET /ledger/audit", "404"),
        ("GET /", "404"),
    ];
    let line = |(call, status): (&str, &str)| format!("{call} | | {}\n", vec![status; columns].join(" "));
    lines.map(line).concat()
}

/// Each caller with the one key of these tests.
fn with_key(callers: &[String]) -> Vec<String> {
    callers
        .iter()
        .map(|caller| format!("{caller}, Idempotency-Key: k"))
        .collect()
}

/// What may be asked for, and how a settlement looks.
#[test]
fn settlements_of_an_account() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(r#"
GET /accounts/alice/settlements                       | alice | | 200 | =[]; @!link
GET /accounts/alice/settlements?limit=1000            | alice | | 200 | =[]
GET /accounts/alice/settlements?limit=1001            | alice | | 400 | code=bad_request; bad=limit invalid
GET /accounts/alice/settlements?limit=0               | alice | | 400 | bad=limit invalid
GET /accounts/alice/settlements?limit=-1              | alice | | 400 | bad=limit invalid
GET /accounts/alice/settlements?limit=ten             | alice | | 400 | bad=limit invalid
GET /accounts/alice/settlements?limit=                | alice | | 400 | bad=limit invalid
GET /accounts/alice/settlements?before=first          | alice | | 400 | bad=before invalid
GET /accounts/alice/settlements?before=5f0c7a52-0000-4000-8000-2b6c1d9e8f10 | alice | | 404 | code=settlement_not_found
# Why nothing is settled now, in this order.
POST /accounts/alice/settlements | admin | | 409 | code=no_settlement_rule
PUT /accounts/alice | admin | {"settle_to":-5} | 200 | settle_to=-5
POST /accounts/alice/settlements | admin | | 409 | code=no_settlement_engine
PUT /settlement/engines | admin | {"ABC":"http://127.0.0.1:1"} | 200 |
POST /accounts/alice/settlements | admin | | 201 | state="pending"; amount=5; scale=9; attempts=0; engine=null; created_at?; last_attempt_at=null; ended_at=null; last_error=null
POST /accounts/alice/settlements | admin | | 409 | code=settlement_pending
GET /accounts/alice/balance | alice | | 200 | balance=-5; pending_settlement=5; prepaid_amount=0
GET /ledger/audit | admin | | 200 | adds_up=true; assets=[{"asset_code":"ABC","asset_scale":9,"accounts":2,"balances":-5,"position":5,"pending":5,"adds_up":true}]
# Where it is open, and what it is in units of, stays as it is.
DELETE /accounts/alice            | admin | | 409 | code=settlement_pending
DELETE /accounts/alice?force=true | admin | | 409 | code=settlement_pending
PUT /accounts/alice | admin | {"asset_scale":8}    | 409 | code=asset_in_use
PUT /accounts/alice | admin | {"asset_code":"XYZ"} | 409 | code=asset_in_use
"#);
    // Nobody answers, so surely nobody has it.
    let settlement = eventually("it was tried", || {
        let listed = node.api().get("/accounts/alice/settlements");
        let one = listed.as_array()?.first()?.clone();
        (one["state"] == "pending").then_some(one)
    });
    let id = settlement["id"].as_str().expect("a text");
    caller.check(&format!(
        r#"
POST /accounts/alice/settlements/{id}/cancel?force=perhaps | admin | | 400 | code=bad_request; bad=force invalid
POST /accounts/alice/settlements/{id}/cancel?force=        | admin | | 400 | bad=force invalid
POST /accounts/bob/settlements/{id}/cancel                 | admin | | 404 | code=settlement_not_found
POST /accounts/bob/settlements/{id}/retry                  | admin | | 404 | code=settlement_not_found
GET  /accounts/bob/settlements?before={id}                 | admin | | 404 | code=settlement_not_found
POST /accounts/alice/settlements/{id}/retry                | admin | | 200 | id={id}; state="pending"
POST /accounts/alice/settlements/{upper}/cancel?force=false | admin | | 200 | id={id}; state="cancelled"; ended_at?
POST /accounts/alice/settlements/{id}/cancel?force=true    | admin | | 409 | code=settlement_ended
POST /accounts/alice/settlements/{id}/retry                | admin | | 409 | code=settlement_ended
GET  /accounts/alice/balance | alice | | 200 | balance=0; pending_settlement=0
GET  /ledger/audit | admin | | 200 | adds_up=true; assets=[{{"asset_code":"ABC","asset_scale":9,"accounts":2,"balances":0,"position":0,"pending":0,"adds_up":true}}]
POST /accounts/alice/settlements | admin | | 201 | amount=5
GET  /accounts/alice/settlements?limit=1&before={id} | alice | | 200 | =[]; @!link
"#,
        upper = id.to_uppercase(),
    ));
    let listed = node.api().get("/accounts/alice/settlements");
    let states: Vec<&Value> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["state"])
        .collect();
    assert_eq!(states, ["pending", "cancelled"], "the newest first");
    let newest = listed[0]["id"].as_str().expect("a text");
    caller.check(&format!(
        "GET /accounts/alice/settlements?limit=1 | alice | | 200 | @link=</accounts/alice/settlements?limit=1&before={newest}>*"
    ));
}
