//! The decisions that concern the origins of a pool together: how many may be ejected, and whose turn it is to try
//! one when all are down. A reload hands it on to the next pool of the same name.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::lock;
use crate::clock::whole_ms;

/// The shared part of the health of a pool's origins.
#[derive(Debug, Default)]
pub(in crate::upstream) struct PoolHealth {
    ejecting: Mutex<()>,
    trials: Mutex<Trials>,
}

/// The trials while all origins are down.
#[derive(Debug, Default)]
struct Trials {
    is_one_running: bool,
    next_ms: u64,
}

impl PoolHealth {
    /// Only one ejection at a time looks at how many origins are left.
    pub(super) fn begin_ejection(&self) -> MutexGuard<'_, ()> {
        lock(&self.ejecting)
    }

    /// Claims the pool's only trial while all origins are down.
    ///
    /// # Errors
    /// The time until the next one.
    pub(super) fn claim_trial(&self, now_ms: u64, interval: Duration) -> Result<(), Duration> {
        let mut trials = lock(&self.trials);
        if trials.is_one_running {
            return Err(interval);
        }
        if now_ms < trials.next_ms {
            return Err(Duration::from_millis(trials.next_ms - now_ms));
        }
        trials.is_one_running = true;
        Ok(())
    }

    /// Ends the trial. The next one may begin at `next_ms`.
    pub(super) fn end_trial(&self, next_ms: u64) {
        *lock(&self.trials) = Trials { is_one_running: false, next_ms };
    }

    /// The next trial may begin now: an origin accepts connections again.
    pub(super) fn hasten_trial(&self) {
        lock(&self.trials).next_ms = 0;
    }
}

/// When the trial after a failed one may begin.
pub(super) fn after_failure(now_ms: u64, interval: Duration) -> u64 {
    now_ms.saturating_add(whole_ms(interval))
}
