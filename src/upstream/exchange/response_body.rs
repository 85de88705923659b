//! A response body that is still arriving: it drives its HTTP/1.1 connection, checks the
//! deadlines, and returns the connection at its end.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame};

use super::super::connection::core::Active;
use super::super::connection::http1::{Http1, ReadyBody};
use super::super::connection::http2::{Received, Share};
use super::super::error::{LinkError, body_timeout};
use super::deadline::{Deadline, Limits};
use super::fields;
use super::hold::HeldContent;
use super::patience::Pace;
use super::request_body::ClientUpload;
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::labels::ProxyError;

/// A connection that carries an exchange. Dropping it before the end of the response closes an
/// HTTP/1.1 connection and resets the stream of an HTTP/2 connection.
pub(in crate::upstream) enum Link {
    Http1(Box<Http1>),
    Http2(Share),
}

impl Link {
    /// The origin's address. `None`: it is behind a Unix socket.
    pub(in crate::upstream) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Http1(http1) => http1.address,
            Self::Http2(http2) => http2.address,
        }
    }
}

/// A response body as its connection delivers it.
pub(in crate::upstream) enum Incoming {
    Http1(hyper::body::Incoming),
    Http2(Received),
}

impl Incoming {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2(received) => received.is_end_stream(),
        }
    }

    fn exact_length(&self) -> Option<u64> {
        match self {
            Self::Http1(incoming) => incoming.size_hint().exact(),
            Self::Http2(received) => received.exact_length(),
        }
    }
}

/// A response body, just after the head.
pub(in crate::upstream) enum Content {
    /// All of it has been read.
    Whole(Body),
    /// More of it must be read.
    Streaming(Box<ResponseBody>),
}

impl Content {
    /// Takes the body from its connection. A connection whose body is whole is kept at once.
    pub(in crate::upstream) fn take(
        link: Link,
        incoming: Incoming,
        deadline: Deadline,
        limits: Limits,
        active: Active,
    ) -> Self {
        let (first, incoming, link) = match (link, incoming) {
            (Link::Http1(mut http1), Incoming::Http1(incoming)) => {
                let (first, incoming) = match http1.body_at_once(incoming) {
                    ReadyBody::Whole(body) => {
                        active.answered();
                        match BodySource::is_end_stream(&body) {
                            true => active.finished_without_content(),
                            false => active.finished(),
                        }
                        active.give_back(http1);
                        return Self::Whole(body);
                    }
                    ReadyBody::First(first, incoming) => {
                        (Some(first.map(|frame| frame.map_err(LinkError::from))), incoming)
                    }
                    ReadyBody::Nothing(incoming) => (None, incoming),
                };
                (first, Incoming::Http1(incoming), Link::Http1(http1))
            }
            (_, incoming) if incoming.is_end_stream() => {
                active.answered();
                active.finished_without_content();
                return Self::Whole(Body::Empty);
            }
            (link, incoming) => (None, incoming, link),
        };
        limits.arm(&deadline, limits.between_bytes);
        let link = Some(link);
        let upload = None;
        let body = ResponseBody { incoming, first, link, deadline, limits, active, upload };
        Self::Streaming(Box::new(body))
    }
}

/// See the top of this file.
pub(in crate::upstream) struct ResponseBody {
    incoming: Incoming,
    /// A frame that was read before the body is polled; `Some(None)` is the end of the body.
    first: Option<Option<Result<Frame<Bytes>, LinkError>>>,
    /// `None` once returned or closed.
    link: Option<Link>,
    deadline: Deadline,
    limits: Limits,
    active: Active,
    /// The request's body, which may still be arriving.
    upload: Option<Rc<ClientUpload>>,
}

impl ResponseBody {
    /// The same body, which knows of the request's body beside it.
    pub(in crate::upstream) fn beside(mut self: Box<Self>, upload: Rc<ClientUpload>) -> Box<Self> {
        // The watched body has the other reference, until it has ended.
        self.upload = Some(upload).filter(|upload| Rc::strong_count(upload) > 1);
        self
    }

