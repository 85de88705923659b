//! Sends a request to a pool until an origin gives a good response, or no other try may be made.
//!
//! Tries follow each other when one fails, and overlap when one is late:
//!
//! ```text
//!  try 1  ├─connect─┼───per_try_timeout───┤ late · · · · · · · · first_byte
//!  try 2                                  ├──┤ step · · · ·
//!  try 3                                     ├────────▶ the first good response wins
//! ```
//!
//! Once a request has waited for `per_try_timeout`, further tries begin at short intervals. So a
//! request waits no longer than `connect` + `per_try_timeout` while one origin is good, and a
//! page that honestly takes longer still arrives. A response with a status of `retry.on` is held while
//! other origins are tried, and passed on if none is better.

mod blame;
mod failed;
mod first_choice;
mod kept_body;
mod race;
mod recorded_body;
mod rule;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, Request};

use super::choice::{ChoiceInput, Chosen, NoChoice};
use super::connection::core::Core;
use super::error::{FetchError, Tried, Unanswered};
use super::exchange::attempt::Attempt;
use super::exchange::deadline::{Deadline, Limits};
use super::exchange::patience::{Pace, PaceRef};
use super::exchange::{Intent, UpstreamResponse};
use super::health::Outcome;
use super::pool::pool_state::{MemberState, PoolState};
use super::settings::Retry;
use crate::body::{Body, BodySource};
use crate::labels::{RetryReason, Unretried, Unsent};
use crate::metrics::Metric;
use crate::random::random_u64;

use blame::{Blames, Payment, Try};
use race::{Race, RaceEvent, RaceState};
use rule::Case;

pub(super) use failed::Failed;
pub(super) use kept_body::KeptBody;
pub(super) use race::TryResult;

