//! encode for a response that is decoded for its client: the first piece is decoded before the header section
//! is sent. If the content does not have the coding that the origin states, the client gets 502 and the
//! stored response is invalidated, so that it fails once and not until it expires.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;

use super::outcome::{Answered, Decoding};
use super::{Visit, errors, finish_error};
use crate::body::{Body, BodyError, BodyFault, BodySource, PollFrame};
use crate::cache::{CacheStatus, PurgeScope};
use crate::context::ResponseFacts;
use crate::notices::{self, Notice};
use crate::reply::Reply;

impl Visit {
    /// finish for a reply that is decoded. The header section of one of unknown length, such as a stream
    /// of events, does not wait for its first piece.
    pub(super) async fn finish_decoding(self, decoding: Box<Decoding>) -> Reply {
        let Decoding { answered: Answered { reply, facts }, has_length } = *decoding;
        let Reply { status, received, fields, mut body } = reply;
        let first = poll_fn(|cx| match body.poll_frame(cx) {
            Poll::Ready(first) => Poll::Ready(Some(first)),
            Poll::Pending if has_length => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        })
        .await;
        let is_stored = facts.cache_status.stored || facts.cache_status.reason().is_none();
        let stored = is_stored.then(|| self.clone());
        match first {
            Some(Some(Err(error))) if error.fault() == BodyFault::Undecodable => {
                if let Some(stored) = stored {
                    stored.drop_undecodable();
                }
                self.finish_undecodable(&error, facts)
            }
            first => {
                let body = Body::stream(DecodedBody { first, body, stored });
                self.finish(facts.answer(Reply { status, received, fields, body }))
            }
        }
    }

    fn finish_undecodable(self, error: &BodyError, facts: ResponseFacts) -> Reply {
        self.note_undecodable(error, &facts);
        let not_stored = |status| CacheStatus { stored: false, ttl: None, ..status };
        let failed = facts.with_status(not_stored).fail(errors::undecodable(error));
        finish_error(&self.worker, &self.plan, self.context, *failed)
    }

    fn note_undecodable(&self, error: &BodyError, facts: &ResponseFacts) {
        let upstream = facts.upstream.as_deref();
        let origin = upstream.and_then(|upstream| upstream.origin.as_deref()).unwrap_or_default();
        let warning = Notice::warning("a response cannot be decoded", "", origin);
        let notice = Notice { pool: upstream.map_or("", |upstream| &*upstream.pool), ..warning };
        let (method, request) = (&self.context.request.method, self.context.id);
        let key = self.query().key();
        notices::note(&notice, format_args!("{error}; {method} {}, request {request}", key.url()));
    }

    /// The next request fetches the response again.
    fn drop_undecodable(&self) {
        let url = self.query().key().url().into();
        self.worker.store.purges().invalidate(vec![PurgeScope::Url(url)], None);
    }
}

/// A body that is decoded as it is read, of which a frame may have been read already.
struct DecodedBody {
    first: Option<Option<Result<Frame<Bytes>, BodyError>>>,
    body: Body,
    /// The request whose stored response this is.
    stored: Option<Visit>,
}

impl BodySource for DecodedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = match self.first.take() {
            Some(first) => first,
            None => ready!(self.body.poll_frame(cx)),
        };
        if let Some(Err(error)) = &frame
            && error.fault() == BodyFault::Undecodable
            && let Some(stored) = self.stored.take()
        {
            stored.drop_undecodable();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }
}
