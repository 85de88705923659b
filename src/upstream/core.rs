//! One core's memory of its origins: kept connections, exchanges in flight, turns and the
//! retry budget.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::balance::{self, Choice};
use super::deadline::{NEVER, Timers, monotonic_ms};
use super::exchange::{Http1, Limits};
use super::http2::{Http2, Share};
use super::members::Member;
use super::pool::Pool;
use super::resolve::Resolver;
use super::settings::{PoolSettings, Protocol, Retry, Scheme};
use super::upstreams::Intent;
use crate::clock::Clock;
use crate::labels::ProxyError;
use crate::metrics::{Metric, Recorder};

/// What the exchanges of one core share.
pub(super) struct Core {
    pub(super) resolver: Arc<Resolver>,
    pub(super) clock: Clock,
    pub(super) recorder: Recorder,
    pub(super) timers: Timers,
    pools: RefCell<BTreeMap<u64, Rc<PoolState>>>,
    /// By the ids of members. Two versions of a pool share the members that both have.
    members: RefCell<BTreeMap<u64, Rc<MemberState>>>,
}

/// One core's part of a pool.
pub(super) struct PoolState {
    pub(super) pool: Arc<Pool>,
    /// In the order of the pool's members.
    pub(super) members: Box<[Rc<MemberState>]>,
    pub(super) turn: Cell<usize>,
    /// Hundredths of a retry.
    budget: Cell<u32>,
}

/// One core's part of a member.
pub(super) struct MemberState {
    pub(super) member: Arc<Member>,
    /// The last one used is on top: what is needed no more grows old at the bottom.
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Rc<Http2>>>,
    /// Present while a connection is being opened that can perhaps be shared.
    opening: RefCell<Option<Rc<Opening>>>,
    /// `None`: not known yet.
    pub(super) speaks_http2: Cell<Option<bool>>,
    active: Cell<usize>,
}

/// A connection of HTTP/1.1 that waits for its next request.
struct Idle {
    http1: Box<Http1>,
    until_ms: u64,
}

/// While one request opens what others can perhaps share, they wait for it.
pub(super) struct Opening {
    pub(super) done: Notify,
    pub(super) shared: Cell<bool>,
}

/// Ends the waiting, however the opening ends.
pub(super) struct OpeningGuard<'a> {
    here: &'a MemberState,
    pub(super) opening: Rc<Opening>,
}

/// An exchange in flight: counted where it is, until dropped.
pub(super) struct Active {
    core: Rc<Core>,
    pool: Arc<Pool>,
    here: Rc<MemberState>,
}

impl Active {
    pub(super) fn begin(core: &Rc<Core>, pool: &Arc<Pool>, here: &Rc<MemberState>) -> Self {
        here.active.set(here.active.get() + 1);
        core.recorder.add(Metric::UpstreamActive, 1);
        Self { core: core.clone(), pool: pool.clone(), here: here.clone() }
    }

    /// Keeps a connection whose exchange is over, if it may be used again.
    pub(super) fn give_back(&self, mut http1: Box<Http1>) {
        let now_ms = self.core.timers.now_ms();
        let keep_alive = &self.pool.settings().keep_alive;
        let said = http1.kept_for.unwrap_or(Duration::MAX).saturating_sub(CLOSE_MARGIN);
        let usable = millis(keep_alive.idle.min(said));
        let aged = now_ms.saturating_sub(http1.opened_ms) >= millis(keep_alive.age_max);
        if aged || usable == 0 || keep_alive.idle_max == 0 || !http1.is_reusable() {
            return;
        }
        let mut idle = self.here.idle.borrow_mut();
        if idle.len() >= keep_alive.idle_max {
            // The oldest has the least life left.
            self.core.close_idle(idle.remove(0), IDLE_LIMIT);
        }
        self.core.recorder.add(Metric::UpstreamIdle, 1);
        idle.push(Idle { http1, until_ms: now_ms + usable });
    }

    /// Counts a response that did not come whole.
    pub(super) fn body_failed(&self, error: ProxyError) {
        self.core.recorder.count_labelled(Metric::UpstreamFailures, error.index());
        if self.here.member.health.failed(monotonic_ms(), &self.pool.settings().health) {
            self.core.recorder.count(Metric::UpstreamMarkedDown);
        }
    }

    pub(super) fn origin_name(&self) -> &str {
        &self.here.member.name
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.here.active.set(self.here.active.get() - 1);
        self.core.recorder.subtract(Metric::UpstreamActive, 1);
    }
}

