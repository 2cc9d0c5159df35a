//! The node: opens the store, starts shards, threads and listeners, and stops them in reverse.
//!
//! Order at start: ports (so that a second node on the same ports fails before it touches anything), store and its
//! proof, writer, control, shards, API threads, `Ready`; peers are dialled from then on. Order at the end: no new
//! connections, payments and packets, packets in flight and with them payments end, goodbye to peers, shards, writer.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use glommio::{LocalExecutorBuilder, Placement};
use url::Url;

use crate::api::{self, Api};
use crate::client::engine::EngineClient;
use crate::client::rates::{Provider, RateClient};
use crate::client::spsp::SpspClient;
use crate::config::{self, AccountName, Config, RateProvider};
use crate::control::explain::PacketRules;
use crate::control::neighbours::{NeighbourSettings, Neighbours};
use crate::control::payments::Payments;
use crate::control::rates::{HttpProvider, Policy, Poller, Providers};
use crate::control::settlements::{Settlements, Times};
use crate::control::{Control, Readiness, StartError};
use crate::keys::Keys;
use crate::ledger::{AccountId, Standing};
use crate::logs;
use crate::net::Waker;
use crate::net::listener;
use crate::net::ring::{Unsupported, check_kernel};
use crate::pipeline::Settings;
use crate::pipeline::forward::Windows;
use crate::shard::clock::Clock;
use crate::shard::control::{NeighbourNews, Pending, Port, neighbour_events};
use crate::shard::dialing::Lookup;
use crate::shard::handle::ShardsHandle;
use crate::shard::http_serving::Tokens;
use crate::shard::mesh::{Cold, Mailbox};
use crate::shard::{Setup, Shard};
use crate::store::{self, OpenError, RocksStore, Writer, WriterHandle, backup};
use crate::stream::secret::TokenMaker;

/// API calls that may wait for a thread; more are told to come back (503).
const API_CALLS_WAITING_MAX: usize = 1_024;
/// Threads that answer API calls. A deletion may hold one of them for half a minute.
const API_THREADS: usize = 4;
/// Names that may wait to be resolved, and threads that do: one name that does not answer must not hold up all others.
const LOOKUPS_WAITING_MAX: usize = 1_024;
const LOOKUP_THREADS: usize = 2;
/// Packets in flight at the end get their full time, which is never longer than this.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How often a node that stops looks whether all packets have ended.
const STOP_ASK_AGAIN: Duration = Duration::from_millis(10);

/// Why the node does not start. One message an operator can act on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    #[error("{option}: the address {address} cannot be used: {error}")]
    Bind {
        option: &'static str,
        address: SocketAddr,
        error: io::Error,
    },
    #[error("data_dir: {0}")]
    Store(#[from] OpenError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Ring(#[from] Unsupported),
    #[error("a shard cannot be started: {0}")]
    Executor(String),
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
}

/// A running node.
pub struct Connector {
    /// Where it really listens: the configured port may have been 0.
    pub http_address: SocketAddr,
    pub settlement_address: SocketAddr,
    control: Arc<Control>,
    payments: Payments,
    /// Polls for rates, if there is somebody to ask.
    rates: Option<Poller>,
    neighbours: Neighbours,
    settlements: Settlements,
    shards: ShardsHandle,
    shard_threads: Vec<JoinHandle<()>>,
    writer: WriterHandle,
}

