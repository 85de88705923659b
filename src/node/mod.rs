//! The composition root: builds every part once, wires them, reloads, drains.
//!
//! ```text
//! config ─▶ Plan (gate, routes, pools) ─ArcSwap─▶ workers ◀─ sockets, store, fills, geo, log
//!                                                   ▲
//! admin API, tasks ────────── background runtime ────┘ (store, drain, reload)
//! ```

mod actions;
mod alarms;
mod announcement;
mod changed_files;
mod config_history;
mod deliveries;
mod edge_nodes;
mod fleet_view;
mod metrics;
mod origin_states;
mod origins;
mod overview;
mod peer_calls;
mod peer_metrics;
mod probes;
mod region;
mod saved_origins;
mod shared;
mod shown_tags;
mod sources;
mod state_file;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use geo::Geo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};

use crate::bus::{Bus, BusParts};
use crate::clock::{Clock, unix_ms};
use crate::config::{Config, Flags};
use crate::control::admin;
use crate::control::tls::AdminTls;
use crate::control::tokens::TokenFile;
use crate::dns::{DnsBindError, DnsSockets, NameServer, NameServerParts};
use crate::fill::collapse::Fills;
use crate::fleet::Readiness;
use crate::guard::rate;
use crate::listen::{
    self, Listener, ListenerState, PeerListenerState, TlsState, Transport, WorkerSockets,
};
use crate::metrics::{History, Metrics, Scrapes};
use crate::notices::{self, SuppressedLines};
use crate::peers::{PeerFileError, PeerTls};
use crate::purge::{self, Purges};
use crate::respond::log::AccessLog;
use crate::serve::{HotForms, Popular};
use crate::store::{self, Store};
use crate::upstream::{Checks, Discovery, Pools, Resolver};

use self::metrics::{NodeMetrics, ReloadRecord};
use actions::run_purge_requests;
use announcement::announcement;
use config_history::ConfigHistory;
use edge_nodes::{edge_nodes_at_start, region_table};
use origins::OriginMetrics;
use peer_calls::run_peer_calls;
use peer_metrics::PeerMetrics;
use region::RegionPublisher;
use shared::{Shared, plan};
pub use sources::{SourceAnswer, ask_sources};
use workers::WorkerThreads;

/// A running node. [`Node::drain`] and then [`Node::wait`] shut it down. Dropping it stops only the
/// background tasks: the worker threads run until the process exits.
pub struct Node {
    /// The listeners for clients.
    pub listening: Vec<ListenAddress>,
    /// The addresses at which peers reach the node.
    pub peers: Vec<SocketAddr>,
    /// The addresses of the name server.
    pub dns: Vec<SocketAddr>,
    /// The address of the admin API.
    pub admin: SocketAddr,
    /// Whether the admin API speaks TLS.
    pub admin_tls: bool,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    background: Runtime,
    log: AccessLog,
}

