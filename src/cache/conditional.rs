//! Evaluates a request's conditions and ranges against a stored response (RFC 9110 §13, §14;
//! RFC 9111 §4.3.2).

use std::collections::HashSet;
use std::ops::Range;
use std::time::SystemTime;

use http::header::{
    CONTENT_TYPE, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::fields::Fields;
use crate::fields::entity_tag::{entity_tags, text_of, without_coding};

use super::date::parse_date;
use super::freshness::single_date;
use super::range::{Multipart, RangeLimits, Requested, missing, requested};
use super::stored::StoredResponse;

/// The part of a stored response to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    /// The complete response.
    Full,
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 206 with one range.
    Range {
        /// The bytes to send.
        bytes: Range<u64>,
        /// The length of the complete body.
        complete_length: u64,
    },
    /// 206 with several ranges.
    Multipart(Box<Multipart>),
    /// 416.
    RangeNotSatisfiable {
        /// For `Content-Range: bytes */n`.
        complete_length: u64,
    },
    /// The requested bytes that are not stored, and must be fetched first.
    Missing(Vec<Range<u64>>),
}

/// Selects the part of `stored` for this request. `complete_length` is the body's length, if known.
/// Does not allocate for a request without conditions and ranges.
pub(crate) fn select(
    stored: &StoredResponse,
    method: &Method,
    request: &HeaderMap,
    complete_length: Option<u64>,
    limits: &RangeLimits,
) -> Selected {
    // RFC 9110 §13.2.1: conditions are ignored if the response without them is no success.
    if request.keys().any(narrows) && stored.status.is_success() {
        if let Some(selected) = judge_conditions(stored, request) {
            return selected;
        }
        let ranged = matches!(stored.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
        if ranged
            && *method == Method::GET
            && let Some(range) = request.get(RANGE)
            && let Some(length) = complete_length
            && if_range_holds(stored, request)
        {
            return select_ranges(stored, range, length, limits);
        }
    }
    whole(stored, complete_length)
}

/// Whether a request field of this name can select less than the complete response.
fn narrows(name: &HeaderName) -> bool {
    matches!(*name, IF_MATCH | IF_NONE_MATCH | IF_MODIFIED_SINCE | IF_UNMODIFIED_SINCE | RANGE)
}

fn whole(stored: &StoredResponse, complete_length: Option<u64>) -> Selected {
    match (&stored.parts, complete_length) {
        (Some(parts), Some(length)) => match missing(&(0..length), parts) {
            gaps if gaps.is_empty() => Selected::Full,
            gaps => Selected::Missing(gaps),
        },
        _ => Selected::Full,
    }
}

/// Evaluates the conditions in the order of RFC 9110 §13.2.2; `None` if all are fulfilled.
fn judge_conditions(stored: &StoredResponse, request: &HeaderMap) -> Option<Selected> {
    if request.contains_key(IF_MATCH) {
        if !any_tag_matches(request, &IF_MATCH, stored, Comparison::Strong) {
            return Some(Selected::PreconditionFailed);
        }
    } else if let Some(since) = date_of(request, &IF_UNMODIFIED_SINCE, stored)
        && modified(stored).is_some_and(|modified| modified > since)
    {
        return Some(Selected::PreconditionFailed);
    }
    if request.contains_key(IF_NONE_MATCH) {
        let matches = any_tag_matches(request, &IF_NONE_MATCH, stored, Comparison::Weak);
        return matches.then_some(Selected::NotModified);
    }
    let since = date_of(request, &IF_MODIFIED_SINCE, stored)?;
    (modified_or_made(stored) <= since).then_some(Selected::NotModified)
}

fn date_of(request: &HeaderMap, name: &HeaderName, stored: &StoredResponse) -> Option<SystemTime> {
    single_date(request, name, stored.freshness.response_time.time())
}

fn modified(stored: &StoredResponse) -> Option<SystemTime> {
    single_date(&stored.headers, &LAST_MODIFIED, stored.freshness.response_time.time())
}

/// `Last-Modified`, or else `Date`, or else the time of arrival (RFC 9111 §4.3.2).
fn modified_or_made(stored: &StoredResponse) -> SystemTime {
    let received = stored.freshness.response_time.time();
    modified(stored).or_else(|| single_date(&stored.headers, &DATE, received)).unwrap_or(received)
}

/// `If-Range` (RFC 9110 §13.1.5): absent, the same strong entity tag, or exactly the stored
/// `Last-Modified` where that is strong.
fn if_range_holds(stored: &StoredResponse, request: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let condition = condition.as_bytes();
    if is_tag(condition) {
        let ours = stored.headers.get(&ETAG);
        return ours.is_some_and(|ours| tags_match(ours, condition, Comparison::Strong));
    }
    // All forms of a response have its date, and other bytes.
    if stored.form.is_some() {
        return false;
    }
    let received = stored.freshness.response_time.time();
    let modified = modified(stored);
    modified.is_some()
        && modified == parse_date(condition, received)
        && has_strong_date(&stored.headers, received)
}

/// The condition of a request for a range that continues an earlier response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Continuation {
    /// None, or one that no bytes of this response meet.
    No,
    /// The range continues these bytes: `If-Range` has their entity tag.
    Same,
    /// The range continues the bytes of any form of the response: `If-Range` has a date.
    Unsure,
}

