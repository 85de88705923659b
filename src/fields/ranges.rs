//! Requests for parts of an object, and what their responses are (RFC 9110 §14, §15.3.7).
//!
//! Pure functions. The parts of an object are bound to a strong validator: a response without exactly
//! this validator is another version and is never mixed in.

use std::ops::Range;
use std::time::Duration;

use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Fields, number};

/// The strong validator that binds slices to one version of an object (RFC 9110 §8.8.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Validator {
    /// A strong entity tag, with its quotes.
    Tag(HeaderValue),
    /// A `Last-Modified` that was old enough when it was sent.
    Modified(HeaderValue),
}

impl Validator {
    /// The strong validator of a response, if it has one. A date is strong if
    /// the response was made at least a minute later (RFC 9110 §8.8.2.2 requires that two changes
    /// within one second are excluded; a minute also covers small clock differences).
    pub(crate) fn of(headers: &impl Fields) -> Option<Self> {
        if let Some(tag) = headers.get(&ETAG) {
            let strong = is_strong_tag(tag).then(|| HeaderValue::from_bytes(tag));
            return strong?.ok().map(Self::Tag);
        }
        let modified = headers.get(&LAST_MODIFIED)?;
        let age = date(headers.get(&DATE)?)?.duration_since(date(modified)?).ok()?;
        let strong = (age >= STRONG_AFTER).then(|| HeaderValue::from_bytes(modified));
        strong?.ok().map(Self::Modified)
    }

    /// Whether a response with these fields is the version with this validator.
    pub(crate) fn matches(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Tag(tag) => headers.get(ETAG) == Some(tag),
            Self::Modified(date) => {
                !headers.contains_key(ETAG) && headers.get(LAST_MODIFIED) == Some(date)
            }
        }
    }
}

/// Turns a request's fields into a sub-request for a range of this version. The client's own
/// conditions are removed, because the node evaluates them itself. With `If-Range`, the origin
/// sends the complete object if it has changed, which [`judge`] distinguishes from a part.
pub(crate) fn ask_for(asked: &Range<u64>, bound: Option<&Validator>, headers: &mut HeaderMap) {
    let range = format!("bytes={}-{}", asked.start, asked.end.saturating_sub(1));
    set_range(range, bound, headers);
}

/// As [`ask_for`], from byte `start` on: to `end`, or to the end of the object.
pub(crate) fn ask_from(start: u64, end: Option<u64>, bound: &Validator, headers: &mut HeaderMap) {
    match end {
        Some(end) => ask_for(&(start..end), Some(bound), headers),
        None => set_range(format!("bytes={start}-"), Some(bound), headers),
    }
}

/// As [`ask_for`], for the last `count` bytes of an object of unknown length.
pub(crate) fn ask_for_last(count: u64, headers: &mut HeaderMap) {
    set_range(format!("bytes=-{count}"), None, headers);
}

/// Replaces the conditions of a request by this `Range`, and by `If-Range` if it is bound to a version.
fn set_range(range: String, bound: Option<&Validator>, headers: &mut HeaderMap) {
    for condition in CONDITIONS {
        headers.remove(condition);
    }
    headers.insert(RANGE, HeaderValue::try_from(range).expect("digits are a field value"));
    if let Some(Validator::Tag(value) | Validator::Modified(value)) = bound {
        headers.insert(IF_RANGE, value.clone());
    }
}

/// The bytes that a 206 to [`ask_for_last`] has, and the length of the object. `None` unless it has
/// all requested bytes and its fields are consistent.
pub(crate) fn judge_last(count: u64, headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let ContentRangeField { bytes, complete_length } = content_range(headers)?;
    let (bytes, length) = (bytes?, complete_length?);
    match judge_part(&bytes, None, headers) {
        PartAnswer::Part { .. } if bytes == (length.saturating_sub(count)..length) => {
            Some((bytes, length))
        }
        _ => None,
    }
}

