//! The errors of the request path. Each function makes the reply for one error of guard, upstream or this
//! room.

use std::borrow::Cow;

use http::StatusCode;

use super::outcome::{PathError, facts_of};
use super::routing;
use crate::body::{BodyError, BodyFault};
use crate::cache::{CacheStatus, Reason};
use crate::fields::FieldsMut;
use crate::guard::{Refusal, Rejection};
use crate::labels::{HopRefusal, PeerRefusal};
use crate::metrics::{Metric, Recorder};
use crate::peers::{HOP, HopVerdict, verdict_field};
use crate::reply::Reply;
use crate::respond::ErrorReply;
use crate::upstream::{FetchError, ProxyError};

/// A request that guard does not let in. Counts it.
pub(super) fn refused(rejection: Rejection, recorder: &Recorder) -> Box<PathError> {
    let status = CacheStatus::generated(rejection.refusal.reason());
    facts_of(status).fail(rejected(rejection, recorder))
}

/// As [`refused`], with the text of the cause for the log.
pub(super) fn refused_with_cause(
    refusal: Refusal,
    cause: Option<Box<str>>,
    recorder: &Recorder,
) -> Box<PathError> {
    let mut error = refused(refusal.into(), recorder);
    error.error.cause = cause;
    error
}

/// A request of a peer that may not be answered. The reply says so in `Skerry-Hop`, so that the peer asks another
/// node, or the origin (RFC 9110 §15.5.20).
pub(super) fn peer_refused(refusal: PeerRefusal) -> Box<PathError> {
    let detail = refusal.to_string();
    let mut error =
        ErrorReply::new(StatusCode::MISDIRECTED_REQUEST, "peer-refused", detail.clone());
    error.cause = Some(detail.into());
    let verdict = verdict_field(HopVerdict::Refused(HopRefusal::Other));
    error.reply.fields.append(&HOP, &verdict);
    facts_of(CacheStatus::generated(Reason::Refused)).fail(error)
}

/// The reply to a peer that must go on without this node. It has no content.
pub(super) fn refusal_to_peer(refusal: HopRefusal) -> Reply {
    let mut reply = Reply::new(StatusCode::MISDIRECTED_REQUEST);
    reply.fields.append(&HOP, &verdict_field(HopVerdict::Refused(refusal)));
    reply
}

/// A PURGE from an address that is not listed. Counts it.
pub(super) fn purge_denied(recorder: &Recorder) -> Box<PathError> {
    let mut error = refused(Refusal::AddressDenied.into(), recorder);
    error.error.detail = "PURGE is not allowed from this address (guard.purge_from)".into();
    error
}

/// A request whose content failed. Counts the refusal if a limit of ours was reached.
pub(super) fn request_body(fault: BodyFault, reason: &str, recorder: &Recorder) -> ErrorReply {
    let error = match fault {
        BodyFault::Late => rejected(Refusal::TimedOut.into(), recorder),
        BodyFault::TooLong => rejected(Refusal::ContentTooLong.into(), recorder),
        BodyFault::Broken | BodyFault::Undecodable => {
            let kind = ProxyError::HttpRequestError.as_str();
            let detail = "the request's content is malformed or incomplete";
            let error = ErrorReply::new(StatusCode::BAD_REQUEST, kind, detail);
            ErrorReply { proxy_error: Some(kind), ..error }
        }
    };
    ErrorReply { cause: Some(reason.into()), ..error }
}

fn rejected(Rejection { refusal, reply }: Rejection, recorder: &Recorder) -> ErrorReply {
    recorder.count_labelled(Metric::Refused, refusal.index());
    let detail = refusal.to_string().into();
    ErrorReply { reply, reason: refusal.as_str(), detail, cause: None, proxy_error: None }
}

/// A request for a host that no site has.
pub(super) fn no_site(host: &str) -> Box<PathError> {
    let error = ErrorReply::new(StatusCode::MISDIRECTED_REQUEST, "no-site", routing::no_site(host));
    facts_of(CacheStatus::generated(Reason::Refused)).fail(error)
}

/// The request says only-if-cached, and `reason` prevents the use of what is stored.
pub(super) fn only_if_cached(reason: Reason) -> Box<PathError> {
    let detail = "the request wants a stored response only, and none can be used";
    let error = ErrorReply::new(StatusCode::GATEWAY_TIMEOUT, "only-if-cached", detail);
    facts_of(CacheStatus::generated(reason)).fail(error)
}

