//! The position in the purge log that a stored response records.

use std::sync::atomic::AtomicU64;

/// The state of the purge log that a stored response records, in addition to
/// [`StoredResponse::stored_at_sequence`](crate::cache::StoredResponse::stored_at_sequence).
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The lineage of the log that the response's sequence belongs to.
    pub(super) lineage: u64,
    /// Purges up to this sequence are known not to cover the response.
    pub(super) checked_up_to: AtomicU64,
}

impl Checkpoint {
    /// For a response stored under the log with this lineage.
    pub(crate) fn of(lineage: u64) -> Self {
        Self { lineage, checked_up_to: AtomicU64::new(0) }
    }

    /// A checkpoint of no log: the response must be validated before it is used.
    pub(crate) fn distrusted() -> Self {
        Self::of(NO_LINEAGE)
    }

    /// The purge log that the response was stored under.
    pub(crate) fn lineage(&self) -> u64 {
        self.lineage
    }
}

/// No purge log has this lineage.
const NO_LINEAGE: u64 = 0;
