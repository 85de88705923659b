//! lookup, of a coded form in place of the response that it was made from. Where memory does not have the response, a form
//! that is linked to it tells all that decides: a hit reads one record from disk instead of two.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{AUTHORIZATION, RANGE};

use super::super::lookup::{CacheQuery, Search};
use crate::cache::{self, Decision};
use crate::fields::FieldLines;
use crate::store::StoredHead;
use crate::transform::{self, Accepted, Choice, Coding, ContentFields, Negotiability};

/// The forms that a lookup may find in place of their sources.
#[derive(Clone, Copy)]
pub(in crate::serve) enum WantedForms {
    /// None: the responses themselves are looked up.
    None,
    /// Those with the coding that this client prefers, if they are fresh at this time.
    Preferred(Accepted, SystemTime),
}

impl CacheQuery<'_> {
    /// A form in memory of the response that the search would read next, and that memory does not have.
    pub(in crate::serve) fn form_in_memory(&self, search: &Search) -> Option<Arc<StoredHead>> {
        let form = self.store.linked_form_in_memory(search.hash(), self.preferred_coding()?)?;
        self.may_send(search, &form).then_some(form)
    }

    /// As [`CacheQuery::form_in_memory`], also from disk.
    pub(in crate::serve) async fn form(&self, search: &Search) -> Option<Arc<StoredHead>> {
        let form = self.store.linked_form(search.hash(), self.preferred_coding()?).await?;
        self.may_send(search, &form).then_some(form)
    }

    /// Whether the request forbids content in another coding than the stored one.
    pub(in crate::serve) fn keeps_coding(&self) -> bool {
        let settings = &self.rule.settings.compression;
        self.directives.no_transform || !settings.private && self.fields.contains_key(AUTHORIZATION)
    }

    /// The coding that the client gets of a response which the origin sent without one, if that can be told without the
    /// response. A range may be of the response itself, because the client has a part of that.
    fn preferred_coding(&self) -> Option<Coding> {
        let WantedForms::Preferred(accepted, _) = self.forms else { return None };
        match accepted.choose(None, &self.rule.settings.compression.codings) {
            Choice::Coded(level) => {
                let is_told = !self.keeps_coding() && !self.fields.contains_key(RANGE);
                is_told.then(|| level.coding())
            }
            Choice::Stored | Choice::Decoded => None,
        }
    }

    /// Whether a form is of the response that the search would read next, all of it is stored, and it can be sent without
    /// asking upstream.
    fn may_send(&self, search: &Search, form: &StoredHead) -> bool {
        let WantedForms::Preferred(_, now) = self.forms else { return false };
        let purged = self.store.purge_verdict(form);
        let settings = &self.rule.settings.cache;
        let decision = cache::decide(&form.response, purged, self.directives, settings, now);
        matches!(decision, Decision::Serve { .. })
            && search.fits(self, form)
            && self.codes_type_of(form)
            && self.store.missing(form, 0..u64::MAX).is_empty()
    }

    /// Whether content of this form's type is compressed: the settings may have changed since it was made. Notes that at the form.
    fn codes_type_of(&self, form: &StoredHead) -> bool {
        let Some(id) = self.rule.coding_id else { return false };
        let noted = Negotiability::from_note(form.coding_note(), id);
        let facts = noted.unwrap_or_else(|| {
            let fields = FieldLines::of(&form.response.headers);
            let settings = &self.rule.settings.compression;
            let content = ContentFields::of(&fields);
            let facts = match transform::has_listed_type(form.response.status, &content, settings) {
                true => Negotiability::VariesAsStated,
                false => Negotiability::Fixed,
            };
            form.note_coding(facts.to_note(id));
            facts
        });
        facts != Negotiability::Fixed
    }
}
