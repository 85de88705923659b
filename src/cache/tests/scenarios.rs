//! Whole exchanges through the rules, in the groups of the public suite cache-tests: a response
//! is stored or not, and three seconds later a request for it is answered from it or not.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::fields::Fields;

use super::super::range::RangeLimits;
use super::super::settings::StalePolicy;
use super::super::stored::tests::{headers, now};
use super::super::vary::{Variant, VaryList};
use super::super::*;

/// The response to the second request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    Cached,
    Validated,
    NotCached,
}

struct Scenario<'a> {
    method: &'a str,
    status: u16,
    first: &'a [(&'a str, &'a str)],
    response: &'a [(&'a str, &'a str)],
    second: &'a [(&'a str, &'a str)],
    settings: Settings,
}

impl Default for Scenario<'_> {
    fn default() -> Self {
        Self {
            method: "GET",
            status: 200,
            first: &[],
            response: &[],
            second: &[],
            settings: Settings::default(),
        }
    }
}

const CODINGS: [&str; 2] = ["br", "gzip"];

impl Scenario<'_> {
    fn play(&self) -> Second {
        let (first, second) = (headers(self.first), headers(self.second));
        let response = headers(self.response);
        let method = Method::from_bytes(self.method.as_bytes()).expect("a method");
        let settings = &self.settings;
        let key = CacheKey::of(
            &settings.key,
            &UrlParts { scheme: "https", authority: "e.org", path: "/a", query: Some("b") },
            &first,
            None,
        );
        let exchange = UpstreamExchange {
            version: http::Version::HTTP_11,
            method: &method,
            request: &first,
            status: StatusCode::from_u16(self.status).expect("a status"),
            response: &response,
            request_time: now(),
            response_time: now(),
        };
        let mut list = VaryList::default();
        let hash = match Vary::of(&response) {
            Vary::Fields(fields) => {
                let (hash, _) = variant_key(&key, &fields, &first, &CODINGS);
                let variant = Variant::new(hash, &fields, &first, &response, &CODINGS);
                list.add(&fields, variant, settings.variants_max);
                hash
            }
            _ => key.hash,
        };
        let sequence = PurgeSequence::default();
        let place =
            StorageContext { key: &key, selecting: &first, codings: &CODINGS, site: "e", sequence };
        let StoreDecision::Store(stored) = may_store(&exchange, &place, settings) else {
            return Second::NotCached;
        };
        let request = RequestDirectives::of(&second, settings.honoured);
        if bypass_reason(&Method::GET, &second, &request, settings).is_some() {
            return Second::NotCached;
        }
        if !list.sets.is_empty() {
            let found = list.candidates(&key, &second, &CODINGS, settings.select_language);
            if !found.iter().any(|at| at.hash == hash && at.fits(&key, &stored)) {
                return Second::NotCached;
            }
        }
        match decide(&stored, None, &request, settings, now() + Duration::from_secs(3)) {
            Decision::Serve { .. } | Decision::ServeStale { .. } => Second::Cached,
            Decision::Validate(_) => Second::Validated,
            Decision::Forward(_) | Decision::GatewayTimeout(_) => Second::NotCached,
        }
    }
}

fn check(response: &[(&str, &str)], expected: Second) {
    let scenario = Scenario { response, ..Scenario::default() };
    assert_eq!(scenario.play(), expected, "{response:?}");
}

fn check_control(control: &str, expected: Second) {
    check(&[("cache-control", control)], expected);
}

const FUTURE: &str = "Fri, 18 Dec 2026 11:06:40 GMT";
const DATE: &str = "Wed, 18 Nov 2026 11:06:40 GMT";
const PAST: &str = "Sun, 18 Oct 2026 11:06:40 GMT";

#[test]
fn cc_freshness() {
    check(&[], Second::NotCached);
    check_control("max-age=3600", Second::Cached);
    check_control("max-age=0", Second::NotCached);
    check_control("max-age=99999999999", Second::Cached);
    check_control("foobar, max-age=3600", Second::Cached);
    check_control("s-maxage=3600, max-age=1", Second::Cached);
    check_control("max-age=3600, s-maxage=1", Second::NotCached);
    check(&[("cache-control", "max-age=3600"), ("age", "7200")], Second::NotCached);
    check(&[("cache-control", "max-age=3600"), ("date", PAST)], Second::NotCached);
    check(&[("cache-control", "max-age=3600"), ("expires", PAST)], Second::Cached);
    check(&[("cache-control", "max-age=0"), ("expires", FUTURE)], Second::NotCached);
    check(&[("expires", FUTURE), ("date", DATE)], Second::Cached);
    check(&[("expires", PAST), ("date", DATE)], Second::NotCached);
}

