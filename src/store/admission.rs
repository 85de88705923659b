//! The frequency sketch: about how often each key was requested recently.
//!
//! A count-min sketch of saturating counters in fixed memory. All counters are halved after every
//! [`HALVE_EVERY`] additions, so that old requests lose weight. Estimates may be too high, but
//! never too low apart from the halving: some keys requested once are admitted to disk, and no
//! frequent key is kept from it.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::cache::KeyHash;

/// Shared by all cores. A race loses one count at most.
pub(super) struct FrequencySketch {
    counters: Box<[AtomicU8]>,
    additions: AtomicU32,
}

impl FrequencySketch {
    pub(super) fn new() -> Self {
        Self {
            counters: (0..COUNTERS).map(|_| AtomicU8::new(0)).collect(),
            additions: AtomicU32::new(0),
        }
    }

    /// Counts one request and returns the estimate, this request included.
    pub(super) fn add(&self, hash: KeyHash) -> u8 {
        if self.additions.fetch_add(1, Ordering::Relaxed) == HALVE_EVERY {
            self.additions.store(0, Ordering::Relaxed);
            self.halve();
        }
        let counts = self.rows(hash).map(|counter| {
            let count = counter.load(Ordering::Relaxed).saturating_add(1);
            counter.store(count, Ordering::Relaxed);
            count
        });
        counts.into_iter().min().unwrap_or_default()
    }

    /// The estimated number of requests for the key.
    pub(super) fn estimate(&self, hash: KeyHash) -> u8 {
        let counts = self.rows(hash).map(|counter| counter.load(Ordering::Relaxed));
        counts.into_iter().min().unwrap_or_default()
    }

    fn rows(&self, hash: KeyHash) -> [&AtomicU8; 4] {
        // Each row uses 22 bits of the hash of its own.
        [0, 24, 48, 72].map(|shift| &self.counters[(hash.0 >> shift) as usize % COUNTERS])
    }

    fn halve(&self) {
        for counter in &self.counters {
            counter.store(counter.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
    }
}

/// 4 MiB. With a million keys between two halvings, about one new key in 5 counts as known.
const COUNTERS: usize = 1 << 22;
/// Halving takes a few milliseconds.
const HALVE_EVERY: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> KeyHash {
        KeyHash::of(&number.to_le_bytes())
    }

    #[test]
    fn a_key_asked_for_twice_is_known_and_a_stranger_is_not() {
        let sketch = FrequencySketch::new();
        assert_eq!(sketch.add(key(1)), 1);
        assert_eq!(sketch.add(key(1)), 2);
        assert_eq!(sketch.estimate(key(1)), 2);
        assert_eq!(sketch.estimate(key(2)), 0);
    }

    #[test]
    fn few_strangers_pass_after_half_a_million_keys() {
        let sketch = FrequencySketch::new();
        let passed = (0..500_000).filter(|number| sketch.add(key(*number)) > 1).count();
        assert!(passed < 15_000, "{passed} of 500,000");
    }

    #[test]
    fn keys_that_are_not_requested_any_more_are_forgotten() {
        let sketch = FrequencySketch::new();
        for _ in 0..8 {
            sketch.add(key(1));
        }
        for number in 0..4 * u64::from(HALVE_EVERY) {
            sketch.add(key(2 + number % 9));
        }
        assert!(sketch.estimate(key(1)) < 2);
    }
}
