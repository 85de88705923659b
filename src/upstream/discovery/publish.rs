//! The consequences of the news of a source: other members, a line in the log, a count.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::health::{Event, record};
use super::super::pool::members::{Member, Members};
use super::super::pool::roster::Roster;
use super::super::pool::{MemberSwap, Pool};
use super::super::settings::{MemberSource, PoolError, PoolSettings};
use super::reply::{SourceFailure, SourceNews};
use crate::labels::{DiscoveryOutcome, LeftOut, MemberChange};
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

/// Takes the news of a source. Its last members stay if it failed or is empty (blocking: new members
/// with TLS read files). Returns whether it gives other origins than before.
pub(super) fn publish(
    pool: &Pool,
    source: &MemberSource,
    news: SourceNews,
    recorder: &Recorder,
) -> bool {
    let mut roster = pool.roster();
    if roster.is_closed {
        return false;
    }
    let found = match news {
        SourceNews::Failed(failure) => {
            let is_known = roster.note_failure(source, &failure.reason);
            drop(roster);
            if is_known {
                report_failure(pool, source, &failure, recorder);
            }
            return false;
        }
        SourceNews::Confirmed => {
            if roster.note_confirmed(source) {
                log_recovery(pool, source);
            }
            return false;
        }
        SourceNews::Origins(found) => found,
    };
    let Some(change) = roster.note_answer(source, &found) else { return false };
    if change.has_recovered {
        log_recovery(pool, source);
    }
    let outcome = match change.is_other {
        true => DiscoveryOutcome::Changed,
        false => DiscoveryOutcome::Unchanged,
    };
    recorder.count_labelled(Metric::UpstreamDiscoveries, outcome.index());
    if change.is_other {
        let swap = replace(pool, &mut roster, change.is_first, recorder);
        drop(roster);
        report(pool, source, &swap, recorder);
    }
    change.is_other
}

fn log_recovery(pool: &Pool, source: &MemberSource) {
    tracing::info!(pool = %pool.name(), %source, "a source of origins answers again");
}

/// Puts the members of the changed roster in place.
fn replace(pool: &Pool, roster: &mut Roster, is_first: bool, recorder: &Recorder) -> MemberSwap {
    let before = pool.members().clone();
    let build = roster.build(pool.settings(), [before.clone()]);
    // The first members of a source have no others beside them that could carry the load meanwhile.
    if !is_first {
        for member in missing(&build.members, &before) {
            record(pool, member, Event::Joined, recorder, format_args!(""));
        }
    }
    for (_, mistake) in &build.mistakes {
        recorder.count_labelled(Metric::UpstreamOriginsLeftOut, LeftOut::Unusable.index());
        left_out(pool, LeftOut::Unusable, mistake);
    }
    if build.left_out > 0 {
        let count = build.left_out as u64;
        recorder.add_labelled(Metric::UpstreamOriginsLeftOut, LeftOut::Limit.index(), count);
        let count = build.members.len() + build.left_out;
        let (pool_name, max) = (pool.name().clone(), PoolSettings::MEMBERS_MAX);
        left_out(pool, LeftOut::Limit, &PoolError::Origins { pool: pool_name, count, max });
    }
    pool.replace_members(roster, build.members)
}

/// The members of `all` that `others` does not have.
fn missing<'a>(all: &'a Members, others: &Members) -> impl Iterator<Item = &'a Arc<Member>> {
    let present: HashSet<u64> = others.iter().map(|member| member.id).collect();
    all.iter().filter(move |member| !present.contains(&member.id))
}

fn report(pool: &Pool, source: &MemberSource, swap: &MemberSwap, recorder: &Recorder) {
    let names = |members: Vec<&Arc<Member>>| {
        let shown: Vec<&str> = members.iter().take(SHOWN_MAX).map(|it| &*it.name).collect();
        let more = members.len().saturating_sub(SHOWN_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", shown.join(" "))
    };
    let joined: Vec<_> = missing(&swap.after, &swap.before).collect();
    let left: Vec<_> = missing(&swap.before, &swap.after).collect();
    for (change, members) in [(MemberChange::Joined, &joined), (MemberChange::Left, &left)] {
        recorder.add_labelled(Metric::UpstreamOriginsChanged, change.index(), members.len() as u64);
    }
    tracing::info!(
        pool = %pool.name(), %source, origins = swap.after.len(), joined = names(joined),
        left = names(left), "the origins of a pool have changed"
    );
}

#[cold]
fn report_failure(
    pool: &Pool,
    source: &MemberSource,
    failure: &SourceFailure,
    recorder: &Recorder,
) {
    let (outcome, message) = match failure.is_empty {
        true => {
            (DiscoveryOutcome::Empty, "a source of origins is empty: its last origins stay in use")
        }
        false => {
            (DiscoveryOutcome::Failed, "a source of origins failed: its last origins stay in use")
        }
    };
    recorder.count_labelled(Metric::UpstreamDiscoveries, outcome.index());
    let (pool, origin) = (&**pool.name(), &*source.to_string());
    let notice = Notice { is_error: false, message, reason: outcome.as_str(), pool, origin };
    notices::note(&notice, format_args!("{}", failure.reason));
}

fn left_out(pool: &Pool, reason: LeftOut, mistake: &PoolError) {
    let notice = Notice {
        is_error: false,
        message: "origins of a source are not used",
        reason: reason.as_str(),
        pool: pool.name(),
        origin: "",
    };
    notices::note(&notice, format_args!("{mistake}"));
}

/// Members that a log line names.
const SHOWN_MAX: usize = 10;
