//! The final response that the request path gives to the listener.

use http::{Response, StatusCode, Version};

use crate::body::Body;
use crate::fields::FieldLines;

/// A final response to a client. The driver of each HTTP version writes it: HTTP/1.1 as field lines, HTTP/2 from
/// a map.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// The status: not an interim one.
    pub status: StatusCode,
    /// The HTTP version in which the node received the response, for `Via`; HTTP/1.1 if the node itself made
    /// it. Independent of the version that the client speaks.
    pub received: Version,
    /// The header fields.
    pub fields: FieldLines,
    /// The content and the trailers.
    pub body: Body,
}

impl Reply {
    /// A response without fields and content.
    pub(crate) fn new(status: StatusCode) -> Self {
        Self { status, ..Self::default() }
    }
}

impl From<Response<Body>> for Reply {
    fn from(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        Self {
            status: head.status,
            received: head.version,
            fields: FieldLines::from(&head.headers),
            body,
        }
    }
}
