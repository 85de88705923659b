//! A scenario: a small TOML file that chooses a fleet, its load and its faults.
//!
//! Times are percent of the run's duration, so that one file serves a short run and a long
//! one. What is checked is not chosen here; only which client errors are no fault of the edge.

use crate::check::{Excuse, Limits};
use crate::plan::fault::Break;
use crate::plan::object::Mix;
use crate::plan::place::region_named;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::path::Path;

/// A whole scenario.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// One line for `list`.
    pub about: String,
    /// Seconds, unless the command line says otherwise.
    pub duration_s: u64,
    /// Nodes, origins and Redis.
    #[serde(default)]
    pub fleet: FleetPlan,
    /// The load by clients.
    #[serde(default)]
    pub load: Load,
    /// The purges.
    #[serde(default)]
    pub purges: Purges,
    /// The faults to inject.
    #[serde(default)]
    pub fault: Vec<FaultPlan>,
    /// Client errors that are no fault of the edge.
    #[serde(default)]
    pub excuse: Vec<Excuse>,
    /// The resources that a node may use.
    #[serde(default)]
    pub limits: Limits,
}

/// Nodes, origins and Redis, by region.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetPlan {
    /// The regions of the nodes, by name.
    pub regions: Vec<String>,
    /// Nodes in each region.
    pub nodes: usize,
    /// The regions of the origins, by name.
    pub origins: Vec<String>,
    /// The region of Redis; empty: no Redis.
    pub redis: String,
    /// Data-path threads of each node.
    pub workers: usize,
}

impl Default for FleetPlan {
    fn default() -> Self {
        FleetPlan {
            regions: ["frankfurt", "virginia", "tokyo"].map(str::to_owned).to_vec(),
            nodes: 2,
            origins: ["frankfurt", "virginia"].map(str::to_owned).to_vec(),
            redis: "frankfurt".to_owned(),
            workers: 2,
        }
    }
}

/// The load by clients.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// Of the whole fleet, Poisson.
    pub requests_per_s: f64,
    /// In the catalog.
    pub objects: u32,
    /// Zipf's exponent.
    pub skew: f64,
    /// How many clients there are.
    pub clients: u32,
    /// The share of requests that go over TLS, half of them HTTP/2.
    pub tls: f64,
    /// The share of requests for large objects that want a range.
    pub ranges: f64,
    /// Objects that change at the origin, a second.
    pub changes_per_s: f64,
    /// The shares of the kinds of objects.
    pub mix: Mix,
    /// Sudden crowds.
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

/// A sudden crowd that all wants the same few objects.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flash {
    /// When it starts, percent of the run.
    pub at: f64,
    /// How long it stays, percent of the run.
    pub r#for: f64,
    /// On top of the usual load.
    pub requests_per_s: f64,
    /// How many objects it wants: the least popular ones until then.
    pub objects: u32,
}

/// The purges.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Purges {
    /// On average.
    pub per_s: f64,
    /// The share of soft ones.
    pub soft: f64,
    /// The share of each scope: object, tag, prefix, site, all.
    pub scopes: Scopes,
    /// Times of many more.
    pub storm: Vec<Storm>,
}

impl Default for Purges {
    fn default() -> Self {
        Purges { per_s: 0.5, soft: 0.3, scopes: Scopes::default(), storm: Vec::new() }
    }
}

/// Weights of purge scopes.
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

/// A time of many purges.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storm {
    /// When it starts, percent of the run.
    pub at: f64,
    /// How long it lasts, percent of the run.
    pub r#for: f64,
    /// On top of the usual ones.
    pub per_s: f64,
}

/// Something that is broken on purpose.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct FaultPlan {
    /// When it begins, percent of the run.
    pub at: f64,
    /// How long it lasts, percent of the run. What takes its own time (an upgrade, a
    /// rotation) ends when it is done.
    #[serde(default)]
    pub r#for: f64,
    /// The fault to inject.
    #[serde(flatten)]
    pub what: Break,
}

/// The scenarios that come with the lab.
pub const BUILT_IN: [(&str, &str); 12] = [
    ("steady", include_str!("../../scenarios/steady.toml")),
    ("purge-storm", include_str!("../../scenarios/purge-storm.toml")),
    ("bus-loss", include_str!("../../scenarios/bus-loss.toml")),
    ("partition", include_str!("../../scenarios/partition.toml")),
    ("node-loss", include_str!("../../scenarios/node-loss.toml")),
    ("slow-origin", include_str!("../../scenarios/slow-origin.toml")),
    ("origin-down", include_str!("../../scenarios/origin-down.toml")),
    ("rolling-upgrade", include_str!("../../scenarios/rolling-upgrade.toml")),
    ("cert-rotation", include_str!("../../scenarios/cert-rotation.toml")),
    ("geo", include_str!("../../scenarios/geo.toml")),
    ("changing-objects", include_str!("../../scenarios/changing-objects.toml")),
    ("everything", include_str!("../../scenarios/everything.toml")),
];

impl Scenario {
    /// A built-in scenario by name, or a file.
    pub fn load(name: &str) -> anyhow::Result<Scenario> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Scenario::read(text).with_context(|| format!("scenario {name}"));
        }
        let path = Path::new(name);
        if !path.exists() {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            bail!("no scenario and no file {name:?}; scenarios are {}", names.join(", "));
        }
        let text = std::fs::read_to_string(path).with_context(|| name.to_owned())?;
        Scenario::read(&text).with_context(|| format!("scenario file {name}"))
    }

    /// A scenario from its text.
    pub fn read(text: &str) -> anyhow::Result<Scenario> {
        let scenario: Scenario = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Names that exist, amounts that can run.
    fn check(&self) -> anyhow::Result<()> {
        let fleet = &self.fleet;
        ensure!(!fleet.regions.is_empty() && fleet.nodes > 0, "fleet: no nodes");
        ensure!(!fleet.origins.is_empty(), "fleet: no origins");
        ensure!(self.duration_s > 0, "duration_s: zero");
        ensure!(self.load.objects >= 50, "load.objects: at least 50");
        ensure!(self.load.requests_per_s > 0.0, "load.requests_per_s: zero");
        let redis = Some(&fleet.redis).filter(|redis| !redis.is_empty());
        for name in fleet.regions.iter().chain(&fleet.origins).chain(redis) {
            ensure!(region_named(name).is_some(), "fleet: no region is called {name}");
        }
        for excuse in &self.excuse {
            let known = |fault: &FaultPlan| fault.what.kind() == excuse.during;
            ensure!(self.fault.iter().any(known), "excuse: no fault is of kind {}", excuse.during);
        }
        Ok(())
    }

    /// Names of the nodes, region by region.
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
    fn mistakes_are_refused_by_name() {
        let check = |text: &str, expected: &str| {
            let error = format!("{:#}", Scenario::read(text).expect_err(text));
            assert!(error.contains(expected), "{error}");
        };
        check("about = ''\nduration_s = 1\nspeed = 3", "speed");
        check("about = ''\nduration_s = 1\n[fleet]\nregions = ['atlantis']", "atlantis");
        check("about = ''\nduration_s = 1\n[[excuse]]\nduring = 'cut'", "no fault is of kind cut");
        check("about = ''\nduration_s = 1\n[[fault]]\nat = 1\nkind = 'meteor'", "meteor");
    }
}
