//! HTTP/1.1 and 1.0 on one connection.
//!
//! ```text
//! Head ──parsed──▶ Answering ──answer──▶ Sending ──all sent──▶ Head …
//!   │ not HTTP         │ client left         ├─ last request ──▶ Closing
//!   ▼                  ▼                     └─ 101 ───────────▶ handed over
//! Closing            (dropped)
//! ```
//!
//! One task drives it from end to end: it reads a head, calls the service, and writes what comes
//! back. A request's body is read by whoever holds it, straight from the line. No timer is
//! armed: the session keeps the time. For a request without a body whose answer is in memory
//! nothing is boxed, and there is one read and one write.

mod chunks;
mod encode;
mod head;
mod line;

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
use crate::fields::FieldLines;
use crate::interim::Answer;
use crate::reply::Reply;
use crate::upgrade::{Handover, handover};

use super::Unread;
use super::client::Client;
use super::client_stream::ClientStream;
use super::pace::Paced;
use super::record;
use super::session::{Exchange, Order, Overdue, Phase};
use super::socket::ClientSocket;

use encode::{Asked, Out, Outgoing, ResponseHead};
use head::{Framing, Head, Scanner};
use line::{Line, RequestBody};

/// Serves a connection that speaks HTTP/1 until it ends.
pub(super) async fn serve<T, S, F>(stream: ClientStream<T>, client: Client<S>)
where
    T: ClientSocket + Send + 'static,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: Answer + Unpin,
{
    let mut driver = Driver {
        line: Rc::new(RefCell::new(Line::new(stream))),
        client,
        state: State::Head(Scanner::default()),
        draining: false,
    };
    let handover = std::future::poll_fn(|cx| driver.poll(cx)).await;
    // A request's body that somebody still holds keeps the line.
    if let Some(handover) = handover
        && let Some(line) = Rc::into_inner(driver.line)
    {
        handover.give(Box::new(line.into_inner().stream));
    }
}

/// Drives one connection.
struct Driver<T: ClientSocket, S, F> {
    line: Rc<RefCell<Line<T>>>,
    client: Client<S>,
    state: State<F>,
    /// Told to finish what is under way and close.
    draining: bool,
}

enum State<F> {
    /// Between two requests, or in a head.
    Head(Scanner),
    /// The service has the request.
    Answering(F, Answering),
    /// The answer is on its way, its body perhaps still coming.
    Sending(Sending),
    /// All is said.
    Closing,
}

/// A request that is being answered.
struct Answering {
    exchange: Exchange,
    asked: Asked,
    keep_alive: bool,
    handover: Option<Handover>,
}

/// An answer that is being sent.
struct Sending {
    body: Body,
    outgoing: Outgoing,
    takes_trailers: bool,
    keep_alive: bool,
    handover: Option<Handover>,
    _exchange: Exchange,
}

/// Where a step leads.
enum Step {
    /// To the next one.
    Next,
    /// To the end: the connection is closed, or changes hands.
    End(Option<Handover>),
}

