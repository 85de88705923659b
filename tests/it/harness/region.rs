//! A region of nodes with a real Redis between them, in front of one origin.

use serde_json::Value;
use tempfile::TempDir;

use super::peer::FleetAuthority;
use super::redis::RedisProcess;
use super::{Edge, Origin, Process, until};

/// Nodes that ask each other. Their names are `n0`, `n1` and so on.
pub struct Region {
    pub nodes: Vec<Edge>,
    pub authority: FleetAuthority,
    redis: RedisProcess,
    _folder: TempDir,
}

impl Region {
    /// Starts `count` nodes that know each other. `more` is added to the configuration of each. The peer
    /// deadline is long: a busy machine is no failure here. `None`: there is no redis-server.
    pub fn start(count: usize, origin: &Origin, more: &str) -> Option<Self> {
        let mut region = Self::empty(count)?;
        for number in 0..count {
            let name = format!("n{number}");
            let text = region.text(&name, origin, "deadline = \"10s\"\n", more);
            region.nodes.push(Edge::named(&name, &text));
        }
        region.wait_until_met(count);
        Some(region)
    }

    /// Starts `n0` in this process, and the others as child processes, which can be stopped and killed. The
    /// peer deadline is the default.
    pub fn with_processes(
        count: usize,
        origin: &Origin,
        more: &str,
    ) -> Option<(Self, Vec<Process>)> {
        let mut region = Self::empty(count)?;
        region.nodes.push(Edge::named("n0", &region.text("n0", origin, "", more)));
        let names = (1..count).map(|number| format!("n{number}"));
        let start = |name: String| {
            let text = format!("{}[log]\naccess = \"off\"\n", region.text(&name, origin, "", more));
            Process::start_as(&name, &text)
        };
        let processes = names.map(start).collect();
        region.wait_until_met(count);
        Some((region, processes))
    }

    /// Redis, and certificates for `count` nodes.
    fn empty(count: usize) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let redis = RedisProcess::start(folder.path())?;
        let authority = FleetAuthority::new();
        let names: Vec<String> = (0..count).map(|number| format!("n{number}")).collect();
        authority.issue(&names.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        Some(Self { nodes: Vec::new(), authority, redis, _folder: folder })
    }

    /// The configuration of a node.
    fn text(&self, name: &str, origin: &Origin, peers: &str, more: &str) -> String {
        format!(
            "[node]\nregion = \"here\"\n{}{peers}\
             [bus]\nredis = \"redis://127.0.0.1:{}\"\nheartbeat = \"200ms\"\n\
             [pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{more}",
            self.authority.section(name),
            self.redis.port,
            origin.url()
        )
    }

    /// Waits until each node in this process knows all as ready.
    pub fn wait_until_met(&self, count: usize) {
        for node in &self.nodes {
            until("the region has met", || {
                let nodes: Value =
                    serde_json::from_str(node.admin("GET", "/nodes", "").text()).expect("nodes");
                let nodes = nodes["nodes"].as_object().expect("nodes");
                let is_ready = |node: &&Value| node["state"] == "ready" && !node["peer"].is_null();
                nodes.values().filter(is_ready).count() == count
            });
        }
    }

    /// The position of the node that owns `http://edge.test` with this target.
    pub fn owner_of(&self, target: &str) -> usize {
        let target = format!("/nodes/owner?url=http://edge.test{target}");
        let answer = self.nodes[0].admin("GET", &target, "");
        let answer: Value = serde_json::from_str(answer.text()).expect("an owner");
        let name = answer["owner"].as_str().unwrap_or_else(|| panic!("{answer}"));
        name[1..].parse().expect("a name of a node")
    }
}
