//! Memory and disk as one cache. The only user of foyer.
//!
//! Heads (stored responses), variant lists and slices of bodies, each under a key of its own, in a
//! memory tier over any number of directories. foyer holds bytes that *may* exist: whether a
//! stored response may be used is decided by the purge table ([`Store::purge_verdict`])
//! and by the rules in cache/ (RFC 9111). Trouble here reads as a miss, with a metric.
//!
//! ```text
//! in_memory() ─ find() ──▶ Record ─ purge_verdict() ─ body()           the hit
//! purges().sequence() … writer() ─ push()* ─ finish()                  the fill
//! ```

mod admission;
mod blocks;
mod body_bytes;
mod census;
mod disk;
mod encoding;
mod engine;
mod evictions;
mod loads;
mod newest_objects;
mod read;
mod record;
mod settings;
mod sites;
mod space;
mod stat;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use foyer::{Cache, CacheBuilder, S3FifoConfig};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use self::loads::ReadFailed;
pub(crate) use self::read::StoredBody;
pub(crate) use self::record::{Head, ObjectId, Record};
pub(crate) use self::settings::{Admission, Directory, Settings, SiteShare};
pub(crate) use self::space::{DiskReserve, bytes_text, memory_bytes, misfits};
pub(crate) use self::stat::Stat;
pub(crate) use self::write::{ObjectWriter, WriteError};

use self::admission::Sketch;
use self::body_bytes::BodyBytes;
use self::disk::{Disk, Disks};
use self::evictions::Evictions;
use self::loads::{Found, Loaded, Loads};
use self::newest_objects::NewestObjects;
use self::record::{ObjectIds, Piece, PieceHasher, PieceKey, place};
use self::sites::{Site, Sites};
use self::stat::Gauges;
use crate::cache::range::with_part;
use crate::cache::{KeyHash, PurgeKind, StoredResponse, VaryList};
use crate::lock::lock;
use crate::metrics::{Metrics, Recorder};
use crate::planted::{self, Bug};
use crate::purge::{Checkpoint, Purges};

/// The store of a node. Clones share it; any thread may use it.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    memory: Cache<PieceKey, Piece, PieceHasher>,
    disks: Disks,
    sites: Arc<Sites>,
    held: Arc<BodyBytes>,
    purges: Arc<Purges>,
    sketch: Sketch,
    objects: ObjectIds,
    evictions: Arc<Evictions>,
    loads: Loads,
    /// Serialises changes of the parts of partial objects.
    changes: Mutex<NewestObjects>,
    background: Handle,
    recorder: Recorder,
    /// How many directories are still to be read back.
    recovering: watch::Sender<usize>,
}

/// What stands in memory in a head's place.
enum Standing {
    /// The same object's head, perhaps with more parts.
    Same(Arc<Head>),
    Another,
    Nothing,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings make no sense.
    #[error("{}", mistakes.join("; "))]
    Settings {
        /// All that is wrong with them.
        mistakes: Vec<String>,
    },
    /// Another process holds the directory.
    #[error("store directory {} is in use by another skerry process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl Store {
    /// Opens the store: takes the directories' locks. What is on disk is recovered on `background`
    /// while the store is used already, see [`Store::recovered`]. A directory that fails is out of
    /// service until it works again. `purges` decides whether what is stored may be used.
    ///
    /// # Errors
    /// The settings make no sense, or another process uses a directory.
    pub(crate) async fn open(
        settings: &Settings,
        purges: Arc<Purges>,
        metrics: &Arc<Metrics>,
        background: Handle,
    ) -> Result<Self, OpenError> {
        let mistakes = settings.mistakes();
        if !mistakes.is_empty() {
            return Err(OpenError::Settings { mistakes });
        }
        let recorder = metrics.background();
        raise_open_files();
        let mut locks = take_locks(settings)?;
        let sites = Arc::new(Sites::new(settings));
        let held = Arc::new(BodyBytes::default());
        let disks =
            Disks::new(settings, &mut locks, &purges, &sites, &held, &background, &recorder);
        let evictions =
            Evictions::new(disks.clone(), sites.clone(), held.clone(), recorder.clone());
        let evictions = Arc::new(evictions);
        let inner = Inner {
            settings: settings.clone(),
            memory: memory(settings, evictions.clone()),
            disks,
            sites,
            held,
            evictions,
            loads: Loads::default(),
            purges,
            sketch: Sketch::new(),
            objects: ObjectIds::new(),
            changes: Mutex::default(),
            background,
            recorder,
            recovering: watch::Sender::new(settings.directories.len()),
        };
        let inner = Arc::new(inner);
        inner.background.spawn(count_sites(Arc::downgrade(&inner)));
        inner.background.spawn(make_room(Arc::downgrade(&inner)));
        metrics.register_collector(Box::new(Gauges(Arc::downgrade(&inner))));
        let store = Self { inner };
        for disk in store.inner.disks.iter() {
            store.inner.background.spawn(store.clone().recover(disk.clone()));
        }
        Ok(store)
    }

