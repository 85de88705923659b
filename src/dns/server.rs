//! The running name server: its threads, and the plan that they answer from.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use geo::Geo;
use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, watch};

use super::catalog::ZoneMistake;
use super::cookie::Cookies;
use super::counts::DnsMetrics;
use super::edges::Dice;
use super::name;
use super::plan::{DnsPlan, PlanCounters};
use super::query_log::QueryLog;
use super::rate::ResponseRates;
use super::respond::Responder;
use super::settings::{EdgeNode, EdgeState, ServerSettings, Settings};
use super::socket::{AddressSockets, DnsBindError};
use super::tcp::{TcpLimits, TcpThread};
use super::udp::UdpThread;
use crate::clock::Clock;
use crate::metrics::{Metrics, Recorder};
use crate::random::random_u64;
use crate::thread_priority::{self, Niceness};

/// The sockets of all addresses, bound before the rest of the node starts.
#[derive(Debug)]
pub(crate) struct DnsSockets(Vec<AddressSockets>);

impl DnsSockets {
    /// Binds every address for UDP and TCP.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub(crate) fn bind(settings: &ServerSettings) -> Result<Self, DnsBindError> {
        let bind = |address: &SocketAddr| AddressSockets::bind(*address, settings.threads);
        settings.addresses.iter().map(bind).collect::<Result<_, _>>().map(Self)
    }
}

/// The services that the name server shares with the rest of the node.
pub(crate) struct NameServerParts {
    /// Finds places.
    pub geo: Arc<Geo>,
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
    /// The node's clock.
    pub clock: Clock,
    /// The nodes, for as long as the sender lives.
    pub nodes: watch::Receiver<Arc<[EdgeNode]>>,
}

/// The state that the threads of the name server share.
pub(super) struct ServerState {
    pub(super) plan: ArcSwap<DnsPlan>,
}

/// A running name server.
pub(crate) struct NameServer {
    pub(super) state: Arc<ServerState>,
    pub(super) settings: Mutex<Settings>,
    pub(super) nodes: watch::Receiver<Arc<[EdgeNode]>>,
    pub(super) geo: Arc<Geo>,
    pub(super) counters: Arc<PlanCounters>,
    addresses: Vec<SocketAddr>,
    cookies: Cookies,
    closing: Arc<OwnedFd>,
    closing_tcp: Arc<Notify>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    log: Mutex<QueryLog>,
}

impl NameServer {
    /// Starts the threads. Without addresses there are none, and the plan is kept for `skerry dns explain`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn start(
        settings: Settings,
        sockets: DnsSockets,
        parts: NameServerParts,
    ) -> io::Result<Arc<Self>> {
        let counters = Arc::new(PlanCounters::default());
        let plan = plan(&settings, &parts.nodes.borrow(), &counters).map_err(io::Error::other)?;
        let secret = settings.server.cookie_secret.unwrap_or_else(random_secret);
        let server = Arc::new(Self {
            state: Arc::new(ServerState { plan: ArcSwap::from_pointee(plan) }),
            nodes: parts.nodes.clone(),
            geo: parts.geo.clone(),
            counters: counters.clone(),
            addresses: sockets.0.iter().map(|sockets| sockets.address).collect(),
            cookies: Cookies::new(secret),
            closing: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?),
            closing_tcp: Arc::default(),
            threads: Mutex::default(),
            log: Mutex::new(QueryLog::start(settings.server.query_log.as_deref())?),
            settings: Mutex::new(settings),
        });
        log_states(&server.state.plan.load(), None);
        parts.metrics.register_collector(Box::new(DnsMetrics(counters)));
        if !server.addresses.is_empty() {
            let threads = server.start_threads(sockets, &parts)?;
            *server.threads() = threads;
        }
        Ok(server)
    }

    /// The addresses, with the real port where the configuration has port 0.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers from these settings from now on. Addresses, threads and limits of connections stay.
    ///
    /// # Errors
    /// The mistakes of the zones; the old ones stay in use.
    pub(crate) fn replace(&self, mut settings: Settings) -> Result<(), String> {
        let mut current = self.settings();
        // Listeners stay until a restart.
        settings.has_https = current.has_https;
        self.apply(&settings)?;
        *current = settings;
        Ok(())
    }

    /// Compiles the edge names again after each change of the nodes, as long as their sender lives, and at most every
    /// [`COMPILED_EVERY`]: in a large fleet, loads change all the time.
    pub(crate) async fn follow_nodes(self: Arc<Self>) {
        let mut nodes = self.nodes.clone();
        while nodes.changed().await.is_ok() {
            let current = nodes.borrow_and_update().clone();
            self.apply_nodes(&current);
            tokio::time::sleep(COMPILED_EVERY).await;
        }
    }

    /// Ends the threads. Queries that wait in their sockets get no response.
    pub(crate) fn close(&self) {
        // The counter of an eventfd cannot be full after one write.
        let _ = rustix::io::write(&self.closing, &1_u64.to_ne_bytes());
        self.closing_tcp.notify_one();
        let threads: Vec<_> = self.threads().drain(..).collect();
        for thread in threads {
            // The panic of a thread is already in the error log.
            let _ = thread.join();
        }
        self.log().close();
    }

    /// Opens the query log again, for log rotation.
    pub(crate) fn reopen_log(&self) {
        self.log().reopen();
    }

    fn log(&self) -> MutexGuard<'_, QueryLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A responder for one thread.
    pub(super) fn responder(&self) -> Responder {
        Responder { geo: self.geo.clone(), cookies: self.cookies.clone(), dice: Dice(random_u64()) }
    }

    fn apply(&self, settings: &Settings) -> Result<(), String> {
        let next = plan(settings, &self.nodes.borrow().clone(), &self.counters)?;
        self.answer_from(next);
        Ok(())
    }

    fn apply_nodes(&self, nodes: &[EdgeNode]) {
        // Held until the plan is in use, so that the plan and the settings stay those of one configuration.
        let settings = self.settings();
        let next = self.state.plan.load().with_nodes(&settings, nodes, &self.counters);
        self.answer_from(next);
    }

    fn answer_from(&self, next: DnsPlan) {
        let before = self.state.plan.load_full();
        log_states(&next, Some(&before));
        self.state.plan.store(Arc::new(next));
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_threads(
        self: &Arc<Self>,
        sockets: DnsSockets,
        parts: &NameServerParts,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let settings = self.settings().server.clone();
        let (mut listeners, mut udp) = (Vec::new(), Vec::new());
        udp.resize_with(settings.threads, Vec::new);
        for address in sockets.0 {
            listeners.push(address.tcp);
            udp.iter_mut().zip(address.udp).for_each(|(thread, socket)| thread.push(socket));
        }
        let mut threads = Vec::new();
        for (number, sockets) in udp.into_iter().enumerate() {
            let thread = UdpThread {
                state: self.state.clone(),
                sockets,
                closing: self.closing.clone(),
                responder: self.responder(),
                rates: ResponseRates::new(settings.rate_entries_max, parts.clock.instant()),
                log: self.log().buffer(),
                recorder: parts.metrics.background(),
                clock: parts.clock.clone(),
            };
            let builder = thread::Builder::new().name(format!("dns-udp-{number}"));
            threads.push(builder.spawn(move || {
                yield_to_workers();
                thread.run();
            })?);
        }
        let (server, clock) = (self.clone(), parts.clock.clone());
        let (closing, recorder) = (self.closing_tcp.clone(), parts.metrics.background());
        let builder = thread::Builder::new().name("dns-tcp".to_owned());
        threads.push(builder.spawn(move || {
            yield_to_workers();
            let limits = TcpLimits {
                connections_max: settings.tcp_connections_max,
                per_address_max: settings.tcp_per_address_max,
                idle: settings.tcp_idle,
            };
            if let Err(error) = serve_tcp(&server, listeners, limits, (clock, recorder), closing) {
                tracing::error!("the name server answers no queries by TCP: {error}");
            }
        })?);
        Ok(threads)
    }
}

