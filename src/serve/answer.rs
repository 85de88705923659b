//! select: what a request gets of a stored response, or of one that is being filled: 200, 206, 304, 412
//! or 416 (RFC 9110 §13, §14, §15).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, Method};
use http_body::Frame;

use super::Visit;
use super::outcome::{Answered, Content};
use super::repaired_body::{Repair, RepairedBody};
use crate::body::{Body, BodySource, PollFrame};
use crate::cache::{
    self, CacheStatus, Continuation, KeyHash, Multipart, Reason, Selected, StoredResponse,
};
use crate::context::ResponseFacts;
use crate::fields::{Fields, FieldsMut};
use crate::fill::Filling;
use crate::fill::parts::{PartResponse, Parts};
use crate::metrics::Metric;
use crate::reply::Reply;
use crate::route::{Facts, Fixed, Redirect};
use crate::store::StoredHead;
use crate::transform::Negotiability;

/// The source of an answer's bytes.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// The store has all of them. Slices that it loses meanwhile are requested from upstream.
    Stored(&'a Arc<StoredHead>),
    /// A fill. The head record, if there is one, tells how to continue when the fill fails or has moved
    /// too far ahead of this client.
    Filling(&'a Filling, Option<&'a Arc<StoredHead>>),
    /// The store has some of them; the others are requested from upstream, beginning with the response
    /// in the cell.
    Parts(&'a Parts, &'a RefCell<Option<PartResponse>>),
}

impl Source<'_> {
    fn response(&self) -> &StoredResponse {
        match self {
            Self::Stored(head) => &head.response,
            Self::Filling(filling, _) => filling.response(),
            Self::Parts(parts, _) => &parts.head.response,
        }
    }

    fn complete_length(&self) -> Option<u64> {
        match self {
            Self::Stored(head) => Some(head.complete_length()),
            Self::Parts(parts, _) => Some(parts.head.complete_length()),
            Self::Filling(filling, _) => filling.response().complete_length,
        }
    }
}

impl Visit {
    /// A hit; `stale` is the reason if it is served stale. `None` if bytes are missing.
    pub(super) fn hit(
        &self,
        hash: KeyHash,
        head: &Arc<StoredHead>,
        stale: Option<Reason>,
    ) -> Option<Answered> {
        let freshness = &head.response.freshness;
        let age = freshness.age(self.context.received_at);
        let (reply, content) = self.stored_reply(head, age)?;
        if let Some(hits) = self.worker.note_hit(hash, head) {
            self.offer_hot_form(head, hits);
        }
        if head.is_copy() {
            self.worker.recorder.count(Metric::PeerCopyHits);
        }
        let silent = || self.worker.bus_silent.load(Ordering::Relaxed).then_some(Reason::BusSilent);
        let detail = stale.or_else(silent);
        let status = CacheStatus { detail, ..CacheStatus::hit(freshness.ttl_at(age)) };
        let mut answered = Answered::new(reply, status).of(content);
        if stale.is_some() && self.context.hop.is_some() {
            answered.facts.is_purged = self.worker.store.purge_verdict(head).is_some();
        }
        Some(answered)
    }

    /// The reply to this request from a stored response of this age: in the coding that is negotiated, if that is
    /// stored or the content is short. `None` if bytes are missing.
    pub(super) fn stored_reply(
        &self,
        head: &Arc<StoredHead>,
        age: Duration,
    ) -> Option<(Reply, Content)> {
        if head.response.form.is_some() {
            return Some((self.select_aged(Source::Stored(head), age)?, Content::Negotiated));
        }
        let is_fixed = self.negotiability(head) == Some(Negotiability::Fixed);
        let wanted = if is_fixed { None } else { self.wanted_form(head) };
        if let Some(coding) = wanted
            && cache::continuation(&head.response, &self.fields) != Continuation::Same
            && let Some(form) = self.form_now(head, coding)
            && let Some(reply) = self.select_aged(Source::Stored(&form), age)
        {
            return Some((reply, Content::Negotiated));
        }
        let ignores_range = || self.ignores_range(&head.response, Some(head.complete_length()));
        let reply = match wanted.is_some() && ignores_range() {
            true => self.without_range().select_aged(Source::Stored(head), age)?,
            false => self.select_aged(Source::Stored(head), age)?,
        };
        Some((reply, Content::Stored { head: head.clone(), wanted }))
    }

