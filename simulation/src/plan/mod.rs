//! The plan of a run: every request, change, purge and fault with its time, made from the
//! scenario and the seed before anything starts. One seed gives one plan.

pub mod fault;
pub mod names;
pub mod object;
pub mod place;
pub mod scenario;
pub mod seed;

use crate::client::Protocol;
use crate::journal::{Micros, SECOND, Scope};
use crate::plan::object::{Catalog, Class, HOSTS, Object, ObjectId};
use crate::plan::place::COUNTRIES;
use crate::plan::scenario::{Load, Scenario, Scopes};
use crate::plan::seed::{Random, Zipf};

/// One request of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Which client; from 1.
    pub client: u32,
    /// The client's country, as an index into the list of countries.
    pub country: usize,
    /// The requested object.
    pub object: ObjectId,
    /// First and last byte, inclusive.
    pub range: Option<(u64, u64)>,
    /// How it talks.
    pub protocol: Protocol,
    /// Chooses among the nodes that are ready then.
    pub pick: u64,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A client asks.
    Request(Request),
    /// The object changes at its origin.
    Change(ObjectId),
    /// A purge through one of the nodes.
    Purge {
        /// The purged scope.
        scope: Scope,
        /// Whether stale answers stay allowed.
        soft: bool,
        /// Chooses among the nodes that are ready then.
        pick: u64,
    },
    /// The fault at this position of the scenario begins.
    Break(usize),
    /// The fault ends.
    Mend(usize),
}

/// Every step of a run in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// When, and what.
    pub steps: Vec<(Micros, Step)>,
    /// The run's length.
    pub duration: Micros,
}

