use std::collections::BTreeSet;

use super::*;

fn without_warnings(config: &Config) -> Config {
    Config {
        warnings: vec![],
        ..config.clone()
    }
}

/// What comes of command line, environment (`NAME=VALUE`, one per line), standard input and a file.
fn run(arguments: &str, environment: &str, stdin: &str, file: &str) -> Result<Command, ConfigError> {
    let program = std::iter::once("clearway");
    read(Sources {
        arguments: program.chain(arguments.split_whitespace()).map(str::to_owned).collect(),
        environment: environment
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        read_stdin: &mut |_| Ok((!stdin.is_empty()).then(|| stdin.to_owned())),
        read_file: &|path| {
            if file.is_empty() {
                Err(format!("{path} is missing"))
            } else {
                Ok(file.to_owned())
            }
        },
    })
}

fn config(arguments: &str, environment: &str, stdin: &str, file: &str) -> Config {
    match run(arguments, environment, stdin, file) {
        Ok(Command::Run(config)) => *config,
        other => panic!("{arguments}: {other:?}"),
    }
}

#[test]
fn defaults_in_the_help_text_are_the_defaults() {
    for spec in OPTIONS {
        // Some defaults are words: they depend on the machine, or are made at the first start.
        if !spec.default.contains(' ') {
            let mut config = Config::default();
            (spec.set)(&mut config, spec.default).unwrap();
            assert!(config == Config::default(), "{}", spec.name);
        }
    }
    assert_eq!(config("", "", "", ""), Config::default());
}

#[test]
fn a_check_says_where_each_value_comes_from_and_no_secret() {
    let seed = "ab".repeat(32);
    let arguments = format!("check --json --shards=3 --secret-seed {seed} x.yaml");
    let environment = "ILP_SHARDS=4\nILP_ECHO=false\nILP_ADMIN_AUTH_TOKEN=swordfish\nRUST_LOG=debug";
    let check = match run(&arguments, environment, "", "data_dir: /somewhere") {
        Ok(Command::Check(check)) => check,
        other => panic!("{other:?}"),
    };
    assert!(check.json && check.config.shards == 3 && !check.config.echo);
    let names: Vec<_> = check.settings.iter().map(|setting| setting.name).collect();
    let expected: Vec<_> = OPTIONS.iter().map(|spec| spec.name).chain(["RUST_LOG"]).collect();
    assert_eq!(names, expected);
    for (name, value, source) in [
        ("shards", Some("3"), "the command line"),
        ("echo", Some("false"), "the environment (ILP_ECHO)"),
        ("data_dir", Some("/somewhere"), "the file x.yaml"),
        ("secret_seed", None, "the command line"),
        ("admin_auth_token", None, "the environment (ILP_ADMIN_AUTH_TOKEN)"),
        ("max_hold_time_ms", Some("30000"), "-"),
        ("RUST_LOG", Some("debug"), "the environment (RUST_LOG)"),
    ] {
        let setting = check.settings.iter().find(|setting| setting.name == name).unwrap();
        let found = setting.source.as_ref().map_or("-".to_owned(), ToString::to_string);
        assert_eq!((setting.value.as_deref(), &*found), (value, source), "{name}");
    }
    let shown = format!("{check:?}");
    assert!(!shown.contains(&seed) && !shown.contains("swordfish"), "{shown}");
    // What cannot be used is refused in the words of a start.
    for arguments in [
        "--shards many",
        "--no_such_option 1",
        "a.yaml b.yaml",
        "--secret_seed 12",
    ] {
        // Only the line that shows the usage is another.
        let refused = |arguments: &str| {
            let message = run(arguments, "", "", "").unwrap_err().to_string();
            message.replace("clearway check", "clearway")
        };
        assert_eq!(refused(&format!("check {arguments}")), refused(arguments));
    }
    // Without the word, the option is unknown; with it, help is about the check.
    assert!(matches!(run("--json", "", "", ""), Err(ConfigError::Usage(_))));
    let Ok(Command::Print(help)) = run("check --help", "", "", "") else {
        panic!("help is printed");
    };
    assert!(
        help.contains("clearway check [OPTIONS]") && help.contains("--json"),
        "{help}"
    );
}

