//! Connections to origins: how they are opened, what is spoken on them, and which of them each core keeps.

pub(in crate::upstream) mod closing_time;
pub(in crate::upstream) mod connect;
pub(in crate::upstream) mod core;
pub(in crate::upstream) mod gate;
pub(in crate::upstream) mod http1;
pub(in crate::upstream) mod http2;
pub(in crate::upstream) mod io;
pub(in crate::upstream) mod proxy_header;
pub(in crate::upstream) mod tls;
pub(in crate::upstream) mod tunnel;

/// The version of HTTP on a connection to an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum HttpVersion {
    /// HTTP/1.1: one request at a time.
    Http1,
    /// HTTP/2: requests share the connection.
    Http2,
}
