//! The body of a peer's response. If the peer breaks off or dies, the rest comes from the shield or the origin
//! (RFC 9110 §13.1.5, §14): with a strong entity tag and without content coding, as between two origins of a pool. Another
//! node may code the same content into other bytes, so a coded body waits for the peer until their connection ends.

use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::response::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;

use super::super::worker::Worker;
use super::patience::until_dead;
use super::{AtPeer, PeerLink};
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::fields::ranges::{PartAnswer, Validator, ask_from, content_range, judge};
use crate::labels::HopFailure;

/// The body of a response of a peer, see the module documentation. Counts the bytes of the peer, and its request as in
/// flight until the end.
pub(in crate::serve) struct HopBody {
    body: Body,
    /// `None` once the next hop continues the body.
    at_peer: Option<AtPeer>,
    rest: Option<Box<Rest>>,
    /// The body of the next hop, once it was asked for.
    next: Option<Pin<Box<dyn Future<Output = Option<Body>>>>>,
    error: Option<BodyError>,
}

/// Watches whether a peer lives while its body is waited for.
pub(in crate::serve) struct PeerWatch {
    worker: Rc<Worker>,
    deadline: Duration,
    skip_for: Duration,
    /// Resolves once the peer is dead. `None`: the body was not waited for yet.
    death: Option<Pin<Box<dyn Future<Output = HopFailure>>>>,
}

impl PeerWatch {
    /// A peer that is silent for two times `deadline` is dead, and gets no request for `skip_for`.
    pub(in crate::serve) fn new(
        worker: Rc<Worker>,
        deadline: Duration,
        skip_for: Duration,
    ) -> Self {
        Self { worker, deadline, skip_for, death: None }
    }

    /// Ready once the peer is dead, which gets no further request for a while.
    fn poll_death(&mut self, link: &Arc<PeerLink>, cx: &mut Context<'_>) -> Poll<HopFailure> {
        let (worker, deadline) = (&self.worker, self.deadline);
        let watching =
            || Box::pin(until_dead(link.clone(), worker.clone(), deadline)) as Pin<Box<_>>;
        let failure = ready!(self.death.get_or_insert_with(watching).as_mut().poll(cx));
        link.note_silence(self.skip_for, worker.clock.instant());
        Poll::Ready(failure)
    }
}

/// Sends a request to the next hop after the peer: the shield, or the origin. `None`: there is no response.
pub(in crate::serve) type SendToNextHop = Rc<dyn Fn(Request<()>) -> FromNextHop>;

/// The response to such a request.
pub(in crate::serve) type FromNextHop = Pin<Box<dyn Future<Output = Option<Response<Body>>>>>;

/// Why a body has no further frame.
struct BodyFailure {
    reason: HopFailure,
    error: BodyError,
}

/// How the rest of a body is requested.
struct Rest {
    watch: PeerWatch,
    next_hop: SendToNextHop,
    /// The request for the origin.
    request: Request<()>,
    validator: Validator,
    /// The next byte of the object, and the one after the last.
    bytes: Range<u64>,
    complete_length: Option<u64>,
}

impl HopBody {
    /// The body of a response with this head. `for_origin` writes its request for the origin.
    pub(in crate::serve) fn begin(
        body: Body,
        (at_peer, watch): (AtPeer, PeerWatch),
        head: &Parts,
        next_hop: impl FnOnce() -> SendToNextHop,
        for_origin: &dyn Fn() -> Request<()>,
    ) -> Body {
        if let Body::Empty | Body::Full(_) = body {
            count_bytes(&at_peer, body.exact_length().unwrap_or_default());
            return body;
        }
        let rest = Rest::of(head, body.exact_length(), watch, next_hop, for_origin);
        Body::stream(Self { body, at_peer: Some(at_peer), rest, next: None, error: None })
    }

