//! The facts of one connection and of one request. Facts only, never services.

use std::net::SocketAddr;
use std::sync::Arc;

/// What is known of a client connection once it is open; shared by its requests.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The other end; what the PROXY protocol said where a listener expects it.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Present when the client speaks TLS to us.
    pub tls: Option<TlsFacts>,
}

/// What the handshake agreed on.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite's IANA name.
    pub cipher: &'static str,
    /// The name that the client asked for (SNI), lower case.
    pub server_name: Option<Arc<str>>,
    /// Whether the session was resumed.
    pub resumed: bool,
}

impl Connection {
    /// `http` or `https`, as the client spoke to us.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}
