//! Ranges of long objects: what is not stored is fetched in whole slices, and no more of it
//! than what is asked for (RFC 9110 §14; RFC 9111 §3.3, §3.4).
//!
//! ```text
//! nothing stored, Range ─▶ lead: sub-request ─┬ 206, a part   ─▶ partial object ─▶ parts
//!                                             ├ 206, all of it ─▶ fill, as a 200
//!                                             ├ 206, unusable  ─▶ asked again in whole ─▶ fill
//!                                             └ 200, others    ─▶ as without ranges
//! nothing stored, the last bytes ─▶ asked for as they are ─┬ of a long object, bound ─▶ parts
//!                                                         └ others ─▶ stored apart, passed on
//! stored, bytes missing ─▶ begin ─┬ the first byte can be had ─▶ parts
//!                                 └ changed at the origin     ─▶ fetched like nothing stored
//! being filled, far behind ─▶ begin, of the same object ─▶ parts
//! ```
//!
//! What is planned, and which answer is good for what, is decided in [`crate::fill::slices`].

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;

use super::Visit;
use super::answer::{Source, first_hand};
use super::exchange::Job;
use super::lookup::Found;
use crate::body::Body;
use crate::cache::range::{RangeLimits, RangeSpec, Requested, parse_specs, requested};
use crate::cache::{self, CacheStatus, Reason, Selected, StoredResponse};
use crate::fields::Fields;
use crate::fill::Filling;
use crate::fill::collapse::FillFailure;
use crate::fill::parts::{Ask, First, Parts, Refused};
use crate::fill::slices::{
    PartAnswer, Validator, ask_for, ask_for_last, is_conditional, judge, judge_last,
};
use crate::reply::Reply;
use crate::respond::Failure;
use crate::store::Head;
use crate::upstream::{Unanswered, UpstreamResponse};

/// What all sub-requests for parts of an object have in common.
#[derive(Clone)]
pub(super) struct Sought {
    uri: Uri,
    headers: HeaderMap,
}

impl Sought {
    pub(super) fn request(
        &self,
        range: Option<&Range<u64>>,
        bound: Option<&Validator>,
    ) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(range) = range {
            ask_for(range, bound, request.headers_mut());
        }
        request
    }
}

/// A range of an object of which nothing is stored: what to ask for first.
#[derive(Clone)]
pub(super) struct Asked {
    pub begin: Begin,
    pub sought: Rc<Sought>,
}

/// What a sub-request begins with.
#[derive(Clone)]
pub(super) enum Begin {
    /// Whole slices.
    Slices(Range<u64>),
    /// So many bytes at the end: in which slices they are is not known.
    Last(u64),
}

impl Asked {
    pub(super) fn is_for_the_last(&self) -> bool {
        matches!(self.begin, Begin::Last(_))
    }

    /// Makes the sub-request of a request for the whole.
    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        match &self.begin {
            Begin::Slices(range) => ask_for(range, None, headers),
            Begin::Last(count) => ask_for_last(*count, headers),
        }
    }
}

impl Visit {
    /// The request asks for a range: what to begin with.
    pub(super) fn asked_range(&self) -> Option<Asked> {
        let text = self.fields.get(RANGE).filter(|_| self.context.asked.method == Method::GET);
        let ranges_max = self.rule.settings.cache.ranges.ranges_max;
        let specs = parse_specs(text?.as_bytes(), ranges_max)?;
        let begin = match *specs {
            // Conditions are judged here, by a response that is stored.
            [RangeSpec::Last(count)] if count > 0 && !is_conditional(&self.fields) => {
                Begin::Last(count)
            }
            _ => {
                let (start, end) = specs.into_iter().map(reach).min()?;
                Begin::Slices(self.worker.fills.first_asked(start, end))
            }
        };
        Some(Asked { begin, sought: self.sought() })
    }

    /// Whether what is stored is of use: a part that is stored apart answers a range that lies in
    /// it, and nothing else.
    pub(super) fn is_enough(&self, head: &Head) -> bool {
        is_enough(head, &self.context.asked.method, &self.fields, &self.rule.settings.cache.ranges)
    }

    pub(super) fn sought(&self) -> Rc<Sought> {
        let (parts, _) = self.fill_request(None).into_parts();
        Rc::new(Sought { uri: parts.uri, headers: parts.headers })
    }

