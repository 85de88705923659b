//! Errors of exchanges with upstreams.

mod consequences;
mod link;
mod text;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::body::{BodyError, BodyFault};
use crate::labels::Unretried;

use text::{certificate_fault, handshake_fault, place, queue_fault, socket_remedy};

pub(crate) use link::LinkError;
pub(super) use link::{NoHead, NoHeadReason, body_timeout};

/// A request that no origin answered.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Unanswered {
    /// The error of the last attempt.
    pub error: FetchError,
    /// Where the request was sent.
    pub tried: Tried,
}

/// The pool and the last origin that a request was sent to.
#[derive(Clone, Debug)]
pub(crate) struct Tried {
    /// The pool's name.
    pub pool: Arc<str>,
    /// `host:port` of the last origin, as configured. `None` if none was up.
    pub origin: Option<Arc<str>>,
    /// Its address. `None` if its name was not resolved or no connection was made.
    pub address: Option<SocketAddr>,
    /// Number of tries.
    pub attempts: u32,
    /// Why no other try was made.
    pub unretried: Option<Unretried>,
}

/// A failed exchange.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The name servers did not answer in time.
    #[error("DNS did not answer for {host} within {after:?}")]
    DnsTimeout {
        /// The name that was asked for.
        host: Arc<str>,
        /// The deadline that passed.
        after: Duration,
    },
    /// The name has no address, or the servers failed, and no earlier answer is left.
    #[error("cannot resolve {host}: {reason}")]
    Dns {
        /// The name that was asked for.
        host: Arc<str>,
        /// The resolver's message.
        reason: Arc<str>,
    },
    /// All origins of the pool are down or were tried already, and another request tests one.
    #[error("all origins of pool {pool} are down")]
    AllDown {
        /// The pool's name.
        pool: Arc<str>,
        /// When the client may try again, in seconds; at least 1.
        retry_after: u32,
    },
    /// The sources of the pool's origins have not given any yet.
    #[error("pool {pool} has no origins yet: its sources gave none")]
    NoOrigins {
        /// The pool's name.
        pool: Arc<str>,
    },
    /// Each usable origin has as many requests in flight, or connections, as it may have.
    #[error("each origin of pool {pool} has {limits}, {}", queue_fault(*queue_length, waited))]
    Busy {
        /// The pool's name.
        pool: Arc<str>,
        /// The limits that hold for each origin.
        limits: OriginLimits,
        /// The limit of requests that wait.
        queue_length: usize,
        /// How long the request waited; `None`: the queue was full.
        waited: Option<Duration>,
    },
    /// The pool's limit of connections to this origin is reached.
    #[error("{origin} has reached its limit of {limit} connections")]
    ConnectionLimit {
        /// `host:port`.
        origin: Arc<str>,
        /// [`super::PoolSettings::connections_max`].
        limit: usize,
    },
    /// No address of the origin accepted the connection.
    #[error(
        "cannot connect to {}: {source}{}",
        place(origin, address),
        socket_remedy(address, source)
    )]
    Connect {
        /// `host:port` or `unix:PATH`.
        origin: Arc<str>,
        /// The address that was tried last. `None`: the origin is behind a Unix socket.
        address: Option<SocketAddr>,
        /// The system's error.
        source: io::Error,
    },
    /// No connection in time.
    #[error("could not connect to {origin} within {after:?} (deadlines.connect)")]
    ConnectTimeout {
        /// `host:port`.
        origin: Arc<str>,
        /// The deadline that passed.
        after: Duration,
    },
    /// The origin's certificate is not trusted.
    #[error("the certificate of {origin} {}", certificate_fault(source))]
    Certificate {
        /// `host:port`.
        origin: Arc<str>,
        /// The defect.
        source: rustls::Error,
    },
    /// The handshake failed otherwise.
    #[error("TLS handshake with {origin} failed: {}", handshake_fault(source))]
    Tls {
        /// `host:port`.
        origin: Arc<str>,
        /// The message of the TLS layer.
        source: io::Error,
    },
    /// The origin does not support HTTP/2, which the pool requires.
    #[error("{origin} does not speak HTTP/2")]
    NoHttp2 {
        /// `host:port`.
        origin: Arc<str>,
    },
    /// The handshake took too long.
    #[error("TLS handshake with {origin} not finished within {after:?} (deadlines.tls)")]
    TlsTimeout {
        /// `host:port`.
        origin: Arc<str>,
        /// The deadline that passed.
        after: Duration,
    },
    /// The connection ended before a response began.
    #[error("{origin} closed the connection before a response: {source}")]
    Terminated {
        /// `host:port`.
        origin: Arc<str>,
        /// Whether any byte of the request had been handed to the system.
        sent: bool,
        /// The connection's error.
        source: LinkError,
    },
    /// The head of the response is incomplete.
    #[error("the response header section of {origin} is incomplete: {source}")]
    Incomplete {
        /// `host:port`.
        origin: Arc<str>,
        /// The connection's error.
        source: LinkError,
    },
    /// The head announced content, and the connection ended before it had arrived.
    #[error("the response of {origin} ended before its content was whole: {source}")]
    ContentMissing {
        /// `host:port`.
        origin: Arc<str>,
        /// The connection's error.
        source: LinkError,
    },
    /// The head announced content, and none arrived in time.
    #[error("no content from {origin} within {after:?} (deadlines.between_bytes)")]
    ContentTimeout {
        /// `host:port`.
        origin: Arc<str>,
        /// The deadline that passed.
        after: Duration,
    },
    /// No response head in time.
    #[error("no response from {origin} within {after:?} (deadlines.{option})")]
    ResponseTimeout {
        /// `host:port`.
        origin: Arc<str>,
        /// The deadline that passed.
        after: Duration,
        /// The option that sets it.
        option: &'static str,
    },
    /// The response's head is over the limits.
    #[error("the response header section of {origin} {limit}")]
    HeaderSize {
        /// `host:port`.
        origin: Arc<str>,
        /// The limit that was reached.
        limit: HeaderLimit,
    },
    /// A transfer coding other than `chunked`.
    #[error("{origin} used a transfer coding other than chunked")]
    TransferCoding {
        /// `host:port`.
        origin: Arc<str>,
    },
    /// Both a length and chunked, or more than one length.
    #[error("{origin} framed its response in more than one way")]
    FramedTwice {
        /// `host:port`.
        origin: Arc<str>,
    },
    /// Different lines of a field that may occur only once (RFC 9110 §5.3).
    #[error("{origin} sent {field} more than once with different values")]
    FieldsDiffer {
        /// `host:port`.
        origin: Arc<str>,
        /// The field.
        field: HeaderName,
    },
    /// A 304 (Not Modified) to a request without a condition: nothing that the client holds is confirmed by it.
    #[error("{origin} sent 304 (Not Modified) to a request without a condition")]
    UnaskedNotModified {
        /// `host:port`.
        origin: Arc<str>,
    },
    /// The response is not valid HTTP.
    #[error("the response of {origin} is not valid HTTP: {source}")]
    Protocol {
        /// `host:port`.
        origin: Arc<str>,
        /// The message of the parser or of the HTTP/2 layer.
        source: LinkError,
    },
    /// The origin switched to a protocol that was not requested, or that it did not name.
    #[error("{origin} switched to a protocol that was not requested")]
    UnaskedUpgrade {
        /// `host:port`.
        origin: Arc<str>,
    },
    /// No node of the shield has answered, and the rule lets no other node ask the origin.
    #[error("no node of the shield ({regions}) has answered, and shield_gone is \"error\"")]
    ShieldGone {
        /// The names of its regions.
        regions: Box<str>,
    },
    /// Another node that asked the origin for this one got no response from it.
    #[error("{peer} got no response from the origin")]
    FailedAtPeer {
        /// The name of that node.
        peer: Arc<str>,
    },
    /// The client's request body failed, which is not the origin's fault.
    #[error("{reason}")]
    RequestBody {
        /// How it failed.
        fault: BodyFault,
        /// Why.
        reason: Box<str>,
    },
}

