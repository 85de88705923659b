//! What the requests of one connection share, whatever version of HTTP it speaks.

use std::cell::RefCell;
use std::rc::Rc;

use http::HeaderValue;

use crate::context::Connection;
use crate::metrics::Recorder;

use super::session::Session;
use super::{OnRefused, Unread, record};

/// One client, and what its requests are handed to.
pub(super) struct Client<S> {
    pub(super) service: S,
    pub(super) on_refused: OnRefused,
    pub(super) facts: Rc<Connection>,
    pub(super) session: Rc<Session>,
    pub(super) recorder: Recorder,
    /// Kept current by the worker.
    pub(super) date: Rc<RefCell<HeaderValue>>,
}

impl<S> Client<S> {
    /// Counts and logs a request that no other room sees.
    pub(super) fn refuse(&self, why: Unread) {
        record::unread(&self.recorder, why);
        (self.on_refused)(self.facts.clone(), why);
    }
}
