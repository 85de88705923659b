//! Cache-Control of requests and responses: what forbids must not be lost by what is put before.
#![no_main]

use http::header::CACHE_CONTROL;
use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use skerry_fuzz::cache::directives::{RequestDirectives, ResponseDirectives};
use skerry_fuzz::cache::settings::Honoured;
use skerry_fuzz::field;

fuzz_target!(|data: &[u8]| {
    let mut headers = field("cache-control", data);
    RequestDirectives::of(&headers, Honoured::ALL);
    ResponseDirectives::of(&headers, &CACHE_CONTROL);
    headers.append(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    assert!(RequestDirectives::of(&headers, Honoured::ALL).no_store);
    assert!(ResponseDirectives::of(&headers, &CACHE_CONTROL).no_store);
});
