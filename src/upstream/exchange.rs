//! One request and its response on one connection.
//!
//! An HTTP/1.1 connection has no task of its own: whoever waits for the response drives it,
//! so that a wake-up from the socket goes straight to the task that wants the bytes, with no
//! hop between tasks. While it is kept nobody drives it; what the origin does meanwhile wakes
//! its gate, and is looked at when it is taken. An HTTP/2 connection is shared and has a task.
//!
//! ```text
//!  kept ──take──▶ sending ──head──▶ body ──end──▶ kept
//!                    └─ error, deadline, dropped ─┴──▶ closed
//! ```

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming as Http1Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::task::coop::unconstrained;

use super::core::Active;
use super::deadline::{Deadline, NEVER};
use super::error::{LinkError, body_timeout};
use super::fields;
use super::gate::Gate;
use super::http2::{Received, Share};
use super::io::{Io, Traffic};
use super::tunnel::UpgradedOrigin;

use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::labels::ProxyError;

/// An HTTP/1.1 connection with nobody else to drive it.
pub(super) struct Http1 {
    sender: http1::SendRequest<Body>,
    /// `None` once it was taken apart.
    connection: Option<http1::Connection<TokioIo<Io>, Body>>,
    /// It is done, and must not be driven again. After a 101 its bytes are still wanted.
    ended: bool,
    traffic: Rc<Traffic>,
    gate: Arc<Gate>,
    /// The gate's; all that the connection ever wakes.
    waker: Waker,
    /// What the origin's last response said of it.
    pub(super) kept_for: Option<Duration>,
    pub(super) address: SocketAddr,
    pub(super) opened_ms: u64,
}

/// Why no head came.
pub(super) struct NoHead {
    pub(super) why: NoHeadReason,
    /// The request's body, if no part of the request was handed to the connection.
    pub(super) body: Option<Body>,
    /// Whether bytes of the request went to the system.
    pub(super) sent: bool,
    /// Whether bytes of a response came.
    pub(super) received: bool,
}

pub(super) enum NoHeadReason {
    Error(LinkError),
    /// HTTP/2 has no 101 (RFC 9113 §8.6).
    Switched,
    /// The deadline for the first byte, or the total one.
    Deadline,
}

impl Http1 {
    pub(super) fn new(
        sender: http1::SendRequest<Body>,
        connection: http1::Connection<TokioIo<Io>, Body>,
        traffic: Rc<Traffic>,
        address: SocketAddr,
        opened_ms: u64,
    ) -> Self {
        let gate = Arc::new(Gate::default());
        let waker = Waker::from(gate.clone());
        let connection = Some(connection);
        Self {
            sender,
            connection,
            ended: false,
            traffic,
            gate,
            waker,
            kept_for: None,
            address,
            opened_ms,
        }
    }

    /// Whether another request can go over it, as far as can be seen without asking.
    pub(super) fn is_reusable(&mut self) -> bool {
        self.is_at_rest() || self.step() && self.sender.is_ready()
    }

    /// hyper waits for the next request, and nothing has happened since it was driven: what the
    /// origin does would have woken it.
    fn is_at_rest(&self) -> bool {
        !self.ended && self.sender.is_ready() && !self.gate.was_woken()
    }

    /// Drives the connection as far as it goes without waiting. False once it has ended.
    fn step(&mut self) -> bool {
        if let Some(connection) = &mut self.connection
            && !self.ended
        {
            self.gate.run();
            let mut cx = Context::from_waker(&self.waker);
            // tokio's budget would answer "not now" and wake nobody.
            self.ended = pin!(unconstrained(connection)).poll(&mut cx).is_ready();
        }
        !self.ended
    }

