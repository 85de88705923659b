//! Probes the nodes of other regions over the data path, and announces those that fail. `fleet` decides which nodes
//! this node probes, and what follows from the reports of all.
//!
//! The probes are the checks of a pool whose members are the public addresses of the nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::shared::Shared;
use crate::config::ProbeSettings;
use crate::fleet::FleetMember;
use crate::metrics::Metrics;
use crate::upstream::{Checks, HealthClass, Pools, Resolver};

/// The running probes of one node.
struct Probes {
    checks: Checks,
    pools: Pools,
    settings: Option<ProbeSettings>,
    /// The nodes that are probed, with their addresses.
    targets: Vec<(Arc<str>, Vec<IpAddr>)>,
}

impl Probes {
    /// No probes yet. Their counts are not those of the checks of origins, so that they go nowhere.
    fn new(shared: &Shared) -> Self {
        let recorder = Metrics::new(1).background();
        let handle = tokio::runtime::Handle::current();
        let dns = shared.config().upstream.dns.clone();
        let resolver = Resolver::new(dns, handle.clone(), recorder.clone());
        Self {
            checks: Checks::new(resolver, recorder, shared.clock.clone(), handle),
            pools: Pools::default(),
            settings: None,
            targets: Vec::new(),
        }
    }

    /// Probes these nodes from now on. Nodes that stay keep their results.
    fn follow(&mut self, settings: Option<ProbeSettings>, targets: &[&FleetMember]) {
        let target =
            |member: &&FleetMember| (member.name.clone(), member.announcement.addresses.clone());
        let targets: Vec<_> = targets.iter().map(target).collect();
        if settings == self.settings && targets == self.targets {
            return;
        }
        let definition = settings.as_ref().map(|settings| {
            settings.pool_of(targets.iter().flat_map(|(_, addresses)| addresses).copied())
        });
        let definition = definition.filter(|definition| !definition.origins.is_empty());
        match self.pools.reload(definition.as_slice()) {
            Ok((pools, mut changes)) => {
                changes.apply();
                changes.close_pools();
                self.checks.replace(&pools);
                (self.pools, self.settings, self.targets) = (pools, settings, targets);
            }
            Err(mistakes) => {
                let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                tracing::error!("cannot probe the nodes of other regions: {}", mistakes.join("; "));
            }
        }
    }

    /// The nodes none of whose addresses passes its probe.
    fn failing(&self) -> Vec<Arc<str>> {
        let Some(pool) = self.pools.named(ProbeSettings::POOL) else { return Vec::new() };
        let reports = pool.origins();
        let is_failing = |address: &IpAddr| {
            let mut of_address = reports.iter().filter(|report| report.address == Some(*address));
            of_address.any(|report| report.class == HealthClass::Down)
        };
        let targets = self.targets.iter();
        let failing = targets.filter(|(_, addresses)| addresses.iter().all(is_failing));
        failing.map(|(name, _)| name.clone()).collect()
    }
}

impl Shared {
    /// Probes the nodes of other regions, as long as this node runs.
    pub(super) async fn probe_regions(self: Arc<Self>) {
        let mut probes = Probes::new(&self);
        let mut unreachable = BTreeSet::new();
        loop {
            let settings = self.config().probes.clone();
            let table = self.bus.table();
            let targets = match &settings {
                Some(_) => table.probe_targets(self.bus.name()),
                None => Vec::new(),
            };
            probes.follow(settings.clone(), &targets);
            // While the bus is silent, the table stays as it is, and so do the votes of this node.
            if !self.bus.silent_flag().load(Ordering::Relaxed) {
                let failing = settings.map(|_| probes.failing());
                self.bus.announce(|announcement| announcement.unreachable = failing);
            }
            let next = self.bus.table().unreachable_nodes();
            log_changes(&unreachable, &next);
            unreachable = next;
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// The nodes that this node fails to reach, and those that the fleet has taken out of the answers for it.
    pub(super) fn unreachable_counts(&self) -> (usize, usize) {
        let table = self.bus.table();
        let own = table.get(self.bus.name());
        let failing = own.and_then(|own| own.announcement.unreachable.as_ref()).map_or(0, Vec::len);
        (failing, table.unreachable_nodes().len())
    }
}

fn log_changes(before: &BTreeSet<Arc<str>>, now: &BTreeSet<Arc<str>>) {
    for node in now.difference(before) {
        tracing::error!(
            %node,
            "a majority of the other regions cannot reach a node: edge names do not answer it, although it sends heartbeats; see `skerry nodes`"
        );
    }
    for node in before.difference(now) {
        tracing::info!(%node, "edge names may answer a node again that other regions could not reach");
    }
}

const PERIOD: Duration = Duration::from_millis(250);
