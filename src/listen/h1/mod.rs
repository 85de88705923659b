//! The driver of HTTP/1.1 and HTTP/1.0 connections.
//!
//! ```text
//! Head ──parsed──▶ Answering ──reply──▶ Sending ──all sent──▶ Head …
//!   │ invalid head     │ client closed      ├─ last request ──▶ Closing
//!   ▼                  ▼                    └─ 101 ───────────▶ handover
//! Closing            (dropped)
//! ```
//!
//! One task drives a connection from start to end: it reads a head, calls the service, and writes the
//! reply. The owner of a request's body reads it directly from the shared stream. No timer is armed: the
//! worker checks time limits ([`super::state`]). A request without a body whose reply is in memory costs
//! one read, one write and no allocation here.

mod chunks;
mod encode;
#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(super) mod fuzz;
mod head;
mod shared_stream;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Request, Version};
use tokio::io::AsyncWrite;

use crate::body::{Body, BodySource};
use crate::context::Connection;
use crate::interim::ReplyFuture;
use crate::labels::{ConnectionTimeout, HeadError};
use crate::reply::Reply;
use crate::upgrade::{Handover, handover};

use super::client_stream::ClientStream;
use super::connection::HttpConnection;
use super::socket::ClientSocket;
use super::state::{RequestInFlight, Shutdown};

use encode::{RequestFacts, ResponseFraming, ResponseHead, SendQueue};
use head::{HeadScanner, RequestFraming, RequestHead};
use shared_stream::{RequestBody, SharedStream};

/// Serves an HTTP/1 connection until it ends.
pub(super) async fn serve<T, S, F>(stream: ClientStream<T>, connection: HttpConnection<S>)
where
    T: ClientSocket + Send + 'static,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: ReplyFuture + Unpin,
{
    let mut driver = Driver {
        stream: Rc::new(RefCell::new(SharedStream::new(stream))),
        connection,
        state: State::Head(HeadScanner::default()),
        closes_after_response: false,
        draining: false,
    };
    let handover = std::future::poll_fn(|cx| driver.poll(cx)).await;
    // If the service still owns the request's body, the connection is closed instead.
    if let Some(handover) = handover
        && let Some(stream) = Rc::into_inner(driver.stream)
    {
        let mut stream = stream.into_inner().inner;
        let dropped = stream.dropped();
        handover.give(Box::new(stream));
        // Until the other protocol has ended, the connection is one of its client and of the node.
        if let Err(timeout) = driver.connection.run(dropped).await {
            driver.connection.count_timeout(timeout);
        }
    }
}

/// The state machine of one connection.
struct Driver<T: ClientSocket, S, F> {
    stream: Rc<RefCell<SharedStream<T>>>,
    connection: HttpConnection<S>,
    state: State<F>,
    /// The next response says that the connection closes.
    closes_after_response: bool,
    /// A graceful shutdown: close after the request in flight.
    draining: bool,
}

enum State<F> {
    /// Waiting for a request, or reading its head.
    Head(HeadScanner),
    /// The service is answering the request.
    Answering(F, PendingRequest),
    /// The reply is being sent; its body may still be arriving.
    Sending(OutgoingReply),
    /// Sending the last bytes, then closing.
    Closing,
}

/// A request whose reply is not ready yet.
struct PendingRequest {
    in_flight: RequestInFlight,
    facts: RequestFacts,
    keep_alive: bool,
    handover: Option<Handover>,
}

/// A reply that is being sent.
struct OutgoingReply {
    body: Body,
    framing: ResponseFraming,
    takes_trailers: bool,
    keep_alive: bool,
    handover: Option<Handover>,
    _in_flight: RequestInFlight,
}

/// The result of a step of the driver.
enum StepOutcome {
    /// Go on with the next step.
    Next,
    /// The connection is closed, or handed over to another protocol.
    End(Option<Handover>),
}

