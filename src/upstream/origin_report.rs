//! The state of a pool's origins for people: the admin API and the metrics.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::deadline::monotonic_ms;
use super::health::{HealthClass, LastCheck, Why};
use super::members::Member;
use super::pool::Pool;

/// The state of one origin.
#[derive(Clone, Debug)]
pub(crate) struct OriginReport {
    /// `http://host:port`.
    pub origin: String,
    /// How it is used.
    pub class: HealthClass,
    /// For how long the class has been so.
    pub since: Duration,
    /// Why it is ejected or down, if that is due to the requests' outcomes.
    pub why: Option<Why>,
    /// Its check fails.
    pub is_check_failing: bool,
    /// A request tests it now.
    pub is_on_trial: bool,
    /// The time until the next trial; `None` if it needs none, or has one.
    pub until: Option<Duration>,
    /// Failures in a row.
    pub failures: u32,
    /// Ejections that lengthen the next one.
    pub ejections: u32,
    /// Open connections of all workers.
    pub connections: usize,
    /// The last active check.
    pub last_check: Option<LastCheck>,
}

impl Pool {
    /// The state of each origin, in the order of the configuration.
    pub(crate) fn origins(&self) -> Vec<OriginReport> {
        self.members().iter().map(|member| report(member)).collect()
    }

    /// The number of origins of each class, in the order of [`HealthClass::ALL`].
    pub(crate) fn counts(&self) -> [usize; HealthClass::ALL.len()] {
        let members = self.members();
        HealthClass::ALL.map(|class| {
            members.iter().filter(|member| member.health.view().class() == class).count()
        })
    }
}

fn report(member: &Member) -> OriginReport {
    let (now_ms, state) = (monotonic_ms(), member.health.snapshot());
    let since = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms));
    let until = |at_ms: u64| Duration::from_millis(at_ms.saturating_sub(now_ms));
    OriginReport {
        origin: format!("{}://{}", member.scheme.as_str(), member.name),
        class: state.class,
        since: since(state.since_ms),
        why: state.why,
        is_check_failing: state.is_check_failing,
        is_on_trial: state.is_on_trial,
        until: state.until_ms.map(until),
        failures: state.failures,
        ejections: state.ejections,
        connections: member.connections.load(Ordering::Relaxed),
        last_check: member.health.last_check(),
    }
}
