//! The settings of pools and DNS, with their defaults. The room `config` reads them from the file.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use geo::Coordinates;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};

use super::sign::{SecretField, Signing};

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
    /// At least one; at most [`PoolSettings::ORIGINS_MAX`].
    pub origins: Vec<Origin>,
}

impl PoolDefinition {
    /// A pool of these origins with default settings.
    pub(crate) fn new(name: impl Into<Arc<str>>, origins: Vec<Origin>) -> Self {
        Self { settings: PoolSettings::new(name), origins }
    }
}

/// How to choose among the origins of a pool and how to exchange requests with them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PoolSettings {
    /// The name in rules, logs and metrics.
    pub name: Arc<str>,
    /// Which origins are tried before which others.
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
    /// Time limits of each step of an exchange.
    pub deadlines: Deadlines,
    /// How long connections are kept.
    pub keep_alive: KeepAlive,
    /// How often a failed request is sent again.
    pub retry: Retry,
    /// Maximum number of open connections to one origin, over all cores. Beyond it: 503, counted.
    pub connections_max: usize,
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
}

impl PoolSettings {
    /// Maximum number of origins in one pool.
    pub(crate) const ORIGINS_MAX: usize = 1024;

    /// The defaults.
    pub(crate) fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            policy: Policy::default(),
            balance: Balance::default(),
            hash_by: HashBy::default(),
            hash_balance_factor: 125,
            node: None,
            tls: OriginTls::default(),
            host_header: HostHeader::default(),
            protocol: Protocol::default(),
            deadlines: Deadlines::default(),
            keep_alive: KeepAlive::default(),
            retry: Retry::default(),
            connections_max: 4096,
            header_bytes_max: 64 << 10,
            header_count_max: 100,
            streams_max: 100,
            health: Health::default(),
            signing: None,
            secret_field: None,
            check: None,
        }
    }

    /// Whether the balance reads the exchanges in flight of the members, which are counted only
    /// then.
    pub(super) fn counts_in_flight(&self) -> bool {
        match self.balance {
            Balance::RoundRobin => false,
            Balance::LeastConnections | Balance::PeakEwma => true,
            Balance::Hash => self.hash_balance_factor > 0,
        }
    }
}

/// One upstream server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Origin {
    /// Whether to speak TLS.
    pub scheme: Scheme,
    /// A name, or an address (IPv6 without brackets).
    pub host: Arc<str>,
    /// The TCP port.
    pub port: u16,
    /// Its share of requests relative to the others. An origin of weight 0 is used only when no other
    /// in its tier is available.
    pub weight: u16,
    /// Origins of a lower number are tried first.
    pub priority: u8,
    /// Where it is, for the policies by distance.
    pub coordinates: Option<Coordinates>,
}

impl Origin {
    /// `http://HOST:PORT` with weight 1.
    pub(crate) fn http(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self::new(Scheme::Http, host.into(), port)
    }

    /// `https://HOST:PORT` with weight 1.
    pub(crate) fn https(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self::new(Scheme::Https, host.into(), port)
    }

    fn new(scheme: Scheme, host: Arc<str>, port: u16) -> Self {
        Self { scheme, host, port, weight: 1, priority: 0, coordinates: None }
    }

    /// Whether the other one is the same server. Their weights may differ.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.host == other.host && self.port == other.port
    }

    /// `HOST`, or `HOST:PORT` when the port is not the scheme's, as in a `Host` field.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.to_string()
        };
        if self.port == self.scheme.port() { host } else { format!("{host}:{}", self.port) }
    }
}

/// Plain text or TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// HTTP over TCP.
    Http,
    /// HTTP over TLS over TCP.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The default port.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Which origins are tried before which others. It divides the origins into tiers, in an order.
/// A request goes to the first tier that has a usable origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// By [`Origin::priority`].
    #[default]
    Failover,
    /// By the great-circle distance from the client. Clients of unknown location are taken to be
    /// where the node is.
    Nearest,
    /// By the great-circle distance from the node.
    NearestToNode,
}

impl Policy {
    /// As in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::Nearest => "nearest",
            Self::NearestToNode => "nearest-to-node",
        }
    }
}

