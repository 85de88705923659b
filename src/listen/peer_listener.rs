//! The state of the peer listeners: the TLS and the limits of connections from other nodes of the fleet.
//!
//! Peers are subject to no limit of a client: a peer sends the requests of many clients, and has checked them
//! already. They have limits of their own, so that they cannot crowd out the clients of this node.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::StatusCode;
use rustls::{CertificateError, Error, ServerConfig};

use super::connection_counts::{ConnectionCounts, Permit};
use super::settings::{H2Limits, Limits};
use crate::fields::FieldsMut;
use crate::labels::{HopRefusal, PeerRefusal};
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::peers::{HOP, HopVerdict, PeerLimits, PeerTls, verdict_field};
use crate::reply::Reply;

/// The state that the peer listeners of all workers share.
#[derive(Debug)]
pub(crate) struct PeerListenerState {
    tls: Arc<PeerTls>,
    limits: ArcSwap<PeerLimits>,
    counts: Arc<ConnectionCounts>,
}

impl PeerListenerState {
    /// A state without connections.
    pub(crate) fn new(tls: Arc<PeerTls>, limits: PeerLimits) -> Arc<Self> {
        Arc::new(Self { tls, limits: ArcSwap::from_pointee(limits), counts: Arc::default() })
    }

    /// Replaces the limits, for connections and requests that come from now on.
    pub(crate) fn set_limits(&self, limits: PeerLimits) {
        self.limits.store(Arc::new(limits));
    }

    /// The configuration for handshakes.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.tls.current().server.clone()
    }

    /// Counts a connection, if fewer than the maximum are open.
    pub(super) fn connection(&self) -> Option<Permit> {
        self.counts.connection(self.limits.load().connections_max)
    }

    /// Counts a request, if fewer than the maximum are in flight.
    pub(super) fn request(&self, recorder: &Recorder) -> Option<PeerPlace> {
        let permit = self.counts.request(self.limits.load().requests_max)?;
        recorder.count(Metric::PeerRequests);
        Some(PeerPlace { _permit: permit, recorder: recorder.clone() })
    }

    /// The limits of a connection of a peer. `clients`: those of a client.
    pub(super) fn connection_limits(&self, clients: &Limits) -> Arc<Limits> {
        let peers = self.limits.load();
        Arc::new(Limits {
            age_max: Some(peers.connection_age),
            requests_per_connection_max: None,
            // The peer has added fields to those that its client may send.
            header_bytes_max: clients.header_bytes_max + ADDED_BYTES,
            headers_max: clients.headers_max + ADDED_FIELDS,
            // The peer has encoded bytes of the path.
            uri_bytes_max: (3 * clients.uri_bytes_max).min(URI_BYTES_MAX),
            // A slow client of the peer is the peer's to judge; keep-alive probes find a peer that is gone.
            body_rate_min: 0,
            body_idle_timeout: WINDOW_PATIENCE,
            h2: H2Limits {
                streams_max: peers.streams_max,
                requests_per_second_max: None,
                // A peer cancels a request whenever its client does.
                resets_per_10s_max: u32::MAX,
                ..clients.h2.clone()
            },
            ..clients.clone()
        })
    }
}

/// A request's place among those of all peers. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct PeerPlace {
    _permit: Permit,
    recorder: Recorder,
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        self.recorder.subtract(Metric::PeerRequests, 1);
    }
}

/// Counts a connection or a request of a peer that is refused, and logs it at a limited rate.
pub(super) fn note_refusal(
    refusal: PeerRefusal,
    peer: SocketAddr,
    detail: &dyn std::fmt::Display,
    recorder: &Recorder,
) {
    recorder.count_labelled(Metric::PeerRefusals, refusal.index());
    let notice = Notice::warning("a peer was refused", refusal.as_str(), "");
    notices::note(&notice, format_args!("{peer}: {refusal}: {detail}"));
}

/// The reply to a request above [`PeerLimits::requests_max`]: the peer asks another node.
pub(super) fn overload_reply() -> Reply {
    let mut reply = Reply::new(StatusCode::MISDIRECTED_REQUEST);
    reply.fields.append(&HOP, &verdict_field(HopVerdict::Refused(HopRefusal::Overload)));
    reply
}

/// Why a handshake of a peer failed. `None`: the connection ended, as those of load balancers and port scanners
/// do, which look only whether the port is open.
pub(super) fn handshake_refusal(error: &io::Error) -> Option<PeerRefusal> {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    Some(match error.get_ref()?.downcast_ref::<Error>()? {
        Error::NoCertificatesPresented => PeerRefusal::NoCertificate,
        Error::InvalidCertificate(UnknownIssuer | BadSignature) => PeerRefusal::Authority,
        Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => PeerRefusal::Expired,
        Error::InvalidCertificate(_) => PeerRefusal::Certificate,
        _ => PeerRefusal::Handshake,
    })
}

/// Room for the fields that a peer adds to a request: `Skerry-Hop`, `Skerry-Purges`, `Via`, `X-Forwarded-*`.
const ADDED_BYTES: usize = 4 << 10;
const ADDED_FIELDS: usize = 16;
/// How long a response waits for the window of its stream. A peer opens that once half of it was read: 512 KiB, which take
/// a client 34 minutes at 256 bytes a second.
const WINDOW_PATIENCE: Duration = Duration::from_secs(3600);
/// The longest target that the HTTP library holds.
const URI_BYTES_MAX: usize = 65_534;
