//! Rates that maintain themselves: providers on this machine play CoinCap, CryptoCompare and any other, well and badly,
//! and packets between two assets show which rate the node believes.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::node::{ADMIN_TOKEN, Node, Options};
use support::packet::Prepare;
use support::party::{Party, Via};
use support::rates::{RateServer, Reply};
use support::rule::Rule;
use support::{eventually, within};

/// The key that must be nowhere.
const KEY: &str = "hush-our-key";
/// How often these nodes poll, in milliseconds.
const POLL_MS: &str = "40";

/// A node that polls, and all that it logs.
fn node(arguments: &[&str]) -> Node {
    let polls = ["--exchange_rate.poll_interval", POLL_MS];
    let arguments = polls.iter().chain(arguments).map(|argument| (*argument).to_owned());
    Node::start_with(Options {
        arguments: arguments.collect(),
        log_lines_max: 10_000,
        ..Options::default()
    })
}

/// A payer in ABC at scale 9 and a receiver in XYZ at scale 6.
struct Pair {
    alice: Party,
    bob: Party,
}

impl Pair {
    fn join(node: &Node) -> Self {
        let in_xyz = json!({"asset_code": "XYZ", "asset_scale": 6});
        Self {
            alice: Party::simple(node, "alice", Via::BtpToNode),
            bob: Party::join(node, "bob", Via::BtpToNode, Rule::fulfill(), &in_xyz),
        }
    }

    /// What arrives of 1.000000000 ABC, or the code of the Reject.
    fn pay(&self) -> String {
        let reply = self.alice.pay(&Prepare::new("test.hub.bob", 1_000_000_000));
        match reply.code() {
            "fulfill" => {
                let arrived = self.bob.rule.received().pop().expect("it was fulfilled there");
                arrived.amount.to_string()
            }
            code => code.to_owned(),
        }
    }

    fn pays(&self, expected: &str) {
        let mut last = String::new();
        let begun = Instant::now();
        while begun.elapsed() < support::PATIENCE {
            last = self.pay();
            if last == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("expected {expected}, got {last}");
    }
}

fn detail(node: &Node) -> Value {
    node.api().get("/rates?detail=true")
}

/// Waits until the detail shows this at a JSON pointer.
fn shows(node: &Node, pointer: &str, expected: &Value) {
    eventually(&format!("{pointer} is {expected}"), || {
        (detail(node).pointer(pointer) == Some(expected)).then_some(())
    });
}

fn lines_with(node: &Node, part: &str) -> usize {
    node.log_lines().iter().filter(|line| line.contains(part)).count()
}

#[test]
fn coin_cap_is_asked_for_both_lists_and_every_digit_counts() {
    let server = RateServer::start();
    let assets = r#"{"data":[{"id":"abc","symbol":"abc","priceUsd":"1.000000007000000000000000000001"},
        {"symbol":"ABC","priceUsd":"9"},{"symbol":"NULL","priceUsd":null},{"symbol":"BOTH","priceUsd":"1"}]}"#;
    let rates = r#"{"data":[{"symbol":"XYZ","rateUsd":"2.517"},{"symbol":"BOTH","rateUsd":"2"},
        {"symbol":"NAN","rateUsd":"NaN"},{"symbol":"ZERO","rateUsd":"0"},{"symbol":"LESS","rateUsd":"-1"}]}"#;
    server.play("/mirror/v2/assets", Reply::json(assets));
    server.play("/mirror/v2/rates", Reply::json(rates));
    let mirror = server.url("/mirror");
    let node = node(&[
        "--exchange_rate.provider",
        "coinCAP",
        "--exchange_rate.provider_url",
        &mirror,
    ]);
    let pair = Pair::join(&node);
    // 1000.000007 / 2.517 in millionths, rounded down.
    pair.pays("397298");
    let exact = "1.000000007000000000000000000001";
    let shown = detail(&node);
    assert_eq!(shown["rates"]["ABC"]["rate"], exact);
    assert_eq!(shown["rates"]["ABC"]["state"], "fresh");
    assert_eq!(shown["rates"]["BOTH"]["rate"], "2");
    assert_eq!(shown["rates"]["USD"]["rate"], "1");
    assert_eq!(shown["providers"][0]["kind"], "CoinCap");
    assert_eq!(shown["providers"][0]["skipped"], 4);
    assert_eq!(
        node.api().get("/rates"),
        json!({"ABC": 1.000000007, "BOTH": 2.0, "USD": 1.0, "XYZ": 2.517})
    );
    eventually("the entries left out are said", || {
        (lines_with(&node, "NULL has no rate above zero") == 1).then_some(())
    });

    // One of the two calls is not enough.
    server.play("/mirror/v2/rates", Reply::Status(500));
    shows(&node, "/providers/0/last_error", &json!("answered 500"));
    pair.pays("397298");
}

