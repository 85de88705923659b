//! The transport as hyper and h2 see it: counts bytes, says when a write is blocked, and on
//! HTTP/1 follows the framing ([`super::framing`]).

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::{Framing, Passed};
use super::session::{Phase, Wire};

/// A byte stream between us and one client.
#[derive(Debug)]
pub(super) struct Transport<T> {
    inner: T,
    wire: Arc<Wire>,
    /// Read, but not handed on yet: what told the protocol, or stood behind a head.
    held: Vec<u8>,
    /// How many of the held bytes were handed on.
    held_taken: usize,
    /// HTTP/1 only.
    framing: Option<Framing>,
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
        Self {
            inner,
            wire,
            held: Vec::new(),
            held_taken: 0,
            framing: None,
            lingered: 0,
            is_shut: false,
        }
    }

    /// Reads until it is clear what the client speaks. Nothing is lost: what was read is held.
    pub(super) async fn first_bytes(&mut self) -> io::Result<FirstBytes> {
        loop {
            match protocol(&self.held[self.held_taken..]) {
                Some(protocol) => return Ok(protocol),
                None if !self.hold_more().await? => return Ok(FirstBytes::None),
                None => {}
            }
        }
    }

    /// From here on the bytes are HTTP/1.
    pub(super) fn follow_framing(&mut self) {
        self.framing.get_or_insert_default();
    }

    /// Puts back what hyper had read and not used.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.held.splice(..self.held_taken, bytes.iter().copied());
        self.held_taken = 0;
    }

    async fn hold_more(&mut self) -> io::Result<bool> {
        // On the stack of the poll, not in the task: an idle connection is small.
        std::future::poll_fn(|cx| {
            let mut space = [MaybeUninit::uninit(); FIRST_READ_BYTES];
            let mut buffer = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer))?;
            self.wire.received(buffer.filled().len());
            self.held.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(!buffer.filled().is_empty()))
        })
        .await
    }

    fn fill(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
            self.wire.received(buffer.filled().len() - before);
            return Poll::Ready(Ok(()));
        }
        let held = &self.held[self.held_taken..];
        let length = held.len().min(buffer.remaining());
        buffer.put_slice(&held[..length]);
        self.held_taken += length;
        if self.held_taken == self.held.len() {
            (self.held, self.held_taken) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what the service has told of the last head. False: it has told nothing.
    fn learn_framing(&mut self) -> bool {
        let Some(framing) = self.framing.as_mut().filter(|framing| framing.awaits_framing()) else {
            return true;
        };
        let told = self.wire.take_framing();
        if let Some(told) = told {
            framing.tell(told);
        }
        told.is_some()
    }

    /// Lets through what may be parsed now, and holds the rest.
    fn follow(&mut self, buffer: &mut ReadBuf<'_>, from: usize) {
        let Some(framing) = &mut self.framing else { return };
        let passed = framing.follow(&buffer.filled()[from..]);
        if framing.in_head() || framing.awaits_framing() {
            self.wire.head_moved();
        }
        match passed {
            Passed::All => {}
            Passed::UpTo(length) => {
                let rest = buffer.filled()[from + length..].to_vec();
                buffer.set_filled(from + length);
                self.put_back(&rest);
            }
            Passed::Refused(place) => {
                // A NUL can stand nowhere in a head: hyper answers 400 and closes.
                buffer.set_filled(from + place);
                buffer.put_slice(b"\0");
                self.wire.refuse();
            }
        }
    }

    /// Sends the interim responses that wait. What hyper wrote before is out ([`Wire::say`]), and
    /// what it writes now comes after.
    fn say(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(mut said) = self.wire.said() else { return Poll::Ready(Ok(())) };
        while !said.is_empty() {
            let written = Pin::new(&mut self.inner).poll_write(cx, &said);
            match ready!(note(&self.wire, written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => drop(said.drain(..length)),
            }
        }
        self.wire.all_is_said();
        Poll::Ready(Ok(()))
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

    /// Whether the client may still be sending what nobody will read.
    fn has_unread(&mut self) -> bool {
        self.learn_framing();
        let midway = self.framing.as_ref().is_some_and(|framing| !framing.between_messages());
        self.wire.is_refused() || !self.held.is_empty() || midway
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.framing.is_none() || this.wire.is(Phase::Upgraded) {
            return this.fill(cx, buffer);
        }
        // A head that hyper would not have, or bytes that it was not given: nothing more is read.
        if !this.learn_framing() || this.wire.is_refused() {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(this.fill(cx, buffer))?;
        this.follow(buffer, before);
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
        ready!(this.say(cx))?;
        this.wire.set_flushed(false);
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        note(&this.wire, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.say(cx))?;
        this.wire.set_flushed(false);
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = if length <= JOINED_BYTES_MAX {
            // A small answer is cheaper to copy once more than to describe to the kernel in pieces.
            let mut joined = [0; JOINED_BYTES_MAX];
            let mut end = 0;
            for slice in slices {
                joined[end..end + slice.len()].copy_from_slice(slice);
                end += slice.len();
            }
            Pin::new(&mut this.inner).poll_write(cx, &joined[..end])
        } else {
            Pin::new(&mut this.inner).poll_write_vectored(cx, slices)
        };
        note(&this.wire, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.say(cx))?;
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        match flushed {
            // hyper comes here with nothing left to write.
            Poll::Ready(_) => {
                this.wire.set_flushed(true);
                this.wire.write_went_on();
            }
            Poll::Pending => this.wire.write_blocked(),
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_shut {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            this.is_shut = true;
            if !this.wire.is(Phase::Upgraded) && this.has_unread() {
                this.wire.enter(Phase::Lingering);
            }
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
/// A usual request fits; what does not is read by hyper.
const FIRST_READ_BYTES: usize = 2 << 10;
/// More than that a client that was refused has to lose.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Head and body of a small answer.
const JOINED_BYTES_MAX: usize = 4 << 10;

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
