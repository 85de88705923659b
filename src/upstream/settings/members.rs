//! The origins of a pool.

use std::sync::Arc;

use geo::Coordinates;

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
