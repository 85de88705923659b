//! The part of the purge log that belongs to the purge bus: its cursor, its outbox, and the purges that it has not
//! read from the stream yet.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::Purges;
use super::batch::{PurgeError, RecordPart};
use super::frame::LogEntry;
use super::outbox::BusState;
use super::position::BusCursor;
use super::table::TableScope;
use super::unread::{PurgeId, UnreadPurge};
use crate::cache::{PurgeKind, PurgeScope};
use crate::clock::unix_us;
use crate::metrics::Metric;

impl Purges {
    /// The bus' position after the purges that are in force: it moves after them. `None` in a new or damaged
    /// log.
    pub(crate) fn cursor(&self) -> Option<Bytes> {
        self.bus().cursor.clone()
    }

    /// The purges of this node that the stream has not brought back, oldest first, each with its number: the
    /// first `limit` whose number is at least `number`.
    pub(crate) fn outbox_from(&self, number: u64, limit: usize) -> Vec<(u64, Bytes)> {
        self.bus().outbox.from(number, limit)
    }

    /// Number of messages in the outbox.
    pub(crate) fn outbox_len(&self) -> usize {
        self.bus().outbox.len()
    }

    /// Number of purges that are in force and were not read from the stream yet.
    pub(crate) fn unread_len(&self) -> usize {
        self.unread.len()
    }

    /// Tells of a message that was found in the outbox at the start which purge it is.
    pub(crate) fn restore_unread(
        &self,
        number: u64,
        id: PurgeId,
        is_own: bool,
        scopes: &[PurgeScope],
    ) {
        let mut bus = self.bus();
        if !is_own && let Some(message) = bus.outbox.remove(number) {
            bus.wake_ups.insert(number, message);
        }
        let since = self.issued.load(Ordering::Acquire);
        let scopes = scopes.iter().map(TableScope::of).collect();
        self.unread.insert(id, UnreadPurge { since, message: Some(number), scopes });
    }

    /// Moves purges of other nodes to the outbox that have been unread for `age`: Redis has lost them, and the
    /// nodes that ordered them may be gone. Returns their number.
    pub(crate) fn adopt_unread(&self, age: Duration) -> usize {
        if self.unread.len() == 0 {
            return 0;
        }
        let before = unix_us(self.clock.now()).saturating_sub(age.as_micros() as u64);
        let old = self.unread.messages_before(before);
        let mut bus = self.bus();
        let bus = &mut *bus;
        let mut adopted = 0;
        for number in old {
            if let Some(message) = bus.wake_ups.remove(number) {
                bus.outbox.insert(number, message);
                adopted += 1;
            }
        }
        adopted
    }

    /// Adds the records of a batch to the unread purges, and their messages to the outbox, with their entries for
    /// the log. Called before the batch's purges are in force: such a purge must not be forgotten by the bus,
    /// and an asker must find it.
    ///
    /// # Errors
    /// The outbox is full; nothing is stored.
    pub(super) fn insert_unread(
        &self,
        records: Vec<RecordPart>,
        purges: &[(TableScope, PurgeKind)],
        entries: &mut Vec<LogEntry>,
    ) -> Result<(), PurgeError> {
        let mut bus = self.bus();
        self.check_room(&bus, &records)?;
        let mut rest = purges;
        for record in records {
            let (own, others) = rest.split_at(record.count.min(rest.len()));
            rest = others;
            // A wake-up after its entry, or one of two.
            let message = record.message.filter(|_| self.unread.needs_message(record.id));
            let number = message.map(|message| {
                let number = bus.next_number();
                entries.push(LogEntry::Outbox(number, message.clone()));
                let kept = if record.is_own { &mut bus.outbox } else { &mut bus.wake_ups };
                kept.insert(number, message);
                number
            });
            let since = self.issued.load(Ordering::Acquire);
            let scopes = own.iter().map(|(scope, _)| scope.clone()).collect();
            self.unread.insert(record.id, UnreadPurge { since, message: number, scopes });
        }
        Ok(())
    }

    fn check_room(&self, bus: &BusState, records: &[RecordPart]) -> Result<(), PurgeError> {
        for (is_own, kept) in [(true, &bus.outbox), (false, &bus.wake_ups)] {
            let of_kind = records.iter().filter(|record| record.is_own == is_own);
            let lengths = of_kind.filter_map(|record| record.message.as_ref().map(Bytes::len));
            let (count, bytes) =
                lengths.fold((0, 0), |(count, sum), length| (count + 1, sum + length));
            if count > 0 && !kept.has_room(count, bytes, &self.settings) {
                if is_own {
                    self.recorder.count(Metric::PurgesRefused);
                }
                let (messages, bytes) = (kept.len(), kept.bytes());
                return Err(PurgeError::OutboxFull { messages, bytes });
            }
        }
        Ok(())
    }

    /// Stores the cursor of a batch, and adds its entries for the log. Called after the batch's purges are in
    /// force: the log may be rewritten from this state at any time, and a cursor without its purges
    /// is one that never reads them again.
    pub(super) fn set_cursor(&self, cursor: &BusCursor, entries: &mut Vec<LogEntry>) {
        self.bus().cursor = Some(cursor.bytes.clone());
        self.place.move_late(cursor);
        entries.push(LogEntry::Cursor(cursor.bytes.clone()));
        let messages = cursor.read.iter().filter_map(|id| self.unread.message(*id));
        entries.extend(messages.map(LogEntry::Sent));
    }

    /// Forgets unread purges whose cursor is on disk, and their messages.
    pub(super) fn remove_read(&self, read: &[PurgeId]) {
        if read.is_empty() {
            return;
        }
        let mut bus = self.bus();
        let messages = self.unread.remove(read);
        messages.into_iter().for_each(|number| bus.remove(number));
        drop(bus);
        self.place.changed.notify_waiters();
    }

    pub(super) fn bus(&self) -> MutexGuard<'_, BusState> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
