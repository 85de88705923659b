//! Why a request was refused, and what that means for the answer and the connection. A request
//! whose head cannot be read is refused before by the listener (`listen::Unread`).

use http::StatusCode;

pub(crate) use crate::labels::Refusal;

impl Refusal {
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