impl Plan {
    /// The plan of this scenario with this seed, `duration_s` long.
    pub fn new(scenario: &Scenario, catalog: &Catalog, seed: u64, duration_s: u64) -> Plan {
        let duration = duration_s * SECOND;
        let mut steps = Vec::new();
        requests(&mut steps, scenario, catalog, seed, duration);
        changes(&mut steps, &scenario.load, catalog, seed, duration);
        purges(&mut steps, scenario, catalog, seed, duration);
        for (at, fault) in scenario.fault.iter().enumerate() {
            steps.push((percent(fault.at, duration), Step::Break(at)));
            steps.push((percent(fault.at + fault.r#for, duration), Step::Mend(at)));
        }
        steps.sort_by_key(|(at, _)| *at);
        Plan { steps, duration }
    }

    /// How many requests it has.
    pub fn requests(&self) -> usize {
        self.steps.iter().filter(|(_, step)| matches!(step, Step::Request(_))).count()
    }

    /// A short name of the whole plan: equal plans have equal names.
    pub fn fingerprint(&self) -> String {
        let text = format!("{:?}", self.steps);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{hash:016x}")
    }
}

fn percent(percent: f64, of: Micros) -> Micros {
    (percent.clamp(0.0, 100.0) / 100.0 * of as f64) as Micros
}

fn requests(
    steps: &mut Vec<(Micros, Step)>,
    scenario: &Scenario,
    catalog: &Catalog,
    seed: u64,
    duration: Micros,
) {
    let load = &scenario.load;
    let popularity = Zipf::new(catalog.objects.len(), load.skew);
    let mut random = Random::for_purpose(seed, "requests");
    arrivals(&mut random, (0, duration), load.requests_per_s, |at, random| {
        let object = &catalog.objects[popularity.draw(random)];
        steps.push((at, Step::Request(request(load, object, random))));
    });
    for (number, flash) in load.flash.iter().enumerate() {
        let mut random = Random::for_purpose(seed, &format!("flash {number}"));
        let span = (percent(flash.at, duration), percent(flash.at + flash.r#for, duration));
        // The crowd wants what nobody has asked for yet: the unpopular end of the catalog.
        let wanted: Vec<&Object> =
            catalog.objects.iter().rev().filter(|object| object.class == Class::Static).collect();
        let wanted = &wanted[..wanted.len().min(flash.objects.max(1) as usize)];
        arrivals(&mut random, span, flash.requests_per_s, |at, random| {
            let Some(object) = wanted.get(random.below(wanted.len() as u64) as usize) else {
                return;
            };
            steps.push((at, Step::Request(request(load, object, random))));
        });
    }
}

fn request(load: &Load, object: &Object, random: &mut Random) -> Request {
    let range = (object.class == Class::Large && random.chance(load.ranges))
        .then(|| range_of(object, random));
    let protocol = match random.chance(load.tls) {
        false => Protocol::Plain,
        true if random.chance(0.5) => Protocol::Tls1,
        true => Protocol::Tls2,
    };
    let client = 1 + random.below(u64::from(load.clients.max(1))) as u32;
    // A client stays in its country.
    let country = country_of(&mut Random::new(u64::from(client)));
    Request { client, country, object: object.id, range, protocol, pick: random.bits() }
}

fn country_of(random: &mut Random) -> usize {
    let total: u32 = COUNTRIES.iter().map(|country| country.weight).sum();
    let mut at = random.below(u64::from(total)) as u32;
    COUNTRIES
        .iter()
        .position(|country| match at.checked_sub(country.weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
        .unwrap_or(0)
}

/// A range that holds at least one whole block, wherever it starts.
fn range_of(object: &Object, random: &mut Random) -> (u64, u64) {
    let length = 256 + random.log_uniform(1, object.bytes / 2);
    let from = random.below(object.bytes - length.min(object.bytes - 1));
    (from, (from + length).min(object.bytes) - 1)
}

fn changes(
    steps: &mut Vec<(Micros, Step)>,
    load: &Load,
    catalog: &Catalog,
    seed: u64,
    duration: Micros,
) {
    let popularity = Zipf::new(catalog.objects.len(), load.skew);
    let mut random = Random::for_purpose(seed, "changes");
    arrivals(&mut random, (0, duration), load.changes_per_s, |at, random| {
        steps.push((at, Step::Change(popularity.draw(random) as ObjectId)));
    });
}

fn purges(
    steps: &mut Vec<(Micros, Step)>,
    scenario: &Scenario,
    catalog: &Catalog,
    seed: u64,
    duration: Micros,
) {
    let purges = &scenario.purges;
    let popularity = Zipf::new(catalog.objects.len(), scenario.load.skew);
    let mut random = Random::for_purpose(seed, "purges");
    let mut purge = |at, random: &mut Random| {
        let object = &catalog.objects[popularity.draw(random)];
        let scope = scope(&purges.scopes, object, random);
        let soft = random.chance(purges.soft);
        // What is purged has changed: that is why it is purged.
        if let Scope::Object(id) = scope {
            steps.push((at, Step::Change(id)));
        }
        steps.push((at, Step::Purge { scope, soft, pick: random.bits() }));
    };
    // The last tenth is for receipts to arrive.
    arrivals(&mut random, (0, percent(90.0, duration)), purges.per_s, &mut purge);
    for storm in &purges.storm {
        let span = (percent(storm.at, duration), percent(storm.at + storm.r#for, duration));
        arrivals(&mut random, span, storm.per_s, &mut purge);
    }
}

fn scope(scopes: &Scopes, object: &Object, random: &mut Random) -> Scope {
    let weights = [scopes.object, scopes.tag, scopes.prefix, scopes.site, scopes.all];
    let mut at = random.below(weights.iter().copied().map(u64::from).sum());
    let choice = weights.iter().position(|weight| match at.checked_sub(u64::from(*weight)) {
        Some(rest) => {
            at = rest;
            false
        }
        None => true,
    });
    match choice {
        Some(1) => Scope::Group(object.group),
        Some(2) => Scope::Class(object.class),
        Some(3) => Scope::Site(HOSTS[random.below(HOSTS.len() as u64) as usize]),
        Some(4) => Scope::All,
        _ => Scope::Object(object.id),
    }
}

/// A Poisson process between two moments.
fn arrivals(
    random: &mut Random,
    (from, to): (Micros, Micros),
    per_s: f64,
    mut arrive: impl FnMut(Micros, &mut Random),
) {
    if per_s <= 0.0 {
        return;
    }
    let mut at = from as f64;
    loop {
        at += random.exponential(SECOND as f64 / per_s);
        if at >= to as f64 {
            return;
        }
        arrive(at as Micros, random);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::scenario::BUILT_IN;

    fn plan(text: &str, seed: u64) -> Plan {
        let scenario = Scenario::read(text).expect("built in");
        let catalog = Catalog::new(seed, scenario.load.objects, &scenario.load.mix);
        Plan::new(&scenario, &catalog, seed, 20)
    }

    #[test]
    fn the_same_seed_gives_the_same_plan_of_load_and_faults() {
        for (name, text) in BUILT_IN {
            assert_eq!(plan(text, 7), plan(text, 7), "{name}");
            assert_eq!(plan(text, 7).fingerprint(), plan(text, 7).fingerprint());
            assert_ne!(plan(text, 7).fingerprint(), plan(text, 8).fingerprint(), "{name}");
        }
    }

    #[test]
    fn steps_are_in_order_and_as_many_as_the_rates_say() {
        let text = "about = ''\nduration_s = 1\n[load]\nrequests_per_s = 100\n";
        let plan = plan(text, 1);
        assert!(plan.steps.is_sorted_by_key(|(at, _)| *at));
        assert!((1800..2200).contains(&plan.requests()), "{}", plan.requests());
    }

    #[test]
    fn a_client_stays_in_its_country_and_ranges_stay_in_their_object() {
        let scenario = Scenario::read("about = ''\nduration_s = 1\n").expect("defaults");
        let catalog = Catalog::new(1, 600, &scenario.load.mix);
        let mut homes = std::collections::HashMap::new();
        for (_, step) in Plan::new(&scenario, &catalog, 1, 60).steps {
            let Step::Request(request) = step else { continue };
            let home = homes.entry(request.client).or_insert(request.country);
            assert_eq!(*home, request.country);
            if let Some((from, to)) = request.range {
                let object = catalog.get(request.object);
                assert!(from + 127 <= to && to < object.bytes, "{from}-{to} of {}", object.bytes);
            }
        }
    }
}
