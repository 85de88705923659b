//! A fill: one upstream response on its way into the store, with any number of readers.
//!
//! The fill keeps the newest bytes in a [`Window`] and wakes its readers as bytes arrive. Its
//! fastest reader sets the pace: the fill may be one window ahead of it. A slow reader that falls
//! behind the window reads complete slices from the store.
//!
//! ```text
//!            ┌ release ─► Released                 followers forward on their own
//!            ├ fail ────► Failed                   followers get the same failure
//!  Asking ───┤
//!            ├ validated ► Stored                  followers serve the stored response
//!            └ fill ────► Filling ──┬─► Whole      the last byte arrived, the length is right
//!                                   └─► Broken     upstream ended early, or no reader was left
//! ```
//!
//! Each transition happens once, under the fill's lock, and wakes all waiters after the lock is
//! released. Dropping a `Lead` or a pump makes the transition to `Failed` or `Broken`, so that no
//! follower waits for a task that is gone.

pub(crate) mod collapse;
pub(crate) mod parts; // a range of what is stored in part
mod pump; // moves an upstream body into its fill
mod reader; // one client's reading of a fill
pub(crate) mod slices; // ranges of what is not stored, pure
mod window; // the bytes of a fill that are in memory

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::Notify;

use self::collapse::{FillFailure, Outcome};
use self::pump::Pump;
use self::reader::Readers;
use self::window::Window;
use crate::body::{Body, BodyError};
use crate::cache::{PurgeSequence, StoredResponse};
use crate::metrics::{Metric, Recorder};
use crate::store::{Head, ObjectId, Store};

pub(crate) use self::pump::{FillEnd, Filled};
pub(crate) use self::reader::FillReader;

/// Limits of fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How far a fill may run ahead of its fastest reader, and how many bytes it keeps in memory
    /// for slower readers. At least two slices.
    pub window_bytes: u64,
    /// Maximum bytes of all windows together; above it, every fill gets two slices.
    pub windows_bytes_total: u64,
    /// A fill without readers continues if at least this percentage of it has arrived, or if at
    /// most a slice is missing.
    pub keep_percent: u8,
    /// How long in total a fill that is *not* stored waits for readers that would otherwise fall
    /// behind its window; then it disconnects them.
    pub patience: Duration,
    /// Maximum bytes of one sub-request for missing slices, rounded down to whole slices, at least
    /// one.
    pub range_request_bytes_max: u64,
    /// A range that begins before this offset is fetched from the first byte up to at least this
    /// offset, so that an object of at most this length is fetched completely.
    pub whole_bytes_max: u64,
    /// Maximum number of concurrent fills; above it, requests are not collapsed and responses not
    /// stored.
    pub fills_max: usize,
    /// Maximum number of followers and readers of one fill; above it, requests are not collapsed.
    pub followers_max: usize,
    /// Maximum number of keys remembered as uncacheable; above it, no further key is remembered.
    pub remembered_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window_bytes: 4 << 20,
            windows_bytes_total: 256 << 20,
            keep_percent: 50,
            patience: Duration::from_secs(10),
            range_request_bytes_max: 8 << 20,
            whole_bytes_max: 1 << 20,
            fills_max: 16_384,
            followers_max: 65_536,
            remembered_max: 65_536,
        }
    }
}

/// The state shared by all fills of a node.
#[derive(Debug)]
struct Shared {
    pub settings: Settings,
    /// The store's.
    pub slice_bytes: u64,
    pub recorder: Recorder,
    /// Bytes in all windows.
    held: AtomicU64,
}

impl Shared {
    pub(crate) fn new(settings: Settings, slice_bytes: u64, recorder: Recorder) -> Self {
        Self { settings, slice_bytes, recorder, held: AtomicU64::new(0) }
    }

    /// The current maximum window of a fill.
    pub(crate) fn window_bytes(&self) -> u64 {
        let least = 2 * self.slice_bytes;
        if self.held.load(Ordering::Relaxed) >= self.settings.windows_bytes_total {
            return least;
        }
        self.settings.window_bytes.max(least)
    }

