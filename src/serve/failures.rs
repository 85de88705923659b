//! What the rooms call their failures, as what the last room answers with.

use http::{HeaderValue, StatusCode};

use crate::guard::Refusal;
use crate::metrics::{Metric, Recorder};
use crate::respond::Failure;
use crate::upstream::FetchError;

/// Counts it besides.
pub(super) fn refused(refusal: Refusal, recorder: &Recorder) -> Failure {
    recorder.count_labelled(Metric::Refused, refusal.index());
    let retry_after_s = match refusal {
        Refusal::RateLimited { retry_after } => {
            Some(u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX).max(1))
        }
        _ => None,
    };
    Failure {
        status: refusal.status(),
        reason: refusal.as_str(),
        detail: refusal.to_string().into(),
        proxy_error: None,
        close: refusal.closes(),
        retry_after_s,
        allow: (refusal == Refusal::MethodTrace).then_some(ALL_BUT_TRACE),
    }
}

/// What the client is told is the kind of failure; which origin it was stays in the log.
pub(super) fn upstream(error: &FetchError) -> Failure {
    let status = error.status();
    let kind = error.proxy_error();
    let detail = match error {
        FetchError::FieldsDiffer { field, .. } => {
            format!("the origin sent {field} twice, with different values")
        }
        _ => format!("the origin gave no response ({})", kind.replace('_', " ")),
    };
    Failure {
        status,
        reason: error.reason(),
        detail: detail.into(),
        proxy_error: Some(kind),
        close: false,
        retry_after_s: (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5),
        allow: None,
    }
}

pub(super) fn abandoned() -> Failure {
    Failure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        reason: "abandoned",
        detail: "the task that asked the origin ended without an answer".into(),
        proxy_error: Some("proxy_internal_error"),
        close: false,
        retry_after_s: Some(1),
        allow: None,
    }
}

pub(super) fn purge(status: StatusCode, detail: String) -> Failure {
    Failure {
        status,
        reason: "purge-refused",
        detail: detail.into(),
        proxy_error: None,
        close: false,
        retry_after_s: status.is_server_error().then_some(1),
        allow: None,
    }
}

pub(super) fn no_site() -> Failure {
    Failure {
        status: StatusCode::MISDIRECTED_REQUEST,
        reason: "no-site",
        detail: "no site here has this host".into(),
        proxy_error: None,
        close: false,
        retry_after_s: None,
        allow: None,
    }
}

pub(super) fn only_if_cached() -> Failure {
    Failure {
        status: StatusCode::GATEWAY_TIMEOUT,
        reason: "only-if-cached",
        detail: "the request wants a stored response only, and none can be used".into(),
        proxy_error: None,
        close: false,
        retry_after_s: None,
        allow: None,
    }
}

pub(super) fn upstream_status(status: StatusCode) -> Failure {
    Failure {
        status,
        reason: "upstream-error",
        detail: format!("the origin answered {status}").into(),
        proxy_error: Some("http_request_error"),
        close: false,
        retry_after_s: None,
        allow: None,
    }
}

/// For `Allow`, where nobody has said which methods there are.
pub(super) const ALL_BUT_TRACE: HeaderValue =
    HeaderValue::from_static("DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT");
