//! Settings of holders, SPSP, engines, what the operator may choose about the API, and its description of itself.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::bad_fields::{Attack, bad_values};
use crate::caller::{Caller, authorization, check_log};
use crate::clients::{SCRIPT_OF_SETTINGS, play};
use crate::support::eventually;
use crate::tables::{ALICE_AND_BOB, callers, start_node};
use crate::transport::check_methods;

#[test]
fn who_may_call_the_second_half() {
    let node = start_node(&["--default_spsp_account", "bob"]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check_matrix(
        &callers().each_ref().map(Vec::as_slice),
        r#"
# call                              | body                       | admin bare named other bad twice none
PUT  /accounts/alice/settings       | {}                         |  200  200  200   401   401  400  401
PUT  /accounts/%41lice/settings/    | {"settle_to":"5"}          |  200  200  200   401   401  400  401
PUT  /accounts/alice/settings       | {                          |  400  400  400   401   401  400  401
PUT  /accounts/nobody/settings      | {}                         |  404  401  401   401   401  400  401
GET  /accounts/alice/spsp           |                            |  200  200  200   200   200  200  200
HEAD /accounts/alice/spsp           |                            |  200  200  200   200   200  200  200
GET  /accounts/nobody/spsp          |                            |  404  404  404   404   404  404  404
GET  /.well-known/pay               |                            |  200  200  200   200   200  200  200
HEAD /.well-known/pay               |                            |  200  200  200   200   200  200  200
PUT  /settlement/engines            | {}                         |  200  401  401   401   401  400  401
PUT  /settlement/engines            | {"QQQ":"nonsense"}         |  400  401  401   401   401  400  401
PUT  /tracing-level                 | info                       |  200  401  401   401   401  400  401
PUT  /tracing-level                 |                            |  400  401  401   401   401  400  401
GET  /openapi.json                  |                            |  200  200  200   200   200  200  200
HEAD /openapi.json                  |                            |  200  200  200   200   200  200  200
"#,
    );
}

#[test]
fn every_path_of_the_second_half_has_its_methods() {
    let node = start_node(&[]);
    check_methods(
        &node,
        &[
            ("/accounts/alice/settings", "PUT, OPTIONS"),
            ("/accounts/alice/settings/", "PUT, OPTIONS"),
            ("/accounts/alice/spsp", "GET, HEAD, OPTIONS"),
            ("/.well-known/pay", "GET, HEAD, OPTIONS"),
            ("/settlement/engines", "PUT, OPTIONS"),
            ("/tracing-level", "PUT, OPTIONS"),
            ("/openapi.json", "GET, HEAD, OPTIONS"),
        ],
    );
}

/// E6.
#[test]
fn settings() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(r#"
PUT /accounts/alice/settings | alice  | {} | 200 | account; !warnings
PUT /accounts/alice/settings | alice: | {"ilp_over_http_url":"http://LOCALHOST:3000","settle_threshold":"10","settle_to":"9223372036854775807"} | 200 | account; ilp_over_http_url=http://localhost:3000/; settle_threshold=10; settle_to=9223372036854775807
GET /accounts/alice | alice | | 200 | settle_threshold=10; settle_to=9223372036854775807; ilp_over_http_url=http://localhost:3000/
# Missing is kept, null is cleared.
PUT /accounts/alice/settings | alice  | {"settle_to":0} | 200 | settle_threshold=10; settle_to=0; ilp_over_http_url=http://localhost:3000/
PUT /accounts/alice/settings | alice  | {"settle_threshold":null,"settle_to":null,"ilp_over_http_url":null} | 200 | settle_threshold=null; settle_to=null; ilp_over_http_url=null
PUT /accounts/alice/settings | admin  | {"settle_threshold":"-9223372036854775808"} | 200 | settle_threshold=-9223372036854775808
PUT /accounts/alice/settings | admin  | {"settle_threshold":null} | 200 | settle_threshold=null
# A holder does not pre-fund.
PUT /accounts/alice/settings | alice  | {"settle_to":-1} | 400 | bad=settle_to out_of_range
PUT /accounts/alice/settings | alice  | {"settle_to":"9223372036854775808"} | 400 | bad=settle_to out_of_range
PUT /accounts/alice/settings | admin  | {"settle_to":"-5"} | 400 | bad=settle_to out_of_range
PUT /accounts/alice/settings | alice  | {"settle_to":1.5} | 400 | bad=settle_to invalid
PUT /accounts/alice/settings | alice  | {"settle_threshold":"x"} | 400 | bad=settle_threshold invalid
PUT /accounts/alice/settings | alice  | {"settle_threshold":9223372036854775808} | 400 | bad=settle_threshold out_of_range
# URLs and tokens are checked before anything is stored.
PUT /accounts/alice/settings | alice  | {"settle_to":77,"ilp_over_http_url":"nonsense"} | 400 | bad=ilp_over_http_url invalid
PUT /accounts/alice/settings | alice  | {"settle_to":77,"ilp_over_btp_url":"ftp://h"} | 400 | bad=ilp_over_btp_url invalid
PUT /accounts/alice/settings | alice  | {"settle_to":77,"ilp_over_http_incoming_token":""} | 400 | bad=ilp_over_http_incoming_token invalid
PUT /accounts/alice/settings | alice  | {"settle_to":77,"ilp_over_http_incoming_token":" s3cr3t"} | 400 | bad=ilp_over_http_incoming_token invalid
PUT /accounts/alice/settings | alice  | {"settle_to":77,"ilp_over_http_outgoing_token":7} | 400 | bad=ilp_over_http_outgoing_token invalid
PUT /accounts/alice/settings | alice  | {"settle_to":77,"ilp_over_btp_incoming_token":"$x(1025)"} | 400 | bad=ilp_over_btp_incoming_token too_long
PUT /accounts/alice/settings | alice  | {"settle_to":77,"ilp_over_btp_outgoing_token":[]} | 400 | bad=ilp_over_btp_outgoing_token invalid
PUT /accounts/alice/settings | alice  | {"settle_to":77,"settle_to":77} | 400 | bad=settle_to invalid
PUT /accounts/alice/settings | alice  | [] | 400 | code=json_data
PUT /accounts/alice/settings | alice  | | 400 | code=json_eof
PUT /accounts/alice/settings | alice  | {"settle_to" | 400 | code=json_eof
PUT /accounts/alice/settings | alice, Content-Type: text/plain | {} | 415 | code=unsupported_media_type
PUT /accounts/alice/settings | alice, Content-Type: application/json; charset=latin1 | {} | 400 |
GET /accounts/alice | alice | | 200 | settle_to=null; ilp_over_http_url=null
# Nothing else of the account is the holder's to change, nor the operator's by this call.
PUT /accounts/alice/settings | alice  | {"max_packet_amount":5,"min_balance":-1,"username":"mallory","asset_code":"XYZ","asset_scale":2,"ilp_address":"test.x","routing_relation":"Parent","round_trip_time":1,"amount_per_minute_limit":1,"packets_per_minute_limit":1,"spread":0.5,"settlement_engine_url":"http://h"} | 200 | account; username=alice; max_packet_amount=18446744073709551615; min_balance=null; asset_code=ABC; asset_scale=9; ilp_address=test.hub.alice; routing_relation=NonRoutingAccount; round_trip_time=500; amount_per_minute_limit=null; packets_per_minute_limit=null; settlement_engine_url=null; ~"field":"max_packet_amount"; ~"field":"min_balance"; ~"field":"spread"; ~"spread":0,; ~"field":"settlement_engine_url"
PUT /accounts/alice/settings | admin  | {"max_packet_amount":5} | 200 | max_packet_amount=18446744073709551615; warns=max_packet_amount
PUT /accounts/alice/settings | alice  | {"colour":"red"} | 200 | warns=colour
GET /accounts/alice | admin | | 200 | max_packet_amount=18446744073709551615; asset_code=ABC
# The old password is dead at once, for packets too.
PUT /accounts/alice/settings | alice  | {"ilp_over_http_incoming_token":"new-s3cr3t"} | 200 | account
GET /accounts/alice          | alice  | | 401 |
POST /accounts/alice/ilp     | alice  | prepare test.hub.bob 1 | 401 |
POST /accounts/alice/ilp     | Bearer new-s3cr3t | prepare test.hub.bob 1 | 200 | ilp=fulfill
POST /ilp                    | Bearer alice:new-s3cr3t | prepare test.hub.bob 1 | 200 | ilp=fulfill
# A holder cannot lock the own door; the operator can.
PUT /accounts/alice/settings | Bearer new-s3cr3t | {"ilp_over_http_incoming_token":null} | 400 | ~ilp_over_http_incoming_token
GET /accounts/alice          | Bearer new-s3cr3t | | 200 |
PUT /accounts/alice/settings | Bearer new-s3cr3t | {"ilp_over_btp_incoming_token":null,"ilp_over_http_outgoing_token":"out-s3cr3t"} | 200 | tokens_set=["ilp_over_http_incoming_token","ilp_over_http_outgoing_token"]
PUT /accounts/alice/settings | admin | {"ilp_over_http_incoming_token":null} | 200 | tokens_set=["ilp_over_http_outgoing_token"]
PUT /accounts/alice/settings | Bearer new-s3cr3t | {} | 401 |
PUT /accounts/no-body/settings | admin | {} | 404 |
"#);
}

#[test]
fn no_setting_takes_what_it_must_not() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    let before = node.api().get("/accounts");
    let mut attack = Attack::new(&node);
    let is_setting = |field: &str| field.starts_with("ilp_over_") || field.starts_with("settle_");
    for (field, value, fault) in bad_values().iter().filter(|(field, ..)| is_setting(field)) {
        let other = if *field == "settle_to" {
            "settle_threshold"
        } else {
            "settle_to"
        };
        let beside = format!("{{\"{other}\":77,\"{field}\":{value}}}");
        attack.refuse_field("PUT", "/accounts/alice/settings", &beside, field, *fault);
    }
    attack.finish();
    assert_eq!(node.api().get("/accounts"), before);
    check_log(&node);
}

/// E10, E11.
#[test]
fn spsp() {
    let with_default = start_node(&["--default_spsp_account", "Bob"]);
    let without = start_node(&[]);
    let caller = Caller::new(&with_default);
    caller.check("GET /.well-known/pay | - | | 404 | id=InvalidReceiverError");
    caller.check(ALICE_AND_BOB);
    const HEAD: &str = "@content-type=application/spsp4+json; @cache-control=max-age=60; \
                        @access-control-allow-origin=*; @access-control-allow-headers=web-monetization-id";
    caller.check(&format!(
        "GET /accounts/bob/spsp    | - | | 200 | {HEAD}; destination_account?; shared_secret?
         GET /accounts/%42OB/spsp/ | -, Accept: application/spsp4+json, application/spsp+json | | 200 | {HEAD}
         GET /accounts/bob/spsp    | -, Accept: text/html | | 200 | {HEAD}
         GET /accounts/bob/spsp    | Bearer garbage | | 200 | {HEAD}
         GET /accounts/bob/spsp    | twice | | 200 | {HEAD}
         GET /.well-known/pay      | - | | 200 | {HEAD}; destination_account?; shared_secret?
         GET /.well-known/pay/     | -, Accept: application/spsp4+json | | 200 | {HEAD}
         HEAD /accounts/bob/spsp   | - | | 200 | {HEAD}
         OPTIONS /accounts/bob/spsp | - | | 204 | @allow=*; @access-control-allow-origin=*; @access-control-allow-headers=web-monetization-id
         OPTIONS /.well-known/pay   | - | | 204 | @access-control-allow-origin=*; @access-control-allow-headers=web-monetization-id
         OPTIONS /accounts/bob      | - | | 204 | @!access-control-allow-origin
         GET /accounts/bob          | admin | | 200 | @!access-control-allow-origin
         GET /accounts/nobody/spsp  | - | | 404 | id=InvalidReceiverError; message?; code?
         GET /accounts/nobody/spsp  | admin | | 404 | id=InvalidReceiverError; message?
         GET /accounts/no-body/spsp | - | | 404 |
         POST /accounts/bob/spsp    | - | | 405 | code=method_not_allowed"
    ));
    Caller::new(&without).check(
        "GET /.well-known/pay  | - | | 404 | id=InvalidReceiverError; message?
         HEAD /.well-known/pay | - | | 404 |",
    );

    // Another address and another secret for everybody.
    let mut addresses = BTreeSet::new();
    let mut secrets = BTreeSet::new();
    for call in ["GET /accounts/bob/spsp", "GET /.well-known/pay"].repeat(10) {
        let answer = caller.call(call, "-", "").0.json();
        let address = answer["destination_account"].as_str().expect("an address").to_owned();
        let token = address.strip_prefix("test.hub.bob.").expect("an address of bob");
        let is_token = token.len() >= 24
            && token
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        assert!(is_token, "{address}");
        let secret = answer["shared_secret"].as_str().expect("a secret").to_owned();
        let (digits, padding) = secret.split_at(43.min(secret.len()));
        let is_base64 = digits
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte));
        assert!(
            digits.len() == 43 && padding == "=" && is_base64,
            "32 bytes in base64: {secret}"
        );
        addresses.insert(address);
        secrets.insert(secret);
    }
    assert_eq!((addresses.len(), secrets.len()), (20, 20));

    // Gone with the account.
    caller.check(
        "DELETE /accounts/bob | admin | | 200 |
         GET /accounts/bob/spsp | - | | 404 | id=InvalidReceiverError
         GET /.well-known/pay   | - | | 404 | id=InvalidReceiverError",
    );
}

