//! The memory tier above the disk tier, as one table of pieces.
//!
//! ```text
//! put() ──────────▶ memory ──(wanted)──▶ disks
//! load_cached() ◀── memory ◀── the page cache          without waiting
//! load() ◀───────── memory ◀── disks                   once for all who wait
//! ```

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use foyer_memory::{Cache, CacheBuilder, S3FifoConfig};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::admission::FrequencySketch;
use super::body_bytes::BodyBytes;
use super::disks::Disks;
use super::evictions::Evictions;
use super::loads::{LoadResult, LoadedPiece, Loads, ReadFailed};
use super::piece::Piece;
use super::piece_key::{ObjectId, PieceHasher, PieceKey};
use super::record::{Record, StoredHead, disk_state};
use super::settings::{Admission, Settings};
use super::share::MemoryShare;
use super::sites::{Site, Sites};
use super::tag_marks::TagMarks;
use crate::cache::KeyHash;
use crate::metrics::{Metric, Recorder};
use crate::planted::{self, Bug};

/// Memory and disks.
pub(super) struct Tiers {
    pub settings: Settings,
    pub memory: Cache<PieceKey, Piece, PieceHasher>,
    pub disks: Disks,
    pub sites: Arc<Sites>,
    pub body_bytes: Arc<BodyBytes>,
    pub sketch: FrequencySketch,
    pub tag_marks: TagMarks,
    evictions: Arc<Evictions>,
    loads: Loads,
    pub background: Handle,
    pub recorder: Recorder,
}

impl Tiers {
    /// An empty memory tier above `disks`.
    pub(super) fn new(
        settings: &Settings,
        disks: Disks,
        sites: Arc<Sites>,
        body_bytes: Arc<BodyBytes>,
        (background, recorder): (Handle, Recorder),
    ) -> Self {
        let copies = MemoryShare::new(Some(settings.memory_bytes / COPIES_SHARE));
        let evictions = Evictions::new(
            disks.clone(),
            sites.clone(),
            copies,
            body_bytes.clone(),
            recorder.clone(),
        );
        let evictions = Arc::new(evictions);
        Self {
            settings: settings.clone(),
            memory: memory(settings, evictions.clone()),
            disks,
            sites,
            body_bytes,
            sketch: FrequencySketch::new(),
            tag_marks: TagMarks::default(),
            evictions,
            loads: Loads::default(),
            background,
            recorder,
        }
    }

    /// Stores a piece in memory. A load of the same piece in progress does not replace it.
    pub(super) fn put(&self, key: PieceKey, piece: Piece) {
        self.insert(key, piece, |insert| self.loads.supersede(key, insert));
    }

    /// Inserts a piece into memory and counts it, unless `if_current` does not call its argument because
    /// a newer piece has superseded this one. The forms of responses that were evicted for it leave memory too.
    /// A site above its limit loses its oldest pieces, and so do copies.
    fn insert(&self, key: PieceKey, piece: Piece, if_current: impl FnOnce(&mut dyn FnMut())) {
        let site = piece.site(&self.sites);
        let copies = piece.is_copy().then_some(&self.evictions.copies);
        let mut piece = Some(piece);
        if_current(&mut || {
            let Some(piece) = piece.take() else { return };
            if let Some(site) = &site {
                site.memory.entered(&key, piece.weight());
            }
            if let Some(copies) = copies {
                copies.entered(&key, piece.weight());
            }
            self.body_bytes.entered(&piece);
            if let Piece::Record(Record::Response(head)) = &piece {
                self.tag_marks.mark(&head.response.tags);
            }
            self.memory.insert(key, piece);
        });
        if let Some(site) = site {
            while let Some(surplus) = site.memory.surplus(|key| self.memory.contains(key)) {
                self.evict(&surplus);
            }
        }
        if let Some(copies) = copies {
            self.evict_copies(copies);
        }
        for form in self.evictions.take_orphans() {
            self.evict(&form);
        }
    }

