//! Makes the calls of a table and holds every answer against its line.
//!
//! A line is `call | caller | body | status | expectations`. `#` begins a comment.
//!
//! The caller is `admin`, `-` for nobody, `alice` for the bare password of that account, `alice:`, `alice%3A` and
//! `basic alice` for the forms that name it, `twice` for two fields, or else the value of `Authorization` itself. More
//! fields of the request follow behind `, `. In a body `$n` is another number in every call, `$x(7)` is seven times `x`,
//! `$peer` the URL of a peer who fulfills everything, and `prepare ADDRESS AMOUNT` a packet.
//!
//! Expectations stand behind one another with `; `:
//! `name=value` a member and its JSON value, `name?` it is there, `!name` it is not; `@name=value` a field of the head, a
//! `*` at the end for any rest, `@!name` it is not there; `~text` is in the body, `!~text` is not; `=text` is the body;
//! `bad=a missing, b invalid` are all of `invalid-params`; `warns=a b` are the fields of all `warnings`; `account`: it is
//! a whole account object; `ilp=F02` or `ilp=fulfill`: it is such a packet.
//!
//! Whatever the line says, no answer and no line of the log holds a secret, every refusal is a whole problem object, every 401 says how to
//! authenticate, and every 429 and 503 when to come again.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;

use crate::support::http::{Connection, HttpAnswer};
use crate::support::http_peer::HttpPeer;
use crate::support::node::{ADMIN_TOKEN, Node, SECRET_SEED};
use crate::support::packet::Prepare;
use crate::support::rule::Rule;

/// Part of every token that these tests give to an account: where it turns up, a secret has leaked.
pub const TOKEN_MARK: &str = "s3cr3t";

/// The password of an account of these tests.
pub fn password(username: &str) -> String {
    format!("{username}-{TOKEN_MARK}")
}

/// What is in a text that must never be in an answer or in the log, if anything is.
pub fn leaked(text: &str) -> Option<&'static str> {
    [TOKEN_MARK, ADMIN_TOKEN, SECRET_SEED]
        .into_iter()
        .find(|secret| text.contains(secret))
}

/// Panics if what the node has logged holds a secret, or says that the program was wrong.
pub fn check_log(node: &Node) {
    for line in node.log_lines() {
        assert_eq!(leaked(&line), None, "a secret is in the log: {line}");
        let is_our_mistake = ["panicked", "a call failed in the program"]
            .iter()
            .any(|words| line.contains(words));
        assert!(!is_our_mistake, "{line}");
    }
}

pub struct Caller<'a> {
    node: &'a Node,
    /// The port that is called.
    address: SocketAddr,
    peer: HttpPeer,
    calls: Cell<u32>,
}

/// What a call was expected to give, and what it gave instead.
type Fault = String;

impl<'a> Caller<'a> {
    pub fn new(node: &'a Node) -> Self {
        Self {
            node,
            address: node.address(),
            peer: HttpPeer::start(Rule::fulfill()),
            calls: Cell::new(0),
        }
    }

    /// One who calls the port of settlement engines.
    pub fn of_engines(node: &'a Node) -> Self {
        Self {
            address: node.settlement_address(),
            ..Self::new(node)
        }
    }

    /// Checks every line; panics with all that failed.
    pub fn check(&self, table: &str) {
        let faults: Vec<Fault> = lines(table).filter_map(|line| self.check_line(line).err()).collect();
        assert!(
            faults.is_empty(),
            "{} lines failed:\n{}",
            faults.len(),
            faults.join("\n")
        );
        check_log(self.node);
    }

    fn check_line(&self, line: &str) -> Result<(), Fault> {
        let [call, caller, body, status, expectations] = cells(line);
        let (answer, prepare) = self.call(call, caller, body);
        let shown = show(line, &answer);
        check_always(&answer, &shown)?;
        let expected: u16 = status.parse().expect("a status");
        if answer.status != expected {
            return Err(format!("expected {expected}: {shown}"));
        }
        let mut content_type = Some("application/json").filter(|_| expected == 200);
        for expectation in expectations.split("; ").filter(|expectation| !expectation.is_empty()) {
            if expectation.starts_with("@content-type") {
                content_type = None;
            }
            if expectation.starts_with("ilp=") {
                content_type = Some("application/octet-stream");
            }
            let holds = holds(expectation, &answer, prepare.as_ref());
            holds.map_err(|why| format!("{expectation}: {why}: {shown}"))?;
        }
        match content_type {
            Some(expected) if answer.header("content-type") != Some(expected) => {
                Err(format!("is not {expected}: {shown}"))
            }
            _ => Ok(()),
        }
    }

