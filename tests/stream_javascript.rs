//! Money to and from other people's STREAM: `ilp-protocol-stream`, `ilp-protocol-spsp` (which brings an older
//! `ilp-protocol-stream` of its own) and `@interledger/pay` on Node.js, in versions that `tests/js/package-lock.json`
//! pins. Needs `node` and `npm`.

mod support;

use serde_json::{Value, json};
use support::free_port;
use support::http::whole;
use support::javascript::Script;
use support::node::{Node, Options, expect_balance};
use support::stream::{Payer, ask, spsp_url};

/// How a script and the node are linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Http,
    /// The script connects to the node.
    BtpToNode,
    /// The node connects to the script.
    BtpFromNode,
}

/// Makes the account and a script that holds it, linked.
fn join(node: &Node, username: &str, link: Link, more: &Value) -> Script {
    let mut fields = more.clone();
    let port = free_port().to_string();
    let mut script = match link {
        Link::Http => {
            fields["ilp_over_http_url"] = json!(format!("http://127.0.0.1:{port}/"));
            fields["ilp_over_http_outgoing_token"] = json!("what they know");
            node.add_account(username, &fields);
            let url = format!("http://{}/accounts/{username}/ilp", node.address());
            let token = format!("{username}-http");
            Script::ready("stream.js", &["http", &port, &url, "what they know", &token])
        }
        Link::BtpToNode => {
            node.add_account(username, &fields);
            let server = format!(
                "btp+ws://{username}:{username}-btp@{}/accounts/{username}/ilp/btp",
                node.address()
            );
            Script::ready("stream.js", &["btp-client", &server])
        }
        Link::BtpFromNode => {
            fields["ilp_over_btp_url"] = json!(format!("btp+ws://127.0.0.1:{port}"));
            fields["ilp_over_btp_outgoing_token"] = json!("what they know");
            let script = Script::ready("stream.js", &["btp-server", &port, "what they know"]);
            let created = node.add_account(username, &fields);
            assert_eq!(created["warnings"], Value::Null, "the node reaches the script");
            script
        }
    };
    let account = node.api().get(&format!("/accounts/{username}"));
    let told = script.ask(&json!({"command": "account"}));
    for (told, as_set) in [
        (&told["clientAddress"], &account["ilp_address"]),
        (&told["assetCode"], &account["asset_code"]),
        (&told["assetScale"], &account["asset_scale"]),
    ] {
        assert_eq!(told, as_set, "{link:?}: ilp-protocol-ildcp reads what the node says");
    }
    script
}

/// Where a whole ABC is worth two XYZ, of which the node keeps one percent.
fn node_with_rates() -> Node {
    let node = Node::start_with(Options {
        shards: 2,
        arguments: ["--exchange_rate.spread", "0.01"].map(str::to_owned).to_vec(),
        ..Options::default()
    });
    node.api().put("/rates", &json!({"ABC": 3, "XYZ": "1.5"}));
    node
}

/// What becomes of an amount of ABC at scale 9 in XYZ at scale 6 there, if nothing is lost to the rounding of packets.
const fn converted(amount: i128) -> i128 {
    amount * 2 * 99 / 100 / 1_000
}

/// Who pays with `ilp-protocol-stream`: over every link, on one stream and on several, with text beside the money.
#[test]
fn ilp_protocol_stream_pays_an_account() {
    let node = Node::with_shards(2);
    node.add_account("bob", &json!({}));
    let url = spsp_url(&node, "bob");
    let mut expected = 0;
    for (link, username) in [
        (Link::Http, "by_http"),
        (Link::BtpToNode, "by_btp"),
        (Link::BtpFromNode, "by_dialling"),
    ] {
        let mut script = join(&node, username, link, &json!({}));
        let mut sent = 0;
        for (amounts, text) in [
            (vec![1_u64], None),
            (vec![1_000_000], None),
            (vec![9_007_199_254_740_993], None),
            (vec![1, 20, 300, 4_000, 50_000], None),
            (vec![777, 3], Some("what the money is for")),
        ] {
            let texts: Vec<String> = amounts.iter().map(u64::to_string).collect();
            let paid = script.ask(&json!({"command": "pay", "url": url, "amounts": texts, "text": text}));
            let total: u64 = amounts.iter().sum();
            assert_eq!(
                (&paid["sent"], &paid["delivered"], &paid["asset"]),
                (&json!(total.to_string()), &json!(total.to_string()), &json!(["ABC", 9])),
                "{link:?} {amounts:?}: {paid}"
            );
            sent += i128::from(total);
        }
        expected += sent;
        expect_balance(&node.api(), username, -sent);
        expect_balance(&node.api(), "bob", expected);
    }
    node.api().audit();
}

