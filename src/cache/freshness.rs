//! Age and freshness lifetime (RFC 9111 §4.2).

use std::time::{Duration, SystemTime};

use http::header::{AGE, DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, StatusCode};

use crate::fields::Fields;

use super::date::parse_date;
use super::directives::{ResponseDirectives, Seconds, digits};
use super::settings::Lifetimes;

/// A freshness lifetime and its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// The age at which the response becomes stale.
    pub lasts: Duration,
    /// Where the lifetime comes from.
    pub source: LifetimeSource,
}

/// The source of a freshness lifetime (RFC 9111 §4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LifetimeSource {
    /// The fixed lifetime of the configured rule.
    Rule,
    /// `s-maxage`.
    SharedMaxAge,
    /// `max-age`.
    MaxAge,
    /// `Expires` less `Date`.
    Expires,
    /// The lifetime of the configured rule for this status.
    Status,
    /// A share of the time since `Last-Modified` (RFC 9111 §4.2.2).
    Heuristic,
    /// No source gives a lifetime: the response is never fresh.
    Missing,
}

impl LifetimeSource {
    /// As `skerry explain` shows it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::SharedMaxAge => "s-maxage",
            Self::MaxAge => "max-age",
            Self::Expires => "expires",
            Self::Status => "status",
            Self::Heuristic => "heuristic",
            Self::Missing => "none",
        }
    }

    /// Whether the origin sent an explicit lifetime.
    pub(crate) const fn is_explicit(self) -> bool {
        matches!(self, Self::SharedMaxAge | Self::MaxAge | Self::Expires)
    }
}

/// The inputs from which the freshness lifetime of a response is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LifetimeInput<'a> {
    /// The status of the response.
    pub status: StatusCode,
    /// The fields of the response.
    pub headers: &'a HeaderMap,
    /// The directives that apply to it.
    pub directives: &'a ResponseDirectives,
    /// Whether `directives` come from a targeted field; then `Expires` is ignored (RFC 9213 §2.2).
    pub targeted: bool,
    /// When its header section was received.
    pub response_time: SystemTime,
}

/// `freshness_lifetime` of a response for a shared cache (RFC 9111 §4.2.1).
pub(crate) fn lifetime(response: &LifetimeInput<'_>, lifetimes: &Lifetimes) -> Lifetime {
    let LifetimeInput { status, headers, directives, response_time, .. } = *response;
    let found = configured_lifetime(status, lifetimes)
        .or_else(|| lifetimes.respect_origin.then(|| explicit_lifetime(response)).flatten())
        .or_else(|| lifetime_from(LifetimeSource::Status, lifetimes.of_status(status)))
        .or_else(|| {
            let allows_heuristic = directives.public || is_heuristically_cacheable(status);
            allows_heuristic.then(|| heuristic(headers, response_time, lifetimes)).flatten()
        })
        .unwrap_or(Lifetime { lasts: Duration::ZERO, source: LifetimeSource::Missing });
    Lifetime { lasts: found.lasts.min(lifetimes.lifetime_max), ..found }
}

fn lifetime_from(source: LifetimeSource, lasts: Option<Duration>) -> Option<Lifetime> {
    lasts.map(|lasts| Lifetime { lasts, source })
}

fn configured_lifetime(status: StatusCode, lifetimes: &Lifetimes) -> Option<Lifetime> {
    let fixed = lifetimes.fixed.filter(|_| is_heuristically_cacheable(status));
    lifetime_from(LifetimeSource::Rule, fixed)
}

/// The lifetime that the origin states.
fn explicit_lifetime(response: &LifetimeInput<'_>) -> Option<Lifetime> {
    let LifetimeInput { headers, directives, targeted, response_time, .. } = *response;
    let stated = |seconds: Seconds| seconds.or_zero().map(|s| Duration::from_secs(s.into()));
    lifetime_from(LifetimeSource::SharedMaxAge, stated(directives.s_maxage))
        .or_else(|| lifetime_from(LifetimeSource::MaxAge, stated(directives.max_age)))
        .or_else(|| {
            let expires = if targeted { None } else { expires(headers, response_time) };
            lifetime_from(LifetimeSource::Expires, expires)
        })
}

/// `Expires` minus `Date`; zero if `Expires` is not one valid date (RFC 9111 §5.3).
fn expires(headers: &HeaderMap, response_time: SystemTime) -> Option<Duration> {
    headers.get(EXPIRES)?;
    let expires = single_date(headers, &EXPIRES, response_time);
    let date = date_value(headers, response_time);
    Some(expires.and_then(|expires| expires.duration_since(date).ok()).unwrap_or_default())
}