/// E20.
#[test]
fn engines() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(r#"
PUT /settlement/engines | admin | {} | 200 | ={}
PUT /settlement/engines | admin | {"abc":"http://127.0.0.1:1"} | 200 | ={"ABC":"http://127.0.0.1:1/"}
GET /accounts/alice | alice | | 200 | settlement_engine_url=http://127.0.0.1:1/
# Merged, and an own URL wins.
PUT /settlement/engines | admin | {"XYZ":"https://LOCALHOST:2/a b"} | 200 | ={"XYZ":"https://localhost:2/a%20b"}
GET /accounts/alice | alice | | 200 | settlement_engine_url=http://127.0.0.1:1/
PUT /accounts/alice | admin | {"settlement_engine_url":"http://127.0.0.1:2/own"} | 200 | settlement_engine_url=http://127.0.0.1:2/own
GET /accounts/bob   | bob   | | 200 | settlement_engine_url=http://127.0.0.1:1/
PUT /accounts/alice | admin | {"settlement_engine_url":null} | 200 | settlement_engine_url=http://127.0.0.1:1/
POST /accounts | admin | {"username":"carol","asset_code":"xyz","asset_scale":9} | 200 | settlement_engine_url=https://localhost:2/a%20b
# All or nothing.
PUT /settlement/engines | admin | {"ABC":"http://127.0.0.1:3","XYZ":"nonsense"} | 400 | bad=XYZ invalid
PUT /settlement/engines | admin | {"ABC":7}           | 400 | bad=ABC invalid
PUT /settlement/engines | admin | {"ABC":""}          | 400 | bad=ABC invalid
PUT /settlement/engines | admin | {"ABC":"ftp://h"}   | 400 | bad=ABC invalid
PUT /settlement/engines | admin | {"ABC":"/path"}     | 400 | bad=ABC invalid
PUT /settlement/engines | admin | {"ABC":"http://u:p-s3cr3t@h/"} | 400 | bad=ABC invalid
PUT /settlement/engines | admin | {"ABC":["http://h"]} | 400 | bad=ABC invalid
PUT /settlement/engines | admin | {"ABC":"http://127.0.0.1:3","ABC":"http://127.0.0.1:3"} | 400 | bad=ABC invalid
PUT /settlement/engines | admin | {"":"http://h"}     | 400 |
PUT /settlement/engines | admin | {"$x(65)":"http://h"} | 400 |
PUT /settlement/engines | admin | []                  | 400 | code=json_data
PUT /settlement/engines | admin | {"ABC"              | 400 | code=json_eof
PUT /settlement/engines | admin |                     | 400 | code=json_eof
PUT /settlement/engines | admin, Content-Type: application/x-www-form-urlencoded | ABC=http://h | 400 | code=json_syntax
PUT /settlement/engines | admin, Content-Type: text/plain | {} | 415 | code=unsupported_media_type
GET /accounts/alice | alice | | 200 | settlement_engine_url=http://127.0.0.1:1/
# Removed.
PUT /settlement/engines | admin | {"ABC":null,"QQQ":null} | 200 | ABC=null
GET /accounts/alice | alice | | 200 | settlement_engine_url=null
GET /accounts/carol | admin | | 200 | settlement_engine_url=https://localhost:2/a%20b
"#);
}

/// 2.3: rates and routes may be closed to strangers; 5.7: scripts of the later generation may have their balance.
#[test]
fn closed_reads_and_scaled_balances() {
    let node = start_node(&["--api_open_reads", "false", "--api_balance_format", "scaled"]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(
        r#"
GET /rates  | admin | | 200 | ={}
GET /rates  | alice: | | 200 | ={}
GET /rates  | basic bob | | 200 | ={}
GET /rates  | -     | | 401 | code=unauthorized
GET /rates  | Bearer wrong | | 401 | code=unauthorized
GET /rates  | Bearer alice:wrong | | 401 | code=unauthorized
GET /rates  | Bearer nobody:alice-s3cr3t | | 401 | code=unauthorized
GET /rates  | twice | | 400 | code=bad_request
HEAD /rates | -     | | 401 |
GET /routes | admin | | 200 | ={"test.hub.alice":"alice","test.hub.bob":"bob"}
GET /routes | bob:  | | 200 | ={"test.hub.alice":"alice","test.hub.bob":"bob"}
GET /routes | -     | | 401 | code=unauthorized
GET /       | -     | | 200 | status=Ready
OPTIONS /rates | -  | | 204 |
POST /accounts/alice/ilp | alice | prepare test.hub.bob 1000 | 200 | ilp=fulfill
GET /accounts/alice/balance | alice | | 200 | ={"asset_code":"ABC","balance":-1e-6}
GET /accounts/alice/balance?format=scaled  | admin | | 200 | ={"asset_code":"ABC","balance":-1e-6}
GET /accounts/alice/balance?format=integer | alice | | 200 | balance=-1000; asset_scale=9; held=0
GET /accounts/alice/balance?format=x | alice | | 400 | bad=format invalid
"#,
    );
}

/// L4. The body is a text of any type.
#[test]
fn tracing_level() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(
        r#"
PUT /tracing-level | admin | info | 200 | =Logging level changed to: info; @content-type=text/plain*
PUT /tracing-level/ | admin | debug | 200 | =Logging level changed to: debug; @content-type=text/plain*
PUT /tracing-level | admin, Content-Type: text/plain | clearway=trace | 200 | =Logging level changed to: clearway=trace; @content-type=text/plain*
PUT /tracing-level | admin, Content-Type: application/json | ledger=debug,net=info | 200 | =Logging level changed to: ledger=debug,net=info; @content-type=text/plain*
PUT /tracing-level | admin | ERROR | 200 | @content-type=text/plain*
PUT /tracing-level | admin | | 400 | code=bad_request
PUT /tracing-level | admin | api=nonsense | 400 | code=bad_request
PUT /tracing-level | admin | a=b=c | 400 | code=bad_request
PUT /tracing-level | admin | {"level":"debug"} | 400 | code=bad_request
PUT /tracing-level | admin | info | 200 | @content-type=text/plain*
GET / | - | | 200 | status=Ready
"#,
    );
    let answer = node.connection().request(
        "PUT",
        "/tracing-level",
        &[("Authorization", &authorization("admin")[0])],
        b"\xff\xfe",
    );
    assert_eq!(answer.expect("an answer").status, 400, "not UTF-8");
}

/// What is not to be logged is not, and what is to be logged again is.
#[test]
fn a_tracing_level_takes_effect() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    let logs = |level: &str, marker: &str| {
        caller.check(&format!(
            "PUT /tracing-level | admin | {level} | 200 | @content-type=text/plain*"
        ));
        caller.check(&format!("GET /{marker} | - | | 404 |"));
        eventually("the log goes on", || {
            caller.check("PUT /tracing-level | admin | info | 200 | @content-type=text/plain*");
            caller.check(&format!("GET /after-{marker} | - | | 404 |"));
            node.log()
                .contains(&format!("/after-{marker}"))
                .then(|| node.log().contains(&format!("/{marker}")))
        })
    };
    assert!(logs("info", "told"), "calls are logged at info");
    assert!(!logs("error", "untold"), "and not at error");
}

