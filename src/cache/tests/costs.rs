//! The time that a hostile field takes grows no faster than its length.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::cache::range::RangeLimits;
use crate::cache::settings::{Honoured, TargetedField};
use crate::cache::stored::tests::stored;
use crate::cache::tags::tags;
use crate::cache::vary::{Vary, variant_key};
use crate::cache::{
    CacheKey, RequestDirectives, add_tags_without_coding, fields, held_tag, select,
};
use crate::clock::thread_cpu_time;

use super::super::search::NoVarySearch;
use super::super::targeted::addressed;

/// Eight times as long as a request may be: the parsers of a debug build take about 100 ms, and one whose time grows with
/// the square of the length takes minutes.
const BYTES: usize = 256 << 10;
const TIME_MAX: Duration = Duration::from_secs(5);

/// Text that is repeated up to the length. `#` stands for a number that grows.
const HOSTILE: [&str; 14] = [
    ",",
    "\"",
    "\\\"",
    "\\\",",
    "\",",
    ";",
    "=",
    "a;q=0.5,",
    "a;q=x,",
    "a=b; ",
    "\"a#~br\",",
    "W/\"#\",",
    "x#,",
    "0-#,",
];

fn hostile(unit: &str) -> HeaderValue {
    let mut text = String::new();
    let mut number = 0;
    while text.len() < BYTES {
        text.push_str(&unit.replace('#', &number.to_string()));
        number += 1;
    }
    HeaderValue::try_from(text).expect("printable ASCII")
}

fn check(name: &HeaderName, unit: &str, read: impl FnOnce()) {
    let began = thread_cpu_time();
    read();
    let spent = thread_cpu_time().saturating_sub(began);
    assert!(spent < TIME_MAX, "{name}: {unit:?} takes {spent:?}");
}

#[test]
fn a_hostile_request_field_is_read_in_linear_time() {
    let stored = stored(&[("cache-control", "max-age=60"), ("etag", "\"v~br.00000001\"")]);
    let key = CacheKey::new("https://e.org/");
    for name in [
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "cookie",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "pragma",
        "range",
        "x-any",
    ] {
        let name = HeaderName::from_static(name);
        for unit in HOSTILE {
            let mut headers = HeaderMap::from_iter([(name.clone(), hostile(unit))]);
            check(&name, unit, || {
                RequestDirectives::of(&headers, Honoured::ALL);
                variant_key(&key, std::slice::from_ref(&name), &headers, &["br", "gzip"]);
                select(&stored, &Method::GET, &headers, Some(1000), &RangeLimits::default());
                held_tag(&headers, b"\"v\"");
                add_tags_without_coding(&mut headers);
            });
        }
    }
}

#[test]
fn a_hostile_response_field_is_read_in_linear_time() {
    let targeted = ["cdn-cache-control", "surrogate-control"].map(HeaderName::from_static);
    let list =
        [TargetedField::structured(targeted[0].clone()), TargetedField::loose(targeted[1].clone())];
    for name in [
        "cache-control",
        "cdn-cache-control",
        "surrogate-control",
        "vary",
        "no-vary-search",
        "cache-tag",
        "surrogate-key",
        "cache-groups",
        "connection",
    ] {
        let name = HeaderName::from_static(name);
        for unit in HOSTILE {
            let mut headers = HeaderMap::from_iter([(name.clone(), hostile(unit))]);
            check(&name, unit, || {
                addressed(&headers, &list);
                Vary::of(&headers);
                NoVarySearch::of(&headers);
                tags(&headers, "https://e.org", &[]);
                fields::remove_hop_by_hop(&mut headers);
            });
        }
    }
}
