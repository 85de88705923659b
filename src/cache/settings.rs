//! The choices of an operator about caching, for each rule.
//!
//! The defaults follow RFC 9111. A choice that departs from it says so.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::range::RangeLimits;
use super::statuses::is_about_one_request;

/// The caching rules of one rule of a site.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// `false`: nothing is looked up and nothing is stored.
    pub enabled: bool,
    /// The parts of a request that identify the requested resource.
    pub key: KeyPolicy,
    /// The time for which a response may be reused.
    pub lifetimes: Lifetimes,
    /// The conditions under which a stale response may be served.
    pub stale: StalePolicy,
    /// The request directives that count.
    pub honoured: Honoured,
    /// The treatment of a response that sets a cookie.
    pub set_cookie: SetCookie,
    /// The targeted fields for this cache. The first one that is present and valid applies (RFC 9213 §2.2).
    pub targeted: Vec<TargetedField>,
    /// Requests that are never answered from the cache, and whose responses are not stored.
    pub bypass: Bypass,
    /// The maximum number of variants of one key. At the limit the oldest is dropped.
    pub variants_max: usize,
    /// Whether a request without a variant of its own gets the variant whose `Content-Language` is the language that the
    /// request prefers.
    pub select_language: bool,
    /// Whether `No-Vary-Search` of responses is followed.
    pub no_vary_search: bool,
    /// Whether a response is not stored if its type does not go with the extension of its path (`/account/x.css` that is
    /// HTML).
    pub deception_guard: bool,
    /// The age from which a stored response is not used any more. The purge table keeps its entries for this time.
    pub object_age_max: Duration,
    /// The time for which a key is remembered whose response could not be stored (hit-for-miss), so that requests for it
    /// do not wait for each other.
    pub pass_memory: Duration,
    /// Limits on the ranges of one request.
    pub ranges: RangeLimits,
    /// Whether `Cache-Status` shows the key.
    pub show_key: bool,
    /// Tags of all responses of the rule, besides those in their fields.
    pub tags: Vec<Box<str>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            key: KeyPolicy::default(),
            lifetimes: Lifetimes::default(),
            stale: StalePolicy::default(),
            honoured: Honoured::default(),
            set_cookie: SetCookie::Pass,
            targeted: vec![
                TargetedField::structured(HeaderName::from_static("cdn-cache-control")),
                TargetedField::loose(HeaderName::from_static("surrogate-control")),
            ],
            bypass: Bypass::default(),
            variants_max: 64,
            select_language: true,
            no_vary_search: false,
            deception_guard: true,
            object_age_max: Duration::from_secs(30 * 86_400),
            pass_memory: Duration::from_secs(60),
            ranges: RangeLimits::default(),
            show_key: false,
            tags: Vec::new(),
        }
    }
}

/// The parts of a request that are in its key, besides scheme, authority and path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyPolicy {
    /// The query parameters that are in the key.
    pub query: QueryPolicy,
    /// Whether the parameters are sorted, so that `?a&b` and `?b&a` have one key.
    pub sort_query: bool,
    /// Request fields whose values are part of the key.
    pub headers: Vec<HeaderName>,
    /// Cookies whose values are part of the key.
    pub cookies: Vec<Box<str>>,
}

/// The query parameters that are part of the key. A name may end in `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum QueryPolicy {
    /// All of them, as received.
    #[default]
    All,
    /// No parameter.
    None,
    /// These.
    Only(Vec<Box<str>>),
    /// All but these.
    Except(Vec<Box<str>>),
}

/// The time for which a response may be reused (RFC 9111 §4.2).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lifetimes {
    /// Whether the lifetime that the origin states applies. Its `private`, `no-store` and `no-cache` apply in any case.
    pub respect_origin: bool,
    /// The lifetime of all responses, in place of the origin's, with a status that may be cached without explicit
    /// freshness (RFC 9110 §15.1).
    pub fixed: Option<Duration>,
    /// The lifetime of these statuses if the origin states none. The first match applies.
    pub by_status: Vec<(RangeInclusive<u16>, Duration)>,
    /// The share of the time since `Last-Modified` for which a response without explicit
    /// freshness counts as fresh, 0 to 1 (RFC 9111 §4.2.2).
    pub heuristic_fraction: f64,
    /// The longest heuristic lifetime.
    pub heuristic_max: Duration,
    /// The longest lifetime from any source.
    pub lifetime_max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            respect_origin: true,
            fixed: None,
            by_status: Vec::new(),
            heuristic_fraction: 0.1,
            heuristic_max: Duration::from_secs(86_400),
            lifetime_max: Duration::from_secs(365 * 86_400),
        }
    }
}

