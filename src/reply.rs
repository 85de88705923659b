//! An answer as the path hands it to the listener.

use http::{Response, StatusCode, Version};

use crate::body::Body;
use crate::fields::FieldLines;

/// A final response to a client. Each protocol makes of it what it needs: HTTP/1.1 writes its
/// fields line by line, HTTP/2 a map of them.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// Not an interim one.
    pub status: StatusCode,
    /// The version that it was received over, for `Via`; HTTP/1.1 where the node itself made it. The
    /// client is answered in the version that it speaks.
    pub received: Version,
    /// Its fields.
    pub fields: FieldLines,
    /// Its content, and trailers.
    pub body: Body,
}

impl Reply {
    /// Without fields and content.
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
