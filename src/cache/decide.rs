//! Whether a stored response may answer a request (RFC 9111 §4, §4.2.4, §5.2.1; RFC 5861).
//!
//! Runs on every hit: a few comparisons, no allocation. It reads no header fields besides the parsed
//! [`RequestDirectives`] and the configured bypass conditions.

use std::time::{Duration, SystemTime};

use http::header::{ETAG, LAST_MODIFIED};
use http::{HeaderMap, Method};

use super::directives::RequestDirectives;
use super::key::cookies;
use super::purge::PurgeKind;
use super::query::may_be_read_as;
use super::settings::Settings;
use super::status::Reason;
use super::stored::StoredResponse;
use crate::fields::Fields;
use crate::planted::{self, Bug}; // fault injection, in debug builds with `planted-bugs` only

/// The stage that a request goes to after the lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Serve the stored response; it is fresh.
    Serve {
        /// `current_age`.
        age: Duration,
    },
    /// Serve the stored response although it is stale.
    ServeStale {
        /// `current_age`.
        age: Duration,
        /// The directive that allows it.
        why: Reason,
        /// Whether to validate it in the background.
        refresh: bool,
    },
    /// Validate the stored response with a conditional request; serve it on 304.
    Validate(Reason),
    /// Forward the request: the stored response cannot be validated or must not be used.
    Forward(Reason),
    /// Answer 504: the request has `only-if-cached`, and the stored response may not be used for this
    /// reason.
    GatewayTimeout(Reason),
}

/// Why the cache is not consulted for a request; `None` if it is. HEAD uses responses stored for
/// GET.
pub(crate) fn bypass_reason(
    method: &Method,
    headers: &HeaderMap,
    request: &RequestDirectives,
    settings: &Settings,
) -> Option<Reason> {
    if !settings.enabled {
        return Some(Reason::CachingOff);
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some(Reason::Method);
    }
    if request.no_store {
        return Some(Reason::RequestNoStore);
    }
    configured_bypass_reason(headers, settings)
}

/// The configured bypass condition that the request matches, if any.
pub(super) fn configured_bypass_reason(headers: &HeaderMap, settings: &Settings) -> Option<Reason> {
    let bypass = &settings.bypass;
    if bypass.headers.iter().any(|name| headers.contains_key(name)) {
        return Some(Reason::BypassHeader);
    }
    let listed = |name| bypass.cookies.iter().any(|pattern| may_be_read_as(pattern, name));
    let found = !bypass.cookies.is_empty() && cookies(headers).any(|(name, _)| listed(name));
    found.then_some(Reason::BypassCookie)
}

/// The decision if no stored response matches the request; `why` is [`Reason::Absent`],
/// [`Reason::VariantAbsent`] or another kind of miss.
pub(crate) fn decide_absent(request: &RequestDirectives, why: Reason) -> Decision {
    match request.only_if_cached {
        true => Decision::GatewayTimeout(Reason::OnlyIfCached),
        false => Decision::Forward(why),
    }
}

/// The decision about `stored`, which was selected by key and variant. `purged` is the kind of purge that
/// covers `stored`, if any.
pub(crate) fn decide(
    stored: &StoredResponse,
    purged: Option<PurgeKind>,
    request: &RequestDirectives,
    settings: &Settings,
    now: SystemTime,
) -> Decision {
    let resident = stored.freshness.resident(now);
    let age = stored.freshness.age_after(resident);
    if purged.is_none() && planted::has(Bug::NeverStale) {
        return Decision::Serve { age };
    }
    let is_too_old = resident > settings.object_age_max;
    let Some(reason) = not_fresh_reason(stored, age, is_too_old, purged, request) else {
        return Decision::Serve { age };
    };
    if let Some((why, refresh)) = stale_reason(stored, age, purged, request, reason) {
        return Decision::ServeStale { age, why, refresh };
    }
    if request.only_if_cached {
        return Decision::GatewayTimeout(reason);
    }
    match can_be_validated(stored, reason) {
        true => Decision::Validate(reason),
        false => Decision::Forward(reason),
    }
}

/// The first reason why `stored` is not fresh for this request.
fn not_fresh_reason(
    stored: &StoredResponse,
    age: Duration,
    is_too_old: bool,
    purged: Option<PurgeKind>,
    request: &RequestDirectives,
) -> Option<Reason> {
    let freshness = &stored.freshness;
    match purged {
        Some(PurgeKind::Hard) => return Some(Reason::HardPurged),
        Some(PurgeKind::Invalidated) => return Some(Reason::Invalidated),
        _ => {}
    }
    if is_too_old {
        return Some(Reason::TooOld);
    }
    if request.no_store {
        return Some(Reason::RequestNoStore);
    }
    if freshness.no_cache {
        return Some(Reason::NoCache);
    }
    if request.no_cache {
        return Some(Reason::RequestNoCache);
    }
    match purged {
        Some(PurgeKind::Soft) => return Some(Reason::SoftPurged),
        Some(PurgeKind::Missed) => return Some(Reason::PurgesMissed),
        _ => {}
    }
    if age >= freshness.lifetime.span() {
        return Some(Reason::Stale);
    }
    if let Some(max_age) = request.max_age
        && age > seconds(max_age)
        && !freshness.immutable
    {
        return Some(Reason::RequestMaxAge);
    }
    if let Some(min_fresh) = request.min_fresh
        && freshness.lifetime.span() - age < seconds(min_fresh)
    {
        return Some(Reason::RequestMinFresh);
    }
    None
}

