//! How long a node waits for the acknowledgement of a peer, by the measured round trip to it.
//!
//! Peers of the region are near: `peers.deadline` covers the connection, too. A node of a shield is far. Its deadline
//! is three round trips, at least `peers.deadline`, and runs from the moment when the request was sent on an open
//! connection; opening one may take as long again. The round trip is the time from then to the first 102 or the
//! head of the response, smoothed over the requests of all workers.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::Acknowledgement;

/// The measured round trip to a peer.
#[derive(Debug, Default)]
pub(super) struct Distance {
    /// In microseconds; 0: not measured.
    round_trip_us: AtomicU64,
}

impl Distance {
    /// The deadline for the acknowledgement of a peer at this distance: three round trips, or the longest while none
    /// is measured, but at least `floor`.
    pub(super) fn deadline(&self, floor: Duration) -> Duration {
        match self.round_trip() {
            Some(round_trip) => (round_trip * ROUND_TRIPS).clamp(floor, floor.max(LONGEST)),
            None => floor.max(LONGEST),
        }
    }

    /// The smoothed round trip. `None`: not measured.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        let us = self.round_trip_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// Notes a round trip, if there is one. Of two that are noted at once, one may be lost.
    pub(super) fn note(&self, round_trip: Option<Duration>) {
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
    pub(super) fn forget(&self) {
        self.round_trip_us.store(0, Ordering::Relaxed);
    }
}

/// How long the acknowledgement of a request is waited for.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Duration,
    /// Whether the deadline begins again when the request is sent.
    is_far: bool,
    /// The time from sending the request to its acknowledgement, once it has arrived.
    pub round_trip: Option<Duration>,
}

impl Patience {
    /// The deadline covers everything.
    pub(super) fn near(deadline: Duration) -> Self {
        Self { deadline, is_far: false, round_trip: None }
    }

    /// The deadline begins again when the request is sent.
    pub(super) fn far(deadline: Duration) -> Self {
        Self { is_far: true, ..Self::near(deadline) }
    }
}

/// Waits for the response, but for its acknowledgement no longer than `patience` says.
pub(super) async fn in_time<R>(
    sending: impl Future<Output = R>,
    acknowledged: &Acknowledgement,
    patience: &mut Patience,
) -> Option<R> {
    let mut sending = pin!(sending);
    let mut until = Instant::now() + patience.deadline;
    let sent = loop {
        tokio::select! {
            biased;
            sent = &mut sending => break Some(sent),
            () = acknowledged.arrived() => break None,
            () = tokio::time::sleep_until(until) => {}
        }
        let sent_at = acknowledged.sent_at().filter(|_| patience.is_far);
        until = sent_at.map(|at| at + patience.deadline).filter(|later| *later > until)?;
    };
    patience.round_trip = acknowledged.sent_at().map(|at| at.elapsed());
    match sent {
        None => Some(sending.await),
        sent => sent,
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

    #[tokio::test]
    async fn the_deadline_of_a_far_peer_begins_when_the_request_is_sent() {
        let ms = Duration::from_millis;
        // Opens a connection, and is answered, after these times. Real time passes: the margins are wide.
        let check = async |mut patience: Patience, opening: u64, answer: u64, is_answered| {
            let acknowledged = Acknowledgement::default();
            let sending = async {
                tokio::time::sleep(ms(opening)).await;
                acknowledged.note_sent();
                tokio::time::sleep(ms(answer)).await;
            };
            let answered = in_time(sending, &acknowledged, &mut patience).await.is_some();
            assert_eq!(answered, is_answered, "{opening} ms, {answer} ms");
            let is_measured = patience.round_trip.is_some_and(|it| it >= ms(answer));
            assert_eq!(is_measured, is_answered);
        };
        let (near, far) = (|| Patience::near(ms(1000)), || Patience::far(ms(1000)));
        tokio::join!(
            check(near(), 100, 100, true),
            check(near(), 700, 700, false),
            check(far(), 700, 700, true),
            check(far(), 0, 60_000, false),
            check(far(), 60_000, 0, false),
        );
    }
}
