//! Chooses the member for an attempt: the policy orders the tiers, the balance picks in the first
//! one that has a usable member.

pub(in crate::upstream) mod balance;
pub(in crate::upstream) mod order;
pub(in crate::upstream) mod sticky;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::connection::io::ConnectionSlot;
use super::exchange::deadline::monotonic_ms;
use super::exchange::{Affinity, Intent};
use super::health::{HealthClass, Trial, TrialAmong, View};
use super::load;
use super::load::in_flight::InFlight;
use super::load::places::{Places, Shortage};
use super::pool::members::Member;
use super::pool::pool_state::{MemberState, MemberStates, PoolState};
use super::settings::{Balance, PoolSettings};
use crate::clock::whole_ms;
use crate::labels::StickyOutcome;
use crate::metrics::{Metric, Recorder};
use balance::{Draw, Facts};
use order::Tier;

/// The facts of a request that the choice of a member depends on.
pub(in crate::upstream) struct ChoiceInput<'a> {
    intent: &'a Intent,
    /// Ids of the members that it was sent to before.
    tried: &'a [u64],
    /// Whether the time to the head of the response is the member's: not if the client streams
    /// the request, or the exchange is a call or an upgrade.
    is_timed: bool,
}

/// Why no member may be used.
#[derive(Debug)]
pub(in crate::upstream) enum NoChoice {
    /// No member is up: the time until the next trial.
    AllDown(Duration),
    /// No usable one has a place: why.
    AllBusy(Shortage),
}

/// A member for an attempt, which is counted there until dropped if the balance needs that.
pub(in crate::upstream) struct Chosen {
    pub(in crate::upstream) member: Rc<MemberState>,
    /// Of its health, when it was chosen.
    pub(in crate::upstream) epoch: u16,
    /// Present if the member is down or ejected, and this request tests it.
    pub(in crate::upstream) trial: Option<Rc<Trial>>,
    pub(in crate::upstream) in_flight: Cell<Option<InFlight>>,
    /// For a new connection, if the request needs one and the pool has a queue.
    pub(in crate::upstream) slot: Cell<Option<Box<ConnectionSlot>>>,
}

impl<'a> ChoiceInput<'a> {
    /// `has_content`: the request has a body, which may be late.
    pub(in crate::upstream) fn new(
        intent: &'a Intent,
        tried: &'a [u64],
        has_content: bool,
    ) -> Self {
        let is_timed = !intent.is_call && intent.upgrade.is_none() && !has_content;
        Self { intent, tried, is_timed }
    }
}

impl PoolState {
    /// The member for the next attempt: the balance picks one in the first tier, in the order of
    /// the policy, that has a usable one. A member whose trial is due gets the request if `may_test`
    /// says that the request may be used for that.
    ///
    /// # Errors
    /// No member may be used.
    pub(in crate::upstream) fn choose(
        &self,
        among: &MemberStates,
        input: &ChoiceInput<'_>,
        recorder: &Recorder,
        may_test: impl Fn() -> bool,
    ) -> Result<Chosen, NoChoice> {
        self.turn.set(self.turn.get().wrapping_add(1));
        let (pool, members) = (&self.pool, &among.members);
        let claim_any = |which| {
            let (trial, at) =
                Trial::claim_when_none_is_up(pool, members, input.tried, which, recorder)
                    .map_err(NoChoice::AllDown)?;
            Ok(self.chosen_for_trial(among, at, trial))
        };
        let places = Places::new(pool, among, input.intent, recorder);
        if let Some(at) = self.member_of_visitor(among, input, recorder)
            && places.has_one(at)
            && places.take(at, u32::MAX)
        {
            return Ok(self.chosen(among, at, places.slot(), None, input.is_timed));
        }
        let trial_due = Cell::new(None);
        let picked = [Admission::Share, Admission::Usable, Admission::Ejected]
            .into_iter()
            .find_map(|admission| self.pick(among, input, admission, &places, &trial_due));
        let Some(at) = picked else {
            return match places.shortage() {
                Some(shortage) => Err(NoChoice::AllBusy(shortage)),
                None => claim_any(TrialAmong::Down),
            };
        };
        let chosen = self.chosen(among, at, places.slot(), None, input.is_timed);
        if let Some(due) = trial_due.get().filter(|_| may_test())
            && let Some(trial) = Trial::claim(pool, members.at(due), recorder)
        {
            return Ok(self.chosen_for_trial(among, due, trial));
        }
        let is_last_resort = !members.at(at).health.view().class().is_usable();
        if is_last_resort
            && may_test()
            && let Ok(trial) = claim_any(TrialAmong::DownByCheck)
        {
            return Ok(trial);
        }
        Ok(chosen)
    }

