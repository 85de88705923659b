//! The simulated WAN: a TCP proxy for each pair of ends that talk over a distance.
//!
//! A proxy stands where packets would travel, so "loss" is what TCP makes of it: a stall
//! while the lost segment is sent again, or in the end a reset. A direction that is held
//! takes bytes and delivers them when it opens again, as a route that comes back does; a
//! refusing link resets every connection at once. A new connection waits one round trip
//! before its first byte passes, which is what its handshake would have cost.

use crate::plan::names::End;
use crate::plan::seed::Random;
use anyhow::Context as _;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// The conditions on a link.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// The time there and back.
    pub round_trip: Duration,
    /// At most this much more on each piece, uniform.
    pub jitter: Duration,
    /// Of one connection and direction; none is as fast as the loopback.
    pub bytes_per_second: Option<u64>,
    /// The chance of each piece to be held for [`Conditions::stall`].
    pub stall_chance: f64,
    /// The delay of retransmitting a lost segment.
    pub stall: Duration,
    /// The chance of each piece to break its connection.
    pub reset_chance: f64,
    /// Whether bytes from the connecting side are held.
    pub there_held: bool,
    /// Whether bytes to the connecting side are held.
    pub back_held: bool,
    /// Whether connections are reset instead of carried.
    pub refusing: bool,
}

impl Conditions {
    /// A link in good health.
    pub fn healthy(round_trip: Duration) -> Self {
        Conditions {
            round_trip,
            jitter: round_trip / 50,
            bytes_per_second: None,
            stall_chance: 0.0,
            stall: Duration::from_millis(200) + round_trip,
            reset_chance: 0.0,
            there_held: false,
            back_held: false,
            refusing: false,
        }
    }

    /// Whether anything is wrong with it.
    pub fn is_disturbed(&self) -> bool {
        *self != Conditions::healthy(self.round_trip)
    }
}

/// A proxy that listens for one end and connects to the other.
#[derive(Clone, Debug)]
pub struct Link {
    /// The connecting side.
    pub from: End,
    /// The accepting side.
    pub to: End,
    /// The loopback port that the connecting side connects to.
    pub port: u16,
    /// The conditions without a fault.
    pub healthy: Conditions,
    conditions: Arc<watch::Sender<Conditions>>,
    carried: Arc<AtomicU64>,
}

