//! The record of a run: figures for each second, events and verdicts. The HTML report, the JSON file and
//! the summary line are made from it.

use crate::check::{Checker, Findings, Observation, Sample, ServedFrom};
use crate::journal::{Facts, Micros, NodeId, SECOND};
use crate::plan::place::REGIONS;
use crate::report::origins::{OriginFaultRow, RoutingRow};
use crate::report::regions::RegionRow;
use serde::Serialize;

/// The record of a run.
#[derive(Debug, Serialize)]
pub struct RunRecord {
    /// The scenario's name.
    pub scenario: String,
    /// The scenario's description.
    pub about: String,
    /// The seed, which reproduces the plan.
    pub seed: u64,
    /// The plan's fingerprint.
    pub plan: String,
    /// Duration of the load in seconds.
    pub duration_s: u64,
    /// Whether all promises were kept and all faults could be injected.
    pub passed: bool,
    /// Totals.
    pub totals: Totals,
    /// The nodes, their locations and totals.
    pub nodes: Vec<NodeRow>,
    /// The regions: where their responses came from.
    pub regions: Vec<RegionRow>,
    /// The origins that served the clients of each country.
    pub routing: Vec<RoutingRow>,
    /// The reactions of the nodes to origins that failed.
    pub origin_faults: Vec<OriginFaultRow>,
    /// The locations of the origins.
    pub origins: Vec<PlaceRow>,
    /// The location of Redis.
    pub redis: Option<PlaceRow>,
    /// The locations of clients, with their number of requests.
    pub clients: Vec<ClientRow>,
    /// Figures for each second.
    pub seconds: Vec<Second>,
    /// The faults.
    pub faults: Vec<FaultRow>,
    /// Purges.
    pub purges: Vec<PurgeRow>,
    /// The results of the checkers.
    pub verdicts: Vec<Verdict>,
    /// Reasons why the run failed apart from broken promises: a fault that did not start, a node that
    /// exited unexpectedly.
    pub trouble: Vec<String>,
    /// Conditions that may make the figures unreliable, such as a pause of the machine.
    pub notes: Vec<String>,
}

/// Totals of a run.
#[derive(Debug, Default, Serialize)]
pub struct Totals {
    /// Client requests, including failed ones.
    pub requests: u64,
    /// Served from a stored response of the node that the client asked.
    pub hits: u64,
    /// Served from a stored response of another node.
    pub other_node: u64,
    /// Without a complete response, or with a status of 500 or more.
    pub errors: u64,
    /// Body bytes that clients received.
    pub bytes: u64,
    /// Upstream requests.
    pub fetches: u64,
    /// Body bytes that origins sent.
    pub fetched_bytes: u64,
    /// Time to first byte of all requests in milliseconds: 50th, 95th, 99th percentile.
    pub latency_ms: [f64; 3],
    /// The same for hits only.
    pub hit_latency_ms: [f64; 3],
    /// Time from issue to applied of purges in milliseconds: 50th, 99th percentile, maximum.
    pub propagation_ms: [f64; 3],
    /// Purges issued.
    pub purges: u64,
    /// Purges that the admin API refused or did not respond to.
    pub purges_failed: u64,
}

/// A location on the map.
#[derive(Debug, Serialize)]
pub struct PlaceRow {
    /// Its name.
    pub name: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

impl PlaceRow {
    /// A location in a region.
    pub fn in_region(name: String, region: usize) -> Self {
        let Some(region) = REGIONS.get(region) else {
            return PlaceRow { name, latitude: 0.0, longitude: 0.0 };
        };
        PlaceRow { name, latitude: region.latitude, longitude: region.longitude }
    }
}

/// A node on the map, and its totals.
#[derive(Debug, Serialize)]
pub struct NodeRow {
    /// Its location.
    #[serde(flatten)]
    pub place: PlaceRow,
    /// The region's name in reports.
    pub region: String,
    /// Requests that it received.
    pub requests: u64,
    /// Served from a stored response of its own.
    pub hits: u64,
    /// Served from a stored response of another node.
    pub other_node: u64,
    /// Bytes that it sent to other nodes.
    pub bytes_to_nodes: u64,
    /// The largest resident memory in MiB.
    pub memory_mib: u64,
    /// The largest number of open files.
    pub files: u64,
    /// CPU time used, milliseconds.
    pub cpu_ms: u64,
    /// Periods in which its process was not running, as `[from, to]` in seconds.
    pub down: Vec<[f64; 2]>,
}

/// The clients of a country.
#[derive(Debug, Serialize)]
pub struct ClientRow {
    /// Their location.
    #[serde(flatten)]
    pub place: PlaceRow,
    /// Their number of requests.
    pub requests: u64,
}

/// The figures of one second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// Requests that clients sent in this second.
    pub requests: u64,
    /// Of these, served from a stored response of the node that the client asked.
    pub hits: u64,
    /// Of these, served from a stored response of another node.
    pub other_node: u64,
    /// Of these, without a complete response or with a status of 500 or more.
    pub errors: u64,
    /// Time to first byte in milliseconds: 50th, 95th, 99th percentile.
    pub latency_ms: [f64; 3],
    /// Upstream requests that started in this second.
    pub fetches: u64,
    /// Of these, validations (conditional requests).
    pub validations: u64,
    /// Body bytes of these upstream requests.
    pub fetched_bytes: u64,
    /// Resident memory of all nodes, MiB.
    pub memory_mib: u64,
}

