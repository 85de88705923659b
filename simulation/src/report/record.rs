//! The result of a run: numbers for every second, events, verdicts. The report, the
//! JSON for CI and the summary line are all made from this.

use crate::check::{Checker, Findings, Sample, Seen};
use crate::journal::{Facts, Micros, NodeId, SECOND};
use crate::plan::place::REGIONS;
use serde::Serialize;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Record {
    /// The scenario's name.
    pub scenario: String,
    /// The scenario in one sentence.
    pub about: String,
    /// Gives the same plan again.
    pub seed: u64,
    /// The plan's name: equal plans have equal names.
    pub plan: String,
    /// Seconds of load.
    pub duration_s: u64,
    /// Whether every promise was kept, and the lab did what the plan says.
    pub passed: bool,
    /// Totals.
    pub totals: Totals,
    /// The nodes and their regions.
    pub nodes: Vec<NodeRow>,
    /// The origins and their regions.
    pub origins: Vec<PlaceRow>,
    /// The region of Redis.
    pub redis: Option<PlaceRow>,
    /// The countries of the clients, with the number of requests from each.
    pub clients: Vec<ClientRow>,
    /// One row a second.
    pub seconds: Vec<Second>,
    /// The faults that the scenario injected.
    pub faults: Vec<FaultRow>,
    /// Purges.
    pub purges: Vec<PurgeRow>,
    /// The verdict of each checker.
    pub verdicts: Vec<Verdict>,
    /// Problems of the lab: a fault that could not be injected, a node that exited by itself.
    pub trouble: Vec<String>,
    /// Limits of the measurement, for the reader of the numbers.
    pub notes: Vec<String>,
}

/// Totals of a run.
#[derive(Debug, Default, Serialize)]
pub struct Totals {
    /// Requests answered or failed.
    pub requests: u64,
    /// Served from a stored response.
    pub hits: u64,
    /// Ended without a whole answer, or with a status of 500 and more.
    pub errors: u64,
    /// Bytes of body that clients got.
    pub bytes: u64,
    /// Upstream requests.
    pub fetches: u64,
    /// Bytes of body that origins sent.
    pub fetched_bytes: u64,
    /// Time to the first byte, milliseconds: median, 95th, 99th percentile, all requests.
    pub latency_ms: [f64; 3],
    /// The same of hits only.
    pub hit_latency_ms: [f64; 3],
    /// Issue to applied, milliseconds: median, 99th percentile, largest.
    pub propagation_ms: [f64; 3],
    /// Purges issued.
    pub purges: u64,
    /// Purges that the admin API refused or did not answer.
    pub purges_failed: u64,
}

/// A place on the map.
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
    /// Something in a region.
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
    /// Where it is.
    #[serde(flatten)]
    pub place: PlaceRow,
    /// Its region, for people.
    pub region: String,
    /// Requests that it got.
    pub requests: u64,
    /// Served from a stored response.
    pub hits: u64,
    /// The largest resident memory seen, MiB.
    pub memory_mib: u64,
    /// The most open files seen.
    pub files: u64,
    /// CPU time used, milliseconds.
    pub cpu_ms: u64,
    /// `[from, to]` in seconds while its process was gone.
    pub down: Vec<[f64; 2]>,
}

/// Clients on the map.
#[derive(Debug, Serialize)]
pub struct ClientRow {
    /// Where.
    #[serde(flatten)]
    pub place: PlaceRow,
    /// How many requests came from there.
    pub requests: u64,
}

/// One second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// Requests sent in it.
    pub requests: u64,
    /// Of these, served from a stored response.
    pub hits: u64,
    /// Of these, without a whole answer or with a status of 500 and more.
    pub errors: u64,
    /// Time to the first byte in milliseconds: median, 95th, 99th percentile.
    pub latency_ms: [f64; 3],
    /// Upstream requests that began in it.
    pub fetches: u64,
    /// Of these, that asked "has it changed".
    pub validations: u64,
    /// Bytes of body of the upstream requests that began in it.
    pub fetched_bytes: u64,
    /// Resident memory of all nodes, MiB.
    pub memory_mib: u64,
}

