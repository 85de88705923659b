//! The settings of the name server: what its zones hold, and which nodes answers may name.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use geo::{Continent, Coordinates, Country};
use ipnet::IpNet;

use super::record::ZoneRecord;

/// Settings of the room.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// Sockets and limits.
    pub server: ServerSettings,
    /// The nodes, in the order of their names.
    pub nodes: Vec<EdgeNode>,
    /// The zones.
    pub zones: Vec<ZoneSettings>,
    /// Whether a listener with TLS has port 443, where clients of a record HTTPS connect.
    pub has_https: bool,
}

/// Sockets and limits of the name server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServerSettings {
    /// Addresses for UDP and TCP. Empty: there is no name server.
    pub addresses: Vec<SocketAddr>,
    /// Threads that answer by UDP, each with its own sockets. 1 to 64.
    pub threads: usize,
    /// Open connections; a further one replaces the one that has waited longest for its client.
    pub tcp_connections_max: usize,
    /// Open connections of one client.
    pub tcp_per_address_max: usize,
    /// A connection whose client sends no query, or does not take a response, for this long is closed.
    pub tcp_idle: Duration,
    /// The name in responses to clients that ask for it (RFC 5001), at most [`NSID_MAX`] bytes. Empty: none.
    pub nsid: String,
    /// Equal responses per second to one network, /24 or /56, by UDP. 0: no limit.
    pub rate_per_second: u32,
    /// Of the responses above the rate, every n-th is sent, truncated, and the others are dropped. 0: all are
    /// dropped.
    pub rate_slip: u32,
    /// Entries of the table of networks, for each thread.
    pub rate_entries_max: usize,
    /// The file with a line for each response. `None`: none.
    pub query_log: Option<PathBuf>,
    /// The key of cookies (RFC 9018), which servers behind one address share. `None`: random.
    pub cookie_secret: Option<[u8; 16]>,
    /// The file that `cookie_secret` was read from.
    pub cookie_secret_file: Option<PathBuf>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            threads: 1,
            tcp_connections_max: 1024,
            tcp_per_address_max: 32,
            tcp_idle: Duration::from_secs(10),
            nsid: String::new(),
            rate_per_second: 200,
            rate_slip: 2,
            rate_entries_max: 65_536,
            query_log: None,
            cookie_secret: None,
            cookie_secret_file: None,
        }
    }
}

impl ServerSettings {
    /// These settings as they take effect on a server that runs with `running`: sockets, threads and tables stay.
    pub(crate) fn reloaded_over(self, running: &Self) -> Self {
        let Self { nsid, rate_per_second, rate_slip, .. } = self;
        Self { nsid, rate_per_second, rate_slip, ..running.clone() }
    }
}

/// The facts of a node that answers need.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EdgeNode {
    /// Its name.
    pub name: Arc<str>,
    /// Its region.
    pub region: Arc<str>,
    /// Where it is.
    pub coordinates: Option<Coordinates>,
    /// Its public addresses. Empty: it is in no answer.
    pub addresses: Vec<IpAddr>,
    /// Its capacity compared with that of other nodes, 0 to [`WEIGHT_MAX`]. 0: no share.
    pub weight: u16,
    /// 0.0: idle; 1.0: full.
    pub load: f32,
    /// Whether it takes new clients.
    pub state: EdgeState,
}

/// Whether a node takes new clients. The greater state is the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EdgeState {
    /// The node takes new clients.
    Ready,
    /// The node serves its clients and takes no new ones.
    Draining,
    /// The node does not serve.
    Out,
}

impl EdgeState {
    /// The words in the configuration and in `GET /dns`, in the order of the variants.
    pub(crate) const ALL: [(&str, Self); 3] =
        [("ready", Self::Ready), ("draining", Self::Draining), ("out", Self::Out)];

    /// The word.
    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// A zone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZoneSettings {
    /// Its name, such as `cdn.example.org`.
    pub name: String,
    /// The absolute names of its name servers, the primary first. At least one.
    pub name_servers: Vec<String>,
    /// Mail address of the people who run it, for the record SOA.
    pub contact: String,
    /// TTL in seconds of records without one.
    pub ttl: u32,
    /// How long resolvers remember that a name or record does not exist, in seconds (RFC 2308 §5).
    pub negative_ttl: u32,
    /// The serial number in the record SOA.
    pub serial: u32,
    /// The records, without SOA and the zone's own NS.
    pub records: Vec<ZoneRecord>,
    /// The names whose addresses are those of nodes.
    pub edges: Vec<EdgeSettings>,
}

/// A name whose addresses are those of nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EdgeSettings {
    /// The name in wire form and lower case; its first label may be `*`.
    pub name: Box<[u8]>,
    /// TTL of the answers in seconds.
    pub ttl: u32,
    /// The most addresses in an answer. 1 to [`ADDRESSES_MAX`].
    pub addresses_max: usize,
    /// How the region is chosen.
    pub policy: RegionPolicy,
    /// The regions that may be chosen, in order. Empty: all, in the order of their names.
    pub regions: Vec<Arc<str>>,
    /// The share of each region for [`RegionPolicy::Weighted`]. A region without one has the sum of its nodes'
    /// weights.
    pub weights: Vec<(Arc<str>, u32)>,
    /// A region whose nodes' load is above this gives the rest of its answers to the next region.
    pub load_max: f32,
    /// Regions for some clients, before the policy; the first entry that matches is used.
    pub map: Vec<RegionByClient>,
    /// Whether there is a record HTTPS (RFC 9460), if [`Settings::has_https`].
    pub https: bool,
}

/// How the region of an answer is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionPolicy {
    /// The nearest to the client.
    Nearest,
    /// At random, by weight.
    Weighted,
    /// The first in order.
    Failover,
}

impl RegionPolicy {
    /// The words in the configuration, in the order of the variants.
    pub(crate) const ALL: [(&str, Self); 3] =
        [("nearest", Self::Nearest), ("weighted", Self::Weighted), ("failover", Self::Failover)];

    /// The word.
    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// The region for clients that match one of the conditions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RegionByClient {
    /// Countries.
    pub countries: Vec<Country>,
    /// Continents.
    pub continents: Vec<Continent>,
    /// Numbers of autonomous systems.
    pub asns: Vec<u32>,
    /// Networks.
    pub networks: Vec<IpNet>,
    /// The region.
    pub region: Arc<str>,
}

/// The longest [`ServerSettings::nsid`].
pub(crate) const NSID_MAX: usize = 64;
/// The greatest [`EdgeNode::weight`].
pub(crate) const WEIGHT_MAX: u16 = 1000;
/// The greatest [`EdgeSettings::addresses_max`].
pub(crate) const ADDRESSES_MAX: usize = 16;
/// The most nodes in the table.
pub(crate) const NODES_MAX: usize = 4096;
/// The most regions of an edge name.
pub(crate) const REGIONS_MAX: usize = 64;
