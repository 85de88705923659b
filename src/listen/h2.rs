//! HTTP/2 on one connection, straight on the `h2` crate.
//!
//! A request is answered in the connection's own task as long as nothing has to be waited
//! for: all requests that one read brought are taken first, their answers queued, and
//! everything goes out in one write. Only what is not ready at its first poll gets a task.
//! hyper's server spawns a task for every stream and asks for window before every body; it
//! also could not count resets or send 1xx.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection as H2Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, DATE, EXPECT, HeaderMap, HeaderName,
    HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::context::Connection;
use crate::fields::is_grpc;
use crate::interim::Answer;
use crate::metrics::{Metric, Recorder};
use crate::reply::Reply;

use super::Unread;
use super::client::Client;
use super::client_stream::ClientStream;
use super::gather::Gather;
use super::pace::{Pace, Paced};
use super::record::{self, H2End};
use super::session::{Exchange, Order, Overdue};
use super::settings::{H2Limits, Limits};
use super::socket::ClientSocket;

/// Serves a connection that speaks HTTP/2 until it ends.
pub(super) async fn serve<T, S, F>(stream: ClientStream<T>, client: Client<S>)
where
    T: ClientSocket,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: Answer + 'static,
{
    let stream = Gather::new(stream);
    let handshake = builder(&client.session.limits).handshake::<_, Bytes>(stream.clone());
    let connection = match client.session.watched(handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return ended(&client.recorder, &error),
        Err(overdue) => return record::overdue(&client.recorder, overdue),
    };
    let budget = Budget::new(&client.session.limits.h2);
    let mut driver = Driver {
        connection,
        stream,
        client,
        resets: Rc::default(),
        budget,
        batch: Vec::new(),
        sent_before: 0,
        draining: false,
        closing: false,
    };
    poll_fn(|cx| driver.poll(cx)).await;
}

fn builder(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.h2.streams_max)
        .max_header_list_size(limits.header_bytes_max.try_into().unwrap_or(u32::MAX))
        .initial_window_size(limits.h2.window_bytes)
        .initial_connection_window_size(limits.h2.window_bytes.saturating_mul(4))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
    builder
}

/// Drives one connection.
struct Driver<T: ClientSocket, S> {
    connection: H2Connection<Gather<ClientStream<T>>, Bytes>,
    stream: Gather<ClientStream<T>>,
    client: Client<S>,
    /// Requests that the client cancelled, since they were last looked at.
    resets: Rc<Cell<u32>>,
    budget: Budget,
    /// Requests of one read. Kept for its allocation.
    batch: Vec<(Request<RecvStream>, SendResponse<Bytes>)>,
    /// Bytes sent when the connection was last found idle.
    sent_before: u64,
    draining: bool,
    /// GOAWAY was sent for good; only the last bytes are flushed.
    closing: bool,
}

