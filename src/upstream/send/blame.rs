//! The tries of a request, and which of their failures count against the health of origins.
//!
//! A failed connection counts at once. A failure of a request that was processed counts when the
//! request has ended: a request that no origin can answer must not eject all of them.

use std::rc::Rc;
use std::sync::Arc;

use super::super::choice::Chosen;
use super::super::health::{Event, Outcome, Trial, record};
use super::super::pool::Pool;
use super::super::pool::pool_state::{MemberState, PoolState};
use crate::metrics::Recorder;

/// A try that has begun.
pub(super) struct Try {
    pub(super) member: Rc<MemberState>,
    epoch: u16,
    trial: Option<Rc<Trial>>,
    pub(super) payment: Payment,
}

/// How a try is paid from the retry budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payment {
    /// The try costs nothing.
    Free,
    /// The try was paid when it began, and costs nothing if it wins.
    Paid,
    /// The try costs something if it does not win.
    IfLost,
    /// The try was paid from the budget of hedges.
    Hedge,
}

impl Try {
    pub(super) fn new(chosen: &Chosen, payment: Payment) -> Self {
        let Chosen { member, epoch, trial, .. } = chosen;
        Self { member: member.clone(), epoch: *epoch, trial: trial.clone(), payment }
    }

    /// Whether the try is the trial of its member.
    pub(super) fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// The record of this failure, to be made when the request has ended. `None`: it is made already.
    pub(super) fn blame(
        &self,
        outcome: Outcome,
        cause: String,
        state: &PoolState,
        recorder: &Recorder,
    ) -> Option<Blame> {
        if let Some(trial) = &self.trial
            && trial.failed(outcome, &cause)
        {
            self.member.count_outcome(outcome);
            state.note_failure(&self.member);
            return None;
        }
        let (member, epoch) = (self.member.clone(), self.epoch);
        let blame = Blame { member, epoch, outcome, cause };
        match outcome {
            Outcome::Faulty | Outcome::BrokenOff => Some(blame),
            Outcome::Good | Outcome::Contentless | Outcome::Unreachable => {
                blame.record(state, recorder);
                None
            }
        }
    }

    /// Another try has won: a trial that did not answer before has failed.
    pub(super) fn lost(&self) {
        if let Some(trial) = &self.trial {
            trial.failed(Outcome::Faulty, "it did not respond before another origin");
        }
    }
}

/// A failure that counts against an origin's health.
pub(super) struct Blame {
    member: Rc<MemberState>,
    epoch: u16,
    outcome: Outcome,
    cause: String,
}

impl Blame {
    fn record(&self, state: &PoolState, recorder: &Recorder) {
        let Self { member, epoch, outcome, cause } = self;
        member.count_outcome(*outcome);
        state.note_failure(member);
        let pool: &Arc<Pool> = &state.pool;
        let event = Event::Finished { epoch: *epoch, is_trial: false, outcome: *outcome };
        record(pool, &member.member, event, recorder, format_args!("{cause}"));
    }
}

/// The failures of a request whose end decides which of them count. Dropped before, as when the
/// client has left: the first one counts.
pub(super) struct Blames<'a> {
    state: &'a PoolState,
    recorder: &'a Recorder,
    /// With the number of the try.
    list: Vec<(usize, Blame)>,
}

impl<'a> Blames<'a> {
    pub(super) fn new(state: &'a PoolState, recorder: &'a Recorder) -> Self {
        Self { state, recorder, list: Vec::new() }
    }

    pub(super) fn add(&mut self, number: usize, blame: Option<Blame>) {
        self.list.extend(blame.map(|blame| (number, blame)));
    }

    /// The try with this number has given a good response: all others are to blame.
    pub(super) fn settle_won(&mut self, winner: usize) {
        for (_, blame) in self.list.drain(..).filter(|(number, _)| *number != winner) {
            blame.record(self.state, self.recorder);
        }
    }
}

impl Drop for Blames<'_> {
    /// Without a good response only the first origin is to blame: the request may be at fault.
    fn drop(&mut self) {
        if let Some((_, first)) = self.list.first() {
            first.record(self.state, self.recorder);
        }
    }
}
