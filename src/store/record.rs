//! The records of the store: stored responses and variant lists.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use super::form_marks::FormMarks;
use super::next_form::NextForm;
pub(crate) use super::piece_key::ObjectId;
use crate::cache::{Coding, KeyHash, StoredResponse, VaryList};
use crate::fields::Known;
use crate::purge::Checkpoint;

/// The value under a cache key's or a variant's hash. Two keys can share a hash: the caller compares
/// the texts in the record. A clone clones one `Arc`.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// A stored response.
    Response(Arc<StoredHead>),
    /// The key's responses vary; each variant is stored under a hash of its own.
    Variants(Arc<VaryList>),
}

impl Record {
    /// Whether both are the same record in memory.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Response(one), Self::Response(other)) => Arc::ptr_eq(one, other),
            (Self::Variants(one), Self::Variants(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A stored response without its slices. Immutable, except for its marks: `checkpoint`, `disk_state`,
/// `form_marks`, `next_form` and `coding_note`.
///
/// `repr(C)`, for the reason that [`StoredResponse`] gives. The lines of 64 bytes, with the counts of the `Arc`:
///
/// ```text
/// 0    counts, marks, `parts`, `form`              every hit; also of a form that the hit only passes on its way to another
/// 64   `key`, `freshness`, `stored_at_sequence`    to decide
/// 128  `headers` … `version`                       to send
/// 192  `variant`, `tags`, `inline`, `object`       to send
/// ```
///
/// So a hit of a form reads lines 0 and 64 of the source, and 0, 128 and 192 of the form.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct StoredHead {
    /// The forms of this response, or further forms of the same response.
    pub(super) next_form: NextForm,
    /// The position in the purge log up to which the response was checked.
    pub(super) checkpoint: Checkpoint,
    /// The size of the body's slices, in bytes.
    pub slice_bytes: u32,
    /// The facts about its forms.
    pub(super) form_marks: FormMarks,
    /// One of [`disk_state`].
    pub(super) disk_state: AtomicU8,
    /// See [`StoredHead::coding_note`].
    pub(super) coding_note: AtomicU8,
    /// The response, as the caching rules read it.
    pub response: StoredResponse,
    /// The whole body if it fits into one slice. Of a part stored by
    /// [`Store::put_apart`](super::Store::put_apart): the bytes of that part.
    pub inline: Option<Bytes>,
    /// The object whose slices are the body.
    pub object: ObjectId,
}

/// With the counts of its `Arc` a head fills one of the allocator's size classes; the next has 320 bytes.
const _: () = assert!(ARC_COUNTS + size_of::<StoredHead>() <= 256);
/// The lines that [`StoredHead`] describes.
const _: () = {
    let response = ARC_COUNTS + offset_of!(StoredHead, response);
    assert!(response + offset_of!(StoredResponse, key) == 64);
    assert!(response + offset_of!(StoredResponse, headers) == 128);
    assert!(response + offset_of!(StoredResponse, variant) == 192);
};
/// The bytes of an `Arc` before its value, which has an alignment of 16.
const ARC_COUNTS: usize = 16;

/// How far a head is on its way to disk. The state only moves along these arrows.
///
/// ```text
/// MEMORY_ONLY ──(hit, or frequent key)──▶ QUEUED ──(in the disk's index)──▶ WRITTEN   (read from disk: from the start)
///                                           │ not written: queued again when memory evicts it
/// COPY                                                   of another node's response, or a form of one: stays in memory
/// ```
pub(super) mod disk_state {
    pub(crate) const MEMORY_ONLY: u8 = 0;
    pub(crate) const QUEUED: u8 = 1;
    pub(crate) const WRITTEN: u8 = 2;
    pub(crate) const COPY: u8 = 3;
}

impl StoredHead {
    /// The hash under which it is stored: its key's, or its variant's; mixed with its coding if it is a form.
    pub(crate) fn hash(&self) -> KeyHash {
        self.response.hash()
    }

    /// The hash and the object of the response as the origin sent it: its own, or those of its source if it is a form.
    pub(crate) fn source(&self) -> (KeyHash, u128) {
        match self.response.form.as_deref() {
            None => (self.hash(), self.object.0),
            Some(form) => (self.response.source_hash(), form.source),
        }
    }

    /// Whether it is a copy of another node's response, or a form of one: it is never written to disk.
    #[inline]
    pub(crate) fn is_copy(&self) -> bool {
        self.disk_state.load(Ordering::Relaxed) == disk_state::COPY
    }

    /// Whether it was to be written to disk.
    pub(super) fn is_wanted(&self) -> bool {
        let state = self.disk_state.load(Ordering::Acquire);
        matches!(state, disk_state::QUEUED | disk_state::WRITTEN)
    }

    /// Length of the complete body in bytes, as stored or as announced; 0 if unknown.
    pub(crate) fn complete_length(&self) -> u64 {
        let inline = self.inline.as_ref().filter(|_| !self.is_standalone_part());
        let inline = inline.map(|body| body.len() as u64);
        inline.or(self.response.complete_length).unwrap_or_default()
    }

    /// Whether it holds one part of an object, to which no other part can be added. Reads the first line of the record alone if it
    /// is no part, as nearly always.
    pub(crate) fn is_standalone_part(&self) -> bool {
        self.response.parts.is_some() && self.inline.is_some()
    }

    /// These bytes of an inline body. `None` if the body is not inline, or lacks some of them.
    pub(crate) fn inline_bytes(&self, range: Range<u64>) -> Option<Bytes> {
        let body = self.inline.as_ref()?;
        let parts = self.response.parts.as_deref();
        let first = parts.map_or(0, |parts| parts.first().map_or(0, |part| part.start));
        let start = usize::try_from(range.start.checked_sub(first)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(first)?).ok()?;
        (start <= end && end <= body.len()).then(|| body.slice(start..end))
    }

    /// The numbers of the slices that contain these bytes, which are cut at the end of the body.
    pub(crate) fn slices(&self, bytes: Range<u64>) -> Range<u32> {
        let size = u64::from(self.slice_bytes);
        let end = bytes.end.min(self.complete_length());
        if bytes.start >= end {
            return 0..0;
        }
        // object_bytes_max / 4 KiB fits: an object has at most u32::MAX slices.
        (bytes.start / size) as u32..end.div_ceil(size) as u32
    }

    /// The bytes that slice `number` contains.
    pub(crate) fn slice_range(&self, number: u32) -> Range<u64> {
        let size = u64::from(self.slice_bytes);
        let start = u64::from(number) * size;
        start..(start + size).min(self.complete_length())
    }

    /// The same head, which must be validated before it is used.
    pub(super) fn distrusted(&self) -> Self {
        Self {
            response: self.response.clone(),
            object: self.object,
            inline: self.inline.clone(),
            slice_bytes: self.slice_bytes,
            checkpoint: Checkpoint::distrusted(),
            disk_state: AtomicU8::new(disk_state::WRITTEN),
            form_marks: FormMarks::of(&self.response),
            next_form: NextForm::default(),
            coding_note: AtomicU8::new(0),
        }
    }

    /// Whether the origin sent it with a coding. Remembered apart from the fields, which are elsewhere in memory.
    #[inline]
    pub(crate) fn has_coding(&self) -> bool {
        if self.form_marks.is_uncoded() {
            return false;
        }
        let has_coding = self.response.headers.has(Known::ContentEncoding);
        if !has_coding {
            self.form_marks.set_uncoded();
        }
        has_coding
    }

    /// The form with this coding that an earlier hit has found by [`Store::form_now`](super::Store::form_now). No lookup: the memory
    /// tier does not learn that it is used.
    #[inline]
    pub(crate) fn used_form(&self, coding: Option<Coding>) -> Option<Arc<Self>> {
        self.next_form.find(coding)
    }

    /// Whether a form with this coding may exist. `false`: [`StoredHead::expect_form`] was told that none does.
    #[inline]
    pub(crate) fn may_have_form(&self, coding: Option<Coding>) -> bool {
        self.form_marks.may_exist(coding)
    }

    /// Remembers whether lookups of the form with this coding are worth their cost.
    pub(crate) fn expect_form(&self, coding: Option<Coding>, expected: bool) {
        self.form_marks.expect(coding, expected);
    }

    /// The number that [`StoredHead::note_coding`] was given last: facts about its coding that all requests share.
    /// 0: none.
    #[inline]
    pub(crate) fn coding_note(&self) -> u8 {
        self.coding_note.load(Ordering::Relaxed)
    }

    /// Keeps a number for later requests, while the record is in memory.
    pub(crate) fn note_coding(&self, note: u8) {
        self.coding_note.store(note, Ordering::Relaxed);
    }

    /// Marks the form with this coding as offered for coding at a higher level. Returns whether it was not before.
    pub(crate) fn offer_form(&self, coding: Option<Coding>) -> bool {
        self.form_marks.offer(coding)
    }

    /// Undoes [`StoredHead::offer_form`], so that the form can be offered again.
    pub(crate) fn take_back_offer(&self, coding: Option<Coding>) {
        self.form_marks.take_back_offer(coding);
    }

    /// Whether it was made from `source`, by coding or decoding its content.
    pub(super) fn is_form_of(&self, source: &Self) -> bool {
        self.response.form.as_ref().is_some_and(|form| form.source == source.object.0)
    }

    /// Whether what decides about `source` decides about this form of it as well.
    pub(super) fn can_be_linked_to(&self, source: &Self) -> bool {
        self.is_form_of(source)
            && self.response.freshness.response_time == source.response.freshness.response_time
            && self.checkpoint.lineage() == source.checkpoint.lineage()
            && !source.response.headers.has(Known::ContentEncoding)
    }

    /// Bytes that it occupies in memory, without its slices.
    pub(super) fn weight(&self) -> usize {
        let response = &self.response;
        size_of::<Self>()
            + ENTRY_OVERHEAD
            + response.key.len()
            + response.variant.len()
            + size_of_val(&*response.tags)
            + response.parts.as_ref().map_or(0, |parts| size_of_val(&**parts))
            + response.headers.weight()
            + self.inline.as_ref().map_or(0, Bytes::len)
            + response.form.as_ref().map_or(0, |form| size_of_val(&**form))
    }
}

/// Bytes of a memory entry beside its value: foyer's record (128 bytes), its slot in a hash table and
/// the counts of our `Arc` (16 each), and the allocator's rounding. `store::tests::bench::hits_in_memory`
/// measures slightly less (docs/benchmarks-store.md).
pub(super) const ENTRY_OVERHEAD: usize = 192;
