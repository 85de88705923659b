//! Bytes → requests: accepting, TLS, HTTP/1.1 and HTTP/2, and the limits of a connection.
//!
//! [`bind`] opens the sockets, [`serve`] runs on each worker until it is told to drain. A
//! request is handed to the service as it came; nothing here looks inside it beyond its size
//! and its framing (RFC 9112 §6, RFC 9113 §8). What a request means is for the rooms behind.

mod accept;
mod bind;
mod buffers;
mod client;
mod client_stream;
mod counts;
mod drain;
mod frames;
mod gather;
mod h1;
mod h2;
mod hpack;
mod kernel;
mod pace;
mod proxy;
mod record;
mod session;
mod settings;
mod socket;
pub(crate) mod tls;

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, StatusCode};

use crate::context::Connection;
use counts::Counts;

pub(crate) use crate::labels::Unread;
pub(crate) use accept::serve;
pub(crate) use bind::{BindError, WorkerSockets, bind};
pub(crate) use drain::{Drain, DrainSwitch, drain};
pub(crate) use kernel::KernelMemory;
pub(crate) use settings::{
    CertificateFiles, Limits, Listener, Settings, TicketKeys, TlsSettings, TlsVersion, Transport,
};
pub(crate) use tls::{TlsError, TlsState, check_certificate, check_ticket_keys};

/// What all workers share: limits, TLS, and the counts that limits are held against.
#[derive(Debug)]
pub(crate) struct Door {
    limits: ArcSwap<Limits>,
    tls: Option<Arc<TlsState>>,
    counts: Arc<Counts>,
}

impl Door {
    /// A door with nobody in it. `tls` must be there if any listener has TLS.
    pub(crate) fn new(limits: Limits, tls: Option<Arc<TlsState>>) -> Arc<Self> {
        Arc::new(Self { limits: ArcSwap::from_pointee(limits), tls, counts: Arc::default() })
    }

    /// Other limits, for connections that come from now on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }
}

/// Told of each request that is refused here, which no other room sees.
pub(crate) type OnRefused = Rc<dyn Fn(Rc<Connection>, Unread)>;

impl Unread {
    /// What the client is answered.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Framing => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// Path and query as the client wrote them.
fn uri_bytes<B>(request: &Request<B>) -> usize {
    request.uri().path_and_query().map_or(0, |path| path.as_str().len())
}

#[cfg(test)]
mod tests;
