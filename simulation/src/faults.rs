//! Injects a fault into the fleet, and ends it.
//!
//! Faults of links are only noted here: fleet/conditions.rs applies them.

use crate::fleet::Fleet;
use crate::fleet::disk;
use crate::fleet::node::{self, Admin};
use crate::fleet::origin::Origin;
use crate::fleet::process::Process;
use crate::journal::NodeId;
use crate::plan::fault::Break;
use crate::plan::names::{End, Names};
use crate::plan::place::REGIONS;
use anyhow::{Context as _, bail};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;

/// Starts a fault. One that takes its own time returns when it is done, and says so.
pub async fn begin(fleet: &Fleet, fault: &Break) -> anyhow::Result<Lasting> {
    match fault {
        Break::RedisKill { .. } => fleet.redis().await?.kill().await?,
        Break::RedisPause => fleet.redis().await?.pause()?,
        Break::NodeKill { node, wipe } => kill(fleet, fleet.names.node(node)?, *wipe).await?,
        Break::NodePause { node } => {
            fleet.with_process(fleet.names.node(node)?, |process| process.pause()).await?;
        }
        Break::DiskFull { node } => {
            let node = fleet.names.node(node)?;
            let spec = &fleet.nodes[node].spec;
            let fill = |process: &Process| match spec.has_small_disk {
                true => disk::fill(process.id(), &spec.data()),
                false => process.limit_files(Some(FULL_DISK_BYTES)),
            };
            fleet.with_process(node, fill).await?;
        }
        Break::OriginFails { origin } => {
            for origin in origins_meant(&fleet.names, &fleet.origins, origin) {
                origin.mood.failing.store(true, Ordering::Relaxed);
            }
        }
        Break::OriginSlow { origin, add_ms } => {
            for origin in origins_meant(&fleet.names, &fleet.origins, origin) {
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
        // Links: fleet/conditions.rs does it.
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
    /// The fault has ended.
    Done,
    /// [`mend`] ends it.
    UntilMended,
}

/// Undoes a fault.
pub async fn mend(fleet: &Fleet, fault: &Break) -> anyhow::Result<()> {
    match fault {
        Break::RedisKill { empty } => fleet.redis().await?.restart(*empty).await?,
        Break::RedisPause => fleet.redis().await?.resume()?,
        Break::NodeKill { node, .. } => fleet.start_node(fleet.names.node(node)?).await?,
        Break::NodePause { node } => {
            fleet.with_process(fleet.names.node(node)?, |process| process.resume()).await?;
        }
        Break::DiskFull { node } => {
            let node = fleet.names.node(node)?;
            let spec = &fleet.nodes[node].spec;
            let clear = |process: &Process| match spec.has_small_disk {
                true => disk::clear(process.id(), &spec.data()),
                false => process.limit_files(None),
            };
            fleet.with_process(node, clear).await?;
        }
        Break::OriginFails { origin } => {
            for origin in origins_meant(&fleet.names, &fleet.origins, origin) {
                origin.mood.failing.store(false, Ordering::Relaxed);
            }
        }
        Break::OriginSlow { origin, .. } => {
            for origin in origins_meant(&fleet.names, &fleet.origins, origin) {
                origin.mood.added_ms.store(0, Ordering::Relaxed);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The bytes that a node without a small disk may still write to a file that is "full": enough for small appends at the
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
        let host = crate::plan::object::HOSTS[0];
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

fn origins_meant<'a>(names: &Names, origins: &'a [Origin], name: &str) -> Vec<&'a Origin> {
    let meant = |origin: &&Origin| names.means(name, End::Origin(origin.number));
    origins.iter().filter(meant).collect()
}
