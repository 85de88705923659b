//! The gRPC health checking protocol: the call `grpc.health.v1.Health/Check`
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//!
//! Its two messages have one field each, so they are written and read here, without a library for
//! protocol buffers.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

use super::super::pool::members::Member;
use super::check::USER_AGENT_VALUE;
use crate::fields::is_grpc;

/// The call, with this [`question`].
pub(super) fn call(
    question: Bytes,
    member: &Member,
    host: Option<&HeaderValue>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let authority = host.map_or(member.authority.as_str().as_bytes(), HeaderValue::as_bytes);
    let uri = Uri::builder().scheme(member.scheme.as_str()).authority(authority);
    Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query(PATH).build()?)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, USER_AGENT_VALUE)
        .body(Full::new(question))
}

/// Passes only if the service says that it is serving.
///
/// # Errors
/// Why the check failed.
pub(super) async fn judge(response: Response<Incoming>) -> Result<(), String> {
    let (head, body) = response.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE);
    if head.status != 200 || !content_type.is_some_and(|value| is_grpc(value.as_bytes())) {
        let status = head.status.as_u16();
        return Err(format!("the response, with status {status}, is not one of gRPC"));
    }
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| format!("the response ended early: {error}"))?;
    // A response without a message has its status in its only header section.
    check_status(body.trailers().unwrap_or(&head.headers))?;
    match serving_status(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(2) => Err("the service says NOT_SERVING".to_owned()),
        Some(number) => Err(format!("the service says that its status is {number}, not SERVING")),
        None => Err("the response has no message of the health protocol".to_owned()),
    }
}

fn check_status(trailers: &HeaderMap) -> Result<(), String> {
    let text = |name| trailers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some("5") => Err("the server does not know the service (check.service)".to_owned()),
        Some("12") => Err("the server does not have the service grpc.health.v1.Health".to_owned()),
        Some(code) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(format!("grpc-status {code} {message}").trim_end().to_owned())
        }
        None => Err("the response has no grpc-status".to_owned()),
    }
}

/// `HealthCheckRequest { service = 1 }` as a message of gRPC: a byte that says that it is not
/// compressed, its length in four bytes, and the message. `service` is the full name of a service, such as
/// `shop.Cart`, shorter than 128 bytes; empty: the server as a whole.
pub(super) fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 7);
    let field = if service.is_empty() { 0 } else { service.len() as u8 + 2 };
    message.extend_from_slice(&[0, 0, 0, 0, field]);
    if field > 0 {
        message.extend_from_slice(&[FIELD_1_TEXT, service.len() as u8]);
        message.extend_from_slice(service.as_bytes());
    }
    message.into()
}

/// The field `status = 1` of a `HealthCheckResponse`; 0 if the message leaves it out. `None`: not such a
/// message.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    if prefix[0] != 0 || length as usize != message.len() {
        return None;
    }
    match message {
        [] => Some(0),
        [FIELD_1_NUMBER, status] if *status < 0x80 => Some(u64::from(*status)),
        _ => None,
    }
}

/// The name of a service can be this long, so that its length takes one byte.
pub(crate) const SERVICE_BYTES_MAX: usize = 125;
const PATH: &str = "/grpc.health.v1.Health/Check";
/// Key of a field: its number, shifted by three, and its wire type.
const FIELD_1_TEXT: u8 = 1 << 3 | 2;
const FIELD_1_NUMBER: u8 = 1 << 3;
const SERVING: u64 = 1;
const ANSWER_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_those_of_the_protocol() {
        assert_eq!(&question("")[..], [0; 5]);
        assert_eq!(&question("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let longest = question(&"x".repeat(SERVICE_BYTES_MAX));
        assert_eq!((longest.len(), longest[4]), (SERVICE_BYTES_MAX + 7, 127));
    }

    #[test]
    fn answers_are_read_and_nothing_else() {
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x01"), Some(1));
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x02"), Some(2));
        assert_eq!(serving_status(b"\0\0\0\0\0"), Some(0));
        for other in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x02\x08",
            b"\0\0\0\0\x02\x12\x01",
            b"\0\0\0\0\x03\x08\x81\x01",
            b"\0\xff\xff\xff\xff\x08\x01",
        ] {
            assert_eq!(serving_status(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_status_that_is_not_ok_names_its_cause() {
        let trailers = |fields: &[(&'static str, &'static str)]| {
            let field = |(name, value): &(&'static str, &'static str)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            fields.iter().map(field).collect::<HeaderMap>()
        };
        assert_eq!(check_status(&trailers(&[("grpc-status", "0")])), Ok(()));
        let told = |fields| check_status(&trailers(fields)).unwrap_err();
        assert!(told(&[("grpc-status", "5")]).contains("check.service"));
        assert!(told(&[("grpc-status", "12")]).contains("grpc.health.v1.Health"));
        assert_eq!(told(&[("grpc-status", "14"), ("grpc-message", "busy")]), "grpc-status 14 busy");
        assert_eq!(told(&[("grpc-status", "8")]), "grpc-status 8");
        assert_eq!(told(&[]), "the response has no grpc-status");
    }
}
