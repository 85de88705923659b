//! select: from a stored response, or one that is being filled, to what this request gets of it
//! (RFC 9110 §13, §14, §15).

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, LOCATION,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Visit;
use crate::body::{Body, BodyError};
use crate::cache::{self, CacheStatus, Multipart, Reason, Selected, StoredResponse};
use crate::fetch::fill::Filling;
use crate::route::{Facts, Fixed, Redirect};
use crate::store::{Head, Store};

/// Where the bytes of an answer come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Stored(&'a Store, &'a Arc<Head>),
    Filling(&'a Filling),
}

impl Source<'_> {
    fn response(&self) -> &StoredResponse {
        match self {
            Self::Stored(_, head) => &head.response,
            Self::Filling(filling) => filling.response(),
        }
    }

    fn complete_length(&self) -> Option<u64> {
        match self {
            Self::Stored(_, head) => Some(head.complete_length()),
            Self::Filling(filling) => filling.response().complete_length,
        }
    }

    fn whole(&self) -> Body {
        match self {
            Self::Stored(store, head) => stored_bytes(store, head, 0..head.complete_length()),
            Self::Filling(filling) => Body::stream(filling.read_all()),
        }
    }

    fn bytes(&self, range: Range<u64>) -> Body {
        match self {
            Self::Stored(store, head) => stored_bytes(store, head, range),
            Self::Filling(filling) => Body::stream(filling.read(range)),
        }
    }
}

fn stored_bytes(store: &Store, head: &Arc<Head>, range: Range<u64>) -> Body {
    match &head.inline {
        Some(body) => body.slice(range.start as usize..range.end as usize).into(),
        None => Body::stream(store.body(head, range)),
    }
}

impl Visit {
    /// A hit; `why` when it is served stale. `None` when bytes are missing.
    pub(super) fn hit(&mut self, head: &Arc<Head>, why: Option<Reason>) -> Option<Response<Body>> {
        let now = self.context.received_at;
        let ttl = head.response.freshness.ttl(now);
        let response = self.select(Source::Stored(&self.worker.store, head))?;
        self.context.cache_status = CacheStatus { detail: why, ..CacheStatus::hit(ttl) };
        Some(response)
    }

    /// The part of it that this request gets. `None` when bytes are missing.
    pub(super) fn select(&self, source: Source<'_>) -> Option<Response<Body>> {
        let stored = source.response();
        let age = stored.freshness.age(self.worker.clock.now());
        let (method, fields) = (&self.request.method, self.request_fields());
        let limits = &self.rule.settings.cache.ranges;
        let length = source.complete_length();
        let selected = cache::select(stored, method, fields, length, limits);
        if matches!(selected, Selected::Missing(_)) {
            return None;
        }
        let mut headers = cache::reuse_headers(stored, age);
        let is_head = *method == Method::HEAD;
        let (status, body) = match selected {
            Selected::Full => {
                if let Some(length) = length
                    && !headers.contains_key(CONTENT_LENGTH)
                    && allows_content(stored.status)
                {
                    headers.insert(CONTENT_LENGTH, length.into());
                }
                let status = whole_status(stored);
                (status, if is_head { Body::Empty } else { source.whole() })
            }
            Selected::NotModified => {
                without_content(&mut headers);
                (StatusCode::NOT_MODIFIED, Body::Empty)
            }
            Selected::PreconditionFailed => {
                without_content(&mut headers);
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                (StatusCode::PRECONDITION_FAILED, Body::Empty)
            }
            Selected::RangeNotSatisfiable { complete_length } => {
                without_content(&mut headers);
                headers.insert(CONTENT_RANGE, value(&format!("bytes */{complete_length}")));
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                (StatusCode::RANGE_NOT_SATISFIABLE, Body::Empty)
            }
            Selected::Range { bytes, complete_length } => {
                let range = format!("bytes {}-{}/{complete_length}", bytes.start, bytes.end - 1);
                headers.insert(CONTENT_RANGE, value(&range));
                headers.insert(CONTENT_LENGTH, (bytes.end - bytes.start).into());
                (StatusCode::PARTIAL_CONTENT, source.bytes(bytes))
            }
            Selected::Multipart(plan) => {
                let kind = format!("multipart/byteranges; boundary={}", plan.boundary);
                headers.insert(CONTENT_TYPE, value(&kind));
                headers.insert(CONTENT_LENGTH, plan.content_length().into());
                (StatusCode::PARTIAL_CONTENT, multipart(source, *plan))
            }
            Selected::Missing(_) => return None,
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Some(response)
    }
}

/// A 206 that has become whole answers as the 200 that it is a part of.
fn whole_status(stored: &StoredResponse) -> StatusCode {
    match stored.status {
        StatusCode::PARTIAL_CONTENT => StatusCode::OK,
        status => status,
    }
}

/// RFC 9110 §8.6: no `Content-Length` with 204.
fn allows_content(status: StatusCode) -> bool {
    status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// Takes out the fields that describe content which is not sent (RFC 9110 §15.4.5).
fn without_content(headers: &mut HeaderMap) {
    for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, ACCEPT_RANGES] {
        headers.remove(name);
    }
}

/// Takes `Age` from an answer that comes straight from the origin.
pub(super) fn first_hand(response: &mut Response<Body>) {
    if response.headers().get(AGE).is_some_and(|age| age == "0") {
        response.headers_mut().remove(AGE);
    }
}

pub(super) fn redirect(redirect: &Redirect, facts: &Facts<'_>) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = redirect.status;
    if let Some(location) = redirect.location.render_field(facts) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

pub(super) fn fixed(fixed: &Fixed) -> Response<Body> {
    let mut response = Response::new(Body::from(fixed.content.clone()));
    *response.status_mut() = fixed.status;
    if !fixed.content.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, fixed.content_type.clone());
    }
    response
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits, spaces and token characters")
}

/// The parts one after the other, each with its own head.
fn multipart(source: Source<'_>, plan: Multipart) -> Body {
    let length = plan.content_length();
    let mut rest = VecDeque::with_capacity(2 * plan.parts.len() + 1);
    for (head, range) in plan.parts {
        rest.push_back(Body::from(head));
        rest.push_back(source.bytes(range));
    }
    rest.push_back(Body::from(plan.tail));
    Body::stream(Chain { rest, length })
}

struct Chain {
    rest: VecDeque<Body>,
    length: u64,
}

impl HttpBody for Chain {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        while let Some(first) = this.rest.front_mut() {
            match std::task::ready!(Pin::new(first).poll_frame(cx)) {
                None => drop(this.rest.pop_front()),
                Some(frame) => {
                    let bytes = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                    this.length = this.length.saturating_sub(bytes as u64);
                    return Poll::Ready(Some(frame));
                }
            }
        }
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
