//! The body of a fill that goes on from upstream when the client's next byte is lost: it came so
//! far behind that neither the fill's window nor the store has it any more.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Visit;
use super::exchange::Job;
use super::lookup::Found;
use super::ranges::Sought;
use crate::body::{Body, BodyError};
use crate::fetch::FillReader;
use crate::fetch::fill::Filling;
use crate::fetch::slices::{Answer, Validator, judge};
use crate::metrics::Metric;

/// How the rest of a long object can be had from upstream, of the version that began.
#[derive(Clone)]
pub(super) struct Resume {
    job: Rc<Job>,
    sought: Rc<Sought>,
    bound: Validator,
    length: u64,
}

type Asking = Pin<Box<dyn Future<Output = Result<Body, BodyError>>>>;

impl Visit {
    /// `None` for what is short, of unknown length, or has no strong validator.
    pub(super) fn resume(&self, filling: &Filling) -> Option<Resume> {
        let response = filling.response();
        let slice_bytes = self.worker.store.slice_bytes();
        let length = response.complete_length.filter(|length| *length > slice_bytes)?;
        let bound = Validator::of(&response.headers)?;
        let job = Rc::new(self.job(&Found::unknown(self.target())).ok()?);
        Some(Resume { job, sought: self.sought(), bound, length })
    }
}

impl Resume {
    /// What `reader` reads of `range`, and then what it loses.
    pub(super) fn after(self, reader: FillReader, range: Range<u64>) -> Body {
        let rest = range.start..range.end.min(self.length);
        Body::stream(Resumed { reader, rest, resume: Some(self), from: From::Fill })
    }

    async fn ask(self, range: Range<u64>) -> Result<Body, BodyError> {
        let start = range.start;
        let failed = |why| BodyError::caused_by(format!("no answer for bytes from {start}"), why);
        let request = self.sought.request(Some(&range), Some(&self.bound));
        let response = self.job.send(request).await.map_err(failed)?.response;
        let (status, headers) = (response.status(), response.headers());
        match judge(&range, Some(&self.bound), Some(self.length), status, headers) {
            Answer::Part { bytes, .. } if bytes == range => Ok(response.into_body()),
            Answer::Changed => Err(BodyError::new("the object changed at the origin")),
            _ => Err(BodyError::new(format!("upstream answered {status} for bytes from {start}"))),
        }
    }
}

struct Resumed {
    reader: FillReader,
    /// What the client does not have yet.
    rest: Range<u64>,
    /// Taken when it is used: once.
    resume: Option<Resume>,
    from: From,
}

enum From {
    Fill,
    Asking(Asking),
    Upstream(Body),
}

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            let frame = match &mut this.from {
                From::Fill => ready!(Pin::new(&mut this.reader).poll_frame(cx)),
                From::Asking(asking) => {
                    match ready!(asking.as_mut().poll(cx)) {
                        Ok(body) => this.from = From::Upstream(body),
                        Err(why) => return Poll::Ready(Some(Err(why))),
                    }
                    continue;
                }
                From::Upstream(_) if this.rest.is_empty() => return Poll::Ready(None),
                From::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
            };
            if frame.as_ref().is_some_and(Result::is_err)
                && this.reader.has_lost_its_place()
                && let Some(resume) = this.resume.take()
            {
                resume.job.worker.recorder.count(Metric::FillReadersResumed);
                this.from = From::Asking(Box::pin(resume.ask(this.rest.clone())));
                continue;
            }
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            this.rest.start += data.map_or(0, |data| data.len() as u64);
            return Poll::Ready(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.from, From::Fill) && self.reader.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.end.saturating_sub(self.rest.start))
    }
}
