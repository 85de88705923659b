//! Objects that are stored in parts, for range requests (RFC 9111 §3.3, §3.4).
//!
//! ```text
//! partial_to_be() ─ show() ─▶ head without parts ─ put_slice(), add_part()* ─▶ head with all parts:
//!                                                                              a complete object
//! ```

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Store;
use super::piece_key::{ObjectId, PieceKey};
use super::record::{Record, StoredHead};
use super::write::WriteError;
use crate::cache::StoredResponse;
use crate::cache::range::with_part;

/// The record in memory under a head's hash.
enum Current {
    /// A head of the same object, perhaps with more parts.
    Same(Arc<StoredHead>),
    /// A head of another object, or a variant list.
    Other,
    Absent,
}

impl Store {
    /// A new object without any stored bytes, not visible before [`Store::show`].
    ///
    /// # Errors
    /// The length is unknown, at most one slice, or above the maximum size of objects.
    pub(crate) fn partial_to_be(
        &self,
        mut response: StoredResponse,
    ) -> Result<Arc<StoredHead>, WriteError> {
        self.check_for_parts(&response)?;
        response.parts = Some(Box::default());
        let object = self.next_object(&response);
        Ok(Arc::new(self.new_head(response, object, None)))
    }

    /// Makes the object of [`Store::partial_to_be`] visible.
    pub(crate) fn show(&self, head: &Arc<StoredHead>) {
        let hash = head.hash();
        self.newest().begin(hash, head.object);
        self.put_head(head.clone(), self.tiers.wants_on_disk(hash, 0));
    }

    /// Stores one part of an object on its own: it has no strong validator that would bind it to
    /// other parts (RFC 9111 §3.4), or the object is too short for slices. `bytes` are the bytes of
    /// the response's `parts`.
    pub(crate) fn put_apart(&self, response: StoredResponse, bytes: &Bytes) -> Arc<StoredHead> {
        let hash = response.hash();
        let object = self.next_object(&response);
        // A copy, because the buffer of the connection is longer.
        let inline = Some(self.tiers.body_bytes.count(Bytes::copy_from_slice(bytes)));
        let wanted = self.tiers.wants_on_disk(hash, bytes.len() as u64);
        self.put_head(self.new_head(response, object, inline), wanted)
    }

    /// The head of an object that is still being written, for [`Store::put_slice`] and
    /// [`Store::slice`]. It is not visible. `None` if the object is not stored in slices.
    pub(crate) fn head_to_be(
        &self,
        response: &StoredResponse,
        object: ObjectId,
    ) -> Option<Arc<StoredHead>> {
        self.check_for_parts(response).ok()?;
        Some(Arc::new(self.new_head(response.clone(), object, None)))
    }

    fn check_for_parts(&self, response: &StoredResponse) -> Result<(), WriteError> {
        let length = response.complete_length.unwrap_or_default();
        let limit = self.tiers.settings.object_bytes_max;
        if length <= self.slice_bytes() {
            return Err(WriteError::NotByParts { length });
        }
        if length > limit {
            return Err(WriteError::TooLarge { limit });
        }
        Ok(())
    }

    /// Stores slice `number` of a partial object, or replaces a damaged one.
    ///
    /// # Errors
    /// `bytes` has not the length of [`StoredHead::slice_range`].
    pub(crate) async fn put_slice(
        &self,
        head: &StoredHead,
        number: u32,
        bytes: Bytes,
    ) -> Result<(), WriteError> {
        let range = head.slice_range(number);
        let length = bytes.len() as u64;
        let expected = range.end.saturating_sub(range.start);
        if length != expected {
            return Err(WriteError::SliceLength { number, length, expected });
        }
        let wanted = self.tiers.wants_on_disk(head.hash(), 0);
        let key = PieceKey::slice(head.object, number);
        let site = self.tiers.sites.of(&head.response.site);
        self.tiers.put_slice(key, Bytes::copy_from_slice(&bytes), wanted, &site).await;
        Ok(())
    }

    /// Records that the slices of `part` are stored. Returns the head to use from now on; its
    /// `parts` are `None` once the object is complete.
    pub(crate) fn add_part(&self, head: &Arc<StoredHead>, part: Range<u64>) -> Arc<StoredHead> {
        let newest = self.newest();
        let current = match self.current(head) {
            // Memory has evicted the newer object.
            Current::Absent if newest.is_superseded(head) => return head.clone(),
            Current::Same(current) => current,
            Current::Absent => head.clone(),
            // A newer object replaced it: nobody will read the parts of this one.
            Current::Other => return head.clone(),
        };
        let Some(parts) = &current.response.parts else { return current };
        let parts = with_part(parts, part);
        let mut response = current.response.clone();
        let all = 0..current.complete_length();
        response.parts = (*parts != [all]).then(|| parts.into());
        self.replace(&current, response)
    }

    fn current(&self, head: &StoredHead) -> Current {
        let key = PieceKey::head(head.hash());
        match self.tiers.record_in_memory(&key) {
            Some(Record::Response(current)) if current.object == head.object => {
                Current::Same(current)
            }
            Some(_) => Current::Other,
            None => Current::Absent,
        }
    }

    /// The bytes of `range` that are not stored, in whole slices: a range fill must fetch them before
    /// [`Store::body`] can return the range. Looks at memory and at the disk's index, not at the
    /// disk.
    pub(crate) fn missing(&self, head: &StoredHead, range: Range<u64>) -> Vec<Range<u64>> {
        if head.inline.is_some() {
            return Vec::new();
        }
        let slices = head.slices(range);
        let absent = slices.filter(|number| {
            let key = PieceKey::slice(head.object, *number);
            !self.tiers.contains(&key)
        });
        absent.fold(Vec::new(), |mut missing: Vec<Range<u64>>, number| {
            let range = head.slice_range(number);
            match missing.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => missing.push(range),
            }
            missing
        })
    }

    /// Removes an object that its origin no longer has, unless a newer one has replaced it. Parts
    /// of it that still arrive do not make it visible again. Not a purge: it may reappear from disk
    /// after a restart.
    pub(crate) fn give_up(&self, head: &StoredHead) {
        let mut newest = self.newest();
        match self.current(head) {
            Current::Other => return,
            Current::Absent if newest.is_superseded(head) => return,
            Current::Same(_) | Current::Absent => {}
        }
        let hash = head.hash();
        newest.begin(hash, self.objects.ids.next(hash));
        self.forget(hash);
    }

    /// Whether a newer object of the same key is known, or this one was given up.
    pub(crate) fn is_superseded(&self, head: &StoredHead) -> bool {
        self.newest().is_superseded(head)
    }
}
