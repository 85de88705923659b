//! HTTP-dates: what is read is what httpdate reads, wherever httpdate reads an IMF-fixdate.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use skerry_fuzz::cache::date::parse_date;

fuzz_target!(|data: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
    let found = parse_date(data, now);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(theirs) = httpdate::parse_http_date(text)
        && text.as_bytes().get(3) == Some(&b',')
    {
        assert_eq!(found, Some(theirs));
    }
});
