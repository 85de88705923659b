//! Errors of the admin API as problem details (RFC 9457).

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

/// What a caller did wrong, or what the node can't do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status to answer with.
    pub status: StatusCode,
    /// What was wrong, with the value and what was expected.
    pub detail: String,
}

impl Problem {
    /// A problem with the caller's input: 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, detail: detail.into() }
    }

    /// A problem with any status.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// The response, `application/problem+json`.
    pub fn response(&self) -> Response<Full<Bytes>> {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut response = Response::new(Full::from(format!("{body}\n")));
        *response.status_mut() = self.status;
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}
