//! The connections of one core: idle and shared ones, by member, and when they are closed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::super::choice::Chosen;
use super::super::exchange::deadline::{Limits, NEVER, Timers};
use super::super::exchange::hold::UNHELD_TIME;
use super::super::health::{Event, Outcome, Trial, record};
use super::super::load::in_flight::InFlight;
use super::super::pool::Pool;
use super::super::pool::members::{Member, Members};
use super::super::pool::pool_state::{Idle, MemberState, MemberStates, PoolState};
use super::super::resolve::Resolver;
use super::super::settings::PoolSettings;
use super::http1::Http1;
use super::http2::{Http2, Share};
use super::proxy_header::ProxiedClient;
use crate::clock::{Clock, whole_ms};
use crate::labels::ProxyError;
use crate::metrics::{Metric, Recorder};
use crate::notices;

/// The state that the exchanges of one core share.
pub(in crate::upstream) struct Core {
    pub(in crate::upstream) resolver: Arc<Resolver>,
    pub(in crate::upstream) clock: Clock,
    pub(in crate::upstream) recorder: Recorder,
    pub(in crate::upstream) timers: Timers,
    /// By [`Pool::id`].
    pools: RefCell<BTreeMap<u64, Rc<PoolState>>>,
    /// By [`Member::id`]. Two versions of a pool share the members that are in both.
    members: RefCell<BTreeMap<u64, Rc<MemberState>>>,
    /// Notified when a request of any core waits for a connection.
    connection_wanted: Arc<Notify>,
}

impl Core {
    pub(in crate::upstream) fn new(
        resolver: Arc<Resolver>,
        clock: Clock,
        recorder: Recorder,
        timers: Timers,
    ) -> Rc<Self> {
        let (pools, members) = Default::default();
        let connection_wanted = Arc::new(Notify::new());
        let wanted = connection_wanted.clone();
        let core =
            Rc::new(Self { resolver, clock, recorder, timers, pools, members, connection_wanted });
        tokio::task::spawn_local(sweep(Rc::downgrade(&core), wanted));
        core
    }

    pub(in crate::upstream) fn pools(&self) -> usize {
        self.pools.borrow().len()
    }

    /// This core's part of a pool.
    pub(in crate::upstream) fn state(&self, pool: &Arc<Pool>) -> Rc<PoolState> {
        let mut pools = self.pools.borrow_mut();
        let new = || {
            let members = self.member_states(pool, &pool.members());
            Rc::new(PoolState::new(pool, members, &self.connection_wanted))
        };
        pools.entry(pool.id).or_insert_with(new).clone()
    }

    /// The pool's current members with this core's part of each. The view is rebuilt only after
    /// the pool's members were replaced.
    pub(in crate::upstream) fn members(&self, state: &PoolState) -> Rc<MemberStates> {
        let current = state.pool.members();
        let mut view = state.members.borrow_mut();
        if !Arc::ptr_eq(&view.members, &current) {
            *view = Rc::new(self.member_states(&state.pool, &current));
        }
        view.clone()
    }

    #[cold]
    fn member_states(&self, pool: &Pool, members: &Arc<Members>) -> MemberStates {
        let protocol = pool.settings().protocol;
        let mut known = self.members.borrow_mut();
        let mut state = |member: &Arc<Member>| {
            let new = || Rc::new(MemberState::new(member, protocol));
            known.entry(member.id).or_insert_with(new).clone()
        };
        let states = members.iter().map(&mut state).collect();
        MemberStates::new(members, states)
    }

    /// The deadlines of an exchange; see [`super::super::Intent::is_call`].
    pub(in crate::upstream) fn limits(&self, settings: &PoolSettings, is_call: bool) -> Limits {
        let deadlines = &settings.deadlines;
        let least = if is_call { deadlines.tunnel_idle } else { Duration::ZERO };
        let end = |total| self.timers.now_ms().saturating_add(whole_ms(total));
        let first_byte = deadlines.first_byte.max(least);
        let per_try = settings.retry.per_try_timeout.unwrap_or(first_byte);
        Limits {
            first_byte,
            per_try: per_try.max(least).min(first_byte),
            between_bytes: deadlines.between_bytes.max(least),
            is_call,
            end_ms: deadlines.total.map_or(NEVER, end),
        }
    }

