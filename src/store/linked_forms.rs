//! Linked forms: a form whose record names the entry on disk of its source. While the index has that entry as the newest
//! one of the source, the form's own facts (freshness, tags, purge sequence) are those of the source, so that a hit
//! reads one record from disk instead of two.
//!
//! ```text
//! write    source ─▶ entry 71           form ─▶ entry 72, "source is entry 71"
//! hit      index: source is entry 71    form alone answers
//! after a new version, a 304            index: source is entry 90    the source is read first, as without a link
//! after a purge of the index entry,     index: no source             no form can be used
//!   or when the ring has overwritten it
//! ```
//!
//! A form is linked when it is written, if the entry that the index has of its source is the response that it was made
//! from. Only forms of responses without a coding are linked: which form a client prefers depends on the source's
//! coding, which a form does not tell.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use super::piece::Piece;
use super::piece_key::PieceKey;
use super::record::{Record, StoredHead, disk_state};
use crate::cache::{Coding, Form, KeyHash};

impl Store {
    /// The form with this coding of the response that is stored under `hash`, if it is in memory and is linked to that
    /// response. The caller has found that memory does not have the response.
    pub(crate) fn linked_form_in_memory(
        &self,
        hash: KeyHash,
        coding: Coding,
    ) -> Option<Arc<StoredHead>> {
        let Record::Response(form) = self.in_memory(Form::hash(hash, Some(coding)))? else {
            return None;
        };
        self.is_linked(hash, &form).then_some(form)
    }

    /// As [`Store::linked_form_in_memory`], also from disk. `None` if memory has the response: it decides then.
    pub(crate) async fn linked_form(
        &self,
        hash: KeyHash,
        coding: Coding,
    ) -> Option<Arc<StoredHead>> {
        let (source, form) = (PieceKey::head(hash), Form::hash(hash, Some(coding)));
        let is_on_disk = self.tiers.disks.may_contain(&source);
        if !is_on_disk || self.tiers.memory.contains(&source) || self.is_absent(form) {
            return None;
        }
        let Record::Response(form) = self.find(form).await? else { return None };
        self.is_linked(hash, &form).then_some(form)
    }

    /// Whether a form may be used without its source. Forgets a link that does not hold any more.
    fn is_linked(&self, source: KeyHash, form: &StoredHead) -> bool {
        let Some(mark) = form.response.form.as_deref() else { return false };
        let entry = mark.source_entry.get();
        if entry == 0 {
            return false;
        }
        let newest = self.newest_entry(source, form);
        if newest.is_some_and(|newest| newest != entry) {
            mark.source_entry.set(0);
        }
        newest == Some(entry)
    }

    /// The entry that the index has of the response under `source`, by number. `None` also if newer responses may not have
    /// reached the disk since the form was stored.
    fn newest_entry(&self, source: KeyHash, form: &StoredHead) -> Option<u64> {
        let stored_at = form.response.stored_at_sequence;
        self.tiers.disks.trusted_entry(&PieceKey::head(source), stored_at)
    }

    /// Links a form that was used through its source: writes it again, once while it is in memory.
    #[inline]
    pub(super) fn link_again(&self, source: &StoredHead, form: &Arc<StoredHead>) {
        if form.disk_state.load(Ordering::Relaxed) == disk_state::WRITTEN
            && form.response.form.as_ref().is_some_and(|mark| mark.source_entry.get() == 0)
        {
            self.write_again(source, form);
        }
    }

    #[cold]
    fn write_again(&self, source: &StoredHead, form: &Arc<StoredHead>) {
        if form.can_be_linked_to(source)
            && self.newest_entry(source.hash(), form).is_some()
            && form.form_marks.set_written_again()
        {
            let piece = Piece::Record(Record::Response(form.clone()));
            self.tiers.disks.offer(PieceKey::head(form.hash()), piece);
        }
    }
}
