//! Loads from disk under way: one for each piece, whoever asks.
//!
//! A load ends by putting the piece into memory, unless something newer was put there, or the
//! piece was forgotten, while it was read (or an old value, read
//! slowly, would replace a new one).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::record::{Piece, PieceKey, Record};

/// What a load found.
#[derive(Clone)]
pub(super) enum Found {
    Record(Record),
    Slice(Bytes),
}

impl Found {
    pub(super) fn of(piece: &Piece) -> Option<Self> {
        match piece {
            Piece::Record(record) => Some(Self::Record(record.clone())),
            Piece::Slice(slice) => Some(Self::Slice(slice.bytes.clone())),
            Piece::Unknown => None,
        }
    }
}

/// What a load came to; `None`: there is no such piece.
pub(super) type Loaded<T> = Result<Option<T>, ReadFailed>;

/// One load, to be awaited by many.
pub(super) type Load = Arc<OnceCell<Loaded<Found>>>;

/// A piece that a disk should have could not be read in time, or is damaged. It is gone, so that it
/// reads as a miss from then on; the metrics have counted it, and the log tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadFailed;

/// The loads under way. As many as there are requests that wait for a disk.
#[derive(Default)]
pub(super) struct Loads {
    loads: Mutex<HashMap<PieceKey, Load>>,
}

impl Loads {
    /// The load of this piece, begun by whoever polls it first.
    pub(super) fn join(&self, key: PieceKey) -> Load {
        self.lock().entry(key).or_default().clone()
    }

    /// Begins a load of this piece, if there is none.
    pub(super) fn begin(&self, key: PieceKey) -> Option<Load> {
        match self.lock().entry(key) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => Some(place.insert(Load::default()).clone()),
        }
    }

    /// Ends a load. `with` happens if nothing came in between, and before anything else can.
    pub(super) fn end(&self, load: &Load, key: PieceKey, with: impl FnOnce()) {
        let mut loads = self.lock();
        if loads.get(&key).is_some_and(|current| Arc::ptr_eq(current, load)) {
            with();
            loads.remove(&key);
        }
    }

    /// Something newer takes the piece's place: a load under way ends without effect.
    pub(super) fn supersede(&self, key: PieceKey, with: impl FnOnce()) {
        let mut loads = self.lock();
        loads.remove(&key);
        with();
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
