//! What the store holds, for `skerry store stat`, the admin API and the gauges.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Inner, Store};

/// A look at the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stat {
    /// Bytes in memory, as weighed.
    pub memory_bytes: u64,
    /// How many there may be.
    pub memory_bytes_max: u64,
    /// Head records, variant lists and slices in memory.
    pub memory_pieces: u64,
    /// Bytes of bodies that memory has let go of, and somebody still has: who reads them slowly.
    pub held_bytes: u64,
    /// Entries of the purge table.
    pub purge_entries: u64,
    /// Messages waiting for the bus.
    pub outbox_messages: u64,
    /// The directories, in the order of the settings.
    pub directories: Vec<DirectoryStat>,
    /// The sites, by name.
    pub sites: Vec<SiteStat>,
}

/// What a site has of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteStat {
    /// Its name.
    pub site: Arc<str>,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Stored responses in memory.
    pub memory_objects: u64,
    /// Its limit there. `None`: all of it.
    pub memory_bytes_max: Option<u64>,
    /// Bytes on disk, by a sample.
    pub disk_bytes: u64,
    /// Stored responses on disk, by a sample.
    pub disk_objects: u64,
    /// Its limit there. `None`: all of it.
    pub disk_bytes_max: Option<u64>,
}

/// A look at one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryStat {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is used.
    pub service: Service,
    /// How much it may hold.
    pub bytes_max: u64,
    /// How much of its file system it has: with this it makes do until it grows.
    pub bytes: u64,
    /// It cannot grow: its file system has no room beyond the reserve.
    pub is_short_of_space: bool,
    /// Written since the start.
    pub written_bytes: u64,
    /// Read since the start.
    pub read_bytes: u64,
    /// Waiting to be written.
    pub queued_bytes: u64,
}

/// Whether a directory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// Read and written.
    Serving,
    /// Its index is being read back: nothing is read from it yet, writes wait.
    Recovering,
    /// Writes failed: it is only read until they work again.
    ReadOnly,
    /// It stalled or could not be opened: it is neither read nor written until it works again.
    Out,
}

impl Service {
    /// For logs and the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Recovering => "recovering",
            Self::ReadOnly => "read-only",
            Self::Out => "out",
        }
    }
}

/// The store's gauges, looked at with each scrape for as long as there is a store.
pub(super) struct Gauges(pub(super) Weak<Inner>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(inner) = self.0.upgrade() else { return Ok(()) };
        let stat = Store { inner }.stat();
        for (name, help, value) in [
            ("store_memory_bytes", "Bytes in the memory tier.", stat.memory_bytes),
            ("store_memory_bytes_max", "Maximum bytes in the memory tier.", stat.memory_bytes_max),
            (
                "store_memory_pieces",
                "Head records, variant lists and slices in memory.",
                stat.memory_pieces,
            ),
            (
                "store_held_bytes",
                "Bytes of bodies evicted from the memory tier that are still in use.",
                stat.held_bytes,
            ),
            ("purge_entries", "Entries of the purge table.", stat.purge_entries),
            ("purge_outbox", "Messages waiting for the purge bus.", stat.outbox_messages),
        ] {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value as i64).encode(encoder)?;
        }
        type OfDirectory = fn(&DirectoryStat) -> u64;
        let families: [(&str, &str, OfDirectory); 6] = [
            (
                "store_directory_in_service",
                "1: in service; 0: out of service, or recovering after a start.",
                |directory| u64::from(directory.service == Service::Serving),
            ),
            ("store_directory_bytes_max", "Maximum bytes of the directory.", |it| it.bytes_max),
            (
                "store_directory_bytes",
                "Bytes that the directory has allocated on its file system.",
                |it| it.bytes,
            ),
            (
                "store_directory_short_of_space",
                "1: the directory cannot grow because its file system has no free space beyond the reserve.",
                |it| u64::from(it.is_short_of_space),
            ),
            ("store_directory_written_bytes", "Bytes written since the start.", |it| {
                it.written_bytes
            }),
            ("store_directory_queued_bytes", "Bytes waiting to be written.", |it| it.queued_bytes),
        ];
        for (name, help, value) in families {
            let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for directory in &stat.directories {
                let labels = [("directory", directory.path.to_string_lossy())];
                let gauge = ConstGauge::new(value(directory) as i64);
                gauge.encode(encoder.encode_family(&labels)?)?;
            }
        }
        type OfSite = fn(&SiteStat) -> u64;
        let families: [(&str, &str, OfSite); 4] = [
            ("store_site_memory_bytes", "Bytes of a site in memory.", |site| site.memory_bytes),
            ("store_site_memory_objects", "Stored responses of a site in memory.", |site| {
                site.memory_objects
            }),
            ("store_site_disk_bytes", "Bytes of a site on disk, estimated from a sample.", |it| {
                it.disk_bytes
            }),
            (
                "store_site_disk_objects",
                "Stored responses of a site on disk, estimated from a sample.",
                |it| it.disk_objects,
            ),
        ];
        for (name, help, value) in families {
            let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for site in &stat.sites {
                let gauge = ConstGauge::new(value(site) as i64);
                gauge.encode(encoder.encode_family(&[("site", &*site.site)])?)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}