/// Why `stored` may be served stale, and whether to validate it in the background.
fn stale_reason(
    stored: &StoredResponse,
    age: Duration,
    purged: Option<PurgeKind>,
    request: &RequestDirectives,
    reason: Reason,
) -> Option<(Reason, bool)> {
    let freshness = &stored.freshness;
    let may_be_stale = [Reason::Stale, Reason::SoftPurged, Reason::PurgesMissed].contains(&reason);
    if !may_be_stale || freshness.must_revalidate {
        return None;
    }
    let staleness = age.saturating_sub(freshness.lifetime.span());
    // A soft purge overrides `max-stale`: the origin has announced a change.
    if let Some(max_stale) = request.max_stale
        && purged.is_none()
        && staleness <= seconds(max_stale)
        && request.max_age.is_none_or(|max_age| age <= seconds(max_age))
    {
        return Some((Reason::MaxStale, false));
    }
    let no_request_limits = request.max_age.is_none() && request.min_fresh.is_none();
    let has_stale_while_revalidate = !freshness.stale_while_revalidate.span().is_zero();
    if no_request_limits
        && has_stale_while_revalidate
        && staleness <= freshness.stale_while_revalidate.span()
    {
        // A validation would be a request to upstream that the client has ruled out.
        return Some((Reason::WhileRevalidate, !request.only_if_cached));
    }
    None
}

fn can_be_validated(stored: &StoredResponse, reason: Reason) -> bool {
    let must_not_be_used = matches!(
        reason,
        Reason::HardPurged | Reason::Invalidated | Reason::TooOld | Reason::RequestNoStore
    );
    !must_not_be_used && (stored.headers.contains(&ETAG) || stored.headers.contains(&LAST_MODIFIED))
}

/// Whether `stored` may be served stale after an upstream failure: no connection, a timeout, or a
/// status 500, 502, 503 or 504 (RFC 5861 §4, RFC 9111 §4.2.4).
pub(crate) fn may_serve_stale_on_error(
    stored: &StoredResponse,
    purged: Option<PurgeKind>,
    request: &RequestDirectives,
    settings: &Settings,
    now: SystemTime,
) -> bool {
    let freshness = &stored.freshness;
    let forbidden = freshness.must_revalidate
        || freshness.no_cache
        || request.no_cache
        || request.no_store
        || purged.is_some_and(PurgeKind::is_hard)
        || freshness.resident(now) > settings.object_age_max;
    if forbidden {
        return false;
    }
    let staleness = freshness.age(now).saturating_sub(freshness.lifetime.span());
    let asked = request.stale_if_error.map(seconds);
    let allowed = asked.unwrap_or(freshness.stale_if_error.span());
    !allowed.is_zero() && staleness <= allowed
}

/// How long to wait for upstream before serving `stored` stale; `None` if it may not be served stale.
pub(crate) fn stale_when_slow(
    stored: &StoredResponse,
    purged: Option<PurgeKind>,
    request: &RequestDirectives,
    settings: &Settings,
    now: SystemTime,
) -> Option<Duration> {
    let deadline = settings.stale.soft_deadline?;
    may_serve_stale_on_error(stored, purged, request, settings, now).then_some(deadline)
}

