//! A reader of a fill, on any core, and the table of all its readers.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::{End, Fill, State};
use crate::body::{BodyError, BodySource, PollFrame};
use crate::metrics::Metric;
use crate::store::{ObjectId, Store};

/// The body of a fill as one client reads it, on any core.
pub(crate) struct FillReader {
    fill: Arc<Fill>,
    rest: Rest,
    /// Whether `rest.end` is the end, or only a bound.
    known: bool,
    trailers: bool,
    finished: bool,
    /// The slice that is being read from the store, because this reader fell behind.
    slice: Option<ReadingSlice>,
}

/// The bytes still to be read, and the reader's slot in [`Readers`].
#[derive(Debug)]
struct Rest {
    slot: usize,
    cursor: u64,
    end: u64,
}

impl Rest {
    /// The part of a piece at the cursor that this reader wants.
    fn cut(&mut self, fill: &Fill, mut piece: Bytes, mut state: MutexGuard<'_, State>) -> Bytes {
        piece.truncate(usize::try_from(self.end - self.cursor).unwrap_or(usize::MAX));
        self.cursor += piece.len() as u64;
        if state.readers.advance(self.slot, self.cursor) || !state.storing {
            fill.unlock_and_nudge(state);
        }
        piece
    }
}

type ReadingSlice = Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>;

/// What a reader found under the fill's lock.
enum Step {
    Piece(Bytes),
    /// The byte is no longer in memory; the stored slices may have it.
    FellBehind(Option<(Store, ObjectId)>),
    Waiting,
    End(End),
}

impl FillReader {
    pub(super) fn new(
        fill: Arc<Fill>,
        range: Range<u64>,
        length: Option<u64>,
        trailers: bool,
    ) -> Self {
        let end = length.map_or(range.end, |length| range.end.min(length));
        let cursor = range.start.min(end);
        fill.shared.recorder.add(Metric::FillReaders, 1);
        let mut state = fill.lock();
        let slot = state.readers.enter(cursor);
        fill.unlock_and_nudge(state);
        let known = length.is_some();
        let rest = Rest { slot, cursor, end };
        Self { fill, rest, known, trailers, finished: false, slice: None }
    }

    fn step(&mut self, cx: &Context<'_>) -> Step {
        let mut state = self.fill.lock();
        if self.rest.cursor < state.window.start() {
            return Step::FellBehind(state.slices.clone());
        }
        if let Some(piece) = state.window.at(self.rest.cursor) {
            return Step::Piece(self.rest.cut(&self.fill, piece, state));
        }
        if let Some(end) = &state.end {
            return Step::End(end.clone());
        }
        state.readers.wait(self.rest.slot, cx.waker());
        Step::Waiting
    }

    fn read_slice(&self, store: Store, object: ObjectId) -> ReadingSlice {
        let shared = &self.fill.shared;
        shared.recorder.count(Metric::FillReadsBehind);
        let number = (self.rest.cursor / shared.slice_bytes) as u32;
        Box::pin(async move { store.slice_of(object, number).await })
    }

    fn fell_behind(&mut self, slice: Option<Bytes>) -> PollFrame {
        let within = (self.rest.cursor % self.fill.shared.slice_bytes) as usize;
        match slice.filter(|slice| within < slice.len()) {
            Some(slice) => {
                let (fill, piece) = (&self.fill, slice.slice(within..));
                let piece = self.rest.cut(fill, piece, fill.lock());
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            None => {
                self.finished = true;
                self.fill.shared.recorder.count(Metric::FillReadersLost);
                let why =
                    format!("byte {} is no longer in memory and not stored", self.rest.cursor);
                Poll::Ready(Some(Err(BodyError::new(why))))
            }
        }
    }

    fn finish(&mut self, end: End) -> PollFrame {
        self.finished = true;
        match end {
            End::Whole { trailers: Some(trailers) } if self.trailers => {
                Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::clone(&trailers)))))
            }
            End::Whole { .. } => Poll::Ready(None),
            End::Broken(why) => Poll::Ready(Some(Err(BodyError::caused_by(
                format!("the upstream response ended before byte {}", self.rest.cursor),
                why,
            )))),
        }
    }
}

