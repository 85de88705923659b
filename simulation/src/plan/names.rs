//! Resolves the names in a scenario's faults to nodes, origins and Redis.

use crate::journal::NodeId;
use crate::plan::fault::FaultSpec;
use crate::plan::scenario::Scenario;
use anyhow::{Context as _, bail, ensure};

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A node.
    Node(NodeId),
    /// An origin.
    Origin(usize),
    /// The Redis server.
    Redis,
    /// The resolver of the clients in a country.
    Resolver(usize),
}

/// The names that a scenario's faults may use.
#[derive(Clone, Debug)]
pub struct Names {
    /// The name of each node and of its region.
    nodes: Vec<(String, String)>,
    origins: Vec<String>,
    redis: bool,
    resolvers: bool,
}

impl Names {
    /// Collects the names of a scenario's fleet.
    pub fn of(scenario: &Scenario) -> Names {
        let region = |node: &String| node.rsplit_once('-').map_or("", |(region, _)| region).into();
        let nodes = scenario.node_names().into_iter().map(|node| (node.clone(), region(&node)));
        let origins = scenario.fleet.origins.iter().map(|origin| origin_name(origin));
        let redis = !scenario.fleet.redis.is_empty();
        let resolvers = scenario.fleet.dns_ttl_s > 0;
        Names { nodes: nodes.collect(), origins: origins.collect(), redis, resolvers }
    }

    /// Whether `name` refers to this endpoint, directly or by its region or group.
    pub fn matches(&self, name: &str, end: Endpoint) -> bool {
        name == "*"
            || match end {
                Endpoint::Node(node) => self.nodes[node].0 == name || self.nodes[node].1 == name,
                Endpoint::Origin(origin) => name == "origins" || self.origins[origin] == name,
                Endpoint::Redis => name == "redis",
                Endpoint::Resolver(_) => name == RESOLVERS,
            }
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let nodes = (0..self.nodes.len()).map(Endpoint::Node);
        let origins = (0..self.origins.len()).map(Endpoint::Origin);
        let redis = self.redis.then_some(Endpoint::Redis);
        nodes.chain(origins).chain(redis).chain(self.resolver()).collect()
    }

    /// One of the resolvers, if there are any.
    fn resolver(&self) -> Option<Endpoint> {
        self.resolvers.then_some(Endpoint::Resolver(0))
    }

    /// Every name of a node, region, origin or Redis, and one of the endpoints that it refers to.
    fn names(&self) -> impl Iterator<Item = (Endpoint, &str)> {
        let is_first =
            |number: usize| number == 0 || self.nodes[number - 1].1 != self.nodes[number].1;
        let regions = (0..self.nodes.len()).filter(move |number| is_first(*number));
        let regions = regions.map(|number| (Endpoint::Node(number), &*self.nodes[number].1));
        let nodes = self
            .nodes
            .iter()
            .enumerate()
            .map(|(number, (name, _))| (Endpoint::Node(number), &**name));
        let origins = self.origins.iter().enumerate();
        let origins = origins.map(|(number, name)| (Endpoint::Origin(number), &**name));
        let all = self.origins.first().map(|_| (Endpoint::Origin(0), "origins"));
        let redis = self.redis.then_some((Endpoint::Redis, "redis"));
        let resolvers = self.resolver().map(|end| (end, RESOLVERS));
        regions.chain(nodes).chain(origins).chain(all).chain(redis).chain(resolvers)
    }

    /// Checks that every name in a fault exists in the fleet.
    ///
    /// # Errors
    /// A name that the fleet does not have, with the names that would be valid.
    pub fn check_fault(&self, fault: &FaultSpec) -> anyhow::Result<()> {
        let any = |name: &str, kind: fn(&Endpoint) -> bool| {
            let found = self.endpoints().iter().any(|end| kind(end) && self.matches(name, *end));
            if !found {
                let names: Vec<&str> =
                    self.names().filter(|(end, _)| kind(end)).map(|(_, name)| name).collect();
                bail!(
                    "fault {}: unknown name {name:?}: expected one of {}",
                    fault.kind(),
                    names.join(", ")
                );
            }
            Ok(())
        };
        match fault {
            FaultSpec::Cut { from, to, .. }
            | FaultSpec::Delay { from, to, .. }
            | FaultSpec::Loss { from, to, .. }
            | FaultSpec::Throttle { from, to, .. } => {
                any(from, |end| matches!(end, Endpoint::Node(_) | Endpoint::Resolver(_)))?;
                any(to, |_| true)
            }
            FaultSpec::NodeKill { node, .. }
            | FaultSpec::NodePause { node }
            | FaultSpec::NodeDrain { node }
            | FaultSpec::DiskFull { node } => any(node, |end| matches!(end, Endpoint::Node(_))),
            FaultSpec::OriginDown { origin }
            | FaultSpec::OriginFails { origin }
            | FaultSpec::OriginSlow { origin, .. }
            | FaultSpec::OriginTruncates { origin } => {
                any(origin, |end| matches!(end, Endpoint::Origin(_)))
            }
            FaultSpec::RedisKill { .. } | FaultSpec::RedisPause => {
                ensure!(self.redis, "fault {}: the fleet has no Redis", fault.kind());
                Ok(())
            }
            FaultSpec::RollingUpgrade | FaultSpec::CertRotation => Ok(()),
        }
    }