/// A purge by method that was not ordered.
pub(super) fn purge(status: StatusCode, detail: String) -> Box<PathError> {
    let error = ErrorReply::new(status, "purge-refused", detail);
    let is_ours = status.is_server_error();
    let error = if is_ours { error.with_retry_after(1) } else { error };
    facts_of(CacheStatus::generated(Reason::AnsweredHere)).fail(error)
}

/// Upstream gave no response. The client learns the kind of failure; the log names the origin.
pub(super) fn upstream(error: &FetchError, recorder: &Recorder) -> ErrorReply {
    if let FetchError::RequestBody { fault, reason } = error {
        return request_body(*fault, reason, recorder);
    }
    let (status, kind) = (error.status(), error.proxy_error());
    let detail = match error {
        FetchError::FieldsDiffer { field, .. } => {
            format!("the origin sent {field} twice, with different values").into()
        }
        FetchError::ShieldGone { .. } => {
            Cow::Borrowed("no node of the region that asks the origin is available")
        }
        _ => Cow::Borrowed(sentence(error.error_type())),
    };
    let reply = ErrorReply::new(status, error.reason(), detail);
    let cause = Some(error.to_string().into());
    let reply = ErrorReply { proxy_error: Some(kind), cause, ..reply };
    if status == StatusCode::SERVICE_UNAVAILABLE {
        reply.with_retry_after(error.retry_after())
    } else {
        reply
    }
}

/// The reply to a visitor whose exchange failed.
fn sentence(kind: ProxyError) -> &'static str {
    match kind {
        ProxyError::DnsTimeout | ProxyError::DnsError => "the origin's name cannot be resolved",
        ProxyError::DestinationUnavailable => "no origin is available",
        ProxyError::DestinationIpUnroutable => "the origin cannot be reached",
        ProxyError::ConnectionRefused => "the origin refused the connection",
        ProxyError::ConnectionTerminated => "the origin closed the connection without a response",
        ProxyError::ConnectionTimeout => "no connection to the origin in time",
        ProxyError::ConnectionReadTimeout => "the origin did not send its content in time",
        ProxyError::ConnectionLimitReached => "too many connections to the origin are open",
        ProxyError::TlsProtocolError | ProxyError::TlsAlertReceived => {
            "the TLS handshake with the origin failed"
        }
        ProxyError::TlsCertificateError => "the origin's certificate is not valid",
        ProxyError::HttpRequestError => "the request's content is malformed or incomplete",
        ProxyError::HttpResponseIncomplete => "the origin's response is incomplete",
        ProxyError::HttpResponseHeaderSectionSize => "the origin's response header is too large",
        ProxyError::HttpResponseTimeout => "the origin did not respond in time",
        ProxyError::HttpUpgradeFailed => "the origin switched protocols unexpectedly",
        ProxyError::HttpResponseTransferCoding | ProxyError::HttpProtocolError => {
            "the origin's response is not valid HTTP"
        }
    }
}

/// The origin's content does not have the coding that its fields state.
pub(super) fn undecodable(error: &BodyError) -> ErrorReply {
    let kind = "http_response_content_coding";
    let detail = "the origin's content is not valid in its content coding";
    let reply = ErrorReply::new(StatusCode::BAD_GATEWAY, kind, detail);
    ErrorReply { proxy_error: Some(kind), cause: Some(error.to_string().into()), ..reply }
}

/// Upstream answered with an error that is not passed on.
pub(super) fn upstream_status(status: StatusCode) -> ErrorReply {
    let detail = format!("the origin answered {status}");
    ErrorReply {
        proxy_error: Some("http_request_error"),
        ..ErrorReply::new(status, "upstream-error", detail)
    }
}

/// The task that carries out the upstream exchange ended without an answer.
pub(super) fn abandoned() -> ErrorReply {
    let detail = "the task that asked the origin ended without an answer";
    let reply = ErrorReply::new(StatusCode::SERVICE_UNAVAILABLE, "abandoned", detail);
    ErrorReply { proxy_error: Some("proxy_internal_error"), ..reply }.with_retry_after(1)
}
