//! Forms of a stored response: its content in another coding than the origin sent, as a stored response of its
//! own beside it.
//!
//! ```text
//! key ─▶ hash ─▶ stored response, as the origin sent it         decides: freshness, purges, Vary, 304
//!                 ╰ hash of the form ─▶ stored response, coded   valid while `source` is that one's object
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use http::header::CONTENT_LENGTH;

use super::StoredResponse;
use super::key::KeyHash;
use crate::fields::FieldLines;
use crate::labels::Coding;

/// The mark of a stored response that was made from another one by coding or decoding its content.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Form {
    /// The coding of its content. `None`: none, the origin sent it coded.
    pub coding: Option<Coding>,
    /// The id of the object that it was made from.
    pub source: u128,
    /// The number of these bytes, in their entity tag: coding the same content again may give others.
    pub number: u32,
    /// Whether it was coded again at a high level, because its source is requested often.
    pub is_hot: bool,
    /// Where the store has written its source.
    pub source_entry: SourceEntry,
}

/// The number of the entry on disk that a form's source has, which the store notes when it writes the form. 0: unknown.
/// A clone is the mark of another form, of which it is unknown.
#[derive(Debug, Default)]
pub(crate) struct SourceEntry(AtomicU64);

impl SourceEntry {
    /// The number, or 0.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Notes the number.
    pub(crate) fn set(&self, entry: u64) {
        self.0.store(entry, Ordering::Release);
    }
}

impl Clone for SourceEntry {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for SourceEntry {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Form {
    /// The mark of a form that was just made from the object `source`.
    pub(crate) fn new(coding: Option<Coding>, source: u128, number: u32) -> Self {
        Self { coding, source, number, is_hot: false, source_entry: SourceEntry::default() }
    }

    /// The hash under which the form with this coding is stored, if the response that it is made from is under
    /// `source`. Only the lower half differs: the upper bits place both in the same directory.
    pub(crate) fn hash(source: KeyHash, coding: Option<Coding>) -> KeyHash {
        KeyHash(source.0 ^ u128::from(mixed(coding)))
    }

    /// The coding's number, from 0 up to [`Form::CODINGS`].
    pub(crate) fn index(coding: Option<Coding>) -> usize {
        coding.map_or(Coding::WORDS.len(), Coding::index)
    }

    /// The codings of forms; `None` is decoded content.
    pub(crate) const ALL: [Option<Coding>; Self::CODINGS] =
        [Some(Coding::Zstd), Some(Coding::Brotli), Some(Coding::Gzip), None];

    /// The number of codings, decoded content included.
    pub(crate) const CODINGS: usize = Coding::WORDS.len() + 1;
}

impl StoredResponse {
    /// Adds `Content-Length` to the fields of a form whose length is known, so that its hits need not.
    pub(crate) fn name_length_of_form(&mut self) {
        let Some(length) = self.complete_length.filter(|_| self.form.is_some()) else { return };
        let mut fields = FieldLines::of(&self.headers);
        fields.set_number(&CONTENT_LENGTH, length);
        self.headers = fields.to_map().into();
    }
}

/// A random constant for each coding. They are part of hashes on disk.
fn mixed(coding: Option<Coding>) -> u64 {
    match coding {
        None => 0xf2a7_4de4_52e6_b438,
        Some(Coding::Zstd) => 0x6513_270e_269e_0d37,
        Some(Coding::Brotli) => 0xc5c7_fd0a_6a3a_4501,
        Some(Coding::Gzip) => 0xd23f_0824_128b_2f33,
    }
}
