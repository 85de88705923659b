//! The fleet: origins, WAN, Redis and nodes of one run, built once and wired.

pub mod certificates;
pub mod conditions;
pub mod disk;
pub mod edge_config;
pub mod node;
pub mod origin;
pub mod process;
pub mod redis;
pub mod wan;

use crate::client::Client;
use crate::fleet::certificates::Authority;
use crate::fleet::edge_config::{EdgeConfig, Upstream};
use crate::fleet::node::{Admin, NodeSpec, Ports};
use crate::fleet::origin::{Content, Origin};
use crate::fleet::process::{Process, free_port, work_folder};
use crate::fleet::redis::Redis;
use crate::fleet::wan::{Conditions, Link};
use crate::journal::{Journal, NodeId};
use crate::plan::fault::Break;
use crate::plan::names::{End, Names, origin_name};
use crate::plan::object::Catalog;
use crate::plan::place::{COUNTRIES, nearest, region_named, round_trip};
use crate::plan::scenario::Scenario;
use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
use tokio::time::{interval, sleep};

/// One node of the fleet.
pub struct Node {
    /// Its identity, ports and directories.
    pub spec: NodeSpec,
    /// Its process, while it runs.
    pub process: AsyncMutex<Option<Process>>,
    /// Whether the load balancer considers it ready.
    pub ready: AtomicBool,
    /// The process id; 0 while there is none.
    pub pid: AtomicI32,
}

/// Everything that runs.
pub struct Fleet {
    /// The names that faults use.
    pub names: Names,
    /// The content of the origins.
    pub content: Arc<Content>,
    /// The notebook.
    pub journal: Journal,
    /// The origins.
    pub origins: Vec<Origin>,
    /// Region of each origin.
    pub origin_regions: Vec<usize>,
    /// Everything between two ends.
    pub links: Vec<Link>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The certificate authority.
    pub authority: Authority,
    /// The HTTP client of all clients.
    pub client: Client,
    /// Whether the configuration is the lab's own.
    pub own_config: bool,
    redis: Option<AsyncMutex<Redis>>,
    in_force: Mutex<BTreeSet<usize>>,
    binary: PathBuf,
    folder: tempfile::TempDir,
}

/// How often the balancer asks each node whether it is ready.
pub const BALANCER_PERIOD: Duration = Duration::from_millis(200);

impl Fleet {
    /// Starts everything; returns when every node is ready. `edge_toml` is a configuration of
    /// the user's own to run instead of the lab's.
    pub async fn start(
        scenario: &Scenario,
        seed: u64,
        binary: PathBuf,
        edge_toml: Option<&Path>,
    ) -> anyhow::Result<Arc<Fleet>> {
        let folder = work_folder()?;
        let journal = Journal::new();
        let catalog = Catalog::new(seed, scenario.load.objects, &scenario.load.mix);
        let content = Content::new(catalog, journal.clone());
        let regions = |names: &[String]| -> anyhow::Result<Vec<usize>> {
            names.iter().map(|name| region_named(name).context("unknown region")).collect()
        };
        let origin_regions = regions(&scenario.fleet.origins)?;
        let origins: Vec<Origin> = scenario
            .fleet
            .origins
            .iter()
            .enumerate()
            .map(|(number, region)| Origin::new(number, origin_name(region), content.clone()))
            .collect();
        let redis = match scenario.fleet.redis.as_str() {
            "" => None,
            _ => Some(Redis::start(folder.path().join("redis")).await?),
        };
        let authority = Authority::new()?;
        authority.write(&folder.path().join("authority.pem"))?;
        let client = Client::trusting(authority.certificate())?;
        let nodes = specs(scenario, folder.path()).await?;
        let mut fleet = Fleet {
            names: Names::of(scenario),
            content,
            journal,
            origins,
            origin_regions,
            links: Vec::new(),
            nodes,
            authority,
            client,
            own_config: edge_toml.is_none(),
            redis: redis.map(AsyncMutex::new),
            in_force: Mutex::default(),
            binary,
            folder,
        };
        fleet.wire(scenario, seed, edge_toml).await?;
        let fleet = Arc::new(fleet);
        fleet.start_nodes().await?;
        tokio::spawn(balance(Arc::downgrade(&fleet)));
        Ok(fleet)
    }

