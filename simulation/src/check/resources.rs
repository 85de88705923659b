//! The memory and open files of a node stay within the scenario's limits.

use super::{CheckContext, Checker, Findings};
use crate::journal::{Micros, NodeId};
use crate::plan::tolerance::Limits;

/// The resource usage of a node's process at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The time of the sample.
    pub at: Micros,
    /// The node.
    pub node: NodeId,
    /// Resident memory (`VmRSS`).
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub files: u64,
    /// CPU time used so far, in milliseconds.
    pub cpu_ms: u64,
}

/// Checks resource usage; see the module documentation.
pub struct Bounded {
    limits: Limits,
    findings: Findings,
}

impl Bounded {
    /// A checker with these limits.
    pub fn new(limits: Limits) -> Self {
        Bounded { limits, findings: Findings::default() }
    }
}

impl Checker for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn promise(&self) -> &'static str {
        "no node uses more memory or open files than the scenario's limits"
    }

    fn sample(&mut self, context: CheckContext, sample: &Sample) {
        self.findings.count_check();
        let name = context.nodes[sample.node].clone();
        let mib = sample.resident_bytes >> 20;
        if mib > self.limits.memory_mib {
            let what = format!("{mib} MiB resident, limit {} MiB", self.limits.memory_mib);
            self.findings.record_violation(sample.at, name.clone(), what);
        }
        if sample.files > self.limits.files {
            let what = format!("{} open files, limit {}", sample.files, self.limits.files);
            self.findings.record_violation(sample.at, name, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Fixture;

    #[test]
    fn usage_above_a_limit_is_reported() {
        let fixture = Fixture::new();
        let mut checker = Bounded::new(Limits { memory_mib: 100, files: 50 });
        let fine = Sample { at: 1, node: 1, resident_bytes: 100 << 20, files: 50, cpu_ms: 1 };
        checker.sample(fixture.context(), &fine);
        assert_eq!(checker.findings().broken, 0);
        checker.sample(fixture.context(), &Sample { resident_bytes: 101 << 20, ..fine });
        checker.sample(fixture.context(), &Sample { files: 51, ..fine });
        let whats: Vec<_> = checker.findings().violations.iter().map(|v| v.what.clone()).collect();
        assert_eq!(whats, ["101 MiB resident, limit 100 MiB", "51 open files, limit 50"]);
    }
}
