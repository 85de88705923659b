//! One HTTP/1.1 connection to an origin and the exchange on it.
//!
//! The connection has no task of its own: the task that waits for the response drives it. A
//! wake-up from the socket therefore goes straight to the task that wants the bytes. Nothing
//! drives an idle connection; socket events wake its [`Gate`] and are handled when the connection
//! is taken for the next request.
//!
//! ```text
//!  idle ──take──▶ sending ──head──▶ body ──end──▶ idle
//!                    └─ error, deadline, dropped ─┴──▶ closed
//! ```

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::task::coop::unconstrained;

use super::super::error::{NoHead, NoHeadReason};
use super::super::exchange::patience::Patience;
use super::super::exchange::request_body::ClientUpload;
use super::gate::Gate;
use super::io::{Io, Traffic};
use super::proxy_header::ProxiedClient;
use super::tunnel::UpgradedOrigin;
use crate::body::Body;

/// An HTTP/1.1 connection, driven by the task that uses it.
pub(in crate::upstream) struct Http1 {
    sender: http1::SendRequest<Body>,
    /// `None` once the connection was taken apart.
    connection: Option<http1::Connection<TokioIo<Io>, Body>>,
    /// hyper's connection future has completed and must not be polled again. After a 101 its
    /// socket is still needed.
    ended: bool,
    traffic: Rc<Traffic>,
    gate: Arc<Gate>,
    /// The gate's waker, the only one that the connection is polled with.
    waker: Waker,
    /// How long the origin keeps the connection open, from its last `Keep-Alive` field.
    pub(in crate::upstream) kept_for: Option<Duration>,
    /// `None`: it is over a Unix socket.
    pub(in crate::upstream) address: Option<SocketAddr>,
    pub(in crate::upstream) opened_ms: u64,
    /// How long it was idle before the request that it carries.
    pub(in crate::upstream) idle_ms: u64,
    /// The client that the connection's PROXY protocol header states.
    pub(in crate::upstream) proxied: Option<Rc<ProxiedClient>>,
}

impl Http1 {
    pub(in crate::upstream) fn new(
        sender: http1::SendRequest<Body>,
        connection: http1::Connection<TokioIo<Io>, Body>,
        traffic: Rc<Traffic>,
        address: Option<SocketAddr>,
        opened_ms: u64,
    ) -> Self {
        let gate = Arc::new(Gate::default());
        let waker = Waker::from(gate.clone());
        Self {
            sender,
            connection: Some(connection),
            ended: false,
            traffic,
            gate,
            waker,
            kept_for: None,
            address,
            opened_ms,
            idle_ms: 0,
            proxied: None,
        }
    }

    /// Whether the connection can take another request, as far as is known without sending one.
    pub(in crate::upstream) fn is_reusable(&mut self) -> bool {
        self.is_at_rest() || self.step() && self.sender.is_ready()
    }

    /// hyper waits for the next request, and no socket event has arrived since the connection was
    /// last driven: one would have woken the gate.
    fn is_at_rest(&self) -> bool {
        !self.ended && self.sender.is_ready() && !self.gate.was_woken()
    }

    /// Drives the connection as far as possible without waiting. False once it has ended.
    fn step(&mut self) -> bool {
        if let Some(connection) = &mut self.connection
            && !self.ended
        {
            self.gate.run();
            let mut cx = Context::from_waker(&self.waker);
            // With tokio's cooperative budget used up, a poll would return Pending without
            // registering a waker.
            self.ended = pin!(unconstrained(connection)).poll(&mut cx).is_ready();
        }
        !self.ended
    }

    /// Drives the connection until `answer` is ready, or until it can make no progress without
    /// waiting; then the task is woken on the next socket event.
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
        // The connection could make more progress; yield to other tasks first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The counters of bytes before the next request.
    pub(in crate::upstream) fn before(&self, upload: &Rc<ClientUpload>) -> Before {
        let (read, written) = (self.traffic.read.get(), self.traffic.written.get());
        Before { read, written, armed_at: None, upload: upload.clone() }
    }

    /// Hands the request to the connection, which owns it from then on. [`Http1::poll_head`] waits
    /// for the response.
    pub(in crate::upstream) fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = Sent> + use<> {
        self.traffic.await_head(BEFORE_HEAD_BYTES_MAX);
        unconstrained(self.sender.try_send_request(request))
    }