#[test]
fn the_stale_windows_of_the_site_hold_for_responses_with_a_lifetime() {
    let hour = Duration::from_secs(3600);
    for stale in [
        StalePolicy { while_revalidate: hour, ..StalePolicy::default() },
        StalePolicy { if_error: hour, ..StalePolicy::default() },
    ] {
        let settings = || Settings { stale: stale.clone(), ..Settings::default() };
        let check = |response: &[(&str, &str)], expected| {
            let scenario = Scenario { response, settings: settings(), ..Scenario::default() };
            assert_eq!(scenario.play(), expected, "{response:?} {stale:?}");
        };
        let fresh_once = match stale.while_revalidate.is_zero() {
            true => Second::Validated,
            false => Second::Cached,
        };
        check(&[("cache-control", "max-age=2"), ("etag", "\"a\"")], fresh_once);
        // Pages of one client, from applications that say nothing or that each use needs the origin.
        check(&[], Second::NotCached);
        check(&[("expires", "0")], Second::NotCached);
        check(&[("cache-control", "max-age=0")], Second::NotCached);
        check(&[("cache-control", "max-age=0"), ("etag", "\"a\"")], Second::Validated);
        check(&[("cache-control", "max-age=0, stale-while-revalidate=9")], Second::Cached);
    }
}

#[test]
fn cc_response() {
    for control in ["private, max-age=9", "no-store", "No-StOrE", "max-age=10000, no-store"] {
        check_control(control, Second::NotCached);
    }
    check_control("max-age=10000, no-cache", Second::NotCached);
    check(&[("cache-control", "no-cache"), ("etag", "\"a\"")], Second::Validated);
    check(&[("cache-control", "max-age=99, no-cache"), ("etag", "\"a\"")], Second::Validated);
    check(&[("cache-control", "max-age=99, must-revalidate"), ("etag", "\"a\"")], Second::Cached);
    check(&[("cache-control", "max-age=2, must-revalidate"), ("etag", "\"a\"")], Second::Validated);
    check(&[("cache-control", "max-age=3600"), ("pragma", "no-cache")], Second::Cached);
    check(
        &[("cache-control", "max-age=3600"), ("content-disposition", "attachment")],
        Second::Cached,
    );
}

#[test]
fn a_response_to_an_authorized_request_is_shared_by_leave_only() {
    let check = |control: &str, expected| {
        let scenario = Scenario {
            first: &[("authorization", "FOO")],
            response: &[("cache-control", control), ("expires", FUTURE)],
            ..Scenario::default()
        };
        assert_eq!(scenario.play(), expected, "{control}");
    };
    check("", Second::NotCached);
    check("max-age=3600", Second::NotCached);
    check("max-age=3600, public", Second::Cached);
    check("max-age=3600, must-revalidate", Second::Cached);
    check("s-maxage=3600", Second::Cached);
}

#[test]
fn statuses() {
    let check = |status, response: &[(&str, &str)], expected| {
        let scenario = Scenario { status, response, ..Scenario::default() };
        assert_eq!(scenario.play(), expected, "{status} {response:?}");
    };
    let explicit = &[("cache-control", "max-age=3600")];
    for status in
        [200, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 499, 500, 502, 503, 504, 599]
    {
        check(status, explicit, Second::Cached);
        check(status, &[("expires", PAST), ("last-modified", PAST)], Second::Validated);
    }
    for status in [101, 304, 412, 416, 426, 428, 429, 431, 511] {
        check(status, explicit, Second::NotCached);
    }
    let modified = &[("last-modified", PAST)];
    for status in [200, 203, 204, 404, 405, 410, 414, 501] {
        check(status, modified, Second::Cached);
    }
    for status in [201, 202, 403, 502, 503, 504, 599] {
        check(status, modified, Second::NotCached);
    }
    check(599, &[("last-modified", PAST), ("cache-control", "public")], Second::Cached);
    check(599, &[("cache-control", "max-age=3600, must-understand")], Second::NotCached);
    check(599, &[("cache-control", "max-age=3600, no-store, must-understand")], Second::NotCached);
    check(200, &[("cache-control", "max-age=3600, no-store, must-understand")], Second::Cached);
    // The query may be too long in the part that the key leaves out.
    let key = settings::KeyPolicy { query: settings::QueryPolicy::None, ..Default::default() };
    for (status, expected) in [(414, Second::NotCached), (404, Second::Cached)] {
        let settings = Settings { key: key.clone(), ..Settings::default() };
        let scenario = Scenario { status, response: explicit, settings, ..Scenario::default() };
        assert_eq!(scenario.play(), expected, "{status}");
    }
}

