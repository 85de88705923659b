//! The transport as HTTP/1 and h2 see it: counts bytes, says when a write is blocked, holds what
//! was read too early, and reads on for a moment after it was closed.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::session::{Phase, Wire};
use super::spare;

/// What a connection can be ended with besides a close in good order.
pub(super) trait Abort {
    /// Has the coming close be a reset.
    fn abort(&self);
}

impl Abort for TcpStream {
    fn abort(&self) {
        _ = self.set_zero_linger();
    }
}

impl Abort for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}

/// A byte stream between us and one client.
#[derive(Debug)]
pub(super) struct Transport<T> {
    inner: T,
    wire: Arc<Wire>,
    /// Read, but not used yet. A [`spare`] buffer, if there is any.
    held: Vec<u8>,
    /// How many of the held bytes were used.
    taken: usize,
    /// Bytes dropped after the shutdown.
    lingered: usize,
    is_shut: bool,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstBytes {
    /// Nothing: the client went away.
    None,
    /// The preface of HTTP/2, or as much of it as makes anything else impossible.
    Http2,
    /// Anything else is for the HTTP/1 parser.
    Http1,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Transport<T> {
    pub(super) fn new(inner: T, wire: Arc<Wire>) -> Self {
        Self { inner, wire, held: Vec::new(), taken: 0, lingered: 0, is_shut: false }
    }

    /// Reads until it is clear what the client speaks. Nothing is lost: what was read is held.
    pub(super) async fn first_bytes(&mut self) -> io::Result<FirstBytes> {
        std::future::poll_fn(|cx| {
            loop {
                match protocol(self.held()) {
                    Some(protocol) => return Poll::Ready(Ok(protocol)),
                    None if ready!(self.poll_more(cx))? == 0 => {
                        return Poll::Ready(Ok(FirstBytes::None));
                    }
                    None => {}
                }
            }
        })
        .await
    }

    /// What was read and not used.
    pub(super) fn held(&self) -> &[u8] {
        &self.held[self.taken..]
    }

    /// So many of the held bytes are used.
    pub(super) fn take(&mut self, length: usize) {
        self.taken += length;
        self.give_back();
    }

    /// Who holds no bytes holds no buffer.
    fn give_back(&mut self) {
        if self.taken == self.held.len() {
            spare::release(&mut self.held);
            self.taken = 0;
        }
    }

    /// Reads what there is and holds it. Zero: the client sends no more.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.taken > 0 {
            self.held.drain(..self.taken);
            self.taken = 0;
        }
        let held = spare::hold(&mut self.held);
        if held.capacity() - held.len() < READ_BYTES_MIN {
            held.reserve(held.len().max(READ_BYTES_MIN));
        }
        let read = pin!(self.inner.read_buf(held)).poll(cx);
        self.give_back();
        let read = ready!(read)?;
        self.wire.received(read);
        Poll::Ready(Ok(read))
    }

    /// Reads into `buffer`, past what is held, which must be nothing.
    pub(super) fn poll_read_past(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut impl bytes::BufMut,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.held().is_empty(), "bytes would be overtaken");
        let read = ready!(pin!(self.inner.read_buf(buffer)).poll(cx))?;
        self.wire.received(read);
        Poll::Ready(Ok(read))
    }

    /// Has the coming close be a reset.
    pub(super) fn abort(&self)
    where
        T: Abort,
    {
        self.inner.abort();
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.lingered < LINGER_BYTES_MAX {
            let mut space = [MaybeUninit::uninit(); 8 << 10];
            let mut buffer = ReadBuf::uninit(&mut space);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.lingered += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let length = this.held().len().min(buffer.remaining());
        if length > 0 {
            buffer.put_slice(&this.held()[..length]);
            this.take(length);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        this.wire.received(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        note(&this.wire, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        note(&this.wire, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        match flushed {
            Poll::Ready(_) => this.wire.write_went_on(),
            Poll::Pending => this.wire.write_blocked(),
        }
        flushed
    }

    /// In [`Phase::Lingering`], what the client still sends is read and dropped until it ends.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_shut {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            this.is_shut = true;
        }
        if this.wire.is(Phase::Lingering) { this.poll_linger(cx) } else { Poll::Ready(Ok(())) }
    }
}

fn note(wire: &Wire, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    match &written {
        Poll::Ready(Ok(bytes)) => wire.sent(*bytes),
        Poll::Ready(Err(_)) => {}
        Poll::Pending => wire.write_blocked(),
    }
    written
}

/// Told as soon as it can be: `PRI` is a method of nobody else (RFC 9113 §3.4).
fn protocol(bytes: &[u8]) -> Option<FirstBytes> {
    let alike = bytes.iter().zip(PREFACE).take_while(|(one, other)| one == other).count();
    match bytes.len() {
        _ if alike == PREFACE.len() => Some(FirstBytes::Http2),
        length if alike == length => None,
        _ => Some(FirstBytes::Http1),
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// There is room for so much whenever more is read.
const READ_BYTES_MIN: usize = 1 << 10;
/// More than that a client that was refused has to lose.
const LINGER_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_told_by_the_first_bytes_that_differ() {
        assert_eq!(protocol(b""), None);
        assert_eq!(protocol(b"PR"), None);
        assert_eq!(protocol(b"PUT / HTTP/1.1"), Some(FirstBytes::Http1));
        assert_eq!(protocol(b"G"), Some(FirstBytes::Http1));
        assert_eq!(protocol(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(FirstBytes::Http2));
        assert_eq!(protocol(b"PRI * HTTP/1.1\r\n"), Some(FirstBytes::Http1));
    }
}
