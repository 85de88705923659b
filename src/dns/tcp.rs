//! Queries by TCP (RFC 7766): truncated responses are asked for again here, and large ones fit.
//!
//! All connections are served by one thread of their own. A query is answered before the next one of its
//! connection is read.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
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
    /// Connections by client.
    pub clients: RefCell<HashMap<IpAddr, usize>>,
}

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct TcpLimits {
    /// Open connections.
    pub connections_max: usize,
    /// Open connections of one client.
    pub per_address_max: usize,
    /// A connection without a query for this long is closed.
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
        let mut clients = thread.clients.borrow_mut();
        let open: usize = clients.values().sum();
        let own = clients.get(&client).copied().unwrap_or(0);
        let TcpLimits { connections_max, per_address_max, .. } = thread.limits;
        if open >= connections_max || own >= per_address_max {
            thread.recorder.count(Metric::DnsServerTcpRefused);
            return None;
        }
        clients.insert(client, own + 1);
        thread.recorder.add(Metric::DnsServerTcpConnections, 1);
        Some(Self { thread: thread.clone(), client })
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr) {
        let mut query = vec![0; QUERY_MAX];
        let idle = self.thread.limits.idle;
        loop {
            let length = match timeout(idle, read(&mut stream, &mut query)).await {
                Ok(Ok(length)) => length,
                _ => return,
            };
            let Some(response) = self.respond(&query[..length], peer) else { return };
            match timeout(idle, stream.write_all(&response)).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    }

    /// The response with its length before it. `None`: the peer sends no queries.
    fn respond(&self, query: &[u8], peer: SocketAddr) -> Option<Vec<u8>> {
        let thread = &self.thread;
        let (now, start) = thread.clock.both();
        let (now_ms, transport) = (unix_ms(now), DnsTransport::Tcp);
        let sender = Sender { address: peer.ip(), transport, now: (now_ms / 1000) as u32 };
        let plan = thread.state.plan.load();
        let mut message = vec![0; 2 + usize::from(u16::MAX)];
        let response =
            thread.responder.borrow_mut().respond(&plan, query, sender, &mut message[2..])?;
        message[..2].copy_from_slice(&(response.length as u16).to_be_bytes());
        message.truncate(2 + response.length);
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

/// Reads one query and returns its length.
async fn read(stream: &mut TcpStream, query: &mut [u8]) -> io::Result<usize> {
    let length = usize::from(stream.read_u16().await?);
    let query = query.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
    stream.read_exact(query).await?;
    Ok(length)
}

/// The longest query.
const QUERY_MAX: usize = 4096;
