//! The purge bus' data in the purge log: its cursor, and the messages that the stream has not brought back yet.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::settings::Settings;

/// The bus' part of the log.
#[derive(Debug, Default)]
pub(super) struct BusState {
    pub(super) cursor: Option<Bytes>,
    /// Purges of this node, to be published.
    pub(super) outbox: Outbox,
    /// Purges of other nodes, which those publish: this node has them by wake-up. The log does not tell them
    /// from the outbox, so that every version publishes them rather than lose them.
    pub(super) wake_ups: Outbox,
    next: u64,
}

impl BusState {
    /// The number of the next message.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Adds a message that was read from the log.
    pub(super) fn restore(&mut self, number: u64, message: Bytes) {
        self.next = self.next.max(number + 1);
        self.outbox.insert(number, message);
    }

    /// Removes a message.
    pub(super) fn remove(&mut self, number: u64) {
        if self.outbox.remove(number).is_none() {
            self.wake_ups.remove(number);
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.outbox.messages.contains_key(&number) || self.wake_ups.messages.contains_key(&number)
    }

    /// All messages, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Bytes)> {
        let messages = self.outbox.messages.iter().chain(&self.wake_ups.messages);
        messages.map(|(number, message)| (*number, message.clone()))
    }
}

/// Messages that the stream has not brought back yet, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: BTreeMap<u64, Bytes>,
    bytes: usize,
}

impl Outbox {
    pub(super) fn insert(&mut self, number: u64, message: Bytes) {
        self.bytes += message.len();
        if let Some(old) = self.messages.insert(number, message) {
            self.bytes -= old.len();
        }
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Bytes> {
        let removed = self.messages.remove(&number);
        self.bytes -= removed.as_ref().map_or(0, Bytes::len);
        removed
    }

    /// Whether there is space for messages of this number and length; an empty outbox always has space.
    pub(super) fn has_room(&self, count: usize, bytes: usize, settings: &Settings) -> bool {
        self.messages.is_empty()
            || self.messages.len() + count <= settings.outbox_entries_max
                && self.bytes + bytes <= settings.outbox_bytes_max
    }

    /// The first `limit` of them whose number is at least `number`.
    pub(super) fn from(&self, number: u64, limit: usize) -> Vec<(u64, Bytes)> {
        let messages = self.messages.range(number..).take(limit);
        messages.map(|(number, message)| (*number, message.clone())).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Total length of the messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
