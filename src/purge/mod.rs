//! Purges: applied at once, durable when acknowledged, cheap to check on every hit.
//!
//! ```text
//! purge() ─▶ table (in force) ─▶ log thread ─▶ write, one fsync for all that wait ─▶ answer
//! verdict(head): one load and compare, unless there was a purge since the last check
//! ```
//!
//! A sequence is wall time in microseconds and strictly increasing. If the clock goes back, the next
//! sequence is the last one plus 1. The log stores a ceiling in advance that no sequence exceeds, so a
//! restart continues above it. Each log has a random lineage id; a response stored under another
//! lineage must be validated before use.

mod batch; // batches and their errors
mod bus_state; // cursor and outbox in the log
mod checkpoint; // what a stored response records
mod deliveries; // purges that go to peers over the peer link
mod frame; // the bytes of the log
mod hops; // requirements of requests between nodes
mod log; // the file and the thread that writes it
mod open; // reading the log, maintenance
mod outbox;
mod peer_deliveries; // which peer has which purges
mod position; // positions in the purge stream
mod prefixes;
mod request; // what a caller orders
mod requirement; // the purges that a request between nodes requires
mod settings;
mod table; // the latest purge of each scope
mod unread; // purges in force that were not read from the stream

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::batch::{
    DeliveryPart, DeliverySender, InForce, PurgeBatch, PurgeError, PurgeLogError, Purged,
    RecordPart, SenderPosition,
};
pub(crate) use self::checkpoint::Checkpoint;
pub(crate) use self::deliveries::{DeliveryBatch, NextDelivery};
pub(crate) use self::position::{BusCursor, EntryId, StreamPosition};
pub(crate) use self::request::PurgeRequest;
pub(crate) use self::requirement::{Requirement, RequirementMemo};
pub(crate) use self::settings::Settings;
pub(crate) use self::unread::PurgeId;

use self::batch::ENDED;
use self::deliveries::Deliveries;
use self::frame::LogEntry;
use self::hops::StreamPlace;
use self::log::Commit;
use self::outbox::BusState;
use self::table::{LatestPurges, PurgeTable, TableScope};
use self::unread::UnreadPurges;
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget, StoredResponse};
use crate::clock::{Clock, unix_us};
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

/// The purge table, its log and the sequence. One per node.
pub(crate) struct Purges {
    applied: Applied,
    lineage: u64,
    /// The highest sequence given to a purge or a fill.
    issued: AtomicU64,
    /// Upper bound of `issued`, already written to the log.
    ceiling: AtomicU64,
    table: RwLock<PurgeTable>,
    bus: Mutex<BusState>,
    place: StreamPlace,
    unread: UnreadPurges,
    deliveries: Deliveries,
    log: Option<mpsc::Sender<Commit>>,
    clock: Clock,
    recorder: Recorder,
    settings: Settings,
    background: Handle,
    /// The lock of the log's directory; `None` without a directory or after [`Purges::close`].
    lock: Mutex<Option<File>>,
}

/// The latest applied purge, on its own cache line because each hit reads it.
#[repr(align(128))]
struct Applied(AtomicU64);

impl Purges {
    /// The value for [`StoredResponse::stored_at_sequence`]. Read it **before** the upstream
    /// request is sent: every later purge has a higher sequence.
    pub(crate) fn sequence(&self) -> PurgeSequence {
        let now = self.bounded_now();
        PurgeSequence(self.issued.fetch_max(now, Ordering::AcqRel).max(now))
    }

    /// The id of this log. Responses stored under another one must be validated.
    pub(crate) fn lineage(&self) -> u64 {
        self.lineage
    }

    /// Whether a purge covers a stored response, and how. On the hit path: one load and compare,
    /// unless there was a purge since the response was last checked.
    #[inline]
    pub(crate) fn verdict(
        &self,
        response: &StoredResponse,
        checkpoint: &Checkpoint,
    ) -> Option<PurgeKind> {
        let applied = self.applied.0.load(Ordering::Acquire);
        if checkpoint.checked_up_to.load(Ordering::Relaxed) == applied {
            return None;
        }
        self.check(response, checkpoint, applied)
    }

    #[cold]
    fn check(
        &self,
        response: &StoredResponse,
        checkpoint: &Checkpoint,
        applied: u64,
    ) -> Option<PurgeKind> {
        let stored_at = response.stored_at_sequence;
        let unknown = checkpoint.lineage != self.lineage
            || stored_at.0 > self.issued.load(Ordering::Acquire).max(self.bounded_now());
        let covered = self
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .verdict(&response.purge_target(), stored_at);
        let verdict = covered.max(unknown.then_some(PurgeKind::Missed));
        if verdict.is_none() {
            checkpoint.checked_up_to.fetch_max(applied, Ordering::Relaxed);
        }
        verdict
    }

