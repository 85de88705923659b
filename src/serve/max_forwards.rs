//! Max-Forwards (RFC 9110 §7.6.2): limits how often OPTIONS and TRACE are forwarded. The last recipient
//! answers itself. For other methods the field is forwarded unchanged.

use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, MAX_FORWARDS};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::Visit;
use crate::body::Body;
use crate::fields::{FieldsMut, number};
use crate::guard::ALL_BUT_TRACE;
use crate::reply::Reply;

impl Visit {
    /// How many more times the request may be forwarded. `None`: no limit, because the field is
    /// absent, is not a number, or does not apply to this method.
    pub(super) fn forwards_left(&self) -> Option<u64> {
        if !matches!(self.context.request.method, Method::OPTIONS | Method::TRACE) {
            return None;
        }
        let mut values = self.fields.get_all(MAX_FORWARDS).iter();
        let only = values.next().filter(|_| values.next().is_none());
        only.and_then(|value| number(value.as_bytes()))
    }

    /// The reply to a request that must not be forwarded any further; `None` for other requests.
    pub(super) fn reply_if_max_forwards_is_zero(&self) -> Option<Reply> {
        let is_last = self.forwards_left() == Some(0);
        is_last.then(|| match self.context.request.method {
            Method::TRACE => self.reflect(),
            _ => self.methods(),
        })
    }

    fn methods(&self) -> Reply {
        let access = &self.rule.settings.guard.access;
        let allow = match access.methods.is_empty() {
            true => ALL_BUT_TRACE,
            false => access.allow_field(),
        };
        let mut reply = Reply::new(StatusCode::OK);
        reply.fields.append(&ALLOW, &allow);
        reply
    }

    /// The request after the gate, without credentials (RFC 9110 §9.3.8).
    fn reflect(&self) -> Reply {
        let mut text = format!("TRACE {} HTTP/1.1\r\n", self.request.target).into_bytes();
        let mut push = |name: &HeaderName, value: &HeaderValue| {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                text.extend_from_slice(piece);
            }
        };
        push(&HOST, &self.request.authority.to_field());
        let shown =
            self.fields.iter().filter(|(name, _)| ![HOST, AUTHORIZATION, COOKIE].contains(name));
        shown.for_each(|(name, value)| push(name, value));
        text.extend_from_slice(b"\r\n");
        let mut reply = Reply::new(StatusCode::OK);
        reply.fields.append(&CONTENT_TYPE, &HeaderValue::from_static("message/http"));
        reply.body = Body::from(bytes::Bytes::from(text));
        reply
    }
}