    /// Waits until every directory was read back, or found not to work. Until then what a
    /// directory has is a miss.
    pub(crate) async fn recovered(&self) {
        let mut recovering = self.inner.recovering.subscribe();
        recovering.wait_for(|left| *left == 0).await.expect("the store keeps the sender");
    }

    /// What memory has under a key's or a variant's hash. The hit path: no await, no allocation.
    /// Whether it is of the key looked for is to be asked of its texts.
    pub(crate) fn in_memory(&self, hash: KeyHash) -> Option<Record> {
        let entry = self.inner.memory.get(&PieceKey::head(hash))?;
        let Piece::Record(record) = entry.value() else { return None };
        if let Record::Response(head) = record
            && head.place.load(Ordering::Relaxed) == place::MEMORY
        {
            self.want_on_disk(head);
        }
        Some(record.clone())
    }

    /// What memory has, or else the disk, which it then comes into memory from. What cannot be read
    /// is a miss.
    pub(crate) async fn find(&self, hash: KeyHash) -> Option<Record> {
        self.look_up(hash).await.ok().flatten()
    }

    /// As [`Store::find`], and tells a record that cannot be read from one that is not there.
    ///
    /// # Errors
    /// A disk has failed to give the record.
    pub(crate) async fn look_up(&self, hash: KeyHash) -> Result<Option<Record>, ReadFailed> {
        if let Some(record) = self.in_memory(hash) {
            return Ok(Some(record));
        }
        self.inner.sketch.add(hash);
        let key = PieceKey::head(hash);
        if !self.inner.disks.may_contain(&key) {
            return Ok(None);
        }
        if let Some(Found::Record(record)) = self.load_cached(key, None)? {
            return Ok(Some(record));
        }
        let loading = tokio::spawn(self.clone().load(key, None));
        Ok(match loading.await.map_err(|_| ReadFailed)?? {
            Some(Found::Record(record)) => Some(record),
            Some(Found::Slice(_)) | None => None,
        })
    }

    /// As [`Store::find`], and leaves no trace: what is on disk stays there.
    pub(crate) async fn peek(&self, hash: KeyHash) -> Option<Record> {
        let key = PieceKey::head(hash);
        if let Some(Piece::Record(record)) = self.inner.memory.get(&key).as_deref() {
            return Some(record.clone());
        }
        let disks = self.inner.disks.clone();
        let reading = self.inner.background.spawn(async move { disks.read(&key).await });
        match reading.await.ok()?.ok().flatten()? {
            Piece::Record(record) => Some(record),
            Piece::Slice(_) | Piece::Unknown => None,
        }
    }

    /// Whether a purge covers this stored response, and how. `None`: it may be used, as far as
    /// purges go. One load and compare, unless a purge came since it was last asked.
    #[inline]
    pub(crate) fn purge_verdict(&self, head: &Head) -> Option<PurgeKind> {
        if planted::has(Bug::PurgesIgnored) {
            return None;
        }
        self.inner.purges.verdict(&head.response, &head.checkpoint)
    }

    /// Whether neither memory nor a disk's index has a record under this hash.
    pub(crate) fn is_absent(&self, hash: KeyHash) -> bool {
        let key = PieceKey::head(hash);
        !self.inner.memory.contains(&key) && !self.inner.disks.may_contain(&key)
    }

    /// The purge log that this store's responses are stamped by.
    pub(crate) fn purges(&self) -> &Arc<Purges> {
        &self.inner.purges
    }

    /// Begins to store a response whose body is about to come, under its key's hash or, if it
    /// varies, its variant's.
    pub(crate) fn writer(&self, response: StoredResponse) -> ObjectWriter {
        ObjectWriter::new(self.clone(), response)
    }