/// Whether a response with this status is an upstream failure (RFC 5861 §4).
pub(crate) fn is_upstream_error(status: http::StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::settings::{Honoured, StalePolicy};
    use crate::cache::stored::tests::{now, stored};
    use http::header::{CACHE_CONTROL, COOKIE};

    /// The decision for a response with the `Cache-Control` `response`, `age` seconds later, for a
    /// request with the `Cache-Control` `request`.
    fn decided(response: &str, age: u64, request: &str, purged: Option<PurgeKind>) -> Decision {
        let mut headers = HeaderMap::new();
        if !request.is_empty() {
            headers.insert(CACHE_CONTROL, request.parse().expect("a value"));
        }
        let request = RequestDirectives::of(&headers, Honoured::ALL);
        let stored = stored(&[("cache-control", response), ("etag", "\"a\"")]);
        decide(&stored, purged, &request, &Settings::default(), now() + Duration::from_secs(age))
    }

    fn check(response: &str, age: u64, request: &str, expected: Decision) {
        assert_eq!(decided(response, age, request, None), expected, "{response} {age} {request}");
    }

    fn served(age: u64) -> Decision {
        Decision::Serve { age: Duration::from_secs(age) }
    }

    fn stale(age: u64, why: Reason, refresh: bool) -> Decision {
        Decision::ServeStale { age: Duration::from_secs(age), why, refresh }
    }

    #[test]
    fn a_response_is_fresh_until_its_age_is_its_lifetime() {
        check("max-age=10", 9, "", served(9));
        check("max-age=10", 10, "", Decision::Validate(Reason::Stale));
    }

    #[test]
    fn no_cache_is_validated_each_time() {
        check("max-age=10, no-cache", 0, "", Decision::Validate(Reason::NoCache));
        check("max-age=10, no-cache", 0, "max-stale", Decision::Validate(Reason::NoCache));
        check("no-cache, stale-while-revalidate=9", 0, "", Decision::Validate(Reason::NoCache));
    }

    #[test]
    fn request_directives_ask_for_more_than_fresh() {
        check("max-age=3600", 5, "no-cache", Decision::Validate(Reason::RequestNoCache));
        check("max-age=3600", 5, "no-store", Decision::Forward(Reason::RequestNoStore));
        check("max-age=3600", 5, "max-age=4", Decision::Validate(Reason::RequestMaxAge));
        check("max-age=3600", 5, "max-age=0", Decision::Validate(Reason::RequestMaxAge));
        check("max-age=3600", 5, "max-age=5", served(5));
        check("max-age=1500", 5, "min-fresh=2000", Decision::Validate(Reason::RequestMinFresh));
        check("max-age=1500", 500, "min-fresh=1000", served(500));
    }

    #[test]
    fn immutable_is_not_validated_for_a_reload() {
        check("max-age=3600, immutable", 5, "max-age=0", served(5));
        check("max-age=3600, immutable", 5, "no-cache", Decision::Validate(Reason::RequestNoCache));
        check("max-age=2, immutable", 5, "max-age=0", Decision::Validate(Reason::Stale));
    }

    #[test]
    fn max_stale_takes_what_is_not_too_stale() {
        check("max-age=1500", 2000, "max-stale=1000", stale(2000, Reason::MaxStale, false));
        check("max-age=1500", 2000, "max-stale", stale(2000, Reason::MaxStale, false));
        check("max-age=1500", 2501, "max-stale=1000", Decision::Validate(Reason::Stale));
        check("max-age=1500", 2000, "max-stale, max-age=1", Decision::Validate(Reason::Stale));
    }

    #[test]
    fn stale_is_served_while_revalidating() {
        let swr = "max-age=10, stale-while-revalidate=5";
        check(swr, 15, "", stale(15, Reason::WhileRevalidate, true));
        check(swr, 16, "", Decision::Validate(Reason::Stale));
        check(swr, 15, "max-age=3", Decision::Validate(Reason::Stale));
        check(swr, 15, "only-if-cached", stale(15, Reason::WhileRevalidate, false));
    }

    #[test]
    fn must_revalidate_forbids_every_stale_response() {
        for forbids in ["must-revalidate", "proxy-revalidate", "s-maxage=10"] {
            let response = format!("max-age=10, stale-while-revalidate=50, {forbids}");
            check(&response, 11, "", Decision::Validate(Reason::Stale));
            check(&response, 11, "max-stale", Decision::Validate(Reason::Stale));
        }
    }

    #[test]
    fn only_if_cached_never_goes_upstream() {
        check("max-age=10", 5, "only-if-cached", served(5));
        check("max-age=10", 50, "only-if-cached", Decision::GatewayTimeout(Reason::Stale));
        let request = RequestDirectives { only_if_cached: true, ..Default::default() };
        let absent = decide_absent(&request, Reason::Absent);
        assert_eq!(absent, Decision::GatewayTimeout(Reason::OnlyIfCached));
    }

    #[test]
    fn purges_soft_and_hard() {
        let check = |response: &str, purged, request: &str, expected| {
            assert_eq!(decided(response, 1, request, Some(purged)), expected, "{response}");
        };
        check("max-age=10", PurgeKind::Soft, "", Decision::Validate(Reason::SoftPurged));
        check("max-age=10", PurgeKind::Soft, "max-stale", Decision::Validate(Reason::SoftPurged));
        let swr = "max-age=10, stale-while-revalidate=5";
        check(swr, PurgeKind::Soft, "", stale(1, Reason::WhileRevalidate, true));
        check(swr, PurgeKind::Hard, "", Decision::Forward(Reason::HardPurged));
        check(swr, PurgeKind::Missed, "", stale(1, Reason::WhileRevalidate, true));
        check("max-age=10", PurgeKind::Missed, "", Decision::Validate(Reason::PurgesMissed));
        check(swr, PurgeKind::Invalidated, "", Decision::Forward(Reason::Invalidated));
    }

    #[test]
    fn a_response_older_than_any_record_may_be_is_not_used() {
        let days = 31 * 86_400;
        check("max-age=99999999", days, "", Decision::Forward(Reason::TooOld));
    }

    #[test]
    fn without_validator_it_is_fetched_anew() {
        let stored = stored(&[("cache-control", "max-age=1")]);
        let later = now() + Duration::from_secs(2);
        let decision = decide(&stored, None, &Default::default(), &Settings::default(), later);
        assert_eq!(decision, Decision::Forward(Reason::Stale));
    }

    #[test]
    fn stale_if_error_has_an_end() {
        let check = |response: &str, age, request: RequestDirectives, site: u64, expected| {
            let settings = Settings {
                stale: StalePolicy { if_error: seconds(site as u32), ..Default::default() },
                ..Settings::default()
            };
            let fields = [("cache-control", response)];
            let stored = crate::cache::stored::tests::stored_under(&fields, &settings);
            let now = now() + Duration::from_secs(age);
            let may = may_serve_stale_on_error(&stored, None, &request, &settings, now);
            assert_eq!(may, expected, "{response} {age} {request:?}");
        };
        let plain = RequestDirectives::default();
        check("max-age=2, stale-if-error=60", 62, plain, 0, true);
        check("max-age=2, stale-if-error=60", 63, plain, 0, false);
        check("max-age=2, stale-if-error=1", 5, plain, 60, false);
        check("max-age=2", 5, plain, 0, false);
        check("max-age=2", 5, plain, 60, true);
        let asked = RequestDirectives { stale_if_error: Some(1), ..plain };
        check("max-age=2", 5, asked, 60, false);
        check("max-age=2", 5, RequestDirectives { stale_if_error: Some(60), ..plain }, 0, true);
        check("max-age=2", 5, RequestDirectives { no_cache: true, ..plain }, 60, false);
        for forbids in ["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=2"] {
            check(&format!("max-age=2, {forbids}, stale-if-error=60"), 3, plain, 60, false);
        }
    }

    #[test]
    fn some_requests_bypass_the_cache() {
        let mut settings = Settings::default();
        settings.bypass.cookies = vec!["session_*".into()];
        settings.bypass.headers = vec![http::HeaderName::from_static("x-preview")];
        let check = |method: &Method, name: &'static str, value: &str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a value"));
            let request = RequestDirectives::of(&headers, Honoured::ALL);
            assert_eq!(bypass_reason(method, &headers, &request, &settings), expected, "{value}");
        };
        check(&Method::GET, "a", "b", None);
        check(&Method::HEAD, "a", "b", None);
        check(&Method::POST, "a", "b", Some(Reason::Method));
        check(&Method::GET, "cookie", "a=b; session_x=1", Some(Reason::BypassCookie));
        // PHP reads both as `session_x`.
        check(&Method::GET, "cookie", "session.x=1", Some(Reason::BypassCookie));
        check(&Method::GET, "cookie", "a=b; session%5fx=1", Some(Reason::BypassCookie));
        check(&Method::GET, COOKIE.as_str(), "xsession_=1", None);
        check(&Method::GET, "x-preview", "", Some(Reason::BypassHeader));
        check(&Method::GET, "cache-control", "no-store", Some(Reason::RequestNoStore));
        let off = Settings { enabled: false, ..Settings::default() };
        let plain = RequestDirectives::default();
        let skipped = bypass_reason(&Method::GET, &HeaderMap::new(), &plain, &off);
        assert_eq!(skipped, Some(Reason::CachingOff));
    }

    #[test]
    #[ignore = "a measurement: cargo test --release --lib decide_costs -- --ignored --nocapture"]
    fn decide_costs() {
        let stored = stored(&[("cache-control", "max-age=3600"), ("etag", "\"a\"")]);
        let mut headers = HeaderMap::new();
        for name in ["host", "accept", "user-agent", "accept-encoding", "accept-language"] {
            headers.insert(http::HeaderName::from_static(name), "x".parse().expect("a value"));
        }
        let settings = Settings::default();
        let runs = 5_000_000;
        let start = std::time::Instant::now();
        for n in 0..runs {
            let headers = std::hint::black_box(&headers);
            let request = RequestDirectives::of(headers, settings.honoured);
            let skipped = bypass_reason(&Method::GET, headers, &request, &settings);
            let now = now() + Duration::from_millis(n & 1023);
            let decision = decide(std::hint::black_box(&stored), None, &request, &settings, now);
            std::hint::black_box((skipped, decision));
        }
        println!("directives + bypass_reason + decide: {:?} each", start.elapsed() / runs as u32);
    }
}
