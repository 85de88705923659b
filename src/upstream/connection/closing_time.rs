//! After how long an origin closes idle connections without having said so.
//!
//! A request that is sent just as its connection is closed is lost: the origin may have processed it. A request that
//! may be sent again gets another connection. For one that must not (RFC 9110 §9.2.2), the core remembers the
//! shortest time after which the origin has closed a connection, and uses none that has been idle for nearly as long. Squid opens a
//! connection for each such request; here it is needed only as long as the origin is known to close them.

use std::cell::Cell;

/// The knowledge of one core about an origin.
#[derive(Debug, Default)]
pub(in crate::upstream) struct ClosingTime(Cell<Option<Closed>>);

/// A connection that the origin has closed.
#[derive(Clone, Copy, Debug)]
struct Closed {
    /// How long it had been idle, or up to [`NOTICED_MS`] less.
    idle_ms: u64,
    /// When this was noticed.
    at_ms: u64,
}

impl ClosingTime {
    /// Notes that the origin has closed a connection after it was idle for so long.
    pub(in crate::upstream) fn note(&self, idle_ms: u64, now_ms: u64) {
        let known = self.known(now_ms);
        if known.is_none_or(|closed| idle_ms < closed.idle_ms + NOTICED_MS) {
            let shortest_ms = known.map_or(idle_ms, |closed| closed.idle_ms.min(idle_ms));
            self.0.set(Some(Closed { idle_ms: shortest_ms, at_ms: now_ms }));
        }
    }

    /// Whether the origin may be closing a connection that has been idle for so long.
    pub(in crate::upstream) fn is_near(&self, idle_ms: u64, now_ms: u64) -> bool {
        self.known(now_ms).is_some_and(|closed| idle_ms + MARGIN_MS >= closed.idle_ms)
    }

    fn known(&self, now_ms: u64) -> Option<Closed> {
        self.0.get().filter(|closed| now_ms.saturating_sub(closed.at_ms) < KNOWN_FOR_MS)
    }
}

/// A closed connection is noticed at the latest so much later, by [`super::core::Core`]'s sweep.
const NOTICED_MS: u64 = 1000;
/// The time in which a closed connection is noticed, and a second for the network, as for a time that the
/// origin states (`Keep-Alive`).
const MARGIN_MS: u64 = NOTICED_MS + 1000;
/// A restart of the origin closes connections of any age. So a time that is not seen again is forgotten.
const KNOWN_FOR_MS: u64 = 300_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_near_its_end_two_seconds_before_the_shortest_time_that_was_seen() {
        let closing = ClosingTime::default();
        assert!(!closing.is_near(3_600_000, 0), "the origin has closed none");
        closing.note(75_000, 80_000);
        closing.note(5_400, 90_000);
        closing.note(60_000, 90_000);
        assert!(!closing.is_near(3_399, 90_000));
        assert!(closing.is_near(3_400, 90_000));
    }

    #[test]
    fn a_time_that_is_not_seen_again_is_forgotten() {
        let closing = ClosingTime::default();
        closing.note(5_000, 0);
        closing.note(5_900, 200_000);
        assert!(closing.is_near(4_000, 499_999), "it was seen again, if noticed late");
        assert!(!closing.is_near(4_000, 500_000));
        closing.note(75_000, 500_000);
        assert!(!closing.is_near(4_000, 500_000) && closing.is_near(74_000, 500_000));
    }
}
