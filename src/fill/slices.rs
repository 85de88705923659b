//! Ranges of objects that are not stored, or only partly: which sub-requests to send, and how to
//! judge their responses (RFC 9110 §14, §15.3.7; RFC 9111 §3.3, §3.4).
//!
//! Pure functions. Sub-requests ask for whole slices, so that range requests and full responses
//! share them. The slices of an object are bound to a strong validator: a response without exactly
//! this validator is another version and is never mixed in.
//!
//! ```text
//!  slices      |    0    |    1    |    2    |    3    |    4    |
//!  stored                |#########|
//!  wanted           |---------------------|
//!  steps       <- Fetch ->|<Stored>|<-Fetch->
//! ```

use std::ops::Range;
use std::time::Duration;

use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::fields::{Fields, number};

/// Sizes of sub-requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestSizes {
    /// The store's.
    pub slice_bytes: u64,
    /// Maximum bytes of one sub-request; a multiple of `slice_bytes`.
    pub request_bytes_max: u64,
}

/// The next step of reading a wanted range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RangeStep {
    /// These bytes are in the store.
    Stored(Range<u64>),
    /// Request these bytes from upstream: whole slices (the object's last one may be shorter) that
    /// include the first wanted byte.
    Fetch(Range<u64>),
    /// The wanted range is complete.
    Done,
}

/// The next step for the remaining range `wanted`. `parts`: the stored ranges, sorted and disjoint;
/// `length`: that of the complete object, if known.
pub(crate) fn next_step(
    wanted: &Range<u64>,
    length: Option<u64>,
    parts: &[Range<u64>],
    sizes: RequestSizes,
) -> RangeStep {
    let end = length.map_or(wanted.end, |length| wanted.end.min(length));
    if wanted.start >= end {
        return RangeStep::Done;
    }
    let slices = parts.iter().map(|part| whole_slices(part, length, sizes.slice_bytes));
    let mut slices = slices.filter(|part| part.end > wanted.start);
    let next = slices.next().unwrap_or(u64::MAX..u64::MAX);
    if next.contains(&wanted.start) {
        return RangeStep::Stored(wanted.start..end.min(next.end));
    }
    let start = wanted.start - wanted.start % sizes.slice_bytes;
    let aligned = end.div_ceil(sizes.slice_bytes).saturating_mul(sizes.slice_bytes);
    let asked = start.saturating_add(sizes.request_bytes_max).min(aligned).min(next.start);
    RangeStep::Fetch(start..length.map_or(asked, |length| asked.min(length)))
}

/// The slices that `part` covers completely, as a range of bytes.
pub(crate) fn whole_slices(part: &Range<u64>, length: Option<u64>, slice_bytes: u64) -> Range<u64> {
    let start = part.start.div_ceil(slice_bytes) * slice_bytes;
    let reaches_the_end = length == Some(part.end);
    let end = if reaches_the_end { part.end } else { part.end - part.end % slice_bytes };
    start..end.max(start)
}

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
    for condition in CONDITIONS {
        headers.remove(condition);
    }
    let value = format!("bytes={}-{}", asked.start, asked.end.saturating_sub(1));
    headers.insert(RANGE, HeaderValue::try_from(value).expect("digits are a field value"));
    if let Some(Validator::Tag(value) | Validator::Modified(value)) = bound {
        headers.insert(IF_RANGE, value.clone());
    }
}

/// As [`ask_for`], for the last `count` bytes of an object of unknown length.
pub(crate) fn ask_for_last(count: u64, headers: &mut HeaderMap) {
    for condition in CONDITIONS {
        headers.remove(condition);
    }
    let value = format!("bytes=-{count}");
    headers.insert(RANGE, HeaderValue::try_from(value).expect("digits are a field value"));
}

