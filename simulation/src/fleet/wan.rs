//! The simulated WAN: a TCP proxy for each pair of distant endpoints, and a relay of datagrams between resolvers
//! and nodes.
//!
//! A proxy cannot drop packets, so it simulates the effect of loss on TCP: a stall until the segment
//! is retransmitted, or a reset. A held direction accepts bytes and delivers them when it is released,
//! as after a routing outage. A refusing link resets all connections. The first byte of a new
//! connection is delayed by one round trip, the cost of its TCP handshake.

use crate::plan::names::Endpoint;
use crate::plan::seed::Random;
use anyhow::Context as _;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The current properties of a link.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// Round-trip time.
    pub round_trip: Duration,
    /// Maximum additional delay of each piece of data, uniformly distributed.
    pub jitter: Duration,
    /// Bandwidth of each connection and direction; `None` is unlimited.
    pub bytes_per_second: Option<u64>,
    /// Probability that a piece is delayed by [`Conditions::stall`].
    pub stall_chance: f64,
    /// Delay of a retransmission.
    pub stall: Duration,
    /// Probability that a piece resets its connection.
    pub reset_chance: f64,
    /// Whether bytes from the connecting side are held back.
    pub forward_held: bool,
    /// Whether bytes to the connecting side are held back.
    pub backward_held: bool,
    /// Whether all connections are reset.
    pub refusing: bool,
}

impl Conditions {
    /// A link without faults.
    pub fn healthy(round_trip: Duration) -> Self {
        Conditions {
            round_trip,
            jitter: round_trip / 50,
            bytes_per_second: None,
            stall_chance: 0.0,
            stall: Duration::from_millis(200) + round_trip,
            reset_chance: 0.0,
            forward_held: false,
            backward_held: false,
            refusing: false,
        }
    }

    /// Whether the conditions differ from those of a healthy link.
    pub fn is_disturbed(&self) -> bool {
        *self != Conditions::healthy(self.round_trip)
    }
}

/// A proxy that accepts connections for one endpoint and connects to the other.
#[derive(Clone, Debug)]
pub struct Link {
    /// The connecting endpoint.
    pub from: Endpoint,
    /// The endpoint that accepts connections.
    pub to: Endpoint,
    /// The loopback port that the connecting endpoint uses.
    pub port: u16,
    /// Its conditions without faults.
    pub healthy: Conditions,
    conditions: Arc<watch::Sender<Conditions>>,
    carried: Arc<Carried>,
}

/// Bytes that a link has forwarded.
#[derive(Debug, Default)]
struct Carried {
    forward: AtomicU64,
    backward: AtomicU64,
}

impl Link {
    /// A link that forwards the connections that it is given ([`Link::forward`]): `port` belongs to several links.
    pub(super) fn behind(port: u16, (from, to): (Endpoint, Endpoint), healthy: Conditions) -> Link {
        let conditions = Arc::new(watch::Sender::new(healthy.clone()));
        Link { from, to, port, healthy, conditions, carried: Arc::default() }
    }

