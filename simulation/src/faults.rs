//! What a fault does to the fleet, and how it is undone.
//!
//! Links have weather: after each change their conditions are made anew from all faults in
//! force, so that faults may overlap and end in any order.

use crate::disk;
use crate::fleet::Fleet;
use crate::journal::NodeId;
use crate::node::{self, Admin};
use crate::origin::Origin;
use crate::place::REGIONS;
use crate::process::Process;
use crate::scenario::{Break, CutDirection, Scenario};
use crate::wan::{Conditions, End, Link};
use anyhow::{Context as _, bail, ensure};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;

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
    fn means(&self, name: &str, end: End) -> bool {
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

    fn origins_meant<'a>(&self, origins: &'a [Origin], name: &str) -> Vec<&'a Origin> {
        let meant = |origin: &&Origin| self.means(name, End::Origin(origin.number));
        origins.iter().filter(meant).collect()
    }

    fn node_meant(&self, name: &str) -> anyhow::Result<NodeId> {
        let found = self.nodes.iter().position(|(node, _)| node == name);
        found.with_context(|| format!("no node is called {name}"))
    }

    /// What a link is like under these faults.
    pub fn weather<'a>(&self, link: &Link, faults: impl Iterator<Item = &'a Break>) -> Conditions {
        let mut conditions = link.healthy.clone();
        for fault in faults {
            self.burden(fault, link, &mut conditions);
        }
        conditions
    }

    fn burden(&self, fault: &Break, link: &Link, conditions: &mut Conditions) {
        let between = |from: &str, to: &str| self.means(from, link.from) && self.means(to, link.to);
        match fault {
            Break::Cut { from, to, direction } if between(from, to) => {
                conditions.there_held |= *direction != CutDirection::Back;
                conditions.back_held |= *direction != CutDirection::There;
            }
            Break::Delay { from, to, add_ms } if between(from, to) => {
                conditions.round_trip += Duration::from_millis(*add_ms);
            }
            Break::Loss { from, to, stall, reset } if between(from, to) => {
                conditions.stall_chance += stall;
                conditions.reset_chance += reset;
            }
            Break::Throttle { from, to, kib_per_s } if between(from, to) => {
                conditions.bytes_per_second = Some(kib_per_s << 10);
            }
            Break::OriginDown { origin } if self.means(origin, link.to) => {
                conditions.refusing = true;
            }
            _ => {}
        }
    }
}

/// `origin-frankfurt`.
pub fn origin_name(region: &str) -> String {
    format!("origin-{region}")
}

/// Starts a fault. One that takes its own time returns when it is done, and says so.
pub async fn begin(fleet: &Fleet, fault: &Break) -> anyhow::Result<Lasting> {
    match fault {
        Break::RedisKill { .. } => fleet.redis().await?.kill().await?,
        Break::RedisPause => fleet.redis().await?.pause()?,
        Break::NodeKill { node, wipe } => kill(fleet, fleet.names.node_meant(node)?, *wipe).await?,
        Break::NodePause { node } => {
            fleet.with_process(fleet.names.node_meant(node)?, |process| process.pause()).await?;
        }
        Break::DiskFull { node } => {
            let node = fleet.names.node_meant(node)?;
            let spec = &fleet.nodes[node].spec;
            let fill = |process: &Process| match spec.has_small_disk {
                true => disk::fill(process.id(), &spec.data()),
                false => process.limit_files(Some(FULL_DISK_BYTES)),
            };
            fleet.with_process(node, fill).await?;
        }
        Break::OriginFails { origin } => {
            for origin in fleet.names.origins_meant(&fleet.origins, origin) {
                origin.mood.failing.store(true, Ordering::Relaxed);
            }
        }
        Break::OriginSlow { origin, add_ms } => {
            for origin in fleet.names.origins_meant(&fleet.origins, origin) {
                origin.mood.added_ms.store(*add_ms, Ordering::Relaxed);
            }
        }
        Break::RollingUpgrade => {
            rolling_upgrade(fleet).await?;
            return Ok(Lasting::Done);
        }
        Break::CertRotation => {
            rotate_certificates(fleet).await?;
            return Ok(Lasting::Done);
        }
        // Links: the weather does it.
        Break::Cut { .. }
        | Break::Delay { .. }
        | Break::Loss { .. }
        | Break::Throttle { .. }
        | Break::OriginDown { .. } => {}
    }
    Ok(Lasting::UntilMended)
}

/// Whether a fault goes on after [`begin`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// It is over.
    Done,
    /// [`mend`] ends it.
    UntilMended,
}