/// A fault, in seconds.
#[derive(Debug, Serialize)]
pub struct FaultRow {
    /// Its kind.
    pub kind: String,
    /// For people.
    pub what: String,
    /// When it began.
    pub from: f64,
    /// When it was undone.
    pub to: f64,
}

/// A purge.
#[derive(Debug, Serialize)]
pub struct PurgeRow {
    /// When it was issued, seconds.
    pub at: f64,
    /// The purged scope.
    pub scope: String,
    /// Whether stale stayed allowed.
    pub soft: bool,
    /// Issue to applied at each node, milliseconds, by the receipts.
    pub ms: Vec<f64>,
    /// Nodes that had not applied it at the end.
    pub pending: usize,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

/// The verdict of one checker.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The checker.
    pub name: String,
    /// Its promise.
    pub promise: String,
    /// Whether the promise was kept.
    pub kept: bool,
    /// The violations that it found.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Verdict {
    /// Of a checker.
    pub fn of(checker: &dyn Checker) -> Verdict {
        let findings = checker.findings().clone();
        let (name, promise) = (checker.name().to_owned(), checker.promise().to_owned());
        Verdict { name, promise, kept: findings.broken == 0, findings }
    }
}

/// The facts that are kept of each response.
#[derive(Clone, Copy, Debug)]
pub struct Brief {
    sent: Micros,
    latency: Micros,
    node: NodeId,
    country: usize,
    bytes: u64,
    hit: bool,
    error: bool,
}

impl Brief {
    /// Of an answer.
    pub fn of(seen: &Seen) -> Brief {
        let status = seen.outcome.as_ref().map_or(599, |answer| answer.status);
        Brief {
            sent: seen.sent,
            latency: seen.first_byte.saturating_sub(seen.sent),
            node: seen.node,
            country: seen.country,
            bytes: seen.outcome.as_ref().map_or(0, |answer| answer.length),
            hit: seen.is_hit(),
            error: status >= 500,
        }
    }
}

/// Median, 95th, 99th percentile in milliseconds.
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

