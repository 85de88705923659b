//! A response body whose source may fail on the way: a stored body of which the store has lost a slice, a
//! fill that has moved too far ahead of this client, or a fill that broke off. The missing bytes are then
//! requested from the origin by range.

use std::ops::Range;
use std::task::{Context, Poll, ready};

use crate::body::{Body, BodySource, PollFrame};
use crate::fill::parts::{Parts, PartsReader};
use crate::metrics::Metric;

/// `range` of an object, from `B` for as long as that has it, and then by `parts`: once.
pub(super) struct RepairedBody<B> {
    body: B,
    /// What the client does not have yet.
    rest: Range<u64>,
    parts: Option<Parts>,
    rest_by_parts: Option<PartsReader>,
}

impl<B> RepairedBody<B>
where
    B: BodySource + 'static,
{
    /// As it is, if there is no other way to its bytes.
    pub(super) fn body(body: B, range: Range<u64>, parts: Option<&Parts>) -> Body {
        let Some(parts) = parts else { return Body::stream(body) };
        let rest = range.start..range.end.min(parts.head.complete_length());
        Body::stream(Self { body, rest, parts: Some(parts.clone()), rest_by_parts: None })
    }
}

impl<B> BodySource for RepairedBody<B>
where
    B: BodySource,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        loop {
            if let Some(rest_by_parts) = &mut self.rest_by_parts {
                return rest_by_parts.poll_frame(cx);
            }
            let frame = ready!(self.body.poll_frame(cx));
            if frame.as_ref().is_some_and(Result::is_err)
                && let Some(parts) = self.parts.take()
            {
                parts.fills.recorder().count(Metric::BodiesMended);
                self.rest_by_parts = Some(parts.read(self.rest.clone(), None));
                continue;
            }
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.rest.start += data.map_or(0, |data| data.len() as u64);
            return Poll::Ready(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.rest_by_parts {
            Some(rest_by_parts) => rest_by_parts.is_end_stream(),
            None => self.body.is_end_stream(),
        }
    }

    fn exact_length(&self) -> Option<u64> {
        match &self.rest_by_parts {
            Some(rest_by_parts) => rest_by_parts.exact_length(),
            None => self.body.exact_length(),
        }
    }
}
