//! The driver of HTTP/2 connections, on the h2 crate (docs/decisions/0005).
//!
//! The connection's own task takes all requests that one read has brought, polls each answer once, queues
//! the replies that are ready, and sends them in one write. Only an answer that is not ready gets a task
//! of its own. hyper's server spawns a task for every stream and requests window before every body; it
//! can neither count resets nor send interim responses.
//!
//! ```text
//! read ─▶ frame_filter ─▶ h2 ─▶ request ─▶ service ─▶ response ─▶ h2 ─▶ io: one write
//!           (io.rs)                          └─ not ready: a task ─┘
//! ```

mod budget;
mod frame;
mod frame_filter;
#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(super) mod fuzz;
mod header_blocks;
mod huffman;
mod io;
mod open_streams;
mod request;
mod response;

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::{Connection as H2Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use tokio::task::spawn_local;

use crate::body::Body;
use crate::context::Connection;
use crate::interim::ReplyFuture;
use crate::labels::{ConnectionTimeout, HeadError, Http2End};

use super::client_stream::ClientStream;
use super::connection::HttpConnection;
use super::settings::Limits;
use super::socket::ClientSocket;
use super::state::Shutdown;

use budget::Budget;
use io::Http2Io;
use response::Responder;

/// Serves an HTTP/2 connection until it ends.
pub(super) async fn serve<T, S, F>(stream: ClientStream<T>, connection: HttpConnection<S>)
where
    T: ClientSocket,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: ReplyFuture + 'static,
{
    let io = Http2Io::new(stream);
    let handshake = builder(connection.limits()).handshake::<_, Bytes>(io.clone());
    let h2 = match connection.run(handshake).await {
        Ok(Ok(h2)) => h2,
        Ok(Err(error)) => return count_error(&connection, &error),
        Err(timeout) => return connection.count_timeout(timeout),
    };
    let budget = Budget::new(&connection.limits().h2);
    let mut driver = Driver {
        h2,
        io,
        connection,
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

/// The state of one connection.
struct Driver<T: ClientSocket, S> {
    h2: H2Connection<Http2Io<ClientStream<T>>, Bytes>,
    io: Http2Io<ClientStream<T>>,
    connection: HttpConnection<S>,
    /// Requests that the client has cancelled and the budget has not counted yet.
    resets: Rc<Cell<u32>>,
    budget: Budget,
    /// The requests of one read. Kept for its allocation.
    batch: Vec<(Request<RecvStream>, SendResponse<Bytes>)>,
    /// Bytes sent when the idle timeout was last reached.
    sent_before: u64,
    draining: bool,
    /// The last GOAWAY is sent; only the remaining bytes are flushed.
    closing: bool,
}

impl<T, S, F> Driver<T, S>
where
    T: ClientSocket,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: ReplyFuture + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.register(cx);
        if self.check_shutdown().is_ready()
            || self.serve(cx).is_ready()
            || self.check_violation(cx).is_ready()
        {
            return Poll::Ready(());
        }
        match self.io.poll_send(cx) {
            // The client has closed.
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Serves requests until no more have arrived. Ready: the connection has ended.
    fn serve(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let end = self.accept(cx);
            for _ in 0..self.io.take_malformed() {
                self.connection.count_refusal(HeadError::Malformed);
            }
            self.check_budget();
            if self.batch.is_empty() || end.is_ready() {
                return end;
            }
            for (request, respond) in self.batch.drain(..) {
                start_request(&self.connection, &self.resets, request, respond, cx);
            }
            // The next round writes the replies and looks for more requests.
            if self.connection.is_used_up() {
                self.drain();
            }
        }
    }

    /// Takes every request that has arrived.
    fn accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.h2.poll_accept(cx)) {
                Some(Ok(request)) => self.batch.push(request),
                Some(Err(error)) => {
                    count_error(&self.connection, &error);
                    return Poll::Ready(());
                }
                None => return Poll::Ready(()),
            }
        }
    }

    /// Ends the connection if the frame filter has found a protocol violation.
    fn check_violation(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.io.violation() {
            Some(reason) if !self.closing => {
                let is_flood = reason == Reason::ENHANCE_YOUR_CALM;
                let end = if is_flood { Http2End::Flood } else { Http2End::Protocol };
                self.connection.count_http2_end(end);
                self.go_away(reason);
                self.serve(cx)
            }
            _ => Poll::Pending,
        }
    }

    /// Acts on an order to close. Ready: the connection must be dropped.
    fn check_shutdown(&mut self) -> Poll<()> {
        let unacknowledged = || self.io.with(ClientStream::unacknowledged);
        match self.connection.shutdown(unacknowledged) {
            None => {}
            // GOAWAY: requests that are on their way are still answered (RFC 9113 §6.8).
            Some(Shutdown::AfterResponse | Shutdown::Graceful) => self.drain(),
            Some(Shutdown::AfterLinger) => return Poll::Ready(()),
            // Replies are queued whose requests count as done.
            Some(Shutdown::Now(ConnectionTimeout::Idle)) if self.h2.has_streams() => {
                if !self.takes_enough() {
                    self.connection.count_timeout(ConnectionTimeout::Send);
                    self.io.with(ClientStream::abort);
                    return Poll::Ready(());
                }
                self.connection.extend_phase();
            }
            Some(Shutdown::Now(timeout)) => {
                self.connection.count_timeout(timeout);
                if timeout == ConnectionTimeout::Send {
                    self.io.with(ClientStream::abort);
                }
                let is_polite =
                    matches!(timeout, ConnectionTimeout::Idle | ConnectionTimeout::Header);
                if self.closing || !is_polite {
                    return Poll::Ready(());
                }
                self.go_away(Reason::NO_ERROR);
            }
        }
        Poll::Pending
    }

    /// Whether the client has taken bytes at the minimum rate since the idle timeout was last reached. Its window may hold
    /// back replies that are in memory, and answers to its PINGs are not what it waits for.
    fn takes_enough(&mut self) -> bool {
        let sent = self.connection.bytes_sent();
        let taken = sent - std::mem::replace(&mut self.sent_before, sent);
        let limits = self.connection.limits();
        let least = limits.body_rate_min as f64 * limits.idle_timeout.as_secs_f64();
        taken > 0 && taken as f64 >= least
    }

    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.h2.graceful_shutdown();
        }
    }

    /// Ends the connection if its client sends or cancels requests too often.
    fn check_budget(&mut self) {
        if self.closing {
            return self.batch.clear();
        }
        let Err(end) = self.budget.spend(self.batch.len(), self.resets.take()) else {
            return;
        };
        self.connection.count_http2_end(end);
        self.go_away(Reason::ENHANCE_YOUR_CALM);
    }

    fn go_away(&mut self, reason: Reason) {
        self.closing = true;
        self.batch.clear();
        self.connection.linger();
        self.h2.abrupt_shutdown(reason);
    }
}

