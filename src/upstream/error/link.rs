//! Errors of a connection to an origin, below those of an exchange.

use std::io;
use std::time::Duration;

use crate::body::{Body, BodyError};

/// The error of a connection to an origin, from its protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// HTTP/1.1.
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    /// HTTP/2.
    #[error(transparent)]
    Http2(h2::Error),
    /// The socket under HTTP/2.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The client's body ended early, over HTTP/2.
    #[error("{0}")]
    RequestBody(#[source] BodyError),
}

impl From<h2::Error> for LinkError {
    fn from(error: h2::Error) -> Self {
        if error.is_io()
            && let Some(error) = error.get_io()
        {
            // h2 keeps the kind and the text.
            return Self::Io(io::Error::new(error.kind(), error.to_string()));
        }
        Self::Http2(error)
    }
}

impl From<h2::Reason> for LinkError {
    fn from(reason: h2::Reason) -> Self {
        Self::Http2(reason.into())
    }
}

impl LinkError {
    /// Whether the origin has refused the request without processing it, as when it shuts its
    /// connection down (RFC 9113 §8.7). That is no failure.
    pub(in crate::upstream) fn is_refused_stream(&self) -> bool {
        let Self::Http2(error) = self else { return false };
        let is_shutdown = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (is_shutdown || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    }

    /// Whether the client's body ended early. `taken`: the connection had accepted the request.
    pub(in crate::upstream) fn is_request_body(&self, taken: bool) -> bool {
        match self {
            Self::Http1(error) => error.is_user() && taken,
            Self::RequestBody(_) => true,
            Self::Http2(_) | Self::Io(_) => false,
        }
    }

    /// Whether the received bytes are no valid response. Over HTTP/2 the response's own stream was reset by this node:
    /// an error of the connection may be that of another response.
    pub(in crate::upstream) fn is_invalid_response(&self) -> bool {
        match self {
            Self::Http1(error) => error.is_parse(),
            Self::Http2(error) => error.is_reset() && error.is_library(),
            Self::Io(_) | Self::RequestBody(_) => false,
        }
    }

    /// Whether the head of an HTTP/1.1 response is over the limits.
    pub(in crate::upstream) fn is_too_large(&self) -> bool {
        matches!(self, Self::Http1(error) if error.is_parse_too_large())
    }
}

/// The error of a response body whose next bytes did not arrive in time.
pub(in crate::upstream) fn body_timeout(origin: &str, after: Duration) -> BodyError {
    BodyError::new(format!("no bytes from {origin} for {after:?}"))
}

/// Why an exchange ended without the head of a response.
pub(in crate::upstream) struct NoHead {
    pub(in crate::upstream) why: NoHeadReason,
    /// The request's body, if no part of the request was handed to the connection.
    pub(in crate::upstream) body: Option<Body>,
    /// Whether bytes of the request were written to the socket.
    pub(in crate::upstream) sent: bool,
    /// Number of bytes of a response that were read.
    pub(in crate::upstream) received: u64,
}

/// See [`NoHead`].
pub(in crate::upstream) enum NoHeadReason {
    Error(LinkError),
    /// An HTTP/2 origin sent 101, which HTTP/2 does not have (RFC 9113 §8.6).
    Switched,
    /// The deadline for the first byte, or the total one, has passed.
    Deadline,
}

impl NoHead {
    pub(in crate::upstream) fn late(sent: bool, received: u64) -> Self {
        Self { why: NoHeadReason::Deadline, body: None, sent, received }
    }
}
