//! Memory and disk as one cache. The only user of foyer.
//!
//! The store keeps three kinds of pieces, each under a key of its own: head records (stored responses
//! without their bodies), variant lists, and slices of bodies. A memory tier lies above any number of
//! directories. The store gives no guarantee that a piece is still
//! there, nor that a stored response may be used: the purge table ([`Store::purge_verdict`]) and the
//! rules in cache/ (RFC 9111) decide that. A failure of a disk is a miss, with a metric.
//!
//! ```text
//! in_memory() ─ find() ──▶ Record ─ purge_verdict() ─ body()           the hit
//! purges().sequence() … writer() ─ push()* ─ finish()                  the fill
//! ```

mod admission; // which keys are frequent enough for the disk
mod blocks; // the data file of a directory
mod body_bytes; // the bytes that slow readers keep in memory
mod census; // estimates each site's use of a disk from a sample
mod disk; // one directory
mod disks; // all directories
mod encoding; // pieces on disk
mod evictions; // pieces that leave memory
mod form_marks; // what a stored response remembers of its forms
mod forms; // coded and decoded forms of stored responses
mod layout; // the files of a directory
mod linked_forms; // forms that are used without their sources
mod loads; // reads from disk in progress
mod newest_objects; // detects parts of an outdated object
mod next_form; // the forms that hits find without a lookup
mod open; // locks, tasks and gauges of a store
mod partial; // objects that are stored in parts
mod piece; // the values of the tiers
mod piece_key; // the keys of the tiers
mod read; // stored bodies
mod record; // stored responses and variant lists
mod settings;
mod share;
mod sites; // usage and limits of each site
mod space; // checks that the disk cache fits its file systems
mod stat;
mod tag_marks; // which tags stored responses have had
mod tiers; // memory above the disks
mod write; // writes complete objects

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

pub(crate) use self::forms::StoredForm;
pub(crate) use self::loads::ReadFailed;
pub(crate) use self::open::OpenError;
pub(crate) use self::read::StoredBody;
pub(crate) use self::record::{ObjectId, Record, StoredHead};
pub(crate) use self::settings::{Admission, Directory, DiskReserve, Settings, SiteShare};
pub(crate) use self::space::{bytes_text, memory_bytes, misfits};
pub(crate) use self::stat::{DirectoryStat, Service, Stat};
pub(crate) use self::write::ObjectWriter;

use self::form_marks::FormMarks;
use self::newest_objects::NewestObjects;
use self::next_form::NextForm;
use self::piece::Piece;
use self::piece_key::{ObjectIds, PieceKey};
use self::record::disk_state;
use self::tiers::Tiers;
use crate::cache::{KeyHash, PurgeKind, StoredResponse, VaryList};
use crate::planted::{self, Bug};
use crate::purge::{Checkpoint, Purges};

/// The store of a node. Clones share it; any thread may use it.
#[derive(Clone)]
pub(crate) struct Store {
    tiers: Arc<Tiers>,
    objects: Arc<Objects>,
}

/// The source of a variant that was added to a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewVariant {
    /// One that this node has fetched from the origin.
    Own,
    /// A copy of another node's response.
    Copy,
}

/// The facts about stored objects, beside their pieces.
struct Objects {
    purges: Arc<Purges>,
    ids: ObjectIds,
    /// The newest object of each partly stored response. Locked while its parts change.
    newest: Mutex<NewestObjects>,
    /// Number of directories whose index is not read yet.
    recovering: watch::Sender<usize>,
}

impl Store {
    /// The record in memory under a key's or a variant's hash. Used by every hit: does not wait or
    /// allocate. The caller must compare the key's
    /// text, because two keys can share a hash.
    pub(crate) fn in_memory(&self, hash: KeyHash) -> Option<Record> {
        let entry = self.tiers.memory.get(&PieceKey::head(hash))?;
        let Piece::Record(record) = entry.value() else { return None };
        if let Record::Response(head) = record
            && head.disk_state.load(Ordering::Relaxed) == disk_state::MEMORY_ONLY
        {
            self.tiers.queue_head(head);
        }
        Some(record.clone())
    }

    /// The record in memory, or else on disk, which moves it into memory. A record that cannot be
    /// read is a miss.
    pub(crate) async fn find(&self, hash: KeyHash) -> Option<Record> {
        self.look_up(hash).await.ok().flatten()
    }

