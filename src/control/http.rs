//! Helpers of the admin API's handlers: reading parameters and URLs; responses as JSON, text
//! or problem details (RFC 9457). This module knows none of the handlers.

use std::fmt::Display;
use std::str::FromStr;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Full;
use serde_json::Value;

use crate::percent::percent_decode;

/// An error response of the admin API: a mistake of the caller, or something that the node cannot do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Status of the response.
    pub status: StatusCode,
    /// The mistake, with the value and the expected form.
    pub detail: String,
}

impl Problem {
    /// A mistake in the caller's input: 400.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, detail: detail.into() }
    }

    /// A problem with any status.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// A value that cannot be used: `WHAT "VALUE": WHY`.
    pub(super) fn bad_value(what: &str, value: &str, why: &dyn Display) -> Self {
        Self::bad_request(format!("{what} {value:?}: {why}"))
    }

    /// The response, `application/problem+json`.
    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
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

/// Refuses unknown and repeated parameters, so that a typing error such as `wiat=all` is not ignored.
///
/// # Errors
/// 400, with the parameter's name.
pub(super) fn check_parameters(query: &str, names: &[&str]) -> Result<(), Problem> {
    let mut found = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let expected = names.join(", ");
        if !names.contains(&name) {
            let detail = format!("unknown parameter {name:?}: expected one of {expected}");
            return Err(Problem::bad_request(detail));
        }
        if found.contains(&name) {
            return Err(Problem::bad_request(format!(
                "parameter {name:?} is repeated: expected once"
            )));
        }
        found.push(name);
    }
    Ok(())
}

/// The decoded value of a query parameter.
///
/// # Errors
/// 400: the value is not valid percent-encoding.
pub(super) fn parameter(query: &str, name: &str) -> Result<Option<String>, Problem> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let broken =
        || Problem::bad_request(format!("parameter {name:?}: expected valid percent-encoding"));
    value.map(|value| percent_decode(value).ok_or_else(broken)).transpose()
}

/// The number in a query parameter; `default` if the parameter is missing.
///
/// # Errors
/// 400: the value is not a number.
pub(super) fn number_parameter<T: FromStr>(
    query: &str,
    name: &str,
    default: T,
) -> Result<T, Problem> {
    let Some(text) = parameter(query, name)? else { return Ok(default) };
    text.parse().map_err(|_| Problem::bad_value(name, &text, &"expected a number"))
}

/// Parses a URL with scheme and host.
///
/// # Errors
/// 400, with the URL.
pub(super) fn absolute_url(url: &str) -> Result<Uri, Problem> {
    let expected = &"expected an absolute http or https URL such as https://example.org/page";
    let uri: Uri = url.parse().map_err(|_| Problem::bad_value("url", url, expected))?;
    let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let Some(authority) = uri.authority().filter(|_| has_scheme) else {
        return Err(Problem::bad_value("url", url, expected));
    };
    if authority.as_str().contains('@') {
        return Err(Problem::bad_value(
            "url",
            url,
            &"expected a URL without user and password, which are not part of a cache key",
        ));
    }
    Ok(uri)
}

/// Whether the method is GET or HEAD. hyper leaves out the content of the response to HEAD.
pub(super) fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// 405, with the methods that the path accepts.
pub(super) fn method_not_allowed(path: &str, method: &Method) -> Response<Full<Bytes>> {
    let methods = if method == Method::GET { "GET, HEAD" } else { method.as_str() };
    let detail = format!("{path} accepts only {methods}");
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).response();
    let allow = HeaderValue::from_str(methods).expect("methods are a field value");
    response.headers_mut().insert(ALLOW, allow);
    response
}

/// A plain-text response.
pub(super) fn text_response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A JSON response, indented.
pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = text_response(status, format!("{value:#}\n"));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Adds `Retry-After` to 429 and 503, and `WWW-Authenticate` to 401.
pub(super) fn add_status_fields(response: &mut Response<Full<Bytes>>) {
    let (name, value) = match response.status() {
        StatusCode::TOO_MANY_REQUESTS => (RETRY_AFTER, "1"),
        StatusCode::SERVICE_UNAVAILABLE => (RETRY_AFTER, "5"),
        StatusCode::UNAUTHORIZED => (WWW_AUTHENTICATE, "Bearer realm=\"skerry\""),
        _ => return,
    };
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}
