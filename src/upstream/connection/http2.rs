//! Exchanges on shared HTTP/2 connections to origins, directly on the `h2` crate.
//!
//! hyper's client does not pass on interim responses, and treats a stream that the origin cancels as
//! a complete body. Each connection has a task. Each request body has one too, because the origin may
//! open its window for the body while the response is not being read.
//!
//! ```text
//!  head ──▶ Received ──end, error, dropped──▶ stream closed
//!    └─ Upload (if there is a body) ── aborted when the exchange ends
//! ```

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, Sleep, sleep};

use super::super::error::{LinkError, NoHead, NoHeadReason};
use super::super::exchange::patience::Patience;
use super::super::exchange::request_body::ClientUpload;
use super::super::settings::{self, PoolSettings};
use super::connect::Connected;
use super::io::{Io, Traffic};
use crate::body::{Body, BodyError, BodySource};
use crate::clock::whole_ms;
use crate::fields::number;

/// An HTTP/2 connection. A task of its own drives it.
pub(in crate::upstream) struct Http2 {
    /// Cloned for each request, which is sent by the clone.
    sender: RefCell<SendRequest<Bytes>>,
    /// `None`: it is over a Unix socket.
    pub(in crate::upstream) address: Option<SocketAddr>,
    pub(in crate::upstream) opened_ms: u64,
    traffic: Rc<Traffic>,
    ping_request: Rc<PingRequest>,
    /// Number of its [`Share`]s.
    pub(in crate::upstream) streams: Cell<usize>,
    /// A response was late, and nothing was read since its request: it gets no other request.
    pub(in crate::upstream) is_doubtful: Cell<bool>,
}

/// A stream of an HTTP/2 connection for one exchange, counted until dropped.
pub(in crate::upstream) struct Share(Rc<Http2>);

impl Share {
    pub(in crate::upstream) fn of(http2: &Rc<Http2>) -> Self {
        http2.streams.set(http2.streams.get() + 1);
        Self(http2.clone())
    }
}

impl Deref for Share {
    type Target = Http2;

