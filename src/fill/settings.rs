//! The limits of fills.

use std::time::Duration;

/// Limits of fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How far a fill may run ahead of its fastest reader, and how many bytes it keeps in memory
    /// for slower readers. At least two slices.
    pub window_bytes: u64,
    /// Maximum bytes of all windows together. From half of it on, every fill gets two slices; beyond it, a fill
    /// whose readers are slow is no longer stored and runs ahead of them by 64 KiB.
    pub windows_bytes_total: u64,
    /// A fill without readers continues if at least this percentage of it has arrived, or if at
    /// most a slice is missing.
    pub keep_percent: u8,
    /// How long in total a fill that is *not* stored waits for readers that would otherwise fall
    /// behind its window; then it disconnects them.
    pub patience: Duration,
    /// Maximum bytes of one sub-request for missing slices, rounded down to whole slices, at least
    /// one.
    pub range_request_bytes_max: u64,
    /// A range that begins before this offset is fetched from the first byte up to at least this
    /// offset, so that an object of at most this length is fetched completely.
    pub whole_bytes_max: u64,
    /// Maximum number of concurrent fills; above it, requests are not collapsed and responses not
    /// stored.
    pub fills_max: usize,
    /// Maximum number of followers and readers of one fill; above it, requests are not collapsed.
    pub followers_max: usize,
    /// Maximum number of keys remembered as uncacheable; above it, no further key is remembered.
    pub remembered_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window_bytes: 4 << 20,
            windows_bytes_total: 512 << 20,
            keep_percent: 50,
            patience: Duration::from_secs(10),
            range_request_bytes_max: 8 << 20,
            whole_bytes_max: 1 << 20,
            fills_max: 16_384,
            followers_max: 65_536,
            remembered_max: 65_536,
        }
    }
}