/// A fault and its time in seconds.
#[derive(Debug, Serialize)]
pub struct FaultRow {
    /// Its kind.
    pub kind: String,
    /// A description.
    pub what: String,
    /// When it started.
    pub from: f64,
    /// When it ended.
    pub to: f64,
}

/// A purge.
#[derive(Debug, Serialize)]
pub struct PurgeRow {
    /// When it was issued, seconds.
    pub at: f64,
    /// The responses that it covered: a URL, a prefix, a tag, a site or everything.
    pub scope: String,
    /// Whether it is soft.
    pub soft: bool,
    /// Time from issue to applied in milliseconds, of each receipt.
    pub ms: Vec<f64>,
    /// Nodes that had not applied it at the end.
    pub pending: usize,
    /// The error, if it failed.
    pub failed: Option<String>,
}

/// The result of a checker.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The checker's name.
    pub name: String,
    /// The checker's promise.
    pub promise: String,
    /// Whether the promise was kept.
    pub kept: bool,
    /// The cases that were checked and the violations.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Verdict {
    /// The current result of a checker.
    pub fn of(checker: &dyn Checker) -> Verdict {
        let findings = checker.findings().clone();
        let (name, promise) = (checker.name().to_owned(), checker.promise().to_owned());
        Verdict { name, promise, kept: findings.broken == 0, findings }
    }
}

/// The figures of one request that the record needs.
#[derive(Clone, Copy, Debug)]
pub struct RequestSummary {
    sent: Micros,
    latency: Micros,
    pub(super) node: NodeId,
    country: usize,
    bytes: u64,
    pub(super) from: Option<ServedFrom>,
    error: bool,
}

impl RequestSummary {
    /// The figures of an observation.
    pub fn of(observation: &Observation) -> RequestSummary {
        let status = observation.outcome.as_ref().map_or(599, |answer| answer.status);
        RequestSummary {
            sent: observation.sent,
            latency: observation.first_byte.saturating_sub(observation.sent),
            node: observation.node,
            country: observation.country,
            bytes: observation.outcome.as_ref().map_or(0, |answer| answer.length),
            from: observation.served_from(),
            error: status >= 500,
        }
    }

    fn is_hit(&self) -> bool {
        self.from == Some(ServedFrom::OwnStore)
    }

    fn is_of_other_node(&self) -> bool {
        self.from == Some(ServedFrom::OtherNode)
    }
}

/// The 50th, 95th and 99th percentile in milliseconds.
pub fn percentiles(mut micros: Vec<Micros>) -> [f64; 3] {
    micros.sort_unstable();
    let at = |share: f64| {
        let index = (share * micros.len() as f64).ceil() as usize;
        micros.get(index.saturating_sub(1)).map_or(0.0, |micros| *micros as f64 / 1000.0)
    };
    [at(0.5), at(0.95), at(0.99)]
}

fn second_of(at: Micros) -> usize {
    (at / SECOND) as usize
}

