//! Connections to origins, and exchanges on them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use rustls::ClientConfig;

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
    /// In place of all other settings: a configuration that another room keeps.
    pub prepared: Option<PreparedTls>,
}

/// A TLS configuration for connections to origins. Two are equal if they are the same object.
#[derive(Clone, Debug)]
pub(crate) struct PreparedTls(pub Arc<ClientConfig>);

impl PartialEq for PreparedTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PreparedTls {}

impl Default for OriginTls {
    fn default() -> Self {
        Self {
            verify: true,
            system_roots: true,
            ca_files: Vec::new(),
            server_name: None,
            client_certificate: None,
            prepared: None,
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

/// The version of the PROXY protocol header that is sent to origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyVersion {
    /// A line of text.
    V1,
    /// Bytes.
    V2,
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
    /// From [`crate::upstream::Upstreams::send`] to the end of the body, retries included. `None` is no limit.
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
    /// An HTTP/2 connection with requests in flight on which nothing was received for this long gets a PING.
    pub ping_after: Duration,
    /// The connection is closed if nothing answers the PING for this long.
    pub ping_timeout: Duration,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(50),
            age_max: Duration::from_secs(600),
            idle_max: 64,
            ping_after: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(10),
        }
    }
}
