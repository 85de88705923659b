//! Memory and file descriptors of a node stay bounded.

use super::{Checker, Findings, World};
use crate::journal::{Micros, NodeId};
use serde::Deserialize;

/// The resources of one node's process at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When.
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

/// The resources that a node may use.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Resident memory of a node, MiB.
    pub memory_mib: u64,
    /// Open files of a node.
    pub files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // A memory cache of 64 MiB, its buffers, and what a debug build takes on top.
        Limits { memory_mib: 512, files: 2048 }
    }
}

/// See the module's text.
pub struct Bounded {
    limits: Limits,
    findings: Findings,
}

impl Bounded {
    /// With these limits.
    pub fn new(limits: Limits) -> Self {
        Bounded { limits, findings: Findings::default() }
    }
}

impl Checker for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn promise(&self) -> &'static str {
        "no node holds more memory or more open files than the scenario's limits"
    }

    fn sampled(&mut self, world: World, sample: &Sample) {
        self.findings.look();
        let name = world.nodes[sample.node].clone();
        let mib = sample.resident_bytes >> 20;
        if mib > self.limits.memory_mib {
            let what = format!("{mib} MiB resident, limit {} MiB", self.limits.memory_mib);
            self.findings.break_promise(sample.at, name.clone(), what);
        }
        if sample.files > self.limits.files {
            let what = format!("{} open files, limit {}", sample.files, self.limits.files);
            self.findings.break_promise(sample.at, name, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Lab;

    #[test]
    fn too_much_of_either_is_named() {
        let lab = Lab::new();
        let mut checker = Bounded::new(Limits { memory_mib: 100, files: 50 });
        let fine = Sample { at: 1, node: 1, resident_bytes: 100 << 20, files: 50, cpu_ms: 1 };
        checker.sampled(lab.world(), &fine);
        assert_eq!(checker.findings().broken, 0);
        checker.sampled(lab.world(), &Sample { resident_bytes: 101 << 20, ..fine });
        checker.sampled(lab.world(), &Sample { files: 51, ..fine });
        let whats: Vec<_> = checker.findings().violations.iter().map(|v| v.what.clone()).collect();
        assert_eq!(whats, ["101 MiB resident, limit 100 MiB", "51 open files, limit 50"]);
    }
}