/// A limit on the size of a packet makes many of one payment; all of them arrive, and nothing else.
#[test]
fn many_small_packets_arrive_exactly() {
    let node = Node::with_shards(2);
    node.add_account("bob", &json!({}));
    let url = spsp_url(&node, "bob");
    let mut expected = 0;
    for (link, username) in [(Link::Http, "by_http"), (Link::BtpToNode, "by_btp")] {
        let mut script = join(&node, username, link, &json!({"max_packet_amount": 1_000}));
        let amounts = ["100007", "99990"];
        let paid = script.ask(&json!({"command": "pay", "url": url, "amounts": amounts}));
        assert_eq!(
            (&paid["sent"], &paid["delivered"]),
            (&json!("199997"), &json!("199997")),
            "{paid}"
        );
        assert!(whole(&paid["fulfills"]) >= 200, "at least so many are needed: {paid}");
        assert!(
            whole(&paid["rejects"]["F08"]) >= 1,
            "the payer learned of the limit: {paid}"
        );
        expected += 199_997;
        expect_balance(&node.api(), username, -199_997);
        expect_balance(&node.api(), "bob", expected);
    }
    node.api().audit();
}

#[test]
fn payers_in_another_asset_are_told_the_truth() {
    let node = node_with_rates();
    node.add_account("bob", &json!({"asset_code": "XYZ", "asset_scale": 6}));
    let url = spsp_url(&node, "bob");
    let mut arrived = 0;
    for (link, username) in [(Link::Http, "by_http"), (Link::BtpToNode, "by_btp")] {
        let more = json!({"max_packet_amount": 50_000_000});
        let mut script = join(&node, username, link, &more);
        let amounts = ["1000000000", "7000"];
        let paid = script.ask(&json!({"command": "pay", "url": url, "amounts": amounts}));
        assert_eq!(
            (&paid["sent"], &paid["asset"]),
            (&json!("1000007000"), &json!(["XYZ", 6])),
            "{paid}"
        );
        let delivered = whole(&paid["delivered"]);
        // 3/1.5 of it, less the spread, at a scale of a thousand times less; each packet is rounded down.
        let at_most = converted(1_000_007_000);
        let packets = whole(&paid["fulfills"]);
        assert!(
            (at_most - packets..=at_most).contains(&delivered),
            "{delivered} of {at_most} in {packets} packets"
        );
        arrived += delivered;
        expect_balance(&node.api(), username, -1_000_007_000);
        expect_balance(&node.api(), "bob", arrived);
    }
    node.api().audit();
}

/// `SPSP.pay`: asks for address and secret by itself, and pays with its own, older STREAM.
#[test]
fn ilp_protocol_spsp_pays_a_url() {
    let node = node_with_rates();
    node.add_account("bob", &json!({}));
    node.add_account("carol", &json!({"asset_code": "XYZ", "asset_scale": 6}));
    for (link, username) in [(Link::Http, "by_http"), (Link::BtpToNode, "by_btp")] {
        let mut script = join(&node, username, link, &json!({"max_packet_amount": 100_000}));
        for (receiver, amount) in [("bob", 1_234_567_u64), ("carol", 3_000_000)] {
            let before = (node.api().balance(username), node.api().balance(receiver));
            let url = spsp_url(&node, receiver);
            let paid = script.ask(&json!({"command": "paySpsp", "url": url, "amount": amount.to_string()}));
            assert_eq!(paid["sent"], json!(amount.to_string()), "{paid}");
            expect_balance(&node.api(), username, before.0 - i128::from(amount));
            let earned = node.api().balance(receiver) - before.1;
            match receiver {
                "bob" => assert_eq!(earned, i128::from(amount)),
                _ => {
                    let at_most = converted(i128::from(amount));
                    let packets = whole(&paid["fulfills"]);
                    assert!((at_most - packets..=at_most).contains(&earned), "{earned} of {at_most}");
                }
            }
        }
    }
    node.api().audit();
}

