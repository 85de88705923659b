//! Writes responses as bytes (RFC 9112 §4 to §7), into the queue of bytes to send.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use tokio::io::AsyncWrite;

use crate::fields::{FieldLines, Fields, Known, number};

use super::super::buffers;
use super::super::client_stream::ClientStream;
use super::super::socket::ClientSocket;

/// Bytes to send: a buffer, then a piece of a body, then the end of its chunk.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    /// A buffer of [`buffers`], unless it is empty.
    bytes: Vec<u8>,
    sent: usize,
    piece: Bytes,
    after: &'static [u8],
    /// Whether the stream may still hold sent bytes: TLS records for which the socket had no room.
    unflushed: bool,
}

impl SendQueue {
    /// Appends bytes. The queue must not have a piece of a body.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(self.piece.is_empty(), "the piece comes first");
        buffers::hold(&mut self.bytes).extend_from_slice(bytes);
    }

    /// Appends a piece of a body as a chunk of its own.
    pub(super) fn push_chunk(&mut self, piece: Bytes) {
        self.push(format!("{:x}\r\n", piece.len()).as_bytes());
        self.push_with_end(piece, b"\r\n");
    }

    /// Appends a piece of a body.
    pub(super) fn push_piece(&mut self, piece: Bytes) {
        self.push_with_end(piece, b"");
    }

    /// Appends a piece and `after`. A small piece is copied into the buffer, which is cheaper than a vectored write.
    fn push_with_end(&mut self, piece: Bytes, after: &'static [u8]) {
        if self.bytes.len() + piece.len() <= JOINED_BYTES_MAX {
            self.push(&piece);
            self.push(after);
        } else {
            (self.piece, self.after) = (piece, after);
        }
    }

    /// Whether a piece of a body may be appended.
    pub(super) fn has_room(&self) -> bool {
        self.piece.is_empty() && self.after.is_empty() && self.bytes.len() < JOINED_BYTES_MAX
    }

    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.piece.is_empty() && self.after.is_empty()
    }

    /// Sends everything. Pending: the socket has no room.
    pub(super) fn poll_send<T: ClientSocket>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut ClientStream<T>,
    ) -> Poll<io::Result<()>> {
        if self.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        let mut stream = Pin::new(stream);
        while !self.is_empty() {
            self.unflushed = true;
            let head = &self.bytes[self.sent..];
            let written = if self.piece.is_empty() && self.after.is_empty() {
                stream.as_mut().poll_write(cx, head)
            } else {
                let slices = [head, &self.piece, self.after].map(io::IoSlice::new);
                stream.as_mut().poll_write_vectored(cx, &slices)
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.advance(written),
            }
        }
        ready!(stream.poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, written: usize) {
        let head = written.min(self.bytes.len() - self.sent);
        self.sent += head;
        if self.sent == self.bytes.len() {
            buffers::release(&mut self.bytes);
            self.sent = 0;
        }
        let piece = (written - head).min(self.piece.len());
        bytes::Buf::advance(&mut self.piece, piece);
        self.after = &self.after[written - head - piece..];
    }
}

/// The facts of a request that decide how its response is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestFacts {
    pub(super) is_head: bool,
    pub(super) is_connect: bool,
    pub(super) version: Version,
    pub(super) takes_trailers: bool,
}

impl RequestFacts {
    pub(super) fn of(method: &Method, version: Version, takes_trailers: bool) -> Self {
        Self {
            is_head: *method == Method::HEAD,
            is_connect: *method == Method::CONNECT,
            version,
            takes_trailers,
        }
    }
}

/// How a response's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFraming {
    /// No body is sent.
    Nothing,
    /// This many bytes of the announced length are still to be sent.
    Length(u64),
    /// Chunks.
    Chunked,
    /// The end of the connection ends the body: for HTTP/1.0.
    Close,
    /// The bytes that follow are not HTTP.
    Upgrade,
}

/// The head of a final response.
pub(super) struct ResponseHead<'a> {
    status: StatusCode,
    fields: &'a FieldLines,
    /// `Content-Length`, if it is valid.
    length: Option<u64>,
    /// Whether it has `Connection: close`.
    pub(super) closes: bool,
}

impl<'a> ResponseHead<'a> {
    pub(super) fn of(status: StatusCode, fields: &'a FieldLines) -> Self {
        let length = fields.last(Known::ContentLength).and_then(number);
        let closes = fields.has(Known::Connection)
            && fields.lines(&CONNECTION).any(|option| option.eq_ignore_ascii_case(b"close"));
        Self { status, fields, length, closes }
    }

