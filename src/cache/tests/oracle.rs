//! Property tests: http-cache-semantics as the oracle, and parsers under any bytes.
//!
//! On canonical input both must agree to the second. On raw input they may differ only where a
//! clause of an RFC says that the crate is wrong: [`ALLOWED`] names each.

use std::time::{Duration, SystemTime};

use http::header::{AGE, CACHE_CONTROL};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_cache_semantics::CachePolicy;
use proptest::prelude::*;

use super::super::directives::{Members, RequestDirectives, ResponseDirectives, Seconds};
use super::super::settings::{Honoured, Settings};
use super::super::storing::{UpstreamExchange, examine};
use super::super::{
    CacheKey, UrlParts, cross_check, date, fields, freshness, range, tags, targeted, url, vary,
};

/// A clause of an RFC by which the two may differ, and whether a case is one of it.
type Difference = (&'static str, fn(&Case) -> bool);
const ALLOWED: [Difference; 12] = [
    ("RFC 9111 §5.2: directive names are compared without case", |case| {
        case.control.iter().any(|line| line.bytes().any(|byte| byte.is_ascii_uppercase()))
    }),
    ("RFC 9111 §5.2: arguments may be quoted strings, commas in them do not part", |case| {
        case.says("\"")
    }),
    ("RFC 9111 §5.2.2.8: proxy-revalidate leaves a fresh response fresh", |case| {
        case.says("proxy-revalidate")
    }),
    ("RFC 9111 §5.2.2.3: must-understand silences no-store", |case| case.says("must-understand")),
    ("RFC 9111 §4.2.1: invalid freshness, said twice or without a number, is stale", |case| {
        let said = ResponseDirectives::of(&case.headers(), &CACHE_CONTROL);
        said.max_age == Seconds::Invalid || said.s_maxage == Seconds::Invalid
    }),
    ("RFC 9111 §5.1: of several Age values the first counts", |case| {
        case.ages.len() > 1 || case.ages.iter().any(|age| age.contains(','))
    }),
    ("RFC 9111 §1.2.2: too large delta-seconds are 2^31", |case| {
        case.says("99999999999999999999")
    }),
    ("RFC 9111 §4.2.3: Date ages a response too", |case| case.date < 0),
    ("RFC 9110 §5.6.7: obsolete date forms are read", |case| {
        case.expires.is_some() && case.expires_form > 0
    }),
    ("RFC 9111 §3: a status with explicit freshness may be stored", |case| {
        matches!(case.status, 500 | 503 | 403 | 206)
    }),
    ("RFC 8246 §2: immutable gives no lifetime", |case| case.says("immutable")),
    // The crate takes any directive that is given twice with two values for must-revalidate, which lets
    // a response to Authorization be shared.
    ("RFC 9111 §5.2.3: an unknown directive is ignored, said twice too", |case| {
        case.authorized && case.control.join(",").matches("ext").count() > 1
    }),
];

#[derive(Clone, Debug)]
struct Case {
    status: u16,
    control: Vec<String>,
    ages: Vec<String>,
    /// Seconds from now.
    date: i64,
    expires: Option<i64>,
    /// 0 is IMF-fixdate, 1 RFC 850, 2 asctime.
    expires_form: u8,
    /// Days before now, 0 for no `Last-Modified`.
    modified_days: u32,
    authorized: bool,
}

impl Case {
    fn says(&self, text: &str) -> bool {
        self.control.iter().any(|line| line.to_ascii_lowercase().contains(text))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut add = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).expect("a value");
            headers.append(HeaderName::from_static(name), value);
        };
        self.control.iter().for_each(|line| add("cache-control", line));
        self.ages.iter().for_each(|age| add("age", age));
        add("date", &written(self.date, 0));
        if let Some(expires) = self.expires {
            add("expires", &written(expires, self.expires_form));
        }
        if self.modified_days > 0 {
            add("last-modified", &written(-86_400 * i64::from(self.modified_days), 0));
        }
        headers
    }
}

fn now() -> SystemTime {
    super::super::stored::tests::now()
}

fn written(offset: i64, form: u8) -> String {
    let at = Duration::from_secs(offset.unsigned_abs());
    let time = if offset < 0 { now() - at } else { now() + at };
    let imf = httpdate::fmt_http_date(time);
    let (day, month, year, clock) = (&imf[5..7], &imf[8..11], &imf[12..16], &imf[17..25]);
    match form {
        0 => imf,
        1 => format!("Sunday, {day}-{month}-{} {clock} GMT", &year[2..]),
        _ => format!("Sun {month} {day} {clock} {year}"),
    }
}