impl<T, S, F> Driver<T, S>
where
    T: ClientSocket,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: Answer + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.client.session.register(cx);
        if self.obey().is_ready() || self.serve(cx).is_ready() || self.judge(cx).is_ready() {
            return Poll::Ready(());
        }
        match self.stream.poll_send(cx) {
            // An error here is a client that has gone.
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Until nothing more has arrived and all that can be answered is.
    fn serve(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let end = self.accept(cx);
            for _ in 0..self.stream.take_malformed() {
                record::unread(&self.client.recorder, Unread::Malformed);
            }
            self.keep_budget();
            if self.batch.is_empty() || end.is_ready() {
                return end;
            }
            for (request, respond) in self.batch.drain(..) {
                take_up(&self.client, &self.resets, request, respond, cx);
            }
            // The next round gathers the answers and looks for more.
            if self.client.session.is_used_up() {
                self.drain();
            }
        }
    }

    /// Takes every request that has arrived.
    fn accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.connection.poll_accept(cx)) {
                Some(Ok(request)) => self.batch.push(request),
                Some(Err(error)) => {
                    ended(&self.client.recorder, &error);
                    return Poll::Ready(());
                }
                None => return Poll::Ready(()),
            }
        }
    }

    /// Ends a connection whose client broke the protocol where h2 would not have seen it, or not
    /// said so.
    fn judge(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.stream.fault() {
            Some(reason) if !self.closing => {
                let is_flood = reason == Reason::ENHANCE_YOUR_CALM;
                let end = if is_flood { H2End::Flood } else { H2End::Protocol };
                record::http2_ended(&self.client.recorder, end);
                self.go_away(reason);
                self.serve(cx)
            }
            _ => Poll::Pending,
        }
    }

    /// Carries out what the sweep or the drain ordered. Ready: the connection is to be dropped.
    fn obey(&mut self) -> Poll<()> {
        match self.client.session.order() {
            None => {}
            Some(Order::Drain) => self.drain(),
            Some(Order::Cut(Overdue::Idle)) if self.is_still_sending() => {
                self.client.session.disobey();
            }
            Some(Order::Cut(Overdue::Linger)) if self.lingers_on() => {}
            Some(Order::Cut(overdue)) => {
                record::overdue(&self.client.recorder, overdue);
                if overdue == Overdue::Send {
                    self.stream.with(ClientStream::abort);
                }
                if self.closing || !matches!(overdue, Overdue::Idle | Overdue::Header) {
                    return Poll::Ready(());
                }
                self.go_away(Reason::NO_ERROR);
            }
        }
        Poll::Pending
    }

    /// Answers that were queued whole may still be on their way when their requests are done.
    fn is_still_sending(&mut self) -> bool {
        let sent = self.client.session.wire.bytes_out();
        let before = std::mem::replace(&mut self.sent_before, sent);
        self.connection.has_streams() && sent != before
    }

    fn lingers_on(&self) -> bool {
        self.client.session.lingers_on(self.stream.with(ClientStream::unacknowledged))
    }

    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.connection.graceful_shutdown();
        }
    }

    /// Ends a connection whose client asks or cancels too often.
    fn keep_budget(&mut self) {
        if self.closing {
            return self.batch.clear();
        }
        let Err(end) = self.budget.spend(self.batch.len(), self.resets.take()) else {
            return;
        };
        record::http2_ended(&self.client.recorder, end);
        self.go_away(Reason::ENHANCE_YOUR_CALM);
    }

    fn go_away(&mut self, reason: Reason) {
        self.closing = true;
        self.batch.clear();
        self.client.session.linger();
        self.connection.abrupt_shutdown(reason);
    }
}

/// Answers at once if the service can, else in a task.
fn take_up<S, F>(
    client: &Client<S>,
    resets: &Rc<Cell<u32>>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    cx: &mut Context<'_>,
) where
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: Answer + 'static,
{
    let exchange = client.session.begin();
    record::request(&client.recorder, request.version());
    let limits = &client.session.limits;
    let refused = unread(&request, limits);
    if let Some(why) = refused {
        client.refuse(why);
    }
    let is_head = request.method() == Method::HEAD;
    if !request.body().is_end_stream() && expects_continue(request.headers()) {
        let mut go_on = Response::new(());
        *go_on.status_mut() = StatusCode::CONTINUE;
        _ = respond.send_informational(go_on);
    }
    let mut way_back = WayBack {
        respond,
        is_head,
        resets: resets.clone(),
        pace: Pace::new(limits),
        recorder: client.recorder.clone(),
        _exchange: exchange,
    };
    if let Some(why) = refused {
        return way_back.send_or_spawn(Reply::new(why.status()), &client.date);
    }
    let length = content_length(request.headers());
    let mut request = request;
    join_cookies(request.headers_mut());
    let is_call = request.headers().get(CONTENT_TYPE).is_some_and(|it| is_grpc(it.as_bytes()));
    let request = request.map(|body| content(body, length, is_call, client, cx));
    let mut answer = Box::pin((client.service)(client.facts.clone(), request));
    if let Poll::Ready(response) = answer.as_mut().poll(cx) {
        return way_back.send_or_spawn(response, &client.date);
    }
    let date = client.date.clone();
    spawn_local(async move {
        if let Some(response) = way_back.unless_reset(answer.as_mut()).await {
            // Whatever the service held is free before the body is sent.
            drop(answer);
            if let Some(pump) = way_back.send(response, &date) {
                pump.run().await;
            }
        }
    });
}

fn unread(request: &Request<RecvStream>, limits: &Limits) -> Option<Unread> {
    if request.headers().values().any(is_padded) {
        Some(Unread::Malformed)
    } else if request.headers().len() > limits.headers_max {
        Some(Unread::HeadTooLarge)
    } else if super::uri_bytes(request) > limits.uri_bytes_max {
        Some(Unread::TargetTooLong)
    } else {
        None
    }
}

/// Whether the client waits for a word of ours before it sends the content (RFC 9110 §10.1.1).
fn expects_continue(headers: &HeaderMap) -> bool {
    let is_it = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    headers.get(EXPECT).is_some_and(is_it)
}