/// How a request for a range continues a stored response. The request may prefer a form of it.
pub(crate) fn continuation(stored: &StoredResponse, request: &HeaderMap) -> Continuation {
    // A lookup would cost more where there is none, which is nearly always so.
    let condition = request.iter().find(|(name, _)| **name == IF_RANGE);
    let Some(condition) = condition.map(|(_, value)| value.as_bytes()) else {
        return Continuation::No;
    };
    let is_same = |ours| tags_match(ours, condition, Comparison::Strong);
    match stored.headers.get(&ETAG) {
        _ if !is_tag(condition) => Continuation::Unsure,
        Some(ours) if is_same(ours) => Continuation::Same,
        _ => Continuation::No,
    }
}

/// Whether `Last-Modified` is strong: a second or more before `Date` (RFC 9110 §8.8.2.2).
pub(super) fn has_strong_date(headers: &impl Fields, response_time: SystemTime) -> bool {
    let modified = single_date(headers, &LAST_MODIFIED, response_time);
    let date = single_date(headers, &DATE, response_time);
    let apart = modified.zip(date).and_then(|(modified, date)| date.duration_since(modified).ok());
    apart.is_some_and(|apart| apart.as_secs() >= 1)
}

fn select_ranges(
    stored: &StoredResponse,
    range: &HeaderValue,
    length: u64,
    limits: &RangeLimits,
) -> Selected {
    let ranges = match requested(range.as_bytes(), length, limits) {
        Requested::Whole => return whole(stored, Some(length)),
        Requested::Unsatisfiable => {
            return Selected::RangeNotSatisfiable { complete_length: length };
        }
        Requested::Ranges(ranges) => ranges,
    };
    if let Some(parts) = &stored.parts {
        let gaps: Vec<_> = ranges.iter().flat_map(|range| missing(range, parts)).collect();
        if !gaps.is_empty() {
            return Selected::Missing(gaps);
        }
    }
    if let [bytes] = &ranges[..] {
        return Selected::Range { bytes: bytes.clone(), complete_length: length };
    }
    let content_type = stored.headers.get(&CONTENT_TYPE);
    let boundary = boundary(stored, range);
    Selected::Multipart(Box::new(Multipart::new(&ranges, length, content_type, boundary)))
}

/// A boundary derived from the nanosecond of arrival, which the author of the body cannot know.
fn boundary(stored: &StoredResponse, range: &HeaderValue) -> String {
    let received = stored.freshness.response_time.time().duration_since(SystemTime::UNIX_EPOCH);
    let seed = received.unwrap_or_default().as_nanos() as u64;
    let mut text = stored.key.as_bytes().to_vec();
    text.extend_from_slice(range.as_bytes());
    format!(
        "{:016x}{:016x}",
        seed ^ 0x9e37_79b9_7f4a_7c15,
        xxhash_rust::xxh3::xxh3_64_with_seed(&text, seed)
    )
}

/// How entity tags are compared (RFC 9110 §8.8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Both are strong and the same.
    Strong,
    /// The same, weak or not.
    Weak,
}

