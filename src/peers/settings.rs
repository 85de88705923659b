//! The settings of the peer link.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

/// The settings of `[peers]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// The addresses at which peers reach this node. An IPv6 address accepts IPv6 only. Empty: the node has no
    /// peers, and the other settings have no effect.
    pub addresses: Vec<SocketAddr>,
    /// The address that the node announces to the fleet. `None`: the first of `addresses`.
    pub announced: Option<SocketAddr>,
    /// The certificate of this node, and the authority of the fleet.
    pub files: PeerFiles,
    /// Limits of peers.
    pub limits: PeerLimits,
    /// Nodes that are peers without a bus: name and address of each, sorted by name. This node may be among them.
    pub nodes: Vec<(Arc<str>, SocketAddr)>,
    /// The interval of the checks whether a node lives that the bus says nothing of.
    pub check_interval: Duration,
    /// How this node asks its peers.
    pub ask: AskSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            announced: None,
            files: PeerFiles::default(),
            limits: PeerLimits::default(),
            nodes: Vec::new(),
            check_interval: Duration::from_secs(1),
            ask: AskSettings::default(),
        }
    }
}

/// The files that identify this node to its peers, and its peers to this node; all PEM.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PeerFiles {
    /// The certificate chain of this node. It begins with the node's certificate, which carries the name of the
    /// node as a DNS name, and is valid for servers and for clients.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The certificates of the authorities that sign the certificates of peers.
    pub ca: PathBuf,
}

/// Limits of peers. Each has a metric for when it is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PeerLimits {
    /// Open connections from peers. Further ones are closed as soon as they are accepted.
    pub connections_max: usize,
    /// Requests in flight on one connection (`SETTINGS_MAX_CONCURRENT_STREAMS`).
    pub streams_max: u32,
    /// Requests in flight from all peers. Further ones are refused, so that the peer asks another node.
    pub requests_max: usize,
    /// The age at which a connection between two nodes gets no further requests: the next connection checks the
    /// certificates of both anew. 1 s to 24 h.
    pub connection_age: Duration,
}

/// How a node asks its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskSettings {
    /// The time for the acknowledgement of a request: the first 102 (Processing) or the response. It includes
    /// the time for a connection. Signs of life of the peer begin it anew, a few times. 10 ms to 10 s.
    pub deadline: Duration,
    /// A peer that failed gets no request for this long; then one request tries it again. 100 ms to 60 s.
    pub skip_for: Duration,
    /// A response whose key was requested this often lately is copied into memory. 0: none is. At most 100.
    pub copy_after: u8,
}

impl Default for AskSettings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(250),
            skip_for: Duration::from_secs(1),
            copy_after: 3,
        }
    }
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            streams_max: 256,
            requests_max: 10_000,
            connection_age: Duration::from_secs(600),
        }
    }
}

impl Settings {
    /// Whether the node has peers.
    pub(crate) fn is_on(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// These settings on a node that runs with `running` and reloads: the addresses stay. A node that was started
    /// without peers gets none.
    pub(crate) fn reloaded_over(self, running: &Self) -> Self {
        match running.is_on() {
            true => Self { addresses: running.addresses.clone(), ..self },
            false => running.clone(),
        }
    }

    /// The address that the node announces. `None`: it has no peers.
    pub(crate) fn announced_address(&self) -> Option<SocketAddr> {
        let first = self.addresses.first()?;
        Some(self.announced.unwrap_or(*first))
    }

    /// Whether other nodes may reach the address that this node announces: it is no wildcard.
    pub(crate) fn announces_an_address(&self) -> bool {
        self.announced_address().is_some_and(|address| is_reachable(address.ip()))
    }
}

/// Whether other machines may reach an address.
pub(crate) fn is_reachable(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast()
}

/// Whether a certificate can carry this name of a node: it must be a DNS name (RFC 5280 §4.2.1.6), with labels
/// of at most 63 bytes.
pub(crate) fn can_identify(name: &str) -> bool {
    matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_that_a_certificate_can_carry() {
        for name in ["edge-1", "edge_1", "fra.edge-1", "EDGE", "1a"] {
            assert!(can_identify(name), "{name}");
        }
        let long = "x".repeat(64);
        for name in ["-edge", "edge-", "a..b", "192.0.2.1", "7", "", &long] {
            assert!(!can_identify(name), "{name}");
        }
    }
}
