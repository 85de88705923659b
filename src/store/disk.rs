//! The directories: foyer on each with [`Blocks`] beneath, a queue in front, and a watchdog.
//!
//! ```text
//! write() / offer() ─▶ queue (bounded in bytes) ─▶ a batch into foyer ─▶ wait until flushed ─▶ is it in
//!                                                                                the index? counted
//! ```
//!
//! What an I/O error hits is not in the index afterwards. A directory whose writes fail or
//! stall is taken out of service and tried again; its pieces have no second home, so that an
//! older version of a record cannot come back from another disk.
//!
//! At the start the index is read back while the node serves. Until then nothing is read from
//! the directory, what is to be written waits in the queue, and the heads that are put are
//! remembered: what the disk turns out to have under their keys is older.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use foyer::{
    Code, HybridCache, HybridCacheBuilder, HybridCachePolicy, HybridCacheProperties, Load,
    Location, RecoverMode, Spawner,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::blocks::{Blocks, ENTRY_START, SLOT};
use super::body_bytes::BodyBytes;
use super::census::Census;
use super::engine::{self, BlocksConfig};
use super::loads::{Loaded, ReadFailed};
use super::record::{Piece, PieceHasher, PieceKey, Record};
use super::settings::{Directory, Settings};
use super::sites::{OnDisk, Site, Sites};
use super::space::{DiskReserve, bytes_text};
use super::stat::{DirectoryStat, Service};
use crate::lock::lock;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::purge::Purges;

type Foyer = HybridCache<PieceKey, Piece, PieceHasher>;

/// An open directory: foyer, and the file beneath it.
struct Open {
    foyer: Foyer,
    blocks: Arc<Blocks>,
}

/// All directories, each piece at home in one.
#[derive(Clone)]
pub(super) struct Disks {
    disks: Arc<[Arc<Disk>]>,
    sites: Arc<Sites>,
}

/// One directory.
pub(super) struct Disk {
    directory: Directory,
    /// Stable over restarts: places pieces.
    seed: u64,
    /// Not there while the directory cannot be opened.
    open: ArcSwapOption<Open>,
    /// No reads and no writes: it stalled, or could not be opened.
    out: AtomicBool,
    /// No writes: they failed. Reads go on.
    read_only: AtomicBool,
    /// It has said that it cannot grow.
    said_short: AtomicBool,
    /// Heads stored before this may have been superseded while it was not written to.
    distrust_before: AtomicU64,
    /// Not there any more when the index was recovered.
    recovering: Mutex<Option<Recovering>>,
    is_probing: AtomicBool,
    queue: mpsc::Sender<Job>,
    /// What is left of the queue's bytes.
    room: Arc<Semaphore>,
    queue_bytes: u32,
    census: Census,
    purges: Arc<Purges>,
    held: Arc<BodyBytes>,
    recorder: Recorder,
    background: Handle,
    preallocate: bool,
    reserve: DiskReserve,
    slice_bytes: usize,
    deadline: Duration,
    retry: Duration,
    /// Held for as long as the process lives.
    lock: Mutex<Option<File>>,
}

/// What happened while the index was being recovered.
struct Recovering {
    /// Under these something newer was put, or nothing should be.
    superseded: HashSet<PieceKey>,
    /// There were more of them.
    is_over_limit: bool,
    /// Taken up when the directory is open.
    jobs: Option<mpsc::Receiver<Job>>,
}

struct Job {
    key: PieceKey,
    piece: Piece,
    site: Option<Arc<Site>>,
    /// Given back when the batch is through.
    _room: OwnedSemaphorePermit,
    done: Option<oneshot::Sender<bool>>,
}

