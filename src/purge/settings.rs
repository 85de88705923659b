//! The settings of purges.

use std::path::PathBuf;
use std::time::Duration;

/// The settings of purge table, log and outbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Directory of the log; created if missing. `None`: purges are kept in memory only, which is
    /// enough if stored responses are, too.
    pub directory: Option<PathBuf>,
    /// Maximum entries of the purge table. Above it, the oldest are merged into a soft purge of
    /// everything.
    pub entries_max: usize,
    /// Maximum length of a URL, prefix, tag or site name in a purge that is ordered at this node.
    pub scope_bytes_max: usize,
    /// The log is rewritten as a snapshot when it has grown by this much.
    pub log_bytes: u64,
    /// Maximum messages kept for the purge bus while it is not reachable. Above it, purges are
    /// refused.
    pub outbox_entries_max: usize,
    /// Their maximum total bytes, in memory and on disk. 1 MiB to 1 GiB; a single message may be
    /// longer.
    pub outbox_bytes_max: usize,
    /// Stored responses fetched longer ago than this are not used, and purges older than this are
    /// removed. The same value as the store's setting of this name.
    pub object_age_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: None,
            entries_max: 1_000_000,
            scope_bytes_max: 8 << 10,
            log_bytes: 16 << 20,
            outbox_entries_max: 100_000,
            outbox_bytes_max: 64 << 20,
            object_age_max: Duration::from_secs(30 * 24 * 3600),
        }
    }
}
