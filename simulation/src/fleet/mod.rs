//! The fleet of one run: nodes, origins, Redis and the WAN links that connect them.

pub mod certificates;
pub mod conditions;
pub mod disk;
pub mod edge_config;
pub mod node;
pub mod origin;
pub mod peers;
pub mod process;
pub mod redis;
pub mod resolver;
pub mod wan;

use crate::client::{Client, ClientRequest};
use crate::fleet::certificates::Authority;
use crate::fleet::edge_config::{EdgeConfig, Peers, Upstream};
use crate::fleet::node::{Admin, NodeSpec, Ports};
use crate::fleet::origin::{Content, Origin};
use crate::fleet::peers::{AskedNode, AskerLookup};
use crate::fleet::process::{Process, free_port, work_folder};
use crate::fleet::redis::Redis;
use crate::fleet::resolver::{Resolver, address_of_node};
use crate::fleet::wan::{Conditions, Link};
use crate::journal::{Journal, NodeId, PeerBytes};
use crate::plan::fault::FaultSpec;
use crate::plan::names::{Endpoint, Names, origin_name};
use crate::plan::object::{Catalog, HOSTS};
use crate::plan::place::{COUNTRIES, REGIONS, address_of, nearest, region_by_name, round_trip};
use crate::plan::scenario::Scenario;
use anyhow::{Context as _, ensure};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
use tokio::time::{Instant, interval, sleep};

/// One node of the fleet.
pub struct Node {
    /// Its name, region, ports and folder.
    pub spec: NodeSpec,
    /// Its process; `None` while it is stopped.
    pub process: AsyncMutex<Option<Process>>,
    /// Whether the balancer sends it requests: the result of its last readiness check.
    pub ready: AtomicBool,
    /// Its process id; 0 while it is stopped.
    pub pid: Arc<AtomicI32>,
}

/// All processes and links of a run.
pub struct Fleet {
    /// Resolves the names in faults.
    pub names: Names,
    /// The objects that the origins serve.
    pub content: Arc<Content>,
    /// The record of what happens.
    pub journal: Journal,
    /// The origins.
    pub origins: Vec<Origin>,
    /// The region of each origin, as an index of [`crate::plan::place::REGIONS`].
    pub origin_regions: Vec<usize>,
    /// The links from nodes to origins, Redis and other nodes, and from resolvers to nodes.
    pub links: Vec<Link>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Signs the nodes' certificates for clients.
    pub authority: Authority,
    /// Sends the requests of all clients.
    pub client: Client,
    /// The resolver of each country; empty: a load balancer chooses the node.
    pub resolvers: Vec<Resolver>,
    /// Whether nodes run the built-in configuration, not the user's.
    pub own_config: bool,
    /// Whether each pool has all origins, for those that fail.
    fails_over: bool,
    /// Whether the nodes of a region ask each other before an origin; unknown of a user's configuration.
    pub has_peers: bool,
    redis: Option<AsyncMutex<Redis>>,
    dns_ttl: Duration,
    in_force: Mutex<BTreeSet<usize>>,
    /// The groups that clients were told, by the number of the client.
    visitor_groups: Mutex<HashMap<u32, String>>,
    binary: PathBuf,
    folder: tempfile::TempDir,
}

/// Enough that each worker of a node has probably asked each other node of its region.
const FIRST_REQUESTS: usize = 16;
/// The later ones also ask nodes that were late in the first one.
const FIRST_ROUNDS: usize = 3;
/// How long a node that was late is not asked: `peers.skip_for`.
const SKIPPED_FOR: Duration = Duration::from_millis(1100);

/// How long the nodes may take at the start until each knows all others: a few heartbeats.
const ACQUAINTANCE_LIMIT: Duration = Duration::from_secs(30);

/// After this time, no name server names a node that drains.
const ANSWERS_CHANGE_WITHIN: Duration = Duration::from_secs(3);

/// Interval of the balancer's readiness checks.
pub const BALANCER_PERIOD: Duration = Duration::from_millis(200);

