//! One store directory: its block file, the queue in front of it, and its state of service.
//!
//! ```text
//! announce() ─▶ send() ─▶ queue (bounded in bytes) ─▶ one batch into Blocks ─▶ pieces that are not in the index
//!                                                                              afterwards count as dropped
//! ```
//!
//! A piece whose write fails is not in the index afterwards. A directory whose writes fail becomes
//! read-only; one whose reads or writes exceed the deadline goes out of service. Both are retried
//! ([`repair`]). A piece belongs to one directory only, so that an older version of a
//! record cannot reappear from another.
//!
//! At the start the index is read while the node serves. Until then nothing is read from the
//! directory, writes wait in the queue, and the keys of new heads are remembered: what the directory
//! has under them is older.

mod links;
mod pending;
mod repair;
mod write;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::pending::Pending;
use super::blocks::{Blocks, EntryLocation, EntryRead};
use super::body_bytes::BodyBytes;
use super::census::Census;
use super::layout;
use super::loads::{LoadResult, ReadFailed};
use super::piece::Piece;
use super::piece_key::PieceKey;
use super::record::Record;
use super::settings::{Directory, DiskReserve, Settings};
use super::sites::{DiskUsage, Site};
use super::space::bytes_text;
use super::stat::{DirectoryStat, Service};
use crate::cache::PurgeSequence;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::purge::Purges;

/// The state that all directories share.
#[derive(Clone)]
pub(super) struct DiskContext {
    pub purges: Arc<Purges>,
    pub body_bytes: Arc<BodyBytes>,
    pub background: Handle,
    pub recorder: Recorder,
}

/// One directory.
pub(super) struct Disk {
    directory: Directory,
    /// Hash of the path: the same across restarts, for the choice of a piece's directory.
    seed: u64,
    /// `None` while the directory cannot be opened.
    blocks: ArcSwapOption<Blocks>,
    /// No reads and no writes: it exceeded the deadline, or could not be opened.
    out: AtomicBool,
    /// No writes, because one failed. Reads continue.
    read_only: AtomicBool,
    /// Whether a lack of space has been logged.
    logged_short: AtomicBool,
    /// Heads stored before this purge sequence may be outdated, because newer ones were not written.
    distrust_before: AtomicU64,
    /// `None` once the index has been read.
    recovery: Mutex<Option<Recovery>>,
    is_probing: AtomicBool,
    queue: mpsc::Sender<WriteJob>,
    /// Pieces that are readable, but not yet in the index.
    pending: Pending,
    /// Free bytes of the queue.
    queue_space: Arc<Semaphore>,
    queue_bytes: u32,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    census: Census,
    context: DiskContext,
    preallocate: bool,
    reserve: DiskReserve,
    slice_bytes: usize,
    deadline: Duration,
    retry: Duration,
    /// Kept until the process ends or the store is closed.
    lock: Mutex<Option<File>>,
}

/// The state while the index is being read.
struct Recovery {
    /// The keys under which a newer head was stored, or that were forgotten.
    superseded: HashSet<PieceKey>,
    /// Whether there were more than [`SUPERSEDED_MAX`].
    is_over_limit: bool,
    /// Handed to the writer when the directory is open.
    jobs: Option<mpsc::Receiver<WriteJob>>,
}

/// A piece in the queue.
pub(super) struct WriteJob {
    pub key: PieceKey,
    pub piece: Piece,
    pub site: Option<Arc<Site>>,
    /// Released after the batch.
    pub _space: OwnedSemaphorePermit,
    /// Receives whether the piece was written.
    pub done: Option<oneshot::Sender<bool>>,
}

impl Disk {
    /// `lock`: the directory's lock, if it could be taken already.
    pub(super) fn new(
        settings: &Settings,
        directory: &Directory,
        lock: Option<File>,
        context: DiskContext,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(JOBS_MAX);
        let queue_bytes = u32::try_from(settings.write_queue_bytes).unwrap_or(u32::MAX >> 1);
        let recovery =
            Recovery { superseded: HashSet::new(), is_over_limit: false, jobs: Some(jobs) };
        Self {
            directory: directory.clone(),
            seed: xxhash_rust::xxh3::xxh3_64(directory.path.as_os_str().as_encoded_bytes()),
            blocks: ArcSwapOption::empty(),
            out: AtomicBool::new(true),
            read_only: AtomicBool::new(false),
            logged_short: AtomicBool::new(false),
            distrust_before: AtomicU64::new(0),
            recovery: Mutex::new(Some(recovery)),
            is_probing: AtomicBool::new(false),
            queue,
            pending: Pending::default(),
            queue_space: Arc::new(Semaphore::new(queue_bytes as usize)),
            queue_bytes,
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            census: Census::default(),
            context,
            preallocate: settings.preallocate,
            reserve: settings.disk_reserve,
            slice_bytes: settings.slice_bytes,
            deadline: settings.disk_deadline,
            retry: settings.disk_retry,
            lock: Mutex::new(lock),
        }
    }