    /// Makes an object visible of which no byte is stored yet, for range fills. Its length must
    /// be known and be more than one slice.
    pub(crate) fn partial(&self, response: StoredResponse) -> Result<Arc<Head>, WriteError> {
        let head = self.partial_to_be(response)?;
        self.show(&head);
        Ok(head)
    }

    /// The same, but nobody finds it before [`Store::show`].
    pub(crate) fn partial_to_be(
        &self,
        mut response: StoredResponse,
    ) -> Result<Arc<Head>, WriteError> {
        self.check_for_parts(&response)?;
        response.parts = Some(Box::default());
        let object = self.next_object(response.hash());
        Ok(Arc::new(self.new_head(response, object, None)))
    }

    /// Makes the object of [`Store::partial_to_be`] visible.
    pub(crate) fn show(&self, head: &Arc<Head>) {
        let hash = head.hash();
        self.changes().begin(hash, head.object);
        self.put_head(head.clone(), self.wants_on_disk(hash, 0));
    }

    /// Stores one part of an object for itself: nothing binds it to others (RFC 9111 §3.4), or the
    /// object is too short to be stored by slices. `bytes` are those that the response names.
    pub(crate) fn put_apart(&self, response: StoredResponse, bytes: &Bytes) -> Arc<Head> {
        let hash = response.hash();
        let object = self.next_object(hash);
        // Not the buffer that it was read into.
        let inline = Some(self.inner.held.count(Bytes::copy_from_slice(bytes)));
        let wanted = self.wants_on_disk(hash, bytes.len() as u64);
        self.put_head(self.new_head(response, object, inline), wanted)
    }

    /// The head that an object will have that is being written, for [`Store::put_slice`] and
    /// [`Store::slice`]. Nobody finds it. `None` when it is not stored by parts.
    pub(crate) fn head_to_be(
        &self,
        response: &StoredResponse,
        object: ObjectId,
    ) -> Option<Arc<Head>> {
        self.check_for_parts(response).ok()?;
        Some(Arc::new(self.new_head(response.clone(), object, None)))
    }

    fn check_for_parts(&self, response: &StoredResponse) -> Result<(), WriteError> {
        let length = response.complete_length.unwrap_or_default();
        let limit = self.inner.settings.object_bytes_max;
        if length <= self.inner.settings.slice_bytes as u64 {
            return Err(WriteError::NotByParts { length });
        }
        if length > limit {
            return Err(WriteError::TooLarge { limit });
        }
        Ok(())
    }

    /// Stores slice `number` of an object that was begun by [`Store::partial`], or repairs one.
    /// The bytes must be all that [`Head::slice_range`] says.
    pub(crate) async fn put_slice(
        &self,
        head: &Head,
        number: u32,
        bytes: Bytes,
    ) -> Result<(), WriteError> {
        let range = head.slice_range(number);
        let length = bytes.len() as u64;
        let expected = range.end.saturating_sub(range.start);
        if length != expected {
            return Err(WriteError::SliceLength { number, length, expected });
        }
        let wanted = self.wants_on_disk(head.hash(), 0);
        let bytes = Bytes::copy_from_slice(&bytes);
        let site = self.inner.sites.of(&head.response.site);
        self.put_slice_bytes(head.object, number, bytes, wanted, &site).await;
        Ok(())
    }

    /// Says that `part` of a partial object is stored. The head that it returns is the one to
    /// go on with; it has no `parts` any more when all is there.
    pub(crate) fn add_part(&self, head: &Arc<Head>, part: Range<u64>) -> Arc<Head> {
        let begun = self.changes();
        let current = match self.standing(head) {
            // Memory has let go of the newer one.
            Standing::Nothing if begun.is_superseded(head) => return head.clone(),
            Standing::Same(current) => current,
            Standing::Nothing => head.clone(),
            // A newer object has taken its place: its parts are nobody's any more.
            Standing::Another => return head.clone(),
        };
        let Some(parts) = &current.response.parts else { return current };
        let parts = with_part(parts, part);
        let mut response = current.response.clone();
        let all = 0..current.complete_length();
        response.parts = (*parts != [all]).then(|| parts.into());
        self.replace(&current, response)
    }