impl MemberState {
    fn new(member: &Arc<Member>, protocol: Protocol) -> Self {
        let speaks_http2 = match (protocol, member.scheme) {
            (Protocol::Http2, _) => Some(true),
            (Protocol::Auto, Scheme::Https) => None,
            _ => Some(false),
        };
        Self {
            member: member.clone(),
            idle: RefCell::default(),
            http2: RefCell::default(),
            opening: RefCell::default(),
            speaks_http2: Cell::new(speaks_http2),
            active: Cell::new(0),
        }
    }

    /// Someone else's opening.
    pub(super) fn opening(&self) -> Option<Rc<Opening>> {
        self.opening.borrow().clone()
    }

    pub(super) fn open(&self) -> OpeningGuard<'_> {
        let opening = Rc::new(Opening { done: Notify::new(), shared: Cell::new(false) });
        *self.opening.borrow_mut() = Some(opening.clone());
        OpeningGuard { here: self, opening }
    }

    /// Lets others share a connection.
    pub(super) fn add_http2(&self, http2: &Rc<Http2>) {
        self.http2.borrow_mut().push(http2.clone());
    }

    fn in_use(&self) -> bool {
        self.active.get() > 0 || !self.idle.borrow().is_empty() || !self.http2.borrow().is_empty()
    }
}

impl Drop for OpeningGuard<'_> {
    fn drop(&mut self) {
        let mut opening = self.here.opening.borrow_mut();
        if opening.as_ref().is_some_and(|opening| Rc::ptr_eq(opening, &self.opening)) {
            *opening = None;
        }
        self.opening.done.notify_waiters();
    }
}

impl PoolState {
    fn new(pool: &Arc<Pool>, members: Box<[Rc<MemberState>]>) -> Self {
        let budget = pool.settings().retry.budget_reserve.saturating_mul(RETRY);
        let budget = Cell::new(budget);
        Self { pool: pool.clone(), members, turn: Cell::new(0), budget }
    }

    /// The next member to ask, by its position; none of those in `tried`.
    pub(super) fn choose(&self, intent: &Intent, tried: &[usize]) -> Option<usize> {
        let pool = &self.pool;
        let settings = pool.settings();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let choice = Choice {
            balance: settings.balance,
            origins: pool.members.len(),
            turns: pool.members.turns(),
            turn,
            hash: intent.hash,
        };
        let member = |at: usize| pool.members.at(at);
        let weight = |at: usize| pool.members.weight(at);
        let active = |at: usize| self.members[at].active.get();
        let identity = |at: usize| member(at).hash;
        let untried = |at: usize| !tried.contains(&at);
        let up = |at: usize| member(at).health.admits(monotonic_ms, &settings.health);
        let usable = |at| untried(at) && up(at);
        balance::choose(&choice, weight, active, identity, usable).or_else(|| {
            let anyway = settings.health.try_when_all_down;
            balance::choose(&choice, weight, active, identity, |at| anyway && untried(at))
        })
    }

    /// Each request earns a part of a retry, up to a limit.
    pub(super) fn earn_retry(&self) {
        let Retry { budget_percent, budget_reserve, .. } = self.pool.settings().retry;
        let most = budget_reserve.saturating_add(RETRIES_SAVED).saturating_mul(RETRY);
        self.budget.set(self.budget.get().saturating_add(budget_percent).min(most));
    }

    pub(super) fn spend_retry(&self) -> bool {
        let left = self.budget.get().checked_sub(RETRY);
        left.inspect(|left| self.budget.set(*left)).is_some()
    }
}

impl Core {
    pub(super) fn new(
        resolver: Arc<Resolver>,
        clock: Clock,
        recorder: Recorder,
        timers: Timers,
    ) -> Rc<Self> {
        let (pools, members) = Default::default();
        let core = Rc::new(Self { resolver, clock, recorder, timers, pools, members });
        tokio::task::spawn_local(sweep(Rc::downgrade(&core)));
        core
    }

    pub(super) fn pools(&self) -> usize {
        self.pools.borrow().len()
    }

    pub(super) fn state(&self, pool: &Arc<Pool>) -> Rc<PoolState> {
        let mut pools = self.pools.borrow_mut();
        pools.entry(pool.id).or_insert_with(|| Rc::new(self.new_state(pool))).clone()
    }

    #[cold]
    fn new_state(&self, pool: &Arc<Pool>) -> PoolState {
        let protocol = pool.settings().protocol;
        let mut members = self.members.borrow_mut();
        let mut state = |member: &Arc<Member>| {
            let new = || Rc::new(MemberState::new(member, protocol));
            members.entry(member.id).or_insert_with(new).clone()
        };
        PoolState::new(pool, pool.members.iter().map(&mut state).collect())
    }