/// Where a running node listens for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// The address, with the port that the system gave for port 0.
    pub address: SocketAddr,
    /// Whether the listener speaks TLS.
    pub has_tls: bool,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address cannot be bound.
    #[error(transparent)]
    Bind(#[from] listen::BindError),
    /// An address of the name server cannot be bound.
    #[error(transparent)]
    DnsBind(#[from] DnsBindError),
    /// The listeners' certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] listen::TlsError),
    /// A file of the peer link cannot be used: option, file and cause.
    #[error("peers.{0}")]
    PeerFiles(String),
    /// A GeoIP database cannot be used.
    #[error(transparent)]
    Geo(#[from] geo::LoadError),
    /// The purge log cannot be opened.
    #[error(transparent)]
    Purge(#[from] purge::PurgeLogError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// A pool or a route cannot be built.
    #[error("{}", .0.join("; "))]
    Plan(Vec<String>),
    /// The admin API's tokens or certificates cannot be used.
    #[error("{0}")]
    AdminFiles(String),
    /// The admin API's address cannot be bound.
    #[error(
        "cannot listen on {address} (admin.address): {source}; stop the process that listens there, or choose another port"
    )]
    Admin {
        /// The configured address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// A directory, a file or a thread cannot be created.
    #[error("{what}: {source}")]
    System {
        /// The step that failed.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl Node {
    /// Starts a node; when this returns, the node serves requests.
    ///
    /// # Errors
    /// The first part that cannot be started, and why, in one line.
    #[expect(
        clippy::too_many_lines,
        reason = "a flat list of the parts, in the order in which they start"
    )]
    pub fn start(mut config: Config, flags: Flags, clock: Clock) -> Result<Self, StartError> {
        let directory = &config.node.data_directory.clone();
        std::fs::create_dir_all(directory).map_err(system(format!(
            "cannot create the data directory {} (node.data_directory, --data-dir); choose another one, or let the user of the node create it",
            directory.display()
        )))?;
        let metrics = Metrics::new(config.node.workers);
        metrics.register_collector(Box::new(SuppressedLines));
        let background =
            background_runtime().map_err(system("cannot start the background threads"))?;
        let handle = background.handle();
        let sockets = listen::bind(&with_peer_listeners(&config), config.node.workers)?;
        let (listening, peers) = listening(&sockets);
        config.peers.addresses.clone_from(&peers);
        let dns_sockets = DnsSockets::bind(&config.dns.server)?;
        let admin_listener = background
            .block_on(TcpListener::bind(config.admin.address))
            .map_err(|source| StartError::Admin { address: config.admin.address, source })?;
        let tls = client_tls(&config, &clock)?;
        let peer_tls = peer_tls(&config)?;
        let peer_listeners =
            peer_tls.clone().map(|tls| PeerListenerState::new(tls, config.peers.limits));
        let geo = Arc::new(Geo::open(&config.geo)?);
        let rates = Arc::new(rate::RateTable::new(config.rate_clients_max, clock.instant()));
        // The second value lists running pools with new members; at start, no pool runs.
        let (plan, _) = plan(&config, &Pools::default(), &rates, &metrics.background())
            .map_err(StartError::Plan)?;
        let log = AccessLog::start(&config.log)
            .map_err(system("cannot open the access log (log.access)"))?;
        let purge_log = Purges::open(&config.purge, &clock, &metrics.background(), handle)?;
        let store =
            Store::open(&config.store, purge_log.clone(), &metrics, background.handle().clone());
        let store = background.block_on(store)?;
        let (tokens, admin_tls) = admin_files(&config.admin).map_err(StartError::AdminFiles)?;
        // The purges that this node missed must be in force before it serves its first request.
        let parts = BusParts {
            name: config.node.name.clone(),
            announcement: announcement(&config),
            purges: purge_log,
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let bus = background.block_on(Bus::start(config.bus.clone(), parts, handle)).map_err(
            system("cannot read the files of the purge bus (bus.password_file, bus.ca_file)"),
        )?;
        let (purges, purges_by_method) = mpsc::channel(PURGES_MAX);
        let (peer_calls, calls_of_peers) = mpsc::channel(PEER_CALLS_MAX);
        let (view, nodes_of_fleet) = watch::channel(bus.table());
        let (internal_requests, internal_request_receivers): (Vec<_>, Vec<_>) =
            (0..config.node.workers).map(|_| mpsc::channel(INTERNAL_REQUESTS_MAX)).unzip();
        let (drain_trigger, drain) = listen::drain();
        let addresses =
            listening.iter().map(|listener| listener.address).chain(peers.clone()).collect();
        metrics.register_collector(Box::new(listen::KernelMemory::new(addresses)));
        let dns = config.upstream.dns.clone();
        let resolver = Resolver::new(dns, handle.clone(), metrics.background());
        let mut checks =
            Checks::new(resolver.clone(), metrics.background(), clock.clone(), handle.clone());
        checks.replace(&plan.pools);
        origin_states::restore(&plan.pools, directory);
        let age_max = config.upstream.dns.stale_max;
        saved_origins::restore(&plan.pools, directory, clock.now(), age_max);
        let mut discovery = Discovery::new(resolver.clone(), metrics.background(), handle.clone());
        discovery.replace(&plan.pools).wait();
        let plan = Arc::new(ArcSwap::from_pointee(plan));
        metrics.register_collector(Box::new(OriginMetrics::new(plan.clone())));
        let at_start = edge_nodes_at_start(&config.dns.nodes, &bus.table(), &config.node.name);
        let regions = region_table(&at_start, &config.node.region);
        let regions = Arc::new(ArcSwap::from_pointee(regions));
        let (edge_nodes, nodes) = watch::channel(at_start.into());
        let parts = NameServerParts {
            geo: geo.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            nodes,
        };
        let name_server = NameServer::start(config.dns.clone(), dns_sockets, parts)
            .map_err(system("cannot start the name server"))?;
        background.spawn(name_server.clone().follow_nodes());
        let dns = name_server.addresses().to_vec();
        let hot_forms = HotForms::start(
            config.hot_forms.clone(),
            store.clone(),
            metrics.background(),
            handle.clone(),
        );
        let hot_forms =
            hot_forms.map_err(system("cannot start the thread that codes hot forms"))?;
        let started_ms = unix_ms(clock.now());
        let publisher = peer_tls
            .clone()
            .map(|tls| RegionPublisher::new(&config, tls, bus.table(), clock.clone()));
        if let Some(publisher) = &publisher {
            let collector = PeerMetrics(publisher.region.clone(), store.clone());
            metrics.register_collector(Box::new(collector));
        }
        let shared = Arc::new(Shared {
            name_server,
            edge_nodes,
            regions,
            plan,
            checks: Mutex::new(checks),
            discovery: Mutex::new(discovery),
            listeners: ListenerState::new(
                config.listen.limits.clone(),
                tls.clone(),
                peer_listeners,
                clock.clone(),
            ),
            flags,
            rates,
            fills: Fills::new(
                config.fills.clone(),
                config.store.slice_bytes as u64,
                clock.clone(),
                metrics.background(),
            ),
            store,
            bus,
            purges,
            peer_calls,
            nodes: nodes_of_fleet,
            popular: Popular::new(config.node.workers),
            hot_forms,
            internal_requests,
            next_internal_request: AtomicUsize::new(0),
            geo,
            tls,
            region: publisher.as_ref().map(|publisher| publisher.region.clone()),
            peer_tls,
            admin_tls,
            tokens,
            drain: drain_trigger,
            draining: AtomicBool::new(false),
            drain_notice: Arc::default(),
            taps: log.taps().clone(),
            config_history: Mutex::new(ConfigHistory::open(
                &config.node.data_directory,
                config.sources.clone(),
            )),
            reloads: Mutex::new(ReloadRecord {
                is_applied: true,
                applied_at: clock.now(),
                restart_pending: Vec::new(),
            }),
            clock,
            recorder: metrics.background(),
            history: History::new(metrics.clone(), started_ms),
            recent_errors: log.recent_errors().clone(),
            started_ms,
            config: Mutex::new(config),
            change: Mutex::default(),
        });
        metrics.register_collector(Box::new(NodeMetrics(Arc::downgrade(&shared))));
        let workers = WorkerThreads::new(&shared, &metrics, &log, drain, resolver)
            .start(sockets, internal_request_receivers)
            .map_err(system("cannot start a worker thread"))?;
        let admin = admin_listener
            .local_addr()
            .map_err(system("cannot read the address of the admin listener"))?;
        let scrapes = Scrapes::start(metrics.clone())
            .map_err(system("cannot start the thread that writes the metrics"))?;
        let api = shared.admin_api(&metrics, scrapes, handle);
        background.spawn(run_purge_requests(api.clone(), purges_by_method));
        background.spawn(api.run(admin_listener));
        background.spawn(run_peer_calls(shared.clone(), calls_of_peers));
        background.spawn(shared.clone().follow_fleet(view));
        if let Some(publisher) = publisher {
            background.spawn(shared.clone().follow_region(publisher));
        }
        shared.bus.announce(|announcement| announcement.readiness = Readiness::Ready);
        spawn_tasks(&shared, handle);
        let admin_tls = shared.admin_tls.is_some();
        Ok(Self { listening, peers, dns, admin, admin_tls, shared, workers, background, log })
    }

    /// The runtime for everything but requests: disk, purge bus, admin API, signals.
    pub fn background(&self) -> &Handle {
        self.background.handle()
    }

    /// Reads the configuration again and applies it. A configuration with mistakes changes nothing.
    ///
    /// # Errors
    /// One line per mistake.
    pub fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        self.shared.reload()
    }

    /// Closes the access log's file and opens it again, after it was renamed (logrotate).
    pub fn reopen_log(&self) {
        self.log.reopen();
        self.shared.name_server.reopen_log();
    }

    /// Stops accepting connections; requests in flight may take `node.drain_timeout` to finish.
    pub fn drain(&self) {
        self.shared.drain();
        let shared = self.shared.clone();
        self.background.spawn(async move { shared.bus.announce_drain().await });
    }

    /// Waits until the last connection is closed, then closes the store and the log.
    pub fn wait(self) {
        for worker in self.workers {
            // The panic of a worker is already in the error log.
            let _ = worker.join();
        }
        self.shared.name_server.close();
        self.shared.hot_forms.close();
        self.background.block_on(self.shared.bus.leave());
        self.background.block_on(self.shared.store.close());
        self.shared.store.purges().close();
        self.log.close();
        self.background.shutdown_timeout(Duration::from_secs(1));
    }
}

/// Makes a [`StartError::System`] of an operating system's error.
fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::System { what, source }
}

