//! Chooses the member for an attempt: the policy orders the tiers, the balance picks in the first
//! one that has a usable member.

use std::cell::Cell;
use std::rc::Rc;

use super::balance::{self, Draw, Facts};
use super::deadline::monotonic_ms;
use super::exchange::{Affinity, Intent};
use super::in_flight::InFlight;
use super::load;
use super::members::Member;
use super::pool_state::{MemberState, MemberStates, PoolState};
use super::settings::{Balance, PoolSettings};
use crate::body::{Body, BodySource};

/// What a choice needs of a request.
pub(super) struct ChoiceInput<'a> {
    affinity: &'a Affinity,
    /// Ids of the members that it was sent to before.
    tried: &'a [u64],
    /// Whether the time to the head of the response is the member's: not if the client streams
    /// the request, or the exchange is a call or an upgrade.
    is_timed: bool,
}

/// A member for an attempt, which is counted there until dropped if the balance needs that.
pub(super) struct Chosen {
    pub(super) member: Rc<MemberState>,
    pub(super) in_flight: Cell<Option<InFlight>>,
}

impl<'a> ChoiceInput<'a> {
    pub(super) fn new(intent: &'a Intent, tried: &'a [u64], body: &Body) -> Self {
        let is_timed = !intent.is_call && intent.upgrade.is_none() && body.is_end_stream();
        Self { affinity: &intent.affinity, tried, is_timed }
    }
}

impl PoolState {
    /// The member for the next attempt: the balance picks one in the first tier, in the order of
    /// the policy, that has a usable one.
    pub(super) fn choose(&self, among: &MemberStates, input: &ChoiceInput<'_>) -> Option<Chosen> {
        self.turn.set(self.turn.get().wrapping_add(1));
        let settings = self.pool.settings();
        let facts = MemberFacts { among, settings, tried: input.tried, includes_down: false };
        let anyway = || {
            let facts = MemberFacts { includes_down: true, ..facts };
            settings.health.try_when_all_down.then(|| self.pick(&facts, input)).flatten()
        };
        let at = self.pick(&facts, input).or_else(anyway)?;
        let member = among.states[at].clone();
        let in_flight = settings.counts_in_flight().then(|| {
            let is_timed = input.is_timed && settings.balance == Balance::PeakEwma;
            InFlight::counted(&member, is_timed)
        });
        Some(Chosen { member, in_flight: Cell::new(in_flight) })
    }

    fn pick(&self, facts: &MemberFacts<'_>, input: &ChoiceInput<'_>) -> Option<usize> {
        let PoolSettings { balance, hash_balance_factor, .. } = *self.pool.settings();
        let Affinity { point, hash } = *input.affinity;
        facts.among.members.tiers().order(point).find_map(|(at, tier)| {
            let draw = Draw {
                balance,
                turn: &facts.among.turns[at],
                dice: &self.dice,
                hash,
                factor_percent: hash_balance_factor,
            };
            balance::pick(tier, &draw, facts)
        })
    }

    /// Notes that the member failed an exchange, so that it does not look fast.
    pub(super) fn note_failure(&self, member: &MemberState) {
        let settings = self.pool.settings();
        if settings.balance != Balance::PeakEwma {
            return;
        }
        let among = self.members.borrow();
        let facts = MemberFacts { among: &among, settings, tried: &[], includes_down: true };
        let mean = balance::mean_latency(0..among.members.len(), &facts);
        let micros = load::failure_micros(mean);
        member.member.load.update(|latency| latency.at_least(micros, monotonic_ms()));
    }
}

/// What the balance asks of the members.
#[derive(Clone, Copy)]
struct MemberFacts<'a> {
    among: &'a MemberStates,
    settings: &'a PoolSettings,
    tried: &'a [u64],
    /// Whether members that are down are taken as if they were up.
    includes_down: bool,
}

impl MemberFacts<'_> {
    fn member(&self, at: usize) -> &Member {
        self.among.members.at(at)
    }

    fn is_tried(&self, at: usize) -> bool {
        self.tried.contains(&self.member(at).id)
    }
}

impl Facts for MemberFacts<'_> {
    fn is_up(&self, at: usize) -> bool {
        !self.is_tried(at) && (self.includes_down || !self.member(at).health.is_down())
    }

    fn enter(&self, at: usize, in_flight_max: u32) -> bool {
        let Member { health, load, .. } = self.member(at);
        let admits = || self.includes_down || health.admits(monotonic_ms, &self.settings.health);
        let counts = self.settings.counts_in_flight();
        !self.is_tried(at) && admits() && (!counts || load.enter(in_flight_max))
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