impl Disks {
    /// The directories, none open yet: each waits for its [`Disk::recover`].
    pub(super) fn new(
        settings: &Settings,
        locks: &mut BTreeMap<PathBuf, File>,
        purges: &Arc<Purges>,
        sites: &Arc<Sites>,
        held: &Arc<BodyBytes>,
        background: &Handle,
        recorder: &Recorder,
    ) -> Self {
        let queue_bytes = u32::try_from(settings.write_queue_bytes).unwrap_or(u32::MAX >> 1);
        let disk = |directory: &Directory| {
            let (queue, jobs) = mpsc::channel(JOBS_MAX);
            let recovering =
                Recovering { superseded: HashSet::new(), is_over_limit: false, jobs: Some(jobs) };
            Arc::new(Disk {
                directory: directory.clone(),
                seed: xxhash_rust::xxh3::xxh3_64(directory.path.as_os_str().as_encoded_bytes()),
                open: ArcSwapOption::empty(),
                out: AtomicBool::new(true),
                read_only: AtomicBool::new(false),
                said_short: AtomicBool::new(false),
                distrust_before: AtomicU64::new(0),
                recovering: Mutex::new(Some(recovering)),
                is_probing: AtomicBool::new(false),
                queue,
                room: Arc::new(Semaphore::new(queue_bytes as usize)),
                queue_bytes,
                census: Census::default(),
                purges: purges.clone(),
                held: held.clone(),
                recorder: recorder.clone(),
                background: background.clone(),
                preallocate: settings.preallocate,
                reserve: settings.disk_reserve,
                slice_bytes: settings.slice_bytes,
                deadline: settings.disk_deadline,
                retry: settings.disk_retry,
                lock: Mutex::new(locks.remove(&directory.path)),
            })
        };
        let disks = settings.directories.iter().map(disk).collect();
        Self { disks, sites: sites.clone() }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.iter()
    }

    /// The piece's one home: weighted rendezvous, so that a new directory takes over its share
    /// and moves nothing else.
    fn home(&self, key: &PieceKey) -> Option<&Arc<Disk>> {
        let score = |disk: &Disk| {
            let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&key.home().to_le_bytes(), disk.seed);
            let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            disk.directory.bytes as f64 / -uniform.ln()
        };
        match &*self.disks {
            [] => None,
            [only] => Some(only),
            several => several.iter().max_by(|a, b| score(a).total_cmp(&score(b))),
        }
    }

    /// Whether it is worth asking the disk: an index look-up.
    pub(super) fn may_contain(&self, key: &PieceKey) -> bool {
        let open = self.home(key).and_then(|disk| disk.readable());
        open.is_some_and(|open| open.foyer.storage().may_contains(key))
    }

    /// Whether the disk has something under the key that must not outlive what is put there now.
    /// While that is being recovered the answer is no, and [`Disk::recover`] tells later.
    pub(super) fn has_older(&self, key: &PieceKey) -> bool {
        let Some(disk) = self.home(key) else { return false };
        if disk.supersede_while_recovering(key) {
            return false;
        }
        disk.readable().is_some_and(|open| open.foyer.storage().may_contains(key))
    }

    /// Reads a piece; to be called on the background runtime.
    pub(super) async fn read(&self, key: &PieceKey) -> Loaded<Piece> {
        let Some(disk) = self.home(key) else { return Ok(None) };
        disk.read(key).await
    }

    /// Reads a piece if that needs no disk, on any thread.
    pub(super) fn read_cached(&self, key: &PieceKey) -> Loaded<Piece> {
        let Some(disk) = self.home(key) else { return Ok(None) };
        disk.read_cached(key)
    }

    /// Queues a piece and waits until it is written, or is not. Waits for room for no longer
    /// than the disk's deadline.
    pub(super) async fn write(&self, key: PieceKey, piece: Piece) -> bool {
        let (done, written) = oneshot::channel();
        self.enqueue(key, piece, Some(done)).await && written.await.unwrap_or(false)
    }

    /// Queues a piece, waiting for room for no longer than the disk's deadline.
    pub(super) async fn queue(&self, key: PieceKey, piece: Piece) -> bool {
        self.enqueue(key, piece, None).await
    }

    async fn enqueue(
        &self,
        key: PieceKey,
        piece: Piece,
        done: Option<oneshot::Sender<bool>>,
    ) -> bool {
        let Some((disk, site)) = self.admit(&key, &piece) else { return false };
        // Nobody waits for a recovery.
        let patience = if disk.is_recovering() { Duration::ZERO } else { disk.deadline };
        let room = tokio::time::timeout(patience, disk.room(&piece)).await;
        let Ok(Some(room)) = room else {
            self.drop_piece(&key);
            return false;
        };
        disk.send(Job { key, piece, site, _room: room, done })
    }

    /// Queues a piece if there is room at once.
    pub(super) fn offer(&self, key: PieceKey, piece: Piece) -> bool {
        let Some((disk, site)) = self.admit(&key, &piece) else { return false };
        let bytes = disk.room_for(&piece);
        match disk.room.clone().try_acquire_many_owned(bytes) {
            Ok(room) => disk.send(Job { key, piece, site, _room: room, done: None }),
            Err(_) => {
                self.drop_piece(&key);
                false
            }
        }
    }

    /// Where a piece is to be written, and whose it is. `None`: nowhere.
    fn admit(&self, key: &PieceKey, piece: &Piece) -> Option<(&Arc<Disk>, Option<Arc<Site>>)> {
        let disk = self.home(key)?;
        let site = self.sites.of_piece(piece);
        if site.as_ref().is_some_and(|site| site.is_disk_full()) {
            disk.recorder.count(Metric::StoreDiskOverShare);
            disk.forget(key);
            return None;
        }
        if !disk.takes_jobs() || piece.estimated_size() > disk.block_bytes() / 2 {
            disk.drop_piece(key);
            return None;
        }
        Some((disk, site))
    }

    /// Looks what sites have on the disks. `save`: keeps that for the next start.
    pub(super) async fn count_sites(&self, save: bool) {
        let mut found = OnDisk::new();
        for disk in self.iter() {
            let Some(open) = disk.readable() else { continue };
            disk.census.count(|key| open.foyer.storage().may_contains(key), &mut found);
        }
        self.sites.set_on_disk(&found);
        for disk in self.iter().filter(|disk| save && disk.is_writable()) {
            let saved = disk.clone();
            let saving = tokio::task::spawn_blocking(move || saved.save_census());
            if tokio::time::timeout(disk.deadline, saving).await.is_err() {
                disk.take_out("a small file took longer than the deadline");
            }
        }
    }

    /// A piece will not be written: what the disk has under its key is out of date.
    fn drop_piece(&self, key: &PieceKey) {
        if let Some(disk) = self.home(key) {
            disk.drop_piece(key);
        }
    }

    /// Takes a piece out of the index. It may come back after a restart.
    pub(super) fn forget(&self, key: &PieceKey) {
        if let Some(disk) = self.home(key) {
            disk.forget(key);
        }
    }

    /// Writes what is queued and lets go of the directories.
    pub(super) async fn close(&self) {
        for disk in &*self.disks {
            disk.close().await;
        }
    }

    pub(super) fn stat(&self) -> Vec<DirectoryStat> {
        self.disks.iter().map(|disk| disk.stat()).collect()
    }

    #[cfg(test)]
    pub(super) fn fail(&self, number: usize) {
        self.disks[number].take_out("taken out by a test");
    }

    #[cfg(test)]
    pub(super) async fn try_again(&self, number: usize) {
        self.disks[number].try_again().await;
    }
}

