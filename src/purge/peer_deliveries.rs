//! The node's use of its deliveries: which peer may be asked for a key, what each peer gets next, and what
//! is taken from other nodes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::Purges;
use super::batch::{DeliveryPart, DeliverySender};
use super::deliveries::{
    BYTES_MAX, Delivery, DeliveryBatch, ENTRIES_MAX, KeptDeliveries, NextDelivery, PeerProgress,
    RecordOfInvalidation,
};
use super::frame::LogEntry;
use super::unread::PurgeId;
use crate::cache::{PurgeSequence, PurgeTarget};
use crate::clock::unix_us;
use crate::metrics::Metric;
use crate::planted::{self, Bug};

impl Purges {
    /// Tells that this node has peers: from now on it keeps deliveries for them.
    pub(crate) fn expect_peers(&self, record_of: RecordOfInvalidation) {
        // A node has one bus, which calls this once.
        let _ = self.deliveries.record_of.set(record_of);
    }

    /// Whether this node keeps deliveries for peers.
    pub(crate) fn has_peers(&self) -> bool {
        self.deliveries.record_of.get().is_some()
    }

    /// Tells of the deliveries that were found in the log which purges they are, and whether they purge everything.
    pub(crate) fn restore_deliveries(&self, identify: impl Fn(&Bytes) -> Option<(PurgeId, bool)>) {
        let mut kept = self.deliveries.kept();
        let KeptDeliveries { by_place, ids, .. } = &mut *kept;
        for delivery in by_place.values_mut() {
            if let Some((id, is_of_everything)) = identify(&delivery.message) {
                ids.insert(id);
                (delivery.id, delivery.is_of_everything) = (id, is_of_everything);
            }
        }
    }

    /// The last `count` deliveries and their places, oldest first.
    pub(crate) fn last_deliveries(&self, count: usize) -> Vec<(PurgeSequence, Bytes)> {
        let kept = self.deliveries.kept();
        let last = kept.by_place.iter().rev().take(count);
        let mut last: Vec<_> =
            last.map(|(place, it)| (PurgeSequence(*place), it.message.clone())).collect();
        last.reverse();
        last
    }

    /// Whether this purge is kept as a delivery, and so in force here.
    pub(crate) fn has_delivery(&self, id: PurgeId) -> bool {
        self.deliveries.kept().ids.contains(&id)
    }

    /// How far this node has taken the deliveries of `sender`, in the log with this lineage, so that they are on
    /// disk. 0: none.
    pub(crate) fn taken_from(&self, sender: &str, lineage: u64) -> u64 {
        let kept = self.deliveries.kept();
        let position = kept.senders.get(sender).filter(|position| position.lineage == lineage);
        position.map_or(0, |position| position.place)
    }

    /// Notes that the deliveries of a batch with this sender are on disk.
    pub(crate) fn note_taken_from(&self, sender: DeliverySender) {
        self.deliveries.kept().take(sender.name, sender.position);
    }

    /// Begins to count how far a peer is.
    pub(crate) fn add_peer(&self, peer: &Arc<str>) {
        self.deliveries.peers_mut(|peers| {
            peers.entry(peer.clone()).or_default();
        });
    }

    /// Forgets how far a peer is.
    pub(crate) fn remove_peer(&self, peer: &str) {
        self.deliveries.peers_mut(|peers| peers.remove(peer));
        self.deliveries.taken.notify_waiters();
    }

    /// Notes that a peer has taken all deliveries up to this place, and no more.
    pub(crate) fn note_taken(&self, peer: &str, place: u64) {
        if let Some(progress) = self.deliveries.progress(peer) {
            progress.taken.store(place, Ordering::Release);
            progress.is_reached.store(true, Ordering::Relaxed);
        }
        self.deliveries.taken.notify_waiters();
    }

    /// Notes that a peer has not answered: no unsafe request waits for it.
    pub(crate) fn note_unreached(&self, peer: &str) {
        if let Some(progress) = self.deliveries.progress(peer) {
            progress.is_reached.store(false, Ordering::Relaxed);
        }
        self.deliveries.taken.notify_waiters();
    }

    /// The next deliveries for a peer that has taken those up to `position`: at most `count_max`, and, but for the
    /// first, at most `bytes_max`.
    pub(crate) fn next_delivery(
        &self,
        peer: &str,
        position: u64,
        (count_max, bytes_max): (usize, usize),
    ) -> NextDelivery {
        let Some(progress) = self.deliveries.progress(peer) else { return NextDelivery::Nothing };
        let on_disk = self.deliveries.on_disk.load(Ordering::Acquire);
        let kept = self.deliveries.kept();
        let (after, first) = match position < kept.start {
            false => (position, position.max(progress.taken.load(Ordering::Acquire))),
            true => match kept.last_of_everything(on_disk) {
                Some(place) => (place - 1, place - 1),
                None => return NextDelivery::Dropped,
            },
        };
        // A call that skips deliveries begins with a purge of everything, also with one that came from the peer.
        let skipped_to = (position < kept.start).then_some(first + 1);
        let (mut up_to, mut bytes, mut messages) = (first, 0, Vec::new());
        for (place, delivery) in kept.between(first, on_disk) {
            let is_back = delivery.from.as_deref() == Some(peer) && skipped_to != Some(*place);
            if !is_back {
                bytes += delivery.message.len();
                if messages.len() == count_max || bytes > bytes_max && !messages.is_empty() {
                    break;
                }
                messages.push(delivery.message.clone());
            }
            up_to = *place;
        }
        drop(kept);
        if !messages.is_empty() {
            return NextDelivery::Batch(DeliveryBatch { after, up_to, messages });
        }
        // Nothing but what the peer has sent itself.
        if up_to > first {
            progress.taken.fetch_max(up_to, Ordering::AcqRel);
            self.deliveries.taken.notify_waiters();
        }
        NextDelivery::Nothing
    }