impl Lifetimes {
    /// The configured lifetime of `status` if the origin states none. A range has none for a status that tells of one
    /// request: any client could cause it for all others.
    pub(crate) fn of_status(&self, status: StatusCode) -> Option<Duration> {
        let code = status.as_u16();
        let must_be_named = is_about_one_request(status);
        let applies = |codes: &RangeInclusive<u16>| {
            codes.contains(&code) && (!must_be_named || codes.start() == codes.end())
        };
        self.by_status.iter().find(|(codes, _)| applies(codes)).map(|(_, lifetime)| *lifetime)
    }
}

/// The conditions under which a stale response may be served (RFC 9111 §4.2.4, RFC 5861). The origin's own `stale-…`
/// directives take precedence, and its prohibitions, such as `must-revalidate`, apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StalePolicy {
    /// `stale-while-revalidate` of responses without this directive.
    pub while_revalidate: Duration,
    /// `stale-if-error` of responses without this directive.
    pub if_error: Duration,
    /// The time to wait for upstream before a stale response is served that an error would permit; the fetch goes on.
    /// `None`: no limit.
    pub soft_deadline: Option<Duration>,
    /// Whether `stale-while-revalidate` and `stale-if-error` of a response apply despite its `s-maxage`. RFC 9111
    /// §5.2.2.10 forbids it, and many origins expect it.
    pub despite_s_maxage: bool,
}

/// The request directives that count. RFC 9111 §5.2.1 leaves it to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Honoured {
    /// `no-store`: neither looked up nor stored.
    pub no_store: bool,
    /// `no-cache`, and `Pragma: no-cache` without `Cache-Control`: validates the stored response first.
    pub no_cache: bool,
    /// `max-age`: validates a stored response that is older.
    pub max_age: bool,
    /// `min-fresh`: validates a stored response that does not stay fresh for that time.
    pub min_fresh: bool,
    /// `max-stale`: accepts a response that is stale by at most that time.
    pub max_stale: bool,
    /// `only-if-cached`: answers 504 instead of forwarding.
    pub only_if_cached: bool,
    /// `stale-if-error` (RFC 5861 §4): the client's own limit.
    pub stale_if_error: bool,
}

impl Honoured {
    /// No directive counts.
    pub(crate) const NONE: Self = Self {
        no_store: false,
        no_cache: false,
        max_age: false,
        min_fresh: false,
        max_stale: false,
        only_if_cached: false,
        stale_if_error: false,
    };
    /// All directives count.
    pub(crate) const ALL: Self = Self {
        no_store: true,
        no_cache: true,
        max_age: true,
        min_fresh: true,
        max_stale: true,
        only_if_cached: true,
        stale_if_error: true,
    };
}

impl Default for Honoured {
    fn default() -> Self {
        Self::ALL
    }
}

/// The treatment of a response with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SetCookie {
    /// The response is passed on and not stored.
    #[default]
    Pass,
    /// The response is stored without `Set-Cookie`; the client that caused it gets the cookie.
    Strip,
    /// The response is stored with the cookie, as RFC 9111 permits: every client gets it.
    Store,
}

/// A field for some caches only, which read it before `Cache-Control` (RFC 9213).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetedField {
    /// The field's name.
    pub name: HeaderName,
    /// Whether it is a structured field, which is ignored if it is not valid (RFC 9213 §2.1). `Surrogate-Control` is none:
    /// it is read like `Cache-Control`.
    pub structured: bool,
}

impl TargetedField {
    /// A field defined by RFC 9213.
    pub(crate) fn structured(name: HeaderName) -> Self {
        Self { name, structured: true }
    }

    /// A field from before RFC 9213, such as `Surrogate-Control`.
    pub(crate) fn loose(name: HeaderName) -> Self {
        Self { name, structured: false }
    }
}

/// Requests that bypass the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bypass {
    /// Requests with a cookie of one of these names, which may end in `*`.
    pub cookies: Vec<Box<str>>,
    /// Requests with one of these fields.
    pub headers: Vec<HeaderName>,
}

/// Whether `name` is `pattern`, which may end in `*`.
pub(super) fn name_matches(pattern: &str, name: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix.as_bytes()),
        None => name == pattern.as_bytes(),
    }
}
