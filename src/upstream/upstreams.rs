//! [`Upstreams`]: sends requests to upstreams over the connections of one worker.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;

use super::connection::core::Core;
use super::connection::http2::Http2;
use super::error::{FetchError, Tried, Unanswered};
use super::exchange::deadline::Timers;
use super::exchange::{Intent, UpstreamResponse};
use super::pool::Pool;
use super::resolve::Resolver;
use super::send::{KeptBody, Outgoing};
use crate::body::Body;
use crate::clock::Clock;
use crate::metrics::Recorder;
use crate::planted::{self, Bug};

/// The server that a request is forwarded to.
#[derive(Clone, Debug)]
pub(crate) enum Upstream {
    /// One of the origins of a pool.
    Pool(Arc<Pool>),
}

impl Upstream {
    /// The name in logs and metrics: the pool's.
    pub(crate) fn name(&self) -> &Arc<str> {
        let Self::Pool(pool) = self;
        pool.name()
    }

    /// An upgraded connection is closed after this time without a byte.
    pub(crate) fn tunnel_idle(&self) -> Duration {
        let Self::Pool(pool) = self;
        pool.settings().deadlines.tunnel_idle
    }
}

/// The connections of one worker to all upstreams. Clones share them. Its tasks run on the worker's
/// runtime.
#[derive(Clone)]
pub(crate) struct Upstreams(Rc<Core>);

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstreams({} pools)", self.0.pools())
    }
}

impl Upstreams {
    /// Must be called on the worker's runtime.
    pub(crate) fn new(resolver: Arc<Resolver>, clock: Clock, recorder: Recorder) -> Self {
        Self(Core::new(resolver, clock, recorder, Timers::start()))
    }

    /// Streams in flight on shared connections.
    #[cfg(test)]
    pub(super) fn streams(&self) -> usize {
        self.0.streams()
    }

    /// No member has given a good response lately.
    #[cfg(test)]
    pub(super) fn forget_good_responses(&self) {
        self.0.forget_good_responses();
    }

    /// Bytes read over the HTTP/2 connections of this core to the members of a pool, as long as they are open: PINGs
    /// and their answers too.
    pub(crate) fn bytes_read(&self, pool: &Arc<Pool>) -> u64 {
        let mut bytes = 0;
        self.0.each_http2(pool, |http2| bytes += http2.bytes_read());
        bytes
    }

    /// Sends a PING over each of these connections.
    pub(crate) fn ping(&self, pool: &Arc<Pool>) {
        self.0.each_http2(pool, Http2::ping);
    }

    /// Sends a request upstream and waits for the head of the response.
    ///
    /// `request` makes the head, once for each attempt; the body streams. Of the URI only path and
    /// query are used, and over HTTP/2 the scheme, if it has one. `Host` is set as configured for the pool; the other fields are sent as they
    /// are, so the caller must have removed hop-by-hop fields. Dropping the future, or the body of
    /// the response, ends the exchange.
    ///
    /// If the response announces its length, the first piece of its content is waited for too: an
    /// origin whose connection breaks before that has given no response. A response of unknown
    /// length, such as a stream of events, is returned as soon as its head has arrived.
    ///
    /// # Errors
    /// The error of the last attempt, and which origin it was sent to.
    pub(crate) async fn send(
        &self,
        upstream: &Upstream,
        request: impl Fn() -> Request<()>,
        body: Body,
        intent: &Intent,
    ) -> Result<Box<UpstreamResponse>, Box<Unanswered>> {
        let Upstream::Pool(pool) = upstream;
        let core = &self.0;
        let state = core.state(pool);
        planted::hold_memory();
        if planted::each(Bug::AnswersFail, 20) {
            return Err(all_down(pool));
        }
        state.earn_retry();
        let (kept, body) = KeptBody::of(body, pool, intent);
        let outgoing = Outgoing::new(core, &state, &request, kept, intent);
        // On the heap: the future of the tries is large, and is moved with each future that it is a part of.
        Box::pin(outgoing.send(body)).await
    }
}

/// The response of a planted bug.
fn all_down(pool: &Pool) -> Box<Unanswered> {
    let pool = pool.name().clone();
    let error = FetchError::AllDown { pool: pool.clone(), retry_after: 1 };
    let tried = Tried { pool, origin: None, address: None, attempts: 0, unretried: None };
    Box::new(Unanswered { error, tried })
}
