//! The nodes that edge names and redirects by place may name: those of the fleet's table, and those of the
//! configuration beside them.
//!
//! A node that a majority of the other regions cannot reach is out, although it sends heartbeats.
//!
//! The list depends on nothing but the table and the configuration, so that nodes whose tables agree answer
//! alike. While the purge bus is silent, the table stays as it is, and so does the list.

use std::collections::BTreeMap;
use std::sync::Arc;

use geo::UnitVector;

use super::shared::Shared;
use crate::dns::{EdgeNode, EdgeState, NODES_MAX};
use crate::fleet::{FleetMember, NodeTable, Readiness};
use crate::planted::{self, Bug};
use crate::route::RegionTable;

/// The nodes by name. A node of the configuration with the name of a member replaces the member's region, place,
/// addresses and weight; its load is the member's, and its state the worse of both.
pub(super) fn edge_nodes(configured: &[EdgeNode], table: &NodeTable) -> Vec<EdgeNode> {
    let members = table.members().iter();
    let unreachable = table.unreachable_nodes();
    let members = members.map(|member| {
        let mut node = edge_node(member);
        if unreachable.contains(&member.name) {
            node.state = EdgeState::Out;
        }
        (member.name.clone(), node)
    });
    let mut nodes: BTreeMap<Arc<str>, EdgeNode> = members.collect();
    for node in configured {
        let mut node = node.clone();
        if let Some(member) = nodes.get(&node.name) {
            node.load = member.load;
            node.state = node.state.max(member.state);
        }
        nodes.insert(node.name.clone(), node);
    }
    nodes.into_values().filter(|node| !node.addresses.is_empty()).take(NODES_MAX).collect()
}

fn edge_node(member: &FleetMember) -> EdgeNode {
    let announcement = &member.announcement;
    EdgeNode {
        name: member.name.clone(),
        region: announcement.region.clone(),
        coordinates: announcement.coordinates,
        addresses: announcement.addresses.clone(),
        weight: announcement.weight,
        load: announcement.load.share() as f32,
        state: match member.readiness {
            Readiness::Ready => EdgeState::Ready,
            Readiness::Draining => EdgeState::Draining,
            Readiness::Out if planted::has(Bug::DeadNodesAnswered) => EdgeState::Ready,
            Readiness::Out => EdgeState::Out,
        },
    }
}

/// The nodes at the start of this node, which is ready once all of its parts are.
pub(super) fn edge_nodes_at_start(
    configured: &[EdgeNode],
    table: &NodeTable,
    own: &str,
) -> Vec<EdgeNode> {
    let own = table.get(own).map(|own| FleetMember { readiness: Readiness::Ready, ..own.clone() });
    let table = own.map_or_else(|| table.clone(), |own| table.with(own));
    edge_nodes(configured, &table)
}

/// The regions of these nodes that clients may be sent to. `own`: the region of this node.
pub(super) fn region_table(nodes: &[EdgeNode], own: &str) -> RegionTable {
    let mut points: BTreeMap<&Arc<str>, (bool, Vec<UnitVector>)> = BTreeMap::new();
    for node in nodes {
        let (is_ready, of_region) = points.entry(&node.region).or_default();
        *is_ready |= node.state == EdgeState::Ready && node.weight > 0;
        of_region.extend(node.coordinates.map(UnitVector::from));
    }
    let ready = points.into_iter().filter(|(_, (is_ready, _))| *is_ready);
    let ready = ready
        .filter_map(|(region, (_, points))| Some((region.clone(), UnitVector::middle(points)?)));
    RegionTable { own: own.into(), ready: ready.collect() }
}

impl Shared {
    /// Publishes the edge nodes after each change of the node table, as long as this node runs.
    pub(super) async fn follow_node_table(self: Arc<Self>) {
        let mut table = self.nodes.clone();
        loop {
            table.mark_unchanged();
            // The configuration stays locked meanwhile: a reload must not publish in between.
            self.publish_edge_nodes(&self.config().dns.nodes);
            if table.changed().await.is_err() {
                return;
            }
        }
    }

