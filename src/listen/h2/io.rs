//! The stream as the h2 crate sees it: the frames that it reads are filtered, and its writes are coalesced.
//!
//! The h2 crate holds one DATA frame at a time and flushes before the next: sixteen replies of 1 KiB are
//! sixteen TLS records and sixteen system calls. Here its flush does nothing; the driver sends the
//! coalesced bytes when it has nothing more to add. The copy costs tens of nanoseconds, a system call
//! microseconds.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame_filter::FrameFilter;

/// A stream whose reads are filtered and whose writes are coalesced. The h2 crate and the driver share it.
pub(super) struct Http2Io<T>(Rc<RefCell<Shared<T>>>);

struct Shared<T> {
    inner: T,
    filter: FrameFilter,
    /// Coalesced writes.
    bytes: Vec<u8>,
    sent: usize,
}

impl<T> Clone for Http2Io<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Http2Io<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            inner,
            filter: FrameFilter::new(),
            bytes: Vec::new(),
            sent: 0,
        })))
    }

    /// Sends the coalesced writes. Pending: the socket has no room.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }

    /// The number of malformed header blocks since the last call. The h2 crate resets their streams.
    pub(super) fn take_malformed(&self) -> u32 {
        self.0.borrow_mut().filter.take_malformed()
    }

    /// Reads a property of the stream.
    pub(super) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.0.borrow().inner)
    }

    /// The client's protocol violation, if there was one. Nothing more is read; the driver must end the
    /// connection.
    pub(super) fn violation(&self) -> Option<Reason> {
        self.0.borrow().filter.violation()
    }
}

impl<T> Shared<T> {
    /// Reads bytes that have passed the filter in its own buffer.
    fn read_passed(&mut self, buffer: &mut ReadBuf<'_>) {
        let passed = self.filter.passed();
        if !passed.is_empty() {
            let length = passed.len().min(buffer.remaining());
            buffer.put_slice(&passed.split_to(length));
            if passed.is_empty() {
                // An idle connection holds no buffer.
                *passed = BytesMut::new();
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> Shared<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let rest = &self.bytes[self.sent..];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    self.sent += written;
                    self.filter.add_sent(written);
                }
            }
        }
        self.sent = 0;
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_coalesce(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.bytes.len() + length > COALESCED_BYTES_MAX {
            ready!(self.poll_send(cx))?;
        }
        if length > COALESCED_BYTES_MAX {
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, slices))?;
            self.filter.add_sent(written);
            return Poll::Ready(Ok(written));
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(KEPT_BYTES_MAX);
        }
        slices.iter().for_each(|slice| self.bytes.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Http2Io<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.borrow_mut();
        let before = buffer.filled().len();
        loop {
            shared.read_passed(buffer);
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            // A read of no bytes would be the end of the stream.
            if shared.filter.violation().is_some() {
                return Poll::Pending;
            }
            ready!(Pin::new(&mut shared.inner).poll_read(cx, buffer))?;
            if buffer.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            let in_place = shared.filter.filter(&buffer.filled()[before..]);
            buffer.set_filled(before + in_place);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Http2Io<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_coalesce(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_coalesce(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: the driver sends.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.borrow_mut();
        ready!(shared.poll_send(cx))?;
        Pin::new(&mut shared.inner).poll_shutdown(cx)
    }
}

/// Four TLS records: what rustls takes at once.
const COALESCED_BYTES_MAX: usize = 64 << 10;
/// A larger buffer is freed after it is sent, so that an idle connection holds little memory.
const KEPT_BYTES_MAX: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn nothing_is_written_until_it_is_sent_and_nothing_is_lost() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut io = Http2Io::new(ours);
        let mut wanted = Vec::new();
        for length in [1, 70_000, 10, 40_000, 40_000, 3] {
            let piece: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            io.write_all(&piece).await.expect("written");
            io.flush().await.expect("a flush is nothing");
            wanted.extend(piece);
        }
        let mut first = vec![0; 1];
        theirs.read_exact(&mut first).await.expect("what made room is there");
        poll_fn(|cx| io.poll_send(cx)).await.expect("sent");
        drop(io);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.expect("read");
        assert!([first, rest].concat() == wanted);
    }

    #[tokio::test]
    async fn a_client_that_takes_no_more_stops_the_writer() {
        let (ours, _theirs) = duplex(1000);
        let mut io = Http2Io::new(ours);
        io.write_all(&[1; COALESCED_BYTES_MAX]).await.expect("gathered");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(std::pin::pin!(io.write(&[2])).poll(&mut cx).is_pending());
    }

    /// Checks the frames of the h2 crate's own client, with names and values that come again and go.
    #[tokio::test]
    async fn an_honest_client_is_at_no_fault() {
        let (ours, theirs) = duplex(1 << 16);
        let io = Http2Io::new(ours);
        let serve = async move {
            let mut connection = h2::server::handshake(io.clone()).await.expect("a preface");
            let mut answered = 0;
            let mut next = |cx: &mut Context<'_>| {
                let accepted = connection.poll_accept(cx);
                let _ = io.poll_send(cx);
                if io.violation().is_some() { Poll::Ready(None) } else { accepted }
            };
            while let Some(request) = poll_fn(&mut next).await {
                let (_, mut respond) = request.expect("a request");
                respond.send_response(http::Response::new(()), true).expect("an answer");
                answered += 1;
            }
            (answered, io.violation())
        };
        let ask = async move {
            let (mut client, connection) = h2::client::handshake(theirs).await?;
            let asking = async move {
                for number in 0_usize..500 {
                    let mut request = http::Request::get(format!("http://a.test/{number}"));
                    for field in 0..number % 13 {
                        let (name, value) = (number * field % 29, "v".repeat(number * 7 % 211));
                        request = request.header(format!("x-{name}"), format!("{value}{field}"));
                    }
                    client = client.ready().await?;
                    let request = request.body(()).expect("a request");
                    client.send_request(request, true)?.0.await?;
                }
                Ok::<_, h2::Error>(())
            };
            let (asked, _) = tokio::join!(asking, connection);
            asked
        };
        let (served, asked) = tokio::join!(serve, ask);
        assert_eq!(served, (500, None), "{asked:?}");
    }
}