    /// The deadlines of an exchange; see [`Intent::is_call`].
    pub(super) fn limits(&self, settings: &PoolSettings, is_call: bool) -> Limits {
        let deadlines = &settings.deadlines;
        let least = if is_call { deadlines.tunnel_idle } else { Duration::ZERO };
        let end = |total| self.timers.now_ms().saturating_add(millis(total));
        Limits {
            first_byte: deadlines.first_byte.max(least),
            between_bytes: deadlines.between_bytes.max(least),
            end_ms: deadlines.total.map_or(NEVER, end),
        }
    }

    /// The most recently used connection that is still good.
    pub(super) fn take_idle(&self, here: &MemberState) -> Option<Box<Http1>> {
        let now_ms = self.timers.now_ms();
        let mut idle = here.idle.borrow_mut();
        while let Some(mut kept) = idle.pop() {
            if kept.until_ms <= now_ms {
                self.close_idle(kept, IDLE_EXPIRED);
            } else if !kept.http1.is_reusable() {
                self.close_idle(kept, IDLE_ORIGIN);
            } else {
                self.recorder.subtract(Metric::UpstreamIdle, 1);
                return Some(kept.http1);
            }
        }
        None
    }

    /// A stream on a connection that has room.
    pub(super) fn share_http2(&self, pool: &Pool, here: &MemberState) -> Option<Share> {
        let settings = pool.settings();
        let mut connections = here.http2.borrow_mut();
        if connections.is_empty() {
            return None;
        }
        connections.retain(|http2| !http2.is_closed());
        let now_ms = self.timers.now_ms();
        let young =
            |opened_ms| now_ms.saturating_sub(opened_ms) < millis(settings.keep_alive.age_max);
        let room = |http2: &&Rc<Http2>| {
            let most = settings.streams_max.min(http2.streams_max());
            http2.streams.get() < most && young(http2.opened_ms)
        };
        connections.iter().find(room).map(Share::of)
    }

    #[cfg(test)]
    pub(super) fn streams(&self) -> usize {
        let members = self.members.borrow();
        members.values().flat_map(|here| here.http2.borrow().clone()).map(|h| h.streams.get()).sum()
    }

    fn close_idle(&self, idle: Idle, reason: usize) {
        self.recorder.subtract(Metric::UpstreamIdle, 1);
        self.recorder.count_labelled(Metric::UpstreamIdleClosed, reason);
        drop(idle);
    }

    /// Closes what is unused for too long or was closed by the origin. Forgets pools that no
    /// plan has any more, and then members that no pool has and that have no connection.
    fn sweep(&self) {
        let now_ms = self.timers.now_ms();
        self.pools.borrow_mut().retain(|_, state| {
            let age_max_ms = millis(state.pool.settings().keep_alive.age_max);
            for here in &state.members {
                self.sweep_member(here, now_ms, age_max_ms);
            }
            Rc::strong_count(state) > 1 || Arc::strong_count(&state.pool) > 1
        });
        self.members.borrow_mut().retain(|_, here| {
            if Rc::strong_count(here) == 1 {
                // Its last exchange may still bring a connection back.
                self.sweep_member(here, now_ms, 0);
            }
            Rc::strong_count(here) > 1 || here.in_use()
        });
    }

    fn sweep_member(&self, here: &MemberState, now_ms: u64, age_max_ms: u64) {
        let kept = std::mem::take(&mut *here.idle.borrow_mut());
        for mut idle in kept {
            if idle.until_ms <= now_ms {
                self.close_idle(idle, IDLE_EXPIRED);
            } else if !idle.http1.is_reusable() {
                self.close_idle(idle, IDLE_ORIGIN);
            } else {
                here.idle.borrow_mut().push(idle);
            }
        }
        here.http2.borrow_mut().retain(|http2| {
            let aged = now_ms.saturating_sub(http2.opened_ms) >= age_max_ms;
            let over = aged && http2.streams.get() == 0;
            !over && !http2.is_closed()
        });
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let idle = self.members.get_mut().values().map(|here| here.idle.borrow().len());
        self.recorder.subtract(Metric::UpstreamIdle, idle.sum::<usize>() as u64);
    }
}

async fn sweep(core: Weak<Core>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(core) = core.upgrade() else { return };
        core.sweep();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

/// An origin that says how long it keeps a connection is believed up to this before its end.
const CLOSE_MARGIN: Duration = Duration::from_secs(1);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The budget's unit: percent of a request.
const RETRY: u32 = 100;
/// Retries that a core can save up beyond the reserve.
const RETRIES_SAVED: u32 = 100;

/// Labels of [`Metric::UpstreamIdleClosed`].
const IDLE_EXPIRED: usize = 0;
const IDLE_LIMIT: usize = 1;
const IDLE_ORIGIN: usize = 2;
