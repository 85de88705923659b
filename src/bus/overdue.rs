//! Purges that a node of the fleet has not applied for long: the oldest one that was ordered at this node.
//!
//! A node is waited for if it was in the table, and not out, when the purge was ordered. A node that comes back counts as new: it
//! reads the stream before it serves, and confirms only the latest of the purges that it has missed.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::inner::Inner;
use super::ledger::{KnownPurge, OverduePurge};
use super::record::RecordKind;
use crate::fleet::{NodeTable, Readiness};

/// Since when each node is waited for, in milliseconds since 1970.
#[derive(Debug, Default)]
struct Awaited(BTreeMap<Arc<str>, AwaitedNode>);

#[derive(Clone, Copy, Debug)]
struct AwaitedNode {
    since_ms: f64,
    is_out: bool,
}

/// Looks for it as long as the node runs.
pub(super) async fn watch(inner: Arc<Inner>) {
    let mut awaited = Awaited::default();
    loop {
        tokio::time::sleep(PERIOD).await;
        let table = inner.table.borrow().clone();
        let static_peers = match inner.connector {
            Some(_) => Vec::new(),
            None => inner.static_peers().clone(),
        };
        awaited.follow(&table, &static_peers, inner.now_ms());
        let mut found = oldest(&inner, &awaited);
        // The messages with receipts may have been lost; Redis has them, too.
        for _ in 0..FETCHES_MAX {
            let Some(purge) = found.as_ref().filter(|purge| purge.age >= PERIOD) else { break };
            let before = purge.clone();
            inner.fetch_receipts(&before.id).await;
            found = oldest(&inner, &awaited);
            if found.as_ref().is_some_and(|now| now.nodes == before.nodes && now.id == before.id) {
                break;
            }
        }
        let age = found.as_ref().map_or(0, |purge| purge.age.as_secs());
        inner.gauges.oldest_pending.set(age as i64);
        *inner.overdue.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

fn oldest(inner: &Inner, awaited: &Awaited) -> Option<OverduePurge> {
    let mut ledger = inner.ledger();
    // Nodes confirm no invalidations.
    let is_watched =
        |known: &KnownPurge| known.node == inner.name && known.kind != RecordKind::Invalidated;
    let is_complete =
        |known: &KnownPurge| !is_watched(known) || awaited.missing(known).next().is_none();
    let (id, known) = ledger.oldest_incomplete(is_complete)?;
    let age = Duration::from_secs_f64(inner.since_ms(known.at_ms) / 1e3);
    let nodes: Vec<_> = awaited.missing(known).cloned().collect();
    let are_out = nodes.iter().all(|name| awaited.0.get(name).is_some_and(|node| node.is_out));
    Some(OverduePurge { id: id.to_owned(), age, nodes, are_out })
}

impl Awaited {
    /// Takes over the nodes of the table, and without Redis the static peers.
    fn follow(&mut self, table: &NodeTable, static_peers: &[Arc<str>], now_ms: f64) {
        let members = table.members().iter();
        let members = members.map(|it| (it.name.clone(), it.readiness == Readiness::Out));
        let peers = static_peers.iter().map(|name| (name.clone(), false));
        let mut next = BTreeMap::new();
        for (name, is_out) in peers.chain(members) {
            let known = self.0.get(&name).filter(|known| !known.is_out || is_out);
            let since_ms = known.map_or(now_ms, |known| known.since_ms);
            next.insert(name, AwaitedNode { since_ms, is_out });
        }
        self.0 = next;
    }

    /// The nodes that were waited for when the purge was ordered, and have not confirmed it.
    fn missing<'a>(&'a self, known: &'a KnownPurge) -> impl Iterator<Item = &'a Arc<str>> {
        let nodes = self.0.iter().filter(|(_, node)| node.since_ms <= known.at_ms);
        nodes.map(|(name, _)| name).filter(|name| !known.receipts.contains_key(&***name))
    }
}

/// Interval of the looks.
const PERIOD: Duration = Duration::from_secs(5);
/// Purges whose receipts are read from Redis in one look.
const FETCHES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Announcement, FleetMember};

    fn table(nodes: &[(&str, Readiness)]) -> NodeTable {
        let member = |(name, readiness): &(&str, Readiness)| FleetMember {
            readiness: *readiness,
            ..FleetMember::new((*name).into(), Announcement::of_region(""))
        };
        NodeTable::new(nodes.iter().map(member).collect())
    }

    #[test]
    fn a_purge_waits_for_the_nodes_that_were_there_and_not_for_those_that_came_later() {
        use Readiness::{Out, Ready};
        let mut awaited = Awaited::default();
        let missing = |awaited: &Awaited, at_ms: f64| {
            let known = KnownPurge::for_tests("a", at_ms);
            awaited.missing(&known).map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        awaited.follow(&table(&[("a", Ready), ("b", Ready)]), &[], 1000.0);
        assert_eq!(missing(&awaited, 2000.0), "b", "a has confirmed it");
        assert_eq!(missing(&awaited, 500.0), "", "ordered before the first look");
        awaited.follow(&table(&[("a", Ready), ("b", Out), ("c", Ready)]), &[], 3000.0);
        assert_eq!(missing(&awaited, 2000.0), "b", "c came later");
        awaited.follow(&table(&[("a", Ready), ("b", Ready), ("c", Ready)]), &[], 4000.0);
        assert_eq!(missing(&awaited, 2000.0), "", "b is back");
        assert_eq!(missing(&awaited, 5000.0), "b c");
        awaited.follow(&table(&[("a", Ready)]), &["d".into()], 6000.0);
        assert_eq!(missing(&awaited, 7000.0), "d", "b and c are forgotten");
    }
}
