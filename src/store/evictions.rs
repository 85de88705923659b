//! What happens to pieces that memory evicts: those worth keeping get a last chance to be written to disk.
//!
//! Most that is worth it was written long before. What was wanted and is not in the disk's index
//! (the queue was full, or the disk has since reused its block) is offered once more. At a clean
//! stop everything leaves, and everything goes to disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use foyer::{Cache, Event, EventListener};

use super::body_bytes::BodyBytes;
use super::disk::Disks;
use super::record::{Piece, PieceHasher, PieceKey, Record, place};
use super::sites::Sites;
use crate::metrics::{Metric, Recorder};

/// foyer's listener on the memory tier.
pub(super) struct Evictions {
    disks: Disks,
    sites: Arc<Sites>,
    held: Arc<BodyBytes>,
    recorder: Recorder,
    /// While memory is emptied for a stop: what came out.
    all: Mutex<Option<Vec<(PieceKey, Piece)>>>,
}

impl Evictions {
    pub(super) fn new(
        disks: Disks,
        sites: Arc<Sites>,
        held: Arc<BodyBytes>,
        recorder: Recorder,
    ) -> Self {
        Self { disks, sites, held, recorder, all: Mutex::default() }
    }

    /// Empties memory and returns what the disk does not have of it, heads last.
    pub(super) fn take_all(
        &self,
        memory: &Cache<PieceKey, Piece, PieceHasher>,
    ) -> Vec<(PieceKey, Piece)> {
        *self.lock() = Some(Vec::new());
        memory.evict_all();
        let mut all = self.lock().take().unwrap_or_default();
        all.retain(|(key, piece)| !is_on_disk(piece) || !self.disks.may_contain(key));
        all.sort_by_key(|(key, _)| key.number == 0);
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<(PieceKey, Piece)>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this very piece was written, as far as its marks tell.
fn is_on_disk(piece: &Piece) -> bool {
    match piece {
        Piece::Record(Record::Response(head)) => {
            head.place.load(Ordering::Acquire) == place::WRITTEN
        }
        Piece::Record(Record::Variants(_)) => false,
        Piece::Slice(_) | Piece::Unknown => true,
    }
}

/// Whether it was found worth a disk write.
fn is_wanted(piece: &Piece) -> bool {
    match piece {
        Piece::Record(Record::Response(head)) => {
            head.place.load(Ordering::Acquire) != place::MEMORY
        }
        Piece::Record(Record::Variants(_)) => true,
        Piece::Slice(slice) => slice.wanted.load(Ordering::Relaxed),
        Piece::Unknown => false,
    }
}

impl EventListener for Evictions {
    type Key = PieceKey;
    type Value = Piece;

    fn on_leave(&self, reason: Event, key: &PieceKey, piece: &Piece) {
        self.sites.left(key, piece);
        self.held.left(piece);
        if reason != Event::Evict {
            return;
        }
        if let Some(all) = &mut *self.lock() {
            all.push((*key, piece.share()));
            return;
        }
        self.make_room(key, piece);
    }
}

impl Evictions {
    /// A piece leaves memory for others: its last chance.
    pub(super) fn make_room(&self, key: &PieceKey, piece: &Piece) {
        if self.disks.may_contain(key) {
            return;
        }
        if !is_wanted(piece) || !self.disks.offer(*key, piece.share()) {
            self.recorder.count(Metric::StoreForgotten);
        }
    }
}