impl Disk {
    /// Opens the directory for the first time, and begins to write what is queued. What the
    /// index still has of the keys that it returns is gone from it: what was put in its place
    /// is to be written.
    pub(super) async fn recover(self: &Arc<Self>) -> Vec<PieceKey> {
        let started = tokio::time::Instant::now();
        let opened = self.open().await;
        self.census.load(&self.directory.path);
        let (superseded, jobs) = self.end_recovery(opened);
        if let Some(jobs) = jobs {
            tokio::spawn(write_jobs(Arc::downgrade(self), jobs));
            tokio::spawn(watch(Arc::downgrade(self), self.retry));
        }
        if self.is_writable() {
            let directory = self.directory.path.display();
            let milliseconds = started.elapsed().as_millis() as u64;
            let max = bytes_text(self.directory.bytes);
            let now =
                bytes_text(self.open.load().as_ref().map_or(0, |it| it.blocks.usable_bytes()));
            tracing::info!(%directory, milliseconds, "store directory opened: {now} allocated, may grow to {max}");
        }
        superseded
    }

    /// From here on the index answers.
    fn end_recovery(
        &self,
        opened: io::Result<Open>,
    ) -> (Vec<PieceKey>, Option<mpsc::Receiver<Job>>) {
        let mut recovering = self.recovering();
        let Some(mut ended) = recovering.take() else { return (Vec::new(), None) };
        let jobs = ended.jobs.take();
        let open = match opened {
            Ok(open) => open,
            Err(error) => {
                self.take_out(&error.to_string());
                return (Vec::new(), jobs);
            }
        };
        let storage = open.foyer.storage();
        let has = |key: &PieceKey| storage.may_contains(key);
        let superseded: Vec<_> = ended.superseded.into_iter().filter(has).collect();
        superseded.iter().for_each(|key| storage.delete(key));
        if ended.is_over_limit {
            self.distrust_before.store(self.purges.sequence().0, Ordering::Release);
        }
        self.put_in_service(open);
        (superseded, jobs)
    }

