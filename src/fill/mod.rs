//! A fill: one upstream response on its way into the store, with any number of readers.
//!
//! The fill keeps the newest bytes in a [`Window`] and wakes its readers as bytes come. It is
//! paced by its fastest reader, of which it may be ahead by one window, and never by a slow
//! one: a reader that falls out of the window reads complete slices from the store.
//!
//! ```text
//!            ┌ release ─► Released                 followers forward on their own
//!            ├ fail ────► Failed                   followers have the same failure
//!  Asking ───┤
//!            ├ validated ► Stored                  followers serve what is in the store
//!            └ fill ────► Filling ──┬─► Whole      the last byte came, the length is right
//!                                   └─► Broken     upstream broke off, or nobody was left
//! ```
//!
//! Each arrow is taken once, under the fill's lock, and wakes whoever waits, outside of it.
//! A `Lead` or a pump that is dropped takes the arrow to `Failed` or `Broken`: nobody waits
//! for a task that is gone.

pub mod collapse;
pub mod parts; // a range of what is stored in part
mod pump; // moves an upstream body into its fill
mod reader; // one client's reading of a fill
pub mod slices; // ranges of what is not stored, pure
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

pub use self::pump::{FillEnd, Filled};
pub use self::reader::FillReader;

/// Limits of fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How far a fill may run ahead of its fastest reader, and how many bytes it keeps for the
    /// others. Never less than two slices.
    pub window_bytes: u64,
    /// Bytes in all windows; while there are more, every fill makes do with two slices.
    pub windows_bytes_total: u64,
    /// A fill that all readers have left goes on when at least this share of it is here, in
    /// percent, or when no more than a slice is missing.
    pub keep_percent: u8,
    /// How long in all a fill that is *not* being stored waits for readers that would
    /// otherwise fall out of its window; then they are cut off.
    pub patience: Duration,
    /// The most that one sub-request for missing slices asks for. Cut to whole slices, one at
    /// least.
    pub range_request_bytes_max: u64,
    /// A range that begins before this offset is asked for from the first byte to here at
    /// least: an object no longer than this comes in whole.
    pub whole_bytes_max: u64,
    /// Fills at one time; beyond, requests are not collapsed and responses not stored.
    pub fills_max: usize,
    /// Followers and readers of one fill; beyond, requests are not collapsed.
    pub followers_max: usize,
    /// Keys remembered as uncacheable; beyond, no more are remembered.
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

/// What all fills of a node share.
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
    pub fn new(settings: Settings, slice_bytes: u64, recorder: Recorder) -> Self {
        Self { settings, slice_bytes, recorder, held: AtomicU64::new(0) }
    }

    /// The window that a fill may have now.
    pub fn window_bytes(&self) -> u64 {
        let least = 2 * self.slice_bytes;
        if self.held.load(Ordering::Relaxed) >= self.settings.windows_bytes_total {
            return least;
        }
        self.settings.window_bytes.max(least)
    }

    pub fn hold(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.recorder.add(Metric::FillWindowBytes, bytes);
    }

    pub fn let_go(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.recorder.subtract(Metric::FillWindowBytes, bytes);
    }
}

/// One exchange with upstream that others may join.
#[derive(Debug)]
struct Fill {
    pub shared: Arc<Shared>,
    /// The purge-log position read before the upstream request was sent.
    pub sequence: PurgeSequence,
    state: Mutex<State>,
    /// Followers wait here for the outcome.
    decided: Notify,
    /// The pump waits here for room, and for the last reader to leave.
    pub pump: Notify,
}

/// What is changed under the fill's lock, which is held for no longer than it takes to move a
/// few pointers.
#[derive(Debug)]
struct State {
    outcome: Option<Decided>,
    /// How many wait for the outcome, or have it and do not read yet.
    pub expected: usize,
    pub window: Window,
    pub readers: Readers,
    /// Whether all that comes goes to the store as well.
    pub storing: bool,
    /// Where readers that fell out of the window find the slices that were stored.
    pub slices: Option<(Store, ObjectId)>,
    pub pump_waits: bool,
    pub end: Option<End>,
}