impl Connector {
    /// Starts a node; `progress` is told what is being done. `give_back_memory` returns what the calling thread has freed
    /// to the system: reading a large book back takes more than keeping it.
    pub fn start(
        config: &Config,
        keys: &Keys,
        progress: &mut dyn FnMut(&str),
        give_back_memory: fn(),
        change_log_filter: logs::Change,
    ) -> Result<Self, ConnectorError> {
        // What every shard needs of the kernel, before anything else is touched.
        check_kernel()?;
        let bind =
            |option, address| listener::bind(address).map_err(|error| ConnectorError::Bind { option, address, error });
        let (http_listener, http_address) = bind("http_bind_address", config.http_bind_address)?;
        let (settlement_listener, settlement_address) =
            bind("settlement_api_bind_address", config.settlement_api_bind_address)?;

        progress(&format!("opening the store in {}", config.data_dir.display()));
        let store_path = config.data_dir.join(crate::keys::STORE_FOLDER);
        let mut store = RocksStore::open(&store_path, &keys.secret_seed)?;
        let book = store::recover(&mut store)?;
        progress(&format!(
            "the book adds up: {} accounts, {} assets",
            book.accounts.len(),
            book.assets.len()
        ));
        let mut booked: Arc<[Standing]> =
            std::iter::repeat_n(Standing::default(), book.next_account_id as usize).collect();
        let balances = Arc::get_mut(&mut booked).expect("nobody else has it yet");
        for (account, standing) in &book.accounts {
            balances[account.id.index()] = *standing;
        }
        let open = book.open_settlements.iter();
        let open_settlements = Arc::new(open.map(|open| (open.account, open.amount)).collect());
        // As many as accounts, at most: each has one settlement open.
        let (made, settlements_made) = unbounded();
        let (writer, transfers) = Writer::start(
            Box::new(store),
            &book,
            config.shards,
            config.durability,
            config.flush_interval,
            made,
        )
        .map_err(ConnectorError::Thread)?;

        let mailboxes = (0..config.shards)
            .map(|_| Waker::new().map(Mailbox::new))
            .collect::<io::Result<Arc<[Mailbox]>>>()
            .map_err(ConnectorError::Thread)?;
        let shards = ShardsHandle::new(mailboxes.clone());
        for shard in 0..config.shards {
            let waker = mailboxes[shard].waker().clone();
            writer.set_waker(shard, Box::new(move || waker.wake()));
        }
        let control = Arc::new(Control::start(
            (*config.ilp_address).into(),
            book,
            Arc::new(writer.clone()),
            Arc::new(shards.clone()),
        )?);
        if backup::is_copy(&store_path) {
            control.take_over_copy().map_err(StartError::from)?;
            let marked = |error: io::Error| OpenError::Unavailable(format!("{}: {error}", store_path.display()));
            backup::taken_over(&store_path).map_err(marked)?;
        }
        // What neighbours told stands before any packet comes.
        let prepared = Neighbours::prepare(&control, neighbour_settings(config))?;

        let (api_sender, api_receiver) = bounded(API_CALLS_WAITING_MAX);
        let (lookup_sender, lookup_receiver) = bounded(LOOKUPS_WAITING_MAX);
        let (news, neighbour_events) = neighbour_events();
        let shared = SharedSetup {
            settings: settings(config),
            tokens: Tokens {
                admin: (*keys.admin_auth_token).into(),
                settlement: config.settlement_api_token.as_deref().map(Arc::from),
            },
            secret_seed: keys.secret_seed,
            mailboxes,
            store: writer.clone(),
            api: api_sender,
            neighbours: news,
            lookups: lookup_sender,
            changes: Arc::new(control.initial_changes()),
            booked,
            open_settlements,
            connections_max: listener::connections_max(),
            connections_open: Arc::default(),
            give_back_memory,
        };
        progress(&format!("starting {} shards", config.shards));
        let mut shard_threads = Vec::new();
        for (shard, transfers) in transfers.into_iter().enumerate() {
            let listeners = [(Port::Api, &http_listener), (Port::Settlement, &settlement_listener)]
                .into_iter()
                .map(|(port, listener)| Ok((port, listener.try_clone()?)))
                .collect::<io::Result<_>>()
                .map_err(ConnectorError::Thread)?;
            let setup = shared.setup(listeners, transfers);
            shard_threads.push(start_shard(shard as u16, setup)?);
        }
        drop(shared);
        drop((http_listener, settlement_listener));

        let neighbours = Neighbours::start(prepared, neighbour_events).map_err(ConnectorError::Thread)?;
        let settings = api_settings(config, keys, change_log_filter);
        let own = api::own_server(Arc::clone(&control), &settings, http_address);
        let directions = Box::new(SpspClient::new(config.allows_private_urls(), Some(own)));
        let payments = Payments::start(Arc::clone(&control), directions).map_err(ConnectorError::Thread)?;
        start_api(
            Api::new(Arc::clone(&control), payments.clone(), settings),
            &api_receiver,
        )?;
        start_lookups(&lookup_receiver)?;
        let engines = Arc::new(EngineClient::default());
        let times = Times {
            settle_every: config.settle_every,
            engine_key_kept: config.settlement_key_retention,
        };
        let settlements = Settlements::start(&control, engines, settlements_made, times);
        let settlements = settlements.map_err(ConnectorError::Thread)?;
        control.set_readiness(Readiness::Ready);
        let (policy, providers) = rate_providers(config);
        let rates = Poller::start(&control, policy, providers).map_err(ConnectorError::Thread)?;
        Ok(Self {
            http_address,
            settlement_address,
            control,
            payments,
            rates,
            neighbours,
            settlements,
            shards,
            shard_threads,
            writer,
        })
    }

