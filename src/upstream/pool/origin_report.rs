//! The state of a pool's origins for people: the admin API and the metrics.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::exchange::deadline::monotonic_ms;
use super::super::health::{HealthClass, LastCheck, Why};
use super::Pool;
use super::members::Member;
use super::overrides::OriginOverride;
use super::roster::SourceRecord;

/// The state of one origin.
#[derive(Clone, Debug)]
pub(crate) struct OriginReport {
    /// `http://host:port`.
    pub origin: String,
    /// The address that connections go to, if it is configured apart from the name.
    pub address: Option<IpAddr>,
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
    /// Its share of requests relative to the others.
    pub weight: u16,
    /// Lower numbers are tried first.
    pub priority: u16,
    /// The state and weight that operators have set.
    pub set: Option<OriginOverride>,
    /// The source that gives it, as in the configuration. `None`: the configuration lists it.
    pub source: Option<String>,
    /// Requests in flight of all workers. `None`: the pool does not count them.
    pub in_flight: Option<u32>,
    /// The smoothed time to the first byte of its responses. `None`: there was none in the last minute.
    pub first_byte: Option<Duration>,
    /// Open connections of all workers.
    pub connections: usize,
    /// The last active check.
    pub last_check: Option<LastCheck>,
}

/// The state of a source of origins.
#[derive(Clone, Debug)]
pub(crate) struct SourceReport {
    /// As in the configuration, such as `srv http://_http._tcp.app.internal`.
    pub source: String,
    /// Number of origins in its last answer. `None`: there was none yet.
    pub origins: Option<usize>,
    /// The time since that answer.
    pub answered: Option<Duration>,
    /// Why it has given no answer since.
    pub failure: Option<Arc<str>>,
}

impl SourceReport {
    fn of(record: &SourceRecord) -> Self {
        Self {
            source: record.source.to_string(),
            origins: record.found.as_ref().map(|found| found.len()),
            answered: record.answer_age(),
            failure: record.failure.clone(),
        }
    }
}

impl Pool {
    /// The state of each origin, in the order of the configuration.
    pub(crate) fn origins(&self) -> Vec<OriginReport> {
        let members = self.members();
        let roster = self.roster();
        let source = |at| {
            let source = members.source(at).and_then(|source| roster.sources().get(source));
            source.map(|record| record.source.to_string())
        };
        let report = |at| {
            let member = members.at(at);
            let set = roster.overrides.get(&member.url()).copied();
            let counts = self.settings().counts_in_flight();
            let in_flight = counts.then(|| member.load.in_flight());
            let first_byte = member.first_byte.recent(monotonic_ms());
            let place = (members.weight(at), members.priority(at));
            let of_member = report(member, place, source(at));
            OriginReport { set, in_flight, first_byte, ..of_member }
        };
        (0..members.len()).map(report).collect()
    }

    /// The state of each source of origins, in the order of the configuration.
    pub(crate) fn sources(&self) -> Vec<SourceReport> {
        self.roster().sources().iter().map(SourceReport::of).collect()
    }

    /// The origins whose responses of the last minute began after `limit` or more, each with the smoothed time.
    pub(crate) fn slow_origins(&self, limit: Duration) -> Vec<(String, Duration)> {
        let members = self.members();
        let now_ms = monotonic_ms();
        let slow = members.iter().filter_map(|member| {
            let time = member.first_byte.recent(now_ms).filter(|time| *time >= limit)?;
            Some((member.url(), time))
        });
        slow.collect()
    }

    /// The number of origins of each class, in the order of [`HealthClass::ALL`].
    pub(crate) fn counts(&self) -> [usize; HealthClass::ALL.len()] {
        let members = self.members();
        HealthClass::ALL.map(|class| {
            members.iter().filter(|member| member.health.view().class() == class).count()
        })
    }
}

fn report(member: &Member, (weight, priority): (u16, u16), source: Option<String>) -> OriginReport {
    let (now_ms, state) = (monotonic_ms(), member.health.snapshot());
    let since = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms));
    let until = |at_ms: u64| Duration::from_millis(at_ms.saturating_sub(now_ms));
    OriginReport {
        origin: member.url(),
        address: member.address,
        class: state.class,
        since: since(state.since_ms),
        why: state.why,
        is_check_failing: state.is_check_failing,
        is_on_trial: state.is_on_trial,
        until: state.until_ms.map(until),
        failures: state.failures,
        ejections: state.ejections,
        weight,
        priority,
        set: None,
        in_flight: None,
        first_byte: None,
        source,
        connections: member.connections.load(Ordering::Relaxed),
        last_check: member.health.last_check(),
    }
}