    fn deref(&self) -> &Http2 {
        &self.0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

impl Http2 {
    /// Starts HTTP/2 on a connection.
    pub(in crate::upstream) async fn open(
        connected: Connected,
        opened_ms: u64,
        settings: &PoolSettings,
    ) -> Result<Rc<Self>, LinkError> {
        let Connected { io, address, round_trip, .. } = connected;
        let traffic = io.traffic();
        let windows = Windows::of(round_trip, settings.streams_max);
        let header_bytes_max = settings.header_bytes_max;
        let pings = PingTimes::of(&settings.keep_alive);
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_header_list_size(u32::try_from(header_bytes_max).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .handshake::<_, Bytes>(io)
            .await?;
        let http2 = Rc::new(Self {
            sender: RefCell::new(sender),
            address,
            opened_ms,
            traffic: traffic.clone(),
            ping_request: Rc::default(),
            streams: Cell::new(0),
            is_doubtful: Cell::new(false),
        });
        let keep_alive = connection
            .ping_pong()
            .map(|ping| KeepAlive::new(ping, pings, traffic, http2.ping_request.clone()));
        spawn_local(drive(connection, keep_alive, Rc::downgrade(&http2)));
        Ok(http2)
    }

    /// The number of streams that the origin allows at once. Further ones would wait until another
    /// ends, which for calls can take long.
    pub(in crate::upstream) fn streams_max(&self) -> usize {
        self.sender.borrow().current_max_send_streams().max(1)
    }

    /// Whether it may have another stream.
    pub(in crate::upstream) fn has_room(&self, settings: &PoolSettings, now_ms: u64) -> bool {
        let most = settings.streams_max.min(self.streams_max());
        let is_young =
            now_ms.saturating_sub(self.opened_ms) < whole_ms(settings.keep_alive.age_max);
        self.streams.get() < most && is_young && !self.is_doubtful.get() && !self.is_closed()
    }

    /// The bytes read from it so far.
    pub(in crate::upstream) fn bytes_read(&self) -> u64 {
        self.traffic.read.get()
    }

    /// Sends a PING now, unless one is in flight.
    pub(in crate::upstream) fn ping(&self) {
        self.ping_request.make();
    }

    /// Whether it accepts no more requests: it has ended, or the origin has announced its end.
    pub(in crate::upstream) fn is_closed(&self) -> bool {
        let mut noop = Context::from_waker(Waker::noop());
        matches!(self.sender.borrow_mut().poll_ready(&mut noop), Poll::Ready(Err(_)))
    }

    /// Whether nothing more can come over it. A connection whose end the origin has announced still finishes its streams,
    /// and shows whether the origin lives.
    pub(in crate::upstream) fn is_over(&self) -> bool {
        self.streams.get() == 0 && self.is_closed()
    }

    /// Sends the request and waits for the head of the response. Each piece of the request's body
    /// renews the deadline. `on_interim` is called with each interim response.
    pub(in crate::upstream) async fn head(
        &self,
        request: Request<Body>,
        on_interim: impl Fn(&Response<()>),
        patience: &Patience<'_>,
        upload_state: &ClientUpload,
    ) -> Result<Response<Received>, NoHead> {
        let (mut parts, body) = request.into_parts();
        if !parts.headers.contains_key(CONTENT_LENGTH)
            && let Some(length) = body.exact_length()
            && (length > 0 || !matches!(parts.method, Method::GET | Method::HEAD | Method::DELETE))
        {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let is_whole = body.is_end_stream();
        let mut sender = self.sender.borrow().clone();
        let (mut response, stream) =
            match sender.send_request(Request::from_parts(parts, ()), is_whole) {
                Ok(sent) => sent,
                Err(error) => {
                    let (why, body) = (NoHeadReason::Error(error.into()), Some(body));
                    return Err(NoHead { why, body, sent: false, received: 0 });
                }
            };
        let mut upload = (!is_whole).then(|| Upload::start(body, stream));
        patience.renew();
        let (mut interims, read_before) = (0, self.traffic.read.get());
        let head = poll_fn(|cx| {
            if let Poll::Ready(stop) = poll_interims(&mut response, &on_interim, &mut interims, cx)
            {
                return Poll::Ready(Err(stop));
            }
            if let Poll::Ready(head) = pin!(&mut response).poll(cx) {
                return Poll::Ready(head.map_err(|error| NoHeadReason::Error(error.into())));
            }
            if upload.as_mut().is_some_and(Upload::has_moved) {
                patience.renew();
            }
            let over = patience.poll_over(cx, Some(upload_state));
            if (over.is_ready() || patience.pace.is_late())
                && self.traffic.read.get() == read_before
            {
                // Not a PING is answered: other requests must not wait on this connection too.
                self.is_doubtful.set(true);
            }
            over.map(|()| Err(NoHeadReason::Deadline))
        })
        .await;
        let failure = || upload.as_ref().and_then(Upload::failure);
        match head {
            Ok(head) => {
                let length = head.headers().get(CONTENT_LENGTH);
                let left = length.and_then(|length| number(length.as_bytes()));
                Ok(head.map(|stream| Received { stream, left, data_ended: false, upload }))
            }
            Err(why) => {
                let why = failure().map(LinkError::RequestBody).map_or(why, NoHeadReason::Error);
                let is_refused =
                    matches!(&why, NoHeadReason::Error(error) if error.is_refused_stream());
                Err(NoHead { why, body: None, sent: !is_refused, received: 0 })
            }
        }
    }
}

/// The bytes of responses that the origin may send before they are read.
struct Windows {
    stream: u32,
    /// All streams together never fill it: a response whose client does not read would hold up all others.
    connection: u32,
}

impl Windows {
    fn of(round_trip: Duration, streams_max: usize) -> Self {
        let stream = if round_trip < FAR { NEAR_WINDOW } else { FAR_WINDOW };
        let streams_max = u32::try_from(streams_max).unwrap_or(u32::MAX);
        Self { stream, connection: stream.saturating_mul(streams_max).min(WINDOW_MAX) }
    }
}

/// Passes on the interim responses received so far. Ready if there are too many, or a 101, which
/// HTTP/2 does not have.
fn poll_interims(
    response: &mut ResponseFuture,
    on_interim: &impl Fn(&Response<()>),
    count: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<NoHeadReason> {
    // The response future returns errors.
    while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
        if interim.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Poll::Ready(NoHeadReason::Switched);
        }
        *count += 1;
        if *count > INTERIMS_MAX {
            return Poll::Ready(NoHeadReason::Error(Reason::ENHANCE_YOUR_CALM.into()));
        }
        on_interim(&interim);
    }
    Poll::Pending
}

/// Drives a connection until it ends, or until its origin does not answer a PING in time.
async fn drive(
    mut connection: Connection<Io, Bytes>,
    mut keep_alive: Option<KeepAlive>,
    shared: Weak<Http2>,
) {
    poll_fn(|cx| {
        if let Poll::Ready(end) = Pin::new(&mut connection).poll(cx) {
            if let Err(error) = end {
                tracing::debug!(%error, "an HTTP/2 connection to an origin ended");
            }
            return Poll::Ready(());
        }
        let is_in_use = || shared.upgrade().is_some_and(|http2| http2.streams.get() > 0);
        let Some(keep_alive) = &mut keep_alive else { return Poll::Pending };
        keep_alive.poll_silent(cx, is_in_use).map(|()| {
            tracing::debug!("an origin did not answer a PING in time; its connection is closed");
        })
    })
    .await;
}

/// When a connection gets a PING, and how long the answer may take.
#[derive(Clone, Copy)]
struct PingTimes {
    after: Duration,
    timeout: Duration,
}

impl PingTimes {
    fn of(keep_alive: &settings::KeepAlive) -> Self {
        Self { after: keep_alive.ping_after, timeout: keep_alive.ping_timeout }
    }
}

/// Asks the task that drives a connection for a PING.
#[derive(Default)]
struct PingRequest {
    is_made: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl PingRequest {
    fn make(&self) {
        self.is_made.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether a PING was asked for since the last call. Wakes the task at the next one.
    fn poll(&self, cx: &Context<'_>) -> bool {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.is_made.take()
    }
}

/// Sends a PING when nothing was received for a while, or when it is asked for one, to find out whether the origin is
/// reachable.
struct KeepAlive {
    ping: PingPong,
    request: Rc<PingRequest>,
    times: PingTimes,
    traffic: Rc<Traffic>,
    /// The number of bytes read at the last check.
    read_before: u64,
    timer: Pin<Box<Sleep>>,
    /// A PING has no answer yet.
    is_in_flight: bool,
    /// The connection is closed at the next tick if the PING has no answer by then.
    awaits_pong: bool,
}

impl KeepAlive {
    fn new(
        ping: PingPong,
        times: PingTimes,
        traffic: Rc<Traffic>,
        request: Rc<PingRequest>,
    ) -> Self {
        let (timer, read_before) = (Box::pin(sleep(times.after)), traffic.read.get());
        let (is_in_flight, awaits_pong) = (false, false);
        Self { ping, request, times, read_before, traffic, timer, is_in_flight, awaits_pong }
    }

    /// Ready once a PING was not answered in time.
    fn poll_silent(&mut self, cx: &mut Context<'_>, is_in_use: impl Fn() -> bool) -> Poll<()> {
        if self.is_in_flight && self.ping.poll_pong(cx).is_ready() {
            self.is_in_flight = false;
            if std::mem::take(&mut self.awaits_pong) {
                self.timer.as_mut().reset(Instant::now() + self.times.after);
            }
        }
        // The answer is awaited from the time on at which this connection would have got a PING anyway.
        if self.request.poll(cx) {
            self.send();
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if self.awaits_pong {
                return Poll::Ready(());
            }
            let read = self.traffic.read.get();
            let is_silent = std::mem::replace(&mut self.read_before, read) == read;
            self.awaits_pong = is_silent && is_in_use() && self.send();
            let next = if self.awaits_pong { self.times.timeout } else { self.times.after };
            self.timer.as_mut().reset(Instant::now() + next);
        }
    }
}

impl KeepAlive {
    /// Sends a PING unless one is in flight. False: the connection has ended.
    fn send(&mut self) -> bool {
        self.is_in_flight = self.is_in_flight || self.ping.send_ping(Ping::opaque()).is_ok();
        self.is_in_flight
    }
}

/// A request body being sent, by a task that ends with the exchange.
struct Upload {
    task: AbortHandle,
    progress: Rc<Progress>,
    /// The progress at the last check.
    seen: u64,
}

#[derive(Default)]
struct Progress {
    /// Number of pieces read and pieces sent.
    moved: Cell<u64>,
    /// The error of the body.
    failure: RefCell<Option<BodyError>>,
}

impl Progress {
    fn step(&self) {
        self.moved.set(self.moved.get() + 1);
    }
}

impl Upload {
    fn start(body: Body, stream: SendStream<Bytes>) -> Self {
        let progress = Rc::<Progress>::default();
        let task = spawn_local(upload(body, stream, progress.clone())).abort_handle();
        Self { task, progress, seen: 0 }
    }

    /// Whether there was progress since the last call.
    fn has_moved(&mut self) -> bool {
        let moved = self.progress.moved.get();
        std::mem::replace(&mut self.seen, moved) != moved
    }

    /// Takes the error of the body.
    fn failure(&self) -> Option<BodyError> {
        self.progress.failure.borrow_mut().take()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends a request's body until its end, or until the origin stops reading it. Trailers are not sent:
/// nothing has checked them.
async fn upload(mut body: Body, mut stream: SendStream<Bytes>, progress: Rc<Progress>) {
    loop {
        let frame = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(()));
            }
            body.poll_frame(cx).map(Ok)
        });
        let Ok(frame) = frame.await else { return };
        progress.step();
        let sent = match frame {
            Some(Ok(frame)) => {
                let bytes = frame.into_data().unwrap_or_default();
                let is_last = body.is_end_stream();
                send(&mut stream, bytes, is_last, &progress).await.filter(|()| !is_last)
            }
            Some(Err(error)) => {
                *progress.failure.borrow_mut() = Some(error);
                stream.send_reset(Reason::CANCEL);
                None
            }
            None => send(&mut stream, Bytes::new(), true, &progress).await.and(None),
        };
        if sent.is_none() {
            return;
        }
    }
}

/// Sends a piece as the origin's window allows. `None` if the origin stopped reading.
async fn send(
    stream: &mut SendStream<Bytes>,
    mut bytes: Bytes,
    is_last: bool,
    progress: &Progress,
) -> Option<()> {
    loop {
        stream.reserve_capacity(bytes.len());
        let window = if bytes.is_empty() { 0 } else { window(stream).await? };
        let piece = bytes.split_to(bytes.len().min(window));
        progress.step();
        stream.send_data(piece, is_last && bytes.is_empty()).ok()?;
        if bytes.is_empty() {
            return Some(());
        }
    }
}

/// The number of bytes that the origin accepts now; waits until there are any. `None` if it stopped
/// reading.
async fn window(stream: &mut SendStream<Bytes>) -> Option<usize> {
    poll_fn(|cx| {
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
        Poll::Ready(Some(stream.capacity()))
    })
    .await
}

/// A response body being received. Its window is released as it is read, so that a slow reader slows
/// the origin.
pub(in crate::upstream) struct Received {
    stream: RecvStream,
    /// The rest of `Content-Length`, which h2 enforces.
    left: Option<u64>,
    data_ended: bool,
    /// The request body, which may still be being sent.
    upload: Option<Upload>,
}

impl Received {
    /// Whether the request's body has made progress since the last call.
    pub(in crate::upstream) fn has_upload_moved(&mut self) -> bool {
        self.upload.as_mut().is_some_and(Upload::has_moved)
    }

    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    // An error here is a stream that is closed: there is no window to give back.
                    _ = self.stream.flow_control().release_capacity(bytes.len());
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.broken(error)))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|error| self.broken(error));
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
    }

    /// The error of the exchange: that of the request's body if it failed first.
    fn broken(&self, error: h2::Error) -> LinkError {
        let failure = self.upload.as_ref().and_then(Upload::failure);
        failure.map_or_else(|| error.into(), LinkError::RequestBody)
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(in crate::upstream) fn exact_length(&self) -> Option<u64> {
        self.left
    }
}

/// A response whose client does not read holds so much memory. At a round trip of [`FAR`], this is 50 MB/s.
const NEAR_WINDOW: u32 = 256 << 10;
/// The same for an origin that is far: 10 MB/s at a round trip of 100 ms.
const FAR_WINDOW: u32 = 1 << 20;
const FAR: Duration = Duration::from_millis(5);
/// The largest window of HTTP/2 (RFC 9113 §6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Maximum number of bytes of a request body that are queued for the socket.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Interim responses before the final one; more is a flood.
const INTERIMS_MAX: usize = 64;
