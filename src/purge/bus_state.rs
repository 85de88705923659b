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
    /// The bus' position after the purges that are in force: it moves after them. `None` in a new or damaged
    /// log.
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

    /// Adds the message of a batch to the outbox, and its entry for the log. Called before the batch's purges
    /// are in force: a purge that is in force must not be forgotten by the bus. Returns the message's
    /// number.
    ///
    /// # Errors
    /// The outbox is full; nothing is stored.
    pub(super) fn push_message(
        &self,
        message: Option<Bytes>,
        entries: &mut Vec<LogEntry>,
    ) -> Result<Option<u64>, PurgeError> {
        let Some(message) = message else { return Ok(None) };
        let mut bus = self.bus();
        let outbox = &mut bus.outbox;
        if !outbox.has_room(&message, &self.settings) {
            self.recorder.count(Metric::PurgesRefused);
            let (messages, bytes) = (outbox.len(), outbox.bytes());
            return Err(PurgeError::OutboxFull { messages, bytes });
        }
        let number = outbox.push(message.clone());
        entries.push(LogEntry::Outbox(number, message));
        Ok(Some(number))
    }

    /// Stores the cursor of a batch, and adds its entry for the log. Called after the batch's purges are in
    /// force: the log may be rewritten from this state at any time, and a cursor without its purges
    /// is one that never reads them again.
    pub(super) fn set_cursor(&self, cursor: Option<Bytes>, entries: &mut Vec<LogEntry>) {
        if let Some(cursor) = cursor {
            self.bus().cursor = Some(cursor.clone());
            entries.push(LogEntry::Cursor(cursor));
        }
    }

    pub(super) fn bus(&self) -> MutexGuard<'_, BusState> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
