//! Ranges of long objects: missing bytes are fetched in whole slices, and only those slices that the
//! request needs (RFC 9110 §14; RFC 9111 §3.3, §3.4).
//!
//! ```text
//! nothing stored, Range ─▶ lead: range request ─┬ 206, a part      ─▶ partial object ─▶ parts
//!                                               ├ 206, the whole   ─▶ fill, as a 200
//!                                               ├ 206, unusable    ─▶ request without Range ─▶ fill
//!                                               └ 200, others      ─▶ as without Range
//! nothing stored, suffix range ─▶ sent as it is ─┬ long object, strong validator ─▶ parts
//!                                                └ others ─▶ the part stored on its own
//! stored, bytes missing ─▶ range request ─┬ 206, same version ─▶ parts
//!                                         ├ changed           ─▶ fetch as if nothing were stored
//!                                         └ 404, 302, others  ─▶ forwarded as it is
//! being filled, far behind ─▶ range request for the same version ─▶ parts
//! ```
//!
//! [`crate::fill::slices`] plans the range requests and judges their responses.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;

use super::Visit;
use super::answer::{Source, remove_zero_age};
use super::exchange::Job;
use super::lookup::LookupResult;
use super::outcome::{Answered, PathError, facts_of};
use super::pass::IDENTITY;
use super::region::asking::Received;
use crate::body::Body;
use crate::cache::fields::DIGESTS_OF_CONTENT;
use crate::cache::range::{RangeSpec, Requested, parse_specs, requested};
use crate::cache::{CacheKey, CacheStatus, Reason, StoredResponse};
use crate::context::ResponseFacts;
use crate::fields::Fields;
use crate::fields::ranges::{
    PartAnswer, Validator, ask_for, ask_for_last, is_conditional, judge, judge_last,
};
use crate::fill::Filling;
use crate::fill::collapse::FillFailure;
use crate::fill::parts::{PartError, PartResponse, Parts, SendSubrequest};
use crate::store::{NewVariant, StoredHead};
use crate::upstream::Unanswered;

/// The target and fields that all range requests for an object have in common.
#[derive(Clone)]
pub(super) struct RangeRequestBase {
    uri: Uri,
    headers: HeaderMap,
}

impl RangeRequestBase {
    /// The request for `range`, or for the whole object. `bound` makes it conditional on the version.
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

/// The first range request for an object of which nothing is stored.
#[derive(Clone)]
pub(super) struct FirstRange {
    pub bytes: FirstBytes,
    pub base: Rc<RangeRequestBase>,
}

/// The bytes of a [`FirstRange`].
#[derive(Clone)]
pub(super) enum FirstBytes {
    /// These bytes, in whole slices.
    Slices(Range<u64>),
    /// The last bytes, this many. The slices that contain them are not known.
    Suffix(u64),
}

impl FirstRange {
    pub(super) fn is_suffix(&self) -> bool {
        matches!(self.bytes, FirstBytes::Suffix(_))
    }

    /// Turns a request for the whole object into this range request.
    pub(super) fn set_range(&self, headers: &mut HeaderMap) {
        headers.insert(ACCEPT_ENCODING, IDENTITY);
        match &self.bytes {
            FirstBytes::Slices(range) => ask_for(range, None, headers),
            FirstBytes::Suffix(count) => ask_for_last(*count, headers),
        }
    }
}

impl Visit {
    /// The first range request to send if nothing is stored. `None` if the request has no usable
    /// `Range`.
    pub(super) fn first_range(&self) -> Option<FirstRange> {
        let is_get = self.context.request.method == Method::GET;
        let text = self.fields.get(RANGE).filter(|_| is_get);
        let ranges_max = self.rule.settings.cache.ranges.ranges_max;
        let specs = parse_specs(text?.as_bytes(), ranges_max)?;
        let bytes = match *specs {
            // A condition is evaluated here, against a stored response.
            [RangeSpec::Last(count)] if count > 0 && !is_conditional(&self.fields) => {
                FirstBytes::Suffix(count)
            }
            _ => {
                let (start, end) = specs.into_iter().map(reach).min()?;
                FirstBytes::Slices(self.worker.fills.first_range_to_request(start, end))
            }
        };
        Some(FirstRange { bytes, base: self.range_request_base(IDENTITY) })
    }

    /// `coding`: of the object whose ranges are requested.
    fn range_request_base(&self, coding: HeaderValue) -> Rc<RangeRequestBase> {
        let (mut parts, _) = self.fill_request(None).into_parts();
        parts.headers.insert(ACCEPT_ENCODING, coding);
        Rc::new(RangeRequestBase { uri: parts.uri, headers: parts.headers })
    }