#[test]
fn names_of_secrets() {
    for (name, secret) in [
        ("secret_seed", true),
        ("admin_auth_token", true),
        ("settlement_api_token", true),
        ("exchange_rate.provider", true),
        ("exchange_rate.provider.cryptocompare.key", true),
        ("http_bind_address", false),
        ("exchange_rate.spread", false),
    ] {
        assert_eq!(is_secret(name), secret, "{name}");
    }
}

#[test]
fn every_place_sets_every_option() {
    let seed = "ab".repeat(32);
    let mut tried = BTreeSet::new();
    for (name, value) in [
        ("ilp_address", "g.hub"),
        ("secret_seed", &*seed),
        ("admin_auth_token", "token"),
        ("http_bind_address", "0.0.0.0:1"),
        ("settlement_api_bind_address", "[::1]:2"),
        ("data_dir", "/somewhere"),
        ("shards", "3"),
        ("durability", "relaxed"),
        ("flush_interval_ms", "50"),
        ("reflect_payments", "false"),
        ("echo", "false"),
        ("min_message_window_ms", "500"),
        ("max_hold_time_ms", "20000"),
        ("settlement_api_token", "engine-token"),
        ("default_spsp_account", "alice"),
        ("default_spsp_account", "5f0c7a52-0000-4000-8000-2b6c1d9e8f10"),
        ("api_balance_format", "scaled"),
        ("api_open_reads", "false"),
        ("allow_private_urls", "false"),
        ("exchange_rate.provider", "CoinCap"),
        ("exchange_rate.provider", "CryptoCompare:key"),
        ("exchange_rate.provider", "https://rates.example/v1?base=USD"),
        ("exchange_rate.provider_url", "http://mirror.example/rates"),
        ("exchange_rate.second_provider", "CryptoCompare:key"),
        ("exchange_rate.second_provider_url", "https://mirror.example/"),
        ("exchange_rate.poll_interval", "1000"),
        ("exchange_rate.poll_failure_tolerance", "0"),
        ("exchange_rate.max_rate_change", "0.2"),
        ("exchange_rate.spread", "0.01"),
        ("route_broadcast_interval", "1000"),
        ("accept_routes_from_children", "true"),
        ("max_routes_per_neighbour", "5000"),
        ("settle_every", "60"),
        ("settlement_key_retention", "172800"),
        ("prometheus.bind_address", "127.0.0.1:9654"),
        ("prometheus.histogram_window", "60000"),
        ("prometheus.histogram_granularity", "1000"),
    ] {
        tried.insert(name);
        // What it cannot be without.
        let beside = match name {
            "exchange_rate.provider_url" | "exchange_rate.second_provider" => "--exchange_rate.provider CoinCap",
            "exchange_rate.second_provider_url" => {
                "--exchange_rate.provider CoinCap --exchange_rate.second_provider CoinCap"
            }
            _ => "",
        };
        let expected = config(&format!("{beside} --{name} {value}"), "", "", "");
        assert!(expected != config(beside, "", "", ""), "{name}");
        let hyphens = name.replace('_', "-");
        let upper = name.to_uppercase().replace('.', "__");
        let lower = name.replace('.', "__");
        // The same in a table, for a name in one.
        let (outer, inner) = name.split_once('.').unwrap_or(("", name));
        let nested = match outer {
            "" => format!("{inner}: \"{value}\""),
            _ => format!("{outer}:\n  {inner}: \"{value}\""),
        };
        let toml = match outer {
            "" => format!("{inner} = \"{value}\""),
            _ => format!("[{outer}]\n{inner} = \"{value}\""),
        };
        let document = |text: &str| format!("{{\"{name}\": \"{text}\"}}");
        for (arguments, environment, stdin, file) in [
            (format!("--{name}={value}"), String::new(), String::new(), String::new()),
            (
                format!("--{hyphens} {value}"),
                String::new(),
                String::new(),
                String::new(),
            ),
            (
                String::new(),
                format!("ILP_{upper}={value}"),
                String::new(),
                String::new(),
            ),
            (
                String::new(),
                format!("ilp_{lower}={value}"),
                String::new(),
                String::new(),
            ),
            (String::new(), String::new(), document(value), String::new()),
            (
                String::new(),
                String::new(),
                format!("{name}: \"{value}\""),
                String::new(),
            ),
            ("x.json".into(), String::new(), String::new(), document(value)),
            (
                "x.yaml".into(),
                String::new(),
                String::new(),
                format!("{name}: \"{value}\""),
            ),
            (
                "x.yml".into(),
                String::new(),
                String::new(),
                format!("{hyphens}: '{value}'"),
            ),
            ("x.toml".into(), String::new(), String::new(), toml.clone()),
            ("x.conf".into(), String::new(), String::new(), toml),
            ("x".into(), String::new(), String::new(), format!("{name}: \"{value}\"")),
            ("x.yaml".into(), String::new(), String::new(), nested),
        ] {
            let found = config(&format!("{beside} {arguments}"), &environment, &stdin, &file);
            let places = format!("{arguments} {environment} {stdin} {file}");
            assert!(without_warnings(&found) == without_warnings(&expected), "{places}");
            let not_yet = WITHOUT_EFFECT_YET.contains(&name);
            assert_eq!(
                found.warnings.len(),
                usize::from(not_yet),
                "{places}: {:?}",
                found.warnings
            );
            assert!(
                found
                    .warnings
                    .iter()
                    .all(|warning| warning.starts_with(&format!("{name}: ")))
            );
        }
    }
    assert_eq!(tried, OPTIONS.iter().map(|spec| spec.name).collect());
}