    fn changes(&self) -> MutexGuard<'_, NewestObjects> {
        self.inner.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands in memory now where this head was put.
    fn standing(&self, head: &Head) -> Standing {
        let Some(entry) = self.inner.memory.get(&PieceKey::head(head.hash())) else {
            return Standing::Nothing;
        };
        match entry.value() {
            Piece::Record(Record::Response(current)) if current.object == head.object => {
                Standing::Same(current.clone())
            }
            _ => Standing::Another,
        }
    }

    /// Which bytes of `range` are not stored, in whole slices: what a range fill must fetch
    /// before [`Store::body`] can give the range. Looks at memory and at the disk's index, not
    /// at the disk.
    pub(crate) fn missing(&self, head: &Head, range: Range<u64>) -> Vec<Range<u64>> {
        if head.inline.is_some() {
            return Vec::new();
        }
        let slices = head.slices(range);
        let absent = slices.filter(|number| !self.has_slice(head, *number));
        absent.fold(Vec::new(), |mut missing: Vec<Range<u64>>, number| {
            let range = head.slice_range(number);
            match missing.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => missing.push(range),
            }
            missing
        })
    }

    fn has_slice(&self, head: &Head, number: u32) -> bool {
        let key = PieceKey::slice(head.object, number);
        self.inner.memory.contains(&key) || self.inner.disks.may_contain(&key)
    }

    /// Puts another response in the head's place over the same body: after a 304 (RFC 9111
    /// §4.3.4), with its fields, freshness and `stored_at_sequence`.
    pub(crate) fn replace(&self, head: &Arc<Head>, mut response: StoredResponse) -> Arc<Head> {
        response.complete_length = Some(head.complete_length());
        let inline = head.inline.clone();
        let next = self.new_head(response, head.object, inline);
        let wanted = head.place.load(Ordering::Relaxed) != place::MEMORY;
        self.put_head(Head { slice_bytes: head.slice_bytes, ..next }, wanted)
    }

    /// Says that a key's responses vary: its primary record lists the selecting fields.
    pub(crate) fn put_variants(&self, hash: KeyHash, list: VaryList) {
        let key = PieceKey::head(hash);
        let record = Record::Variants(Arc::new(list));
        // An older list on disk must not outlive it.
        let has_older = self.inner.disks.has_older(&key);
        if has_older || self.wants_on_disk(hash, 0) {
            self.inner.disks.offer(key, Piece::Record(record.clone()));
        }
        self.put(key, Piece::Record(record));
    }

    /// Takes a record out to make room. Not a purge: it may come back from disk.
    pub(crate) fn forget(&self, hash: KeyHash) {
        let key = PieceKey::head(hash);
        self.inner.loads.supersede(key, || drop(self.inner.memory.remove(&key)));
        self.inner.disks.forget(&key);
    }

    /// Takes an object out that its origin no longer has; what is still coming of it does not
    /// bring it back. One that has taken its place stays. Not a purge: it may come back from disk.
    pub(crate) fn give_up(&self, head: &Head) {
        let mut begun = self.changes();
        match self.standing(head) {
            Standing::Another => return,
            Standing::Nothing if begun.is_superseded(head) => return,
            Standing::Same(_) | Standing::Nothing => {}
        }
        let hash = head.hash();
        begun.begin(hash, self.next_object(hash));
        self.forget(hash);
    }

    /// Whether another object is known to have come after this one, or it was given up.
    pub(crate) fn is_superseded(&self, head: &Head) -> bool {
        self.changes().is_superseded(head)
    }

    /// A range of a stored body. Bytes beyond its end are left out.
    pub(crate) fn body(&self, head: &Arc<Head>, range: Range<u64>) -> StoredBody {
        StoredBody::new(self.clone(), head.clone(), range)
    }

    /// One slice, wherever it is. `None`: it must be fetched anew, see [`Store::put_slice`].
    pub(crate) async fn slice(&self, head: &Head, number: u32) -> Option<Bytes> {
        match self.slice_now(head, number) {
            Some(bytes) => Some(bytes),
            None => self.read_slice(head, number).await.ok().flatten(),
        }
    }

    /// One slice of an object that is still being written.
    pub(crate) async fn slice_of(&self, object: ObjectId, number: u32) -> Option<Bytes> {
        let key = PieceKey::slice(object, number);
        match self.memory_slice(&key) {
            Some(bytes) => Some(bytes),
            None => self.spawn_slice(key, None).await.ok().flatten(),
        }
    }

    /// What it holds now.
    pub(crate) fn stat(&self) -> Stat {
        let memory = &self.inner.memory;
        Stat {
            memory_bytes: memory.usage() as u64,
            memory_bytes_max: self.inner.settings.memory_bytes,
            memory_pieces: memory.entries() as u64,
            held_bytes: self.inner.held.beyond(),
            purge_entries: self.inner.purges.entries() as u64,
            outbox_messages: self.inner.purges.outbox_len() as u64,
            directories: self.inner.disks.stat(),
            sites: self.inner.sites.stat(),
        }
    }

    /// Writes what is worth it to disk and lets go of the directories. What is put into the
    /// store afterwards stays in memory.
    pub(crate) async fn close(&self) {
        self.recovered().await;
        for (key, piece) in self.inner.evictions.take_all(&self.inner.memory) {
            self.inner.disks.queue(key, piece).await;
        }
        self.inner.disks.close().await;
    }
}