/// The description names every path, and what it says of a path is what the path does.
#[test]
fn openapi() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check("GET /openapi.json | - | | 200 | openapi?; info?; paths?");
    let description: Value = caller.call("GET /openapi.json", "-", "").0.json();
    assert!(
        description["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.")),
        "{}",
        description["openapi"]
    );
    let paths = description["paths"].as_object().expect("an object of paths");
    // Parameters may have any name.
    let shape = |path: &str| {
        let segment = |segment: &str| {
            if segment.starts_with('{') {
                "{}".to_owned()
            } else {
                segment.to_owned()
            }
        };
        path.split('/').map(segment).collect::<Vec<_>>().join("/")
    };
    let described: BTreeSet<String> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let path = shape(path);
            let methods = methods.as_object().expect("an object of methods").clone();
            methods
                .into_iter()
                .map(move |(method, _)| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    for call in [
        "GET /",
        "GET /accounts",
        "POST /accounts",
        "GET /accounts/{}",
        "PUT /accounts/{}",
        "DELETE /accounts/{}",
        "PUT /accounts/{}/settings",
        "GET /accounts/{}/balance",
        "GET /accounts/{}/spsp",
        "GET /.well-known/pay",
        "POST /ilp",
        "POST /accounts/{}/ilp",
        "GET /rates",
        "PUT /rates",
        "GET /routes",
        "GET /routes/explain",
        "PUT /routes/static",
        "PUT /routes/static/{}",
        "DELETE /routes/static/{}",
        "PUT /settlement/engines",
        "PUT /tracing-level",
        "GET /ledger/audit",
    ] {
        assert!(described.contains(call), "{call} is not described: {described:?}");
    }
    // And what is described is there.
    for call in &described {
        let (method, path) = call.split_once(' ').expect("a method and a path");
        if !["GET", "POST", "PUT", "DELETE", "HEAD"].contains(&method) {
            continue; // what all methods of a path have in common
        }
        let (answer, _) = caller.call(&format!("OPTIONS {}", path.replace("{}", "test")), "-", "");
        assert_eq!(answer.status, 204, "{call}");
        let allow = answer.header("allow").unwrap_or_default();
        assert!(allow.split(", ").any(|allowed| allowed == method), "{call}: {allow}");
    }
}

/// The calls of command-line clients that need the second half.
#[test]
fn clients_of_both_generations_change_their_settings() {
    play(SCRIPT_OF_SETTINGS, &["--default_spsp_account", "alice"]);
}