    /// How the bytes of `head` that are not stored can be had. `None` when it lies in one
    /// piece, or has no strong validator.
    pub(super) fn parts(&self, found: &Found, head: &Arc<Head>) -> Option<Parts> {
        if head.inline.is_some() {
            return None;
        }
        let job = self.job(&Found { head: None, ..found.clone() }).ok()?;
        job.parts(head.clone(), self.sought())
    }

    /// Answers with what is stored and, for what is not, by way of upstream. `None` when the
    /// object has changed at the origin, or can't be had in parts.
    pub(super) async fn answer_in_parts(
        &mut self,
        found: &Found,
        head: &Arc<Head>,
    ) -> Result<Option<Reply>, Failure> {
        let Some(parts) = self.parts(found, head) else { return Ok(None) };
        match parts.begin(self.first_wanted(head)).await {
            Ok(first) => Ok(self.parts_answer(&parts, first)),
            Err(Refused::Changed) => Ok(None),
            Err(Refused::Failed(why)) => {
                self.context.cache_status = CacheStatus::forwarded(Reason::BytesMissing);
                self.without_upstream(found, &FillFailure::Upstream(why)).map(Some)
            }
        }
    }

    /// How the bytes can be had for which the fill is of no use to this client.
    pub(super) fn parts_of(&self, filling: &Filling) -> Option<Parts> {
        self.parts(&Found::unknown(self.target()), &filling.head()?)
    }

    /// Answers with a range that begins so far ahead of what the fill has that its client would
    /// wait for long. `None` when it had better wait: the range is near, or can't be had.
    pub(super) async fn answer_ahead(&mut self, filling: &Filling, parts: &Parts) -> Option<Reply> {
        let wanted = self.first_wanted(&parts.head);
        let ranges = parts.head.response.headers.get(&ACCEPT_RANGES);
        if !filling.is_far_from(wanted.start) || ranges.is_none_or(|unit| unit != b"bytes") {
            return None;
        }
        let first = parts.begin(wanted).await.ok()?;
        self.parts_answer(parts, first)
    }

    fn parts_answer(&mut self, parts: &Parts, first: Option<First>) -> Option<Reply> {
        let ttl = parts.head.response.freshness.ttl(self.context.received_at);
        self.context.cache_status = CacheStatus {
            ttl: Some(ttl),
            stored: true,
            // What it waited for came by another request.
            collapsed: first.is_none(),
            ..CacheStatus::forwarded(Reason::BytesMissing)
        };
        self.select(Source::Parts(parts, &RefCell::new(first)), self.worker.clock.now())
    }

    /// The answer to the request that made an object known in part.
    pub(super) fn first_part(&mut self, parts: &Parts, first: First) -> Option<Reply> {
        let ttl = parts.head.response.freshness.ttl(self.worker.clock.now());
        let status = &mut self.context.cache_status;
        (status.stored, status.ttl) = (true, Some(ttl));
        let mut response =
            self.select(Source::Parts(parts, &RefCell::new(Some(first))), self.worker.clock.now())?;
        first_hand(&mut response);
        Some(response)
    }

    /// The first bytes of `head` that this request wants, conditions aside.
    fn first_wanted(&self, head: &Head) -> Range<u64> {
        let whole = 0..head.complete_length();
        let Some(text) = self.fields.get(RANGE) else { return whole };
        let limits = &self.rule.settings.cache.ranges;
        match requested(text.as_bytes(), head.complete_length(), limits) {
            Requested::Ranges(ranges) => ranges.into_iter().next().unwrap_or(whole),
            Requested::Whole | Requested::Unsatisfiable => whole,
        }
    }
}

impl Job {
    /// What of `head` is not stored is asked for with this job.
    pub(super) fn parts(self, head: Arc<Head>, sought: Rc<Sought>) -> Option<Parts> {
        let bound = Validator::of(&head.response.headers)?;
        let (store, fills) = (self.worker.store.clone(), self.worker.fills.clone());
        let job = Rc::new(self);
        let ask: Ask = Rc::new(move |range| {
            let (job, sought, bound) = (job.clone(), sought.clone(), bound.clone());
            let request = move || sought.request(Some(&range), Some(&bound));
            Box::pin(async move { Ok(job.send(request).await?.response) })
        });
        Parts::new(&store, &fills, head, ask)
    }

