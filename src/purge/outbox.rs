//! The purge bus' data in the purge log: its cursor, and the messages that it has not sent yet.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::settings::Settings;

/// The bus' part of the log.
#[derive(Debug, Default)]
pub(super) struct BusState {
    pub(super) cursor: Option<Bytes>,
    pub(super) outbox: Outbox,
}

/// Messages that the bus has not sent yet, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: BTreeMap<u64, Bytes>,
    bytes: usize,
    next: u64,
}

impl Outbox {
    /// Appends a message and returns its number.
    pub(super) fn push(&mut self, message: Bytes) -> u64 {
        let number = self.next;
        self.insert(number, message);
        number
    }

    pub(super) fn insert(&mut self, number: u64, message: Bytes) {
        self.next = self.next.max(number + 1);
        self.bytes += message.len();
        if let Some(old) = self.messages.insert(number, message) {
            self.bytes -= old.len();
        }
    }

    /// Removes a message. Returns whether it was there.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let removed = self.messages.remove(&number);
        self.bytes -= removed.as_ref().map_or(0, Bytes::len);
        removed.is_some()
    }

    /// Whether there is space for another message; an empty outbox always has space.
    pub(super) fn has_room(&self, message: &Bytes, settings: &Settings) -> bool {
        self.messages.is_empty()
            || self.messages.len() < settings.outbox_entries_max
                && self.bytes + message.len() <= settings.outbox_bytes_max
    }

    /// All of them, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Bytes)> {
        self.messages.iter().map(|(number, message)| (*number, message.clone()))
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
