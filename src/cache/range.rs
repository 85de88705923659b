//! Byte ranges (RFC 9110 §14): applies the `Range` of a request to a representation, parses and writes
//! `Content-Range`, computes which bytes of a partly stored body are missing, and lays out a
//! `multipart/byteranges` body. Pure functions; a `Range<u64>` here excludes its end, as in Rust.

use std::ops::Range;

use bytes::Bytes;

use crate::fields::number;

/// Limits on the ranges of one request. If a request exceeds them, its `Range` field is ignored, as
/// RFC 9110 §14.2 permits, and the response has the whole representation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeLimits {
    /// Maximum number of ranges in one request.
    pub ranges_max: usize,
    /// Maximum number of ranges that overlap an earlier range of the request.
    pub overlaps_max: usize,
    /// Two ranges with at most this many bytes between them are sent as one, because the header section
    /// of a second part would take about as many bytes.
    pub gap_bytes_max: u64,
}

impl Default for RangeLimits {
    fn default() -> Self {
        Self { ranges_max: 32, overlaps_max: 2, gap_bytes_max: 80 }
    }
}

/// The result of applying `Range` to a representation of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Requested {
    /// The field is to be ignored (another unit, invalid, or beyond the limits): send the whole
    /// representation.
    Whole,
    /// The ranges to send: disjoint, in the order of the request, at least one.
    Ranges(Vec<Range<u64>>),
    /// No requested range has a byte of the representation: answer 416.
    Unsatisfiable,
}

/// Applies the field value `text` of `Range` to a representation of `length` bytes. An empty one is sent whole, because
/// clients that request a range of every file expect no error then; nginx and Go do the same.
pub(crate) fn requested(text: &[u8], length: u64, limits: &RangeLimits) -> Requested {
    if length == 0 {
        return Requested::Whole;
    }
    let Some(specs) = parse_specs(text, limits.ranges_max) else { return Requested::Whole };
    let ranges: Vec<_> = specs.into_iter().filter_map(|spec| spec.within(length)).collect();
    if ranges.is_empty() {
        return Requested::Unsatisfiable;
    }
    match coalesce(ranges, limits) {
        Some(ranges) => Requested::Ranges(ranges),
        None => Requested::Whole,
    }
}

/// One range of a `Range` field, before the length of the representation is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeSpec {
    /// `first-last`, which includes byte `last`; `first-` (with `None`) goes to the end.
    From(u64, Option<u64>),
    /// `-n`: the last `n` bytes.
    Last(u64),
}

impl RangeSpec {
    /// The bytes that the range selects from a representation of `length` bytes. `None` if it selects
    /// none.
    pub(crate) fn within(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => {
                first..last.map_or(length, |last| last.saturating_add(1).min(length))
            }
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Parses the value of a `Range` field. `None` if the unit is not `bytes`, if the value is invalid, or if
/// it has more than `ranges_max` ranges.
pub(crate) fn parse_specs(text: &[u8], ranges_max: usize) -> Option<Vec<RangeSpec>> {
    let text = std::str::from_utf8(text).ok()?;
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = Vec::new();
    for member in set.split(',').map(str::trim).filter(|member| !member.is_empty()) {
        if specs.len() == ranges_max {
            return None;
        }
        specs.push(parse_spec(member)?);
    }
    (!specs.is_empty()).then_some(specs)
}

fn parse_spec(member: &str) -> Option<RangeSpec> {
    let (first, last) = member.split_once('-')?;
    match (first, last) {
        ("", last) => Some(RangeSpec::Last(position(last)?)),
        (first, "") => Some(RangeSpec::From(position(first)?, None)),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            (first <= last).then_some(RangeSpec::From(first, Some(last)))
        }
    }
}

/// Parses decimal digits; a number above `u64::MAX` becomes `u64::MAX`. `None` if there is anything else.
fn position(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Joins ranges that overlap, or that are at most `gap_bytes_max` apart. A joined range takes the place of
/// its first member. `None` if more than `overlaps_max` ranges overlap an earlier one.
fn coalesce(ranges: Vec<Range<u64>>, limits: &RangeLimits) -> Option<Vec<Range<u64>>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    let mut overlaps = 0;
    for range in ranges {
        let mut range = range;
        let mut place = joined.len();
        let mut overlapped = false;
        let mut at = 0;
        while at < joined.len() {
            let known = &joined[at];
            overlapped |= known.start < range.end && range.start < known.end;
            let near = known.start <= range.end.saturating_add(limits.gap_bytes_max)
                && range.start <= known.end.saturating_add(limits.gap_bytes_max);
            if near {
                range = range.start.min(known.start)..range.end.max(known.end);
                place = place.min(at);
                joined.remove(at);
                // The grown range may now touch one that was already compared: start again.
                at = 0;
            } else {
                at += 1;
            }
        }
        overlaps += usize::from(overlapped);
        joined.insert(place.min(joined.len()), range);
    }
    (overlaps <= limits.overlaps_max).then_some(joined)
}

/// `Content-Range: bytes first-last/complete` (RFC 9110 §14.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// The bytes of the body; never empty.
    pub bytes: Range<u64>,
    /// The length of the whole representation; `None` if it is unknown (`*`).
    pub complete_length: Option<u64>,
}

