//! The services that a request uses on its core, and the configuration in force.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use geo::Geo;
use http::HeaderMap;

use tokio::sync::{mpsc, watch};

use super::forms::hot_forms::HotForms;
use super::popular::Popular;
use super::purging::PurgeByMethod;
use super::region::SharedRegion;
use super::region::peer_calls::PeerCall;
use crate::cache::KeyHash;
use crate::clock::Clock;
use crate::context::RequestId;
use crate::fill::collapse::Fills;
use crate::fleet::NodeTable;
use crate::guard::{Gate, rate};
use crate::metrics::Recorder;
use crate::purge::{Requirement, RequirementMemo};
use crate::respond::Identity;
use crate::respond::log::LogBuffer;
use crate::route::{RegionTable, Routes};
use crate::store::{Store, StoredHead};
use crate::transform::{Accepted, AcceptedMemo};
use crate::upstream::{Pools, Upstreams};

/// The configuration as requests use it. Immutable; a reload replaces it, and each request keeps the
/// one that it began with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Normalises requests.
    pub gate: Gate,
    /// Sites and rules.
    pub routes: Routes,
    /// The pools that rules name.
    pub pools: Pools,
    /// The node's names in response fields.
    pub identity: Identity,
    /// The request rates of clients; the same table in every plan.
    pub rates: Arc<rate::RateTable>,
    /// The digest of the configuration, which the nodes of a fleet compare.
    pub digest: Arc<str>,
}

impl Plan {
    /// A copy for one core, with its own reference counts of sites and rules.
    fn for_core(&self) -> Self {
        Self { routes: self.routes.deep_clone(), ..self.clone() }
    }
}

/// The arguments of [`Worker::new`].
pub(crate) struct WorkerParts {
    /// The plan in force, for all workers.
    pub plan: Arc<ArcSwap<Plan>>,
    /// The node's store.
    pub store: Store,
    /// The fills in flight on the node.
    pub fills: Fills,
    /// Serialises changes of variant lists; one for all workers.
    pub variant_list_lock: Arc<tokio::sync::Mutex<()>>,
    /// This core's connections to origins.
    pub upstreams: Upstreams,
    /// Takes purges that arrive as requests with the method PURGE.
    pub purges: mpsc::Sender<PurgeByMethod>,
    /// Takes calls of peers.
    pub peer_calls: mpsc::Sender<PeerCall>,
    /// Counts the most requested responses of all cores.
    pub popular: Arc<Popular>,
    /// Codes the forms of often requested responses again.
    pub hot_forms: Arc<HotForms>,
    /// The core's number, counted from zero.
    pub number: usize,
    /// True while the purge bus is silent.
    pub bus_silent: Arc<AtomicBool>,
    /// The regions of the fleet, for redirects by place.
    pub regions: Arc<ArcSwap<RegionTable>>,
    /// The nodes of the fleet.
    pub nodes: watch::Receiver<Arc<NodeTable>>,
    /// The nodes that own keys, and the connections to them. `None`: the node has no peers.
    pub region: Option<SharedRegion>,
    /// Locates clients.
    pub geo: Arc<Geo>,
    /// The node's clock.
    pub clock: Clock,
    /// This core's counters.
    pub recorder: Recorder,
    /// This core's access-log lines.
    pub log: LogBuffer,
    /// The first request id of this core; random.
    pub first_id: u64,
}

