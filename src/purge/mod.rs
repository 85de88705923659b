//! Purges: applied at once, durable when acknowledged, cheap to check on every hit.
//!
//! ```text
//! purge() ─▶ table (in force) ─▶ log thread ─▶ write, one fsync for all that wait ─▶ answer
//! verdict(head): one load and compare, unless there was a purge since the last check
//! ```
//!
//! A sequence is wall time in microseconds, increased where necessary so that it never goes
//! backwards: not if the clock does, not across a restart (the log stores a ceiling in advance, and
//! no sequence exceeds it), and not if the log is lost (each log has a lineage id, and a response
//! stored under another one must be validated before use).

mod frame;
mod log;
mod outbox;
mod settings;
mod table;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::settings::Settings;

use self::frame::Entry;
use self::log::{Found, Log};
use self::outbox::BusState;
use self::table::{Marks, Scope, Table};
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget, StoredResponse};
use crate::clock::{Clock, unix_us};
use crate::lock;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::random::random_u64;

/// Purges that take effect together, with data of the bus that becomes durable with them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PurgeBatch {
    /// The purged scopes, and how they are purged.
    pub purges: Vec<(PurgeScope, PurgeKind)>,
    /// The bus' position after these purges; see [`Purges::cursor`].
    pub cursor: Option<Bytes>,
    /// A message to keep until the bus has sent it; see [`Purges::outbox`].
    pub message: Option<Bytes>,
}

/// The result of a purge batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purged {
    /// The sequence of the last purge; the current sequence if the batch had no purges.
    pub sequence: PurgeSequence,
    /// The message's number in the outbox.
    pub message: Option<u64>,
}

/// A batch that is applied and is being written to disk.
#[derive(Debug)]
pub(crate) struct InForce {
    purged: Purged,
    written: oneshot::Receiver<Result<(), Arc<str>>>,
}

/// Why a purge was refused, or is not durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
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
        /// Number of messages in the outbox.
        messages: usize,
        /// Their total length in bytes.
        bytes: usize,
    },
    /// The purge is applied until the node stops, but may be lost afterwards.
    #[error("purge {} is in force but could not be written: {reason}", sequence.0)]
    NotDurable {
        /// The last purge's sequence.
        sequence: PurgeSequence,
        /// The error of the file system.
        reason: Arc<str>,
    },
}

/// Why the purge log could not be opened. Without it, any response on disk might have been purged.
#[derive(Debug, thiserror::Error)]
pub enum PurgeLogError {
    /// Another process holds the directory.
    #[error("store directory {} is in use by another skerry process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The log could not be read or written.
    #[error("the purge log in {} cannot be used", path.display())]
    Log {
        /// Its directory.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
}

/// The purge table, its log and the sequence. One per node.
pub(crate) struct Purges {
    applied: Applied,
    lineage: u64,
    /// The highest sequence given to a purge or a fill.
    issued: AtomicU64,
    /// The ceiling of `issued`. Durable.
    ceiling: AtomicU64,
    table: RwLock<Table>,
    bus: Mutex<BusState>,
    log: Option<mpsc::Sender<Commit>>,
    clock: Clock,
    recorder: Recorder,
    settings: Settings,
    background: Handle,
    /// Of the directory, where there is one, until it is closed.
    lock: Mutex<Option<File>>,
}

/// The latest applied purge, on its own cache line because each hit reads it.
#[repr(align(128))]
struct Applied(AtomicU64);

/// The state of the purge log that a stored response records, in addition to
/// [`StoredResponse::stored_at_sequence`].
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The lineage of the log that the response's sequence belongs to.
    lineage: u64,
    /// Purges up to this sequence are known not to cover the response.
    checked_up_to: AtomicU64,
}

impl Checkpoint {
    /// For a response stored under the log with this lineage.
    pub(crate) fn of(lineage: u64) -> Self {
        Self { lineage, checked_up_to: AtomicU64::new(0) }
    }

