//! A response whose body is being fetched, as a follower gets it.

use std::ops::Range;
use std::sync::Arc;

use super::reader::FillReader;
use super::state::FollowerGuard;
use crate::cache::StoredResponse;
use crate::store::{ObjectId, StoredHead};

/// A response whose body is being fetched. Keeps the fill alive until it is dropped or read; a reader
/// keeps the fill alive itself. To read several ranges, create all readers before one is dropped.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(super) response: Arc<StoredResponse>,
    pub(super) guard: FollowerGuard,
}

impl Filling {
    /// The head record of the response, as it will be stored.
    pub(crate) fn response(&self) -> &Arc<StoredResponse> {
        &self.response
    }

    /// The id of the object being filled.
    pub(crate) fn object(&self) -> Option<ObjectId> {
        self.guard.fill().lock().slices.as_ref().map(|(_, object)| *object)
    }

    /// The head record of the object being filled, to read slices that are already stored, or to store
    /// slices ahead of the fill. `None` if it is not stored in slices, or its length is unknown.
    pub(crate) fn head(&self) -> Option<Arc<StoredHead>> {
        let (store, object) = self.guard.fill().lock().slices.clone()?;
        store.head_to_be(&self.response, object)
    }

    /// Whether `offset` is more than `range_request_bytes_max` beyond the last byte received.
    pub(crate) fn is_far_from(&self, offset: u64) -> bool {
        let fill = self.guard.fill();
        let arrived = fill.lock().window.end();
        offset > arrived.saturating_add(fill.shared.settings.range_request_bytes_max)
    }

    /// Reads the whole body from its first byte, with trailers.
    pub(crate) fn read_all(&self) -> FillReader {
        self.reader(0..u64::MAX).with_trailers()
    }

    /// Reads only the bytes of `range`, cut at the end of the body. If the length is unknown, the
    /// end is known only when it arrives.
    pub(crate) fn read(&self, range: Range<u64>) -> FillReader {
        self.reader(range)
    }

    fn reader(&self, range: Range<u64>) -> FillReader {
        let length = self.response.complete_length;
        let reader = FillReader::new(self.guard.fill().clone(), range, length);
        self.guard.end();
        reader
    }
}