/// Lowers the priority of this thread: a flood of queries must not delay hits. With its part of a busy core it still
/// answers tens of thousands of queries per second.
fn yield_to_workers() {
    thread_priority::lower(Niceness::BehindWorkers, "answers queries");
}

/// Serves the listeners until the server closes.
fn serve_tcp(
    server: &Arc<NameServer>,
    listeners: Vec<std::net::TcpListener>,
    limits: TcpLimits,
    (clock, recorder): (Clock, Recorder),
    closing: Arc<Notify>,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let thread = Rc::new(TcpThread {
            state: server.state.clone(),
            responder: server.responder().into(),
            log: server.log().buffer().into(),
            recorder,
            clock,
            limits,
            clients: Default::default(),
            waiting: Default::default(),
            buffer: RefCell::new(vec![0; usize::from(u16::MAX)].into_boxed_slice()),
        });
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::task::spawn_local(thread.clone().accept(listener));
        }
        closing.notified().await;
        Ok(())
    })
}

/// The plan, or the mistakes of the zones in one line.
fn plan(
    settings: &Settings,
    nodes: &[EdgeNode],
    counters: &PlanCounters,
) -> Result<DnsPlan, String> {
    let text = |mistake: &ZoneMistake| {
        format!("zone {:?}: {}", settings.zones[mistake.zone].name, mistake.message)
    };
    DnsPlan::new(settings, nodes, counters)
        .map_err(|mistakes| mistakes.iter().map(text).collect::<Vec<_>>().join("; "))
}

/// Says of which edge names no node is ready, if that has changed.
fn log_states(next: &DnsPlan, before: Option<&DnsPlan>) {
    let before: HashMap<_, _> = before.into_iter().flat_map(DnsPlan::edge_states).collect();
    for (name, states) in next.edge_states() {
        let was = before.get(name).copied();
        if was == Some(states) {
            continue;
        }
        let name = name::to_text(name);
        let ([all, v4], [all_were, v4_were]) = (states, was.unwrap_or([READY; 2]));
        if all != all_were {
            log_state(&name, "", all);
        }
        // Most names have nodes with IPv4 in the state of all.
        if v4 != v4_were && (v4 != all || v4_were != all_were) {
            log_state(&name, " with IPv4", v4);
        }
    }
}

/// `kind`: the nodes that are meant.
fn log_state(name: &str, kind: &str, state: Option<EdgeState>) {
    match state {
        READY => tracing::info!("edge name {name}: nodes{kind} are ready again"),
        None => tracing::error!(
            "edge name {name}: no node has an address and a weight: queries get SERVFAIL"
        ),
        Some(state) => tracing::error!(
            "edge name {name}: no node{kind} is ready, so that all nodes{kind} that are {} are in the answers",
            state.as_str()
        ),
    }
}

fn random_secret() -> [u8; 16] {
    let (one, other) = (random_u64().to_ne_bytes(), random_u64().to_ne_bytes());
    std::array::from_fn(|at| if at < 8 { one[at] } else { other[at - 8] })
}

const READY: Option<EdgeState> = Some(EdgeState::Ready);
/// Pause between two compilations of the edge names.
const COMPILED_EVERY: Duration = Duration::from_millis(100);
