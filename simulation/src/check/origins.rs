//! Nodes leave an origin that fails: it gets trials, and no client waits for it.
//!
//! Only faults in which the origin records its requests can be checked: it answers 503, or late, or breaks bodies off.

use super::{CheckContext, Checker, Findings};
use crate::journal::{Facts, Fault, Micros, SECOND};

/// Checks the requests at origins that fail; see the module documentation.
pub struct BadOriginsAreLeft {
    /// Whether each pool has other origins.
    fails_over: bool,
    findings: Findings,
}

impl BadOriginsAreLeft {
    /// A checker for pools that have other origins, if they fail over.
    pub fn new(fails_over: bool) -> Self {
        BadOriginsAreLeft { fails_over, findings: Findings::default() }
    }
}

impl Checker for BadOriginsAreLeft {
    fn name(&self) -> &'static str {
        "bad origins are left"
    }

    fn promise(&self) -> &'static str {
        "8 s after an origin of a pool begins to fail it gets at most a quarter of the requests that it had"
    }

    fn end(&mut self, context: CheckContext) {
        let is_checked = |fault: &&Fault| self.fails_over && KINDS.contains(&&*fault.kind);
        let faults: Vec<&Fault> = context.facts.faults.iter().filter(is_checked).collect();
        for fault in faults {
            for &origin in &fault.origins {
                let Some((before, during)) = requests_per_s(context.facts, fault, origin) else {
                    continue;
                };
                self.findings.count_check();
                if during > before / SHARE_LEFT {
                    let what = format!(
                        "it got {during:.1} requests per second from 8 s on, and {before:.1} before"
                    );
                    self.findings.record_violation(fault.began, fault.what.clone(), what);
                }
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

/// The requests per second at an origin before it fails, and once nodes have left it. `None`: the fault is too
/// short, or the origin had few requests.
pub fn requests_per_s(facts: &Facts, fault: &Fault, origin: usize) -> Option<(f64, f64)> {
    let per_s = |from: Micros, to: Micros| {
        let in_time = |began: Micros| (from..to).contains(&began);
        let requests = facts.fetches.iter();
        let requests = requests.filter(|fetch| fetch.origin == origin && in_time(fetch.began));
        requests.count() as f64 * SECOND as f64 / (to - from) as f64
    };
    let (settled, ended) = (fault.began + LEFT_AFTER, fault.ended?);
    let before = per_s(fault.began.saturating_sub(LEFT_AFTER), fault.began);
    (settled + SECOND < ended && before >= BEFORE_MIN).then(|| (before, per_s(settled, ended)))
}

const KINDS: [&str; 3] = ["origin-slow", "origin-fails", "origin-truncates"];
/// Five faulty responses in a row at each node and pool, and a busy machine.
const LEFT_AFTER: Micros = 8 * SECOND;
/// Trials of all nodes and pools remain.
const SHARE_LEFT: f64 = 4.0;
/// With fewer requests per second, trials are a large share of them.
const BEFORE_MIN: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Fixture;
    use crate::plan::object::Class;

    /// Ten requests per second until `left_s`; the origin fails from second 20 to 40.
    fn broken(kind: &str, left_s: u64, fails_over: bool) -> u64 {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        for tenth in 0..left_s * 10 {
            fixture.fetch(&object, 0, tenth * SECOND / 10);
        }
        let (kind, origins) = (kind.to_owned(), vec![0]);
        let (began, ended) = (20 * SECOND, Some(40 * SECOND));
        fixture.facts.faults.push(Fault { kind, origins, began, ended, ..Fault::default() });
        let mut checker = BadOriginsAreLeft::new(fails_over);
        checker.end(fixture.context());
        checker.findings().broken
    }

    #[test]
    fn an_origin_that_fails_and_keeps_its_requests_is_reported() {
        assert_eq!(broken("origin-fails", 27, true), 0);
        assert_eq!(broken("origin-fails", 40, true), 1);
        assert_eq!(broken("origin-truncates", 40, true), 1);
        assert_eq!(broken("origin-down", 40, true), 0);
        assert_eq!(broken("origin-fails", 40, false), 0, "the only origin of its pool");
    }
}