    /// Resolves once there are more deliveries on disk than at the call.
    pub(crate) fn delivery_added(&self) -> impl Future<Output = ()> + Send + '_ {
        self.deliveries.added.notified()
    }

    /// How many deliveries each peer has not taken yet, by name.
    pub(crate) fn untaken(&self) -> Vec<(Arc<str>, usize)> {
        let peers = self.deliveries.peers_mut(|peers| peers.clone());
        let kept = self.deliveries.kept();
        let count = |progress: &PeerProgress| {
            kept.between(progress.taken.load(Ordering::Acquire), u64::MAX).count()
        };
        peers.into_iter().map(|(name, progress)| (name, count(&progress))).collect()
    }

    /// Whether a peer has all purges of this node that may cover a response to `target`, as far as the peer link
    /// brings them.
    ///
    /// Call it **after** the purge sequence was read with which the response will be stored. Costs a lookup in the
    /// purge table.
    pub(crate) fn peer_has_purges(&self, peer: &str, target: &PurgeTarget<'_>) -> bool {
        !self.has_peers()
            || planted::has(Bug::DeliveriesIgnored)
            || !self.peer_lacks_after(peer, target, 0)
    }

    /// Whether a peer may lack a purge later than `since` that may cover a response to `target`.
    fn peer_lacks_after(&self, peer: &str, target: &PurgeTarget<'_>, since: u64) -> bool {
        // Read before the table: it only grows while the peer lives.
        let taken = self.deliveries.taken_by(peer).max(since);
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let since = PurgeSequence(taken.max(table.horizon()));
        match self.has_stream() {
            // The purge stream brings the others.
            true => table.may_be_invalidated(target, since),
            false => table.may_cover(target, since),
        }
    }

    /// Waits at most `limit` until a peer has the purges that may cover `target`, if the last of them is that
    /// young: most are taken within milliseconds.
    pub(crate) async fn peer_takes_purges(
        &self,
        peer: &str,
        target: &PurgeTarget<'_>,
        limit: Duration,
    ) {
        let until = tokio::time::Instant::now() + limit;
        loop {
            let taken = self.deliveries.taken.notified();
            let young = unix_us(self.clock.now()).saturating_sub(limit.as_micros() as u64);
            if !self.peer_lacks_after(peer, target, young)
                || tokio::time::timeout_at(until, taken).await.is_err()
            {
                return;
            }
        }
    }

    /// Waits at most `limit` until all peers that were reached last time have taken all deliveries.
    pub(crate) async fn peers_take_deliveries(&self, limit: Duration) {
        let place = self.deliveries.kept().last_place();
        let until = tokio::time::Instant::now() + limit;
        loop {
            let taken = self.deliveries.taken.notified();
            if self.deliveries.are_taken(place)
                || tokio::time::timeout_at(until, taken).await.is_err()
            {
                return;
            }
        }
    }

    /// Keeps the deliveries of a batch whose purges are in force, with their entries for the log. `entries`: those
    /// of the purges begin at `first`, in the order of the batch.
    pub(super) fn keep_deliveries(
        &self,
        parts: Vec<DeliveryPart>,
        sender: Option<DeliverySender>,
        entries: &mut Vec<LogEntry>,
        first: usize,
    ) {
        if parts.is_empty() && sender.is_none() {
            return;
        }
        let mut kept = self.deliveries.kept();
        let mut end = first;
        for DeliveryPart { id, count, message, is_of_everything } in parts {
            end += count;
            let place = match end.checked_sub(1).and_then(|last| entries.get(last)) {
                Some(LogEntry::Latest(_, latest)) => latest.sequence(),
                _ => continue,
            };
            let from = sender.as_ref().map(|sender| sender.name.clone());
            let delivery = Delivery { id, message: message.clone(), from, is_of_everything };
            if kept.ids.insert(id) {
                kept.insert(place, delivery);
                entries.push(LogEntry::Delivery(place, message));
            }
        }
        if let Some(DeliverySender { name, position }) = sender {
            entries.push(LogEntry::Sender(name, position));
        }
        let dropped = kept.drop_above(ENTRIES_MAX, BYTES_MAX);
        drop(kept);
        self.recorder.add(Metric::DeliveriesDropped, dropped as u64);
    }

    /// Removes deliveries that are older than every stored response.
    pub(super) fn prune_deliveries(&self, horizon: u64) {
        self.deliveries.kept().prune(horizon);
    }
}
