//! Finds the nodes that clients cannot reach although they send heartbeats: the regions probe each other over the data path.
//!
//! ```text
//! targets   in each region, one node probes each node of the other regions (the choice is a hash of the names)
//! report    the node's row names those that fail, and changes only with them
//! votes     of the other regions, the largest group that reach each other; more than half of it fails: unreachable
//! ```
//! A region that reaches no other one is itself cut off: it is in no group of two, and its reports do not count. Of two groups
//! that do not reach each other, the smaller one is cut off; of equal ones, neither. With fewer
//! than three regions there are no votes, because no node can tell which side of a broken path is at fault. All nodes
//! with the same table find the same nodes unreachable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::announcement::Readiness;
use super::table::{FleetMember, NodeTable};
use crate::rendezvous::{hash, score};

impl NodeTable {
    /// The nodes that `own` probes: those of other regions for which it has the highest score among the nodes of its
    /// region that probe. At most [`TARGETS_MAX`], in the order of their names.
    pub(crate) fn probe_targets(&self, own: &str) -> Vec<&FleetMember> {
        let Some(own) = self.get(own) else { return Vec::new() };
        let region = &own.announcement.region;
        let probers: Vec<u64> = self
            .probers()
            .filter(|member| member.announcement.region == *region && member.name != own.name)
            .map(|member| hash(member.name.as_bytes()))
            .collect();
        let is_mine = |target: &FleetMember| {
            let target = hash(target.name.as_bytes());
            let score_of = |name: u64| score(target, name, 1);
            let mine = score_of(hash(own.name.as_bytes()));
            probers.iter().all(|other| score_of(*other) < mine)
        };
        let targets = self.members().iter().filter(|member| {
            member.announcement.region != *region && may_get_clients(member) && is_mine(member)
        });
        targets.take(TARGETS_MAX).collect()
    }

    /// The nodes that a majority of the other regions fails to reach; see the module documentation.
    pub(crate) fn unreachable_nodes(&self) -> BTreeSet<Arc<str>> {
        let reports = Reports::of(self);
        if reports.by_region.len() < 2 {
            return BTreeSet::new();
        }
        let targets = self.members().iter().filter(|member| may_get_clients(member));
        let unreachable = targets.filter(|member| reports.vote_out(member));
        unreachable.map(|member| member.name.clone()).collect()
    }

    /// The nodes that probe others.
    fn probers(&self) -> impl Iterator<Item = &FleetMember> {
        let members = self.members().iter();
        members.filter(|member| {
            member.readiness == Readiness::Ready && member.announcement.unreachable.is_some()
        })
    }
}

fn may_get_clients(member: &FleetMember) -> bool {
    member.readiness != Readiness::Out && !member.announcement.addresses.is_empty()
}

/// The reports of all regions.
struct Reports<'a> {
    /// For each region that probes others, the nodes that it fails to reach.
    by_region: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// The names of the nodes in each region that clients may be sent to.
    nodes: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Reports<'a> {
    fn of(table: &'a NodeTable) -> Self {
        let mut reports = Self { by_region: BTreeMap::new(), nodes: BTreeMap::new() };
        for member in table.probers() {
            let of_region = reports.by_region.entry(&member.announcement.region).or_default();
            let failing = member.announcement.unreachable.iter().flatten();
            of_region.extend(failing.map(|name| &**name));
        }
        for member in table.members().iter().filter(|member| may_get_clients(member)) {
            let region: &str = &member.announcement.region;
            reports.nodes.entry(region).or_default().push(&member.name);
        }
        reports
    }

    fn vote_out(&self, target: &FleetMember) -> bool {
        // The groups of a large fleet cost more than the question whether they matter.
        if !self.by_region.values().any(|failing| failing.contains(&*target.name)) {
            return false;
        }
        let region: &str = &target.announcement.region;
        let group = self.largest_group(region);
        let failing = group.iter().filter(|other| self.by_region[*other].contains(&*target.name));
        if group.len() < 2 || failing.count() * 2 <= group.len() {
            return false;
        }
        // Of two sides that do not reach each other, the smaller one is cut off; of equal ones, neither.
        let (side, _) = self.group_of(region, self.by_region.keys().copied().collect());
        side.contains(&group[0]) || side.len() < group.len()
    }

    /// Of the regions other than `without`, the largest set in which each is joined to the others by regions that
    /// reach each other. Of several as large, the one with the first name.
    fn largest_group(&self, without: &str) -> Vec<&'a str> {
        let mut left: Vec<&str> =
            self.by_region.keys().copied().filter(|region| *region != without).collect();
        let mut largest = Vec::new();
        while let Some(first) = left.first().copied() {
            let (group, rest) = self.group_of(first, left);
            left = rest;
            if group.len() > largest.len() {
                largest = group;
            }
        }
        largest
    }

    /// The region and those among `others` that are joined to it, and the rest of the others.
    fn group_of<'r>(&self, region: &'r str, others: Vec<&'r str>) -> (Vec<&'r str>, Vec<&'r str>) {
        let mut left: Vec<&str> = others.into_iter().filter(|other| *other != region).collect();
        let (mut group, mut at) = (vec![region], 0);
        while let Some(region) = group.get(at).copied() {
            at += 1;
            let (near, far) = left.into_iter().partition(|other| self.are_joined(region, other));
            let near: Vec<&str> = near;
            group.extend(near);
            left = far;
        }
        (group, left)
    }

    fn are_joined(&self, one: &str, other: &str) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    /// Whether a region reaches at least one node of another one.
    fn reaches(&self, from: &str, to: &str) -> bool {
        let Some(failing) = self.by_region.get(from) else { return false };
        let mut nodes = self.nodes.get(to).into_iter().flatten();
        nodes.any(|node| !failing.contains(node))
    }
}

