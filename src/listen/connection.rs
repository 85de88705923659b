//! The interface between the listener and its HTTP drivers: [`h1`](super::h1) and [`h2`](super::h2).
//!
//! A driver owns a connection's [`ClientStream`](super::client_stream::ClientStream) and speaks one
//! version of HTTP on it. Everything else that a connection needs, it gets from [`HttpConnection`]:
//!
//! | the driver must | by calling |
//! | --- | --- |
//! | be woken when the connection is told to close, and close it | [`HttpConnection::register`], [`shutdown`](HttpConnection::shutdown), [`count_timeout`](HttpConnection::count_timeout), [`linger`](HttpConnection::linger) |
//! | report the bytes of a head before it is complete | [`receive_head_bytes`](HttpConnection::receive_head_bytes) |
//! | start each request, and keep the result until its response is sent | [`begin_request`](HttpConnection::begin_request) |
//! | give a request of a peer its place | [`admit_peer`](HttpConnection::admit_peer) |
//! | refuse a request whose head cannot be read | [`refuse`](HttpConnection::refuse) |
//! | hold request bodies to the minimum rate | [`request_body`](HttpConnection::request_body) |
//! | pass the request on; poll the answer; send interim responses first ([`ReplyFuture`]) | [`respond`](HttpConnection::respond) |
//! | add a `Date` to the response | [`date`](HttpConnection::date) |
//! | hold the sending of response bodies to the minimum rate, where flow control hides a slow client | [`response_rate`](HttpConnection::response_rate) |
//! | offer no more requests after the last one | [`is_used_up`](HttpConnection::is_used_up) |
//! | cancel the answer when the client cancels the request | dropping the future of the answer |
//!
//! Bytes are counted, and blocked writes noticed, by the stream.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use http::{HeaderValue, Request, Version};

use crate::body::{Body, BodySource};
use crate::context::Connection;
use crate::interim::ReplyFuture;
use crate::labels::{ConnectionTimeout, HeadError, Http2End, PeerRefusal, RequestProtocol};
use crate::metrics::{Metric, Recorder};
use crate::reply::Reply;

use super::RequestHandler;
use super::min_rate::{MinRate, MinRateBody};
use super::peer_listener::{self, PeerListenerState};
use super::settings::Limits;
use super::state::{ConnectionState, Phase, RequestInFlight, Shutdown};

/// One client connection as an HTTP driver sees it. `S` answers its requests.
pub(super) struct HttpConnection<S> {
    pub(super) handler: RequestHandler<S>,
    pub(super) facts: Rc<Connection>,
    pub(super) state: Rc<ConnectionState>,
    pub(super) recorder: Recorder,
    /// The current date; the worker updates it.
    pub(super) date: Rc<RefCell<HeaderValue>>,
    /// Present if the client is a peer.
    pub(super) peer_state: Option<Arc<PeerListenerState>>,
    /// All requests are refused: the client speaks plain HTTP to a listener with TLS.
    pub(super) is_plain_http: bool,
}

impl<S> HttpConnection<S> {
    /// The limits of this connection. A reload does not change them.
    pub(super) fn limits(&self) -> &Arc<Limits> {
        &self.state.limits
    }

    /// The metrics of this worker, for events that only the driver sees.
    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// A `Date` for responses without one.
    pub(super) fn date(&self) -> &Rc<RefCell<HeaderValue>> {
        &self.date
    }