#[test]
fn the_first_source_that_names_an_option_wins() {
    let file = "shards: 1\necho: false";
    for (arguments, environment, stdin, shards, warning) in [
        ("x.yaml", "", "", 1, ""),
        (
            "x.yaml",
            "",
            "shards: 2",
            2,
            "shards: standard input and the file x.yaml differ; standard input wins",
        ),
        (
            "x.yaml",
            "ILP_SHARDS=3",
            "shards: 2",
            3,
            "shards: the environment (ILP_SHARDS) and standard input differ",
        ),
        (
            "--shards 4 x.yaml",
            "ILP_SHARDS=3",
            "",
            4,
            "shards: the command line and the environment",
        ),
        ("x.yaml --shards 1", "", "", 1, ""),
    ] {
        let found = config(arguments, environment, stdin, file);
        assert_eq!(found.shards, shards, "{arguments} {environment} {stdin}");
        assert!(!found.echo, "what only the file says stays");
        let first = found.warnings.first().map_or("", String::as_str);
        assert!(
            first.starts_with(warning) && first.is_empty() == warning.is_empty(),
            "{first}"
        );
    }
    // Members of a table come from several sources; two texts of one value do not differ.
    let found = config(
        "x.yaml --exchange_rate.poll_interval 2000",
        "ILP_EXCHANGE_RATE__SPREAD=0.1\nILP_ECHO=FALSE",
        "{\"exchange_rate\":{\"spread\":0.10,\"poll_interval\":\"2000\"}}",
        "echo: false\nexchange_rate: {poll_failure_tolerance: 9, spread: 0.2}",
    );
    assert_eq!(found.exchange_rate.spread.to_string(), "0.1");
    assert_eq!(found.exchange_rate.poll_interval, Duration::from_secs(2));
    assert_eq!(found.exchange_rate.poll_failure_tolerance, 9);
    let differences: Vec<&str> = found
        .warnings
        .iter()
        .map(String::as_str)
        .filter(|warning| warning.contains("differ"))
        .collect();
    assert_eq!(
        differences,
        [
            "exchange_rate.spread: the environment (ILP_EXCHANGE_RATE__SPREAD) and the file x.yaml differ; \
          the environment (ILP_EXCHANGE_RATE__SPREAD) wins"
        ]
    );
}

#[test]
fn a_provider_has_many_shapes() {
    let compare = |key: &str| {
        Some(RateProvider::CryptoCompare {
            key: key.to_owned().into(),
        })
    };
    for (arguments, environment, file, provider) in [
        (
            "",
            "",
            "exchange_rate: {provider: CoinCap}",
            Some(RateProvider::CoinCap),
        ),
        (
            "",
            "",
            "exchange_rate: {provider: coincap}",
            Some(RateProvider::CoinCap),
        ),
        (
            "",
            "ILP_EXCHANGE_RATE__PROVIDER=COINCAP",
            "",
            Some(RateProvider::CoinCap),
        ),
        ("--exchange-rate.provider coinCap", "", "", Some(RateProvider::CoinCap)),
        ("--exchange_rate_provider CoinCap", "", "", Some(RateProvider::CoinCap)),
        (
            "",
            "",
            "exchange_rate:\n  provider:\n    CryptoCompare: k",
            compare("k"),
        ),
        ("", "", "exchange_rate.provider:\n  CryptoCompare: k", compare("k")),
        ("", "", "exchange_rate.provider.cryptocompare: 123", compare("123")),
        ("", "", "exchange_rate_provider: {cryptoCompare: k}", compare("k")),
        (
            "",
            "",
            "exchange_rate: {provider: 'CryptoCompare: k:k'}",
            compare("k:k"),
        ),
        ("", "ILP_EXCHANGE_RATE__PROVIDER__CRYPTOCOMPARE=k", "", compare("k")),
        ("", "ILP_EXCHANGE_RATE_PROVIDER=cryptocompare:k", "", compare("k")),
        ("--exchange_rate.provider.CryptoCompare k", "", "", compare("k")),
        ("--exchange-rate.provider.cryptocompare=k", "", "", compare("k")),
        ("", "", "exchange_rate: {provider: null}", None),
        ("", "", "exchange_rate: null", None),
    ] {
        let arguments = format!("x.yaml {arguments}");
        let found = config(&arguments, environment, "", &format!("{file}\n"));
        assert_eq!(
            found.exchange_rate.provider, provider,
            "{arguments} {environment} {file}"
        );
    }
}

