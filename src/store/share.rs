//! A part of the memory tier that pieces of one kind may use: those of a site, or copies. The oldest of them leave memory when it is
//! full.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::piece_key::PieceKey;

/// The pieces in memory that count towards a limit.
pub(super) struct MemoryShare {
    pub used: Usage,
    /// `None`: no limit.
    pub bytes_max: Option<u64>,
    /// The keys of its pieces in memory, oldest first, if it has a limit. Some may have left.
    oldest: Mutex<VecDeque<PieceKey>>,
}

impl MemoryShare {
    pub(super) fn new(bytes_max: Option<u64>) -> Self {
        Self { used: Usage::default(), bytes_max, oldest: Mutex::default() }
    }

    /// A piece of this weight in bytes enters memory.
    pub(super) fn entered(&self, key: &PieceKey, weight: usize) {
        self.used.add(weight as u64, key);
        if self.bytes_max.is_some() {
            self.oldest().push_back(*key);
        }
    }

    /// A piece of this weight in bytes leaves memory.
    pub(super) fn left(&self, key: &PieceKey, weight: usize) {
        self.used.take(weight as u64, key);
    }

    /// The next piece that must leave memory; never the newest.
    pub(super) fn surplus(&self, is_there: impl Fn(&PieceKey) -> bool) -> Option<PieceKey> {
        let max = self.bytes_max?;
        let mut oldest = self.oldest();
        if self.used.bytes() > max && oldest.len() > 1 {
            return oldest.pop_front();
        }
        // Drop the keys of pieces that have left already.
        let pieces_max = max as usize / PIECE_BYTES_LEAST;
        if oldest.len() > QUEUE_LEAST.max(pieces_max) {
            oldest.retain(|key| is_there(key));
        }
        None
    }

    fn oldest(&self) -> MutexGuard<'_, VecDeque<PieceKey>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes and stored responses.
#[derive(Default)]
pub(super) struct Usage {
    bytes: AtomicU64,
    objects: AtomicU64,
}

impl Usage {
    /// Adds a piece of this size in bytes.
    pub(super) fn add(&self, bytes: u64, key: &PieceKey) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.objects.fetch_add(u64::from(key.is_head()), Ordering::Relaxed);
    }

    fn take(&self, bytes: u64, key: &PieceKey) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.objects.fetch_sub(u64::from(key.is_head()), Ordering::Relaxed);
    }

    pub(super) fn set(&self, bytes: u64, objects: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.objects.store(objects, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }
}

/// The minimum weight of a piece in memory.
const PIECE_BYTES_LEAST: usize = 512;
const QUEUE_LEAST: usize = 1024;
