//! Cuts the body of a part into slices.

use bytes::{Bytes, BytesMut};

use crate::store::StoredHead;

/// Assembles complete slices from consecutive pieces of a body.
pub(super) struct SliceBuffer {
    /// Offset of the next byte.
    at: u64,
    bytes: BytesMut,
}

/// A complete slice.
pub(super) struct CompleteSlice {
    pub number: u32,
    pub bytes: Bytes,
}

impl SliceBuffer {
    /// A buffer for a body that begins at this offset of the object.
    pub(super) fn new(at: u64) -> Self {
        Self { at, bytes: BytesMut::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes bytes from `data`, at most to the end of a slice, and returns the slice once it is
    /// complete.
    pub(super) fn fill(&mut self, data: &mut Bytes, head: &StoredHead) -> Option<CompleteSlice> {
        let number = (self.at / u64::from(head.slice_bytes)) as u32;
        let range = head.slice_range(number);
        let piece = data.split_to(data.len().min((range.end - self.at) as usize));
        // The first slice is incomplete if the part begins within it.
        let has_its_start = self.at == range.start + self.bytes.len() as u64;
        self.at += piece.len() as u64;
        if !has_its_start {
            return None;
        }
        if self.bytes.is_empty() {
            self.bytes.reserve((range.end - range.start) as usize);
        }
        self.bytes.extend_from_slice(&piece);
        if self.at < range.end {
            return None;
        }
        Some(CompleteSlice { number, bytes: self.bytes.split().freeze() })
    }
}