fn member() -> impl Strategy<Value = String> {
    let names = prop_oneof![
        12 => Just("max-age"), 6 => Just("s-maxage"), 2 => Just("no-store"), 2 => Just("no-cache"),
        2 => Just("private"), 4 => Just("public"), 3 => Just("must-revalidate"),
        1 => Just("proxy-revalidate"), 1 => Just("must-understand"), 1 => Just("immutable"),
        1 => Just("Max-Age"), 1 => Just("NO-STORE"), 1 => Just("ext"),
    ];
    let arguments = prop_oneof![
        12 => (0u32..100_000).prop_map(|n| format!("={n}")),
        12 => Just(String::new()),
        1 => Just("=\"60\"".to_owned()),
        1 => Just("=\"a, max-age=1000\"".to_owned()),
        1 => Just("=99999999999999999999999".to_owned()),
        1 => Just("=-5".to_owned()),
        1 => Just("=x".to_owned()),
    ];
    (names, arguments).prop_map(|(name, argument)| format!("{name}{argument}"))
}

fn case() -> impl Strategy<Value = Case> {
    let control = prop::collection::vec(prop::collection::vec(member(), 1..4), 0..3)
        .prop_map(|lines| lines.iter().map(|line| line.join(", ")).collect());
    let age = || {
        prop_oneof![4 => Just("0"), 4 => Just("30"), 4 => Just("7200"), 1 => Just("0, 7200"), 1 => Just("x")]
            .prop_map(String::from)
    };
    let several = prop::collection::vec(age(), 2);
    let ages = prop_oneof![6 => prop::collection::vec(age(), 0..2), 1 => several];
    let status = prop_oneof![8 => Just(200u16), 1 => Just(404), 1 => Just(302), 1 => Just(503), 1 => Just(403)];
    (
        (status, control, ages, prop_oneof![8 => Just(0i64), 1 => -9000i64..0]),
        (
            prop::option::of(-5000i64..5000),
            prop_oneof![6 => Just(0u8), 1 => 1u8..3],
            prop_oneof![4 => Just(0u32), 1 => 1u32..9999],
            any::<bool>(),
        ),
    )
        .prop_map(
            |(
                (status, control, ages, date),
                (expires, expires_form, modified_days, authorized),
            )| Case {
                status,
                control,
                ages,
                date,
                expires,
                expires_form,
                modified_days,
                authorized,
            },
        )
}

fn request_headers(case: &Case) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if case.authorized {
        headers.insert("authorization", HeaderValue::from_static("Basic eDp5"));
    }
    headers
}

/// Whether ours would serve it at once without validation, with what it found.
fn ours(case: &Case) -> (bool, super::super::storing::StoreEvaluation) {
    let (request, response) = (request_headers(case), case.headers());
    let exchange = UpstreamExchange {
        version: http::Version::HTTP_11,
        method: &Method::GET,
        request: &request,
        status: StatusCode::from_u16(case.status).expect("a status"),
        response: &response,
        request_time: now(),
        response_time: now(),
    };
    let findings = examine(&exchange, &CacheKey::new("https://e.org/"), &Settings::default());
    let fresh = findings.refusal.is_none()
        && !findings.addressed.directives.no_cache
        && findings.lifetime.lasts > findings.initial_age;
    (fresh, findings)
}

fn theirs(case: &Case) -> bool {
    let mut request = Request::get("https://e.org/").body(()).expect("a request");
    *request.headers_mut() = request_headers(case);
    let mut response = Response::builder().status(case.status).body(()).expect("a response");
    *response.headers_mut() = case.headers();
    let policy = CachePolicy::new_options(&request, &response, now(), Default::default());
    policy.is_storable() && !policy.is_stale(now())
}