    /// Judges the answer to a first sub-request. A part of an object that can be stored in
    /// parts comes back as the head of the whole, with the bytes that its body has; what can't
    /// is asked for again in whole.
    pub(super) async fn open(
        &self,
        mut upstream: UpstreamResponse,
    ) -> Result<(UpstreamResponse, Option<Range<u64>>), Box<Unanswered>> {
        let Some(asked) = &self.asked else { return Ok((upstream, None)) };
        let (status, headers) = (upstream.response.status(), upstream.response.headers());
        if status != StatusCode::PARTIAL_CONTENT {
            return Ok((upstream, None));
        }
        let is_bound = Validator::of(headers).is_some();
        let part = match &asked.begin {
            Begin::Slices(range) => match judge(range, None, None, status, headers) {
                PartAnswer::Part { bytes, complete_length: Some(length) } => Some((bytes, length)),
                _ => None,
            },
            // What is too short for slices is stored apart.
            Begin::Last(count) => judge_last(*count, headers).filter(|(bytes, length)| {
                *bytes == (0..*length) || *length > self.worker.store.slice_bytes()
            }),
        };
        if let Some((bytes, length)) = part {
            let is_whole = bytes == (0..length);
            if is_whole || is_bound {
                as_whole(&mut upstream.response, length);
                return Ok((upstream, (!is_whole).then_some(bytes)));
            }
        }
        match &asked.begin {
            Begin::Slices(_) => Ok((self.send(|| asked.sought.request(None, None)).await?, None)),
            // It is what the client asked for, whatever else it is good for.
            Begin::Last(_) => Ok((upstream, None)),
        }
    }

    /// Stores a part apart, once all of it has come. `None` when it breaks off.
    pub(super) async fn keep_apart(&self, stored: StoredResponse, mut body: Body) -> Option<Bytes> {
        let announced = stored.parts.as_deref()?.first().map(|part| part.end - part.start)?;
        let mut bytes = BytesMut::with_capacity(announced as usize);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.ok()?.into_data() else { continue };
            if (bytes.len() + data.len()) as u64 > announced {
                return None;
            }
            bytes.extend_from_slice(&data);
        }
        if bytes.len() as u64 != announced {
            return None;
        }
        let bytes = bytes.freeze();
        let head = self.worker.store.put_apart(stored, &bytes);
        self.note_variant(&head.response).await;
        Some(bytes)
    }

    /// Makes an object known of which these bytes are coming. `None` when it can't be stored
    /// in parts.
    pub(super) async fn begin_parts(
        self,
        stored: StoredResponse,
        bytes: Range<u64>,
        body: Body,
    ) -> Option<(Parts, First)> {
        let sought = self.asked.as_ref()?.sought.clone();
        let head = self.worker.store.partial_to_be(stored).ok()?;
        let parts = self.clone().parts(head.clone(), sought)?;
        let first = parts.first(bytes, body);
        // Now: who finds it before those bytes are claimed asks for them as well.
        self.worker.store.show(&head);
        self.note_variant(&head.response).await;
        Some((parts, first))
    }
}

/// See [`Visit::is_enough`].
pub(super) fn is_enough(
    head: &Head,
    method: &Method,
    fields: &HeaderMap,
    limits: &RangeLimits,
) -> bool {
    if !head.is_apart() {
        return true;
    }
    let length = Some(head.complete_length());
    matches!(
        cache::select(&head.response, method, fields, length, limits),
        Selected::Range { .. } | Selected::NotModified
    )
}

/// From which byte to which a member of `Range` reaches, of an unknown length: the end of it is
/// known when its beginning is.
fn reach(spec: RangeSpec) -> (u64, u64) {
    match spec {
        RangeSpec::From(first, last) => {
            (first, last.map_or(u64::MAX, |last| last.saturating_add(1)))
        }
        RangeSpec::Last(_) => (0, 1),
    }
}

/// The head of the whole, from that of a part of it.
fn as_whole(response: &mut Response<Body>, length: u64) {
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().remove(CONTENT_RANGE);
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sub_request_begins_with_the_first_range() {
        let first = |text: &str| {
            parse_specs(text.as_bytes(), 10).and_then(|specs| specs.into_iter().map(reach).min())
        };
        assert_eq!(first("bytes=500-599"), Some((500, 600)));
        assert_eq!(first("bytes=500-"), Some((500, u64::MAX)));
        assert_eq!(first("bytes=-500"), Some((0, 1)), "the length must be known first");
        assert_eq!(first("bytes=500-599,10-19,700-"), Some((10, 20)));
        assert_eq!(first("pages=1-2"), None);
    }
}