    /// Stops in order: packets in flight end or expire, for half a minute at most; `hurry` ends the wait. Everything
    /// that was fulfilled is durable when this returns.
    pub fn stop(self, hurry: &dyn Fn() -> bool) {
        self.control.set_readiness(Readiness::Stopping);
        drop(self.rates);
        // It publishes to the shards, so it ends before they do.
        self.neighbours.stop();
        self.settlements.stop();
        self.shards.tell_all(|| Cold::Stop);
        let end = Instant::now() + STOP_MAX;
        // A payment that does not end in time is ended at the next start, with what the book says of it.
        // What engines answer is noted, if they do within their time.
        let is_busy = || {
            self.payments.begun() > 0
                || self.control.engine_calls() > 0
                || self.shards.unanswered().is_some_and(|unanswered| unanswered > 0)
        };
        while !hurry() && Instant::now() < end && is_busy() {
            thread::sleep(STOP_ASK_AGAIN);
        }
        self.shards.tell_all(|| Cold::Exit);
        for thread in self.shard_threads {
            // A shard that failed has said so already; the process ends with it.
            let _ = thread.join();
        }
        self.writer.stop();
    }
}

/// What all shards get alike.
struct SharedSetup {
    settings: Settings,
    tokens: Tokens,
    secret_seed: [u8; 32],
    mailboxes: Arc<[Mailbox]>,
    store: WriterHandle,
    api: Sender<Pending>,
    neighbours: NeighbourNews,
    lookups: Sender<Lookup>,
    changes: Arc<Vec<crate::shard::control::Change>>,
    booked: Arc<[Standing]>,
    open_settlements: Arc<HashMap<AccountId, u64>>,
    connections_max: usize,
    connections_open: Arc<AtomicUsize>,
    give_back_memory: fn(),
}

impl SharedSetup {
    fn setup(&self, listeners: Vec<(Port, OwnedFd)>, transfers: store::TransferSender) -> Setup {
        Setup {
            settings: self.settings.clone(),
            tokens: self.tokens.clone(),
            secret_seed: self.secret_seed,
            listeners,
            mailboxes: self.mailboxes.clone(),
            transfers,
            store: self.store.clone(),
            api: self.api.clone(),
            neighbours: self.neighbours.clone(),
            lookups: self.lookups.clone(),
            changes: self.changes.clone(),
            booked: self.booked.clone(),
            open_settlements: self.open_settlements.clone(),
            connections_max: self.connections_max,
            connections_open: self.connections_open.clone(),
            clock: Clock::start(),
            give_back_memory: self.give_back_memory,
        }
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        reflect: config.reflect_payments,
        echo: config.echo,
        windows: Windows {
            message_window_ms: u64::from(config.min_message_window_ms),
            hold_ms_max: u64::from(config.max_hold_time_ms),
        },
        spread: config.exchange_rate.spread.clone(),
    }
}

/// Who is polled for rates, and how.
fn rate_providers(config: &Config) -> (Policy, Providers) {
    let rates = &config.exchange_rate;
    let policy = Policy {
        poll_interval: rates.poll_interval,
        failures_max: rates.poll_failure_tolerance,
        max_change: rates.max_rate_change.clone(),
    };
    let provider = |given: &Option<RateProvider>, url: &Option<Url>| {
        let provider = match given.as_ref()? {
            RateProvider::CoinCap => Provider::CoinCap,
            RateProvider::CryptoCompare { key } => Provider::CryptoCompare { key: key.clone() },
            RateProvider::Url(url) => Provider::Url(url.clone()),
        };
        let provider = HttpProvider {
            kind: provider.kind(),
            client: RateClient::new(&provider, url.as_ref()),
        };
        Some(Box::new(provider) as _)
    };
    let providers = [
        provider(&rates.provider, &rates.provider_url),
        provider(&rates.second_provider, &rates.second_provider_url),
    ];
    (policy, providers)
}

