//! The composition root: builds every part once, wires them, reloads, drains.
//!
//! ```text
//! config ─▶ Plan (gate, routes, pools) ─ArcSwap─▶ workers ◀─ sockets, store, fills, geo, log
//!                                                   ▲
//! admin API, housekeeping ── background runtime ────┘ (store, drain, reload)
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use geo::Geo;
use http::{HeaderMap, StatusCode, Uri};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, LocalOptions, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::cache::KeyHash;
use crate::clock::Clock;
use crate::config::{self, Config, Flags};
use crate::control::admin::{self, Admin, BodyBudget};
use crate::control::audit::Audit;
use crate::control::bus::Bus;
use crate::control::fleet::NodeIdentity;
use crate::control::node_actions::{Coming, NodeActions};
use crate::control::prefetch::Prefetcher;
use crate::control::purge_order::{Names, PurgeOrder};
use crate::control::rate::Rate;
use crate::control::refresh::Refresh;
use crate::control::tls::AdminTls;
use crate::control::tokens::TokenFile;
use crate::fill::collapse::Fills;
use crate::guard::{Gate, rate};
use crate::listen::{self, Door, Drain, DrainSwitch, TlsState, Unread, WorkerSockets};
use crate::metrics::Metrics;
use crate::notices::{self, SuppressedLines};
use crate::purge::{self, Purges};
use crate::random::random_u64;
use crate::respond::Identity;
use crate::respond::log::AccessLog;
use crate::route::Routes;
use crate::serve::{
    self, Explainer, InternalRequest, Plan, Popular, PurgeByMethod, Worker, WorkerParts,
    run_internal_requests,
};
use crate::store::{self, Store};
use crate::upstream::{Pools, Resolver, Upstreams};

