//! Passive health checks. An origin with `failures_max` consecutive failures is marked down for `skip`.
//! Then one trial request (the half-open state of a circuit breaker) decides whether it is up again.
//!
//! ```text
//!  up ──failures_max in a row──▶ down until T ──T passes──▶ one trial (down until now + skip)
//!   ▲                                                         │
//!   └────────────────────── any success ◀─────────────────────┘
//! ```

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::settings::Health;
use crate::clock::whole_ms;

/// The health of one origin, shared by all cores. It is written only on a failure and on the first
/// success after one, so that the CPU cores can keep a healthy origin's cache line shared.
#[derive(Debug, Default)]
pub(super) struct OriginHealth {
    failures: AtomicU32,
    /// End of the time for which it is marked down, in milliseconds of the monotonic clock; 0 if it is
    /// up.
    down_until_ms: AtomicU64,
}

impl OriginHealth {
    /// Whether the origin is marked down.
    pub(super) fn is_down(&self) -> bool {
        self.down_until_ms.load(Ordering::Relaxed) != 0
    }

    /// Whether no failure was recorded since the last success.
    #[cfg(test)]
    pub(super) fn is_untouched(&self) -> bool {
        self.failures.load(Ordering::Relaxed) == 0
    }

    /// Whether a request may be sent to this origin now. After its time down has passed, the first
    /// call claims the trial and returns true; further calls return false until the trial has ended.
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

    /// Records a success: resets the count of failures and marks the origin up. Returns whether it had
    /// failed before.
    pub(super) fn succeeded(&self) -> bool {
        let had_failed = self.failures.load(Ordering::Relaxed) != 0;
        if had_failed {
            self.failures.store(0, Ordering::Relaxed);
            self.down_until_ms.store(0, Ordering::Relaxed);
        }
        had_failed
    }

    /// Records a failure. Returns whether it marked the origin down; never if `failures_max` is 0.
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