    /// The member at which the visitor is kept. `None` if it is not kept at any, or its member
    /// may not be used or was tried before.
    fn member_of_visitor(
        &self,
        among: &MemberStates,
        input: &ChoiceInput<'_>,
        recorder: &Recorder,
    ) -> Option<usize> {
        let sticky = self.pool.sticky.as_ref()?;
        if !input.tried.is_empty() {
            return None;
        }
        let members = &among.members;
        let may_be_used = |at: &usize| members.at(*at).health.view().class().keeps_visitors();
        let token = input.intent.affinity.sticky;
        let at = token.and_then(|token| sticky.position(self.pool.name(), token, members));
        let kept = at.filter(may_be_used);
        let outcome = match (token, kept) {
            (None, _) => StickyOutcome::New,
            (Some(_), Some(_)) => StickyOutcome::Kept,
            (Some(_), None) => StickyOutcome::Moved,
        };
        recorder.count_labelled(Metric::UpstreamSticky, outcome.index());
        kept
    }

    fn pick(
        &self,
        among: &MemberStates,
        input: &ChoiceInput<'_>,
        admission: Admission,
        places: &Places<'_>,
        trial_due: &Cell<Option<usize>>,
    ) -> Option<usize> {
        let settings = self.pool.settings();
        let PoolSettings { balance, hash_balance_factor, .. } = *settings;
        let Affinity { point, hash, .. } = input.intent.affinity;
        let facts = MemberFacts {
            among,
            settings,
            tried: input.tried,
            admission,
            // By its hash, a key moves to a member in its slow start once, not back and forth.
            ramp_dice: match balance {
                Balance::Hash => (hash >> 48) as u16,
                _ => self.dice.below(1 << 16) as u16,
            },
            places,
            trial_due,
        };
        among.members.tiers().order(point).find_map(|(at, tier)| {
            if !input.tried.is_empty()
                && let Some(proven) = proven(tier, &facts)
            {
                return Some(proven);
            }
            let draw = Draw {
                balance,
                turn: &among.turns[at],
                dice: &self.dice,
                hash,
                factor_percent: hash_balance_factor,
            };
            balance::pick(tier, &draw, &facts)
        })
    }

    /// The member at this position, which has counted the exchange if the balance needs it.
    fn chosen(
        &self,
        among: &MemberStates,
        at: usize,
        slot: Option<Box<ConnectionSlot>>,
        trial: Option<Trial>,
        is_timed: bool,
    ) -> Chosen {
        let settings = self.pool.settings();
        let member = among.states[at].clone();
        let in_flight = settings.counts_in_flight().then(|| {
            let queue = (settings.queue.length > 0).then(|| self.pool.queue.clone());
            InFlight::counted(&member, is_timed && settings.balance == Balance::PeakEwma, queue)
        });
        let epoch = member.member.health.view().epoch();
        let (in_flight, slot) = (Cell::new(in_flight), Cell::new(slot));
        Chosen { member, epoch, trial: trial.map(Rc::new), in_flight, slot }
    }