    /// Access to all bytes of `head`, stored or not. `None` if they cannot be fetched in parts: see
    /// [`can_be_fetched_in_parts`].
    pub(super) fn parts(&self, head: &Arc<StoredHead>) -> Option<Parts> {
        if !can_be_fetched_in_parts(head) {
            return None;
        }
        let key = CacheKey::new(head.response.key.clone());
        let hop = self.shield_hop(&key);
        let found = LookupResult::none(key, Reason::BytesMissing);
        let job = Job { hop, ..self.job(&found).ok()? };
        let coding = head.response.headers.values(&CONTENT_ENCODING).next().unwrap_or(IDENTITY);
        job.parts(head.clone(), self.range_request_base(coding))
    }

    /// Answers with the stored bytes of `found.head`, and fetches the others. `None` if the object has
    /// changed at the origin or cannot be fetched in parts.
    pub(super) async fn fill_gaps(
        &self,
        found: &LookupResult,
    ) -> Result<Option<Answered>, Box<PathError>> {
        let Some(head) = &found.head else { return Ok(None) };
        match self.open_gaps(head).await {
            Gaps::Open(parts, first) => Ok(self.answer_in_parts(&parts, *first)),
            Gaps::Changed => Ok(None),
            Gaps::Declined => self.forward_declined(found).await.map(Some),
            Gaps::Failed(failure) => {
                let facts = facts_of(CacheStatus::forwarded(Reason::BytesMissing));
                self.without_upstream(found, &failure, facts).map(Some)
            }
        }
    }

    /// Passes on the answer of upstream to the request itself: it has declined to send the missing bytes. The stored bytes stay.
    pub(super) async fn forward_declined(
        &self,
        found: &LookupResult,
    ) -> Result<Answered, Box<PathError>> {
        let alone = LookupResult { head: None, ..found.clone() };
        self.forward_alone(Reason::BytesMissing, alone).await
    }

    /// Requests the first missing bytes that this request needs of `head`, before anything is
    /// promised to the client.
    pub(super) async fn open_gaps(&self, head: &Arc<StoredHead>) -> Gaps {
        let Some(parts) = self.parts(head) else { return Gaps::Changed };
        match parts.begin(self.first_wanted(head)).await {
            Ok(first) => Gaps::Open(parts, Box::new(first)),
            Err(PartError::Changed) => Gaps::Changed,
            Err(PartError::Declined(_)) => Gaps::Declined,
            Err(PartError::Failed(failure)) => Gaps::Failed(failure),
        }
    }

    /// Answers a range that begins so far ahead of the fill that its client would wait for long, with a
    /// range request of its own. `None` if waiting is better: the range is near, or the origin does not
    /// support ranges.
    pub(super) async fn answer_ahead(
        &self,
        filling: &Filling,
        head: &Arc<StoredHead>,
    ) -> Option<Answered> {
        let wanted = self.first_wanted(head);
        let ranges = head.response.headers.get(&ACCEPT_RANGES);
        if !filling.is_far_from(wanted.start) || ranges.is_none_or(|unit| unit != b"bytes") {
            return None;
        }
        let parts = self.parts(head)?;
        let first = parts.begin(wanted).await.ok()?;
        self.answer_in_parts(&parts, first)
    }

    /// Answers from the store and from upstream, beginning with the response `first`.
    pub(super) fn answer_in_parts(
        &self,
        parts: &Parts,
        first: Option<PartResponse>,
    ) -> Option<Answered> {
        let ttl = parts.head.response.freshness.ttl(self.context.received_at);
        let status = CacheStatus {
            ttl: Some(ttl),
            stored: true,
            // Without a response of its own the request waited for another one's.
            collapsed: first.is_none(),
            ..CacheStatus::forwarded(Reason::BytesMissing)
        };
        let source = Source::Parts(parts, &RefCell::new(first));
        let reply = self.select(source, self.worker.clock.now())?;
        Some(Answered::new(reply, status))
    }

    /// The answer to the request whose range request created a partial object.
    pub(super) fn answer_with_first_part(
        &self,
        parts: &Parts,
        first: PartResponse,
        facts: ResponseFacts,
    ) -> Result<Answered, ResponseFacts> {
        let now = self.worker.clock.now();
        let ttl = Some(parts.head.response.freshness.ttl(now));
        let facts = facts.with_status(|status| CacheStatus { stored: true, ttl, ..status });
        match self.select(Source::Parts(parts, &RefCell::new(Some(first))), now) {
            Some(mut reply) => {
                remove_zero_age(&mut reply, &facts);
                Ok(facts.answer(reply))
            }
            None => Err(facts),
        }
    }