    /// The most recently used idle connection that is still usable, and whose PROXY protocol header states
    /// this client. For a request that `is_sent_once`, none that the origin may be about to close.
    pub(in crate::upstream) fn take_idle(
        &self,
        state: &MemberState,
        proxied: Option<&Rc<ProxiedClient>>,
        is_sent_once: bool,
    ) -> Option<Box<Http1>> {
        let now_ms = self.timers.now_ms();
        let mut idle = state.idle.borrow_mut();
        let is_of_client = |idle: &Idle| idle.http1.proxied.as_ref() == proxied;
        while let Some(at) = idle.iter().rposition(is_of_client) {
            let idle_ms = now_ms.saturating_sub(idle[at].since_ms);
            if is_sent_once && state.closing.is_near(idle_ms, now_ms) {
                return None;
            }
            let mut connection = idle.remove(at);
            if connection.until_ms <= now_ms {
                self.close_idle(connection, IDLE_EXPIRED);
            } else if !connection.http1.is_reusable() {
                self.close_by_origin(state, connection, now_ms);
            } else {
                self.recorder.subtract(Metric::UpstreamIdle, 1);
                connection.http1.idle_ms = idle_ms;
                return Some(connection.http1);
            }
        }
        None
    }

    /// A stream on a shared connection with room for one.
    pub(in crate::upstream) fn share_http2(
        &self,
        pool: &Pool,
        state: &MemberState,
    ) -> Option<Share> {
        let settings = pool.settings();
        let mut connections = state.http2.borrow_mut();
        if connections.is_empty() {
            return None;
        }
        connections.retain(|http2| !http2.is_over());
        let now_ms = self.timers.now_ms();
        connections.iter().find(|http2| http2.has_room(settings, now_ms)).map(Share::of)
    }

    /// Calls `look` with each HTTP/2 connection to a pool's members that is open or has streams.
    pub(in crate::upstream) fn each_http2(&self, pool: &Arc<Pool>, mut look: impl FnMut(&Http2)) {
        let members = self.members(&self.state(pool));
        for state in &members.states {
            state.http2.borrow().iter().for_each(|http2| look(http2));
        }
    }

    #[cfg(test)]
    pub(in crate::upstream) fn streams(&self) -> usize {
        let members = self.members.borrow();
        let connections = members.values().flat_map(|state| state.http2.borrow().clone());
        connections.map(|http2| http2.streams.get()).sum()
    }

    #[cfg(test)]
    pub(in crate::upstream) fn forget_good_responses(&self) {
        self.members.borrow().values().for_each(|state| state.last_good_ms.set(0));
    }

    /// Drops an idle connection that the origin has closed.
    fn close_by_origin(&self, state: &MemberState, idle: Idle, now_ms: u64) {
        state.closing.note(now_ms.saturating_sub(idle.since_ms), now_ms);
        self.close_idle(idle, IDLE_ORIGIN);
    }

    fn close_idle(&self, idle: Idle, reason: usize) {
        self.recorder.subtract(Metric::UpstreamIdle, 1);
        self.recorder.count_labelled(Metric::UpstreamIdleClosed, reason);
        drop(idle);
    }

    /// Closes connections that were idle for too long, were closed by the origin, or lead to
    /// removed members. Forgets pools that no configuration uses any more, and members that no
    /// pool has and that have no connection.
    fn sweep(&self) {
        let now_ms = self.timers.now_ms();
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        for state in &pools {
            // A core without requests learns here that the members were replaced.
            let members = self.members(state);
            let age_max_ms = whole_ms(state.pool.settings().keep_alive.age_max);
            for member in &members.states {
                self.sweep_member(member, now_ms, age_max_ms);
                self.report_tally(&state.pool, member);
            }
        }
        drop(pools);
        let is_used = |state: &Rc<PoolState>| {
            Rc::strong_count(state) > 1 || Arc::strong_count(&state.pool) > 1
        };
        self.pools.borrow_mut().retain(|_, state| is_used(state));
        self.members.borrow_mut().retain(|_, state| {
            let has_no_pool = Rc::strong_count(state) == 1;
            if has_no_pool || state.member.is_removed() {
                self.sweep_member(state, now_ms, 0);
            }
            Rc::strong_count(state) > 1 || state.has_connections()
        });
    }

