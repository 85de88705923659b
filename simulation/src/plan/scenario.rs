//! A scenario: a small TOML file that describes a fleet, its load and its faults.
//!
//! Times are percentages of the run's duration, so that one file fits short and long runs. A
//! scenario cannot select checks; it can only state which client errors are expected.

use crate::plan::fault::FaultSpec;
use crate::plan::object::Mix;
use crate::plan::place::{REGIONS, region_by_name};
use crate::plan::tolerance::{Excuse, Limits};
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::path::Path;

/// A scenario.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// One line for `simulation list`.
    pub about: String,
    /// Duration of the load in seconds; `--duration` overrides it.
    pub duration_s: u64,
    /// The nodes, origins and Redis.
    #[serde(default)]
    pub fleet: FleetPlan,
    /// The requests of clients.
    #[serde(default)]
    pub load: Load,
    /// The purges.
    #[serde(default)]
    pub purges: Purges,
    /// The faults to inject.
    #[serde(default)]
    pub fault: Vec<FaultPlan>,
    /// Client errors that are expected during a fault.
    #[serde(default)]
    pub excuse: Vec<Excuse>,
    /// Limits of a node's memory and open files.
    #[serde(default)]
    pub limits: Limits,
}

/// The nodes, origins and Redis of a scenario, and their regions.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetPlan {
    /// Names of the regions that have nodes.
    pub regions: Vec<String>,
    /// Number of nodes in each region, 1 to 8.
    pub nodes: usize,
    /// Names of the regions that have an origin.
    pub origins: Vec<String>,
    /// Name of the region that has Redis; empty for a fleet without Redis.
    pub redis: String,
    /// Number of worker threads of each node.
    pub workers: usize,
    /// Percentage of the visitors of shop.test in the group of the last origin (the canary); the others
    /// are in that of the first one. 0: the site does not split its visitors.
    pub canary_percent: u32,
    /// Whether each pool has the other origins as well, with a lower priority the farther away they are.
    pub failover: bool,
    /// Whether the nodes of a region ask each other before an origin.
    pub peers: bool,
    /// Name of the region that nodes of the other regions ask before an origin; empty for none.
    pub shield: String,
    /// TTL in seconds of the answers by which clients find nodes through DNS. 0: a load balancer chooses the node.
    pub dns_ttl_s: u64,
}

impl Default for FleetPlan {
    fn default() -> Self {
        FleetPlan {
            regions: ["frankfurt", "virginia", "tokyo"].map(str::to_owned).to_vec(),
            nodes: 2,
            origins: ["frankfurt", "virginia"].map(str::to_owned).to_vec(),
            redis: "frankfurt".to_owned(),
            workers: 2,
            canary_percent: 0,
            failover: false,
            peers: true,
            shield: String::new(),
            dns_ttl_s: 0,
        }
    }
}

/// The requests of clients.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// Requests per second to the whole fleet, as a Poisson process.
    pub requests_per_s: f64,
    /// Number of objects in the catalog, at least 50.
    pub objects: u32,
    /// Exponent of the Zipf distribution of object popularity.
    pub skew: f64,
    /// Number of clients.
    pub clients: u32,
    /// Share of requests over TLS, 0 to 1; half of them use HTTP/2.
    pub tls: f64,
    /// Share of requests for large objects that are for a range, 0 to 1.
    pub ranges: f64,
    /// Number of objects per second that change at the origin.
    pub changes_per_s: f64,
    /// Relative number of objects of each class.
    pub mix: Mix,
    /// Flash crowds.
    pub flash: Vec<Flash>,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            requests_per_s: 60.0,
            objects: 300,
            skew: 1.0,
            clients: 2000,
            tls: 0.3,
            ranges: 0.5,
            changes_per_s: 2.0,
            mix: Mix::default(),
            flash: Vec::new(),
        }
    }
}

/// A flash crowd: many additional requests for the same few objects.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flash {
    /// Start, in percent of the run.
    pub at: f64,
    /// Duration, in percent of the run.
    pub r#for: f64,
    /// Additional requests per second.
    pub requests_per_s: f64,
    /// Number of requested objects: the least popular ones of the catalog.
    pub objects: u32,
}