impl ContentRange {
    /// Parses a field value. `None` if it is invalid, or has the form `bytes */length` of a 416.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.trim();
        let (unit, rest) = text.split_once(' ')?;
        let (range, complete) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first.as_bytes())?, number(last.as_bytes())?);
        let complete_length =
            if complete == "*" { None } else { Some(number(complete.as_bytes())?) };
        let valid = unit.eq_ignore_ascii_case("bytes")
            && first <= last
            && complete_length.is_none_or(|complete| last < complete);
        let end = last.checked_add(1)?;
        valid.then_some(Self { bytes: first..end, complete_length })
    }

    /// The range that a body of `length` bytes really has, if its response announced this range. A shorter
    /// body has the first bytes of the range; if the announced range reached the end of the representation,
    /// the complete length shrinks to the end of the body. `None` if the body is empty, or longer than
    /// the announced range.
    pub(crate) fn limited_to(mut self, length: u64) -> Option<Self> {
        let reaches_the_end = self.complete_length == Some(self.bytes.end);
        let end = self.bytes.start.checked_add(length)?;
        if length == 0 || end > self.bytes.end {
            return None;
        }
        self.bytes.end = end;
        if reaches_the_end {
            self.complete_length = Some(end);
        }
        Some(self)
    }

    /// The field value.
    pub(crate) fn text(&self) -> String {
        let Range { start, end } = self.bytes;
        match self.complete_length {
            Some(complete) => format!("bytes {start}-{}/{complete}", end - 1),
            None => format!("bytes {start}-{}/*", end - 1),
        }
    }
}

/// The sub-ranges of `wanted` that `parts` (sorted, disjoint) do not cover, in order.
pub(crate) fn missing(wanted: &Range<u64>, parts: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut missing = Vec::new();
    let mut from = wanted.start;
    for part in parts {
        if part.end <= from {
            continue;
        }
        if part.start >= wanted.end {
            break;
        }
        if part.start > from {
            missing.push(from..part.start);
        }
        from = part.end;
    }
    if from < wanted.end {
        missing.push(from..wanted.end);
    }
    missing
}

/// Adds a range to `parts`. The result is sorted and disjoint; ranges that touch are joined.
pub(crate) fn with_part(parts: &[Range<u64>], added: Range<u64>) -> Box<[Range<u64>]> {
    let mut all: Vec<_> = parts.iter().cloned().chain([added]).filter(|p| !p.is_empty()).collect();
    all.sort_by_key(|part| part.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(all.len());
    for part in all {
        match joined.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => joined.push(part),
        }
    }
    joined.into()
}

