//! The settings of pools and DNS, with their defaults. The room `config` reads them from the file.

mod balance;
mod connection;
mod dns;
mod health;
mod hedge;
mod members;
mod queue;
mod retry;
mod sources;
mod sticky;

use std::path::PathBuf;
use std::sync::Arc;

use geo::Coordinates;

use super::sign::{SecretField, Signing};

pub(crate) use balance::{Balance, HashBy, Policy};
pub(crate) use connection::Deadlines;
pub(crate) use connection::{ClientCertificate, HostHeader, Protocol};
pub(crate) use connection::{KeepAlive, OriginTls, PreparedTls, ProxyVersion};
pub(crate) use dns::DnsSettings;
pub(crate) use health::{Check, CheckKind, GrpcCheck, Health, HttpCheck};
pub(crate) use hedge::{Hedge, HedgeAfter};
pub(super) use members::OriginKey;
pub(crate) use members::{Origin, SOCKET_PATH_BYTES_MAX, Scheme};
pub(super) use queue::QueueSettings;
pub(crate) use retry::{Retry, RetryOn, StatusSet};
pub(crate) use sources::{MemberDefaults, MemberSource, SourceKind};
pub(crate) use sticky::StickySettings;

/// The settings of upstreams.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// The named pools that rules refer to.
    pub pools: Vec<PoolDefinition>,
    /// Name resolution.
    pub dns: DnsSettings,
}

/// A pool as configured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PoolDefinition {
    /// How to use its origins.
    pub settings: PoolSettings,
    /// Members that do not change. At most [`PoolSettings::MEMBERS_MAX`]; at least one if there are
    /// no sources.
    pub origins: Vec<Origin>,
    /// Where further members come from, in the order in which they are added.
    pub sources: Vec<MemberSource>,
}

impl PoolDefinition {
    /// A pool of these origins with default settings.
    pub(crate) fn new(name: impl Into<Arc<str>>, origins: Vec<Origin>) -> Self {
        Self { settings: PoolSettings::new(name), origins, sources: Vec::new() }
    }
}

/// How to choose among the origins of a pool and how to exchange requests with them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PoolSettings {
    /// The name in rules, logs and metrics.
    pub name: Arc<str>,
    /// Its origins are other nodes of the fleet: their field `Skerry-Hop` is kept.
    pub is_of_peers: bool,
    /// The order in which origins are tried.
    pub policy: Policy,
    /// How one of equally good origins is chosen for a request.
    pub balance: Balance,
    /// The hash that [`Balance::Hash`] chooses by.
    pub hash_by: HashBy,
    /// With [`Balance::Hash`], an origin that has this many percent of its share of the exchanges
    /// in flight is passed over; 0 is no bound.
    pub hash_balance_factor: u32,
    /// Where the node is, for the policies by distance.
    pub node: Option<Coordinates>,
    /// TLS to origins with the scheme `https`.
    pub tls: OriginTls,
    /// The `Host` of requests to origins.
    pub host_header: HostHeader,
    /// The HTTP version of requests to origins.
    pub protocol: Protocol,
    /// The PROXY protocol header that begins each connection to an origin. Then a connection serves one client,
    /// and the protocol is HTTP/1.1.
    pub send_proxy: Option<ProxyVersion>,
    /// Time limits of each step of an exchange.
    pub deadlines: Deadlines,
    /// How long connections are kept.
    pub keep_alive: KeepAlive,
    /// How often a failed request is sent again.
    pub retry: Retry,
    /// When a request is sent to a second origin too.
    pub hedge: Hedge,
    /// Maximum number of open connections to one origin, over all cores. A request that needs another
    /// one goes to another origin, or waits.
    pub connections_max: usize,
    /// Maximum number of requests in flight to one origin, over all cores; 0 is no limit. Upgraded
    /// connections do not count.
    pub requests_max: u32,
    /// Requests that wait while each usable origin has as many requests or connections as it may have.
    pub queue: QueueSettings,
    /// Maximum size of a response's status line and fields, in bytes. Beyond it: 502.
    pub header_bytes_max: usize,
    /// Maximum number of fields of a response. Beyond it: 502. A limit above 100 costs an
    /// allocation for each response.
    pub header_count_max: usize,
    /// Maximum number of concurrent streams on one HTTP/2 connection. Beyond it another connection
    /// is opened.
    pub streams_max: usize,
    /// When an origin gets no requests because of failures.
    pub health: Health,
    /// How origins are tested beside the requests; `None`: not at all.
    pub check: Option<Check>,
    /// How requests are signed, for private origins.
    pub signing: Option<Signing>,
    /// A field with a secret that the origin compares.
    pub secret_field: Option<SecretField>,
    /// How visitors are kept at their origin; `None`: they are not.
    pub sticky: Option<StickySettings>,
}