/// Quotes first, then sends; refuses a rate below the prices that it is given.
#[test]
fn interledger_pay_pays_an_account() {
    let node = node_with_rates();
    node.add_account("bob", &json!({"asset_code": "XYZ", "asset_scale": 6}));
    for (link, username) in [(Link::Http, "by_http"), (Link::BtpToNode, "by_btp")] {
        let mut script = join(&node, username, link, &json!({"max_packet_amount": 50_000_000}));
        let before = node.api().balance("bob");
        let paid = script.ask(&json!({
            "command": "payInterledger",
            "url": spsp_url(&node, "bob"),
            "amount": "1.5",
            "prices": {"ABC": 2.96, "XYZ": 1.5},
        }));
        assert_eq!(
            (&paid["failure"], &paid["asset"]),
            (&Value::Null, &json!(["XYZ", 6])),
            "{paid}"
        );
        assert_eq!(paid["sent"], "1.5");
        expect_balance(&node.api(), username, -1_500_000_000);
        let earned = node.api().balance("bob") - before;
        let delivered: f64 = paid["delivered"].as_str().expect("text").parse().expect("a number");
        assert_eq!(
            earned,
            (delivered * 1e6).round() as i128,
            "what the payer was told is what bob has"
        );
        let at_most = converted(1_500_000_000);
        assert!(
            (at_most - whole(&paid["fulfills"])..=at_most).contains(&earned),
            "{earned} of {at_most}"
        );
    }
    node.api().audit();
}

/// A script behind an account that waits to be paid; the second is where a payer asks for address and secret.
fn payee(node: &Node, username: &str, link: Link, more: &Value, receive_max: Option<u64>) -> (Script, String) {
    let mut script = join(node, username, link, more);
    let listening = script.ask(&json!({"command": "listen", "receiveMax": receive_max}));
    let url = listening["url"].as_str().expect("a URL").to_owned();
    (script, url)
}

/// What the script's streams have been paid, and whether each connection was closed.
fn received(script: &mut Script) -> (i128, Vec<bool>) {
    let connections = script.received();
    let money =
        |connection: &Value| -> i128 { connection["money"].as_array().expect("amounts").iter().map(whole).sum() };
    (
        connections.iter().map(money).sum(),
        connections
            .iter()
            .map(|connection| connection["closed"] == true)
            .collect(),
    )
}

const PAYEES: [(Link, &str); 3] = [
    (Link::Http, "by_http"),
    (Link::BtpToNode, "by_btp"),
    (Link::BtpFromNode, "by_dialling"),
];

/// Our sender on the far side of a link pays a server of `ilp-protocol-stream`, over every kind of link of the payee:
/// one packet, many, and into another asset.
#[test]
fn our_sender_pays_ilp_protocol_stream() {
    let node = node_with_rates();
    node.add_account("alice", &json!({"max_packet_amount": 1_000_000}));
    let payer = Payer::over_btp(&node, "alice");
    for (link, username) in PAYEES {
        let (mut script, url) = payee(&node, username, link, &json!({}), None);
        let mut expected = 0;
        for amount in [1, 1_000_000, 123_456_789] {
            let paid = payer.pay(&ask(&url), amount);
            paid.expect_whole(amount);
            assert_eq!(paid.outcome.amounts.delivered, amount, "{link:?}");
            expected += i128::from(amount);
        }
        assert_eq!(received(&mut script).0, expected, "{link:?}");
        expect_balance(&node.api(), username, expected);

        let username = format!("{username}_in_xyz");
        let in_xyz = json!({"asset_code": "XYZ", "asset_scale": 6});
        let (mut script, url) = payee(&node, &username, link, &in_xyz, None);
        let paid = payer.pay(&ask(&url), 50_000_000);
        paid.expect_whole(50_000_000);
        let asset = paid.outcome.asset.expect("the payee says what it has");
        assert_eq!((&*asset.code, asset.scale), ("XYZ", 6));
        let delivered = i128::from(paid.outcome.amounts.delivered);
        let at_most = converted(50_000_000);
        let packets = paid.prepares.len() as i128;
        assert!(
            (at_most - packets..=at_most).contains(&delivered),
            "{delivered} of {at_most}"
        );
        assert_eq!(received(&mut script).0, delivered, "{link:?}");
        expect_balance(&node.api(), &username, delivered);
    }
    node.api().audit();
}