impl<T, S, F> Driver<T, S, F>
where
    T: ClientSocket + 'static,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: ReplyFuture + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Handover>> {
        self.connection.register(cx);
        if self.check_shutdown().is_ready() {
            return Poll::Ready(None);
        }
        loop {
            match ready!(self.step(cx)) {
                Ok(StepOutcome::Next) => {}
                Ok(StepOutcome::End(handover)) => return Poll::Ready(handover),
                // The client has closed, or the reply's body broke off.
                Err(_) => {
                    self.reset_if_truncated();
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<StepOutcome>> {
        match &mut self.state {
            State::Head(_) => self.read(cx),
            State::Answering(..) => self.poll_reply(cx),
            State::Sending(_) => self.send(cx),
            State::Closing => self.close(cx),
        }
    }

    /// Acts on an order to close. Ready: the connection must be dropped.
    fn check_shutdown(&mut self) -> Poll<()> {
        let unacknowledged = || self.stream.borrow().inner.unacknowledged();
        match self.connection.shutdown(unacknowledged) {
            None => {}
            Some(Shutdown::AfterResponse) => self.closes_after_response = true,
            Some(Shutdown::Graceful) => self.draining = true,
            Some(Shutdown::AfterLinger) => return Poll::Ready(()),
            Some(Shutdown::Now(timeout)) => {
                self.connection.count_timeout(timeout);
                match (&self.state, timeout) {
                    // A client that has sent a part of a head gets 408 (RFC 9110 §15.5.9).
                    (State::Head(_), ConnectionTimeout::Header)
                        if self.connection.has_partial_head() =>
                    {
                        self.refuse(HeadError::TimedOut);
                    }
                    (State::Head(_), ConnectionTimeout::Idle) => self.close_gracefully(),
                    (_, ConnectionTimeout::Send) => {
                        self.stream.borrow().inner.abort();
                        return Poll::Ready(());
                    }
                    _ => return Poll::Ready(()),
                }
            }
        }
        Poll::Pending
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<StepOutcome>> {
        match ready!(self.poll_head(cx))? {
            Some(Ok(_)) if self.connection.is_plain_http => self.refuse(HeadError::PlainHttp),
            Some(Ok(head)) => {
                if self.start_request(head, cx).is_pending() {
                    // Until the reply is ready, only notice that the client has closed.
                    return self.stream.borrow_mut().poll_closed(cx).map(Err);
                }
            }
            Some(Err(error)) => self.refuse(error),
            None => self.state = State::Closing,
        }
        Poll::Ready(Ok(StepOutcome::Next))
    }

    /// Reads the next head; `None` if no more requests follow.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Result<RequestHead, HeadError>>>> {
        let State::Head(scanner) = &mut self.state else { return Poll::Ready(Ok(None)) };
        let limits = self.connection.limits();
        let stream = &mut self.stream.borrow_mut().inner;
        loop {
            let held = stream.held();
            let found = scanner.find(held);
            let is_large = held.len() > limits.header_bytes_max;
            match found {
                Ok(Some(range)) if range.len() <= limits.header_bytes_max => {
                    let head = Bytes::copy_from_slice(&held[range.clone()]);
                    stream.take(range.end);
                    return Poll::Ready(Ok(Some(head::parse(head, limits))));
                }
                Ok(None) if !is_large => {}
                Ok(_) => return Poll::Ready(Ok(Some(Err(HeadError::HeadTooLarge)))),
                Err(error) => return Poll::Ready(Ok(Some(Err(error)))),
            }
            if scanner.has_partial_head() {
                self.connection.receive_head_bytes();
            } else if self.draining {
                return Poll::Ready(Ok(None));
            }
            if ready!(stream.poll_more(cx))? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Passes the request to the service. Ready: the reply is there.
    fn start_request(&mut self, head: RequestHead, cx: &mut Context<'_>) -> Poll<()> {
        let RequestHead {
            mut request,
            framing,
            keep_alive,
            expects_continue,
            takes_trailers,
            upgrades,
        } = head;
        let in_flight = self.connection.begin_request(request.version());
        let number = self.stream.borrow_mut().begin_request(framing, expects_continue);
        let body = match framing {
            RequestFraming::Length(0) | RequestFraming::Unknown => Body::Empty,
            RequestFraming::Length(_) | RequestFraming::Chunked => {
                let limits = self.connection.limits().clone();
                let body = RequestBody::new(self.stream.clone(), limits, number);
                self.connection.request_body(body)
            }
        };
        let handover = upgrades.then(|| {
            let (handover, on_upgrade) = handover();
            request.extensions_mut().insert(on_upgrade);
            handover
        });
        let facts = RequestFacts::of(request.method(), request.version(), takes_trailers);
        let mut answer = self.connection.respond(request.map(|()| body));
        let keep_alive = keep_alive && framing != RequestFraming::Unknown;
        let answered = PendingRequest { in_flight, facts, keep_alive, handover };
        match self.poll_answer(&mut answer, facts, cx) {
            Poll::Ready(reply) => {
                self.start_reply(answered, reply, cx);
                Poll::Ready(())
            }
            Poll::Pending => {
                self.state = State::Answering(answer, answered);
                Poll::Pending
            }
        }
    }

    /// Polls the service's answer, and queues the interim responses that precede it.
    fn poll_answer(
        &self,
        answer: &mut F,
        facts: RequestFacts,
        cx: &mut Context<'_>,
    ) -> Poll<Reply> {
        let mut answer = Pin::new(answer);
        let reply = answer.as_mut().poll(cx);
        // HTTP/1.0 has no interim responses (RFC 9110 §15.2).
        while facts.version == Version::HTTP_11
            && let Poll::Ready(interim) = answer.as_mut().poll_interim(cx)
        {
            encode::interim(&mut self.stream.borrow_mut().queue, &interim);
        }
        reply
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<StepOutcome>> {
        let before = std::mem::replace(&mut self.state, State::Closing);
        let State::Answering(mut answer, answered) = before else {
            return Poll::Ready(Ok(StepOutcome::Next));
        };
        match self.poll_answer(&mut answer, answered.facts, cx) {
            Poll::Ready(reply) => {
                self.start_reply(answered, reply, cx);
                Poll::Ready(Ok(StepOutcome::Next))
            }
            Poll::Pending => {
                self.state = State::Answering(answer, answered);
                self.stream.borrow_mut().poll_closed(cx).map(Err)
            }
        }
    }

    fn start_reply(&mut self, answered: PendingRequest, reply: Reply, cx: &mut Context<'_>) {
        let PendingRequest { in_flight, facts, keep_alive, handover } = answered;
        let Reply { status, fields, mut body, .. } = reply;
        let head = ResponseHead::of(status, &fields);
        // A body that no one reads any more is dropped if it is short; else the client is told to stop sending.
        let is_abandoned = Rc::strong_count(&self.stream) == 1;
        let stream = &mut *self.stream.borrow_mut();
        let is_left = is_abandoned && !stream.drop_request_body(cx, self.connection.limits());
        let keep_alive = keep_alive
            && !is_left
            && !self.closes_after_response
            && !self.draining
            && !self.connection.is_used_up()
            && !stream.expects_continue()
            && !head.closes;
        let length = body.exact_length();
        let date = &*self.connection.date().borrow();
        let queue = &mut stream.queue;
        let mut framing = head.write(queue, length, facts, keep_alive, date);
        match (framing, &mut body) {
            (ResponseFraming::Nothing | ResponseFraming::Upgrade, body) => *body = Body::Empty,
            (ResponseFraming::Length(length), Body::Full(bytes))
                if length == bytes.as_ref().map_or(0, Bytes::len) as u64 =>
            {
                queue.push_piece(bytes.take().unwrap_or_default());
                framing = ResponseFraming::Length(0);
            }
            _ => {}
        }
        self.state = State::Sending(OutgoingReply {
            body,
            framing,
            takes_trailers: facts.takes_trailers,
            keep_alive,
            handover,
            _in_flight: in_flight,
        });
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<StepOutcome>> {
        let State::Sending(reply) = &mut self.state else {
            return Poll::Ready(Ok(StepOutcome::Next));
        };
        loop {
            let has_more = match reply.queue_body(cx, &self.stream) {
                Ok(has_more) => has_more,
                Err(error) => {
                    // The client gets the head and what there is of the body, as the log says.
                    let _ = self.stream.borrow_mut().poll_send(cx);
                    return Poll::Ready(Err(error));
                }
            };
            let stream = &mut *self.stream.borrow_mut();
            ready!(stream.poll_send(cx))?;
            if reply.is_done() {
                break;
            }
            if !has_more {
                return stream.poll_closed(cx).map(Err);
            }
        }
        Poll::Ready(Ok(self.end_reply(cx)))
    }

    /// The reply is sent: go on with the next request, close, or hand the connection over.
    fn end_reply(&mut self, cx: &mut Context<'_>) -> StepOutcome {
        let before = std::mem::replace(&mut self.state, State::Head(HeadScanner::default()));
        let State::Sending(reply) = before else { return StepOutcome::Next };
        if reply.framing == ResponseFraming::Upgrade {
            self.connection.upgrade();
            return StepOutcome::End(reply.handover);
        }
        let keep_alive = reply.keep_alive && reply.framing != ResponseFraming::Close;
        drop(reply);
        let is_complete = self.stream.borrow_mut().drop_request_body(cx, self.connection.limits());
        if !is_complete || !keep_alive {
            self.state = State::Closing;
            if !is_complete || !self.stream.borrow().inner.held().is_empty() {
                self.close_gracefully();
            }
        }
        StepOutcome::Next
    }

    fn close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<StepOutcome>> {
        let stream = &mut *self.stream.borrow_mut();
        ready!(stream.poll_send(cx))?;
        Pin::new(&mut stream.inner).poll_shutdown(cx).map_ok(|()| StepOutcome::End(None))
    }

    /// Refuses a request that the service does not see, and closes.
    fn refuse(&mut self, error: HeadError) {
        let Reply { status, fields, mut body, .. } = self.connection.refuse(error);
        let facts = RequestFacts::of(&http::Method::GET, Version::HTTP_11, false);
        let head = ResponseHead::of(status, &fields);
        let date = self.connection.date().borrow().clone();
        let mut stream = self.stream.borrow_mut();
        head.write(&mut stream.queue, body.exact_length(), facts, false, &date);
        if let Body::Full(bytes) = &mut body {
            stream.queue.push_piece(bytes.take().unwrap_or_default());
        }
        drop(stream);
        self.close_gracefully();
    }

    /// Closes, and for a moment reads what the client still sends: a reset would destroy the response
    /// (RFC 9112 §9.6).
    fn close_gracefully(&mut self) {
        self.connection.linger();
        self.state = State::Closing;
    }

    /// Resets the connection if a body that is delimited by its end broke off, so that it is not taken as
    /// complete.
    fn reset_if_truncated(&self) {
        if let State::Sending(OutgoingReply { framing: ResponseFraming::Close, .. }) = &self.state {
            self.stream.borrow().inner.abort();
        }
    }
}

impl OutgoingReply {
    fn is_done(&self) -> bool {
        match self.framing {
            ResponseFraming::Nothing | ResponseFraming::Upgrade | ResponseFraming::Length(0) => {
                true
            }
            ResponseFraming::Close => matches!(self.body, Body::Empty),
            ResponseFraming::Length(_) | ResponseFraming::Chunked => false,
        }
    }

    /// Queues the pieces of the body that are ready, while there is room. False: the next piece has not
    /// arrived.
    fn queue_body<T: ClientSocket>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &RefCell<SharedStream<T>>,
    ) -> io::Result<bool> {
        while !self.is_done() && stream.borrow().queue.has_room() {
            // The stream is not borrowed here: a response body may read the request's body from it.
            let Poll::Ready(frame) = self.body.poll_frame(cx) else {
                return Ok(false);
            };
            let frame = frame.transpose().map_err(io::Error::other)?;
            let queue = &mut stream.borrow_mut().queue;
            match frame.map(http_body::Frame::into_data) {
                Some(Ok(piece)) => self.push(queue, piece)?,
                Some(Err(frame)) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.finish(queue, self.takes_trailers.then_some(&trailers))?;
                }
                None => self.finish(queue, None)?,
            }
        }
        Ok(true)
    }

    fn push(&mut self, queue: &mut SendQueue, piece: Bytes) -> io::Result<()> {
        if let ResponseFraming::Length(left) = &mut self.framing {
            // The client would read bytes beyond `Content-Length` as the next response.
            *left = left.checked_sub(piece.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
        }
        match self.framing {
            // An empty chunk would end the body.
            _ if piece.is_empty() => {}
            ResponseFraming::Chunked => queue.push_chunk(piece),
            _ => queue.push_piece(piece),
        }
        Ok(())
    }

    fn finish(&mut self, queue: &mut SendQueue, trailers: Option<&HeaderMap>) -> io::Result<()> {
        match self.framing {
            ResponseFraming::Length(1..) => return Err(io::ErrorKind::UnexpectedEof.into()),
            ResponseFraming::Chunked => {
                encode::last_chunk(queue, trailers);
                self.framing = ResponseFraming::Nothing;
            }
            _ => self.body = Body::Empty,
        }
        Ok(())
    }
}
