//! Chooses one member of a tier. Pure: what is known of the members comes from [`Facts`].
//!
//! - Round robin draws turns from a schedule. A member that declines gives its turn to the next
//!   turn, not to its neighbour, so that the others keep their ratio.
//! - Least connections and peak EWMA compare costs: exchanges in flight for the weight, times the
//!   expected latency. Peak EWMA, and least connections from [`SCAN_MAX`] members on, compare two
//!   random members: comparing all costs more, and sends bursts to one.
//! - Hash is weighted rendezvous hashing with bounded load: a member that has more than its share
//!   of the exchanges in flight is passed over.

use std::cell::Cell;

use super::super::settings::{Balance, PoolSettings};
use super::order::Tier;
use crate::rendezvous::{LoadBound, mix, score};

/// The facts that a choice depends on besides the members.
pub(in crate::upstream) struct Draw<'a> {
    pub(in crate::upstream) balance: Balance,
    /// The next turn in this tier.
    pub(in crate::upstream) turn: &'a Cell<usize>,
    pub(in crate::upstream) dice: &'a Dice,
    /// The request's hash, for [`Balance::Hash`].
    pub(in crate::upstream) hash: u64,
    /// The most that a member may have of the mean load, in percent, for [`Balance::Hash`]; 0 is
    /// no bound.
    pub(in crate::upstream) factor_percent: u32,
}

/// The facts about the members, by their positions.
pub(in crate::upstream) trait Facts {
    /// Whether the member takes this request.
    fn is_up(&self, at: usize) -> bool;
    /// Gives the request to the member: false if it is not up, or has `in_flight_max` exchanges.
    fn enter(&self, at: usize, in_flight_max: u32) -> bool;
    fn weight(&self, at: usize) -> u16;
    /// A hash of the member's name.
    fn identity(&self, at: usize) -> u64;
    /// Exchanges in flight, over all cores.
    fn in_flight(&self, at: usize) -> u32;
    /// The expected latency in microseconds, if it was measured.
    fn latency(&self, at: usize) -> Option<f32>;
}

/// The member of the tier that gets the request. `None` if all decline. Members of weight 0 are
/// asked last.
pub(in crate::upstream) fn pick(tier: &Tier, draw: &Draw<'_>, facts: &impl Facts) -> Option<usize> {
    if let [only] = *tier.members {
        let only = usize::from(only);
        return facts.enter(only, u32::MAX).then_some(only);
    }
    let weighted = match draw.balance {
        Balance::RoundRobin => in_turn(tier, draw.turn, facts),
        Balance::LeastConnections => {
            let busy = |at| (facts.in_flight(at) as f32 + 1.0) / f32::from(facts.weight(at));
            if tier.members.len() < SCAN_MAX {
                cheapest(tier, draw.turn, facts, busy)
            } else {
                cheaper_of_two(tier, draw, facts, busy)
            }
        }
        Balance::PeakEwma => {
            let mean = Cell::new(None);
            cheaper_of_two(tier, draw, facts, |at| {
                let latency = facts.latency(at).unwrap_or_else(|| {
                    mean.get().unwrap_or_else(|| {
                        let found = mean_of(positions(tier).filter_map(|at| facts.latency(at)));
                        let found = found.unwrap_or(1.0);
                        mean.set(Some(found));
                        found
                    })
                });
                latency * (facts.in_flight(at) as f32 + 1.0) / f32::from(facts.weight(at))
            })
        }
        Balance::Hash => by_hash(tier, draw, facts),
    };
    let is_spare = |at: &usize| facts.weight(*at) == 0;
    weighted.or_else(|| positions(tier).filter(is_spare).find(|at| facts.enter(*at, u32::MAX)))
}

/// The mean of the latencies that were measured; `None` if none was.
pub(in crate::upstream) fn mean_of(latencies: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, count) =
        latencies.fold((0.0, 0.0), |(sum, count), latency| (sum + latency, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

fn positions(tier: &Tier) -> impl Iterator<Item = usize> {
    tier.members.iter().map(|at| usize::from(*at))
}

/// Draws turns until a member accepts, each turn of the schedule once at most.
fn in_turn(tier: &Tier, turn: &Cell<usize>, facts: &impl Facts) -> Option<usize> {
    let mut declined = None;
    for _ in 0..tier.turns.len() {
        let at = usize::from(tier.turns[next(turn, tier.turns.len())]);
        if declined != Some(at) && facts.weight(at) > 0 && facts.enter(at, u32::MAX) {
            return Some(at);
        }
        declined = Some(at);
    }
    None
}

/// Takes the next turn of `count`.
fn next(turn: &Cell<usize>, count: usize) -> usize {
    let now = turn.get() % count;
    turn.set(now + 1);
    now
}

/// The member with the least cost. Of equal ones, the first from the turn on.
fn cheapest(
    tier: &Tier,
    turn: &Cell<usize>,
    facts: &impl Facts,
    cost: impl Fn(usize) -> f32,
) -> Option<usize> {
    let (before, from) = tier.members.split_at(next(turn, tier.members.len()));
    // A member can go down between the two looks at it; then the others are compared again.
    for _ in 0..tier.members.len() {
        let mut best: Option<(f32, usize)> = None;
        for at in from.iter().chain(before).map(|at| usize::from(*at)) {
            if facts.weight(at) == 0 || !facts.is_up(at) {
                continue;
            }
            let cost = cost(at);
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, at));
            }
        }
        let (_, at) = best?;
        if facts.enter(at, u32::MAX) {
            return Some(at);
        }
    }
    None
}

