//! When a node sends its heartbeats.
//!
//! ```text
//! regular   ├────────── interval ──────────┼────────── interval ──────────┤
//! in between                 ▲ another node is due to be out, unless it is heard before
//! ```
//! The one in between lets this node learn at that moment, and not at its next regular heartbeat, that the other one is out.

use std::time::{Duration, Instant};

/// The times of the next heartbeats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeartbeatSchedule {
    interval: Duration,
    next_regular: Instant,
    next_out: Instant,
}

impl HeartbeatSchedule {
    /// The first heartbeat is due at `now`.
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, next_regular: now, next_out: now }
    }

    /// When the next heartbeat is due.
    pub(crate) fn due_at(&self) -> Instant {
        self.next_regular.min(self.next_out)
    }

    /// A heartbeat that was sent at `sent_at` was answered at `answered_at`: the first node will be out `next_out` after it
    /// had arrived. Counted from `sent_at`, the next one arrives at that moment and not a round trip later.
    pub(crate) fn record_answer(
        &mut self,
        sent_at: Instant,
        answered_at: Instant,
        next_out: Duration,
    ) {
        self.next_out = sent_at + next_out;
        if sent_at >= self.next_regular {
            self.next_regular = answered_at + self.interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_heartbeat_in_between_leaves_the_regular_ones_as_they_are() {
        let start = Clock::system().instant();
        let at = |ms| start + Duration::from_millis(ms);
        let mut schedule = HeartbeatSchedule::new(Duration::from_secs(1), start);
        assert_eq!(schedule.due_at(), start);
        schedule.record_answer(start, at(20), Duration::from_millis(300));
        assert_eq!(schedule.due_at(), at(300));
        schedule.record_answer(at(300), at(320), Duration::from_millis(2500));
        assert_eq!(schedule.due_at(), at(1020));
        schedule.record_answer(at(1020), at(1040), Duration::from_millis(2500));
        assert_eq!(schedule.due_at(), at(2040));
    }
}
