//! The one body type that travels through the path.
//!
//! A body is nothing, bytes already in memory (a hit), or a stream. It is not `Send`: a
//! request lives on one core. Nothing here collects a stream; backpressure is the poll.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// A message body: request bodies on their way to an origin, response bodies to a client.
#[derive(Default)]
pub(crate) enum Body {
    /// No content.
    #[default]
    Empty,
    /// One piece in memory. `None` once it was handed out.
    Full(Option<Bytes>),
    /// Several pieces in memory, in order.
    Pieces(VecDeque<Bytes>),
    /// What hyper reads from a connection, frame by frame, trailers included.
    Incoming(Incoming),
    /// Anything else: a fill being read, a coder, slices from disk.
    Stream(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>),
}

/// Why a body ended before its end. The connection is then cut, so that a client never
/// takes a truncated body for a whole one (RFC 9112 §8).
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct BodyError {
    reason: Box<str>,
    is_late: bool,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl BodyError {
    /// An error that says only why, in lower case and without a full stop.
    pub(crate) fn new(reason: impl Into<Box<str>>) -> Self {
        Self { reason: reason.into(), is_late: false, source: None }
    }

    /// As [`BodyError::new`], where the sender took too long.
    pub(crate) fn late(reason: impl Into<Box<str>>) -> Self {
        Self { is_late: true, ..Self::new(reason) }
    }

    /// An error with the one that caused it.
    pub(crate) fn caused_by(
        reason: impl Into<Box<str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { reason: reason.into(), is_late: false, source: Some(source.into()) }
    }

    /// Whether the sender took too long.
    pub(crate) fn is_late(&self) -> bool {
        self.is_late
    }
}

impl Body {
    /// Wraps any other body.
    pub(crate) fn stream(body: impl HttpBody<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }

    /// The length in bytes, when it is known before the last frame.
    pub(crate) fn exact_length(&self) -> Option<u64> {
        self.size_hint().exact()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::Empty } else { Self::Incoming(incoming) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces(pieces) => {
                Poll::Ready(pieces.pop_front().map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Incoming(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map_err(|error| BodyError::caused_by("the body ended early", error)),
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Pieces(pieces) => pieces.is_empty(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Pieces(pieces) => {
                SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum())
            }
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Pieces(_) => "Pieces",
            Self::Incoming(_) => "Incoming",
            Self::Stream(_) => "Stream",
        };
        write!(f, "Body::{kind}")
    }
}