/// Whether a request is conditional: then its response may be something other than the requested
/// bytes.
pub(crate) fn is_conditional(headers: &HeaderMap) -> bool {
    CONDITIONS.iter().any(|condition| headers.contains_key(condition))
}

/// How the response to a sub-request can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PartAnswer {
    /// A part of the requested version, from the first requested byte on. It may be shorter than
    /// requested. Must not be stored unless its fields have a [`Validator`].
    Part {
        /// The bytes that the body has.
        bytes: Range<u64>,
        /// The whole object's length, when the origin says it.
        complete_length: Option<u64>,
    },
    /// The complete object of the requested version: the origin ignored the range. Fill it
    /// completely, once.
    Whole,
    /// Another version. Stored slices of the old one must not be used any more; a body that was
    /// begun with them must be cut off.
    Changed,
    /// The range begins after the object's end.
    PastEnd {
        /// The whole object's length, when the origin says it.
        complete_length: Option<u64>,
    },
    /// A 206 without a valid `Content-Range`, or with bytes that were not requested.
    Unusable(&'static str),
    /// A response without these bytes, such as an error or a redirect: forward it, or serve stale.
    Other,
}

/// Judges a response by its status and fields. `bound` and `length` are those of the stored object,
/// if any.
pub(crate) fn judge(
    asked: &Range<u64>,
    bound: Option<&Validator>,
    length: Option<u64>,
    status: StatusCode,
    headers: &HeaderMap,
) -> PartAnswer {
    let same_version = bound.is_none_or(|bound| bound.matches(headers));
    match status {
        StatusCode::PARTIAL_CONTENT if same_version => judge_part(asked, length, headers),
        StatusCode::OK if same_version => PartAnswer::Whole,
        StatusCode::PARTIAL_CONTENT | StatusCode::OK | StatusCode::PRECONDITION_FAILED => {
            PartAnswer::Changed
        }
        StatusCode::RANGE_NOT_SATISFIABLE => judge_past_end(asked, length, headers),
        _ => PartAnswer::Other,
    }
}

fn judge_part(asked: &Range<u64>, length: Option<u64>, headers: &HeaderMap) -> PartAnswer {
    let multipart = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        let prefix = value.get(..MULTIPART.len());
        prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(MULTIPART))
    });
    if multipart {
        return PartAnswer::Unusable("several parts where one was asked for");
    }
    let Some(ContentRangeField { bytes: Some(bytes), complete_length }) = content_range(headers)
    else {
        return PartAnswer::Unusable("no Content-Range, or a wrong one");
    };
    if bytes.start != asked.start || bytes.end > asked.end {
        return PartAnswer::Unusable("other bytes than those asked for");
    }
    let announced = headers.get(CONTENT_LENGTH).map(|value| number(value.as_bytes()));
    if announced.is_some_and(|announced| announced != Some(bytes.end - bytes.start)) {
        return PartAnswer::Unusable("Content-Length and Content-Range differ");
    }
    if length.is_some() && complete_length.is_some() && length != complete_length {
        return PartAnswer::Changed;
    }
    PartAnswer::Part { bytes, complete_length }
}

fn judge_past_end(asked: &Range<u64>, length: Option<u64>, headers: &HeaderMap) -> PartAnswer {
    let complete_length = content_range(headers).and_then(|range| range.complete_length);
    let was_inside = length.is_some_and(|length| asked.start < length);
    if was_inside || length.is_some() && complete_length.is_some() && length != complete_length {
        return PartAnswer::Changed;
    }
    PartAnswer::PastEnd { complete_length }
}

/// `Content-Range` (RFC 9110 §14.4) in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentRangeField {
    /// `None` for `*`, as in a 416.
    pub(crate) bytes: Option<Range<u64>>,
    /// `None` if it is not known.
    pub(crate) complete_length: Option<u64>,
}

