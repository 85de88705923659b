//! When an origin gets no requests, and how origins are tested.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};

/// When an origin gets no requests because of failures (passive health checks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// Failed connections in a row after which the origin is down; 0 is never.
    pub connect_failures: u32,
    /// Faulty responses in a row (5xx, late, incomplete, invalid) after which it is ejected; 0 is
    /// never. After one whose content ended early, a response without content does not end the row.
    pub consecutive_5xx: u32,
    /// Share of faulty responses at which it is ejected, in percent; 0 is never.
    pub error_rate_percent: u32,
    /// Responses that the share is measured on at least.
    pub error_rate_requests_min: u32,
    /// The time that the share is measured over.
    pub error_rate_window: Duration,
    /// Length of the first ejection. Each further one is longer by the same time.
    pub eject_for: Duration,
    /// Maximum length of an ejection.
    pub eject_for_max: Duration,
    /// Maximum share of the pool's origins that may be ejected for faulty responses, in percent.
    /// Origins that are down count, but are not limited.
    pub eject_percent_max: u32,
    /// Time in which an origin that comes back gets its full share of requests.
    pub slow_start: Duration,
    /// Time between two trials when all origins of the pool are down.
    pub trial_interval: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            connect_failures: 3,
            consecutive_5xx: 5,
            error_rate_percent: 50,
            error_rate_requests_min: 20,
            error_rate_window: Duration::from_secs(10),
            eject_for: Duration::from_secs(10),
            eject_for_max: Duration::from_secs(300),
            eject_percent_max: 50,
            slow_start: Duration::ZERO,
            trial_interval: Duration::from_secs(1),
        }
    }
}

/// How each origin of a pool is tested beside the requests (active health checks).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    /// The kind of test.
    pub kind: CheckKind,
    /// From the start of a check to the start of the next; up to 10 % shorter at random.
    pub interval: Duration,
    /// Time limit of one check, connection included. At most the interval.
    pub timeout: Duration,
    /// Passed checks in a row after which an origin is up.
    pub rise: u32,
    /// Failed checks in a row after which it is down.
    pub fall: u32,
    /// Whether an origin is down until its first check has passed.
    pub assume_down: bool,
}

/// The kind of test of a check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CheckKind {
    /// A connection, with the TLS handshake if the origin has one.
    Tcp,
    /// A request and its response.
    Http(HttpCheck),
    /// A call of the gRPC health checking protocol, over HTTP/2.
    Grpc(GrpcCheck),
}

/// A call of the gRPC health checking protocol.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GrpcCheck {
    /// Full name of the service, such as `shop.Cart`, at most 125 bytes; empty: the server as a whole.
    pub service: String,
    /// The authority; `None` is that of the pool's requests, or the origin's own.
    pub host_header: Option<HeaderValue>,
}

/// The request of a check, and the expected response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpCheck {
    /// `GET` or `HEAD`.
    pub method: Method,
    /// Path and query.
    pub path: PathAndQuery,
    /// The `Host`; `None` is that of the pool's requests, or the origin's own.
    pub host_header: Option<HeaderValue>,
    /// Ranges of expected status codes.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// Text that the first 64 KiB of the body must contain; empty: any body.
    pub contains: String,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            kind: CheckKind::Http(HttpCheck::default()),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            assume_down: false,
        }
    }
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: Method::GET,
            path: PathAndQuery::from_static("/"),
            host_header: None,
            statuses: vec![200..=399],
            contains: String::new(),
        }
    }
}
