//! The settings of listeners, TLS and connection limits.
//!
//! For every limit, a metric counts how often it was reached. The defaults suit a node for public sites.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// The settings of this room.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// The listeners: usually several, for plaintext and TLS, IPv4 and IPv6.
    pub listeners: Vec<Listener>,
    /// Certificates and session tickets, for the listeners with [`Transport::Tls`].
    pub tls: TlsSettings,
    /// Limits of one client, and of all clients together.
    pub limits: Limits,
}

/// One address to accept connections on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listener {
    /// An IPv6 address accepts IPv6 only, so that `0.0.0.0:80` and `[::]:80` can both be configured. Port 0
    /// means any free port, the same for all workers.
    pub address: SocketAddr,
    /// The transport of this listener.
    pub transport: Transport,
    /// Networks of load balancers that start each connection with a PROXY protocol header (version 1 or 2).
    /// The header is required from these networks, and rejected from all others. Empty: rejected from all.
    pub proxy_protocol: Vec<IpNet>,
    /// The name of the listener in logs and errors.
    pub name: String,
}

impl Listener {
    /// A plaintext listener with its address as its name.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            transport: Transport::Plain,
            proxy_protocol: Vec::new(),
            name: address.to_string(),
        }
    }

    /// A listener for peers.
    pub(crate) fn peers(address: SocketAddr) -> Self {
        let name = format!("peers {address}");
        Self { transport: Transport::Peers, name, ..Self::plain(address) }
    }

    /// A TLS listener with its address as its name.
    pub(crate) fn tls(address: SocketAddr) -> Self {
        Self { transport: Transport::Tls, ..Self::plain(address) }
    }
}

/// The transport of HTTP between a client and a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP. HTTP/2 is accepted with prior knowledge (RFC 9113 §3.3).
    Plain,
    /// TLS over TCP. ALPN chooses the version of HTTP.
    Tls,
    /// HTTP/2 over mutual TLS, for the other nodes of the fleet ([`crate::peers`]).
    Peers,
}

/// Certificates, versions and tickets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TlsSettings {
    /// The certificates. Empty: a self-signed one is generated and kept in the data directory.
    pub certificates: Vec<CertificateFiles>,
    /// The index in `certificates` of the one for clients that send no SNI, or a name that no certificate
    /// has.
    pub default_certificate: usize,
    /// Whether a request is refused (421) if its host is covered by another certificate and not by the one
    /// that was chosen by SNI.
    pub refuse_misdirected: bool,
    /// The oldest version that is accepted.
    pub version_min: TlsVersion,
    /// The source of the keys of session tickets.
    pub ticket_keys: TicketKeys,
    /// The interval of the check for changed certificate and ticket key files, and for a self-signed
    /// certificate or generated ticket key that is due for renewal. A reload applies a new interval at once.
    pub reload_interval: Duration,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            default_certificate: 0,
            refuse_misdirected: true,
            version_min: TlsVersion::V1_2,
            ticket_keys: TicketKeys::Generated { rotate_every: Duration::from_secs(12 * 3600) },
            reload_interval: Duration::from_secs(5),
        }
    }
}

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CertificateFiles {
    /// The file of the chain, which starts with the site's certificate.
    pub certificate: PathBuf,
    /// The file of the private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// The names that it is used for, exact or `*.example.org`. `None`: the names in the certificate.
    pub names: Option<Vec<String>>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsVersion {
    /// TLS 1.2, only with suites that have forward secrecy and AEAD.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// The source of the keys of session tickets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TicketKeys {
    /// Random keys, shared by the workers of this node only. The current and the previous key open tickets,
    /// so a ticket is valid for at most twice `rotate_every`.
    Generated {
        /// How long a key seals new tickets.
        rotate_every: Duration,
    },
    /// A file shared by the fleet: one key per line, 32 bytes in base64 or hex; `#` starts a comment. The
    /// first key seals new tickets, all keys open tickets. To rotate, add a new key in second place on every
    /// node, then move it to the first place, then remove the last key.
    File {
        /// The file. It is read again when it changes.
        path: PathBuf,
        /// The lifetime that clients are told. A ticket is valid until its key is removed.
        lifetime: Duration,
    },
}

/// Limits of one client, and of all clients together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Open connections of the node. Further ones are closed as soon as they are accepted.
    pub connections_max: usize,
    /// Open connections of one client: an IPv4 address or an IPv6 /64.
    pub connections_per_address_max: usize,
    /// TLS handshakes in progress on the node, at least 1. A further connection takes the place of the one that has waited
    /// longest ([`super::handshakes`]).
    pub handshakes_max: usize,
    /// The age at which a connection is closed gracefully. `None`: it has no limit. Connections of peers have one.
    pub age_max: Option<Duration>,
    /// Requests on one connection before it is closed gracefully; `None` for no limit. A limit distributes
    /// long-lived clients over the workers anew.
    pub requests_per_connection_max: Option<u64>,
    /// Bytes of a request's head, including the start line (431). At least 8 KiB are buffered.
    pub header_bytes_max: usize,
    /// Header fields of a request (431).
    pub headers_max: usize,
    /// Bytes of path and query of a request (414).
    pub uri_bytes_max: usize,
    /// Time from accepting a connection to the end of its TLS handshake, including the PROXY header.
    pub handshake_timeout: Duration,
    /// Time from the first byte of a request to the end of its head (408). For the first request, time from
    /// accepting the connection.
    pub header_timeout: Duration,
    /// Time that a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// Time that the node waits for the next bytes of a request body.
    pub body_idle_timeout: Duration,
    /// The minimum rate of a body in bytes per second: of a request body while the node waits for it, of a
    /// response while the client blocks it. Zero: no minimum.
    pub body_rate_min: u64,
    /// Time that a body may be slower than that.
    pub body_rate_grace: Duration,
    /// Unsent bytes of a connection that the kernel may hold (`TCP_NOTSENT_LOWAT`); further writes wait. Takes
    /// effect at the start of the node only.
    pub unsent_bytes_max: u32,
    /// Limits of HTTP/2.
    pub h2: H2Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            connections_per_address_max: 1_000,
            handshakes_max: 4_096,
            age_max: None,
            requests_per_connection_max: None,
            header_bytes_max: 32 << 10,
            headers_max: 100,
            uri_bytes_max: 16 << 10,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            body_idle_timeout: Duration::from_secs(30),
            body_rate_min: 256,
            body_rate_grace: Duration::from_secs(20),
            unsent_bytes_max: 64 << 10,
            h2: H2Limits::default(),
        }
    }
}

