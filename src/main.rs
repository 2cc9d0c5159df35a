//! Reads the configuration, runs the connector, returns an exit code: 0 for an orderly end, 2 for a configuration that
//! cannot be used, 1 for anything else.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use clearway::cli;
use clearway::config::{self, Command, Config};
use clearway::connector::Connector;
use clearway::keys::{self, Keys, Origin};
use clearway::logs::LogFilter;

// Packets allocate little; API calls and links allocate small and often, from several threads, and free on others.
// mimalloc gives memory of such use back to the system, which glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = cli::run(&arguments) {
        return code;
    }
    let arguments = arguments.into_iter().map(OsString::into_string);
    let Ok(arguments) = arguments.collect::<Result<Vec<String>, OsString>>() else {
        eprintln!("clearway: the command line: not UTF-8");
        return ExitCode::from(2);
    };
    let command = config::sources::read_environment(std::env::vars_os()).and_then(|environment| {
        config::read(config::sources::Sources {
            arguments,
            environment,
            read_file: &config::sources::read_file,
            read_stdin: &mut |forced| config::sources::read_standard_input(forced, &|notice| eprintln!("{notice}")),
        })
    });
    let config = match command {
        Ok(Command::Print(text)) => {
            // Nobody may be listening any more.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Ok(Command::Check(check)) => return cli::check(&check),
        Ok(Command::Run(config)) => config,
        Err(error) => {
            eprintln!("clearway: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clearway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    keep_memory_small();
    let log_filter = LogFilter::start(config.log_filter.clone())?;
    // Our own mistake ends the process: a ledger that went on after a broken assertion could lie.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let on_api_thread = std::thread::current()
            .name()
            .is_some_and(|name| name.starts_with("clearway-api"));
        if !on_api_thread {
            std::process::abort();
        }
    }));
    let signals = watch_signals()?;
    for warning in &config.warnings {
        tracing::warn!(target: "config", "{warning}");
    }
    let keys = keys::load_or_create(&config.data_dir, config.secret_seed, config.admin_auth_token.as_deref())?;
    for warning in &keys.warnings {
        tracing::warn!(target: "config", "{warning}");
    }
    let mut progress = |step: &str| {
        give_back_memory();
        say(&format!("clearway {}: {step}", env!("CARGO_PKG_VERSION")));
    };
    let connector = Connector::start(config, &keys, &mut progress, give_back_memory, log_filter.into_change())?;
    give_back_memory();
    say(&start_message(config, &keys, &connector));
    signals.wait();
    say("clearway: stopping; packets in flight may end (once more to hurry)");
    connector.stop(&|| signals.count() > 1);
    say("clearway: stopped");
    Ok(())
}

/// Chooses small pages and an early return of memory; for the start, before there is much of it.
fn keep_memory_small() {
    /// RocksDB's blocks of write buffers are larger.
    const RETURNED_AT_ONCE_BYTES: libc::c_int = 128 << 10;
    // SAFETY: both take numbers only. A system that refuses either costs memory and nothing else.
    unsafe {
        // Huge pages would keep up to 2 MiB for what is left in them of a table that has moved: a third of all memory
        // at 100,000 accounts, and packets were not faster for it.
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        // glibc's allocator, which RocksDB uses, otherwise learns to keep the largest write buffers it has seen.
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_AT_ONCE_BYTES);
    }
}

/// Gives the memory that only the last step of the start needed back to the system. The allocator would do so while the
/// node allocates, which an idle one does not.
fn give_back_memory() {
    // SAFETY: may be called at any time, from any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Says something to whoever started the node, at once, even through a pipe.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be listening any more; the node goes on.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn start_message(config: &Config, keys: &Keys, connector: &Connector) -> String {
    let kept = |origin: &Origin, option: &str| match origin {
        Origin::Configured => format!("configured ({option})"),
        Origin::Kept(path) => format!("in {}", path.display()),
        Origin::Made(path) => format!("made just now, kept in {}: keep a copy in a safe place", path.display()),
    };
    let node = format!("http://{}", connector.http_address);
    let token = match &keys.token_origin {
        Origin::Configured => "<admin_auth_token>".to_owned(),
        Origin::Kept(path) | Origin::Made(path) => format!("$(cat {})", path.display()),
    };
    format!(
        "clearway {version}: listening on {node} as {address} (settlement API on {settlement})\n\
         \x20 secret seed   {seed}\n\
         \x20 admin token   {admin}\n\
         \x20 try           curl {node}/\n\
         \x20               curl {node}/accounts -H \"Authorization: Bearer {token}\" -H 'Content-Type: application/json' \
         -d '{{\"username\":\"alice\",\"asset_code\":\"ABC\",\"asset_scale\":9,\"ilp_over_http_incoming_token\":\"alice-pw\"}}'",
        version = env!("CARGO_PKG_VERSION"),
        address = config.ilp_address,
        settlement = connector.settlement_address,
        seed = kept(&keys.seed_origin, "secret_seed"),
        admin = kept(&keys.token_origin, "admin_auth_token"),
    )
}

/// SIGTERM and SIGINT, counted.
struct Signals {
    seen: Arc<AtomicUsize>,
    first: mpsc::Receiver<()>,
}

impl Signals {
    fn wait(&self) {
        // An error: the watching thread is gone, and with it the way to stop in order; then stop now.
        let _ = self.first.recv();
    }

    fn count(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }
}

fn watch_signals() -> std::io::Result<Signals> {
    let seen = Arc::new(AtomicUsize::new(0));
    let (sender, first) = mpsc::channel();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    let counter = Arc::clone(&seen);
    std::thread::Builder::new()
        .name("clearway-signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = sender.send(());
            }
        })?;
    Ok(Signals { seen, first })
}