#[test]
fn crypto_compare_gets_its_key_and_nobody_else_does() {
    let server = RateServer::start();
    let path = "/data/top/mktcapfull?limit=100&tsym=USD";
    let answer = r#"{"Message":"Success","Data":[{"CoinInfo":{"Name":"ABC"},"RAW":{"USD":{"PRICE":1.1}}},
        {"CoinInfo":{"Name":"XYZ"},"RAW":{"USD":{"PRICE":2.2e0}}},{"CoinInfo":{"Name":"NEW"}}]}"#;
    server.play(path, Reply::json(answer));
    let provider = format!("CryptoCompare:{KEY}");
    let (url, other) = (server.url(""), RateServer::start());
    let node = node(&[
        "--exchange_rate.provider",
        &provider,
        "--exchange_rate.provider_url",
        &url,
    ]);
    let pair = Pair::join(&node);
    pair.pays("500000");
    let head = server.heads().remove(0).to_ascii_lowercase();
    assert!(head.contains(&format!("authorization: apikey {KEY}\r\n")), "{head}");

    // A provider that sends us elsewhere does not send the key along.
    other.play("/elsewhere", Reply::json(&answer.replace("1.1", "4.4")));
    server.play(path, Reply::Redirect(other.url("/elsewhere")));
    pair.pays("2000000");
    let head = other.heads().remove(0);
    assert!(!head.contains(KEY), "{head}");
    server.play(
        path,
        Reply::json(r#"{"Response":"Error","Message":"your key is wrong","Data":{}}"#),
    );
    shows(&node, "/providers/0/state", &json!("stale"));
    let said = format!("{} {}", detail(&node), node.log());
    assert!(!said.contains(KEY) && !said.contains("your key is wrong"), "{said}");
}