    /// Applies a batch. The purges take effect before this returns; await [`InForce::durable`] for
    /// durability. Waits only for space in the log's queue. Dropping the future does not undo an applied
    /// purge.
    ///
    /// # Errors
    /// The purge was refused; nothing was purged.
    pub(crate) async fn put_in_force(&self, batch: PurgeBatch) -> Result<InForce, PurgeError> {
        if batch.is_ordered_here() {
            self.check_lengths(&batch)?;
        }
        let permit = match &self.log {
            Some(log) => log.reserve().await.ok(),
            None => None,
        };
        let read = batch.cursor.as_ref().map(|cursor| cursor.read.clone()).unwrap_or_default();
        let _order = self.deliveries.order(&batch);
        let (purged, entries) = self.apply(batch)?;
        let delivered = delivered(&entries);
        let (done, written) = oneshot::channel();
        match permit {
            _ if entries.is_empty() || self.log.is_none() => {
                self.remove_read(&read);
                self.deliveries.note_on_disk(delivered);
                drop(done.send(Ok(())));
            }
            Some(permit) => permit.send(Commit { entries, read, delivered, done }),
            None => drop(done.send(Err(ENDED.into()))),
        }
        Ok(InForce { purged, written })
    }

    /// Purges, and waits until the purge is durable. It is applied on all cores before the wait.
    ///
    /// # Errors
    /// The purge was refused, or could not be written.
    pub(crate) async fn purge(&self, batch: PurgeBatch) -> Result<Purged, PurgeError> {
        self.put_in_force(batch).await?.durable().await
    }

    /// Invalidates URLs and tags, hard (RFC 9111 §4.4). The invalidation is applied before this returns
    /// and written to the log asynchronously; a crash before that write loses it. Peers get it after that write.
    ///
    /// `invalidating` is the response to the unsafe request, if it will be stored. It is newer than the
    /// invalidated responses, so its sequence becomes that of the invalidation, unless another purge
    /// already covers it.
    pub(crate) fn invalidate(
        &self,
        scopes: Vec<PurgeScope>,
        invalidating: Option<&mut StoredResponse>,
    ) {
        let deliveries = self.deliveries.of_invalidation(&scopes).into_iter().collect();
        let purge = |scope: &PurgeScope| (TableScope::of(scope), PurgeKind::Invalidated);
        let purges: Vec<_> = scopes.iter().map(purge).collect();
        let batch = PurgeBatch { deliveries, ..PurgeBatch::default() };
        let _order = self.deliveries.order(&batch);
        let (_, entries) = self.apply_scopes(&purges, batch, Vec::new(), invalidating);
        let delivered = delivered(&entries);
        let Some(log) = self.log.clone().filter(|_| !entries.is_empty()) else {
            return self.deliveries.note_on_disk(delivered);
        };
        let (done, _) = oneshot::channel();
        let commit = Commit { entries, read: Vec::new(), delivered, done };
        // If the log has ended, that was logged.
        if let Err(TrySendError::Full(commit)) = log.try_send(commit) {
            self.background.spawn(async move { drop(log.send(commit).await) });
        }
    }

