//! Metrics of the node as a whole, collected at each scrape: the last reload, options that wait for a
//! restart, the end of each certificate of the listeners and of the peer link, and the free space of file systems.

use std::fmt;
use std::path::Path;
use std::sync::Weak;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::shared::Shared;
use crate::clock::unix_ms;

/// The last reloads.
#[derive(Clone, Debug)]
pub(super) struct ReloadRecord {
    /// Whether the last reload was applied; true after the start.
    pub is_applied: bool,
    /// When a configuration was applied last: the start, or a reload.
    pub applied_at: SystemTime,
    /// Changes that take effect only after a restart.
    pub restart_pending: Vec<String>,
}

/// Collects the metrics of a node as long as it runs.
pub(super) struct NodeMetrics(pub Weak<Shared>);

impl fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeMetrics")
    }
}

impl Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(shared) = self.0.upgrade() else { return Ok(()) };
        let record = shared.reloads().clone();
        let mut gauge = |name, help, value: f64| {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(encoder)
        };
        gauge(
            "config_last_reload_successful",
            "1 if the last reload was applied, 0 if the configuration had mistakes",
            f64::from(u8::from(record.is_applied)),
        )?;
        gauge(
            "config_last_reload_success_timestamp_seconds",
            "When a configuration was applied last, since 1970",
            unix_ms(record.applied_at) as f64 / 1e3,
        )?;
        gauge(
            "config_restart_pending",
            "Changed options that take effect only after a restart",
            record.restart_pending.len() as f64,
        )?;
        let (failing, out) = shared.unreachable_counts();
        gauge(
            "fleet_unreachable_nodes",
            "Nodes of other regions that this node probes over the data path and fails to reach",
            failing as f64,
        )?;
        gauge(
            "fleet_nodes_out_unreachable",
            "Nodes that edge names do not answer because a majority of the other regions fails to reach them",
            out as f64,
        )?;
        let config = shared.config();
        let mut directories: Vec<_> =
            config.store.directories.iter().map(|directory| directory.path.clone()).collect();
        directories.push(config.node.data_directory.clone());
        drop(config);
        let mut ends = shared.tls.as_ref().map(|tls| tls.certificate_ends()).unwrap_or_default();
        ends.extend(shared.peer_tls.as_ref().and_then(|tls| tls.certificate_end()));
        let help = "When the certificate in a file ends, since 1970";
        let name = "certificate_expiry_timestamp_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (file, until) in ends {
            let labels = [("file", file.display().to_string())];
            ConstGauge::new(unix_ms(until) as f64 / 1e3).encode(family.encode_family(&labels)?)?;
        }
        let help = "Free bytes of the file system of a directory, for users other than root";
        let mut family =
            encoder.encode_descriptor("filesystem_free_bytes", help, None, MetricType::Gauge)?;
        for directory in &directories {
            let Some(free) = free_bytes(directory) else { continue };
            let labels = [("directory", directory.display().to_string())];
            ConstGauge::new(free as f64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn free_bytes(directory: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}
