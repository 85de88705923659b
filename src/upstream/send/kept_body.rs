//! The body of a request, as far as it can be sent again.

use bytes::Bytes;

use super::super::exchange::Intent;
use super::super::pool::Pool;
use super::super::settings::Retry;
use super::recorded_body::Recording;
use crate::body::{Body, BodySource};

/// A copy of a request's body.
pub(in crate::upstream) enum KeptBody {
    /// The request has none.
    Empty,
    /// All of it.
    Whole(Bytes),
    /// The body is recorded while it is read from the client.
    Recorded(Recording),
    /// The body is read once, from the client.
    Streaming,
}

impl KeptBody {
    /// The copy of `body`, and the body to be sent. Calls and other protocols stream without
    /// an end: nothing of them is kept.
    pub(in crate::upstream) fn of(body: Body, pool: &Pool, intent: &Intent) -> (Self, Body) {
        match &body {
            Body::Empty => return (Self::Empty, body),
            Body::Full(Some(bytes)) => return (Self::Whole(bytes.clone()), body),
            _ => {}
        }
        let Retry { keep_request_body, kept_bytes_max, .. } = pool.settings().retry;
        let is_short = body.exact_length().is_none_or(|length| length <= keep_request_body as u64);
        let is_kept =
            keep_request_body > 0 && is_short && !intent.is_call && intent.upgrade.is_none();
        let room = is_kept.then(|| pool.kept.reserve(0, kept_bytes_max)).flatten();
        let Some(room) = room else { return (Self::Streaming, body) };
        let recording = Recording::new(body, keep_request_body, room);
        let first = recording.body().expect("nothing was read yet");
        (Self::Recorded(recording), first)
    }

    /// The body for another try.
    pub(in crate::upstream) fn again(&self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::Empty),
            Self::Whole(bytes) => Some(Body::Full(Some(bytes.clone()))),
            Self::Recorded(recording) => recording.body(),
            Self::Streaming => None,
        }
    }
}
