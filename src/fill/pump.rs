//! The task that moves an upstream body into its fill, and decides its pace and its end.

use std::fmt::Display;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::state::{End, Fill, FillDecision, State};
use crate::body::{Body, BodyError};
use crate::cache::StoredResponse;
use crate::labels::FillEnd;
use crate::metrics::Metric;
use crate::store::{ObjectWriter, Store};

/// The course of a fill while it has no readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WithoutReaders {
    /// The fill stops, unless enough of the body has arrived, or little is missing.
    Stop,
    /// The fill continues to the end of the body.
    Continue,
}

/// Decides a fill: followers get `response`, whose `body` is moved into the window, and in complete
/// slices to the `writer` into the store, until its end.
pub(super) async fn fill(
    fill: &Arc<Fill>,
    (store, writer): (&Store, ObjectWriter),
    response: Arc<StoredResponse>,
    body: Body,
    without_readers: WithoutReaders,
) -> FillEnd {
    let length = response.complete_length;
    {
        let mut state = fill.lock();
        state.storing = true;
        state.slices = Some((store.clone(), writer.object()));
    }
    fill.decide(FillDecision::Filling(response));
    Pump::new(fill.clone(), body, length, Some(writer), without_readers).run().await
}

/// As [`fill`], but only into the window, and only while there are readers.
pub(super) async fn stream(fill: &Arc<Fill>, response: Arc<StoredResponse>, body: Body) -> FillEnd {
    let length = response.complete_length;
    fill.decide(FillDecision::Filling(response));
    Pump::new(fill.clone(), body, length, None, WithoutReaders::Stop).run().await
}

/// Owned by the leader's task.
struct Pump {
    fill: Arc<Fill>,
    body: Body,
    /// The rest of the last frame.
    rest: Bytes,
    length: Option<u64>,
    /// Bytes moved since the task last yielded.
    turn_bytes: usize,
    /// `None` if nothing is stored, and once the store has refused a byte.
    writer: Option<ObjectWriter>,
    without_readers: WithoutReaders,
    /// How much longer slow readers may hold back a fill that is not stored.
    patience: Duration,
    /// Whether the reduced window has been counted.
    reduced: bool,
    /// Empty between uses; kept to reuse its allocation.
    wakers: Vec<Waker>,
}

/// The next step of the pump.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Take,
    /// Wait: the fastest reader is a window behind.
    Wait,
    /// Wait: a slow reader would fall behind the window, and the store does not have its bytes.
    WaitForSlow,
    GiveUp,
}

impl Pump {
    fn new(
        fill: Arc<Fill>,
        body: Body,
        length: Option<u64>,
        writer: Option<ObjectWriter>,
        without_readers: WithoutReaders,
    ) -> Self {
        let patience = fill.shared.settings.patience;
        Self {
            fill,
            body,
            rest: Bytes::new(),
            length,
            turn_bytes: 0,
            writer,
            without_readers,
            patience,
            reduced: false,
            wakers: Vec::new(),
        }
    }

    /// Moves the body until its end, or until no reader wants it.
    async fn run(mut self) -> FillEnd {
        let end = match self.move_all().await {
            Moved::Whole => self.finish().await,
            Moved::Broken => FillEnd::Broken,
            Moved::Abandoned => FillEnd::Abandoned,
        };
        self.fill.shared.recorder.count_labelled(Metric::FillsEnded, end.index());
        end
    }

    /// The readers already have the end of the body.
    async fn finish(&mut self) -> FillEnd {
        let Some(writer) = self.writer.take() else {
            return FillEnd::Unstored;
        };
        match writer.finish().await {
            Ok(_) => FillEnd::Stored,
            Err(error) => {
                self.stop_storing(error);
                FillEnd::Unstored
            }
        }
    }

    fn stop_storing(&mut self, why: impl Display) {
        tracing::debug!(%why, "a fill is no longer stored");
        self.writer = None;
        self.fill.lock().storing = false;
    }