pub(super) fn tags_match(a: &[u8], b: &[u8], how: Comparison) -> bool {
    let (a, b) = (a.trim_ascii(), b.trim_ascii());
    match how {
        Comparison::Strong => a == b && is_strong(a),
        Comparison::Weak => opaque(a) == opaque(b),
    }
}

/// Whether a client's tag is of the version of `stored`, in whatever coding: it is the stored tag, or that of
/// another coding of the same origin's tag. Strong: the stored tag must be strong; the client's may be weak if
/// it names a coding, which is why it is weak.
fn is_of_version(stored: &StoredResponse, theirs: &[u8], how: Comparison) -> bool {
    let Some(ours) = stored.headers.get(&ETAG) else { return false };
    if tags_match(ours, theirs, how) {
        return true;
    }
    let ours_text = if stored.form.is_some() { without_coding(ours) } else { text_of(ours) };
    let theirs_text = without_coding(theirs);
    let is_strong_enough = match how {
        Comparison::Weak => true,
        Comparison::Strong => is_strong(ours) && (theirs_text.is_some() || is_strong(theirs)),
    };
    // An origin's own tag may look like one with a coding.
    is_strong_enough
        && ours_text.is_some()
        && (theirs_text == ours_text || text_of(theirs) == ours_text)
}

/// The tag in `If-None-Match` that a 304 with the entity tag `ours` must repeat: the client holds it, and a
/// 304 with another one does not update what it holds (RFC 9111 §4.3.4). `None` if the client sent `ours`
/// itself, or no tag of the same version.
pub(crate) fn held_tag<'a>(request: &'a HeaderMap, ours: &[u8]) -> Option<&'a [u8]> {
    let sent =
        || request.get_all(IF_NONE_MATCH).iter().flat_map(|line| entity_tags(line.as_bytes()));
    if sent().any(|tag| tag == ours) {
        return None;
    }
    let texts = |tag| [text_of(tag), without_coding(tag)].into_iter().flatten();
    sent().find(|tag| texts(tag).any(|text| texts(ours).any(|ours| ours == text)))
}

