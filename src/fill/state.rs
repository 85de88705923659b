//! The state of a fill, which its leader, its pump, its followers and its readers share.
//!
//! ```text
//!            ┌ release ─► Released                 followers forward on their own
//!            ├ fail ────► Failed                   followers get the same failure
//!  Asking ───┤
//!            ├ stored ──► Stored                   followers serve the stored response
//!            ├ leave_to_peer ─► AtPeer             followers ask the peer that has the response
//!            └ fill ────► Filling ──┬─► Whole      the last byte arrived, the length is right
//!                                   └─► Broken     upstream ended early, or no reader was left
//! ```
//!
//! Each transition happens once, under the fill's lock, and wakes all waiters after the lock is
//! released. Dropping a `Lead` or a pump makes the transition to `Failed` or `Broken`, so that no
//! follower waits for a task that is gone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, StatusCode};
use tokio::sync::Notify;

use super::readers::Readers;
use super::settings::Settings;
use super::window::Window;
use crate::body::BodyError;
use crate::cache::{PurgeSequence, StoredResponse};
use crate::metrics::{Metric, Recorder};
use crate::purge::Requirement;
use crate::store::{ObjectId, Store};

/// The state shared by all fills of a node.
#[derive(Debug)]
pub(super) struct Shared {
    pub settings: Settings,
    /// Slice size of the store, in bytes.
    pub slice_bytes: u64,
    pub recorder: Recorder,
    /// Bytes in all windows.
    window_bytes: AtomicU64,
}

impl Shared {
    pub(super) fn new(settings: Settings, slice_bytes: u64, recorder: Recorder) -> Self {
        Self { settings, slice_bytes, recorder, window_bytes: AtomicU64::new(0) }
    }

    /// The current maximum window of a fill, by the bytes in all windows.
    pub(crate) fn window_bytes_max(&self) -> u64 {
        let least = self.window_bytes_least();
        if self.is_full() {
            least.min(PASSED_BYTES_MAX)
        } else if self.window_bytes.load(Ordering::Relaxed) >= self.settings.windows_bytes_total / 2
        {
            least
        } else {
            self.settings.window_bytes.max(least)
        }
    }

    /// Whether all windows together have reached [`Settings::windows_bytes_total`].
    pub(crate) fn is_full(&self) -> bool {
        self.window_bytes.load(Ordering::Relaxed) >= self.settings.windows_bytes_total
    }

    /// The window of a fill is never smaller while its response is stored.
    pub(crate) fn window_bytes_least(&self) -> u64 {
        2 * self.slice_bytes
    }

    /// Counts bytes that enter a window.
    pub(crate) fn hold(&self, bytes: u64) {
        self.window_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.recorder.add(Metric::FillWindowBytes, bytes);
    }

    /// Counts bytes that leave a window.
    pub(crate) fn let_go(&self, bytes: u64) {
        self.window_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.recorder.subtract(Metric::FillWindowBytes, bytes);
    }
}

/// One exchange with upstream that other requests may join.
#[derive(Debug)]
pub(super) struct Fill {
    pub shared: Arc<Shared>,
    /// The purge-log position read before the upstream request was sent.
    pub sequence: PurgeSequence,
    /// The purge requirement of another node that this fill was begun with, unmet here.
    pub carried: Option<Requirement>,
    state: Mutex<State>,
    /// Followers wait here for the outcome.
    decided: Notify,
    /// The pump waits here for space in the window, and for the last reader to leave.
    pub pump: Notify,
}

/// The state under the fill's lock, which is held only to move a few pointers.
#[derive(Debug)]
pub(super) struct State {
    decision: Option<FillDecision>,
    /// Number of followers that wait for the outcome, or have it and do not read yet.
    pub expected: usize,
    pub window: Window,
    pub readers: Readers,
    /// Whether the body is also written to the store.
    pub storing: bool,
    /// Where readers that fell behind the window find the stored slices.
    pub slices: Option<(Store, ObjectId)>,
    pub pump_waits: bool,
    pub end: Option<End>,
}

/// How a fill left `Asking`.
#[derive(Clone, Debug)]
pub(super) enum FillDecision {
    Released,
    Failed(FillFailure),
    Stored,
    AtPeer,
    Filling(Arc<StoredResponse>),
}

/// How a body ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    Whole { trailers: Option<Arc<HeaderMap>> },
    Broken(Arc<BodyError>),
}

impl State {
    /// Whether every byte that arrived is still available.
    fn has_all(&self) -> bool {
        self.storing || self.window.start() == 0
    }

    fn is_broken(&self) -> bool {
        matches!(self.end, Some(End::Broken(_)))
    }

    /// Number of readers, present and expected.
    pub(crate) fn reader_count(&self) -> usize {
        self.expected + self.readers.count()
    }

    /// Offset of the slowest reader that has not fallen behind the window.
    pub(crate) fn slowest(&self) -> Option<u64> {
        if self.expected > 0 && self.window.start() == 0 {
            return Some(0);
        }
        self.readers.cursors().filter(|cursor| *cursor >= self.window.start()).min()
    }

    /// The window keeps all bytes from this offset on, even if it exceeds its maximum size.
    pub(crate) fn retain_from(&self) -> u64 {
        let not_reading_yet = if self.expected > 0 { 0 } else { u64::MAX };
        self.readers.fastest.unwrap_or(not_reading_yet)
    }
}

impl Fill {
    pub(crate) fn new(
        shared: Arc<Shared>,
        sequence: PurgeSequence,
        carried: Option<Requirement>,
    ) -> Arc<Self> {
        shared.recorder.add(Metric::Fills, 1);
        let state = State {
            decision: None,
            expected: 0,
            window: Window::default(),
            readers: Readers::default(),
            storing: false,
            slices: None,
            pump_waits: false,
            end: None,
        };
        Arc::new(Self {
            shared,
            sequence,
            carried,
            state: Mutex::new(state),
            decided: Notify::new(),
            pump: Notify::new(),
        })
    }

