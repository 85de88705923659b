//! Rate limiting by a token bucket.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A token bucket with the tokens of one second. It is full at the start, so a burst of one second's calls
/// is allowed.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    per_second: u32,
    state: Mutex<BucketState>,
}

#[derive(Debug)]
struct BucketState {
    tokens: f64,
    filled_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        let state = BucketState { tokens: per_second.into(), filled_at: now };
        Self { per_second, state: Mutex::new(state) }
    }

    /// The limit, in calls per second.
    pub(crate) fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes a token. Returns false if there is none.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = f64::from(self.per_second);
        let elapsed = now.saturating_duration_since(state.filled_at);
        state.tokens = (state.tokens + elapsed.as_secs_f64() * per_second).min(per_second);
        state.filled_at = now;
        if state.tokens < 1.0 {
            return false;
        }
        state.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_burst_of_one_second_is_allowed_and_no_more() {
        let start = Clock::system().instant();
        let rate = TokenBucket::new(3, start);
        let taken = |now| (0..5).filter(|_| rate.take(now)).count();
        assert_eq!(taken(start), 3);
        assert_eq!(taken(start + Duration::from_secs(1)), 3);
    }
}