/// A payee that takes no more than it wants: what it has taken counts, the rest stays with the payer.
#[test]
fn ilp_protocol_stream_takes_no_more_than_it_wants() {
    let node = Node::with_shards(2);
    node.add_account("alice", &json!({"max_packet_amount": 100}));
    let mut payer = Payer::over_btp(&node, "alice");
    payer.timeout = Some(std::time::Duration::from_secs(2));
    let (mut script, url) = payee(&node, "bob", Link::BtpToNode, &json!({}), Some(1_000));
    let paid = payer.pay(&ask(&url), 5_000);
    assert!(paid.outcome.result.is_err(), "{:?}", paid.outcome);
    let delivered = paid.outcome.amounts.delivered;
    assert!((1..=1_000).contains(&delivered), "{:?}", paid.outcome);
    assert_eq!(received(&mut script).0, i128::from(delivered));
    expect_balance(&node.api(), "alice", -i128::from(delivered));
    expect_balance(&node.api(), "bob", i128::from(delivered));
    node.api().audit();
}

/// The same through the node's own payments: `POST /accounts/:username/payments`.
mod payments {
    use super::*;
    use support::http::{Api, HttpAnswer};

    /// As the holder of an account, who alone may pay from it.
    fn pay(node: &Node, username: &str, receiver: &str, amount: u64, slippage: Option<f64>) -> HttpAnswer {
        let holder = Api {
            address: node.address(),
            token: format!("{username}:{username}-http"),
        };
        let mut body = json!({"receiver": receiver, "source_amount": amount});
        if let Some(slippage) = slippage {
            body["slippage"] = json!(slippage);
        }
        holder.call("POST", &format!("/accounts/{username}/payments"), Some(&body))
    }

    #[test]
    fn the_node_pays_ilp_protocol_stream() {
        let node = node_with_rates();
        node.add_account("alice", &json!({"max_packet_amount": 1_000_000}));
        let mut spent = 0;
        for (link, username) in PAYEES {
            let (mut script, url) = payee(&node, username, link, &json!({}), None);
            let mut expected = 0;
            for amount in [1, 123_456_789] {
                let answer = pay(&node, "alice", &url, amount, None);
                assert_eq!(
                    answer.status,
                    200,
                    "{link:?}: {}",
                    String::from_utf8_lossy(&answer.body)
                );
                let paid = answer.json();
                for (member, value) in [
                    ("from", json!("test.hub.alice")),
                    ("sent_amount", json!(amount)),
                    ("source_amount", json!(amount)),
                    ("in_flight_amount", json!(0)),
                    ("delivered_amount", json!(amount)),
                    ("delivered_asset_code", json!("ABC")),
                    ("delivered_asset_scale", json!(9)),
                    ("destination_asset_code", json!("ABC")),
                    ("destination_asset_scale", json!(9)),
                ] {
                    assert_eq!(paid[member], value, "{link:?}: {member} in {paid}");
                }
                let to = paid["to"].as_str().expect("an address");
                assert!(to.starts_with(&format!("test.hub.{username}.")), "{to}");
                expected += i128::from(amount);
            }
            assert_eq!(received(&mut script).0, expected, "{link:?}");
            expect_balance(&node.api(), username, expected);
            spent += expected;
            expect_balance(&node.api(), "alice", -spent);

            let username = format!("{username}_in_xyz");
            let in_xyz = json!({"asset_code": "XYZ", "asset_scale": 6});
            let (mut script, url) = payee(&node, &username, link, &in_xyz, None);
            // The node's own spread of one percent, and what rounding takes.
            let answer = pay(&node, "alice", &url, 50_000_000, Some(0.02));
            assert_eq!(
                answer.status,
                200,
                "{link:?}: {}",
                String::from_utf8_lossy(&answer.body)
            );
            let paid = answer.json();
            let delivered = whole(&paid["delivered_amount"]);
            let at_most = converted(50_000_000);
            assert!(
                (at_most - 100..=at_most).contains(&delivered),
                "{delivered} of {at_most}"
            );
            assert_eq!(
                (&paid["destination_asset_code"], &paid["destination_asset_scale"]),
                (&json!("XYZ"), &json!(6))
            );
            assert_eq!(received(&mut script).0, delivered, "{link:?}");
            expect_balance(&node.api(), &username, delivered);
            spent += 50_000_000;
        }
        node.api().audit();
    }

    /// The payee is gone before the payment: nothing moves, and the payer is told why.
    #[test]
    fn a_payee_without_a_link_is_paid_nothing() {
        let node = Node::with_shards(2);
        node.add_account("alice", &json!({}));
        let (script, url) = payee(&node, "bob", Link::BtpToNode, &json!({}), None);
        drop(script);
        let answer = pay(&node, "alice", &url, 10, None);
        assert_eq!(answer.status, 502, "{}", String::from_utf8_lossy(&answer.body));
        expect_balance(&node.api(), "alice", 0);
        expect_balance(&node.api(), "bob", 0);
    }
}
