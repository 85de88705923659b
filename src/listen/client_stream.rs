//! The stream as HTTP/1 and h2 see it: counts bytes, says when a write is blocked, lets other
//! connections have their turn, holds what was read too early, and reads on for a moment after it was closed.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::buffers;
use super::session::{Phase, Wire};
use super::socket::{ClientSocket, LEFT_BYTES_MAX};

/// A byte stream between us and one client.
#[derive(Debug)]
pub(super) struct ClientStream<T: ClientSocket> {
    inner: T,
    wire: Arc<Wire>,
    /// Read, but not used yet. One of [`buffers`], if there is any.
    held: Vec<u8>,
    /// How many of the held bytes were used.
    taken: usize,
    /// Bytes dropped after the shutdown.
    lingered: usize,
    is_shut: bool,
    /// Bytes written since another connection could have had its turn.
    turn_bytes: usize,
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

impl<T: ClientSocket> ClientStream<T> {
    pub(super) fn new(inner: T, wire: Arc<Wire>) -> Self {
        Self { inner, wire, held: Vec::new(), taken: 0, lingered: 0, is_shut: false, turn_bytes: 0 }
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
            buffers::release(&mut self.held);
            self.taken = 0;
        }
    }

    /// Reads what there is and holds it. Zero: the client sends no more.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.taken > 0 {
            self.held.drain(..self.taken);
            self.taken = 0;
        }
        let held = buffers::hold(&mut self.held);
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

    /// Makes the coming close a reset.
    pub(super) fn abort(&self) {
        self.inner.abort();
    }

    /// Bytes that the client's system has not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.inner.unacknowledged()
    }

    /// Writes, unless it is the turn of other connections.
    fn poll_in_turn(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.turn_bytes >= TURN_BYTES_MAX {
            self.turn_bytes = 0;
            // Wakes this task once the worker has looked for what has come on other sockets.
            _ = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        let written = write(Pin::new(&mut self.inner), cx);
        match &written {
            Poll::Ready(Ok(bytes)) => {
                self.turn_bytes += bytes;
                self.wire.sent(*bytes);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                self.turn_bytes = 0;
                self.wire.write_blocked();
            }
        }
        written
    }

    /// Drops what the client still sends. An end of that is no end for a client that has much to take yet:
    /// the sweep looks at it again.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.lingered < LINGER_BYTES_MAX {
            let mut space = [MaybeUninit::uninit(); 8 << 10];
            let mut buffer = ReadBuf::uninit(&mut space);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.lingered += buffer.filled().len(),
                Ok(()) if self.inner.unacknowledged() > LEFT_BYTES_MAX => return Poll::Pending,
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: ClientSocket> AsyncRead for ClientStream<T> {
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

impl<T: ClientSocket> AsyncWrite for ClientStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_in_turn(cx, |inner, cx| inner.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_in_turn(cx, |inner, cx| inner.poll_write_vectored(cx, slices))
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

    /// In [`Phase::Lingering`], what the client still sends is read and dropped until it ends. A client that
    /// has much to take yet enters that phase here. After an upgrade, the client's bytes are not ours to drop.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_shut {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            this.is_shut = true;
            let is_http = !this.wire.is(Phase::Upgraded) && !this.wire.is(Phase::Lingering);
            if is_http && this.inner.unacknowledged() > LEFT_BYTES_MAX {
                this.wire.enter(Phase::Lingering);
            }
        }
        if this.wire.is(Phase::Lingering) { this.poll_linger(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<T: ClientSocket> Drop for ClientStream<T> {
    /// Leaves little to the kernel, or nothing.
    fn drop(&mut self) {
        if self.inner.unacknowledged() <= LEFT_BYTES_MAX {
            return;
        }
        // Whether the end of other protocols has been said in full, only the client can tell.
        match self.wire.is(Phase::Upgraded) {
            true => self.inner.limit_delivery(DELIVERY_PATIENCE),
            false => self.inner.abort(),
        }
    }
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
/// What one connection may write before others have their turn: some 50 µs of copying.
const TURN_BYTES_MAX: usize = 256 << 10;
/// For how long the rest of an upgraded connection may wait for a client that takes nothing.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local};

    use super::super::session::Session;
    use super::super::settings::Limits;
    use super::*;

    /// Takes whatever it is given, and sends nothing.
    struct Endless;

    impl AsyncRead for Endless {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl ClientSocket for Endless {
        fn abort(&self) {}

        fn unacknowledged(&self) -> usize {
            0
        }

        fn limit_delivery(&self, _: Duration) {}
    }

    #[tokio::test]
    async fn a_client_that_takes_all_does_not_keep_others_from_their_turn() {
        let test = async {
            let session = Session::new(Arc::new(Limits::default()), Duration::ZERO);
            let mut stream = ClientStream::new(Endless, session.wire.clone());
            let written = Rc::new(Cell::new(0));
            let other = spawn_local({
                let written = written.clone();
                async move { written.get() }
            });
            let piece = [0; 64 << 10];
            while written.get() < 4 * TURN_BYTES_MAX {
                let now = poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, &piece));
                written.set(written.get() + now.await.expect("it takes all"));
            }
            other.await.expect("it ran")
        };
        assert_eq!(LocalSet::new().run_until(test).await, TURN_BYTES_MAX);
    }

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
