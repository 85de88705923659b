//! Writing complete objects, from the first byte to the last.
//!
//! ```text
//! writer() ─ push(bytes)* ─▶ slices, readable by number at once ─ finish() ─▶ head: visible
//!                     └ dropped: the object never becomes visible; its slices age out of the tiers
//! ```

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Store;
use super::piece_key::{ObjectId, PieceKey};
use super::record::StoredHead;
use super::sites::Site;
use crate::cache::{KeyHash, StoredResponse};

/// Why an object was not stored. The response to the client is not affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// `object_bytes_max` is exceeded.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The body has not the announced length.
    #[error("the body has {length} bytes, but {promised} were announced")]
    Length {
        /// Bytes pushed.
        length: u64,
        /// `complete_length`.
        promised: u64,
    },
    /// A slice of a partial object has the wrong length.
    #[error("slice {number} has {length} bytes instead of {expected}")]
    SliceLength {
        /// The slice's number.
        number: u32,
        /// Its length.
        length: u64,
        /// The length it must have.
        expected: u64,
    },
    /// A partial object must have a known length of more than one slice.
    #[error("an object of {length} bytes cannot be stored in parts")]
    NotByParts {
        /// `complete_length`, zero when it is not known.
        length: u64,
    },
}

/// One response on its way into the store.
#[derive(Debug)]
pub(crate) struct ObjectWriter {
    store: Store,
    response: StoredResponse,
    site: Arc<Site>,
    hash: KeyHash,
    object: ObjectId,
    /// The incomplete last slice.
    slice: BytesMut,
    /// Number of slices in the store.
    slices: u32,
    /// Bytes pushed.
    length: u64,
    /// Whether the object is to be written to disk.
    wanted: bool,
    /// Whether it stays in memory whatever its length.
    is_copy: bool,
}

impl ObjectWriter {
    pub(super) fn new(store: Store, response: StoredResponse, object: ObjectId) -> Self {
        let hash = response.hash();
        let length = response.complete_length.unwrap_or_default();
        let is_copy = store.objects.ids.is_copy(object.0);
        let wanted = !is_copy && store.tiers.wants_on_disk(hash, length);
        let site = store.tiers.sites.of(&response.site);
        let slice = BytesMut::new();
        Self { store, response, site, hash, object, slice, slices: 0, length: 0, wanted, is_copy }
    }

    /// Appends to the body, in pieces of any size. Waits while the disk's queue is full, for each
    /// slice at most the disk's deadline.
    ///
    /// # Errors
    /// The body is longer than announced, or than the maximum size of objects.
    pub(crate) async fn push(&mut self, mut bytes: Bytes) -> Result<(), WriteError> {
        let limit = self.store.tiers.settings.object_bytes_max;
        if self.length + bytes.len() as u64 > limit {
            return Err(WriteError::TooLarge { limit });
        }
        let promised = self.response.complete_length;
        self.length += bytes.len() as u64;
        if let Some(promised) = promised.filter(|promised| self.length > *promised) {
            return Err(WriteError::Length { length: self.length, promised });
        }
        while !bytes.is_empty() {
            // A full slice is stored when more bytes follow: a body of exactly one slice is inline.
            if self.slice.len() == self.slice_bytes() {
                self.put_slice().await;
            }
            let room = self.slice_bytes() - self.slice.len();
            let piece = bytes.split_to(room.min(bytes.len()));
            self.reserve(piece.len());
            self.slice.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// Makes the object visible, after the whole body was pushed.
    ///
    /// # Errors
    /// The body is shorter than announced.
    pub(crate) async fn finish(mut self) -> Result<Arc<StoredHead>, WriteError> {
        let length = self.length;
        if let Some(promised) = self.response.complete_length.filter(|&it| it != length) {
            return Err(WriteError::Length { length, promised });
        }
        let mut inline = None;
        if self.slices == 0 {
            inline =
                Some(self.store.tiers.body_bytes.count(exact(std::mem::take(&mut self.slice))));
        } else if !self.slice.is_empty() {
            self.put_slice().await;
        }
        self.response.complete_length = Some(length);
        self.response.parts = None;
        self.store.newest().supersede(self.hash, self.object);
        let head = self.store.new_head(self.response, self.object, inline);
        Ok(self.store.put_head(head, self.wanted))
    }

    /// The object's id, with which its slices can be read before it is finished.
    pub(crate) fn object(&self) -> ObjectId {
        self.object
    }

    /// Number of slices that can be read already.
    pub(crate) fn slices_stored(&self) -> u32 {
        self.slices
    }

    async fn put_slice(&mut self) {
        let may_be_wanted = !self.wanted && !self.is_copy;
        if may_be_wanted && self.store.tiers.wants_on_disk(self.hash, self.length) {
            // Too long to stay in memory unread: write this and the following slices to disk, and
            // the previous ones that memory still has.
            self.wanted = true;
            self.store.tiers.write_slices(self.object, 0..self.slices).await;
        }
        let slice = exact(std::mem::take(&mut self.slice));
        let key = PieceKey::slice(self.object, self.slices);
        self.store.tiers.put_slice(key, slice, self.wanted, &self.site).await;
        self.slices += 1;
    }

    /// Reserves capacity for the bytes that are announced, so that small bodies are not copied twice.
    fn reserve(&mut self, piece: usize) {
        if self.slice.capacity() - self.slice.len() >= piece {
            return;
        }
        let slice_bytes = self.slice_bytes();
        let known = match self.response.complete_length {
            Some(promised) => {
                let before = u64::from(self.slices) * slice_bytes as u64;
                usize::try_from(promised - before).unwrap_or(slice_bytes)
            }
            None if self.slices > 0 => slice_bytes,
            None => (2 * self.slice.len()).max(piece),
        };
        let capacity = known.clamp(self.slice.len() + piece, slice_bytes);
        self.slice.reserve(capacity - self.slice.len());
    }

    fn slice_bytes(&self) -> usize {
        self.store.tiers.settings.slice_bytes
    }
}

/// Frees unused capacity, because the bytes may be stored for long.
fn exact(slice: BytesMut) -> Bytes {
    if slice.capacity() > slice.len() + slice.len() / 8 {
        Bytes::copy_from_slice(&slice)
    } else {
        slice.freeze()
    }
}