/// One core of the data path.
pub(crate) struct Worker {
    pub(super) store: Store,
    pub(super) fills: Fills,
    pub(super) variant_list_lock: Arc<tokio::sync::Mutex<()>>,
    pub(super) upstreams: Upstreams,
    pub(super) purges: mpsc::Sender<PurgeByMethod>,
    pub(super) peer_calls: mpsc::Sender<PeerCall>,
    pub(super) bus_silent: Arc<AtomicBool>,
    pub(super) nodes: watch::Receiver<Arc<NodeTable>>,
    pub(super) region: Option<SharedRegion>,
    popular: Arc<Popular>,
    pub(super) hot_forms: Arc<HotForms>,
    number: usize,
    sample: Cell<u64>,
    pub(super) regions: Arc<ArcSwap<RegionTable>>,
    pub(super) geo: Arc<Geo>,
    pub(super) clock: Clock,
    pub(super) recorder: Recorder,
    pub(super) log: Rc<LogBuffer>,
    plan: RefCell<LocalPlan>,
    next_id: Cell<u64>,
    accepted: RefCell<AcceptedMemo>,
    requirement: RefCell<RequirementMemo>,
}

/// The plan in force and this core's copy of it. Each request changes the reference counts of its site
/// and rule; counts shared by all cores would be a contended cache line.
struct LocalPlan {
    source: Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>,
    copied: Arc<Plan>,
    local: Rc<Plan>,
}

impl Worker {
    /// A worker that uses these services.
    pub(crate) fn new(parts: WorkerParts) -> Rc<Self> {
        let mut source = Cache::new(parts.plan);
        let copied = source.load().clone();
        let local = Rc::new(copied.for_core());
        Rc::new(Self {
            store: parts.store,
            fills: parts.fills,
            variant_list_lock: parts.variant_list_lock,
            upstreams: parts.upstreams,
            purges: parts.purges,
            peer_calls: parts.peer_calls,
            bus_silent: parts.bus_silent,
            nodes: parts.nodes,
            region: parts.region,
            popular: parts.popular,
            hot_forms: parts.hot_forms,
            number: parts.number,
            sample: Cell::new(parts.first_id),
            regions: parts.regions,
            geo: parts.geo,
            clock: parts.clock,
            recorder: parts.recorder,
            log: Rc::new(parts.log),
            plan: RefCell::new(LocalPlan { source, copied, local }),
            next_id: Cell::new(parts.first_id),
            accepted: RefCell::default(),
            requirement: RefCell::default(),
        })
    }

    /// Hands this core's access-log lines to the writer.
    pub(crate) fn flush_log(&self) {
        self.log.flush();
    }

    /// Counts one of sixteen hits for [`Popular`], and returns for it about how many hits the object has had. The
    /// sample is random, so that no pattern of requests coincides with it.
    pub(super) fn note_hit(&self, hash: KeyHash, head: &Arc<StoredHead>) -> Option<u32> {
        let next = self.sample.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.sample.set(next);
        (next >> 60 == 0)
            .then(|| self.popular.note(self.number, hash, head).saturating_mul(HITS_PER_SAMPLE))
    }

    pub(super) fn plan(&self) -> Rc<Plan> {
        let mut plan = self.plan.borrow_mut();
        let LocalPlan { source, copied, local } = &mut *plan;
        let current = source.load();
        if !Arc::ptr_eq(current, copied) {
            *copied = current.clone();
            *local = Rc::new(copied.for_core());
        }
        local.clone()
    }

    /// The codings that the client of a request with these fields accepts.
    pub(super) fn accepted(&self, request: &HeaderMap) -> Accepted {
        self.accepted.borrow_mut().accepted(request)
    }

    /// The purge requirement in this value of `Skerry-Purges`. `None`: it is none.
    pub(super) fn requirement(&self, field: &[u8]) -> Option<Requirement> {
        self.requirement.borrow_mut().parse(field)
    }

    /// The time since `started`, when a request was received.
    pub(super) fn elapsed(&self, started: Instant) -> Duration {
        self.clock.instant().duration_since(started)
    }

    /// The next request id. Consecutive ids differ in many bits, so that they are easy to tell apart.
    pub(super) fn next_request_id(&self) -> RequestId {
        let next = self.next_id.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next_id.set(next);
        RequestId(next ^ (next >> 31))
    }
}

/// One hit of so many is counted.
const HITS_PER_SAMPLE: u32 = 16;
