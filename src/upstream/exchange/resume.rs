//! A response body that another origin continues when it breaks off (RFC 9110 §13.1.5, §14).
//!
//! The rest is requested with `Range` and `If-Range`, so that bytes of two versions are never mixed. That takes
//! a strong entity tag, and a response without content coding: two origins may compress differently under
//! one tag. A date is no validator here: it can be the same on two origins with different bytes.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Frame;

use super::super::connection::core::Core;
use super::super::pool::Pool;
use super::super::send::Outgoing;
use super::{Intent, UpstreamResponse};
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::fields::ranges::{PartAnswer, Validator, ask_from, content_range, judge};
use crate::labels::RetryReason;
use crate::metrics::Metric;

/// The response that a body belongs to, and how to request the rest of it.
pub(in crate::upstream) struct Resumption {
    pub(in crate::upstream) core: Rc<Core>,
    pub(in crate::upstream) pool: Arc<Pool>,
    pub(in crate::upstream) intent: Intent,
    /// The head of the request.
    pub(in crate::upstream) request: Request<()>,
    validator: Validator,
    /// The next byte of the object, and the one after the last.
    at: u64,
    end: Option<u64>,
    complete_length: Option<u64>,
    /// The end of the whole exchange.
    end_ms: u64,
}

/// See the top of this file.
pub(in crate::upstream) struct ResumedBody {
    rest: Resumption,
    body: Body,
    /// Members whose body broke off, by id.
    broken: Vec<u64>,
    /// The body of the next origin, or nothing if none has it.
    next: Option<Pin<Box<dyn Future<Output = Option<Continuation>>>>>,
    /// Why the body broke off.
    error: Option<BodyError>,
    /// Resumptions since [`PROGRESS_BYTES`] arrived, and where the first of them began.
    resumptions: u32,
    since: u64,
}

/// A body that begins where another broke off.
struct Continuation {
    body: Body,
    complete_length: Option<u64>,
    member: Option<u64>,
}

impl Resumption {
    /// How to request the rest of the response with this status and these fields, if it can be
    /// requested. `length` is that of its body.
    pub(in crate::upstream) fn of(
        outgoing: &Outgoing<'_>,
        status: StatusCode,
        headers: &HeaderMap,
        length: Option<u64>,
    ) -> Option<Self> {
        let (core, pool) = (outgoing.core, &outgoing.state.pool);
        let retry = &pool.settings().retry;
        let is_allowed = retry.on.failures.contains(RetryReason::Truncated)
            && retry.attempts_max != Some(1)
            && !outgoing.is_resumption()
            && outgoing.is_plain();
        if !is_allowed || headers.contains_key(CONTENT_ENCODING) {
            return None;
        }
        let validator = Validator::of(headers).filter(|one| matches!(one, Validator::Tag(_)))?;
        let (at, end, complete_length) = match status {
            StatusCode::OK => (0, length, length),
            StatusCode::PARTIAL_CONTENT => {
                let part = content_range(headers)?;
                let bytes = part.bytes?;
                (bytes.start, Some(bytes.end), part.complete_length)
            }
            _ => return None,
        };
        let request = (outgoing.request)();
        (request.method() == Method::GET).then(|| Self {
            core: core.clone(),
            pool: pool.clone(),
            intent: Intent {
                affinity: outgoing.intent.affinity,
                proxied: outgoing.intent.proxied.clone(),
                is_idempotent: true,
                for_many: true,
                ..Intent::default()
            },
            request,
            validator,
            at,
            end,
            complete_length,
            end_ms: outgoing.limits.end_ms,
        })
    }

    /// The request for the rest.
    fn request(&self) -> Request<()> {
        let mut request = self.request.clone();
        ask_from(self.at, self.end, &self.validator, request.headers_mut());
        request
    }