/// The bytes that a 206 to [`ask_for_last`] has, and the length of the object. `None` unless it has
/// all requested bytes and its fields are consistent.
pub(crate) fn judge_last(count: u64, headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let ContentRange { bytes, complete_length } = content_range(headers)?;
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
        /// Which bytes the body has.
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
    let Some(ContentRange { bytes: Some(bytes), complete_length }) = content_range(headers) else {
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
struct ContentRange {
    /// `None` for `*`, as in a 416.
    bytes: Option<Range<u64>>,
    complete_length: Option<u64>,
}

/// The `Content-Range` of a response; `None` if it is missing, repeated or invalid.
fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
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
        return Some(ContentRange { bytes: None, complete_length });
    }
    let (first, last) = bytes.split_once('-')?;
    let (first, last) = (number(first.as_bytes())?, number(last.as_bytes())?);
    let end = last.checked_add(1).filter(|end| first < *end)?;
    if complete_length.is_some_and(|complete| end > complete) {
        return None;
    }
    Some(ContentRange { bytes: Some(first..end), complete_length })
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
    use proptest::prelude::*;

    use super::*;
    use crate::cache::range::with_part;

    const SIZES: RequestSizes = RequestSizes { slice_bytes: 100, request_bytes_max: 400 };

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = list.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), value.parse().expect("a field value"))
        });
        pairs.collect()
    }

    fn step(wanted: Range<u64>, length: Option<u64>, parts: &[Range<u64>]) -> RangeStep {
        next_step(&wanted, length, parts, SIZES)
    }

    #[test]
    fn only_the_slices_that_are_missing_are_asked_for() {
        assert_eq!(step(150..160, Some(1000), &[]), RangeStep::Fetch(100..200));
        assert_eq!(step(150..350, Some(1000), &[]), RangeStep::Fetch(100..400));
        let stored = [100..200, 300..400];
        assert_eq!(step(150..350, Some(1000), &stored), RangeStep::Stored(150..200));
        assert_eq!(step(200..350, Some(1000), &stored), RangeStep::Fetch(200..300));
        assert_eq!(step(300..350, Some(1000), &stored), RangeStep::Stored(300..350));
        assert_eq!(step(350..350, Some(1000), &stored), RangeStep::Done);
    }

    #[test]
    fn the_last_slice_is_as_short_as_the_object_is() {
        assert_eq!(step(950..2000, Some(980), &[]), RangeStep::Fetch(900..980));
        assert_eq!(step(950..2000, Some(980), &[900..980]), RangeStep::Stored(950..980));
        assert_eq!(step(980..2000, Some(980), &[]), RangeStep::Done);
    }

    #[test]
    fn an_open_end_is_asked_for_piece_by_piece() {
        assert_eq!(step(250..u64::MAX, None, &[]), RangeStep::Fetch(200..600));
        assert_eq!(step(600..u64::MAX, Some(10_000), &[]), RangeStep::Fetch(600..1000));
        assert_eq!(step(600..u64::MAX, Some(10_000), &[800..900]), RangeStep::Fetch(600..800));
    }

    #[test]
    fn half_a_slice_is_not_a_slice() {
        assert_eq!(step(120..130, Some(1000), &[110..250]), RangeStep::Fetch(100..200));
        assert_eq!(whole_slices(&(110..350), Some(1000), 100), 200..300);
        assert_eq!(whole_slices(&(110..150), Some(1000), 100), 200..200);
    }

    proptest! {
        /// Step by step every wanted byte comes once, in order; no stored slice is asked for,
        /// and nothing outside of the slices that the range touches.
        #[test]
        fn steps_cover_what_is_wanted(
            length in 1u64..5000,
            start in 0u64..5000,
            wanted_length in 0u64..6000,
            parts in prop::collection::vec((0u64..5000, 1u64..900), 0..6),
        ) {
            let clipped = |(at, count): (u64, u64)| at.min(length)..(at + count).min(length);
            let mut stored: Box<[Range<u64>]> = Box::new([]);
            for part in parts {
                stored = with_part(&stored, clipped(part));
            }
            let wanted = clipped((start, wanted_length));
            let mut at = wanted.start;
            for _ in 0..200 {
                match next_step(&(at..wanted.end), Some(length), &stored, SIZES) {
                    RangeStep::Done => break,
                    RangeStep::Stored(range) => {
                        prop_assert!(range.start == at && !range.is_empty());
                        prop_assert!(stored.iter().any(|part| part.start <= at && part.end >= range.end));
                        at = range.end;
                    }
                    RangeStep::Fetch(range) => {
                        prop_assert!(range.start <= at && at < range.end);
                        prop_assert_eq!(range.start, at - at % 100);
                        prop_assert!(range.end % 100 == 0 || range.end == length);
                        prop_assert!(range.end - range.start <= 400);
                        prop_assert!(range.end < wanted.end + 100);
                        for slice in (range.start..range.end).step_by(100) {
                            let end = (slice + 100).min(length);
                            prop_assert!(!stored.iter().any(|part| part.start <= slice && end <= part.end));
                        }
                        at = range.end.min(wanted.end);
                    }
                }
            }
            prop_assert!(at >= wanted.end);
        }
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
    fn what_is_not_about_the_bytes_is_left_to_others() {
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
    }
}
