//! The body of a request, as far as it can be sent again.

use bytes::Bytes;

use crate::body::Body;

/// A copy of a request's body.
pub(in crate::upstream) enum KeptBody {
    /// The request has none.
    Empty,
    /// All of it.
    Whole(Bytes),
    /// It is read once, from the client.
    Streaming,
}

impl KeptBody {
    /// What is kept of `body` when it is sent.
    pub(super) fn of(body: &Body) -> Self {
        match body {
            Body::Empty => Self::Empty,
            Body::Full(Some(bytes)) => Self::Whole(bytes.clone()),
            _ => Self::Streaming,
        }
    }

    /// The body for another try.
    pub(in crate::upstream) fn again(&self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::Empty),
            Self::Whole(bytes) => Some(Body::Full(Some(bytes.clone()))),
            Self::Streaming => None,
        }
    }
}
