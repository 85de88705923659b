//! A purge as the admin API, a PURGE request or another node orders it.

use crate::cache::{PurgeKind, PurgeScope};

/// A valid request to purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PurgeRequest {
    /// The scopes to purge, at least one. A URL or prefix gives two scopes, one per scheme. The admin API
    /// limits how many there are.
    pub scopes: Vec<PurgeScope>,
    /// Soft: mark as stale. Hard: remove.
    pub kind: PurgeKind,
    /// A note for the audit log.
    pub reason: Option<String>,
    /// Number of purged objects, most requested first, that each node fetches again.
    pub refresh: usize,
}
