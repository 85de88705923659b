//! The part of the purge log that belongs to the purge bus: its cursor and its outbox.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;

use super::Purges;
use super::batch::PurgeError;
use super::frame::LogEntry;
use super::outbox::BusState;
use crate::cache::PurgeSequence;
use crate::metrics::Metric;

impl Purges {
    /// The bus' position that was last made durable with a purge. `None` in a new or damaged log.
    pub(crate) fn cursor(&self) -> Option<Bytes> {
        self.bus().cursor.clone()
    }

    /// The messages waiting for the bus, oldest first, each with its number: the first `limit` whose
    /// number is at least `number`.
    pub(crate) fn outbox_from(&self, number: u64, limit: usize) -> Vec<(u64, Bytes)> {
        self.bus().outbox.from(number, limit)
    }

    /// Number of messages waiting for the bus.
    pub(crate) fn outbox_len(&self) -> usize {
        self.bus().outbox.len()
    }

    /// Removes messages that the bus has sent. Durable when this returns.
    ///
    /// # Errors
    /// [`PurgeError::NotDurable`] if the log could not be written.
    pub(crate) async fn sent(&self, numbers: &[u64]) -> Result<(), PurgeError> {
        let entries: Vec<LogEntry> = {
            let mut bus = self.bus();
            let known = numbers.iter().filter(|number| bus.outbox.remove(**number));
            known.map(|number| LogEntry::Sent(*number)).collect()
        };
        let sequence = PurgeSequence(self.applied.0.load(Ordering::Acquire));
        self.commit(entries).await.map_err(|reason| PurgeError::NotDurable { sequence, reason })
    }

    /// Stores the cursor and the message of a batch, and appends their entries for the log. Returns
    /// the message's number.
    ///
    /// # Errors
    /// The outbox is full; nothing is stored.
    pub(super) fn apply_bus_state(
        &self,
        cursor: Option<Bytes>,
        message: Option<Bytes>,
        entries: &mut Vec<LogEntry>,
    ) -> Result<Option<u64>, PurgeError> {
        let mut bus = self.bus();
        let outbox = &bus.outbox;
        if message.as_ref().is_some_and(|message| !outbox.has_room(message, &self.settings)) {
            self.recorder.count(Metric::PurgesRefused);
            let (messages, bytes) = (outbox.len(), outbox.bytes());
            return Err(PurgeError::OutboxFull { messages, bytes });
        }
        if let Some(cursor) = cursor {
            bus.cursor = Some(cursor.clone());
            entries.push(LogEntry::Cursor(cursor));
        }
        Ok(message.map(|message| {
            let number = bus.outbox.push(message.clone());
            entries.push(LogEntry::Outbox(number, message));
            number
        }))
    }

    pub(super) fn bus(&self) -> MutexGuard<'_, BusState> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
