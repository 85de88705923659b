//! Why a request was refused, and what that means for the answer and the connection. A request
//! whose head cannot be read is refused before by the listener (`listen::Unread`).

use std::time::Duration;

use http::StatusCode;

/// Why a request does not come in. The first one found is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Host` and no authority in the target.
    #[error("the request names no host")]
    HostMissing,
    /// More than one `Host` field (RFC 9112 §3.2).
    #[error("the request has more than one Host field")]
    HostRepeated,
    /// Not a host and port; user information counts as such.
    #[error("the request's host is not a host")]
    HostInvalid,
    /// `Host` and the target name two hosts.
    #[error("Host and the request target disagree")]
    HostDisagrees,
    /// The target says `http` on a TLS connection, or the other way round (RFC 9110 §7.4).
    #[error("the target's scheme is not the connection's")]
    SchemeDisagrees,
    /// Neither a path, a URL nor `OPTIONS *`.
    #[error("the request target has no path")]
    TargetInvalid,
    /// `%` without two hexadecimal digits in the path.
    #[error("the path has a broken percent-encoding")]
    PercentInvalid,
    /// A control character in the path, encoded or not.
    #[error("the path has a control character")]
    PathControl,
    /// Both `Transfer-Encoding` and `Content-Length` (RFC 9112 §6.1).
    #[error("the request has both Transfer-Encoding and Content-Length")]
    FramingDouble,
    /// `Transfer-Encoding` other than exactly `chunked`, or not in HTTP/1.1.
    #[error("the request's Transfer-Encoding is not exactly chunked")]
    TransferCoding,
    /// `Content-Length` is repeated or not a number.
    #[error("the request's Content-Length is not one number")]
    LengthInvalid,
    /// CONNECT: this is not a forward proxy.
    #[error("CONNECT is not offered")]
    MethodConnect,
    /// TRACE, where it is not let through.
    #[error("TRACE is not allowed")]
    MethodTrace,
    /// A method that the rule does not have.
    #[error("the method is not allowed here")]
    MethodDenied,
    /// Our name stands too often in `CDN-Loop` (RFC 8586).
    #[error("the request came round in a loop")]
    Loop,
    /// The client's address is on the rule's deny list, or not on its allow list.
    #[error("the client's address is not allowed")]
    AddressDenied,
    /// The client's country is on the rule's deny list, or not on its allow list.
    #[error("the client's country is not allowed")]
    CountryDenied,
    /// Too many requests from this client.
    #[error("the client sent too many requests")]
    RateLimited {
        /// When the next one is welcome, for `Retry-After`.
        retry_after: Duration,
    },
    /// The request's content is longer than the rule allows.
    #[error("the request's content is too long")]
    ContentTooLong,
    /// The request's content did not come in time.
    #[error("the request's content did not come in time")]
    TimedOut,
    /// An `Expect` other than `100-continue` (RFC 9110 §10.1.1).
    #[error("the request expects what is not known here")]
    ExpectationUnknown,
    /// The client was shown a certificate for other hosts, and we have one for this host.
    #[error("the connection's certificate is not for the request's host")]
    Misdirected,
}

impl Refusal {
    /// The name in logs and metrics; one of [`crate::metrics::REFUSALS`].
    pub fn as_str(self) -> &'static str {
        crate::metrics::REFUSALS[self.index()]
    }

    /// The position in [`crate::metrics::REFUSALS`].
    pub fn index(self) -> usize {
        match self {
            Self::HostMissing => 0,
            Self::HostRepeated => 1,
            Self::HostInvalid => 2,
            Self::HostDisagrees => 3,
            Self::SchemeDisagrees => 4,
            Self::TargetInvalid => 5,
            Self::PercentInvalid => 6,
            Self::PathControl => 7,
            Self::FramingDouble => 8,
            Self::TransferCoding => 9,
            Self::LengthInvalid => 10,
            Self::MethodConnect => 11,
            Self::MethodTrace => 12,
            Self::MethodDenied => 13,
            Self::Loop => 14,
            Self::AddressDenied => 15,
            Self::CountryDenied => 16,
            Self::RateLimited { .. } => 17,
            Self::ContentTooLong => 18,
            Self::TimedOut => 19,
            Self::ExpectationUnknown => 20,
            Self::Misdirected => 21,
        }
    }

    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::HostMissing
            | Self::HostRepeated
            | Self::HostInvalid
            | Self::HostDisagrees
            | Self::TargetInvalid
            | Self::PercentInvalid
            | Self::PathControl
            | Self::FramingDouble
            | Self::LengthInvalid => StatusCode::BAD_REQUEST,
            Self::AddressDenied | Self::CountryDenied => StatusCode::FORBIDDEN,
            Self::MethodTrace | Self::MethodDenied => StatusCode::METHOD_NOT_ALLOWED,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::ContentTooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SchemeDisagrees | Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::ExpectationUnknown => StatusCode::EXPECTATION_FAILED,
            Self::TransferCoding | Self::MethodConnect => StatusCode::NOT_IMPLEMENTED,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// Whether the connection ends with the answer: it does where the end of this request,
    /// and so the start of the next, is in doubt, where its content won't be read, and where
    /// its form is wrong, for then what comes next may be no request either.
    pub fn closes(self) -> bool {
        self.status() == StatusCode::BAD_REQUEST
            || matches!(
                self,
                Self::TransferCoding | Self::MethodConnect | Self::ContentTooLong | Self::TimedOut
            )
    }
}