    /// Listens on a free port and forwards connections to `target_port` until the runtime ends.
    /// `seed` determines jitter, stalls and resets.
    pub async fn open(
        (from, to): (Endpoint, Endpoint),
        target_port: u16,
        healthy: Conditions,
        seed: u64,
    ) -> anyhow::Result<Link> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("link port")?;
        let port = listener.local_addr()?.port();
        let link = Link::behind(port, (from, to), healthy);
        tokio::spawn(link.clone().accept(listener, target_port, Random::new(seed)));
        Ok(link)
    }

    /// Listens on a free port and forwards datagrams to `target_port`, and their answers back, until the runtime ends.
    /// A stall or a reset loses a datagram, as does a direction that is held.
    pub async fn open_datagrams(
        (from, to): (Endpoint, Endpoint),
        target_port: u16,
        healthy: Conditions,
        seed: u64,
    ) -> anyhow::Result<Link> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.context("link port")?;
        let port = socket.local_addr()?.port();
        let link = Link::behind(port, (from, to), healthy);
        tokio::spawn(link.clone().relay(Arc::new(socket), target_port, Random::new(seed)));
        Ok(link)
    }

    async fn relay(self, near: Arc<UdpSocket>, target_port: u16, mut random: Random) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        loop {
            // An error reports that an earlier answer was not delivered.
            let Ok((length, sender)) = near.recv_from(&mut buffer).await else { continue };
            let query = Bytes::copy_from_slice(&buffer[..length]);
            let (link, near, random) = (self.clone(), near.clone(), Random::new(random.bits()));
            tokio::spawn(async move {
                if let Ok(Some(answer)) = link.exchange_datagrams(query, target_port, random).await
                {
                    // The resolver may have stopped waiting.
                    let _ = near.send_to(&answer, sender).await;
                }
            });
        }
    }

    /// Delivers a datagram, and returns the answer to it when that arrives. `None`: one of the two is lost.
    async fn exchange_datagrams(
        &self,
        query: Bytes,
        target_port: u16,
        mut random: Random,
    ) -> std::io::Result<Option<Bytes>> {
        if !self.carry_datagram(&query, Direction::Forward, &mut random).await {
            return Ok(None);
        }
        let far = UdpSocket::bind("127.0.0.1:0").await?;
        far.connect(("127.0.0.1", target_port)).await?;
        far.send(&query).await?;
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let Ok(received) = timeout(ANSWER_LIMIT, far.recv(&mut buffer)).await else {
            return Ok(None);
        };
        let answer = Bytes::copy_from_slice(&buffer[..received?]);
        let is_carried = self.carry_datagram(&answer, Direction::Backward, &mut random).await;
        Ok(is_carried.then_some(answer))
    }

    /// Takes the time of one direction. Returns whether the datagram arrives.
    async fn carry_datagram(
        &self,
        datagram: &[u8],
        direction: Direction,
        random: &mut Random,
    ) -> bool {
        let mut conditions = self.conditions();
        let loss = conditions.stall_chance + conditions.reset_chance;
        if conditions.refusing || direction.is_held(&conditions) || random.chance(loss) {
            return false;
        }
        conditions.stall_chance = 0.0;
        sleep(delay(&conditions, random)).await;
        self.carried.in_direction(direction).fetch_add(datagram.len() as u64, Ordering::Relaxed);
        true
    }

    /// Changes the conditions, also for open connections.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.conditions.send_modify(change);
    }

    /// The current conditions.
    pub fn conditions(&self) -> Conditions {
        self.conditions.borrow().clone()
    }

    /// Restores the conditions without faults.
    pub fn heal(&self) {
        self.conditions.send_replace(self.healthy.clone());
    }

    /// Bytes forwarded so far, in both directions.
    pub fn carried_bytes(&self) -> u64 {
        self.carried.forward.load(Ordering::Relaxed) + self.answered_bytes()
    }

    /// Bytes forwarded so far to the connecting endpoint.
    pub fn answered_bytes(&self) -> u64 {
        self.carried.backward.load(Ordering::Relaxed)
    }

    async fn accept(self, listener: TcpListener, target_port: u16, mut random: Random) {
        while let Ok((near, _)) = listener.accept().await {
            let (link, random) = (self.clone(), Random::new(random.bits()));
            tokio::spawn(async move { link.forward(near, target_port, random).await });
        }
    }

    /// One connection, until either side closes it or the link resets it.
    pub(super) async fn forward(self, near: TcpStream, target_port: u16, mut random: Random) {
        let conditions = self.conditions();
        sleep(conditions.round_trip).await;
        let Ok(far) = TcpStream::connect(("127.0.0.1", target_port)).await else {
            return reset(near);
        };
        // Without Nagle's algorithm, so that only the link delays small messages.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (mut forward, mut backward) = (random.clone(), Random::new(random.bits()));
        let mut watched = self.conditions.subscribe();
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let broken = Notify::new();
        let both = async {
            tokio::join!(
                self.pump((near_read, far_write), Direction::Forward, &mut forward, &broken),
                self.pump((far_read, near_write), Direction::Backward, &mut backward, &broken),
            )
        };
        // Returning drops all four halves, which closes both connections.
        tokio::select! {
            _ = both => {}
            () = broken.notified() => {}
            _ = watched.wait_for(|conditions| conditions.refusing) => {}
        }
    }

    /// Forwards bytes in one direction: read, compute the time of delivery, wait for it, write.
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
            let carried = self.carried.in_direction(direction);
            carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    }
}

