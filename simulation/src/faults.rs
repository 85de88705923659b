//! Starts and ends the faults of nodes, origins and Redis. Faults of links are applied by
//! fleet/conditions.rs.

use crate::fleet::Fleet;
use crate::fleet::disk;
use crate::fleet::node::{self, Admin};
use crate::fleet::origin::Origin;
use crate::fleet::process::Process;
use crate::journal::NodeId;
use crate::plan::fault::FaultSpec;
use crate::plan::names::{Endpoint, Names};
use crate::plan::place::REGIONS;
use anyhow::{Context as _, bail};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;

/// Starts a fault. A rolling upgrade or certificate rotation is complete when this returns.
pub async fn begin(fleet: &Fleet, fault: &FaultSpec) -> anyhow::Result<FaultState> {
    match fault {
        FaultSpec::RedisKill { .. } => fleet.redis().await?.kill().await?,
        FaultSpec::RedisPause => fleet.redis().await?.pause()?,
        FaultSpec::NodeKill { node, wipe } => kill(fleet, fleet.names.node(node)?, *wipe).await?,
        FaultSpec::NodePause { node } => {
            fleet.with_process(fleet.names.node(node)?, |process| process.pause()).await?;
        }
        FaultSpec::NodeDrain { node } => {
            let node = fleet.names.node(node)?;
            Admin::new(fleet.nodes[node].spec.ports.admin).drain().await?;
        }
        FaultSpec::DiskFull { node } => {
            let node = fleet.names.node(node)?;
            let spec = &fleet.nodes[node].spec;
            let fill = |process: &Process| match spec.has_small_disk {
                true => disk::fill(process.id(), &spec.data()),
                false => process.limit_file_size(Some(FULL_DISK_BYTES)),
            };
            fleet.with_process(node, fill).await?;
        }
        FaultSpec::OriginFails { origin } => {
            for origin in origins_named(&fleet.names, &fleet.origins, origin) {
                origin.faults.failing.store(true, Ordering::Relaxed);
            }
        }
        FaultSpec::OriginSlow { origin, add_ms } => {
            for origin in origins_named(&fleet.names, &fleet.origins, origin) {
                origin.faults.added_ms.store(*add_ms, Ordering::Relaxed);
            }
        }
        FaultSpec::OriginTruncates { origin } => {
            for origin in origins_named(&fleet.names, &fleet.origins, origin) {
                origin.faults.truncating.store(true, Ordering::Relaxed);
            }
        }
        FaultSpec::RollingUpgrade => {
            rolling_upgrade(fleet).await?;
            return Ok(FaultState::Over);
        }
        FaultSpec::CertRotation => {
            rotate_certificates(fleet).await?;
            return Ok(FaultState::Over);
        }
        // Faults of links are applied by fleet/conditions.rs.
        FaultSpec::Cut { .. }
        | FaultSpec::Delay { .. }
        | FaultSpec::Loss { .. }
        | FaultSpec::Throttle { .. }
        | FaultSpec::OriginDown { .. } => {}
    }
    Ok(FaultState::InForce)
}

/// Whether a fault is still in force after [`begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultState {
    /// The fault ended by itself.
    Over,
    /// The fault lasts until [`end`].
    InForce,
}

/// Ends a fault.
pub async fn end(fleet: &Fleet, fault: &FaultSpec) -> anyhow::Result<()> {
    match fault {
        FaultSpec::RedisKill { empty } => fleet.redis().await?.restart(*empty).await?,
        FaultSpec::RedisPause => fleet.redis().await?.resume()?,
        FaultSpec::NodeKill { node, .. } => fleet.start_node(fleet.names.node(node)?).await?,
        FaultSpec::NodePause { node } => {
            fleet.with_process(fleet.names.node(node)?, |process| process.resume()).await?;
        }
        FaultSpec::NodeDrain { node } => {
            let node = fleet.names.node(node)?;
            fleet.stop_node(node).await?;
            fleet.start_node(node).await?;
        }
        FaultSpec::DiskFull { node } => {
            let node = fleet.names.node(node)?;
            let spec = &fleet.nodes[node].spec;
            let clear = |process: &Process| match spec.has_small_disk {
                true => disk::clear(process.id(), &spec.data()),
                false => process.limit_file_size(None),
            };
            fleet.with_process(node, clear).await?;
        }
        FaultSpec::OriginFails { origin } => {
            for origin in origins_named(&fleet.names, &fleet.origins, origin) {
                origin.faults.failing.store(false, Ordering::Relaxed);
            }
        }
        FaultSpec::OriginSlow { origin, .. } => {
            for origin in origins_named(&fleet.names, &fleet.origins, origin) {
                origin.faults.added_ms.store(0, Ordering::Relaxed);
            }
        }
        FaultSpec::OriginTruncates { origin } => {
            for origin in origins_named(&fleet.names, &fleet.origins, origin) {
                origin.faults.truncating.store(false, Ordering::Relaxed);
            }
        }
        _ => {}
    }
    Ok(())
}

/// File size limit of a "full" disk on a node without a small disk: files of the cache exceed it,
/// small files do not.
const FULL_DISK_BYTES: u64 = 64 * 1024;

async fn kill(fleet: &Fleet, node: NodeId, wipe: bool) -> anyhow::Result<()> {
    fleet.kill_node(node).await?;
    let data = fleet.nodes[node].spec.data();
    if wipe && data.exists() {
        std::fs::remove_dir_all(&data).with_context(|| format!("wipe {}", data.display()))?;
    }
    Ok(())
}

/// For each node in turn: drain, wait until the balancer sends no more requests, stop, start.
async fn rolling_upgrade(fleet: &Fleet) -> anyhow::Result<()> {
    for node in 0..fleet.nodes.len() {
        let admin = Admin::new(fleet.nodes[node].spec.ports.admin);
        admin.drain().await?;
        fleet.wait_until_unready(node).await?;
        fleet.wait_for_expiry().await;
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
        let mut attempts = 0;
        while fleet.client.certificate(ports.https, host).await? == before {
            attempts += 1;
            if attempts > 100 {
                bail!("{} still presents its old certificate 5 s after the reload", node.spec.name);
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

/// Stops all nodes: SIGTERM first, SIGKILL if that takes too long.
pub async fn stop_all(fleet: &Fleet) {
    for node in &fleet.nodes {
        let mut process = node.process.lock().await;
        if let Some(process) = process.as_mut() {
            let _ = process.resume();
            // An error is ignored: dropping the process kills it.
            let _ = node::stop(process).await;
        }
        *process = None;
    }
}

fn origins_named<'a>(names: &Names, origins: &'a [Origin], name: &str) -> Vec<&'a Origin> {
    let meant = |origin: &&Origin| names.matches(name, Endpoint::Origin(origin.number));
    origins.iter().filter(meant).collect()
}