    /// Drives the connection until `answer` has one, or nothing more can be done without
    /// waiting; then the task is woken when something can.
    fn poll_for<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut answer: impl FnMut(&mut Self) -> Poll<T>,
    ) -> Poll<T> {
        for _ in 0..ROUNDS_MAX {
            self.gate.run();
            if let Some(connection) = &mut self.connection
                && !self.ended
            {
                let mut cx = Context::from_waker(&self.waker);
                self.ended = Pin::new(connection).poll(&mut cx).is_ready();
            }
            let answer = answer(self);
            if answer.is_ready() || self.ended || self.gate.park(cx) {
                return answer;
            }
        }
        // It could go on, but others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What has gone over it before the next request.
    pub(super) fn before(&self) -> Before {
        let (read, written) = (self.traffic.read.get(), self.traffic.written.get());
        Before { read, written, armed_at: None }
    }

    /// Hands the request to the connection, to which it belongs at once. What comes of it is for
    /// [`Http1::poll_head`].
    pub(super) fn send(&mut self, request: Request<Body>) -> impl Future<Output = Outcome> + use<> {
        self.traffic.await_head(BEFORE_HEAD_BYTES_MAX);
        unconstrained(self.sender.try_send_request(request))
    }

    /// Waits for the head of the response. The deadline moves on with every piece of the request
    /// that goes out.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        mut response: Pin<&mut impl Future<Output = Outcome>>,
        before: &mut Before,
        limits: &Limits,
        deadline: &Deadline,
    ) -> Poll<Result<Response<Http1Incoming>, NoHead>> {
        // Only the connection, driven just before, can make it ready: nobody needs to be woken
        // by it.
        let mut look = |this: &Self| {
            let outcome = response.as_mut().poll(&mut noop());
            outcome.map(|outcome| head_of(outcome, before.is_sent(this), before.is_received(this)))
        };
        let head = self.poll_for(cx, |this| {
            let head = look(this);
            if this.ended && head.is_pending() {
                // Its end is the answer to a request that it has not taken.
                this.connection = None;
                return look(this);
            }
            head
        });
        let head = match head {
            Poll::Ready(head) => head,
            Poll::Pending => {
                let written = Some(self.traffic.written.get());
                if written != before.armed_at {
                    before.armed_at = written;
                    limits.arm(deadline, limits.first_byte);
                }
                ready!(deadline.poll(cx));
                Err(NoHead::late(before.is_sent(self), before.is_received(self)))
            }
        };
        self.traffic.head_end.set(None);
        Poll::Ready(head)
    }

    /// The body of a response, taken whole when all of it is here already.
    pub(super) fn body_at_once(&mut self, mut incoming: Http1Incoming) -> AtOnce {
        if incoming.is_end_stream() {
            return AtOnce::Whole(Body::Empty);
        }
        if incoming.size_hint().exact().is_none_or(|length| length > AT_ONCE_BYTES_MAX) {
            return AtOnce::Streams(incoming);
        }
        let was_at_rest = self.is_at_rest();
        let mut first = Pin::new(&mut incoming).poll_frame(&mut noop());
        if first.is_pending() {
            self.step();
            first = Pin::new(&mut incoming).poll_frame(&mut noop());
        }
        match first {
            Poll::Ready(Some(Ok(frame))) if incoming.is_end_stream() && frame.is_data() => {
                if was_at_rest {
                    // It was woken by our taking the body.
                    self.gate.run();
                }
                AtOnce::Whole(frame.into_data().unwrap_or_default().into())
            }
            Poll::Ready(first) => AtOnce::Begun(first, incoming),
            Poll::Pending => AtOnce::Streams(incoming),
        }
    }

    /// After a 101: the bytes underneath.
    pub(super) async fn into_upgraded(mut self: Box<Self>) -> hyper::Result<UpgradedOrigin> {
        let mut connection = self.connection.take().expect("it has just delivered a head");
        if !self.ended {
            (&mut connection).await?;
        }
        let http1::Parts { io, read_buf, .. } = connection.into_parts();
        Ok(UpgradedOrigin { io: io.into_inner(), early: read_buf })
    }
}

/// What had gone over a connection before a request.
pub(super) struct Before {
    read: u64,
    written: u64,
    /// How much had been written when the deadline was last moved.
    armed_at: Option<u64>,
}

impl Before {
    fn is_sent(&self, http1: &Http1) -> bool {
        http1.traffic.written.get() > self.written
    }

    fn is_received(&self, http1: &Http1) -> bool {
        http1.traffic.read.get() > self.read
    }
}

/// What [`Http1::body_at_once`] found.
pub(super) enum AtOnce {
    Whole(Body),
    Begun(Option<hyper::Result<Frame<Bytes>>>, Http1Incoming),
    Streams(Http1Incoming),
}

/// What hyper makes of a request.
pub(super) type Outcome = Result<Response<Http1Incoming>, TrySendError<Request<Body>>>;

/// The head, or why there is none.
fn head_of(
    outcome: Outcome,
    sent: bool,
    received: bool,
) -> Result<Response<Http1Incoming>, NoHead> {
    outcome.map_err(|mut error| {
        let body = error.take_message().map(Request::into_body);
        let sent = sent && body.is_none();
        NoHead { why: NoHeadReason::Error(error.into_error().into()), body, sent, received }
    })
}

impl NoHead {
    fn late(sent: bool, received: bool) -> Self {
        Self { why: NoHeadReason::Deadline, body: None, sent, received }
    }
}