    /// The nodes whose requests a fault may affect.
    pub fn affected_nodes(&self, fault: &FaultSpec) -> Vec<NodeId> {
        let all = 0..self.nodes.len();
        let named = |name: &str| {
            let named = all.clone().filter(|node| self.matches(name, Endpoint::Node(*node)));
            named.collect()
        };
        match fault {
            FaultSpec::Cut { from, to, .. }
            | FaultSpec::Delay { from, to, .. }
            | FaultSpec::Loss { from, to, .. }
            | FaultSpec::Throttle { from, to, .. }
                if from == RESOLVERS =>
            {
                named(to)
            }
            FaultSpec::Cut { from, .. }
            | FaultSpec::Delay { from, .. }
            | FaultSpec::Loss { from, .. }
            | FaultSpec::Throttle { from, .. } => named(from),
            FaultSpec::NodeKill { node, .. }
            | FaultSpec::NodePause { node }
            | FaultSpec::NodeDrain { node }
            | FaultSpec::DiskFull { node } => named(node),
            _ => all.collect(),
        }
    }

    /// The origins that a fault makes fail.
    pub fn failing_origins(&self, fault: &FaultSpec) -> Vec<usize> {
        let name = match fault {
            FaultSpec::OriginDown { origin }
            | FaultSpec::OriginFails { origin }
            | FaultSpec::OriginSlow { origin, .. }
            | FaultSpec::OriginTruncates { origin } => origin,
            FaultSpec::Cut { from, to, .. } if from == "*" => to,
            _ => return Vec::new(),
        };
        let all = 0..self.origins.len();
        all.filter(|origin| self.matches(name, Endpoint::Origin(*origin))).collect()
    }

    /// The node with this name.
    ///
    /// # Errors
    /// No node has this name.
    pub fn node(&self, name: &str) -> anyhow::Result<NodeId> {
        let found = self.nodes.iter().position(|(node, _)| node == name);
        found.with_context(|| format!("unknown node {name:?}"))
    }
}

/// The name of the origin in a region: `origin-frankfurt`.
pub fn origin_name(region: &str) -> String {
    format!("origin-{region}")
}

/// The name in faults of the resolvers of all countries.
const RESOLVERS: &str = "resolvers";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fault::CutDirection;
    use crate::plan::scenario::BUILT_IN;

    #[test]
    fn faults_of_the_built_in_scenarios_name_what_exists() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::read(text).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let names = Names::of(&scenario);
            for fault in &scenario.fault {
                names.check_fault(&fault.spec).unwrap_or_else(|error| panic!("{name}: {error:#}"));
                assert!(fault.at + fault.r#for <= 90.0, "{name}: time to settle after {fault:?}");
            }
        }
    }

    #[test]
    fn faults_name_what_exists_and_touch_the_nodes_that_they_name() {
        let text = "about = ''\nduration_s = 1\n[fleet]\nregions = ['frankfurt', 'tokyo']\n";
        let names = Names::of(&Scenario::read(text).expect("scenario"));
        let cut = |from: &str, to: &str, direction| FaultSpec::Cut {
            from: from.into(),
            to: to.into(),
            direction,
        };
        assert!(names.check_fault(&cut("tokyo", "redis", CutDirection::Both)).is_ok());
        assert!(names.check_fault(&cut("paris", "redis", CutDirection::Both)).is_err());
        assert!(names.check_fault(&FaultSpec::NodePause { node: "redis".into() }).is_err());
        assert_eq!(names.affected_nodes(&cut("tokyo", "redis", CutDirection::Both)), [2, 3]);
        assert_eq!(names.affected_nodes(&FaultSpec::NodePause { node: "tokyo-2".into() }), [3]);
        assert_eq!(names.affected_nodes(&FaultSpec::RedisPause), [0, 1, 2, 3]);
    }
}
