//! A request that tests an origin that is down or ejected. At most one is under way for an origin.
//! A trial that ends without an outcome, as when its client has left, is free for the next request.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::super::exchange::deadline::monotonic_ms;
use super::super::pool::Pool;
use super::super::pool::members::{Member, Members};
use super::machine::{Event, Outcome};
use super::pool_health::after_failure;
use super::record::record;
use super::view::HealthClass;
use crate::metrics::Recorder;

/// A claimed trial. Dropping it without an outcome gives it back.
pub(in crate::upstream) struct Trial {
    pool: Arc<Pool>,
    member: Arc<Member>,
    recorder: Recorder,
    epoch: u16,
    /// This trial is the only one in its pool, because none of the members is up. False once the next may begin.
    is_only_one: Cell<bool>,
    succeeded: Cell<Option<bool>>,
}

/// The members that may be tried while none is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum TrialAmong {
    /// All that are down: there is no other.
    Down,
    /// Those whose check fails while no request has failed: the check may be wrong.
    DownByCheck,
}

impl Trial {
    /// Claims the trial of a member whose [`View::is_trial_due`](super::View::is_trial_due).
    pub(in crate::upstream) fn claim(
        pool: &Arc<Pool>,
        member: &Arc<Member>,
        recorder: &Recorder,
    ) -> Option<Self> {
        Self::claim_as(false, pool, member, recorder)
    }

    /// Claims the one trial that a pool has while none of its members is up, and the member for it,
    /// none whose id is in `tried`. `among`: which members may be tried.
    ///
    /// # Errors
    /// The time until the next trial.
    pub(in crate::upstream) fn claim_when_none_is_up(
        pool: &Arc<Pool>,
        members: &Members,
        tried: &[u64],
        among: TrialAmong,
        recorder: &Recorder,
    ) -> Result<(Self, usize), Duration> {
        let is_candidate = |at: &usize| {
            let view = members.at(*at).health.view();
            let is_known_to_fail = among == TrialAmong::DownByCheck && view.is_touched();
            view.class() == HealthClass::Down
                && !is_known_to_fail
                && !tried.contains(&members.at(*at).id)
        };
        let interval = pool.settings().health.trial_interval;
        pool.health.claim_trial(monotonic_ms(), interval)?;
        let mut untried: Vec<usize> = (0..members.len()).filter(is_candidate).collect();
        // Its trial is due first. A failed trial is due later, so that all have their turn.
        untried.sort_by_key(|at| members.at(*at).health.view().at_ms());
        let claim = |at| Some((Self::claim_as(true, pool, members.at(at), recorder)?, at));
        untried.into_iter().find_map(claim).ok_or_else(|| {
            pool.health.end_trial(0);
            interval
        })
    }

    fn claim_as(
        all_down: bool,
        pool: &Arc<Pool>,
        member: &Arc<Member>,
        recorder: &Recorder,
    ) -> Option<Self> {
        let claim = Event::Claim { all_down };
        record(pool, member, claim, recorder, format_args!("")).then(|| Self {
            pool: pool.clone(),
            member: member.clone(),
            recorder: recorder.clone(),
            epoch: member.health.view().epoch(),
            is_only_one: Cell::new(all_down),
            succeeded: Cell::new(None),
        })
    }

    /// The member has responded.
    pub(in crate::upstream) fn answered(&self, is_5xx: bool) {
        if self.succeeded.replace(Some(!is_5xx)).is_none() {
            let event = Event::TrialAnswered { epoch: self.epoch, is_5xx };
            let cause = format_args!("it responded with an error (5xx) again");
            record(&self.pool, &self.member, event, &self.recorder, cause);
            self.let_next_begin();
        }
    }

    /// The member has failed. True if the failure decided the trial, false if it comes after a
    /// response and must be recorded as that of any exchange.
    pub(in crate::upstream) fn failed(&self, outcome: Outcome, cause: &str) -> bool {
        if self.succeeded.get().is_some() {
            return false;
        }
        self.succeeded.set(Some(false));
        let event = Event::Finished { epoch: self.epoch, is_trial: true, outcome };
        record(&self.pool, &self.member, event, &self.recorder, format_args!("{cause}"));
        self.let_next_begin();
        true
    }

    /// Lets the next trial of the pool begin: at once, or some time after a failed one. The response
    /// to this one may take long to end.
    fn let_next_begin(&self) {
        if self.is_only_one.replace(false) {
            let is_failed = self.succeeded.get() == Some(false);
            let interval = self.pool.settings().health.trial_interval;
            let next_ms = if is_failed { after_failure(monotonic_ms(), interval) } else { 0 };
            self.pool.health.end_trial(next_ms);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.succeeded.get().is_none() {
            let event = Event::TrialDropped { epoch: self.epoch };
            record(&self.pool, &self.member, event, &self.recorder, format_args!(""));
        }
        self.let_next_begin();
    }
}
