//! No node of a region serves much more than the others: a popular object does not overload its owner.
//!
//! The load of a node is the responses that it gives to clients and to the nodes that ask it. The node that was
//! asked is the one that had sent the request to the origin: without faults that is the owner of the key. Regions
//! with a fault, and regions of one or two nodes, are not checked: there a node is right to serve more, or cannot
//! serve more than twice the mean.

use super::{CheckContext, Checker, Findings, Observation};
use crate::journal::{Micros, NodeId, SECOND};
use std::collections::HashMap;

/// Checks the load of the nodes of a region; see the module documentation.
#[derive(Default)]
pub struct NoHotNode {
    findings: Findings,
    to_clients: HashMap<NodeId, u64>,
    to_nodes: HashMap<NodeId, u64>,
    last_at: Micros,
}

impl Checker for NoHotNode {
    fn name(&self) -> &'static str {
        "no hot node"
    }

    fn promise(&self) -> &'static str {
        "no node gives more than twice as many responses, to clients and other nodes, as the mean of its region"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        self.last_at = self.last_at.max(observation.done);
        *self.to_clients.entry(observation.node).or_default() += 1;
        if let Some(asked) = asked_node(context, observation) {
            *self.to_nodes.entry(asked).or_default() += 1;
        }
    }

    fn end(&mut self, context: CheckContext) {
        for (node, region) in context.regions.iter().enumerate() {
            let disturbed = context.disturbed(node, SECOND, self.last_at, 0);
            if region.len() < NODES_MIN || disturbed {
                continue;
            }
            let total: u64 = region.iter().map(|node| self.load(*node)).sum();
            let (load, mean) = (self.load(node), total as f64 / region.len() as f64);
            self.findings.count_check();
            if load as f64 > mean * MEANS_MAX {
                let (to_nodes, times) = (count(&self.to_nodes, node), load as f64 / mean);
                let what = format!(
                    "gave {load} responses, {to_nodes} of them to other nodes: {times:.1} times the mean of its \
                     region, {mean:.0}"
                );
                let subject = context.nodes[node].clone();
                self.findings.record_violation(self.last_at, subject, what);
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

impl NoHotNode {
    /// The responses that a node has given to clients and other nodes.
    fn load(&self, node: NodeId) -> u64 {
        count(&self.to_clients, node) + count(&self.to_nodes, node)
    }
}

fn count(responses: &HashMap<NodeId, u64>, node: NodeId) -> u64 {
    responses.get(&node).copied().unwrap_or_default()
}

/// The other node that gave the response, if the client's node has passed it on.
fn asked_node(context: CheckContext, observation: &Observation) -> Option<NodeId> {
    let statuses = observation.cache_statuses();
    let is_passed_on = statuses.len() > 1 && statuses.last().is_some_and(|own| !own.hit);
    let serial = observation.outcome.as_ref().ok()?.fetch?;
    let asked = context.facts.fetch(serial)?.node?;
    (is_passed_on && asked != observation.node).then_some(asked)
}

/// The load that a node may have, as a multiple of the mean.
const MEANS_MAX: f64 = 2.0;
/// In a smaller region no node can have more than that.
const NODES_MIN: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Fixture;
    use crate::journal::Fault;
    use crate::plan::object::Class;

    /// Each of three nodes has `alone` responses of its own, and nodes 1 and 2 pass `asked` on that node 0 gave.
    fn broken(alone: usize, asked: usize, change: impl FnOnce(&mut Fixture)) -> u64 {
        let mut fixture = Fixture::with_peers();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, SECOND);
        fixture.set_regions(vec![vec![0, 1, 2]; 3]);
        fixture.fleet.nodes.push("frankfurt-3".to_owned());
        change(&mut fixture);
        let mut checker = NoHotNode::default();
        let mut observe = |node: NodeId, status: &str| {
            let mut observation = fixture.observation(fetch, 2 * SECOND, status);
            observation.node = node;
            checker.observe(fixture.context(), &observation);
        };
        for node in 0..3 {
            (0..alone).for_each(|_| observe(node, "skerry; hit"));
            let passed_on = if node == 0 { 0 } else { asked };
            (0..passed_on).for_each(|_| observe(node, "skerry; hit, skerry; fwd=uri-miss"));
        }
        checker.end(fixture.context());
        checker.findings().broken
    }

    #[test]
    fn a_node_with_more_than_twice_the_mean_is_reported() {
        // Node 0 gives 1 + 2 * 9 responses, and the mean is (3 + 4 * 9) / 3 = 13.
        assert_eq!(broken(1, 9, |_| {}), 0);
        let alone = |fixture: &mut Fixture| {
            fixture.fleet.nodes.extend(["frankfurt-4", "frankfurt-5"].map(str::to_owned));
            fixture.set_regions(vec![(0..5).collect(); 5]);
        };
        assert_eq!(broken(1, 9, alone), 1, "the same of five nodes");
    }

    #[test]
    fn a_region_with_a_fault_or_with_two_nodes_is_not_checked() {
        let five = |fixture: &mut Fixture| {
            fixture.fleet.nodes.extend(["frankfurt-4", "frankfurt-5"].map(str::to_owned));
            fixture.set_regions(vec![(0..5).collect(); 5]);
            fixture.facts.faults.push(Fault { nodes: vec![2], began: SECOND, ..Fault::default() });
        };
        assert_eq!(broken(1, 9, five), 0);
        let two =
            |fixture: &mut Fixture| fixture.set_regions(vec![vec![0, 1], vec![0, 1], vec![2]]);
        assert_eq!(broken(0, 9, two), 0);
    }
}
