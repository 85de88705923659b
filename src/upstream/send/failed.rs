//! How a try fails.

use std::net::SocketAddr;

use super::super::error::FetchError;
use super::super::health::Outcome;
use crate::body::Body;

/// A failed try.
pub(in crate::upstream) struct Failed {
    pub(in crate::upstream) error: FetchError,
    /// The request's body, if nothing of the request was sent.
    pub(in crate::upstream) body: Option<Body>,
    /// The meaning of the failure for the origin's health; `None`: nothing.
    pub(in crate::upstream) outcome: Option<Outcome>,
    /// The address of the connection, if there was one.
    pub(in crate::upstream) connected: Option<SocketAddr>,
}

impl Failed {
    pub(in crate::upstream) fn new(error: FetchError, body: Option<Body>) -> Self {
        let outcome = error.outcome();
        Self { error, body, outcome, connected: None }
    }

    /// The origin's address, if a connection was attempted.
    pub(in crate::upstream) fn address(&self) -> Option<SocketAddr> {
        match self.error {
            FetchError::Connect { address, .. } => address,
            _ => self.connected,
        }
    }
}