    fn recovering(&self) -> MutexGuard<'_, Option<Recovering>> {
        self.recovering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_recovering(&self) -> bool {
        self.recovering().is_some()
    }

    /// Remembers that what the disk has under the key is out of date; `false` when the index
    /// can be asked.
    fn supersede_while_recovering(&self, key: &PieceKey) -> bool {
        let mut recovering = self.recovering();
        let Some(recovering) = &mut *recovering else { return false };
        // A slice's key is never used again.
        if key.number == 0 {
            recovering.is_over_limit |= recovering.superseded.len() == SUPERSEDED_MAX;
            if !recovering.is_over_limit {
                recovering.superseded.insert(*key);
            }
        }
        true
    }

    /// Takes the lock, reserves the space, recovers the index.
    async fn open(self: &Arc<Self>) -> io::Result<Open> {
        let disk = self.clone();
        // Too long for a runtime's thread.
        let opening = self.background.spawn_blocking(move || disk.open_blocks());
        let blocks = opening.await.map_err(io::Error::other)??;
        let foyer = HybridCacheBuilder::new()
            .with_name("disk")
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .with_flush_on_close(false)
            // Nothing is kept in this memory: the tier above is shared by all directories.
            .memory(1)
            .with_shards(1)
            .with_hash_builder(PieceHasher)
            .storage()
            .with_engine_config(BlocksConfig { blocks: blocks.clone(), held: self.held.clone() })
            .with_recover_mode(RecoverMode::Quiet)
            .with_spawner(Spawner::from(self.background.clone()))
            .build()
            .await
            .map_err(io::Error::other)?;
        Ok(Open { foyer, blocks })
    }

    fn open_blocks(&self) -> io::Result<Arc<Blocks>> {
        let blocks = self.directory.path.join(BLOCKS);
        std::fs::create_dir_all(&blocks)?;
        self.take_lock()?;
        let block_bytes = self.block_bytes();
        remove_what_foyer_left(&blocks);
        let file = data_file(&self.directory.path);
        let blocks = Blocks::open(&file, self.directory.bytes, block_bytes as u64, self.reserve)?;
        if self.preallocate {
            // It grows as far as there is room; what is said of it is said below.
            let _ = blocks.grow(blocks.count());
        }
        self.note_space(&blocks);
        Ok(Arc::new(blocks))
    }

    /// Says, once, that the directory cannot grow, and once that it can again.
    fn note_space(&self, blocks: &Blocks) {
        let is_short = blocks.is_short();
        if self.said_short.swap(is_short, Ordering::AcqRel) == is_short {
            return;
        }
        let directory = self.directory.path.display();
        let (now, max) = (bytes_text(blocks.usable_bytes()), bytes_text(self.directory.bytes));
        if is_short {
            self.recorder.count(Metric::StoreDiskShort);
            tracing::warn!(
                %directory,
                "a store directory cannot grow: {now} of {max} allocated, its file system has no free space beyond store.disk_reserve; \
                 the cache keeps serving and grows when there is space"
            );
        } else {
            tracing::info!(%directory, "a store directory grows again: {now} of {max} allocated");
        }
    }

