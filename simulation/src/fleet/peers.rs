//! The way between nodes that ask each other.
//!
//! A node announces one address to all others, so that one listener stands for all links to it. The link of a
//! connection depends on the node that opened it, which is found by its socket: `/proc/net/tcp` has the inode of
//! the socket, and `/proc/PID/fd` of a node's process has the sockets that are its own. One thread looks up all
//! connections that wait, so that many at once do not cost more than one.

use crate::fleet::wan::{Conditions, Link, reset};
use crate::journal::NodeId;
use crate::plan::names::Endpoint;
use crate::plan::seed::Random;
use anyhow::Context as _;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The process ids of all nodes; 0: the node is not running.
pub type ProcessIds = Vec<Arc<AtomicI32>>;

/// A node that others ask.
#[derive(Clone, Copy, Debug)]
pub struct AskedNode {
    /// Its number.
    pub node: NodeId,
    /// The port at which it answers peers.
    pub port: u16,
}

/// Finds the nodes that open connections. Clones share one thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct AskerLookup {
    questions: mpsc::Sender<Question>,
    nodes: usize,
}

/// The local port of the connecting socket, and where the answer goes.
type Question = (u16, oneshot::Sender<Option<NodeId>>);

impl AskerLookup {
    /// Starts the thread, for the nodes with these processes.
    pub fn start(processes: ProcessIds) -> AskerLookup {
        let nodes = processes.len();
        let (questions, asked) = mpsc::channel();
        std::thread::spawn(move || answer_all(&asked, &processes));
        AskerLookup { questions, nodes }
    }

    /// The node whose process has the socket with this local port. `None`: none has it any more.
    async fn asker_at(&self, port: u16) -> Option<NodeId> {
        for _ in 0..LOOKUPS_MAX {
            let (answer, answered) = oneshot::channel();
            self.questions.send((port, answer)).ok()?;
            let found = answered.await.ok().flatten();
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

/// The kernel may leave a socket out of `/proc/net/tcp` while others open and close.
const LOOKUPS_MAX: usize = 3;

/// Answers until the last [`AskerLookup`] is dropped: all questions that wait at a time.
fn answer_all(asked: &mpsc::Receiver<Question>, processes: &ProcessIds) {
    while let Ok(first) = asked.recv() {
        let questions: Vec<Question> = std::iter::once(first).chain(asked.try_iter()).collect();
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let inodes = inodes_by_port(&table);
        let owners = nodes_by_socket(processes);
        for (port, answer) in questions {
            let socket = inodes.get(&port).map(|inode| format!("socket:[{inode}]"));
            // The connection may have ended since.
            let _ = answer.send(socket.and_then(|socket| owners.get(&socket).copied()));
        }
    }
}

/// The inode of each connected socket on 127.0.0.1 by its local port. Columns 1, 2 and 9 of a line are the local
/// address, the remote one and the inode.
fn inodes_by_port(table: &str) -> HashMap<u16, &str> {
    table.lines().filter_map(connected_socket).collect()
}

/// Local port and inode of the socket in a line, if it is a connected one on 127.0.0.1.
fn connected_socket(line: &str) -> Option<(u16, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let port = fields.nth(1)?.strip_prefix("0100007F:")?;
    let is_connected = !fields.next()?.ends_with(":0000");
    let inode = fields.nth(6)?;
    is_connected.then_some((u16::from_str_radix(port, 16).ok()?, inode))
}

/// The node of each socket (`socket:[INODE]`) that is open in a node's process.
fn nodes_by_socket(processes: &ProcessIds) -> HashMap<String, NodeId> {
    let mut nodes = HashMap::new();
    for (node, pid) in processes.iter().enumerate() {
        let pid = pid.load(Ordering::Relaxed);
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        for file in files.into_iter().flatten().flatten().filter(|_| pid != 0) {
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            nodes.extend(target.into_os_string().into_string().ok().map(|socket| (socket, node)));
        }
    }
    nodes
}

/// Listens on a free port for all nodes that ask `asked`. Returns the port, and a link from each other node, with
/// the round trip of `round_trip`.
pub async fn open_links(
    asked: AskedNode,
    lookup: AskerLookup,
    round_trip: impl Fn(NodeId) -> Duration,
    seed: u64,
) -> anyhow::Result<(u16, Vec<Link>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("peer link port")?;
    let port = listener.local_addr()?.port();
    let askers = (0..lookup.nodes).filter(|asker| *asker != asked.node);
    let link = |asker: NodeId| {
        let ends = (Endpoint::Node(asker), Endpoint::Node(asked.node));
        (asker, Link::behind(port, ends, Conditions::healthy(round_trip(asker))))
    };
    let links: HashMap<NodeId, Link> = askers.map(link).collect();
    let all = links.values().cloned().collect();
    tokio::spawn(accept(listener, asked.port, links, lookup, Random::new(seed)));
    Ok((port, all))
}

async fn accept(
    listener: TcpListener,
    target_port: u16,
    links: HashMap<NodeId, Link>,
    lookup: AskerLookup,
    mut random: Random,
) {
    let links = Arc::new(links);
    while let Ok((near, _)) = listener.accept().await {
        let (links, lookup) = (links.clone(), lookup.clone());
        let random = Random::new(random.bits());
        tokio::spawn(async move {
            let port = near.peer_addr().map_or(0, |address| address.port());
            let asker = lookup.asker_at(port).await;
            match asker.and_then(|asker| links.get(&asker).cloned()) {
                Some(link) => link.forward(near, target_port, random).await,
                // The process that opened the connection has ended since, or is no node.
                None => reset(near),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    fn lookup(pids: &[u32]) -> AskerLookup {
        AskerLookup::start(pids.iter().map(|pid| Arc::new(AtomicI32::new(*pid as i32))).collect())
    }

    async fn asked() -> (TcpListener, AskedNode) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        (listener, AskedNode { node: 0, port })
    }

    #[tokio::test]
    async fn a_connection_takes_the_link_of_the_process_that_opened_it() {
        let (listener, asked) = asked().await;
        let all = lookup(&[0, 1, std::process::id()]);
        let (port, links) = open_links(asked, all, |_| Duration::ZERO, 1).await.expect("links");
        assert_eq!(links.len(), 2);
        let mut near = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        let (mut far, _) = listener.accept().await.expect("arrives");
        far.write_all(b"answer").await.expect("written");
        near.read_exact(&mut [0; 6]).await.expect("read");
        let answered = |asker| {
            let link = links.iter().find(|link| link.from == Endpoint::Node(asker));
            link.expect("a link").answered_bytes()
        };
        assert_eq!((answered(1), answered(2)), (0, 6));
    }

    #[tokio::test]
    async fn a_connection_of_no_node_is_reset() {
        let (_listener, asked) = asked().await;
        let links = open_links(asked, lookup(&[0, 0]), |_| Duration::ZERO, 1).await;
        let mut near =
            TcpStream::connect(("127.0.0.1", links.expect("links").0)).await.expect("it");
        assert!(near.read(&mut [0]).await.is_err());
    }
}