#[test]
fn targeted_fields() {
    let cdn = |value| [("cdn-cache-control", value), ("cache-control", "no-store")];
    check(&cdn("max-age=3600"), Second::Cached);
    check(&cdn("max-age=0"), Second::NotCached);
    check(&cdn("max-age=10000, &&&&&"), Second::NotCached);
    check(&cdn("max-age=\"10000\""), Second::NotCached);
    let over = |value| {
        [("cdn-cache-control", value), ("cache-control", "max-age=9999"), ("expires", FUTURE)]
    };
    check(&over("max-age=1"), Second::NotCached);
    check(&over("private"), Second::NotCached);
    check(&over("no-cache"), Second::NotCached);
    check(&over("no-store"), Second::NotCached);
    check(&[("cdn-cache-control", "max-age=3600"), ("expires", PAST)], Second::Cached);
    check(&[("cdn-cache-control", "max-age=3600"), ("age", "7200")], Second::NotCached);
    let surrogate = |value| [("surrogate-control", value), ("cache-control", "no-store")];
    check(&surrogate("max-age=10000;skerry"), Second::Cached);
    check(&surrogate("MaX-aGe=3600"), Second::Cached);
    check(&surrogate("max-age=3600;not-for-you"), Second::NotCached);
    let both = [("surrogate-control", "no-store"), ("cache-control", "max-age=9999")];
    check(&both, Second::NotCached);
}

#[test]
fn a_post_answers_later_gets_when_it_says_so() {
    let check = |response: &[(&str, &str)], expected| {
        let scenario = Scenario { method: "POST", response, ..Scenario::default() };
        assert_eq!(scenario.play(), expected, "{response:?}");
    };
    check(&[("expires", FUTURE), ("content-location", "https://e.org/a?b")], Second::Cached);
    check(&[("expires", FUTURE), ("content-location", "/a?b")], Second::Cached);
    check(&[("expires", FUTURE), ("content-location", "/a")], Second::NotCached);
    check(&[("expires", FUTURE)], Second::NotCached);
    check(&[("last-modified", PAST), ("content-location", "/a?b")], Second::NotCached);
    let put = Scenario { method: "PUT", response: &[("expires", FUTURE)], ..Scenario::default() };
    assert_eq!(put.play(), Second::NotCached);
}

#[test]
fn varying_responses() {
    let check = |vary: &str, first: &[(&str, &str)], second: &[(&str, &str)], expected| {
        let response =
            &[("vary", vary), ("cache-control", "max-age=60"), ("content-language", "de")];
        let scenario = Scenario { first, second, response, ..Scenario::default() };
        assert_eq!(scenario.play(), expected, "{vary} {first:?} {second:?}");
    };
    check("foo", &[("foo", "1")], &[("foo", "1")], Second::Cached);
    check("foo", &[("foo", "1")], &[("foo", "2")], Second::NotCached);
    check("foo", &[], &[("foo", "1")], Second::NotCached);
    check("foo", &[("foo", "1")], &[], Second::NotCached);
    check("foo", &[("foo", "1"), ("x", "2")], &[("foo", "1"), ("x", "3")], Second::Cached);
    check("foo, bar", &[("foo", "1"), ("bar", "2")], &[("bar", "2"), ("foo", "1")], Second::Cached);
    check(
        "foo, bar, baz",
        &[("foo", "1"), ("baz", "9")],
        &[("baz", "9"), ("foo", "1")],
        Second::Cached,
    );
    check("*", &[], &[], Second::NotCached);
    check("foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")], Second::Cached);
    // CGI, WSGI and PHP take the first for the second.
    check("x-foo", &[("x_foo", "1")], &[], Second::NotCached);
    check("x_foo", &[("x-foo", "1")], &[], Second::NotCached);
    check("x-foo", &[("x_bar", "1"), ("xx-foo", "1")], &[], Second::Cached);
    let accept = |value| [("accept-language", value)];
    check("accept-language", &accept("en, de"), &accept("de, en"), Second::Cached);
    check("accept-language", &accept("en, de"), &accept("fr;q=0.5, de;q=1.0"), Second::Cached);
    check("accept-language", &accept("en, de"), &accept("fr"), Second::NotCached);
}