/// [`Outcome`], without the interest in the fill that a follower's copy of it holds.
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
    /// Whether every byte that came can still be had.
    fn has_all(&self) -> bool {
        self.storing || self.window.start() == 0
    }

    fn is_broken(&self) -> bool {
        matches!(self.end, Some(End::Broken(_)))
    }

    /// How many wait for bytes, or will.
    pub fn interested(&self) -> usize {
        self.expected + self.readers.count()
    }

    /// Where the slowest reader is that has not fallen out of the window.
    pub fn slowest(&self) -> Option<u64> {
        if self.expected > 0 && self.window.start() == 0 {
            return Some(0);
        }
        self.readers.cursors().filter(|cursor| *cursor >= self.window.start()).min()
    }

    /// The offset from which bytes are held for readers whatever the window says.
    pub fn held_back_at(&self) -> u64 {
        let not_reading_yet = if self.expected > 0 { 0 } else { u64::MAX };
        self.readers.fastest.unwrap_or(not_reading_yet)
    }
}

impl Fill {
    pub fn new(shared: Arc<Shared>, sequence: PurgeSequence) -> Arc<Self> {
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

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a change of `state` by which one less reads, or will.
    pub fn unlock_after_leaving(&self, state: MutexGuard<'_, State>) {
        let nobody_left = state.interested() == 0;
        self.unlock_and_nudge(state);
        if nobody_left {
            self.pump.notify_one();
        }
    }

    /// Ends a change of `state` that may have made room: wakes the pump, if it waits.
    pub fn unlock_and_nudge(&self, mut state: MutexGuard<'_, State>) {
        let pump_waits = std::mem::take(&mut state.pump_waits);
        drop(state);
        if pump_waits {
            self.pump.notify_one();
        }
    }

    /// The response, once upstream sent its head and it is being stored.
    pub fn response(&self) -> Option<Arc<StoredResponse>> {
        match &self.lock().outcome {
            Some(Decided::Filling(response)) => Some(response.clone()),
            _ => None,
        }
    }

    /// One more who waits or reads. `None` when the fill has nothing to give to a newcomer.
    pub fn interest(self: &Arc<Self>) -> Result<Interest, NotJoinable> {
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

    /// The leader's own client may always follow.
    pub fn interest_of_leader(self: &Arc<Self>) -> Interest {
        Interest::new(self, &mut self.lock())
    }

    /// Waits for the arrow out of `Asking`. Cancel-safe.
    pub async fn outcome(self: &Arc<Self>) -> Outcome {
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

    pub fn release(&self) {
        self.decide(Decided::Released);
    }

    pub fn fail(&self, failure: FillFailure) {
        self.decide(Decided::Failed(failure));
    }

    pub fn stored(&self) {
        self.decide(Decided::Stored);
    }

    fn decide(&self, outcome: Decided) {
        let mut state = self.lock();
        debug_assert!(state.outcome.is_none(), "a fill is decided once");
        state.outcome.get_or_insert(outcome);
        drop(state);
        self.decided.notify_waiters();
    }

    /// Moves `body` into the window, and whole slices on into the store, until its end.
    pub async fn run(
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

/// Why a newcomer cannot follow a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotJoinable {
    /// It has nothing to give: it was released, has failed, or broke off.
    Over,
    /// It has all the followers it may have.
    Full,
}

/// Counts as one who will read, until it ends.
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

    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Someone else counts in its place, or nobody does.
    pub fn end(&self) {
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

/// A response whose body is on its way. The fill goes on for it until it is read or dropped,
/// and then for its reader. To read several ranges, make all the readers before one is dropped.
#[derive(Debug)]
pub struct Filling {
    response: Arc<StoredResponse>,
    interest: Interest,
}

impl Filling {
    /// The response's head, as it will be stored.
    pub fn response(&self) -> &Arc<StoredResponse> {
        &self.response
    }

    /// The head that its object will have, by which its slices can be read, and others than the
    /// next ones be stored. `None` when it is not stored by slices, or its length is not known.
    pub fn head(&self) -> Option<Arc<Head>> {
        let (store, object) = self.interest.fill().lock().slices.clone()?;
        store.head_to_be(&self.response, object)
    }

    /// Whether this byte is more than a sub-request's worth away from what has come.
    pub fn is_far_from(&self, offset: u64) -> bool {
        let fill = self.interest.fill();
        let come = fill.lock().window.end();
        offset > come.saturating_add(fill.shared.settings.range_request_bytes_max)
    }

    /// Reads the whole body from its first byte, with trailers.
    pub fn read_all(&self) -> FillReader {
        self.reader(0..u64::MAX, true)
    }

    /// Reads the bytes of `range` only; what lies beyond the end is left out. Of an unknown
    /// length, the end shows only when it is there.
    pub fn read(&self, range: Range<u64>) -> FillReader {
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