    /// Whether to wait for the first piece: the head announced content and none of it has been
    /// read, or reading it failed already.
    pub(in crate::upstream) fn is_awaited(&self) -> bool {
        match &self.first {
            Some(first) => matches!(first, Some(Err(_))),
            None => self.incoming.exact_length().is_some_and(|length| length > 0),
        }
    }

    /// Waits for the first piece and keeps it for the reader of the body; with `held`, for the whole
    /// body, as long as it may be held: then `held` is empty. Until then the exchange can still fail: nothing of the response has gone to a client.
    pub(in crate::upstream) fn poll_awaited(
        &mut self,
        cx: &mut Context<'_>,
        held: &mut Option<HeldContent>,
        pace: &Pace,
    ) -> Poll<Result<(), NoContent>> {
        let awaited = loop {
            match self.poll_incoming(cx) {
                Poll::Ready(Some(Err(error))) => {
                    break Err(match self.request_failure(&error) {
                        Some(failure) => NoContent::RequestBody(failure),
                        None => NoContent::BrokeOff(error),
                    });
                }
                Poll::Ready(frame) => match held {
                    None => {
                        self.first = Some(frame);
                        self.active.answered();
                        break Ok(());
                    }
                    Some(held) => {
                        if self.hold(held, frame) {
                            break Ok(());
                        }
                        self.await_more(pace, Some(held));
                    }
                },
                Poll::Pending => {
                    ready!(self.poll_late(cx));
                    if let Some(part) = self.take_unheld(held) {
                        self.first = Some(Some(Ok(Frame::data(part))));
                        self.active.answered();
                        break Ok(());
                    }
                    if !self.is_merely_late(pace, held.as_ref()) {
                        break Err(NoContent::Deadline);
                    }
                }
            }
        };
        if awaited.is_err() {
            self.link = None;
        }
        Poll::Ready(awaited)
    }

    /// Adds a frame to the held content. True at the end of the body.
    fn hold(
        &mut self,
        held: &mut HeldContent,
        frame: Option<Result<Frame<Bytes>, LinkError>>,
    ) -> bool {
        held.is_whole = frame.is_none() || self.incoming.is_end_stream();
        if let Some(Ok(frame)) = frame {
            held.add(forwardable(frame));
        }
        if held.is_whole {
            self.active.answered();
            self.finish();
        }
        held.is_whole
    }

    /// The arrived part of a response that was held for as long as it may be. `None`: it may still be held.
    fn take_unheld(&self, held: &mut Option<HeldContent>) -> Option<Bytes> {
        let end_ms = held.as_ref()?.end_ms()?;
        if self.deadline.now_ms() < end_ms || self.limits.total_passed(&self.deadline) {
            return None;
        }
        self.active.count_unheld();
        held.take().map(HeldContent::into_part)
    }

    /// Sets the most time that may pass without a piece of the body.
    pub(in crate::upstream) fn expect_within(&mut self, time: std::time::Duration) {
        self.limits.between_bytes = self.limits.between_bytes.min(time);
    }

    /// Sets the deadline for the next piece of content that is awaited: when it, or the try as a whole,
    /// is late, or content is no longer held.
    pub(in crate::upstream) fn await_more(&self, pace: &Pace, held: Option<&HeldContent>) {
        self.limits.arm(&self.deadline, self.limits.between_bytes);
        let ends = [pace.late_at_ms(), held.and_then(HeldContent::end_ms)];
        ends.into_iter().flatten().for_each(|at_ms| self.deadline.cap(at_ms));
    }