/// Answers a request in this task if the answer is ready, else in a task of its own.
fn start_request<S, F>(
    connection: &HttpConnection<S>,
    resets: &Rc<Cell<u32>>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    cx: &mut Context<'_>,
) where
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: ReplyFuture + 'static,
{
    let mut in_flight = connection.begin_request(request.version());
    let refusal = request::check(&request, connection.limits());
    let refusal = match refusal {
        Some(error) => Some(connection.refuse(error)),
        None => connection.admit_peer(&mut in_flight),
    };
    let is_head = request.method() == Method::HEAD;
    if !request.body().is_end_stream() && request::expects_continue(request.headers()) {
        let mut go_on = Response::new(());
        *go_on.status_mut() = StatusCode::CONTINUE;
        _ = respond.send_informational(go_on);
    }
    let mut responder = Responder {
        respond,
        is_head,
        resets: resets.clone(),
        rate: connection.response_rate(),
        recorder: connection.recorder().clone(),
        _in_flight: in_flight,
    };
    if let Some(reply) = refusal {
        return responder.send_or_spawn(reply, connection.date());
    }
    let mut answer = Box::pin(connection.respond(request::prepare(request, connection, cx)));
    if let Poll::Ready(reply) = answer.as_mut().poll(cx) {
        return responder.send_or_spawn(reply, connection.date());
    }
    let date = connection.date().clone();
    spawn_local(async move {
        if let Some(reply) = responder.wait_for(answer.as_mut()).await {
            // Frees what the service holds before the body is sent.
            drop(answer);
            if let Some(pump) = responder.send(reply, &date) {
                pump.run().await;
            }
        }
    });
}

fn count_error<S>(connection: &HttpConnection<S>, error: &h2::Error) {
    if error.is_io() || error.is_remote() {
        return;
    }
    let is_flood = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
    connection.count_http2_end(if is_flood { Http2End::Flood } else { Http2End::Protocol });
}

/// Bytes of one response that may be queued ahead of the socket.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Streams of one connection that the node may reset for the client's violations.
const LOCAL_RESETS_MAX: usize = 256;
