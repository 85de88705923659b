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

use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::collapse::{Failure, Outcome};
use super::window::Window;
use crate::body::{Body, BodyError};
use crate::cache::{PurgeSequence, StoredResponse};
use crate::metrics::{Metric, Recorder};

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
            fills_max: 16_384,
            followers_max: 65_536,
            remembered_max: 65_536,
        }
    }
}

/// What all fills of a node share.
#[derive(Debug)]
pub(super) struct Shared {
    pub settings: Settings,
    pub slice_bytes: u64,
    pub recorder: Recorder,
    /// Bytes in all windows.
    held: AtomicU64,
}

impl Shared {
    pub fn new(settings: Settings, slice_bytes: u64, recorder: Recorder) -> Self {
        Self { settings, slice_bytes, recorder, held: AtomicU64::new(0) }
    }

    fn window_bytes(&self) -> u64 {
        let least = 2 * self.slice_bytes;
        if self.held.load(Ordering::Relaxed) >= self.settings.windows_bytes_total {
            return least;
        }
        self.settings.window_bytes.max(least)
    }

    fn hold(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.recorder.add(Metric::FillWindowBytes, bytes);
    }

    fn let_go(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.recorder.subtract(Metric::FillWindowBytes, bytes);
    }
}

/// One exchange with upstream that others may join.
#[derive(Debug)]
pub(super) struct Fill {
    pub shared: Arc<Shared>,
    /// The purge-log position read before the upstream request was sent.
    pub sequence: PurgeSequence,
    state: Mutex<State>,
    /// Followers wait here for the outcome.
    decided: Notify,
    /// The pump waits here for room, and for the last reader to leave.
    pump: Notify,
}

#[derive(Debug)]
struct State {
    outcome: Option<Decided>,
    /// Followers, their handles and readers.
    interested: usize,
    window: Window,
    readers: Readers,
    /// Whether readers that fell out of the window can be served from the store.
    storing: bool,
    pump_waits: bool,
    end: Option<End>,
}

/// [`Outcome`], without the interest in the fill that a follower's copy of it holds.
#[derive(Clone, Debug)]
enum Decided {
    Released,
    Failed(Failure),
    Stored,
    Filling(Arc<StoredResponse>),
}

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

    /// Where the slowest reader is that has not fallen out of the window.
    fn slowest(&self) -> Option<u64> {
        self.readers.cursors().filter(|cursor| *cursor >= self.window.start()).min()
    }

    /// The offset from which bytes are held for readers whatever the window says.
    fn held_back_at(&self) -> u64 {
        let not_reading_yet = if self.interested > 0 { 0 } else { u64::MAX };
        self.readers.fastest.unwrap_or(not_reading_yet)
    }
}