    pub(crate) fn hold(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.recorder.add(Metric::FillWindowBytes, bytes);
    }

    pub(crate) fn let_go(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.recorder.subtract(Metric::FillWindowBytes, bytes);
    }
}

/// One exchange with upstream that other requests may join.
#[derive(Debug)]
struct Fill {
    pub shared: Arc<Shared>,
    /// The purge-log position read before the upstream request was sent.
    pub sequence: PurgeSequence,
    state: Mutex<State>,
    /// Followers wait here for the outcome.
    decided: Notify,
    /// The pump waits here for space in the window, and for the last reader to leave.
    pub pump: Notify,
}

/// The state under the fill's lock, which is held only to move a few pointers.
#[derive(Debug)]
struct State {
    outcome: Option<Decided>,
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

/// [`Outcome`] without the reference that keeps the fill alive for a follower.
#[derive(Clone, Debug)]
enum Decided {
    Released,
    Failed(FillFailure),
    Stored,
    Filling(Arc<StoredResponse>),
}

/// How a body ended.
#[derive(Clone, Debug)]
enum End {
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
    pub(crate) fn interested(&self) -> usize {
        self.expected + self.readers.count()
    }

    /// Offset of the slowest reader that has not fallen behind the window.
    pub(crate) fn slowest(&self) -> Option<u64> {
        if self.expected > 0 && self.window.start() == 0 {
            return Some(0);
        }
        self.readers.cursors().filter(|cursor| *cursor >= self.window.start()).min()
    }

