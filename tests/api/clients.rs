//! The calls that the command-line clients of both generations make, as they make them: the one of interledger-rs
//! sends every value as a text, creates accounts under `/accounts/`, and gives no type for bodies that are text; nodes of
//! 2019 named the account in the credentials and had one path for all packets.

use crate::caller::{Caller, password};
use crate::tables::start_node;

/// One generation: how a holder logs in, and where its packets go.
struct Dialect {
    name: &'static str,
    /// `$u` is the user name, `$p` the password.
    holder: &'static str,
    packets: &'static str,
    /// What bob gets for a packet on alice's path: where the path names nobody, it is bob's own.
    of_another: &'static str,
}

const DIALECTS: [Dialect; 2] = [
    Dialect {
        name: "2019",
        holder: "Bearer $u:$p",
        packets: "/ilp",
        of_another: "200 | ilp=fulfill",
    },
    Dialect {
        name: "later",
        holder: "Bearer $p",
        packets: "/accounts/$u/ilp",
        of_another: "401 | code=unauthorized",
    },
];

fn in_dialect(dialect: &Dialect, script: &str) -> String {
    let holder = |username: &str| {
        dialect
            .holder
            .replace("$u", username)
            .replace("$p", &password(username))
    };
    script
        .replace("HOLDER_OF_ALICE", &holder("alice"))
        .replace("HOLDER_OF_BOB", &holder("bob"))
        .replace("PACKETS_OF_ALICE", &dialect.packets.replace("$u", "alice"))
        .replace("PACKETS_OF_BOB", &dialect.packets.replace("$u", "bob"))
        .replace("OF_ANOTHER", dialect.of_another)
        .replace("JSON", "Content-Type: application/json")
}

/// E1 to E5, E7, E12, E14 to E19, L1.
const SCRIPT: &str = r#"
GET /          | - | | 200 | status=Ready
POST /accounts/ | admin, JSON | {"username":"alice","asset_code":"ABC","asset_scale":"9","ilp_over_http_incoming_token":"alice-s3cr3t","ilp_over_btp_incoming_token":"alice-btp-s3cr3t","max_packet_amount":"1000000","min_balance":"-100000"} | 200 | account; username=alice; asset_scale=9; max_packet_amount=1000000; min_balance=-100000
POST /accounts/ | admin, JSON | {"username":"bob","asset_code":"XYZ","asset_scale":"6","ilp_address":"test.bob","ilp_over_http_url":"$peer","ilp_over_http_incoming_token":"bob-s3cr3t","ilp_over_http_outgoing_token":"bob:out-s3cr3t","settle_threshold":"1000","settle_to":"0","routing_relation":"Peer","round_trip_time":"500","packets_per_minute_limit":"1000","amount_per_minute_limit":"100000"} | 200 | account; ilp_address=test.bob; routing_relation=Peer; settle_to=0
POST /accounts/ | admin, JSON | {"username":"alice","asset_code":"ABC","asset_scale":"9"} | 409 | code=duplicate_username
GET /accounts   | admin | | 200 | ~"username":"alice"; ~"username":"bob"
PUT /accounts/alice | admin, JSON | {"username":"alice","asset_code":"ABC","asset_scale":"9","max_packet_amount":"500000"} | 200 | account; max_packet_amount=500000
GET /accounts/alice | admin | | 200 | account; min_balance=-100000
GET /accounts/alice | HOLDER_OF_ALICE | | 200 | account; max_packet_amount=500000
GET /accounts/bob   | HOLDER_OF_ALICE | | 401 | code=unauthorized
PUT /rates      | admin, JSON | {"ABC":"1.0","XYZ":"2.0"} | 200 | ={"ABC":1.0,"XYZ":2.0}
GET /rates      | admin | | 200 | ={"ABC":1.0,"XYZ":2.0}
PUT /routes/static | admin, JSON | {"test.elsewhere":"bob"} | 200 | ={"test.elsewhere":"bob"}
PUT /routes/static/test.other | admin | alice | 200 | =alice; @content-type=text/plain*
PUT /routes/static/test.other | admin | bob | 200 | =bob; @content-type=text/plain*
GET /routes     | admin | | 200 | ={"test.bob":"bob","test.elsewhere":"bob","test.hub.alice":"alice","test.other":"bob"}
# 20,000 of 10^-9 ABC at 1 are 10 of 10^-6 XYZ at 2.
POST PACKETS_OF_ALICE | HOLDER_OF_ALICE, Content-Type: application/octet-stream | prepare test.elsewhere 20000 | 200 | ilp=fulfill
POST PACKETS_OF_ALICE | HOLDER_OF_BOB, Content-Type: application/octet-stream | prepare test.bob 3 | OF_ANOTHER
POST PACKETS_OF_BOB   | HOLDER_OF_BOB, Content-Type: application/octet-stream | prepare test.nowhere 1 | 200 | ilp=F02
GET /accounts/alice/balance | HOLDER_OF_ALICE | | 200 | balance=-20000
GET /accounts/alice/balance | admin | | 200 | balance=-20000
GET /accounts/bob/balance   | HOLDER_OF_BOB | | 200 | balance=10
GET /accounts/alice/balance?format=scaled | HOLDER_OF_ALICE | | 200 | asset_code=ABC; balance=-2e-5; !held
GET /accounts/bob/balance?format=scaled   | admin | | 200 | asset_code=XYZ; balance=1e-5; !held
PUT /rates      | admin, JSON | {} | 200 | ={}
POST PACKETS_OF_ALICE | HOLDER_OF_ALICE, Content-Type: application/octet-stream | prepare test.bob 20000 | 200 | ilp=T00
DELETE /accounts/alice?force=true | admin | | 200 | account; username=alice
DELETE /accounts/bob?force=true   | admin | | 200 | account; username=bob; removed_routes=["test.elsewhere","test.other"]
GET /accounts   | admin | | 200 | =[]
"#;