impl Fleet {
    /// Starts the fleet and returns when every node is ready. Nodes run the user's configuration
    /// `edge_toml` if one is given, otherwise a built-in one.
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
            names.iter().map(|name| region_by_name(name).context("unknown region")).collect()
        };
        let origin_regions = regions(&scenario.fleet.origins)?;
        let origins: Vec<Origin> = scenario
            .fleet
            .origins
            .iter()
            .enumerate()
            .map(|(number, region)| Origin::new(number, origin_name(region), content.clone()))
            .collect();
        ensure!(
            scenario.fleet.dns_ttl_s == 0 || !scenario.fleet.redis.is_empty(),
            "clients that use DNS (fleet.dns_ttl_s) need Redis, by which the name servers know the nodes"
        );
        let redis = match scenario.fleet.redis.as_str() {
            "" => None,
            _ => Some(Redis::start(folder.path().join("redis")).await?),
        };
        let authority = Authority::new()?;
        authority.write(&folder.path().join("authority.pem"))?;
        let client = Client::trusting(authority.certificate())?;
        let nodes = stopped_nodes(scenario, folder.path()).await?;
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
            resolvers: Vec::new(),
            own_config: edge_toml.is_none(),
            fails_over: scenario.fleet.failover,
            has_peers: edge_toml.is_none() && scenario.fleet.peers && scenario.fleet.nodes > 1,
            redis: redis.map(AsyncMutex::new),
            dns_ttl: Duration::from_secs(scenario.fleet.dns_ttl_s),
            in_force: Mutex::default(),
            visitor_groups: Mutex::default(),
            binary,
            folder,
        };
        fleet.connect_nodes(scenario, seed, edge_toml).await?;
        fleet.connect_resolvers(seed).await?;
        let fleet = Arc::new(fleet);
        fleet.start_nodes().await?;
        tokio::spawn(balance(Arc::downgrade(&fleet)));
        Ok(fleet)
    }

    /// Opens the links and writes the configuration and certificate of each node.
    async fn connect_nodes(
        &mut self,
        scenario: &Scenario,
        seed: u64,
        edge_toml: Option<&Path>,
    ) -> anyhow::Result<()> {
        let redis_region = region_by_name(&scenario.fleet.redis);
        let peer_authority = Authority::new()?;
        let authority_file = self.folder.path().join("peer-authority.pem");
        peer_authority.write(&authority_file)?;
        let peer_ports = self.open_peer_links(seed).await?;
        for number in 0..self.nodes.len() {
            let spec = self.nodes[number].spec.clone();
            let mut upstreams = Vec::new();
            for (origin, region) in self.origins.clone().iter().zip(self.origin_regions.clone()) {
                let ends = (Endpoint::Node(number), Endpoint::Origin(origin.number));
                let target = origin.listen(Some(number)).await?;
                let link =
                    self.open_link(ends, target, round_trip(spec.region, region), seed).await?;
                upstreams.push(Upstream { name: origin.name.clone(), region, port: link });
            }
            let redis_port = match (&self.redis, redis_region) {
                (Some(redis), Some(region)) => {
                    let target = redis.lock().await.port;
                    let ends = (Endpoint::Node(number), Endpoint::Redis);
                    Some(self.open_link(ends, target, round_trip(spec.region, region), seed).await?)
                }
                _ => None,
            };
            self.authority.issue(&spec)?;
            peer_authority.issue_to_peer(&spec)?;
            let named = self.node_names().into_iter().zip(peer_ports.iter().copied());
            let peers = scenario.fleet.peers.then(|| Peers {
                announced: peer_ports[number],
                authority: authority_file.clone(),
                nodes: if redis_port.is_none() { named.collect() } else { Vec::new() },
            });
            let (spec, plan, address) = (&spec, &scenario.fleet, address_of_node(number));
            let config = EdgeConfig { spec, upstreams, redis_port, peers, plan, address };
            config.write(edge_toml)?;
        }
        Ok(())
    }

    /// Opens the links between all nodes. Returns the port at which the others reach each node.
    async fn open_peer_links(&mut self, seed: u64) -> anyhow::Result<Vec<u16>> {
        let processes = self.nodes.iter().map(|node| node.pid.clone()).collect();
        let lookup = AskerLookup::start(processes);
        let regions: Vec<usize> = self.nodes.iter().map(|node| node.spec.region).collect();
        let mut ports = Vec::new();
        for (node, region) in regions.iter().enumerate() {
            let asked = AskedNode { node, port: self.nodes[node].spec.ports.peer };
            let seed = seed.wrapping_mul(41).wrapping_add(node as u64);
            let distance = |asker: NodeId| round_trip(regions[asker], *region);
            let (port, links) = peers::open_links(asked, lookup.clone(), distance, seed).await?;
            ports.push(port);
            self.links.extend(links);
        }
        Ok(ports)
    }

    /// Opens the links between the resolver of each country and all nodes, if clients use DNS.
    async fn connect_resolvers(&mut self, seed: u64) -> anyhow::Result<()> {
        let countries = if self.dns_ttl.is_zero() { 0 } else { COUNTRIES.len() };
        let everywhere: Vec<usize> = (0..REGIONS.len()).collect();
        for country in 0..countries {
            let place = nearest(country, &everywhere);
            let mut links = Vec::new();
            for (number, node) in self.nodes.iter().enumerate() {
                let ends = (Endpoint::Resolver(country), Endpoint::Node(number));
                let healthy = Conditions::healthy(round_trip(place, node.spec.region));
                let seed = seed.wrapping_mul(37).wrapping_add((country << 8 | number) as u64);
                let link = Link::open_datagrams(ends, node.spec.ports.dns, healthy, seed).await?;
                links.push((number, link));
            }
            self.resolvers.push(Resolver::new(country, &links, self.journal.clone()));
            self.links.extend(links.into_iter().map(|(_, link)| link));
        }
        Ok(())
    }

    async fn open_link(
        &mut self,
        (from, to): (Endpoint, Endpoint),
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
        if self.has_peers { self.await_acquaintance().await } else { Ok(()) }
    }

    /// Waits until each node knows that all others are ready: before that, it owns keys that are another node's.
    async fn await_acquaintance(&self) -> anyhow::Result<()> {
        let (start, mut all) = (Instant::now(), self.node_names());
        all.sort_unstable();
        for node in &self.nodes {
            let admin = Admin::new(node.spec.ports.admin);
            loop {
                let mut known = admin.ready_nodes().await?;
                known.sort_unstable();
                if known == all {
                    break;
                }
                let name = &node.spec.name;
                ensure!(
                    start.elapsed() < ACQUAINTANCE_LIMIT,
                    "{name} knows only {known:?} as ready nodes after {ACQUAINTANCE_LIMIT:?}"
                );
                sleep(BALANCER_PERIOD).await;
            }
        }
        self.open_peer_connections().await
    }

    /// Sends requests that no origin has an object for, so that nodes connect to each other before the load: on the cores
    /// that all nodes share, their handshakes at once would take longer than the deadline for an owner. The promise "one
    /// fill a region" would then measure the machine.
    async fn open_peer_connections(&self) -> anyhow::Result<()> {
        for round in 0..FIRST_ROUNDS {
            let mut requests = tokio::task::JoinSet::new();
            for node in &self.nodes {
                for number in 0..FIRST_REQUESTS {
                    let port = node.spec.ports.http;
                    let path = format!("/first/{round}-{number}");
                    let request = ClientRequest::path(HOSTS[0], &path);
                    // A connection of its own, so that each worker gets some.
                    requests.spawn(async move { Client::plain().send_http(port, &request).await });
                }
            }
            while let Some(response) = requests.join_next().await {
                response.context("a request panicked")??;
            }
            sleep(SKIPPED_FOR).await;
        }
        Ok(())
    }

    async fn launch(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        ensure!(slot.is_none(), "{} is already running", node.spec.name);
        let process = node::start(&self.binary, &node.spec)?;
        node.pid.store(process.id(), Ordering::Relaxed);
        *slot = Some(process);
        self.journal.record_process(number, true);
        Ok(())
    }

    async fn await_ready(&self, number: NodeId) -> anyhow::Result<Duration> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        let process =
            slot.as_mut().with_context(|| format!("{} is not running", node.spec.name))?;
        let took = Admin::new(node.spec.ports.admin).wait_until_ready(process).await?;
        node.ready.store(true, Ordering::Relaxed);
        Ok(took)
    }

    /// Starts a stopped node and waits until it is ready.
    pub async fn start_node(&self, number: NodeId) -> anyhow::Result<()> {
        self.launch(number).await?;
        self.await_ready(number).await.map(|_| ())
    }

    /// Kills a node (SIGKILL).
    pub async fn kill_node(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        if let Some(mut process) = slot.take() {
            self.mark_stopped(number);
            process.kill().await?;
        }
        Ok(())
    }

    /// Stops a node (SIGTERM) and waits until it has exited.
    pub async fn stop_node(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut slot = node.process.lock().await;
        if let Some(mut process) = slot.take() {
            let termination = node::stop(&mut process).await?;
            self.mark_stopped(number);
            ensure!(
                termination == node::Termination::Graceful,
                "{} did not exit after SIGTERM and was killed",
                node.spec.name
            );
        }
        Ok(())
    }

    /// Waits until the balancer has noticed that a node is not ready, and until the requests that
    /// it sent there before have arrived.
    pub async fn wait_until_unready(&self, number: NodeId) -> anyhow::Result<()> {
        let node = &self.nodes[number];
        let mut periods = 0;
        while node.ready.load(Ordering::Relaxed) {
            ensure!(
                periods < 50,
                "{} is drained but still reports that it is ready",
                node.spec.name
            );
            periods += 1;
            sleep(BALANCER_PERIOD).await;
        }
        sleep(BALANCER_PERIOD).await;
        Ok(())
    }

    fn mark_stopped(&self, number: NodeId) {
        let node = &self.nodes[number];
        node.pid.store(0, Ordering::Relaxed);
        node.ready.store(false, Ordering::Relaxed);
        self.journal.record_process(number, false);
    }

    /// Whether a node's process is running.
    pub async fn is_running(&self, number: NodeId) -> bool {
        self.nodes[number].process.lock().await.is_some()
    }

    /// # Errors
    /// A node exited although it was not stopped, with the end of its log.
    pub async fn ensure_running(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            if let Some(process) = node.process.lock().await.as_mut() {
                process.ensure_running()?;
            }
        }
        Ok(())
    }

    /// Calls `act` with a node's running process.
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

    /// Records the bytes that nodes have sent to each other so far.
    pub fn record_peer_bytes(&self) {
        let between = |link: &Link| match (link.from, link.to) {
            (Endpoint::Node(asker), Endpoint::Node(asked)) => {
                Some(PeerBytes { asker, asked, bytes: link.answered_bytes() })
            }
            _ => None,
        };
        self.journal.facts().peer_bytes = self.links.iter().filter_map(between).collect();
    }

    /// The port of Redis itself, without a WAN link.
    pub async fn redis_port(&self) -> Option<u16> {
        match &self.redis {
            Some(redis) => Some(redis.lock().await.port),
            None => None,
        }
    }

    /// Whether the fleet has Redis, so that a purge sent to one node reaches all.
    pub fn has_bus(&self) -> bool {
        self.redis.is_some()
    }

    /// Starts or ends a fault and recomputes the conditions of all links.
    pub fn set_in_force(&self, faults: &[FaultSpec], fault: usize, on: bool) {
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

    /// The node for a client's request: by DNS, where clients use it, otherwise [`Fleet::choose_node`]. `pick` selects
    /// among the addresses of the answer.
    ///
    /// # Errors
    /// The client's resolver gets no answer.
    pub async fn find_node(
        &self,
        host: &str,
        country: usize,
        client: u32,
        pick: u64,
    ) -> anyhow::Result<NodeId> {
        let Some(resolver) = self.resolvers.get(country) else {
            return Ok(self.choose_node(country, pick));
        };
        let nodes = resolver.resolve(host, address_of(country, client)).await?;
        Ok(nodes[(pick % nodes.len() as u64) as usize])
    }

    /// Waits until no answer is kept any more that was given before now, if clients use DNS.
    pub async fn wait_for_expiry(&self) {
        if !self.dns_ttl.is_zero() {
            sleep(self.dns_ttl + ANSWERS_CHANGE_WITHIN).await;
        }
    }

    /// Selects the node for a request: a ready node in the nearest region that has one. `pick`
    /// selects among the nodes of the region.
    pub fn choose_node(&self, country: usize, pick: u64) -> NodeId {
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

    /// The names of all nodes.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.spec.name.clone()).collect()
    }

    /// For each node, the nodes that keep one cache with it: those of its region if they ask each other, otherwise
    /// itself alone.
    pub fn regions(&self) -> Vec<Vec<NodeId>> {
        let region = |node: NodeId| self.nodes[node].spec.region;
        let is_source =
            |node, other| node == other || self.has_peers && region(node) == region(other);
        let all = 0..self.nodes.len();
        let sources = |node| all.clone().filter(|other| is_source(node, *other)).collect();
        all.clone().map(sources).collect()
    }

    /// For each node, the nodes whose stored responses it may use: those of its region, and of the shield region with
    /// this name.
    pub fn sources(&self, shield: &str) -> Vec<Vec<NodeId>> {
        let mut sources = self.regions();
        let shield = region_by_name(shield);
        for (node, of_node) in sources.iter_mut().enumerate() {
            let all = 0..self.nodes.len();
            let in_shield = all.filter(|other| Some(self.nodes[*other].spec.region) == shield);
            of_node.extend(in_shield.filter(|_| Some(self.nodes[node].spec.region) != shield));
        }
        sources
    }

    /// The node with this name.
    pub fn node_by_name(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.spec.name == name)
    }

    /// For each country, the origin that the built-in configuration maps it to, and then, if pools fail over, the
    /// others in the order in which they stand in for it. Empty for a user's configuration.
    pub fn origins_of_country(&self) -> Vec<Vec<String>> {
        if !self.own_config {
            return Vec::new();
        }
        let origins = |country| {
            let mapped = nearest(country, &self.origin_regions);
            let mut by_distance: Vec<usize> = (0..self.origins.len()).collect();
            by_distance.sort_by_key(|origin| {
                let region = self.origin_regions[*origin];
                (region != mapped, round_trip(mapped, region))
            });
            by_distance.truncate(if self.fails_over { by_distance.len() } else { 1 });
            by_distance.iter().map(|origin| self.origins[*origin].name.clone()).collect()
        };
        (0..COUNTRIES.len()).map(origins).collect()
    }

    /// The group that a client was told last.
    pub fn group_of(&self, client: u32) -> Option<String> {
        self.visitor_groups().get(&client).cloned()
    }

    /// Keeps the cookie of a client.
    pub fn remember_group(&self, client: u32, group: String) {
        self.visitor_groups().insert(client, group);
    }

    fn visitor_groups(&self) -> MutexGuard<'_, HashMap<u32, String>> {
        self.visitor_groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The groups of the visitors of shop.test and their weights; empty if the site does not split them,
    /// and for a user's configuration.
    pub fn groups(&self, canary_percent: u32) -> Vec<(String, u32)> {
        let (Some(first), Some(last)) = (self.origins.first(), self.origins.last()) else {
            return Vec::new();
        };
        match self.own_config && canary_percent > 0 {
            true => vec![
                (first.name.clone(), 100 - canary_percent),
                (last.name.clone(), canary_percent),
            ],
            false => Vec::new(),
        }
    }

    /// The temporary folder of this run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

