//! The only reader of time.
//!
//! Everything else is given a `Clock` or a `now`. A test moves wall time with
//! [`Clock::advance`] and never sleeps to see something become stale. Deadlines use tokio's
//! own timers; a `Clock` answers only "what time is it".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Wall and monotonic time. Clones share one offset.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    /// The machine's own time.
    pub fn system() -> Self {
        Self::default()
    }

    /// Wall time, with what tests have added by [`Clock::advance`].
    #[allow(clippy::disallowed_methods, reason = "this is the one reader of time")]
    pub fn now(&self) -> SystemTime {
        let ahead_ms = self.ahead_ms.load(Ordering::Relaxed);
        SystemTime::now() + Duration::from_millis(ahead_ms)
    }

    /// Monotonic time, for durations. Never moved by tests.
    #[allow(clippy::disallowed_methods, reason = "this is the one reader of time")]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// Moves wall time forward for every clone of this clock.
    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z; zero for times before it.
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Microseconds since 1970-01-01T00:00:00Z; zero for times before it.
pub fn unix_us(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |elapsed| u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_one_clone_advances_all() {
        let clock = Clock::system();
        let other = clock.clone();
        let before = other.now();
        clock.advance(Duration::from_secs(3600));
        assert!(other.now() >= before + Duration::from_secs(3600));
    }
}