    /// Stops storing the body if all windows are full: its readers are slow, and until they have read it, the
    /// incomplete slice would stay in memory twice.
    fn yield_memory(&mut self) {
        let shared = &self.fill.shared;
        if self.writer.is_none() || !shared.is_full() {
            return;
        }
        shared.recorder.count(Metric::FillsUnstoredForMemory);
        self.stop_storing("all windows are full");
        let mut state = self.fill.lock();
        let dropped = self.shrink_window(&mut state);
        drop(state);
        self.fill.shared.let_go(dropped);
    }

    async fn move_all(&mut self) -> Moved {
        loop {
            match self.next() {
                Next::GiveUp => return Moved::Abandoned,
                Next::Wait => {
                    self.yield_memory();
                    self.fill.clone().pump.notified().await;
                }
                Next::WaitForSlow => self.wait_for_slow().await,
                Next::Take => match self.take().await {
                    Ok(None) => {}
                    Ok(Some(end)) => {
                        self.end(End::Whole { trailers: end.trailers });
                        return Moved::Whole;
                    }
                    Err(error) => {
                        self.end(End::Broken(Arc::new(error)));
                        return Moved::Broken;
                    }
                },
            }
        }
    }

    fn next(&self) -> Next {
        let shared = &self.fill.shared;
        let mut state = self.fill.lock();
        let arrived = state.window.end();
        if state.reader_count() == 0 && self.without_readers == WithoutReaders::Stop {
            let worth = worth_going_on(
                arrived,
                self.length,
                shared.slice_bytes,
                shared.settings.keep_percent,
            );
            if worth && state.storing {
                return Next::Take;
            }
            // Under the same lock, so that nobody joins what is given up.
            state.end = Some(End::Broken(Arc::new(BodyError::new("no reader was left"))));
            return Next::GiveUp;
        }
        let window_bytes = shared.window_bytes_max();
        let next = if arrived.saturating_sub(self.fastest(&state)) >= window_bytes {
            Next::Wait
        } else if arrived.saturating_sub(self.slowest(&state)) >= window_bytes {
            Next::WaitForSlow
        } else {
            Next::Take
        };
        state.pump_waits = next != Next::Take;
        next
    }

    /// The offset of the fastest reader, which sets the fill's pace.
    fn fastest(&self, state: &State) -> u64 {
        match self.without_readers {
            WithoutReaders::Continue if state.readers.fastest.is_none() => u64::MAX,
            _ => state.retain_from(),
        }
    }