/// Undoes a fault.
pub async fn mend(fleet: &Fleet, fault: &Break) -> anyhow::Result<()> {
    match fault {
        Break::RedisKill { empty } => fleet.redis().await?.restart(*empty).await?,
        Break::RedisPause => fleet.redis().await?.resume()?,
        Break::NodeKill { node, .. } => fleet.start_node(fleet.names.node_meant(node)?).await?,
        Break::NodePause { node } => {
            fleet.with_process(fleet.names.node_meant(node)?, |process| process.resume()).await?;
        }
        Break::DiskFull { node } => {
            let node = fleet.names.node_meant(node)?;
            let spec = &fleet.nodes[node].spec;
            let clear = |process: &Process| match spec.has_small_disk {
                true => disk::clear(process.id(), &spec.data()),
                false => process.limit_files(None),
            };
            fleet.with_process(node, clear).await?;
        }
        Break::OriginFails { origin } => {
            for origin in fleet.names.origins_meant(&fleet.origins, origin) {
                origin.mood.failing.store(false, Ordering::Relaxed);
            }
        }
        Break::OriginSlow { origin, .. } => {
            for origin in fleet.names.origins_meant(&fleet.origins, origin) {
                origin.mood.added_ms.store(0, Ordering::Relaxed);
            }
        }
        _ => {}
    }
    Ok(())
}

/// What a node without a small disk may still write to a file that is "full": enough for small appends at the
/// head of a file, nothing for the blocks of a cache.
const FULL_DISK_BYTES: u64 = 64 * 1024;

async fn kill(fleet: &Fleet, node: NodeId, wipe: bool) -> anyhow::Result<()> {
    fleet.kill_node(node).await?;
    let data = fleet.nodes[node].spec.data();
    if wipe && data.exists() {
        std::fs::remove_dir_all(&data).with_context(|| format!("wipe {}", data.display()))?;
    }
    Ok(())
}

/// Drain, wait until the balancer has seen it, end, start the new one, next.
async fn rolling_upgrade(fleet: &Fleet) -> anyhow::Result<()> {
    for node in 0..fleet.nodes.len() {
        let admin = Admin::new(fleet.nodes[node].spec.ports.admin);
        admin.drain().await?;
        fleet.seen_unready(node).await?;
        fleet.stop_node(node).await?;
        fleet.start_node(node).await?;
    }
    Ok(())
}

async fn rotate_certificates(fleet: &Fleet) -> anyhow::Result<()> {
    for (number, node) in fleet.nodes.iter().enumerate() {
        if !fleet.is_running(number).await {
            continue;
        }
        let ports = node.spec.ports;
        let host = crate::object::HOSTS[0];
        let before = fleet.client.certificate(ports.https, host).await?;
        fleet.authority.issue(&node.spec)?;
        Admin::new(ports.admin).reload().await?;
        let mut tries = 0;
        while fleet.client.certificate(ports.https, host).await? == before {
            tries += 1;
            if tries > 100 {
                bail!("{} still shows its old certificate", node.spec.name);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// For maps: where a fault is.
pub fn place_of(region: &str) -> Option<(f64, f64)> {
    let region = REGIONS.iter().find(|known| known.name == region)?;
    Some((region.latitude, region.longitude))
}

/// Ends what is still running, politely first.
pub async fn stop_all(fleet: &Fleet) {
    for node in &fleet.nodes {
        let mut process = node.process.lock().await;
        if let Some(process) = process.as_mut() {
            let _ = process.resume();
            // Dropping the process kills it, whatever this says.
            let _ = node::stop(process).await;
        }
        *process = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn link(from: End, to: End) -> Link {
        let healthy = Conditions::healthy(Duration::from_millis(100));
        Link::open((from, to), 1, healthy, 1).await.expect("link")
    }

    fn names() -> Names {
        let text = "about = ''\nduration_s = 1\n[fleet]\nregions = ['frankfurt', 'tokyo']\n";
        Names::of(&Scenario::read(text).expect("scenario"))
    }

    fn cut(from: &str, to: &str, direction: CutDirection) -> Break {
        Break::Cut { from: from.into(), to: to.into(), direction }
    }

    #[tokio::test]
    async fn overlapping_faults_add_up_on_the_links_that_they_name() {
        let names = names();
        let faults = [
            cut("tokyo", "redis", CutDirection::There),
            Break::Delay { from: "*".into(), to: "*".into(), add_ms: 50 },
            Break::OriginDown { origin: "origin-virginia".into() },
        ];
        let of = |link: &Link| names.weather(link, faults.iter());
        let tokyo_redis = of(&link(End::Node(2), End::Redis).await);
        assert!(tokyo_redis.there_held && !tokyo_redis.back_held && !tokyo_redis.refusing);
        assert_eq!(tokyo_redis.round_trip, Duration::from_millis(150));
        let frankfurt_redis = of(&link(End::Node(0), End::Redis).await);
        assert!(!frankfurt_redis.there_held);
        assert!(!of(&link(End::Node(0), End::Origin(0)).await).refusing);
        assert!(of(&link(End::Node(0), End::Origin(1)).await).refusing);
    }

    #[test]
    fn faults_name_what_exists_and_touch_the_nodes_that_they_name() {
        let names = names();
        assert!(names.check(&cut("tokyo", "redis", CutDirection::Both)).is_ok());
        assert!(names.check(&cut("paris", "redis", CutDirection::Both)).is_err());
        assert!(names.check(&Break::NodePause { node: "redis".into() }).is_err());
        assert_eq!(names.touched(&cut("tokyo", "redis", CutDirection::Both)), [2, 3]);
        assert_eq!(names.touched(&Break::NodePause { node: "tokyo-2".into() }), [3]);
        assert_eq!(names.touched(&Break::RedisPause), [0, 1, 2, 3]);
    }
}