#[test]
fn cookies_of_requests_and_responses() {
    let response = &[("cache-control", "max-age=60")];
    let scenario = Scenario { response, second: &[("cookie", "a=b")], ..Scenario::default() };
    assert_eq!(scenario.play(), Second::Cached);
    let setting = &[("cache-control", "max-age=60"), ("set-cookie", "a=b")];
    let of = |set_cookie| {
        let settings = Settings { set_cookie, ..Settings::default() };
        Scenario { response: setting, settings, ..Scenario::default() }.play()
    };
    assert_eq!(of(settings::SetCookie::Pass), Second::NotCached);
    assert_eq!(of(settings::SetCookie::Strip), Second::Cached);
    assert_eq!(of(settings::SetCookie::Store), Second::Cached);
}

fn partial(response: &[(&str, &str)]) -> Option<StoredResponse> {
    let key = CacheKey::new("https://e.org/a");
    let (selecting, sequence) = (&HeaderMap::new(), PurgeSequence::default());
    let place = StorageContext { key: &key, selecting, codings: &[], site: "e", sequence };
    let exchange = UpstreamExchange {
        version: http::Version::HTTP_11,
        method: &Method::GET,
        request: &headers(&[("range", "bytes=4-9")]),
        status: StatusCode::PARTIAL_CONTENT,
        response: &headers(response),
        request_time: now(),
        response_time: now(),
    };
    match may_store(&exchange, &place, &Settings::default()) {
        StoreDecision::Store(stored) => Some(*stored),
        StoreDecision::Refuse { .. } => None,
    }
}

#[test]
fn partial_responses_are_stored_when_they_keep_their_word() {
    let fields = |range, length| {
        [("cache-control", "max-age=60"), ("content-range", range), ("content-length", length)]
    };
    let stored = partial(&fields("bytes 4-9/10", "6")).expect("stored");
    assert_eq!(stored.complete_length, Some(10));
    assert_eq!(stored.parts, Some([4..10].into()));
    assert!(!stored.headers.contains(&http::header::CONTENT_RANGE));
    let ask = |range| {
        let request = headers(&[("range", range)]);
        select(&stored, &Method::GET, &request, stored.complete_length, &RangeLimits::default())
    };
    let range = |bytes| Selected::Range { bytes, complete_length: 10 };
    assert_eq!(ask("bytes=-5"), range(5..10));
    assert_eq!(ask("bytes=6-8"), range(6..9));
    assert_eq!(ask("bytes=6-"), range(6..10));
    assert_eq!(ask("bytes=0-4"), Selected::Missing([0..4].into()));
    let shorter = partial(&fields("bytes 4-9/10", "5")).expect("stored");
    assert_eq!((shorter.complete_length, shorter.parts), (Some(9), Some([4..9].into())));
    assert!(partial(&fields("bytes 4-9/10", "7")).is_none());
    assert!(partial(&fields("bytes 4-9/*", "6")).is_none());
    assert!(partial(&fields("4-9", "6")).is_none());
    assert!(partial(&[("cache-control", "max-age=60")]).is_none());
}

#[test]
fn some_responses_make_their_key_uncacheable() {
    let remembered = |request: &[(&str, &str)], status, response: &[(&str, &str)]| {
        let key = CacheKey::new("https://e.org/a");
        let (selecting, sequence) = (&HeaderMap::new(), PurgeSequence::default());
        let place = StorageContext { key: &key, selecting, codings: &[], site: "e", sequence };
        let exchange = UpstreamExchange {
            version: http::Version::HTTP_11,
            method: &Method::GET,
            request: &headers(request),
            status: StatusCode::from_u16(status).expect("a status"),
            response: &headers(response),
            request_time: now(),
            response_time: now(),
        };
        match may_store(&exchange, &place, &Settings::default()) {
            StoreDecision::Store(_) => panic!("stored"),
            StoreDecision::Refuse { remember, .. } => remember.is_some(),
        }
    };
    assert!(remembered(&[], 200, &[("cache-control", "private")]));
    assert!(remembered(&[], 200, &[("set-cookie", "a=b"), ("cache-control", "max-age=9")]));
    assert!(!remembered(&[], 503, &[("cache-control", "no-store")]));
    assert!(!remembered(&[("cache-control", "no-store")], 200, &[]));
    for status in [400, 406, 408, 413, 415, 416, 417, 425, 428, 429, 431] {
        assert!(!remembered(&[], status, &[]), "{status}");
    }
    let authorized = &[("authorization", "x")];
    assert!(!remembered(authorized, 200, &[("cache-control", "max-age=9")]));
}

#[test]
fn the_query_is_part_of_the_key() {
    let of = |query| {
        CacheKey::of(
            &Default::default(),
            &UrlParts { scheme: "https", authority: "e.org", path: "/a", query: Some(query) },
            &HeaderMap::new(),
            None,
        )
    };
    assert_ne!(of("test=1"), of("test=2"));
    assert_eq!(of("test=1"), of("test=1"));
}
