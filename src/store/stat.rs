//! Statistics of the store, for `skerry store stat`, the admin API and the gauges.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// The state of the store at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stat {
    /// Estimated bytes in the memory tier.
    pub memory_bytes: u64,
    /// The limit of the memory tier, in bytes.
    pub memory_bytes_max: u64,
    /// Head records, variant lists and slices in memory.
    pub memory_pieces: u64,
    /// Bytes of bodies that memory has evicted and slow readers still reference.
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

/// A site's usage of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteStat {
    /// Its name.
    pub site: Arc<str>,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Stored responses in memory.
    pub memory_objects: u64,
    /// Its limit in memory. `None`: no limit.
    pub memory_bytes_max: Option<u64>,
    /// Bytes on disk, estimated from a sample.
    pub disk_bytes: u64,
    /// Stored responses on disk, estimated from a sample.
    pub disk_objects: u64,
    /// Its limit on disk. `None`: no limit.
    pub disk_bytes_max: Option<u64>,
}

/// The state of one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryStat {
    /// Its path.
    pub path: PathBuf,
    /// Its state of service.
    pub service: Service,
    /// Its configured size in bytes.
    pub bytes_max: u64,
    /// Bytes allocated on its file system so far.
    pub bytes: u64,
    /// Whether it cannot grow because its file system has no space beyond the reserve.
    pub is_short_of_space: bool,
    /// Bytes written since the start.
    pub written_bytes: u64,
    /// Bytes read since the start.
    pub read_bytes: u64,
    /// Bytes waiting to be written.
    pub queued_bytes: u64,
}

/// The state of service of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The directory is read and written.
    Serving,
    /// Its index is being read back: nothing is read from it yet, writes wait.
    Recovering,
    /// A write failed: it is only read until a retry succeeds.
    ReadOnly,
    /// The directory exceeded the deadline or could not be opened: neither read nor written until a retry succeeds.
    Out,
}

impl Service {
    /// The word for logs and the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Recovering => "recovering",
            Self::ReadOnly => "read-only",
            Self::Out => "out",
        }
    }
}

/// The store's gauges. Calls the function at each scrape; it returns `None` once the store is gone.
pub(super) struct Gauges(pub(super) Box<dyn Fn() -> Option<Stat> + Send + Sync>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(stat) = self.0() else { return Ok(()) };
        encode_store(&stat, &mut encoder)?;
        encode_directories(&stat.directories, &mut encoder)?;
        encode_sites(&stat.sites, &mut encoder)
    }
}

fn encode_store(stat: &Stat, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
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
    Ok(())
}

fn encode_directories(
    directories: &[DirectoryStat],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
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
        ("store_directory_written_bytes", "Bytes written since the start.", |it| it.written_bytes),
        ("store_directory_queued_bytes", "Bytes waiting to be written.", |it| it.queued_bytes),
    ];
    for (name, help, value) in families {
        let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for directory in directories {
            let labels = [("directory", directory.path.to_string_lossy())];
            let gauge = ConstGauge::new(value(directory) as i64);
            gauge.encode(encoder.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_sites(sites: &[SiteStat], encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
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
        for site in sites {
            let gauge = ConstGauge::new(value(site) as i64);
            gauge.encode(encoder.encode_family(&[("site", &*site.site)])?)?;
        }
    }
    Ok(())
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}
