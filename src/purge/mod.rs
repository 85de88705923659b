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

pub use self::settings::Settings;

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

/// Purges that take effect together, with what the bus wants to be durable with them.
#[derive(Clone, Debug, Default)]
pub struct PurgeBatch {
    /// What is purged, and how.
    pub purges: Vec<(PurgeScope, PurgeKind)>,
    /// The bus' position after these purges; see [`Purges::cursor`].
    pub cursor: Option<Bytes>,
    /// A message to be kept until the bus has taken it; see [`Purges::outbox`].
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

/// Why the purge log could not be opened. Without it nothing that is on disk could be proven not
/// to be purged.
#[derive(Debug, thiserror::Error)]
pub enum PurgeLogError {
    /// Another process holds the directory.
    #[error("store directory {} is in use by another skerry process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It could not be read or written.
    #[error("the purge log in {} cannot be used", path.display())]
    Log {
        /// Its directory.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
}

/// The purge table, its log and the sequence. One a node.
pub struct Purges {
    applied: Applied,
    lineage: u64,
    /// The highest sequence given to a purge or to a fill.
    issued: AtomicU64,
    /// What `issued` follows the clock up to. Durable.
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

/// The latest purge in force, on a cache line of its own: each hit reads it.
#[repr(align(128))]
struct Applied(AtomicU64);

/// What a stored response remembers of the purge log, beside
/// [`StoredResponse::stored_at_sequence`].
#[derive(Debug)]
pub struct Checkpoint {
    /// The log that the response's sequence counts in.
    lineage: u64,
    /// Purges up to here are known not to cover it.
    checked_up_to: AtomicU64,
}

impl Checkpoint {
    /// For a response that was stored under the log with this lineage.
    pub fn of(lineage: u64) -> Self {
        Self { lineage, checked_up_to: AtomicU64::new(0) }
    }

    /// Of no log at all: the response must be validated before it is used.
    pub fn distrusted() -> Self {
        Self::of(NO_LINEAGE)
    }

    /// The purge log that the response was stored under.
    pub fn lineage(&self) -> u64 {
        self.lineage
    }

    /// The purge sequence up to which the response was last found untouched.
    pub fn checked_up_to(&self) -> PurgeSequence {
        PurgeSequence(self.checked_up_to.load(Ordering::Relaxed))
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
    /// Reads the log, or starts one, and looks after the table for as long as it lives.
    ///
    /// # Errors
    /// The directory is in use, or the log cannot be read or written.
    pub fn open(
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

    /// What a log comes to, and the queue of the thread that goes on with it.
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

    /// What goes into [`StoredResponse::stored_at_sequence`]. To be read **before** the upstream
    /// request is sent: every purge from now on has a higher sequence.
    pub fn sequence(&self) -> PurgeSequence {
        let now = self.bounded_now();
        PurgeSequence(self.issued.fetch_max(now, Ordering::AcqRel).max(now))
    }

    /// Tells this log from others: what was stored under another one must be validated.
    pub fn lineage(&self) -> u64 {
        self.lineage
    }

    /// Whether a purge covers a stored response, and how. On the hit path: one load and compare,
    /// as long as nothing was purged since the response was last found untouched.
    #[inline]
    pub fn verdict(&self, response: &StoredResponse, checkpoint: &Checkpoint) -> Option<PurgeKind> {
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

    /// Purges. In force when this returns; durable when what it returns says so. Waits for nothing
    /// but a place in the log's queue, and beyond that takes nothing back when it is dropped.
    ///
    /// # Errors
    /// It was refused; nothing is in force.
    pub async fn put_in_force(&self, batch: PurgeBatch) -> Result<InForce, PurgeError> {
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

    /// Purges, and waits until that is durable. In force for all cores before it waits.
    ///
    /// # Errors
    /// It was refused, or could not be written.
    pub async fn purge(&self, batch: PurgeBatch) -> Result<Purged, PurgeError> {
        self.put_in_force(batch).await?.durable().await
    }

    /// Makes URLs and tags invalid, hard (RFC 9111 §4.4): in force when this returns, in the log
    /// soon after, and lost only by a crash within milliseconds.
    ///
    /// `cause` is the response that makes them so, when it is to be stored itself. Then it is
    /// newer than what it makes invalid, and gets the position after it; unless another purge
    /// covers it already.
    pub fn invalidate(&self, scopes: Vec<PurgeScope>, cause: Option<&mut StoredResponse>) {
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

    /// Whether a purge later than `since` may cover a response to what was `asked` for; while
    /// its head is not known, every purge of a tag may.
    pub fn overtaken(
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

    /// Puts a batch in force and says what the log must know of it. `cause` gets its position,
    /// unless an earlier purge covers that response.
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

    /// Wall time, as far as the log has promised: beyond, a crash and a clock set back could
    /// give a sequence twice.
    fn bounded_now(&self) -> u64 {
        unix_us(self.clock.now()).min(self.ceiling.load(Ordering::Acquire))
    }

    /// The bus' position that was last made durable with a purge. `None` in a new or damaged log.
    pub fn cursor(&self) -> Option<Bytes> {
        self.bus().cursor.clone()
    }

    /// The messages that wait for the bus, oldest first, by number.
    pub fn outbox(&self) -> Vec<(u64, Bytes)> {
        self.bus().outbox.iter().collect()
    }

    /// The first `limit` of them whose number is at least `number`.
    pub fn outbox_from(&self, number: u64, limit: usize) -> Vec<(u64, Bytes)> {
        self.bus().outbox.from(number, limit)
    }

    /// How many messages wait for the bus.
    pub fn outbox_len(&self) -> usize {
        self.bus().outbox.len()
    }

    /// Forgets messages that the bus has taken. Durable when it returns.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn sent(&self, numbers: &[u64]) -> Result<(), PurgeError> {
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

    /// Lets go of the directory, for another process. To be called when nothing is purged any more.
    pub fn close(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Every few seconds: prunes what nothing stored can be older than, and moves the ceiling
    /// ahead of the clock.
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

    /// How many entries the table has.
    pub fn entries(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn bus(&self) -> MutexGuard<'_, BusState> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after the purge table for as long as it lives.
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
/// Batches that wait for the log thread. Beyond, callers wait before their purge is in force.
const COMMITS_MAX: usize = 1024;
/// More purges than can be in force without being in the log: over a million.
const UNLOGGED_MAX: u64 = 1 << 20;
/// How far the ceiling is moved ahead of the clock, in microseconds: two minutes.
const CEILING_AHEAD: u64 = 120_000_000;
/// Purges of a batch put in force under one lock: a fraction of a millisecond.
const APPLIED_AT_ONCE: usize = 512;
const MAINTAIN_EVERY: Duration = Duration::from_secs(10);
const LOCK: &str = "lock";
/// No purge log has this lineage.
const NO_LINEAGE: u64 = 0;
/// Entries pruned under one lock.
const PRUNE_AT_ONCE: usize = 4096;

#[cfg(test)]
mod tests;