    /// The directory with the highest score is the piece's home; scores are weighted by size.
    pub(super) fn rendezvous_score(&self, key: &PieceKey) -> f64 {
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&key.home().to_le_bytes(), self.seed);
        let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        self.directory.bytes as f64 / -uniform.ln()
    }

    /// Opens the directory for the first time, and starts the tasks that write and watch. Returns
    /// the superseded keys that the index had: they are removed from it, and the caller must write
    /// the pieces that replaced them.
    pub(super) async fn recover(self: &Arc<Self>) -> Vec<PieceKey> {
        let started = tokio::time::Instant::now();
        let opened = self.open().await;
        self.census.load(&self.directory.path);
        let (superseded, jobs) = self.end_recovery(opened);
        if let Some(jobs) = jobs {
            tokio::spawn(write::write_jobs(Arc::downgrade(self), jobs));
            tokio::spawn(repair::watch(Arc::downgrade(self), self.retry));
        }
        if self.is_writable() {
            let directory = self.directory.path.display();
            let milliseconds = started.elapsed().as_millis() as u64;
            let max = bytes_text(self.directory.bytes);
            let now = bytes_text(self.blocks.load().as_ref().map_or(0, |it| it.usable_bytes()));
            tracing::info!(%directory, milliseconds, "store directory opened: {now} allocated, may grow to {max}");
        }
        superseded
    }

    /// Puts the directory in service: from here on the index is used.
    fn end_recovery(
        &self,
        opened: io::Result<Arc<Blocks>>,
    ) -> (Vec<PieceKey>, Option<mpsc::Receiver<WriteJob>>) {
        let mut recovery = self.recovery();
        let Some(mut ended) = recovery.take() else { return (Vec::new(), None) };
        let jobs = ended.jobs.take();
        let blocks = match opened {
            Ok(blocks) => blocks,
            Err(error) => {
                self.take_out(&error.to_string());
                return (Vec::new(), jobs);
            }
        };
        let has = |key: &PieceKey| blocks.locate(key.index_hash()).is_some();
        let superseded: Vec<_> = ended.superseded.into_iter().filter(has).collect();
        superseded.iter().for_each(|key| blocks.forget(key.index_hash()));
        if ended.is_over_limit {
            self.distrust_before.store(self.context.purges.sequence().0, Ordering::Release);
        }
        self.blocks.store(Some(blocks));
        self.out.store(false, Ordering::Release);
        (superseded, jobs)
    }

    fn recovery(&self) -> MutexGuard<'_, Option<Recovery>> {
        self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.recovery().is_some()
    }

    /// While the index is being read: remembers that the piece on disk under the key is outdated,
    /// and returns `true`. Afterwards returns `false`.
    pub(super) fn supersede_while_recovering(&self, key: &PieceKey) -> bool {
        let mut recovery = self.recovery();
        let Some(recovery) = &mut *recovery else { return false };
        // The key of a slice is never used for another piece.
        if key.is_head() {
            recovery.is_over_limit |= recovery.superseded.len() == SUPERSEDED_MAX;
            if !recovery.is_over_limit {
                recovery.superseded.insert(*key);
            }
        }
        true
    }

    pub(super) fn stat(&self) -> DirectoryStat {
        let blocks = self.blocks.load();
        let service = match (self.out.load(Ordering::Acquire), self.is_writable()) {
            _ if self.is_recovering() => Service::Recovering,
            (true, _) => Service::Out,
            (false, true) => Service::Serving,
            (false, false) => Service::ReadOnly,
        };
        DirectoryStat {
            path: self.directory.path.clone(),
            service,
            bytes_max: self.directory.bytes,
            bytes: blocks.as_ref().map_or(0, |blocks| blocks.usable_bytes()),
            is_short_of_space: blocks.as_ref().is_some_and(|blocks| blocks.is_short()),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            queued_bytes: (self.queue_bytes as usize - self.queue_space.available_permits()) as u64,
        }
    }

    /// The block file, unless the directory is out of service.
    fn readable(&self) -> Option<Arc<Blocks>> {
        if self.out.load(Ordering::Acquire) {
            return None;
        }
        self.blocks.load_full()
    }

    pub(super) fn is_writable(&self) -> bool {
        !self.out.load(Ordering::Acquire) && !self.read_only.load(Ordering::Acquire)
    }

    /// Whether pieces may be queued.
    pub(super) fn takes_jobs(&self) -> bool {
        self.is_writable() || self.is_recovering()
    }

    pub(super) fn block_bytes(&self) -> usize {
        layout::block_bytes(&self.directory, self.slice_bytes)
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn count(&self, metric: Metric) {
        self.context.recorder.count(metric);
    }

    /// Whether the piece can probably be read: it is in the index, or on its way there.
    pub(super) fn may_contain(&self, key: &PieceKey) -> bool {
        let Some(blocks) = self.readable() else { return false };
        blocks.locate(key.index_hash()).is_some() || self.pending.contains(key)
    }

    #[cfg(test)]
    pub(super) fn has_pending(&self, key: &PieceKey) -> bool {
        self.pending.contains(key)
    }

    /// The number of the entry that the index has under this key. `None` also while the directory is out of service, or if what
    /// was stored at this sequence may be outdated.
    pub(super) fn trusted_entry(&self, key: &PieceKey, stored_at: PurgeSequence) -> Option<u64> {
        let is_trusted = stored_at.0 >= self.distrust_before.load(Ordering::Acquire);
        if !is_trusted || self.out.load(Ordering::Acquire) {
            return None;
        }
        self.blocks.load().as_ref()?.entry_number(key.index_hash())
    }

    /// Makes a piece readable that will be written: from here on an older record under its key is not found, and not written
    /// any more.
    pub(super) fn announce(&self, key: PieceKey, piece: Piece) {
        self.pending.add(key, piece);
        self.forget_in_index(&key);
    }

    /// Gives up writing a piece, and counts it by `metric`, unless it is superseded, where the newer one is kept, or another job
    /// writes it. Returns whether it was given up.
    pub(super) fn give_up(&self, key: &PieceKey, piece: &Piece, metric: Metric) -> bool {
        let is_given_up = self.pending.end_job(key, piece);
        if is_given_up {
            self.count(metric);
            self.forget_in_index(key);
        }
        is_given_up
    }

    /// Removes a piece, also if it is not in the index yet.
    pub(super) fn forget(&self, key: &PieceKey) {
        self.pending.remove(key);
        self.forget_in_index(key);
    }

    fn forget_in_index(&self, key: &PieceKey) {
        if self.supersede_while_recovering(key) {
            return;
        }
        if let Some(blocks) = self.readable() {
            blocks.forget(key.index_hash());
        }
    }

    /// Reads a piece; waits for at most the deadline.
    pub(super) async fn read(&self, key: &PieceKey) -> LoadResult<Piece> {
        let Some(blocks) = self.readable() else { return Ok(None) };
        if let Some(piece) = self.pending.get(key) {
            return self.finish_read(&blocks, key, piece);
        }
        let Some(location) = blocks.locate(key.index_hash()) else { return Ok(None) };
        let read = match blocks.read_cached(location) {
            Ok(EntryRead::NotCached) => {
                let reader = blocks.clone();
                let reading = self.context.background.spawn_blocking(move || reader.read(location));
                let Ok(read) = tokio::time::timeout(self.deadline, reading).await else {
                    self.take_out("a read took longer than the deadline");
                    return Err(ReadFailed);
                };
                read.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
            }
            read => read,
        };
        self.entry(&blocks, key, location, read)
    }

    /// As [`Disk::read`], from the page cache only. Does not wait.
    pub(super) fn read_cached(&self, key: &PieceKey) -> LoadResult<Piece> {
        let Some(blocks) = self.readable() else { return Ok(None) };
        if let Some(piece) = self.pending.get(key) {
            return self.finish_read(&blocks, key, piece);
        }
        let Some(location) = blocks.locate(key.index_hash()) else { return Ok(None) };
        self.entry(&blocks, key, location, blocks.read_cached(location))
    }

    /// The piece in what was read. A damaged entry is forgotten, and is an error, unless its block
    /// was overwritten during the read.
    fn entry(
        &self,
        blocks: &Blocks,
        key: &PieceKey,
        location: EntryLocation,
        read: io::Result<EntryRead>,
    ) -> LoadResult<Piece> {
        match read {
            Ok(EntryRead::Found(found, value)) if found == *key => {
                self.read_bytes.fetch_add(location.bytes() as u64, Ordering::Relaxed);
                let piece = self.context.body_bytes.count_piece(Piece::decode(value));
                self.finish_read(blocks, key, piece)
            }
            // The entry of another key with the same hash.
            Ok(EntryRead::Found(..) | EntryRead::NotCached) => Ok(None),
            Ok(EntryRead::Damaged) if blocks.forget_at(key.index_hash(), location) => {
                let kind = io::ErrorKind::InvalidData;
                let error = io::Error::new(kind, "checksum mismatch in a stored entry");
                self.read_failed(blocks, key, &error);
                Err(ReadFailed)
            }
            Ok(EntryRead::Damaged) => Ok(None),
            Err(error) => {
                self.read_failed(blocks, key, &error);
                Err(ReadFailed)
            }
        }
    }

    fn read_failed(&self, blocks: &Blocks, key: &PieceKey, error: &io::Error) {
        self.count(Metric::StoreDiskErrors);
        let directory = self.directory.path.to_string_lossy();
        let notice = Notice::warning("a stored piece cannot be read", "", &directory);
        notices::note(&notice, format_args!("{error}"));
        blocks.forget(key.index_hash());
    }

    /// Rejects a piece that does not decode, and marks a head that may be outdated.
    fn finish_read(&self, blocks: &Blocks, key: &PieceKey, piece: Piece) -> LoadResult<Piece> {
        self.count(Metric::StoreDiskReads);
        match piece {
            Piece::Unknown => {
                self.count(Metric::StoreDiskErrors);
                blocks.forget(key.index_hash());
                Err(ReadFailed)
            }
            Piece::Record(Record::Response(head)) => {
                let stored_at = head.response.stored_at_sequence.0;
                let trusted = stored_at >= self.distrust_before.load(Ordering::Acquire);
                let head = if trusted { head } else { Arc::new(head.distrusted()) };
                Ok(Some(Piece::Record(Record::Response(head))))
            }
            other => Ok(Some(other)),
        }
    }

    /// Adds the directory's estimate of what each site has on it.
    pub(super) fn count_sites(&self, usage: &mut DiskUsage) {
        let Some(blocks) = self.readable() else { return };
        self.census.count(|key| blocks.locate(key.index_hash()).is_some(), usage);
    }

    /// Saves the census; takes the directory out of service if that exceeds the deadline.
    pub(super) async fn save_census_in_time(self: &Arc<Self>) {
        let disk = self.clone();
        let saving = tokio::task::spawn_blocking(move || disk.save_census());
        if tokio::time::timeout(self.deadline, saving).await.is_err() {
            self.take_out("a small file took longer than the deadline");
        }
    }

    fn save_census(&self) {
        if self.is_writable()
            && let Err(error) = self.census.save(&self.directory.path)
        {
            let directory = self.directory.path.display();
            tracing::warn!(%directory, %error, "cannot save the per-site statistics of a store directory");
        }
    }

    /// Waits for the queue, saves the census, and releases the directory.
    pub(super) async fn close(&self) {
        let _all = self.all_queue_space().await;
        self.queue_space.close();
        self.save_census();
        self.out.store(true, Ordering::Release);
        if let Some(blocks) = self.blocks.swap(None) {
            // A write that exceeded the deadline may still be in progress; the lock must cover it.
            let waiting = tokio::task::spawn_blocking(move || blocks.wait_until_quiet());
            let _ = waiting.await;
        }
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Maximum number of queued pieces, whatever their size.
const JOBS_MAX: usize = 1 << 16;
/// Maximum number of keys remembered while the index is read, about 8 MiB. Beyond it, every head that
/// the directory has must be validated before it is used.
const SUPERSEDED_MAX: usize = 1 << 18;
