//! Purges: in force at once, durable when acknowledged, cheap to check on every hit.
//!
//! ```text
//! purge() ─▶ table (in force) ─▶ log thread ─▶ write, one fsync for all that wait ─▶ answer
//! verdict(head): one load and compare, unless a purge came since it was last checked
//! ```
//!
//! A sequence is microseconds of wall time, pushed upwards where it must be: it never falls,
//! not when the clock does, not over a restart (the log promises a ceiling that no sequence
//! exceeds before it is moved), not when the log is lost: a log has a lineage, and a response that
//! was stored under another one must be validated before use.

mod frame;
mod log;
mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use self::frame::Entry;
use self::log::{Found, Log};
use self::table::{Marks, Scope, Table};
use super::record::{Head, random_u64};
use super::settings::Settings;
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget, StoredResponse};
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

/// Purges that take effect together, with what the bus wants to be durable with them.
#[derive(Clone, Debug, Default)]
pub struct PurgeBatch {
    /// What is purged, and how.
    pub purges: Vec<(PurgeScope, PurgeKind)>,
    /// The bus' position after these purges; see [`super::Store::cursor`].
    pub cursor: Option<Bytes>,
    /// A message to be kept until the bus has taken it; see [`super::Store::outbox`].
    pub message: Option<Bytes>,
}

/// What a purge batch became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// The last purge's sequence; the current one when the batch had no purges.
    pub sequence: PurgeSequence,
    /// The message's number in the outbox.
    pub message: Option<u64>,
}

/// A batch that is in force, and on its way to the disk.
#[derive(Debug)]
pub struct InForce {
    purged: Purged,
    written: oneshot::Receiver<Result<(), Arc<str>>>,
}

/// Why a purge was refused, or is not durable.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// Nothing was purged.
    #[error("a purge's scope has {length} bytes, {limit} are allowed")]
    ScopeTooLong {
        /// Its length in bytes.
        length: usize,
        /// `purge_scope_bytes_max`.
        limit: usize,
    },
    /// Nothing was purged.
    #[error(
        "nothing was purged: the outbox is full, {messages} purges of {bytes} bytes wait for the bus (store.outbox_entries_max, store.outbox_max)"
    )]
    OutboxFull {
        /// How many are there.
        messages: usize,
        /// How long they are together.
        bytes: usize,
    },
    /// In force until the node stops, and perhaps not afterwards.
    #[error("purge {} is in force but could not be written: {reason}", sequence.0)]
    NotDurable {
        /// The last purge's sequence.
        sequence: PurgeSequence,
        /// What the file system said.
        reason: Arc<str>,
    },
}

/// The table, its log and the sequence. One a store.
pub(super) struct Purges {
    hot: Hot,
    lineage: u64,
    /// The highest sequence given to a purge or to a fill.
    issued: AtomicU64,
    /// What `issued` follows the clock up to. Durable.
    ceiling: AtomicU64,
    table: RwLock<Table>,
    desk: Mutex<Desk>,
    log: Option<mpsc::Sender<Commit>>,
    clock: Clock,
    recorder: Recorder,
    limits: Limits,
}

/// The latest purge in force, on a cache line of its own: each hit reads it.
#[repr(align(128))]
struct Hot {
    applied: AtomicU64,
}

#[derive(Clone, Debug)]
struct Limits {
    entries_max: usize,
    scope_bytes_max: usize,
    outbox_entries_max: usize,
    outbox_bytes_max: usize,
    object_age_max: Duration,
}

/// What the bus keeps here.
#[derive(Debug, Default)]
struct Desk {
    cursor: Option<Bytes>,
    outbox: Outbox,
}

/// Messages that the bus has not taken yet, by their numbers.
#[derive(Debug, Default)]
struct Outbox {
    messages: BTreeMap<u64, Bytes>,
    bytes: usize,
    next: u64,
}

