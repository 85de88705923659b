//! The limits of a scenario: client errors during its faults, and the memory and open files of a node.

use serde::Deserialize;

/// Client errors that a scenario expects during a fault of one kind.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Excuse {
    /// The kind of the fault.
    pub during: String,
    /// Expected status codes.
    #[serde(default)]
    pub status: Vec<u16>,
    /// Whether requests may fail without a response.
    #[serde(default)]
    pub broken: bool,
    /// Whether bodies may end early, because the origin failed while it sent them.
    #[serde(default)]
    pub cut_short: bool,
    /// Seconds after the end of the fault in which errors are still expected.
    #[serde(default)]
    pub grace_s: f64,
    /// Errors are unexpected if the node has a stored response that it may serve stale. Use this
    /// only if the caches can hold the whole catalog.
    #[serde(default)]
    pub unless_stored: bool,
}

/// The maximum resource usage of a node.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Resident memory in MiB.
    pub memory_mib: u64,
    /// Open files.
    pub files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // A memory cache of 64 MiB, buffers, and the overhead of a debug build.
        Limits { memory_mib: 512, files: 2048 }
    }
}
