//! Forms of stored responses for a request: which coding it gets, and the form that is stored with it. Content
//! that is short and in memory is recoded at once; longer content in `recoding`, as a fill.

pub(in crate::serve) mod form_lookup;
pub(in crate::serve) mod hot_forms;
pub(in crate::serve) mod recoding;

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, ETAG, VARY};
use http::{HeaderValue, Method, StatusCode};

use super::Visit;
use super::outcome::{Answered, Content, Encoded, Recoding};
use crate::body::{Body, BodySource};
use crate::cache::{self, Form, StoredResponse};
use crate::fields::{FieldLines, Fields, FieldsMut};
use crate::reply::Reply;
use crate::store::{StoredForm, StoredHead};
use crate::transform::{
    self, Choice, Coding, CodingAction, ContentFields, Negotiability, RecodePlan, RequestFields,
    SettingsId, Transformed, WHOLE_BODY_BYTES_MAX,
};
use hot_forms::HotForm;

impl Visit {
    /// The form of a stored response with this coding, which the request prefers, if memory or the page cache
    /// has it, or if it can be made at once. `None` if the response is to be sent as it is stored, or the form
    /// must be waited for.
    pub(in crate::serve) fn form_now(
        &self,
        head: &Arc<StoredHead>,
        coding: Option<Coding>,
    ) -> Option<Arc<StoredHead>> {
        if !head.may_have_form(coding) || self.query().keeps_coding() {
            return None;
        }
        let is_looked_up = self.context.id.0.is_multiple_of(HITS_PER_FORM_LOOKUP);
        if !is_looked_up && let Some(form) = head.used_form(coding) {
            return Some(form);
        }
        match self.worker.store.form_now(head.hash(), head, coding) {
            Some(StoredForm::Current(form)) => Some(form),
            Some(StoredForm::Outdated(form)) => self.renew(head, &form),
            None => self.make_short(head),
        }
    }

    /// The coding of the form that the client prefers to what is stored; within, `None` is identity. Whether
    /// the content may be recoded is not considered.
    #[inline]
    pub(in crate::serve) fn wanted_form(&self, stored: &StoredHead) -> Option<Option<Coding>> {
        if self.is_for_storing_peer() {
            return None;
        }
        let settings = &self.rule.settings.compression;
        let stored = match stored.has_coding() {
            true => ContentFields::of(&FieldLines::of(&stored.response.headers)).known_coding()?,
            false => None,
        };
        match self.accepted.choose(stored, &settings.codings) {
            Choice::Coded(level) => Some(Some(level.coding())),
            Choice::Decoded => Some(None),
            Choice::Stored => None,
        }
    }