#[test]
fn documents_may_have_numbers_for_text_and_text_for_numbers() {
    let found = config(
        "x.yaml",
        "",
        "",
        "admin_auth_token: 12345\nilp_address: null\nshards: \"3\"\ndefault_spsp_account: 100\n\
         exchange_rate: {spread: \"0.01\", poll_interval: 1_000}\necho: \"False\"\ndata_dir: 7\n"
            .replace("1_000", "0x3E8")
            .as_str(),
    );
    assert_eq!(found.admin_auth_token.as_deref(), Some("12345"));
    assert_eq!(&*found.ilp_address, "local.host");
    assert_eq!((found.shards, found.echo), (3, false));
    assert_eq!(found.default_spsp_account, Some(AccountName::Username("100".into())));
    assert_eq!(found.exchange_rate.spread.to_string(), "0.01");
    assert_eq!(found.exchange_rate.poll_interval, Duration::from_secs(1));
    assert_eq!(found.data_dir.to_str(), Some("7"));
    for file in ["", "# nothing", "---", "null", "{}", "\u{feff}"] {
        assert_eq!(
            config("x.yaml", "", "", &format!("{file}\n")),
            Config::default(),
            "{file}"
        );
    }
    for (file, spread) in [
        ("0.50", "0.5"),
        ("1e-7", "1e-7"),
        ("0.123456789012345", "0.123456789012345"),
    ] {
        let found = config("x.yaml", "", "", &format!("exchange_rate: {{spread: {file}}}"));
        assert_eq!(found.exchange_rate.spread.to_string(), spread);
    }
}

#[test]
fn payments_to_private_addresses_are_for_nodes_that_nobody_else_reaches() {
    for (arguments, allowed) in [
        ("", true),
        ("--http_bind_address 127.8.8.8:1", true),
        ("--http_bind_address [::1]:1", true),
        ("--http_bind_address [::ffff:127.0.0.1]:1", true),
        ("--http_bind_address 0.0.0.0:1", false),
        ("--http_bind_address [::]:1", false),
        ("--http_bind_address 10.0.0.1:1", false),
        ("--http_bind_address 10.0.0.1:1 --allow_private_urls true", true),
        ("--allow_private_urls false", false),
    ] {
        assert_eq!(
            config(arguments, "", "", "").allows_private_urls(),
            allowed,
            "{arguments}"
        );
    }
    let engines = "--settlement_api_bind_address 0.0.0.0:7771 --settlement_api_token t";
    assert_eq!(config(engines, "", "", "").settlement_api_token.as_deref(), Some("t"));
}

#[test]
fn the_address_has_two_names_in_the_environment() {
    for (environment, address) in [
        ("ILP_ADDRESS=g.one", "g.one"),
        ("ILP_ILP_ADDRESS=g.two", "g.two"),
        ("ILP_ILP_ADDRESS=g.two\nILP_ADDRESS=g.one", "g.one"),
        ("ILP_CLI_NODE_URL=http://x\nPATH=/bin\nILP_CLI_API_AUTH=x", "local.host"),
    ] {
        assert_eq!(&*config("", environment, "", "").ilp_address, address, "{environment}");
    }
}