    /// Opens links, writes configurations and certificates.
    async fn wire(
        &mut self,
        scenario: &Scenario,
        seed: u64,
        edge_toml: Option<&Path>,
    ) -> anyhow::Result<()> {
        let redis_region = region_named(&scenario.fleet.redis);
        for number in 0..self.nodes.len() {
            let spec = self.nodes[number].spec.clone();
            let mut upstreams = Vec::new();
            for (origin, region) in self.origins.clone().iter().zip(self.origin_regions.clone()) {
                let ends = (End::Node(number), End::Origin(origin.number));
                let target = origin.listen(Some(number)).await?;
                let link = self.open(ends, target, round_trip(spec.region, region), seed).await?;
                upstreams.push(Upstream { name: origin.name.clone(), region, port: link });
            }
            let redis_port = match (&self.redis, redis_region) {
                (Some(redis), Some(region)) => {
                    let target = redis.lock().await.port;
                    let ends = (End::Node(number), End::Redis);
                    Some(self.open(ends, target, round_trip(spec.region, region), seed).await?)
                }
                _ => None,
            };
            self.authority.issue(&spec)?;
            let workers = scenario.fleet.workers;
            let config = EdgeConfig { spec: &spec, upstreams, redis_port, workers };
            config.write(edge_toml)?;
        }
        Ok(())
    }

    async fn open(
        &mut self,
        (from, to): (End, End),
        target: u16,
        round_trip: Duration,
        seed: u64,
    ) -> anyhow::Result<u16> {
        let seed = seed.wrapping_mul(31).wrapping_add(self.links.len() as u64);
        let link = Link::open((from, to), target, Conditions::healthy(round_trip), seed).await?;
        let port = link.port;
        self.links.push(link);
        Ok(port)
    }

    async fn start_nodes(&self) -> anyhow::Result<()> {
        for number in 0..self.nodes.len() {
            self.launch(number).await?;
        }
        for number in 0..self.nodes.len() {
            self.await_ready(number).await?;
        }
        Ok(())
    }

    async fn launch(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        ensure!(slot.is_none(), "{} runs already", node.spec.name);
        let process = node::start(&self.binary, &node.spec)?;
        node.pid.store(process.id(), Ordering::Relaxed);
        *slot = Some(process);
        self.journal.life(number, true);
        Ok(())
    }

    async fn await_ready(&self, number: NodeId) -> anyhow::Result<Duration> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        let process = slot.as_mut().with_context(|| format!("{} is gone", node.spec.name))?;
        let took = Admin::new(node.spec.ports.admin).wait_until_ready(process).await?;
        node.ready.store(true, Ordering::Relaxed);
        Ok(took)
    }

    /// Starts a node that is not running, and waits until it is ready.
    pub async fn start_node(&self, number: NodeId) -> anyhow::Result<()> {
        self.launch(number).await?;
        self.await_ready(number).await.map(|_| ())
    }

    /// SIGKILL.
    pub async fn kill_node(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        if let Some(mut process) = slot.take() {
            self.gone(number);
            process.kill().await?;
        }
        Ok(())
    }

    /// Asks a node to leave, and waits until it has.
    pub async fn stop_node(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        if let Some(mut process) = slot.take() {
            let ended = node::stop(&mut process).await?;
            self.gone(number);
            ensure!(ended == node::Ended::ByItself, "{} did not leave when asked", node.spec.name);
        }
        Ok(())
    }

    /// Waits until the balancer has seen that a node is not ready, and what it sent there
    /// before has arrived.
    pub async fn seen_unready(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut periods = 0;
        while node.ready.load(Ordering::Relaxed) {
            ensure!(periods < 50, "{} is drained and says it is ready", node.spec.name);
            periods += 1;
            sleep(BALANCER_PERIOD).await;
        }
        sleep(BALANCER_PERIOD).await;
        Ok(())
    }

    fn gone(&self, number: NodeId) {
        let node = &self.nodes[number];
        node.pid.store(0, Ordering::Relaxed);
        node.ready.store(false, Ordering::Relaxed);
        self.journal.life(number, false);
    }

    /// Whether a node's process is there.
    pub async fn is_running(&self, number: NodeId) -> bool {
        self.nodes[number].process.lock().await.is_some()
    }

    /// Fails when a node has ended without being asked to.
    pub async fn must_run(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            if let Some(process) = node.process.lock().await.as_mut() {
                process.must_run()?;
            }
        }
        Ok(())
    }

    /// Does something to a node's running process.
    pub async fn with_process<T>(
        &self,
        number: NodeId,
        act: impl FnOnce(&Process) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let node = &self.nodes[number];
        let slot = node.process.lock().await;
        act(slot.as_ref().with_context(|| format!("{} is not running", node.spec.name))?)
    }

    /// The Redis server.
    pub async fn redis(&self) -> anyhow::Result<AsyncMutexGuard<'_, Redis>> {
        Ok(self.redis.as_ref().context("the fleet has no Redis")?.lock().await)
    }

    /// Redis' own port, past the WAN.
    pub async fn redis_port(&self) -> Option<u16> {
        match &self.redis {
            Some(redis) => Some(redis.lock().await.port),
            None => None,
        }
    }

    /// Whether purges travel between nodes.
    pub fn has_bus(&self) -> bool {
        self.redis.is_some()
    }

    /// A fault of the scenario begins or ends: the conditions of the links are made anew.
    pub fn set_in_force(&self, faults: &[Break], fault: usize, on: bool) {
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        if on {
            in_force.insert(fault)
        } else {
            in_force.remove(&fault)
        };
        for link in &self.links {
            let active = in_force.iter().map(|at| &faults[*at]);
            let conditions = conditions::under_faults(&self.names, link, active);
            link.change(|now| *now = conditions);
        }
    }

    /// The node that a client is sent to: one of the nearest region that has a ready one.
    pub fn choose(&self, country: usize, pick: u64) -> NodeId {
        let ready = |number: &NodeId| self.nodes[*number].ready.load(Ordering::Relaxed);
        let mut candidates: Vec<NodeId> = (0..self.nodes.len()).filter(ready).collect();
        if candidates.is_empty() {
            candidates = (0..self.nodes.len()).collect();
        }
        let regions: Vec<usize> = candidates.iter().map(|n| self.nodes[*n].spec.region).collect();
        let region = nearest(country, &regions);
        candidates.retain(|number| self.nodes[*number].spec.region == region);
        candidates[(pick % candidates.len() as u64) as usize]
    }

    /// The nodes' names.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.spec.name.clone()).collect()
    }

    /// The position of a node.
    pub fn node_named(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.spec.name == name)
    }

    /// For each country, the origin that the lab's configuration maps it to.
    pub fn origin_of_country(&self) -> Vec<String> {
        if !self.own_config {
            return Vec::new();
        }
        let origin = |country| {
            let region = nearest(country, &self.origin_regions);
            let at = self.origin_regions.iter().position(|of| *of == region).unwrap_or(0);
            self.origins[at].name.clone()
        };
        (0..COUNTRIES.len()).map(origin).collect()
    }

    /// The folder of this run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