    /// As [`Store::find`], but distinguishes a record that cannot be read from one that is not there.
    ///
    /// # Errors
    /// The disk that has the record failed to read it.
    pub(crate) async fn look_up(&self, hash: KeyHash) -> Result<Option<Record>, ReadFailed> {
        if let Some(record) = self.in_memory(hash) {
            return Ok(Some(record));
        }
        // Counts the request for the disk's admission policy.
        self.tiers.sketch.add(hash);
        let key = PieceKey::head(hash);
        if !self.tiers.disks.may_contain(&key) {
            return Ok(None);
        }
        if let Some(loaded) = self.tiers.load_cached(key, None)?
            && let Some(record) = loaded.into_record()
        {
            return Ok(Some(record));
        }
        let loading = tokio::spawn(self.tiers.clone().load(key, None));
        let loaded = loading.await.map_err(|_| ReadFailed)??;
        Ok(loaded.and_then(loads::LoadedPiece::into_record))
    }

    /// As [`Store::find`], without side effects: a record on disk is not moved into memory.
    pub(crate) async fn peek(&self, hash: KeyHash) -> Option<Record> {
        let key = PieceKey::head(hash);
        match self.tiers.record_in_memory(&key) {
            Some(record) => Some(record),
            None => self.tiers.peek_on_disk(key).await,
        }
    }

    /// Whether a purge covers this stored response, and how. `None`: no purge forbids its use. One
    /// load and compare, unless there was a purge since the last call.
    #[inline]
    pub(crate) fn purge_verdict(&self, head: &StoredHead) -> Option<PurgeKind> {
        if planted::has(Bug::PurgesIgnored) {
            return None;
        }
        self.objects.purges.verdict(&head.response, &head.checkpoint)
    }

    /// Whether a response with a tag of this hash was in memory since the start. It may be true of another tag, too.
    pub(crate) fn has_seen_tag(&self, hash: u64) -> bool {
        self.tiers.tag_marks.has(hash)
    }

    /// Whether neither memory nor a disk's index has a record under this hash.
    pub(crate) fn is_absent(&self, hash: KeyHash) -> bool {
        !self.tiers.contains(&PieceKey::head(hash))
    }

    /// The purge log whose positions the stored responses record.
    pub(crate) fn purges(&self) -> &Arc<Purges> {
        &self.objects.purges
    }

    /// Begins to store a response and its body, under its key's hash or, if it varies, its variant's.
    pub(crate) fn writer(&self, response: StoredResponse) -> ObjectWriter {
        let object = self.next_object(&response);
        ObjectWriter::new(self.clone(), response, object)
    }

    /// As [`Store::writer`], for a copy of another node's response: it stays in memory, and so do its forms.
    pub(crate) fn copy_writer(&self, response: StoredResponse) -> ObjectWriter {
        let object = self.objects.ids.next_copy(response.hash());
        ObjectWriter::new(self.clone(), response, object)
    }

    /// Whether about so many recent requests for the key found nothing in memory.
    pub(crate) fn is_requested_often(&self, hash: KeyHash, requests: u8) -> bool {
        self.tiers.sketch.estimate(hash) >= requests
    }

    /// Replaces the stored response of a body: after a 304 (RFC 9111 §4.3.4), with its fields,
    /// freshness and `stored_at_sequence`. Its response time changes, by which its forms tell that their
    /// fields are outdated.
    pub(crate) fn replace(
        &self,
        head: &Arc<StoredHead>,
        response: StoredResponse,
    ) -> Arc<StoredHead> {
        self.put_head(self.updated_head(head, response), head.is_wanted())
    }

    /// Makes a stored response stale: upstream must confirm it for each request.
    pub(crate) fn expire(&self, head: &Arc<StoredHead>) {
        let freshness = head.response.freshness.expired();
        if head.response.freshness != freshness {
            self.replace(head, StoredResponse { freshness, ..head.response.clone() });
        }
    }

    /// The record that [`Store::replace`] would store, for a single request.
    pub(crate) fn updated_head(
        &self,
        head: &StoredHead,
        mut response: StoredResponse,
    ) -> StoredHead {
        response.complete_length = Some(head.complete_length());
        let time = &mut response.freshness.response_time;
        if response.form.is_none() && *time == head.response.freshness.response_time {
            *time = time.next();
        }
        let inline = head.inline.clone();
        let next = self.new_head(response, head.object, inline);
        StoredHead { slice_bytes: head.slice_bytes, ..next }
    }

