//! The stream of one HTTP/1 connection, shared by the connection's driver and the body of the current
//! request.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;

use crate::body::{BodyError, BodySource, PollFrame};

use super::super::client_stream::ClientStream;
use super::super::settings::Limits;
use super::super::socket::ClientSocket;
use super::chunks::{ChunkDecoder, Decoded};
use super::encode::SendQueue;
use super::head::RequestFraming;

/// The client's stream, the bytes to send on it, and how much of the request's body is still to be read.
pub(super) struct SharedStream<T: ClientSocket> {
    pub(super) inner: ClientStream<T>,
    pub(super) queue: SendQueue,
    rest: RequestRest,
    /// Whether the client waits for `100 Continue` before it sends the body.
    expects_continue: bool,
    /// Since when the client has nothing to send and waits for the response. `None`: it has not waited.
    waits_since: Option<Instant>,
    /// The client sends no more, and still reads.
    is_half_closed: bool,
    /// The number of the current request. A body that outlives its own request reads no other.
    number: u64,
}

/// The part of the request's body that is still to be read.
#[derive(Debug)]
enum RequestRest {
    Nothing,
    Length(u64),
    Chunks(Box<ChunkDecoder>),
    /// Not known: the client broke off, or the framing is invalid.
    Unknown,
}

impl<T: ClientSocket> SharedStream<T> {
    pub(super) fn new(inner: ClientStream<T>) -> Self {
        Self {
            inner,
            queue: SendQueue::default(),
            rest: RequestRest::Nothing,
            expects_continue: false,
            waits_since: None,
            is_half_closed: false,
            number: 0,
        }
    }

    /// Starts a request. Returns its number.
    pub(super) fn begin_request(&mut self, framing: RequestFraming, expects_continue: bool) -> u64 {
        self.rest = match framing {
            RequestFraming::Length(0) => RequestRest::Nothing,
            RequestFraming::Length(length) => RequestRest::Length(length),
            RequestFraming::Chunked => RequestRest::Chunks(Box::default()),
            RequestFraming::Unknown => RequestRest::Unknown,
        };
        self.expects_continue = expects_continue;
        self.waits_since = None;
        self.number += 1;
        self.number
    }

    fn is_request_complete(&self) -> bool {
        matches!(self.rest, RequestRest::Nothing)
    }

    /// Whether the client was not told to continue, and may therefore never send the body.
    pub(super) fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Sends the queue, and reads ahead to notice when the client closes. Ready: it has closed.
    ///
    /// The end of the client's bytes looks the same whether the client has closed the connection or only sends no more,
    /// as `nc -N` does. Within [`HALF_CLOSE_TIME`] of the request it is taken as the latter: if the client is gone, a write fails.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(error);
        }
        // The owner of the body reads the body; the bytes of the next request stay in the socket.
        let may_read = self.is_request_complete() && !self.is_half_closed;
        while may_read && self.inner.held().is_empty() {
            let waits_since = *self.waits_since.get_or_insert_with(Instant::now);
            match ready!(self.inner.poll_more(cx)) {
                Ok(0) if waits_since.elapsed() < HALF_CLOSE_TIME => {
                    self.is_half_closed = true;
                    break;
                }
                Ok(0) => return Poll::Ready(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }

    /// Sends the queue.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue.poll_send(cx, &mut self.inner)
    }

    /// Reads and drops the rest of the request's body, if it is short and has arrived. False: it is not
    /// complete, and the connection cannot be used again.
    pub(super) fn drop_request_body(&mut self, cx: &mut Context<'_>, limits: &Limits) -> bool {
        let mut dropped = 0;
        while !self.is_request_complete() && !self.expects_continue && dropped < DROPPED_BYTES_MAX {
            match self.poll_piece(cx, limits) {
                Poll::Ready(Some(Ok(piece))) => dropped += piece.len(),
                Poll::Ready(None) => {}
                Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
            }
        }
        self.is_request_complete()
    }

    /// The next piece of the request's body.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
    ) -> Poll<Option<io::Result<Bytes>>> {
        let piece = match &mut self.rest {
            RequestRest::Nothing => return Poll::Ready(None),
            RequestRest::Unknown => Err(io::ErrorKind::InvalidData.into()),
            RequestRest::Length(left) => {
                let piece = ready!(poll_bytes(&mut self.inner, cx, *left));
                if let Ok(piece) = &piece {
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.rest = RequestRest::Nothing;
                    }
                }
                piece
            }
            RequestRest::Chunks(chunks) => {
                let piece = ready!(poll_content(&mut self.inner, cx, chunks, limits));
                if let Ok(None) = piece {
                    self.rest = RequestRest::Nothing;
                    return Poll::Ready(None);
                }
                piece.map(Option::unwrap_or_default)
            }
        };
        if piece.is_err() {
            self.rest = RequestRest::Unknown;
        }
        Poll::Ready(Some(piece))
    }
}

