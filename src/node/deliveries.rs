//! Delivers purges to the peers, over the peer link: to the static peers, and to the nodes of the region.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shared::Shared;
use crate::bus::PeerPosition;
use crate::metrics::Metric;
use crate::peers::{PURGES_CALL, PeerCaller};
use crate::random::random_u64;
use crate::serve::Region;

/// A task that delivers to one peer; it ends when this is dropped.
struct DeliveryTask {
    task: JoinHandle<()>,
    address: SocketAddr,
}

impl Drop for DeliveryTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Delivers as long as the node runs. A node without peers delivers nothing.
    pub(super) async fn deliver_purges(self: Arc<Self>) {
        let Some(tls) = self.peer_tls.clone() else { return };
        let own: Arc<str> = self.bus.name().into();
        let mut nodes = self.nodes.clone();
        let mut tasks: BTreeMap<Arc<str>, DeliveryTask> = BTreeMap::new();
        loop {
            let peers = self.peers_to_deliver_to(&own);
            let purges = self.store.purges();
            tasks.retain(|name, task| {
                let is_kept = peers.get(name) == Some(&task.address);
                if !is_kept {
                    purges.remove_peer(name);
                }
                is_kept
            });
            for (name, address) in peers {
                tasks.entry(name.clone()).or_insert_with(|| {
                    purges.add_peer(&name);
                    let caller = PeerCaller::new(tls.clone(), own.clone(), name.clone(), address);
                    let task = tokio::spawn(deliver_forever(self.clone(), name, caller));
                    DeliveryTask { task, address }
                });
            }
            // A reload may have changed the static peers.
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, nodes.changed()).await {
                return;
            }
        }
    }

    /// The static peers, and the nodes of the region and of the shields that are not out.
    fn peers_to_deliver_to(&self, own: &str) -> BTreeMap<Arc<str>, SocketAddr> {
        let config = self.config();
        let listed = config.peers.nodes.clone();
        let own_region: Arc<str> = config.node.region.as_str().into();
        let regions: Vec<_> = config.routes.shield_regions().chain([&own_region]).collect();
        let listed: BTreeMap<_, _> =
            listed.into_iter().filter(|(name, _)| **name != *own).collect();
        self.bus.set_static_peers(listed.keys().cloned().collect());
        let table = self.nodes.borrow().clone();
        let mut peers: BTreeMap<_, _> = Region::peers_in(&table, own, &regions)
            .map(|(peer, address)| (peer.name.clone(), address))
            .collect();
        peers.extend(listed);
        peers
    }
}

/// Delivers to one peer what it has not taken yet.
async fn deliver_forever(shared: Arc<Shared>, name: Arc<str>, mut caller: PeerCaller) {
    let purges = shared.store.purges();
    let mut position = PeerPosition::Unknown;
    let (mut failures, mut failing_since, mut is_warned) = (0, None, false);
    loop {
        let added = purges.delivery_added();
        let Some(content) = shared.bus.next_delivery(&name, position) else {
            if tokio::time::timeout(ASK_AGAIN, added).await.is_err() {
                // The disk may have been replaced by an older one.
                position = PeerPosition::Unknown;
            }
            continue;
        };
        let answer = caller.call(Method::POST, PURGES_CALL, content, CALL_LIMIT).await;
        let outcome = match &answer {
            Ok((status, content)) => shared.bus.note_delivery(&name, position, (*status, content)),
            Err(error) => Err(error.to_string()),
        };
        let index = usize::from(outcome.is_err());
        shared.recorder.count_labelled(Metric::PurgeDeliveries, index);
        match outcome {
            Ok(at) => {
                if std::mem::take(&mut is_warned) {
                    tracing::info!("peer {name} takes purges again");
                }
                (position, failures, failing_since) = (at, 0, None);
            }
            Err(why) => {
                purges.note_unreached(&name);
                failures += 1;
                let since = *failing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= WARN_AFTER && !std::mem::replace(&mut is_warned, true) {
                    tracing::warn!(
                        "peer {name} takes no purges, it is not asked for what they cover: {why}"
                    );
                }
                position = PeerPosition::Unknown;
                tokio::time::sleep(pause_after(failures)).await;
            }
        }
    }
}

/// Twice as long after each failure, up to a limit, with jitter.
fn pause_after(failures: u32) -> Duration {
    let pause = (PAUSE_MIN * (1 << failures.min(6))).min(PAUSE_MAX);
    pause.mul_f64(0.5 + (random_u64() % 1024) as f64 / 2048.0)
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a peer is asked for its position while there is nothing to deliver.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The longest time for an answer; the peer writes to its disk before it.
const CALL_LIMIT: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a peer must fail before it is logged: longer than a restart, and than nodes take to learn of a new one.
const WARN_AFTER: Duration = Duration::from_secs(5);