impl BodySource for FillReader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        if self.finished || (self.rest.cursor == self.rest.end && !self.trailers) {
            return Poll::Ready(None);
        }
        if self.slice.is_none() {
            match self.step(cx) {
                Step::Piece(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Step::Waiting => return Poll::Pending,
                Step::End(end) => return self.finish(end),
                Step::FellBehind(None) => return self.fell_behind(None),
                Step::FellBehind(Some((store, object))) => {
                    self.slice = Some(self.read_slice(store, object));
                }
            }
        }
        let reading = self.slice.as_mut().expect("set above");
        let slice = ready!(reading.as_mut().poll(cx));
        self.slice = None;
        self.fell_behind(slice)
    }

    fn is_end_stream(&self) -> bool {
        self.finished || (self.rest.cursor == self.rest.end && !self.trailers)
    }

    fn exact_length(&self) -> Option<u64> {
        self.known.then(|| self.rest.end - self.rest.cursor)
    }
}

impl fmt::Debug for FillReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FillReader({}..{})", self.rest.cursor, self.rest.end)
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        let mut state = self.fill.lock();
        let over = state.end.is_some();
        state.readers.leave(self.rest.slot, over);
        self.fill.unlock_after_leaving(state);
        self.fill.shared.recorder.subtract(Metric::FillReaders, 1);
    }
}

/// The cursors of all readers, and the wakers of those that wait.
#[derive(Debug, Default)]
pub(super) struct Readers {
    slots: Vec<Option<Place>>,
    free: Vec<usize>,
    /// The furthest cursor, while the body is arriving.
    pub fastest: Option<u64>,
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

    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True if the reader may be the fastest one, which sets the fill's pace.
    fn advance(&mut self, slot: usize, cursor: u64) -> bool {
        let place = self.slots[slot].as_mut().expect("the reader is there");
        place.cursor = cursor;
        let fastest = self.fastest.unwrap_or(0);
        self.fastest = Some(fastest.max(cursor));
        cursor >= fastest
    }

    /// Takes the wakers of all waiting readers. Call it under the lock; wake them after releasing it.
    pub(super) fn take_wakers(&mut self, into: &mut Vec<Waker>) {
        if self.waiting == 0 {
            return;
        }
        self.waiting = 0;
        into.extend(self.slots.iter_mut().flatten().filter_map(|place| place.waker.take()));
    }

    pub(super) fn cursors(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().flatten().map(|place| place.cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_fastest_leaves_the_next_one_paces() {
        let mut readers = Readers::default();
        let (slow, fast) = (readers.enter(0), readers.enter(0));
        assert!(readers.advance(fast, 500));
        assert!(!readers.advance(slow, 100));
        readers.leave(fast, false);
        assert_eq!((readers.fastest, readers.count()), (Some(100), 1));
        assert!(readers.advance(slow, 200));
        readers.leave(slow, false);
        assert_eq!((readers.fastest, readers.count()), (None, 0));
    }

    #[test]
    fn a_reader_that_leaves_takes_its_waker_along() {
        let mut readers = Readers::default();
        let (first, second) = (readers.enter(0), readers.enter(0));
        readers.wait(first, Waker::noop());
        readers.wait(first, Waker::noop());
        readers.wait(second, Waker::noop());
        readers.leave(first, false);
        let mut wakers = Vec::new();
        readers.take_wakers(&mut wakers);
        assert_eq!((wakers.len(), readers.waiting), (1, 0));
    }

    #[test]
    fn readers_live_on_any_core() {
        fn check<T: Send + Unpin>() {}
        check::<FillReader>();
    }
}