    /// Whether a purge after `since` may cover a response to `target`. If `response` is `None`, its tags
    /// are unknown, and any purge of a tag may cover it.
    pub(crate) fn overtaken(
        &self,
        target: &PurgeTarget<'_>,
        response: Option<&StoredResponse>,
        since: PurgeSequence,
    ) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        match response {
            None => table.may_cover(target, since),
            Some(response) => table.verdict(&response.purge_target(), since).is_some(),
        }
    }

    fn check_lengths(&self, batch: &PurgeBatch) -> Result<(), PurgeError> {
        let limit = self.settings.scope_bytes_max;
        let longest = batch.purges.iter().map(|(scope, _)| scope_length(scope)).max();
        match longest {
            Some(length) if length > limit => Err(PurgeError::ScopeTooLong { length, limit }),
            _ => Ok(()),
        }
    }

    /// Applies a batch and returns the entries for the log.
    ///
    /// # Errors
    /// The outbox is full; nothing was purged.
    fn apply(&self, mut batch: PurgeBatch) -> Result<(Purged, Vec<LogEntry>), PurgeError> {
        let scope = |(scope, kind): (PurgeScope, PurgeKind)| (TableScope::of(&scope), kind);
        let purges: Vec<_> = std::mem::take(&mut batch.purges).into_iter().map(scope).collect();
        // Before the purges are in force: see hops.rs.
        if let Some(cursor) = &batch.cursor {
            self.place.move_early(cursor);
        }
        let mut entries = Vec::with_capacity(purges.len() + 2);
        self.insert_unread(std::mem::take(&mut batch.records), &purges, &mut entries)?;
        Ok(self.apply_scopes(&purges, batch, entries, None))
    }

    /// Puts the purges of a batch in force, and appends their entries for the log. `invalidating` gets their
    /// sequence, unless an earlier purge covers that response.
    fn apply_scopes(
        &self,
        purges: &[(TableScope, PurgeKind)],
        batch: PurgeBatch,
        mut entries: Vec<LogEntry>,
        invalidating: Option<&mut StoredResponse>,
    ) -> (Purged, Vec<LogEntry>) {
        let first_purge = entries.len();
        let (first, rest) = purges.split_at(purges.len().min(APPLY_CHUNK));
        let (mut sequence, mut widened) = self.apply_chunk(first, &mut entries, invalidating);
        for chunk in rest.chunks(APPLY_CHUNK) {
            // Lets hits read the table between two chunks.
            std::thread::yield_now();
            let (last, more) = self.apply_chunk(chunk, &mut entries, None);
            (sequence, widened) = (last, widened + more);
        }
        self.recorder.add(Metric::Purges, purges.len() as u64);
        self.keep_deliveries(batch.deliveries, batch.sender, &mut entries, first_purge);
        if let Some(cursor) = &batch.cursor {
            self.set_cursor(cursor, &mut entries);
        }
        (Purged { sequence, widened }, entries)
    }

    /// Applies a chunk of purges under one write lock. Returns the sequence of the last one, and the number
    /// of older purges that were widened.
    fn apply_chunk(
        &self,
        purges: &[(TableScope, PurgeKind)],
        entries: &mut Vec<LogEntry>,
        invalidating: Option<&mut StoredResponse>,
    ) -> (PurgeSequence, usize) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Under the write lock, so that no other purge is applied between this check and ours.
        let uncovered = |invalidating: &&mut StoredResponse| {
            table.verdict(&invalidating.purge_target(), invalidating.stored_at_sequence).is_none()
        };
        let invalidating = invalidating.filter(uncovered);
        let mut sequence = PurgeSequence(self.applied.0.load(Ordering::Acquire));
        for (scope, kind) in purges {
            sequence = self.next_sequence();
            table.apply(scope, *kind, sequence);
            let latest = LatestPurges::of(*kind, sequence.0);
            entries.push(LogEntry::Latest(scope.clone(), latest));
        }
        // Replaces the oldest purges by one of everything.
        let widened = match table.len() > self.settings.entries_max {
            true => table.widen_oldest(self.settings.entries_max.div_ceil(16)),
            false => 0,
        };
        // Before the lock is released, so that readers of the new table also see its sequence.
        self.applied.0.store(sequence.0, Ordering::Release);
        drop(table);
        if let Some(invalidating) = invalidating {
            invalidating.stored_at_sequence = sequence;
        }
        if widened > 0 {
            self.recorder.add(Metric::PurgesWidened, widened as u64);
            let message = "the purge table is full: the oldest purges, hard ones too, became one soft purge of everything; raise store.purge_entries_max, or purge by tag, prefix or site";
            let notice = Notice::warning(message, "", "");
            notices::note(&notice, format_args!("{widened} purges"));
        }
        (sequence, widened)
    }

    fn next_sequence(&self) -> PurgeSequence {
        let now = self.bounded_now();
        let next = |issued: u64| (issued + 1).max(now);
        let before = self
            .issued
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |issued| Some(next(issued)))
            .expect("the closure always gives a value");
        PurgeSequence(next(before))
    }

    /// Wall time, limited by the ceiling in the log: above it, a crash and a clock that was set
    /// back could give a sequence twice.
    fn bounded_now(&self) -> u64 {
        unix_us(self.clock.now()).min(self.ceiling.load(Ordering::Acquire))
    }

    async fn commit(&self, entries: Vec<LogEntry>) -> Result<(), Arc<str>> {
        let Some(log) = self.log.as_ref().filter(|_| !entries.is_empty()) else { return Ok(()) };
        let (done, written) = oneshot::channel();
        let commit = Commit { entries, read: Vec::new(), delivered: 0, done };
        log.send(commit).await.map_err(|_| ENDED)?;
        written.await.unwrap_or_else(|_| Err(ENDED.into()))
    }

    /// Releases the directory for another process. Call it after the last purge.
    pub(crate) fn close(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Number of entries in the table.
    pub(crate) fn entries(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// The place of the last delivery among the entries for the log; 0: there is none.
fn delivered(entries: &[LogEntry]) -> u64 {
    let place = |entry: &LogEntry| match entry {
        LogEntry::Delivery(place, _) => Some(*place),
        _ => None,
    };
    entries.iter().filter_map(place).max().unwrap_or_default()
}

fn scope_length(scope: &PurgeScope) -> usize {
    match scope {
        PurgeScope::All => 0,
        PurgeScope::Site(text)
        | PurgeScope::Url(text)
        | PurgeScope::Prefix(text)
        | PurgeScope::Tag(text) => text.len(),
    }
}

/// Purges of a batch applied under one lock: a fraction of a millisecond.
const APPLY_CHUNK: usize = 512;

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
