//! Ranges of objects that are not stored, or only partly: which sub-requests to send. Their responses are
//! judged by [`crate::fields::ranges`] (RFC 9110 §14; RFC 9111 §3.3, §3.4).
//!
//! Pure functions. Sub-requests ask for whole slices, so that range requests and full responses
//! share them.
//!
//! ```text
//!  slices      |    0    |    1    |    2    |    3    |    4    |
//!  stored                |#########|
//!  wanted           |---------------------|
//!  steps       <- Fetch ->|<Stored>|<-Fetch->
//! ```

use std::ops::Range;

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

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::range::with_part;

    const SIZES: RequestSizes = RequestSizes { slice_bytes: 100, request_bytes_max: 400 };

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
}
