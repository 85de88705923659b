//! The counts that connection limits are checked against: open connections of the node and of each
//! client, and requests of peers in flight.
//!
//! All workers share them. They are used only when a connection opens or closes, and for each request of a peer.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::client_network::ClientNetwork;

/// The counts of one node.
#[derive(Debug, Default)]
pub(super) struct ConnectionCounts {
    connections: AtomicUsize,
    requests: AtomicUsize,
    addresses: [Mutex<HashMap<ClientNetwork, u32>>; SHARDS],
    hasher: std::hash::RandomState,
}

/// One unit of a count. Dropping it lowers the count.
#[derive(Debug)]
pub(super) struct Permit {
    counts: Arc<ConnectionCounts>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Connection,
    Request,
    Address(ClientNetwork),
}

impl ConnectionCounts {
    /// Counts a connection, if fewer than `max` are open.
    pub(super) fn connection(self: &Arc<Self>, max: usize) -> Option<Permit> {
        take(&self.connections, max).then(|| self.permit(Kind::Connection))
    }

    /// Counts a request of a peer, if fewer than `max` are in flight.
    pub(super) fn request(self: &Arc<Self>, max: usize) -> Option<Permit> {
        take(&self.requests, max).then(|| self.permit(Kind::Request))
    }

    /// Counts a connection of the client at `address`, if it has fewer than `max` open.
    pub(super) fn address(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<Permit> {
        let client = ClientNetwork::of(address);
        let mut shard = self.shard(client);
        if shard.get(&client).is_some_and(|open| *open as usize >= max) || max == 0 {
            return None;
        }
        *shard.entry(client).or_default() += 1;
        drop(shard);
        Some(self.permit(Kind::Address(client)))
    }

    fn permit(self: &Arc<Self>, kind: Kind) -> Permit {
        Permit { counts: self.clone(), kind }
    }

    fn shard(&self, client: ClientNetwork) -> MutexGuard<'_, HashMap<ClientNetwork, u32>> {
        let shard = self.hasher.hash_one(client) as usize % SHARDS;
        self.addresses[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.kind {
            Kind::Connection => _ = self.counts.connections.fetch_sub(1, Ordering::Relaxed),
            Kind::Request => _ = self.counts.requests.fetch_sub(1, Ordering::Relaxed),
            Kind::Address(client) => {
                let mut shard = self.counts.shard(client);
                match shard.get_mut(&client) {
                    Some(open) if *open > 1 => *open -= 1,
                    _ => _ = shard.remove(&client),
                }
            }
        }
    }
}

fn take(count: &AtomicUsize, max: usize) -> bool {
    let taken = count.fetch_add(1, Ordering::Relaxed) < max;
    if !taken {
        count.fetch_sub(1, Ordering::Relaxed);
    }
    taken
}

/// So many that two workers rarely need the same shard.
const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let counts = Arc::new(ConnectionCounts::default());
        let first = counts.connection(1).expect("the first");
        assert!(counts.connection(1).is_none());
        drop(first);
        assert!(counts.connection(1).is_some());
    }

    #[test]
    fn ipv6_is_counted_by_network_and_mapped_ipv4_as_ipv4() {
        let counts = Arc::new(ConnectionCounts::default());
        let _one = counts.address(address("2001:db8::1"), 1).expect("the first");
        assert!(counts.address(address("2001:db8::2"), 1).is_none());
        assert!(counts.address(address("2001:db8:0:1::2"), 1).is_some());
        let _two = counts.address(address("::ffff:192.0.2.1"), 1).expect("the first");
        assert!(counts.address(address("192.0.2.1"), 1).is_none());
        assert!(counts.address(address("192.0.2.2"), 1).is_some());
    }

    #[test]
    fn clients_that_left_take_no_memory() {
        let counts = Arc::new(ConnectionCounts::default());
        drop(counts.address(address("192.0.2.1"), 9));
        assert!(counts.addresses.iter().all(|shard| shard.lock().expect("whole").is_empty()));
    }
}