    /// A member whose trial this request is. Its latency says nothing yet.
    fn chosen_for_trial(&self, among: &MemberStates, at: usize, trial: Trial) -> Chosen {
        if self.pool.settings().counts_in_flight() {
            among.members.at(at).load.enter(u32::MAX);
        }
        self.chosen(among, at, None, Some(trial), false)
    }

    /// Notes that the member failed an exchange, so that it does not look fast.
    pub(in crate::upstream) fn note_failure(&self, member: &MemberState) {
        let settings = self.pool.settings();
        if settings.balance != Balance::PeakEwma {
            return;
        }
        let among = self.members.borrow();
        let expected = |it: &Arc<Member>| it.load.latency().expected(monotonic_ms());
        let mean = balance::mean_of(among.members.iter().filter_map(expected));
        let micros = load::failure_micros(mean);
        member.member.load.update(|latency| latency.at_least(micros, monotonic_ms()));
    }
}

/// The member of the tier that gave a good response last: a request that another one has failed must
/// not be sent to a member that fails too. Members of weight 0 are not considered.
fn proven(tier: &Tier, facts: &MemberFacts<'_>) -> Option<usize> {
    let last_good_ms = |at: &usize| facts.among.states[*at].last_good_ms.get();
    let positions = tier.members.iter().map(|at| usize::from(*at));
    let is_known = |at: &usize| facts.weight(*at) > 0 && last_good_ms(at) > 0 && facts.is_up(*at);
    let latest = positions.filter(is_known).max_by_key(last_good_ms)?;
    facts.enter(latest, u32::MAX).then_some(latest)
}

/// The members that a choice admits; each is asked of all tiers before the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// Those that are up, and of those in their slow start a growing share.
    Share,
    /// Those that are up or in their slow start.
    Usable,
    /// Those that are ejected because of faulty responses.
    Ejected,
}

/// The members as the balance sees them: the source of [`Facts`].
struct MemberFacts<'a> {
    among: &'a MemberStates,
    settings: &'a PoolSettings,
    tried: &'a [u64],
    admission: Admission,
    /// Decides about members in their slow start, alike for each look at one.
    ramp_dice: u16,
    places: &'a Places<'a>,
    /// Receives the position of a member that is passed over and whose trial is due.
    trial_due: &'a Cell<Option<usize>>,
}

impl MemberFacts<'_> {
    fn member(&self, at: usize) -> &Member {
        self.among.members.at(at)
    }

    fn admits(&self, at: usize, view: View) -> bool {
        match (self.admission, view.class()) {
            (Admission::Share | Admission::Usable, HealthClass::Up)
            | (Admission::Usable, HealthClass::Ramping)
            | (Admission::Ejected, HealthClass::Ejected) => true,
            (Admission::Share, HealthClass::Ramping) => {
                let slow_start_ms = whole_ms(self.settings.health.slow_start);
                view.accepts(monotonic_ms(), slow_start_ms, self.ramp_dice)
            }
            (Admission::Share, HealthClass::Ejected | HealthClass::Down) => {
                if view.is_trial_due(monotonic_ms()) {
                    self.trial_due.set(Some(at));
                }
                false
            }
            _ => false,
        }
    }
}

impl Facts for MemberFacts<'_> {
    fn is_up(&self, at: usize) -> bool {
        let member = self.member(at);
        !self.tried.contains(&member.id)
            && self.admits(at, member.health.view())
            && self.places.has_one(at)
    }

    fn enter(&self, at: usize, in_flight_max: u32) -> bool {
        self.is_up(at) && self.places.take(at, in_flight_max)
    }

    fn weight(&self, at: usize) -> u16 {
        self.among.members.weight(at)
    }

    fn identity(&self, at: usize) -> u64 {
        self.member(at).hash
    }

    fn in_flight(&self, at: usize) -> u32 {
        self.member(at).load.in_flight()
    }

    fn latency(&self, at: usize) -> Option<f32> {
        self.member(at).load.latency().expected(monotonic_ms())
    }
}