/// A request on its way to a pool: what all its tries share.
pub(super) struct Outgoing<'a> {
    pub(super) core: &'a Rc<Core>,
    pub(super) state: &'a Rc<PoolState>,
    /// Makes the head of the request.
    pub(super) request: &'a dyn Fn() -> Request<()>,
    pub(super) intent: &'a Intent,
    /// When the first try began.
    pub(super) began: (SystemTime, Instant),
    /// The time in the queue of the pool.
    pub(super) queued: Cell<Duration>,
    pub(super) limits: Limits,
    pub(super) kept: KeptBody,
    /// Ids of members whose response broke off; the rest of it is requested.
    broken: Vec<u64>,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(
        core: &'a Rc<Core>,
        state: &'a Rc<PoolState>,
        request: &'a dyn Fn() -> Request<()>,
        kept: KeptBody,
        intent: &'a Intent,
    ) -> Self {
        let limits = core.limits(state.pool.settings(), intent.is_call);
        let began = core.clock.both();
        let (queued, broken) = (Cell::default(), Vec::new());
        Self { core, state, request, intent, began, queued, limits, kept, broken }
    }

    /// The request for the rest of a response that broke off at the members `broken`.
    pub(super) fn resuming(
        core: &'a Rc<Core>,
        state: &'a Rc<PoolState>,
        request: &'a dyn Fn() -> Request<()>,
        intent: &'a Intent,
        broken: Vec<u64>,
    ) -> Self {
        Self { broken, ..Self::new(core, state, request, KeptBody::Empty, intent) }
    }

    /// Whether it requests the rest of a response.
    pub(super) fn is_resumption(&self) -> bool {
        !self.broken.is_empty()
    }

    /// Whether it is a request without content for a response, not for a call or a tunnel.
    pub(super) fn is_plain(&self) -> bool {
        let Intent { upgrade, is_call, .. } = self.intent;
        matches!(self.kept, KeptBody::Empty) && upgrade.is_none() && !is_call
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The error of the last try, and which origin it was sent to.
    pub(super) async fn send(&self, body: Body) -> Result<Box<UpstreamResponse>, Box<Unanswered>> {
        let chosen = self.first_choice(&body).await?;
        if !self.is_resumption() {
            self.core.recorder.count(Metric::UpstreamRequests);
        }
        let mut sending = Sending::new(self, &chosen);
        let pace = Pace::default();
        let attempt = self.attempt(chosen, 1, PaceRef::First(&pace), self.limits);
        let first = pin!(attempt.exchange(body));
        let mut race = Race::new(first, &pace);
        if let Some(head_start) = sending.head_start() {
            race.set_due(Some(sending.timer(head_start)));
        }
        loop {
            let event = poll_fn(|cx| race.poll(cx)).await;
            let cause = match event {
                RaceEvent::Ended(number, Ok(upstream)) => match sending.judge(number, upstream) {
                    Ok(upstream) => return Ok(upstream),
                    Err(cause) => Some(cause),
                },
                RaceEvent::Ended(number, Err(failed)) => Some(sending.failed(number, failed)),
                RaceEvent::Late(number) => sending.late(number),
                RaceEvent::Due => Some(sending.due()),
            };
            let Some(cause) = cause else { continue };
            let state = race.state();
            match sending.another(cause, state) {
                Some(Next { chosen, body, limits }) => {
                    let (number, pace) = (sending.others.len(), Rc::new(Pace::default()));
                    let shared = PaceRef::Other(pace.clone());
                    let attempt = self.attempt(chosen, number as u32 + 1, shared, limits);
                    race.add(number, pace, attempt.exchange(body));
                    race.set_due(sending.next_look());
                }
                None if state == RaceState::Running => race.set_due(sending.next_look()),
                None => return sending.give_up(),
            }
        }
    }

    fn attempt<'b>(
        &'b self,
        chosen: Chosen,
        number: u32,
        pace: PaceRef<'b>,
        limits: Limits,
    ) -> Attempt<'b> {
        Attempt { outgoing: self, chosen, number, pace, limits, is_queued: Cell::new(false) }
    }

    /// The member for the next try, none with an id in `tried`. The list of members is read anew for each
    /// try: a removed member must get no new request.
    fn choose(&self, tried: &[u64], body: &Body) -> Result<Chosen, NoChoice> {
        let members = self.core.members(self.state);
        let may_test = || tried.is_empty() && matches!(body, Body::Empty) && self.is_repeatable();
        let input = ChoiceInput::new(self.intent, tried, !body.is_end_stream());
        self.state.choose(&members, &input, &self.core.recorder, may_test)
    }

    /// Whether the request may be sent again although an origin may have processed it (RFC 9110
    /// §9.2.2).
    pub(super) fn is_repeatable(&self) -> bool {
        self.intent.upgrade.is_none() && self.intent.is_idempotent
    }

    /// Whether it cannot be sent again if its connection closes in the middle of it.
    pub(super) fn is_sent_once(&self) -> bool {
        !self.is_repeatable() || matches!(self.kept, KeptBody::Streaming)
    }

    /// Clients are told to come back after the next trial, at different times.
    fn all_down(&self, next_trial: Duration) -> Box<Unanswered> {
        let pool = self.state.pool.name().clone();
        if self.state.pool.members().len() == 0 {
            return self.unsent(Unsent::NoOrigins, FetchError::NoOrigins { pool });
        }
        let seconds = next_trial.as_secs_f64().ceil().clamp(1.0, 3600.0) as u32;
        let retry_after = seconds + random_u64() as u32 % (seconds + 1);
        self.unsent(Unsent::AllDown, FetchError::AllDown { pool, retry_after })
    }

    /// No origin was chosen.
    fn unsent(&self, why: Unsent, error: FetchError) -> Box<Unanswered> {
        let pool = self.state.pool.name().clone();
        self.core.recorder.count_labelled(Metric::UpstreamUnsent, why.index());
        let tried = Tried { pool, origin: None, address: None, attempts: 0, unretried: None };
        Box::new(Unanswered { error, tried })
    }
}

/// The state of a request and its tries. Nothing in it is allocated until one fails or is
/// late.
struct Sending<'a> {
    outgoing: &'a Outgoing<'a>,
    first: Try,
    others: Vec<Try>,
    /// Ids of the members that were tried.
    tried: Vec<u64>,
    /// Tries that could not connect: they do not count towards `retry.attempts_max`.
    unconnected: u32,
    blames: Blames<'a>,
    /// The best response with a status of `retry.on`.
    held: Option<Box<UpstreamResponse>>,
    /// The last failure and its member.
    failure: Option<(Box<Failed>, Rc<MemberState>)>,
    unretried: Option<Unretried>,
    /// The request has waited for `retry.per_try_timeout`.
    is_overlapping: bool,
}

/// Why another try is needed.
struct Cause {
    /// `None`: the request itself has failed.
    reason: Option<RetryReason>,
    /// No origin has received any of the request.
    is_unsent: bool,
    /// The member itself may be tried again: only its connection has failed.
    is_of_connection: bool,
    /// The body, if it was given back.
    body: Option<Body>,
}