#[test]
fn what_stops_the_start_is_named() {
    let short = "secret_seed: 1234";
    for (arguments, environment, stdin, file, message) in [
        ("--colour red", "", "", "", "unexpected argument '--colour'"),
        ("--shards", "", "", "", "a value is required for '--shards"),
        ("--shards 1 --shards 2", "", "", "", "cannot be used multiple times"),
        ("a.yaml b.yaml", "", "", "x: 1", "one configuration file at most"),
        (
            "--shards 0",
            "",
            "",
            "",
            "the command line: shards: expected an integer from 1 to 256",
        ),
        (
            "",
            "ILP_SHARDS=x",
            "",
            "",
            "the environment (ILP_SHARDS): shards: expected an integer",
        ),
        (
            "",
            "ILP_COLOUR=red",
            "",
            "",
            "the environment (ILP_COLOUR): there is no option colour",
        ),
        ("", "", "colour: red", "", "standard input: there is no option colour"),
        ("", "", "- a", "", "standard input: expected names and values"),
        ("", "", "a: [", "", "standard input: "),
        (
            "x.toml",
            "",
            "",
            "exchange.rate = 1",
            "the file x.toml: there is no option exchange.rate",
        ),
        (
            "x.yaml",
            "",
            "",
            "google_pubsub: {project_id: a}",
            "the file x.yaml: there is no option google_pubsub.project_id",
        ),
        (
            "",
            "ILP_GOOGLE_PUBSUB__TOPIC=a",
            "",
            "",
            "there is no option google_pubsub.topic",
        ),
        (
            "--google_pubsub.topic a",
            "",
            "",
            "",
            "unexpected argument '--google_pubsub.topic'",
        ),
        (
            "",
            "",
            "exchange_rate: {sprad: 1}",
            "",
            "there is no option exchange_rate.sprad",
        ),
        ("", "", "exchange_rate: 1", "", "there is no option exchange_rate;"),
        ("", "", "\"a\\n\\e[1m\": 1", "", "there is no option a\\n\\u{1b}[1m;"),
        (
            "--exchange_rate.spread 1",
            "",
            "",
            "",
            "exchange_rate.spread: expected a number from 0",
        ),
        (
            "--exchange_rate.spread=-0.1",
            "",
            "",
            "",
            "exchange_rate.spread: expected a number from 0",
        ),
        (
            "--exchange_rate.spread 1%",
            "",
            "",
            "",
            "exchange_rate.spread: not a decimal number",
        ),
        (
            "",
            "",
            "exchange_rate: {spread: 0.12345678901234567890}",
            "",
            "exchange_rate.spread: is a number or truth that can be written in several ways",
        ),
        (
            "",
            "",
            "admin_auth_token: 1e5",
            "",
            "admin_auth_token: is a number or truth",
        ),
        ("", "", "data_dir: True", "", "data_dir: is a number or truth"),
        (
            "--exchange_rate.poll_interval 0",
            "",
            "",
            "",
            "expected an integer from 1 to 2592000000",
        ),
        (
            "",
            "",
            "exchange_rate: {poll_interval: 1.5}",
            "",
            "expected an integer from 1",
        ),
        (
            "--exchange_rate.poll_failure_tolerance 4294967296",
            "",
            "",
            "",
            "expected an integer from 0 to 4294967295",
        ),
        (
            "--exchange_rate.provider CryptoCompare",
            "",
            "",
            "",
            "CryptoCompare needs a key",
        ),
        (
            "--exchange_rate.provider Coin",
            "",
            "",
            "",
            "exchange_rate.provider: expected CoinCap",
        ),
        (
            "--exchange_rate.provider CoinCap:12zz",
            "",
            "",
            "",
            "exchange_rate.provider: expected CoinCap",
        ),
        (
            "--exchange_rate.provider https://#x",
            "",
            "",
            "",
            "expected an absolute URL",
        ),
        (
            "--exchange_rate.provider ftp://x",
            "",
            "",
            "",
            "exchange_rate.provider: expected CoinCap",
        ),
        (
            "",
            "",
            "exchange_rate: {provider: {Other: 12zz}}",
            "",
            "exchange_rate.provider: expected CoinCap",
        ),
        (
            "",
            "",
            "exchange_rate: {provider: {CryptoCompare: \"\"}}",
            "",
            "the key of CryptoCompare: expected",
        ),
        (
            "",
            "",
            "exchange_rate: {provider: [CoinCap]}",
            "",
            "exchange_rate.provider: expected one value",
        ),
        (
            "",
            "",
            "exchange_rate: {provider: {CryptoCompare: a, CoinCap: b}}",
            "",
            "exchange_rate.provider: is there twice",
        ),
        (
            "--exchange_rate.provider CoinCap --exchange_rate.provider.cryptocompare 12zz",
            "",
            "",
            "",
            "cannot be used with",
        ),
        (
            "--exchange_rate.second_provider CoinCap",
            "",
            "",
            "",
            "exchange_rate.second_provider: is for a node that has an exchange_rate.provider",
        ),
        (
            "--exchange_rate.provider https://h/x --exchange_rate.provider_url https://h",
            "",
            "",
            "",
            "exchange_rate.provider_url: is for CoinCap and CryptoCompare",
        ),
        (
            "--exchange_rate.provider CoinCap --exchange_rate.second_provider_url https://h",
            "",
            "",
            "",
            "exchange_rate.second_provider_url: is for CoinCap and CryptoCompare",
        ),
        (
            "--exchange_rate.provider CoinCap --exchange_rate.provider_url https://hush:zz@h",
            "",
            "",
            "",
            "exchange_rate.provider_url: expected an http or https URL",
        ),
        (
            "",
            "ILP_EXCHANGE_RATE__PROVIDER=CoinCap\nILP_EXCHANGE_RATE__SECOND_PROVIDER__CRYPTOCOMPARE= ",
            "",
            "",
            "the key of CryptoCompare: expected",
        ),
        (
            "--exchange_rate.max_rate_change 0",
            "",
            "",
            "",
            "exchange_rate.max_rate_change: expected a number above 0",
        ),
        (
            "--exchange_rate.spread 0 --exchange_rate_spread 0",
            "",
            "",
            "",
            "cannot be used multiple times",
        ),
        ("--default_spsp_account a", "", "", "", "expected a user name or a UUID"),
        ("--route_broadcast_interval 0", "", "", "", "expected an integer from 1"),
        ("--max_routes_per_neighbour 0", "", "", "", "expected an integer from 1"),
        (
            "--accept_routes_from_children yes",
            "",
            "",
            "",
            "expected true or false",
        ),
        ("--settle_every 0", "", "", "", "expected an integer from 1 to 2592000"),
        (
            "--settlement_key_retention 0",
            "",
            "",
            "",
            "expected an integer from 1 to 2592000",
        ),
        ("--api_balance_format float", "", "", "", "expected integer or scaled"),
        ("--api_open_reads 1", "", "", "", "expected true or false"),
        (
            "--prometheus.bind_address 9654",
            "",
            "",
            "",
            "expected an address and a port",
        ),
        (
            "--prometheus.bind_address 127.0.0.1:7770",
            "",
            "",
            "",
            "another port of this node",
        ),
        (
            "--prometheus.histogram_window 10",
            "",
            "",
            "",
            "is longer than prometheus.histogram_window",
        ),
        (
            "--settlement_api_bind_address 0.0.0.0:7771",
            "",
            "",
            "",
            "settlement_api_token: is required",
        ),
        (
            "",
            "RUST_LOG=info,ledger=loud",
            "",
            "",
            "the environment: RUST_LOG: \"ledger=loud\" is no level",
        ),
        ("x.json", "", "", "shards: 1", "the file x.json: "),
        (
            "x.yaml",
            "",
            "",
            "shards: [1]",
            "the file x.yaml: shards: expected one value",
        ),
        (
            "x.yaml",
            "",
            "",
            "min_message_window_ms: 5\nmin-message-window-ms: 6",
            "is there twice",
        ),
        ("x.yaml", "", "", "", "the file x.yaml: x.yaml is missing"),
        (
            "x.yaml",
            "",
            "",
            short,
            "the file x.yaml: secret_seed: expected 64 hex digits",
        ),
        (
            "--secret_seed 12zz",
            "",
            "",
            "",
            "the command line: secret_seed: expected 64 hex digits",
        ),
        (
            "--ilp_address peer.x",
            "",
            "",
            "",
            "ilp_address: the schemes peer and self",
        ),
        ("--ilp_address hub", "", "", "", "ilp_address: an address begins with"),
        (
            "--http_bind_address localhost:1",
            "",
            "",
            "",
            "http_bind_address: expected an address and a port",
        ),
        (
            "--durability never",
            "",
            "",
            "",
            "durability: expected commit or relaxed",
        ),
        ("--echo yes", "", "", "", "echo: expected true or false"),
        ("--admin_auth_token=", "", "", "", "admin_auth_token: "),
        (
            "",
            "ILP_ADMIN_AUTH_TOKEN= x",
            "",
            "",
            "admin_auth_token: expected 1 to 1024",
        ),
        (
            "--http_bind_address 127.0.0.1:7771",
            "",
            "",
            "",
            "is the same as http_bind_address",
        ),
        (
            "--max_hold_time_ms 1000",
            "",
            "",
            "",
            "leaves no time within max_hold_time_ms",
        ),
    ] {
        let found = run(arguments, environment, stdin, file)
            .expect_err(arguments)
            .to_string();
        assert!(
            found.contains(message),
            "{arguments} {environment} {stdin} {file}: {found}"
        );
        let is_told = found.contains("12zz") || found.contains("1234;") || found.ends_with("1234");
        assert!(!is_told, "no value is repeated: {found}");
    }
    assert!(
        config(
            "--http_bind_address 127.0.0.1:0 --settlement_api_bind_address 127.0.0.1:0",
            "",
            "",
            ""
        )
        .shards
            > 0
    );
}