impl Limits {
    /// Lowers [`Limits::connections_max`] to half of the files that the process may have open. A request that is
    /// forwarded takes a second one: the other half is for origins, the disk and the admin API. Logs a limit that is
    /// lower than the configured one, or than [`FEW_CONNECTIONS`].
    pub(super) fn within(mut self, open_files_max: u64) -> Self {
        let max = usize::try_from(open_files_max / 2).unwrap_or(usize::MAX).max(1);
        if max >= self.connections_max {
            return self;
        }
        let is_default = self.connections_max == Self::default().connections_max;
        if max < FEW_CONNECTIONS || !is_default {
            tracing::warn!(
                "limits.connections_max: {} connections need twice as many open files, and the process may have \
                 {open_files_max}: {max} connections are accepted; raise the limit (ulimit -Hn, LimitNOFILE), or \
                 lower connections_max",
                self.connections_max
            );
        }
        self.connections_max = max;
        self
    }
}

/// A node that accepts fewer connections than this says so at its start.
const FEW_CONNECTIONS: usize = 4096;

/// Limits of one HTTP/2 connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct H2Limits {
    /// Requests in flight (`SETTINGS_MAX_CONCURRENT_STREAMS`).
    pub streams_max: u32,
    /// Requests in one second; more end the connection with ENHANCE_YOUR_CALM. `None`: no limit; answered
    /// requests cost the client as much as the node.
    pub requests_per_second_max: Option<u32>,
    /// Requests in ten seconds that the client cancels before their response (CVE-2023-44487); more end the
    /// connection with ENHANCE_YOUR_CALM.
    pub resets_per_10s_max: u32,
    /// Bytes of one request body that may wait in memory (the stream's window). The connection's window is
    /// four times as large.
    pub window_bytes: u32,
}

impl Default for H2Limits {
    fn default() -> Self {
        Self {
            streams_max: 128,
            requests_per_second_max: None,
            resets_per_10s_max: 200,
            window_bytes: 256 << 10,
        }
    }
}