    /// The deadline has passed: whether the try is late and goes on.
    fn is_merely_late(&self, pace: &Pace, held: Option<&HeldContent>) -> bool {
        let is_late = pace.late_at_ms().is_some_and(|at_ms| self.deadline.now_ms() >= at_ms);
        if !is_late || self.limits.total_passed(&self.deadline) {
            return false;
        }
        pace.set_late();
        self.await_more(pace, held);
        true
    }

    /// The response has begun; see [`Active::answered`].
    pub(in crate::upstream) fn answered(&self) {
        self.active.answered();
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(first);
        }
        let incoming = match &mut self.incoming {
            Incoming::Http1(incoming) => incoming,
            Incoming::Http2(received) => return received.poll_frame(cx),
        };
        let frame = match &mut self.link {
            Some(Link::Http1(http1)) => http1.poll_body(cx, incoming),
            _ => Pin::new(incoming).poll_frame(cx),
        };
        frame.map(|frame| frame.map(|frame| frame.map_err(LinkError::from)))
    }

    /// Ready once the deadline has passed. Progress of the request's body renews it.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Incoming::Http2(received) = &mut self.incoming
            && received.has_upload_moved()
        {
            self.limits.arm(&self.deadline, self.limits.between_bytes);
        }
        let (limits, upload) = (&self.limits, self.upload.as_deref());
        limits.poll_passed(cx, &self.deadline, limits.between_bytes, upload)
    }

    /// The failure of the request's body, if it is the cause of this error.
    fn request_failure(&self, error: &LinkError) -> Option<BodyError> {
        match error {
            LinkError::RequestBody(error) => Some(BodyError::of(error.fault(), error.to_string())),
            _ => self.upload.as_ref()?.failure(),
        }
    }

    /// The body has ended: its connection is free for the next request.
    fn finish(&mut self) {
        self.active.finished();
        if let Some(Link::Http1(http1)) = self.link.take() {
            self.active.give_back(http1);
        }
    }

    fn fail(&mut self, why: ProxyError) {
        self.link = None;
        self.active.body_failed(why);
    }

    fn late(&mut self) -> BodyError {
        let total = self.limits.total_passed(&self.deadline);
        if self.upload.as_ref().is_some_and(|upload| upload.awaits_client()) {
            self.link = None;
        } else {
            self.fail(match total {
                true => ProxyError::HttpResponseTimeout,
                false => ProxyError::ConnectionReadTimeout,
            });
        }
        let origin = self.active.origin_name();
        if total {
            return BodyError::new(format!(
                "the response of {origin} exceeded the total deadline (deadlines.total)"
            ));
        }
        body_timeout(origin, self.limits.between_bytes)
    }
}

impl BodySource for ResponseBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        match self.poll_incoming(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if self.incoming.is_end_stream() {
                    self.finish();
                } else {
                    self.limits.arm(&self.deadline, self.limits.between_bytes);
                }
                Poll::Ready(Some(Ok(forwardable(frame))))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                // The client's fault, not the origin's.
                if let Some(failure) = self.request_failure(&error) {
                    self.link = None;
                    return Poll::Ready(Some(Err(failure)));
                }
                self.fail(ProxyError::HttpResponseIncomplete);
                let reason =
                    format!("the response body of {} ended early", self.active.origin_name());
                Poll::Ready(Some(Err(BodyError::caused_by(reason, error))))
            }
            // The deadline does not apply to a body that has ended.
            Poll::Pending if self.link.is_none() => Poll::Pending,
            Poll::Pending => self.poll_late(cx).map(|()| Some(Err(self.late()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        let first = self.first.as_ref().and_then(Option::as_ref);
        let read = match first {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => 0,
        };
        Some(self.incoming.exact_length()? + read)
    }
}

/// A frame whose trailers may be passed on.
fn forwardable(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(fields::forwardable(trailers)),
        Err(data) => data,
    }
}

/// Why the awaited content did not arrive.
pub(in crate::upstream) enum NoContent {
    /// The request's body failed.
    RequestBody(BodyError),
    BrokeOff(LinkError),
    Deadline,
}
