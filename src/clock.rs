//! The clock: the only module that reads the wall time.
//!
//! All other modules get a `Clock` or a time as an argument. A test moves the wall time with
//! [`Clock::advance`] instead of sleeping. Timers are tokio's, and what sets one may read tokio's `Instant`.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Wall and monotonic time. Clones share one offset.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    /// The clock of the system.
    pub fn system() -> Self {
        Self::default()
    }

    /// The wall time, plus the time added by [`Clock::advance`].
    pub fn now(&self) -> SystemTime {
        system_time() + self.ahead()
    }

    /// Wall time and monotonic time for the cost of one reading. The thread's last reading of the wall time
    /// is advanced by monotonic time, and renewed when it is [`ANCHOR_AGE_MAX`] old.
    pub fn both(&self) -> (SystemTime, Instant) {
        let instant = self.instant();
        let wall = ANCHOR.with(|anchor| {
            let since = anchor.get().map(|(wall, at)| (wall, instant.duration_since(at)));
            match since {
                Some((wall, passed)) if passed < ANCHOR_AGE_MAX => wall + passed,
                _ => {
                    let wall = system_time();
                    anchor.set(Some((wall, instant)));
                    wall
                }
            }
        });
        (wall + self.ahead(), instant)
    }

    /// The monotonic time, for durations. [`Clock::advance`] does not move it.
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    fn ahead(&self) -> Duration {
        Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Moves the wall time forward, for every clone of this clock.
    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

fn system_time() -> SystemTime {
    SystemTime::now()
}

/// The CPU time of this thread: a measure of work that the load of the machine does not change. A system call.
pub(crate) fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

thread_local! {
    /// The last reading of both clocks.
    static ANCHOR: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
}

/// The delay after which a step of the wall time is noticed.
const ANCHOR_AGE_MAX: Duration = Duration::from_millis(100);

/// Milliseconds since 1970-01-01T00:00:00Z; zero for times before it.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, whole_ms)
}

/// The whole milliseconds of a duration, at most `u64::MAX`.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
        assert!(other.both().0 >= before + Duration::from_secs(3600));
    }

    #[test]
    fn both_clocks_are_those_that_are_read_alone() {
        let clock = Clock::system();
        clock.both();
        let before = (clock.now(), clock.instant());
        let both = clock.both();
        assert!(both.1 >= before.1 && both.1 <= clock.instant());
        let apart = both.0.duration_since(before.0).unwrap_or_else(|error| error.duration());
        assert!(apart < ANCHOR_AGE_MAX + both.1.duration_since(before.1), "{apart:?}");
    }
}
