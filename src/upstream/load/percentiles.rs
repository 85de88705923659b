//! The times in which the latest responses of a pool began, as one core saw them.
//!
//! A histogram with four buckets for each doubling, so that a percentile is at most a quarter too high.
//! All counts are halved when [`COUNT_MAX`] is reached: older responses count less and less.

use std::time::Duration;

/// The latest times.
pub(in crate::upstream) struct Percentiles {
    buckets: [u16; BUCKETS],
    count: u32,
}

impl Default for Percentiles {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], count: 0 }
    }
}

impl Percentiles {
    pub(in crate::upstream) fn add(&mut self, time: Duration) {
        if self.count == COUNT_MAX {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.count = self.buckets.iter().map(|count| u32::from(*count)).sum();
        }
        self.buckets[bucket(time)] += 1;
        self.count += 1;
    }

    /// The time within which `percent` of the responses began. `None` while too few are known.
    pub(in crate::upstream) fn within(&self, percent: u8) -> Option<Duration> {
        if self.count < COUNT_MIN {
            return None;
        }
        let wanted = (self.count * u32::from(percent)).div_ceil(100);
        let mut sum = 0;
        let reached = self.buckets.iter().position(|count| {
            sum += u32::from(*count);
            sum >= wanted
        });
        reached.map(end_of)
    }
}

/// The bucket of a time: four for each power of two of quarter milliseconds.
fn bucket(time: Duration) -> usize {
    let quarters = u32::try_from(time.as_micros() / 250).unwrap_or(u32::MAX).max(4);
    let power = quarters.ilog2();
    let within = (quarters >> (power - 2)) & 3;
    (((power - 2) * 4 + within) as usize).min(BUCKETS - 1)
}

/// The end of a bucket.
fn end_of(bucket: usize) -> Duration {
    let (power, within) = (bucket as u32 / 4, bucket as u64 % 4);
    Duration::from_micros(((5 + within) << power) * 250)
}

/// Up to 2^17 ms.
const BUCKETS: usize = 17 * 4;
const COUNT_MAX: u32 = 2_000;
const COUNT_MIN: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_at_most_a_quarter_too_high() {
        for millis in [2, 7, 50, 99, 1_000, 30_000] {
            let mut times = Percentiles::default();
            for _ in 0..95 {
                times.add(Duration::from_millis(millis));
            }
            assert_eq!(times.within(95), None, "too few");
            for _ in 0..5 {
                times.add(Duration::from_secs(60));
            }
            let found = times.within(95).expect("enough").as_micros() as u64;
            assert!((millis * 1000..=millis * 1250).contains(&found), "{millis} ms: {found} µs");
            assert!(times.within(96).expect("enough") >= Duration::from_secs(60));
        }
    }

    #[test]
    fn old_times_are_forgotten() {
        let mut times = Percentiles::default();
        for _ in 0..COUNT_MAX {
            times.add(Duration::from_secs(1));
        }
        for _ in 0..5 * COUNT_MAX {
            times.add(Duration::from_millis(10));
        }
        assert!(times.within(95).expect("enough") <= Duration::from_millis(13));
    }
}