    fn request_fields(&self) -> RequestFields<'_> {
        RequestFields { fields: &self.fields, accepted: self.accepted }
    }

    /// How the content of a stored response is to be recoded for this request. `None` if it is not.
    pub(in crate::serve) fn recode_plan(
        &self,
        stored: &StoredResponse,
        length: Option<u64>,
    ) -> Option<RecodePlan> {
        let settings = &self.rule.settings.compression;
        let fields = FieldLines::of(&stored.headers);
        let content = ContentFields::of(&fields);
        let request = self.request_fields();
        let plan = transform::plan(&request, stored.status, &content, length, settings);
        match plan.action {
            CodingAction::Leave(_) | CodingAction::AskAgain => None,
            CodingAction::Recode(recoding) => {
                Some(RecodePlan { recoding, length, limit: settings.decode_limit })
            }
        }
    }

    /// A form whose source was validated, with the fields that follow from it. `None` if the source may not be
    /// recoded any more.
    pub(in crate::serve) fn renew(
        &self,
        source: &Arc<StoredHead>,
        outdated: &Arc<StoredHead>,
    ) -> Option<Arc<StoredHead>> {
        let form = outdated.response.form.as_deref()?;
        let plan = self.recode_plan(&source.response, Some(source.complete_length()))?;
        if plan.recoding.coding() != form.coding {
            return None;
        }
        let response = form_response(&source.response, form.clone());
        Some(self.worker.store.renew_form(outdated, response))
    }

    /// Makes and stores the form of a response whose content is short and in memory.
    fn make_short(&self, source: &Arc<StoredHead>) -> Option<Arc<StoredHead>> {
        let content = source.inline.as_ref().filter(|_| source.response.parts.is_none())?;
        if content.len() > WHOLE_BODY_BYTES_MAX || content.is_empty() {
            return None;
        }
        let plan = self.recode_plan(&source.response, Some(content.len() as u64))?;
        let level = plan.recoding.to.filter(|_| plan.recoding.from.is_none())?;
        if content.len() > level.whole_bytes_max() {
            return None;
        }
        let body = transform::recode(content.clone().into(), plan, &self.worker.recorder);
        let Body::Full(Some(content)) = body else { return None };
        let form = self.new_form(plan.recoding.coding(), source.object.get());
        let response = form_response(&source.response, form);
        Some(self.worker.store.put_form(response, content))
    }

    /// Offers the form that this request gets for coding at a higher level, if its source has had enough hits. `head`: the
    /// stored response that was found, or the form of it.
    #[cold]
    pub(in crate::serve) fn offer_hot_form(&self, head: &StoredHead, hits: u32) {
        let settings = &self.rule.settings.compression;
        if hits < settings.hot_requests {
            return;
        }
        let coding = match &head.response.form {
            Some(form) => form.coding,
            None => self.wanted_form(head).flatten(),
        };
        let Some(coding) = coding else { return };
        let level = settings.hot_codings.iter().find(|level| level.coding() == coding);
        let Some(level) = level.filter(|_| head.offer_form(Some(coding))) else { return };
        let (hash, object) = head.source();
        let form = self.worker.store.form_in_memory(hash, object, Some(coding));
        let candidate = HotForm { hash, object, level: *level };
        let is_done = form.is_some_and(|form| {
            form.response.form.as_ref().is_some_and(|form| form.is_hot)
                || self.worker.hot_forms.offer(candidate)
        });
        if !is_done {
            head.take_back_offer(Some(coding));
        }
    }

    /// A new form of the object `source`.
    pub(in crate::serve) fn new_form(&self, coding: Option<Coding>, source: u128) -> Form {
        // Any number that is not used again for this response.
        let number = (self.worker.next_request_id().0 >> 32) as u32;
        Form::new(coding, source, number)
    }

    /// Whether the reply is to be sent with its content as it is stored, by the facts that all requests share. Adds
    /// `Vary` then, if it must have it. `false`: that depends on the request.
    fn is_left_as_stored(
        &self,
        reply: &mut Reply,
        head: &StoredHead,
        wanted: Option<Option<Coding>>,
    ) -> bool {
        let is_get = self.context.request.method == Method::GET;
        if !is_get || reply.status != head.response.status {
            return false;
        }
        match (self.negotiability(head), wanted) {
            (Some(Negotiability::Fixed), _) | (Some(Negotiability::VariesAsStated), None) => {}
            (Some(Negotiability::Varies), None) => {
                reply.fields.append(&VARY, &HeaderValue::from_static("Accept-Encoding"));
            }
            _ => return false,
        }
        true
    }

    /// The facts about the coding of a stored response that hold for all requests under the settings of this one, which has noted
    /// them unless an earlier one has. `None`: they do not hold for this request, or the settings have no id.
    #[inline]
    pub(in crate::serve) fn negotiability(&self, head: &StoredHead) -> Option<Negotiability> {
        let id = self.rule.coding_id.filter(|_| !self.accepted.refuses_identity())?;
        let noted = Negotiability::from_note(head.coding_note(), id);
        Some(noted.unwrap_or_else(|| self.note_negotiability(head, id)))
    }

    #[cold]
    fn note_negotiability(&self, head: &StoredHead, id: SettingsId) -> Negotiability {
        let (response, settings) = (&head.response, &self.rule.settings.compression);
        let fields = FieldLines::of(&response.headers);
        let content = ContentFields::of(&fields);
        let length = head.complete_length();
        let found = Negotiability::of(response.status, &content, length, settings);
        head.note_coding(found.to_note(id));
        found
    }

    /// encode: codes or decodes the content as the client accepts it.
    pub(in crate::serve) fn encode(&self, answered: Answered) -> Encoded {
        if self.is_for_storing_peer() {
            return Encoded::Ready(answered);
        }
        let Answered { mut reply, content, facts } = answered;
        if reply.status == StatusCode::NOT_MODIFIED {
            let ours = reply.fields.get(&ETAG);
            let held = ours.and_then(|ours| cache::held_tag(&self.fields, ours));
            if let Some(held) = held.and_then(|held| HeaderValue::from_bytes(held).ok()) {
                reply.fields.set(&ETAG, &held);
            }
        }
        if matches!(content, Content::Negotiated) {
            return Encoded::Ready(facts.answer(reply));
        }
        if let Content::Stored { head, wanted } = &content
            && self.is_left_as_stored(&mut reply, head, *wanted)
        {
            return Encoded::Ready(facts.answer(reply));
        }
        let settings = &self.rule.settings.compression;
        let method = &self.context.request.method;
        match transform::transform(method, &self.request_fields(), reply, settings) {
            Transformed::Ready(reply) => {
                // Only a reason that holds for other requests too spares them a lookup.
                if let Content::Stored { head, wanted: Some(coding) } = &content
                    && reply.status == StatusCode::OK
                    && *method == Method::GET
                    && !self.query().keeps_coding()
                {
                    head.expect_form(*coding, false);
                }
                Encoded::Ready(facts.answer(reply))
            }
            Transformed::AskAgain(reply) => {
                // A peer that gets it as it is asks the origin itself.
                let is_asked = self.asks_for_all() && self.context.hop.is_none();
                match is_asked && !self.directives.only_if_cached {
                    true => Encoded::Refused,
                    false => Encoded::Ready(facts.answer(reply)),
                }
            }
            Transformed::Recode(mut reply, plan) => {
                if plan.recoding.from.is_none() && matches!(content, Content::Unshared) {
                    reply.body = transform::recode(reply.body, plan, &self.worker.recorder);
                    add_length(&mut reply);
                    return Encoded::Ready(facts.answer(reply));
                }
                let answered = facts.answer(reply).of(content);
                Encoded::Recoding(Box::new(Recoding { answered, plan }))
            }
        }
    }
}

/// Adds the length of the content, if it is known.
pub(in crate::serve) fn add_length(reply: &mut Reply) {
    if let Some(length) = reply.body.exact_length() {
        reply.fields.append_number(&CONTENT_LENGTH, length);
    }
}

/// The stored response of a form.
pub(in crate::serve) fn form_response(source: &StoredResponse, form: Form) -> StoredResponse {
    let mut fields = FieldLines::of(&source.headers);
    transform::add_vary(&mut fields);
    transform::recode_fields(&mut fields, form.coding, Some(form.number));
    StoredResponse {
        headers: fields.to_map().into(),
        complete_length: None,
        parts: None,
        form: Some(Box::new(form)),
        ..source.clone()
    }
}

/// Memory learns by lookups which forms are used: one of so many hits looks its form up, the others use the one that an earlier
/// lookup found.
const HITS_PER_FORM_LOOKUP: u64 = 4;