    /// Wakes this task when the connection is told to close.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.state.register(cx);
    }

    /// Runs work that no request is part of, such as the choice of the protocol. Fails when its time
    /// limit is over.
    pub(super) async fn run<F: Future>(&self, work: F) -> Result<F::Output, ConnectionTimeout> {
        self.state.run(work).await
    }

    /// How the connection must close, if it must. A lingering connection stays open while the
    /// client has not acknowledged many sent bytes (`unacknowledged`).
    pub(super) fn shutdown(&self, unacknowledged: impl FnOnce() -> usize) -> Option<Shutdown> {
        let shutdown = self.state.shutdown()?;
        let goes_on =
            shutdown == Shutdown::AfterLinger && self.state.extend_linger(unacknowledged());
        (!goes_on).then_some(shutdown)
    }

    /// Withdraws the order to close, and starts the time limit of the current phase anew.
    pub(super) fn extend_phase(&self) {
        self.state.extend_phase();
    }

    /// Counts a time limit that closes the connection.
    pub(super) fn count_timeout(&self, timeout: ConnectionTimeout) {
        self.recorder.count_labelled(Metric::ConnectionsTimedOut, timeout.index());
    }

    /// Counts why an HTTP/2 connection is closed by the node.
    pub(super) fn count_http2_end(&self, end: Http2End) {
        self.recorder.count_labelled(Metric::Http2Ended, end.index());
    }

    /// Gives the client a moment to read the last bytes; the driver then shuts its stream down, which
    /// completes when the client has closed or the moment is over.
    pub(super) fn linger(&self) {
        self.state.linger();
    }

    /// Records that bytes of a head have arrived.
    pub(super) fn receive_head_bytes(&self) {
        self.state.activity.receive_head_bytes();
    }

    /// Whether a part of a head has arrived.
    pub(super) fn has_partial_head(&self) -> bool {
        self.state.activity.has_partial_head()
    }

    /// Bytes written to the client so far.
    pub(super) fn bytes_sent(&self) -> u64 {
        self.state.activity.bytes_sent()
    }

    /// Starts a request whose head is complete, and counts it. The result must be kept until the last
    /// byte of the response is sent.
    pub(super) fn begin_request(&self, version: Version) -> RequestInFlight {
        let protocol = match version {
            Version::HTTP_10 => RequestProtocol::Http10,
            Version::HTTP_11 => RequestProtocol::Http11,
            _ => RequestProtocol::Http2,
        };
        self.recorder.count_labelled(Metric::RequestsByProtocol, protocol.index());
        self.state.begin_request()
    }

    /// Counts a request that cannot be read. For an HTTP/2 stream that is reset without a response, this is
    /// all; [`HttpConnection::refuse`] also logs and replies.
    pub(super) fn count_refusal(&self, error: HeadError) {
        self.recorder.count_labelled(Metric::RequestsUnread, error.index());
    }

    /// Counts and logs a request that cannot be read. The driver sends the reply.
    pub(super) fn refuse(&self, error: HeadError) -> Reply {
        self.count_refusal(error);
        (self.handler.on_refused)(self.facts.clone(), error)
    }

    /// Gives a request of a peer its place among those of all peers. Returns the reply if there is none; counts
    /// and logs that.
    pub(super) fn admit_peer(&self, request: &mut RequestInFlight) -> Option<Reply> {
        let peer_state = self.peer_state.as_ref()?;
        match peer_state.request(&self.recorder) {
            Some(place) => {
                request.hold(place);
                None
            }
            None => {
                let (peer, refusal) = (self.facts.peer, PeerRefusal::Overload);
                peer_listener::note_refusal(refusal, peer, &"it asks another node", &self.recorder);
                Some(peer_listener::overload_reply())
            }
        }
    }

    /// A request body that fails when the client sends it more slowly than the limits allow.
    pub(super) fn request_body(&self, body: impl BodySource + 'static) -> Body {
        Body::stream(MinRateBody::new(body, self.limits(), self.recorder.clone()))
    }

    /// The messages of a gRPC call: a request body that may pause for any time. The exchange with the
    /// origin has its own limit.
    pub(super) fn grpc_body(&self, body: impl BodySource + 'static) -> Body {
        Body::stream(MinRateBody::unlimited(body, self.recorder.clone()))
    }

    /// Checks how fast the client takes a response body.
    pub(super) fn response_rate(&self) -> MinRate {
        MinRate::new(self.limits())
    }

    /// Whether this connection has had as many requests as it may.
    pub(super) fn is_used_up(&self) -> bool {
        self.state.is_used_up()
    }

    /// The connection speaks another protocol from now on.
    pub(super) fn upgrade(&self) {
        self.state.activity.enter(Phase::Upgraded);
    }
}

impl<S, F> HttpConnection<S>
where
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: ReplyFuture,
{
    /// Passes a request on. The result is polled for interim responses after each poll of the answer
    /// itself; dropping it cancels the request.
    pub(super) fn respond(&self, request: Request<Body>) -> F {
        (self.handler.service)(self.facts.clone(), request)
    }
}