fn background_runtime() -> io::Result<Runtime> {
    let mut threads = Builder::new_multi_thread();
    threads.worker_threads(BACKGROUND_THREADS).thread_name("background").enable_all().build()
}

/// The certificates of the listeners for clients, if one of them has TLS.
fn client_tls(config: &Config, clock: &Clock) -> Result<Option<Arc<TlsState>>, StartError> {
    let listeners = &config.listen.listeners;
    if !listeners.iter().any(|listener| listener.transport == Transport::Tls) {
        return Ok(None);
    }
    let directory = &config.node.data_directory;
    Ok(Some(TlsState::load(&config.listen.tls, directory, clock)?))
}

/// The certificates of the peer link, if it is configured.
fn peer_tls(config: &Config) -> Result<Option<Arc<PeerTls>>, StartError> {
    if !config.peers.is_on() {
        return Ok(None);
    }
    let tls = PeerTls::load(&config.peers.files, &config.node.name).map_err(peer_files)?;
    Ok(Some(tls))
}

fn peer_files(error: PeerFileError) -> StartError {
    StartError::PeerFiles(format!("{}: {}", error.option, error.reason))
}

/// The tokens and the certificates of the admin API, if they are configured.
fn admin_files(settings: &admin::Settings) -> Result<AdminFiles, String> {
    let tokens = settings.tokens.as_deref().map(TokenFile::load).transpose()?;
    let tls = settings.tls.as_ref().map(AdminTls::load).transpose()?;
    Ok((tokens.map(Arc::new), tls.map(Arc::new)))
}