    /// Bytes from this offset on are kept for readers, whatever the size of the window.
    pub(crate) fn held_back_at(&self) -> u64 {
        let not_reading_yet = if self.expected > 0 { 0 } else { u64::MAX };
        self.readers.fastest.unwrap_or(not_reading_yet)
    }
}

impl Fill {
    pub(crate) fn new(shared: Arc<Shared>, sequence: PurgeSequence) -> Arc<Self> {
        shared.recorder.add(Metric::Fills, 1);
        let state = State {
            outcome: None,
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
            state: Mutex::new(state),
            decided: Notify::new(),
            pump: Notify::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes a change of `state` that removed a reader.
    pub(crate) fn unlock_after_leaving(&self, state: MutexGuard<'_, State>) {
        let nobody_left = state.interested() == 0;
        self.unlock_and_nudge(state);
        if nobody_left {
            self.pump.notify_one();
        }
    }

    /// Finishes a change of `state` that may have freed space: wakes the pump if it waits.
    pub(crate) fn unlock_and_nudge(&self, mut state: MutexGuard<'_, State>) {
        let pump_waits = std::mem::take(&mut state.pump_waits);
        drop(state);
        if pump_waits {
            self.pump.notify_one();
        }
    }

    /// The response, once upstream has sent its header section and it is being stored.
    pub(crate) fn response(&self) -> Option<Arc<StoredResponse>> {
        match &self.lock().outcome {
            Some(Decided::Filling(response)) => Some(response.clone()),
            _ => None,
        }
    }

    /// Adds a follower. `None` if the fill has no response for a new follower.
    pub(crate) fn interest(self: &Arc<Self>) -> Result<Interest, NotJoinable> {
        let mut state = self.lock();
        let open = match state.outcome {
            None => true,
            Some(Decided::Filling(_)) => state.has_all() && !state.is_broken(),
            Some(_) => false,
        };
        if !open {
            return Err(NotJoinable::Over);
        }
        if state.interested() >= self.shared.settings.followers_max {
            return Err(NotJoinable::Full);
        }
        Ok(Interest::new(self, &mut state))
    }

    /// The leader's own client may always follow, whatever the limits.
    pub(crate) fn interest_of_leader(self: &Arc<Self>) -> Interest {
        Interest::new(self, &mut self.lock())
    }

    /// Waits until the fill leaves `Asking`. Cancel-safe.
    pub(crate) async fn outcome(self: &Arc<Self>) -> Outcome {
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

    fn outcome_now(self: &Arc<Self>) -> Option<Outcome> {
        let mut state = self.lock();
        Some(match state.outcome.clone()? {
            Decided::Released => Outcome::Released,
            Decided::Failed(failure) => Outcome::Failed(failure),
            Decided::Stored => Outcome::Stored,
            Decided::Filling(response) => {
                Outcome::Filling(Filling { response, interest: Interest::new(self, &mut state) })
            }
        })
    }

    pub(crate) fn release(&self) {
        self.decide(Decided::Released);
    }

    pub(crate) fn fail(&self, failure: FillFailure) {
        self.decide(Decided::Failed(failure));
    }

    pub(crate) fn stored(&self) {
        self.decide(Decided::Stored);
    }

    fn decide(&self, outcome: Decided) {
        let mut state = self.lock();
        debug_assert!(state.outcome.is_none(), "a fill is decided once");
        state.outcome.get_or_insert(outcome);
        drop(state);
        self.decided.notify_waiters();
    }

    /// Moves `body` into the window, and complete slices into the store, until its end.
    pub(crate) async fn run(
        self: &Arc<Self>,
        store: &Store,
        response: Arc<StoredResponse>,
        body: Body,
        to_the_end: bool,
    ) -> Filled {
        let length = response.complete_length;
        let writer = store.writer(StoredResponse::clone(&response));
        {
            let mut state = self.lock();
            state.storing = true;
            state.slices = Some((store.clone(), writer.object()));
        }
        self.decide(Decided::Filling(response));
        Pump::new(self.clone(), body, length, writer, to_the_end).run().await
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
enum NotJoinable {
    /// It has no response: it was released, has failed, or ended early.
    Over,
    /// It has reached the limit of followers.
    Full,
}

/// Counts as an expected reader until it is dropped.
#[derive(Debug)]
struct Interest {
    fill: Arc<Fill>,
    counts: AtomicBool,
}

impl Interest {
    fn new(fill: &Arc<Fill>, state: &mut State) -> Self {
        state.expected += 1;
        Self { fill: fill.clone(), counts: AtomicBool::new(true) }
    }

    pub(crate) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Stops counting, because a reader counts instead, or none does.
    pub(crate) fn end(&self) {
        if !self.counts.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut state = self.fill.lock();
        state.expected -= 1;
        self.fill.unlock_after_leaving(state);
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.end();
    }
}

/// A response whose body is being fetched. It keeps the fill alive until it is read or dropped,
/// then its reader does. To read several ranges, create all readers before one is dropped.
#[derive(Debug)]
pub(crate) struct Filling {
    response: Arc<StoredResponse>,
    interest: Interest,
}

impl Filling {
    /// The head record of the response, as it will be stored.
    pub(crate) fn response(&self) -> &Arc<StoredResponse> {
        &self.response
    }

    /// The head record of its object, with which its slices can be read, and slices other than the
    /// next ones be stored. `None` if it is not stored in slices, or its length is unknown.
    pub(crate) fn head(&self) -> Option<Arc<Head>> {
        let (store, object) = self.interest.fill().lock().slices.clone()?;
        store.head_to_be(&self.response, object)
    }

    /// Whether this byte is further than one sub-request beyond the bytes that have arrived.
    pub(crate) fn is_far_from(&self, offset: u64) -> bool {
        let fill = self.interest.fill();
        let come = fill.lock().window.end();
        offset > come.saturating_add(fill.shared.settings.range_request_bytes_max)
    }

    /// Reads the whole body from its first byte, with trailers.
    pub(crate) fn read_all(&self) -> FillReader {
        self.reader(0..u64::MAX, true)
    }

    /// Reads only the bytes of `range`, cut at the end of the body. If the length is unknown, the
    /// end is known only when it arrives.
    pub(crate) fn read(&self, range: Range<u64>) -> FillReader {
        self.reader(range, false)
    }

    fn reader(&self, range: Range<u64>, trailers: bool) -> FillReader {
        let length = self.response.complete_length;
        let reader = FillReader::new(self.interest.fill().clone(), range, length, trailers);
        self.interest.end();
        reader
    }
}

#[cfg(test)]
mod tests;
