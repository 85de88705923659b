//! Deliveries: purges that this node sends to each of its peers itself, over the peer link.
//!
//! They are the invalidations by unsafe methods and, on a node without a purge stream, all purges. The place of a
//! delivery is the purge sequence of its last scope. So the purge table tells whether a peer lacks a purge of a
//! response: it is later than the place up to which the peer has taken all deliveries.
//!
//! ```text
//! sender    purge ─▶ table (in force) ─▶ kept ─▶ log: LATEST…, DELIVERY, one frame ─▶ on disk ─▶ call to each peer
//! receiver  call ─▶ table (in force) ─▶ kept ─▶ log: LATEST…, DELIVERY, SENDER, one frame ─▶ on disk ─▶ answer
//! ```
//!
//! A receiver delivers a purge that it did not know to its own peers: so each node knows for itself which peer has
//! it, and the purge reaches all nodes although the sender has died.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::Notify;

use super::batch::{DeliveryPart, PurgeBatch, SenderPosition};
use super::frame::LogEntry;
use super::unread::PurgeId;
use crate::cache::PurgeScope;

/// The deliveries of a node, and how far each peer has taken them.
#[derive(Default)]
pub(super) struct Deliveries {
    /// Not set: this node has no peers and delivers nothing.
    pub(super) record_of: OnceLock<RecordOfInvalidation>,
    kept: Mutex<KeptDeliveries>,
    /// Held from before a delivery is in force until it is queued for the log.
    order: Mutex<()>,
    /// The deliveries up to this place are on disk.
    pub(super) on_disk: AtomicU64,
    peers: RwLock<HashMap<Arc<str>, Arc<PeerProgress>>>,
    /// Wakes the tasks that send deliveries.
    pub(super) added: Notify,
    /// Wakes requests that wait until a peer has taken a delivery.
    pub(super) taken: Notify,
}

/// Makes the delivery of an invalidation of these scopes. `None`: the node is shutting down.
pub(crate) type RecordOfInvalidation =
    Box<dyn Fn(&[PurgeScope]) -> Option<DeliveryPart> + Send + Sync>;

/// How far a peer is.
#[derive(Debug, Default)]
pub(super) struct PeerProgress {
    /// The place up to which the peer has taken all deliveries. 0: not known.
    pub(super) taken: AtomicU64,
    /// Whether it has answered the last call.
    pub(super) is_reached: AtomicBool,
}

/// The deliveries that can still be sent, and what was taken from other nodes.
#[derive(Debug, Default)]
pub(super) struct KeptDeliveries {
    pub(super) by_place: BTreeMap<u64, Delivery>,
    pub(super) ids: HashSet<PurgeId>,
    bytes: usize,
    /// The deliveries up to this place are not kept any more, because there were too many.
    pub(super) start: u64,
    /// How far the deliveries of other nodes were taken, and are on disk; at most [`SENDERS_MAX`].
    pub(super) senders: HashMap<Arc<str>, SenderPosition>,
}

#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) id: PurgeId,
    pub(super) message: Bytes,
    /// The peer that it came from, which does not get it again. `None`: this node, or not known after a restart.
    pub(super) from: Option<Arc<str>>,
    pub(super) is_of_everything: bool,
}

/// Deliveries for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeliveryBatch {
    /// The peer must have taken all deliveries up to this place, unless the first of `messages` purges everything.
    pub after: u64,
    /// The place of the last one.
    pub up_to: u64,
    /// The records, in their order. Not empty.
    pub messages: Vec<Bytes>,
}

/// The next delivery for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NextDelivery {
    /// The peer has everything that is on disk here.
    Nothing,
    /// These deliveries.
    Batch(DeliveryBatch),
    /// The peer lacks deliveries that are not kept any more: it must purge everything, which is yet to be ordered.
    Dropped,
}

impl Deliveries {
    /// The content that was read from the log.
    pub(super) fn restored(kept: KeptDeliveries) -> Self {
        let on_disk = AtomicU64::new(kept.last_place());
        Self { kept: Mutex::new(kept), on_disk, ..Self::default() }
    }

    /// The delivery of an invalidation. `None`: this node delivers nothing.
    pub(super) fn of_invalidation(&self, scopes: &[PurgeScope]) -> Option<DeliveryPart> {
        self.record_of.get().and_then(|record_of| record_of(scopes))
    }