impl Fill {
    pub fn new(shared: Arc<Shared>, sequence: PurgeSequence) -> Arc<Self> {
        shared.recorder.add(Metric::Fills, 1);
        let state = State {
            outcome: None,
            interested: 0,
            window: Window::default(),
            readers: Readers::default(),
            storing: false,
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        if state.interested >= self.shared.settings.followers_max {
            return Err(NotJoinable::Full);
        }
        state.interested += 1;
        Ok(Interest(self.clone()))
    }

    /// The leader's own client may always follow.
    pub fn interest_of_leader(self: &Arc<Self>) -> Interest {
        self.lock().interested += 1;
        Interest(self.clone())
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
                state.interested += 1;
                Outcome::Filling(Filling { response, interest: Interest(self.clone()) })
            }
        })
    }

    pub fn release(&self) {
        self.decide(Decided::Released);
    }

    pub fn fail(&self, failure: Failure) {
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
        response: Arc<StoredResponse>,
        body: Body,
        to_the_end: bool,
    ) -> Filled {
        let length = response.complete_length;
        self.decide(Decided::Filling(response));
        let patience = self.shared.settings.patience;
        let mut pump = Pump {
            fill: self.clone(),
            body,
            rest: Bytes::new(),
            length,
            to_the_end,
            patience,
            wakers: Vec::new(),
        };
        let end = pump.run().await;
        let stored = false;
        let bytes = self.lock().window.end();
        let broken = match &end {
            End::Whole { .. } => None,
            End::Broken(why) => Some(why.clone()),
        };
        pump.end(end);
        Filled { bytes, stored, broken }
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
pub(super) enum NotJoinable {
    /// It has nothing to give: it was released, has failed, or broke off.
    Over,
    /// It has all the followers it may have.
    Full,
}

/// Counts as one who waits for the fill or reads it, until dropped.
#[derive(Debug)]
pub(super) struct Interest(Arc<Fill>);

impl Interest {
    pub fn fill(&self) -> &Arc<Fill> {
        &self.0
    }
}

impl Clone for Interest {
    fn clone(&self) -> Self {
        self.0.lock().interested += 1;
        Self(self.0.clone())
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.interested -= 1;
        let nobody_left = state.interested == 0;
        drop(state);
        if nobody_left {
            self.0.pump.notify_one();
        }
    }
}

/// A response whose body is on its way. While one of these (or a reader) lives, the fill goes
/// on.
#[derive(Clone, Debug)]
pub struct Filling {
    response: Arc<StoredResponse>,
    interest: Interest,
}

impl Filling {
    /// The response's head, as it will be stored.
    pub fn response(&self) -> &Arc<StoredResponse> {
        &self.response
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
        let interest = self.interest.clone();
        let fill = interest.fill();
        fill.shared.recorder.add(Metric::FillReaders, 1);
        let end = self.response.complete_length.map_or(range.end, |length| range.end.min(length));
        let mut state = fill.lock();
        let slot = state.readers.enter(range.start.min(end));
        let pump_waits = std::mem::take(&mut state.pump_waits);
        drop(state);
        if pump_waits {
            fill.pump.notify_one();
        }
        let known = self.response.complete_length.is_some();
        let cursor = range.start.min(end);
        FillReader { interest, slot, cursor, end, known, trailers, finished: false }
    }
}

/// The body of a fill as one client reads it, on any core.
#[derive(Debug)]
pub struct FillReader {
    interest: Interest,
    slot: usize,
    cursor: u64,
    end: u64,
    /// Whether `end` is the end, or only a bound.
    known: bool,
    trailers: bool,
    finished: bool,
}

/// What the fill's lock had for a reader.
enum Step {
    Piece(Bytes),
    FellBehind,
    Waiting,
    End(End),
}

impl FillReader {
    fn step(&mut self, cx: &Context<'_>) -> Step {
        let fill = self.interest.fill();
        let mut state = fill.lock();
        if self.cursor < state.window.start() {
            return Step::FellBehind;
        }
        if let Some(mut piece) = state.window.at(self.cursor) {
            piece.truncate(usize::try_from(self.end - self.cursor).unwrap_or(usize::MAX));
            self.cursor += piece.len() as u64;
            let paces = state.readers.advance(self.slot, self.cursor);
            let paces = paces || !state.storing;
            let pump_waits = paces && std::mem::take(&mut state.pump_waits);
            drop(state);
            if pump_waits {
                fill.pump.notify_one();
            }
            return Step::Piece(piece);
        }
        if let Some(end) = &state.end {
            return Step::End(end.clone());
        }
        state.readers.wait(self.slot, cx.waker());
        Step::Waiting
    }

    fn finish(&mut self, end: End) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.finished = true;
        match end {
            End::Whole { trailers: Some(trailers) } if self.trailers => {
                Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::clone(&trailers)))))
            }
            End::Whole { .. } => Poll::Ready(None),
            End::Broken(why) => Poll::Ready(Some(Err(BodyError::caused_by(
                format!("the fill broke off before byte {}", self.cursor),
                why,
            )))),
        }
    }
}