    /// Of no log: the response must be validated before it is used.
    pub(crate) fn distrusted() -> Self {
        Self::of(NO_LINEAGE)
    }

    /// The purge log that the response was stored under.
    pub(crate) fn lineage(&self) -> u64 {
        self.lineage
    }

    /// The purge sequence up to which the response is known not to be purged.
    pub(crate) fn checked_up_to(&self) -> PurgeSequence {
        PurgeSequence(self.checked_up_to.load(Ordering::Relaxed))
    }
}

/// A batch for the log, and its waiting caller.
struct Commit {
    entries: Vec<Entry>,
    done: oneshot::Sender<Result<(), Arc<str>>>,
}

impl InForce {
    /// Waits until the batch would survive a crash. Then all earlier batches do, too: the log is
    /// written in order, and after an error it is rewritten from the whole table.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) async fn durable(self) -> Result<Purged, PurgeError> {
        let Self { purged, written } = self;
        let sequence = purged.sequence;
        let written = written.await.unwrap_or_else(|_| Err(ENDED.into()));
        written.map(|()| purged).map_err(|reason| PurgeError::NotDurable { sequence, reason })
    }
}

impl Purges {
    /// Reads the log or creates one, and starts the maintenance of the table.
    ///
    /// # Errors
    /// The directory is in use, or the log cannot be read or written.
    pub(crate) fn open(
        settings: &Settings,
        clock: &Clock,
        recorder: &Recorder,
        background: &Handle,
    ) -> Result<Arc<Self>, PurgeLogError> {
        let Some(directory) = &settings.directory else {
            let found = Found::default();
            return Ok(Self::replayed(settings, None, found, clock, recorder, background).0);
        };
        let unusable = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::WouldBlock => PurgeLogError::InUse { path: directory.clone() },
            _ => PurgeLogError::Log { path: directory.clone(), source },
        };
        let lock = lock::lock(directory, LOCK).map_err(unusable)?;
        let found = Log::read(directory).map_err(unusable)?;
        found.tell(recorder);
        let whole_bytes = found.whole_bytes;
        let (purges, commits) =
            Self::replayed(settings, Some(lock), found, clock, recorder, background);
        let log = Log::open(directory, whole_bytes, &purges, settings.log_bytes);
        let log = log.map_err(unusable)?;
        std::thread::Builder::new()
            .name("purge-log".to_owned())
            .spawn(move || log.run(commits))
            .map_err(unusable)?;
        Ok(purges)
    }

    /// The purges of a log, and the queue of the thread that writes it.
    fn replayed(
        settings: &Settings,
        lock: Option<File>,
        found: Found,
        clock: &Clock,
        recorder: &Recorder,
        background: &Handle,
    ) -> (Arc<Self>, mpsc::Receiver<Commit>) {
        let mut table = Table::default();
        let mut bus = BusState::default();
        let mut issued = unix_us(clock.now());
        for entry in found.entries {
            replay(&mut table, &mut bus, &mut issued, entry);
        }
        let (sender, commits) = mpsc::channel(COMMITS_MAX);
        let purges = Arc::new(Self {
            applied: Applied(AtomicU64::new(issued)),
            lineage: found.lineage.unwrap_or_else(|| random_u64().max(1)),
            issued: AtomicU64::new(issued),
            ceiling: AtomicU64::new(issued + CEILING_AHEAD),
            table: RwLock::new(table),
            bus: Mutex::new(bus),
            log: settings.directory.is_some().then_some(sender),
            clock: clock.clone(),
            recorder: recorder.clone(),
            settings: settings.clone(),
            background: background.clone(),
            lock: Mutex::new(lock),
        });
        background.spawn(maintain(Arc::downgrade(&purges)));
        (purges, commits)
    }

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
        let verdict = covered.max(unknown.then_some(PurgeKind::Soft));
        if verdict.is_none() {
            checkpoint.checked_up_to.fetch_max(applied, Ordering::Relaxed);
        }
        verdict
    }

    /// Purges. The purge is applied when this returns, and durable when the returned value says so.
    /// Waits only for a place in the log's queue; dropping the future after that undoes nothing.
    ///
    /// # Errors
    /// The purge was refused; nothing was purged.
    pub(crate) async fn put_in_force(&self, batch: PurgeBatch) -> Result<InForce, PurgeError> {
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

    /// Purges, and waits until the purge is durable. It is applied on all cores before the wait.
    ///
    /// # Errors
    /// The purge was refused, or could not be written.
    pub(crate) async fn purge(&self, batch: PurgeBatch) -> Result<Purged, PurgeError> {
        self.put_in_force(batch).await?.durable().await
    }

    /// Invalidates URLs and tags, hard (RFC 9111 §4.4). Applied when this returns, in the log soon
    /// after; only a crash within these milliseconds loses it.
    ///
    /// `cause` is the response that invalidates them, if it is stored itself. It is newer than
    /// the invalidated responses, so it gets the position after the invalidation, unless another
    /// purge already covers it.
    pub(crate) fn invalidate(&self, scopes: Vec<PurgeScope>, cause: Option<&mut StoredResponse>) {
        let purges = scopes.into_iter().map(|scope| (scope, PurgeKind::Hard)).collect();
        let batch = PurgeBatch { purges, ..PurgeBatch::default() };
        let applied = self.check_lengths(&batch).and_then(|()| self.apply(batch, cause));
        let entries = match applied {
            Ok((_, entries)) => entries,
            Err(error) => {
                let notice = Notice::warning("an invalidation was not possible", "", "");
                return notices::note(&notice, format_args!("{error}"));
            }
        };
        if let Some(log) = self.log.clone().filter(|_| !entries.is_empty()) {
            self.background.spawn(async move {
                let (done, _) = oneshot::channel();
                // An ended log has said so.
                let _ = log.send(Commit { entries, done }).await;
            });
        }
    }

    /// Whether a purge later than `since` may cover a response to the request `asked`. While its
    /// tags are unknown, every purge of a tag may.
    pub(crate) fn overtaken(
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
        let limit = self.settings.scope_bytes_max;
        let too_long = batch.purges.iter().map(|(scope, _)| scope_length(scope)).max();
        match too_long {
            Some(length) if length > limit => Err(PurgeError::ScopeTooLong { length, limit }),
            _ => Ok(()),
        }
    }

    /// Applies a batch and returns the entries for the log. `cause` gets its position, unless an
    /// earlier purge covers that response.
    fn apply(
        &self,
        batch: PurgeBatch,
        cause: Option<&mut StoredResponse>,
    ) -> Result<(Purged, Vec<Entry>), PurgeError> {
        let mut entries = Vec::with_capacity(batch.purges.len() + 2);
        let message = self.apply_bus_state(batch.cursor, batch.message, &mut entries)?;
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
        let mut sequence = PurgeSequence(self.applied.0.load(Ordering::Acquire));
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
        let widened = match table.len() > self.settings.entries_max {
            true => table.widen_oldest(self.settings.entries_max.div_ceil(16)),
            false => 0,
        };
        // Before the lock is released: who sees the table's next state sees its sequence too.
        self.applied.0.store(sequence.0, Ordering::Release);
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

    fn apply_bus_state(
        &self,
        cursor: Option<Bytes>,
        message: Option<Bytes>,
        entries: &mut Vec<Entry>,
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
            entries.push(Entry::Cursor(cursor));
        }
        Ok(message.map(|message| {
            let number = bus.outbox.push(message.clone());
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

    /// Wall time, limited by the ceiling in the log: above it, a crash and a clock that was set
    /// back could give a sequence twice.
    fn bounded_now(&self) -> u64 {
        unix_us(self.clock.now()).min(self.ceiling.load(Ordering::Acquire))
    }

    /// The bus' position that was last made durable with a purge. `None` in a new or damaged log.
    pub(crate) fn cursor(&self) -> Option<Bytes> {
        self.bus().cursor.clone()
    }

    /// The messages waiting for the bus, oldest first, by number.
    pub(crate) fn outbox(&self) -> Vec<(u64, Bytes)> {
        self.bus().outbox.iter().collect()
    }

    /// The first `limit` of them whose number is at least `number`.
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
    /// It could not be written.
    pub(crate) async fn sent(&self, numbers: &[u64]) -> Result<(), PurgeError> {
        let entries: Vec<Entry> = {
            let mut bus = self.bus();
            let known = numbers.iter().filter(|number| bus.outbox.remove(**number));
            known.map(|number| Entry::Sent(*number)).collect()
        };
        let sequence = PurgeSequence(self.applied.0.load(Ordering::Acquire));
        self.commit(entries).await.map_err(|reason| PurgeError::NotDurable { sequence, reason })
    }

    async fn commit(&self, entries: Vec<Entry>) -> Result<(), Arc<str>> {
        let Some(log) = self.log.as_ref().filter(|_| !entries.is_empty()) else { return Ok(()) };
        let (done, written) = oneshot::channel();
        log.send(Commit { entries, done }).await.map_err(|_| ENDED)?;
        written.await.unwrap_or_else(|_| Err(ENDED.into()))
    }

    /// Releases the directory for another process. Call it after the last purge.
    pub(crate) fn close(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Called every few seconds: removes purges that are older than every stored response can be,
    /// and moves the ceiling ahead of the clock.
    async fn maintain(&self) {
        let now = unix_us(self.clock.now());
        let horizon = now.saturating_sub(self.settings.object_age_max.as_micros() as u64);
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

    /// Number of entries in the table.
    pub(crate) fn entries(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn bus(&self) -> MutexGuard<'_, BusState> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maintains the purge table until it is dropped.
async fn maintain(purges: Weak<Purges>) {
    let mut ticks = tokio::time::interval(MAINTAIN_EVERY);
    loop {
        ticks.tick().await;
        let Some(purges) = purges.upgrade() else { return };
        purges.maintain().await;
    }
}

/// Applies one entry of a log that is being read.
fn replay(table: &mut Table, bus: &mut BusState, issued: &mut u64, entry: Entry) {
    match entry {
        Entry::Marks(scope, marks) => {
            // Purges that were never acknowledged may have taken sequences beyond the last one.
            *issued = (*issued).max(marks.hard.max(marks.soft) + UNLOGGED_MAX);
            table.merge(&scope, marks);
        }
        Entry::Sequence(ceiling) => *issued = (*issued).max(ceiling + UNLOGGED_MAX),
        Entry::Cursor(cursor) => bus.cursor = Some(cursor),
        Entry::Outbox(number, message) => bus.outbox.insert(number, message),
        Entry::Sent(number) => drop(bus.outbox.remove(number)),
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

const ENDED: &str = "the purge log has ended";
/// Maximum number of batches waiting for the log thread. Above it, callers wait before their purge
/// is applied.
const COMMITS_MAX: usize = 1024;
/// More than the number of purges that can be applied without being in the log: over a million.
const UNLOGGED_MAX: u64 = 1 << 20;
/// How far the ceiling is ahead of the clock, in microseconds: two minutes.
const CEILING_AHEAD: u64 = 120_000_000;
/// Purges of a batch applied under one lock: a fraction of a millisecond.
const APPLIED_AT_ONCE: usize = 512;
const MAINTAIN_EVERY: Duration = Duration::from_secs(10);
const LOCK: &str = "lock";
/// No purge log has this lineage.
const NO_LINEAGE: u64 = 0;
/// Entries removed under one lock.
const PRUNE_AT_ONCE: usize = 4096;

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
