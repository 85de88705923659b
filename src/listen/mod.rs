//! Client connections: accepting, TLS, HTTP/1.1 and HTTP/2, and the limits of a connection.
//!
//! [`bind()`] opens the sockets; [`serve`] runs on each worker until it is told to drain. A request is passed
//! on as it was received: this room looks at its size and its framing (RFC 9112 §6, RFC 9113 §8) and at
//! nothing else. [`connection`] has the interface between the room and its HTTP drivers.

mod accept;
mod bind;
mod buffers;
mod client_stream;
mod connection;
mod connection_counts;
mod drain;
mod h1;
mod h2;
mod handshakes;
mod kernel;
mod min_rate;
mod open_connections;
mod peer_listener;
mod proxy;
mod settings;
mod socket;
mod state;
pub(crate) mod tls;

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, StatusCode};

use crate::clock::Clock;
use crate::context::Connection;
use crate::reply::Reply;
use connection_counts::ConnectionCounts;
use handshakes::Handshakes;

pub(crate) use crate::labels::HeadError;
pub(crate) use accept::serve;
pub(crate) use bind::{BindError, WorkerSockets, bind};
pub(crate) use drain::{Drain, DrainPhase, DrainSwitch, drain};
pub(crate) use kernel::KernelMemory;
pub(crate) use peer_listener::PeerListenerState;
pub(crate) use settings::{
    CertificateFiles, Limits, Listener, Settings, TicketKeys, TlsSettings, TlsVersion, Transport,
};
pub(crate) use tls::{CertificateReport, TlsError, TlsState, check_certificate, check_ticket_keys};

/// The state that the listeners of all workers share: the limits, the counts that they are checked against, and TLS.
#[derive(Debug)]
pub(crate) struct ListenerState {
    limits: ArcSwap<Limits>,
    counts: Arc<ConnectionCounts>,
    handshakes: Arc<Handshakes>,
    tls: Option<Arc<TlsState>>,
    peers: Option<Arc<PeerListenerState>>,
    clock: Clock,
}

impl ListenerState {
    /// The state of a node without connections. `tls` must be present if any listener has
    /// [`Transport::Tls`], and `peers` if any has [`Transport::Peers`].
    pub(crate) fn new(
        limits: Limits,
        tls: Option<Arc<TlsState>>,
        peers: Option<Arc<PeerListenerState>>,
        clock: Clock,
    ) -> Arc<Self> {
        let limits = ArcSwap::from_pointee(limits.within(open_files_max()));
        let (counts, handshakes) = Default::default();
        Arc::new(Self { limits, counts, handshakes, tls, peers, clock })
    }

    /// The state of the peer listeners, if the node has peers.
    pub(crate) fn peers(&self) -> Option<&Arc<PeerListenerState>> {
        self.peers.as_ref()
    }

    /// The limits for connections that are accepted now.
    pub(crate) fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    /// Replaces the limits, for connections that are accepted from now on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits.within(open_files_max())));
    }
}

/// The functions of the rest of the node that answer a connection's requests.
#[derive(Clone)]
pub(crate) struct RequestHandler<S> {
    /// Answers a request. It cannot fail. Dropping its future says that the client has cancelled the
    /// request.
    pub service: S,
    /// Called for each request that this room refuses, and the service therefore does not see.
    pub on_refused: OnRefused,
}

/// Called with a refused request's connection and the reason. Returns the reply for the client.
pub(crate) type OnRefused = Rc<dyn Fn(Rc<Connection>, HeadError) -> Reply>;

impl HeadError {
    /// The status of the response to the client.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Framing | Self::PlainHttp => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// The most files that this process can have open (the hard limit of RLIMIT_NOFILE). The store raises the limit that is
/// in force to it.
fn open_files_max() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.maximum.unwrap_or(u64::MAX)
}

/// The length of path and query as the client sent them.
fn uri_bytes<B>(request: &Request<B>) -> usize {
    request.uri().path_and_query().map_or(0, |path| path.as_str().len())
}

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