    /// The same request for the whole response.
    fn without_range(&self) -> Self {
        let mut fields = HeaderMap::clone(&self.fields);
        fields.remove(RANGE);
        Self { fields: Rc::new(fields), ..self.clone() }
    }

    /// The reply to this request from the response at the time `now`. `None` if bytes are missing.
    pub(super) fn select(&self, source: Source<'_>, now: SystemTime) -> Option<Reply> {
        let stored = source.response();
        let age = stored.freshness.age(now);
        match self.ignores_range(stored, source.complete_length()) {
            true => self.without_range().select_aged(source, age),
            false => self.select_aged(source, age),
        }
    }

    /// Whether the client gets the whole response although it asks for a range: it may have bytes of a form, which has
    /// the same date, or it does not accept the coding in which the response is stored.
    fn ignores_range(&self, stored: &StoredResponse, length: Option<u64>) -> bool {
        if !self.fields.contains_key(RANGE) {
            return false;
        }
        let continuation = cache::continuation(stored, &self.fields);
        continuation != Continuation::Same
            && self.recode_plan(stored, length).is_some_and(|plan| {
                continuation == Continuation::Unsure || plan.recoding.coding().is_none()
            })
    }

    pub(super) fn select_aged(&self, source: Source<'_>, age: Duration) -> Option<Reply> {
        let stored = source.response();
        let (method, fields) = (&self.context.request.method, &self.fields);
        let limits = &self.rule.settings.cache.ranges;
        let length = source.complete_length();
        let is_head = *method == Method::HEAD;
        let selected = match (cache::select(stored, method, fields, length, limits), source) {
            (Selected::Missing(_), _) if is_head => Selected::Full,
            // Upstream will provide the missing bytes: select as if all were stored.
            (Selected::Missing(_), Source::Parts(..)) => {
                let whole = StoredResponse { parts: None, ..stored.clone() };
                cache::select(&whole, method, fields, length, limits)
            }
            (Selected::Missing(_), _) => return None,
            (selected, _) => selected,
        };
        let (status, fields) = cache::answer(stored, &selected, length, age)?;
        let body = match selected {
            Selected::Full if !is_head => self.whole_body(source)?,
            Selected::Range { bytes, .. } => self.body_bytes(source, bytes)?,
            Selected::Multipart(plan) => self.multipart(source, *plan)?,
            _ => Body::Empty,
        };
        Some(Reply { status, received: stored.version, fields, body })
    }

    /// The whole body. `None` if bytes are missing, here and below.
    fn whole_body(&self, source: Source<'_>) -> Option<Body> {
        match source {
            Source::Filling(filling, head) => {
                let repair = head.map(|head| Repair::new(self, head));
                Some(RepairedBody::body(filling.read_all(), 0..u64::MAX, repair))
            }
            Source::Stored(head) => self.stored_bytes(head, 0..head.complete_length()),
            Source::Parts(parts, _) => self.body_bytes(source, 0..parts.head.complete_length()),
        }
    }

    fn body_bytes(&self, source: Source<'_>, range: Range<u64>) -> Option<Body> {
        match source {
            Source::Stored(head) => self.stored_bytes(head, range),
            Source::Filling(filling, head) => {
                let repair = head.map(|head| Repair::new(self, head));
                Some(RepairedBody::body(filling.read(range.clone()), range, repair))
            }
            Source::Parts(parts, first) => {
                Some(Body::stream(parts.clone().read(range, first.borrow_mut().take())))
            }
        }
    }

