//! A response body whose source may fail on the way: a stored body of which the store has lost a slice, a
//! fill that has moved too far ahead of this client, or a fill that broke off. The missing bytes are then
//! requested from the origin by range.
//!
//! The request to the origin is built at the first error, not before: nearly all bodies need none.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::Visit;
use crate::body::{Body, BodySource, PollFrame};
use crate::fill::parts::PartsReader;
use crate::metrics::Metric;
use crate::store::StoredHead;

/// The facts that are needed to request the missing bytes of a body. Creating it only counts references.
pub(super) struct Repair {
    visit: Visit,
    head: Arc<StoredHead>,
}

impl Repair {
    /// A repair of the body of `head` on behalf of this request.
    pub(super) fn new(visit: &Visit, head: &Arc<StoredHead>) -> Self {
        Self { visit: visit.clone(), head: head.clone() }
    }

    /// Reads `rest` from the store and upstream. `None` if the object cannot be fetched in parts.
    fn read(self, rest: Range<u64>) -> Option<PartsReader> {
        let parts = self.visit.parts(&self.head)?;
        parts.fills.recorder().count(Metric::BodiesMended);
        Some(parts.read(rest, None))
    }
}

/// A range of an object: from `body` until it fails, then from a [`Repair`], once.
pub(super) struct RepairedBody<B> {
    body: B,
    /// The bytes that the client does not have yet.
    rest: Range<u64>,
    repair: Option<Repair>,
    repaired: Option<PartsReader>,
}

impl<B> RepairedBody<B>
where
    B: BodySource + 'static,
{
    /// `range` of an object, which `body` reads. Returns `body` itself if there is no repair.
    pub(super) fn body(body: B, range: Range<u64>, repair: Option<Repair>) -> Body {
        let Some(repair) = repair else { return Body::stream(body) };
        let rest = range.start..range.end.min(repair.head.complete_length());
        Body::stream(Self { body, rest, repair: Some(repair), repaired: None })
    }
}

impl<B> BodySource for RepairedBody<B>
where
    B: BodySource,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        loop {
            if let Some(repaired) = &mut self.repaired {
                return repaired.poll_frame(cx);
            }
            let frame = ready!(self.body.poll_frame(cx));
            if frame.as_ref().is_some_and(Result::is_err) {
                self.repaired =
                    self.repair.take().and_then(|repair| repair.read(self.rest.clone()));
                if self.repaired.is_some() {
                    continue;
                }
            }
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.rest.start += data.map_or(0, |data| data.len() as u64);
            return Poll::Ready(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.repaired {
            Some(repaired) => repaired.is_end_stream(),
            None => self.body.is_end_stream(),
        }
    }

    fn exact_length(&self) -> Option<u64> {
        match &self.repaired {
            Some(repaired) => repaired.exact_length(),
            None => self.body.exact_length(),
        }
    }
}