/// The cheaper one of two random members that are up.
fn cheaper_of_two(
    tier: &Tier,
    draw: &Draw<'_>,
    facts: &impl Facts,
    cost: impl Fn(usize) -> f32,
) -> Option<usize> {
    let mut first = None;
    for _ in 0..DRAWS_MAX {
        let at = usize::from(tier.members[draw.dice.below(tier.members.len())]);
        if first == Some(at) || facts.weight(at) == 0 || !facts.is_up(at) {
            continue;
        }
        let Some(other) = first else {
            first = Some(at);
            continue;
        };
        let cheaper = if cost(at) < cost(other) { at } else { other };
        if facts.enter(cheaper, u32::MAX) {
            return Some(cheaper);
        }
        first = None;
    }
    cheapest(tier, draw.turn, facts, cost)
}

/// The member with the highest score for the request's hash whose load is below its bound; if all
/// are at their bound, the one with the highest score.
fn by_hash(tier: &Tier, draw: &Draw<'_>, facts: &impl Facts) -> Option<usize> {
    // Another core can take the last place below the bound between the look and the entry.
    for _ in 0..tier.members.len() {
        let up = positions(tier).filter(|at| facts.is_up(*at));
        let loads = up.map(|at| (facts.in_flight(at), facts.weight(at)));
        let bound = LoadBound::of(loads, draw.factor_percent);
        let (mut best, mut best_full) = (Ranked::NONE, Ranked::NONE);
        for at in positions(tier) {
            let weight = facts.weight(at);
            if weight == 0 || !facts.is_up(at) {
                continue;
            }
            let score = score(draw.hash, facts.identity(at), weight);
            let rank = match bound.allows(facts.in_flight(at), weight) {
                true => &mut best,
                false => &mut best_full,
            };
            if score > rank.score {
                *rank = Ranked { score, at: Some(at) };
            }
        }
        let at = best.at.or(best_full.at)?;
        let max = if best.at.is_some() { bound.max(facts.weight(at)) } else { u32::MAX };
        if facts.enter(at, max) {
            return Some(at);
        }
    }
    None
}

#[derive(Clone, Copy)]
struct Ranked {
    score: f64,
    at: Option<usize>,
}

impl Ranked {
    const NONE: Self = Self { score: f64::NEG_INFINITY, at: None };
}

/// The schedule of round robin for these members: each as often as its weight says, spread evenly
/// (the smooth weighted round robin of nginx), scaled down to at most [`TURNS_MAX`]. Never empty.
pub(in crate::upstream) fn turns(members: &[u16], weight: impl Fn(u16) -> u16) -> Box<[u16]> {
    let weights: Vec<u16> = members.iter().map(|at| weight(*at)).collect();
    let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
    if total == 0 {
        return members.into();
    }
    let divisor = weights.iter().copied().filter(|weight| *weight > 0).reduce(gcd);
    let rounds = (total / divisor.map_or(1, usize::from)).clamp(1, TURNS_MAX);
    let mut credit = vec![0_i64; members.len()];
    (0..rounds)
        .map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += i64::from(*weight);
            }
            let next = (0..members.len())
                .filter(|at| weights[*at] > 0)
                .max_by_key(|at| (credit[*at], std::cmp::Reverse(*at)))
                .expect("the total weight is above zero");
            credit[next] -= total as i64;
            members[next]
        })
        .collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Random numbers of one core, for choices: fast and guessable (splitmix64).
pub(in crate::upstream) struct Dice(Cell<u64>);

impl Dice {
    pub(in crate::upstream) fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// A number below `bound`, which is below 2^32.
    pub(in crate::upstream) fn below(&self, bound: usize) -> usize {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        (((mix(state) >> 32) * bound as u64) >> 32) as usize
    }
}

/// Maximum length of the schedule. Cut to it, shares are right to about a tenth of a percent. No pool
/// has more origins, so that each can have a turn.
const TURNS_MAX: usize = PoolSettings::MEMBERS_MAX;
/// From this many members on, least connections compares two random ones.
const SCAN_MAX: usize = 8;
/// Random members that are looked at to find two that are up; then all are compared.
const DRAWS_MAX: usize = 8;