/// What reading, writing and the tiers need of each other.
impl Store {
    fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    fn recorder(&self) -> &Recorder {
        &self.inner.recorder
    }

    /// Reads a directory back, and writes anew what was put meanwhile in place of what it has.
    async fn recover(self, disk: Arc<Disk>) {
        for key in disk.recover().await {
            let entry = self.inner.memory.get(&key);
            match entry.as_ref().map(|entry| entry.value()) {
                Some(Piece::Record(Record::Response(head))) => self.want_on_disk(head),
                Some(piece @ Piece::Record(Record::Variants(_))) => {
                    self.inner.disks.offer(key, piece.share());
                }
                _ => {}
            }
        }
        self.inner.recovering.send_modify(|left| *left -= 1);
    }

    /// The length that bodies are cut to; a shorter one lies in one piece with its head.
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.inner.settings.slice_bytes as u64
    }

    fn site(&self, name: &str) -> Arc<Site> {
        self.inner.sites.of(name)
    }

    fn next_object(&self, hash: KeyHash) -> ObjectId {
        self.inner.objects.next(hash)
    }

    fn new_head(&self, response: StoredResponse, object: ObjectId, inline: Option<Bytes>) -> Head {
        Head {
            response,
            object,
            inline,
            slice_bytes: self.inner.settings.slice_bytes as u32,
            checkpoint: Checkpoint::of(self.inner.purges.lineage()),
            place: AtomicU8::new(place::MEMORY),
        }
    }

    fn put_head(&self, head: impl Into<Arc<Head>>, wanted: bool) -> Arc<Head> {
        let head = head.into();
        let key = PieceKey::head(head.hash());
        self.put(key, Piece::Record(Record::Response(head.clone())));
        // An older one on disk must not outlive it.
        let has_older = self.inner.disks.has_older(&key);
        if wanted || has_older {
            self.want_on_disk(&head);
        }
        head
    }

    async fn put_slice_bytes(
        &self,
        object: ObjectId,
        number: u32,
        bytes: Bytes,
        wanted: bool,
        site: &Arc<Site>,
    ) {
        let key = PieceKey::slice(object, number);
        let bytes = self.inner.held.count(bytes);
        self.put(key, Piece::slice(bytes.clone(), wanted, Some(site.clone())));
        if wanted {
            self.inner.disks.queue(key, Piece::slice(bytes, true, Some(site.clone()))).await;
        }
    }

    /// Writes those slices that memory has.
    async fn write_slices(&self, object: ObjectId, numbers: Range<u32>) {
        for number in numbers {
            let key = PieceKey::slice(object, number);
            let entry = self.inner.memory.get(&key);
            let piece = match entry.as_ref().map(|entry| entry.value()) {
                Some(piece @ Piece::Slice(slice))
                    if !slice.wanted.swap(true, Ordering::Relaxed) =>
                {
                    piece.share()
                }
                _ => continue,
            };
            drop(entry);
            self.inner.disks.queue(key, piece).await;
        }
    }

    /// Whether a body of (so far) this length is worth a disk write from the start.
    fn wants_on_disk(&self, hash: KeyHash, length: u64) -> bool {
        let settings = &self.inner.settings;
        !settings.directories.is_empty()
            && (settings.admission == Admission::All
                || length > settings.memory_bytes / UNREAD_SHARE
                || self.inner.sketch.estimate(hash) >= FREQUENT)
    }

    /// Queues a head for the disk, with the slices that memory has of it.
    #[cold]
    fn want_on_disk(&self, head: &Arc<Head>) {
        let states = (place::MEMORY, place::WANTED);
        let (order, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        if self.inner.settings.directories.is_empty()
            || head.place.compare_exchange(states.0, states.1, order, failed).is_err()
        {
            return;
        }
        let (store, head) = (self.clone(), head.clone());
        self.inner.background.spawn(async move {
            if head.inline.is_none() {
                store.write_slices(head.object, head.slices(0..u64::MAX)).await;
            }
            let key = PieceKey::head(head.hash());
            let piece = Piece::Record(Record::Response(head.clone()));
            let written = store.inner.disks.write(key, piece).await;
            // Otherwise it stays wanted: tried again when it leaves memory, not with every hit.
            if written {
                head.place.store(place::WRITTEN, Ordering::Release);
            }
        });
    }

    fn slice_in_memory(&self, head: &Head, number: u32) -> Option<Bytes> {
        let mixed = number == 1 && planted::has(Bug::SlicesMixed);
        let number = if mixed { 0 } else { number };
        self.memory_slice(&PieceKey::slice(head.object, number))
    }

    /// What needs no disk: the slice is in memory, or the page cache has it.
    fn slice_now(&self, head: &Head, number: u32) -> Option<Bytes> {
        if let Some(bytes) = self.slice_in_memory(head, number) {
            return Some(bytes);
        }
        let site = self.inner.sites.of(&head.response.site);
        match self.load_cached(PieceKey::slice(head.object, number), Some(site)).ok().flatten()? {
            Found::Slice(bytes) => Some(bytes),
            Found::Record(_) => None,
        }
    }

    fn memory_slice(&self, key: &PieceKey) -> Option<Bytes> {
        match self.inner.memory.get(key)?.value() {
            Piece::Slice(slice) => Some(slice.bytes.clone()),
            _ => None,
        }
    }

    fn read_slice(&self, head: &Head, number: u32) -> JoinHandle<Option<Bytes>> {
        let site = self.inner.sites.of(&head.response.site);
        self.spawn_slice(PieceKey::slice(head.object, number), Some(site))
    }

    fn spawn_slice(&self, key: PieceKey, site: Option<Arc<Site>>) -> JoinHandle<Option<Bytes>> {
        let store = self.clone();
        // On the reader's own core: fewer changes of thread.
        tokio::spawn(async move {
            match store.load(key, site).await.ok().flatten()? {
                Found::Slice(bytes) => Some(bytes),
                Found::Record(_) => None,
            }
        })
    }

    /// As [`Store::load`], of what the page cache has, without a change of thread.
    fn load_cached(&self, key: PieceKey, site: Option<Arc<Site>>) -> Loaded<Found> {
        // Otherwise it is on its way already.
        let Some(load) = self.inner.loads.begin(key) else { return Ok(None) };
        let read = self.inner.disks.read_cached(&key);
        let failed = read.is_err();
        let piece = read.ok().flatten().map(|piece| piece.owned_by(site));
        let found = piece.as_ref().and_then(Found::of);
        match piece.filter(|_| found.is_some()) {
            Some(piece) => {
                self.take_in(key, piece, |insert| self.inner.loads.end(&load, key, insert));
            }
            None => self.inner.loads.end(&load, key, || ()),
        }
        if failed { Err(ReadFailed) } else { Ok(found) }
    }

    /// Reads a piece from disk into memory, once for all who ask meanwhile.
    async fn load(self, key: PieceKey, site: Option<Arc<Site>>) -> Loaded<Found> {
        let load = self.inner.loads.join(key);
        let read = async || {
            let Some(piece) = self.inner.disks.read(&key).await? else { return Ok(None) };
            let piece = piece.owned_by(site);
            let Some(found) = Found::of(&piece) else { return Ok(None) };
            self.take_in(key, piece, |insert| self.inner.loads.end(&load, key, insert));
            Ok(Some(found))
        };
        let found = load.get_or_init(read).await.clone();
        self.inner.loads.end(&load, key, || ());
        found
    }

    /// Puts a piece into memory; one that is being read from disk does not replace it.
    fn put(&self, key: PieceKey, piece: Piece) {
        self.take_in(key, piece, |insert| self.inner.loads.supersede(key, insert));
    }

    /// Counts a piece into memory, when `turn` lets it in; a site over its share then loses its
    /// oldest.
    fn take_in(&self, key: PieceKey, piece: Piece, turn: impl FnOnce(&mut dyn FnMut())) {
        let Inner { sites, memory, evictions, held, .. } = &*self.inner;
        let site = sites.of_piece(&piece);
        let mut piece = Some(piece);
        turn(&mut || {
            let Some(piece) = piece.take() else { return };
            if let Some(site) = &site {
                site.entered(&key, &piece);
            }
            held.entered(&piece);
            memory.insert(key, piece);
        });
        let Some(site) = site else { return };
        while let Some(surplus) = site.surplus(|key| memory.contains(key)) {
            if let Some(entry) = memory.remove(&surplus) {
                evictions.make_room(&surplus, entry.value());
            }
        }
    }
}