/// Between one and `left` bytes of the body.
fn poll_bytes<T: ClientSocket>(
    stream: &mut ClientStream<T>,
    cx: &mut Context<'_>,
    left: u64,
) -> Poll<io::Result<Bytes>> {
    let most = usize::try_from(left).unwrap_or(usize::MAX);
    let held = stream.held();
    if !held.is_empty() {
        let piece = Bytes::copy_from_slice(&held[..held.len().min(most)]);
        stream.take(piece.len());
        return Poll::Ready(Ok(piece));
    }
    let most = most.min(PIECE_BYTES_MAX);
    let mut piece = BytesMut::with_capacity(most).limit(most);
    match ready!(stream.poll_read_into(cx, &mut piece))? {
        0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        _ => Poll::Ready(Ok(piece.into_inner().freeze())),
    }
}

/// The next content of a chunked body; `None` at its end.
fn poll_content<T: ClientSocket>(
    stream: &mut ClientStream<T>,
    cx: &mut Context<'_>,
    chunks: &mut ChunkDecoder,
    limits: &Limits,
) -> Poll<io::Result<Option<Bytes>>> {
    loop {
        let held = stream.held();
        match chunks.decode(held, limits) {
            Decoded::Data(range) => {
                let piece = Bytes::copy_from_slice(&held[range.clone()]);
                stream.take(range.end);
                return Poll::Ready(Ok(Some(piece)));
            }
            Decoded::End(length) => {
                stream.take(length);
                return Poll::Ready(Ok(None));
            }
            Decoded::Invalid => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Decoded::More => stream.take(held.len()),
        }
        if ready!(stream.poll_more(cx))? == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// The body of a request, which reads from the connection's stream.
pub(super) struct RequestBody<T: ClientSocket> {
    stream: Rc<RefCell<SharedStream<T>>>,
    limits: Arc<Limits>,
    number: u64,
}

impl<T: ClientSocket> RequestBody<T> {
    pub(super) fn new(
        stream: Rc<RefCell<SharedStream<T>>>,
        limits: Arc<Limits>,
        number: u64,
    ) -> Self {
        Self { stream, limits, number }
    }
}

impl<T: ClientSocket> BodySource for RequestBody<T> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let stream = &mut *self.stream.borrow_mut();
        if stream.number != self.number {
            return Poll::Ready(Some(Err(broken(io::ErrorKind::NotConnected.into()))));
        }
        if std::mem::take(&mut stream.expects_continue) {
            stream.queue.push(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if let Err(error) = ready!(stream.poll_send(cx)) {
            return Poll::Ready(Some(Err(broken(error))));
        }
        let piece = stream.poll_piece(cx, &self.limits);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(broken)))
    }

    fn is_end_stream(&self) -> bool {
        let stream = self.stream.borrow();
        stream.number == self.number && stream.is_request_complete()
    }

    fn exact_length(&self) -> Option<u64> {
        match self.stream.borrow() {
            stream if stream.number != self.number => None,
            stream => match stream.rest {
                RequestRest::Nothing => Some(0),
                RequestRest::Length(left) => Some(left),
                RequestRest::Chunks(_) | RequestRest::Unknown => None,
            },
        }
    }
}

fn broken(error: io::Error) -> BodyError {
    match error.kind() {
        io::ErrorKind::InvalidData => BodyError::new("the client sent a malformed chunk"),
        _ => BodyError::caused_by("the client ended the request body early", error),
    }
}

/// A client that sends no more ends its bytes right after its request. One that ends them later has given up.
const HALF_CLOSE_TIME: Duration = Duration::from_secs(1);
/// Bytes read of a body at once.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// A connection is closed rather than reading more than this of a body that the service has not read.
const DROPPED_BYTES_MAX: usize = 256 << 10;
