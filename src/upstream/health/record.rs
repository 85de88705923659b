//! Tells an origin's health what happened, and operators what that changed: one line and one count
//! for each change.

use std::fmt;

use super::super::deadline::monotonic_ms;
use super::super::members::Member;
use super::super::pool::Pool;
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
    let others = || {
        let members = pool.members();
        let others = || members.iter().filter(|other| other.id != member.id);
        let unusable = others().filter(|other| !other.health.view().class().is_usable());
        (others().count(), unusable.count())
    };
    let change = member.health.on(event, monotonic_ms(), pool.settings(), &pool.health, others);
    if let Some(transition) = change.transition {
        report(pool, member, transition, recorder, cause);
    }
    change.is_granted
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