    /// Evicts the oldest copies while they use more than their share. A response of the origin that has taken the
    /// place of a copy stays.
    fn evict_copies(&self, copies: &MemoryShare) {
        let is_copy = |key: &PieceKey| self.memory.get(key).is_some_and(|it| it.value().is_copy());
        while let Some(surplus) = copies.surplus(|key| self.memory.contains(key)) {
            if is_copy(&surplus) {
                self.evict(&surplus);
                self.recorder.count(Metric::PeerCopiesDisplaced);
            }
        }
    }

    /// Removes a piece from memory as memory itself does when it needs space.
    fn evict(&self, key: &PieceKey) {
        if let Some(entry) = self.memory.remove(key) {
            self.evictions.evicted(key, entry.value());
        }
    }

    /// Removes a piece from memory and from the disk's index.
    pub(super) fn forget(&self, key: PieceKey) {
        self.loads.supersede(key, || drop(self.memory.remove(&key)));
        self.disks.forget(&key);
    }

    /// Whether memory or a disk's index has the piece.
    pub(super) fn contains(&self, key: &PieceKey) -> bool {
        self.memory.contains(key) || self.disks.may_contain(key)
    }

    /// The record in memory.
    pub(super) fn record_in_memory(&self, key: &PieceKey) -> Option<Record> {
        match self.memory.get(key)?.value() {
            Piece::Record(record) => Some(record.clone()),
            Piece::Slice(_) | Piece::Unknown => None,
        }
    }

    /// The slice in memory.
    pub(super) fn slice_in_memory(&self, key: &PieceKey) -> Option<Bytes> {
        match self.memory.get(key)?.value() {
            Piece::Slice(slice) => Some(slice.bytes.clone()),
            Piece::Record(_) | Piece::Unknown => None,
        }
    }

    /// A slice of a stored body, if memory or the page cache has it. Does not wait.
    pub(super) fn slice_now(&self, head: &StoredHead, number: u32) -> Option<Bytes> {
        let mixed = number == 1 && planted::has(Bug::SlicesMixed);
        let in_memory = PieceKey::slice(head.object, if mixed { 0 } else { number });
        if let Some(bytes) = self.slice_in_memory(&in_memory) {
            return Some(bytes);
        }
        let site = self.sites.of(&head.response.site);
        let key = PieceKey::slice(head.object, number);
        self.load_cached(key, Some(site)).ok().flatten()?.into_slice()
    }

    /// Starts to read a slice of a stored body from disk.
    pub(super) fn read_slice(
        self: &Arc<Self>,
        head: &StoredHead,
        number: u32,
    ) -> JoinHandle<Option<Bytes>> {
        let site = self.sites.of(&head.response.site);
        self.spawn_slice_load(PieceKey::slice(head.object, number), Some(site))
    }

    /// As [`Tiers::load`] of a slice, on the calling worker's runtime instead of the background
    /// runtime, which saves thread switches.
    pub(super) fn spawn_slice_load(
        self: &Arc<Self>,
        key: PieceKey,
        site: Option<Arc<Site>>,
    ) -> JoinHandle<Option<Bytes>> {
        let tiers = self.clone();
        tokio::spawn(async move { tiers.load(key, site).await.ok().flatten()?.into_slice() })
    }

    /// Loads a piece into memory if the page cache has it. `None` also if a load is in progress.
    pub(super) fn load_cached(
        &self,
        key: PieceKey,
        site: Option<Arc<Site>>,
    ) -> LoadResult<LoadedPiece> {
        let Some(load) = self.loads.begin(key) else { return Ok(None) };
        let read = self.disks.read_cached(&key);
        let failed = read.is_err();
        let piece = read.ok().flatten().map(|piece| piece.owned_by(site));
        let loaded = piece.as_ref().and_then(LoadedPiece::of);
        match piece.filter(|_| loaded.is_some()) {
            Some(piece) => {
                self.insert(key, piece, |insert| self.loads.end(&load, key, insert));
            }
            None => self.loads.end(&load, key, || ()),
        }
        if failed { Err(ReadFailed) } else { Ok(loaded) }
    }

