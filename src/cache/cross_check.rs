//! A cross-check with the crate http-cache-semantics when a response is stored or validated: whether it may be
//! stored, and for how long it is fresh. Never runs on a hit.
//!
//! The crate gets canonical fields only, because it compares directive names with case, splits quoted
//! strings, reads only IMF-fixdate and rejects repeated fields. The rules of [`super::storing`] apply
//! first; the stricter result counts. A property test compares both on random input.

use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, CACHE_CONTROL, DATE, EXPIRES};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_cache_semantics::{CacheOptions, CachePolicy, RequestLike, ResponseLike};

use super::directives::{ResponseDirectives, Seconds};
use super::fields::http_date;
use super::freshness::{date_value, single_date};
use super::storing::UpstreamExchange;
use super::targeted::Addressed;
use crate::planted::{self, Bug}; // fault injection, in debug builds with `planted-bugs` only

/// The result of the cross-check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CrateVerdict {
    /// Whether the response may be stored.
    pub storable: bool,
    /// The freshness lifetime, without subtracting the age.
    pub lifetime: Duration,
}

/// Evaluates a response that the rules of [`super::storing`] accept.
pub(super) fn evaluate(exchange: &UpstreamExchange<'_>, addressed: &Addressed) -> CrateVerdict {
    let request = Canonical::request(exchange);
    let response = Canonical::response(exchange, addressed);
    let options = CacheOptions { shared: true, ..CacheOptions::default() };
    let at = exchange.response_time;
    let policy = CachePolicy::new_options(&request, &response, at, options);
    CrateVerdict { storable: policy.is_storable(), lifetime: policy.time_to_live(at) }
}

/// A message in the form that http-cache-semantics reads correctly: method GET, one host, status 200
/// (the status was checked before), one lower-case `Cache-Control`, IMF-fixdates, no cookies, a
/// placeholder for `Authorization`. `no-cache`, `proxy-revalidate` and qualified forms are left out:
/// they concern reuse, and the crate takes them for a lifetime of zero.
struct Canonical {
    headers: HeaderMap,
}

impl Canonical {
    fn request(exchange: &UpstreamExchange<'_>) -> Self {
        let mut headers = HeaderMap::new();
        if exchange.request.contains_key(AUTHORIZATION) {
            headers.insert(AUTHORIZATION, HeaderValue::from_static("x"));
        }
        Self { headers }
    }

    fn response(exchange: &UpstreamExchange<'_>, addressed: &Addressed) -> Self {
        let mut headers = HeaderMap::new();
        let control = canonical_control(&addressed.directives);
        let control = HeaderValue::try_from(control).expect("names and digits are a field value");
        headers.insert(CACHE_CONTROL, control);
        let now = exchange.response_time;
        headers.insert(DATE, http_date(date_value(exchange.response, now)));
        if addressed.by.is_none() && exchange.response.contains_key(EXPIRES) {
            let expires = single_date(exchange.response, &EXPIRES, now);
            headers.insert(EXPIRES, http_date(expires.unwrap_or(SystemTime::UNIX_EPOCH)));
        }
        Self { headers }
    }
}

fn canonical_control(directives: &ResponseDirectives) -> String {
    let flags = [
        (directives.public, "public"),
        (directives.private && !planted::has(Bug::PrivateShared), "private"),
        (directives.no_store && !directives.must_understand, "no-store"),
        (directives.must_revalidate, "must-revalidate"),
    ];
    let mut members: Vec<String> =
        flags.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned()).collect();
    for (name, seconds) in [("s-maxage", directives.s_maxage), ("max-age", directives.max_age)] {
        if seconds != Seconds::Absent {
            members.push(format!("{name}={}", seconds.or_zero().unwrap_or(0)));
        }
    }
    members.join(", ")
}

impl RequestLike for Canonical {
    fn uri(&self) -> Uri {
        Uri::from_static("https://example.org/")
    }

    fn is_same_uri(&self, other: &Uri) -> bool {
        self.uri() == *other
    }

    fn method(&self) -> &Method {
        &Method::GET
    }

    fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

impl ResponseLike for Canonical {
    fn status(&self) -> StatusCode {
        StatusCode::OK
    }

    fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}
