//! The description of the API against the API: it names every path and method and nothing else, it is whole in itself,
//! and the answers of a running node are as it says. Examples are checked and calls are made up by Schemathesis, in the
//! versions that `tests/openapi/requirements.txt` pins. Needs `python3` with `venv` (`make test` installs them).

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clearway::api::path::{Method, Resource};
use serde_json::{Value, json};
use support::PATIENCE;
use support::http::request_bytes;
use support::node::{ADMIN_TOKEN, Node, Options};
use support::packet::Prepare;
use support::rates::{RateServer, Reply};

const DESCRIPTION: &str = include_str!("../src/api/openapi.json");

/// One run of Schemathesis takes half a minute; this is for machines that are busy.
const RUN_LIMIT: Duration = Duration::from_secs(150);

/// What Schemathesis makes its calls up from, unless `TEST_SEED` says something else.
const SEED: u64 = 20_261_122;

/// Accounts that Schemathesis may delete.
const SPARES: usize = 40;

fn description() -> Value {
    serde_json::from_str(DESCRIPTION).expect("the description is JSON")
}

/// Writes down which paths name a resource, as the description writes them. A resource that is new does not compile
/// before its paths are here.
macro_rules! paths {
    ($($resource:pat => [$($path:literal),+],)+) => {
        const PATHS: &[&str] = &[$($($path),+),+];

        fn paths_of(resource: &Resource) -> &'static [&'static str] {
            match resource {
                $($resource => &[$($path),+],)+
            }
        }
    };
}

paths! {
    Resource::Node => ["/"],
    Resource::Accounts => ["/accounts"],
    Resource::Account(_) => ["/accounts/{username}"],
    Resource::Settings(_) => ["/accounts/{username}/settings"],
    Resource::Balance(_) => ["/accounts/{username}/balance"],
    Resource::Payments(_) => ["/accounts/{username}/payments"],
    Resource::Quotes(_) => ["/accounts/{username}/quotes"],
    Resource::Settlements(_) => ["/accounts/{username}/settlements"],
    Resource::CancelSettlement(..) => ["/accounts/{username}/settlements/{id}/cancel"],
    Resource::ConfirmSettlement(..) => ["/accounts/{username}/settlements/{id}/confirm"],
    Resource::RetrySettlement(..) => ["/accounts/{username}/settlements/{id}/retry"],
    Resource::Spsp(_) => ["/accounts/{username}/spsp"],
    Resource::Pay => ["/.well-known/pay"],
    Resource::IncomingPayments(_) => ["/accounts/{username}/payments/incoming"],
    Resource::AllIncomingPayments => ["/payments/incoming"],
    Resource::Packets => ["/ilp", "/accounts/{username}/ilp"],
    Resource::Btp => ["/ilp/btp", "/accounts/{username}/ilp/btp"],
    Resource::Routes => ["/routes"],
    Resource::RouteExplanation => ["/routes/explain"],
    Resource::StaticRoutes => ["/routes/static"],
    Resource::StaticRoute(_) => ["/routes/static/{prefix}"],
    Resource::Rates => ["/rates"],
    Resource::RatesConfirm => ["/rates/confirm"],
    Resource::Engines => ["/settlement/engines"],
    Resource::LogLevel => ["/tracing-level"],
    Resource::Audit => ["/ledger/audit"],
    Resource::Backup => ["/ledger/backup"],
    Resource::Description => ["/openapi.json"],
}

/// A path of the description as somebody calls it.
fn target(path: &str) -> String {
    path.replace("{username}", "alice")
        .replace("{id}", "3f0c7a52-0000-4000-8000-2b6c1d9e8f10")
        .replace("{prefix}", "example.some-prefix")
}

fn resource(path: &str) -> Resource {
    let target = target(path);
    let (resource, _) = Resource::parse(&target).unwrap_or_else(|| panic!("{path} names nothing"));
    resource
}