/// The next try.
struct Next {
    chosen: Chosen,
    body: Body,
    limits: Limits,
}

impl<'a> Sending<'a> {
    fn new(outgoing: &'a Outgoing<'a>, chosen: &Chosen) -> Self {
        Self {
            outgoing,
            first: Try::new(chosen, Payment::Free),
            others: Vec::new(),
            tried: Vec::new(),
            unconnected: 0,
            blames: Blames::new(outgoing.state, &outgoing.core.recorder),
            held: None,
            failure: None,
            unretried: None,
            is_overlapping: false,
        }
    }

    /// Whether the response is passed on; otherwise it is held.
    fn judge(
        &mut self,
        number: usize,
        upstream: Box<UpstreamResponse>,
    ) -> Result<Box<UpstreamResponse>, Cause> {
        let (status, retry) = (upstream.response.status(), self.retry());
        let reason = if retry.on.statuses.contains(status) {
            let cause = format!("it responded with {}", status.as_u16());
            // The response to a trial is recorded already.
            let outcome = (!self.a_try(number).is_trial()).then_some(Outcome::Faulty);
            self.lose(number, outcome, cause);
            RetryReason::Status
        } else if retry.failover_on.contains(status) && self.may_fail_over() {
            self.lose(number, None, String::new());
            self.leave_tier(number);
            RetryReason::Failover
        } else {
            return Ok(self.won(number, upstream));
        };
        self.hold(upstream);
        Err(beside(reason))
    }

    /// As CloudFront's origin groups: only requests that read.
    fn may_fail_over(&self) -> bool {
        let request = (self.outgoing.request)();
        matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
            && self.outgoing.intent.upgrade.is_none()
    }

    /// No other member of this one's tier is tried.
    fn leave_tier(&mut self, number: usize) {
        let members = self.outgoing.state.pool.members();
        let left = self.a_try(number).member.member.id;
        let position = members.iter().position(|member| member.id == left);
        let mut tiers = members.tiers().order(None);
        let tier = position.and_then(|at| {
            tiers.find(|(_, tier)| tier.members.iter().any(|member| usize::from(*member) == at))
        });
        if let Some((_, tier)) = tier {
            let ids = tier.members.iter().map(|at| members.at(usize::from(*at)).id);
            self.tried.extend(ids);
        }
    }

    fn count_hedge(&self, outcome: usize) {
        let recorder = &self.outgoing.core.recorder;
        recorder.count_labelled(Metric::UpstreamHedges, outcome);
    }

    fn hold(&mut self, upstream: Box<UpstreamResponse>) {
        let is_better = |held: &UpstreamResponse| {
            held.response.status().is_server_error()
                && !upstream.response.status().is_server_error()
        };
        if self.held.as_deref().is_none_or(is_better) {
            self.held = Some(upstream);
        }
    }

    /// The request has its response: settles what the other tries cost and whose fault they were.
    fn won(&mut self, number: usize, mut upstream: Box<UpstreamResponse>) -> Box<UpstreamResponse> {
        if self.others.is_empty() {
            return upstream;
        }
        upstream.attempts = self.others.len() as u32 + 1;
        if !upstream.response.status().is_server_error() {
            self.blames.settle_won(number);
        }
        let state = self.outgoing.state;
        for (other, a_try) in std::iter::once(&self.first).chain(&self.others).enumerate() {
            match (other == number, a_try.payment) {
                (true, Payment::Paid) => state.return_retry(),
                (false, Payment::IfLost) => state.charge_retry(),
                (true, Payment::Hedge) => self.count_hedge(HEDGE_WON),
                (false, Payment::Hedge) => self.count_hedge(HEDGE_LOST),
                _ => {}
            }
            if other != number {
                a_try.lost();
            }
        }
        upstream
    }

    /// Notes the failure of a try, and whether another one would help.
    fn failed(&mut self, number: usize, mut failed: Box<Failed>) -> Cause {
        let recorder = &self.outgoing.core.recorder;
        let label = failed.error.error_type().index();
        recorder.count_labelled(Metric::UpstreamFailures, label);
        self.lose(number, failed.outcome, failed.error.to_string());
        let reason = failed.error.retry_reason();
        self.unconnected += u32::from(reason == Some(RetryReason::Connect));
        let cause = Cause {
            reason,
            is_unsent: !failed.error.origin_may_have_seen(),
            is_of_connection: matches!(
                reason,
                Some(RetryReason::Reset | RetryReason::Truncated | RetryReason::Refused)
            ),
            body: failed.body.take(),
        };
        let member = self.a_try(number).member.clone();
        self.failure = Some((failed, member));
        cause
    }