/// Adds to `If-Match` and `If-None-Match` the origin's tag of each that names a coding: the origin does not
/// know the tags that this node made. The others stay, because an origin's own tag may look like one. A range
/// that depends on such a tag is of coded bytes, which the origin does not have: the whole is requested.
pub(crate) fn add_tags_without_coding(headers: &mut HeaderMap) {
    // Cheaper than three lookups that find nothing.
    if !headers.keys().any(|name| [IF_MATCH, IF_NONE_MATCH, IF_RANGE].contains(name)) {
        return;
    }
    for name in [IF_MATCH, IF_NONE_MATCH] {
        let lines = headers.get_all(&name).iter().flat_map(|line| entity_tags(line.as_bytes()));
        let mut known = HashSet::new();
        let texts = lines.filter_map(without_coding).filter(|text| known.insert(*text));
        // The origin's own tag decides whether it is strong.
        let tags: Vec<Vec<u8>> = texts.map(|text| [b"\"", text, b"\""].concat()).collect();
        if !tags.is_empty() {
            let line = HeaderValue::from_maybe_shared(tags.join(&b", "[..]));
            headers.append(&name, line.expect("parts of field values are one"));
        }
    }
    if headers.get(IF_RANGE).is_some_and(|tag| without_coding(tag.as_bytes()).is_some()) {
        headers.remove(IF_RANGE);
        headers.remove(RANGE);
    }
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether an entity tag is strong. One without its second quote is not: a form cannot have a tag of its own made of it, so that
/// all forms have the same.
pub(super) fn is_strong(tag: &[u8]) -> bool {
    !tag.trim_ascii().starts_with(b"W/") && text_of(tag).is_some()
}

fn is_tag(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    text.starts_with(b"\"") || text.starts_with(b"W/\"")
}

/// Whether any listed tag is of the stored version. `*` matches every stored response.
fn any_tag_matches(
    request: &HeaderMap,
    name: &HeaderName,
    stored: &StoredResponse,
    how: Comparison,
) -> bool {
    let lines = request.get_all(name).iter();
    let mut tags = lines.flat_map(|line| entity_tags(line.as_bytes()));
    tags.any(|tag| tag == b"*" || is_of_version(stored, tag, how))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;
    use crate::cache::form::Form;
    use crate::cache::stored::tests::{headers, stored};
    use crate::labels::Coding;

    const BEFORE: &str = "Wed, 18 Nov 2026 10:00:00 GMT";
    const MODIFIED: &str = "Wed, 18 Nov 2026 10:30:00 GMT";
    const AFTER: &str = "Wed, 18 Nov 2026 11:00:00 GMT";

    fn selected(response: &[(&str, &str)], request: &[(&str, &str)]) -> Selected {
        let fields: Vec<_> =
            [("cache-control", "max-age=9000")].iter().chain(response).copied().collect();
        let stored = stored(&fields);
        let limits = RangeLimits::default();
        select(&stored, &Method::GET, &headers(request), Some(1000), &limits)
    }

    fn check(response: &[(&str, &str)], request: &[(&str, &str)], expected: Selected) {
        assert_eq!(selected(response, request), expected, "{response:?} {request:?}");
    }

    #[test]
    fn if_none_match_compares_weakly() {
        let check = |ours: &str, asked: &str, expected| {
            check(&[("etag", ours)], &[("if-none-match", asked)], expected);
        };
        check("\"abcdef\"", "\"abcdef\"", Selected::NotModified);
        check("W/\"abcdef\"", "W/\"abcdef\"", Selected::NotModified);
        check("\"abcdef\"", "W/\"abcdef\"", Selected::NotModified);
        check("\"abcdef\"", "\"1234\", \"abcdef\", \"5678\"", Selected::NotModified);
        check("\"abcdef\"", "\"1234\", \"5678\",\"abcdef\"", Selected::NotModified);
        check("\"a,b\\\"", "\"x\", \"a,b\\\"", Selected::NotModified);
        check("\"abcdef\"", "*", Selected::NotModified);
        check("\"abcdef\"", "\"ABCDEF\"", Selected::Full);
        check("\"abcdef\"", "abcdef", Selected::Full);
        check("\"a,b\"", "b", Selected::Full);
    }

    #[test]
    fn if_none_match_goes_before_if_modified_since() {
        let response = &[("etag", "\"a\""), ("last-modified", MODIFIED)];
        check(
            response,
            &[("if-none-match", "\"a\""), ("if-modified-since", BEFORE)],
            Selected::NotModified,
        );
        check(
            response,
            &[("if-none-match", "\"b\""), ("if-modified-since", AFTER)],
            Selected::Full,
        );
    }

    #[test]
    fn if_modified_since_compares_dates() {
        let response = &[("last-modified", MODIFIED)];
        check(response, &[("if-modified-since", MODIFIED)], Selected::NotModified);
        check(response, &[("if-modified-since", AFTER)], Selected::NotModified);
        check(response, &[("if-modified-since", BEFORE)], Selected::Full);
        check(
            response,
            &[("if-modified-since", "Wednesday, 18-Nov-26 10:30:00 GMT")],
            Selected::NotModified,
        );
        check(response, &[("if-modified-since", "yesterday")], Selected::Full);
    }

    #[test]
    fn without_last_modified_the_date_counts() {
        check(&[("date", MODIFIED)], &[("if-modified-since", AFTER)], Selected::NotModified);
        check(&[("date", MODIFIED)], &[("if-modified-since", BEFORE)], Selected::Full);
    }

    #[test]
    fn if_match_compares_strongly_and_first() {
        let check = |ours: &str, asked: &[(&str, &str)], expected| {
            check(&[("etag", ours), ("last-modified", MODIFIED)], asked, expected);
        };
        check("\"a\"", &[("if-match", "\"b\", \"a\"")], Selected::Full);
        check("\"a\"", &[("if-match", "\"b\"")], Selected::PreconditionFailed);
        check("W/\"a\"", &[("if-match", "W/\"a\"")], Selected::PreconditionFailed);
        check("\"a\"", &[("if-match", "*")], Selected::Full);
        check("\"a\"", &[("if-match", "\"a\""), ("if-unmodified-since", BEFORE)], Selected::Full);
        check("\"a\"", &[("if-match", "\"a\""), ("if-none-match", "\"a\"")], Selected::NotModified);
        check("\"a\"", &[("if-unmodified-since", BEFORE)], Selected::PreconditionFailed);
        check("\"a\"", &[("if-unmodified-since", MODIFIED)], Selected::Full);
    }

    #[test]
    fn conditions_count_for_successes_only() {
        let mut stored = stored(&[("cache-control", "max-age=60"), ("etag", "\"a\"")]);
        stored.status = StatusCode::NOT_FOUND;
        let request = headers(&[("if-none-match", "\"a\""), ("range", "bytes=0-1")]);
        let found = select(&stored, &Method::GET, &request, Some(9), &RangeLimits::default());
        assert_eq!(found, Selected::Full);
    }

    fn range(bytes: Range<u64>) -> Selected {
        Selected::Range { bytes, complete_length: 1000 }
    }

    #[test]
    fn ranges_are_for_get_with_known_length() {
        check(&[], &[("range", "bytes=0-1")], range(0..2));
        check(&[], &[("range", "bytes=-1")], range(999..1000));
        let unsatisfiable = Selected::RangeNotSatisfiable { complete_length: 1000 };
        check(&[], &[("range", "bytes=1000-")], unsatisfiable);
        check(
            &[("etag", "\"a\"")],
            &[("range", "bytes=0-1"), ("if-none-match", "\"a\"")],
            Selected::NotModified,
        );
        let stored = stored(&[("cache-control", "max-age=60")]);
        let request = headers(&[("range", "bytes=0-1")]);
        let select =
            |method, length| select(&stored, &method, &request, length, &RangeLimits::default());
        assert_eq!(select(Method::HEAD, Some(1000)), Selected::Full);
        assert_eq!(select(Method::GET, None), Selected::Full);
    }

    #[test]
    fn if_range_needs_a_strong_validator() {
        let check = |response: &[(&str, &str)], condition: &str, holds: bool| {
            let expected = if holds { range(0..2) } else { Selected::Full };
            check(response, &[("range", "bytes=0-1"), ("if-range", condition)], expected);
        };
        check(&[("etag", "\"a\"")], "\"a\"", true);
        check(&[("etag", "\"a\"")], "\"b\"", false);
        check(&[("etag", "W/\"a\"")], "W/\"a\"", false);
        check(&[("etag", "\"a")], "\"a", false);
        check(&[("etag", "\"")], "\"", false);
        let dated = &[("last-modified", MODIFIED), ("date", AFTER)];
        check(dated, MODIFIED, true);
        check(dated, AFTER, false);
        check(&[("last-modified", MODIFIED), ("date", MODIFIED)], MODIFIED, false);
        check(&[], "yesterday", false);
    }

    #[test]
    fn several_ranges_are_a_multipart() {
        let Selected::Multipart(plan) = selected(&[], &[("range", "bytes=0-1,500-501")]) else {
            panic!("several parts")
        };
        assert_eq!(plan.parts.len(), 2);
        assert_eq!(plan.boundary.len(), 32);
    }

    #[test]
    fn bytes_that_are_not_stored_are_missing() {
        let mut stored = stored(&[("cache-control", "max-age=60")]);
        stored.status = StatusCode::PARTIAL_CONTENT;
        stored.parts = Some([100..200, 300..1000].into());
        let check = |request: &[(&str, &str)], expected| {
            let limits = RangeLimits::default();
            let found = select(&stored, &Method::GET, &headers(request), Some(1000), &limits);
            assert_eq!(found, expected, "{request:?}");
        };
        check(&[("range", "bytes=100-199")], range(100..200));
        check(&[("range", "bytes=150-350")], Selected::Missing([200..300].into()));
        check(&[("range", "bytes=-5")], range(995..1000));
        check(&[], Selected::Missing([0..100, 200..300].into()));
    }

    #[test]
    fn a_tag_of_any_coding_is_of_the_same_version() {
        let check = |ours: &str, name: &'static str, theirs: &str, expected: Selected| {
            assert_eq!(selected(&[("etag", ours)], &[(name, theirs)]), expected, "{ours} {theirs}");
        };
        for theirs in ["\"v~br.00000001\"", "W/\"v~gzip\"", "\"x\", W/\"v~identity\"", "\"v\""] {
            check("\"v\"", "if-none-match", theirs, Selected::NotModified);
            check("\"v\"", "if-match", theirs, Selected::Full);
            check("W/\"v\"", "if-match", theirs, Selected::PreconditionFailed);
            check("\"w\"", "if-match", theirs, Selected::PreconditionFailed);
        }
        check("\"v\"", "if-match", "W/\"v\"", Selected::PreconditionFailed);
        check("\"v~deflate\"", "if-none-match", "\"v\"", Selected::Full);
        // The origin's own tags, which only look like those of a coding.
        check("\"v~br\"", "if-none-match", "\"v~br\"", Selected::NotModified);
        check("\"v~br\"", "if-none-match", "\"v~br~gzip\"", Selected::NotModified);
        check("\"v~br\"", "if-none-match", "\"v~gzip\"", Selected::Full);
        check("\"v~br\"", "if-match", "\"v~br~gzip.00000001\"", Selected::Full);
    }

    #[test]
    fn the_tag_of_a_form_matches_those_of_other_forms() {
        let mut form = stored(&[("cache-control", "max-age=9"), ("etag", "\"v~br.00000002\"")]);
        let coding = Some(Coding::Brotli);
        form.form = Some(Box::new(Form::new(coding, 1, 2)));
        let check = |name: &str, theirs: &str, expected: Selected| {
            let request = headers(&[(name, theirs)]);
            let limits = RangeLimits::default();
            let found = select(&form, &Method::GET, &request, Some(1000), &limits);
            assert_eq!(found, expected, "{name}: {theirs}");
        };
        for theirs in ["\"v\"", "W/\"v~gzip\"", "\"v~br.00000001\"", "\"v~br.00000002\""] {
            check("if-none-match", theirs, Selected::NotModified);
            check("if-match", theirs, Selected::Full);
        }
        check("if-none-match", "\"v~br~gzip\"", Selected::Full);
        check("if-match", "W/\"v\"", Selected::PreconditionFailed);
    }

    #[test]
    fn a_range_continues_the_same_bytes_only() {
        let check = |ours: &str, if_range: &str, holds: bool| {
            let found =
                selected(&[("etag", ours)], &[("range", "bytes=0-9"), ("if-range", if_range)]);
            assert_eq!(matches!(found, Selected::Range { .. }), holds, "{ours} {if_range}");
        };
        check("\"v~br.00000001\"", "\"v~br.00000001\"", true);
        check("\"v~br.00000002\"", "\"v~br.00000001\"", false);
        check("\"v\"", "\"v~br.00000001\"", false);
        check("\"v~br.00000001\"", "\"v\"", false);
    }

    #[test]
    fn a_304_repeats_the_tag_that_the_client_holds() {
        let check = |ours: &str, sent: &str, expected: Option<&str>| {
            let request = headers(&[("if-none-match", sent)]);
            let held =
                held_tag(&request, ours.as_bytes()).map(|tag| std::str::from_utf8(tag).unwrap());
            assert_eq!(held, expected, "{ours} {sent}");
        };
        check("\"v\"", "\"x\", W/\"v~br\"", Some("W/\"v~br\""));
        check("\"v~zstd.00000001\"", "\"v~zstd.00000002\"", Some("\"v~zstd.00000002\""));
        check("\"v\"", "W/\"v~br\", \"v\"", None);
        check("\"v\"", "*", None);
        check("\"v\"", "\"w~br\"", None);
    }

    #[test]
    fn the_origin_gets_its_own_tags_too() {
        let check = |name: &str, sent: &str, expected: &[&str]| {
            let mut request = headers(&[("range", "bytes=0-9"), (name, sent)]);
            add_tags_without_coding(&mut request);
            let lines = request.get_all(name);
            let found: Vec<_> = lines.iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(found, expected, "{name}: {sent}");
            assert_eq!(request.contains_key(RANGE), !expected.is_empty(), "{name}: {sent}");
        };
        for name in ["if-none-match", "if-match"] {
            let sent = "W/\"a,b~br\", \"c\", \"a,b~gzip.00000001\"";
            check(name, sent, &[sent, "\"a,b\""]);
            let sent = "W/\"a~br\", \"b~gzip\", \"a~gzip\"";
            check(name, sent, &[sent, "\"a\", \"b\""]);
            check(name, "W/\"a\",\"b\"", &["W/\"a\",\"b\""]);
            check(name, "*", &["*"]);
        }
        check("if-range", "\"a\"", &["\"a\""]);
        check("if-range", "\"a~br.00000001\"", &[]);
    }
}
