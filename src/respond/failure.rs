//! The one map from what went wrong to a response (RFC 9110 §15, Proxy-Status of RFC 9209).

use std::borrow::Cow;

use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use crate::fields::FieldsMut;
use crate::reply::Reply;

/// Why the path ended without a response of its own.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What the client gets.
    pub status: StatusCode,
    /// A word from a closed list, for log and metric.
    pub reason: &'static str,
    /// One sentence for the client and the log: what happened, no secrets.
    pub detail: Cow<'static, str>,
    /// The error type of RFC 9209 §2.3, when an upstream is to blame.
    pub proxy_error: Option<&'static str>,
    /// Whether the connection must be closed because its framing is in doubt.
    pub close: bool,
    /// Seconds for `Retry-After`.
    pub retry_after_s: Option<u32>,
    /// The methods that there are, with 405 (RFC 9110 §15.5.6).
    pub allow: Option<HeaderValue>,
}

/// The response that a client gets for a failure. `server` names this node in Proxy-Status.
pub(crate) fn response(failure: &Failure, server: &str, request_id: &str) -> Reply {
    let reason = failure.status.canonical_reason().unwrap_or("Error");
    let text =
        format!("{} {reason}\n{}\nrequest {request_id}\n", failure.status.as_u16(), failure.detail);
    let mut response = Reply { body: text.into(), ..Reply::new(failure.status) };
    let fields = &mut response.fields;
    fields.append(&CONTENT_TYPE, &HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.append(&CACHE_CONTROL, &HeaderValue::from_static("no-store"));
    if let Some(error) = failure.proxy_error
        && let Ok(value) = HeaderValue::try_from(format!("{server}; error={error}"))
    {
        fields.append(&PROXY_STATUS, &value);
    }
    if let Some(seconds) = failure.retry_after_s {
        fields.append(&RETRY_AFTER, &HeaderValue::from(seconds));
    }
    if let Some(methods) = &failure.allow {
        fields.append(&ALLOW, methods);
    }
    if failure.close {
        fields.append(&CONNECTION, &HeaderValue::from_static("close"));
    }
    response
}

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_failure_says_who_and_why_and_is_never_stored() {
        let failure = Failure {
            status: StatusCode::BAD_GATEWAY,
            reason: "connection_refused",
            detail: "the origin refused the connection".into(),
            proxy_error: Some("connection_refused"),
            close: false,
            retry_after_s: None,
            allow: None,
        };
        let response = response(&failure, "skerry", "0f");
        assert_eq!(response.status, 502);
        let fields = response.fields.to_map();
        assert_eq!(fields["proxy-status"], "skerry; error=connection_refused");
        assert_eq!(fields["cache-control"], "no-store");
        assert!(!fields.contains_key("connection"));
    }
}
