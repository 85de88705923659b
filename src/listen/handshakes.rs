//! The TLS handshakes in progress on the node, at most `limits.handshakes_max`.
//!
//! While all places are taken, a new connection takes the place of the handshake that has waited longest, so that clients
//! which send nothing keep no other client out. A client that holds as many places as the client of that handshake, or
//! more, loses its own oldest one instead: many connections of one address do not push out those of others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::client_network::ClientNetwork;

/// The handshakes in progress on one node. All workers share them; a handshake locks them twice.
#[derive(Debug, Default)]
pub(super) struct Handshakes(Mutex<Places>);

/// The place of a handshake. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct HandshakePlace {
    handshakes: Arc<Handshakes>,
    number: u64,
    replaced: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Places {
    /// In the order in which the handshakes began.
    taken: BTreeMap<u64, Place>,
    /// The numbers of the places of each client.
    of_client: HashMap<ClientNetwork, BTreeSet<u64>>,
    begun: u64,
}

#[derive(Debug)]
struct Place {
    /// `None`: not known until the PROXY protocol header is read.
    client: Option<ClientNetwork>,
    replaced: Arc<Notify>,
}

impl Handshakes {
    /// Takes a place for a connection of `client`, if it is known. The second value tells whether another handshake has
    /// lost its place, because `max`, at least 1, were taken.
    pub(super) fn begin(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        max: usize,
    ) -> (HandshakePlace, bool) {
        let client = client.map(ClientNetwork::of);
        let mut places = self.lock();
        let is_full = places.taken.len() >= max;
        while places.taken.len() >= max.max(1) {
            places.replace_one(client);
        }
        let replaced = Arc::new(Notify::new());
        let number = places.take(client, replaced.clone());
        (HandshakePlace { handshakes: self.clone(), number, replaced }, is_full)
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HandshakePlace {
    /// Waits until a new connection has taken the place.
    pub(super) async fn replaced(&self) {
        self.replaced.notified().await;
    }
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.handshakes.lock().free(self.number);
    }
}

impl Places {
    fn take(&mut self, client: Option<ClientNetwork>, replaced: Arc<Notify>) -> u64 {
        self.begun += 1;
        self.taken.insert(self.begun, Place { client, replaced });
        if let Some(client) = client {
            self.of_client.entry(client).or_default().insert(self.begun);
        }
        self.begun
    }

    /// Frees a place for a connection of `client`, and tells its handshake.
    fn replace_one(&mut self, client: Option<ClientNetwork>) {
        let Some((oldest, place)) = self.taken.first_key_value() else { return };
        let oldest_of = |client| self.of_client.get(&client?);
        let own = oldest_of(client);
        let held = |numbers: Option<&BTreeSet<u64>>| numbers.map_or(0, BTreeSet::len);
        let number = match own.and_then(BTreeSet::first) {
            Some(first) if held(own) >= held(oldest_of(place.client)) => *first,
            _ => *oldest,
        };
        if let Some(place) = self.free(number) {
            place.replaced.notify_one();
        }
    }

    fn free(&mut self, number: u64) -> Option<Place> {
        let place = self.taken.remove(&number)?;
        if let Some(client) = place.client
            && let Some(numbers) = self.of_client.get_mut(&client)
        {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.of_client.remove(&client);
            }
        }
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins a handshake of each client in turn, with room for `max`. Returns which of them keep their places.
    fn kept(clients: &[u8], max: usize) -> Vec<usize> {
        let handshakes = Arc::new(Handshakes::default());
        let address = |client: u8| (client > 0).then(|| IpAddr::from([192, 0, 2, client]));
        let begun: Vec<_> =
            clients.iter().map(|client| handshakes.begin(address(*client), max).0).collect();
        let places = handshakes.lock();
        (0..begun.len()).filter(|at| places.taken.contains_key(&begun[*at].number)).collect()
    }

    #[test]
    fn a_new_handshake_takes_the_place_of_the_one_that_has_waited_longest() {
        assert_eq!(kept(&[1, 2, 3], 3), [0, 1, 2]);
        assert_eq!(kept(&[1, 2, 3, 4], 3), [1, 2, 3]);
        assert_eq!(kept(&[0, 0, 0], 1), [2], "clients that are not known yet");
        assert_eq!(kept(&[1, 1, 1, 2], 3), [1, 2, 3], "one of the client that holds most");
    }

    #[test]
    fn a_client_with_many_handshakes_replaces_its_own() {
        assert_eq!(kept(&[1, 2, 2, 2, 2, 2], 3), [0, 4, 5]);
        assert_eq!(kept(&[1, 2, 3, 2], 3), [0, 2, 3]);
        assert_eq!(kept(&[1, 1, 2, 2], 3), [1, 2, 3], "a client with fewer than the other");
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let handshakes = Arc::new(Handshakes::default());
        let client = Some(IpAddr::from([192, 0, 2, 1]));
        let (first, _) = handshakes.begin(client, 1);
        drop(first);
        let (second, has_replaced) = handshakes.begin(client, 1);
        assert!(!has_replaced);
        assert!(handshakes.begin(client, 1).1);
        drop(second);
        let places = handshakes.lock();
        assert!(places.taken.is_empty() && places.of_client.is_empty());
    }
}