impl HttpBody for FillReader {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let reader = self.get_mut();
        if reader.finished || (reader.cursor == reader.end && !reader.trailers) {
            return Poll::Ready(None);
        }
        match reader.step(cx) {
            Step::Piece(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            Step::Waiting => Poll::Pending,
            Step::End(end) => reader.finish(end),
            Step::FellBehind => {
                reader.finished = true;
                let why = format!("byte {} is no longer in memory and not stored", reader.cursor);
                Poll::Ready(Some(Err(BodyError::new(why))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.finished || (self.cursor == self.end && !self.trailers)
    }

    fn size_hint(&self) -> SizeHint {
        if self.known { SizeHint::with_exact(self.end - self.cursor) } else { SizeHint::default() }
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        let fill = self.interest.fill();
        let mut state = fill.lock();
        let over = state.end.is_some();
        state.readers.leave(self.slot, over);
        let pump_waits = std::mem::take(&mut state.pump_waits);
        drop(state);
        fill.shared.recorder.subtract(Metric::FillReaders, 1);
        if pump_waits {
            fill.pump.notify_one();
        }
    }
}

/// What became of a fill.
#[derive(Clone, Debug)]
pub struct Filled {
    /// Bytes of body that came from upstream.
    pub bytes: u64,
    /// Whether the response is in the store.
    pub stored: bool,
    /// Why the body is not whole, when it is not.
    pub broken: Option<Arc<BodyError>>,
}

/// The one task that moves a body along.
struct Pump {
    fill: Arc<Fill>,
    body: Body,
    /// What is left of the last frame.
    rest: Bytes,
    length: Option<u64>,
    to_the_end: bool,
    /// How much longer readers may hold back a fill that is not being stored.
    patience: Duration,
    /// Empty between uses; kept for its memory.
    wakers: Vec<Waker>,
}

/// What the pump may do now.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Take,
    /// The fastest reader is a window behind.
    Wait,
    /// A slow one would fall out, and the store does not have what it needs.
    WaitForSlow,
    GiveUp,
}

impl Pump {
    async fn run(&mut self) -> End {
        loop {
            match self.next() {
                Next::GiveUp => return broken("no reader was left"),
                Next::Wait => self.fill.clone().pump.notified().await,
                Next::WaitForSlow => self.wait_for_slow().await,
                Next::Take => match self.take().await {
                    Taken::Moved => {}
                    Taken::End(end) => return end,
                },
            }
        }
    }

    fn next(&self) -> Next {
        let shared = &self.fill.shared;
        let mut state = self.fill.lock();
        let come = state.window.end();
        if state.interested == 0 && !self.to_the_end {
            let worth =
                worth_going_on(come, self.length, shared.slice_bytes, shared.settings.keep_percent);
            return if worth && state.storing { Next::Take } else { Next::GiveUp };
        }
        let window_bytes = shared.window_bytes();
        let unread = come.saturating_sub(state.held_back_at());
        let unattended = self.to_the_end && state.readers.fastest.is_none();
        let next = if unread >= window_bytes && !unattended {
            Next::Wait
        } else if !state.storing
            && !self.patience.is_zero()
            && state.slowest().is_some_and(|slowest| come - slowest >= window_bytes)
        {
            Next::WaitForSlow
        } else {
            Next::Take
        };
        state.pump_waits = next != Next::Take;
        next
    }

    async fn wait_for_slow(&mut self) {
        let since = Instant::now();
        let fill = self.fill.clone();
        let moved = tokio::time::timeout(self.patience, fill.pump.notified()).await;
        self.patience = match moved {
            Ok(()) => self.patience.saturating_sub(since.elapsed()),
            Err(_) => Duration::ZERO,
        };
    }

    /// Moves the next piece, at most to the end of its slice; waits for it, but not when the
    /// last reader leaves meanwhile.
    async fn take(&mut self) -> Taken {
        if !self.rest.is_empty() {
            self.push();
            return Taken::Moved;
        }
        let fill = self.fill.clone();
        let frame = tokio::select! {
            biased;
            frame = self.body.frame() => frame,
            () = fill.pump.notified() => return Taken::Moved,
        };
        let come = fill.lock().window.end();
        match frame {
            None => Taken::End(whole_if_complete(come, self.length, None)),
            Some(Err(error)) => {
                let why = format!("upstream's body broke off after {come} bytes");
                Taken::End(End::Broken(Arc::new(BodyError::caused_by(why, error))))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if self.length.is_some_and(|length| come + data.len() as u64 > length) => {
                    Taken::End(broken("upstream sent more than it had announced"))
                }
                Ok(data) => {
                    self.rest = data;
                    Taken::Moved
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().ok().map(Arc::new);
                    Taken::End(whole_if_complete(come, self.length, trailers))
                }
            },
        }
    }

    fn push(&mut self) {
        let shared = &self.fill.shared;
        let mut state = self.fill.lock();
        let held_before = state.window.held();
        let room = shared.slice_bytes - state.window.end() % shared.slice_bytes;
        let piece = self.rest.split_to(self.rest.len().min(room as usize));
        let length = piece.len() as u64;
        state.window.push(piece, shared.slice_bytes);
        shared.hold(length);
        let held_back_at = if self.to_the_end && state.readers.fastest.is_none() {
            u64::MAX
        } else {
            state.held_back_at()
        };
        let outside = state.window.end().saturating_sub(shared.window_bytes());
        state.window.drop_before(outside.min(held_back_at));
        let dropped = held_before + length - state.window.held();
        state.readers.take_wakers(&mut self.wakers);
        drop(state);
        shared.let_go(dropped);
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn end(&mut self, end: End) {
        let mut state = self.fill.lock();
        state.end.get_or_insert(end);
        state.readers.take_wakers(&mut self.wakers);
        drop(state);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.end(broken("the task that read from upstream is gone"));
    }
}

enum Taken {
    Moved,
    End(End),
}

fn broken(why: &str) -> End {
    End::Broken(Arc::new(BodyError::new(why)))
}

fn whole_if_complete(come: u64, length: Option<u64>, trailers: Option<Arc<HeaderMap>>) -> End {
    match length {
        Some(length) if come < length => {
            let why = format!("upstream's body ended after {come} of {length} bytes");
            End::Broken(Arc::new(BodyError::new(why)))
        }
        _ => End::Whole { trailers },
    }
}

/// Whether a fill that nobody reads any more goes on: enough of it is here, or little is
/// missing; of unknown length, while it may turn out to be one slice.
fn worth_going_on(come: u64, length: Option<u64>, slice_bytes: u64, keep_percent: u8) -> bool {
    match length {
        Some(length) => {
            let enough = u128::from(come) * 100 >= u128::from(length) * u128::from(keep_percent);
            enough || length - come <= slice_bytes
        }
        None => come < slice_bytes,
    }
}

/// Where the readers are, and the wakers of those that wait.
#[derive(Debug, Default)]
struct Readers {
    slots: Vec<Option<Place>>,
    free: Vec<usize>,
    fastest: Option<u64>,
    waiting: usize,
}

#[derive(Debug)]
struct Place {
    cursor: u64,
    waker: Option<Waker>,
}

impl Readers {
    fn enter(&mut self, cursor: u64) -> usize {
        self.fastest = self.fastest.max(Some(cursor));
        let place = Some(Place { cursor, waker: None });
        if let Some(slot) = self.free.pop() {
            self.slots[slot] = place;
            return slot;
        }
        self.slots.push(place);
        self.slots.len() - 1
    }

    fn leave(&mut self, slot: usize, over: bool) {
        let place = self.slots[slot].take().expect("a reader leaves once");
        self.free.push(slot);
        self.waiting -= usize::from(place.waker.is_some());
        // A body that is over is paced by nobody: no need to look through all readers.
        if !over && self.fastest == Some(place.cursor) {
            self.fastest = self.cursors().max();
        }
    }

    fn wait(&mut self, slot: usize, waker: &Waker) {
        let place = self.slots[slot].as_mut().expect("the reader is there");
        match &mut place.waker {
            Some(known) => known.clone_from(waker),
            empty => {
                *empty = Some(waker.clone());
                self.waiting += 1;
            }
        }
    }

    /// True when the reader may be the one that paces the fill.
    fn advance(&mut self, slot: usize, cursor: u64) -> bool {
        let place = self.slots[slot].as_mut().expect("the reader is there");
        place.cursor = cursor;
        let fastest = self.fastest.unwrap_or(0);
        self.fastest = Some(fastest.max(cursor));
        cursor >= fastest
    }

    fn take_wakers(&mut self, into: &mut Vec<Waker>) {
        if self.waiting == 0 {
            return;
        }
        self.waiting = 0;
        into.extend(self.slots.iter_mut().flatten().filter_map(|place| place.waker.take()));
    }

    fn cursors(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().flatten().map(|place| place.cursor)
    }
}
