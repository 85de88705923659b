//! Shares, costs and bounds of the balances, over members that are no more than their facts.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::super::choice::balance::{Dice, Draw, Facts, pick, turns};
use super::super::choice::order::Tiers;
use super::super::load::PeakLatency;
use super::super::settings::{Balance, Origin, Policy, PoolSettings};
use crate::rendezvous::{hash, mix};

/// Members with these facts, of which `up` says whether they accept.
struct Fake {
    weights: Vec<u16>,
    up: Vec<bool>,
    in_flight: RefCell<Vec<u32>>,
    latency: RefCell<Vec<PeakLatency>>,
    now_ms: Cell<u64>,
    tiers: Tiers,
    turn: Cell<usize>,
    dice: Dice,
}

impl Fake {
    fn new(weights: &[u16]) -> Self {
        let origin = |weight: &u16| Origin { weight: *weight, ..Origin::http("o", 80) };
        let origins: Vec<Origin> = weights.iter().map(origin).collect();
        Self {
            weights: weights.to_vec(),
            up: vec![true; weights.len()],
            in_flight: RefCell::new(vec![0; weights.len()]),
            latency: RefCell::new(vec![PeakLatency::default(); weights.len()]),
            now_ms: Cell::new(0),
            tiers: Tiers::new(&origins, Policy::Failover, None),
            turn: Cell::new(0),
            dice: Dice::new(7),
        }
    }

    fn without(mut self, down: usize) -> Self {
        self.up[down] = false;
        self
    }

    /// One that counts what is in flight.
    fn pick(&self, balance: Balance, hash: u64, factor_percent: u32) -> Option<usize> {
        let draw = Draw { balance, turn: &self.turn, dice: &self.dice, hash, factor_percent };
        let (_, tier) = self.tiers.order(None).next().expect("a tier");
        pick(tier, &draw, self)
    }

    fn picks(&self, balance: Balance, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.pick(balance, 0, 0).expect("one is up")).collect()
    }
}

impl Facts for Fake {
    fn is_up(&self, at: usize) -> bool {
        self.up[at]
    }
    fn enter(&self, at: usize, in_flight_max: u32) -> bool {
        let count = &mut self.in_flight.borrow_mut()[at];
        let enters = self.up[at] && *count < in_flight_max;
        *count += u32::from(enters);
        enters
    }
    fn weight(&self, at: usize) -> u16 {
        self.weights[at]
    }
    fn identity(&self, at: usize) -> u64 {
        hash(format!("http://o{at}:80").as_bytes())
    }
    fn in_flight(&self, at: usize) -> u32 {
        self.in_flight.borrow()[at]
    }
    fn latency(&self, at: usize) -> Option<f32> {
        self.latency.borrow()[at].expected(self.now_ms.get())
    }
}

fn counts(picks: impl IntoIterator<Item = usize>, members: usize) -> Vec<usize> {
    let mut counts = vec![0; members];
    picks.into_iter().for_each(|at| counts[at] += 1);
    counts
}

#[test]
fn turns_are_spread_by_weight() {
    let check = |weights: &[u16], expected: &[u16]| {
        let members: Vec<u16> = (0..weights.len() as u16).collect();
        assert_eq!(*turns(&members, |at| weights[usize::from(at)]), *expected);
    };
    check(&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]);
    check(&[100, 100], &[0, 1]);
    check(&[0, 0], &[0, 1]);
}

#[test]
fn a_declined_turn_is_shared_by_all_others_in_their_ratio() {
    assert_eq!(Fake::new(&[1, 1, 1]).without(1).picks(Balance::RoundRobin, 4), [0, 2, 0, 2]);
    let picks = Fake::new(&[3, 2, 1]).without(0).picks(Balance::RoundRobin, 300);
    assert_eq!(counts(picks, 3), [0, 200, 100]);
    let none = Fake::new(&[1, 1]).without(0).without(1);
    assert_eq!(none.pick(Balance::RoundRobin, 0, 0), None);
}

#[test]
fn shares_over_two_cores_follow_the_weights_wherever_their_turns_start() {
    let weights = [5, 3, 1, 1];
    for starts in [[0, 0], [3, 4], [9, 1]] {
        let mut both = vec![0; weights.len()];
        for start in starts {
            let core = Fake::new(&weights);
            core.turn.set(start);
            let picks = counts(core.picks(Balance::RoundRobin, 50_000), weights.len());
            both.iter_mut().zip(picks).for_each(|(sum, count)| *sum += count);
        }
        for (count, weight) in both.iter().zip(weights) {
            let expected = f64::from(weight) / 10.0 * 100_000.0;
            let error = (*count as f64 - expected).abs() / expected;
            assert!(error < 0.02, "{both:?}");
        }
    }
}

#[test]
fn weight_zero_is_the_last_resort_for_every_balance() {
    for balance in
        [Balance::RoundRobin, Balance::LeastConnections, Balance::PeakEwma, Balance::Hash]
    {
        assert_eq!(Fake::new(&[0, 1]).picks(balance, 3), [1, 1, 1], "{balance:?}");
        assert_eq!(Fake::new(&[0, 1]).without(1).picks(balance, 2), [0, 0], "{balance:?}");
    }
}

#[test]
fn the_least_busy_for_its_weight_is_chosen() {
    let check = |weights: &[u16], in_flight: &[u32], expected: usize| {
        let fake = Fake::new(weights);
        *fake.in_flight.borrow_mut() = in_flight.to_vec();
        assert_eq!(fake.pick(Balance::LeastConnections, 0, 0), Some(expected));
    };
    check(&[1, 4], &[1, 2], 1);
    check(&[1, 4], &[0, 9], 0);
    check(&[1, 1, 1], &[2, 1, 2], 1);
    // Equal ones take turns.
    let equal = Fake::new(&[1, 1, 1]);
    assert_eq!(equal.picks(Balance::LeastConnections, 3), [0, 1, 2]);
}