    fn lose(&mut self, number: usize, outcome: Option<Outcome>, cause: String) {
        let Outgoing { core, state, .. } = self.outgoing;
        let a_try = match number.checked_sub(1) {
            None => &mut self.first,
            Some(at) => &mut self.others[at],
        };
        if a_try.payment == Payment::IfLost {
            a_try.payment = Payment::Paid;
            state.charge_retry();
        }
        let blame = outcome.and_then(|outcome| a_try.blame(outcome, cause, state, &core.recorder));
        self.blames.add(number, blame);
    }

    /// Notes that a try is late. Another one begins, unless tries begin at intervals already.
    fn late(&mut self, number: usize) -> Option<Cause> {
        let Outgoing { core, state, limits, .. } = self.outgoing;
        let cause = format!("it did not respond within {:?}", limits.per_try);
        let blame = self.a_try(number).blame(Outcome::Faulty, cause, state, &core.recorder);
        self.blames.add(number, blame);
        let is_first = !std::mem::replace(&mut self.is_overlapping, true);
        is_first.then(|| beside(RetryReason::Timeout))
    }

    /// The cause of a try that is due beside the others.
    fn due(&self) -> Cause {
        beside(match self.is_overlapping {
            true => RetryReason::Timeout,
            false if self.first.is_trial() => RetryReason::Trial,
            false => RetryReason::Hedge,
        })
    }

    /// How long the first try is alone, if another one begins without its failure.
    fn head_start(&self) -> Option<Duration> {
        let hedge_after = self.outgoing.state.hedge_after();
        if self.first.is_trial() { Some(TRIAL_HEAD_START) } else { hedge_after }
    }

    /// The next try, if one may be made beside or after the race so far.
    fn another(&mut self, cause: Cause, race: RaceState) -> Option<Next> {
        let reason = cause.reason?;
        match self.find_another(reason, cause, race) {
            Ok(next) => {
                self.unretried = None;
                let recorder = &self.outgoing.core.recorder;
                recorder.count_labelled(Metric::UpstreamRetries, reason.index());
                Some(next)
            }
            Err(why) => {
                if reason == RetryReason::Hedge && why == Unretried::Budget {
                    self.count_hedge(HEDGE_REFUSED);
                }
                // Nothing has failed yet; and without another tier, the response is what its client must get.
                let has_failed = !matches!(reason, RetryReason::Hedge | RetryReason::Failover);
                self.unretried = Some(why).filter(|_| has_failed);
                None
            }
        }
    }

    fn find_another(
        &mut self,
        reason: RetryReason,
        cause: Cause,
        race: RaceState,
    ) -> Result<Next, Unretried> {
        let Outgoing { core, state, kept, .. } = self.outgoing;
        let Cause { is_unsent, is_of_connection, body, .. } = cause;
        let tries = self.others.len() as u32 + 1;
        let attempts_max = self.retry().attempts_max(state.pool.members().len());
        let body = body.or_else(|| kept.again());
        let case = Case {
            is_listed: self.is_listed(reason),
            is_unsent,
            has_body: body.is_some(),
            is_in_time: core.timers.now_ms() < self.outgoing.limits.end_ms,
            attempts_left: tries < TRIES_MAX
                && (reason == RetryReason::Failover || tries - self.unconnected < attempts_max),
        };
        rule::check(case, || self.outgoing.is_repeatable())?;
        let body = body.ok_or(Unretried::Body)?;
        let tried = self.others.last().unwrap_or(&self.first).member.member.id;
        self.tried.push(tried);
        let mut chosen = self.outgoing.choose(&self.tried, &body);
        if chosen.is_err() && is_of_connection && race == RaceState::AllEnded {
            self.tried.clear();
            chosen = self.outgoing.choose(&self.tried, &body);
        }
        let chosen = chosen.map_err(|_| Unretried::Members)?;
        let is_free = is_unsent || reason == RetryReason::Failover;
        let payment = match reason {
            RetryReason::Hedge => state.spend_hedge().then_some(Payment::Hedge),
            _ => self.pay(&chosen.member, is_free),
        };
        let payment = payment.ok_or(Unretried::Budget)?;
        self.others.push(Try::new(&chosen, payment));
        Ok(Next { chosen, body, limits: self.limits_left() })
    }

