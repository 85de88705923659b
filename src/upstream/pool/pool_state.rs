//! One core's part of a pool: its view of the members, whose turn it is, and the retry budget.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::super::choice::balance::Dice;
use super::super::connection::HttpVersion;
use super::super::connection::closing_time::ClosingTime;
use super::super::connection::http1::Http1;
use super::super::connection::http2::Http2;
use super::super::error::FetchError;
use super::super::exchange::Intent;
use super::super::exchange::deadline::monotonic_ms;
use super::super::health::Outcome;
use super::super::load::percentiles::Percentiles;
use super::super::settings::{Hedge, HedgeAfter, PoolSettings, Protocol, Scheme};
use super::Pool;
use super::members::{Member, Members};
use crate::clock::whole_ms;
use crate::random::random_u64;

/// One core's part of a pool.
pub(in crate::upstream) struct PoolState {
    pub(in crate::upstream) pool: Arc<Pool>,
    /// This core's view of the pool's members; [`super::super::connection::core::Core::members`] keeps it current.
    pub(in crate::upstream) members: RefCell<Rc<MemberStates>>,
    /// Increases by one for each attempt; addresses of an origin take turns by it.
    pub(in crate::upstream) turn: Cell<usize>,
    pub(in crate::upstream) dice: Dice,
    /// Hundredths of a retry.
    budget: Cell<u32>,
    /// Hundredths of a hedge.
    hedge_budget: Cell<u32>,
    /// The times in which responses began, if hedges depend on them.
    latencies: RefCell<Percentiles>,
}

/// A set of members, each with this core's part of it, at the same positions.
pub(in crate::upstream) struct MemberStates {
    pub(in crate::upstream) members: Arc<Members>,
    pub(in crate::upstream) states: Box<[Rc<MemberState>]>,
    /// The next turn in each tier. They start at random, so that the cores of a node, and the
    /// nodes of a fleet, do not all begin with the same member.
    pub(in crate::upstream) turns: Box<[Cell<usize>]>,
}

/// One core's part of a member: its connections.
pub(in crate::upstream) struct MemberState {
    pub(in crate::upstream) member: Arc<Member>,
    /// The most recently used connection is last, so that superfluous ones grow old at the front.
    pub(in crate::upstream) idle: RefCell<Vec<Idle>>,
    /// After how long the origin closes idle connections, as far as it has closed some.
    pub(in crate::upstream) closing: ClosingTime,
    pub(in crate::upstream) http2: RefCell<Vec<Rc<Http2>>>,
    /// Present while a connection is being opened that others may be able to share.
    opening: RefCell<Option<Rc<Opening>>>,
    /// The version on its connections. `None`: not known yet.
    pub(in crate::upstream) http_version: Cell<Option<HttpVersion>>,
    /// Exchanges in flight.
    pub(in crate::upstream) active: Cell<usize>,
    /// When the last good response began, a time of [`super::super::exchange::deadline::Timers::now_ms`]; 0: there
    /// was none.
    pub(in crate::upstream) last_good_ms: Cell<u64>,
    /// Good and bad outcomes since the last [`MemberState::take_tally`].
    tally: Cell<(u32, u32)>,
}

/// An idle HTTP/1.1 connection.
pub(in crate::upstream) struct Idle {
    pub(in crate::upstream) http1: Box<Http1>,
    pub(in crate::upstream) since_ms: u64,
    pub(in crate::upstream) until_ms: u64,
}

/// A connection that is being opened. Requests that could share it wait for it.
#[derive(Default)]
pub(in crate::upstream) struct Opening {
    pub(in crate::upstream) done: Notify,
    /// The connection can be shared.
    pub(in crate::upstream) is_shared: Cell<bool>,
    /// Why it was not opened.
    pub(in crate::upstream) failure: RefCell<Option<FetchError>>,
}

/// Wakes the waiting requests when dropped, whether or not the connection was opened.
pub(in crate::upstream) struct OpeningGuard<'a> {
    state: &'a MemberState,
    pub(in crate::upstream) opening: Rc<Opening>,
}

impl PoolState {
    /// `wanted` is notified when a request of the pool waits for a connection.
    pub(in crate::upstream) fn new(
        pool: &Arc<Pool>,
        members: MemberStates,
        wanted: &Arc<Notify>,
    ) -> Self {
        pool.queue.add_core(wanted);
        let budget = pool.settings().retry.budget_reserve.saturating_mul(RETRY);
        Self {
            pool: pool.clone(),
            members: RefCell::new(Rc::new(members)),
            turn: Cell::new(0),
            dice: Dice::new(random_u64()),
            budget: Cell::new(budget),
            hedge_budget: Cell::new(0),
            latencies: RefCell::default(),
        }
    }

    /// Adds a request's share of a retry to the budget, up to its limit.
    pub(in crate::upstream) fn earn_retry(&self) {
        self.add_to_budget(self.pool.settings().retry.budget_percent);
    }

    /// Takes one retry from the budget. False if too little is left.
    pub(in crate::upstream) fn spend_retry(&self) -> bool {
        let left = self.budget.get().checked_sub(RETRY);
        left.inspect(|left| self.budget.set(*left)).is_some()
    }

    /// Takes one retry from the budget, or what is left.
    pub(in crate::upstream) fn charge_retry(&self) {
        self.budget.set(self.budget.get().saturating_sub(RETRY));
    }

    /// Gives a retry back.
    pub(in crate::upstream) fn return_retry(&self) {
        self.add_to_budget(RETRY);
    }