    /// Whether its response will do for a request with this purge requirement.
    pub(crate) fn carries(&self, requirement: &Requirement) -> bool {
        self.carried.as_ref().is_some_and(|carried| carried.includes(requirement))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock after a reader was removed; wakes the pump if none is left.
    pub(crate) fn unlock_after_reader_left(&self, state: MutexGuard<'_, State>) {
        let nobody_left = state.reader_count() == 0;
        self.unlock_and_wake_pump(state);
        if nobody_left {
            self.pump.notify_one();
        }
    }

    /// Releases the lock after a change that may have freed space; wakes the pump if it waits.
    pub(crate) fn unlock_and_wake_pump(&self, mut state: MutexGuard<'_, State>) {
        let pump_waits = std::mem::take(&mut state.pump_waits);
        drop(state);
        if pump_waits {
            self.pump.notify_one();
        }
    }

    /// The response, once its header section has arrived and it is being stored.
    pub(crate) fn response(&self) -> Option<Arc<StoredResponse>> {
        match &self.lock().decision {
            Some(FillDecision::Filling(response)) => Some(response.clone()),
            _ => None,
        }
    }

    /// Registers a follower.
    ///
    /// # Errors
    /// [`NotJoinable::Over`] if the fill has no response for a new follower, [`NotJoinable::Full`] if it
    /// has `followers_max` followers and readers.
    pub(crate) fn add_follower(self: &Arc<Self>) -> Result<FollowerGuard, NotJoinable> {
        let mut state = self.lock();
        let open = match state.decision {
            None => true,
            Some(FillDecision::Filling(_)) => state.has_all() && !state.is_broken(),
            Some(_) => false,
        };
        if !open {
            return Err(NotJoinable::Over);
        }
        if state.reader_count() >= self.shared.settings.followers_max {
            return Err(NotJoinable::Full);
        }
        Ok(FollowerGuard::new(self, &mut state))
    }

    /// Whether other requests than that of the leader's client wait for the outcome.
    pub(crate) fn is_followed(&self) -> bool {
        self.lock().reader_count() > 1
    }

    /// Registers the leader's own client, regardless of the limits.
    pub(crate) fn add_leader_as_follower(self: &Arc<Self>) -> FollowerGuard {
        FollowerGuard::new(self, &mut self.lock())
    }

    /// Waits until the fill leaves `Asking`. Cancel-safe.
    pub(crate) async fn outcome(self: &Arc<Self>) -> (FillDecision, FollowerGuard) {
        loop {
            let decided = self.decided.notified();
            tokio::pin!(decided);
            decided.as_mut().enable();
            if let Some(outcome) = self.outcome_now() {
                return outcome;
            }
            decided.await;
        }
    }

    fn outcome_now(self: &Arc<Self>) -> Option<(FillDecision, FollowerGuard)> {
        let mut state = self.lock();
        let decision = state.decision.clone()?;
        Some((decision, FollowerGuard::new(self, &mut state)))
    }

    pub(crate) fn release(&self) {
        self.decide(FillDecision::Released);
    }

    pub(crate) fn fail(&self, failure: FillFailure) {
        self.decide(FillDecision::Failed(failure));
    }

    pub(crate) fn stored(&self) {
        self.decide(FillDecision::Stored);
    }

    pub(crate) fn leave_to_peer(&self) {
        self.decide(FillDecision::AtPeer);
    }

    pub(crate) fn decide(&self, decision: FillDecision) {
        let mut state = self.lock();
        debug_assert!(state.decision.is_none(), "fill outcome set twice");
        state.decision.get_or_insert(decision);
        drop(state);
        self.decided.notify_waiters();
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.shared.let_go(self.lock().window.held());
        self.shared.recorder.subtract(Metric::Fills, 1);
    }
}

/// Why a request cannot follow a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotJoinable {
    /// The fill has no response: it was released, has failed, or ended early.
    Over,
    /// The fill has reached the limit of followers.
    Full,
}

/// A registered follower. Counts as an expected reader until it is dropped.
#[derive(Debug)]
pub(super) struct FollowerGuard {
    fill: Arc<Fill>,
    counts: AtomicBool,
}

impl FollowerGuard {
    fn new(fill: &Arc<Fill>, state: &mut State) -> Self {
        state.expected += 1;
        Self { fill: fill.clone(), counts: AtomicBool::new(true) }
    }

    pub(crate) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Removes this follower from the count: a reader has taken its place, or it gave up.
    pub(crate) fn end(&self) {
        if !self.counts.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut state = self.fill.lock();
        state.expected -= 1;
        self.fill.unlock_after_reader_left(state);
    }
}

impl Drop for FollowerGuard {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why there is no response; shared by all followers.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum FillFailure {
    /// The upstream request failed (the source is an [`Unanswered`](crate::upstream::Unanswered)), or its
    /// response is unusable.
    #[error("the collapsed upstream request failed")]
    Upstream(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Upstream responded with an error; a stale response may be served instead.
    #[error("upstream answered {0}")]
    Status(StatusCode),
    /// The requested bytes belong to an object that has changed at the origin.
    #[error("the object changed at its origin")]
    Changed,
    /// The leader's task ended without a response: the follower forwards its own request.
    #[error("the task that asked upstream ended without an answer")]
    Abandoned,
}

/// How far a fill runs ahead of its fastest reader while all windows are full: about what a response holds that
/// is passed on without a fill.
const PASSED_BYTES_MAX: u64 = 64 << 10;
