//! The health of origins: which of them get requests.
//!
//! [`machine`] decides, without a clock. [`OriginHealth`] holds a machine for all cores and
//! publishes its [`View`], the one word that a request reads. [`PoolHealth`] decides what concerns
//! the pool as a whole. [`record()`] tells the machine of outcomes; [`check`] tests origins beside the
//! requests.
//!
//! A healthy origin's state is only read: a success loads one word and changes nothing.

mod check;
mod grpc;
mod machine;
mod pool_health;
mod record;
mod trial;
mod view;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::exchange::deadline::monotonic_ms;
use super::pool::overrides::Administrative;
use super::settings::PoolSettings;
use crate::random::random_u64;

use machine::{Change, Machine, Moment, Rules, Snapshot};

pub(crate) use check::Checks;
pub(crate) use grpc::SERVICE_BYTES_MAX as GRPC_SERVICE_BYTES_MAX;
pub(crate) use machine::Why;
pub(super) use machine::{Event, Outcome};
pub(super) use pool_health::PoolHealth;
pub(super) use record::record;
pub(super) use trial::{Trial, TrialAmong};
pub(crate) use view::HealthClass;
pub(super) use view::View;

/// The health of one origin, shared by all cores.
#[derive(Debug)]
pub(super) struct OriginHealth {
    view: Line,
    machine: Mutex<Machine>,
    /// The last active check.
    last_check: Mutex<Option<LastCheck>>,
}

/// A cache line of its own: every request reads it, and only transitions write it.
#[derive(Debug)]
#[repr(align(128))]
struct Line(AtomicU64);

impl OriginHealth {
    pub(super) fn new(settings: &PoolSettings, now_ms: u64) -> Self {
        let machine = Machine::new(rules(settings), now_ms);
        let view = Line(AtomicU64::new(machine.view().bits()));
        Self { view, machine: Mutex::new(machine), last_check: Mutex::default() }
    }

    /// The health as requests see it.
    pub(super) fn view(&self) -> View {
        View::from_bits(self.view.0.load(Ordering::Relaxed))
    }

    /// Takes an event. `others` counts the pool's other origins: all, and those that are not usable.
    fn on(
        &self,
        event: Event,
        now_ms: u64,
        settings: &PoolSettings,
        pool: &PoolHealth,
        others: impl FnOnce() -> (usize, usize),
    ) -> Change {
        let moment = Moment { now_ms, dice: random_u64() as u16 };
        let mut machine = lock(&self.machine);
        // Held until the view is published, so that two cores cannot eject more than the share.
        let mut ejection = None;
        let change = machine.on(event, moment, rules(settings), || {
            ejection = Some(pool.begin_ejection());
            let (others, unusable) = others();
            may_eject(others + 1, unusable, settings.health.eject_percent_max)
        });
        self.view.0.store(change.view.bits(), Ordering::Release);
        drop(ejection);
        change
    }

    /// Operators have set whether it gets requests.
    pub(super) fn administer(&self, state: Administrative, settings: &PoolSettings) {
        let moment = Moment { now_ms: monotonic_ms(), dice: 0 };
        let mut machine = lock(&self.machine);
        let event = Event::Administered(state);
        let change = machine.on(event, moment, rules(settings), || false);
        self.view.0.store(change.view.bits(), Ordering::Release);
    }

    /// The state in words.
    pub(super) fn snapshot(&self) -> Snapshot {
        lock(&self.machine).snapshot()
    }

    /// The last active check.
    pub(super) fn last_check(&self) -> Option<LastCheck> {
        lock(&self.last_check).clone()
    }

    fn set_last_check(&self, check: LastCheck) {
        *lock(&self.last_check) = Some(check);
    }
}

/// The outcome of an active check.
#[derive(Clone, Debug)]
pub(crate) struct LastCheck {
    /// When it ended, in milliseconds of the monotonic clock.
    pub(super) at_ms: u64,
    /// How long it took.
    pub took: Duration,
    /// Why it failed; `None`: it passed.
    pub failure: Option<Arc<str>>,
}

impl LastCheck {
    /// The time since it ended.
    pub(crate) fn age(&self) -> Duration {
        Duration::from_millis(monotonic_ms().saturating_sub(self.at_ms))
    }
}

/// Whether one more of `all` origins may be ejected when `unusable` are not usable: together at most
/// `percent_max`, rounded down. The only origin never is.
fn may_eject(all: usize, unusable: usize, percent_max: u32) -> bool {
    all > 1 && (unusable + 1) * 100 <= all * percent_max as usize
}

fn rules(settings: &PoolSettings) -> Rules<'_> {
    Rules { health: &settings.health, check: settings.check.as_ref() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_the_share_is_ejected_and_never_the_only_origin() {
        let most = |all: usize, percent| (0..=all).find(|out| !may_eject(all, *out, percent));
        assert_eq!([1, 2, 3, 5, 8].map(|all| most(all, 50)), [0, 1, 1, 2, 4].map(Some));
        assert_eq!([most(2, 0), most(4, 100), most(1, 100)], [Some(0), Some(4), Some(0)]);
    }

    #[test]
    fn two_cores_eject_at_most_the_share() {
        let mut settings = PoolSettings::new("test");
        settings.health.consecutive_5xx = 1;
        for round in 0..300 {
            let pool = PoolHealth::default();
            let origins = [0, 1, 2, 3].map(|_| OriginHealth::new(&settings, 0));
            let usable = |origin: &OriginHealth| origin.view().class().is_usable();
            let fail = |number: usize| {
                let others = || {
                    let out = origins.iter().filter(|origin| !usable(origin)).count();
                    // Without the lock, the other core would count here too.
                    std::thread::sleep(std::time::Duration::from_micros(100));
                    (origins.len() - 1, out)
                };
                let outcome = Outcome::Faulty;
                let event = Event::Finished { epoch: 0, is_trial: false, outcome };
                origins[number].on(event, 1, &settings, &pool, others);
            };
            std::thread::scope(|scope| {
                scope.spawn(|| [0, 1].map(fail));
                scope.spawn(|| [3, 2].map(fail));
            });
            let out = origins.iter().filter(|origin| !usable(origin)).count();
            assert_eq!(out, 2, "round {round}");
        }
    }
}
