//! How busy and how slow a member is, over all cores.
//!
//! A counter that every core writes costs a transfer of its cache line for each request. So only
//! the pools whose balance reads it write it, and it has its cache line for itself. All accesses
//! are relaxed: nothing else is ordered by them.

pub(in crate::upstream) mod first_byte;
pub(in crate::upstream) mod in_flight;
pub(in crate::upstream) mod percentiles;
pub(in crate::upstream) mod places;
pub(in crate::upstream) mod queue;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The load of one member. Two lines of 64 bytes, because CPUs fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(in crate::upstream) struct Load {
    /// Exchanges in flight.
    in_flight: AtomicU32,
    /// A packed [`PeakLatency`].
    latency: AtomicU64,
}

impl Load {
    pub(in crate::upstream) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts an exchange, if fewer than `max` are in flight.
    pub(in crate::upstream) fn enter(&self, max: u32) -> bool {
        let more = |count| (count < max).then(|| count + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// The end of an exchange that was counted.
    pub(in crate::upstream) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(in crate::upstream) fn latency(&self) -> PeakLatency {
        PeakLatency::unpacked(self.latency.load(Ordering::Relaxed))
    }

    /// Applies an observation. Of two that race, one may be lost: both saw the same member.
    pub(in crate::upstream) fn update(&self, change: impl FnOnce(PeakLatency) -> PeakLatency) {
        let before = self.latency.load(Ordering::Relaxed);
        let after = change(PeakLatency::unpacked(before)).packed();
        _ = self.latency.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The latency that a member is expected to have: it rises to each greater observation at once,
/// and falls with time ("peak EWMA").
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::upstream) struct PeakLatency {
    /// In microseconds; 0 if nothing was measured yet.
    micros: f32,
    /// When it was that, in milliseconds of the monotonic clock, modulo 2^32.
    at_ms: u32,
}

impl PeakLatency {
    /// The expected latency in microseconds at `now_ms`; `None` if nothing was measured. It
    /// falls while the member gets no requests, so that a slow member is tried again.
    pub(in crate::upstream) fn expected(self, now_ms: u64) -> Option<f32> {
        (self.micros > 0.0).then(|| self.micros * self.remaining(now_ms))
    }

    /// After an answer that took `micros`.
    pub(in crate::upstream) fn measured(self, micros: f32, now_ms: u64) -> Self {
        if micros >= self.micros {
            return Self::at(micros, now_ms);
        }
        let remaining = self.remaining(now_ms);
        Self::at(self.micros * remaining + micros * (1.0 - remaining), now_ms)
    }

    /// After an exchange that took `micros` and gave no answer: that says that an answer takes
    /// at least as long, and never that it takes less.
    pub(in crate::upstream) fn at_least(self, micros: f32, now_ms: u64) -> Self {
        if micros > self.expected(now_ms).unwrap_or(0.0) { Self::at(micros, now_ms) } else { self }
    }

    fn at(micros: f32, now_ms: u64) -> Self {
        Self { micros: micros.max(1.0), at_ms: now_ms as u32 }
    }

    /// The weight of what is known against what is observed now.
    fn remaining(self, now_ms: u64) -> f32 {
        let passed_ms = (now_ms as u32).wrapping_sub(self.at_ms);
        (-(passed_ms as f32) / DECAY_MS).exp()
    }

    fn packed(self) -> u64 {
        u64::from(self.micros.to_bits()) << 32 | u64::from(self.at_ms)
    }

    fn unpacked(packed: u64) -> Self {
        Self { micros: f32::from_bits((packed >> 32) as u32), at_ms: packed as u32 }
    }
}

/// The latency that a failed exchange counts as: a member that refuses at once must not look
/// fast. `mean` is that of the pool's members.
pub(in crate::upstream) fn failure_micros(mean: Option<f32>) -> f32 {
    mean.unwrap_or(0.0) * FAILURE_FACTOR
}

/// After this time an observation counts a third.
const DECAY_MS: f32 = 10_000.0;
/// A failed exchange counts as this multiple of the pool's mean latency.
const FAILURE_FACTOR: f32 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_taken_at_once_and_forgotten_slowly() {
        let fast = PeakLatency::default().measured(1_000.0, 0);
        assert_eq!(fast.expected(0), Some(1_000.0));
        let peak = fast.measured(50_000.0, 100);
        assert_eq!(peak.expected(100), Some(50_000.0));
        let later = peak.measured(1_000.0, 1_100).expected(1_100).expect("measured");
        assert!((45_000.0..46_000.0).contains(&later), "{later}");
        let idle = peak.expected(10_100).expect("measured");
        assert!((18_000.0..19_000.0).contains(&idle), "{idle}");
        assert_eq!(PeakLatency::default().expected(7), None);
    }

    #[test]
    fn an_exchange_without_an_answer_never_lowers_the_latency() {
        let known = PeakLatency::default().measured(1_000.0, 0);
        assert_eq!(known.at_least(10.0, 1), known);
        assert_eq!(known.at_least(9_000.0, 1).expected(1), Some(9_000.0));
        assert_eq!(PeakLatency::default().at_least(500.0, 1).expected(1), Some(500.0));
        assert_eq!(failure_micros(Some(1_000.0)), 10_000.0);
    }

    #[test]
    fn a_packed_latency_is_the_same_one() {
        let latency = PeakLatency::at(1234.5, u64::from(u32::MAX) + 7);
        assert_eq!(PeakLatency::unpacked(latency.packed()), latency);
        assert_eq!(latency.at_ms, 6);
        assert_eq!(PeakLatency::unpacked(0), PeakLatency::default());
    }

    #[test]
    fn the_count_in_flight_stops_at_its_limit() {
        let load = Load::default();
        assert_eq!([1, 2, 2, 3].map(|max| load.enter(max)), [true, true, false, true]);
        load.leave();
        assert_eq!(load.in_flight(), 2);
        assert_eq!(align_of::<Load>(), 128);
    }
}