async fn stopped_nodes(scenario: &Scenario, folder: &Path) -> anyhow::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    let can_mount_small_disks = disk::can_mount_small_disks(folder).await;
    for name in scenario.node_names() {
        let region = name.rsplit_once('-').and_then(|(region, _)| region_by_name(region));
        let region = region.context("no region has the name of this node")?;
        let (http, https) = (free_port().await?, free_port().await?);
        let (admin, dns, peer) = (free_port().await?, free_port().await?, free_port().await?);
        let ports = Ports { http, https, admin, dns, peer };
        let folder = folder.join(&name);
        std::fs::create_dir_all(&folder)?;
        let has_small_disk = needs_small_disk(scenario, &name) && can_mount_small_disks;
        let spec = NodeSpec { name, region, ports, folder, has_small_disk };
        let (ready, pid) = (AtomicBool::new(false), Arc::default());
        nodes.push(Node { spec, process: AsyncMutex::new(None), ready, pid });
    }
    Ok(nodes)
}

/// Whether a node gets a small disk: its scenario fills the disk and never restarts the node. The
/// contents of a small disk are lost when the process exits.
fn needs_small_disk(scenario: &Scenario, name: &str) -> bool {
    let faults = || scenario.fault.iter().map(|fault| &fault.spec);
    let restarts = |fault: &FaultSpec| match fault {
        FaultSpec::NodeKill { node, .. } => node == name,
        FaultSpec::RollingUpgrade => true,
        _ => false,
    };
    faults().any(|fault| matches!(fault, FaultSpec::DiskFull { node } if node == name))
        && !faults().any(restarts)
}

/// Checks regularly which nodes are ready, as a load balancer or GeoDNS does. Ends when the fleet is
/// dropped.
async fn balance(fleet: std::sync::Weak<Fleet>) {
    let mut ticks = interval(BALANCER_PERIOD);
    loop {
        ticks.tick().await;
        let Some(fleet) = fleet.upgrade() else { return };
        let mut checks = tokio::task::JoinSet::new();
        for (number, node) in fleet.nodes.iter().enumerate() {
            let running = node.pid.load(Ordering::Relaxed) != 0;
            let admin = Admin::new(node.spec.ports.admin);
            checks.spawn(async move { (number, running && admin.is_ready().await) });
        }
        while let Some(Ok((number, ready))) = checks.join_next().await {
            let node = &fleet.nodes[number];
            let running = node.pid.load(Ordering::Relaxed) != 0;
            node.ready.store(ready && running, Ordering::Relaxed);
        }
    }
}