/// The deadlines of one exchange.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) first_byte: Duration,
    pub(super) between_bytes: Duration,
    /// A time of the core's timers; [`NEVER`] for none.
    pub(super) end_ms: u64,
}

impl Limits {
    pub(super) fn arm(&self, deadline: &Deadline, after: Duration) {
        deadline.set(after);
        if self.end_ms != NEVER {
            deadline.cap(self.end_ms);
        }
    }

    pub(super) fn total_passed(&self, deadline: &Deadline) -> bool {
        deadline.now_ms() >= self.end_ms
    }
}

/// A connection that carries an exchange. Dropped before the response's end, one of HTTP/1.1
/// closes, and of one of HTTP/2 the stream is reset.
pub(super) enum Link {
    Http1(Box<Http1>),
    Http2(Share),
}

impl Link {
    /// Where its other end is.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Http1(http1) => http1.address,
            Self::Http2(http2) => http2.address,
        }
    }
}

/// A response's body as its connection gives it.
pub(super) enum Incoming {
    Http1(Http1Incoming),
    Http2(Received),
}

impl Incoming {
    pub(super) fn is_end_stream(&self) -> bool {
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

/// A response body that is still coming: it drives its connection, keeps the deadlines, and
/// gives the connection back at its end.
pub(super) struct ResponseBody {
    incoming: Incoming,
    /// What [`Http1::body_at_once`] has read already.
    begun: Option<Option<Result<Frame<Bytes>, LinkError>>>,
    /// `None` once given back or closed.
    under: Option<Link>,
    deadline: Deadline,
    limits: Limits,
    active: Active,
}

impl ResponseBody {
    pub(super) fn new(
        incoming: Incoming,
        begun: Option<Option<Result<Frame<Bytes>, LinkError>>>,
        under: Link,
        deadline: Deadline,
        limits: Limits,
        active: Active,
    ) -> Self {
        limits.arm(&deadline, limits.between_bytes);
        Self { incoming, begun, under: Some(under), deadline, limits, active }
    }

    /// Whether its first piece is worth waiting for: it was announced, and is not here yet, or an
    /// error is here in its place.
    pub(super) fn is_awaited(&self) -> bool {
        match &self.begun {
            Some(begun) => matches!(begun, Some(Err(_))),
            None => self.incoming.exact_length().is_some_and(|length| length > 0),
        }
    }

    /// Waits for the first piece, which whoever reads the body then gets. Until then the exchange can
    /// still fail as a whole: nothing of the response has gone to a client.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NoContent>> {
        let begun = match self.poll_incoming(cx) {
            Poll::Ready(Some(Err(error))) => Err(NoContent::BrokeOff(error)),
            Poll::Ready(frame) => {
                self.begun = Some(frame);
                Ok(())
            }
            Poll::Pending => {
                ready!(self.poll_late(cx));
                Err(NoContent::Deadline)
            }
        };
        if begun.is_err() {
            self.under = None;
        }
        Poll::Ready(begun)
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        if let Some(begun) = self.begun.take() {
            return Poll::Ready(begun);
        }
        let incoming = match &mut self.incoming {
            Incoming::Http1(incoming) => incoming,
            Incoming::Http2(received) => return received.poll_frame(cx),
        };
        let frame = match &mut self.under {
            Some(Link::Http1(http1)) => {
                // The first look asks for more: only then the connection reads it.
                let frame = Pin::new(&mut *incoming).poll_frame(&mut noop());
                if frame.is_ready() {
                    return frame.map(|frame| frame.map(|frame| frame.map_err(LinkError::from)));
                }
                http1.poll_for(cx, |this| {
                    let frame = Pin::new(&mut *incoming).poll_frame(&mut noop());
                    if this.ended && frame.is_pending() {
                        // What is left of it could still hold the body open.
                        this.connection = None;
                        return Pin::new(&mut *incoming).poll_frame(&mut noop());
                    }
                    frame
                })
            }
            _ => Pin::new(incoming).poll_frame(cx),
        };
        frame.map(|frame| frame.map(|frame| frame.map_err(LinkError::from)))
    }

    /// Ready once it is late. It is not while the request's body goes on beside it.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Incoming::Http2(received) = &mut self.incoming
            && received.has_upload_moved()
        {
            self.limits.arm(&self.deadline, self.limits.between_bytes);
        }
        self.deadline.poll(cx)
    }

    /// The end was reached: what is under it is free again.
    fn finish(&mut self) {
        if let Some(Link::Http1(http1)) = self.under.take() {
            self.active.give_back(http1);
        }
    }