/// The limit that a response's header section reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderLimit {
    /// [`super::PoolSettings::header_bytes_max`].
    #[error("is larger than {0} bytes (header_bytes_max of the pool)")]
    Bytes(usize),
    /// [`super::PoolSettings::header_count_max`].
    #[error("has more than {0} fields (header_count_max of the pool)")]
    Count(usize),
}

/// The limits of a pool for each of its origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OriginLimits {
    /// [`super::PoolSettings::requests_max`].
    pub requests: u32,
    /// [`super::PoolSettings::connections_max`].
    pub connections: usize,
}

impl fmt::Display for OriginLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, connections } = self;
        if *requests > 0 {
            write!(f, "{requests} requests in flight (requests_max) or ")?;
        }
        write!(f, "{connections} connections (connections_max)")
    }
}

impl FetchError {
    /// The failure of the request's body.
    pub(super) fn request_body(error: &BodyError) -> Self {
        Self::RequestBody { fault: error.fault(), reason: error.to_string().into() }
    }

    /// `host:port` of the origin; for DNS errors its host alone. `None` if the error does not concern one
    /// origin.
    pub(crate) fn origin(&self) -> Option<&str> {
        match self {
            Self::AllDown { .. }
            | Self::NoOrigins { .. }
            | Self::Busy { .. }
            | Self::ShieldGone { .. }
            | Self::FailedAtPeer { .. }
            | Self::RequestBody { .. } => None,
            Self::DnsTimeout { host, .. } | Self::Dns { host, .. } => Some(host),
            Self::ConnectionLimit { origin, .. }
            | Self::Connect { origin, .. }
            | Self::ConnectTimeout { origin, .. }
            | Self::Certificate { origin, .. }
            | Self::Tls { origin, .. }
            | Self::NoHttp2 { origin }
            | Self::TlsTimeout { origin, .. }
            | Self::Terminated { origin, .. }
            | Self::Incomplete { origin, .. }
            | Self::ContentMissing { origin, .. }
            | Self::ContentTimeout { origin, .. }
            | Self::FieldsDiffer { origin, .. }
            | Self::ResponseTimeout { origin, .. }
            | Self::HeaderSize { origin, .. }
            | Self::TransferCoding { origin }
            | Self::FramedTwice { origin }
            | Self::UnaskedNotModified { origin }
            | Self::Protocol { origin, .. }
            | Self::UnaskedUpgrade { origin } => Some(origin),
        }
    }

