//! The compiled zones, edge names and limits that the name server answers from. Immutable; a reload or a change
//! of the nodes replaces it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::catalog::{Catalog, ZoneMistake};
use super::edges::EdgeName;
use super::rate::RateLimit;
use super::settings::{EdgeNode, EdgeSettings, EdgeState, Settings};

/// The zones and edge names that answers come from.
#[derive(Debug)]
pub(crate) struct DnsPlan {
    /// Plans that differ only in their nodes share it.
    pub(super) catalog: Arc<Catalog>,
    /// The edge names, by the index in their entries.
    pub(super) edges: Vec<EdgeName>,
    /// Responses to queries for each zone, by its index.
    pub(super) zone_counts: Vec<Arc<AtomicU64>>,
    /// For each edge name, the responses by region.
    pub(super) region_counts: Vec<Vec<Arc<AtomicU64>>>,
    pub(super) nsid: Box<[u8]>,
    pub(super) rate: RateLimit,
}

/// The counters of zones and regions, which outlive a plan.
#[derive(Debug, Default)]
pub(crate) struct PlanCounters {
    zones: Mutex<BTreeMap<Arc<str>, Arc<AtomicU64>>>,
    regions: Mutex<BTreeMap<Arc<str>, Arc<AtomicU64>>>,
}

impl DnsPlan {
    /// Compiles the settings for these nodes.
    ///
    /// # Errors
    /// The mistakes of the zones.
    pub(crate) fn new(
        settings: &Settings,
        nodes: &[EdgeNode],
        counters: &PlanCounters,
    ) -> Result<Self, Vec<ZoneMistake>> {
        Ok(Self::over(Arc::new(Catalog::build(&settings.zones)?), settings, nodes, counters))
    }

    /// The same zones with other nodes. `settings` are those that this plan was compiled from.
    pub(super) fn with_nodes(
        &self,
        settings: &Settings,
        nodes: &[EdgeNode],
        counters: &PlanCounters,
    ) -> Self {
        Self::over(self.catalog.clone(), settings, nodes, counters)
    }

    fn over(
        catalog: Arc<Catalog>,
        settings: &Settings,
        nodes: &[EdgeNode],
        counters: &PlanCounters,
    ) -> Self {
        let of =
            |(zone, at): &(usize, usize)| -> &EdgeSettings { &settings.zones[*zone].edges[*at] };
        let edges: Vec<EdgeName> = catalog
            .edges
            .iter()
            .map(|edge| EdgeName::new(of(edge), nodes, settings.has_https))
            .collect();
        let zones = catalog.zones.iter().map(|zone| counter(&counters.zones, &zone.name));
        let regions = |edge: &EdgeName| {
            edge.regions.iter().map(|region| counter(&counters.regions, &region.name)).collect()
        };
        Self {
            zone_counts: zones.collect(),
            region_counts: edges.iter().map(regions).collect(),
            nsid: settings.server.nsid.as_bytes().into(),
            rate: RateLimit {
                per_second: settings.server.rate_per_second,
                slip: settings.server.rate_slip,
            },
            catalog,
            edges,
        }
    }
}

impl DnsPlan {
    /// Each edge name with the states of the nodes that it answers: of all, and of those with IPv4.
    pub(super) fn edge_states(&self) -> impl Iterator<Item = (&[u8], [Option<EdgeState>; 2])> {
        self.edges.iter().map(|edge| (&*edge.name, [edge.best_state, edge.best_state_v4]))
    }
}

impl PlanCounters {
    /// Responses by zone.
    pub(super) fn zones(&self) -> Vec<(Arc<str>, u64)> {
        values(&self.zones)
    }

    /// Answers by region.
    pub(super) fn regions(&self) -> Vec<(Arc<str>, u64)> {
        values(&self.regions)
    }
}

type CounterMap = Mutex<BTreeMap<Arc<str>, Arc<AtomicU64>>>;

/// The counter of a name. A name beyond [`NAMES_MAX`] counts where nobody reads.
fn counter(map: &CounterMap, name: &Arc<str>) -> Arc<AtomicU64> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if map.len() >= NAMES_MAX && !map.contains_key(name) {
        return Arc::default();
    }
    map.entry(name.clone()).or_default().clone()
}

fn values(map: &CounterMap) -> Vec<(Arc<str>, u64)> {
    let map = map.lock().unwrap_or_else(PoisonError::into_inner);
    map.iter().map(|(name, count)| (name.clone(), count.load(Ordering::Relaxed))).collect()
}

/// Many reloads with ever new names must not grow the metrics without end.
const NAMES_MAX: usize = 4096;