impl Link {
    /// Listens on a free port and carries connections to `target_port`, for as long as the
    /// runtime lives. `seed` is of its chances.
    pub async fn open(
        (from, to): (End, End),
        target_port: u16,
        healthy: Conditions,
        seed: u64,
    ) -> anyhow::Result<Link> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("link port")?;
        let port = listener.local_addr()?.port();
        let conditions = Arc::new(watch::Sender::new(healthy.clone()));
        let link = Link { from, to, port, healthy, conditions, carried: Arc::default() };
        tokio::spawn(link.clone().accept(listener, target_port, Random::new(seed)));
        Ok(link)
    }

    /// Changes what the link is like, for running connections too.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.conditions.send_modify(change);
    }

    /// The conditions at the moment.
    pub fn conditions(&self) -> Conditions {
        self.conditions.borrow().clone()
    }

    /// As it was when it was opened.
    pub fn heal(&self) {
        self.conditions.send_replace(self.healthy.clone());
    }

    /// Bytes carried so far, both directions.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    async fn accept(self, listener: TcpListener, target_port: u16, mut random: Random) {
        while let Ok((near, _)) = listener.accept().await {
            let (link, random) = (self.clone(), Random::new(random.bits()));
            tokio::spawn(async move { link.carry(near, target_port, random).await });
        }
    }

    /// One connection, until either side ends it or the link breaks it.
    async fn carry(self, near: TcpStream, target_port: u16, mut random: Random) {
        let conditions = self.conditions();
        sleep(conditions.round_trip).await;
        let Ok(far) = TcpStream::connect(("127.0.0.1", target_port)).await else {
            return reset(near);
        };
        // Small messages must not wait for more: the delay is the link's business.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (mut there, mut back) = (random.clone(), Random::new(random.bits()));
        let mut watched = self.conditions.subscribe();
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let broken = Notify::new();
        let both = async {
            tokio::join!(
                self.pump((near_read, far_write), Direction::There, &mut there, &broken),
                self.pump((far_read, near_write), Direction::Back, &mut back, &broken),
            )
        };
        // Leaving here drops the halves, which ends both connections at once.
        tokio::select! {
            _ = both => {}
            () = broken.notified() => {}
            _ = watched.wait_for(|conditions| conditions.refusing) => {}
        }
    }

    /// Moves bytes one way: read, stamp with the moment of delivery, wait for it, write.
    async fn pump(
        &self,
        (mut read, write): (OwnedReadHalf, OwnedWriteHalf),
        direction: Direction,
        random: &mut Random,
        broken: &Notify,
    ) {
        let (queue, pieces) = mpsc::channel(WINDOW_PIECES);
        let reader = async move {
            let mut line_free_at = Instant::now();
            let mut last = Instant::now();
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let Ok(count @ 1..) = read.read(&mut piece).await else { return };
                piece.truncate(count);
                let conditions = self.conditions();
                if random.chance(conditions.reset_chance) {
                    return broken.notify_one();
                }
                let sent_at = occupy(&mut line_free_at, count, conditions.bytes_per_second);
                last = last.max(sent_at + delay(&conditions, random));
                if queue.send((last, Bytes::from(piece))).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(reader, self.deliver(write, direction, pieces));
    }

    async fn deliver(
        &self,
        mut write: OwnedWriteHalf,
        direction: Direction,
        mut pieces: mpsc::Receiver<(Instant, Bytes)>,
    ) {
        let mut watched = self.conditions.subscribe();
        while let Some((at, piece)) = pieces.recv().await {
            if at > Instant::now() {
                sleep_until(at).await;
            }
            if watched.wait_for(|conditions| !direction.is_held(conditions)).await.is_err() {
                return;
            }
            self.carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    }
}

#[derive(Clone, Copy)]
enum Direction {
    There,
    Back,
}

impl Direction {
    fn is_held(self, conditions: &Conditions) -> bool {
        match self {
            Direction::There => conditions.there_held,
            Direction::Back => conditions.back_held,
        }
    }
}

/// When the last byte of this piece has left, on a line that carries so many bytes a second.
fn occupy(line_free_at: &mut Instant, bytes: usize, bytes_per_second: Option<u64>) -> Instant {
    let start = (*line_free_at).max(Instant::now());
    let takes = bytes_per_second
        .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
    *line_free_at = start + takes;
    *line_free_at
}

fn delay(conditions: &Conditions, random: &mut Random) -> Duration {
    let jitter = conditions.jitter.mul_f64(random.unit());
    let stalled = random.chance(conditions.stall_chance);
    conditions.round_trip / 2 + jitter + if stalled { conditions.stall } else { Duration::ZERO }
}

fn reset(socket: TcpStream) {
    // A zero linger makes the close a reset; there is nothing to do if that fails.
    let _ = socket.set_zero_linger();
}

/// With [`PIECE_BYTES`] what one direction holds in flight: about 1 MiB, a grown TCP window.
const WINDOW_PIECES: usize = 64;
const PIECE_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo_server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        port
    }

    async fn link(round_trip_ms: u64) -> Link {
        let healthy = Conditions::healthy(Duration::from_millis(round_trip_ms));
        let ends = (End::Node(0), End::Redis);
        Link::open(ends, echo_server().await, healthy, 1).await.expect("link")
    }

    async fn ping(socket: &mut TcpStream) -> std::io::Result<Duration> {
        let start = Instant::now();
        socket.write_all(b"ping").await?;
        let mut answer = [0; 4];
        socket.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"ping");
        Ok(start.elapsed())
    }

    async fn connect(link: &Link) -> TcpStream {
        TcpStream::connect(("127.0.0.1", link.port)).await.expect("connect")
    }

    #[tokio::test]
    async fn bytes_take_the_round_trip() {
        let link = link(60).await;
        let mut socket = connect(&link).await;
        ping(&mut socket).await.expect("the handshake's round trip and the first");
        let took = ping(&mut socket).await.expect("echo");
        assert!(took >= Duration::from_millis(60), "{took:?}");
        assert_eq!(link.carried(), 16);
    }

    #[tokio::test]
    async fn a_held_direction_delivers_when_it_opens() {
        let link = link(2).await;
        let mut socket = connect(&link).await;
        ping(&mut socket).await.expect("echo");
        link.change(|conditions| conditions.back_held = true);
        let held = tokio::time::timeout(Duration::from_millis(200), ping(&mut socket)).await;
        assert!(held.is_err(), "nothing comes back");
        link.heal();
        let mut answer = [0; 4];
        socket.read_exact(&mut answer).await.expect("what was held arrives");
    }

    #[tokio::test]
    async fn a_refusing_link_ends_running_and_new_connections() {
        let link = link(2).await;
        let mut socket = connect(&link).await;
        ping(&mut socket).await.expect("echo");
        link.change(|conditions| conditions.refusing = true);
        assert!(matches!(socket.read(&mut [0; 4]).await, Ok(0) | Err(_)));
        assert!(ping(&mut connect(&link).await).await.is_err());
        link.heal();
        ping(&mut connect(&link).await).await.expect("echo again");
    }

    #[tokio::test]
    async fn bandwidth_paces_bytes() {
        let link = link(0).await;
        link.change(|conditions| conditions.bytes_per_second = Some(1_000_000));
        let mut socket = connect(&link).await;
        let start = Instant::now();
        let (mut read, mut write) = socket.split();
        let mut received = vec![0; 200_000];
        let (sent, _) =
            tokio::join!(write.write_all(&[7; 200_000]), read.read_exact(&mut received));
        sent.expect("sent");
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_certain_reset_breaks_the_connection() {
        let link = link(2).await;
        link.change(|conditions| conditions.reset_chance = 1.0);
        assert!(ping(&mut connect(&link).await).await.is_err());
    }
}