/// The locks of all directories. One that another node holds is an error; one that cannot be
/// made is tried again later.
fn take_locks(settings: &Settings) -> Result<BTreeMap<PathBuf, File>, OpenError> {
    let mut locks = BTreeMap::new();
    for path in settings.directories.iter().map(|directory| &directory.path) {
        match lock(path, disk::LOCK) {
            Ok(lock) => drop(locks.insert(path.clone(), lock)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(OpenError::InUse { path: path.clone() });
            }
            Err(error) => {
                tracing::error!(directory = %path.display(), %error, "cannot lock a store directory")
            }
        }
    }
    Ok(locks)
}

/// Connections take most of them.
fn raise_open_files() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE)");
    }
}

/// Makes the memory tier smaller by what others have of its bodies, for as long as the store lives.
async fn make_room(store: Weak<Inner>) {
    let mut ticks = tokio::time::interval(MAKE_ROOM_EVERY);
    let mut last = None;
    loop {
        ticks.tick().await;
        let Some(store) = store.upgrade() else { return };
        let all = store.settings.memory_bytes;
        let bytes = all.saturating_sub(store.held.beyond()).max(all / TIER_LEAST);
        // Each change asks every shard.
        if bytes.abs_diff(last.unwrap_or(all)) <= all / 64 {
            continue;
        }
        last = Some(bytes);
        let memory = store.memory.clone();
        drop(store);
        let resizing = tokio::task::spawn_blocking(move || memory.resize(bytes as usize));
        if let Ok(Err(error)) = resizing.await {
            tracing::warn!(%error, bytes, "cannot resize the memory tier");
        }
    }
}