    /// One call on a connection and from an address of its own, so that failed attempts do not add up.
    pub fn call(&self, call: &str, caller: &str, body: &str) -> (HttpAnswer, Option<Prepare>) {
        self.calls.set(self.calls.get() + 1);
        let number = self.calls.get();
        let (method, target) = call.split_once(' ').expect("a method and a target");
        let target = self.expand(target.trim(), number);
        let (caller, more) = caller.split_once(", ").unwrap_or((caller, ""));
        let values = authorization(caller);
        let mut headers: Vec<(&str, &str)> = values.iter().map(|value| ("Authorization", value.as_str())).collect();
        headers.extend(more.split(", ").filter_map(|field| field.split_once(": ")));
        let prepare = body.strip_prefix("prepare ").map(|words| {
            let (destination, amount) = words.split_once(' ').expect("an address and an amount");
            Prepare::new(destination, amount.parse().expect("an amount"))
        });
        let body = match &prepare {
            Some(prepare) => prepare.encode(),
            None => self.expand(body, number).into_bytes(),
        };
        let source = Ipv4Addr::from(0x7f01_0000 + number);
        let answer = Connection::open_from(source, self.address)
            .request(method, &target, &headers, &body)
            .unwrap_or_else(|error| panic!("{call} by {caller}: {error}"));
        (answer, prepare)
    }

    fn expand(&self, text: &str, number: u32) -> String {
        let mut text = text
            .replace("$n", &number.to_string())
            .replace("$peer", &self.peer.url());
        while let Some(at) = text.find("$x(") {
            let end = at + text[at..].find(')').expect("a count in brackets");
            let count = text[at + 3..end].parse().expect("a count");
            text.replace_range(at..=end, &"x".repeat(count));
        }
        text
    }

    /// Checks one call by many callers. A line is `call | body | a status for each column`; `*` is not asked. Returns
    /// how many calls were made.
    pub fn check_matrix(&self, columns: &[&[String]], table: &str) -> u32 {
        let before = self.calls.get();
        let mut faults = Vec::new();
        for line in lines(table) {
            let (call, rest) = line.split_once('|').expect("a call");
            let (body, statuses) = rest.split_once('|').expect("a body");
            let statuses: Vec<&str> = statuses.split_whitespace().collect();
            assert_eq!(statuses.len(), columns.len(), "a status for each column: {line}");
            for (callers, status) in columns.iter().zip(statuses).filter(|(_, status)| *status != "*") {
                for caller in *callers {
                    let (answer, _) = self.call(call.trim(), caller, body.trim());
                    let shown = show(&format!("{} by {caller}", call.trim()), &answer);
                    let checked = check_always(&answer, &shown).and_then(|()| {
                        let matches = answer.status.to_string() == status;
                        matches
                            .then_some(())
                            .ok_or_else(|| format!("expected {status}: {shown}"))
                    });
                    faults.extend(checked.err());
                }
            }
        }
        assert!(
            faults.is_empty(),
            "{} calls failed:\n{}",
            faults.len(),
            faults.join("\n")
        );
        check_log(self.node);
        self.calls.get() - before
    }
}

