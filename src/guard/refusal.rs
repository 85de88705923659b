//! The consequences of a [`Refusal`]: the status, the reason in `Cache-Status`, and whether the
//! connection closes. A request whose head cannot be parsed is refused earlier, by the listener
//! (`listen::HeadError`).

use http::StatusCode;

use crate::labels::Reason;
pub(crate) use crate::labels::Refusal;

impl Refusal {
    /// The status of the response.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::HostMissing
            | Self::HostRepeated
            | Self::HostInvalid
            | Self::HostDisagrees
            | Self::TargetInvalid
            | Self::PercentInvalid
            | Self::PathControl
            | Self::PathDots
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

    /// The reason that `Cache-Status`, log and metrics give for the response.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::AddressDenied
            | Self::CountryDenied
            | Self::MethodDenied
            | Self::ContentTooLong => Reason::Denied,
            Self::RateLimited { .. } => Reason::RateLimited,
            _ => Reason::Refused,
        }
    }

    /// Whether the connection closes after the response: if the end of this request, and so the
    /// start of the next, is in doubt; if its content will not be read; and if its syntax is
    /// invalid, because what follows may then not be a request either.
    pub(crate) fn closes(self) -> bool {
        self.status() == StatusCode::BAD_REQUEST
            || matches!(
                self,
                Self::TransferCoding | Self::MethodConnect | Self::ContentTooLong | Self::TimedOut
            )
    }
}
