//! select: from a stored response, or one that is being filled, to what this request gets of it
//! (RFC 9110 §13, §14, §15).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Method;
use http::header::{AGE, CONTENT_TYPE, LOCATION};
use http_body::Frame;

use super::Visit;
use super::lookup::Found;
use super::repaired_body::RepairedBody;
use crate::body::{Body, BodySource, PollFrame};
use crate::cache::{self, CacheStatus, Multipart, Reason, Selected, StoredResponse};
use crate::fields::{Fields, FieldsMut};
use crate::fill::Filling;
use crate::fill::parts::{First, Parts};
use crate::reply::Reply;
use crate::route::{Facts, Fixed, Redirect};
use crate::store::{Head, Store};

/// Where the bytes of an answer come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// The third: where slices come from that the store loses meanwhile.
    Stored(&'a Store, &'a Arc<Head>, Option<&'a Parts>),
    /// And how to go on where the fill is of no use.
    Filling(&'a Filling, Option<&'a Parts>),
    /// Not all of it is stored; some may be coming.
    Parts(&'a Parts, &'a RefCell<Option<First>>),
}

impl Source<'_> {
    fn response(&self) -> &StoredResponse {
        match self {
            Self::Stored(_, head, _) => &head.response,
            Self::Filling(filling, _) => filling.response(),
            Self::Parts(parts, _) => &parts.head.response,
        }
    }

    fn complete_length(&self) -> Option<u64> {
        match self {
            Self::Stored(_, head, _) => Some(head.complete_length()),
            Self::Parts(parts, _) => Some(parts.head.complete_length()),
            Self::Filling(filling, _) => filling.response().complete_length,
        }
    }

    /// `None` when bytes are missing, here and below.
    fn whole(&self) -> Option<Body> {
        match self {
            Self::Filling(filling, mend) => {
                Some(RepairedBody::body(filling.read_all(), 0..u64::MAX, *mend))
            }
            Self::Stored(..) | Self::Parts(..) => {
                self.bytes(0..self.complete_length().unwrap_or_default())
            }
        }
    }

    fn bytes(&self, range: Range<u64>) -> Option<Body> {
        match self {
            Self::Stored(store, head, mend) => stored_bytes(store, head, *mend, range),
            Self::Filling(filling, mend) => {
                Some(RepairedBody::body(filling.read(range.clone()), range, *mend))
            }
            Self::Parts(parts, first) => {
                Some(Body::stream((*parts).clone().read(range, first.borrow_mut().take())))
            }
        }
    }
}

fn stored_bytes(
    store: &Store,
    head: &Arc<Head>,
    mend: Option<&Parts>,
    range: Range<u64>,
) -> Option<Body> {
    if head.inline.is_some() {
        return head.inline_bytes(range).map(Body::from);
    }
    if !store.missing(head, range.clone()).is_empty() {
        return None;
    }
    Some(RepairedBody::body(store.body(head, range.clone()), range, mend))
}

impl Visit {
    /// A hit; `why` when it is served stale. `None` when bytes are missing.
    pub(super) fn hit(
        &mut self,
        found: &Found,
        head: &Arc<Head>,
        why: Option<Reason>,
    ) -> Option<Reply> {
        let freshness = &head.response.freshness;
        let age = freshness.age(self.context.received_at);
        let mend = self.parts(found, head);
        let source = Source::Stored(&self.worker.store, head, mend.as_ref());
        let response = self.select_aged(source, age)?;
        self.worker.note_hit(found.hash, head);
        let silent = || self.worker.bus_silent.load(Ordering::Relaxed).then_some(Reason::BusSilent);
        let detail = why.or_else(silent);
        self.context.cache_status =
            CacheStatus { detail, ..CacheStatus::hit(freshness.ttl_at(age)) };
        Some(response)
    }

    /// The part of it that this request gets at `now`. `None` when bytes are missing.
    pub(super) fn select(&self, source: Source<'_>, now: SystemTime) -> Option<Reply> {
        let age = source.response().freshness.age(now);
        self.select_aged(source, age)
    }

    fn select_aged(&self, source: Source<'_>, age: Duration) -> Option<Reply> {
        let stored = source.response();
        let (method, fields) = (&self.context.asked.method, &self.fields);
        let limits = &self.rule.settings.cache.ranges;
        let length = source.complete_length();
        let is_head = *method == Method::HEAD;
        let selected = match (cache::select(stored, method, fields, length, limits), source) {
            (Selected::Missing(_), _) if is_head => Selected::Full,
            // What is missing comes.
            (Selected::Missing(_), Source::Parts(..)) => {
                let whole = StoredResponse { parts: None, ..stored.clone() };
                cache::select(&whole, method, fields, length, limits)
            }
            (Selected::Missing(_), _) => return None,
            (selected, _) => selected,
        };
        let (status, fields) = cache::answer(stored, &selected, length, age)?;
        let body = match selected {
            Selected::Full if !is_head => source.whole()?,
            Selected::Range { bytes, .. } => source.bytes(bytes)?,
            Selected::Multipart(plan) => multipart(source, *plan)?,
            _ => Body::Empty,
        };
        Some(Reply { status, received: stored.version, fields, body })
    }
}

/// Takes `Age` from an answer that comes straight from the origin.
pub(super) fn first_hand(response: &mut Reply) {
    if response.fields.get(&AGE) == Some(b"0") {
        response.fields.remove(&AGE);
    }
}

pub(super) fn redirect(redirect: &Redirect, facts: &Facts<'_>) -> Reply {
    let mut response = Reply::new(redirect.status);
    if let Some(location) = redirect.location.render_field(facts) {
        response.fields.append(&LOCATION, &location);
    }
    response
}

pub(super) fn fixed(fixed: &Fixed) -> Reply {
    let mut response = Reply::new(fixed.status);
    if !fixed.content.is_empty() {
        response.fields.append(&CONTENT_TYPE, &fixed.content_type);
        response.body = fixed.content.clone().into();
    }
    response
}

/// The parts one after the other, each with its own head. A fill's readers are all made now,
/// so that none is given up for lack of one; what is asked of upstream is asked in its turn.
fn multipart(source: Source<'_>, plan: Multipart) -> Option<Body> {
    let length = plan.content_length();
    let mut rest = VecDeque::with_capacity(2 * plan.parts.len() + 1);
    for (head, range) in plan.parts {
        rest.push_back(Link::Ready(Body::from(head)));
        rest.push_back(match source {
            Source::Parts(parts, first) => {
                Link::Later(Box::new((parts.clone(), range, first.borrow_mut().take())))
            }
            Source::Stored(..) | Source::Filling(..) => Link::Ready(source.bytes(range)?),
        });
    }
    rest.push_back(Link::Ready(Body::from(plan.tail)));
    Some(Body::stream(Chain { rest, length }))
}

enum Link {
    Ready(Body),
    Later(Box<(Parts, Range<u64>, Option<First>)>),
}

struct Chain {
    rest: VecDeque<Link>,
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
