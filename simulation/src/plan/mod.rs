//! The plan of a run: every request, change, purge and fault with its time. It is computed from
//! the scenario and the seed before the fleet starts; the same seed gives the same plan.

pub mod fault;
pub mod names;
pub mod object;
pub mod place;
pub mod scenario;
pub mod seed;
pub mod tolerance;

use crate::client::Protocol;
use crate::journal::{Micros, SECOND, Scope};
use crate::plan::object::{Catalog, Class, HOSTS, Object, ObjectId};
use crate::plan::place::COUNTRIES;
use crate::plan::scenario::{Load, Scenario, Scopes};
use crate::plan::seed::{Random, Zipf};

/// One request of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The client's number, from 1.
    pub client: u32,
    /// The client's country, as an index of [`COUNTRIES`].
    pub country: usize,
    /// The requested object.
    pub object: ObjectId,
    /// First and last byte of the requested range, inclusive; `None` for the whole object.
    pub range: Option<(u64, u64)>,
    /// The protocol of the connection.
    pub protocol: Protocol,
    /// Whether the client accepts gzip; it checks the decoded content.
    pub accepts_gzip: bool,
    /// Random number that selects one of the nodes that are ready when the request is sent.
    pub pick: u64,
}

/// One action of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanStep {
    /// A client sends a request.
    Request(Request),
    /// The object gets a new version at its origin.
    Change(ObjectId),
    /// A purge is sent to the admin API of one node.
    Purge {
        /// The objects that the purge covers.
        scope: Scope,
        /// Whether the purge is soft: stale responses may still be served.
        soft: bool,
        /// Random number that selects one of the nodes that are ready when the purge is sent.
        pick: u64,
    },
    /// The fault at this index of the scenario begins.
    BeginFault(usize),
    /// The fault at this index of the scenario ends.
    EndFault(usize),
}

/// All steps of a run, ordered by time.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Each step with its time since the start of the load.
    pub steps: Vec<(Micros, PlanStep)>,
    /// The duration of the load.
    pub duration: Micros,
}

impl Plan {
    /// Computes the plan of a scenario for a load of `duration_s` seconds.
    pub fn new(scenario: &Scenario, catalog: &Catalog, seed: u64, duration_s: u64) -> Plan {
        let duration = duration_s * SECOND;
        let mut steps = Vec::new();
        requests(&mut steps, scenario, catalog, seed, duration);
        changes(&mut steps, &scenario.load, catalog, seed, duration);
        purges(&mut steps, scenario, catalog, seed, duration);
        for (at, fault) in scenario.fault.iter().enumerate() {
            steps.push((percent(fault.at, duration), PlanStep::BeginFault(at)));
            steps.push((percent(fault.at + fault.r#for, duration), PlanStep::EndFault(at)));
        }
        steps.sort_by_key(|(at, _)| *at);
        Plan { steps, duration }
    }

    /// The number of requests in the plan.
    pub fn requests(&self) -> usize {
        self.steps.iter().filter(|(_, step)| matches!(step, PlanStep::Request(_))).count()
    }

    /// A hash of all steps. Equal plans have equal fingerprints.
    pub fn fingerprint(&self) -> String {
        let text = format!("{:?}", self.steps);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{hash:016x}")
    }
}

/// The moment at this percentage of the duration.
fn percent(percent: f64, of: Micros) -> Micros {
    (percent.clamp(0.0, 100.0) / 100.0 * of as f64) as Micros
}

fn requests(
    steps: &mut Vec<(Micros, PlanStep)>,
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
        steps.push((at, PlanStep::Request(request(load, object, random))));
    });
    for (number, flash) in load.flash.iter().enumerate() {
        let mut random = Random::for_purpose(seed, &format!("flash {number}"));
        let span = (percent(flash.at, duration), percent(flash.at + flash.r#for, duration));
        // A flash crowd requests the least popular objects, which are probably not cached yet.
        let crowd_objects: Vec<&Object> =
            catalog.objects.iter().rev().filter(|object| object.class == Class::Static).collect();
        let crowd_objects =
            &crowd_objects[..crowd_objects.len().min(flash.objects.max(1) as usize)];
        arrivals(&mut random, span, flash.requests_per_s, |at, random| {
            let Some(object) = crowd_objects.get(random.below(crowd_objects.len() as u64) as usize)
            else {
                return;
            };
            steps.push((at, PlanStep::Request(request(load, object, random))));
        });
    }
}

fn request(load: &Load, object: &Object, random: &mut Random) -> Request {
    let range = (object.class == Class::Large && random.chance(load.ranges))
        .then(|| range_of(object, random));
    let protocol = match random.chance(load.tls) {
        false => Protocol::Http1,
        true if random.chance(0.5) => Protocol::Http1Tls,
        true => Protocol::Http2Tls,
    };
    let client = 1 + random.below(u64::from(load.clients.max(1))) as u32;
    // The country depends on the client's number only, so that a client never changes its country.
    let country = country_of(&mut Random::new(u64::from(client)));
    let pick = random.bits();
    // The lowest bits of `pick` select a node.
    let accepts_gzip = range.is_none() && pick >> 63 == 1;
    Request { client, country, object: object.id, range, protocol, accepts_gzip, pick }
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

/// A random range that contains at least one whole block, so that its bytes can be identified.
fn range_of(object: &Object, random: &mut Random) -> (u64, u64) {
    let length = 256 + random.log_uniform(1, object.bytes / 2);
    let from = random.below(object.bytes - length.min(object.bytes - 1));
    (from, (from + length).min(object.bytes) - 1)
}

fn changes(
    steps: &mut Vec<(Micros, PlanStep)>,
    load: &Load,
    catalog: &Catalog,
    seed: u64,
    duration: Micros,
) {
    let popularity = Zipf::new(catalog.objects.len(), load.skew);
    let mut random = Random::for_purpose(seed, "changes");
    arrivals(&mut random, (0, duration), load.changes_per_s, |at, random| {
        steps.push((at, PlanStep::Change(popularity.draw(random) as ObjectId)));
    });
}

fn purges(
    steps: &mut Vec<(Micros, PlanStep)>,
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
        // A purged object also changes: a change is the usual reason for a purge.
        if let Scope::Object(id) = scope {
            steps.push((at, PlanStep::Change(id)));
        }
        steps.push((at, PlanStep::Purge { scope, soft, pick: random.bits() }));
    };
    // No purges in the last tenth of the run, so that receipts can still arrive.
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

/// Calls `arrive` at the times of a Poisson process between two moments.
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
            let PlanStep::Request(request) = step else { continue };
            let home = homes.entry(request.client).or_insert(request.country);
            assert_eq!(*home, request.country);
            if let Some((from, to)) = request.range {
                let object = catalog.get(request.object);
                assert!(from + 127 <= to && to < object.bytes, "{from}-{to} of {}", object.bytes);
            }
        }
    }
}
