//! The stored response: what RFC 9111 §3 and §4 need to know of it, apart from its body.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

use super::purge::{PurgeSequence, PurgeTarget};

/// A response as the store keeps it and as the rules see it. Nothing in here is of the
/// requester, except the values of the selecting fields (`variant`).
#[derive(Clone, Debug)]
pub struct StoredResponse {
    /// The key's text, compared on every lookup.
    pub key: Box<str>,
    /// The selecting fields' normalised values (RFC 9111 §4.1), empty without `Vary`.
    pub variant: Box<str>,
    /// The site's name in the configuration.
    pub site: Box<str>,
    /// The final status, 206 only while the body is incomplete.
    pub status: StatusCode,
    /// The fields to reuse, as received: repeats, order, bytes. Hop-by-hop fields, `Age` and
    /// what `no-cache="…"`/`private="…"` name are not in it.
    pub headers: HeaderMap,
    /// How long it may be reused, computed once.
    pub freshness: Freshness,
    /// Hashes of its tags, see [`super::purge::tag_hash`].
    pub tags: Box<[u64]>,
    /// The purge-log position read **before** the upstream request was sent.
    pub stored_at_sequence: PurgeSequence,
    /// The whole body's length in bytes, when known.
    pub complete_length: Option<u64>,
    /// Which bytes are stored, when not all are: sorted, disjoint, not touching.
    pub parts: Option<Box<[Range<u64>]>>,
}

/// The freshness record: all that a hit's decision reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// When the response arrived (`response_time` of RFC 9111 §4.2.3).
    pub response_time: SystemTime,
    /// `corrected_initial_age` of RFC 9111 §4.2.3.
    pub initial_age: Duration,
    /// `freshness_lifetime` of RFC 9111 §4.2.1 for a shared cache.
    pub lifetime: Duration,
    /// Whether the lifetime is a guess (RFC 9111 §4.2.2).
    pub heuristic: bool,
    /// RFC 5861 §3, after site defaults.
    pub stale_while_revalidate: Duration,
    /// RFC 5861 §4, after site defaults.
    pub stale_if_error: Duration,
    /// `must-revalidate`, `proxy-revalidate` or `s-maxage`: never served stale.
    pub must_revalidate: bool,
    /// `no-cache` without an argument: never served without validation.
    pub no_cache: bool,
}

impl Freshness {
    /// `current_age` (RFC 9111 §4.2.3).
    pub fn age(&self, now: SystemTime) -> Duration {
        let resident = now.duration_since(self.response_time).unwrap_or_default();
        self.initial_age.saturating_add(resident)
    }
}

impl StoredResponse {
    /// What purges are matched against.
    pub fn purge_target(&self) -> PurgeTarget<'_> {
        let url = self.key.split('\n').next().unwrap_or_default();
        PurgeTarget { site: &self.site, url, tags: &self.tags }
    }
}