fn lines(table: &str) -> impl Iterator<Item = &str> {
    table
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn cells<const N: usize>(line: &str) -> [&str; N] {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    cells
        .try_into()
        .unwrap_or_else(|_| panic!("expected {N} cells: {line}"))
}

fn show(line: &str, answer: &HttpAnswer) -> String {
    let body = String::from_utf8_lossy(&answer.body);
    format!(
        "{line:.300}\n     -> {} {body:.600} {:?}",
        answer.status, answer.headers
    )
}

/// The values of `Authorization`.
pub fn authorization(caller: &str) -> Vec<String> {
    let pair = |username: &str, separator: &str| format!("{username}{separator}{}", password(username));
    let is_name = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
    let bearer = if caller == "-" {
        return vec![];
    } else if caller == "twice" {
        return vec![format!("Bearer {ADMIN_TOKEN}"); 2];
    } else if caller == "admin" {
        ADMIN_TOKEN.to_owned()
    } else if is_name(caller) {
        password(caller)
    } else if let Some(name) = caller.strip_suffix(':').filter(|name| is_name(name)) {
        pair(name, ":")
    } else if let Some(name) = caller.strip_suffix("%3A").filter(|name| is_name(name)) {
        pair(name, "%3A")
    } else if let Some(name) = caller.strip_prefix("basic ") {
        return vec![basic(&pair(name, ":"))];
    } else {
        return vec![caller.to_owned()];
    };
    vec![format!("Bearer {bearer}")]
}

/// RFC 7617.
pub fn basic(pair: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut value = "Basic ".to_owned();
    for three in pair.as_bytes().chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            value.push(if digit <= three.len() {
                DIGITS[index as usize].into()
            } else {
                '='
            });
        }
    }
    value
}

/// What holds for every answer.
fn check_always(answer: &HttpAnswer, shown: &str) -> Result<(), Fault> {
    let head = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
    let whole = head.collect::<String>() + &String::from_utf8_lossy(&answer.body);
    if let Some(secret) = leaked(&whole) {
        return Err(format!("{secret} is in the answer to {shown}"));
    }
    let named = match answer.status {
        401 => answer.header("www-authenticate") == Some("Bearer"),
        405 => answer.header("allow").is_some(),
        429 | 503 => answer
            .header("retry-after")
            .is_some_and(|value| value.parse::<u32>().is_ok()),
        _ => true,
    };
    if !named {
        return Err(format!("a field of the head is missing: {shown}"));
    }
    // The answer to HEAD has none; the state of the node is no problem object.
    if answer.status < 400 || answer.body.is_empty() {
        return Ok(());
    }
    if answer.header("content-type") != Some("application/problem+json") {
        return Err(format!("is no problem object: {shown}"));
    }
    let problem = answer.json();
    let text = |name: &str| problem[name].as_str().unwrap_or_default();
    let (uri, title) = kind_of(text("code"));
    let datetime = text("datetime");
    let is_whole = problem["status"] == answer.status
        && (uri.is_empty() || text("type") == uri)
        && (title.is_empty() || text("title") == title)
        && !text("code").is_empty()
        && !text("detail").is_empty()
        && datetime.starts_with("20")
        && datetime.ends_with('Z');
    is_whole
        .then_some(())
        .ok_or_else(|| format!("is no whole problem object: {shown}"))
}

/// The type and the title that belong to a code; empty where they are free.
fn kind_of(code: &str) -> (&'static str, &'static str) {
    const BLANK: &str = "about:blank";
    const EXISTS: &str = "Provided resource already exists";
    match code {
        "bad_request" => (BLANK, "Bad Request"),
        "json_syntax" => (
            "https://errors.interledger.org/http-api/json-syntax",
            "JSON Syntax Error",
        ),
        "json_data" => ("https://errors.interledger.org/http-api/json-data", "JSON Data Error"),
        "json_eof" => (
            "https://errors.interledger.org/http-api/json-eof",
            "JSON Unexpected EOF",
        ),
        "invalid_packet" => (
            "https://errors.interledger.org/http-api/ilp-over-http/invalid-packet",
            "Invalid Packet",
        ),
        "account_not_found" => (
            "https://errors.interledger.org/http-api/accounts/account-not-found",
            "Account Not Found",
        ),
        "unauthorized" => (BLANK, "Unauthorized"),
        "not_found" => (BLANK, "Not Found"),
        "method_not_allowed" => (BLANK, "Method Not Allowed"),
        "duplicate_username" | "second_parent" | "duplicate_address" => (BLANK, EXISTS),
        "balance_not_zero" | "asset_in_use" | "settlement_pending" | "packets_in_flight" => (BLANK, "Conflict"),
        "unsupported_media_type" => (BLANK, "Unsupported Media Type"),
        "upgrade_required" => (BLANK, "Upgrade Required"),
        "too_many_requests" => (BLANK, "Too Many Requests"),
        "not_ready" => (BLANK, "Service Unavailable"),
        _ => ("", ""),
    }
}