/// The layout of a `multipart/byteranges` body (RFC 9110 §14.6):
///
/// ```text
/// head(0) bytes(0) head(1) bytes(1) … tail
/// head:  \r\n--boundary\r\nContent-Type: …\r\nContent-Range: …\r\n\r\n   (head(0) has no leading \r\n)
/// tail:  \r\n--boundary--\r\n
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Multipart {
    /// For each part: its delimiter and header section, and its range of the representation.
    pub parts: Vec<(Bytes, Range<u64>)>,
    /// The closing delimiter.
    pub tail: Bytes,
    /// The `boundary` parameter for `Content-Type`.
    pub boundary: String,
}

impl Multipart {
    /// Lays out a body with these ranges. `content_type` is that of the representation. `boundary` must be
    /// unpredictable, so that the content cannot contain it.
    pub(crate) fn new(
        ranges: &[Range<u64>],
        complete_length: u64,
        content_type: Option<&[u8]>,
        boundary: String,
    ) -> Self {
        let mut parts = Vec::with_capacity(ranges.len());
        for (i, range) in ranges.iter().enumerate() {
            let mut head = Vec::with_capacity(160);
            if i > 0 {
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(format!("--{boundary}\r\n").as_bytes());
            if let Some(content_type) = content_type {
                head.extend_from_slice(b"Content-Type: ");
                head.extend_from_slice(content_type);
                head.extend_from_slice(b"\r\n");
            }
            let range_text =
                ContentRange { bytes: range.clone(), complete_length: Some(complete_length) };
            head.extend_from_slice(
                format!("Content-Range: {}\r\n\r\n", range_text.text()).as_bytes(),
            );
            parts.push((head.into(), range.clone()));
        }
        let tail = format!("\r\n--{boundary}--\r\n").into_bytes().into();
        Self { parts, tail, boundary }
    }

    /// The length of the multipart body in bytes.
    pub(crate) fn content_length(&self) -> u64 {
        let part =
            |(head, range): &(Bytes, Range<u64>)| head.len() as u64 + range.end - range.start;
        self.parts.iter().map(part).sum::<u64>() + self.tail.len() as u64
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;

    fn ranges(list: &[Range<u64>]) -> Requested {
        Requested::Ranges(list.to_vec())
    }

    fn check(text: &str, length: u64, expected: Requested) {
        assert_eq!(requested(text.as_bytes(), length, &RangeLimits::default()), expected, "{text}");
    }

    #[test]
    fn single_ranges() {
        check("bytes=0-1", 11, ranges(&[0..2]));
        check("bytes=1-", 11, ranges(&[1..11]));
        check("bytes=-1", 11, ranges(&[10..11]));
        check("bytes=-99", 11, ranges(&[0..11]));
        check("bytes=5-99999999999999999999999", 11, ranges(&[5..11]));
        check("BYTES=0-0", 11, ranges(&[0..1]));
    }

    #[test]
    fn ranges_beyond_the_end_are_unsatisfiable() {
        check("bytes=11-", 11, Requested::Unsatisfiable);
        check("bytes=-0", 11, Requested::Unsatisfiable);
        check("bytes=20-30, 5-6", 11, ranges(&[5..7]));
    }

    #[test]
    fn an_empty_representation_is_sent_whole() {
        for text in ["bytes=0-", "bytes=0-9", "bytes=-5", "bytes=0-1,3-4"] {
            check(text, 0, Requested::Whole);
        }
    }

    #[test]
    fn invalid_range_fields_are_ignored() {
        for text in [
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=2-1",
            "lines=0-1",
            "bytes=1",
            "bytes=-",
            "bytes=0-1,x",
            "bytes=+1-2",
        ] {
            check(text, 11, Requested::Whole);
        }
    }

    #[test]
    fn ranges_that_nearly_touch_become_one() {
        check("bytes=0-99, 150-199", 10_000, ranges(&[0..200]));
        check("bytes=0-99, 5000-5099", 10_000, ranges(&[0..100, 5000..5100]));
        check("bytes=5000-5099, 0-99", 10_000, ranges(&[5000..5100, 0..100]));
        check("bytes=0-9, 5000-5099, 10-4999", 10_000, ranges(&[0..5100]));
    }

    #[test]
    fn too_many_or_overlapping_ranges_are_ignored() {
        let many: Vec<_> = (0..33).map(|n| format!("{}-{}", n * 1000, n * 1000)).collect();
        check(&format!("bytes={}", many.join(",")), 1 << 20, Requested::Whole);
        check("bytes=0-,0-,0-,0-", 1 << 20, Requested::Whole);
        check("bytes=0-,1-", 1 << 20, ranges(&[0..1 << 20]));
    }

    #[test]
    fn invalid_content_ranges_are_rejected() {
        let parse = |text: &str| ContentRange::parse(text.as_bytes());
        let of = |bytes, complete_length| Some(ContentRange { bytes, complete_length });
        assert_eq!(parse("bytes 4-9/10"), of(4..10, Some(10)));
        assert_eq!(parse("bytes 4-9/*"), of(4..10, None));
        for wrong in [
            "bytes */10",
            "bytes 4-10/10",
            "bytes 9-4/10",
            "bytes=4-9/10",
            "x 4-9/10",
            "bytes 4-18446744073709551615/*",
            "",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse("bytes 4-9/10").expect("valid").text(), "bytes 4-9/10");
    }

    #[test]
    fn a_shorter_body_has_the_first_bytes_of_its_range() {
        let limited_to = |text: &str, length| {
            ContentRange::parse(text.as_bytes()).expect("valid").limited_to(length)
        };
        let of = |bytes, complete_length| Some(ContentRange { bytes, complete_length });
        assert_eq!(limited_to("bytes 4-9/10", 6), of(4..10, Some(10)));
        assert_eq!(limited_to("bytes 4-9/10", 5), of(4..9, Some(9)));
        assert_eq!(limited_to("bytes 4-9/20", 5), of(4..9, Some(20)));
        assert_eq!(limited_to("bytes 4-9/*", 5), of(4..9, None));
        assert_eq!(limited_to("bytes 4-9/10", 7), None, "longer");
        assert_eq!(limited_to("bytes 4-9/10", 0), None);
        assert_eq!(limited_to("bytes 4-9/10", u64::MAX), None);
    }

    #[test]
    fn parts_are_joined_and_gaps_found() {
        assert_eq!(missing(&(0..10), &[2..4, 6..8]), [0..2, 4..6, 8..10]);
        assert_eq!(missing(&(3..7), &[2..4, 6..8]), [4..6]);
        assert_eq!(missing(&(2..4), &[2..4]), []);
        assert_eq!(missing(&(0..2), &[]), [0..2]);
        assert_eq!(*with_part(&[2..4, 6..8], 4..6), [2..8]);
        assert_eq!(*with_part(&[2..4], 9..11), [2..4, 9..11]);
        assert_eq!(*with_part(&[0..4, 6..8], 2..7), [0..8]);
        assert_eq!(*with_part(&[6..8], 0..2), [0..2, 6..8]);
    }

    #[test]
    fn a_multipart_body_has_its_content_length() {
        let plan = Multipart::new(&[0..2, 500..505], 1000, Some(b"text/plain"), "B".into());
        let mut body = Vec::new();
        for (head, range) in &plan.parts {
            body.extend_from_slice(head);
            body.resize(body.len() + (range.end - range.start) as usize, b'x');
        }
        body.extend_from_slice(&plan.tail);
        assert_eq!(body.len() as u64, plan.content_length());
        let text = String::from_utf8(body).expect("text");
        assert!(text.starts_with(
            "--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/1000\r\n\r\nxx\r\n--B\r\n"
        ));
        assert!(text.ends_with("xxxxx\r\n--B--\r\n"));
    }
}
