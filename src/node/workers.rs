//! The worker threads, `node.workers` of them (by default one per core): each with a single-threaded runtime, its own sockets and its own
//! connections to origins.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_local;

use super::shared::Shared;
use crate::listen::{self, Drain, HeadError, RequestHandler, WorkerSockets};
use crate::metrics::{Metrics, Recorder};
use crate::random::random_u64;
use crate::respond::log::{AccessLog, LogBuffer};
use crate::serve::{
    self, InternalRequest, UnreadRequest, Worker, WorkerParts, run_internal_requests,
};
use crate::transform;
use crate::upstream::{Resolver, Upstreams};

/// Starts the worker threads, and holds what they share.
pub(super) struct WorkerThreads<'a> {
    shared: &'a Arc<Shared>,
    metrics: &'a Arc<Metrics>,
    log: &'a AccessLog,
    drain: Drain,
    resolver: Arc<Resolver>,
    /// Held while a list of variants is read, changed and written.
    variant_list_lock: Arc<Mutex<()>>,
}

impl<'a> WorkerThreads<'a> {
    /// Creates the lock of variant lists, which the workers share.
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        metrics: &'a Arc<Metrics>,
        log: &'a AccessLog,
        drain: Drain,
        resolver: Arc<Resolver>,
    ) -> Self {
        Self { shared, metrics, log, drain, resolver, variant_list_lock: Arc::default() }
    }

    /// Starts one thread per element of `sockets`.
    ///
    /// # Errors
    /// The operating system refuses a thread. Workers that already run keep running.
    pub(super) fn start(
        &self,
        sockets: Vec<WorkerSockets>,
        internal_requests: Vec<mpsc::Receiver<InternalRequest>>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let queues = sockets.into_iter().zip(internal_requests).enumerate();
        let threads = queues.map(|(number, (sockets, internal_requests))| {
            let setup = self.setup(number);
            let thread = thread::Builder::new().name(format!("worker-{number}"));
            thread.spawn(move || setup.run(sockets, internal_requests))
        });
        threads.collect()
    }

    fn setup(&self, number: usize) -> WorkerSetup {
        let recorder = self.metrics.worker(number);
        let shared = self.shared.clone();
        WorkerSetup {
            number,
            log: self.log.buffer(recorder.clone(), shared.clock.clone()),
            recorder,
            drain: self.drain.clone(),
            resolver: self.resolver.clone(),
            variant_list_lock: self.variant_list_lock.clone(),
            shared,
        }
    }
}

/// The parts of one worker, to be moved to its thread.
struct WorkerSetup {
    number: usize,
    shared: Arc<Shared>,
    recorder: Recorder,
    log: LogBuffer,
    drain: Drain,
    resolver: Arc<Resolver>,
    variant_list_lock: Arc<Mutex<()>>,
}

impl WorkerSetup {
    /// Runs the worker until the node has drained.
    fn run(self, sockets: WorkerSockets, internal_requests: mpsc::Receiver<InternalRequest>) {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(self.serve(sockets, internal_requests)),
            Err(error) => {
                let worker = self.number;
                tracing::error!(%error, worker, "cannot create the worker's runtime; the worker does not start");
            }
        }
    }

    async fn serve(
        self,
        sockets: WorkerSockets,
        internal_requests: mpsc::Receiver<InternalRequest>,
    ) {
        transform::prepare_thread();
        let (recorder, drain) = (self.recorder.clone(), self.drain.clone());
        let listeners = self.shared.listeners.clone();
        let worker = self.into_worker();
        spawn_local(flush_log_regularly(worker.clone()));
        spawn_local(run_internal_requests(worker.clone(), internal_requests));
        let serving = worker.clone();
        let service = move |connection, request| serve::serve(&serving, connection, request);
        let (logging, limits_of) = (worker.clone(), listeners.clone());
        let on_refused = Rc::new(move |connection, why: HeadError| {
            let (status, reason, detail) = (why.status(), why.as_str(), why.to_string());
            let waited = match why {
                HeadError::TimedOut => limits_of.limits().header_timeout,
                _ => Duration::ZERO,
            };
            let unread = UnreadRequest { status, reason, detail, waited };
            serve::refuse_unread(&logging, connection, unread)
        });
        let handler = RequestHandler { service, on_refused };
        listen::serve(sockets, listeners, handler, recorder, drain).await;
        worker.flush_log();
    }

    fn into_worker(self) -> Rc<Worker> {
        let shared = self.shared;
        let upstreams = Upstreams::new(self.resolver, shared.clock.clone(), self.recorder.clone());
        Worker::new(WorkerParts {
            plan: shared.plan.clone(),
            store: shared.store.clone(),
            fills: shared.fills.clone(),
            variant_list_lock: self.variant_list_lock,
            upstreams,
            purges: shared.purges.clone(),
            popular: shared.popular.clone(),
            hot_forms: shared.hot_forms.clone(),
            number: self.number,
            bus_silent: shared.bus.silent_flag(),
            regions: shared.regions.clone(),
            nodes: shared.nodes.clone(),
            peer_calls: shared.peer_calls.clone(),
            region: shared.region.clone(),
            geo: shared.geo.clone(),
            clock: shared.clock.clone(),
            recorder: self.recorder,
            log: self.log,
            first_id: random_u64(),
        })
    }
}

async fn flush_log_regularly(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(LOG_FLUSH).await;
        worker.flush_log();
    }
}

/// Longest time that an access log line waits in a worker's buffer.
const LOG_FLUSH: Duration = Duration::from_millis(200);