/// The methods that are described for a path, in lower case.
fn described_methods(item: &Value) -> BTreeSet<&str> {
    let members = item.as_object().expect("a path item is an object");
    let methods = members.keys().filter(|name| *name != "parameters");
    methods.map(String::as_str).collect()
}

#[test]
fn every_call_is_described_and_nothing_else() {
    let description = description();
    let paths = description["paths"].as_object().expect("an object of paths");
    let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    assert_eq!(described, PATHS.iter().copied().collect());
    for (path, item) in paths {
        let resource = resource(path);
        assert!(
            paths_of(&resource).contains(&path.as_str()),
            "{path} names {resource:?}"
        );
        let name = |method: &Method| match method {
            Method::Get => "get",
            Method::Post => "post",
            Method::Put => "put",
            Method::Delete => "delete",
        };
        let mut methods: BTreeSet<&str> = resource.methods().iter().map(name).collect();
        // Everywhere else it is as everywhere; here browsers ask.
        if matches!(resource, Resource::Spsp(_) | Resource::Pay) {
            methods.insert("options");
        }
        assert_eq!(described_methods(item), methods, "{path}");
    }
}

#[test]
fn the_version_is_that_of_the_program() {
    assert_eq!(description()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

/// Every object of the description, with the names that lead to it.
fn each_object(value: &Value, at: &str, see: &mut impl FnMut(&str, &serde_json::Map<String, Value>)) {
    match value {
        Value::Object(members) => {
            see(at, members);
            for (name, member) in members {
                each_object(member, &format!("{at}/{name}"), see);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| each_object(item, at, see)),
        _ => {}
    }
}

#[test]
fn references_lead_somewhere_and_every_component_is_used() {
    let description = description();
    let mut used = BTreeSet::new();
    let mut operation_ids = BTreeSet::new();
    let mut linked = BTreeSet::new();
    each_object(&description, "#", &mut |at, members| {
        if let Some(reference) = members.get("$ref") {
            let reference = reference.as_str().expect("a reference is a text");
            let pointer = reference.strip_prefix('#').expect("all is in one file");
            assert!(description.pointer(pointer).is_some(), "{at}: {reference}");
            used.insert(pointer.to_owned());
        }
        if let Some(Value::Array(alternatives)) = members.get("security") {
            let schemes = alternatives.iter().filter_map(Value::as_object).flatten();
            used.extend(schemes.map(|(name, _)| format!("/components/securitySchemes/{name}")));
        }
        if let Some(id) = members.get("operationId") {
            let id = id.as_str().expect("an id is a text").to_owned();
            if members.contains_key("responses") {
                let texts = ["summary", "description"].map(|name| members[name].as_str().unwrap_or_default());
                assert!(texts.iter().all(|text| !text.is_empty()), "{at} says what it does");
                assert!(operation_ids.insert(id), "{at}: the id is there twice");
            } else {
                linked.insert(id);
            }
        }
    });
    assert!(linked.is_subset(&operation_ids), "{linked:?}");
    let kinds = description["components"].as_object().expect("an object of kinds");
    let defined = kinds.iter().flat_map(|(kind, components)| {
        let names = components.as_object().expect("an object of components").keys();
        names.map(move |name| format!("/components/{kind}/{name}"))
    });
    assert_eq!(used, defined.collect());
}

/// A folder below the target folder with Schemathesis and its settings; made once.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openapi");
        std::fs::create_dir_all(&folder).expect("the target folder is writable");
        let copy = |name: &str| {
            let bytes = std::fs::read(source.join(name)).expect("part of the project");
            std::fs::write(folder.join(name), &bytes).expect("the target folder is writable");
            bytes
        };
        copy("hooks.py");
        copy("examples.py");
        copy("schemathesis.toml");
        let requirements = copy("requirements.txt");
        // Written last, so it is there only when all packages are.
        let installed = folder.join("environment/installed-from.txt");
        // An environment does not outlive the Python that it was made with.
        let works = || {
            Command::new(folder.join("environment/bin/python"))
                .arg("--version")
                .output()
        };
        if std::fs::read(&installed).is_ok_and(|from| from == requirements)
            && works().is_ok_and(|output| output.status.success())
        {
            return folder;
        }
        run(Command::new("python3")
            .args(["-m", "venv", "--clear", "environment"])
            .current_dir(&folder));
        run(Command::new("environment/bin/python")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(["--require-hashes", "--no-deps", "--only-binary", ":all:"])
            .args(["--requirement", "requirements.txt"])
            .current_dir(&folder));
        std::fs::write(&installed, &requirements).expect("the target folder is writable");
        folder
    })
}