fn heuristic(
    headers: &HeaderMap,
    response_time: SystemTime,
    lifetimes: &Lifetimes,
) -> Option<Lifetime> {
    let modified = single_date(headers, &LAST_MODIFIED, response_time)?;
    let unchanged = date_value(headers, response_time).duration_since(modified).ok()?;
    let lasts = unchanged.mul_f64(lifetimes.heuristic_fraction.clamp(0.0, 1.0));
    lifetime_from(LifetimeSource::Heuristic, Some(lasts.min(lifetimes.heuristic_max)))
}

/// Statuses that may be cached without explicit freshness (RFC 9110 §15.1). 206 is excluded: partial
/// responses are stored only with an explicit lifetime.
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Statuses whose caching requirements this cache implements, as `must-understand` requires
/// (RFC 9111 §5.2.2.3).
pub(crate) fn is_understood(status: StatusCode) -> bool {
    is_heuristically_cacheable(status) || matches!(status.as_u16(), 206 | 302 | 303 | 307)
}

/// `corrected_initial_age` (RFC 9111 §4.2.3): the larger of `apparent_age` (from `Date`) and
/// `corrected_age_value` (`Age` plus `response_delay`).
pub(crate) fn initial_age(
    headers: &HeaderMap,
    request_time: SystemTime,
    response_time: SystemTime,
) -> Duration {
    let date = date_value(headers, response_time);
    let apparent_age = response_time.duration_since(date).unwrap_or_default();
    let response_delay = response_time.duration_since(request_time).unwrap_or_default();
    apparent_age.max(age_value(headers) + response_delay)
}

/// `Age`: the first member of the first line; ignored when invalid (RFC 9111 §5.1).
fn age_value(headers: &HeaderMap) -> Duration {
    let first = headers.get(AGE).map(|line| line.as_bytes());
    let first = first.and_then(|line| line.split(|byte| *byte == b',').next());
    let seconds = first.and_then(|member| digits(member.trim_ascii()));
    Duration::from_secs(seconds.unwrap_or(0).into())
}

/// `Date`, or the time of arrival without a valid one (RFC 9110 §6.6.1).
pub(crate) fn date_value(headers: &HeaderMap, response_time: SystemTime) -> SystemTime {
    single_date(headers, &DATE, response_time).unwrap_or(response_time)
}