    /// When a request that begins now is sent to a second origin too. Adds the request's share of
    /// a hedge to the budget of hedges.
    pub(in crate::upstream) fn hedge_after(&self) -> Option<Duration> {
        let Hedge { after, percent_max } = self.pool.settings().hedge;
        let after = match after? {
            HedgeAfter::Fixed(time) => Some(time),
            HedgeAfter::Percentile(percent) => self.latencies.borrow().within(percent),
        };
        let most = HEDGES_SAVED * RETRY;
        self.hedge_budget.set(self.hedge_budget.get().saturating_add(percent_max).min(most));
        after.map(|time| time.max(HedgeAfter::MIN))
    }

    /// Takes a hedge from the budget. False if too little is left.
    pub(in crate::upstream) fn spend_hedge(&self) -> bool {
        let left = self.hedge_budget.get().checked_sub(RETRY);
        left.inspect(|left| self.hedge_budget.set(*left)).is_some()
    }

    /// Notes in which time a response began.
    pub(in crate::upstream) fn note_latency(&self, time: Duration) {
        if matches!(self.pool.settings().hedge.after, Some(HedgeAfter::Percentile(_))) {
            self.latencies.borrow_mut().add(time);
        }
    }

    fn add_to_budget(&self, hundredths: u32) {
        let reserve = self.pool.settings().retry.budget_reserve;
        let most = reserve.saturating_add(RETRIES_SAVED).saturating_mul(RETRY);
        self.budget.set(self.budget.get().saturating_add(hundredths).min(most));
    }
}

impl MemberStates {
    /// `states` are those of `members`, in their order.
    pub(in crate::upstream) fn new(members: &Arc<Members>, states: Box<[Rc<MemberState>]>) -> Self {
        let start = |_| Cell::new(random_u64() as usize);
        let turns = (0..members.tiers().len()).map(start).collect();
        Self { members: members.clone(), states, turns }
    }
}

impl MemberState {
    pub(in crate::upstream) fn new(member: &Arc<Member>, protocol: Protocol) -> Self {
        let http_version = match (protocol, member.scheme) {
            (Protocol::Http2, _) => Some(HttpVersion::Http2),
            (Protocol::Auto, Scheme::Https) => None,
            _ => Some(HttpVersion::Http1),
        };
        Self {
            member: member.clone(),
            idle: RefCell::default(),
            closing: ClosingTime::default(),
            http2: RefCell::default(),
            opening: RefCell::default(),
            http_version: Cell::new(http_version),
            active: Cell::new(0),
            last_good_ms: Cell::new(0),
            tally: Cell::default(),
        }
    }

    /// Whether a good response has begun within `time` before `now_ms`.
    pub(in crate::upstream) fn was_good_since(&self, now_ms: u64, time: Duration) -> bool {
        let last_ms = self.last_good_ms.get();
        last_ms > 0 && now_ms.saturating_sub(last_ms) <= whole_ms(time)
    }

    /// Counts an outcome for the error rate.
    pub(in crate::upstream) fn count_outcome(&self, outcome: Outcome) {
        let (good, bad) = self.tally.get();
        self.tally.set(if outcome.is_good() {
            (good.saturating_add(1), bad)
        } else {
            (good, bad.saturating_add(1))
        });
    }

    /// The outcomes since the last call: good and bad ones.
    pub(in crate::upstream) fn take_tally(&self) -> (u32, u32) {
        self.tally.take()
    }

    /// The connection that another request is opening.
    pub(in crate::upstream) fn opening(&self) -> Option<Rc<Opening>> {
        self.opening.borrow().clone()
    }

    /// Announces that a connection is being opened.
    pub(in crate::upstream) fn begin_opening(&self) -> OpeningGuard<'_> {
        let opening = Rc::new(Opening::default());
        *self.opening.borrow_mut() = Some(opening.clone());
        OpeningGuard { state: self, opening }
    }

    /// Lets other requests share this connection.
    pub(in crate::upstream) fn add_http2(&self, http2: &Rc<Http2>) {
        self.http2.borrow_mut().push(http2.clone());
    }

    /// Whether a request needs no other connection than this core has: one is idle, has room for a
    /// stream, or is being opened and may be shared.
    pub(in crate::upstream) fn has_connection(
        &self,
        settings: &PoolSettings,
        intent: &Intent,
    ) -> bool {
        let may_share =
            intent.upgrade.is_none() && self.http_version.get() != Some(HttpVersion::Http1);
        let is_idle = !self.idle.borrow().is_empty();
        is_idle || may_share && (self.opening.borrow().is_some() || self.has_room(settings))
    }

    fn has_room(&self, settings: &PoolSettings) -> bool {
        let now_ms = monotonic_ms();
        self.http2.borrow().iter().any(|http2| http2.has_room(settings, now_ms))
    }

    pub(in crate::upstream) fn has_connections(&self) -> bool {
        self.active.get() > 0 || !self.idle.borrow().is_empty() || !self.http2.borrow().is_empty()
    }
}

impl Drop for OpeningGuard<'_> {
    fn drop(&mut self) {
        let mut opening = self.state.opening.borrow_mut();
        if opening.as_ref().is_some_and(|opening| Rc::ptr_eq(opening, &self.opening)) {
            *opening = None;
        }
        self.opening.done.notify_waiters();
    }
}

/// The budget's unit: percent of a request.
const RETRY: u32 = 100;
/// Hedges that a core can save up, so that a pause of an origin is bridged.
const HEDGES_SAVED: u32 = 20;
/// Retries that a core can save up beyond the reserve.
const RETRIES_SAVED: u32 = 100;
