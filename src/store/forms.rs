//! Forms of stored responses: content in another coding than the origin sent, stored beside it.
//!
//! A form is a stored response of its own, with its own object, slices and place on disk, under the hash of its
//! source mixed with its coding. It is used only through its source and only while that has the same object: a
//! new object or a purge of the source makes it unreachable, and it ages out of both tiers.
//!
//! A form never outlives its source in memory: a source that memory evicts takes its forms along. Their slices
//! stay until they are evicted themselves, because clients may be reading them. A directory frees space in the
//! order of writing, whatever it holds: a form there may outlive its source by one round, and nothing finds it.
//!
//! ```text
//! source   object 7, response time t       form  source 7, response time t      current
//! 304   ─▶ object 7, response time t+9     form  source 7, response time t      fields outdated, bytes right
//! fetch ─▶ object 8                        form  source 7                       no form of this source
//! ```

use std::sync::Arc;

use bytes::Bytes;

use super::Store;
use super::piece_key::PieceKey;
use super::record::{Record, StoredHead};
use crate::cache::{Coding, Form, KeyHash, StoredResponse};

/// A form that is stored.
#[derive(Clone, Debug)]
pub(crate) enum StoredForm {
    /// The form can be used.
    Current(Arc<StoredHead>),
    /// Its bytes are right, but its source was validated since: [`Store::renew_form`].
    Outdated(Arc<StoredHead>),
}

impl Store {
    /// The form of `source`, which is stored under `hash`, with this coding, if memory or the page cache has
    /// it. Does not wait.
    pub(crate) fn form_now(
        &self,
        hash: KeyHash,
        source: &StoredHead,
        coding: Option<Coding>,
    ) -> Option<StoredForm> {
        let hash = Form::hash(hash, coding);
        let record = match self.in_memory(hash) {
            Some(record) => record,
            None => {
                let key = PieceKey::head(hash);
                if !self.tiers.disks.may_contain(&key) {
                    return None;
                }
                self.tiers.load_cached(key, None).ok().flatten()?.into_record()?
            }
        };
        self.form_of(record, source, coding)
    }

    /// As [`Store::form_now`], and waits for the disk. A form that cannot be read is made again.
    pub(crate) async fn form(
        &self,
        hash: KeyHash,
        source: &StoredHead,
        coding: Option<Coding>,
    ) -> Option<StoredForm> {
        self.form_of(self.find(Form::hash(hash, coding)).await?, source, coding)
    }

    /// The form in memory that was made from the object `source`, which is, or will be, stored under `hash`.
    pub(crate) fn form_in_memory(
        &self,
        hash: KeyHash,
        source: u128,
        coding: Option<Coding>,
    ) -> Option<Arc<StoredHead>> {
        let Record::Response(form) = self.in_memory(Form::hash(hash, coding))? else { return None };
        form.response.form.as_ref().is_some_and(|form| form.source == source).then_some(form)
    }

    /// Stores a form whose content is short and complete.
    pub(crate) fn put_form(&self, mut response: StoredResponse, content: Bytes) -> Arc<StoredHead> {
        let hash = response.hash();
        response.complete_length = Some(content.len() as u64);
        let wanted = self.tiers.wants_on_disk(hash, content.len() as u64);
        let inline = Some(self.tiers.body_bytes.count(content));
        let object = self.next_object(&response);
        self.put_head(self.new_head(response, object, inline), wanted)
    }

    /// Replaces the fields of an outdated form by those of `response`.
    pub(crate) fn renew_form(
        &self,
        outdated: &Arc<StoredHead>,
        response: StoredResponse,
    ) -> Arc<StoredHead> {
        self.replace(outdated, response)
    }

    fn form_of(
        &self,
        record: Record,
        source: &StoredHead,
        coding: Option<Coding>,
    ) -> Option<StoredForm> {
        let Record::Response(form) = record else { return None };
        // Found before: neither record has changed since, and what follows reads lines of them that the hit does not need.
        if source.next_form.has_first(&form) {
            self.link_again(source, &form);
            return Some(StoredForm::Current(form));
        }
        if !form.is_form_of(source) {
            return None;
        }
        source.form_marks.set_present(coding);
        let time = |head: &StoredHead| head.response.freshness.response_time;
        if time(&form) != time(source) {
            return Some(StoredForm::Outdated(form));
        }
        self.link_again(source, &form);
        source.next_form.put_first(&form);
        Some(StoredForm::Current(form))
    }
}
