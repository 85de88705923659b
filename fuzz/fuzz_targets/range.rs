//! Range and Content-Range: what is selected is inside, disjoint, and within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skerry_fuzz::cache::range::{ContentRange, Multipart, RangeLimits, Requested, requested};

fuzz_target!(|input: (u64, &[u8])| {
    let (length, text) = input;
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
});
