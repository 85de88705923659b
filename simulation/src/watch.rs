//! Watches a run from beside: pauses of the machine, and the origins as the nodes see them.

use crate::fleet::Fleet;
use crate::fleet::node::Admin;
use crate::journal::{Fault, Micros, NodeId, OriginState, SECOND, SIMULATION_PAUSED};
use crate::plan::names::Endpoint;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Detects pauses of the whole simulation: a sleeping laptop, a frozen container, an overloaded machine.
/// Client errors during a pause are not reported, and the record mentions the pause.
pub async fn watch_for_pauses(fleet: Arc<Fleet>) {
    let mut ticks = interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let journal = &fleet.journal;
    let mut before = journal.now();
    loop {
        ticks.tick().await;
        let now = journal.now();
        if now - before > PAUSE_MIN {
            journal.facts().faults.push(Fault {
                kind: SIMULATION_PAUSED.to_owned(),
                what: "simulation paused by this machine".to_owned(),
                nodes: (0..fleet.nodes.len()).collect(),
                began: before,
                ended: Some(now),
                ..Fault::default()
            });
        }
        before = now;
    }
}

/// Longer than a busy machine delays a timer.
const PAUSE_MIN: Micros = 3 * SECOND;

/// Records the changes of the origins' states at all nodes.
pub async fn watch_origins(fleet: Arc<Fleet>) {
    let mut ticks = interval(ORIGINS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: HashMap<(NodeId, String, usize), bool> = HashMap::new();
    loop {
        ticks.tick().await;
        for node in 0..fleet.nodes.len() {
            // A node that is down has no origins in use, and none that it has left.
            let Ok(origins) = Admin::new(fleet.nodes[node].spec.ports.admin).origins().await else {
                continue;
            };
            for (pool, port, is_in_use) in origins {
                let Some(origin) = origin_at(&fleet, node, port) else { continue };
                let before = known.insert((node, pool.clone(), origin), is_in_use);
                if before.unwrap_or(true) != is_in_use {
                    let at = fleet.journal.now();
                    let state = OriginState { at, node, pool, origin, is_in_use };
                    fleet.journal.facts().origin_states.push(state);
                }
            }
        }
    }
}

/// The origin at the end of a node's link with this port.
fn origin_at(fleet: &Fleet, node: NodeId, port: u16) -> Option<usize> {
    let mut links = fleet.links.iter();
    let link = links.find(|link| link.from == Endpoint::Node(node) && link.port == port)?;
    match link.to {
        Endpoint::Origin(origin) => Some(origin),
        _ => None,
    }
}

/// A fraction of the shortest time that an origin is out.
const ORIGINS_PERIOD: Duration = Duration::from_millis(500);
