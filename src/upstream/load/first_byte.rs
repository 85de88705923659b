//! How soon an origin begins to answer: a smoothed time for operators. No request depends on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The smoothed time from a request to the header section of its response, with the second of its last change. One word, so
/// that all workers write it without a lock; of two that race, one may be lost. On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(in crate::upstream) struct FirstByteTime(AtomicU64);

impl FirstByteTime {
    /// Adds a response. Writes only about once a second and where the time changes, because each write costs a
    /// transfer of the cache line between cores.
    pub(in crate::upstream) fn note(&self, took: Duration, now_ms: u64) {
        let (before, second) = unpacked(self.0.load(Ordering::Relaxed));
        let (after, this_second) = (smoothed(before, micros(took)), second_of(now_ms));
        if second != this_second || after.abs_diff(before) > before / 16 {
            self.0.store(u64::from(after) << 32 | u64::from(this_second), Ordering::Relaxed);
        }
    }

    /// The time, if there was a response within the last minute.
    pub(in crate::upstream) fn recent(&self, now_ms: u64) -> Option<Duration> {
        let (micros, second) = unpacked(self.0.load(Ordering::Relaxed));
        let is_recent = second_of(now_ms).saturating_sub(second) <= RECENT_SECONDS;
        (micros > 0 && is_recent).then(|| Duration::from_micros(micros.into()))
    }
}

/// Each response counts an eighth. A single late one counts no more than [`LATE_MICROS`], or four times what is known.
fn smoothed(before: u32, micros: u32) -> u32 {
    if before == 0 {
        return micros;
    }
    let bound = before.saturating_mul(4).max(LATE_MICROS);
    let (before, micros) = (i64::from(before), i64::from(micros.min(bound)));
    (before + (micros - before) / 8).max(1) as u32
}

fn unpacked(bits: u64) -> (u32, u32) {
    ((bits >> 32) as u32, bits as u32)
}

fn micros(took: Duration) -> u32 {
    u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1)
}

/// Of the monotonic clock.
fn second_of(now_ms: u64) -> u32 {
    (now_ms / 1000) as u32
}

const LATE_MICROS: u32 = 500_000;
const RECENT_SECONDS: u32 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_origin_is_seen_and_one_late_response_is_not() {
        let time = FirstByteTime::default();
        let now_ms = std::cell::Cell::new(100_000);
        let note = |ms| {
            now_ms.set(now_ms.get() + 200);
            time.note(Duration::from_millis(ms), now_ms.get());
        };
        let recent = || time.recent(now_ms.get()).expect("a response").as_millis();
        assert_eq!(time.recent(100_000), None);
        note(10);
        assert_eq!(recent(), 10);
        note(20_000);
        assert!(recent() < 100, "{}", recent());
        (0..100).for_each(|_| note(1500));
        assert!((1350..=1500).contains(&recent()), "{}", recent());
        (0..200).for_each(|_| note(10));
        assert!(recent() < 30, "{}", recent());
    }

    #[test]
    fn a_time_is_forgotten_after_a_minute_without_responses() {
        let time = FirstByteTime::default();
        time.note(Duration::from_millis(10), 100_000);
        assert!(time.recent(160_000).is_some());
        assert_eq!(time.recent(161_000), None);
    }
}
