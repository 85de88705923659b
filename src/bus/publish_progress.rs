//! How much of this node's outbox was published to the stream.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;

use super::connection::PurgeMessage;

/// The published part of the outbox. A message leaves the outbox when it was read back from the
/// stream, not when it was published.
#[derive(Debug, Default)]
pub(super) struct PublishProgress {
    /// Number of the first message that was not published.
    next: u64,
    /// Incremented when the whole outbox must be published again.
    generation: u64,
    /// Ids of published messages, and their numbers in the outbox.
    in_flight: HashMap<String, u64>,
}

impl PublishProgress {
    /// Where publishing continues.
    pub(super) fn position(&self) -> OutboxPosition {
        OutboxPosition { next: self.next, generation: self.generation }
    }

    /// Remembers that these messages are about to be published, and prepares them for Redis.
    pub(super) fn start(&mut self, messages: Vec<(u64, Bytes)>) -> Vec<PurgeMessage> {
        let start = |(number, record): (u64, Bytes)| {
            let id = id_of(&record);
            self.in_flight.extend(id.clone().map(|id| (id, number)));
            PurgeMessage { id, record }
        };
        messages.into_iter().map(start).collect()
    }

    /// Redis has taken all messages before `position.next`. Ignored if the outbox must be published
    /// again since.
    pub(super) fn confirm(&mut self, position: OutboxPosition) {
        if position.generation == self.generation {
            self.next = position.next;
        }
    }

    /// Redis has lost messages: publishes again all that are still in the outbox.
    pub(super) fn restart(&mut self) {
        self.next = 0;
        self.generation += 1;
    }

    /// Publishes again if a message before `confirmed` was not read back. Call it only when the stream was
    /// read up to a head that Redis told after it had confirmed those messages. Returns the number of
    /// lost messages.
    pub(super) fn restart_if_lost(&mut self, confirmed: OutboxPosition) -> usize {
        if confirmed.generation != self.generation {
            return 0;
        }
        let lost = self.in_flight.values().filter(|number| **number < confirmed.next).count();
        if lost > 0 {
            self.restart();
        }
        lost
    }

    /// Forgets these purges, which were read from the stream.
    pub(super) fn forget_read_back<'a>(&mut self, ids: impl Iterator<Item = &'a str>) {
        for id in ids {
            self.in_flight.remove(id);
        }
    }
}

/// A position in the outbox; positions of another generation are no longer valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutboxPosition {
    /// Number of the next message to publish.
    pub next: u64,
    /// See [`PublishProgress::restart`].
    pub generation: u64,
}

fn id_of(message: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct RecordId {
        id: String,
    }
    serde_json::from_slice::<RecordId>(message).ok().map(|record| record.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_confirmed_messages_that_were_not_read_back_are_lost() {
        let message = |number: u64| (number, Bytes::from(format!("{{\"id\":\"p{number}\"}}")));
        let mut progress = PublishProgress::default();
        progress.start((0..4).map(message).collect());
        progress.confirm(OutboxPosition { next: 3, generation: 0 });
        let confirmed = progress.position();
        progress.forget_read_back(["p0", "p1"].into_iter());
        assert_eq!(progress.restart_if_lost(confirmed), 1, "p2; p3 may be under way");
        assert_eq!(progress.position().next, 0);
        assert_eq!(progress.restart_if_lost(confirmed), 0, "it is published again already");
    }
}