    /// Loads a piece from disk into memory, once for all callers that wait for it.
    pub(super) async fn load(
        self: Arc<Self>,
        key: PieceKey,
        site: Option<Arc<Site>>,
    ) -> LoadResult<LoadedPiece> {
        let load = self.loads.join(key);
        let read = async || {
            let Some(piece) = self.disks.read(&key).await? else { return Ok(None) };
            let piece = piece.owned_by(site);
            let Some(loaded) = LoadedPiece::of(&piece) else { return Ok(None) };
            self.insert(key, piece, |insert| self.loads.end(&load, key, insert));
            Ok(Some(loaded))
        };
        let loaded = load.get_or_init(read).await.clone();
        self.loads.end(&load, key, || ());
        loaded
    }

    /// Reads a record from disk and leaves it there.
    pub(super) async fn peek_on_disk(&self, key: PieceKey) -> Option<Record> {
        let disks = self.disks.clone();
        let reading = self.background.spawn(async move { disks.read(&key).await });
        match reading.await.ok()?.ok().flatten()? {
            Piece::Record(record) => Some(record),
            Piece::Slice(_) | Piece::Unknown => None,
        }
    }

    /// Stores a slice, and queues it for the disk if it is `wanted` there. Waits for space in the
    /// queue for at most the disk's deadline.
    pub(super) async fn put_slice(
        &self,
        key: PieceKey,
        bytes: Bytes,
        wanted: bool,
        site: &Arc<Site>,
    ) {
        let bytes = self.body_bytes.count(bytes);
        self.put(key, Piece::slice(bytes.clone(), wanted, Some(site.clone())));
        if wanted {
            self.disks.queue(key, Piece::slice(bytes, true, Some(site.clone()))).await;
        }
    }

    /// Queues those of the slices for the disk that memory has and that were not wanted before.
    pub(super) async fn write_slices(&self, object: ObjectId, numbers: Range<u32>) {
        for number in numbers {
            let key = PieceKey::slice(object, number);
            let entry = self.memory.get(&key);
            let piece = match entry.as_ref().map(|entry| entry.value()) {
                Some(piece @ Piece::Slice(slice))
                    if !slice.wanted.swap(true, Ordering::Relaxed) =>
                {
                    piece.share()
                }
                _ => continue,
            };
            drop(entry);
            self.disks.queue(key, piece).await;
        }
    }

    /// Whether a body of this length, as far as it is known, is to be written to disk from the start.
    pub(super) fn wants_on_disk(&self, hash: KeyHash, length: u64) -> bool {
        let settings = &self.settings;
        !settings.directories.is_empty()
            && (settings.admission == Admission::All
                || length > settings.memory_bytes / UNREAD_SHARE
                || self.sketch.estimate(hash) >= FREQUENT)
    }