    /// Closes the oldest idle connection to each member without a free slot, for requests that wait.
    fn release_connections(&self) {
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        for state in pools.iter().filter(|state| state.pool.queue.len() > 0) {
            let limit = state.pool.settings().connections_max;
            let members = self.members(state);
            let is_full = |member: &&Rc<MemberState>| {
                member.member.connections.load(Ordering::Relaxed) >= limit
            };
            members.states.iter().filter(is_full).for_each(|member| self.release_one(member));
        }
    }

    /// Closes the oldest idle connection to the member, if there is one.
    pub(in crate::upstream) fn release_one(&self, state: &MemberState) {
        let mut idle = state.idle.borrow_mut();
        if !idle.is_empty() {
            let oldest = idle.remove(0);
            drop(idle);
            return self.close_idle(oldest, IDLE_WANTED);
        }
        let mut shared = state.http2.borrow_mut();
        if let Some(at) = shared.iter().position(|http2| http2.streams.get() == 0) {
            shared.remove(at);
        }
    }

    /// Gives the outcomes since the last call to the member's health.
    fn report_tally(&self, pool: &Pool, state: &MemberState) {
        let (good, bad) = state.take_tally();
        if pool.settings().health.error_rate_percent > 0 && good + bad > 0 {
            let event = Event::Tally { good, bad };
            let cause = format_args!("its error rate is too high");
            record(pool, &state.member, event, &self.recorder, cause);
        }
    }

    fn sweep_member(&self, state: &MemberState, now_ms: u64, age_max_ms: u64) {
        let is_removed = state.member.is_removed();
        let connections = std::mem::take(&mut *state.idle.borrow_mut());
        for mut idle in connections {
            if is_removed {
                self.close_idle(idle, IDLE_REMOVED);
            } else if idle.until_ms <= now_ms {
                self.close_idle(idle, IDLE_EXPIRED);
            } else if !idle.http1.is_reusable() {
                self.close_by_origin(state, idle, now_ms);
            } else {
                state.idle.borrow_mut().push(idle);
            }
        }
        state.http2.borrow_mut().retain(|http2| {
            let is_old = now_ms.saturating_sub(http2.opened_ms) >= age_max_ms;
            let is_unused = http2.streams.get() == 0;
            !(is_unused && (is_old || http2.is_doubtful.get()) || http2.is_over())
        });
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let idle = self.members.get_mut().values().map(|state| state.idle.borrow().len());
        self.recorder.subtract(Metric::UpstreamIdle, idle.sum::<usize>() as u64);
    }
}

async fn sweep(core: Weak<Core>, connection_wanted: Arc<Notify>) {
    let mut next = Instant::now() + SWEEP_INTERVAL;
    loop {
        let is_wanted = timeout_at(next, connection_wanted.notified()).await.is_ok();
        let Some(core) = core.upgrade() else { return };
        if is_wanted {
            core.release_connections();
        } else {
            core.sweep();
            next = Instant::now() + SWEEP_INTERVAL;
        }
    }
}

/// An exchange in flight, counted at its member until dropped. It tells the member's health how the
/// response went: [`Active::answered`] at its head, then [`Active::finished`] or
/// [`Active::body_failed`] at its end. An exchange that is dropped before says nothing.
pub(in crate::upstream) struct Active {
    core: Rc<Core>,
    pool: Arc<Pool>,
    state: Rc<MemberState>,
    /// Of the member's health when the exchange began.
    epoch: u16,
    trial: Option<Rc<Trial>>,
    is_5xx: Cell<bool>,
    has_ended: Cell<bool>,
    /// The count of the exchange at the member, if the balance needs it.
    in_flight: Option<InFlight>,
}

impl Active {
    pub(in crate::upstream) fn begin(core: &Rc<Core>, pool: &Arc<Pool>, chosen: &Chosen) -> Self {
        let Chosen { member: state, epoch, trial, in_flight, .. } = chosen;
        state.active.set(state.active.get() + 1);
        core.recorder.add(Metric::UpstreamActive, 1);
        Self {
            core: core.clone(),
            pool: pool.clone(),
            state: state.clone(),
            epoch: *epoch,
            trial: trial.clone(),
            is_5xx: Cell::new(false),
            has_ended: Cell::new(false),
            in_flight: in_flight.take(),
        }
    }

