//! The measured round trip to a peer, and the deadline for its acknowledgement that follows from it.
//!
//! Peers of the region are near, and have `peers.deadline`. A node of a shield is far: its deadline is three round
//! trips, at least `peers.deadline`. The round trip is the time from sending a request on an open connection to the
//! first 102 or the head of the response, smoothed over the requests of all workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The measured round trip to a peer.
#[derive(Debug, Default)]
pub(in crate::serve) struct Distance {
    /// In microseconds; 0: not measured.
    round_trip_us: AtomicU64,
}

impl Distance {
    /// The deadline for the acknowledgement of a peer at this distance: three round trips, or the longest while none
    /// is measured, but at least `floor`.
    pub(in crate::serve) fn deadline(&self, floor: Duration) -> Duration {
        match self.round_trip() {
            Some(round_trip) => (round_trip * ROUND_TRIPS).clamp(floor, floor.max(LONGEST)),
            None => floor.max(LONGEST),
        }
    }

    /// The smoothed round trip. `None`: not measured.
    pub(in crate::serve) fn round_trip(&self) -> Option<Duration> {
        let us = self.round_trip_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// Notes a round trip, if there is one. Of two that are noted at once, one may be lost.
    pub(in crate::serve) fn note(&self, round_trip: Option<Duration>) {
        let Some(round_trip) = round_trip else { return };
        let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 8);
        let smoothed = match self.round_trip_us.load(Ordering::Relaxed) {
            0 => us,
            // As the round trip of TCP (RFC 6298 §2).
            before => (before * 7 + us).div_ceil(8),
        };
        self.round_trip_us.store(smoothed, Ordering::Relaxed);
    }

    /// Forgets the round trip after a missed deadline: a path that became longer is measured again.
    pub(in crate::serve) fn forget(&self) {
        self.round_trip_us.store(0, Ordering::Relaxed);
    }
}

/// TCP and TLS take one round trip each before the request, which takes the third.
const ROUND_TRIPS: u32 = 3;
/// The longest deadline, also while nothing is measured: three times the round trip to the other side of the
/// earth and back, some 300 ms.
const LONGEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_three_round_trips_within_bounds() {
        let ms = Duration::from_millis;
        let check = |measured: &[u64], floor: u64, expected: u64| {
            let distance = Distance::default();
            measured.iter().for_each(|sample| distance.note(Some(ms(*sample))));
            assert_eq!(distance.deadline(ms(floor)), ms(expected), "{measured:?}, {floor}");
        };
        check(&[], 250, 1000);
        check(&[], 2000, 2000);
        check(&[100], 250, 300);
        check(&[10], 250, 250);
        check(&[10], 20, 30);
        check(&[500], 250, 1000);
        check(&[500], 2000, 2000);
        check(&[100, 180], 250, 330);
        let distance = Distance::default();
        distance.note(Some(ms(100)));
        distance.note(None);
        assert_eq!(distance.round_trip(), Some(ms(100)));
        distance.forget();
        assert_eq!(distance.deadline(ms(250)), ms(1000));
    }
}
