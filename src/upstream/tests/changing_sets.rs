//! Shares and keys while the members of a pool change, over the pool itself and two cores.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::super::choice::ChoiceInput;
use super::super::connection::core::Core;
use super::super::exchange::deadline::Timers;
use super::replaced_members::replace_members;
use super::*;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::rendezvous::mix;

/// Cores that choose members of one pool.
struct Cores {
    pool: Arc<Pool>,
    cores: Vec<Rc<Core>>,
}

impl Cores {
    fn new(definition: &PoolDefinition, count: usize) -> Self {
        let metrics = Metrics::new(count);
        let background = tokio::runtime::Handle::current();
        let resolver = Resolver::new(DnsSettings::default(), background, metrics.background());
        let core = |at| {
            let (clock, recorder) = (Clock::system(), metrics.worker(at));
            Core::new(resolver.clone(), clock, recorder, Timers::start())
        };
        let pool = Pool::new(definition, None).expect("a good pool");
        Self { pool, cores: (0..count).map(core).collect() }
    }

    /// The port of the member that this core chooses for a request with this hash.
    fn choose(&self, core: usize, hash: u64) -> u16 {
        let core = &self.cores[core];
        let state = core.state(&self.pool);
        let members = core.members(&state);
        let affinity = Affinity { hash, ..Affinity::default() };
        let intent = Intent { affinity, ..Intent::default() };
        let input = ChoiceInput::new(&intent, &[], false);
        let chosen = state.choose(&members, &input, &core.recorder, || false);
        let Ok(chosen) = chosen else { panic!("no member") };
        chosen.member.member.port
    }

    /// Gives the pool these origins.
    fn replace(&self, origins: Vec<Origin>) {
        replace_members(&self.pool, &origins);
    }
}

/// Origins of these ports, each with its weight.
fn weighted(weights: &[(u16, u16)]) -> Vec<Origin> {
    let origin =
        |(port, weight): &(u16, u16)| Origin { weight: *weight, ..Origin::http("o", *port) };
    weights.iter().map(origin).collect()
}

#[tokio::test]
async fn shares_follow_the_weights_over_two_cores_while_members_come_and_go() {
    on_core(async {
        let steady = [(1, 5), (2, 3), (3, 1), (4, 1)];
        let more = [steady.as_slice(), &[(5, 2)]].concat();
        let cores = Cores::new(&PoolDefinition::new("test", weighted(&steady)), 2);
        let (mut counts, mut expected) = (HashMap::new(), HashMap::<u16, f64>::new());
        for phase in 0..200 {
            let weights = if phase % 2 == 0 { &more[..] } else { &steady[..] };
            cores.replace(weighted(weights));
            let sum: u16 = weights.iter().map(|(_, weight)| weight).sum();
            for (port, weight) in weights {
                *expected.entry(*port).or_default() += 500.0 * f64::from(*weight) / f64::from(sum);
            }
            for request in 0..500 {
                *counts.entry(cores.choose(request % 2, 0)).or_insert(0_u32) += 1;
            }
        }
        for (port, expected) in expected {
            let error = (f64::from(counts[&port]) - expected).abs() / expected;
            assert!(error < 0.02, "port {port}: {} of 100,000, not {expected}", counts[&port]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_moves_only_to_a_member_that_joins_or_from_one_that_leaves() {
    const KEYS: u64 = 20_000;
    on_core(async {
        let origins =
            |ports: std::ops::Range<u16>| ports.map(|port| Origin::http("o", port)).collect();
        let mut definition = PoolDefinition::new("test", origins(1..11));
        definition.settings.balance = Balance::Hash;
        definition.settings.hash_balance_factor = 0;
        let cores = Cores::new(&definition, 2);
        let choices =
            |core| -> Vec<u16> { (0..KEYS).map(|key| cores.choose(core, mix(key))).collect() };
        let ten = choices(0);
        assert_eq!(ten, choices(1), "every core chooses alike");
        let moved = |other: &[u16], changed: u16| {
            let pairs = ten.iter().zip(other).filter(|(one, other)| one != other);
            let moved: Vec<_> = pairs.collect();
            let of_changed = |(one, other): &(&u16, &u16)| **one == changed || **other == changed;
            assert!(moved.iter().all(of_changed), "keys move between members that stay");
            moved.len() as f64 / KEYS as f64
        };
        cores.replace(origins(1..12));
        let share = moved(&choices(0), 11);
        assert!((0.5 / 11.0..=1.2 / 11.0).contains(&share), "{share} move to the eleventh");
        cores.replace(origins(1..10));
        let share = moved(&choices(1), 10);
        assert!((0.5 / 10.0..=1.2 / 10.0).contains(&share), "{share} move from the tenth");
        cores.replace(origins(1..11));
        assert_eq!(ten, choices(0), "they come back");
    })
    .await;
}
