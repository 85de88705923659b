//! [`Upstreams`]: sends a request to an upstream over the connections of one worker. Chooses an
//! origin, makes an attempt, and makes another one where that is safe.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;

use super::attempt::{Attempt, Blame, Failed};
use super::choice::ChoiceInput;
use super::core::Core;
use super::deadline::Timers;
use super::error::{FetchError, Tried, Unanswered};
use super::exchange::{Intent, UpstreamResponse};
use super::pool::Pool;
use super::resolve::Resolver;
use crate::body::Body;
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};
use crate::planted::{self, Bug};
use crate::random::random_u64;

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

    /// Sends a request upstream and waits for the head of the response.
    ///
    /// `request` makes the head, once for each attempt; the body streams. Of the URI only path and
    /// query are used. `Host` is set as configured for the pool; the other fields are sent as they
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
    ) -> Result<UpstreamResponse, Box<Unanswered>> {
        let Upstream::Pool(pool) = upstream;
        let core = &self.0;
        let mut blames = Vec::new();
        let sent = self.send_to(pool, request, body, intent, &mut blames).await;
        // Without a response, only the first origin is to blame: the request may be at fault.
        let to_blame = if sent.is_ok() { blames.len() } else { 1 };
        blames.iter().take(to_blame).for_each(|blame| blame.record(pool, &core.recorder));
        sent
    }

    /// As [`Upstreams::send`]. Failures that count against an origin's health are added to `blames`.
    async fn send_to(
        &self,
        pool: &Arc<Pool>,
        request: impl Fn() -> Request<()>,
        mut body: Body,
        intent: &Intent,
        blames: &mut Vec<Blame>,
    ) -> Result<UpstreamResponse, Box<Unanswered>> {
        let core = &self.0;
        let state = core.state(pool);
        core.recorder.count(Metric::UpstreamRequests);
        planted::hold_memory();
        let mut last =
            Tried { pool: pool.name().clone(), origin: None, address: None, attempts: 0 };
        let unanswered = |error, tried| Err(Box::new(Unanswered { error, tried }));
        if planted::each(Bug::AnswersFail, 20) {
            return unanswered(all_down(pool, Duration::ZERO), last);
        }
        state.earn_retry();
        let (began, limits) = (core.clock.both(), core.limits(pool.settings(), intent.is_call));
        let mut tried = Vec::new();
        let mut last_error = None;
        loop {
            // The member list is read anew for each attempt: a removed member must get no new request.
            let members = core.members(&state);
            let may_test = || {
                let is_empty = matches!(body, Body::Empty);
                last.attempts == 0 && is_empty && request().method().is_idempotent()
            };
            let input = ChoiceInput::new(intent, &tried, &body);
            let chosen = match state.choose(&members, &input, &core.recorder, may_test) {
                Ok(chosen) => chosen,
                Err(next_trial) => {
                    // The failure of an attempt is counted already.
                    let error = last_error.unwrap_or_else(|| {
                        let error = all_down(pool, next_trial);
                        let label = error.error_type().index();
                        core.recorder.count_labelled(Metric::UpstreamFailures, label);
                        error
                    });
                    return unanswered(error, last);
                }
            };
            let attempts = last.attempts + 1;
            let (request, state) = (&request, &state);
            let attempt = Attempt { core, state, chosen, attempts, began, limits, request, intent };
            let failed = match attempt.exchange(body).await {
                Ok(upstream) => return Ok(upstream),
                Err(failed) => failed,
            };
            blames.extend(attempt.note_failure(&failed));
            let member = &attempt.chosen.member.member;
            last.origin = Some(member.name.clone());
            (last.address, last.attempts) = (failed.address(), attempts);
            let Failed { error, body: retry_body, .. } = failed;
            let retry_body = retry_body.filter(|_| {
                attempts < pool.settings().retry.attempts_max
                    && core.timers.now_ms() < limits.end_ms
            });
            let Some(retry_body) = retry_body else { return unanswered(error, last) };
            tried.push(member.id);
            if members.members.iter().all(|member| tried.contains(&member.id)) {
                // All members were tried. Try them again only if the last one may have received the
                // request; if the last one could not be reached, another round would fail too.
                if !error.origin_may_have_seen() {
                    return unanswered(error, last);
                }
                tried.clear();
            }
            if !state.spend_retry() {
                core.recorder.count(Metric::UpstreamRetriesRefused);
                return unanswered(error, last);
            }
            core.recorder.count_labelled(Metric::UpstreamRetries, RETRY_FAILED);
            (body, last_error) = (retry_body, Some(error));
        }
    }
}

/// Clients are told to come back after the next trial, at different times.
fn all_down(pool: &Pool, next_trial: Duration) -> FetchError {
    if pool.members().len() == 0 {
        return FetchError::NoOrigins { pool: pool.name().clone() };
    }
    let seconds = next_trial.as_secs_f64().ceil().clamp(1.0, 3600.0) as u32;
    let retry_after = seconds + random_u64() as u32 % (seconds + 1);
    FetchError::AllDown { pool: pool.name().clone(), retry_after }
}

/// A label of [`Metric::UpstreamRetries`].
const RETRY_FAILED: usize = 1;
