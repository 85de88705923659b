//! Responses of HTTP/2: the head, and the body as fast as the client's window allows.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{Response, StatusCode};
use http_body::Frame;
use tokio::task::spawn_local;

use crate::body::{Body, BodySource};
use crate::interim::ReplyFuture;
use crate::metrics::{Metric, Recorder};
use crate::reply::Reply;

use super::super::min_rate::MinRate;
use super::super::state::RequestInFlight;

/// Sends the response to one request.
pub(super) struct Responder {
    pub(super) respond: SendResponse<Bytes>,
    pub(super) is_head: bool,
    /// Counts the connection's cancelled requests.
    pub(super) resets: Rc<Cell<u32>>,
    pub(super) rate: MinRate,
    pub(super) recorder: Recorder,
    pub(super) _in_flight: RequestInFlight,
}

impl Responder {
    /// Waits for the service's answer, and sends the interim responses that precede it. `None` if the
    /// client cancels the request first.
    pub(super) async fn wait_for<F: ReplyFuture>(
        &mut self,
        mut answer: Pin<&mut F>,
    ) -> Option<F::Output> {
        poll_fn(|cx| {
            if self.respond.poll_reset(cx).is_ready() {
                self.count_reset();
                return Poll::Ready(None);
            }
            let reply = answer.as_mut().poll(cx);
            while let Poll::Ready(interim) = answer.as_mut().poll_interim(cx) {
                // An error means that the client has cancelled: `poll_reset` tells.
                _ = self.respond.send_informational(interim);
            }
            reply.map(Some)
        })
        .await
    }

    fn count_reset(&self) {
        self.recorder.count(Metric::Http2Resets);
        self.resets.set(self.resets.get() + 1);
    }

    /// Sends a reply; a body that is not in memory is sent by a task of its own.
    pub(super) fn send_or_spawn(self, reply: Reply, date: &RefCell<HeaderValue>) {
        if let Some(pump) = self.send(reply, date) {
            spawn_local(pump.run());
        }
    }

    /// Queues the head, and the body if it is in memory. Otherwise returns the pump that sends the body.
    pub(super) fn send(mut self, reply: Reply, date: &RefCell<HeaderValue>) -> Option<BodyPump> {
        let Reply { status, fields, body, .. } = reply;
        let has_no_body = self.is_head || body.is_end_stream();
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = fields.to_map();
        if has_no_body && status == StatusCode::NO_CONTENT {
            // RFC 9110 §8.6 forbids it, and curl resets the stream.
            head.headers_mut().remove(CONTENT_LENGTH);
        }
        let length = if has_no_body { None } else { body.exact_length() };
        complete(head.headers_mut(), length, date);
        // An error means that the client has cancelled.
        let mut stream = self.respond.send_response(head, has_no_body).ok()?;
        match body {
            _ if has_no_body => None,
            // The h2 crate holds what exceeds the window; these bytes are in memory in any case.
            Body::Full(Some(bytes)) if bytes.len() <= QUEUED_BODY_BYTES_MAX => {
                _ = stream.send_data(bytes, true);
                None
            }
            body => Some(BodyPump { body, stream, responder: self }),
        }
    }
}

/// Removes the fields that HTTP/2 forbids (RFC 9113 §8.2.2), and adds `Date` and `Content-Length`.
fn complete(headers: &mut HeaderMap, length: Option<u64>, date: &RefCell<HeaderValue>) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    if !headers.contains_key(DATE) {
        headers.insert(DATE, date.borrow().clone());
    }
    if let Some(length) = length
        && !headers.contains_key(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Sends a body as fast as the client's window allows.
pub(super) struct BodyPump {
    body: Body,
    stream: SendStream<Bytes>,
    responder: Responder,
}

/// Why a body is not sent to its end.
enum Incomplete {
    /// The client has cancelled the request, or closed.
    Cancelled,
    /// The client opens its window too slowly.
    TooSlow,
    /// The body broke off. The stream is reset, so that the client does not take it as complete.
    BrokenOff,
}

impl BodyPump {
    /// Sends the body to its end, or resets the stream.
    pub(super) async fn run(mut self) {
        match self.send_all().await {
            Ok(()) => {}
            Err(Incomplete::Cancelled) => self.responder.count_reset(),
            Err(Incomplete::TooSlow) => {
                self.responder.recorder.count(Metric::ResponseBodiesTimedOut);
                self.stream.send_reset(Reason::CANCEL);
            }
            Err(Incomplete::BrokenOff) => self.stream.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    async fn send_all(&mut self) -> Result<(), Incomplete> {
        while let Some(frame) = self.next_frame().await? {
            match frame.into_data() {
                Ok(bytes) => {
                    let is_last = self.body.is_end_stream();
                    self.push(bytes, is_last).await?;
                    if is_last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let sent = self.stream.send_trailers(trailers);
                    return sent.map_err(|_| Incomplete::Cancelled);
                }
            }
        }
        self.stream.send_data(Bytes::new(), true).map_err(|_| Incomplete::Cancelled)
    }

    async fn next_frame(&mut self) -> Result<Option<Frame<Bytes>>, Incomplete> {
        poll_fn(|cx| {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Incomplete::Cancelled));
            }
            let frame = ready!(self.body.poll_frame(cx));
            Poll::Ready(frame.transpose().map_err(|_| Incomplete::BrokenOff))
        })
        .await
    }

    async fn push(&mut self, mut bytes: Bytes, is_last: bool) -> Result<(), Incomplete> {
        loop {
            self.stream.reserve_capacity(bytes.len());
            let window = if bytes.is_empty() { 0 } else { self.window().await? };
            let piece = bytes.split_to(bytes.len().min(window));
            self.responder.rate.add(piece.len());
            let is_end = is_last && bytes.is_empty();
            self.stream.send_data(piece, is_end).map_err(|_| Incomplete::Cancelled)?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// The bytes that the client's window has room for; waits until that is at least one.
    async fn window(&mut self) -> Result<usize, Incomplete> {
        poll_fn(|cx| {
            loop {
                if self.stream.capacity() > 0 {
                    return Poll::Ready(Ok(self.stream.capacity()));
                }
                match self.stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Incomplete::Cancelled)),
                    Poll::Pending => {
                        let too_slow = self.responder.rate.poll_too_slow(cx);
                        return too_slow.map(|()| Err(Incomplete::TooSlow));
                    }
                }
            }
        })
        .await
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// A body in memory of up to this length is given to the h2 crate in one piece, which holds the bytes that
/// the window has no room for: this bounds the memory of a stream. A longer body is sent as the window
/// opens. Independent of the store's slice size.
const QUEUED_BODY_BYTES_MAX: usize = 256 << 10;