/// Runs a command that must succeed; what it printed.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}: install Python 3.11 or later, with venv"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{stdout}{stderr}");
    stdout
}

#[test]
fn examples_are_what_their_schemas_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/openapi.json");
    let python = tools().join("environment/bin/python");
    let checked = run(Command::new(python).arg("examples.py").arg(path).current_dir(tools()));
    let checked: usize = checked.trim().parse().expect("a number of examples");
    assert!(checked >= PATHS.len(), "{checked} examples");
}

/// A node with everything that the examples of the description name.
fn prepared_node(more: &[&str]) -> Node {
    let arguments = ["--default_spsp_account", "alice"]
        .into_iter()
        .chain(more.iter().copied());
    let node = Node::start_with(Options {
        shards: 2,
        arguments: arguments.map(str::to_owned).collect(),
        ..Options::default()
    });
    for username in ["alice", "bob", "uplink"] {
        node.add_account(username, &json!({}));
    }
    let dialled = json!({"ilp_over_btp_url": "btp+ws://127.0.0.1:9/", "routing_relation": "Peer", "min_balance": -5});
    node.add_account("hub_two", &dialled);
    for number in 0..SPARES {
        node.add_account(&spare(number), &json!({}));
    }
    node.api().put("/rates", &json!({"ABC": 1, "XYZ": "2.517"}));
    node.api().put(
        "/routes/static",
        &json!({"example.some-prefix": "hub_two", "": "uplink"}),
    );
    node
}

fn spare(number: usize) -> String {
    format!("spare_{number}")
}

/// HEAD and OPTIONS are not described for each path, because they are the same everywhere.
#[test]
fn head_and_options_are_as_the_description_says_of_all_paths() {
    let node = prepared_node(&[]);
    // The lines of the head without its time, and the body.
    let call = |method: &str, path: &str| -> (Vec<String>, Vec<u8>) {
        let mut stream = TcpStream::connect(node.address()).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit is not zero");
        let authorization = format!("Bearer {ADMIN_TOKEN}");
        let headers = [("Authorization", authorization.as_str()), ("Connection", "close")];
        let request = request_bytes(method, &target(path), &headers, b"");
        stream.write_all(&request).expect("the node reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the node answers and closes");
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let body = answer.split_off(end.expect("a head") + 4);
        let head = String::from_utf8(answer).expect("heads are ASCII");
        let lines = head
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("date: "));
        (lines.map(str::to_owned).collect(), body)
    };
    for path in PATHS {
        let resource = resource(path);
        let (options, body) = call("OPTIONS", path);
        assert!(body.is_empty(), "{path}");
        assert_eq!(options[0], "HTTP/1.1 204 No Content", "{path}");
        let allow = format!("allow: {}", resource.allow());
        assert!(options.contains(&allow), "{path}: {options:?}");
        if resource.methods().contains(&Method::Get) {
            let ((get, body), (head, nothing)) = (call("GET", path), call("HEAD", path));
            assert_eq!(head, get, "{path}");
            assert!(!body.is_empty() && nothing.is_empty(), "{path}");
        }
    }
}

/// Who makes the calls of a run.
#[derive(Clone, Copy, Debug)]
enum Role {
    Admin,
    Holder,
    Nobody,
}

/// How often each call was answered with each status.
type Answers = BTreeMap<String, BTreeMap<String, u32>>;