async fn specs(scenario: &Scenario, folder: &Path) -> anyhow::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    let can_have_small_disks = disk::can_have_small_disks(folder).await;
    for name in scenario.node_names() {
        let region = name.rsplit_once('-').and_then(|(region, _)| region_named(region));
        let region = region.context("a node without a region")?;
        let (http, https, admin) = (free_port().await?, free_port().await?, free_port().await?);
        let ports = Ports { http, https, admin };
        let folder = folder.join(&name);
        std::fs::create_dir_all(&folder)?;
        let has_small_disk = may_be_full(scenario, &name) && can_have_small_disks;
        let spec = NodeSpec { name, region, ports, folder, has_small_disk };
        let (ready, pid) = (AtomicBool::new(false), AtomicI32::new(0));
        nodes.push(Node { spec, process: AsyncMutex::new(None), ready, pid });
    }
    Ok(nodes)
}

/// Whether a scenario fills this node's disk. One that it also restarts keeps its data in an
/// ordinary folder: a small disk goes with its process.
fn may_be_full(scenario: &Scenario, name: &str) -> bool {
    let faults = || scenario.fault.iter().map(|fault| &fault.what);
    let restarts = |fault: &Break| match fault {
        Break::NodeKill { node, .. } => node == name,
        Break::RollingUpgrade => true,
        _ => false,
    };
    faults().any(|fault| matches!(fault, Break::DiskFull { node } if node == name))
        && !faults().any(restarts)
}

/// The health checks of a load balancer or GeoDNS: asks each node often whether it is ready. Ends with
/// the fleet.
async fn balance(fleet: std::sync::Weak<Fleet>) {
    let mut ticks = interval(BALANCER_PERIOD);
    loop {
        ticks.tick().await;
        let Some(fleet) = fleet.upgrade() else { return };
        let mut asked = tokio::task::JoinSet::new();
        for (number, node) in fleet.nodes.iter().enumerate() {
            let running = node.pid.load(Ordering::Relaxed) != 0;
            let admin = Admin::new(node.spec.ports.admin);
            asked.spawn(async move { (number, running && admin.is_ready().await) });
        }
        while let Some(Ok((number, ready))) = asked.join_next().await {
            let node = &fleet.nodes[number];
            let running = node.pid.load(Ordering::Relaxed) != 0;
            node.ready.store(ready && running, Ordering::Relaxed);
        }
    }
}
