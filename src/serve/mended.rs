//! A body that goes on by parts where what it reads gives out: a stored body of which the store
//! has lost a slice, a fill that is too far ahead of this client, or one that broke off.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::{Body, BodyError};
use crate::fill::parts::{Parts, PartsReader};
use crate::metrics::Metric;

/// `range` of an object, from `B` for as long as that has it, and then by `parts`: once.
pub(super) struct Mended<B> {
    body: B,
    /// What the client does not have yet.
    rest: Range<u64>,
    parts: Option<Parts>,
    mending: Option<PartsReader>,
}

impl<B> Mended<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    /// As it is, if there is no other way to its bytes.
    pub fn body(body: B, range: Range<u64>, parts: Option<&Parts>) -> Body {
        let Some(parts) = parts else { return Body::stream(body) };
        let rest = range.start..range.end.min(parts.head.complete_length());
        Body::stream(Self { body, rest, parts: Some(parts.clone()), mending: None })
    }
}

impl<B> HttpBody for Mended<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if let Some(mending) = &mut this.mending {
                return Pin::new(mending).poll_frame(cx);
            }
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
            if frame.as_ref().is_some_and(Result::is_err)
                && let Some(parts) = this.parts.take()
            {
                parts.fills.recorder().count(Metric::BodiesMended);
                this.mending = Some(parts.read(this.rest.clone(), None));
                continue;
            }
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            this.rest.start += data.map_or(0, |data| data.len() as u64);
            return Poll::Ready(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.mending {
            Some(mending) => mending.is_end_stream(),
            None => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.mending {
            Some(mending) => mending.size_hint(),
            None => self.body.size_hint(),
        }
    }
}
