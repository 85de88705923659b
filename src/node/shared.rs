//! State that the threads of a node share, and its changes while the node runs: reloads and drains.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use geo::Geo;
use tokio::sync::{mpsc, watch};

use super::announcement;
use super::config_history::ConfigHistory;
use super::metrics::ReloadRecord;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::{self, Config, Flags};
use crate::control::tls::AdminTls;
use crate::control::tokens::TokenFile;
use crate::dns::{EdgeNode, NameServer};
use crate::fill::collapse::Fills;
use crate::fleet::NodeTable;
use crate::guard::{Gate, rate};
use crate::listen::{DrainPhase, DrainSwitch, ListenerState, TlsState};
use crate::metrics::{History, Recorder};
use crate::peers::PeerTls;
use crate::respond::log::LogTaps;
use crate::respond::{Identity, RecentErrors};
use crate::route::{RegionTable, Routes};
use crate::serve::{
    HotForms, InternalRequest, PeerCall, Plan, Popular, PurgeByMethod, SharedRegion,
};
use crate::store::Store;
use crate::upstream::{Checks, Discovery, MemberChanges, Pools};

/// The state that the workers, the admin API and the background tasks of one node share.
pub(super) struct Shared {
    pub(super) flags: Flags,
    /// Held briefly: tasks of the background read it.
    pub(super) config: Mutex<Config>,
    /// Held by a reload, and by a call that changes an origin, as long as it takes: one at a time.
    pub(super) change: Mutex<()>,
    pub(super) plan: Arc<ArcSwap<Plan>>,
    /// The health checks of the plan's pools.
    pub(super) checks: Mutex<Checks>,
    /// The sources of the plan's pools.
    pub(super) discovery: Mutex<Discovery>,
    pub(super) rates: Arc<rate::RateTable>,
    pub(super) store: Store,
    /// The fills in progress, and the keys whose responses could not be stored.
    pub(super) fills: Fills,
    pub(super) bus: Bus,
    /// Sends HTTP requests with the method PURGE to the admin API.
    pub(super) purges: mpsc::Sender<PurgeByMethod>,
    /// Sends calls of peers to the background.
    pub(super) peer_calls: mpsc::Sender<PeerCall>,
    /// The nodes of the fleet, with static peers.
    pub(super) nodes: watch::Receiver<Arc<NodeTable>>,
    pub(super) popular: Arc<Popular>,
    pub(super) hot_forms: Arc<HotForms>,
    /// The node's own requests (prefetch, refresh), one queue per worker.
    pub(super) internal_requests: Vec<mpsc::Sender<InternalRequest>>,
    /// Counts these requests, to distribute them over the workers.
    pub(super) next_internal_request: AtomicUsize,
    pub(super) name_server: Arc<NameServer>,
    /// The nodes that the name server answers.
    pub(super) edge_nodes: watch::Sender<Arc<[EdgeNode]>>,
    /// The regions of these nodes, for redirects by place.
    pub(super) regions: Arc<ArcSwap<RegionTable>>,
    pub(super) geo: Arc<Geo>,
    pub(super) listeners: Arc<ListenerState>,
    pub(super) tls: Option<Arc<TlsState>>,
    pub(super) peer_tls: Option<Arc<PeerTls>>,
    /// The nodes that own keys. `None`: the node has no peers.
    pub(super) region: Option<SharedRegion>,
    pub(super) admin_tls: Option<Arc<AdminTls>>,
    pub(super) tokens: Option<Arc<TokenFile>>,
    pub(super) drain: DrainSwitch,
    pub(super) draining: AtomicBool,
    /// The number of the drain whose notice is running: it can still be taken back. 0: none.
    pub(super) drain_notice: Arc<AtomicU64>,
    /// Callers of the admin API that watch the access log.
    pub(super) taps: Arc<LogTaps>,
    pub(super) config_history: Mutex<ConfigHistory>,
    pub(super) reloads: Mutex<ReloadRecord>,
    pub(super) clock: Clock,
    /// Counts what happens outside the workers.
    pub(super) recorder: Recorder,
    /// The last hour, for the dashboard.
    pub(super) history: History,
    pub(super) recent_errors: Arc<RecentErrors>,
    /// When the node was started, in milliseconds since 1970.
    pub(super) started_ms: u64,
}

