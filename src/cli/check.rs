//! `clearway check`: what a start with the same options would meet.
//!
//! Owns the report and what in it counts as a problem. Starts, makes, changes and locks nothing, so it can be run beside
//! the node itself: what a running node holds (its ports, its store) is no problem then, and the store is read as it was
//! at one instant between two commits ([`rocks::read_only`]), without asking the node. Options are read by
//! [`crate::config`]; each question is put to the module that a start would put it to.

use std::ffi::CString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::api::node::{AssetAnswer, asset_answers};
use crate::config::{Check, Config};
use crate::control::Control;
use crate::control::address::address_at_start;
use crate::keys::{self, Origin, STORE_FOLDER};
use crate::ledger::audit::Audit;
use crate::net::listener;
use crate::net::ring::check_kernel;
use crate::store::{FORMAT_VERSION, OpenError, Store, recover, rocks};

/// A node answers at once, or something else listens there.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Does what `clearway check` asks for. Exit code 0: all is well; 1: there is a problem.
pub fn run(check: &Check) -> ExitCode {
    let report = Report::new(check);
    let text = if check.json {
        serde_json::to_string_pretty(&report).expect("text and numbers are always valid JSON")
    } else {
        report.to_text()
    };
    // Whoever does not read the text still gets the code.
    let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[derive(Serialize)]
struct Report<'a> {
    /// No finding is a problem.
    ok: bool,
    version: &'static str,
    settings: Vec<SettingReport<'a>>,
    warnings: &'a [String],
    /// A process that has the store open at this moment; 0 if its number cannot be seen from here.
    running: Option<u32>,
    checks: Vec<Finding>,
    /// `null`: there is none, or it cannot be read.
    store: Option<StoreReport>,
    /// The proof that the book adds up, or does not.
    book: Option<BookReport>,
}

#[derive(Serialize)]
struct SettingReport<'a> {
    name: &'static str,
    /// `null`: a secret.
    value: Option<&'a str>,
    /// `null`: the default.
    source: Option<String>,
}

#[derive(Serialize)]
struct StoreReport {
    format: u32,
    accounts: usize,
    assets: usize,
    routes: usize,
    rates: usize,
}

#[derive(Serialize)]
struct BookReport {
    adds_up: bool,
    assets: Vec<AssetAnswer>,
}

/// The answer to one question.
#[derive(Serialize)]
struct Finding {
    name: &'static str,
    outcome: Outcome,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    /// Nothing to do, but to know.
    Note,
    /// Would stop the start, or means that the book cannot be relied on.
    Problem,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "PROBLEM",
        }
    }
}

impl<'a> Report<'a> {
    fn new(check: &'a Check) -> Self {
        let config = &check.config;
        let settings = check.settings.iter().map(|setting| SettingReport {
            name: setting.name,
            value: setting.value.as_deref(),
            source: setting.source.as_ref().map(ToString::to_string),
        });
        let mut report = Self {
            ok: true,
            version: env!("CARGO_PKG_VERSION"),
            settings: settings.collect(),
            warnings: &config.warnings,
            running: rocks::used_by(&config.data_dir.join(STORE_FOLDER)),
            checks: Vec::new(),
            store: None,
            book: None,
        };
        report.check_kernel();
        report.check_ports(config);
        report.check_folder(&config.data_dir);
        let seed = report.check_keys(config);
        report.check_store(config, seed);
        report.ok = report.problems() == 0;
        report
    }

    fn find(&mut self, name: &'static str, outcome: Outcome, detail: impl Into<String>) {
        let detail = detail.into();
        self.checks.push(Finding { name, outcome, detail });
    }

    fn problems(&self) -> usize {
        let is_problem = |finding: &&Finding| finding.outcome == Outcome::Problem;
        self.checks.iter().filter(is_problem).count()
    }

    fn check_kernel(&mut self) {
        match check_kernel() {
            Ok(()) => self.find("kernel", Outcome::Ok, "io_uring has what the node needs"),
            Err(error) => self.find("kernel", Outcome::Problem, error.to_string()),
        }
    }