impl Carried {
    fn in_direction(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

impl Direction {
    fn is_held(self, conditions: &Conditions) -> bool {
        match self {
            Direction::Forward => conditions.forward_held,
            Direction::Backward => conditions.backward_held,
        }
    }
}

/// The time at which the last byte of a piece has been sent over a line of this bandwidth.
fn occupy(line_free_at: &mut Instant, bytes: usize, bytes_per_second: Option<u64>) -> Instant {
    let start = (*line_free_at).max(Instant::now());
    let duration = bytes_per_second
        .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
    *line_free_at = start + duration;
    *line_free_at
}

fn delay(conditions: &Conditions, random: &mut Random) -> Duration {
    let jitter = conditions.jitter.mul_f64(random.unit());
    let stalled = random.chance(conditions.stall_chance);
    conditions.round_trip / 2 + jitter + if stalled { conditions.stall } else { Duration::ZERO }
}

pub(super) fn reset(socket: TcpStream) {
    // SO_LINGER of 0 turns the close into a reset. A failure leaves an ordinary close.
    let _ = socket.set_zero_linger();
}

/// Pieces in flight in one direction: with [`PIECE_BYTES`] 1 MiB, a typical large TCP window.
const WINDOW_PIECES: usize = 64;
const PIECE_BYTES: usize = 16 * 1024;
/// Longest datagram: DNS over UDP needs less.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// How long the answer to a datagram may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

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
        let ends = (Endpoint::Node(0), Endpoint::Redis);
        Link::open(ends, echo_server().await, healthy, 1).await.expect("link")
    }

    async fn ping(socket: &mut TcpStream) -> std::io::Result<Duration> {
        let start = Instant::now();
        socket.write_all(b"ping").await?;
        let mut response = [0; 4];
        socket.read_exact(&mut response).await?;
        assert_eq!(&response, b"ping");
        Ok(start.elapsed())
    }

    async fn connect(link: &Link) -> TcpStream {
        TcpStream::connect(("127.0.0.1", link.port)).await.expect("connect")
    }

    #[tokio::test]
    async fn an_echo_takes_one_round_trip() {
        let link = link(60).await;
        let mut socket = connect(&link).await;
        ping(&mut socket).await.expect("the handshake's round trip and the first");
        let took = ping(&mut socket).await.expect("echo");
        assert!(took >= Duration::from_millis(60), "{took:?}");
        assert_eq!(link.carried_bytes(), 16);
    }

    #[tokio::test]
    async fn a_held_direction_delivers_when_released() {
        let link = link(2).await;
        let mut socket = connect(&link).await;
        ping(&mut socket).await.expect("echo");
        link.change(|conditions| conditions.backward_held = true);
        let held = tokio::time::timeout(Duration::from_millis(200), ping(&mut socket)).await;
        assert!(held.is_err(), "nothing comes back");
        link.heal();
        let mut response = [0; 4];
        socket.read_exact(&mut response).await.expect("the held bytes arrive");
    }

    #[tokio::test]
    async fn a_refusing_link_resets_open_and_new_connections() {
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
    async fn bandwidth_limits_throughput() {
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
    async fn datagrams_take_a_round_trip_and_get_lost() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("port");
        let port = server.local_addr().expect("address").port();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((length, sender)) = server.recv_from(&mut buffer).await {
                let _ = server.send_to(&buffer[..length], sender).await;
            }
        });
        let ends = (Endpoint::Resolver(0), Endpoint::Node(0));
        let healthy = Conditions::healthy(Duration::from_millis(60));
        let link = Link::open_datagrams(ends, port, healthy, 1).await.expect("link");
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("port");
        client.connect(("127.0.0.1", link.port)).await.expect("loopback");
        let start = Instant::now();
        client.send(b"query").await.expect("sent");
        let mut buffer = [0; 64];
        assert_eq!(client.recv(&mut buffer).await.expect("an answer"), 5);
        assert!(start.elapsed() >= Duration::from_millis(60), "{:?}", start.elapsed());
        link.change(|conditions| conditions.backward_held = true);
        client.send(b"query").await.expect("sent");
        let lost = timeout(Duration::from_millis(200), client.recv(&mut buffer)).await;
        assert!(lost.is_err(), "a datagram is not kept for later");
    }

    #[tokio::test]
    async fn a_certain_reset_breaks_the_connection() {
        let link = link(2).await;
        link.change(|conditions| conditions.reset_chance = 1.0);
        assert!(ping(&mut connect(&link).await).await.is_err());
    }
}