impl Shared {
    /// Reads the configuration again and applies it (blocking, for seconds if a new source of origins does not answer).
    /// A configuration with mistakes changes nothing.
    ///
    /// # Errors
    /// One line per mistake.
    pub(super) fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        self.apply_loaded(config::load_again(&self.flags), "reloaded")
    }

    /// Applies the configuration from before the present one.
    ///
    /// # Errors
    /// No configuration was in use before, or one line per mistake: a file that it names may have changed since.
    pub(super) fn roll_back(&self) -> Result<Vec<String>, Vec<String>> {
        let previous = self.config_history().previous().cloned();
        let Some(previous) = previous else {
            return Err(vec!["there is no configuration from before the present one".to_owned()]);
        };
        self.apply_loaded(config::load_from(previous, &self.flags), "rolled back")
    }

    /// The changes that a reload would make.
    ///
    /// # Errors
    /// One line per mistake.
    pub(super) fn configuration_diff(&self) -> Result<Vec<String>, Vec<String>> {
        let next = config::load_again(&self.flags).map_err(|mistakes| mistakes.lines())?;
        Ok(next.changes(&self.config()).iter().map(ToString::to_string).collect())
    }

    fn apply_loaded(
        &self,
        loaded: Result<Config, config::Mistakes>,
        act: &str,
    ) -> Result<Vec<String>, Vec<String>> {
        let next = loaded.map_err(|mistakes| mistakes.lines());
        let applied = next.and_then(|next| {
            next.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            self.apply(next)
        });
        self.reloads().is_applied = applied.is_ok();
        match &applied {
            Ok(changes) if changes.is_empty() => {
                tracing::info!("configuration {act}: nothing changed");
            }
            Ok(changes) => tracing::info!("configuration {act}: {}", changes.join("; ")),
            Err(mistakes) => tracing::error!(
                "configuration not {act}: fix the mistakes; the old configuration stays in use: {}",
                mistakes.join("; ")
            ),
        }
        applied
    }

    fn apply(&self, next: Config) -> Result<Vec<String>, Vec<String>> {
        let _only_change = self.lock_changes();
        let (plan, mut member_changes) =
            plan(&next, &self.plan.load().pools, &self.rates, &self.recorder)?;
        let one = |error: String| vec![error];
        if let Some(tls) = &self.tls {
            let data_directory = self.config().node.data_directory.clone();
            tls.replace(&next.listen.tls, &data_directory)
                .map_err(|error| one(error.to_string()))?;
        }
        if let Some(tls) = self.peer_tls.as_ref().filter(|_| next.peers.is_on()) {
            tls.replace(&next.peers.files).map_err(|error| one(error.to_string()))?;
        }
        let geo_before = self.config().geo.clone();
        if next.geo != geo_before {
            self.geo.reload(&next.geo).map_err(|error| one(error.to_string()))?;
        }
        self.name_server.replace(next.dns.clone()).map_err(one)?;
        member_changes.apply();
        // Before the plan is in use: a new pool has no members until its sources have replied.
        let first_replies = self.discovery().replace(&plan.pools);
        first_replies.wait();
        self.plan.store(Arc::new(plan));
        member_changes.close_pools();
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.replace(&self.plan.load().pools);
        drop(checks);
        self.hot_forms.set(next.hot_forms.clone());
        self.listeners.set_limits(next.listen.limits.clone());
        if let Some(peers) = self.listeners.peers() {
            peers.set_limits(next.peers.limits);
        }
        self.bus.set_silence_of_sites(next.bus.silence_of_sites.clone());
        let mut config = self.config();
        let changes = next.changes(&config);
        let texts = |all: bool| -> Vec<String> {
            let changes = changes.iter().filter(|change| all || change.needs_restart);
            changes.map(ToString::to_string).collect()
        };
        let mut reloads = self.reloads();
        reloads.applied_at = self.clock.now();
        reloads.restart_pending = texts(false);
        drop(reloads);
        self.config_history().advance(next.sources.clone());
        let changes = texts(true);
        // The next reload is compared with the running configuration, not with the last file.
        *config = next.reloaded_over(&config);
        self.publish_edge_nodes(&config.dns.nodes);
        self.bus.announce(|own| announcement::follow_config(own, &config));
        Ok(changes)
    }

    /// Stops accepting connections; requests in flight may take `node.drain_timeout` to finish.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        // A notice that is running must not start the drain again.
        self.drain_notice.store(0, Ordering::Relaxed);
        self.drain.turn(DrainPhase::Closing(self.config().node.drain_timeout));
    }

    /// The sources that are followed.
    pub(super) fn discovery(&self) -> MutexGuard<'_, Discovery> {
        self.discovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config_history(&self) -> MutexGuard<'_, ConfigHistory> {
        self.config_history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result of the last reload.
    pub(super) fn reloads(&self) -> MutexGuard<'_, ReloadRecord> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other change of the configuration or of an origin is under way. Never call it with the
    /// configuration locked.
    pub(super) fn lock_changes(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration that is in use.
    pub(super) fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Builds the plan that requests are served by: gate, routes and pools. Pools of `before` that are still
/// configured keep their connections and health. The changes of their members are to be applied once the plan is in use.
///
/// # Errors
/// One line per mistake.
pub(super) fn plan(
    config: &Config,
    before: &Pools,
    rates: &Arc<rate::RateTable>,
    recorder: &Recorder,
) -> Result<(Plan, MemberChanges), Vec<String>> {
    let (pools, member_changes) = before
        .reload(&config.upstream.pools)
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut routes = config.routes.clone();
    for site in &mut routes.sites {
        site.number = recorder.site_number(&site.name);
        for rule in &mut site.rules {
            rule.number = recorder.rule_number(&site.name, &rule.name);
        }
    }
    let routes = Routes::new(&routes, &pools).map_err(|unknown| vec![unknown.to_string()])?;
    let plan = Plan {
        gate: Gate::new(config.guard.clone()),
        routes,
        pools,
        identity: Identity::new(&config.guard.cdn_id),
        rates: rates.clone(),
        digest: config.digest().into(),
    };
    Ok((plan, member_changes))
}