    /// Sends the request for the rest to an origin, none of `broken` if there is another one.
    fn send(&self, broken: Vec<u64>) -> impl Future<Output = Option<Continuation>> + use<> {
        let (core, pool, intent) = (self.core.clone(), self.pool.clone(), self.intent.clone());
        let (request, validator) = (self.request(), self.validator.clone());
        let (asked, complete_length) =
            (self.at..self.end.unwrap_or(u64::MAX), self.complete_length);
        async move {
            let state = core.state(&pool);
            let again = || request.clone();
            let outgoing = Outgoing::resuming(&core, &state, &again, &intent, broken);
            let UpstreamResponse { response, origin, .. } =
                *outgoing.send(Body::Empty).await.ok()?;
            let (status, headers) = (response.status(), response.headers());
            let answer = judge(&asked, Some(&validator), complete_length, status, headers);
            let PartAnswer::Part { complete_length, .. } = answer else { return None };
            // Without a length, the end of a shorter part would be taken for that of the object.
            let has_end = asked.end < u64::MAX || complete_length.is_some();
            if !has_end || headers.contains_key(CONTENT_ENCODING) {
                return None;
            }
            let members = pool.members();
            let member = members.iter().find(|member| member.name == origin);
            let member = member.map(|member| member.id);
            Some(Continuation { body: response.into_body(), complete_length, member })
        }
    }
}

impl ResumedBody {
    /// A body that begins with this one, of the member with this id.
    pub(in crate::upstream) fn new(rest: Resumption, body: Body, member: u64) -> Self {
        let since = rest.at;
        let (broken, next, error) = (vec![member], None, None);
        Self { rest, body, broken, next, error, resumptions: 0, since }
    }

    /// Begins to request the rest. False if that has been done too often.
    fn resume(&mut self) -> bool {
        if self.rest.at.saturating_sub(self.since) >= PROGRESS_BYTES {
            (self.resumptions, self.since) = (0, self.rest.at);
        }
        let Resumption { core, at, end, end_ms, .. } = &self.rest;
        let is_whole = end.is_some_and(|end| *at >= end);
        let is_over = core.timers.now_ms() >= *end_ms;
        if is_whole || is_over || self.resumptions == RESUMPTIONS_MAX {
            return false;
        }
        self.resumptions += 1;
        self.next = Some(Box::pin(self.rest.send(self.broken.clone())));
        true
    }

    /// Goes on with the body of another origin, or ends with the error.
    fn go_on(&mut self, found: Option<Continuation>) -> Result<(), BodyError> {
        self.next = None;
        let outcome = if found.is_some() { RESUMED } else { FAILED };
        self.rest.core.recorder.count_labelled(Metric::UpstreamResumptions, outcome);
        let error = self.error.take().unwrap_or_else(|| BodyError::new("the response ended early"));
        let Some(Continuation { body, complete_length, member }) = found else { return Err(error) };
        self.body = body;
        self.rest.complete_length = self.rest.complete_length.or(complete_length);
        self.rest.end = self.rest.end.or(complete_length);
        self.broken.extend(member);
        Ok(())
    }

    /// The frame as it is passed on, if it is. Trailers of a part are not those of the whole.
    fn take(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.data_ref() {
            Some(data) => {
                self.rest.at += data.len() as u64;
                Some(frame)
            }
            None => Some(frame).filter(|_| self.broken.len() == 1),
        }
    }
}

impl BodySource for ResumedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        loop {
            if let Some(next) = &mut self.next {
                let Poll::Ready(found) = next.as_mut().poll(cx) else { return Poll::Pending };
                if let Err(error) = self.go_on(found) {
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match self.body.poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(frame) = self.take(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    if !self.resume() {
                        return Poll::Ready(Some(Err(error)));
                    }
                    self.error = Some(error);
                }
                // An origin may send a shorter part than was asked for.
                Poll::Ready(None) if self.rest.end.is_some_and(|end| self.rest.at < end) => {
                    if !self.resume() {
                        let error = BodyError::new("the response ended early");
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_short = self.rest.end.is_some_and(|end| self.rest.at < end);
        self.next.is_none() && !is_short && self.body.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        Some(self.rest.end?.saturating_sub(self.rest.at))
    }
}

/// Resumptions of a body before [`PROGRESS_BYTES`] more have arrived.
const RESUMPTIONS_MAX: u32 = 3;
const PROGRESS_BYTES: u64 = 1 << 20;

/// Labels of [`Metric::UpstreamResumptions`].
const RESUMED: usize = 0;
const FAILED: usize = 1;