impl<T, S, F> Driver<T, S, F>
where
    T: ClientSocket + 'static,
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: Answer + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Handover>> {
        self.client.session.register(cx);
        if self.obey().is_ready() {
            return Poll::Ready(None);
        }
        loop {
            match ready!(self.step(cx)) {
                Ok(Step::Next) => {}
                Ok(Step::End(handover)) => return Poll::Ready(handover),
                // A client that has gone, or an answer that breaks off.
                Err(_) => {
                    self.cut();
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        match &mut self.state {
            State::Head(_) => self.read(cx),
            State::Answering(..) => self.answer(cx),
            State::Sending(_) => self.send(cx),
            State::Closing => self.close(cx),
        }
    }

    /// Carries out what the sweep or the drain ordered. Ready: the connection is to be dropped.
    fn obey(&mut self) -> Poll<()> {
        let session = &self.client.session;
        match session.order() {
            None => {}
            Some(Order::Drain) => self.draining = true,
            Some(Order::Cut(Overdue::Linger))
                if session.lingers_on(self.line.borrow().stream.unacknowledged()) => {}
            Some(Order::Cut(overdue)) => {
                record::overdue(&self.client.recorder, overdue);
                match (&self.state, overdue) {
                    // A client that is only slow should know (RFC 9110 §15.5.9).
                    (State::Head(_), Overdue::Header) if session.wire.head_begun() => {
                        self.refuse(Unread::TimedOut);
                    }
                    (State::Head(_), Overdue::Idle) => self.leave(),
                    (_, Overdue::Send) => {
                        self.line.borrow().stream.abort();
                        return Poll::Ready(());
                    }
                    _ => return Poll::Ready(()),
                }
            }
        }
        Poll::Pending
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        match ready!(self.poll_head(cx))? {
            Some(Ok(head)) => {
                if self.take_up(head, cx).is_pending() {
                    return self.line.borrow_mut().poll_gone(cx).map(Err);
                }
            }
            Some(Err(why)) => self.refuse(why),
            None => self.state = State::Closing,
        }
        Poll::Ready(Ok(Step::Next))
    }

    /// The next head; `None` if none is to come.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Result<Head, Unread>>>> {
        let State::Head(scanner) = &mut self.state else { return Poll::Ready(Ok(None)) };
        let session = &self.client.session;
        let stream = &mut self.line.borrow_mut().stream;
        loop {
            let held = stream.held();
            let found = scanner.find(held);
            let is_large = held.len() > session.limits.header_bytes_max;
            match found {
                Ok(Some(place)) if place.len() <= session.limits.header_bytes_max => {
                    let head = Bytes::copy_from_slice(&held[place.clone()]);
                    stream.take(place.end);
                    return Poll::Ready(Ok(Some(head::parse(head, &session.limits))));
                }
                Ok(None) if !is_large => {}
                Ok(_) => return Poll::Ready(Ok(Some(Err(Unread::HeadTooLarge)))),
                Err(why) => return Poll::Ready(Ok(Some(Err(why)))),
            }
            if scanner.has_begun() {
                session.wire.head_moved();
            } else if self.draining {
                return Poll::Ready(Ok(None));
            }
            if ready!(stream.poll_more(cx))? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Hands the request to the service. Ready: the answer is there.
    fn take_up(&mut self, head: Head, cx: &mut Context<'_>) -> Poll<()> {
        let Client { facts, session, recorder, .. } = &self.client;
        let exchange = session.begin();
        let Head { mut request, framing, keep_alive, expects_continue, takes_trailers, upgrades } =
            head;
        record::request(recorder, request.version());
        let number = self.line.borrow_mut().begin(framing, expects_continue);
        let body = match framing {
            Framing::Length(0) | Framing::Unknown => Body::Empty,
            Framing::Length(_) | Framing::Chunked => {
                let body = RequestBody::new(self.line.clone(), session.limits.clone(), number);
                Body::stream(Paced::new(body, &session.limits, recorder.clone()))
            }
        };
        let handover = upgrades.then(|| {
            let (handover, on_upgrade) = handover();
            request.extensions_mut().insert(on_upgrade);
            handover
        });
        let asked = Asked::of(request.method(), request.version(), takes_trailers);
        let mut answer = (self.client.service)(facts.clone(), request.map(|()| body));
        let keep_alive = keep_alive && framing != Framing::Unknown;
        let answering = Answering { exchange, asked, keep_alive, handover };
        match self.poll_answer(&mut answer, asked, cx) {
            Poll::Ready(reply) => {
                self.begin_to_send(answering, reply);
                Poll::Ready(())
            }
            Poll::Pending => {
                self.state = State::Answering(answer, answering);
                Poll::Pending
            }
        }
    }

    /// A look at the answer; what comes before it is put out.
    fn poll_answer(&self, answer: &mut F, asked: Asked, cx: &mut Context<'_>) -> Poll<Reply> {
        let mut answer = Pin::new(answer);
        let done = answer.as_mut().poll(cx);
        // HTTP/1.0 knows no interim responses (RFC 9110 §15.2).
        while asked.version == Version::HTTP_11
            && let Poll::Ready(interim) = answer.as_mut().poll_interim(cx)
        {
            encode::interim(&mut self.line.borrow_mut().out, &interim);
        }
        done
    }

    fn answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let before = std::mem::replace(&mut self.state, State::Closing);
        let State::Answering(mut answer, answering) = before else {
            return Poll::Ready(Ok(Step::Next));
        };
        match self.poll_answer(&mut answer, answering.asked, cx) {
            Poll::Ready(reply) => {
                self.begin_to_send(answering, reply);
                Poll::Ready(Ok(Step::Next))
            }
            Poll::Pending => {
                self.state = State::Answering(answer, answering);
                self.line.borrow_mut().poll_gone(cx).map(Err)
            }
        }
    }

    fn begin_to_send(&mut self, answering: Answering, reply: Reply) {
        let Answering { exchange, asked, keep_alive, handover } = answering;
        let Reply { status, fields, mut body, .. } = reply;
        let head = ResponseHead::of(status, &fields);
        let line = &mut *self.line.borrow_mut();
        let keep_alive = keep_alive
            && !self.draining
            && !self.client.session.is_used_up()
            && !line.is_waited_for()
            && !head.closes;
        let length = body.exact_length();
        let date = &*self.client.date.borrow();
        let out = &mut line.out;
        let mut outgoing = head.write(out, length, asked, keep_alive, date);
        match (outgoing, &mut body) {
            (Outgoing::Nothing | Outgoing::Upgrade, body) => *body = Body::Empty,
            (Outgoing::Length(length), Body::Full(bytes))
                if length == bytes.as_ref().map_or(0, Bytes::len) as u64 =>
            {
                out.push_piece(bytes.take().unwrap_or_default(), false);
                outgoing = Outgoing::Length(0);
            }
            _ => {}
        }
        let takes_trailers = asked.takes_trailers;
        self.state = State::Sending(Sending {
            body,
            outgoing,
            takes_trailers,
            keep_alive,
            handover,
            _exchange: exchange,
        });
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let State::Sending(sending) = &mut self.state else {
            return Poll::Ready(Ok(Step::Next));
        };
        loop {
            let has_more = sending.gather(cx, &self.line)?;
            let line = &mut *self.line.borrow_mut();
            ready!(line.poll_send(cx))?;
            if sending.is_done() {
                break;
            }
            if !has_more {
                return line.poll_gone(cx).map(Err);
            }
        }
        Poll::Ready(Ok(self.end_exchange(cx)))
    }

    /// All of the answer is out.
    fn end_exchange(&mut self, cx: &mut Context<'_>) -> Step {
        let before = std::mem::replace(&mut self.state, State::Head(Scanner::default()));
        let State::Sending(sending) = before else { return Step::Next };
        let session = &self.client.session;
        if sending.outgoing == Outgoing::Upgrade {
            session.wire.enter(Phase::Upgraded);
            return Step::End(sending.handover);
        }
        let keep_alive = sending.keep_alive && sending.outgoing != Outgoing::Close;
        drop(sending);
        let is_paid = self.line.borrow_mut().pay(cx, &session.limits);
        if !is_paid || !keep_alive {
            self.state = State::Closing;
            if !is_paid || !self.line.borrow().stream.held().is_empty() {
                self.leave();
            }
        }
        Step::Next
    }

    fn close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let line = &mut *self.line.borrow_mut();
        ready!(line.poll_send(cx))?;
        let stream = Pin::new(&mut line.stream);
        stream.poll_shutdown(cx).map_ok(|()| Step::End(None))
    }

    /// Answers what no other room sees, counts and logs it, and closes.
    fn refuse(&mut self, why: Unread) {
        self.client.refuse(why);
        let asked = Asked::of(&http::Method::GET, Version::HTTP_11, false);
        let fields = FieldLines::default();
        let head = ResponseHead::of(why.status(), &fields);
        let date = self.client.date.borrow().clone();
        head.write(&mut self.line.borrow_mut().out, Some(0), asked, false, &date);
        self.leave();
    }

    /// Closes, and for a moment takes what the client still sends: a reset would destroy what we
    /// have said (RFC 9112 §9.6).
    fn leave(&mut self) {
        self.client.session.linger();
        self.state = State::Closing;
    }

    /// Closes as nobody does who has said all: where the end of the connection would be the end of the
    /// body, the client must not take it for that.
    fn cut(&self) {
        if let State::Sending(Sending { outgoing: Outgoing::Close, .. }) = &self.state {
            self.line.borrow().stream.abort();
        }
    }
}

impl Sending {
    fn is_done(&self) -> bool {
        matches!(self.outgoing, Outgoing::Nothing | Outgoing::Upgrade | Outgoing::Length(0))
            || self.outgoing == Outgoing::Close && matches!(self.body, Body::Empty)
    }

    /// Takes pieces of the body as long as they are there and there is room for them. False: the
    /// body has to be waited for.
    fn gather<T: ClientSocket>(
        &mut self,
        cx: &mut Context<'_>,
        line: &RefCell<Line<T>>,
    ) -> io::Result<bool> {
        while !self.is_done() && line.borrow().out.has_room() {
            // The line is free meanwhile: a body may be made of the request's own.
            let Poll::Ready(frame) = self.body.poll_frame(cx) else {
                return Ok(false);
            };
            let frame = frame.transpose().map_err(io::Error::other)?;
            let out = &mut line.borrow_mut().out;
            match frame.map(http_body::Frame::into_data) {
                Some(Ok(piece)) => self.push(out, piece)?,
                Some(Err(frame)) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.finish(out, self.takes_trailers.then_some(&trailers))?;
                }
                None => self.finish(out, None)?,
            }
        }
        Ok(true)
    }

    fn push(&mut self, out: &mut Out, piece: Bytes) -> io::Result<()> {
        let is_chunked = self.outgoing == Outgoing::Chunked;
        if let Outgoing::Length(left) = &mut self.outgoing {
            // More than was promised would be read as the next answer.
            *left = left.checked_sub(piece.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
        }
        // An empty chunk would be the last one.
        if !piece.is_empty() {
            out.push_piece(piece, is_chunked);
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Out, trailers: Option<&HeaderMap>) -> io::Result<()> {
        match self.outgoing {
            Outgoing::Length(1..) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Outgoing::Chunked => {
                encode::last_chunk(out, trailers);
                self.outgoing = Outgoing::Nothing;
            }
            _ => self.body = Body::Empty,
        }
        Ok(())
    }
}