/// The purges of a scenario.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Purges {
    /// Purges per second, as a Poisson process.
    pub per_s: f64,
    /// Share of soft purges, 0 to 1.
    pub soft: f64,
    /// Relative number of purges of each scope.
    pub scopes: Scopes,
    /// Periods with many more purges.
    pub storm: Vec<Storm>,
}

impl Default for Purges {
    fn default() -> Self {
        Purges { per_s: 0.5, soft: 0.3, scopes: Scopes::default(), storm: Vec::new() }
    }
}

/// Relative number of purges of each scope.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scopes {
    /// One URL.
    pub object: u32,
    /// A tag.
    pub tag: u32,
    /// A path prefix.
    pub prefix: u32,
    /// A site.
    pub site: u32,
    /// Everything.
    pub all: u32,
}

impl Default for Scopes {
    fn default() -> Self {
        Scopes { object: 860, tag: 120, prefix: 10, site: 6, all: 4 }
    }
}

/// A period with many purges.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storm {
    /// Start, in percent of the run.
    pub at: f64,
    /// Duration, in percent of the run.
    pub r#for: f64,
    /// Additional purges per second.
    pub per_s: f64,
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct FaultPlan {
    /// Start, in percent of the run.
    pub at: f64,
    /// Duration, in percent of the run. Rolling upgrades and certificate rotations end when they
    /// are complete and ignore this.
    pub r#for: f64,
    /// The kind of fault and its parameters.
    pub spec: FaultSpec,
}

/// The parts are read one after the other because serde cannot refuse unknown options of a flattened
/// enum.
impl TryFrom<toml::Table> for FaultPlan {
    type Error = anyhow::Error;

    fn try_from(mut table: toml::Table) -> anyhow::Result<FaultPlan> {
        let mut percentage = |name: &str| {
            let value = table.remove(name).map(f64::deserialize).transpose();
            value.with_context(|| format!("{name}: expected a percentage of the run"))
        };
        let at =
            percentage("at")?.context("missing option `at`, the start in percent of the run")?;
        let r#for = percentage("for")?.unwrap_or(0.0);
        Ok(FaultPlan { at, r#for, spec: FaultSpec::deserialize(table)? })
    }
}

/// The built-in scenarios, as `(name, TOML text)`.
pub const BUILT_IN: [(&str, &str); 22] = [
    ("steady", include_str!("../../scenarios/steady.toml")),
    ("purge-storm", include_str!("../../scenarios/purge-storm.toml")),
    ("bus-loss", include_str!("../../scenarios/bus-loss.toml")),
    ("partition", include_str!("../../scenarios/partition.toml")),
    ("node-loss", include_str!("../../scenarios/node-loss.toml")),
    ("slow-origin", include_str!("../../scenarios/slow-origin.toml")),
    ("origin-down", include_str!("../../scenarios/origin-down.toml")),
    ("rolling-upgrade", include_str!("../../scenarios/rolling-upgrade.toml")),
    ("cert-rotation", include_str!("../../scenarios/cert-rotation.toml")),
    ("region-cache", include_str!("../../scenarios/region-cache.toml")),
    ("peer-loss", include_str!("../../scenarios/peer-loss.toml")),
    ("hot-object", include_str!("../../scenarios/hot-object.toml")),
    ("shield", include_str!("../../scenarios/shield.toml")),
    ("origin-health", include_str!("../../scenarios/origin-health.toml")),
    ("broken-bodies", include_str!("../../scenarios/broken-bodies.toml")),
    ("geo", include_str!("../../scenarios/geo.toml")),
    ("canary", include_str!("../../scenarios/canary.toml")),
    ("dns", include_str!("../../scenarios/dns.toml")),
    ("dns-failover", include_str!("../../scenarios/dns-failover.toml")),
    ("whole-cdn", include_str!("../../scenarios/whole-cdn.toml")),
    ("changing-objects", include_str!("../../scenarios/changing-objects.toml")),
    ("everything", include_str!("../../scenarios/everything.toml")),
];

impl Scenario {
    /// Loads a built-in scenario by its name, or a scenario file by its path.
    pub fn load(name: &str) -> anyhow::Result<Scenario> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Scenario::read(text).with_context(|| format!("scenario {name}"));
        }
        let path = Path::new(name);
        if !path.exists() {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            bail!(
                "{name:?} is neither a built-in scenario nor a file; built-in scenarios: {}",
                names.join(", ")
            );
        }
        let text = std::fs::read_to_string(path).with_context(|| name.to_owned())?;
        Scenario::read(&text).with_context(|| format!("scenario file {name}"))
    }