/// Space at its ends, which no field value may have (RFC 9113 §8.2.1).
fn is_padded(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// The way back to the client for one request.
struct WayBack {
    respond: SendResponse<Bytes>,
    is_head: bool,
    resets: Rc<Cell<u32>>,
    pace: Pace,
    recorder: Recorder,
    _exchange: Exchange,
}

impl WayBack {
    /// The service's answer; `None` if the client cancels first, which the service sees as
    /// its future's drop.
    async fn unless_reset<F: Answer>(&mut self, mut answer: Pin<&mut F>) -> Option<F::Output> {
        poll_fn(|cx| {
            if self.respond.poll_reset(cx).is_ready() {
                self.count_reset();
                return Poll::Ready(None);
            }
            let done = answer.as_mut().poll(cx);
            while let Poll::Ready(interim) = answer.as_mut().poll_interim(cx) {
                // An error here is a stream that the client has cancelled: see above.
                _ = self.respond.send_informational(interim);
            }
            done.map(Some)
        })
        .await
    }

    fn count_reset(&self) {
        self.recorder.count(Metric::Http2Resets);
        self.resets.set(self.resets.get() + 1);
    }

    fn send_or_spawn(self, response: Reply, date: &RefCell<HeaderValue>) {
        if let Some(pump) = self.send(response, date) {
            spawn_local(pump.run());
        }
    }

    /// Sends head and body, if the body is there; otherwise the pump for the body.
    fn send(mut self, response: Reply, date: &RefCell<HeaderValue>) -> Option<Pump> {
        let Reply { status, fields, body, .. } = response;
        let is_whole = self.is_head || body.is_end_stream();
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = fields.to_map();
        complete(head.headers_mut(), if is_whole { None } else { body.exact_length() }, date);
        // An error here is a stream that the client has cancelled; nobody waits for it.
        let mut stream = self.respond.send_response(head, is_whole).ok()?;
        match body {
            _ if is_whole => None,
            // h2 holds what exceeds the window, and these bytes are in memory anyway.
            Body::Full(Some(bytes)) if bytes.len() <= QUEUED_WHOLE_BYTES_MAX => {
                _ = stream.send_data(bytes, true);
                None
            }
            body => Some(Pump { body, stream, way_back: self }),
        }
    }
}

/// What HTTP/2 demands of a head, and what a recipient needs.
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

/// A body on its way, as fast as the client's window lets it.
struct Pump {
    body: Body,
    stream: SendStream<Bytes>,
    way_back: WayBack,
}

/// Why a body is not sent to its end.
enum Stopped {
    /// The client cancelled it, or the connection is gone.
    ByClient,
    /// The client opens its window too slowly.
    Stalled,
    /// The source of the body failed: the client must see that it is not whole.
    BySource,
}

impl Pump {
    async fn run(mut self) {
        match self.send_all().await {
            Ok(()) => {}
            Err(Stopped::ByClient) => self.way_back.count_reset(),
            Err(Stopped::Stalled) => {
                self.way_back.recorder.count(Metric::ResponseBodiesTimedOut);
                self.stream.send_reset(Reason::CANCEL);
            }
            Err(Stopped::BySource) => self.stream.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    async fn send_all(&mut self) -> Result<(), Stopped> {
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
                    return self.stream.send_trailers(trailers).map_err(|_| Stopped::ByClient);
                }
            }
        }
        self.stream.send_data(Bytes::new(), true).map_err(|_| Stopped::ByClient)
    }

    async fn next_frame(&mut self) -> Result<Option<Frame<Bytes>>, Stopped> {
        poll_fn(|cx| {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Stopped::ByClient));
            }
            let frame = ready!(self.body.poll_frame(cx));
            Poll::Ready(frame.transpose().map_err(|_| Stopped::BySource))
        })
        .await
    }

    async fn push(&mut self, mut bytes: Bytes, is_last: bool) -> Result<(), Stopped> {
        loop {
            self.stream.reserve_capacity(bytes.len());
            let window = if bytes.is_empty() { 0 } else { self.window().await? };
            let piece = bytes.split_to(bytes.len().min(window));
            self.way_back.pace.moved(piece.len());
            let is_end = is_last && bytes.is_empty();
            self.stream.send_data(piece, is_end).map_err(|_| Stopped::ByClient)?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// Bytes that the client takes now; waits until it takes any.
    async fn window(&mut self) -> Result<usize, Stopped> {
        poll_fn(|cx| {
            loop {
                if self.stream.capacity() > 0 {
                    return Poll::Ready(Ok(self.stream.capacity()));
                }
                match self.stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Stopped::ByClient)),
                    Poll::Pending => {
                        let overdue = self.way_back.pace.poll_overdue(cx);
                        return overdue.map(|()| Err(Stopped::Stalled));
                    }
                }
            }
        })
        .await
    }
}

