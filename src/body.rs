//! The body type of the request path, and the trait of the sources that produce its frames.
//!
//! A body is empty, bytes in memory (a hit), or a stream. It is not `Send`: a request stays on one
//! worker. A stream is never collected; a source is polled only when the reader can take a frame.
//!
//! Every streamed body implements [`BodySource`]; [`Body`] alone implements `http_body::Body`, for the
//! libraries that expect it.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// A message body: of a request to an origin, or of a response to a client.
#[derive(Default)]
pub(crate) enum Body {
    /// No content.
    #[default]
    Empty,
    /// One piece in memory. `None` after it was read.
    Full(Option<Bytes>),
    /// A body that hyper reads from a connection.
    Incoming(Incoming),
    /// Any other source: a fill, a coder, stored slices.
    Stream(Box<dyn BodySource>),
}

/// Produces the frames of a body: data, then at most one frame of trailers.
pub(crate) trait BodySource {
    /// The next frame, or `None` after the last. After an error no more frames may be polled.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame;

    /// Whether it is known that no frame follows. `false` if that takes a poll to find out.
    fn is_end_stream(&self) -> bool {
        false
    }

    /// The bytes of data that are still to come, if known.
    fn exact_length(&self) -> Option<u64> {
        None
    }
}

/// The result of polling a body: the next frame, or `None` at its end.
pub(crate) type PollFrame = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// Why a body broke off. The client's connection or stream is then reset, so that the client never
/// takes a truncated body for a complete one (RFC 9112 §8).
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct BodyError {
    reason: Box<str>,
    fault: BodyFault,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// How a body failed, as far as it makes a difference for the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    /// The body is malformed or incomplete.
    Broken,
    /// The sender was too slow.
    Late,
    /// The body is longer than the rule allows.
    TooLong,
    /// The content does not have the coding that its fields state.
    Undecodable,
}

impl BodyError {
    /// An error with a reason, in lower case and without a full stop.
    pub(crate) fn new(reason: impl Into<Box<str>>) -> Self {
        Self::of(BodyFault::Broken, reason)
    }

    /// An error of this kind.
    pub(crate) fn of(fault: BodyFault, reason: impl Into<Box<str>>) -> Self {
        Self { reason: reason.into(), fault, source: None }
    }

    /// An error with its cause.
    pub(crate) fn caused_by(
        reason: impl Into<Box<str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(reason) }
    }

    /// The same error, of another kind.
    pub(crate) fn with_fault(self, fault: BodyFault) -> Self {
        Self { fault, ..self }
    }

    /// How the body failed.
    pub(crate) fn fault(&self) -> BodyFault {
        self.fault
    }
}

impl Body {
    /// A body whose frames `source` produces.
    pub(crate) fn stream(source: impl BodySource + 'static) -> Self {
        Self::Stream(Box::new(source))
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

impl BodySource for Body {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Incoming(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map_err(|error| BodyError::caused_by("the body ended early", error)),
            Self::Stream(source) => source.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Stream(source) => source.is_end_stream(),
        }
    }

    fn exact_length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Incoming(incoming) => incoming.size_hint().exact(),
            Self::Stream(source) => source.exact_length(),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> PollFrame {
        BodySource::poll_frame(self.get_mut(), cx)
    }

    fn is_end_stream(&self) -> bool {
        BodySource::is_end_stream(self)
    }

    fn size_hint(&self) -> SizeHint {
        self.exact_length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Incoming(_) => "Incoming",
            Self::Stream(_) => "Stream",
        };
        write!(f, "Body::{kind}")
    }
}

/// The next frame of a source.
#[cfg(test)]
pub(crate) async fn next_frame(
    source: &mut impl BodySource,
) -> Option<Result<Frame<Bytes>, BodyError>> {
    std::future::poll_fn(|cx| source.poll_frame(cx)).await
}

/// A body of several pieces, of known length.
#[cfg(test)]
pub(crate) fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> Body {
    struct Pieces(std::collections::VecDeque<Bytes>);

    impl BodySource for Pieces {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> PollFrame {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn exact_length(&self) -> Option<u64> {
            Some(self.0.iter().map(|piece| piece.len() as u64).sum())
        }
    }

    Body::stream(Pieces(pieces.into_iter().collect()))
}
