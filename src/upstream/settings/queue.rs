//! Requests that wait for an origin.

use std::time::Duration;

/// The queue of a pool, for requests that find no origin with a place and a connection for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueSettings {
    /// Maximum number of requests that wait, over all cores. Beyond it: 503.
    pub length: usize,
    /// Maximum time that a request waits; then 503.
    pub wait_max: Duration,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { length: 0, wait_max: Duration::from_secs(5) }
    }
}