    /// Waits for the head of the response. Each written piece of the request renews the deadline, and
    /// it does not pass while the client stalls.
    pub(in crate::upstream) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        mut response: Pin<&mut impl Future<Output = Sent>>,
        before: &mut Before,
        patience: &Patience<'_>,
    ) -> Poll<Result<Response<Incoming>, NoHead>> {
        // Only the connection can make the response ready, and it was driven just before: no
        // waker is needed.
        let mut look = |this: &Self| {
            let sent = response.as_mut().poll(&mut noop());
            sent.map(|sent| head_of(sent, before.is_sent(this), before.received(this)))
        };
        let head = self.poll_for(cx, |this| {
            let head = look(this);
            if this.ended && head.is_pending() {
                // Dropping the connection fails a request that it has not taken.
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
                    patience.renew();
                }
                ready!(patience.poll_over(cx, Some(&before.upload)));
                Err(NoHead::late(before.is_sent(self), before.received(self)))
            }
        };
        self.traffic.head_end.set(None);
        Poll::Ready(head)
    }

    /// Takes the whole body of a response if hyper has read all of it already.
    pub(in crate::upstream) fn body_at_once(&mut self, mut incoming: Incoming) -> ReadyBody {
        if incoming.is_end_stream() {
            return ReadyBody::Whole(Body::Empty);
        }
        if incoming.size_hint().exact().is_none_or(|length| length > AT_ONCE_BYTES_MAX) {
            return ReadyBody::Nothing(incoming);
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
                    // Taking the body woke the gate; the socket did not.
                    self.gate.run();
                }
                ReadyBody::Whole(frame.into_data().unwrap_or_default().into())
            }
            Poll::Ready(first) => ReadyBody::First(first, incoming),
            Poll::Pending => ReadyBody::Nothing(incoming),
        }
    }

    /// The next frame of a response body, driving the connection for it.
    pub(in crate::upstream) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // hyper reads more of the body only after it has been polled once.
        let frame = Pin::new(&mut *incoming).poll_frame(&mut noop());
        if frame.is_ready() {
            return frame;
        }
        self.poll_for(cx, |this| {
            let frame = Pin::new(&mut *incoming).poll_frame(&mut noop());
            if this.ended && frame.is_pending() {
                // The connection's remains could keep the body open.
                this.connection = None;
                return Pin::new(&mut *incoming).poll_frame(&mut noop());
            }
            frame
        })
    }

    /// The socket of a connection that has switched protocols (101).
    pub(in crate::upstream) async fn into_upgraded(
        mut self: Box<Self>,
    ) -> hyper::Result<UpgradedOrigin> {
        let mut connection = self.connection.take().expect("it has just delivered a head");
        if !self.ended {
            (&mut connection).await?;
        }
        let http1::Parts { io, read_buf, .. } = connection.into_parts();
        Ok(UpgradedOrigin { io: io.into_inner(), early: read_buf })
    }
}

/// The bytes that had gone over a connection before a request.
pub(in crate::upstream) struct Before {
    read: u64,
    written: u64,
    /// The number of written bytes when the deadline was last renewed.
    armed_at: Option<u64>,
    upload: Rc<ClientUpload>,
}

impl Before {
    fn is_sent(&self, http1: &Http1) -> bool {
        http1.traffic.written.get() > self.written
    }

    /// The number of bytes of the response that were read.
    fn received(&self, http1: &Http1) -> u64 {
        http1.traffic.read.get() - self.read
    }
}

/// The result of [`Http1::body_at_once`].
pub(in crate::upstream) enum ReadyBody {
    /// The whole body.
    Whole(Body),
    /// The first frame; `None` is the end of the body.
    First(Option<hyper::Result<Frame<Bytes>>>, Incoming),
    /// Nothing yet.
    Nothing(Incoming),
}

/// hyper's answer to a request.
pub(in crate::upstream) type Sent = Result<Response<Incoming>, TrySendError<Request<Body>>>;

/// The head, or why there is none.
fn head_of(answer: Sent, sent: bool, received: u64) -> Result<Response<Incoming>, NoHead> {
    answer.map_err(|mut error| {
        let body = error.take_message().map(Request::into_body);
        let sent = sent && body.is_none();
        NoHead { why: NoHeadReason::Error(error.into_error().into()), body, sent, received }
    })
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// How often a connection that wakes itself is driven in one poll. hyper loops up to 16 times in
/// each.
const ROUNDS_MAX: u32 = 3;
/// Interim responses, the head, and the part of the body that hyper reads with it.
const BEFORE_HEAD_BYTES_MAX: u64 = 2 << 20;
/// A body up to this size that arrived with its head is passed on in one piece. hyper's first
/// read is 8 KiB and more.
const AT_ONCE_BYTES_MAX: u64 = 64 << 10;