#[test]
fn options_of_other_nodes_are_taken_with_a_warning() {
    let found = config(
        "--redis_url redis://x x.yaml",
        "ILP_DATABASE_URL=x",
        "",
        "redis_url: redis://x\ndatabase_prefix: y",
    );
    assert_eq!(
        found.warnings,
        ["redis_url, database_url, database_prefix: no effect; everything is kept in data_dir"]
    );
    let found = config("x.yaml", "", "", "redis_connection: {host: a, port: 6379}");
    assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
}

/// As its users have them, in the names of both of its generations.
#[test]
fn configurations_of_interledger_rs_are_understood() {
    let seed = "8852500887504328225458511465394229327394647958135038836332350604";
    let later = format!(
        "# The hub of our guild\nilp_address: example.hub\nsecret_seed: \"{seed}\"\nadmin_auth_token: hi_hub\n\
         redis_url: redis://127.0.0.1:6379/0\nhttp_bind_address: 127.0.0.1:8770\n\
         settlement_api_bind_address: 127.0.0.1:8771\ndefault_spsp_account: alice\nroute_broadcast_interval: 200\n\
         exchange_rate:\n  provider: CoinCap\n  poll_interval: 10000\n  spread: 0.01\n\
         prometheus:\n  bind_address: 127.0.0.1:9654\n  histogram_window: 5000\n  histogram_granularity: 1000\n"
    );
    let earlier = format!(
        "{{\"ilp_address\": \"example.hub\", \"secret_seed\": \"{seed}\", \"admin_auth_token\": \"hi_hub\",\n\
         \"redis_connection\": \"redis://127.0.0.1:6379\", \"http_bind_address\": \"127.0.0.1:8770\",\n\
         \"settlement_api_bind_address\": \"127.0.0.1:8771\", \"default_spsp_account\": \"alice\",\n\
         \"route_broadcast_interval\": 200, \"exchange_rate_provider\": \"CoinCap\",\n\
         \"exchange_rate_poll_interval\": 10000, \"exchange_rate_spread\": 0.01,\n\
         \"PrometheusConfig\": {{\"bind_address\": \"127.0.0.1:9654\", \"histogram_window\": 5000,\n\
         \"histogram_granularity\": 1000}}}}"
    );
    for (path, text) in [("hub.yml", &later), ("hub.json", &earlier), ("hub", &earlier)] {
        let found = config(path, "", "", text);
        assert_eq!(&*found.ilp_address, "example.hub");
        assert!(found.secret_seed.is_some_and(|seed| seed.starts_with(&[0x88, 0x52])));
        assert_eq!(found.admin_auth_token.as_deref(), Some("hi_hub"));
        assert_eq!(found.http_bind_address.port(), 8770);
        assert_eq!(found.settlement_api_bind_address.port(), 8771);
        assert_eq!(found.default_spsp_account, Some(AccountName::Username("alice".into())));
        assert_eq!(found.route_broadcast_interval, Duration::from_millis(200));
        assert_eq!(found.exchange_rate.provider, Some(RateProvider::CoinCap));
        assert_eq!(found.exchange_rate.poll_interval, Duration::from_secs(10));
        assert_eq!(found.exchange_rate.spread.to_string(), "0.01");
        assert_eq!(found.prometheus.bind_address.map(|address| address.port()), Some(9654));
        assert_eq!(found.prometheus.histogram_window, Duration::from_secs(5));
        assert_eq!(found.prometheus.histogram_granularity, Duration::from_secs(1));
        let warned = |name: &str| {
            found
                .warnings
                .iter()
                .filter(|warning| warning.starts_with(name))
                .count()
        };
        assert_eq!((warned("redis_"), warned("exchange_rate.provider: ")), (1, 0), "{path}");
        assert_eq!(
            (warned("route_broadcast_interval: "), warned("exchange_rate.spread")),
            (0, 0)
        );
    }
    // An unquoted seed of digits only is a number, of which YAML keeps some digits.
    let unquoted = run("x.yaml", "", "", &format!("secret_seed: {seed}"));
    let said = unquoted.expect_err("not the seed").to_string();
    assert!(said.contains("quotation marks") && !said.contains("8852"), "{said}");
}