    /// Publishes the nodes of the table and `configured` to the name server and to redirects, if they have changed. The table is
    /// read in the turn of this publication, so that none can bring back nodes from before another one.
    pub(super) fn publish_edge_nodes(&self, configured: &[EdgeNode]) {
        self.edge_nodes.send_if_modified(|current| {
            let table = self.nodes.borrow().clone();
            let nodes = edge_nodes(configured, &table);
            let regions = region_table(&nodes, &self.regions.load().own);
            if **self.regions.load() != regions {
                self.regions.store(Arc::new(regions));
            }
            let is_changed = **current != *nodes;
            if is_changed {
                let count = table.members().len() + configured.len();
                if nodes.len() == NODES_MAX && count > NODES_MAX {
                    tracing::warn!(
                        "the name server answers the first {NODES_MAX} nodes only, in the order of their names"
                    );
                }
                *current = nodes.into();
            }
            is_changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Announcement;

    fn member(name: &str, region: &str, address: &str, readiness: Readiness) -> FleetMember {
        let addresses = address.parse().into_iter().collect();
        let announcement = Announcement { addresses, readiness, ..Announcement::of_region(region) };
        FleetMember::new(name.into(), announcement)
    }

    fn configured(name: &str, address: &str, state: EdgeState) -> EdgeNode {
        EdgeNode {
            name: name.into(),
            region: "configured".into(),
            coordinates: None,
            addresses: address.parse().into_iter().collect(),
            weight: 7,
            load: 0.0,
            state,
        }
    }

    fn table() -> NodeTable {
        NodeTable::new(vec![
            member("a", "eu", "192.0.2.1", Readiness::Ready),
            member("b", "us", "192.0.2.2", Readiness::Draining),
            member("c", "us", "", Readiness::Ready),
        ])
    }

    fn lines(nodes: &[EdgeNode]) -> Vec<String> {
        let line = |node: &EdgeNode| {
            let (name, region, address) = (&node.name, &node.region, node.addresses[0]);
            format!("{name} {region} {address} {} {}", node.weight, node.state.as_str())
        };
        nodes.iter().map(line).collect()
    }

    #[test]
    fn members_with_addresses_are_nodes_of_answers() {
        let nodes = edge_nodes(&[], &table());
        assert_eq!(lines(&nodes), ["a eu 192.0.2.1 100 ready", "b us 192.0.2.2 100 draining"]);
    }

    #[test]
    fn the_configuration_adds_nodes_and_replaces_the_facts_of_members() {
        let own = [
            configured("b", "198.51.100.2", EdgeState::Ready),
            configured("a", "198.51.100.1", EdgeState::Out),
            configured("z", "198.51.100.9", EdgeState::Ready),
        ];
        let nodes = edge_nodes(&own, &table());
        let expected = [
            "a configured 198.51.100.1 7 out",
            "b configured 198.51.100.2 7 draining",
            "z configured 198.51.100.9 7 ready",
        ];
        assert_eq!(lines(&nodes), expected);
    }

    #[test]
    fn a_node_that_other_regions_cannot_reach_is_out() {
        let tests = |name: &str, region: &str, unreachable: &[&str]| {
            let mut member = member(name, region, "192.0.2.7", Readiness::Ready);
            let names = unreachable.iter().map(|name| Arc::from(*name));
            member.announcement.unreachable = Some(names.collect());
            member
        };
        let members =
            vec![tests("a", "eu", &[]), tests("b", "us", &["a"]), tests("c", "ap", &["a"])];
        let nodes = edge_nodes(&[], &NodeTable::new(members));
        let states: Vec<_> = nodes.iter().map(|node| node.state).collect();
        assert_eq!(states, [EdgeState::Out, EdgeState::Ready, EdgeState::Ready]);
    }

    #[test]
    fn nodes_whose_tables_agree_have_the_same_list() {
        let of = |own: &str| {
            let mut members = table().members().to_vec();
            members.rotate_left(usize::from(own == "b"));
            edge_nodes(&[], &NodeTable::new(members))
        };
        assert_eq!(of("a"), of("b"));
    }

    #[test]
    fn a_region_gets_clients_by_redirect_while_it_has_a_ready_node_and_a_place() {
        let at = |name: &str, region: &str, state, point: Option<(f64, f64)>| EdgeNode {
            region: region.into(),
            coordinates: point.and_then(|(north, east)| geo::Coordinates::new(north, east).ok()),
            ..configured(name, "192.0.2.1", state)
        };
        let nodes = [
            at("a", "us", EdgeState::Ready, Some((39.0, -77.5))),
            at("b", "eu", EdgeState::Draining, Some((50.1, 8.7))),
            at("c", "eu", EdgeState::Ready, None),
            at("d", "ap", EdgeState::Out, Some((35.7, 139.7))),
            at("e", "nowhere", EdgeState::Ready, None),
        ];
        let table = region_table(&nodes, "eu");
        let names: Vec<&str> = table.ready.iter().map(|(name, _)| &**name).collect();
        assert_eq!((&*table.own, &names[..]), ("eu", &["eu", "us"][..]));
    }

    #[test]
    fn a_node_that_starts_counts_as_ready_for_itself() {
        let table = table().with(member("a", "eu", "192.0.2.1", Readiness::Out));
        assert_eq!(edge_nodes(&[], &table)[0].state, EdgeState::Out);
        assert_eq!(edge_nodes_at_start(&[], &table, "a")[0].state, EdgeState::Ready);
    }
}
