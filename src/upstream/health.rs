//! Passive health: an origin that fails several times in a row is left alone for a while;
//! then one request tries it (half open), and its outcome decides.
//!
//! ```text
//!  up ──failures_max in a row──▶ down until T ──T passes──▶ one trial (down until T + skip)
//!   ▲                                                         │
//!   └────────────────────── any success ◀─────────────────────┘
//! ```

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::settings::Health;
use crate::clock::whole_ms;

/// What all cores know of one origin. Written only on failures and on the first success
/// after one, so that a healthy origin's line stays in every core's cache.
#[derive(Debug, Default)]
pub(super) struct OriginHealth {
    failures: AtomicU32,
    /// Milliseconds of the caller's monotonic clock; 0: up.
    down_until_ms: AtomicU64,
}

impl OriginHealth {
    #[cfg(test)]
    pub(super) fn is_down(&self) -> bool {
        self.down_until_ms.load(Ordering::Relaxed) != 0
    }

    /// No failure is counted.
    #[cfg(test)]
    pub(super) fn is_untouched(&self) -> bool {
        self.failures.load(Ordering::Relaxed) == 0
    }

    /// Whether a request may go there now. When it was down and its time is over, the first
    /// asker gets the trial, and the others wait for its outcome.
    pub(super) fn admits(&self, now_ms: impl Fn() -> u64, settings: &Health) -> bool {
        let until = self.down_until_ms.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now = now_ms();
        let next = now.saturating_add(whole_ms(settings.skip));
        now >= until
            && self
                .down_until_ms
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// True when the last exchange before was a failure.
    pub(super) fn succeeded(&self) -> bool {
        let had_failed = self.failures.load(Ordering::Relaxed) != 0;
        if had_failed {
            self.failures.store(0, Ordering::Relaxed);
            self.down_until_ms.store(0, Ordering::Relaxed);
        }
        had_failed
    }

    /// Counts one failure. True when it is the one that marks the origin down.
    pub(super) fn failed(&self, now_ms: u64, settings: &Health) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if settings.failures_max == 0 || failures < settings.failures_max {
            return false;
        }
        let until = now_ms.saturating_add(whole_ms(settings.skip).max(1));
        self.down_until_ms.swap(until, Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SETTINGS: Health =
        Health { failures_max: 3, skip: Duration::from_millis(100), try_when_all_down: false };

    #[test]
    fn an_origin_is_down_after_its_failures_in_a_row_and_not_before() {
        let health = OriginHealth::default();
        assert!(!health.failed(1, &SETTINGS));
        health.succeeded();
        assert!(!health.failed(2, &SETTINGS));
        assert!(!health.failed(3, &SETTINGS));
        assert!(health.admits(|| 3, &SETTINGS));
        assert!(health.failed(4, &SETTINGS));
        assert!(!health.admits(|| 50, &SETTINGS));
    }

    #[test]
    fn one_request_tries_an_origin_whose_time_is_over() {
        let health = OriginHealth::default();
        assert_eq!([0, 1, 2].map(|at| health.failed(at, &SETTINGS)), [false, false, true]);
        assert!(health.admits(|| 102, &SETTINGS));
        assert!(!health.admits(|| 103, &SETTINGS), "the second waits for the first's outcome");
        health.succeeded();
        assert!(health.admits(|| 104, &SETTINGS));
    }

    #[test]
    fn zero_failures_means_never_skipped() {
        let health = OriginHealth::default();
        let settings = Health { failures_max: 0, ..SETTINGS };
        assert!((0..100).all(|at| !health.failed(at, &settings)));
        assert!(health.admits(|| 100, &settings));
    }
}