proptest! {
    #[test]
    fn both_agree_on_raw_fields_or_an_rfc_says_who_is_right(case in case()) {
        let (ours, theirs) = (ours(&case).0, theirs(&case));
        let clause = ALLOWED.iter().find(|(_, applies)| applies(&case));
        prop_assert!(ours == theirs || clause.is_some(), "ours {ours}, theirs {theirs}");
    }

    #[test]
    fn both_agree_on_canonical_fields(case in case()) {
        let (request, response) = (request_headers(&case), case.headers());
        let exchange = UpstreamExchange {
            version: http::Version::HTTP_11,
            method: &Method::GET,
            request: &request,
            status: StatusCode::from_u16(case.status).expect("a status"),
            response: &response,
            request_time: now(),
            response_time: now(),
        };
        let settings = Settings::default();
        let addressed = targeted::addressed(&response, &settings.targeted);
        let input = freshness::LifetimeInput {
            status: exchange.status,
            headers: &response,
            directives: &addressed.directives,
            targeted: false,
            response_time: now(),
        };
        let lifetime = freshness::lifetime(&input, &settings.lifetimes);
        let verdict = cross_check::evaluate(&exchange, &addressed);
        let (_, findings) = ours(&case);
        if findings.refusal.is_none() {
            prop_assert!(verdict.storable, "refused by the crate alone: {findings:?}");
        }
        if verdict.storable && lifetime.source.is_explicit() {
            prop_assert_eq!(verdict.lifetime.min(settings.lifetimes.lifetime_max), lifetime.lasts);
        }
    }

    #[test]
    fn parsers_take_any_bytes(
        bytes in prop::collection::vec(prop_oneof![
            any::<u8>(), prop::sample::select(b"=\",;-/ \\*0123456789bytesGMTW".to_vec())
        ], 0..64),
        length in any::<u64>(),
    ) {
        Members::of(&bytes).count();
        date::parse_date(&bytes, now());
        range::requested(&bytes, length, &Default::default());
        range::ContentRange::parse(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        url::resolve("https://e.org/a/b?c", &text);
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        for name in [
            "cache-control", "vary", "age", "date", "expires", "last-modified", "etag", "range",
            "accept-encoding", "accept-language", "cdn-cache-control", "surrogate-control",
            "cache-groups", "surrogate-key", "cache-tag", "connection", "cookie",
            "if-none-match", "if-modified-since", "if-range", "content-range", "content-type",
            "location", "content-location", "pragma",
        ] {
            headers.append(HeaderName::from_static(name), value.clone());
        }
        RequestDirectives::of(&headers, Honoured::ALL);
        ResponseDirectives::of(&headers, &CACHE_CONTROL);
        vary::Vary::of(&headers);
        tags::tags(&headers, "https://e.org", &[]);
        fields::remove_hop_by_hop(&mut headers.clone());
        freshness::initial_age(&headers, now(), now());
        let url = UrlParts { scheme: "https", authority: "e.org", path: "/", query: Some(&text) };
        let key = CacheKey::of(&Default::default(), &url, &headers, None);
        vary::variant_key(&key, &[http::header::ACCEPT_ENCODING], &headers, &["br", "gzip"]);
        super::super::CacheStatus::hit(0).write("skerry", Some(&key.text), &mut Vec::new());
        for code in [200, 206, 304, 404] {
            let exchange = UpstreamExchange {
                version: http::Version::HTTP_11,
                method: &Method::POST,
                request: &headers,
                status: StatusCode::from_u16(code).expect("a status"),
                response: &headers,
                request_time: now(),
                response_time: now(),
            };
            examine(&exchange, &key, &Settings::default());
        }
        let mut stored = super::super::stored::tests::stored(&[("cache-control", "max-age=9")]);
        stored.headers = headers.clone().into();
        super::super::select(&stored, &Method::GET, &headers, Some(length), &Default::default());
    }

    #[test]
    fn ranges_selected_are_disjoint_and_inside(
        specs in prop::collection::vec((0u64..2000, prop::option::of(0u64..2000)), 1..40),
        length in 1u64..1500,
    ) {
        let text: Vec<_> = specs.iter().map(|(first, last)| match last {
            Some(last) => format!("{first}-{last}"),
            None => format!("{first}-"),
        }).collect();
        let text = format!("bytes={}", text.join(","));
        if let range::Requested::Ranges(ranges) =
            range::requested(text.as_bytes(), length, &Default::default())
        {
            let mut sorted = ranges.clone();
            sorted.sort_by_key(|range| range.start);
            prop_assert!(sorted.iter().all(|range| range.start < range.end && range.end <= length));
            prop_assert!(sorted.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn age_never_goes_down(age in "[0-9]{0,12}", waited in 0u64..1_000_000) {
        let mut headers = HeaderMap::new();
        headers.insert(AGE, HeaderValue::from_str(&age).expect("a value"));
        let at_once = freshness::initial_age(&headers, now(), now());
        let sent = now() - Duration::from_secs(waited);
        prop_assert!(freshness::initial_age(&headers, sent, now()) >= at_once);
    }
}
