//! Counts the body bytes that are referenced, in the memory tier or by readers: a slow reader holds a
//! slice long after the tier has evicted it. The tier shrinks by what only readers hold, so that both
//! together stay within the memory limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::piece::Piece;
use super::record::Record;

/// The counts, in bytes.
#[derive(Default)]
pub(super) struct BodyBytes {
    referenced: Arc<AtomicU64>,
    in_tier: AtomicU64,
}

/// Bytes that are counted until their last reference is dropped.
struct CountedBytes {
    bytes: Bytes,
    referenced: Arc<AtomicU64>,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.referenced.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

impl BodyBytes {
    /// The same bytes, counted from now on. Must be called once for each body or slice.
    pub(super) fn count(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < COUNTED_MIN {
            return bytes;
        }
        self.referenced.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Bytes::from_owner(CountedBytes { bytes, referenced: self.referenced.clone() })
    }

    /// As [`BodyBytes::count`], for the body bytes of a piece that was just read from disk.
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

    /// A piece enters the memory tier.
    pub(super) fn entered(&self, piece: &Piece) {
        self.in_tier.fetch_add(counted(piece), Ordering::Relaxed);
    }

    /// A piece leaves the memory tier.
    pub(super) fn left(&self, piece: &Piece) {
        self.in_tier.fetch_sub(counted(piece), Ordering::Relaxed);
    }

    /// Bytes that only readers reference.
    pub(super) fn outside_tier(&self) -> u64 {
        let in_tier = self.in_tier.load(Ordering::Relaxed);
        self.referenced.load(Ordering::Relaxed).saturating_sub(in_tier)
    }
}

fn counted(piece: &Piece) -> u64 {
    let bytes = piece.body_bytes();
    if bytes < COUNTED_MIN { 0 } else { bytes as u64 }
}

/// Shorter bodies are not counted: each reader holds at most one, and counting costs 64 bytes each.
const COUNTED_MIN: usize = 16 << 10;