    /// How the next try is paid; `None`: the budget is used up.
    ///
    /// A retry that wins adds no load, so it costs nothing in the end. One to a member that has
    /// just given a good response probably wins, and may begin without anything in the budget:
    /// else requests that fail together would be refused together.
    fn pay(&self, target: &MemberState, is_free: bool) -> Option<Payment> {
        let Outgoing { core, state, intent, .. } = self.outgoing;
        if is_free {
            return Some(Payment::Free);
        }
        // While all requests wait for stalled origins, no response comes that could prove anything.
        let proven_for = PROVEN_FOR + self.waited();
        if intent.for_many || target.was_good_since(core.timers.now_ms(), proven_for) {
            return Some(Payment::IfLost);
        }
        state.spend_retry().then_some(Payment::Paid)
    }

    /// The deadlines of the next try: it is late when the request has waited for a whole
    /// `retry.per_try_timeout`.
    fn limits_left(&self) -> Limits {
        let limits = &self.outgoing.limits;
        let left = limits.per_try.saturating_sub(self.waited());
        Limits { per_try: left.max(self.step().min(limits.per_try)), ..*limits }
    }

    /// The time since the request began.
    fn waited(&self) -> Duration {
        let Outgoing { core, began, .. } = self.outgoing;
        core.clock.both().1.saturating_duration_since(began.1)
    }

    /// When to look again whether another try may begin beside those under way.
    fn next_look(&self) -> Option<Deadline> {
        let may_come =
            self.is_overlapping && self.unretried.is_none_or(|why| why == Unretried::Budget);
        may_come.then(|| self.timer(self.step()))
    }

    /// The time between the beginnings of two tries once they overlap.
    fn step(&self) -> Duration {
        let pool = &self.outgoing.state.pool;
        let members = u32::try_from(pool.members().len()).unwrap_or(u32::MAX).max(1);
        (pool.settings().deadlines.connect / members).clamp(STEP_MIN, STEP_MAX)
    }

    fn timer(&self, after: Duration) -> Deadline {
        let timer = self.outgoing.core.timers.deadline();
        timer.set(after);
        timer
    }

    /// No other try may be made: the response that was held, or the last error.
    fn give_up(mut self) -> Result<Box<UpstreamResponse>, Box<Unanswered>> {
        let unretried = self.unretried;
        if let Some(why) = unretried {
            let recorder = &self.outgoing.core.recorder;
            recorder.count_labelled(Metric::UpstreamUnretried, why.index());
        }
        let attempts = self.others.len() as u32 + 1;
        if let Some(mut held) = self.held.take() {
            (held.attempts, held.unretried) = (attempts, unretried);
            return Ok(held);
        }
        let (failed, member) = self.failure.take().expect("a try without a response has failed");
        let tried = Tried {
            pool: self.outgoing.state.pool.name().clone(),
            origin: Some(member.member.name.clone()),
            address: failed.address(),
            attempts,
            unretried,
        };
        Err(Box::new(Unanswered { error: failed.error, tried }))
    }

    fn is_listed(&self, reason: RetryReason) -> bool {
        self.retry().on.failures.contains(reason)
    }

    fn retry(&self) -> &'a Retry {
        &self.outgoing.state.pool.settings().retry
    }

    fn a_try(&self, number: usize) -> &Try {
        number.checked_sub(1).map_or(&self.first, |at| &self.others[at])
    }
}

/// The cause of a try although the others have not failed to send the request.
fn beside(reason: RetryReason) -> Cause {
    Cause { reason: Some(reason), is_unsent: false, is_of_connection: false, body: None }
}

/// A request that tests an origin is sent to another one too if the first has not responded by then.
const TRIAL_HEAD_START: Duration = Duration::from_millis(100);
/// A member is expected to give a good response for this long after its last one.
const PROVEN_FOR: Duration = Duration::from_secs(1);
/// Labels of [`Metric::UpstreamHedges`].
const HEDGE_WON: usize = 0;
const HEDGE_LOST: usize = 1;
const HEDGE_REFUSED: usize = 2;
/// Maximum number of tries of a request, those without a connection included.
const TRIES_MAX: u32 = 16;
/// Bounds of the time between tries that overlap.
const STEP_MIN: Duration = Duration::from_millis(25);
const STEP_MAX: Duration = Duration::from_millis(250);