/// How one of equally good origins is chosen for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest exchanges in flight for its weight, over all cores.
    LeastConnections,
    /// The better of two random ones by expected latency times exchanges in flight.
    PeakEwma,
    /// By the request's hash ([`super::Affinity::hash`]), weighted rendezvous: when an origin
    /// leaves, only its own share moves.
    Hash,
}

/// What the hash of a request is made of, for [`Balance::Hash`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum HashBy {
    /// The cache key.
    #[default]
    Url,
    /// The client's address.
    Client,
    /// The first line of this request field; without it, the client's address.
    Header(HeaderName),
    /// This cookie; without it, the client's address.
    Cookie(Box<str>),
}

/// TLS to origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OriginTls {
    /// Verify the certificate and its name. Without it, an attacker on the path can read and change
    /// everything.
    pub verify: bool,
    /// Trust the system's certificate authorities.
    pub system_roots: bool,
    /// PEM files with more certificate authorities to trust.
    pub ca_files: Vec<PathBuf>,
    /// The server name to send (SNI) and to verify, instead of the origin's host.
    pub server_name: Option<Arc<str>>,
    /// The certificate to send when the origin requests one.
    pub client_certificate: Option<ClientCertificate>,
}

impl Default for OriginTls {
    fn default() -> Self {
        Self {
            verify: true,
            system_roots: true,
            ca_files: Vec::new(),
            server_name: None,
            client_certificate: None,
        }
    }
}

/// A certificate chain and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// Leaf first.
    pub chain: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// The `Host` of requests to origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostHeader {
    /// The client's.
    #[default]
    Preserve,
    /// The origin's own host and port.
    Origin,
    /// A fixed value.
    Fixed(HeaderValue),
}

/// The HTTP version of requests to origins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/2 where TLS agrees on it (ALPN), HTTP/1.1 otherwise.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only: by ALPN over TLS, with prior knowledge over plain text (h2c).
    Http2,
}

/// Time limits of each step of an exchange, enforced with a precision of about 25 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadlines {
    /// Name resolution and TCP connection, over all addresses.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
    /// From the last progress of the request to the response's head.
    pub first_byte: Duration,
    /// Between two pieces of the response's body.
    pub between_bytes: Duration,
    /// From [`super::Upstreams::send`] to the end of the body, retries included. `None` is no limit.
    pub total: Option<Duration>,
    /// The wait for an origin's 100 (Continue); then the body is sent without it (RFC 9110 §10.1.1).
    pub expect_continue: Duration,
    /// An upgraded connection (WebSocket) is closed after this time without a byte in either direction.
    pub tunnel_idle: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            tls: Duration::from_secs(5),
            first_byte: Duration::from_secs(30),
            between_bytes: Duration::from_secs(30),
            total: None,
            expect_continue: Duration::from_secs(1),
            tunnel_idle: Duration::from_secs(600),
        }
    }
}

/// How long connections are kept for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeepAlive {
    /// Unused for this long: closed. Keep it below the origin's own.
    pub idle: Duration,
    /// Older than this: not used again, so that a change of address is followed.
    pub age_max: Duration,
    /// Unused HTTP/1.1 connections to one origin on one core; 0 closes each after its use.
    pub idle_max: usize,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(50), age_max: Duration::from_secs(600), idle_max: 64 }
    }
}

/// How often failed requests are sent again. Only a request is that the origin cannot have processed, or
/// an idempotent one (RFC 9110 §9.2.2) whose body can be sent again and that got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    /// Maximum number of attempts; 1 is no retry. An idle connection that turns out to be closed is
    /// replaced once without counting.
    pub attempts_max: u32,
    /// Maximum share of retries in all requests, in percent, so that retries do not multiply the load
    /// in an outage.
    pub budget_percent: u32,
    /// Number of retries that a core may make before it has earned any by requests.
    pub budget_reserve: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 3, budget_percent: 20, budget_reserve: 10 }
    }
}

