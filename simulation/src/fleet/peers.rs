//! The way between nodes that ask each other.
//!
//! A node announces one address to all others, so that one listener stands for all links to it. The link of a
//! connection depends on the node that opened it, which is found by its socket: `/proc/net/tcp` has the inode of
//! the socket, and `/proc/PID/fd` of a node's process has the sockets that are its own.

use crate::fleet::wan::{Conditions, Link, reset};
use crate::journal::NodeId;
use crate::plan::names::Endpoint;
use crate::plan::seed::Random;
use anyhow::Context as _;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// The process ids of all nodes; 0: the node is not running.
pub type ProcessIds = Arc<[Arc<AtomicI32>]>;

/// A node that others ask.
#[derive(Clone, Copy, Debug)]
pub struct AskedNode {
    /// Its number.
    pub node: NodeId,
    /// The port at which it answers peers.
    pub port: u16,
}

/// Listens on a free port for all nodes that ask `asked`. Returns the port, and a link from each other node, with
/// the round trip of `round_trip`.
pub async fn open_links(
    asked: AskedNode,
    processes: ProcessIds,
    round_trip: impl Fn(NodeId) -> Duration,
    seed: u64,
) -> anyhow::Result<(u16, Vec<Link>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("peer link port")?;
    let port = listener.local_addr()?.port();
    let askers = (0..processes.len()).filter(|asker| *asker != asked.node);
    let link = |asker: NodeId| {
        let ends = (Endpoint::Node(asker), Endpoint::Node(asked.node));
        (asker, Link::behind(port, ends, Conditions::healthy(round_trip(asker))))
    };
    let links: HashMap<NodeId, Link> = askers.map(link).collect();
    let all = links.values().cloned().collect();
    tokio::spawn(accept(listener, asked.port, links, processes, Random::new(seed)));
    Ok((port, all))
}

async fn accept(
    listener: TcpListener,
    target_port: u16,
    links: HashMap<NodeId, Link>,
    processes: ProcessIds,
    mut random: Random,
) {
    let links = Arc::new(links);
    while let Ok((near, _)) = listener.accept().await {
        let (links, processes) = (links.clone(), processes.clone());
        let random = Random::new(random.bits());
        tokio::spawn(async move {
            let port = near.peer_addr().map_or(0, |address| address.port());
            let asker = tokio::task::spawn_blocking(move || asker_at(port, &processes)).await;
            let link = asker.ok().flatten().and_then(|asker| links.get(&asker).cloned());
            carry(link, near, target_port, random).await;
        });
    }
}

/// Without a link, the process that opened the connection has ended since, or is no node.
async fn carry(link: Option<Link>, near: TcpStream, target_port: u16, random: Random) {
    match link {
        Some(link) => link.forward(near, target_port, random).await,
        None => reset(near),
    }
}

/// The node whose process has the socket with this local port.
fn asker_at(port: u16, processes: &[Arc<AtomicI32>]) -> Option<NodeId> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let socket = format!("socket:[{}]", inode_of(&table, port)?);
    processes.iter().position(|pid| {
        let pid = pid.load(Ordering::Relaxed);
        pid != 0 && has_open(pid, Path::new(&socket))
    })
}

/// The inode of the connected socket with this local port on 127.0.0.1. Columns 1, 2 and 9 of a line are the local
/// address, the remote one and the inode.
fn inode_of(table: &str, port: u16) -> Option<&str> {
    let local = format!("0100007F:{port:04X}");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_connected = !fields.get(2)?.ends_with(":0000");
        (*fields.get(1)? == local && is_connected).then(|| fields.get(9).copied())?
    })
}

fn has_open(pid: i32, socket: &Path) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let mut files = files.into_iter().flatten().flatten();
    files.any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn processes(pids: &[u32]) -> ProcessIds {
        pids.iter().map(|pid| Arc::new(AtomicI32::new(*pid as i32))).collect()
    }

    async fn asked() -> (TcpListener, AskedNode) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        (listener, AskedNode { node: 0, port })
    }

    #[tokio::test]
    async fn a_connection_takes_the_link_of_the_process_that_opened_it() {
        let (listener, asked) = asked().await;
        let all = processes(&[0, 1, std::process::id()]);
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
        let links = open_links(asked, processes(&[0, 0]), |_| Duration::ZERO, 1).await;
        let mut near =
            TcpStream::connect(("127.0.0.1", links.expect("links").0)).await.expect("it");
        assert!(near.read(&mut [0]).await.is_err());
    }
}