fn holds(expectation: &str, answer: &HttpAnswer, prepare: Option<&Prepare>) -> Result<(), String> {
    let body = String::from_utf8_lossy(&answer.body);
    let is = |holds: bool, found: String| holds.then_some(()).ok_or(found);
    if let Some(text) = expectation.strip_prefix("!~") {
        return is(!body.contains(text), "it is there".to_owned());
    }
    if let Some(text) = expectation.strip_prefix('~') {
        return is(body.contains(text), "it is not there".to_owned());
    }
    if let Some(text) = expectation.strip_prefix('=') {
        return is(body == text, "the body is another".to_owned());
    }
    if let Some(name) = expectation.strip_prefix("@!") {
        return is(answer.header(name).is_none(), "it is there".to_owned());
    }
    if let Some(field) = expectation.strip_prefix('@') {
        let (name, value) = field.split_once('=').expect("a name and a value");
        let found = answer.header(name);
        let holds = match value.strip_suffix('*') {
            Some(beginning) => found.is_some_and(|found| found.starts_with(beginning)),
            None => found == Some(value),
        };
        return is(holds, format!("found {found:?}"));
    }
    if let Some(code) = expectation.strip_prefix("ilp=") {
        let (reply, prepare) = (answer.reply(), prepare.expect("a packet was sent"));
        let holds = reply.code() == code && (code != "fulfill" || reply.fulfills(prepare));
        return is(holds, format!("found {reply:?}"));
    }
    let json = answer.json();
    if expectation == "account" {
        return check_account(&json, &body);
    }
    if let Some(faults) = expectation.strip_prefix("bad=") {
        let found = invalid_params(&json).join(", ");
        return is(found == faults, format!("found {found}"));
    }
    if let Some(fields) = expectation.strip_prefix("warns=") {
        let field = |warning: &Value| warning["field"].as_str().expect("a field").to_owned();
        let warnings = json["warnings"]
            .as_array()
            .map_or_else(Vec::new, |list| list.iter().map(field).collect());
        return is(warnings.join(" ") == fields, format!("found {warnings:?}"));
    }
    let member = |name: &str| name.split('.').try_fold(&json, |value, name| value.get(name));
    if let Some(name) = expectation.strip_prefix('!') {
        return is(member(name).is_none(), "it is there".to_owned());
    }
    if let Some(name) = expectation.strip_suffix('?') {
        return is(member(name).is_some(), "it is not there".to_owned());
    }
    let (name, value) = expectation.split_once('=').expect("a member and its value");
    let value: Value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    is(member(name) == Some(&value), format!("found {:?}", member(name)))
}

/// `name type` of each field that was wrong.
pub fn invalid_params(problem: &Value) -> Vec<String> {
    let params = problem["invalid-params"].as_array().cloned().unwrap_or_default();
    let text = |param: &Value, name: &str| param[name].as_str().expect("a text").to_owned();
    params
        .iter()
        .map(|param| format!("{} {}", text(param, "name"), text(param, "type")))
        .collect()
}

/// The members that clients of interledger-rs know, in the order in which they know them.
const ACCOUNT_MEMBERS: [&str; 22] = [
    "id",
    "username",
    "ilp_address",
    "asset_code",
    "asset_scale",
    "max_packet_amount",
    "min_balance",
    "ilp_over_http_url",
    "ilp_over_http_incoming_token",
    "ilp_over_http_outgoing_token",
    "ilp_over_btp_url",
    "ilp_over_btp_incoming_token",
    "ilp_over_btp_outgoing_token",
    "settle_threshold",
    "settle_to",
    "routing_relation",
    "round_trip_time",
    "packets_per_minute_limit",
    "amount_per_minute_limit",
    "settlement_engine_url",
    "max_balance",
    "spread",
];