    /// The first bytes of `head` that this request needs, if its conditions hold.
    fn first_wanted(&self, head: &StoredHead) -> Range<u64> {
        let whole = 0..head.complete_length();
        let Some(text) = self.fields.get(RANGE) else { return whole };
        let limits = &self.rule.settings.cache.ranges;
        match requested(text.as_bytes(), head.complete_length(), limits) {
            Requested::Ranges(ranges) => ranges.into_iter().next().unwrap_or(whole),
            Requested::Whole | Requested::Unsatisfiable => whole,
        }
    }
}

/// The outcome of [`Visit::open_gaps`].
pub(super) enum Gaps {
    /// The missing bytes can be fetched, beginning with this response. `None`: another request has
    /// fetched them meanwhile.
    Open(Parts, Box<Option<PartResponse>>),
    /// The object has changed at the origin or cannot be fetched in parts.
    Changed,
    /// Upstream answers with something else than these bytes, such as 404: the client gets that for its own request.
    Declined,
    /// Upstream did not provide the bytes.
    Failed(FillFailure),
}

impl Job {
    /// Access to all bytes of `head`; this job requests those that are not stored.
    fn parts(self, head: Arc<StoredHead>, base: Rc<RangeRequestBase>) -> Option<Parts> {
        let bound = Validator::of(&head.response.headers)?;
        let (store, fills) = (self.worker.store.clone(), self.worker.fills.clone());
        let job = Rc::new(self);
        let ask: SendSubrequest = Rc::new(move |range| {
            let (job, base, bound) = (job.clone(), base.clone(), bound.clone());
            let request = move || base.request(Some(&range), Some(&bound));
            Box::pin(async move { Ok(job.send(request).await?.upstream.response) })
        });
        Parts::new(&store, &fills, head, ask)
    }

    /// Judges the response to a [`FirstRange`]. For a part of an object that can be stored in parts,
    /// returns the header section of the whole and the range of bytes that the body has. Sends a
    /// request for the whole object if the part cannot be used.
    pub(super) async fn open(
        &self,
        mut received: Received,
    ) -> Result<(Received, Option<Range<u64>>), Box<Unanswered>> {
        let Some(first_range) = &self.first_range else { return Ok((received, None)) };
        let response = &mut received.upstream.response;
        let status = response.status();
        let headers = response.headers_mut();
        if status != StatusCode::PARTIAL_CONTENT {
            return Ok((received, None));
        }
        let is_bound = Validator::of(headers).is_some();
        let part = match &first_range.bytes {
            FirstBytes::Slices(range) => match judge(range, None, None, status, headers) {
                PartAnswer::Part { bytes, complete_length: Some(length) } => Some((bytes, length)),
                _ => None,
            },
            // A part of an object too short for slices is stored on its own.
            FirstBytes::Suffix(count) => judge_last(*count, headers).filter(|(bytes, length)| {
                *bytes == (0..*length) || *length > self.worker.store.slice_bytes()
            }),
        };
        if let Some((bytes, length)) = part {
            let is_whole = bytes == (0..length);
            if is_whole || is_bound {
                if !is_whole {
                    DIGESTS_OF_CONTENT.iter().for_each(|name| _ = headers.remove(name));
                }
                as_whole(response, length);
                return Ok((received, (!is_whole).then_some(bytes)));
            }
        }
        match &first_range.bytes {
            FirstBytes::Slices(_) => {
                Ok((self.send(|| first_range.base.request(None, None)).await?, None))
            }
            // The response answers the client's request, whether or not it can be stored.
            FirstBytes::Suffix(_) => Ok((received, None)),
        }
    }

    /// Reads a part to its end and stores it on its own. `None` if its body is incomplete.
    pub(super) async fn store_part(&self, stored: StoredResponse, mut body: Body) -> Option<Bytes> {
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
        self.add_variant(&head.response, NewVariant::Own).await;
        Some(bytes)
    }

    /// Creates a partial object, of which `body` has these bytes. `None` if the response cannot be
    /// stored in parts.
    pub(super) async fn create_partial_object(
        self,
        stored: StoredResponse,
        bytes: Range<u64>,
        body: Body,
    ) -> Option<(Parts, PartResponse)> {
        let base = self.first_range.as_ref()?.base.clone();
        let head = self.worker.store.partial_to_be(stored).ok()?;
        let parts = self.clone().parts(head.clone(), base)?;
        let first = parts.first(bytes, body);
        // Only now: a request that finds the object before these bytes are claimed requests them too.
        self.worker.store.show(&head);
        self.add_variant(&head.response, NewVariant::Own).await;
        Some((parts, first))
    }
}

/// Whether missing bytes of a stored response can be fetched by range: it is stored in slices, has a strong validator that
/// proves that they are of the same version, and a status that origins send ranges of (RFC 9110 §14.2).
pub(super) fn can_be_fetched_in_parts(head: &StoredHead) -> bool {
    let has_ranges = matches!(head.response.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    has_ranges && head.inline.is_none() && Validator::of(&head.response.headers).is_some()
}

/// The first byte of a member of `Range` and the one after its last, for an object of unknown length.
/// For a suffix range the first byte, whose response states the length.
fn reach(spec: RangeSpec) -> (u64, u64) {
    match spec {
        RangeSpec::From(first, last) => {
            (first, last.map_or(u64::MAX, |last| last.saturating_add(1)))
        }
        RangeSpec::Last(_) => (0, 1),
    }
}

/// Turns the header section of a part into that of the whole.
fn as_whole(response: &mut Response<Body>, length: u64) {
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().remove(CONTENT_RANGE);
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_request_begins_with_the_first_range() {
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