/// The content of a request. Some clients end every request by an empty DATA frame: where it has
/// come with the head, the request has no content, and is answered and forwarded as one without.
/// That of a gRPC call may take its time.
fn content<S>(
    mut body: RecvStream,
    length: Option<u64>,
    is_call: bool,
    client: &Client<S>,
    cx: &mut Context<'_>,
) -> Body {
    if body.is_end_stream() {
        return Body::Empty;
    }
    let first = match body.poll_data(cx) {
        // Trailers are dropped in any case.
        Poll::Ready(None) => return Body::Empty,
        Poll::Ready(Some(Ok(piece))) if piece.is_empty() && body.is_end_stream() => {
            return Body::Empty;
        }
        Poll::Ready(first) => first,
        Poll::Pending => None,
    };
    let received = Received { body, first, left: length, data_ended: false };
    let recorder = client.recorder.clone();
    Body::stream(if is_call {
        Paced::unhurried(received, recorder)
    } else {
        Paced::new(received, &client.session.limits, recorder)
    })
}

/// HTTP/2 may split the cookies into several fields, and nobody else understands that
/// (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    // Most requests repeat no field.
    if headers.len() == headers.keys_len() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, whole);
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A request body. Its window is given back as it is read, so a slow reader slows the client.
struct Received {
    body: RecvStream,
    /// What had come with the head.
    first: Option<Result<Bytes, h2::Error>>,
    /// By Content-Length, to which h2 holds the client.
    left: Option<u64>,
    data_ended: bool,
}

impl BodySource for Received {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let broken = |error| BodyError::caused_by("the request body ended early", error);
        if !self.data_ended {
            let piece = match self.first.take() {
                None => ready!(self.body.poll_data(cx)),
                first => first,
            };
            match piece {
                Some(Ok(bytes)) => {
                    _ = self.body.flow_control().release_capacity(bytes.len());
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.body.poll_trailers(cx)).map_err(broken);
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        self.left
    }
}

/// How often a client may ask and cancel.
struct Budget {
    requests_max: Option<u32>,
    requests: Window,
    resets_max: u32,
    resets: Window,
}

/// A count that begins anew after a while.
#[derive(Default)]
struct Window {
    began: Option<Instant>,
    count: u32,
}

impl Budget {
    fn new(limits: &H2Limits) -> Self {
        Self {
            requests_max: limits.requests_per_second_max,
            requests: Window::default(),
            resets_max: limits.resets_per_10s_max,
            resets: Window::default(),
        }
    }

    /// The clock is only read when there is something to count.
    fn spend(&mut self, requests: usize, resets: u32) -> Result<(), H2End> {
        if resets > 0 && self.resets.add(resets, Duration::from_secs(10)) > self.resets_max {
            return Err(H2End::Resets);
        }
        match self.requests_max {
            Some(max) if requests > 0 => {
                let requests = requests.try_into().unwrap_or(u32::MAX);
                let within = self.requests.add(requests, Duration::from_secs(1)) <= max;
                if within { Ok(()) } else { Err(H2End::Requests) }
            }
            _ => Ok(()),
        }
    }
}

impl Window {
    fn add(&mut self, count: u32, length: Duration) -> u32 {
        let now = Instant::now();
        if self.began.is_none_or(|began| now - began >= length) {
            (self.began, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(count);
        self.count
    }
}

fn ended(recorder: &Recorder, error: &h2::Error) {
    if error.is_io() || error.is_remote() {
        return;
    }
    let flood = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
    record::http2_ended(recorder, if flood { H2End::Flood } else { H2End::Protocol });
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// A body in memory up to this length is handed to h2 in one piece, which holds what the window does
/// not take yet: it bounds what a stream adds to a connection's memory. A longer one is sent as the window
/// opens. It has nothing to do with the store's slices.
const QUEUED_WHOLE_BYTES_MAX: usize = 256 << 10;
/// What a pump may have queued ahead of the socket.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Streams that a client makes us reset for its mistakes.
const LOCAL_RESETS_MAX: usize = 256;
