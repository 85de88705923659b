//! What the handlers of the admin API share: they read parameters, JSON objects and URLs with it,
//! and answer with JSON, text or problem details (RFC 9457). It knows none of the handlers.

use std::fmt::Display;
use std::str::FromStr;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Full;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What a caller did wrong, or what the node can't do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The status to answer with.
    pub status: StatusCode,
    /// What was wrong, with the value and what was expected.
    pub detail: String,
}

impl Problem {
    /// A problem with the caller's input: 400.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, detail: detail.into() }
    }

    /// A problem with any status.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// A value that cannot be used: `what "VALUE": why`.
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

/// Refuses parameters of other names than these, and any that is given twice: a caller that writes
/// `wiat=all` wants to wait.
///
/// # Errors
/// 400, with the parameter's name.
pub(super) fn check_parameters(query: &str, names: &[&str]) -> Result<(), Problem> {
    let mut found = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let expected = names.join(", ");
        if !names.contains(&name) {
            let detail = format!("unknown parameter {name:?}; there are {expected}");
            return Err(Problem::bad_request(detail));
        }
        if found.contains(&name) {
            return Err(Problem::bad_request(format!("{name} is given twice")));
        }
        found.push(name);
    }
    Ok(())
}

/// A parameter of a query, decoded.
///
/// # Errors
/// 400: it is not valid percent-encoding.
pub(super) fn parameter(query: &str, name: &str) -> Result<Option<String>, Problem> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let broken = || Problem::bad_request(format!("{name}: not valid percent-encoding"));
    value.map(|value| percent_decode(value).ok_or_else(broken)).transpose()
}

/// `None` where a percent sign is not followed by two hex digits, or the bytes aren't UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let [high, low, after @ ..] = tail else { return None };
        // `from_str_radix` takes a sign too.
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// A parameter of a query that is a number; `default` if it is not there.
///
/// # Errors
/// 400: it is not a number.
pub(super) fn number_parameter<T: FromStr>(
    query: &str,
    name: &str,
    default: T,
) -> Result<T, Problem> {
    let Some(text) = parameter(query, name)? else { return Ok(default) };
    text.parse().map_err(|_| Problem::bad_value(name, &text, &"expected a number"))
}

/// Reads a string. serde reads `null` as if the field were not there; here it is an error, because
/// a caller that writes it means something else.
pub(super) fn non_null_string<'a, D: Deserializer<'a>>(
    value: D,
) -> Result<Option<String>, D::Error> {
    String::deserialize(value).map(Some)
}

/// Reads a JSON object. serde would read a list too, as the fields in their order.
///
/// # Errors
/// Not an object, or not one with these fields.
pub(super) fn from_json_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("expected a JSON object, {…}".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// A URL with scheme and host, as callers must write them.
///
/// # Errors
/// A [`Problem`] that names it.
pub(super) fn absolute_url(url: &str) -> Result<Uri, Problem> {
    let uri: Uri = url.parse().map_err(|error| Problem::bad_value("url", url, &error))?;
    let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let Some(authority) = uri.authority().filter(|_| has_scheme) else {
        return Err(Problem::bad_value(
            "url",
            url,
            &"expected an absolute URL such as https://example.org/page",
        ));
    };
    if authority.as_str().contains('@') {
        return Err(Problem::bad_value(
            "url",
            url,
            &"user and password are not part of what is stored",
        ));
    }
    Ok(uri)
}

/// Whether a call that only reads may be made with it. The content of the answer to HEAD is left
/// out by the connection.
pub(super) fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// 405, with the methods that the path takes.
pub(super) fn method_not_allowed(path: &str, method: &Method) -> Response<Full<Bytes>> {
    let methods = if method == Method::GET { "GET, HEAD" } else { method.as_str() };
    let detail = format!("{path} takes {methods}");
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).response();
    let allow = HeaderValue::from_str(methods).expect("methods are a field value");
    response.headers_mut().insert(ALLOW, allow);
    response
}

/// A response in plain text.
pub(super) fn text_response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A response in JSON, indented for people.
pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = text_response(status, format!("{value:#}\n"));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Adds `Retry-After` to 429 and 503, and `WWW-Authenticate` to 401.
pub(super) fn add_advice(response: &mut Response<Full<Bytes>>) {
    let (name, value) = match response.status() {
        StatusCode::TOO_MANY_REQUESTS => (RETRY_AFTER, "1"),
        StatusCode::SERVICE_UNAVAILABLE => (RETRY_AFTER, "5"),
        StatusCode::UNAUTHORIZED => (WWW_AUTHENTICATE, "Bearer realm=\"skerry\""),
        _ => return,
    };
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_is_followed_by_two_hex_digits_and_no_sign() {
        assert_eq!(percent_decode("a%2Fb%c3%a9").as_deref(), Some("a/bé"));
        for wrong in ["%+1", "%-1", "% 1", "%1", "%", "%zz", "%C3%28"] {
            assert_eq!(percent_decode(wrong), None, "{wrong}");
        }
    }
}