fn check_account(account: &Value, text: &str) -> Result<(), String> {
    let mut end = 0;
    for name in ACCOUNT_MEMBERS {
        let at = text.find(&format!("\"{name}\":")).filter(|at| *at >= end);
        end = at.ok_or_else(|| format!("{name} is missing or out of order"))?;
        if name.ends_with("_token") && account[name] != "SECRET" {
            return Err(format!("{name} is shown"));
        }
    }
    for added in ["tokens_set", "links", "created_at"] {
        if account.get(added).is_none() {
            return Err(format!("{added} is missing"));
        }
    }
    let id = account["id"].as_str().unwrap_or_default();
    let is_uuid = id.len() == 36 && id.as_bytes()[14] == b'4' && id.matches('-').count() == 4;
    is_uuid
        .then_some(())
        .ok_or_else(|| format!("{id:?} is no UUID of version 4"))
}

/// The instrument before the measurement: every kind of expectation holds where it should and fails where it should.
#[test]
fn expectations_can_fail() {
    let answer = |status: u16, body: &str| HttpAnswer {
        status,
        headers: vec![("content-type".to_owned(), "application/problem+json".to_owned())],
        body: body.into(),
    };
    let body = r#"{"a":{"b":1},"n":null,"t":"x","invalid-params":[{"name":"a","type":"missing"},{"name":"b","type":"invalid"}],"warnings":[{"field":"c","message":"m"}]}"#;
    for (expectation, is_true) in [
        ("a.b=1", true),
        ("a.b=2", false),
        ("a.c=1", false),
        ("t=x", true),
        ("t=y", false),
        ("n=null", true),
        ("a=null", false),
        ("n?", true),
        ("m?", false),
        ("!m", true),
        ("!n", false),
        ("bad=a missing, b invalid", true),
        ("bad=a missing", false),
        ("bad=b invalid, a missing", false),
        ("warns=c", true),
        ("warns=c c", false),
        ("warns=", false),
        ("~\"b\":1", true),
        ("~\"b\":2", false),
        ("!~zzz", true),
        ("!~\"b\"", false),
        ("={}", false),
        ("@content-type=application/problem+json", true),
        ("@content-type=application/json", false),
        ("@content-type=application*", true),
        ("@content-type=text*", false),
        ("@other=*", false),
        ("@!other", true),
        ("@!content-type", false),
        ("account", false),
    ] {
        assert_eq!(
            holds(expectation, &answer(200, body), None).is_ok(),
            is_true,
            "{expectation}"
        );
    }
    let prepare = Prepare::new("test.x", 1);
    let fulfilled = HttpAnswer {
        body: prepare.fulfilled().encode(),
        ..answer(200, "")
    };
    assert!(holds("ilp=fulfill", &fulfilled, Some(&prepare)).is_ok());
    assert!(holds("ilp=fulfill", &fulfilled, Some(&Prepare::new("test.x", 1))).is_err());
    assert!(holds("ilp=F02", &fulfilled, Some(&prepare)).is_err());

    let whole = r#"{"type":"about:blank","title":"Not Found","status":404,"code":"not_found","detail":"d","datetime":"2026-01-01T00:00:00Z"}"#;
    for (status, body, is_true) in [
        (404, whole.to_owned(), true),
        (405, whole.to_owned(), false),
        (401, whole.replace("404", "401"), false),
        (429, whole.replace("404", "429"), false),
        (404, whole.replace("Not Found", "Gone"), false),
        (404, whole.replace("about:blank", "x"), false),
        (404, whole.replace("\"d\"", "\"\""), false),
        (404, whole.replace("not_found", ""), false),
        (404, whole.replace("\"d\"", "\"alice-s3cr3t\""), false),
        (200, ADMIN_TOKEN.to_owned(), false),
        (200, SECRET_SEED.to_owned(), false),
    ] {
        assert_eq!(
            check_always(&answer(status, &body), "").is_ok(),
            is_true,
            "{status} {body}"
        );
    }
    assert_eq!(basic("alice:alice-pw"), "Basic YWxpY2U6YWxpY2UtcHc=");
    assert_eq!(basic("al:x"), "Basic YWw6eA==");
    assert_eq!(basic("ali"), "Basic YWxp");
}
