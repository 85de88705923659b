//! The body of a fill as one client reads it.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::state::{End, Fill, State};
use crate::body::{BodyError, BodySource, PollFrame};
use crate::metrics::Metric;
use crate::store::{ObjectId, Store};

/// The body of a fill as one client reads it, on any core.
pub(crate) struct FillReader {
    fill: Arc<Fill>,
    rest: Rest,
    /// Whether the length of the body is known; otherwise `rest.end` is only a bound.
    known: bool,
    trailers: bool,
    finished: bool,
    /// The slice that is being read from the store, because this reader fell behind.
    slice: Option<ReadingSlice>,
}

/// The bytes still to be read, and the reader's slot in [`Readers`](super::readers::Readers).
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
            fill.unlock_and_wake_pump(state);
        }
        piece
    }
}

type ReadingSlice = Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>;

/// The bytes that the fill has for a reader, or why it has none.
enum ReadStep {
    Piece(Bytes),
    /// The byte is no longer in memory; the stored slices may have it.
    FellBehind(Option<(Store, ObjectId)>),
    Waiting,
    End(End),
}

impl FillReader {
    /// A reader of these bytes of the body, cut at `length`, that of the body if it is known.
    pub(super) fn new(fill: Arc<Fill>, range: Range<u64>, length: Option<u64>) -> Self {
        let end = length.map_or(range.end, |length| range.end.min(length));
        let cursor = range.start.min(end);
        fill.shared.recorder.add(Metric::FillReaders, 1);
        let mut state = fill.lock();
        let slot = state.readers.enter(cursor);
        fill.unlock_and_wake_pump(state);
        let known = length.is_some();
        let rest = Rest { slot, cursor, end };
        Self { fill, rest, known, trailers: false, finished: false, slice: None }
    }

    /// The same, which also gives the trailers behind the last byte.
    pub(super) fn with_trailers(mut self) -> Self {
        self.trailers = true;
        self
    }

    fn step(&mut self, cx: &Context<'_>) -> ReadStep {
        let mut state = self.fill.lock();
        if self.rest.cursor < state.window.start() {
            return ReadStep::FellBehind(state.slices.clone());
        }
        if let Some(piece) = state.window.at(self.rest.cursor) {
            return ReadStep::Piece(self.rest.cut(&self.fill, piece, state));
        }
        if let Some(end) = &state.end {
            return ReadStep::End(end.clone());
        }
        state.readers.wait(self.rest.slot, cx.waker());
        ReadStep::Waiting
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
                ReadStep::Piece(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                ReadStep::Waiting => return Poll::Pending,
                ReadStep::End(end) => return self.finish(end),
                ReadStep::FellBehind(None) => return self.fell_behind(None),
                ReadStep::FellBehind(Some((store, object))) => {
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
        match state.end {
            None => state.readers.leave(self.rest.slot),
            Some(_) => {
                state.readers.leave_after_end(self.rest.slot);
            }
        }
        self.fill.unlock_after_reader_left(state);
        self.fill.shared.recorder.subtract(Metric::FillReaders, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_live_on_any_core() {
        fn check<T: Send + Unpin>() {}
        check::<FillReader>();
    }
}
