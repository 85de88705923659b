//! Pieces on their way to a directory: the newest one under each key, from when it is announced until it is in the index.
//! Lookups find them here, because memory may have evicted them.
//!
//! ```text
//! piece ─▶ announced: the index forgets an older one ─▶ queue ─▶ written, while it is the newest here ─▶ index
//!                                                         └ a newer one was announced, or it was forgotten: not written
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::piece::Piece;
use super::super::piece_key::{PieceHasher, PieceKey};

/// The pieces. They occupy no memory of their own: each is also in the queue, or waits for space in it.
#[derive(Clone, Default)]
pub(super) struct Pending(Arc<Mutex<HashMap<PieceKey, Piece, PieceHasher>>>);

impl Pending {
    /// Adds a piece. It takes the place of an older one.
    pub(super) fn add(&self, key: PieceKey, piece: Piece) {
        self.pieces().insert(key, piece);
    }

    pub(super) fn contains(&self, key: &PieceKey) -> bool {
        self.pieces().contains_key(key)
    }

    pub(super) fn get(&self, key: &PieceKey) -> Option<Piece> {
        self.pieces().get(key).map(Piece::share)
    }

    /// Whether this very piece is the newest under its key: none has been added since, and it was not removed.
    pub(super) fn is_newest(&self, key: &PieceKey, piece: &Piece) -> bool {
        self.pieces().get(key).is_some_and(|newest| newest.is_same(piece))
    }

    pub(super) fn remove(&self, key: &PieceKey) {
        self.pieces().remove(key);
    }

    /// Removes this very piece. Returns whether it was the newest under its key.
    pub(super) fn remove_newest(&self, key: &PieceKey, piece: &Piece) -> bool {
        let mut pieces = self.pieces();
        let is_newest = pieces.get(key).is_some_and(|newest| newest.is_same(piece));
        if is_newest {
            pieces.remove(key);
        }
        is_newest
    }

    fn pieces(&self) -> MutexGuard<'_, HashMap<PieceKey, Piece, PieceHasher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