    /// Lets a directory that could not grow try again.
    async fn look_for_room(self: &Arc<Self>) {
        let Some(open) = self.readable().filter(|open| open.blocks.is_short()) else { return };
        let disk = self.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let blocks = &open.blocks;
            let wanted = if disk.preallocate { blocks.count() } else { blocks.usable() + 1 };
            if blocks.grow(wanted).is_ok() {
                disk.note_space(blocks);
            }
        });
        // One that hangs is told of by the reads and writes that hang with it.
        let _ = tokio::time::timeout(self.deadline, looking).await;
    }

    fn put_in_service(&self, open: Open) {
        self.open.store(Some(Arc::new(open)));
        self.out.store(false, Ordering::Release);
    }

    fn take_lock(&self) -> io::Result<()> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(lock(&self.directory.path, LOCK)?);
        }
        Ok(())
    }

    fn block_bytes(&self) -> usize {
        block_bytes(&self.directory, self.slice_bytes)
    }

    fn stat(&self) -> DirectoryStat {
        let open = self.open.load();
        let statistics = open.as_ref().map(|open| open.foyer.statistics().clone());
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
            bytes: open.as_ref().map_or(0, |open| open.blocks.usable_bytes()),
            is_short_of_space: open.as_ref().is_some_and(|open| open.blocks.is_short()),
            written_bytes: statistics.as_ref().map_or(0, |it| it.disk_write_bytes() as u64),
            read_bytes: statistics.as_ref().map_or(0, |it| it.disk_read_bytes() as u64),
            queued_bytes: (self.queue_bytes as usize - self.room.available_permits()) as u64,
        }
    }

    fn readable(&self) -> Option<Arc<Open>> {
        if self.out.load(Ordering::Acquire) {
            return None;
        }
        self.open.load_full()
    }

    fn is_writable(&self) -> bool {
        !self.out.load(Ordering::Acquire) && !self.read_only.load(Ordering::Acquire)
    }

    /// Whether a piece may be queued.
    fn takes_jobs(&self) -> bool {
        self.is_writable() || self.is_recovering()
    }

    fn room_for(&self, piece: &Piece) -> u32 {
        let bytes = u32::try_from(piece.estimated_size() + PIECE_OVERHEAD).unwrap_or(u32::MAX);
        bytes.min(self.queue_bytes)
    }

    async fn room(&self, piece: &Piece) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_many_owned(self.room_for(piece)).await.ok()
    }

    fn send(&self, job: Job) -> bool {
        let key = job.key;
        let sent = self.queue.try_send(job).is_ok();
        if !sent {
            self.drop_piece(&key);
        }
        sent
    }

    fn drop_piece(&self, key: &PieceKey) {
        self.recorder.count(Metric::StoreDiskDropped);
        self.forget(key);
    }

    fn forget(&self, key: &PieceKey) {
        if !self.supersede_while_recovering(key)
            && let Some(open) = self.readable()
        {
            open.foyer.storage().delete(key);
        }
    }

    async fn read(&self, key: &PieceKey) -> Loaded<Piece> {
        let Some(open) = self.readable() else { return Ok(None) };
        let storage = open.foyer.storage();
        let loaded = match tokio::time::timeout(self.deadline, storage.load(key)).await {
            Ok(loaded) => loaded,
            Err(_) => {
                self.take_out("a read took longer than the deadline");
                return Err(ReadFailed);
            }
        };
        let piece = match loaded {
            Ok(Load::Entry { value, .. }) => value,
            // Still in the queue: the piece itself.
            Ok(Load::Piece { piece, .. }) => piece.value().share(),
            Ok(Load::Miss | Load::Throttled) => return Ok(None),
            Err(error) => {
                self.not_read(&open, key, &error);
                return Err(ReadFailed);
            }
        };
        self.taken(&open, key, piece)
    }

    fn not_read(&self, open: &Open, key: &PieceKey, error: &(dyn std::error::Error + 'static)) {
        self.recorder.count(Metric::StoreDiskErrors);
        let directory = self.directory.path.to_string_lossy();
        let notice = Notice::warning("a stored piece cannot be read", "", &directory);
        notices::note(&notice, format_args!("{error}"));
        open.foyer.storage().delete(key);
    }

    /// As [`Disk::read`], without waiting.
    fn read_cached(&self, key: &PieceKey) -> Loaded<Piece> {
        let Some(open) = self.readable() else { return Ok(None) };
        let hash = PieceHasher.hash_one(key);
        let Some(place) = open.blocks.place(hash) else { return Ok(None) };
        let read = open.blocks.read_cached(place);
        match read.and_then(|read| engine::entry(&open.blocks, &self.held, hash, place, read)) {
            Ok(Some((found, piece))) if found == *key => {
                open.foyer.statistics().record_disk_read(place.bytes());
                self.taken(&open, key, piece)
            }
            Ok(_) => Ok(None),
            Err(error) => {
                self.not_read(&open, key, &error);
                Err(ReadFailed)
            }
        }
    }

    /// What was read, as it may be used.
    fn taken(&self, open: &Open, key: &PieceKey, piece: Piece) -> Loaded<Piece> {
        self.recorder.count(Metric::StoreDiskReads);
        match piece {
            Piece::Unknown => {
                self.recorder.count(Metric::StoreDiskErrors);
                open.foyer.storage().delete(key);
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

    /// Takes the directory out of service.
    fn take_out(&self, reason: &str) {
        self.distrust_before.store(u64::MAX, Ordering::Release);
        if !self.out.swap(true, Ordering::AcqRel) || self.open.load().is_none() {
            self.recorder.count(Metric::StoreDiskOuts);
            tracing::error!(
                directory = %self.directory.path.display(),
                reason,
                retry_seconds = self.retry.as_secs_f32(),
                "a store directory is out of service"
            );
        }
    }

    /// Stops writing to it.
    fn stop_writing(&self) {
        self.distrust_before.store(u64::MAX, Ordering::Release);
        if !self.read_only.swap(true, Ordering::AcqRel) {
            self.recorder.count(Metric::StoreDiskOuts);
            tracing::error!(
                directory = %self.directory.path.display(),
                retry_seconds = self.retry.as_secs_f32(),
                "cannot write to a store directory: it is read-only until a retry succeeds"
            );
        }
    }

    /// Tries a directory in trouble again.
    async fn try_again(self: &Arc<Self>) {
        if self.is_writable() {
            return;
        }
        if !self.answers_probe().await {
            return;
        }
        // A write that hangs still may end at any time.
        if self.open.load().as_ref().is_some_and(|open| !open.blocks.is_quiet()) {
            return;
        }
        // Where writes failed, the file may be another by now, or gone: it is opened anew.
        if self.read_only.load(Ordering::Acquire) {
            self.out.store(true, Ordering::Release);
            self.open.store(None);
        }
        if self.open.load().is_none() {
            let Ok(open) = self.open().await else { return };
            self.open.store(Some(Arc::new(open)));
        }
        // What is on it was not kept up to date meanwhile.
        let now = self.purges.sequence().0;
        self.distrust_before.store(now, Ordering::Release);
        self.read_only.store(false, Ordering::Release);
        self.out.store(false, Ordering::Release);
        let directory = self.directory.path.display();
        tracing::info!(%directory, "a store directory is back in service");
    }

    /// Whether a file can be written and read. One probe at a time: each that hangs holds a thread.
    async fn answers_probe(self: &Arc<Self>) -> bool {
        if self.is_probing.swap(true, Ordering::AcqRel) {
            return false;
        }
        let disk = self.clone();
        let probing = tokio::task::spawn_blocking(move || {
            let works = probe(&disk.directory.path).is_ok();
            disk.is_probing.store(false, Ordering::Release);
            works
        });
        matches!(tokio::time::timeout(self.deadline, probing).await, Ok(Ok(true)))
    }

    /// Writes one batch and says of each piece whether it is on disk.
    async fn write_batch(&self, mut batch: Vec<Job>) {
        let open = self.readable().filter(|_| !self.read_only.load(Ordering::Acquire));
        let Some(open) = open else {
            batch.drain(..).for_each(|job| self.not_written(job));
            return;
        };
        let on_disk = HybridCacheProperties::default().with_location(Location::OnDisk);
        for job in &batch {
            open.foyer.insert_with_properties(job.key, job.piece.share(), on_disk.clone());
        }
        if tokio::time::timeout(self.deadline, open.foyer.storage().wait()).await.is_err() {
            self.take_out("a write took longer than the deadline");
            batch.drain(..).for_each(|job| self.not_written(job));
            return;
        }
        let pieces = batch.len();
        let mut written = 0;
        for job in batch.drain(..) {
            if open.foyer.storage().may_contains(&job.key) {
                written += 1;
                if let Some(site) = &job.site {
                    let bytes = bytes_on_disk(&job.piece);
                    site.written(u64::from(bytes), job.key.is_head());
                    self.census.add(job.key, &site.name, bytes);
                }
                job.done.map(|done| done.send(true));
            } else {
                self.not_written(job);
            }
        }
        self.recorder.add(Metric::StoreDiskWrites, written as u64);
        self.note_space(&open.blocks);
        if written < pieces {
            self.stop_writing();
        }
    }

    fn not_written(&self, job: Job) {
        self.drop_piece(&job.key);
        job.done.map(|done| done.send(false));
    }

    fn save_census(&self) {
        if self.is_writable()
            && let Err(error) = self.census.save(&self.directory.path)
        {
            let directory = self.directory.path.display();
            tracing::warn!(%directory, %error, "cannot save the per-site statistics of a store directory");
        }
    }

    async fn close(&self) {
        // When all room is back, all jobs are through.
        let _all = self.room.acquire_many(self.queue_bytes).await;
        self.room.close();
        self.save_census();
        self.out.store(true, Ordering::Release);
        if let Some(open) = self.open.swap(None)
            && let Err(error) = open.foyer.close().await
        {
            tracing::warn!(%error, "a store directory did not close cleanly");
        }
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Takes the queue's jobs in batches, for as long as the disk lives.
async fn write_jobs(disk: Weak<Disk>, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let Some(disk) = disk.upgrade() else { return };
        let mut batch = Vec::new();
        let mut bytes = job.piece.estimated_size() + PIECE_OVERHEAD;
        batch.push(job);
        while bytes < BATCH_BYTES && batch.len() < BATCH_PIECES {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.piece.estimated_size() + PIECE_OVERHEAD;
            batch.push(job);
        }
        // A panic in foyer ends its batch, not this task; the jobs' callers are told "not written".
        let writing = disk.clone();
        let written = tokio::spawn(async move { writing.write_batch(batch).await }).await;
        if written.is_err() {
            disk.take_out("the writer task panicked");
            disk.open.store(None);
        }
    }
}

async fn watch(disk: Weak<Disk>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let Some(disk) = disk.upgrade() else { return };
        disk.try_again().await;
        disk.look_for_room().await;
    }
}

/// Big enough for many pieces, and small enough that few are forgotten at a time.
fn block_bytes(directory: &Directory, slice_bytes: usize) -> usize {
    let bytes = usize::try_from(directory.bytes).unwrap_or(usize::MAX);
    let least = (4 * slice_bytes).max(1 << 20);
    let wanted = (bytes / BLOCKS_WANTED).min(16 << 20);
    least.max(wanted).max(bytes / BLOCKS_MAX).next_power_of_two()
}

/// How long the directory's file is: whole blocks.
pub(super) fn file_bytes(directory: &Directory, slice_bytes: usize) -> u64 {
    let block_bytes = block_bytes(directory, slice_bytes) as u64;
    directory.bytes / block_bytes * block_bytes
}

/// The directory's one file.
pub(super) fn data_file(directory: &Path) -> PathBuf {
    directory.join(BLOCKS).join(FILE)
}

/// With what stands before it, and its slot.
fn bytes_on_disk(piece: &Piece) -> u32 {
    let bytes = piece.estimated_size() + ENTRY_START + SLOT as usize;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Files of foyer's own engine, which this node once used.
fn remove_what_foyer_left(blocks: &Path) {
    let Ok(files) = std::fs::read_dir(blocks) else { return };
    for file in files.flatten() {
        if file.file_name().to_string_lossy().starts_with("foyer-storage-direct-fs-")
            && let Err(error) = std::fs::remove_file(file.path())
        {
            tracing::warn!(file = %file.path().display(), %error, "cannot delete an obsolete cache file; delete it by hand");
        }
    }
}

/// Whether a directory can be written to and read from.
fn probe(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path: PathBuf = directory.join(PROBE);
    let mut file =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
    let written = [0xa5; 4096];
    let mut read = [0; 4096];
    file.write_all(&written)?;
    file.sync_data()?;
    file.rewind()?;
    file.read_exact(&mut read)?;
    std::fs::remove_file(&path)?;
    if read == written {
        Ok(())
    } else {
        Err(io::Error::other("the probe file does not read back as written"))
    }
}

pub(super) const LOCK: &str = "lock";
const PROBE: &str = "probe";
const BLOCKS: &str = "blocks";
const FILE: &str = "data";
const BATCH_BYTES: usize = 4 << 20;
const BATCH_PIECES: usize = 512;
/// What bounds how many small pieces wait, beyond their bytes.
const PIECE_OVERHEAD: usize = 512;
/// Pieces waiting for a directory, whatever their size.
const JOBS_MAX: usize = 1 << 16;
const BLOCKS_WANTED: usize = 64;
/// A start reads from each.
const BLOCKS_MAX: usize = 4096;
/// Keys remembered while the index is recovered, 8 MiB of them. Beyond: all that the directory
/// has is validated before it is used.
const SUPERSEDED_MAX: usize = 1 << 18;
