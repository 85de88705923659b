//! The stored response: everything that RFC 9111 §3 and §4 need, except its body.

use std::time::{Duration, SystemTime};

use http::{StatusCode, Version};

use crate::fields::FieldSection;

use super::form::Form;
use super::key::{KeyHash, variant_hash};
use super::packed::{Nanoseconds, Seconds, SiteName, StoredParts, TagHashes, VariantText};
use super::purge::{ALIASED, PurgeSequence, PurgeTarget};

/// A response as it is stored. Holds nothing of the requesting client except the values of the
/// selecting fields (`variant`).
///
/// The order in memory is that of the declaration (`repr(C)`): fields that are read together are in one line of the processor's
/// cache. With many responses in memory, each line that a hit reads costs an access to main memory.
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct StoredResponse {
    // Every hit reads these.
    /// The stored bytes, if not all are stored: sorted, disjoint, not adjacent.
    pub parts: Option<Box<StoredParts>>,
    /// Present if it was made from another stored response by coding or decoding.
    pub form: Option<Box<Form>>,
    // A hit decides by these: 64 bytes.
    /// The key's text, compared on every lookup.
    pub key: Box<str>,
    /// The time for which the response may be reused. Computed when it is stored.
    pub freshness: Freshness,
    /// The purge-log position read **before** the upstream request was sent.
    pub stored_at_sequence: PurgeSequence,
    // A hit sends these. If the content is coded, they are those of the form.
    /// The fields to reuse, as received: repeats, order, bytes. Without hop-by-hop fields, `Age`, and
    /// fields that `no-cache="…"` and `private="…"` name.
    pub headers: FieldSection,
    /// Length of the complete body in bytes, if known.
    pub complete_length: Option<u64>,
    /// The site's name in the configuration.
    pub site: SiteName,
    /// The final status, 206 only while the body is incomplete.
    pub status: StatusCode,
    /// The HTTP version that it was received over, for `Via` (RFC 9110 §7.6.3). A validation does not
    /// change it.
    pub version: Version,
    // Only some hits read these.
    /// The selecting fields' normalised values (RFC 9111 §4.1), empty without `Vary`.
    pub variant: VariantText,
    /// The hashes of the response's tags, see [`super::purge::tag_hash`].
    pub tags: TagHashes,
}

/// Everything that the decision for a hit reads. 40 bytes; plain times would take 88.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// When the response arrived (`response_time` of RFC 9111 §4.2.3).
    pub response_time: Nanoseconds,
    /// `corrected_initial_age` of RFC 9111 §4.2.3.
    pub initial_age: Nanoseconds,
    /// `freshness_lifetime` of RFC 9111 §4.2.1 for a shared cache.
    pub lifetime: Nanoseconds,
    /// Whether the lifetime is heuristic (RFC 9111 §4.2.2).
    pub heuristic: bool,
    /// RFC 5861 §3, after site defaults.
    pub stale_while_revalidate: Seconds,
    /// RFC 5861 §4, after site defaults.
    pub stale_if_error: Seconds,
    /// `must-revalidate`, `proxy-revalidate` or `s-maxage`: never served stale.
    pub must_revalidate: bool,
    /// RFC 8246: while it is fresh, a request's `max-age` does not cause a validation.
    pub immutable: bool,
    /// `no-cache` without an argument: never served without validation.
    pub no_cache: bool,
}

impl Freshness {
    /// The same without a lifetime: stale, and never served stale.
    pub(crate) fn expired(&self) -> Self {
        Self {
            lifetime: Duration::ZERO.into(),
            stale_while_revalidate: Duration::ZERO.into(),
            stale_if_error: Duration::ZERO.into(),
            must_revalidate: true,
            immutable: false,
            ..*self
        }
    }

    /// `current_age` (RFC 9111 §4.2.3).
    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        self.age_after(self.resident(now))
    }

    /// The age of the response after this resident time.
    pub(crate) fn age_after(&self, resident: Duration) -> Duration {
        self.initial_age.span().saturating_add(resident)
    }

    /// `resident_time`: how long ago it arrived or was validated.
    pub(crate) fn resident(&self, now: SystemTime) -> Duration {
        now.duration_since(self.response_time.time()).unwrap_or_default()
    }

    /// The rest of its lifetime in seconds, negative if it is stale: `ttl` of RFC 9211.
    pub(crate) fn ttl(&self, now: SystemTime) -> i64 {
        self.ttl_at(self.age(now))
    }

    /// The `ttl` of the response at this age.
    pub(crate) fn ttl_at(&self, age: Duration) -> i64 {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        seconds(self.lifetime.span()).saturating_sub(seconds(age))
    }
}

impl StoredResponse {
    /// The hash under which it is stored: its key's, or its variant's; mixed with its coding if it is a form.
    pub(crate) fn hash(&self) -> KeyHash {
        let hash = self.source_hash();
        self.form.as_ref().map_or(hash, |form| Form::hash(hash, form.coding))
    }

    /// The hash of its key, or of its variant: under which its source is stored if it is a form.
    pub(crate) fn source_hash(&self) -> KeyHash {
        variant_hash(&self.key, &self.variant)
    }

    /// Whether it is stored under a key that `No-Vary-Search` shortened.
    pub(crate) fn is_aliased(&self) -> bool {
        self.tags.contains(&ALIASED)
    }

    /// The site, URL and tags by which a purge may cover the response.
    pub(crate) fn purge_target(&self) -> PurgeTarget<'_> {
        let url = self.key.split('\n').next().unwrap_or_default();
        PurgeTarget { site: &self.site, url, tags: &self.tags }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cache::{
        CacheKey, Settings, StorageContext, StoreDecision, UpstreamExchange, may_store,
    };
    use http::{HeaderMap, HeaderName, Method};

    /// 2026-11-18T11:06:40Z.
    pub(crate) fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
    }

    pub(crate) fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    /// A 200 with these fields that was stored just `now`.
    pub(crate) fn stored(fields: &[(&str, &str)]) -> StoredResponse {
        stored_under(fields, &Settings::default())
    }

    pub(crate) fn stored_under(fields: &[(&str, &str)], settings: &Settings) -> StoredResponse {
        let key = CacheKey::new("https://e.org/a");
        let (selecting, sequence) = (&HeaderMap::new(), PurgeSequence(7));
        let place = StorageContext { key: &key, selecting, codings: &[], site: "e", sequence };
        let exchange = UpstreamExchange {
            version: http::Version::HTTP_11,
            method: &Method::GET,
            request: &HeaderMap::new(),
            status: StatusCode::OK,
            response: &headers(fields),
            request_time: now(),
            response_time: now(),
        };
        match may_store(&exchange, &place, settings) {
            StoreDecision::Store(stored) => *stored,
            StoreDecision::Refuse { reason, .. } => panic!("{fields:?} not stored: {reason:?}"),
        }
    }

    #[test]
    fn purge_target_has_the_url_without_other_parts() {
        let mut stored = stored(&[("cache-control", "max-age=1")]);
        stored.key = "https://e.org/a\nx: y".into();
        assert_eq!(stored.purge_target().url, "https://e.org/a");
    }
}
