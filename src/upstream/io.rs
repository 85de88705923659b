//! One connection to an origin as bytes: plain or TLS, with what went over it counted, and
//! with its place in the origin's limit.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::metrics::{Metric, Recorder};

/// The bytes of a connection.
pub(super) struct Io {
    stream: Stream,
    traffic: Rc<Traffic>,
    _place: Place,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What has gone over a connection so far, in bytes. It tells whether an origin can have
/// seen a request, and whether it began to answer.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) read: Cell<u64>,
    pub(super) written: Cell<u64>,
    /// Present while a head is awaited: how far `read` may go until it is there. hyper passes
    /// over interim responses for as long as they come, without a pause.
    pub(super) head_end: Cell<Option<u64>>,
}

/// One connection's place in its origin's limit, given back on drop.
pub(super) struct Place {
    taken: Arc<AtomicUsize>,
    recorder: Recorder,
}

impl Place {
    /// `None` when `limit` connections are open.
    pub(super) fn take(
        taken: &Arc<AtomicUsize>,
        limit: usize,
        recorder: &Recorder,
    ) -> Option<Self> {
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < limit).then_some(open + 1)
            })
            .ok()?;
        recorder.add(Metric::UpstreamConnections, 1);
        Some(Self { taken: taken.clone(), recorder: recorder.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.recorder.subtract(Metric::UpstreamConnections, 1);
    }
}

impl Io {
    pub(super) fn plain(stream: TcpStream, place: Place) -> Self {
        Self { stream: Stream::Plain(stream), traffic: Rc::default(), _place: place }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, place: Place) -> Self {
        Self { stream: Stream::Tls(Box::new(stream)), traffic: Rc::default(), _place: place }
    }

    pub(super) fn traffic(&self) -> Rc<Traffic> {
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
        };
        let bytes = buffer.filled().len() - before;
        let total = self.traffic.read.get() + bytes as u64;
        self.traffic.read.set(total);
        if self.traffic.head_end.get().is_some_and(|end| total > end) {
            return Poll::Ready(Err(io::Error::other("interim responses without end")));
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
        };
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
