//! Tells an origin's health what happened, and operators what that changed: one line and one count
//! for each change.

use std::fmt;

use super::super::exchange::deadline::monotonic_ms;
use super::super::pool::Pool;
use super::super::pool::members::Member;
use super::machine::{Event, Transition, Why};
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

/// Takes an event of a pool's member. `cause` stands in the log line if the event takes requests from
/// the origin. Returns whether a claim of a trial was granted.
pub(in crate::upstream) fn record(
    pool: &Pool,
    member: &Member,
    event: Event,
    recorder: &Recorder,
    cause: fmt::Arguments<'_>,
) -> bool {
    let now_ms = monotonic_ms();
    let others = || {
        let members = pool.members();
        let others = || members.iter().filter(|other| other.id != member.id);
        (others().count(), others().filter(|other| is_out(other, now_ms)).count())
    };
    let change = member.health.on(event, now_ms, pool.settings(), &pool.health, others);
    if let Some(transition) = change.transition {
        report(pool, member, transition, recorder, cause);
    }
    change.is_granted
}

/// Whether the member is out, as far as the ejection of another one is concerned. A member of a lower tier gets no
/// trial while a higher tier is used; once its time is over, it must not keep a faulty member of that tier in use.
fn is_out(member: &Member, now_ms: u64) -> bool {
    let view = member.health.view();
    !view.class().is_usable() && !view.is_trial_due(now_ms.saturating_sub(UNTRIED_MS))
}

#[cold]
fn report(
    pool: &Pool,
    member: &Member,
    transition: Transition,
    recorder: &Recorder,
    cause: fmt::Arguments<'_>,
) {
    let (message, reason) = match transition {
        Transition::Opened { why, is_again } => {
            recorder.count(Metric::UpstreamMarkedDown);
            match (why, is_again) {
                (Why::Unreachable, false) => ("an origin is down", "unreachable"),
                (Why::Unreachable, true) => ("an origin stays down after a trial", "unreachable"),
                (Why::Faulty, false) => ("an origin is ejected", "faulty"),
                (Why::Faulty, true) => ("an origin stays ejected after a trial", "faulty"),
            }
        }
        Transition::CheckFailed => {
            recorder.count(Metric::UpstreamMarkedDown);
            ("an origin is down", "check")
        }
        Transition::EjectionRefused => {
            recorder.count(Metric::UpstreamEjectionsRefused);
            ("an origin is faulty and stays in use: health.eject_percent_max is reached", "faulty")
        }
        Transition::CheckDoubted => {
            ("an origin responds while its check fails, and is used when no other is up", "check")
        }
        Transition::Reachable => {
            pool.health.hasten_trial();
            return;
        }
        Transition::Closed | Transition::CheckPassed => {
            let (pool, origin) = (pool.name(), &member.name);
            notices::recovered(pool, origin);
            tracing::info!(%pool, %origin, "an origin is up");
            return;
        }
    };
    let (pool, origin) = (&**pool.name(), &*member.name);
    notices::note(&Notice { is_error: false, message, reason, pool, origin }, cause);
}

/// A member whose trial has been due for so long gets no requests: the trial would have taken place.
const UNTRIED_MS: u64 = 1000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::machine::Outcome;
    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::settings::{Origin, PoolDefinition};

    /// Whether the first of three members can be ejected some time after the second, a member of another tier, was.
    fn is_ejected_after(eject_for: Duration, time: Duration) -> bool {
        let origin = |priority: u16| Origin { priority, ..Origin::http("o", 80 + priority) };
        let origins = (0..3).map(origin).collect();
        let mut definition = PoolDefinition::new("test", origins);
        definition.settings.health.eject_for = eject_for;
        let pool = Pool::new(&definition, None).expect("a good pool");
        let (members, recorder) = (pool.members(), Metrics::new(1).worker(0));
        let eject = |at: usize| {
            let member = members.at(at);
            let event = Event::Finished { epoch: 0, is_trial: false, outcome: Outcome::Faulty };
            for _ in 0..definition.settings.health.consecutive_5xx {
                record(&pool, member, event, &recorder, format_args!("a test"));
            }
            !member.health.view().class().is_usable()
        };
        assert!(eject(1));
        std::thread::sleep(time);
        eject(0)
    }

    #[test]
    fn a_member_that_gets_no_trial_does_not_keep_a_faulty_one_in_use() {
        assert!(!is_ejected_after(Duration::from_secs(600), Duration::ZERO), "one of three is out");
        let a_while = Duration::from_millis(UNTRIED_MS + 200);
        assert!(is_ejected_after(Duration::from_millis(1), a_while));
    }
}
