//! How far this node's outbox was published.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;

use super::link::Outgoing;

/// What of the outbox was published. It leaves the outbox when it was read back from the
/// stream, not before.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    /// The first message that was not published.
    next: u64,
    /// Moves when all of the outbox must be published anew.
    generation: u64,
    /// Ids of published messages, and their numbers in the outbox.
    in_flight: HashMap<String, u64>,
}

impl Publishing {
    pub(super) fn part(&self) -> OutboxPart {
        OutboxPart { next: self.next, generation: self.generation }
    }

    /// These are about to be published.
    pub(super) fn note(&mut self, messages: Vec<(u64, Bytes)>) -> Vec<Outgoing> {
        let note = |(number, record): (u64, Bytes)| {
            let id = id_of(&record);
            self.in_flight.extend(id.clone().map(|id| (id, number)));
            Outgoing { id, record }
        };
        messages.into_iter().map(note).collect()
    }

    /// Redis has everything before `part.next`, unless it has lost it since.
    pub(super) fn sent(&mut self, part: OutboxPart) {
        if part.generation == self.generation {
            self.next = part.next;
        }
    }

    /// Redis has lost what it was given: all that is still in the outbox goes out once more.
    pub(super) fn again(&mut self) {
        self.next = 0;
        self.generation += 1;
    }

    /// The outbox numbers of these purges, which were read from the stream.
    pub(super) fn read_back<'a>(&mut self, ids: impl Iterator<Item = &'a str>) -> Vec<u64> {
        ids.filter_map(|id| self.in_flight.remove(id)).collect()
    }
}

/// Up to where the outbox was published, and since which loss.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutboxPart {
    pub next: u64,
    pub generation: u64,
}

fn id_of(message: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    serde_json::from_slice::<Named>(message).ok().map(|named| named.id)
}