    /// The head of a good response has arrived.
    pub(in crate::upstream) fn measured(&self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.measured();
        }
    }

    /// The head has arrived, with this status. After one of `retry.on`, the request decides what it
    /// says about the member's health.
    pub(in crate::upstream) fn set_status(&self, status: StatusCode) {
        self.is_5xx.set(status.is_server_error());
        let is_on_trial = self.trial.is_some();
        if !is_on_trial && self.pool.settings().retry.on.statuses.contains(status) {
            self.has_ended.set(true);
        }
    }

    /// The member has responded: with a head, and if it announced content, with some of that.
    pub(in crate::upstream) fn answered(&self) {
        let is_5xx = self.is_5xx.get();
        if let Some(trial) = &self.trial {
            trial.answered(is_5xx);
        }
        if is_5xx {
            self.end(Outcome::Faulty, "it responded with errors (5xx)");
        } else {
            self.state.last_good_ms.set(self.core.timers.now_ms());
        }
    }

    /// The response is whole, and has content.
    pub(in crate::upstream) fn finished(&self) {
        self.end(Outcome::Good, "");
    }

    /// The response is whole, and has no content.
    pub(in crate::upstream) fn finished_without_content(&self) {
        self.end(Outcome::Contentless, "");
    }

    fn end(&self, outcome: Outcome, cause: &str) {
        if self.has_ended.replace(true) {
            return;
        }
        self.state.count_outcome(outcome);
        let health = &self.state.member.health;
        let view = health.view();
        if outcome.is_good() && view.is_quiet() {
            return;
        }
        // A trial that was answered has begun another epoch.
        let epoch = if self.trial.is_some() { view.epoch() } else { self.epoch };
        let event = Event::Finished { epoch, is_trial: false, outcome };
        record(&self.pool, &self.state.member, event, &self.core.recorder, format_args!("{cause}"));
        if view.is_touched() && !health.view().is_touched() {
            notices::recovered(self.pool.name(), &self.state.member.name);
        }
    }

    /// Keeps the connection of a finished exchange, if it can be used again.
    pub(in crate::upstream) fn give_back(&self, mut http1: Box<Http1>) {
        let now_ms = self.core.timers.now_ms();
        let keep_alive = &self.pool.settings().keep_alive;
        let by_origin = http1.kept_for.unwrap_or(Duration::MAX).saturating_sub(CLOSE_MARGIN);
        let usable_ms = whole_ms(keep_alive.idle.min(by_origin));
        let is_old = now_ms.saturating_sub(http1.opened_ms) >= whole_ms(keep_alive.age_max);
        let is_over = is_old || self.state.member.is_removed();
        if is_over || usable_ms == 0 || keep_alive.idle_max == 0 || !http1.is_reusable() {
            return;
        }
        let mut idle = self.state.idle.borrow_mut();
        if idle.len() >= keep_alive.idle_max {
            // The oldest one expires first.
            self.core.close_idle(idle.remove(0), IDLE_LIMIT);
        }
        self.core.recorder.add(Metric::UpstreamIdle, 1);
        idle.push(Idle { http1, since_ms: now_ms, until_ms: now_ms + usable_ms });
    }

    /// Counts a response that ended early, which weighs as much as one that did not begin: the member neither
    /// looks fast by its head, nor is a retry sent to it because of that.
    pub(in crate::upstream) fn body_failed(&self, error: ProxyError) {
        self.core.recorder.count_labelled(Metric::UpstreamFailures, error.index());
        self.core.state(&self.pool).note_failure(&self.state);
        self.state.last_good_ms.set(0);
        self.end(Outcome::BrokenOff, "its responses ended early");
    }

    /// Counts a response that was not held any longer.
    pub(in crate::upstream) fn count_unheld(&self) {
        self.core.recorder.count_labelled(Metric::UpstreamUnheld, UNHELD_TIME);
    }

    pub(in crate::upstream) fn origin_name(&self) -> &str {
        &self.state.member.name
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.state.active.set(self.state.active.get() - 1);
        self.core.recorder.subtract(Metric::UpstreamActive, 1);
    }
}

/// A connection is closed this long before the time that the origin's `Keep-Alive` field states.
const CLOSE_MARGIN: Duration = Duration::from_secs(1);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Labels of [`Metric::UpstreamIdleClosed`].
const IDLE_EXPIRED: usize = 0;
const IDLE_LIMIT: usize = 1;
const IDLE_ORIGIN: usize = 2;
const IDLE_REMOVED: usize = 3;
const IDLE_WANTED: usize = 4;