    /// The offset of the readers that the fill waits for because the store does not have their bytes.
    fn slowest(&self, state: &State) -> u64 {
        let waited_for = !state.storing && !self.patience.is_zero();
        state.slowest().filter(|_| waited_for).unwrap_or(u64::MAX)
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

    /// Moves the next piece, at most to the end of its slice. Waits for it unless the last reader
    /// leaves meanwhile.
    async fn take(&mut self) -> Result<Option<CleanEnd>, BodyError> {
        if !self.rest.is_empty() {
            self.push().await;
            return Ok(None);
        }
        let fill = self.fill.clone();
        let frame = tokio::select! {
            biased;
            frame = self.body.frame() => frame,
            () = fill.pump.notified() => return Ok(None),
        };
        let arrived = fill.lock().window.end();
        let Some(frame) = frame else {
            return self.clean_end(arrived, None);
        };
        let frame = frame.map_err(|error| {
            BodyError::caused_by(
                format!("the upstream response body ended early, after {arrived} bytes"),
                error,
            )
        })?;
        match frame.into_data() {
            Ok(data) => {
                let announced = self.length.unwrap_or(u64::MAX);
                if data.len() as u64 > announced - arrived {
                    let why = format!("upstream sent more than the {announced} bytes announced");
                    return Err(BodyError::new(why));
                }
                self.rest = data;
                Ok(None)
            }
            Err(frame) => self.clean_end(arrived, frame.into_trailers().ok()),
        }
    }

    /// Whether the body is complete.
    fn clean_end(
        &self,
        arrived: u64,
        trailers: Option<HeaderMap>,
    ) -> Result<Option<CleanEnd>, BodyError> {
        match self.length {
            Some(length) if arrived < length => {
                let why = format!("upstream's body ended after {arrived} of {length} bytes");
                Err(BodyError::new(why))
            }
            _ => Ok(Some(CleanEnd { trailers: trailers.map(Arc::new) })),
        }
    }

    /// Gives the piece to the readers first, then to the store. Then yields, if enough bytes were moved: a body that arrives faster than it
    /// is moved never makes the task wait, and would hold up the other requests of the core for a whole window.
    async fn push(&mut self) {
        let shared = &self.fill.shared;
        let piece = self.rest.split_to(self.rest.len().min(shared.slice_bytes as usize));
        self.turn_bytes += piece.len();
        self.show(piece.clone());
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.push(piece).await
        {
            self.stop_storing(error);
        }
        if self.turn_bytes >= TURN_BYTES {
            self.turn_bytes = 0;
            yield_now().await;
        }
    }

    fn show(&mut self, piece: Bytes) {
        let shared = &self.fill.shared;
        let window_bytes = shared.window_bytes_max();
        let mut state = self.fill.lock();
        shared.hold(piece.len() as u64);
        state.window.push(piece);
        let is_longer = state.window.end() > window_bytes;
        let dropped = self.shrink_window(&mut state);
        state.readers.take_wakers(&mut self.wakers);
        drop(state);
        shared.let_go(dropped);
        if !self.reduced && is_longer && window_bytes < shared.settings.window_bytes {
            self.reduced = true;
            shared.recorder.count(Metric::FillWindowsReduced);
        }
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// Drops the bytes beyond the window that no reader needs from it. Returns their number.
    fn shrink_window(&self, state: &mut State) -> u64 {
        let held_before = state.window.held();
        let outside = state.window.end().saturating_sub(self.fill.shared.window_bytes_max());
        let read_up_to = self.fastest(state).min(self.slowest(state));
        state.window.drop_before(outside.min(read_up_to).min(self.stored_up_to()));
        held_before - state.window.held()
    }

    /// Bytes before this offset can be read from the store, slice by slice.
    fn stored_up_to(&self) -> u64 {
        let slice_bytes = self.fill.shared.slice_bytes;
        let stored = self.writer.as_ref().map(|writer| u64::from(writer.slices_stored()));
        stored.map_or(u64::MAX, |slices| slices * slice_bytes)
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
        let why = BodyError::new("the task that read from upstream is gone");
        self.end(End::Broken(Arc::new(why)));
    }
}

/// The result of [`Pump::move_all`].
enum Moved {
    Whole,
    Broken,
    Abandoned,
}

struct CleanEnd {
    trailers: Option<Arc<HeaderMap>>,
}

/// Whether a fill without readers continues: enough of it has arrived, or little is missing. A body
/// of unknown length continues while it may still fit into one slice.
fn worth_going_on(arrived: u64, length: Option<u64>, slice_bytes: u64, keep_percent: u8) -> bool {
    match length {
        Some(length) => {
            let enough = u128::from(arrived) * 100 >= u128::from(length) * u128::from(keep_percent);
            enough || length - arrived <= slice_bytes
        }
        None => arrived < slice_bytes,
    }
}

/// About a tenth of a millisecond of work: receiving, copying into a slice, and the kernel's work for memory that is new.
pub(super) const TURN_BYTES: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_that_nobody_reads_goes_on_when_it_is_worth_it() {
        let worth = |arrived, length| worth_going_on(arrived, length, 100, 50);
        assert!(worth(500, Some(1000)), "half of it is here");
        assert!(!worth(499, Some(1000)));
        assert!(worth(0, Some(100)), "one slice is missing");
        assert!(!worth(0, Some(101)));
        assert!(worth(99, None), "it may be one slice");
        assert!(!worth(100, None));
        assert!(worth(0, Some(0)));
        assert!(worth(u64::MAX / 2 + 1, Some(u64::MAX)));
    }
}