/// One row for each second of the run.
pub fn seconds(
    count: usize,
    briefs: &[Brief],
    facts: &Facts,
    samples: &[Sample],
    nodes: usize,
) -> Vec<Second> {
    let mut seconds = vec![Second::default(); count];
    let mut latencies = vec![Vec::new(); count];
    for brief in briefs {
        let at = second_of(brief.sent);
        let Some(second) = seconds.get_mut(at) else { continue };
        second.requests += 1;
        second.hits += u64::from(brief.hit);
        second.errors += u64::from(brief.error);
        latencies[at].push(brief.latency);
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

/// The sum over nodes of each one's latest sample.
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

/// Totals of a run.
pub fn totals(briefs: &[Brief], facts: &Facts) -> Totals {
    let of = |hits_only: bool| {
        let counted = briefs.iter().filter(|brief| !brief.error && (brief.hit || !hits_only));
        percentiles(counted.map(|brief| brief.latency).collect())
    };
    let mut travel: Vec<f64> = facts
        .purges
        .iter()
        .flat_map(|purge| purge.propagation_ms.iter().map(|(_, ms)| *ms))
        .collect();
    travel.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (share * travel.len() as f64).ceil() as usize;
        travel.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
    };
    Totals {
        requests: briefs.len() as u64,
        hits: briefs.iter().filter(|brief| brief.hit).count() as u64,
        errors: briefs.iter().filter(|brief| brief.error).count() as u64,
        bytes: briefs.iter().map(|brief| brief.bytes).sum(),
        fetches: facts.fetches.len() as u64,
        fetched_bytes: facts.fetches.iter().map(|fetch| fetch.bytes).sum(),
        latency_ms: of(false),
        hit_latency_ms: of(true),
        propagation_ms: [at(0.5), at(0.99), at(1.0)],
        purges: facts.purges.len() as u64,
        purges_failed: facts.purges.iter().filter(|purge| purge.failed.is_some()).count() as u64,
    }
}

/// Totals and down times of each node.
pub fn node_rows(
    nodes: &[(String, usize)],
    briefs: &[Brief],
    facts: &Facts,
    samples: &[Sample],
    end: Micros,
) -> Vec<NodeRow> {
    let row = |(number, (name, region)): (usize, &(String, usize))| {
        let own = || briefs.iter().filter(|brief| brief.node == number);
        let sampled = || samples.iter().filter(|sample| sample.node == number);
        NodeRow {
            place: PlaceRow::in_region(name.clone(), *region),
            region: REGIONS[*region].label.to_owned(),
            requests: own().count() as u64,
            hits: own().filter(|brief| brief.hit).count() as u64,
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
    for life in facts.lives.iter().filter(|life| life.node == node) {
        match (life.up, since) {
            (false, None) => since = Some(life.at),
            (true, Some(from)) => {
                down.push([in_seconds(from), in_seconds(life.at)]);
                since = None;
            }
            _ => {}
        }
    }
    down.extend(since.map(|from| [in_seconds(from), in_seconds(end)]));
    down
}

/// Requests of each country.
pub fn client_rows(briefs: &[Brief]) -> Vec<ClientRow> {
    let row = |(number, country): (usize, &crate::plan::place::Country)| ClientRow {
        place: PlaceRow {
            name: format!("{} ({})", country.city, country.code),
            latitude: country.latitude,
            longitude: country.longitude,
        },
        requests: briefs.iter().filter(|brief| brief.country == number).count() as u64,
    };
    crate::plan::place::COUNTRIES.iter().enumerate().map(row).collect()
}

/// Faults, purges.
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

impl Record {
    /// One line for the terminal.
    pub fn summary(&self) -> String {
        let totals = &self.totals;
        let share = 100.0 * totals.hits as f64 / totals.requests.max(1) as f64;
        let broken: u64 = self.verdicts.iter().map(|verdict| verdict.findings.broken).sum();
        let verdict = match broken {
            0 if self.passed => format!("PASS: {} promises kept", self.verdicts.len()),
            0 => "FAIL: the lab could not do all of its plan".to_owned(),
            _ => format!("FAIL: {broken} broken promises"),
        };
        format!(
            "{verdict} · {} · seed {} · {} requests, {share:.1} % hits, {} errors · first byte \
             p50 {:.1} ms p99 {:.0} ms · {} purges, applied p50 {:.1} ms p99 {:.0} ms",
            self.scenario,
            self.seed,
            totals.requests,
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
    use crate::journal::LifeEvent;

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let micros = (1..=100).rev().map(|ms| ms * 1000).collect();
        assert_eq!(percentiles(micros), [50.0, 95.0, 99.0]);
        assert_eq!(percentiles(Vec::new()), [0.0; 3]);
    }

    #[test]
    fn requests_count_in_the_second_in_which_they_were_sent() {
        let brief = |sent, hit| Brief {
            sent,
            hit,
            latency: 1000,
            node: 0,
            country: 0,
            bytes: 1,
            error: false,
        };
        let briefs = [brief(0, true), brief(999_999, false), brief(SECOND, true)];
        let seconds = seconds(2, &briefs, &Facts::default(), &[], 1);
        assert_eq!((seconds[0].requests, seconds[0].hits), (2, 1));
        assert_eq!((seconds[1].requests, seconds[1].hits), (1, 1));
    }

    #[test]
    fn a_node_is_down_between_its_lives() {
        let mut facts = Facts::default();
        for (at, up) in [(0, true), (5, false), (7, true), (9, false)] {
            facts.lives.push(LifeEvent { node: 0, at: at * SECOND, up });
        }
        assert_eq!(down_times(0, &facts, 10 * SECOND), [[5.0, 7.0], [9.0, 10.0]]);
    }
}
