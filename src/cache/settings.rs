//! What an operator may choose about caching, a rule at a time.
//!
//! Everything here has an answer by the book as its default. What a choice gives up of
//! RFC 9111 is said at the choice.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::range::RangeLimits;

/// The caching rules of one rule of a site.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// `false`: nothing is looked up and nothing is stored.
    pub enabled: bool,
    /// What makes two requests ask for the same thing.
    pub key: KeyPolicy,
    /// How long a response may be reused.
    pub lifetimes: Lifetimes,
    /// When a stale response may be served.
    pub stale: StalePolicy,
    /// Which directives of strangers' requests count.
    pub honoured: Honoured,
    /// What becomes of a response that sets a cookie.
    pub set_cookie: SetCookie,
    /// The targeted fields that speak to us, first present and valid one wins (RFC 9213 §2.2).
    pub targeted: Vec<TargetedField>,
    /// Requests that are never answered from the cache, and whose answers are not stored.
    pub bypass: Bypass,
    /// How many variants one key may have. At the limit the oldest is forgotten.
    pub variants_max: usize,
    /// Whether a request whose most wanted language is a stored variant's `Content-Language`
    /// gets that variant, when its own fields have none.
    pub select_language: bool,
    /// Whether `No-Vary-Search` of responses is followed.
    pub no_vary_search: bool,
    /// Whether a response is refused whose type does not go with its path's extension
    /// (`/account/x.css` that is HTML).
    pub deception_guard: bool,
    /// No stored response is used when it is older; the purge table keeps its entries as long.
    pub object_age_max: Duration,
    /// For how long a key is remembered whose response could not be stored, so that requests
    /// for it do not wait for each other.
    pub pass_memory: Duration,
    /// Limits on what one request may ask for in ranges.
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

/// Which parts of a request are in its key, besides scheme, authority and path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyPolicy {
    /// Which query parameters count.
    pub query: QueryPolicy,
    /// Whether the parameters that count are put in order, so that `?a&b` is `?b&a`.
    pub sort_query: bool,
    /// Request fields whose values are part of the key.
    pub headers: Vec<HeaderName>,
    /// Cookies whose values are part of the key.
    pub cookies: Vec<Box<str>>,
}

/// Which query parameters are part of the key. A name may end in `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum QueryPolicy {
    /// All of them, as they came.
    #[default]
    All,
    /// None of them.
    None,
    /// These.
    Only(Vec<Box<str>>),
    /// All but these.
    Except(Vec<Box<str>>),
}

/// How long a response may be reused (RFC 9111 §4.2).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lifetimes {
    /// Whether the origin's own words on freshness count. `private`, `no-store` and `no-cache`
    /// count in any case.
    pub respect_origin: bool,
    /// This lifetime whatever the origin says, for the statuses that may be cached without
    /// explicit freshness (RFC 9110 §15.1).
    pub fixed: Option<Duration>,
    /// The lifetime of these statuses when the origin gives none; first match wins.
    pub by_status: Vec<(RangeInclusive<u16>, Duration)>,
    /// The share of the time since `Last-Modified` for which a response without explicit
    /// freshness counts as fresh, 0 to 1 (RFC 9111 §4.2.2).
    pub heuristic_fraction: f64,
    /// The longest lifetime that may be guessed.
    pub heuristic_max: Duration,
    /// The longest lifetime at all.
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
    /// The configured lifetime of `status` when the origin gives none.
    pub(crate) fn of_status(&self, status: StatusCode) -> Option<Duration> {
        let code = status.as_u16();
        self.by_status
            .iter()
            .find(|(codes, _)| codes.contains(&code))
            .map(|(_, lifetime)| *lifetime)
    }
}

/// When a stale response may be served (RFC 9111 §4.2.4, RFC 5861). What an origin says in
/// its own `stale-…` directive wins, and what it forbids stays forbidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StalePolicy {
    /// `stale-while-revalidate` of responses that do not say.
    pub while_revalidate: Duration,
    /// `stale-if-error` of responses that do not say.
    pub if_error: Duration,
    /// After this time without an answer from upstream, a stale response that an error would
    /// permit is served while the fetch goes on. `None`: never.
    pub soft_deadline: Option<Duration>,
    /// Whether `s-maxage` leaves standing a `stale-while-revalidate` or `stale-if-error` that
    /// the same response carries. RFC 9111 §5.2.2.10 says no; many origins mean yes.
    pub despite_s_maxage: bool,
}

/// Which directives of requests count. RFC 9111 §5.2.1 leaves it to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Honoured {
    /// `no-store`: neither looked up nor stored.
    pub no_store: bool,
    /// `no-cache`, and `Pragma: no-cache` without `Cache-Control`: validate first.
    pub no_cache: bool,
    /// `max-age`: validate what is older.
    pub max_age: bool,
    /// `min-fresh`: validate what is not fresh for so long yet.
    pub min_fresh: bool,
    /// `max-stale`: serve what is stale by at most so much.
    pub max_stale: bool,
    /// `only-if-cached`: 504 rather than going upstream.
    pub only_if_cached: bool,
    /// `stale-if-error` (RFC 5861 §4): the client's own limit.
    pub stale_if_error: bool,
}

impl Honoured {
    /// Requests have no say.
    pub(crate) const NONE: Self = Self {
        no_store: false,
        no_cache: false,
        max_age: false,
        min_fresh: false,
        max_stale: false,
        only_if_cached: false,
        stale_if_error: false,
    };
    /// All of them count.
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

/// What becomes of a response with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SetCookie {
    /// It is passed on and not stored.
    #[default]
    Pass,
    /// It is stored without `Set-Cookie`; the client that caused it gets the cookie.
    Strip,
    /// It is stored with it, as RFC 9111 permits: every client gets that cookie.
    Store,
}

/// A field that addresses caches like this one before `Cache-Control` (RFC 9213).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetedField {
    /// The field's name.
    pub name: HeaderName,
    /// Whether it is a structured field, ignored in whole when it is not valid (RFC 9213 §2.1).
    /// `Surrogate-Control` is not: it is read as `Cache-Control` is.
    pub structured: bool,
}

impl TargetedField {
    /// A field defined by RFC 9213.
    pub(crate) fn structured(name: HeaderName) -> Self {
        Self { name, structured: true }
    }

    /// A field of the time before RFC 9213, `Surrogate-Control` above all.
    pub(crate) fn loose(name: HeaderName) -> Self {
        Self { name, structured: false }
    }
}

/// Requests that go past the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bypass {
    /// With a cookie of such a name; it may end in `*`.
    pub cookies: Vec<Box<str>>,
    /// With such a field.
    pub headers: Vec<HeaderName>,
}

/// Whether `name` is `pattern`, which may end in `*`.
pub(super) fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}