/// A running node. Dropped, it is cut off; [`Node::drain`] and [`Node::wait`] end it well.
pub struct Node {
    /// Where it listens: address, and whether with TLS.
    pub listening: Vec<(SocketAddr, bool)>,
    /// Where the admin API is.
    pub admin: SocketAddr,
    /// Whether the admin API speaks TLS.
    pub admin_tls: bool,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    background: Runtime,
    log: AccessLog,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error(transparent)]
    Bind(#[from] listen::BindError),
    /// Certificates can't be used.
    #[error(transparent)]
    Tls(#[from] listen::TlsError),
    /// A GeoIP database can't be used.
    #[error(transparent)]
    Geo(#[from] geo::LoadError),
    /// The purge log can't be opened.
    #[error(transparent)]
    Purge(#[from] purge::PurgeLogError),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// Pools or routes make no sense together.
    #[error("{}", .0.join("; "))]
    Plan(Vec<String>),
    /// The admin API's tokens or certificates can't be used.
    #[error("{0}")]
    AdminFiles(String),
    /// The admin API can't listen.
    #[error("cannot listen on admin.address {address}: {source}")]
    Admin {
        /// The address asked for.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// A file or a thread can't be had.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: String,
        /// The system's words.
        source: io::Error,
    },
}

/// What the node's own parts share.
struct Shared {
    flags: Flags,
    config: Mutex<Config>,
    plan: Arc<ArcSwap<Plan>>,
    rates: Arc<rate::Table>,
    store: Store,
    bus: Bus,
    purges: mpsc::Sender<PurgeByMethod>,
    popular: Arc<Popular>,
    /// One a worker.
    internal_requests: Vec<mpsc::Sender<InternalRequest>>,
    next_internal_request: AtomicUsize,
    geo: Arc<Geo>,
    door: Arc<Door>,
    tls: Option<Arc<TlsState>>,
    admin_tls: Option<Arc<AdminTls>>,
    tokens: Option<Arc<TokenFile>>,
    drain: DrainSwitch,
    draining: AtomicBool,
    clock: Clock,
}

impl Node {
    /// Starts a node. It serves when this returns.
    ///
    /// # Errors
    /// One line that says what is in the way.
    pub fn start(config: Config, flags: Flags, clock: Clock) -> Result<Self, StartError> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |source| StartError::System { what, source }
        };
        std::fs::create_dir_all(&config.node.data_directory)
            .map_err(system(&format!("data directory {}", config.node.data_directory.display())))?;
        let metrics = Metrics::new(config.node.workers);
        metrics.register_collector(Box::new(SuppressedLines));
        let background = Builder::new_multi_thread()
            .worker_threads(BACKGROUND_THREADS)
            .thread_name("background")
            .enable_all()
            .build()
            .map_err(system("background threads"))?;
        let sockets = listen::bind(&config.listen, config.node.workers)?;
        let admin_listener = background.block_on(TcpListener::bind(config.admin.address));
        let admin_listener = admin_listener
            .map_err(|source| StartError::Admin { address: config.admin.address, source })?;
        let tls = match config.listen.listeners.iter().any(|listener| listener.tls) {
            true => Some(TlsState::load(&config.listen.tls, &config.node.data_directory, &clock)?),
            false => None,
        };
        let geo = Arc::new(Geo::open(&config.geo)?);
        let rates = Arc::new(rate::Table::new(config.rate_clients_max, clock.instant()));
        let plan = plan(&config, &Pools::default(), &rates).map_err(StartError::Plan)?;
        let log = AccessLog::start(&config.log).map_err(system("access log"))?;
        let purge_log =
            Purges::open(&config.purge, &clock, &metrics.background(), background.handle())?;
        let store = background.block_on(Store::open(
            &config.store,
            purge_log.clone(),
            &metrics,
            background.handle().clone(),
        ))?;
        let tokens = config.admin.tokens.as_deref().map(TokenFile::load).transpose();
        let tokens = tokens.map_err(StartError::AdminFiles)?.map(Arc::new);
        let admin_tls = config.admin.tls.as_ref().map(AdminTls::load).transpose();
        let admin_tls = admin_tls.map_err(StartError::AdminFiles)?.map(Arc::new);
        let identity =
            NodeIdentity { name: config.node.name.clone(), region: config.node.region.clone() };
        // The first byte is served when the purges that were missed are known.
        let bus = background
            .block_on(Bus::start(
                config.bus.clone(),
                identity,
                purge_log,
                clock.clone(),
                &metrics,
                background.handle(),
            ))
            .map_err(system("purge bus"))?;
        let (purges, purges_by_method) = mpsc::channel(PURGES_MAX);
        let (internal_requests, to_run): (Vec<_>, Vec<_>) =
            (0..config.node.workers).map(|_| mpsc::channel(INTERNAL_REQUESTS_MAX)).unzip();
        let (switch, drain) = listen::drain();
        let listening = sockets.first().map(listening).unwrap_or_default();
        let addresses = listening.iter().map(|(address, _)| *address).collect();
        metrics.register_collector(Box::new(listen::KernelMemory::new(addresses)));
        let shared = Arc::new(Shared {
            plan: Arc::new(ArcSwap::from_pointee(plan)),
            door: Door::new(config.listen.limits.clone(), tls.clone()),
            flags,
            rates,
            store,
            bus,
            purges,
            popular: Popular::new(config.node.workers),
            internal_requests,
            next_internal_request: AtomicUsize::new(0),
            geo,
            tls,
            admin_tls,
            tokens,
            drain: switch,
            draining: AtomicBool::new(false),
            clock,
            config: Mutex::new(config),
        });
        let workers = shared
            .start_workers(sockets, to_run, &metrics, &log, background.handle(), &drain)
            .map_err(system("worker thread"))?;
        let admin = admin_listener.local_addr().map_err(system("admin address"))?;
        let api = shared.admin(&metrics, background.handle());
        background.spawn(take_purges(api.clone(), purges_by_method));
        background.spawn(api.run(admin_listener));
        background.spawn(shared.clone().keep_house());
        if let Some(tls) = &shared.tls {
            background.spawn(tls.clone().watch());
        }
        background.spawn(notices::sweep_forever());
        let admin_tls = shared.admin_tls.is_some();
        Ok(Self { listening, admin, admin_tls, shared, workers, background, log })
    }

    /// The runtime of everything beside the path: for signals.
    pub fn background(&self) -> &Handle {
        self.background.handle()
    }

    /// Reads the configuration anew. A bad one changes nothing.
    ///
    /// # Errors
    /// Every mistake, a line each.
    pub fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        self.shared.reload()
    }

    /// Opens the access log's file anew.
    pub fn reopen_log(&self) {
        self.log.reopen();
    }

    /// Takes no new connections; requests under way have the configured time to finish.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Waits until the last connection is closed, then closes the store and the log.
    pub fn wait(self) {
        for worker in self.workers {
            // A worker that panicked has said so.
            let _ = worker.join();
        }
        self.background.block_on(self.shared.bus.leave());
        self.background.block_on(self.shared.store.close());
        self.shared.store.purges().close();
        self.log.close();
        self.background.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Shared {
    fn start_workers(
        self: &Arc<Self>,
        sockets: Vec<WorkerSockets>,
        internal_requests: Vec<mpsc::Receiver<InternalRequest>>,
        metrics: &Arc<Metrics>,
        log: &AccessLog,
        background: &Handle,
        drain: &Drain,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let config = self.config().clone();
        let background_recorder = metrics.background();
        let resolver =
            Resolver::new(config.upstream.dns, background.clone(), background_recorder.clone());
        let slice_bytes = config.store.slice_bytes as u64;
        let fills = Fills::new(config.fills, slice_bytes, self.clock.clone(), background_recorder);
        let listing = Arc::<tokio::sync::Mutex<()>>::default();
        let mut workers = Vec::new();
        for (number, (sockets, internal_requests)) in
            sockets.into_iter().zip(internal_requests).enumerate()
        {
            let (shared, fills, resolver) = (self.clone(), fills.clone(), resolver.clone());
            let listing = listing.clone();
            let recorder = metrics.worker(number);
            let log = log.buffer(recorder.clone(), self.clock.clone());
            let drain = drain.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            workers.push(thread.spawn(move || {
                let mut runtime = Builder::new_current_thread();
                let runtime = runtime.enable_all().build_local(LocalOptions::default());
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        tracing::error!(%error, worker = number, "cannot create the worker's runtime; the worker does not start");
                        return;
                    }
                };
                let serving = async move {
                    let upstreams =
                        Upstreams::new(resolver, shared.clock.clone(), recorder.clone());
                    let worker = Worker::new(WorkerParts {
                        plan: shared.plan.clone(),
                        store: shared.store.clone(),
                        fills,
                        listing,
                        upstreams,
                        purges: shared.purges.clone(),
                        popular: shared.popular.clone(),
                        number,
                        bus_silent: shared.bus.silent_flag(),
                        geo: shared.geo.clone(),
                        clock: shared.clock.clone(),
                        recorder: recorder.clone(),
                        log,
                        first_id: random_u64(),
                    });
                    let flusher = worker.clone();
                    tokio::task::spawn_local(async move {
                        loop {
                            tokio::time::sleep(LOG_FLUSH).await;
                            flusher.flush_log();
                        }
                    });
                    tokio::task::spawn_local(run_internal_requests(worker.clone(), internal_requests));
                    let answering = worker.clone();
                    let service =
                        move |connection, request| serve::serve(&answering, connection, request);
                    let logging = worker.clone();
                    let on_refused = Rc::new(move |connection, why: Unread| {
                        serve::log_refused(&logging, connection, why.status(), why.as_str());
                    });
                    let (door, clock) = (shared.door.clone(), shared.clock.clone());
                    listen::serve(sockets, door, service, on_refused, recorder, clock, drain).await;
                    worker.flush_log();
                };
                runtime.block_on(serving);
            })?);
        }
        Ok(workers)
    }

    fn admin(self: &Arc<Self>, metrics: &Arc<Metrics>, background: &Handle) -> Arc<Admin> {
        let admin::Settings { hosts, audit_log, purges_per_second_max, prefetch, .. } =
            self.config().admin.clone();
        let refreshes = self.bus.refreshes();
        let prefetcher = Prefetcher::start(prefetch, self.clone(), metrics, refreshes, background);
        Arc::new(Admin {
            bus: self.bus.clone(),
            tls: self.admin_tls.clone(),
            tokens: self.tokens.clone(),
            hosts,
            audit: Audit::new(audit_log, metrics.background(), self.clock.clone()),
            prefetcher,
            rate: Rate::new(purges_per_second_max, self.clock.instant()),
            body_budget: BodyBudget::default(),
            store: self.store.clone(),
            metrics: metrics.clone(),
            clock: self.clock.clone(),
            node: self.clone(),
        })
    }

    /// The admin API's certificates and tokens and the GeoIP databases follow their files.
    async fn keep_house(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            let shared = self.clone();
            let kept = tokio::task::spawn_blocking(move || shared.keep_current()).await;
            if kept.is_err() {
                tracing::error!(
                    "reloading of certificates, tokens and databases panicked; it is tried again"
                );
            }
        }
    }

    fn keep_current(&self) {
        if let Some(tls) = &self.admin_tls {
            match tls.keep_current() {
                Ok(true) => tracing::info!("admin API: certificates reloaded"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "admin API: certificates cannot be reloaded, the old ones stay in use")
                }
            }
        }
        if let Some(tokens) = &self.tokens {
            match tokens.keep_current() {
                Ok(true) => tracing::info!("admin API: tokens reloaded"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "admin API: tokens cannot be reloaded, the old ones stay in use")
                }
            }
        }
        if self.geo.is_outdated() {
            let settings = self.config().geo.clone();
            match self.geo.reload(&settings) {
                Ok(()) => tracing::info!("GeoIP databases reloaded"),
                Err(error) => {
                    tracing::error!(%error, "GeoIP databases cannot be reloaded, the old ones stay in use")
                }
            }
        }
    }

    fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        let loaded = config::load_again(&self.flags);
        let next = loaded.map_err(|mistakes| {
            mistakes.to_string().lines().map(str::to_owned).collect::<Vec<_>>()
        });
        let applied = next.and_then(|next| {
            next.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            self.apply(next)
        });
        match &applied {
            Ok(changes) => tracing::info!(?changes, "configuration reloaded"),
            Err(mistakes) => tracing::error!(
                ?mistakes,
                "configuration not reloaded: fix the mistakes; the old configuration stays in use"
            ),
        }
        applied
    }

    fn apply(&self, next: Config) -> Result<Vec<String>, Vec<String>> {
        let mut config = self.config();
        let plan = plan(&next, &self.plan.load().pools, &self.rates)?;
        let one = |error: String| vec![error];
        if let Some(tls) = &self.tls {
            tls.replace(&next.listen.tls, &config.node.data_directory)
                .map_err(|error| one(error.to_string()))?;
        }
        if next.geo != config.geo {
            self.geo.reload(&next.geo).map_err(|error| one(error.to_string()))?;
        }
        self.plan.store(Arc::new(plan));
        self.door.set_limits(next.listen.limits.clone());
        self.bus.set_silence_of_sites(next.bus.silence_of_sites.clone());
        let changes = next.changes(&config).iter().map(ToString::to_string).collect();
        // The next reload is compared with what runs, not with the file that was read last.
        *config = next.reloaded_over(&config);
        Ok(changes)
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.drain.start(self.config().node.drain_timeout);
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names for Shared {
    fn canonical_url(&self, uri: &Uri) -> Result<String, String> {
        let plan = self.plan.load();
        serve::canonical_url(&plan.routes, &plan.gate, uri)
    }

    fn check_site(&self, name: &str) -> Result<(), String> {
        let plan = self.plan.load();
        if plan.routes.sites().any(|site| &*site.name == name) {
            return Ok(());
        }
        let near = config::suggestion(name, plan.routes.sites().map(|site| &*site.name));
        Err(format!("this node has no site of that name{near}"))
    }
}

impl NodeActions for Shared {
    fn not_ready(&self) -> Option<&'static str> {
        let drains = self.draining.load(Ordering::Relaxed);
        drains.then_some("draining").or_else(|| self.bus.not_ready())
    }

    fn reload(&self) -> Coming<'_, Result<Vec<String>, Vec<String>>> {
        Box::pin(async { Shared::reload(self) })
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let settings = self.config().node.clone();
        let switch = self.drain.clone();
        // Balancers must see that this node is not ready before its door closes.
        tokio::spawn(async move {
            switch.start_after(settings.drain_notice, settings.drain_timeout).await;
        });
    }

    fn site_of(&self, uri: &Uri) -> Option<String> {
        let plan = self.plan.load();
        let normal = plan.gate.normalise_url(uri).ok()?;
        plan.routes.site(normal.authority.host()).map(|site| site.name.to_string())
    }

    fn fetch<'a>(
        &'a self,
        url: &'a str,
        content_bytes_max: Option<usize>,
    ) -> Coming<'a, Result<(StatusCode, Bytes), String>> {
        Box::pin(async move {
            let url: Uri = url.parse().map_err(|error| format!("{error}"))?;
            let (answer, answered) = oneshot::channel();
            let worker = self.next_internal_request.fetch_add(1, Ordering::Relaxed)
                % self.internal_requests.len();
            let request = InternalRequest { url, content_bytes_max, answer };
            let ending = || "the node is shutting down".to_owned();
            self.internal_requests[worker].send(request).await.map_err(|_| ending())?;
            answered.await.unwrap_or_else(|_| Err(ending()))
        })
    }

    fn to_refresh(&self, refresh: Refresh) -> Coming<'_, Vec<Box<str>>> {
        Box::pin(async move {
            let mut urls = self.popular.purged(&self.store);
            if let Some(only) = refresh.urls {
                urls.retain(|url| only.contains(url));
                for url in only {
                    // What is stored under another key than its URL alone is not found here.
                    if urls.len() < refresh.count
                        && !urls.contains(&url)
                        && self.store.peek(KeyHash::of(url.as_bytes())).await.is_some()
                    {
                        urls.push(url);
                    }
                }
            }
            urls.truncate(refresh.count);
            urls
        })
    }

    fn explain<'a>(
        &'a self,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        client: Option<IpAddr>,
        country: Option<geo::Country>,
    ) -> Coming<'a, Result<Value, String>> {
        let explainer = Explainer {
            plan: self.plan.load_full(),
            store: self.store.clone(),
            geo: self.geo.clone(),
            clock: self.clock.clone(),
        };
        Box::pin(async move { explainer.explain(uri, headers, client, country).await })
    }
}

