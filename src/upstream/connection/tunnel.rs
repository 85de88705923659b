//! An upgraded connection (RFC 9110 §7.8): copies bytes in both directions until both have ended or it
//! was idle for too long.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::io::Io;
use crate::upgrade::OnUpgrade;

/// The origin's side of an upgraded connection.
pub(crate) struct UpgradedOrigin {
    pub(in crate::upstream) io: Io,
    /// Bytes that the origin sent directly after its 101.
    pub(in crate::upstream) early: Bytes,
}

impl fmt::Debug for UpgradedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpgradedOrigin({} bytes early)", self.early.len())
    }
}

/// Copies bytes in both directions until both have ended, one fails, or `idle` passes without a byte
/// (`TimedOut`). Run it in a task of its own after the 101 has been handed to the listener: it waits
/// until the 101 has been sent to the client.
pub(crate) async fn tunnel(
    client: OnUpgrade,
    origin: UpgradedOrigin,
    idle: Duration,
) -> io::Result<()> {
    let mut client = client.connection().await?;
    let UpgradedOrigin { io: mut origin, early } = origin;
    let mut upward = Direction::new(&[]);
    let mut downward = Direction::new(&early);
    let mut moved = 0;
    let mut timer = pin!(sleep_until(Instant::now() + idle));
    poll_fn(|cx| {
        let up = upward.poll(cx, Pin::new(&mut client), Pin::new(&mut origin))?;
        let down = downward.poll(cx, Pin::new(&mut origin), Pin::new(&mut client))?;
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Resetting a timer costs more than a small message, so it is reset only when it fires.
        let now_moved = upward.copied + downward.copied;
        loop {
            ready!(timer.as_mut().poll(cx));
            if now_moved == moved {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            moved = now_moved;
            timer.as_mut().reset(Instant::now() + idle);
        }
    })
    .await
}

/// One direction: a buffer that is read into from one end and written to the other.
struct Direction {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    copied: u64,
    unflushed: bool,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Copying,
    /// The reader has ended; the writer is being shut down.
    Finishing,
    Finished,
}

impl Direction {
    fn new(early: &[u8]) -> Self {
        let mut buffer = vec![0; BUFFER_BYTES.max(early.len())].into_boxed_slice();
        buffer[..early.len()].copy_from_slice(early);
        let state = State::Copying;
        Self { buffer, start: 0, end: early.len(), copied: 0, unflushed: false, state }
    }

    /// Copies as much as possible. Ready once the reader has ended and the writer is shut down.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut impl AsyncRead>,
        mut to: Pin<&mut impl AsyncWrite>,
    ) -> io::Result<Poll<()>> {
        while self.state == State::Copying {
            if self.start == self.end {
                let mut read = ReadBuf::new(&mut self.buffer);
                if from.as_mut().poll_read(cx, &mut read)?.is_pending() {
                    // Nothing to read now: flush what was written before waiting.
                    if self.unflushed && to.as_mut().poll_flush(cx)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Ok(Poll::Pending);
                }
                (self.start, self.end) = (0, read.filled().len());
                if self.end == 0 {
                    self.state = State::Finishing;
                }
            } else {
                let piece = &self.buffer[self.start..self.end];
                let Poll::Ready(written) = to.as_mut().poll_write(cx, piece)? else {
                    return Ok(Poll::Pending);
                };
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.start += written;
                self.copied += written as u64;
                self.unflushed = true;
            }
        }
        if self.state == State::Finishing {
            if to.as_mut().poll_shutdown(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            self.state = State::Finished;
        }
        Ok(Poll::Ready(()))
    }
}

const BUFFER_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;
    use crate::body::Body;
    use crate::upgrade::handover;
    use crate::upstream::Intent;
    use crate::upstream::tests::on_core;
    use crate::upstream::tests::scripted::{Bed, Peer, Scripted, pool, request};

    /// A client and an origin with a tunnel between them, and how the tunnel ended.
    async fn tunnelled(
        idle: Duration,
        early: &str,
    ) -> (Peer<TcpStream>, Peer<TcpStream>, oneshot::Receiver<io::Result<()>>) {
        let (front, origin) = (Scripted::bind().await, Scripted::bind().await);
        let bed = Bed::new(pool(vec![origin.origin()]));
        let upgrade = Some(HeaderValue::from_static("chat"));
        let intent = Intent { upgrade, ..Intent::default() };
        let get = request(Method::GET, Body::Empty);
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
        let (upstream, peer) = tokio::join!(bed.send_with(get, intent), async {
            let mut peer = origin.accept().await;
            peer.answer(&format!("{switch}{early}")).await;
            peer
        });
        let upstream = upstream.expect("a response").upgraded.expect("an upgraded connection");
        let (ended, end) = oneshot::channel();
        let client = TcpStream::connect(front.address).await.expect("a connection");
        let (handover, client_side) = handover();
        handover.give(Box::new(front.accept().await.io));
        tokio::task::spawn_local(async move {
            let _ = ended.send(tunnel(client_side, *upstream, idle).await);
        });
        (Peer::new(client), peer, end)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_end_may_finish_first() {
        on_core(async {
            let (mut client, mut origin, end) = tunnelled(Duration::from_secs(10), "early").await;
            client.through(b"early").await;
            client.say("ping").await;
            origin.through(b"ping").await;
            origin.say("pong").await;
            client.through(b"pong").await;
            // The client is done; the origin may still speak.
            client.io.shutdown().await.expect("a shutdown");
            origin.closed().await;
            let large = "x".repeat(1 << 20);
            let (_, received) = tokio::join!(
                async {
                    origin.say(&large).await;
                    origin.io.shutdown().await.expect("a shutdown");
                },
                async {
                    let mut received = Vec::new();
                    client.io.read_to_end(&mut received).await.expect("the rest");
                    received
                }
            );
            assert_eq!(received.len(), large.len());
            end.await.expect("it ended").expect("both have finished");
        })
        .await;
    }

    #[tokio::test]
    async fn a_tunnel_ends_when_nothing_moves_and_not_before() {
        on_core(async {
            let (mut client, mut origin, end) = tunnelled(Duration::from_millis(200), "").await;
            let began = Instant::now();
            for _ in 0..6 {
                client.say("x").await;
                origin.through(b"x").await;
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            let end = end.await.expect("it ended");
            assert_eq!(end.expect_err("idle").kind(), io::ErrorKind::TimedOut);
            assert!(began.elapsed() >= Duration::from_millis(500));
            client.closed().await;
            origin.closed().await;
        })
        .await;
    }
}