/// The figures of each second of a run.
pub fn seconds(
    count: usize,
    summaries: &[RequestSummary],
    facts: &Facts,
    samples: &[Sample],
    nodes: usize,
) -> Vec<Second> {
    let mut seconds = vec![Second::default(); count];
    let mut latencies = vec![Vec::new(); count];
    for summary in summaries {
        let at = second_of(summary.sent);
        let Some(second) = seconds.get_mut(at) else { continue };
        second.requests += 1;
        second.hits += u64::from(summary.is_hit());
        second.other_node += u64::from(summary.is_of_other_node());
        second.errors += u64::from(summary.error);
        latencies[at].push(summary.latency);
    }
    for fetch in &facts.fetches {
        let Some(second) = seconds.get_mut(second_of(fetch.began)) else { continue };
        second.fetches += 1;
        second.validations += u64::from(fetch.conditional);
        second.fetched_bytes += fetch.bytes;
    }
    for (second, latencies) in seconds.iter_mut().zip(latencies) {
        second.latency_ms = percentiles(latencies);
    }
    add_memory(&mut seconds, samples, nodes);
    seconds
}

/// Adds the memory of all nodes, from the latest sample of each.
fn add_memory(seconds: &mut [Second], samples: &[Sample], nodes: usize) {
    let mut latest = vec![0; nodes];
    let mut samples = samples.iter().peekable();
    for (at, second) in seconds.iter_mut().enumerate() {
        while let Some(sample) = samples.next_if(|sample| second_of(sample.at) <= at) {
            latest[sample.node] = sample.resident_bytes >> 20;
        }
        second.memory_mib = latest.iter().sum();
    }
}

/// The totals of a run.
pub fn totals(summaries: &[RequestSummary], facts: &Facts) -> Totals {
    let of = |hits_only: bool| {
        let counted =
            summaries.iter().filter(|summary| !summary.error && (summary.is_hit() || !hits_only));
        percentiles(counted.map(|summary| summary.latency).collect())
    };
    let mut propagation: Vec<f64> = facts
        .purges
        .iter()
        .flat_map(|purge| purge.propagation_ms.iter().map(|(_, ms)| *ms))
        .collect();
    propagation.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (share * propagation.len() as f64).ceil() as usize;
        propagation.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
    };
    Totals {
        requests: summaries.len() as u64,
        hits: summaries.iter().filter(|summary| summary.is_hit()).count() as u64,
        other_node: summaries.iter().filter(|summary| summary.is_of_other_node()).count() as u64,
        errors: summaries.iter().filter(|summary| summary.error).count() as u64,
        bytes: summaries.iter().map(|summary| summary.bytes).sum(),
        fetches: facts.fetches.len() as u64,
        fetched_bytes: facts.fetches.iter().map(|fetch| fetch.bytes).sum(),
        latency_ms: of(false),
        hit_latency_ms: of(true),
        propagation_ms: [at(0.5), at(0.99), at(1.0)],
        purges: facts.purges.len() as u64,
        purges_failed: facts.purges.iter().filter(|purge| purge.failed.is_some()).count() as u64,
    }
}

/// The totals and down times of each node.
pub fn node_rows(
    nodes: &[(String, usize)],
    summaries: &[RequestSummary],
    facts: &Facts,
    samples: &[Sample],
    end: Micros,
) -> Vec<NodeRow> {
    let row = |(number, (name, region)): (usize, &(String, usize))| {
        let own = || summaries.iter().filter(|summary| summary.node == number);
        let sampled = || samples.iter().filter(|sample| sample.node == number);
        NodeRow {
            place: PlaceRow::in_region(name.clone(), *region),
            region: REGIONS[*region].label.to_owned(),
            requests: own().count() as u64,
            hits: own().filter(|summary| summary.is_hit()).count() as u64,
            other_node: own().filter(|summary| summary.is_of_other_node()).count() as u64,
            bytes_to_nodes: facts.bytes_to_peers(number),
            memory_mib: sampled().map(|sample| sample.resident_bytes >> 20).max().unwrap_or(0),
            files: sampled().map(|sample| sample.files).max().unwrap_or(0),
            cpu_ms: sampled().map(|sample| sample.cpu_ms).max().unwrap_or(0),
            down: down_times(number, facts, end),
        }
    };
    nodes.iter().enumerate().map(row).collect()
}

fn down_times(node: NodeId, facts: &Facts, end: Micros) -> Vec<[f64; 2]> {
    let mut down = Vec::new();
    let mut since = None;
    for event in facts.process_events.iter().filter(|event| event.node == node) {
        match (event.is_start, since) {
            (false, None) => since = Some(event.at),
            (true, Some(from)) => {
                down.push([in_seconds(from), in_seconds(event.at)]);
                since = None;
            }
            _ => {}
        }
    }
    down.extend(since.map(|from| [in_seconds(from), in_seconds(end)]));
    down
}

