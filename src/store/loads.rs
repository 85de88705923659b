//! Loads from disk in progress: one for each piece, shared by all requests for it.
//!
//! A load ends by inserting the piece into memory, unless a newer piece was stored or the piece was
//! forgotten during the read: an old value that was read slowly must not replace a newer one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::piece::Piece;
use super::piece_key::PieceKey;
use super::record::Record;

/// The content of a loaded piece.
#[derive(Clone)]
pub(super) enum LoadedPiece {
    Record(Record),
    Slice(Bytes),
}

impl LoadedPiece {
    pub(super) fn of(piece: &Piece) -> Option<Self> {
        match piece {
            Piece::Record(record) => Some(Self::Record(record.clone())),
            Piece::Slice(slice) => Some(Self::Slice(slice.bytes.clone())),
            Piece::Unknown => None,
        }
    }

    pub(super) fn into_slice(self) -> Option<Bytes> {
        match self {
            Self::Slice(bytes) => Some(bytes),
            Self::Record(_) => None,
        }
    }

    pub(super) fn into_record(self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(record),
            Self::Slice(_) => None,
        }
    }
}

/// The result of a load. `None`: the disk has no such piece.
pub(super) type LoadResult<T> = Result<Option<T>, ReadFailed>;

/// One load, awaited by any number of requests.
pub(super) type Load = Arc<OnceCell<LoadResult<LoadedPiece>>>;

/// A piece that is in a disk's index could not be read in time, or is damaged. It was removed from
/// the index, so that later lookups miss; it is counted and logged already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadFailed;

/// The loads in progress. At most one for each request that waits for a disk.
#[derive(Default)]
pub(super) struct Loads {
    loads: Mutex<HashMap<PieceKey, Load>>,
}

impl Loads {
    /// The load of this piece, which the first caller that polls it performs.
    pub(super) fn join(&self, key: PieceKey) -> Load {
        self.lock().entry(key).or_default().clone()
    }

    /// Begins a load of this piece. `None` if one is in progress.
    pub(super) fn begin(&self, key: PieceKey) -> Option<Load> {
        match self.lock().entry(key) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => Some(place.insert(Load::default()).clone()),
        }
    }

    /// Ends a load. Calls `with`, under the lock, unless the load was superseded.
    pub(super) fn end(&self, load: &Load, key: PieceKey, with: impl FnOnce()) {
        let mut loads = self.lock();
        if loads.get(&key).is_some_and(|current| Arc::ptr_eq(current, load)) {
            with();
            loads.remove(&key);
        }
    }

    /// Calls `with`, which stores or removes the piece, under the lock. A load in progress then ends
    /// without effect.
    pub(super) fn supersede(&self, key: PieceKey, with: impl FnOnce()) {
        let mut loads = self.lock();
        loads.remove(&key);
        with();
    }

    /// Calls `with` under the lock: meanwhile no piece is stored or loaded.
    pub(super) fn locked<T>(&self, with: impl FnOnce() -> T) -> T {
        let _loads = self.lock();
        with()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PieceKey, Load>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_was_superseded_ends_without_effect() {
        let loads = Loads::default();
        let key = PieceKey::new(1, 0);
        let mut memory = Vec::new();
        let load = loads.join(key);
        loads.end(&load, key, || memory.push("read"));
        let load = loads.join(key);
        loads.supersede(key, || memory.push("newer"));
        loads.end(&load, key, || memory.push("older"));
        assert_eq!(memory, ["read", "newer"]);
        assert!(Arc::ptr_eq(&loads.join(key), &loads.join(key)));
    }
}