/// Looks what sites have on disk for as long as the store lives.
async fn count_sites(store: Weak<Inner>) {
    let mut ticks = tokio::time::interval(COUNT_EVERY);
    for number in 1_u32.. {
        ticks.tick().await;
        let Some(store) = store.upgrade() else { return };
        store.disks.count_sites(number.is_multiple_of(SAVE_EVERY)).await;
    }
}

fn memory(settings: &Settings, evictions: Arc<Evictions>) -> Cache<PieceKey, Piece, PieceHasher> {
    let bytes = usize::try_from(settings.memory_bytes).unwrap_or(usize::MAX);
    // A shard must hold a good many slices, or one object empties it.
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

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({} B in memory)", self.inner.memory.usage())
    }
}

/// A body longer than this part of memory goes to disk while it comes in: S3-FIFO gives what
/// was not read twice a tenth of memory, and readers that fall behind must find it.
const UNREAD_SHARE: u64 = 32;
/// Requests within the sketch's memory that make a key worth a disk write.
const FREQUENT: u8 = 2;
/// The ceiling of purge sequences is moved every half minute; this is well within.
/// How often the disks are asked what sites have there, and every how many times that is saved.
const COUNT_EVERY: Duration = Duration::from_secs(10);
const SAVE_EVERY: u32 = 6;
const MAKE_ROOM_EVERY: Duration = Duration::from_secs(1);
/// The tier keeps a quarter of memory, whatever readers have.
const TIER_LEAST: u64 = 4;
/// Locks of the memory tier.
const SHARDS_MAX: usize = 64;

#[cfg(test)]
mod tests;
