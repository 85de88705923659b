//! The nodes of the fleet as the rooms of this node see them: the table of the bus, with the static peers, and
//! while Redis is away with what the nodes of the region say themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::shared::Shared;
use crate::fleet::{
    Announcement, CheckRecord, FleetMember, NodeTable, PeerEndpoint, nodes_to_check, with_checks,
};
use crate::metrics::Metric;
use crate::peers::{ANNOUNCEMENT_CALL, PROTOCOL, PeerCaller, PeerTls};

/// Keeps the view up to date.
struct FleetView {
    shared: Arc<Shared>,
    tls: Arc<PeerTls>,
    own: Arc<str>,
    records: BTreeMap<Arc<str>, CheckRecord>,
    checks: BTreeMap<Arc<str>, RunningCheck>,
    outcomes: mpsc::Sender<CheckOutcome>,
}

/// A task that checks one node; it ends when this is dropped.
struct RunningCheck {
    task: JoinHandle<()>,
    endpoint: PeerEndpoint,
    interval: Duration,
}

impl Drop for RunningCheck {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A node, and its announcement or why it has not answered.
type CheckOutcome = (Arc<str>, Result<Announcement, String>);

impl Shared {
    /// Publishes the view as long as the node runs. A node without peers checks nobody.
    pub(super) async fn follow_fleet(self: Arc<Self>, view: watch::Sender<Arc<NodeTable>>) {
        let mut tables = self.bus.watch_table();
        let Some(tls) = self.peer_tls.clone() else {
            loop {
                let table = tables.borrow_and_update().clone();
                view.send_replace(table);
                if tables.changed().await.is_err() {
                    return;
                }
            }
        };
        let (outcomes, mut received) = mpsc::channel(OUTCOMES_MAX);
        let own = self.bus.name().into();
        let (records, checks) = Default::default();
        let mut fleet = FleetView { shared: self, tls, own, records, checks, outcomes };
        let mut is_warned = false;
        loop {
            let table = tables.borrow_and_update().clone();
            if is_beyond_reach(&table, &fleet.own) && !std::mem::replace(&mut is_warned, true) {
                tracing::warn!(
                    "this node announces a loopback address to its peers, and other nodes are on other machines: set peers.announced to an address at which they reach it"
                );
            }
            fleet.choose_checks(&table);
            let shown = match fleet.records.is_empty() {
                true => table,
                false => Arc::new(with_checks(&table, &fleet.records)),
            };
            view.send_if_modified(|current| {
                let is_changed = *current != shown;
                *current = shown;
                is_changed
            });
            tokio::select! {
                changed = tables.changed() => if changed.is_err() { return },
                Some((name, outcome)) = received.recv() => fleet.record(&name, outcome),
                // The bus may have gone or come back, and a reload may have changed the peers.
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }
}

/// Whether this node announces a loopback address to nodes that are on other machines.
fn is_beyond_reach(table: &NodeTable, own: &str) -> bool {
    let is_local =
        |member: &FleetMember| member.announcement.peer.map(|peer| peer.address.ip().is_loopback());
    table.get(own).and_then(is_local) == Some(true)
        && table.members().iter().any(|member| is_local(member) == Some(false))
}

impl FleetView {
    /// Starts and ends checks, so that the right nodes are checked.
    fn choose_checks(&mut self, table: &NodeTable) {
        let (peers, interval) = {
            let config = self.shared.config();
            (config.peers.nodes.clone(), config.peers.check_interval)
        };
        let of = |(name, address)| (name, PeerEndpoint { address, protocol: PROTOCOL });
        let peers: Vec<_> = peers.into_iter().map(of).collect();
        let is_away =
            self.shared.bus.report().is_some_and(|bus| bus.is_silent || !bus.is_connected);
        let wanted = nodes_to_check(table, &self.own, &peers, is_away);
        self.records.retain(|name, record| wanted.get(name) == Some(&record.endpoint));
        self.checks.retain(|name, check| {
            wanted.get(name) == Some(&check.endpoint) && check.interval == interval
        });
        for (name, endpoint) in wanted {
            self.records.entry(name.clone()).or_insert_with(|| CheckRecord::new(endpoint));
            if !self.checks.contains_key(&name) {
                let check = self.start_check(name.clone(), endpoint, interval);
                self.checks.insert(name, check);
            }
        }
    }

    fn start_check(
        &self,
        name: Arc<str>,
        endpoint: PeerEndpoint,
        interval: Duration,
    ) -> RunningCheck {
        let (tls, own) = (self.tls.clone(), self.own.clone());
        let caller = PeerCaller::new(tls, own, name.clone(), endpoint.address);
        let task = tokio::spawn(check_forever(name, caller, interval, self.outcomes.clone()));
        RunningCheck { task, endpoint, interval }
    }

    fn record(&mut self, name: &Arc<str>, outcome: Result<Announcement, String>) {
        // The outcome of a check that has ended.
        let Some(record) = self.records.get_mut(name) else { return };
        let index = usize::from(outcome.is_err());
        self.shared.recorder.count_labelled(Metric::PeerChecks, index);
        match outcome {
            Ok(announcement) => {
                if record.is_out() {
                    tracing::info!("peer {name} answers");
                }
                record.succeed(announcement, self.shared.clock.instant());
            }
            Err(why) => {
                if record.fail() {
                    let address = record.endpoint.address;
                    tracing::warn!(
                        "peer {name} does not answer, its keys go to other nodes: {address}: {why}"
                    );
                }
            }
        }
    }
}

/// Asks a node for its announcement once in each interval.
async fn check_forever(
    name: Arc<str>,
    mut caller: PeerCaller,
    interval: Duration,
    outcomes: mpsc::Sender<CheckOutcome>,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = caller.call(Method::GET, ANNOUNCEMENT_CALL, Bytes::new(), interval).await;
        let outcome = match answer {
            Ok((StatusCode::OK, content)) => std::str::from_utf8(&content)
                .ok()
                .and_then(Announcement::parse)
                .ok_or_else(|| "the answer is no announcement".to_owned()),
            Ok((StatusCode::MISDIRECTED_REQUEST, _)) => {
                Err("it refuses this node: its log says why".to_owned())
            }
            Ok((status, _)) => Err(format!("it answers with status {status}")),
            Err(error) => Err(error.to_string()),
        };
        if outcomes.send((name.clone(), outcome)).await.is_err() {
            return;
        }
    }
}

/// How often the view looks at the bus and the configuration.
const PERIOD: Duration = Duration::from_millis(500);
/// Outcomes that may wait for the view; checks wait then.
const OUTCOMES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_address_is_enough_among_nodes_of_one_machine() {
        let member = |name: &str, address: &str| {
            let peer = PeerEndpoint { address: address.parse().unwrap(), protocol: PROTOCOL };
            let announcement = Announcement { peer: Some(peer), ..Announcement::of_region("eu") };
            FleetMember::new(name.into(), announcement)
        };
        let mut table = NodeTable::new(vec![member("own", "127.0.0.1:1"), member("b", "[::1]:2")]);
        assert!(!is_beyond_reach(&table, "own"));
        table = table.with(FleetMember::new("old".into(), Announcement::of_region("eu")));
        assert!(!is_beyond_reach(&table, "own"));
        table = table.with(member("c", "10.0.0.3:9443"));
        assert!(is_beyond_reach(&table, "own") && !is_beyond_reach(&table, "c"));
    }
}