#[test]
fn a_poll_that_fails_changes_nothing_whatever_is_wrong() {
    let server = RateServer::start();
    let good = || Reply::json(r#"{"ABC":1,"XYZ":"2"}"#);
    server.play("/rates", good());
    server.play("/round", Reply::Redirect(server.url("/round")));
    let url = server.url("/rates");
    let node = node(&[
        "--exchange_rate.provider",
        &url,
        "--exchange_rate.poll_failure_tolerance",
        "1000000",
    ]);
    let pair = Pair::join(&node);
    pair.pays("500000");
    let malformed = "did not answer in the JSON that is expected of it";
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
    let huge = format!("{{\"ABC\":1,\"X\":\"{}\"}}", "x".repeat(8 << 20));
    for (reply, error) in [
        (Reply::Status(500), "answered 500"),
        (Reply::Status(429), "answered 429"),
        (Reply::Status(204), "answered 204"),
        (Reply::json(""), malformed),
        (Reply::json("{\"ABC\":1,"), malformed),
        (Reply::json("<html>no</html>"), malformed),
        (Reply::json("[1,2]"), malformed),
        (Reply::json(r#"{"ABC":NaN}"#), malformed),
        (Reply::json("{}"), "answered with no rate"),
        (
            Reply::json(r#"{"ABC":null,"XYZ":0,"A":-1,"B":"NaN","C":"inf","D":1e999}"#),
            "answered with no rate",
        ),
        (Reply::json(r#"{"ABC":1,"abc":2}"#), "answered with one code twice"),
        (Reply::Json(huge), "answered with more than 8 MiB"),
        (Reply::Redirect(server.url("/round")), "redirects without an end"),
        (
            Reply::Raw(format!("{head}{{\"ABC\"").into()),
            "did not finish its answer",
        ),
        (Reply::Raw(b"nonsense\r\n\r\n".into()), "did not answer in HTTP"),
    ] {
        server.play("/rates", reply);
        shows(&node, "/providers/0/last_error", &json!(error));
        let shown = detail(&node);
        assert_eq!(shown["providers"][0]["state"], "stale", "{error}");
        assert_eq!(shown["rates"]["XYZ"]["state"], "stale", "{error}");
        assert_eq!(pair.pay(), "500000", "{error}");
        assert_eq!(node.api().get("/")["rates"], Value::Null, "it is tolerated");
        server.play("/rates", good());
        shows(&node, "/providers/0/state", &json!("fresh"));
    }
    assert_eq!(node.api().get("/rates"), json!({"ABC": 1.0, "XYZ": 2.0}));
}

#[test]
fn a_provider_that_does_not_answer_is_given_up_after_ten_seconds() {
    let server = RateServer::start();
    server.play("/rates", Reply::Silence);
    let url = server.url("/rates");
    let mut node = node(&[
        "--exchange_rate.provider",
        &url,
        "--exchange_rate.poll_failure_tolerance",
        "0",
    ]);
    node.api().put("/rates", &json!({"ABC": 1, "XYZ": 2}));
    let pair = Pair::join(&node);
    assert_eq!(pair.pay(), "500000", "nobody waits for the provider");
    assert_eq!(detail(&node)["providers"][0]["state"], "waiting");
    within(Duration::from_secs(15), "the poll has failed", || {
        (detail(&node)["providers"][0]["last_error"] == "did not answer within 10 s").then_some(())
    });
    assert_eq!(pair.pay(), "500000", "the operator has set this, not the provider");
    assert_eq!(
        node.api().get("/")["rates"],
        json!({"failed": ["provider"], "dropped": 0, "held": 0})
    );
    // A poll is under way again, and the node does not wait for it.
    let begun = Instant::now();
    node.terminate();
    assert!(node.exit_status_within(Duration::from_secs(5)).success());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn beyond_the_tolerance_rates_are_dropped_until_the_provider_is_back() {
    let server = RateServer::start();
    let url = server.url("/rates");
    let mut node = node(&[
        "--exchange_rate.provider",
        &url,
        "--exchange_rate.poll_failure_tolerance",
        "2",
    ]);
    let pair = Pair::join(&node);
    assert_eq!(pair.pay(), "T00", "no rate is known");
    shows(&node, "/providers/0/state", &json!("failed"));
    server.play("/rates", Reply::json(r#"{"ABC":1,"XYZ":2}"#));
    pair.pays("500000");
    // It takes the place of what the operator sets, too.
    node.api().put("/rates", &json!({"ABC": 1, "XYZ": 4, "OWN": 1}));
    pair.pays("500000");
    shows(&node, "/rates/OWN/state", &json!("dropped"));

    server.play("/rates", Reply::Status(503));
    pair.pays("T00");
    let health = node.api().get("/");
    assert_eq!(health["status"], "Ready");
    assert_eq!(
        health["rates"],
        json!({"failed": ["provider"], "dropped": 2, "held": 0})
    );
    assert_eq!(node.api().get("/rates"), json!({}));
    let shown = detail(&node);
    assert_eq!(shown["providers"][0]["state"], "failed");
    assert_eq!(shown["rates"]["XYZ"]["state"], "dropped");
    assert_eq!(shown["rates"]["XYZ"]["rate"], "2");
    assert!(shown["rates"]["XYZ"]["age_ms"].is_u64());
    // Many failures later there is still one line about it.
    eventually("ten more polls", || {
        (detail(&node)["providers"][0]["failures"].as_u64() > Some(12)).then_some(())
    });
    assert_eq!(
        lines_with(&node, "its rates are dropped"),
        2,
        "once at the start, once now"
    );

    // Nor does a restart bring them back.
    node.terminate();
    assert!(node.exit_status_within(support::PATIENCE).success());
    node.run();
    assert_eq!(node.api().get("/rates"), json!({}));
    server.play("/rates", Reply::json(r#"{"ABC":1,"XYZ":"2.5"}"#));
    shows(&node, "/rates/XYZ/state", &json!("fresh"));
    assert_eq!(node.api().get("/rates"), json!({"ABC": 1.0, "XYZ": 2.5}));
    assert_eq!(node.api().get("/")["rates"], Value::Null);
    let pair = Pair {
        alice: reconnected(&node, "alice"),
        bob: reconnected(&node, "bob"),
    };
    pair.pays("400000");
}

/// The holder of an account that is there already.
fn reconnected(node: &Node, username: &str) -> Party {
    node.api()
        .call("DELETE", &format!("/accounts/{username}?force=true"), None);
    let more = match username {
        "bob" => json!({"asset_code": "XYZ", "asset_scale": 6}),
        _ => json!({}),
    };
    Party::join(node, username, Via::BtpToNode, Rule::fulfill(), &more)
}

fn confirm(node: &Node, body: &Value) -> (u16, Value) {
    let answer = node.api().call("POST", "/rates/confirm", Some(body));
    (answer.status, answer.json())
}

#[test]
fn an_inverted_rate_is_held_until_it_is_confirmed() {
    let server = RateServer::start();
    let say = |xyz: &str| server.play("/rates", Reply::Json(format!(r#"{{"ABC":1,"XYZ":{xyz}}}"#)));
    say("4");
    let url = server.url("/rates");
    let mut node = node(&[
        "--exchange_rate.provider",
        &url,
        "--exchange_rate.max_rate_change",
        "0.2",
    ]);
    let pair = Pair::join(&node);
    pair.pays("250000");
    say("4.8");
    pair.pays("208333");
    say("4");
    pair.pays("250000");
    // 1/4 for 4.
    say("0.25");
    pair.pays("T00");
    let held = &detail(&node)["rates"]["XYZ"];
    assert_eq!((&held["state"], &held["rate"]), (&json!("held"), &json!("4")));
    assert_eq!(
        (&held["held"]["rate"], &held["held"]["reason"]),
        (&json!("0.25"), &json!("step"))
    );
    assert_eq!(node.api().get("/rates"), json!({"ABC": 1.0}));
    assert_eq!(
        node.api().get("/")["rates"],
        json!({"failed": [], "dropped": 0, "held": 1})
    );
    assert_eq!(
        pair.alice.pay(&Prepare::new("test.hub.alice", 5)).code(),
        "fulfill",
        "no rate is needed"
    );

    // The provider comes to its senses, and errs again.
    say("4");
    pair.pays("250000");
    say("0.25");
    pair.pays("T00");
    // A restart is no confirmation.
    node.terminate();
    assert!(node.exit_status_within(support::PATIENCE).success());
    node.run();
    shows(&node, "/rates/XYZ/held/rate", &json!("0.25"));
    assert_eq!(node.api().get("/rates"), json!({"ABC": 1.0}));

    for (body, status, code) in [
        (json!({"XYZ": "4"}), 409, "rate_moved"),
        (json!(["XYZ", "ABC"]), 409, "rate_not_held"),
        (json!(["XYZ", "OTHER"]), 404, "not_found"),
        (json!([]), 400, "json_data"),
    ] {
        let (found, answer) = confirm(&node, &body);
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{answer}");
    }
    shows(&node, "/rates/XYZ/state", &json!("held"));
    assert_eq!(
        confirm(&node, &json!({"xyz": 0.26})),
        (200, json!({"ABC": 1.0, "XYZ": 0.25}))
    );
    shows(&node, "/rates/XYZ/state", &json!("fresh"));
    let pair = Pair {
        alice: reconnected(&node, "alice"),
        bob: reconnected(&node, "bob"),
    };
    pair.pays("4000000");

    // The command line does the same.
    say("8");
    pair.pays("T00");
    let run = |line: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_clearway"))
            .args(line.split(' '))
            .env("ILP_CLI_NODE_URL", format!("http://{}", node.address()))
            .env("ILP_CLI_API_AUTH", ADMIN_TOKEN)
            .output()
            .expect("the binary can be run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, listed, said) = run("rates list --detail");
    assert_eq!(code, Some(0), "{said}");
    let line = listed
        .lines()
        .find(|line| line.starts_with("XYZ"))
        .expect("a line of XYZ");
    assert!(line.starts_with("XYZ    0.25  held   provider"), "{listed}");
    assert!(line.contains("rate 8") && line.contains("reason step"), "{listed}");
    assert!(
        listed.contains("LAST SUCCESS") && listed.contains("max rate change  0.2"),
        "{listed}"
    );
    let (code, _, said) = run("rates confirm XYZ=4");
    assert!(
        code == Some(1) && said.contains("the rate that is held of XYZ is 8 by now"),
        "{said}"
    );
    let (code, listed, said) = run("rates confirm XYZ");
    assert!(code == Some(0) && listed.contains("XYZ    8.0"), "{listed}{said}");
    pair.pays("125000");

    // What the operator sets is confirmed.
    say("1");
    pair.pays("T00");
    node.api().put("/rates", &json!({"ABC": 1, "XYZ": 1}));
    pair.pays("1000000");
    shows(&node, "/rates/XYZ/source", &json!("provider"));
    shows(&node, "/rates/XYZ/state", &json!("fresh"));
}

#[test]
fn the_second_provider_steps_in_and_contradicts() {
    let server = RateServer::start();
    let say = |path: &str, rates: &str| server.play(path, Reply::json(rates));
    say("/one", r#"{"ABC":1}"#);
    say("/two", r#"{"ABC":1.1,"XYZ":2}"#);
    let (one, two) = (server.url("/one"), server.url("/two"));
    let node = node(&[
        "--exchange_rate.provider",
        &one,
        "--exchange_rate.second_provider",
        &two,
        "--exchange_rate.max_rate_change",
        "0.2",
        "--exchange_rate.poll_failure_tolerance",
        "1000000",
    ]);
    let pair = Pair::join(&node);
    pair.pays("500000");
    let shown = detail(&node);
    assert_eq!(shown["rates"]["ABC"]["source"], "provider");
    assert_eq!(shown["rates"]["XYZ"]["source"], "second_provider");
    // The first fails: the second counts also for what both give.
    server.play("/one", Reply::Status(500));
    pair.pays("550000");
    shows(&node, "/rates/ABC/source", &json!("second_provider"));
    say("/one", r#"{"ABC":1}"#);
    pair.pays("500000");
    // One of them has it upside down: nobody knows which.
    say("/one", r#"{"ABC":1,"XYZ":0.5}"#);
    pair.pays("T00");
    let held = &detail(&node)["rates"]["XYZ"]["held"];
    assert_eq!(held["reason"], "disagreement");
    assert_eq!((&held["rate"], &held["other_rate"]), (&json!("0.5"), &json!("2")));
    // The operator does, and it stays so.
    assert_eq!(confirm(&node, &json!({"XYZ": "2"})).0, 200);
    pair.pays("500000");
    say("/two", r#"{"ABC":1,"XYZ":2.2}"#);
    pair.pays("454545");
    // Until they agree and differ again.
    say("/one", r#"{"ABC":1,"XYZ":2}"#);
    pair.pays("500000");
    say("/two", r#"{"ABC":1,"XYZ":0.5}"#);
    pair.pays("T00");
    assert_eq!(confirm(&node, &json!(["XYZ"])).0, 200);
    pair.pays("500000");
}