/// E6, E10, E11, E20, L4, and what a holder may do about the own account.
pub const SCRIPT_OF_SETTINGS: &str = r#"
POST /accounts/ | admin, JSON | {"username":"alice","asset_code":"ABC","asset_scale":"9","ilp_over_http_incoming_token":"alice-s3cr3t"} | 200 | account
PUT /accounts/alice/settings | HOLDER_OF_ALICE, JSON | {"ilp_over_http_url":"$peer","ilp_over_http_outgoing_token":"out-s3cr3t","settle_threshold":"70000","settle_to":"10000"} | 200 | account; settle_threshold=70000; settle_to=10000
PUT /accounts/alice/settings | admin, JSON | {"settle_to":"0"} | 200 | account; settle_to=0; settle_threshold=70000
PUT /settlement/engines | admin, JSON | {"ABC":"http://127.0.0.1:1","XYZ":"http://127.0.0.1:2/path"} | 200 | ABC=http://127.0.0.1:1/; XYZ=http://127.0.0.1:2/path
GET /accounts/alice | HOLDER_OF_ALICE | | 200 | settlement_engine_url=http://127.0.0.1:1/
GET /accounts/alice/spsp | - | | 200 | @content-type=application/spsp4+json; destination_account?; shared_secret?
GET /.well-known/pay | - | | 200 | @content-type=application/spsp4+json; destination_account?
PUT /tracing-level | admin | info | 200 | =Logging level changed to: info; @content-type=text/plain*
DELETE /accounts/alice | admin | | 200 | account; username=alice
GET /.well-known/pay | - | | 404 |
"#;

/// Plays a script once for each generation, each on a node of its own.
pub fn play(script: &str, arguments: &[&str]) {
    for dialect in &DIALECTS {
        println!("as a client of {}", dialect.name);
        let node = start_node(arguments);
        Caller::new(&node).check(&in_dialect(dialect, script));
    }
}

#[test]
fn clients_of_both_generations_are_served() {
    play(SCRIPT, &[]);
}
