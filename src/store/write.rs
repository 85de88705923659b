//! Writing: whole objects from their first byte to their last, and objects by parts.
//!
//! ```text
//! writer() ─ push(bytes)* ─▶ slices, readable by number at once ─ finish() ─▶ head: visible
//!                     └ dropped: nothing is visible; the slices age out of the tiers
//! partial() ─▶ head with no parts ─ put_slice()* ─ add_part()* ─▶ head with all: an object like others
//! ```

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Store;
use super::record::{Head, ObjectId};
use super::sites::Site;
use crate::cache::{KeyHash, StoredResponse};

/// Why an object was not stored. The response itself is none the worse for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// `object_bytes_max` is exceeded.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The body ended early, or went on for too long.
    #[error("the body has {length} bytes, but {promised} were announced")]
    Length {
        /// What was pushed.
        length: u64,
        /// `complete_length`.
        promised: u64,
    },
    /// A slice of a partial object has not the bytes that its number stands for.
    #[error("slice {number} has {length} bytes instead of {expected}")]
    SliceLength {
        /// The slice's number.
        number: u32,
        /// Its length.
        length: u64,
        /// The length it must have.
        expected: u64,
    },
    /// A partial object needs a known length beyond one slice.
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
    /// The slice being filled.
    slice: BytesMut,
    /// How many slices are in the store.
    slices: u32,
    length: u64,
    wanted: bool,
}

impl ObjectWriter {
    pub(super) fn new(store: Store, response: StoredResponse) -> Self {
        let hash = response.hash();
        let object = store.next_object(hash);
        let length = response.complete_length.unwrap_or_default();
        let wanted = store.wants_on_disk(hash, length);
        let site = store.site(&response.site);
        let slice = BytesMut::new();
        Self { store, response, site, hash, object, slice, slices: 0, length: 0, wanted }
    }

    /// Appends to the body, in pieces of any size; the writer cuts the slices. Waits while the
    /// disk's queue is full, never for longer than the disk's deadline.
    pub(crate) async fn push(&mut self, mut bytes: Bytes) -> Result<(), WriteError> {
        let limit = self.store.settings().object_bytes_max;
        if self.length + bytes.len() as u64 > limit {
            return Err(WriteError::TooLarge { limit });
        }
        let promised = self.response.complete_length;
        self.length += bytes.len() as u64;
        if let Some(promised) = promised.filter(|promised| self.length > *promised) {
            return Err(WriteError::Length { length: self.length, promised });
        }
        while !bytes.is_empty() {
            // A full slice goes only when more comes: a body of exactly one slice is inline.
            if self.slice.len() == self.slice_bytes() {
                self.put().await;
            }
            let room = self.slice_bytes() - self.slice.len();
            let piece = bytes.split_to(room.min(bytes.len()));
            self.reserve(piece.len());
            self.slice.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// The whole body was pushed: makes the object visible.
    pub(crate) async fn finish(mut self) -> Result<Arc<Head>, WriteError> {
        let length = self.length;
        if let Some(promised) = self.response.complete_length.filter(|&it| it != length) {
            return Err(WriteError::Length { length, promised });
        }
        let mut inline = None;
        if self.slices == 0 {
            inline = Some(self.store.inner.held.count(exact(std::mem::take(&mut self.slice))));
        } else if !self.slice.is_empty() {
            self.put().await;
        }
        self.response.complete_length = Some(length);
        self.response.parts = None;
        self.store.changes().supersede(self.hash, self.object);
        let head = self.store.new_head(self.response, self.object, inline);
        Ok(self.store.put_head(head, self.wanted))
    }

    /// The object's id, by which slices can be read before it is finished.
    pub(crate) fn object(&self) -> ObjectId {
        self.object
    }

    /// How many slices can be read by number already.
    pub(crate) fn slices_stored(&self) -> u32 {
        self.slices
    }

    /// How many bytes were pushed.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    async fn put(&mut self) {
        if !self.wanted && self.store.wants_on_disk(self.hash, self.length) {
            // Longer than memory should hold unread: from here on it goes to disk, and so does
            // what is still in memory of it.
            self.wanted = true;
            self.store.write_slices(self.object, 0..self.slices).await;
        }
        let slice = exact(std::mem::take(&mut self.slice));
        let (object, number) = (self.object, self.slices);
        self.store.put_slice_bytes(object, number, slice, self.wanted, &self.site).await;
        self.slices += 1;
    }

    /// Room for what is known to come, so that small bodies are not copied twice.
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
        self.store.settings().slice_bytes
    }
}

/// What is stored for long must not hold on to room that it does not need.
fn exact(slice: BytesMut) -> Bytes {
    if slice.capacity() > slice.len() + slice.len() / 8 {
        Bytes::copy_from_slice(&slice)
    } else {
        slice.freeze()
    }
}
