//! The reply to a request that was refused or failed (RFC 9110 §15, RFC 9209).

use std::borrow::Cow;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use crate::body::Body;
use crate::fields::FieldsMut;
use crate::reply::Reply;

/// A reply that states an error, before [`ErrorReply::complete`] adds what all of them have.
#[derive(Debug)]
pub(crate) struct ErrorReply {
    /// The status and the fields of this error, such as `Allow` or `Retry-After`. Its content, if it
    /// has any, is sent instead of the usual text.
    pub reply: Reply,
    /// A word from a closed list, for log and metrics.
    pub reason: &'static str,
    /// The error, in one sentence for the client. Contains no secrets.
    pub detail: Cow<'static, str>,
    /// The text of the cause, for the access log only. It may name origins and options.
    pub cause: Option<Box<str>>,
    /// The error type for `Proxy-Status` (RFC 9209 §2.3). `None` if no upstream is involved.
    pub proxy_error: Option<&'static str>,
}

impl ErrorReply {
    /// An error with this status and no fields of its own.
    pub(crate) fn new(
        status: StatusCode,
        reason: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        let detail = detail.into();
        Self { reply: Reply::new(status), reason, detail, cause: None, proxy_error: None }
    }

    /// Adds `Retry-After`.
    pub(crate) fn with_retry_after(mut self, seconds: u32) -> Self {
        self.reply.fields.append_number(&RETRY_AFTER, seconds.into());
        self
    }

    /// The reply to send: with `Cache-Control: no-store`, `Proxy-Status` if an upstream is involved,
    /// and a text as content unless the error has its own. `server` names this node in
    /// `Proxy-Status`.
    pub(crate) fn complete(self, server: &str, request_id: &str) -> Reply {
        let Self { mut reply, detail, proxy_error, .. } = self;
        if matches!(reply.body, Body::Empty) {
            let (status, phrase) = (reply.status.as_u16(), reply.status.canonical_reason());
            let phrase = phrase.unwrap_or("Error");
            reply.body = format!("{status} {phrase}\n{detail}\nrequest {request_id}\n").into();
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            reply.fields.append(&CONTENT_TYPE, &text);
        }
        reply.fields.append(&CACHE_CONTROL, &HeaderValue::from_static("no-store"));
        if let Some(error) = proxy_error
            && let Ok(value) = HeaderValue::try_from(format!("{server}; error={error}"))
        {
            reply.fields.append(&PROXY_STATUS, &value);
        }
        reply
    }
}

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::BodySource;

    #[test]
    fn an_upstream_failure_names_its_type_and_is_never_stored() {
        let error = ErrorReply {
            proxy_error: Some("connection_refused"),
            ..ErrorReply::new(
                StatusCode::BAD_GATEWAY,
                "connection_refused",
                "the origin refused the connection",
            )
        };
        let reply = error.with_retry_after(5).complete("skerry", "0f");
        assert_eq!(reply.status, 502);
        let fields = reply.fields.to_map();
        assert_eq!(fields["proxy-status"], "skerry; error=connection_refused");
        assert_eq!(fields["cache-control"], "no-store");
        assert_eq!(fields["retry-after"], "5");
        let length = "502 Bad Gateway\nthe origin refused the connection\nrequest 0f\n".len();
        assert_eq!(reply.body.exact_length(), Some(length as u64));
    }

    #[test]
    fn an_error_with_content_of_its_own_gets_no_text() {
        let mut error = ErrorReply::new(StatusCode::FOUND, "login", "log in first");
        error.reply.body = "<a href=/login>log in</a>".into();
        let reply = error.complete("skerry", "0f");
        assert_eq!(reply.body.exact_length(), Some(25));
        assert!(!reply.fields.to_map().contains_key("content-type"));
        assert_eq!(reply.fields.to_map()["cache-control"], "no-store");
    }
}
