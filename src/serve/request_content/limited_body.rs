//! A request body of unknown length (chunked, or HTTP/2 without `Content-Length`) that fails as soon as it
//! is longer than the rule's `access.content_max`. The guard checks an announced length before routing.

use std::task::{Context, Poll, ready};

use crate::body::{Body, BodyError, BodyFault, BodySource, PollFrame};
use crate::route::Rule;

/// See the top of this file.
pub(in crate::serve) struct LimitedBody {
    body: Body,
    bytes_max: u64,
    /// The bytes that may still come.
    left: u64,
}

impl LimitedBody {
    /// Limits a body of unknown length as the rule says. Returns any other body unchanged.
    pub(in crate::serve) fn limit(body: Body, rule: &Rule) -> Body {
        match rule.settings.guard.access.content_bytes_max {
            Some(bytes_max) if body.exact_length().is_none() => {
                Body::stream(Self { body, bytes_max, left: bytes_max })
            }
            _ => body,
        }
    }
}

impl BodySource for LimitedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = ready!(self.body.poll_frame(cx));
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let bytes = data.map_or(0, |data| data.len() as u64);
        let Some(left) = self.left.checked_sub(bytes) else {
            // The origin gets nothing of the piece, and no end of the content.
            self.body = Body::Empty;
            let max = self.bytes_max;
            let why =
                format!("the request's content is longer than {max} bytes (access.content_max)");
            return Poll::Ready(Some(Err(BodyError::of(BodyFault::TooLong, why))));
        };
        self.left = left;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
