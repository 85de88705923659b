//! A limit on how often something may happen: a token bucket.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A token bucket that holds the tokens of one second, and is full at the start: as many calls may
/// come at once.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: u32,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Rate {
    /// A full bucket.
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        let bucket = Bucket { tokens: per_second.into(), filled_at: now };
        Self { per_second, bucket: Mutex::new(bucket) }
    }

    /// The limit.
    pub(super) fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes a token; false if there is none.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = f64::from(self.per_second);
        let elapsed = now.saturating_duration_since(bucket.filled_at);
        bucket.tokens = (bucket.tokens + elapsed.as_secs_f64() * per_second).min(per_second);
        bucket.filled_at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_rate_lets_bursts_through_and_no_more() {
        let start = Clock::system().instant();
        let rate = Rate::new(3, start);
        let taken = |now| (0..5).filter(|_| rate.take(now)).count();
        assert_eq!(taken(start), 3);
        assert_eq!(taken(start + Duration::from_secs(1)), 3);
    }
}