impl Outbox {
    fn insert(&mut self, number: u64, message: Bytes) {
        self.next = self.next.max(number + 1);
        self.bytes += message.len();
        if let Some(old) = self.messages.insert(number, message) {
            self.bytes -= old.len();
        }
    }

    /// Whether it was there.
    fn remove(&mut self, number: u64) -> bool {
        let removed = self.messages.remove(&number);
        self.bytes -= removed.as_ref().map_or(0, Bytes::len);
        removed.is_some()
    }

    /// Whether there is room for one more; for one alone there always is.
    fn has_room(&self, message: &Bytes, limits: &Limits) -> bool {
        self.messages.is_empty()
            || self.messages.len() < limits.outbox_entries_max
                && self.bytes + message.len() <= limits.outbox_bytes_max
    }
}

/// A batch for the log, and who waits for it.
struct Commit {
    entries: Vec<Entry>,
    done: oneshot::Sender<Result<(), Arc<str>>>,
}

impl InForce {
    /// Waits until it would survive a crash. What was put in force before it would then, too: the
    /// log is written in order, and after an error anew from all that is in force.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn durable(self) -> Result<Purged, PurgeError> {
        let Self { purged, written } = self;
        let sequence = purged.sequence;
        let written = written.await.unwrap_or_else(|_| Err(ENDED.into()));
        written.map(|()| purged).map_err(|reason| PurgeError::NotDurable { sequence, reason })
    }
}

impl Purges {
    /// Reads the log in `directory`, or starts one. `None`: no log.
    pub(super) fn open(
        directory: Option<&Path>,
        settings: &Settings,
        clock: &Clock,
        recorder: &Recorder,
    ) -> std::io::Result<Arc<Self>> {
        let found = match directory {
            Some(directory) => Log::read(directory)?,
            None => Found::default(),
        };
        found.tell(recorder);
        let mut table = Table::default();
        let mut desk = Desk::default();
        let mut issued = micros(clock.now());
        for entry in found.entries {
            replay(&mut table, &mut desk, &mut issued, entry);
        }
        let lineage = found.lineage.unwrap_or_else(|| random_u64().max(1));
        let (sender, receiver) = mpsc::channel(COMMITS_MAX);
        let purges = Arc::new(Self {
            hot: Hot { applied: AtomicU64::new(issued) },
            lineage,
            issued: AtomicU64::new(issued),
            ceiling: AtomicU64::new(issued + CEILING_AHEAD),
            table: RwLock::new(table),
            desk: Mutex::new(desk),
            log: directory.is_some().then_some(sender),
            clock: clock.clone(),
            recorder: recorder.clone(),
            limits: Limits {
                entries_max: settings.purge_entries_max,
                scope_bytes_max: settings.purge_scope_bytes_max,
                outbox_entries_max: settings.outbox_entries_max,
                outbox_bytes_max: settings.outbox_bytes_max,
                object_age_max: settings.object_age_max,
            },
        });
        if let Some(directory) = directory {
            let log = Log::open(directory, found.whole_bytes, &purges, settings.purge_log_bytes)?;
            std::thread::Builder::new()
                .name("purge-log".to_owned())
                .spawn(move || log.run(receiver))?;
        }
        Ok(purges)
    }

    /// What a fill that starts now is stamped with. Later purges have a higher sequence.
    pub(super) fn sequence(&self) -> PurgeSequence {
        let now = self.bounded_now();
        PurgeSequence(self.issued.fetch_max(now, Ordering::AcqRel).max(now))
    }

    pub(super) fn lineage(&self) -> u64 {
        self.lineage
    }

    /// Whether a purge covers the head. On the hit path: one load and compare, as long as
    /// nothing was purged since the head was last found untouched.
    pub(super) fn verdict(&self, head: &Head) -> Option<PurgeKind> {
        let applied = self.hot.applied.load(Ordering::Acquire);
        if head.checked_up_to.load(Ordering::Relaxed) == applied {
            return None;
        }
        self.check(head, applied)
    }