/// The date of a field; `None` if absent, invalid, or repeated with different values.
pub(crate) fn single_date(
    headers: &impl Fields,
    name: &HeaderName,
    now: SystemTime,
) -> Option<SystemTime> {
    let mut lines = headers.lines(name);
    let first = lines.next()?;
    if lines.any(|line| line != first) {
        return None;
    }
    parse_date(first, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CACHE_CONTROL;

    const NOW_SECONDS: u64 = 1_795_000_000;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_SECONDS)
    }

    fn date(offset: i64) -> String {
        let seconds = NOW_SECONDS.checked_add_signed(offset).expect("a time");
        httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn headers(fields: &[(&HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    fn check_status(code: u16, fields: &[(&HeaderName, &str)], seconds: u64, by: LifetimeSource) {
        let headers = headers(fields);
        let directives = ResponseDirectives::of(&headers, &CACHE_CONTROL);
        let status = StatusCode::from_u16(code).expect("a status");
        let response = LifetimeInput {
            status,
            headers: &headers,
            directives: &directives,
            targeted: false,
            response_time: now(),
        };
        let found = lifetime(&response, &Lifetimes::default());
        let expected = Lifetime { lasts: Duration::from_secs(seconds), source: by };
        assert_eq!(found, expected, "{code} {fields:?}");
    }

    fn check(fields: &[(&HeaderName, &str)], seconds: u64, by: LifetimeSource) {
        check_status(200, fields, seconds, by);
    }

    #[test]
    fn s_maxage_goes_before_max_age_before_expires() {
        let future = date(500);
        let past = date(-500);
        check(&[(&CACHE_CONTROL, "max-age=1, s-maxage=9")], 9, LifetimeSource::SharedMaxAge);
        check(
            &[(&CACHE_CONTROL, "s-maxage=1"), (&CACHE_CONTROL, "max-age=9")],
            1,
            LifetimeSource::SharedMaxAge,
        );
        check(&[(&CACHE_CONTROL, "max-age=9"), (&EXPIRES, &past)], 9, LifetimeSource::MaxAge);
        check(&[(&CACHE_CONTROL, "max-age=9"), (&EXPIRES, "0")], 9, LifetimeSource::MaxAge);
        check(&[(&CACHE_CONTROL, "max-age=0"), (&EXPIRES, &future)], 0, LifetimeSource::MaxAge);
        check(&[(&EXPIRES, &future)], 500, LifetimeSource::Expires);
        check(&[], 0, LifetimeSource::Missing);
    }

    #[test]
    fn invalid_freshness_is_stale() {
        check(
            &[(&CACHE_CONTROL, "max-age=1.5"), (&EXPIRES, &date(500))],
            0,
            LifetimeSource::MaxAge,
        );
        check(&[(&EXPIRES, "0")], 0, LifetimeSource::Expires);
        check(&[(&EXPIRES, "")], 0, LifetimeSource::Expires);
        check(&[(&EXPIRES, &date(500)), (&EXPIRES, &date(501))], 0, LifetimeSource::Expires);
        check(&[(&EXPIRES, &date(-500))], 0, LifetimeSource::Expires);
    }

    #[test]
    fn expires_counts_from_date() {
        check(&[(&EXPIRES, &date(300)), (&DATE, &date(400))], 0, LifetimeSource::Expires);
        check(&[(&EXPIRES, &date(20)), (&DATE, &date(10))], 10, LifetimeSource::Expires);
        check(&[(&EXPIRES, &date(10)), (&DATE, "foo")], 10, LifetimeSource::Expires);
    }

    #[test]
    fn heuristic_freshness_is_a_capped_share() {
        let modified = date(-1000);
        let ancient = date(-900_000_000);
        let fields: &[_] = &[(&LAST_MODIFIED, modified.as_str())];
        check(fields, 100, LifetimeSource::Heuristic);
        check(&[(&LAST_MODIFIED, &ancient)], 86_400, LifetimeSource::Heuristic);
        check(&[(&LAST_MODIFIED, &date(1000))], 0, LifetimeSource::Missing);
        for code in [203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
            check_status(code, fields, 100, LifetimeSource::Heuristic);
        }
        for code in [201, 202, 302, 403, 502, 503, 504, 599] {
            check_status(code, fields, 0, LifetimeSource::Missing);
        }
        let public: &[_] = &[(&LAST_MODIFIED, modified.as_str()), (&CACHE_CONTROL, "public")];
        check_status(599, public, 100, LifetimeSource::Heuristic);
    }

    #[test]
    fn a_rule_may_fix_and_ignore() {
        let headers = headers(&[(&CACHE_CONTROL, "max-age=9")]);
        let directives = ResponseDirectives::of(&headers, &CACHE_CONTROL);
        let of = |code: u16, lifetimes: Lifetimes| {
            let status = StatusCode::from_u16(code).expect("a status");
            let response = LifetimeInput {
                status,
                headers: &headers,
                directives: &directives,
                targeted: false,
                response_time: now(),
            };
            lifetime(&response, &lifetimes).lasts.as_secs()
        };
        let fixed = Lifetimes { fixed: Some(Duration::from_secs(60)), ..Lifetimes::default() };
        assert_eq!(of(200, fixed.clone()), 60);
        assert_eq!(of(503, fixed), 9);
        let by_status = vec![(404..=404, Duration::from_secs(5))];
        let ignored = Lifetimes { respect_origin: false, by_status, ..Lifetimes::default() };
        assert_eq!(of(404, ignored.clone()), 5);
        assert_eq!(of(200, ignored), 0);
    }

    fn check_age(fields: &[(&HeaderName, &str)], seconds: u64) {
        let age = initial_age(&headers(fields), now(), now());
        assert_eq!(age.as_secs(), seconds, "{fields:?}");
    }

    #[test]
    fn age_is_its_first_valid_member() {
        let ignored = ["abc", "-7200", "7200.0", "7200;foo=bar", "7200;foo=111", "", ",5"];
        ignored.iter().for_each(|value| check_age(&[(&AGE, value)], 0));
        check_age(&[(&AGE, "7200, 0")], 7200);
        check_age(&[(&AGE, "0, 7200")], 0);
        check_age(&[(&AGE, "7200"), (&AGE, "0")], 7200);
        check_age(&[(&AGE, "0"), (&AGE, "7200")], 0);
        check_age(&[(&AGE, "2147483649")], 1 << 31);
        check_age(&[(&AGE, "99999999999999999999")], 1 << 31);
    }

    #[test]
    fn date_and_the_time_on_the_way_age_a_response() {
        check_age(&[(&DATE, &date(-7200))], 7200);
        check_age(&[(&DATE, &date(-10)), (&AGE, "25")], 25);
        check_age(&[(&DATE, &date(10)), (&AGE, "15")], 15);
        check_age(&[(&DATE, "foo"), (&AGE, "3")], 3);
        let slow = initial_age(&headers(&[(&AGE, "3")]), now() - Duration::from_secs(4), now());
        assert_eq!(slow.as_secs(), 7);
    }
}