#[test]
fn options_without_effect_are_options() {
    for name in WITHOUT_EFFECT_YET {
        assert!(OPTIONS.iter().any(|spec| spec.name == *name), "{name}");
    }
}

/// `docs/settings.md` has every option with its default and value, in the same order, and no other; its example can
/// be used.
#[test]
fn the_document_of_all_settings_is_right() {
    let document = include_str!("../../docs/settings.md");
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).skip(1).take(3).collect::<Vec<_>>());
    let expected = OPTIONS.iter().map(|spec| {
        let is_value = !spec.default.contains(' ');
        let default = if is_value {
            format!("`{}`", spec.default)
        } else {
            spec.default.to_owned()
        };
        vec![format!("`{}`", spec.name), default, spec.value.to_owned()]
    });
    assert_eq!(cells.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let marked = document
        .lines()
        .filter(|line| line.starts_with("| `") && line.ends_with(" (1) |"))
        .filter_map(|row| row.split('`').nth(1));
    assert_eq!(marked.collect::<Vec<_>>(), WITHOUT_EFFECT_YET, "marked as such");
    let example = document
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("an example in YAML");
    let found = config("x.yaml", "", "", example);
    assert!(found != Config::default());
}

#[test]
fn help_and_version() {
    for (arguments, parts) in [
        (
            "--help",
            &["[default: 127.0.0.1:7770]", "--admin_auth_token <TOKEN>", "ILP_ADDRESS"][..],
        ),
        ("-h --colour", &["--data_dir <FOLDER>"]),
        ("--version", &[env!("CARGO_PKG_VERSION")]),
        ("-V", &["clearway "]),
    ] {
        let Ok(Command::Print(text)) = run(arguments, "", "", "") else {
            panic!("{arguments}")
        };
        for part in parts {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("redis"), "what has no effect is not offered");
    }
}

