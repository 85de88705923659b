//! The byte stream to one client, for HTTP/1 and HTTP/2.
//!
//! The stream counts bytes and notices blocked writes (see [`super::state`]), holds bytes that were read ahead,
//! yields to other connections while it writes much, and after its shutdown reads and drops for a moment
//! what the client still sends.

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::buffers;
use super::socket::{ClientSocket, LEFT_BYTES_MAX};
use super::state::{Activity, Phase};

/// The byte stream to one client.
#[derive(Debug)]
pub(super) struct ClientStream<T: ClientSocket> {
    inner: T,
    activity: Arc<Activity>,
    /// Bytes that were read ahead. A buffer of [`buffers`], unless it is empty.
    held: Vec<u8>,
    /// How many of the held bytes are used.
    taken: usize,
    /// Bytes read and dropped after the shutdown.
    dropped: usize,
    is_shut: bool,
    /// Bytes written since the stream last yielded to other connections.
    turn_bytes: usize,
    /// Dropped with the stream: see [`ClientStream::dropped`].
    until_dropped: Option<oneshot::Sender<Infallible>>,
}

/// The protocol that the first bytes of a connection show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstBytes {
    /// No bytes: the client has closed.
    None,
    /// The first line of HTTP/2's connection preface.
    Http2,
    /// Anything else, for the HTTP/1 parser.
    Http1,
}

impl<T: ClientSocket> ClientStream<T> {
    pub(super) fn new(inner: T, activity: Arc<Activity>) -> Self {
        Self {
            inner,
            activity,
            held: Vec::new(),
            taken: 0,
            dropped: 0,
            is_shut: false,
            turn_bytes: 0,
            until_dropped: None,
        }
    }

    /// Ready once the stream is dropped. To be called once, before the stream is given away.
    pub(super) fn dropped(&mut self) -> impl Future<Output = ()> + use<T> {
        let (until_dropped, dropped) = oneshot::channel();
        self.until_dropped = Some(until_dropped);
        async move { _ = dropped.await }
    }

    /// Reads until the bytes tell which version of HTTP the client speaks, and holds them.
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

    /// The bytes that were read ahead and not used.
    pub(super) fn held(&self) -> &[u8] {
        &self.held[self.taken..]
    }

    /// Marks `length` of the held bytes as used.
    pub(super) fn take(&mut self, length: usize) {
        self.taken += length;
        self.release_if_empty();
    }

    /// Returns the buffer if it holds no bytes.
    fn release_if_empty(&mut self) {
        if self.taken == self.held.len() {
            buffers::release(&mut self.held);
            self.taken = 0;
        }
    }

    /// Reads ahead: the bytes are held. Zero at the end of the client's bytes.
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
        self.release_if_empty();
        let read = ready!(read)?;
        self.activity.add_received(read);
        Poll::Ready(Ok(read))
    }

    /// Reads into `buffer`. No bytes may be held.
    pub(super) fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut impl bytes::BufMut,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.held().is_empty(), "held bytes come first");
        let read = ready!(pin!(self.inner.read_buf(buffer)).poll(cx))?;
        self.activity.add_received(read);
        Poll::Ready(Ok(read))
    }

    /// Makes the close, which follows, a reset.
    pub(super) fn abort(&self) {
        self.inner.abort();
    }

    /// Bytes sent that the client has not acknowledged. A system call.
    pub(super) fn unacknowledged(&self) -> usize {
        self.inner.unacknowledged()
    }

    /// Writes, but yields to other connections after [`TURN_BYTES_MAX`].
    fn poll_in_turn(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.turn_bytes >= TURN_BYTES_MAX {
            self.turn_bytes = 0;
            // Wakes this task after the worker has polled the other sockets.
            _ = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        let written = write(Pin::new(&mut self.inner), cx);
        match &written {
            Poll::Ready(Ok(bytes)) => {
                self.turn_bytes += bytes;
                self.activity.add_sent(*bytes);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                self.turn_bytes = 0;
                self.activity.set_write_blocked(true);
            }
        }
        written
    }

    /// Reads and drops what the client still sends, up to [`DROPPED_BYTES_MAX`]. At the end of that, a client that has many bytes to
    /// take yet keeps the connection open; the worker's check ends it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.dropped < DROPPED_BYTES_MAX {
            let mut space = [MaybeUninit::uninit(); 8 << 10];
            let mut buffer = ReadBuf::uninit(&mut space);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    let before = self.dropped / EXTENDING_BYTES;
                    self.dropped += buffer.filled().len();
                    if self.dropped / EXTENDING_BYTES > before {
                        self.activity.restart_phase();
                    }
                }
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
        this.activity.add_received(buffer.filled().len() - before);
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
            Poll::Ready(_) => this.activity.set_write_blocked(false),
            Poll::Pending => this.activity.set_write_blocked(true),
        }
        flushed
    }

    /// In [`Phase::Lingering`], reads and drops what the client still sends, up to its end. A connection
    /// whose client has many bytes to take enters that phase here, except after an upgrade: the bytes
    /// that follow are not HTTP.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_shut {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            this.is_shut = true;
            let is_http = !this.activity.is(Phase::Upgraded) && !this.activity.is(Phase::Lingering);
            if is_http && this.inner.unacknowledged() > LEFT_BYTES_MAX {
                this.activity.enter(Phase::Lingering);
            }
        }
        if this.activity.is(Phase::Lingering) { this.poll_linger(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<T: ClientSocket> Drop for ClientStream<T> {
    /// Leaves at most [`LEFT_BYTES_MAX`] bytes in the kernel.
    fn drop(&mut self) {
        if self.inner.unacknowledged() <= LEFT_BYTES_MAX {
            return;
        }
        // Whether a message of another protocol is complete, only the client knows.
        match self.activity.is(Phase::Upgraded) {
            true => self.inner.limit_delivery(DELIVERY_TIMEOUT),
            false => self.inner.abort(),
        }
    }
}

/// Decides at the first byte that differs. No other protocol has a method `PRI` (RFC 9113 §3.4).
fn protocol(bytes: &[u8]) -> Option<FirstBytes> {
    let alike = bytes.iter().zip(PREFACE).take_while(|(one, other)| one == other).count();
    match bytes.len() {
        _ if alike == PREFACE.len() => Some(FirstBytes::Http2),
        length if alike == length => None,
        _ => Some(FirstBytes::Http1),
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Room in the buffer at each read.
const READ_BYTES_MIN: usize = 1 << 10;
/// At this many dropped bytes, the connection is closed while the client still sends. Many clients read the response
/// only after they have sent the whole request.
const DROPPED_BYTES_MAX: usize = 64 << 20;
/// So many dropped bytes start the time limit of [`Phase::Lingering`] anew: a client that sends slower than this in
/// two seconds is not waited for.
const EXTENDING_BYTES: usize = 64 << 10;
/// Bytes that a connection writes before it yields: about 50 µs of copying.
const TURN_BYTES_MAX: usize = 256 << 10;
/// After the end of an upgraded connection: how long the kernel waits for a client that takes nothing.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local};

    use super::super::settings::Limits;
    use super::super::state::ConnectionState;
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
            let state = ConnectionState::new(Arc::new(Limits::default()), Duration::ZERO);
            let mut stream = ClientStream::new(Endless, state.activity.clone());
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
