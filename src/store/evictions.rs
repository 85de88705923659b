//! Handles pieces that leave the memory tier: wanted ones that are not on disk are queued again.
//!
//! Most wanted pieces were written long before. One is not on disk if the queue was full, or if its
//! block was overwritten since. At a clean stop all pieces leave memory, and all are written. The forms of a
//! response that is evicted are to leave too.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foyer_common::event::{Event, EventListener};
use foyer_memory::Cache;

use super::body_bytes::BodyBytes;
use super::disks::Disks;
use super::piece::Piece;
use super::piece_key::{PieceHasher, PieceKey};
use super::record::{Record, disk_state};
use super::share::MemoryShare;
use super::sites::Sites;
use crate::cache::{Form, VaryList};
use crate::metrics::{Metric, Recorder};

/// The listener on the memory tier.
pub(super) struct Evictions {
    disks: Disks,
    sites: Arc<Sites>,
    /// The part of memory that copies may use.
    pub copies: MemoryShare,
    body_bytes: Arc<BodyBytes>,
    recorder: Recorder,
    /// Collects the pieces while memory is emptied for a stop.
    all: Mutex<Option<Vec<(PieceKey, Piece)>>>,
    /// The forms whose sources have left memory: at most four for each response that memory evicts between two
    /// insertions.
    orphans: Mutex<Vec<PieceKey>>,
}

impl Evictions {
    pub(super) fn new(
        disks: Disks,
        sites: Arc<Sites>,
        copies: MemoryShare,
        body_bytes: Arc<BodyBytes>,
        recorder: Recorder,
    ) -> Self {
        Self {
            disks,
            sites,
            copies,
            body_bytes,
            recorder,
            all: Mutex::default(),
            orphans: Mutex::default(),
        }
    }

    /// Empties memory and returns the pieces that are not on disk, heads last.
    pub(super) fn take_all(
        &self,
        memory: &Cache<PieceKey, Piece, PieceHasher>,
    ) -> Vec<(PieceKey, Piece)> {
        *self.lock() = Some(Vec::new());
        memory.evict_all();
        let mut all = self.lock().take().unwrap_or_default();
        let copies: HashSet<u128> =
            all.iter().filter_map(|(_, piece)| copied_object(piece)).collect();
        all.retain(|(key, piece)| {
            let is_copy = copied_object(piece).is_some() || copies.contains(&key.id());
            !is_copy && (!is_on_disk(piece) || !self.disks.may_contain(key))
        });
        let written: HashSet<PieceKey> = all.iter().map(|(key, _)| *key).collect();
        all.retain(|(_, piece)| match piece {
            Piece::Record(Record::Variants(list)) => {
                self.has_variant_on_disk(list, |key| written.contains(key))
            }
            _ => true,
        });
        all.sort_by_key(|(key, _)| key.number == 0);
        all
    }

    /// Whether the disk has one of the variants, or will have one: it is of no use there for copies alone.
    fn has_variant_on_disk(&self, list: &VaryList, will_have: impl Fn(&PieceKey) -> bool) -> bool {
        let mut keys = list.hashes().map(PieceKey::head);
        keys.any(|key| will_have(&key) || self.disks.may_contain(&key))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<(PieceKey, Piece)>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this version of the piece may be on disk: a piece with `false` was never written.
fn is_on_disk(piece: &Piece) -> bool {
    match piece {
        Piece::Record(Record::Response(head)) => {
            head.disk_state.load(Ordering::Acquire) == disk_state::WRITTEN
        }
        Piece::Record(Record::Variants(_)) => false,
        Piece::Slice(_) | Piece::Unknown => true,
    }
}

/// The object of a copy.
fn copied_object(piece: &Piece) -> Option<u128> {
    let Piece::Record(Record::Response(head)) = piece else { return None };
    head.is_copy().then_some(head.object.0)
}

impl EventListener for Evictions {
    type Key = PieceKey;
    type Value = Piece;

    fn on_leave(&self, reason: Event, key: &PieceKey, piece: &Piece) {
        if let Some(site) = piece.site(&self.sites) {
            site.memory.left(key, piece.weight());
        }
        if piece.is_copy() {
            self.copies.left(key, piece.weight());
        }
        self.body_bytes.left(piece);
        if reason != Event::Evict {
            return;
        }
        if let Some(all) = &mut *self.lock() {
            all.push((*key, piece.share()));
            return;
        }
        self.evicted(key, piece);
    }
}

impl Evictions {
    /// Remembers the forms of a response that leaves memory: no request finds them now.
    fn note_orphans(&self, piece: &Piece) {
        let Piece::Record(Record::Response(head)) = piece else { return };
        let mut forms = head.form_marks.present().peekable();
        if forms.peek().is_some() {
            let keys = forms.map(|coding| PieceKey::head(Form::hash(head.hash(), coding)));
            self.orphans().extend(keys);
        }
    }

    /// Takes the forms whose sources have left memory since the last call.
    pub(super) fn take_orphans(&self) -> Vec<PieceKey> {
        std::mem::take(&mut *self.orphans())
    }

    fn orphans(&self) -> MutexGuard<'_, Vec<PieceKey>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was to be written to disk.
    fn is_wanted(&self, piece: &Piece) -> bool {
        match piece {
            Piece::Record(Record::Response(head)) => head.is_wanted(),
            Piece::Record(Record::Variants(list)) => self.has_variant_on_disk(list, |_| false),
            Piece::Slice(slice) => slice.wanted.load(Ordering::Relaxed),
            Piece::Unknown => false,
        }
    }

    /// Queues a wanted piece that leaves memory and is not on disk; counts it as forgotten otherwise.
    pub(super) fn evicted(&self, key: &PieceKey, piece: &Piece) {
        self.note_orphans(piece);
        if self.disks.may_contain(key) {
            return;
        }
        if !self.is_wanted(piece) || !self.disks.offer(*key, piece.share()) {
            self.recorder.count(Metric::StoreForgotten);
        }
    }
}