    fn stored_bytes(&self, head: &Arc<StoredHead>, range: Range<u64>) -> Option<Body> {
        if head.inline.is_some() {
            return head.inline_bytes(range).map(Body::from);
        }
        let store = &self.worker.store;
        if !store.missing(head, range.clone()).is_empty() {
            return None;
        }
        // The origin has no bytes of a form.
        let repair = head.response.form.is_none().then(|| Repair::new(self, head));
        Some(RepairedBody::body(store.body(head, range.clone()), range, repair))
    }

    /// A multipart body. All readers of a fill are opened now, so that none comes too late for its
    /// bytes; requests to upstream are sent one after the other.
    fn multipart(&self, source: Source<'_>, plan: Multipart) -> Option<Body> {
        let length = plan.content_length();
        let mut rest = VecDeque::with_capacity(2 * plan.parts.len() + 1);
        for (head, range) in plan.parts {
            rest.push_back(Link::Ready(Body::from(head)));
            rest.push_back(match source {
                Source::Parts(parts, first) => {
                    Link::Later(Box::new((parts.clone(), range, first.borrow_mut().take())))
                }
                Source::Stored(..) | Source::Filling(..) => {
                    Link::Ready(self.body_bytes(source, range)?)
                }
            });
        }
        rest.push_back(Link::Ready(Body::from(plan.tail)));
        Some(Body::stream(Chain { rest, length }))
    }
}

/// Adds the fields of the origin's response that go to this client only.
pub(super) fn add_unshared(reply: &mut Reply, unshared: &HeaderMap) {
    for (name, value) in unshared {
        reply.fields.append(name, value);
    }
}

/// Removes `Age` from an answer that comes directly from the origin. One of another cache keeps it, such as a hit of a peer
/// (RFC 9111 §5.1).
pub(super) fn remove_zero_age(reply: &mut Reply, facts: &ResponseFacts) {
    let is_of_cache = facts.upstream.as_ref().is_some_and(|upstream| upstream.has_age);
    if !is_of_cache && reply.fields.get(&AGE) == Some(b"0") {
        reply.fields.remove(&AGE);
    }
}

/// The reply of a rule that redirects.
pub(super) fn redirect(redirect: &Redirect, facts: &Facts<'_>) -> Reply {
    let mut reply = Reply::new(redirect.status);
    if let Some(location) = redirect.location.render_field(facts) {
        reply.fields.append(&LOCATION, &location);
    }
    reply
}

/// The reply of a rule with a fixed response.
pub(super) fn fixed(fixed: &Fixed) -> Reply {
    let mut reply = Reply::new(fixed.status);
    if !fixed.content.is_empty() {
        reply.fields.append(&CONTENT_TYPE, &fixed.content_type);
        reply.body = fixed.content.clone().into();
    }
    reply
}

/// A piece of a [`Chain`].
enum Link {
    Ready(Body),
    /// A range that is opened when its turn comes.
    Later(Box<(Parts, Range<u64>, Option<PartResponse>)>),
}

/// Bodies one after the other.
struct Chain {
    rest: VecDeque<Link>,
    /// The bytes that are still to come.
    length: u64,
}

impl BodySource for Chain {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        while let Some(link) = self.rest.front_mut() {
            let body = match link {
                Link::Ready(body) => body,
                Link::Later(_) => {
                    if let Some(Link::Later(later)) = self.rest.pop_front() {
                        let (parts, range, first) = *later;
                        let body = Body::stream(parts.read(range, first));
                        self.rest.push_front(Link::Ready(body));
                    }
                    continue;
                }
            };
            match std::task::ready!(body.poll_frame(cx)) {
                None => drop(self.rest.pop_front()),
                Some(frame) => {
                    let bytes = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                    self.length = self.length.saturating_sub(bytes as u64);
                    return Poll::Ready(Some(frame));
                }
            }
        }
        Poll::Ready(None)
    }

    fn exact_length(&self) -> Option<u64> {
        Some(self.length)
    }
}