/// Has Schemathesis call the node; panics with what it says if it is not content.
fn schemathesis(node: &Node, role: Role) -> Answers {
    let folder = tools();
    let (name, authorization, examples) = match role {
        Role::Admin => ("admin", Some(format!("Bearer {ADMIN_TOKEN}")), 12),
        Role::Holder => ("holder", Some("Bearer alice:alice-http".to_owned()), 4),
        Role::Nobody => ("nobody", None, 4),
    };
    let seed = std::env::var("TEST_SEED").unwrap_or_else(|_| SEED.to_string());
    println!("calls as {role:?}: TEST_SEED={seed}");
    let spares: Vec<String> = (0..SPARES).map(spare).collect();
    let prepare = Prepare::new("test.hub.bob", 1)
        .expires_in(Duration::from_secs(600))
        .encode();
    let prepare: String = prepare.iter().map(|byte| format!("{byte:02x}")).collect();
    let answers = folder.join(format!("answers-of-{name}.json"));
    let output = folder.join(format!("output-of-{name}.txt"));
    let url = format!("http://{}", node.address());
    let mut command = Command::new("environment/bin/schemathesis");
    command
        .args(["--config-file", "schemathesis.toml", "--no-color", "run"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/openapi.json"))
        .args(["--url", &url])
        .args(["--seed", &seed, "--max-examples", &examples.to_string()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONHASHSEED", "0")
        .env("CLEARWAY_ROLE", name)
        .env("CLEARWAY_NODE", &url)
        .env("CLEARWAY_PREPARE", prepare)
        .env("CLEARWAY_SPARES", spares.join(" "))
        .env("CLEARWAY_COPIES", node.data_dir())
        .env("CLEARWAY_ANSWERS", &answers)
        .current_dir(folder);
    if let Some(value) = authorization {
        command.args(["--header", &format!("Authorization: {value}")]);
    }
    let file = File::create(&output).expect("the target folder is writable");
    let mut child = command
        .stdin(Stdio::null())
        .stderr(file.try_clone().expect("an open file"))
        .stdout(file)
        .spawn()
        .expect("it was installed");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            break status;
        }
        if begun.elapsed() > RUN_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the calls of {role:?} have not ended within {RUN_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = std::fs::read_to_string(&output).unwrap_or_default();
    assert!(status.success(), "as {role:?}:\n{said}");
    let answers = std::fs::read(&answers).expect("the hooks have written it");
    serde_json::from_slice(&answers).expect("an object of numbers")
}

#[test]
fn a_node_answers_as_described() {
    tools();
    // A rate that jumps to and fro: every other poll there is something to confirm.
    let provider = RateServer::start();
    let answers = [r#"{"ABC":1,"HELD":1}"#, r#"{"ABC":1,"HELD":100}"#];
    provider.play("/", Reply::InTurn(answers.map(str::to_owned).into()));
    let node = prepared_node(&[
        "--exchange_rate.provider",
        &provider.url("/"),
        "--exchange_rate.poll_interval",
        "100",
        "--exchange_rate.max_rate_change",
        "0.2",
    ]);
    assert_eq!(node.api().get("/openapi.json"), description());
    let mut all = Answers::new();
    std::thread::scope(|scope| {
        let runs = [Role::Admin, Role::Holder, Role::Nobody];
        let node = &node;
        let runs = runs.map(|role| scope.spawn(move || (role, schemathesis(node, role))));
        for run in runs {
            let (role, answers) = run.join().expect("Schemathesis is content");
            for (call, statuses) in answers {
                println!("{role:?} {call}: {statuses:?}");
                for (status, count) in statuses {
                    *all.entry(call.clone()).or_default().entry(status).or_default() += count;
                }
            }
        }
    });
    for (path, item) in description()["paths"].as_object().expect("an object of paths") {
        for method in described_methods(item) {
            let call = format!("{} {path}", method.to_uppercase());
            let statuses = all.get(&call).unwrap_or_else(|| panic!("{call} was never made"));
            let succeeded = statuses.keys().any(|status| status.starts_with('2') || status == "101");
            assert!(succeeded, "{call} never succeeded: {statuses:?}");
        }
    }
    node.api().audit();
}
