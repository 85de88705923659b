//! Reads `[node]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use geo::Coordinates;
use toml::Spanned;
use toml::de::DeValue;

use super::super::names::{check_plain_name, is_plain_name};
use super::super::reader::{Reader, Section};
use super::super::values::Value;
use crate::fleet::{ADDRESSES_MAX, WEIGHT_MAX};

/// The node as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    /// Name in receipts, logs and metrics. Default: the host name.
    pub name: String,
    /// Name of the region; empty: none.
    pub region: String,
    /// Where it is, for pools that choose origins by distance, and for the fleet.
    pub coordinates: Option<Coordinates>,
    /// The public addresses of the node, for the fleet.
    pub addresses: Vec<IpAddr>,
    /// The node's share of keys and clients, in proportion to the other nodes of the fleet.
    pub weight: u16,
    /// Number of worker threads.
    pub workers: usize,
    /// Directory for the disk cache, the purge log and generated certificates.
    pub data_directory: PathBuf,
    /// How long requests in flight may take to finish after SIGTERM.
    pub drain_timeout: Duration,
    /// How long the node still accepts connections after POST /drain, so that load balancers see
    /// that it is not ready before it refuses them.
    pub drain_notice: Duration,
}

impl Default for NodeSettings {
    fn default() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            name: if is_plain_name(&name) { name } else { "edge".to_owned() },
            region: String::new(),
            coordinates: None,
            addresses: Vec::new(),
            weight: 100,
            workers: cores(),
            data_directory: PathBuf::from("skerry-data"),
            drain_timeout: Duration::from_secs(30),
            drain_notice: Duration::from_secs(10),
        }
    }
}

pub(crate) fn read_node(section: &Section<'_>, node: &mut NodeSettings) {
    section.read("name", &mut node.name);
    check_plain_name(section, "name", &node.name);
    section.read("region", &mut node.region);
    if !node.region.is_empty() {
        check_plain_name(section, "region", &node.region);
    }
    node.coordinates = read_coordinates(section);
    section.read("addresses", &mut node.addresses);
    for address in &mut node.addresses {
        // An IPv4 address mapped into IPv6 is no address that clients can connect to.
        *address = address.to_canonical();
    }
    if node.addresses.len() > ADDRESSES_MAX {
        let found = node.addresses.len();
        section.mistake("addresses", format!("expected at most {ADDRESSES_MAX}, found {found}"));
    }
    if let Some(address) = node.addresses.iter().find(|address| !is_reachable(address)) {
        let expected = "expected addresses at which clients reach this node";
        section.mistake("addresses", format!("{expected}, found {address}"));
    }
    section.read_within("weight", &mut node.weight, 0..=WEIGHT_MAX);
    let mut workers = Workers(node.workers);
    section.read("workers", &mut workers);
    node.workers = workers.0;
    if let Some(advice) = advice_on_workers(node.workers) {
        section.warn("workers", advice);
    }
    section.read("data_directory", &mut node.data_directory);
    if node.data_directory.is_file() {
        let message = "expected the path of a directory, found a file: choose another path";
        section.mistake("data_directory", message);
    }
    section.read("drain_timeout", &mut node.drain_timeout);
    section.read("drain_notice", &mut node.drain_notice);
}

fn is_reachable(address: &IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast()
}

/// The point in `latitude` and `longitude`.
pub(super) fn read_coordinates(section: &Section<'_>) -> Option<Coordinates> {
    let (mut latitude, mut longitude) = (None::<f64>, None::<f64>);
    let before = section.reader.mistake_count();
    section.read("latitude", &mut latitude);
    section.read("longitude", &mut longitude);
    if section.reader.mistake_count() > before {
        return None;
    }
    match coordinates(latitude, longitude) {
        Ok(point) => point,
        Err(mistake) => {
            section.mistake(mistake.option, mistake.message);
            None
        }
    }
}

/// A mistake in one of the two options of a point.
pub(crate) struct CoordinatesMistake {
    /// `latitude` or `longitude`.
    pub option: &'static str,
    /// The mistake in it.
    pub message: String,
}

/// The point that two options describe; `None` if neither is set.
///
/// # Errors
/// One is out of range, or one is missing.
pub(crate) fn coordinates(
    latitude: Option<f64>,
    longitude: Option<f64>,
) -> Result<Option<Coordinates>, CoordinatesMistake> {
    let alone = |option, other| {
        let message = format!("{option:?} needs {other:?}: set both, or neither");
        Err(CoordinatesMistake { option, message })
    };
    let beyond = |option, expected, found| {
        let message = format!("expected degrees {expected}, found {found}");
        Err(CoordinatesMistake { option, message })
    };
    match (latitude, longitude) {
        (None, None) => Ok(None),
        (Some(_), None) => alone("latitude", "longitude"),
        (None, Some(_)) => alone("longitude", "latitude"),
        (Some(latitude), Some(longitude)) => match Coordinates::new(latitude, longitude) {
            Ok(point) => Ok(Some(point)),
            Err(_) if (-90.0..=90.0).contains(&latitude) => {
                beyond("longitude", "east of Greenwich from -180 to 180", longitude)
            }
            Err(_) => beyond("latitude", "north of the equator from -90 to 90", latitude),
        },
    }
}

/// `"auto"` (one per core), or a number.
#[derive(Clone, Copy)]
struct Workers(usize);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Value for Workers {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        if matches!(value.get_ref(), DeValue::String(text) if text == "auto") {
            return Some(Self(cores()));
        }
        let number = match value.get_ref() {
            DeValue::Integer(number) => usize::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|number| (1..=WORKERS_MAX).contains(number));
        if number.is_none() {
            let max = WORKERS_MAX;
            reader.unexpected(value, &format!("\"auto\" or a number from 1 to {max}"));
        }
        number.map(Self)
    }
}

/// Advice for more workers than the cores of this machine can keep busy.
pub(crate) fn advice_on_workers(workers: usize) -> Option<String> {
    let cores = cores();
    (workers > WORKERS_PER_CORE_MAX * cores).then(|| {
        format!(
            "{workers} workers are too many for this machine, which has {cores} cores: write \"auto\", because each worker takes memory, and more than one per core serve no request sooner"
        )
    })
}

/// More than one worker per core is of no use; a few more do no harm, such as in a container with less CPU time than cores.
const WORKERS_PER_CORE_MAX: usize = 4;

/// One worker per core that the process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX)
}

/// Maximum number of worker threads.
pub(crate) const WORKERS_MAX: usize = 1024;
