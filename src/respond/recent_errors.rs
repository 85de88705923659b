//! The latest responses with a status of 500 or more, for the dashboard: a ring of fixed size.
//!
//! At most one error is added in [`PAUSE`], so that a failing origin costs no locks: the ring shows examples, and
//! the access log has every request.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;

use super::finish::Transaction;
use crate::clock::unix_ms;

/// The ring of all workers.
#[derive(Debug, Default)]
pub(crate) struct RecentErrors {
    /// Newest first, at most [`ERRORS_MAX`].
    ring: Mutex<VecDeque<ErrorExample>>,
    /// When the next error may be added, in milliseconds since 1970.
    next_ms: AtomicU64,
}

/// A request that was answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorExample {
    /// When the request came, in milliseconds since 1970.
    pub at_ms: u64,
    /// The request's id, as in the access log.
    pub id: String,
    /// 500 or more.
    pub status: u16,
    /// `GET https://host/path`, at most [`URL_BYTES_MAX`] bytes.
    pub request: String,
    /// The word of the access log's field `failure`. Empty: the origin sent the status.
    pub failure: &'static str,
    /// The pool and the origin, or empty.
    pub origin: String,
}

impl RecentErrors {
    /// Adds a request, unless one was added just before.
    pub(super) fn note(&self, transaction: &Transaction, status: StatusCode) {
        let at_ms = unix_ms(transaction.request.received_at);
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let pause_ms = PAUSE.as_millis() as u64;
        if at_ms < next_ms && next_ms - at_ms <= pause_ms {
            return;
        }
        self.next_ms.store(at_ms + pause_ms, Ordering::Relaxed);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.truncate(ERRORS_MAX - 1);
        ring.push_front(example(transaction, status, at_ms));
    }

    /// The errors, newest first.
    pub(crate) fn list(&self) -> Vec<ErrorExample> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn example(transaction: &Transaction, status: StatusCode, at_ms: u64) -> ErrorExample {
    let Transaction { request, response } = transaction;
    let head = &request.request;
    let host = head.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("-");
    let target = head.target.path_and_query().map_or("*", |target| target.as_str());
    let mut url = format!("{} {}://{host}{target}", head.method, request.connection.scheme());
    if url.len() > URL_BYTES_MAX {
        url.truncate(url.floor_char_boundary(URL_BYTES_MAX));
        url.push('…');
    }
    let upstream = response.upstream.as_deref();
    let origin = upstream.map(|upstream| match &upstream.origin {
        Some(origin) => format!("{} {origin}", upstream.pool),
        None => upstream.pool.to_string(),
    });
    ErrorExample {
        at_ms,
        id: request.id.to_string(),
        status: status.as_u16(),
        request: url,
        failure: response.failure.unwrap_or_default(),
        origin: origin.unwrap_or_default(),
    }
}

const ERRORS_MAX: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);
const URL_BYTES_MAX: usize = 300;