    /// The next frame of the body. It fails with the peer that sends it.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        match self.body.poll_frame(cx) {
            Poll::Ready(frame) => {
                let failed = |error| BodyFailure { reason: HopFailure::Body, error };
                Poll::Ready(frame.map(|frame| frame.map_err(failed)))
            }
            Poll::Pending => {
                let (Some(at_peer), Some(rest)) = (&self.at_peer, &mut self.rest) else {
                    return Poll::Pending;
                };
                let reason = ready!(rest.watch.poll_death(at_peer.link(), cx));
                let error = BodyError::new("a peer fell silent within its response");
                Poll::Ready(Some(Err(BodyFailure { reason, error })))
            }
        }
    }

    /// Leaves the peer, and requests the rest from the next hop. False: it cannot be requested.
    fn resume(&mut self, reason: HopFailure) -> bool {
        self.body = Body::Empty;
        if let Some(at_peer) = self.at_peer.take() {
            at_peer.link().count_failure(reason);
        }
        let Some(rest) = self.rest.take() else { return false };
        self.next = Some(Box::pin(rest.request()));
        true
    }
}

impl BodySource for HopBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        loop {
            if let Some(next) = &mut self.next {
                let body = ready!(next.as_mut().poll(cx));
                self.next = None;
                let Some(body) = body else {
                    let error = self.error.take();
                    let broken = || BodyError::new("the response of a peer ended early");
                    return Poll::Ready(Some(Err(error.unwrap_or_else(broken))));
                };
                self.body = body;
            }
            match ready!(self.poll_body(cx)) {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                    if let Some(rest) = &mut self.rest {
                        rest.bytes.start += bytes;
                    }
                    if let Some(at_peer) = &self.at_peer {
                        count_bytes(at_peer, bytes);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(BodyFailure { reason, error })) => {
                    if self.at_peer.is_none() || !self.resume(reason) {
                        return Poll::Ready(Some(Err(error)));
                    }
                    self.error = Some(error);
                }
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && self.body.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        match (&self.next, &self.rest) {
            (None, Some(rest)) => Some(rest.bytes.end - rest.bytes.start),
            (None, None) => self.body.exact_length(),
            (Some(_), _) => None,
        }
    }
}

impl Rest {
    fn of(
        head: &Parts,
        length: Option<u64>,
        watch: PeerWatch,
        next_hop: impl FnOnce() -> SendToNextHop,
        for_origin: &dyn Fn() -> Request<()>,
    ) -> Option<Box<Self>> {
        if head.headers.contains_key(CONTENT_ENCODING) {
            return None;
        }
        let validator = Validator::of(&head.headers);
        let validator = validator.filter(|one| matches!(one, Validator::Tag(_)))?;
        let (bytes, complete_length) = match head.status {
            StatusCode::OK => (0..length?, length),
            StatusCode::PARTIAL_CONTENT => {
                let part = content_range(&head.headers)?;
                (part.bytes?, part.complete_length)
            }
            _ => return None,
        };
        let request = for_origin();
        if *request.method() != Method::GET {
            return None;
        }
        let next_hop = next_hop();
        Some(Box::new(Self { watch, next_hop, request, validator, bytes, complete_length }))
    }

    /// The rest as the next hop sends it. `None`: it has another version, or no answer.
    async fn request(self: Box<Self>) -> Option<Body> {
        let Self { next_hop, mut request, validator, bytes, complete_length, .. } = *self;
        ask_from(bytes.start, Some(bytes.end), &validator, request.headers_mut());
        let response = next_hop(request).await?;
        let (status, headers) = (response.status(), response.headers());
        let answer = judge(&bytes, Some(&validator), complete_length, status, headers);
        let is_rest = matches!(answer, PartAnswer::Part { bytes: part, .. } if part == bytes);
        // The bytes of a coded part are others.
        (is_rest && !headers.contains_key(CONTENT_ENCODING)).then(|| response.into_body())
    }
}

fn count_bytes(at_peer: &AtPeer, bytes: u64) {
    at_peer.link().counts.bytes.fetch_add(bytes, Ordering::Relaxed);
}
