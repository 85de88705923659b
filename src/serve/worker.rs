//! What a request finds on its core: the parts of the house, and the plan in force.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use geo::Geo;

use tokio::sync::mpsc;

use super::popular::Popular;
use super::purging::PurgeByMethod;
use crate::cache::KeyHash;
use crate::clock::Clock;
use crate::context::RequestId;
use crate::fill::collapse::Fills;
use crate::guard::{Gate, rate};
use crate::metrics::Recorder;
use crate::respond::Identity;
use crate::respond::log::LogBuffer;
use crate::route::Routes;
use crate::store::{Head, Store};
use crate::upstream::{Pools, Upstreams};

/// What the configuration means for requests. Immutable; a reload puts another in its place,
/// and each request keeps the one that it began with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The gate.
    pub gate: Gate,
    /// Sites and rules.
    pub routes: Routes,
    /// The pools that rules name.
    pub pools: Pools,
    /// Who we are on the wire.
    pub identity: Identity,
    /// What clients of limited rules have used up; the same table in every plan.
    pub rates: Arc<rate::Table>,
}

impl Plan {
    /// The same plan with sites and rules of its own.
    fn for_core(&self) -> Self {
        Self { routes: self.routes.copied(), ..self.clone() }
    }
}

/// The parts that a worker is built of.
pub(crate) struct WorkerParts {
    /// The plan in force, for all workers.
    pub plan: Arc<ArcSwap<Plan>>,
    /// Memory and disk.
    pub store: Store,
    /// Fills in flight on the node.
    pub fills: Fills,
    /// Held while a variant is listed under its key; one for all workers.
    pub listing: Arc<tokio::sync::Mutex<()>>,
    /// This core's way to origins.
    pub upstreams: Upstreams,
    /// Where purges go that come as requests.
    pub purges: mpsc::Sender<PurgeByMethod>,
    /// What is asked for most, on all cores.
    pub popular: Arc<Popular>,
    /// Which core this is, counted from zero.
    pub number: usize,
    /// Set while the purge bus is silent.
    pub bus_silent: Arc<AtomicBool>,
    /// Where addresses are.
    pub geo: Arc<Geo>,
    /// Time.
    pub clock: Clock,
    /// This core's counters.
    pub recorder: Recorder,
    /// This core's access lines.
    pub log: LogBuffer,
    /// Where this core's request ids begin; random.
    pub first_id: u64,
}

/// One core of the data path.
pub(crate) struct Worker {
    pub(super) store: Store,
    pub(super) fills: Fills,
    pub(super) listing: Arc<tokio::sync::Mutex<()>>,
    pub(super) upstreams: Upstreams,
    pub(super) purges: mpsc::Sender<PurgeByMethod>,
    pub(super) bus_silent: Arc<AtomicBool>,
    popular: Arc<Popular>,
    number: usize,
    sample: Cell<u64>,
    pub(super) geo: Arc<Geo>,
    pub(super) clock: Clock,
    pub(super) recorder: Recorder,
    pub(super) log: Rc<LogBuffer>,
    plan: RefCell<LocalPlan>,
    next_id: Cell<u64>,
}

/// The plan in force and this core's own copy of it: sites and rules are counted by each
/// request, and a count that all cores share is a cache line that they fight over.
struct LocalPlan {
    source: Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>,
    copied: Arc<Plan>,
    local: Rc<Plan>,
}

impl Worker {
    /// A worker of these parts.
    pub(crate) fn new(parts: WorkerParts) -> Rc<Self> {
        let mut source = Cache::new(parts.plan);
        let copied = source.load().clone();
        let local = Rc::new(copied.for_core());
        Rc::new(Self {
            store: parts.store,
            fills: parts.fills,
            listing: parts.listing,
            upstreams: parts.upstreams,
            purges: parts.purges,
            bus_silent: parts.bus_silent,
            popular: parts.popular,
            number: parts.number,
            sample: Cell::new(parts.first_id),
            geo: parts.geo,
            clock: parts.clock,
            recorder: parts.recorder,
            log: Rc::new(parts.log),
            plan: RefCell::new(LocalPlan { source, copied, local }),
            next_id: Cell::new(parts.first_id),
        })
    }

    /// Hands this core's access lines to the writer.
    pub(crate) fn flush_log(&self) {
        self.log.flush();
    }

    /// One hit of sixteen is looked at, in no order that requests could have too.
    pub(super) fn note_hit(&self, hash: KeyHash, head: &Arc<Head>) {
        let next = self.sample.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.sample.set(next);
        if next >> 60 == 0 {
            self.popular.note(self.number, hash, head);
        }
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

    /// Ids of a core are far apart in their bits, so that they look like what they are: names.
    pub(super) fn next_request_id(&self) -> RequestId {
        let next = self.next_id.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next_id.set(next);
        RequestId(next ^ (next >> 31))
    }
}