fn neighbour_settings(config: &Config) -> NeighbourSettings {
    let interval_ms = config.route_broadcast_interval.as_millis();
    NeighbourSettings {
        update_interval_ms: u32::try_from(interval_ms).unwrap_or(u32::MAX),
        hears_children: config.accept_routes_from_children,
        routes_max: config.max_routes_per_neighbour,
    }
}

fn start_shard(id: u16, setup: Setup) -> Result<JoinHandle<()>, ConnectorError> {
    let (sender, started) = bounded(1);
    let core = usize::from(id) % available_cores();
    let thread = thread::Builder::new()
        .name(format!("clearway-shard-{id}"))
        .spawn(move || run_shard(id, core, setup, &sender))
        .map_err(ConnectorError::Thread)?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ConnectorError::Executor("its thread ended at once".to_owned())),
    }
}

fn run_shard(id: u16, core: usize, setup: Setup, started: &Sender<Result<(), ConnectorError>>) {
    // The executor's own rings serve little more than one eventfd, so they are small.
    let executor = LocalExecutorBuilder::new(Placement::Fixed(core))
        .name(&format!("shard-{id}"))
        .io_memory(64 << 10)
        .ring_depth(64)
        .make()
        // A machine that does not let us pin still runs.
        .or_else(|_| {
            LocalExecutorBuilder::new(Placement::Unbound)
                .io_memory(64 << 10)
                .ring_depth(64)
                .make()
        });
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            let _ = started.send(Err(ConnectorError::Executor(error.to_string())));
            return;
        }
    };
    executor.run(async {
        match Shard::new(id, setup) {
            Ok(shard) => {
                let _ = started.send(Ok(()));
                shard.run().await;
            }
            Err(error) => {
                let _ = started.send(Err(error.into()));
            }
        }
    });
}

/// Cores this process may use, as a limit for the numbers that shards are pinned to.
fn available_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn api_settings(config: &Config, keys: &Keys, change_log_filter: logs::Change) -> api::Settings {
    api::Settings {
        admin_auth_token: (*keys.admin_auth_token).into(),
        settlement_api_token: config.settlement_api_token.clone(),
        open_reads: config.api_open_reads,
        balance_format: match config.api_balance_format {
            config::BalanceFormat::Integer => api::BalanceFormat::Integer,
            config::BalanceFormat::Scaled => api::BalanceFormat::Scaled,
        },
        default_spsp_account: config.default_spsp_account.as_ref().map(|name| match name {
            AccountName::Username(username) => username.clone(),
            AccountName::Id(id) => id.to_string().into(),
        }),
        packet_rules: PacketRules {
            reflect: config.reflect_payments,
            echo: config.echo,
        },
        tokens: TokenMaker::new(&keys.secret_seed),
        change_log_filter,
    }
}

fn start_api(api: Api, requests: &Receiver<Pending>) -> Result<(), ConnectorError> {
    let api = Arc::new(api);
    for number in 0..API_THREADS {
        let (api, requests) = (Arc::clone(&api), requests.clone());
        thread::Builder::new()
            .name(format!("clearway-api-{number}"))
            .spawn(move || api::serve(&api, &requests))
            .map_err(ConnectorError::Thread)?;
    }
    Ok(())
}

fn start_lookups(lookups: &Receiver<Lookup>) -> Result<(), ConnectorError> {
    for number in 0..LOOKUP_THREADS {
        let lookups = lookups.clone();
        thread::Builder::new()
            .name(format!("clearway-names-{number}"))
            .spawn(move || {
                for Lookup { host, port, respond } in lookups {
                    let address = (host.as_str(), port)
                        .to_socket_addrs()
                        .ok()
                        .and_then(|mut all| all.next());
                    respond(address);
                }
            })
            .map_err(ConnectorError::Thread)?;
    }
    Ok(())
}