impl PoolSettings {
    /// Maximum number of members of one pool. Further ones of its sources are left out, counted.
    pub(crate) const MEMBERS_MAX: usize = 1024;

    /// The defaults.
    pub(crate) fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            is_of_peers: false,
            policy: Policy::default(),
            balance: Balance::default(),
            hash_by: HashBy::default(),
            hash_balance_factor: 125,
            node: None,
            tls: OriginTls::default(),
            host_header: HostHeader::default(),
            protocol: Protocol::default(),
            send_proxy: None,
            deadlines: Deadlines::default(),
            keep_alive: KeepAlive::default(),
            retry: Retry::default(),
            hedge: Hedge::default(),
            connections_max: 4096,
            requests_max: 0,
            queue: QueueSettings::default(),
            header_bytes_max: 64 << 10,
            header_count_max: 100,
            streams_max: 100,
            health: Health::default(),
            signing: None,
            secret_field: None,
            sticky: None,
            check: None,
        }
    }

    /// Whether the exchanges in flight of the members are read, and so counted. The end of a counted
    /// exchange wakes the first request in the queue.
    pub(super) fn counts_in_flight(&self) -> bool {
        if self.requests_max > 0 || self.queue.length > 0 {
            return true;
        }
        match self.balance {
            Balance::RoundRobin => false,
            Balance::LeastConnections | Balance::PeakEwma => true,
            Balance::Hash => self.hash_balance_factor > 0,
        }
    }
}

/// Why a pool cannot be built from its settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    /// No origin and no source, or more origins than [`PoolSettings::MEMBERS_MAX`].
    #[error("pool {pool} has {count} origins: expected 1 to {max}")]
    Origins {
        /// The pool's name.
        pool: Arc<str>,
        /// How many it has.
        count: usize,
        /// The most that it can have.
        max: usize,
    },
    /// A host that is no name and no address, or cannot be a certificate's name.
    #[error("pool {pool}: {host} is not a host name or address")]
    Host {
        /// The pool's name.
        pool: Arc<str>,
        /// The value as written.
        host: Arc<str>,
    },
    /// A PEM file, or a file of credentials, that cannot be used.
    #[error("pool {pool}: {}: {reason}", path.display())]
    File {
        /// The pool's name.
        pool: Arc<str>,
        /// The file.
        path: PathBuf,
        /// The mistake in it.
        reason: String,
    },
    /// Credentials in the environment that cannot be used.
    #[error("pool {pool}: environment: {reason}")]
    Environment {
        /// The pool's name.
        pool: Arc<str>,
        /// The mistake in them. Quotes no secret.
        reason: String,
    },
    /// Credentials of the instance that its metadata service does not give.
    #[error("pool {pool}: no credentials of the instance: {reason}")]
    Instance {
        /// The pool's name.
        pool: Arc<str>,
        /// The request that failed, and why. Quotes no secret.
        reason: String,
    },
    /// TLS that cannot be set up (a key that does not fit, say).
    #[error("pool {pool}: {source}")]
    Tls {
        /// The pool's name.
        pool: Arc<str>,
        /// The message of rustls.
        source: rustls::Error,
    },
}
