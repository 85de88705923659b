//! The names by which a scenario's faults refer to nodes, origins and Redis.

use crate::journal::NodeId;
use crate::plan::fault::Break;
use crate::plan::scenario::Scenario;
use anyhow::{Context as _, ensure};

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A node.
    Node(NodeId),
    /// An origin.
    Origin(usize),
    /// The Redis server.
    Redis,
}

/// The names that a scenario's faults may use.
#[derive(Clone, Debug)]
pub struct Names {
    /// `(node, its region)`.
    nodes: Vec<(String, String)>,
    origins: Vec<String>,
    redis: bool,
}

impl Names {
    /// The names of a scenario's fleet.
    pub fn of(scenario: &Scenario) -> Names {
        let region = |node: &String| node.rsplit_once('-').map_or("", |(region, _)| region).into();
        let nodes = scenario.node_names().into_iter().map(|node| (node.clone(), region(&node)));
        let origins = scenario.fleet.origins.iter().map(|origin| origin_name(origin));
        let redis = !scenario.fleet.redis.is_empty();
        Names { nodes: nodes.collect(), origins: origins.collect(), redis }
    }

    /// Whether `name` means this end.
    pub fn means(&self, name: &str, end: End) -> bool {
        name == "*"
            || match end {
                End::Node(node) => self.nodes[node].0 == name || self.nodes[node].1 == name,
                End::Origin(origin) => name == "origins" || self.origins[origin] == name,
                End::Redis => name == "redis",
            }
    }

    fn ends(&self) -> Vec<End> {
        let nodes = (0..self.nodes.len()).map(End::Node);
        let origins = (0..self.origins.len()).map(End::Origin);
        nodes.chain(origins).chain(self.redis.then_some(End::Redis)).collect()
    }

    /// Whether everything that a fault names exists.
    pub fn check(&self, fault: &Break) -> anyhow::Result<()> {
        let any = |name: &str, kind: fn(&End) -> bool| {
            let found = self.ends().iter().any(|end| kind(end) && self.means(name, *end));
            ensure!(found, "{}: nothing is called {name}", fault.kind());
            Ok(())
        };
        match fault {
            Break::Cut { from, to, .. }
            | Break::Delay { from, to, .. }
            | Break::Loss { from, to, .. }
            | Break::Throttle { from, to, .. } => {
                any(from, |end| matches!(end, End::Node(_)))?;
                any(to, |_| true)
            }
            Break::NodeKill { node, .. } | Break::NodePause { node } | Break::DiskFull { node } => {
                any(node, |end| matches!(end, End::Node(_)))
            }
            Break::OriginDown { origin }
            | Break::OriginFails { origin }
            | Break::OriginSlow { origin, .. } => any(origin, |end| matches!(end, End::Origin(_))),
            Break::RedisKill { .. } | Break::RedisPause => {
                ensure!(self.redis, "{}: the fleet has no Redis", fault.kind());
                Ok(())
            }
            Break::RollingUpgrade | Break::CertRotation => Ok(()),
        }
    }

    /// The nodes that a fault can be felt at.
    pub fn touched(&self, fault: &Break) -> Vec<NodeId> {
        let all = 0..self.nodes.len();
        let meant = |name: &str| {
            let meant = all.clone().filter(|node| self.means(name, End::Node(*node)));
            meant.collect()
        };
        match fault {
            Break::Cut { from, .. }
            | Break::Delay { from, .. }
            | Break::Loss { from, .. }
            | Break::Throttle { from, .. } => meant(from),
            Break::NodeKill { node, .. } | Break::NodePause { node } | Break::DiskFull { node } => {
                meant(node)
            }
            _ => all.collect(),
        }
    }

    /// The node with this name.
    ///
    /// # Errors
    /// No node has it.
    pub fn node(&self, name: &str) -> anyhow::Result<NodeId> {
        let found = self.nodes.iter().position(|(node, _)| node == name);
        found.with_context(|| format!("no node is called {name}"))
    }
}

/// `origin-frankfurt`.
pub fn origin_name(region: &str) -> String {
    format!("origin-{region}")
}

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
                names.check(&fault.what).unwrap_or_else(|error| panic!("{name}: {error:#}"));
                assert!(fault.at + fault.r#for <= 90.0, "{name}: time to settle after {fault:?}");
            }
        }
    }

    #[test]
    fn faults_name_what_exists_and_touch_the_nodes_that_they_name() {
        let text = "about = ''\nduration_s = 1\n[fleet]\nregions = ['frankfurt', 'tokyo']\n";
        let names = Names::of(&Scenario::read(text).expect("scenario"));
        let cut = |from: &str, to: &str, direction| Break::Cut {
            from: from.into(),
            to: to.into(),
            direction,
        };
        assert!(names.check(&cut("tokyo", "redis", CutDirection::Both)).is_ok());
        assert!(names.check(&cut("paris", "redis", CutDirection::Both)).is_err());
        assert!(names.check(&Break::NodePause { node: "redis".into() }).is_err());
        assert_eq!(names.touched(&cut("tokyo", "redis", CutDirection::Both)), [2, 3]);
        assert_eq!(names.touched(&Break::NodePause { node: "tokyo-2".into() }), [3]);
        assert_eq!(names.touched(&Break::RedisPause), [0, 1, 2, 3]);
    }
}