/// `PURGE` requests are ordered as if at the admin API.
async fn take_purges(api: Arc<Admin>, mut purges: mpsc::Receiver<PurgeByMethod>) {
    while let Some(PurgeByMethod { url_key, client, answer }) = purges.recv().await {
        let api = api.clone();
        tokio::spawn(async move {
            let ordered = match PurgeOrder::by_method(&url_key) {
                Ok(order) => api.purge_by_method(order, client).await,
                Err(problem) => Err(problem),
            };
            // Who asked may have left; the purge is made.
            let _ = answer.send(ordered.map_err(|problem| (problem.status, problem.detail)));
        });
    }
}

fn plan(config: &Config, before: &Pools, rates: &Arc<rate::Table>) -> Result<Plan, Vec<String>> {
    let pools = Pools::build(&config.upstream.pools, before)
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let routes =
        Routes::new(&config.routes, &pools).map_err(|unknown| vec![unknown.to_string()])?;
    Ok(Plan {
        gate: Gate::new(config.guard.clone()),
        routes,
        pools,
        identity: Identity::new(&config.guard.cdn_id),
        rates: rates.clone(),
    })
}

fn listening(sockets: &WorkerSockets) -> Vec<(SocketAddr, bool)> {
    sockets.listeners().map(|listener| (listener.address, listener.tls)).collect()
}

/// Errands that wait for a worker.
const INTERNAL_REQUESTS_MAX: usize = 64;
/// `PURGE` requests that wait to be ordered; beyond, they are refused with 503.
const PURGES_MAX: usize = 256;
const BACKGROUND_THREADS: usize = 2;
const HOUSEKEEPING: Duration = Duration::from_secs(5);
const LOG_FLUSH: Duration = Duration::from_millis(200);