    /// A copy of an error of a connection that was not opened, for the requests that waited for it too.
    pub(super) fn of_opening(&self) -> Option<Self> {
        Some(match self {
            Self::DnsTimeout { host, after } => {
                Self::DnsTimeout { host: host.clone(), after: *after }
            }
            Self::Dns { host, reason } => Self::Dns { host: host.clone(), reason: reason.clone() },
            Self::ConnectionLimit { origin, limit } => {
                Self::ConnectionLimit { origin: origin.clone(), limit: *limit }
            }
            Self::Connect { origin, address, source } => {
                let (origin, address, source) = (origin.clone(), *address, copied(source));
                Self::Connect { origin, address, source }
            }
            Self::ConnectTimeout { origin, after } => {
                Self::ConnectTimeout { origin: origin.clone(), after: *after }
            }
            Self::Certificate { origin, source } => {
                Self::Certificate { origin: origin.clone(), source: source.clone() }
            }
            Self::Tls { origin, source } => {
                Self::Tls { origin: origin.clone(), source: copied(source) }
            }
            Self::NoHttp2 { origin } => Self::NoHttp2 { origin: origin.clone() },
            Self::TlsTimeout { origin, after } => {
                Self::TlsTimeout { origin: origin.clone(), after: *after }
            }
            _ => return None,
        })
    }
}

/// The same error once more.
fn copied(error: &io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => io::Error::new(error.kind(), tls.clone()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
