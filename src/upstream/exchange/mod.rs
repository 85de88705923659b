//! An exchange with an upstream: the conditions of a request, and the response with facts about it.

pub(in crate::upstream) mod attempt;
pub(in crate::upstream) mod deadline;
pub(in crate::upstream) mod fields;
pub(in crate::upstream) mod hold;
pub(in crate::upstream) mod patience;
pub(in crate::upstream) mod request_body;
pub(in crate::upstream) mod response_body;
pub(in crate::upstream) mod resume;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use geo::UnitVector;
use http::{HeaderValue, Response};
use tokio::time::Instant;

use super::choice::sticky::StickyToken;
use super::connection::proxy_header::ProxiedClient;
use super::connection::tunnel::UpgradedOrigin;
use crate::body::Body;
use crate::interim::Interims;
use crate::labels::Unretried;
use crate::rendezvous;

/// How a request is to be exchanged, besides the request itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intent {
    /// The facts that the choice of an origin depends on.
    pub affinity: Affinity,
    /// The client that [`super::PoolSettings::send_proxy`] states. `None`: the request is the node's own.
    pub proxied: Option<Rc<ProxiedClient>>,
    /// The method is idempotent: the request may be sent again although an origin may have processed it
    /// (RFC 9110 §9.2.2).
    pub is_idempotent: bool,
    /// The `Upgrade` field to send, for another protocol on the connection (RFC 9110 §7.8).
    pub upgrade: Option<HeaderValue>,
    /// The client accepts trailers. An HTTP/2 origin is told so with `TE: trailers` (RFC 9110
    /// §10.1.4); an HTTP/1.1 origin is not, because `TE` would have to be listed in `Connection`.
    pub takes_trailers: bool,
    /// A call such as gRPC: messages go both ways for as long as the client likes, with pauses of
    /// any length. [`super::settings::Deadlines::tunnel_idle`] replaces the deadlines of head and
    /// body where it is longer.
    pub is_call: bool,
    /// Many requests wait for this one: the retry budget never refuses it another try.
    pub for_many: bool,
    /// Receives the interim responses.
    pub interims: Option<Arc<Interims>>,
    /// Follows the exchange until it is acknowledged.
    pub acknowledged: Option<Rc<Acknowledgement>>,
}

/// The acknowledgement of a request over HTTP/2: a 102 (Processing), which is then not passed on.
#[derive(Debug, Default)]
pub(crate) struct Acknowledgement {
    has_arrived: Cell<bool>,
    /// When there was a connection for the request.
    sent: Cell<Option<Instant>>,
}

impl Acknowledgement {
    /// Whether it has arrived. It can only arrive while the future of the exchange is polled.
    pub(crate) fn has_arrived(&self) -> bool {
        self.has_arrived.get()
    }

    /// When the request was sent, on a connection that was open by then. `None`: not yet.
    pub(crate) fn sent_at(&self) -> Option<Instant> {
        self.sent.get()
    }

    /// Notes that there is a connection for the request.
    pub(crate) fn note_sent(&self) {
        self.sent.set(Some(Instant::now()));
    }

    pub(in crate::upstream) fn note_arrival(&self) {
        self.has_arrived.set(true);
    }
}

/// The ties of a request to some origins of a pool rather than to others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Affinity {
    /// Where the client is, for [`super::Policy::Nearest`].
    pub point: Option<UnitVector>,
    /// For [`super::Balance::Hash`].
    pub hash: u64,
    /// The member at which the visitor is kept, if the pool is sticky.
    pub sticky: Option<StickyToken>,
}

impl Affinity {
    /// The hash of a request for a value such as a client's address. The same on each node.
    pub(crate) fn hash_of(value: &[u8]) -> u64 {
        rendezvous::hash(value)
    }
}

/// A response with its head, and facts about the exchange.
#[derive(Debug)]
pub(crate) struct UpstreamResponse {
    /// Without hop-by-hop fields (RFC 9110 §7.6.1), except `Upgrade` in a 101 and a 426. Its body
    /// enforces the deadlines and ends in an error if it is cut short. Its version is that of the
    /// origin, for `Via`.
    pub response: Response<Body>,
    /// `host:port` of the origin as configured.
    pub origin: Arc<str>,
    /// The origin's address. `None`: it is behind a Unix socket.
    pub address: Option<SocketAddr>,
    /// Number of tries, this one included.
    pub attempts: u32,
    /// Why no other try was made after this response, which has a status of `retry.on`.
    pub unretried: Option<Unretried>,
    /// The field `Skerry-Hop` of a peer, which the header section does not have.
    pub verdict: Option<HeaderValue>,
    /// Time from [`super::Upstreams::send`] to the head, failed attempts included.
    pub first_byte: Duration,
    /// The time in the pool's queue.
    pub queued: Duration,
    /// The time in which its connection was opened. `None`: the connection was open.
    pub connected: Option<Duration>,
    /// When the exchange began, and when the head arrived.
    pub times: Times,
    /// The connection after a 101, for [`super::tunnel()`].
    pub upgraded: Option<Box<UpgradedOrigin>>,
}

/// "request_time" and "response_time" of RFC 9111 §4.2.3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Before the first attempt.
    pub asked: SystemTime,
    /// After the head arrived.
    pub came: SystemTime,
}