    fn fail(&mut self, why: ProxyError) {
        self.under = None;
        self.active.body_failed(why);
    }

    fn late(&mut self) -> BodyError {
        let total = self.limits.total_passed(&self.deadline);
        self.fail(match total {
            true => ProxyError::HttpResponseTimeout,
            false => ProxyError::ConnectionReadTimeout,
        });
        let origin = self.active.origin_name();
        if total {
            return BodyError::new(format!("{origin} took longer than the whole may take"));
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
                let frame = match frame.into_trailers() {
                    Ok(trailers) => Frame::trailers(fields::forwardable(trailers)),
                    Err(data) => data,
                };
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            // The client's, not the origin's fault.
            Poll::Ready(Some(Err(LinkError::RequestBody(error)))) => {
                self.under = None;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail(ProxyError::HttpResponseIncomplete);
                let reason =
                    format!("the response body of {} ended early", self.active.origin_name());
                Poll::Ready(Some(Err(BodyError::caused_by(reason, error))))
            }
            // A body that ended has no deadline.
            Poll::Pending if self.under.is_none() => Poll::Pending,
            Poll::Pending => self.poll_late(cx).map(|()| Some(Err(self.late()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_none() && self.incoming.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        let begun = self.begun.as_ref().and_then(Option::as_ref);
        let read = match begun {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => 0,
        };
        Some(self.incoming.exact_length()? + read)
    }
}

/// Why nothing came of the content that a head announced.
pub(super) enum NoContent {
    BrokeOff(LinkError),
    Deadline,
}

/// Whether a request's content has failed so far: the client's fault, and hyper's error does not say
/// why.
#[derive(Default)]
pub(super) struct ContentProgress {
    /// Whether it came too slowly, where it failed.
    failed: Cell<Option<bool>>,
}

impl ContentProgress {
    /// Keeps an eye on the request's body.
    pub(super) fn watch(self: &Rc<Self>, request: Request<Body>) -> Request<Body> {
        if BodySource::is_end_stream(request.body()) {
            return request;
        }
        request.map(|body| Body::stream(Watched { body, content: self.clone() }))
    }

    /// Present when the body failed: whether it came too slowly.
    pub(super) fn failed_late(&self) -> Option<bool> {
        self.failed.get()
    }
}

/// A request body whose failure is noted.
struct Watched {
    body: Body,
    content: Rc<ContentProgress>,
}

impl BodySource for Watched {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = self.body.poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame {
            self.content.failed.set(Some(error.is_late()));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        BodySource::is_end_stream(&self.body)
    }

    fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }
}

/// Holds a request's body back until the origin says 100 (Continue), or `after` has passed
/// (RFC 9110 §10.1.1). Asking for the client's body is what makes our server send its own
/// 100, so the client too waits for the origin's word, and a 417 reaches it with no byte of
/// body sent. HTTP/1.1 only.
pub(super) fn hold_for_continue(request: Request<Body>, after: Duration) -> Request<Body> {
    let permit = Arc::new(Permit::default());
    let seen = permit.clone();
    let mut request = request.map(|body| {
        Body::stream(Held { body, permit, patience: Box::pin(tokio::time::sleep(after)) })
    });
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            seen.give();
        }
    });
    request
}

/// Shared with hyper's callback, which must be `Sync`.
#[derive(Default)]
struct Permit {
    given: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Permit {
    fn give(&self) {
        self.given.store(true, Ordering::Release);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Held {
    body: Body,
    permit: Arc<Permit>,
    patience: Pin<Box<tokio::time::Sleep>>,
}

impl BodySource for Held {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        if !self.permit.given.load(Ordering::Acquire) {
            if self.patience.as_mut().poll(cx).is_pending() {
                let waker = Some(cx.waker().clone());
                *self.permit.waker.lock().unwrap_or_else(PoisonError::into_inner) = waker;
                return Poll::Pending;
            }
            self.permit.given.store(true, Ordering::Release);
        }
        self.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        BodySource::is_end_stream(&self.body)
    }

    fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Rounds of driving a connection that wakes itself. hyper itself goes round 16 times in one.
const ROUNDS_MAX: u32 = 3;
/// Interim responses, the head, and what of the body hyper reads with it.
const BEFORE_HEAD_BYTES_MAX: u64 = 2 << 20;
/// A body up to this that came with its head is passed on in one piece. hyper's first read
/// is 8 KiB and more.
const AT_ONCE_BYTES_MAX: u64 = 64 << 10;
