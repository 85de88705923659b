//! Fuzz targets: fields of requests and responses.

use std::time::{Duration, SystemTime};

use http::header::{ACCEPT_ENCODING, CACHE_CONTROL};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::cache::date::parse_date;
use crate::cache::directives::{RequestDirectives, ResponseDirectives};
use crate::cache::range::{ContentRange, Multipart, RangeLimits, Requested, requested};
use crate::cache::search::NoVarySearch;
use crate::cache::settings::Honoured;
use crate::cache::vary::{Vary, VaryList, variant_key};
use crate::cache::{CacheKey, CacheStatus, Reason, Settings, tags, targeted};

/// Cache-Control: what forbids is not lost by what is put before it.
pub(crate) fn cache_control(data: &[u8]) {
    let mut headers = field("cache-control", data);
    RequestDirectives::of(&headers, Honoured::ALL);
    ResponseDirectives::of(&headers, &CACHE_CONTROL);
    headers.append(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    assert!(RequestDirectives::of(&headers, Honoured::ALL).no_store);
    assert!(ResponseDirectives::of(&headers, &CACHE_CONTROL).no_store);
}

/// HTTP-dates: read as httpdate reads them, wherever that reads an IMF-fixdate.
pub(crate) fn date(data: &[u8]) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
    let found = parse_date(data, now);
    let Ok(text) = std::str::from_utf8(data) else { return };
    // httpdate takes off white space of any kind around it; a field's value has none.
    if text.trim() != text || text.as_bytes().get(3) != Some(&b',') {
        return;
    }
    if let Ok(theirs) = httpdate::parse_http_date(text) {
        assert_eq!(found, Some(theirs));
    }
}

/// Vary and the fields that it selects by: the same key each time, and what is folded stays.
pub(crate) fn vary(data: &[u8]) {
    const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];
    let _ = Vary::of(&field("vary", data));
    let key = CacheKey::new("https://e.org/");
    for name in ["accept-encoding", "accept-language", "accept", "foo", "cookie"] {
        let headers = field(name, data);
        let fields = [HeaderName::from_static(name)];
        let (hash, _) = variant_key(&key, &fields, &headers, &CODINGS);
        assert_eq!(hash, variant_key(&key, &fields, &headers, &CODINGS).0);
        VaryList::default().candidates(&key, &headers, &CODINGS, true);
    }
    let key = CacheKey::new("https://e.org/");
    let fold = |headers: &HeaderMap| variant_key(&key, &[ACCEPT_ENCODING], headers, &CODINGS).1;
    let folded = fold(&field("accept-encoding", data));
    let value = folded.strip_prefix("accept-encoding: ").expect("the field folds to a line");
    let mut again = HeaderMap::new();
    again.insert(ACCEPT_ENCODING, HeaderValue::try_from(value).expect("a value"));
    assert_eq!(fold(&again), folded);
}

/// Range and Content-Range: what is selected is inside, apart, and within the limits. The first
/// eight bytes are the length of the whole.
pub(crate) fn range(data: &[u8]) {
    let (length, text) = number(data);
    if let Some(range) = ContentRange::parse(text) {
        assert_eq!(ContentRange::parse(range.text().as_bytes()), Some(range));
    }
    let limits = RangeLimits::default();
    if let Requested::Ranges(ranges) = requested(text, length, &limits) {
        assert!(!ranges.is_empty() && ranges.len() <= limits.ranges_max);
        let mut sorted = ranges.clone();
        sorted.sort_by_key(|range| range.start);
        assert!(sorted.iter().all(|range| range.start < range.end && range.end <= length));
        assert!(sorted.windows(2).all(|pair| pair[0].end < pair[1].start));
        let plan = Multipart::new(&ranges, length, None, "b".into());
        assert_eq!(plan.parts.len(), ranges.len());
    }
}

/// Structured fields: targeted directives, groups and tags, No-Vary-Search.
pub(crate) fn structured(data: &[u8]) {
    let settings = Settings::default();
    targeted::addressed(&field("cdn-cache-control", data), &settings.targeted);
    targeted::addressed(&field("surrogate-control", data), &settings.targeted);
    for name in ["cache-groups", "surrogate-key", "cache-tag"] {
        tags::tags(&field(name, data), "https://e.org", &[]);
    }
    if let Some(said) = NoVarySearch::of(&field("no-vary-search", data)) {
        let query = String::from_utf8_lossy(data);
        let once = said.canonical(&query);
        assert_eq!(said.canonical(&once), once);
    }
}

/// Cache-Status: whatever the key, one valid member of a structured list. The first eight bytes
/// are the ttl, the last chooses the reason.
pub(crate) fn cache_status(data: &[u8]) {
    let (ttl, text) = number(data);
    let key = String::from_utf8_lossy(text);
    let chosen = usize::from(text.last().copied().unwrap_or_default());
    let reason = Reason::ALL[chosen % Reason::ALL.len()];
    // sf-integers have fifteen digits.
    let ttl = ttl.cast_signed() % 1_000_000_000_000_000;
    let status = CacheStatus { ttl: Some(ttl), ..CacheStatus::forwarded(reason) };
    let mut written = Vec::new();
    status.write("skerry", Some(&key), &mut written);
    HeaderValue::from_bytes(&written).expect("a field value");
    let list: sfv::List = sfv::Parser::new(&written).parse().expect("a structured list");
    assert_eq!(list.len(), 1);
}

/// The lines of `data` as lines of the field `name`; bytes that no field may have are left out.
fn field(name: &'static str, data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    headers
}

/// The number that the first eight bytes are, and what follows them.
fn number(data: &[u8]) -> (u64, &[u8]) {
    let (first, rest) = data.split_first_chunk().unwrap_or((&[0; 8], data));
    (u64::from_le_bytes(*first), rest)
}
