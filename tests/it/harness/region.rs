//! Regions of nodes with a real Redis between them, in front of one origin.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::peer::FleetAuthority;
use super::redis::RedisProcess;
use super::{Answer, Edge, Gate, LongLink, Origin, Process, exchange, until};

/// An origin with a fresh response for each target, which it holds back until the gate opens.
pub fn held_origin(gate: &Gate) -> Origin {
    let held = gate.clone();
    Origin::start(move |request| {
        Answer::ok(format!("body of {}", request.target)).fresh_for(60).behind(&held)
    })
}

/// Nodes that ask each other. Their names are `n0`, `n1` and so on.
pub struct Region {
    pub nodes: Vec<Edge>,
    pub authority: FleetAuthority,
    redis: RedisProcess,
    /// The way of all nodes but the first to Redis, if it is long.
    link: Option<LongLink>,
    /// `bus.heartbeat` of all nodes. One that misses three is out.
    heartbeat: &'static str,
    _folder: TempDir,
}

impl Region {
    /// Starts `count` nodes that know each other. `more` is added to the configuration of each. The peer
    /// deadline is long: a busy machine is no failure here. `None`: there is no redis-server.
    pub fn start(count: usize, origin: &Origin, more: &str) -> Option<Self> {
        Self::start_in(&vec!["here"; count], origin, more)
    }

    /// As [`Region::start`], with these lines in `[peers]`.
    pub fn with_peers(count: usize, origin: &Origin, peers: &str, more: &str) -> Option<Self> {
        Self::start_with(&vec!["here"; count], origin, peers, more)
    }

    /// As [`Region::start`], with a node in each of these regions, which may repeat.
    pub fn start_in(regions: &[&str], origin: &Origin, more: &str) -> Option<Self> {
        Self::start_with(regions, origin, "", more)
    }

    /// As [`Region::with_peers`]. A byte takes `delay` from Redis to each node but the first, or back.
    pub fn far_from_redis(
        count: usize,
        delay: Duration,
        origin: &Origin,
        peers: &str,
    ) -> Option<Self> {
        let mut region = Self::empty(count)?;
        region.link = Some(LongLink::to(region.redis.port, delay));
        region.start_nodes(&vec!["here"; count], origin, peers, "");
        Some(region)
    }

    fn start_with(regions: &[&str], origin: &Origin, peers: &str, more: &str) -> Option<Self> {
        let mut region = Self::empty(regions.len())?;
        region.start_nodes(regions, origin, peers, more);
        Some(region)
    }

    fn start_nodes(&mut self, regions: &[&str], origin: &Origin, peers: &str, more: &str) {
        for (number, place) in regions.iter().enumerate() {
            let name = format!("n{number}");
            let peers = format!("deadline = \"10s\"\n{peers}");
            let text = self.text((&name, place), origin, &peers, more);
            self.nodes.push(Edge::named(&name, &text));
        }
        self.wait_until_met(regions.len());
    }

    /// Starts a node in each of these regions, which may repeat: `n0` in this process, and the others as child
    /// processes, which can be stopped and killed. The peer deadline is the default.
    pub fn with_processes_in(
        regions: &[&str],
        origin: &Origin,
        more: &str,
    ) -> Option<(Self, Vec<Process>)> {
        let region = Self::empty(regions.len())?;
        Some(region.start_processes(regions, origin, "", more))
    }

    /// As [`Region::with_processes_in`], with these lines in `[peers]`. A node that is stopped stays in the table for six
    /// seconds.
    pub fn with_lasting_processes(
        regions: &[&str],
        origin: &Origin,
        peers: &str,
        more: &str,
    ) -> Option<(Self, Vec<Process>)> {
        let region = Self { heartbeat: "2s", ..Self::empty(regions.len())? };
        Some(region.start_processes(regions, origin, peers, more))
    }

    fn start_processes(
        mut self,
        regions: &[&str],
        origin: &Origin,
        peers: &str,
        more: &str,
    ) -> (Self, Vec<Process>) {
        self.nodes.push(Edge::named("n0", &self.text(("n0", regions[0]), origin, peers, more)));
        let start = |(number, place): (usize, &&str)| {
            let name = format!("n{number}");
            let text = self.text((&name, place), origin, peers, more);
            Process::start_as(&name, &format!("{text}[log]\naccess = \"off\"\n"))
        };
        let processes = regions.iter().enumerate().skip(1).map(start).collect();
        self.wait_until_met(regions.len());
        (self, processes)
    }

    /// Asks all nodes at once for `count` targets, each `times` times, and checks that the origin (see [`held_origin`]) is
    /// asked once for each.
    pub fn fetches_once(&self, origin: &Origin, gate: &Gate, count: usize, times: usize) {
        let targets: Vec<String> = (0..count).map(|number| format!("/{number}")).collect();
        let requests = || targets.iter().flat_map(|target| vec![target; times]);
        std::thread::scope(|scope| {
            for node in &self.nodes {
                for target in requests() {
                    scope.spawn(move || {
                        let answer = exchange(node.http, "edge.test", target, &[]);
                        assert_eq!(answer.status, 200, "{answer:?}");
                        assert_eq!(answer.text(), format!("body of {target}"));
                    });
                }
            }
            origin.wait_for_requests(count);
            gate.open();
        });
        let mut asked: Vec<String> = origin.received().into_iter().map(|it| it.target).collect();
        asked.sort();
        let mut expected = targets.clone();
        expected.sort();
        assert_eq!(asked, expected);
    }

    /// Redis, and certificates for `count` nodes.
    fn empty(count: usize) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let redis = RedisProcess::start(folder.path())?;
        let authority = FleetAuthority::new();
        let names: Vec<String> = (0..count).map(|number| format!("n{number}")).collect();
        authority.issue(&names.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        Some(Self {
            nodes: Vec::new(),
            authority,
            redis,
            link: None,
            heartbeat: "200ms",
            _folder: folder,
        })
    }

    /// The configuration of a node with this name in this region.
    fn text(
        &self,
        (name, place): (&str, &str),
        origin: &Origin,
        peers: &str,
        more: &str,
    ) -> String {
        let link = self.link.as_ref().filter(|_| name != "n0");
        let redis_port = link.map_or(self.redis.port, |link| link.port);
        format!(
            "[node]\nregion = {place:?}\n{}{peers}\
             [bus]\nredis = \"redis://127.0.0.1:{}\"\nheartbeat = \"{}\"\n\
             [pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{more}",
            self.authority.section(name),
            redis_port,
            self.heartbeat,
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

    /// The position of the node that owns `http://edge.test` with this target in the region of `n0`.
    pub fn owner_of(&self, target: &str) -> usize {
        number(&self.owners_of(target))
    }

    /// The position of the node that owns this target in the shield.
    pub fn shield_of(&self, target: &str) -> usize {
        number(&self.owners_of(target)["shield"][0])
    }

    fn owners_of(&self, target: &str) -> Value {
        let target = format!("/nodes/owner?url=http://edge.test{target}");
        let answer = self.nodes[0].admin("GET", &target, "");
        serde_json::from_str(answer.text()).expect("an owner")
    }
}

fn number(owned: &Value) -> usize {
    let name = owned["owner"].as_str().unwrap_or_else(|| panic!("{owned}"));
    name[1..].parse().expect("a name of a node")
}
