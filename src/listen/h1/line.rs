//! The line to one client: what the connection's driver and the body of the request that it is
//! answering share.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;

use super::super::client_stream::ClientStream;
use super::super::settings::Limits;
use super::super::socket::ClientSocket;
use super::chunks::{Chunks, Decoded};
use super::encode::Out;
use super::head::Framing;
use crate::body::{BodyError, BodySource, PollFrame};

/// The stream, what waits to be sent over it, and what the client still owes of its request.
pub(super) struct Line<T: ClientSocket> {
    pub(super) stream: ClientStream<T>,
    pub(super) out: Out,
    owed: Owed,
    /// Whether the client waits for `100 Continue` before it sends the body.
    expects_continue: bool,
    /// Counts the requests, so that a body that outlives its own reads no other.
    number: u64,
}

/// What is missing of the request's body.
#[derive(Debug)]
enum Owed {
    Nothing,
    Length(u64),
    Chunks(Box<Chunks>),
    /// Nobody can say: the client broke off, or does not frame by the book.
    Unknown,
}

impl<T: ClientSocket> Line<T> {
    pub(super) fn new(stream: ClientStream<T>) -> Self {
        Self {
            stream,
            out: Out::default(),
            owed: Owed::Nothing,
            expects_continue: false,
            number: 0,
        }
    }

    /// A request begins. Returns its number.
    pub(super) fn begin(&mut self, framing: Framing, expects_continue: bool) -> u64 {
        self.owed = match framing {
            Framing::Length(0) => Owed::Nothing,
            Framing::Length(length) => Owed::Length(length),
            Framing::Chunked => Owed::Chunks(Box::default()),
            Framing::Unknown => Owed::Unknown,
        };
        self.expects_continue = expects_continue;
        self.number += 1;
        self.number
    }

    /// Whether the request has been read to its end.
    pub(super) fn is_paid(&self) -> bool {
        matches!(self.owed, Owed::Nothing)
    }

    /// Whether the client may never send what it owes: it was not told to go on.
    pub(super) fn is_waited_for(&self) -> bool {
        self.expects_continue
    }

    /// While nothing else is to be done: sends what waits, and looks whether the client is still
    /// there. Ready: it is not.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(error);
        }
        // What is owed is read by whoever holds the body; the next request waits.
        while self.is_paid() && self.stream.held().is_empty() {
            match ready!(self.stream.poll_more(cx)) {
                Ok(0) => return Poll::Ready(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }

    /// Sends what waits.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_send(cx, &mut self.stream)
    }

    /// Drops what is left of a body that nobody reads, if it is little and there. False: the
    /// connection can't be used again.
    pub(super) fn pay(&mut self, cx: &mut Context<'_>, limits: &Limits) -> bool {
        let mut dropped = 0;
        while !self.is_paid() && !self.expects_continue && dropped < DROPPED_BYTES_MAX {
            match self.poll_piece(cx, limits) {
                Poll::Ready(Some(Ok(piece))) => dropped += piece.len(),
                Poll::Ready(None) => {}
                Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
            }
        }
        self.is_paid()
    }

    /// The next piece of the request's body.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
    ) -> Poll<Option<io::Result<Bytes>>> {
        let piece = match &mut self.owed {
            Owed::Nothing => return Poll::Ready(None),
            Owed::Unknown => Err(io::ErrorKind::InvalidData.into()),
            Owed::Length(left) => {
                let piece = ready!(poll_bytes(&mut self.stream, cx, *left));
                if let Ok(piece) = &piece {
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.owed = Owed::Nothing;
                    }
                }
                piece
            }
            Owed::Chunks(chunks) => {
                let piece = ready!(poll_content(&mut self.stream, cx, chunks, limits));
                if let Ok(None) = piece {
                    self.owed = Owed::Nothing;
                    return Poll::Ready(None);
                }
                piece.map(Option::unwrap_or_default)
            }
        };
        if piece.is_err() {
            self.owed = Owed::Unknown;
        }
        Poll::Ready(Some(piece))
    }
}

/// At most `left` bytes, at least one.
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
    match ready!(stream.poll_read_past(cx, &mut piece))? {
        0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        _ => Poll::Ready(Ok(piece.into_inner().freeze())),
    }
}

/// The content of the next chunk, as much of it as is there; `None` at the end.
fn poll_content<T: ClientSocket>(
    stream: &mut ClientStream<T>,
    cx: &mut Context<'_>,
    chunks: &mut Chunks,
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
            Decoded::Wrong => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Decoded::More => stream.take(held.len()),
        }
        if ready!(stream.poll_more(cx))? == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// A request's body, read from the line by whoever holds it.
pub(super) struct RequestBody<T: ClientSocket> {
    line: Rc<RefCell<Line<T>>>,
    limits: std::sync::Arc<Limits>,
    number: u64,
}

impl<T: ClientSocket> RequestBody<T> {
    pub(super) fn new(
        line: Rc<RefCell<Line<T>>>,
        limits: std::sync::Arc<Limits>,
        number: u64,
    ) -> Self {
        Self { line, limits, number }
    }
}

impl<T: ClientSocket> BodySource for RequestBody<T> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let line = &mut *self.line.borrow_mut();
        if line.number != self.number {
            return Poll::Ready(Some(Err(broken(io::ErrorKind::NotConnected.into()))));
        }
        if std::mem::take(&mut line.expects_continue) {
            line.out.push(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if let Err(error) = ready!(line.poll_send(cx)) {
            return Poll::Ready(Some(Err(broken(error))));
        }
        let piece = line.poll_piece(cx, &self.limits);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(broken)))
    }

    fn is_end_stream(&self) -> bool {
        let line = self.line.borrow();
        line.number == self.number && line.is_paid()
    }

    fn exact_length(&self) -> Option<u64> {
        match self.line.borrow() {
            line if line.number != self.number => None,
            line => match line.owed {
                Owed::Nothing => Some(0),
                Owed::Length(left) => Some(left),
                Owed::Chunks(_) | Owed::Unknown => None,
            },
        }
    }
}

fn broken(error: io::Error) -> BodyError {
    BodyError::caused_by("the request body ended early", error)
}

/// What is read of a body at once.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// More than that of a body that nobody wants is not worth a connection.
const DROPPED_BYTES_MAX: usize = 256 << 10;