    /// Stores the variant list of a key whose responses vary. `newest`: the variant that was added.
    pub(crate) fn put_variants(&self, hash: KeyHash, list: VaryList, newest: NewVariant) {
        let key = PieceKey::head(hash);
        let record = Record::Variants(Arc::new(list));
        // An older list on disk must be replaced too, unless it only lacks a copy, which the disk has not either.
        if newest == NewVariant::Own
            && (self.tiers.disks.has_older(&key) || self.tiers.wants_on_disk(hash, 0))
        {
            self.tiers.disks.offer(key, Piece::Record(record.clone()));
        }
        self.tiers.put(key, Piece::Record(record));
    }

    /// Removes a record to make space. Not a purge: it may reappear from disk after a restart.
    pub(crate) fn forget(&self, hash: KeyHash) {
        self.tiers.forget(PieceKey::head(hash));
    }

    /// A range of a stored body, limited to the body's length.
    pub(crate) fn body(&self, head: &Arc<StoredHead>, range: Range<u64>) -> StoredBody {
        StoredBody::new(self.tiers.clone(), head.clone(), range)
    }

    /// One slice, from memory or disk. `None`: it must be fetched again, see [`Store::put_slice`].
    pub(crate) async fn slice(&self, head: &StoredHead, number: u32) -> Option<Bytes> {
        match self.tiers.slice_now(head, number) {
            Some(bytes) => Some(bytes),
            None => self.tiers.read_slice(head, number).await.ok().flatten(),
        }
    }

    /// One slice of an object that is still being written.
    pub(crate) async fn slice_of(&self, object: ObjectId, number: u32) -> Option<Bytes> {
        let key = PieceKey::slice(object, number);
        match self.tiers.slice_in_memory(&key) {
            Some(bytes) => Some(bytes),
            None => self.tiers.spawn_slice_load(key, None).await.ok().flatten(),
        }
    }

    /// The size of a slice in bytes. A body of at most one slice is stored in its head.
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.tiers.settings.slice_bytes as u64
    }

    /// The current statistics.
    pub(crate) fn stat(&self) -> Stat {
        let Tiers { memory, settings, disks, sites, body_bytes, .. } = &*self.tiers;
        Stat {
            memory_bytes: memory.usage() as u64,
            memory_bytes_max: settings.memory_bytes,
            memory_pieces: memory.entries() as u64,
            held_bytes: body_bytes.outside_tier(),
            purge_entries: self.objects.purges.entries() as u64,
            outbox_messages: self.objects.purges.outbox_len() as u64,
            directories: disks.stat(),
            sites: sites.stat(),
        }
    }

    /// The state of each directory, in the order of the settings.
    pub(crate) fn directories(&self) -> Vec<DirectoryStat> {
        self.tiers.disks.stat()
    }

    /// Writes the pieces in memory to disk and releases the directories. Pieces stored afterwards
    /// stay in memory.
    pub(crate) async fn close(&self) {
        self.recovered().await;
        self.tiers.close().await;
    }

    /// The id of a new object: that of a copy for the form of a copy.
    fn next_object(&self, response: &StoredResponse) -> ObjectId {
        let ids = &self.objects.ids;
        match &response.form {
            Some(form) if ids.is_copy(form.source) => ids.next_copy(response.hash()),
            _ => ids.next(response.hash()),
        }
    }

    fn newest(&self) -> MutexGuard<'_, NewestObjects> {
        self.objects.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_head(
        &self,
        mut response: StoredResponse,
        object: ObjectId,
        inline: Option<Bytes>,
    ) -> StoredHead {
        response.name_length_of_form();
        let disk_state = match self.objects.ids.is_copy(object.0) {
            true => disk_state::COPY,
            false => disk_state::MEMORY_ONLY,
        };
        let form_marks = FormMarks::of(&response);
        StoredHead {
            response,
            object,
            inline,
            slice_bytes: self.tiers.settings.slice_bytes as u32,
            checkpoint: Checkpoint::of(self.objects.purges.lineage()),
            disk_state: AtomicU8::new(disk_state),
            form_marks,
            next_form: NextForm::default(),
            coding_note: AtomicU8::new(0),
        }
    }

    /// Makes a head visible. `wanted`: it is to be written to disk.
    fn put_head(&self, head: impl Into<Arc<StoredHead>>, wanted: bool) -> Arc<StoredHead> {
        let head = head.into();
        let key = PieceKey::head(head.hash());
        self.tiers.put(key, Piece::Record(Record::Response(head.clone())));
        // An older head on disk must be replaced too.
        let has_older = self.tiers.disks.has_older(&key);
        if head.is_copy() {
            if has_older {
                self.tiers.disks.forget(&key);
            }
        } else if wanted || has_older {
            self.tiers.queue_head(&head);
        }
        head
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({} B in memory)", self.tiers.memory.usage())
    }
}

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
