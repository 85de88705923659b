//! Ranges (RFC 9110 §14): what a request asks for, what a 206 says it has, and the plan of a
//! `multipart/byteranges` answer.

use std::ops::Range;

use bytes::Bytes;

use crate::fields::number;

/// Limits on one request's ranges. Beyond them the `Range` field is ignored, as RFC 9110 §14.2
/// permits, and the whole is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeLimits {
    /// How many ranges one request may ask for.
    pub ranges_max: usize,
    /// How many of them may overlap an earlier one.
    pub overlaps_max: usize,
    /// Ranges with at most this many bytes between them become one: a part's own head costs as
    /// much.
    pub gap_bytes_max: u64,
}

impl Default for RangeLimits {
    fn default() -> Self {
        Self { ranges_max: 32, overlaps_max: 2, gap_bytes_max: 80 }
    }
}

/// What `Range` comes to for a representation of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Requested {
    /// There is none, it is not in bytes, not valid, or beyond the limits: the whole.
    Whole,
    /// These, in the order asked for, disjoint; at least one.
    Ranges(Vec<Range<u64>>),
    /// None of them lies in the representation: 416.
    Unsatisfiable,
}

/// The bytes that `Range: text` asks for.
pub(crate) fn requested(text: &[u8], length: u64, limits: &RangeLimits) -> Requested {
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

/// One member of a ranges-specifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeSpec {
    /// `first-last`, both included, or `first-` to the end.
    From(u64, Option<u64>),
    /// `-n`: the last n bytes.
    Last(u64),
}

impl RangeSpec {
    /// The bytes it means; `None` when there are none.
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

/// `bytes=…`, at most `ranges_max` of them; `None` for another unit, what is not valid, or
/// more.
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

/// Digits only; too large a number is the largest.
fn position(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Ranges that overlap or nearly touch become one, at the place of the first of them. `None`
/// when more overlap than is honest.
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
                // What has grown may now touch one that was passed.
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
    /// Which bytes; never none.
    pub bytes: Range<u64>,
    /// Of how many, `None` for `*`.
    pub complete_length: Option<u64>,
}

impl ContentRange {
    /// From a field's value; `None` when it is not valid, or says that nothing was satisfied.
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

    /// What a body of `length` bytes has of it, where it is said to be of this range. One that is
    /// shorter has the first of them; where they were to reach the end, the end is where they end.
    /// `None` when it is empty or longer.
    pub(crate) fn holding(mut self, length: u64) -> Option<Self> {
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

    /// As a field's value.
    pub(crate) fn text(&self) -> String {
        let Range { start, end } = self.bytes;
        match self.complete_length {
            Some(complete) => format!("bytes {start}-{}/{complete}", end - 1),
            None => format!("bytes {start}-{}/*", end - 1),
        }
    }
}

/// Which of `wanted` is not among `parts` (sorted, disjoint), in pieces.
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

/// `parts` with `added`: sorted, disjoint, not touching.
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

/// The plan of a `multipart/byteranges` body (RFC 9110 §14.6):
///
/// ```text
/// head(0) bytes(0) head(1) bytes(1) … tail
/// head:  \r\n--boundary\r\nContent-Type: …\r\nContent-Range: …\r\n\r\n   (the first without its \r\n)
/// tail:  \r\n--boundary--\r\n
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Multipart {
    /// The head of each part and its bytes.
    pub parts: Vec<(Bytes, Range<u64>)>,
    /// What ends the body.
    pub tail: Bytes,
    /// For `Content-Type`.
    pub boundary: String,
}

impl Multipart {
    /// The plan for these ranges. `content_type` is the representation's own; `boundary` must be
    /// one that the body's author could not foresee.
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

    /// The length of the whole body.
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
    fn what_is_outside_is_unsatisfiable() {
        check("bytes=11-", 11, Requested::Unsatisfiable);
        check("bytes=-0", 11, Requested::Unsatisfiable);
        check("bytes=0-", 0, Requested::Unsatisfiable);
        check("bytes=20-30, 5-6", 11, ranges(&[5..7]));
    }

    #[test]
    fn what_is_not_valid_is_ignored() {
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
    fn abuse_gets_the_whole() {
        let many: Vec<_> = (0..33).map(|n| format!("{}-{}", n * 1000, n * 1000)).collect();
        check(&format!("bytes={}", many.join(",")), 1 << 20, Requested::Whole);
        check("bytes=0-,0-,0-,0-", 1 << 20, Requested::Whole);
        check("bytes=0-,1-", 1 << 20, ranges(&[0..1 << 20]));
    }

    #[test]
    fn content_range_is_believed_only_when_it_makes_sense() {
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
        let holding = |text: &str, length| {
            ContentRange::parse(text.as_bytes()).expect("valid").holding(length)
        };
        let of = |bytes, complete_length| Some(ContentRange { bytes, complete_length });
        assert_eq!(holding("bytes 4-9/10", 6), of(4..10, Some(10)));
        assert_eq!(holding("bytes 4-9/10", 5), of(4..9, Some(9)));
        assert_eq!(holding("bytes 4-9/20", 5), of(4..9, Some(20)));
        assert_eq!(holding("bytes 4-9/*", 5), of(4..9, None));
        assert_eq!(holding("bytes 4-9/10", 7), None, "longer");
        assert_eq!(holding("bytes 4-9/10", 0), None);
        assert_eq!(holding("bytes 4-9/10", u64::MAX), None);
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
    fn multipart_is_as_long_as_it_says() {
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
