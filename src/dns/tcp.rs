//! Queries by TCP (RFC 7766): truncated responses are asked for again here, and large ones fit.
//!
//! All connections are served by one thread of their own. A query is answered before the next one of its
//! connection is read. While all connections are in use, a new one replaces the one that has waited longest for its client, so
//! that clients which send no query or read no response keep no other client out (RFC 7766 §6.2.3).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::counts::Counts;
use super::query_log::{LoggedQuery, QueryLogBuffer};
use super::respond::{DnsTransport, Responder, Sender};
use super::server::ServerState;
use crate::clock::{Clock, unix_ms};
use crate::metrics::{Metric, Recorder};

/// The parts of the TCP thread.
pub(super) struct TcpThread {
    pub state: Arc<ServerState>,
    pub responder: RefCell<Responder>,
    pub log: RefCell<QueryLogBuffer>,
    pub recorder: Recorder,
    pub clock: Clock,
    pub limits: TcpLimits,
    /// Connections by client; those of a network /56 of IPv6 are one.
    pub clients: RefCell<HashMap<IpAddr, usize>>,
    /// Connections that wait for their clients.
    pub waiting: RefCell<WaitingConnections>,
    /// Room for the largest response. A connection keeps a copy of its own response only, however long the client takes to read it.
    pub buffer: RefCell<Box<[u8]>>,
}

/// The connections that wait for their clients, in the order in which their waits began.
#[derive(Default)]
pub(super) struct WaitingConnections {
    waits: BTreeMap<u64, Rc<Notify>>,
    begun: u64,
}

impl WaitingConnections {
    /// A wait begins. Returns its number, for [`Self::end`].
    fn begin(&mut self, closing: &Rc<Notify>) -> u64 {
        self.begun += 1;
        self.waits.insert(self.begun, closing.clone());
        self.begun
    }

    /// The wait has ended.
    fn end(&mut self, number: u64) {
        self.waits.remove(&number);
    }

    /// Tells the connection that has waited longest to close. Returns whether there is one.
    fn close_oldest(&mut self) -> bool {
        self.waits.pop_first().inspect(|(_, closing)| closing.notify_one()).is_some()
    }
}

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct TcpLimits {
    /// Open connections.
    pub connections_max: usize,
    /// Open connections of one client.
    pub per_address_max: usize,
    /// A connection whose client sends no query, or does not take a response, for this long is closed.
    pub idle: Duration,
}

impl TcpThread {
    /// Accepts connections without end.
    pub(super) async fn accept(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(open) = OpenConnection::new(&self, peer.ip()) {
                        spawn_local(async move { open.serve(stream, peer).await });
                    }
                }
                // Usually no file descriptor is free.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// A connection that is counted until it is dropped.
struct OpenConnection {
    thread: Rc<TcpThread>,
    client: IpAddr,
}

impl OpenConnection {
    /// `None`: a limit is reached.
    fn new(thread: &Rc<TcpThread>, client: IpAddr) -> Option<Self> {
        let client = network_of(client);
        let mut clients = thread.clients.borrow_mut();
        let open: usize = clients.values().sum();
        let own = clients.get(&client).copied().unwrap_or(0);
        let TcpLimits { connections_max, per_address_max, .. } = thread.limits;
        // The one that is told to close is counted until it has.
        let has_room = || open < connections_max || thread.waiting.borrow_mut().close_oldest();
        if own >= per_address_max || !has_room() {
            thread.recorder.count(Metric::DnsServerTcpRefused);
            return None;
        }
        if open >= connections_max {
            thread.recorder.count(Metric::DnsServerTcpReplaced);
        }
        clients.insert(client, own + 1);
        thread.recorder.add(Metric::DnsServerTcpConnections, 1);
        Some(Self { thread: thread.clone(), client })
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr) {
        let mut query = vec![0; QUERY_MAX];
        let closing = Rc::new(Notify::new());
        loop {
            let read = self.wait(&closing, read(&mut stream, &mut query)).await;
            let Some(Ok(length)) = read else { return };
            let Some(response) = self.respond(&query[..length], peer) else { return };
            let written = self.wait(&closing, stream.write_all(&response)).await;
            let Some(Ok(())) = written else { return };
        }
    }

    /// Waits for the client. `None`: the client has taken too long, or a new connection replaces this one.
    async fn wait<T>(&self, closing: &Rc<Notify>, step: impl Future<Output = T>) -> Option<T> {
        let thread = &self.thread;
        let wait = thread.waiting.borrow_mut().begin(closing);
        let output = tokio::select! {
            output = timeout(thread.limits.idle, step) => output.ok(),
            () = closing.notified() => None,
        };
        thread.waiting.borrow_mut().end(wait);
        output
    }

    /// The response with its length before it. `None`: the peer sends no queries.
    fn respond(&self, query: &[u8], peer: SocketAddr) -> Option<Vec<u8>> {
        let thread = &self.thread;
        let (now, start) = thread.clock.both();
        let (now_ms, transport) = (unix_ms(now), DnsTransport::Tcp);
        let sender = Sender { address: peer.ip(), transport, now: (now_ms / 1000) as u32 };
        let plan = thread.state.plan.load();
        let mut buffer = thread.buffer.borrow_mut();
        let response = thread.responder.borrow_mut().respond(&plan, query, sender, &mut buffer)?;
        let length = (response.length as u16).to_be_bytes();
        let message = [&length[..], &buffer[..response.length]].concat();
        let logged = LoggedQuery { query, response: &response, peer, transport, now_ms };
        let mut log = thread.log.borrow_mut();
        log.add(&plan, logged);
        log.flush(&thread.recorder);
        let mut counts = Counts::default();
        counts.response(&plan, &response);
        counts.flush(&thread.recorder, thread.clock.instant().saturating_duration_since(start));
        Some(message)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut clients = self.thread.clients.borrow_mut();
        match clients.get_mut(&self.client) {
            Some(open) if *open > 1 => *open -= 1,
            _ => {
                clients.remove(&self.client);
            }
        }
        self.thread.recorder.subtract(Metric::DnsServerTcpConnections, 1);
    }
}

/// The addresses that count as one client: an attacker has a whole network of IPv6.
fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & V6_CLIENT).into(),
        address => address,
    }
}

/// Reads one query and returns its length.
async fn read(stream: &mut TcpStream, query: &mut [u8]) -> io::Result<usize> {
    let length = usize::from(stream.read_u16().await?);
    let query = query.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
    stream.read_exact(query).await?;
    Ok(length)
}

/// A network /56, as for [`super::rate`].
const V6_CLIENT: u128 = u128::MAX << 72;
/// The longest query.
const QUERY_MAX: usize = 4096;