/// The number of requests of each country.
pub fn client_rows(summaries: &[RequestSummary]) -> Vec<ClientRow> {
    let row = |(number, country): (usize, &crate::plan::place::Country)| ClientRow {
        place: PlaceRow {
            name: format!("{} ({})", country.city.name, country.code),
            latitude: country.city.latitude,
            longitude: country.city.longitude,
        },
        requests: summaries.iter().filter(|summary| summary.country == number).count() as u64,
    };
    crate::plan::place::COUNTRIES.iter().enumerate().map(row).collect()
}

/// The faults and purges of a run.
pub fn event_rows(facts: &Facts, end: Micros) -> (Vec<FaultRow>, Vec<PurgeRow>) {
    let faults = facts.faults.iter().map(|fault| FaultRow {
        kind: fault.kind.clone(),
        what: fault.what.clone(),
        from: in_seconds(fault.began),
        to: in_seconds(fault.ended.unwrap_or(end)),
    });
    let purges = facts.purges.iter().map(|purge| PurgeRow {
        at: in_seconds(purge.issued),
        scope: purge.scope.describe(),
        soft: purge.soft,
        ms: purge.propagation_ms.iter().map(|(_, ms)| *ms).collect(),
        pending: purge.pending.len(),
        failed: purge.failed.clone(),
    });
    (faults.collect(), purges.collect())
}

fn in_seconds(at: Micros) -> f64 {
    (at as f64 / SECOND as f64 * 100.0).round() / 100.0
}

impl RunRecord {
    /// A summary in one line for the terminal.
    pub fn summary(&self) -> String {
        let totals = &self.totals;
        let share = |hits: u64| 100.0 * hits as f64 / totals.requests.max(1) as f64;
        let broken: u64 = self.verdicts.iter().map(|verdict| verdict.findings.broken).sum();
        let verdict = match broken {
            0 if self.passed => format!("PASS: {} promises kept", self.verdicts.len()),
            0 => "FAIL: the run did not go as planned".to_owned(),
            1 => "FAIL: 1 violation".to_owned(),
            _ => format!("FAIL: {broken} violations"),
        };
        format!(
            "{verdict} · {} · seed {} · {} requests, {:.1} % hits, {:.1} % hits of other nodes, {} errors · first byte \
             p50 {:.1} ms p99 {:.0} ms · {} purges, applied p50 {:.1} ms p99 {:.0} ms",
            self.scenario,
            self.seed,
            totals.requests,
            share(totals.hits),
            share(totals.other_node),
            totals.errors,
            totals.latency_ms[0],
            totals.latency_ms[2],
            totals.purges,
            totals.propagation_ms[0],
            totals.propagation_ms[1],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::ProcessEvent;

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let micros = (1..=100).rev().map(|ms| ms * 1000).collect();
        assert_eq!(percentiles(micros), [50.0, 95.0, 99.0]);
        assert_eq!(percentiles(Vec::new()), [0.0; 3]);
    }

    #[test]
    fn requests_count_in_the_second_in_which_they_were_sent() {
        let summary = |sent, from| RequestSummary {
            sent,
            from: Some(from),
            latency: 1000,
            node: 0,
            country: 0,
            bytes: 1,
            error: false,
        };
        let summaries = [
            summary(0, ServedFrom::OwnStore),
            summary(999_999, ServedFrom::OtherNode),
            summary(SECOND, ServedFrom::OwnStore),
        ];
        let seconds = seconds(2, &summaries, &Facts::default(), &[], 1);
        let first = &seconds[0];
        assert_eq!((first.requests, first.hits, first.other_node), (2, 1, 1));
        assert_eq!((seconds[1].requests, seconds[1].hits), (1, 1));
    }

    #[test]
    fn a_node_is_down_between_its_lives() {
        let mut facts = Facts::default();
        for (at, is_start) in [(0, true), (5, false), (7, true), (9, false)] {
            facts.process_events.push(ProcessEvent { node: 0, at: at * SECOND, is_start });
        }
        assert_eq!(down_times(0, &facts, 10 * SECOND), [[5.0, 7.0], [9.0, 10.0]]);
    }
}