    /// Parses and checks the text of a scenario file.
    pub fn read(text: &str) -> anyhow::Result<Scenario> {
        let scenario: Scenario = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// # Errors
    /// A name that does not exist, or a value out of bounds.
    fn check(&self) -> anyhow::Result<()> {
        let (fleet, load) = (&self.fleet, &self.load);
        ensure!(!fleet.regions.is_empty(), "fleet.regions: expected at least one region");
        ensure!(fleet.nodes > 0, "fleet.nodes: expected at least 1 node per region, found 0");
        ensure!(!fleet.origins.is_empty(), "fleet.origins: expected at least one region");
        let canary = fleet.canary_percent;
        ensure!(canary < 100, "fleet.canary_percent: expected 0 to 99, found {canary}");
        ensure!(
            canary == 0 || fleet.origins.len() > 1,
            "fleet.canary_percent: expected at least two origins"
        );
        ensure!(self.duration_s > 0, "duration_s: expected at least 1, found 0");
        ensure!(load.objects >= 50, "load.objects: expected at least 50, found {}", load.objects);
        let rate = load.requests_per_s;
        ensure!(rate > 0.0, "load.requests_per_s: expected more than 0, found {rate}");
        ensure!(!load.mix.is_empty(), "load.mix: expected at least one class above 0");
        let shares = [
            ("load.tls", load.tls),
            ("load.ranges", load.ranges),
            ("purges.soft", self.purges.soft),
        ];
        for (name, share) in shares {
            ensure!((0.0..=1.0).contains(&share), "{name}: expected 0 to 1, found {share}");
        }
        for FaultPlan { at, r#for, spec } in &self.fault {
            let kind = spec.kind();
            let is_within_run = *at >= 0.0 && *r#for >= 0.0 && at + r#for <= 100.0;
            ensure!(
                is_within_run,
                "fault {kind}: at = {at} and for = {for} exceed the run: expected percentages with a \
                 sum of at most 100"
            );
        }
        let optional = [&fleet.redis, &fleet.shield].into_iter().filter(|name| !name.is_empty());
        for name in fleet.regions.iter().chain(&fleet.origins).chain(optional) {
            ensure!(
                region_by_name(name).is_some(),
                "fleet: unknown region {name:?}: expected one of {}",
                REGIONS.map(|region| region.name).join(", ")
            );
        }
        for excuse in &self.excuse {
            let known = |fault: &FaultPlan| fault.spec.kind() == excuse.during;
            ensure!(
                self.fault.iter().any(known),
                "excuse: during = {:?}: the scenario has no fault of this kind",
                excuse.during
            );
        }
        Ok(())
    }

    /// Names of the nodes, region by region: `frankfurt-1`.
    pub fn node_names(&self) -> Vec<String> {
        let regions = self.fleet.regions.iter();
        let nodes = 1..=self.fleet.nodes;
        regions.flat_map(|region| nodes.clone().map(move |n| format!("{region}-{n}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_refused_with_its_name() {
        let check = |text: &str, expected: &str| {
            let error = format!("{:#}", Scenario::read(text).expect_err(text));
            assert!(error.contains(expected), "{error}");
        };
        check("about = ''\nduration_s = 1\nspeed = 3", "speed");
        check("about = ''\nduration_s = 1\n[fleet]\nregions = ['atlantis']", "atlantis");
        check("about = ''\nduration_s = 1\n[[excuse]]\nduring = 'cut'", "no fault of this kind");
        check("about = ''\nduration_s = 1\n[load]\ntls = 3", "load.tls: expected 0 to 1, found 3");
        let fault = |options: &str, expected: &str| {
            check(&format!("about = ''\nduration_s = 1\n[[fault]]\n{options}"), expected);
        };
        fault("at = 1\nkind = 'meteor'", "meteor");
        fault("kind = 'redis-pause'", "missing option `at`");
        fault("at = 90\nfor = 20\nkind = 'redis-pause'", "at = 90 and for = 20 exceed the run");
        fault("at = 1\nkind = 'node-kill'\nnode = 'tokyo-1'\nwype = true", "wype");
    }
}
