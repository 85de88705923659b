//! What an operator can set about listeners, TLS and the limits of a connection.
//!
//! Every limit has a metric that counts how often it was reached; the defaults are those
//! that a node in front of public sites should start with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// Everything that this room can be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// Where to listen. Several are usual: plaintext and TLS, IPv4 and IPv6.
    pub listeners: Vec<Listener>,
    /// Certificates and session tickets; used by the listeners with `tls`.
    pub tls: TlsSettings,
    /// What one client, and all of them, may take.
    pub limits: Limits,
}

/// One address to accept connections on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listener {
    /// IPv6 addresses take IPv6 only, so that `0.0.0.0:80` and `[::]:80` stand side by side.
    /// Port 0 takes any free one, the same for all workers.
    pub address: SocketAddr,
    /// What carries the bytes of HTTP here.
    pub transport: Transport,
    /// Networks of load balancers that open each connection with a PROXY protocol header
    /// (version 1 or 2). From them it is demanded, from everyone else it is refused as the
    /// garbage that it is in HTTP or TLS. Empty: nobody.
    pub proxy_protocol: Vec<IpNet>,
    /// Names the listener in logs and errors.
    pub name: String,
}

impl Listener {
    /// A plaintext listener that is named after its address.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            transport: Transport::Plain,
            proxy_protocol: Vec::new(),
            name: address.to_string(),
        }
    }

    /// The same with TLS.
    pub(crate) fn tls(address: SocketAddr) -> Self {
        Self { transport: Transport::Tls, ..Self::plain(address) }
    }
}

/// What carries HTTP between a client and a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP. HTTP/2 is accepted with prior knowledge (RFC 9113 §3.3).
    Plain,
    /// TLS over TCP. ALPN chooses the version of HTTP.
    Tls,
}

/// Certificates, versions and tickets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TlsSettings {
    /// Files of certificates. None at all: a self-signed one is made and kept in the data
    /// directory.
    pub certificates: Vec<CertificateFiles>,
    /// The position in `certificates` of the one for clients that ask for no name, or for a
    /// name that no certificate has.
    pub default_certificate: usize,
    /// Whether a request is refused (421) whose host only another certificate is for than the one
    /// that the client was shown for its SNI.
    pub refuse_misdirected: bool,
    /// The oldest version that is spoken.
    pub version_min: TlsVersion,
    /// Where the keys of session tickets come from.
    pub ticket_keys: TicketKeys,
    /// How often the files of certificates and ticket keys are looked at for a change, and whether the
    /// self-signed certificate or a made ticket key is due. A reload puts another interval in force at once.
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

/// One certificate chain with its key, both PEM.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CertificateFiles {
    /// The chain, the site's own certificate first.
    pub certificate: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// The names it is shown for, exact or `*.example.org`. `None`: those that stand in it.
    pub names: Option<Vec<String>>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsVersion {
    /// TLS 1.2, with forward secrecy and AEAD suites only.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Where the keys of session tickets come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TicketKeys {
    /// Random keys, shared by this node's workers only. A ticket is taken with the current
    /// and with the previous key, so it lives for at most twice `rotate_every`.
    Generated {
        /// How long a key seals new tickets.
        rotate_every: Duration,
    },
    /// A file shared by the fleet: a key a line, 32 bytes in base64 or hex, `#` begins a
    /// comment. The first seals new tickets, all of them open tickets. To rotate, put a new
    /// key second on every node, then first, then drop the last.
    File {
        /// The file; it is read again when it changes.
        path: PathBuf,
        /// How long clients are told to keep a ticket. What ends a ticket is dropping its key.
        lifetime: Duration,
    },
}

/// What one client, and all of them, may take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Open connections of the node. More are closed as they come.
    pub connections_max: usize,
    /// Open connections of one client: an IPv4 address or an IPv6 /64.
    pub connections_per_address_max: usize,
    /// TLS handshakes under way on the node. More connections are closed as they come.
    pub handshakes_max: usize,
    /// Requests on one connection before it is closed in good order; `None` for no end. A
    /// bound spreads long-lived clients over the workers again.
    pub requests_per_connection_max: Option<u64>,
    /// A request's head, start line included (431). At least 8 KiB are buffered.
    pub header_bytes_max: usize,
    /// Header fields of a request (431).
    pub headers_max: usize,
    /// Path and query of a request (414).
    pub uri_bytes_max: usize,
    /// From the connection to the end of the TLS handshake, PROXY header included.
    pub handshake_timeout: Duration,
    /// From a request's first byte to the end of its head (408). For the first request,
    /// from the connection.
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long a request body that is waited for may bring nothing.
    pub body_idle_timeout: Duration,
    /// The least rate of a body, in bytes a second: of a request body while it is waited
    /// for, of a response while its client is what holds it up. Zero: none.
    pub body_rate_min: u64,
    /// For how long a body may be slower than that.
    pub body_rate_grace: Duration,
    /// Bytes written to a connection that the kernel may hold before they are on their way
    /// (`TCP_NOTSENT_LOWAT`); a write of more waits. Counts from the start of the node.
    pub unsent_bytes_max: u32,
    /// HTTP/2.
    pub h2: H2Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            connections_per_address_max: 1_000,
            handshakes_max: 4_096,
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

/// What one HTTP/2 connection may take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct H2Limits {
    /// Requests under way at once (`SETTINGS_MAX_CONCURRENT_STREAMS`).
    pub streams_max: u32,
    /// Requests in one second; more end the connection with ENHANCE_YOUR_CALM. `None`: no
    /// bound, for requests that are answered cost the client as much as they cost us.
    pub requests_per_second_max: Option<u32>,
    /// Requests in ten seconds that the client cancelled before their answer (CVE-2023-44487);
    /// more end the connection with ENHANCE_YOUR_CALM.
    pub resets_per_10s_max: u32,
    /// Bytes of one request body that may wait in memory to be read; the connection's
    /// window is four times as large.
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
