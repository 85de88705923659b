//! The errors of the request path. Each function makes the reply for one error of guard, upstream or this
//! room.

use http::StatusCode;

use super::outcome::{PathError, facts_of};
use super::routing::NO_SITE;
use crate::cache::{CacheStatus, Reason};
use crate::guard::{Refusal, Rejection};
use crate::metrics::{Metric, Recorder};
use crate::respond::ErrorReply;
use crate::upstream::FetchError;

/// A request that guard does not let in. Counts it.
pub(super) fn refused(rejection: Rejection, recorder: &Recorder) -> Box<PathError> {
    let status = CacheStatus::generated(rejection.refusal.reason());
    facts_of(status).fail(rejected(rejection, recorder))
}

/// A request whose content did not arrive in time. Counts it.
pub(super) fn content_timed_out(recorder: &Recorder) -> ErrorReply {
    rejected(Refusal::TimedOut.into(), recorder)
}

fn rejected(Rejection { refusal, reply }: Rejection, recorder: &Recorder) -> ErrorReply {
    recorder.count_labelled(Metric::Refused, refusal.index());
    let detail = refusal.to_string().into();
    ErrorReply { reply, reason: refusal.as_str(), detail, proxy_error: None }
}

/// A request for a host that no site has.
pub(super) fn no_site() -> Box<PathError> {
    let error = ErrorReply::new(StatusCode::MISDIRECTED_REQUEST, "no-site", NO_SITE);
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
pub(super) fn upstream(error: &FetchError) -> ErrorReply {
    let status = error.status();
    let kind = error.proxy_error();
    let detail = match error {
        FetchError::FieldsDiffer { field, .. } => {
            format!("the origin sent {field} twice, with different values")
        }
        _ => format!("the origin gave no response ({})", kind.replace('_', " ")),
    };
    let reply = ErrorReply::new(status, error.reason(), detail);
    let reply = ErrorReply { proxy_error: Some(kind), ..reply };
    if status == StatusCode::SERVICE_UNAVAILABLE { reply.with_retry_after(5) } else { reply }
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