    /// To be held until the batch is queued for the log, if it has deliveries: the list has no hole then, and no
    /// later batch is on disk before it.
    pub(super) fn order(&self, batch: &PurgeBatch) -> Option<MutexGuard<'_, ()>> {
        let is_needed = !batch.deliveries.is_empty() || batch.sender.is_some();
        is_needed.then(|| self.order.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that the deliveries up to this place are on disk.
    pub(super) fn note_on_disk(&self, place: u64) {
        if place > self.on_disk.fetch_max(place, Ordering::AcqRel) {
            self.added.notify_waiters();
        }
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, KeptDeliveries> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self, peer: &str) -> Option<Arc<PeerProgress>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    pub(super) fn peers_mut<R>(
        &self,
        change: impl FnOnce(&mut HashMap<Arc<str>, Arc<PeerProgress>>) -> R,
    ) -> R {
        change(&mut self.peers.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn taken_by(&self, peer: &str) -> u64 {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(peer).map_or(0, |progress| progress.taken.load(Ordering::Acquire))
    }

    /// Whether all peers that were reached last time have taken the deliveries up to this place.
    pub(super) fn are_taken(&self, place: u64) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().all(|progress| {
            !progress.is_reached.load(Ordering::Relaxed)
                || progress.taken.load(Ordering::Acquire) >= place
        })
    }
}

impl KeptDeliveries {
    /// Applies an entry of a log that is being read.
    pub(super) fn restore(&mut self, entry: LogEntry) {
        match entry {
            LogEntry::Delivery(place, message) => {
                let id = PurgeId::of("");
                self.insert(place, Delivery { id, message, from: None, is_of_everything: false });
                self.drop_above(ENTRIES_MAX, BYTES_MAX);
            }
            LogEntry::DeliveryStart(start) => self.start = self.start.max(start),
            LogEntry::Sender(name, position) => self.take(name, position),
            _ => {}
        }
    }

    /// The entries of a snapshot of the log, and the place of the last delivery in it.
    pub(super) fn entries(&self) -> (Vec<LogEntry>, u64) {
        let mut entries = vec![LogEntry::DeliveryStart(self.start)];
        let sender = |(name, position): (&Arc<str>, &SenderPosition)| {
            LogEntry::Sender(name.clone(), *position)
        };
        entries.extend(self.senders.iter().map(sender));
        let delivery =
            |(place, it): (&u64, &Delivery)| LogEntry::Delivery(*place, it.message.clone());
        entries.extend(self.by_place.iter().map(delivery));
        (entries, self.last_place())
    }

    /// Removes deliveries from before this sequence.
    pub(super) fn prune(&mut self, horizon: u64) {
        while self.by_place.first_key_value().is_some_and(|(place, _)| *place < horizon) {
            self.drop_first();
        }
    }

    pub(super) fn insert(&mut self, place: u64, delivery: Delivery) {
        self.bytes += delivery.message.len();
        if let Some(same) = self.by_place.insert(place, delivery) {
            self.bytes -= same.message.len();
        }
    }

    /// Removes the oldest above these limits. Returns their number.
    pub(super) fn drop_above(&mut self, entries_max: usize, bytes_max: usize) -> usize {
        let mut dropped = 0;
        while self.by_place.len() > entries_max || self.bytes > bytes_max {
            match self.drop_first() {
                Some(place) => self.start = self.start.max(place),
                None => break,
            }
            dropped += 1;
        }
        dropped
    }

    fn drop_first(&mut self) -> Option<u64> {
        let (place, first) = self.by_place.pop_first()?;
        self.bytes -= first.message.len();
        self.ids.remove(&first.id);
        Some(place)
    }

    /// Notes how far the deliveries of a node were taken. A position never goes back in the same log. Beyond
    /// [`SENDERS_MAX`] nodes, the one is forgotten whose last delivery is the oldest.
    pub(super) fn take(&mut self, name: Arc<str>, position: SenderPosition) {
        let known = self.senders.entry(name).or_insert(position);
        if known.lineage != position.lineage || known.place < position.place {
            *known = position;
        }
        if self.senders.len() > SENDERS_MAX
            && let Some(oldest) = self.senders.iter().min_by_key(|(_, known)| known.place)
        {
            let oldest = oldest.0.clone();
            self.senders.remove(&oldest);
        }
    }

    pub(super) fn between(
        &self,
        after: u64,
        up_to: u64,
    ) -> impl Iterator<Item = (&u64, &Delivery)> {
        // A range whose end is before its start would panic.
        self.by_place.range((Bound::Excluded(after), Bound::Included(up_to.max(after))))
    }

    pub(super) fn last_of_everything(&self, on_disk: u64) -> Option<u64> {
        let mut kept = self.by_place.range(..=on_disk).rev();
        kept.find(|(_, delivery)| delivery.is_of_everything).map(|(place, _)| *place)
    }

    pub(super) fn last_place(&self) -> u64 {
        self.by_place.last_key_value().map_or(self.start, |(place, _)| *place)
    }
}

/// Deliveries that are kept. A peer that lacks more than these purges everything softly when it comes back.
pub(super) const ENTRIES_MAX: usize = 65_536;
/// Their total length, in memory and on disk.
pub(super) const BYTES_MAX: usize = 32 << 20;
/// Nodes whose position is kept: many more than a node has peers at a time, where nodes come and go under new names. One
/// that is forgotten delivers again what it keeps.
pub(super) const SENDERS_MAX: usize = 4096;
