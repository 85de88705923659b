//! The part of the record about origins: which one served the clients of each country, and how fast nodes leave one
//! that fails.

use crate::check::{CheckContext, Observation, expected_origin};
use crate::fleet::Fleet;
use crate::journal::{Facts, Fault, Micros, NodeId, SECOND};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// The origins that served the clients of a country.
#[derive(Debug, Serialize)]
pub struct RoutingRow {
    /// The country's code.
    pub country: String,
    /// The origin that it is mapped to, while that is down.
    pub down: Option<String>,
    /// The origin that must serve.
    pub expected: String,
    /// The origins that did, with their number of responses.
    pub got: BTreeMap<String, u64>,
}

/// The responses to geo-routed requests, counted by country.
#[derive(Debug, Default)]
pub struct RoutingTable(BTreeMap<(String, Option<String>, String), BTreeMap<String, u64>>);

impl RoutingTable {
    /// Counts a response, if one origin alone may have given it.
    pub fn add(&mut self, context: CheckContext, observation: &Observation) {
        let Some(expected) = expected_origin(context, observation) else { return };
        let origin = observation.outcome.as_ref().ok().and_then(|answer| answer.origin.clone());
        let Some(origin) = origin else { return };
        let country = context.countries[observation.country].code.to_owned();
        let got = self.0.entry((country, expected.down, expected.name)).or_default();
        *got.entry(origin).or_default() += 1;
    }

    /// A row for each country and state of its origin.
    pub fn rows(self) -> Vec<RoutingRow> {
        let row = |((country, down, expected), got)| RoutingRow { country, down, expected, got };
        self.0.into_iter().map(row).collect()
    }
}

/// The reaction of the nodes to an origin that failed.
#[derive(Debug, Serialize)]
pub struct OriginFaultRow {
    /// The fault.
    pub what: String,
    /// When it began, seconds.
    pub from: f64,
    /// How long it lasted, seconds.
    pub lasted: f64,
    /// The pools of nodes that left the origin. Each pool of a node has its own view of an origin.
    pub left: usize,
    /// The shortest and the longest time until a pool left it, seconds.
    pub left_after: Option<[f64; 2]>,
    /// The same from the end of the fault until a pool used it again.
    pub back_after: Option<[f64; 2]>,
    /// The pools that had not used it again at the end of the run.
    pub still_left: usize,
}

/// A row for each fault of an origin in a pool that has others.
pub fn rows(facts: &Facts, fleet: &Fleet) -> Vec<OriginFaultRow> {
    if facts.origin_states.is_empty() {
        return Vec::new();
    }
    let end = fleet.journal.now();
    let faults = facts.faults.iter().filter(|fault| !fault.origins.is_empty());
    faults.map(|fault| row(facts, fault, end)).collect()
}

fn row(facts: &Facts, fault: &Fault, end: Micros) -> OriginFaultRow {
    let ended = fault.ended.unwrap_or(end);
    let mut left: HashMap<(NodeId, &str, usize), Option<Micros>> = HashMap::new();
    let (mut left_after, mut back_after) = (Vec::new(), Vec::new());
    let states = facts.origin_states.iter();
    for state in states.filter(|state| fault.origins.contains(&state.origin)) {
        let pool = (state.node, &*state.pool, state.origin);
        let is_known = left.contains_key(&pool);
        if !state.is_in_use && !is_known && (fault.began..ended + SECOND).contains(&state.at) {
            left.insert(pool, None);
            left_after.push(state.at - fault.began);
        } else if state.is_in_use && is_known && state.at >= ended {
            // A trial may succeed and fail again while an origin flaps: the first return counts.
            let back = left.entry(pool).or_default();
            if back.is_none() {
                *back = Some(state.at);
                back_after.push(state.at - ended);
            }
        }
    }
    let seconds = |micros: Micros| (micros as f64 / SECOND as f64 * 10.0).round() / 10.0;
    let bounds = |times: &[Micros]| {
        let (least, most) = (times.iter().min()?, times.iter().max()?);
        Some([seconds(*least), seconds(*most)])
    };
    OriginFaultRow {
        what: fault.what.clone(),
        from: seconds(fault.began),
        lasted: seconds(ended - fault.began),
        left: left.len(),
        left_after: bounds(&left_after),
        back_after: bounds(&back_after),
        still_left: left.values().filter(|back| back.is_none()).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::OriginState;

    #[test]
    fn the_times_of_leaving_and_returning_are_of_the_first_and_last_pool() {
        let mut facts = Facts::default();
        for (at_s, node, is_in_use) in
            [(11, 0, false), (14, 1, false), (23, 0, true), (24, 0, false), (31, 0, true)]
        {
            let (at, pool) = (at_s * SECOND, "shop".to_owned());
            facts.origin_states.push(OriginState { at, node, pool, origin: 2, is_in_use });
        }
        let (began, ended, origins) = (10 * SECOND, Some(20 * SECOND), vec![2]);
        let fault = Fault { began, ended, origins, ..Fault::default() };
        let row = row(&facts, &fault, 60 * SECOND);
        assert_eq!((row.left, row.still_left), (2, 1));
        assert_eq!((row.left_after, row.back_after), (Some([1.0, 4.0]), Some([3.0, 3.0])));
    }
}