    /// Writes the head of a response whose body has `length` bytes, if that is known. `keep_alive` says
    /// whether the connection may be used again; [`ResponseFraming::Close`] overrides it.
    pub(super) fn write(
        &self,
        queue: &mut SendQueue,
        length: Option<u64>,
        request: RequestFacts,
        keep_alive: bool,
        date: &HeaderValue,
    ) -> ResponseFraming {
        let bytes = buffers::hold(&mut queue.bytes);
        status_line(bytes, self.status);
        let framing = self.framing(length, request);
        let has_length = self.has_length(framing, request);
        let sends_upgrade =
            framing == ResponseFraming::Upgrade || self.status == StatusCode::UPGRADE_REQUIRED;
        let has_upgrade = sends_upgrade && self.fields.has(Known::Upgrade);
        for line in self.fields.walk() {
            let is_sent = match line.known() {
                Known::TransferEncoding => false,
                Known::ContentLength => has_length,
                Known::Connection => false,
                Known::Upgrade => sends_upgrade,
                _ => true,
            };
            if is_sent {
                line.write(bytes);
            }
        }
        if !self.fields.has(Known::Date) {
            field(bytes, b"date", date.as_bytes());
        }
        match framing {
            ResponseFraming::Chunked => bytes.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            ResponseFraming::Length(length) if self.length.is_none() => {
                field(bytes, b"content-length", itoa::Buffer::new().format(length).as_bytes());
            }
            _ => {}
        }
        match (framing, keep_alive) {
            // A sender of `Upgrade` must list it in `Connection` (RFC 9110 §7.8).
            (ResponseFraming::Upgrade, _) => field(bytes, b"connection", b"upgrade"),
            (ResponseFraming::Close, _) | (_, false) if has_upgrade => {
                field(bytes, b"connection", b"close, upgrade");
            }
            _ if has_upgrade => field(bytes, b"connection", b"upgrade"),
            (ResponseFraming::Close, _) | (_, false) => {
                bytes.extend_from_slice(b"connection: close\r\n")
            }
            _ if request.version == Version::HTTP_10 => {
                bytes.extend_from_slice(b"connection: keep-alive\r\n");
            }
            _ => {}
        }
        bytes.extend_from_slice(b"\r\n");
        framing
    }

    /// RFC 9112 §6.3.
    fn framing(&self, length: Option<u64>, request: RequestFacts) -> ResponseFraming {
        let status = self.status;
        if status == StatusCode::SWITCHING_PROTOCOLS || request.is_connect && status.is_success() {
            return ResponseFraming::Upgrade;
        }
        if request.is_head || !has_content(status) {
            return ResponseFraming::Nothing;
        }
        match self.length.or(length) {
            Some(length) => ResponseFraming::Length(length),
            None if request.version == Version::HTTP_11 => ResponseFraming::Chunked,
            None => ResponseFraming::Close,
        }
    }

    /// Whether `Content-Length` is sent. Responses to HEAD and 304 have the length of a body that is not
    /// sent (RFC 9110 §8.6).
    fn has_length(&self, framing: ResponseFraming, request: RequestFacts) -> bool {
        match framing {
            ResponseFraming::Length(_) => true,
            ResponseFraming::Nothing => {
                self.status == StatusCode::NOT_MODIFIED
                    || request.is_head && has_content(self.status)
            }
            ResponseFraming::Chunked | ResponseFraming::Close | ResponseFraming::Upgrade => false,
        }
    }
}

/// An interim response (RFC 9110 §15.2).
pub(super) fn interim(queue: &mut SendQueue, response: &Response<()>) {
    let bytes = buffers::hold(&mut queue.bytes);
    status_line(bytes, response.status());
    for (name, value) in response.headers() {
        field(bytes, name.as_str().as_bytes(), value.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
}

/// Writes the last chunk and the trailers.
pub(super) fn last_chunk(queue: &mut SendQueue, trailers: Option<&HeaderMap>) {
    let bytes = buffers::hold(&mut queue.bytes);
    bytes.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        field(bytes, name.as_str().as_bytes(), value.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
}

fn status_line(bytes: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        return bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or(""), "\r\n"]
    {
        bytes.extend_from_slice(part.as_bytes());
    }
}

fn field(bytes: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        bytes.extend_from_slice(part);
    }
}

fn has_content(status: StatusCode) -> bool {
    !status.is_informational()
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

/// Up to this length, head and body are sent from one buffer.
const JOINED_BYTES_MAX: usize = 4 << 10;
