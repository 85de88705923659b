//! Statuses whose responses are not stored like others (RFC 9110 §15, RFC 6585).

use http::StatusCode;

/// Statuses that are never stored: interim responses, 304, 412, 416, 426, which depends on the
/// hop-by-hop `Upgrade` field, and 428, 429, 431 and 511, which no cache may store (RFC 6585 §3 to §6).
pub(crate) fn is_never_stored(status: StatusCode) -> bool {
    status.is_informational()
        || matches!(
            status,
            StatusCode::NOT_MODIFIED
                | StatusCode::PRECONDITION_FAILED
                | StatusCode::RANGE_NOT_SATISFIABLE
                | StatusCode::UPGRADE_REQUIRED
                | StatusCode::PRECONDITION_REQUIRED
                | StatusCode::TOO_MANY_REQUESTS
                | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
                | StatusCode::NETWORK_AUTHENTICATION_REQUIRED
        )
}

/// Statuses that tell of one request or client and not of the resource. The next request can get a
/// response that may be stored.
pub(super) fn is_about_one_request(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::NOT_ACCEPTABLE
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::RANGE_NOT_SATISFIABLE
            | StatusCode::EXPECTATION_FAILED
            | StatusCode::TOO_EARLY
            | StatusCode::PRECONDITION_REQUIRED
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    )
}
