//! What the store holds, for `skerry store stat`, the admin API and the gauges.

use std::path::PathBuf;

/// A look at the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    /// Bytes in memory, as weighed.
    pub memory_bytes: u64,
    /// How many there may be.
    pub memory_bytes_max: u64,
    /// Heads, variant lists and slices in memory.
    pub memory_pieces: u64,
    /// Entries of the purge table.
    pub purge_entries: u64,
    /// Messages waiting for the bus.
    pub outbox_messages: u64,
    /// The directories, in the order of the settings.
    pub directories: Vec<DirectoryStat>,
}

/// A look at one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryStat {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is used.
    pub service: Service,
    /// How much it may hold.
    pub bytes: u64,
    /// Written since the start.
    pub written_bytes: u64,
    /// Read since the start.
    pub read_bytes: u64,
    /// Waiting to be written.
    pub queued_bytes: u64,
}

/// Whether a directory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Read and written.
    Full,
    /// Writes failed: it is only read until they work again.
    ReadOnly,
    /// It stalled or could not be opened: it is neither read nor written until it works again.
    Out,
}

impl Service {
    /// For logs and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Out => "out",
        }
    }
}