    /// Queues a head for the disk, with the slices of it that memory has, unless it was queued before.
    #[cold]
    pub(super) fn queue_head(self: &Arc<Self>, head: &Arc<StoredHead>) {
        let states = (disk_state::MEMORY_ONLY, disk_state::QUEUED);
        let (order, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        if self.settings.directories.is_empty()
            || head.disk_state.compare_exchange(states.0, states.1, order, failed).is_err()
        {
            return;
        }
        let key = PieceKey::head(head.hash());
        let record = Record::Response(head.clone());
        // Under the lock no newer record enters memory, which this one must not replace.
        let is_announced = self.loads.locked(|| {
            let newest = self.record_in_memory(&key);
            let is_newest = newest.is_none_or(|newest| newest.is_same(&record));
            if is_newest {
                self.disks.announce(key, Piece::Record(record.clone()));
            }
            is_newest
        });
        if !is_announced {
            return;
        }
        let (tiers, head) = (self.clone(), head.clone());
        self.background.spawn(async move {
            if head.inline.is_none() {
                tiers.write_slices(head.object, head.slices(0..u64::MAX)).await;
            }
            let piece = Piece::Record(record);
            let written = tiers.disks.write(key, piece).await;
            // Otherwise it stays QUEUED: tried again when memory evicts it, not with every hit.
            if written {
                head.disk_state.store(disk_state::WRITTEN, Ordering::Release);
            }
        });
    }

    /// Empties memory into the disks, and releases them.
    pub(super) async fn close(&self) {
        for (key, piece) in self.evictions.take_all(&self.memory) {
            self.disks.queue(key, piece).await;
        }
        self.disks.close().await;
    }
}

fn memory(settings: &Settings, evictions: Arc<Evictions>) -> Cache<PieceKey, Piece, PieceHasher> {
    let bytes = usize::try_from(settings.memory_bytes).unwrap_or(usize::MAX);
    // A shard must hold a good many slices, so that one object does not empty it.
    let shards = (bytes / (64 * settings.slice_bytes)).clamp(1, SHARDS_MAX);
    CacheBuilder::new(bytes)
        .with_name("memory")
        .with_shards(shards)
        .with_eviction_config(S3FifoConfig::default())
        .with_hash_builder(PieceHasher)
        .with_weighter(|_: &PieceKey, piece: &Piece| piece.weight())
        .with_event_listener(evictions)
        .build()
}

/// Keeps the memory tier at `memory_bytes` less the bytes that only readers reference, for as long as the
/// store exists.
pub(super) async fn resize_memory(tiers: Weak<Tiers>) {
    let mut ticks = tokio::time::interval(RESIZE_EVERY);
    let mut last = None;
    loop {
        ticks.tick().await;
        let Some(tiers) = tiers.upgrade() else { return };
        let all = tiers.settings.memory_bytes;
        let bytes = all.saturating_sub(tiers.body_bytes.outside_tier()).max(all / TIER_LEAST);
        // Each change locks every shard.
        if bytes.abs_diff(last.unwrap_or(all)) <= all / 64 {
            continue;
        }
        last = Some(bytes);
        let memory = tiers.memory.clone();
        drop(tiers);
        let resizing = tokio::task::spawn_blocking(move || memory.resize(bytes as usize));
        if let Ok(Err(error)) = resizing.await {
            tracing::warn!(%error, bytes, "cannot resize the memory tier");
        }
    }
}

/// Updates the sites' usage of the disks for as long as the store exists.
pub(super) async fn count_sites(tiers: Weak<Tiers>) {
    let mut ticks = tokio::time::interval(COUNT_EVERY);
    for number in 1_u32.. {
        ticks.tick().await;
        let Some(tiers) = tiers.upgrade() else { return };
        tiers.disks.count_sites(number.is_multiple_of(SAVE_EVERY)).await;
    }
}

/// A body longer than 1/`UNREAD_SHARE` of memory is written to disk while it arrives: S3-FIFO keeps
/// pieces that were read at most once in a tenth of memory, where slow readers would find the slices of
/// a longer body evicted.
const UNREAD_SHARE: u64 = 32;
/// Copies use at most 1/`COPIES_SHARE` of memory: the very hot responses fit, and if all keys are requested about as
/// often, the nodes of a region do not fill their memory with the same responses.
const COPIES_SHARE: u64 = 16;
/// The estimated number of recent requests from which a key counts as frequent.
const FREQUENT: u8 = 2;
/// How often the disks are asked for the sites' usage.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// The usage is saved every `SAVE_EVERY`-th time.
const SAVE_EVERY: u32 = 6;
const RESIZE_EVERY: Duration = Duration::from_secs(1);
/// The tier keeps at least 1/`TIER_LEAST` of memory, whatever readers reference.
const TIER_LEAST: u64 = 4;
/// Maximum number of locks of the memory tier.
const SHARDS_MAX: usize = 64;
