//! The consequences of an error: the status and the Proxy-Status that the client gets (RFC 9209 §2.3), whether another
//! try may help, and its meaning for the health of the origin.

use std::error::Error;
use std::io;

use http::StatusCode;

use super::super::health::Outcome;
use super::FetchError;
use crate::labels::{ProxyError, RetryReason};

impl FetchError {
    /// The error type in Proxy-Status (RFC 9209 §2.3).
    pub(crate) fn error_type(&self) -> ProxyError {
        match self {
            Self::DnsTimeout { .. } => ProxyError::DnsTimeout,
            Self::Dns { .. } => ProxyError::DnsError,
            Self::AllDown { .. }
            | Self::NoOrigins { .. }
            | Self::ShieldGone { .. }
            | Self::FailedAtPeer { .. } => ProxyError::DestinationUnavailable,
            Self::ConnectionLimit { .. } | Self::Busy { .. } => ProxyError::ConnectionLimitReached,
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    ProxyError::DestinationIpUnroutable
                }
                io::ErrorKind::TimedOut => ProxyError::ConnectionTimeout,
                _ => ProxyError::ConnectionRefused,
            },
            Self::ConnectTimeout { .. } | Self::TlsTimeout { .. } => ProxyError::ConnectionTimeout,
            Self::Certificate { .. } => ProxyError::TlsCertificateError,
            Self::Tls { source, .. } if is_alert(source) => ProxyError::TlsAlertReceived,
            Self::Tls { .. } | Self::NoHttp2 { .. } => ProxyError::TlsProtocolError,
            Self::Terminated { source, .. } if is_alert(source) => ProxyError::TlsAlertReceived,
            Self::Terminated { .. } => ProxyError::ConnectionTerminated,
            Self::Incomplete { .. } | Self::ContentMissing { .. } => {
                ProxyError::HttpResponseIncomplete
            }
            Self::ContentTimeout { .. } => ProxyError::ConnectionReadTimeout,
            Self::ResponseTimeout { .. } => ProxyError::HttpResponseTimeout,
            Self::HeaderSize { .. } => ProxyError::HttpResponseHeaderSectionSize,
            Self::TransferCoding { .. } => ProxyError::HttpResponseTransferCoding,
            Self::Protocol { .. }
            | Self::FramedTwice { .. }
            | Self::FieldsDiffer { .. }
            | Self::UnaskedNotModified { .. } => ProxyError::HttpProtocolError,
            Self::UnaskedUpgrade { .. } => ProxyError::HttpUpgradeFailed,
            Self::RequestBody { .. } => ProxyError::HttpRequestError,
        }
    }

    /// The text of [`FetchError::error_type`].
    pub(crate) fn proxy_error(&self) -> &'static str {
        self.error_type().as_str()
    }

    /// The reason in the access log: more specific than [`FetchError::proxy_error`] in some cases.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::FieldsDiffer { .. } => "fields_differ",
            Self::ShieldGone { .. } => "shield_gone",
            Self::FailedAtPeer { .. } => "failed_at_peer",
            _ => self.proxy_error(),
        }
    }

    /// The value of `Retry-After` (RFC 9110 §10.2.3) with a 503, in seconds.
    pub(crate) fn retry_after(&self) -> u32 {
        if let Self::AllDown { retry_after, .. } = self { *retry_after } else { RETRY_AFTER_S }
    }

    /// 400 when the client is to blame, else 502, 503 or 504 as RFC 9209 recommends.
    pub(crate) fn status(&self) -> StatusCode {
        match self.error_type() {
            ProxyError::HttpRequestError => StatusCode::BAD_REQUEST,
            ProxyError::DestinationUnavailable | ProxyError::ConnectionLimitReached => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ProxyError::DnsTimeout
            | ProxyError::ConnectionTimeout
            | ProxyError::ConnectionReadTimeout
            | ProxyError::HttpResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// Whether the origin may have received any of the request, and so may have processed it.
    pub(crate) fn origin_may_have_seen(&self) -> bool {
        match self {
            Self::DnsTimeout { .. }
            | Self::Dns { .. }
            | Self::AllDown { .. }
            | Self::NoOrigins { .. }
            | Self::Busy { .. }
            | Self::ConnectionLimit { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Certificate { .. }
            | Self::Tls { .. }
            | Self::NoHttp2 { .. }
            | Self::ShieldGone { .. }
            | Self::TlsTimeout { .. } => false,
            Self::Terminated { sent, .. } => *sent,
            Self::Incomplete { .. }
            | Self::ContentMissing { .. }
            | Self::ContentTimeout { .. }
            | Self::ResponseTimeout { .. }
            | Self::HeaderSize { .. }
            | Self::TransferCoding { .. }
            | Self::FramedTwice { .. }
            | Self::FieldsDiffer { .. }
            | Self::UnaskedNotModified { .. }
            | Self::Protocol { .. }
            | Self::UnaskedUpgrade { .. }
            | Self::FailedAtPeer { .. }
            | Self::RequestBody { .. } => true,
        }
    }

    /// The word for it in `retry.on`; `None`: no other try would help.
    pub(in crate::upstream) fn retry_reason(&self) -> Option<RetryReason> {
        Some(match self {
            Self::RequestBody { .. }
            | Self::AllDown { .. }
            | Self::NoOrigins { .. }
            | Self::ShieldGone { .. }
            | Self::FailedAtPeer { .. }
            | Self::Busy { .. } => {
                return None;
            }
            Self::DnsTimeout { .. }
            | Self::Dns { .. }
            | Self::ConnectionLimit { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Certificate { .. }
            | Self::Tls { .. }
            | Self::NoHttp2 { .. }
            | Self::TlsTimeout { .. } => RetryReason::Connect,
            Self::Terminated { source, .. } if source.is_refused_stream() => RetryReason::Refused,
            Self::Terminated { .. } | Self::Incomplete { .. } => RetryReason::Reset,
            Self::ContentMissing { .. } => RetryReason::Truncated,
            Self::ContentTimeout { .. } | Self::ResponseTimeout { .. } => RetryReason::Timeout,
            Self::HeaderSize { .. }
            | Self::TransferCoding { .. }
            | Self::FramedTwice { .. }
            | Self::FieldsDiffer { .. }
            | Self::UnaskedNotModified { .. }
            | Self::Protocol { .. }
            | Self::UnaskedUpgrade { .. } => RetryReason::Invalid,
        })
    }

    /// The meaning of the error for the origin's health; `None`: nothing.
    pub(in crate::upstream) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::RequestBody { .. }
            | Self::ConnectionLimit { .. }
            | Self::AllDown { .. }
            | Self::NoOrigins { .. }
            | Self::ShieldGone { .. }
            | Self::FailedAtPeer { .. }
            | Self::Busy { .. } => None,
            Self::Terminated { source, .. } if source.is_refused_stream() => None,
            Self::DnsTimeout { .. }
            | Self::Dns { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Certificate { .. }
            | Self::Tls { .. }
            | Self::NoHttp2 { .. }
            | Self::TlsTimeout { .. } => Some(Outcome::Unreachable),
            Self::ContentMissing { .. } | Self::ContentTimeout { .. } => Some(Outcome::BrokenOff),
            Self::Terminated { .. }
            | Self::Incomplete { .. }
            | Self::ResponseTimeout { .. }
            | Self::HeaderSize { .. }
            | Self::TransferCoding { .. }
            | Self::FramedTwice { .. }
            | Self::FieldsDiffer { .. }
            | Self::UnaskedNotModified { .. }
            | Self::Protocol { .. }
            | Self::UnaskedUpgrade { .. } => Some(Outcome::Faulty),
        }
    }
}

/// Whether a TLS alert ended the connection. An alert about a client certificate arrives after the
/// handshake (RFC 8446 §4.4.2.4).
fn is_alert(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(_)) = tls {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The `Retry-After` of a 503 whose end is not known.
const RETRY_AFTER_S: u32 = 5;
