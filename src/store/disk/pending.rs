//! Pieces on their way to a directory: the newest one under each key, from when it is announced until it is in the index.
//! Lookups find them here, because memory may have evicted them.
//!
//! ```text
//! piece ─▶ announced: the index forgets an older one ─▶ queue ─▶ written, while it is the newest here ─▶ index
//!                                                         └ a newer one was announced, or it was forgotten: not written
//! ```
//!
//! The same piece may be announced several times, each time for a job of the queue: memory evicts a record whose write is not finished.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::piece::Piece;
use super::super::piece_key::{PieceHasher, PieceKey};

/// The pieces. They occupy no memory of their own: each is also in the queue, or waits for space in it.
#[derive(Clone, Default)]
pub(super) struct Pending(Arc<Mutex<HashMap<PieceKey, Announced, PieceHasher>>>);

struct Announced {
    piece: Piece,
    /// The jobs of the queue that end with [`Pending::end_job`].
    jobs: u32,
}

impl Pending {
    /// Adds a piece for a job. It takes the place of an older one.
    pub(super) fn add(&self, key: PieceKey, piece: Piece) {
        let mut pieces = self.pieces();
        match pieces.get_mut(&key).filter(|newest| newest.piece.is_same(&piece)) {
            Some(same) => same.jobs += 1,
            None => drop(pieces.insert(key, Announced { piece, jobs: 1 })),
        }
    }

    pub(super) fn contains(&self, key: &PieceKey) -> bool {
        self.pieces().contains_key(key)
    }

    pub(super) fn get(&self, key: &PieceKey) -> Option<Piece> {
        self.pieces().get(key).map(|newest| newest.piece.share())
    }

    /// Whether this very piece is the newest under its key: none has been added since, and it was not removed.
    pub(super) fn is_newest(&self, key: &PieceKey, piece: &Piece) -> bool {
        self.pieces().get(key).is_some_and(|newest| newest.piece.is_same(piece))
    }

    pub(super) fn remove(&self, key: &PieceKey) {
        self.pieces().remove(key);
    }

    /// Ends a job of this very piece, and removes the piece with its last job. Returns whether it was removed: not if it is not the newest
    /// under its key.
    pub(super) fn end_job(&self, key: &PieceKey, piece: &Piece) -> bool {
        let mut pieces = self.pieces();
        let Some(newest) = pieces.get_mut(key).filter(|newest| newest.piece.is_same(piece)) else {
            return false;
        };
        newest.jobs -= 1;
        let is_last = newest.jobs == 0;
        if is_last {
            pieces.remove(key);
        }
        is_last
    }

    fn pieces(&self) -> MutexGuard<'_, HashMap<PieceKey, Announced, PieceHasher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
