//! One client's reading of a fill, on any core, and the table of all who read it.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::fill::{End, Fill};
use crate::body::BodyError;
use crate::metrics::Metric;

/// The body of a fill as one client reads it, on any core.
#[derive(Debug)]
pub struct FillReader {
    fill: Arc<Fill>,
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
        Self { fill, slot, cursor, end, known: length.is_some(), trailers, finished: false }
    }

    fn step(&mut self, cx: &Context<'_>) -> Step {
        let mut state = self.fill.lock();
        if self.cursor < state.window.start() {
            return Step::FellBehind;
        }
        if let Some(mut piece) = state.window.at(self.cursor) {
            piece.truncate(usize::try_from(self.end - self.cursor).unwrap_or(usize::MAX));
            self.cursor += piece.len() as u64;
            if state.readers.advance(self.slot, self.cursor) || !state.storing {
                self.fill.unlock_and_nudge(state);
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
                reader.fill.shared.recorder.count(Metric::FillReadersCut);
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
        let mut state = self.fill.lock();
        let over = state.end.is_some();
        state.readers.leave(self.slot, over);
        self.fill.unlock_after_leaving(state);
        self.fill.shared.recorder.subtract(Metric::FillReaders, 1);
    }
}

/// Where the readers are, and the wakers of those that wait.
#[derive(Debug, Default)]
pub(super) struct Readers {
    slots: Vec<Option<Place>>,
    free: Vec<usize>,
    /// The furthest cursor, while the body is coming.
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

    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True when the reader may be the one that paces the fill.
    fn advance(&mut self, slot: usize, cursor: u64) -> bool {
        let place = self.slots[slot].as_mut().expect("the reader is there");
        place.cursor = cursor;
        let fastest = self.fastest.unwrap_or(0);
        self.fastest = Some(fastest.max(cursor));
        cursor >= fastest
    }

    /// Moves out the wakers of all who wait; to be called under the lock, woken outside.
    pub fn take_wakers(&mut self, into: &mut Vec<Waker>) {
        if self.waiting == 0 {
            return;
        }
        self.waiting = 0;
        into.extend(self.slots.iter_mut().flatten().filter_map(|place| place.waker.take()));
    }

    pub fn cursors(&self) -> impl Iterator<Item = u64> {
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