/// The `Content-Range` of a response; `None` if it is missing, repeated or invalid.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<ContentRangeField> {
    let mut values = headers.get_all(CONTENT_RANGE).iter();
    let (value, another) = (values.next()?.to_str().ok()?, values.next());
    let (unit, rest) = value.trim().split_once(' ')?;
    let (bytes, complete) = rest.trim().split_once('/')?;
    if another.is_some() || !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let complete_length = match complete {
        "*" => None,
        digits => Some(number(digits.as_bytes())?),
    };
    if bytes == "*" {
        return Some(ContentRangeField { bytes: None, complete_length });
    }
    let (first, last) = bytes.split_once('-')?;
    let (first, last) = (number(first.as_bytes())?, number(last.as_bytes())?);
    let end = last.checked_add(1).filter(|end| first < *end)?;
    if complete_length.is_some_and(|complete| end > complete) {
        return None;
    }
    Some(ContentRangeField { bytes: Some(first..end), complete_length })
}

fn is_strong_tag(tag: &[u8]) -> bool {
    let inside = tag.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    inside.is_some_and(|inside| !inside.contains(&b'"'))
}

fn date(value: &[u8]) -> Option<std::time::SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()
}

const CONDITIONS: [HeaderName; 5] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE];
const MULTIPART: &[u8] = b"multipart/byteranges";
const STRONG_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = list.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), value.parse().expect("a field value"))
        });
        pairs.collect()
    }

    fn judged(status: u16, list: &[(&'static str, &str)]) -> PartAnswer {
        let bound = Validator::Tag(HeaderValue::from_static("\"v1\""));
        let status = StatusCode::from_u16(status).expect("a status");
        judge(&(100..200), Some(&bound), Some(1000), status, &fields(list))
    }

    #[test]
    fn a_part_of_the_same_version_is_used() {
        let part = |bytes| PartAnswer::Part { bytes, complete_length: Some(1000) };
        let whole = [("etag", "\"v1\""), ("content-range", "bytes 100-199/1000")];
        assert_eq!(judged(206, &whole), part(100..200));
        let shorter = [("etag", "\"v1\""), ("content-range", "bytes 100-149/1000")];
        assert_eq!(judged(206, &shorter), part(100..150), "fewer bytes than asked are allowed");
    }

    #[test]
    fn another_version_is_never_mixed_in() {
        let range = ("content-range", "bytes 100-199/1000");
        assert_eq!(judged(206, &[("etag", "\"v2\""), range]), PartAnswer::Changed);
        assert_eq!(judged(206, &[("etag", "W/\"v1\""), range]), PartAnswer::Changed);
        assert_eq!(judged(206, &[range]), PartAnswer::Changed);
        assert_eq!(judged(200, &[("etag", "\"v2\"")]), PartAnswer::Changed);
        assert_eq!(judged(412, &[]), PartAnswer::Changed);
        let longer = [("etag", "\"v1\""), ("content-range", "bytes 100-199/1001")];
        assert_eq!(judged(206, &longer), PartAnswer::Changed);
        assert_eq!(judged(416, &[("content-range", "bytes */50")]), PartAnswer::Changed);
        assert_eq!(judged(416, &[]), PartAnswer::Changed, "the range was inside of what we know");
    }

    #[test]
    fn an_origin_without_ranges_gives_the_whole() {
        assert_eq!(judged(200, &[("etag", "\"v1\"")]), PartAnswer::Whole);
    }

    #[test]
    fn a_206_must_say_what_it_holds() {
        let unusable = |list: &[(&'static str, &str)]| {
            let list: Vec<_> = list.iter().copied().chain([("etag", "\"v1\"")]).collect();
            assert!(matches!(judged(206, &list), PartAnswer::Unusable(_)), "{list:?}");
        };
        unusable(&[]);
        for range in [
            "bytes 100-199",
            "bytes 0-199/1000",
            "bytes 101-199/1000",
            "bytes 100-200/1000",
            "bytes 199-100/1000",
            "bytes 100-199/150",
            "items 100-199/1000",
            "bytes */1000",
            "bytes +100-199/1000",
            "bytes 100-18446744073709551615/*",
            "bytes 100-199/",
            "",
        ] {
            unusable(&[("content-range", range)]);
        }
        unusable(&[("content-range", "bytes 100-199/1000"), ("content-length", "99")]);
        unusable(&[("content-range", "bytes 100-199/1000"), ("content-length", "-100")]);
        unusable(&[("content-type", "multipart/byteranges; boundary=x")]);
    }

    #[test]
    fn responses_without_the_bytes_are_left_to_others() {
        assert_eq!(judged(503, &[]), PartAnswer::Other);
        assert_eq!(judged(302, &[]), PartAnswer::Other);
    }

    #[test]
    fn a_first_answer_tells_the_length() {
        let first = |status, list: &[_]| judge(&(100..200), None, None, status, &fields(list));
        assert_eq!(
            first(StatusCode::PARTIAL_CONTENT, &[("content-range", "bytes 100-119/120")]),
            PartAnswer::Part { bytes: 100..120, complete_length: Some(120) }
        );
        assert_eq!(
            first(StatusCode::RANGE_NOT_SATISFIABLE, &[("content-range", "bytes */50")]),
            PartAnswer::PastEnd { complete_length: Some(50) }
        );
    }

    #[test]
    fn the_last_bytes_are_believed_when_all_that_is_said_of_them_agrees() {
        let last = |range: &str, length: &str| {
            judge_last(7, &fields(&[("content-range", range), ("content-length", length)]))
        };
        assert_eq!(last("bytes 93-99/100", "7"), Some((93..100, 100)));
        assert_eq!(last("bytes 0-4/5", "5"), Some((0..5, 5)), "it has no more");
        for (range, length) in [
            ("bytes 92-99/100", "8"),
            ("bytes 93-99/100", "6"),
            ("bytes 92-98/100", "7"),
            ("bytes 93-99/*", "7"),
            ("bytes */100", "7"),
        ] {
            assert_eq!(last(range, length), None, "{range}");
        }
        let mut headers = fields(&[("if-range", "\"client's\""), ("range", "bytes=-9, 1-2")]);
        ask_for_last(7, &mut headers);
        assert_eq!(headers, fields(&[("range", "bytes=-7")]));
    }

    #[test]
    fn only_strong_validators_bind() {
        let of = |list: &[_]| Validator::of(&fields(list));
        assert!(of(&[("etag", "\"a\"")]).is_some());
        assert!(of(&[("etag", "\"\"")]).is_some());
        let modified = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        for weak in ["W/\"a\"", "a", "\"a", "\"", "\"a\"b\""] {
            assert!(of(&[("etag", weak), modified]).is_none(), "{weak}");
        }
        assert!(of(&[modified]).is_none(), "no Date");
        assert!(of(&[modified, ("date", "Sun, 06 Nov 1994 08:50:36 GMT")]).is_none());
        assert!(of(&[modified, ("date", "Sun, 06 Nov 1994 08:50:37 GMT")]).is_some());
    }

    #[test]
    fn a_sub_request_asks_for_one_version_only() {
        let mut headers = fields(&[("if-match", "*"), ("if-range", "\"client's\"")]);
        ask_for(&(100..200), None, &mut headers);
        assert_eq!(headers, fields(&[("range", "bytes=100-199")]));
        let bound = Validator::Tag(HeaderValue::from_static("\"v1\""));
        ask_for(&(200..300), Some(&bound), &mut headers);
        assert_eq!(headers, fields(&[("range", "bytes=200-299"), ("if-range", "\"v1\"")]));
        ask_from(200, None, &bound, &mut headers);
        assert_eq!(headers, fields(&[("range", "bytes=200-"), ("if-range", "\"v1\"")]));
    }
}
