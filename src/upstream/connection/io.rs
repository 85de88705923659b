//! The byte stream of a connection to an origin: TCP, TLS or a Unix socket. Counts bytes, and holds a slot of the
//! origin's limit of connections.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::super::load::queue::Queue;
use super::super::pool::Pool;
use super::super::pool::members::Member;
use crate::metrics::{Metric, Recorder};

/// The bytes of a connection.
pub(in crate::upstream) struct Io {
    stream: Stream,
    traffic: Rc<Traffic>,
    _slot: Box<ConnectionSlot>,
}

/// The stream under a connection.
pub(in crate::upstream) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// Bytes read and written so far. They tell whether an origin can have received a request, and whether
/// its response has begun.
#[derive(Default)]
pub(in crate::upstream) struct Traffic {
    pub(in crate::upstream) read: Cell<u64>,
    pub(in crate::upstream) written: Cell<u64>,
    /// Present while a head is awaited: `read` may not exceed it. hyper would skip any number of
    /// interim responses.
    pub(in crate::upstream) head_end: Cell<Option<u64>>,
    /// Present while a response's first bytes are awaited: the position of its minor version.
    minor_version_at: Cell<Option<u64>>,
}

impl Traffic {
    /// Prepares for a response: its first byte is the next one read, and its head with all interim
    /// responses has at most `bytes_max` bytes.
    pub(in crate::upstream) fn await_head(&self, bytes_max: u64) {
        let read = self.read.get();
        self.head_end.set(Some(read + bytes_max));
        self.minor_version_at.set(Some(read + HTTP_1.len() as u64));
    }

    /// Reads a response of a higher minor version as HTTP/1.1, the highest that is known (RFC 9110
    /// §2.5); hyper refuses it. `bytes` have just come, the last of them is byte `total`. Only the
    /// first response to a request is looked at, be it an interim one.
    fn lower_minor_version(&self, bytes: &mut [u8], total: u64) {
        let Some(at) = self.minor_version_at.get().filter(|at| *at < total) else { return };
        self.minor_version_at.set(None);
        let at = (at + bytes.len() as u64 - total) as usize;
        // The bytes before it may have been read earlier.
        let before = &bytes[at.saturating_sub(HTTP_1.len())..at];
        if HTTP_1.ends_with(before) && matches!(bytes[at], b'2'..=b'9') {
            bytes[at] = b'1';
        }
    }
}

/// A slot of an origin's limit of connections. Dropping it frees the slot, and wakes the first request
/// that waits for one.
pub(in crate::upstream) struct ConnectionSlot {
    taken: Arc<AtomicUsize>,
    queue: Arc<Queue>,
    recorder: Recorder,
}

impl ConnectionSlot {
    /// `None` when the member has as many connections as the pool allows.
    pub(in crate::upstream) fn take(
        pool: &Pool,
        member: &Member,
        recorder: &Recorder,
    ) -> Option<Box<Self>> {
        let limit = pool.settings().connections_max;
        let more = |open: usize| (open < limit).then_some(open + 1);
        let taken = &member.connections;
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        recorder.add(Metric::UpstreamConnections, 1);
        let (taken, queue, recorder) = (taken.clone(), pool.queue.clone(), recorder.clone());
        Some(Box::new(Self { taken, queue, recorder }))
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.queue.wake_first();
        self.recorder.subtract(Metric::UpstreamConnections, 1);
    }
}

impl Io {
    pub(in crate::upstream) fn new(stream: Stream, slot: Box<ConnectionSlot>) -> Self {
        Self { stream, traffic: Rc::default(), _slot: slot }
    }

    pub(in crate::upstream) fn traffic(&self) -> Rc<Traffic> {
        self.traffic.clone()
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.traffic.written.set(self.traffic.written.get() + *bytes as u64);
        }
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        let bytes = &mut buffer.filled_mut()[before..];
        let total = self.traffic.read.get() + bytes.len() as u64;
        self.traffic.read.set(total);
        self.traffic.lower_minor_version(bytes, total);
        if self.traffic.head_end.get().is_some_and(|end| total > end) {
            return Poll::Ready(Err(io::Error::other(
                "too many bytes of interim responses before the response",
            )));
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        };
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The start of a response, up to its minor version.
const HTTP_1: &[u8] = b"HTTP/1.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_minor_version_is_lowered_however_it_comes_and_nothing_else_is() {
        let check = |pieces: &[&str], expected: &str| {
            let traffic = Traffic::default();
            traffic.read.set(100);
            traffic.await_head(1000);
            let mut all = Vec::new();
            for piece in pieces {
                let mut bytes = piece.as_bytes().to_vec();
                traffic.read.set(traffic.read.get() + bytes.len() as u64);
                traffic.lower_minor_version(&mut bytes, traffic.read.get());
                all.extend(bytes);
            }
            assert_eq!(String::from_utf8_lossy(&all), expected);
        };
        check(&["HTTP/1.2 200 OK"], "HTTP/1.1 200 OK");
        check(&["HTTP/1.", "9 200 OK"], "HTTP/1.1 200 OK");
        check(&["H", "TTP/1.2 200", " OK HTTP/1.2"], "HTTP/1.1 200 OK HTTP/1.2");
        check(&["HTTP/1.0 200 OK HTTP/1.2"], "HTTP/1.0 200 OK HTTP/1.2");
        check(&["ICY 2002 OK"], "ICY 2002 OK");
        check(&["short"], "short");
    }
}