/// When an origin gets no requests because of failures (passive health checks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// Failed connections in a row after which the origin is down; 0 is never.
    pub connect_failures: u32,
    /// Faulty responses in a row (5xx, late, incomplete, invalid) after which it is ejected; 0 is
    /// never.
    pub consecutive_5xx: u32,
    /// Share of faulty responses at which it is ejected, in percent; 0 is never.
    pub error_rate_percent: u32,
    /// Responses that the share is measured on at least.
    pub error_rate_requests_min: u32,
    /// The time that the share is measured over.
    pub error_rate_window: Duration,
    /// Length of the first ejection. Each further one is longer by the same time.
    pub eject_for: Duration,
    /// Maximum length of an ejection.
    pub eject_for_max: Duration,
    /// Maximum share of the pool's origins that may be ejected for faulty responses, in percent.
    /// Origins that are down count, but are not limited.
    pub eject_percent_max: u32,
    /// Time in which an origin that comes back gets its full share of requests.
    pub slow_start: Duration,
    /// Time between two trials when all origins of the pool are down.
    pub trial_interval: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            connect_failures: 3,
            consecutive_5xx: 5,
            error_rate_percent: 0,
            error_rate_requests_min: 20,
            error_rate_window: Duration::from_secs(10),
            eject_for: Duration::from_secs(10),
            eject_for_max: Duration::from_secs(300),
            eject_percent_max: 50,
            slow_start: Duration::ZERO,
            trial_interval: Duration::from_secs(1),
        }
    }
}

/// How each origin of a pool is tested beside the requests (active health checks).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    /// What is tested.
    pub kind: CheckKind,
    /// From the start of a check to the start of the next; up to 10 % shorter at random.
    pub interval: Duration,
    /// Time limit of one check, connection included. At most the interval.
    pub timeout: Duration,
    /// Passed checks in a row after which an origin is up.
    pub rise: u32,
    /// Failed checks in a row after which it is down.
    pub fall: u32,
    /// Whether an origin is down until its first check has passed.
    pub assume_down: bool,
}

/// What a check tests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CheckKind {
    /// A connection, with the TLS handshake if the origin has one.
    Tcp,
    /// A request and its response.
    Http(HttpCheck),
}

/// The request of a check, and the expected response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpCheck {
    /// `GET` or `HEAD`.
    pub method: Method,
    /// Path and query.
    pub path: PathAndQuery,
    /// The `Host`; `None` is that of the pool's requests, or the origin's own.
    pub host_header: Option<HeaderValue>,
    /// Ranges of expected status codes.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// Text that the first 64 KiB of the body must contain; empty: any body.
    pub contains: String,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            kind: CheckKind::Http(HttpCheck::default()),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            assume_down: false,
        }
    }
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: Method::GET,
            path: PathAndQuery::from_static("/"),
            host_header: None,
            statuses: vec![200..=399],
            contains: String::new(),
        }
    }
}

/// Name resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsSettings {
    /// Name servers (UDP and TCP); empty: the system's (resolv.conf).
    pub servers: Vec<SocketAddr>,
    /// Time limit of one query to one server.
    pub timeout: Duration,
    /// Maximum number of queries for a name.
    pub attempts: usize,
    /// An answer is kept at least this long, whatever its TTL.
    pub ttl_min: Duration,
    /// An answer is kept at most this long.
    pub ttl_max: Duration,
    /// How long failures and the answer "no such name" are kept.
    pub negative_ttl: Duration,
    /// How long the last good addresses are used after their TTL while DNS fails.
    pub stale_max: Duration,
    /// Maximum number of names in the table. Beyond it the least recently answered ones are dropped.
    pub names_max: usize,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Duration::from_secs(2),
            attempts: 2,
            ttl_min: Duration::from_secs(1),
            ttl_max: Duration::from_secs(3600),
            negative_ttl: Duration::from_secs(2),
            stale_max: Duration::from_secs(24 * 3600),
            names_max: 4096,
        }
    }
}

/// Why a pool cannot be built from its settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    /// None, or more than [`PoolSettings::ORIGINS_MAX`].
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
        /// What was written.
        host: Arc<str>,
    },
    /// A PEM file, or a file of credentials, that cannot be used.
    #[error("pool {pool}: {}: {reason}", path.display())]
    File {
        /// The pool's name.
        pool: Arc<str>,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Credentials in the environment that cannot be used.
    #[error("pool {pool}: environment: {reason}")]
    Environment {
        /// The pool's name.
        pool: Arc<str>,
        /// What is wrong with them. Quotes no secret.
        reason: String,
    },
    /// TLS that cannot be set up (a key that does not fit, say).
    #[error("pool {pool}: {source}")]
    Tls {
        /// The pool's name.
        pool: Arc<str>,
        /// What rustls said.
        source: rustls::Error,
    },
}
