//! Name resolution.

use std::net::SocketAddr;
use std::time::Duration;

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