#[test]
fn of_many_members_two_random_ones_are_compared() {
    let fake = Fake::new(&[1; 100]);
    let picks = counts(fake.picks(Balance::LeastConnections, 1_000), 100);
    let (least, most) = (picks.iter().min(), picks.iter().max());
    assert!(least >= Some(&6) && most <= Some(&13), "{picks:?}");
}

#[test]
fn a_lost_member_moves_only_its_own_keys() {
    const KEYS: u64 = 20_000;
    for members in [3, 5, 20] {
        let weights = vec![1; members];
        let (all, fewer) = (Fake::new(&weights), Fake::new(&weights).without(1));
        let (mut moved, mut own) = (0, 0);
        for key in 0..KEYS {
            let before = all.pick(Balance::Hash, mix(key), 0).expect("all are up");
            let after = fewer.pick(Balance::Hash, mix(key), 0).expect("most are up");
            moved += u64::from(before != after);
            own += u64::from(before == 1);
        }
        assert_eq!(moved, own, "other keys stay");
        let share = moved as f64 / KEYS as f64;
        assert!(share <= 1.2 / members as f64, "{share} of the keys moved");
    }
}

#[test]
fn hash_shares_follow_the_weights() {
    let fake = Fake::new(&[1, 2, 1]);
    let picks = (0..40_000).filter_map(|key| fake.pick(Balance::Hash, mix(key), 0));
    let picks = counts(picks, 3);
    assert!((19_400..20_600).contains(&picks[1]), "{picks:?}");
}

#[test]
fn no_member_has_more_than_its_bound_of_the_load() {
    let members = 8;
    let fake = Fake::new(&vec![1; members]);
    let mut running = std::collections::VecDeque::new();
    for round in 0..20_000_u64 {
        // Three of four requests are for one of two keys.
        let key = if round % 4 == 0 { round } else { round % 2 };
        let at = fake.pick(Balance::Hash, mix(key), 125).expect("all are up");
        running.push_back(at);
        let mean = running.len() as f64 / members as f64;
        let most = *fake.in_flight.borrow().iter().max().expect("members");
        assert!(f64::from(most) <= (1.25 * mean).ceil(), "{most} in flight, mean {mean}");
        if running.len() == 400 {
            let done = running.pop_front().expect("one");
            fake.in_flight.borrow_mut()[done] -= 1;
        }
    }
}

#[test]
fn without_a_bound_a_key_stays_however_busy_its_member_is() {
    let fake = Fake::new(&[1; 4]);
    let picks: Vec<_> = (0..50).map(|_| fake.pick(Balance::Hash, 99, 0)).collect();
    assert!(picks.iter().all(|at| *at == picks[0]));
    let picks: Vec<_> = (0..50).map(|_| fake.pick(Balance::Hash, 99, 125)).collect();
    assert!(picks.iter().any(|at| *at != picks[0]));
}

/// Simulated time: `in_flight` requests are always running, each member has its own latency.
/// Returns the share of each member.
fn simulate(latencies_ms: &[u64], down: &[usize], in_flight: usize) -> Vec<f64> {
    const REQUESTS: usize = 20_000;
    let mut fake = Fake::new(&vec![1; latencies_ms.len()]);
    down.iter().for_each(|at| fake.up[*at] = false);
    let mut running: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
    let mut shares: BTreeMap<usize, usize> = BTreeMap::new();
    for _ in 0..REQUESTS {
        if running.len() == in_flight {
            let Reverse((end_ms, at, began_ms)) = running.pop().expect("running");
            fake.now_ms.set(end_ms);
            fake.in_flight.borrow_mut()[at] -= 1;
            let latency = &mut fake.latency.borrow_mut()[at];
            *latency = latency.measured((end_ms - began_ms) as f32 * 1e3, end_ms);
        }
        let at = fake.pick(Balance::PeakEwma, 0, 0).expect("one is up");
        *shares.entry(at).or_default() += 1;
        let now_ms = fake.now_ms.get();
        running.push(Reverse((now_ms + latencies_ms[at], at, now_ms)));
    }
    (0..latencies_ms.len())
        .map(|at| shares.get(&at).copied().unwrap_or(0) as f64 / REQUESTS as f64)
        .collect()
}

#[test]
fn peak_ewma_gives_a_ten_times_slower_member_few_requests() {
    let shares = simulate(&[10, 10, 10, 10, 100], &[], 32);
    assert!(shares[4] > 0.0 && shares[4] <= 0.03, "{shares:?}");
    assert!(shares[..4].iter().all(|share| *share > 0.2), "{shares:?}");
}

#[test]
fn a_member_that_is_down_does_not_send_its_share_to_a_slow_one() {
    let shares = simulate(&[10, 10, 10, 10, 100], &[0], 32);
    assert!(shares[0] == 0.0 && shares[4] <= 0.03, "{shares:?}");
}

#[test]
fn each_of_a_thousand_members_has_its_turn() {
    let weights = vec![1; PoolSettings::MEMBERS_MAX];
    let picks = counts(Fake::new(&weights).picks(Balance::RoundRobin, 1024), 1024);
    assert_eq!(picks, weights.iter().map(|_| 1).collect::<Vec<_>>());
    let mut last = Fake::new(&weights);
    last.up = vec![false; 1024];
    last.up[1023] = true;
    assert_eq!(last.picks(Balance::RoundRobin, 1), [1023]);
}