    #[cold]
    fn check(&self, head: &Head, applied: u64) -> Option<PurgeKind> {
        let response = &head.response;
        let stored_at = response.stored_at_sequence;
        let unknown = head.lineage != self.lineage
            || stored_at.0 > self.issued.load(Ordering::Acquire).max(self.bounded_now());
        let covered = self
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .verdict(&response.purge_target(), stored_at);
        let verdict = covered.max(unknown.then_some(PurgeKind::Soft));
        if verdict.is_none() {
            head.checked_up_to.fetch_max(applied, Ordering::Relaxed);
        }
        verdict
    }

    /// Purges. In force when this returns; durable when what it returns says so. Waits for nothing
    /// but a place in the log's queue, and beyond that takes nothing back when it is dropped.
    pub(super) async fn put_in_force(&self, batch: PurgeBatch) -> Result<InForce, PurgeError> {
        self.check_lengths(&batch)?;
        let place = match &self.log {
            Some(log) => log.reserve().await.ok(),
            None => None,
        };
        let (purged, entries) = self.apply(batch, None)?;
        let (done, written) = oneshot::channel();
        match place {
            _ if entries.is_empty() || self.log.is_none() => drop(done.send(Ok(()))),
            Some(place) => place.send(Commit { entries, done }),
            None => drop(done.send(Err(ENDED.into()))),
        }
        Ok(InForce { purged, written })
    }

    /// Purges, and waits until that is durable.
    pub(super) async fn purge(&self, batch: PurgeBatch) -> Result<Purged, PurgeError> {
        self.put_in_force(batch).await?.durable().await
    }

    /// Purges without waiting for the log, which has it soon: in force when this returns, and lost
    /// only by a crash within milliseconds. For invalidations (RFC 9111 §4.4), which nobody is
    /// promised the durability of.
    ///
    /// `cause` is as [`Store::invalidate`](super::Store::invalidate) has it.
    pub(super) fn purge_soon(
        &self,
        batch: PurgeBatch,
        cause: Option<&mut StoredResponse>,
        background: &Handle,
    ) {
        let applied = self.check_lengths(&batch).and_then(|()| self.apply(batch, cause));
        let entries = match applied {
            Ok((_, entries)) => entries,
            Err(error) => {
                let notice = Notice::warning("an invalidation was not possible", "", "");
                return notices::note(&notice, format_args!("{error}"));
            }
        };
        if let Some(log) = self.log.clone().filter(|_| !entries.is_empty()) {
            background.spawn(async move {
                let (done, _) = oneshot::channel();
                // An ended log has said so.
                let _ = log.send(Commit { entries, done }).await;
            });
        }
    }

