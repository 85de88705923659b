//! The part of the record about regions: which stores the responses came from, and how often origins were asked.

use crate::check::{RegionFills, ServedFrom};
use crate::journal::NodeId;
use crate::plan::place::REGIONS;
use crate::report::record::RequestSummary;
use serde::Serialize;

/// The responses of a region's nodes to clients, by the store that they came from.
#[derive(Debug, Default, Serialize)]
pub struct RegionRow {
    /// The region's name in reports.
    pub region: String,
    /// Number of its nodes.
    pub nodes: usize,
    /// Requests of clients.
    pub requests: u64,
    /// Answered from the store of the node that the client asked.
    pub own_store: u64,
    /// Answered from the store of another node.
    pub other_node: u64,
    /// Answered by a request to an origin.
    pub origin: u64,
    /// Requests for whole responses that no node of the region could use.
    pub fills: u64,
    /// Requests for whole responses that a node of the region could use.
    pub repeated: u64,
    /// Whether its nodes ask each other.
    pub has_peers: bool,
}

/// A row for each region. `nodes`: the name and region of each node.
pub fn rows(
    fills: &[RegionFills],
    regions: &[Vec<NodeId>],
    nodes: &[(String, usize)],
    summaries: &[RequestSummary],
) -> Vec<RegionRow> {
    let is_first = |node: &NodeId| nodes[..*node].iter().all(|other| other.1 != nodes[*node].1);
    (0..nodes.len())
        .filter(is_first)
        .map(|first| {
            let region = nodes[first].1;
            let own = || summaries.iter().filter(|summary| nodes[summary.node].1 == region);
            let from = |store| own().filter(|summary| summary.from == Some(store)).count() as u64;
            let fills = fills.iter().find(|fills| fills.node == first);
            RegionRow {
                region: REGIONS[region].label.to_owned(),
                nodes: nodes.iter().filter(|node| node.1 == region).count(),
                requests: own().count() as u64,
                own_store: from(ServedFrom::OwnStore),
                other_node: from(ServedFrom::OtherNode),
                origin: from(ServedFrom::Origin),
                fills: fills.map_or(0, |fills| fills.needed),
                repeated: fills.map_or(0, |fills| fills.repeated.len() as u64),
                has_peers: regions[first].len() > 1,
            }
        })
        .collect()
}
