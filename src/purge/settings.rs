//! What the operator may choose about purges.

use std::path::PathBuf;
use std::time::Duration;

/// The purge log's settings, as shipped by `Default`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the log lives; made when it is missing. `None`: purges are kept in memory only, which
    /// is enough where stored responses are too.
    pub directory: Option<PathBuf>,
    /// Entries of the purge table. Beyond: the oldest are widened to a soft purge of everything.
    pub entries_max: usize,
    /// A purge's URL, prefix, tag or site name may be this long.
    pub scope_bytes_max: usize,
    /// The log is rewritten as a snapshot when it has grown by this much.
    pub log_bytes: u64,
    /// Messages kept for the purge bus while it cannot be reached. Beyond, purges are refused.
    pub outbox_entries_max: usize,
    /// Their bytes together, in memory and on disk. 1 MiB to 1 GiB; one message may be longer.
    pub outbox_bytes_max: usize,
    /// Nothing that was fetched longer ago than this is used; purges older than this are
    /// forgotten. The store's setting of the same name.
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
