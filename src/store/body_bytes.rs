//! Counts the body bytes that are referenced, in the memory tier or by readers: a slow reader holds a
//! slice long after the tier has evicted it. The tier shrinks by what only readers hold, so that both
//! together stay within the memory limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::record::{Piece, Record};

/// What is alive, and what of it the tier has.
#[derive(Default)]
pub(super) struct BodyBytes {
    alive: Arc<AtomicU64>,
    in_tier: AtomicU64,
}

/// Bytes that are counted until the last who has them lets go.
struct Counted {
    bytes: Bytes,
    alive: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

impl BodyBytes {
    /// The same bytes, counted from now on. To be asked once for a body or slice.
    pub(super) fn count(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < LEAST {
            return bytes;
        }
        self.alive.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes, alive: self.alive.clone() })
    }

    /// What was read from disk just now, counted.
    pub(super) fn count_piece(&self, mut piece: Piece) -> Piece {
        match &mut piece {
            Piece::Slice(slice) => slice.bytes = self.count(std::mem::take(&mut slice.bytes)),
            Piece::Record(Record::Response(head)) => {
                if let Some(head) = Arc::get_mut(head) {
                    head.inline = head.inline.take().map(|bytes| self.count(bytes));
                }
            }
            Piece::Record(Record::Variants(_)) | Piece::Unknown => {}
        }
        piece
    }

    pub(super) fn entered(&self, piece: &Piece) {
        self.in_tier.fetch_add(counted_bytes(piece), Ordering::Relaxed);
    }

    pub(super) fn left(&self, piece: &Piece) {
        self.in_tier.fetch_sub(counted_bytes(piece), Ordering::Relaxed);
    }

    /// Bytes that somebody has and the tier has not.
    pub(super) fn beyond(&self) -> u64 {
        let in_tier = self.in_tier.load(Ordering::Relaxed);
        self.alive.load(Ordering::Relaxed).saturating_sub(in_tier)
    }
}

fn counted_bytes(piece: &Piece) -> u64 {
    let bytes = match piece {
        Piece::Slice(slice) => slice.bytes.len(),
        Piece::Record(Record::Response(head)) => head.inline.as_ref().map_or(0, Bytes::len),
        Piece::Record(Record::Variants(_)) | Piece::Unknown => 0,
    };
    if bytes < LEAST { 0 } else { bytes as u64 }
}

/// Shorter bodies are not counted: as many as there can be connections are little, and each would
/// take 64 bytes more.
const LEAST: usize = 16 << 10;