#[test]
fn log_lines() {
    for (environment, filter) in [
        ("", "info"),
        ("RUST_LOG=", "info"),
        ("RUST_LOG= ", "info"),
        ("RUST_LOG=debug", "debug"),
        ("RUST_LOG=warn,clearway::ledger=debug", "warn,ledger=debug"),
        ("RUST_LOG=interledger=debug,h2=off", "clearway=debug,h2=off"),
    ] {
        assert_eq!(
            config("", environment, "", "").log_filter.to_string(),
            filter,
            "{environment}"
        );
    }
}

#[test]
fn secrets_are_not_printed() {
    let seed = "ab".repeat(32);
    let given = format!("--secret_seed {seed} --admin_auth_token hush --settlement_api_token hush");
    let file = "admin_auth_token: hush2\nsettlement_api_token: hush3\nexchange_rate_provider: {CryptoCompare: hush}";
    let found = config(
        &format!("{given} x.yaml"),
        "ILP_EXCHANGE_RATE__PROVIDER=https://hush:hush@hush/hush?hush",
        "",
        file,
    );
    let text = format!("{found:?} {:?} {:?}", found.warnings, found.exchange_rate);
    assert!(text.contains("admin_auth_token: the command line and"), "{text}");
    for secret in ["hush", "abab", "171"] {
        assert!(!text.contains(secret), "{text}");
    }
    for arguments in [
        "--admin_auth_tokn=hush",
        "--admin_auth_tokn hush",
        "--admin_auth_token=hush --colour",
    ] {
        let said = run(arguments, "", "", "").expect_err(arguments).to_string();
        assert!(!said.contains("hush"), "{said}");
    }
}
