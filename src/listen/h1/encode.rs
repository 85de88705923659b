//! Responses → bytes (RFC 9112 §4 to §7).

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

/// What waits to be sent: bytes, then a piece of a body, then what follows it.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// One of [`buffers`], if there are any.
    bytes: Vec<u8>,
    sent: usize,
    piece: Bytes,
    after: &'static [u8],
    /// Whether the stream may hold some of what was sent: TLS records that the client's socket did not take.
    unflushed: bool,
}

impl Out {
    /// Puts bytes behind those that wait. Not behind a piece of a body.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(self.piece.is_empty(), "the piece would be overtaken");
        buffers::hold(&mut self.bytes).extend_from_slice(bytes);
    }

    /// Puts a piece of a body behind them, in a chunk of its own if need be. Small ones are copied: that is
    /// cheaper than to describe to the kernel where they are.
    pub(super) fn push_piece(&mut self, piece: Bytes, chunked: bool) {
        if chunked {
            self.push(format!("{:x}\r\n", piece.len()).as_bytes());
        }
        let after: &[u8] = if chunked { b"\r\n" } else { b"" };
        if self.bytes.len() + piece.len() <= JOINED_BYTES_MAX {
            self.push(&piece);
            self.push(after);
        } else {
            (self.piece, self.after) = (piece, after);
        }
    }

    /// Whether a piece of a body may be put behind what waits.
    pub(super) fn has_room(&self) -> bool {
        self.piece.is_empty() && self.after.is_empty() && self.bytes.len() < JOINED_BYTES_MAX
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.piece.is_empty() && self.after.is_empty()
    }

    /// Sends all of it. Pending: the client takes no more at present.
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

/// What the request says about its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) is_head: bool,
    pub(super) is_connect: bool,
    pub(super) version: Version,
    pub(super) takes_trailers: bool,
}

impl Asked {
    pub(super) fn of(method: &Method, version: Version, takes_trailers: bool) -> Self {
        Self {
            is_head: *method == Method::HEAD,
            is_connect: *method == Method::CONNECT,
            version,
            takes_trailers,
        }
    }
}

/// How an answer's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// None is sent.
    Nothing,
    /// So many bytes are left of what was promised.
    Length(u64),
    /// Chunks.
    Chunked,
    /// It ends with the connection: for HTTP/1.0.
    Close,
    /// Other bytes than HTTP follow.
    Upgrade,
}

/// The head of a final response.
pub(super) struct ResponseHead<'a> {
    status: StatusCode,
    fields: &'a FieldLines,
    /// `Content-Length`, if it is one.
    length: Option<u64>,
    /// Whether it says that the connection is to be closed.
    pub(super) closes: bool,
}

impl<'a> ResponseHead<'a> {
    pub(super) fn of(status: StatusCode, fields: &'a FieldLines) -> Self {
        let length = fields.last(Known::ContentLength).and_then(number);
        let closes = fields.has(Known::Connection)
            && fields.lines(&CONNECTION).any(|option| option.eq_ignore_ascii_case(b"close"));
        Self { status, fields, length, closes }
    }

    /// Writes it, before a body that is `length` bytes long, if that is known. `keep_alive` is
    /// whether the connection is to be used again; what is returned may forbid it.
    pub(super) fn write(
        &self,
        out: &mut Out,
        length: Option<u64>,
        asked: Asked,
        keep_alive: bool,
        date: &HeaderValue,
    ) -> Outgoing {
        let bytes = buffers::hold(&mut out.bytes);
        status_line(bytes, self.status);
        let outgoing = self.framing(length, asked);
        let says_length = self.says_length(outgoing, asked);
        let says_upgrade =
            outgoing == Outgoing::Upgrade || self.status == StatusCode::UPGRADE_REQUIRED;
        let has_upgrade = says_upgrade && self.fields.has(Known::Upgrade);
        for line in self.fields.walk() {
            let is_sent = match line.known() {
                Known::TransferEncoding => false,
                Known::ContentLength => says_length,
                Known::Connection => false,
                Known::Upgrade => says_upgrade,
                _ => true,
            };
            if is_sent {
                line.write(bytes);
            }
        }
        if !self.fields.has(Known::Date) {
            field(bytes, b"date", date.as_bytes());
        }
        match outgoing {
            Outgoing::Chunked => bytes.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Outgoing::Length(length) if self.length.is_none() => {
                field(bytes, b"content-length", itoa::Buffer::new().format(length).as_bytes());
            }
            _ => {}
        }
        match (outgoing, keep_alive) {
            // Whoever sends `Upgrade` names it here (RFC 9110 §7.8).
            (Outgoing::Upgrade, _) => field(bytes, b"connection", b"upgrade"),
            (Outgoing::Close, _) | (_, false) if has_upgrade => {
                field(bytes, b"connection", b"close, upgrade");
            }
            _ if has_upgrade => field(bytes, b"connection", b"upgrade"),
            (Outgoing::Close, _) | (_, false) => bytes.extend_from_slice(b"connection: close\r\n"),
            _ if asked.version == Version::HTTP_10 => {
                bytes.extend_from_slice(b"connection: keep-alive\r\n");
            }
            _ => {}
        }
        bytes.extend_from_slice(b"\r\n");
        outgoing
    }

    /// RFC 9112 §6.3.
    fn framing(&self, length: Option<u64>, asked: Asked) -> Outgoing {
        let status = self.status;
        if status == StatusCode::SWITCHING_PROTOCOLS || asked.is_connect && status.is_success() {
            return Outgoing::Upgrade;
        }
        if asked.is_head || !has_content(status) {
            return Outgoing::Nothing;
        }
        match self.length.or(length) {
            Some(length) => Outgoing::Length(length),
            None if asked.version == Version::HTTP_11 => Outgoing::Chunked,
            None => Outgoing::Close,
        }
    }

    /// Whether its `Content-Length` is true on the wire: HEAD and 304 tell the length of what
    /// they do not send (RFC 9110 §8.6).
    fn says_length(&self, outgoing: Outgoing, asked: Asked) -> bool {
        match outgoing {
            Outgoing::Length(_) => true,
            Outgoing::Nothing => {
                self.status == StatusCode::NOT_MODIFIED || asked.is_head && has_content(self.status)
            }
            Outgoing::Chunked | Outgoing::Close | Outgoing::Upgrade => false,
        }
    }
}

/// An interim response (RFC 9110 §15.2).
pub(super) fn interim(out: &mut Out, response: &Response<()>) {
    let bytes = buffers::hold(&mut out.bytes);
    status_line(bytes, response.status());
    for (name, value) in response.headers() {
        field(bytes, name.as_str().as_bytes(), value.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
}

/// What ends a chunked body.
pub(super) fn last_chunk(out: &mut Out, trailers: Option<&HeaderMap>) {
    let bytes = buffers::hold(&mut out.bytes);
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

/// Head and body of a small answer.
const JOINED_BYTES_MAX: usize = 4 << 10;