/// The most nodes that a node probes: a check of each takes some 50 µs of a processor.
pub(crate) const TARGETS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Announcement;

    /// Nodes as `name region failing,failing`; `-`: the node probes none.
    fn table(nodes: &[&str]) -> NodeTable {
        let member = |text: &&str| {
            let mut words = text.split(' ');
            let mut next = || words.next().unwrap_or_default();
            let (name, region, failing) = (next(), next(), next());
            let names = failing.split(',').filter(|name| !name.is_empty());
            let unreachable = (failing != "-").then(|| names.map(Arc::from).collect());
            let addresses = vec!["192.0.2.1".parse().unwrap()];
            let announcement =
                Announcement { addresses, unreachable, ..Announcement::of_region(region) };
            FleetMember::new(name.into(), announcement)
        };
        NodeTable::new(nodes.iter().map(member).collect())
    }

    #[track_caller]
    fn check(nodes: &[&str], expected: &[&str]) {
        let found = table(nodes).unreachable_nodes();
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_node_is_unreachable_for_a_majority_of_the_other_regions() {
        check(&["e1 eu", "u1 us e1", "a1 ap"], &[]);
        check(&["e1 eu", "u1 us e1", "a1 ap e1"], &["e1"]);
        check(&["e1 eu", "e2 eu", "u1 us e1", "a1 ap e1", "s1 sa e1", "f1 af"], &["e1"]);
        check(&["e1 eu", "u1 us e1", "a1 ap e1", "s1 sa", "f1 af"], &[]);
    }

    #[test]
    fn a_region_that_is_cut_off_takes_nobody_out() {
        // No region reaches eu, and eu reaches no region.
        check(&["e1 eu u1,a1", "u1 us e1", "a1 ap e1"], &["e1"]);
        check(&["e1 eu u1,a1,s1", "u1 us e1", "a1 ap e1", "s1 sa e1"], &["e1"]);
        // Two halves that do not reach each other: no node can tell which is cut off.
        check(&["e1 eu u1,a1", "s1 sa u1,a1", "u1 us e1,s1", "a1 ap e1,s1"], &[]);
        let parts =
            ["e1 eu u1,a1,f1", "s1 sa u1,a1,f1", "u1 us e1,s1", "a1 ap e1,s1", "f1 af e1,s1"];
        check(&parts, &["e1", "s1"]);
    }

    #[test]
    fn with_fewer_than_three_regions_nobody_is_taken_out() {
        check(&["e1 eu", "u1 us e1"], &[]);
        check(&["e1 eu", "u1 us e1", "u2 us e1", "a1 ap -"], &[]);
        check(&["e1 eu", "u1 us e1,a1", "a1 ap e1,u1"], &[]);
    }

    #[test]
    fn a_path_that_is_broken_in_one_direction_is_one_vote_of_its_region() {
        // eu does not reach us, and us reaches eu.
        check(&["e1 eu u1", "u1 us", "a1 ap"], &[]);
        check(&["e1 eu u1", "u1 us", "a1 ap u1"], &["u1"]);
        // Each region fails to reach the next one: no region is unreachable for most others.
        check(&["e1 eu u1", "u1 us a1", "a1 ap e1"], &[]);
    }

    #[test]
    fn only_ready_nodes_vote_and_only_nodes_that_may_get_clients_are_voted_on() {
        let nodes = ["e1 eu", "u1 us e1", "a1 ap e1", "s1 sa"];
        let found = |name: &str, change: &dyn Fn(&mut FleetMember)| {
            let members = table(&nodes).members().to_vec().into_iter().map(|mut member| {
                if *member.name == *name {
                    change(&mut member);
                }
                member
            });
            let table = NodeTable::new(members.collect());
            let names: Vec<String> =
                table.unreachable_nodes().iter().map(ToString::to_string).collect();
            let is_probed = |node: &str| {
                let targets = ["e1", "u1", "a1", "s1"].map(|own| table.probe_targets(own));
                targets.concat().iter().any(|target| *target.name == *node)
            };
            (names, is_probed(name))
        };
        let out = |member: &mut FleetMember| member.readiness = Readiness::Out;
        let draining = |member: &mut FleetMember| member.readiness = Readiness::Draining;
        let private = |member: &mut FleetMember| member.announcement.addresses.clear();
        assert_eq!(found("none", &out), (vec!["e1".to_owned()], false));
        // The row of a node without heartbeats is stale, and a region that drains is about to go.
        assert_eq!(found("a1", &out), (vec![], false));
        assert_eq!(found("a1", &draining), (vec![], true));
        assert_eq!(found("e1", &draining), (vec!["e1".to_owned()], true));
        assert_eq!(found("e1", &out), (vec![], false));
        assert_eq!(found("e1", &private), (vec![], false));
    }

    #[test]
    fn each_node_is_probed_by_one_node_of_each_other_region() {
        let table = table(&["e1 eu", "e2 eu", "e3 eu -", "u1 us", "u2 us", "a1 ap"]);
        let names = |own: &str| {
            let targets = table.probe_targets(own);
            targets.into_iter().map(|target| target.name.to_string()).collect::<Vec<_>>()
        };
        let mut of_eu = [names("e1"), names("e2")].concat();
        of_eu.sort();
        assert_eq!(of_eu, ["a1", "u1", "u2"]);
        assert_eq!(names("a1").len(), 5);
        assert!(names("nobody").is_empty());
    }
}