    /// Whether a purge later than `since` may cover a response to what was `asked` for; while
    /// its head is not known, every purge of a tag may.
    pub(super) fn overtaken(
        &self,
        asked: &PurgeTarget<'_>,
        response: Option<&StoredResponse>,
        since: PurgeSequence,
    ) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        match response {
            None => table.may_cover(asked, since),
            Some(response) => table.verdict(&response.purge_target(), since).is_some(),
        }
    }

    fn check_lengths(&self, batch: &PurgeBatch) -> Result<(), PurgeError> {
        let limit = self.limits.scope_bytes_max;
        let too_long = batch.purges.iter().map(|(scope, _)| scope_length(scope)).max();
        match too_long {
            Some(length) if length > limit => Err(PurgeError::ScopeTooLong { length, limit }),
            _ => Ok(()),
        }
    }

    /// Puts a batch in force and says what the log must know of it. `cause` gets its position,
    /// unless an earlier purge covers that response.
    fn apply(
        &self,
        batch: PurgeBatch,
        cause: Option<&mut StoredResponse>,
    ) -> Result<(Purged, Vec<Entry>), PurgeError> {
        let mut entries = Vec::with_capacity(batch.purges.len() + 2);
        let message = self.apply_desk(batch.cursor, batch.message, &mut entries)?;
        let count = batch.purges.len();
        let scope = |(scope, kind): &(PurgeScope, PurgeKind)| (Scope::of(scope), *kind);
        let purges: Vec<(Scope, PurgeKind)> = batch.purges.iter().map(scope).collect();
        drop(batch.purges);
        let (first, rest) = purges.split_at(count.min(APPLIED_AT_ONCE));
        let mut sequence = self.apply_some(first, &mut entries, cause);
        for some in rest.chunks(APPLIED_AT_ONCE) {
            // Hits that look at the table come between.
            std::thread::yield_now();
            sequence = self.apply_some(some, &mut entries, None);
        }
        self.recorder.add(Metric::Purges, count as u64);
        Ok((Purged { sequence, message }, entries))
    }

    /// Under one lock.
    fn apply_some(
        &self,
        purges: &[(Scope, PurgeKind)],
        entries: &mut Vec<Entry>,
        cause: Option<&mut StoredResponse>,
    ) -> PurgeSequence {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Under the lock that the purges come by: a look before would leave room for another's.
        let uncovered = |cause: &&mut StoredResponse| {
            table.verdict(&cause.purge_target(), cause.stored_at_sequence).is_none()
        };
        let cause = cause.filter(uncovered);
        let mut sequence = PurgeSequence(self.hot.applied.load(Ordering::Acquire));
        for (scope, kind) in purges {
            sequence = self.next_sequence();
            table.apply(scope, *kind, sequence);
            let mut marks = Marks::default();
            match kind {
                PurgeKind::Hard => marks.hard = sequence.0,
                PurgeKind::Soft => marks.soft = sequence.0,
            }
            entries.push(Entry::Marks(scope.clone(), marks));
        }
        let widened = match table.len() > self.limits.entries_max {
            true => table.widen_oldest(self.limits.entries_max.div_ceil(16)),
            false => 0,
        };
        // Before the lock is released: who sees the table's next state sees its sequence too.
        self.hot.applied.store(sequence.0, Ordering::Release);
        drop(table);
        if let Some(cause) = cause {
            cause.stored_at_sequence = sequence;
        }
        if widened > 0 {
            self.recorder.add(Metric::PurgesWidened, widened as u64);
            let message = "the purge table is full (store.purge_entries_max): old purges became a soft purge of all";
            let notice = Notice::warning(message, "", "");
            notices::note(&notice, format_args!("{widened} purges"));
        }
        sequence
    }

    fn apply_desk(
        &self,
        cursor: Option<Bytes>,
        message: Option<Bytes>,
        entries: &mut Vec<Entry>,
    ) -> Result<Option<u64>, PurgeError> {
        let mut desk = self.desk();
        let outbox = &desk.outbox;
        if message.as_ref().is_some_and(|message| !outbox.has_room(message, &self.limits)) {
            self.recorder.count(Metric::PurgesRefused);
            let (messages, bytes) = (outbox.messages.len(), outbox.bytes);
            return Err(PurgeError::OutboxFull { messages, bytes });
        }
        if let Some(cursor) = cursor {
            desk.cursor = Some(cursor.clone());
            entries.push(Entry::Cursor(cursor));
        }
        Ok(message.map(|message| {
            let number = desk.outbox.next;
            desk.outbox.insert(number, message.clone());
            entries.push(Entry::Outbox(number, message));
            number
        }))
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

    /// Wall time, as far as the log has promised: beyond, a crash and a clock set back could
    /// give a sequence twice.
    fn bounded_now(&self) -> u64 {
        micros(self.clock.now()).min(self.ceiling.load(Ordering::Acquire))
    }

    pub(super) fn cursor(&self) -> Option<Bytes> {
        self.desk().cursor.clone()
    }

    pub(super) fn outbox(&self) -> Vec<(u64, Bytes)> {
        let desk = self.desk();
        let messages = desk.outbox.messages.iter();
        messages.map(|(number, message)| (*number, message.clone())).collect()
    }

    pub(super) fn outbox_from(&self, number: u64, limit: usize) -> Vec<(u64, Bytes)> {
        let desk = self.desk();
        let messages = desk.outbox.messages.range(number..).take(limit);
        messages.map(|(number, message)| (*number, message.clone())).collect()
    }

    pub(super) fn outbox_len(&self) -> usize {
        self.desk().outbox.messages.len()
    }

    /// Forgets messages that the bus has taken. Durable when it returns.
    pub(super) async fn sent(&self, numbers: &[u64]) -> Result<(), PurgeError> {
        let entries: Vec<Entry> = {
            let mut desk = self.desk();
            let known = numbers.iter().filter(|number| desk.outbox.remove(**number));
            known.map(|number| Entry::Sent(*number)).collect()
        };
        let sequence = PurgeSequence(self.hot.applied.load(Ordering::Acquire));
        self.commit(entries).await.map_err(|reason| PurgeError::NotDurable { sequence, reason })
    }

    async fn commit(&self, entries: Vec<Entry>) -> Result<(), Arc<str>> {
        let Some(log) = self.log.as_ref().filter(|_| !entries.is_empty()) else { return Ok(()) };
        let (done, written) = oneshot::channel();
        log.send(Commit { entries, done }).await.map_err(|_| ENDED)?;
        written.await.unwrap_or_else(|_| Err(ENDED.into()))
    }

    /// To be called every few seconds: prunes what nothing stored can be older than, and
    /// moves the ceiling ahead of the clock.
    pub(super) async fn maintain(&self) {
        let now = micros(self.clock.now());
        let horizon = now.saturating_sub(self.limits.object_age_max.as_micros() as u64);
        let mut pruned = 0;
        loop {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let some = table.prune(horizon, PRUNE_AT_ONCE);
            pruned += some;
            if some == 0 {
                break;
            }
        }
        self.recorder.add(Metric::PurgesPruned, pruned as u64);
        let ceiling = self.ceiling.load(Ordering::Acquire);
        let next = now.max(self.issued.load(Ordering::Acquire)) + CEILING_AHEAD;
        if next < ceiling + CEILING_AHEAD / 4 {
            return;
        }
        match self.commit(vec![Entry::Sequence(next), Entry::Horizon(horizon)]).await {
            Ok(()) => self.ceiling.store(next, Ordering::Release),
            Err(reason) => tracing::error!(%reason, "the purge log cannot be written"),
        }
    }

    /// How many entries the table has.
    pub(super) fn entries(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn desk(&self) -> std::sync::MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies one entry of a log that is being read.
fn replay(table: &mut Table, desk: &mut Desk, issued: &mut u64, entry: Entry) {
    match entry {
        Entry::Marks(scope, marks) => {
            // Purges that were never acknowledged may have taken sequences beyond the last one.
            *issued = (*issued).max(marks.hard.max(marks.soft) + UNLOGGED_MAX);
            table.merge(&scope, marks);
        }
        Entry::Sequence(ceiling) => *issued = (*issued).max(ceiling + UNLOGGED_MAX),
        Entry::Cursor(cursor) => desk.cursor = Some(cursor),
        Entry::Outbox(number, message) => desk.outbox.insert(number, message),
        Entry::Sent(number) => drop(desk.outbox.remove(number)),
        Entry::Horizon(horizon) => {
            table.prune(horizon, 0);
        }
    }
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

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

const ENDED: &str = "the purge log has ended";
/// Batches that wait for the log thread. Beyond, callers wait before their purge is in force.
const COMMITS_MAX: usize = 1024;
/// More purges than can be in force without being in the log: over a million.
const UNLOGGED_MAX: u64 = 1 << 20;
/// How far the ceiling is moved ahead of the clock, in microseconds: two minutes.
const CEILING_AHEAD: u64 = 120_000_000;
/// Purges of a batch put in force under one lock: a fraction of a millisecond.
const APPLIED_AT_ONCE: usize = 512;
/// Entries pruned under one lock.
const PRUNE_AT_ONCE: usize = 4096;

#[cfg(test)]
mod tests;
