//! Gathers what h2 writes into few and large writes.
//!
//! h2 holds one DATA frame at a time and flushes before the next, so that sixteen answers
//! of 1 KiB would be sixteen TLS records and sixteen system calls. Here a flush of h2's is
//! nothing; the driver sends what has gathered when it has nothing more to add. The copy costs
//! tens of nanoseconds where the system call costs microseconds.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;

/// A stream that h2 writes to and the driver sends from. What h2 reads has been looked at.
pub(super) struct Gather<T>(Rc<RefCell<Queue<T>>>);

struct Queue<T> {
    inner: T,
    frames: Frames,
    bytes: Vec<u8>,
    sent: usize,
}

impl<T> Clone for Gather<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Gather<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(Rc::new(RefCell::new(Queue {
            inner,
            frames: Frames::new(),
            bytes: Vec::new(),
            sent: 0,
        })))
    }

    /// Writes what has gathered. Pending when the client takes no more; the task is woken when
    /// it does.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }

    /// How many header blocks were malformed since the last call. h2 resets their streams.
    pub(super) fn take_malformed(&self) -> u32 {
        self.0.borrow_mut().frames.take_malformed()
    }

    /// Looks at the stream.
    pub(super) fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.borrow().inner)
    }

    /// What the client did against the protocol. Nothing more is read then: the driver must act.
    pub(super) fn fault(&self) -> Option<Reason> {
        self.0.borrow().frames.fault()
    }
}

impl<T> Queue<T> {
    /// Hands on what h2 may see but could not be left where it was read.
    fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) {
        let behind = self.frames.behind();
        if !behind.is_empty() {
            let length = behind.len().min(buffer.remaining());
            buffer.put_slice(&behind.split_to(length));
            if behind.is_empty() {
                // An idle connection keeps none of it.
                *behind = BytesMut::new();
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> Queue<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let rest = &self.bytes[self.sent..];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    self.sent += written;
                    self.frames.sent(written);
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

    fn poll_gather(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.bytes.len() + length > GATHERED_BYTES_MAX {
            ready!(self.poll_send(cx))?;
        }
        if length > GATHERED_BYTES_MAX {
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, slices))?;
            self.frames.sent(written);
            return Poll::Ready(Ok(written));
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(KEPT_BYTES_MAX);
        }
        slices.iter().for_each(|slice| self.bytes.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let queue = &mut *self.0.borrow_mut();
        let before = buffer.filled().len();
        loop {
            queue.hand_on(buffer);
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            // Nothing would be the end, to h2.
            if queue.frames.fault().is_some() {
                return Poll::Pending;
            }
            ready!(Pin::new(&mut queue.inner).poll_read(cx, buffer))?;
            if buffer.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            let in_place = queue.frames.look(&buffer.filled()[before..]);
            buffer.set_filled(before + in_place);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_gather(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_gather(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing: see above.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queue = self.0.borrow_mut();
        ready!(queue.poll_send(cx))?;
        Pin::new(&mut queue.inner).poll_shutdown(cx)
    }
}

/// Four TLS records, and what rustls takes at once.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// A connection keeps no more between two sends, and an idle one therefore little.
const KEPT_BYTES_MAX: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn nothing_is_written_until_it_is_sent_and_nothing_is_lost() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut gather = Gather::new(ours);
        let mut wanted = Vec::new();
        for length in [1, 70_000, 10, 40_000, 40_000, 3] {
            let piece: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            gather.write_all(&piece).await.expect("written");
            gather.flush().await.expect("a flush is nothing");
            wanted.extend(piece);
        }
        let mut first = vec![0; 1];
        theirs.read_exact(&mut first).await.expect("what made room is there");
        poll_fn(|cx| gather.poll_send(cx)).await.expect("sent");
        drop(gather);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.expect("read");
        assert!([first, rest].concat() == wanted);
    }

    #[tokio::test]
    async fn a_client_that_takes_no_more_stops_the_writer() {
        let (ours, _theirs) = duplex(1000);
        let mut gather = Gather::new(ours);
        gather.write_all(&[1; GATHERED_BYTES_MAX]).await.expect("gathered");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(std::pin::pin!(gather.write(&[2])).poll(&mut cx).is_pending());
    }

    /// What a client of h2's own making sends, with names and values that come again and go.
    #[tokio::test]
    async fn an_honest_client_is_at_no_fault() {
        let (ours, theirs) = duplex(1 << 16);
        let gather = Gather::new(ours);
        let serve = async move {
            let mut connection = h2::server::handshake(gather.clone()).await.expect("a preface");
            let mut answered = 0;
            let mut next = |cx: &mut Context<'_>| {
                let accepted = connection.poll_accept(cx);
                let _ = gather.poll_send(cx);
                if gather.fault().is_some() { Poll::Ready(None) } else { accepted }
            };
            while let Some(request) = poll_fn(&mut next).await {
                let (_, mut respond) = request.expect("a request");
                respond.send_response(http::Response::new(()), true).expect("an answer");
                answered += 1;
            }
            (answered, gather.fault())
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