    fn check_ports(&mut self, config: &Config) {
        let http = config.http_bind_address;
        let taken = self.check_port("http_bind_address", http);
        if taken {
            match (ask(http), self.running) {
                (Some(node), Some(_)) => {
                    self.find(
                        "http_bind_address",
                        Outcome::Note,
                        format!("{http} is in use by the node: {node}"),
                    );
                }
                (Some(node), None) => {
                    let detail = format!("{http} is in use by a node on another data folder: {node}");
                    self.find("http_bind_address", Outcome::Problem, detail);
                }
                (None, _) => {
                    let detail = format!("{http} is in use by a program that is no node");
                    self.find("http_bind_address", Outcome::Problem, detail);
                }
            }
        }
        let settlement = config.settlement_api_bind_address;
        if self.check_port("settlement_api_bind_address", settlement) {
            let outcome = if self.running.is_some() {
                Outcome::Note
            } else {
                Outcome::Problem
            };
            self.find(
                "settlement_api_bind_address",
                outcome,
                format!("{settlement} is in use"),
            );
        }
    }

    /// True: it is in use, and the caller knows what that means.
    fn check_port(&mut self, name: &'static str, address: SocketAddr) -> bool {
        match listener::try_bind(address) {
            Ok(()) if address.port() == 0 => {
                self.find(name, Outcome::Ok, format!("{address}: the system chooses a port"))
            }
            Ok(()) => self.find(name, Outcome::Ok, format!("{address} is free")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return true,
            Err(error) => self.find(name, Outcome::Problem, format!("{address} cannot be used: {error}")),
        }
        false
    }

    fn check_folder(&mut self, data_dir: &Path) {
        // What the start would make it in, if it is not there.
        let there = data_dir.ancestors().find(|folder| folder.exists());
        // The last ancestor of a relative path has no name.
        let there = there.unwrap_or(Path::new("."));
        let shown = data_dir.display();
        if !there.is_dir() {
            self.find(
                "data_dir",
                Outcome::Problem,
                format!("{} is no folder", there.display()),
            );
        } else if !is_writable(there) {
            let detail = format!("{} cannot be written by this user", there.display());
            self.find("data_dir", Outcome::Problem, detail);
        } else if there != data_dir {
            self.find("data_dir", Outcome::Ok, format!("{shown} is made at the start"));
        } else {
            self.find("data_dir", Outcome::Ok, format!("{shown} is there"));
        }
    }

    /// The seed that the store is opened under.
    fn check_keys(&mut self, config: &Config) -> Option<[u8; 32]> {
        let found = match keys::look(&config.data_dir, config.secret_seed, config.admin_auth_token.as_deref()) {
            Ok(found) => found,
            Err(error) => {
                self.find("keys", Outcome::Problem, error.to_string());
                return None;
            }
        };
        let origin = |origin: Option<&Origin>| match origin {
            Some(Origin::Configured) => "configured".to_owned(),
            Some(Origin::Kept(path) | Origin::Made(path)) => format!("kept in {}", path.display()),
            None => "made at the start".to_owned(),
        };
        let seed_origin = found.secret_seed.as_ref().map(|(_, origin)| origin);
        self.find(keys::SEED_FILE, Outcome::Ok, origin(seed_origin));
        self.find(keys::TOKEN_FILE, Outcome::Ok, origin(found.admin_auth_token.as_ref()));
        for warning in found.warnings {
            self.find("keys", Outcome::Note, warning);
        }
        found.secret_seed.map(|(seed, _)| seed)
    }

    fn check_store(&mut self, config: &Config, seed: Option<[u8; 32]>) {
        let path = config.data_dir.join(STORE_FOLDER);
        if let Some(process) = self.running {
            let detail = format!(
                "a node is running on {}{}: what follows was so a moment ago, and another start there is refused until \
                 it ends",
                config.data_dir.display(),
                if process == 0 {
                    String::new()
                } else {
                    format!(" (process {process})")
                }
            );
            self.find("store", Outcome::Note, detail);
        }
        if !rocks::exists(&path) {
            return self.find("store", Outcome::Ok, format!("{} is made at the start", path.display()));
        }
        let Some(seed) = seed else {
            return self.find("store", Outcome::Problem, "not read: there is no seed to open it under");
        };
        if !is_writable(&path) {
            let detail = format!("{} cannot be written by this user", path.display());
            self.find("store", Outcome::Problem, detail);
        }
        let read = rocks::read_only(&path, &seed, |store| {
            let book = recover(store)?;
            let audit = store.reader().audit();
            Ok((book, audit.map_err(|error| OpenError::Corrupt(error.to_string()))?))
        });
        let (book, audit) = match read {
            Ok(read) => read,
            Err(error) => {
                self.find("store", Outcome::Problem, error.to_string());
                if let OpenError::DoesNotAddUp(audit) = error {
                    self.book = Some(BookReport::new(&audit));
                }
                return;
            }
        };
        self.find(
            "store",
            Outcome::Ok,
            format!("{} opens, and the book adds up", path.display()),
        );
        self.book = Some(BookReport::new(&audit));
        self.store = Some(StoreReport {
            format: FORMAT_VERSION,
            accounts: book.accounts.len(),
            assets: book.assets.len(),
            routes: book.static_routes.len(),
            rates: book.rates.len(),
        });
        let address = address_at_start(&config.ilp_address, &book);
        if let Some(before) = book.node_address.as_deref().filter(|before| *before != address) {
            let detail = format!("the node was {before}, and would become {address}; generated addresses follow");
            self.find("ilp_address", Outcome::Note, detail);
        }
        if let Err(error) = Control::check_start(&(*config.ilp_address).into(), book) {
            self.find("store", Outcome::Problem, error.to_string());
        }
    }

    fn to_text(&self) -> String {
        let settings = self.settings.iter().map(|setting| {
            let source = setting.source.as_deref().unwrap_or("default");
            [setting.name, setting.value.unwrap_or("(secret)"), source].map(str::to_owned)
        });
        let checks = self
            .checks
            .iter()
            .map(|finding| [finding.outcome.as_str(), finding.name, &finding.detail].map(str::to_owned));
        let mut text = format!("clearway {}\n\nsettings\n{}", self.version, table(settings));
        for warning in self.warnings {
            text.push_str(&format!("  warning: {warning}\n"));
        }
        text.push_str(&format!("\nchecks\n{}", table(checks)));
        if let Some(store) = &self.store {
            text.push_str(&format!(
                "\nstore\n  format {}, {} accounts, {} assets, {} fixed routes, {} rates\n",
                store.format, store.accounts, store.assets, store.routes, store.rates
            ));
        }
        if let Some(book) = &self.book {
            text.push_str("\nbook\n");
            text.push_str(&show_assets(&book.assets));
        }
        text.push_str(&match self.problems() {
            0 => "\nall is well\n".to_owned(),
            1 => "\n1 problem\n".to_owned(),
            more => format!("\n{more} problems\n"),
        });
        text
    }
}

impl BookReport {
    fn new(audit: &Audit) -> Self {
        Self {
            adds_up: audit.adds_up(),
            assets: asset_answers(audit),
        }
    }
}

/// One line per asset, indented.
pub(super) fn show_assets(assets: &[AssetAnswer]) -> String {
    let line = |asset: &AssetAnswer| {
        [
            format!("{}@{}", asset.asset_code, asset.asset_scale),
            format!("{} accounts", asset.accounts),
            format!("balances {}", asset.balances),
            format!("position {}", asset.position),
            format!("pending {}", asset.pending),
            if asset.adds_up { "adds up" } else { "DOES NOT ADD UP" }.to_owned(),
        ]
    };
    if assets.is_empty() {
        return "  no assets yet\n".to_owned();
    }
    table(assets.iter().map(line))
}

/// Columns without lines, the same on every terminal.
fn table<const COLUMNS: usize>(rows: impl Iterator<Item = [String; COLUMNS]>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .add_rows(rows);
    table.lines().map(|line| format!(" {}\n", line.trim_end())).collect()
}

/// What answers there like a node: its state, address and version. Sends no secret.
fn ask(address: SocketAddr) -> Option<String> {
    let agent = ureq::Agent::new_with_config(
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER_MAX))
            .proxy(None)
            .build(),
    );
    let mut response = agent.get(format!("http://{address}/")).call().ok()?;
    let text = response.body_mut().read_to_string().ok()?;
    let answer: serde_json::Value = serde_json::from_str(&text).ok()?;
    let member = |name: &str| answer[name].as_str();
    Some(format!(
        "{} as {}, version {}",
        member("status")?,
        member("ilp_address")?,
        member("version")?
    ))
}

/// Whether files can be made in a folder, as far as permissions tell.
fn is_writable(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: the path is text that ends with a NUL and lives until the call returns.
    unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
}
