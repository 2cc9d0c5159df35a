//! Every call of the API, by whom, with what, and what must come back. The lines of a table share a node and follow
//! each other.

use crate::caller::{Caller, TOKEN_MARK, basic, password};
use crate::support::node::{ADMIN_TOKEN, Node, Options};

/// Two accounts that can log in.
pub const ALICE_AND_BOB: &str = r#"
POST /accounts | admin | {"username":"alice","asset_code":"abc","asset_scale":9,"ilp_over_http_incoming_token":"alice-s3cr3t","ilp_over_btp_incoming_token":"alice-btp-s3cr3t"} | 200 | account; username=alice
POST /accounts | admin | {"username":"bob","asset_code":"ABC","asset_scale":"9","ilp_over_http_incoming_token":"bob-s3cr3t","ilp_over_http_url":"$peer"} | 200 | account; username=bob
"#;

/// Two shards, and whatever it logs is kept.
pub fn start_node(arguments: &[&str]) -> Node {
    Node::start_with(Options {
        shards: 2,
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        log_lines_max: 1_000_000,
        ..Options::default()
    })
}

/// The columns of the matrix: who calls, in every form that is understood.
pub fn callers() -> [Vec<String>; 7] {
    let texts = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>();
    let (alice, bob) = (password("alice"), password("bob"));
    let admin = vec![
        "admin".to_owned(),
        format!("bearer {ADMIN_TOKEN}"),
        format!("BEARER   {ADMIN_TOKEN}"),
    ];
    let bare = vec!["alice".to_owned(), format!("bEaReR  {alice}")];
    let named = vec![
        "alice:".to_owned(),
        "alice%3A".to_owned(),
        format!("Bearer alice%3a{alice}"),
        format!("Bearer ALICE:{alice}"),
        "basic alice".to_owned(),
        basic(&format!("Alice:{alice}")).replace("Basic", "BASIC"),
    ];
    let other = vec![
        "bob".to_owned(),
        "bob:".to_owned(),
        "basic bob".to_owned(),
        format!("Bearer bob:{alice}"),
        format!("Bearer alice:{bob}"),
        basic(&format!("bob:{alice}")),
    ];
    let bad = texts(&[
        "Bearer wrong",
        "Bearer alice:",
        "Bearer alice:wrong",
        "Bearer nobody:wrong",
        "Bearer :",
        "Bearer",
        "",
        "XXXXXX wrong",
        "wrong token",
        "Basic !!!",
        "Basic",
        // What answers show in place of a token is none.
        "Bearer SECRET",
        "Bearer alice:SECRET",
        "Bearer null",
        "Bearer \u{ff}",
        "\u{ff}",
    ])
    .into_iter()
    .chain([
        // Other schemes, and secrets of another use.
        format!("XXXXXX {alice}"),
        format!("Digest {ADMIN_TOKEN}"),
        alice.clone(),
        ADMIN_TOKEN.to_owned(),
        format!("Bearer alice-btp-{TOKEN_MARK}"),
        format!("Bearer {alice}x"),
        format!("Bearer {}", &alice[..alice.len() - 1]),
        format!("Bearer {}", alice.to_uppercase()),
        format!("Bearer admin:{ADMIN_TOKEN}"),
        format!("Bearer alice:{ADMIN_TOKEN}"),
        // Basic is for holders, and is a name and a password.
        basic(&format!("admin:{ADMIN_TOKEN}")),
        basic(ADMIN_TOKEN),
        basic(&alice),
        basic(&format!(":{alice}")),
        basic("alice:"),
    ])
    .collect();
    [admin, bare, named, other, bad, texts(&["twice"]), texts(&["-"])]
}

/// The matrix of callers: calls, and a status for each column.
#[test]
fn who_may_call() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    let columns = callers();
    let calls = caller.check_matrix(
        &columns.each_ref().map(Vec::as_slice),
        r#"
# call                              | body                                                    | admin bare named other bad twice none
GET    /accounts                    |                                                         |  200  401  401   401   401  400  401
HEAD   /accounts                    |                                                         |  200  401  401   401   401  400  401
POST   /accounts                    | {"username":"user_$n","asset_code":"ABC","asset_scale":9} |  200  401  401   401   401  400  401
POST   /accounts                    | {                                                       |  400  401  401   401   401  400  401
GET    /accounts/alice              |                                                         |  200  200  200   401   401  400  401
GET    /accounts/%61LICE/           |                                                         |  200  200  200   401   401  400  401
HEAD   /accounts/alice              |                                                         |  200  200  200   401   401  400  401
GET    /accounts/nobody             |                                                         |  404  401  401   401   401  400  401
GET    /accounts/no-body            |                                                         |  404  401  401   401   401  400  401
PUT    /accounts/alice              | {}                                                      |  200  401  401   401   401  400  401
PUT    /accounts/nobody             | {}                                                      |  404  401  401   401   401  400  401
DELETE /accounts/nobody             |                                                         |  404  401  401   401   401  400  401
GET    /accounts/alice/balance      |                                                         |  200  200  200   401   401  400  401
HEAD   /accounts/alice/balance      |                                                         |  200  200  200   401   401  400  401
GET    /accounts/nobody/balance     |                                                         |  404  401  401   401   401  400  401
POST   /accounts/alice/ilp          | prepare test.hub.bob 1                                  |  401  200  200   401   401  400  401
POST   /accounts/nobody/ilp         | prepare test.hub.bob 1                                  |  401  401  401   401   401  400  401
# Whom the packet is from is said by the credentials; a bare password names nobody.
POST   /ilp                         | prepare test.hub.bob 1                                  |  401  401  200   *     401  400  401
GET    /ilp/btp                     |                                                         |  426  426  426   426   426  426  426
GET    /accounts/alice/ilp/btp      |                                                         |  426  426  426   426   426  426  426
GET    /                            |                                                         |  200  200  200   200   200  200  200
HEAD   /                            |                                                         |  200  200  200   200   200  200  200
GET    /rates                       |                                                         |  200  200  200   200   200  200  200
GET    /routes                      |                                                         |  200  200  200   200   200  200  200
GET    /routes?detail=false         |                                                         |  200  200  200   200   200  200  200
GET    /routes?detail=true          |                                                         |  200  401  401   401   401  400  401
HEAD   /routes?detail=true          |                                                         |  200  401  401   401   401  400  401
GET    /routes/explain?destination=test.hub.bob |                                             |  200  401  401   401   401  400  401
GET    /rates?detail=true           |                                                         |  200  401  401   401   401  400  401
PUT    /rates                       | {}                                                      |  200  401  401   401   401  400  401
POST   /rates/confirm               | ["NONE"]                                                |  404  401  401   401   401  400  401
PUT    /routes/static               | {}                                                      |  200  401  401   401   401  400  401
PUT    /routes/static/test.x        | bob                                                     |  200  401  401   401   401  400  401
DELETE /routes/static/test.y        |                                                         |  404  401  401   401   401  400  401
GET    /ledger/audit                |                                                         |  200  401  401   401   401  400  401
# The method is looked at before the caller is.
PATCH  /accounts/alice              |                                                         |  405  405  405   405   405  405  405
OPTIONS /accounts/alice             |                                                         |  204  204  204   204   204  204  204
GET    /nothing                     |                                                         |  404  404  404   404   404  404  404
"#,
    );
    assert!(calls > 800, "every form of every caller: {calls}");
    caller.check(&format!(
        "POST /ilp | bob | prepare test.hub.bob 1 | 401 | code=unauthorized
         POST /ilp | bob: | prepare test.hub.bob 1 | 200 | ilp=fulfill
         POST /ilp | basic bob | prepare test.hub.bob 1 | 200 | ilp=fulfill
         POST /ilp | Bearer bob:{} | prepare test.hub.bob 1 | 401 | code=unauthorized",
        password("alice"),
    ));
}