type AdminFiles = (Option<Arc<TokenFile>>, Option<Arc<AdminTls>>);

/// The listeners for clients, and the addresses of those for peers.
fn listening(sockets: &[WorkerSockets]) -> (Vec<ListenAddress>, Vec<SocketAddr>) {
    let (mut clients, mut peers) = (Vec::new(), Vec::new());
    for listener in sockets.first().into_iter().flat_map(WorkerSockets::listeners) {
        let address = listener.address;
        match listener.transport {
            Transport::Plain => clients.push(ListenAddress { address, has_tls: false }),
            Transport::Tls => clients.push(ListenAddress { address, has_tls: true }),
            Transport::Peers => peers.push(address),
        }
    }
    (clients, peers)
}

/// The listeners for clients, and those for peers.
fn with_peer_listeners(config: &Config) -> listen::Settings {
    let mut settings = config.listen.clone();
    settings.listeners.extend(config.peers.addresses.iter().copied().map(Listener::peers));
    settings
}

/// Starts the tasks that run as long as the node does.
fn spawn_tasks(shared: &Arc<Shared>, background: &Handle) {
    background.spawn(shared.clone().watch_files());
    background.spawn(shared.clone().record_history());
    background.spawn(shared.clone().save_origins());
    background.spawn(shared.clone().announce_load());
    background.spawn(shared.clone().deliver_purges());
    background.spawn(shared.clone().follow_node_table());
    background.spawn(shared.clone().probe_regions());
    if let Some(tls) = &shared.tls {
        background.spawn(tls.clone().watch());
    }
    background.spawn(notices::sweep_forever());
}

/// Length of each worker's queue of the node's own requests: prefetches, and refreshes after a purge.
const INTERNAL_REQUESTS_MAX: usize = 64;
/// `PURGE` requests that may wait for the admin API; the next ones are refused with 503.
const PURGES_MAX: usize = 256;
/// Calls of peers that may wait; the next ones are refused with 503.
const PEER_CALLS_MAX: usize = 256;
/// Threads of the background runtime. Two, so that a call that blocks one briefly holds up no other task.
const BACKGROUND_THREADS: usize = 2;