/// Tokens as peers in the field have them.
#[test]
fn tokens_with_blanks_and_colons() {
    let node = start_node(&[]);
    Caller::new(&node).check(r#"
POST /accounts | admin | {"username":"al","asset_code":"ABC","asset_scale":9,"ilp_over_http_incoming_token":"default account holder"} | 200 | tokens_set=["ilp_over_http_incoming_token"]
GET /accounts/al | Bearer default account holder         |  | 200 | username=al
GET /accounts/al | Bearer   default account holder       |  | 200 |
GET /accounts/al | Bearer al:default account holder      |  | 200 |
GET /accounts/al | Bearer al%3Adefault account holder    |  | 200 |
GET /accounts/al | Bearer default  account holder        |  | 401 |
GET /accounts/al | Bearer default                        |  | 401 |
POST /ilp | Bearer al:default account holder | prepare test.nowhere 1 | 200 | ilp=F02
POST /accounts/al/ilp | Bearer default account holder | prepare test.nowhere 1 | 200 | ilp=F02
PUT /accounts/al | admin | {"ilp_over_http_incoming_token":"pass:word"} | 200 |
GET /accounts/al | Bearer pass:word                      |  | 200 |
GET /accounts/al | Bearer al:pass:word                   |  | 200 |
GET /accounts/al | Bearer al%3Apass:word                 |  | 200 |
GET /accounts/al | Bearer al%3Apass%3Aword               |  | 200 |
GET /accounts/al | Bearer pass                           |  | 401 |
GET /accounts/al | Bearer al:pass                        |  | 401 |
GET /accounts/al | Bearer word                           |  | 401 |
GET /accounts/al | Bearer default account holder         |  | 401 |
POST /ilp | Bearer al:pass:word | prepare test.nowhere 1 | 200 | ilp=F02
POST /ilp | Bearer pass:word    | prepare test.nowhere 1 | 401 |
PUT /accounts/al | admin | {"ilp_over_http_incoming_token":"al:pw"} | 200 |
GET /accounts/al | Bearer al:pw                          |  | 200 |
GET /accounts/al | Bearer al:al:pw                       |  | 200 |
GET /accounts/al | Bearer pw                             |  | 401 |
# Nobody can log in without a token, with whatever is empty.
PUT /accounts/al | admin | {"ilp_over_http_incoming_token":null} | 200 | tokens_set=[]
GET /accounts/al | Bearer al:pw                          |  | 401 |
GET /accounts/al | Bearer al:                            |  | 401 |
GET /accounts/al | Bearer                                |  | 401 |
GET /accounts/al | XXXXXX                                |  | 401 |
POST /accounts/al/ilp | Bearer al: | prepare test.nowhere 1 | 401 |
"#);
}

/// E1, 4.1 to 4.3, 4.5.
#[test]
fn creating_accounts() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(r#"
POST /accounts  | admin | {"username":"alice","asset_code":"abc","asset_scale":9} | 200 | account; username=alice; ilp_address=test.hub.alice; asset_code=ABC; asset_scale=9; max_packet_amount=18446744073709551615; min_balance=null; ilp_over_http_url=null; ilp_over_btp_url=null; settle_threshold=null; settle_to=null; routing_relation=NonRoutingAccount; round_trip_time=500; packets_per_minute_limit=null; amount_per_minute_limit=null; settlement_engine_url=null; tokens_set=[]; !warnings
GET /accounts/alice | admin | | 200 | account; username=alice; !warnings
# A second one of that name, however it is written and whatever else is said.
POST /accounts  | admin | {"username":"alice","asset_code":"abc","asset_scale":9} | 409 | code=duplicate_username
POST /accounts/ | admin | {"username":"ALICE","asset_code":"XYZ","asset_scale":2} | 409 | code=duplicate_username; title=Provided resource already exists; type=about:blank
POST /accounts  | admin | {"username":"\u0061lice","asset_code":"ABC","asset_scale":9,"ilp_address":"test.other"} | 409 | code=duplicate_username
POST /accounts  | admin | {"username":"ａｌｉｃｅ","asset_code":"ABC","asset_scale":9} | 409 | code=duplicate_username
# Everything at once, all numbers as texts.
POST /accounts/ | admin | {"username":"all","ilp_address":"test.all","asset_code":"Xyz","asset_scale":"255","max_packet_amount":"18446744073709551615","min_balance":"-9223372036854775808","ilp_over_http_url":"http://LOCALHOST:3000","ilp_over_http_incoming_token":"all-s3cr3t","ilp_over_http_outgoing_token":"out-s3cr3t","ilp_over_btp_incoming_token":"btp-s3cr3t","ilp_over_btp_outgoing_token":"btp:s3cr3t","settlement_engine_url":"http://localhost:3001/engine","settle_threshold":"9223372036854775807","settle_to":"-9223372036854775808","routing_relation":"CHILD","round_trip_time":"4294967295","amount_per_minute_limit":"18446744073709551615","packets_per_minute_limit":"4294967295","spread":"0.999999999999999999"} | 200 | account; ilp_address=test.all; asset_code=XYZ; asset_scale=255; max_packet_amount=18446744073709551615; min_balance=-9223372036854775808; ilp_over_http_url=http://localhost:3000/; settlement_engine_url=http://localhost:3001/engine; settle_threshold=9223372036854775807; settle_to=-9223372036854775808; routing_relation=Child; round_trip_time=4294967295; amount_per_minute_limit=18446744073709551615; packets_per_minute_limit=4294967295; ~"spread":0.999999999999999999,; tokens_set=["ilp_over_http_incoming_token","ilp_over_http_outgoing_token","ilp_over_btp_incoming_token","ilp_over_btp_outgoing_token"]; links.http=ready; !warnings
GET /accounts/all | admin | | 200 | account; min_balance=-9223372036854775808; ilp_over_http_url=http://localhost:3000/
# Signs and zeros; what is explicitly nothing is as good as missing.
POST /accounts  | admin | {"username":"signs","asset_code":"ABC","asset_scale":"+9","min_balance":"+5","max_packet_amount":"007","settle_to":"-0"} | 200 | asset_scale=9; min_balance=5; max_packet_amount=7; settle_to=0
POST /accounts  | admin | {"username":"nulls","asset_code":"ABC","asset_scale":0,"ilp_address":null,"max_packet_amount":null,"min_balance":null,"ilp_over_http_url":null,"ilp_over_http_incoming_token":null,"ilp_over_btp_url":null,"routing_relation":null,"round_trip_time":null,"settle_to":null,"amount_per_minute_limit":null,"packets_per_minute_limit":null,"spread":null} | 200 | ilp_address=test.hub.nulls; ~"spread":0,; round_trip_time=500; asset_scale=0; max_packet_amount=18446744073709551615; !warnings
# What is missing is named, all of it.
POST /accounts  | admin | {} | 400 | code=json_data; bad=username missing, asset_code missing, asset_scale missing
POST /accounts  | admin | {"username":"dd"} | 400 | bad=asset_code missing, asset_scale missing
POST /accounts  | admin | {"username":null,"asset_code":"ABC","asset_scale":9} | 400 | bad=username missing
POST /accounts  | admin | {"username":"dd","asset_code":"ABC","asset_scale":null} | 400 | bad=asset_scale missing
POST /accounts  | admin | {"username":"d","asset_scale":300,"min_balance":1.5,"routing_relation":"x"} | 400 | code=json_data; ~"name":"username","type":"invalid"; ~"name":"asset_scale","type":"out_of_range"; ~"name":"min_balance","type":"invalid"; ~"name":"routing_relation","type":"invalid"; ~"name":"asset_code","type":"missing"
# Names.
POST /accounts  | admin | {"username":"Ab","asset_code":"ABC","asset_scale":9} | 200 | username=Ab; ilp_address=test.hub.Ab
POST /accounts  | admin | {"username":"$x(32)","asset_code":"ABC","asset_scale":9} | 200 | username=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
POST /accounts  | admin | {"username":"under_score_9","asset_code":"ABC","asset_scale":9} | 200 | username=under_score_9
POST /accounts  | admin | {"username":"ﬁn","asset_code":"ABC","asset_scale":9} | 200 | username=fin; ilp_address=test.hub.fin
POST /accounts  | admin | {"username":"zoë","asset_code":"ABC","asset_scale":9} | 400 | bad=ilp_address invalid
POST /accounts  | admin | {"username":"zoë","asset_code":"ABC","asset_scale":9,"ilp_address":"test.hub.zoe"} | 200 | username=zoë; ~"username":"zoë"
POST /accounts  | admin | {"username":"ZOË","asset_code":"ABC","asset_scale":9,"ilp_address":"test.hub.zoe2"} | 409 | code=duplicate_username
POST /accounts  | admin | {"username":"Maße","asset_code":"ABC","asset_scale":9,"ilp_address":"test.hub.mass"} | 200 | username=Maße
POST /accounts  | admin | {"username":"MASSE","asset_code":"ABC","asset_scale":9} | 409 | code=duplicate_username
GET /accounts/Zo%C3%AB | admin | | 200 | username=zoë
GET /accounts/zo%65%CC%88 | admin | | 200 | username=zoë
GET /accounts/MASSE | admin | | 200 | username=Maße
GET /accounts/masse/balance | admin | | 200 | balance=0
# Codes.
POST /accounts  | admin | {"username":"code1","asset_code":"straße","asset_scale":9} | 200 | asset_code=STRASSE
POST /accounts  | admin | {"username":"code2","asset_code":"$x(64)","asset_scale":9} | 200 |
POST /accounts  | admin | {"username":"code3","asset_code":"$x(65)","asset_scale":9} | 400 | bad=asset_code too_long
# Addresses.
POST /accounts  | admin | {"username":"addr1","asset_code":"ABC","asset_scale":9,"ilp_address":"test.hub.alice"} | 409 | code=duplicate_address
POST /accounts  | admin | {"username":"addr1","asset_code":"ABC","asset_scale":9,"ilp_address":"peer.settle"} | 400 | bad=ilp_address invalid
POST /accounts  | admin | {"username":"addr1","asset_code":"ABC","asset_scale":9,"ilp_address":"self.x"} | 400 | bad=ilp_address invalid
POST /accounts  | admin | {"username":"addr1","asset_code":"ABC","asset_scale":9,"ilp_address":"test"} | 400 | bad=ilp_address invalid
POST /accounts  | admin | {"username":"addr1","asset_code":"ABC","asset_scale":9,"ilp_address":"test.hub."} | 400 | bad=ilp_address invalid
POST /accounts  | admin | {"username":"addr1","asset_code":"ABC","asset_scale":9,"ilp_address":"test.$x(1019)"} | 400 | bad=ilp_address too_long
POST /accounts  | admin | {"username":"addr1","asset_code":"ABC","asset_scale":9,"ilp_address":"test.$x(1018)"} | 200 | !warnings
POST /accounts  | admin | {"username":"addr2","asset_code":"ABC","asset_scale":9,"ilp_address":"g.other"} | 200 | ilp_address=g.other; warns=ilp_address
POST /accounts  | admin | {"username":"own","asset_code":"ABC","asset_scale":9,"ilp_address":"test.hub"} | 200 | ilp_address=test.hub
POST /accounts  | admin | {"username":"own2","asset_code":"ABC","asset_scale":9,"ilp_address":"test.hub"} | 409 | code=duplicate_address
# Two links to one neighbour, but no customer beside them; one parent.
POST /accounts  | admin | {"username":"link1","asset_code":"ABC","asset_scale":9,"ilp_address":"test.n","routing_relation":"peer"} | 200 | routing_relation=Peer
POST /accounts  | admin | {"username":"link2","asset_code":"ABC","asset_scale":9,"ilp_address":"test.n","routing_relation":"PEER"} | 200 | routing_relation=Peer
POST /accounts  | admin | {"username":"link3","asset_code":"ABC","asset_scale":9,"ilp_address":"test.n"} | 409 | code=duplicate_address
POST /accounts  | admin | {"username":"link3","asset_code":"ABC","asset_scale":9,"ilp_address":"test.n","routing_relation":"Child"} | 409 | code=duplicate_address
# URLs and what is only warned about.
POST /accounts  | admin | {"username":"url1","asset_code":"ABC","asset_scale":9,"ilp_over_http_url":"https://u:pa-s3cr3t@h/"} | 400 | bad=ilp_over_http_url invalid
POST /accounts  | admin | {"username":"warned","asset_code":"ABC","asset_scale":9,"settle_threshold":5,"settle_to":5} | 200 | warns=settle_threshold settle_threshold
POST /accounts  | admin | {"username":"strange","asset_code":"ABC","asset_scale":9,"colour":"red","Username":"x","password":"s3cr3t"} | 200 | username=strange; warns=colour Username password; !colour
# The peer of this one does not answer: the account is there all the same.
POST /accounts  | admin | {"username":"dialled","asset_code":"ABC","asset_scale":9,"ilp_over_btp_url":"btp+ws://user:pass-s3cr3t@127.0.0.1:1/x"} | 200 | ilp_over_btp_url=btp+ws://user@127.0.0.1:1/x; links.btp=connecting; tokens_set=["ilp_over_btp_outgoing_token"]; warns=ilp_over_btp_url
GET /accounts/url1 | admin | | 404 | code=account_not_found
GET /accounts/addr1 | admin | | 200 |
GET /accounts/own2 | admin | | 404 |
"#);
}

/// E3, 4.4.
#[test]
fn changing_accounts() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(r#"
PUT /accounts/alice  | admin | {} | 200 | account; !warnings
PUT /accounts/alice/ | admin | {"username":"ALICE"} | 200 | username=alice
PUT /accounts/ALICE  | admin | {"username":"alice","asset_code":"ABC","asset_scale":"9","max_packet_amount":"250000","packets_per_minute_limit":null} | 200 | max_packet_amount=250000; packets_per_minute_limit=null
PUT /accounts/alice  | admin | {"username":null} | 200 | username=alice
PUT /accounts/alice  | admin | {"username":"bob"} | 400 | bad=username immutable
PUT /accounts/alice  | admin | {"username":"alicia"} | 400 | bad=username immutable
# What is missing is kept, what is null is cleared.
PUT /accounts/alice  | admin | {"min_balance":-5,"round_trip_time":"9","amount_per_minute_limit":7,"packets_per_minute_limit":8} | 200 | min_balance=-5; round_trip_time=9; amount_per_minute_limit=7; packets_per_minute_limit=8; max_packet_amount=250000
PUT /accounts/alice  | admin | {"settle_threshold":10,"settle_to":1} | 200 | min_balance=-5; round_trip_time=9; settle_threshold=10; settle_to=1
GET /accounts/alice  | alice | | 200 | min_balance=-5; settle_to=1; max_packet_amount=250000
PUT /accounts/alice  | admin | {"max_packet_amount":null,"min_balance":null,"round_trip_time":null,"amount_per_minute_limit":null,"packets_per_minute_limit":null,"settle_threshold":null,"settle_to":null} | 200 | max_packet_amount=18446744073709551615; min_balance=null; round_trip_time=500; amount_per_minute_limit=null; packets_per_minute_limit=null; settle_threshold=null; settle_to=null
# A share of its packets, exactly as it is given, as number or as text.
PUT /accounts/alice  | admin | {"spread":0.001} | 200 | ~"spread":0.001,
PUT /accounts/alice  | admin | {"spread":"1.50e-2"} | 200 | ~"spread":0.015,
PUT /accounts/alice  | admin | {} | 200 | ~"spread":0.015,
PUT /accounts/alice  | admin | {"spread":0.100000000000000001} | 200 | ~"spread":0.100000000000000001,
GET /accounts/alice  | alice | | 200 | ~"spread":0.100000000000000001,
PUT /accounts/alice  | admin | {"spread":1} | 400 | bad=spread out_of_range
PUT /accounts/alice  | admin | {"spread":"-1e-18"} | 400 | bad=spread out_of_range
PUT /accounts/alice  | admin | {"spread":0.0000000000000000001} | 400 | bad=spread invalid
PUT /accounts/alice  | admin | {"spread":"1%"} | 400 | bad=spread invalid
GET /accounts/alice  | alice | | 200 | ~"spread":0.100000000000000001,
PUT /accounts/alice  | admin | {"spread":null} | 200 | ~"spread":0,
PUT /accounts/alice  | admin | {"asset_code":null} | 400 | bad=asset_code invalid
PUT /accounts/alice  | admin | {"asset_scale":null} | 400 | bad=asset_scale invalid
PUT /accounts/alice  | admin | {"ilp_over_http_url":"http://h:1/x","settlement_engine_url":"https://e"} | 200 | ilp_over_http_url=http://h:1/x; settlement_engine_url=https://e/; links.http=ready
PUT /accounts/alice  | admin | {"ilp_over_http_url":null,"settlement_engine_url":null} | 200 | ilp_over_http_url=null; settlement_engine_url=null; links.http=null
# One bad field, and nothing of the call is done.
PUT /accounts/alice  | admin | {"min_balance":77,"ilp_over_http_url":"nonsense"} | 400 | bad=ilp_over_http_url invalid
PUT /accounts/alice  | admin | {"min_balance":77,"ilp_address":"test.hub.bob"} | 409 | code=duplicate_address
GET /accounts/alice  | admin | | 200 | min_balance=null; ilp_address=test.hub.alice
# Addresses and relations, and the routes that follow from them.
PUT /accounts/alice  | admin | {"ilp_address":"test.elsewhere"} | 200 | ilp_address=test.elsewhere
GET /routes | - | | 200 | ={"test.elsewhere":"alice","test.hub.bob":"bob"}
PUT /accounts/alice  | admin | {"ilp_address":null} | 200 | ilp_address=test.hub.alice
PUT /accounts/alice  | admin | {"routing_relation":"parent"} | 200 | routing_relation=Parent
GET /routes | - | | 200 | ={"":"alice","test.hub.alice":"alice","test.hub.bob":"bob"}
PUT /accounts/bob    | admin | {"routing_relation":"Parent"} | 409 | code=second_parent
PUT /accounts/alice  | admin | {"routing_relation":null} | 200 | routing_relation=NonRoutingAccount
PUT /accounts/bob    | admin | {"routing_relation":"Parent"} | 200 | routing_relation=Parent
PUT /accounts/bob    | admin | {"routing_relation":"NonRoutingAccount"} | 200 |
GET /routes | - | | 200 | ={"test.hub.alice":"alice","test.hub.bob":"bob"}
# Passwords: the old one is dead at once.
PUT /accounts/alice  | admin | {"ilp_over_http_incoming_token":"new-s3cr3t"} | 200 |
GET /accounts/alice  | alice | | 401 |
GET /accounts/alice  | Bearer new-s3cr3t | | 200 |
POST /accounts/alice/ilp | alice | prepare test.hub.bob 1 | 401 |
POST /ilp | Bearer alice:new-s3cr3t | prepare test.hub.bob 1 | 200 | ilp=fulfill
# What answers show in place of a token means "as it was".
PUT /accounts/alice  | admin | {"ilp_over_http_incoming_token":"SECRET","ilp_over_btp_incoming_token":"SECRET"} | 200 | warns=ilp_over_http_incoming_token ilp_over_btp_incoming_token
GET /accounts/alice  | Bearer SECRET | | 401 |
GET /accounts/alice  | Bearer new-s3cr3t | | 200 | tokens_set=["ilp_over_http_incoming_token","ilp_over_btp_incoming_token"]
# The asset, not while something is owed, and then while nothing is.
PUT /accounts/alice  | admin | {"asset_code":"NEW"} | 409 | code=asset_in_use
PUT /accounts/bob    | admin | {"asset_scale":2,"min_balance":3} | 409 | code=asset_in_use
GET /accounts/bob    | bob   | | 200 | asset_scale=9; min_balance=null
PUT /accounts/alice  | admin | {"asset_code":"abc","asset_scale":"9"} | 200 | asset_code=ABC
POST /accounts       | admin | {"username":"carol","asset_code":"ABC","asset_scale":9} | 200 |
PUT /accounts/carol  | admin | {"asset_code":"new","asset_scale":3} | 200 | asset_code=NEW; asset_scale=3
GET /accounts/carol/balance | admin | | 200 | asset_code=NEW; asset_scale=3
"#);
}

/// E2.
#[test]
fn listing_accounts() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(r#"
GET /accounts | admin | | 200 | =[]
POST /accounts | admin | {"username":"Dave","asset_code":"ABC","asset_scale":9} | 200 |
POST /accounts | admin | {"username":"alice","asset_code":"ABC","asset_scale":9,"routing_relation":"Peer","ilp_address":"test.peers.a"} | 200 |
POST /accounts | admin | {"username":"Bob","asset_code":"ABC","asset_scale":9,"ilp_address":"test.peersx"} | 200 |
POST /accounts | admin | {"username":"carol","asset_code":"XYZ","asset_scale":2} | 200 |
GET /accounts?limit=0    | admin | | 400 | bad=limit invalid
GET /accounts?limit=1001 | admin | | 400 | bad=limit invalid
GET /accounts?limit=-1   | admin | | 400 | bad=limit invalid
GET /accounts?limit=two  | admin | | 400 | bad=limit invalid
GET /accounts?routing_relation=x | admin | | 400 | bad=routing_relation invalid
GET /accounts?address_prefix=x   | admin | | 400 | bad=address_prefix invalid
GET /accounts?asset_code=        | admin | | 400 | bad=asset_code invalid
GET /accounts?limit=1000 | admin | | 200 | @!link
GET /accounts?limit=2    | admin | | 200 | @link=</accounts?limit=2&after=Bob>*
"#);
    for (query, names) in [
        ("", "alice Bob carol Dave"),
        ("?", "alice Bob carol Dave"),
        ("?limit=2", "alice Bob"),
        ("?limit=2&after=Bob", "carol Dave"),
        ("?after=BOB&limit=1", "carol"),
        ("?after=b%6Fb", "carol Dave"),
        ("?after=zzz", ""),
        ("?asset_code=abc", "alice Bob Dave"),
        ("?asset_code=nothing", ""),
        ("?routing_relation=peer", "alice"),
        ("?address_prefix=test.peers", "alice"),
        ("?address_prefix=test.hub.", "carol Dave"),
        ("?asset_code=ABC&routing_relation=NonRoutingAccount&limit=1", "Bob"),
        ("?colour=red", "alice Bob carol Dave"),
    ] {
        let list = node.api().get(&format!("/accounts{query}"));
        let found: Vec<&str> = list
            .as_array()
            .expect("a bare array")
            .iter()
            .map(|account| account["username"].as_str().expect("a name"))
            .collect();
        assert_eq!(found.join(" "), names, "{query}");
    }
}

/// E5, E7, E12 and L1, and the audit: what packets did to the book.
#[test]
fn balances_and_deletion() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(r#"
GET /accounts/alice/balance | alice | | 200 | ={"balance":0,"asset_code":"ABC","asset_scale":9,"balance_scaled":"0","prepaid_amount":0,"held":0,"pending_settlement":0}
POST /accounts/alice/ilp | alice | prepare test.hub.bob 500 | 200 | ilp=fulfill
GET /accounts/alice/balance | alice | | 200 | balance=-500; balance_scaled="-0.0000005"; held=0
GET /accounts/alice/balance?format=integer | alice: | | 200 | balance=-500
GET /accounts/alice/balance?format=scaled  | admin | | 200 | ={"asset_code":"ABC","balance":-5e-7}
GET /accounts/bob/balance?format=scaled    | bob   | | 200 | ={"asset_code":"ABC","balance":5e-7}
GET /accounts/bob/balance?format=SCALED    | bob   | | 400 | bad=format invalid
GET /accounts/bob/balance?format=          | bob   | | 400 | bad=format invalid
GET /accounts/bob/balance                  | basic bob | | 200 | balance=500; balance_scaled="0.0000005"
GET /ledger/audit | admin | | 200 | adds_up=true; assets=[{"asset_code":"ABC","asset_scale":9,"accounts":2,"balances":0,"position":0,"pending":0,"adds_up":true}]
# Nothing leaves the book by the way.
DELETE /accounts/alice             | admin | | 409 | code=balance_not_zero
DELETE /accounts/alice?force=false | admin | | 409 | code=balance_not_zero
DELETE /accounts/alice?force=yes   | admin | | 400 | bad=force invalid
DELETE /accounts/alice?force=true  | alice | | 401 |
GET /accounts/alice/balance | alice | | 200 | balance=-500
PUT /routes/static | admin | {"test.fixed":"alice","test.other":"bob"} | 200 |
DELETE /accounts/ALICE?force=true  | admin | | 200 | username=alice; written_off=-500; removed_routes=["test.fixed"]
GET /accounts/alice          | admin | | 404 | code=account_not_found
GET /accounts/alice          | alice | | 401 |
POST /accounts/alice/ilp     | alice | prepare test.hub.bob 1 | 401 |
POST /accounts/bob/ilp       | bob | prepare test.hub.alice 1 | 200 | ilp=F02
POST /accounts/bob/ilp       | bob | prepare test.fixed 1 | 200 | ilp=F02
GET /routes | - | | 200 | ={"test.hub.bob":"bob","test.other":"bob"}
GET /ledger/audit | admin | | 200 | adds_up=true; assets=[{"asset_code":"ABC","asset_scale":9,"accounts":1,"balances":500,"position":-500,"pending":0,"adds_up":true}]
DELETE /accounts/alice | admin | | 404 | code=account_not_found
# The name is free, and it is another account.
POST /accounts | admin | {"username":"Alice","asset_code":"ABC","asset_scale":9,"routing_relation":"Parent"} | 200 | username=Alice; tokens_set=[]
GET /accounts/alice/balance | admin | | 200 | balance=0
DELETE /accounts/alice | admin | | 200 | account; removed_routes=[""]; !written_off
DELETE /accounts/bob?force=true | admin | | 200 | written_off=500; removed_routes=["test.other"]
GET /routes | - | | 200 | ={}
GET /accounts | admin | | 200 | =[]
GET /ledger/audit | admin | | 200 | adds_up=true
"#);
}

/// E12, L1, E13, L2: what HTTP itself refuses.
#[test]
fn packets_and_upgrades() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(r#"
POST /accounts/alice/ilp   | alice | prepare test.hub.bob 1 | 200 | ilp=fulfill
POST /accounts/alice/ilp/  | alice | prepare test.hub.bob 1 | 200 | ilp=fulfill
POST /accounts/%61LICE/ilp | alice | prepare test.hub.bob 1 | 200 | ilp=fulfill
POST /ilp/                 | alice%3A | prepare test.hub.bob 1 | 200 | ilp=fulfill
POST /ilp?x=1              | basic alice | prepare test.hub.bob 1 | 200 | ilp=fulfill
# The type of the body is not looked at.
POST /accounts/alice/ilp   | alice, Content-Type: application/octet-stream | prepare test.hub.bob 1 | 200 | ilp=fulfill
POST /accounts/alice/ilp   | alice, Content-Type: text/plain | prepare test.hub.bob 1 | 200 | ilp=fulfill
# What becomes of a packet is always a 200.
POST /accounts/alice/ilp   | alice | prepare test.nowhere 1 | 200 | ilp=F02
POST /accounts/alice/ilp   | alice | prepare test.hub.bob.deeper 1 | 200 | ilp=fulfill
POST /accounts/alice/ilp   | alice | prepare test.hub.bobby 1 | 200 | ilp=F02
PUT /accounts/alice        | admin | {"max_packet_amount":5} | 200 |
POST /accounts/alice/ilp   | alice | prepare test.hub.bob 5 | 200 | ilp=fulfill
POST /accounts/alice/ilp   | alice | prepare test.hub.bob 6 | 200 | ilp=F08
PUT /accounts/alice        | admin | {"min_balance":-12} | 200 |
POST /accounts/alice/ilp   | alice | prepare test.hub.bob 2 | 200 | ilp=T04
PUT /accounts/alice        | admin | {"min_balance":null,"packets_per_minute_limit":0} | 200 |
POST /accounts/alice/ilp   | alice | prepare test.hub.bob 1 | 200 | ilp=T05
PUT /accounts/alice        | admin | {"packets_per_minute_limit":null,"amount_per_minute_limit":0} | 200 |
POST /accounts/alice/ilp   | alice | prepare test.hub.bob 1 | 200 | ilp=T04
PUT /accounts/alice        | admin | {"amount_per_minute_limit":null} | 200 |
# What is no Prepare is none of ILP's outcomes.
POST /accounts/alice/ilp   | alice |       | 400 | code=invalid_packet
POST /accounts/alice/ilp   | alice | {}    | 400 | code=invalid_packet
POST /ilp                  | alice: | hello | 400 | code=invalid_packet
POST /ilp                  | -     | hello | 401 | code=unauthorized
# Nobody learns who is there.
POST /accounts/nobody/ilp  | alice | prepare test.hub.bob 1 | 401 | code=unauthorized
POST /accounts/nobody/ilp  | admin | prepare test.hub.bob 1 | 401 | code=unauthorized
POST /accounts/no-body/ilp | alice | prepare test.hub.bob 1 | 404 | code=not_found
POST /accounts/%ff/ilp     | alice | prepare test.hub.bob 1 | 404 | code=not_found
POST /accounts/a%2Fb/ilp   | alice | prepare test.hub.bob 1 | 404 | code=not_found
POST /ilp                  | Bearer nobody:alice-s3cr3t | prepare test.hub.bob 1 | 401 | code=unauthorized
POST /ilp                  | Bearer ALICE:alice-s3cr3t | prepare test.hub.bob 1 | 200 | ilp=fulfill
# BTP begins with an upgrade.
GET /ilp/btp | -     | | 426 | code=upgrade_required
GET /ilp/btp | admin | | 426 | code=upgrade_required
GET /accounts/alice/ilp/btp   | -     | | 426 | code=upgrade_required
GET /accounts/nobody/ilp/btp  | -     | | 426 | code=upgrade_required
GET /accounts/no-body/ilp/btp | -     | | 404 | code=not_found
GET /ilp/btp | -, Upgrade: websocket | | 426 |
GET /ilp/btp | -, Connection: Upgrade, Upgrade: h2c, Sec-WebSocket-Version: 13, Sec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ== | | 426 |
GET /ilp/btp | -, Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 12, Sec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ== | | 426 | @sec-websocket-version=13
GET /ilp/btp | -, Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 13 | | 426 |
GET /ilp/btp | -, Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 13, Sec-WebSocket-Key: !!! | | 426 |
GET /accounts/no-body/ilp/btp | -, Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 13, Sec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ== | | 404 |
# And needs no credentials for it, nor minds any.
GET /ilp/btp | -, Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 13, Sec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ== | | 101 | @upgrade=websocket; @!sec-websocket-protocol
GET /ilp/btp | Bearer wrong, Connection: Upgrade, Upgrade: WebSocket, Sec-WebSocket-Version: 13, Sec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ==, Sec-WebSocket-Protocol: btp | | 101 | @sec-websocket-protocol=btp
GET /accounts/nobody/ilp/btp | twice, Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 13, Sec-WebSocket-Key: SGVsbG8sIHdvcmxkIQ== | | 101 |
"#);
}

/// E14 to E19 and the call that takes a fixed route back.
#[test]
fn node_rates_and_routes() {
    let node = start_node(&[]);
    let caller = Caller::new(&node);
    caller.check(ALICE_AND_BOB);
    caller.check(r#"
GET / | - | | 200 | status=Ready; ilp_address=test.hub; version?; !reason
GET /?x=1 | Bearer garbage | | 200 | status=Ready
# Rates.
GET /rates | - | | 200 | ={}
PUT /rates | admin | {"xyz":"2.517","ABC":1,"tiny":5e-7} | 200 | ={"ABC":1.0,"TINY":5e-7,"XYZ":2.517}
GET /rates | - | | 200 | ={"ABC":1.0,"TINY":5e-7,"XYZ":2.517}
GET /rates/ | Bearer garbage | | 200 | ={"ABC":1.0,"TINY":5e-7,"XYZ":2.517}
PUT /rates | admin | {"ABC":0}       | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":-1}      | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":"-1"}    | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":null}    | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":true}    | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":[1]}     | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":{"a":1}} | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":"NaN"}   | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":"inf"}   | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":""}      | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":" 1"}    | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":"1,5"}   | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":1e400}   | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":0.11111111111111111111111111111111111111111} | 400 | bad=ABC invalid
PUT /rates | admin | {"":1}          | 400 | bad= invalid
PUT /rates | admin | {"ABC":1,"abc":2} | 400 | bad=abc invalid
PUT /rates | admin | {"ABC":1,"ABC":2} | 400 | bad=ABC invalid
PUT /rates | admin | {"ABC":null,"XYZ":0} | 400 | bad=ABC invalid, XYZ invalid
PUT /rates | admin | []              | 400 | code=json_data
PUT /rates | admin | 7               | 400 | code=json_data
PUT /rates | admin | null            | 400 | code=json_data
PUT /rates | admin |                 | 400 | code=json_eof
PUT /rates | admin | {"ABC":NaN}     | 400 | code=json_syntax
GET /rates | - | | 200 | ={"ABC":1.0,"TINY":5e-7,"XYZ":2.517}
PUT /rates | admin | {"ABC":0.1111111111111111111111111111111111111111} | 200 | ABC=0.1111111111111111; !XYZ
PUT /rates | admin | {} | 200 | ={}
GET /rates | - | | 200 | ={}
# Routes.
GET /routes | - | | 200 | ={"test.hub.alice":"alice","test.hub.bob":"bob"}
PUT /routes/static  | admin | {"test.some-prefix.":"BOB","":"alice","g":"bob"} | 200 | ={"":"alice","g":"bob","test.some-prefix":"bob"}
GET /routes         | Bearer garbage | | 200 | ={"":"alice","g":"bob","test.hub.alice":"alice","test.hub.bob":"bob","test.some-prefix":"bob"}
PUT /routes/static  | admin | {"test.x":"nobody"}       | 404 | code=account_not_found
PUT /routes/static  | admin | {"test.x":"bob","test.y":"nobody"} | 404 | code=account_not_found
PUT /routes/static  | admin | {"test.x":"no-body"}      | 400 |
PUT /routes/static  | admin | {"test.x":""}             | 400 |
PUT /routes/static  | admin | {"test.x":7}              | 400 | bad=test.x invalid
PUT /routes/static  | admin | {"test.x":null}           | 400 | bad=test.x invalid
PUT /routes/static  | admin | {"test.x":{"a":"bob"}}    | 400 | bad=test.x invalid
PUT /routes/static  | admin | {"nowhere":"bob"}         | 400 | bad=nowhere invalid
PUT /routes/static  | admin | {"test..x":"bob"}         | 400 | bad=test..x invalid
PUT /routes/static  | admin | {".":"bob"}               | 400 | bad=. invalid
PUT /routes/static  | admin | {"test.ü":"bob"}          | 400 | bad=test.ü invalid
PUT /routes/static  | admin | {"test.a":"bob","test.a.":"alice"} | 400 | bad=test.a. invalid
PUT /routes/static  | admin | {"test.a":"bob","test.a":"bob"}    | 400 | bad=test.a invalid
PUT /routes/static  | admin | ["bob"]                   | 400 | code=json_data
PUT /routes/static  | admin | {"test.a":"bob"           | 400 | code=json_eof
GET /routes         | - | | 200 | ={"":"alice","g":"bob","test.hub.alice":"alice","test.hub.bob":"bob","test.some-prefix":"bob"}
# Every way for each prefix.
GET /routes?detail=true | admin | | 200 | =[{"prefix":"","candidates":[{"username":"alice","origin":"static","link":"down","in_force":true}]},{"prefix":"g","candidates":[{"username":"bob","origin":"static","link":"up","in_force":true}]},{"prefix":"test.hub.alice","candidates":[{"username":"alice","origin":"account","link":"down","in_force":true}]},{"prefix":"test.hub.bob","candidates":[{"username":"bob","origin":"account","link":"up","in_force":true}]},{"prefix":"test.some-prefix","candidates":[{"username":"bob","origin":"static","link":"up","in_force":true}]}]
GET /routes?detail=yes  | admin | | 400 | bad=detail invalid
GET /routes?detail=     | admin | | 400 | bad=detail invalid
# Where a packet would go, and why.
GET /routes/explain?destination=test.some-prefix.x&from=ALICE | admin | | 200 | outcome=forwarded; from=alice; next_hop=bob; prefix=test.some-prefix; shorter=[{"prefix":"","username":"alice"}]; reasons=["test.some-prefix is the longest prefix that matches","it leads to bob: a static route","it goes to bob over HTTP"]
GET /routes/explain?destination=test.hub.nobody | admin | | 200 | outcome=refused; code=F02; prefix=test.hub; candidates=[]
GET /routes/explain?destination=g.bob           | admin | | 200 | outcome=refused; code=F02; candidates=[]; shorter=[]
GET /routes/explain                             | admin | | 400 | bad=destination missing
GET /routes/explain?destination=                | admin | | 400 | bad=destination invalid
GET /routes/explain?destination=test            | admin | | 400 | bad=destination invalid
GET /routes/explain?destination=test..x         | admin | | 400 | bad=destination invalid
GET /routes/explain?destination=test.%ff        | admin | | 400 | bad=destination invalid
GET /routes/explain?destination=test.x&from=nobody  | admin | | 404 | code=account_not_found
GET /routes/explain?destination=test.x&from=no-body | admin | | 400 | code=bad_request
GET /routes/explain?destination=test.x&from=        | admin | | 400 | code=bad_request
# A fixed route wins over the account's own; the packet goes there.
PUT /routes/static/test.hub.alice | admin | bob | 200 | =bob; @content-type=text/plain*
POST /accounts/alice/ilp | alice | prepare test.hub.alice 1 | 200 | ilp=fulfill
GET /routes         | - | | 200 | ={"":"alice","g":"bob","test.hub.alice":"bob","test.hub.bob":"bob","test.some-prefix":"bob"}
DELETE /routes/static/test.hub.alice | admin | | 200 | =bob; @content-type=text/plain*
DELETE /routes/static/test.hub.alice | admin | | 404 | code=not_found
DELETE /routes/static/test.hub.bob   | admin | | 404 | code=not_found
DELETE /routes/static/g.             | admin | | 200 | =bob; @content-type=text/plain*
DELETE /routes/static/te..st         | admin | | 400 |
PUT /routes/static/te%73t.dec%6Fded  | admin | BOB | 200 | =bob; @content-type=text/plain*
GET /routes         | - | | 200 | ={"":"alice","test.decoded":"bob","test.hub.alice":"alice","test.hub.bob":"bob","test.some-prefix":"bob"}
# The body is a name, with any type, and blanks or quotation marks around it.
PUT /routes/static/test.x | admin, Content-Type: text/plain       |   bob   | 200 | =bob; @content-type=text/plain*
PUT /routes/static/test.x | admin, Content-Type: application/json | "bob" | 200 | =bob; @content-type=text/plain*
PUT /routes/static/test.x | admin, Content-Type: image/png        | "\u0062ob" | 200 | =bob; @content-type=text/plain*
PUT /routes/static/test.x | admin | nobody   | 404 | code=account_not_found
PUT /routes/static/test.x | admin | no-body  | 400 |
PUT /routes/static/test.x | admin |          | 400 |
PUT /routes/static/test.x | admin | "bob     | 400 | code=json_eof
PUT /routes/static/test.x | admin | "bob" x  | 400 |
PUT /routes/static/test.x | admin | ["bob"]  | 400 |
PUT /routes/static/test.x | admin | bob alice | 400 |
PUT /routes/static/nowhere | admin | bob     | 400 |
PUT /routes/static/te%2Fst | admin | bob     | 404 | code=not_found
PUT /routes/static/test/x | admin | bob      | 404 | code=not_found
# Without a prefix it is the other call.
PUT /routes/static/ | admin | {"g":"alice"} | 200 | ={"g":"alice"}
PUT /routes/static/ | admin | bob | 400 | code=json_syntax
GET /routes         | - | | 200 | ={"g":"alice","test.hub.alice":"alice","test.hub.bob":"bob"}
PUT /routes/static  | admin | {} | 200 | ={}
GET /routes         | - | | 200 | ={"test.hub.alice":"alice","test.hub.bob":"bob"}
"#);
}
